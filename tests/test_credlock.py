"""The credential lock: every way to change, the lock's states, threads compared, arming, records.

The attacks by name are in test_exploits.py, the storm in test_storm.py.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

import credchanges
import helpers

SWITCH = helpers.SWITCH

#: A thread that does nothing, so that we are not alone.
COMPANY = """
import threading
leave = threading.Event()
company = threading.Thread(target=leave.wait, daemon=True)
company.start()
"""

#: For processes without the test core.
TOOLS = helpers.LOCK_TOOLS + """
from safespawn import _lock

def proof():
    return guards.status()["proofs"]["locked"]

def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()
    end = f"/proc/self/task/{thread.native_id}"
    until(lambda: not os.path.exists(end))
    return thread.native_id
"""

#: What a program prints of itself, in the words of /proc.
TELLING = """#!/bin/sh
echo good "$@"
exec /bin/grep -E "^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)" /proc/self/status
"""


@pytest.fixture(scope="session")
def foreign_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build a library of other people: a vfork child and a signal handler that change credentials."""
    where = tmp_path_factory.mktemp("foreign")
    source, library = where / "foreign.c", where / "foreign.so"
    source.write_text(
        """
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

volatile int entered, handled, outcome;

int change_in_vfork(void)
{
	int status = 0;
	pid_t pid = vfork();

	if (pid == 0) {
		prctl(PR_SET_KEEPCAPS, 1L, 0L, 0L, 0L);
		syscall(SYS_setuid, 0);
		setfsuid(0);
		_exit(setuid(0) ? 1 : 7);
	}
	waitpid(pid, &status, 0);
	return WEXITSTATUS(status);
}

/* What the memory of a vfork child shows, and whether it was ours. */
int shares_in_vfork(void)
{
	pid_t pid;

	outcome = 0;
	pid = vfork();
	if (pid == 0) {
		outcome = 1;
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	return outcome;
}

static void handler(int number)
{
	int error = errno;

	(void)number;
	entered = 1;
	outcome = seteuid(0);
	handled = 1;
	errno = error;
}

int handle(int number)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};

	return sigaction(number, &action, NULL);
}
"""
    )
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


# ------------------------------------------------------- every change waits


@pytest.mark.parametrize("guard", ["off", "on"])
@pytest.mark.parametrize("call", credchanges.CALLS)
@pytest.mark.threat("T-21")
def test_every_change_waits(in_hooks, program, guard, call):
    """Each way to change credentials waits for a child on our memory; unguarded each is an attack.

    Meanwhile no task of the process has anything less than the child. The epoch, which would
    stop the attack too, is switched off in both halves.
    """
    good = program(TELLING, "good")
    evil = program("#!/bin/sh\necho evil\n", "evil")
    out = in_hooks(
        helpers.PARKED
        + SWITCH
        + """
from safespawn import _lock
hooks.off |= lib.SS_OFF_EPOCH_AGREES
guards.arm(wait=30)
change = credchanges.CALLS[call]
change.prepare()
us = change.shown()
thread = parked_spawn([good, "argument"])
child = credchanges.child_of(thread.native_id)
intended = credchanges.told(child)
places = credchanges.copies(good.encode())

def attack():
    credchanges.rewrite(places, evil.encode())
    os.write(release, b".")

def make():
    out["before"] = change.shown()
    change.make()
    out["after"] = change.shown()
    if guard == "off" and not change.broadcast:
        attack()

changer = threading.Thread(target=make)
changer.start()
if guard == "on":
    until(changer_waits)
    out["others"] = [task for task in credchanges.all_told().values() if task != intended]
    out["child is the same"] = credchanges.told(child) == intended
    out["waiting"] = changer.is_alive() and "after" not in out
    os.write(release, b".")
elif change.broadcast:
    until(lambda: change.shown() != us)  # we are changed, and the changer still waits
    out["waiting"] = "after" not in out
    attack()
thread.join()
changer.join()
out["seen"] = [[seen.waited_ns > 0, seen.killed, seen.errno] for seen in _lock.fetch()]
out["lock"] = lock()
out["intended"] = {name: value for name, value in intended.items() if name[0].isupper()}
out.update(result)
""",
        guard=guard,
        name="CHANGES_WAIT",
        call=call,
        good=str(good),
        evil=str(evil),
    )
    change = credchanges.CALLS[call]
    assert (out["strategy"], out["proof"], out["lock"]) == ("vfork", "locked", [0, 0, False])
    assert (out["before"] != out["after"]) is (change.shown is not credchanges._nothing)
    assert out["seen"] == [[guard == "on", 0, 0]], "one change, and whether it waited"
    if guard == "off":
        assert out["output"] == "evil\n"
        assert out.get("waiting") is (True if change.broadcast else None)
        return
    assert out["others"] == [] and out["child is the same"] and out["waiting"]
    first, _, status = out["output"].partition("\n")
    assert first == "good argument"
    assert dict(credchanges._LINES.findall(status)) == out["intended"]


# ------------------------------------------------------------ states of the lock


def test_spawn_while_a_change_is_under_way(in_hooks):
    """A setuid that hangs in libc, on a thread that blocks its signal: spawns fork, at once, and say why."""
    out = in_hooks(
        helpers.PARKED
        + """
blocked, unblock = threading.Event(), threading.Event()
all_signals = b"\\xff" * 8

def deaf():
    import ctypes
    mask = ctypes.create_string_buffer(all_signals)
    credchanges.raw("rt_sigprocmask", 0, mask, None, 8)
    blocked.set()
    unblock.wait()
    credchanges.raw("rt_sigprocmask", 1, mask, None, 8)

thread = threading.Thread(target=deaf)
thread.start()
blocked.wait()
changer = threading.Thread(target=credchanges.by_libc, args=("seteuid", 0))
changer.start()
until(lambda: lock("changers"))
for _ in range(3):
    spawner(["/bin/echo", "here"], {})
out["lock"] = lock()
unblock.set()
thread.join()
changer.join()
out.update(result, reasons=sorted(set(reasons)), after=lock())
"""
    )
    assert out == {
        "lock": [0, 1, False],
        "output": "here\n",
        "strategy": "fork",
        "proof": None,
        "reasons": [
            "alone-or-apart: 3 threads, so a privilege could change in the window: "
            "a change of credentials is under way"
        ],
        "after": [0, 0, False],
    }


