"""The key directory as the verifier reads it: the registry of chains, and the file of the epoch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .._descriptors import identity
from .._errors import AuditError
from . import _verify_scan as scan
from ._verify_findings import REGISTRY, Collector, Finding
from ._verify_keys import Epochs, mac
from ._verify_segments import open_file, read_whole

MAGIC = b"SSEPOCH1"
EPOCH_BYTES = 128
ZERO = bytes(32)
#: How a path that is too long for a record is told.
DIGEST = "sha256:"
#: The file is overwritten in one write(2); what is seen half will be whole at once.
LOOKS = 100


class Epoch(NamedTuple):
    """The file ``epoch``: the next epoch, its key, the aggregate of the registry before it, its chain."""

    number: int
    key: bytes
    agg: bytes
    chain: bytes


class Entry(NamedTuple):
    """What the registry says of a chain."""

    epoch: int
    ledger: str


@dataclass
class Registry:
    """What was read of a key directory."""

    path: str
    chains: dict[bytes, Entry] = field(default_factory=dict)
    records: int = 0
    #: When the keys of this host were set up, in nanoseconds; None if that is not known.
    began: int | None = None


def parsed(line: bytes) -> dict[str, Any]:
    """Return the members of a record; none where it is no object that Python can read."""
    try:
        made = json.loads(line.decode("ascii", "replace"))
    except (ValueError, RecursionError):
        return {}
    return made if isinstance(made, dict) else {}


def path_of(value: object) -> str:
    """Return a path that a record tells; empty where it tells none. A long one is told by its digest."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return ""
    if "cut" in value:
        return f"{DIGEST}{value.get('sha256')}"
    try:
        return os.fsdecode(bytes.fromhex(value["hex"]))
    except (KeyError, TypeError, ValueError):
        return ""


def names_of(path: str) -> set[str]:
    """Return how a record may tell the path of a ledger."""
    names = {os.path.abspath(path), os.path.realpath(path)}
    return names | {DIGEST + hashlib.sha256(os.fsencode(name)).hexdigest() for name in names}


def is_same_ledger(told: str, path: str) -> bool:
    """Whether a path that a record tells leads to this ledger too, over links of any kind."""
    try:
        real, ours = os.path.realpath(told), os.path.realpath(path)
        pairs = [(real, ours)]
        if os.path.basename(real) == os.path.basename(ours):  # also when the file itself is gone
            pairs.append((os.path.dirname(real), os.path.dirname(ours)))
        return os.path.isabs(told) and any(_is_same(*pair) for pair in pairs)
    except ValueError:  # a NUL
        return False


def _is_same(one: str, other: str) -> bool:
    try:
        return identity(one) == identity(other)
    except OSError:
        return one == other


def read(where: str, epochs: Epochs | None, findings: Collector, notices: Collector) -> Registry:
    """Read and check a key directory. Raises AuditError when it is none, OSError when it cannot be read."""
    if not os.path.isdir(where):
        raise AuditError(errno.ENOTDIR, "cannot verify: no key directory", where)
    return _Reading(where, epochs, findings, notices).registry


