"""The connection of one process to Redis: scripts in batches, channels, and whether Redis can be reached.

Knows Redis, not what is kept in it. Every failure becomes Unavailable.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import redis.asyncio as redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.maint_notifications import MaintNotificationsConfig

from internal.biz.errors import SluiceError, Unavailable

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
TIMEOUT_S = 2.0
"""How long Redis may take for a batch before it counts as away."""
PROBE_INTERVAL_S = 0.25
TICK_INTERVAL_S = 2.0
DEAF_S = 8.0
"""A connection for channels is dead when none of our own messages came back for so long."""
MESSAGES_PER_TURN = 16
MAX_PENDING = 10_000
"""Calls that may wait while a batch is under way; more are refused."""
MAX_BATCH = 256
OLDEST_VERSION = (6, 2)

_SCRIPTS = Path(__file__).parent / "lua"
_AWAY = "the queue cannot be reached; try again in a moment"
# Not in Redis's words: they may quote a part of the password.
_NO_URL = (
    "queue.url cannot be used: a port that is none, an unknown option behind its ?, or a password in which "
    "/ ? # @ % are not written as %2F %3F %23 %40 %25"
)


class Unanswered(Unavailable):
    """A call was sent, and no answer came: it may have been carried out all the same."""

    default_code = "unanswered"


class LinkMeter(Protocol):
    def redis_error(self) -> None: ...


class RedisLink:
    """`run` owns the connections; while Redis is away every call fails at once."""

    def __init__(self, url: str, tick_channel: str, meter: LinkMeter) -> None:
        """`tick_channel`: a channel of this process alone. Raises SluiceError when `url` is none."""
        try:
            self._client = redis.Redis.from_url(
                url,
                protocol=2,
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                # Time is kept here: redis-py keeps it with asyncio.wait_for, which in Python 3.11 may swallow
                # the cancellation of whoever waits for it.
                socket_timeout=None,
                # The callers know better what may run twice.
                retry=Retry(NoBackoff(), 0),
                max_connections=8,
                client_name="sluice",
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
            )
            # Looks at the options behind its ?; does not connect.
            self._client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, RedisError):
            raise SluiceError(_NO_URL) from None
        self._meter = meter
        common = (_SCRIPTS / "common.lua").read_text()
        self._sources = {
            path.stem: common + path.read_text() for path in _SCRIPTS.glob("*.lua") if path.stem != "common"
        }
        self._hashes: dict[str, str] = {}
        self._pending: list[_Call] = []
        self._news = asyncio.Event()
        self._up = asyncio.Event()
        self._was_up = False
        self._back_at_s = float("-inf")
        """When Redis came back the last time that it had been away, on this process's clock."""
        self._listening = asyncio.Event()
        self._channels: dict[bytes, Callable[[bytes], None]] = {}
        self._tick_channel = tick_channel
        self._deaf: asyncio.Timeout | None = None
        """Ends the connection for channels, unless we hear ourselves now and then."""
        self.subscribe(tick_channel, self._ticked)
        self.on_up: list[Callable[[], None]] = []
        """Called when Redis has come, or come back, and the channels are heard again."""

    @property
    def up(self) -> bool:
        """Whether Redis could be reached last."""
        return self._up.is_set()

    @property
    def back_for_s(self) -> float:
        """For how long Redis is back since it was away the last time; infinite when it never was."""
        return time.monotonic() - self._back_at_s

    async def wait_heard(self) -> None:
        """Return when Redis is there and the channels are heard."""
        await self._up.wait()
        await self._listening.wait()

    # ── calls ────────────────────────────────────────────────────────────────────────────────────

    async def call(self, script: str, base: str, *args: Any) -> Any:
        """Run a script on the keys of `base`. Raises Unavailable; then it may have run all the same."""
        return await self._submit(_Call(script, base, args))

    async def command(self, *args: Any) -> Any:
        """Run a plain command. Raises Unavailable."""
        return await self._submit(_Call("", "", args))

    def post(self, script: str, base: str, *args: Any) -> None:
        """Run a script, some time; whether it did is not told."""
        if self.up and len(self._pending) < MAX_PENDING:
            self._pending.append(_Call(script, base, args))
            self._news.set()

    async def _submit(self, call: "_Call") -> Any:
        if not self.up or len(self._pending) >= MAX_PENDING:
            raise Unavailable(_AWAY, code="queue_unavailable")
        call.reply = asyncio.get_running_loop().create_future()
        self._pending.append(call)
        self._news.set()
        return await call.reply

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    async def connect(self) -> None:
        """Try once whether Redis can be reached. Raises SluiceError when it never will be: a wrong password,
        or too old a version."""
        try:
            await self.reach()
        except Unavailable as error:
            log.warning(error.message)

    async def reach(self) -> None:
        """As `connect`, but also raises Unavailable, with the reason, when Redis cannot be reached now."""
        try:
            await self._probe()
        except AuthenticationError as error:
            raise SluiceError(f"queue.url: Redis refuses the login: {error}") from error
        except (RedisError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"Redis cannot be reached: {reason}", code="queue_unavailable") from error
        except SluiceError:
            await self._client.aclose()
            raise

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_up())
                tasks.create_task(self._send())
                tasks.create_task(self._listen())
                tasks.create_task(self._tick())
        finally:
            self._go_down(None)
            await self._client.aclose()

    async def _keep_up(self) -> None:
        """Probe while Redis is away."""
        while True:
            if not self.up:
                try:
                    await self._probe()
                except (RedisError, OSError) as error:
                    log.debug("Redis is away: %s", error)
                except SluiceError as error:
                    log.error(error.message)  # it says all there is to say
                _end_if_cancelled()
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _probe(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            info = await self._client.info("server")
            await self._require_primary()
            version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
            if version < OLDEST_VERSION:
                raise SluiceError(f"Redis {info['redis_version']} is too old; 6.2 is the oldest that works")
            for name, source in self._sources.items():
                self._hashes[name] = str(await self._client.script_load(source))
        _end_if_cancelled()
        if not self.up:
            log.info("connected to Redis %s", info["redis_version"])
            if self._was_up:
                self._back_at_s = time.monotonic()
            self._was_up = True
            self._up.set()
            if self._listening.is_set():
                self._came_up()

    async def _require_primary(self) -> None:
        if (await self._client.info("replication"))["role"] != "master":
            # The name may lead to another server by now: it is only asked for with a new connection.
            await self._client.connection_pool.disconnect()
            raise ConnectionError("it is a replica, which only reads")

    def _came_up(self) -> None:
        for call in self.on_up:
            call()

    def _go_down(self, error: Exception | None) -> None:
        if error is not None:
            self._meter.redis_error()
            if self.up:
                log.error("Redis is away: %s", str(error) or type(error).__name__)
        self._up.clear()
        calls, self._pending = self._pending, []
        for call in calls:
            call.fail(_AWAY)

    # ── batches ──────────────────────────────────────────────────────────────────────────────────

    async def _send(self) -> None:
        """Send what was called since the last batch, as one batch: a command of its own costs about as much
        as twenty in a batch."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._pending:
                batch, self._pending = self._pending[:MAX_BATCH], self._pending[MAX_BATCH:]
                try:
                    await self._execute(batch)
                except (RedisError, OSError, SluiceError) as error:
                    self._go_down(error)
                except Exception:
                    log.exception("a batch cannot be sent")  # as with half of a surrogate pair in it
                finally:
                    for call in batch:
                        call.fail(_AWAY)  # those that have no answer
                _end_if_cancelled()

    async def _execute(self, batch: "list[_Call]") -> None:
        forgotten: list[_Call] = []
        for call, reply in zip(batch, await self._round_trip(batch), strict=True):
            if isinstance(reply, ReadOnlyError):
                raise reply  # it was made a replica
            if isinstance(reply, NoScriptError):
                forgotten.append(call)
            else:
                self._settle(call, reply)
        if forgotten:  # Redis was restarted, or its scripts flushed
            await self._probe()
            for call, reply in zip(forgotten, await self._round_trip(forgotten), strict=True):
                self._settle(call, reply)

    async def _round_trip(self, batch: "list[_Call]") -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for call in batch:
            call.sent = True
            if call.script:
                pipeline.execute_command("EVALSHA", self._hashes[call.script], 1, call.base, *call.args)
            else:
                pipeline.execute_command(*call.args)
        async with asyncio.timeout(TIMEOUT_S):
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        _end_if_cancelled()
        return replies

    def _settle(self, call: "_Call", reply: Any) -> None:
        if isinstance(reply, ResponseError):
            # Out of memory, loading, read-only after a failover: it may get better.
            log.error("Redis refused %s: %s", call.script or call.args[0], reply)
            self._meter.redis_error()
            call.fail(_AWAY)
        elif call.reply is not None and not call.reply.done():
            call.reply.set_result(reply)

    # ── channels ─────────────────────────────────────────────────────────────────────────────────

    def subscribe(self, channel: str, heard: Callable[[bytes], None]) -> None:
        """Call `heard` with every message of `channel`; to be said before `run`.

        Messages may be lost while Redis is away: `on_up` tells when to look for oneself.
        """
        self._channels[channel.encode()] = heard

    async def _listen(self) -> None:
        told = False
        while True:
            await self._up.wait()
            try:
                # Long enough for a connection and its first words.
                async with asyncio.timeout(TIMEOUT_S) as self._deaf, self._client.pubsub() as pubsub:
                    await pubsub.subscribe(*self._channels)
                    _end_if_cancelled()
                    await self._hear(pubsub)
            except ResponseError as error:
                if not told:
                    log.error("Redis refuses the channels: %s", error)
                told = True
            except (RedisError, OSError) as error:
                log.debug("channels are interrupted: %s", error)
            finally:
                self._deaf = None
                self._listening.clear()
            _end_if_cancelled()
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _hear(self, pubsub: PubSub) -> None:
        waiting = set(self._channels)
        heard = 0
        while True:
            heard += 1
            if heard % MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)  # while there is more to read, nothing else would get a turn
            message = await pubsub.get_message(timeout=None)
            if message is None:
                continue
            if message["type"] == "message":
                self._tell(message["channel"], message["data"])
            elif message["type"] == "subscribe" and waiting:
                waiting.discard(message["channel"])
                if not waiting:
                    self._ticked(b"")
                    self._listening.set()
                    if self.up:
                        self._came_up()

    def _tell(self, channel: bytes, message: bytes) -> None:
        try:
            self._channels[channel](message)
        except Exception:
            # Anybody who reaches this Redis may publish anything; the logs tell the truth.
            log.exception("a message could not be read", extra={"channel": channel.decode()})

    def _ticked(self, message: bytes) -> None:
        if self._deaf is not None:
            self._deaf.reschedule(asyncio.get_running_loop().time() + DEAF_S)

    async def _tick(self) -> None:
        """Hear ourselves now and then: a connection on which nothing comes may be dead."""
        while True:
            await asyncio.sleep(TICK_INTERVAL_S)
            if self.up and self._listening.is_set():
                try:
                    await self.command("PUBLISH", self._tick_channel, b"")
                except Unavailable:
                    continue


def _end_if_cancelled() -> None:
    """To be called after the client was awaited: before Python 3.12 `asyncio.wait_for`, by which it sends,
    swallows a cancellation that comes while it is about to return."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class _Call:
    """A script, or a plain command when `script` is empty."""

    __slots__ = ("args", "base", "reply", "script", "sent")

    def __init__(self, script: str, base: str, args: tuple[Any, ...]) -> None:
        self.script = script
        self.base = base
        self.args = args
        self.reply: asyncio.Future[Any] | None = None
        self.sent = False

    def fail(self, message: str) -> None:
        if self.reply is not None and not self.reply.done():
            kind = Unanswered if self.sent else Unavailable
            self.reply.set_exception(kind(message, code="queue_unavailable"))
            self.reply.exception()  # who waited may be cancelled by now, and nobody see it
