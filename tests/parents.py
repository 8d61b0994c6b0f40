"""What snippets need to become a parent of another sort: other ids, other capabilities."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import prctl

_X86_64 = {"rt_sigaction": 13, "ioprio_set": 251}
_AARCH64 = {"rt_sigaction": 134, "ioprio_set": 30}
NR = _X86_64 if os.uname().machine == "x86_64" else _AARCH64
libc = ctypes.CDLL(None, use_errno=True)
AMBIENT, RAISE = 47, 2  # PR_CAP_AMBIENT of prctl(2)


def ours() -> int:
    """Return our permitted capabilities."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("CapPrm")).split()[1], 16)


def become(uid: int, gid: int) -> None:
    """Become somebody else wholly, without any group."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def capset(permitted: int, inheritable: int = 0) -> None:
    """Hold these capabilities, the permitted ones effective."""
    sets = (permitted, permitted, inheritable)
    words = [part & 0xFFFFFFFF for part in sets] + [part >> 32 for part in sets]
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(*words)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def ambient(number: int) -> None:
    """Raise an ambient capability, which has to be permitted and inheritable."""
    if libc.prctl(AMBIENT, RAISE, number, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_CAP_AMBIENT_RAISE")


def as_somebody(permitted: int, inheritable: int = 0) -> None:
    """Become a user without privileges who holds these capabilities all the same."""
    prctl.set_keepcaps(True)
    become(1000, 1001)
    prctl.set_keepcaps(False)
    capset(permitted, inheritable)


def in_user_namespace() -> None:
    """Go where root of a container is: all capabilities, and nobody known but ourselves."""
    if libc.unshare(0x10000000):  # CLONE_NEWUSER
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("uid_map", "0 0 1"), ("setgroups", "deny"), ("gid_map", "0 0 1")):
        Path(f"/proc/self/{name}").write_text(text)


def ignore_raw(number: int) -> None:
    """Ignore a signal that libc keeps for itself, and refuses to let us have."""
    action = (ctypes.c_ulong * 4)(1, 0, 0, 0)  # SIG_IGN
    if libc.syscall(NR["rt_sigaction"], number, action, None, 8):
        raise OSError(ctypes.get_errno(), "rt_sigaction")
