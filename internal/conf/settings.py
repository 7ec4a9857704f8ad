"""Every setting, its default and what is allowed. Durations are seconds once they are read."""

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Secret,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from internal.conf.exllamav2 import ExLlamaV2Options
from internal.conf.upstream import OpenAIOptions, OwnOptions
from internal.conf.values import MASK, Count, Duration, OptionalFile, Positive, has_port


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
        return "".join((scheme, mark, login and MASK, at, place, question, query and MASK))


def _redis_url(value: SecretUrl) -> SecretUrl:
    if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("write redis://[user:password@]host:port/number, or rediss://… or unix://…")
    if "@" in urlsplit(value.get_secret_value()).path:
        # What stands before it would be taken for the host, and be shown when that cannot be reached.
        raise ValueError("in a password, write / ? # @ % as %2F %3F %23 %40 %25")
    return value


_DRIVERS = {
    "sqlite+aiosqlite": "sqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "mysql": "mysql+aiomysql",
}
"""What else may stand before the ://, of SQLite since earlier versions."""
_STORAGES = ("sqlite", "postgresql+asyncpg", "mysql+aiomysql", "mysql+asyncmy")


def _storage_url(value: SecretUrl) -> SecretUrl:
    url = value.get_secret_value()
    if not url:
        return value
    scheme, mark, rest = url.partition("://")
    scheme = _DRIVERS.get(scheme, scheme)
    if not mark or scheme not in _STORAGES:
        raise ValueError(
            "write sqlite:///path or postgresql+asyncpg://user:password@host:port/database "
            "(mysql+aiomysql:// and mysql+asyncmy:// are untested), or nothing to store nothing"
        )
    if scheme == "sqlite":
        path = rest.partition("?")[0].removeprefix("/")
        if not rest.startswith("/") or not path or ":memory:" in rest or "mode=memory" in rest:
            raise ValueError(
                "write sqlite:///path (four / for a path from the root): a database in memory "
                "would be another one for each connection; to store nothing, leave it empty"
            )
    elif not _is_server_url(url):
        raise ValueError(
            "write ://user:password@host:port/database; in a password, / ? # @ % are %2F %3F %23 %40 %25"
        )
    if scheme == "postgresql+asyncpg":
        # asyncpg's own word for it.
        rest = re.sub(r"([?&])sslmode=", r"\1ssl=", rest)
    return SecretUrl(f"{scheme}://{rest}")


def _is_server_url(url: str) -> bool:
    parts = urlsplit(url)
    return has_port(url) and bool(parts.path.strip("/")) and "@" not in parts.path


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Http(_Section):
    """`timeout` bounds one plain HTTP request; port 0 takes a free one."""

    addr: Annotated[str, BeforeValidator(_address)] = "0.0.0.0:8080"
    timeout: Duration = 5.0


