"""The handle of a started program: waiting, signalling, talking to it, and losing it."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import helpers
import safespawn
from safespawn import PIPE, _probe, audit, spawn

MIB = 1 << 20
#: Only ends a test that has failed already.
PATIENCE = 60.0


def until(condition: Callable[[], object]) -> None:
    """Look until a fact holds of which the kernel sends no event."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        os.sched_yield()


@pytest.fixture(params=["vfork", "fork"])
def strategy(request: pytest.FixtureRequest) -> str:
    """Return each strategy in turn."""
    return str(request.param)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Return a FIFO: whoever opens one end waits for the other."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def sh(text: str, *arguments: object) -> list[str]:
    """Return the command that runs a shell text; ``arguments`` are $1 and so on."""
    return ["/bin/sh", "-c", text, "sh", *map(str, arguments)]


def is_gone(pipe: int) -> bool:
    """Wait for the end of a pipe: everybody who held the other end is dead then."""
    ready, _, _ = select.select([pipe], [], [], PATIENCE)
    return bool(ready) and os.read(pipe, 1) == b""


def is_zombie(pid: int) -> bool:
    """Return whether ``pid`` has ended and waits to be reaped; do not reap it."""
    options = os.WEXITED | os.WNOWAIT | os.WNOHANG
    return os.waitid(os.P_PID, pid, options) is not None


def kernel_tells_exit() -> bool:
    """Ask the kernel by PIDFD_GET_INFO (Linux 6.15) how a child ended that is reaped already."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
    pidfd = os.pidfd_open(pid)
    try:
        os.waitpid(pid, 0)
        info = bytearray(struct.pack("=Q56x", 1 << 3))
        fcntl.ioctl(pidfd, 0xC040FF0B, info)
        return bool(struct.unpack_from("=Q", info)[0] & 1 << 3)
    except OSError:
        return False
    finally:
        os.close(pidfd)


def in_pid_namespace(text: str) -> dict[str, object]:
    """Run Python text as the init of a pid namespace, where ``take_pid(n)`` steers numbers.

    The text fills the dict ``out``, which is returned.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs CAP_SYS_ADMIN and unshare(1)")
    if not os.path.exists("/proc/sys/kernel/ns_last_pid"):
        pytest.skip("needs CONFIG_CHECKPOINT_RESTORE (ns_last_pid)")
    start = """
        import json, os, select, signal, sys
        import safespawn
        from safespawn import PIPE, spawn
        out = {}

        def take_pid(number):
            '''Make the next process get this pid, a free one.'''
            with open("/proc/sys/kernel/ns_last_pid", "w") as file:
                file.write(str(number - 1))

        def stranger(pid):
            '''Return a child with that pid that is no business of safespawn.'''
            take_pid(pid)
            child = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
            assert child == pid, (child, pid)
            return child
        """
    whole = textwrap.dedent(start) + textwrap.dedent(text) + "\nprint(json.dumps(out))\n"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", whole],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


# ---------------------------------------------------------------- how it ended


@pytest.mark.parametrize("code", [0, 1, 3, 125, 127, 255])
def test_exit_code(strategy: str, code: int) -> None:
    """The exit code comes from wait, and returncode and poll say the same afterwards."""
    process = spawn(sh(f"exit {code}"), strategy=strategy)

    assert process.wait() == code
    assert (process.returncode, process.poll(), process.wait(0)) == (code, code, code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, 34, 64])
def test_signal_is_negative(strategy: str, number: int, tmp_path: Path) -> None:
    """A program killed by signal N has the code -N, real-time signals included."""
    process = spawn(sh(f"kill -{int(number)} $$"), strategy=strategy, cwd=tmp_path)

    assert process.wait() == -number
    assert process.returncode == -number