def test_spawn_while_a_change_waits(in_hooks):
    """A change that waits is not kept waiting by new children: they get memory of their own, at once."""
    out = in_hooks(
        helpers.PARKED
        + """
guards.arm(wait=30)
thread = parked_spawn(["/bin/true"])
changer = threading.Thread(target=credchanges.by_libc, args=("seteuid", 0))
changer.start()
until(changer_waits)
strategies = [safespawn.run(["/bin/true"]).report for _ in range(5)]
out["strategies"] = sorted({report.strategy for report in strategies})
out["under way"] = all("under way" in report.reasons[0] for report in strategies)
out["lock"] = lock()
os.write(release, b".")
thread.join()
changer.join()
out["first"], out["after"] = result["strategy"], lock()
"""
    )
    assert out == {
        "strategies": ["fork"],
        "under way": True,
        "lock": [1, 0, True],
        "first": "vfork",
        "after": [0, 0, False],
    }


@pytest.mark.parametrize("holder", ["spawner", "other changer", "changer itself"])
def test_fork_while_the_lock_is_held(in_hooks, holder):
    """A forked child starts with a free lock and a fresh epoch, can use it, and frees nothing of ours."""
    out = in_hooks(
        helpers.PARKED
        + """
told, tell = os.pipe()
hold, held = threading.Event(), threading.Event()

def bracket():
    with guards.credential_change():
        held.set()
        hold.wait()

def child():
    found = {"lock": lock(), "changes": lock("changes"), "epoch": lock("epoch")}
    found["alone"] = safespawn.run(["/bin/true"]).report.proof
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    found["together"] = safespawn.run(["/bin/true"]).report.proof
    os.seteuid(0)
    found["again"] = safespawn.run(["/bin/true"]).report.proof
    found["epoch moved"] = lock("epoch") - found.pop("epoch")
    return found

def fork():
    pid = os.fork()
    if pid == 0:
        try:
            found = child()
        except BaseException as problem:
            found = repr(problem)
        os.write(tell, json.dumps(found).encode())
        if holder != "changer itself":
            os._exit(0)
    return pid

if holder == "changer itself":
    threading.Thread(target=hold.wait, daemon=True).start()
    with guards.credential_change():
        before = lock(), lock("epoch")
        pid = fork()
        out["ours"] = before == (lock(), lock("epoch"))
    if pid == 0:  # it has left a bracket that was its parent's
        os.write(tell, b"|" + json.dumps([lock(), safespawn.run(["/bin/true"]).report.proof]).encode())
        os._exit(0)
    hold.set()
elif holder == "spawner":
    thread = parked_spawn(["/bin/true"])
    before = lock(), lock("epoch")
    pid = fork()
    out["ours"] = before == (lock(), lock("epoch"))
    os.write(release, b".")
    thread.join()
else:
    thread = threading.Thread(target=bracket)
    thread.start()
    held.wait()
    before = lock(), lock("epoch")
    pid = fork()
    out["ours"] = before == (lock(), lock("epoch"))
    hold.set()
    thread.join()
out["before"] = before[0]
out["code"] = os.waitpid(pid, 0)[1]
first, _, then = os.read(told, 65536).decode().partition("|")
out["child"], out["then"] = json.loads(first), json.loads(then or "null")
out["after"] = lock()
""",
        holder=holder,
    )
    assert out == {
        "before": [1, 0, False] if holder == "spawner" else [0, 1, False],
        "ours": True,
        "code": 0,
        "child": {
            "lock": [0, 0, False],
            "changes": 0,
            "alone": "single-threaded",
            "together": None,  # forked beside other threads: see test_lock_edges.py
            "again": None,
            "epoch moved": 2,
        },
        "then": [[0, 0, False], None] if holder == "changer itself" else None,
        "after": [0, 0, False],
    }


@pytest.mark.parametrize("holder", ["spawner", "changer"])
def test_vfork_child_of_others_does_not_touch_the_lock(in_hooks, foreign_library, holder):
    """A vfork child of other code calls what we wrap while the lock is held: no deadlock, nothing counted."""
    out = in_hooks(
        helpers.PARKED
        + """
import ctypes
foreign = ctypes.CDLL(library)
hold, held = threading.Event(), threading.Event()

def bracket():
    with guards.credential_change():
        held.set()
        hold.wait()

if holder == "spawner":
    thread = parked_spawn(["/bin/true"])
else:
    thread = threading.Thread(target=bracket)
    thread.start()
    held.wait()
before = _binding.lock_status()
out["code"] = foreign.change_in_vfork()
out["nothing changed"] = before == _binding.lock_status()
hold.set()
os.write(release, b".")
thread.join()
out["lock"] = lock()
""",
        holder=holder,
        library=foreign_library,
    )
    assert out == {"code": 7, "nothing changed": True, "lock": [0, 0, False]}


def test_signal_handler_changes_while_its_thread_waits(in_hooks, foreign_library):
    """A handler that calls seteuid runs in the thread that waits in the lock, and waits there too."""
    out = in_hooks(
        helpers.PARKED
        + """
import ctypes
guards.arm(wait=30)
foreign = ctypes.CDLL(library)
value = lambda name: ctypes.c_int.in_dll(foreign, name).value
foreign.handle(signal.SIGALRM)
thread = parked_spawn(["/bin/true"])
changer = threading.Thread(target=credchanges.by_libc, args=("setegid", 0))
changer.start()
until(changer_waits)
signal.pthread_kill(changer.ident, signal.SIGALRM)
until(lambda: value("entered"))
out["handled"] = value("handled")
os.write(release, b".")
thread.join()
changer.join()
out.update(result, after=value("handled"), answer=value("outcome"), changes=lock("changes"), lock=lock())
""",
        library=foreign_library,
    )
    assert out == {
        "handled": 0,
        "output": "",
        "strategy": "vfork",
        "proof": "locked",
        "after": 1,
        "answer": 0,
        "changes": 2,
        "lock": [0, 0, False],
    }


def test_brackets():
    """A bracket may be nested, left by an exception, or forgotten: nothing stays held."""
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
import gc
with guards.credential_change():
    with guards.credential_change():
        out["nested"] = lock()
        out["inside"] = safespawn.run(["/bin/true"]).report.strategy
    out["outer"] = lock()
