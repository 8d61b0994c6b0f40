"""A slow checker of ledgers with keys, written from docs/audit-format.md and docs/audit-verify.md alone.

Everything is in memory, keys are made anew for each record, and nothing of ``safespawn`` is used. It
knows chains that an epoch or a fork began, the state file, segments, torn records and damage of every
kind; not witnesses, retired segments, chains without keys or files that change.
"""

from __future__ import annotations

import json
import re
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import reference_ledger as form

START = '{"v":1,"c":"'
HEX = "[0-9a-f]"
UUID = f"{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}"
NUMBER = "(?:0|[1-9][0-9]*)"
ENVELOPE = re.compile(
    rf'\{{"v":1,"c":"(?P<c>{UUID})","n":(?P<n>{NUMBER}),"p":"(?P<p>{HEX}{{64}})","ev":"(?P<ev>[a-z.]{{1,32}})",'
    rf'"sid":(?:null|"{UUID}"),"t":(?P<t>{NUMBER}),"mono":(?P<mono>{NUMBER}),"boot":"[0-9a-f-]{{0,36}}",'
    rf'"mode":"(?:best_effort|require|durable)"(?=[,}}])'
)
MAC = re.compile(rf',"m":"({HEX}{{64}})"\}}\Z')
NUMBERED = re.compile(rf'\{{"v":1,"c":"(?P<c>{UUID})","n":(?P<n>{NUMBER})(?=[^0-9])(?:,"p":"(?P<p>{HEX}{{0,64}}))?')



class Found(NamedTuple):
    """One finding."""

    file: str
    line: int
    byte: int
    chain: str | None
    n: int | None
    reason: str


@dataclass
class Chain:
    """What is known of a chain on the way."""

    key: bytes
    next: int = 0
    previous: bytes | None = form.ZERO
    macs: list[bytes | None] = field(default_factory=list)
    last: tuple[int, int, int] | None = None
    places: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    start: tuple[int, str, tuple[int, int, int]] | None = None

    def mac_of(self, n: int, told: bytes) -> bytes:
        """Return the MAC that record ``n`` must have."""
        key = form.mac(self.key, b"safespawn record")
        for _ in range(n):
            key = form.sha256(key)
        return form.mac(key, told)

    def record_key(self, n: int) -> bytes:
        """Return B(n)."""
        key = form.mac(self.key, b"safespawn record")
        for _ in range(n):
            key = form.sha256(key)
        return key

    def seal(self, records: int) -> bytes:
        """Return what the state file must have for so many records."""
        key = form.mac(self.key, b"safespawn aggregate")
        for _ in range(records):
            key = form.sha256(key)
        return form.mac(key, b"safespawn state")


def beginnings_end(text: str) -> Iterator[str]:
    """Yield what may make a whole JSON object of its beginning."""
    closers, in_string, escaped = "", False, False
    for char in text:
        if in_string:
            in_string = char != '"' or escaped
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "{[":
            closers = ("}" if char == "{" else "]") + closers
        elif char in "}]":
            closers = closers[1:]
    for middle in ('"', '":0', '\\"', '\\":0', "", "0", ":0", '"":0', '"a":0', "true", "alse", "rue", "ull", "lse", "ue", "ll", "se", "e", "l"):
        yield text + middle + closers
    for zeros in ("0", "00", "000", "0000"):
        yield f'{text}{zeros}"{closers}'
        yield f'{text}{zeros}":0{closers}'


