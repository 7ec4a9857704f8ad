"""Lets the real exllamav2 run on a processor, for tests. Changes other libraries, and nothing of Sluice.

exllamav2's generator, its page table, its tokenizer, its sampler and its loader are what they are on a GPU.
What replaces the rest stands in this folder:

- `exllamav2_ext`, found before the library would compile its own: the sampler's C++ as it is, and in torch
  the few CUDA kernels that a Llama-like model in fp16 needs;
- `flash_attn` and `flash_attn_2_cuda`: attention over a paged cache, in torch;
- here, `install()`: one device that calls itself a GPU and is the processor.

A process that is started with this folder on PYTHONPATH has all that by itself (`sitecustomize.py`); any
other puts the folder on `sys.path` and calls `install()`. Quantised models, quantised caches, LoRA and tensor
parallelism need the real thing.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], None]


def install() -> None:
    """Have each of the modules below changed as soon as it is imported.

    Imports none of them: a process that never does has no cost. To call it again does nothing; to call it
    after one of them has been imported is an error.
    """
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    late = sorted(PATCHES.keys() & sys.modules.keys())
    if late:
        raise RuntimeError(f"install() has to come before the first import of {', '.join(late)}")
    sys.meta_path.insert(0, _AfterImport(PATCHES))


class _AfterImport(MetaPathFinder):
    """Finds what others find, and has it changed once it has run."""

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self._patches = patches

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        patch = self._patches.get(fullname)
        if patch is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_patch(module: ModuleType) -> None:
                run(module)
                patch(module)

            spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec


def _patch_torch(torch: ModuleType) -> None:
    """One GPU for whoever asks; exllamav2 puts nothing on it, see below."""
    import cuda_on_cpu

    for name in cuda_on_cpu.__all__:
        setattr(torch.cuda, name, getattr(cuda_on_cpu, name))


def _patch_place(module: ModuleType) -> None:
    """Several modules have this function: where the tensors of GPU number `idx` are."""
    module._torch_device = lambda idx: "cpu"  # type: ignore[attr-defined]


def _patch_device(device: ModuleType) -> None:
    """The stream of GPU 0 is there already: to make it, torch would look for the GPU."""
    import cuda_on_cpu

    _patch_place(device)
    device.global_streams[0] = cuda_on_cpu.Stream()
    device.set_device_streams = lambda: None  # type: ignore[attr-defined]


def _patch_compat(compat: ModuleType) -> None:
    """All tensors are where they are needed already."""
    compat.safe_move_tensor = lambda tensor, device, non_blocking=False: tensor  # type: ignore[attr-defined]


def _patch_linear(linear: ModuleType) -> None:
    linear.ExLlamaV2Linear.forward = _multiply


def _multiply(self: Any, hidden_states: Any, *_: Any, loras: Any = None, **__: Any) -> Any:
    """In place of ExLlamaV2Linear.forward; weights become fp32, which processors multiply far faster."""
    import torch

    if self.linear is None or loras:
        raise NotImplementedError("exllamav2 on a CPU runs models in fp16 only, without LoRA")
    weight = self.linear.weight
    if weight.dtype != torch.float32:
        self.linear.weight = weight = torch.nn.Parameter(weight.float(), requires_grad=False)
    rows = hidden_states.reshape(-1, hidden_states.shape[-1]).float()
    if rows.shape[0] <= 8:
        # Half as fast as one product, but what a job says does not depend on what else is in the batch.
        product = torch.stack([torch.mv(weight, row) for row in rows])
    else:
        product = torch.nn.functional.linear(rows, weight)
    if self.has_bias:
        product += self.linear.bias
    return (product * self.prescale).half().view(*hidden_states.shape[:-1], -1)


PATCHES: Mapping[str, Patch] = {
    "torch": _patch_torch,
    "exllamav2.compat": _patch_compat,
    "exllamav2.device": _patch_device,
    "exllamav2.linear": _patch_linear,
    "exllamav2.model": _patch_place,
    "exllamav2.module": _patch_place,
}