out["after"] = lock()
try:
    with guards.credential_change():
        raise KeyError
except KeyError:
    out["left by an exception"] = lock()
begun = guards.credential_change()
begun.__enter__()
out["begun"] = lock()
del begun
gc.collect()
out["forgotten"] = lock()
never = guards.credential_change()
del never
out["never begun"], out["spawn"] = lock(), safespawn.run(["/bin/true"]).report.proof
out["seen"] = [seen.call for seen in _lock.fetch()]
"""
    )
    assert out == {
        "nested": [0, 2, False],
        "inside": "fork",
        "outer": [0, 1, False],
        "after": [0, 0, False],
        "left by an exception": [0, 0, False],
        "begun": [0, 1, False],
        "forgotten": [0, 0, False],
        "never begun": [0, 0, False],
        "spawn": "locked",
        "seen": [],
    }


def test_thread_that_ends_inside_a_change():
    """Who ends inside a change leaves spawns forking for good, and the reports say so."""
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
lost = _binding.ffi.new("struct ss_changing *")
in_thread(lambda: lib.ss_credential_change_begin(lost, _binding.CALL_RAW))
reports = [safespawn.run(["/bin/true"]).report for _ in range(3)]
out["strategies"] = [report.strategy for report in reports]
out["why"], out["lock"] = proof(), lock()
os.seteuid(0)
out["changes go on"] = lock()
lib.ss_credential_change_end(lost, 0)
out["mended"] = safespawn.run(["/bin/true"]).report.strategy
"""
    )
    assert out == {
        "strategies": ["fork"] * 3,
        "why": "a change of credentials is under way",
        "lock": [0, 1, False],
        "changes go on": [0, 1, False],
        "mended": "vfork",
    }


def test_more_spawners_than_places(in_hooks):
    """The 193rd spawn at the same time finds no place in the lock, and forks."""
    out = in_hooks(
        helpers.PARKED
        + """
safespawn.run(["/bin/true"])  # or the first two may look at the objects loaded since arming at once, and one forks
hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("close"), parked, go
strategies = []
threads = [
    threading.Thread(target=lambda: strategies.append(safespawn.run(["/bin/true"]).report.strategy))
    for _ in range(192)
]
for thread in threads:
    thread.start()
there = 0
while there < 192:
    assert select.select([ready], [], [], 30)[0], (there, strategies)
    there += len(os.read(ready, 192))
hooks.park_stage = 0
out["lock"] = lock()
out["more"] = [safespawn.run(["/bin/true"]).report.strategy for _ in range(3)]
os.write(release, b"." * 192)
for thread in threads:
    thread.join()
out["strategies"], out["after"] = sorted(set(strategies)), lock()
out["again"] = len(strategies)
"""
    )
    assert out == {
        "lock": [192, 0, False],
        "more": ["fork"] * 3,
        "strategies": ["vfork"],
        "again": 192,
        "after": [0, 0, False],
    }


def test_os_functions_wait_without_the_gil(in_hooks):
    """While os.seteuid and the like wait for a child, other Python threads run on."""
    out = in_hooks(
        helpers.PARKED
        + """
guards.arm(wait=30)
calls = {
    "setuid": (0,), "seteuid": (0,), "setreuid": (0, 0), "setresuid": (0, 0, 0), "setgid": (0,), "setegid": (0,),
    "setregid": (0, 0), "setresgid": (0, 0, 0), "setgroups": ([],), "initgroups": ("root", 0), "chroot": ("/",),
}
if hasattr(os, "unshare"):
    calls["unshare"] = (os.CLONE_NEWUTS,)
ticks, stop = 0, False

def tick():
    global ticks
    while not stop:
        ticks += 1

ticker = threading.Thread(target=tick)
ticker.start()
for name, arguments in calls.items():
    thread = parked_spawn(["/bin/true"])
    changer = threading.Thread(target=getattr(os, name), args=arguments)
    changer.start()
    until(changer_waits)
    before = ticks
    until(lambda: ticks > before + 1000)
    out[name] = changer_waits()
    os.write(release, b".")
    thread.join()
    changer.join()
    assert result == {"output": "", "strategy": "vfork", "proof": "locked"} or name == "unshare", (name, result)
stop = True
ticker.join()
"""
    )
    assert len(out) >= 11 and set(out.values()) == {True}


# ------------------------------------------------------- the bound of the wait


@pytest.mark.parametrize("call", ["prctl-keepcaps", "setgroups"])
@pytest.mark.threat("T-22")
def test_stalled_child_is_started_once_more(in_hooks, program, tmp_path, call):
    """A child that is killed for a change runs its program later, once, by fork; the change tells of it."""
    lines = tmp_path / "lines"
    script = program(f'#!/bin/sh\necho "$1" >> {lines}\n')
    out = in_hooks(
        helpers.PARKED
        + """
from safespawn import _lock
guards.arm(wait=0.05)
thread = parked_spawn([script, "once"])
start = time.monotonic()
credchanges.CALLS[call].make()
out["in time"] = time.monotonic() - start < 30
thread.join()
seen, = _lock.fetch()
out["seen"] = [seen.killed, seen.waited_ns >= 50_000_000]
out.update(result, why=any("waited too long" in reason for reason in reasons), lock=lock(), overlaps=lock("overlaps"))
""",
        script=str(script),
        call=call,
    )
    assert lines.read_text() == "once\n"
    assert out == {
        "in time": True,
        "seen": [1, True],
        "output": "",
        "strategy": "fork",
        "proof": None,
        "why": True,
        "lock": [0, 0, False],
        "overlaps": 0,
    }


