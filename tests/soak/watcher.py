"""Looks at the process under load from outside, again and again: what it holds, and what it has left."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

#: What is looked at; in KiB where the name says so.
SERIES = (
    "descriptors", "memfds", "threads", "children", "zombies", "temporary files", "helpers' descriptors",
    "allocated KiB",
    "resident KiB", "proportional KiB",
)  # fmt: skip


class Watcher(threading.Thread):
    """Takes a sample every ``pause`` seconds until it is stopped."""

    def __init__(self, pid: int, temporary: Path, pause: float) -> None:
        super().__init__(name="watcher", daemon=True)
        self.pid, self.temporary, self.pause = pid, temporary, pause
        self.samples: list[dict[str, int]] = []
        #: What only the process itself can tell, and does.
        self.helpers: list[int | None] = []
        self.allocated = 0
        self.enough = threading.Event()

    def run(self) -> None:
        """Sample."""
        began = time.monotonic()
        while not self.enough.wait(self.pause):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                self.samples.append({"at ms": int((time.monotonic() - began) * 1000), **self.look()})

    def stop(self) -> None:
        """Take no more."""
        self.enough.set()
        self.join()

    def look(self) -> dict[str, int]:
        """Return one sample."""
        links = _links(self.pid)
        states = [_state(child) for child in _children(self.pid)]
        memory = _memory(self.pid)
        helpers = [count for pid in self.helpers if pid and (count := len(_links(pid)))]
        return {
            "descriptors": len(links),
            "memfds": sum(link.startswith("/memfd:") for link in links),
            "threads": len(os.listdir(f"/proc/{self.pid}/task")),
            "children": len(states),
            "zombies": states.count("Z"),
            "temporary files": sum(len(files) + len(inner) for _, inner, files in os.walk(self.temporary)),
            "helpers' descriptors": max(helpers, default=0),
            "allocated KiB": self.allocated,
            "resident KiB": memory["Rss"],
            "proportional KiB": memory["Pss"],
        }


def _links(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def _children(pid: int) -> list[str]:
    found: list[str] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{pid}/task/{task}/children").read_text().split()
    return found


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def _memory(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}
