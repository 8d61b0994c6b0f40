"""The soak in short: a few seconds of everything at once leave nothing, and its judge finds what is seeded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import helpers

SOAK = helpers.TESTS / "soak"
sys.path.append(str(SOAK))

import accounts
import book
import judge

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: credentials are changed")


def soak(where: Path, seconds: float, *seeded: str) -> dict[str, Any]:
    """Run it and return what it reports."""
    words = [f"--seconds={seconds}", f"--report={where}", *(f"--fault={name}" for name in seeded)]
    done = subprocess.run(
        [sys.executable, str(SOAK / "soak.py"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    report: dict[str, Any] = json.loads((where / "soak.json").read_text())
    assert done.returncode == bool(report["findings"]), done.stderr
    assert done.stdout == (where / "soak.txt").read_text()
    assert done.stdout.splitlines()[-1] == report["summary"]
    return report


@pytest.mark.slow
@root_only
def test_a_few_seconds_of_everything_leave_nothing(tmp_path: Path) -> None:
    """Every spawn is in the ledger as its caller knows it, and descriptors, children and files are as before."""
    report = soak(tmp_path, 6)

    assert report["findings"] == []
    assert report["summary"].startswith("soak passed: 6 s")
    assert {"clone", "fork", "helper", "launcher", "pool", "posix_spawn", "vfork"} <= report[
        "strategies"
    ].keys()
    assert sum(sum(told.values()) for told in report["ways"].values()) == report["spawns"] > 100
    assert report["chains"] > report["counts"]["forks"] > 0 and report["verified"]


@pytest.mark.slow
@root_only
def test_seeded_faults_are_found(tmp_path: Path) -> None:
    """What is left open, what is in no book or in no ledger, and what ended otherwise than was told."""
    report = soak(tmp_path, 3, "descriptor", "temporary", "absent", "stranger", "otherwise")
    found = " ".join(report["findings"])

    for words in (
        "/dev/null is open",
        "temporary file",
        "0 spawns in the ledger",
        "'stranger'",
        "was code:1 for its caller",
    ):
        assert words in found
    assert "grows: temporary files" in found
    assert report["summary"].startswith("soak failed: 3 s")


# ------------------------------------------------------------------ the rules


@pytest.mark.parametrize("name", sorted(judge.ALLOWED))
@pytest.mark.parametrize("each", [0, 1000])
def test_what_grows_by_one_in_so_many_samples_is_found(name: str, each: int) -> None:
    """A leak of a thing in every spawn, or of memory; what only comes and goes is flat."""
    step = 100 if name.endswith("KiB") else 1
    steady = [50 + (i % 3) for i in range(600)]
    values = [one + (i * step if each else 0) for i, one in enumerate(steady)]
    seen = judge.trend(name, values, 600)

    assert seen.flat == (each == 0)
    assert bool(judge.grown([seen])) == (each != 0)


def test_memory_of_a_short_run_is_not_judged() -> None:
    """It is shown, and neither flat nor growing."""
    assert judge.trend("resident KiB", list(range(0, 900000, 1000)), judge.MEMORY_FROM - 1).flat is None


def test_epoch_that_goes_back_is_found() -> None:
    """Epoch and count of changes only grow."""
    told = [{"epoch": 4, "changes": 2}, {"epoch": 6, "changes": 3}]
    assert judge.sequence(told) == []
    assert judge.sequence(told[::-1]) == ["lock: epoch has gone back", "lock: changes has gone back"]


ENDED = {
    "problems": [],
    "before": {"/dev/null": 1},
    "after": {"/dev/null": 1},
    "children": [],
    "lost": 0,
    "lock": {"state": "armed", "spawners": 0, "changers": 0, "changer_waits": False, "overlaps": 0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"problems": ["a thread raised"]}, "a thread raised"),
        ({"after": {"/dev/null": 2}}, "/dev/null is open 2 times, 1 before"),
        ({"after": {}}, "/dev/null is open 0 times, 1 before"),
        ({"children": ["7 (true)"]}, "child 7 (true)"),
        ({"lost": 3}, "3 records"),
        ({"children": ["7 (helper) S"]}, "child 7 (helper)"),
        ({"lock": {**ENDED["lock"], "spawners": 1}}, "at the end"),
        ({"lock": {**ENDED["lock"], "changer_waits": True}}, "at the end"),
    ],
)
def test_what_is_left_at_the_end_is_found(what: dict[str, Any], words: str) -> None:
    """Each of these is a finding, alone; without it there is none."""
    assert judge.left(ENDED, [], []) == []
    (found,) = judge.left({**ENDED, **what}, [], [])
    assert words in found


@pytest.mark.parametrize(("what", "noted"), [("children", ["7 (helper) Z"]), ("lock", {"overlaps": 1})])
def test_what_may_come_is_a_note_and_more_of_it_a_finding(what: str, noted: Any) -> None:
    """What threat-model.md tells of is shown; when it comes more often than it may, it is found."""
    ended = {"children": [], "lock": {"overlaps": 0}, what: noted}
    seldom = judge.known({**ended, "counts": {"helpers killed": 10}}, judge.FOREIGN)
    often = judge.known({**ended, "counts": {"helpers killed": 9}}, judge.FOREIGN - 1)

    assert [len(one) for one in (*seldom, *often)] == [1, 0, 0, 1]
    assert judge.known(
        {**ended, what: type(noted)({"overlaps": 0} if what == "lock" else ()), "counts": {}}, 0
    ) == ([], [])


def test_files_that_are_left_are_found() -> None:
    """Temporary ones, and what does not belong to the ledger beside it."""
    assert len(judge.left(ENDED, ["tmpx"], ["ledger.tmp"])) == 2


def seen(*events: str, code: int | None = None, outcome: str | None = None) -> accounts.Seen:
    """Return what a ledger has of a spawn."""
    return accounts.Seen(list(events), ["/bin/true", "soak-1-0"], outcome, code)


@pytest.mark.parametrize(
    ("result", "records", "word"),
    [
        ("code:0", [seen(*accounts.RAN, code=0)], None),
        ("code:0", [], "unrecorded"),
        ("code:0", [seen(*accounts.RAN, code=0)] * 2, "unrecorded"),
        ("code:0", [seen(*accounts.RAN, code=-9)], "otherwise"),
        ("code:0", [seen(*accounts.RAN[:2])], "otherwise"),
        ("code:0", [seen(*accounts.RAN[1:], code=0)], "otherwise"),
        ("code:0", [seen(*accounts.RAN, accounts.RAN[2], code=0)], "otherwise"),
        ("code:0", [seen("spawn.intent", "spawn.failed", outcome="failed")], "otherwise"),
        ("dropped", [seen(*accounts.RAN, code=3)], None),
        ("dropped", [seen(*accounts.RAN[:2])], "otherwise"),
        ("timeout", [seen(*accounts.RAN, code=-15)], None),
        ("timeout", [seen(*accounts.RAN, code=0)], "otherwise"),
        ("nothing:refused", [seen("spawn.denied", outcome="refused")], None),
        ("nothing:refused", [seen("spawn.intent", "spawn.denied", outcome="refused")], None),
        ("nothing:refused", [seen("spawn.failed", outcome="failed")], "otherwise"),
        ("nothing:?", [seen("spawn.failed", outcome="race-detected")], None),
        ("nothing:?", [seen(*accounts.RAN, code=0)], "otherwise"),
        (None, [seen(*accounts.RAN, code=0)], "untold"),
    ],
)
def test_accounts(result: str | None, records: list[accounts.Seen], word: str | None) -> None:
    """One intent and one ending, which is what the caller was told; else it is a finding."""
    asked = {"soak-1-0": book.Asked("run", result)}
    spawns = {str(i): one for i, one in enumerate(records)}
    found = accounts.compare(asked, accounts.Ledger(spawns, Counter(), 1, 0, Counter()))

    assert [one.partition(":")[0] for one in found] == ([word] if word else [])


def test_spawns_in_no_book_are_found() -> None:
    """With a token or without; the program of a helper is the library's own, and must have one ending too."""
    spawns = {"a": seen(*accounts.RAN, code=0), "b": accounts.Seen(list(accounts.RAN), ["/bin/ls"], None, 0)}
    spawns["c"] = accounts.Seen(list(accounts.RAN), [accounts.HELPER, "3"], None, -9)
    spawns["d"] = accounts.Seen(list(accounts.RAN[:2]), [accounts.HELPER, "3"])
    found = accounts.compare({}, accounts.Ledger(spawns, Counter(), 1, 0, Counter()))

    assert sorted(one.partition(":")[0] for one in found) == ["helper", "unaccounted", "unaccounted"]


def test_book_that_is_out_of_turn_is_found(tmp_path: Path) -> None:
    """An end without a beginning, or twice."""
    path = tmp_path / "book"
    path.write_text("begin soak-1-0 run\nend soak-1-0 code:0\nend soak-1-0 code:0\nend soak-1-1 code:0\n")
    asked, wrong = book.read(path)

    assert asked == {"soak-1-0": book.Asked("run", "code:0")} and len(wrong) == 2
