"""Windows that are open side by side: the bound, the credential lock, kills, forks and failing clones."""

from __future__ import annotations

import errno

import pytest

import helpers
from safespawn import _binding

#: Of a child on our memory, from its birth to the program; without those of launcher and helper.
STAGES = _binding.stages()
OTHERS = ("launch", "plan", "level", "helper", "policy-")
CHILD_STAGES = [
    name for name in STAGES[STAGES.index("birth") : STAGES.index("exec") + 1] if not name.startswith(OTHERS)
]

#: Goes in front of snippets for the test core: `Batch` is a spawn_many in a thread of its own. The nth child
#: that comes to stage "close" waits there for a byte to `release`; 0: all of them do.
BATCH = helpers.LOCK_TOOLS + """
import select
from safespawn import Command, PIPE, spawn_many
ready, parked = os.pipe()
go, release = os.pipe()
safespawn.run(["/bin/true"])  # shared memory is tried once, at the first spawn

class Batch:
    def __init__(self, commands, nth=0, at="close", **options):
        hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage(at), parked, go
        hooks.nth, hooks.came = nth, 0
        self.results = None
        self.thread = threading.Thread(target=self._run, args=(commands, options), daemon=True)
        self.thread.start()

    def _run(self, commands, options):
        try:
            self.results = spawn_many(commands, return_errors=True, **options)
        except BaseException as problem:
            self.results = repr(problem)
            os.write(parked, b"x" * 64)

    def wait(self, count=1):
        for _ in range(count):
            assert select.select([ready], [], [], 30)[0] and os.read(ready, 1) == b".", self.results
        return self

    def go_on(self, count=1):
        hooks.park_stage = 0
        os.write(release, b"." * count)

    def end(self):
        self.thread.join()
        return self.results

    def children(self):
        tid = self.thread.native_id
        return [int(pid) for pid in open(f"/proc/self/task/{tid}/children").read().split()]

    def sleeps(self):
        # On the futex of the first that is there, which is not private (FUTEX_WAIT_BITSET, and no flag): all
        # of this piece have been made.
        told = open(f"/proc/self/task/{self.thread.native_id}/syscall").read().split()
        return told[0] == str(credchanges.NR["futex"]) and told[2] == "0x9"

def ended(results):
    return [one.wait() if isinstance(one, safespawn.Process) else [type(one).__name__, one.errno, one.stage] for one in results]

def ways(results):
    return [one.report.strategy for one in results]

def shares(pid):
    try:
        return credchanges.raw("kcmp", os.getpid(), pid, 1) == 0
    except ProcessLookupError:  # it has ended since it was listed
        return False

def sharing(batch):
    return list(filter(shares, batch.children()))

def stopped(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):  # as above
        return False

def parked_pid(batch):
    until(batch.sleeps)
    until(lambda: len(sharing(batch)) == 1)  # an exec that is under way still counts
    return sharing(batch)[0]
"""


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_bound_is_kept(in_hooks, at_once):
    """Never more children on our memory than were allowed; the others come when those have left."""
    out = in_hooks(
        BATCH
        + """
batch = Batch([["/bin/true"]] * 8, at_once=at_once)
seen = []
for i in range(0, 8, at_once):
    count = min(at_once, 8 - i)
    batch.wait(count)
    until(batch.sleeps)
    until(lambda: len(sharing(batch)) <= count)
    seen.append([len(sharing(batch)), lock()[0]])
    os.write(release, b"." * count)
out["seen"], out["codes"], out["lock"] = seen, ended(batch.end()), lock()
""",
        at_once=at_once,
    )
    counts = [min(at_once, 8 - i) for i in range(0, 8, at_once)]
    assert out == {"seen": [[n, n] for n in counts], "codes": [0] * 8, "lock": [0, 0, False]}


