"""Every stage can fail: right exception, right stage, right errno, nothing left behind."""

from __future__ import annotations

import errno

import pytest

from safespawn import _binding

#: The launcher's own, and it at the others: test_launch_stages.py. Those of the helper and of its policy.
OWN = ("launch", "plan", "level", "helper", "policy-option", "policy-user", "policy-variable", "policy-program")
CHILD_STAGES = [name for name in _binding.stages()[_binding.stages().index("birth") :] if name not in OWN]

FAIL = """
import errno as codes
from safespawn import audit
safespawn.run(["/bin/true"], strategy=strategy)  # shared memory is tried once, at the first spawn
ledger = audit.open(where)
before = sorted(os.listdir("/proc/self/fd"))
results = []
for name in names:
    for error in errors:
        hooks.fail_stage, hooks.fail_error = stage(name), error
        problem = None
        try:
            safespawn.run(["/bin/true"], strategy=strategy, cwd="/", capture_output=True, **more)
        except OSError as raised:
            problem = raised
        hooks.fail_stage = 0
        results.append([name, error, type(problem).__name__, problem.errno, problem.stage,
                        problem.report.outcome, problem.report.stage, problem.report.errno])
after = sorted(os.listdir("/proc/self/fd"))
try:
    os.waitpid(-1, os.WNOHANG)
    out["children"] = True
except ChildProcessError:
    out["children"] = False
out["fds"] = before == after
out["works again"] = safespawn.run(["/bin/true"], strategy=strategy).returncode
ledger.close()
out["failed records"] = sum('"ev":"spawn.failed"' in line for line in open(where))
out["results"] = results
"""


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("vfork", {}),
        ("vfork", {"deadline": 20}),
        ("clone", {}),
        ("clone", {"deadline": 20}),
        ("fork", {}),
        ("fork", {"deadline": 20}),
        ("fork", {"user": 65534, "group": 65534}),
    ],
    ids=["vfork", "vfork-deadline", "clone", "clone-deadline", "fork", "fork-deadline", "fork-user"],
)
def test_failure_at_every_stage_of_the_child(in_hooks, tmp_path, strategy, more):
    """An errno at any stage of the child arrives as the exception of that errno, with its stage."""
    errors = [errno.EPERM, errno.ENOMEM, errno.EINTR, errno.ENOENT]
    out = in_hooks(FAIL, names=CHILD_STAGES, errors=errors, strategy=strategy, more=more, where=str(tmp_path / "l"))
    expected = [
        [name, error, type(OSError(error, "")).__name__, error, name, "failed", name, error]
        for name in CHILD_STAGES
        for error in errors
    ]
    assert out["results"] == expected
    assert out["fds"] and not out["children"]
    assert out["works again"] == 0
    assert out["failed records"] == len(expected)


@pytest.mark.parametrize("more", [{}, {"deadline": 20}], ids=["plain", "deadline"])
@pytest.mark.parametrize("strategy", ["vfork", "clone", "fork"])
@pytest.mark.parametrize("name", ["prepare", "open-root", "open-cwd", "lookup", "clone"])
def test_failure_at_every_stage_of_the_parent(in_hooks, tmp_path, name, strategy, more):
    """An errno before the clone, in the lookup too, means that nothing was started."""
    out = in_hooks(FAIL, names=[name], errors=[errno.ENOMEM], strategy=strategy, more=more, where=str(tmp_path / "l"))
    assert out["results"] == [[name, errno.ENOMEM, "OSError", errno.ENOMEM, name, "failed", name, errno.ENOMEM]]
    assert out["fds"] and not out["children"]
    assert out["works again"] == 0


@pytest.mark.parametrize("name", ["prepare", "open-root", "open-cwd", "lookup", "clone", "posix-spawn"])
def test_failure_at_every_stage_of_posix_spawn(in_hooks, tmp_path, name):
    """What libc answers, and every step before it, is that errno, and leaves nothing behind."""
    errors = [errno.EPERM, errno.ENOMEM, errno.ENOENT]
    out = in_hooks(FAIL, names=[name], errors=errors, strategy="posix_spawn", more={}, where=str(tmp_path / "l"))
    assert out["results"] == [
        [name, error, type(OSError(error, "")).__name__, error, name, "failed", name, error] for error in errors
    ]
    assert out["fds"] and not out["children"]
    assert out["works again"] == 0
    assert out["failed records"] == len(errors)


@pytest.mark.parametrize("strategy", ["vfork", "clone", "fork"])
@pytest.mark.parametrize("name", ["birth", "credentials"])
def test_credentials_that_do_not_agree_are_a_race(in_hooks, tmp_path, name, strategy):
    """ESTALE where credentials are compared is race-detected, and runs nothing."""
    out = in_hooks(FAIL, names=[name], errors=[errno.ESTALE], strategy=strategy, more={}, where=str(tmp_path / "l"))
    assert out["results"] == [
        [name, errno.ESTALE, "RaceDetected", errno.ESTALE, name, "race-detected", name, errno.ESTALE]
    ]


@pytest.mark.parametrize("more", [{}, {"deadline": 20}], ids=["plain", "deadline"])
@pytest.mark.parametrize("strategy", ["vfork", "clone", "fork"])
def test_child_killed_at_every_stage(in_hooks, strategy, more):
    """SIGKILL at any stage is killed-before-exec with that stage, never a program that ran."""
    out = in_hooks(
        """
results = []
for name in names:
    hooks.signal_stage, hooks.signal = stage(name), signal.SIGKILL
    try:
        safespawn.run(["/bin/true"], strategy=strategy, **more)
        results.append([name, "ran"])
    except safespawn.KilledBeforeExec as problem:
        results.append([name, problem.stage])
out["results"] = results
""",
        names=CHILD_STAGES,
        strategy=strategy,
        more=more,
    )
    assert out["results"] == [[name, name] for name in CHILD_STAGES]


@pytest.mark.parametrize("strategy", ["vfork", "clone", "fork"])
def test_child_stopped_at_every_stage_is_bounded(in_hooks, strategy):
    """A child that stops at any stage is killed at the deadline and reported as timed-out.

    The deadline counts from before the child is born: one that it does not come to the stage in is too short, and
    another is given. A child that stops for good is ended with the snippet, as one that hangs.
    """
    out = in_hooks(
        """
def stopped(name, deadline):
    hooks.signal_stage, hooks.signal = stage(name), signal.SIGSTOP
    start = time.monotonic()
    try:
        safespawn.run(["/bin/true"], strategy=strategy, deadline=deadline)
    except safespawn.SpawnTimeout as problem:
        if STAGES.index(problem.stage) < stage(name) and deadline < 10:
            return stopped(name, 2 * deadline)
        return [name, problem.stage, problem.report.outcome, time.monotonic() - start >= deadline]
    return [name, "ran", "", True]

results = [stopped(name, 0.05) for name in names]
out["results"] = results
out["fds"] = len(os.listdir("/proc/self/fd"))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    out["children"] = 0
""",
        names=CHILD_STAGES,
        strategy=strategy,
    )
    assert out["results"] == [[name, name, "timed-out", True] for name in CHILD_STAGES]
    assert out["children"] == 0


def test_every_stage_is_reached(in_hooks):
    """A spawn that works has gone through every stage: none is skipped, none has no hook."""
    out = in_hooks(
        """
hooks.reached = 0
safespawn.run(["/bin/true"])
out["reached"] = [name for i, name in enumerate(STAGES) if hooks.reached >> i & 1]
"""
    )
    assert set(out["reached"]) == set(_binding.stages()) - {"none", "posix-spawn", *OWN}
