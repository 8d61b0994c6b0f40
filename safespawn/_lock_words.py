"""The credential lock in words that whoever runs a process can act on. Pure."""

from __future__ import annotations

import os
from typing import Any

from . import _binding

_LIB = _binding.lib


def words(why: int, number: int = 0, detail: int = 0) -> str | None:
    """Return why the lock does not hold, for one answer of C; None if it does."""
    if why == _LIB.SS_LOCK_HOLDS:
        return None
    text, _ = _SAYINGS.get(why, (f"unknown reason {why}", ""))
    call = _binding.call_name(detail) if why == _LIB.SS_LOCK_STAINED else ""
    return text.format(error=os.strerror(number), detail=detail, call=call)


def advice(why: int) -> str:
    """Return what can be done about it."""
    return _SAYINGS.get(why, ("", ""))[1]


#: For each answer of C: what it means, and what whoever runs the process can do.
_SAYINGS: dict[int, tuple[str, str]] = {
    _LIB.SS_LOCK_OFF: (
        "the credential lock is not armed",
        "import safespawn early and without SAFESPAWN_ARM=0, or call guards.arm()",
    ),
    _LIB.SS_LOCK_UNLOCKABLE: (
        "the credential lock could not be armed: {error}",
        "spawns from several threads go by fork; one thread, and guards.seal(), are as good as before",
    ),
    _LIB.SS_LOCK_NOT_OURS: (
        "the credential lock's memory belongs to another process",
        "a vfork child of other code has used it first: arm again in this process",
    ),
    _LIB.SS_LOCK_STRANGER: (
        "a process that is no thread of ours shares our memory",
        "end it: neither the lock nor the seal is over it",
    ),
    _LIB.SS_LOCK_CHANGING: (
        "a change of credentials is under way",
        "the next spawn may find it done; a change that never ends is a thread that died in one",
    ),
    _LIB.SS_LOCK_EXPORTS: (
        "another interposer has rewritten libc's export table since",
        "load that one first, then call guards.arm()",
    ),
    _LIB.SS_LOCK_NAMESPACES: (
        "{detail} loaded objects are in other link namespaces (dlmopen, LD_AUDIT) or copies of libc",
        "load plug-ins with dlopen instead of dlmopen, and start without LD_AUDIT; musl cannot tell",
    ),
    _LIB.SS_LOCK_CAPTURED: (
        "{detail} pointers to functions that change credentials were taken before arming",
        "import safespawn before the library that holds them, or let go of them and call guards.arm()",
    ),
    _LIB.SS_LOCK_UNSEARCHED: (
        "part of our memory could not be searched for pointers taken before arming",
        "import safespawn before mappings of 64 GiB or more are made, and before privileges are dropped",
    ),
    _LIB.SS_LOCK_FOREIGN: (
        "another interposer stands before libc (LD_PRELOAD?)",
        "start without the preloaded library; spawns of a process with one thread stay fast",
    ),
    _LIB.SS_LOCK_UNSETTLED: (
        "armed a moment ago beside other threads, or being armed just now",
        "it holds a tenth of a second later; import safespawn before threads start",
    ),
    _LIB.SS_LOCK_STAINED: (
        "a thread called {call} for itself, which nothing shows",
        "set securebits, filters, keyrings and Landlock before threads start, or seccomp with TSYNC",
    ),
    _LIB.SS_LOCK_DIFFER: (
        "thread {detail} has other credentials than the rest",
        "start threads after the drop, or drop by libc's calls that reach all threads, or end that thread",
    ),
    _LIB.SS_LOCK_UNSEEN: (
        "the threads could not be compared: {error}",
        "mount /proc, of our own PID namespace, with our own threads to be seen",
    ),
    _LIB.SS_LOCK_PASS: (
        "calls that are bound to libc could not be led to us: {error}",
        "a sandbox or the kernel refuses mprotect: spawns from several threads go by fork",
    ),
    _LIB.SS_LOCK_FORKED: (
        "forked beside other threads, one of which may have held the loader's lock",
        "fork before threads start, or start this process by exec",
    ),
    _LIB.SS_LOCK_UNBOUNDED: (
        "a child could not be killed for a change, pidfd_send_signal: {error}",
        "allow that system call in the sandbox's profile",
    ),
    _LIB.SS_LOCK_OFTEN: (
        "many threads, and a change since the last spawn",
        "nothing: they are compared at the next spawn, unless changes go on",
    ),
}


def problems(seen: dict[str, Any], why: tuple[int, int, int]) -> list[str]:
    """Return what keeps the lock from covering everything, with what to do about it.

    ``seen`` is the status that C gave, ``why`` its answer of now: code, errno, number.
    """
    found: dict[int, str] = {}

    def add(code: int, number: int = 0, detail: int = 0, where: str = "") -> None:
        found.setdefault(code, f"{words(code, number, detail)}{where}: {advice(code)}")

    if seen["captured"]:
        where = f"{seen['captured_at']:#x} in {seen['captured_in'] or 'anonymous memory'}"
        add(_LIB.SS_LOCK_CAPTURED, detail=seen["captured"], where=f" (first at {where})")
    if seen["foreign"]:
        where = f"{seen['foreign_name']} is in {seen['foreign_in'] or 'the program itself'}"
        add(_LIB.SS_LOCK_FOREIGN, where=f" ({where})")
    if seen["other_namespaces"] and seen["state"] == "armed":
        add(_LIB.SS_LOCK_NAMESPACES, detail=seen["other_namespaces"])
    if seen["unsearched"]:
        add(_LIB.SS_LOCK_UNSEARCHED)
    if why[0] not in (_LIB.SS_LOCK_HOLDS, _LIB.SS_LOCK_CHANGING, _LIB.SS_LOCK_OFTEN):
        add(*why)
    return list(found.values())
