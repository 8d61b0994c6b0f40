"""What the state machines need beside the model: the zygote, and workers that are asked by a socket."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers

PLACE = Path(__file__).resolve().parent
LARGEST = 1 << 17
#: Seconds for one step; it takes milliseconds. A worker that hangs ends itself earlier.
PATIENCE = 90


class Raised(Exception):
    """What a worker raised in a step."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(f"{told['raised']}: {told['text']} (stage {told['stage']}, guard {told['guard']})")
        self.name, self.outcome, self.guard = told["raised"], told["outcome"], told["guard"]
        self.stage, self.errno = told["stage"], told["errno"]


class Link:
    """One process, as we ask it."""

    def __init__(self, end: socket.socket, pid: int) -> None:
        self.end, self.pid = end, pid

    def ask(self, do: str, fds: tuple[int, ...] = (), /, **arguments: Any) -> Any:
        """Have it do something and return what came of it. Raises Raised."""
        data = json.dumps({"do": do, **arguments}).encode()
        socket.send_fds(self.end, [data], list(fds))
        return self.hear()

    def hear(self) -> Any:
        """Return its answer."""
        assert select.select([self.end], [], [], PATIENCE)[0], f"worker {self.pid} does not answer"
        data = self.end.recv(LARGEST)
        assert data, f"worker {self.pid} has died"
        answer = json.loads(data)
        if "raised" in answer:
            raise Raised(answer)
        return answer["value"]

    def fork(self) -> Link:
        """Have it fork and return the child."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            pid = self.ask("fork", (its.fileno(),))
        child = Link(ours, pid)
        assert child.hear() == pid
        return child

    def close(self) -> None:
        """Let it go: it ends."""
        self.end.close()


class Zygote(Link):
    """Forks workers."""

    def worker(self) -> Link:
        """Return a new one."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            return Link(ours, self.ask("worker", (its.fileno(),)))


@contextlib.contextmanager
def zygote(*plants: str, path: Path | None = None) -> Iterator[Zygote]:
    """A process with everything imported, which forks workers; ``path`` goes in front of its sys.path."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    places = [str(path)] if path else []
    if path is not None:
        helpers.make_readable(path)  # for who has dropped privileges, and looks for the launcher there
    places += [str(helpers.ROOT), os.environ.get("PYTHONPATH", "")]
    words = [sys.executable, str(PLACE / "worker.py"), str(its.fileno()), *plants]
    with ours:
        with its:
            process = subprocess.Popen(
                words,
                pass_fds=(its.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
            )
        made = Zygote(ours, process.pid)
        try:
            yield made
        finally:
            made.close()
            ended = process.wait(60)
        assert ended == 0, "the zygote has failed: it says above why"
