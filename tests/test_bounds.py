"""What hangs is bounded by the deadline, reported as what it was, and leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import helpers

STRATEGIES = pytest.mark.parametrize("strategy", ["vfork", "clone", "launcher", "fork"])

#: Fills `out` with what became of one bounded spawn of `target`, and what it left. What hangs would hang for long.
BOUNDED = """
from safespawn import _child, _launcher
_launcher.hold()  # one descriptor, for as long as the process lives

def bounded(target, stage, is_stuck=False, **more):
    # Until a deadline is not over before the child comes to what hangs, on a slow machine.
    deadline = 0.3
    once(target, deadline, **more)
    while deadline < 10 and (out.get("stage") != stage or is_stuck and not _child._abandoned):
        deadline *= 2
        once(target, deadline, **more)

def once(target, deadline, **more):
    before = sorted(os.listdir("/proc/self/fd"))
    start = time.monotonic()
    try:
        out["code"] = safespawn.run([target], strategy=strategy, deadline=deadline, **more).returncode
    except OSError as problem:
        out["raised"] = type(problem).__name__
        out["stage"] = problem.stage
        out["outcome"] = problem.report.outcome
    out["in time"] = time.monotonic() - start < 30
    out["no fd left"] = sorted(os.listdir("/proc/self/fd")) == before
"""

LEASED = (
    """
