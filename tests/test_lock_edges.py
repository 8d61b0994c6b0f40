"""The credential lock at its edges: what a reviewer found, one test for each finding.

The lock in ordinary use is in test_credlock.py. Here are forks beside the loader, sandboxes,
holes in memory, numbers that are nobody's, and changes that never end.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

import helpers
from test_credlock import COMPANY, TOOLS, changes_in

#: What other people's code does. Loops are in C: there the loader is called without the GIL.
OTHERS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <grp.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/fsuid.h>
#include <sys/wait.h>
#include <unistd.h>

volatile int stop, go, returned;

/* Loads and unloads a library again and again; returns how often. */
int load(const char *path, int count)
{
	int i;

	for (i = 0; i < count && !stop; i++) {
		void *handle = dlopen(path, RTLD_NOW);

		if (!handle)
			return -1;
		dlclose(handle);
	}
	return i;
}

int change_keepcaps(void)
{
	int count;

	for (count = 0; !stop; count++)
		prctl(PR_SET_KEEPCAPS, 0L, 0L, 0L, 0L);
	return count;
}

int change_setfsuid(void)
{
	int count;

	for (count = 0; !stop; count++)
		setfsuid(0);
	return count;
}

/* A fork that Python does not know of. */
int fork_in_c(void)
{
	return fork();
}

int change_in_vfork(void)
{
	int status = 0;
	pid_t pid = vfork();

	if (pid == 0)
		_exit(setegid(0) ? 1 : 7);
	waitpid(pid, &status, 0);
	return WEXITSTATUS(status);
}

static void *cancelled(void *unused)
{
	(void)unused;
	while (!go)
		;
	initgroups("root", 0);
	returned = 1;
	pthread_testcancel();
	return NULL;
}

/* A thread comes to initgroups with its cancellation pending; returns whether it was cancelled. */
int cancel(void)
{
	pthread_t thread;
	void *result;

	go = returned = 0;
	if (pthread_create(&thread, NULL, cancelled, NULL))
		return -1;
	pthread_cancel(thread);
	go = 1;
	pthread_join(thread, &result);
	return result == PTHREAD_CANCELED;
}
"""

CONSTRUCTOR = """
#include <spawn.h>
#include <sys/wait.h>
extern char **environ;

__attribute__((constructor)) static void start(void)
{
	char *argv[] = {"true", 0};
	pid_t pid;

	if (!posix_spawn(&pid, "/bin/true", 0, 0, argv, environ))
		waitpid(pid, 0, 0);
}
"""

HARDENED = """
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

__attribute__((aligned(65536))) struct {
	int (*call)(uid_t);
	char pad[65528];
} operations = {seteuid};

__attribute__((constructor)) static void harden(void)
{
	mprotect(&operations, sizeof(operations), PROT_READ);
}

int call(void)
{
	return operations.call(0);
}
"""

#: The core alone, with one slot in the lock whose child we choose.
HARNESS = """
#include "_native.c"
#include <stdio.h>

static int32_t victim, pidfd;
static uint32_t owner;

static void
start(void)
{
	victim = fork();
	if (!victim)
		for (;;)
			pause();
	pidfd = (int32_t)syscall(SYS_pidfd_open, victim, 0);
	memset(&ss_lock->slots[0], 0, sizeof(ss_lock->slots[0]));
	ss_lock->slots[0].pidfd = &pidfd;
	ss_lock->slots[0].owner = &owner;
	ss_lock->slots[0].state = SS_SLOT_HELD;
	ss_lock->word = SS_SPAWNER;
}

/* What became of the victim: how many were said to be killed, what waitid tells, spawners left. */
static void
preempt(const char *name, int may_drop)
{
	const unsigned killed = ss_preempt(ss_lock, may_drop);
	siginfo_t seen;

	memset(&seen, 0, sizeof(seen));
	/* A signal that was sent to it is told no later than here: it is pending, or it has worked. */
	waitid(P_PID, victim, &seen, killed ? WEXITED : WEXITED | WSTOPPED | WNOHANG);
	printf("%s %u %d %u\\n", name, killed, seen.si_pid ? seen.si_status : 0, ss_lock->word & SS_SPAWNERS);
}

/* Whether the victim was sent anything since it began: a stop that was taken back leaves a trace. */
static void
touched(const char *name)
{
	siginfo_t seen;

	memset(&seen, 0, sizeof(seen));
	waitid(P_PID, victim, &seen, WEXITED | WSTOPPED | WCONTINUED | WNOHANG);
	printf("%s %d\\n", name, seen.si_pid != 0);
}

int
main(void)
{
	if (ss_lock_map())
		return 1;
	start();
	owner = 0;
	preempt("unnamed", 0);
	touched("touched");
	preempt("dropped", 1);
	touched("touched");
	kill(victim, SIGKILL);
	waitpid(victim, NULL, 0);
	start();
	owner = (uint32_t)victim;
	preempt("named", 0);
	return 0;
}
"""