@pytest.mark.threat("T-21")
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_lock_is_held_until_the_last_has_left(in_hooks, nth):
    """A change of credentials waits for the last child of the batch, whichever that is."""
    out = in_hooks(
        BATCH
        + """
guards.arm(wait=30)
batch = Batch([Command(["/bin/cat"], stdin=PIPE) for _ in range(3)], nth=nth).wait()
child = parked_pid(batch)
changer = threading.Thread(target=os.setgroups, args=([1234],))
changer.start()
until(lambda: lock("changer_waits"))
tasks = credchanges.all_told()
out["groups"] = sorted({task["Groups"].strip() for task in tasks.values()}) == ["1234"]
out["left"] = credchanges.raw("kcmp", os.getpid(), child, 1)
batch.go_on()
changer.join()
results = batch.end()
out["ways"] = ways(results)
for one in results:
    one.stdin.close()
out["codes"], out["lock"], out["now"] = ended(results), lock(), os.getgroups()
""",
        nth=nth,
    )
    assert out == {
        "groups": False, "left": 0, "ways": ["clone"] * 3, "codes": [0] * 3, "lock": [0, 0, False], "now": [1234],
    }  # fmt: skip


@pytest.mark.threat("T-21")
@pytest.mark.parametrize("guard", ["off", "on"])
def test_change_under_a_child_of_a_batch(in_hooks, program, guard):
    """Who drops privileges while one child of a batch is still on its memory chooses what that runs, without the guard."""
    good = program("#!/bin/sh\necho good $(id -u)\n", "good")
    evil = program("#!/bin/sh\necho evil $(id -u)\n", "evil")
    out = in_hooks(
        BATCH
        + helpers.SWITCH
        + """
hooks.off |= lib.SS_OFF_EPOCH_AGREES  # would stop it too
guards.arm(wait=30)
batch = Batch([Command([good], stdout=PIPE) for _ in range(3)], nth=3).wait()
parked_pid(batch)  # the other two run what they were to run
places = credchanges.copies(good.encode())

def change():
    credchanges.by_syscall("setresuid", 65534, 65534, 65534)
    if guard == "off":
        credchanges.rewrite(places, evil.encode())
        os.write(release, b".")

changer = threading.Thread(target=change)
changer.start()
if guard == "on":
    until(lambda: lock("changer_waits"))
    batch.go_on()
changer.join()
out["said"] = sorted(one.communicate()[0].decode() for one in batch.end())
""",
        guard=guard,
        name="CHANGES_WAIT",
        good=str(good),
        evil=str(evil),
    )
    assert out["said"] == (["evil 0\n"] if guard == "off" else ["good 0\n"]) + ["good 0\n"] * 2


@pytest.mark.threat("T-22")
@pytest.mark.parametrize("guard", ["off", "on"])
def test_child_of_a_batch_holds_a_change(in_hooks, guard):
    """One that does not get to its exec is killed for the change and begun anew apart; the others see no signal.

    These run their programs by then, though the call has not returned.
    """
    out = in_hooks(
        BATCH
        + helpers.SWITCH
        + """
guards.arm(wait=0.001)  # before the call looks again at those that it does not wait for
end, end_write = os.pipe()
said, says = os.pipe()
program = ["/bin/sh", "-c", "trap 'echo cont' CONT; echo ready; read line; echo end"]
batch = Batch([Command(program, stdin=end, stdout=says)] * 4, nth=1).wait()
text = b""
while text.count(b"ready") < 3:
    text += os.read(said, 100)
hooks.park_stage = 0  # not the one that is begun anew
changed = threading.Event()

def change():
    os.setgroups([1234])
    changed.set()

changer = threading.Thread(target=change)
changer.start()
if guard == "on":
    assert changed.wait(30), lock()
else:
    until(lambda: lock("changer_waits"))
    out["held"] = not changed.wait(0.5)  # long past the bound
    os.write(release, b".")
changer.join()
results = batch.end()
out["ways"] = sorted(ways(results))
forked = [one.report.reasons for one in results if one.report.strategy == "fork"]
# The change that it was killed for may still be under way then, and have it begin anew once more.
out["why"] = [any(why.startswith("change-bounded:") for why in told) for told in forked]
os.close(end_write)
out["codes"] = ended(results)
os.close(says)
while more := os.read(said, 100):
    text += more
out["said"] = sorted(text.decode().split())
out["lock"] = lock()
""",
        guard=guard,
        name="CHANGE_BOUNDED",
    )
    expected = {"codes": [0] * 4, "said": ["end"] * 4 + ["ready"] * 4, "lock": [0, 0, False]}
    if guard == "on":
        assert out == expected | {"ways": ["clone"] * 3 + ["fork"], "why": [True]}
    else:
        assert out == expected | {"held": True, "ways": ["clone"] * 4, "why": []}


