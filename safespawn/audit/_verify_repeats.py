"""Records whose number there was before: sent again, put there again, or out of their order."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable

from . import _verify_scan as scan
from ._verify_descent import ANCHOR
from ._verify_done import Done, Told
from ._verify_findings import Place
from ._verify_keys import mac
from ._verify_walk import NO_BEGINNING, Repeat, TornRepeat
from ._verify_witness import key_of

#: ``,"m":"``, 64 digits, ``"}``.
MAC_BYTES = 72
#: A chain and the number of a segment.
Where = tuple[bytes, int]
#: Of a beginning: how many bytes, and their hash.
Part = tuple[int, bytes]


class Ranges:
    """Ranges of numbers, put in order once: a ledger may have as many of them as of records to look for."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take first and last numbers, in any order. Those that meet become one."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted(ranges):
            if self._lasts and first <= self._lasts[-1]:
                self._lasts[-1] = max(last, self._lasts[-1])
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def __contains__(self, n: int) -> bool:
        """Whether one of them has this number."""
        at = bisect_right(self._firsts, n)
        return at > 0 and n <= self._lasts[at - 1]


def tell(done: Done, *, dedupe: bool) -> None:
    """Tell of those that nothing accounts for. ``dedupe`` takes all that are equal."""
    (firsts, parts, wrong), resent = _firsts(done), _resent(done)
    for torn in done.walk.torn_repeats:
        _tell_torn(done, torn, parts, resent)
    for repeat in done.walk.repeats:
        first, place = firsts.get(_key(repeat), (b"", repeat.place))
        if place == repeat.place and _was_retired(done, repeat) and _is_resent(resent, repeat):
            # The first one is not here any more, so nobody can compare them: the MAC must do.
            if repeat.place in wrong:
                text = (
                    f"record {repeat.n} comes again, and the first is retired: not with the key of its place"
                )
                done.walk.found(repeat.id, repeat.place, repeat.n, "mac-mismatch", text)
            else:
                done.counts["repeats"] += 1
            continue
        if place == repeat.place:
            text = f"record {repeat.n} comes too late"
        elif first != repeat.hash:
            text = (
                f"record {repeat.n} comes again with other bytes than at {done.walk.name(place)}:{place[1]}"
            )
            done.walk.found(repeat.id, repeat.place, repeat.n, "unequal-repeat", text)
            continue
        elif dedupe or _is_resent(resent, repeat):
            done.counts["repeats"] += 1
            continue
        else:
            text = f"record {repeat.n} comes again"
        done.walk.found(repeat.id, repeat.place, repeat.n, "replay/reorder", text)


def _tell_torn(
    done: Done, torn: TornRepeat, parts: dict[bytes, set[Part]], resent: dict[Where, Ranges]
) -> None:
    """Tell of a beginning. It counts as no record: the one that was sent first does, or is missed."""
    found = parts.get(_key(torn))
    is_right = _was_retired(done, torn) if found is None else (torn.size, torn.hash) in found
    if is_right and _is_resent(resent, torn):
        text = f"the first {torn.size} bytes of a record that was sent again: its process was killed there"
        done.noticed(torn.id, torn.place, Told(torn.id, torn.n, "uncommitted", text))
    else:
        done.walk.found(torn.id, torn.place, torn.n, "torn-or-garbage", NO_BEGINNING)


def _resent(done: Done) -> dict[Where, Ranges]:
    """Return what records of a chain say of it that comes again, by chain and segment."""
    told: dict[Where, list[tuple[int, int]]] = {}
    for chain, first, last, file in done.walk.resent:
        told.setdefault((chain, file), []).append((first, last))
    return {where: Ranges(ranges) for where, ranges in told.items()}


def _is_resent(resent: dict[Where, Ranges], repeat: Repeat | TornRepeat) -> bool:
    return repeat.n in resent.get((repeat.id, repeat.place[0]), ())


class RecordKeys:
    """B(n) of records that come again, cheap when they come in the order of their numbers."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self._last: tuple[bytes, int, bytes] | None = None

    def made(self, record: scan.Record, line: bytes) -> bool:
        """Whether a record has its MAC; True where its chain has no keys."""
        if self._done.walk.descent is None or not self._done.standing(record.id).is_keyed:
            return True
        key = self._key(record.id, record.n)
        self._last = None if key is None else (record.id, record.n, key)
        told = line[-MAC_BYTES:]
        return key is not None and told == b',"m":"%s"}' % mac(key, line[:-MAC_BYTES]).hex().encode()

    def _key(self, chain: bytes, n: int) -> bytes | None:
        if self._last is not None and self._last[0] == chain and self._last[1] < n <= self._last[1] + ANCHOR:
            steps = n - self._last[1]
            return scan.follow(self._last[2], steps) if self._done.scanner.may_go(steps) else None
        return self._done.walk.record_key(chain, n)


def _was_retired(done: Done, repeat: Repeat | TornRepeat | scan.Record) -> bool:
    head = done.walk.heads.get(repeat.id)
    return head is not None and repeat.n <= head.n


def _key(record: Repeat | TornRepeat | scan.Record) -> bytes:
    return record.id + key_of(record.n)


def _firsts(done: Done) -> tuple[dict[bytes, tuple[bytes, Place]], dict[bytes, set[Part]], set[Place]]:
    """Read the ledger once more for the first record of each number that came again.

    Also for the beginnings that are asked for, of those of which only a beginning came again. And tell which
    of the first were written without the key of a record that was retired.
    """
    wanted = set(map(_key, done.walk.repeats))
    sizes: defaultdict[bytes, set[int]] = defaultdict(set)
    for torn in done.walk.torn_repeats:
        sizes[_key(torn)].add(torn.size)
    found: dict[bytes, tuple[bytes, Place]] = {}
    parts: dict[bytes, set[Part]] = {}
    wrong: set[Place] = set()
    keys = RecordKeys(done)
    if not wanted and not sizes:
        return found, parts, wrong
    for file, segment in enumerate(done.walk.segments):
        for record, line in scan.records(segment.fd, segment.size):
            key = _key(record)
            if key in wanted and key not in found:
                place = file, record.line, record.at
                found[key] = record.hash, place
                if _was_retired(done, record) and not keys.made(record, line):
                    wrong.add(place)
            if key in sizes and key not in parts:
                parts[key] = {(size, hashlib.sha256(line[:size]).digest()) for size in sizes[key]}
    return found, parts, wrong
