"""Keys of chains that forks began, over any number of forks.

Anybody may have written where a chain comes from: each link is gone once, whatever line of descent, tree or
circle the links make, and what leads nowhere is known from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ._verify_keys import Epochs, chain_key, fork_key, mac
from ._verify_scan import Scanner, follow, name_of

#: Links that are gone in all. Each is gone once, and again only where another origin was told meanwhile.
LINKS_MAX = 1 << 22
#: Every so many record keys of a parent are kept: its children come in any order.
ANCHOR = 1024


class Source(NamedTuple):
    """Where the keys of a chain come from: an epoch, or a record ``chain.fork`` of a parent."""

    epoch: int
    parent: bytes | None = None
    n: int = 0


@dataclass(slots=True)
class _Known:
    """A chain: where its key came from, the key, and B(0), B(ANCHOR) and so on as far as they were needed."""

    source: Source
    key: bytes
    anchors: list[bytes] = field(default_factory=list)


class Descent:
    """What is known of the lines of descent."""

    def __init__(self, epochs: Epochs, scanner: Scanner, source_of: Callable[[bytes], Source | None]) -> None:
        """``source_of`` tells where the keys of a chain come from, as far as that is known by now."""
        self._epochs, self._scanner, self._source_of = epochs, scanner, source_of
        self._known: dict[bytes, _Known] = {}
        #: Chains whose line ends at one of ``_ends``, of which nothing is known, or goes round in a circle.
        self._nowhere: dict[bytes, Source] = {}
        self._ends: set[bytes] = set()
        self._left = LINKS_MAX

    def learned(self, chain: bytes) -> None:
        """Take in that something was told of where a chain comes from."""
        source, known = self._source_of(chain), self._known.get(chain)
        if chain in self._ends or self._nowhere.get(chain, source) != source:
            self._ends.clear()
            self._nowhere.clear()
        if known is not None and known.source != source:
            self._known.clear()  # with those that descend from it

    def key(self, chain: bytes, source: Source) -> bytes | None:
        """Return C of a chain with that source; None when an ancestor is not known, or it is too far."""
        known = self._known.get(chain)
        if known is not None and known.source == source:
            return known.key
        key = None
        for child, whence in reversed((self._line(chain, source) or {}).items()):
            key = self._next_key(child, whence)
            if key is None:
                break
            self._known[child] = _Known(whence, key)
        return key

    def record_key(self, chain: bytes, source: Source, n: int) -> bytes | None:
        """Return B(n) of a chain with that source; None as :meth:`key`, or when n is too far."""
        return None if self.key(chain, source) is None else self._record_key(self._known[chain], n)

    def _line(self, chain: bytes, source: Source) -> dict[bytes, Source] | None:
        """Return the chain and its ancestors, up to a child of one whose key is known, if there is."""
        line = {chain: source}
        while source.parent is not None and self._left:
            chain = source.parent
            above, known = self._source_of(chain), self._known.get(chain)
            if known is not None and known.source == above:
                break
            if above is None or chain in line or chain in self._nowhere:
                self._nowhere.update(line)
                self._ends.update(() if above else (chain,))
                return None
            self._left -= 1
            line[chain] = source = above
        else:
            return line if source.parent is None else None
        return line

    def _next_key(self, chain: bytes, source: Source) -> bytes | None:
        if source.parent is None:
            epoch = self._epochs.key(source.epoch)
            return epoch and chain_key(epoch, name_of(chain))
        of_record = self._record_key(self._known[source.parent], source.n)
        return of_record and fork_key(of_record, name_of(chain))

    def _record_key(self, parent: _Known, n: int) -> bytes | None:
        """Return B(n); None if that is too far."""
        anchors = parent.anchors = parent.anchors or [mac(parent.key, b"safespawn record")]
        missing = n // ANCHOR + 1 - len(anchors)
        if not self._scanner.may_go(max(0, missing) * ANCHOR + n % ANCHOR):
            return None
        for _ in range(missing):
            anchors.append(follow(anchors[-1], ANCHOR))
        return follow(anchors[n // ANCHOR], n % ANCHOR)
