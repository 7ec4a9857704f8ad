"""Where engines put their steps."""

import asyncio
import queue

import pytest

from internal.biz.errors import EngineLost
from internal.biz.generation import Chunk, Finished, Job, Output


class Sink:
    """Hands the steps of an engine's threads to the test."""

    def __init__(self) -> None:
        self._steps: queue.Queue[list[Chunk]] = queue.Queue()

    def put(self, step: list[Chunk]) -> None:
        self._steps.put(list(step))

    def give(self, step: list[Chunk]) -> bool:
        self.put(step)
        return False

    async def room(self) -> None:
        return

    def fail(self, error: EngineLost) -> None:
        raise AssertionError(f"no engine here is lost: {error}")

    def forget(self) -> None:
        """What was said so far is not looked at."""
        self._steps = queue.Queue()

    async def step(self) -> list[Chunk]:
        return await asyncio.to_thread(self._steps.get, True, 5)

    async def until_ended(self, *jobs: Job) -> list[list[Chunk]]:
        """All steps up to the end of `jobs`."""
        running = set(jobs)
        steps = []
        while running:
            step = await self.step()
            steps.append(step)
            running -= {job for job, output in step if isinstance(output, Finished)}
        return steps

    async def outputs(self, job: Job) -> list[Output]:
        """What the engine says of `job`, to its end."""
        steps = await self.until_ended(job)
        return [output for step in steps for one, output in step if one is job]


@pytest.fixture
def sink() -> Sink:
    return Sink()
