"""The only importer of the extension: values in, values out, no decision.

Everything that C is given is copied into memory of its own before the GIL is let go,
and every ``ffi.new`` is held in a local until the call has returned.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

try:
    from . import _native_ffi
except ImportError as problem:  # pragma: no cover - a build for another platform
    raise ImportError("safespawn needs Linux on x86-64 or aarch64, and its compiled core") from problem

from ._spec import Credentials, Exit, Identity, PathNode


class _Lib(Protocol):
    """What the extension offers; types as cffi gives and takes them."""

    SS_SHARE_MEMORY: int
    SS_REQUIRE_ALONE: int
    SS_NEW_SESSION: int
    SS_SET_GROUP: int
    SS_SET_NICE: int
    SS_SET_UMASK: int
    SS_RESTORE_SIGNALS: int
    SS_SET_SIGMASK: int
    SS_NO_NEW_PRIVS: int
    SS_SET_UID: int
    SS_SET_GID: int
    SS_SET_GROUPS: int
    SS_SEARCH: int
    SS_COPY: int
    SS_READABLE: int
    SS_EXEC_TARGET: int
    SS_EXEC: int
    SS_FAILED: int
    SS_KILLED_BEFORE_EXEC: int
    SS_RACE_DETECTED: int
    SS_TIMED_OUT: int
    SS_NOT_ALONE: int
    SS_USED_CLONE3: int
    SS_UNCONFIRMED: int
    SS_STUCK: int
    SS_STAGE_COUNT: int

    def ss_stage_name(self, stage: int) -> Any: ...
    def ss_creds_read(self, creds: Any) -> int: ...
    def ss_alone(self, tasks: Any) -> int: ...
    def ss_memory_shared(self) -> int: ...
    def ss_spawn(self, arena: Any, request: Any, result: Any) -> int: ...
    def ss_lookup(self, arena: Any, lookup: Any, found: Any, result: Any) -> int: ...
    def ss_wait(self, pidfd: int, nohang: int, result: Any) -> int: ...
    def ss_arena_free(self, arena: Any) -> None: ...


lib = cast("_Lib", _native_ffi.lib)
ffi: Any = _native_ffi.ffi

#: si_code of waitid(2).
CLD_EXITED = 1
CLD_DUMPED = 3


class _Local(threading.local):
    """Each thread's arena: stack and work area of its children, unmapped with the thread."""

    def __init__(self) -> None:
        self.arena = ffi.gc(ffi.new("struct ss_arena *"), lib.ss_arena_free)


_local = _Local()


@dataclass(frozen=True)
class Plan:
    """What one native spawn does; the marshalled side of a Request."""

    path: bytes
    argv: Sequence[bytes]
    env: Sequence[bytes]
    fds: Sequence[tuple[int, int]]
    flags: int
    expected: Credentials
    identity: Identity
    deadline_ns: int = 0
    exec_fd: int = -1
    cwd_fd: int = -1
    terminal_fd: int = -1
    group: int = 0
    nice: int = 0
    umask: int = 0
    pdeathsig: int = 0
    sigmask: int = 0
    cpus: bytes = b""
    rlimits: Sequence[tuple[int, int, int]] = ()


@dataclass(frozen=True)
class Outcome:
    """What a native call came to. ``pidfd`` is -1 unless the child is still to be reaped."""

    outcome: str
    stage: str
    errno: int
    pid: int
    pidfd: int
    window_ns: int
    clone3: bool
    confirmed: bool
    stuck: bool


@dataclass(frozen=True)
class Found:
    """What a lookup opened. A descriptor of -1 is not open; ``head`` is the file's start."""

    stage: str
    errno: int
    exe_fd: int
    cwd_fd: int
    copy_fd: int
    readable: bool
    path: bytes
    real: bytes
    head: bytes
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    node: tuple[int, int, int]
    parents: tuple[tuple[int, int, int], ...]


_OUTCOMES = {
    lib.SS_EXEC: "exec",
    lib.SS_FAILED: "failed",
    lib.SS_KILLED_BEFORE_EXEC: "killed-before-exec",
    lib.SS_RACE_DETECTED: "race-detected",
    lib.SS_TIMED_OUT: "timed-out",
    lib.SS_NOT_ALONE: "not-alone",
}

