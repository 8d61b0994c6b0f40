"""``safespawn.subprocess``: what it has beyond the standard module. What is the same: test_subprocess_same.py."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import select
import signal
import subprocess as standard
import warnings
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import UnsafeSpawnWarning, _binding, _child, audit, subprocess

FUNCTIONS = ("run", "call", "check_call", "check_output", "getoutput", "getstatusoutput")


# -------------------------------------------------------------------------------- names


def test_has_every_name_of_the_standard_module() -> None:
    """Whatever ``subprocess`` has can be had here, what is private in it too."""
    assert [name for name in dir(standard) if not hasattr(subprocess, name)] == []
    assert set(standard.__all__) == set(subprocess.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_takes_what_the_standard_one_takes(name: str) -> None:
    """Every parameter of the standard function is there, with its kind and default."""
    wanted = inspect.signature(getattr(standard, name)).parameters
    got = inspect.signature(getattr(subprocess, name)).parameters
    assert {key: (one.kind, one.default) for key, one in wanted.items()} == {
        key: (got[key].kind, got[key].default) for key in wanted
    }


def test_classes_and_constants_are_the_standard_ones() -> None:
    """Code that catches, compares or tests types needs no change."""
    assert issubclass(subprocess.Popen, standard.Popen)
    for name in ("PIPE", "STDOUT", "DEVNULL", "TimeoutExpired", "CalledProcessError", "CompletedProcess"):
        assert getattr(subprocess, name) is getattr(standard, name)


def test_unknown_argument_is_refused_as_by_the_standard_class() -> None:
    """A misspelt option is TypeError, and nothing is started."""
    with pytest.raises(TypeError, match="no_such_option"):
        subprocess.Popen(["true"], no_such_option=1)


# ------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"nice": 5}, "nice"),
        ({"rlimits": {7: 64}}, "limits"),
        ({"no_new_privs": True}, "status"),
        ({"caps": ["kill"]}, "status"),
        ({"fds": {17: 1}}, "fds"),
    ],
    ids=str,
)
def test_option_of_ours_reaches_the_child(options: dict[str, Any], seen: str) -> None:
    """Popen takes what spawn takes, beside its own."""
    argv = helpers.probe_argv("state")
    plain = json.loads(subprocess.check_output(argv))
    made = json.loads(subprocess.check_output(argv, **options))
    assert made[seen] != plain[seen]


def test_bad_option_is_refused_before_anything_is_open() -> None:
    """The value that is wrong is named, and no pipe is left."""
    with pytest.raises(ValueError, match="nice.*77"):
        subprocess.Popen(["true"], stdin=subprocess.PIPE, nice=77)


def test_secret_goes_to_the_program_only() -> None:
    """A Secret among the arguments is none of what is shown."""
    done = subprocess.run(["echo", safespawn.Secret("hunter2")], capture_output=True)
    assert done.stdout == b"hunter2\n"
    assert "hunter2" not in repr(done.args)


# ------------------------------------------------------------------------------- report


def test_results_carry_the_report() -> None:
    """Popen, the result of run() and the exception of a failed start say what was decided."""
    with subprocess.Popen(["true"]) as process:
        assert process.report.outcome == "exec"
    done = subprocess.run(["true"])
    assert done.report.executable.path.endswith("/true")
    with pytest.raises(FileNotFoundError) as raised:
        subprocess.run(["nowhere-at-all"])
    assert raised.value.report.outcome == "failed"


def test_result_goes_to_another_process_with_its_report() -> None:
    """What run() returns can be pickled, as the standard one can."""
    done = subprocess.run(["echo", "x"], capture_output=True)
    copy = pickle.loads(pickle.dumps(done))
    assert (copy.args, copy.returncode, copy.stdout, copy.report) == (done.args, 0, b"x\n", done.report)


# ------------------------------------------------------------------- warnings and records


def test_user_alone_warns_and_is_recorded(tmp_path: Path) -> None:
    """``user`` means what it means in the standard module; the warning and the record say what that leaves."""
    with audit.open(tmp_path / "ledger"), pytest.warns(UnsafeSpawnWarning, match="extra_groups") as caught:
        done = subprocess.run(["id", "-G"], user=65534, capture_output=True, text=True)
    assert done.stdout.split() == sorted({str(gid) for gid in (os.getgid(), *os.getgroups())}, key=int)
    assert caught[0].filename == __file__
    (how,) = [one["how"]["why"] for one in helpers.records(tmp_path / "ledger") if one["ev"] == "spawn.intent"]
    assert any("groups of ours that are not named stay" in why for why in how)


def test_whole_identity_does_not_warn() -> None:
    """Who names group and groups too is told nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subprocess.run(["true"], user=65534, group=65534, extra_groups=[])
        subprocess.run(["true"], user=os.getuid())


