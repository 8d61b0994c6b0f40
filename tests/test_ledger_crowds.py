"""Many writers at once, forks of every kind, and processes that do odd things to themselves."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import faulting
import helpers
import ledger_check

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

#: What the scenes share: ways to fork, and threads that wait where they can be seen to wait.
TOOLS = """
import threading

libc = ctypes.CDLL(None, use_errno=True)
CLONE = 56 if os.uname().machine == "x86_64" else 220

def clone():
    '''A fork past libc: clone(2) with SIGCHLD and nothing else.'''
    return libc.syscall(CLONE, signal.SIGCHLD, None, None, None, None)

FORKS = dict(python=os.fork, libc=lambda: libc.fork(), clone=clone)

def child(do, how="python"):
    '''Fork, have the child do that, return its pid. It ends with 0, or 1 and a traceback.'''
    pid = FORKS[how]()
    if pid:
        return pid
    signal.alarm(100)
    code = 1
    try:
        do()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

def ended(*pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

def all_at_once(*functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

def tell(opened, **fields):
    assert opened.append("guard.config", None, lambda: fields, gate=True)

def waits(thread):
    '''Whether a thread is asleep in the kernel.'''
    with open(f"/proc/self/task/{thread.native_id}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"

def asleep(thread):
    while thread.native_id is None or not waits(thread):
        os.sched_yield()

def in_line(case, opened, call, count):
    '''Threads that write one after the other, while the first of them is parked in a call; then it goes on.'''
    parked, go_on = os.pipe()
    arm(case["where"], rule(call, park=parked))
    threads = []
    for i in range(count):
        threads.append(threading.Thread(target=tell, args=(opened,), kwargs=dict(i=i)))
        threads[-1].start()
        asleep(threads[-1])
    os.write(go_on, b".")
    for thread in threads:
        thread.join()
    os.close(parked)
    os.close(go_on)

FUTEX = "202" if os.uname().machine == "x86_64" else "98"

def is_held_up(thread):
    '''Whether a thread waits for a lock, for however long: not for the GIL, which is looked for again and again.'''
    with open(f"/proc/self/task/{thread.native_id}/syscall") as file:
        call, *arguments = file.read().split()
    return call == FUTEX and int(arguments[3], 16) == 0

def held_up(thread, is_it=is_held_up):
    while thread.native_id is None or not is_it(thread):
        os.sched_yield()

def is_queued(thread):
    '''Whether it waits in a queue of a ledger: those wake by a bit, and no lock of libc or Python does.'''
    with open(f"/proc/self/task/{thread.native_id}/syscall") as file:
        call, *arguments = file.read().split()
    return call == FUTEX and int(arguments[5], 16) & 0xffffffff != 0xffffffff and is_held_up(thread)
"""


def play(
    scene: str, where: Path, faults: Path, *, keyed: bool = True, **case: Any
) -> tuple[dict[str, Any], ledger_check.Ledger]:
    """Play a scene in a process of its own; return what it says, and the ledger after a look at every chain."""
    text = TOOLS + "\n" + textwrap.dedent(scene)
    text += """
def scene(case):
    case["keys"] = case["where"] + "/keys" if case["keyed"] else None
    key = keys_of.initialise(case["keys"]) if case["keyed"] else None
    arm(case["where"])
    case["ledger"] = case["where"] + "/ledger"
    return dict(played(case) or {}, key=key)
"""
    (out,) = faulting.run(text, [{"where": str(where), "keyed": keyed, **case}], where, faults)
    assert "key" in out, out
    ledger_check.verified(where / "ledger", out["key"], where / "keys")
    return out, ledger_check.check(where / "ledger", out["key"], where / "keys")


# ------------------------------------------------------------------ many at once


def test_processes_threads_and_forks(tmp_path: Path, faults: Path) -> None:
    """Four processes with four threads each that append, spawn and fork: each chain has exactly its records."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])

            def thread(process, number):
                for i in range(30):
                    tell(opened, process=process, thread=number, i=i, pad="x" * (i * 97 % 5000))
                    if i % 10 == 3:
                        safespawn.run(["/bin/true", f"{process}-{number}-{i}"])
                    if i % 10 == 7:
                        assert ended(child(lambda: tell(opened, process=process, thread=number, forked=i))) == [0]

            def process(number):
                all_at_once(*(lambda n=n: thread(number, n) for n in range(4)))
                opened.close()

            codes = ended(*[child(lambda: process(number)) for number in range(4)])
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
    )
    told = Counter(
        (r["process"], r["thread"], r.get("i"), r.get("forked")) for r in ledger.records if "process" in r
    )
    by_chain = [[r for r in chain.records if "i" in r] for chain in ledger.chains.values()]

    assert out["codes"] == [0] * 4
    expected = {(p, t, i, None) for p in range(4) for t in range(4) for i in range(30)}
    expected |= {(p, t, None, i) for p in range(4) for t in range(4) for i in (7, 17, 27)}
    assert told == dict.fromkeys(expected, 1)
    for records in by_chain:
        for thread in range(4):
            assert [r["i"] for r in records if r["thread"] == thread] == list(range(len(records) // 4))
    assert len(ledger.of("spawn.exit")) == 4 * 4 * 3
    assert len(ledger.chains) == 1 + 4 + 4 * 4 * 3
    assert ledger.torn == []


def test_first_come_first_served(tmp_path: Path, faults: Path) -> None:
    """Threads that come while another is in the middle of its write are served in the order in which they came."""
    _, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])
            in_line(case, opened, "write", 40)
            opened.close()
        """,
        tmp_path,
        faults,
    )

    assert [r["i"] for r in ledger.of("guard.config")] == list(range(40))


def test_threads_share_a_flush(tmp_path: Path, faults: Path) -> None:
    """What forty threads write while the disk is flushed for one is flushed at once: twice in all, not 41 times."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], "durable", keys=case["keys"])
            in_line(case, opened, "fdatasync", 41)
            calls = seen()
            opened.close()
            return dict(calls=calls)
        """,
        tmp_path,
        faults,
    )

    assert len(ledger.of("guard.config")) == out["calls"].count("write") == 41
    assert out["calls"].count("fdatasync") == 2


#: All that threads do with a ledger at once: records, checkpoints, segments, flushes, counts, mirrors.
EVERYTHING = """
import logging, sys, threading
where, core = sys.argv[1:]
sys.path.insert(0, core)
from safespawn import audit
from safespawn.audit import mirrors

audit.keys.initialise(where + "/keys")
logging.getLogger("mirror").addHandler(logging.NullHandler())
logging.getLogger("mirror").setLevel(logging.INFO)

def work(opened, number):
    for i in range(100):
        assert opened.append("guard.config", None, lambda: dict(i=i, pad="x" * 300), gate=bool(i % 2))
        if i % 40 == number:
            opened.checkpoint()
            opened.rotate()
            opened.flush()

for mode in ("require", "durable"):
    mirror = mirrors.Logging("mirror")
    opened = audit.open(where + "/" + mode, mode, keys=where + "/keys", max_bytes=100_000, mirrors=[mirror])
    threads = [threading.Thread(target=work, args=(opened, number)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tsan", pytest.param("unlocked", marks=pytest.mark.long)])
def test_threads_under_their_sanitizer(tmp_path: Path, variant: str) -> None:
    """ThreadSanitizer sees no race in C; where nobody waits for the others it does."""
    build = subprocess.run(
        [sys.executable, helpers.TESTS / "build_variant.py", variant, tmp_path], capture_output=True, check=False
    )
    assert build.returncode == 0, build.stderr
    library = subprocess.run(["gcc", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    (tmp_path / "where").mkdir()
    # Without a random layout, because that of newer kernels is more than this sanitizer knows.
    line = ["setarch", "--addr-no-randomize", sys.executable, "-c", EVERYTHING, tmp_path / "where", tmp_path]
    more = {"LD_PRELOAD": library.stdout.strip(), "TSAN_OPTIONS": "halt_on_error=1", "SAFESPAWN_ARM": "0"}
    seen: list[tuple[int | None, set[str]]] = []
    for _ in range(1 if variant == "tsan" else 4):
        try:
            done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **more}, timeout=60, check=False)
        except subprocess.TimeoutExpired:  # what nobody waits for may never come
            seen.append((None, set()))
            continue
        seen.append((done.returncode, set(re.findall(r"SUMMARY: ThreadSanitizer: data race .*/(_\w+\.c):", done.stderr))))
        if variant == "tsan":
            assert seen == [(0, set())], done.stderr
        elif seen[-1][1]:
            break
    # The ring of the last lines is what the queue keeps apart, too.
    assert variant == "tsan" or any(name.startswith(("_ledger", "_ring")) for name in seen[-1][1]), seen


# ------------------------------------------------------------------ forks


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keys"])
@pytest.mark.parametrize("how", ["python", "clone"])  # beside threads CPython's own locks survive no other
def test_fork_in_the_middle_of_a_write(tmp_path: Path, faults: Path, how: str, keyed: bool) -> None:
    """A child that is forked while another thread is in its write can write at once, and so can the parent."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])
            parked, go_on = os.pipe()
            arm(case["where"], rule("write", park=parked))
            writer = threading.Thread(target=tell, args=(opened,), kwargs=dict(who="writer"))
            writer.start()
            asleep(writer)
            codes = []

            def fork():
                codes.extend(ended(child(lambda: (disarm(), tell(opened, who="child")), case["how"])))

            if case["how"] == "clone":  # that waits for nobody
                fork()
            else:
                forker = threading.Thread(target=fork)
                forker.start()
                asleep(forker)
            os.write(go_on, b".")
            if case["how"] != "clone":
                forker.join()
            writer.join()
            tell(opened, who="parent")
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
        keyed=keyed,
        how=how,
    )
    parent, child = ledger.chains.values()

    assert out["codes"] == [0]
    assert sorted(r["who"] for r in ledger.of("guard.config")) == ["child", "parent", "writer"]
    assert child.records[0]["parent"] == parent.id
    assert bool(child.records[0]["keys"] and "parent" in child.records[0]["keys"]) == (keyed and how != "clone")
    assert [r["child"] for r in ledger.of("chain.fork")] == [child.id] * (how != "clone")


@root_only
def test_threads_that_fork_at_once(tmp_path: Path, faults: Path) -> None:
    """Threads that fork at the same moment, children without privileges: each has the chain that was meant for it."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])

            def write(number, i):
                os.setresuid(65534, 65534, 65534)
                safespawn.run(["/bin/true", f"{number}-{i}"])
                opened.close()

            codes = []
            def fork(number):
                for i in range(10):
                    codes.extend(ended(child(lambda: write(number, i))))

            all_at_once(*(lambda n=n: fork(n) for n in range(4)))
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
    )
    first, *others = ledger.chains.values()

    assert out["codes"] == [0] * 40
    assert len(others) == 40
    assert ledger.programs("spawn.exit") == {f"{n}-{i}" for n in range(4) for i in range(10)}
    assert {chain.records[0]["keys"]["parent"] for chain in others} == {first.id}
    assert sorted(r["child"] for r in first.records if r["ev"] == "chain.fork") == sorted(c.id for c in others)
    assert {r["who"]["euid"] for r in ledger.of("spawn.intent")} == {65534}


@pytest.mark.parametrize("how", ["python", "libc"])
def test_daemon_that_forks_twice(tmp_path: Path, faults: Path, how: str) -> None:
    """A process between that writes nothing has its chain all the same: the last one's comes from it.

    Where Python knows of the fork: it alone can write the opening. Else the last one begins on its own.
    """
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])

            def daemon():
                tell(opened, who="daemon")
                opened.close()

            between = child(lambda: os._exit(ended(child(daemon, case["how"]))[0]), case["how"])
            opened.close()
            return dict(codes=ended(between))
        """,
        tmp_path,
        faults,
        how=how,
    )

    assert out["codes"] == [0]
    events = [[r["ev"] for r in chain.records if r["ev"] != "spawn.bypass"] for chain in ledger.chains.values()]
    assert events[0] == ["chain.open", "chain.fork", "chain.close"]
    assert events[1:-1] == ([["chain.open", "chain.fork"]] if how == "python" else [])
    assert events[-1] == ["chain.open", "guard.config", "chain.close"]


@root_only
@pytest.mark.parametrize("mode", ["require", "best_effort"])
def test_fork_past_libc_without_the_keys(tmp_path: Path, faults: Path, mode: str) -> None:
    """A child of clone(2) that cannot read the keys is refused, or counts what it loses in best_effort."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"], mode=case["mode"])
            told = os.memfd_create("told")

            def write():
                os.setresuid(65534, 65534, 65534)
                raised = []
                for _ in range(2):
                    try:
                        safespawn.run(["/bin/true"])
                    except AuditError as problem:
                        raised.append([problem.errno, problem.filename == case["ledger"], problem.guard])
                os.pwrite(told, json.dumps([raised, opened.lost]).encode(), 0)
                opened.close()

            codes = ended(child(write, "clone"))
            raised, lost = json.loads(os.pread(told, 4096, 0))
            opened.close()
            return dict(codes=codes, raised=raised, lost=lost)
        """,
        tmp_path,
        faults,
        mode=mode,
    )

    assert out["codes"] == [0]
    assert out["raised"] == ([[errno.ECHILD, True, "intent-first"]] * 2 if mode == "require" else [])
    assert out["lost"] == 1 + (2 if mode == "require" else 6)  # the change of ids first
    assert ledger.events() == ["chain.open", "chain.close"]


@root_only
def test_fork_past_libc_that_may_not_register(tmp_path: Path, faults: Path) -> None:
    """A child of clone(2) whose chain cannot be registered writes nothing, also not when it is tried again."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])

            def write():
                for only, call in (("registry.jsonl", "write"), ("registry.jsonl", "fsync"), ("epoch", "pwrite")):
                    arm(case["where"], rule(call, "ENOSPC", only=only))
                    for _ in range(2):
                        try:
                            tell(opened, tried=only)
                        except AuditError:
                            continue
                        return
                    raise AssertionError(only)

            codes = ended(*[child(write, "clone") for _ in range(3)])
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0] * 3
    assert [[r["ev"] for r in chain.records] for chain in ledger.chains.values()] == [
        ["chain.open", "chain.close"],
        *[["chain.open", "audit.degraded", "guard.config"]] * 3,
    ]


