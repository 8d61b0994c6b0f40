"""Segments that were deleted: which records may say so, what they excuse, and what speaks against them.

A record ``segment.retired`` excuses whatever was in a file that nobody can look at any more. So it counts
only in a chain that was opened for that, and only for the oldest segments of this very ledger.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict

from ._verify_descent import Source
from ._verify_done import Done, Told, moment
from ._verify_registry import DIGEST, is_same_ledger
from ._verify_state import State
from ._verify_walk import Head, Retirement

_NUMBERED = re.compile(r"(.*)\.([1-9][0-9]{0,17})", re.DOTALL)


def judge(done: Done) -> None:
    """Decide which of the records are believed, tell of all of them, and keep what they excuse."""
    told = [(one, number) for one in done.walk.retirements if (number := _number(done, one)) is not None]
    numbers = {number for _, number in told}
    here = {segment.number for segment in done.walk.segments if segment.number is not None}
    older = min(here - numbers, default=None)
    by_chain: defaultdict[bytes, list[tuple[Retirement, int]]] = defaultdict(list)
    for one, number in told:
        if older is not None and older < number:
            _refuse(done, one, f"segment {older} is here and was not retired: the oldest ones go first")
        elif number in here:
            text = f"{one.segment} is here: it is being deleted, that was interrupted, or it was put back"
            done.noticed(number, one.place, Told(one.id, one.n, "retired-here", text))
        else:
            done.walk.retired.add(number)
            by_chain[one.id].append((one, number))
            _believe(done, one)
    for each in by_chain.values():
        _list(done, each)


def _refuse(done: Done, one: Retirement, why: str) -> None:
    text = f"says that {one.segment or 'a segment'} was retired, and is not believed: {why}"
    done.found(("retired", one.id), one.place, Told(one.id, one.n, "retirement-unproven", text))


def _number(done: Done, one: Retirement) -> int | None:
    """Return the number of the segment; None if the record cannot speak of it, which is told."""
    parts = _NUMBERED.fullmatch(one.segment)
    number = int(parts[2]) if parts else 0
    stands_in = done.walk.segments[one.place[0]].number
    why = _why_not_entitled(done, one, parts[1] if parts else "")
    if not why and (not number or (stands_in is not None and number >= stands_in)):
        why = "that is no older segment than the one in which the record is"
    if why:
        _refuse(done, one, why)
        return None
    return number


def _why_not_entitled(done: Done, one: Retirement, base: str) -> str:
    """Return why the record's chain may not speak of a segment with that name; empty if it may."""
    seen, known = done.walk.chains.get(done.places[one.id]), done.means.registry
    retires = seen.retires if seen else None
    if retires is None or (done.means.epochs is not None and one.id not in done.walk.of_epochs):
        return "its chain was not opened to retire segments"
    entry = known.chains.get(one.id) if known else None
    if entry is not None and entry.ledger not in done.ledgers:
        return f"the registry says that its chain is of {entry.ledger}"
    is_ours = retires in done.names or is_same_ledger(retires, done.path) or retires in done.ledgers
    if known is not None and not is_ours:
        return f"its chain was opened to retire segments of {retires}"
    if not is_ours:
        text = f"retires segments of {retires}: this is a copy, or lines were copied from there"
        done.noticed(one.id, one.place, Told(one.id, one.n, "other-ledger", text))
    names = {os.path.basename(name) for name in (retires, *done.names)}
    is_named = base in names or retires.startswith(DIGEST)
    return "" if is_named else "that is the name of no segment of this ledger"


def _believe(done: Done, one: Retirement) -> None:
    heads = done.walk.heads
    for chain, (n, digest, told) in one.heads.items():
        known = heads.get(chain)
        if known is not None and known.n == n and known.hash != digest:
            _refuse(done, one, "another record tells of other bytes at the end of the same chain")
        elif known is None or known.n < n:
            source = told or (known.source if known else None)
            heads[chain] = Head(n, digest, source, one.place, chain in one.over)
        else:
            is_last = known.is_last or (known.n == n and chain in one.over)
            heads[chain] = known._replace(source=known.source or told, is_last=is_last)


