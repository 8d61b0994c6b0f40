"""The most memory that a process and its children take: the kernel's own count, by a cgroup."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from .tools import Unable

#: Seconds that what was killed may take to end.
_PATIENCE = 5.0


def _mounts(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield mount point, type and options of each line of mountinfo (proc_pid_mountinfo(5))."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        yield before.split()[4], after.split()[0], after.split()[-1]


def home(mounts: str, own: str) -> tuple[Path, int]:
    """Return the directory for new groups that count memory, and the version of cgroups: 1 or 2.

    ``mounts``, ``own``: texts of /proc/self/mountinfo and /proc/self/cgroup. Raises Unable if there is none.
    """
    for point, kind, options in _mounts(mounts):
        if kind == "cgroup" and "memory" in options.split(","):
            for line in own.splitlines():
                _, controllers, path = line.split(":", 2)
                if "memory" in controllers.split(","):
                    return Path(point + path), 1
    for point, kind, _ in _mounts(mounts):
        # A group that has processes of its own has no groups that count below it; the topmost may have both.
        if kind == "cgroup2" and "memory" in _read(Path(point, "cgroup.subtree_control")).split():
            return Path(point), 2
    raise Unable("no cgroup here counts memory")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


class Group:
    """A cgroup with one process and what it starts.

    As a context manager: it is deleted once they have ended.
    """

    def __init__(self, pid: int, directory: Path, version: int) -> None:
        """Make it and move the process there. Raises Unable if that is not allowed, or the kernel too old."""
        self._path = directory / f"safespawn-bench-{pid}"
        now, peak = {
            1: ("memory.usage_in_bytes", "memory.max_usage_in_bytes"),
            2: ("memory.current", "memory.peak"),
        }[version]
        self._now, self._peak = self._path / now, -1
        try:
            self._path.mkdir()
            self._path.joinpath("cgroup.procs").write_text(str(pid), encoding="ascii")
            # In version 2 the peak begins anew for the descriptor that is written to, since Linux 6.12.
            self._peak = os.open(self._path / peak, os.O_RDWR | os.O_CLOEXEC)
            self.begin()
        except OSError as problem:
            self.close()
            raise Unable(f"no cgroup can be made: {problem}") from problem

    def begin(self) -> int:
        """Forget the peak; return the bytes that are in use now."""
        os.pwrite(self._peak, b"0", 0)
        return int(self._now.read_text(encoding="ascii"))

    def peak(self) -> int:
        """Return the bytes that were in use at the most since :meth:`begin`."""
        return int(os.pread(self._peak, 64, 0))

    def close(self) -> None:
        """End what is left in it, and delete it."""
        if self._peak >= 0:
            os.close(self._peak)
            self._peak = -1
        until = time.monotonic() + _PATIENCE
        while self._path.exists() and time.monotonic() < until:
            for word in _read(self._path / "cgroup.procs").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(word), signal.SIGKILL)
            with contextlib.suppress(OSError):  # one that was killed is still about to end
                self._path.rmdir()
                return
            time.sleep(0.01)
