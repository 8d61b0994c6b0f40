"""Threads that start programs in every way side by side, beside one that changes credentials.

    python -X dev threads.py PATH

Every program is waited for and counted in the ledger, and no descriptor is left. A debug build checks reference
counts, thread states and memory meanwhile, and dies of what is wrong.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = sys.argv[1].split(os.pathsep)

import safespawn
from safespawn import _launcher, aio, audit
from safespawn import subprocess as face

ROUNDS = 12
COMMAND = ["/bin/sh", "-c", "echo out; exit 3"]


def by_run() -> int:
    return safespawn.run(COMMAND, capture_output=True).returncode


def by_fork() -> int:
    return safespawn.run(COMMAND, capture_output=True, strategy="fork").returncode


def by_face() -> int:
    with face.Popen(COMMAND, stdout=face.PIPE) as process:
        assert process.communicate() == (b"out\n", None)
    return int(process.returncode)


def by_many() -> int:
    (made,) = safespawn.spawn_many([["/bin/sh", "-c", "exit 3"]], return_errors=True)
    if isinstance(made, Exception):
        raise made
    return made.wait()


def by_loop() -> int:
    async def one() -> int:
        process = await aio.create_subprocess_exec(*COMMAND, stdout=face.PIPE)
        await process.communicate()
        return int(process.returncode)

    return asyncio.run(one())


def by_failure() -> int:
    try:
        safespawn.run(["/no/such/program"])
    except FileNotFoundError:
        return 3
    return 0


WAYS = (by_run, by_fork, by_face, by_many, by_loop, by_failure)


def change(stop: threading.Event) -> None:
    """Change nothing, by libc, as often as it goes: each time everybody waits for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    while not stop.is_set():
        assert libc.setresuid(-1, -1, -1) == 0


def until_no_race(way: Callable[[], int], races: list[object]) -> int:
    """Start in one way. On a slow machine changes that never stop may win even against who holds them off (R-29)."""
    while True:
        try:
            return way()
        except safespawn.RaceDetected as race:
            races.append(race)
            if len(races) > ROUNDS:
                raise


def open_now() -> dict[str, str]:
    """Return what is open, but for what looks."""
    names = {name: f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")}
    return {name: os.readlink(path) for name, path in names.items() if os.path.lexists(path)}


def main() -> None:
    faulthandler.dump_traceback_later(300, exit=True)
    _launcher.hold()  # its descriptor is kept as long as the process lives
    path = Path(tempfile.mkdtemp(), "ledger")
    failed: list[object] = []
    races: list[object] = []
    start = threading.Barrier(len(WAYS))

    def work(way: Callable[[], int]) -> None:
        try:
            start.wait()
            codes = {until_no_race(way, races) for _ in range(ROUNDS)}
            assert codes == {3}, (way, codes)
        except BaseException as problem:  # noqa: BLE001 - told below
            failed.append(problem)

    before = open_now()
    with audit.open(path, keys=""):
        stop = threading.Event()
        changer = threading.Thread(target=change, args=(stop,))
        changer.start()
        threads = [threading.Thread(target=work, args=(way,)) for way in WAYS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        changer.join()
    assert not failed, failed
    events = [json.loads(line)["ev"] for line in path.read_text("ascii").splitlines()]
    counted = {name: events.count(name) for name in ("spawn.started", "spawn.exit")}
    assert counted == dict.fromkeys(counted, ROUNDS * (len(WAYS) - 1)), counted
    assert audit.verify(path).ok
    after = open_now()
    assert after == before, {**after, **before}.items() ^ before.items()
    print(f"threads: {len(WAYS) * ROUNDS} starts beside changes, {len(races)} of them begun again")


if __name__ == "__main__":
    main()
