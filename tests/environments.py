"""What a program may find itself in: each environment is entered by the calling process, which becomes part of it.

Those that make a PID namespace end the caller with the exit status of its process 1.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import parents
import prctl
import sandbox
from helpers import ROOT

# mount(2), umount2(2), unshare(2)
_RDONLY, _NOSUID, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_NEWNS, _NEWUSER, _NEWPID = 0x20000, 0x10000000, 0x20000000

_CAP_SETGID, _CAP_SETUID, _CAP_SYS_PTRACE = 6, 7, 19
#: What a container of Docker's keeps (its documentation, "Runtime privilege and Linux capabilities").
_CONTAINER = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
#: What its filter refuses to who has not CAP_SYS_ADMIN, of those that we know the numbers of.
_CONTAINER_REFUSES = {
    "clone3": errno.ENOSYS,
    "unshare": errno.EPERM,
    "setns": errno.EPERM,
    "mount": errno.EPERM,
    "umount2": errno.EPERM,
    "pivot_root": errno.EPERM,
    "kcmp": errno.EPERM,
    "move_pages": errno.EPERM,
    "process_vm_readv": errno.EPERM,
    "ptrace": errno.EPERM,
    "keyctl": errno.EPERM,
    "userfaultfd": errno.EPERM,
    "io_uring_setup": errno.EPERM,
}
#: What a kernel that is written anew, or is old, has not.
_NOT_THERE = dict.fromkeys(
    ("clone3", "close_range", "openat2", "faccessat2", "move_pages", "kcmp", "process_vm_readv", "landlock_create_ruleset",
     "userfaultfd", "io_uring_setup"), errno.ENOSYS
)  # fmt: skip


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(parents.ctypes.get_errno(), what)


def _unshare(flags: int) -> None:
    _checked(parents.libc.unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    kind_bytes, data_bytes = (None if text is None else text.encode() for text in (kind, data))
    _checked(parents.libc.mount(source.encode(), target.encode(), kind_bytes, flags, data_bytes), f"mount {target}")


def _own_mounts() -> None:
    _unshare(_NEWNS)
    _mount("none", "/", None, _REC | _PRIVATE)


def _remount(target: str, flags: int) -> None:
    _mount(target, target, None, _BIND | _REC)
    _mount("none", target, None, _BIND | _REMOUNT | flags)


def _fork_inside() -> None:
    """Go on as a child, which is process 1 after `_NEWPID`; the caller ends as it does."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        sys.stderr.flush()
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _cover(place: str, flags: int) -> None:
    """Put an empty file system there; what we run from stays where it is, and is neither read-only nor noexec."""
    below = [path for path in sorted({str(ROOT), sys.prefix, sys.base_prefix}) if path.startswith(f"{place}/")]
    kept = {path: os.open(path, os.O_PATH) for path in below}
    _mount("none", place, "tmpfs")
    for path, fd in kept.items():
        os.makedirs(path, exist_ok=True)  # one may be within another
        _mount(f"/proc/self/fd/{fd}", path, None, _BIND | _REC)
        os.close(fd)
    _mount("none", place, None, _BIND | _REMOUNT | flags)


def writable() -> str | None:
    """Return a directory that a ledger can be made in, or None."""
    for place in ("/tmp", "/dev/shm", "/var/tmp"):
        if os.access(place, os.W_OK):
            return place
    return None


def _nothing() -> None:
    pass


def _answers(answers: dict[str, int]) -> Callable[[], None]:
    return lambda: sandbox.answer(answers)


def _no_proc() -> None:
    _own_mounts()
    _checked(parents.libc.umount2(b"/proc", _DETACH), "umount /proc")


def _empty_proc() -> None:
    _own_mounts()
    _mount("none", "/proc", "tmpfs")


def _hidden_proc() -> None:
    _own_mounts()
    _mount("proc", "/proc", "proc", 0, "hidepid=invisible")
    _without(_CAP_SYS_PTRACE)()  # root sees all the same with it


def _masked_proc() -> None:
    _own_mounts()
    _mask_proc()


def _mask_proc() -> None:
    for name in ("sys", "bus", "irq"):
        _remount(f"/proc/{name}", _RDONLY)
    for name in ("kcore", "keys", "timer_list"):
        if os.path.exists(f"/proc/{name}"):
            _mount("/dev/null", f"/proc/{name}", None, _BIND)


def _proc_of_others() -> None:
    _own_mounts()
    _unshare(_NEWPID)
    _fork_inside()


def _read_only_root() -> None:
    _own_mounts()
    _cover("/tmp", 0)
    _mount("none", "/", None, _BIND | _REMOUNT | _RDONLY)


def _nowhere_to_write() -> None:
    _own_mounts()
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.path.isdir(place):
            _cover(place, _RDONLY)
    _mount("none", "/", None, _BIND | _REMOUNT | _RDONLY)


def _noexec_tmp() -> None:
    _own_mounts()
    _cover("/tmp", _NOEXEC | _NOSUID)


