"""Handlers of signals that raise or fork in the middle of spawn_many: no program and no descriptor is lost."""

from __future__ import annotations

import pytest

import helpers

#: Goes in front: `attempt(n)` calls spawn_many and raises, as the handler of a signal would, at the nth line that
#: is executed in our files; it returns False when there are not so many. What must hold afterwards is looked at.
ATTEMPT = """
import gc, warnings
from safespawn import Command, PIPE, Process, _child, audit, spawn_many
warnings.simplefilter("ignore", ResourceWarning)
HERE = os.path.dirname(safespawn.__file__) + "/"
FILES = {HERE + name for name in ("_many.py", "_spawn.py", "_process.py", "_streams.py", "_child.py", "_surely.py")}
Alarm = {"Exception": type("Alarm", (Exception,), {}), "BaseException": type("Alarm", (BaseException,), {})}[kind]
commands = [
    ["/bin/true"], ["/no/such"], Command(["/bin/true"], stdin=PIPE), Command(["/bin/true"], process_group=1),
    Command(["/bin/true"], strategy="fork"), ["/bin/true"],
]
audit.open(log)
ledger = open(log)
safespawn.run(["/bin/true"], strategy="fork")
safespawn.run(["/bin/true"])
out["wrong"], out["lost"], out["kinds"] = [], [], [0, 0]

where = []

def interrupt(n):
    left = [n]
    def trace(frame, event, arg):
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name in ("__del__", "drop", "abandon"):
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                # Not always to the caller: what is done to its end whatever handlers raise swallows it.
                where[:] = frame.f_code.co_name, frame.f_lineno
                raise Alarm
        return trace
    return trace

def settled():
    # Each that was announced has its one end.
    ends = {}
    for line in ledger:
        record = json.loads(line)
        if record["ev"] in ("spawn.intent", "spawn.started", "spawn.failed", "spawn.denied"):
            ends.setdefault(record["sid"], []).append(record["ev"].removeprefix("spawn."))
    odd = [told for told in ends.values() if told[0] == "intent" and told[1:] not in (["started"], ["failed"], ["denied"])]
    return odd, sum("started" in told for told in ends.values())

settled()

def attempt(n):
    # Before and after the lists are made: what is looked at must not be in them.
    where[:] = []
    before, results, raised = sorted(os.listdir("/proc/self/fd")), None, False
    try:
        try:
            sys.settrace(interrupt(n))
            results = spawn_many(commands, at_once=2, return_errors=True)
        finally:
            sys.settrace(None)
    except Alarm as problem:
        raised, results = True, getattr(problem, "results", None)
        problem.__traceback__ = None
    handles = [one for one in results or () if isinstance(one, Process)]
    codes = {one.wait() for one in handles}
    for one in handles:
        if one.stdin:
            one.stdin.close()
    odd, started = settled()
    failed = [one for one in results or () if isinstance(one, OSError)]
    out["kinds"][0] += len(handles)
    out["kinds"][1] += len(failed)
    gc.collect()
    children = list(_child._abandoned)
    for child in children:
        child.wait(30)
    _child.reap_abandoned()
    left = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd not in before and os.path.exists(f"/proc/self/fd/{fd}")]
    try:
        children.append(os.waitpid(-1, os.WNOHANG))
    except ChildProcessError:
        pass
    if raised and results is None and where[0] == "spawn_many" and not odd and not left:
        # Before the first is begun, or when all is over and the answer on its way to the caller.
        out["lost"].append(where[1])
        assert started == len(children), (n, where, started, len(children), results)
    elif odd or left or codes - {0} or children or started != len(handles):
        out["wrong"].append([n, where, odd, left, sorted(codes), len(children), started, len(handles), results is None])
    return bool(where)
"""


@pytest.mark.parametrize(
    ("kind", "step"), [pytest.param("Exception", 1, marks=pytest.mark.long), ("Exception", 7), ("BaseException", 9)]
)
def test_handler_that_raises_at_any_line(tmp_path, kind, step):
    """What runs has its handle in `results`, what was announced has its end in the ledger, nothing is left."""
    out = helpers.run_snippet(
        ATTEMPT
        + """
n = 1
while attempt(n):
    n += step
out["lines"] = n
""",
        kind=kind,
        step=step,
        log=str(tmp_path / "ledger"),
        timeout=300,
    )
    assert out["wrong"] == []
    assert out["lines"] > 1000 and min(out["kinds"]) > 1000 // step


def test_handler_that_raises_when_all_would_begin_anew(tmp_path):
    """A signal that came in the window, when the proof was lost: nothing ran, and the records say interrupted."""
    out = helpers.run_snippet(
        """
import threading
from safespawn import audit, spawn_many
audit.open(log)
stop, threads = threading.Event(), []
def appear(event, args):
    if event == "safespawn.spawn.intent" and len(threads) < 3:
        threads.append(threading.Thread(target=stop.wait))
        if len(threads) == 3:
            threads[-1].start()
sys.addaudithook(appear)
class Alarm(Exception):
    pass
def ring(*call):
    real(*call)
    raise Alarm  # where a handler runs whose signal was held back until now
real, _binding.spawn_batch = _binding.spawn_batch, ring
try:
    spawn_many([["/usr/bin/touch", log + ".ran"]] * 6, at_once=3)
except Alarm as problem:
    out["results"] = problem.results
stop.set()
records = [json.loads(line) for line in open(log)]
out["ends"] = [one["outcome"]["outcome"] for one in records if one["ev"] == "spawn.failed"]
out["ran"] = os.path.exists(log + ".ran")
""",
        log=str(tmp_path / "ledger"),
        armed=False,
    )
    assert out == {"results": [None] * 6, "ends": ["interrupted"] * 3, "ran": False}


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.threat("T-11")
def test_handler_that_forks(tmp_path, at):
    """A child that goes on where its parent starts many starts none of them once more, whatever was announced."""
    out = helpers.run_snippet(
        """
from safespawn import Command, Process, audit, spawn_many
audit.open(where + "/ledger")
told_read, told = os.pipe()
intents, parent = [], os.getpid()
def fork(event, args):
    if event == "safespawn.spawn.intent":
        intents.append(1)
        if len(intents) == at:
            os.fork()
sys.addaudithook(fork)
commands = [["/bin/sh", "-c", f"echo {i} >> {where}/ran"] for i in range(5)]
try:
    results = spawn_many(commands, at_once=2, return_errors=True)
except ChildProcessError as problem:
    results = problem.results
if os.getpid() != parent:
    theirs = [isinstance(one, Process) for one in results]
    try:
        own = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        own = None
    os.write(told, json.dumps([theirs, own]).encode())
    os._exit(0)
out["codes"] = [one.wait() for one in results]
os.wait()
out["in the child"] = json.loads(os.read(told_read, 1000))
out["ran"] = sorted(open(where + "/ran").read().split())
out["verified"] = audit.verify(where + "/ledger").ok
""",
        at=at,
        where=str(tmp_path),
    )
    # Those that ran before the fork are the parent's, and known as such.
    before = (at - 1) // 2 * 2
    theirs = [i < before for i in range(5)]
    assert out == {
        "codes": [0] * 5,
        "in the child": [theirs, None],
        "ran": list("01234"),
        "verified": True,
    }