#: The core alone, with a slot of a thread in libc's posix_spawn, and a child of its that shares our memory for good.
FOREIGN = """
#define _GNU_SOURCE
#include "_native.c"
#include <stdio.h>

static char stack[65536] __attribute__((aligned(16)));
static int32_t mother, sharer, born[2], done[2];

static int
rest(void *unused)
{
	for (;;)
		pause();
}

static void
enter(int32_t killed)
{
	memset(&ss_lock->slots[0], 0, sizeof(ss_lock->slots[0]));
	ss_lock->slots[0].tid = mother;
	ss_lock->slots[0].killed = killed != 0;
	ss_lock->slots[0].killed_pid = killed;
	ss_lock->slots[0].state = SS_SLOT_HELD;
	ss_lock->word = SS_SPAWNER;
}

/* How many were killed, whether it was the sharer, spawners left. */
static void
preempt(const char *name)
{
	const unsigned killed = ss_preempt(ss_lock, 1);

	printf("%s %u %d %u\\n", name, killed, waitpid(sharer, NULL, WNOHANG | __WNOTHREAD) != 0, ss_lock->word & SS_SPAWNERS);
}

static void *
spawn(void *unused)
{
	char dot;
	pid_t pid;

	mother = (int32_t)syscall(SYS_gettid);
	sharer = clone(rest, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
	enter(0);
	preempt("before");
	enter(mother); /* no child: one that has ended */
	preempt("back");
	enter(sharer); /* it does not die */
	preempt("stuck");
	enter(0);
	pid = vfork();
	if (!pid) {
		(void)syscall(SYS_write, born[1], ".", 1);
		for (;;)
			syscall(SYS_pause);
	}
	waitpid(pid, NULL, 0);
	(void)!read(done[0], &dot, 1); /* as ss_slot_leave: not while somebody deals with it */
	enter(pid);
	preempt("after");
	kill(sharer, SIGKILL);
	waitpid(sharer, NULL, 0);
	return NULL;
}

int
main(void)
{
	pthread_t thread;
	char dot;

	if (ss_lock_map() || pipe(born) || pipe(done) || pthread_create(&thread, NULL, spawn, NULL) ||
	    read(born[0], &dot, 1) != 1)
		return 1;
	while (!ss_foreign_sleeps(mother))
		;
	printf("asleep %u\\n", ss_preempt(ss_lock, 0));
	(void)!write(done[1], ".", 1);
	return pthread_join(thread, NULL);
}
"""

#: In front of snippets that fork: `child` runs in a forked process and its answer is returned.
#: Whoever hangs is killed by its own alarm, and then there is no answer.
FORKED = """
def alarm(seconds=50):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)

def forked(child, *arguments, fork=os.fork):
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        alarm()
        try:
            found = child(*arguments)
        except BaseException as problem:
            found = repr(problem)
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    text = b""
    while piece := os.read(read, 65536):
        text += piece
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(text) if text else code

def told(report):
    return [report.strategy, report.proof]
"""


#: In front of snippets that capture a pointer: where a function of libc is, of which nothing in our
#: memory has a copy yet, as what ctypes has let go of would.
REAL = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)

def real(name):
    at = lambda name: ctypes.cast(getattr(libc, name), ctypes.c_void_p).value
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, str(at(name) - at("getpid")).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    away = int(os.read(read, 64))
    os.close(read)
    os.close(write)
    return at("getpid") + away
"""


def _build(where: Path, name: str, source: str, *arguments: str) -> str:
    text, made = where / f"{name}.c", where / name
    text.write_text(source, encoding="utf-8")
    done = subprocess.run(
        ["cc", "-std=gnu11", "-O1", "-w", *arguments, text, "-o", made, "-pthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(made)


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build the libraries of other people and return their paths by name."""
    where = tmp_path_factory.mktemp("others")
    sources = {"others": OTHERS, "plain": "int nothing;", "constructor": CONSTRUCTOR, "hardened": HARDENED}
    return {name: _build(where, f"{name}.so", text, "-shared", "-fPIC") for name, text in sources.items()}


# ---------------------------------------------------------------- arming and searching


def test_arming_again_never_forgets_what_was_captured():
    """While one thread arms again and again, who looks always sees the captured pointer, and spawns fork."""
    out = helpers.run_snippet(
        TOOLS
        + """
import ctypes, mmap
real = ctypes.cast(credchanges.libc.setresuid, ctypes.c_void_p).value
# So much that the search takes its time; the pointer lies at the end of it.
heap = mmap.mmap(-1, 160 << 20)
heap.write(b"x" * (len(heap) - 8) + real.to_bytes(8, sys.byteorder))
guards.arm()
"""
        + COMPANY
        + """
out["found"] = lock("captured") > 0
arms, least, looks, spawns = 0, 99, 0, set()

def arm():
    global arms
    while arms < 12:
        guards.arm()
        arms += 1

armer = threading.Thread(target=arm)
armer.start()
spawned = -1
while armer.is_alive():
    least = min(least, lock("captured"))
    looks += 1
    if arms != spawned and arms % 4 == 3:
        spawned = arms
        report = safespawn.run(["/bin/true"]).report
        spawns.add((report.strategy, "taken before arming" in report.reasons[0]))
armer.join()
out["least"], out["looks"], out["spawns"] = least > 0, looks > 100, sorted(spawns)
""",
        armed=False,
    )
    assert out == {"found": True, "least": True, "looks": True, "spawns": [["fork", True]]}


