"""Bars over time (UTC) as SVG: one chart of the whole, and one for each part of it to look closer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from typing import NamedTuple

from ._summary import HOUR_NS, KINDS, MINUTE_NS, Times

#: Bars that one chart has at most, and parts that have a chart of their own: the last ones.
BARS_MAX, PARTS_MAX = 400, 31
#: Measures of a chart, in units of its own.
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 960, 200, 48, 12, 24
#: A bar is no wider than that, however few there are.
_BAR_MAX = 90
#: Labels below a chart, about.
_TICKS = 8

Counts = dict[int, Counter[str]]


class _Unit(NamedTuple):
    name: str
    ns: int
    form: str


_MINUTE = _Unit("minute", MINUTE_NS, "%Y-%m-%d %H:%M")
_HOUR = _Unit("hour", HOUR_NS, "%Y-%m-%d %H:00")
_DAY = _Unit("day", 24 * HOUR_NS, "%Y-%m-%d")
#: Up to so many hours the whole is shown by minute, or by hour.
_BY_MINUTE, _BY_HOUR = 3, 72


@dataclass(frozen=True)
class Bar:
    """One of them: when it begins, and how many spawns of each kind there are."""

    label: str
    kinds: Counter[str]


@dataclass(frozen=True)
class Chart:
    """Bars without a gap. ``left_out`` is how many spawns are earlier than the first."""

    title: str
    bars: list[Bar]
    left_out: int = 0


def charts(times: Times) -> list[Chart]:
    """Return the chart of the whole, then those of its parts, the last part first."""
    if not times.hours:
        return []
    first, last = min(times.hours), max(times.hours)
    if times.minutes is not None and last - first < _BY_MINUTE:
        return [_chart(times.minutes, _MINUTE)]
    if last - first < _BY_HOUR:
        return [_chart(times.hours, _HOUR), *_parts(times.minutes or {}, 60, _MINUTE, _HOUR)]
    return [_chart(_by_day(times.hours), _DAY), *_parts(times.hours, 24, _HOUR, _DAY)]


def _by_day(hours: Counts) -> Counts:
    days: Counts = {}
    for hour, kinds in hours.items():
        days.setdefault(hour // 24, Counter()).update(kinds)
    return days


def _bars(counts: Counts, numbers: range, unit: _Unit) -> list[Bar]:
    return [Bar(_label(number, unit), counts.get(number, Counter())) for number in numbers]


def _chart(counts: Counts, unit: _Unit) -> Chart:
    last = max(counts)
    first = max(min(counts), last - BARS_MAX + 1)
    early = sum(kinds.total() for number, kinds in counts.items() if number < first)
    return Chart(f"Spawns by {unit.name}", _bars(counts, range(first, last + 1), unit), early)


def _parts(counts: Counts, size: int, unit: _Unit, whole: _Unit) -> list[Chart]:
    """Return a chart for each ``whole`` that has any, of ``size`` bars."""
    numbers = sorted({number // size for number in counts}, reverse=True)[:PARTS_MAX]
    return [
        Chart(_label(number, whole), _bars(counts, range(number * size, (number + 1) * size), unit))
        for number in numbers
    ]


def _label(number: int, unit: _Unit) -> str:
    seconds = number * unit.ns // 1_000_000_000
    return datetime.fromtimestamp(seconds, timezone.utc).strftime(unit.form)


def told(kinds: Counter[str]) -> str:
    """Return the numbers of one bar in words."""
    return ", ".join(f"{kinds[name]} {name}" for name in KINDS if kinds[name]) or "none"


def _round_up(value: int) -> int:
    """Return the next of 1, 2, 5, 10, 20, 50 and so on."""
    step = 1
    while True:
        for digit in (1, 2, 5):
            if digit * step >= value:
                return digit * step
        step *= 10


def svg(chart: Chart) -> str:
    """Return the picture; its numbers in words are for the page to give."""
    top = _round_up(max(bar.kinds.total() for bar in chart.bars))
    high, wide = _HEIGHT - _TOP - _BOTTOM, min(_BAR_MAX, (_WIDTH - _LEFT) / len(chart.bars))
    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{escape(chart.title)}">',
        *_grid(top, high),
    ]
    every, skip = max(1, len(chart.bars) // _TICKS), _label_start(chart)
    for number, bar in enumerate(chart.bars):
        left = _LEFT + number * wide
        if bar.kinds:
            parts.append(_stack(bar, left, wide, high / top))
        if number % every == 0 and left < _WIDTH - 60:
            label = escape(bar.label[skip:])
            parts.append(f'<text class="x" x="{left:.1f}" y="{_HEIGHT - 8}">{label}</text>')
    return "".join([*parts, "</svg>"])


def _label_start(chart: Chart) -> int:
    """Return how much of the labels need not be repeated: the day where all have the same, else the year."""
    first, last = chart.bars[0].label, chart.bars[-1].label
    return len("2026-11-29 ") if len(first) > len("2026-11-29") and first[:10] == last[:10] else len("2026-")


def _grid(top: int, high: int) -> list[str]:
    lines = []
    for value in sorted({0, top // 2, top}):
        y = _TOP + high - high * value / top
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="y" x="{_LEFT - 6}" y="{y + 4:.1f}">{value}</text>')
    return lines


def _stack(bar: Bar, left: float, wide: float, scale: float) -> str:
    """Return one bar: the kinds one on the other, with the words for a pointer that rests on it."""
    parts = [f"<g><title>{escape(bar.label)}: {escape(told(bar.kinds))}</title>"]
    bottom = float(_HEIGHT - _BOTTOM)
    for name in KINDS:
        if bar.kinds[name]:
            tall = bar.kinds[name] * scale
            bottom -= tall
            size = f'width="{max(0.8, wide * 0.86):.2f}" height="{tall:.2f}"'
            parts.append(f'<rect class="k-{name}" x="{left:.2f}" y="{bottom:.2f}" {size}/>')
    return "".join([*parts, "</g>"])
