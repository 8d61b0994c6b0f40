"""Checks of the options that take something away from a child for good: input-checked (T-17). Pure."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

from . import _privileges
from ._spec import IdMap, Landlock
from ._values import FD_MAX, ID_MAX, integer, iterable, mapping, shown, text

#: UID_GID_MAP_MAX_EXTENTS of include/linux/user_namespace.h.
MAP_LINES_MAX = 340
#: BPF_MAXINSNS of include/uapi/linux/bpf_common.h, and sizeof(struct sock_filter).
FILTER_MAX, INSTRUCTION_BYTES = 4096, 8
#: The version whose rights are refused unless it is said otherwise: with LANDLOCK_ACCESS_FS_TRUNCATE
#: (Linux 6.2); before it a file could be emptied in spite of all rules.
LANDLOCK_ABI = 3
LANDLOCK_ABI_MAX = 5

#: Scheduling policies and whether they have a priority: sched(7).
POLICIES = {
    os.SCHED_OTHER: False,
    os.SCHED_FIFO: True,
    os.SCHED_RR: True,
    os.SCHED_BATCH: False,
    os.SCHED_IDLE: False,
}


def _named(name: str, value: object, known: Mapping[str, int]) -> int:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be names, not {shown(value)} ({type(value).__name__})")
    number = known.get(value.lower())
    if number is None:
        words = ", ".join(known)
        hint = f"known are {words}" if len(words) < 200 else "capabilities(7) has the names"
        raise ValueError(f"{name}: unknown: {shown(value)}; {hint}")
    return number


#: By both names, "kill" and "cap_kill".
_CAPABILITY = {
    prefix + name: number for number, name in enumerate(_privileges.CAPABILITIES) for prefix in ("", "cap_")
}


def caps(name: str, value: object) -> int:
    """Return a bit mask of capabilities, each given by name ("cap_" may be in front) or number."""
    mask = 0
    for item in iterable(name, value):
        if isinstance(item, str):
            mask |= 1 << _named(name, item, _CAPABILITY)
        else:
            mask |= 1 << integer(name, item, 0, 63)
    return mask


def securebits(name: str, value: object) -> int:
    """Return the securebits as prctl(2) takes them. ``keep_caps`` does not outlive an exec."""
    mask = 0
    for item in iterable(name, value):
        mask |= _named(name, item, _privileges.SECUREBITS)
    if mask & _privileges.SECUREBITS["keep_caps"]:
        raise ValueError(f"{name}: 'keep_caps' is cleared by execve; 'caps' names what is to be kept")
    return mask


def directory(name: str, value: object) -> bytes | int:
    """Return a path, or a descriptor."""
    if isinstance(value, int):
        return integer(name, value, 0, FD_MAX)
    return text(name, value)


def _overlaps(ranges: list[tuple[int, int]]) -> bool:
    ranges.sort()
    return any(a + count > b for (a, count), (b, _) in itertools.pairwise(ranges))


def _id_map(name: str, value: object) -> IdMap:
    lines = []
    for line in iterable(name, value):
        if not isinstance(line, tuple) or len(line) != 3:
            raise ValueError(f"{name} must be (inside, outside, count) triples, not {shown(line)}")
        inside, outside = (integer(name, number, 0, ID_MAX) for number in line[:2])
        count = integer(name, line[2], 1, 2**32 - 1 - max(inside, outside))
        lines.append((inside, outside, count))
    if not 1 <= len(lines) <= MAP_LINES_MAX:
        raise ValueError(f"{name} must have 1 to {MAP_LINES_MAX} lines, not {len(lines)}")
    if _overlaps([(i, n) for i, _, n in lines]) or _overlaps([(o, n) for _, o, n in lines]):
        raise ValueError(f"{name} names an id twice: {shown(value)}")
    return tuple(lines)


def _user_maps(name: str, value: object) -> tuple[IdMap | None, IdMap | None]:
    given = dict(mapping(name, value))
    users, groups = given.pop("users", None), given.pop("groups", None)
    if given:
        raise ValueError(f"{name} has 'users' and 'groups', not {shown(next(iter(given)))}")
    return (
        None if users is None else _id_map(f"{name}['users']", users),
        None if groups is None else _id_map(f"{name}['groups']", groups),
    )


def namespaces(name: str, value: object) -> tuple[tuple[str, ...], IdMap | None, IdMap | None]:
    """Return the names, in the kernel's order, and the maps of users and groups."""
    items = value.items() if isinstance(value, Mapping) else ((key, None) for key in iterable(name, value))
    wanted, users, groups = set(), None, None
    for key, item in items:
        _named(name, key, _privileges.NAMESPACES)
        if isinstance(value, Mapping) and key.lower() in wanted:
            raise ValueError(f"{name} names {key.lower()!r} twice: {shown(value)}")
        wanted.add(key.lower())
        if item is not None and key.lower() != "user":
            raise ValueError(f"{name}[{key!r}] takes None only, not {shown(item)}")
        if item is not None:
            users, groups = _user_maps(f"{name}[{key!r}]", item)
    if not wanted:
        raise ValueError(f"{name} is empty: {shown(value)}")
    return tuple(known for known in _privileges.NAMESPACES if known in wanted), users, groups


def landlock(name: str, value: object) -> Landlock:
    """Return the rules: paths that may be read, written to or executed, and the version."""
    given: dict[Any, Any] = dict(mapping(name, value))
    abi = integer(f"{name}['abi']", given.pop("abi", LANDLOCK_ABI), 1, LANDLOCK_ABI_MAX)
    paths = {}
    for kind in ("read", "write", "execute"):
        items = iterable(f"{name}[{kind!r}]", given.pop(kind, ()))
        paths[kind] = tuple(text(f"{name}[{kind!r}]", path) for path in items)
    if given:
        raise ValueError(f"{name} has 'abi', 'read', 'write' and 'execute', not {shown(next(iter(given)))}")
    return Landlock(abi, **paths)


def seccomp(name: str, value: object) -> bytes:
    """Return a program of classic BPF: whole instructions of struct sock_filter."""
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"{name} must be bytes, not {shown(value)} ({type(value).__name__})")
    program = bytes(value)
    if not program or len(program) % INSTRUCTION_BYTES or len(program) > FILTER_MAX * INSTRUCTION_BYTES:
        raise ValueError(
            f"{name} must be 1 to {FILTER_MAX} instructions of {INSTRUCTION_BYTES} bytes,"
            f" not {len(program)} bytes: {shown(program)}"
        )
    return program


def scheduler(name: str, value: object) -> tuple[int, int]:
    """Return policy (``os.SCHED_*``) and priority, which only FIFO and RR have (1 to 99)."""
    pair = (value, None) if isinstance(value, int) else tuple(iterable(name, value))
    if len(pair) != 2:
        raise ValueError(f"{name} must be a policy or (policy, priority), not {shown(value)}")
    policy = integer(name, pair[0], 0, 2**31 - 1)
    if policy not in POLICIES:
        raise ValueError(f"{name}: no such policy: {shown(value)}; known are {sorted(POLICIES)}")
    if not POLICIES[policy]:
        return policy, integer(f"{name} priority", 0 if pair[1] is None else pair[1], 0, 0)
    if pair[1] is None:
        raise ValueError(f"{name}={shown(value)} needs a priority from 1 to 99")
    return policy, integer(f"{name} priority", pair[1], 1, 99)
