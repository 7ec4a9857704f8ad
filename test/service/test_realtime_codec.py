"""The Realtime dialect, held against the types of the `openai` package."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from internal.biz.chat import Ask
from internal.biz.commands import Cancel, Command, Create, Reply, Resume
from internal.biz.errors import GenerationFailed, InvalidRequest, NotFound, SluiceError, UnsupportedParameter
from internal.biz.events import Event, ReasoningDelta, ResponseQueued, ScoredDelta, TextDelta
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.log import Cursor, ResponseLog
from internal.biz.models import (
    Feature,
    Message,
    OutputFormat,
    Request,
    Response,
    Role,
    Sampling,
    Settings,
    Status,
    Tool,
    ToolCall,
    Tooling,
    Truncation,
    Usage,
)
from internal.biz.sampling import RareSampling
from internal.service.codec import realtime_dialogue
from internal.service.codec.realtime import RealtimeCodec
from internal.service.codec.realtime_dialogue import MAX_CHARS
from internal.service.codec.realtime_items import PART_CHARS

JSON = dict[str, Any]
EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
USAGE = Usage(input_tokens=9, cached_tokens=4, output_tokens=2, reasoning_tokens=1)


class _Nobody:
    def wake(self) -> None:
        return

    def queue_update(self, cursor: Cursor, update: object) -> None:
        return


class Answering:
    """A response that the codec asked for, and what the client is told of it."""

    def __init__(self, codec: RealtimeCodec, create: Create) -> None:
        self._codec = codec
        self.ask = create.ask
        self.id = create.response_id or ""
        request = Request(self.id, "m", "ada", 0.0, create.ask.turn, create.ask.settings)
        self._log = ResponseLog(self.id)
        self._cursor = self._log.attach(-1, _Nobody())
        self._cursor.lane = create.lane
        self._log.append(0, 0, [ResponseQueued(Response.of(request, Status.QUEUED))])
        self._transcript = Transcript(Delivery(request, 0, tuple(self._log.events), None))
        self._transcript.start()

    def say(self, *said: TextDelta | ReasoningDelta | ToolCall) -> list[JSON]:
        for one in said:
            self._transcript.add(one)
        return self.tell(self._transcript.events)

    def finish(
        self, reason: FinishReason = FinishReason.STOP, error: SluiceError | None = None
    ) -> list[JSON]:
        self._transcript.finish(Finished(reason, USAGE, error))
        return self.tell(self._transcript.events)

    def tell(self, events: Sequence[Event]) -> list[JSON]:
        self._log.append(0, len(self._log.events), events)
        self._transcript.appended()
        number = self._cursor.next_number
        return read(self._codec.encode(self._cursor, number, self._cursor.take(1000, 1 << 20)))

    def answer(self, *said: TextDelta | ReasoningDelta | ToolCall) -> list[JSON]:
        return self.say(*said) + self.finish()


class Talk:
    """A client and its codec."""

    def __init__(self, conversation_id: str | None = None) -> None:
        self.codec = RealtimeCodec("m", conversation_id)

    def send(self, kind: str, **fields: object) -> Command:
        return self.codec.decode(json.dumps({"type": kind, **fields}).encode())

    def told(self, kind: str, **fields: object) -> list[JSON]:
        reply = self.send(kind, **fields)
        assert isinstance(reply, Reply)
        return read(reply.payloads)

    def ask(self, **response: object) -> Answering:
        create = self.send("response.create", response=response)
        assert isinstance(create, Create)
        return Answering(self.codec, create)

    def add(self, item: JSON, behind: str | None = None) -> str:
        added, done = self.told("conversation.item.create", item=item, previous_item_id=behind)
        assert (added["type"], done["type"]) == ("conversation.item.added", "conversation.item.done")
        assert added["item"] == done["item"]
        name = added["item"]["id"]
        assert isinstance(name, str)
        return name

    def say(self, text: str, **fields: object) -> str:
        return self.add({**user(text), **fields})

    def refused(self, kind: str, **fields: object) -> SluiceError:
        with pytest.raises((InvalidRequest, NotFound)) as error:
            self.send(kind, **fields)
        return error.value


def read(payloads: Sequence[bytes]) -> list[JSON]:
    """The events, each of which is one of the API's."""
    events = [json.loads(payload) for payload in payloads]
    for event in events:
        known = EVENT.validate_python(event)
        assert not (known.model_extra or {}).keys() - {"event_id"}, event
    return events


def user(text: str) -> JSON:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def contents(ask: Ask) -> list[tuple[Role, str]]:
    return [(message.role, message.content) for message in ask.turn]


def types(events: Sequence[JSON]) -> list[str]:
    return [event["type"] for event in events]


@pytest.fixture
def talk() -> Talk:
    return Talk()


def settings_of(talk: Talk, **response: object) -> Settings:
    return talk.ask(**response).ask.settings


