"""The ledger's core in C, as Python calls it: values in, an errno out, no decision.

Every call gives the GIL away. What is passed is held in a local until the call has returned.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import _binding

_LIB: Any = _binding.lib
_ffi = _binding.ffi

_SETUP = _ffi.typeof("struct ss_setup *")
_KEPT = _ffi.typeof("struct ss_kept *")
_ENTRY = _ffi.typeof("struct ss_entry *")
_HEIR = _ffi.typeof("struct ss_heir *")
_ORIGIN = _ffi.typeof("struct ss_origin *")
_INTENT = _ffi.typeof("struct ss_intent *")
_FDS = _ffi.typeof("struct ss_fd[]")
_COUNTS = _ffi.typeof("struct ss_ledger_counts *")

EVENTS: dict[str, int] = {_ffi.string(_LIB.ss_event_name(i)).decode(): i for i in range(_LIB.SS_EV_COUNT)}
_NAMES = {number: name for name, number in EVENTS.items()}

BOOKS: int = _LIB.SS_ENTRY_BOOKS
FREES: int = _LIB.SS_ENTRY_FREES
FREES_TWO: int = _LIB.SS_ENTRY_FREES_TWO
FLUSH: int = _LIB.SS_ENTRY_FLUSH
AGGREGATE: int = _LIB.SS_ENTRY_AGGREGATE
CLOSES: int = _LIB.SS_ENTRY_CLOSES

MANY: int = _LIB.SS_KEPT_MANY
LATE: int = _LIB.SS_KEPT_LATE
FULL: int = _LIB.SS_KEPT_FULL
SHRUNK: int = _LIB.SS_KEPT_SHRUNK
UNFLUSHED: int = _LIB.SS_KEPT_UNFLUSHED

#: How many bytes of lines are kept for mirrors that are behind.
RING_BYTES = 4 << 20
#: What one look at them takes at most.
TAKE_BYTES = 256 << 10


class Counts(NamedTuple):
    """Where a ledger stands."""

    events: dict[str, int]
    lost: int
    next: int
    #: Bytes that accepted intents still have coming, and that are put by beyond the end of the file.
    booked: int
    reserved: int
    #: Whether the file system can put blocks by.
    reserves: bool
    #: fdatasync has failed, and the file is not trusted again.
    poisoned: bool


def new_setup(
    fd: int,
    state_fd: int,
    *,
    chain: str,
    mode: str,
    boot: str,
    reserve: int,
    limit: int,
    records: int,
    seconds: float,
) -> Any:
    setup = _ffi.new(_SETUP)
    setup.fd, setup.state_fd = fd, state_fd
    setup.mode, setup.boot = mode.encode("ascii"), boot.encode("ascii")
    setup.origin.chain = chain.encode("ascii")
    setup.reserve, setup.limit = reserve, limit
    setup.checkpoint_records, setup.checkpoint_ns = records, int(seconds * 1e9)
    return setup


def new_origin(chain: str) -> Any:
    """Return room for where a chain begins; a chain without keys unless somebody fills them in."""
    origin = _ffi.new(_ORIGIN)
    origin.chain = chain.encode("ascii")
    return origin


def origin_of(holder: Any) -> Any:
    """Return where a chain begins, by the setup or the heir that holds it."""
    return _ffi.addressof(holder, "origin")


def chain_of(origin: Any) -> str:
    """Return the chain that begins there."""
    return bytes(_ffi.buffer(origin.chain)).decode("ascii")


def new_heir() -> Any:
    """Return room for what a forked child inherits."""
    return _ffi.new(_HEIR)


def new_kept() -> Any:
    """Return room for what came of a record."""
    return _ffi.new(_KEPT)


class Core:
    """One ledger in C. Its memory goes when nothing refers to this any more."""

    __slots__ = ("raw",)

    def __init__(self, setup: Any) -> None:
        """Take the descriptors over and begin the chain. Raises OSError; then they are still ours."""
        made = _ffi.new("struct ss_ledger **")
        error = _LIB.ss_ledger_open(setup, made)
        if error:
            raise OSError(-error, os.strerror(-error))
        self.raw = _ffi.gc(made[0], _LIB.ss_ledger_free)

    def append(self, event: str, sid: str | None, members: bytes, flags: int, kept: Any) -> int:
        """Write one record; answers 0 or a negative errno."""
        entry = _ffi.new(_ENTRY)
        hold = [_ffi.from_buffer("char[]", members), sid and _ffi.new("char[]", sid.encode("ascii"))]
        entry.event, entry.flags, entry.body, entry.body_bytes = EVENTS[event], flags, hold[0], len(members)
        if sid:
            entry.sid = hold[1]
        answer: int = _LIB.ss_ledger_append(self.raw, entry, kept)
        return answer

    def lose(self) -> None:
        """Count a record that is in no file."""
        _LIB.ss_ledger_lose(self.raw)

    def unbook(self) -> None:
        """Give back what an intent had booked, because nothing will be started."""
        _LIB.ss_ledger_unbook(self.raw)

    def flush(self) -> int:
        """Wait until the disk has all records; answers 0 or a negative errno."""
        answer: int = _LIB.ss_ledger_flush(self.raw)
        return answer

    def move(self, fd: int) -> int:
        """Go on in another file; takes ``fd`` over. Answers 0 or a negative errno."""
        answer: int = _LIB.ss_ledger_move(self.raw, fd, new_kept())
        return answer

    def close(self) -> None:
        """Close the files and forget the keys."""
        _LIB.ss_ledger_close(self.raw)

    def counts(self) -> Counts:
        """Return where it stands."""
        c = _ffi.new(_COUNTS)
        _LIB.ss_ledger_counts(self.raw, c)
        events = {_NAMES[i]: n for i, n in enumerate(c.events) if n}
        return Counts(events, c.lost, c.next, c.booked, c.reserved, bool(c.reserves), bool(c.poisoned))

    def fork(self, heir: Any) -> None:
        """Before a fork: derive what the child inherits, and hold all writers."""
        _LIB.ss_ledger_fork(self.raw, heir)

    def forked(self, heir: Any) -> None:
        """After it, in the parent: let them go on."""
        _LIB.ss_ledger_forked(self.raw, heir)

    def inherit(self, origin: Any, *, claim: bool) -> int:
        """Begin another chain, in a forked child; answers 0 or a negative errno."""
        answer: int = _LIB.ss_ledger_inherit(self.raw, origin, claim)
        return answer


class Teller(NamedTuple):
    """What C needs to write the records of a spawn by itself: the ledger, and what stays the same."""

    raw: Any
    #: Members of ``who`` that stay the same in a process, and a comma.
    process: Any
    key: Any
    label: Any


def teller(core: Core, process: bytes, label: str, key: bytes) -> Teller:
    """Return one."""
    texts = (_ffi.new("char[]", text) for text in (process, label.encode("ascii")))
    process_text, label_text = texts
    return Teller(core.raw, process_text, _ffi.new("uint8_t[32]", key), label_text)


def intent(
    teller: Teller,
    kept: Any,
    sid: str,
    seen: _binding.Seen,
    argv: tuple[bytes, int],
    env: tuple[bytes, int],
    fds: Sequence[tuple[int, int]],
    rest: bytes,
) -> int:
    r = _ffi.new(_INTENT)
    hold = (
        _ffi.from_buffer("char[]", argv[0]),
        _ffi.from_buffer("char[]", env[0]),
        _ffi.new(_FDS, fds),
        _ffi.new("char[]", rest),
    )
    r.argv.text, r.env.text, r.fds, r.rest = hold
    r.argv.bytes, r.argv.count = len(argv[0]), argv[1]
    r.env.bytes, r.env.count = len(env[0]), env[1]
    r.nfds, r.process, r.env_key, r.env_label = len(fds), teller.process, teller.key, teller.label
    seen.lend_to(r)
    answer: int = _LIB.ss_ledger_intent(teller.raw, sid.encode("ascii"), r, kept)
    return answer


def started(teller: Teller, kept: Any, sid: str, slot: _binding.Slot, pidfd: int, how: bytes) -> int:
    """Write that the program runs: what came of the spawn, and ``how`` as JSON."""
    answer: int = _LIB.ss_ledger_started(teller.raw, sid.encode("ascii"), slot.raw, pidfd, how, kept)
    return answer


def ended(teller: Teller, kept: Any, sid: str, room: Any, duration_ns: int, timeout_killed: bool) -> int:
    """Write how it ended, by the room that it was reaped into."""
    answer: int = _LIB.ss_ledger_exit(
        teller.raw, sid.encode("ascii"), room, duration_ns, timeout_killed, kept
    )
    return answer


class Feed:
    """The lines of a ledger as they are written, for one reader that may be slow."""

    def __init__(self, core: Core) -> None:
        """Begin with the next line. Raises OSError when there is no memory to keep lines in."""
        error = _LIB.ss_ledger_keep(core.raw, RING_BYTES)
        if error:
            raise OSError(-error, os.strerror(-error))
        self._core = core
        self._reader = _ffi.new("struct ss_reader *")
        self._room = _ffi.new("char[]", TAKE_BYTES)

    def take(self, timeout: float) -> tuple[list[bytes], int]:
        """Wait for lines; return them without newlines, and how many came and went before.

        No line after ``timeout`` seconds, or when :meth:`wake` was called. Raises EOFError when
        the ledger was closed.
        """
        skipped = self._reader.skipped
        used = _LIB.ss_ledger_take(self._core.raw, self._reader, self._room, TAKE_BYTES, int(timeout * 1e9))
        if used < 0:
            raise EOFError("the ledger was closed")
        lines = bytes(_ffi.buffer(self._room, used)).split(b"\n")[:-1]
        return lines, self._reader.skipped - skipped

    def wake(self) -> None:
        """Have a thread that waits in :meth:`take` return."""
        _LIB.ss_ledger_wake(self._core.raw)


def file_system(fd: int) -> int:
    """Return the kind of file system that a descriptor is on: f_type of statfs(2), 0 if unknown."""
    return int(_LIB.ss_file_system(fd))
