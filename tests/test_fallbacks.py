"""Kernels and sandboxes that lack or refuse a call: slower perhaps, never less safe."""

from __future__ import annotations

import errno
import os

import pytest

import helpers

BEHAVIOUR = """
import errno, sandbox
sandbox.answer(answers)
secret = os.open("/etc/hostname", os.O_RDONLY)
os.set_inheritable(secret, True)
signal.signal(signal.SIGUSR1, lambda *a: None)
done = safespawn.run(["/bin/cat", "/proc/self/status"], capture_output=True, text=True, strategy=strategy, **more)
status = dict(line.split(":\\t", 1) for line in done.stdout.splitlines())
listed = safespawn.run(["/bin/ls", "/proc/self/fd"], capture_output=True, text=True, strategy=strategy, **more)
out["caught"] = int(status["SigCgt"], 16)
out["fds"] = listed.stdout.split()
out["strategy"] = done.report.strategy
try:
    safespawn.run(["/bin/sh", "-c", ":"], executable=__file__ if False else "/etc/passwd", strategy=strategy, **more)
except PermissionError:
    out["refused"] = True
out["code"] = safespawn.run(["/bin/sh", "-c", "kill -9 $$"], strategy=strategy, **more).returncode
"""


@pytest.mark.parametrize("more", [{}, {"deadline": 20}], ids=["no deadline", "deadline"])
@pytest.mark.parametrize("strategy", ["vfork", "clone", "launcher", "fork"])
@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"clone3": errno.ENOSYS},
        {"clone3": errno.EPERM},
        {"clone3": errno.EINVAL},
        {"clone3": errno.E2BIG},
        {"close_range": errno.ENOSYS},
        {"close_range": errno.EINVAL},
        {"close_range": errno.EPERM},
        {"move_pages": errno.EPERM},
        {"faccessat2": errno.ENOSYS},
        {"faccessat2": errno.EPERM},
        {"unshare": errno.EPERM},
        {"clone3": errno.ENOSYS, "close_range": errno.ENOSYS, "move_pages": errno.ENOSYS,
         "faccessat2": errno.ENOSYS, "unshare": errno.ENOSYS},
    ],
    ids=lambda answers: " ".join(f"{k}={errno.errorcode[v]}" for k, v in answers.items()) or "nothing",
)  # fmt: skip
def test_same_behaviour_without(answers, strategy, more):
    """Whatever is refused, the child has no handler, no foreign descriptor, and its own exit."""
    out = helpers.run_snippet(BEHAVIOUR, answers=answers, strategy=strategy, more=more)
    assert out == {
        "caught": 0,
        "fds": ["0", "1", "2", "3"],  # 3 is the directory that ls reads
        "strategy": strategy,
        "refused": True,
        "code": -9,
    }


@pytest.mark.threat("T-08")
@pytest.mark.parametrize("strategy", ["vfork", "clone", "launcher", "fork"])
def test_descriptors_that_cannot_be_listed(strategy):
    """Where close_range is refused and the listing fails, nothing says that all are closed: nothing runs."""
    out = helpers.run_snippet(
        """
import sandbox
safespawn.run(["/bin/true"], strategy=strategy)
sandbox.answer(answers)
try:
    out["ran"] = safespawn.run(["/bin/true"], strategy=strategy).returncode
except OSError as problem:
    out["refused"] = [problem.stage, problem.errno]
""",
        answers={"close_range": errno.ENOSYS, "getdents64": errno.EIO},
        strategy=strategy,
    )
    assert out == {"refused": ["close", errno.EIO]}


@pytest.mark.threat("T-08")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")
def test_descriptors_without_proc():
    """Where close_range is refused and there is no /proc to list them, nothing runs either."""
    out = helpers.run_snippet(
        """
import ctypes, sandbox
libc = ctypes.CDLL(None, use_errno=True)
MS_REC, MS_PRIVATE, CLONE_NEWNS = 1 << 14, 1 << 18, 0x20000
assert libc.unshare(CLONE_NEWNS) == 0
assert libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
sandbox.answer({"close_range": answer})
try:
    out["ran"] = safespawn.run(["/bin/true"]).returncode
except OSError as problem:
    out["refused"] = [problem.stage, problem.errno, problem.report.strategy]
""",
        answer=errno.ENOSYS,
    )
    assert out == {"refused": ["close", errno.ENOENT, "fork"]}


