"""The strategy `posix_spawn`: libc's child, under our proof and our lock, told as ours are."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import guards
from safespawn._spec import Facts, Request

PAIR = pytest.mark.parametrize("guard", ["off", "on"])

FACTS = Facts(alone=True, threads=1, changes_credentials=False)
ASKED = Request((b"true",), strategy="posix_spawn")

#: Goes in front of snippets: `leased()` makes a script whose interpreter is under a lease that nobody gives
#: up, so that whatever runs it waits in its execve; `given_up()` ends that.
LEASE = """
import fcntl, shutil, tempfile
where = tempfile.mkdtemp()
answer, answer_write = os.pipe()
stop, stop_write = os.pipe()

def leased(program="/bin/true"):
    interpreter, script = os.path.join(where, "interpreter"), os.path.join(where, "script")
    shutil.copy(program, interpreter)
    with open(script, "w") as file:
        file.write(f"#!{interpreter}\\n")
    os.chmod(script, 0o755)
    holder = os.fork()
    if holder == 0:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        fcntl.fcntl(os.open(interpreter, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.close(stop_write)
        os.write(answer_write, b".")
        os.read(stop, 1)
        os._exit(0)
    os.read(answer, 1)
    return holder, script

def given_up(holder):
    os.close(stop_write)
    os.waitpid(holder, 0)
    shutil.rmtree(where)
"""

#: Adds `begin(script)`, which starts it in a thread, and waits until its child sits in execve: the child's pid.
WINDOW = (
    LEASE
    + helpers.LOCK_TOOLS
    + """
said = {}

def start(script, options):
    try:
        done = safespawn.run([script], strategy="posix_spawn", capture_output=True, **options)
        said.update(ran=done.stdout.decode(), strategy=done.report.strategy, proof=done.report.proof)
    except OSError as problem:
        said.update(raised=type(problem).__name__, stage=getattr(problem, "stage", None))
        said.update(outcome=problem.report.outcome, guard=getattr(problem, "guard", None))

def begin(script, **options):
    global thread
    thread = threading.Thread(target=start, args=(script, options))
    thread.start()

    def in_execve():
        child = credchanges.child_of(thread.native_id)
        return credchanges.sits_in(child, "execve") and child
    return until(in_execve)

def shares_memory(child):
    return credchanges.raw("kcmp", os.getpid(), child, 1) == 0

def no_child():
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False
"""
)


# ------------------------------------------------------------------ the choice


def test_only_by_its_name() -> None:
    """It is used when it is asked for, says so in report and record, and auto never picks it."""
    out = helpers.run_snippet(
        """
import tempfile
from safespawn import audit
path = os.path.join(tempfile.mkdtemp(), "ledger")
with audit.open(path):
    named = safespawn.run(["/bin/true"], strategy="posix_spawn")
    chosen = safespawn.run(["/bin/true"])
out["reports"] = [[r.requested, r.strategy, r.proof, r.outcome, r.stage] for r in (named.report, chosen.report)]
told = [record for record in map(json.loads, open(path)) if record.get("sid") == named.report.id]
out["events"] = [record["ev"] for record in told]
out["how"] = [told[0]["how"][key] for key in ("requested", "strategy", "proof")]
"""
    )

    assert out["reports"] == [
        ["posix_spawn", "posix_spawn", "single-threaded", "exec", "exec"],
        ["auto", "vfork", "single-threaded", "exec", "exec"],
    ]
    assert out["events"] == ["spawn.intent", "spawn.started", "spawn.exit"]
    assert out["how"] == ["posix_spawn", "posix_spawn", "single-threaded"]


def test_proofs_it_takes() -> None:
    """Alone, under the lock and under the seal it runs; without a proof it is refused, whatever `on_unproven`."""
    out = helpers.run_snippet(
        """
import threading
from safespawn import guards
guards.arm()
go = threading.Event()
thread = threading.Thread(target=go.wait, daemon=True)

def proof(**options):
    try:
        return safespawn.run(["/bin/true"], strategy="posix_spawn", **options).report.proof
    except safespawn.UnsafeSpawn as problem:
        return [problem.guard, problem.report.strategy, problem.report.outcome]

out["alone"] = proof()
thread.start()
out["locked"] = proof()
guards.seal()
out["sealed"] = proof()
guards.require("fork")
out["none"] = [proof(), proof(on_unproven="fork")]
go.set()
thread.join()
"""
    )

    refused = ["alone-or-apart", None, "refused"]
    assert out == {
        "alone": "single-threaded",
        "locked": "locked",
        "sealed": "sealed",
        "none": [refused, refused],
    }


def test_child_that_changes_credentials_is_refused() -> None:
    """Who becomes somebody else never does it on our memory: a refusal, before anything is started."""
    decision = guards.decide(ASKED, FACTS._replace(changes_credentials=True))

    assert (decision.strategy, decision.verdicts[-1].guard, decision.verdicts[-1].result) == (
        None,
        "drop-apart",
        "deny",
    )


def test_where_only_libc_may_clone() -> None:
    """That our own child could not be tried is no hindrance to libc's; that it shares no memory is."""
    untried, alike = FACTS._replace(memory_shared=None), FACTS._replace(memory_shared=False)

    assert guards.decide(ASKED, untried).strategy == "posix_spawn"
    assert guards.decide(ASKED._replace(strategy="vfork"), untried).strategy is None
    assert guards.decide(ASKED, alike).strategy is None


#: Everything that posix_spawn(3) has no word for.
BEYOND: dict[str, Any] = {
    "umask": 0,
    "nice": 0,
    "cpu_affinity": [0],
    "rlimits": {resource.RLIMIT_CORE: 0},
    "pdeathsig": 15,
    "subreaper": True,
    "no_new_privs": True,
    "caps": [],
    "securebits": ["noroot"],
    "namespaces": ["uts"],
    "root": "/",
    "cgroup": "/sys/fs/cgroup",
    "landlock": {"read": ["/"]},
    "seccomp": b"\x06\x00\x00\x00\x00\x00\xff\x7f",
    "pin": True,
    "digest": "sha256:" + 64 * "0",
    "deadline": 1.0,
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_libc_cannot_express_is_refused(name: str, tmp_path: Path) -> None:
    """Each such option is a ValueError that names it and its value, and nothing is started."""
    marker = tmp_path / "ran"

    with pytest.raises(ValueError, match=rf"strategy='posix_spawn' and {name}=.*cannot express") as caught:
        safespawn.spawn(["/usr/bin/touch", str(marker)], strategy="posix_spawn", **{name: BEYOND[name]})

    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_all_that_cannot_be_expressed_is_named() -> None:
    """Of several such options the message has all; those that have their usual value count as not given."""
    with pytest.raises(ValueError, match=r"umask=18, deadline=2\.0: "):
        safespawn.run(["true"], strategy="posix_spawn", umask=0o22, deadline=2, pin=False, subreaper=False)


def test_the_core_refuses_on_its_own() -> None:
    """What slips past the checks in Python is EINVAL of the core, with nothing started: drop-apart (T-19)."""
    out = helpers.run_snippet(
        """
from safespawn import _checks
_checks._fits_libc = lambda made: None
out["raised"] = []
options = {"umask": 0, "deadline": 5, "no_new_privs": True, "pdeathsig": 9, "nice": 1, "cpu_affinity": [0],
           "rlimits": {7: 30}, "subreaper": True, "pin": True}
for name, value in options.items():
    try:
        safespawn.run(["/bin/true"], strategy="posix_spawn", **{name: value})
    except OSError as problem:
        out["raised"].append([problem.errno, problem.stage])
""",
    )

    assert out["raised"] == [[errno.EINVAL, "prepare"]] * 9


# ------------------------------------------------------------------ what it does


@pytest.mark.parametrize("closed", [(), (5,)])
def test_descriptors_that_are_kept(closed: tuple[int, ...]) -> None:
    """With close_fds=False all that is inheritable stays, swaps and what is to be closed apart."""
    out = helpers.run_snippet(
        """
from probes import descriptors
from safespawn import _checks, _spawn
for fd in (0, 1, 2, 5, 6, 7, 8):
    descriptors.file_at(fd)
for fd in (5, 6, 7):
    os.set_inheritable(fd, True)
os.set_inheritable(8, False)
ours = {fd: descriptors.identity(fd) for fd in (0, 1, 2, 5, 6, 7)}
answer = os.dup2(os.memfd_create("answer"), 900)
made = _checks.request([*probe, "900"], {"strategy": "posix_spawn", "fds": {6: 7, 7: 6}, "stdin": 1, "stdout": 0})
made = made._replace(keep_fds=True, closed=tuple(closed))
before = sorted(os.listdir("/proc/self/fd"))
with _spawn.start(made) as process:
    out["code"] = process.wait()
out["same"] = sorted(os.listdir("/proc/self/fd")) == before
told = {int(fd): seen[:3] for fd, seen in json.loads(os.pread(answer, 1 << 20, 0)).items()}
inherited = [fd for fd in map(int, before) if fd not in closed and os.path.exists(f"/proc/self/fd/{fd}")]
wanted = {fd: descriptors.identity(fd) for fd in inherited if os.get_inheritable(fd)}
wanted.update({0: ours[1], 1: ours[0], 2: ours[2], 6: ours[7], 7: ours[6]})
out["right"] = told == wanted and (5 in told) == (5 not in closed) and 8 not in told
""",
        probe=helpers.probe_argv("descriptors"),
        closed=closed,
    )

    assert out == {"code": 0, "same": True, "right": True}


@pytest.mark.threat("T-08")
def test_what_another_thread_opens_meanwhile_is_closed() -> None:
    """Between the look at the request and the clone an inheritable descriptor comes up: the child has it not."""
    out = helpers.run_snippet(
        """
from probes import descriptors
numbers = (10, 400, 1000)

def opens(event, args):
    if event == "safespawn.spawn.intent":
        for fd in numbers:
            descriptors.file_at(fd)
            os.set_inheritable(fd, True)

sys.addaudithook(opens)
told = descriptors.ask(safespawn, probe, 900, {"strategy": "posix_spawn"}, fds={500: 0})
out["has"] = sorted(told)
""",
        probe=helpers.probe_argv("descriptors"),
    )

    assert out == {"has": [0, 1, 2, 500, 900]}


@pytest.mark.parametrize(
    ("policy", "answer"), [("SCHED_OTHER", None), ("SCHED_RR", None), ("SCHED_BATCH", [errno.EINVAL, "scheduler"])]
)
def test_scheduler(policy: str, answer: list[object] | None) -> None:
    """Of the schedulers those that glibc knows are set; another is its EINVAL, by the name of the stage."""
    out = helpers.run_snippet(
        """
number = getattr(os, policy)
given = (number, os.sched_get_priority_min(number))
try:
    process = safespawn.spawn(["/bin/cat"], stdin=-1, strategy="posix_spawn", scheduler=given)
    out["policy"] = os.sched_getscheduler(process.pid) == number
    out["priority"] = os.sched_getparam(process.pid).sched_priority == given[1]
    process.communicate(b"")
except OSError as problem:
    out["raised"] = [problem.errno, problem.stage]
""",
        policy=policy,
    )

    assert out == ({"raised": answer} if answer else {"policy": True, "priority": True})


@pytest.mark.parametrize(
    ("release", "keep_fds", "answer"),
    [
        (28, False, [errno.ENOSYS, "cwd", "failed"]),
        (28, True, [errno.ENOSYS, "cwd", "failed"]),
        (33, False, [errno.ENOSYS, "close", "failed"]),
        (33, True, None),
        (34, False, None),
    ],
)
def test_libc_that_is_too_old(
    in_hooks: Callable[..., dict[str, object]], release: int, keep_fds: bool, answer: list[object] | None
) -> None:
    """Where libc cannot close all but what was named, or change to a descriptor, nothing is started: ENOSYS."""
    out = in_hooks(
        """
from safespawn import _checks, _spawn
hooks.old_libc = release
made = _checks.request(["/bin/true"], {"strategy": "posix_spawn"})._replace(keep_fds=keep_fds)
before = sorted(os.listdir("/proc/self/fd"))
out["raised"] = None
try:
    _spawn.start(made).wait()
except OSError as problem:
    out["raised"] = [problem.errno, problem.stage, problem.report.outcome]
out["same"] = sorted(os.listdir("/proc/self/fd")) == before
""",
        release=release,
        keep_fds=keep_fds,
    )

    assert out == {"raised": answer, "same": True}


def test_directory_that_is_none(tmp_path: Path) -> None:
    """A working directory is looked at before, because libc would not say that it was this."""
    with open(tmp_path / "file", "wb") as file, pytest.raises(NotADirectoryError) as caught:
        safespawn.spawn(["/bin/true"], cwd=file.fileno(), strategy="posix_spawn")

    problem: Any = caught.value
    assert (problem.filename, problem.stage) == (file.fileno() if not file.closed else problem.filename, "cwd")


def test_beside_guard_foreign() -> None:
    """Where posix_spawn of others goes under the lock, ours takes it once, and it is the real one."""
    out = helpers.run_snippet(
        """
import threading
from safespawn import guards
guards.arm(guard_foreign=True)
go = threading.Event()
thread = threading.Thread(target=go.wait, daemon=True)
thread.start()
done = safespawn.run(["/bin/true"], strategy="posix_spawn")
out["done"] = [done.returncode, done.report.strategy, done.report.proof]
out["others"] = os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1]
go.set()
thread.join()
"""
    )

    assert out == {"done": [0, "posix_spawn", "locked"], "others": 0}


def test_the_lock_is_taken_once(in_hooks: Callable[..., dict[str, object]]) -> None:
    """One spawner enters for one start, with guard_foreign too."""
    out = in_hooks(
        """
import threading
from safespawn import guards
guards.arm(guard_foreign=True)
go = threading.Event()
thread = threading.Thread(target=go.wait, daemon=True)
thread.start()
safespawn.run(["/bin/true"], strategy="posix_spawn")
before = hooks.spawns_in
safespawn.run(["/bin/true"], strategy="posix_spawn")
out["spawns"] = hooks.spawns_in - before
go.set()
thread.join()
"""
    )

    assert out == {"spawns": 1}


def test_by_the_other_faces() -> None:
    """Popen and asyncio start by it too, with pipes, and wait as ever."""
    out = helpers.run_snippet(
        """
import asyncio
from safespawn import aio, subprocess
with subprocess.Popen(["cat"], stdin=-1, stdout=-1, strategy="posix_spawn") as process:
    out["popen"] = [process.communicate(b"in")[0].decode(), process.returncode, process.report.strategy]
kept = subprocess.Popen(["true"], strategy="posix_spawn", close_fds=False)
out["kept"] = [kept.wait(), kept.report.strategy]

async def run():
    process = await aio.create_subprocess_exec("cat", stdin=-1, stdout=-1, strategy="posix_spawn")
    told, _ = await process.communicate(b"in")
    return [told.decode(), process.returncode, process.report.strategy]

out["aio"] = asyncio.run(run())
"""
    )

    both = ["in", 0, "posix_spawn"]
    assert out == {"popen": both, "kept": [0, "posix_spawn"], "aio": both}


def test_program_that_nobody_may_run(tmp_path: Path) -> None:
    """A format that the kernel does not know is the errno of its own class, and names the program, as ever."""
    path = tmp_path / "junk"
    path.write_bytes(b"\x7fnothing")
    path.chmod(0o755)

    raised = []
    for strategy in ("vfork", "posix_spawn"):
        with pytest.raises(OSError) as caught:
            safespawn.run([path], strategy=strategy)
        problem: Any = caught.value
        raised.append((type(problem), problem.errno, problem.filename, problem.report.outcome, problem.stage))

    assert raised[0][:4] == raised[1][:4] == (OSError, errno.ENOEXEC, str(path), "failed")
    assert (raised[0][4], raised[1][4]) == ("exec", "posix-spawn")


# ------------------------------------------------------------------ what came of it


@PAIR
@pytest.mark.threat("T-10")
def test_killed_before_exec_is_no_success(in_hooks: Callable[..., dict[str, object]], guard: str) -> None:
    """libc says that a child killed in its execve was started; we say what happened, and reap it."""
    out = in_hooks(
        WINDOW
        + helpers.SWITCH
        + """
guards.arm()
holder, script = leased()
before = sorted(os.listdir("/proc/self/fd"))
child = begin(script)
out["shared"] = shares_memory(child)
os.kill(child, signal.SIGKILL)
thread.join()
out["same"] = sorted(os.listdir("/proc/self/fd")) == before
given_up(holder)
out["gone"] = no_child()
out.update(said)
""",
        guard=guard,
        name="OUTCOME_TOLD",
    )

    both = {"shared": True, "same": True, "gone": True}
    if guard == "off":
        assert out == {**both, "ran": "", "strategy": "posix_spawn", "proof": "locked"}
    else:
        told = {"raised": "KilledBeforeExec", "stage": "posix-spawn", "outcome": "killed-before-exec"}
        assert out == {**both, **told, "guard": None}


def test_children_that_the_kernel_reaps() -> None:
    """With SIGCHLD ignored the end of a child is nobody's: it ran, its end is unknown, and nothing is left."""
    out = helpers.run_snippet(
        """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
before = sorted(os.listdir("/proc/self/fd"))
outcomes = set()
for _ in range(50):
    process = safespawn.spawn(["/bin/true"], strategy="posix_spawn")
    try:
        outcomes.add((process.report.outcome, process.wait()))
    except ChildProcessError:  # unless the kernel says how it ended: Linux 6.15
        outcomes.add((process.report.outcome, 0))
out["outcomes"] = sorted(outcomes)
out["same"] = sorted(os.listdir("/proc/self/fd")) == before
"""
    )

    assert out == {"outcomes": [["exec", 0]], "same": True}


def test_one_of_several_that_somebody_else_reaps(in_hooks: Callable[..., dict[str, object]]) -> None:
    """Of a child that has no pidfd spawn_many records at once that its end is unknown, as spawn does."""
    out = in_hooks(
        helpers.LOCK_TOOLS
        + """
import select, tempfile
from safespawn import Command, audit, spawn_many
ready, parked = os.pipe()
go, release = os.pipe()
guards.arm()
path = os.path.join(tempfile.mkdtemp(), "ledger")
hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("exec"), parked, go
with audit.open(path):
    kept = []
    thread = threading.Thread(target=lambda: kept.extend(spawn_many([Command(["/bin/true"], strategy="posix_spawn")])))
    thread.start()
    assert select.select([ready], [], [], 30)[0]
    os.waitpid(-1, 0)
    os.write(release, b".")
    thread.join()
    records = [json.loads(line) for line in open(path)]
out["events"] = [one["ev"] for one in records if one.get("sid") == kept[0].report.id]
out["why"] = [one["why"] for one in records if one["ev"] == "exit.unknown"]
"""
    )

    events = ["spawn.intent", "spawn.started", "exit.unknown"]
    assert out == {"events": events, "why": ["reaped elsewhere"]}


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.threat("T-09")
def test_child_that_somebody_else_reaps(in_hooks: Callable[..., dict[str, object]], how: str) -> None:
    """A thread that waits for any child takes ours, before we have its pidfd or after: it ran, and is lost."""
    out = in_hooks(
        helpers.LOCK_TOOLS
        + """
import select, tempfile
from safespawn import audit
ready, parked = os.pipe()
go, release = os.pipe()
guards.arm()
path = os.path.join(tempfile.mkdtemp(), "ledger")
said = {}

def start():
    with safespawn.spawn(["/bin/true"], strategy="posix_spawn") as process:
        said["pidfd"] = process.pidfd >= 0
        if how == "after":
            said["reaped"] = os.waitpid(-1, 0)[0] == process.pid
        try:
            said["code"] = process.wait()
        except ChildProcessError:
            said["code"] = "unknown"
        said["doubt"] = any("outcome-told" in why for why in process.report.reasons)
        said["outcome"] = process.report.outcome

with audit.open(path):
    safespawn.run(["/bin/true"])
    if how == "before":
        hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("exec"), parked, go
    thread = threading.Thread(target=start)
    thread.start()
    if how == "before":
        assert select.select([ready], [], [], 30)[0]
        hooks.park_stage = 0
        os.waitpid(-1, 0)
        os.write(release, b".")
    thread.join()
out.update(said)
last = list(map(json.loads, open(path)))
out["last"] = [record["ev"] for record in last if record["ev"] in ("spawn.exit", "exit.unknown")][-1]
""",
        how=how,
    )

    if how == "before":
        assert out == {
            "pidfd": False,
            "code": "unknown",
            "doubt": True,
            "outcome": "exec",
            "last": "exit.unknown",
        }
    else:  # the kernel may say how it ended: since Linux 6.15
        assert out["pidfd"] and out["reaped"] and not out["doubt"]
        assert (out["code"], out["last"]) in ((0, "spawn.exit"), ("unknown", "exit.unknown"))


@pytest.mark.threat("T-09")
def test_number_that_is_not_our_child(in_hooks: Callable[..., dict[str, object]]) -> None:
    """A pid that was given to somebody else meanwhile is not taken for our child: no pidfd of it is kept."""
    out = in_hooks(
        helpers.LOCK_TOOLS
        + """
import select
ready, parked = os.pipe()
go, release = os.pipe()
guards.arm()
safespawn.run(["/bin/true"])
said = {}

def start():
    process = safespawn.spawn(["/bin/true"], strategy="posix_spawn")
    said["pid"], said["pidfd"] = process.pid, process.pidfd

def put(pid):  # the next process has that number: pid_namespaces(7)
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))

hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("exec"), parked, go
thread = threading.Thread(target=start)
thread.start()
assert select.select([ready], [], [], 30)[0]
hooks.park_stage = 0
pid = os.waitpid(-1, 0)[0]
# A grandchild of ours gets the number: it is not ours to wait for.
told, tell = os.pipe()
for _ in range(200):
    middle = os.fork()
    if middle == 0:
        put(pid)
        grandchild = os.fork()
        if grandchild == 0:
            os.write(tell, os.getpid().to_bytes(4, "little"))
            os.close(tell)
            os.read(go, 1)
            os._exit(0)
        os._exit(0)
    os.waitpid(middle, 0)
    other = int.from_bytes(os.read(told, 4), "little")
    if other == pid:
        break
    os.write(release, b".")
os.write(release, b"..")
thread.join()
out["same number"], out["pidfd"] = other == said["pid"], said["pidfd"]
"""
    )

    assert out == {"same number": True, "pidfd": -1}


# ------------------------------------------------------------------ changes of credentials


@PAIR
@pytest.mark.threat("T-21")
def test_change_waits_for_a_child_of_libc(in_hooks: Callable[..., dict[str, object]], guard: str) -> None:
    """While libc's child is on our memory a thread that changes its uid waits; without the guard it does not."""
    out = in_hooks(
        WINDOW
        + helpers.SWITCH
        + """
guards.arm(wait=30)
holder, script = leased("/bin/echo")
child = begin(script)
done = threading.Event()

def change():
    credchanges.by_syscall("setresuid", 65534, 65534, 65534)
    out["attacker"] = os.getuid()  # of this thread alone
    done.set()

changer = threading.Thread(target=change)
changer.start()
if guard == "off":
    done.wait()
else:
    until(lambda: lock("changer_waits"))
    out["changed"] = done.is_set()
out["shared"] = shares_memory(child)
given_up(holder)
thread.join()
changer.join()
out["ran"] = said["ran"].endswith("script\\n")
out["by"] = [said["strategy"], said["proof"]]
""",
        guard=guard,
        name="CHANGES_WAIT",
    )

    ran = {"ran": True, "by": ["posix_spawn", "locked"], "shared": True, "attacker": 65534}
    assert out == (ran if guard == "off" else {**ran, "changed": False})


@pytest.mark.threat("T-22")
def test_child_of_libc_is_killed_at_the_bound() -> None:
    """A change waits so long and no longer: the child is killed, which is a refusal, and nothing ran."""
    out = helpers.run_snippet(
        WINDOW
        + """
guards.arm(wait=0.1)
holder, script = leased()
begin(script)
credchanges.CALLS["prctl-keepcaps"].make()
thread.join()
given_up(holder)
out.update(said)
out["lock"], out["overlaps"], out["gone"] = lock(), lock("overlaps"), no_child()
names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
out["pidfds"] = [os.readlink(name) for name in names if os.path.exists(name) and "pidfd" in os.readlink(name)]
"""
    )

    assert out == {
        "pidfds": [],  # the changer has looked at the child by some
        "raised": "UnsafeSpawn",
        "stage": None,
        "outcome": "refused",
        "guard": "change-bounded",
        "lock": [0, 0, False],
        "overlaps": 0,
        "gone": True,
    }


@pytest.mark.threat("T-22")
def test_change_waits_for_a_child_of_libc_that_is_not_born_yet(in_hooks: Callable[..., dict[str, object]]) -> None:
    """A thread between the proof and the clone of libc is waited for past the bound: else its child comes into it."""
    out = in_hooks(
        helpers.PARKED
        + """
guards.arm(wait=0.1)
hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("posix-spawn"), parked, go
thread = threading.Thread(target=spawner, args=(["/bin/echo", "ran"], {"strategy": "posix_spawn"}))
thread.start()
assert select.select([ready], [], [], 30)[0], result
hooks.park_stage = 0
done = threading.Event()

def change():
    credchanges.CALLS["prctl-keepcaps"].make()
    done.set()

changer = threading.Thread(target=change)
changer.start()
until(changer_waits)
out["changed"] = done.wait(0.5)  # bound and grace are 0.15 s
os.write(release, b".")
thread.join()
changer.join()
out["lock"], out["overlaps"] = lock(), lock("overlaps")
"""
    )

    assert out == {"changed": False, "lock": [0, 0, False], "overlaps": 0}


@pytest.mark.threat("T-23")
def test_change_between_decision_and_start() -> None:
    """Under the lock a change after the decision keeps libc's child from being made: a refusal."""
    out = helpers.run_snippet(
        helpers.LOCK_TOOLS
        + """
guards.arm()
go = threading.Event()
thread = threading.Thread(target=go.wait, daemon=True)
thread.start()

def change(event, args):
    if event == "safespawn.spawn.intent":
        credchanges.CALLS["prctl-keepcaps"].make()

sys.addaudithook(change)
try:
    safespawn.run(["/bin/true"], strategy="posix_spawn")
except safespawn.UnsafeSpawn as problem:
    out["refused"] = [problem.guard, problem.report.outcome]
go.set()
thread.join()
"""
    )

    assert out == {"refused": ["changes-wait", "refused"]}


def test_nothing_is_left_of_many() -> None:
    """Hundreds of starts, good and bad, leave no descriptor, no child and no memory of lists behind."""
    before = helpers.open_fds()

    for number in range(300):
        try:
            safespawn.run(["/bin/true"], strategy="posix_spawn", fds={10: 0, 11: 1, 12: 2}, process_group=-(number % 2) or None)
        except (PermissionError, ValueError):
            pass

    assert helpers.open_fds() == before
