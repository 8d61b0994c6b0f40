"""PID namespaces and sandboxes that lie: what is reported stays true, or is said to be unknown."""

from __future__ import annotations

import subprocess
import sys

import pytest

import helpers

STRATEGIES = pytest.mark.parametrize("strategy", ["auto", "fork"])


def run_in(arguments: list[str], snippet: str, path: str | None = None) -> str:
    """Run Python text under unshare(1) and return what it prints."""
    insert = f"import sys; sys.path.insert(0, {path!r})\n" if path else ""
    done = subprocess.run(
        ["unshare", *arguments, sys.executable, "-c", insert + snippet],
        capture_output=True,
        text=True,
        check=False,
        cwd=helpers.ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@STRATEGIES
@pytest.mark.parametrize("more", [{}, {"deadline": 20}], ids=["plain", "deadline"])
def test_first_child_of_a_new_namespace(strategy, more):
    """After unshare(CLONE_NEWPID) the program is the namespace's first process, not a probe of ours."""
    out = helpers.run_snippet(
        """
import ctypes
assert ctypes.CDLL(None).unshare(0x20000000) == 0  # CLONE_NEWPID
done = safespawn.run(["/bin/sh", "-c", "echo $$"], capture_output=True, strategy=strategy, **more)
out["pid there"] = done.stdout.decode().strip()
""",
        strategy=strategy,
        more=more,
    )
    assert out == {"pid there": "1"}


@pytest.mark.threat("T-09")
def test_kill_tree_under_a_foreign_proc():
    """Where /proc is of another PID namespace its numbers are not ours: only the root is killed."""
    printed = run_in(
        ["--pid", "--fork"],
        """
import os, safespawn, signal
process = safespawn.spawn(["/bin/sleep", "60"])
process.kill_tree()
print(process.wait())
""",
    )
    assert printed == "-9\n"


@pytest.mark.threat("T-10")
def test_outcome_under_a_foreign_proc(hooks_path):
    """Where /proc cannot be asked, a program that seems to have started is marked as unconfirmed."""
    printed = run_in(
        ["--pid", "--fork"],
        """
import signal, safespawn
from safespawn import _binding
hooks = _binding.lib.ss_hooks
hooks.signal_stage, hooks.signal = _binding.stages().index("exec"), signal.SIGKILL
for strategy in ("fork",) * 10:
    try:
        process = safespawn.spawn(["/bin/true"], strategy=strategy)
        print("confirmed" if not any("confirm" in why for why in process.report.reasons) else "unconfirmed")
        process.wait()
    except safespawn.KilledBeforeExec:
        print("told")
""",
        str(hooks_path),
    )
    assert "confirmed" not in printed.split()


def test_execve_that_is_faked_is_no_success():
    """A sandbox that answers execve with success and does nothing leaves a failed spawn, EPROTO."""
    out = helpers.run_snippet(
        """
import sandbox
codes = []
sandbox.answer({"execve": 0})
for i in range(20):
    try:
        codes.append(safespawn.run(["/bin/true"]).returncode)
    except OSError as problem:
        codes.append([problem.errno, problem.stage])
import errno
out["all"] = all(code == [errno.EPROTO, "exec"] for code in codes)
"""
    )
    assert out == {"all": True}


def test_groups_in_a_user_namespace_with_swapped_ids():
    """Where the namespace's order of groups is not the kernel's, a drop is still recognised."""
    snippet = """
import os, subprocess, sys, safespawn
ready, ready_write = os.pipe()
mapped, mapped_write = os.pipe()
pid = os.fork()
if pid == 0:
    import ctypes
    assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER
    os.write(ready_write, b".")
    os.read(mapped, 1)
    os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)
    done = safespawn.run(["/usr/bin/id", "-G"], capture_output=True, group=0, extra_groups=[0, 5])
    print(sorted(map(int, done.stdout.split())), flush=True)
    os._exit(0)
os.read(ready, 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{pid}/{name}", "w") as file:
        file.write("0 1500000 1\\n1 100000 1000\\n")
os.write(mapped_write, b".")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, cwd=helpers.ROOT, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[0, 5]\n"), done.stderr
