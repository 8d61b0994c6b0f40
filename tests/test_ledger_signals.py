"""Handlers of signals that raise, append or spawn while the ledger is at work: no deadlock, no leak, no gap.

Python runs a handler after a call of C has returned, when a function begins, and nowhere else that matters here. So
a profile function (sys.setprofile) that acts on just these events stands for a signal at every possible moment.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import faulting
import helpers
import ledger_check
from safespawn import audit

#: A signal at a moment that is chosen.
AT = """
#: In _tree.py, once for each process that there is.
LOOKS = ("_look_around", "_look", "_fields", "_runs", "<genexpr>", "_find")

class At:
    '''Calls `handler` at the moment with that number, of those in our package.'''
    package = os.path.dirname(safespawn.__file__)
    stop = sys.setprofile  # a module that is torn down has no names any more

    def __init__(self, number, handler):
        self.number, self.handler, self.count = number, handler, 0

    def __call__(self, frame, event, argument):
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(self.package):
            return
        if frame.f_code.co_filename.endswith("/_segments.py"):
            return  # a look at each segment: there are more of them each time
        if frame.f_code.co_filename.endswith("/_tree.py") and frame.f_code.co_name in LOOKS:
            return  # a look at each process of the machine: as many as it has
        if event == "call" and frame.f_code.co_name == "__del__":
            return  # what is raised at its first step Python ignores, and all that it was to do
        self.count += 1
        if self.count == self.number:
            self.stop(None)
            self.handler()

    @property
    def came(self):
        return self.count >= self.number

def interrupt():
    raise KeyboardInterrupt

def is_interrupted(do, at):
    '''Do it with a handler at that moment; return whether that raised.'''
    sys.setprofile(at)
    try:
        do()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False
"""

#: Does something with the ledger again and again, and lets a handler come one moment later each time.
MOMENTS = AT + """
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
        signal.alarm(60)
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
        raised += is_interrupted(do, at)
        came = at.came
        for child in list(sys.modules["safespawn._child"]._abandoned):
            child.wait(60)
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

#: Spawns in one way again and again, interrupted one moment later each time, and again when that has begun
#: to be told.
ENDINGS = AT + """
import subprocess, warnings
from safespawn import _child

def twice(at):
    second = At(4, interrupt)
    def handler():
        sys.setprofile(second)
        raise KeyboardInterrupt
    return handler

def scene(case):
    where = case["where"]
    key = keys_of.initialise(where + "/keys") if case["keyed"] else None
    arm(where)
    warnings.simplefilter("ignore", ResourceWarning)
    sys.unraisablehook = lambda told: None  # a handler that raises in __del__
    ledger = audit.open(where + "/ledger", mode=case["mode"], keys=where + "/keys" if key else None)
    no_program = where + "/no-program"
    with open(no_program, "w") as file:
        file.write("neither ELF nor script")
    os.chmod(no_program, 0o700)

    def talk():
        process = safespawn.spawn(["/bin/cat"], stdin=-1, stdout=-1)
        with process:
            process.communicate(b"x")

    def late():
        try:
            safespawn.run(["/bin/sleep", "60"], timeout=0)
        except subprocess.TimeoutExpired:
            pass

    def fails():
        try:
            safespawn.run([no_program])
        except OSError as problem:
            assert problem.errno == errno.ENOEXEC, problem

    def drops():
        safespawn.spawn(["/bin/true"])

    def polls():
        process = safespawn.spawn(["/bin/true"])
        process.kill()
        while process.poll() is None:
            os.sched_yield()

    def reaped(close):
        process = safespawn.spawn(["/bin/true"])
        if close:
            os.close(process.pidfd)
        try:
            os.waitpid(process.pid, 0)
            process.wait()
        except ChildProcessError:
            pass

    def denied():
        try:
            safespawn.run(["/bin/true"], digest="sha256:" + "0" * 64)
        except safespawn.UnsafeSpawn:
            pass

    dos = dict(run=lambda: safespawn.run(["/bin/true"]), talk=talk, late=late, fails=fails, drops=drops, polls=polls,
               denied=denied, taken=lambda: reaped(False), lost=lambda: reaped(True))
    do = dos[case["do"]]

    def let_all_end():
        gc.collect()
        for child in list(_child._abandoned):
            child.send_signal(signal.SIGKILL)
            try:
                child.wait(60)
            except ChildProcessError:
                try:
                    os.waitpid(child.pid, 0)  # its descriptor is closed, and nobody has reaped it
                except ChildProcessError:
                    pass
        _child.reap_abandoned()

    do()
    let_all_end()
    number, came, raised, problems, before = 0, True, 0, [], len(fds())
    while came:
        number += case["step"]
        at = At(number, None)
        at.handler = twice(at) if case["again"] else interrupt
        raised += is_interrupted(do, at)
        came = at.came
        let_all_end()
        if (booked := ledger._core.counts().booked):
            problems.append(f"{number}: {booked} bytes are still booked")
            break
        if len(fds()) != before:
            problems.append(f"{number}: descriptors {sorted(fds().values())}")
            break
        if not no_child():
            problems.append(f"{number}: a child is left")
            break
    ledger.close()
    return dict(key=key, problems=problems, moments=number, raised=raised)
"""