def test_threads_of_a_child_past_libc(tmp_path: Path, faults: Path) -> None:
    """Threads of a child of clone(2) that write their first record at once begin one chain, not several."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])

            def write():
                start = threading.Barrier(8)
                all_at_once(*(lambda n=n: (start.wait(), tell(opened, thread=n)) for n in range(8)))
                opened.close()

            codes = ended(*[child(write, "clone") for _ in range(10)])
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0] * 10
    assert len(ledger.chains) == 11
    assert len((tmp_path / "keys" / "registry.jsonl").read_bytes().splitlines()) == 1 + 11
    assert len(ledger.of("guard.config")) == 80


@pytest.mark.parametrize("how", ["python", "libc", "clone"])
def test_fork_while_a_thread_has_the_lock(tmp_path: Path, faults: Path, how: str) -> None:
    """A thread is in the middle of a rotation, which is long: a child of that moment waits for nobody."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])
            has_it, go_on = threading.Event(), threading.Event()

            def hold():
                with opened._lock:
                    has_it.set()
                    go_on.wait()

            def work():
                signal.alarm(60)
                safespawn.run(["/bin/true"])
                opened.checkpoint()
                assert opened.rotate()
                opened.close()

            holder = threading.Thread(target=hold)
            holder.start()
            has_it.wait()
            held_up(holder)  # and the GIL is ours
            codes = ended(child(work, case["how"]))
            go_on.set()
            holder.join()
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
        how=how,
    )

    assert out["codes"] == [0]
    assert len(ledger.of("spawn.exit")) == 1


