"""spawn_many: each command comes to what it would come to alone, and none is lost."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import DEVNULL, PIPE, Command, Process, SpawnManyError, audit, spawn_many

Results = list[Process | Exception]
Maker = Callable[..., Path]


def ended(results: Results) -> list[Any]:
    """Wait for all that runs; return exit codes, and type, errno and stage of what failed."""
    return [
        one.wait() if isinstance(one, Process) else (type(one), getattr(one, "errno", None), getattr(one, "stage", None))
        for one in results
    ]


def guard_pages() -> int:
    """Return how many mappings nobody can access: each stack for a child has four."""
    return Path("/proc/self/maps").read_text().count(" ---p ")


#: Every tenth command of a hundred fails in a way of its own, or goes a way of its own.
ODD: dict[int, tuple[dict[str, Any], Any]] = {
    7: ({"executable": "/does/not/exist"}, (FileNotFoundError, errno.ENOENT, "lookup")),
    17: ({"executable": "/etc/passwd"}, (PermissionError, errno.EACCES, "lookup")),
    27: ({"process_group": 1}, (PermissionError, errno.EPERM, "process-group")),
    37: ({"user": "nobody of that name"}, (KeyError, None, None)),
    47: ({"fds": {5: 1000000}}, (OSError, errno.EBADF, None)),
    57: ({"user": 65534, "strategy": "vfork"}, (safespawn.UnsafeSpawn, errno.EPERM, None)),
    67: ({"cwd": "/does/not/exist"}, (FileNotFoundError, errno.ENOENT, "open-cwd")),
    77: ({"digest": "sha256:" + 64 * "0"}, (safespawn.UnsafeSpawn, errno.EPERM, None)),
    87: ({"user": 65534}, None),
    97: ({"strategy": "fork"}, None),
}


@pytest.mark.parametrize("at_once", [1, 7, 16, 64])
def test_a_thousand_commands_of_which_some_fail(at_once: int, program: Maker) -> None:
    """Each result stands in the place of its command: the exit code of just that one, or its own error."""
    garbage = program("\x7fELF is not enough", "garbage")
    commands, expected = [], []
    for i in range(1000):
        options, result = ODD.get(i % 100, ({}, None))
        if i % 100 == 92:  # fails in the execve itself
            options, result = {"executable": garbage}, (OSError, errno.ENOEXEC, "exec")
        commands.append(Command(["/bin/sh", "-c", f"exit {i % 251}"], **options))
        expected.append(i % 251 if result is None else result)

    safespawn.run(["true"])  # our own stack stays
    before = guard_pages()

    results = spawn_many(commands, at_once=at_once, return_errors=True)

    assert ended(results) == expected
    strategies = [one.report.strategy for one in results if isinstance(one, Process)]
    assert strategies.count("clone") == 890 and strategies.count("fork") == 10
    assert strategies.count("launcher") == 10
    reports = [one.report for one in results if isinstance(one, Process) or hasattr(one, "report")]
    assert len({report.id for report in reports}) == len(reports) == 1000 - 20
    assert guard_pages() == before, "the stacks are gone"


def test_all_run_though_some_fail() -> None:
    """The error comes when all others run; it has the results in order, and the first that failed."""
    with pytest.raises(SpawnManyError) as caught:
        spawn_many([["/bin/sh", "-c", "exit 4"], ["/no/such"], ["/bin/false"], ["/etc/passwd"]])

    problem = caught.value
    first, second, third, fourth = problem.results
    assert isinstance(first, Process) and isinstance(third, Process)
    assert (first.wait(), third.wait()) == (4, 1)
    assert isinstance(second, FileNotFoundError) and second.report.outcome == "failed"
    assert isinstance(fourth, PermissionError)
    assert problem.errno == errno.ENOENT and problem.__cause__ is second
    assert "2 of 4 commands failed, the first is commands[1]" in str(problem) and "/no/such" in str(problem)


def test_error_without_an_errno_is_told_too() -> None:
    """A user that does not exist is one command's failure, and the whole is an OSError all the same."""
    with pytest.raises(SpawnManyError, match=r"commands\[0\].*no such user") as caught:
        spawn_many([Command(["true"], user="no such user")])
    assert caught.value.errno == errno.EIO and isinstance(caught.value.__cause__, KeyError)


