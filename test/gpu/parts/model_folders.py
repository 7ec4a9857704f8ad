"""The models that are tried where none is named: made of the bundled one by the program of test/exl2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "test" / "exl2" / "model.py"


class Missing(Exception):
    """There is no model to try."""


def made(folder: Path, gguf: Path | None = None, *, quantised: bool = False) -> Path:
    """A folder below `folder` with the bundled model, which takes some seconds the first time. Raises
    Missing."""
    made_at = folder / ("smollm2-gptq" if quantised else "smollm2")
    if made_at.exists():
        return made_at
    unfinished = made_at.with_suffix(f".{os.getpid()}")
    command = [sys.executable, str(PROGRAM), str(unfinished)]
    command += ["--gptq"] * quantised + (["--gguf", str(gguf)] if gguf else [])
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        said = told.stderr.strip().splitlines()[-1:]
        raise Missing(f"no model could be made ({' '.join(said)}): name one, --model DIR")
    unfinished.rename(made_at)
    return made_at
