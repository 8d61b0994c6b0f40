"""Records whose number there was before: sent again, put there again, or out of their order."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from . import _verify_scan as scan
from ._verify_done import Done, Told
from ._verify_findings import Place
from ._verify_walk import NO_BEGINNING, Repeat, TornRepeat

Key = tuple[bytes, int]
#: Of a beginning: how many bytes, and their hash.
Part = tuple[int, bytes]


def tell(done: Done, *, dedupe: bool) -> None:
    """Tell of those that nothing accounts for. ``dedupe`` takes all that are equal."""
    firsts, parts = _firsts(done)
    for torn in done.walk.torn_repeats:
        _tell_torn(done, torn, parts)
    for repeat in done.walk.repeats:
        first, place = firsts.get((repeat.id, repeat.n), (b"", repeat.place))
        if place == repeat.place and _was_retired(done, repeat) and _is_resent(done, repeat):
            done.counts["repeats"] += 1  # the first one is not here any more, so nobody can compare them
            continue
        if place == repeat.place:
            text = f"record {repeat.n} comes too late"
        elif first != repeat.hash:
            text = (
                f"record {repeat.n} comes again with other bytes than at {done.walk.name(place)}:{place[1]}"
            )
            done.walk.found(repeat.id, repeat.place, repeat.n, "unequal-repeat", text)
            continue
        elif dedupe or _is_resent(done, repeat):
            done.counts["repeats"] += 1
            continue
        else:
            text = f"record {repeat.n} comes again"
        done.walk.found(repeat.id, repeat.place, repeat.n, "replay/reorder", text)


def _tell_torn(done: Done, torn: TornRepeat, parts: dict[Key, set[Part]]) -> None:
    """Tell of a beginning. It counts as no record: the one that was sent first does, or is missed."""
    found = parts.get((torn.id, torn.n))
    is_right = _was_retired(done, torn) if found is None else (torn.size, torn.hash) in found
    if is_right and _is_resent(done, torn):
        text = f"the first {torn.size} bytes of a record that was sent again: its process was killed there"
        done.noticed(torn.id, torn.place, Told(torn.id, torn.n, "uncommitted", text))
    else:
        done.walk.found(torn.id, torn.place, torn.n, "torn-or-garbage", NO_BEGINNING)


def _is_resent(done: Done, repeat: Repeat | TornRepeat) -> bool:
    """Whether a record of the same chain says that these come again in this segment."""
    return any(
        (chain, file) == (repeat.id, repeat.place[0]) and first <= repeat.n <= last
        for chain, first, last, file in done.walk.resent
    )


def _was_retired(done: Done, repeat: Repeat | TornRepeat) -> bool:
    head = done.walk.heads.get(repeat.id)
    return head is not None and repeat.n <= head.n


def _firsts(done: Done) -> tuple[dict[Key, tuple[bytes, Place]], dict[Key, set[Part]]]:
    """Read the ledger once more for the first record of each number that came again.

    Also for the beginnings that are asked for, of those of which only a beginning came again.
    """
    wanted = {(repeat.id, repeat.n) for repeat in done.walk.repeats}
    sizes: defaultdict[Key, set[int]] = defaultdict(set)
    for torn in done.walk.torn_repeats:
        sizes[torn.id, torn.n].add(torn.size)
    found: dict[Key, tuple[bytes, Place]] = {}
    parts: dict[Key, set[Part]] = {}
    if not wanted and not sizes:
        return found, parts
    for file, segment in enumerate(done.walk.segments):
        for record, line in scan.records(segment.fd, segment.size):
            key = record.id, record.n
            if key in wanted:
                found.setdefault(key, (record.hash, (file, record.line, record.at)))
            if key in sizes and key not in parts:
                parts[key] = {(size, hashlib.sha256(line[:size]).digest()) for size in sizes[key]}
    return found, parts
