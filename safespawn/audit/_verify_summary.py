"""What is said at the end: how much was checked, up to where, and what could not be seen."""

from __future__ import annotations

from . import _verify_scan as scan
from ._verify_done import Done, moment
from ._verify_findings import Verification
from ._verify_walk import Walk

#: What is counted, always in this order.
COUNTS = ("records", "keyed", "chains", "running", "silent", "repeats", "compared")


def of(done: Done) -> Verification:
    """Return what came of a verification."""
    walk, means = done.walk, done.means
    counts = {name: done.counts[name] for name in COUNTS}
    counts["bytes"] = sum(segment.size for segment in walk.segments)
    counts["segments"] = len(walk.segments)
    counts["retired"] = len(walk.retired)
    counts["registered"] = len(means.registry.chains) if means.registry else 0
    counts["witnessed"] = means.witness.records if means.witness else 0
    checked, limits = tuple(_checked(walk, counts)), tuple(_limits(walk, counts))
    return Verification(walk.findings.told(), walk.notices.told(), counts, checked, limits)


def _checked(walk: Walk, counts: dict[str, int]) -> list[str]:
    means = walk.means
    what = "MAC and hash chain" if counts["keyed"] else "hash chain"
    told = [f"{counts['records']} records of {counts['chains']} chains in {counts['segments']} files: {what}"]
    if counts["keyed"] < counts["chains"] and counts["keyed"]:
        told.append(f"{counts['chains'] - counts['keyed']} of the chains have no keys: only the hash chain")
    if means.state is not None:
        what = "length and seal" if means.epochs else "length"
        told.append(f"state file: {what} of {counts['compared']} chains")
    if means.registry is not None:
        told.append(f"registry: {means.registry.records} records, {counts['registered']} chains")
    if means.witness is not None:
        told.append(
            f"witnesses: {counts['witnessed']} records, {means.witness.other_lines} lines that are none"
        )
    if counts["retired"]:
        told.append(
            f"{counts['retired']} segments were retired, and say so: their records are not here to be checked"
        )
    if counts["silent"]:
        told.append(f"{counts['silent']} forked children wrote nothing")
    if counts["repeats"]:
        told.append(f"{counts['repeats']} records come again, equal to the byte, and may")
    if counts["running"]:
        told.append(f"{counts['running']} chains are still written")
    told.append(_newest(walk))
    return told


def _newest(walk: Walk) -> str:
    """The newest checkpoint: what a witness has at least, if it has checkpoints."""
    found = [(*seen.checkpoint[::-1], seen.id) for seen in walk.chains.values() if seen.checkpoint]
    if not found:
        return "no checkpoint is in this ledger"
    t, n, chain = max(found)
    return f"newest checkpoint: record {n} of {scan.name_of(chain)}, {moment(t)}"


def _limits(walk: Walk, counts: dict[str, int]) -> list[str]:
    means = walk.means
    told = []
    if not counts["keyed"]:
        told.append("checked without a key: integrity only against parties without write access")
    if means.state is None:
        told.append("no state file: records that were cut off at the end of a chain are not seen")
    if means.registry is None:
        told.append(
            "no registry: a chain that was taken out whole, with its slot in the state file, is not seen"
        )
    if means.witness is None:
        told.append(
            "no witness: older copies of ledger, state and key directory, put back together, are not seen"
        )
    if counts["retired"]:
        told.append(
            "what retired segments had is known only from the records that tell of them, and a witness"
        )
    told.append("what a process wrote after somebody took it over is what they wanted it to write")
    return told
