"""What a part of the course found out: checks, which pass or fail, and figures, which are only told."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Check:
    """`says`: what was seen, in a few words. `passed` None: it was not tried, and `says` why."""

    name: str
    passed: bool | None
    says: str

    @property
    def word(self) -> str:
        return {True: "ok", False: "**FAILED**", None: "not tried"}[self.passed]


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of a table: its cells are by their heading, which has the unit. Figures of one `table` have the
    same headings."""

    table: str
    cells: dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one part. `error`: how it broke, or why it was left out; what it had found until then is kept."""

    part: str
    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]
    seconds: float
    error: str = ""

    @property
    def passed(self) -> bool:
        return not self.error and all(check.passed is not False for check in self.checks)


class Notebook:
    """Where a part writes down what it finds, at once: what breaks later loses nothing of it."""

    def __init__(self, file: Path | None = None) -> None:
        """`file` has all of it after each entry."""
        self.checks: list[Check] = []
        self.figures: list[Figure] = []
        self._file = file

    def check(self, name: str, passed: bool, says: str) -> None:
        self.checks.append(Check(name, passed, says))
        self._write()

    def skip(self, name: str, why: str) -> None:
        self.checks.append(Check(name, None, why))
        self._write()

    def figure(self, table: str, cells: dict[str, str]) -> None:
        self.figures.append(Figure(table, cells))
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        found = {"checks": [asdict(it) for it in self.checks], "figures": [asdict(it) for it in self.figures]}
        unfinished = self._file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(found), encoding="utf-8")
        unfinished.replace(self._file)


def read(part: str, file: Path, seconds: float, error: str) -> Outcome:
    """What a part has written down in `file`, if it came so far."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"checks": [], "figures": []}
    checks = tuple(Check(**it) for it in found["checks"])
    figures = tuple(Figure(**it) for it in found["figures"])
    return Outcome(part, checks, figures, seconds, error)


def as_json(outcomes: Sequence[Outcome], about: dict[str, str]) -> str:
    return json.dumps({"about": about, "parts": [asdict(it) for it in outcomes]}, indent=1) + "\n"


def as_markdown(outcomes: Sequence[Outcome], about: dict[str, str]) -> str:
    """One page: what was run on, the checks, the figures, what is missing."""
    lines = [" · ".join(f"{name}: {value}" for name, value in about.items()), ""]
    rows = [
        {"check": check.name, "": check.word, "seen": check.says}
        for outcome in outcomes
        for check in outcome.checks
    ]
    lines += _table(rows)
    tables = dict.fromkeys(figure.table for outcome in outcomes for figure in outcome.figures)
    for name in tables:
        lines += ["", f"**{name}**", ""]
        lines += _table([it.cells for outcome in outcomes for it in outcome.figures if it.table == name])
    broken = [f"- `{it.part}` ({it.seconds:.0f} s): {it.error}" for it in outcomes if it.error]
    if broken:
        lines += ["", "Broke, or was left out:", "", *broken]
    spent = ", ".join(f"{it.part} {it.seconds:.0f}" for it in outcomes if it.seconds)
    lines += ["", f"Seconds: {spent}"]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    if not rows:
        return ["(nothing)"]
    heads = list(rows[0])
    lines = [_row(heads), _row(["---"] * len(heads))]
    return lines + [_row([row.get(head, "") for head in heads]) for row in rows]


def _row(cells: Sequence[str]) -> str:
    shown = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(shown)} |"
