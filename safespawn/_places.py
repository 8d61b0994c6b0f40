"""Where a child is put: its cgroup, namespaces, root and Landlock domain, opened before it is born."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections import deque
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any

from . import _cgroup, _identity, _landlock, _privileges, _probe
from ._spec import Credentials, IdMap, Landlock, Request

#: The time namespace is entered by an execve since Linux 6.3, before by a fork only
#: (commit 2b5f9dad32ed, "fs/exec: switch timens when a task gets a new mm").
TIME_BY_EXEC = (6, 3)

#: 0 to 2, and what the launcher may have beside them: see ss_launch_descriptors in _launch.c.
LAUNCHER_FDS = 16


def hindrance(request: Request) -> str | None:
    """Return why the launcher cannot put a child there, None if it can."""
    if request.keep_fds:
        return "descriptors are kept (close_fds=False), and its own would take the place of some"
    if {"user", "pid"} <= set(request.namespaces):
        return "a PID namespace inside a new user namespace is made by the clone, not on our memory"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if len(request.fds) + len(request.pass_fds) + LAUNCHER_FDS > soft:
        return f"the limit of open files, {soft}, leaves the launcher no room for its own"
    return None


def _lines(mapped: IdMap) -> bytes:
    return b"".join(b"%d %d %d\n" % line for line in mapped)


def _flags(names: tuple[str, ...]) -> int:
    return sum(_privileges.NAMESPACES[name] for name in names)


class PlaceProblem(Exception):
    """What could not be opened, and at which stage of the spawn that is."""

    def __init__(self, stage: str, cause: OSError) -> None:
        """Remember both."""
        super().__init__(stage, cause)
        self.stage = stage
        self.cause = cause


class Places:
    """What was opened for one child; closed when it has started or failed."""

    def __init__(self) -> None:
        """Nothing is open."""
        self._own: list[int] = []
        self._numbers: dict[str, int] = {}
        self._namespaces: tuple[str, ...] = ()
        self.texts: dict[str, bytes] = {}
        #: For the child, which takes it when it has started.
        self.group: _cgroup.Group | None = None

    def open(self, request: Request, creds: Credentials) -> None:
        """Open what the request names. Raises PlaceProblem."""
        self._namespaces = request.namespaces
        if "time" in request.namespaces and _probe.kernel_version() < TIME_BY_EXEC:
            version = ".".join(map(str, TIME_BY_EXEC))
            problem = OSError(errno.EOPNOTSUPP, f"a new time namespace needs Linux {version} or newer")
            raise PlaceProblem("namespaces", problem)
        if "user" in request.namespaces:
            users, groups = _identity.maps(request, creds)
            self.texts |= {"map_users": _lines(users), "map_groups": _lines(groups)}
        if request.namespaces and not self._sees_us(request):
            self._keep(os.pidfd_open, os.getpid())
            self._numbers["parent_fd"] = self._own[-1]
        if request.cgroup is not None:
            self._numbers["cgroup_fd"] = self._directory(request.cgroup, "cgroup")
            self.group = self._group(self._numbers["cgroup_fd"])
        if request.root is not None and isinstance(request.cwd, bytes):
            self.texts["cwd"] = request.cwd
        if request.landlock is not None:
            self._numbers["landlock_fd"] = self._ruleset(request.landlock)

    @staticmethod
    def _sees_us(request: Request) -> bool:
        """Whether the child can see our pid: getppid(2) is 0 in another PID namespace."""
        return "pid" not in request.namespaces and _probe.children_are_in_our_namespace()

    def _keep(self, opener: Callable[..., int], *arguments: Any) -> None:
        """Open and keep in one step, so that no exception of a signal handler comes between."""
        self._own.extend(map(opener, *((one,) for one in arguments)))

    def _directory(self, place: bytes | int, stage: str) -> int:
        if isinstance(place, int):
            return place
        try:
            self._keep(os.open, place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as problem:
            if problem.filename is None:  # a handler's
                raise
            problem.filename = os.fsdecode(place)
            raise PlaceProblem(stage, problem) from None
        return self._own[-1]

    @staticmethod
    def _group(directory: int) -> _cgroup.Group | None:
        try:
            return _cgroup.keep_for_child(directory)
        except OSError as problem:
            raise PlaceProblem("cgroup", problem) from None

    def _ruleset(self, rules: Landlock) -> int:
        try:
            self._keep(_landlock.ruleset, rules)
        except OSError as problem:
            if not hasattr(problem, "stage"):  # a handler's
                raise
            raise PlaceProblem("landlock", problem) from None
        return self._own[-1]

    def numbers(self, *, launched: bool) -> Mapping[str, int]:
        """Return the members of struct ss_request. A PID namespace is always made by the clone."""
        return {**self._numbers, **_split(self._namespaces, launched=launched)}

    def close(self) -> None:
        """Close what is ours; twice is no error."""
        if self.group is not None:
            self.group.close()
        while self._own:
            # Taken out and closed in one step: a handler's exception would leave it open, or
            # have its number closed once more when it is another's.
            with contextlib.suppress(OSError):  # somebody else has closed it
                deque(map(os.close, map(self._own.pop, repeat(-1, len(self._own)))), maxlen=0)


def _split(names: tuple[str, ...], *, launched: bool) -> dict[str, int]:
    """Return which namespaces the clone makes, and which the child itself."""
    born = tuple(name for name in names if name == "pid")
    if born and not launched and "user" in names:
        born = ("user", "pid")  # both at once, so that the one belongs to the other
    return {"born_in": _flags(born), "unshared": _flags(names) & ~_flags(born)}
