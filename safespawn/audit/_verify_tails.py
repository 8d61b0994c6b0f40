"""The ends of the chains, held against the state file, and the beginnings against what was retired."""

from __future__ import annotations

from .. import _probe
from . import _verify_scan as scan
from ._verify_done import Done, Told
from ._verify_findings import STATE
from ._verify_state import Slot, State
from ._verify_walk import Seen


def hold(done: Done, boot: str) -> None:
    """Compare every chain with the state file as it was before the ledger was read.

    ``boot`` is the boot on which we run: its processes can be looked for.
    """
    for chain, place in done.places.items():
        standing = done.scanner.standing(place)
        if not standing.found:
            _absent(done, chain, standing)
            continue
        seen = done.walk.chains.setdefault(place, Seen(chain))
        done.counts["chains"] += 1
        done.counts["records"] += standing.found
        done.counts["keyed"] += standing.is_keyed
        _begins(done, seen)
        _ends(done, seen, standing)
        # Before the state file is read again, which tells whether those that are gone had ended well.
        seen.runs = None if seen.is_closed else _probe.process_runs(seen.process, boot)
    has_keys = done.counts["keyed"] or done.walk.has_keys
    if done.means.state is None and done.state_path is not None and has_keys:
        text = "the state file is not there: records that were cut off are not seen"
        done.found("state", (STATE, 0, 0), Told(None, None, "state-missing", text), done.state_path)


def _begins(done: Done, seen: Seen) -> None:
    """A chain that does not begin with record 0 had the others retired."""
    if seen.start is None:
        return
    n, previous, place = seen.start
    head = done.walk.heads.get(seen.id)
    if (head is None or (head.n, head.hash) != (n - 1, previous)) and not done.walk.torn_at(seen.id, n - 1):
        text = f"expected record 0, found {n}: {n} missing, and no segment.retired accounts for them"
        done.walk.found(seen.id, place, n, "gap", text)


def _ends(done: Done, seen: Seen, standing: scan.Standing) -> None:
    """Compare the length."""
    if standing.expected is None or not (standing.is_keyed or done.means.without_key):
        return
    done.counts["compared"] += standing.is_compared or not standing.is_keyed
    if standing.next < standing.expected:
        done.walk.torn_at(seen.id, standing.next)
        text = f"{standing.expected - standing.next} records missing: the state file says {standing.expected}"
        _end(done, seen.id, standing, "tail-truncated", text)


def _end(done: Done, chain: bytes, standing: scan.Standing, reason: str, text: str) -> None:
    done.ended(chain, standing.last, Told(chain, standing.next - 1, reason, text))


def _absent(done: Done, chain: bytes, standing: scan.Standing) -> None:
    """No record of a chain is here."""
    expected, here = standing.expected or 0, done.records_of(chain)
    if expected > here:
        done.walk.torn_at(chain, here)
        byte = done.means.state.slots[chain].byte if done.means.state else 0
        text = f"no record of this chain is here: the state file says {expected}"
        text += f", and {here} were retired" if here else ""
        told = Told(chain, None, "chain-missing", text)
        done.found(("end", chain), (STATE, 0, byte), told, done.state_path or "-")
    elif chain in done.walk.forks and not here:
        done.counts["silent"] += 1


def hold_again(done: Done, now: State | None, boot: str) -> None:
    """Compare every chain with the state file as it is ``now``, after the ledger was read."""
    for place, seen in done.walk.chains.items():
        standing = done.scanner.standing(place)
        slot = now.slots.get(seen.id) if now else None
        if standing.found and standing.is_keyed and done.means.state is not None:
            _counted(done, seen, standing, slot, boot)
        if standing.found and not seen.is_closed:
            _goes_on(done, seen, standing, slot)


def _counted(done: Done, seen: Seen, standing: scan.Standing, slot: Slot | None, boot: str) -> None:
    """A slot is given out before the first record, and each record is written before it is counted.

    So a ledger that was read earlier cannot be ahead by two.
    """
    if standing.is_slot_forged:
        text = f"the state file says {standing.expected} records, with a seal that this chain never had"
        _end(done, seen.id, standing, "aggregate-mismatch", text)
    elif slot is None and _went_meanwhile(done, seen, standing, boot):
        return
    elif slot is None:
        text = "the state file has no slot of this chain: records that were cut off are not seen"
        _end(done, seen.id, standing, "state-missing", text)
    elif standing.next > slot.records + 1 and seen.id not in done.walk.findings:
        text = f"an older state file was put back: it says {slot.records} records, here are {standing.next}"
        if seen.process is None or seen.process[2] != boot:
            text += "; or the power was lost before it was on the disk"
        _end(done, seen.id, standing, "state-behind", text)


def _went_meanwhile(done: Done, seen: Seen, standing: scan.Standing, boot: str) -> bool:
    """Whether a chain without a slot is retired by now: the file goes before the slot (retention).

    It was compared before, or is younger than our look at the state file: its keys vouch for that time.
    """
    if done.is_here(standing.last[0]) or done.means.state is None:
        return False
    is_of_this_boot = seen.process is not None and seen.process[2] == boot
    is_younger = is_of_this_boot and (seen.mono or 0) >= done.means.state.mono
    return standing.expected is not None or is_younger


def _goes_on(done: Done, seen: Seen, standing: scan.Standing, slot: Slot | None) -> None:
    """A chain has no last record: its process runs, has ended since, or was killed."""
    if standing.expected is not None and standing.next < standing.expected:
        return  # its end was cut off, whatever it was: that is told
    if slot is not None and (slot.is_closed or slot.records > standing.next):
        seen.runs = True
    if seen.runs:
        done.counts["running"] += 1
        return
    what = "is gone"
    if seen.runs is None:
        what = "is not known: of another boot or host, or its chain.open was retired"
    told = Told(seen.id, standing.next - 1, "crashed", f"no chain.close, and its process {what}")
    done.noticed(seen.id, standing.last, told)


def intents(done: Done) -> None:
    """Tell of intents without an outcome: their programs may have run."""
    for intent in done.walk.intents.values():
        seen = done.walk.chains.get(intent.chain)
        if seen is not None and seen.runs:
            continue  # the outcome is still to come
        place = intent.file, intent.line, intent.at
        text = "an intent without an outcome: the program may have run"
        done.noticed(place, place, Told(done.scanner.id(intent.chain), intent.n, "orphan-intent", text))
