"""Every setting, its default and what is allowed. Durations are seconds once they are read."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Secret,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(value: object) -> float:
    """Seconds of `0`, `400ms`, `1.5s`, `10m`, `72h`, `7d`. Raises ValueError."""
    if value == 0 or value == "0":
        return 0.0
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write 0, 400ms, 1.5s, 10m or 72h")
    return float(match[1]) * _UNITS_S[match[2]]


Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(lambda seconds: f"{seconds:g}s")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


def parse_address(value: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[::1]:port` or `:port` (all interfaces). Raises ValueError."""
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{value!r} is not an address; write host:port, such as 0.0.0.0:8080")
    return host.strip("[]") or "0.0.0.0", int(port)


def _address(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an address; write host:port, such as 0.0.0.0:8080")
    parse_address(value)
    return value


class SecretUrl(Secret[str]):
    """An address that may hold a password: neither that nor anything else behind its ? is shown."""

    def _display(self) -> str:
        # The last @: a password that was not escaped may hold any character.
        scheme, mark, rest = self.get_secret_value().partition("://")
        login, at, place = rest.rpartition("@")
        place, question, query = place.partition("?")
        return "".join((scheme, mark, login and _MASK, at, place, question, query and _MASK))


_MASK = "*" * 10


def _redis_url(value: SecretUrl) -> SecretUrl:
    if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("write redis://[user:password@]host:port/number, or rediss://… or unix://…")
    if "@" in urlsplit(value.get_secret_value()).path:
        # What stands before it would be taken for the host, and be shown when that cannot be reached.
        raise ValueError("in a password, write / ? # @ % as %2F %3F %23 %40 %25")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Http(_Section):
    """`timeout` bounds one plain HTTP request; port 0 takes a free one."""

    addr: Annotated[str, BeforeValidator(_address)] = "0.0.0.0:8080"
    timeout: Duration = 5.0


class Server(_Section):
    """`processes` share the address. `allowed_origins` empty: pages of the same host only."""

    http: Http = Http()
    processes: Positive = 1
    allowed_origins: list[str] = []


class Session(_Section):
    """0 means no limit, or never. `write_buffer_bytes` is what a client that does not read may cost."""

    max_message_bytes: Positive = 1 << 20
    max_connections: Count = 0
    max_connections_per_ip: Count = 0
    ping_interval: Duration = 27.0
    pong_timeout: Duration = 30.0
    write_timeout: Duration = 5.0
    write_buffer_bytes: Positive = 1 << 16
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    grace: Duration = 10.0
    max_in_flight: Positive = 8


class Queue(_Section):
    """`retain`: how long a finished response can still be followed. The rest is for the driver redis:
    `prefix` begins every key, and a process that has not been heard of for `lease` has lost its work."""

    driver: Literal["memory", "redis"] = "memory"
    url: Annotated[SecretUrl, AfterValidator(_redis_url)] = SecretUrl("redis://127.0.0.1:6379/0")
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "sluice"
    lease: Annotated[Duration, Field(ge=1)] = 15.0
    retain: Duration = 600.0
    max_pending: Count = 1024
    max_age: Duration = 600.0
    max_attempts: Positive = 3


class EchoOptions(_Section):
    chunks: Positive = 5
    interval: Duration = 0.4
    slots: Positive = 100_000


def _existing_file(value: object) -> object:
    if isinstance(value, str) and value and not Path(value).is_file():
        raise ValueError(f"there is no file {value}")
    return value or None


OptionalFile = Annotated[Path | None, BeforeValidator(_existing_file)]


class LlamaCppOptions(_Section):
    """`path` empty: the bundled SmolLM2. `template` empty: the model's own chat template. `context` tokens
    in each of `slots`; `threads` 0: all cores but one."""

    path: OptionalFile = None
    template: OptionalFile = None
    slots: Positive = 8
    context: Annotated[int, Field(ge=256)] = 2048
    threads: Count = 0
    max_output_tokens: Positive = 512
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.9
    repeat_penalty: Annotated[float, Field(ge=0, le=2)] = 1.1


class _Model(_Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$")]


class EchoModel(_Model):
    generator: Literal["echo"]
    options: EchoOptions = EchoOptions()


class LlamaCppModel(_Model):
    generator: Literal["llamacpp"]
    options: LlamaCppOptions = LlamaCppOptions()


Model = Annotated[EchoModel | LlamaCppModel, Field(discriminator="generator")]


def _not_yet(required: bool) -> bool:
    if required:
        raise ValueError("this version has no users yet; it must be false")
    return required


class Auth(_Section):
    """Users are not implemented yet."""

    required: Annotated[bool, AfterValidator(_not_yet)] = False
    jwt_secret: SecretStr = SecretStr("")


def _optional_address(value: object) -> str:
    return "" if value == "" else _address(value)


class WorkerHttp(_Section):
    """`addr` empty: none."""

    addr: Annotated[str, BeforeValidator(_optional_address)] = ""


class Worker(_Section):
    """Where `cmd.worker` answers `/livez`, `/readyz` and `/metrics`."""

    http: WorkerHttp = WorkerHttp()


class Shutdown(_Section):
    """`timeout`: how long running responses may take to finish."""

    timeout: Duration = 30.0


class Log(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(_Section):
    """The whole configuration. The first model is the default one."""

    server: Server = Server()
    session: Session = Session()
    queue: Queue = Queue()
    models: Annotated[list[Model], Field(min_length=1)] = [
        LlamaCppModel(name="smollm2", generator="llamacpp"),
        EchoModel(name="echo", generator="echo"),
    ]
    worker: Worker = Worker()
    auth: Auth = Auth()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()

    @model_validator(mode="after")
    def _names_differ(self) -> "Settings":
        names = [model.name for model in self.models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two models have the same name: {', '.join(sorted(twice))}")
        return self

    @model_validator(mode="after")
    def _processes_share_a_queue(self) -> "Settings":
        if self.server.processes > 1 and self.queue.driver == "memory":
            raise PydanticCustomError(
                "processes",
                "each process would have a queue, and models, of its own; set queue.driver: redis",
                {"key": "server.processes"},
            )
        return self
