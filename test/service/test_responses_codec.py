"""The Responses dialect, held against the types of the `openai` package."""

import asyncio
import json
from dataclasses import replace
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponsesServerEvent
from pydantic import BaseModel

from internal.biz.chat import Ask
from internal.biz.commands import Cancel, Command, Create, Resume
from internal.biz.errors import InvalidRequest, SluiceError, TooManyRequests, UnsupportedParameter
from internal.biz.events import (
    Event,
    QueueUpdate,
    ReasoningDelta,
    ResponseQueued,
    ScoredDelta,
    TextDelta,
)
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.log import Cursor, ResponseLog
from internal.biz.models import (
    Message,
    OutputFormat,
    Request,
    Response,
    Role,
    Sampling,
    Seat,
    Settings,
    Status,
    Tool,
    ToolCall,
    Tooling,
    Truncation,
    Usage,
)
from internal.biz.sampling import RareSampling
from internal.biz.scores import TokenScore
from internal.service.codec.responses import ResponsesCodec
from internal.service.codec.responses_objects import response_object

CODEC = ResponsesCodec()


def decode(**event: object) -> Command:
    return CODEC.decode(json.dumps(event).encode())


def create(**fields: object) -> Create:
    command = decode(**{"type": "response.create", "input": "hello", **fields})
    assert isinstance(command, Create)
    return command


def refused(data: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as error:
        CODEC.decode(data)
    return error.value


# ── client events ────────────────────────────────────────────────────────────────────────────────


def test_the_smallest_request() -> None:
    assert create() == Create(Ask((Message(Role.USER, "hello"),)))


def test_every_field_of_a_request() -> None:
    command = create(
        model="smollm2",
        instructions="be brief",
        previous_response_id="resp_1",
        max_output_tokens=10,
        temperature=0.5,
        top_p=1,
        truncation="auto",
        store=False,
        metadata={"a": "b"},
        stream_id="lane",
        stream=True,
        include=["queue"],
    )
    settings = Settings(
        instructions="be brief",
        previous_response_id="resp_1",
        max_output_tokens=10,
        sampling=Sampling(temperature=0.5, top_p=1.0),
        truncation=Truncation.AUTO,
        store=False,
        metadata={"a": "b"},
    )
    ask = Ask((Message(Role.USER, "hello"),), "smollm2", settings)
    assert command == Create(ask, "lane", queue_updates=True)


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1", "object": "conversation"}])
def test_a_turn_may_continue_a_conversation(conversation: object) -> None:
    command = create(conversation=conversation)
    assert isinstance(command, Create)
    assert command.ask.settings.conversation_id == "conv_1"


def test_a_turn_may_replace_another_one() -> None:
    command = create(conversation="conv_1", replaces="resp_1")
    assert command.ask.settings == Settings(conversation_id="conv_1", replaces="resp_1")


def test_a_turn_continues_one_thing() -> None:
    with pytest.raises(InvalidRequest) as error:
        create(conversation="conv_1", previous_response_id="resp_1")
    assert error.value.param == "conversation"


@pytest.mark.parametrize("model", ["a,b", " a , b ", ["a", "b"]])
def test_several_models_are_asked_at_once(model: object) -> None:
    assert create(model=model, stream_id="lane") == Create(
        Ask((Message(Role.USER, "hello"),)), "lane", models=("a", "b")
    )


@pytest.mark.parametrize("model", ["a", ["a"]])
def test_one_model_is_no_batch(model: object) -> None:
    assert create(model=model) == Create(Ask((Message(Role.USER, "hello"),), "a"))


@pytest.mark.parametrize("model", ["a,", ",", "a,,b", [], ["a", ""], [" "], ["a"] * 65, [1], {"a": 1}])
def test_a_list_of_models_that_is_none_is_refused_by_name(model: object) -> None:
    with pytest.raises(InvalidRequest) as error:
        create(model=model)
    assert (error.value.param or "").startswith("model")


def test_a_response_of_a_batch_says_so() -> None:
    request = Request("resp_1", "b", "ada", 0.0, (), Settings(), Seat("batch_1", 1))
    fields = response_object(Response.of(request, Status.QUEUED))
    assert fields["batch"] == {"id": "batch_1", "position": 1}
    assert "batch" not in response_object(Response.of(replace(request, batch=None), Status.QUEUED))


NULLABLE = [
    "model",
    "instructions",
    "previous_response_id",
    "conversation",
    "replaces",
    "max_output_tokens",
    "temperature",
    "top_p",
    "truncation",
    "store",
    "metadata",
    "stream_id",
    "stream",
    "include",
]


@pytest.mark.parametrize("field", NULLABLE)
def test_null_is_as_good_as_left_out(field: str) -> None:
    assert create(**{field: None}) == create()


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"role": "user", "content": "a"}], [(Role.USER, "a")]),
        ([{"type": "message", "role": "developer", "content": "a"}], [(Role.SYSTEM, "a")]),
        ([{"role": "system", "content": "a"}], [(Role.SYSTEM, "a")]),
        ([{"role": "assistant", "content": "a"}], [(Role.ASSISTANT, "a")]),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}],
                }
            ],
            [(Role.USER, "ab")],
        ),
        (
            # As the server sent them, with whatever else they had.
            [
                {"type": "reasoning", "id": "rs_1", "summary": [], "content": []},
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
                },
                {"role": "user", "content": "b"},
            ],
            [(Role.ASSISTANT, "a"), (Role.USER, "b")],
        ),
        ([], []),
        ("", []),
    ],
)
def test_input_in_every_form(items: object, messages: list[tuple[Role, str]]) -> None:
    assert create(input=items).ask.turn == tuple(Message(role, content) for role, content in messages)