def test_no_commands_are_no_error() -> None:
    """Nothing to start gives an empty list, from an iterator too."""
    assert spawn_many([]) == [] and spawn_many(iter([]), return_errors=True) == []


@pytest.mark.threat("T-17")
@pytest.mark.parametrize(
    ("bad", "raised", "told"),
    [
        ("true", TypeError, r"commands\[1\]: argv must be a sequence, not 'true'"),
        ([], ValueError, r"commands\[1\]: argv is empty"),
        (["true", 5], TypeError, r"commands\[1\]: argv\[1\] must be str, bytes or a path, not 5"),
        ([b"a\0b"], ValueError, r"commands\[1\]: argv\[0\] has a NUL byte"),
        (None, TypeError, r"commands\[1\]: argv must be a sequence, not None"),
        (["true", "x" * 200000], OSError, r"argv\[1\] has 200000 bytes"),
    ],
)
def test_malformed_command_refuses_the_whole_call(tmp_path: Path, bad: Any, raised: Any, told: str) -> None:
    """Nothing is started when one of them cannot be meant, whatever stands before it."""
    with pytest.raises(raised, match=told):
        spawn_many([["/usr/bin/touch", tmp_path / "ran"], bad], return_errors=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "raised", "told"),
    [
        ({"at_once": 0}, ValueError, "at_once must be from 1 to 64, not 0"),
        ({"at_once": 65}, ValueError, "at_once must be from 1 to 64, not 65"),
        ({"at_once": True}, TypeError, "at_once must be an int, not True"),
        ({"at_once": 2.0}, TypeError, "at_once must be an int, not 2.0"),
        ({"return_errors": 1}, TypeError, "return_errors must be True or False, not 1"),
    ],
)
def test_malformed_options(tmp_path: Path, options: Any, raised: Any, told: str) -> None:
    """Bounds are looked at first."""
    with pytest.raises(raised, match=re.escape(told)):
        spawn_many([["/usr/bin/touch", tmp_path / "ran"]], **options)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("given", ["true", b"true", {"true": 1}, 5, None])
def test_commands_must_be_several(given: Any) -> None:
    """One command in place of a list is told."""
    with pytest.raises(TypeError, match="commands must be a sequence"):
        spawn_many(given)


# ---------------------------------------------------------------------- Command


def test_command_is_checked_when_it_is_made() -> None:
    """With the words of spawn."""
    with pytest.raises(ValueError, match="umask must be from 0 to 511, not 512"):
        Command(["true"], umask=0o1000)
    with pytest.raises(TypeError, match="no such option: umaks=7"):
        Command(["true"], umaks=7)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="argv must be a sequence, not 'true'"):
        Command("true")


def test_command_does_not_change() -> None:
    """What becomes of the caller's own objects does not reach it, and iterators are read once."""
    argv, env, passed = ["/bin/sh", "-c", 'exit "$CODE"'], {"CODE": "3"}, iter([])
    command = Command(argv, env=env, pass_fds=passed, rlimits={7: [64, 64]}, cpu_affinity=os.sched_getaffinity(0))
    argv.append("more")
    argv[2] = "exit 99"
    env["CODE"] = "98"

    assert ended(spawn_many([command, command, command], return_errors=True)) == [3, 3, 3]
    assert command.argv == ("/bin/sh", "-c", 'exit "$CODE"')
    assert dict(command.options["env"]) == {"CODE": "3"} and command.options["pass_fds"] == ()
    for name in ("argv", "options", "anything"):
        with pytest.raises(AttributeError):
            setattr(command, name, None)
    with pytest.raises(TypeError):
        command.options["env"]["CODE"] = "4"


def test_command_shows_no_secret() -> None:
    """Neither among its arguments nor in its options."""
    hidden = safespawn.Secret("hunter2")
    command = Command(["tool", "--password=" + hidden], env={"TOKEN": "hunter2", "OTHER": hidden})
    assert "hunter2" not in repr(command)
    assert repr(command) == "Command([b'tool', Secret('--password=…')], env=…)"


