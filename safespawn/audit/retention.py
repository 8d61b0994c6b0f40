"""Deleting old segments of a ledger, so that the verifier knows them from those that were stolen."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from io import BufferedReader
from typing import Any, NamedTuple

from .. import _probe
from .._errors import AuditError
from . import _fields, _files, _ids, _record, _slots
from ._ledger import Ledger, Options
from ._lines import LINE_MAX, START
from .keys import find

#: Of so many chains one record tells: each takes up to 250 bytes of 8000.
HEADS = 25
#: Chains that a ledger may have had: no verifier takes more (_verify_scan.CHAINS_MAX).
CHAINS_MAX = 1 << 20
#: Bytes that are read as one line: a hundred records that killed processes have left on it.
LINE_BYTES = 1 << 20

_CHAIN = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGEST = re.compile("[0-9a-f]{64}")


def retire(
    path: str | os.PathLike[str], *, keep: int, keys: str | os.PathLike[str] | None = None
) -> list[str]:
    """Delete the oldest segments until ``keep`` of them are left beside the one that is written.

    Each gets a ``segment.retired`` record with its digest and the last record of every chain in it,
    on the disk before the file goes, in a chain that is opened for nothing else. Returns the names of the
    files. Raises ValueError for a ``keep`` below 1: the number of the last segment is what the next one
    counts from, and none is given out twice. AuditError when the record cannot be kept, or of more than
    CHAINS_MAX chains, OSError when a file cannot be read or deleted.

    Chains of which nothing is left then, and nothing will come, give their slots in the state file back.
    """
    if keep < 1:
        raise ValueError(f"keep must be 1 or more, not {keep!r}")
    where = _files.place_of(os.fspath(path))
    numbers = _files.numbers(where)
    names = [f"{where}.{number}" for number in numbers[: max(0, len(numbers) - keep)]]
    if not names:
        return []
    if os.path.exists(where + ".state") and not _has_keys(keys):
        raise AuditError(
            errno.ENOKEY, "the ledger has keys: without them nothing vouches for what is deleted", where
        )
    gone = _Heads()
    # At the limit of chains this must still be possible: it is the way back.
    with _Retiring(where, "durable", Options(keys, chains=_slots.MOST + _slots.SPARE)) as ledger:
        for name in names:
            with _opened(name) as file:
                size = _tell(ledger, name, file, gone)
                _delete(name, file.fileno())
                # A process that had not followed yet may have written on; now it finds the file deleted.
                if os.fstat(file.fileno()).st_size != size:
                    _tell(ledger, name, file, gone)
        ledger.give_back(gone)
    return names


class _Retiring(Ledger):
    """A ledger whose chain may tell of retired segments, because its record 0 says so.

    Who gets hold of the keys of another chain later cannot write such a record 0. And it writes on in one
    file: record 0 must not go with an older segment while what it vouches for stays.
    """

    def over(self, gone: _Heads) -> set[str]:
        """Return the chains whose records are all in segments that are retired, and that end there.

        One whose slot tells of more records is not over: they are still here, or were cut off.
        """
        if (state := self._core.counts().state) < 0:
            return set()
        slots = (_slots.slot(unit) for _, data in _slots.pieces(state) for _, unit in _slots.units(data))
        return {name for name in map(gone.over, slots) if name}

    def give_back(self, gone: _Heads) -> None:
        """Empty the slots of those chains that were told to be over: nothing else may lack its slot."""
        if self._core.counts().state >= 0:
            with _files.open_beside(self._place + ".state") as file:
                _slots.give_back(file.fd, lambda slot: gone.has_ended(gone.over(slot)), file.punch)

    def _opening(self) -> dict[str, Any]:
        return {**super()._opening(), "retires": _record.path(os.fsencode(self._told))}

    def _leave_segment(self, why: str, *, is_needed: bool = False) -> bool:  # noqa: ARG002 - of the base
        return False

    def _follow(self, why: str = "segment") -> bool:  # noqa: ARG002 - of the base
        return False


def _opened(name: str) -> BufferedReader:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = open(name, "rb", opener=lambda path, _: os.open(path, flags))  # noqa: SIM115 - for the caller
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise AuditError(errno.EINVAL, "a segment must be a regular file", name)
    return file


def _tell(ledger: _Retiring, name: str, file: BufferedReader, gone: _Heads) -> int:
    """Write what a segment holds, to the disk and into ``gone``; return how many bytes that is about.

    Not those that were told before: else what older records tell would be written once for each segment
    that has it.
    """
    size = 0
    for told in _summaries(ledger, name, file, gone):
        if not ledger.append("segment.retired", None, told.copy):
            raise AuditError(None, "the record of a retired segment was not kept", name)
        size = told["bytes"]
    ledger.flush()
    return size


def _has_keys(keys: str | os.PathLike[str] | None) -> bool:
    found = find(keys)
    if found is not None:
        found.close()
    return found is not None


def _summaries(ledger: _Retiring, name: str, file: BufferedReader, gone: _Heads) -> list[dict[str, Any]]:
    """Return what the records about a segment tell: each has as many heads as fit into it.

    Heads that are in ``gone`` are left out, and the others added to them.
    """
    digest, heads, size = hashlib.sha256(), _Heads(), 0
    file.seek(0)
    while line := file.readline(LINE_BYTES):
        digest.update(line)
        size += len(line)
        # A process may have written on behind a torn line. No string has such a start: quotes are escaped.
        for part in line.rstrip(b"\n").split(START)[1:]:
            heads.add(START + part)
    whole = {
        "segment": _record.path(os.fsencode(os.path.basename(name))),
        "sha256": digest.hexdigest(),
        "bytes": size,
    }
    items = [(chain, head) for chain, head in heads.known.items() if gone.known.get(chain) != head]
    gone.take(heads)
    over = ledger.over(gone) | {chain for chain, _ in items if gone.has_ended(chain)}
    gone.ends.update((chain, head[0]) for chain, head in items if chain in over)
    parts = [items[at : at + HEADS] for at in range(0, len(items), HEADS)] or [[]]
    return [
        {**whole, "heads": dict(part), "over": [chain for chain, _ in part if chain in over]}
        for part in parts
    ]


class _Heads:
    """The last record of every chain: number, hash, and where the keys of the chain come from.

    With those that records about older segments tell: such a record goes with the segment that it is in,
    and what it accounts for would be missed. And with the keys, because ``chain.open`` goes too, and
    nothing else tells where those of a forked child come from.
    """

    def __init__(self) -> None:
        self.known: dict[str, list[Any]] = {}
        self.lives: dict[str, _Life] = {}
        #: Of chains that other records tell of: when those were written, and in which boot. That is later.
        self.later: dict[str, _Life] = {}
        #: Chains of which a record says that nothing comes behind the record with that number.
        self.ends: dict[str, int] = {}

    def take(self, younger: _Heads) -> None:
        """Add what another has found."""
        for chain, head in younger.known.items():
            self._put(chain, *head)
        self.ends.update(younger.ends)
        self.later.update(younger.later)
        for chain, life in younger.lives.items():
            self._lived(chain, life)

    def has_ended(self, chain: str | None) -> bool:
        """Whether a record says that the last one that we know is the last there will be."""
        return chain is not None and self.ends.get(chain) == self.known[chain][0]

    def over(self, slot: _slots.Slot) -> str | None:
        """Return the chain of a slot if these are its last records, and its process can write no more.

        Seen now, or by an earlier retirement that was killed before it had given the slot back: how the
        chain began is not here any more then.
        """
        chain = _ids.text(slot.chain)
        head = self.known.get(chain)
        if head is None or slot.records > head[0] + 1:
            return None
        return chain if slot.is_closed or self.has_ended(chain) or self.is_dead(chain) else None

    def is_dead(self, chain: str) -> bool:
        """Whether its process is seen to be gone. Where that cannot be told it is not.

        Another boot id is not enough: containers may have their own. But who wrote before this kernel was
        booted does not run on it.
        """
        here, life = _probe.boot_id(), self.lives.get(chain) or self.later.get(chain)
        if not here or life is None or not life.boot:
            return False
        if life.boot != here:
            return life.last_ns is not None and life.last_ns < _probe.booted_ns()
        return _probe.is_gone(life.pid, life.pid_ns)

    def _lived(self, chain: str, life: _Life) -> None:
        before = self.lives.get(chain)
        if before is not None and life.pid is None:
            life = life._replace(pid=before.pid, pid_ns=before.pid_ns)
        self.lives[chain] = life

    def add(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            chain, number, event = record["c"], record["n"], record["ev"]
            older = record["heads"].items() if event == "segment.retired" else ()
            older = [(name, *head[:2], *map(_keys, head[2:3])) for name, head in older]
            over = set(record.get("over", ()) if older else ())
            life = _life(record)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return  # part of a line: no record
        if len(line) >= LINE_MAX or not _is_head(chain, number):
            return
        for head in older:
            if not _is_head(*head[:3]):
                continue
            self._put(*head)
            self.later[head[0]] = life
            if head[0] in over:
                self.ends[head[0]] = head[1]
        self._lived(chain, life)
        self._put(
            chain,
            number,
            hashlib.sha256(line).hexdigest(),
            *([_keys(record.get("keys"))] if event == "chain.open" else []),
        )

    def _put(self, chain: str, number: int, digest: str, *keys: Any) -> None:
        if chain not in self.known and len(self.known) >= CHAINS_MAX:
            raise AuditError(errno.E2BIG, f"more than {CHAINS_MAX} chains to be told of: begin a new ledger")
        number_then, digest_then, *keys_then = self.known.get(chain, [-1, ""])
        newest = [number, digest] if number >= number_then else [number_then, digest_then]
        self.known[chain] = [*newest, *(keys or keys_then)]


def _is_head(chain: Any, number: Any, digest: Any = "0" * 64) -> bool:
    """Whether these are what they are called: anybody may have written them, and ours must have room."""
    is_number = type(number) is int and 0 <= number < 1 << 64
    return is_number and all(
        isinstance(text, str) and form.fullmatch(text) for form, text in ((_CHAIN, chain), (_DIGEST, digest))
    )


def _keys(told: Any) -> dict[str, Any] | None:
    """Return where the keys of a chain come from, without whatever else may stand there."""
    parts = _fields.group(told)
    kept: dict[str, Any] = {name: _fields.number(parts[name]) for name in ("epoch", "n") if name in parts}
    if _is_head(parts.get("parent"), 0):
        kept["parent"] = parts["parent"]
    return kept or None


class _Life(NamedTuple):
    """What is known of the process of a chain: its boot, when it wrote, its pid and in which namespace."""

    boot: str | None
    last_ns: int | None
    pid: int | None
    pid_ns: int | None


def _life(record: dict[str, Any]) -> _Life:
    """Return what a record tells; the process only where it is ``chain.open``."""
    who = _fields.group(record.get("who") if record["ev"] == "chain.open" else None)
    boot, last_ns = _fields.string(record.get("boot")), _fields.number(record.get("t"))
    return _Life(boot, last_ns, _fields.number(who.get("pid")), _fields.number(who.get("pid_ns")))


def _delete(name: str, fd: int) -> None:
    with contextlib.suppress(OSError):  # file systems without such a flag
        _files.set_append_only(fd, on=False)
    os.unlink(name)