def test_a_cancel() -> None:
    assert decode(type="response.cancel", response_id="resp_1") == Cancel("resp_1")


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({}, Resume("resp_1")),
        ({"starting_after": None}, Resume("resp_1")),
        ({"starting_after": 0}, Resume("resp_1", 0)),
        ({"starting_after": 17, "stream_id": "a"}, Resume("resp_1", 17, "a")),
        ({"include": ["queue"]}, Resume("resp_1", queue_updates=True)),
    ],
)
def test_a_resume(fields: dict[str, object], command: Resume) -> None:
    assert decode(type="response.resume", response_id="resp_1", **fields) == command


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("input", None, "input"),
        ("input", 5, "input"),
        ("input", {"role": "user"}, "input"),
        ("input", ["text"], "input[0]"),
        ("input", [{"role": "boss", "content": "x"}], "input[0].role"),
        ("input", [{"role": "user", "content": "x"}, {"role": "boss", "content": "x"}], "input[1].role"),
        ("input", [{"role": "user"}], "input[0].content"),
        ("input", [{"role": "user", "content": 5}], "input[0].content"),
        ("input", [{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ("model", 5, "model"),
        ("instructions", ["x"], "instructions"),
        ("previous_response_id", "", "previous_response_id"),
        ("previous_response_id", "x" * 65, "previous_response_id"),
        ("conversation", 5, "conversation"),
        ("conversation", "", "conversation.id"),
        ("conversation", {}, "conversation.id"),
        ("conversation", {"id": 5}, "conversation.id"),
        ("max_output_tokens", 0, "max_output_tokens"),
        ("max_output_tokens", -1, "max_output_tokens"),
        ("max_output_tokens", 1.5, "max_output_tokens"),
        ("max_output_tokens", "10", "max_output_tokens"),
        ("max_output_tokens", True, "max_output_tokens"),
        ("temperature", 2.1, "temperature"),
        ("temperature", -0.1, "temperature"),
        ("temperature", "hot", "temperature"),
        ("top_p", 1.1, "top_p"),
        ("truncation", "middle", "truncation"),
        ("store", "no", "store"),
        ("store", 0, "store"),
        ("metadata", [], "metadata"),
        ("metadata", {"a": 1}, "metadata.a"),
        ("metadata", {"a": "x" * 513}, "metadata.a"),
        ("metadata", {str(n): "" for n in range(17)}, "metadata"),
        ("stream_id", "", "stream_id"),
        ("stream_id", "x" * 65, "stream_id"),
        ("stream_id", 5, "stream_id"),
        ("stream", False, "stream"),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: object, param: str) -> None:
    error = refused(json.dumps({"type": "response.create", "input": "x", field: value}).encode())
    assert error.param == param
    assert error.code == "invalid_value"
    assert error.message


def test_what_runs_in_the_background_has_to_be_stored() -> None:
    assert create(background=True).ask.settings.background
    assert create(background=True, model="a, b").ask.settings.background
    assert not create().ask.settings.background
    event = {"type": "response.create", "input": "x", "background": True, "store": False}
    assert refused(json.dumps(event).encode()).param == "background"


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("tools", [{"type": "web_search"}], "tools[0].type"),
        ("reasoning", {"summary": "auto"}, "reasoning.summary"),
        ("text", {"verbosity": "low"}, "text.verbosity"),
        ("text", {"format": {"type": "xml"}}, "text.format.type"),
        ("_private", 1, "_private"),
        ("str", 1, "str"),
        ("a[b]", 1, "a[b]"),
        ("include", ["reasoning.encrypted_content"], "include[0]"),
        ("include", ["queue", "nonsense"], "include[1]"),
        ("input", [{"type": "item_reference", "id": "msg_1"}], "input[0].type"),
        (
            "input",
            [{"role": "user", "content": [{"type": "input_audio", "data": "x"}]}],
            "input[0].content[0].type",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(field: str, value: object, param: str) -> None:
    error = refused(json.dumps({"type": "response.create", "input": "x", field: value}).encode())
    assert error.param == param
    assert isinstance(error, UnsupportedParameter)
    assert error.code == "unsupported_parameter"
    assert param in error.message


TOOL = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


SUM = {"type": "json_schema", "name": "sum"}


def test_tools_and_formats_are_understood() -> None:
    settings = create(
        tools=[TOOL, {"type": "function", "name": "sub", "parameters": None, "strict": False}],
        tool_choice={"type": "function", "name": "add"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "sum", "schema": {"type": "integer"}}},
        reasoning={"effort": "low"},
        stop="END",
        seed=-1,
        top_k=4,
        min_p=0.1,
        frequency_penalty=-2,
        presence_penalty=2,
        repetition_penalty=1.1,
    ).ask.settings
    tools = (Tool("add", "Adds.", {"type": "object"}, strict=True), Tool("sub"))
    assert settings.tooling == Tooling(tools, "auto", "add", parallel=False)
    assert settings.output_format == OutputFormat({"type": "integer"}, "sum")
    assert (settings.reasoning_effort, settings.stop) == ("low", ("END",))
    assert settings.sampling == Sampling(None, None, 4, 0.1, -2.0, 2.0, 1.1, -1)
    assert create(text={"format": {"type": "json_object"}}).ask.settings.output_format == OutputFormat()
    pattern = create(text={"format": {"type": "regex", "pattern": "[ab]+"}}).ask.settings.output_format
    assert pattern == OutputFormat(pattern="[ab]+")
    assert create(text={"format": {"type": "text"}}).ask.settings == Settings()


def test_rare_sampling_is_understood() -> None:
    settings = create(top_a=0.5, logit_bias={"5": 1}, banned_strings=["x"]).ask.settings
    assert settings.sampling.rare == RareSampling(top_a=0.5, logit_bias=((5, 1.0),), banned_strings=("x",))


def test_calls_and_their_results_are_messages() -> None:
    def call(name: str) -> dict[str, object]:
        return {"type": "function_call", "id": "fc_1", "call_id": name, "name": name, "arguments": "{}"}

    items = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Well,"},
        call("add"),
        {"type": "reasoning", "id": "rs_1", "summary": []},
        call("sub"),
        {"type": "function_call_output", "call_id": "add", "output": "3"},
        {"type": "function_call_output", "call_id": "sub", "output": [{"type": "input_text", "text": "1"}]},
        call("mul"),
    ]
    add, sub, mul = (ToolCall(name, name, "{}") for name in ("add", "sub", "mul"))
    assert create(input=items).ask.turn == (
        Message(Role.USER, "?"),
        Message(Role.ASSISTANT, "Well,", (add, sub)),
        Message(Role.TOOL, "3", call_id="add"),
        Message(Role.TOOL, "1", call_id="sub"),
        Message(Role.ASSISTANT, "", (mul,)),
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "name": "sub"}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{**TOOL, "parameters": nested(101)}]}, "tools[0].parameters"),
        ({"text": {"format": {**SUM, "schema": nested(500)}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"seed": 2**63}, "seed"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"text": {"format": {"type": "regex"}}}, "text.format.pattern"),
        ({"text": {"format": {"type": "regex", "pattern": ""}}}, "text.format.pattern"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, object], param: str) -> None:
    error = refused(json.dumps({"type": "response.create", "input": "x", **fields}).encode())
    assert (error.param, error.code) == (param, "invalid_value")


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ({"type": "response.create"}, "input"),
        ({"type": "response.cancel"}, "response_id"),
        ({"type": "response.cancel", "response_id": 5}, "response_id"),
        ({"type": "response.resume"}, "response_id"),
        ({"type": "response.resume", "response_id": "r", "starting_after": -1}, "starting_after"),
        ({"type": "response.resume", "response_id": "r", "starting_after": 1.5}, "starting_after"),
        ({"type": "response.resume", "response_id": "r", "starting_after": "1"}, "starting_after"),
        ({"type": "response.resume", "response_id": "r", "starting_after": True}, "starting_after"),
        ({"type": "response.resume", "response_id": "r", "starting_after": 2**64}, "starting_after"),
        ({"type": "response.resume", "response_id": "r", "starting_after": 10**30}, "starting_after"),
    ],
)
def test_a_missing_or_bad_field_is_named(event: dict[str, object], param: str) -> None:
    error = refused(json.dumps(event).encode())
    assert (error.param, error.code) == (param, "invalid_value")


