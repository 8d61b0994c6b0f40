"""docs/audit-format.md in plain Python: what a ledger is, written to be read and not to be fast.

The writer makes ledgers, state files and key directories for tests, one step at a time where a
process may die between two steps. Nothing of ``safespawn`` is used here, so that it can be held
against both the ledger that writes and the verifier that reads. The slow checker is in
``reference_checker.py``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ZERO = bytes(32)
LINE_MAX = 8000
EPOCH_MAGIC, STATE_MAGIC = b"SSEPOCH1", b"SSSTATE1"
UNIT = 128
PID_NS = 4_026_531_836
BOOT = "00000000-0000-4000-8000-00000000b007"


# --------------------------------------------------------------------------- keys


def sha256(*parts: bytes) -> bytes:
    """Return SHA-256 of the parts, joined."""
    return hashlib.sha256(b"".join(parts)).digest()


def mac(key: bytes, *parts: bytes) -> bytes:
    """Return HMAC-SHA-256 of the parts, joined."""
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def epoch_key(verification_key: bytes, epoch: int) -> bytes:
    """Return E(epoch)."""
    key = mac(verification_key, b"safespawn epoch")
    for _ in range(epoch):
        key = mac(key, b"safespawn evolve")
    return key


def first_seal(key: bytes) -> bytes:
    """Return the seal over no record of a chain with that key."""
    return mac(mac(key, b"safespawn aggregate"), b"safespawn state")


def chain_key(epoch: bytes, chain: str) -> bytes:
    """Return C of a chain that was opened with an epoch key."""
    return mac(epoch, b"safespawn chain", chain.encode())


def fork_key(record_key: bytes, chain: str) -> bytes:
    """Return C of a chain that a fork began, from B(n) of the parent's record ``chain.fork``."""
    return mac(record_key, b"safespawn fork", chain.encode())


# ------------------------------------------------------------------------- records


def encode(fields: Mapping[str, Any]) -> str:
    """Return an object as ASCII JSON without blanks; DEL is escaped too."""
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":"), allow_nan=False).replace("\x7f", "\\u007f")


@dataclass
class Clock:
    """The time of the records: it goes on by a millisecond each time that it is asked."""

    t: int = 1_795_000_000_000_000_000
    mono: int = 5_000_000_000

    def tick(self) -> tuple[int, int]:
        """Return CLOCK_REALTIME and CLOCK_MONOTONIC in nanoseconds."""
        self.t += 1_000_000
        self.mono += 1_000_000
        return self.t, self.mono


