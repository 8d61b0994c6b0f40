"""Lines of a ledger that were collected elsewhere: what the ledger must still have."""

from __future__ import annotations

import os
from typing import NamedTuple

from . import _verify_scan as scan
from ._verify_segments import open_file


class Seen(NamedTuple):
    """A record that a witness has."""

    hash: bytes
    file: str
    line: int
    byte: int
    boot: str


class Witness:
    """The records of all witness files, by chain and number."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        """Read the files. Raises OSError."""
        self.chains: dict[bytes, dict[int, Seen]] = {}
        self.records = 0
        self.other_lines = 0
        #: Two witnesses that disagree: the record, and where the second is.
        self.differing: list[tuple[bytes, int, Seen, Seen]] = []
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
        boot = rest.partition(b'"')[0].decode("ascii")
        seen = Seen(record.hash, path, record.line, record.at, boot)
        first = self.chains.setdefault(record.id, {}).setdefault(record.n, seen)
        if first.hash != seen.hash:
            self.differing.append((record.id, record.n, first, seen))
        self.records += first is seen
