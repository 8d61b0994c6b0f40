"""``system`` and ``popen`` as ``os`` has them, without a shell where the command needs none."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from . import _binding, _child, _policy, _probe, _seam, _shell, _spawn
from ._errors import SpawnError
from ._process import Process
from ._spec import PIPE, Exit, Request, Text
from ._surely import surely
from .audit import _bypass

_T = TypeVar("_T")

#: system(3): what the wait tells when the shell itself could not be started.
_NO_SHELL = 127 << 8
#: Options that a policy may fill in and that change what a shell would find.
_OF_PLACE = frozenset(("cwd", "root", "env", "env_policy", "env_allow", "executable"))


def system(command: Text) -> int:
    """Run a command and return how it ended, as ``os.system``: see os.waitstatus_to_exitcode.

    Meanwhile SIGINT and SIGQUIT are ignored in the whole process and SIGCHLD is blocked in this thread, as
    system(3) has it; the command keeps descriptors that are inheritable. What the handler of a signal raises
    is raised when the command has ended. -1 says that somebody else has reaped the child. Raises TypeError
    and ValueError for what is no command, and UnsafeSpawn and AuditError as a spawn does.
    """
    raw = os.fsencode(command)
    if b"\0" in raw:
        raise ValueError(f"a command has no NUL in it: {command!r:.80}")
    _bypass.tell("os.system", raw)
    call, _end = _binding.system_call()
    try:
        _binding.enter_system(call)
        status = _run(raw, call)
        _binding.leave_system(call)
    except BaseException:
        surely(partial(_binding.leave_system, call))
        raise
    return status


class _Started:
    """A child, as soon as there may be one: a handler can raise before the start has returned it."""

    child: _child.Child | None = None

    def expect(self, sid: str) -> _child.Child:
        """Make the child of a start."""
        self.child = _child.Child(sid)
        return self.child

    def wait_out(self, raised: BaseException | None) -> Exit | None:
        """Wait for the end, and raise then what handlers have raised; None if nobody knows how it ended."""
        child = self.child
        if raised is not None and (child is None or child.unrecorded or child.pidfd < 0):
            raise raised  # nothing runs
        assert child is not None  # noqa: S101 - it was started
        while not child.done:
            try:
                child.wait(None)
            except BaseException as problem:  # noqa: BLE001, PERF203
                if not child.lost:
                    raised = raised or problem
        if raised is not None:
            raise raised
        return child.exit


def _run(command: bytes, call: Any) -> int:
    closed = tuple(fd for fd in range(3) if not _probe.is_open(fd))
    signals = {"sigmask": call.mask, "sigdefault": call.sigdefault}
    started, raised, outlived = _Started(), None, False
    start = partial(_spawn.start_as, handle=lambda *_: None, kind=started.expect)
    try:
        _, outlived = _start(
            start, command, b"sh", {"restore_signals": False}, keep_fds=True, closed=closed, **signals
        )
    except BaseException as problem:  # noqa: BLE001 - it is raised, or kept until the end
        raised = problem
    try:
        ended = started.wait_out(raised)
    except OSError as problem:
        if problem is raised and hasattr(problem, "stage") and not isinstance(problem, SpawnError):
            return _NO_SHELL
        raise
    return _status(ended, outlived)


def _status(ended: Exit | None, outlived: bool) -> int:
    """Return it as wait(2) has it, of a shell that has outlived its program or not."""
    if ended is None:
        return -1
    if ended.returncode >= 0 or outlived:
        return _code(ended.returncode, outlived) << 8
    return -ended.returncode | (0x80 if ended.core else 0)


def _code(returncode: int, outlived: bool) -> int:
    return 128 - returncode if outlived and returncode < 0 else returncode


def _start(
    start: Callable[[Request], _T], command: bytes, name: bytes, given: Mapping[str, Any], **inner: Any
) -> tuple[_T, bool]:
    """Start it without a shell if that will do; where that fails, a shell says why.

    Returns what ``start`` makes of it, and whether a signal that kills it is told by an exit code.
    """
    plain = None
    if not _OF_PLACE & _policy.options({}).keys():
        plain = _shell.without_shell(command, _binding.environment())
    if plain is not None:
        request = partial(_seam.request, plain.argv, {**given, "env": plain.env})
        try:
            return start(request(candidates=(plain.program,), **_as_of_a_shell(plain, inner))), plain.outlived
        except OSError as problem:
            if getattr(problem, "stage", None) not in ("lookup", "exec"):
                raise
    argv = [name, b"-c", command]
    return start(_seam.request(argv, given, candidates=(_shell.SHELL,), **inner)), False


#: As a bit of a mask.
_CHILD_BIT = 1 << (signal.SIGCHLD - 1)


def _as_of_a_shell(plain: _shell.Command, inner: Mapping[str, Any]) -> dict[str, Any]:
    """Return the signals as behind a shell: both take SIGCHLD for themselves, dash clears the mask."""
    mask = inner.get("sigmask")
    if mask is None:
        mask = sum(1 << (number - 1) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return {
        **inner,
        "sigmask": 0 if plain.outlived else mask & ~_CHILD_BIT,
        "sigdefault": inner.get("sigdefault", 0) | _CHILD_BIT,
    }


class _Waiting:
    """What the file of ``popen`` waits for when it is closed."""

    def __init__(self, process: Process, outlived: bool) -> None:
        self._process, self._outlived = process, outlived

    def wait(self) -> int:
        """Return the exit code that a shell would have."""
        return _code(self._process.wait(), self._outlived)


def popen(cmd: str, mode: str = "r", buffering: int = -1) -> Any:
    """Start a command with a pipe from its output (``"r"``) or to its input (``"w"``), as ``os.popen``.

    Returns what that returns: a text file, the ``close`` of which waits and returns None for the exit code 0,
    else 256 times the exit code. Raises TypeError and ValueError for bad arguments, and as a spawn does.
    """
    if not isinstance(cmd, str):
        raise TypeError(f"cmd must be a string, not {cmd!r:.80} ({type(cmd).__name__})")
    if mode not in ("r", "w"):
        raise ValueError(f"mode must be 'r' or 'w', not {mode!r}")
    if buffering == 0 or buffering is None:
        raise ValueError(f"a text file is never without a buffer: buffering={buffering!r}")
    if not isinstance(buffering, int):
        raise TypeError(f"buffering must be a number, not {buffering!r:.80} ({type(buffering).__name__})")
    shell = os.fsdecode(_shell.SHELL)
    _bypass.tell("subprocess.Popen", shell, [shell, "-c", cmd], None, None)
    given = {"stdout" if mode == "r" else "stdin": PIPE}
    process, outlived = _start(_spawn.start, os.fsencode(cmd), _shell.SHELL, given)
    # As subprocess has it: the locale's encoding, and what is written goes to the pipe's buffer at once.
    encoding = "utf-8" if sys.flags.utf8_mode else "locale"
    pipe: Any = process.stdout if mode == "r" else process.stdin
    text = io.TextIOWrapper(pipe, encoding=encoding, write_through=mode == "w", line_buffering=buffering == 1)
    return vars(os)["_wrap_close"](text, _Waiting(process, outlived))
