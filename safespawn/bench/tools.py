"""The programs that are measured, compiled into a directory of their own where their compilers are found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

#: The sources, beside this file.
SOURCES = Path(__file__).parent / "programs"
#: The core's sources and what measures it in C: only in the tree, not in a wheel.
TREE = Path(__file__).parents[2]

#: Seconds that a compiler may take.
_PATIENCE = 120


class Unable(Exception):
    """Something cannot be measured here; the text says why."""


class Tools:
    """A directory with all that could be built. As a context manager: it is deleted at the end.

    ``target``: the program that is started; without a C compiler the system's ``true``, which cannot tell
    when it began (``stamps`` is False then). ``missing``: by name, why something could not be built.
    ``versions``: by name, of what was found. Every user may read and execute in the directory: one target
    runs as another user.
    """

    def __init__(self) -> None:
        self.where = Path(tempfile.mkdtemp(prefix="safespawn-bench-"))
        self.where.chmod(0o755)
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.compiler = _found("cc", "gcc", "clang")
        self._made: dict[str, Path | None] = {}
        try:
            self._build_all()
        except BaseException:
            shutil.rmtree(self.where, ignore_errors=True)
            raise

    def __enter__(self) -> Tools:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the directory."""
        shutil.rmtree(self.where, ignore_errors=True)

    def _build_all(self) -> None:
        self.stamps = self._c("target", "target.c", "-static")
        self.target = str(self.where / "target") if self.stamps else shutil.which("true") or "/bin/true"
        self._c("C", "peer.c")
        self._c("libpeer.so", "peer.c", "-shared", "-fPIC")
        self._c("nohuge", "nohuge.c")
        self._rust()
        self._java()
        self._node()

    def path(self, name: str) -> str:
        """Return where that was built. Raises Unable that says why it was not."""
        made = self._made.get(name)
        if made is None:
            raise Unable(self.missing.get(name, f"{name} was not built"))
        return str(made)

    def compile_c(self, made: str, *words: str) -> Path:
        """Compile a C program. Raises Unable with what the compiler said."""
        if self.compiler is None:
            raise Unable("no C compiler was found")
        _run([self.compiler, "-std=gnu11", "-O2", "-o", str(self.where / made), *words])
        return self.where / made

    def _c(self, made: str, source: str, *words: str) -> bool:
        try:
            self._made[made] = self.compile_c(made, *words, str(SOURCES / source))
        except Unable as problem:
            self.missing[made] = str(problem)
            return False
        self.versions.setdefault("C", _version([str(self.compiler), "--version"]))
        return True

    def _rust(self) -> None:
        compiler = _found("rustc")
        if compiler is None:
            self.missing["Rust"] = "rustc was not found"
            return
        made = self.where / "peer-rust"
        words = [compiler, "-O", "--edition", "2021", "-o", str(made), str(SOURCES / "peer.rs")]
        self._build("Rust", made, words, [compiler, "--version"])

    def _java(self) -> None:
        compiler, runtime = _found("javac"), _found("java")
        if compiler is None or runtime is None:
            self.missing["Java"] = f"{'java' if compiler else 'javac'} was not found"
            return
        words = [compiler, "-d", str(self.where), str(SOURCES / "Peer.java")]
        if self._build("Java", self.where / "Peer.class", words, [runtime, "-version"]):
            self._made["Java"] = Path(runtime)

    def _node(self) -> None:
        runtime = _found("node", "nodejs")
        if runtime is None:
            self.missing["Node.js"] = "node was not found"
            return
        self._made["Node.js"] = Path(runtime)
        self.versions["Node.js"] = f"Node.js {_version([runtime, '--version'])}"

    def _build(self, name: str, made: Path, words: Sequence[str], version: Sequence[str]) -> bool:
        try:
            _run(words)
        except Unable as problem:
            self.missing[name] = str(problem)
            return False
        self._made[name] = made
        self.versions[name] = _version(version)
        return True


def _found(*names: str) -> str | None:
    return next((path for path in map(shutil.which, names) if path), None)


def _run(words: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unable(f"{words[0]}: {problem}") from problem
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unable(f"{words[0]} failed: {said[0] if said else done.returncode}")


def _version(words: Sequence[str]) -> str:
    """Return the first line that a program says of itself; Java says it to stderr."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    said = (done.stdout or done.stderr).strip().splitlines()
    return said[0] if said else f"{words[0]}, which tells no version"


def environment() -> dict[str, str]:
    """Return the environment of the Python processes that measure: they find this very package."""
    paths = [str(TREE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def python() -> list[str]:
    """Return the command of this interpreter; it warns of no fork beside threads."""
    return [sys.executable, "-W", "ignore"]
