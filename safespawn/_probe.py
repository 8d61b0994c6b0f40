"""Reads of /proc and of our own process attributes. Looks, decides nothing.

python-prctl reads and sets what belongs to our own process: securebits, dumpable,
no_new_privs, the subreaper flag, named capabilities.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import resource
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import prctl

from . import _binding, _lock, _privileges
from ._spec import Credentials, Exit, Facts


class _Tried:
    """Whether CLONE_VM shares memory: tried once, by the process with that pid."""

    pid = 0
    shared = False


def _memory_shared(proof: int, seen: _binding.Seen) -> bool | None:
    """Return what was tried, or try it now under a proof; None if that could not be done."""
    if _Tried.pid == os.getpid():  # a forked child tries for itself
        return _Tried.shared
    if not children_are_in_our_namespace():
        return None
    try:
        _Tried.shared = _binding.memory_shared(proof, seen)
    except OSError:
        return None
    _Tried.pid = os.getpid()
    return _Tried.shared


def look() -> _binding.Seen:
    """Look at ourselves: credentials, threads, standard descriptors. Raises OSError."""
    return _binding.Seen()


def children_are_in_our_namespace() -> bool:
    """Return whether a child would be in our PID namespace: False after unshare(CLONE_NEWPID)."""
    try:
        return os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")
    except OSError:  # before the first child of a new one, and where /proc is missing
        return False


def sharing_proof(seen: _binding.Seen) -> int:
    """Return the SS_REQUIRE flag of the first proof under which memory may be shared; 0 if none."""
    lib = _binding.lib
    if seen.alone:
        return lib.SS_REQUIRE_ALONE
    if seen.lock == lib.SS_LOCK_STRANGER:  # neither the seal nor the lock is over that one
        return 0
    if _lock.is_sealed():
        return lib.SS_REQUIRE_SEAL
    return lib.SS_REQUIRE_LOCK if seen.lock == lib.SS_LOCK_HOLDS else 0


def facts(seen: _binding.Seen, *, changes_credentials: bool, try_sharing: bool = True) -> Facts:
    """Return what a decision rests on; an error while looking is a fact too."""
    proof = sharing_proof(seen)
    needless = "not needed by one thread" if seen.alone else None
    return Facts(
        seen.alone,
        seen.threads,
        changes_credentials,
        _memory_shared(proof, seen) if proof and try_sharing else None,
        os.strerror(seen.errno) if seen.alone is None else None,
        needless or _lock.unsealed(),
        needless or _lock.describe(seen),
        _binding.is_sealed(),
    )


def held_groups() -> tuple[int, ...]:
    """Return our supplementary groups, sorted."""
    return tuple(sorted(os.getgroups()))


def argument_room() -> int:
    """Return how many bytes of strings and pointers execve(2) takes.

    A quarter of the soft stack limit, at most 6 MiB and at least 128 KiB
    (bprm_stack_limits of fs/exec.c, Linux 4.13).
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    quarter = 6 << 20 if soft == resource.RLIM_INFINITY else soft // 4
    return max(min(quarter, 6 << 20), 128 << 10)


def is_open(fd: int) -> bool:
    """Return whether ``fd`` is an open descriptor of ours."""
    try:
        os.fstat(fd)
    except OSError as problem:
        if problem.errno == errno.EBADF:
            return False
        raise
    return True


@dataclass(frozen=True)
class Attributes:
    """Our own process's settings that bear on privileges."""

    no_new_privs: bool
    dumpable: bool
    child_subreaper: bool
    securebits: tuple[str, ...]
    seccomp: int | None


def attributes() -> Attributes:
    """Read them, by python-prctl where it knows them."""
    return Attributes(
        no_new_privs=bool(prctl.get_no_new_privs()),
        dumpable=bool(prctl.get_dumpable()),
        child_subreaper=bool(prctl.get_child_subreaper()),
        securebits=tuple(name for name in _privileges.SECUREBITS if getattr(prctl.securebits, name, False)),
        seccomp=_status_number("Seccomp"),
    )


def bounding_set() -> int | None:
    """Return our capability bounding set as a bit mask; None where /proc does not say."""
    text = _status().get("CapBnd")
    return None if text is None else int(text, 16)


def _status() -> dict[str, str]:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _status_number(name: str) -> int | None:
    text = _status().get(name, "")
    return int(text) if text.isdigit() else None


def _read_number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _start_of(pid: int | str) -> int:
    """Return when a process started: field 22 of /proc/PID/stat (proc(5)).

    Raises OSError; ValueError or IndexError for a text that is cut.
    """
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[19])


def process_runs(process: tuple[object, object, object] | None, boot: str) -> bool | None:
    """Return whether a process of this boot runs; None where that cannot be told.

    ``process`` is its pid, when it started, and its boot, as a record told: that may be anything, and what
    is no number must not become part of a path. A pid is used again: when it started tells them apart.
    """
    if process is None or not boot or process[2] != boot:
        return None
    pid, start, _ = process
    if type(pid) is not int or type(start) is not int:
        return None
    try:
        return _start_of(pid) == start
    except (OSError, ValueError, IndexError):
        return False