@pytest.mark.threat("T-22")
def test_no_program_runs_twice_under_pressure(in_hooks, program, tmp_path):
    """300 children are killed, or not, at about the moment of their exec: each program runs exactly once.

    The environment is so large that execve takes about as long as one of the bounds lets a change wait.
    """
    lines = tmp_path / "lines"
    script = program(f'#!/bin/sh\necho "$1" >> {lines}\n')
    out = in_hooks(
        helpers.PARKED
        + """
import ctypes
stop = threading.Event()
prctl = credchanges.libc.prctl

def change():
    status = _binding.ffi.new("struct ss_lock_status *")
    while not stop.is_set():
        lib.ss_lock_status(status)
        if status.spawners:
            prctl(credchanges.PR_KEEPCAPS, ctypes.c_ulong(1), 0, 0, 0)
        time.sleep(0)

changer = threading.Thread(target=change)
changer.start()
counts = {}
for i in range(300):
    if i % 50 == 0:  # from far below what an execve takes to far above, on a slow machine too
        assert lib.ss_arm(0, (1_000, 50_000, 100_000, 400_000, 1_600_000, 10**11)[i // 50]) == 0
    env = {f"X{n}": "y" * 1000 for n in range(600 + i % 10 * 100)}
    try:
        done = safespawn.run([script, str(i)], env=env)
        kind = f"{done.report.strategy} {done.returncode}"
        if any("waited too long" in reason for reason in done.report.reasons):
            kind += " after a kill"
    except safespawn.RaceDetected:
        kind = "race"
        out.setdefault("races", []).append(i)
    counts[kind] = counts.get(kind, 0) + 1
stop.set()
changer.join()
out.update(counts=counts, lock=lock(), overlaps=lock("overlaps"))
""",
        script=str(script),
    )
    print(out["counts"])
    ran = sorted(int(line) for line in lines.read_text().split())
    assert ran == sorted(set(range(300)) - set(out.get("races", [])))
    assert set(out["counts"]) <= {"vfork 0", "fork 0", "fork 0 after a kill", "race"}
    assert out["counts"].get("fork 0 after a kill", 0) > 0 and out["counts"].get("vfork 0", 0) > 0
    assert (out["lock"], out["overlaps"]) == ([0, 0, False], 0)


#: For snippets that have ``where`` and ``probe``: a thread whose child is going to sleep in execve, past all signals.
HUNG = (
    helpers.PARKED
    + """
import subprocess
from safespawn import _lock
# The mount is ours alone, and goes with us.
assert credchanges.libc.unshare(credchanges.NEWNS) == 0
assert credchanges.libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
mounted, mount = os.pipe()
quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
daemon = subprocess.Popen(
    ["/usr/bin/python3", "-I", "-S", probe, where, "/bin/true", "read", str(mount)], pass_fds=(mount,), **quiet
)
thread = threading.Thread(target=spawner, args=([where + "/program"], {}))

def is_in_execve():
    return credchanges.sits_in(credchanges.child_of(thread.native_id), "execve")
"""
)


@pytest.mark.threat("T-22")
def test_child_that_cannot_be_killed(in_hooks, tmp_path):
    """A child asleep in the kernel with SIGKILL pending holds a change no longer than the grace."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    where = tmp_path / "mount"
    where.mkdir()
    out = in_hooks(
        HUNG
        + """
guards.arm(wait=0.1)
try:
    os.read(mounted, 1)
    thread.start()
    until(is_in_execve)
    out["before"] = lock()
    start = time.monotonic()
    credchanges.CALLS["prctl-keepcaps"].make()
    took = time.monotonic() - start
    out["thread waits"], out["lock"] = thread.is_alive(), lock()
    seen = list(_lock.fetch())[-1]
    out["seen"] = [seen.killed, seen.waited_ns >= 150_000_000]
    out["in time"] = took < 30
    out["next"] = guards.status()["proofs"]["locked"]
finally:
    daemon.kill()
    daemon.wait()
    thread.join()
out["then"] = lock()
out["ran"] = "output" in result
""",
        where=str(where),
        probe=str(helpers.PROBES / "hung_fuse.py"),
    )
    assert out == {
        "before": [1, 0, False],
        "thread waits": True,
        "lock": [0, 0, False],
        "seen": [1, True],
        "in time": True,
        "next": "holds",
        "then": [0, 0, False],
        "ran": False,
    }


@pytest.mark.threat("T-22")
def test_grace_counts_from_the_kill(in_hooks, tmp_path):
    """A change that has waited for long, and kills a child then, waits for the grace of that child."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    where = tmp_path / "mount"
    where.mkdir()
    out = in_hooks(
        HUNG
        + """
guards.arm(wait=0.01)
hooks.in_grace = 1
changer = threading.Thread(target=credchanges.CALLS["prctl-keepcaps"].make)
try:
    os.read(mounted, 1)
    thread.start()
    until(is_in_execve)
    changer.start()
    # Its second look comes after it has decided what the first was good for.
    until(lambda: hooks.late_looks > 1 or not changer.is_alive())
    out["waits"] = changer_waits()
finally:
    daemon.kill()
    daemon.wait()
    thread.join()
changer.join()
out["killed"] = [seen.killed for seen in _lock.fetch()][-1]
out["then"] = lock()
""",
        where=str(where),
        probe=str(helpers.PROBES / "hung_fuse.py"),
    )
    assert out == {"waits": True, "killed": 1, "then": [0, 0, False]}


# --------------------------------------------------------------------- the epoch


def test_epoch_moves_twice_for_each_change():
    """A change moves the epoch when it begins and when it ends, also one that fails; a look does not."""
    out = helpers.run_snippet(
        TOOLS
        + """
def moved(function, *arguments):
    before = lock("epoch")
    try:
        function(*arguments)
    except OSError:
        pass
    return lock("epoch") - before

libc = credchanges.libc
out["libc"] = moved(libc.seteuid, 0)
out["syscall"] = moved(credchanges.by_syscall, "setfsuid", 0)
out["fails"] = moved(credchanges.by_libc, "setns", -1, 0)
out["prctl that asks"] = moved(libc.prctl, credchanges.PR_GET_KEEPCAPS, 0, 0, 0, 0)
out["syscall that asks"] = moved(credchanges.by_libc, "syscall", 39)
out["unshare of nothing"] = moved(libc.unshare, 0)
out["spawn"] = moved(safespawn.run, ["/bin/true"])
out["status"] = moved(guards.status)
out["told"] = guards.status()["lock"]["epoch"] == lock("epoch")
"""
    )
    assert out == {
        "libc": 2,
        "syscall": 2,
        "fails": 2,
        "prctl that asks": 0,
        "syscall that asks": 0,
        "unshare of nothing": 0,
        "spawn": 0,
        "status": 0,
        "told": True,
    }


