"""What run.py makes of what it has seen, without a GPU."""

import json
from pathlib import Path

import pytest
from chats import Heard, Round
from engine_checks import Comparison
from library import Library, Spoken
from measure import Lag, rate
from outcome import Check, Figure, Notebook, Outcome, as_markdown, read
from takeover import parts_at_seam
from task import SMALL, Task
from task import read as read_task

WORDS = [f" word{number}" for number in range(20)]


class Odds(Library):
    """Says how near a tie is, and remembers where it was asked."""

    def __init__(self, odds: float) -> None:
        super().__init__(None, ())
        self._odds = odds
        self.asked: list[list[int]] = []

    def odds(self, tokens: "list[int]", *, goes_on: bool = False) -> float:  # type: ignore[override]
        self.asked.append(list(tokens))
        return self._odds


def spoken() -> Spoken:
    """Two tokens say nothing until a third one completes a character."""
    return Spoken([7, 8, 9, 10, 11], [(0, "It"), (1, " is"), (4, " é")])


def test_answers_may_part_at_a_near_tie_and_nowhere_else() -> None:
    near, far = Odds(0.97), Odds(0.2)
    for told, passes in ((Comparison(near), True), (Comparison(far), False)):
        told.add([1, 2], spoken(), "It is é")
        told.add([1, 2], spoken(), "It was")
        assert told.passed is passes
    assert near.asked == [[1, 2, 7]]


def test_half_of_the_answers_have_to_be_the_same_whatever_the_ties() -> None:
    told = Comparison(Odds(1.0))
    told.add([1], spoken(), "It is é")
    told.add([1], spoken(), "No")
    assert told.passed
    told.add([1], spoken(), "Never")
    assert not told.passed


def heard(words: list[str], silent_before: int) -> Heard:
    at_s = [0.1 * number + (3.0 if number >= silent_before else 0.0) for number in range(len(words))]
    chars = [len("".join(words[: number + 1])) for number in range(len(words))]
    return Heard("".join(words), len(words), at_s, chars, "")


@pytest.mark.parametrize(
    ("words", "at_seam"),
    [
        (WORDS, False),
        (WORDS[:10] + WORDS[9:], True),
        (WORDS[:10] + WORDS[11:], True),
        (WORDS[:4] + ["!"] * 16, False),
        (WORDS[:16] + ["!"] * 4, False),
    ],
    ids=["as it was", "a word came twice", "a word was lost", "parted before", "parted later"],
)
def test_what_is_wrong_at_a_seam_is_told_from_what_parts_elsewhere(words: list[str], at_seam: bool) -> None:
    assert parts_at_seam(heard(words, 10), heard(WORDS, 0)) is at_seam


def test_how_late_a_loop_was_is_of_the_time_between_two_looks() -> None:
    before = {'le="0.005"': 100.0, 'le="0.01"': 100.0, 'le="+Inf"': 101.0}
    after = {'le="0.005"': 198.0, 'le="0.01"': 200.0, 'le="+Inf"': 201.0}
    assert str(Lag(before, after)) == "≤ 5 / ≤ 10 / ≤ 10"


def test_a_rate_is_of_all_rounds_together() -> None:
    answer = heard(WORDS, 0)
    assert rate([Round([answer], 1.0), Round([answer], 3.0)]) == 10


def test_what_was_found_before_a_part_broke_is_kept(tmp_path: Path) -> None:
    book = Notebook(tmp_path / "found.json")
    book.check("it works", True, "seen")
    book.figure("Speed", {"tokens/s": "5"})

    outcome = read("engine", tmp_path / "found.json", 3.0, "exit status 1")

    assert outcome.checks == (Check("it works", True, "seen"),)
    assert not outcome.passed
    page = as_markdown([outcome], {"GPU": "none"})
    assert "| it works | ok | seen |" in page
    assert "| 5 |" in page
    assert "`engine` (3 s): exit status 1" in page


def test_what_was_not_tried_is_no_failure() -> None:
    outcome = Outcome("caches", (Check("q8", None, "no GPU"),), (Figure("t", {"a": "b|c"}),), 1.0)
    assert outcome.passed
    page = as_markdown([outcome], {})
    assert "| q8 | not tried | no GPU |" in page
    assert "b\\|c" in page


def test_a_task_reaches_the_process_of_a_part_as_it_was(tmp_path: Path) -> None:
    for quantised in (None, tmp_path / "q"):
        task = Task(tmp_path, quantised, SMALL, is_gpu=False)
        assert json.loads(task.as_json())
        assert read_task(task.as_json()) == task
