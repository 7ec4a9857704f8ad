"""The report: one HTML file that needs nothing else, not even a script. Every word in it is escaped."""

import html
import math
from collections.abc import Sequence
from datetime import datetime

from cmd.loadtest import charts
from cmd.loadtest.options import DialectName, Options
from cmd.loadtest.stats import Interval, LogHistogram, Tally
from cmd.loadtest.summary import LATENCY_HEADS, Rows, Summary

MAX_SHOWN_CHARS = 200
_BARS = 60
_MS = 1000.0
_SMALLEST_MS = 0.001


def render(options: Options, started: datetime, tally: Tally, summary: Summary) -> str:
    """The whole page."""
    intervals = list(tally.timeline.intervals())
    figures = [
        _figure("Time to first chunk", _histogram(tally.first_chunk)),
        _figure("Time between chunks", _histogram(tally.between_chunks)),
        _figure("Latency by percentile", _percentiles(tally)),
        _figure("Frames per second", _rates(intervals)),
        _figure("Open connections", _open_connections(intervals)),
    ]
    return _PAGE.format(
        style=_STYLE,
        verdict=html.escape(summary.verdict),
        tone="good" if summary.passed else "bad",
        date=html.escape(started.strftime("%Y-%m-%d %H:%M:%S %z")),
        url=html.escape(options.shown_url),
        options=_pairs(_option_rows(options)),
        figures=_pairs(summary.figures),
        latencies=_latency_table(summary),
        failures=_failures(summary),
        plots="\n".join(figures),
    )


def _option_rows(options: Options) -> Rows:
    rows = [
        ("-connections", f"{options.connections:,}"),
        ("-rounds", f"{options.rounds:,}"),
        ("-message", _shorten(options.message)),
        ("-dialect", options.dialect.value),
        ("-model", _shorten(options.model or "the server's default")),
        ("-ramp", f"{options.ramp_per_s:g} per second" if options.ramp_per_s else "as fast as they open"),
        ("-timeout", f"{options.timeout_s:g} s"),
    ]
    if options.dialect is DialectName.TEXT:
        rows.insert(5, ("-chunks", f"{options.chunks:,}"))
    return tuple(rows)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}… ({len(text):,} characters)"


def _pairs(rows: Rows) -> str:
    body = (
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    return f"<table>{''.join(body)}</table>"


def _latency_table(summary: Summary) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in LATENCY_HEADS)
    body = (
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(figure)}</td>" for figure in row)
        + "</tr>"
        for name, row in summary.latencies
    )
    return f'<table class="numbers"><tr><th scope="col">ms</th>{head}</tr>{"".join(body)}</table>'


def _failures(summary: Summary) -> str:
    if not summary.failures:
        return ""
    hint = f"<p>{html.escape(summary.hint)}</p>" if summary.hint else ""
    return f"<section><h2>Failures by cause</h2>{_pairs(summary.failures)}{hint}</section>"


def _figure(title: str, plot: str | None) -> str:
    shown = plot or '<p class="empty">Nothing was measured.</p>'
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{shown}</figure>"


def _histogram(latencies: LogHistogram) -> str | None:
    bars = [(low * _MS, high * _MS, count) for low, high, count in latencies.bars(_BARS)]
    if not bars:
        return None
    return charts.histogram(bars, charts.log_axis(bars[0][0], bars[-1][1], "ms"), "ms")


def _percentiles(tally: Tally) -> str | None:
    named = [
        ("time to first chunk", "first", tally.first_chunk),
        ("time between chunks", "second", tally.between_chunks),
    ]
    measured = [(name, colour, latencies) for name, colour, latencies in named if latencies.count]
    if not measured:
        return None
    # 0, 90, 99, 99.9 … stand at equal distances, as far as there are samples to speak of.
    nines = max(1, min(5, int(math.log10(max(latencies.count for _, _, latencies in measured)))))
    series = [
        charts.Series(
            name,
            colour,
            [
                (depth / 20, max(latencies.percentile_s(100 - 100 * 10 ** (-depth / 20)) * _MS, _SMALLEST_MS))
                for depth in range(20 * nines + 1)
            ],
        )
        for name, colour, latencies in measured
    ]
    ticks = [(0.0, "0 %"), (math.log10(2), "50 %"), (1.0, "90 %"), (2.0, "99 %")]
    ticks += [(float(depth), f"{100 - 100 * 10.0**-depth:.{depth - 2}f} %") for depth in range(3, nines + 1)]
    values = [value for one in series for _, value in one.points]
    return charts.lines(
        series,
        charts.Axis(0.0, float(nines), [tick for tick in ticks if tick[0] <= nines], "percentile"),
        charts.log_axis(min(values), max(values), "ms"),
    )