@pytest.mark.threat("T-23")
def test_change_beside_one_that_tells(in_hooks):
    """A change that finds another about to tell a child waits for that: the child runs in neither."""
    out = in_hooks(
        helpers.PARKED
        + """
telling, tells = os.pipe()
told, tell = os.pipe()
thread = parked_spawn(["/bin/true"], strategy="fork")
inside = []

def change(name):
    with guards.credential_change():
        inside.append(name)
        leave.wait()

leave = threading.Event()
hooks.tell_ready_fd, hooks.tell_go_fd = tells, told
first = threading.Thread(target=change, args=("first",))
first.start()
assert select.select([telling], [], [], 30)[0]
second = threading.Thread(target=change, args=("second",))
second.start()
until(lambda: inside or hooks.found_busy)
out["goes on untold"] = list(inside)
# Asleep: one that only yields keeps its processor from a teller of a lesser priority (sched(7)).
until(lambda: inside or open(f"/proc/self/task/{second.native_id}/stat").read().rpartition(") ")[2][0] == "S")
os.write(tell, b".")
until(lambda: len(inside) == 2)
os.write(release, b".")
leave.set()
for one in (first, second, thread):
    one.join()
out["lost"] = [reason for reason in reasons if "epoch" in reason]
out["lock"] = lock()
"""
    )
    assert out["goes on untold"] == []
    assert out["lost"], "the child was told"
    assert out["lock"] == [0, 0, False]


@pytest.mark.parametrize("company", [False, True])
@pytest.mark.parametrize("strategy", ["auto", "fork", "vfork"])
@pytest.mark.parametrize("tries", [0, 4])
@pytest.mark.threat("T-23")
def test_change_between_decision_and_clone(company, strategy, tries):
    """A change after the decision is noticed whatever way is taken, and looked at anew where that is allowed."""
    out = helpers.run_snippet(
        TOOLS
        + (COMPANY if company else "")
        + """
from safespawn import _spawn
_spawn.EPOCH_TRIES = tries
hits = []

def change(event, args):
    if event == "safespawn.spawn.intent" and not hits:
        hits.append(1)
        credchanges.libc.prctl(credchanges.PR_KEEPCAPS, 1, 0, 0, 0)
sys.addaudithook(change)
try:
    done = safespawn.run(["/bin/echo", "ran"], capture_output=True, strategy=strategy)
    out["ran"] = [done.stdout.decode(), done.report.strategy]
except safespawn.RaceDetected as problem:
    out["race"] = [problem.stage, problem.report.outcome]
except safespawn.UnsafeSpawn as problem:
    out["refused"] = problem.report.outcome
""",
        company=company,
        strategy=strategy,
        tries=tries,
    )
    # Beside others the lock itself refuses to share memory: nothing has been started then.
    asked_again = company and strategy != "fork"
    if strategy == "vfork" and (tries or asked_again):
        assert out == {"refused": "refused"}
    elif tries or asked_again:
        assert out == {"ran": ["ran\n", "fork"]}
    else:
        assert out == {"race": ["epoch", "race-detected"]}


@pytest.mark.parametrize("changes", [4, 5])
@pytest.mark.threat("T-23")
def test_spawn_gives_up_after_some_tries(in_hooks, changes):
    """A change under every child: after the first and four more the spawn is given up as a race."""
    out = in_hooks(
        helpers.PARKED
        + """
hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("close"), parked, go
thread = threading.Thread(target=spawner, args=(["/bin/echo", "ran"], {"strategy": "fork"}))
thread.start()
for i in range(changes):
    os.read(ready, 1)
    if i == 4 or i == changes - 1:
        hooks.park_stage = 0
    credchanges.libc.setgroups(1, credchanges._groups)
    os.write(release, b".")
thread.join()
out.update(result)
""",
        changes=changes,
    )
    if changes == 4:
        assert (out["output"], out["strategy"]) == ("ran\n", "fork")
    else:
        assert out == {"race": "epoch"}


# ------------------------------------------------------------- threads compared


@pytest.mark.parametrize("what", credchanges.RAW)
@pytest.mark.threat("T-25")
def test_one_thread_is_different(what):
    """A thread that made itself different is named, memory is not shared, and when it is gone it is again."""
    out = helpers.run_snippet(
        TOOLS
        + COMPANY.replace("leave =", "credchanges.inherit_chown()\nleave =")
        + """
different, end = threading.Event(), threading.Event()

def lesser():
    credchanges.RAW[what]()
    different.set()
    end.wait()

thread = threading.Thread(target=lesser)
thread.start()
different.wait()
out["named"] = proof() == f"thread {thread.native_id} has other credentials than the rest"
out["why"] = proof()
report = safespawn.run(["/bin/true"]).report
out["strategy"], out["told"] = report.strategy, str(thread.native_id) in report.reasons[0]
end.set()
thread.join()
until(lambda: not os.path.exists(f"/proc/self/task/{thread.native_id}"))
out["then"] = safespawn.run(["/bin/true"]).report.proof
""",
        what=what,
    )
    why = out.pop("why")
    assert out == {"named": True, "strategy": "fork", "told": True, "then": "locked"}, why


@pytest.mark.threat("T-25")
def test_the_first_thread_is_different():
    """When it is the main thread that differs, the other one is named: what counts is that they differ."""
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
credchanges.raw("setfsuid", 65534)
out["why"] = proof() == f"thread {company.native_id} has other credentials than the rest"
credchanges.raw("setfsuid", 0)
out["then"] = proof()
"""
    )
    assert out == {"why": True, "then": "holds"}


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.threat("T-25")
def test_comparison_is_made_once_for_each_change(alike):
    """All threads alike is known until the next change; that they differ is looked at every time."""
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
begin, done, end = threading.Event(), threading.Event(), threading.Event()

def lesser():
    begin.wait()
    credchanges.raw("setfsuid", 65534)  # past the lock: nobody can know
    done.set()
    end.wait()
    credchanges.raw("setfsuid", 0)

thread = threading.Thread(target=lesser)
thread.start()
if alike:
    out["first"] = proof()
begin.set()
done.wait()
out["second"] = proof() == "holds"
with guards.credential_change():
    out["inside"] = proof()
out["bracketed"] = proof() == "holds"
end.set()
thread.join()
out["alike again"] = proof()
""",
        alike=alike,
    )
    assert out == ({"first": "holds"} if alike else {}) | {
        "second": alike,
        "inside": "a change of credentials is under way",
        "bracketed": False,
        "alike again": "holds",
    }


