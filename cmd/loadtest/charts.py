"""Small plots as inline SVG. Knows numbers and pixels, not load tests; the page's CSS has the colours."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 30, 26, 44
_FLOOR = HEIGHT - BOTTOM
_LEGEND_WIDTH = 190

Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps `low`…`high` to pixels, linearly or by logarithm. Both must be above 0 for a logarithm."""

    low: float
    high: float
    ticks: Ticks
    title: str
    log: bool = False

    def place(self, value: float, start_px: float, end_px: float) -> float:
        warp: Callable[[float], float] = math.log if self.log else float
        low, high = warp(self.low), warp(self.high)
        share = (warp(min(max(value, self.low), self.high)) - low) / (high - low)
        return start_px + share * (end_px - start_px)


@dataclass(frozen=True, slots=True)
class Series:
    """A named line; `colour` is a CSS class of the page."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


def linear_axis(high: float, title: str) -> Axis:
    """From 0 to a round number not below `high`."""
    step = _round_up(max(high, 1e-9) / 5)
    count = max(1, math.ceil(high / step - 1e-9))
    return Axis(0.0, step * count, [(step * i, _number(step * i)) for i in range(count + 1)], title)


def log_axis(low: float, high: float, title: str) -> Axis:
    """From `low` to `high`, both above 0, with ticks at 1, 2 and 5 (or only 1) times powers of ten."""
    if high < low * 1.5:
        low, high = low / 1.25, high * 1.25
    if high < low * 10:  # too few powers: round numbers, as on a linear axis
        step = _round_up((high - low) / 6)
        ticks = [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
    else:
        steps = (1, 2, 5) if high / low < 2000 else (1,)
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    return Axis(low, high, [(tick, _number(tick)) for tick in ticks if low <= tick <= high], title, log=True)


def histogram(bars: Sequence[tuple[float, float, int]], axis: Axis, unit: str) -> str:
    """Bars (from, to, count) over `axis`."""
    counts = linear_axis(max(count for _, _, count in bars), "count")
    shapes = []
    for low, high, count in bars:
        if not count:
            continue
        left, right, top = _x(axis, low), _x(axis, high), _y(counts, count)
        shapes.append(
            f'<rect class="first" x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 1):.1f}" '
            f'height="{_FLOOR - top:.1f}">'
            f"<title>{html.escape(f'{_number(low)} to {_number(high)} {unit}: {count:,}')}</title></rect>"
        )
    return _frame(axis, counts, shapes)


def lines(series: Sequence[Series], x_axis: Axis, y_axis: Axis) -> str:
    """One line per series, and above them a legend."""
    shapes = []
    for place, one in enumerate(series):
        name = html.escape(one.name)
        path = _path((_x(x_axis, x), _y(y_axis, y)) for x, y in one.points)
        left = LEFT + _LEGEND_WIDTH * place
        shapes += [
            f'<path class="line {one.colour}" d="{path}"><title>{name}</title></path>',
            f'<path class="line {one.colour}" d="M{left},10h20"/>',
            f'<text x="{left + 26}" y="14">{name}</text>',
        ]
    return _frame(x_axis, y_axis, shapes)


def area(points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis, colour: str) -> str:
    """A filled line down to 0."""
    path = _path((_x(x_axis, x), _y(y_axis, y)) for x, y in points)
    first, last = _x(x_axis, points[0][0]), _x(x_axis, points[-1][0])
    return _frame(
        x_axis,
        y_axis,
        [
            f'<path class="area {colour}" d="{path}L{last:.1f},{_FLOOR}L{first:.1f},{_FLOOR}Z"/>',
            f'<path class="line {colour}" d="{path}"/>',
        ],
    )


def _frame(x_axis: Axis, y_axis: Axis, shapes: Iterable[str]) -> str:
    label = html.escape(f"{y_axis.title} by {x_axis.title}")
    middle, turned = (LEFT + WIDTH - RIGHT) / 2, f"translate(12 {(TOP + _FLOOR) / 2}) rotate(-90)"
    return "".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">',
            *(_x_tick(_x(x_axis, value), text) for value, text in x_axis.ticks),
            *(_y_tick(_y(y_axis, value), text) for value, text in y_axis.ticks),
            f'<path class="axis" d="M{LEFT},{_FLOOR}H{WIDTH - RIGHT}"/>',
            f'<text class="title" x="{middle}" y="{HEIGHT - 6}">{html.escape(x_axis.title)}</text>',
            f'<text class="title" transform="{turned}">{html.escape(y_axis.title)}</text>',
            *shapes,
            "</svg>",
        ]
    )


def _x_tick(x: float, text: str) -> str:
    return (
        f'<path class="grid" d="M{x:.1f},{TOP}V{_FLOOR}"/>'
        f'<text class="tick" x="{x:.1f}" y="{_FLOOR + 16}">{html.escape(text)}</text>'
    )


def _y_tick(y: float, text: str) -> str:
    return (
        f'<path class="grid" d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="side" x="{LEFT - 8}" y="{y + 4:.1f}">{html.escape(text)}</text>'
    )


def _x(axis: Axis, value: float) -> float:
    return axis.place(value, LEFT, WIDTH - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return axis.place(value, _FLOOR, TOP)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9))


def _number(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.4g}k" if value < 1_000_000 else f"{value / 1_000_000:,.4g}M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
