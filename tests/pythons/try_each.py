"""Builds safespawn for each interpreter that is here, and runs some of the tests on it, with a row for each.

    python tests/pythons/try_each.py [--debian] [--quick] [--only NAME]...

Looks where `tests/cpython/interpreters.py` does; with --debian in /usr/bin, for the debug builds too, and without a
network. Each gets a virtual environment of its own in which the core is compiled; with --quick all run the core
that is built in this tree, for the stable ABI, and fewer tests. Exit code 1 if a test fails, or nothing is found.

There is no free-threaded build to be had: `threads.py` runs on all of these instead, the debug builds among them,
which check what they are told of objects and threads.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "tests" / "cpython"))

import interpreters

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
TEST_TOOLS = ("pytest>=8", "hypothesis>=6.100")
#: What a change of the interpreter would break first.
TESTS = ("run", "process", "subprocess_face", "aio_process", "lock_faces")
QUICK = ("run",)


class Row(NamedTuple):
    """What came of one interpreter."""

    name: str
    version: str
    passed: int
    failed: int
    skipped: int
    threads: str
    seconds: float
    log: str

    def told(self) -> str:
        return (
            f"{self.name:8} {self.version:28} {self.passed:5} passed {self.failed:3} failed {self.skipped:3} skipped  "
            f"threads: {self.threads:8} {self.seconds:4.0f} s"
        )


def found(debian: bool) -> Iterator[tuple[str, str]]:
    """Yield name and path of each interpreter."""
    for version in VERSIONS:
        if debian:
            for name in (version, f"{version}-dbg"):
                if path := shutil.which(f"python{name}", path="/usr/bin"):
                    yield name, path
        else:
            for path in interpreters.candidates(version):
                look = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
                if subprocess.run([path, "-c", look], capture_output=True, check=False).returncode == 0:
                    yield version, path
                    break


def whole_version(python: str) -> str:
    """Return the version and which build it is."""
    look = (
        "import sys, sysconfig as s; d, t = s.get_config_var('Py_DEBUG'), s.get_config_var('Py_GIL_DISABLED');"
        "print(sys.version.split()[0], 'debug' if d else 'release', 'free-threaded' if t else '')"
    )
    return subprocess.check_output([python, "-c", look], text=True).strip()


def _run(argv: list[str], log: Path, *, env: dict[str, str] | None = None, limit: float = 900) -> int:
    """Run a command with its output at the end of a log; what it leaves behind is killed with its session."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return process.wait() or 1


def built(name: str, python: str, place: Path, debian: bool, log: Path) -> tuple[str, str] | None:
    """Make an environment with the package compiled in it; return its interpreter and where the package is."""
    shutil.rmtree(place, ignore_errors=True)
    own = str(place / "bin" / "python")
    pip = [own, "-m", "pip", "install", "--quiet", "--root-user-action=ignore"]
    isolated = ["--no-build-isolation", "--no-deps", "--no-cache-dir"]
    source = place / "source"
    has = [python, "-c", "import _cffi_backend, prctl"]
    steps = [[python, "-m", "venv", *(["--system-site-packages"] if debian else []), str(place)]]
    if debian:
        if subprocess.run(has, capture_output=True, check=False).returncode:
            wheels = sorted(map(str, Path("/wheels").glob("*.tar.gz")))
            steps.append([*pip, "--no-index", *isolated, *wheels])
    else:
        steps.append([*pip, "setuptools>=77", "wheel", *interpreters.REQUIREMENTS, *TEST_TOOLS])
    steps.append([*pip, *(["--no-index"] if debian else []), *isolated, str(source)])
    for step in steps:
        if step[-1] == str(source):  # what was compiled for another is not taken for ours
            shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
                ".git", ".venv", "build", "*.so", "launcher", "helper", "_native_ffi.c", "*cache*", ".hypothesis"))  # fmt: skip
        if _run(step, log):
            return None
    where = subprocess.check_output([own, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    return own, where.strip()


def borrowed(version: str, python: str, log: Path) -> tuple[str, str] | None:
    """Give an interpreter what tests need; the package is this tree's."""
    place = ROOT / "build" / "pythons" / f"{version}-tools"
    if not place.exists():
        new = place.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--root-user-action=ignore"]
        if _run([*pip, "--target", str(new), *TEST_TOOLS], log):
            return None
        new.rename(place)
    return python, os.pathsep.join((interpreters.search_path(version, python), str(place)))


def counts(log: Path) -> dict[str, int]:
    """Return the numbers of pytest's last line."""
    lines = re.findall(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.]+s", log.read_text(errors="replace"), re.MULTILINE)
    return {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", lines[-1])} if lines else {"errors": 1}


def tried(name: str, python: str, *, debian: bool, quick: bool) -> Row:
    """Build, run, and count."""
    began = time.monotonic()
    base = Path("/root/pythons") if debian else ROOT / "build" / "pythons"
    base.mkdir(parents=True, exist_ok=True)
    log = base / f"{name}.log"
    log.write_bytes(b"")
    made = borrowed(name, python, log) if quick else built(name, python, base / name, debian, log)
    if made is None:
        return Row(name, whole_version(python), 0, 1, 0, "not built", time.monotonic() - began, str(log))
    own, path = made
    keep = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    env = keep | ({"PYTHONPATH": path} if quick else {"SAFESPAWN_TEST_CORE": path})
    threads = _run([own, "-X", "dev", "-W", "error", str(HERE / "threads.py"), path], log, env=env)
    tests = [f"tests/test_{test}.py" for test in (QUICK if quick else TESTS)]
    _run([own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests], log, env=env)
    seen = counts(log)
    return Row(
        name, whole_version(own), seen.get("passed", 0),
        sum(seen.get(word, 0) for word in ("failed", "error", "errors")), seen.get("skipped", 0),
        f"exit {threads}" if threads else "ok", time.monotonic() - began, str(log),
    )  # fmt: skip


def main() -> int:
    """Try all, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debian", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", metavar="NAME")
    given = parser.parse_args()
    rows = []
    for name, python in found(given.debian):
        if given.only and name not in given.only:
            continue
        row = tried(name, python, debian=given.debian, quick=given.quick)
        rows.append(row)
        print(row.told(), flush=True)
        if row.failed or row.threads != "ok":
            print("".join(Path(row.log).read_text(errors="replace").splitlines(keepends=True)[-40:]))
    bad = [row.name for row in rows if row.failed or row.threads != "ok" or not row.passed]
    print(f"interpreters: {len(rows)} tried, {len(bad)} with failures{': ' if bad else ''}{' '.join(bad)}; "
          "free-threaded: none to be had, not run")  # fmt: skip
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