@pytest.mark.parametrize("call", [name for name, call in credchanges.CALLS.items() if call.stains])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.threat("T-25")
def test_change_that_no_comparison_shows(call, alone):
    """What /proc does not show of a thread rules shared memory out for good, unless it was made alone."""
    out = helpers.run_snippet(
        TOOLS
        + """
change = credchanges.CALLS[call]
change.prepare()
if alone:
    change.make()
"""
        + COMPANY
        + """
if not alone:
    out["before"] = proof()
    in_thread(change.make)
seen, = _lock.fetch()
out["call"] = seen.call
out["why"] = proof()
out["strategy"] = safespawn.run(["/bin/true"]).report.strategy
""",
        call=call,
        alone=alone,
    )
    name = call.removeprefix("syscall-").partition("-")[0].replace("landlock", "landlock_restrict_self")
    if alone:
        assert out == {"call": name, "why": "holds", "strategy": "vfork"}
    else:
        assert out == {
            "call": name,
            "before": "holds",
            "why": f"a thread called {name} for itself, which nothing shows",
            "strategy": "fork",
        }


def test_change_that_fails_or_is_made_by_all_leaves_no_stain():
    """A filter for all threads, and a call that the kernel refuses, are nothing to worry about."""
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
refused = []
for call, arguments in [
    ("seccomp", (1, 0, None)),
    ("landlock_restrict_self", (-1, 0)),
    ("prctl", (credchanges.PR_SECUREBITS, 1 << 30)),
    ("keyctl", (credchanges.JOIN_SESSION, 1)),
]:
    try:
        credchanges.by_syscall(call, *arguments)
    except OSError as problem:
        refused.append(problem.errno)
out["refused"], out["then"] = len(refused), proof()
in_thread(credchanges.CALLS["syscall-seccomp-tsync"].make)
out["by all"] = proof()
out["asks"] = credchanges.by_syscall("keyctl", 0, -3, 0) > 0
out["strategy"] = safespawn.run(["/bin/true"]).report.strategy
"""
    )
    assert out == {"refused": 4, "then": "holds", "by all": "holds", "asks": True, "strategy": "vfork"}


# ------------------------------------------------------------------------ arming


def test_not_armed(monkeypatch):
    """With SAFESPAWN_ARM=0 nothing is rewritten, nothing waits, and spawns beside threads fork."""
    monkeypatch.setenv("SAFESPAWN_ARM", "0")
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
status = guards.status()["lock"]
out["status"] = [status[name] for name in ("state", "exports", "patched", "covered", "epoch", "changes")]
out["told"] = "guards.arm()" in status["why"]
out["patched"] = hasattr(os.setuid, "__wrapped__")
report = safespawn.run(["/bin/true"]).report
out["strategy"], out["why"] = report.strategy, "not armed" in report.reasons[0]
with guards.credential_change():
    os.seteuid(0)
out["seen"] = list(_lock.fetch())
"""
    )
    assert out == {
        "status": ["off", 0, 0, [], 0, 0],
        "told": True,
        "patched": False,
        "strategy": "fork",
        "why": True,
        "seen": [],
    }


def test_armed_later_alone(monkeypatch):
    """Armed later by a process with one thread: the proof holds at once for threads that come after."""
    monkeypatch.setenv("SAFESPAWN_ARM", "0")
    out = helpers.run_snippet(
        TOOLS
        + """
status = guards.arm()
out["state"], out["problems"] = status["state"], status["problems"]
out["patched"] = hasattr(os.setuid, "__wrapped__")
"""
        + COMPANY
        + """
out["proof"] = safespawn.run(["/bin/true"]).report.proof
"""
    )
    assert out == {"state": "armed", "problems": [], "patched": True, "proof": "locked"}


def test_armed_later_beside_others(monkeypatch):
    """Armed beside other threads it holds only after a while: one may just be binding a call."""
    monkeypatch.setenv("SAFESPAWN_ARM", "0")
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
start = time.monotonic()
state = guards.arm()["state"]
first, looked = safespawn.run(["/bin/true"]).report, time.monotonic() - start
out["state"] = state
# A machine that stood still for so long has seen it settle already.
out["first"] = looked > 0.1 or "armed a moment ago" in first.reasons[0]
until(lambda: proof() == "holds")
out["not before"] = time.monotonic() - start >= 0.1
out["then"] = safespawn.run(["/bin/true"]).report.proof
"""
    )
    assert out == {"state": "armed", "first": True, "not before": True, "then": "locked"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOEXEC])
def test_arming_that_fails(in_hooks, monkeypatch, number):
    """What cannot be armed says so with its reason, leaves Python's functions alone, and spawns fork."""
    monkeypatch.setenv("SAFESPAWN_ARM", "0")
    out = in_hooks(
        TOOLS
        + COMPANY
        + """
hooks.arm_error = number
status = guards.arm()
out["status"] = [status["state"], status["errno"], os.strerror(number) in status["why"], status["covered"]]
out["patched"] = hasattr(os.setuid, "__wrapped__")
report = safespawn.run(["/bin/true"]).report
out["strategy"], out["why"] = report.strategy, report.reasons[0].rpartition(": ")[2] == os.strerror(number)
hooks.arm_error = 0
out["then"] = guards.arm()["state"]
until(lambda: proof() == "holds")
out["patched then"] = hasattr(os.setuid, "__wrapped__")
""",
        number=number,
    )
    assert out == {
        "status": ["unlockable", number, True, []],
        "patched": False,
        "strategy": "fork",
        "why": True,
        "then": "armed",
        "patched then": True,
    }


@pytest.mark.parametrize("wait", [0, -1, 0.0009, 60.1, float("nan"), float("inf"), "1", True, b"1"])
def test_arguments_of_arm(wait):
    """A wait that is no number of seconds in range is refused, and told in the message; nothing changes."""
    from safespawn import guards

    before = guards.status()["lock"]["wait"]
    expected = ValueError if type(wait) in (int, float) else TypeError
    with pytest.raises(expected) as caught:
        guards.arm(wait=wait)
    assert repr(wait) in str(caught.value)
    assert guards.status()["lock"]["wait"] == before
    with pytest.raises(TypeError):
        guards.arm(0.1)


