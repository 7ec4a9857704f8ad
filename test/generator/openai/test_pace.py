"""How fast a stream is read."""

from internal.generator.openai.pace import Pace


def test_a_second_s_worth_may_come_at_once_and_more_has_to_wait() -> None:
    now_s = 10.0
    pace = Pace(1000, lambda: now_s)
    assert pace.read(600) == 0.0
    assert pace.read(400) == 0.0
    assert pace.read(500) == 0.5
    now_s += 0.5
    assert pace.read(250) == 0.25
    now_s += 60.0
    assert pace.read(1000) == 0.0, "who was silent has saved up a second's worth, and no more"
    assert pace.read(100) == 0.1


def test_without_a_bound_nobody_waits() -> None:
    pace = Pace(0, lambda: 0.0)
    assert pace.read(1 << 30) == 0.0
