"""Kernels and sandboxes that lack or refuse a call: slower perhaps, never less safe."""

from __future__ import annotations

import errno

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
@pytest.mark.parametrize("strategy", ["vfork", "launcher", "fork"])
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
