"""Which kernel features are here, found by trying them in a child or on a throw-away."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from collections.abc import Callable
from typing import NamedTuple

from . import _binding, _helpers, _launcher, _probe


class Feature(NamedTuple):
    """One feature: whether it is here, and what it is for or why it is missing."""

    name: str
    available: bool
    why: str


def _tried(name: str, purpose: str, trial: Callable[[], None]) -> Feature:
    try:
        trial()
    except OSError as problem:
        return Feature(name, False, f"{purpose}: {problem.strerror}")
    return Feature(name, True, purpose)


def _asked(feature: int) -> Callable[[], None]:
    return lambda: _binding.try_feature(feature)


def _with_pidfd(trial: Callable[[int], object]) -> Callable[[], None]:
    def run() -> None:
        pidfd = os.pidfd_open(os.getpid())
        try:
            trial(pidfd)
        finally:
            os.close(pidfd)

    return run


def _memory_shared() -> None:
    seen = _probe.look()
    proof = _probe.sharing_proof(seen)
    if not proof:
        raise OSError(errno.EBUSY, "not tried, because no proof holds")
    if not _binding.memory_shared(proof, seen):
        raise OSError(errno.ENOTSUP, "the child had a copy")


def _launcher_file() -> None:
    _, fault = _launcher.hold()
    if fault is not None:
        raise OSError(errno.EACCES, fault)


def _helper_file() -> None:
    with open(_helpers.PATH, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != _binding.helper_digest():
            raise OSError(errno.EACCES, f"{_helpers.PATH} is not the one that was built with us")


def _dev_fd() -> None:
    os.stat("/dev/fd")


def _landlock() -> Feature:
    abi = _binding.landlock_abi()
    found = f"ABI {abi}" if abi > 0 else os.strerror(-abi) if abi else "none"
    return Feature("landlock", abi > 0, f"a child loses all files but some (Linux 5.13): {found}")


def probe() -> list[Feature]:
    """Try them all; nothing of it lasts."""
    lib = _binding.lib
    return [
        _tried("shared memory", "CLONE_VM shares memory, so the fast path can report", _memory_shared),
        _tried("clone3", "no handler in a child from birth; else a loop", _asked(lib.SS_TRY_CLONE3)),
        _tried("pidfd", "waits and signals reach no other process",
               _with_pidfd(lambda fd: signal.pidfd_send_signal(fd, 0))),
        _tried("pidfd info", "the exit status of a child that others reaped (Linux 6.15)",
               _with_pidfd(_probe.pidfd_info)),
        _tried("close_range", "descriptors marked in one call (Linux 5.11); else one by one",
               _asked(lib.SS_TRY_CLOSE_RANGE)),
        _tried("faccessat2", "execute permission by effective ids (Linux 5.8); else by real ids",
               _asked(lib.SS_TRY_FACCESSAT2)),
        _tried("move_pages", "a child that runs its program told quickly; else by /proc",
               _asked(lib.SS_TRY_MOVE_PAGES)),
        _tried("launcher", "another user at the price of vfork; else by fork", _launcher_file),
        _tried("helper", "children that a small process makes for a large one", _helper_file),
        _tried("/dev/fd", "scripts can be pinned", _dev_fd),
        _landlock(),
    ]  # fmt: skip
