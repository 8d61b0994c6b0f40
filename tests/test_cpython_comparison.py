"""The comparison of CPython's own tests (tests/cpython) sees what it has to see: it fails where we are worse."""

from __future__ import annotations

import io
import json
import sys
import unittest
from collections.abc import Iterable
from typing import Any

import pytest

import helpers

sys.path.append(str(helpers.TESTS / "cpython"))

import compare
import expected
import running
import worker

OURS = running.Run("3.11", "installed", "test_thing")
PLAIN = OURS._replace(mode="plain")


def came(**outcomes: str) -> running.Came:
    return running.Came(outcomes, dict.fromkeys(outcomes, "why"), 7, "", 0)


class Bench:
    """Says what each run comes to, in the order in which a comparison asks for them."""

    def __init__(self, *answers: running.Came) -> None:
        self.answers, self.asked = iter(answers), []

    def run_all(self, runs: Iterable[running.Run]) -> dict[running.Run, running.Came]:
        self.asked += (runs := list(runs))
        return {run: next(self.answers) for run in runs}


def compared(*answers: running.Came) -> tuple[int, Bench]:
    """Return the exit code of a comparison of one module."""
    bench: Any = Bench(*answers)
    return compare.report(compare.Comparison(bench, [OURS])), bench


def test_all_good() -> None:
    """What passes with us is not run without us, and nothing is wrong."""
    code, bench = compared(came(a="passed", b="expected failure"))
    assert (code, bench.asked) == (0, [OURS])


@pytest.mark.parametrize("outcome", ["failed", "error", "skipped", "not run", "hung or died", "unexpected success"])
def test_worse_twice(outcome: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A test that passes without us, and not with us, twice, is wrong, and named with the reason."""
    code, bench = compared(came(a="passed", b=outcome), came(b="passed"), came(b=outcome))
    assert (code, bench.asked) == (1, [OURS, PLAIN._replace(ids=("b",)), OURS._replace(ids=("b",))])
    name = "tests of test_thing" if outcome == "not run" else "b"
    assert f"installed {name} (3.11): passed without us, {outcome} with us\n      why" in capsys.readouterr().out


def test_worse_once(capsys: pytest.CaptureFixture[str]) -> None:
    """What is worse only once is shown, and not wrong."""
    code, _ = compared(came(a="failed", b="passed"), came(a="passed"), came(a="passed"))
    assert code == 0
    assert "differed once and not again, not counted: 1" in capsys.readouterr().out


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_no_better_without_us(outcome: str) -> None:
    """What is no better without us is not wrong."""
    assert compared(came(a=outcome, b="passed"), came(a=outcome))[0] == 0


def test_failed_and_skipped_without_us() -> None:
    """What fails with us and is skipped without us is wrong."""
    assert compared(came(a="failed", b="passed"), came(a="skipped"), came(a="failed"))[0] == 1


def test_nothing_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A module that cannot be loaded with us is wrong, with the end of its log."""
    assert compared(running.Came({}, {}, None, "no such thing", 0), came(a="passed"))[0] == 1
    assert "3.11 installed test_thing\n      no such thing" in capsys.readouterr().out


def test_no_end_without_us(capsys: pytest.CaptureFixture[str]) -> None:
    """What did not end without us cannot be compared, and is wrong."""
    assert compared(came(a="failed", b="passed"), came(a="hung or died")._replace(started=None))[0] == 1
    assert "DID NOT END WITHOUT US: NOT COMPARED: 1\n  3.11 test_thing" in capsys.readouterr().out


def test_nothing_started(capsys: pytest.CaptureFixture[str]) -> None:
    """A mode in which no program was started by us compared nothing, and is wrong."""
    assert compared(came(a="passed")._replace(started=0))[0] == 1
    assert "NO PROGRAM STARTED BY US: 1\n  3.11 installed" in capsys.readouterr().out


@pytest.mark.parametrize(("outcome", "code"), [("failed", 0), ("passed", 1)])
def test_listed(outcome: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is listed may be worse, and is wrong if it is not."""
    entry = expected.Expected(("a",), "it is so", ("installed",), ("3.11",))
    monkeypatch.setattr(compare, "EXPECTED", (entry,))
    assert compared(came(a=outcome, b="passed"), came(a="passed"))[0] == code


class Sample(unittest.TestCase):
    """Tests that end in each way; not collected by pytest, which is told the name of the loader below."""

    __test__ = False

    def passes(self) -> None:
        pass

    def fails_in_one_part(self) -> None:
        with self.subTest(part=1):
            self.fail("part one")
        with self.subTest(part=2):
            self.skipTest("part two")

    def raises(self) -> None:
        raise OSError("told")

    def is_skipped(self) -> None:
        self.skipTest("told")

    @unittest.expectedFailure
    def fails_as_expected(self) -> None:
        self.fail()

    @unittest.expectedFailure
    def passes_unexpectedly(self) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "outcome", "text"),
    [
        ("passes", "passed", ""),
        ("fails_in_one_part", "failed", "part one"),
        ("raises", "error", "OSError: told"),
        ("is_skipped", "skipped", "told"),
        ("fails_as_expected", "expected failure", ""),
        ("passes_unexpectedly", "unexpected success", ""),
    ],
)
def test_recorded(name: str, outcome: str, text: str) -> None:
    """The worker writes that a test began, and the worst that it and its parts came to, with the reason."""
    lines = io.StringIO()
    Sample(name).run(worker.Recorder(lines))
    began, ended = map(json.loads, lines.getvalue().splitlines())
    assert began == {"id": ended["id"]}
    assert ended["outcome"] == outcome
    assert text in ended["text"]


def test_hang(tmp_path: Any) -> None:
    """Of a worker that is ended in a test, that test hung, those after it were not run, and the log says where."""
    results, log = tmp_path / "results", tmp_path / "log"
    lines = [{"chosen": ["a", "b", "c"]}, {"id": "a"}, {"id": "a", "outcome": "passed", "text": ""}, {"id": "b"}]
    results.write_text("\n".join(map(json.dumps, lines)), encoding="ascii")
    log.write_text("before\nTimeout (0:00:08)!\nFile x, line 1", encoding="ascii")
    read = running.read(results, log)
    assert read.outcomes == {"a": "passed", "b": "hung or died", "c": "not run"}
    where = "Timeout (0:00:08)!\nFile x, line 1"
    assert read.texts == {"a": "", "b": where, "c": where}
    assert read.started is None
