"""Bare text: nothing but what was said."""

import pytest

from internal.biz.chat import Ask
from internal.biz.commands import Create
from internal.biz.errors import InvalidRequest, NotFound
from internal.biz.events import (
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    QueueUpdate,
    ReasoningDelta,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
    ScoredDelta,
    TextDelta,
    TextDone,
)
from internal.biz.log import Cursor, ResponseLog
from internal.biz.models import Failure, ItemKind, Message, OutputItem, Response, Role, Settings, Status
from internal.biz.session import Codec
from internal.service.codec.text import TextCodec

RESPONSE = Response("resp_1", "m", "ada", 0.0, Settings(), Status.IN_PROGRESS)
FAILED = Response(
    "resp_1", "m", "ada", 0.0, Settings(), Status.FAILED, failure=Failure("broke", "the engine broke")
)


class Follower:
    def wake(self) -> None: ...

    def queue_update(self, cursor: Cursor, update: QueueUpdate) -> None: ...


@pytest.fixture
def cursor() -> Cursor:
    return ResponseLog("resp_1").attach(-1, Follower())


@pytest.mark.parametrize("text", ["hello", " hello\n", "{}", "🦆", "x" * 100_000])
def test_a_frame_is_a_message_of_the_user(text: str) -> None:
    ask = Ask((Message(Role.USER, text),), "echo")
    assert TextCodec("echo").decode(text.encode()) == Create(ask)


def test_without_a_model_the_default_one_answers() -> None:
    command = TextCodec().decode(b"hello")
    assert command.ask.model is None
    assert command.lane is None


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_message_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        TextCodec().decode(text.encode())


def test_only_what_is_said_is_sent(cursor: Cursor) -> None:
    item = OutputItem(ItemKind.MESSAGE, "hello")
    events: list[Event] = [
        ResponseQueued(RESPONSE, 3),
        ResponseCreated(RESPONSE),
        ResponseInProgress(RESPONSE),
        ItemAdded(ItemKind.REASONING, 0),
        ReasoningDelta("hm"),
        ItemAdded(ItemKind.MESSAGE, 1),
        PartAdded(ItemKind.MESSAGE, 1),
        TextDelta("hel"),
        ScoredDelta("lo 🦆", ()),
        TextDone(ItemKind.MESSAGE, "hello", 1),
        PartDone(ItemKind.MESSAGE, "hello", 1),
        ItemDone(item, 1),
        ResponseCompleted(RESPONSE),
        ResponseIncomplete(RESPONSE),
    ]
    assert list(TextCodec().encode(cursor, 0, events)) == [b"hel", "lo 🦆".encode()]


def test_a_failure_is_one_sentence(cursor: Cursor) -> None:
    assert list(TextCodec().encode(cursor, 0, [ResponseFailed(FAILED)])) == [b"error: the engine broke"]


def test_an_error_is_one_sentence() -> None:
    codec = TextCodec()
    assert codec.encode_error(NotFound("there is no such thing"), None) == b"error: there is no such thing"


def test_there_are_no_lanes_and_no_updates(cursor: Cursor) -> None:
    codec: Codec = TextCodec()
    assert codec.lane(b'{"stream_id": "a"}') is None
    assert codec.encode_update(cursor, QueueUpdate(1)) is None
    assert codec.continues
