"""Bytes of a ledger in, judged records out: the verifier's way to the core (_verify.c)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from .._binding import ffi, lib
from .._errors import AuditError

FITS: Final = lib.SS_FITS
BLANK: Final = lib.SS_BLANK
TORN: Final = lib.SS_TORN
GARBAGE: Final = lib.SS_GARBAGE
STRANGER: Final = lib.SS_STRANGER
GAP: Final = lib.SS_GAP
REPLAY: Final = lib.SS_REPLAY
BAD_MAC: Final = lib.SS_BAD_MAC
BAD_HASH: Final = lib.SS_BAD_HASH

NO_NEWLINE: Final = lib.SS_NO_NEWLINE
HAS_NUMBER: Final = lib.SS_HAS_NUMBER
HAS_MAC: Final = lib.SS_HAS_MAC
HAS_CHILD: Final = lib.SS_HAS_CHILD
CLOCK_BACK: Final = lib.SS_CLOCK_BACK
BAD_AGG: Final = lib.SS_BAD_AGG
BAD_STATE: Final = lib.SS_BAD_STATE
TOO_LONG: Final = lib.SS_TOO_LONG
AGAIN: Final = lib.SS_AGAIN


def _events() -> Iterator[str]:
    number = 0
    while name := lib.ss_verify_event(number):
        yield ffi.string(name).decode("ascii")
        number += 1


#: Number of an event in a record; 0 stands for any other.
EVENTS: Final = {name: number for number, name in enumerate(_events()) if name}

#: More than the segments of a ledger will hold; the table needs about 300 bytes for each.
CHAINS_MAX = 1 << 20
#: Steps of keys over records that are not there: some minutes.
STEPS_MAX = 1 << 30
#: Between two of these, Python looks for signals.
STEPS_ONCE = 1 << 20
#: Bytes that are read at once, and records that fit into them unless they are very short.
CHUNK, ROOM = 1 << 20, 4096
NOWHERE = 0xFFFFFFFF

_BYTES = ffi.typeof("uint8_t[]")
_UNPACK = struct.Struct("=QQQqIIHHHH16s16s16s32s")
SIZE: Final = _UNPACK.size


class Record(NamedTuple):
    """struct ss_verify_record of _verify.c."""

    at: int
    line: int
    n: int
    t: int
    size: int
    place: int
    verdict: int
    flags: int
    event: int
    unused: int
    id: bytes
    sid: bytes
    child: bytes
    hash: bytes

    @property
    def chain(self) -> str | None:
        """The chain's name, as far as it could be read."""
        return name_of(self.id) if self.flags & HAS_NUMBER else None


def name_of(chain: bytes) -> str:
    """Return a UUID as records have it."""
    h = chain.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def id_of(name: str) -> bytes | None:
    """Return the bytes of a UUID in exactly that form; None for anything else."""
    try:
        made = bytes.fromhex(name.replace("-", ""))
    except ValueError:
        return None
    return made if len(made) == 16 and name_of(made) == name else None


class Standing(NamedTuple):
    """Where a chain stands in the table."""

    next: int
    expected: int | None
    found: int
    t: int
    is_keyed: bool
    is_compared: bool
    is_slot_forged: bool
    last: tuple[int, int, int]
    before: tuple[int, int, int]


