"""Reads a ledger back as docs/audit-format.md has it, and takes nothing that is not exactly so.

Independent of the package: hashlib and hmac only. For tests whose ledgers nobody has tampered with, so
anything that a verifier could take for tampering is an AssertionError here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ZERO = bytes(32)
START = b'{"v":1,"c":"'
_HEX = "[0-9a-f]"
_UUID = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
_NUMBER = "(?:0|[1-9][0-9]*)"
ENVELOPE = re.compile(
    rf'\{{"v":1,"c":"({_UUID})","n":({_NUMBER}),"p":"({_HEX}{{64}})","ev":"([a-z.]+)","sid":(null|"{_UUID}"),'
    rf'"t":{_NUMBER},"mono":{_NUMBER},"boot":"({_UUID})?","mode":"(?:best_effort|require|durable)"[,}}]'
)
MAC = re.compile(rf',"m":"({_HEX}{{64}})"}}$')


def sha256(data: bytes) -> bytes:
    """Return the digest."""
    return hashlib.sha256(data).digest()


def mac(key: bytes, *parts: bytes) -> bytes:
    """Return HMAC-SHA-256 of the parts, joined."""
    return hmac.digest(key, b"".join(parts), "sha256")


@dataclass
class Chain:
    """One chain as far as it was read. The keys are empty for one that has none."""

    id: str
    key: bytes
    epoch: int
    mode: str
    hashes: list[bytes] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    record_keys: list[bytes] = field(default_factory=list)
    #: By the number of records: their aggregate, and what the state file says of them.
    aggregates: list[bytes] = field(default_factory=lambda: [ZERO])
    seals: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Derive B(0) and A(0)."""
        if self.key:
            self.record_keys.append(mac(self.key, b"safespawn record"))
            self._aggregate_key = mac(self.key, b"safespawn aggregate")
            self._seal()

    @property
    def is_closed(self) -> bool:
        """Whether its last record closed it."""
        return bool(self.records) and self.records[-1]["ev"] == "chain.close"

    def take(self, line: bytes, record: dict[str, Any]) -> None:
        """Take its next record, which must fit in every way."""
        n, where = len(self.records), f"record {len(self.records)} of {self.id}"
        assert record["n"] == n, f"{where} is missing, {record['n']} comes instead"
        assert record["p"] == (self.hashes[-1] if n else ZERO).hex(), f"{where} does not follow the one before"
        assert (record["ev"] == "chain.open") == (n == 0), f"{where} is {record['ev']}"
        assert not self.is_closed, f"{where} comes after the end"
        assert record["mode"] == self.mode, where
        assert bool(self.key) == ("m" in record), f"{where}: keys or none"
        if record["ev"] in ("checkpoint", "chain.close"):
            self._counted(record, where)
        if self.key:
            self._authentic(line, record, where)
        self.hashes.append(sha256(line))
        self.records.append(record)

    def _counted(self, record: dict[str, Any], where: str) -> None:
        counts: dict[str, int] = {}
        for before in self.records:
            counts[before["ev"]] = counts.get(before["ev"], 0) + 1
        told = record["counts"]
        # Told before the record is written: threads, and the telling of a loss, may come between.
        assert all(told[event] <= counts.get(event, 0) for event in told), where
        assert self.key == b"" or record["agg"] == self.aggregates[-1].hex(), f"{where}: aggregate"

    def _authentic(self, line: bytes, record: dict[str, Any], where: str) -> None:
        body, _, told = line.rpartition(b',"m":"')
        made = mac(self.record_keys[-1], body)
        assert told == made.hex().encode() + b'"}', f"{where}: MAC"
        self.aggregates.append(mac(self._aggregate_key, self.aggregates[-1], made))
        self.record_keys.append(sha256(self.record_keys[-1]))
        self._aggregate_key = sha256(self._aggregate_key)
        self._seal()

    def _seal(self) -> None:
        self.seals.append(mac(self._aggregate_key, b"safespawn state"))