def _no_new_privs() -> None:
    prctl.set_no_new_privs(True)


def _user_namespace() -> None:
    parents.in_user_namespace()


def _mapped_user_namespace() -> None:
    """Be root of a user namespace that knows 65536 ids, as rootless containers are: maps written from outside."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.read(ready[0], 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{os.getppid()}/{name}").write_text("0 0 1\n1 100001 65535\n", "ascii")
        os.write(go[1], b".")
        os._exit(0)
    _unshare(_NEWUSER)
    os.write(ready[1], b".")
    os.read(go[0], 1)
    os.waitpid(pid, 0)
    for fd in (*ready, *go):
        os.close(fd)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([0])


def _without(*numbers: int) -> Callable[[], None]:
    return lambda: _keep(bit for bit in range(64) if bit not in numbers)


def _keep(numbers: Iterable[int]) -> None:
    """Drop all other capabilities, from the bounding set too, so that no program has them back."""
    kept = sum(1 << bit for bit in numbers)
    for bit in range(64):
        if not kept >> bit & 1 and parents.libc.prctl(24, bit, 0, 0, 0):  # PR_CAPBSET_DROP
            break  # the last capability of this kernel was before
    parents.capset(parents.ours() & kept)


def _process_1() -> None:
    _unshare(_NEWPID | _NEWNS)
    _mount("none", "/", None, _REC | _PRIVATE)
    _fork_inside()
    _mount("proc", "/proc", "proc")


def _container(caps: tuple[int, ...] = _CONTAINER) -> None:
    """What Docker's defaults come to, with a read-only root and no_new_privs, both of which it offers."""
    _process_1()
    _mask_proc()
    _cover("/tmp", _NOEXEC | _NOSUID)
    _mount("none", "/", None, _BIND | _REMOUNT | _RDONLY)
    _keep(caps)
    sandbox.answer(_CONTAINER_REFUSES, namespaces=errno.EPERM)


def _bare_container() -> None:
    """The same without any capability, as Kubernetes' profile `restricted` has it; ids stay 0."""
    _container(())


@dataclass(frozen=True)
class Environment:
    """How it is entered, and what it is, in the words of the documentation."""

    how: Callable[[], None]
    about: str

    def enter(self) -> None:
        """Become part of it; nothing that was used for it stays."""
        self.how()
        # ctypes keeps the functions that it was asked for, and the lock would find the pointers.
        for name in ("unshare", "mount", "umount2", "prctl", "capset"):
            vars(parents.libc).pop(name, None)
        gc.collect()


ENVIRONMENTS: dict[str, Environment] = {
    "plain": Environment(_nothing, "root, nothing refused"),
    "clone3 is ENOSYS": Environment(_answers({"clone3": errno.ENOSYS}), "a seccomp profile older than clone3"),
    "clone3 is EPERM": Environment(_answers({"clone3": errno.EPERM}), "the same, of a runtime that says EPERM"),
    "no namespaces": Environment(lambda: sandbox.answer({"unshare": errno.EPERM, "clone3": errno.ENOSYS}, namespaces=errno.EPERM),
                                 "clone with CLONE_NEW*, unshare and clone3 refused"),
    "memfd_create is EPERM": Environment(_answers({"memfd_create": errno.EPERM}), ""),
    "memfd_create is ENOSYS": Environment(_answers({"memfd_create": errno.ENOSYS}), ""),
    "pidfd_open is EPERM": Environment(_answers({"pidfd_open": errno.EPERM}), ""),
    "pidfd_open is ENOSYS": Environment(_answers({"pidfd_open": errno.ENOSYS}), ""),
    "pidfd_send_signal is EPERM": Environment(_answers({"pidfd_send_signal": errno.EPERM}), ""),
    "little is there": Environment(_answers(_NOT_THERE), "an old or a rewritten kernel"),
    "no /proc": Environment(_no_proc, "not mounted"),
    "empty /proc": Environment(_empty_proc, "something else is mounted there"),
    "hidepid": Environment(_hidden_proc, "a user who sees its own processes only"),
    "masked /proc": Environment(_masked_proc, "parts of it read-only or hidden"),
    "/proc of others": Environment(_proc_of_others, "a PID namespace without a /proc of its own"),
    "read-only /": Environment(_read_only_root, ""),
    "nowhere to write": Environment(_nowhere_to_write, ""),
    "noexec /tmp": Environment(_noexec_tmp, ""),
    "no_new_privs": Environment(_no_new_privs, ""),
    "root of a user namespace": Environment(_user_namespace, "one id is known there"),
    "root of a mapped user namespace": Environment(_mapped_user_namespace, "65536 ids are known there"),
    "no CAP_SETUID": Environment(_without(_CAP_SETUID, _CAP_SETGID), ""),
    "no CAP_SYS_PTRACE": Environment(_without(_CAP_SYS_PTRACE), ""),
    "process 1": Environment(_process_1, ""),
    "container": Environment(_container, ""),
    "bare container": Environment(_bare_container, "the same without any capability"),
}  # fmt: skip
