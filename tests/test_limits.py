"""Limits of the system are reached: the right exception, nothing left over, and all works when they are gone.

The full disk is in test_ledger_space.py, so is RLIMIT_FSIZE for the ledger; descriptors and processes for the
start of a helper in test_helper_stages.py, room for a launcher in test_launch_stages.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import helpers

#: Each way as whoever has no privileges can take it: a filter takes the child through the launcher.
WAYS = ("vfork", "clone", "fork", "posix_spawn", "launcher", "many", "helper", "pool")
BY_WAY = pytest.mark.parametrize("way", WAYS)

#: ``once`` spawns and says what came of it; ``left`` what is left of all so far; ``plain`` that it works again.
FRAME = """
import errno, gc, prctl, resource, struct
from safespawn import _launcher, audit
_launcher.hold()
safespawn.run(["/bin/true"])  # shared memory is tried once, at the first spawn
allows_all = struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)  # allows all
helping = None

def ready():
    global helping
    if way in ("helper", "pool"):
        helping = safespawn.Helper(pool=1 if way == "pool" else 0).start()

def spawn(**more):
    if way == "many":
        made = safespawn.spawn_many([safespawn.Command([program], **more)], return_errors=True)
        if isinstance(made[0], BaseException):
            raise made[0]
        return made[0].wait()
    if way == "launcher":
        more["seccomp"] = allows_all
    return safespawn.run([program], strategy=way, **more).returncode

def once(**more):
    try:
        return ["ran", spawn(**more)]
    except OSError as problem:
        report = getattr(problem, "report", None)
        return [type(problem).__name__, problem.errno, getattr(problem, "stage", None), report and report.outcome]

def children():
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        found += [fields[0]] if int(fields[1]) == os.getpid() else []
    return found

def left():
    gc.collect()
    end = time.monotonic() + 30
    # A pool makes its children again; one of them may be on its way.
    while helping and len(children()) != helping.pool + 1 and time.monotonic() < end:
        helping.status()
        os.sched_yield()
    status = _binding.lock_status()
    return [len(os.listdir("/proc/self/fd")), "Z" in children(), len(os.listdir("/proc/self/task")), sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            status["spawners"], status["changers"]]

def limit(number, soft):
    was = resource.getrlimit(number)
    resource.setrlimit(number, (soft, was[1]))
    return was

def recorded(path):
    # Each intent has one ending.
    events = [json.loads(line) for line in open(path)]
    intents = [one["sid"] for one in events if one["ev"] == "spawn.intent"]
    endings = [one["sid"] for one in events if one["ev"] in ("spawn.started", "spawn.failed", "spawn.denied")]
    return [sid for sid in intents if endings.count(sid) != 1]
"""

REFUSED = ["UnsafeSpawn", errno.EPERM, None, "refused"]


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Return a directory of the user without privileges."""
    helpers.make_readable(tmp_path)
    own = tmp_path / "own"
    own.mkdir(mode=0o755)
    os.chown(own, 31000, 31000)
    return own


@BY_WAY
def test_no_more_processes(places: Path, way: str) -> None:
    """RLIMIT_NPROC: BlockingIOError at the clone. A helper has the limit that it was started with."""
    out = helpers.run_snippet(
        FRAME
        + """
os.setgroups([]); os.setresgid(31000, 31000, 31000); os.setresuid(31000, 31000, 31000)
prctl.set_dumpable(True)  # as after an exec: our own /proc is ours
ledger = audit.open(where, mode="require")
ready()
out["before"] = once()
was, before = limit(resource.RLIMIT_NPROC, 0), left()
out["at"] = [once(), once()]
out["left"] = left() == before
resource.setrlimit(resource.RLIMIT_NPROC, was)
out["again"] = once()
ledger.close()
out["unended"] = recorded(where)
""",
        way=way,
        program="/bin/true",
        where=str(places / "ledger"),
    )
    at = ["ran", 0] if way in ("helper", "pool") else blocked(way)
    assert out == {"before": ["ran", 0], "at": [at, at], "left": True, "again": ["ran", 0], "unended": []}


