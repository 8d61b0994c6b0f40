"""Under pressure: signals, threads, ten thousand spawns. Nothing leaks, nothing runs in a child."""

from __future__ import annotations

import os

import pytest

import helpers

#: As many as the issue asks for; each is a real process.
SPAWNS = 10_000

STORM = """
BURST = 8
signals = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGURG, signal.SIGCONT, signal.SIGRTMIN, signal.SIGRTMAX]
counted = dict.fromkeys(signals, 0)
foreign = 0
us = os.getpid()

def handler(number, frame):
    global foreign
    counted[number] += 1
    if os.getpid() != us:
        foreign += 1

for number in signals:
    signal.signal(number, handler)
# What the C part of a handler does in a child, it does in our memory: it writes to this pipe
# and sets a flag. Each signal that we get is in the pipe exactly once, by the sender's count.
wake, wake_write = os.pipe()
os.set_blocking(wake_write, False)
signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
stop, stop_write = os.pipe()
storm = os.fork()
if storm == 0:
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    os.close(stop_write)
    sent = 0
    while os.read(stop, 1):
        # A spawn begins: each goes to the whole process group, to our parent and to any
        # child that has just been born. Enough of them to last through the window.
        for _ in range(BURST):
            os.killpg(0, signals[sent % len(signals)])
            os.sched_yield()
            sent += 1
    os._exit(0)
outcomes = {}
for i in range(count):
    os.write(stop_write, b".")
    try:
        code = safespawn.run([program], strategy=strategy).returncode
    except safespawn.KilledBeforeExec:
        code = "killed before exec"
    outcomes[str(code)] = outcomes.get(str(code), 0) + 1
os.close(stop_write)
os.waitpid(storm, 0)
out["outcomes"] = outcomes
out["handled"] = sum(counted.values())
out["foreign"] = foreign
"""


@pytest.mark.slow
@pytest.mark.threat("T-01")
@pytest.mark.parametrize(
    ("strategy", "count"),
    [("vfork", 2000), ("fork", 500), pytest.param("vfork", SPAWNS - 2000, marks=pytest.mark.long),
     pytest.param("fork", 2000, marks=pytest.mark.long)],
)  # fmt: skip
def test_no_handler_runs_in_a_child_under_a_storm(tmp_path, strategy, count):
    """Signals to the whole group during 2,500 spawns, 10,000 in the long form: every handler runs in the parent.

    A child that is hit dies of the signal's default action, before or after its exec, and is
    reported as that; it never runs a handler. Without the guard the attack pair of T-01 shows
    the handler in the child at the first try.
    """
    out = helpers.run_snippet(
        "os.setpgid(0, 0)\n" + STORM, timeout=600, program="/bin/true", strategy=strategy, count=count
    )
    assert out["foreign"] == 0
    assert out["handled"] > 100, "there was a storm"
    assert sum(out["outcomes"].values()) == count
    deadly = {"-10", "-12", "-34", "-64", "killed before exec", "0"}
    assert set(out["outcomes"]) <= deadly, out["outcomes"]


THREADS = """
import threading, gc
def fds():
    return len(os.listdir("/proc/self/fd"))
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
def zombies():
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    return len(children)
failures = []
def worker(rounds):
    for i in range(rounds):
        try:
            if i % 16 == 7:
                try:
                    safespawn.run(["/no/such/program"])
                except FileNotFoundError:
                    continue
            if i % 16 == 11:
                done = safespawn.run(["/bin/cat"], input=b"x" * 100, capture_output=True)
                assert done.stdout == b"x" * 100
                continue
            code = safespawn.run([program], **more).returncode
            assert code == 0, code
        except BaseException as problem:
            failures.append(repr(problem))
            return
def crowd(rounds):
    threads = [threading.Thread(target=worker, args=(rounds,)) for _ in range(32)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
crowd(20)  # warm: imports, arenas, caches
gc.collect()
before = fds(), zombies()
memory = resident()
crowd(rounds)
gc.collect()
out["flat"] = (fds(), zombies()) == before
out["grown MiB"] = (resident() - memory) / 2**20
out["failures"] = failures[:3]
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"deadline": 60}], ids=["plain", "deadline"])
def test_spawns_from_32_threads_leave_nothing(more):
    """10,000 spawns from 32 threads, failures among them: descriptors, zombies and memory are flat."""
    rounds = SPAWNS // 32 + 1 if not more else 32
    out = helpers.run_snippet(THREADS, timeout=600, program="/bin/true", rounds=rounds, more=more)
    assert out["failures"] == []
    assert out["flat"]
    assert out["grown MiB"] < 8, "32 threads of stacks and allocator arenas may move it a little"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vfork", "launcher", "fork", "helper"])
def test_one_thread_leaves_nothing(strategy):
    """A thousand spawns of every kind from one thread: descriptors, mappings and memory are flat."""
    out = helpers.run_snippet(
        """