def test_file_of_a_command_is_asked_for_its_number_at_the_start(tmp_path: Path) -> None:
    """A file that was closed meanwhile is told before anything starts; its number may be another's."""
    with (tmp_path / "out").open("wb") as file:
        command = Command(["/bin/echo", "here"], stdout=file)
        (process,) = spawn_many([command])
        process.wait()
    assert (tmp_path / "out").read_bytes() == b"here\n"
    with (tmp_path / "other").open("wb"):  # has the number now
        with pytest.raises(ValueError, match=r"commands\[1\]: stdout has no descriptor"):
            spawn_many([["/usr/bin/touch", tmp_path / "ran"], command])
    assert (tmp_path / "other").read_bytes() == b"" and not (tmp_path / "ran").exists()


def test_policy_that_came_later_holds(tmp_path: Path) -> None:
    """A command made before the policy is started under it; what it says itself wins where that may be."""
    file = tmp_path / "safespawn.toml"
    file.write_text('[spawn]\numask = "027"\nenv = { ONLY = "this" }\n[programs]\nrefused = ["/usr/bin/id"]\n')
    out = helpers.run_snippet(
        """
from safespawn import Command, PIPE, policy
show = ["/bin/sh", "-c", "umask; echo $ONLY"]
made = [Command(show, stdout=PIPE), Command(show, stdout=PIPE, umask=0o077), Command(["/usr/bin/id"])]
before = safespawn.spawn_many(made[:2], at_once=1)
out["before"] = [one.communicate()[0].decode().split() for one in before]
policy.apply(policy.load(file))
*ran, refused = safespawn.spawn_many(made, return_errors=True)
out["after"] = [one.communicate()[0].decode().split() for one in ran]
out["refused"] = refused.guard
made = Command(show, stdout=PIPE)
out["later"] = safespawn.spawn_many([made])[0].communicate()[0].decode().split()
""",
        file=str(file),
    )
    assert out == {
        "before": [["0022"], ["0077"]],
        "after": [["0027", "this"], ["0077", "this"]],
        "refused": "program-allowed",
        "later": ["0027", "this"],
    }


# ------------------------------------------------------------------------- ways


def test_ways_that_are_asked_for(tmp_path: Path) -> None:
    """A command that names another strategy, or needs memory of its own, is started alone and in its turn."""
    log = tmp_path / "ledger"
    options: list[Any] = [
        {}, {"strategy": "vfork"}, {"strategy": "clone"}, {"strategy": "fork"}, {}, {"user": 65534},
        {"strategy": "launcher"}, {"deadline": 60}, {"namespaces": ["pid"]}, {},
    ]  # fmt: skip
    with audit.open(log):
        running = spawn_many([Command(["/bin/true"], **one) for one in options])
        for process in running:
            process.wait()

    assert [process.report.strategy for process in running] == [
        "clone", "vfork", "clone", "fork", "clone", "launcher", "launcher", "clone", "launcher", "clone",
    ]  # fmt: skip
    assert [process.report.requested for process in running] == [one.get("strategy", "auto") for one in options]
    started = re.findall(r'"ev":"spawn.started","sid":"([^"]+)"', log.read_text())
    assert started == [process.report.id for process in running], "in the order of the commands"


def test_a_single_spawn_is_never_clone_by_itself() -> None:
    """auto takes vfork, whatever comes before it."""
    for process in spawn_many([["true"]]):
        process.wait()
    assert safespawn.run(["true"]).report.strategy == "vfork"


def test_no_proof_no_shared_memory() -> None:
    """Beside threads, and without a lock: fork, or the refusal that was asked for."""
    out = helpers.run_snippet(
        """
import threading
from safespawn import Command
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
more = [{}, {"strategy": "clone"}, {"on_unproven": "refuse"}, {"strategy": "vfork"}]
results = safespawn.spawn_many([Command(["/bin/true"], **one) for one in more], return_errors=True)
out["first"] = [results[0].report.strategy, results[0].wait()]
out["guards"] = [one.guard for one in results[1:]]
stop.set()
thread.join()
""",
        armed=False,
    )
    assert out == {"first": ["fork", 0], "guards": ["alone-or-apart"] * 3}


