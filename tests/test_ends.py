"""The ends of processes and ledgers: nothing starts unrecorded, nothing is lost, nobody spins."""

from __future__ import annotations

import subprocess
import sys

import pytest

import helpers


@pytest.mark.threat("T-11")
def test_nothing_starts_unrecorded_after_the_ledger_has_closed_at_exit(tmp_path):
    """A program that an exit handler starts after the ledger's end is refused, not run unseen."""
    ledger = tmp_path / "ledger"
    snippet = f"""
import atexit, os
def late():
    import safespawn
    try:
        safespawn.run(["/bin/echo", "unrecorded"])
    except safespawn.AuditError as problem:
        os.write(1, b"refused " + problem.guard.encode())
atexit.register(late)  # before the import: it runs after what safespawn registers
import safespawn
safespawn.audit.open({str(ledger)!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, cwd=helpers.ROOT, check=True, timeout=120
    )
    assert done.stdout == "refused intent-first"
    assert helpers.records(ledger)[-1]["ev"] == "chain.close"


def test_ledger_replaced_under_threads(tmp_path):
    """Putting a new ledger in the place of the old one, while threads spawn, loses no record."""
    out = helpers.run_snippet(
        """
import threading
from safespawn import audit
audit.open(where + "/0")
errors, replaced = [], threading.Event()
def work():
    for i in range(40):
        if i == 20:
            replaced.wait(60)
        try:
            safespawn.run(["/bin/true"])
        except Exception as problem:
            errors.append(repr(problem))
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
count = 1
while any(thread.is_alive() for thread in threads):
    audit.open(f"{where}/{count}").append("mirror.up", None, dict)
    count += 1
    if count > 3:
        replaced.set()
    threads[0].join(0.005)
for thread in threads: thread.join()
out["errors"] = errors[:2]
out["count"] = count
""",
        where=str(tmp_path),
    )
    assert out["errors"] == []
    assert out["count"] > 3
    events: dict[str, list[str]] = {}
    for number in range(out["count"]):
        for record in helpers.records(tmp_path / str(number)):
            if record["sid"]:
                events.setdefault(record["sid"], []).append(record["ev"])
    assert len(events) == 120
    assert all(sorted(seen) == ["spawn.exit", "spawn.intent", "spawn.started"] for seen in events.values())


def test_wait_without_a_free_descriptor_keeps_its_time():
    """A full descriptor table makes wait no spinner, and its timeout holds."""
    out = helpers.run_snippet(
        """
import resource, subprocess
process = safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
full = []
try:
    while True:
        full.append(os.dup(0))
except OSError:
    pass
looks, await_end = [], _binding.await_end
_binding.await_end = lambda *given: looks.append(given) or await_end(*given)
start = time.monotonic()
try:
    process.wait(timeout=0.3)
except subprocess.TimeoutExpired:
    out["expired"] = True
out["in time"] = 0.2 < time.monotonic() - start < 30
out["idle"] = len(looks) < 20  # each sleeps for a twentieth of a second at least
try:
    process.kill_tree()
except OSError as problem:
    out["kill_tree"] = problem.errno == 24  # it could not look, and says so
for fd in full: os.close(fd)
out["killed all the same"] = process.wait()
process.stdin.close()
"""
    )
    assert out == {"expired": True, "in time": True, "idle": True, "kill_tree": True, "killed all the same": -9}


@pytest.mark.parametrize("method", ["wait", "poll", "send_signal", "kill_tree"])
def test_forked_child_has_no_claim_on_a_process(tmp_path, method):
    """In a forked child every method says that it is another's child; the parent's record stays right."""
    out = helpers.run_snippet(
        """
from safespawn import audit
ledger = audit.open(where)
process = safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE)
pid = os.fork()
if pid == 0:
    call = {"send_signal": lambda: process.send_signal(9)}.get(method, getattr(process, method))
    try:
        call()
    except ChildProcessError:
        os._exit(7)
    os._exit(1)