@pytest.mark.parametrize("limit", [0, resource.RLIM_INFINITY])
def test_core_flag(tmp_path: Path, limit: int) -> None:
    """The record of the end says whether a core was dumped, as wait status bit 7 does."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if limit and hard != resource.RLIM_INFINITY and os.geteuid() != 0:
        pytest.skip("needs CAP_SYS_RESOURCE to raise RLIMIT_CORE")
    limit_text = "unlimited" if limit else "0"
    oracle = os.posix_spawn(
        "/bin/sh", ["sh", "-c", f"cd {tmp_path}; ulimit -c {limit_text}; kill -ABRT $$"], {}
    )
    dumped = os.WCOREDUMP(os.waitpid(oracle, 0)[1])

    with audit.open(tmp_path / "ledger"):
        code = spawn(sh("kill -ABRT $$"), cwd=tmp_path, rlimits={resource.RLIMIT_CORE: limit}).wait()

    last = [r for r in helpers.records(tmp_path / "ledger") if r["ev"] == "spawn.exit"][-1]
    assert code == -signal.SIGABRT
    assert last["exit"]["signal"] == signal.SIGABRT
    assert last["exit"]["core"] is dumped


def test_returncode_waits_for_a_look() -> None:
    """Returncode stays None until somebody looks, though the program has ended."""
    process = spawn(["/bin/true"])
    select.select([process.pidfd], [], [])

    assert process.returncode is None
    assert process.poll() == 0
    assert process.returncode == 0


def test_poll_while_running() -> None:
    """Poll says None while the program runs and the code once it has ended."""
    process = spawn(["/bin/cat"], stdin=PIPE)
    assert process.stdin is not None

    assert process.poll() is None
    assert process.returncode is None
    process.stdin.close()
    select.select([process.pidfd], [], [])
    assert process.poll() == 0


def test_wait_timeout() -> None:
    """Wait with a timeout raises TimeoutExpired with it, and the program is left alone."""
    with spawn(["/bin/cat"], stdin=PIPE) as process:
        for timeout in (0.01, 0, -1):
            with pytest.raises(subprocess.TimeoutExpired) as caught:
                process.wait(timeout)
            assert caught.value.timeout == timeout
            assert list(caught.value.cmd) == [b"/bin/cat"]
        assert process.returncode is None
    assert process.returncode == 0


def test_handle_names_the_child() -> None:
    """Pid and pidfd are those of one child, and the pidfd is not inherited by programs."""
    with spawn(["/bin/cat"], stdin=PIPE) as process:
        fdinfo = Path(f"/proc/self/fdinfo/{process.pidfd}").read_text(encoding="ascii")
        lines = dict(line.split(":", 1) for line in fdinfo.splitlines())

        assert int(lines["Pid"]) == process.pid
        assert process.report.pid == process.pid
        assert not os.get_inheritable(process.pidfd)
        assert str(process.pid) in repr(process)
        assert "/bin/cat" in repr(process)


def test_report_is_made_once() -> None:
    """The report of a handle is one object, the same before and after the end."""
    process = spawn(["/bin/true"])
    before = process.report
    process.wait()

    assert process.report is before


@pytest.mark.threat("T-09")
def test_pidfd_is_closed_after_the_reap() -> None:
    """The pidfd is open while the child is ours to reap, then closed and told as -1."""
    process = spawn(["/bin/cat"], stdin=PIPE)
    assert process.stdin is not None
    pidfd = process.pidfd
    os.fstat(pidfd)
    process.stdin.close()
    process.wait()

    assert process.pidfd == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)


# ----------------------------------------------------------------- signalling


def test_send_signal_reaches_the_program() -> None:
    """A signal arrives at the program, whose own handler runs."""
    with spawn(sh("trap 'exit 42' USR1; echo ready; while :; do read x; done"), stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(PATIENCE) == 42


@pytest.mark.parametrize(("method", "number"), [("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)])
def test_terminate_and_kill(strategy: str, method: str, number: int) -> None:
    """Terminate sends SIGTERM and kill SIGKILL."""
    with spawn(["/bin/cat"], stdin=PIPE, strategy=strategy) as process:
        getattr(process, method)()
        assert process.wait(PATIENCE) == -number


def test_invalid_signal_is_told() -> None:
    """A number that is no signal raises EINVAL and leaves the program alone."""
    with spawn(["/bin/cat"], stdin=PIPE) as process:
        with pytest.raises(OSError, match="Invalid argument"):
            process.send_signal(4000)
        assert process.poll() is None


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.threat("T-09")
def test_signal_after_the_end(reaped: bool) -> None:
    """Signals to a program that has ended do nothing, be it reaped yet or not."""
    process = spawn(["/bin/true"])
    select.select([process.pidfd], [], [])
    if reaped:
        process.wait()

    process.send_signal(signal.SIGUSR1)
    process.terminate()
    process.kill()
    process.kill_tree()

    assert process.wait() == 0


@pytest.mark.threat("T-09")
def test_signal_never_reaches_the_next_owner_of_the_pid() -> None:
    """After somebody else reaped the child its number is another's, which no signal reaches."""
    out = in_pid_namespace(
        """
        p = spawn(["/bin/true"])
        os.waitpid(p.pid, 0)
        other = stranger(p.pid)
        p.send_signal(signal.SIGTERM)
        p.terminate()
        p.kill()
        out["alive"] = os.waitpid(other, os.WNOHANG) == (0, 0)
        try:
            p.wait(0)
        except ChildProcessError:
            pass
        out["alive after wait"] = os.waitpid(other, os.WNOHANG) == (0, 0)
        """
    )

    assert out == {"alive": True, "alive after wait": True}


