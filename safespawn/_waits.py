"""``os.wait*`` that tell us how children end which are not ours to reap; the answers are the originals'."""

from __future__ import annotations

import os
import posix
from collections.abc import Callable
from typing import Any

from . import _watched
from ._spec import Exit

#: In a list, where no stand-in takes its place (_rebind).
_WAIT4 = [posix.wait4]
#: si_code of a child that has ended (waitid(2)): exited, killed, killed with a core file.
_EXITED, _KILLED, _DUMPED = os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED


def waitpid(original: Callable[..., tuple[int, int]], pid: int, options: int, /) -> tuple[int, int]:
    """As ``os.waitpid``."""
    if not _watched.any_left(pid):
        return original(pid, options)
    return _noted(*_WAIT4[0](pid, options))[:2]


def wait(original: Callable[..., tuple[int, int]]) -> tuple[int, int]:
    """As ``os.wait``."""
    if not _watched.any_left(-1):
        return original()
    return _noted(*_WAIT4[0](-1, 0))[:2]


def wait3(original: Callable[..., Any], options: int) -> Any:
    """As ``os.wait3``."""
    _watched.any_left(-1)
    return _noted(*original(options))


def wait4(original: Callable[..., Any], pid: int, options: int) -> Any:
    """As ``os.wait4``."""
    _watched.any_left(pid)
    return _noted(*original(pid, options))


def waitid(original: Callable[..., Any], idtype: int, id: int, options: int, /) -> Any:  # noqa: A002
    """As ``os.waitid``."""
    _watched.any_left(id if idtype == os.P_PID else -1)
    told = original(idtype, id, options)
    if told is not None and not options & os.WNOWAIT and told.si_code in (_EXITED, _KILLED, _DUMPED):
        code = told.si_status if told.si_code == _EXITED else -told.si_status
        _watched.reaped(Exit(told.si_pid, code, told.si_code == _DUMPED), "os.waitid")
    return told


def _noted(pid: int, status: int, usage: Any) -> tuple[int, int, Any]:
    if pid and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
        _watched.reaped(_exit(pid, status, usage), "os.wait")
    return pid, status, usage


def _exit(pid: int, status: int, usage: Any) -> Exit:
    return Exit(
        pid,
        os.waitstatus_to_exitcode(status),
        os.WCOREDUMP(status),
        int(usage.ru_utime * 1e6),
        int(usage.ru_stime * 1e6),
        usage.ru_maxrss,
        usage.ru_minflt,
        usage.ru_majflt,
    )