@pytest.mark.threat("T-01")
@pytest.mark.parametrize("strategy", ["vfork", "clone"])
def test_handlers_are_gone_without_clone3(in_hooks, strategy):
    """Where the kernel cannot take handlers away at the clone, the child does: a signal takes its default action in it."""
    out = in_hooks(
        """
import sandbox
seen = []
signal.signal(signal.SIGUSR1, lambda *a: seen.append("handler"))
hooks.signal_stage, hooks.signal = stage("session"), signal.SIGUSR1
sandbox.answer({"clone3": answer})
try:
    out["code"] = safespawn.run(["/bin/true"], strategy=strategy).returncode
except safespawn.KilledBeforeExec as problem:
    out["killed"] = problem.stage
out["seen"] = seen
""",
        answer=errno.ENOSYS,
        strategy=strategy,
    )
    assert out == {"killed": "mask", "seen": []}


def test_clone3_is_what_is_normally_used():
    """The record says that clone3 made the child, and that clone did where it is refused."""
    out = helpers.run_snippet(
        """
import errno, sandbox
used = []
spawn = _binding.spawn
def noting(*given):
    outcome = spawn(*given)
    used.append(outcome.clone3)
    return outcome
_binding.spawn = noting
safespawn.run(["/bin/true"])
sandbox.answer({"clone3": errno.ENOSYS})
safespawn.run(["/bin/true"])
out["used"] = used
"""
    )
    assert out["used"] == [True, False]


def test_a_faked_unshare_does_not_prove_that_we_are_alone():
    """A sandbox that answers unshare with success cannot make a threaded process share memory."""
    out = helpers.run_snippet(
        """
import sandbox, threading
sandbox.answer({"unshare": 0})
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
out["auto"] = safespawn.run(["/bin/true"]).report.strategy
try:
    safespawn.run(["/bin/true"], strategy="vfork")
except safespawn.UnsafeSpawn as problem:
    out["guard"] = problem.guard
stop.set()
thread.join()
"""
    )
    assert out == {"auto": "fork", "guard": "alone-or-apart"}


def test_foreign_process_on_our_memory_means_fork():
    """A process that shares our memory without being a thread is seen, and rules out the fast path."""
    out = helpers.run_snippet(
        """
import ctypes
# clone(CLONE_VM | SIGCHLD) into pause(), on a stack of its own.
libc = ctypes.CDLL(None)
stack = ctypes.create_string_buffer(65536)
pause = ctypes.cast(libc.pause, ctypes.c_void_p)
top = (ctypes.addressof(stack) + 65536) & ~15
pid = libc.clone(pause, ctypes.c_void_p(top), 0x100 | signal.SIGCHLD, None)
assert pid > 0
report = safespawn.run(["/bin/true"]).report
out["strategy"], out["reasons"] = report.strategy, report.reasons
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
out["after"] = safespawn.run(["/bin/true"]).report.strategy
"""
    )
    assert out["strategy"] == "fork"
    assert "another process on our memory" in out["reasons"][0]
    assert out["after"] == "vfork"


@pytest.mark.threat("T-01")
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EPERM])
@pytest.mark.parametrize("way", ["auto", "fork", "many", "lookup"])
def test_signals_that_cannot_be_blocked(way, number):
    """Nothing is started, and it is tried once or twice: EBUSY is no proof that was lost where none was asked for."""
    out = helpers.run_snippet(
        """
import sandbox
sandbox.answer({"rt_sigprocmask": number})
descriptors = os.listdir("/proc/self/fd")
try:
    if way == "many":
        safespawn.spawn_many([["/bin/true"]] * 3)
    elif way == "lookup":
        safespawn.run(["true"], deadline=20)
    else:
        safespawn.run(["/bin/true"], strategy=way)
except safespawn.SpawnManyError as problem:
    out["came"] = [[one.errno, one.report.stage] for one in problem.results]
except OSError as problem:
    out["came"] = [[problem.errno, problem.report.stage]]
out["kept"] = len(os.listdir("/proc/self/fd")) - len(descriptors)
""",
        way=way,
        number=number,
    )
    assert out == {"came": [[number, "clone"]] * (3 if way == "many" else 1), "kept": 0}


@pytest.mark.threat("T-01")
@pytest.mark.parametrize("pool", [0, 1])
def test_signals_that_cannot_be_blocked_and_a_helper_that_is_there(pool):
    """One that is kept whatever we become is not asked either: a handler would come in while we hold its lock."""
    out = helpers.run_snippet(
        """
import sandbox
allow = {"programs": ["/bin/true"], "users": [os.getuid()]}
helper = safespawn.Helper(pool=pool, allow=allow, keep_after_drop=True).start()
def came():
    try:
        return safespawn.run(["/bin/true"], strategy=strategy, env={}, sigmask=[]).returncode
    except safespawn.UnsafeSpawn as problem:
        return problem.guard
strategy = "pool" if pool else "helper"
out["before"] = came()
sandbox.answer({"rt_sigprocmask": 1})
out["after"] = came()
out["asked"] = helper.status()["asked"]
""",
        pool=pool,
    )
    assert out == {"before": 0, "after": "helper-obeys", "asked": 1}
