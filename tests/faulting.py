"""Runs a scene many times, each in a forked process of its own, where one call fails or is the last.

A scene is the text of a Python function ``scene(case)``; what it returns comes back. ``tests/ways/faults.c``
stands in front of libc there, and :data:`PRELUDE` has what scenes share.
"""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helpers

#: As in enum call of tests/ways/faults.c.
CALLS = ("write", "pwrite", "fdatasync", "fsync", "fallocate", "fstat", "open", "rename")

PRELUDE = '''
import ctypes, errno, gc, traceback, uuid
from safespawn import _launcher, audit, AuditError
from safespawn.audit import keys as keys_of, retention

CALLS = {calls!r}
_launcher.hold()  # its descriptor stays

class Rule(ctypes.Structure):
    _fields_ = [("call", ctypes.c_int32), ("only", ctypes.c_char * 40), ("error", ctypes.c_int32),
                ("take", ctypes.c_int32), ("kill", ctypes.c_int32), ("park", ctypes.c_int32),
                ("at", ctypes.c_uint32), ("times", ctypes.c_uint32), ("matched", ctypes.c_uint32)]

class Faults(ctypes.Structure):
    _fields_ = [("dir", ctypes.c_char * 200), ("no_sync", ctypes.c_int32), ("done", ctypes.c_uint32),
                ("seen", ctypes.c_uint32), ("rules", Rule * 4), ("calls", ctypes.c_uint8 * 4096)]

faults = Faults.in_dll(ctypes.CDLL({library!r}), "faults")

def rule(call=None, error=None, take=0, kill=0, park=0, at=1, times=1, only=""):
    """What is to happen to which call, as in tests/ways/faults.c; by default to the first."""
    return Rule(CALLS.index(call) if call else -1, only.encode(), getattr(errno, error) if error else 0,
                take, kill, park, at, times, 0)

def arm(where, *rules, no_sync=1):
    """From now on that happens to calls on the files in that directory."""
    disarm()
    faults.dir, faults.no_sync, faults.done, faults.seen = where.encode(), no_sync, 0, 0
    for i, one in enumerate(rules):
        faults.rules[i] = one

def disarm():
    for one in faults.rules:
        one.at = 0

def seen():
    """The names of the calls so far, in order."""
    return [CALLS[faults.calls[i]] for i in range(faults.seen)]

def fds():
    """Open descriptors, and what they are."""
    found = dict()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink("/proc/self/fd/" + name)
        except FileNotFoundError:
            pass  # the one that looked
    return found

def no_child():
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False

{scene}

def _run_one(case, told):
    signal.alarm(240)  # a deadlock ends so
    try:
        answer = scene(case)
    except BaseException:
        answer = dict(crashed=traceback.format_exc())
    os.pwrite(told, json.dumps(answer).encode(), 0)
    os._exit(0)

def _run_all(cases, width):
    running, results = {{}}, [None] * len(cases)

    def reap():
        pid, status = os.waitpid(-1, 0)
        number, told = running.pop(pid)
        data = os.pread(told, 1 << 20, 0)
        os.close(told)
        results[number] = json.loads(data) if data else {{}}
        results[number]["status"] = os.waitstatus_to_exitcode(status)

    for number, case in enumerate(cases):
        while len(running) >= width:
            reap()
        told = os.memfd_create("told")
        pid = os.fork()
        if not pid:
            _run_one(case, told)
        running[pid] = number, told
    while running:
        reap()
    return results

with open(cases_file) as file:
    cases = json.load(file)
with open(results_file, "w") as file:
    json.dump(_run_all(cases, width), file)
'''


def build_library(where: Path) -> Path:
    """Compile the library into a directory and return its path."""
    library = where / "faults.so"
    source = helpers.TESTS / "ways" / "faults.c"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-fno-builtin", "-o", library, source], check=True)
    return library


def run(
    scene: str, cases: Sequence[dict[str, Any]], where: Path, library: Path, *, width: int = 2, timeout: float = 900
) -> list[dict[str, Any]]:
    """Return what the scene returned for each case, with ``status``: how its process ended.

    ``width`` of them run at a time. ``where`` is for files that come and go.
    """
    cases_file, results_file = where / "cases", where / "results"
    cases_file.write_text(json.dumps(list(cases)), encoding="ascii")
    helpers.run_snippet(
        PRELUDE.format(calls=CALLS, library=str(library), scene=textwrap.dedent(scene)),
        preload=library,
        timeout=timeout,
        cases_file=str(cases_file),
        results_file=str(results_file),
        width=width,
    )
    results: list[dict[str, Any]] = json.loads(results_file.read_text(encoding="ascii"))
    return results


def build_mark(where: Path) -> Path:
    """Compile the program that leaves a mark, and return its path."""
    program = where / "mark"
    source = helpers.TESTS / "ways" / "mark.c"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
    return program