class _Reading:
    """One reading of a key directory, the epoch first: a process writes the registry before it."""

    def __init__(self, where: str, epochs: Epochs | None, findings: Collector, notices: Collector) -> None:
        self.registry = Registry(os.path.join(where, "registry.jsonl"))
        self._epoch_path = os.path.join(where, "epoch")
        self._epochs, self._findings, self._notices = epochs, findings, notices
        self._previous, self._agg, self._agg_then = ZERO, ZERO, ZERO
        self._chain: bytes | None = None
        self._epoch = self._read_epoch()
        if self._read_records():
            self._compare()

    def _find(self, record: scan.Record | None, reason: str, text: str, path: str | None = None) -> None:
        line, byte, chain, n = (
            (record.line, record.at, record.chain, record.n) if record else (0, 0, None, None)
        )
        path = path or self.registry.path
        self._findings.add(path, (REGISTRY, line, byte), Finding(path, line, byte, chain, n, reason, text))

    # -- the epoch

    def _read_epoch(self) -> Epoch | None:
        for _ in range(LOOKS):
            try:
                data = read_whole(self._epoch_path, EPOCH_BYTES)
            except FileNotFoundError:
                self._find(None, "epoch-missing", "the file of the epoch is not there", self._epoch_path)
                return None
            except AuditError:
                data = b""
            if len(data) == EPOCH_BYTES and hashlib.sha256(data[:96]).digest() == data[96:]:
                break
        if data[:8] != MAGIC or len(data) != EPOCH_BYTES or hashlib.sha256(data[:96]).digest() != data[96:]:
            self._find(None, "epoch-mismatch", "the file of the epoch is damaged", self._epoch_path)
            return None
        return Epoch(*struct.unpack_from("<8xQ32s32s16s", data))

    # -- the records

    def _read_records(self) -> bool:
        try:
            fd = open_file(self.registry.path)
        except FileNotFoundError:
            self._find(None, "registry-missing", "the registry of chains is not there")
            return False
        try:
            for record, line in scan.parts(fd, os.fstat(fd).st_size):
                self._take(record, line)
        finally:
            os.close(fd)
        return True

    def _take(self, record: scan.Record, line: bytes) -> None:
        if record.verdict == scan.FITS:
            self._judge(record, line)
        elif record.verdict == scan.GARBAGE or (
            record.flags & scan.HAS_NUMBER and record.n != self.registry.records
        ):
            self._find(record, "torn-or-garbage", "neither a record nor the beginning of one")
        else:
            text = "a process was killed while it opened a ledger: this record does not count"
            found = Finding(
                self.registry.path, record.line, record.at, record.chain, None, "uncommitted", text
            )
            self._notices.add((self.registry.path, "uncommitted"), (REGISTRY, record.line, record.at), found)

    def _judge(self, record: scan.Record, line: bytes) -> None:
        registry = self.registry
        self._chain = self._chain or record.id
        told = parsed(line)
        if record.id != self._chain:
            self._find(record, "chain-unknown", "a record of another chain than the registry's")
            return
        is_right = self._has_right_mac(record, line)
        if not is_right:
            self._find(record, "mac-mismatch", "changed, or written without the key of its epoch")
        elif record.n != registry.records:
            reason = "gap" if record.n > registry.records else "replay/reorder"
            self._find(record, reason, f"expected record {registry.records}, found {record.n}")
        elif told.get("p") != self._previous.hex() and self._previous:
            self._find(record, "hash-mismatch", "does not follow the record before")
        if is_right and record.n < registry.records:
            return
        if record.n == registry.records or is_right:
            self._move_on(record, line, is_right)
        if is_right:
            self._list(record, told)

    def _has_right_mac(self, record: scan.Record, line: bytes) -> bool:
        if self._epochs is None:
            return True
        key = self._epochs.key(record.n) if record.flags & scan.HAS_MAC else None
        if key is None:
            return False
        return mac(mac(key, b"safespawn registry record"), line[:-72]).hex().encode() == line[-66:-2]

    def _move_on(self, record: scan.Record, line: bytes, is_right: bool) -> None:
        key = self._epochs.key(record.n) if self._epochs else None
        if key and record.flags & scan.HAS_MAC:
            told = bytes.fromhex(line[-66:-2].decode("ascii"))
            self._agg = mac(mac(key, b"safespawn registry aggregate"), self._agg + told)
        self.registry.records = record.n + 1
        # The record behind a changed one tells the hash of what was there.
        self._previous = record.hash if is_right else b""
        if self._epoch and self.registry.records == self._epoch.number:
            self._agg_then = self._agg

    def _list(self, record: scan.Record, told: dict[str, Any]) -> None:
        if record.event == scan.EVENTS["registry.init"] and record.n == 0:
            self.registry.began = record.t
        elif record.event == scan.EVENTS["registry.chain"] and isinstance(told.get("chain"), str):
            chain = scan.id_of(told["chain"])
            if chain is not None:
                self.registry.chains.setdefault(chain, Entry(record.n, path_of(told.get("ledger"))))

    # -- both together

    def _compare(self) -> None:
        epoch, records = self._epoch, self.registry.records
        if epoch is None:
            return
        if epoch.number > records:
            lost = epoch.number - records
            self._find(
                None,
                "tail-truncated",
                f"{lost} records are missing: the epoch is {epoch.number}, and there are {records}",
            )
            return
        key = self._epochs.key(epoch.number) if self._epochs else epoch.key
        if key != epoch.key or (self._chain or epoch.chain) != epoch.chain:
            text = f"the key of epoch {epoch.number} is not the one that follows from the verification key"
            self._find(None, "epoch-mismatch", text, self._epoch_path)
        elif self._epochs and epoch.agg != self._agg_then and self.registry.path not in self._findings:
            self._find(
                None, "aggregate-mismatch", "the records are not those that the epoch was overwritten after"
            )
        if records > epoch.number + 1:
            # Others may have opened ledgers meanwhile: then the file has moved on too.
            now = self._read_epoch()
            if now is None or records > now.number + 1:
                text = f"an older file was put back: epoch {epoch.number}, and there are {records} records"
                self._find(None, "epoch-mismatch", text, self._epoch_path)
