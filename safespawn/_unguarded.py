"""Starts with a ``preexec_fn``: by CPython's own fork, because its Python code cannot run in a child of ours.

Nothing but the record and the policy is ours here: intent, outcome and exit are told as for every spawn,
and that ``child-raw-only`` (T-07) does not hold.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from . import _binding, _child, _policy, _spawn, _watched, guards
from ._errors import UnsafeSpawnWarning
from ._spec import Decision, Identity, Request, Verdict
from ._surely import keep

_PREEXEC = Verdict("child-raw-only", "allow", "preexec_fn runs Python in the child, by CPython's own fork")
_REFUSED = Verdict("child-raw-only", "deny", "the policy refuses preexec_fn")
#: Where the two ends of the pipe are in fork_exec's arguments, and the descriptors that are kept.
_PASS_FDS, _ERRPIPE_READ, _ERRPIPE_WRITE = 3, 12, 13
#: Modules between us and who asked.
_BETWEEN = ("safespawn", "subprocess", "asyncio", "concurrent")
#: PF_FORKNOEXEC of a process's flags (proc_pid_stat(5), include/linux/sched.h): it has run no program yet.
_NO_EXEC = 0x40

ADVICE = (
    "preexec_fn runs Python code between fork and exec, which can hang where there are other threads, and is"
    " not guarded: use options instead (start_new_session, process_group, umask, rlimits, user, group,"
    " extra_groups, pdeathsig, nice, sigdefault; safespawn.subprocess has them all)"
)


class Own:
    """A ``preexec_fn`` whose start is told of already, for the seam: once, for one start."""

    def __init__(self, function: Callable[[], Any]) -> None:
        """Stand for that function."""
        self._function = function
        self._is_new = True

    def __call__(self) -> None:
        """Do in the child what was asked for."""
        self._function()

    def take(self) -> bool:
        """Return whether this is the start that it was made for."""
        is_new, self._is_new = self._is_new, False
        return is_new


class _Failed(Exception):
    """The child told that it runs no program: its pid, and what it wrote."""

    def __init__(self, pid: int, data: bytes) -> None:
        super().__init__(pid, data)
        self.pid, self.data = pid, data


def warn(text: str) -> None:
    """Warn whoever asked for the start, past the modules in between."""
    level, frame = 1, sys._getframe()  # noqa: SLF001 - inspect.currentframe is this
    while frame.f_back is not None and _module(frame.f_globals) in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UnsafeSpawnWarning, stacklevel=level)


def warn_of_groups(wanted: Identity | None) -> None:
    """Say that groups stay with a program that is to be somebody else: identity-whole (T-12)."""
    if wanted is not None and guards.keeps_groups(wanted) and os.getresuid() != (wanted.uid,) * 3:
        warn(
            f"user={wanted.uid} leaves groups of ours to the program: give group= and extra_groups= too,"
            " or use safespawn.run, where user= is the whole identity"
        )


def _module(of: dict[str, Any]) -> str:
    return str(of.get("__name__")).partition(".")[0]


def start(
    request: Request,
    run: Callable[[_binding.Slot], None],
    handle: _spawn.Handle[Any],
    kind: type[_child.Child] = _child.Child,
) -> Any:
    """Record, have ``run`` start it and :func:`hold` it, record again. Raises UnsafeSpawn, and as ``run``."""
    warn(ADVICE)
    job = _spawn.begin(request)
    if why := _hindered():
        _spawn.refuse(job, why)
    job.decide(Decision("fork", None, (_PREEXEC,)))
    return _spawn.run_unguarded(job, run, failure, handle, kind)


def _hindered() -> Verdict | None:
    if _policy.refuses_preexec():
        return _REFUSED
    why = _policy.hinders_preexec()
    return (
        None if why is None else Verdict("child-raw-only", "deny", f"the policy leaves no preexec_fn: {why}")
    )


def hold(slot: _binding.Slot, pid: int, *, ran: bool) -> None:
    """Put a child into the slot. ``ran``: it is known to run; else a handler came between, and it may.

    Without a descriptor nobody could wait for it: then it is ended, and OSError raised.
    """
    try:
        slot.raw.pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # reaped by others already
        if not ran:
            return
    except OSError:
        os.kill(pid, signal.SIGKILL)  # it is our child, and not reaped: the number is its own
        os.waitpid(pid, 0)
        raise
    slot.raw.pid = pid
    slot.raw.outcome, slot.raw.stage = _binding.lib.SS_EXEC, _binding.lib.SS_STAGE_EXEC
    if not ran or not _has_run(pid):
        slot.raw.flags |= _binding.lib.SS_UNCONFIRMED


def _has_run(pid: int) -> bool:
    """Whether a child that is not reaped has come to an exec; its pipe closes when it just ends, too."""
    try:
        stat = Path("/proc", str(pid), "stat").read_bytes()
    except OSError:
        return False
    return not int(stat.rpartition(b")")[2].split()[6]) & _NO_EXEC


def start_seam(request: Request, original: Callable[..., int], given: tuple[Any, ...]) -> int:
    """Start for a caller of ``fork_exec``, who learns of a failure by the pipe it gave."""
    try:
        run = partial(_by_pipe, original, given)
        return _watched.start(lambda handle: start(request, run, handle, _watched.Watched))
    except _Failed as failed:
        os.write(given[_ERRPIPE_WRITE], failed.data)  # less than PIPE_BUF, and the pipe is empty
        return failed.pid


def _by_pipe(original: Callable[..., int], given: tuple[Any, ...], slot: _binding.Slot) -> None:
    """Call the original with a pipe of ours, to learn whether the program runs."""
    pids: list[int] = []
    try:
        data = _fork(original, given, pids)
    except BaseException:
        if pids:
            hold(slot, pids[0], ran=False)
        raise
    if data:
        raise _Failed(pids[0], data)
    hold(slot, pids[0], ran=True)


def _fork(original: Callable[..., int], given: tuple[Any, ...], pids: list[int]) -> bytes:
    ends: list[io.FileIO] = []  # objects that own their descriptors: none is lost to a handler
    try:
        ends.extend(map(io.FileIO, chain.from_iterable(map(os.pipe2, (os.O_CLOEXEC,))), ("rb", "wb")))
        lifted = (fcntl.fcntl(ends[1].fileno(), fcntl.F_DUPFD_CLOEXEC, 3),)  # 0 to 2 are overwritten there
        ends.extend(map(io.FileIO, lifted, ("wb",)))
        ends[1].close()
        read, ours = ends[0].fileno(), ends[2].fileno()
        kept = tuple(sorted({*given[_PASS_FDS], ours} - {given[_ERRPIPE_WRITE]}))
        changed = {_PASS_FDS: kept, _ERRPIPE_READ: read, _ERRPIPE_WRITE: ours}
        keep(pids, original, *[changed.get(at, one) for at, one in enumerate(given)])
        ends[2].close()
        return ends[0].readall()  # to the end: when the program runs, or the child has ended
    finally:
        for end in ends:
            end.close()


def failure(problem: BaseException) -> tuple[str, int]:
    """Return stage and errno of a start that raised."""
    if isinstance(problem, _Failed):
        kind, _, rest = problem.data.partition(b":")
        number = int(rest.partition(b":")[0] or b"0", 16) if kind == b"OSError" else 0
        return ("exec" if number else "preexec_fn"), number
    if isinstance(problem, OSError):
        return "exec", problem.errno or errno.EIO
    return "preexec_fn", 0
