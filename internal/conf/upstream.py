"""Settings of models that are elsewhere."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, Secret, model_validator

from internal.conf.values import MASK, Count, Duration, Positive, has_port


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port(value):
        raise ValueError("write http://host:port/v1, or https://…: what stands before /chat/completions")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("a key belongs into api_key, and nothing stands behind the path")
    return value.rstrip("/").removesuffix("/chat/completions")


_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class ApiKey(Secret[str]):
    """A key, or `${NAME}`: what stands in that variable of the environment where the key is used."""

    def _display(self) -> str:
        value = self.get_secret_value()
        return value if not value or _ENVIRONMENT.fullmatch(value) else MASK

    def resolve(self, environ: Mapping[str, str]) -> str:
        """The key. Raises ValueError when the variable is not set, or holds what cannot be a key."""
        value = self.get_secret_value()
        if (match := _ENVIRONMENT.fullmatch(value)) is not None:
            value = environ.get(match[1], "").strip()
            if not value:
                raise ValueError(f"the environment variable {match[1]} is not set, and should hold a key")
            if not _is_line(value):
                raise ValueError(f"what the environment variable {match[1]} holds cannot be a key")
        return value


def _is_line(value: str) -> bool:
    """Whether it can be the value of a header."""
    return value.isascii() and value.isprintable()


def _api_key(value: ApiKey) -> ApiKey:
    key = value.get_secret_value()
    if not _is_line(key) or (key.startswith("$") and not _ENVIRONMENT.fullmatch(key)):
        raise ValueError("write ${NAME}, with the environment variable that holds the key, or the key itself")
    return value


BaseUrl = Annotated[str, AfterValidator(_base_url)]
Key = Annotated[ApiKey, AfterValidator(_api_key)]
Timeout = Annotated[Duration, Field(gt=0)]
Ability = Literal[
    "stop",
    "seed",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "top_a",
    "tfs",
    "typical_p",
    "skew",
    "min_temp",
    "max_temp",
    "temp_exponent",
    "smoothing_factor",
    "temperature_last",
    "mirostat_mode",
    "mirostat_tau",
    "mirostat_eta",
    "repetition_range",
    "repetition_decay",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_range",
    "dry_sequence_breakers",
    "xtc_probability",
    "xtc_threshold",
    "logit_bias",
    "banned_strings",
    "min_tokens",
    "reasoning_effort",
    "response_format",
    "tools",
]
"""What not every server takes, by the name of the parameter that asks for it."""
PATTERN = "pattern"
"""A regular expression for the answer: servers that take one have no common name for it."""
RARE_SAMPLING = "rare_sampling"
"""All that few servers take of how tokens are chosen."""


def _parameter(name: str) -> str:
    known = ("max_tokens", "temperature", "top_p", PATTERN, *get_args(Ability))
    if name not in known:
        raise ValueError(f"{name} is no parameter; these are: {', '.join(known)}")
    return name


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UpstreamNode(_Section):
    """One server: where it is, its key (where it differs), and how many requests it takes at a time."""

    base_url: BaseUrl
    api_key: Key | None = None
    slots: Positive | None = None


class Breaker(_Section):
    """A node that failed `failures` requests in a row gets none for `reset`; then one has to succeed."""

    failures: Positive = 5
    reset: Timeout = 30.0


class HealthCheck(_Section):
    """Several nodes are each asked for `path`; `interval` 0: never."""

    interval: Duration = 10.0
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/models"


class OwnOptions(_Section):
    """The upstreams that users have set for themselves: at most `slots` requests at a time, `user_slots` of
    each user. `addresses`: whether these may be any, or public only. The rest is as for OpenAIOptions."""

    addresses: Literal["public", "any"] = "public"
    slots: Positive = 64
    user_slots: Positive = 8
    connect_timeout: Timeout = 10.0
    first_token_timeout: Timeout = 300.0
    token_timeout: Timeout = 120.0
    timeout: Timeout = 900.0
    retries: Count = 2
    breaker: Breaker = Breaker()


class OpenAIOptions(_Section):
    """A server, or several `nodes`, that speak OpenAI's Chat Completions.

    `model` is its name there, if that differs. `context` in tokens, 0: unknown. `images`: it takes them;
    `lacks`: what it does not take. Silence may last `first_token_timeout` before the first token and
    `token_timeout` between two. `extra_body` are fields of every request (null: leave this one out), `rename`
    says what a parameter is called there (a `pattern` is taken where that is said). `continuation`: how it
    goes on with an answer whose worker died.
    An answer that begins with one of `refusals` has failed."""

    base_url: BaseUrl | None = None
    nodes: list[UpstreamNode] = []
    api_key: Key = ApiKey("")
    slots: Positive = 8
    model: str = ""
    context: Count = 0
    images: bool = False
    lacks: list[Ability | Literal["rare_sampling"]] = []
    connect_timeout: Timeout = 10.0
    first_token_timeout: Timeout = 300.0
    token_timeout: Timeout = 120.0
    timeout: Timeout = 900.0
    retries: Count = 2
    breaker: Breaker = Breaker()
    health_check: HealthCheck = HealthCheck()
    headers: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")], Key] = {}
    extra_body: dict[str, JsonValue] = {}
    rename: dict[Annotated[str, AfterValidator(_parameter)], str] = {}
    continuation: Literal["none", "message", "prefix", "vllm"] = "none"
    refusals: list[Annotated[str, Field(min_length=2)]] = []

    @model_validator(mode="after")
    def _is_somewhere(self) -> "OpenAIOptions":
        if (self.base_url is None) == (not self.nodes):
            raise ValueError("set base_url, or nodes where there are several servers")
        nodes = [(node.base_url, node.api_key) for node in self.nodes]
        if twice := {url for url, key in nodes if nodes.count((url, key)) > 1}:
            raise ValueError(f"two nodes are the same: {', '.join(sorted(twice))}")
        if mine := sorted({"model", "messages", "stream"} & self.extra_body.keys()):
            raise ValueError(f"extra_body must not have {', '.join(mine)}")
        return self
