"""The values that travel between the layers: messages, requests, responses. All immutable."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from internal.biz.sampling import RARE_NAMES, RareSampling
from internal.biz.scores import TokenScore


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model wants a function to be called. `arguments` is JSON as the model wrote it: it may be wrong."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that belongs to a message: `text` is what stands in it. An image has none: it is looked up by
    its id, or is `url`, a `data:` URL. Nobody has looked yet what it is where `media_type` is empty, or says
    no more than that it has to be an image."""

    name: str
    media_type: str
    file_id: str | None = None
    text: str | None = None
    url: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether an engine needs eyes for it."""
        return self.text is None and self.media_type.startswith("image/")


@dataclass(frozen=True, slots=True)
class Message:
    """`calls`: what an assistant wants to be called; `call_id`: which call a tool's message answers."""

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    attachments: tuple[Attachment, ...] = ()

    @property
    def chars(self) -> int:
        """How much a model has to read, in characters. Images count nothing."""
        size = len(self.content)
        for call in self.calls:
            size += len(call.name) + len(call.arguments)
        for attachment in self.attachments:
            size += len(attachment.text or "")
        return size


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


class Feature(StrEnum):
    """What not every engine can do. The values are the names of the parameters that ask for it."""

    STOP = "stop"
    SEED = "seed"
    TOP_K = "top_k"
    MIN_P = "min_p"
    FREQUENCY_PENALTY = "frequency_penalty"
    PRESENCE_PENALTY = "presence_penalty"
    REPETITION_PENALTY = "repetition_penalty"
    TOP_A = "top_a"
    TFS = "tfs"
    TYPICAL_P = "typical_p"
    SKEW = "skew"
    MIN_TEMP = "min_temp"
    MAX_TEMP = "max_temp"
    TEMP_EXPONENT = "temp_exponent"
    SMOOTHING_FACTOR = "smoothing_factor"
    TEMPERATURE_LAST = "temperature_last"
    MIROSTAT_MODE = "mirostat_mode"
    MIROSTAT_TAU = "mirostat_tau"
    MIROSTAT_ETA = "mirostat_eta"
    REPETITION_RANGE = "repetition_range"
    REPETITION_DECAY = "repetition_decay"
    DRY_MULTIPLIER = "dry_multiplier"
    DRY_BASE = "dry_base"
    DRY_ALLOWED_LENGTH = "dry_allowed_length"
    DRY_RANGE = "dry_range"
    DRY_SEQUENCE_BREAKERS = "dry_sequence_breakers"
    XTC_PROBABILITY = "xtc_probability"
    XTC_THRESHOLD = "xtc_threshold"
    LOGIT_BIAS = "logit_bias"
    BANNED_STRINGS = "banned_strings"
    MIN_TOKENS = "min_tokens"
    REASONING_EFFORT = "reasoning_effort"
    OUTPUT_FORMAT = "response_format"
    PATTERN = "pattern"
    LOGPROBS = "logprobs"
    TOOLS = "tools"
    IMAGES = "images"


SAMPLING_FEATURES = frozenset(
    (
        Feature.SEED,
        Feature.TOP_K,
        Feature.MIN_P,
        Feature.FREQUENCY_PENALTY,
        Feature.PRESENCE_PENALTY,
        Feature.REPETITION_PENALTY,
        *map(Feature, RARE_NAMES),
    )
)
"""Everything that says how tokens are chosen."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. None: the model's default.

    `temperature` is 0 to 2, `top_p` and `min_p` 0 to 1, `top_k` at least 0 (0: all), the penalties for
    frequency and presence -2 to 2, that for repetition over 0 to 2 (1: none), `seed` any 64-bit number.
    `rare` is there where one of the rarer ways is asked for.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    rare: RareSampling | None = None


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The answer is to be JSON: of this JSON Schema, or (None) any object. Or it is to be what `pattern`, a
    regular expression, is of: all of it, with or without `^` and `$`."""

    schema: Mapping[str, Any] | None = None
    name: str = ""
    strict: bool = True
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may want to be called; `parameters` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Tooling:
    """`choice`: "auto", "none", "required" (some tool), or `function` names the one to be called."""

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    function: str | None = None
    parallel: bool = True

    @property
    def offered(self) -> tuple[Tool, ...]:
        """Those that the model may choose from."""
        if self.choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.function in (None, tool.name))

    @property
    def is_forced(self) -> bool:
        """Whether the answer has to be a call."""
        return bool(self.tools) and (self.choice == "required" or self.function is not None)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the client asked for, beside the messages. None means the model's default.

    `conversation_id` or `previous_response_id`, not both, say what the turn continues. `replaces` names a
    response of the conversation: the turn continues what that one did, and stands beside it.
    `max_output_tokens` is at least 1. The answer ends before the first of `stop`. `logprobs`: its tokens are
    told with how likely they were, and with so many of the likeliest ones in their places, 0 to 20.
    `background`: nobody has to wait for it.
    """

    instructions: str | None = None
    previous_response_id: str | None = None
    conversation_id: str | None = None
    replaces: str | None = None
    max_output_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    reasoning_effort: str | None = None
    output_format: OutputFormat | None = None
    logprobs: int | None = None
    tooling: Tooling = Tooling()
    truncation: Truncation = Truncation.DISABLED
    store: bool = True
    background: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def features(self) -> frozenset[Feature]:
        """What an engine must be able to do for it."""
        sampling, output = self.sampling, self.output_format
        rare = () if sampling.rare is None else map(Feature, sampling.rare.asked)
        wanted = {
            Feature.STOP: self.stop,
            Feature.SEED: sampling.seed is not None,
            Feature.TOP_K: sampling.top_k is not None,
            Feature.MIN_P: sampling.min_p is not None,
            Feature.FREQUENCY_PENALTY: sampling.frequency_penalty,
            Feature.PRESENCE_PENALTY: sampling.presence_penalty,
            Feature.REPETITION_PENALTY: sampling.repetition_penalty not in (None, 1.0),
            Feature.REASONING_EFFORT: self.reasoning_effort is not None,
            Feature.OUTPUT_FORMAT: output is not None and output.pattern is None,
            Feature.PATTERN: output is not None and output.pattern is not None,
            Feature.LOGPROBS: self.logprobs is not None,
            Feature.TOOLS: self.tooling.tools and self.tooling.choice != "none",
        }
        return frozenset((*(feature for feature, is_wanted in wanted.items() if is_wanted), *rare))


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of a response in its batch; the first is 0."""

    batch_id: str
    position: int


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker needs to generate one response: `messages` are the new turn, what was said before is in
    the history. `created_at` is Unix seconds. `batch`: which answer it is of a turn that asks several models
    at once."""

    response_id: str
    model: str
    user: str
    created_at: float
    messages: tuple[Message, ...]
    settings: Settings
    batch: Seat | None = None

    @property
    def continues(self) -> bool:
        """Whether something was said before."""
        return self.settings.previous_response_id is not None or self.settings.conversation_id is not None

    @property
    def prompt(self) -> str:
        """What the user said last in this turn; nothing, where it has nothing of a user's."""
        return next((it.content for it in reversed(self.messages) if it.role is Role.USER), "")


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
    FUNCTION_CALL = "function_call"


