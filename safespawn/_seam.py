"""``_posixsubprocess.fork_exec`` as CPython's standard library calls it, by way of a guarded spawn.

Its arguments are those of Modules/_posixsubprocess.c: 21 in 3.10; with ``pgid`` since 3.11 and
``allow_vfork`` from 3.11 to 3.13. They are private, and others call it too (loky, billiard): what does
not look as we know it goes to the original, which says what is wrong with it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import _checks, _policy, _spawn, _unguarded, _watched
from ._errors import UnsafeSpawn
from ._spec import Identity, Request
from ._values import ID_MAX, integer
from .audit import _bypass

#: So many follow ``call_setsid``.
_TAIL = 5 if sys.version_info < (3, 11) else 6 if sys.version_info >= (3, 14) else 7
_HEAD = 16

ForkExec = Callable[..., int]


class _Call(NamedTuple):
    """The arguments by name, as far as a child sees them."""

    argv: Sequence[Any]
    candidates: Sequence[bytes]
    close_fds: bool
    pass_fds: Sequence[int]
    cwd: Any
    env: Sequence[bytes] | None
    streams: tuple[int, int, int]
    errpipe: int
    restore_signals: bool
    new_session: bool
    group: int
    gid: int | None
    groups: Sequence[int] | None
    uid: int | None
    umask: int
    preexec_fn: Callable[[], Any] | None


def _named(given: tuple[Any, ...]) -> _Call | None:
    if len(given) != _HEAD + _TAIL:
        return None
    argv, candidates, close_fds, pass_fds, cwd, env = given[:6]
    stdin, _, _, stdout, _, stderr, _, errpipe, restore_signals, new_session = given[6:_HEAD]
    tail = given[_HEAD:] if sys.version_info >= (3, 11) else (-1, *given[_HEAD:])
    group, gid, groups, uid, umask, preexec_fn = tail[:6]
    streams = (stdin, stdout, stderr)
    return _Call(
        argv, candidates, bool(close_fds), pass_fds, cwd, env, streams, errpipe, bool(restore_signals),
        bool(new_session), group, gid, groups, uid, umask, preexec_fn,
    )  # fmt: skip


def _numbers(*values: object) -> bool:
    return all(isinstance(value, int) for value in values)


def _is_known(call: _Call) -> bool:
    """Whether all of it has the types that the standard library gives."""
    ids = [one for one in (call.gid, call.uid) if one is not None]
    lists = (call.argv, call.candidates, call.pass_fds, call.groups or (), call.env or ())
    return (
        all(isinstance(one, (list, tuple)) for one in lists)
        and bool(call.argv and call.candidates)
        and all(isinstance(path, bytes) for path in call.candidates)
        and _numbers(*call.streams, call.errpipe, call.group, call.umask, *ids)
        and _ascends(call.pass_fds)
        and all(one >= 0 for one in ids if _numbers(one))
        and _numbers(*(call.groups or ()))
        and (call.env is None or all(isinstance(one, bytes) and b"=" in one for one in call.env))
        and not isinstance(call.cwd, int)
    )


def _ascends(fds: Sequence[int]) -> bool:
    """Whether these are descriptors in order, as _sanity_check_python_fd_sequence wants them."""
    return _numbers(*fds) and all(low < high for low, high in zip((-1, *fds), fds, strict=False))


def identity(uid: int | None, gid: int | None, groups: Sequence[int] | None) -> Identity | None:
    """Return just these ids: what is None stays. Raises OverflowError, ValueError for one of the groups."""
    if uid is None and gid is None and groups is None:
        return None
    for name, one in (("user", uid), ("group", gid)):
        if one is not None and one > ID_MAX:
            raise OverflowError(f"{name}={one} is larger than any id: at most {ID_MAX}")
    for one in groups or ():
        integer("extra_groups", int(one), 0, ID_MAX)
    return Identity(
        None if uid is None else int(uid),
        None if gid is None else int(gid),
        None if groups is None else tuple(sorted(set(map(int, groups)))),
    )


def request(argv: Sequence[Any], given: Mapping[str, Any], **inner: Any) -> Request:
    """Return a checked request with members that are no options; ``argv[0]`` may be empty, unlike ours.

    What is no value of ours but one of the standard library's raises what it raises there.
    """
    if given.get("cwd") in ("", b""):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), given["cwd"])
    words = list(argv)
    nameless = words[:1] in ([""], [b""])
    if nameless:
        words[0] = "-"
    made = _checks.request(words, _policy.options(given))
    if nameless:
        made = made._replace(argv=(b"", *made.argv[1:]))
    return made._replace(has_options=made.has_options or inner.get("keep_fds", False), **inner)


def streams(stdin: int, stdout: int, stderr: int) -> dict[str, int]:
    """Return which descriptors become 0, 1 and 2; -1 stands for ours, others below are OSError."""
    named = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    for name, fd in named.items():
        if fd < -1:
            raise OSError(errno.EBADF, f"{name}: {fd} is no descriptor")
    return {name: int(fd) for name, fd in named.items() if fd >= 0}


def options(
    cwd: Any,
    env: Mapping[Any, Any] | None,
    pass_fds: Iterable[int],
    restore_signals: bool,
    umask: int,
    session: bool,
    group: int = -1,
) -> dict[str, Any]:
    """Return what the standard library says of a child, where it is not the default, as options of ours."""
    given: dict[str, Any] = {}
    if cwd is not None:
        given["cwd"] = cwd
    if env is not None:
        given["env"] = env
    kept = [fd for fd in pass_fds if fd not in (0, 1, 2)]
    if kept:
        given["pass_fds"] = kept
    if not restore_signals:
        given["restore_signals"] = False
    if umask >= 0:
        given["umask"] = umask & 0o777
    if session:
        given["start_new_session"] = True
    if group >= 0:
        given["process_group"] = int(group)
    return given


def _request(call: _Call) -> Request:
    env = None if call.env is None else dict(_pair(one) for one in call.env)
    fds = (fd for fd in call.pass_fds if fd != call.errpipe)
    given = options(call.cwd, env, fds, call.restore_signals, call.umask, call.new_session, call.group)
    return request(
        call.argv,
        {**given, **streams(*call.streams)},
        candidates=tuple(map(bytes, call.candidates)),
        identity=identity(call.uid, call.gid, call.groups),
        keep_fds=not call.close_fds,
    )


@contextmanager
def named(program: Any, cwd: Any = None) -> Iterator[None]:
    """Have a problem of the program's file, or of the directory, name it as it was given."""
    try:
        yield
    except OSError as problem:
        stage = getattr(problem, "stage", None)
        if stage in ("lookup", "exec"):
            problem.filename = program
        elif stage in ("open-cwd", "cwd") and cwd is not None:
            problem.filename = cwd
        raise