@root_only
def test_lock_where_pids_do_not_tell(tmp_path: Path, faults: Path) -> None:
    """The first process of a PID namespace clones the first one of another: pid 1 both, and each has its own lock."""
    out, ledger = play(
        """
        def played(case):
            import select
            NEWPID = 0x20000000
            assert libc.unshare(NEWPID) == 0

            def first():
                assert os.getpid() == 1
                opened = audit.open(case["ledger"], keys=case["keys"])
                audit._bypass.rest()
                has_it, go_on = threading.Event(), threading.Event()

                def hold():
                    with opened._lock:
                        has_it.set()
                        go_on.wait()

                holder = threading.Thread(target=hold)
                holder.start()
                has_it.wait()
                # And the GIL is ours. /proc is of our parent's namespace, and has other numbers.
                others = [int(name) for name in os.listdir("/proc/self/task") if name != os.readlink("/proc/self")]
                assert len(others) == 1
                holder._native_id = others[0]
                held_up(holder)
                pid = libc.syscall(CLONE, NEWPID | signal.SIGCHLD, None, None, None, None)
                if not pid:
                    opened.checkpoint()
                    tell(opened)
                    os._exit(7)
                ending = select.poll()
                ending.register(os.pidfd_open(pid), select.POLLIN)
                if not ending.poll(20_000):
                    os.kill(pid, signal.SIGKILL)  # no other signal ends it
                assert ended(pid) == [7]
                go_on.set()
                holder.join()
                opened.close()

            return dict(codes=ended(child(first)))
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0]
    assert len(ledger.of("guard.config")) == 1


@root_only
def test_ids_and_handles_where_pids_do_not_tell(tmp_path: Path, faults: Path) -> None:
    """Pid 1 both, as above: the child gives out ids of its own, and has no part in our programs, nor in their records."""
    out, ledger = play(
        """
        def played(case):
            NEWPID, told = 0x20000000, os.memfd_create("told")
            assert libc.unshare(NEWPID) == 0

            def first():
                assert os.getpid() == 1
                opened = audit.open(case["ledger"], keys=case["keys"])
                process = safespawn.spawn(["/bin/true"])
                os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOWAIT)
                pid = libc.syscall(CLONE, NEWPID | signal.SIGCHLD, None, None, None, None)
                os.write(told, (audit.new_id()[14:] + " ").encode())
                if not pid:
                    try:
                        process.poll()
                    except ChildProcessError:
                        os._exit(7)
                assert ended(pid) == [7]
                process.wait()
                opened.close()

            return dict(codes=ended(child(first)), ids=os.pread(told, 1000, 0).decode().split())
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0]
    assert len(set(out["ids"])) == 2
    assert (len(ledger.of("spawn.exit")), ledger.of("exit.unknown")) == (1, [])


