"""``os.posix_spawn``, ``os.posix_spawnp`` and ``os.spawn*`` by way of a guarded spawn.

What they have that a guarded spawn has not goes to the original, which the audit hook records as a bypass.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import _probe, _seam
from ._errors import SpawnError
from .audit import _bypass

#: os.POSIX_SPAWN_CLOSEFROM since 3.13.
_OPEN, _CLOSE, _DUP2 = os.POSIX_SPAWN_OPEN, os.POSIX_SPAWN_CLOSE, os.POSIX_SPAWN_DUP2
_CLOSEFROM = getattr(os, "POSIX_SPAWN_CLOSEFROM", -1)
#: From here on the descriptors of a child are options of ours.
_NAMED = 3


class _Unlike(Exception):
    """The original has to do it: this is none of what we know, or it will say what is wrong."""


#: Files that are others in the child than here.
_OF_THE_PROCESS = re.compile(rb"/dev/(fd|std|tty$)|/proc/(self|thread-self|\d)")


class _Table:
    """The descriptors of a child, after file actions that it does in order: target to source, -1 for none."""

    def __init__(self, actions: Sequence[Any], *, session: bool) -> None:
        """As we have them. Raises _Unlike for actions that are none, or that only the child itself can do."""
        self.places: dict[int, int] = {}
        self.closed_from: int | None = None
        self.opened: list[int] = []
        self._hidden: set[int] = set()  # opened close-on-exec
        self._session = session
        self._actions = [_action(one) for one in actions]
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._before = {
            fd for kind, fd, *_ in self._actions if kind == _DUP2 and fd >= 0 and _probe.is_open(fd)
        }

    def do(self) -> None:
        """Do them all. Raises _Unlike, and the OSError of a file or a descriptor."""
        for kind, fd, *rest in self._actions:
            if not 0 <= fd < self._limit:
                raise OSError(errno.EBADF, f"file_actions: no descriptor has the number {fd}")
            if kind == _OPEN:
                self._open(fd, *rest)
            elif kind == _CLOSE:
                self.places[fd] = -1
            elif kind == _DUP2:
                self._copy(fd, *rest)
            else:
                self._close_from(fd)

    def _open(self, fd: int, path: Any, flags: int, mode: int) -> None:
        if _OF_THE_PROCESS.match(os.fsencode(path)):
            raise _Unlike
        # Without O_NOCTTY a terminal could become that of our own session.
        self.opened.append(os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, mode))
        if self._session and not flags & os.O_NOCTTY and os.isatty(self.opened[-1]):
            raise _Unlike  # it is to become that of the child's
        self.places[fd] = self.opened[-1]
        (self._hidden.add if flags & os.O_CLOEXEC else self._hidden.discard)(fd)

    def _copy(self, fd: int, target: int) -> None:
        source = self.places.get(fd, fd if fd in self._before and not self._is_behind(fd) else -1)
        if source < 0 or not 0 <= target < self._limit:
            raise OSError(errno.EBADF, f"file_actions: descriptor {fd} cannot be copied to {target}")
        self.places[target] = source
        self._hidden.discard(target)

    def _is_behind(self, fd: int) -> bool:
        return self.closed_from is not None and fd >= self.closed_from

    def _close_from(self, first: int) -> None:
        if first > _NAMED:
            raise _Unlike
        self.closed_from = first
        self.places = {fd: source for fd, source in self.places.items() if fd < first}
        self.places.update((fd, -1) for fd in range(first, _NAMED))

    def close(self) -> None:
        """Close what was opened for the child."""
        while self.opened:
            os.close(self.opened.pop())

    def options(self) -> dict[str, Any]:
        """Return it as options of ours."""
        names = ("stdin", "stdout", "stderr")
        kept = {fd: at for fd, at in self.places.items() if at >= 0 and fd not in self._hidden}
        given: dict[str, Any] = {names[fd]: at for fd, at in kept.items() if fd < _NAMED}
        fds = {fd: at for fd, at in kept.items() if fd >= _NAMED}
        return {**given, "fds": fds} if fds else given

    def closed(self) -> tuple[int, ...]:
        """Return what is to be closed."""
        return tuple(sorted(fd for fd, at in self.places.items() if at < 0 or fd in self._hidden))


#: How many members an action has.
_MEMBERS = {_OPEN: 5, _CLOSE: 2, _DUP2: 3, _CLOSEFROM: 2}


def _action(given: Any) -> tuple[Any, ...]:
    """Return an action, if it is one. Raises _Unlike."""
    if not isinstance(given, tuple) or not given or _MEMBERS.get(given[0]) != len(given):
        raise _Unlike
    numbers = given if given[0] != _OPEN else (*given[:2], *given[3:])
    if not all(isinstance(one, int) for one in numbers):
        raise _Unlike
    return given


class _Asked(NamedTuple):
    """The arguments of posix_spawn that are no descriptors, as options of ours."""

    path: bytes
    argv: Sequence[Any]
    options: dict[str, Any]


def posix_spawn(original: Callable[..., int], path: Any, argv: Any, env: Any, /, **more: Any) -> int:
    """As ``os.posix_spawn``."""
    return _start(original, path, argv, env, more, search=False)


def posix_spawnp(original: Callable[..., int], path: Any, argv: Any, env: Any, /, **more: Any) -> int:
    """As ``os.posix_spawnp``: PATH is ours, whatever the child's environment is."""
    return _start(original, path, argv, env, more, search=True)


