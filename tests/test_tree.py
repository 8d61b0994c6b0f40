"""What belongs to the tree of a program, and that all of it is killed and nobody else."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import child_state
import helpers
import safespawn
from safespawn import PIPE, _cgroup, _tree, spawn

#: Only ends a test that has failed already.
PATIENCE = 60.0

#: A process whose parent has died, when the next command runs.
ORPHAN = "(sleep 1000 &)"
#: The same in a session of its own, the leader of which has died too.
DAEMON = "setsid sh -c 'sleep 1000 &'"


class Family:
    """A program and what it has started, all of which hold a pipe."""

    def __init__(self, text: str, **options: Any) -> None:
        """Start a shell; it says when all are there."""
        self.pipe, write = os.pipe()
        self.process = spawn(
            ["/bin/sh", "-c", f"{text}; echo ready >&7; exec 7>&-; {options.pop('then', 'read x')}"],
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=[write],
            fds={7: write},
            **options,
        )
        os.close(write)
        assert os.read(self.pipe, 6) == b"ready\n"

    def is_gone(self) -> bool:
        """Wait until nobody holds the pipe any more."""
        return bool(select.select([self.pipe], [], [], PATIENCE)[0]) and os.read(self.pipe, 1) == b""

    def has_members(self) -> bool:
        """Whether somebody does."""
        return not select.select([self.pipe], [], [], 0)[0]

    def lives(self) -> bool:
        """Whether the program goes on when it is told to: who was killed may be seen for a while."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.close()
        return self.process.wait(PATIENCE) == 0

    def close(self) -> None:
        """End what reads our pipe, and wait."""
        self.process.__exit__()
        os.close(self.pipe)


@contextmanager
def family(text: str, **options: Any) -> Iterator[Family]:
    """Have a family; whoever is left of it at the end is ours to kill, by the pipe that it holds."""
    made = Family(text, **options)
    try:
        yield made
    finally:
        for pid in holders(made.pipe):
            os.kill(pid, signal.SIGKILL)
        made.close()


def holders(pipe: int) -> list[int]:
    """Return who has a pipe open, but us."""
    name = os.readlink(f"/proc/self/fd/{pipe}")
    others = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()]
    return [pid for pid in others if name in links(Path(f"/proc/{pid}/fd"))]


def links(where: Path) -> set[str]:
    """Return where the links of a directory lead, as far as they are there still."""
    found = set()
    with suppress(OSError):
        for one in where.iterdir():
            with suppress(OSError):
                found.add(os.readlink(one))
    return found


def ended(process: safespawn.Process) -> None:
    """Wait for the end of a program without reaping it."""
    assert select.select([process.pidfd], [], [], PATIENCE)[0]


# ------------------------------------------------------------------------- the session


def test_session_belongs_to_the_tree() -> None:
    """Those of a new session die though their parents have died before, and so do their children."""
    with family(f"{ORPHAN}; (sh -c 'sleep 1000 & sleep 1000' &)", start_new_session=True) as made:
        made.process.kill_tree()

        assert made.process.wait(PATIENCE) == -signal.SIGKILL
        assert made.is_gone()


def test_session_of_a_descendant_belongs_to_the_tree() -> None:
    """A session that one of the tree leads is wholly of the tree."""
    leader = f"setsid sh -c '{ORPHAN}; echo; exec sleep 1000'"
    with family(f"{leader} | {{ read x", then="read y; }") as made:
        made.process.kill_tree()

        assert made.is_gone()


def test_session_of_a_program_that_has_ended() -> None:
    """A program that has ended and was not reaped still has its session."""
    with family(ORPHAN, start_new_session=True, then=":") as made:
        ended(made.process)
        assert made.has_members()

        made.process.kill_tree()

        assert made.is_gone()
        assert made.process.wait() == 0


