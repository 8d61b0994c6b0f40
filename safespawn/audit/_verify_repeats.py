"""Records whose number there was before: sent again, put there again, or out of their order."""

from __future__ import annotations

from . import _verify_scan as scan
from ._verify_done import Done
from ._verify_findings import Place
from ._verify_walk import Repeat

Key = tuple[bytes, int]


def tell(done: Done, *, dedupe: bool) -> None:
    """Tell of those that nothing accounts for. ``dedupe`` takes all that are equal."""
    firsts = _firsts(done)
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


def _is_resent(done: Done, repeat: Repeat) -> bool:
    """Whether a record of the same chain says that these come again in this segment."""
    return any(
        (chain, file) == (repeat.id, repeat.place[0]) and first <= repeat.n <= last
        for chain, first, last, file in done.walk.resent
    )


def _was_retired(done: Done, repeat: Repeat) -> bool:
    head = done.walk.heads.get(repeat.id)
    return head is not None and repeat.n <= head.n


def _firsts(done: Done) -> dict[Key, tuple[bytes, Place]]:
    """Read the ledger once more for the first record of each number that came again."""
    wanted = {(repeat.id, repeat.n) for repeat in done.walk.repeats}
    found: dict[Key, tuple[bytes, Place]] = {}
    if not wanted:
        return found
    for file, segment in enumerate(done.walk.segments):
        for record, _ in scan.records(segment.fd, segment.size):
            if (record.id, record.n) in wanted:
                found.setdefault((record.id, record.n), (record.hash, (file, record.line, record.at)))
    return found