def _rates(intervals: Sequence[Interval]) -> str | None:
    if not intervals:
        return None
    # A step per interval: the area is the number of frames.
    points = [point for i in intervals for point in ((i.start_s, i.frames_per_s), (i.end_s, i.frames_per_s))]
    highest = charts.linear_axis(max(i.frames_per_s for i in intervals), "frames/s")
    return charts.area(points, _time_axis(intervals), highest, "first")


def _open_connections(intervals: Sequence[Interval]) -> str | None:
    if not intervals:
        return None
    points = [(0.0, 0.0), *((i.end_s, float(i.open_connections)) for i in intervals)]
    highest = charts.linear_axis(max(1, *(i.open_connections for i in intervals)), "open")
    return charts.area(points, _time_axis(intervals), highest, "second")


def _time_axis(intervals: Sequence[Interval]) -> charts.Axis:
    axis = charts.linear_axis(intervals[-1].end_s, "seconds")
    end_s = intervals[-1].end_s
    return charts.Axis(0.0, end_s, [tick for tick in axis.ticks if tick[0] <= end_s], "seconds")


_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2430; --soft: #5d6878;
  --rule: #e1e5ea;  --first: #2563eb; --second: #0f9f80; --good: #15803d; --bad: #c02626; }
@media (prefers-color-scheme: dark) { :root { --page: #11151b; --card: #1a2029; --ink: #e5e9ef;
  --soft: #97a3b3;  --rule: #2c3541; --first: #6ea0ff; --second: #3fcfac; --good: #4ade80; --bad: #f87171; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
header p { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
h1 { margin: 0 0 4px; font-size: 26px; letter-spacing: -.01em; }
h2, figcaption { margin: 0 0 10px; font-size: 15px; font-weight: 600; }
.verdict { margin: 20px 0; padding: 12px 16px; border-radius: 10px; background: var(--card); font-weight: 600;
  border: 1px solid var(--rule); border-left: 5px solid; overflow-wrap: anywhere; }
.good { border-left-color: var(--good); } .bad { border-left-color: var(--bad); }
.grid-of-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 16px; }
section, figure { margin: 0; padding: 16px 18px; border: 1px solid var(--rule); border-radius: 10px;
  background: var(--card); min-width: 0; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 0; border-top: 1px solid var(--rule); text-align: left; vertical-align: top; }
tr:first-child > * { border-top: 0; }
th { padding-right: 16px; color: var(--soft); font-weight: 400; } td { overflow-wrap: anywhere; }
.numbers td, .numbers th + th { text-align: right; padding-left: 12px; }
.empty { color: var(--soft); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; }
svg .title, svg .tick { text-anchor: middle; } svg .side { text-anchor: end; }
svg .grid { stroke: var(--rule); fill: none; } svg .axis { stroke: var(--soft); fill: none; }
svg rect.first { fill: var(--first); } svg rect.second { fill: var(--second); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .line.first { stroke: var(--first); } svg .line.second { stroke: var(--second); }
svg .area { opacity: .16; } svg .area.first { fill: var(--first); } svg .area.second { fill: var(--second); }
@media print { main { max-width: none; padding: 0; } section, figure { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Load test: {verdict}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>Load test</h1><p>{url}</p><p>{date}</p></header>
<p class="verdict {tone}">{verdict}</p>
<div class="grid-of-cards">
<section><h2>Result</h2>{figures}</section>
<section><h2>Latency</h2>{latencies}</section>
{failures}
<section><h2>Options</h2>{options}</section>
{plots}
</div>
</main>
</body>
</html>
"""
