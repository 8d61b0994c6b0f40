"""kill -9 at every moment of a writer's life: what was kept is there, and nothing looks tampered with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import faulting
import ledger_check


def _places(*ordinary: tuple[str, bool]) -> pytest.MarkDecorator:
    """Have a test run on a disk and in memory, with keys and without: what is not ordinary is the long form."""
    return pytest.mark.parametrize(
        ("where", "keyed"),
        [
            pytest.param(where, keyed, id=f"{where}-{word}", marks=() if (where, keyed) in ordinary else pytest.mark.long)
            for where in ("disk", "memory")
            for word, keyed in (("keys", True), ("plain", False))
        ],
        indirect=["where"],
    )


PLACES = _places(("disk", True), ("memory", False))
#: With keys there is much more to write and to delete.
RETIREMENT_PLACES = _places(("memory", False))


@pytest.fixture(params=["disk", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return an empty directory, on a disk and in memory: writes are torn at other places there."""
    if request.param == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="safespawn-test-", dir="/dev/shm") as name:
        yield Path(name)


#: Lives one life after the other; each is killed at its next call, until one gets to its end.
LIVES = """
def life(case, where, keys, number):
    opened = audit.open(where + "/ledger", mode=case["mode"], keys=keys)
    safespawn.run([case["program"], where + "/mark-" + number])
    opened.append("guard.config", None, lambda: dict(pad="x" * 7000))
    pid = os.fork()
    if not pid:
        safespawn.run([case["program"], where + "/mark-child-" + number])
        opened.close()
        os._exit(0)
    os.waitpid(pid, 0)
    opened.rotate()
    opened.checkpoint()
    opened.close()

def scene(case):
    where, keys = case["where"], case["where"] + "/keys" if case["keyed"] else None
    arm(where)
    key = keys_of.initialise(keys) if keys else None
    alive, dead = os.pipe()
    killed, odd = 0, []
    for which, how in enumerate(case["hows"]):
        number, status = 0, -1
        while status:
            number += 1
            pid = os.fork()
            if not pid:
                arm(where, rule(at=number, **how))
                life(case, where, keys, f"{which}-{number}")
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            killed += status == -9
            if status not in (0, -9) or number > 300:
                odd.append([how, number, status])
                break
    os.close(dead)
    os.read(alive, 1)  # the children of the dead have ended
    disarm()
    life(case, where, keys, "last")
    return dict(key=key, killed=killed, odd=odd)
"""


@PLACES
def test_killed_at_each_call(where: Path, mark: Path, faults: Path, keyed: bool) -> None:
    """Killed before and after each system call, and in the middle of each write: the next writer goes on.

    That is between slot, registry, epoch and opening of a chain too.
    """
    hows = [
        {"kill": 1},
        *({"call": call, "kill": 2} for call in ("open", "fallocate", "fsync", "pwrite", "rename")),
        *({"call": "write", "kill": 2, "take": take} for take in (0, 1, 100, -1)),
    ]
    case = {"where": str(where), "program": str(mark), "keyed": keyed, "mode": "require", "hows": hows}
    (out,) = faulting.run(LIVES, [case], where, faults)
    assert "crashed" not in out, out["crashed"]
    ledger = ledger_check.check(where / "ledger", out["key"], where / "keys")
    ledger_check.verified(where / "ledger", out["key"], where / "keys")
    marks = {str(path) for path in where.glob("mark-*")}

    assert out["odd"] == []
    assert out["killed"] > (120 if keyed else 60)
    assert len(marks) > 50
    assert marks <= ledger.programs()
    assert all(line.startswith(b'{"v":1,"c":"'[: len(line)]) for line in ledger.torn)
    assert len(ledger.torn) >= 10


#: Writers with two threads each, killed whenever the one who looks has seen enough.
WRITERS = """
import mmap, random, struct, threading

def write(case, opened, seen, run, thread, chance):
    for i in range(10**6):
        told = dict(run=run, thread=thread, i=i, pad="x" * chance.randrange(case["most"]))
        assert opened.append("guard.config", None, lambda: told, gate=not i % 2)
        seen[thread] = i + 1

def writer(case, where, keys, seen, run):
    opened = audit.open(where + "/ledger", keys=keys, max_bytes=run % 2 << 20)
    for thread in range(2):
        threading.Thread(target=write, args=(case, opened, seen, run, thread, random.Random(2 * run + thread))).start()
    signal.pause()

def scene(case):
    where, keys = case["where"], case["where"] + "/keys"
    arm(where)
    key, kept, statuses, chance = keys_of.initialise(keys), [], set(), random.Random(case["seed"])
    for run in range(case["kills"]):
        seen = memoryview(mmap.mmap(-1, 4096)).cast("Q")
        enough = chance.randrange(1, 30)
        pid = os.fork()
        if not pid:
            writer(case, where, keys, seen, run)
        while sum(seen[:2]) < enough:
            os.sched_yield()
        os.kill(pid, signal.SIGKILL)
        statuses.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        kept.append(list(seen[:2]))
    opened = audit.open(where + "/ledger", keys=keys)
    opened.close()
    return dict(key=key, kept=kept, statuses=list(statuses))
"""


@pytest.mark.parametrize("kills", [60, pytest.param(160, marks=pytest.mark.long)])
def test_killed_at_random(where: Path, faults: Path, kills: int) -> None:
    """Writers with threads and records of any size, killed so many times: what was kept is there, in whole chains."""
    case = {"where": str(where), "kills": kills, "seed": 20_261_129, "most": 7400}
    (out,) = faulting.run(WRITERS, [case], where, faults)
    ledger = ledger_check.check(where / "ledger", out["key"], where / "keys")
    ledger_check.verified(where / "ledger", out["key"], where / "keys")
    there = {(r["run"], r["thread"], r["i"]) for r in ledger.of("guard.config")}
    kept = {(run, t, i) for run, seen in enumerate(out["kept"]) for t in (0, 1) for i in range(seen[t])}

    assert out["statuses"] == [-9]
    assert kept <= there
    # What came to the file and was not known to be kept is what each thread was at.
    assert len(there - kept) <= 2 * case["kills"]
    assert len(ledger.chains) == case["kills"] + 1
    assert len(ledger_check.segments(ledger.path)) > kills // 40