class Scanner:
    """The chains of a ledger, and what is thought of each line. Close it: it has keys."""

    def __init__(self, *, only_read: bool = False) -> None:
        """With ``only_read`` chains do not matter: each record fits that is one by its form."""
        self.steps_left = STEPS_MAX
        self._seed = struct.unpack("=QQ", os.urandom(16))
        self._records = ffi.new("struct ss_verify_record[]", ROOM)
        self._view = memoryview(ffi.buffer(self._records))
        self._table, self._keep = self._new(1 if only_read else 256)
        self._table.only_read = only_read

    def __enter__(self) -> Scanner:
        """Return the scanner."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Wipe the keys."""
        lib.ss_verify_wipe(self._table)

    def _new(self, room: int) -> tuple[Any, Any]:
        table = ffi.new("struct ss_verify *")
        keep = ffi.new("struct ss_verify_chain[]", room), ffi.new("uint32_t[]", 2 * room)
        table.chains, table.index = keep
        table.room, table.mask = room, 2 * room - 1
        table.seed[0], table.seed[1] = self._seed
        return table, keep

    def _grow(self) -> None:
        """Make room. Raises AuditError when there are too many chains."""
        room = 2 * self._table.room
        if room > CHAINS_MAX:
            raise AuditError(errno.E2BIG, f"cannot verify more than {CHAINS_MAX} chains at once")
        table, keep = self._new(room)
        lib.ss_verify_move(table, self._table)
        self._table, self._keep = table, keep

    def _room(self) -> Any:
        if self._table.used == self._table.room:
            self._grow()
        return self._table

    # -- chains

    def expect(self, chain: bytes, records: int, seal: bytes) -> bool:
        """Tell what the state file says of a chain; False when it was told before."""
        return lib.ss_verify_expect(self._room(), chain, records, seal) >= 0

    def open(self, chain: bytes, key: bytes | None) -> int:
        """Give a chain its key, or none; return its place."""
        return lib.ss_verify_open(self._room(), chain, ffi.NULL if key is None else key)

    def reach(self, place: int, n: int) -> bool:
        """Go on to record ``n`` of a chain without those before; False, nothing done, if that is too far."""
        chain = self._table.chains[place]
        if chain.flags & lib.SS_CHAIN_KEYED and not self.may_go(n - chain.next):
            return False
        while lib.ss_verify_reach(self._table, place, n, STEPS_ONCE):
            pass
        return True

    def may_go(self, steps: int) -> bool:
        """Take so many steps of keys from those that are left; False, and none, where they are too many."""
        if steps > self.steps_left:
            return False
        self.steps_left -= max(0, steps)
        return True

    def keep(self, place: int) -> Any:
        """Return a copy of a chain's place in the table, for :meth:`restore`."""
        return ffi.new("struct ss_verify_chain *", self._table.chains[place])

    def restore(self, place: int, kept: Any) -> None:
        """Put a chain back to where it was."""
        self._table.chains[place] = kept[0]

    def standing(self, place: int) -> Standing:
        """Return where a chain stands."""
        c = self._table.chains[place]
        return Standing(
            c.next,
            c.expected if c.flags & lib.SS_CHAIN_EXPECTED else None,
            c.found,
            c.t,
            bool(c.flags & lib.SS_CHAIN_KEYED),
            bool(c.flags & lib.SS_CHAIN_COMPARED),
            bool(c.flags & lib.SS_CHAIN_SLOT_FORGED),
            (c.last_file, c.last_line, c.last_at),
            (c.before_file, c.before_line, c.before_at),
        )

    def id(self, place: int) -> bytes:
        """Return the id of a chain."""
        return bytes(ffi.buffer(self._table.chains[place].id))

    @property
    def used(self) -> int:
        """How many chains there are."""
        return int(self._table.used)

    # -- lines

    def begin_file(self, number: int) -> None:
        """Another file begins."""
        self._table.file, self._table.at, self._table.line = number, 0, 1

    @property
    def at(self) -> int:
        """Where in the file the next byte is."""
        return int(self._table.at)

    def lines(self, data: Any, *, is_last: bool) -> memoryview:
        """Judge pieces from the beginning of ``data``; return structs for :meth:`record`.

        What they cover is known by :attr:`at`. It stops early behind what the table must be asked about: a
        stranger, a gap, a hash that is wrong.
        """
        while True:
            count = lib.ss_verify_lines(
                self._table, ffi.from_buffer(_BYTES, data), len(data), is_last, self._records, ROOM
            )
            if count or self._table.only_read or self._table.used < self._table.room:
                return self._view[: count * SIZE]
            self._grow()

    def again(self, record: Record) -> None:
        """Go back to a stranger or a gap."""
        self._table.at, self._table.line = record.at, record.line

    def judge_again(self, record: Record, line: bytes) -> Record:
        """Judge a stranger or a gap once more, now that its chain is where it should be."""
        self.again(record)
        data = line if record.flags & NO_NEWLINE else line + b"\n"
        one = ffi.new("struct ss_verify_record *")
        lib.ss_verify_lines(self._room(), ffi.from_buffer(_BYTES, data), len(data), 1, one, 1)
        return Record._make(_UNPACK.unpack(ffi.buffer(one)))

    @staticmethod
    def record(structs: memoryview, number: int) -> Record:
        """Return one of the records that :meth:`lines` has told."""
        return Record._make(_UNPACK.unpack_from(structs, number * SIZE))


def follow(record_key: bytes, steps: int) -> bytes:
    """Return the record key so many records later. Nothing interrupts it: STEPS_ONCE at most."""
    key = ffi.new("uint8_t[]", record_key)
    lib.ss_verify_follow(key, steps)
    return bytes(ffi.buffer(key))


def pieces(scanner: Scanner, number: int, fd: int, size: int) -> Iterator[tuple[memoryview, bytes, int]]:
    """Read a file up to ``size`` and judge it: structs, the bytes that hold the lines, and their offset.

    Whoever gets them may call :meth:`Scanner.again`. A file that became shorter ends early.
    """
    scanner.begin_file(number)
    data, base = b"", 0
    while True:
        end = base + len(data)
        chunk = os.pread(fd, min(CHUNK, size - end), end)
        data += chunk
        is_last = not chunk or end + len(chunk) >= size
        view = memoryview(data)
        while structs := scanner.lines(view[scanner.at - base :], is_last=is_last):
            yield structs, data, base
        if is_last:
            return
        data, base = data[scanner.at - base :], scanner.at


def line_of(record: Record, data: bytes, base: int) -> bytes:
    """Return the bytes of a record that :func:`pieces` has told."""
    return data[record.at - base : record.at - base + record.size]


def records(fd: int, size: int) -> Iterator[tuple[Record, bytes]]:
    """Yield all that are records by their form, with their bytes, whatever their chains are."""
    for record, line in parts(fd, size):
        if record.verdict == FITS:
            yield record, line


def parts(fd: int, size: int) -> Iterator[tuple[Record, bytes]]:
    """Yield records and also what is none."""
    with Scanner(only_read=True) as scanner:
        for structs, data, base in pieces(scanner, 0, fd, size):
            for number in range(len(structs) // SIZE):
                record = Scanner.record(structs, number)
                yield record, line_of(record, data, base)
