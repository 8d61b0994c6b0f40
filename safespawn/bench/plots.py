"""Plots of results, as PNG and SVG: one picture for each measure along an axis."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import results as _results
from .results import Results, Row


class Plot(NamedTuple):
    """A picture: its file's name, title, axis and measure, the label of each side, and where a row stands.

    ``ways``: those that it has; none: all that have a look.
    """

    name: str
    title: str
    axis: str
    measure: str
    x_label: str
    y_label: str
    x: Callable[[Row], float]
    who: str = "self"
    ways: tuple[str, ...] = ()


#: Ways that have a line, with colour and mark: theirs in cold colours, ours in warm ones.
LOOKS = {
    "C fork, execve": ("#444444", "o"),
    "C vfork, execve": ("#999999", "v"),
    "C posix_spawn": ("#111111", "s"),
    "C program, fork alone": ("#888888", "x"),
    "subprocess.run": ("#1f5fa8", "o"),
    "subprocess.Popen": ("#1f5fa8", "v"),
    "os.posix_spawn": ("#5fa8d3", "s"),
    "multiprocessing, fork": ("#6a51a3", "o"),
    "multiprocessing, forkserver": ("#9e9ac8", "v"),
    "Rust Command": ("#2f7f5f", "D"),
    "Node.js child_process.spawn": ("#66a61e", "P"),
    "Java ProcessBuilder": ("#00798c", "X"),
    "safespawn.spawn": ("#d62728", "o"),
    "safespawn.run": ("#ff7f0e", "s"),
    "safespawn.spawn, fork": ("#8c510a", "v"),
    "safespawn.spawn, launcher": ("#e377c2", "D"),
    "safespawn.spawn, posix_spawn": ("#bf812d", "P"),
    "safespawn.spawn, clone": ("#fdae61", "X"),
    "safespawn.spawn, helper": ("#c51b7d", "^"),
    "safespawn.spawn, pool": ("#f46d43", "*"),
    "safespawn.spawn_many": ("#a50026", "^"),
    "nothing but a sleep of 1 ms": ("#cccccc", "_"),
}

#: Line and addition to the name, by the pages of the parent.
PAGES = {"small": ("-", ""), "huge": ("--", ", huge pages"), "prepared": (":", ", prepare_fork()")}
#: Those in which pages make a difference, and one in which they do not.
_PAGED = ("C fork, execve", "subprocess.run", "safespawn.spawn", "safespawn.spawn, fork")

_SIZE = "resident ballast of the parent, MiB"
_US = 1e3


def _mib(row: Row) -> float:
    return float(row.mib)


def _many(row: Row) -> float:
    return float(row.many)


PLOTS = (
    Plot("exit-by-size", "From the call to the end of the program", "size", "exit", _SIZE, "µs", _mib),
    Plot("exec-by-size", "From the call to the program's beginning", "size", "exec", _SIZE, "µs", _mib),
    Plot("call-by-size", "The call itself", "size", "call", _SIZE, "µs", _mib),
    Plot("stall-by-size", "Longest stall of another thread", "size", "stall", _SIZE, "µs", _mib),
    Plot("faults-by-size", "Page faults of the parent afterwards", "size", "faults", _SIZE, "faults", _mib),
    Plot("memory-by-size", "Memory taken during a spawn", "size", "memory", _SIZE, "KiB", _mib),
    Plot(
        "exit-by-threads",
        "From the call to the end, beside threads",
        "threads",
        "exit",
        "threads of the parent",
        "µs",
        lambda row: float(row.threads),
    ),
    Plot("user-by-size", "As another user", "user", "exit", _SIZE, "µs", _mib, who="other"),
    Plot("exit-by-pages", "By pages", "pages", "exit", _SIZE, "µs", _mib, ways=_PAGED),
    Plot("rate-by-spawners", "Spawns a second", "spawners", "rate", "threads that spawn", "1/s", _many),
    Plot("batch-by-size", "A batch, to the end of its last", "batch", "batch", "children", "µs", _many),
)

#: What a sample in the unit of its measure is in that of a plot.
_SCALE: dict[str, Callable[[float], float]] = {
    "µs": lambda value: value / _US,
    "faults": lambda value: value,
    "KiB": lambda value: value / 1024,
    "1/s": lambda value: 1e9 / max(value, 1),
}


def _of(plot: Plot, results: Results) -> list[Row]:
    rows = results.select(axis=plot.axis, measure=plot.measure, who=plot.who)
    return [row for row in rows if row.way in (plot.ways or LOOKS)]


def _line(axes: Any, plot: Plot, rows: Sequence[Row]) -> None:
    scale = _SCALE[plot.y_label]
    rows = sorted(rows, key=plot.x)
    x = [plot.x(row) for row in rows]
    found = [row.spread for row in rows]
    middle = [scale(one.median) for one in found]
    # Quartiles change places where more is less: a rate.
    below = [abs(scale(one.median) - min(scale(one.low), scale(one.high))) for one in found]
    above = [abs(max(scale(one.low), scale(one.high)) - scale(one.median)) for one in found]
    colour, mark = LOOKS[rows[0].way]
    line, pages = PAGES[rows[0].pages]
    axes.errorbar(
        x,
        middle,
        yerr=[below, above],
        color=colour,
        linestyle=line,
        marker=mark,
        markersize=5,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
        label=f"{rows[0].way}{pages}",
    )


def _plain(axis: Any, ticks: Sequence[float]) -> None:
    """Label a logarithmic axis with the values that were measured, as they are."""
    axis.set_ticks(sorted(set(ticks)), labels=[f"{tick:g}" for tick in sorted(set(ticks))])
    axis.set_ticks([], minor=True)


def _steps(matplotlib: Any, axis: Any) -> None:
    """Label a logarithmic axis at 1, 2 and 5 of each power of ten, as plain numbers."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def _draw(matplotlib: Any, figure: Any, plot: Plot, rows: Sequence[Row], machine: str) -> None:
    axes = figure.add_subplot()
    for way in sorted(_results.ways(rows), key=list(LOOKS).index):
        for pages in PAGES:
            found = [row for row in rows if (row.way, row.pages) == (way, pages)]
            if found:
                _line(axes, plot, found)
    axes.set_xscale("log")
    # From 0 where there is a zero: a logarithm has none.
    smallest = min(row.spread.low for row in rows)
    if smallest > 0:
        axes.set_yscale("log")
        _steps(matplotlib, axes.yaxis)
    else:
        axes.set_yscale("symlog")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    _plain(axes.xaxis, [plot.x(row) for row in rows])
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.set_title(f"{plot.title} (median, quartiles)", loc="left", fontsize=10)
    axes.grid(visible=True, alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.supxlabel(machine, fontsize=5, color="#666666", x=0.01, horizontalalignment="left")


@contextlib.contextmanager
def _style(matplotlib: Any) -> Iterator[None]:
    """Have pictures without anything that differs from one time to the next, and text that is text."""
    with matplotlib.rc_context({"svg.hashsalt": "safespawn", "svg.fonttype": "none", "font.size": 8}):
        yield


def draw(results: Results, where: Path, machine: str) -> list[Path]:
    """Write PNG and SVG of each plot that has rows into a directory; return the files.

    Raises ModuleNotFoundError that tells the extra where matplotlib is not installed, OSError for a directory
    that cannot be written to.
    """
    try:
        import matplotlib.ticker  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415 - as above
    except ImportError as problem:
        raise ModuleNotFoundError(
            f"plots need matplotlib, the extra safespawn[bench]: {problem}"
        ) from problem
    where.mkdir(parents=True, exist_ok=True)
    made = []
    with _style(matplotlib):
        for plot in PLOTS:
            rows = _of(plot, results)
            if not rows or not any(math.isfinite(row.spread.median) for row in rows):
                continue
            figure = Figure(figsize=(8, 4.2), layout="constrained", facecolor="white")
            _draw(matplotlib, figure, plot, rows, machine)
            for kind, options in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
                path = where / f"{plot.name}.{kind}"
                figure.savefig(path, format=kind, **options)
                made.append(path)
    return made
