"""Joins the records of a ledger: a :class:`Spawn` for each spawn id, an :class:`Event` for any other record.

Works on a stream in bounded memory, and on whatever a hostile record holds. Pure.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from datetime import datetime, timezone
from typing import Any

from ._fields import as_text, group, items, number, string
from ._lines import Record

__all__ = ["OPEN_MAX", "ORDER_ROOM", "Event", "Joiner", "Spawn", "in_order", "iso", "join", "plain"]

#: Spawns that wait for their next record. When there are more, the oldest is given out as it is:
#: still running, or nobody knows.
OPEN_MAX = 20_000
#: Bytes of the records of those that wait. Read they take twenty times as much where their parts are small.
OPEN_BYTES_MAX = 48 << 20
#: Records of one spawn; it has three. One with more is given out as it is, and again with those that follow.
EACH_MAX = 16
#: So many of the last lines, at least, are remembered, so that one that comes again (``resent``, or shipped
#: twice) counts once.
_REMEMBERED = 50_000
#: Entries that :func:`in_order` holds back, and bytes of their records.
ORDER_ROOM, ORDER_BYTES = 10_000, 32 << 20

#: Events that tell who wants what: a spawn begins with one of them. And those that complete one.
_FIRST = frozenset(("spawn.intent", "spawn.failed", "spawn.denied"))
_LAST = frozenset(("spawn.failed", "spawn.denied", "spawn.exit", "exit.unknown"))


@dataclass(slots=True)
class Spawn:
    """What a ledger says of one spawn. Times are nanoseconds; None is what no record told.

    ``when_ns`` is the time of the first record. ``argv`` are texts: bytes that are not UTF-8 are
    surrogates, as os.fsdecode makes them. ``argc`` is their true number, ``redacted`` the indices of those
    that hold a secret, which is … in them. ``program`` is the path of the file, or the first
    argument where no file was found, ``real`` the kernel's name for it. ``want_uid`` and
    ``want_gid`` are None where the caller's were kept.

    ``outcome`` is that of the spawn's report: ``exec``, ``failed``, ``killed-before-exec``,
    ``race-detected``, ``timed-out``, ``interrupted``, ``refused``; or ``unknown``: announced, and may have
    run.
    ``intended`` is the strategy of the intent where another was used in the end. ``ended`` is false for
    an ``exec`` that was not seen to end. ``records`` are the lines, if the joiner was to keep them;
    ``record_bytes`` is how long they are.
    """

    sid: str
    chain: str
    where: str
    when_ns: int
    mode: str | None = None
    caller_pid: int | None = None
    ruid: int | None = None
    euid: int | None = None
    auid: int | None = None
    argv: tuple[str, ...] = ()
    argc: int | None = None
    redacted: tuple[int, ...] = ()
    program: str | None = None
    real: str | None = None
    sha256: str | None = None
    want_uid: int | None = None
    want_gid: int | None = None
    requested: str | None = None
    intended: str | None = None
    strategy: str | None = None
    proof: str | None = None
    why: tuple[str, ...] = ()
    outcome: str = "unknown"
    refused_by: tuple[str, ...] = ()
    stage: str | None = None
    errno: str | None = None
    message: str | None = None
    pid: int | None = None
    window_ns: int | None = None
    ended: bool = False
    exit_code: int | None = None
    signal: int | None = None
    core: bool = False
    timeout_killed: bool = False
    end_unknown: str | None = None
    duration_ns: int | None = None
    tags: dict[str, str] | None = None
    events: tuple[str, ...] = ()
    records: tuple[bytes, ...] = ()
    record_bytes: int = 0

    @property
    def target_uid(self) -> int | None:
        """The uid that the program got, or was to get."""
        return self.euid if self.want_uid is None else self.want_uid

    @property
    def fell_back(self) -> bool:
        """Whether it was forked, or was to be, without being asked for."""
        return self.strategy == "fork" and self.requested != "fork"


@dataclass(slots=True)
class Event:
    """A record that is not part of a spawn, such as ``cred.change`` or ``mirror.down``."""

    event: str
    when_ns: int
    record: Record

    @property
    def record_bytes(self) -> int:
        """The length of its record."""
        return len(self.record.line)


def _pairs(value: Any) -> dict[str, str]:
    """Return the tags: a mapping, or the first pairs of one that was too long."""
    if "first" in (given := group(value)) and "count" in given:
        pairs = [one for one in items(value) if isinstance(one, list) and len(one) == 2]
        return {as_text(key): as_text(item) for key, item in pairs}
    return {} if "cut_bytes" in given else {key: as_text(item) for key, item in given.items()}


def _started_ns(record: Record) -> int:
    """Return when a spawn began, by its first record, or by its id where that one is not the first.

    The id is a UUID of version 7, which starts with 48 bits of milliseconds (RFC 9562, section 5.7).
    """
    if record.fields["ev"] in _FIRST:
        return int(record.fields["t"])
    sid = record.fields["sid"].replace("-", "")
    try:
        ms = int(sid[:12], 16) if len(sid) == 32 and sid[12] == "7" else None
    except ValueError:
        ms = None
    t: int = record.fields["t"]
    return t if ms is None else min(t, ms * 1_000_000)


def _about(spawn: Spawn, fields: dict[str, Any]) -> None:
    """Take over who, what and want."""
    who, what, want = (group(fields.get(name)) for name in ("who", "what", "want"))
    spawn.mode = string(fields.get("mode"))
    spawn.caller_pid, spawn.auid = number(who.get("pid")), number(who.get("auid"))
    spawn.ruid, spawn.euid = number(who.get("ruid")), number(who.get("euid"))
    spawn.argv = tuple(map(as_text, items(what.get("argv"))))
    spawn.argc = number(what.get("argc"))
    spawn.redacted = tuple(one for one in items(what.get("redacted")) if number(one) is not None)
    exe = group(what.get("exe"))
    spawn.program = as_text(exe["path"]) if "path" in exe else next(iter(spawn.argv), None)
    spawn.real = as_text(exe["real"]) if exe.get("real") else None
    spawn.sha256 = string(exe.get("sha256"))
    spawn.want_uid, spawn.want_gid = number(want.get("uid")), number(want.get("gid"))
    spawn.tags = _pairs(fields.get("tags")) or None


def _how(spawn: Spawn, fields: dict[str, Any]) -> None:
    how = group(fields.get("how"))
    strategy = string(how.get("strategy"))
    if spawn.strategy not in (None, strategy):
        spawn.intended = spawn.strategy
    spawn.strategy = strategy
    spawn.requested, spawn.proof = string(how.get("requested")), string(how.get("proof"))
    spawn.why = tuple(map(as_text, items(how.get("why"))))


def _refused(spawn: Spawn, fields: dict[str, Any]) -> None:
    guards = [group(one) for one in items(group(fields.get("how")).get("guards"))]
    denied = [one for one in guards if one.get("r") == "deny"]
    spawn.refused_by = tuple(f"{as_text(one.get('g'))}: {as_text(one.get('why'))}" for one in denied)
    spawn.outcome = "refused"


def _outcome(spawn: Spawn, fields: dict[str, Any]) -> None:
    outcome = group(fields.get("outcome"))
    spawn.outcome = string(outcome.get("outcome")) or "unknown"
    spawn.pid, spawn.window_ns = number(outcome.get("pid")), number(outcome.get("ns_to_exec"))
    spawn.stage, spawn.errno = string(outcome.get("step")), string(outcome.get("name")) or None
    spawn.message = string(outcome.get("message")) or None


def _end(spawn: Spawn, fields: dict[str, Any]) -> None:
    """Take over how it ended, which also tells that it ran."""
    ended = group(fields.get("exit"))
    spawn.outcome, spawn.ended = "exec", True
    pid = ended.get("pid", fields.get("pid"))
    spawn.pid = spawn.pid if pid is None else number(pid)
    spawn.exit_code, spawn.signal = number(ended.get("code")), number(ended.get("signal"))
    spawn.core, spawn.timeout_killed = ended.get("core") is True, ended.get("timeout_killed") is True
    spawn.duration_ns = number(ended.get("dur"))
    if fields["ev"] == "exit.unknown":
        spawn.end_unknown = as_text(fields.get("why"))


#: The events that are joined by their sid, and what is taken over from each.
_STEPS = {
    "spawn.intent": (_about, _how),
    "spawn.started": (_how, _outcome),
    "spawn.failed": (_about, _how, _outcome),
    "spawn.denied": (_about, _how, _refused),
    "spawn.exit": (_end,),
    "exit.unknown": (_end,),
}


class Joiner:
    """Takes records one by one, and gives out what is complete.

    A spawn is complete when it failed, was refused or ended. At most ``room`` of them are kept
    waiting, and no more than had ``room_bytes`` of records. With ``keep`` they keep their lines.
    """

    def __init__(self, *, room: int = OPEN_MAX, room_bytes: int = OPEN_BYTES_MAX, keep: bool = False) -> None:
        self._room, self._room_bytes = room, room_bytes
        self._bytes = 0
        self._keep = keep
        self._open: OrderedDict[str, Spawn] = OrderedDict()
        self._fresh: dict[str, None] = {}
        self._lines: set[int] = set()
        self._older_lines: set[int] = set()
        #: Lines that came again, byte for byte.
        self.repeated = 0

    def add(self, record: Record) -> list[Spawn | Event]:
        """Take a record without a problem; return what that completes."""
        if self._is_repeated(record):
            return []
        fields = record.fields
        event: str = fields["ev"]
        if event not in _STEPS or fields["sid"] is None:
            return [Event(event, fields["t"], record)]
        return list(self._join(event, record))

    def _is_repeated(self, record: Record) -> bool:
        line = hash(record.line)
        if line in self._lines or line in self._older_lines:
            self.repeated += 1
            return True
        if len(self._lines) == _REMEMBERED:
            self._older_lines, self._lines = self._lines, set()
        self._lines.add(line)
        return False

    def _join(self, event: str, record: Record) -> Iterator[Spawn]:
        sid: str = record.fields["sid"]
        spawn = self._open.get(sid)
        if spawn is None:
            spawn = Spawn(sid, record.fields["c"], record.where, _started_ns(record))
            self._open[sid] = spawn
        for step in _STEPS[event]:
            step(spawn, record.fields)
        spawn.events = (*spawn.events, event)
        if self._keep:
            spawn.records = (*spawn.records, record.line)
        spawn.record_bytes += len(record.line)
        self._bytes += len(record.line)
        if event == "spawn.started":
            self._fresh[sid] = None
        if event in _LAST or len(spawn.events) == EACH_MAX:
            yield self._given_out(sid)
        while self._open and (len(self._open) > self._room or self._bytes > self._room_bytes):
            yield self._given_out(next(iter(self._open)))

    def _given_out(self, sid: str) -> Spawn:
        spawn = self._open.pop(sid)
        self._fresh.pop(sid, None)
        self._bytes -= spawn.record_bytes
        return spawn

    def started(self) -> list[Spawn]:
        """Return those that run, and were not returned by this before. They stay open."""
        fresh, self._fresh = self._fresh, {}
        return [self._open[sid] for sid in fresh]

    def rest(self) -> list[Spawn]:
        """Return those that are not complete, the oldest first, and forget them."""
        return [self._given_out(sid) for sid in tuple(self._open)]


def join(records: Iterable[Record], joiner: Joiner | None = None) -> Iterator[Spawn | Event]:
    """Yield spawns and events as they are complete, then the spawns that are not; no problems."""
    joiner = joiner or Joiner()
    for record in records:
        if record.problem is None:
            yield from joiner.add(record)
    yield from joiner.rest()


def in_order(
    entries: Iterable[Spawn | Event], room: int = ORDER_ROOM, room_bytes: int = ORDER_BYTES
) -> Iterator[Spawn | Event]:
    """Yield entries by the time they began: wholly so where no more than ``room`` are out of order.

    Of large records ``room_bytes`` are held back, which is fewer.
    """
    waiting: list[tuple[int, int, Spawn | Event]] = []
    held = 0
    for place, entry in enumerate(entries):
        heapq.heappush(waiting, (entry.when_ns, place, entry))
        held += entry.record_bytes
        while len(waiting) > room or held > room_bytes:
            first = heapq.heappop(waiting)[2]
            held -= first.record_bytes
            yield first
    while waiting:
        yield heapq.heappop(waiting)[2]


def iso(when_ns: int) -> str:
    """Return nanoseconds since 1970, of at most 64 bits, as ISO 8601 in UTC with nine digits."""
    seconds, ns = divmod(when_ns, 1_000_000_000)
    # Not strftime(3), which writes years without leading zeros.
    whole = datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None)
    return f"{whole.isoformat()}.{ns:09}Z"


def _json_text(text: str) -> str | dict[str, str]:
    """Return a text as the ledger has it: bytes that are not UTF-8 in hex, so that nothing is lost."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # half a pair in the record, which we never write
            data = text.encode("utf-8", "surrogatepass")
        return {"hex": data.hex()}
    return text


def _json_value(value: Any) -> Any:
    if isinstance(value, str):
        return _json_text(value)
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    return value


_SHOWN = tuple(field.name for field in dataclass_fields(Spawn) if not field.name.startswith("record"))


def plain(entry: Spawn | Event) -> dict[str, Any]:
    """Return it as values for JSON: of a spawn all members but the lines, of an event its whole record."""
    when = iso(entry.when_ns)
    if isinstance(entry, Spawn):
        return {"kind": "spawn", "when": when, **{name: _json_value(getattr(entry, name)) for name in _SHOWN}}
    record = entry.record
    return {
        "kind": "event",
        "when": when,
        "event": entry.event,
        "where": record.where,
        "record": record.fields,
    }