@pytest.mark.threat("T-22")
@pytest.mark.parametrize(
    ("how", "clone3"), [("batch", True), ("deadline", True), ("vfork", True), ("batch", False), ("deadline", False)]
)
def test_child_that_is_stopped_before_it_could_do_anything(in_hooks, how, clone3):
    """It holds a change no longer than any other: its number is known before its first step."""
    out = in_hooks(
        BATCH
        + """
import errno, sandbox
if not clone3:
    sandbox.answer({"clone3": errno.ENOSYS})
guards.arm(wait=0.01)
commands = [["/bin/true"]] * 3 if how == "batch" else [Command(["/bin/true"], deadline=60)] if how == "deadline" else [Command(["/bin/true"], strategy="vfork")]
# Each is prepared first, and comes here too.
hooks.signal_stage, hooks.signal = stage("prepare"), signal.SIGSTOP
batch = Batch(commands, nth=len(commands) + 1, at="none")
child = until(lambda: list(filter(stopped, sharing(batch))))[0]
hooks.signal_stage = 0
changed = threading.Event()
changer = threading.Thread(target=lambda: (os.setgroups([1234]), changed.set()), daemon=True)
changer.start()
if not changed.wait(40):
    out["held"] = True
    os.kill(child, signal.SIGCONT)
changer.join()
out["came"] = sorted(map(str, ended(batch.end())))
out["lock"] = lock()
""",
        how=how,
        clone3=clone3,
    )
    refused = str(["UnsafeSpawn", errno.EPERM, None])
    assert out == {"came": {"batch": ["0"] * 3, "deadline": ["0"], "vfork": [refused]}[how], "lock": [0, 0, False]}


@pytest.mark.parametrize("by", ["hook", "bystander"])
def test_one_is_killed_before_its_exec(in_hooks, by):
    """Just that command is killed-before-exec; the others run."""
    out = in_hooks(
        BATCH
        + """
if by == "hook":
    hooks.signal_stage, hooks.signal, hooks.nth = stage("umask"), signal.SIGKILL, 2
    results = spawn_many([["/bin/true"]] * 4, return_errors=True)
else:
    batch = Batch([["/bin/true"]] * 4, nth=2).wait()
    os.kill(parked_pid(batch), signal.SIGKILL)
    results = batch.end()
out["codes"] = sorted(map(str, ended(results)))
out["outcomes"] = sorted(one.report.outcome for one in results)
""",
        by=by,
    )
    where = "umask" if by == "hook" else "close"
    assert out == {
        "codes": ["0"] * 3 + [str(["KilledBeforeExec", errno.ECANCELED, where])],
        "outcomes": ["exec"] * 3 + ["killed-before-exec"],
    }


@pytest.mark.parametrize(("at", "error"), [("prepare", errno.ENOMEM), ("clone", errno.EAGAIN), ("clone", errno.ENOMEM)])
@pytest.mark.parametrize("proof", ["single-threaded", "locked"])
def test_kth_that_cannot_be_made(in_hooks, tmp_path, at, error, proof):
    """It has its errno and leaves nothing; those before and after it run."""
    out = in_hooks(
        BATCH
        + """
from safespawn import audit
stop = threading.Event()
if proof == "locked":
    thread = threading.Thread(target=stop.wait)
    thread.start()
ledger = audit.open(where)
before = sorted(os.listdir("/proc/self/fd"))
hooks.fail_stage, hooks.fail_error, hooks.nth = stage(at), error, 3
results = spawn_many([Command(["/bin/true"], stdin=PIPE) for _ in range(5)], return_errors=True)
out["proofs"] = sorted({one.report.proof for one in results})
out["pipes"] = [one.stdin.close() for one in results if isinstance(one, safespawn.Process)]
out["codes"] = ended(results)
out["fds"] = sorted(os.listdir("/proc/self/fd")) == before
out["lock"] = lock()
ledger.close()
out["events"] = [json.loads(line)["ev"] for line in open(where) if '"ev":"spawn.' in line]
stop.set()
""",
        at=at,
        error=error,
        proof=proof,
        where=str(tmp_path / "ledger"),
    )
    failed = [type(OSError(error, "")).__name__, error, at]
    ends = ["spawn.started", "spawn.started", "spawn.failed", "spawn.started", "spawn.started"]
    assert out == {
        "proofs": [proof],
        "pipes": [None] * 4,
        "codes": [0, 0, failed, 0, 0],
        "fds": True,
        "lock": [0, 0, False],
        "events": ["spawn.intent"] * 5 + ends + ["spawn.exit"] * 4,
    }