out["refused"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
process.stdin.close()
out["code"] = process.wait()
ledger.close()
out["events"] = [json.loads(line)["ev"] for line in open(where)]
""",
        where=str(tmp_path / "ledger"),
        method=method,
    )
    assert (out["refused"], out["code"]) == (7, 0)
    assert out["events"].count("spawn.exit") == 1 and "exit.unknown" not in out["events"]


def test_program_that_grows_cannot_hold_the_hash(program):
    """A writer who makes a pinned program longer after the look is refused at once, deadline or not."""
    out = helpers.run_snippet(
        """
def grow(event, args):
    if event == "safespawn.spawn.intent":
        os.truncate(target, 1 << 42)
sys.addaudithook(grow)
for more in ({}, {"deadline": 40}):
    try:
        safespawn.run([target], pin=True, **more)
    except safespawn.SpawnTimeout:
        out[str(more)] = "too late"
    except OSError as problem:
        out[str(more)] = problem.stage
""",
        timeout=100,
        target=str(program()),
    )
    assert set(out.values()) <= {"pin", "lookup"} and len(out) == 2


def test_record_numbers_ascend_when_a_handler_spawns(tmp_path):
    """Records that a signal handler writes in between do not turn the numbers around."""
    out = helpers.run_snippet(
        """
from safespawn import audit
ledger = audit.open(where)
def handler(number, frame):
    ledger.append("mirror.down", None, dict)
signal.signal(signal.SIGALRM, handler)
for i in range(4000):
    # Once for each: where a record takes longer than a period, a handler would never come to its end.
    signal.setitimer(signal.ITIMER_REAL, 0.000001 + i % 97 * 0.000001)
    ledger.append("mirror.up", None, dict, gate=True)
signal.setitimer(signal.ITIMER_REAL, 0)
ledger.close()
numbers = [json.loads(line)["n"] for line in open(where)]
out["ascend"] = numbers == list(range(len(numbers)))
out["nested"] = sum("mirror.down" in line for line in open(where)) > 10
""",
        where=str(tmp_path / "ledger"),
    )
    assert out == {"ascend": True, "nested": True}


def test_lookup_goes_on_after_a_signal(tmp_path):
    """A handler that returns, while a lease is waited for, is no error of the spawn (PEP 475)."""
    target = tmp_path / "program"
    with open("/bin/true", "rb") as source:
        target.write_bytes(source.read())
    target.chmod(0o755)
    out = helpers.run_snippet(
        """
import fcntl
leased, leased_write = os.pipe()
go, go_write = os.pipe()
holder = os.fork()
if holder == 0:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(target, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    os.write(leased_write, b".")
    os.read(go, 1)
    os._exit(0)
os.read(leased, 1)
rung = []
def ring(number, frame):
    rung.append(1)
    if len(rung) == 3:
        os.write(go_write, b".")
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
out["code"] = safespawn.run([target]).returncode
signal.setitimer(signal.ITIMER_REAL, 0)
out["rung"] = len(rung) >= 3
os.waitpid(holder, 0)
""",
        target=str(target),
    )
    assert out == {"code": 0, "rung": True}


def test_handler_that_raises_over_the_pipes_closes_nothing_twice():
    """An exception while a spawn with pipes is under way comes out as itself, and no number is closed twice."""
    out = helpers.run_snippet(
        """
import gc, warnings
from safespawn import _child
warnings.simplefilter("ignore", ResourceWarning)
class Alarm(Exception):
    pass
def ring(number, frame):
    raise Alarm
signal.signal(signal.SIGALRM, ring)
other = []
for i in range(400):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + i % 89 * 0.00001)
            with safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE, stdout=safespawn.PIPE) as process:
                process.communicate(b"x")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        pass
    except BaseException as problem:
        other.append(repr(problem))
    process = None
gc.collect()
for child in list(_child._abandoned):
    child.wait(30)
out["other"] = other[:3]
""",
        timeout=240,
    )
    assert out["other"] == []
