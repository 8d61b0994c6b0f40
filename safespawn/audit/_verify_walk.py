"""The way through a ledger: each record judged, and what must be known of it at the end."""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._errors import AuditError
from . import _fields
from . import _verify_scan as scan
from ._verify_descent import Descent, Source
from ._verify_findings import Collector, Finding, Place
from ._verify_keys import Epochs
from ._verify_registry import Registry, parsed, path_of
from ._verify_segments import Segment
from ._verify_state import State
from ._verify_witness import Witness, key_of

#: What is needed of a record that is as it must be: see _verify_scan.Record.
_FAST = struct.Struct("=QQQ8x4xIHHH2x16x16s48x")
_PLAIN = (scan.HAS_NUMBER, scan.HAS_NUMBER | scan.HAS_MAC)

_OPEN, _CLOSE, _CHECKPOINT = (scan.EVENTS[name] for name in ("chain.open", "chain.close", "checkpoint"))
_RETIRED, _INTENT = scan.EVENTS["segment.retired"], scan.EVENTS["spawn.intent"]
_RESENT = (scan.EVENTS["audit.degraded"], scan.EVENTS["audit.restored"])
_OUTCOMES = frozenset(scan.EVENTS[f"spawn.{name}"] for name in ("started", "failed", "denied"))
_TELLING = frozenset((_OPEN, _CLOSE, _CHECKPOINT, _RETIRED, *_RESENT))
#: What is no record.
_RUBBISH = frozenset((scan.BLANK, scan.TORN, scan.GARBAGE))

#: Of repeats, beginnings, intents and so on so many are remembered: a file may be made of nothing else.
HELD_MAX = 1 << 20
#: What is said of a line that is neither.
NO_BEGINNING = "no record, and not the next one's beginning"

#: Of a file: limits.h.
NAME_MAX = 255

Progress = Callable[[int, int], None]


class Head(NamedTuple):
    """The last record of a chain in a segment that was retired, and the place that tells it."""

    n: int
    hash: str
    source: Source | None
    place: Place
    #: Whether the chain ends there, so that its slot was given back.
    is_last: bool


class Retirement(NamedTuple):
    """What a record ``segment.retired`` tells."""

    id: bytes
    n: int
    t: int
    place: Place
    segment: str
    #: By chain: number, hash, and where the keys come from, as far as the segment told it.
    heads: dict[bytes, tuple[int, str, Source | None]]
    #: Those of them behind which nothing comes.
    over: frozenset[bytes]


class Repeat(NamedTuple):
    """A record whose number there was before."""

    id: bytes
    n: int
    hash: bytes
    place: Place


class TornRepeat(NamedTuple):
    """The beginning of a record whose number there was before: of one that was sent again, perhaps."""

    id: bytes
    n: int
    #: So many bytes of a record, and their hash; or a whole one that was struck out, without its ``?``.
    size: int
    hash: bytes
    place: Place


class Intent(NamedTuple):
    """An intent without an outcome yet."""

    chain: int
    file: int
    line: int
    at: int
    n: int


@dataclass(slots=True)
class Seen:
    """What was seen of a chain, beside where it stands (_verify_scan.Standing)."""

    id: bytes
    #: The first record that is here, when it is not record 0: its number, ``p`` and place.
    start: tuple[int, str, Place] | None = None
    is_closed: bool = False
    #: Whether it goes on behind what was read; None where that is not known.
    runs: bool | None = None
    #: Process, its start time, and boot id: of the record that opened the chain.
    process: tuple[int | None, int | None, str | None] | None = None
    #: When that was, by CLOCK_MONOTONIC of that boot.
    mono: int | None = None
    #: A record that does not follow, of a chain without keys: its number and place.
    unfit: tuple[int, Place, Place] | None = None
    checkpoint: tuple[int, int] | None = None
    #: The ledger whose segments it was opened to retire; None if it was opened for anything else.
    retires: str | None = None


@dataclass
class Means:
    """What a ledger is checked with."""

    epochs: Epochs | None
    without_key: bool
    registry: Registry | None
    state: State | None
    witness: Witness | None


