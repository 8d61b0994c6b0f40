"""Skips tell why, and are failures where everything must run: SAFESPAWN_MUST_RUN=1 (tests/conftest.py)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import helpers

#: Each way to skip that a test file can take.
WAYS = {
    "mark": "@pytest.mark.skipif(True, reason='told')\ndef test(): pass",
    "marks": "pytestmark = pytest.mark.skipif(True, reason='told')\ndef test(): pass",
    "call": "def test(): pytest.skip('told')",
    "fixture": "@pytest.fixture\ndef it(): pytest.skip('told')\ndef test(it): pass",
    "import": "def test(): pytest.importorskip('no_told_module')",
    "module": "pytest.skip('told', allow_module_level=True)",
    "imports": "pytest.importorskip('no_told_module')\ndef test(): pass",
    "nothing": "@pytest.mark.parametrize('told', [])\ndef test(told): pass",
}


@pytest.mark.parametrize("must", [False, True], ids=["may", "must"])
def test_skips(tmp_path: Path, must: bool) -> None:
    """Where it may be skipped each says why, and all is well; where it must run each is a failure that says why."""
    shutil.copy(helpers.TESTS / "conftest.py", tmp_path)
    shutil.copy(helpers.ROOT / "pyproject.toml", tmp_path)
    for way, text in WAYS.items():
        (tmp_path / f"test_{way}.py").write_text(f"import pytest\n{text}\n", encoding="ascii")
    places = os.pathsep.join(map(str, (helpers.ROOT, helpers.TESTS)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--continue-on-collection-errors", *sorted(tmp_path.glob("test_*.py"))],
        cwd=tmp_path,
        env={**os.environ, "SAFESPAWN_MUST_RUN": str(int(must)), "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    failed = {way for way in WAYS if any(re.match(rf"(FAILED|ERROR) test_{way}\.py", line) for line in lines)}
    told = {way for way in WAYS if any(f"test_{way}.py" in line and "told" in line for line in lines)}

    assert told == WAYS.keys(), done.stdout
    assert failed == (WAYS.keys() if must else set()), done.stdout
    assert done.returncode == must
