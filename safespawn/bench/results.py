"""What a run yields, and its form as JSON. Pure; docs/measurements.md tells every field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from . import spread

#: Named in the file; another number means that a field has another meaning.
FORMAT = "safespawn-bench-1"

#: The unit of each measure.
UNITS = {
    "call": "ns",
    "exit": "ns",
    "exec": "ns",
    "stall": "ns",
    "touch": "ns",
    "faults": "faults",
    "memory": "bytes",
    "kept": "bytes",
    "rate": "ns",
    "runs": "ns",
    "batch": "ns",
    "batch-start": "ns",
    "hang": "ns",
    "window": "ns",
}


class Place(NamedTuple):
    """The process that spawns: MiB of ballast, threads, and its pages ("small", "huge" or "prepared")."""

    mib: int = 0
    threads: int = 1
    pages: str = "small"


class Missing(NamedTuple):
    """What was not measured: the way or the peer, where that was, and why."""

    what: str
    where: str
    why: str


@dataclass(frozen=True)
class Row:
    """All samples of one measure of one way in one place.

    ``who``: whether the child is ourselves ("self") or another user ("other"). ``many``: threads that spawn
    at once (measure ``rate``), children of a batch (``batch``), else 1. ``shift``: those that did not fit
    into memory together were measured one shift after another. ``rounds``: samples in ``unit``, one list per
    round. ``done``: what our reports say was done, strategy and proof, and how often.
    """

    axis: str
    mib: int
    threads: int
    pages: str
    way: str
    who: str
    many: int
    measure: str
    unit: str
    shift: int
    rounds: list[list[int]]
    done: dict[str, int] = field(default_factory=dict)

    @property
    def spread(self) -> spread.Spread:
        """Median and quartiles of all samples."""
        return spread.spread(spread.flat(self.rounds))


@dataclass
class Results:
    """A whole run: machine and versions, what was asked for, when, and what came of it."""

    machine: dict[str, Any]
    options: dict[str, Any]
    started: str
    seconds: float = 0.0
    missing: list[Missing] = field(default_factory=list)
    resident: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def select(self, **wanted: Any) -> Iterator[Row]:
        """Yield the rows whose fields have these values."""
        for row in self.rows:
            if all(getattr(row, name) == value for name, value in wanted.items()):
                yield row

    def find(self, **wanted: Any) -> Row | None:
        """Return the first such row that has samples, or None."""
        return next((row for row in self.select(**wanted) if any(row.rounds)), None)

    def lacks(self, what: str, where: str, why: str) -> None:
        """Note what is missing, once."""
        one = Missing(what, where, why)
        if one not in self.missing:
            self.missing.append(one)


def ways(rows: Iterable[Row]) -> list[str]:
    """Return the ways of rows, each once, in their order."""
    return list(dict.fromkeys(row.way for row in rows))


def to_json(results: Results) -> dict[str, Any]:
    """Return what json.dumps takes."""
    told = {**asdict(results), "format": FORMAT}
    told["missing"] = [one._asdict() for one in results.missing]
    return told


def from_json(told: Mapping[str, Any]) -> Results:
    """Return what :func:`to_json` was given.

    Raises ValueError for another format, or a field that is not there.
    """
    if told.get("format") != FORMAT:
        raise ValueError(f"not a file of {FORMAT}: its format is {told.get('format')!r}")
    try:
        given = {one.name: told[one.name] for one in fields(Results)}
        given["missing"] = [Missing(**one) for one in given["missing"]]
        given["rows"] = [Row(**one) for one in given["rows"]]
        return Results(**given)
    except (KeyError, TypeError) as problem:
        raise ValueError(f"a file of {FORMAT} that is not whole: {problem}") from problem
