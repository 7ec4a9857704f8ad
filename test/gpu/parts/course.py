"""The whole course: its options, the models, the parts one after the other within a budget, the table."""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import model_folders
from one_part import PARTS
from outcome import Outcome, as_json, as_markdown, read
from task import SMALL, Sizes, Task
from trial import is_gpu, tried

SPARE_S = 5.0
"""Of the budget, for the table."""


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    # What was found is told, and what was started is ended, also when somebody stops this.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun_s = time.monotonic()
    ends_s = begun_s + options.budget - SPARE_S
    with tempfile.TemporaryDirectory(prefix="sluice-gpu-") as folder:
        try:
            task = _task(options, Path(folder))
        except model_folders.Missing as error:
            print(f"run.py: {error}", file=sys.stderr)
            return 1
        about = _about(task)
        outcomes: list[Outcome] = []
        stopped = False
        try:
            for name in options.parts:
                outcomes.append(_within_budget(name, task, Path(folder), ends_s, options.patience))
                options.out.write_text(as_json(outcomes, about), encoding="utf-8")
                _keep(Path(folder) / f"{name}.log", options.out)
                _tell(outcomes[-1])
        except KeyboardInterrupt:
            stopped = True
            for name in options.parts[len(outcomes) :][:1]:
                outcomes.append(read(name, Path(folder) / f"{name}.json", 0.0, "it was stopped"))
                _keep(Path(folder) / f"{name}.log", options.out)
    print(as_markdown(outcomes, about), flush=True)
    return 0 if not stopped and all(outcome.passed for outcome in outcomes) else 1


def _keep(log: Path, out: Path) -> None:
    """What a part printed stays beside the page: there may be no second try."""
    if log.exists():
        kept = out.with_suffix(".logs")
        kept.mkdir(exist_ok=True)
        shutil.copyfile(log, kept / log.name)


def _within_budget(name: str, task: Task, folder: Path, ends_s: float, patience: float) -> Outcome:
    part, left_s = PARTS[name], ends_s - time.monotonic()
    if left_s < part.least_s:
        why = f"left out: {left_s:.0f} s were left, and it may need {part.least_s:.0f}"
        return Outcome(name, (), (), 0.0, why)
    return tried(name, task, folder, min(left_s, part.most_s * patience))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description="What only a GPU can show of Sluice.")
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: made of the bundled GGUF file")
    parser.add_argument(
        "--quantised", type=Path, metavar="DIR", help="exl2 or GPTQ; default: as --model, if that is made"
    )
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="instead of the bundled one")
    parser.add_argument("--models", type=Path, metavar="DIR", help="where made models are kept")
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="default 540")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE", help="default gpu.json")
    parser.add_argument("--parts", type=_parts, default=list(PARTS), metavar="NAME,…", help=", ".join(PARTS))
    parser.add_argument("--chats", type=_numbers, metavar="N,…", help="at a time; default 1,8,32,128")
    parser.add_argument(
        "--patience", type=float, default=1.0, metavar="N", help="how many times longer a part may take; 1"
    )
    parser.add_argument("--small", action="store_true", help="little of everything: to try this program")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}, but {', '.join(PARTS)}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _task(options: argparse.Namespace, folder: Path) -> Task:
    sizes: Sizes = SMALL if options.small else Sizes()
    if options.chats:
        sizes = Sizes(**{**_fields(sizes), "chats": options.chats})
    models = options.models or folder / "models"
    model, quantised = options.model, options.quantised
    gpu = is_gpu()
    if model is None:
        model = model_folders.made(models, options.gguf)
        if quantised is None and gpu:
            quantised = model_folders.made(models, options.gguf, quantised=True)
    return Task(model.resolve(), quantised and quantised.resolve(), sizes, is_gpu=gpu)


def _fields(sizes: Sizes) -> dict[str, object]:
    return {name: getattr(sizes, name) for name in Sizes.__slots__}


def _about(task: Task) -> dict[str, str]:
    code = (
        "import torch; print(torch.__version__, torch.version.cuda, "
        "torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no GPU', sep='|')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    version, cuda, name = (told.stdout.strip().splitlines() or ["?|?|?"])[-1].split("|")
    return {
        "GPU": name,
        "torch": f"{version}, CUDA {cuda}",
        "Python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "model": task.model.name,
        "quantised": task.quantised.name if task.quantised else "none",
    }


def _tell(outcome: Outcome) -> None:
    """While it runs, and in case that nobody sees the end."""
    for check in outcome.checks:
        print(f"{check.word:10} {check.name}: {check.says}", file=sys.stderr)
    for figure in outcome.figures:
        print(f"{' ':10} {figure.table}: {figure.cells}", file=sys.stderr)
    print(f"{outcome.part}: {outcome.seconds:.0f} s {outcome.error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