def pid_namespace() -> int | None:
    """Return the inode of our PID namespace, which no other has as long as it lives; None if unknown.

    It is ours also where /proc is that of another namespace.
    """
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None


def is_gone(pid: int | None, namespace: int | None) -> bool:
    """Return whether no process of a PID namespace has that pid; False where it cannot be told.

    Both are as a record told, which may be any number. Not looked up in /proc, which may hide the processes
    of others (`hidepid`) or be of another namespace. And not told apart by when it started, which is counted
    anew in a time namespace: where the pid is used again, nothing can be told.
    """
    if pid is None or not 0 < pid < 1 << 31 or namespace is None or namespace != pid_namespace():
        return False
    try:
        os.kill(pid, 0)
    except OSError as problem:
        return problem.errno == errno.ESRCH
    return False


@lru_cache(maxsize=1)
def _who_in(pid: int) -> dict[str, object]:
    start: int | None
    try:
        start = _start_of("self")
    except (OSError, ValueError, IndexError):
        start = None
    return {
        "pid": pid,
        "start": start,
        "auid": _read_number("/proc/self/loginuid"),
        "ses": _read_number("/proc/self/sessionid"),
    }


def process() -> dict[str, object]:
    """Return what an audit record says of a process and its session that stays the same."""
    return _who_in(os.getpid())


def _short(groups: tuple[int, ...]) -> object:
    """A process may have 65536 groups, a record has 8000 bytes."""
    return list(groups) if len(groups) <= 32 else {"first": list(groups[:32]), "count": len(groups)}


def who(creds: Credentials | None) -> dict[str, object]:
    """Return the ``who`` of an audit record: process, session, ids and capabilities."""
    told = dict(process())
    told["ppid"] = os.getppid()
    if creds is not None:
        told.update(
            ruid=creds.ruid,
            euid=creds.euid,
            suid=creds.suid,
            rgid=creds.rgid,
            egid=creds.egid,
            sgid=creds.sgid,
            groups=_short(held_groups()),
            eff=f"{creds.effective:x}",
            prm=f"{creds.permitted:x}",
            inh=f"{creds.inheritable:x}",
        )
    return told


def surroundings() -> dict[str, object]:
    """Return what the opening of a chain says beside that: what seldom changes in a process.

    ``comm``, ``lsm`` and ``cgroup`` are bytes. What /proc does not say is left out.
    """
    status, told = _status(), dict[str, object]()
    for name, key, base in _FROM_STATUS:
        with contextlib.suppress(KeyError, ValueError):
            told[name] = f"{int(status[key], 16):x}" if base == 16 else int(status[key])
    with contextlib.suppress(OSError):
        told["comm"] = Path("/proc/self/comm").read_bytes().removesuffix(b"\n")
    with contextlib.suppress(OSError):  # without a security module EINVAL
        told["lsm"] = Path("/proc/self/attr/current").read_bytes().rstrip(b"\n\0")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_bytes().splitlines():
            if line.startswith(b"0::"):  # the unified hierarchy
                told["cgroup"] = line[3:]
    with contextlib.suppress(OSError):
        told |= {f"{name}_ns": os.stat(f"/proc/self/ns/{name}").st_ino for name in ("user", "mnt")}
    return told


#: Member, field of proc_pid_status(5), base.
_FROM_STATUS = (
    ("bnd", "CapBnd", 16),
    ("amb", "CapAmb", 16),
    ("nnp", "NoNewPrivs", 10),
    ("seccomp", "Seccomp", 10),
)


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the kernel's id of this boot, empty where /proc does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def booted_ns() -> int:
    """Return when this kernel was booted, by the clock as it is now: nanoseconds since 1970."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def kernel_version() -> tuple[int, int]:
    """Return major and minor version of the running kernel."""
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(takewhile(str.isdigit, minor)) or 0)


def machine() -> dict[str, str]:
    """Return kernel, machine, libc and Python versions, for reports."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()) or "unknown",
        "python": platform.python_version(),
    }


#: struct pidfd_info of linux/pidfd.h (Linux 6.13; exit status since 6.15): the mask in
#: the first word, the wait status in the last of 64 bytes.
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11


def pidfd_info(pidfd: int) -> tuple[int, int]:
    """Return what the kernel filled in and the wait status. Raises OSError, ENOTTY before 6.13."""
    info = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(info, 0, _PIDFD_INFO_EXIT, *([0] * 13))
    fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    mask, *_, status = _PIDFD_INFO.unpack(info)
    return mask, status


def exit_by_pidfd(pidfd: int, pid: int) -> Exit | None:
    """Return how a process ended that somebody else has reaped; None where it can't be had."""
    try:
        mask, status = pidfd_info(pidfd)
    except OSError:
        return None
    if not mask & _PIDFD_INFO_EXIT:
        return None
    return Exit(pid, os.waitstatus_to_exitcode(status), os.WCOREDUMP(status))