@pytest.mark.parametrize("more", [{}, {"deadline": 20}], ids=["plain", "deadline"])
def test_failure_at_every_stage_of_one_child(in_hooks, more):
    """An errno at any stage of one of three arrives with its stage, and the other two run."""
    out = in_hooks(
        BATCH
        + """
out["wrong"] = []
for name in names:
    hooks.fail_stage, hooks.fail_error, hooks.nth, hooks.came = stage(name), 12, 2, 0
    results = spawn_many([Command(["/bin/true"], **more)] * 3, return_errors=True)
    codes = sorted(map(str, ended(results)))
    if codes != ["0", "0", str(["OSError", 12, name])]:
        out["wrong"].append([name, codes])
""",
        names=CHILD_STAGES,
        more=more,
    )
    assert out == {"wrong": []}


def test_stopped_children_are_bounded_together(in_hooks):
    """All of a batch are stopped before their exec: each is killed at its deadline, not one after the other."""
    out = in_hooks(
        BATCH
        + """
hooks.signal_stage, hooks.signal = stage("umask"), signal.SIGSTOP
start = time.monotonic()
results = spawn_many([Command(["/bin/true"], deadline=5)] * 8, return_errors=True)
out["in time"] = time.monotonic() - start < 35  # 40 if it were one after the other
out["codes"] = ended(results)
"""
    )
    assert out == {"in time": True, "codes": [["SpawnTimeout", errno.ETIMEDOUT, "umask"]] * 8}


@pytest.mark.threat("T-01")
@pytest.mark.parametrize("guard", ["off", "on"])
def test_no_handler_runs_in_a_child_of_a_batch(in_hooks, guard):
    """A signal to one of them runs the parent's handler, in shared memory, without the guard."""
    out = in_hooks(
        BATCH
        + helpers.SWITCH
        + """
seen = []
signal.signal(signal.SIGUSR1, lambda *a: seen.append("handler"))
hooks.signal_stage, hooks.signal, hooks.nth = stage("session"), signal.SIGUSR1, 2
results = spawn_many([["/bin/true"]] * 3, return_errors=True)
out["codes"], out["seen"] = sorted(map(str, ended(results))), seen
""",
        guard=guard,
        name="SIGNALS_BLOCKED",
    )
    if guard == "off":
        assert out == {"codes": ["0"] * 3, "seen": ["handler"]}
    else:
        assert out == {"codes": ["0", "0", str(["KilledBeforeExec", errno.ECANCELED, "mask"])], "seen": []}


@pytest.mark.threat("T-02")
@pytest.mark.parametrize("named", [False, True])
def test_thread_that_appears_before_the_clone(named):
    """The proof is looked at once more for all of them: they are begun anew apart, or refused where clone was named."""
    out = helpers.run_snippet(
        """
import threading
from safespawn import Command
stop, threads = threading.Event(), []
def appear(event, args):
    if event == "safespawn.spawn.intent" and not threads:
        threads.append(threading.Thread(target=stop.wait))
        threads[0].start()
sys.addaudithook(appear)
commands = [Command(["/bin/true"], strategy="clone" if named else "auto") for _ in range(6)]
results = safespawn.spawn_many(commands, at_once=3, return_errors=True)
out["ways"] = [one.report.strategy for one in results]
out["why"] = [one.report.reasons[-1].split(":")[0] for one in results]
out["codes"] = [one.wait() if isinstance(one, safespawn.Process) else type(one).__name__ for one in results]
stop.set()
""",
        named=named,
        armed=False,
    )
    # After the first was looked at there is a second thread: the others have no proof from the start.
    if named:
        assert out == {"ways": [None] * 6, "why": ["alone-or-apart"] * 6, "codes": ["UnsafeSpawn"] * 6}
    else:
        assert out == {"ways": ["fork"] * 6, "why": ["alone-or-apart"] * 6, "codes": [0] * 6}


