"""What witnesses have and the ledger has not."""

from __future__ import annotations

from ._verify_done import Done, Told
from ._verify_findings import WITNESS
from ._verify_witness import Seen, Witness, key_of


def tell(done: Done, witness: Witness) -> None:
    """Tell of records that are missing, and of witnesses that differ from each other."""
    for chain, first, second in witness.differing:
        text = f"{first.file}:{first.line}:{first.byte} has another record of this number"
        _found(done, second, Told(chain, second.n, "witness-mismatch", text))
    for chain, left in witness.chains.items():
        if left:  # what was met in the ledger was taken out
            _left(done, chain, left)


def _found(done: Done, seen: Seen, told: Told) -> None:
    done.found(("witness", told.chain), (WITNESS, seen.line, seen.byte), told, seen.file)


def _left(done: Done, chain: bytes, left: dict[bytes, Seen]) -> None:
    seen = left[max(left)]
    newest, here, head = seen.n, done.records_of(chain), done.walk.heads.get(chain)
    last = left.get(key_of(head.n)) if head else None
    if head is not None and last is not None and last.hash.hex() != head.hash:
        text = "the segment that was retired ended with another record of this number"
        _found(done, last, Told(chain, head.n, "witness-mismatch", text))
    elif newest >= here and (here or _is_ours(done, chain, seen.boot)):
        has = f"the last here is {here - 1}" if here else "none is here"
        text = f"{newest + 1 - here} records are missing: the witness has record {newest}, and {has}"
        _found(done, seen, Told(chain, newest, "witness-missing", text))
    elif newest >= here:
        text = "records of a chain that nothing here knows: of another ledger, or this one is an older copy"
        done.noticed(
            chain, (WITNESS, seen.line, seen.byte), Told(chain, newest, "witness-other", text), seen.file
        )


def _is_ours(done: Done, chain: bytes, boot: str) -> bool:
    """Whether a chain that is not here must be: the registry says it, or it is of the same boot."""
    known, state = done.means.registry, done.means.state
    if known and chain in known.chains:
        return known.chains[chain].ledger in done.ledgers
    if (state and chain in state.slots) or chain in done.walk.forks:
        return True
    return bool(boot) and boot in done.walk.boots