@pytest.mark.parametrize(
    "name", ["response.nonsense", "session.update", "", None, 5, ["response.create"], {}]
)
def test_an_unknown_event_is_refused_and_the_known_ones_are_named(name: object) -> None:
    error = refused(json.dumps({"type": name}).encode())
    assert (error.param, error.code) == ("type", "unknown_event")
    assert "response.create" in error.message


def test_an_endless_type_is_not_echoed_whole() -> None:
    assert len(refused(json.dumps({"type": "x" * 100_000}).encode()).message) <= 500


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"{",
        b"[]",
        b"5",
        b"null",
        b'"text"',
        b"\xff",
        b"{}{}",
        b'{"type": "response.create", "input": "x", "temperature": NaN}',
        b'{"type": "response.create", "input": "x", "temperature": Infinity}',
        b'{"type": "response.create", "input": "\\ud800"}',
        b'{"type": "response.create", "input": "\xed\xa0\x80"}',
        b'{"type": "response.create", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
    ids=range(16),
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    error = refused(data)
    assert error.code == "invalid_json"
    assert len(error.message) < 1000
    assert CODEC.lane(data) is None


def test_deep_nesting_where_a_value_belongs_is_refused() -> None:
    deep: object = "x"
    for _ in range(500):
        deep = [deep]
    assert refused(json.dumps({"type": "response.create", "input": deep}).encode()).code == "invalid_value"


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_beyond_all_bounds_is_refused(number: str) -> None:
    refused(f'{{"type": "response.create", "input": "x", "temperature": {number}}}'.encode())


