"""Fuzz targets as tests use them: built, run over files, and held against errors that are planted in the core."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

import helpers

FUZZ = helpers.ROOT / "fuzz"
CORPORA = FUZZ / "corpus"
SEED = 20240607

#: -fno-ipa-pure-const: else the compiler sees that the child's main never returns, and
#: ASan warns that it does not know the stack on which that happens.
FLAGS = ("-std=gnu11", "-fno-ipa-pure-const", "-Wall", "-Wextra", "-Wno-unused-function")
ORDINARY = ("-g", "-O1", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
#: For the many builds that have an error planted: they run for a moment only.
QUICK = ("-g0", "-O0", "-w")
QUICK_SANITIZED = (*QUICK, *ORDINARY[3:])


def build(made: Path, *sources: str | Path, fuzz: Path = FUZZ, flags: Iterable[str] = ORDINARY) -> Path:
    """Compile a target, under ASan and UBSan by default; ``sources`` are files of the directory and flags."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    words = [str(word) if str(word).startswith("-") else str(fuzz / word) for word in sources]
    built = subprocess.run(
        [compiler, *FLAGS, *flags, *words, "-o", str(made)], capture_output=True, text=True, check=False
    )
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        pytest.skip("the runtime libraries of gcc's sanitizers are not installed")
    assert built.returncode == 0, built.stderr
    return made


def run(driver: Path, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run it where a crashing input may be left, with sanitizers that say what they find."""
    return subprocess.run(
        [str(driver), *arguments],
        cwd=driver.parent,
        env={**os.environ, "ASAN_OPTIONS": "", "UBSAN_OPTIONS": "print_stacktrace=1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


def files(target: str) -> list[Path]:
    """Return the files of a corpus, in the order of their names."""
    return sorted((CORPORA / target).iterdir())


def copy_with(where: Path, name: str, old: str, new: str) -> Path:
    """Lay out core and targets anew, with an error planted in a file of the core; return the targets' place.

    The others are links: a compiler takes what a file includes from where the link is.
    """
    for part in ("safespawn", "fuzz"):
        (where / part).mkdir()
        for source in (helpers.ROOT / part).glob("*.[ch]"):
            (where / part / source.name).symlink_to(source)
    text = (helpers.ROOT / "safespawn" / name).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (where / "safespawn" / name).unlink()
    (where / "safespawn" / name).write_text(text.replace(old, new), encoding="utf-8")
    return where / "fuzz"


def _is_found(driver: Path, paths: list[Path], said: dict[str, str] | None, timeout: float) -> bool:
    try:
        done = run(driver, *map(str, paths), timeout=timeout)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode != 0:
        return True
    told = dict(line.rsplit("/", 1)[1].split(": ", 1) for line in done.stdout.splitlines())
    return said is not None and {**told, **said} != told


def finds(
    where: Path, target: str, name: str, error: tuple[str, str], *, said: dict[str, str] | None = None
) -> bool:
    """Return whether replaying its corpus shows an error planted in a file of the core.

    ``said``: what the target has to say of the files, where it says that. First without sanitizers,
    which take most of the time of such a build; then what only they see.
    """
    fuzz = copy_with(where, name, *error)
    for flags, timeout in ((QUICK, 10.0), (QUICK_SANITIZED, 120.0)):
        made = build(where / "replay", "-DFUZZ_MAIN", f"fuzz_{target}.c", fuzz=fuzz, flags=flags)
        if _is_found(made, files(target), said, timeout):
            return True
    return False
