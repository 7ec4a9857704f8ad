"""The connection to a real Redis, which is treated badly."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio

from internal.biz.errors import SluiceError, Unavailable
from internal.data.redis import link as link_module
from internal.data.redis.link import RedisLink

if TYPE_CHECKING:
    from test.conftest import Eventually, OwnRedis

    Settle = Callable[[], Awaitable[None]]

SOON_S = 1.0
"""What needs no timeout of anybody takes less."""


class Meter:
    errors = 0

    def redis_error(self) -> None:
        self.errors += 1


class Links:
    """Opens links, and ends them behind the test."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.meter = Meter()
        self._running: dict[RedisLink, asyncio.Task[None]] = {}

    def new(self, url: str) -> RedisLink:
        return RedisLink(url, f"{self.prefix}:tick:{len(self._running)}", self.meter)

    def run(self, link: RedisLink) -> None:
        self._running[link] = asyncio.create_task(link.run())

    async def open(self, url: str) -> RedisLink:
        link = self.new(url)
        self.run(link)
        await heard(link)
        return link

    async def end(self, link: RedisLink) -> None:
        """Cancel it; it must end at once, and by nothing else."""
        task = self._running.pop(link)
        task.cancel()
        await asyncio.wait([task], timeout=SOON_S)
        assert task.done(), "not ended by its cancellation"
        assert task.cancelled()

    async def close(self) -> None:
        for link in list(self._running):
            await self.end(link)


async def heard(link: RedisLink) -> None:
    async with asyncio.timeout(5):
        await link.wait_heard()


@pytest.fixture
async def links(watched_loop: None, redis_prefix: str) -> AsyncIterator[Links]:
    links = Links(redis_prefix)
    yield links
    await links.close()


@pytest.fixture
async def own_links(watched_loop: None) -> AsyncIterator[Links]:
    links = Links("own")
    yield links
    await links.close()


@contextlib.asynccontextmanager
async def admin(url: str) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(url) as client:
        yield client


async def clients(url: str, kind: str = "normal") -> list[dict[str, str]]:
    """Our own connections to it."""
    async with admin(url) as client:
        found: list[dict[str, str]] = await client.client_list(_type=kind)
    return [one for one in found if one["name"] == "sluice"]


# ── calls ────────────────────────────────────────────────────────────────────────────────────────


async def test_calls_of_one_tick_share_a_batch(links: Links, redis_url: str, redis_prefix: str) -> None:
    link = await links.open(redis_url)
    trips = 0
    round_trip = link._round_trip

    async def count(batch: list[Any]) -> list[Any]:
        nonlocal trips
        trips += any(call.args[0] == "INCR" for call in batch)
        return await round_trip(batch)

    link._round_trip = count  # type: ignore[method-assign]
    key = f"{redis_prefix}:n"
    replies = await asyncio.gather(*(link.command("INCR", key) for _ in range(300)))
    assert replies == list(range(1, 301))
    assert trips == 2  # a batch holds MAX_BATCH


async def test_a_batch_mixes_scripts_and_commands(links: Links, redis_url: str, redis_prefix: str) -> None:
    link = await links.open(redis_url)
    base = f"{{{redis_prefix}:m}}"
    followers, pong, backlog = await asyncio.gather(
        link.call("followers", base, "resp_unknown"),
        link.command("PING"),
        link.call("backlog", base),
    )
    assert followers is None
    assert pong in (b"PONG", True)
    assert backlog == [0, 0, None, 0]