def is_whole(text: str) -> bool:
    """Whether the text is one JSON object without a blank or a float."""
    try:
        made = json.loads(text, parse_float=lambda told: 1 // 0)
    except (ValueError, ZeroDivisionError):
        return False
    return isinstance(made, dict) and not re.search(r"[^\x20-\x7e]", text) and " " not in re.sub(r'"(?:[^"\\]|\\.)*"', "", text)


def begins_record(text: str) -> bool:
    """Whether the text, which is no record, may be the beginning of one."""
    if not text.isascii() or re.search(r"[^\x20-\x7e]", text) or len(text) >= form.LINE_MAX:
        return False
    if ENVELOPE.match(text) is None and not _begins_envelope(text):
        return False
    if text.endswith("?") and is_whole(text[:-1]):
        return True  # a whole record whose newline was refused is struck out
    return START.startswith(text) or any(is_whole(whole) for whole in beginnings_end(text))


def _begins_envelope(text: str) -> bool:
    """Whether the text stops inside the envelope: one that is made whole in some way matches."""
    tail = (
        '{"v":1,"c":"', "00000000-0000-7000-a000-000000000000", '","n":', "0", ',"p":"', "0" * 64, '","ev":"', "a",
        '","sid":', "null", ',"t":', "0", ',"mono":', "0", ',"boot":"', "", '","mode":"', "require", '",',
    )  # fmt: skip
    if START.startswith(text):
        return True
    for i in range(1, len(tail)):
        for cut in range(len(tail[i]) + 1):
            if ENVELOPE.match(text + tail[i][cut:] + "".join(tail[i + 1 :])):
                return True
    modes = ("best_effort", "require", "durable")
    ends = [mode[i:] + '",' for mode in modes for i in range(len(mode) + 1)]
    sids = [uuid_tail[i:] + '","t":0,"mono":0,"boot":"","mode":"require",' for uuid_tail in ('"' + tail[1],) for i in range(38)]
    return any(ENVELOPE.match(text + end) for end in [*ends, *sids])


class Checker:
    """One look at a ledger."""

    def __init__(self, ledger: Path, key: bytes) -> None:
        """Read everything."""
        self.ledger, self.key = ledger, key
        self.files = self._files()
        self.chains: dict[str, Chain] = {}
        self.damage: dict[object, tuple[tuple[int, int, int], Found]] = {}
        self.ends: list[tuple[tuple[int, ...], Found]] = []
        self.torn: dict[str, tuple[int, tuple[int, int, int]]] = {}
        self.first: dict[tuple[str, int], tuple[bytes, tuple[int, int, int]]] = {}
        self.epochs, self.slots = self._registry(), self._slots()

    def _files(self) -> list[Path]:
        numbers = sorted(int(p.name.rpartition(".")[2]) for p in self.ledger.parent.glob(self.ledger.name + ".*[0-9]"))
        older = [self.ledger.with_name(f"{self.ledger.name}.{number}") for number in numbers]
        return [*older, *([self.ledger] if self.ledger.exists() else [])]

    def _registry(self) -> dict[str, int]:
        """The registry is believed here: other tests are about it."""
        lines = (self.ledger.parent / "keys" / "registry.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return {record["chain"]: record["n"] for record in records if record["ev"] == "registry.chain"}

    def found(self, key: object, place: tuple[int, int, int], chain: str | None, n: int | None, reason: str) -> None:
        """Keep the first finding of a chain, or of a file."""
        told = Found(str(self.files[place[0]]), place[1], place[2], chain, n, reason)
        if key not in self.damage or place < self.damage[key][0]:
            self.damage[key] = place, told

    def check(self) -> list[Found]:
        """Return what there is to say, in the order of the files."""
        for number, file in enumerate(self.files):
            line, byte, data = 1, 0, file.read_bytes()
            while data:
                size = self._take((number, line, byte), data)
                is_line = data[size : size + 1] == b"\n"
                line, byte, data = line + is_line, byte + size + is_line, data[size + is_line :]
        self._compare()
        return [told for _, told in sorted([*self.damage.values(), *self.ends])]

    def _take(self, place: tuple[int, int, int], data: bytes) -> int:
        """Judge the piece at the beginning of ``data``; return its size."""
        piece = data.partition(b"\n")[0]
        verdict = self._judge(piece)
        inside = piece.find(START.encode(), 1)
        if verdict != "fits" and inside > 0:
            piece = piece[:inside]
            verdict = self._judge(piece)
        # So little may be left of another that not even its start is whole.
        parts = [part for part in range(1, len(START)) if part < len(piece) and piece.endswith(START[:part].encode())]
        if verdict == "garbage" and parts:
            piece = piece[: -max(parts)]
            verdict = self._judge(piece)
        self._apply(verdict, piece, place)
        return len(piece)

    def _judge(self, piece: bytes) -> str:
        text = piece.decode("latin-1")
        if not text:
            return "blank"
        numbered, envelope, told = NUMBERED.match(text), ENVELOPE.match(text), MAC.search(text)
        chain = self.chains.get(numbered["c"]) if numbered else None
        if told is None or (envelope is None and (chain is None or int(numbered["n"]) != chain.next)):  # type: ignore[index]
            if envelope and is_whole(text):
                return self._judge_record(envelope["c"], int(envelope["n"]), envelope["p"], text)
            return "torn" if begins_record(text) and self._may_be_torn(numbered) else "garbage"
        if envelope is None:
            return "mac"
        return self._judge_record(envelope["c"], int(envelope["n"]), envelope["p"], text)

    def _may_be_torn(self, numbered: re.Match[str] | None) -> bool:
        chain = self.chains.get(numbered["c"]) if numbered else None
        if numbered is None or chain is None:
            return True
        if int(numbered["n"]) != chain.next:
            return False
        return chain.previous is None or chain.previous.hex().startswith(numbered["p"] or "")

    def _judge_record(self, name: str, n: int, previous: str, text: str) -> str:
        chain = self.chains.get(name)
        if chain is None:
            return "stranger"
        if n != chain.next:
            return "gap" if n > chain.next else "replay"
        told = MAC.search(text)
        if told is None or chain.mac_of(n, text[: told.start()].encode("latin-1")).hex() != told[1]:
            return "mac"
        return "hash" if chain.previous is not None and chain.previous.hex() != previous else "fits"

    def _apply(self, verdict: str, piece: bytes, place: tuple[int, int, int]) -> None:
        numbered = NUMBERED.match(piece.decode("latin-1"))
        name, n = (numbered["c"], int(numbered["n"])) if numbered else (None, None)
        if verdict == "torn" and name is not None and n is not None:
            self.torn[name] = n, place
        elif verdict == "garbage":
            known = name if name in {*self.chains, *self.slots} else None
            self.found(known or place[0], place, known, n if known else None, "torn-or-garbage")
        elif verdict in ("blank", "torn"):
            pass
        elif name is not None and n is not None:
            if verdict == "stranger":
                self._admit(name, n, piece, place)
            elif verdict == "gap":
                self._gap(name, n, piece, place)
            elif verdict == "replay":
                self._replay(name, n, piece, place)
            else:
                self._next(verdict, name, piece, place)

    def _admit(self, name: str, n: int, piece: bytes, place: tuple[int, int, int]) -> None:
        record = json.loads(piece) if is_whole(piece.decode("latin-1")) else {}
        keys = record.get("keys") if n == 0 and record.get("ev") == "chain.open" else None
        key = self._key_of(name, keys if isinstance(keys, dict) else {})
        if key is None:
            self.found(name, place, name, n, "chain-unknown")
            return
        self.chains[name] = Chain(key, n, form.ZERO if n == 0 else None, [None] * n)
        if n:
            self.chains[name].start = n, "", place
        self._apply(self._judge(piece), piece, place)

    def _key_of(self, name: str, keys: dict[str, Any]) -> bytes | None:
        epoch = self.epochs.get(name, keys.get("epoch"))
        if isinstance(epoch, int):
            return form.chain_key(form.epoch_key(self.key, epoch), name)
        parent = keys.get("parent")
        above = self.chains[parent].key if parent in self.chains else self._key_of(parent, {}) if parent else None
        return form.fork_key(Chain(above).record_key(keys["n"]), name) if above else None

    def _gap(self, name: str, n: int, piece: bytes, place: tuple[int, int, int]) -> None:
        chain = self.chains[name]
        expected, previous, macs = chain.next, chain.previous, list(chain.macs)
        chain.next, chain.previous = n, None
        chain.macs += [None] * (n - expected)
        if self._judge(piece) == "mac":
            chain.next, chain.previous, chain.macs = expected + 1, None, [*macs, None]
            self.found(name, place, name, n, "mac-mismatch")
            return
        self._was_torn(name, expected)
        self.found(name, place, name, n, "gap")
        self._next("fits", name, piece, place)

    def _replay(self, name: str, n: int, piece: bytes, place: tuple[int, int, int]) -> None:
        first = self.first.get((name, n))
        reason = "unequal-repeat" if first and first[0] != piece else "replay/reorder"
        self.first.setdefault((name, n), (piece, place))
        self.found(name, place, name, n, reason)

    def _next(self, verdict: str, name: str, piece: bytes, place: tuple[int, int, int]) -> None:
        chain, told = self.chains[name], MAC.search(piece.decode("latin-1"))
        if verdict == "mac":
            self.found(name, place, name, chain.next, "mac-mismatch")
        elif verdict == "hash":
            self.found(name, place, name, chain.next, "hash-mismatch")
        else:
            record = json.loads(piece)
            if record["ev"] == "chain.fork" and record["child"] not in self.chains:
                self.chains[record["child"]] = Chain(form.fork_key(chain.record_key(chain.next), record["child"]))
        if is_whole(piece.decode("latin-1")) and ENVELOPE.match(piece.decode("latin-1")):
            self.first.setdefault((name, chain.next), (piece, place))
        chain.macs.append(bytes.fromhex(told[1]) if told else None)
        chain.places[chain.next] = place
        chain.next, chain.last = chain.next + 1, place
        chain.previous = None if verdict == "mac" else form.sha256(piece)

    def _was_torn(self, name: str, n: int) -> None:
        if name in self.torn and self.torn[name][0] == n:
            self.found(name, self.torn[name][1], name, n, "torn-or-garbage")

    # -- the ends

    def _slots(self) -> dict[str, tuple[int, int, bytes]]:
        data = self.ledger.with_name(self.ledger.name + ".state").read_bytes()
        slots = {}
        for byte in range(128, len(data), 128):
            which, _, chain = struct.unpack_from("<II16s", data, byte)
            number, seal = struct.unpack_from("<Q32s", data, byte + 32 + 40 * which)
            slots[str(uuid.UUID(bytes=chain))] = byte, number, seal
        return slots

    def _compare(self) -> None:
        slots = self.slots
        for name, chain in self.chains.items():
            if chain.last is None:
                continue  # a forked child that wrote nothing
            if chain.start:
                n, _, place = chain.start
                if not (name in self.torn and self.torn[name][0] == n - 1):
                    self.found(name, place, name, n, "gap")
                self._was_torn(name, n - 1)
            if name not in slots:
                self._end(chain.last, name, chain.next - 1, "state-missing")
                continue
            _, number, seal = slots[name]
            if chain.next < number:
                self._was_torn(name, chain.next)
                self._end(chain.last, name, chain.next - 1, "tail-truncated")
            elif not number and chain.seal(0) != seal:
                self._end(chain.last, name, chain.next - 1, "aggregate-mismatch")
            elif number and chain.seal(number) != seal:
                self.found(name, chain.places[number - 1], name, number - 1, "aggregate-mismatch")
        for name, (byte, number, _) in slots.items():
            if number and (name not in self.chains or self.chains[name].last is None):
                self._was_torn(name, 0)
                path = str(self.ledger.with_name(self.ledger.name + ".state"))
                self.ends.append(((1 << 40, 0, byte), Found(path, 0, byte, name, None, "chain-missing")))

    def _end(self, place: tuple[int, int, int], name: str, n: int, reason: str) -> None:
        self.ends.append(((1 << 39, *place), Found(str(self.files[place[0]]), place[1], place[2], name, n, reason)))
