"""Plain functions that several test files need."""

from __future__ import annotations

import atexit
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _for_everybody(probes: Path) -> Path:
    """Copy the probes to where every user can read them: a checkout may lie in a private home."""
    where = tempfile.mkdtemp(prefix="safespawn-probes-")
    atexit.register(shutil.rmtree, where, ignore_errors=True)
    os.chmod(where, 0o755)
    for probe in probes.glob("*.py"):
        os.chmod(shutil.copy(probe, where), 0o644)
    return Path(where)


TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PROBES = _for_everybody(TESTS / "probes")
#: Another build of the package that is to be tested instead, and the library that it needs
#: in front of all others. Programs that the tests start must not get that.
CORE = os.environ.get("SAFESPAWN_TEST_CORE")
PRELOAD = os.environ.pop("LD_PRELOAD", None)
#: What runs the probes: readable by every user, which the interpreter of a pyenv is not.
SYSTEM_PYTHON = "/usr/bin/python3"

_PRELUDE = """\
import json, os, signal, sys, time
{insert}
sys.path.append({tests!r})
import safespawn
from safespawn import _binding
lib = _binding.lib
hooks = getattr(lib, "ss_hooks", None)
STAGES = _binding.stages()
def stage(name):
    return STAGES.index(name)
out = {{}}
values = json.loads({values!r})
globals().update(values)
def begin_helper():
    # For this process as it is now: a fork needs one of its own, and so does who has dropped privileges.
    global helping
    by = values["way"].get("strategy") if isinstance(values.get("way"), dict) else values.get("strategy")
    if by in ("helper", "pool"):
        helping = safespawn.Helper(pool=2 if by == "pool" else 0).start()
begin_helper()
"""

#: Goes in front of the snippet of an attack pair: switches one guard of the core off, or none.
SWITCH = """
if guard == "off":
    hooks.off |= getattr(lib, "SS_OFF_" + name)
"""

#: For snippets about the credential lock: `until` looks again and again, and gives others the
#: processor; `lock` tells who is in it.
LOCK_TOOLS = """
import credchanges, threading
from safespawn import guards

def until(holds):
    end = time.monotonic() + 30
    while not (held := holds()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0)
    return held

def lock(name=None):
    status = _binding.lock_status()
    return [status[key] for key in ("spawners", "changers", "changer_waits")] if name is None else status[name]
"""

#: Goes in front of snippets for the test core that need a child waiting before its execve:
#: `parked_spawn` starts one in a thread of its own, a byte to `release` lets it go on, and what
#: came of the spawn is in `result`.
PARKED = LOCK_TOOLS + """
import select
ready, parked = os.pipe()
go, release = os.pipe()
result, reasons = {}, []

def spawner(argv, options):
    try:
        done = safespawn.run(argv, capture_output=True, **options)
        report = done.report
        result.update(output=done.stdout.decode(), strategy=report.strategy, proof=report.proof)
        reasons.extend(report.reasons)
    except safespawn.RaceDetected as problem:
        result.update(race=problem.stage)
    except OSError as problem:
        result.update(raised=repr(problem))

def parked_spawn(argv, **options):
    hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("close"), parked, go
    thread = threading.Thread(target=spawner, args=(argv, options))
    thread.start()
    assert select.select([ready], [], [], 30)[0], result
    os.read(ready, 1)
    hooks.park_stage = 0  # not the next one, if it is tried again
    return thread

def changer_waits():
    return lock("changer_waits")
"""


