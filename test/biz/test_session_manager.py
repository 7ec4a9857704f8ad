"""Who may come in, what becomes of the responses of those who leave, and how all of it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from internal.biz.chat import Ask
from internal.biz.close import CloseCode
from internal.biz.commands import Create, Resume
from internal.biz.errors import TooManyRequests, Unavailable
from internal.biz.generation import FinishReason
from internal.biz.heartbeat import Heartbeat
from internal.biz.models import Caller, Message, Role
from internal.biz.session import Session, SessionLimits
from internal.biz.session_manager import ManagerLimits, SessionManager

if TYPE_CHECKING:
    from test.biz.conftest import FakeCodec, FakeConnection, FakeMeter, Server
    from test.conftest import Clock

    Settle = Callable[[], Awaitable[None]]


class Door:
    """A manager, and the clients that come and go."""

    def __init__(
        self,
        server: "Server",
        meter: "FakeMeter",
        connection_type: "type[FakeConnection]",
        codec_type: "type[FakeCodec]",
    ) -> None:
        self.server = server
        self.meter = meter
        self._connection_type = connection_type
        self._codec_type = codec_type
        self.manager = self.build()
        self._managers = [self.manager]

    def build(
        self,
        *,
        max_connections: int = 0,
        per_ip: int = 0,
        cancel: bool = True,
        grace_s: float = 10.0,
    ) -> SessionManager:
        loop = asyncio.get_running_loop()
        self.manager = SessionManager(
            self.server.chat,
            self.server.flusher,
            Heartbeat(loop, 27, 30),
            self.meter,
            ManagerLimits(max_connections, per_ip, cancel, grace_s),
            SessionLimits(8, 0.0),
        )
        return self.manager

    def come(self, remote: str = "192.0.2.1") -> "Guest":
        connection, codec = self._connection_type(remote), self._codec_type()
        return Guest(self.manager, self.manager.open(Caller("guest"), connection, codec), connection, codec)


class Guest:
    def __init__(
        self, manager: SessionManager, session: Session, connection: "FakeConnection", codec: "FakeCodec"
    ) -> None:
        self.session = session
        self.connection = connection
        self._manager = manager
        self._codec = codec

    async def ask(self) -> None:
        await self.session.receive(self._codec.frame(Create(Ask((Message(Role.USER, "hello"),)))))

    async def resume(self, response_id: str) -> None:
        await self.session.receive(self._codec.frame(Resume(response_id)))

    async def leave(self, code: int = 1000) -> None:
        await self._manager.close(self.session, code)


@pytest.fixture
async def door(
    server: "Server",
    meter: "FakeMeter",
    connection_type: "type[FakeConnection]",
    codec_type: "type[FakeCodec]",
) -> AsyncIterator[Door]:
    door = Door(server, meter, connection_type, codec_type)
    yield door
    for session in list(door.manager._sessions):
        await door.manager.close(session, 1001)
    await door.manager.stop()


async def test_sessions_are_counted(door: Door) -> None:
    guests = [door.come(), door.come()]
    assert len(door.manager) == 2
    await guests[0].leave(1000)
    await guests[1].leave(4408)
    assert len(door.manager) == 0
    assert door.meter.opened == 2
    assert door.meter.closed == [1000, 4408]


async def test_more_connections_than_allowed_are_kept_out(door: Door) -> None:
    door.build(max_connections=2)
    guests = [door.come("192.0.2.1"), door.come("192.0.2.2")]
    with pytest.raises(Unavailable):
        door.come("192.0.2.3")
    await guests[0].leave()
    door.come("192.0.2.3")
    assert len(door.manager) == 2


async def test_more_connections_of_one_address_than_allowed_are_kept_out(door: Door) -> None:
    door.build(per_ip=1)
    guest = door.come("192.0.2.1")
    with pytest.raises(TooManyRequests):
        door.come("192.0.2.1")
    door.come("192.0.2.2")
    await guest.leave()
    door.come("192.0.2.1")


async def test_the_addresses_of_an_ipv6_network_count_as_one(door: Door) -> None:
    door.build(per_ip=1)
    guest = door.come("2001:db8::1")
    with pytest.raises(TooManyRequests):
        door.come("2001:db8::ffff")
    door.come("2001:db8:0:1::1")
    await guest.leave()
    door.come("2001:db8::2")


async def test_no_limit_lets_all_in(door: Door) -> None:
    for _ in range(100):
        door.come()
    assert len(door.manager) == 100


async def test_an_abandoned_response_is_stopped_after_the_grace(door: Door, clock: "Clock") -> None:
    guest = door.come()
    await guest.ask()
    run = await door.server.claim()
    await guest.leave(1006)
    await clock.advance(9.9)
    assert door.server.revoked == []
    await clock.advance(0.2)
    assert door.server.revoked == [run.id]


async def test_a_waiting_request_that_was_abandoned_leaves_the_queue(door: Door, clock: "Clock") -> None:
    guest = door.come()
    await guest.ask()
    await guest.leave(1006)
    await clock.advance(10.1)
    assert await door.server.waiting() == 0


async def test_a_response_that_somebody_follows_again_goes_on(door: Door, clock: "Clock") -> None:
    guest = door.come()
    await guest.ask()
    run = await door.server.claim()
    await guest.leave(1006)
    await clock.advance(5)
    again = door.come()
    await again.resume(run.id)
    await clock.advance(100)
    assert door.server.revoked == []
    await run.say("still here")
    await clock.advance(0)
    assert b"still here" in b"".join(again.connection.payloads)


async def test_a_response_that_somebody_else_follows_goes_on(door: Door, clock: "Clock") -> None:
    guest, other = door.come(), door.come()
    await guest.ask()
    run = await door.server.claim()
    await other.resume(run.id)
    await guest.leave(1006)
    await clock.advance(100)
    assert door.server.revoked == []
    await other.leave(1006)
    await clock.advance(10.1)
    assert door.server.revoked == [run.id]


async def test_the_grace_begins_anew_when_the_last_follower_leaves_again(door: Door, clock: "Clock") -> None:
    guest = door.come()
    await guest.ask()
    run = await door.server.claim()
    await guest.leave(1006)
    await clock.advance(5)
    again = door.come()
    await again.resume(run.id)
    await clock.advance(4)
    await again.leave(1006)
    await clock.advance(9.9)
    assert door.server.revoked == []
    await clock.advance(0.2)
    assert door.server.revoked == [run.id]


async def test_an_abandoned_response_is_stopped_when_the_queue_is_back(
    door: Door, clock: "Clock", monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(response_id: str) -> int:
        raise Unavailable("the queue is away", code="queue_unavailable")

    guest = door.come()
    await guest.ask()
    run = await door.server.claim()
    await guest.leave(1006)
    with monkeypatch.context() as patch:
        patch.setattr(door.server.queue, "followers", away)
        for _ in range(15):
            await clock.advance(1)
        assert door.server.revoked == []
    await clock.advance(10.1)  # nobody could come back while the queue was away: they get the grace anew
    assert door.server.revoked == [run.id]


async def test_a_response_that_ended_meanwhile_is_left_alone(door: Door, clock: "Clock") -> None:
    guest = door.come()
    await guest.ask()
    run = await door.server.claim()
    await guest.leave(1006)
    await run.finish()
    await clock.advance(10.1)
    assert door.server.revoked == []


async def test_a_server_that_continues_stops_nothing(door: Door, clock: "Clock") -> None:
    door.build(cancel=False)
    guest = door.come()
    await guest.ask()
    run = await door.server.claim()
    await guest.leave(1006)
    await clock.advance(1000)
    assert door.server.revoked == []
    assert (await run.finish(FinishReason.STOP)).id == run.id


async def test_draining_takes_nothing_new_and_waits_for_what_runs(door: Door, settle: "Settle") -> None:
    busy, idle = door.come(), door.come()
    await busy.ask()
    run = await door.server.claim()
    draining = asyncio.create_task(door.manager.drain(30))
    await settle()
    with pytest.raises(Unavailable) as error:
        door.come()
    assert error.value.code == "restarting"
    assert idle.connection.closed_with is None
    await run.finish()
    async with asyncio.timeout(5):
        while busy.connection.closed_with is None:  # noqa: ASYNC110  # the drain looks now and then
            await asyncio.sleep(0.005)
    for guest in (busy, idle):
        assert guest.connection.closed_with is not None
        assert guest.connection.closed_with[0] == CloseCode.RESTART
        assert not draining.done()
        await guest.leave(1012)
    async with asyncio.timeout(5):
        await draining


async def test_draining_does_not_wait_longer_than_it_may(door: Door, clock: "Clock") -> None:
    guest = door.come()
    await guest.ask()
    await door.server.claim()
    draining = asyncio.create_task(door.manager.drain(30))
    await clock.advance(0)
    assert guest.connection.closed_with is None
    await clock.advance(29.9)
    await clock.advance(0.2)
    assert guest.connection.closed_with is not None
    await guest.leave(1012)
    async with asyncio.timeout(5):
        await draining


async def test_stop_ends_the_timers_of_abandoned_responses(door: Door, clock: "Clock") -> None:
    guest = door.come()
    await guest.ask()
    await door.server.claim()
    await guest.leave(1006)
    await door.manager.stop()
    await clock.advance(100)
    assert door.server.revoked == []


async def test_a_guest_that_does_not_answer_is_dropped(door: Door, clock: "Clock") -> None:
    guest = door.come()
    await clock.advance(27.1)
    assert guest.connection.pings == 1
    await clock.advance(30.1)
    assert guest.connection.aborted


async def test_a_guest_that_answers_stays(door: Door, clock: "Clock") -> None:
    guest = door.come()
    for _ in range(4):
        await clock.advance(27.1)
        guest.session.pong()
    assert guest.connection.pings == 4
    assert not guest.connection.aborted