import gc
def state():
    gc.collect()
    return [len(os.listdir("/proc/self/fd")), len(open("/proc/self/maps").readlines())]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
def one(i):
    kind = i % 8
    if kind == 0:
        safespawn.run(["/bin/true"], strategy=strategy, deadline=60)
    elif kind == 1:
        safespawn.run(["/bin/true"], strategy=strategy, pin=True)
    elif kind == 2:
        safespawn.run(["/bin/true", "x" * 100_000], strategy=strategy, env={"BIG": "y" * 100_000})
    elif kind == 3:
        safespawn.run(["/bin/cat"], strategy=strategy, input=b"z" * 100_000, capture_output=True)
    elif kind == 4:
        try:
            safespawn.run(["/etc/passwd"], strategy=strategy)
        except PermissionError:
            pass
    elif kind == 5:
        try:
            safespawn.run(["/bin/true"], strategy=strategy, cwd="/", process_group=1)
        except OSError as problem:
            assert problem.stage == "process-group", problem.stage
    elif kind == 6:
        with safespawn.spawn(["/bin/cat"], strategy=strategy, stdin=safespawn.PIPE) as process:
            process.kill_tree()
    else:
        safespawn.run(["/bin/true"], strategy=strategy, path_policy="trusted", fds={9: 1, 8: 2})
for i in range(80):
    one(i)
before, memory = state(), resident()
for i in range(1000):
    one(i)
out["before"], out["after"] = before, state()
out["grown MiB"] = (resident() - memory) / 2**20
""",
        timeout=600,
        strategy=strategy,
    )
    (fds, maps), (fds_after, maps_after) = out["before"], out["after"]
    assert fds_after == fds
    # The interpreter's own arenas come and go; one mapping lost in a hundred spawns would be ten.
    assert maps_after <= maps + 3
    assert out["grown MiB"] < 2


#: Seconds of the storm on the credential lock; ten times as many when somebody asks.
STORM_SECONDS = float(os.environ.get("SAFESPAWN_STORM_SECONDS", "6"))
#: What a changer may wait beyond bound and grace until it has a processor, on a busy machine.
SCHEDULING_NS = 30_000_000_000

LOCK_STORM = """
import credchanges, ctypes, faulthandler, random, threading
from safespawn import _lock, guards
faulthandler.dump_traceback_later(seconds + 120, exit=True)  # a deadlock shows where
guards.arm(wait=wait)
if not guarded:
    hooks.off |= lib.SS_OFF_CHANGES_WAIT
libc = credchanges.libc
stop, failures = threading.Event(), []
spawned, races, ran = {}, 0, 0
calls = {"prctl": 0, "setgroups": 0, "seteuid": 0, "setfsuid": 0}
loaded = 0
counting = threading.Lock()

def runs(function):
    def loop():
        try:
            # Not as fast as can be, or no spawn would ever find the lock free.
            pace = random.Random(function.__name__)
            while not stop.wait(pace.random() / 100):
                function()
        except BaseException as problem:
            failures.append(repr(problem))
    return loop

def spawn():
    global races, ran
    while not stop.is_set():
        try:
            done = safespawn.run(["/usr/bin/id", "-u"], capture_output=True)
        except safespawn.RaceDetected as problem:
            with counting:
                races += 1
            assert problem.report.outcome == "race-detected"
            continue
        report = done.report
        with counting:
            ran += 1
            kind = f"{report.strategy} {report.proof}"
            spawned[kind] = spawned.get(kind, 0) + 1
        # The program has the ids that the report says: of the effective ones id tells.
        assert done.returncode == 0, done.returncode
        assert int(done.stdout) == report.credentials.euid, (done.stdout, report)

