"""Every system call of the ledger fails, in every mode: nothing starts unrecorded, and no chain breaks.

tests/ways/faults.c stands in front of libc and has one chosen call on the ledger's files fail. Each kind
of record is written again and again, until each of the calls that it takes has failed in each way.
"""

from __future__ import annotations

import errno
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

import faulting
import ledger_check

MODES = ("best_effort", "require", "durable")
KEYED = pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keys"])
#: Most calls, and fewest: all other combinations are the long form.
ORDINARY = (("durable", True), ("best_effort", False))

#: What happens to each call. ``take``: how much of a write is taken.
FAULTS: dict[str, tuple[dict[str, Any], ...]] = {
    "write": (
        *({"error": name} for name in ("ENOSPC", "EIO", "EDQUOT", "EROFS", "EFBIG", "EINTR")),
        *({"take": take} for take in (1, 200, -1, -2)),
    ),
    "pwrite": (*({"error": name} for name in ("ENOSPC", "EIO", "EDQUOT", "EINTR")), {"take": 64}),
    "fdatasync": tuple({"error": name} for name in ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EINTR")),
    "fsync": tuple({"error": name} for name in ("EIO", "ENOSPC", "EROFS")),
    "fallocate": tuple({"error": name} for name in ("ENOSPC", "EIO", "EDQUOT", "EFBIG", "EINTR")),
    "fstat": tuple({"error": name} for name in ("EIO", "ENOMEM")),
    "open": tuple({"error": name} for name in ("EMFILE", "ENFILE", "EACCES", "ENOSPC", "EROFS", "EIO", "ENOMEM")),
    "rename": tuple({"error": name} for name in ("EACCES", "EIO", "ENOSPC", "EROFS")),
}

#: The records that the scene has, beside those that a ledger writes of itself.
OTHERS = ("spawn.bypass", "cred.change", "mirror.down", "mirror.up", "audit.restored", "exit.unknown")
EMITTED = (*OTHERS, "spawn.intent", "spawn.started", "spawn.failed", "spawn.denied", "spawn.exit")

#: Makes one call after the other fail, within whatever is done. What must not be is in ``problems``.
SCENE = """
def scene(case):
    where, mode, strict = case["where"], case["mode"], case["mode"] != "best_effort"
    ledger, keys = where + "/ledger", where + "/keys" if case["keyed"] else None
    arm(where)
    key = keys_of.initialise(keys) if keys else None
    emitted, problems, cases, marks, refused = [], [], [], [0], [0]
    sys.addaudithook(lambda name, args: emitted.append(name[10:]) if name.startswith("safespawn.") else None)
    now = ""

    def wrong(what):
        problems.append(now + ": " + what)

    def open_ledger():
        return audit.open(ledger, mode=mode, keys=keys)

    def spawn(**options):
        marks[0] += 1
        return safespawn.run([case["program"], where + "/mark-" + str(marks[0])], **options)

    def failing(**options):
        try:
            spawn(**options)
        except AuditError:
            raise
        except OSError:
            return
        wrong("did not fail")

    def other(event):
        emitted.append(event)
        return opened.append(event, audit.new_id(), lambda: dict(who=dict(), pad="x" * 300))

    def taken_by_others():
        process = safespawn.spawn([case["program"], where + "/mark-others"])
        os.waitpid(process.pid, 0)
        try:
            process.wait()
        except ChildProcessError:
            pass

    def forked():
        told = os.memfd_create("told")
        pid = os.fork()
        if not pid:
            del emitted[:], problems[:]
            refused[0] = 0
            try:
                attempt(spawn)
            except BaseException:
                wrong("in the child: " + traceback.format_exc())
            disarm()
            attempt(spawn)
            opened.close()
            os.pwrite(told, json.dumps([emitted, problems, faults.done, refused[0]]).encode(), 0)
            os._exit(0)
        os.waitpid(pid, 0)
        heard, wrongs, done, no = json.loads(os.pread(told, 1 << 16, 0))
        os.close(told)
        marks[0] += 2
        emitted.extend(heard)
        problems.extend(wrongs)
        refused[0] += no
        faults.done |= done

    def attempt(do):
        try:
            return do()
        except AuditError as problem:
            refused[0] += 1
            if not strict:
                wrong("refused: " + repr(problem))
            if (problem.filename, problem.guard) != (ledger, "intent-first"):
                wrong(repr((problem, problem.filename, problem.guard)))
            if problem.errno != (getattr(errno, fault["error"]) if "error" in fault else errno.ENOSPC):
                wrong("another errno: " + repr(problem))
        except Exception:
            wrong(traceback.format_exc())

    def reopen():
        nonlocal opened
        try:
            opened.close()
        except AuditError as problem:  # it is closed all the same
            if mode != "durable" or fault.get("error") is None:
                wrong(repr(problem))
        try:
            opened = open_ledger()
        except AuditError as problem:
            disarm()
            opened = open_ledger()
            if os.path.dirname(problem.filename) not in (where, keys):
                wrong(repr(problem))
        except Exception:
            wrong(traceback.format_exc())
            disarm()
            opened = open_ledger()

    def in_turn(kind):
        do = kinds[kind]
        before = len(fds())
        arm(where, rule(call, at=number, **fault))
        do()
        disarm()
        if not faults.done:
            return False
        gc.collect()
        if len(fds()) != before:
            wrong(f"descriptors: {before} before, now {list(fds().values())}")
        if not opened.append("guard.config", None, lambda: dict(case=len(cases))):
            wrong("and then a plain record was lost")
        if not no_child():
            wrong("a child is left")
        cases.append([kind, len(emitted)])
        del emitted[:]
        return True

    kinds = dict(
        spawn=lambda: attempt(spawn),
        missing=lambda: attempt(lambda: failing(executable="/no/such")),
        denied=lambda: attempt(lambda: failing(digest="sha256:" + "0" * 64)),
        failed=lambda: attempt(lambda: failing(process_group=1)),
        others=lambda: attempt(taken_by_others),
        long=lambda: attempt(lambda: spawn(env=dict((str(i) + "N" * 60, "") for i in range(60)), cwd="/")),
        checkpoint=lambda: attempt(lambda: opened.checkpoint()),
        rotate=lambda: attempt(lambda: opened.rotate()),
        fork=forked,
        open=reopen,
    )
    for event in case["others"]:
        kinds[event] = lambda event=event: attempt(lambda: other(event))
    opened = open_ledger()
    spawn()
    for turn, kind in enumerate(kinds):
        for call in case["faults"]:
            for which, fault in enumerate(case["faults"][call]):
                # Everything happens to these three; of the others each has its third.
                if kind not in ("spawn", "checkpoint", "open") and (turn + which) % 3:
                    continue
                number, goes_on = 0, True
                while goes_on:
                    number += 1
                    now = f"{kind}, {call} {number}: {fault}"
                    goes_on = in_turn(kind)
                    if number > 60:
                        goes_on = wrong("no end")
    now = "at last"
    attempt(spawn)
    opened.close()
    return dict(problems=problems, key=key, cases=cases, refused=refused[0])
"""


@pytest.mark.parametrize(
    ("mode", "keyed"),
    [
        pytest.param(mode, keyed, id=f"{mode}-{word}", marks=() if (mode, keyed) in ORDINARY else pytest.mark.long)
        for mode in MODES
        for word, keyed in (("plain", False), ("keys", True))
    ],
)
@pytest.mark.threat("T-11")
def test_each_call_fails(tmp_path: Path, mark: Path, faults: Path, mode: str, keyed: bool) -> None:
    """Whatever call fails: no program without its intent, whole chains, all losses told, nothing left over."""
    case = {"where": str(tmp_path), "mode": mode, "keyed": keyed, "program": str(mark), "faults": FAULTS}
    case["others"] = OTHERS
    (out,) = faulting.run(SCENE, [case], tmp_path, faults)

    assert out.get("problems") == [], "\n".join(out.get("problems", [str(out)]))
    ledger = ledger_check.check(tmp_path / "ledger", out["key"], tmp_path / "keys")
    ledger_check.verified(tmp_path / "ledger", out["key"], tmp_path / "keys")
    marks = {str(path) for path in tmp_path.glob("mark-*")}
    assert len(marks) > 100
    assert mode == "best_effort" or marks <= ledger.programs()
    assert (out["refused"] > 20) == (mode != "best_effort")
    all_losses_are_told(ledger, out["cases"])


def all_losses_are_told(ledger: ledger_check.Ledger, cases: list[tuple[str, int]]) -> None:
    """Each case ends with a record that has its number: what was to be recorded before it is there, or told as lost."""
    kept = lost = 0
    for record in ledger.records:
        if "case" in record:
            kind, emitted = cases[record["case"]]
            # The ledger's own records may be lost in these: they are told, but nobody has asked for them.
            assert kept + lost == emitted or kind in ("checkpoint", "rotate", "fork", "open"), record
            kept = lost = 0
        elif record["ev"] == "audit.degraded":
            lost += record["lost"]
        else:
            kept += record["ev"] in EMITTED


# ------------------------------------------------------------------ what happens once

#: What comes behind is the body of ``played``, which fills ``out``.
ONCE = """
def scene(case):
    where, out, opened = case["where"], dict(), None
    keys = where + "/keys" if case["keyed"] else None
    out["key"] = keys_of.initialise(keys) if keys else None

    def open_ledger():
        nonlocal opened
        opened = audit.open(where + "/ledger", mode=case["mode"], keys=keys)
        return opened

    def spawn():
        number = sum(name.startswith("mark-") for name in os.listdir(where))
        try:
            safespawn.run([case["program"], f"{where}/mark-{number}"])
            return 0
        except AuditError as problem:
            return problem.errno

    played_here(case, where, out, open_ledger, spawn)
    disarm()
    opened.close()
    return out

def played_here(case, where, out, open_ledger, spawn):
"""


def play(
    text: str, where: Path, mark: Path, faults: Path, mode: str = "durable", **case: Any
) -> tuple[dict[str, Any], ledger_check.Ledger]:
    """Play a scene once and check what it leaves: what it put in ``out``, and the ledger."""
    case = {"where": str(where), "program": str(mark), "mode": mode, "keyed": True, **case}
    (out,) = faulting.run(ONCE + textwrap.indent(textwrap.dedent(text), "    "), [case], where, faults)
    assert "crashed" not in out, out["crashed"]
    ledger = ledger_check.check(where / "ledger", out["key"], where / "keys", still_open=False)
    assert {str(path) for path in where.glob("mark-*")} <= ledger.programs()
    return out, ledger


def test_flush_that_fails_once(tmp_path: Path, mark: Path, faults: Path) -> None:
    """fdatasync fails once: what the disk may have lost is written again in a new segment, and the program runs."""
    out, ledger = play(
        """
        open_ledger()
        spawn()
        arm(where, rule("fdatasync", "EIO"))
        out["spawned"] = [spawn(), spawn()]
        """,
        tmp_path,
        mark,
        faults,
    )
    (told,) = ledger.of("audit.degraded")
    first, second = ((tmp_path / name).read_bytes().splitlines() for name in ("ledger.1", "ledger"))
    count = told["resent"][1] - told["resent"][0] + 1

    assert out["spawned"] == [0, 0]
    assert (told["lost"], told["why"]) == (0, "fdatasync failed")
    assert count == 3  # how the first program began and ended, and the intent of the second
    assert second[1 : 1 + count] == first[-count:]
    assert len(ledger.of("spawn.intent")) == 3


def test_flush_that_fails_on(tmp_path: Path, mark: Path, faults: Path) -> None:
    """A disk that never flushes refuses each program, books nothing, and gets few new segments."""
    out, ledger = play(
        """
        opened = open_ledger()
        arm(where, rule("fdatasync", "EIO", times=1000))
        out["spawned"] = [spawn() for _ in range(20)]
        out["booked"] = opened._core.counts().booked
        """,
        tmp_path,
        mark,
        faults,
    )

    assert out["spawned"] == [errno.EIO] * 20
    assert out["booked"] == 0
    assert not list(tmp_path.glob("mark-*"))
    assert 1 <= len(ledger_check.segments(tmp_path / "ledger")) <= 4
    # Its intent is in the file all the same, so what became of it is too.
    denied = {record["sid"]: record["how"]["guards"][0] for record in ledger.of("spawn.denied")}
    assert denied.keys() == {record["sid"] for record in ledger.of("spawn.intent")} and len(denied) == 20
    assert {(one["g"], one["r"]) for one in denied.values()} == {("intent-first", "deny")}


@KEYED
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_close_that_cannot_flush(tmp_path: Path, mark: Path, faults: Path, at: int, mode: str, keyed: bool) -> None:
    """A durable ledger whose last flush fails is closed, and says that the disk may not have its end.

    What fails before is made good in another segment.
    """
    out, ledger = play(
        """
        opened = open_ledger()
        opened.append("guard.config", None, dict)
        arm(where, rule("fdatasync", "EIO", at=case["at"], times=1000 if case["at"] == 3 else 1))
        before = fds()
        try:
            opened.close()
            out["errno"] = 0
        except AuditError as problem:
            out["errno"], out["text"] = problem.errno, str(problem)
        out["left"] = [name for name in fds().values() if name.startswith(where + "/ledger")]
        out["closed"] = opened.closed
        opened.close()
        """,
        tmp_path,
        mark,
        faults,
        mode=mode,
        keyed=keyed,
        at=at,
    )

    # 1: before the last record, which goes to a new segment; 2: behind it; 3: there is none.
    assert out["errno"] == (errno.EIO if (mode, at) == ("durable", 2) else 0)
    assert not out["errno"] or "the disk may not have its last records" in out["text"]
    assert out["closed"] is True and out["left"] == []
    assert ledger.events()[-1] == "chain.close"


def test_ledger_before_that_cannot_flush(tmp_path: Path, mark: Path, faults: Path) -> None:
    """The ledger that takes the place of one that could not be flushed is open, and tells of it."""
    out, ledger = play(
        """
        open_ledger()
        safespawn.audit._ledger().append("guard.config", None, dict)
        arm(where, rule("fdatasync", "EIO", only="/ledger", at=3))  # opening, the other's end, and behind it
        opened = open_ledger()
        out["spawned"] = [spawn()]
        """,
        tmp_path,
        mark,
        faults,
    )
    (told,) = ledger.of("audit.degraded")

    assert out["spawned"] == [0]
    assert "the disk may not have its last records" in told["why"]


@pytest.mark.parametrize(
    ("call", "at", "what"),
    [
        ("rename", 1, {"error": "EACCES"}),
        ("open", 2, {"error": "EMFILE"}),
        ("write", 2, {"error": "ENOSPC"}),
        ("write", 2, {"take": 70}),
        ("write", 3, {"error": "EIO"}),
        ("write", 3, {"take": -1}),
        ("fsync", 1, {"error": "EIO"}),
        ("fdatasync", 2, {"error": "EIO"}),
    ],
)
def test_new_segment_that_fails_too(
    tmp_path: Path, mark: Path, faults: Path, call: str, at: int, what: dict[str, Any]
) -> None:
    """fdatasync fails, and so does a step towards the new segment: nothing runs then; later it all works."""
    out, ledger = play(
        """
        open_ledger()
        spawn()
        arm(where, rule("fdatasync", "EIO"), rule(case["call"], at=case["at"], **case["what"]))
        out["spawned"] = [spawn()]
        out["faults"] = faults.done
        disarm()
        out["spawned"] += [spawn(), spawn()]
        """,
        tmp_path,
        mark,
        faults,
        call=call,
        at=at,
        what=what,
    )
    told = [told["resent"] for told in ledger.of("audit.degraded") if "resent" in told]

    assert out["faults"] == 2
    assert out["spawned"][0] and out["spawned"][1:] == [0, 0]
    assert told[0][0] == 2 and max(last for _, last in told) >= 4


def test_what_is_said_to_come_again_does(tmp_path: Path, mark: Path, faults: Path) -> None:
    """More records without a flush than can be kept: all of them are flushed in time, or come again."""
    out, ledger = play(
        """
        opened = open_ledger()
        for i in range(400):
            opened.append("guard.config", None, lambda: dict(pad="x" * (i * 17 % 7000)))
        arm(where, rule("fdatasync", "EIO"))
        out["spawned"] = spawn()
        """,
        tmp_path,
        mark,
        faults,
    )
    (told,) = ledger.of("audit.degraded")
    first, last = told["resent"]
    again = [json.loads(line)["n"] for line in (tmp_path / "ledger").read_bytes().splitlines()]

    assert out["spawned"] == 0
    assert last == told["n"] - 1
    assert again[1 : 2 + last - first] == list(range(first, last + 1))
    assert 0 < sum(len(json.dumps(ledger.records[n])) for n in range(first, last)) < 600_000


def test_slot_that_cannot_be_written(tmp_path: Path, mark: Path, faults: Path) -> None:
    """The ledger never gets ahead of its state file by more than one record, whatever happens to that file."""
    out, ledger = play(
        """
        open_ledger()
        arm(where, rule("pwrite", "EIO", only=".state", times=1000))
        out["spawned"] = [spawn() for _ in range(3)]
        lines = open(where + "/ledger", "rb").read().count(bytes([10]))
        slot = open(where + "/ledger.state", "rb").read()[128 + 32 : 128 + 40]
        out["ahead"] = lines - int.from_bytes(slot, "little")
        disarm()
        out["spawned"].append(spawn())
        """,
        tmp_path,
        mark,
        faults,
        mode="require",
    )

    # The first intent was in the file before its slot failed; its outcome and all else waits for the slot.
    assert out["spawned"] == [0, errno.EIO, errno.EIO, 0]
    assert out["ahead"] == 1
    assert [told["lost"] for told in ledger.of("audit.degraded")] == [4]


@pytest.mark.parametrize("error", ["EOPNOTSUPP", "ENOSYS", "EPERM"])
def test_no_fallocate(tmp_path: Path, mark: Path, faults: Path, error: str) -> None:
    """Where no blocks can be put by, by the file system or a sandbox, the opening says so and programs run."""
    out, ledger = play(
        """
        arm(where, rule("fallocate", case["error"], times=1000))
        open_ledger()
        out["spawned"] = spawn()
        """,
        tmp_path,
        mark,
        faults,
        mode="require",
        error=error,
    )

    assert out["spawned"] == 0
    assert ledger.records[0]["config"]["reserve"] == 0


def test_whole_line_that_was_refused(tmp_path: Path, mark: Path, faults: Path) -> None:
    """A line that was taken but for its newline, on a disk that takes no more, never becomes a record."""
    out, ledger = play(
        """
        open_ledger()
        arm(where, rule("write", take=-1), rule("write", "ENOSPC", at=2))
        out["spawned"] = [spawn()]
        out["faults"] = faults.done
        out["spawned"].append(spawn())
        """,
        tmp_path,
        mark,
        faults,
        mode="require",
    )

    assert out["faults"] == 2
    assert out["spawned"] == [errno.ENOSPC, 0]
    assert [told["lost"] for told in ledger.of("audit.degraded")] == [1]
    (torn,) = ledger.torn
    assert torn.endswith(b"}?")


def test_whole_line_that_a_dead_process_left(tmp_path: Path, mark: Path, faults: Path) -> None:
    """The next writer ends such a line too, so that nobody takes it for a record that was kept."""
    out, ledger = play(
        """
        open_ledger()
        data = open(where + "/ledger", "rb").read()
        with open(where + "/ledger", "ab") as file:
            file.write(data.rstrip())  # record 0 once more, without its newline
        out["spawned"] = spawn()
        """,
        tmp_path,
        mark,
        faults,
        mode="require",
    )

    assert out["spawned"] == 0
    assert ledger.events() == ["chain.open", "spawn.intent", "spawn.started", "spawn.exit", "chain.close"]
    assert len(ledger.torn) == 1


# ------------------------------------------------------------------ what is called at all


@KEYED
@pytest.mark.parametrize("mode", MODES)
def test_calls_of_a_spawn(tmp_path: Path, faults: Path, mode: str, keyed: bool) -> None:
    """A spawn's three records are a look at the file and one write each; only an intent waits for the disk."""
    scene = """
    def scene(case):
        keys = case["where"] + "/keys" if case["keyed"] else ""
        if keys:
            keys_of.initialise(keys)
        opened = audit.open(case["where"] + "/ledger", mode=case["mode"], keys=keys)
        arm(case["where"])
        safespawn.run(["/bin/true"])
        calls = seen()
        opened.close()
        return dict(calls=calls)
    """
    (out,) = faulting.run(scene, [{"where": str(tmp_path), "mode": mode, "keyed": keyed}], tmp_path, faults)
    record = ["fstat", "write", *(["fstat", "pwrite"] if keyed else [])]  # of the ledger, and of the state file
    flush = ["fdatasync"] if mode == "durable" else []

    assert out["calls"] == [*record, *flush, *record, *record], out
