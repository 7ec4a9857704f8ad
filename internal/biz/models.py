"""The values that travel between the layers: messages, requests, responses. All immutable."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


class Status(StrEnum):
    """Where a response stands: queued → in_progress → one of the other four."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Truncation(StrEnum):
    """What happens to a prompt that does not fit: oldest turns dropped, or an error."""

    AUTO = "auto"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and from which address.

    `user` is the id of a user, or of a guest. `until` is when they have to identify anew, Unix seconds
    (None: never). `key_id`: the API key that they came with, `login_id`: the login that their token is of.
    """

    user: str
    address: str = ""
    is_guest: bool = True
    until: float | None = None
    key_id: str | None = None
    login_id: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What the client asked for, beside the messages. None means the model's default.

    `conversation_id` or `previous_response_id`, not both, say what the turn continues. `temperature` is 0 to
    2, `top_p` 0 to 1, `max_output_tokens` at least 1.
    """

    instructions: str | None = None
    previous_response_id: str | None = None
    conversation_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    truncation: Truncation = Truncation.DISABLED
    store: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker needs to generate one response: `messages` are the new turn, what was said before is in
    the history. `created_at` is Unix seconds."""

    response_id: str
    model: str
    user: str
    created_at: float
    messages: tuple[Message, ...]
    settings: Settings

    @property
    def continues(self) -> bool:
        """Whether something was said before."""
        return self.settings.previous_response_id is not None or self.settings.conversation_id is not None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one response. `cached` is the part of `input` that was not prefilled anew."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class ItemKind(StrEnum):
    MESSAGE = "message"
    REASONING = "reasoning"


@dataclass(frozen=True, slots=True)
class OutputItem:
    """One finished piece of a response's output: a message, or the reasoning before it."""

    kind: ItemKind
    text: str
    status: Status = Status.COMPLETED


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a response failed: a stable code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Response:
    """A response as it stood at one moment. Times are Unix seconds."""

    id: str
    model: str
    user: str
    created_at: float
    settings: Settings
    status: Status
    output: tuple[OutputItem, ...] = ()
    usage: Usage | None = None
    failure: Failure | None = None
    incomplete_reason: str | None = None
    completed_at: float | None = None
    attempt: int = 0
    """Which attempt says so."""
    first_token_at: float | None = None

    @classmethod
    def of(
        cls,
        request: Request,
        status: Status,
        *,
        output: tuple[OutputItem, ...] = (),
        usage: Usage | None = None,
        failure: Failure | None = None,
        incomplete_reason: str | None = None,
        completed_at: float | None = None,
        attempt: int = 0,
        first_token_at: float | None = None,
    ) -> "Response":
        """How the response to `request` stands."""
        return cls(
            request.response_id,
            request.model,
            request.user,
            request.created_at,
            request.settings,
            status,
            output,
            usage,
            failure,
            incomplete_reason,
            completed_at,
            attempt,
            first_token_at,
        )

    @property
    def text(self) -> str:
        """What the model said, without its reasoning."""
        return "".join(item.text for item in self.output if item.kind is ItemKind.MESSAGE)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A stored thread. `has_title`: a person or a model has named it; until then its first words are its
    title. Times are Unix seconds."""

    id: str
    user: str
    title: str
    has_title: bool
    created_at: float
    updated_at: float
    message_count: int


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of a conversation. `model` and `status` are those of the response that it belongs to, as its
    question or as its answer. `created_at` is Unix seconds."""

    id: str
    response_id: str
    role: Role
    content: str
    created_at: float
    model: str
    status: Status


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a model has to do: requests that wait, responses that run, and how long the oldest that waits
    has waited, in seconds. `dead`: requests that were given up and are kept to be looked at."""

    waiting: int = 0
    running: int = 0
    oldest_s: float = 0.0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that was given up, and why. `buried_at` is Unix seconds, `consumer` who tried last, `entry`
    the place where the queue keeps it."""

    entry: str
    response_id: str
    model: str
    buried_at: float
    code: str
    reason: str
    tries: int
    consumer: str


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that lives: `busy` of its `slots` run a response. `heartbeat_at` is Unix seconds."""

    name: str
    host: str
    model: str
    slots: int
    busy: int
    heartbeat_at: float
    version: str