def test_a_surrogate_pair_is_one_character() -> None:
    command = CODEC.decode(b'{"type": "response.create", "input": "\\ud83e\\udd86"}')
    assert isinstance(command, Create)
    assert command.ask.turn[0].content == "🦆"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
fields = st.sampled_from([*NULLABLE, "input", "type", "response_id", "starting_after", "tools", "_x"])


@given(
    st.sampled_from(["response.create", "response.cancel", "response.resume"]),
    st.dictionaries(fields, json_values, max_size=4),
)
def test_whatever_a_client_sends_it_is_understood_or_refused(name: str, event: dict[str, Any]) -> None:
    data = json.dumps({"type": name, "input": "x", **event}).encode()
    complaint = None
    try:
        CODEC.decode(data)
    except InvalidRequest as error:
        complaint = error
    assert complaint is None or (complaint.message and complaint.param != "")
    lane = CODEC.lane(data)
    assert lane is None or lane == event["stream_id"]


@given(st.binary(max_size=60))
def test_whatever_bytes_a_client_sends_they_are_refused(data: bytes) -> None:
    try:
        CODEC.decode(data)
    except InvalidRequest:
        CODEC.lane(data)


@pytest.mark.parametrize(
    ("data", "lane"),
    [
        (b'{"stream_id": "a"}', "a"),
        (b'{"stream_id": 5}', None),
        (b"{}", None),
        (b"[]", None),
        (b"{", None),
        (json.dumps({"stream_id": "x" * 65}).encode(), None),
    ],
)
def test_the_lane_of_a_frame_that_could_not_be_carried_out(data: bytes, lane: str | None) -> None:
    assert CODEC.lane(data) == lane