#: A ledger that could not be opened, where the glass is broken, is opened by a record; a handler comes meanwhile,
#: one moment later each time. Whatever that does, the next program is recorded or refused.
LATE = AT + """
def scene(case):
    where, problems, number, came, raised = case["where"], [], 0, True, 0
    keys = where + "/keys" if case["keyed"] else None
    if keys:
        keys_of.initialise(keys)
    glass = sys.modules["safespawn.audit._breakglass"]
    glass.tell = lambda text: None
    emitted = Counter()

    def count(event, args):
        if event.startswith("safespawn."):
            emitted[event[10:]] += 1
    sys.addaudithook(count)

    def spawns():
        safespawn.run(["/bin/true"])

    def refuses():
        raise AuditError(errno.EPERM, "by a handler")

    def is_in_vain():
        raise TimeoutError

    handler = dict(interrupt=interrupt, spawns=spawns, refuses=refuses, is_in_vain=is_in_vain,
                   closes=lambda: opened.close())[case["handler"]]
    before = None
    while came:
        number += case["step"]
        place = f"{where}/{number}"
        emitted.clear()
        glass.reason = lambda: "no directory yet"
        opened = audit.open(place + "/ledger", mode=case["mode"], keys=keys)
        spawns()
        os.mkdir(place, 0o700)
        opened._no_try_before = 0
        at = At(number, handler)
        try:
            raised += is_interrupted(spawns, at)
        except (AuditError, TimeoutError):
            raised += 1
        came = at.came
        glass.reason, opened._no_try_before = lambda: None, 0
        if opened.closed:
            opened.close()
            continue  # by a handler
        spawns()
        opened.close()
        with open(place + "/ledger") as file:
            records = [json.loads(line) for line in file]
        told = Counter(record["ev"] for record in records)
        if case["handler"] == "spawns":  # what is not in it was counted
            lost = sum(record.get("lost", 0) for record in records)
            missing = sum((emitted - told).values())
            if lost != missing:
                problems.append(f"{number}: {missing} records are missing, {lost} are told: {told}")
        gc.collect()
        for child in list(sys.modules["safespawn._child"]._abandoned):
            child.wait(60)
        before = before or len(fds())
        if len(fds()) != before:
            problems.append(f"{number}: descriptors {sorted(fds().values())}")
            break
    return dict(problems=problems, moments=number, raised=raised)
"""


#: What comes into it, and whether the short form has keys then: with both each is the long form.
LATE_HANDLERS = {"interrupt": True, "spawns": False, "refuses": False, "is_in_vain": True, "closes": True}


