"""threat-model.md, the guards, the code and the tests say the same, both ways."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

import helpers
from safespawn import guards

MODEL = (helpers.ROOT / "threat-model.md").read_text(encoding="utf-8")
STATUSES = {"guarded", "accepted", "out-of-scope", "todo"}


def rows(prefix: str) -> list[list[str]]:
    """Return the cells of every table row whose first cell is an id with that prefix."""
    found = []
    for line in MODEL.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if re.fullmatch(prefix + r"-\d\d", cells[0].strip("| ")):
            found.append(cells)
    return found


def quoted(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


THREATS = {row[0]: row for row in rows("T")}

COLLECT = """
import json, sys, pytest
class Marks:
    def pytest_collection_modifyitems(self, items):
        marks = [[item.nodeid, [m.args[0] for m in item.iter_markers("threat")]] for item in items]
        print("MARKS" + json.dumps(marks))
sys.exit(pytest.main(["--collect-only", "-q", "tests"], plugins=[Marks()]))
"""


@pytest.fixture(scope="module")
def marked() -> list[tuple[str, list[str]]]:
    """Return every collected test with the threats of its markers."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=helpers.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("MARKS"))
    return [(nodeid.removeprefix("tests/"), threats) for nodeid, threats in json.loads(line[5:])]


def test_every_row_is_well_formed():
    """A row has six cells, its id once, and a status of the closed set."""
    ids = [row[0] for row in rows("T")]
    assert ids == sorted(set(ids)) and len(ids) >= 20
    for row in THREATS.values():
        assert len(row) == 6, row
        assert row[5] in STATUSES, row
    residual = [row[0] for row in rows("R")]
    assert residual == sorted(set(residual)) and residual
    assert all(len(row) == 3 and all(row) for row in rows("R"))


def test_rows_and_registry_agree():
    """The guards of a row are those that name its threat in the registry, and none is missing."""
    in_model = {(guard, row[0]) for row in THREATS.values() for guard in quoted(row[3])}
    in_registry = {(guard.id, threat) for guard in guards.registry.values() for threat in guard.threats}
    assert in_model == in_registry
    assert all(guard.id == name for name, guard in guards.registry.items())


def test_a_guarded_threat_has_a_guard():
    """No row says guarded without naming one."""
    assert [row[0] for row in THREATS.values() if row[5] == "guarded" and not quoted(row[3])] == []


@pytest.mark.parametrize("guard", guards.registry.values(), ids=lambda guard: guard.id)
def test_the_code_names_guard_and_threat(guard):
    """The file that enforces a guard has a line with its id and its threat."""
    text = (helpers.ROOT / "safespawn" / guard.source).read_text(encoding="utf-8")
    for threat in guard.threats:
        named = [line for line in text.splitlines() if guard.id in line and threat in line and "Guard(" not in line]
        assert named, f"{guard.source} does not name {guard.id} ({threat})"


def test_every_guarded_threat_has_an_attack_pair(marked):
    """Some test of each guarded threat runs with the guard off and with it on."""
    for row in THREATS.values():
        if row[5] != "guarded":
            continue
        cases = [nodeid for nodeid, threats in marked if row[0] in threats and "[" in nodeid]
        words = {word for nodeid in cases for word in re.split(r"[\[\]-]", nodeid.partition("[")[2])}
        assert {"off", "on"} <= words, f"{row[0]} has no attack pair"


def test_named_tests_exist_and_say_so(marked):
    """A test named in a row is collected, and carries the row's threat as its marker."""
    for row in THREATS.values():
        assert quoted(row[4]), f"{row[0]} names no test"
        for name in quoted(row[4]):
            threats = [threats for nodeid, threats in marked if nodeid.partition("[")[0] == name]
            assert threats, f"{row[0]}: no such test: {name}"
            assert all(row[0] in found for found in threats), f"{name} is not marked {row[0]}"


def test_every_marker_is_a_threat_of_the_model(marked):
    """No test claims a threat that the model does not have, and attack pairs are all in it."""
    for nodeid, threats in marked:
        for threat in threats:
            assert threat in THREATS, f"{nodeid} is marked {threat}"
        if threats and nodeid.startswith("test_exploits.py"):
            name = nodeid.partition("[")[0]
            assert any(name in quoted(THREATS[threat][4]) for threat in threats), f"{name} is in no row"
