"""The instruments, made once and passed in.

What changes with every frame is a plain integer, read only when somebody scrapes: a prometheus_client
counter costs about as much as sending the frame does in Python.
"""

import functools
import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


CLOSE_CODES = frozenset((*range(1000, 1016), 4401, 4403, 4408, 4429))


class Traffic:
    """What went out over all sockets. Written on the event loop only."""

    __slots__ = ("bytes_out", "frames_out")

    def __init__(self) -> None:
        self.frames_out = 0
        self.bytes_out = 0


class _WeightedHistogram:
    """A histogram that takes many equal observations in one call."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.sum = 0.0

    def observe(self, value: float, weight: int) -> None:
        self.counts[bisect_left(_SECONDS, value)] += weight
        self.sum += value * weight

    def buckets(self) -> list[tuple[str, float]]:
        return _buckets(_SECONDS, self.counts)


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them; `counts` has one more for what is above all bounds."""
    names = [*map(str, bounds), "+Inf"]
    return [(name, float(total)) for name, total in zip(names, itertools.accumulate(counts), strict=True)]


class EngineStats(Protocol):
    """What an engine counts, on a thread of its own."""

    running: int
    waiting: int
    pages: int
    pages_used: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    step_seconds: float

    @property
    def step_bounds(self) -> Sequence[float]: ...
    @property
    def step_counts(self) -> Sequence[int]: ...


class _Engines(Collector):
    """What engines count, read when somebody scrapes."""

    def __init__(self) -> None:
        self.engines: dict[str, EngineStats] = {}

    def collect(self) -> Iterator[Metric]:
        for name, text, field in (
            ("running", "Answers in the step", "running"),
            ("waiting", "Answers that wait for a place in the step", "waiting"),
            ("cache_pages", "Pages of the cache", "pages"),
            ("cache_pages_used", "Pages of the cache that running answers hold", "pages_used"),
        ):
            gauge = GaugeMetricFamily(f"sluice_engine_{name}", text, labels=["model"])
            for model, stats in self.engines.items():
                gauge.add_metric([model], getattr(stats, field))
            yield gauge
        for name, text, field in (
            ("prompt_tokens", "Tokens of prompts", "prompt_tokens"),
            ("cached_tokens", "Tokens of prompts that were found in the cache", "cached_tokens"),
            ("generated_tokens", "Tokens generated", "generated_tokens"),
        ):
            counter = CounterMetricFamily(f"sluice_engine_{name}", text, labels=["model"])
            for model, stats in self.engines.items():
                counter.add_metric([model], getattr(stats, field))
            yield counter
        steps = HistogramMetricFamily("sluice_engine_step_seconds", "Steps of the engine", labels=["model"])
        for model, stats in self.engines.items():
            steps.add_metric([model], _buckets(stats.step_bounds, stats.step_counts), stats.step_seconds)
        yield steps