def test_our_own_session_is_left_alone() -> None:
    """Without a session of its own a program's orphans are ours as much as anybody's: they are left."""
    with family(ORPHAN) as made:
        made.process.kill_tree()
        made.process.wait()

        assert made.has_members()


# ----------------------------------------------------------------------- the subreaper


def test_daemon_of_a_subreaper_belongs_to_the_tree() -> None:
    """With ``subreaper`` a daemon is the program's child, whatever session it has made."""
    with family(DAEMON, subreaper=True) as made:
        made.process.kill_tree()

        assert made.process.wait(PATIENCE) == -signal.SIGKILL
        assert made.is_gone()


# -------------------------------------------------------------------------- the cgroup


def test_cgroup_is_killed_whole(cgroup_v2: Path) -> None:
    """All who are in the child's cgroup die, daemons of a program that has ended too."""
    with family(DAEMON, cgroup=cgroup_v2, then=":") as made:
        ended(made.process)
        assert made.has_members()

        made.process.kill_tree()

        assert made.is_gone()
        made.process.wait()


def test_cgroup_by_descriptor_is_killed_whole(cgroup_v2: Path) -> None:
    """A cgroup that was given by descriptor is kept as well, though the caller closes it."""
    fd = os.open(cgroup_v2, os.O_PATH)
    with family(DAEMON, cgroup=fd) as made:
        os.close(fd)

        made.process.kill_tree()

        assert made.is_gone()


def test_whoever_has_left_the_cgroup_is_killed_too(cgroup_v2: Path) -> None:
    """The tree is walked as well: a descendant that has moved to another cgroup dies."""
    out, back = (f"echo 0 >{where}/cgroup.procs" for where in (child_state.V2, cgroup_v2))
    with family(f"{out}; sleep 1000 & {back}", cgroup=cgroup_v2) as made:
        made.process.kill_tree()

        assert made.is_gone()


def test_cgroup_of_two_children_is_not_killed(cgroup_v2: Path) -> None:
    """Neither of two children in one cgroup takes the other with it."""
    with family(ORPHAN, cgroup=cgroup_v2) as one, family(ORPHAN, cgroup=cgroup_v2) as other:
        one.process.kill_tree()
        one.process.wait()
        assert other.lives()

    with family(ORPHAN, cgroup=cgroup_v2) as one, family(ORPHAN, cgroup=cgroup_v2) as other:
        other.process.kill_tree()
        other.process.wait()
        assert one.lives()


def test_cgroup_of_two_children_that_are_born_at_once(cgroup_v2: Path) -> None:
    """Where both were about to be born into an empty cgroup, neither may kill it."""
    fd = os.open(cgroup_v2, os.O_PATH)
    groups = [_cgroup.keep_for_child(fd), _cgroup.keep_for_child(fd)]
    os.close(fd)
    with family(":") as made:
        (cgroup_v2 / "cgroup.procs").write_text(str(made.process.pid))
        for group in groups:
            assert group is not None
            group.kill()
            group.close()
        assert made.lives()


def test_cgroup_where_somebody_was_before_is_not_killed(cgroup_v2: Path) -> None:
    """Who was in the cgroup before the child, or below it, is no concern of its tree."""
    (cgroup_v2 / "below").mkdir()
    try:
        with family(f"echo 0 >{cgroup_v2}/below/cgroup.procs") as stranger:
            with family(DAEMON, cgroup=cgroup_v2) as made:
                made.process.kill_tree()
                made.process.wait()

                assert stranger.lives()
    finally:
        removed(cgroup_v2 / "below")


def removed(cgroup: Path) -> None:
    """Remove a cgroup when the last of it, who is dead, has left."""
    end = time.monotonic() + PATIENCE
    while "populated 1" in (cgroup / "cgroup.events").read_text():
        assert time.monotonic() < end
        os.sched_yield()
    cgroup.rmdir()


