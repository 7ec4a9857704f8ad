"""What Prometheus reads."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from internal.biz.models import Status
from internal.metrics.instruments import Instruments
from internal.metrics.loop_lag import watch_loop_lag

if TYPE_CHECKING:
    from test.conftest import Clock

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(instruments: Instruments) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(instruments.scrape().decode()):
        assert family.documentation, f"{family.name} has no help text"
        assert family.type != "unknown"
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def test_new_instruments_can_be_scraped() -> None:
    found = samples(Instruments())
    assert found["sluice_sessions", ()] == 0
    assert found["sluice_frames_out_total", ()] == 0
    assert found["sluice_bytes_out_total", ()] == 0


def test_sessions_and_how_they_closed() -> None:
    instruments = Instruments()
    for _ in range(3):
        instruments.session_opened()
    instruments.session_closed(1000)
    instruments.session_closed(4408)
    found = samples(instruments)
    assert found["sluice_sessions", ()] == 1
    assert found["sluice_session_closes_total", (("code", "1000"),)] == 1
    assert found["sluice_session_closes_total", (("code", "4408"),)] == 1


def test_a_client_cannot_make_a_series_of_each_close_code() -> None:
    instruments = Instruments()
    for code in range(3000, 3100):
        instruments.session_opened()
        instruments.session_closed(code)
    text = instruments.scrape().decode()
    assert 'sluice_session_closes_total{code="other"} 100.0' in text
    assert '"3050"' not in text


def test_traffic_is_read_when_it_is_scraped() -> None:
    instruments = Instruments()
    instruments.traffic.frames_out += 5
    instruments.traffic.bytes_out += 500
    found = samples(instruments)
    assert found["sluice_frames_out_total", ()] == 5
    assert found["sluice_bytes_out_total", ()] == 500


def test_budgets_that_could_not_be_looked_up() -> None:
    instruments = Instruments()
    instruments.limiter_failed()
    instruments.limiter_failed()
    assert samples(instruments)["sluice_limiter_failures_total", ()] == 2


def test_nodes_of_an_upstream() -> None:
    instruments = Instruments()
    instruments.upstream_up("m", "http://a/v1", is_up=True)
    instruments.upstream_up("m", "http://b/v1", is_up=False)
    instruments.upstream_retried("m")
    found = samples(instruments)
    assert found["sluice_upstream_up", (("model", "m"), ("node", "http://a/v1"))] == 1
    assert found["sluice_upstream_up", (("model", "m"), ("node", "http://b/v1"))] == 0
    assert found["sluice_upstream_retries_total", (("model", "m"),)] == 1


def test_responses_by_model_and_status() -> None:
    instruments = Instruments()
    instruments.response_ended("m", Status.COMPLETED, 0.2)
    instruments.response_ended("m", Status.COMPLETED, 0.3)
    instruments.response_ended("m", Status.FAILED, 40.0)
    instruments.first_token("m", 0.02)
    found = samples(instruments)
    assert found["sluice_responses_total", (("model", "m"), ("status", "completed"))] == 2
    assert found["sluice_responses_total", (("model", "m"), ("status", "failed"))] == 1
    assert found["sluice_response_seconds_count", (("model", "m"),)] == 3
    assert found["sluice_time_to_first_token_seconds_count", (("model", "m"),)] == 1


def test_turns_are_told_apart_by_whether_they_stayed_at_their_worker() -> None:
    instruments = Instruments()
    instruments.turns_continued("m", same=3, other=0)
    instruments.turns_continued("m", same=1, other=2)
    found = samples(instruments)
    assert found["sluice_turns_continued_total", (("model", "m"), ("worker", "same"))] == 4
    assert found["sluice_turns_continued_total", (("model", "m"), ("worker", "other"))] == 2


def test_the_queue_is_shown_as_it_was_last_told_and_apart_from_the_rest() -> None:
    instruments = Instruments()
    instruments.queue.set("m", waiting=3, running=2, oldest_s=1.5, workers=1)
    text = instruments.queue.scrape().decode()
    for line in ("depth", "running", "age_seconds"):
        assert f'sluice_queue_{line}{{model="m"}} ' in text
    assert 'sluice_workers{model="m"} 1.0' in text
    instruments.queue.set("m", waiting=0, running=0, oldest_s=0.0, workers=1)
    assert 'sluice_queue_depth{model="m"} 0.0' in instruments.queue.scrape().decode()
    assert b"sluice_queue" not in instruments.scrape()


def test_gaps_between_tokens_are_weighed() -> None:
    instruments = Instruments()
    instruments.token_gap("m", 0.02, 500)
    instruments.token_gap("m", 0.025, 1)
    instruments.token_gap("m", 100.0, 2)
    found = samples(instruments)
    name, model = "sluice_time_between_tokens_seconds", ("model", "m")
    assert found[f"{name}_count", (model,)] == 503
    assert abs(found[f"{name}_sum", (model,)] - (0.02 * 500 + 0.025 + 200.0)) < 1e-6
    assert found[f"{name}_bucket", (("le", "0.01"), model)] == 0
    assert found[f"{name}_bucket", (("le", "0.025"), model)] == 501  # a bound belongs to its bucket
    assert found[f"{name}_bucket", (("le", "60.0"), model)] == 501
    assert found[f"{name}_bucket", (("le", "+Inf"), model)] == 503


def test_two_sets_of_instruments_do_not_share_anything() -> None:
    one, other = Instruments(), Instruments()
    one.session_opened()
    assert samples(other)["sluice_sessions", ()] == 0


def test_a_model_may_be_named_anything() -> None:
    instruments = Instruments()
    instruments.token_gap('a"b\\c\nd', 0.1, 1)
    found = samples(instruments)
    assert found["sluice_time_between_tokens_seconds_count", (("model", 'a"b\\c\nd'),)] == 1


class Observer:
    def __init__(self) -> None:
        self.lags: list[float] = []

    def observe(self, amount: float) -> None:
        self.lags.append(amount)


async def test_the_lag_of_the_loop_is_how_late_a_timer_is(
    clock: "Clock", settle: Callable[[], Awaitable[None]]
) -> None:
    observer = Observer()
    watching = asyncio.create_task(watch_loop_lag(observer))
    await settle()
    await clock.advance(0.6)  # half a second late
    (lag,) = observer.lags
    assert 0.49 < lag < 1.0
    await clock.advance(0.1001)
    assert observer.lags[1] < 0.3
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