@root_only
def test_mirrors_where_pids_do_not_tell(tmp_path: Path, faults: Path) -> None:
    """Pid 1 both, as above: the child's mirrors have threads of their own."""
    out, ledger = play(
        """
        def played(case):
            from safespawn.audit.mirrors import Mirror
            NEWPID, got = 0x20000000, os.memfd_create("got")
            assert libc.unshare(NEWPID) == 0

            class Kept(Mirror):
                def send(self, line):
                    os.write(got, line + b"\\n")

            def first():
                assert os.getpid() == 1
                opened = audit.open(case["ledger"], keys=case["keys"], mirrors=[Kept("kept")])
                pid = libc.syscall(CLONE, NEWPID | signal.SIGCHLD, None, None, None, None)
                if not pid:
                    tell(opened)
                opened.close()
                if not pid:
                    os._exit(7)
                assert ended(pid) == [7]

            codes = ended(child(first))
            return dict(codes=codes, got=[json.loads(line)["ev"] for line in os.pread(got, 1 << 20, 0).splitlines()])
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0]
    assert sorted(out["got"]) == sorted(ledger.events())


@pytest.mark.parametrize("comes_to", ["something", "nothing"])
@pytest.mark.parametrize("how", ["python", "libc", "clone"])
def test_others_while_a_ledger_is_opened_late(tmp_path: Path, faults: Path, how: str, comes_to: str) -> None:
    """The glass is broken, and a thread opens the ledger at last: other threads wait, children open it themselves.

    Without the administrator's consent, which ends meanwhile, all that is not recorded is refused.
    """
    out, ledger = play(
        """
        def played(case):
            glass = sys.modules["safespawn.audit._breakglass"]
            glass.reason, glass.tell = lambda: "no directory yet", lambda text: None
            place = case["where"] + "/place"
            opened = audit.open(place + "/ledger", keys=case["keys"])
            audit._bypass.rest()  # the record of our own fork would wait
            safespawn.run(["/bin/true"])
            os.mkdir(place, 0o700)
            glass.reason, opened._no_try_before = lambda: None, 0
            heard, told = os.pipe()
            error = "EMFILE" if case["comes_to"] == "nothing" else None
            arm(place, rule("open", error, only="ledger", park=heard))
            answers = []

            def spawn():
                try:
                    answers.append(safespawn.run(["/bin/true"]).returncode)
                except AuditError as problem:
                    answers.append(problem.errno)

            def spawn_there():
                disarm()
                signal.alarm(60)
                opened._no_try_before = 0
                safespawn.run(["/bin/true"])

            first, second = threading.Thread(target=spawn), threading.Thread(target=spawn)
            first.start()
            while not faults.done:
                os.sched_yield()
            codes = ended(child(spawn_there, case["how"]))
            second.start()
            os.write(told, b"..")
            first.join()
            second.join()
            opened._no_try_before = 0
            spawn()
            opened.close()
            os.rename(place + "/ledger", case["ledger"])
            return dict(answers=answers, codes=codes)
        """,
        tmp_path,
        faults,
        keyed=False,
        how=how,
        comes_to=comes_to,
    )
    fails = comes_to == "nothing"

    assert out["codes"] == [0]
    assert out["answers"] == ([errno.EMFILE, errno.EMFILE, 0] if fails else [0, 0, 0])
    assert len(ledger.of("spawn.exit")) == (2 if fails else 4)


def test_fork_past_libc_while_a_thread_forks(tmp_path: Path, faults: Path) -> None:
    """A thread is about to fork, and waits for one that writes: a child of clone(2) opens a ledger of its own."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])
            heard, told = os.pipe()
            arm(case["where"], rule("write", only="/ledger", park=heard))
            writer = threading.Thread(target=lambda: tell(opened))
            audit._bypass.rest()  # the record of that fork would wait

            def fork():
                pid = libc.fork()
                if not pid:
                    os._exit(0)
                os.kill(pid, signal.SIGKILL)  # it may wait for the GIL, which a thread had that is not there
                os.waitpid(pid, 0)

            forker = threading.Thread(target=fork)
            writer.start()
            while not faults.done:
                os.sched_yield()
            forker.start()
            held_up(forker, is_queued)  # and the GIL is ours: the child cannot get it from another thread

            def open_another():
                disarm()
                signal.alarm(60)
                audit.open(case["where"] + "/other").close()

            codes = ended(child(open_another, "clone"))
            os.write(told, b".")
            writer.join()
            forker.join()
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0]
    assert len(ledger.of("guard.config")) == len(ledger.of("chain.fork")) == 1