def test_cgroup_that_we_have_entered_is_not_killed(cgroup_v2: Path) -> None:
    """We never kill ourselves: a cgroup that we were moved to, or below it, is only walked."""
    out = helpers.run_snippet(
        """
process = safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE, cgroup=where)
os.mkdir(where + "/below")
here = v2 + [line for line in open("/proc/self/cgroup").read().split("\\n") if line.startswith("0::")][0][3:]
open(where + "/below/cgroup.procs", "w").write("0")
process.kill_tree()
out["code"] = process.wait()
open(here + "/cgroup.procs", "w").write("0")
os.rmdir(where + "/below")
process.stdin.close()
""",
        where=str(cgroup_v2),
        v2=str(child_state.V2),
    )

    assert out == {"code": -signal.SIGKILL}


def test_cgroup_descriptor_that_became_another_file(cgroup_v2: Path) -> None:
    """Where somebody has closed our descriptor, what has its number is neither killed nor closed."""
    out = helpers.run_snippet(
        """
process = safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE, cgroup=where)
fd = next(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == where)
os.mkdir(where + "/other")
other = safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE, cgroup=where + "/other")
os.dup2(os.open(where + "/other", os.O_PATH), fd)
process.kill_tree()
out["code"] = process.wait()
other.stdin.close()
out["other"] = other.wait()
out["open"] = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
os.rmdir(where + "/other")
process.stdin.close()
""",
        where=str(cgroup_v2),
    )

    assert out == {"code": -signal.SIGKILL, "other": 0, "open": "other"}


@pytest.mark.parametrize("how", ["reaped", "failed", "forked"])
def test_cgroup_descriptor_is_closed(cgroup_v2: Path, how: str) -> None:
    """It is kept no longer than the child: closed when that is reaped, or did not start, and in forks of ours."""
    out = helpers.run_snippet(
        """
def kept():
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == where]
if how == "failed":
    try:
        safespawn.spawn(["/bin/true"], cgroup=where, rlimits={7: 10**9})
    except OSError as caught:
        problem, out["stage"] = caught, caught.stage  # its traceback keeps what the spawn had
else:
    process = safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE, cgroup=where)
    out["kept"] = len(kept())
    process.stdin.close()
if how == "forked":
    pid = os.fork()
    if pid == 0:
        os._exit(len(kept()))
    out["in fork"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
if how != "failed":
    process.wait()
out["left"] = kept()
""",
        where=str(cgroup_v2),
        how=how,
    )

    more = {"reaped": {"kept": 1}, "failed": {"stage": "rlimits"}, "forked": {"kept": 1, "in fork": 0}}[how]
    assert out == {**more, "left": []}


# ------------------------------------------------------------------------ no way out


def test_fork_that_is_under_way_does_not_escape() -> None:
    """A process that was told to stop in the middle of a fork still makes its child, which is found."""
    # Under pressure: a fork of this size takes longer than a look at /proc. Of 20 trees 7 left somebody
    # behind when nobody waited until all stood still.
    program = """
import mmap, os, time
memory = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, len(memory), 4096):
    memory[at] = 1
os.write(7, b"ready\\n")
os.close(7)
while True:
    if os.fork() == 0:
        time.sleep(1000)
"""
    for _ in range(12):
        with family(f"exec {sys.executable} -c '{program}'", cwd="/") as made:
            made.process.kill_tree()

            assert made.is_gone()
            made.process.wait()


def test_children_are_killed_before_their_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a parent, or of a session's leader, what is stopped may be continued: it is dead by then."""
    killed: list[int] = []
    send = signal.pidfd_send_signal

    def told(pidfd: int, number: int) -> None:
        if number == signal.SIGKILL:
            text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
            killed.append(int(text.split("Pid:")[1].split()[0]))
        send(pidfd, number)

    deep = "(sh -c 'sh -c \"sleep 1000 & echo; wait\" & wait' &)"
    with family(f"{deep}; {ORPHAN}", start_new_session=True) as made:
        assert made.process.stdout is not None
        assert made.process.stdout.readline() == b"\n"
        known = {pid: parent_of(pid) for pid in holders(made.pipe)}
        monkeypatch.setattr(signal, "pidfd_send_signal", told)
        made.process.kill_tree()
        monkeypatch.undo()

        assert set(killed) == set(known)
        assert killed[-1] == made.process.pid
        assert all(killed.index(pid) < killed.index(known[pid]) for pid in killed if known[pid] in known)