def test_helper_makes_those_that_have_no_proof() -> None:
    """Beside threads and without a lock a helper that runs takes each of them, one by one; pipes and errors too."""
    out = helpers.run_snippet(
        """
import threading
from safespawn import Command, PIPE
with safespawn.Helper():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    commands = [["/bin/sh", "-c", "exit 4"], ["/no/such"], Command(["/bin/echo", "x"], stdout=PIPE, strategy="helper")]
    first, second, third = safespawn.spawn_many(commands, return_errors=True)
    out["ways"] = [first.report.strategy, third.report.strategy]
    out["came"] = [first.wait(), second.stage, third.communicate()[0].decode()]
    stop.set()
    thread.join()
""",
        armed=False,
    )
    assert out == {"ways": ["helper", "helper"], "came": [4, "lookup", "x\n"]}


def test_pipes_of_each() -> None:
    """Every handle has its own pipes, and nobody else holds their ends."""
    commands = [Command(["/bin/sh", "-c", f"cat; echo {i} >&2"], stdin=PIPE, stdout=PIPE, stderr=PIPE) for i in range(20)]
    told = []
    *piped, other = spawn_many([*commands, Command(["/bin/cat"], stdin=DEVNULL)])
    for i, process in enumerate(piped):
        # Ends only when our end is the last that is open: no other of the batch may have it.
        told.append(process.communicate(b"in %d" % i))
    other.wait()
    assert told == [(b"in %d" % i, b"%d\n" % i) for i in range(20)]


def test_pipes_of_the_one_that_fails_are_closed() -> None:
    """No descriptor is left of a command that runs no program (nothing_leaks looks)."""
    three = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
    commands = [Command(["/no/such"], **three), Command(["/bin/true"], process_group=1, **three)] * 5
    before = helpers.open_fds()
    results = spawn_many(commands, return_errors=True)
    assert [type(one) for one in results] == [FileNotFoundError, PermissionError] * 5
    assert helpers.open_fds() == before


def test_few_descriptors_are_enough() -> None:
    """Each program that runs needs one number; that those that wait hold their programs open is no obstacle."""
    out = helpers.run_snippet(
        """
import resource
most = 60
there = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (there + most + 14, there + most + 14))
running = safespawn.spawn_many([["/bin/true"]] * most, at_once=64)
out["codes"] = sorted({process.wait() for process in running})
running = safespawn.spawn_many([["/bin/true"]] * (most + 40), at_once=16, return_errors=True)
failed = [one for one in running if not isinstance(one, safespawn.Process)]
out["failed"] = sorted({one.errno for one in failed})
out["some"] = most <= len(running) - len(failed) < most + 40
for one in running:
    if isinstance(one, safespawn.Process):
        one.wait()
"""
    )
    assert out == {"codes": [0], "failed": [errno.EMFILE], "some": True}


# ------------------------------------------------------------------------ audit


def test_records_of_each_are_complete_and_in_order(tmp_path: Path) -> None:
    """An intent before anything of it runs, then its one ending; the ledger verifies."""
    log = tmp_path / "ledger"
    commands = [Command(["/no/such"] if i % 5 == 3 else ["/bin/true", str(i)]) for i in range(23)]
    with audit.open(log), audit.context(job="all of them"):
        results = spawn_many(commands, at_once=4, return_errors=True)
        assert ended(results).count(0) == 19
    verified = audit.verify(log)
    assert verified.ok, verified
    records = [line for line in log.read_text().splitlines() if '"ev":"spawn.' in line]
    found = [re.search(r'"ev":"spawn\.([a-z]+)","sid":"([^"]+)"', line) for line in records]
    events = [(one[1], one[2]) for one in found if one]
    sids = [one.report.id for one in results]  # type: ignore[union-attr]
    for i, sid in enumerate(sids):
        mine = [event for event, whose in events if whose == sid]
        # A program that cannot be found is announced to nobody: as with spawn.
        assert mine == (["failed"] if i % 5 == 3 else ["intent", "started", "exit"]), (i, mine)
    for name in ("intent", "started"):
        told = [sid for event, sid in events if event == name]
        assert told == [sid for i, sid in enumerate(sids) if i % 5 != 3], name
    assert all('"job":"all of them"' in line for line in records if '"ev":"spawn.intent"' in line)