def keepcaps():
    calls["prctl"] += 1
    credchanges.by_libc("prctl", credchanges.PR_KEEPCAPS, ctypes.c_ulong(calls["prctl"] % 2), 0, 0, 0)

def same_groups():
    calls["setgroups"] += 1
    libc.setgroups(0, None)  # refused while the process is another user

def toggle():
    for uid in (65534, 0):
        calls["seteuid"] += 1
        os.seteuid(uid)

def file_system_user():
    for uid in (65534, 0):
        calls["setfsuid"] += 1
        libc.setfsuid(uid)

def load():
    global loaded
    import _ctypes
    _ctypes.dlclose(_ctypes.dlopen("libcap.so.2", os.RTLD_NOW))  # it is bound to capset and prctl
    loaded += 1

os.setgroups([])
before = _binding.lock_status()["changes"]
loops = [spawn] * 4 + [keepcaps, same_groups, toggle, file_system_user, load]
threads = [threading.Thread(target=runs(loop)) for loop in loops]
for thread in threads:
    thread.start()
time.sleep(seconds)
stop.set()
for thread in threads:
    thread.join()
status = _binding.lock_status()
out.update(
    failures=failures[:3],
    spawned=spawned,
    ran=ran,
    races=races,
    calls=calls,
    loaded=loaded,
    seen=_binding.lock_status()["changes"] - before,
    both=hooks.both_in,
    entered=hooks.spawns_in,
    overlaps=status["overlaps"],
    longest_ms=hooks.longest_wait_ns / 1e6,
    state=[status["spawners"], status["changers"], status["changer_waits"], hooks.spawners_in, hooks.changers_in],
    uids=sorted({task["Uid"] for task in credchanges.all_told().values()}),
    then=safespawn.run(["/bin/true"]).report.strategy,
)
"""


@pytest.mark.slow
@pytest.mark.threat("T-21")
@pytest.mark.threat("T-22")
@pytest.mark.parametrize("wait", [0.1, 0.001])
def test_credentials_change_under_a_storm_of_spawns(hooks_path, wait):
    """Four threads spawn, four change credentials, one loads libraries: the lock never lets both in.

    No deadlock, no change lost, every program has the ids that its report says. With the guard
    off the same storm has a change beside a child on our memory some hundred times in 3 seconds:
    see the next test.
    """
    out = helpers.run_snippet(
        LOCK_STORM, path=hooks_path, timeout=STORM_SECONDS + 150, seconds=STORM_SECONDS, guarded=True, wait=wait
    )
    print(out)
    assert out["failures"] == []
    assert (out["both"], out["overlaps"]) == (0, 0)
    assert out["seen"] == sum(out["calls"].values()), "every change was seen, once"
    assert sum(out["spawned"].values()) == out["ran"] > 0
    assert out["spawned"].get("vfork locked", 0) > 0, "there were spawns on shared memory"
    assert out["entered"] > 0 and out["loaded"] > 0 and min(out["calls"].values()) > 0
    assert out["longest_ms"] * 1e6 <= wait * 1e9 + 50_000_000 + SCHEDULING_NS
    assert out["state"] == [0, 0, False, 0, 0]
    assert out["uids"] == ["0\t0\t0\t0"]
    assert out["then"] == "vfork"


LAUNCH_STORM = """
import credchanges, ctypes, faulthandler, random, threading
from safespawn import _launcher, guards
faulthandler.dump_traceback_later(seconds + 120, exit=True)  # a deadlock shows where
guards.arm(wait=wait)
_launcher.hold()
libc = credchanges.libc
stop, failures, counting = threading.Event(), [], threading.Lock()
spawned, tried, races = {}, 0, 0
calls = {"prctl": 0, "setgroups": 0, "setegid": 0}
loaded = 0

def runs(function, name):
    def loop():
        try:
            pace = random.Random(name)
            while not stop.wait(pace.random() / 100):
                function()
        except BaseException as problem:
            failures.append(repr(problem))
    return loop