# ── server events ────────────────────────────────────────────────────────────────────────────────


class Follower:
    def wake(self) -> None: ...

    def queue_update(self, cursor: Cursor, update: QueueUpdate) -> None: ...


SETTINGS = Settings(
    instructions="be brief",
    max_output_tokens=10,
    sampling=Sampling(temperature=0.5, top_p=0.9),
    truncation=Truncation.AUTO,
    metadata={"a": "b"},
    tooling=Tooling((Tool("add", "Adds.", {"type": "object"}),), function="add"),
    output_format=OutputFormat({"type": "object"}, "sum"),
    reasoning_effort="low",
)
REQUEST = Request("resp_1", "m", "ada", 1700000000.5, (Message(Role.USER, "hello"),), SETTINGS)


def run_of(request: Request, end: Finished, *said: TextDelta | ReasoningDelta | ToolCall) -> Cursor:
    """A follower of a whole response."""
    queued: Event = ResponseQueued(Response.of(request, Status.QUEUED), 2)
    run = Transcript(Delivery(request, 1, [queued], None))
    run.start()
    for delta in said:
        run.add(delta)
    run.finish(end)
    log = ResponseLog(request.response_id)
    log.append(0, 0, [queued])
    log.append(0, 1, run.events)
    return log.attach(-1, Follower())


def encode_all(cursor: Cursor) -> list[dict[str, Any]]:
    number = cursor.next_number
    payloads = CODEC.encode(cursor, number, cursor.take(10_000, 1 << 30))
    return [json.loads(payload) for payload in payloads]


# The union is Annotated; each member's `type` is a Literal of one name.
_MEMBERS: dict[str, type[BaseModel]] = {
    get_args(member.model_fields["type"].annotation)[0]: member
    for member in get_args(get_args(ResponsesServerEvent)[0])
}


def as_openai(event: dict[str, Any]) -> BaseModel:
    """The event, as strictly as the package's types can be validated."""
    details = event.get("response", {}).get("incomplete_details")
    if details == {"reason": "cancelled"}:  # ours: the API knows no cancelled stream
        event = {
            **event,
            "response": {**event["response"], "incomplete_details": {"reason": "max_output_tokens"}},
        }
    return _MEMBERS[event["type"]].model_validate_json(json.dumps(event), strict=True)


STOP = Finished(FinishReason.STOP, Usage(5, 1, 3, 2))
ENDS = [
    STOP,
    Finished(FinishReason.LENGTH, Usage(5, 0, 3)),
    Finished(FinishReason.CANCELLED),
    Finished(FinishReason.ERROR, error=SluiceError("it broke", code="server_error")),
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.reason.value)
@pytest.mark.parametrize("settings", [SETTINGS, Settings()], ids=["all settings", "no settings"])
def test_every_event_is_one_of_the_openai_package(end: Finished, settings: Settings) -> None:
    request = Request("resp_1", "m", "ada", 1700000000.5, (), settings)
    call = ToolCall("call_1", "add", '{"a": 1}')
    cursor = run_of(request, end, ReasoningDelta("hm"), TextDelta("so"), TextDelta(" be it 🦆"), call)
    for number, event in enumerate(encode_all(cursor)):
        parsed = as_openai(event)
        assert parsed.model_dump(include={"sequence_number"}) == {"sequence_number": number}


def test_the_events_of_an_answer_in_order() -> None:
    events = encode_all(run_of(REQUEST, STOP, ReasoningDelta("hm"), TextDelta("so")))
    assert [event["type"] for event in events] == [
        "response.queued",
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(16))
    assert events[0]["queue"] == {"position": 2}
    assert [event["output_index"] for event in events[3:15]] == [0] * 6 + [1] * 6
    assert {event["item_id"] for event in events if "item_id" in event and event["output_index"] == 0} == {
        "rs_1_0"
    }
    assert {event["item_id"] for event in events if "item_id" in event and event["output_index"] == 1} == {
        "msg_1_1"
    }
    assert events[9]["item"]["id"] == "msg_1_1"
    assert events[9]["item"]["status"] == "in_progress"
    assert events[5]["delta"] == "hm"
    assert events[11]["delta"] == events[12]["text"] == events[13]["part"]["text"] == "so"


