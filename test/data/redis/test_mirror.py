"""Whatever becomes of the messages, a mirror is a beginning of the log."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from internal.biz.events import Event, ItemDone, ReasoningDelta, ResponseFailed, TextDelta
from internal.biz.generation import Finished, FinishReason
from internal.biz.models import Request, Settings, Status
from internal.data.redis import mirror as mirror_module
from internal.data.redis.mirror import Mirror

if TYPE_CHECKING:
    from test.conftest import Reader
    from test.data.redis.conftest import Log

    WriteLog = Callable[..., Log]
    MakeReader = Callable[[], Reader]

STOP = Finished(FinishReason.STOP)
REQUEST = Request("resp_1", "m", "ada", 0.0, (), Settings())
REFETCH = None

sayings = st.builds(TextDelta, st.text(max_size=3)) | st.builds(ReasoningDelta, st.text(max_size=3))
attempts = st.lists(st.lists(sayings, max_size=10), min_size=1, max_size=2)
cut = st.integers(0, 45)
"""Longer than most logs."""


def news(log: "Log", first: int, last: int) -> tuple[int, list[Any]]:
    """A message with some entries of the log."""
    return first, [orjson.loads(entry) for entry in log.entries[first:last]]


def refetch(mirror: Mirror, log: "Log", until: int) -> bool:
    return mirror.receive(*news(log, len(mirror.events), until))


@given(attempts=attempts, data=st.lists(st.tuples(cut, cut) | st.just(REFETCH), max_size=30))
def test_messages_lost_doubled_reordered_and_overlapping_leave_a_beginning(
    write_log: "WriteLog", attempts: Any, data: list[tuple[int, int] | None]
) -> None:
    log = write_log(REQUEST, attempts, STOP)
    mirror = Mirror(log.head, 0.0)
    known = first = last = 0
    for message in data:
        if message is None:
            complete = refetch(mirror, log, len(log.entries) // 2)
        else:
            first, last = sorted(min(one, len(log.entries)) for one in message)
            complete = first == last or mirror.receive(*news(log, first, last))
        assert mirror.events == log.events[: len(mirror.events)]
        assert len(mirror.events) >= known, "it shrank"
        known = len(mirror.events)
        assert mirror.ended == (known == len(log.events))
        if complete and message is not None and first < last:
            assert known >= last
    assert refetch(mirror, log, len(log.entries))
    assert mirror.events == log.events
    assert [type(event) for event in mirror.events] == [type(event) for event in log.events]


@given(order=st.permutations(range(12)))
def test_in_whatever_order_they_come_all_messages_are_the_log(
    write_log: "WriteLog", order: list[int]
) -> None:
    log = write_log(REQUEST, [[TextDelta(f"{number} ") for number in range(15)]], STOP)
    assert len(log.entries) == 2 * len(order)
    mirror = Mirror(log.head, 0.0)
    complete = [mirror.receive(*news(log, 2 * one, 2 * one + 2)) for one in order]
    assert mirror.events == log.events
    assert complete[-1], "nothing is missing"


def test_messages_that_are_too_early_are_kept_up_to_a_bound(write_log: "WriteLog") -> None:
    log = write_log(REQUEST, [[TextDelta("x")] * (mirror_module.MAX_EARLY + 100)])
    mirror = Mirror(log.head, 0.0)
    for number in range(1, len(log.entries)):
        assert not mirror.receive(*news(log, number, number + 1))
    assert mirror.events == []
    mirror.receive(*news(log, 0, 1))
    assert len(mirror.events) == mirror_module.MAX_EARLY + 1
    assert refetch(mirror, log, len(log.entries))
    assert mirror.events == log.events


def test_news_behind_the_end_are_ignored(write_log: "WriteLog") -> None:
    log = write_log(REQUEST, [[TextDelta("x")]], STOP)
    mirror = Mirror(log.head, 0.0)
    assert mirror.receive(*news(log, 0, len(log.entries)))
    assert mirror.receive(len(log.entries), ["ghost"])
    assert mirror.receive(len(log.entries) - 1, ["ghost", "ghost"])
    assert mirror.events == log.events


def test_followers_are_woken_for_what_is_new_only(write_log: "WriteLog", make_reader: "MakeReader") -> None:
    log = write_log(REQUEST, [[TextDelta("x"), TextDelta("y")]])
    mirror, reader = Mirror(log.head, 0.0), make_reader()
    mirror.attach(-1, reader)
    mirror.receive(*news(log, 0, 3))
    assert reader.wakes == 1
    mirror.receive(*news(log, 0, 2))
    mirror.receive(*news(log, 5, 6))
    assert reader.wakes == 1


@given(attempts=attempts, at=cut)
def test_what_was_lost_ends_with_failed_and_what_it_said(
    write_log: "WriteLog", attempts: Any, at: int
) -> None:
    log = write_log(REQUEST, attempts)
    mirror = Mirror(log.head, 0.0)
    mirror.receive(*news(log, 0, at))
    had: list[Event] = list(mirror.events)
    response = mirror.lose()
    assert mirror.events[: len(had)] == had
    assert mirror.ended
    last = mirror.events[-1]
    assert isinstance(last, ResponseFailed)
    assert last.response == response
    assert response.status is Status.FAILED
    assert response.failure is not None
    assert response.failure.code == "queue_lost"
    said = "".join(event for event in had if isinstance(event, TextDelta))
    assert response.text == said
    assert tuple(event.item for event in mirror.events if isinstance(event, ItemDone)) == response.output
