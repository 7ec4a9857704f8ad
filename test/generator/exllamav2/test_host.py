"""The thread of a loaded model, and those who share it."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from internal.biz.errors import EngineLost, GenerationFailed
from internal.biz.generation import Chunk, Job
from internal.biz.ports import Progress
from internal.generator.exllamav2.host import Host
from internal.generator.exllamav2.loader import load_model
from internal.generator.exllamav2.options import LoadOptions, LoraOptions
from internal.generator.exllamav2.stats import EngineStats

if TYPE_CHECKING:
    from test.generator.exllamav2.conftest import ScriptedLibrary


class Owner:
    """Takes what the engine's thread says, and wants nothing."""

    def put(self, step: list[Chunk]) -> None: ...

    def ended(self, job: Job) -> None: ...

    def remember(self, prompt: Sequence[int], text: str, tokens: Sequence[int]) -> None: ...

    def lose(self, error: EngineLost) -> None: ...


@pytest.fixture
def options(library: "ScriptedLibrary", model_folder: Path) -> LoadOptions:
    return LoadOptions(
        path=model_folder,
        cache="fp16",
        cache_tokens=1024,
        max_seq_len=1024,
        slots=4,
        chunk_size=256,
        gpu_split=None,
        draft=None,
        warmup=False,
    )


def ignore(done: float) -> None: ...


async def test_all_who_enter_hear_how_far_it_is(options: LoadOptions) -> None:
    heard: list[list[float]] = [[], []]

    def load(
        options: LoadOptions, adapters: Sequence[LoraOptions], progress: Progress, wanted: Callable[[], bool]
    ) -> Any:
        while not heard[1]:  # until the other one is there, too
            progress(0.0)
        return load_model(options, adapters, progress, wanted)

    host = Host(options, [], load, EngineStats())
    one, other = Owner(), Owner()
    await asyncio.gather(host.enter(one, heard[0].append), host.enter(other, heard[1].append))
    assert heard[0][-4:] == heard[1][-4:]
    assert heard[0][-1] > 0.9
    await asyncio.gather(host.leave(one), host.leave(other))
    assert host.model is None


async def test_a_model_that_cannot_be_loaded_is_told_to_all_and_can_be_tried_again(
    options: LoadOptions, library: "ScriptedLibrary"
) -> None:
    library.load_error = ValueError("no")
    host = Host(options, [], load_model, EngineStats())
    owners = [Owner(), Owner()]
    told = await asyncio.gather(*(host.enter(it, ignore) for it in owners), return_exceptions=True)
    assert all(isinstance(error, GenerationFailed) for error in told)
    library.load_error = None
    await host.enter(owners[0], ignore)
    assert host.model is not None
    await host.leave(owners[0])


async def test_loading_ends_when_nobody_waits_for_it_any_more(options: LoadOptions) -> None:
    loading, wanted_at_last = threading.Event(), []

    def load(
        options: LoadOptions, adapters: Sequence[LoraOptions], progress: Progress, wanted: Callable[[], bool]
    ) -> Any:
        loading.set()
        while wanted():
            pass
        wanted_at_last.append(wanted())
        raise GenerationFailed("interrupted")

    host, owner = Host(options, [], load, EngineStats()), Owner()
    entering = asyncio.create_task(host.enter(owner, ignore))
    await asyncio.to_thread(loading.wait, 5)
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    async with asyncio.timeout(5):
        await host.leave(owner)
    assert wanted_at_last == [False]


async def test_who_left_may_leave_again(options: LoadOptions) -> None:
    host, owner = Host(options, [], load_model, EngineStats()), Owner()
    await host.leave(owner)
    await host.enter(owner, ignore)
    await host.leave(owner)
    await host.leave(owner)
