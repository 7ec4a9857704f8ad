"""Responses that died with their server are found, and nobody else's."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from internal.biz import recovery as recovery_module
from internal.biz.chat import Ask
from internal.biz.errors import Unavailable
from internal.biz.models import Caller, Message, Request, Response, Role, Settings, Status
from internal.biz.recovery import Recovery
from internal.metrics.instruments import Instruments

if TYPE_CHECKING:
    from test.biz.conftest import Server
    from test.conftest import Clock

ADA = Caller("ada")
HELLO = (Message(Role.USER, "hello"),)


class Settled:
    """`away`: nothing can be stored."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self.responses: list[Response] = []
        self.away = False

    async def __call__(self, responses: Sequence[Response]) -> None:
        if self.away:
            raise Unavailable("the storage is away")
        self.responses += responses
        await self._server.history.finish(responses)


@pytest.fixture
def settled(server: "Server") -> Settled:
    return Settled(server)


@pytest.fixture
def recovery(server: "Server", settled: Settled) -> Recovery:
    return Recovery(server.history, server.queue, settled, Instruments(), interval_s=10.0, patience_s=5.0)


async def stored(server: "Server", response_id: str, age_s: float) -> None:
    """A response that an earlier process had accepted."""
    created_at = time.time() - age_s
    request = Request(response_id, "m", "ada", created_at, HELLO, Settings(conversation_id="conv_1"))
    await server.history.begin(request, None, begins=True, wants_title=False)


async def test_what_the_queue_does_not_know_has_failed_and_its_conversation_goes_on(
    server: "Server", recovery: Recovery, settled: Settled
) -> None:
    await stored(server, "resp_lost", age_s=60)
    await recovery.look()
    (lost,) = settled.responses
    assert (lost.id, lost.status, lost.user) == ("resp_lost", Status.FAILED, "ada")
    assert lost.failure is not None
    assert lost.failure.code == "interrupted"
    ask = Ask(HELLO, settings=Settings(conversation_id="conv_1"))
    await server.chat.submit(ADA, ask, "resp_next")
    await recovery.look()
    assert len(settled.responses) == 1


async def test_what_waits_or_runs_is_left_alone_however_old(
    server: "Server", recovery: Recovery, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    for response_id in ("resp_1", "resp_2"):
        await server.chat.submit(ADA, Ask(HELLO), response_id)
    await server.claim()
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    await recovery.look()
    assert settled.responses == []


async def test_what_was_stored_a_moment_ago_may_yet_be_published(
    server: "Server", recovery: Recovery, settled: Settled
) -> None:
    await stored(server, "resp_new", age_s=4)
    await recovery.look()
    assert settled.responses == []


async def test_what_is_older_than_the_queue_has_failed_at_once(server: "Server", settled: Settled) -> None:
    await stored(server, "resp_old", age_s=2)
    await stored(server, "resp_new", age_s=1)
    recovery = Recovery(server.history, server.queue, settled, Instruments(), 10.0, 5.0, time.time() - 1.5)
    await recovery.look()
    assert [one.id for one in settled.responses] == ["resp_old"]


async def test_many_are_found_in_parts(
    server: "Server", recovery: Recovery, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "AT_ONCE", 3)
    for n in range(10):
        await stored(server, f"resp_{n}", age_s=60)
    await recovery.look()
    assert [one.id for one in settled.responses] == [f"resp_{n}" for n in range(10)]


async def test_it_looks_at_once_and_now_and_then_also_when_the_storage_was_away(
    server: "Server", settled: Settled, clock: "Clock", monkeypatch: pytest.MonkeyPatch
) -> None:
    recovery = Recovery(server.history, server.queue, settled, Instruments(), interval_s=10.0, patience_s=5.0)
    unfinished, looks = server.history.unfinished, 0

    async def away_at_first(before: float, after_id: str, limit: int) -> Sequence[Response]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise Unavailable("the storage is away")
        return await unfinished(before, after_id, limit)

    monkeypatch.setattr(server.history, "unfinished", away_at_first)
    await stored(server, "resp_lost", age_s=60)
    running = asyncio.create_task(recovery.run())
    await clock.advance(0)
    assert (looks, settled.responses) == (1, [])
    await clock.advance(recovery_module.AGAIN_S)
    assert [one.id for one in settled.responses] == ["resp_lost"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_end_that_cannot_be_stored_is_stored_when_the_storage_is_back(
    server: "Server", recovery: Recovery, settled: Settled, clock: "Clock"
) -> None:
    running = asyncio.create_task(recovery.run())
    await clock.advance(0)
    settled.away = True
    await recovery.end([refused("resp_1")])
    for _ in range(5):
        await clock.advance(recovery_module.AGAIN_S)
    assert settled.responses == []
    settled.away = False
    await clock.advance(recovery_module.AGAIN_S)
    assert [one.id for one in settled.responses] == ["resp_1"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_so_many_ends_are_kept_and_no_more(
    recovery: Recovery, settled: Settled, clock: "Clock", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "MAX_LATE", 3)
    settled.away = True
    await recovery.end([refused("resp_1"), refused("resp_2")])
    await recovery.end([refused("resp_3"), refused("resp_4")])
    settled.away = False
    running = asyncio.create_task(recovery.run())
    await clock.advance(0)
    assert [one.id for one in settled.responses] == ["resp_1", "resp_2", "resp_3"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def refused(response_id: str) -> Response:
    return Response(response_id, "m", "ada", 0.0, Settings(), Status.FAILED)
