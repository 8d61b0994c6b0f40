"""Takes over a whole process: whatever starts programs by the standard library goes through the guards.

``subprocess``, ``multiprocessing`` and what is built on them call ``_posixsubprocess.fork_exec``; beside it
there are ``os.posix_spawn``, ``os.system``, ``os.popen`` and ``os.spawn*``. Functions of ours stand in for
these and for ``os.wait*``, which tell us how children end. What passes and what escapes: docs/takeover.md.
"""

from __future__ import annotations

import _posixsubprocess
import contextlib
import os
import posix
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from . import _posix_calls, _rebind, _seam, _system, _waits, audit
from .audit import _bypass, _locks

__all__ = ["install", "installed", "is_installed", "uninstall"]

#: Whether subprocess takes os.posix_spawn where it can: not, because fork_exec can be asked for all.
_BY_POSIX_SPAWN = "_USE_POSIX_SPAWN"
#: Events (sys.addaudithook) of standard functions that lead to us now.
_COVERED = frozenset(("subprocess.Popen",))


class _State:
    """Whether the functions are in their places."""

    locks: _locks.Locks = {}  # noqa: RUF012 - of the process
    active = False
    posix_spawn_was = False
    pairs: list[tuple[Any, Any]] = []  # noqa: RUF012 - of the process


class _StandIn:
    """What takes the place of a function, and calls it while we are not installed.

    Whoever got hold of it keeps it: another library that has wrapped it, for instance. It is no function,
    because as an attribute of a class it must not become a method: functions of C do not.
    """

    def __init__(self, original: Callable[..., Any], ours: Callable[..., Any]) -> None:
        self._ours = ours
        self._held = [original]  # a list, because else it would be rebound as well
        for name in ("__doc__", "__module__", "__name__", "__qualname__"):
            setattr(self, name, getattr(original, name))

    @property
    def __wrapped__(self) -> Any:
        """The original, for inspect."""
        return self._held[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not _State.active:
            return self._held[0](*args, **kwargs)
        return self._ours(self._held[0], *args, **kwargs)

    def __repr__(self) -> str:
        return f"<safespawn's stand-in for {self._held[0]!r}>"


def _fork_exec(original: Callable[..., int], *given: Any) -> int:
    return _seam.start(original, given)


def _system_of(original: Callable[..., int], command: Any) -> int:
    del original
    return _system.system(command)


def _popen_of(original: Callable[..., Any], cmd: Any, mode: str = "r", buffering: int = -1) -> Any:
    del original
    return _system.popen(cmd, mode, buffering)


#: What stands in: module and name of the function, and ours, which gets the original first.
_OURS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (_posixsubprocess, "fork_exec", _fork_exec),
    (posix, "posix_spawn", _posix_calls.posix_spawn),
    (posix, "posix_spawnp", _posix_calls.posix_spawnp),
    (posix, "system", _system_of),
    (os, "popen", _popen_of),
    (os, "_spawnvef", _posix_calls.spawnvef),
    (posix, "waitpid", _waits.waitpid),
    (posix, "wait", _waits.wait),
    (posix, "wait3", _waits.wait3),
    (posix, "wait4", _waits.wait4),
    (posix, "waitid", _waits.waitid),
)


def _innermost(function: Any) -> Any:
    """Return what a function wraps, and what that wraps, and so on (functools.wraps, wrapt)."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _pairs() -> list[tuple[Any, Any]]:
    """Return originals and what stands in for them. They are made once: others may keep a stand-in."""
    if not _State.pairs:
        for module, name, ours in _OURS:
            original = _innermost(getattr(module, name))
            _State.pairs.append((original, _StandIn(original, ours)))
    return _State.pairs


def _rewrap(old: Any, new: Any) -> None:
    """Put ``new`` for ``old`` where others have wrapped a function of ``os`` (ddtrace does, by wrapt)."""
    for name in (old.__name__, new.__name__):
        outer = getattr(os, name, None)
        while outer is not None:
            inner = getattr(outer, "__wrapped__", None)
            if inner is old:
                with contextlib.suppress(AttributeError, TypeError):
                    outer.__wrapped__ = new
            outer = inner


# starts-taken (T-36): what no function of Python was asked for stays outside.
def install() -> None:
    """Have everything that the standard library starts in this process go through the guards and the audit.

    Doing it twice is no error. Modules that have the functions already are covered. What still goes past us
    is recorded as ``spawn.bypass``, each place once, then at its 10th time, and so on.
    """
    with _locks.ours(_State.locks):
        if _State.active:
            return
        pairs = _pairs()
        _State.active = True
        for old, new in pairs:
            _rewrap(old, new)
        _rebind.replace(pairs)
        _State.posix_spawn_was = vars(subprocess)[_BY_POSIX_SPAWN]
        vars(subprocess)[_BY_POSIX_SPAWN] = False
        _bypass.cover(_COVERED)
        audit.watch_bypasses(True)


def uninstall() -> None:
    """Undo :func:`install`: every function is in its place again. Nothing happens if nothing is installed."""
    with _locks.ours(_State.locks):
        if not _State.active:
            return
        _bypass.cover(frozenset())  # first: what starts meanwhile is told twice, and not never
        for old, new in _pairs():
            _rewrap(new, old)
        _rebind.replace([(new, old) for old, new in _pairs()])
        vars(subprocess)[_BY_POSIX_SPAWN] = _State.posix_spawn_was
        _State.active = False
        audit.watch_bypasses(False)


def is_installed() -> bool:
    """Return whether :func:`install` is in force."""
    return _State.active


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Install inside; where it was installed before, it stays."""
    before = _State.active
    install()
    try:
        yield
    finally:
        if not before:
            uninstall()