#: A ledger that others write to and rotate; each retirement is killed at its next call, or that fails, until one
#: gets to its end before that.
RETIREMENTS = """
from safespawn.audit import _slots, verifier

def child(do):
    pid = os.fork()
    if not pid:
        try:
            do()
        finally:
            os._exit(0)
    return pid

def scene(case):
    where, path, keys = case["where"], case["where"] + "/ledger", case["where"] + "/keys" if case["keyed"] else None
    arm(where)
    key = keys_of.initialise(keys) if keys else None
    opened, problems, killed = audit.open(path, keys=keys), [], 0
    wait, end = os.pipe()

    def writes():
        assert opened.append("guard.config", None, lambda: dict(pid=os.getpid()), gate=True)

    def closes():
        writes()
        opened.close()

    def waits():
        os.close(end)
        writes()
        os.read(wait, 1)
        closes()

    def grow():
        for do in (closes, writes):
            os.waitpid(child(do), 0)
        for _ in range(2):
            writes()
            assert opened.rotate()

    def older():
        return sorted(int(name[7:]) for name in os.listdir(where) if name[7:].isdecimal())

    def retire():
        retention.retire(path, keep=1, keys=keys)

    def found(when):
        seen = verifier.verify(path, key=bytes.fromhex(key) if key else None, registry=keys)
        problems.extend(f"{when}: {finding}" for finding in seen.findings)

    waiting, number, status, failed = child(waits), 0, -1, 0
    while status and number < 200:
        number += 1
        grow()
        before, pid = older(), os.fork()
        if not pid:
            os.close(end)
            arm(where, rule(at=number, **case["how"]))
            try:
                retire()
            except OSError:
                os._exit(3)
            os._exit(4 if faults.done else 0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        killed, failed = killed + (status == -9), failed + (status in (3, 4))
        now = f"{number}, {len(older())} of {len(before)} segments are left"
        found(now)
        retire()
        found(now + ", and retired again")
        if older() != before[-1:]:
            problems.append(f"{now}: of {before} these: {older()}")
    os.close(end)
    os.waitpid(waiting, 0)
    for _ in range(2):
        grow()
        retire()
    found("at last")
    state = opened._core.counts().state
    slots = [_slots.slot(unit) for _, data in _slots.pieces(state) for at, unit in _slots.units(data)] if keys else []
    opened.close()
    slots = sum(slot.records > 0 for slot in slots)
    return dict(problems=problems, killed=killed, failed=failed, slots=slots, ended=status)
"""


@RETIREMENT_PLACES
def test_retirement_killed_at_each_call(where: Path, faults: Path, keyed: bool) -> None:
    """Killed before and after each call, between deletions and slots too: nothing looks tampered with, the next goes on.

    Slots that a killed one had still to give back go with the records that it has written.
    """
    hows = [
        {"kill": 1},
        *({"call": call, "kill": 2} for call in ("open", "fallocate", "fsync", "fdatasync", "pwrite")),
        # Not of a slot: it lies within a page, and no kill tears that.
        *({"call": "write", "kill": 2, "take": take, "only": "/ledger"} for take in (0, 1, 100, -1)),
        {"call": "write", "kill": 2, "take": 100, "only": "/registry.jsonl"},
    ]
    cases = [{"where": str(where / str(number)), "keyed": keyed, "how": how} for number, how in enumerate(hows)]
    for case in cases:
        Path(str(case["where"])).mkdir(mode=0o700)
    killed = []
    for case, out in zip(cases, faulting.run(RETIREMENTS, cases, where, faults), strict=True):
        assert "crashed" not in out and (out["status"], out["ended"]) == (0, 0), (case, out)
        assert out["problems"] == [], case
        assert out["slots"] <= 3, case  # ours, and those of the last two retirements
        killed.append(out["killed"])
    assert killed[0] > (100 if keyed else 30)
    assert sum(killed[1:]) > (40 if keyed else 20)


@RETIREMENT_PLACES
def test_retirement_whose_calls_fail(where: Path, faults: Path, keyed: bool) -> None:
    """Each call fails once, in each way: no segment is deleted untold, nothing looks tampered with, the next goes on."""
    hows = [
        *({"call": "write", "error": name} for name in ("ENOSPC", "EIO")),
        *({"call": "write", "take": take, "only": "/ledger"} for take in (1, -1)),
        {"call": "pwrite", "error": "EIO"},
        *({"call": "fdatasync", "error": name} for name in ("EIO", "ENOSPC")),
        *({"call": call, "error": "EIO"} for call in ("fsync", "fallocate", "fstat", "rename")),
        *({"call": "open", "error": name} for name in ("EMFILE", "EACCES", "EIO")),
    ]
    cases = [{"where": str(where / str(number)), "keyed": keyed, "how": how} for number, how in enumerate(hows)]
    for case in cases:
        Path(str(case["where"])).mkdir(mode=0o700)
    failed = {}
    for case, out in zip(cases, faulting.run(RETIREMENTS, cases, where, faults), strict=True):
        assert "crashed" not in out and (out["status"], out["ended"]) == (0, 0), (case, out)
        assert out["problems"] == [], case
        failed[str(case["how"])] = out["failed"]
    assert sum(failed.values()) > (60 if keyed else 30), failed