def _network(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an address or a network; write 10.0.0.1 or 10.0.0.0/8")
    try:
        ip_network(value)
    except ValueError:
        try:
            inside = ip_network(value, strict=False)
        except ValueError:
            raise ValueError(
                f"{value!r} is not an address or a network; write 10.0.0.1 or 10.0.0.0/8"
            ) from None
        address, _, _ = value.partition("/")
        raise ValueError(
            f"{value!r} is an address in a network; write {ip_address(address)} or {inside}"
        ) from None
    return value


Network = Annotated[str, BeforeValidator(_network)]


class Server(_Section):
    """`processes` share the address. `allowed_origins` empty: pages of the same host only.
    `trusted_proxies` are the addresses and networks of proxies whose X-Forwarded-For counts."""

    http: Http = Http()
    processes: Positive = 1
    allowed_origins: list[str] = []
    trusted_proxies: list[Network] = []


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


class Storage(_Section):
    """Where conversations and users are kept; an empty `url`: nowhere. Of each user the newest
    `keep_conversations` stay (0: all), a response in no conversation can be continued for `keep_responses`,
    and a guest's conversation stays for `keep_guests` after its last message (each 0: for ever). `titles`: a
    model names conversations."""

    url: Annotated[SecretUrl, AfterValidator(_storage_url)] = SecretUrl("sqlite:///data/sluice.db")
    keep_conversations: Count = 500
    keep_responses: Duration = 30 * 86400.0
    keep_guests: Duration = 30 * 86400.0
    titles: bool = True


FileType = Literal["text/plain", "image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"]


class Files(_Section):
    """What clients upload, where there is a storage. All servers and workers share the `folder`. A file has
    at most `max_bytes`, those of a user together `max_bytes_per_user`, and the text files of one turn
    `max_text_chars`; none is taken while the disk has less than `min_free_bytes`. It stays for `keep` (0: for
    ever). `types`: the media types that are taken, as the bytes tell them."""

    folder: Annotated[str, Field(min_length=1)] = "data/files"
    max_bytes: Positive = 20 << 20
    max_bytes_per_user: Count = 1 << 30
    max_per_user: Count = 1000
    max_text_chars: Positive = 1 << 19
    min_free_bytes: Count = 1 << 30
    types: Annotated[list[FileType], Field(min_length=1)] = [
        "text/plain",
        "image/png",
        "image/jpeg",
        "image/gif",
        "image/webp",
    ]
    keep: Duration = 30 * 86400.0


class EchoOptions(_Section):
    """`thinking`: chunks of reasoning before the `chunks` of an answer."""

    chunks: Positive = 5
    thinking: Count = 0
    interval: Duration = 0.4
    slots: Positive = 100_000


class LlamaCppOptions(_Section):
    """`path` empty: the bundled SmolLM2. `template` empty: the model's own chat template. `context` tokens
    in each of `slots`; `threads` 0: all cores but one. A model that nobody has asked for `idle_unload` is
    unloaded until somebody does (0: never)."""

    path: OptionalFile = None
    template: OptionalFile = None
    slots: Positive = 8
    context: Annotated[int, Field(ge=256)] = 2048
    threads: Count = 0
    max_output_tokens: Positive = 512
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.2
    top_p: Annotated[float, Field(ge=0, le=1)] = 0.9
    repeat_penalty: Annotated[float, Field(ge=0, le=2)] = 1.1
    idle_unload: Duration = 0.0


class _Model(_Section):
    """`may_be_lost`: its engine may come to a point from which only another process helps. Then a supervisor
    starts one."""

    may_be_lost: ClassVar[bool] = False

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$")]

    @property
    def idle_unload_s(self) -> float:
        """After how long a model is unloaded that nobody asks anything; 0: never."""
        return 0.0


class EchoModel(_Model):
    generator: Literal["echo"]
    options: EchoOptions = EchoOptions()


class LlamaCppModel(_Model):
    generator: Literal["llamacpp"]
    options: LlamaCppOptions = LlamaCppOptions()

    @property
    def idle_unload_s(self) -> float:
        return self.options.idle_unload


class ExLlamaV2Model(_Model):
    may_be_lost: ClassVar[bool] = True

    generator: Literal["exllamav2"]
    options: ExLlamaV2Options

    @property
    def idle_unload_s(self) -> float:
        return self.options.idle_unload


class OpenAIModel(_Model):
    generator: Literal["openai"]
    options: OpenAIOptions


class OwnModel(_Model):
    generator: Literal["own"]
    options: OwnOptions = OwnOptions()


Model = Annotated[
    EchoModel | LlamaCppModel | ExLlamaV2Model | OpenAIModel | OwnModel, Field(discriminator="generator")
]


MIN_SECRET_BYTES = 32
_HOW_TO_MAKE_ONE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"


def _long_enough(secret: SecretStr) -> SecretStr:
    if 0 < len(secret.get_secret_value().encode(errors="surrogateescape")) < MIN_SECRET_BYTES:
        raise ValueError(f"a secret has at least {MIN_SECRET_BYTES} bytes; {_HOW_TO_MAKE_ONE}")
    return secret


Lifetime = Annotated[Duration, Field(ge=1)]


class Auth(_Section):
    """`required`: only users may ask for anything. `registration`: anybody may become one.

    `operator_key`: who sends it may load and unload models; empty: nobody may.

    `jwt_secret` signs tokens and encrypts what users entrust to the server; empty: what stands in
    `secret_file`, which the first start makes. Servers that share users share it too.
    """

    required: bool = False
    registration: bool = True
    jwt_secret: Annotated[SecretStr, AfterValidator(_long_enough)] = SecretStr("")
    secret_file: Annotated[str, Field(min_length=1)] = "data/secret.key"
    operator_key: Annotated[SecretStr, AfterValidator(_long_enough)] = SecretStr("")
    access_ttl: Lifetime = 3600.0
    refresh_ttl: Lifetime = 72 * 3600.0

    @model_validator(mode="after")
    def _holds_together(self) -> "Auth":
        if self.required and not self.jwt_secret.get_secret_value():
            raise PydanticCustomError(
                "secret",
                f"it must be set where auth.required is true; {_HOW_TO_MAKE_ONE}",
                {"key": "auth.jwt_secret"},
            )
        if self.access_ttl > self.refresh_ttl:
            raise ValueError("access_ttl must not be longer than refresh_ttl")
        return self


def _optional_address(value: object) -> str:
    return "" if value == "" else _address(value)


class WorkerHttp(_Section):
    """`addr` empty: none."""

    addr: Annotated[str, BeforeValidator(_optional_address)] = ""


class Worker(_Section):
    """Where `cmd.worker` answers `/livez`, `/readyz` and `/metrics`."""

    http: WorkerHttp = WorkerHttp()


class UserLimits(_Section):
    """`requests` and generated `tokens` a minute, and responses `in_flight`: waiting or running."""

    requests: Count = 0
    tokens: Count = 0
    in_flight: Count = 0


class AddressLimits(_Section):
    """`requests` and generated `tokens` a minute, of all who come from one address (of IPv6: one /64)."""

    requests: Count = 0
    tokens: Count = 0


class Limits(_Section):
    """0 means no limit; up to a minute's worth may come at once. `login_attempts` a minute, from an
    address (for a name ten times as many, from all of them), cannot be switched off."""

    user: UserLimits = UserLimits()
    address: AddressLimits = AddressLimits()
    login_attempts: Positive = 10


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
    storage: Storage = Storage()
    files: Files = Files()
    models: Annotated[list[Model], Field(min_length=1)] = [
        LlamaCppModel(name="smollm2", generator="llamacpp"),
        EchoModel(name="echo", generator="echo"),
    ]
    worker: Worker = Worker()
    auth: Auth = Auth()
    limits: Limits = Limits()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()

    @model_validator(mode="after")
    def _names_differ(self) -> "Settings":
        names = [model.name for model in self.models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two models have the same name: {', '.join(sorted(twice))}")
        return self

    @model_validator(mode="after")
    def _shared_models_agree(self) -> "Settings":
        loaded: dict[Path, ExLlamaV2Model] = {}
        for model in self.models:
            if isinstance(model, ExLlamaV2Model):
                first = loaded.setdefault(model.options.path, model)
                if first.options.loading != model.options.loading:
                    raise ValueError(
                        f"{first.name} and {model.name} share {model.options.path}, which is loaded once: "
                        "only lora, template, stop and what concerns sampling may differ"
                    )
        return self

    @model_validator(mode="after")
    def _own_upstreams_are_stored(self) -> "Settings":
        own = [model.name for model in self.models if isinstance(model, OwnModel)]
        if len(own) > 1:
            raise ValueError(f"users have one upstream of their own, and one model for it: {', '.join(own)}")
        if own and not self.storage.url.get_secret_value():
            raise PydanticCustomError(
                "own",
                f"it must be set where there is the model {own[0]} (generator: own): what users set as their "
                "upstream lives in a database",
                {"key": "storage.url"},
            )
        return self

    @model_validator(mode="after")
    def _users_are_stored(self) -> "Settings":
        if self.auth.required and not self.storage.url.get_secret_value():
            raise PydanticCustomError(
                "users",
                "it must be set where auth.required is true: users live in a database",
                {"key": "storage.url"},
            )
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

    @model_validator(mode="after")
    def _processes_share_a_storage(self) -> "Settings":
        if self.queue.driver == "redis" and not self.storage.url.get_secret_value():
            raise PydanticCustomError(
                "storage",
                "servers and workers have to share what was said; set storage.url",
                {"key": "storage.url"},
            )
        return self
