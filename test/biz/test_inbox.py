"""From an engine's thread to the event loop, step by step."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from internal.biz.errors import EngineLost
from internal.biz.events import TextDelta
from internal.biz.generation import Chunk, Job
from internal.biz.inbox import StepInbox
from internal.biz.models import Settings

Settle = Callable[[], Awaitable[None]]
JOB = Job("resp_1", (), Settings())


def step(*words: str) -> list[Chunk]:
    return [(JOB, TextDelta(word)) for word in words]


def words(chunks: list[Chunk]) -> list[str]:
    return [str(output) for _, output in chunks]


async def take(inbox: StepInbox) -> list[str]:
    async with asyncio.timeout(5):
        return words(await inbox.take())


async def test_a_step_arrives_from_another_thread() -> None:
    inbox = StepInbox(asyncio.get_running_loop())
    taking = asyncio.create_task(take(inbox))
    await asyncio.sleep(0)
    await asyncio.to_thread(inbox.put, step("a", "b"))
    assert await taking == ["a", "b"]


async def test_steps_that_arrive_while_the_loop_is_busy_are_handed_over_together() -> None:
    inbox = StepInbox(asyncio.get_running_loop())
    for word in ("a", "b", "c"):
        inbox.put(step(word))
    assert await take(inbox) == ["a", "b", "c"]


async def test_nothing_is_lost_and_order_is_kept_with_many_threads() -> None:
    inbox = StepInbox(asyncio.get_running_loop(), max_chunks=16)

    def engine(name: str) -> None:
        for number in range(200):
            inbox.put(step(f"{name}{number}"))

    threads = [threading.Thread(target=engine, args=(name,)) for name in "abc"]
    for thread in threads:
        await asyncio.to_thread(thread.start)
    got: list[str] = []
    while len(got) < 600:
        got += await take(inbox)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    for name in "abc":
        assert [word for word in got if word[0] == name] == [f"{name}{n}" for n in range(200)]


async def test_a_full_inbox_blocks_the_engine_until_the_loop_has_caught_up() -> None:
    inbox = StepInbox(asyncio.get_running_loop(), max_chunks=2)
    inbox.put(step("a", "b", "c"))  # a step is never cut
    before, behind = threading.Event(), threading.Event()

    def engine() -> None:
        before.set()
        inbox.put(step("d"))
        behind.set()

    thread = threading.Thread(target=engine)
    await asyncio.to_thread(thread.start)
    await asyncio.to_thread(before.wait, 5)
    assert not behind.is_set()
    assert await take(inbox) == ["a", "b", "c"]
    assert await asyncio.to_thread(behind.wait, 5)
    assert await take(inbox) == ["d"]
    await asyncio.to_thread(thread.join)


async def test_close_lets_a_blocked_engine_go_and_drops_what_it_says() -> None:
    inbox = StepInbox(asyncio.get_running_loop(), max_chunks=1)
    inbox.put(step("a"))
    thread = threading.Thread(target=inbox.put, args=(step("b"),))
    await asyncio.to_thread(thread.start)
    inbox.close()
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()
    inbox.put(step("c"))
    assert await take(inbox) == ["a"]


async def test_who_writes_on_the_loop_never_blocks_it_and_waits_for_room(settle: Settle) -> None:
    inbox = StepInbox(asyncio.get_running_loop(), max_chunks=2)
    await inbox.room()
    assert not inbox.give(step("a"))
    assert inbox.give(step("b", "c"))
    assert inbox.give(step("d"))
    waiting = [asyncio.create_task(inbox.room()) for _ in range(2)]
    await settle()
    assert not any(task.done() for task in waiting)
    assert await take(inbox) == ["a", "b", "c", "d"]
    await asyncio.gather(*waiting)


async def test_close_lets_those_go_who_wait_for_room(settle: Settle) -> None:
    inbox = StepInbox(asyncio.get_running_loop(), max_chunks=1)
    inbox.give(step("a"))
    waiting = asyncio.create_task(inbox.room())
    await settle()
    inbox.close()
    await waiting
    inbox.give(step("b"))
    assert await take(inbox) == ["a"]


async def test_a_cancelled_take_loses_nothing(settle: Settle) -> None:
    inbox = StepInbox(asyncio.get_running_loop())
    taking = asyncio.create_task(inbox.take())
    await settle()
    inbox.put(step("a"))
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    inbox.put(step("b"))
    assert await take(inbox) == ["a", "b"]


async def test_one_take_after_another_waits_for_news() -> None:
    inbox = StepInbox(asyncio.get_running_loop())
    for word in ("a", "b", "c"):
        taking = asyncio.create_task(take(inbox))
        await asyncio.sleep(0)
        assert not taking.done()
        await asyncio.to_thread(inbox.put, step(word))
        assert await taking == [word]


async def test_a_lost_engine_is_told_behind_what_it_said_and_lets_who_waits_go(settle: Settle) -> None:
    inbox = StepInbox(asyncio.get_running_loop(), max_chunks=1)
    inbox.put(step("a"))
    waiting = threading.Thread(target=inbox.put, args=(step("never"),))
    waiting.start()
    room = asyncio.create_task(inbox.room())
    await settle()
    assert not room.done()
    while not inbox._room._waiters:  # type: ignore[attr-defined]  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await asyncio.to_thread(inbox.fail, EngineLost("gone"))
    inbox.fail(EngineLost("once more"))
    await asyncio.to_thread(waiting.join, 5)
    assert not waiting.is_alive()
    await asyncio.wait_for(room, 5)
    inbox.put(step("ghost"))
    assert await take(inbox) == ["a"]
    for _ in range(2):
        with pytest.raises(EngineLost, match="gone"):
            await take(inbox)


async def test_who_waits_for_a_step_hears_of_a_loss() -> None:
    inbox = StepInbox(asyncio.get_running_loop())
    taking = asyncio.create_task(take(inbox))
    await asyncio.sleep(0)
    await asyncio.to_thread(inbox.fail, EngineLost("gone"))
    with pytest.raises(EngineLost):
        await taking


async def test_what_is_closed_is_not_lost_any_more() -> None:
    inbox = StepInbox(asyncio.get_running_loop())
    inbox.close()
    inbox.fail(EngineLost("gone"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await inbox.take()
