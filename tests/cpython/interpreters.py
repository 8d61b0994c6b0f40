"""Finds the interpreters whose own tests are compared, and gives each what safespawn needs."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ("cffi>=1.17", "python-prctl>=1.8.1")


def number(version: str) -> tuple[int, ...]:
    """Return what versions are ordered by."""
    return tuple(map(int, version.split(".")))


def find(version: str) -> str | None:
    """Return the path of the first interpreter of that version that starts and has its `test` package."""
    look = f"import sys, test.test_subprocess; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
    for path in candidates(version):
        done = subprocess.run([path, "-c", look], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode == 0:
            return path
    return None


def candidates(version: str) -> Iterator[str]:
    """Yield where an interpreter may be: the one below the running environment, on PATH, under pyenv."""
    name = f"python{version}"
    yield sys._base_executable
    if found := shutil.which(name):
        yield found
    if shutil.which("pyenv"):
        root = subprocess.check_output(["pyenv", "root"], text=True).strip()
        yield from sorted(glob.glob(f"{glob.escape(root)}/versions/{version}.*/bin/{name}"), reverse=True)


def search_path(version: str, python: str) -> str:
    """Return the search path that safespawn and what it needs are imported from; installs the latter once,
    where the interpreter has none of its own.

    The core is built against the stable ABI: one build in the tree serves all versions. Ours comes behind the
    interpreter's own, whose `site-packages` and `sys.executable` stay as its tests expect them.
    """
    subprocess.run([python, "-m", "compileall", "-q", str(ROOT / "safespawn")], check=False)  # or each test does
    place = ROOT / "build" / "cpython" / version
    own = subprocess.run([python, "-c", "import _cffi_backend, prctl"], capture_output=True, check=False)
    if own.returncode == 0:
        return str(ROOT)
    if not place.exists():
        halfway = place.with_suffix(".new")
        shutil.rmtree(halfway, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--root-user-action=ignore"]
        subprocess.run([*pip, "--target", str(halfway), *REQUIREMENTS], check=True)
        halfway.rename(place)
    return os.pathsep.join((str(ROOT), str(place)))
