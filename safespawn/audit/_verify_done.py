"""A ledger that was read to the end: what all comparisons that follow need."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Hashable
from functools import cached_property
from typing import NamedTuple

from .._descriptors import identity
from . import _verify_scan as scan
from ._segments import numbers
from ._verify_findings import ENDS, Finding, Place
from ._verify_registry import is_same_ledger, names_of
from ._verify_segments import place_of
from ._verify_walk import Walk


class Told(NamedTuple):
    """What is said of a record, or of a chain."""

    chain: bytes | None
    n: int | None
    reason: str
    text: str


class Done:
    """The walk, its chains by name, and where findings go."""

    def __init__(self, walk: Walk, path: str, state_path: str | None) -> None:
        """``path`` is the ledger, ``state_path`` its state file, None where there is none to be had."""
        self.walk, self.path, self.state_path = walk, path, state_path
        self.means, self.scanner = walk.means, walk.scanner
        self.places = {self.scanner.id(place): place for place in range(self.scanner.used)}
        self.counts: Counter[str] = Counter()
        self.names = names_of(path)

    @cached_property
    def ledgers(self) -> set[str]:
        """The paths by which the registry knows this ledger. In a copy the chains that are here tell it."""
        chains = self.means.registry.chains if self.means.registry else {}
        told = {entry.ledger for entry in chains.values()}
        ours = {path for path in told if path in self.names or is_same_ledger(path, self.path)}
        return ours or {chains[chain].ledger for chain in self.places if chain in chains and self.has(chain)}

    def standing(self, chain: bytes) -> scan.Standing:
        """Return where a chain of the table stands."""
        return self.scanner.standing(self.places[chain])

    def has(self, chain: bytes) -> bool:
        """Whether a record of a chain is here."""
        return chain in self.places and self.standing(chain).found > 0

    @cached_property
    def _files_now(self) -> set[tuple[int, int] | None]:
        names = (self.path, *(f"{self.path}.{number}" for number in numbers(self.path)))
        return {place_of(name) for name in names}

    def is_here(self, file: int) -> bool:
        """Whether a file that was read has a name of the ledger still, or was deleted since."""
        return identity(self.walk.segments[file].fd) in self._files_now

    def records_of(self, chain: bytes) -> int:
        """Return how many records of a chain are here, or were in segments that were retired."""
        head = self.walk.heads.get(chain)
        return self.standing(chain).next if self.has(chain) else head.n + 1 if head else 0

    def noticed(self, key: Hashable, place: Place, told: Told, file: str = "") -> None:
        """Add a notice. ``file`` where the place is not in the ledger."""
        self.walk.notices.add((told.reason, key), place, self._finding(place, told, file))

    def found(self, key: Hashable, place: Place, told: Told, file: str = "") -> None:
        """Add a finding in the same way. Those with the same key are thought to have one cause."""
        self.walk.findings.add(key, place, self._finding(place, told, file))

    def ended(self, chain: bytes, place: Place, told: Told) -> None:
        """Add a finding about the end of a chain. Whatever is wrong with its records is told before."""
        self.walk.findings.add(("end", chain), (ENDS, *place), self._finding(place, told, ""))

    def _finding(self, place: Place, told: Told, file: str) -> Finding:
        name = scan.name_of(told.chain) if told.chain else None
        _, line, byte = place
        return Finding(file or self.walk.name(place), line, byte, name, told.n, told.reason, told.text)


def moment(ns: int) -> str:
    """Return a time in UTC, to the second; the number of nanoseconds where there is no such date."""
    try:
        return dt.datetime.fromtimestamp(ns // 10**9, dt.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"