class Walk:
    """One way through all segments."""

    def __init__(
        self,
        segments: list[Segment],
        scanner: scan.Scanner,
        means: Means,
        findings: Collector,
        notices: Collector,
    ) -> None:
        """Nothing is read yet."""
        self.segments, self.scanner, self.means = segments, scanner, means
        self.findings, self.notices = findings, notices
        self.chains: dict[int, Seen] = {}
        #: By place of the chain and id of the spawn: no other chain can say how it ended.
        self.intents: dict[tuple[int, bytes], Intent] = {}
        self.retirements: list[Retirement] = []
        self._told_heads = 0
        #: What of these is believed (_verify_retired): heads, and numbers of segments.
        self.heads: dict[bytes, Head] = {}
        self.retired: set[int] = set()
        #: Chains whose keys come from an epoch: a child that dropped its privileges has none of those.
        self.of_epochs: set[bytes] = set()
        self.repeats: list[Repeat] = []
        self.torn_repeats: list[TornRepeat] = []
        #: Records that tell of a loss, by chain and number.
        self.losses: set[tuple[bytes, int]] = set()
        #: Records that are told to come again: chain, first and last, file.
        self.resent: list[tuple[bytes, int, int, int]] = []
        #: The beginnings of records: chain to number and place.
        self.torn: dict[bytes, tuple[int, Place]] = {}
        self.forks: dict[bytes, tuple[bytes, int]] = {}
        #: Chains that say they began with a fork: child, parent, number, place.
        self.claims: list[tuple[bytes, bytes, int, Place]] = []
        self.unkeyed: dict[int, Place] = {}
        #: The same by id: whom they forked has no keys from them.
        self.keyless: set[bytes] = set()
        self.boots: set[str] = set()
        self.has_keys = False
        self.descent = Descent(means.epochs, scanner, self._source_of) if means.epochs else None
        #: Where the keys of chains come from: as their own records 0 tell, and as heads do, looked for before
        #: anybody knows whether they are to be believed; and which of those were made use of.
        self.sources: dict[bytes, Source] = {}
        self.foretold: dict[bytes, tuple[Source, Place]] = {}
        self.trusted: set[bytes] = set()
        self._has_looked_ahead = False
        self._file = 0

    def name(self, place: Place) -> str:
        """Return the path of the file in which a place is."""
        return self.segments[place[0]].path

    # -- findings

    def _place(self, record: scan.Record) -> Place:
        return self._file, record.line, record.at

    def found(self, chain: bytes | None, place: Place, n: int | None, reason: str, text: str) -> None:
        """Add a finding to those of its chain, or of its file."""
        name = scan.name_of(chain) if chain else None
        told = Finding(self.name(place), place[1], place[2], name, n, reason, text)
        self.findings.add(chain or place[0], place, told)

    def _found(self, record: scan.Record, reason: str, text: str) -> None:
        has_chain = record.flags & scan.HAS_NUMBER and record.place != scan.NOWHERE
        chain = record.id if has_chain or record.verdict == scan.STRANGER else None
        self.found(chain, self._place(record), record.n if chain else None, reason, text)

    def _noticed(self, record: scan.Record, reason: str, text: str) -> None:
        n = record.n if record.flags & scan.HAS_NUMBER else None
        told = Finding(self.segments[self._file].path, record.line, record.at, record.chain, n, reason, text)
        self.notices.add((reason, record.chain), self._place(record), told)

    def _has_room(self, held: Sized, record: scan.Record, what: str) -> bool:
        """Whether one more may be remembered; tells where not, because it is missed in the comparisons."""
        if len(held) >= HELD_MAX:
            self._too_many(record, what)
        return len(held) < HELD_MAX

    def _too_many(self, record: scan.Record, what: str) -> None:
        text = f"more than {HELD_MAX} {what}: this one and what comes after it are not compared"
        place, told = self._place(record), (record.chain, record.n, "too-many", text)
        self.findings.add(what, place, Finding(self.name(place), record.line, record.at, *told))

    # -- files

    def go(self, progress: Progress | None) -> None:
        """Read all segments. Raises AuditError when the key is missing."""
        total = sum(segment.size for segment in self.segments)
        done = 0
        for number, segment in enumerate(self.segments):
            self._file = number
            for structs, data, base in scan.pieces(self.scanner, number, segment.fd, segment.size):
                self._take_all(structs, data, base)
                if progress:
                    progress(done + self.scanner.at, total)
            if self.scanner.at < segment.size:
                text = f"shorter than when it was opened: {segment.size - self.scanner.at} bytes are gone"
                self.found(None, (self._file, 0, self.scanner.at), None, "file-shrank", text)
            done += segment.size
        for seen in self.chains.values():
            if seen.unfit is not None:  # nothing more came of it: the one before was changed
                self._unfit(seen.id, seen.unfit[0] - 1, seen.unfit[1])

    def _take_all(self, structs: memoryview, data: bytes, base: int) -> None:
        number, witness = self._file, self.means.witness
        for i, (at, line, n, chain, verdict, flags, event, sid) in enumerate(_FAST.iter_unpack(structs)):
            if witness is not None:
                self._compare(scan.Scanner.record(structs, i))
            if verdict or flags not in _PLAIN:
                if verdict in _RUBBISH and self._is_counted(verdict, flags, (number, line, at)):
                    continue
                record = scan.Scanner.record(structs, i)
                self._take(record, scan.line_of(record, data, base))
            elif event == _INTENT:
                if len(self.intents) < HELD_MAX:
                    self.intents[chain, sid] = Intent(chain, number, line, at, n)
                else:
                    self._too_many(scan.Scanner.record(structs, i), "intents without an outcome")
            elif event in _OUTCOMES:
                self.intents.pop((chain, sid), None)
            elif event in _TELLING:
                record = scan.Scanner.record(structs, i)
                self._hear(record, scan.line_of(record, data, base))

    def _is_counted(self, verdict: int, flags: int, place: Place) -> bool:
        """Count what is no record where that was told before: a file may be made of empty lines."""
        if flags & scan.HAS_NUMBER:
            return False
        if verdict == scan.GARBAGE:
            return self.findings.again(place[0], place, "torn-or-garbage")
        return self.notices.again(("uncommitted", None), place, "uncommitted")

    def _take(self, record: scan.Record, line: bytes) -> None:
        """Take a piece of which there is something to say."""
        verdict = record.verdict
        if record.flags & scan.NO_NEWLINE and verdict not in (scan.TORN, scan.GARBAGE, scan.STRANGER):
            self._noticed(
                record, "uncommitted", "the newline of this record was not written; the record is whole"
            )
        if verdict in (scan.FITS, scan.BAD_HASH):
            self._fits(record, line)
        elif verdict == scan.STRANGER:
            self._admit(record, line)
        elif verdict == scan.GAP:
            self._gap(record, line)
        elif verdict == scan.REPLAY:
            self._repeat(record)
        elif verdict == scan.BAD_MAC:
            self._found(record, "mac-mismatch", "changed, or written without the key of its place")
        elif verdict == scan.GARBAGE:
            self._garbage(record, line)
        else:
            self._torn(record)

    def _repeat(self, record: scan.Record) -> None:
        if len(self.repeats) < HELD_MAX:
            self.repeats.append(Repeat(record.id, record.n, record.hash, self._place(record)))
        else:
            self._found(record, "replay/reorder", f"more than {HELD_MAX} records come again")

    def _garbage(self, record: scan.Record, line: bytes) -> None:
        if record.flags & scan.AGAIN and len(self.torn_repeats) < HELD_MAX:
            part = line[:-1] if line.endswith(b"}?") else line
            digest = hashlib.sha256(part).digest()
            torn = TornRepeat(record.id, record.n, len(part), digest, self._place(record))
            self.torn_repeats.append(torn)
        else:
            text = "longer than a record can be" if record.flags & scan.TOO_LONG else NO_BEGINNING
            self._found(record, "torn-or-garbage", text)

    def _torn(self, record: scan.Record) -> None:
        if record.verdict == scan.BLANK:
            self._noticed(
                record, "uncommitted", "an empty line: a writer ended a torn line that another had ended"
            )
            return
        text = f"the first {record.size} bytes of a record: its process was killed, or the write refused"
        self._noticed(record, "uncommitted", text)
        if record.flags & scan.HAS_NUMBER and self._has_room(self.torn, record, "torn records"):
            self.torn[record.id] = record.n, self._place(record)

    def torn_at(self, chain: bytes, n: int) -> bool:
        """Tell that a torn record was whole once, because those behind it are or were there."""
        torn = self.torn.get(chain)
        if torn is None or torn[0] != n:
            return False
        self.found(chain, torn[1], n, "torn-or-garbage", "only the beginning of this record is left")
        self.notices.withdraw(("uncommitted", scan.name_of(chain)), torn[1])
        return True

    # -- records that are the next of their chain

    def _fits(self, record: scan.Record, line: bytes) -> None:
        if record.verdict == scan.BAD_HASH:
            self._bad_hash(record)
        if record.flags & scan.BAD_AGG:
            self._found(
                record,
                "aggregate-mismatch",
                "the aggregate that this record tells is not that of the records before",
            )
        if record.flags & scan.BAD_STATE:
            text = f"the state file was changed: its seal is not that of these {record.n + 1} records"
            self._found(record, "aggregate-mismatch", text)
        if record.flags & scan.CLOCK_BACK:
            self._noticed(
                record, "clock-back", "the wall clock was set back by more than a second before this record"
            )
        if record.flags & scan.HAS_CHILD:
            self._forked(record)
        if record.event == _INTENT and self._has_room(self.intents, record, "intents without an outcome"):
            intent = Intent(record.place, self._file, record.line, record.at, record.n)
            self.intents[record.place, record.sid] = intent
        elif record.event in _OUTCOMES:
            self.intents.pop((record.place, record.sid), None)
        elif record.event in _TELLING:
            self._hear(record, line)

    def _forked(self, record: scan.Record) -> None:
        """Remember whose child a chain is. Its keys are theirs who tell it first, here as in the core.

        So nobody else may: who has the keys of any chain could name that of another process, put the line
        before it, and write it anew.
        """
        registry = self.means.registry
        if registry and record.child in registry.chains:
            text = f"says that it forked {scan.name_of(record.child)}, which the registry has: it did not"
            self._found(record, "fork-mismatch", text)
        if self._has_room(self.forks, record, "forks"):
            first = self.forks.setdefault(record.child, (record.id, record.n))
            if first != (record.id, record.n):
                teller = f"record {first[1]} of {scan.name_of(first[0])}"
                text = f"says that it forked {scan.name_of(record.child)}, and so does {teller}"
                self._found(record, "fork-mismatch", text)
        self._learned(record.child)

    def _bad_hash(self, record: scan.Record) -> None:
        standing = self.scanner.standing(record.place)
        if standing.is_keyed:
            self._found(record, "hash-mismatch", "does not follow the record before, though its MAC is right")
            return
        # Without keys only the next record shows that one was changed. If that one does not fit
        # either, it was changed itself.
        seen = self._seen(record)
        if seen.unfit is not None and seen.unfit[0] == record.n - 1:
            self._unfit(record.id, record.n - 1, seen.unfit[2])
            seen.unfit = None
            return
        if seen.unfit is not None:
            self._unfit(record.id, seen.unfit[0] - 1, seen.unfit[1])
        seen.unfit = record.n, standing.before, self._place(record)

    def _unfit(self, chain: bytes, n: int, place: Place) -> None:
        text = "this record was changed: the one behind it has the hash of another"
        self.found(chain, place, n, "hash-mismatch", text)

    def _seen(self, record: scan.Record) -> Seen:
        return self.chains.setdefault(record.place, Seen(record.id))

    def _hear(self, record: scan.Record, line: bytes) -> None:
        """Remember what a record tells that is not about a spawn."""
        seen = self._seen(record)
        if record.event == _CHECKPOINT:
            seen.checkpoint = record.n, record.t
        elif record.event == _CLOSE:
            seen.is_closed = True
        elif record.event == _OPEN:
            if record.n == 0:  # a later one is none: who has the keys by then was not there
                self._opened(seen, record, parsed(line))
        elif self.means.epochs is None or self.scanner.standing(record.place).is_keyed:
            # A chain without keys cannot excuse what is wrong with one that has them.
            told = parsed(line)
            if record.event == _RETIRED:
                self._retired(record, told)
            else:
                self._degraded(record, told)

    def _opened(self, seen: Seen, record: scan.Record, told: Mapping[str, Any]) -> None:
        who, boot = _fields.group(told.get("who")), _fields.string(told.get("boot"))
        seen.process = _fields.number(who.get("pid")), _fields.number(who.get("start")), boot
        seen.mono = _fields.number(told.get("mono"))
        self.boots.add(str(boot))
        keys = told.get("keys")
        source = source_of(keys)
        if "retires" in told and (source is None or source.parent is None):
            seen.retires = path_of(told["retires"])
        if keys is None:
            self.unkeyed[record.place] = self._place(record)
            return
        self.has_keys = True
        if source is not None and source.parent is not None:
            self.claims.append((record.id, source.parent, source.n, self._place(record)))
        if source is not None and not (self.means.registry and record.id in self.means.registry.chains):
            self.sources[record.id] = source
            self._learned(record.id)

    def _learned(self, chain: bytes) -> None:
        if self.descent is not None:
            self.descent.learned(chain)

    def _retired(self, record: scan.Record, told: Mapping[str, Any]) -> None:
        heads = heads_of(told)
        if self._told_heads + len(heads) > HELD_MAX:
            self._too_many(record, "chains in retired segments")
            return
        if not self._has_room(self.retirements, record, "retired segments"):
            return
        self._told_heads += len(heads)
        # One character more than a file's name can have: what is longer is none.
        place, segment = self._place(record), path_of(told.get("segment"))[: NAME_MAX + 1]
        words = _words(told.get("over"))
        over = frozenset(chain for chain in heads if scan.name_of(chain) in words)
        self.retirements.append(Retirement(record.id, record.n, record.t, place, segment, heads, over))

    def _degraded(self, record: scan.Record, told: Mapping[str, Any]) -> None:
        if told.get("lost") and self._has_room(self.losses, record, "records of losses"):
            self.losses.add((record.id, record.n))
        ends = told.get("resent")
        first, last = map(_fields.number, ends) if isinstance(ends, list) and len(ends) == 2 else (None, None)
        if first is None or last is None:
            return
        if self._has_room(self.resent, record, "ranges of records that come again"):
            self.resent.append((record.id, first, last, self._file))

    # -- records that are not the next of their chain

    def _admit(self, record: scan.Record, line: bytes) -> None:
        """Give a chain its keys, and have its first record judged again."""
        key = self._key_of(record, line)
        if key is None:
            self._found(record, "chain-unknown", "nothing tells where the keys of this chain come from")
            return
        place = self.scanner.open(record.id, key or None)
        if not key and self.means.epochs is not None:
            self.unkeyed[place] = self._place(record)
            self.keyless.add(record.id)
        if record.n:
            previous = line.partition(b'"p":"')[2][:64].decode("ascii")
            self.chains.setdefault(place, Seen(record.id)).start = record.n, previous, self._place(record)
            if not self.scanner.reach(place, record.n):
                text = f"too many records are missing before record {record.n} to follow the keys"
                self._found(record, "gap", text)
                return
        self.scanner.again(record)

    def _key_of(self, record: scan.Record, line: bytes) -> bytes | None:
        """Return the key of a chain, empty for one without keys; None when it cannot be known."""
        source = self._source_of(record.id) if self.means.epochs else None
        told = parsed(line) if source is None and record.event == _OPEN and record.n == 0 else {}
        if self.means.epochs is None:
            self._check_only_hashes(record, told)
            return b""
        source = source or source_of(told.get("keys"))
        if source is None and record.n:
            self._look_ahead()
            source = self._source_of(record.id) or self._source_by_slot(record.id)
        if source is not None and self.descent is not None:
            if source.parent is None:
                self.of_epochs.add(record.id)
            key = self.descent.key(record.id, source)
            if key is None and not self._has_looked_ahead:  # an ancestor's first record may be retired
                self._look_ahead()
                key = self.descent.key(record.id, source)
            return key
        # The state file has chains with keys only. Any other may go on here from a segment that is gone.
        has_slot = self.means.state is not None and record.id in self.means.state.slots
        is_opened_without = "keys" in told and told["keys"] is None
        return None if has_slot or (record.flags & scan.HAS_MAC and not is_opened_without) else b""

    def _check_only_hashes(self, record: scan.Record, told: Mapping[str, Any]) -> None:
        """There is no key: that must be what the caller wants, or what the chain is like."""
        if not record.flags & scan.HAS_MAC and told.get("keys") is None:
            return
        self.has_keys = True
        if not self.means.without_key:
            text = "cannot verify: the chains have keys; give the verification key"
            raise AuditError(errno.ENOKEY, text, self.segments[self._file].path)

    def _look_ahead(self) -> None:
        """Find where the keys of chains come from whose first record was retired: the heads tell it.

        Anybody may have written that, also who has the keys of another chain, and so of whatever is said to
        descend from it. So what was made use of is checked in the end (_verify_retired.hold).
        """
        if self._has_looked_ahead:
            return
        self._has_looked_ahead = True
        for file, segment in enumerate(self.segments):
            for record, line in scan.records(segment.fd, segment.size):
                if record.event == _RETIRED:
                    self._take_sources(parsed(line), (file, record.line, record.at))

    def _take_sources(self, told: Mapping[str, Any], place: Place) -> None:
        for chain, head in heads_of(told).items():
            source = head[2]
            if source is not None and len(self.foretold) < HELD_MAX:
                self.foretold.setdefault(chain, (source, place))
                self._learned(chain)

    def record_key(self, chain: bytes, n: int) -> bytes | None:
        """Return B(n) of a chain; None where its keys are not known, or it is too far."""
        source = self._source_of(chain)
        if self.descent is None or source is None:
            return None
        return self.descent.record_key(chain, source, n)

    def _source_of(self, chain: bytes) -> Source | None:
        """Return where a chain's keys come from, by whoever may know it."""
        registry = self.means.registry
        if registry and chain in registry.chains:
            return Source(registry.chains[chain].epoch)
        if chain in self.sources:
            return self.sources[chain]
        if chain in self.forks and self.forks[chain][0] not in self.keyless:
            return Source(0, *self.forks[chain])
        if chain in self.foretold:
            self.trusted.add(chain)
            return self.foretold[chain][0]
        return None

    def _source_by_slot(self, chain: bytes) -> Source | None:
        """Return what the state file says; of a child the epoch of its first ancestor, so ask it last."""
        state = self.means.state
        if self.means.registry is None and state is not None and chain in state.slots:
            return Source(state.slots[chain].epoch)
        return None

    def _gap(self, record: scan.Record, line: bytes) -> None:
        """A number is too high: records are missing, or the number was changed."""
        kept = self.scanner.keep(record.place)
        expected = self.scanner.standing(record.place).next
        text = f"expected record {expected}, found {record.n}: {record.n - expected} missing"
        if not self.scanner.reach(record.place, record.n):
            self.scanner.restore(record.place, kept)
            self._found(record, "gap", f"{text}, too many to follow the keys")
            return
        again = self.scanner.judge_again(record, line)
        if again.verdict == scan.BAD_MAC:
            self.scanner.restore(record.place, kept)
            self.scanner.reach(record.place, expected + 1)
            self._found(
                record, "mac-mismatch", f"changed: it says {record.n} where record {expected} is expected"
            )
            return
        self.torn_at(record.id, expected)
        self._found(record, "gap", text)
        self._compare(again)
        self._fits(again, line)

    # -- witnesses

    def _compare(self, record: scan.Record) -> None:
        witness = self.means.witness
        wanted = witness.chains.get(record.id) if witness and record.flags & scan.HAS_NUMBER else None
        if not wanted or record.verdict in (scan.TORN, scan.GARBAGE, scan.STRANGER, scan.GAP):
            return
        seen = wanted.pop(key_of(record.n), None)
        if seen is not None and seen.hash != record.hash:
            text = f"{seen.file}:{seen.line}:{seen.byte} has another record of this number"
            self._found(record, "witness-mismatch", text)