@pytest.mark.parametrize("strategy", ["vfork", "fork", "launcher"])
@pytest.mark.parametrize("how", ["python", "libc", "clone"])
@pytest.mark.threat("T-11")
def test_handler_that_forks_between_intent_and_exec(tmp_path: Path, faults: Path, how: str, strategy: str) -> None:
    """Its child goes on with the spawn: one program for one intent, and the child is told so."""
    out, ledger = play(
        """
        def played(case):
            from safespawn import _spawn
            opened, spawn, told = audit.open(case["ledger"], keys=case["keys"]), _spawn._binding.spawn, os.memfd_create("told")

            def handler(*given):
                _spawn._binding.spawn = spawn
                pids.append(FORKS[case["how"]]())
                return spawn(*given)

            pids, _spawn._binding.spawn = [], handler
            try:
                done = safespawn.run(["/bin/sh", "-c", "echo ran >> marks"], cwd=case["where"], strategy=case["strategy"])
            except ChildProcessError as problem:
                os.write(told, f"{problem.stage} {problem.strerror}".encode())
            finally:
                if not pids[0]:
                    opened.close()
                    os._exit(7)
            codes = ended(pids[0])
            opened.close()
            return dict(codes=codes, code=done.returncode, said=os.pread(told, 1000, 0).decode())
        """,
        tmp_path,
        faults,
        how=how,
        strategy=strategy,
    )

    assert (tmp_path / "marks").read_text() == "ran\n"
    assert (out["code"], out["codes"]) == (0, [7])
    assert out["said"] == "prepare this process was forked while its parent started a program (stage prepare)"
    assert [len(ledger.of(event)) for event in ("spawn.intent", "spawn.started", "spawn.failed")] == [1, 1, 1]
    (announced,), (failed,) = ledger.of("spawn.intent"), ledger.of("spawn.failed")
    assert failed["sid"] != announced["sid"] == ledger.of("spawn.started")[0]["sid"]


@pytest.mark.parametrize("does", ["goes on", "raises"])
@pytest.mark.parametrize("after", [False, True], ids=["before the exec", "after it"])
@pytest.mark.parametrize("how", ["python", "clone"])
def test_child_of_a_handler_tells_nothing_of_its_parents_spawn(
    tmp_path: Path, faults: Path, how: str, after: bool, does: str
) -> None:
    """Whatever it does, each spawn id has its parent's three records, and none that say something else."""
    out, ledger = play(
        """
        def played(case):
            from safespawn import _spawn
            opened, spawn = audit.open(case["ledger"], keys=case["keys"]), _spawn._binding.spawn

            def handler(*given):
                _spawn._binding.spawn = spawn
                done = spawn(*given) if case["after"] else None
                pids.append(FORKS[case["how"]]())
                if not pids[0] and case["does"] == "raises":
                    raise SystemExit
                return done or spawn(*given)

            pids, _spawn._binding.spawn = [], handler
            try:
                done = safespawn.spawn(["/bin/true"])
                code = done.wait()
            finally:
                if not pids[0]:
                    opened.close()
                    os._exit(7)
            codes = ended(pids[0])
            opened.close()
            return dict(codes=codes, code=code)
        """,
        tmp_path,
        faults,
        how=how,
        after=after,
        does=does,
    )

    assert (out["code"], out["codes"]) == (0, [7])
    (sid,) = {record["sid"] for record in ledger.of("spawn.intent")}
    told = [r["ev"] for r in ledger.records if r["sid"] == sid]
    assert told == ["spawn.intent", "spawn.started", "spawn.exit"]


def test_ids_of_children_past_libc_differ(tmp_path: Path, faults: Path) -> None:
    """Children of clone(2) that start a program at the same moment give it an id of its own."""
    out, ledger = play(
        """
        def played(case):
            from safespawn.audit import _ids
            sys.modules["time"].time_ns = lambda: 1_795_000_000_000_000_000  # all in the same millisecond
            opened = audit.open(case["ledger"], keys=case["keys"])
            codes = ended(*[child(lambda: safespawn.run(["/bin/true"]), "clone") for _ in range(8)])
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0] * 8
    assert len({r["sid"] for r in ledger.of("spawn.intent")}) == 8


def test_storm_of_vforks(tmp_path: Path, faults: Path) -> None:
    """Children that share our memory, by others and by us, while threads append: they touch no chain."""
    out, ledger = play(
        """
        import subprocess
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])
            appended = threading.Event()

            def append():
                for i in range(200):
                    tell(opened, i=i)

            def others():
                for _ in range(15):
                    subprocess.run(["/bin/true"], check=True)  # vfork, without hooks
                    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
                    os.system("true")

            def ours():
                for _ in range(15):
                    safespawn.run(["/bin/true"])

            all_at_once(append, append, others, ours)
            opened.close()
        """,
        tmp_path,
        faults,
    )

    assert len(ledger.chains) == 1
    assert len(ledger.of("guard.config")) == 400
    assert len(ledger.of("spawn.exit")) == 15


def test_fork_that_cannot_be_recorded(tmp_path: Path, faults: Path) -> None:
    """A child whose fork has no record in its parent's chain says nothing of one: it begins on its own."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])
            libc.fork  # a record tells of that look-up
            arm(case["where"], rule("write", "ENOSPC"))
            first = child(lambda: tell(opened, who="lost"), "libc")
            second = child(lambda: tell(opened, who="kept"), "libc")
            codes = ended(first, second)
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
    )
    parent, *children = ledger.chains.values()

    assert out["codes"] == [0, 0]
    assert [r["lost"] for r in parent.records if r["ev"] == "audit.degraded"] == [1]
    assert sorted(sorted(chain.records[0]["keys"]) for chain in children) == [["epoch"], ["n", "parent"]]