def test_lookup_that_loses_the_proof():
    """A command whose lookup is bounded, and finds that we are not alone any more, is forked: not lost."""
    out = helpers.run_snippet(
        """
import threading
from safespawn import Command
safespawn.run(["/bin/true"], deadline=60)
stop, threads = threading.Event(), []
find = _binding.find_bounded
def appear(*given, **more):
    if not threads:
        threads.append(threading.Thread(target=stop.wait))
        threads[0].start()
    return find(*given, **more)
_binding.find_bounded = appear
results = safespawn.spawn_many([["/bin/true"], Command(["/bin/true"], deadline=60), ["/bin/true"]], return_errors=True)
out["ways"] = [one.report.strategy for one in results]
out["codes"] = [one.wait() if isinstance(one, safespawn.Process) else str(one) for one in results]
stop.set()
""",
        armed=False,
    )
    assert out == {"ways": ["fork"] * 3, "codes": [0] * 3}


def test_deadline_is_not_for_those_that_begin_anew_before(in_hooks):
    """One whose proof was lost too, and whose turn comes late, has its full time."""
    out = in_hooks(
        BATCH
        + """
stop, intents = threading.Event(), []
def appear(event, args):
    if event == "safespawn.spawn.intent":
        intents.append(1)
        if len(intents) == 2:
            threading.Thread(target=stop.wait).start()
sys.addaudithook(appear)
hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("close"), parked, go
def let_go():
    assert select.select([ready], [], [], 30)[0]
    hooks.park_stage = 0
    until(lambda: time.monotonic() > since[0] + 7)  # when both were to run
    os.write(release, b".")
since, helper = [], threading.Thread(target=let_go)
def helped(*call):
    batch(*call)
    since.append(time.monotonic())
    helper.start()
batch, _binding.spawn_batch = _binding.spawn_batch, helped
results = spawn_many([Command(["/bin/true"], deadline=60), Command(["/bin/true"], deadline=6)], return_errors=True)
stop.set()
out["ways"], out["codes"] = ways(results), ended(results)
""",
        armed=False,
    )
    assert out == {"ways": ["fork", "fork"], "codes": [0, 0]}


@pytest.mark.threat("T-23")
def test_change_between_decision_and_clone(tmp_path):
    """Those that were decided before it are begun anew with the credentials of now, and none is lost."""
    out = helpers.run_snippet(
        """
import threading
from safespawn import Command, PIPE
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
safespawn.run(["/bin/true"])
os.setgroups([4, 6])
safespawn.run(["/bin/true"])
intents = []
def change(event, args):
    if event == "safespawn.spawn.intent":
        intents.append(1)
        if len(intents) == 3:
            os.setgroups([1234])
sys.addaudithook(change)
results = safespawn.spawn_many([Command(["/usr/bin/id", "-G"], stdout=PIPE)] * 6, at_once=6)
out["groups"] = [one.communicate()[0].decode() for one in results]
out["ways"] = [one.report.strategy for one in results]
out["why"] = [one.report.reasons[-1].split(":")[0] for one in results]
stop.set()
"""
    )
    assert out["groups"] == ["0 1234\n"] * 6
    assert out["ways"] == ["fork"] * 3 + ["clone"] * 3
    assert out["why"] == ["changes-wait"] * 6  # denied to the first, allowed to the others


def test_credentials_change_all_the_time_beside_batches():
    """A thread changes credentials in a loop: every command runs, by one way or the other, or is told to have lost."""
    out = helpers.run_snippet(
        helpers.LOCK_TOOLS
        + """
stop = threading.Event()
def change():
    while not stop.is_set():
        os.setgroups([1234])
        os.setgroups([4, 6])
thread = threading.Thread(target=change)
thread.start()
came = []
for _ in range(15):
    for one in safespawn.spawn_many([["/bin/true"]] * 12, at_once=6, return_errors=True):
        ran = isinstance(one, safespawn.Process)
        came.append(f"{one.report.strategy} {one.wait()}" if ran else type(one).__name__)
stop.set()
thread.join()
out["came"], out["all"], out["lock"] = sorted(set(came)), len(came), lock()
"""
    )
    assert set(out.pop("came")) <= {"clone 0", "fork 0", "RaceDetected"}
    assert out == {"all": 180, "lock": [0, 0, False]}