def source_of(keys: object) -> Source | None:
    """Return where keys come from, as a record tells it."""
    if not isinstance(keys, dict):
        return None
    if type(keys.get("epoch")) is int:
        return Source(keys["epoch"])
    parent = scan.id_of(keys["parent"]) if isinstance(keys.get("parent"), str) else None
    if parent is None or type(keys.get("n")) is not int or not 0 <= keys["n"] < 1 << 63:
        return None
    return Source(0, parent, keys["n"])


def _words(told: object) -> frozenset[str]:
    return (
        frozenset(word for word in told if isinstance(word, str)) if isinstance(told, list) else frozenset()
    )


def heads_of(told: Mapping[str, Any]) -> dict[bytes, tuple[int, str, Source | None]]:
    """Return the heads of a record ``segment.retired``: number, hash, and where the keys come from.

    They are kept, and so nothing else that a record may have in their place.
    """
    heads = told.get("heads")
    found: dict[bytes, tuple[int, str, Source | None]] = {}
    for name, head in heads.items() if isinstance(heads, dict) else ():
        chain = scan.id_of(name)
        number, digest, *keys = head if isinstance(head, list) and len(head) > 1 else (None, None)
        if chain and type(number) is int and 0 <= number < 1 << 64:
            # One byte more than a digest has: what is longer is none.
            found[chain] = number, str(digest)[: 2 * 32 + 1], source_of(keys[0]) if keys else None
    return found