#: Goes in front of snippets for the test core about children on their way through the launcher:
#: `Parked` starts one in a thread of its own and holds it at a stage, before the step is made.
#: The steps that both have are hooked in the launcher only, unless `hooks.in_launcher` is 0.
LAUNCHED = (
    LOCK_TOOLS
    + """
import atexit, ctypes, fcntl, prctl, select, subprocess
# High numbers: what only the launcher has gets low ones, in the child that execs it too.
ready, said, go, release = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in (*os.pipe(), *os.pipe()))
hooks.in_launcher = 1
KCMP_VM = 1
from safespawn import _launcher
_launcher.hold()
safespawn.run(["/bin/true"])  # shared memory is tried once, at the first spawn

class Parked:
    def __init__(self, argv, at, wait=True, **options):
        self.came, self.reasons = {}, ()
        self.ended = threading.Event()
        hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage(at), said, go
        self.thread = threading.Thread(target=self._spawn, args=(argv, options), daemon=True)
        self.thread.start()
        self.tid = self.thread.native_id
        atexit.register(self.give_up)
        if wait:
            self.wait()

    def give_up(self):
        # A test that failed leaves nobody behind who holds its pipes, and waits for a byte of its own.
        child = 0 if self.ended.is_set() else credchanges.child_of(self.tid)
        if child:
            os.kill(child, signal.SIGKILL)

    def wait(self):
        assert self.comes(), self.came

    def comes(self):
        # Whether it comes to the stage: one with a deadline may be ended before.
        until(lambda: select.select([ready], [], [], 0)[0] or self.ended.is_set())
        if select.select([ready], [], [], 0)[0]:
            os.read(ready, 1)
        hooks.park_stage = 0  # not the next one, if it is tried again
        self.pid = credchanges.child_of(self.tid)
        return not self.ended.is_set()

    def _spawn(self, argv, options):
        try:
            done = safespawn.run(argv, capture_output=True, **options)
            self.reasons = done.report.reasons
            self.came.update(output=done.stdout.decode(), code=done.returncode, strategy=done.report.strategy)
        except OSError as problem:
            self.reasons = problem.report.reasons
            self.came.update(raised=type(problem).__name__, errno=problem.errno, stage=problem.stage)
        self.ended.set()

    def end(self, go_on=True):
        if go_on:
            os.write(release, b".")
        self.thread.join()
        return self.came

    def shares_memory(self):
        return credchanges.raw("kcmp", os.getpid(), self.pid, KCMP_VM) == 0

    def status(self, name):
        lines = open(f"/proc/{self.pid}/status").read().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(name + ":"))

def no_child():
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False
"""
)


def open_fds() -> set[int]:
    """Return our open descriptors (not the one that looks)."""
    fds = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in fds if _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def wait_until_alone() -> None:
    """Wait until we have one task: a joined thread lingers for a moment, and rules out vfork."""
    end = time.monotonic() + 30
    while len(os.listdir("/proc/self/task")) > 1:
        assert time.monotonic() < end, "a thread was left behind"
        os.sched_yield()


def run_snippet(
    snippet: str,
    *,
    path: Path | None = None,
    timeout: float = 60,
    armed: bool = True,
    preload: Path | None = None,
    **values: object,
) -> dict[str, Any]:
    """Run Python text in a fresh process and return the dict ``out`` that it fills.

    Everything that changes a whole process (ids, limits, signals, closed descriptors,
    threads) belongs in one. ``path`` goes in front of sys.path; ``values`` become
    globals. Without ``armed`` the credential lock is left alone. ``preload`` is a library for it
    (ld.so(8)). A snippet that dies fails the test with its stderr.
    """
    # The interpreter's start must not look at the tree's own safespawn first.
    place = path or CORE
    insert = f"sys.path.insert(0, {str(place)!r})" if place else ""
    insert += "\nos.environ.pop('LD_PRELOAD', None)"
    read, write = os.pipe()
    text = _PRELUDE.format(insert=insert, tests=str(TESTS), values=json.dumps(values)) + textwrap.dedent(snippet)
    text += f"\nos.write({write}, json.dumps(out).encode())\n"
    libraries = " ".join(str(one) for one in (PRELOAD, preload) if one)
    try:
        done = subprocess.run(
            [sys.executable, "-c", text],
            pass_fds=(write,),
            capture_output=True,
            timeout=timeout,
            check=False,
            env={
                **os.environ,
                **({"LD_PRELOAD": libraries} if libraries else {}),
                **({} if armed else {"SAFESPAWN_ARM": "0"}),
            },
        )
        os.close(write)
        write = -1
        answer = b""
        while chunk := os.read(read, 65536):
            answer += chunk
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr.decode(errors='replace')}"
    result: dict[str, Any] = json.loads(answer)
    return result


def probe_argv(name: str, *arguments: str) -> list[str]:
    """Return the command of a probe: a program that prints its own state as JSON."""
    return [SYSTEM_PYTHON, "-I", "-S", str(PROBES / f"{name}.py"), *arguments]


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ledger."""
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def control_group(where: Path) -> Iterator[Path]:
    """Make a control group, for as long as one test uses it."""
    where.mkdir()
    yield where
    end = time.monotonic() + 30
    while True:
        try:
            where.rmdir()
            return
        except OSError as problem:  # the last of it may be on its way out of the kernel still
            if problem.errno != errno.EBUSY or time.monotonic() > end:
                raise
        os.sched_yield()


def cgroups(kind: str) -> Path | None:
    """Return where cgroups of version 2 ("v2"), or those of a controller of version 1, can be made."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, where, system, options = line.split()[:4]
        if (kind == "v2" and system == "cgroup2") or (system == "cgroup" and kind in options.split(",")):
            return Path(where) if os.access(where, os.W_OK) else None
    return None


def make_readable(path: Path) -> None:
    """Let every user reach ``path``: pytest's own directories are private."""
    for parent in [path, *path.parents]:
        if parent == Path("/tmp"):
            break
        parent.chmod(parent.stat().st_mode | 0o055)