def _start(
    original: Callable[..., int], path: Any, argv: Any, env: Any, more: dict[str, Any], *, search: bool
) -> int:
    try:
        asked = _asked(path, argv, env, more)
        table = _Table(tuple(more.get("file_actions") or ()), session=bool(more.get("setsid")))
    except (_Unlike, TypeError):
        return _seam.unguarded(original, "os.posix_spawn", (path, argv, env), **more)
    with contextlib.ExitStack() as stack:
        stack.callback(table.close)
        _bypass.tell("os.posix_spawn", path, argv, env)
        try:
            table.do()
        except _Unlike:
            table.close()
            return _seam.unguarded(original, "os.posix_spawn", (path, argv, env), **more)
        stack.enter_context(_seam.named(path))
        request = _seam.request(
            asked.argv,
            {**asked.options, **table.options(), "restore_signals": False},
            candidates=_candidates(asked.path, search),
            keep_fds=table.closed_from is None,
            closed=table.closed(),
        )
        return _seam.start_watched(request)


_KNOWN = {"file_actions", "setpgroup", "resetids", "setsid", "setsigmask", "setsigdef", "scheduler"}


def _asked(path: Any, argv: Any, env: Any, more: dict[str, Any]) -> _Asked:
    if not isinstance(argv, (list, tuple)) or not argv or not argv[0]:
        raise _Unlike
    if not (isinstance(env, Mapping) or (env is None and sys.version_info >= (3, 13))):
        raise _Unlike
    resetids = more.get("resetids", False)
    if more.keys() - _KNOWN or not isinstance(resetids, int) or (resetids and _ids_differ()):
        raise _Unlike
    try:
        return _Asked(os.fsencode(path), argv, _options(env, more))
    except (TypeError, ValueError, AttributeError):
        raise _Unlike from None


def _options(env: Any, more: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"start_new_session": bool(more.get("setsid"))}
    if env is not None:
        options["env"] = dict(env)
    if "setpgroup" in more:
        options["process_group"] = _group(more["setpgroup"])
    if "setsigmask" in more:
        options["sigmask"] = [int(number) for number in more["setsigmask"]]
    if "setsigdef" in more:  # to reset those two is no error there, and does nothing
        wanted = {int(number) for number in more["setsigdef"]}
        options["sigdefault"] = sorted(wanted - {signal.SIGKILL, signal.SIGSTOP})
    if more.get("scheduler") is not None:
        policy, parameters = more["scheduler"]
        options["scheduler"] = _scheduling(policy, parameters.sched_priority)
    return options


def _group(given: Any) -> int:
    if not isinstance(given, int) or given < 0:
        raise _Unlike
    return int(given)


def _scheduling(policy: int | None, priority: int) -> Any:
    if policy is None:
        raise _Unlike
    return (policy, priority) if priority else policy


def _ids_differ() -> bool:
    return os.getuid() != os.geteuid() or os.getgid() != os.getegid()


def _candidates(path: bytes, search: bool, env: Mapping[Any, Any] | None = None) -> tuple[bytes, ...]:
    if not search or b"/" in path:
        return (path,)
    return tuple(os.path.join(os.fsencode(where), path) for where in os.get_exec_path(env))


def spawnvef(
    original: Callable[..., int], mode: int, file: Any, args: Any, env: Any, func: Callable[..., Any]
) -> int:
    """As ``os._spawnvef``, which all of ``os.spawn*`` call: ``func`` is the exec function to imitate."""
    if not isinstance(args, (list, tuple)) or not args or not args[0]:
        return _seam.unguarded(original, "os.fork", (mode, file, args, env, func))
    given: dict[str, Any] = {"restore_signals": False}
    if env is not None:
        given["env"] = dict(env)
    candidates = _candidates(os.fsencode(file), func in (os.execvp, os.execvpe), env)
    # Hooks that refuse these refuse the start, as they do where a child is forked for it.
    _bypass.tell("os.fork")
    _bypass.tell("os.exec", file, args, env)
    request = _seam.request(args, given, candidates=candidates, keep_fds=True)
    try:
        pid = _seam.start_watched(request)
    except OSError as problem:
        if getattr(problem, "stage", None) not in ("lookup", "exec") or isinstance(problem, SpawnError):
            raise
        with _bypass.ours():  # it was told of; callers expect a child that ends with 127
            return original(mode, file, args, env, _run_nothing)
    return pid if mode == os.P_NOWAIT else _waited(pid)


def _run_nothing(*_: Any) -> None:
    """Fail in a forked child as an exec would, not looking again for what was not there."""
    raise FileNotFoundError


def _waited(pid: int) -> int:
    """Return the exit code, -N for signal N."""
    while True:
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
