"""What a verification says: findings, notices, and how many follow from the first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

_LOOK = "keep a copy of all files, then compare this record with what a collector has of it"
_CUT = "keep a copy of all files; what is missing can only come from a collector: verify with --witness"
_BACK = "keep a copy of all files; find out who put an older file back, and what a collector has since then"

#: Reasons of findings and what to do: each says that somebody changed something, or took it away.
TAMPERED: Mapping[str, str] = {
    "mac-mismatch": _LOOK,
    "hash-mismatch": _LOOK,
    "gap": "keep a copy of all files; look for the records in a segment that was moved, or at a collector",
    "replay/reorder": "keep a copy of all files; in a collector's file use --dedupe",
    "unequal-repeat": _LOOK,
    "torn-or-garbage": _LOOK,
    "aggregate-mismatch": _CUT,
    "tail-truncated": _CUT + "; after a loss of power it may be what was not on the disk yet",
    "state-missing": "put the state file back where it belongs, or verify a copy with --no-state",
    "state-behind": _BACK,
    "state-garbage": _BACK,
    "chain-missing": _CUT,
    "chain-unknown": "give the key directory (--keys); if it was given, this chain was written without keys",
    "chain-unregistered": _BACK,
    "fork-mismatch": _LOOK,
    "segment-missing": "put the segment back; one that is to go is retired, which leaves a record",
    "retirement-unproven": "keep a copy of all files; that record excuses nothing: find out who wrote it",
    "file-shrank": "somebody cuts the file: turn copytruncate of a log rotation off",
    "unkeyed": "look who wrote it; a process that was started before the keys were set up must be restarted",
    "registry-missing": _BACK,
    "epoch-missing": _BACK,
    "epoch-mismatch": "is this the verification key of this host? If it is: " + _BACK,
    "witness-mismatch": "one of the two was changed: the one of which the MAC fits was not",
    "witness-missing": _CUT,
    "too-many": "deal with what is told first, then verify again",
}

#: Reasons of notices and what they come from.
EXPLAINED: Mapping[str, str] = {
    "uncommitted": "a killed process or a full disk: what was announced there was never done",
    "crashed": "a process was killed, or runs where we cannot see it",
    "orphan-intent": "its process was killed, or could not write: look whether the program ran",
    "clock-back": "somebody set the clock; the order of the records in a chain is not that of their times",
    "chain-empty": "a process was killed while it opened the ledger",
    "fork-untold": "the disk was full, or failed, when a process forked",
    "unkeyed-before": "from before the keys were set up: nothing protects it",
    "aggregate-unchecked": "give --keys; if it was given, nothing here tells where the keys came from",
    "ledger-absent": "a rotation was interrupted; the next process that opens the ledger begins a new file",
    "other-ledger": "the file was moved, or lines were copied from another ledger",
    "witness-other": "a collector's file of several ledgers; or an older copy of this one was put back",
    "retired": "deleted with `safespawn audit retire`: is that what your policy deletes, and when?",
    "retired-here": "to retire segments was interrupted, or goes on just now; or they were put back",
    "too-many": "there are more notices than were kept",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and where: ``line`` counts from 1, ``byte`` from 0.

    ``line`` is 0 for a file that has no lines. ``chain`` and ``n`` name the record, as far as that is
    known. ``reason`` is one of a closed set (docs/audit-verify.md), ``text`` is for a person. ``more``
    counts what was found in the same chain after it, most often by the same damage.
    """

    file: str
    line: int
    byte: int
    chain: str | None
    n: int | None
    reason: str
    text: str
    more: int = 0

    def __str__(self) -> str:
        """Return ``file:line:byte chain seq reason: text``."""
        n = "-" if self.n is None else self.n
        return plain(
            f"{self.file}:{self.line}:{self.byte} {self.chain or '-'} {n} {self.reason}: {self.text}"
        )


def plain(text: str) -> str:
    """Paths come from files that others have written: a terminal must not obey them."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


@dataclass(frozen=True)
class Verification:
    """What came of a verification. ``findings`` are in the order of the ledger.

    ``notices`` are no sign of tampering: see docs/audit-verify.md. ``counts`` has how much was looked at.
    ``checked`` and ``limits`` say in sentences what was checked, and what could not be seen.
    """

    findings: tuple[Finding, ...]
    notices: tuple[Finding, ...]
    counts: Mapping[str, int]
    checked: tuple[str, ...]
    limits: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


#: Where something is: the number of the file in the order of reading, line and byte.
Place = tuple[int, int, int]
#: What comes behind all lines of the ledger: the ends of chains, and other files, by these numbers.
ENDS, SEGMENTS, STATE, REGISTRY, WITNESS = range(1 << 40, (1 << 40) + 5)


@dataclass
class _Group:
    """The first of what belongs together, and the reasons of the others."""

    order: tuple[int, ...]
    first: Finding
    others: Counter[str] = field(default_factory=Counter)


#: So many groups are kept: a file full of garbage must not fill the memory.
GROUPS_MAX = 10_000


class Collector:
    """Gathers what is found; of what belongs together the first in the file is told, the rest counted."""

    def __init__(self, what: str) -> None:
        """Nothing yet. ``what`` says what is shared: "in this chain"."""
        self._what = what
        self._groups: dict[Hashable, _Group] = {}
        self._left_out = 0

    def __contains__(self, key: Hashable) -> bool:
        """Whether there is a group of that key."""
        return key in self._groups

    def add(self, key: Hashable, order: tuple[int, ...], finding: Finding) -> None:
        """Add one to its group. ``order`` is its place, or that with a number from ENDS on before it."""
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= GROUPS_MAX:
                self._left_out += 1
                return
            self._groups[key] = _Group(order, finding)
        elif order < group.order:
            group.others[group.first.reason] += 1
            group.order, group.first = order, finding
        else:
            group.others[finding.reason] += 1

    def again(self, key: Hashable, order: tuple[int, ...], reason: str) -> bool:
        """Count one more of a group whose first comes before it; False where :meth:`add` is needed."""
        group = self._groups.get(key)
        if group is None or order < group.order:
            return False
        group.others[reason] += 1
        return True

    def withdraw(self, key: Hashable, order: tuple[int, ...]) -> None:
        """Take back what is alone in its group, and at that place: it was something else."""
        group = self._groups.get(key)
        if group is not None and group.order == order and not group.others:
            del self._groups[key]

    def told(self) -> tuple[Finding, ...]:
        """Return the first of each group, in the order of the files."""
        groups = sorted(self._groups.values(), key=lambda group: group.order)
        told = [self._with_others(group) for group in groups]
        if self._left_out:
            told.append(Finding("-", 0, 0, None, None, "too-many", f"{self._left_out} more were not kept"))
        return tuple(told)

    def _with_others(self, group: _Group) -> Finding:
        more = sum(group.others.values())
        if not more:
            return group.first
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(group.others.items()))
        text = f"{group.first.text} (and {more} more {self._what}: {reasons})"
        return Finding(**{**vars(group.first), "text": text, "more": more})