# ── what a client is told ────────────────────────────────────────────────────────────────────────


def test_a_session_begins_with_what_it_is(talk: Talk) -> None:
    (created,) = read(talk.codec.greeting("sess_1"))
    assert created["type"] == "session.created"
    session = created["session"]
    assert (session["id"], session["model"], session["output_modalities"]) == ("sess_1", "m", ["text"])


def test_an_answer_from_its_beginning_to_its_end(talk: Talk) -> None:
    asked = talk.say("hello")
    answer = talk.ask(metadata={"a": "b"}, max_output_tokens=10)
    events = answer.answer(TextDelta("He"), TextDelta("llo"))
    assert types(events) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    assert len({event["event_id"] for event in events}) == len(events)
    created, added, joined, part, first, second, text, whole, done, said, last = events
    assert created["response"]["status"] == "in_progress"
    assert created["response"]["metadata"] == {"a": "b"}
    assert (joined["previous_item_id"], done["previous_item_id"]) == (asked, asked)
    assert joined["item"] == added["item"]
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    place = {"response_id": answer.id, "item_id": added["item"]["id"], "output_index": 0, "content_index": 0}
    for event in (part, first, second, text, whole):
        assert {key: event[key] for key in place} == place
    assert (first["delta"], second["delta"], text["text"], whole["part"]["text"]) == (
        "He",
        "llo",
        "Hello",
        "Hello",
    )
    assert said["item"] == done["item"]
    assert said["item"]["content"] == [{"type": "output_text", "text": "Hello"}]
    response = last["response"]
    assert (response["id"], response["status"], response["output"]) == (
        answer.id,
        "completed",
        [said["item"]],
    )
    assert response["max_output_tokens"] == 10
    assert response["conversation_id"] == answer.ask.settings.conversation_id
    assert response["usage"] == {
        "total_tokens": 11,
        "input_tokens": 9,
        "output_tokens": 2,
        "input_token_details": {
            "text_tokens": 9,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": 4,
            "cached_tokens_details": {"text_tokens": 4, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": 2, "audio_tokens": 0},
    }


def test_text_that_json_escapes(talk: Talk) -> None:
    events = talk.ask(instructions="x").say(TextDelta('"\n\u2028ü😀'))
    assert events[-1]["delta"] == '"\n\u2028ü😀'


def test_reasoning_is_left_out_and_counts_nowhere(talk: Talk) -> None:
    events = talk.ask(instructions="x").answer(
        ReasoningDelta("hm"), TextDelta("yes"), ToolCall("c", "f", "{}")
    )
    assert not any("reasoning" in json.dumps(event) or "hm" in json.dumps(event) for event in events)
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]
    assert [item["id"] for item in events[-1]["response"]["output"]] == [it["item"]["id"] for it in added]


def test_a_call_is_an_item_with_its_arguments(talk: Talk) -> None:
    events = talk.ask(instructions="x").answer(ToolCall("call_1", "weather", '{"city": "Ulm"}'))
    assert types(events) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    assert events[1]["item"]["arguments"] == ""
    assert events[3]["delta"] == events[4]["arguments"] == '{"city": "Ulm"}'
    assert (events[4]["name"], events[4]["call_id"]) == ("weather", "call_1")
    assert events[6]["item"]["status"] == "completed"


@pytest.mark.parametrize(
    ("reason", "error", "status", "details"),
    [
        (FinishReason.STOP, None, "completed", None),
        (
            FinishReason.CANCELLED,
            None,
            "cancelled",
            {"type": "cancelled", "reason": "client_cancelled"},
        ),
        (FinishReason.LENGTH, None, "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}),
        (
            FinishReason.ERROR,
            GenerationFailed("the engine is out of breath"),
            "failed",
            {
                "type": "failed",
                "error": {
                    "type": "server_error",
                    "code": "generation_failed",
                    "message": "the engine is out of breath",
                },
            },
        ),
    ],
)
def test_how_a_response_ended(
    talk: Talk, reason: FinishReason, error: SluiceError | None, status: str, details: JSON | None
) -> None:
    answer = talk.ask(instructions="x")
    answer.say(TextDelta("half"))
    response = answer.finish(reason, error)[-1]["response"]
    assert (response["status"], response["status_details"]) == (status, details)
    assert response["output"][0]["status"] == ("completed" if status == "completed" else "incomplete")


def test_an_item_whose_end_nobody_told_does_not_stay(talk: Talk) -> None:
    answer = talk.ask(instructions="x")
    item = answer.say(TextDelta("half"))[1]["item"]
    lost = Transcript(Delivery(Request(answer.id, "m", "ada", 0.0, (), Settings()), 0, (), None))
    lost.finish(Finished(FinishReason.ERROR, error=GenerationFailed("died")))
    events = answer.tell(lost.events)
    assert types(events) == ["conversation.item.deleted", "response.done"]
    assert events[0]["item_id"] == item["id"]
    assert not talk.ask(instructions="x").ask.turn
    talk.refused("conversation.item.retrieve", item_id=item["id"])


# ── items ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (user("a"), Message(Role.USER, "a")),
        ({**user(""), "content": []}, Message(Role.USER, "")),
        ({**user("a"), "role": "system"}, Message(Role.SYSTEM, "a")),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            Message(Role.ASSISTANT, "a"),
        ),
        (
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            Message(Role.ASSISTANT, "", (ToolCall("c", "f", "{}"),)),
        ),
    ],
)
def test_an_item_in_every_form_comes_back_as_it_was(talk: Talk, item: JSON, message: Message) -> None:
    name = talk.add({**item, "id": "mine"})
    (event,) = talk.told("conversation.item.retrieve", item_id=name)
    assert event["type"] == "conversation.item.retrieved"
    assert event["item"] == {**item, "id": "mine", "object": "realtime.item", "status": "completed"}
    # As it came back it can be sent again.
    talk.add({**event["item"], "id": "again"})
    assert talk.ask().ask.turn[0].content == message.content


