"""Signal handlers that raise, and others who reap: no child and no descriptor is lost."""

from __future__ import annotations

import pytest

import helpers

STRATEGIES = pytest.mark.parametrize("strategy", ["vfork", "clone", "launcher", "fork", "helper"])


@STRATEGIES
@pytest.mark.parametrize("more", [{}, {"deadline": 30}], ids=["plain", "deadline"])
@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.long)])
def test_handler_that_raises_loses_nothing(strategy, more, count):
    """A timer's handler raises in the middle of hundreds of spawns: nothing is left over afterwards.

    The timer is set so that many of them hit the instant at which the native call returns; with
    no care there, one in three of these spawns left a running child that nobody knew of.
    """
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
safespawn.run(["/bin/true"], strategy=strategy, **more)
before = sorted(os.listdir("/proc/self/fd"))
rung = 0
for i in range(count):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.00002 + i % 97 * 0.00001)
            process = safespawn.spawn(["/bin/true"], strategy=strategy, **more)
            process.wait()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        rung += 1
    process = None
gc.collect()
for child in list(_child._abandoned):
    child.wait(30)
safespawn.run(["/bin/true"], strategy=strategy)
out["rung"] = rung
out["left"] = len(_child._abandoned)
after = sorted(os.listdir("/proc/self/fd"))
out["new"] = [os.readlink(f"/proc/self/fd/{fd}") for fd in after if fd not in before and os.path.exists(f"/proc/self/fd/{fd}")]
if strategy == "helper":
    helping.close()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    out["children"] = 0
""",
        timeout=120,
        count=count,
        strategy=strategy,
        more=more,
    )
    assert out.pop("rung") > 50
    assert out == {"left": 0, "new": [], "children": 0}


#: Starts sixty programs that are killed at a stage, while somebody else takes what ends.
REAPED = """
import threading
hooks.in_launcher = 1
if how == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
else:
    from safespawn import guards
    from safespawn._spec import Verdict
    hooks.off |= lib.SS_OFF_ALONE_OR_APART
    guards._prove = lambda facts: ("single-threaded", Verdict("alone-or-apart", "allow", "pretended"))
    stop = threading.Event()
    def reap():
        while not stop.is_set():
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                os.sched_yield()
    threading.Thread(target=reap, daemon=True).start()
hooks.signal_stage, hooks.signal = stage(at), signal.SIGKILL
told = unconfirmed = 0
for i in range(20):
    try:
        report = safespawn.spawn(["/bin/true"], strategy=strategy).report
        unconfirmed += "outcome-told: nobody could confirm that the program was reached" in report.reasons
    except safespawn.KilledBeforeExec as problem:
        told += problem.stage == at
out.update(told=told, unconfirmed=unconfirmed)
if how == "reaper":
    stop.set()
"""


@pytest.mark.parametrize("how", ["ignored", "reaper"])
@pytest.mark.parametrize("strategy", ["vfork", "clone", "fork"])
@pytest.mark.threat("T-10")
def test_killed_before_exec_is_told_whoever_reaps(in_hooks, strategy, how):
    """SIGCHLD ignored, or a thread that waits for any child: nobody takes away what happened."""
    out = in_hooks(REAPED, strategy=strategy, how=how, at="exec")
    assert out == {"told": 20, "unconfirmed": 0}


@pytest.mark.parametrize("how", ["ignored", "reaper"])
@pytest.mark.parametrize("at", ["plan", "uid", "seccomp", "exec"])
@pytest.mark.threat("T-10")
def test_launcher_that_others_reap_is_not_said_to_have_run(in_hooks, how, at):
    """A launcher is an ordinary child: others can reap it. Where it got to is told all the same.

    Only at the very last step nobody can tell any more, and then the report says so.
    """
    out = in_hooks(REAPED, strategy="launcher", how=how, at=at)
    assert out["told"] + out["unconfirmed"] == 20
    assert out["unconfirmed"] == 0 or at == "exec"


@pytest.mark.parametrize("strategy", ["vfork", "clone", "fork"])
@pytest.mark.threat("T-10")
def test_killed_where_the_kernel_is_not_asked_is_unconfirmed(in_hooks, strategy):
    """A sandbox refuses waitid(2): that says nothing, so a child that was killed at its exec is not told as one that ran."""
    out = in_hooks(
        """
import errno, sandbox
hooks.signal_stage, hooks.signal = stage("exec"), signal.SIGKILL
sandbox.answer({"waitid": errno.EPERM})
out["reasons"] = safespawn.spawn(["/bin/true"], strategy=strategy).report.reasons
""",
        strategy=strategy,
    )
    assert out["reasons"][-1] == "outcome-told: nobody could confirm that the program was reached"


def test_no_sigchld_for_a_spawn_that_failed():
    """A child that ran no program is nobody's business: no SIGCHLD comes of it; of a program, one does."""
    out = helpers.run_snippet(
        """
seen = []
signal.signal(signal.SIGCHLD, lambda *a: seen.append(1))
for i in range(20):
    try:
        safespawn.run(["/bin/true"], process_group=1)
    except PermissionError:
        pass
out["failed"] = len(seen)
safespawn.run(["/bin/true"])
out["ran"] = len(seen)
"""
    )
    assert out == {"failed": 0, "ran": 1}


def test_any_child_can_be_waited_for_once_it_runs():
    """A program that runs is an ordinary child: waitpid(-1) finds it."""
    out = helpers.run_snippet(
        """
process = safespawn.spawn(["/bin/sh", "-c", "exit 7"])
pid, status = os.waitpid(-1, 0)
out["found"] = pid == process.pid
out["code"] = os.waitstatus_to_exitcode(status)
out["wait"] = process.wait()
"""
    )
    assert out == {"found": True, "code": 7, "wait": 7}


def test_methods_in_a_handler_never_block():
    """poll, wait and send_signal in a handler that interrupts the same methods: no deadlock, no loss."""
    out = helpers.run_snippet(
        """
calls = 0
current = None
def handler(number, frame):
    global calls
    calls += 1
    if current is not None:
        current.poll()
        current.send_signal(0)
        if current.poll() is not None:
            current.wait()
    signal.setitimer(signal.ITIMER_REAL, 0.00007)  # no period: a handler that takes longer would never come to its end
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0001)
codes = set()
for i in range(500):
    current = safespawn.spawn(["/bin/true"], strategy="vfork")
    while current.poll() is None:
        current.send_signal(0)
    codes.add(current.wait())
    current = None
signal.signal(signal.SIGALRM, signal.SIG_IGN)
out["codes"] = list(codes)
out["called"] = calls > 100
""",
        timeout=120,
    )
    assert out == {"codes": [0], "called": True}
