"""What was given to `safespawn run` as keyword arguments of `safespawn.spawn`."""

from __future__ import annotations

import argparse
import errno
import os
import resource
import stat
from typing import Any

from ._cli_types import Limit

#: Keyword arguments that are what argparse made of the option.
PLAIN = (
    "cwd",
    "root",
    "start_new_session",
    "umask",
    "nice",
    "scheduler",
    "cpu_affinity",
    "cgroup",
    "pdeathsig",
    "sigdefault",
    "subreaper",
    "no_new_privs",
    "user",
    "group",
    "caps",
    "securebits",
    "env_policy",
    "pin",
    "digest",
    "path_policy",
    "deadline",
    "strategy",
    "on_unproven",
)

#: Far more than a filter may have: of /dev/zero not all is read.
FILTER_ROOM = 1 << 20


def collect(given: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `safespawn.spawn`, of what was given only.

    Raises ValueError for options that contradict each other, and OSError for a filter that cannot be read.
    """
    made = {name: getattr(given, name) for name in PLAIN}
    made.update(
        rlimits=_rlimits(given.limits),
        extra_groups=_extra_groups(given),
        namespaces=_namespaces(given),
        landlock=_landlock(given),
        seccomp=None if given.seccomp_filter is None else _filter(given.seccomp_filter),
        env={**os.environ, **dict(given.env)} if given.env else None,
        env_allow=_allowed(given) or None,
        audit_tags=dict(given.tag) or None,
        redact=given.redact or None,
    )
    # By identity: a umask of 0 is given, and so is an empty set.
    return {name: value for name, value in made.items() if value is not None and value is not False}


def _allowed(given: argparse.Namespace) -> list[str]:
    """What is set on this command line is wanted, whatever the policy."""
    own = [name for name, _ in given.env] if given.env_policy in ("scrub", "user") else []
    return [*given.env_allow, *own]


def _extra_groups(given: argparse.Namespace) -> list[str | int] | None:
    groups: list[str | int] | None = given.groups
    if given.clear_groups and groups:
        raise ValueError(f"--clear-groups and --groups {','.join(map(str, groups))} contradict each other")
    return [] if given.clear_groups else groups


def _rlimits(limits: list[Limit]) -> dict[int, tuple[int, int]] | None:
    told: dict[int, Limit] = {}
    made = {}
    for limit in limits:
        before = told.setdefault(limit.number, limit)
        if (before.soft, before.hard) != (limit.soft, limit.hard):
            raise ValueError(f"{before.shown} and {limit.shown} contradict each other")
        ours = resource.getrlimit(limit.number)
        soft = ours[0] if limit.soft is None else limit.soft
        hard = ours[1] if limit.hard is None else limit.hard
        if soft % 2**64 > hard % 2**64:  # RLIM_INFINITY is -1 in Python and all ones in the kernel
            raise ValueError(f"{limit.shown}: soft limit {soft} above hard limit {hard}")
        made[limit.number] = soft, hard
    return made or None


def _namespaces(given: argparse.Namespace) -> list[str] | dict[str, Any] | None:
    names: list[str] | None = given.namespaces
    maps = {kind: getattr(given, f"map_{kind}") for kind in ("users", "groups")}
    if not any(maps.values()):
        return names
    if names is None or "user" not in names:
        kind, lines = next(item for item in maps.items() if item[1])
        has = "no --namespaces" if names is None else f"--namespaces {','.join(names)}"
        raise ValueError(f"--map-{kind} {_joined(lines[0])} needs a user namespace, and there is {has}")
    return {
        name: {kind: lines for kind, lines in maps.items() if lines} if name == "user" else None
        for name in names
    }


def _joined(line: tuple[int, int, int]) -> str:
    return ":".join(map(str, line))


def _landlock(given: argparse.Namespace) -> dict[str, Any] | None:
    if not given.landlock_rule:
        if given.landlock_abi is not None:
            # Nothing at all could be executed, the program included.
            raise ValueError(f"--landlock-abi {given.landlock_abi} needs a --landlock-rule")
        return None
    made: dict[str, Any] = {} if given.landlock_abi is None else {"abi": given.landlock_abi}
    for accesses, path in given.landlock_rule:
        for access in accesses:
            made.setdefault(access, []).append(path)
    return made


def _filter(path: str) -> bytes:
    try:
        # A FIFO would keep us waiting, with the signals blocked that are for the program.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            return os.read(fd, FILTER_ROOM)
        finally:
            os.close(fd)
    except OSError as problem:
        raise OSError(problem.errno, f"--seccomp-filter: {problem.strerror}", path) from problem
