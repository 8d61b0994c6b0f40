"""The processes that the state machines drive: a zygote with everything imported, and workers that it forks.

    python worker.py SOCKET PLANT...

Zygote and workers read one request at a time from a socket (SOCK_SEQPACKET, one JSON object a message) and answer
with ``{"value": ...}`` or ``{"raised": ...}``. A request to begin a worker comes with its end of another socket.
A worker may fork as well: then both sides have a socket, and what was there before is on both. ``PLANT``: faults
that are seeded (plants.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safespawn
from safespawn import _binding, _changes, audit, guards
from safespawn import helper as helper_module
from safespawn import subprocess as ours

LARGEST = 1 << 17
#: Reads a line, and ends with what it was told then; killed it ends by that.
WAITER = 'read code || code=0; exit "$code"'
#: Seconds until a worker whose step hangs is ended.
HANGS = 60
#: Seconds for what ends by itself in a moment. Plants that keep it from ending make it less.
PATIENCE = 30


def told(problem: BaseException) -> dict[str, Any]:
    """Return what an exception says."""
    report = getattr(problem, "report", None)
    more = {name: getattr(problem, name, None) for name in ("errno", "stage", "guard")}
    return {
        "raised": type(problem).__name__,
        "outcome": getattr(report, "outcome", None),
        "text": str(problem),
        **more,
    }


class Worker:
    """One process. What it is asked for are its methods that begin with ``do_``."""

    def __init__(self) -> None:
        self.handles: dict[str, Any] = {}
        self.helpers: dict[str, safespawn.Helper] = {}
        self.ledger: audit.Ledger | None = None
        self.idle: list[threading.Thread] = []
        self.enough = threading.Event()
        #: Our ends of the pipes to programs whose handles were dropped: without them these would end.
        self.kept: list[int] = []
        self.begun = self._open()

    # ---------------------------------------------------------- what can be seen

    @staticmethod
    def _open() -> list[str]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                to = os.readlink(f"/proc/self/fd/{name}")
                found.append(f"{name} {to}")
        return sorted(one for one in found if "/proc/" not in one)

    def do_state(self) -> dict[str, Any]:
        """Return what must agree with the model after each step."""
        lock = _binding.lock_status()
        names = ("state", "spawners", "changers", "changer_waits", "epoch", "changes", "overlaps")
        return {
            "children": {pid: state for pid, state in self._children()},
            "uids": os.getresuid(),
            "gids": os.getresgid(),
            "lock": {name: lock[name] for name in names},
            "codes": {name: handle.returncode for name, handle in self.handles.items()},
        }

    @staticmethod
    def _children() -> list[tuple[str, str]]:
        found = []
        for task in os.listdir("/proc/self/task"):
            for pid in Path(f"/proc/self/task/{task}/children").read_text().split():
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found.append((pid, fields[0]))
        return found

    def do_few_children(self, most: int) -> list[str]:
        """Wait until there are no more than so many children that run, and return these."""
        end = time.monotonic() + PATIENCE
        while len(running := [pid for pid, state in self._children() if state not in "ZX"]) > most:
            if time.monotonic() > end:
                break
            os.sched_yield()
        return running

    # ---------------------------------------------------------- programs

    def do_spawn(
        self, name: str, face: str, token: str, code: int | None = None, **options: Any
    ) -> dict[str, Any]:
        """Start a program that waits, or with a code one that ends with it at once."""
        words = ["/bin/sh", "-c", WAITER, token]
        if options.get("helper") is not None:
            options["helper"] = self.helpers[options["helper"]]
        if face == "run":
            done = safespawn.run(words, input=f"{code}\n".encode(), **options)
            return {"code": done.returncode, **self._about(done.report)}
        begin = safespawn.spawn if face == "spawn" else ours.Popen
        process = self.handles[name] = begin(words, stdin=safespawn.PIPE, **options)
        return {"pid": process.pid, **self._about(process.report)}

    @staticmethod
    def _about(report: safespawn.SpawnReport) -> dict[str, Any]:
        return {"strategy": report.strategy, "proof": report.proof, "reasons": report.reasons}

    def do_ids(self, token: str, **options: Any) -> dict[str, Any]:
        """Run a program that tells its ids."""
        # -p: else dash itself gives up an effective id that is not the real one.
        words = ["/bin/sh", "-p", "-c", "id -u; id -ru; id -g; id -rg", token]
        done = safespawn.run(words, capture_output=True, **options)
        return {"code": done.returncode, "ids": done.stdout.split(), **self._about(done.report)} | {
            "ids": [int(word) for word in done.stdout.split()]
        }

    def do_missing(self, token: str) -> None:
        """Start a program that is not there."""
        safespawn.run(["/no/such/program", token])

    def do_go(self, name: str, code: int) -> None:
        """Have one end with that code."""
        self.handles[name].stdin.write(f"{code}\n".encode())
        self.handles[name].stdin.flush()

    def do_signal(self, name: str, how: str) -> None:
        """Signal one by a method of its handle, or by a number."""
        handle = self.handles[name]
        handle.send_signal(int(how)) if how.isdecimal() else getattr(handle, how)()

    def do_poll(self, name: str) -> int | None:
        """Look at one."""
        return self.handles[name].poll()

    def do_wait(self, name: str, timeout: float | None) -> int:
        """Wait for one."""
        return self.handles[name].wait(timeout=timeout)

    def do_drop(self, name: str) -> bool:
        """Forget a handle; whether that warned."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            handle = self.handles.pop(name)
            self.kept.append(os.dup(handle.stdin.fileno()))
            handle.stdin.close()
            del handle
            gc.collect()
        return any(one.category is ResourceWarning for one in caught)

    def do_await_end(self, pid: int) -> None:
        """Wait until a child has ended; it is not reaped."""
        self._await_end(pid, lambda pid: None)

    def do_await_stop(self, pid: int) -> None:
        """Wait until a child has stopped."""
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    def do_end(self, pid: int) -> None:
        """Kill a child past its handle, and wait until it has ended."""
        self._await_end(pid, lambda pid: os.kill(pid, signal.SIGKILL))

    # ---------------------------------------------------------- credentials

    def do_threads(self, count: int) -> None:
        """Have so many threads beside this one."""
        if count < len(self.idle):
            self.enough.set()
            for thread in self.idle:
                thread.join()
            self.idle.clear()
            self.enough.clear()
            while len(os.listdir("/proc/self/task")) > 1:
                os.sched_yield()  # one that was joined lingers for a moment
        while len(self.idle) < count:
            self.idle.append(threading.Thread(target=self.enough.wait, daemon=True))
            self.idle[-1].start()

    def do_change(self, call: str, arguments: list[Any]) -> None:
        """Change credentials by a function of ``os``, or of libc."""
        if not call.startswith("libc."):
            getattr(os, call)(*arguments)
            return
        libc = ctypes.CDLL(None, use_errno=True)
        failed = getattr(libc, call[5:])(*arguments)
        number = ctypes.get_errno()
        _changes.record()  # as the next spawn does, which may be behind a fork
        if failed:
            raise OSError(number, os.strerror(number))

    def do_bracket(self) -> list[int]:
        """Bracket a change that libc does not see; how the lock stands inside."""
        with guards.credential_change():
            lock = _binding.lock_status()
            return [lock["spawners"], lock["changers"]]

    def do_seal(self) -> None:
        """Refuse changes for good."""
        guards.seal()

    # ---------------------------------------------------------- helpers

    def do_helper(self, name: str, **options: Any) -> int:
        """Start one; returns its pid."""
        helper_module.RESTART_PAUSE = 0.0  # else it depends on the time whether another is started
        self.helpers[name] = safespawn.Helper(**options).start()
        return self.helpers[name].pid

    def do_end_helper(self, name: str) -> None:
        """Close one."""
        self.helpers[name].close()

    def do_kill_helper(self, name: str) -> None:
        """Kill one, and wait until it has ended."""
        self._await_end(self.helpers[name].pid, lambda pid: os.kill(pid, signal.SIGKILL))

    def do_await_helper(self, name: str) -> None:
        """Wait until one has ended by itself."""
        self._await_end(self.helpers[name].pid, lambda pid: None)

    @staticmethod
    def _await_end(pid: int, do: Callable[[int], None]) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            do(pid)
            assert select.select([pidfd], [], [], PATIENCE)[0], "it does not end"
        finally:
            os.close(pidfd)

    def do_shrink(self, name: str, allow: list[str]) -> None:
        """Take away from what one may do."""
        self.helpers[name].shrink(allow)

    def do_helper_status(self, name: str) -> dict[str, Any]:
        """Return how one stands."""
        return self.helpers[name].status()

    # ---------------------------------------------------------- the ledger

    def do_open(self, path: str, mode: str, keys: str) -> None:
        """Open a ledger."""
        self.ledger = audit.open(path, mode, keys=keys)

    def do_rotate(self) -> bool:
        """Begin a new segment."""
        return self.ledger.rotate()

    def do_checkpoint(self) -> None:
        """Write a checkpoint."""
        self.ledger.checkpoint()

    def do_close(self) -> int:
        """Close the ledger; how many records were lost."""
        lost = self.ledger.lost
        self.ledger.close()
        return lost

    # ---------------------------------------------------------- the end

    def do_reap(self, pid: int) -> int:
        """Wait for a worker that was forked from here."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def do_leave(self, keep: list[int]) -> dict[str, Any]:
        """Let go of everything; return what was open at the beginning and is now, and children but some."""
        self.do_threads(0)
        while self.handles:
            handle = self.handles.popitem()[1]
            handle.stdin.close()
            del handle
        for fd in self.kept:
            os.close(fd)
        for helper in self.helpers.values():
            helper.close()
        self.helpers.clear()
        if self.ledger is not None:
            self.ledger.close()
        self.ledger = None
        gc.collect()
        after = self._open()
        return {
            "before": self.begun,
            "after": after,
            "children": [p for p, _ in self._children() if int(p) not in keep],
        }


def serve(worker: Worker, link: socket.socket) -> None:
    """Do what is asked until nobody asks any more. Never returns."""
    while True:
        data, fds, _, _ = socket.recv_fds(link, LARGEST, 1)
        if not data:
            os._exit(0)
        signal.alarm(HANGS)
        request = json.loads(data)
        if request["do"] == "fork":
            link, answer = _fork(worker, link, fds[0])
        else:
            answer = _answer(worker, request)
        signal.alarm(0)
        link.send(json.dumps(answer).encode())


def _answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": getattr(worker, "do_" + request.pop("do"))(**request)}
    except Exception as problem:
        return told(problem)


def _fork(worker: Worker, link: socket.socket, fd: int) -> tuple[socket.socket, dict[str, Any]]:
    """Fork; in the child the other socket is what it is asked by, and its descriptors begin anew."""
    pid = os.fork()
    if pid:
        os.close(fd)
        return link, {"value": pid}
    link.close()
    link = socket.socket(fileno=fd)
    worker.idle.clear()
    worker.enough = threading.Event()
    worker.begun = []  # what it has from its parent is its parent's affair
    return link, {"value": os.getpid()}


def zygote(link: socket.socket) -> None:
    """Fork a worker for each socket that comes, until nobody asks any more."""
    while True:
        data, fds, _, _ = socket.recv_fds(link, LARGEST, 1)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not data:
            return
        pid = os.fork()
        if pid == 0:
            link.close()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            serve(Worker(), socket.socket(fileno=fds[0]))
        os.close(fds[0])
        link.send(json.dumps({"value": pid}).encode())


if __name__ == "__main__":
    import plants

    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which are wanted here
    from safespawn import _launcher

    _launcher.hold()
    safespawn.run(["/bin/true"])  # what is opened and tried once
    for plant in sys.argv[2:]:
        plants.PLANTS[plant]()
    zygote(socket.socket(fileno=int(sys.argv[1])))