def _list(done: Done, each: list[tuple[Retirement, int]]) -> None:
    """Name the segments that one process has retired, so that a person can compare that with a policy."""
    numbers, one = sorted({number for _, number in each}), each[0][0]
    base = os.path.basename(done.path)
    names = f"{base}.{numbers[0]}" + (f" to {base}.{numbers[-1]}" if len(numbers) > 1 else "")
    seen = done.walk.chains.get(done.places[one.id])
    pid = seen.process[0] if seen and seen.process else None
    text = f"{names}: retired at {moment(one.t)} by process {pid}, which opened this chain for that"
    done.noticed(one.id, one.place, Told(one.id, one.n, "retired", text))


def hold(done: Done, now: State | None) -> None:
    """Hold what is told of chains against the records here, the registry, and the state file ``now``."""
    for chain, head in done.walk.heads.items():
        seen = done.walk.chains.get(done.places[chain]) if done.has(chain) else None
        if seen is not None and seen.start is None:
            text = f"says that record {head.n} of this chain was retired, and its first records are here"
            done.walk.found(chain, head.place, head.n, "retirement-unproven", text)
        elif seen is None:
            _hold_absent(done, chain, head, now)
    _hold_sources(done)


def _hold_sources(done: Done) -> None:
    """Hold what was said beforehand of where keys come from against the records that are believed.

    Who has the keys of any chain can say that another descends from it, and has the keys of that one then.
    """
    for chain in done.walk.trusted:
        source, place = done.walk.foretold[chain]
        if source != _source(done, chain):
            text = "its keys are those that this record tells of, which is not believed: it was not checked"
            done.found("foretold", place, Told(chain, None, "retirement-unproven", text))


def _source(done: Done, chain: bytes) -> Source | None:
    """Return where the keys of a chain come from, by a head that is believed or its own record 0."""
    head = done.walk.heads.get(chain)
    if head is not None and head.source is not None:
        return head.source
    return done.walk.sources.get(chain)


def _hold_absent(done: Done, chain: bytes, head: Head, now: State | None) -> None:
    entry = done.means.registry.chains.get(chain) if done.means.registry else None
    if entry and head.source and head.source != (entry.epoch, None, 0):
        text = f"says of the keys of this chain what the registry does not: that has epoch {entry.epoch}"
        done.walk.found(chain, head.place, head.n, "retirement-unproven", text)
    slot = now.slots.get(chain) if now else None
    _compare_slot(done, chain, head, head.source or (Source(entry.epoch) if entry else None))
    if slot is not None and head.n > slot.records:
        text = f"record {head.n} of this chain was retired, and the state file says {slot.records} records"
        done.ended(chain, head.place, Told(chain, head.n, "state-behind", text))
    elif now is not None and slot is None and not head.is_last and (entry or head.source):
        text = f"record {head.n} of this chain was retired, and the state file has no slot of it"
        done.ended(chain, head.place, Told(chain, head.n, "state-missing", text))


def _compare_slot(done: Done, chain: bytes, head: Head, source: Source | None) -> None:
    """Hold the seal in the slot of a chain of which nothing is here against its keys.

    Else whoever cut off all that came behind the retired segment could say that this was the end.
    """
    place = done.places.get(chain)
    expected = None if place is None else done.standing(chain).expected
    if place is None or expected is None or done.walk.descent is None or ("end", chain) in done.walk.findings:
        return
    key = done.walk.descent.key(chain, source) if source else None
    if key is None or not done.scanner.reach(done.scanner.open(chain, key), expected):
        text = "nothing is left of this chain; its slot was not checked: its keys are not known, or too far"
        done.noticed(chain, head.place, Told(chain, head.n, "aggregate-unchecked", text))
    elif done.standing(chain).is_slot_forged:
        text = f"the state file says {expected} records, with a seal that this chain never had"
        done.ended(chain, head.place, Told(chain, head.n, "aggregate-mismatch", text))
