"""What a load test found, as rows of words: the table on the terminal, and what the report shows."""

from dataclasses import dataclass

from cmd.loadtest.client import STOPPED_SHORT
from cmd.loadtest.dialects import AFTER_THE_END, UNEXPECTED_TEXT
from cmd.loadtest.options import DialectName, Options
from cmd.loadtest.stats import LogHistogram, Tally

Rows = tuple[tuple[str, str], ...]
LATENCY_HEADS = ("p50", "p90", "p99", "max")
_FEW_FRAMES_PER_S = 10


@dataclass(frozen=True, slots=True)
class Summary:
    """`latencies` are in ms, one figure for each of LATENCY_HEADS."""

    verdict: str
    passed: bool
    figures: Rows
    latencies: tuple[tuple[str, tuple[str, ...]], ...]
    failures: Rows
    hint: str | None


def summarize(options: Options, tally: Tally, *, interrupted: bool) -> Summary:
    passed = not tally.failures and tally.answered == options.messages
    return Summary(
        verdict=_verdict(options, tally, interrupted=interrupted),
        passed=passed,
        figures=_figures(options, tally),
        latencies=(
            ("time to open", _latency(tally.opening)),
            ("time to first chunk", _latency(tally.first_chunk)),
            ("time between chunks", _latency(tally.between_chunks)),
        ),
        failures=tuple((cause, f"{count:,}") for cause, count in tally.failures.most_common()),
        hint=_hint(options, tally),
    )


def as_text(options: Options, summary: Summary) -> str:
    lines = [f"{options.shown_url} ({options.dialect} dialect)", ""]
    lines += [f"{name:<22}{value}" for name, value in summary.figures]
    lines += ["", f"{'ms':<22}" + "".join(f"{head:>12}" for head in LATENCY_HEADS)]
    lines += [f"{name:<22}" + "".join(f"{figure:>12}" for figure in row) for name, row in summary.latencies]
    if summary.failures:
        lines += ["", "failures by cause"]
        lines += [f"{count:>12}  {cause}" for cause, count in summary.failures]
    if summary.hint:
        lines += ["", summary.hint]
    return "\n".join([*lines, "", summary.verdict])


def _verdict(options: Options, tally: Tally, *, interrupted: bool) -> str:
    answered = f"{tally.answered:,} of {options.messages:,} messages answered in full"
    if interrupted:
        return f"INTERRUPTED: {answered} so far"
    failures = tally.failures.total()
    if failures or tally.answered < options.messages:
        return f"FAILED: {answered}, {failures:,} failure{'' if failures == 1 else 's'}"
    return f"OK: {answered}, in order, nothing lost, nothing twice"


def _figures(options: Options, tally: Tally) -> Rows:
    waiting = tally.sent - tally.answered - tally.failed
    unsent = options.messages - tally.sent
    return (
        (
            "connections",
            f"{options.connections:,} asked, {tally.opened:,} opened, {tally.most_open:,} at once",
        ),
        (
            "messages",
            f"{options.messages:,} asked, {tally.answered:,} answered, {tally.failed:,} failed"
            + (f", {unsent:,} never sent" if unsent else "")
            + (f", {waiting:,} cut off" if waiting else ""),
        ),
        ("failures", f"{tally.failures.total():,}"),
        ("frames", f"{tally.frames:,}"),
        ("frames/s", f"{_rate(tally.frames_per_s)} (peak {_rate(tally.peak_frames_per_s)})"),
        ("duration", f"{tally.ended_at - tally.started_at:,.1f} s"),
        ("tester's own delay", f"{_ms(tally.own_delay_s)} ms at most"),
    )


def _latency(histogram: LogHistogram) -> tuple[str, ...]:
    if not histogram.count:
        return ("–",) * len(LATENCY_HEADS)
    return tuple(_ms(histogram.percentile_s(percent)) for percent in (50, 90, 99, 100))


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1000
    return f"{milliseconds:,.2f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def _rate(per_s: float) -> str:
    return f"{per_s:,.1f}" if per_s < _FEW_FRAMES_PER_S else f"{per_s:,.0f}"


def _hint(options: Options, tally: Tally) -> str | None:
    if options.dialect is not DialectName.TEXT:
        return None
    unlike_echo = (UNEXPECTED_TEXT, STOPPED_SHORT, AFTER_THE_END)
    if not any(mark in cause for cause in tally.failures for mark in unlike_echo):
        return None
    return (
        f"The text dialect expects the echo model's answer in {options.chunks} chunks (-chunks). "
        "For other models use -dialect responses."
    )