def test_arming_again():
    """Arming twice rewrites nothing twice, keeps epoch and changes, and takes the new wait."""
    out = helpers.run_snippet(
        TOOLS
        + """
os.seteuid(0)
names = ("state", "exports", "objects", "slots", "patched", "captured", "covered", "epoch", "changes")
first = guards.arm()
again = [guards.arm(wait=wait) for wait in (0.2, 60, 0.001)]
out["same"] = [name for name in names if any(status[name] != first[name] for status in again)]
out["waits"] = [status["wait"] for status in again]
out["once"] = not hasattr(os.setuid.__wrapped__, "__wrapped__")
before = lock("changes")
os.setuid(0)
out["changes"] = lock("changes") - before
"""
    )
    assert out == {"same": [], "waits": [0.2, 60.0, 0.001], "once": True, "changes": 1}


# ----------------------------------------------------------- other people's vfork


def test_foreign_child_is_killed_at_the_bound(in_hooks, tmp_path):
    """A child of posix_spawn that does not get to its exec is killed for a change, past the bound."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    out = in_hooks(
        helpers.PARKED
        + """
import ctypes
from safespawn import _lock
guards.arm(wait=0.1, guard_foreign=True)
libc = credchanges.libc
actions = credchanges.opening(fifo)
pid = ctypes.c_int()

def foreign():
    argv = (ctypes.c_char_p * 2)(b"/bin/true", None)
    out["error"] = libc.posix_spawn(ctypes.byref(pid), b"/bin/true", actions, None, argv, None)

thread = threading.Thread(target=foreign)
thread.start()
until(lambda: credchanges.child_of(thread.native_id))
credchanges.CALLS["prctl-keepcaps"].make()
thread.join()
out["code"] = os.waitstatus_to_exitcode(os.waitpid(pid.value, 0)[1])
seen, = _lock.fetch()
out["seen"] = [seen.killed, seen.waited_ns >= 100_000_000]
out["lock"], out["overlaps"] = lock(), lock("overlaps")
""",
        fifo=str(fifo),
    )
    assert out == {"error": 0, "code": -9, "seen": [1, True], "lock": [0, 0, False], "overlaps": 0}


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.threat("T-27")
def test_foreign_vfork_becomes_fork(foreign_library, guarded):
    """vfork called by others shares memory only while we are alone, if that is asked for."""
    out = helpers.run_snippet(
        TOOLS
        + """
import ctypes
guards.arm(guard_foreign=guarded)
foreign = ctypes.CDLL(library)
out["alone"] = foreign.shares_in_vfork()
"""
        + COMPANY
        + """
out["together"] = foreign.shares_in_vfork()
out["covered"] = "vfork" in guards.status()["lock"]["covered"]
out["spawn"] = safespawn.run(["/bin/true"]).report.strategy
""",
        guarded=guarded,
        library=foreign_library,
    )
    assert out == {"alone": 1, "together": int(not guarded), "covered": guarded, "spawn": "vfork"}


def test_foreign_spawn_where_the_lock_cannot_be_had():
    """posix_spawn of others answers EAGAIN, and starts nothing, where threads differ; alone it always works."""
    out = helpers.run_snippet(
        TOOLS
        + """
import ctypes
guards.arm(guard_foreign=True)
libc = credchanges.libc

def spawn():
    pid, argv = ctypes.c_int(), (ctypes.c_char_p * 2)(b"/bin/true", None)
    error = libc.posix_spawn(ctypes.byref(pid), b"/bin/true", None, None, argv, None)
    return error or os.waitstatus_to_exitcode(os.waitpid(pid.value, 0)[1])

out["alone"] = spawn()
"""
        + COMPANY
        + """
out["alike"] = spawn()
credchanges.raw("setfsuid", 65534)
with guards.credential_change():
    pass
out["different"] = spawn()
credchanges.raw("setfsuid", 0)
out["alike again"] = spawn()
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
out["mask"] = sorted(mask)
"""
    )
    assert out == {"alone": 0, "alike": 0, "different": errno.EAGAIN, "alike again": 0, "mask": []}


# ------------------------------------------------------------------- the records


def changes_in(ledger: Path) -> list[dict[str, object]]:
    """Return what the cred.change records of a ledger tell."""
    return [record["change"] for record in helpers.records(ledger) if record["ev"] == "cred.change"]


def test_every_change_leaves_one_record(tmp_path):
    """Call, way, arguments, thread, outcome, credentials before and after: one record each, in order."""
    ledger = tmp_path / "ledger"
    out = helpers.run_snippet(
        TOOLS
        + """
from safespawn import audit
with audit.open(ledger):
    os.setegid(65534)
    os.setegid(0)
    tid = in_thread(credchanges.by_syscall, "setfsgid", 7)
    try:
        credchanges.by_libc("setns", -1, credchanges.UTS)
    except OSError as problem:
        out["raised"] = problem.errno
    with guards.credential_change():
        credchanges.raw("setresgid", 5, 5, 5)
    safespawn.run(["/bin/true"])
out["tids"] = [os.getpid(), tid]
""",
        ledger=str(ledger),
    )
    us, other = out["tids"]
    found = changes_in(ledger)
    told = [[c["call"], c["through"], c["args"], c["tid"], c["errno"], c["name"]] for c in found]
    assert told == [
        ["setegid", "libc", [65534], us, 0, ""],
        ["setegid", "libc", [0], us, 0, ""],
        ["setfsgid", "syscall", [7], other, 0, ""],
        ["setns", "libc", [2**64 - 1, credchanges.UTS], us, out["raised"], errno.errorcode[out["raised"]]],
        ["credential_change", "bracket", [], us, 0, ""],
    ]
    assert [(c["before"]["gids"], c["after"]["gids"]) for c in found] == [
        ([0, 0, 0, 0], [0, 65534, 0, 65534]),
        ([0, 65534, 0, 65534], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 7]),  # the last is what setfsgid sets
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [5, 5, 5, 5]),
    ]
    times = [c["at_ns"] for c in found]
    assert times == sorted(times)
    assert all(c["waited_ns"] == 0 and c["killed"] == 0 for c in found)
    assert [record["ev"] for record in helpers.records(ledger)].count("cred.change") == 5


def test_changes_that_nobody_fetched_are_counted(tmp_path):
    """More changes than the ring holds: the last 128 have a record, one record counts the others."""
    ledger = tmp_path / "ledger"
    helpers.run_snippet(
        TOOLS
        + """
