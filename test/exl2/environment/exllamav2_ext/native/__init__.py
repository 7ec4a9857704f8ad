"""Compiles exllamav2's own C++ for processors where it stands, once for each environment, and loads it.

The sources choose AVX2 while they run, where the processor has it. They include headers of CUDA's of which
they use nothing: `include` has empty ones of these names.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

NAME = "exllamav2_native"
HERE = Path(__file__).parent
SOURCES = (
    "ext_sampling.cpp",
    "cpp/generator.cpp",
    "cpp/profiling.cpp",
    "cpp/sampling.cpp",
    "cpp/sampling_avx2.cpp",
)


def load() -> ModuleType:
    """Takes half a minute or more the first time; whoever comes meanwhile waits."""
    library = _folder() / f"{NAME}.so"
    library.parent.parent.mkdir(exist_ok=True)
    with library.parent.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(library.parent)
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _folder() -> Path:
    """In the environment of the running Python, and another one for whatever the result depends on."""
    versions = [sys.version, metadata.version("torch"), metadata.version("exllamav2")]
    bindings = (HERE / "bindings.cpp").read_text(encoding="utf-8")
    digest = hashlib.sha256("\n".join([*versions, bindings]).encode()).hexdigest()
    return Path(sys.prefix) / NAME / digest[:16]


def _compile(folder: Path) -> None:
    from torch.utils.cpp_extension import load

    library = importlib.util.find_spec("exllamav2")
    assert library is not None
    assert library.origin is not None
    sources = Path(library.origin).parent / "exllamav2_ext"
    # It takes its name when it is complete: what a process left that was killed is not taken for a result.
    unfinished = folder.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    # The program `ninja` stands beside this Python, which may have been called by its path.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)])
    load(
        NAME,
        [str(HERE / "bindings.cpp"), *(str(sources / name) for name in SOURCES)],
        extra_include_paths=[str(HERE / "include"), str(sources)],
        extra_cflags=["-O2"],
        build_directory=str(unfinished),
        is_python_module=False,
    )
    unfinished.rename(folder)