import fcntl
answer, answer_write = os.pipe()
stop, stop_write = os.pipe()
holder = os.fork()
if holder == 0:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(target, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    os.write(answer_write, b".")
    os.close(stop_write)
    os.read(stop, 1)  # never gives the lease up by itself
    os._exit(0)
os.read(answer, 1)
"""
    + BOUNDED
)


@STRATEGIES
def test_leased_program(tmp_path, strategy):
    """A program under a write lease that is not given up: the lookup is killed at the deadline."""
    target = tmp_path / "program"
    target.write_bytes(Path("/bin/true").read_bytes())
    target.chmod(0o755)
    out = helpers.run_snippet(
        LEASED
        + """
bounded(target, "lookup")
os.close(stop_write)
os.waitpid(holder, 0)
out["afterwards"] = safespawn.run([target], strategy=strategy, deadline=60).returncode
""",
        target=str(target),
        strategy=strategy,
    )
    assert out == {
        "raised": "SpawnTimeout",
        "stage": "lookup",
        "outcome": "timed-out",
        "in time": True,
        "no fd left": True,
        "afterwards": 0,
    }


@STRATEGIES
def test_leased_interpreter_is_bounded_in_execve(tmp_path, strategy):
    """A lease on the interpreter of a script hangs execve itself, and is bounded there."""
    target = tmp_path / "interpreter"
    target.write_bytes(Path("/bin/true").read_bytes())
    target.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(f"#!{target}\n")
    script.chmod(0o755)
    out = helpers.run_snippet(
        LEASED + "bounded(script, 'exec')\nos.close(stop_write)\nos.waitpid(holder, 0)\n",
        target=str(target),
        script=str(script),
        strategy=strategy,
    )
    assert out == {
        "raised": "SpawnTimeout",
        "stage": "exec",
        "outcome": "timed-out",
        "in time": True,
        "no fd left": True,
    }


@STRATEGIES
@pytest.mark.parametrize("deadline", [None, 60])
def test_fifo_as_program(tmp_path, strategy, deadline):
    """A FIFO is refused at once, as execve refuses it, and its writers never see a reader."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o755)
    out = helpers.run_snippet(
        """
try:
    safespawn.run([fifo], strategy=strategy, deadline=deadline)
except PermissionError as problem:
    out["stage"] = problem.stage
try:
    os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
except OSError as problem:
    out["no reader"] = True
""",
        fifo=str(fifo),
        strategy=strategy,
        deadline=deadline,
    )
    assert out == {"stage": "lookup", "no reader": True}


FUSE = (
    """
import ctypes, subprocess
libc = ctypes.CDLL(None, use_errno=True)
os.unshare = getattr(os, "unshare", lambda flags: libc.unshare(flags))
assert libc.unshare(0x00020000) == 0  # CLONE_NEWNS: the mount is ours alone
assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
ready, ready_write = os.pipe()
daemon = subprocess.Popen([sys.executable, probe, where, "/bin/true", hang, str(ready_write)], pass_fds=[ready_write])
os.read(ready, 1)
"""
    + BOUNDED
)


@STRATEGIES
@pytest.mark.parametrize("hang", ["silent", "lookup", "open", "read"])
def test_program_on_a_hung_fuse_mount(tmp_path, strategy, hang):
    """A file system that stops answering holds nobody past the deadline, even one that cannot be killed.

    A process that waits for an answer to a request that was taken sleeps through SIGKILL. It is
    left to the kernel, and reaped when the file system goes away.
    """
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    where = tmp_path / "mount"
    where.mkdir()
    stage = "exec" if hang in ("open", "read") else "lookup"
    is_stuck = hang != "silent"
    out = helpers.run_snippet(
        FUSE
        + """
bounded(where + "/program", stage, is_stuck)
out["left"] = len(_child._abandoned)
daemon.kill()
daemon.wait()
for child in list(_child._abandoned):
    child.wait(60)
safespawn.run(["/bin/true"])
out["still left"] = len(_child._abandoned)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    out["children"] = 0
""",
        where=str(where),
        probe=str(helpers.PROBES / "hung_fuse.py"),
        hang=hang,
        strategy=strategy,
        stage=stage,
        is_stuck=is_stuck,
    )
    assert out.pop("no fd left") is not is_stuck, "the pidfd of a child that is left stays open, no other"
    assert out == {
        "raised": "SpawnTimeout",
        "stage": stage,
        "outcome": "timed-out",
        "in time": True,
        "left": int(is_stuck),
        "still left": 0,
        "children": 0,
    }


@STRATEGIES
def test_cwd_on_a_hung_fuse_mount(tmp_path, strategy):
    """The working directory is looked up under the deadline too."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    where = tmp_path / "mount"
    where.mkdir()
    out = helpers.run_snippet(
        FUSE
        + """
bounded("/bin/true", "lookup", cwd=where + "/directory")
daemon.kill()
daemon.wait()
""",
        where=str(where),
        probe=str(helpers.PROBES / "hung_fuse.py"),
        hang="silent",
        strategy=strategy,
    )
    assert (out["raised"], out["in time"]) == ("SpawnTimeout", True)


@STRATEGIES
@pytest.mark.parametrize("pin", [False, True])
def test_deadline_that_is_kept(strategy, pin):
    """A deadline that is met changes nothing: the program runs, is hashed, gives its output."""
    out = helpers.run_snippet(
        """
done = safespawn.run(["/bin/echo", "here"], capture_output=True, deadline=60, pin=pin, cwd="/usr", strategy=strategy)
out["output"], out["strategy"] = done.stdout.decode(), done.report.strategy
import hashlib
expected = hashlib.sha256(open("/bin/echo", "rb").read()).hexdigest() if pin else None
out["hashed"] = done.report.executable.sha256 == expected
""",
        strategy=strategy,
        pin=pin,
    )
    assert out == {"output": "here\n", "strategy": strategy, "hashed": True}


def test_stop_by_the_target_user_is_bounded(in_hooks):
    """A child that has become another user can be stopped by that user: bounded without any deadline."""
    out = in_hooks(
        """
from safespawn import _spawn
hooks.signal_stage, hooks.signal = stage("verify-drop"), signal.SIGSTOP

def stopped(window):
    _spawn.DROP_WINDOW = window
    try:
        safespawn.run(["/bin/true"], user=65534, group=65534)
    except safespawn.SpawnTimeout as problem:
        return problem.stage

start, window = time.monotonic(), 0.3
while (came := stopped(window)) != "verify-drop" and window < 10:  # over before the child came there
    window *= 2
out["stage"], out["in time"] = came, time.monotonic() - start < 30
"""
    )
    assert out == {"stage": "verify-drop", "in time": True}


@STRATEGIES
@pytest.mark.parametrize("name", ["SIGTSTP", "SIGTTIN", "SIGTTOU"])
def test_stop_from_the_terminal_does_not_stop_the_window(in_hooks, strategy, name):
    """A Ctrl-Z that reaches the child while signals are held is thrown away; its handling stays default."""
    out = in_hooks(
        """
hooks.signal_stage, hooks.signal = stage("session"), getattr(signal, name)
done = safespawn.run(["/bin/cat", "/proc/self/status"], capture_output=True, text=True, strategy=strategy)
out["code"] = done.returncode
out["ignored"] = int(next(l for l in done.stdout.splitlines() if l.startswith("SigIgn")).split()[1], 16)
""",
        strategy=strategy,
        name=name,
    )
    assert out == {"code": 0, "ignored": 0}
