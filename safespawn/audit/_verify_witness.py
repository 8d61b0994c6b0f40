"""Lines of a ledger that were collected elsewhere: what the ledger must still have."""

from __future__ import annotations

import errno
import os
import sys
from typing import NamedTuple

from .._errors import AuditError
from . import _verify_scan as scan
from ._verify_segments import open_file

#: Records of all witnesses together: about 400 bytes of memory each.
WITNESSED_MAX = 1 << 22


class Seen(NamedTuple):
    """A record that a witness has."""

    n: int
    hash: bytes
    file: str
    line: int
    byte: int
    boot: str


class Witness:
    """The records of all witness files, by chain and number."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        """Read the files. Raises OSError, AuditError when they have more records than WITNESSED_MAX."""
        self.chains: dict[bytes, dict[bytes, Seen]] = {}
        self.records = 0
        self.other_lines = 0
        #: Two witnesses that disagree: the record, and where the second is.
        self.differing: list[tuple[bytes, Seen, Seen]] = []
        for path in paths:
            self._read(path)

    def _read(self, path: str) -> None:
        fd = open_file(path)
        try:
            for record, line in scan.parts(fd, os.fstat(fd).st_size):
                if record.verdict == scan.FITS:
                    self._add(path, record, line)
                else:
                    self.other_lines += record.verdict != scan.BLANK
        finally:
            os.close(fd)

    def _add(self, path: str, record: scan.Record, line: bytes) -> None:
        _, _, rest = line.partition(b'"boot":"')
        boot = sys.intern(rest.partition(b'"')[0].decode("ascii"))
        seen = Seen(record.n, record.hash, path, record.line, record.at, boot)
        first = self.chains.setdefault(record.id, {}).setdefault(key_of(record.n), seen)
        if first.hash != seen.hash:
            self.differing.append((record.id, first, seen))
        self.records += first is seen
        if self.records + len(self.differing) > WITNESSED_MAX:
            text = f"cannot verify with more than {WITNESSED_MAX} records of witnesses; checkpoints will do"
            raise AuditError(errno.E2BIG, text, path)


def key_of(n: int) -> bytes:
    """Return the key of a number. Whoever chooses numbers can choose such that a dictionary searches long."""
    return n.to_bytes(8, "big")