def parent_of(pid: int) -> int:
    """Return the parent's pid."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def test_process_that_may_not_be_signalled_is_named() -> None:
    """All others are killed, and the exception says who was not."""
    out = helpers.run_snippet(
        """
text = "setpriv --reuid 70000 --clear-groups sh -c 'echo; exec sleep 1000'; echo $?; read x"
process = safespawn.spawn(["/bin/sh", "-c", text], stdin=safespawn.PIPE, stdout=safespawn.PIPE)
process.stdout.readline()
os.setresuid(70000, 70000, 0)
try:
    process.kill_tree()
except PermissionError as problem:
    out["named"] = f"[{process.pid}]" in str(problem)
os.setresuid(0, 0, 0)
out["code of the other"] = process.stdout.readline().decode()
out["root"] = process.poll()
process.communicate(b"\\n")
"""
    )

    assert out == {"named": True, "code of the other": "137\n", "root": None}


# --------------------------------------------------------------------------- timeouts


def test_timeout_takes_the_tree() -> None:
    """After ``timeout`` the children of the program are killed too."""
    read, write = os.pipe()
    with pytest.raises(subprocess.TimeoutExpired):
        safespawn.run(["/bin/sh", "-c", "sleep 1000 & wait"], timeout=0.1, pass_fds=[write])
    os.close(write)

    assert select.select([read], [], [], PATIENCE)[0]
    os.close(read)


def test_timeout_takes_the_session_of_a_program_that_has_ended() -> None:
    """A program may end and leave its pipe to others: they are of its session, and die at the timeout."""
    text = "echo x; sleep 1000 & echo $!"
    for timeout in (0.2, 2, 20):  # until the program has come so far
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            safespawn.run(["/bin/sh", "-c", text], timeout=timeout, capture_output=True, start_new_session=True)
        if caught.value.stdout and len(caught.value.stdout.splitlines()) > 1:
            break

    assert caught.value.stdout is not None
    first, pid = caught.value.stdout.split()
    assert first == b"x"
    end = time.monotonic() + PATIENCE
    while Path(f"/proc/{int(pid)}").exists() and state_of(int(pid)) != "Z":
        assert time.monotonic() < end
        os.sched_yield()


def state_of(pid: int) -> str:
    """Return the state of a process, Z when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return "Z"


TRACED = """
import ctypes, subprocess, warnings
from safespawn import _child, _run

def trace(pid):
    # Who is traced is reaped by the tracer first: to us it does not end, as one that sleeps in the kernel.
    code = f"import ctypes; print(ctypes.CDLL(None).ptrace(0x4206, {pid}, 0, 0), flush=True); input()"  # PTRACE_SEIZE
    tracer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert tracer.stdout.readline() == b"0\\n"
    return tracer

def untrace(tracer):
    tracer.communicate(b"\\n")
"""


def test_wait_after_the_kill_is_bounded() -> None:
    """A child that does not end is given up after the grace; it is reaped by a later spawn, and no waste of time."""
    out = helpers.run_snippet(
        TRACED
        + """
process = safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE)
tracer = trace(process.pid)
looks, await_end = [], _binding.await_end
_binding.await_end = lambda *given: looks.append(given) or await_end(*given)
start = time.monotonic()
out["ended"] = process._child.kill_and_wait(2)
took = time.monotonic() - start
out["in time"] = 2 <= took < 30
out["idle"] = len(looks) <= took / _child._TRACER_LOOK + 2
untrace(tracer)
process.stdin.close()
pid = process.pid
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    del process
out["warned"] = len(told)  # it was given up, not forgotten
select_end = time.monotonic() + 40
while _child._abandoned:
    assert time.monotonic() < select_end
    safespawn.run(["/bin/true"])
out["left"] = os.path.exists(f"/proc/{pid}")
"""
    )

    assert out == {"ended": False, "in time": True, "idle": True, "warned": 0, "left": False}