def test_ledger_that_is_gone_when_the_child_begins(tmp_path: Path, faults: Path) -> None:
    """The file is deleted between the fork and the child's first record: the child begins in a new one."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"])
            os.rename(case["ledger"], case["ledger"] + ".1")  # kept for the check, gone for the child
            os.link(case["ledger"] + ".1", case["where"] + "/kept")
            go, ready = os.pipe()

            def write():
                os.read(go, 1)
                safespawn.run(["/bin/true", "child"])
                opened.close()

            pid = child(write)
            os.rename(case["where"] + "/kept", case["where"] + "/aside")
            data = open(case["ledger"] + ".1", "rb").read()
            os.unlink(case["ledger"] + ".1")
            os.unlink(case["where"] + "/aside")
            os.write(ready, b".")
            codes = ended(pid)
            opened.close()
            with open(case["ledger"] + ".1", "xb") as file:
                file.write(data)
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
        keyed=False,
    )

    assert out["codes"] == [0]
    assert ledger.programs("spawn.exit") == {"child"}


# ------------------------------------------------------------------ others at the same files


def test_stopped_process_holds_up_nobody(tmp_path: Path, faults: Path) -> None:
    """A lock that somebody holds on ledger and state does not keep a ledger from being opened and written."""
    out, _ = play(
        """
        import fcntl
        def played(case):
            audit.open(case["ledger"], keys=case["keys"]).close()
            held = [open(case["ledger"] + end, "rb") for end in ("", ".state")]
            for file in held:
                fcntl.flock(file, fcntl.LOCK_EX)
            with audit.open(case["ledger"], keys=case["keys"]) as opened:
                tell(opened, who="us")
                turned = opened.rotate()
            for file in held:
                file.close()
            return dict(turned=turned)
        """,
        tmp_path,
        faults,
    )

    assert out["turned"] is False  # it goes on in the file that is there


def test_reader_begins_with_the_next_line(tmp_path: Path, faults: Path) -> None:
    """Each reader of a ledger's lines has those that are written after it has come, and no others count as missed."""
    out, _ = play(
        """
        from safespawn.audit import _core
        def played(case):
            opened, seen = audit.open(case["ledger"], keys=case["keys"]), []
            feeds = []
            for i in range(3):
                feeds.append(_core.Feed(opened._core))
                tell(opened, i=i)
            for feed in feeds:
                lines, skipped = feed.take(0)
                seen.append([[json.loads(line)["i"] for line in lines], skipped])
            opened.close()
            return dict(seen=seen)
        """,
        tmp_path,
        faults,
    )

    assert out["seen"] == [[[0, 1, 2], 0], [[1, 2], 0], [[2], 0]]


# ------------------------------------------------------------------ descriptors


@pytest.mark.parametrize("mode", ["require", "durable", "best_effort"])
@pytest.mark.parametrize("which", ["/ledger", "/ledger.state"])
@pytest.mark.threat("T-33")
def test_descriptor_that_becomes_another_file(tmp_path: Path, faults: Path, which: str, mode: str) -> None:
    """Somebody puts a file of theirs under one of our numbers: nothing is written to it, nor is it closed."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"], mode=case["mode"])
            safespawn.run(["/bin/true"])
            ours = [fd for fd, name in fds().items() if name == case["where"] + case["which"]]
            theirs = os.open(case["where"] + "/theirs", os.O_RDWR | os.O_CREAT)
            os.write(theirs, b"theirs")
            for fd in ours:
                os.dup2(theirs, fd)
            refused = 0
            for _ in range(3):
                try:
                    safespawn.run(["/bin/true"])
                except AuditError as problem:
                    refused += problem.errno == errno.EBADF
            opened.close()
            content = os.pread(theirs, 1000, 0).decode()
            for fd in (*ours, theirs):
                os.close(fd)  # not ours any more: they are still open
            return dict(refused=refused, content=content)
        """,
        tmp_path,
        faults,
        mode=mode,
        which=which,
    )

    assert out["content"] == "theirs"
    # The last record that was kept may have been the one before the slot could not be written.
    assert out["refused"] in ({0} if mode == "best_effort" else {2, 3} if "state" in which else {3})