@dataclass
class Ledger:
    """What a ledger holds: its chains, all records in the order of the files, and what is no record."""

    path: Path
    chains: dict[str, Chain]
    records: list[dict[str, Any]]
    torn: list[bytes]

    def events(self, *without: str) -> list[str]:
        """Return the names of the events in order."""
        return [record["ev"] for record in self.records if record["ev"] not in without]

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the records of an event."""
        return [record for record in self.records if record["ev"] == event]

    @property
    def lost(self) -> int:
        """How many losses are told."""
        return sum(record["lost"] for record in self.records if record["ev"] in ("audit.degraded", "chain.close"))

    def programs(self, stage: str = "spawn.intent") -> set[str]:
        """Return the last arguments of the programs that a record of that stage is about."""
        sids = {record["sid"] for record in self.of(stage)}
        return {r["what"]["argv"][-1] for r in self.of("spawn.intent") if r["sid"] in sids}


def segments(path: Path) -> list[Path]:
    """Return the files of a ledger, the oldest first; also those that a test has kept from being retired."""
    found = {p.name: p for where in (path.parent / "kept", path.parent) for p in where.glob(path.name + ".*")}
    older = [p for name, p in found.items() if name[len(path.name) + 1 :].isdecimal()]
    older.sort(key=lambda p: int(p.name[len(path.name) + 1 :]))
    return older + [path] * path.exists()


def check(path: Path, key: str | None = None, keys: Path | None = None, *, still_open: bool = True) -> Ledger:
    """Read a ledger, with the verification key (hex) and key directory if its chains have keys.

    ``still_open``: chains without an end are fine, as a killed process leaves them.
    """
    reader = _Reader(bytes.fromhex(key) if key else None)
    for file in segments(path):
        reader.file(file)
    ledger = Ledger(path, reader.chains, reader.records, reader.torn)
    assert still_open or all(chain.is_closed for chain in ledger.chains.values()), "a chain without its end"
    if key is not None:
        assert keys is not None
        _check_state(ledger, _check_registry(keys, bytes.fromhex(key), ledger))
    return ledger


def verified(path: Path, key: str | None = None, keys: Path | None = None) -> None:
    """Have the real verifier look as well: it must find nothing in a ledger that nobody has tampered with."""
    from safespawn.audit import verifier  # here, because all else is independent of the package

    registry = keys if key else None
    seen = verifier.verify(path, key=bytes.fromhex(key) if key else None, registry=registry)
    assert [str(finding) for finding in seen.findings] == []


class _Reader:
    def __init__(self, key: bytes | None) -> None:
        self.key = key
        self.chains: dict[str, Chain] = {}
        self.records: list[dict[str, Any]] = []
        self.torn: list[bytes] = []

    def file(self, file: Path) -> None:
        """Read one segment. What another segment has already must come again byte for byte."""
        *lines, rest = file.read_bytes().split(b"\n")
        again: dict[str, range] = {}
        for line in lines:
            if line.startswith(START) and line.endswith(b"}") and _is_whole(line):
                self._record(line, again)
            elif line:
                self.torn.append(line)
        if rest:
            self.torn.append(rest)

    def _record(self, line: bytes, again: dict[str, range]) -> None:
        assert len(line) < 8000, f"{len(line)} bytes"
        text = line.decode("ascii")
        found = ENVELOPE.match(text)
        assert found and all(" " <= char <= "~" for char in text), text
        record = json.loads(text, parse_float=_no_float)
        chain = self.chains.get(record["c"]) or self._begin(record)
        n = record["n"]
        if n in again.get(chain.id, ()) and n < len(chain.records):
            assert sha256(line) == chain.hashes[n], f"record {n} of {chain.id} came again as another"
            return
        chain.take(line, record)
        self.records.append(record)
        if "resent" in record:
            first, last = record["resent"]
            again[chain.id] = range(first, last + 1)

    def _begin(self, record: dict[str, Any]) -> Chain:
        assert record["ev"] == "chain.open", f"a chain begins with {record['ev']}"
        source, key, epoch = record["keys"], b"", 0
        if source and "epoch" in source:
            assert self.key
            epoch = source["epoch"]
            key = mac(epoch_key(self.key, epoch), b"safespawn chain", record["c"].encode())
        elif source:
            parent = self.chains[source["parent"]]
            told = parent.records[source["n"]]
            assert (told["ev"], told["child"]) == ("chain.fork", record["c"]), "its parent tells of no such fork"
            epoch = parent.epoch
            key = mac(parent.record_keys[source["n"]], b"safespawn fork", record["c"].encode())
        made = self.chains[record["c"]] = Chain(record["c"], key, epoch, record["mode"])
        return made


def _no_float(text: str) -> None:
    raise AssertionError(f"a float: {text}")


def _is_whole(line: bytes) -> bool:
    """Whether a line is JSON: one that was cut after an inner brace ends with a brace too."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def epoch_key(key: bytes, epoch: int) -> bytes:
    """Return E(epoch)."""
    made = mac(key, b"safespawn epoch")
    for _ in range(epoch):
        made = mac(made, b"safespawn evolve")
    return made