# ---------------------------------------------------------------- many threads


@pytest.mark.threat("T-09")
def test_many_threads_wait_for_one_child() -> None:
    """Threads that wait and poll at once all get the code, and the pidfd is closed once."""
    process = spawn(sh("read x; exit 7"), stdin=PIPE)
    assert process.stdin is not None
    everybody = threading.Barrier(9)
    answers: list[int | None] = []

    def wait() -> None:
        everybody.wait()
        answers.append(process.wait())

    def wait_patiently() -> None:
        everybody.wait()
        answers.append(process.wait(PATIENCE))

    def poll() -> None:
        everybody.wait()
        while process.poll() is None:
            pass
        answers.append(process.returncode)

    threads = [threading.Thread(target=target) for target in [wait, wait_patiently, poll, wait] * 2]
    for thread in threads:
        thread.start()
    everybody.wait()
    process.stdin.close()
    for thread in threads:
        thread.join(PATIENCE)

    assert answers == [7] * 8
    assert process.pidfd == -1


@pytest.mark.threat("T-09")
def test_signals_while_another_thread_reaps() -> None:
    """Threads that signal a child while another reaps it get no error, whoever is first."""
    problems: list[BaseException] = []
    for _ in range(20):
        process = spawn(["/bin/cat"], stdin=PIPE)
        start = threading.Barrier(4)

        def storm(process: safespawn.Process = process, start: threading.Barrier = start) -> None:
            try:
                start.wait()
                for _ in range(50):
                    process.send_signal(signal.SIGKILL)
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=storm) for _ in range(3)]
        for thread in threads:
            thread.start()
        start.wait()
        assert process.wait() == -signal.SIGKILL
        for thread in threads:
            thread.join(PATIENCE)
        process.stdin.close()

    assert problems == []


# ---------------------------------------------------------------- communicate


def test_communicate_big_both_ways(strategy: str) -> None:
    """One MiB goes in and comes back on both outputs at once, without a deadlock."""
    data = os.urandom(MIB)
    process = spawn(
        ["/usr/bin/tee", "/dev/stderr"], stdin=PIPE, stdout=PIPE, stderr=PIPE, strategy=strategy
    )

    out, err = process.communicate(data, timeout=PATIENCE)

    assert out == data
    assert err == data
    assert process.returncode == 0


def test_communicate_output_before_input() -> None:
    """A program that writes much before it reads anything is drained meanwhile."""
    process = spawn(sh(f"head -c {MIB} /dev/zero; head -c {MIB} /dev/zero >&2; cat"), stdin=PIPE, stdout=PIPE, stderr=PIPE)
    data = b"x" * MIB

    out, err = process.communicate(data, timeout=PATIENCE)

    assert out == bytes(MIB) + data
    assert err == bytes(MIB)


def test_communicate_none_for_no_pipe() -> None:
    """A stream that is no pipe is None, and a silent pipe is empty bytes."""
    only_err = spawn(sh("echo no; echo told >&2"), stdout=safespawn.DEVNULL, stderr=PIPE)
    only_out = spawn(["/bin/true"], stdout=PIPE)

    assert only_err.communicate() == (None, b"told\n")
    assert only_out.communicate() == (b"", None)