SCORES = (TokenScore("só", -0.25, (("só", -0.25), ("\ufffd", -1.5))), TokenScore("!", -3.0))


def test_an_answer_says_how_likely_it_was() -> None:
    request = replace(REQUEST, settings=replace(SETTINGS, logprobs=2))
    said = (ReasoningDelta("hm"), ScoredDelta("só", SCORES[:1]), ScoredDelta("!", SCORES[1:]))
    cursor = run_of(request, STOP, *said)
    cursor.lane = "a"
    events = encode_all(cursor)
    assert {event.pop("stream_id") for event in events} == {"a"}
    for event in events:
        as_openai({name: value for name, value in event.items() if name != "queue"})
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    top = [{"token": "só", "logprob": -0.25}, {"token": "\ufffd", "logprob": -1.5}]
    told = [
        {"token": "só", "logprob": -0.25, "top_logprobs": top},
        {"token": "!", "logprob": -3.0, "top_logprobs": []},
    ]
    assert deltas == [told[:1], told[1:]]
    of_type = {event["type"]: event for event in events}
    assert of_type["response.output_text.done"]["logprobs"] == told
    part = of_type["response.content_part.done"]["part"]["logprobs"]
    assert [(score["token"], score["bytes"]) for score in part] == [("só", [115, 195, 179]), ("!", [33])]
    assert [score["bytes"] for score in part[0]["top_logprobs"]] == [[115, 195, 179], []]
    response = of_type["response.completed"]["response"]
    assert response["output"][1]["content"][0]["logprobs"] == part
    assert response["top_logprobs"] == 2


def test_no_event_repeats_too_many_scores() -> None:
    request = replace(REQUEST, settings=replace(SETTINGS, logprobs=20))
    likely = TokenScore("só", -0.12345678, tuple((f"token {n}", -1.23456789) for n in range(20)))
    for tokens, repeats in ((200, True), (2000, False)):
        cursor = run_of(request, STOP, *[ScoredDelta("só", (likely,))] * tokens)
        payloads = CODEC.encode(cursor, 0, cursor.log.events)
        assert max(map(len, payloads)) < 1_000_000
        deltas = [event for event in map(json.loads, payloads) if event["type"].endswith("text.delta")]
        assert sum(len(event["logprobs"]) for event in deltas) == tokens
        for event in map(json.loads, payloads[-4:]):
            part = event.get("part") or (event.get("item") or {}).get("content", [None])[0]
            part = part or (event["response"]["output"][0]["content"][0] if "response" in event else event)
            assert part["text"] == "só" * tokens
            assert len(part["logprobs"]) == (tokens if repeats else 0)


def test_scores_are_asked_for_by_include() -> None:
    include = ["message.output_text.logprobs", "queue"]
    assert create(include=include).ask.settings.logprobs == 0
    assert create(include=include).queue_updates
    assert create(include=include, top_logprobs=5).ask.settings.logprobs == 5
    assert create(top_logprobs=5).ask.settings.logprobs is None


def test_a_response_object_says_its_pattern() -> None:
    request = replace(REQUEST, settings=Settings(output_format=OutputFormat(pattern="a+")))
    response = encode_all(run_of(request, STOP, TextDelta("aa")))[-1]["response"]
    assert response["text"] == {"format": {"type": "regex", "pattern": "a+"}}


def test_a_response_object_says_all_that_was_asked_for() -> None:
    response = encode_all(run_of(REQUEST, STOP, TextDelta("so")))[-1]["response"]
    assert response["id"] == "resp_1"
    assert response["object"] == "response"
    assert response["created_at"] == 1700000000
    assert response["status"] == "completed"
    assert response["model"] == "m"
    assert response["instructions"] == "be brief"
    assert response["max_output_tokens"] == 10
    assert (response["temperature"], response["top_p"]) == (0.5, 0.9)
    assert response["truncation"] == "auto"
    assert response["metadata"] == {"a": "b"}
    assert response["store"] is True
    assert response["text"]["format"]["schema"] == {"type": "object"}
    assert response["output"][0]["content"][0]["text"] == "so"
    assert response["usage"]["input_tokens"] == 5
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 1
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
    assert response["usage"]["total_tokens"] == 8
    assert response["error"] is None
    assert response["incomplete_details"] is None
    assert isinstance(response["completed_at"], int)