@pytest.mark.parametrize("hole", [0, 3, 7])
def test_hole_does_not_hide_a_pointer(hole):
    """A page that cannot be read, in the same chunk and in front of a captured pointer, hides nothing."""
    out = helpers.run_snippet(
        TOOLS
        + REAL
        + """
page = mmap.PAGESIZE
address = real("setresuid")
libc.mmap.restype = ctypes.c_void_p
# 16 pages that are no part of another mapping; the pointer lies on the ninth.
low = page + libc.mmap(None, ctypes.c_size_t(18 * page), 0, 0x22, -1, 0)  # MAP_PRIVATE | MAP_ANONYMOUS
assert libc.mprotect(ctypes.c_void_p(low), ctypes.c_size_t(16 * page), 3) == 0
for i in range(16):
    ctypes.c_char.from_address(low + i * page).value = b"x"
out["none"] = guards.arm()["captured"]
ctypes.c_size_t.from_address(low + 8 * page).value = address
hidden = ctypes.c_void_p(low + hole * page), ctypes.c_size_t(page)
# Linux 6.13 has pages that exist, and that nobody can read; before, they are another mapping.
if libc.madvise(*hidden, 102):  # MADV_GUARD_INSTALL
    assert libc.mprotect(*hidden, 0) == 0
status = guards.arm()
out["found"], out["there"] = status["captured"], status["captured_at"] == low + 8 * page
out["unsearched"] = status["unsearched"]
""",
        armed=False,
        hole=hole,
    )
    assert out == {"none": 0, "found": 1, "there": True, "unsearched": 0}


def test_slot_on_a_page_that_its_program_closed(others):
    """A bound slot that was made read-only by a constructor is led to us, and the page is closed again."""
    out = helpers.run_snippet(
        TOOLS
        + """
import ctypes
hardened = ctypes.CDLL(library)
slot = ctypes.c_size_t.in_dll(hardened, "operations")

def rights():
    for line in open("/proc/self/maps"):
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= ctypes.addressof(slot) < high:
            return line.split()[1]

out["before"] = rights(), slot.value
assert hardened.call() == 0
out["state"], out["problems"] = guards.arm()["state"], guards.status()["lock"]["problems"]
out["after"] = rights(), slot.value
before = lock("changes")
out["call"], out["seen"] = hardened.call(), lock("changes") - before
guards.arm()
"""
        + COMPANY
        + """
out["proof"] = safespawn.run(["/bin/true"]).report.proof
""",
        armed=False,
        library=others["hardened"],
    )
    (rights, value), (rights_then, value_then) = out.pop("before"), out.pop("after")
    assert rights == rights_then == "r--p" and value != value_then
    assert out == {"state": "armed", "problems": [], "call": 0, "seen": 1, "proof": "locked"}


DROP = """
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
"""


def test_arming_again_after_a_drop_of_privileges():
    """/proc is closed to who has dropped privileges: what was armed stays armed, and the proof holds."""
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
until(lambda: proof() == "holds")
out["before"] = safespawn.run(["/bin/true"]).report.proof
"""
        + DROP
        + """
out["dropped"] = safespawn.run(["/bin/true"]).report.proof
status = guards.arm(wait=1.0)
out["status"] = [status["state"], status["errno"], status["problems"], status["wait"]]
until(lambda: proof() == "holds")
out["again"] = safespawn.run(["/bin/true"]).report.proof
"""
    )
    assert out == {"before": "locked", "dropped": "locked", "status": ["armed", 0, [], 1.0], "again": "locked"}


def test_pointers_are_found_after_a_drop_of_privileges():
    """Who is armed after a drop finds what was captured before it, without pagemap; what is huge is told."""
    out = helpers.run_snippet(
        TOOLS
        + REAL
        + """
address, taken = real("setresuid"), mmap.mmap(-1, mmap.PAGESIZE)
"""
        + DROP
        + """
out["state"], out["none"] = guards.arm()["state"], lock("captured")
ctypes.c_size_t.from_buffer(taken).value = address
out["found"], out["unsearched"] = guards.arm()["captured"], lock("unsearched")
huge = mmap.mmap(-1, 300 << 20)
out["huge"] = guards.arm()["unsearched"]
""",
        armed=False,
    )
    assert out == {"state": "armed", "none": 0, "found": 1, "unsearched": 0, "huge": 1}


# ---------------------------------------------------------------- forks


def test_fork_beside_other_threads():
    """In a child forked beside other threads the lock is no proof, says why, and spawns work as they can."""
    out = helpers.run_snippet(
        TOOLS
        + FORKED
        + COMPANY
        + """