def test_communicate_without_input_ends_the_input() -> None:
    """Communicate without input closes the program's stdin."""
    process = spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE)

    assert process.communicate(timeout=PATIENCE) == (b"", None)


def test_communicate_again_after_a_timeout(fifo: Path) -> None:
    """After TimeoutExpired, with what was read so far, a second call goes on without loss."""
    data = os.urandom(MIB)
    process = spawn(sh('head -c 300000; read go <"$1"; cat', fifo), stdin=PIPE, stdout=PIPE)
    for timeout in (0.05, 1, PATIENCE):  # until something was read
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            process.communicate(data, timeout=timeout)
        if partial := caught.value.output:
            break
    with pytest.raises(subprocess.TimeoutExpired) as again:
        process.communicate(data, timeout=0.01)
    with open(fifo, "wb") as go:
        go.write(b"\n")

    out, _ = process.communicate(data, timeout=PATIENCE)

    assert caught.value.timeout == timeout
    assert partial and data.startswith(partial)
    assert again.value.output.startswith(partial)
    assert out == data


def test_communicate_interrupted_by_a_handler_loses_nothing() -> None:
    """An exception from a signal handler leaves communicate able to go on without doubling input."""
    out = helpers.run_snippet(
        """
        from safespawn import spawn, PIPE

        class Stop(Exception):
            pass

        def handler(number, frame):
            raise Stop

        signal.signal(signal.SIGUSR1, handler)
        # It eats far more than a pipe holds, then signals us while we feed, and waits for our word.
        read, write = os.pipe()
        p = spawn(["/bin/sh", "-c", f"head -c 300000; kill -USR1 $PPID; read go <&{read}; cat"],
                  stdin=PIPE, stdout=PIPE, pass_fds=[read])
        data = bytes(range(256)) * 4096
        try:
            p.communicate(data, timeout=30)
            out["stopped"] = False
        except Stop:
            out["stopped"] = True
        os.write(write, b"\\n")
        got, _ = p.communicate(data, timeout=30)
        out["same"] = got == data
        out["length"] = len(got) - len(data)
        """
    )

    assert out == {"stopped": True, "same": True, "length": 0}


def test_communicate_timeout_after_the_pipes_ended(fifo: Path) -> None:
    """A program that closed its output and runs on gives TimeoutExpired with all that it wrote."""
    process = spawn(sh('echo all; exec >&-; read go <"$1"', fifo), stdout=PIPE)
    assert process.stdout is not None
    for timeout in (0.25, 2, PATIENCE):  # until the program has come so far
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            process.communicate(timeout=timeout)
        if caught.value.output:
            break
    with open(fifo, "wb") as go:
        go.write(b"\n")
    out, _ = process.communicate(timeout=PATIENCE)

    assert out == b"all\n"
    assert caught.value.output == b"all\n"
    assert caught.value.timeout == timeout


@pytest.mark.parametrize("text", ["exit 5", "exec <&-; echo deaf; exit 5"])
def test_program_that_does_not_read_its_input(text: str) -> None:
    """Input that the program does not want is no error, as in subprocess."""
    process = spawn(sh(text), stdin=PIPE, stdout=PIPE)

    process.communicate(bytes(MIB), timeout=PATIENCE)

    assert process.returncode == 5


def test_input_needs_a_pipe() -> None:
    """Input without a pipe for it is a ValueError that says how much, and nothing is lost."""
    process = spawn(sh("echo here"), stdin=safespawn.DEVNULL, stdout=PIPE)
    with pytest.raises(ValueError, match="5 bytes"):
        process.communicate(b"12345")

    assert process.communicate() == (b"here\n", None)


# ------------------------------------------------------------- context manager


def test_context_manager_closes_and_waits() -> None:
    """Leaving the block closes all pipes and waits for the end."""
    with spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        pipes = [process.stdin, process.stdout, process.stderr]
        assert all(pipe is not None and not pipe.closed for pipe in pipes)

    assert all(pipe is not None and pipe.closed for pipe in pipes)
    assert process.returncode == 0


def test_context_manager_on_an_error() -> None:
    """An error in the block comes through, and the program is waited for all the same."""
    with pytest.raises(KeyError, match="mine"), spawn(["/bin/cat"], stdin=PIPE) as process:
        raise KeyError("mine")

    assert process.returncode == 0