@pytest.mark.threat("T-11")
def test_full_disk_stops_what_has_no_record(tmp_path: Path) -> None:
    """In the middle of the call the ledger takes no more: what was announced runs, the rest does not."""
    out = helpers.run_snippet(
        """
import resource
from safespawn import Command, audit
ledger = audit.open(where + "/ledger")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
unlimited = {resource.RLIMIT_FSIZE: resource.getrlimit(resource.RLIMIT_FSIZE)}
seen = []
def fill(event, args):
    if event == "safespawn.spawn.intent":
        seen.append(args[0])
        if len(seen) == 7:
            full = os.stat(where + "/ledger").st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
sys.addaudithook(fill)
commands = [Command(["/usr/bin/touch", f"{where}/{i}"], rlimits=unlimited) for i in range(12)]
results = safespawn.spawn_many(commands, at_once=4, return_errors=True)
out["kinds"] = [type(one).__name__ for one in results]
out["codes"] = [one.wait() for one in results if isinstance(one, safespawn.Process)]
out["guards"] = [one.guard for one in results if isinstance(one, OSError)]
out["reports"] = [one.report.outcome for one in results if isinstance(one, OSError)]
""",
        where=str(tmp_path),
    )
    assert out["kinds"] == ["Process"] * 6 + ["AuditError"] * 6
    assert out["codes"] == [0] * 6
    assert out["guards"] == ["intent-first"] * 6 and out["reports"] == ["refused"] * 6
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("raised", ["PermissionError", "RuntimeError"])
def test_hook_that_says_no(raised: str, tmp_path: Path) -> None:
    """An errno of a sys.audit hook is that command's; what is no answer to a command ends the call."""
    out = helpers.run_snippet(
        """
intents = []
def refuse(event, args):
    if event == "safespawn.spawn.intent":
        intents.append(args[0])
        if len(intents) == 3:
            raise getattr(__builtins__, raised)("no")
sys.addaudithook(refuse)
commands = [["/usr/bin/touch", f"{where}/{i}"] for i in range(6)]
try:
    results = safespawn.spawn_many(commands, at_once=2, return_errors=True)
    out["ended"] = False
except RuntimeError as problem:
    out["ended"], results = str(problem), problem.results
for one in results:
    if isinstance(one, safespawn.Process):
        one.wait()
out["kinds"] = [type(one).__name__ for one in results]
""",
        raised=raised,
        where=str(tmp_path),
    )
    ran = {int(path.name) for path in tmp_path.iterdir()}
    if raised == "PermissionError":
        assert out == {"ended": False, "kinds": ["Process"] * 2 + [raised] + ["Process"] * 3}
        assert ran == {0, 1, 3, 4, 5}
    else:
        assert out == {"ended": "no", "kinds": ["Process"] * 2 + ["NoneType"] * 4}
        assert ran == {0, 1}


# --------------------------------------------------------------------- deadlines


