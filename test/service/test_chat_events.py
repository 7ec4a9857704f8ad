"""The events of a streamed answer."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from internal.biz.events import (
    Event,
    ReasoningDelta,
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    ScoredDelta,
    TextDelta,
)
from internal.biz.models import Failure, Response, Status
from internal.service.api.chat import ChatStream, failure_error
from internal.service.errors import http_status

if TYPE_CHECKING:
    from test.conftest import RequestFactory

Ended = Callable[..., Response]


@pytest.fixture
def ended(make_request: "RequestFactory") -> Ended:
    def ended(status: Status, **more: Any) -> Response:
        return Response.of(make_request(), status, **more)

    return ended


def read(events: list[Event], begun: str | None = None) -> list[Any]:
    lines = ChatStream(begun).encode(events).decode().split("\n\n")
    assert lines.pop() == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_deltas_of_one_wake_are_one_chunk() -> None:
    events: list[Event] = [TextDelta("one\n"), ReasoningDelta("hm"), ScoredDelta("\n“two”", ())]
    assert read(events) == [{"chunk": "one\n\n“two”"}]
    assert b"\n" not in ChatStream(None).encode(events).removesuffix(b"\n\n")


def test_nothing_to_say_is_nothing() -> None:
    assert ChatStream(None).encode([ReasoningDelta("hm")]) == b""


def test_the_end(ended: Ended) -> None:
    done = ResponseCompleted(ended(Status.COMPLETED))
    assert read([TextDelta("one"), done]) == [{"chunk": "one"}, {"done": True}]
    assert read([done], "conv_1") == [{"done": True, "session_id": "conv_1"}]
    cut = ResponseIncomplete(ended(Status.INCOMPLETE, incomplete_reason="cancelled"))
    assert read([cut]) == [{"done": True, "incomplete": "cancelled"}]


def test_a_failure_is_an_error(ended: Ended) -> None:
    failed = ResponseFailed(ended(Status.FAILED, failure=Failure("engine_broken", "it broke")))
    error = {"message": "it broke", "type": "server_error", "param": None, "code": "engine_broken"}
    assert read([failed]) == [{"error": error}]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("context_length_exceeded", 400),
        ("invalid_json_schema", 400),
        ("invalid_pattern", 400),
        ("unsupported_parameter", 400),
        ("invalid_request", 400),
        ("schema_not_followed", 500),
        ("generation_failed", 500),
    ],
)
def test_what_an_engine_refuses_is_the_fault_of_who_asks(code: str, status: int) -> None:
    error = failure_error(Failure(code, "why"))
    assert (http_status(error), error.code, error.message) == (status, code, "why")
