"""The keys of docs/audit-format.md, from the verification key on. Pure."""

from __future__ import annotations

import hmac

#: More epochs than a host will open chains; a ledger may name any number.
EPOCHS_MAX = 1 << 23
#: Every so many keys are kept: all of them would be too many.
ANCHOR = 64


def mac(key: bytes, data: bytes) -> bytes:
    """Return HMAC-SHA-256 (RFC 2104)."""
    return hmac.digest(key, data, "sha256")


class Epochs:
    """The epoch keys, each made when it is asked for. Cheap when they are asked for in order."""

    def __init__(self, verification_key: bytes) -> None:
        """Begin with E(0)."""
        first = mac(verification_key, b"safespawn epoch")
        self._anchors = [first]
        self._last = (0, first)

    def key(self, epoch: int) -> bytes | None:
        """Return E(epoch); None for a number that cannot be."""
        if not 0 <= epoch < EPOCHS_MAX:
            return None
        at, key = self._last
        anchor = min(epoch // ANCHOR, len(self._anchors) - 1)
        if not anchor * ANCHOR <= at <= epoch:
            at, key = anchor * ANCHOR, self._anchors[anchor]
        while at < epoch:
            at, key = at + 1, mac(key, b"safespawn evolve")
            if at == len(self._anchors) * ANCHOR:
                self._anchors.append(key)
        self._last = at, key
        return key


def chain_key(epoch_key: bytes, chain: str) -> bytes:
    """Return C of a chain that was opened in an epoch."""
    return mac(epoch_key, b"safespawn chain" + chain.encode("ascii"))


def seal(key: bytes) -> bytes:
    """Return what the slot of a chain with that key has while it has no record."""
    return mac(mac(key, b"safespawn aggregate"), b"safespawn state")


def fork_key(record_key: bytes, child: str) -> bytes:
    """Return C of a child, from B(n) of the parent's record that tells of the fork."""
    return mac(record_key, b"safespawn fork" + child.encode("ascii"))