@dataclass
class Chain:
    """One chain: its keys, and where it stands. ``key`` is C, None for a chain without keys."""

    chain: str
    key: bytes | None
    keys: dict[str, Any] | None
    epoch: int = 0
    slot: int = -1
    boot: str = BOOT
    mode: str = "require"
    clock: Clock = field(default_factory=Clock)
    n: int = 0
    previous: bytes = ZERO
    agg: bytes = ZERO
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Derive B(0) and A(0)."""
        self.record_key = mac(self.key, b"safespawn record") if self.key else None
        self.aggregate_key = mac(self.key, b"safespawn aggregate") if self.key else None

    def line(self, event: str, fields: Mapping[str, Any], sid: str | None = None) -> bytes:
        """Return the next record with its newline. Nothing moves on until :meth:`took`."""
        t, mono = self.clock.tick()
        envelope = {
            "v": 1,
            "c": self.chain,
            "n": self.n,
            "p": self.previous.hex(),
            "ev": event,
            "sid": sid,
            "t": t,
            "mono": mono,
            "boot": self.boot,
            "mode": self.mode,
        }
        body = encode({**envelope, **fields})
        if self.record_key is not None:
            told = body[:-1].encode("ascii")
            body = f'{body[:-1]},"m":"{mac(self.record_key, told).hex()}"}}'
        made = body.encode("ascii") + b"\n"
        assert len(made) <= LINE_MAX, len(made)
        return made

    def took(self, line: bytes) -> None:
        """Move on: the record is in the ledger."""
        self.previous = sha256(line[:-1])
        self.n += 1
        event = json.loads(line)["ev"]
        self.counts[event] = self.counts.get(event, 0) + 1
        if self.record_key is not None and self.aggregate_key is not None:
            self.agg = mac(self.aggregate_key, self.agg, bytes.fromhex(line[-67:-3].decode()))
            self.record_key, self.aggregate_key = sha256(self.record_key), sha256(self.aggregate_key)

    def seal(self) -> bytes:
        """Return what the state file has for the records so far; its key is gone with the next one."""
        return mac(self.aggregate_key, b"safespawn state") if self.aggregate_key else ZERO

    def aggregate(self) -> dict[str, str]:
        """Return the member ``agg`` of a record that is about to be made; none without keys."""
        return {"agg": self.agg.hex()} if self.key else {}

    def child(self, chain: str) -> Chain:
        """Return the chain of a child, whose ``chain.fork`` is our next record."""
        key = fork_key(self.record_key, chain) if self.record_key else None
        keys = {"parent": self.chain, "n": self.n} if key else None
        return Chain(chain, key, keys, self.epoch, boot=self.boot, mode=self.mode, clock=self.clock)


# ------------------------------------------------------------------- key directory


class KeyDirectory:
    """``epoch`` and ``registry.jsonl``, each step by itself."""

    def __init__(self, where: Path, verification_key: bytes, chain: str, clock: Clock) -> None:
        """Make them: the registry has its record 0 then."""
        where.mkdir(parents=True, exist_ok=True)
        self.epoch_file, self.registry = where / "epoch", where / "registry.jsonl"
        self.chain, self.clock = chain, clock
        self.epoch, self.key = 0, epoch_key(verification_key, 0)
        self.agg, self.previous = ZERO, ZERO
        self.append("registry.init", {})
        self.evolve()

    def line(self, event: str, fields: Mapping[str, Any]) -> bytes:
        """Return the record of this epoch."""
        t, mono = self.clock.tick()
        body = encode(
            {
                "v": 1,
                "c": self.chain,
                "n": self.epoch,
                "p": self.previous.hex(),
                "ev": event,
                "sid": None,
                "t": t,
                "mono": mono,
                "boot": BOOT,
                "mode": "durable",
                **fields,
            }
        )
        told = mac(mac(self.key, b"safespawn registry record"), body[:-1].encode("ascii"))
        return f'{body[:-1]},"m":"{told.hex()}"}}\n'.encode("ascii")

    def append(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write the record of this epoch; the process may die before :meth:`evolve`."""
        line = self.line(event, fields)
        with open(self.registry, "ab") as file:
            file.write(line)
        self.previous = sha256(line[:-1])
        told = bytes.fromhex(line[-67:-3].decode())
        self.agg = mac(mac(self.key, b"safespawn registry aggregate"), self.agg, told)

    def evolve(self) -> None:
        """Take the next epoch key and overwrite the old one."""
        self.epoch, self.key = self.epoch + 1, mac(self.key, b"safespawn evolve")
        body = EPOCH_MAGIC + struct.pack("<Q", self.epoch) + self.key + self.agg + uuid.UUID(self.chain).bytes
        fd = os.open(self.epoch_file, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(fd, body + sha256(body), 0)  # in one write, so that no reader sees half of it
        os.close(fd)

    def open_chain(self, chain: str, ledger: str, **more: Any) -> Chain:
        """Register a chain and return it, with the keys of this epoch."""
        made = Chain(chain, chain_key(self.key, chain), {"epoch": self.epoch}, self.epoch, clock=self.clock, **more)
        self.append("registry.chain", {"chain": chain, "ledger": ledger})
        self.evolve()
        return made


# ---------------------------------------------------------------------- state file


class StateFile:
    """``LEDGER.state``: the slots, written as the ledger writes them."""

    def __init__(self, path: Path) -> None:
        """Make it, without a slot."""
        self.path = path
        self.slots = 0
        path.write_bytes(STATE_MAGIC + bytes(UNIT - 8))

    def _put(self, at: int, data: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(data)

    def claim(self, chain: str, epoch: int, seal: bytes = ZERO) -> int:
        """Give out a slot."""
        self.slots += 1
        unit = struct.pack("<II16sQQ32s", 0, 0, uuid.UUID(chain).bytes, epoch, 0, seal)
        self._put(self.slots * UNIT, unit.ljust(UNIT, b"\0"))
        return self.slots

    def half(self, slot: int, number: int, seal: bytes) -> None:
        """Fill the half that does not count; the process may die before :meth:`switch`."""
        self._put(slot * UNIT + (72 if self._which(slot) == 0 else 32), struct.pack("<Q32s", number, seal))

    def switch(self, slot: int) -> None:
        """Let the other half count."""
        self._put(slot * UNIT, struct.pack("<I", 1 - self._which(slot)))

    def _which(self, slot: int) -> int:
        data = self.path.read_bytes()
        return int(struct.unpack_from("<I", data, slot * UNIT)[0])

    def store(self, slot: int, number: int, seal: bytes) -> None:
        """Write how many records there are, and the seal over them."""
        self.half(slot, number, seal)
        self.switch(slot)

    def close(self, slot: int) -> None:
        """Mark the chain as closed."""
        self._put(slot * UNIT + 4, struct.pack("<I", 1))


# -------------------------------------------------------------------------- ledger


class Ledger:
    """A ledger with its files. Chains of several processes may be written in any order."""

    def __init__(self, where: Path, verification_key: bytes | None = bytes(range(32)), seed: int = 1) -> None:
        """Make it in an empty directory; without a key its chains have no keys."""
        self.path = where / "ledger.jsonl"
        self.clock = Clock()
        self.ids = uuids(seed)
        self.segment = 0
        self.verification_key = verification_key
        self.keys = verification_key and KeyDirectory(where / "keys", verification_key, next(self.ids), self.clock)
        self.state = StateFile(where / "ledger.jsonl.state") if verification_key else None
        self.path.touch()

    # -- steps

    def write(self, data: bytes) -> None:
        """Append bytes to the segment that is being written."""
        with open(self.path, "ab") as file:
            file.write(data)

    def store(self, chain: Chain) -> None:
        """Write the state of a chain."""
        if self.state is not None:
            self.state.store(chain.slot, chain.n, chain.seal())

    def append(self, chain: Chain, event: str, fields: Mapping[str, Any] = {}, sid: str | None = None) -> bytes:
        """Write a record and then the state, and return the line."""
        line = chain.line(event, fields, sid)
        self.write(line)
        chain.took(line)
        self.store(chain)
        return line

    # -- events

    def chain(self, *, more: Mapping[str, Any] = {}, **who: Any) -> Chain:
        """Open a chain as a process that opens the ledger does. ``more`` is told in its record 0."""
        name = next(self.ids)
        if self.keys:
            assert self.state is not None
            slot = self.state.claim(name, self.keys.epoch, first_seal(chain_key(self.keys.key, name)))
            made = self.keys.open_chain(name, str(self.path))
            made.slot = slot
        else:
            made = Chain(name, None, None, clock=self.clock)
        self._opened(made, None, who, more)
        return made

    def _opened(
        self, chain: Chain, parent: str | None, who: Mapping[str, Any], more: Mapping[str, Any] = {}
    ) -> None:
        if chain.slot >= 0:
            self.store(chain)  # the seal of no record: nobody can make it later
        process = {"pid": 4_000_000, "start": 1, "pid_ns": PID_NS, **who}
        told = {"who": process, "library": "0", "parent": parent, "keys": chain.keys}
        self.append(chain, "chain.open", {**told, "config": {}, **more})

    def fork(self, parent: Chain) -> Chain:
        """Write ``chain.fork`` and return the child's chain, which has written nothing."""
        child = parent.child(next(self.ids))
        self.append(parent, "chain.fork", {"child": child.chain})
        return child

    def open_fork(self, child: Chain, parent: Chain, **more: Any) -> Chain:
        """Let a forked child write its first record, which tells ``more``."""
        if self.state is not None:
            child.slot = self.state.claim(child.chain, child.epoch, child.seal())
        self._opened(child, parent.chain, {}, more)
        return child

    def spawn(self, chain: Chain, *, upto: str = "exit") -> str:
        """Write the records of a spawn, up to one of intent, started and exit; return its id."""
        sid = next(self.ids)
        what = {"argv": ["/bin/true", "…"], "argc": 2, "exe": {"path": "/bin/true", "ino": 77}}
        self.append(chain, "spawn.intent", {"who": {"pid": 4_000_000}, "what": what, "want": {}, "how": {}}, sid)
        if upto in ("started", "exit"):
            self.append(chain, "spawn.started", {"how": {}, "outcome": {"outcome": "exec", "pid": 9}}, sid)
        if upto == "exit":
            self.append(chain, "spawn.exit", {"exit": {"pid": 9, "code": 0}}, sid)
        return sid

    def checkpoint(self, chain: Chain, why: str = "count") -> bytes:
        """Write a checkpoint."""
        told = {"why": why, "counts": dict(chain.counts), "lost": 0, "mirrors": {}}
        return self.append(chain, "checkpoint", {**told, **chain.aggregate()})

    def close(self, chain: Chain) -> None:
        """Write the last record of a chain."""
        told = {"lost": 0, **chain.aggregate(), "counts": dict(chain.counts), "mirrors": {}}
        self.append(chain, "chain.close", told)
        if self.state is not None:
            self.state.close(chain.slot)

    # -- segments

    def segments(self) -> list[Path]:
        """Return the segments that are there, the oldest first."""
        numbers = sorted(int(p.name.rpartition(".")[2]) for p in self.path.parent.glob("ledger.jsonl.[0-9]*"))
        older = [self.path.with_name(f"ledger.jsonl.{number}") for number in numbers]
        return [*older, self.path] if self.path.exists() else older

    def rotate(self) -> Path:
        """Rename the segment that is being written and begin another."""
        self.segment += 1
        older = self.path.with_name(f"ledger.jsonl.{self.segment}")
        self.path.rename(older)
        self.path.touch()
        return older

    def retiring(self) -> Chain:
        """Open a chain that may tell of retired segments."""
        return self.chain(more={"retires": str(self.path)})

    def retire(
        self, segment: Path, chain: Chain | None = None, /, *, with_keys: bool = True, **lies: Any
    ) -> bytes:
        """Record the heads of a segment, in a chain opened for that, and remove it.

        ``with_keys`` adds where the keys of each chain come from, as its ``chain.open`` told it. A thief
        has another ``chain``, and ``lies``.
        """
        own = chain or self.retiring()
        data = segment.read_bytes()
        heads: dict[str, list[Any]] = {}
        keys: dict[str, list[Any]] = {}
        for line in data.splitlines():
            record = json.loads(line)
            if record["ev"] == "segment.retired":  # what it excuses must not go with it
                heads = {**record["heads"], **heads}
                keys.update({name: head[2:] for name, head in record["heads"].items()})
            if record["ev"] == "chain.open" and with_keys:
                keys[record["c"]] = [record["keys"]]
            heads[record["c"]] = [record["n"], sha256(line).hex(), *keys.get(record["c"], [])]
        told = {"segment": segment.name, "sha256": sha256(data).hex(), "bytes": len(data), "heads": heads}
        line = self.append(own, "segment.retired", {**told, **lies})
        segment.unlink()
        if chain is None:
            self.close(own)
        return line


def uuids(seed: int) -> Iterator[str]:
    """Yield identifiers of version 7 that are the same for the same seed."""
    number = 0
    while True:
        number += 1
        digest = sha256(f"{seed}:{number}".encode()).hex()
        yield f"0193c5a0-{number % 65536:04x}-7{digest[:3]}-a{digest[3:6]}-{digest[6:18]}"


def remove(path: Path) -> None:
    """Remove a file that may not be there."""
    if path.exists():
        os.unlink(path)
