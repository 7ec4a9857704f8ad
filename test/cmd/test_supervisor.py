"""The parts of the supervisor that need no processes; test/e2e/test_supervisor.py has those."""

import pytest

from cmd.supervisor import FIRST_DELAY_S, LONGEST_DELAY_S, delay_after


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 0.0), (1, FIRST_DELAY_S), (2, 0.2), (3, 0.4), (8, LONGEST_DELAY_S), (10**9, LONGEST_DELAY_S)],
)
def test_processes_that_keep_failing_are_started_less_and_less_often(failures: int, seconds: float) -> None:
    assert delay_after(failures) == pytest.approx(seconds)
