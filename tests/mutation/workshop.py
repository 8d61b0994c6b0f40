"""A copy of the tree in which one mutant after the other is built and tried.

Tests run in namespaces of their own, so that a mutant that signals, limits or mounts the wrong thing has nobody but
itself to do it to, and all that it leaves running ends with it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

_ALONE = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
#: The first process of its namespace must reap the orphans of others: a shell does.
_REAPING = ["sh", "-c", '"$@"; exit $?', "sh"]
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+(?: \S+\])?)", re.MULTILINE)


class Tried(NamedTuple):
    """What a run of tests said: the test that failed, "time" for one that did not end, None if all passed."""

    failed: str | None
    seconds: float
    said: str


class Workshop:
    """A copy of what is in the repository, and of the core as it is built there."""

    def __init__(self, where: Path) -> None:
        self.where = where
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if not (ROOT / name).is_file():
                continue
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, where / name)
        where.chmod(0o755)  # tests become other users, who look for the launcher there
        self.package = where / "safespawn"

    def write(self, file: str, text: str) -> None:
        """Put a mutant, or the original, in its place."""
        path = self.package / file
        path.write_text(text, encoding="utf-8")
        for made in path.parent.glob(f"__pycache__/{path.stem}.*"):
            made.unlink()

    def build(self) -> bytes | None:
        """Build core and programs without much optimisation; return their code, or None if they do not compile."""
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("build.py")), str(self.package)], capture_output=True, check=False
        )
        return done.stdout.splitlines()[-1] if done.returncode == 0 else None

    def test(self, run: tuple[str, ...], seconds: float) -> Tried:
        """Run tests until one fails."""
        files = [str(self.where / "tests" / one) if one.endswith(".py") or "::" in one else one for one in run]
        base = self.where / "temporary"
        line = [*_ALONE, *_REAPING, sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "--basetemp", str(base), *files]
        environment = {**os.environ, "PYTHONPATH": str(self.where), "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none of theirs is needed, and they take a second
        began = time.monotonic()
        try:
            done = subprocess.run(
                line, cwd=self.where, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="replace", timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as problem:
            return Tried("time", time.monotonic() - began, str(problem.stdout or "")[-2000:])
        spent = time.monotonic() - began
        if done.returncode == 0:
            return Tried(None, spent, done.stdout)
        assert done.returncode != 5, f"{run} has no test"
        names = _FAILED.findall(done.stdout)
        return Tried(names[0] if names else f"exit {done.returncode}", spent, done.stdout[-4000:] + done.stderr[-2000:])