def test_several_parts_are_one_text(talk: Talk) -> None:
    talk.add({**user(""), "content": [{"type": "input_text", "text": text} for text in ("a", "b")]})
    assert contents(talk.ask().ask) == [(Role.USER, "ab")]


def test_an_item_goes_where_it_is_told_to(talk: Talk) -> None:
    first = talk.say("1")
    last = talk.say("4")
    second = talk.add(user("2"), first)
    talk.add(user("3"), second)
    talk.add(user("0"), "root")
    talk.add(user("5"), last)
    assert [text for _, text in contents(talk.ask().ask)] == list("012345")


def test_what_an_item_stands_behind_is_told(talk: Talk) -> None:
    first = talk.say("1")
    added, _ = talk.told("conversation.item.create", item=user("2"))
    assert added["previous_item_id"] == first
    added, _ = talk.told("conversation.item.create", item=user("0"), previous_item_id="root")
    assert added["previous_item_id"] is None


def test_a_deleted_item_is_gone(talk: Talk) -> None:
    item = talk.say("a")
    (deleted,) = talk.told("conversation.item.delete", item_id=item)
    assert (deleted["type"], deleted["item_id"]) == ("conversation.item.deleted", item)
    error = talk.refused("conversation.item.delete", item_id=item)
    assert (error.code, error.param) == ("item_delete_invalid_item_id", "item_id")
    error = talk.refused("conversation.item.retrieve", item_id=item)
    assert (error.code, error.param) == ("item_retrieve_invalid_item_id", "item_id")


def test_an_id_stands_for_one_item(talk: Talk) -> None:
    talk.say("a", id="mine")
    error = talk.refused("conversation.item.create", item={**user("b"), "id": "mine"})
    assert error.param == "item.id"


def test_an_answer_to_a_call_that_is_not_there_is_refused(talk: Talk) -> None:
    output = {"type": "function_call_output", "call_id": "c", "output": "sunny"}
    error = talk.refused("conversation.item.create", item=output)
    assert (error.code, error.param) == ("invalid_tool_call_id", "item.call_id")


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "message", "role": "user"}, "item.content"),
        ({**user("a"), "role": "boss"}, "item.role"),
        ({**user("a"), "content": "a"}, "item.content"),
        ({**user("a"), "content": [{"type": "input_text"}]}, "item.content[0].text"),
        ({**user("a"), "content": [{"type": "input_text", "text": 5}]}, "item.content[0].text"),
        ({**user("a"), "id": ""}, "item.id"),
        ({**user("a"), "id": "x" * 65}, "item.id"),
        ({"type": "function_call", "arguments": "{}"}, "item.name"),
        ({"type": "function_call", "name": "f"}, "item.arguments"),
        ({"type": "function_call_output", "call_id": "c"}, "item.output"),
        ("hello", "item"),
        (None, "item"),
    ],
)
def test_what_is_wrong_with_an_item_is_named(talk: Talk, item: object, param: str) -> None:
    error = talk.refused("conversation.item.create", item=item)
    assert (error.param, error.code) == (param, "invalid_value")


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "mcp_call", "id": "x"}, "item.type"),
        ({**user("a"), "voice": "alloy"}, "item.voice"),
        *(
            ({**user("a"), "content": [{"type": kind, **more}]}, "item.content[0].type")
            for kind, more in [
                ("input_audio", {"audio": "AAAA"}),
                ("output_audio", {"transcript": "hello"}),
                ("input_image", {"image_url": "data:image/png;base64,AA=="}),
            ]
        ),
    ],
)
def test_what_is_not_text_is_refused_by_name(talk: Talk, item: JSON, param: str) -> None:
    error = talk.refused("conversation.item.create", item=item)
    assert isinstance(error, UnsupportedParameter)
    assert error.param == param


