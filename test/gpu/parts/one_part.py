"""One part of the course, in a process of its own: an error of CUDA stays, and must not reach the others.

python one_part.py NAME TASK FILE
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import engine_checks
import memory_checks
import model_checks
import server_checks
import takeover
import throughput
from outcome import Notebook
from task import Task, read


@dataclass(frozen=True, slots=True)
class Part:
    """`least_s`: where less is left of the budget, it is not begun; `most_s`: then it is ended."""

    run: Callable[[Task, Notebook], Awaitable[None]]
    least_s: float
    most_s: float


PARTS: dict[str, Part] = {
    "engine": Part(engine_checks.run, 40, 150),
    "server": Part(server_checks.run, 25, 90),
    "memory-queue": Part(partial(throughput.run, driver="memory"), 60, 180),
    "redis-queue": Part(partial(throughput.run, driver="redis"), 60, 180),
    "takeover": Part(takeover.run, 40, 120),
    "quantised": Part(model_checks.quantised, 20, 60),
    "caches": Part(model_checks.caches, 25, 90),
    "draft": Part(model_checks.draft, 20, 60),
    "memory": Part(memory_checks.run, 20, 90),
}
"""The most important first."""


if __name__ == "__main__":
    name, asked, file = sys.argv[1:]
    asyncio.run(PARTS[name].run(read(asked), Notebook(Path(file))))  # type: ignore[arg-type]