def blocked(way: str) -> list[object]:
    """Return what no room for another process is, by each way."""
    return ["BlockingIOError", errno.EAGAIN, "posix-spawn" if way == "posix_spawn" else "clone", "failed"]


#: Stages that a spawn can fail at for want of a descriptor or of memory.
EARLY = {"prepare", "lookup", "clone", "posix-spawn", None}


@BY_WAY
def test_no_more_descriptors(tmp_path: Path, way: str) -> None:
    """RLIMIT_NOFILE, with room for one more each time: EMFILE or a refusal, until there is room for all."""
    out = helpers.run_snippet(
        FRAME
        + """
ledger = audit.open(where, mode="require")
ready()
out["before"] = once(stdin=safespawn.DEVNULL, stdout=safespawn.DEVNULL)
before = left()
lowest = os.dup(0)
os.close(lowest)
out["at"], out["left"] = [], True
for room in range(16):
    was = limit(resource.RLIMIT_NOFILE, lowest + room)
    out["at"].append(once(stdin=safespawn.DEVNULL, stdout=safespawn.DEVNULL))
    resource.setrlimit(resource.RLIMIT_NOFILE, was)
    out["left"] = out["left"] and left() == before or [room, left(), before]
out["again"] = once()
ledger.close()
out["unended"] = recorded(where)
""",
        way=way,
        program="/bin/true",
        where=str(tmp_path / "ledger"),
    )
    at = out.pop("at")
    failed = [one for one in at if one != ["ran", 0]]
    assert at[len(failed) :] == [["ran", 0]] * (16 - len(failed)) and failed and len(failed) < 16
    for kind, number, stage, _ in failed:
        assert (kind, number) in (("OSError", errno.EMFILE), ("UnsafeSpawn", errno.EPERM)) and stage in EARLY, at
    assert out == {"before": ["ran", 0], "left": True, "again": ["ran", 0], "unended": []}


@BY_WAY
def test_no_more_memory(tmp_path: Path, way: str) -> None:
    """RLIMIT_AS, with more room each time: ENOMEM or a refusal, until there is room for all."""
    out = helpers.run_snippet(
        FRAME
        + """
def size():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

def bounded(room):
    was = limit(resource.RLIMIT_AS, size() + room)
    try:
        return once(env=big)
    except MemoryError:  # the interpreter's own
        return ["MemoryError", errno.ENOMEM, None, None]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, was)

big = {f"BIG{i}": "x" * 100_000 for i in range(8)}
ledger = audit.open(where, mode="require")
ready()
once()
before = left()
out["at"], out["left"] = [], True
for pages in (0, *(1 << n for n in range(14))):
    out["at"].append(bounded(pages * resource.getpagesize()))
    out["left"] = out["left"] and left() == before or [pages, left(), before]
out["again"] = once(env=big)
ledger.close()
out["unended"] = recorded(where)
""",
        way=way,
        program="/bin/true",
        where=str(tmp_path / "ledger"),
    )
    at = out.pop("at")
    failed = [one for one in at if one != ["ran", 0]]
    assert at[-1] == ["ran", 0] and failed
    for kind, number, stage, _ in failed:
        right = ("OSError", errno.ENOMEM), ("MemoryError", errno.ENOMEM), ("UnsafeSpawn", errno.EPERM)
        assert (kind, number) in right and stage in EARLY, at
    assert out == {"left": True, "again": ["ran", 0], "unended": []}


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("helper", "pool")])
def test_no_room_for_files(tmp_path: Path, way: str) -> None:
    """RLIMIT_FSIZE of nothing, SIGXFSZ at its default: what needs a file is refused, and no signal ends us."""
    out = helpers.run_snippet(
        FRAME
        + """
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
out["before"] = once()
was, before = limit(resource.RLIMIT_FSIZE, 0), left()
out["at"] = once()
out["left"] = left() == before
resource.setrlimit(resource.RLIMIT_FSIZE, was)
out["again"] = once()
""",
        way=way,
        program="/bin/true",
    )
    at = REFUSED if way == "launcher" else ["ran", 0]
    assert out == {"before": ["ran", 0], "at": at, "left": True, "again": ["ran", 0]}


