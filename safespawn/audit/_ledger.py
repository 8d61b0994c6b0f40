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
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from .. import _probe
from .._descriptors import identity
from .._errors import AuditError
from . import _breakglass, _bypass, _core, _files, _ids, _locks, _record, _redaction, _slots
from . import keys as keys_of

if TYPE_CHECKING:
    from typing_extensions import Self

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
#: Seconds between two new segments, at most, while no segment can be flushed.
PAUSE_MAX = 60
#: Seconds that nobody tries to open a ledger while somebody is at it: a signal handler in the same thread.
OPENING_MAX = 60

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
    #: So many chains may have a slot in the state file.
    chains: int = _slots.MOST

    @property
    def reserve(self) -> int:
        """Bytes to be put by. They stay with the old segment: of small ones that must not be most."""
        return min(RESERVE, self.max_bytes or RESERVE)


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
        self._place = _files.place_of(self.path)
        self._locks: _locks.Locks = {}
        #: Whether close() was called, and whether it is done: both until there is something to close.
        self._closed = self._has_end = True
        self._teller: _core.Teller | None = None
        self._broken = 0
        self._segment_began = time.monotonic()
        self._runner: Runner | None = None
        self._early: list[tuple[str, Mapping[str, Any]]] = []
        self._is_stuck = self._is_held = False
        self._failed_flushes, self._no_segment_before = 0, 0.0
        self._slots, self._is_crowded = _slots.Room(options.chains), False
        #: Why there is none yet, where the glass is broken; how many records it has not had meanwhile.
        self._unopened: AuditError | None = None
        self._untold, self._tries, self._no_try_before = 0, 0, 0.0
        self._mirror()  # raises for what is none, also where the ledger is opened later
        self._closed = self._has_end = False
        try:
            self._begin()
        except BaseException as problem:  # noqa: BLE001 - it is raised again, or told
            self._do_without(problem)
        _open_ledgers.add(self)

    @property
    def _lock(self) -> threading.RLock:
        return _locks.ours(self._locks)

    # -------------------------------------------------------------- opening

    def _begin(self) -> None:
        """Open the file and the chain. What is seen from outside changes with the last step only."""
        strict = self.mode != "best_effort"
        self._runner = None
        # One name for the registry, whichever it was opened by: as the links are now.
        self._told = os.path.realpath(self._place)
        try:
            with contextlib.ExitStack() as stack:
                keys = keys_of.find(self.options.keys)
                if keys:
                    stack.callback(keys.close)
                self.redaction = keys.redaction() if keys else _redaction.own_key()
                file = stack.enter_context(_files.open_segment(self._place, strict=strict))
                state = self._open_state(stack) if keys else None
                self._home = identity(os.path.dirname(self._place))
                self._core = self._open_core(keys, file, state)
                self._core.keep()
            self._mirror()
            self._opened()
            self._tell_crowd()
            if self._unopened is not None:
                self._tell_absence(self._unopened)
        except OSError as problem:
            if problem.errno is None:
                raise  # a handler's own, a TimeoutError say
            raise self._error(problem) from problem
        told = 0
        while told < self._untold:  # a handler may add to them until it is open
            self._core.lose()
            told += 1
        self._unopened = None

    def _do_without(self, problem: BaseException) -> None:
        """Go on without a ledger if the administrator lets us; else raise."""
        self._closed = self._has_end = True  # whatever interrupts us
        self._abandon()
        opens_late = isinstance(problem, AuditError) and self.mode != "best_effort"
        reason = _breakglass.reason() if opens_late else None
        if reason is None or not isinstance(problem, AuditError):
            raise problem
        self.redaction = _redaction.own_key()
        self._no_try_before = time.monotonic() + 1
        _breakglass.tell(f"breakglass: {problem}; reason given: {reason}")
        self._unopened = problem
        self._closed = self._has_end = False

    def _opens_late(self, unkept: Any = None) -> bool:
        """Whether there is a ledger now. It is tried again at times, whoever broke the glass.

        ``unkept``: what came of a record, which is not in it if not.
        """
        with self._lock:
            now = time.monotonic()
            later = now + OPENING_MAX  # before the look: no handler comes between that and what keeps it away
            if self._unopened is None:
                return True
            if self._closed or now < self._no_try_before:
                return self._miss(unkept)  # here, where nobody opens it meanwhile, who tells of them
            self._no_try_before = later
            self._tries += 1
            try:
                self._begin()
            except BaseException as problem:
                if self._unopened is None:
                    raise  # by a handler, when it was open already
                self._no_try_before = time.monotonic() + min(2**self._tries, PAUSE_MAX)
                self._abandon()
                if not isinstance(problem, AuditError):
                    raise
                self._unopened = problem
                return self._miss(unkept)
            if self._closed:  # a handler has closed it meanwhile
                self._write_end()
                self._has_end = True
                self._end()
            return True

    def _miss(self, unkept: Any) -> bool:
        """Count a record for which there is no ledger yet."""
        if unkept is not None:
            self._untold += 1
            unkept.told = _core.LOST
        return False

    def _tell_absence(self, why: AuditError) -> None:
        """Tell why there was no ledger until now."""
        _redaction.use_key(self.redaction)
        reason = _record.path(os.fsencode(_breakglass.reason() or ""))
        self._append_own("breakglass", {"reason": reason, "why": f"not opened: {why}", "of": None})

    def _abandon(self) -> None:
        """Let go of what was begun of an opening."""
        if hasattr(self, "_core"):
            self._end()

    def _is_open(self) -> bool:
        """Whether there is a ledger to write to; one that could not be opened may be opened now."""
        return self._unopened is None or self._opens_late()

    def _unkept(self, event: str, sid: str | None, *, gate: bool) -> bool | None:
        """Raise for a record that there is no ledger for, if what it announces must not happen."""
        unopened = self._unopened
        number = (unopened and unopened.errno) or errno.EIO
        if self._closed:
            return None
        if gate and not self._breaks_glass(event, sid, number):
            self.refuse(number)
        return False

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
            process=_core.process_number,
        )

    def _open_state(self, stack: contextlib.ExitStack) -> tuple[_core.File, _core.File]:
        path = self._place + ".state"
        state = stack.enter_context(_open_state(path))
        self._check_room(state.fd)  # before a slot is taken, and a line of the registry
        return state, stack.enter_context(_files.open_beside(path, os.O_APPEND))

    def _open_core(
        self, keys: keys_of.Keys | None, file: _core.File, state: tuple[_core.File, _core.File] | None
    ) -> _core.Core:
        self._set_append_only(file)
        chain = _ids.uuid7()
        setup = _core.new_setup(
            chain=chain,
            mode=self.mode,
            boot=_probe.boot_id(),
            reserve=self.options.reserve,
            limit=self.options.max_bytes,
            records=CHECKPOINT_RECORDS,
            seconds=self.options.checkpoint_seconds,
        )
        if keys is None:
            return _core.Core(setup, file, state)
        with keys.opening(chain, self._told, _core.origin_of(setup)):
            return _core.Core(setup, file, state)

    def _opening(self) -> dict[str, Any]:
        """Return what record 0 of the chain tells."""
        birth = self._core.birth()
        config = {
            "reserve": self.options.reserve if self._core.counts().reserves else 0,
            "max_bytes": self.options.max_bytes,
            "max_seconds": int(self.options.max_seconds),
            "append_only": self.options.append_only,
            "late_failure": self.options.late_failure,
            "mirrors": [mirror.name for mirror in self.options.mirrors],
            "redaction": self.redaction.label,
        }
        around = {
            name: _record.path(value) if isinstance(value, bytes) else value
            for name, value in _probe.surroundings().items()
        }
        # In which namespace the pid counts: who retires segments looks whether the process is gone.
        who = {**_probe.who(_probe.look().credentials), "pid_ns": _probe.pid_namespace(), **around}
        told = {"library": _version(), "parent": birth.parent, "keys": birth.keys, "config": config}
        return {"who": who, **told, **self.describe()}

    def _opened(self) -> None:
        error = self._open_chain()
        if error == -errno.ESTALE and self._follow():  # another process has rotated and retired it meanwhile
            error = self._open_chain()
        if not error and self.mode == "durable":
            error = self._core.flush()
            _files.flush_directory(os.path.dirname(self._place))
        if error:
            raise OSError(-error, os.strerror(-error))

    def _open_chain(self) -> int:
        """Write record 0, unless another thread was faster. Answers 0 or an errno."""
        with self._lock:
            if self._runner is not None:  # in a forked child its threads are gone
                self._runner.start()
            self._teller = None  # what it says of the process is another's in a forked child
            if not (error := self._lacks_room()):
                error = self._core.append("chain.open", None, _record.members(self._opening()), 0)
            while error in (0, -errno.EISCONN) and self._early:
                self._append_own(*self._early.pop(0))
            return 0 if error == -errno.EISCONN else error

    def _tell(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write what a mirror has to tell; not before the chain is opened."""
        if not self._core.counts().next:
            self._early.append((event, fields))
        else:
            self._append_own(event, fields)

    def _set_append_only(self, file: _core.File) -> None:
        if self.options.append_only and file.fd >= 0:  # closed, in a child that was forked meanwhile
            _files.set_append_only(file.fd, on=True)

    def _check_room(self, state: int) -> None:
        """Refuse a chain that no verifier could check with the others. Raises AuditError."""
        if self._slots.used(state) >= self._slots.most:
            raise self._error(OSError(errno.EUSERS, os.strerror(errno.EUSERS)))

    def _lacks_room(self) -> int:
        """Answer an errno when the chain of a forked child, which has no slot yet, finds too many."""
        begins = "parent" in (self._core.birth().keys or ()) and not (counts := self._core.counts()).next
        try:
            if begins and counts.state >= 0:
                self._check_room(counts.state)
        except OSError as problem:
            return -(problem.errno or errno.EIO)
        return 0

    def _tell_crowd(self) -> None:
        """Tell once, before there are too many chains."""
        state = self._core.counts().state
        with contextlib.suppress(OSError):  # the next slot will tell
            if (
                not self._is_crowded
                and state >= 0
                and (n := self._slots.used(state)) >= self._slots.notice_at
            ):
                why = f"{n} of {self._slots.most} chains have a slot in the state file: retire old segments"
                self._is_crowded = not self._append_own("audit.degraded", {"lost": 0, "why": why})

    # -------------------------------------------------------------- closing

    def close(self) -> None:
        """Write the closing record and close the file; doing it twice is no error.

        Raises AuditError in mode ``durable`` when the disk may not have the last records; it is closed then.
        """
        error = 0
        with self._lock:
            self._closed = True  # first: whoever looks must not find one open that takes no record
            if self._unopened is not None:
                return
            if not self._has_end:
                error = self._write_end()
                self._has_end = True  # behind it: whoever was interrupted closes it again
        self._end()  # without the lock, which the threads of mirrors may wait for
        if error:
            why = f"closed, and the disk may not have its last records: {os.strerror(-error)}"
            raise AuditError(-error, why, self.path)

    def _write_end(self) -> int:
        """Write the last record. Answers 0, or why the disk may not have what was kept."""
        flags, error = _core.AGGREGATE | _core.CLOSES, 0
        if self.mode == "durable":
            flags |= _core.FLUSH
            self._no_segment_before = 0.0  # there is no later
            if error := self._core.flush():
                error = self._flush_elsewhere(error)
        told, kept = _record.members(self._standing()), _core.new_kept()
        # Not _append_own: a chain in which nothing was written stays empty.
        answer = self._core.append("chain.close", None, told, flags, kept)
        if answer in (-errno.ECHILD, -errno.ENOTCONN):
            return 0  # a forked child that has written nothing
        # It is flushed with all that came before. When it could not be written, those were flushed or not.
        return answer if not answer or kept.flags & _core.UNFLUSHED else error

    def _end(self) -> None:
        try:
            if self._runner is not None:
                self._runner.stop(MIRROR_GRACE)
        finally:
            self._core.close()

    def __del__(self) -> None:
        """Close one that was forgotten, and warn: its end would look like that of a killed process."""
        if getattr(self, "_has_end", True):
            if hasattr(self, "_core"):
                self._core.let_go()  # a close() that was interrupted behind the last record
            return
        try:
            # A forked child that has written nothing has nothing to forget.
            if not self._closed and self._unopened is None and self._core.counts().next:
                warnings.warn(f"unclosed ledger {self.path!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            self.close()

    def __enter__(self) -> Self:
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
        return self._core.counts().lost if self._unopened is None else self._untold

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
        kept: Any = None,
    ) -> bool | None:
        """Write one record: True if it was kept, False if it was lost, None if the ledger was closed.

        ``gate``: what it announces has not happened yet, and must not when it cannot be
        written: AuditError, unless the mode is ``best_effort``. Without ``gate`` nothing is
        raised: the loss is counted, and told by the next record that can be written.
        ``settles``: how many of the two records this one is worth that ``kept.settling`` has put room by for.
        ``native`` writes it straight from C; what ``make`` returns is written where that cannot.
        ``kept``: :func:`_core.new_kept`, for who must know what came of it when a handler raises.
        """
        kept = kept or _core.new_kept()
        if self._unopened is not None and not self._opens_late(unkept=kept):
            return self._unkept(event, sid, gate=gate)
        flags = (0, _core.FREES, _core.FREES_TWO)[settles]
        if gate:
            flags |= _core.BOOKS | (_core.FLUSH if self.mode == "durable" else 0)
        error = -errno.EMSGSIZE if native is None else native(self._teller or self._make_teller(), kept)
        if error:
            error = self._overcome(error, event, sid, make, flags, native, kept)
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
        if self._unopened is None:
            self._append_own("breakglass", told)  # in the reserve, if there is one
        _breakglass.tell(f"breakglass: {why}, spawn {sid}; reason given: {reason}")
        return True

    def kills_unrecorded(self) -> bool:
        """Whether a program is to be killed whose start is lost: not where the glass is broken."""
        is_asked = self.options.late_failure == "kill"
        return is_asked and (self.mode == "best_effort" or _breakglass.reason() is None)

    def refuse(self, number: int) -> None:
        """Raise AuditError because a record could not be kept, unless the mode is ``best_effort``."""
        if self.mode != "best_effort":
            raise self._error(OSError(number, os.strerror(number)))

    def _overcome(
        self,
        error: int,
        event: str,
        sid: str | None,
        make: Make,
        flags: int,
        native: Native | None,
        kept: Any,
    ) -> int:
        """Write what C has not, for that error: as Python has it, in another file or chain. Answers as C."""
        for left in (3, 2, 1, 0):  # each of the remedies helps once
            if error == -errno.EMSGSIZE:
                try:
                    told = _record.members(make())
                except OSError as problem:
                    if problem.errno is None:
                        raise  # a handler's
                    error = -problem.errno  # what it is to tell cannot be seen
                    break
                error = self._core.append(event, sid, told, flags, kept)
            if error and kept.flags & _core.UNFLUSHED:
                error = self._flush_elsewhere(error)
                return error if flags & _core.BOOKS else 0  # only that must be on the disk by now
            if error not in _REMEDIABLE:
                return error
            if failure := self._remedied(error) if left else error:
                error = failure
                break
            error = -errno.EMSGSIZE if native is None else native(self._teller or self._make_teller(), kept)
        self._core.give_up(flags, kept)
        return error

    def _remedied(self, error: int) -> int:
        """Do what can be done about a failure. Answers 0: the record is to be tried again, or an errno."""
        if error == -errno.ENOTCONN and (error := self._open_chain()) != -errno.ESTALE:
            return error
        if error == -errno.ECHILD:
            return 0 if self._begin_anew() else error
        return 0 if self._follow() else error  # deleted: nobody would read what we write there

    def _flush_elsewhere(self, error: int) -> int:
        """The disk has failed under a record that is in the file: go on in another segment.

        There the core writes again what the disk may have lost. Answers 0 or an errno. While the disk
        goes on failing, a new segment is begun every few seconds only.
        """
        with self._lock:
            if self._core.counts().poisoned:
                if time.monotonic() < self._no_segment_before or not self._leave_segment(
                    "fdatasync failed", is_needed=True
                ):
                    return error
                if error := self._core.flush():
                    self._no_segment_before = time.monotonic() + min(self._failed_flushes, PAUSE_MAX)
                    self._failed_flushes += 1
                    return error
            self._failed_flushes = 0
        return self._core.flush()

    def _append_own(self, event: str, fields: Mapping[str, Any], flags: int = 0) -> int:
        told = _record.members(fields)
        error = self._core.append(event, None, told, flags)
        if error == -errno.ENOTCONN and not (error := self._open_chain()):
            error = self._core.append(event, None, told, flags)
        return error

    def _error(self, problem: OSError) -> AuditError:
        if isinstance(problem, AuditError):
            return problem
        why = _WHY.get(problem.errno or 0) or problem.strerror
        told = AuditError(problem.errno, f"the record was not written: {why}", self.path)
        told.guard = "intent-first"
        return told

    def _make_teller(self) -> _core.Teller:
        process = _record.members(_probe.process()) + b","
        self._teller = _core.Teller(self._core, process, self.redaction.label, self.redaction.key)
        return self._teller

    # -------------------------------------------------------------- checkpoints and segments

    def _standing(self) -> dict[str, Any]:
        counts = self._core.counts()
        broken = {"breakglass": self._broken} if self._broken else {}
        mirrors = {"mirrors": self._runner.counts()} if self._runner is not None else {}
        past = {"bypass": seen} if (seen := _bypass.counts()) else {}
        return {"counts": counts.events, "lost": counts.lost, **past, **mirrors, **broken}

    def _attend(self, flags: int) -> None:
        """Do what the core says is due; it tells one writer only."""
        with self._lock:  # whoever waits here may find that it was done
            is_full = flags & _core.FULL and self._core.counts().size >= self.options.max_bytes
            if is_full and self.rotate():
                return
        if flags & (_core.MANY | _core.LATE):
            if self._is_old() and self.rotate():
                return
            self.checkpoint("count" if flags & _core.MANY else "time")

    def checkpoint(self, why: str = "asked") -> None:
        """Write a checkpoint: how many records there are, what was lost, and the aggregate."""
        if not self._is_open():
            return
        with self._lock:
            self._tell_crowd()
            if not self._core.is_at(self._place) and self._follow():
                return  # that has written one
            flags = _core.AGGREGATE | (_core.FLUSH if self.mode == "durable" else 0)
            self._append_own("checkpoint", {"why": why, **self._standing()}, flags)

    def flush(self) -> None:
        """Wait until the disk has every record. Raises AuditError."""
        if not self._is_open():
            raise self._unopened or self._error(OSError(errno.EIO, os.strerror(errno.EIO)))
        if (error := self._core.flush()) and (error := self._flush_elsewhere(error)):
            raise self._error(OSError(-error, os.strerror(-error)))

    def rotate(self) -> bool:
        """Give the segment that is written the next number, and go on in a new one.

        False if that cannot be done (after a drop of privileges, say, or while another process is at it):
        the old one is written on.
        """
        if not self._is_open():
            return False
        return self._leave_segment("segment")

    def _is_old(self) -> bool:
        limit = self.options.max_seconds
        return limit > 0 and time.monotonic() - self._segment_began >= limit

    def _is_home(self) -> bool:
        """Whether our path still means what it did: after chroot(2) it may mean another directory."""
        try:
            return self._home == identity(os.path.dirname(self._place))
        except OSError:
            return False

    def _leave_segment(self, why: str, *, is_needed: bool = False) -> bool:
        """``is_needed``: go on with another descriptor, also where nobody can rename the segment now."""
        with self._lock:
            was_held, self._is_held = self._is_held, False
            try:
                self._step_aside()
            except BlockingIOError as problem:
                self._is_held = not is_needed
                if was_held and not is_needed:  # the first time somebody may be about to do it for us
                    self._tell_stuck(problem)
                if not is_needed:
                    return False
            except OSError as problem:
                self._tell_stuck(problem)
                return False
            return self._follow(why)

    def _step_aside(self) -> None:
        """Rename our segment, unless another process has. Raises OSError: BlockingIOError if it is at it."""
        with _core.File() as held:
            try:
                held.open(self._place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                held.lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                return
            if self._core.is_at(self._place):
                self._rename(held)

    def _rename(self, held: _core.File) -> None:
        number = max(_files.numbers(self._place), default=0) + 1
        if self.options.append_only:
            _files.set_append_only(held.fd, on=False)
        try:
            held.rename(self._place, f"{self._place}.{number}")
        finally:
            self._set_append_only(held)

    def _tell_stuck(self, problem: OSError) -> None:
        """Tell once that there can be no new segment; it is tried again at times."""
        if not self._is_stuck:
            why = f"no new segment: {problem.strerror}"
            self._is_stuck = not self._append_own("audit.degraded", {"lost": 0, "why": why})

    def _follow(self, why: str = "segment") -> bool:
        """Go on in the file that is at our place now, or in a new one."""
        with self._lock:
            try:
                if not self._is_home():
                    raise OSError(errno.EXDEV, "the path leads to another directory now")
                with _files.open_segment(self._place, strict=self.mode != "best_effort") as file:
                    with contextlib.suppress(OSError):
                        self._set_append_only(file)
                    if error := self._core.move(file):
                        raise OSError(-error, os.strerror(-error))
                if self.mode == "durable":
                    _files.flush_directory(os.path.dirname(self._place))
            except OSError as problem:
                self._tell_stuck(problem)
                return False
            self._is_stuck, self._segment_began = False, time.monotonic()
            self._append_own("checkpoint", {"why": why, **self._standing()}, _core.AGGREGATE)
            return True

    # -------------------------------------------------------------- fork

    def _begin_anew(self) -> bool:
        """Begin a chain in a process that was forked past libc: the keys stayed behind."""
        with self._lock:
            if self._core.is_ours:
                return True  # another thread was faster
            _ids.reseed()
            chain = _ids.uuid7()
            origin = _core.new_origin(chain)
            try:
                if self._core.birth().keys is None:
                    return not self._core.inherit(origin)
                return self._register_anew(chain, origin)
            except BaseException as problem:
                self._core.disown()  # what nobody has registered must not be written
                if isinstance(problem, OSError):
                    return False
                raise

    def _register_anew(self, chain: str, origin: Any) -> bool:
        keys = keys_of.find(self.options.keys)
        if keys is None:
            return False
        with contextlib.closing(keys):
            if (state := self._core.counts().state) >= 0:
                self._check_room(state)
            with keys.opening(chain, self._told, origin):
                if error := self._core.inherit(origin):
                    raise OSError(-error, os.strerror(-error))
        return True

    def _before_fork(self) -> None:
        """A child's chain comes from a record of ours, and none goes before the first."""
        if (
            not self._closed
            and self._unopened is None
            and self._core.is_ours
            and not self._core.counts().next
        ):
            with contextlib.suppress(OSError):  # then the child begins one of its own
                self._open_chain()

    def _after_fork_there(self) -> None:
        """Locks may be held by threads that are not here. The core has begun the child's chain itself."""
        self._broken = self._untold = 0
        self._no_try_before = 0.0  # whoever was at it is not here
        self._early = []  # the parent tells it
        if self._runner is not None:
            self._runner.after_fork()


#: Errors of the core that there is a remedy for. It counts no loss then.
_REMEDIABLE = (-errno.ENOTCONN, -errno.ECHILD, -errno.ESTALE)

_WHY = {
    errno.EBADF: "somebody closed the ledger's descriptor",
    errno.ESTALE: "somebody deleted the ledger, and it cannot be made anew",
    errno.ECHILD: "this process was forked, and it can have no chain: the keys are out of its reach",
    errno.ESHUTDOWN: "the process is ending, the ledger is closed",
    errno.EBADMSG: "somebody cut the state file, or filled it with something else",
    errno.EUSERS: "the state file is full of chains: rotate and retire old segments, or begin another ledger",
}


def _open_state(path: str) -> _core.File:
    """Open or create the state file; its first unit is there when this returns. Raises AuditError."""
    file = _files.open_beside(path)
    try:
        # Without a lock, which a handler could find held by what it interrupts, and others by a forked child
        # that was taken over. Two who write it write the same, and slots are behind it.
        if not _has_head(file, path):
            file.put(_slots.MAGIC.ljust(_slots.UNIT, b"\0"))
    except BaseException:
        file.close()
        raise
    return file


def _has_head(file: _core.File, path: str) -> bool:
    head = os.pread(file.fd, _slots.UNIT, 0)
    if not head.startswith(_slots.MAGIC[: len(head)]):
        raise AuditError(errno.EEXIST, "the file is no state of a ledger", path)
    return len(head) == _slots.UNIT


_open_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _each(verb: Callable[[Ledger], None]) -> Callable[[], None]:
    def call() -> None:
        for ledger in list(_open_ledgers):
            verb(ledger)

    return call


os.register_at_fork(
    before=_each(Ledger._before_fork),  # noqa: SLF001 - of this module
    after_in_child=_each(Ledger._after_fork_there),  # noqa: SLF001
)


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        # Here, because it takes as long to import as all of ours.
        from importlib.metadata import version  # noqa: PLC0415

        return version("safespawn")
    except ImportError:  # run from a source tree, or after chroot(2)
        return "0+unknown"
