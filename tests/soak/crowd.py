"""Who does something all the time beside those who spawn: changes credentials, forks, kills, rotates the ledger."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import safespawn
from safespawn import _helpers, _launcher, audit

import jobs
from book import Book

_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_KEEPCAPS = 8  # prctl(2)
#: Seconds until a forked child that hangs is ended; it has two spawns to make.
HANGS = 60


def change(counts: Counter[str], dice: random.Random) -> None:
    """Change credentials in one of many ways, and back: root is always among the ids."""
    kinds: list[Callable[[], object]] = [
        lambda: (os.seteuid(jobs.NOBODY), os.seteuid(0)),
        lambda: (os.setresuid(0, jobs.NOBODY, 0), os.setresuid(0, 0, 0)),
        lambda: (_libc.setresuid(-1, jobs.NOBODY, -1), _libc.setresuid(-1, 0, -1)),
        lambda: (os.setegid(jobs.NOBODY), os.setegid(0)),
        lambda: (_libc.setfsuid(jobs.NOBODY), _libc.setfsuid(0)),
        lambda: os.setgroups([]),
        lambda: _libc.setgroups(0, None),
        lambda: _libc.prctl(PR_SET_KEEPCAPS, ctypes.c_ulong(dice.randrange(2)), 0, 0, 0),
    ]
    with contextlib.suppress(PermissionError):  # another has us as nobody just now
        dice.choice(kinds)()
    counts["changes"] += 1


def fork(
    counts: Counter[str], dice: random.Random, book: Book, ledger: audit.Ledger, problems: list[str]
) -> None:
    """Fork; the child spawns and ends, half of them without closing their chain."""
    seed, closes = dice.random(), dice.random() < 0.5
    pid = os.fork()
    if pid == 0:
        signal.alarm(HANGS)
        code = 1
        try:
            own = random.Random(seed)
            for _ in range(2):
                own.choice(jobs.IN_FORKS)(book, own)
            if closes:
                ledger.close()
            code = 0
        finally:
            os._exit(code)
    how = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if how != 0:
        problems.append(f"a forked child ended with {how}")
    counts["forks"] += 1


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def _signal_child(pid: int, numbers: tuple[int, ...], is_meant: Callable[[str], bool]) -> bool:
    """Signal a child of ours that runs a program which is meant, by pidfd: the number may be another's by then."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Looked at behind the opening: a child that has not ended yet was not reaped either.
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if not is_meant(os.readlink(f"/proc/{pid}/exe")):
            return False
        for number in numbers:
            signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False  # it has ended, or we are nobody just now
    finally:
        os.close(pidfd)
    return True


_SELF = os.readlink("/proc/self/exe")


def kill_any(counts: Counter[str], dice: random.Random) -> None:
    """Kill, or stop and let go on, any child that has left our own program: also a launcher, a parked child."""
    children = _children()
    numbers = dice.choice([(signal.SIGKILL,), (signal.SIGSTOP, signal.SIGCONT), (signal.SIGTERM,)])
    if children and _signal_child(
        dice.choice(children), numbers, lambda exe: exe not in (_SELF, _helpers.PATH)
    ):
        counts["children signalled"] += 1


def kill_helper(counts: Counter[str], helper: safespawn.Helper) -> None:
    """Kill a helper."""
    pid = helper.pid
    if pid is not None and _signal_child(pid, (signal.SIGKILL,), lambda exe: exe == _helpers.PATH):
        counts["helpers killed"] += 1


def kill_parked(counts: Counter[str], dice: random.Random, helpers: list[safespawn.Helper]) -> None:
    """Kill a child that a helper has parked, or that is on its way."""
    children = [pid for pid in _children() if pid not in [helper.pid for helper in helpers]]
    if children and _signal_child(dice.choice(children), (signal.SIGKILL,), lambda exe: exe == _helpers.PATH):
        counts["parked children killed"] += 1


def end_sleeper(counts: Counter[str], dice: random.Random, book: Book, asleep: jobs.Sleepers) -> None:
    """Take one that sleeps, stop and continue it at times, and end it."""
    process, token = asleep.get()
    how = dice.choice(["kill", "terminate", "kill_tree"])
    if dice.random() < 0.3:
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
    with contextlib.suppress(PermissionError):  # we are nobody just now, or so is one of its tree
        getattr(process, how)()
    process.kill()
    book.end(token, f"code:{process.wait()}")
    counts["sleepers ended"] += 1


def rotate(counts: Counter[str], ledger: audit.Ledger) -> None:
    """Begin a new segment; while we are nobody that cannot be done."""
    counts["rotations"] += ledger.rotate()


def repeat(
    name: str, do: Callable[[], object], pause: float, stop: threading.Event, problems: list[str]
) -> threading.Thread:
    """Return a thread that does something until the end, with pauses of ``pause`` seconds on average."""
    pace = random.Random(name)

    def loop() -> None:
        try:
            while not stop.wait(pace.random() * 2 * pause):
                do()
        except BaseException as problem:  # noqa: BLE001 - it is told
            import traceback

            where = traceback.extract_tb(problem.__traceback__)[-3:]
            at = ", ".join(f"{Path(one.filename).name}:{one.lineno}" for one in where)
            problems.append(f"{name} raised {problem!r} ({at})")

    return threading.Thread(target=loop, name=name)


def held() -> None:
    """Open what is kept as long as the process lives."""
    _launcher.hold()
