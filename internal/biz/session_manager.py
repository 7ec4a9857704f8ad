"""All sessions of this process: who may come in, what becomes of their responses, how they end."""

import asyncio
import logging
import time
from dataclasses import dataclass

from internal.biz.chat import Chat
from internal.biz.close import CloseCode
from internal.biz.errors import Unavailable
from internal.biz.flusher import Flusher
from internal.biz.heartbeat import Heartbeat
from internal.biz.ids import new_id
from internal.biz.models import Caller
from internal.biz.pause import pause
from internal.biz.ports import Connection, Meter
from internal.biz.session import Codec, Session, SessionLimits
from internal.biz.turnstile import Turnstile

log = logging.getLogger(__name__)

CLOSE_DEADLINE_S = 10.0
"""What no connection should need to end; a shutdown does not wait longer."""
STOP_AGAIN_S = 1.0
"""Between two tries to stop an abandoned response while the queue cannot be reached, at least: nobody could
come back meanwhile."""
_USUAL = (1000, 1001, 1005, 1006, CloseCode.RESTART)
"""Closes that say nothing new: thousands of them a second would drown the others in the log."""


@dataclass(frozen=True, slots=True)
class ManagerLimits:
    """Connections in all and per address, of IPv6 per /64 (0: no limit), and what a disconnect does.

    With `cancel_on_disconnect` a response is stopped `grace_s` after its last follower left; otherwise
    it goes on to its end.
    """

    max_connections: int
    max_connections_per_ip: int
    cancel_on_disconnect: bool
    grace_s: float


class SessionManager:
    """Opens, counts, pings and closes sessions."""

    def __init__(
        self,
        chat: Chat,
        flusher: Flusher,
        heartbeat: Heartbeat,
        meter: Meter,
        limits: ManagerLimits,
        session_limits: SessionLimits,
    ) -> None:
        self._chat = chat
        self._flusher = flusher
        self._heartbeat = heartbeat
        self._meter = meter
        self._limits = limits
        self._session_limits = session_limits
        self._sessions: dict[Session, float] = {}
        self.turnstile = Turnstile(limits.max_connections, limits.max_connections_per_ip)
        self._orphans: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.draining = False

    def __len__(self) -> int:
        return len(self._sessions)

    def open(
        self, caller: Caller, connection: Connection, codec: Codec, conversation_id: str | None = None
    ) -> Session:
        """A session for a new connection, in which every message continues `conversation_id`, if the codec
        says that they do. Raises Unavailable or TooManyRequests."""
        if self.draining:
            raise Unavailable("the server is restarting", code="restarting")
        self.turnstile.enter(connection.remote)
        session = Session(
            new_id("sess"),
            caller,
            connection,
            codec,
            self._chat,
            self._flusher,
            self._session_limits,
            conversation_id,
        )
        self._sessions[session] = time.monotonic()
        self._heartbeat.add(session)
        self._meter.session_opened()
        log.debug("session opened", extra={"session": session.session_id, "remote": connection.remote})
        session.greet()
        return session

    async def close(self, session: Session, code: int) -> None:
        """Forget a session whose connection has ended with `code`."""
        opened_at = self._sessions.pop(session)
        self.turnstile.leave(session.connection.remote)
        for response_id in await session.close():
            self._orphan(response_id)
        self._meter.session_closed(code)
        seconds = time.monotonic() - opened_at
        fields = {
            "session": session.session_id,
            "code": int(code),
            "seconds": round(seconds, 3),
            "responses": session.responses,
        }
        log.log(logging.DEBUG if code in _USUAL else logging.INFO, "session closed", extra=fields)
        if self.draining:
            self._changed.set()

    def _orphan(self, response_id: str) -> None:
        """A response lost a follower: stop it after the grace, unless somebody follows it then."""
        if self._limits.cancel_on_disconnect:
            self._cancel_later(response_id, self._limits.grace_s)

    def _cancel_later(self, response_id: str, delay_s: float) -> None:
        if (earlier := self._orphans.pop(response_id, None)) is not None:
            earlier.cancel()
        loop = asyncio.get_running_loop()
        self._orphans[response_id] = loop.call_later(delay_s, self._cancel_orphan, response_id)

    def _cancel_orphan(self, response_id: str) -> None:
        del self._orphans[response_id]
        task = asyncio.create_task(self._cancel_unfollowed(response_id))
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    async def _cancel_unfollowed(self, response_id: str) -> None:
        try:
            await self._chat.cancel_unfollowed(response_id)
        except Unavailable:
            if response_id not in self._orphans:  # else somebody else has left meanwhile
                self._cancel_later(response_id, max(STOP_AGAIN_S, self._limits.grace_s))

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("could not stop an abandoned response", exc_info=error)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, let running responses finish, then close every session with 1012."""
        self.draining = True
        for session in self._sessions:
            session.drain()
        try:
            async with asyncio.timeout(timeout_s):
                while not all(session.idle for session in self._sessions):
                    # Sessions do not tell when they fall idle; a shutdown can afford to look.
                    self._changed.clear()
                    await pause(self._changed, 0.05)
        except TimeoutError:
            busy = sum(not session.idle for session in self._sessions)
            log.warning("shutdown timeout", extra={"unfinished_sessions": busy})
        await self.close_all(CloseCode.RESTART, "the server is restarting; connect again")

    async def close_all(self, code: CloseCode, reason: str) -> None:
        """Close every session, and wait until they have ended."""
        self.draining = True
        for session in self._sessions:
            session.connection.close(code, reason)
        deadline_s = time.monotonic() + CLOSE_DEADLINE_S
        while self._sessions and time.monotonic() < deadline_s:
            # Each ends within the connection's own close timeout.
            self._changed.clear()
            await pause(self._changed, 1.0)

    async def stop(self) -> None:
        """End the timers and tasks."""
        self._heartbeat.stop()
        for handle in self._orphans.values():
            handle.cancel()
        self._orphans.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