def spawner(uid):
    def spawn():
        global tried, races
        gid, group = uid + 1, uid + 2
        while not stop.is_set():
            with counting:
                tried += 1
            try:
                done = safespawn.run(["/bin/sh", "-c", "id -u; id -g; id -G"], capture_output=True,
                                     user=uid, group=gid, extra_groups=[group])
            except safespawn.RaceDetected as problem:
                assert problem.report.outcome == "race-detected"
                with counting:
                    races += 1
                continue
            with counting:
                kind = f"{done.report.strategy} {done.report.proof}"
                spawned[kind] = spawned.get(kind, 0) + 1
            assert done.stdout.split() == [b"%d" % one for one in (uid, gid, gid, group)], done
    return spawn

def harmless():
    calls["prctl"] += 1
    credchanges.by_libc("prctl", credchanges.PR_KEEPCAPS, ctypes.c_ulong(calls["prctl"] % 2), 0, 0, 0)
    calls["setgroups"] += 1
    os.setgroups([])

def toggle():
    for gid in (65534, 0):
        calls["setegid"] += 1
        os.setegid(gid)

def load():
    global loaded
    import _ctypes
    _ctypes.dlclose(_ctypes.dlopen("libcap.so.2", os.RTLD_NOW))  # it is bound to capset and prctl
    loaded += 1


os.setgroups([])
safespawn.run(["/bin/true"], user=65534, group=65534)
fds = sorted(os.listdir("/proc/self/fd"))
before = _binding.lock_status()["changes"]
loops = [(spawner(uid), uid) for uid in (10001, 20001, 30001, 40001)]
loops += [(harmless, 1), (toggle, 2), (load, 3)]
threads = [threading.Thread(target=runs(*loop)) for loop in loops]
for thread in threads:
    thread.start()
time.sleep(seconds)
stop.set()
for thread in threads:
    thread.join()
status = _binding.lock_status()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    out["no child"] = True
out.update(
    failures=failures[:3],
    spawned=spawned,
    tried=tried,
    races=races,
    calls=calls,
    loaded=loaded,
    seen=status["changes"] - before,
    both=hooks.both_in,
    overlaps=status["overlaps"],
    state=[status["spawners"], status["changers"], status["changer_waits"], hooks.spawners_in, hooks.changers_in],
    fds=sorted(os.listdir("/proc/self/fd")) == fds,
    then=safespawn.run(["/bin/true"], user=65534, group=65534).report.strategy,
)
"""


@pytest.mark.slow
@pytest.mark.threat("T-21")
@pytest.mark.threat("T-23")
@pytest.mark.parametrize("wait", [0.1, 0.001])
def test_credentials_change_under_a_storm_of_launches(hooks_path, wait):
    """Four threads start programs as other users, two change credentials, one loads libraries.

    Every spawn is accounted for: the program has the ids asked for, or the race was told. No change
    came beside a child on our memory, and nothing is left.
    """
    out = helpers.run_snippet(
        LAUNCH_STORM, path=hooks_path, timeout=STORM_SECONDS + 150, seconds=STORM_SECONDS, wait=wait
    )
    print(out)
    assert out["failures"] == []
    assert sum(out["spawned"].values()) + out["races"] == out["tried"]
    assert out["spawned"].get("launcher locked", 0) > 0 and out["spawned"].get("fork None", 0) > 0
    assert (out["both"], out["overlaps"]) == (0, 0)
    assert out["seen"] == sum(out["calls"].values()), "every change was seen, once"
    assert out["loaded"] > 0 and min(out["calls"].values()) > 0
    assert out["state"] == [0, 0, False, 0, 0]
    assert out["fds"] and out["no child"]
    assert out["then"] == "launcher"


@pytest.mark.slow
@pytest.mark.threat("T-21")
def test_without_the_guard_the_storm_has_overlaps(hooks_path):
    """The same storm with changes that do not wait: many come while a child shares our memory."""
    out = helpers.run_snippet(LOCK_STORM, path=hooks_path, timeout=150, seconds=3, guarded=False, wait=0.1)
    print(out)
    assert out["both"] > 0