def test_context_manager_with_unread_input() -> None:
    """Bytes that wait in our buffer for a dead program are no error when the block ends."""
    with spawn(["/bin/true"], stdin=PIPE) as process:
        assert process.stdin is not None
        select.select([process.pidfd], [], [])
        process.stdin.write(b"nobody reads this")

    assert process.stdin.closed
    assert process.returncode == 0


# ------------------------------------------------------------ dropped handles


def test_dropped_handle_warns_and_is_reaped_later() -> None:
    """A handle dropped while the program runs warns, and a later spawn reaps the child."""
    read, write = os.pipe()
    process = spawn(["/bin/cat"], stdin=read)
    os.close(read)
    pid = process.pid
    with pytest.warns(ResourceWarning, match=str(pid)):
        del process
        gc.collect()
    spawn(["/bin/true"]).wait()
    assert not is_zombie(pid)
    os.close(write)
    until(lambda: is_zombie(pid))

    spawn(["/bin/true"]).wait()

    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_dropped_handle_after_the_end_is_silent() -> None:
    """A handle whose child was reaped is dropped without a warning."""
    process = spawn(["/bin/true"])
    process.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del process
        gc.collect()


def test_dropped_handle_with_warnings_as_errors() -> None:
    """A child is reaped later also where the warning about its handle is an error."""
    out = helpers.run_snippet(
        """
        import gc, select, warnings
        warnings.simplefilter("error")
        heard = []
        sys.unraisablehook = lambda args: heard.append(type(args.exc_value).__name__)
        p = safespawn.spawn(["/bin/true"])
        pid = p.pid
        del p
        gc.collect()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        safespawn.run(["/bin/true"])
        try:
            os.waitpid(pid, os.WNOHANG)
            out["reaped"] = False
        except ChildProcessError:
            out["reaped"] = True
        out["heard"] = heard
        """
    )

    assert out == {"reaped": True, "heard": ["ResourceWarning"]}


def test_dropped_handle_in_a_forked_child() -> None:
    """A forked child forgets the children of its parent and closes their pidfds."""
    out = helpers.run_snippet(
        """
        import gc, warnings
        warnings.simplefilter("ignore")
        p = safespawn.spawn(["/bin/cat"], stdin=(pipe := os.pipe())[0])
        pid, pidfd = p.pid, p.pidfd
        del p
        gc.collect()
        os.close(pipe[0])
        child = os.fork()
        if not child:
            try:
                os.fstat(pidfd)
                os._exit(1)
            except OSError:
                os._exit(0)
        out["closed"] = os.waitpid(child, 0)[1] == 0
        os.fstat(pidfd)
        os.close(pipe[1])
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        safespawn.run(["/bin/true"])
        try:
            os.waitpid(pid, os.WNOHANG)
            out["reaped"] = False
        except ChildProcessError:
            out["reaped"] = True
        """
    )

    assert out == {"closed": True, "reaped": True}


# -------------------------------------------------------- reaped by others


@pytest.mark.parametrize(("text", "code"), [("exit 9", 9), ("kill -KILL $$", -9)])
@pytest.mark.threat("T-09")
def test_child_reaped_by_somebody_else(text: str, code: int) -> None:
    """The code of a child that others reaped comes from the kernel, or the truth is told."""
    process = spawn(sh(text))
    os.waitpid(process.pid, 0)

    if kernel_tells_exit():
        assert process.wait() == code
        assert process.returncode == code
    else:
        with pytest.raises(ChildProcessError, match=str(process.pid)):
            process.wait()
    assert process.pidfd == -1