def child():
    found = {"why": proof(), "alone": told(safespawn.run(["/bin/true"]).report)}
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    report = safespawn.run(["/bin/true"]).report
    found["together"] = [*told(report), report.reasons[0].rpartition(": ")[2]]
    before = lock("changes")
    os.setegid(0)
    found["seen"] = lock("changes") - before
    found["armed again"], found["then"] = guards.arm()["state"], proof()
    found["its own"] = forked(proof)
    return found

out["child"] = forked(child)
out["ours"] = told(safespawn.run(["/bin/true"]).report)
"""
    )
    why = "forked beside other threads, one of which may have held the loader's lock"
    assert out == {
        "child": {
            "why": why,
            "alone": ["vfork", "single-threaded"],
            "together": ["fork", None, why],
            "seen": 1,
            "armed again": "armed",
            "then": why,
            "its own": why,
        },
        "ours": ["vfork", "locked"],
    }


@pytest.mark.parametrize("by", ["arming", "loading"])
def test_fork_while_others_hold_the_loader(others, by):
    """50 forks while other threads load, unload and arm: every child spawns, none hangs."""
    out = helpers.run_snippet(
        TOOLS
        + FORKED
        + """
import ctypes
library = ctypes.CDLL(others)
stop = False

def loading():
    library.load(plain.encode(), 2**31 - 1)

def arming():
    while not stop:
        guards.arm()

def child():
    alone = told(safespawn.run(["/bin/true"]).report)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return alone, told(safespawn.run(["/bin/true"]).report)

safespawn.run(["/bin/true"])
threads = [threading.Thread(target=target) for target in {"loading": [loading], "arming": [arming, loading]}[by]]
for thread in threads:
    thread.start()
answers = []
while len(answers) < 50 and -signal.SIGALRM not in answers:
    answers.append(forked(child))
stop = True
ctypes.c_int.in_dll(library, "stop").value = 1
for thread in threads:
    thread.join()
out["count"], out["answers"] = len(answers), sorted({json.dumps(answer) for answer in answers})
""",
        others=others["others"],
        plain=others["plain"],
        by=by,
    )
    assert out == {"count": 50, "answers": ['[["vfork", "single-threaded"], ["fork", null]]']}


def test_fork_in_c_keeps_its_lock(others):
    """A process that C has forked, and whose vfork child is the first to call a wrapper, has its own lock."""
    out = helpers.run_snippet(
        TOOLS
        + FORKED
        + """
import ctypes
library = ctypes.CDLL(others)

def child():
    found = {"vfork": library.change_in_vfork(), "changes": lock("changes")}
"""
        + "    "
        + COMPANY.strip().replace("\n", "\n    ")
        + """
    found["why"], found["spawn"] = proof(), told(safespawn.run(["/bin/true"]).report)
    os.setegid(0)
    return {**found, "seen": lock("changes"), "lock": lock()}

out = forked(child, fork=library.fork_in_c)
""",
        others=others["others"],
    )
    assert out == {
        "vfork": 7,
        "changes": 0,
        "why": "holds",
        "spawn": ["vfork", "locked"],
        "seen": 1,
        "lock": [0, 0, False],
    }


def test_fork_inside_a_change_with_the_same_pid():
    """Pid 1 forks inside a bracket a child that is pid 1 too, elsewhere: it frees nothing that is not its own."""
    out = helpers.run_snippet(
        TOOLS
        + FORKED
        + """
NEWPID = 0x20000000

