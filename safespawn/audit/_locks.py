"""A lock for each process that has the same memory behind it.

A child that was forked past libc finds the locks as its parent's threads had them: one that was held stays
held for ever, because who held it is not there. Nobody has told Python of that fork, but C can tell.
"""

from __future__ import annotations

import threading
from typing import Any

from . import _core

_number: Any = _core.process_number

#: Locks by the number of their process.
Locks = dict[int, threading.RLock]


def ours(locks: Locks) -> threading.RLock:
    """Return this process's lock: one of C, so no handler comes between ``with`` and its block."""
    number = _number()
    return locks.get(number) or locks.setdefault(number, threading.RLock())