@pytest.mark.threat("T-03")
def test_each_has_its_own_deadline(tmp_path: Path) -> None:
    """Children that hang in execve are killed one by one, each when its time is over; the others run."""
    target = tmp_path / "interpreter"
    target.write_bytes(Path("/bin/true").read_bytes())
    target.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(f"#!{target}\n")
    script.chmod(0o755)
    out = helpers.run_snippet(
        """
import fcntl
from safespawn import Command
answer, answer_write = os.pipe()
stop, stop_write = os.pipe()
holder = os.fork()
if holder == 0:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(os.open(target, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
    os.write(answer_write, b".")
    os.close(stop_write)
    os.read(stop, 1)  # never gives the lease up by itself
    os._exit(0)
os.read(answer, 1)

def started(*hanging):
    deadlines = [hanging[0], None, hanging[1], 60, hanging[2], None]
    return safespawn.spawn_many(
        [Command([script] if one in hanging else ["/bin/true"], deadline=one) for one in deadlines], return_errors=True
    )

for short in (0.3, 0.6, 1.2):  # until it is not over, or almost, before a child comes to what hangs
    start = time.monotonic()
    results = started(8, short, 2 * short)
    took = time.monotonic() - start
    out["codes"] = [one.wait() if isinstance(one, safespawn.Process) else type(one).__name__ for one in results]
    late = [one for one in results if isinstance(one, OSError)]
    out["stages"] = [one.stage for one in late]
    windows, deadlines = [one.report.window_ns / 1e9 for one in late], [8, short, 2 * short]
    out["their own"] = all(window > deadline / 2 for window, deadline in zip(windows, deadlines))
    if out["stages"] == ["exec"] * 3 and out["their own"]:
        break
out["before the last"] = max(windows[1:]) < 7
out["in time"] = 8 <= took < 38
os.close(stop_write)
os.waitpid(holder, 0)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    out["children"] = 0
""",
        target=str(target),
        script=str(script),
    )
    assert out == {
        "codes": ["SpawnTimeout", 0, "SpawnTimeout", 0, "SpawnTimeout", 0],
        "stages": ["exec"] * 3,
        "their own": True,
        "before the last": True,
        "in time": True,
        "children": 0,
    }


def test_deadline_is_not_for_waiting_on_others() -> None:
    """A command whose turn comes late, because those before it take long to prepare, has its full time."""
    out = helpers.run_snippet(
        """
from types import SimpleNamespace
from safespawn import Command, _many
minutes, left, now, batch = [], [], time.monotonic_ns, _binding.spawn_batch
# For those that wait a minute goes by while each is prepared.
_many.time = SimpleNamespace(monotonic_ns=lambda: now() + len(minutes) * 60 * 10**9)
sys.addaudithook(lambda event, args: minutes.append(event) if event == "safespawn.spawn.intent" else None)
def looked(calls, *more):
    left.extend(round((call.raw.deadline_ns - now()) / 60e9) for call, slot in calls)
    return batch(calls, *more)
_binding.spawn_batch = looked
results = safespawn.spawn_many([Command(["/bin/true"], deadline=60)] * 6, at_once=6)
out["codes"], out["minutes left"] = [one.wait() for one in results], left
"""
    )
    assert out == {"codes": [0] * 6, "minutes left": [6, 5, 4, 3, 2, 1]}


def test_child_that_cannot_be_killed_keeps_its_stack(tmp_path: Path) -> None:
    """One sleeps in the kernel over a file system that is gone: the others run, and it is reaped later."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    where = tmp_path / "mount"
    where.mkdir()
    out = helpers.run_snippet(
        """
import ctypes, subprocess
from safespawn import Command, _child
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0  # CLONE_NEWNS: the mount is ours alone
assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
ready, ready_write = os.pipe()
daemon = subprocess.Popen([sys.executable, probe, where, "/bin/true", "read", str(ready_write)], pass_fds=[ready_write])
os.read(ready, 1)
deadline = 0.3
for turn in range(2):  # the second on other stacks than the first, or on top of what sleeps there
    while len(_child._abandoned) == turn and deadline < 10:  # again, if it was over before the child slept there
        commands = [["/bin/true"], Command([where + "/program"], deadline=deadline), ["/bin/sh", "-c", "exit 5"]]
        results = safespawn.spawn_many(commands, return_errors=True)
        out[f"codes {turn}"] = [results[0].wait(), type(results[1]).__name__, results[2].wait()]
        deadline *= 2
out["left"] = len(_child._abandoned)
daemon.kill()
daemon.wait()
for child in list(_child._abandoned):
    child.wait(60)
""",
        where=str(where),
        probe=str(helpers.PROBES / "hung_fuse.py"),
    )
    assert out == {"codes 0": [0, "SpawnTimeout", 5], "codes 1": [0, "SpawnTimeout", 5], "left": 2}