from safespawn import audit
with audit.open(ledger):
    for i in range(200):
        credchanges.libc.setfsgid(i)
    safespawn.run(["/bin/true"])
""",
        ledger=str(ledger),
    )
    found = changes_in(ledger)
    assert found[0] == {"lost": 72}
    assert [change["args"] for change in found[1:129]] == [[i] for i in range(72, 200)]
    assert len(found) == 129


def test_last_changes_are_recorded_at_exit(tmp_path):
    """A change after the last spawn is in the ledger of a process that ends in the usual way."""
    ledger = tmp_path / "ledger"
    helpers.run_snippet(
        TOOLS
        + """
from safespawn import audit
audit.open(ledger)
credchanges.libc.setfsgid(9)
""",
        ledger=str(ledger),
    )
    assert [change["args"] for change in changes_in(ledger)] == [[9]]


def test_forked_child_does_not_repeat(tmp_path):
    """A forked child records its own changes, not those of its parent that were not recorded yet."""
    ledger = tmp_path / "ledger"
    out = helpers.run_snippet(
        TOOLS
        + """
from safespawn import audit
with audit.open(ledger):
    for i in (1, 2, 3):
        credchanges.libc.setfsgid(i)
    pid = os.fork()
    if pid == 0:
        os.setegid(4)
        safespawn.run(["/bin/true"])
        os._exit(0)
    os.waitpid(pid, 0)
    safespawn.run(["/bin/true"])
out["pids"] = [os.getpid(), pid]
""",
        ledger=str(ledger),
    )
    us, child = out["pids"]
    told = sorted([c["tid"], c["call"], c["args"]] for c in changes_in(ledger))
    assert told == sorted([[us, "setfsgid", [i]] for i in (1, 2, 3)] + [[child, "setegid", [4]]])


@pytest.mark.parametrize("by", ["libc", "os"])
@pytest.mark.parametrize("killed", [False, True])
def test_record_tells_what_a_change_cost(in_hooks, tmp_path, by, killed):
    """How long a change waited, and how many children were killed for it, is in its record."""
    ledger = tmp_path / "ledger"
    out = in_hooks(
        helpers.PARKED
        + """
from safespawn import audit
guards.arm(wait=0.1 if killed else 30)
with audit.open(ledger):
    thread = parked_spawn(["/bin/true"])
    change = os.setegid if by == "os" else credchanges.libc.setegid
    changer = threading.Thread(target=change, args=(0,))
    changer.start()
    if not killed:
        until(changer_waits)
        os.write(release, b".")
    changer.join()
    thread.join()
    safespawn.run(["/bin/true"])
out.update(result, reasons=reasons)
""",
        ledger=str(ledger),
        by=by,
        killed=killed,
    )
    change, = changes_in(ledger)
    assert (change["call"], change["killed"]) == ("setegid", int(killed))
    assert change["waited_ns"] >= (100_000_000 if killed else 1)
    started = next(record for record in helpers.records(ledger) if record["ev"] == "spawn.started")
    assert out["strategy"] == ("fork" if killed else "vfork")
    assert ("waited too long" in json_text(started)) is killed


def json_text(record: dict[str, object]) -> str:
    """Return a record as one line."""
    return json.dumps(record)


def test_refusal_and_fallback_carry_their_reason(tmp_path):
    """A spawn that forks or is refused because of the lock says in its record what was in the way."""
    ledger = tmp_path / "ledger"
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
from safespawn import audit
with audit.open(ledger):
    with guards.credential_change():
        safespawn.run(["/bin/true"])
        for options in ({"strategy": "vfork"}, {"on_unproven": "refuse"}):
            try:
                safespawn.run(["/bin/true"], **options)
            except safespawn.UnsafeSpawn as problem:
                out.setdefault("refused", []).append([problem.guard, str(problem)])
""",
        ledger=str(ledger),
    )
    why = "2 threads, so a privilege could change in the window: a change of credentials is under way"
    assert out["refused"] == [["alone-or-apart", f"[Errno 1] alone-or-apart: {why}"]] * 2
    by_event = {}
    for record in helpers.records(ledger):
        by_event.setdefault(record["ev"], []).append(json_text(record))
    assert len(by_event["spawn.denied"]) == 2
    assert all(why in text for text in by_event["spawn.denied"])
    assert why in by_event["spawn.intent"][0]


@pytest.mark.threat("T-22")
def test_change_by_a_thread_that_may_not_kill_the_child(in_hooks):
    """Who has fewer privileges than the child already is not kept waiting for it: that would protect nothing."""
    out = in_hooks(
        helpers.PARKED
        + """
guards.arm(wait=0.1)
begin = threading.Event()

def lesser():
    begin.wait()
    credchanges.raw("setresuid", 65534, 65534, 65534)  # past the lock, after the threads were compared
    credchanges.CALLS["prctl-keepcaps"].make()

changer = threading.Thread(target=lesser)
changer.start()
thread = parked_spawn(["/bin/echo", "ran"])
begin.set()
changer.join(40)
out["waits"], out["overlaps"] = changer.is_alive(), lock("overlaps")
os.write(release, b".")
thread.join()
changer.join()
out.update(result, lock=lock())
"""
    )
    assert out.pop("proof", None) is None or out["strategy"] == "vfork"
    assert (out["waits"], out["overlaps"], out["lock"]) == (False, 1, [0, 0, False])


def test_trial_that_is_killed_says_nothing(in_hooks):
    """The child that tries whether memory is shared is killed, as for a change: it is tried again later."""
    out = in_hooks(
        COMPANY
        + """
from safespawn import _probe
hooks.signal_stage, hooks.signal = stage("prepare"), signal.SIGKILL
out["tried"] = _probe._memory_shared(lib.SS_REQUIRE_LOCK, _probe.look())
hooks.signal_stage = 0
out["then"] = safespawn.run(["/bin/true"]).report.strategy
"""
    )
    assert out == {"tried": None, "then": "vfork"}