def _check_registry(where: Path, key: bytes, ledger: Ledger) -> dict[str, int]:
    """Check the key directory; return the chains of this ledger in the registry, and their epochs."""
    lines = [
        line
        for line in (where / "registry.jsonl").read_bytes().split(b"\n")
        if line.startswith(START) and line.endswith(b"}")
    ]
    previous, aggregates, epoch, ours = ZERO, [ZERO], mac(key, b"safespawn epoch"), {}
    for i, line in enumerate(lines):
        record = json.loads(line)
        assert (record["n"], record["p"]) == (i, previous.hex()), f"record {i} of the registry"
        body, _, told = line.rpartition(b',"m":"')
        made = mac(mac(epoch, b"safespawn registry record"), body)
        assert told == made.hex().encode() + b'"}', f"record {i} of the registry: MAC"
        aggregates.append(mac(mac(epoch, b"safespawn registry aggregate"), aggregates[-1], made))
        if record["ev"] == "registry.chain" and record["ledger"] == str(ledger.path):
            ours[record["chain"]] = i
        previous, epoch = sha256(line), mac(epoch, b"safespawn evolve")
    data = (where / "epoch").read_bytes()
    magic, index, now, aggregate, registry, digest = struct.unpack("<8sQ32s32s16s32s", data)
    assert (magic, digest) == (b"SSEPOCH1", sha256(data[:96]))
    assert index in (len(lines), len(lines) - 1), f"epoch {index}, but {len(lines)} records in the registry"
    assert now == epoch_key(key, index)
    assert aggregate == aggregates[index]
    assert str(uuid.UUID(bytes=registry)) == json.loads(lines[0])["c"]
    return ours


def _check_state(ledger: Ledger, registered: dict[str, int]) -> None:
    data = Path(f"{ledger.path}.state").read_bytes()
    assert data[:8] == b"SSSTATE1"
    assert len(data) % 128 == 0
    assert not any(data[8:128])
    slots: dict[str, tuple[int, int]] = {}
    for at in range(128, len(data), 128):
        slot = data[at : at + 128]
        if not any(slot):
            continue
        half, closed, chain, epoch = struct.unpack_from("<II16sQ", slot)
        number, seal = struct.unpack_from("<Q32s", slot, 32 + 40 * half)
        name = str(uuid.UUID(bytes=chain))
        assert name not in slots, "two slots of one chain"
        slots[name] = number, epoch
        if name not in ledger.chains:
            assert number == 0, f"{number} records of {name} are missing"
            continue
        known = ledger.chains[name]
        assert number in (len(known.records), len(known.records) - 1), f"slot {number}, {len(known.records)} records"
        assert seal == known.seals[number]
        assert epoch == known.epoch
        assert closed == known.is_closed or (known.is_closed and number < len(known.records))
    for name, chain in ledger.chains.items():
        assert name in slots or not chain.key, f"no slot of {name}"
    roots = {c.id: c.epoch for c in ledger.chains.values() if c.key and "epoch" in c.records[0]["keys"]}
    assert roots.items() <= registered.items(), "a chain that is not registered"
    missing = registered.keys() - slots.keys()
    assert not missing, f"registered without a slot: {missing}"
