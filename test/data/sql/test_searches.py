"""Turns at searching."""

import asyncio
from collections.abc import Iterator

import pytest

from internal.biz.errors import TooManyRequests, Unavailable
from internal.data.sql.searches import AT_ONCE, MAX_OF_USER, MAX_WAITING, Searches

pytestmark = pytest.mark.usefixtures("watched_loop")


class Crowd:
    """Users who have a turn until they are sent away."""

    def __init__(self) -> None:
        self.searches = Searches()
        self.working: list[str] = []
        self.tasks: list[tuple[str, asyncio.Task[None]]] = []

    async def comes(self, *users: str) -> None:
        self.tasks += [(user, asyncio.create_task(self._work(user))) for user in users]
        await self.settled()

    async def _work(self, user: str) -> None:
        async with self.searches.turn(user):
            self.working.append(user)
            try:
                await asyncio.Event().wait()
            finally:
                self.working.remove(user)

    async def goes(self, user: str) -> None:
        task = next(task for name, task in self.tasks if name == user and not task.done())
        task.cancel()
        await self.settled()

    async def settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    def errors(self) -> Iterator[BaseException]:
        for _, task in self.tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                yield error

    async def all_go(self) -> None:
        for _, task in self.tasks:
            task.cancel()
        await asyncio.gather(*(task for _, task in self.tasks), return_exceptions=True)


async def test_so_many_work_at_once_and_the_others_in_the_order_in_which_they_came() -> None:
    crowd = Crowd()
    await crowd.comes("a", "b", "c", "d")
    assert crowd.working == ["a", "b"]
    await crowd.goes("a")
    assert crowd.working == ["b", "c"]
    await crowd.goes("b")
    assert crowd.working == ["c", "d"]
    await crowd.all_go()


async def test_of_a_user_one_works_and_takes_no_place_for_the_others() -> None:
    crowd = Crowd()
    await crowd.comes("a", "a", "a", "b")
    assert crowd.working == ["a", "b"]
    await crowd.goes("a")
    assert crowd.working == ["b", "a"]
    await crowd.all_go()


async def test_one_user_cannot_take_all_places_to_wait() -> None:
    crowd = Crowd()
    await crowd.comes(*["a"] * (MAX_OF_USER + 2))
    assert [type(error) for error in crowd.errors()] == [TooManyRequests] * 2
    await crowd.comes("b")
    assert crowd.working == ["a", "b"]
    await crowd.all_go()


async def test_beyond_those_who_may_wait_all_are_refused_until_somebody_goes() -> None:
    crowd = Crowd()
    await crowd.comes(*(f"user {number}" for number in range(AT_ONCE + MAX_WAITING)))
    assert not list(crowd.errors())
    await crowd.comes("late")
    (error,) = crowd.errors()
    assert isinstance(error, Unavailable)
    assert error.code == "search_busy"
    await crowd.goes("user 0")
    await crowd.goes("user 7")  # who was waiting
    await crowd.comes("later", "latest")
    assert len(list(crowd.errors())) == 1
    await crowd.all_go()


async def test_who_has_gone_leaves_nothing_behind() -> None:
    crowd = Crowd()
    await crowd.comes("a", "a", "b", "c")
    await crowd.all_go()
    assert not crowd.working
    assert not crowd.searches._users
    assert not crowd.searches._locks
    await crowd.comes("a", "b")
    assert crowd.working == ["a", "b"]
    await crowd.all_go()
