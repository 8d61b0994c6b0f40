"""Where chains and files come from: the registry, forks, chains without keys, segments."""

from __future__ import annotations

import uuid

from . import _verify_keys as keys
from . import _verify_scan as scan
from ._verify_done import Done, Told
from ._verify_findings import REGISTRY, SEGMENTS
from ._verify_registry import Registry
from ._verify_segments import missing


def segments(done: Done) -> None:
    """Tell which files are missing."""
    for first, last in missing(done.walk.segments, done.walk.retired):
        file = f"{done.path}.{first}"
        text = f"{file}{f' to {done.path}.{last}' if last > first else ''}: neither here nor retired"
        done.found(("segment", first), (SEGMENTS, 0, first), Told(None, None, "segment-missing", text), file)
    if done.walk.segments and done.walk.segments[-1].number is not None:
        text = "only older segments are here: a process was killed while it began a new one, or it is gone"
        done.noticed("", (SEGMENTS, 0, 0), Told(None, None, "ledger-absent", text), done.path)


def unkeyed(done: Done) -> None:
    """Tell of chains without keys where there should be keys."""
    if done.means.epochs is None:
        return
    began = done.means.registry.began if done.means.registry else None
    for place, where in done.walk.unkeyed.items():
        chain, standing = done.scanner.id(place), done.scanner.standing(place)
        teller = done.walk.forks.get(chain)
        is_child = teller is not None and done.standing(teller[0]).is_keyed  # so it has keys, wherever it is
        if began is not None and standing.t < began and standing.expected is None and not is_child:
            text = "without keys, dated before there were any: anybody with write access may have written it"
            done.noticed(chain, where, Told(chain, None, "unkeyed-before", text))
        else:
            text = "a chain without keys: anybody with write access may have written it"
            done.walk.found(chain, where, None, "unkeyed", text)


def forks(done: Done) -> None:
    """Hold what children say of their birth against what their parents wrote."""
    if done.means.epochs is None:
        return  # anybody could have written either
    for child, parent, n, place in done.walk.claims:
        teller = done.walk.forks.get(child)
        if teller == (parent, n) or parent in done.walk.findings:
            continue
        if teller is not None:
            text = f"says that another chain forked it than {scan.name_of(teller[0])}, record {teller[1]}"
            done.walk.found(child, place, 0, "fork-mismatch", text)
        elif _is_retired(done, parent, n):
            continue
        elif _was_lost(done, parent, n):
            text = (
                f"the record of this fork was lost: the file could not be written at record {n} of the parent"
            )
            done.noticed(child, place, Told(child, 0, "fork-untold", text))
        elif n < done.records_of(parent):
            text = f"says that it was forked at another chain's record {n}, which tells of no such fork"
            done.walk.found(child, place, 0, "fork-mismatch", text)
        elif ("end", parent) not in done.walk.findings:
            reason = "tail-truncated" if done.has(parent) else "chain-missing"
            text = f"record {n} of this chain is not here, and the chain of this line was forked there"
            done.ended(parent, place, Told(parent, n, reason, text))


def _was_lost(done: Done, chain: bytes, n: int) -> bool:
    """Whether ``chain.fork`` could not be written, which stops no fork.

    Then the number goes to the record that tells of the loss, or there is none any more.
    """
    if (chain, n) in done.walk.losses:
        return True
    standing = done.standing(chain) if done.has(chain) else None
    return standing is not None and n == standing.next == standing.expected


def _is_retired(done: Done, chain: bytes, n: int) -> bool:
    head, place = done.walk.heads.get(chain), done.places.get(chain)
    seen = done.walk.chains.get(place) if place is not None else None
    return (head is not None and n <= head.n) or (
        seen is not None and seen.start is not None and n < seen.start[0]
    )


def registry(done: Done, known: Registry) -> None:
    """Hold the chains against the registry: all of this ledger must be here."""
    for chain, entry in known.chains.items():
        if entry.ledger in done.ledgers:
            if not done.records_of(chain):
                _unwritten(done, chain, entry.epoch, known)
        elif done.has(chain):
            text = f"the registry says that this chain is of {entry.ledger}"
            done.noticed(chain, done.standing(chain).last, Told(chain, None, "other-ledger", text))


def _unwritten(done: Done, chain: bytes, epoch: int, known: Registry) -> None:
    state = done.means.state
    slot = state.slots.get(chain) if state else None
    text = f"record {epoch} of the registry tells of this chain, and no record of it is here"
    if slot is None:
        if state is None:
            text += (
                "; with the state file it would be known whether its process was killed before it wrote one"
            )
        done.found(("end", chain), (REGISTRY, 0, epoch), Told(chain, None, "chain-missing", text), known.path)
    elif not slot.records and _never_wrote(done, chain, epoch, slot.seal):
        text += ": its process is opening the ledger, or was killed while it did"
        done.noticed(chain, (REGISTRY, 0, epoch), Told(chain, None, "chain-empty", text), known.path)
    elif not slot.records:
        text += ", and its slot was emptied"
        done.found(("end", chain), (REGISTRY, 0, epoch), Told(chain, None, "chain-missing", text), known.path)


def _never_wrote(done: Done, chain: bytes, epoch: int, seal: bytes) -> bool:
    """Whether the slot's seal is that of no record: its key is gone once there is one."""
    epochs = done.means.epochs
    key = epochs.key(epoch) if epochs else None
    return key is None or keys.seal(keys.chain_key(key, str(uuid.UUID(bytes=chain)))) == seal


def strangers(done: Done, known: Registry) -> list[bytes]:
    """Return the chains that an epoch gave keys to and that the registry does not have."""
    opened = [seen.id for seen in done.walk.chains.values() if seen.process is not None]
    forked = {child for child, _, _, _ in done.walk.claims}
    keyed = [c for c in opened if c not in forked and done.standing(c).is_keyed]
    retired = [
        chain
        for chain, head in done.walk.heads.items()
        if not done.has(chain) and head.source and head.source.parent is None
    ]
    return [chain for chain in (*keyed, *retired) if chain not in known.chains]


def unregistered(done: Done, chains: list[bytes]) -> None:
    """Tell of those that the registry did not have later either."""
    for chain in chains:
        text = "the registry does not have this chain"
        place = done.standing(chain).last if done.has(chain) else done.walk.heads[chain].place
        done.walk.found(chain, place, None, "chain-unregistered", text)
