"""The credential lock seen from Python: arming, sealing, brackets around changes; decides nothing.

The lock itself is C (_credlock.c). It is armed when safespawn is imported, unless
``SAFESPAWN_ARM=0``. Python's own functions that change credentials are made to wait without
the GIL, and what the wrappers saw is fetched.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import posix
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import _binding, _lock_words

#: Functions of `os` that change credentials. They hold the GIL while they wait.
FUNCTIONS = (
    "setuid", "seteuid", "setreuid", "setresuid", "setgid", "setegid", "setregid", "setresgid",
    "setgroups", "initgroups", "chroot", "setns", "unshare",
)  # fmt: skip

#: Those that start a program on shared memory: guard_foreign. They hold the GIL as well.
FOREIGN = ("posix_spawn", "posix_spawnp")

#: Seconds that they wait for changes to finish.
FOREIGN_WAIT = 1.0


class Wait(NamedTuple):
    """How long a change of this thread waited for spawns, and how many children that cost."""

    tid: int
    ns: int
    killed: int


class _State:
    """Who is told before and after changes; and whether a fork has just been.

    Between fork and exec nothing of Python's may be locked, and telling takes locks: what a
    ``preexec_fn`` changes is told later, if ever the child comes to that.
    """

    forked = False
    before: Callable[[], None] | None = None
    told: Callable[[Wait | None], None] | None = None


def on_change(told: Callable[[Wait | None], None], before: Callable[[], None] | None = None) -> None:
    """Have one called before, the other after each change that Python makes."""
    _State.told, _State.before = told, before


def arm(*, wait: float | None = None, guard_foreign: bool = False) -> None:
    """Put the wrappers in place; see :func:`safespawn.guards.arm`. Never raises OSError."""
    if wait is not None and (isinstance(wait, bool) or not isinstance(wait, (int, float))):
        raise TypeError(f"wait must be a number of seconds, not {wait!r} ({type(wait).__name__})")
    if wait is not None and not 0.001 <= wait <= 60:
        raise ValueError(f"wait must be from 0.001 to 60 seconds, not {wait!r}")
    if not isinstance(guard_foreign, bool):
        kind = type(guard_foreign).__name__
        raise TypeError(f"guard_foreign must be a bool, not {guard_foreign!r} ({kind})")
    _binding.arm(foreign=guard_foreign, wait_ns=int((wait or 0) * 1e9))
    seen = _binding.lock_status()
    if seen["exports"]:  # also when the rest has failed: then C waits all the same
        _replace(FUNCTIONS, _Waits)
    if seen["guard_foreign"]:
        _replace(FOREIGN, _Retries)


class _Function:
    """Stands in for a function of `os`. Like it, no method when it is a class's attribute."""

    is_guarded = True
    __wrapped__: Callable[..., Any]

    def __init__(self, real: Callable[..., Any]) -> None:
        """Take over name, documentation and signature."""
        functools.update_wrapper(self, real)  # type: ignore[arg-type]  # any object will do
        self._real = real

    def __reduce__(self) -> str:
        """Pickle by name, as functions do."""
        return str(self._real.__name__)

    def __repr__(self) -> str:
        """Say what it is."""
        return f"<built-in function {self._real.__name__}, guarded by safespawn>"


class _Waits(_Function):
    """Waits for the lock before it makes its change, without the GIL.

    The wrapper in C waits too, but its caller holds the GIL, and then every Python thread
    would stand still, the one that is to end the wait perhaps among them.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Wait, call the real one, and leave a record."""
        with _bracket(_binding.CALL_NONE):
            return self._real(*args, **kwargs)


class _Retries(_Function):
    """Waits for changes to finish, without the GIL, for which they may wait themselves."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the real one; again while it is refused for a change, for a second at most."""
        until = time.monotonic() + FOREIGN_WAIT
        while True:
            in_time = _binding.await_changers(max(0.0, until - time.monotonic()))
            try:
                return self._real(*args, **kwargs)
            except BlockingIOError:
                if not in_time or time.monotonic() >= until or not is_changing():
                    raise


def _replace(names: tuple[str, ...], how: type[_Function]) -> None:
    """Put ours in the place of functions of `os`, where nobody else has put theirs."""
    for name in names:
        found = getattr(posix, name, None)
        if found is None:
            continue
        # Guarded already: by us, or by another copy of this module.
        ours = found if hasattr(found, "is_guarded") else how(found)
        if getattr(os, name, None) is ours.__wrapped__:
            setattr(os, name, ours)
        setattr(posix, name, ours)


@contextlib.contextmanager
def _bracket(call: int) -> Iterator[None]:
    if _State.before is not None and not _State.forked:
        _State.before()
    changing, error = _binding.Changing(call), 0
    try:
        changing.begin()
        yield
    except BaseException as problem:
        error = getattr(problem, "errno", None) or errno.ECANCELED
        raise
    finally:
        changing.end(error)
        if _State.told is not None and not _State.forked:
            # The record of any other has these numbers in it.
            waited = Wait(threading.get_native_id(), changing.waited_ns, changing.killed)
            _State.told(waited if call == _binding.CALL_NONE else None)


def credential_change() -> contextlib.AbstractContextManager[None]:
    """Bracket a change that libc does not see; see :func:`safespawn.guards.credential_change`."""
    return _bracket(_binding.CALL_RAW)


def fetch() -> Iterator[_binding.Change | int]:
    """Yield every change seen that nobody took yet; a number where so many were lost."""
    while (seen := _binding.take_change()) is not None:
        yield seen


def settle() -> None:
    """Say that this process goes on: it has not been forked only to run a program."""
    _State.forked = False


def _after_fork() -> None:
    _State.forked = True


os.register_at_fork(after_in_child=_after_fork)

# -------------------------------------------------------------------- the seal


class _Sealed:
    """What the comparison of the threads under the seal came to; nothing changes since."""

    error: int | None = None


def seal() -> None:
    """Seal this process; see :func:`safespawn.guards.seal`."""
    # As any change: a child on our memory would be left without the filter.
    with _bracket(_binding.CALL_SEAL):
        _binding.seal()
    _Sealed.error = _binding.compare_tasks()


def is_sealed() -> bool:
    """Whether no thread can change credentials any more, and all have the same."""
    return _Sealed.error == 0 and _binding.is_sealed()


def unsealed() -> str | None:
    """Return why the seal is no proof, None if it is one."""
    if not _binding.is_sealed():
        if _binding.changes_are_refused():
            return "not sealed by us, but a filter that was inherited refuses changes: user= fails here"
        return "not sealed"
    return _binding.not_alike(_Sealed.error)


# ------------------------------------------------------------------------ looks


def is_changing() -> bool:
    """Whether a change is under way or waits."""
    return _binding.look_at_lock()[0] == _binding.lib.SS_LOCK_CHANGING


def describe(seen: _binding.Seen) -> str | None:
    """Return why the lock does not hold, as a person would say it; None if it does."""
    return _lock_words.words(seen.lock, seen.lock_errno, seen.lock_detail)


def why_not() -> str | None:
    """Look now, also in a process with one thread, and say why the lock does not hold."""
    return _lock_words.words(*_binding.look_at_lock())


def status() -> dict[str, Any]:
    """Return what is covered and what is not; the keys are told at :func:`safespawn.guards.status`."""
    why = _binding.look_at_lock()
    seen = _binding.lock_status()
    problems = _lock_words.problems(seen, why)
    return {**seen, "problems": problems, "why": problems[0] if problems else ""}


if os.environ.get("SAFESPAWN_ARM") != "0":
    arm()
