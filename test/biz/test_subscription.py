"""Reading a log without a session."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

from internal.biz.events import Event, ResponseCompleted, TextDelta
from internal.biz.log import ResponseLog
from internal.biz.models import Response, Status
from internal.biz.subscription import BYTES_AT_ONCE, EVENTS_AT_ONCE, Reading, Subscription

if TYPE_CHECKING:
    from test.conftest import RequestFactory


def follow(log: ResponseLog, after: int = -1) -> Reading:
    subscription = Subscription()
    return subscription.read(log.attach(after, subscription))


def say(log: ResponseLog, *events: Event) -> None:
    log.append(0, len(log.events), events)


def end(make_request: "RequestFactory") -> Event:
    return ResponseCompleted(Response.of(make_request(), Status.COMPLETED))


async def test_everything_is_read_in_order_and_once(make_request: "RequestFactory") -> None:
    log = ResponseLog("resp_1")
    say(log, TextDelta("a"), TextDelta("b"))
    reading = follow(log)
    assert await anext(reading) == ["a", "b"]
    waiting = asyncio.ensure_future(anext(reading))
    await asyncio.sleep(0)
    say(log, TextDelta("c"))
    assert await waiting == ["c"]
    say(log, last := end(make_request))
    assert [events async for events in reading] == [[last]]
    assert await anext(reading, None) is None


async def test_it_ends_with_the_log_and_lets_go_of_it(make_request: "RequestFactory") -> None:
    log = ResponseLog("resp_1")
    say(log, TextDelta("a"), end(make_request))
    reading = follow(log)
    assert log.cursors
    assert len([event async for events in reading for event in events]) == 2
    assert not log.cursors


async def test_a_log_that_was_read_to_its_end_ends_at_once(make_request: "RequestFactory") -> None:
    log = ResponseLog("resp_1")
    say(log, end(make_request))
    assert [events async for events in follow(log, after=0)] == []
    assert not log.cursors


async def test_who_stops_reading_lets_go() -> None:
    log = ResponseLog("resp_1")
    say(log, TextDelta("a"))
    async with contextlib.aclosing(follow(log)) as reading:
        await anext(reading)
    assert not log.cursors
    await reading.aclose()
    assert await anext(reading, None) is None


async def test_a_wait_that_was_cut_short_loses_nothing() -> None:
    log = ResponseLog("resp_1")
    reading = follow(log)
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await anext(reading)
    waiting = asyncio.ensure_future(anext(reading))
    await asyncio.sleep(0)
    say(log, TextDelta("a"))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await anext(reading) == ["a"]


async def test_a_long_log_is_read_in_pieces(make_request: "RequestFactory") -> None:
    log = ResponseLog("resp_1")
    say(log, *[TextDelta("x")] * (2 * EVENTS_AT_ONCE), *[TextDelta("y" * 1000)] * 200, end(make_request))
    pieces = [events async for events in follow(log)]
    assert len(pieces) > 4
    for events in pieces:
        assert len(events) <= EVENTS_AT_ONCE
        assert sum(len(event) for event in events if isinstance(event, TextDelta)) <= BYTES_AT_ONCE
    assert sum(map(len, pieces)) == len(log.events)


async def test_others_get_their_turn_while_a_long_log_is_read(make_request: "RequestFactory") -> None:
    log = ResponseLog("resp_1")
    say(log, *[TextDelta("y" * BYTES_AT_ONCE)] * 20, end(make_request))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for _ in follow(log):
        pass
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert turns >= 20
