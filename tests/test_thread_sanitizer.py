"""The credential lock under ThreadSanitizer: many threads of every kind, and no data race. A lock that is broken has one.

The program is tests/ways/crowd.c, which has the core in it: under an interpreter the library of the sanitizer stands
before libc, and that turns the lock off. The ledger is watched there: test_ledger_crowds.py. Nothing is suppressed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import helpers

#: As the product is compiled, but for what the sanitizer needs. It does not know fences, and says so.
FLAGS = ["-std=gnu11", "-O1", "-g", "-fno-tree-loop-distribute-patterns", "-fsanitize=thread", "-Wno-tsan"]
NAMES = ['-DSS_LAUNCHER_SHA256=""', '-DSS_HELPER_SHA256=""']
SECONDS = int(os.environ.get("SAFESPAWN_SANITIZER_SECONDS", "2"))
#: What a crowd does at least once in a second, however busy the machine is.
DONE = {"windows", "refused", "entered", "watched", "held", "changes", "taken", "forks"}

#: Errors of the lock, each as a text of _credlock.c, what it becomes, and where the race is seen then.
BROKEN = {
    "changers-do-not-wait": ("(!(word & SS_SPAWNERS) && !held_off) || ", "1 || ", r"crowd\.c"),
    "spawners-do-not-look": ("if ((word & in_the_way) || ", "if (", r"crowd\.c"),
    "ring-is-copied-at-once": ("ss_change_words(place, seen);", "*place = *seen;", r"_credlock\.c"),
}  # fmt: skip


def build(where: Path, was: str = "", becomes: str = "") -> Path:
    """Compile the crowd with a copy of the core, in which a text was replaced."""
    shutil.copytree(helpers.ROOT / "safespawn", where / "safespawn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (where / "tests" / "ways").mkdir(parents=True)
    source = shutil.copy(helpers.TESTS / "ways" / "crowd.c", where / "tests" / "ways")
    if was:
        core = where / "safespawn" / "_credlock.c"
        text = core.read_text(encoding="utf-8")
        assert text.count(was) == 1
        core.write_text(text.replace(was, becomes), encoding="utf-8")
    made = where / "crowd"
    built = subprocess.run(["gcc", *FLAGS, *NAMES, source, "-o", made], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return made


def run(crowd: Path, seconds: int, halt: int) -> tuple[int, str, str]:
    """Run it: exit code, what it printed, what the sanitizer said."""
    # Without a random layout, because that of newer kernels is more than this sanitizer knows.
    line = ["setarch", "--addr-no-randomize", str(crowd), "/bin/true", str(seconds)]
    # A child of fork that ends at once is no thread of ours.
    options = {"TSAN_OPTIONS": f"halt_on_error={halt}:die_after_fork=0"}
    done = subprocess.run(
        line, env={**os.environ, **options}, capture_output=True, text=True, timeout=seconds + 60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.threat("T-21")
@pytest.mark.threat("T-22")
def test_lock_has_no_race(tmp_path: Path) -> None:
    """Spawners, changers, forkers and readers at once: no race, every change fetched once, the lock free in the end."""
    code, out, said = run(build(tmp_path), SECONDS, 0)
    done = dict(line.split() for line in out.splitlines())

    assert (code, said) == (0, "")
    assert {name for name in DONE if int(done[name])} == DONE, done


@pytest.mark.threat("T-21")
@pytest.mark.parametrize(
    "error", [pytest.param(one, marks=pytest.mark.long if number else ()) for number, one in enumerate(BROKEN)]
)
def test_broken_lock_has_a_race(tmp_path: Path, error: str) -> None:
    """The same crowd with an error planted in the lock: the sanitizer names the place."""
    was, becomes, where = BROKEN[error]
    code, _, said = run(build(tmp_path, was, becomes), 20, 1)

    assert code == 66, "its exit code for a race"
    assert re.search(rf"SUMMARY: ThreadSanitizer: data race .*{where}", said), said