@pytest.mark.parametrize("step", [13, pytest.param(5, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("handler", "keyed"),
    [pytest.param(handler, keyed, id=f"{word}-{handler}", marks=() if keyed == short else pytest.mark.long)
     for handler, short in LATE_HANDLERS.items() for word, keyed in (("plain", False), ("keys", True))],
)  # fmt: skip
def test_late_opening_that_a_handler_comes_into(
    tmp_path: Path, faults: Path, handler: str, keyed: bool, step: int
) -> None:
    """The glass is broken, and the ledger is opened at last: no moment leaves the process without both."""
    mode = "durable" if keyed else "require"
    case = {"where": str(tmp_path), "handler": handler, "keyed": keyed, "mode": mode, "step": step}
    (out,) = faulting.run("from collections import Counter" + LATE, [case], tmp_path, faults)
    assert "crashed" not in out and out["status"] == 0, out
    assert out["problems"] == []
    assert out["moments"] > 300
    assert out["raised"] > 100 // step or handler in ("spawns", "closes")


#: A ledger is opened, or leaves its segment; a handler forks, one moment later each time, and the child goes on there.
FORKED = AT + """
def scene(case):
    where, came, number, problems, answers = case["where"], True, 0, [], Counter()
    key, parent = keys_of.initialise(where + "/keys"), os.getpid()
    opened = audit.open(where + "/ledger", keys=where + "/keys")
    audit._bypass.rest()

    def forks():
        nonlocal pid
        pid = os.fork()

    def opens():
        nonlocal opened
        opened = audit.open(where + "/ledger", keys=where + "/keys")

    do = dict(opens=opens, rotates=lambda: opened.rotate())[case["do"]]
    while came:
        number, pid = number + case["step"], -1
        at = At(number, forks)
        try:
            is_interrupted(do, at)
        except AuditError:
            if pid:
                raise
        if not pid:
            signal.alarm(60)
            ledger = audit._Current.ledger
            told = ledger.append("guard.config", None, lambda: dict(by="child"))
            ledger.close()
            os._exit(0 if told else 3)
        came = at.came
        if came:
            answers[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])] += 1
    opened.close()
    return dict(key=key, moments=number, answers=answers)
"""


@pytest.mark.parametrize("do", ["opens", "rotates"])
def test_child_of_a_handler_goes_on(tmp_path: Path, faults: Path, do: str) -> None:
    """Both go on where the handler came: no chain, no slot and no line of the registry is begun twice."""
    case = {"where": str(tmp_path), "do": do, "step": 7 if do == "opens" else 2}
    (out,) = faulting.run("from collections import Counter" + FORKED, [case], tmp_path, faults)
    assert "crashed" not in out and out["status"] == 0, out
    # What stands in a child's checkpoint may have been counted by its parent, which no verifier minds.
    seen = audit.verify(tmp_path / "ledger", key=bytes.fromhex(out["key"]), registry=tmp_path / "keys")
    assert [str(finding) for finding in seen.findings] == []
    assert out["moments"] > 100
    assert out["answers"] == {"0": out["moments"] // case["step"] - 1}


def play(where: Path, faults: Path, **case: Any) -> Iterator[tuple[str, dict[str, Any], ledger_check.Ledger]]:
    """Play it with all that a ledger does; yield what was done, what came of it, and the ledger."""
    cases = [{"do": do, "where": str(where / do), "step": case["often"].get(do, 1), **case} for do in DOS]
    for one in cases:
        Path(one["where"]).mkdir(mode=0o700)
    for one, out in zip(cases, faulting.run(MOMENTS, cases, where, faults), strict=True):
        assert "crashed" not in out and out["status"] == 0, (one, out)
        yield one["do"], out, ledger_check.check(Path(one["where"], "ledger"), out["key"], Path(one["where"], "keys"))


@pytest.mark.parametrize("keyed", [pytest.param(False, marks=pytest.mark.long), True], ids=["plain", "keys"])
def test_interrupted_at_every_moment(tmp_path: Path, faults: Path, keyed: bool) -> None:
    """A handler that raises, at every moment there is: no lock stays, no descriptor, and the chains go on."""
    mode = "durable" if keyed else "require"
    often = {"open": 3}  # it has a thousand moments
    for do, out, ledger in play(tmp_path, faults, keyed=keyed, mode=mode, handler="interrupt", often=often):
        assert out["problems"] == [], do
        assert out["moments"] > 8
        assert out["raised"] > (-1 if do == "fork" else 8)  # what hooks raise stops no fork
        assert len(ledger.of("mirror.up")) >= out["moments"] // often.get(do, 1)
        if do == "close":  # at the second time, if not at the first
            assert len(ledger.of("chain.close")) == len(ledger.chains)


@pytest.mark.parametrize("handler", ["append", "spawn"])
def test_handler_that_records_at_every_moment(tmp_path: Path, faults: Path, handler: str) -> None:
    """A handler that uses the ledger itself, at every moment there is: it never waits for what it interrupts."""
    often = {"open": 5, "spawn": 3} if handler == "append" else {do: 25 if do == "open" else 7 for do in DOS}
    for do, out, ledger in play(tmp_path, faults, keyed=True, mode="require", handler=handler, often=often):
        assert out["problems"] == [], do
        assert out["raised"] == 0
        assert ledger.of("guard.config") if handler == "append" else ledger.programs("spawn.exit")


@pytest.mark.parametrize("step", [11, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_each_intent_has_one_ending(tmp_path: Path, faults: Path, again: bool, step: int) -> None:
    """Whatever is interrupted, and when: one record says what came of an intent, one how it ended, nothing is booked."""
    dos = ("run", "talk", "late", "fails", "drops", "polls", "denied", "taken", "lost")
    modes = (("require", False), ("durable", True))
    cases = [
        {"do": do, "mode": mode, "keyed": keyed, "again": again, "step": step, "where": str(tmp_path / f"{do}-{mode}")}
        for do in dos
        for mode, keyed in modes
    ]
    for case in cases:
        Path(str(case["where"])).mkdir(mode=0o700)
    for case, out in zip(cases, faulting.run(ENDINGS, cases, tmp_path, faults), strict=True):
        assert "crashed" not in out and out["status"] == 0, (case, out)
        assert out["problems"] == [], case
        assert out["raised"] > 150 // step, case
        where = Path(str(case["where"]))
        ledger = ledger_check.check(where / "ledger", out["key"], where / "keys")
        told = Counter((record["ev"], record["sid"]) for record in ledger.records if record["sid"])
        assert set(told.values()) == {1}, [one for one in told.items() if one[1] > 1]
        by_event = defaultdict(set)
        for event, sid in told:
            by_event[event].add(sid)
        assert by_event["spawn.intent"] == by_event["spawn.started"] | by_event["spawn.failed"], case
        assert by_event["spawn.started"] == by_event["spawn.exit"] | by_event["exit.unknown"], case
        assert by_event["spawn.started"].isdisjoint(by_event["spawn.failed"])
        outcomes = {record["outcome"]["outcome"] for record in ledger.of("spawn.failed")}
        others = {"fails": {"failed", "interrupted"}, "denied": set()}
        expected = others.get(str(case["do"]), {"interrupted"})
        assert outcomes <= expected
        assert outcomes == expected or step > 3  # few moments lie between intent and start
        assert by_event["spawn.exit"].isdisjoint(by_event["exit.unknown"])
        assert by_event["exit.unknown"] or case["do"] != "lost"
        assert bool(by_event["spawn.denied"]) == (case["do"] == "denied")


#: Ends an interpreter that has children of all sorts, interrupted at one moment of that.
ENDS = AT + """
import warnings
from safespawn import audit

class Late:
    '''Starts a program when it is torn down, if the ledger lets it.'''
    def __init__(self, argv):
        self.argv = argv

    def __del__(self, run=safespawn.run):
        try:
            run(self.argv)
        except Exception:
            pass

def come():
    with open(f"{where}/came-{number}", "x"):
        raise KeyboardInterrupt

warnings.simplefilter("ignore", ResourceWarning)
ledger = audit.open(where + "/ledger", mode=mode, keys=keys)
late = Late([program, f"{where}/mark-{number}"])
left = [safespawn.spawn(["/bin/true"]), safespawn.spawn(["/bin/cat"], stdin=-1)]
os.waitid(os.P_PIDFD, left[0].pidfd, os.WEXITED | os.WNOWAIT)
safespawn.spawn(["/bin/cat", "-"], stdin=-1)
sys.setprofile(At(number, come))
"""


@pytest.mark.parametrize(
    ("mode", "step"), [("durable", 5), *(pytest.param(mode, 2, marks=pytest.mark.long) for mode in ("require", "durable"))]
)
def test_interrupted_at_the_end_of_the_interpreter(tmp_path: Path, mark: Path, mode: str, step: int) -> None:
    """A handler that raises while the interpreter ends, one moment later each time: nothing hangs or starts unrecorded."""
    keys = tmp_path / "keys"
    key = audit.keys.initialise(keys)
    number, came = 0, True
    while came:
        number += step
        helpers.run_snippet(
            ENDS, where=str(tmp_path), mode=mode, keys=str(keys), number=number, program=str(mark)
        )
        came = (tmp_path / f"came-{number}").exists()
    ledger = ledger_check.check(tmp_path / "ledger", key, keys)
    ledger_check.verified(tmp_path / "ledger", key, keys)
    marks = {str(path) for path in tmp_path.glob("mark-*")}
    sids = [{record["sid"] for record in ledger.of(event)} for event in ("spawn.intent", "spawn.started")]

    assert number > 25
    # All but where it came before the first step of our end: there it stays open, and the last program is recorded.
    assert 0 <= len(ledger.chains) - len(ledger.of("chain.close")) <= 2
    assert len(marks) <= 2  # the others were refused: the ledger was closed
    assert marks <= ledger.programs()
    assert sids[0] == sids[1]


#: Two threads wait for one program, again and again; the first is interrupted one moment later each time.
WAITERS = AT + """
import threading, time

class Waiter(threading.Thread):
    daemon, code = True, None

    def run(self):
        self.code = self.process.wait()

    def begin(self, process):
        self.process = process
        self.start()

def scene(case):
    where = case["where"]
    arm(where)
    ledger, problems = audit.open(where + "/ledger"), []

    def round(number):
        process, waiter = safespawn.spawn(["/bin/sh", "-c", "read text; exit 7"], stdin=-1), Waiter()

        def comes():
            '''The other begins now, and gets as far as it can with what the first one holds.'''
            waiter.begin(process)
            for _ in range(20):
                time.sleep(0)
            interrupt()

        def ends(frame, event, argument):
            if event == "c_call" and argument is _binding.await_end:
                process.stdin.close()
            at(frame, event, argument)

        at = At(number, interrupt if case["both"] else comes)
        if case["both"]:
            waiter.begin(process)
        elif case["ended"]:
            process.stdin.close()
            os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
        sys.setprofile(at if case["ended"] else ends)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            code = None
        finally:
            sys.setprofile(None)
        process.stdin.close()
        if not waiter.ident:
            waiter.begin(process)
        waiter.join(60)  # a deadlock ends so
        return at.came, code, (waiter.code, process.wait())

    number, came, interrupted, before = 0, True, 0, len(fds())
    while came:
        number += 1
        came, code, codes = round(number)
        interrupted += code is None
        if codes != (7, 7) or code not in (7, None) or not no_child():
            problems.append(f"{number}: {code}, {codes}")
        if (booked := ledger._core.counts().booked) or len(fds()) != before:
            problems.append(f"{number}: {booked} bytes are still booked, descriptors {sorted(fds().values())}")
    ledger.close()
    return dict(problems=problems, moments=number, interrupted=interrupted)
"""


@pytest.mark.parametrize("how", ["ended", "runs", "both"])
def test_one_of_two_who_wait_is_interrupted(tmp_path: Path, faults: Path, how: str) -> None:
    """Two threads wait for a program, one is interrupted at any moment: the other has the code, one record tells it."""
    case = {"where": str(tmp_path), "both": how == "both", "ended": how == "ended"}
    (out,) = faulting.run(WAITERS, [case], tmp_path, faults)
    assert "crashed" not in out and out["status"] == 0, out
    ledger = ledger_check.check(tmp_path / "ledger", still_open=False)
    sids = [sorted(str(record["sid"]) for record in ledger.of(event)) for event in ("spawn.intent", "spawn.exit")]

    assert out["problems"] == []
    assert out["interrupted"] == out["moments"] - 1 > 15
    assert sids[0] == sids[1] == sorted(set(sids[0]))


#: Starts or stops the threads of a mirror again and again, interrupted one moment later each time, and then once more.
MIRRORS = AT + """
import mirroring, threading

def scene(case):
    problems, number, came, raised = [], 0, True, 0
    while came:
        number += 1
        mirror, at = mirroring.Scripted(), At(number, interrupt)
        running = mirroring.Running(mirror, start=case["do"] == "stop")
        raised += is_interrupted(running.runner.start if case["do"] == "start" else lambda: running.runner.stop(60), at)
        came = at.came
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        if case["do"] == "start":
            running.runner.start()
            running.put(mirroring.line(0), mirroring.line(1))
            running.settled(2)
        began = time.monotonic()
        left, took = running.runner.stop(60), time.monotonic() - began
        threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        accepted, dropped, _ = running.count()  # an opening that was interrupted is tried again later
        is_counted = (accepted, accepted + dropped) == (len(mirror.taken), 2 * (case["do"] == "start"))
        if left != dict(scripted=0) or took > 30 or threads or blocked or not is_counted:
            problems.append(f"{number}: {left}, {took} s, {accepted}, {dropped}, {threads}, {blocked}")
    return dict(problems=problems, moments=number, raised=raised)
"""


@pytest.mark.parametrize("do", ["start", "stop"])
def test_threads_of_mirrors_interrupted_at_every_moment(tmp_path: Path, faults: Path, do: str) -> None:
    """A handler that raises while the threads of mirrors are started or stopped: the next start and stop do it."""
    (out,) = faulting.run(MIRRORS, [{"do": do}], tmp_path, faults)
    assert "crashed" not in out and out["status"] == 0, out
    assert out["problems"] == []
    assert out["raised"] > 12