def first():
    read, write = os.pipe()
    with guards.credential_change():
        credchanges.raw("unshare", NEWPID)
        pid = os.fork()
    if pid == 0:
        alarm()
        found = [os.getpid(), lock()]
        with guards.credential_change():
            found.append(lock())
        os.write(write, json.dumps([*found, lock(), told(safespawn.run(["/bin/true"]).report)]).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    return {"parent": [os.getpid(), lock()], "child": json.loads(os.read(read, 65536) or b"null")}

credchanges.raw("unshare", NEWPID)
out = forked(first)
"""
    )
    free = [0, 0, False]
    assert out == {
        "parent": [1, free],
        "child": [1, free, [0, 1, False], free, ["vfork", "single-threaded"]],
    }


# ------------------------------------------------------------- between fork and exec


def test_preexec_does_not_log():
    """What a preexec_fn changes is not told there: a lock that telling takes may be held for ever."""
    out = helpers.run_snippet(
        TOOLS
        + FORKED
        + """
import logging, subprocess
holding, leave, lock_of_others = threading.Event(), threading.Event(), threading.Lock()
told_of = []

class Handler(logging.Handler):
    def emit(self, record):
        with lock_of_others:
            told_of.append(record.getMessage())

def hold():
    with lock_of_others:
        holding.set()
        leave.wait()

logging.getLogger().addHandler(Handler())
logging.getLogger().setLevel(logging.INFO)
os.setegid(0)
out["told"] = len(told_of)
holder = threading.Thread(target=hold)
holder.start()
holding.wait()

def prepare():
    alarm()
    os.setgroups([])

out["code"] = subprocess.run(["/bin/true"], preexec_fn=prepare).returncode
leave.set()
holder.join()
out["not here"] = len(told_of)
"""
    )
    assert out == {"told": 1, "code": 0, "not here": 1}


def test_preexec_under_logging(tmp_path):
    """100 programs with a preexec_fn that changes groups, while other threads log to a file: none hangs."""
    out = helpers.run_snippet(
        TOOLS
        + FORKED
        + """
import logging, subprocess
logging.basicConfig(level=logging.INFO, filename=log)
stop = False

def spawns():
    while not stop:
        safespawn.run(["/bin/true"], strategy="fork")

def changes():
    while not stop:
        os.setegid(0)

def prepare():
    alarm()
    os.setgroups([])

threads = [threading.Thread(target=target) for target in (spawns, changes)]
for thread in threads:
    thread.start()
codes = []
while len(codes) < 100 and not any(codes):
    codes.append(subprocess.run(["/bin/true"], preexec_fn=prepare).returncode)
stop = True
for thread in threads:
    thread.join()
out["codes"], out["count"] = sorted(set(codes)), len(codes)
""",
        log=str(tmp_path / "log"),
    )
    assert out == {"codes": [0], "count": 100}


def test_forked_worker_records_its_changes_later(tmp_path):
    """What a forked worker changes has a record after its next spawn, or when it ends; from then on at once."""
    ledger = tmp_path / "ledger"
    out = helpers.run_snippet(
        TOOLS
        + FORKED
        + """
from safespawn import audit
audit.open(ledger)

def recorded():
    lines = [json.loads(line) for line in open(ledger)]
    return [line["change"]["args"] for line in lines if line["ev"] == "cred.change"]

def worker():
    os.setegid(4)
    os.setegid(0)
    found = [recorded()]
    safespawn.run(["/bin/true"])
    found.append(recorded())
    os.setegid(5)
    return [*found, recorded()]

out["worker"] = forked(worker)
pid = os.fork()
if pid == 0:
    alarm()
    os.setegid(6)
    sys.exit(0)
out["code"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
""",
        ledger=str(ledger),
    )
    assert out == {"worker": [[], [[4], [0]], [[4], [0], [5]]], "code": 0}
    assert [change["args"] for change in changes_in(ledger)] == [[4], [0], [5], [6]]


# ---------------------------------------------------------------- the bound


def test_number_of_a_child_that_never_was(tmp_path):
    """clone(2) may store a descriptor and fail: nobody is signalled by it until the child has named itself."""
    program = _build(tmp_path, "harness", HARNESS, f"-I{helpers.ROOT / 'safespawn'}")
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "unnamed 0 0 1",
        "touched 0",
        "dropped 0 0 1",
        "touched 0",
        "named 1 9 1",
    ]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_sandbox_that_refuses_signals(in_hooks, number):
    """Where no child could be killed for a change there is no proof: it says so, spawns fork, nothing waits."""
    out = in_hooks(
        helpers.PARKED
        + """
import sandbox
guards.arm(wait=0.05)
sandbox.answer({"pidfd_send_signal": number})
"""
        + COMPANY
        + """
out["why"] = guards.status()["proofs"]["locked"]
report = safespawn.run(["/bin/true"]).report
out["spawn"], out["told"] = [report.strategy, report.proof], report.reasons[0].endswith(out["why"])
assert report.strategy == "fork"  # or the next one holds us for ever
thread = parked_spawn(["/bin/true"])
out["lock"] = lock()
os.setegid(0)
with guards.credential_change():
    pass
out["parked"] = thread.is_alive()
os.write(release, b".")
thread.join()
out.update(result)
""",
        number=number,
    )
    assert out == {
        "why": f"a child could not be killed for a change, pidfd_send_signal: {os.strerror(number)}",
        "spawn": ["fork", None],
        "told": True,
        "lock": [0, 0, False],
        "parked": True,
        "output": "",
        "strategy": "fork",
        "proof": None,
    }


def test_foreign_child_of_a_thread_with_many_children(in_hooks, tmp_path):
    """A child of posix_spawn is found and killed at the bound although 300 others come before it in the list."""
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
pid, before = ctypes.c_int(), []

def foreign():
    children = [safespawn.spawn(["/bin/sleep", "1000"], strategy="fork") for _ in range(300)]
    before.extend(others())
    argv = (ctypes.c_char_p * 2)(b"/bin/true", None)
    out["error"] = libc.posix_spawn(ctypes.byref(pid), b"/bin/true", actions, None, argv, None)
    for child in children:
        child.kill()
        child.wait()

def others():
    return open(f"/proc/self/task/{thread.native_id}/children").read().split()

thread = threading.Thread(target=foreign)
thread.start()
until(lambda: len(before) == 300 and len(others()) == 301)
out["far behind"] = len(" ".join(before)) > 1024
credchanges.CALLS["prctl-keepcaps"].make()
seen, = _lock.fetch()
out["seen"] = [seen.killed, seen.waited_ns >= 100_000_000]
if not seen.killed:
    open(fifo, "w").close()
thread.join()
out["code"] = os.waitstatus_to_exitcode(os.waitpid(pid.value, 0)[1])
out["lock"], out["overlaps"] = lock(), lock("overlaps")
""",
        fifo=str(fifo),
    )
    assert out == {
        "far behind": True,
        "error": 0,
        "code": -9,
        "seen": [1, True],
        "lock": [0, 0, False],
        "overlaps": 0,
    }


def test_foreign_child_beside_another_on_our_memory(in_hooks, tmp_path):
    """Of two children of a thread that share our memory, the one that it waits for is killed at the bound."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    out = in_hooks(
        helpers.PARKED
        + """
import ctypes
guards.arm(wait=0.1, guard_foreign=True)
libc = credchanges.libc
actions = credchanges.opening(fifo)
pid, tids, older = ctypes.c_int(), [], []
stack = ctypes.create_string_buffer(65536)
top = (ctypes.addressof(stack) + 65536) & ~15

def foreign():
    # clone(CLONE_VM | SIGCHLD) into pause(): nobody waits for it to leave.
    older.append(libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), ctypes.c_void_p(top), 0x100 | signal.SIGCHLD, None))
    tids.append(threading.get_native_id())
    argv = (ctypes.c_char_p * 2)(b"/bin/true", None)
    out["error"] = libc.posix_spawn(ctypes.byref(pid), b"/bin/true", actions, None, argv, None)