class QueueGauges:
    """How the queue stands, the same for all: a registry of its own keeps it out of what one process
    tells its siblings."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._depth = Gauge("sluice_queue_depth", "Requests that wait", ["model"], registry=registry)
        self._running = Gauge("sluice_queue_running", "Responses that run", ["model"], registry=registry)
        self._age = Gauge(
            "sluice_queue_age_seconds", "Age of the oldest waiting request", ["model"], registry=registry
        )
        self._workers = Gauge("sluice_workers", "Workers that live", ["model"], registry=registry)

    def set(self, model: str, waiting: int, running: int, oldest_s: float, workers: int) -> None:
        self._depth.labels(model).set(waiting)
        self._running.labels(model).set(running)
        self._age.labels(model).set(oldest_s)
        self._workers.labels(model).set(workers)

    def scrape(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        return generate_latest(self._registry)


class Instruments(Collector):
    """Implements Meter, and is scraped at `/metrics`."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.queue = QueueGauges()
        self._registry = registry = CollectorRegistry()
        self._token_gaps: dict[str, _WeightedHistogram] = {}
        self._engines = _Engines()
        self._sessions = Gauge("sluice_sessions", "Open WebSocket sessions", registry=registry)
        self._closes = Counter(
            "sluice_session_closes", "Closed sessions by close code", ["code"], registry=registry
        )
        self._responses = Counter(
            "sluice_responses", "Ended responses", ["model", "status"], registry=registry
        )
        self._response_seconds = Histogram(
            "sluice_response_seconds",
            "From request to end",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "sluice_time_to_first_token_seconds",
            "From request to first token",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.loop_lag = Histogram(
            "sluice_event_loop_lag_seconds",
            "How late the event loop ran a timer",
            buckets=_SECONDS,
            registry=registry,
        )
        self._takeovers = self._queue_counter("lease_takeovers", "Responses taken over from dead workers")
        self._refused = self._queue_counter("appends_refused", "Appends that were not the next of their log")
        self._gaps = self._queue_counter("gaps_filled", "Gaps in what a server heard, filled from the log")
        self._lost = self._queue_counter("responses_lost", "Responses that the queue has lost")
        self._dead = self._queue_counter("dead_letters", "Requests given up")
        self._continued = Counter(
            "sluice_turns_continued",
            "Turns by whether the worker took them that served what they continue",
            ["model", "worker"],
            registry=registry,
        )
        self._redis_errors = Counter("sluice_redis_errors", "Failed calls of Redis", registry=registry)
        self._limiter_failures = Counter(
            "sluice_limiter_failures", "Times that budgets could not be looked up", registry=registry
        )
        self._upstream_up = Gauge(
            "sluice_upstream_up", "Whether requests go to a node", ["model", "node"], registry=registry
        )
        self._upstream_retries = Counter(
            "sluice_upstream_retries", "Requests sent to an upstream again", ["model"], registry=registry
        )
        # Looking a child up takes longer than counting; models and statuses are few.
        self._response_counter = functools.cache(self._responses.labels)
        self._response_timer = functools.cache(self._response_seconds.labels)
        self._first_token_timer = functools.cache(self._first_token.labels)
        registry.register(self)

    def _queue_counter(self, name: str, text: str) -> Counter:
        return Counter(f"sluice_{name}", text, ["model"], registry=self._registry)

    def scrape(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        return generate_latest(self._registry)

    def lease_taken_over(self, model: str) -> None:
        self._takeovers.labels(model).inc()

    def append_refused(self, model: str) -> None:
        self._refused.labels(model).inc()

    def gap_filled(self, model: str) -> None:
        self._gaps.labels(model).inc()

    def response_lost(self, model: str) -> None:
        self._lost.labels(model).inc()

    def dead_letter(self, model: str) -> None:
        self._dead.labels(model).inc()

    def turns_continued(self, model: str, same: int, other: int) -> None:
        self._continued.labels(model, "same").inc(same)
        self._continued.labels(model, "other").inc(other)

    def redis_error(self) -> None:
        self._redis_errors.inc()

    def limiter_failed(self) -> None:
        self._limiter_failures.inc()

    def upstream_up(self, model: str, node: str, *, is_up: bool) -> None:
        self._upstream_up.labels(model, node).set(is_up)

    def upstream_retried(self, model: str) -> None:
        self._upstream_retries.labels(model).inc()

    def watch_engine(self, model: str, stats: EngineStats) -> None:
        """Tell what it counts from now on."""
        if not self._engines.engines:
            self._registry.register(self._engines)
        self._engines.engines[model] = stats

    def session_opened(self) -> None:
        self._sessions.inc()

    def session_closed(self, code: int) -> None:
        self._sessions.dec()
        # A client may close with any code it likes; each label is a series for ever.
        self._closes.labels(str(code) if code in CLOSE_CODES else "other").inc()

    def response_ended(self, model: str, status: str, seconds: float) -> None:
        self._response_counter(model, str(status)).inc()
        self._response_timer(model).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        self._first_token_timer(model).observe(seconds)

    def token_gap(self, model: str, seconds: float, tokens: int) -> None:
        gaps = self._token_gaps.get(model)
        if gaps is None:
            self._token_gaps[model] = gaps = _WeightedHistogram()
        gaps.observe(seconds, tokens)

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        """Called by the registry: the instruments that are plain integers."""
        traffic = self.traffic
        yield CounterMetricFamily("sluice_frames_out", "Text frames written", value=traffic.frames_out)
        yield CounterMetricFamily("sluice_bytes_out", "Bytes written in frames", value=traffic.bytes_out)
        gaps = HistogramMetricFamily(
            "sluice_time_between_tokens_seconds", "Between the tokens of a response", labels=["model"]
        )
        for model, histogram in self._token_gaps.items():
            gaps.add_metric([model], histogram.buckets(), histogram.sum)
        yield gaps
