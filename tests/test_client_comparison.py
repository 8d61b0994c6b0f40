"""The comparison of other programs' tests (tests/clients) sees what it has to see: it fails where they are worse."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import helpers

sys.path.append(str(helpers.TESTS / "clients"))

import places
import compare_all


class Suite:
    """Tests that come out as told, run after run, as places.Came."""

    name = "thing 1"

    def __init__(self, *outcomes: dict[str, str]) -> None:
        self.outcomes = iter(outcomes)

    def prepare(self) -> None:
        pass

    def run(self, way: str) -> places.Came:
        return places.Came(next(self.outcomes), 3 if way == compare_all.WITH else 0)


def compared(*outcomes: dict[str, str]) -> int:
    """Return the exit code of a comparison, which must have asked for all of these runs."""
    suite = Suite(*outcomes)
    code = compare_all.report([compare_all.compare(suite, again=False)])  # type: ignore[arg-type]
    assert next(suite.outcomes, None) is None
    return code


GOOD = {"a": "passed", "b": "passed"}


def test_same() -> None:
    """The same outcomes are well after one pair of runs, failures too."""
    assert compared({**GOOD, "c": "failed"}, {**GOOD, "c": "failed"}) == 0


@pytest.mark.parametrize("outcome", ["failed", "skipped", "hung or died", None])
def test_worse_in_both_pairs(outcome: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """What is bad with us in both pairs of runs, and not without, is wrong; so is what was not run."""
    bad = {"a": "passed", **({} if outcome is None else {"b": outcome})}
    assert compared(GOOD, bad, GOOD, bad) == 1
    assert "WORSE WITH US, IN BOTH PAIRS OF RUNS: b" in capsys.readouterr().out


def test_worse_in_one_pair(capsys: pytest.CaptureFixture[str]) -> None:
    """What is bad in one pair of runs only is shown, and not wrong."""
    assert compared(GOOD, {**GOOD, "b": "failed"}, GOOD, GOOD) == 0
    assert "worse in one pair of runs only, not counted: b" in capsys.readouterr().out


def test_nothing_run_without_us() -> None:
    """A client of which nothing can be run is wrong."""
    assert compared({}, {}) == 1


def test_run_that_did_not_end(tmp_path: Path) -> None:
    """Of a run without its last line the test that had begun hung, and the run itself failed."""
    lines = [{"id": "a"}, {"id": "a", "outcome": "passed"}, {"id": "b"}]
    (tmp_path / "outcomes").write_text("\n".join(map(json.dumps, lines)), encoding="ascii")
    came = places.read(tmp_path / "outcomes", "the run itself")
    assert came == {"a": "passed", "b": "hung or died", "the run itself": "failed"}


def test_whole_run(tmp_path: Path) -> None:
    """A run with its last line is what its tests came to."""
    lines = [{"id": "a"}, {"id": "a", "outcome": "passed"}, {"end": ""}]
    (tmp_path / "outcomes").write_text("\n".join(map(json.dumps, lines)), encoding="ascii")
    assert places.read(tmp_path / "outcomes", "the run itself") == {"a": "passed"}
