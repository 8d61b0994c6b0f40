"""The ledger's core in C, as Python calls it: values in, an errno out, no decision.

Every call gives the GIL away. What is passed is held in a local until the call has returned.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from typing import Any, NamedTuple

from .. import _binding

_LIB: Any = _binding.lib
_ffi = _binding.ffi

_SETUP = _ffi.typeof("struct ss_setup *")
_KEPT = _ffi.typeof("struct ss_kept *")
_ENTRY = _ffi.typeof("struct ss_entry *")
_ORIGIN = _ffi.typeof("struct ss_origin *")
_FILE = _ffi.typeof("struct ss_handle *")
_TELLER = _ffi.typeof("struct ss_teller *")
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
UNFLUSHED: int = _LIB.SS_KEPT_UNFLUSHED

#: What ``told`` of a record is whose loss was counted.
LOST: int = _LIB.SS_TOLD_LOST

_AT_FDCWD = -100  # openat(2)

#: How many bytes of lines are kept for mirrors that are behind.
RING_BYTES = 4 << 20
#: What one look at them takes at most.
TAKE_BYTES = 256 << 10


if error := _LIB.ss_ledger_hook_forks():
    raise OSError(error, os.strerror(error))


#: Return which process this is among those that descend from one, a fork past libc included; never 0.
process_number: Any = _LIB.ss_process_number


def check(answer: int) -> None:
    """Raise OSError for a negative errno."""
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))


class File:
    """An open file, closed when nothing refers to this any more.

    The descriptor is never a number of Python's that a signal handler which raises could lose.
    """

    __slots__ = ("__weakref__", "_end", "raw")

    def __init__(self) -> None:
        """Nothing is open."""
        self.raw = _ffi.new(_FILE)
        self.raw.fd = -1
        # Only now: what is collected before the number is set would close any descriptor.
        self._end = _ffi.gc(self.raw, _LIB.ss_handle_close)
        _files.add(self)

    @property
    def fd(self) -> int:
        """Its descriptor; -1 when it is closed, or another's."""
        return int(self.raw.fd)

    def open(self, path: str, flags: int, mode: int = 0o600, beside: File | None = None) -> File:
        """Open a file, relative to the directory ``beside``. Raises OSError."""
        where = _AT_FDCWD if beside is None else beside.fd
        error = _LIB.ss_handle_open(self.raw, where, os.fsencode(path), flags, mode)
        if error:
            raise OSError(-error, os.strerror(-error), path)
        return self

    def lift(self, least: int) -> None:
        """Give it a number of ``least`` or above, where the limit of open files allows."""
        _LIB.ss_handle_lift(self.raw, least)

    def close(self) -> None:
        """Close it; doing it twice is no error."""
        _LIB.ss_handle_close(self.raw)

    def _number(self) -> int:
        """Return the descriptor; OSError where it is closed, for which Python has a ValueError."""
        if (fd := self.fd) < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return fd

    def lock(self, how: int) -> None:
        """Take or give back its lock: flock(2). Raises OSError."""
        fcntl.flock(self._number(), how)

    def sync(self) -> None:
        """Wait until the disk has it: fsync(2). Raises OSError."""
        os.fsync(self._number())

    def append(self, data: bytes) -> None:
        """Write all of it at the end, whatever limit and signal there may be. Raises OSError."""
        check(_LIB.ss_handle_append(self.raw, data, len(data)))

    def put(self, data: bytes) -> None:
        """Write over the beginning: all of it, or nothing. Raises OSError."""
        check(_LIB.ss_handle_put(self.raw, data, len(data)))

    def rename(self, path: str, to: str) -> None:
        """Give the file at ``path``, of which this holds the lock, another name. Raises OSError."""
        check(_LIB.ss_handle_rename(self.raw, os.fsencode(path), os.fsencode(to)))

    def punch(self, at: int, size: int) -> None:
        """Make a hole, where the file system can: there the file must be empty already."""
        _LIB.ss_handle_punch(self.raw, at, size)

    def __enter__(self) -> File:
        """Return it."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Close it."""
        self.close()