def test_preexec_fn_warns_where_it_was_asked_for_and_is_recorded(tmp_path: Path) -> None:
    """It works, by fork; the warning names the options to use, and the record says that nothing guarded it."""
    with audit.open(tmp_path / "ledger"), pytest.warns(UnsafeSpawnWarning, match="start_new_session") as caught:
        done = subprocess.run(["sh", "-c", "umask"], preexec_fn=lambda: os.umask(0o11), capture_output=True)
    assert done.stdout == b"0011\n"
    assert caught[0].filename == __file__
    (how,) = [one["how"] for one in helpers.records(tmp_path / "ledger") if one["ev"] == "spawn.intent"]
    assert (how["strategy"], how["proof"]) == ("fork", None)
    assert how["why"][-1].startswith("child-raw-only: preexec_fn")
    events = [one["ev"] for one in helpers.records(tmp_path / "ledger") if one["ev"].startswith("spawn.")]
    assert events == ["spawn.intent", "spawn.started", "spawn.exit"]


@pytest.mark.parametrize(
    ("options", "problem", "stage"),
    [
        ({"args": ["/nowhere/at/all"], "preexec_fn": os.getpid}, FileNotFoundError, "exec"),
        ({"args": ["true"], "preexec_fn": lambda: 1 / 0}, standard.SubprocessError, "preexec_fn"),
    ],
    ids=["not-there", "raises"],
)
@pytest.mark.filterwarnings("ignore::safespawn.UnsafeSpawnWarning")
def test_preexec_fn_that_comes_to_nothing_is_recorded(
    tmp_path: Path, options: dict[str, Any], problem: type[BaseException], stage: str
) -> None:
    """A start that fails behind the fork is no start."""
    with audit.open(tmp_path / "ledger"), pytest.raises(problem):
        subprocess.run(**options)
    (failed,) = [one for one in helpers.records(tmp_path / "ledger") if one["ev"] == "spawn.failed"]
    assert (failed["outcome"]["outcome"], failed["outcome"]["step"]) == ("failed", stage)


@pytest.mark.filterwarnings("ignore::safespawn.UnsafeSpawnWarning")
def test_preexec_fn_goes_with_no_option_of_ours() -> None:
    """What CPython's own fork cannot do is not left out silently."""
    with pytest.raises(ValueError, match="preexec_fn.*landlock"):
        subprocess.run(["true"], preexec_fn=os.getpid, landlock={"read": ["/"]}, nice=None)


# --------------------------------------------------------------------- waits and signals


def test_signal_goes_by_pidfd_never_to_another_process() -> None:
    """Once the child was reaped, by whomever, a signal reaches nobody who has its number."""
    process = subprocess.Popen(["sleep", "100"])
    process.kill()
    os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
    process.pid = os.getpid()  # as if its number were ours now
    process.terminate()
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)
    assert process.pidfd == -1


def test_code_of_a_child_that_others_reaped_is_known() -> None:
    """Where the kernel can tell it (Linux 6.15) the code is right; else it is 0, as in the standard module."""
    process = subprocess.Popen(["sh", "-c", "exit 7"])
    os.waitpid(process.pid, 0)
    from safespawn import _probe

    assert process.wait() == (7 if _probe.kernel_version() >= (6, 15) else 0)


def test_ignored_children_are_no_error() -> None:
    """With SIGCHLD ignored the kernel reaps: wait() and poll() answer, as in the standard module."""
    out = helpers.run_snippet(
        """
        from safespawn import subprocess
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        out["codes"] = [subprocess.run(["true"]).returncode, subprocess.Popen(["true"]).wait(timeout=20)]
        """
    )
    assert out["codes"] == [0, 0]


