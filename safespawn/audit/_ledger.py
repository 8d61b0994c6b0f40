"""The process's ledger: its life around the core in C, which writes the records.

Mode ``require``: a record counts as kept when write(2) has taken all of it, which
survives the death of the process. ``durable``: when fdatasync(2) has returned as well,
which survives the loss of power. ``best_effort``: loss is counted and told, and stops
nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .. import _probe
from .._errors import AuditError
from . import _breakglass, _bypass, _core, _files, _ids, _record, _redaction
from . import keys as keys_of

if TYPE_CHECKING:
    from .mirrors._mirror import Mirror
    from .mirrors._runner import Runner

Mode = Literal["best_effort", "require", "durable"]
MODES = ("best_effort", "require", "durable")
LateFailure = Literal["continue", "kill"]

#: A checkpoint comes after so many records.
CHECKPOINT_RECORDS = 1000
#: Or so many seconds.
CHECKPOINT_SECONDS = 60.0
#: Seconds that closing waits for mirrors that are behind.
MIRROR_GRACE = 2.0
#: Bytes that are put by beyond the end of the file.
RESERVE = 1 << 20

#: Writes one record from C: called with the ledger and room for what came of it; answers an errno.
Native = Callable[[_core.Teller, Any], int]
Make = Callable[[], Mapping[str, Any]]
Describe = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Options:
    """How a ledger is opened; see :func:`safespawn.audit.open`."""

    keys: str | os.PathLike[str] | None = None
    max_bytes: int = 0
    max_seconds: float = 0.0
    append_only: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    late_failure: LateFailure = "continue"
    mirrors: tuple[Mirror, ...] = ()


class Ledger:
    """An open ledger. Made by :func:`safespawn.audit.open`; also a context manager."""

    #: What the opening of a chain tells beside this: set by who knows the guards.
    describe: Describe = dict

    def __init__(self, path: str | os.PathLike[str], mode: Mode, options: Options = Options()) -> None:
        """Open or create ``path``. Raises AuditError."""
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        self.path = os.fspath(path)
        self.mode = mode
        self.options = options
        self._place = os.path.abspath(self.path)
        self._lock = threading.RLock()
        self._attending = threading.Lock()
        self._closed = False
        self._teller: _core.Teller | None = None
        self._broken = 0
        self._segment_began = time.monotonic()
        self._heir = _core.new_heir()
        self._runner: Runner | None = None
        self._early: list[tuple[str, Mapping[str, Any]]] = []
        self._begin()
        _open_ledgers.add(self)

    # -------------------------------------------------------------- opening

    def _begin(self) -> None:
        keys = keys_of.find(self.options.keys)
        opened: list[int] = []
        try:
            self.redaction = keys.redaction() if keys else _redaction.own_key()
            opened.append(_files.open_segment(self._place, strict=self.mode != "best_effort"))
            if keys:
                opened.append(_open_state(self._place + ".state"))
            self._open_core(opened, keys)
        except BaseException as problem:
            for fd in opened:
                os.close(fd)
            if isinstance(problem, OSError):
                raise self._error(problem) from problem
            raise
        finally:
            if keys:
                keys.close()
        try:
            self._set_append_only()
            self._mirror()
            self._opened()
            _redaction.use_key(self.redaction)
        except BaseException as problem:
            self._end()
            if isinstance(problem, OSError):
                raise self._error(problem) from problem
            raise

    def _mirror(self) -> None:
        if not self.options.mirrors:
            return
        # Here, because most ledgers have none.
        from .mirrors._runner import Runner  # noqa: PLC0415

        self._runner = Runner(
            self.options.mirrors,
            lambda: _core.Feed(self._core),
            self._tell,
            on_idle=lambda: self.checkpoint("idle"),
            idle_seconds=self.options.checkpoint_seconds or CHECKPOINT_SECONDS,
        )

    def _open_core(self, opened: list[int], keys: keys_of.Keys | None) -> None:
        self._chain = _ids.uuid7()
        setup = _core.new_setup(
            opened[0],
            opened[1] if keys else -1,
            chain=self._chain,
            mode=self.mode,
            boot=_probe.boot_id(),
            reserve=RESERVE,
            limit=self.options.max_bytes,
            records=CHECKPOINT_RECORDS,
            seconds=self.options.checkpoint_seconds,
        )
        if keys is None:
            self._core = _core.Core(setup)
        else:
            self._register(keys, _core.origin_of(setup), lambda: setattr(self, "_core", _core.Core(setup)))
        self._fd, self._is_keyed = opened[0], keys is not None
        self._home = _files.identity(os.path.dirname(self._place))
        opened.clear()  # the core's from here on
        self._due: dict[str, Any] | None = self._opening(None, _origin(setup.origin))

    def _register(self, keys: keys_of.Keys, origin: Any, claim: Callable[[], None]) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(keys.opening(self._chain, self._place, origin))
            claim()

    def _opening(self, parent: str | None, keys: dict[str, Any] | None) -> dict[str, Any]:
        """Return what record 0 of a chain tells, beside who writes it."""
        config = {
            "reserve": RESERVE if self._core.counts().reserves else 0,
            "max_bytes": self.options.max_bytes,
            "max_seconds": int(self.options.max_seconds),
            "append_only": self.options.append_only,
            "late_failure": self.options.late_failure,
            "mirrors": [mirror.name for mirror in self.options.mirrors],
            "redaction": self.redaction.label,
        }
        return {"library": _version(), "parent": parent, "keys": keys, "config": config}

    def _opened(self) -> None:
        error = self._open_chain()
        if not error and self.mode == "durable":
            error = self._core.flush()
            self._flush_directory()
        if error:
            raise OSError(-error, os.strerror(-error))

    def _open_chain(self) -> int:
        """Write record 0, unless another thread was faster."""
        with self._lock:
            if self._due is None:
                return 0
            if self._runner is not None:  # in a forked child its threads are gone
                self._runner.start()
            who = _probe.who(_probe.look().credentials)
            opening = {"who": who, **self._due, **self.describe()}
            error = self._core.append("chain.open", None, _record.members(opening), 0, _core.new_kept())
            if not error:
                self._due = None
                while self._early:
                    self._append_own(*self._early.pop(0))
            return error

    def _tell(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write what a mirror has to tell; not before the chain is opened."""
        with self._lock:
            if self._due is not None:
                self._early.append((event, fields))
                return
        self._append_own(event, fields)

    def _flush_directory(self) -> None:
        """A new file is as durable as its directory entry: fsync(2)."""
        fd = os.open(os.path.dirname(self._place), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _set_append_only(self) -> None:
        if self.options.append_only:
            _files.set_append_only(self._fd, on=True)

    # -------------------------------------------------------------- closing

    def close(self) -> None:
        """Write the closing record and close the file; doing it twice is no error."""
        with self._lock:
            if self._closed:
                return
            if self._due is None:
                self._append_own("chain.close", {**self._standing()}, _core.AGGREGATE | _core.CLOSES)
                if self.mode == "durable":
                    self._core.flush()
            self._closed = True
        self._end()  # without the lock: a mirror's thread may want it

    def _end(self) -> None:
        try:
            if self._runner is not None:
                self._runner.stop(MIRROR_GRACE)
        finally:
            self._core.close()

    def __enter__(self) -> Ledger:
        """Return the ledger."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Close it."""
        self.close()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def lost(self) -> int:
        """How many records were lost since the last one that tells of it."""
        return self._core.counts().lost

    # -------------------------------------------------------------- records

    def append(
        self,
        event: str,
        sid: str | None,
        make: Make,
        *,
        gate: bool = False,
        settles: int = 0,
        native: Native | None = None,
    ) -> bool | None:
        """Write one record: True if it was kept, False if it was lost, None if the ledger was closed.

        ``gate``: what it announces has not happened yet, and must not when it cannot be
        written: AuditError, unless the mode is ``best_effort``. Without ``gate`` nothing is
        raised: the loss is counted, and told by the next record that can be written.
        ``settles``: how many of the two records that an intent books this one is worth.
        ``native`` writes it straight from C; what ``make`` returns is written where that cannot.
        """
        kept = _core.new_kept()
        flags = (0, _core.FREES, _core.FREES_TWO)[settles]
        if gate:
            flags |= _core.BOOKS | (_core.FLUSH if self.mode == "durable" else 0)
        error = self._write(event, sid, make, flags, native, kept)
        if kept.flags and not error:
            self._attend(kept.flags)
        if error == -errno.ESHUTDOWN:
            return None
        if error and gate and not self._breaks_glass(event, sid, -error):
            self.refuse(-error)
        return not error

    def _breaks_glass(self, event: str, sid: str | None, number: int) -> bool:
        """Whether the administrator lets it go on without a record; that is told wherever it can be."""
        reason = None if self.mode == "best_effort" else _breakglass.reason()
        if reason is None:
            return False
        self._broken += 1
        why = f"{event} was not kept: {os.strerror(number)}"
        told = {"reason": _record.path(os.fsencode(reason)), "why": why, "of": sid}
        self._append_own("breakglass", told)  # in the reserve, if there is one
        _breakglass.tell(f"breakglass: {why}, spawn {sid}; reason given: {reason}")
        return True

    def refuse(self, number: int) -> None:
        """Raise AuditError because a record could not be kept, unless the mode is ``best_effort``."""
        if self.mode != "best_effort":
            raise self._error(OSError(number, _WHY.get(number) or os.strerror(number)))

    def _write(
        self, event: str, sid: str | None, make: Make, flags: int, native: Native | None, kept: Any
    ) -> int:
        error = 0
        for _ in range(3):  # each of the remedies helps once
            if self._due is not None and (error := self._open_chain()):
                break
            error = -errno.EMSGSIZE if native is None else native(self._teller or self._make_teller(), kept)
            if error == -errno.EMSGSIZE:
                error = self._core.append(event, sid, _record.members(make()), flags, kept)
            if not error:
                return 0
            if kept.flags & _core.UNFLUSHED:
                return self._flush_elsewhere(error)
            if not self._remedied(error):
                break
        if self._due is not None or error in (-errno.ESTALE, -errno.ECHILD):
            self._core.lose()  # the core has not counted it: there might have been a remedy
        return error

    def _remedied(self, error: int) -> bool:
        """Do what can be done about a failure; whether the record is to be tried again."""
        if error == -errno.ECHILD:
            return self._begin_anew()
        if error == -errno.ESTALE:  # deleted: nobody would read what we write there
            return self._follow()
        return False

    def _flush_elsewhere(self, error: int) -> int:
        """The disk has failed under a record that is in the file: go on in another segment.

        There the core writes again what the disk may have lost. Answers 0 or an errno.
        """
        with self._lock:
            if self._core.counts().poisoned and not self._leave_segment("fdatasync failed"):
                self._core.unbook()
                return error
        if error := self._core.flush():
            self._core.unbook()
        return error

    def _append_own(self, event: str, fields: Mapping[str, Any], flags: int = 0) -> int:
        return self._core.append(event, None, _record.members(fields), flags, _core.new_kept())

    def _error(self, problem: OSError) -> AuditError:
        if isinstance(problem, AuditError):
            return problem
        told = AuditError(problem.errno, f"the record was not written: {problem.strerror}", self.path)
        told.guard = "intent-first"
        return told

    def _make_teller(self) -> _core.Teller:
        process = _record.members(_probe.process()) + b","
        self._teller = _core.teller(self._core, process, self.redaction.label, self.redaction.key)
        return self._teller

    # -------------------------------------------------------------- checkpoints and segments

    def _standing(self) -> dict[str, Any]:
        counts = self._core.counts()
        broken = {"breakglass": self._broken} if self._broken else {}
        mirrors = {"mirrors": self._runner.counts()} if self._runner is not None else {}
        past = {"bypass": seen} if (seen := _bypass.counts()) else {}
        return {"counts": counts.events, "lost": counts.lost, **past, **mirrors, **broken}

    def _attend(self, flags: int) -> None:
        """Do what the core says is due. Whoever comes meanwhile leaves it to the one who is at it."""
        if not self._attending.acquire(blocking=False):
            return
        try:
            if flags & _core.SHRUNK:
                self._append_own("audit.degraded", {"lost": 0, "why": "somebody has cut the file"})
            if flags & _core.FULL or self._is_old():
                self.rotate()
            elif flags & (_core.MANY | _core.LATE):
                self.checkpoint("count" if flags & _core.MANY else "time")
        finally:
            self._attending.release()

    def checkpoint(self, why: str = "asked") -> None:
        """Write a checkpoint: how many records there are, what was lost, and the aggregate."""
        if not self._is_at_place():
            self._follow()
        flags = _core.AGGREGATE | (_core.FLUSH if self.mode == "durable" else 0)
        self._append_own("checkpoint", {"why": why, **self._standing()}, flags)

    def flush(self) -> None:
        """Wait until the disk has every record. Raises AuditError."""
        if error := self._core.flush():
            raise self._error(OSError(-error, os.strerror(-error)))

    def rotate(self) -> bool:
        """Give the segment that is written the next number, and go on in a new one.

        False if that cannot be done (after a drop of privileges, say): the old one is written on.
        """
        return self._leave_segment(None)

    def _is_old(self) -> bool:
        limit = self.options.max_seconds
        return limit > 0 and time.monotonic() - self._segment_began >= limit

    def _is_home(self) -> bool:
        """Whether our path still means what it did: after chroot(2) it may mean another directory."""
        try:
            return self._home == _files.identity(os.path.dirname(self._place))
        except OSError:
            return False

    def _is_at_place(self) -> bool:
        return _files.is_at(self._place, self._fd)

    def _leave_segment(self, why: str | None) -> bool:
        with self._lock:
            try:
                with _held(self._place, self._fd) as is_ours:
                    if is_ours:  # else another process has done it
                        self._rename()
            except OSError as problem:
                self._append_own("audit.degraded", {"lost": 0, "why": f"no new segment: {problem.strerror}"})
                return False
            return self._follow("segment" if why is None else why)

    def _rename(self) -> None:
        number = max(_files.numbers(self._place), default=0) + 1
        if self.options.append_only:
            _files.set_append_only(self._fd, on=False)
        os.rename(self._place, f"{self._place}.{number}")
        if self.options.append_only:
            _files.set_append_only(self._fd, on=True)

    def _follow(self, why: str = "segment") -> bool:
        """Go on in the file that is at our place now, or in a new one."""
        with self._lock:
            try:
                if not self._is_home():
                    return False
                fd = _files.open_segment(self._place, strict=self.mode != "best_effort")
            except AuditError:
                return False
            if self._core.move(fd):
                return False
            self._fd, self._segment_began = fd, time.monotonic()
            with contextlib.suppress(OSError):
                self._set_append_only()
            with contextlib.suppress(OSError):
                if self.mode == "durable":
                    self._flush_directory()
            self._append_own("checkpoint", {"why": why, **self._standing()}, _core.AGGREGATE)
            return True

    # -------------------------------------------------------------- fork

    def _begin_anew(self) -> bool:
        """Begin a chain in a process that was forked past Python's hooks: the keys stayed behind."""
        with self._lock:
            _ids.reseed()
            self._teller = None
            parent, self._chain = self._chain, _ids.uuid7()
            origin = _core.new_origin(self._chain)
            try:
                keys = keys_of.find(self.options.keys) if self._is_keyed else None
                if keys is None and self._is_keyed:
                    return False
                error = self._claim_anew(keys, origin)
            except OSError:
                return False
            if error not in (0, -errno.EBUSY):
                return False
            if not error:
                self._due = self._opening(parent, _origin(origin))
            return True

    def _claim_anew(self, keys: keys_of.Keys | None, origin: Any) -> int:
        answer: list[int] = []
        if keys is None:
            return self._core.inherit(origin, claim=False)
        try:
            self._register(keys, origin, lambda: answer.append(self._core.inherit(origin, claim=True)))
        finally:
            keys.close()
        return answer[0]

    def _before_fork(self) -> None:
        if not self._closed:
            self._heir.origin.chain = _ids.uuid7().encode("ascii")
            self._core.fork(self._heir)

    def _after_fork_here(self) -> None:
        self._core.forked(self._heir)

    def _after_fork_there(self) -> None:
        """Begin the child's chain. Its first record is written with its first spawn."""
        self._lock, self._attending = threading.RLock(), threading.Lock()
        self._teller = None
        if self._runner is not None:
            self._runner.after_fork()
        heir, parent = self._heir, self._chain
        if self._closed or not heir.held:
            return
        origin = _core.origin_of(heir)
        chain = _core.chain_of(origin)
        keys = {"parent": parent, "n": heir.n} if origin.keyed else None
        if self._core.inherit(origin, claim=False) == 0:
            self._chain = chain
            self._due = self._opening(parent, keys)


_WHY = {
    errno.EBADF: "somebody closed the ledger's descriptor",
    errno.ESTALE: "somebody deleted the ledger, and it cannot be made anew",
    errno.ECHILD: "this process was forked past os.fork, and the keys are out of its reach",
    errno.ESHUTDOWN: "the process is ending, the ledger is closed",
}


def _origin(origin: Any) -> dict[str, Any] | None:
    return {"epoch": origin.epoch} if origin.keyed else None


@contextlib.contextmanager
def _held(path: str, ours: int) -> Iterator[bool]:
    """Keep other processes from rotating; whether ``path`` is still the file that we write."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody is at it: we follow at the next checkpoint
            yield False
            return
        yield _files.is_at(path, ours)
    finally:
        os.close(fd)


def _open_state(path: str) -> int:
    """Open or create the state file; its first unit is there when this returns. Raises AuditError."""
    fd = _files.open_beside(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            head = os.pread(fd, 8, 0)
            if not head:
                os.pwrite(fd, b"SSSTATE1" + bytes(120), 0)
            elif head != b"SSSTATE1":
                raise AuditError(errno.EEXIST, "the file is no state of a ledger", path)
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
    except BaseException:
        os.close(fd)
        raise
    return fd


_open_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _each(verb: Callable[[Ledger], None]) -> Callable[[], None]:
    def call() -> None:
        for ledger in list(_open_ledgers):
            verb(ledger)

    return call


os.register_at_fork(
    before=_each(Ledger._before_fork),  # noqa: SLF001 - of this module
    after_in_parent=_each(Ledger._after_fork_here),  # noqa: SLF001
    after_in_child=_each(Ledger._after_fork_there),  # noqa: SLF001
)


def _version() -> str:
    # Here, because it takes as long to import as all of ours.
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("safespawn")
    except PackageNotFoundError:  # run from a source tree
        return "0+unknown"