def is_parked():
    children = open(f"/proc/self/task/{tids[0]}/children").read().split() if tids else []
    return len(children) == 2 and credchanges.sits_in(int(children[1]), "openat")

thread = threading.Thread(target=foreign)
thread.start()
until(is_parked)
credchanges.CALLS["prctl-keepcaps"].make()
if lock("overlaps") or os.waitpid(older[0], os.WNOHANG)[0]:
    open(fifo, "w").close()  # the change went ahead beside it
thread.join()
out["code"] = os.waitstatus_to_exitcode(os.waitpid(pid.value, 0)[1])
out["older"] = os.waitpid(older[0], os.WNOHANG)[0]
os.kill(older[0], signal.SIGKILL)
os.waitpid(older[0], 0)
out["lock"], out["overlaps"] = lock(), lock("overlaps")
""",
        fifo=str(fifo),
    )
    assert out == {"error": 0, "code": -9, "older": 0, "lock": [0, 0, False], "overlaps": 0}


def test_foreign_child_beside_one_that_was_inherited(in_hooks, tmp_path):
    """One on our memory that came from a thread that has ended is killed first, and the change waits for the other too."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    out = in_hooks(
        helpers.LOCK_TOOLS
        + """
import ctypes
from safespawn import _lock
guards.arm(wait=0.1, guard_foreign=True)
libc = credchanges.libc
actions = credchanges.opening(fifo)
stack = ctypes.create_string_buffer(65536)
top = (ctypes.addressof(stack) + 65536) & ~15
sharer, pid, seen = [], ctypes.c_int(), []

def mother():
    # clone(CLONE_VM | SIGCHLD) into pause(), by a thread that ends: the main thread gets the child.
    until(lambda: children() and credchanges.sits_in(children()[-1], "openat"))
    sharer.append(libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), ctypes.c_void_p(top), 0x100 | signal.SIGCHLD, None))

def children():
    return [int(one) for one in open(f"/proc/self/task/{os.getpid()}/children").read().split()]

def change():
    mother_thread.join()
    until(lambda: len(children()) == 2 and children()[1] == sharer[0])
    credchanges.CALLS["prctl-keepcaps"].make()
    seen.extend(_lock.fetch())
    os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))  # whoever is left goes on

mother_thread, changer = threading.Thread(target=mother), threading.Thread(target=change)
mother_thread.start()
changer.start()
argv = (ctypes.c_char_p * 2)(b"/bin/true", None)
out["error"] = libc.posix_spawn(ctypes.byref(pid), b"/bin/true", actions, None, argv, None)
changer.join()
out["codes"] = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in (pid.value, sharer[0])]
out["killed"] = [one.killed for one in seen]
out["lock"], out["overlaps"] = lock(), lock("overlaps")
""",
        fifo=str(fifo),
    )
    assert out == {"error": 0, "codes": [-9, -9], "killed": [2], "lock": [0, 0, False], "overlaps": 0}


def test_foreign_thread_that_is_awake_waits_for_nobody(tmp_path):
    """Before its clone, and back from it, what else shares our memory is let be: what was killed had been all."""
    program = _build(tmp_path, "foreign", FOREIGN, f"-I{helpers.ROOT / 'safespawn'}")
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["before 0 0 1", "back 0 0 1", "stuck 0 0 1", "asleep 1", "after 0 0 1"]


def test_library_that_starts_programs_when_loaded(others):
    """A constructor calls posix_spawn, with the loader's lock held, while another thread spawns: no deadlock."""
    out = helpers.run_snippet(
        TOOLS
        + FORKED
        + """
import ctypes
library = ctypes.CDLL(others)
guards.arm(guard_foreign=True)
"""
        + COMPANY
        + """
alarm()
loader = threading.Thread(target=lambda: out.update(loaded=library.load(constructor.encode(), 200)))
loader.start()
spawns = 0
while loader.is_alive():
    spawns += safespawn.run(["/bin/true"]).returncode == 0
loader.join()
out["spawned"], out["lock"] = spawns > 0, lock()
""",
        others=others["others"],
        constructor=others["constructor"],
    )
    assert out == {"loaded": 200, "spawned": True, "lock": [0, 0, False]}