_STAGES: tuple[str, ...] = tuple(
    ffi.string(lib.ss_stage_name(i)).decode() for i in range(lib.SS_STAGE_COUNT)
)


def stages() -> tuple[str, ...]:
    """Return the names of all stages, in the order in which a spawn goes through them."""
    return _STAGES


def _set_creds(target: Any, creds: Credentials) -> None:
    target.ruid, target.euid, target.suid = creds.ruid, creds.euid, creds.suid
    target.rgid, target.egid, target.sgid = creds.rgid, creds.egid, creds.sgid
    target.effective, target.permitted = creds.effective, creds.permitted
    target.inheritable = creds.inheritable


def credentials() -> Credentials:
    """Return the credentials of the calling thread. Raises OSError."""
    c = ffi.new("struct ss_creds *")
    _check(lib.ss_creds_read(c), "reading our credentials")
    return Credentials(
        c.ruid, c.euid, c.suid, c.rgid, c.egid, c.sgid, c.effective, c.permitted, c.inheritable
    )


def _check(answer: int, what: str) -> int:
    if answer < 0:
        raise OSError(-answer, f"{os.strerror(-answer)}: {what}")
    return answer


def alone() -> tuple[bool, int]:
    """Return whether nobody else runs on our memory, and the number of our tasks.

    Raises OSError when that cannot be told.
    """
    tasks = ffi.new("uint32_t *")
    answer = _check(lib.ss_alone(tasks), "counting our tasks in /proc/self/task")
    return answer == 1, tasks[0]


def memory_shared() -> bool:
    """Return whether CLONE_VM really shares memory here. Raises OSError, EBUSY if not alone."""
    return _check(lib.ss_memory_shared(), "trying a child on shared memory") == 1


def _strings(items: Sequence[bytes]) -> bytes:
    return b"\0".join(items) + b"\0" if items else b""


def _outcome(result: Any, answer: int) -> Outcome:
    flags = result.flags
    return Outcome(
        _OUTCOMES.get(result.outcome, "failed"),
        _STAGES[result.stage],
        result.error,
        result.pid,
        result.pidfd,
        result.window_ns,
        bool(flags & lib.SS_USED_CLONE3),
        not flags & lib.SS_UNCONFIRMED,
        bool(flags & lib.SS_STUCK),
    )


def spawn(plan: Plan) -> Outcome:
    """Run one spawn window; the GIL is free meanwhile."""
    identity = plan.identity
    groups = identity.groups or ()
    argv, env = _strings(plan.argv), _strings(plan.env)
    r = ffi.new("struct ss_request *")
    result = ffi.new("struct ss_result *")
    path = ffi.new("char[]", plan.path)
    fds = ffi.new("struct ss_fd[]", plan.fds)
    keep = [
        path,
        fds,
        ffi.from_buffer("char[]", argv),
        ffi.from_buffer("char[]", env),
        ffi.new("uint32_t[]", groups),
        ffi.new("struct ss_rlimit[]", plan.rlimits),
        ffi.from_buffer("uint8_t[]", plan.cpus),
    ]
    r.path, r.fds, r.argv, r.env, r.groups, r.rlimits, r.cpus = keep
    r.argv_bytes, r.argc = len(argv), len(plan.argv)
    r.env_bytes, r.envc = len(env), len(plan.env)
    r.nfds, r.ngroups, r.nrlimits = len(plan.fds), len(groups), len(plan.rlimits)
    r.cpus_bytes = len(plan.cpus)
    r.flags = plan.flags | _identity_flags(identity)
    r.uid, r.gid = identity.uid or 0, identity.gid or 0
    r.exec_fd, r.cwd_fd, r.terminal_fd = plan.exec_fd, plan.cwd_fd, plan.terminal_fd
    r.group, r.nice, r.umask = plan.group, plan.nice, plan.umask
    r.pdeathsig, r.sigmask, r.deadline_ns = plan.pdeathsig, plan.sigmask, plan.deadline_ns
    _set_creds(r.expected, plan.expected)
    return _outcome(result, lib.ss_spawn(_local.arena, r, result))


