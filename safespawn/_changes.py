"""Leaves a `cred.change` record of every change of credentials that the lock saw.

C keeps the last 128 of them, because its wrappers run where nothing may be written; they
are fetched after each change that Python makes, before each spawn, and at exit.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

from . import _binding, _lock, _probe, audit
from ._errors import AuditError
from ._spec import Credentials
from .audit import _record

#: Whether this thread is writing such records just now.
_busy = threading.local()

#: How many of a call's arguments are numbers that say something; the others are addresses.
_NUMBERS = {
    "setuid": 1, "seteuid": 1, "setreuid": 2, "setresuid": 3, "setgid": 1, "setegid": 1, "setregid": 2,
    "setresgid": 3, "setgroups": 1, "setfsuid": 1, "setfsgid": 1, "prctl": 3, "setns": 2, "unshare": 1,
    "seccomp": 2, "keyctl": 1, "landlock_restrict_self": 2,
}  # fmt: skip


def _state(creds: Credentials, more: _binding.More) -> dict[str, Any]:
    groups = more.groups if more.groups is not None else more.ngroups
    return {
        "uids": [creds.ruid, creds.euid, creds.suid, more.fsuid],
        "gids": [creds.rgid, creds.egid, creds.sgid, more.fsgid],
        "groups": list(groups) if isinstance(groups, tuple) else {"count": groups},
        "eff": f"{creds.effective:x}",
        "prm": f"{creds.permitted:x}",
        "inh": f"{creds.inheritable:x}",
    }


def _arguments(change: _binding.Change) -> list[Any]:
    """Return those that say something. Ids are numbers of 32 bits, however they were passed."""
    if change.text:
        return [_record.text(change.text.encode("utf-8", "surrogateescape"))]
    ids = change.call.startswith("set") and change.call not in ("setns", "setgroups")
    bits = 0xFFFFFFFF if ids else 0xFFFFFFFFFFFFFFFF
    return [value & bits for value in change.arguments[: _NUMBERS.get(change.call, 0)]]


def _fields(change: _binding.Change, wait: _lock.Wait | None) -> Mapping[str, Any]:
    waited_ns, killed = change.waited_ns, change.killed
    if wait is not None and wait.tid == change.tid:  # Python waited before it made the call
        waited_ns, killed = waited_ns + wait.ns, killed + wait.killed
    through = "psx" if change.by_psx else "syscall" if change.by_syscall else "libc"
    if change.call in ("credential_change", "seal"):
        through = "bracket"
    return {
        "who": _probe.who(None),
        "change": {
            "call": change.call,
            "through": through,
            "args": _arguments(change),
            "tid": change.tid,
            "at_ns": change.time_ns,
            "errno": change.errno,
            "name": errno.errorcode.get(change.errno, ""),
            "before": _state(change.before, change.more_before),
            "after": _state(change.after, change.more_after),
            "waited_ns": waited_ns,
            "killed": killed,
            **_aside(),
        },
    }


def _aside() -> dict[str, int]:
    count, _busy.aside = getattr(_busy, "aside", 0), 0
    return {"by_recorder": count} if count else {}


def _lost_fields(count: int) -> Mapping[str, Any]:
    return {"who": _probe.who(None), "change": {"lost": count}}


def record(wait: _lock.Wait | None = None) -> None:
    """Leave the records of all changes that have none yet; ``wait`` is that of the last one."""
    if getattr(_busy, "recording", False):
        return
    _busy.recording = True
    try:
        for seen in list(_lock.fetch()):
            _record_one(seen, wait)
        _set_own_aside()
    finally:
        _busy.recording = False


def _record_one(seen: _binding.Change | int, wait: _lock.Wait | None) -> None:
    make = partial(_lost_fields, seen) if isinstance(seen, int) else partial(_fields, seen, wait)
    audit.emit("cred.change", audit.new_id(), make)


def _set_own_aside() -> None:
    """Count what keeping the records has changed itself, such as a handler that switches users.

    A record of these would make as many again, without end. The next record tells how many.
    """
    own = threading.get_native_id()
    for seen in list(_lock.fetch()):
        if isinstance(seen, _binding.Change) and seen.tid == own:
            _busy.aside = getattr(_busy, "aside", 0) + 1
        else:
            _record_one(seen, None)


def _hear() -> None:
    """Open the ledger that the environment asks for while we still may: the change may be a drop."""
    if getattr(_busy, "recording", False):
        return
    with contextlib.suppress(AuditError):  # then every spawn is refused; the change is not ours to
        audit.is_heard()


_lock.on_change(record, _hear)
# Before the ledger is closed: what was registered later runs earlier.
atexit.register(record)