# ---------------------------------------------------------------- changes that never end


@pytest.mark.parametrize("user", [None, 65534])
@pytest.mark.parametrize("call", ["keepcaps", "setfsuid"])
def test_changes_that_never_end(in_hooks, others, call, user):
    """A thread changes credentials in a tight loop: spawns get through all the same, and say how.

    Each child stands before its exec until there was a change, or one waits for it. Without a
    way to hold changes off none would ever run.
    """
    out = in_hooks(
        helpers.PARKED
        + """
import ctypes
library = ctypes.CDLL(others)
options = {} if user is None else {"user": user, "group": user, "extra_groups": []}
changer = threading.Thread(target=getattr(library, "change_" + call))
changer.start()
until(lambda: lock("changes") > 100)
hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("close"), parked, go

def let_go():
    while os.read(ready, 1) == b".":
        before = lock("epoch")
        until(lambda: lock("epoch") > before or changer_waits())
        os.write(release, b".")

gate = threading.Thread(target=let_go)
gate.start()
ways, why, wrong = {}, set(), []
for _ in range(40):
    try:
        done = safespawn.run(["/usr/bin/id", "-u"], capture_output=True, **options)
        if int(done.stdout) != (user or 0):
            wrong.append(done.stdout.decode())
        way = done.report.strategy
        why.update(reason.partition(":")[0] for reason in done.report.reasons)
    except safespawn.RaceDetected as problem:
        way = "race at " + problem.stage
    ways[way] = ways.get(way, 0) + 1
os.write(parked, b"x")
gate.join()
ctypes.c_int.in_dll(library, "stop").value = 1
changer.join()
out.update(ways=ways, why=sorted(why), wrong=wrong, lock=lock(), overlaps=lock("overlaps"))
""",
        others=others["others"],
        call=call,
        user=user,
    )
    print(out["ways"], out["why"])
    # On a quiet machine it is 39 or 40; where others have the processors a spawn may find no gap.
    assert sum(out["ways"].get(way, 0) for way in ("fork", "launcher", "vfork")) >= 10
    assert set(out["ways"]) <= {"fork", "launcher", "vfork", "race at epoch"}
    assert "epoch-agrees" in out["why"]
    assert (out["wrong"], out["lock"], out["overlaps"]) == ([], [0, 0, False], 0)


@pytest.mark.parametrize("bound", [False, True])
def test_spawn_that_lost_to_a_change_holds_the_next_one_off(in_hooks, bound):
    """After a change came between, a forked child counts as a spawner: changes wait for it, up to the bound."""
    out = in_hooks(
        helpers.PARKED
        + COMPANY
        + """
from safespawn import _lock
guards.arm(wait=0.1 if bound else 30)
hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("close"), parked, go
thread = threading.Thread(target=spawner, args=(["/bin/echo", "ran"], {"strategy": "fork"}))
thread.start()

def change(count=[0]):
    count[0] += 1
    credchanges.by_libc("setfsuid", 0)

def next_child():
    assert select.select([ready], [], [], 30)[0], result
    os.read(ready, 1)

next_child()
out["first"] = lock()
change()
os.write(release, b".")
next_child()
out["second"] = lock()
changer = threading.Thread(target=change)
changer.start()
if bound:
    changer.join()  # it is let go while the child is where it was
    out["let go"] = [thread.is_alive(), lock()]
    os.write(release, b".")
    next_child()
    out["third"] = lock()
    hooks.park_stage = 0
    os.write(release, b".")
else:
    until(changer_waits)
    out["waits"] = [changer.is_alive(), lock()]
    hooks.park_stage = 0
    os.write(release, b".")
    changer.join()
thread.join()
out["seen"] = [[seen.waited_ns > 0, seen.waited_ns >= 100_000_000, seen.killed] for seen in _lock.fetch()]
if not bound:
    out["seen"][1][1] = None  # as long as it took us
out.update(result, lock=lock(), overlaps=lock("overlaps"))
""",
        bound=bound,
    )
    ran = {"output": "ran\n", "strategy": "fork", "proof": None, "lock": [0, 0, False], "overlaps": 0}
    assert out == {
        **ran,
        "first": [0, 0, False],
        "second": [1, 0, False],
        "seen": [[False, False, 0], [True, True if bound else None, 0]],
        **(
            {"let go": [True, [0, 0, False]], "third": [1, 0, False]}
            if bound
            else {"waits": [True, [1, 0, True]]}
        ),
    }