def test_low_numbers_are_closed_by_rote(tmp_path: Path, faults: Path) -> None:
    """closerange(3, 512), as daemons do, and also up to 1024: the ledger is out of the first one's way, and says
    of the second that its descriptor is gone."""
    out, ledger = play(
        """
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"])
            told = os.memfd_create("told")

            def daemon(most):
                kept = os.dup2(told, 2000)
                os.closerange(3, most)
                try:
                    code = safespawn.run(["/bin/true"]).returncode
                except AuditError as problem:
                    code = problem.errno
                opened.close()
                os.pwrite(2000, bytes([code]), most // 512)

            codes = ended(child(lambda: daemon(512)), child(lambda: daemon(1024)))
            opened.close()
            return dict(codes=codes, came=list(os.pread(told, 3, 0)))
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0, 0]
    assert out["came"] == [0, 0, errno.EBADF]


def test_few_descriptors(tmp_path: Path, faults: Path) -> None:
    """With fewer descriptors than our high numbers a ledger is opened under low ones; with none it is refused."""
    out, ledger = play(
        """
        import resource
        def played(case):
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            came, most = [], max(fds())
            first = next(n for n in range(most + 100) if n not in fds())
            for room in range(12):
                before = fds()
                resource.setrlimit(resource.RLIMIT_NOFILE, (first + room, hard))
                try:
                    with audit.open(case["ledger"], keys=case["keys"]) as opened:
                        tell(opened, room=room)
                    came.append(0)
                except AuditError as problem:
                    came.append(problem.errno)
                resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
                assert fds() == before
            return dict(came=came)
        """,
        tmp_path,
        faults,
    )
    enough = out["came"].index(0)

    assert 1 < enough < 8
    assert out["came"] == [errno.EMFILE] * enough + [0] * (12 - enough)


@pytest.mark.parametrize("strategy", ["vfork", "fork", "launcher"])
def test_programs_get_no_descriptor_of_ours(tmp_path: Path, faults: Path, strategy: str) -> None:
    """A program has its three standard descriptors and none of ledger, state or keys."""
    out, _ = play(
        """
        def played(case):
            options = dict(user="nobody") if case["strategy"] == "launcher" else dict()
            with audit.open(case["ledger"], keys=case["keys"]):
                seen = safespawn.run(case["probe"], stdin=safespawn.DEVNULL, stdout=safespawn.PIPE,
                                     stderr=safespawn.DEVNULL, strategy=case["strategy"], **options)
            return dict(fds=sorted(json.loads(seen.stdout)["fds"]))
        """,
        tmp_path,
        faults,
        strategy=strategy,
        probe=helpers.probe_argv("state"),
    )

    assert out["fds"] == ["0", "1", "2"]


# ------------------------------------------------------------------ sandboxes and places


@pytest.mark.parametrize("mode", ["require", "durable"])
@pytest.mark.parametrize("call", ["fdatasync", "fallocate"])
def test_sandbox_that_denies(tmp_path: Path, faults: Path, mode: str, call: str) -> None:
    """A seccomp filter that denies a call: what the mode promises is kept, or refused; nothing is pretended."""
    out, ledger = play(
        """
        import sandbox
        def played(case):
            opened = audit.open(case["ledger"], keys=case["keys"], mode=case["mode"])
            arm("")  # calls go to the kernel from here on
            def inside():
                sandbox.answer({case["call"]: errno.EPERM})
                came = []
                for _ in range(5):
                    try:
                        came.append(safespawn.run(["/bin/true"]).returncode)
                    except AuditError as problem:
                        came.append(problem.errno)
                try:
                    opened.close()
                except AuditError as problem:
                    assert (case["mode"], case["call"]) == ("durable", "fdatasync"), problem
                os.write(told, json.dumps(came).encode())
            heard, told = os.pipe()
            codes = ended(child(inside))
            opened.close()
            return dict(codes=codes, came=json.loads(os.read(heard, 1000)))
        """,
        tmp_path,
        faults,
        mode=mode,
        call=call,
    )
    denied = mode == "durable" and call == "fdatasync"

    assert out["codes"] == [0]
    assert set(out["came"]) == ({errno.EPERM, errno.EIO} if denied else {0})
    assert len(ledger_check.segments(ledger.path)) <= (4 if denied else 1)


@root_only
def test_other_directories(tmp_path: Path, faults: Path) -> None:
    """chdir, a directory that is gone and chroot take nothing away from a ledger that is open."""
    out, ledger = play(
        """
        def played(case):
            os.chdir(case["where"])
            opened = audit.open("ledger", keys=case["keys"])
            os.mkdir("away")
            os.chdir("away")
            os.rmdir("../away")
            tell(opened, step="gone")
            assert opened.rotate()
            audit.open(case["ledger"], keys=case["keys"]).close()  # by its absolute path, from nowhere
            opened = audit.open(case["ledger"], keys=case["keys"])
            os.mkdir(case["where"] + "/root")

            def inside():
                os.chroot(case["where"] + "/root")
                os.chdir("/")
                tell(opened, step="chroot")
                assert not opened.rotate()
                opened.checkpoint()
                pid = child(lambda: (tell(opened, step="child"), opened.close()))
                assert ended(pid) == [0]
                opened.close()

            codes = ended(child(inside))
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0]
    assert [r["step"] for r in ledger.of("guard.config")] == ["gone", "chroot", "child"]


@pytest.mark.parametrize("mask", [0, 0o777])
def test_umask(tmp_path: Path, faults: Path, mask: int) -> None:
    """Whatever the umask, ledger, segments and state can be written by their owner and read by nobody else."""
    out, _ = play(
        """
        def played(case):
            os.umask(case["mask"])
            with audit.open(case["ledger"], keys=case["keys"]) as opened:
                opened.rotate()
            os.umask(0o22)
            names = ["ledger", "ledger.1", "ledger.state"]
            return dict(modes=[os.stat(case["where"] + "/" + name).st_mode & 0o777 for name in names])
        """,
        tmp_path,
        faults,
        mask=mask,
    )

    assert out["modes"] == [0o600] * 3