@pytest.mark.parametrize("method", ["wait", "poll"])
def test_child_reaped_by_somebody_else_and_no_answer(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Where the kernel cannot say how it ended, every wait and poll raises ChildProcessError."""

    def no_answer(pidfd: int) -> tuple[int, int]:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    monkeypatch.setattr(_probe, "pidfd_info", no_answer)
    process = spawn(["/bin/true"])
    os.waitpid(process.pid, 0)

    for _ in range(2):
        with pytest.raises(ChildProcessError, match=str(process.pid)) as caught:
            getattr(process, method)()
        assert caught.value.errno == errno.ECHILD
    assert process.returncode is None
    assert process.pidfd == -1


@pytest.mark.parametrize("how", ["spawn", "run"])
def test_children_are_reaped_by_the_kernel_with_sigchld_ignored(how: str) -> None:
    """With SIGCHLD ignored wait still waits, then has the code by pidfd or tells that it is unknown."""
    out = helpers.run_snippet(
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        before = sorted(os.listdir("/proc/self/fd"))
        try:
            if how == "spawn":
                out["code"] = safespawn.spawn(["/bin/sh", "-c", "exit 6"]).wait()
            else:
                out["code"] = safespawn.run(["/bin/sh", "-c", "exit 6"]).returncode
        except ChildProcessError:
            out["code"] = "unknown"
        out["leaked"] = sorted(os.listdir("/proc/self/fd")) != before
        """,
        how=how,
    )

    assert out == {"code": 6 if kernel_tells_exit() else "unknown", "leaked": False}


def test_somebody_waits_for_any_child_while_we_wait() -> None:
    """A thread in os.wait() that takes our child leaves no thread of ours waiting for ever."""
    process = spawn(["/bin/cat"], stdin=PIPE)
    assert process.stdin is not None
    answers: list[object] = []

    def wait() -> None:
        try:
            answers.append(process.wait())
        except ChildProcessError:
            answers.append("unknown")

    thread = threading.Thread(target=wait)
    thread.start()
    process.kill()
    try:
        os.waitpid(process.pid, 0)
    except ChildProcessError:
        pass  # our thread was faster
    thread.join(PATIENCE)
    process.stdin.close()

    assert answers == [-9] or (answers == ["unknown"] and not kernel_tells_exit())


# ------------------------------------------------------------------- the tree