def test_run_does_not_wait_for_what_cannot_be_killed() -> None:
    """``run`` raises TimeoutExpired though its program does not end."""
    out = helpers.run_snippet(
        TRACED
        + """
import threading
_run.GRACE = 0.3
never, _ = os.pipe()

def attempt(timeout):
    # Return the tracer, if it was there in time.
    read, write = os.pipe()
    tracers = []
    def tracing():
        try:
            tracers.append(trace(int(os.read(read, 20))))
        except (AssertionError, ValueError):  # it was killed before
            pass
    thread = threading.Thread(target=tracing)
    thread.start()
    start = time.monotonic()
    try:
        safespawn.run(["/bin/sh", "-c", "echo $$ >&3; read x"], timeout=timeout, fds={3: write}, capture_output=True, stdin=never)
    except subprocess.TimeoutExpired as late:
        out["cmd"] = late.cmd[0]
    out["in time"] = time.monotonic() - start < timeout + 30
    os.close(write)
    thread.join()
    return tracers

tracer, = attempt(2) or attempt(8) or attempt(20)
untrace(tracer)
out["abandoned"] = len(_child._abandoned)
_child._abandoned[0].wait(20)
"""
    )

    assert out == {"cmd": "/bin/sh", "in time": True, "abandoned": 1}


def test_tree_that_grows_all_the_time_is_given_up(tmp_path: Path) -> None:
    """A chain of processes that fork and end holds the caller for a bounded time, and it is told."""
    source, program = tmp_path / "chain.c", tmp_path / "chain"
    # The first waits; the others fork and end at once, each a new number, until nobody writes to them any more.
    source.write_text(
        "#include <poll.h>\n#include <signal.h>\n#include <time.h>\n#include <unistd.h>\n"
        "int main(void) { struct pollfd input = {0, POLLIN, 0}; time_t end = time(NULL) + 150;"
        " signal(SIGCHLD, SIG_IGN); if (fork()) for (;;) pause();"
        " while (!poll(&input, 1, 0) && time(NULL) < end) if (fork()) _exit(0); return 0; }\n"
    )
    subprocess.run(["cc", "-O2", "-o", program, source], check=True)
    process = spawn([program], start_new_session=True, stdin=PIPE)
    before = time.monotonic()
    with suppress(OSError):  # EAGAIN, unless it was caught
        process.kill_tree()
    took = time.monotonic() - before
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    assert took < _tree.BOUND + 30


def test_tree_larger_than_the_limit_of_open_files() -> None:
    """More descendants than descriptors are killed all the same: those with a stopped parent need none meanwhile."""
    out = helpers.run_snippet(
        """
        import resource, select
        def _ended(fd):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(60000))
        text = "for _ in range(120):\\n if not os.fork(): signal.pause()\\nprint(flush=True)\\nsignal.pause()"
        process = safespawn.spawn([sys.executable, "-c", "import os, signal\\n" + text], stdout=safespawn.PIPE)
        process.stdout.readline()
        pids = open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()
        held = [os.pidfd_open(int(pid)) for pid in pids]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = [os.dup(0) for _ in range(512)]  # below our own, which have high numbers
        for fd in room[-20:]:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(room) + 1, hard))
        try:
            process.kill_tree()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            alive = [fd for fd in held if not _ended(fd)]
            for fd in alive:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        out["alive"] = len(alive)
        process.stdout.close()
        process.wait()
        """
    )
    assert out == {"alive": 0}
