"""The GPU's memory: loading takes it, unloading gives it back, and too little of it is told in a sentence."""

import gc
import json

from engine import greedy, running
from outcome import Notebook
from task import Task

from internal.biz.errors import GenerationFailed

MIB = 1 << 20
MAY_STAY = 64 * MIB
"""Of what a second loading took: the allocator's rounding, and other processes."""


async def run(task: Task, book: Notebook) -> None:
    await _comes_back(task, book)
    await _too_little(task, book)


async def _comes_back(task: Task, book: Notebook) -> None:
    """The first time, libraries take what they keep for good. So the second time is what counts."""
    loaded, unloaded = [], []
    for _ in range(3):
        async with running(task.load()) as engine:
            await engine.ask("hello", greedy(4))
            loaded.append(_free())
        unloaded.append(_free())
    stays = unloaded[0] - unloaded[-1]
    given_back = unloaded[-1] - loaded[-1]
    says = f"{given_back // MIB:,} MiB come back, {stays / MIB:,.0f} MiB stay after two more times"
    if task.is_gpu:
        book.check("unloading gives the memory back", given_back > 0 and stays <= MAY_STAY, says)
    else:
        book.check("loading, unloading and loading works", True, f"{says} (of a processor's memory)")


async def _too_little(task: Task, book: Notebook) -> None:
    name = "too little memory is told, and what was taken comes back"
    if not task.is_gpu:
        book.skip(name, "a processor would take the memory of everybody else")
        return
    import torch

    before = _free()
    try:
        async with running(task.load(cache_tokens=_more_than_there_is(task))):
            said, code = "it was loaded", ""
    except GenerationFailed as error:
        said, code = error.message, error.code
    stays_at_first = before - _free()
    # What a traceback holds on to until then is free for the next model, and this process's own.
    gc.collect()
    torch.cuda.empty_cache()
    stays = before - _free()
    passed = code == "gpu_memory" and "lower cache_tokens" in said and stays <= MAY_STAY
    book.check(
        name, passed, f"{said} (then {stays_at_first // MIB:,} MiB stay, and {stays // MIB:,} in the end)"
    )
    async with running(task.load()) as engine:
        answer = await engine.ask("hello", greedy(4))
        book.check("behind that, a model that fits is loaded", bool(answer.text), answer.text)


def _free() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[0])


def _more_than_there_is(task: Task) -> int:
    """Tokens of a cache that is half as large again as the GPU's memory, in whole pages."""
    import torch

    config = json.loads((task.model / "config.json").read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    per_token = 2 * 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * width
    return int(1.5 * torch.cuda.mem_get_info()[1] / per_token) // 256 * 256
