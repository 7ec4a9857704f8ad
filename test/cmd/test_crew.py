"""What becomes of the other models of a process when the engine of one is lost."""

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from cmd.wire.server import Sluice
from cmd.wire.worker import Crew
from internal.biz.errors import EngineLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Fake:
    """A worker, or whatever else a process is made of."""

    def __init__(self, said: list[str], model: str = "") -> None:
        self.model = model
        self._said = said

    async def run(self, progress: object = None) -> None:
        if self.model != "lost":
            await asyncio.get_running_loop().create_future()
        raise EngineLost("gone")

    async def drain(self, timeout_s: float) -> None:
        await asyncio.sleep(0)
        self._said.append(f"{self.model} gives back within {timeout_s:g} s")

    async def cut_short(self, timeout_s: float) -> None:
        await asyncio.sleep(0)
        self._said.append(f"{self.model} says what it has")

    async def finish(self) -> None:
        self._said.append("that is written")


def others(said: list[str]) -> list[Fake]:
    return [Fake(said, model) for model in ("a", "lost", "b")]


async def lose(work: "Callable[[], Awaitable[None]]") -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        async with asyncio.timeout(5):
            await work()
    assert raised.value.subgroup(EngineLost) is not None


async def test_workers_give_back_what_their_neighbour_cannot_have_died_of() -> None:
    said: list[str] = []
    crew: Crew = cast(Any, Crew)("w", *(Fake(said) for _ in range(4)), others(said))
    await lose(lambda: crew._run(crew.workers[1], lambda _: None))
    assert said == ["a gives back within 0 s", "b gives back within 0 s", "that is written"]


async def test_where_nobody_else_could_go_on_all_say_what_they_have() -> None:
    said: list[str] = []
    sluice: Sluice = cast(Any, Sluice)(*(Fake(said) for _ in range(7)), [], others(said))
    await lose(lambda: sluice._run(sluice.workers[1], lambda _: None))
    assert said == ["a says what it has", "b says what it has"]
