"""Faults that are planted on purpose (seeded_faults.py) still apply, and tests notice them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import helpers
from safespawn import guards
from seeded_faults import FAULTS, NAMED

SOURCES = helpers.ROOT / "safespawn"


@pytest.mark.parametrize("name", FAULTS)
def test_fault_still_applies(name: str) -> None:
    """What it replaces is there once, its guard is one of ours, and its test is where it is said to be."""
    fault = FAULTS[name]
    file, _, test = fault.test.partition("::")
    text = (helpers.TESTS / file).read_text(encoding="utf-8")

    assert (SOURCES / fault.file).read_text(encoding="utf-8").count(fault.was) == 1
    assert fault.guard in guards.registry
    assert re.search(rf"^def {test.partition('[')[0]}\(", text, re.MULTILINE)


def plant(where: Path, names: tuple[str, ...]) -> None:
    """Copy package and tests, the core as it was built too, and plant faults in the sources."""
    for part in ("safespawn", "tests"):
        shutil.copytree(helpers.ROOT / part, where / part, ignore=shutil.ignore_patterns("__pycache__", "results.json"))
    shutil.copy(helpers.ROOT / "pyproject.toml", where)
    for name in names:
        fault = FAULTS[name]
        path = where / "safespawn" / fault.file
        path.write_text(path.read_text(encoding="utf-8").replace(fault.was, fault.becomes), encoding="utf-8")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: one of the faults is in how privileges are dropped")
def test_named_faults_are_noticed(public: Path) -> None:
    """Each of the five has its test fail, in one copy that has all of them."""
    plant(public, NAMED)
    tests = [FAULTS[name].test for name in NAMED]
    built = subprocess.run(
        [sys.executable, str(helpers.TESTS / "mutation" / "build.py"), str(public / "safespawn")], capture_output=True, check=False
    )
    assert built.returncode == 0, built.stderr
    environment = {**os.environ, "PYTHONPATH": str(public), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=line", f"--basetemp={public / 'temporary'}",
         *(str(public / "tests" / test) for test in tests)],
        cwd=public, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for test in tests:
        assert re.search(rf"^FAILED tests/{re.escape(test)}", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert f"{len(tests)} failed" in done.stdout.splitlines()[-1]