# ------------------------------------------------------------------ control groups


def cgroup_of(kind: str) -> Iterator[Path]:
    """A control group of that controller of version 1, for one test."""
    root = helpers.cgroups(kind)
    if root is None:
        pytest.skip(f"no control groups of the controller {kind} can be made here")
    yield from helpers.control_group(root / f"safespawn-limits-{os.getpid()}")


@pytest.fixture
def pids() -> Iterator[Path]:
    """A control group of the controller pids."""
    yield from cgroup_of("pids")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A control group of the controller memory."""
    yield from cgroup_of("memory")


#: `enter` puts us into the control group, `leave` takes us out: before the end, that it can go.
INSIDE = """
group = group_of
def enter(where=None):
    open(os.path.join(where or group, "cgroup.procs"), "w").write(str(os.getpid()))

def leave():
    for pid in [os.getpid(), *([helping.pid] if helping else [])]:
        open(os.path.dirname(group) + "/cgroup.procs", "w").write(str(pid))

def setting(name, value):
    with open(os.path.join(group, name), "w") as file:  # EBUSY of a limit comes when it is closed
        file.write(str(value))
"""


@BY_WAY
def test_no_more_tasks_in_a_control_group(tmp_path: Path, pids: Path, way: str) -> None:
    """pids.max reached: BlockingIOError at the clone; a helper that cannot fork is refused, and is not lost."""
    out = helpers.run_snippet(
        FRAME
        + INSIDE
        + """
ledger = audit.open(where, mode="require")
enter()
ready()
out["before"] = once()
before = left()
setting("pids.max", 1)
if way == "pool":
    out["parked"] = once()  # made before the limit
out["at"] = [once(), once()]
setting("pids.max", "max")
out["again"] = once()  # a helper that was refused fills its pool after the next request
out["left"] = left() == before
leave()
ledger.close()
if helping:
    helping.close()
out["unended"] = recorded(where)
""",
        way=way,
        program="/bin/true",
        where=str(tmp_path / "ledger"),
        group_of=str(pids),
    )
    assert out.pop("parked", ["ran", 0]) == ["ran", 0]
    at = REFUSED if way in ("helper", "pool") else blocked(way)
    assert out == {"before": ["ran", 0], "at": [at, at], "left": True, "again": ["ran", 0], "unended": []}


@pytest.mark.parametrize("way", ["launcher", "fork"])
def test_no_more_memory_in_a_control_group(
    tmp_path: Path, memory: Path, way: str, program: Callable[..., Path]
) -> None:
    """A child in a control group without enough memory is killed by the kernel: never taken for one that ran well."""
    # More than that, and than the 64 pages that a processor may have in store for a group (MEMCG_CHARGE_BATCH).
    needs = program("#!/bin/sh\nexec dd if=/dev/zero of=/dev/null bs=8M count=1 2>/dev/null\n")
    out = helpers.run_snippet(
        FRAME
        + INSIDE
        + """
ledger = audit.open(where, mode="require")
out["before"] = once(cgroup=group)
before = left()
setting("memory.limit_in_bytes", 1 << 20)  # what the first one left is less
out["at"] = [once(cgroup=group) for _ in range(3)]
out["left"] = left() == before
setting("memory.limit_in_bytes", -1)
out["again"] = once(cgroup=group)
ledger.close()
out["unended"] = recorded(where)
""",
        way=way,
        program=str(needs),
        where=str(tmp_path / "ledger"),
        group_of=str(memory),
    )
    for one in out.pop("at"):
        killed = ["KilledBeforeExec", errno.ECANCELED], ["OSError", errno.ENOMEM]
        assert one == ["ran", -9] or one[:2] in killed, one
    assert out == {"before": ["ran", 0], "left": True, "again": ["ran", 0], "unended": []}
