"""Kills a process and all its descendants, by pidfd and without a race that can be won.

Every descendant is stopped before the next look, so it cannot fork in the meantime;
when a look finds nobody new, all are killed. A process that left the tree before (its
parent died, so it belongs to init now) is not found: only a cgroup could hold it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def _parents() -> dict[int, int]:
    """Return pid to parent pid of every process that we can see."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_bytes()
            except OSError:
                continue  # it ended while we looked
            found[int(entry)] = int(stat.rpartition(b")")[2].split()[1])
    return found


def _descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        for pid in children.get(todo.pop(), ()):
            if pid not in found:
                found.add(pid)
                todo.append(pid)
    return found


def _hold(pid: int, root: int) -> int | None:
    """Return a pidfd of ``pid``, stopped, if it is a descendant of ``root`` still."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # The number may have been taken by another process before we had the descriptor.
    if pid not in _descendants(root):
        os.close(pidfd)
        return None
    _send(pidfd, signal.SIGSTOP)
    return pidfd


def _send(pidfd: int, number: int) -> bool:
    """Return whether there is such a process; one that may not be signalled is none of the tree."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill(root: int, root_pidfd: int) -> None:
    """Kill the tree under ``root``, a child that the caller keeps from being reaped meanwhile.

    If somebody else has reaped it, the pid may be another's by now: nothing is done then. If a
    look or a descriptor cannot be had (OSError), what was found is killed all the same.
    """
    if os.readlink("/proc/self") != str(os.getpid()):
        _send(root_pidfd, signal.SIGKILL)  # the numbers in this /proc are not ours: only the root
        return
    try:
        signal.pidfd_send_signal(root_pidfd, signal.SIGSTOP)
    except ProcessLookupError:
        return
    held: dict[int, int] = {}
    try:
        while _hold_new(root, held):
            pass
    finally:
        for pidfd in held.values():
            # A handler may have reaped the root meanwhile: its pid says nothing then.
            if _send(root_pidfd, 0):
                _send(pidfd, signal.SIGKILL)
            os.close(pidfd)
        _send(root_pidfd, signal.SIGKILL)


def _hold_new(root: int, held: dict[int, int]) -> bool:
    """Stop the descendants that are not held yet; False when there are none."""
    before = len(held)
    for pid in _descendants(root) - held.keys():
        pidfd = _hold(pid, root)
        if pidfd is not None:
            held[pid] = pidfd
    return len(held) > before