@pytest.mark.parametrize(
    ("end", "kind", "details"),
    [
        (ENDS[1], "response.incomplete", {"reason": "max_output_tokens"}),
        (ENDS[2], "response.incomplete", {"reason": "cancelled"}),
        (ENDS[3], "response.failed", None),
    ],
)
def test_the_ends_of_a_response(end: Finished, kind: str, details: object) -> None:
    event = encode_all(run_of(REQUEST, end, TextDelta("half")))[-1]
    assert event["type"] == kind
    response = event["response"]
    assert response["status"] == kind.removeprefix("response.")
    assert response["incomplete_details"] == details
    assert response["completed_at"] is None
    assert response["output"][0]["status"] == "incomplete"
    if end.error is not None:
        assert response["error"] == {"code": "server_error", "message": "it broke"}


def test_the_user_is_nobody_elses_business() -> None:
    payloads = json.dumps(encode_all(run_of(REQUEST, STOP, TextDelta("so"))))
    assert '"ada"' not in payloads


def test_a_lane_is_on_every_event() -> None:
    cursor = run_of(REQUEST, STOP, TextDelta("so"))
    cursor.lane = "a"
    events = encode_all(cursor)
    assert {event["stream_id"] for event in events} == {"a"}
    for event in events:
        as_openai(event)


def test_an_event_behind_a_cursor_is_the_same_as_from_the_start() -> None:
    whole = encode_all(run_of(REQUEST, STOP, ReasoningDelta("hm"), TextDelta("so")))
    later = run_of(REQUEST, STOP, ReasoningDelta("hm"), TextDelta("so"))
    later.take(11, 1 << 20)
    rest = encode_all(later)
    for event in (*whole, *rest):
        event.get("response", {}).pop("completed_at", None)
    assert rest == whole[11:]


@given(st.text(max_size=20))
def test_any_text_survives(text: str) -> None:
    event = encode_all(run_of(REQUEST, STOP, TextDelta(text)))[5]
    assert event["delta"] == text


@pytest.mark.parametrize(
    ("update", "fields"),
    [
        (QueueUpdate(3), {"position": 3}),
        (QueueUpdate(0, loading=0.25), {"position": 0, "loading": 0.25}),
        (QueueUpdate(0, 64, 300), {"position": 0, "prefill": {"processed": 64, "total": 300}}),
    ],
)
@pytest.mark.parametrize("lane", [None, "a"])
def test_an_update_of_the_queue_has_no_number(
    update: QueueUpdate, fields: dict[str, object], lane: str | None
) -> None:
    cursor = ResponseLog("resp_1").attach(-1, Follower())
    cursor.lane = lane
    event = json.loads(CODEC.encode_update(cursor, update))
    expected = {"type": "response.queue", "response_id": "resp_1", **fields}
    assert event == (expected if lane is None else {**expected, "stream_id": lane})


@pytest.mark.parametrize("lane", [None, "a"])
def test_an_error_is_one_of_the_openai_package(lane: str | None) -> None:
    error = TooManyRequests("too many", code="too_many_in_flight", param="input")
    event = json.loads(CODEC.encode_error(error, lane))
    assert event["status"] == 429
    assert event["error"] == {
        "message": "too many",
        "type": "rate_limit_error",
        "param": "input",
        "code": "too_many_in_flight",
    }
    assert event.get("stream_id") == lane
    as_openai(event)


@pytest.mark.parametrize(
    "event",
    [
        {"input": [0] * 300_000},
        {"input": [{"role": "user", "content": [0] * 300_000}]},
        {"input": [{"role": "user", "content": "x"}] * 20_000},
        {"input": "x", "include": [0] * 300_000},
        {"input": "x", **{f"key {i}": 0 for i in range(50_000)}},
        {"input": "x", "metadata": {f"key {i}": "" for i in range(50_000)}},
        {"input": "x", "k" * 500_000: 0},
    ],
)
async def test_a_large_bad_event_is_refused_in_few_words_and_does_not_block_the_loop(
    event: dict[str, Any],
) -> None:
    data = orjson.dumps({"type": "response.create", **event})
    await asyncio.sleep(0)  # from here on it is the watched loop's callback
    with pytest.raises(InvalidRequest) as error:
        ResponsesCodec().decode(data)
    assert len(error.value.message) < 300
    assert len(error.value.param or "") <= 100