def test_fork_beside_a_batch(in_hooks):
    """A process that another thread forks meanwhile has its own lock and its own spawns, and nothing of the batch."""
    out = in_hooks(
        BATCH
        + """
batch = Batch([["/bin/true"]] * 3).wait(3)
until(batch.sleeps)
hooks.park_stage = 0
child = os.fork()
if child == 0:
    try:
        fine = lock() == [0, 0, False] and [one.wait() for one in spawn_many([["/bin/true"]] * 4)] == [0] * 4
    finally:
        os._exit(0 if fine else 1)
out["forked"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os.write(release, b"...")
results = batch.end()
out["codes"], out["ways"] = ended(results), ways(results)
"""
    )
    assert out == {"forked": 0, "codes": [0] * 3, "ways": ["clone"] * 3}


def test_batches_of_two_threads_side_by_side(in_hooks):
    """Both are in the lock at the same time, with all their children."""
    out = in_hooks(
        BATCH
        + """
first = Batch([["/bin/true"]] * 5)
second = Batch([["/bin/true"]] * 6)
first.wait(11)
out["spawners"] = lock()[0]
first.go_on(11)
out["codes"] = ended(first.end()) + ended(second.end())
out["lock"] = lock()
"""
    )
    assert out == {"spawners": 11, "codes": [0] * 11, "lock": [0, 0, False]}


@pytest.mark.threat("T-04")
@pytest.mark.parametrize("guard", ["off", "on"])
def test_arguments_of_a_batch_are_edited(in_hooks, guard):
    """A write into the arguments of any of them reaches the program, if they are not sealed in the window."""
    out = in_hooks(
        BATCH
        + helpers.SWITCH
        + """
import ctypes
arenas = []
made = _binding.Arenas.of
def keep(self, count):
    arenas[:] = made(self, count)
    return arenas
_binding.Arenas.of = keep
batch = Batch([Command(["/bin/echo", "honest"], stdout=PIPE)] * 3).wait(3)
until(batch.sleeps)
out["edited"] = []
for arena in arenas:
    plan = int(_binding.ffi.cast("uintptr_t", arena.plan))
    target = (ctypes.c_char * 6).from_address(plan + ctypes.string_at(plan, 4096).index(b"honest"))
    source, sink = os.pipe()
    os.write(sink, b"forged")
    try:
        os.readv(source, [target])  # a store by the kernel: EFAULT instead of a crash where it is read-only
        out["edited"].append(True)
    except OSError as problem:
        out["edited"].append(False)
batch.go_on(3)
out["said"] = [one.communicate()[0].decode() for one in batch.end()]
""",
        guard=guard,
        name="INPUTS_SEALED",
    )
    off = guard == "off"
    assert out == {"edited": [off] * 3, "said": ["forged\n" if off else "honest\n"] * 3}


def test_only_shared_and_awake_windows_are_batched():
    """The core takes nothing else side by side, whatever Python asks for."""
    out = helpers.run_snippet(
        """
from safespawn import _checks, _spawn, _streams
def refused(flags_off, flags_on):
    job = _spawn.decided(_checks.request(["/bin/true"], {"strategy": "clone"}))
    call, slot = _spawn.ready(job, _streams.Streams()), _binding.Slot()
    call.raw.flags = call.raw.flags & ~flags_off | flags_on
    _binding.spawn_batch([(call, slot)], _binding.Arenas(), job.process)
    job.opened.close()
    return list(slot.outcome()[:3])
out["apart"] = refused(lib.SS_SHARE_MEMORY, 0)
out["asleep"] = refused(lib.SS_AWAKE, 0)
out["launched"] = refused(0, lib.SS_LAUNCH)
"""
    )
    assert out == dict.fromkeys(("apart", "asleep", "launched"), ["failed", "prepare", errno.EINVAL])