def test_a_conversation_is_bounded_in_items_and_characters(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime_dialogue, "MAX_ITEMS", 4)
    half = talk.say("x" * (MAX_CHARS // 2))
    talk.say("x" * (MAX_CHARS - MAX_CHARS // 2))
    assert talk.refused("conversation.item.create", item=user("x")).code == "conversation_full"
    talk.told("conversation.item.delete", item_id=half)
    for _ in range(3):
        talk.say("x")
    assert talk.refused("conversation.item.create", item=user("")).code == "conversation_full"


def test_what_one_response_refers_to_is_bounded(talk: Talk) -> None:
    long = {"type": "item_reference", "id": talk.say("x" * (MAX_CHARS // 3))}
    assert len(talk.ask(conversation="none", input=[long] * 3).ask.turn) == 3
    error = talk.refused("response.create", response={"conversation": "none", "input": [long] * 4})
    assert error.param == "response.input"


def test_parts_take_room_even_when_they_are_empty(talk: Talk) -> None:
    item = {**user(""), "content": user("")["content"] * 256}
    names = list[str]()
    while len(names) * 255 * PART_CHARS <= MAX_CHARS - 255 * PART_CHARS:
        names.append(talk.add(item))
    assert talk.refused("conversation.item.create", item=item).code == "conversation_full"
    talk.told("conversation.item.delete", item_id=names[0])
    talk.add(item)


def test_a_conversation_that_its_answers_have_filled_takes_no_other(talk: Talk) -> None:
    talk.say("x" * (MAX_CHARS - 10))
    talk.ask().answer(TextDelta("x" * 11))
    assert talk.refused("response.create").code == "conversation_full"


# ── turns ────────────────────────────────────────────────────────────────────────────────────────


def test_a_turn_is_what_is_new(talk: Talk) -> None:
    talk.say("a")
    talk.say("b")
    first = talk.ask()
    assert contents(first.ask) == [(Role.USER, "a"), (Role.USER, "b")]
    assert first.ask.begins
    assert first.ask.settings.store
    first.answer(TextDelta("c"))
    talk.say("d")
    second = talk.ask()
    assert contents(second.ask) == [(Role.USER, "d")]
    assert not second.ask.begins
    assert second.ask.settings.conversation_id == first.ask.settings.conversation_id


def test_nothing_new_asks_for_another_answer(talk: Talk) -> None:
    talk.say("a")
    talk.ask().answer(TextDelta("b"))
    again = talk.ask()
    assert (again.ask.turn, again.ask.begins) == ((), False)


def test_what_is_said_while_an_answer_runs_stands_behind_it(talk: Talk) -> None:
    talk.say("a")
    answer = talk.ask()
    early = talk.say("early")
    events = answer.say(TextDelta("b"))
    late = talk.say("late")
    answer.finish()
    assert contents(talk.ask().ask) == [(Role.USER, "early"), (Role.USER, "late")]
    (event,) = [event for event in events if event["type"] == "conversation.item.added"]
    assert event["previous_item_id"] not in (early, late)


@pytest.mark.parametrize("which", ["question", "answer"])
def test_after_a_deletion_the_conversation_begins_anew(talk: Talk, which: str) -> None:
    question = talk.say("a")
    first = talk.ask()
    said = first.answer(TextDelta("b"))[1]["item"]["id"]
    talk.told("conversation.item.delete", item_id=question if which == "question" else said)
    talk.say("c")
    second = talk.ask()
    left = (Role.ASSISTANT, "b") if which == "question" else (Role.USER, "a")
    assert contents(second.ask) == [left, (Role.USER, "c")]
    assert second.ask.begins
    assert second.ask.settings.conversation_id != first.ask.settings.conversation_id
    second.answer(TextDelta("d"))
    talk.say("e")
    third = talk.ask()
    assert contents(third.ask) == [(Role.USER, "e")]
    assert third.ask.settings.conversation_id == second.ask.settings.conversation_id


def test_after_an_insertion_the_conversation_begins_anew(talk: Talk) -> None:
    talk.say("a")
    talk.ask().answer(TextDelta("b"))
    talk.add({**user("be kind"), "role": "system"}, "root")
    asked = talk.ask().ask
    assert contents(asked) == [(Role.SYSTEM, "be kind"), (Role.USER, "a"), (Role.ASSISTANT, "b")]
    assert asked.begins


def test_deleting_what_was_not_asked_yet_changes_nothing_else(talk: Talk) -> None:
    talk.say("a")
    talk.ask().answer(TextDelta("b"))
    talk.told("conversation.item.delete", item_id=talk.say("c"))
    talk.say("d")
    asked = talk.ask().ask
    assert (contents(asked), asked.begins) == ([(Role.USER, "d")], False)


@pytest.mark.parametrize("change", ["insert", "delete"])
def test_what_changes_before_an_answer_does_not_move_it(talk: Talk, change: str) -> None:
    first = talk.say("a")
    talk.say("b")
    answer = talk.ask()
    talk.say("late")
    if change == "insert":
        talk.add(user("0"), "root")
    else:
        talk.told("conversation.item.delete", item_id=first)
    answer.answer(TextDelta("c"))
    texts = ["0", "a", "b", "c", "late"] if change == "insert" else ["b", "c", "late"]
    assert [text for _, text in contents(talk.ask().ask)] == texts


def test_deleting_what_is_being_said(talk: Talk) -> None:
    talk.say("a")
    answer = talk.ask()
    item = answer.say(TextDelta("b"))[1]["item"]["id"]
    talk.told("conversation.item.delete", item_id=item)
    assert "conversation.item.done" not in types(answer.finish())
    assert contents(talk.ask().ask) == [(Role.USER, "a")]


def test_what_failed_is_asked_again_with_what_is_new(talk: Talk) -> None:
    talk.say("a")
    failed = talk.ask()
    failed.finish(FinishReason.ERROR, GenerationFailed("no"))
    talk.say("b")
    asked = talk.ask().ask
    assert contents(asked) == [(Role.USER, "a"), (Role.USER, "b")]
    assert (asked.begins, asked.settings.conversation_id) == (False, failed.ask.settings.conversation_id)


def test_what_was_cut_short_stays(talk: Talk) -> None:
    talk.say("a")
    answer = talk.ask()
    answer.say(TextDelta("b"))
    answer.finish(FinishReason.CANCELLED)
    talk.say("c")
    assert contents(talk.ask().ask) == [(Role.USER, "c")]


def test_what_was_refused_is_asked_again(talk: Talk) -> None:
    talk.say("a")
    create = talk.send("response.create", event_id="mine")
    assert isinstance(create, Create)
    (error,) = read([talk.codec.encode_error(NotFound("gone"), create.lane)])
    assert error["error"]["event_id"] == "mine"
    again = talk.ask().ask
    assert (contents(again), again.begins) == ([(Role.USER, "a")], True)
    assert again.settings.conversation_id == create.ask.settings.conversation_id


def test_a_conversation_that_is_gone_is_begun_anew(talk: Talk) -> None:
    talk.say("a")
    talk.ask().answer(TextDelta("b"))
    talk.say("c")
    create = talk.send("response.create")
    assert isinstance(create, Create)
    talk.codec.encode_error(NotFound("gone", param="conversation"), create.lane)
    asked = talk.ask().ask
    assert [text for _, text in contents(asked)] == ["a", "b", "c"]
    assert asked.begins
    assert asked.settings.conversation_id != create.ask.settings.conversation_id


def test_a_conversation_that_exists_is_continued() -> None:
    talk = Talk("conv_1")
    talk.add(user("0"), "root")
    first = talk.ask()
    assert (first.ask.settings.conversation_id, first.ask.begins) == ("conv_1", False)
    first.answer(TextDelta("1"))
    second = talk.send("response.create")
    assert isinstance(second, Create)
    talk.codec.encode_error(NotFound("gone", param="conversation"), second.lane)
    again = talk.ask().ask
    assert (contents(again), again.settings.conversation_id, again.begins) == ([], "conv_1", False)


def test_what_stands_in_a_conversation_that_is_continued_stays_there() -> None:
    talk = Talk("conv_1")
    talk.told("conversation.item.delete", item_id=talk.say("a"))
    asked = talk.say("b")
    talk.ask().answer(TextDelta("c"))
    assert talk.refused("conversation.item.delete", item_id=asked).code == "conversation_continued"
    error = talk.refused("conversation.item.create", item=user("0"), previous_item_id="root")
    assert error.code == "conversation_continued"
    talk.say("d")
    assert contents(talk.ask().ask) == [(Role.USER, "d")]


def test_calls_and_what_came_of_them(talk: Talk) -> None:
    talk.say("weather?")
    talk.ask().answer(TextDelta("wait"), ToolCall("c1", "f", "1"), ToolCall("c2", "f", "2"))
    for call in ("c1", "c2"):
        talk.add({"type": "function_call_output", "call_id": call, "output": call})
    tools = (Message(Role.TOOL, "c1", call_id="c1"), Message(Role.TOOL, "c2", call_id="c2"))
    assert talk.ask().ask.turn == tools
    talk = Talk()
    talk.say("weather?")
    talk.ask().answer(TextDelta("wait"), ToolCall("c1", "f", "1"), ToolCall("c2", "f", "2"))
    talk.told("conversation.item.delete", item_id=talk.say("x"))
    talk.add({**user("be kind"), "role": "system"}, "root")
    calls = (ToolCall("c1", "f", "1"), ToolCall("c2", "f", "2"))
    assert talk.ask().ask.turn[2:] == (Message(Role.ASSISTANT, "wait", calls),)


def test_out_of_band_nothing_enters_the_conversation(talk: Talk) -> None:
    talk.say("a")
    talk.ask().answer(TextDelta("b"))
    talk.say("c")
    aside = talk.ask(conversation="none", instructions="sum it up")
    assert [text for _, text in contents(aside.ask)] == ["a", "b", "c"]
    settings = aside.ask.settings
    assert (settings.store, settings.conversation_id, aside.ask.begins) == (False, None, False)
    events = aside.answer(TextDelta("aside"))
    assert not any(event["type"].startswith("conversation.") for event in events)
    assert events[-1]["response"]["conversation_id"] is None
    assert contents(talk.ask().ask) == [(Role.USER, "c")]


def test_out_of_band_with_an_input_of_its_own(talk: Talk) -> None:
    item = talk.say("a")
    talk.say("b")
    given = [{"type": "item_reference", "id": item}, user("c")]
    assert [text for _, text in contents(talk.ask(conversation="none", input=given).ask)] == ["a", "c"]
    assert talk.ask(conversation="none", input=[]).ask.turn == ()
    error = talk.refused("response.create", response={"input": [{"type": "item_reference", "id": "x"}]})
    assert error.param == "response.input"


def test_the_answer_to_an_input_of_its_own_joins_the_conversation(talk: Talk) -> None:
    talk.say("a")
    answer = talk.ask(input=[user("b")])
    assert contents(answer.ask) == [(Role.USER, "b")]
    settings = answer.ask.settings
    assert (settings.store, settings.conversation_id, answer.ask.begins) == (True, None, False)
    assert "conversation.item.added" in types(answer.answer(TextDelta("c")))
    assert contents(talk.ask().ask) == [(Role.USER, "a"), (Role.ASSISTANT, "c")]


def test_one_answer_at_a_time_joins_the_conversation(talk: Talk) -> None:
    talk.say("a")
    answer = talk.ask()
    assert talk.refused("response.create").code == "conversation_already_has_active_response"
    talk.ask(conversation="none").answer(TextDelta("aside"))
    assert talk.refused("response.create").code == "conversation_already_has_active_response"
    answer.answer(TextDelta("b"))
    talk.ask()


def test_a_cancel_means_the_answer_of_the_conversation_or_the_one_that_it_names(talk: Talk) -> None:
    assert talk.refused("response.cancel").code == "response_cancel_not_active"
    answer, aside = talk.ask(instructions="x"), talk.ask(instructions="x", conversation="none")
    assert talk.send("response.cancel") == Cancel(answer.id)
    assert talk.send("response.cancel", response_id=aside.id) == Cancel(aside.id)
    error = talk.refused("response.cancel", response_id="resp_another")
    assert error.code == "response_cancel_not_active"
    answer.finish(FinishReason.CANCELLED)
    assert talk.refused("response.cancel").code == "response_cancel_not_active"


def test_a_response_from_elsewhere_is_told_but_joins_nothing(talk: Talk) -> None:
    resume = talk.send("response.resume", response_id="resp_1")
    assert resume == Resume("resp_1", lane="resp_1")
    assert talk.refused("response.resume", response_id="resp_1").param == "response_id"
    elsewhere = Answering(talk.codec, Create(Ask(()), "resp_1", response_id="resp_1"))
    events = elsewhere.answer(ScoredDelta("a", ()))
    assert types(events)[-1] == "response.done"
    assert "response.output_text.delta" in types(events)
    assert not any(event["type"].startswith("conversation.") for event in events)
    talk.say("b")
    assert contents(talk.ask().ask) == [(Role.USER, "b")]


# ── settings ─────────────────────────────────────────────────────────────────────────────────────

WEATHER = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}}


def test_the_settings_of_a_session_are_those_of_its_responses(talk: Talk) -> None:
    assert settings_of(talk, instructions="x", conversation="none") == Settings(
        instructions="x", truncation=Truncation.AUTO, store=False
    )
    session = {
        "type": "realtime",
        "model": "m",
        "instructions": "be brief",
        "max_output_tokens": 10,
        "output_modalities": ["text"],
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low"},
        "truncation": "disabled",
        "temperature": 0.5,
        "seed": 7,
        "top_a": 0.5,
        "stop": ["."],
        "text": {"format": {"type": "json_object"}},
    }
    (updated,) = talk.told("session.update", session=session)
    assert updated["type"] == "session.updated"
    assert updated["session"].items() >= session.items()
    found = settings_of(talk, conversation="none", metadata={"a": "b"})
    assert found == Settings(
        instructions="be brief",
        max_output_tokens=10,
        sampling=Sampling(temperature=0.5, seed=7, rare=RareSampling(top_a=0.5)),
        stop=(".",),
        reasoning_effort="low",
        output_format=OutputFormat(),
        tooling=Tooling((Tool("weather", "d", {"type": "object"}),), "auto", "weather", parallel=False),
        truncation=Truncation.DISABLED,
        store=False,
        metadata={"a": "b"},
    )
    assert Feature.TOOLS in found.features


def test_a_response_goes_before_its_session(talk: Talk) -> None:
    talk.told("session.update", session={"instructions": "a", "max_output_tokens": 5, "tools": [WEATHER]})
    found = settings_of(
        talk, conversation="none", instructions="b", max_output_tokens="inf", tool_choice="none"
    )
    assert (found.instructions, found.max_output_tokens, found.tooling.choice) == ("b", None, "none")
    assert settings_of(talk, conversation="none").instructions == "a"


def test_what_an_update_does_not_name_stays(talk: Talk) -> None:
    talk.told("session.update", session={"instructions": "a", "temperature": 1})
    talk.told("session.update", session={"temperature": None, "max_output_tokens": 5})
    found = settings_of(talk, conversation="none")
    assert (found.instructions, found.sampling.temperature, found.max_output_tokens) == ("a", None, 5)
    talk.told("session.update", session={"instructions": ""})
    assert settings_of(talk, conversation="none").instructions is None


@pytest.mark.parametrize(
    "session",
    [
        {},
        {"audio": {"input": {"turn_detection": {"type": "server_vad"}}, "output": {"voice": "alloy"}}},
        {"tracing": "auto"},
        {"include": ["item.input_audio_transcription.logprobs"], "prompt": None},
        {"tool_choice": "auto", "tools": [], "max_output_tokens": "inf", "truncation": "auto"},
    ],
)
def test_what_clients_send_for_sound_changes_nothing(talk: Talk, session: JSON) -> None:
    talk.told("session.update", session={"type": "realtime", **session})
    assert settings_of(talk, instructions="x", conversation="none") == Settings(
        instructions="x", truncation=Truncation.AUTO, store=False
    )


def test_a_session_can_send_back_what_it_was_told(talk: Talk) -> None:
    (created,) = read(talk.codec.greeting("sess_1"))
    (updated,) = talk.told("session.update", session=created["session"])
    assert updated["session"] == created["session"]


@pytest.mark.parametrize(
    ("session", "param", "code"),
    [
        ({"type": "transcription"}, "type", "unsupported_parameter"),
        ({"output_modalities": ["audio"]}, "output_modalities", "unsupported_parameter"),
        ({"output_modalities": ["text", "audio"]}, "output_modalities", "unsupported_parameter"),
        ({"output_modalities": "text"}, "output_modalities", "unsupported_parameter"),
        ({"modalities": ["text"]}, "modalities", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type", "unsupported_parameter"),
        ({"model": "other"}, "model", "invalid_value"),
        ({"instructions": 5}, "instructions", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": "many"}, "max_output_tokens", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "invalid_value"),
        ({"tools": 5}, "tools", "invalid_value"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "invalid_value"),
        ({"truncation": {"type": "retention_ratio", "retention_ratio": 0.5}}, "truncation", "invalid_value"),
        ({"nonsense": 1}, "nonsense", "unsupported_parameter"),
    ],
)
@pytest.mark.parametrize("place", ["session", "response"])
def test_what_is_wrong_with_settings_is_named(
    talk: Talk, session: JSON, param: str, code: str, place: str
) -> None:
    kind = "session.update" if place == "session" else "response.create"
    error = talk.refused(kind, **{place: {"instructions": "be rude", **session}})
    if place == "response" and param in ("type", "model"):
        code = "unsupported_parameter"
    assert (error.param, error.code) == (f"{place}.{param}", code)
    # Nothing of it counts, and the session goes on.
    assert settings_of(talk, conversation="none").instructions is None


@pytest.mark.parametrize(
    ("response", "param"),
    [
        ({"conversation": "conv_1"}, "response.conversation"),
        ({"input": "hello"}, "response.input"),
        ({"input": [{**user("a"), "role": "boss"}]}, "response.input[0].role"),
        ({"input": [{"type": "item_reference"}]}, "response.input[0].id"),
        ({"metadata": {"a": 1}}, "response.metadata.a"),
    ],
)
def test_what_is_wrong_with_a_response_is_named(talk: Talk, response: JSON, param: str) -> None:
    error = talk.refused("response.create", response=response)
    assert (error.param, error.code) == (param, "invalid_value")


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kind",
    [
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "output_audio_buffer.clear",
        "conversation.item.truncate",
    ],
)
def test_sound_is_refused_by_name(talk: Talk, kind: str) -> None:
    error = talk.refused(kind, audio="AAAA")
    assert isinstance(error, UnsupportedParameter)
    assert kind in error.message
    assert "audio" in error.message


@pytest.mark.parametrize(
    "name", ["response.nonsense", "session.create", "", None, 5, ["response.create"], {}]
)
def test_an_unknown_event_is_refused_and_the_known_ones_are_named(talk: Talk, name: Any) -> None:
    error = talk.refused(name)
    assert (error.param, error.code) == ("type", "unknown_event")
    assert "response.create" in error.message


@pytest.mark.parametrize("data", [b"", b"hello", b"{", b"[]", b"5", b"null", b"{}{}", b"[" * 100_000])
def test_what_is_no_event_is_refused(talk: Talk, data: bytes) -> None:
    with pytest.raises(InvalidRequest) as error:
        talk.codec.decode(data)
    assert error.value.code == "invalid_json"
    assert talk.codec.lane(data) is None


@pytest.mark.parametrize(
    ("event_id", "told"), [("mine", "mine"), ("", ""), (5, None), ("x" * 513, None), (None, None)]
)
def test_an_error_names_the_event_that_it_is_about(talk: Talk, event_id: object, told: str | None) -> None:
    data = json.dumps({"type": "response.nonsense", "event_id": event_id}).encode()
    with pytest.raises(InvalidRequest) as error:
        talk.codec.decode(data)
    (event,) = read([talk.codec.encode_error(error.value, talk.codec.lane(data))])
    assert (event["type"], event["error"]["event_id"]) == ("error", told)
    assert event["error"]["type"] == "invalid_request_error"
    assert (event["error"]["code"], event["error"]["param"]) == ("unknown_event", "type")


def test_an_event_that_is_called_as_a_response_harms_it_not(talk: Talk) -> None:
    answer = talk.ask(instructions="x")
    lane = talk.codec.lane(json.dumps({"type": "nonsense", "event_id": answer.id}).encode())
    (event,) = read([talk.codec.encode_error(InvalidRequest("no"), lane)])
    assert event["error"]["event_id"] == answer.id
    assert types(answer.answer(TextDelta("a")))[-1] == "response.done"


# ── whatever comes ───────────────────────────────────────────────────────────────────────────────

KINDS = [
    "session.update",
    "conversation.item.create",
    "conversation.item.delete",
    "conversation.item.retrieve",
    "response.create",
    "response.cancel",
    "response.resume",
]
WORDS = st.sampled_from(
    [
        *("type", "id", "role", "content", "text", "name", "arguments", "call_id", "output", "item_id"),
        *("previous_item_id", "response_id", "instructions", "tools", "tool_choice", "input", "metadata"),
        *("conversation", "truncation", "max_output_tokens", "output_modalities", "session", "item"),
        *("response", "message", "user", "function_call", "function_call_output", "item_reference"),
        *("function", "input_text", "inf", "none", "auto", "root", "a", "b", "text", "realtime", "m"),
    ]
)
VALUES = st.recursive(
    st.one_of(WORDS, st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=10,
)
ITEMS = st.fixed_dictionaries(
    {"type": st.just("message"), "role": st.sampled_from(["user", "system"])},
    optional={
        "id": st.sampled_from(["a", "b", "c"]),
        "content": st.just([{"type": "input_text", "text": "x"}]) | VALUES,
    },
)
EVENTS = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={
        "event_id": WORDS,
        "item": ITEMS | VALUES,
        "item_id": st.sampled_from(["a", "b", "c"]) | VALUES,
        "previous_item_id": st.sampled_from(["a", "b", "root"]) | VALUES,
        "session": st.dictionaries(WORDS, VALUES, max_size=3),
        "response": st.dictionaries(WORDS, VALUES, max_size=3),
        "response_id": VALUES,
    },
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(EVENTS, st.sampled_from(["go on", "finish", "fail", "refuse"])), max_size=12),
    st.sampled_from([None, "conv_1"]),
)
def test_whatever_is_said_is_answered_in_the_apis_words(
    script: list[tuple[JSON, str]], conversation_id: str | None
) -> None:
    talk = Talk(conversation_id)
    running: list[Answering] = []
    for event, then in script:
        data = json.dumps(event).encode()
        try:
            command = talk.codec.decode(data)
        except (InvalidRequest, NotFound) as error:
            read([talk.codec.encode_error(error, talk.codec.lane(data))])
            continue
        if isinstance(command, Reply):
            read(command.payloads)
        elif isinstance(command, Resume) or (isinstance(command, Create) and then == "refuse"):
            read([talk.codec.encode_error(NotFound("no", param="conversation"), command.lane)])
        elif isinstance(command, Create):
            running.append(Answering(talk.codec, command))
            running[-1].say(TextDelta("a"))
        if running and then in ("finish", "fail"):
            failed = GenerationFailed("no") if then == "fail" else None
            running.pop().finish(FinishReason.ERROR if failed else FinishReason.STOP, failed)