def _identity_flags(identity: Identity) -> int:
    flags = 0 if identity.uid is None else lib.SS_SET_UID
    flags |= 0 if identity.gid is None else lib.SS_SET_GID
    return flags | (0 if identity.groups is None else lib.SS_SET_GROUPS)


def find(
    name: bytes,
    dirs: Sequence[bytes] | None,
    *,
    cwd: bytes | int | None = None,
    copy: bool = False,
    share: bool = False,
    deadline_ns: int = 0,
    expected: Credentials,
) -> tuple[Found, Outcome]:
    """Look up and open a program and the working directory.

    ``dirs`` None: ``name`` is a path; else it is looked for in each. With a deadline the
    lookup runs in a child of its own, on shared memory if ``share``.
    """
    want = ffi.new("struct ss_lookup *")
    found = ffi.new("struct ss_found *")
    result = ffi.new("struct ss_result *")
    text = _strings(dirs) if dirs else b""
    keep = [ffi.new("char[]", name), ffi.from_buffer("char[]", text)]
    want.name, want.dirs = keep
    want.dirs_bytes, want.ndirs = len(text), len(dirs or ())
    want.cwd_fd = cwd if isinstance(cwd, int) else -1
    if isinstance(cwd, bytes):
        keep.append(ffi.new("char[]", cwd))
        want.cwd = keep[-1]
    want.flags = (
        (lib.SS_SEARCH if dirs is not None else 0)
        | (lib.SS_COPY if copy else 0)
        | (lib.SS_SHARE_MEMORY | lib.SS_REQUIRE_ALONE if share else 0)
    )
    want.deadline_ns = deadline_ns
    _set_creds(want.expected, expected)
    answer = lib.ss_lookup(_local.arena, want, found, result)
    return _found(found), _outcome(result, answer)


def _found(f: Any) -> Found:
    return Found(
        _STAGES[f.stage],
        f.error,
        f.exe_fd,
        f.cwd_fd,
        f.copy_fd,
        bool(f.flags & lib.SS_READABLE),
        ffi.string(f.path),
        ffi.string(f.real),
        bytes(ffi.buffer(f.head, f.head_bytes)),
        f.device,
        f.inode,
        f.size,
        f.mtime_ns,
        f.ctime_ns,
        (f.node.uid, f.node.gid, f.node.mode),
        tuple((f.parents[i].uid, f.parents[i].gid, f.parents[i].mode) for i in range(f.nparents)),
    )


def nodes(found: Found) -> tuple[PathNode, ...]:
    """Return owner and mode of every component of the program's real path, file last."""
    if not found.real:
        return ()
    real = os.fsdecode(found.real)
    names = ["/"] + [real[:i] for i in range(1, len(real)) if real[i] == "/"]
    return tuple(
        PathNode(name, *node) for name, node in zip([*names, real], [*found.parents, found.node])
    )


def wait(pidfd: int, *, nohang: bool) -> Exit | None:
    """Reap the child behind ``pidfd``; None if it still runs (``nohang`` only).

    Raises ChildProcessError if somebody else reaped it, and InterruptedError on a signal.
    """
    x = ffi.new("struct ss_exit *")
    answer = lib.ss_wait(pidfd, nohang, x)
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))
    if answer == 1:
        return None
    return Exit(
        x.pid,
        x.status if x.code == CLD_EXITED else -x.status,
        x.code == CLD_DUMPED,
        x.utime_us,
        x.stime_us,
        x.maxrss_kib,
        x.minflt,
        x.majflt,
        x.inblock,
        x.oublock,
        x.nvcsw,
        x.nivcsw,
    )


def cpu_mask(cpus: Sequence[int]) -> bytes:
    """Return the bit mask that sched_setaffinity(2) takes, whole 64-bit words."""
    mask = bytearray((max(cpus) // 64 + 1) * 8)
    for cpu in cpus:
        mask[cpu // 8] |= 1 << (cpu % 8)
    return bytes(mask)


