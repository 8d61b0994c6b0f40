"""The targets of the design, each with what was measured, and whether it is reached. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import spread, window
from .results import Results, Row
from .spread import Spread

#: Rows that are compared are told apart by this in their names (:mod:`safespawn.bench.measure`).
BESIDE, LEDGER = " | 10 MiB beside it", " | with a ledger"


#: The large size of the targets, MiB.
_BIG = 4096


class Measured(NamedTuple):
    """What stands for a target in results; ``note``: where that is not the place that the target names."""

    spread: Spread
    note: str = ""


class Target(NamedTuple):
    """What must be reached: ``limit`` in ``unit``, at the least or at the most.

    ``measured`` reads it from results, and raises LookupError that says what is not there.
    """

    name: str
    limit: float
    at_least: bool
    unit: str
    measured: Callable[[Results], Measured]


class Verdict(NamedTuple):
    """A target, what was measured (None: it was not), whether it is reached, and a word on it."""

    target: Target
    measured: Spread | None
    passed: bool | None
    word: str


def _row(results: Results, way: str, **wanted: object) -> Row:
    row = results.find(way=way, **wanted)
    if row is None:
        reasons = [one.why for one in results.missing if one.what == way]
        raise LookupError(
            reasons[0] if reasons else f"no {wanted['measure']} of {way}, axis {wanted['axis']}"
        )
    return row


def _smallest(results: Results, axis: str) -> int:
    sizes = [row.mib for row in results.select(axis=axis, measure="exit")]
    if not sizes:
        raise LookupError(f"the axis {axis} was not measured")
    return min(sizes)


def _note(mib: int) -> str:
    return "" if mib == _BIG else f"at {mib:,} MiB"


def _largest(results: Results, axis: str) -> int:
    """Return the largest size up to that of the targets."""
    sizes = [row.mib for row in results.select(axis=axis, measure="exit") if row.mib <= _BIG]
    if not sizes:
        raise LookupError(f"the axis {axis} was not measured")
    return max(sizes)


def _ratio(first: str, second: str) -> Callable[[Results], Measured]:
    """Return what compares two ways in a small process with one thread."""

    def measured(results: Results) -> Measured:
        mib = _smallest(results, "size")
        rows = [_row(results, way, axis="size", mib=mib, measure="exit") for way in (first, second)]
        return Measured(spread.ratios(rows[0].rounds, rows[1].rounds))

    return measured


def _flat(results: Results) -> Measured:
    wanted = {"axis": "targets", "measure": "exit"}
    big, small = (_row(results, f"safespawn.run{mark}", **wanted) for mark in ("", BESIDE))
    return Measured(spread.ratios(_from(big, small), small.rounds), _note(big.mib))


def _from(row: Row, beside: Row) -> Sequence[Sequence[int]]:
    """Return the rounds of a row if it was measured in the same rounds as another. Raises LookupError."""
    if row.shift != beside.shift or row.mib != beside.mib:
        raise LookupError(f"{row.way} and {beside.way} did not fit into memory together")
    return row.rounds


def _user(results: Results) -> Measured:
    mib = _largest(results, "user")
    wanted = {"axis": "user", "mib": mib, "measure": "exit", "who": "other"}
    theirs, ours = (_row(results, way, **wanted) for way in ("subprocess.run", "safespawn.run"))
    return Measured(spread.ratios(theirs.rounds, ours.rounds), _note(mib))


def _hang(results: Results) -> Measured:
    stalls = _row(results, "safespawn.run", axis="targets", measure="hang")
    return Measured(spread.spread([one / 1e6 for one in spread.flat(stalls.rounds)]))


def _micro(found: Spread) -> Measured:
    """Return nanoseconds as microseconds."""
    return Measured(found._replace(median=found.median / 1e3, low=found.low / 1e3, high=found.high / 1e3))


def _guards(results: Results) -> Measured:
    bare, guarded = (
        _row(results, way, axis="targets", measure="window") for way in (window.BARE, window.GUARDED)
    )
    return _micro(spread.differences(guarded.rounds, bare.rounds))


def _audit(results: Results) -> Measured:
    on = _row(results, f"safespawn.spawn{LEDGER}", axis="targets", measure="exit")
    off = _row(results, "safespawn.spawn", axis="targets", measure="exit", mib=on.mib)
    return _micro(spread.differences(on.rounds, off.rounds))


def _pool(results: Results) -> Measured:
    wanted = {"axis": "size", "mib": _smallest(results, "size"), "measure": "call"}
    return _micro(_row(results, "safespawn.spawn, pool", **wanted).spread)


def _two(results: Results) -> Measured:
    rows = [_row(results, "safespawn.run", axis="spawners", measure="rate", many=many) for many in (1, 2)]
    return Measured(spread.ratios(rows[0].rounds, rows[1].rounds))


#: In the order of the design.
TARGETS = (
    Target(
        "spawn([static true]).wait() to C's posix_spawn and waitpid",
        1.00,
        at_least=False,
        unit="x",
        measured=_ratio("safespawn.spawn", "C posix_spawn"),
    ),
    Target(
        "run([static true]) to the same",
        1.10,
        at_least=False,
        unit="x",
        measured=_ratio("safespawn.run", "C posix_spawn"),
    ),
    Target(
        "subprocess.run to run([static true])",
        1.4,
        at_least=True,
        unit="x",
        measured=_ratio("subprocess.run", "safespawn.run"),
    ),
    Target("run in a process of 4 GiB to 10 MiB", 1.10, at_least=False, unit="x", measured=_flat),
    Target("subprocess.run(user=) to run(user=) at 4 GiB", 100, at_least=True, unit="x", measured=_user),
    Target(
        "longest stall of another Python thread, exec hanging for 1 s",
        20,
        at_least=False,
        unit="ms",
        measured=_hang,
    ),
    Target("all guards on to none, in C, added", 5, at_least=False, unit="µs", measured=_guards),
    Target("audit on (no fsync) to off, added", 30, at_least=False, unit="µs", measured=_audit),
    Target("pool: until spawn returns", 100, at_least=False, unit="µs", measured=_pool),
    Target("two threads that spawn to one, on two cores", 1.8, at_least=True, unit="x", measured=_two),
)


def judge(target: Target, results: Results) -> Verdict:
    """Return whether a target is reached: by the median, and by how much it is missed if it is."""
    try:
        found, note = target.measured(results)
    except (LookupError, ValueError) as problem:
        return Verdict(target, None, None, f"not measured: {problem}")
    passed = found.median >= target.limit if target.at_least else found.median <= target.limit
    word = "pass"
    if not passed:
        side = "below" if target.at_least else "above"
        word = f"gap: {abs(found.median - target.limit):.2f} {target.unit} {side}"
    if found.low < target.limit < found.high:
        word += ", within the spread"
    return Verdict(target, found, passed, f"{word}, {note}" if note else word)


def verdicts(results: Results) -> list[Verdict]:
    """Return one for each target, in the order of the design."""
    return [judge(target, results) for target in TARGETS]