async def test_a_command_that_redis_refuses_leaves_the_others_of_its_batch_alone(
    links: Links, redis_url: str, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    link = await links.open(redis_url)
    key = f"{redis_prefix}:s"
    await link.command("SET", key, "text")
    bad: object
    good: object
    bad, good = await asyncio.gather(
        link.command("INCR", key), link.command("GET", key), return_exceptions=True
    )
    assert isinstance(bad, Unavailable)
    assert bad.code == "queue_unavailable"
    assert good == b"text"
    assert link.up
    assert links.meter.errors == 1
    assert "refused INCR" in caplog.text


async def test_a_call_that_cannot_be_sent_fails_and_no_later_one_does(
    links: Links, redis_url: str, redis_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    link = await links.open(redis_url)
    with pytest.raises(Unavailable):
        await link.command("GET", "\ud800")
    assert link.up
    assert await link.command("GET", f"{redis_prefix}:x") is None
    assert "a batch cannot be sent" in caplog.text


async def test_scripts_that_redis_forgot_are_loaded_again(
    links: Links, redis_url: str, redis_prefix: str
) -> None:
    link = await links.open(redis_url)
    base = f"{{{redis_prefix}:m}}"
    assert await link.call("backlog", base) == [0, 0, None, 0]
    async with admin(redis_url) as client:
        await client.script_flush()
    replies = await asyncio.gather(*(link.call("backlog", base) for _ in range(3)))
    assert replies == [[0, 0, None, 0]] * 3
    assert links.meter.errors == 0


async def test_a_caller_that_gave_up_harms_nobody(links: Links, redis_url: str, redis_prefix: str) -> None:
    link = await links.open(redis_url)
    callers = [asyncio.create_task(link.command("INCR", f"{redis_prefix}:n")) for _ in range(10)]
    await asyncio.sleep(0)
    for caller in callers[::2]:
        caller.cancel()
    replies = await asyncio.gather(*callers, return_exceptions=True)
    assert [isinstance(reply, asyncio.CancelledError) for reply in replies] == [True, False] * 5
    assert await link.command("GET", f"{redis_prefix}:n") == b"10"


async def test_more_calls_than_may_wait_are_refused(
    links: Links, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MAX_PENDING", 5)
    link = await links.open(redis_url)
    calls = [link.command("INCR", f"{redis_prefix}:n") for _ in range(8)]
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(reply, Unavailable) for reply in replies] == [False] * 5 + [True] * 3
    assert await link.command("GET", f"{redis_prefix}:n") == b"5"


async def test_what_is_posted_happens_some_time_and_is_dropped_when_too_much_waits(
    links: Links,
    redis_url: str,
    redis_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = await links.open(redis_url)
    monkeypatch.setattr(link_module, "MAX_PENDING", 2)
    base = f"{{{redis_prefix}:m}}"
    for number in range(4):
        link.post("publish", base, f"r{number}", "ada", 0, "{}", "{}", "node", 0)
    monkeypatch.undo()
    published = [await link.command("EXISTS", f"{base}:meta:r{number}") for number in range(4)]
    assert published == [1, 1, 0, 0]


# ── life ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_address_that_is_none_is_an_error() -> None:
    with pytest.raises(SluiceError, match=r"queue\.url"):
        RedisLink("http://example.org", "tick", Meter())


async def test_a_wrong_password_is_an_error_at_once(own_redis: "OwnRedis") -> None:
    async with admin(own_redis.url) as client:
        await client.config_set("requirepass", "right")
    for wrong in (own_redis.url, own_redis.url.replace("redis://", "redis://:wrong@")):
        with pytest.raises(SluiceError, match="login") as error:
            await RedisLink(wrong, "tick", Meter()).connect()
        assert not isinstance(error.value, Unavailable)
        assert "wrong" not in error.value.message


async def test_too_old_a_redis_is_an_error_at_once(
    links: Links, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "OLDEST_VERSION", (999, 0))
    with pytest.raises(SluiceError, match=r"999|too old"):
        await links.new(redis_url).connect()


async def test_a_redis_that_is_away_at_the_start_is_waited_for(
    own_links: Links, own_redis: "OwnRedis"
) -> None:
    await own_redis.stop()
    link = own_links.new(own_redis.url)
    await link.connect()
    assert not link.up
    own_links.run(link)
    with pytest.raises(Unavailable) as error:
        await link.command("PING")
    assert error.value.code == "queue_unavailable"
    assert error.value.retryable
    await own_redis.start()
    await heard(link)
    await link.command("PING")


async def test_calls_fail_at_once_while_redis_is_away_and_work_when_it_is_back(
    own_links: Links, own_redis: "OwnRedis", eventually: "Eventually"
) -> None:
    link = own_links.new(own_redis.url)
    came_up: list[bool] = []
    link.on_up.append(lambda: came_up.append(link.up))
    own_links.run(link)
    await heard(link)
    assert came_up == [True]
    await own_redis.kill()
    started = time.monotonic()
    for _ in range(20):
        with pytest.raises(Unavailable):
            await link.command("PING")
    link.post("leave", "{x}", "y")  # goes nowhere, and harms nobody
    assert time.monotonic() - started < SOON_S
    assert not link.up
    await own_redis.start()
    await heard(link)
    await link.command("PING")

    async def told() -> bool:
        return came_up == [True, True]

    await eventually(told)


async def test_on_up_is_called_once_the_channels_are_heard(own_links: Links, own_redis: "OwnRedis") -> None:
    """Who looks for itself before that misses what comes between."""
    link = own_links.new(own_redis.url)
    messages: list[bytes] = []
    published: list[asyncio.Future[Any]] = []
    arrived = asyncio.Event()

    def hear(message: bytes) -> None:
        messages.append(message)
        arrived.set()

    link.subscribe("news", hear)
    link.on_up.append(
        lambda: published.append(asyncio.ensure_future(link.command("PUBLISH", "news", len(published))))
    )
    own_links.run(link)
    for number in range(3):
        async with asyncio.timeout(5):
            await arrived.wait()
        arrived.clear()
        assert messages == [str(n).encode() for n in range(number + 1)]
        if number < 2:
            await own_redis.restart()
    await asyncio.gather(*published)


async def test_a_connection_for_channels_that_is_killed_is_made_anew(
    links: Links, redis_url: str, eventually: "Eventually"
) -> None:
    link = links.new(redis_url)
    messages: list[bytes] = []
    ups: list[None] = []
    channel = f"{links.prefix}:news"
    link.subscribe(channel, messages.append)
    link.on_up.append(lambda: ups.append(None))
    links.run(link)
    await heard(link)
    async with admin(redis_url) as client:
        for one in await clients(redis_url, "pubsub"):
            await client.client_kill_filter(_id=one["id"])

        async def again() -> bool:
            return len(ups) == 2

        await eventually(again)
        await client.publish(channel, "after")
    assert link.up

    async def arrived() -> bool:
        return messages == [b"after"]

    await eventually(arrived)


async def test_a_connection_on_which_nothing_comes_is_made_anew(
    links: Links, redis_url: str, monkeypatch: pytest.MonkeyPatch, eventually: "Eventually"
) -> None:
    """As behind a firewall that forgot it. Our own messages, which come back, keep another one."""
    monkeypatch.setattr(link_module, "TICK_INTERVAL_S", 0.02)
    monkeypatch.setattr(link_module, "DEAF_S", 0.6)
    link = links.new(redis_url)
    ups: list[None] = []
    link.on_up.append(lambda: ups.append(None))
    links.run(link)
    await heard(link)
    await asyncio.sleep(0.8)
    assert len(ups) == 1
    ticked, link._tick_channel = link._tick_channel, "elsewhere"

    async def again() -> bool:
        return len(ups) == 2

    await eventually(again)
    link._tick_channel = ticked


async def test_junk_on_a_channel_harms_nobody(
    links: Links, redis_url: str, eventually: "Eventually", caplog: pytest.LogCaptureFixture
) -> None:
    link = links.new(redis_url)
    numbers: list[int] = []
    channel = f"{links.prefix}:numbers"
    link.subscribe(channel, lambda message: numbers.append(int(message)))
    links.run(link)
    await heard(link)
    async with admin(redis_url) as client:
        for message in (b"1", b"\xff\x00", b"", b"seven", b"2"):
            await client.publish(channel, message)

    async def both() -> bool:
        return numbers == [1, 2]

    await eventually(both)
    assert caplog.text.count("a message could not be read") == 3


async def test_a_redis_that_hangs_is_away_until_it_goes_on(
    own_links: Links, own_redis: "OwnRedis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "TIMEOUT_S", 0.4)
    link = await own_links.open(own_redis.url)
    await link.command("SET", "n", 0)
    await own_redis.pause()
    started = time.monotonic()
    replies = await asyncio.gather(*(link.command("INCR", "n") for _ in range(3)), return_exceptions=True)
    assert all(isinstance(reply, Unavailable) for reply in replies)
    assert 0.3 < time.monotonic() - started < SOON_S
    for _ in range(3):
        with pytest.raises(Unavailable):
            await link.command("INCR", "n")  # at once
        await asyncio.sleep(0.2)  # it is probed meanwhile
    assert not link.up
    await own_redis.resume()
    await heard(link)
    assert 0 <= int(await link.command("GET", "n")) <= 3


async def test_a_redis_that_hangs_does_not_hold_up_the_end(own_links: Links, own_redis: "OwnRedis") -> None:
    link = own_links.new(own_redis.url)
    own_links.run(link)
    await heard(link)
    await own_redis.pause()
    caller = asyncio.create_task(link.command("PING"))
    await asyncio.sleep(0.05)
    await own_links.end(link)
    with pytest.raises(Unavailable):
        await caller


@pytest.mark.parametrize("busy", [False, True])
async def test_it_ends_when_cancelled_at_whatever_moment(
    links: Links, redis_url: str, redis_prefix: str, busy: bool
) -> None:
    """A cancellation may come in the very tick in which something else has ended."""
    for ticks in range(60):
        link = links.new(redis_url)
        links.run(link)
        callers: list[asyncio.Task[Any]] = []
        if busy:
            await heard(link)
            callers = [asyncio.create_task(link.command("INCR", f"{redis_prefix}:n")) for _ in range(3)]
        for _ in range(ticks):
            await asyncio.sleep(0)
        await links.end(link)
        async with asyncio.timeout(SOON_S):
            replies = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(reply, (int, Unavailable)) for reply in replies)
        with pytest.raises(Unavailable):
            await link.command("PING")


async def test_it_leaves_no_connection(
    own_links: Links, own_redis: "OwnRedis", eventually: "Eventually"
) -> None:
    link = own_links.new(own_redis.url)
    own_links.run(link)
    await heard(link)
    await asyncio.gather(*(link.command("PING") for _ in range(10)))
    assert len(await clients(own_redis.url)) == 1
    assert len(await clients(own_redis.url, "pubsub")) == 1
    await own_links.end(link)

    async def none() -> bool:
        return not await clients(own_redis.url) and not await clients(own_redis.url, "pubsub")

    await eventually(none)