def test_wait_with_a_time_out_sleeps_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither polls nor overstays: it looks when it begins, and when the time is over."""
    looks, await_end = [], _binding.await_end
    monkeypatch.setattr(_binding, "await_end", lambda *given: looks.append(given) or await_end(*given))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        with pytest.raises(standard.TimeoutExpired):
            process.wait(timeout=0.2)
        assert 1 <= len(looks) <= 2
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def test_many_threads_wait_for_one_child() -> None:
    """Each of them gets the code."""
    from concurrent.futures import ThreadPoolExecutor

    with subprocess.Popen(["sh", "-c", "read line; exit 9"], stdin=subprocess.PIPE) as process, ThreadPoolExecutor(
        8
    ) as pool:
        answers = [pool.submit(process.wait, 30) for _ in range(4)] + [pool.submit(process.wait) for _ in range(4)]
        process.stdin.close()
        assert [answer.result() for answer in answers] == [9] * 8


def test_kill_during_communicate() -> None:
    """communicate() in one thread ends when another kills."""
    from concurrent.futures import ThreadPoolExecutor

    with subprocess.Popen(["sh", "-c", "echo x; exec sleep 100"], stdout=subprocess.PIPE) as process:
        select.select([process.stdout], [], [])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(process.communicate, None, 60)
            process.kill()
            assert answer.result() == (b"x\n", None)
        assert process.returncode == -signal.SIGKILL


def test_megabytes_both_ways_for_200_at_once() -> None:
    """1 MiB goes in and comes out of each of 200 programs that run side by side."""
    data = os.urandom(1 << 20)
    argv = ["cat"]
    made = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(200)]
    assert len({process.pid for process in made}) == 200
    for process in made:
        out, _ = process.communicate(data)
        assert (out == data, process.returncode) == (True, 0)


# ------------------------------------------------------------------------------ time-outs

#: Leaves a grandchild that holds the pipes, tells its pid, and waits.
FAMILY = "sleep 100 & echo $!; wait"


@pytest.mark.parametrize("name", ["run", "call", "check_output"])
def test_time_out_takes_the_whole_tree(name: str, tmp_path: Path) -> None:
    """The grandchild is gone when TimeoutExpired arrives."""
    told = tmp_path / "pid"
    options: dict[str, Any] = {} if name == "check_output" else {"stdout": subprocess.PIPE}
    if name == "call":
        options = {}
    for timeout in (1, 5, 25):  # until the program has come so far
        with pytest.raises(standard.TimeoutExpired):
            command = f"exec 3>{told}; sleep 100 & echo $! >&3; exec 3>&-; wait"
            getattr(subprocess, name)(command, shell=True, timeout=timeout, **options)
        if told.exists() and told.read_text():
            break
    assert is_gone(int(told.read_text()))


def is_gone(pid: int) -> bool:
    """Whether the process ends, if it has not: a signal takes its time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 30)[0])
    finally:
        os.close(pidfd)


def test_time_out_is_that_of_the_standard_module() -> None:
    """Command, seconds and what was read so far are on the exception."""
    for timeout in (1, 5, 25):  # until the program has come so far
        with pytest.raises(standard.TimeoutExpired) as raised:
            subprocess.run(["sh", "-c", "echo x; exec sleep 100"], stdout=subprocess.PIPE, timeout=timeout)
        if (problem := raised.value).output:
            break
    assert (problem.cmd[0], problem.timeout, problem.output) == ("sh", timeout, b"x\n")


def test_kill_tree_ends_what_kill_leaves() -> None:
    """kill() ends the program, kill_tree() its descendants too."""
    with subprocess.Popen(FAMILY, shell=True, stdout=subprocess.PIPE) as process:
        pid = int(process.stdout.readline())
        process.kill_tree()
        assert process.wait() == -signal.SIGKILL
        assert is_gone(pid)
        process.kill_tree()  # of nothing


def test_wait_after_a_kill_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that no signal ends does not hold the caller for ever: it is left to be reaped later."""
    monkeypatch.setattr(subprocess, "GRACE", 0.1)
    # As one that sleeps in the kernel: the signals do not reach it.
    monkeypatch.setattr(_child.Child, "kill_tree", lambda child: None)
    with subprocess.Popen(["sleep", "100"]) as process:
        process._give_up()
    assert process.returncode is None
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
    subprocess.run(["true"])  # which reaps what was left
    assert process.pidfd == -1
