"""Leaves a `cred.change` record of every change of credentials that the lock saw.

C keeps the last 128 of them, because its wrappers run where nothing may be written; they
are fetched after each change that Python makes, before each spawn, and at exit.
"""

from __future__ import annotations

import atexit
import errno
from collections.abc import Mapping
from functools import partial
from typing import Any

from . import _binding, _lock, _probe, audit
from ._spec import Credentials

#: How many of a call's arguments are numbers that say something; the others are addresses.
_NUMBERS = {
    "setuid": 1, "seteuid": 1, "setreuid": 2, "setresuid": 3, "setgid": 1, "setegid": 1, "setregid": 2,
    "setresgid": 3, "setgroups": 1, "setfsuid": 1, "setfsgid": 1, "prctl": 3, "setns": 2, "unshare": 1,
    "seccomp": 2, "keyctl": 1, "landlock_restrict_self": 2,
}  # fmt: skip


def _creds(creds: Credentials) -> dict[str, Any]:
    return {
        "uids": [creds.ruid, creds.euid, creds.suid],
        "gids": [creds.rgid, creds.egid, creds.sgid],
        "eff": f"{creds.effective:x}",
        "prm": f"{creds.permitted:x}",
        "inh": f"{creds.inheritable:x}",
    }


def _fields(change: _binding.Change, wait: _lock.Wait | None) -> Mapping[str, Any]:
    waited_ns, killed = change.waited_ns, change.killed
    if wait is not None and wait.tid == change.tid:  # Python waited before it made the call
        waited_ns, killed = waited_ns + wait.ns, killed + wait.killed
    through = "psx" if change.by_psx else "syscall" if change.by_syscall else "libc"
    return {
        "who": _probe.who(None),
        "change": {
            "call": change.call,
            "through": through,
            "args": list(change.arguments[: _NUMBERS.get(change.call, 0)]),
            "tid": change.tid,
            "at_ns": change.time_ns,
            "errno": change.errno,
            "name": errno.errorcode.get(change.errno, ""),
            "before": _creds(change.before),
            "after": _creds(change.after),
            "waited_ns": waited_ns,
            "killed": killed,
        },
    }


def _lost_fields(count: int) -> Mapping[str, Any]:
    return {"who": _probe.who(None), "change": {"lost": count}}


def record(wait: _lock.Wait | None = None) -> None:
    """Leave the records of all changes that have none yet; ``wait`` is that of the last one."""
    for seen in _lock.fetch():
        if isinstance(seen, int):
            audit.emit("cred.change", audit.new_id(), partial(_lost_fields, seen))
        else:
            audit.emit("cred.change", audit.new_id(), partial(_fields, seen, wait))


_lock.on_change(record)
# Before the ledger is closed: what was registered later runs earlier.
atexit.register(record)