def _pair(variable: bytes) -> tuple[bytes, bytes]:
    name, _, value = bytes(variable).partition(b"=")
    return name, value


def start(original: ForkExec, given: tuple[Any, ...]) -> int:
    """Start what the arguments say and return its pid. Raises what a spawn raises."""
    call = _named(given)
    if call is None or not _is_known(call):
        return unguarded(original, "_posixsubprocess.fork_exec", given)
    if isinstance(call.preexec_fn, _unguarded.Own) and call.preexec_fn.take():
        return original(*given)  # of safespawn.subprocess, which records it
    made = _request(call)
    _unguarded.warn_of_groups(made.identity)
    if call.preexec_fn is None:
        return start_watched(made)
    return _unguarded.start_seam(made, original, given)


def start_watched(request: Request) -> int:
    """Start a program whose pid is all that the caller gets."""
    _watched.look_at_some()
    return _watched.start(lambda handle: _spawn.start_as(request, handle, _watched.Watched))


def unguarded(original: Callable[..., int], event: str, given: tuple[Any, ...], **more: Any) -> int:
    """Leave to the original what we do not know: that says what is wrong with it, most likely.

    If it starts something all the same, that is a bypass, and recorded as one. Where a policy holds it is
    UnsafeSpawn: nobody could say whether the policy would be kept.
    """
    if _policy.applied() is not None:
        refusal = UnsafeSpawn(
            errno.EPERM, f"starts-taken: arguments of {event} that are not known, and a policy holds"
        )
        refusal.guard = "starts-taken"
        raise refusal
    if event == "os.fork":  # which os._spawnvef tells of itself
        return original(*given, **more)
    _bypass.note(event, given)
    with _bypass.ours():
        return original(*given, **more)