def test_more_windows_than_spawners(in_hooks):
    """132 forked children are in their windows at once, and four more come: none is taken for a race."""
    out = in_hooks(
        helpers.PARKED
        + """
hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("session"), parked, go
ways = []

def spawn():
    try:
        ways.append(safespawn.run(["/bin/true"], strategy="fork").report.strategy)
    except safespawn.RaceDetected as problem:
        ways.append("race at " + problem.stage)

threads = [threading.Thread(target=spawn) for _ in range(132)]
for thread in threads:
    thread.start()
there = 0
while there < 132:
    assert select.select([ready], [], [], 30)[0], (there, ways)
    there += len(os.read(ready, 256))
hooks.park_stage = 0
for _ in range(4):
    spawn()
out["more"] = sorted(set(ways))
os.write(release, b"." * 132)
for thread in threads:
    thread.join()
out["ways"], out["count"], out["lock"] = sorted(set(ways)), len(ways), lock()
"""
    )
    assert out == {"more": ["fork"], "ways": ["fork"], "count": 136, "lock": [0, 0, False]}


@pytest.mark.parametrize("tasks", [64, 65])
def test_many_threads_are_compared_at_the_second_look(tasks):
    """Above 64 threads a comparison costs more than a fork: after each change it is made at the second look."""
    out = helpers.run_snippet(
        TOOLS
        + """
leave = threading.Event()
for _ in range(tasks - 1):
    threading.Thread(target=leave.wait, daemon=True).start()
assert len(os.listdir("/proc/self/task")) == tasks
until(lambda: proof() == "holds")
os.setegid(0)
out["looks"] = [_lock.why_not() for _ in range(3)]
os.setegid(0)
reports = [safespawn.run(["/bin/true"]).report for _ in range(3)]
out["spawns"] = [report.strategy for report in reports]
out["told"] = reports[0].reasons[0].partition("window: ")[2] if reports[0].strategy == "fork" else None
""",
        tasks=tasks,
    )
    often = "many threads, and a change since the last spawn"
    are_many = tasks > 64
    assert out == {
        "looks": [often if are_many else None, None, None],
        "spawns": ["fork" if are_many else "vfork", "vfork", "vfork"],
        "told": often if are_many else None,
    }


# ---------------------------------------------------------------- wrappers


@pytest.mark.parametrize("call", ["seccomp", "keyctl"])
def test_operation_with_high_bits(call):
    """The kernel looks at 32 bits of the operation; so do we, whatever stands above them."""
    out = helpers.run_snippet(
        TOOLS
        + COMPANY
        + """
arguments = {"seccomp": (1 << 32 | 1, 1 << 32, credchanges._program), "keyctl": (1 << 32 | 1, 0)}[call]
until(lambda: proof() == "holds")
before = lock("changes")
credchanges.by_syscall(call, *arguments)
out["seen"] = [[seen.call, seen.errno] for seen in _lock.fetch()]
out["changes"] = lock("changes") - before
out["why"], out["strategy"] = proof(), safespawn.run(["/bin/true"]).report.strategy
""",
        call=call,
    )
    assert out == {
        "seen": [[call, 0]],
        "changes": 1,
        "why": f"a thread called {call} for itself, which nothing shows",
        "strategy": "fork",
    }


def test_initgroups_that_is_cancelled(others):
    """A thread that is cancelled where initgroups reads files leaves the lock, and ends just after."""
    out = helpers.run_snippet(
        TOOLS
        + """
import ctypes
library = ctypes.CDLL(others)
out["cancelled"] = [library.cancel() for _ in range(3)]
out["returned"] = ctypes.c_int.in_dll(library, "returned").value
out["seen"] = [[seen.call, seen.errno] for seen in _lock.fetch()]
out["lock"] = lock()
"""
        + COMPANY
        + """
out["why"], out["spawn"] = proof(), safespawn.run(["/bin/true"]).report.proof
""",
        others=others["others"],
    )
    assert out == {
        "cancelled": [1, 1, 1],
        "returned": 1,
        "seen": [["initgroups", 0]] * 3,
        "lock": [0, 0, False],
        "why": "holds",
        "spawn": "locked",
    }


def test_functions_of_os_stay_what_they_were():
    """As a class's attribute, pickled, copied, printed and asked for their signature they are as before."""
    out = helpers.run_snippet(
        """
import copy, inspect, pickle
from safespawn import _lock

class Operations:
    seteuid = os.seteuid
    setegid = staticmethod(os.setegid)

out["method"] = [Operations().seteuid(0), Operations.seteuid(0), Operations().setegid(0)]
covered = [getattr(os, name) for name in _lock.FUNCTIONS if hasattr(os, name)]
out["count"] = len(covered) >= 11
for function in covered:
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(function) is copy.copy(function) is function
    assert inspect.signature(function) == inspect.signature(function.__wrapped__)
    assert repr(function).startswith(f"<built-in function {function.__name__}")
    assert (function.__doc__, function.__module__) == (function.__wrapped__.__doc__, "posix")
    assert callable(function) and function == function and hash(function) == hash(function)
for wrong in (("x",), (), (1, 2)):
    try:
        os.setuid(*wrong)
    except TypeError as problem:
        out.setdefault("refused", []).append("_Waits" in str(problem))
"""
    )
    assert out == {"method": [None] * 3, "count": True, "refused": [False] * 3}
