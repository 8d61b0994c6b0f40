"""The credential lock seen from Python: arming, words, `credential_change`; decides nothing.

The lock itself is C (_credlock.c). Here is what a process does with it: it is armed when
safespawn is imported, unless ``SAFESPAWN_ARM=0``; Python's own functions that change
credentials are made to wait without the GIL; what the wrappers saw is fetched.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posix
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import _binding

#: Seconds. Past it a child that has not run its program yet is killed for a change.
CHANGE_WAIT = 0.1

#: Functions of `os` that change credentials. They hold the GIL while they wait.
FUNCTIONS = (
    "setuid", "seteuid", "setreuid", "setresuid", "setgid", "setegid", "setregid", "setresgid",
    "setgroups", "initgroups", "chroot", "setns", "unshare",
)  # fmt: skip


class Wait(NamedTuple):
    """How long a change of this thread waited for spawns, and how many children that cost."""

    tid: int
    ns: int
    killed: int


class _State:
    """Who is to be told that there are changes to fetch."""

    told: Callable[[Wait], None] | None = None


def arm(*, wait: float = CHANGE_WAIT, guard_foreign: bool = False) -> None:
    """Put the wrappers in place; see :func:`safespawn.guards.arm`. Never raises OSError."""
    if isinstance(wait, bool) or not isinstance(wait, (int, float)):
        raise TypeError(f"wait must be a number of seconds, not {wait!r} ({type(wait).__name__})")
    if not 0 < wait <= 60:
        raise ValueError(f"wait must be more than 0 and at most 60 seconds, not {wait!r}")
    _binding.arm(foreign=guard_foreign, wait_ns=int(wait * 1e9))
    if _binding.is_armed():
        for name in FUNCTIONS:
            _let_wait(name)


def _let_wait(name: str) -> None:
    """Make one function of `os` wait for the lock before it is called, without the GIL.

    The wrapper in C waits too, but its caller holds the GIL, and then every Python thread
    would stand still, the one that is to end the wait perhaps among them.
    """
    real = getattr(posix, name, None)
    if real is None or hasattr(real, "__wrapped__"):
        return

    @functools.wraps(real)
    def change(*args: Any, **kwargs: Any) -> Any:
        with _bracket(_binding.CALL_NONE):
            return real(*args, **kwargs)

    setattr(posix, name, change)
    setattr(os, name, change)


@contextlib.contextmanager
def _bracket(call: int) -> Iterator[None]:
    changing = _binding.Changing(call)
    try:
        changing.begin()
        yield
    finally:
        changing.end()
        if _State.told is not None:
            _State.told(Wait(threading.get_native_id(), changing.waited_ns, changing.killed))


def credential_change() -> contextlib.AbstractContextManager[None]:
    """Bracket a change that libc does not see; see :func:`safespawn.guards.credential_change`."""
    return _bracket(_binding.CALL_RAW)


def on_change(told: Callable[[Wait], None]) -> None:
    """Have ``told`` called after each change that Python makes."""
    _State.told = told


def fetch() -> Iterator[_binding.Change | int]:
    """Yield every change seen that nobody took yet; a number where so many were lost."""
    while (seen := _binding.take_change()) is not None:
        yield seen


# The kernel has cleared the lock's memory: take it over, before a vfork child of others does.
os.register_at_fork(after_in_child=_binding.lock_status)


class _Sealed:
    """Whether the threads were found alike under the seal; credentials cannot change since."""

    alike = False


def seal() -> None:
    """Seal this process; see :func:`safespawn.guards.seal`."""
    # As any change: a child on our memory would be left without the filter.
    with _bracket(_binding.CALL_SEAL):
        _binding.seal()
    _Sealed.alike = _binding.tasks_alike()


def is_sealed() -> bool:
    """Whether no thread can change credentials any more, and all have the same."""
    return _Sealed.alike and _binding.is_sealed()


def unsealed() -> str | None:
    """Return why the seal is no proof, None if it is one."""
    if not _binding.is_sealed():
        return "not sealed"
    return None if _Sealed.alike else "sealed, but threads differed then"


# ------------------------------------------------------------------------ words


def describe(seen: _binding.Seen) -> str | None:
    """Return why the lock does not hold, as a person would say it; None if it does."""
    return words(seen.lock, seen.lock_errno, seen.lock_detail)


def why_not() -> str | None:
    """Look now, also in a process with one thread, and say why the lock does not hold."""
    return words(*_binding.look_at_lock())


def words(why: int, number: int = 0, detail: int = 0) -> str | None:
    """Return the sentence for one answer of C."""
    lib = _binding.lib
    if why == lib.SS_LOCK_HOLDS:
        return None
    said = {
        lib.SS_LOCK_OFF: "the credential lock is not armed (SAFESPAWN_ARM=0; guards.arm() arms it)",
        lib.SS_LOCK_UNLOCKABLE: f"the credential lock could not be armed: {os.strerror(number)}",
        lib.SS_LOCK_NOT_OURS: "the credential lock's memory belongs to another process",
        lib.SS_LOCK_STRANGER: "a process that is no thread of ours shares our memory",
        lib.SS_LOCK_CHANGING: "a change of credentials is under way",
        lib.SS_LOCK_EXPORTS: "another interposer has rewritten libc's export table since",
        lib.SS_LOCK_NAMESPACES: f"{detail} loaded objects are in other link namespaces (dlmopen, LD_AUDIT) "
        "or copies of libc",
        lib.SS_LOCK_CAPTURED: f"{detail} pointers to functions that change credentials "
        "were taken before arming",
        lib.SS_LOCK_UNSEARCHED: "part of our memory could not be searched for pointers taken before arming",
        lib.SS_LOCK_FOREIGN: "another interposer stands before libc (LD_PRELOAD?)",
        lib.SS_LOCK_UNSETTLED: "armed a moment ago beside other threads",
        lib.SS_LOCK_STAINED: f"a thread called {_binding.call_name(detail)} for itself, which nothing shows",
        lib.SS_LOCK_DIFFER: f"thread {detail} has other credentials than the rest",
        lib.SS_LOCK_UNSEEN: f"the threads could not be looked at: {os.strerror(number)}",
        lib.SS_LOCK_PASS: f"calls that are bound to libc could not be led to us: {os.strerror(number)}",
    }
    return said.get(why, f"unknown reason {why}")


#: What whoever runs the process can do about it.
ADVICE = {
    "off": "import safespawn early, without SAFESPAWN_ARM=0, or call guards.arm()",
    "captured": "import safespawn before the library that holds them, or let go of them and arm again",
    "foreign": "start the process without the preloaded library; single-threaded spawns stay fast",
    "namespaces": "load plug-ins with dlopen instead of dlmopen, and start without LD_AUDIT",
    "unlockable": "spawns from several threads go by fork; the rest works",
}


def status() -> dict[str, Any]:
    """Return what is covered and what is not; the keys are told at :func:`safespawn.guards.status`."""
    seen = _binding.lock_status()
    state, problems = seen["state"], []
    if state == "unlockable":
        problems.append(f"{words(_binding.lib.SS_LOCK_UNLOCKABLE, seen['errno'])}: {ADVICE['unlockable']}")
    if state == "off":
        problems.append(f"not armed: {ADVICE['off']}")
    if seen["captured"]:
        where = f"first at {seen['captured_at']:#x} in {seen['captured_in'] or 'anonymous memory'}"
        problems.append(
            f"{words(_binding.lib.SS_LOCK_CAPTURED, 0, seen['captured'])} ({where}): {ADVICE['captured']}"
        )
    if seen["foreign"]:
        where = f"{seen['foreign_name']} is in {seen['foreign_in'] or 'the program itself'}"
        problems.append(f"{words(_binding.lib.SS_LOCK_FOREIGN)} ({where}): {ADVICE['foreign']}")
    if seen["other_namespaces"] and state == "armed":
        problems.append(
            f"{words(_binding.lib.SS_LOCK_NAMESPACES, 0, seen['other_namespaces'])}: {ADVICE['namespaces']}"
        )
    return {**seen, "problems": problems, "why": problems[0] if problems else ""}


if os.environ.get("SAFESPAWN_ARM") != "0":
    arm()
