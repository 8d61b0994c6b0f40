"""A lock for each process that has the same memory behind it.

A child that was forked past libc finds the locks as its parent's threads had them: one that was held stays
held for ever, because who held it is not there. Nobody has told Python of that fork, so the pid tells.
"""

from __future__ import annotations

import os
import threading

#: Locks by the pid of their process. To be emptied after a fork: pids come again.
Locks = dict[int, threading.RLock]


def ours(locks: Locks) -> threading.RLock:
    """Return this process's lock: one of C, so no handler comes between ``with`` and its block."""
    pid = os.getpid()
    return locks.get(pid) or locks.setdefault(pid, threading.RLock())
