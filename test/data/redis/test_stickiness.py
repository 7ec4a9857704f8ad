"""A turn goes to the worker that served what it continues, if that one lives, has room, and comes in time."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from internal.biz.models import Request, Settings
from internal.data.redis import queue as queue_module
from internal.data.redis import work_queue as work_queue_module

if TYPE_CHECKING:
    from test.data.redis.conftest import Net, Run, Server, Worker

LONG_S = 60.0
"""Longer than any test takes."""
SHORT_S = 0.15


class Site:
    """A server, and two workers that live and have room for four each."""

    def __init__(self, net: "Net", server: "Server", first: "Worker", second: "Worker") -> None:
        self.net = net
        self.server = server
        self.first = first
        self.second = second

    async def publish(
        self, conversation: str | None = None, *, after: Request | None = None, user: str = "ada"
    ) -> Request:
        """A turn that continues a conversation, or a response, or nothing."""
        previous = None if after is None else after.response_id
        settings = Settings(conversation_id=conversation, previous_response_id=previous)
        return await self.net.publish(self.server, user=user, settings=settings)

    async def serve(self, conversation: str | None = None, *, user: str = "ada") -> Request:
        """The first worker answers a turn."""
        request = await self.publish(conversation, user=user)
        (run,) = await self.first.ask()
        await run.end("x")
        return request

    @property
    def last_key(self) -> str:
        return f"{self.net.base}:last:conv"


async def build_site(net: "Net") -> Site:
    site = Site(net, await net.server(), await net.worker("w1"), await net.worker("w2"))
    for worker in (site.first, site.second):
        await worker.tell_room(4)
    return site


@pytest.fixture
async def site(net: "Net", monkeypatch: pytest.MonkeyPatch) -> Site:
    """Where nobody comes too late for what was left for them, and nobody looks by themselves: who waits for a
    request is told of it."""
    monkeypatch.setattr(queue_module, "LEFT_S", LONG_S)
    monkeypatch.setattr(work_queue_module, "POLL_INTERVAL_S", LONG_S)
    net.options = replace(net.options, lease_s=4 * LONG_S)
    return await build_site(net)


async def wait(worker: "Worker") -> list["Run"]:
    """What there is for it, as soon as there is something."""
    room = worker.consumer.room
    runs = await worker.claim(room)
    worker.consumer.room = room
    return runs


def ids(found: "Sequence[Run | Request]") -> list[str]:
    return [one.response_id for one in found]


# ── who gets it ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["conversation", "chain"])
@pytest.mark.parametrize("asks_first", ["the last worker", "another one"])
async def test_a_turn_goes_to_the_worker_that_served_the_one_before(
    site: Site, way: str, asks_first: str
) -> None:
    conversation = "conv" if way == "conversation" else None
    before = await site.serve(conversation)
    for _ in range(3):
        request = await site.publish(conversation, after=before if way == "chain" else None)
        if asks_first == "another one":
            assert await site.second.ask() == []
        (run,) = await site.first.ask()
        assert run.response_id == request.response_id
        await run.end("y")
        before = request
    assert site.first.meter.counts["same worker"] == 3
    assert site.first.meter.counts["other worker"] == 0


async def test_of_two_workers_that_wait_the_last_one_gets_it_at_once(site: Site) -> None:
    await site.serve("conv")
    other = asyncio.create_task(wait(site.second))
    for _ in range(5):
        mine = asyncio.create_task(wait(site.first))
        request = await site.publish("conv")
        (run,) = await mine
        assert run.response_id == request.response_id
        await run.end("y")
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


@pytest.mark.parametrize("trouble", ["full", "gone", "dead"])
async def test_a_turn_goes_to_another_worker_at_once_when_its_own_cannot_take_it(
    site: Site, trouble: str
) -> None:
    await site.serve("conv")
    match trouble:
        case "full":
            await site.first.tell_room(0)
        case "gone":
            site.first.queue.leave("m", site.first.consumer)
            await site.first.queue.finish()
        case "dead":
            await site.net.redis.zadd(f"{site.net.base}:workers", {"w1": 1})
    request = await site.publish("conv")
    (run,) = await site.second.ask()
    assert run.response_id == request.response_id
    assert site.second.meter.counts["other worker"] == 1
    await run.end("y")
    # From now on the conversation is the other one's.
    await site.first.tell_room(4)
    request = await site.publish("conv")
    assert await site.first.ask() == []
    assert ids(await site.second.ask()) == [request.response_id]


async def test_a_worker_that_becomes_full_is_waited_for_no_longer(site: Site) -> None:
    await site.serve("conv")
    request = await site.publish("conv")
    assert await site.second.ask() == []
    await site.first.tell_room(0)
    assert ids(await site.second.ask()) == [request.response_id]


async def test_a_turn_goes_to_another_worker_when_its_own_does_not_come(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "LEFT_S", SHORT_S)
    await site.serve("conv")
    other = asyncio.create_task(wait(site.second))
    began = time.monotonic()
    request = await site.publish("conv")
    assert ids(await other) == [request.response_id]
    assert time.monotonic() - began > SHORT_S - 0.01
    assert site.second.meter.counts["other worker"] == 1


@pytest.mark.parametrize("way", ["retry", "release"])
async def test_what_a_worker_gave_back_is_not_left_for_it(site: Site, way: str) -> None:
    await site.serve("conv")
    request = await site.publish("conv")
    (run,) = await site.first.ask()
    if way == "retry":
        await site.first.queue.retry(run.delivery, "hiccup")
    else:
        await site.first.queue.release(run.delivery)
    assert ids(await site.second.ask()) == [request.response_id]


async def test_what_a_dead_worker_had_is_taken_over_as_ever_and_the_conversation_with_it(
    net: "Net", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "LEFT_S", LONG_S)
    net.options = replace(net.options, lease_s=SHORT_S)
    site = await build_site(net)
    await site.serve("conv")
    request = await site.publish("conv")
    assert ids(await site.first.ask()) == [request.response_id]
    await site.first.freeze()
    (again,) = await wait(site.second)
    assert (again.response_id, again.attempt) == (request.response_id, 2)
    await again.end("y")
    assert await net.redis.get(site.last_key) == b"w2"


async def test_one_worker_gets_everything_at_once(site: Site) -> None:
    site.second.queue.leave("m", site.second.consumer)
    await site.second.queue.finish()
    await site.net.redis.set(site.last_key, "somebody before it", ex=60)
    request = await site.publish("conv")
    assert ids(await site.first.ask()) == [request.response_id]


# ── what is known of the last worker ─────────────────────────────────────────────────────────────


async def test_what_is_known_of_a_conversation_expires(site: Site) -> None:
    await site.serve("conv")
    assert await site.net.redis.get(site.last_key) == b"w1"
    assert 0 < await site.net.redis.ttl(site.last_key) <= 3600
    await site.net.redis.delete(site.last_key)  # instead of waiting for it
    request = await site.publish("conv")
    assert ids(await site.second.ask()) == [request.response_id]


async def test_a_response_that_is_forgotten_makes_no_worker_the_last(site: Site) -> None:
    before = await site.serve()
    await site.server.queue.forget(before.response_id)
    request = await site.publish(after=before)
    assert ids(await site.second.ask()) == [request.response_id]


async def test_a_server_that_ended_a_response_is_no_worker(site: Site) -> None:
    before = await site.publish()
    await site.server.queue.cancel(before.response_id)
    request = await site.publish(after=before)
    assert ids(await site.second.ask()) == [request.response_id]


# ── turns of others ──────────────────────────────────────────────────────────────────────────────


async def test_who_is_passed_by_stays_first_and_nothing_of_theirs_is_overtaken(site: Site) -> None:
    await site.serve("conv", user="u1")
    mine = [await site.publish("conv", user="u1"), await site.publish(user="u1")]
    others = [await site.publish(user=user) for user in ("u2", "u3", "u2")]
    await site.second.tell_room(1)
    (run,) = await site.second.ask()
    assert run.response_id == others[0].response_id
    assert ids(await site.first.ask()) == ids([mine[0], others[1], others[2], mine[1]])


async def test_several_that_are_passed_by_keep_their_order(site: Site) -> None:
    for number in range(3):
        await site.serve(f"conv{number}", user=f"u{number}")
    requests = [await site.publish(f"conv{number}", user=f"u{number}") for number in range(3)]
    other = await site.publish(user="other")
    assert ids(await site.second.ask()) == [other.response_id]
    assert ids(await site.first.ask()) == ids(requests)


async def test_who_is_passed_by_still_expires(site: Site) -> None:
    await site.serve("conv")
    await site.publish("conv")
    assert await site.second.ask() == []
    for key in ("ring", "line:ada", "waiting"):
        assert await site.net.redis.ttl(f"{site.net.base}:{key}") > 0


async def test_places_in_the_queue_are_told_as_ever(site: Site) -> None:
    await site.serve("conv", user="u1")
    await site.first.tell_room(1)
    await site.second.tell_room(0)
    requests = [
        await site.publish("conv", user="u1"),
        await site.publish(user="u1"),
        await site.publish(user="u2"),
        await site.publish(user="u3"),
    ]

    async def places() -> list[int]:
        found: list[int] = await site.server.link.call("positions", site.net.base, *ids(requests))
        return found

    before = await places()
    assert before == [0, 2, 0, 1]
    assert ids(await site.second.ask()) == [requests[2].response_id]  # who asks gets one
    assert await places() == [0, 1, -1, 0]
    assert (await site.server.queue.backlog("m")).waiting == 3


async def test_no_more_is_left_for_a_worker_than_it_has_room_for(site: Site) -> None:
    for number in range(3):
        await site.serve(f"conv{number}", user=f"u{number}")
    await site.first.tell_room(1)
    requests = [await site.publish(f"conv{number}", user=f"u{number}") for number in range(3)]
    assert ids(await site.second.ask()) == ids(requests[1:])
    assert ids(await site.first.ask()) == ids(requests[:1])


async def test_the_next_one_of_who_was_passed_by_is_told_of_at_once(site: Site) -> None:
    await site.serve("conv")
    left, behind = await site.publish("conv"), await site.publish()
    other = asyncio.create_task(wait(site.second))
    for _ in range(2):
        await asyncio.sleep(0)
    assert site.second.link.calls["claim"] == 1
    assert await site.second.ask() == []  # and so was the task answered, before
    await site.first.tell_room(1)
    assert ids(await site.first.ask()) == [left.response_id]
    assert ids(await other) == [behind.response_id]


async def test_a_request_that_is_left_can_be_cancelled(site: Site) -> None:
    await site.serve("conv")
    request = await site.publish("conv")
    behind = await site.publish()
    assert await site.second.ask() == []
    await site.server.queue.cancel(request.response_id)
    assert ids(await site.second.ask()) == [behind.response_id]


# ── a cluster ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def cluster_net(net: "Net", redis_cluster_url: str) -> AsyncIterator["Net"]:
    """Around a cluster, with scripts that say that they keep to one hash slot, and are held to it."""
    clustered = type(net)(redis_cluster_url, "test", net.make_request)
    version = (await clustered.redis.info("server"))["redis_version"]
    clustered.declares = int(version.split(".")[0]) >= 7
    yield clustered
    await clustered.close()


async def test_all_of_it_keeps_to_one_hash_slot(cluster_net: "Net", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "LEFT_S", LONG_S)
    site = await build_site(cluster_net)
    before = await site.serve("conv")
    requests = [await site.publish("conv"), await site.publish(after=before, user="bob")]
    assert await site.second.ask() == []
    assert ids(await site.first.ask()) == ids(requests)
