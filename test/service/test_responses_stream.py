"""Streams of the Responses API over HTTP, held against the types of the `openai` package."""

import json
from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from internal.biz.errors import Unavailable
from internal.biz.events import Event, QueueUpdate, ReasoningDelta, ResponseQueued, TextDelta
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.log import Cursor, ResponseLog
from internal.biz.models import Request, Response, Settings, Status, ToolCall
from internal.service.codec.responses_stream import EVENTS_UNJOINED, ResponseStream

REQUEST = Request("resp_1", "m", "ada", 1700000000.5, (), Settings())
OPENAI: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class Nobody:
    def wake(self) -> None:
        return

    def queue_update(self, cursor: Cursor, update: QueueUpdate) -> None:
        return


def log_of(*said: TextDelta | ReasoningDelta | ToolCall) -> ResponseLog:
    log = ResponseLog("resp_1")
    queued: list[Event] = [ResponseQueued(Response.of(REQUEST, Status.QUEUED), 3, 0)]
    run = Transcript(Delivery(REQUEST, 0, queued, None))
    run.start()
    for one in said:
        run.add(one)
    run.finish(Finished(FinishReason.STOP))
    log.append(0, 0, [*queued, *run.events])
    return log


def read(stream: bytes) -> list[tuple[str, int, Any]]:
    """Name, id and data of each event."""
    found = []
    for block in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, number, data = block.split("\n")
        assert (name[:7], number[:4], data[:6]) == ("event: ", "id: ", "data: ")
        found.append((name[7:], int(number[4:]), json.loads(data[6:])))
    return found


SAID = (ReasoningDelta("hm"), TextDelta("so\n\n"), TextDelta(" be it 🦆"), ToolCall("call_1", "f", "{}"))


def test_every_event_is_one_of_the_openai_package() -> None:
    log = log_of(*SAID)
    stream = ResponseStream(log.attach(-1, Nobody()), -1)
    events = read(stream.encode(log.events[:7]) + stream.encode(log.events[7:]))
    assert [number for _, number, _ in events] == list(range(len(log.events)))
    for name, number, data in events:
        parsed = OPENAI.validate_json(json.dumps(data), strict=True)
        assert (parsed.type, parsed.sequence_number) == (name, number)
    assert [name for name, _, _ in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert events[0][2]["queue"]["position"] == 3


@pytest.mark.parametrize("count", [EVENTS_UNJOINED, EVENTS_UNJOINED + 1])
def test_deltas_are_joined_for_who_lags_only(count: int) -> None:
    log = log_of(*(TextDelta(f"{number} ") for number in range(count)))
    deltas = [event for event in log.events if type(event) is TextDelta]
    first = log.events.index(deltas[0])
    stream = ResponseStream(log.attach(first - 1, Nobody()), first - 1)
    events = read(stream.encode(deltas))
    assert len(events) == (count if count == EVENTS_UNJOINED else 1)
    assert events[-1][1] == first + count - 1
    assert "".join(data["delta"] for _, _, data in events) == "".join(deltas)
    (behind,) = read(stream.encode([log.events[first + count]]))
    assert behind[1] == first + count


def test_an_error_is_one_of_the_openai_package_and_has_no_id() -> None:
    stream = ResponseStream(log_of().attach(-1, Nobody()), 7)
    name, data = stream.encode_error(Unavailable("later", code="restarting")).decode().split("\n")[:2]
    parsed = OPENAI.validate_json(data.removeprefix("data: "), strict=True)
    assert (name, parsed.type, parsed.code, parsed.sequence_number) == (
        "event: error",
        "error",
        "restarting",
        7,
    )