@dataclass(frozen=True, slots=True)
class OutputItem:
    """One finished piece of a response's output: a message, the reasoning before it, or a call (which has no
    text). `scores` are those of a message, where they were asked for, and as long as its log is there."""

    kind: ItemKind
    text: str
    status: Status = Status.COMPLETED
    call: ToolCall | None = None
    scores: tuple[TokenScore, ...] = ()


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
    batch: Seat | None = None

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
            request.batch,
        )

    @property
    def text(self) -> str:
        """What the model said, without its reasoning."""
        return "".join(item.text for item in self.output if item.kind is ItemKind.MESSAGE)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """What the model wants to be called."""
        return tuple(item.call for item in self.output if item.call is not None)

    @property
    def answer(self) -> Message | None:
        """What it adds to the dialogue: nothing when it failed, or nothing was said."""
        if self.status is Status.FAILED or not (self.text or self.calls):
            return None
        return Message(Role.ASSISTANT, self.text, self.calls)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A stored thread. `has_title`: a person or a model has named it; until then its first words are its
    title. Times are Unix seconds. `metadata` is what a client has put on it."""

    id: str
    user: str
    title: str
    has_title: bool
    created_at: float
    updated_at: float
    message_count: int
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of a conversation. `model` and `status` are those of the response that it belongs to, as its
    question or as its answer. `created_at` is Unix seconds. The question to several models is there once,
    before the first one's answer; `batch_id` tells what belongs together."""

    id: str
    response_id: str
    role: Role
    content: str
    created_at: float
    model: str
    status: Status
    attachments: tuple[Attachment, ...] = ()
    batch_id: str | None = None


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


class ModelState(StrEnum):
    """Where a worker's model stands: unloaded → loading → loaded → unloading, and round again."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


class Order(StrEnum):
    """What an operator wants of a model."""

    LOAD = "load"
    UNLOAD = "unload"

    @property
    def goal(self) -> ModelState:
        """Where the model stands when it is done."""
        return ModelState.LOADED if self is Order.LOAD else ModelState.UNLOADED


@dataclass(frozen=True, slots=True)
class Condition:
    """How a worker's model is. `progress` says how much of it is loaded, 0 to 1. `orders` are the ids of the
    last ones that were carried out, or failed, and `failure` is why the last load did."""

    state: ModelState = ModelState.LOADED
    progress: float = 1.0
    orders: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that lives: `busy` of its `slots` run a response; one that takes nothing has none.
    `heartbeat_at` is Unix seconds."""

    name: str
    host: str
    model: str
    slots: int
    busy: int
    heartbeat_at: float
    version: str
    condition: Condition = Condition()

    @property
    def takes_requests(self) -> bool:
        """Whether a request may wait for it."""
        return self.slots > 0


def condition_of(workers: Iterable[WorkerInfo]) -> Condition:
    """How a model is that these workers have: as the one whose is nearest to being of use."""
    conditions = [worker.condition for worker in workers]
    nearest = (ModelState.LOADED, ModelState.LOADING, ModelState.UNLOADING, ModelState.UNLOADED)
    return min(
        conditions,
        key=lambda it: (nearest.index(it.state), -it.progress),
        default=Condition(ModelState.UNLOADED, 0.0),
    )
