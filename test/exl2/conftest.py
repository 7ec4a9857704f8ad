"""The real exllamav2 on this processor (see `environment`), a model, and a generator that has it loaded."""

import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = HERE / "environment"
CONTEXT = 2048
"""Tokens of the cache, and the longest that one job may become. Eight pages."""
SLOTS = 4

if importlib.util.find_spec("exllamav2") is not None:
    sys.path.insert(0, str(ENVIRONMENT))
    importlib.import_module("exllamav2_on_cpu").install()


@pytest.fixture(scope="session")
def exllamav2_environment() -> Mapping[str, str]:
    """Environment variables for a program of Sluice's that is to have exllamav2 on the processor."""
    return {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(ENVIRONMENT)])}


@pytest.fixture(scope="session")
def engine_patience_s() -> float:
    """A step takes seconds here when others want the processor, too."""
    return 60.0


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """SmolLM2-135M-Instruct in fp16. It is made once for each state of the program that makes it."""
    program = HERE / "model.py"
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    folder = Path(sys.prefix) / "models" / f"smollm2-{digest[:16]}"
    if not folder.exists():
        unfinished = folder.with_suffix(f".{os.getpid()}")
        subprocess.run([sys.executable, str(program), str(unfinished)], check=True)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(unfinished)  # another process was faster
    return folder


@dataclass(frozen=True, slots=True)
class Loaded:
    """The library's own objects, which it does not describe to a type checker."""

    model: Any
    cache: Any
    tokenizer: Any
    generator: Any


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> Loaded:
    import exllamav2
    from exllamav2.generator import ExLlamaV2DynamicGenerator

    config = exllamav2.ExLlamaV2Config(str(model_folder))
    config.max_seq_len = CONTEXT
    model = exllamav2.ExLlamaV2(config)
    model.load()
    cache = exllamav2.ExLlamaV2Cache(model, max_seq_len=CONTEXT)
    tokenizer = exllamav2.ExLlamaV2Tokenizer(config)
    generator = ExLlamaV2DynamicGenerator(
        model, cache, tokenizer, max_batch_size=SLOTS, max_q_size=1, max_chunk_size=256
    )
    return Loaded(model, cache, tokenizer, generator)


@pytest.fixture
def generator(loaded: Loaded) -> Iterator[Any]:
    """Idle, and with nothing in its cache. A test leaves it idle."""
    loaded.generator.reset_page_table()
    yield loaded.generator
    left = loaded.generator.num_remaining_jobs()
    loaded.generator.clear_queue()
    assert not left, f"jobs left behind: {left}"


@pytest.fixture(scope="session")
def tokenizer(loaded: Loaded) -> Any:
    return loaded.tokenizer
