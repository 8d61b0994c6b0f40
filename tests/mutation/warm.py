"""Tests that are collected once: each mutant is judged in a fork, by the tests that reach it, quickest first.

``Warm`` starts pytest with this file as its plugin; what is below it runs there. First it is written down which lines
each test reaches, and how long it takes. Then a mutant of Python is planted by giving functions the code that they
have in the changed text; one of the verifier's part of the core by calling a library that was made of it.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Pipe
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

#: A mutant that goes round for ever is not to fill the memory of the machine.
DATA_BYTES = 4 << 30
#: A test that is traced may take as long on a busy machine.
TRACED_SECONDS = 300.0


class Warm:
    """Such a process, from outside. ``line`` is the command of pytest with its tests, ``where`` the copy of the tree."""

    def __init__(self, line: list[str], where: Path, environment: dict[str, str], files: tuple[str, ...]) -> None:
        asked, ask = os.pipe()
        told, tell = os.pipe()
        environment = {
            **environment,
            "PYTHONPATH": f"{where}:{Path(__file__).parent}",
            "SAFESPAWN_WARM": json.dumps([asked, tell, [str(where / "safespawn" / file) for file in files]]),
        }
        self._process = subprocess.Popen(
            [*line, "-p", "warm"], cwd=where, env=environment, pass_fds=(asked, tell), stdin=subprocess.DEVNULL
        )
        os.close(asked)
        os.close(tell)
        self._ask, self._told = os.fdopen(ask, "w"), os.fdopen(told)
        self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._told.readline()
        assert line, "tests could not be collected, or fail without a mutant: it is told above"
        said: dict[str, Any] = json.loads(line)
        return said

    def judge(self, **asked: Any) -> dict[str, Any]:
        """Return the verdict on a mutant: ``file``, ``lines`` of it that tests are to reach (None: any), ``function``.

        A file of Python is on the disk as it is to be; for one of C there is ``library``, empty where it is a program
        that was built in its place.
        """
        print(json.dumps(asked), file=self._ask, flush=True)
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._ask.close()
        self._process.wait()
        self._told.close()


# ------------------------------------------------------------------ in the process of pytest


class Known(NamedTuple):
    """A test, with what it reaches and how long it takes."""

    item: pytest.Item
    seconds: float
    reached: set[tuple[str, int]]

    def reaches(self, file: str, lines: list[int] | None) -> bool:
        """Whether it comes to one of the lines, from the first to the last; of a file that is not traced: who knows."""
        if not file:
            return True
        first, last = lines or (0, sys.maxsize)
        return any(file == other and first <= line <= last for other, line in self.reached)

    @property
    def patience(self) -> float:
        """How long to wait for it."""
        return 5 * self.seconds + 10


def _forked(session: pytest.Session, act: Callable[[Callable[..., None]], None]) -> Iterator[tuple[Any, ...]]:
    """Yield what a fork tells: tuples, of which the last element says how many seconds the next may take.

    After them comes how it ended: ("ended", "time" or its status).
    """
    told, tell = Pipe(duplex=False)
    factory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    where = tempfile.mkdtemp(dir=factory.getbasetemp())
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            factory._basetemp = Path(where)
            act(lambda *what: tell.send(what))
        finally:
            os._exit(0)
    tell.close()
    seconds, status = TRACED_SECONDS, "time"
    try:
        while told.poll(seconds):
            what = told.recv()
            seconds = what[-1]
            yield what
    except EOFError:
        status = ""
    if status:
        os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    shutil.rmtree(where, ignore_errors=True)
    yield "ended", status or ended


def _passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    return not any(report.failed for report in runtestprotocol(item, nextitem=following, log=False))


def _in_turn(items: list[pytest.Item]) -> Iterator[tuple[pytest.Item, pytest.Item | None]]:
    return zip(items, [*items[1:], None], strict=True)


def _traced(files: set[str], act: Callable[[], Any]) -> tuple[Any, set[tuple[str, int]]]:
    """Return what came of it, and the lines of the files that were reached."""
    reached: set[tuple[str, int]] = set()

    def line(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return line

    def call(frame: FrameType, _event: str, _: object) -> Any:
        return line if frame.f_code.co_filename in files else None

    threading.settrace(call)
    sys.settrace(call)
    try:
        return act(), reached
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]


def known(session: pytest.Session, files: set[str]) -> list[Known]:
    """Run every test without a mutant, and return what is known of them, quickest first."""

    def act(tell: Callable[..., None]) -> None:
        for item, following in _in_turn(session.items):
            began = time.monotonic()
            passed, reached = _traced(files, lambda item=item, following=following: _passes(item, following))
            tell(item.nodeid, passed, time.monotonic() - began, reached, TRACED_SECONDS)

    items = {item.nodeid: item for item in session.items}
    began = time.monotonic()
    told = list(_forked(session, act))
    assert len(told) == len(items) + 1, f"{told[-1]} after {told[-2][0]}"
    failed = [one[0] for one in told[:-1] if not one[1]]
    assert len(failed) <= len(items) // 100, failed  # a limit of time, which a busy machine may miss
    print(f"left out, because they fail without a mutant: {failed}" if failed else "every test passes without a mutant")
    print(f"{len(items)} tests in {time.monotonic() - began:.0f} s")
    tests = (Known(items[name], seconds, reached) for name, passed, seconds, reached, _ in told[:-1] if passed)
    return sorted(tests, key=lambda one: one.seconds)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _codes(const)


def plant_python(file: str, function: str) -> bool:
    """Give the functions of a module the code that they have in its file; return whether that one was among them."""
    codes = {code.co_qualname: code for code in _codes(compile(Path(file).read_text(encoding="utf-8"), file, "exec"))}
    is_planted = False  # nor is it where the code needs other free variables: ValueError
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__code__.co_filename == file:
            name = one.__code__.co_qualname
            one.__code__ = codes.get(name, one.__code__)
            is_planted |= f"{function}.".startswith(f"{name}.")
    return is_planted


class _Lib:
    """The core, but for functions that a library has."""

    def __init__(self, library: str) -> None:
        from cffi import FFI

        from safespawn._binding import ffi, lib

        self._lib, self._own = lib, FFI()
        names = [name for name in dir(lib) if name.startswith("ss_verify_")]
        self._own.cdef("".join(f"void {name}(void);" for name in names))
        opened = self._own.dlopen(library)
        for name in names:
            address = int(self._own.cast("uintptr_t", getattr(opened, name)))
            setattr(self, name, ffi.cast(ffi.typeof(getattr(lib, name)), address))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)


def plant_library(library: str) -> bool:
    """Have the verifier call a library, if there is one."""
    if library:
        from safespawn.audit import _verify_scan

        _verify_scan.lib = _Lib(library)
    return True


def judge(
    session: pytest.Session, tests: list[Known], file: str, lines: list[int] | None, function: str, library: str | None = None
) -> dict[str, Any]:
    """Return what tests say of a mutant: killed and by which, survived, or "unplanted": not in a function that is there."""
    chosen = [one for one in tests if one.reaches(file, lines)]

    def act(tell: Callable[..., None]) -> None:
        if not (plant_python(file, function) if library is None else plant_library(library)):
            return
        patience = {one.item: one.patience for one in chosen}
        for item, following in _in_turn([one.item for one in chosen]):
            tell("begun", item.nodeid, patience[item])
            if not _passes(item, following):
                tell("failed", 1)
                return
        tell("passed", 10)

    told = list(_forked(session, act))
    begun = [what[1] for what in told if what[0] == "begun"]
    kinds = {what[0] for what in told}
    if "passed" in kinds:
        return {"verdict": "survived", "tests": len(chosen)}
    if not begun:
        return {"verdict": "unplanted"}
    return {"verdict": "killed", "by": begun[-1] + ("" if "failed" in kinds else f" ({told[-1][1]})")}


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Instead of running tests: answer until nobody asks."""
    assert not session.testsfailed
    asked, tell, files = json.loads(os.environ.pop("SAFESPAWN_WARM"))
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, resource.RLIM_INFINITY))
    tests = known(session, set(files))
    with os.fdopen(asked) as questions, os.fdopen(tell, "w") as answers:
        print(json.dumps({}), file=answers, flush=True)
        for line in questions:
            print(json.dumps(judge(session, tests, **json.loads(line))), file=answers, flush=True)
    return True
