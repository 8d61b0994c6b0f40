"""The control group (version 2) of one child, kept so that all who are in it can be killed with it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TypeVar

from ._descriptors import identity
from ._surely import keep
from .audit._core import file_system

_T = TypeVar("_T")

#: CGROUP2_SUPER_MAGIC of linux/magic.h.
CGROUP2 = 0x63677270

#: There is none (it came with Linux 5.14), the group is gone or threaded, or we may not.
_NOT_TO_BE_HAD = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EROFS)

#: Those of children that have not been reaped.
_kept: list[Group] = []


class Group:
    """All who are in one cgroup and below, by a descriptor of its directory."""

    def __init__(self) -> None:
        """Nothing is open."""
        self._fds: list[int] = []
        self._place = (0, 0)
        #: Whether all who are in it have come there by one child of ours. What was shared stays so.
        self._of_one_child = True
        self._we_were_in = b""

    def open(self, directory: int) -> None:
        """Keep the cgroup that a child is about to be born in. Raises OSError.

        It is that child's alone if nobody was in it or below it (cgroups(7): ``populated`` of cgroup.events),
        and as long as no other child of ours is put there.
        """
        # Not 0 to 2, which others write to.
        keep(self._fds, fcntl.fcntl, directory, fcntl.F_DUPFD_CLOEXEC, 3)
        self._place = identity(self._fds[0])
        self._we_were_in = _we_are_in()
        _kept.append(self)
        others = [one for one in tuple(_kept) if one is not self and one._place == self._place]  # noqa: SLF001
        if others or b"populated 0\n" not in self._at(
            "cgroup.events", os.O_RDONLY, lambda fd: os.read(fd, 4096)
        ):
            self._of_one_child = False
        for other in others:
            other._of_one_child = False  # noqa: SLF001 - one of us

    def kill(self) -> None:
        """Kill all who are in it; nothing happens if others may be in it, we ourselves above all.

        By cgroup.kill (cgroups(7), Linux 5.14): whoever is being forked does not escape it. Raises OSError.
        """
        if not (self._of_one_child and self._is_ours() and _we_are_in() == self._we_were_in):
            return
        try:
            self._at("cgroup.kill", os.O_WRONLY, lambda fd: os.write(fd, b"1"))
        except OSError as problem:
            if problem.errno not in _NOT_TO_BE_HAD:
                raise

    def _is_ours(self) -> bool:
        """Whether nobody else has closed the descriptor: its number may be another's by now."""
        with suppress(OSError):
            return bool(self._fds) and identity(self._fds[0]) == self._place
        return False

    def _at(self, name: str, flags: int, use: Callable[[int], _T]) -> _T:
        fds: list[int] = []
        try:
            keep(fds, partial(os.open, dir_fd=self._fds[0]), name, flags | os.O_CLOEXEC)
            return use(fds[0])
        finally:
            _close(fds)

    def close(self) -> None:
        """Let go of it; twice is no error."""
        with suppress(ValueError):
            _kept.remove(self)
        if self._is_ours():
            _close(self._fds)
        self._fds.clear()


def _close(fds: list[int]) -> None:
    # Taken out and closed in one step: see Places.close.
    deque(map(os.close, map(fds.pop, repeat(-1, len(fds)))), maxlen=0)


def _we_are_in() -> bytes:
    """Return our own cgroups, as /proc tells them; they have no other name later."""
    return Path("/proc/self/cgroup").read_bytes()


def keep_for_child(directory: int) -> Group | None:
    """Keep the cgroup that a child is about to be born in; None if it is none of version 2.

    Raises OSError.
    """
    if file_system(directory) != CGROUP2:
        return None
    group = Group()
    try:
        group.open(directory)
    except BaseException as problem:
        group.close()
        if isinstance(problem, FileNotFoundError):  # the root has no events: everybody is in it
            return None
        raise
    return group


def forget_all() -> None:
    """Let go of those of our parent's children, in a forked process."""
    for group in tuple(_kept):
        group.close()