_files: weakref.WeakSet[File] = weakref.WeakSet()


def _close_files() -> None:
    """In a forked child that goes on where its parent opens or renames something: that is not done twice."""
    for file in list(_files):
        file.close()


os.register_at_fork(after_in_child=_close_files)


class Counts(NamedTuple):
    """Where a ledger stands."""

    events: dict[str, int]
    lost: int
    next: int
    #: Bytes that accepted intents still have coming, and that are put by beyond the end of the file.
    booked: int
    reserved: int
    #: Bytes of the segment that is written.
    size: int
    #: Whether the file system can put blocks by.
    reserves: bool
    #: fdatasync has failed, and the file is not trusted again.
    poisoned: bool
    #: The descriptor of the state file, -1 for none.
    state: int


def new_setup(
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
    setup.mode, setup.boot = mode.encode("ascii"), boot.encode("ascii")
    setup.origin.chain = chain.encode("ascii")
    setup.reserve, setup.limit = reserve, limit
    setup.checkpoint_records, setup.checkpoint_ns = records, int(min(seconds, 1e9) * 1e9)
    return setup


def new_origin(chain: str) -> Any:
    """Return room for where a chain begins; a chain without keys unless somebody fills them in."""
    origin = _ffi.new(_ORIGIN)
    origin.chain = chain.encode("ascii")
    return origin


def origin_of(setup: Any) -> Any:
    """Return where the chain begins that a setup is for."""
    return _ffi.addressof(setup, "origin")


def _name(chain: Any) -> str:
    return bytes(_ffi.buffer(chain)).decode("ascii").rstrip("\0")


class Birth(NamedTuple):
    """Where a chain began: its id, its parent's, and where its key comes from, as its first record has it."""

    chain: str
    parent: str | None
    keys: dict[str, Any] | None


def new_kept() -> Any:
    """Return room for what came of a record: ``told`` once, and which chain has ``booked`` room, 0 for none.

    Who writes what was booked for sets ``settling`` to that: only there it is given back.
    """
    return _ffi.new(_KEPT)


#: What gives back ledgers that are not closed.
_kept: dict[int, Any] = {}


class Core:
    """One ledger in C. Its memory and its files go when nothing refers to this any more."""

    __slots__ = ("_end", "made")

    def __init__(self, setup: Any, file: File, state: tuple[File, File] | None) -> None:
        """Take the files over and begin the chain. Raises OSError.

        ``state`` is the state file twice: for writing slots, and for appending them.
        """
        #: Where the ledger is: C puts one that is closed there when this one goes.
        self.made = _ffi.new("struct ss_ledger **")
        self._end = _ffi.gc(self.made, _LIB.ss_ledger_free)
        setup.file = file.raw
        if state is not None:
            setup.state, setup.claims = (one.raw for one in state)
        try:
            check(_LIB.ss_ledger_open(setup, self.made))
        except BaseException:
            _LIB.ss_ledger_free(self.made)  # now: the exception keeps us for as long as somebody looks at it
            raise

    def keep(self) -> None:
        """Have it stay until it is closed, although nothing refers to it any more.

        A ledger that was forgotten writes its end when it is collected; in a cycle of garbage the collector
        would have closed it by then.
        """
        _kept[id(self)] = self._end

    def let_go(self) -> None:
        """Have it go with what refers to it, closed or not."""
        _kept.pop(id(self), None)

    @property
    def raw(self) -> Any:
        """The ledger, as C knows it."""
        return self.made[0]

    @property
    def is_ours(self) -> bool:
        """Whether the chain is this process's: not in one that was forked past libc."""
        return bool(_LIB.ss_ledger_is_ours(self.raw))

    def birth(self) -> Birth:
        """Return where its chain began."""
        origin = _ffi.new(_ORIGIN)
        _LIB.ss_ledger_birth(self.raw, origin)
        parent = _name(origin.parent)
        keys = {"parent": parent, "n": origin.n} if origin.forked else {"epoch": origin.epoch}
        return Birth(_name(origin.chain), parent or None, keys if origin.keyed else None)

    def append(self, event: str, sid: str | None, members: bytes, flags: int, kept: Any = None) -> int:
        """Write one record; answers 0 or a negative errno. Without ``kept`` nobody is told what is due."""
        entry = _ffi.new(_ENTRY)
        hold = [_ffi.from_buffer("char[]", members), sid and _ffi.new("char[]", sid.encode("ascii"))]
        entry.event, entry.flags, entry.body, entry.body_bytes = EVENTS[event], flags, hold[0], len(members)
        if sid:
            entry.sid = hold[1]
        answer: int = _LIB.ss_ledger_append(self.raw, entry, _ffi.NULL if kept is None else kept)
        return answer

    def lose(self) -> None:
        """Count a record that is in no file."""
        _LIB.ss_ledger_lose(self.raw)

    def give_up(self, flags: int, kept: Any) -> None:
        """Count a record that no remedy has helped, and give back what was put by for it."""
        _LIB.ss_ledger_give_up(self.raw, flags, kept)

    def flush(self) -> int:
        """Wait until the disk has all records; answers 0 or a negative errno."""
        answer: int = _LIB.ss_ledger_flush(self.raw)
        return answer

    def is_at(self, path: str) -> bool:
        """Return whether a path is still the file that is written."""
        return bool(_LIB.ss_ledger_is_at(self.raw, os.fsencode(path)))

    def move(self, file: File) -> int:
        """Go on in another file; takes it over. Answers 0 or a negative errno."""
        answer: int = _LIB.ss_ledger_move(self.raw, file.raw)
        return answer

    def close(self) -> None:
        """Close the files and forget the keys; doing it twice is no error."""
        _LIB.ss_ledger_close(self.raw)
        self.let_go()

    def counts(self) -> Counts:
        """Return where it stands."""
        c = _ffi.new(_COUNTS)
        _LIB.ss_ledger_counts(self.raw, c)
        events = {_NAMES[i]: n for i, n in enumerate(c.events) if n}
        numbers = c.lost, c.next, c.booked, c.reserved, c.size
        return Counts(events, *numbers, bool(c.reserves), bool(c.poisoned), c.state)

    def inherit(self, origin: Any) -> int:
        """Begin another chain, in a child that was forked past libc; answers 0 or a negative errno."""
        answer: int = _LIB.ss_ledger_inherit(self.raw, origin)
        return answer

    def disown(self) -> None:
        """Give up a chain that was begun, before its first record."""
        _LIB.ss_ledger_disown(self.raw)


class Teller:
    """What C needs to write the records of a spawn by itself: the ledger, and what stays the same."""

    __slots__ = ("_keep", "raw")

    def __init__(self, core: Core, process: bytes, label: str, key: bytes) -> None:
        """``process``: members of ``who``, and a comma. The key is for the MAC of environments."""
        self.raw = _ffi.new(_TELLER)
        texts = [_ffi.new("char[]", text) for text in (process, label.encode("ascii"))]
        self._keep = core, texts, _ffi.new("uint8_t[32]", key)
        self.raw.ledger, self.raw.env_key = core.made, self._keep[2]
        self.raw.process, self.raw.env_label = texts


# The records of a spawn, as C has them: behind an exec each Python function on the way costs a microsecond.

#: Write that it is about to run: teller, sid (ASCII), request, what follows the descriptors as JSON; kept.
intent: Any = _LIB.ss_ledger_intent
#: Write that the program runs: teller, sid, what came of the spawn, pidfd, how it was done as JSON; kept.
started: Any = _LIB.ss_ledger_started
#: Write how it ended: teller, sid, room that it was reaped into, nanoseconds, if by a time-out; kept.
ended: Any = _LIB.ss_ledger_exit


class Feed:
    """The lines of a ledger as they are written, for one reader that may be slow."""

    def __init__(self, core: Core) -> None:
        """Begin with the next line. Raises OSError when there is no memory to keep lines in."""
        self._core = core
        self._reader = _ffi.new("struct ss_reader *")
        check(_LIB.ss_ledger_keep(core.raw, RING_BYTES, self._reader))
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