def test_interpreters_in_one_process(tmp_path: Path, faults: Path) -> None:
    """A second interpreter has a ledger of its own on the same file; forks of the process go on."""
    out, ledger = play(
        """
        def played(case):
            try:
                import _interpreters as interpreters
                run = interpreters.exec
            except ImportError:
                import _xxsubinterpreters as interpreters
                run = interpreters.run_string
            opened = audit.open(case["ledger"], keys=case["keys"])
            inside = interpreters.create()
            run(inside, f"import sys; sys.path[:] = {sys.path!r}")
            run(inside, "import safespawn; from safespawn import audit")
            run(inside, f"ledger = audit.open({case['ledger']!r}, keys={case['keys']!r})")
            run(inside, "safespawn.run(['/bin/true', 'inside']); ledger.close()")
            interpreters.destroy(inside)  # CPython 3.11 cannot fork beside one
            codes = ended(child(lambda: tell(opened, who="child")))
            safespawn.run(["/bin/true", "outside"])
            opened.close()
            return dict(codes=codes)
        """,
        tmp_path,
        faults,
    )

    assert out["codes"] == [0]
    assert ledger.programs("spawn.exit") == {"inside", "outside"}
    assert len(ledger.chains) == 3


@root_only
@pytest.mark.threat("T-33")
def test_child_that_cuts_the_state_file(tmp_path: Path, faults: Path) -> None:
    """A child without privileges that cuts and mends the state file all the time: an opening works, or raises.

    Where the count of slots lay in shared memory, SIGBUS ended this process within the first openings.
    """
    (out,) = faulting.run(
        TOOLS
        + """
def scene(case):
    ledger, keys = case["where"] + "/ledger", case["where"] + "/keys"
    keys_of.initialise(keys)
    arm(case["where"])
    opened = audit.open(ledger, keys=keys)
    (state, *_) = [fd for fd, name in fds().items() if name == ledger + ".state"]
    heard, told = os.pipe()

    def cut():
        os.setresuid(65534, 65534, 65534)
        head = os.pread(state, 128, 0)
        os.write(told, b".")
        while True:
            os.ftruncate(state, 0)
            os.pwrite(state, head, 0)

    enemy = child(cut)
    os.read(heard, 1)
    came = dict()
    for _ in range(case["openings"]):
        try:
            audit.open(ledger, keys=keys).close()
            answer = "opened"
        except AuditError as problem:
            answer = errno.errorcode[problem.errno]
        came[answer] = came.get(answer, 0) + 1
    os.kill(enemy, signal.SIGKILL)
    os.waitpid(enemy, 0)
    os.close(heard)
    os.close(told)
    return dict(came=came)
""",
        [{"where": str(tmp_path), "openings": 400}],
        tmp_path,
        faults,
    )

    assert out["status"] == 0, out
    assert sum(out["came"].values()) == 400
    assert set(out["came"]) <= {"opened", "EBADMSG", "EEXIST"}, out["came"]


@pytest.mark.parametrize("size", [0, 1, 128, 200])
@pytest.mark.threat("T-33")
def test_state_file_that_is_cut_within_a_claim(tmp_path: Path, faults: Path, size: int) -> None:
    """The state file becomes shorter between the look at its size and the append: the slot is found all the same."""
    (out,) = faulting.run(
        TOOLS
        + """
def scene(case):
    ledger, keys = case["where"] + "/ledger", case["where"] + "/keys"
    keys_of.initialise(keys)
    for _ in range(3):
        audit.open(ledger, keys=keys).close()
    parked, go_on = os.pipe()
    arm(case["where"], rule("write", only=".state", park=parked))
    opener = threading.Thread(target=audit.open, args=(ledger,), kwargs=dict(keys=keys))
    opener.start()
    while not faults.done:
        os.sched_yield()
    os.truncate(ledger + ".state", case["size"])
    os.write(go_on, b".")
    opener.join()
    os.close(parked)
    os.close(go_on)
    opened = audit._ledger()
    tell(opened, who="us")
    last = opened._core.birth().chain
    with open(ledger + ".state", "rb") as file:
        data = file.read()
    opened.close()
    ours = [at for at in range(0, len(data), 128) if data[at + 8 : at + 24] == uuid.UUID(last).bytes]
    return dict(records=[int.from_bytes(data[at + 32 : at + 40], "little") for at in ours if at], size=len(data))
""",
        [{"where": str(tmp_path), "size": size}],
        tmp_path,
        faults,
    )

    assert out["status"] == 0 and out["records"][-1] == 2, out
    assert out["size"] % 128 == 0


def test_state_file_out_of_line(tmp_path: Path, faults: Path) -> None:
    """Somebody appends what is no slot: those of later chains are in their places, and the verifier tells of it."""
    (out,) = faulting.run(
        """
def scene(case):
    from safespawn.audit import verifier
    ledger, keys = case["where"] + "/ledger", case["where"] + "/keys"
    key = bytes.fromhex(keys_of.initialise(keys))
    audit.open(ledger, keys=keys).close()
    with open(ledger + ".state", "ab") as file:
        file.write(b"x")
    for _ in range(2):
        audit.open(ledger, keys=keys).close()
    seen = verifier.verify(ledger, key=key, registry=keys)
    return dict(found=[[f.reason, f.byte] for f in seen.findings], size=os.path.getsize(ledger + ".state"))
""",
        [{"where": str(tmp_path)}],
        tmp_path,
        faults,
    )

    assert out["found"] == [["state-garbage", 256]], out
    assert out["size"] == 5 * 128
