"""Handlers of signals that raise, append or spawn while the ledger is at work: no deadlock, no leak, no gap.

Python runs a handler after a call of C has returned, when a function begins, and nowhere else that matters here. So
a profile function (sys.setprofile) that acts on just these events stands for a signal at every possible moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import faulting
import ledger_check

#: Does something with the ledger again and again, and lets a handler come one moment later each time.
MOMENTS = """
PACKAGE = os.path.dirname(safespawn.__file__)

class At:
    '''Calls `handler` at the moment with that number, of those in our package.'''
    def __init__(self, number, handler):
        self.number, self.handler, self.count = number, handler, 0

    def __call__(self, frame, event, argument):
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if frame.f_code.co_filename.endswith("/_segments.py"):
            return  # a look at each segment: there are more of them each time
        self.count += 1
        if self.count == self.number:
            sys.setprofile(None)
            self.handler()

    @property
    def came(self):
        return self.count >= self.number

def interrupt():
    raise KeyboardInterrupt

def scene(case):
    where, mode = case["where"], case["mode"]
    ledger, keys = where + "/ledger", where + "/keys" if case["keyed"] else None
    arm(where)
    key = keys_of.initialise(keys) if keys else None
    problems, moments, raised = [], 0, 0
    sys.unraisablehook = lambda told: None  # what hooks of a fork raise goes there
    opened = audit.open(ledger, mode=mode, keys=keys)
    safespawn.run(["/bin/true"])

    def reopen():
        nonlocal opened
        opened = audit.open(ledger, mode=mode, keys=keys)

    def child():
        signal.alarm(20)
        sys.setprofile(None)
        answer = opened.append("mirror.up", None, lambda: dict(), gate=True)
        opened.close()
        os._exit(0 if answer else 3)

    def fork():
        pid = -1
        try:
            pid = os.fork()
            if not pid:
                child()
        finally:
            if pid == 0:
                child()
            sys.setprofile(None)
            while True:
                try:
                    status = os.waitpid(-1, 0)[1]
                except ChildProcessError:
                    break
                if status:
                    problems.append(f"{moment}: the child ended with {status}")

    def close():
        opened.close()

    dos = dict(open=reopen, fork=fork, rotate=lambda: opened.rotate(), checkpoint=lambda: opened.checkpoint(),
               append=lambda: opened.append("mirror.down", None, lambda: dict(), gate=True),
               spawn=lambda: safespawn.run(["/bin/true"]), close=close)
    handlers = dict(
        interrupt=interrupt,
        append=lambda: opened.append("guard.config", None, lambda: dict(by="handler")),
        spawn=lambda: safespawn.run(["/bin/true", "handler"]),
    )
    do, handler, number, came = dos[case["do"]], handlers[case["handler"]], 0, True
    before = len(fds())
    while came:
        number += case["step"]
        moment = f"{case['do']} {number}"
        at = At(number, handler)
        sys.setprofile(at)
        try:
            do()
        except KeyboardInterrupt:
            raised += 1
        finally:
            sys.setprofile(None)
        came = at.came
        for child in list(sys.modules["safespawn._child"]._abandoned):
            child.wait(20)
        if case["do"] == "close" and opened.closed:
            opened.close()
            opened = audit.open(ledger, mode=mode, keys=keys)
        opened = audit._Current.ledger
        gc.collect()
        if len(fds()) != before:
            problems.append(f"{moment}: descriptors {sorted(fds().values())}")
            before = len(fds())
        if not opened.append("mirror.up", None, lambda: dict()):
            problems.append(f"{moment}: the next record was lost")
    opened.close()
    return dict(key=key, problems=problems, moments=number, raised=raised)
"""

DOS = ["open", "fork", "rotate", "checkpoint", "append", "spawn", "close"]


def play(where: Path, faults: Path, **case: Any) -> Iterator[tuple[str, dict[str, Any], ledger_check.Ledger]]:
    """Play it with all that a ledger does; yield what was done, what came of it, and the ledger."""
    cases = [{"do": do, "where": str(where / do), "step": case["often"].get(do, 1), **case} for do in DOS]
    for one in cases:
        Path(one["where"]).mkdir(mode=0o700)
    for one, out in zip(cases, faulting.run(MOMENTS, cases, where, faults), strict=True):
        assert "crashed" not in out and out["status"] == 0, (one, out)
        yield one["do"], out, ledger_check.check(Path(one["where"], "ledger"), out["key"], Path(one["where"], "keys"))


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keys"])
def test_interrupted_at_every_moment(tmp_path: Path, faults: Path, keyed: bool) -> None:
    """A handler that raises, at every moment there is: no lock stays, no descriptor, and the chains go on."""
    mode = "durable" if keyed else "require"
    often = {"open": 3}  # it has a thousand moments
    for do, out, ledger in play(tmp_path, faults, keyed=keyed, mode=mode, handler="interrupt", often=often):
        assert out["problems"] == [], do
        assert out["moments"] > 8
        assert out["raised"] > (-1 if do == "fork" else 8)  # what hooks raise stops no fork
        assert len(ledger.of("mirror.up")) >= out["moments"] // often.get(do, 1)


@pytest.mark.parametrize("handler", ["append", "spawn"])
def test_handler_that_records_at_every_moment(tmp_path: Path, faults: Path, handler: str) -> None:
    """A handler that uses the ledger itself, at every moment there is: it never waits for what it interrupts."""
    often = {"open": 5, "spawn": 3} if handler == "append" else {do: 25 if do == "open" else 7 for do in DOS}
    for do, out, ledger in play(tmp_path, faults, keyed=True, mode="require", handler=handler, often=often):
        assert out["problems"] == [], do
        assert out["raised"] == 0
        assert ledger.of("guard.config") if handler == "append" else ledger.programs("spawn.exit")
