"""Every interpreter that is here runs the core that was built once, and the table of environments names real tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import environments
import helpers

sys.path.append(str(helpers.TESTS / "pythons"))

import try_each as pythons

OTHERS = [(name, path) for name, path in pythons.found(debian=False) if name != "{}.{}".format(*sys.version_info)]
PAGE = helpers.ROOT / "docs" / "environments.md"


@pytest.mark.skipif(helpers.CORE is not None, reason="other interpreters run the core of the tree")
def test_each_runs_the_core() -> None:
    """Each runs the quick tests, and threads that start programs in every way, with no failure."""
    for name, path in OTHERS:
        row = pythons.tried(name, path, debian=False, quick=True)
        assert (row.failed, row.threads) == (0, "ok"), row.told() + "\n" + Path(row.log).read_text(errors="replace")[-8000:]
        assert row.passed > 100, row.told()


def test_own_interpreter_is_found() -> None:
    """The search finds at least the one that runs this, by its version."""
    assert "{}.{}".format(*sys.version_info) in [name for name, _ in pythons.found(debian=False)]


def test_counts_are_read_from_the_last_line(tmp_path: Path) -> None:
    """A log without a line of counts is an error, never nothing."""
    log = tmp_path / "log"
    for text, counts in (
        ("..F\n1 failed, 3 passed, 2 skipped in 1.50s\n", {"failed": 1, "passed": 3, "skipped": 2}),
        ("======= 2 passed in 0.10s =======\n", {"passed": 2}),
        ("Segmentation fault\n", {"errors": 1}),
        ("", {"errors": 1}),
    ):
        log.write_text(text)
        assert pythons.counts(log) == counts


def test_page_has_every_environment_and_no_other() -> None:
    """Rows of the table of sandboxes are the environments that are tried."""
    table = PAGE.read_text(encoding="utf-8").split("## Sandboxes")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`([^`]+)`", row)) == sorted(environments.ENVIRONMENTS)


def test_page_names_tests_that_are_there() -> None:
    """Every test and script that the page names exists; every other row says that there is none, and why."""
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.(?:py|sh))(?:::(\w+))?", text)
    assert named
    for file, function in named:
        source = (helpers.ROOT / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, (file, function)
    for line in text.split("## Interpreters")[1].splitlines():
        if line.startswith("| ") and not line.startswith(("| interpreter", "| what |")):
            assert "`make " in line or "`tests/" in line or "not tested: " in line, line


def test_make_has_what_the_page_names() -> None:
    """Every command of make that the page names is a target."""
    targets = set(re.findall(r"^([\w-]+)(?:-%)?:", (helpers.ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", PAGE.read_text(encoding="utf-8"))) <= targets
    for name in ("pythons/sid.sh", "pythons/debian.sh", "cpython/newest.sh"):
        assert subprocess.run(["bash", "-n", str(helpers.TESTS / name)], check=False).returncode == 0
