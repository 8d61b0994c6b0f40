"""Each way of starting a program: the behaviour of a child is the same by all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import safespawn

Way = dict[str, Any]

#: With a deadline nobody sleeps in vfork, and the lookup of the program is made in a child of its own.
WAYS: dict[str, Way] = {
    "vfork": {"strategy": "vfork"},
    "clone": {"strategy": "clone"},
    "fork": {"strategy": "fork"},
    "vfork-bounded": {"strategy": "vfork", "deadline": 300},
    "fork-bounded": {"strategy": "fork", "deadline": 300},
    "posix_spawn": {"strategy": "posix_spawn"},
    "helper": {"strategy": "helper"},
    "pool": {"strategy": "pool"},
}

#: Those that a helper carries out.
HELPED = ("helper", "pool")


@contextlib.contextmanager
def ready(way: Way) -> Iterator[Way]:
    """Have what the way needs: a helper that was started before anything that the test does."""
    if way["strategy"] not in HELPED:
        yield way
        return
    with safespawn.Helper(pool=2 if way["strategy"] == "pool" else 0):
        yield way
