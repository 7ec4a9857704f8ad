"""The checks of run.py, without its figures: `pytest -m gpu` on a machine with a GPU.

TEST_GPU_MODEL and TEST_GPU_QUANTISED name model folders; without, they are made of the bundled model, or of
the file that TEST_GPU_GGUF names. TEST_GPU_SMALL=1 tries little of everything, for a processor that stands in
for a GPU.
"""

import importlib.util
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu
PARTS = ("engine", "server", "quantised", "caches", "draft", "memory", "takeover")
MOST_S = 600.0


def _missing() -> str:
    """Why there is nothing to be tried here; empty where there is."""
    for package in ("torch", "exllamav2"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    import torch

    return "" if torch.cuda.is_available() else "torch finds no GPU"


if reason := _missing():
    pytest.skip(f"{reason}: these need an NVIDIA GPU", allow_module_level=True)

import model_folders  # noqa: E402
from task import SMALL, Sizes, Task  # noqa: E402
from trial import is_gpu, tried  # noqa: E402


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("models")
    gguf = Path(file) if (file := os.environ.get("TEST_GPU_GGUF")) else None
    sizes = SMALL if os.environ.get("TEST_GPU_SMALL") else Sizes()
    named, quantised = os.environ.get("TEST_GPU_MODEL"), os.environ.get("TEST_GPU_QUANTISED")
    if named:
        other = Path(quantised).resolve() if quantised else None
        return Task(Path(named).resolve(), other, sizes, is_gpu=is_gpu())
    made = model_folders.made(folder, gguf, quantised=True) if is_gpu() else None
    return Task(model_folders.made(folder, gguf), made, sizes, is_gpu=is_gpu())


@pytest.mark.parametrize("part", PARTS)
def test_part(part: str, task: Task, tmp_path: Path) -> None:
    outcome = tried(part, task, tmp_path, MOST_S)

    assert not [f"{it.name}: {it.says}" for it in outcome.checks if it.passed is False]
    assert not outcome.error
    assert outcome.checks
    if all(it.passed is None for it in outcome.checks):
        pytest.skip("; ".join(f"{it.name}: {it.says}" for it in outcome.checks))
