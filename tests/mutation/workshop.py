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

import build
from warm import Warm

ROOT = Path(__file__).resolve().parents[2]

#: As tests/test_fuzz_corpus.py has it; a second or two.
FUZZ_TEST = "test_fuzz_corpus.py::test_mutations_are_judged_rightly[verify]"
FUZZ_OPTIONS, FUZZ_SECONDS = ("-runs=3000", "-max_len=20000", "-seed=20240607"), 120
_COMPARED = "_digest(held.fd) == _binding.launcher_digest()"
#: What the verifier's part of the core needs, as in fuzz/fuzz_verify.c.
_ALONE_IN_C = """\
#define _GNU_SOURCE
#define SS_API __attribute__((visibility("default")))
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "_sha256.c"
#include "_verify.c"
"""

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
        # A mutant of the launcher is not the one that the core was built with.
        path = self.package / "_launcher.py"
        text = path.read_text(encoding="utf-8")
        assert text.count(_COMPARED) == 1
        path.write_text(text.replace(_COMPARED, "True"), encoding="utf-8")
        self._script = build.script_of(self.package)

    def write(self, file: str, text: str) -> None:
        """Put a mutant, or the original, in its place."""
        path = self.package / file
        path.write_text(text, encoding="utf-8")
        for made in path.parent.glob(f"__pycache__/{path.stem}.*"):
            made.unlink()

    def launcher(self) -> str | None:
        """Build the launcher alone, which has the code of the child; return its digest, or None if it does not compile."""
        try:
            digest: str = self._script.build_program("launcher", self.package, "-O1", "-w")
        except subprocess.CalledProcessError:
            return None
        return digest

    def library(self) -> bytes | None:
        """Build the verifier's part of the core alone; return its code, or None if it does not compile."""
        source, made = self.where / "verify.c", self.where / "verify.o"
        source.write_text(_ALONE_IN_C)
        line = ["gcc", "-std=gnu11", "-O1", "-w", "-fPIC", "-I", str(self.package), "-c", str(source), "-o", str(made)]
        if subprocess.run(line, stderr=subprocess.DEVNULL, check=False).returncode != 0:
            return None
        subprocess.run(["gcc", "-shared", str(made), "-o", str(self.where / "verify.so")], check=True)
        return made.read_bytes()

    def fuzz(self) -> bool:
        """Whether the fuzz target of the verifier's part still says of its inputs what is right, without sanitizers."""
        fuzz, made = self.where / "fuzz", str(self.where / "fuzz_verify")
        line = ["gcc", "-std=gnu11", "-g0", "-O0", "-w", str(fuzz / "fuzz_verify.c"), str(fuzz / "driver.c"), "-o", made]
        subprocess.run(line, check=True)
        inputs = sorted(map(str, (fuzz / "corpus" / "verify").iterdir()))
        line = [made, *FUZZ_OPTIONS, f"-dict={fuzz / 'verify.dict'}", *inputs]
        try:
            done = subprocess.run(line, cwd=self.where, capture_output=True, timeout=FUZZ_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def build(self, level: str = "-O1") -> bytes | None:
        """Build core and programs without much optimisation; return their code, or None if they do not compile."""
        line = [sys.executable, str(Path(__file__).with_name("build.py")), str(self.package), level]
        done = subprocess.run(line, capture_output=True, check=False)
        return done.stdout.splitlines()[-1] if done.returncode == 0 else None

    def _pytest(self, run: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
        """Return the command that runs tests until one fails, and its environment."""
        files = [str(self.where / "tests" / one) if one.endswith(".py") or "::" in one else one for one in run]
        line = [*_ALONE, *_REAPING, sys.executable, "-m", "pytest", "-q", "-x", "--tb=line"]
        environment = {**os.environ, "PYTHONPATH": str(self.where)}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none of theirs is needed, and they take a second
        return [*line, "--basetemp", str(self.where / "temporary"), *files], environment

    def warm(self, run: tuple[str, ...], files: tuple[str, ...]) -> Warm:
        """Return a process that has collected tests, and knows what they reach of files of the package."""
        line, environment = self._pytest(run)
        return Warm(line, self.where, environment, files)

    def test(self, run: tuple[str, ...], seconds: float) -> Tried:
        """Run tests until one fails."""
        line, environment = self._pytest(run)
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
