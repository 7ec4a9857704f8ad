"""However often a session is woken, it is written once per tick."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from internal.biz.flusher import Flusher
from internal.biz.ports import Connection

if TYPE_CHECKING:
    from test.biz.conftest import FakeConnection

    Settle = Callable[[], Awaitable[None]]


class Flushable:
    def __init__(self, connection: "FakeConnection", log: list[str], name: str = "") -> None:
        self.connection: Connection = connection
        self.fake = connection
        self.ready: list[bytes] = []
        self.lags = 0
        self._log = log
        self._name = name

    def collect(self) -> bytes:
        self._log.append(self._name)
        ready, self.ready = self.ready, []
        return self.connection.frame(ready) if ready else b""

    def lag(self) -> None:
        self.lags += 1


class Broken(Flushable):
    def collect(self) -> bytes:
        raise RuntimeError("broken")


async def test_a_session_with_eight_ready_chunks_is_written_once(
    connection_type: "type[FakeConnection]", settle: "Settle"
) -> None:
    flusher = Flusher(asyncio.get_running_loop())
    session = Flushable(connection_type(), [])
    flusher.add(session)
    # What arrives in the rest of the tick leaves with it.
    session.ready = [b"%d" % n for n in range(8)]
    await settle()
    assert session.fake.writes == [[b"%d" % n for n in range(8)]]


async def test_a_session_with_nothing_ready_is_not_written(
    connection_type: "type[FakeConnection]", settle: "Settle"
) -> None:
    flusher = Flusher(asyncio.get_running_loop())
    session = Flushable(connection_type(), [])
    flusher.add(session)
    await settle()
    assert session.fake.writes == []


async def test_a_session_can_be_added_again_while_the_list_is_written(
    connection_type: "type[FakeConnection]", settle: "Settle"
) -> None:
    flusher = Flusher(asyncio.get_running_loop())
    log: list[str] = []

    class Eager(Flushable):
        def collect(self) -> bytes:
            if not log:
                flusher.add(self)
            return super().collect()

    session = Eager(connection_type(), log, "eager")
    session.ready = [b"one"]
    flusher.add(session)
    await settle()
    assert log == ["eager", "eager"]


async def test_a_congested_connection_makes_its_session_lag(
    connection_type: "type[FakeConnection]", settle: "Settle"
) -> None:
    flusher = Flusher(asyncio.get_running_loop())
    full, roomy = Flushable(connection_type(), []), Flushable(connection_type(), [])
    full.fake.congest()
    for session in (full, roomy):
        session.ready = [b"x"]
        flusher.add(session)
    await settle()
    assert (full.lags, roomy.lags) == (1, 0)


async def test_a_broken_session_does_not_take_the_text_of_the_others(
    connection_type: "type[FakeConnection]", settle: "Settle", loop_errors: list[dict[str, Any]]
) -> None:
    flusher = Flusher(asyncio.get_running_loop())
    sessions = [Flushable(connection_type(), []) for _ in range(3)]
    sessions[1] = Broken(connection_type(), [])
    for session in sessions:
        session.ready = [b"x"]
        flusher.add(session)
    await settle()
    loop_errors.clear()  # that it is told is right
    assert [len(session.fake.writes) for session in sessions] == [1, 0, 1]
