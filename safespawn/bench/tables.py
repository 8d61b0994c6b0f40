"""Tables of results, for a terminal and for a page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from . import results as _results
from . import targets
from .results import Results, Row
from .spread import Spread


class Table(NamedTuple):
    """A title, the heads of the columns, and the cells as text, row by row."""

    title: str
    head: list[str]
    rows: list[list[str]]


#: Bytes from which on a way is said to keep something.
_KEPT = 1 << 20

#: What a measure is, for the title of its table.
MEASURES = {
    "exit": "From the call to the end of the program",
    "call": "The call itself",
    "exec": "From the call to the program's beginning",
    "stall": "Longest stall of another thread during a spawn",
    "faults": "Page faults of the parent, with a MiB of its memory written afterwards",
    "touch": "Time to write to that MiB",
    "memory": "Memory taken during a spawn, at the most",
    "kept": "Memory of the processes that a way keeps, after its first spawns",
    "rate": "Spawns a second",
    "batch": "From the first call of a batch to the end of its last program",
    "batch-start": "Until all of a batch are started",
    "hang": "Longest stall of another thread while an exec hangs for 1 s",
    "window": "The window in C, on the core itself",
}


def significant(value: float) -> str:
    """Return a number with about three digits, and thousands apart."""
    if value == int(value) and abs(value) < 100:
        return f"{value:.0f}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _scaled(value: float, steps: Sequence[tuple[str, float]]) -> tuple[str, float]:
    return next((step for step in steps if abs(value) >= step[1]), steps[-1])


_SCALES = {
    "ns": (("s", 1e9), ("ms", 1e6), ("µs", 1e3)),
    "bytes": (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)),
    "faults": (("", 1.0),),
}


def shown(found: Spread, unit: str) -> str:
    """Return a median with its quartiles, in a unit that suits it."""
    name, scale = _scaled(found.median or found.high, _SCALES[unit])
    median, low, high = (significant(value / scale) for value in found[:3])
    return f"{median} {name} ({low} to {high})".replace("  ", " ")


def per_second(found: Spread) -> str:
    """Return nanoseconds for one as how many a second, with quartiles."""
    median, low, high = (significant(1e9 / max(value, 1)) for value in (found.median, found.high, found.low))
    return f"{median}/s ({low} to {high})"


def cell(row: Row) -> str:
    """Return what stands for a row in a table."""
    return per_second(row.spread) if row.measure == "rate" else shown(row.spread, row.unit)


#: Axis to what its columns are: the head, by a row.
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "size": lambda row: f"{row.mib:,} MiB",
    "user": lambda row: f"{row.mib:,} MiB",
    "threads": lambda row: f"{row.threads} threads" if row.threads > 1 else "1 thread",
    "pages": lambda row: f"{row.mib:,} MiB, {row.pages}",
    "spawners": lambda row: f"{row.many} threads" if row.many > 1 else "1 thread",
    "batch": lambda row: f"{row.many} at once",
    "question": lambda row: f"{row.mib:,} MiB, {row.pages}" if row.mib else "minimal",
    "targets": lambda row: f"{row.mib} MiB, {row.threads} threads" if row.threads > 1 else f"{row.mib} MiB",
}


def grid(title: str, rows: Iterable[Row], column: Callable[[Row], str]) -> Table:
    """Return a table of ways by places."""
    found = list(rows)
    heads = list(dict.fromkeys(map(column, found)))
    cells = {(row.way, column(row)): cell(row) for row in found}
    lines = [[way, *(cells.get((way, head), "") for head in heads)] for way in _results.ways(found)]
    return Table(title, ["", *heads], lines)


def of_axis(results: Results, axis: str) -> list[Table]:
    """Return a table for each measure that was taken along an axis."""
    made = []
    for measure, title in MEASURES.items():
        for who, user in (("self", ""), ("other", ", as another user")):
            rows = list(results.select(axis=axis, measure=measure, who=who))
            if measure == "kept":  # most ways keep nothing; less is pages that are no longer shared
                rows = [row for row in rows if row.spread.median >= _KEPT]
            if rows:
                made.append(grid(f"{title}{user}, by {axis}", rows, _COLUMNS[axis]))
    return made


def of_targets(found: Sequence[targets.Verdict]) -> Table:
    """Return the table of the targets."""
    lines = []
    for target, measured, _, word in found:
        limit = f"at {'least' if target.at_least else 'most'} {target.limit:g} {target.unit}"
        text = ""
        if measured is not None:
            median, low, high = (significant(value) for value in measured[:3])
            text = f"{median} {target.unit} ({low} to {high})"
        lines.append([target.name, limit, text, word])
    return Table("Targets", ["", "target", "measured", "verdict"], lines)


def of_missing(results: Results) -> Table:
    """Return what is missing, each with its reason once."""
    places: dict[tuple[str, str], list[str]] = {}
    for one in results.missing:
        places.setdefault((one.what, one.why), []).append(one.where)
    lines = []
    for (what, why), where in places.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        lines.append([what, f"{where[0]}{more}", why])
    return Table("Not measured", ["", "where", "why"], lines)


def of_done(results: Results) -> Table:
    """Return what our reports say was done, by way and axis."""
    told: dict[tuple[str, str], dict[str, int]] = {}
    for row in results.rows:
        if row.measure in ("exit", "rate", "batch"):
            counts = told.setdefault((row.axis, row.way), {})
            for what, times in row.done.items():
                counts[what] = counts.get(what, 0) + times
    lines = [
        [way, axis, "; ".join(f"{what} ({times})" for what, times in counts.items())]
        for (axis, way), counts in told.items()
        if counts
    ]
    return Table("What our reports say was done", ["", "axis", "strategy, proof (times)"], lines)


def text(table: Table) -> str:
    """Return a table for a terminal."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.head))]
    body = ("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join([table.title, *(f"  {line}".rstrip() for line in body)])


def markdown(table: Table) -> str:
    """Return a table for a page, without its title."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(word.replace("|", r"\|") for word in line) + " |" for line in lines)