def tree(pipe: int, text: str) -> safespawn.Process:
    """Start a shell whose family holds ``pipe``; returns when it has said that all are there."""
    process = spawn(sh(text), pass_fds=[pipe], stdout=PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize(
    "text",
    [
        "cat /dev/zero >/dev/null & echo ready; wait",
        # A grandchild with a session of its own, which no signal to a group reaches.
        "setsid sh -c 'echo ready; cat /dev/zero >/dev/null' & wait",
        # Three generations, and two of them ignore what can be ignored.
        "trap '' TERM HUP INT; sh -c 'trap \"\" TERM; sh -c \"echo ready; cat /dev/zero >/dev/null\" & wait' & wait",
        # One that was stopped.
        "sh -c 'kill -STOP $$' & pid=$!; until grep -q '^State:.T' /proc/$pid/status; do :; done; echo ready; wait",
    ],
    ids=["child", "session", "generations", "stopped"],
)
def test_kill_tree_kills_all_descendants(text: str) -> None:
    """The whole tree dies, other sessions and stopped processes included."""
    read, write = os.pipe()
    process = tree(write, text)
    os.close(write)

    process.kill_tree()

    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert is_gone(read)
    assert process.stdout is not None
    process.stdout.close()
    os.close(read)


def test_kill_tree_of_a_program_that_forks_all_the_time() -> None:
    """A tree that makes new processes as fast as it can is dead to the last one."""
    read, write = os.pipe()
    process = tree(write, "echo ready; while :; do (/bin/true & /bin/true) & wait; done")
    os.close(write)

    process.kill_tree()

    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert is_gone(read)
    assert process.stdout is not None
    process.stdout.close()
    os.close(read)


@pytest.mark.threat("T-09")
def test_kill_tree_leaves_strangers_alone() -> None:
    """Siblings and their children go on, also in the same process group."""
    read, write = os.pipe()
    # A background command of a shell reads /dev/null, so it gets its input as 3.
    sibling = spawn(sh("exec 3<&0; (echo here; cat <&3) & wait"), stdin=PIPE, stdout=PIPE)
    assert sibling.stdin is not None
    assert sibling.stdout is not None
    assert sibling.stdout.readline() == b"here\n"
    process = tree(write, "cat /dev/zero >/dev/null & echo ready; wait")
    os.close(write)

    process.kill_tree()
    process.wait(PATIENCE)
    assert is_gone(read)

    assert sibling.poll() is None
    out, _ = sibling.communicate(b"still alive", timeout=PATIENCE)
    assert out == b"still alive"
    assert sibling.returncode == 0
    assert process.stdout is not None
    process.stdout.close()
    os.close(read)


@pytest.mark.threat("T-09")
def test_kill_tree_never_reaches_the_next_owner_of_the_pid() -> None:
    """Once somebody else reaped the child, a stranger with its number keeps its own children."""
    out = in_pid_namespace(
        """
        p = spawn(["/bin/true"])
        os.waitpid(p.pid, 0)
        take_pid(p.pid)
        ask, asked = os.pipe()
        told, tell = os.pipe()
        for fd in (ask, tell):
            os.set_inheritable(fd, True)
        # The stranger has a child that answers as long as it lives.
        family = f"sh -c 'while read x; do echo $x; done' <&{ask} >&{tell} & wait"
        other = os.posix_spawn("/bin/sh", ["sh", "-c", family], {})
        assert other == p.pid, (other, p.pid)
        os.close(ask)
        os.close(tell)
        os.write(asked, b"1\\n")
        assert os.read(told, 2) == b"1\\n"

        p.kill_tree()

        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        try:
            os.write(asked, b"2\\n")
        except BrokenPipeError:
            pass
        out["child of the stranger answers"] = os.read(told, 2) == b"2\\n"
        out["stranger lives"] = os.waitpid(other, os.WNOHANG) == (0, 0)
        try:
            p.wait(0)
        except ChildProcessError:
            pass
        """
    )

    assert out == {"child of the stranger answers": True, "stranger lives": True}


# ---------------------------------------------------------------------- EINTR

#: Waits until its parent sleeps (in the wait, there is nothing else), then signals it.
SIGNAL_THE_SLEEPER = """
while read -r _ _ state _ < /proc/$PPID/stat && [ "$state" != S ]; do :; done
kill -USR1 $PPID
read answer
exit "$answer"
"""


@pytest.mark.parametrize("how", ["wait", "wait with timeout", "run", "communicate"])
def test_wait_goes_on_after_a_signal_handler(how: str) -> None:
    """A signal while we wait runs the Python handler at once, and then the wait goes on."""
    out = helpers.run_snippet(
        """
        # Only the handler gives the word that lets the program end.
        read, write = os.pipe()
        ran = []

        def handler(number, frame):
            ran.append(number)
            os.write(write, b"17\\n")

        signal.signal(signal.SIGUSR1, handler)
        argv = ["/bin/sh", "-c", text]
        if how == "run":
            out["code"] = safespawn.run(argv, stdin=read).returncode
        elif how == "communicate":
            p = safespawn.spawn(argv, stdin=read, stdout=safespawn.PIPE)
            p.communicate()
            out["code"] = p.returncode
        else:
            out["code"] = safespawn.spawn(argv, stdin=read).wait(None if how == "wait" else 30)
        out["ran"] = len(ran)
        """,
        how=how,
        text=SIGNAL_THE_SLEEPER,
    )

    assert out == {"code": 17, "ran": 1}


def test_wait_stopped_by_a_handler_can_be_repeated() -> None:
    """An exception from a handler comes out of wait, and the child can still be waited for."""
    out = helpers.run_snippet(
        """
        class Stop(Exception):
            pass

        def handler(number, frame):
            raise Stop

        signal.signal(signal.SIGUSR1, handler)
        read, write = os.pipe()
        p = safespawn.spawn(["/bin/sh", "-c", text], stdin=read)
        try:
            p.wait()
        except Stop:
            out["stopped"] = True
        os.write(write, b"18\\n")
        out["code"] = p.wait()
        out["pidfd"] = p.pidfd
        """,
        text=SIGNAL_THE_SLEEPER,
    )

    assert out == {"stopped": True, "code": 18, "pidfd": -1}


def test_handle_in_a_cycle_of_garbage_loses_no_child() -> None:
    """The collector ends all of a cycle at once; the child is reaped on a later spawn all the same."""
    process = safespawn.spawn(["cat"], stdin=safespawn.PIPE)
    pidfd, stdin = os.pidfd_open(process.pid), process.stdin
    cycle: list[object] = [process]
    cycle.append(cycle)
    del process, cycle
    with pytest.warns(ResourceWarning, match="dropped while running"):
        gc.collect()
    stdin.close()
    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)
    safespawn.run(["true"])
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
