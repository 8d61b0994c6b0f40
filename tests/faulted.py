"""The process whose system calls fail: it plays scenes, and says where each begins and ends.

    python tests/faulted.py LIBRARY CONTROL SETTINGS

tests/injecting.py runs it. LIBRARY is tests/ways/supervise.c, CONTROL a socket on which its calls go unseen.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

if __name__ == "__main__" and "SAFESPAWN_TEST_CORE" in os.environ:
    sys.path.insert(0, os.environ["SAFESPAWN_TEST_CORE"])

import safespawn
from safespawn import _binding, _launcher, audit, guards, helper
from safespawn.audit import keys as keys_of

#: No system call has this number: supervise.c waits for it.
MARK = 5000
BEGIN, END, READY = 1, 2, 3
_LIBC = ctypes.CDLL(None)


def mark(what: int) -> None:
    """Tell the supervisor, and wait until it lets us go on."""
    _LIBC.syscall(MARK, what)


def told(problem: BaseException) -> dict[str, Any]:
    """Return what an exception says, as plain values."""
    report = getattr(problem, "report", None)
    return {
        "raised": type(problem).__name__,
        "is": [kind.__name__ for kind in type(problem).__mro__],
        "errno": getattr(problem, "errno", None),
        "stage": getattr(problem, "stage", None),
        "guard": getattr(problem, "guard", None),
        "text": str(problem),
        "report": None if report is None else [report.outcome, report.stage, report.errno, report.strategy],
    }


class Scenes:
    """Each method plays one scene and returns what came of it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Keep what the scenes are about: ``options`` of the spawns, ``program``, ``where`` files may come and go."""
        self.settings = settings
        self.options = decoded(settings["options"])
        self.program = settings["program"]
        self.where = settings["where"]
        self.number = 0

    def prepare(self) -> None:
        """Make a place for a ledger: the calls of that are not those that fail."""
        self.number += 1
        os.mkdir(f"{self.where}/life-{self.number}", 0o700)

    def spawn(self) -> dict[str, Any]:
        """Run the program once."""
        done = safespawn.run([self.program, "a"], **self.options)
        return {"code": done.returncode, "report": [done.report.outcome, done.report.stage, done.report.strategy]}

    def handle(self) -> dict[str, Any]:
        """Start it, look, and wait for its end with a time-out."""
        with safespawn.spawn([self.program, "a"], **self.options) as process:
            process.poll()
            code = process.wait(timeout=30)
        return {"code": code, "report": [process.report.outcome, process.report.stage, process.report.strategy]}

    def many(self) -> dict[str, Any]:
        """Start three side by side."""
        options = {**self.options, "return_errors": True}
        made = safespawn.spawn_many([safespawn.Command([self.program, str(i)]) for i in range(3)], **options)
        problems = [told(one) for one in made if isinstance(one, BaseException)]
        codes = [one.wait() for one in made if not isinstance(one, BaseException)]
        if problems:
            return {**problems[0], "others": len(codes)}
        return {"code": max(codes), "report": ["exec", "exec", made[0].report.strategy]}

    def helper_life(self) -> dict[str, Any]:
        """Start a helper, have it run the program, end it."""
        with safespawn.Helper(pool=self.settings["pool"]):
            return self.spawn()

    def ledger_life(self) -> dict[str, Any]:
        """Open a ledger, spawn, rotate, checkpoint, close."""
        path = f"{self.where}/life-{self.number}/ledger"
        keys = f"{self.where}/keys" if self.settings["keyed"] else None
        with audit.open(path, mode=self.settings["mode"], keys=keys) as ledger:
            came = self.spawn()
            came["rotated"] = ledger.rotate()
            ledger.checkpoint()
        return came


def decoded(options: dict[str, Any]) -> dict[str, Any]:
    """Return options that JSON cannot say: numbers as keys, bytes."""
    made = dict(options)
    for name in ("fds", "rlimits"):
        if name in made:
            made[name] = {int(key): value for key, value in made[name].items()}
    if "seccomp" in made:
        made["seccomp"] = bytes.fromhex(made["seccomp"])
    return made


def attempt(scene: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Play it and return what came of it, with nothing of it left that a reference holds."""
    try:
        came = scene()
    except BaseException as problem:  # noqa: BLE001 - whatever it raises is judged by the test
        came = told(problem)
    if "raised" in came:
        gc.collect()  # frames and their exceptions may hold each other
    return came


@contextlib.contextmanager
def standing(settings: dict[str, Any]) -> Iterator[None]:
    """What is there before and after every scene: the ledger, the helper."""
    with contextlib.ExitStack() as stack:
        if settings["ledger"]:
            stack.enter_context(audit.open(settings["ledger"], mode="require"))
        if settings["helper"]:
            stack.enter_context(safespawn.Helper(pool=settings["pool"]))
        yield


def state() -> dict[str, Any]:
    """Return what nobody sees from outside."""
    status = _binding.lock_status()
    return {
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "lock": [status["spawners"], status["changers"], status["changer_waits"]],
        "zombie": zombie(),
    }


def zombie() -> bool | None:
    """Whether a child of ours has ended that nobody has reaped; None: we have none."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return None


def serve(control: int, settings: dict[str, Any]) -> None:
    """Play as we are asked: ``close`` names a descriptor whose close was made to fail."""
    scenes = Scenes(settings)
    scene = getattr(scenes, settings["scene"])
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with standing(settings):
        gc.collect()
        gc.freeze()  # what is here now needs no look later
        mark(READY)
        while (asked := json.loads(os.read(control, 65536))) is not None:
            if asked.get("close") is not None:
                with contextlib.suppress(OSError):
                    os.close(asked["close"])
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # what gives it back may have been made to fail
            if settings["scene"] == "ledger_life":
                scenes.prepare()
            before = state()
            mark(BEGIN)
            came = attempt(scene)
            mark(END)
            came["same"] = [before, state()]
            os.write(control, json.dumps(came).encode())


def main() -> None:
    """Prepare, hand over the listener, and serve."""
    library, control, settings = ctypes.CDLL(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    ours = socket.socket(fileno=control)
    socket.send_fds(ours, [b"?"], [0])  # once before, so that nothing of it is new later
    listener = library.supervise_install(control)  # before arming: its wrapper would make more calls
    socket.send_fds(ours, [b"."], [listener])
    os.close(listener)
    guards.arm()
    helper.RESTART_PAUSE = 0.0
    _launcher.hold()  # its descriptor stays
    if settings["keyed"]:
        keys_of.initialise(settings["where"] + "/keys")
    if settings["before"]:
        exec(settings["before"], {})  # noqa: S102 - text of the test
    safespawn.run(["/bin/true"])  # shared memory is tried once, at the first spawn
    serve(ours.detach(), settings)


if __name__ == "__main__":
    main()
