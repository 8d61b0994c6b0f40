"""Each thing a child can be given arrives exactly, and changes nothing else of all that can be told."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from child_state import (
    CHOWN,
    HAS_LANDLOCK,
    IS_SOMEBODY,
    KILL,
    LANDLOCK_ABI,
    NET_BIND,
    NET_RAW,
    SECUREBITS,
    SETPCAP,
    SOMEBODY,
    V2,
    Probe,
    State,
    at,
    bits,
    caps,
    descriptor,
    identity,
    ignoring,
    refusing,
    told,
    without_proc,
)
from safespawn import DEVNULL

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives and takes privileges")

PIDS = Path("/sys/fs/cgroup/pids")
LAST_CPU = max(os.sched_getaffinity(0))
ALL_BITS = tuple(SECUREBITS)


# --------------------------------------------------------------------- one at a time

#: Options, and what is different then.
ALONE: dict[str, tuple[dict[str, Any], State]] = {
    "nothing": ({}, {}),
    "env": ({"env": {"A": "b", b"\xff": b"\xfe="}}, {"environ": ["A=b", "\xff=\xfe="]}),
    "cwd": ({"cwd": "/usr"}, {"cwd": "/usr"}),
    "start_new_session": ({"start_new_session": True}, {"sid": "own", "pgid": "own"}),
    "process_group": ({"process_group": 0}, {"pgid": "own"}),
    "umask": ({"umask": 0o27}, {"umask": 0o27}),
    "nice": ({"nice": 7}, {"nice": 7}),
    "scheduler-batch": ({"scheduler": os.SCHED_BATCH}, {"policy": os.SCHED_BATCH}),
    "scheduler-idle": ({"scheduler": os.SCHED_IDLE}, {"policy": os.SCHED_IDLE}),
    "scheduler-fifo": ({"scheduler": (os.SCHED_FIFO, 1)}, {"policy": os.SCHED_FIFO, "priority": 1}),
    "scheduler-rr": ({"scheduler": (os.SCHED_RR, 99)}, {"policy": os.SCHED_RR, "priority": 99}),
    "cpu_affinity": ({"cpu_affinity": [LAST_CPU]}, {"cpus": [LAST_CPU]}),
    "rlimits": (
        {"rlimits": {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: (60, 70)}},
        {"limits.4": [0, 0], "limits.7": [60, 70]},
    ),
    "pdeathsig": ({"pdeathsig": signal.SIGUSR2}, {"pdeathsig": signal.SIGUSR2}),
    "restore_signals": (
        {"restore_signals": False},  # those that Python ignores
        {"ignored": ignoring(signal.SIGPIPE, signal.SIGXFSZ)},
    ),
    "sigmask": ({"sigmask": [1, 31, 32, 64]}, {"blocked": bits(0, 30, 31, 63)}),
    "sigdefault": ({"restore_signals": False, "sigdefault": [signal.SIGPIPE]}, {"ignored": ignoring(signal.SIGXFSZ)}),
    "subreaper": ({"subreaper": True}, {"subreaper": 1}),
    "no_new_privs": ({"no_new_privs": True}, {"no_new_privs": 1}),
    "user": (SOMEBODY, IS_SOMEBODY),
    "group": ({"group": 70_001}, {"gids": [70_001] * 3, "fsgid": 70_001}),
    "extra_groups": ({"extra_groups": [70_002, 4, 4]}, {"groups": [4, 70_002]}),
    "caps": ({"caps": ["net_raw", "CAP_CHOWN", KILL]}, caps(*[bits(CHOWN, KILL, NET_RAW)] * 2)),
    "caps-none": ({"caps": ()}, caps(0, 0)),
    "securebits": ({"securebits": ["no_setuid_fixup"]}, {"securebits": 4}),
    "pin": ({"pin": True}, {}),
    "seccomp": ({"seccomp": refusing({})}, {"seccomp": 2, "no_new_privs": 1}),
    "deadline": ({"deadline": 300}, {}),
}


@pytest.mark.parametrize("name", ALONE)
def test_alone(probe: Probe, name: str) -> None:
    """One option changes what it says, and nothing else."""
    options, changed = ALONE[name]

    probe.gives(options, changed)


@pytest.mark.parametrize("name", ALONE)
def test_parent_death_signal_beside(probe: Probe, name: str) -> None:
    """The kernel clears the signal at some changes; it is there all the same, with each of them."""
    options, changed = ALONE[name]

    probe.gives({"pdeathsig": signal.SIGTERM, **options}, {"pdeathsig": signal.SIGTERM, **changed})


#: Options beside which the program must end with its parent, with whom it had to be somebody else.
ENDS = {"alone": {}, "somebody": SOMEBODY, "process-1": {"namespaces": ["pid"]}}


@pytest.mark.parametrize("name", ENDS)
def test_program_ends_with_its_parent(probe: Probe, name: str) -> None:
    """The signal comes when our process ends, whoever the child is, and wherever."""
    out = helpers.run_snippet(
        """
process = safespawn.spawn(["/bin/sleep", "300"], pdeathsig=signal.SIGKILL, strategy=strategy, **options)
out["pid"] = process.pid
""",
        strategy=probe.strategy,
        options=ENDS[name],
    )

    end = time.monotonic() + 30
    while is_alive(out["pid"]):
        if time.monotonic() > end:
            os.kill(out["pid"], signal.SIGKILL)
            pytest.fail("it outlived its parent")
        os.sched_yield()


def is_alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor a zombie that nobody has reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX" and "(sleep)" in stat


def test_plain_is_the_same_by_every_strategy(whole: str) -> None:
    """What a child has that was given nothing does not depend on the way it was started."""
    with safespawn.Helper(pool=1):
        plain = [
            told([whole, "an argument"], strategy) for strategy in ("vfork", "fork", "launcher", "helper", "pool")
        ]

    assert [one for one in plain if one != plain[0]] == []


def test_vfork_refuses_what_it_must_not_do(whole: str) -> None:
    """What changes privileges is never done on our memory, and the guard says so."""
    refused = ("user", "group", "extra_groups", "caps", "caps-none", "securebits", "seccomp")

    for name in refused:
        with pytest.raises(safespawn.UnsafeSpawn) as caught:
            safespawn.run([whole], strategy="vfork", **ALONE[name][0])
        assert caught.value.guard == "drop-apart", name


def test_auto_takes_the_launcher(whole: str) -> None:
    """With one thread, a change of privileges goes by the launcher, and the proof is told."""
    done = safespawn.run([whole], capture_output=True, **SOMEBODY)

    assert (done.report.strategy, done.report.proof) == ("launcher", "single-threaded")


# ---------------------------------------------------------------------- descriptors


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[int]]:
    """Return three descriptors of three files, opened in three ways."""
    with contextlib.ExitStack() as stack:
        found = []
        for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)):
            found.append(os.open(tmp_path / str(number), flags | os.O_CREAT, 0o600))
            stack.callback(os.close, found[-1])
        yield found


def test_descriptors_in_another_order(probe: Probe, files: list[int]) -> None:
    """Descriptors arrive at their numbers, those that change places too, and no other."""
    a, b, c = files

    probe.gives(
        {"stdin": c, "fds": {a: b, b: a, 40: c}, "pass_fds": [c]},
        {
            **at(0, descriptor(c)),
            **at(a, descriptor(b)),
            **at(b, descriptor(a)),
            **at(40, descriptor(c)),
            **at(c, descriptor(c)),
        },
    )


def test_standard_streams(probe: Probe, files: list[int]) -> None:
    """Streams are what was asked for, as root and as somebody else."""
    null = os.stat("/dev/null")
    streams = {
        "fds.0.kind": "device",
        "fds.0.device": null.st_dev,
        "fds.0.inode": null.st_ino,
        "fds.0.access": os.O_RDWR,
        **at(2, descriptor(files[1])),
    }

    probe.gives({"stdin": DEVNULL, "stderr": files[1]}, streams)
    probe.gives({"stdin": DEVNULL, "stderr": files[1], **SOMEBODY}, {**streams, **IS_SOMEBODY})


def test_controlling_terminal(probe: Probe) -> None:
    """The leader of a new session has the terminal that it was given, as somebody else too."""
    master, terminal = os.openpty()
    try:
        changed = {"sid": "own", "pgid": "own", "terminal": os.fstat(terminal).st_rdev}
        options = {"start_new_session": True, "controlling_terminal": terminal}
        probe.gives(options, changed)
        probe.gives({**options, **SOMEBODY}, {**changed, **IS_SOMEBODY})
    finally:
        os.close(terminal)
        os.close(master)


def test_directory_by_descriptor(probe: Probe) -> None:
    """A working directory may be a descriptor, which the child does not keep."""
    fd = os.open("/usr", os.O_RDONLY | os.O_DIRECTORY)
    try:
        probe.gives({"cwd": fd}, {"cwd": "/usr"})
    finally:
        os.close(fd)


# ------------------------------------------------------------------------ capabilities

#: Who: options, and the ids that come of them.
USERS: dict[str, tuple[dict[str, Any], State]] = {
    "root": ({}, {}),
    "root-asked-for": ({"user": 0, "group": 0, "extra_groups": [5]}, identity(0, 0, [5])),
    "somebody": (SOMEBODY, identity(70_000, 70_001, [4, 70_002])),
    "nobody": ({"user": 65_534, "group": 65_534, "extra_groups": []}, identity(65_534, 65_534)),
    "other-group": ({"group": 12}, {"gids": [12] * 3, "fsgid": 12}),
}
SETS = {
    "none": (),
    "one": (NET_BIND,),
    "some": (CHOWN, KILL, NET_RAW),
    "with-setpcap": (CHOWN, SETPCAP),
}


@pytest.mark.parametrize("held", SETS)
@pytest.mark.parametrize("who", USERS)
def test_capabilities_are_exactly_those(probe: Probe, who: str, held: str) -> None:
    """Whoever it is: permitted, effective, inheritable, ambient are the set, bounding is cut to it."""
    options, ids = USERS[who]
    mask = bits(*SETS[held])

    probe.gives({"caps": SETS[held], **options}, {**ids, **caps(mask, mask)})


@pytest.mark.parametrize("who", USERS)
def test_capabilities_outlast_another_exec(probe: Probe, who: str) -> None:
    """What the program runs has the same set, and no more: uid 0 gets nothing back by an exec."""
    options, _ = USERS[who]
    once = probe.told("again", caps=["net_raw"], **options)

    twice = probe.told(f"--then={probe.path}", "again", caps=["net_raw"], **options)

    assert twice == once


def test_all_that_we_have_is_kept_by_somebody_else(probe: Probe) -> None:
    """All our capabilities can be kept by a user other than 0."""
    ours = probe.plain()["permitted"]
    kept = [number for number in range(64) if ours >> number & 1]

    probe.gives({"caps": kept, **SOMEBODY}, {**IS_SOMEBODY, **caps(ours, ours)})


def test_capability_that_we_lack(probe: Probe) -> None:
    """What we do not have cannot be given: PermissionError at the stage ``caps``, nothing is run."""
    out = helpers.run_snippet(
        """
import prctl
from child_state import told
prctl.capbset.drop("net_raw")
prctl.cap_effective.net_raw = prctl.cap_permitted.net_raw = False
begin_helper()
try:
    told([whole], strategy, caps=["chown", "net_raw"])
except PermissionError as problem:
    out["raised"] = [problem.stage, problem.report.outcome]
out["rest"] = told([whole], strategy, caps=["chown"])["permitted"]
""",
        whole=probe.path,
        strategy=probe.strategy,
    )

    assert out == {"raised": ["caps", "failed"], "rest": bits(CHOWN)}


# -------------------------------------------------------------------------- securebits


@pytest.mark.parametrize("bit", SECUREBITS)
def test_securebit_alone(probe: Probe, bit: str) -> None:
    """Each bit alone is set, for root with all its capabilities but where the bit itself says no."""
    # Without root's privilege at exec, what is neither inheritable nor ambient is gone.
    gone = {"permitted": 0, "effective": 0} if bit == "noroot" else {}

    probe.gives({"securebits": [bit]}, {"securebits": SECUREBITS[bit], **gone})


@pytest.mark.parametrize("held", SETS)
@pytest.mark.parametrize("who", USERS)
def test_securebits_beside_capabilities(probe: Probe, who: str, held: str) -> None:
    """All bits, locked, and exactly these capabilities, raised although nothing can be raised after."""
    options, ids = USERS[who]
    mask = bits(*SETS[held])

    probe.gives(
        {"caps": SETS[held], "securebits": ALL_BITS, **options},
        {**ids, **caps(mask, mask), "securebits": sum(SECUREBITS.values())},
    )


def test_securebits_of_somebody_else(probe: Probe) -> None:
    """Bits are set although who is to have them may not set them."""
    probe.gives(
        {"securebits": ["noroot", "noroot_locked"], **SOMEBODY},
        {**IS_SOMEBODY, "securebits": SECUREBITS["noroot"] | SECUREBITS["noroot_locked"]},
    )


def test_securebits_are_the_whole_set(probe: Probe) -> None:
    """Bits that we have and that were not asked for are not the child's; none is a set as well."""
    out = helpers.run_snippet(
        """
import prctl
from child_state import told
prctl.securebits.no_setuid_fixup = True
begin_helper()
for name, asked in (("ours", {}), ("other", {"securebits": ["noroot_locked"]}), ("none", {"securebits": []})):
    out[name] = told([whole], strategy, **asked)["securebits"]
""",
        whole=probe.path,
        strategy=probe.strategy,
    )

    assert out == {
        "ours": SECUREBITS["no_setuid_fixup"],
        "other": SECUREBITS["noroot_locked"],
        "none": 0,
    }


# --------------------------------------------------------------------------------- root


def jailed(plain: State, cwd: str) -> State:
    """Return what a child tells that was started as plain, without /proc, in a directory there."""
    return {**plain, **without_proc(plain), "cwd": cwd, "argv": ["/bin/whole"]}


@pytest.mark.parametrize("cwd", [None, "/", "/inside", "inside"])
@pytest.mark.parametrize("by", ["path", "descriptor"])
def test_root(probe: Probe, jail: Path, by: str, cwd: str | None) -> None:
    """Program and working directory are those of the new root, and nothing else has changed."""
    fd = os.open(jail, os.O_RDONLY | os.O_DIRECTORY)
    try:
        seen = told(
            ["/bin/whole"], probe.strategy, root=jail if by == "path" else fd, **{"cwd": cwd} if cwd else {}
        )
    finally:
        os.close(fd)

    assert seen == jailed(probe.plain(), "/inside" if cwd and "inside" in cwd else "/")


def test_path_is_searched_in_the_new_root(probe: Probe, jail: Path) -> None:
    """A name without a slash is found in the PATH that the child has, inside the new root."""
    seen = told(["whole"], probe.strategy, root=jail, env={"PATH": "/usr/bin:/bin"})

    assert seen == {**jailed(probe.plain(), "/"), "argv": ["whole"], "environ": ["PATH=/usr/bin:/bin"]}


def test_nothing_outside_the_root_can_be_reached(probe: Probe, jail: Path) -> None:
    """No way leads out: not by dots, not by the directory that was left, not by a link."""
    (jail / "link").symlink_to("/../../outside")
    ways = [f"--try-read={path}" for path in ("/../outside", "../outside", "/link", "../../../etc/passwd")]

    seen = told(["/bin/whole", *ways], probe.strategy, root=jail, caps=["sys_chroot"])

    assert seen["tries"] == dict.fromkeys((way.removeprefix("--try-") for way in ways), errno.ENOENT)
    plain = probe.told(f"--try-read={jail.parent}/outside")
    assert list(plain["tries"].values()) == [0]  # it could be read otherwise


def test_root_for_somebody_else(probe: Probe, jail: Path) -> None:
    """Somebody without privileges runs in a new root, which only root could enter."""
    seen = told(["/bin/whole"], probe.strategy, root=jail, **SOMEBODY)

    assert seen == {**jailed(probe.plain(), "/"), **IS_SOMEBODY}


def test_program_outside_the_root_is_not_found(probe: Probe, jail: Path) -> None:
    """A path that exists outside only is not there."""
    with pytest.raises(FileNotFoundError) as caught:
        safespawn.run([probe.path], root=jail, strategy=probe.strategy)

    assert caught.value.stage == "lookup"


# ------------------------------------------------------------------------------- cgroup


HIERARCHIES = {"v2": V2, "v1": PIDS}


@pytest.fixture(params=[name for name, path in HIERARCHIES.items() if (path / "cgroup.procs").exists()])
def cgroup(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Return a control group of our own, in the unified hierarchy and, where there is one, of version 1."""
    where = HIERARCHIES[request.param] / f"safespawn-test-{os.getpid()}"
    where.mkdir()
    yield where
    where.rmdir()


def moved(plain: State, cgroup: Path) -> list[str]:
    """Return the groups of a child that is in ours: "number:controllers:path" each."""
    mine = "0::" if cgroup.parent == V2 else ":pids:"
    return [
        f"{line.rpartition(':')[0]}:/{cgroup.name}" if mine in line else line for line in plain["cgroups"]
    ]


@pytest.mark.parametrize("by", ["path", "descriptor"])
def test_cgroup(probe: Probe, cgroup: Path, by: str) -> None:
    """The child is in the group that was named, in that hierarchy only."""
    fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        probe.gives({"cgroup": cgroup if by == "path" else fd}, {"cgroups": moved(probe.plain(), cgroup)})
    finally:
        os.close(fd)


def test_cgroup_for_somebody_else(probe: Probe, cgroup: Path) -> None:
    """Who may not move itself is in the group all the same."""
    probe.gives(
        {"cgroup": cgroup, **SOMEBODY}, {"cgroups": moved(probe.plain(), cgroup), **IS_SOMEBODY}
    )


def test_cgroup_is_left_empty(probe: Probe, cgroup: Path) -> None:
    """Nothing of ours stays in it, and we were never in it."""
    ours = Path("/proc/self/cgroup").read_text()
    probe.told(cgroup=cgroup)

    assert (cgroup / "cgroup.procs").read_text() == ""
    assert Path("/proc/self/cgroup").read_text() == ours


# ----------------------------------------------------------------------------- landlock

with_landlock = pytest.mark.skipif(not HAS_LANDLOCK, reason="needs Landlock ABI 3 (Linux 6.2)")


@pytest.fixture
def places(public: Path) -> Path:
    """Return a directory with two directories, each with a file, a program and room for more."""
    for name in ("mine", "other"):
        where = public / name
        where.mkdir()
        where.chmod(0o777)
        (where / "file").write_text("text")
        (where / "file").chmod(0o666)
        shutil.copy("/bin/true", where / "program")
    return public


TRIES = ("read=file", "read=", "write=file", "truncate=file", "make=new")


def tries_at(places: Path) -> list[str]:
    """Return the arguments that have the probe try everything in both directories."""
    names = [way.partition("=") for way in TRIES]
    return [f"--try-{way}={places / where / name}" for where in ("mine", "other") for way, _, name in names]


def allowed(places: Path, where: str, *ways: str) -> State:
    """Return what comes of the tries: 0 for these ways in that directory, EACCES for all else."""
    answers = {}
    for argument in tries_at(places):
        way, _, path = argument.removeprefix("--try-").partition("=")
        mine = Path(path).is_relative_to(places / where)
        answers[f"{way}={path}"] = 0 if mine and way in ways else errno.EACCES
    return {"tries": answers}


#: What is needed to run the probe and for it to tell all; and what the rules imply.
def needed(probe: Probe, **rules: list[str]) -> dict[str, Any]:
    """Return rules that let the probe run and look at /proc."""
    rules.setdefault("read", []).append("/proc")
    rules.setdefault("execute", []).append(probe.path)
    return {"landlock": rules}


@with_landlock
@pytest.mark.parametrize("by", [{}, SOMEBODY], ids=["root", "somebody"])
@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("read", ["read"]),
        ("write", ["write", "truncate", "make"]),
    ],
)
def test_landlock(probe: Probe, places: Path, kind: str, ways: list[str], by: dict[str, Any]) -> None:
    """Below the paths that are named that much is allowed and no more; elsewhere nothing is."""
    tries = tries_at(places)

    probe.gives(
        {**needed(probe, **{kind: [str(places / "mine")]}), **by},
        {"no_new_privs": 1, **(IS_SOMEBODY if by else {}), **allowed(places, "mine", *ways)},
        *tries,
    )


@with_landlock
def test_landlock_of_a_file(probe: Probe, places: Path) -> None:
    """A rule may be about one file."""
    seen = probe.told(*tries_at(places), **needed(probe, read=[str(places / "mine" / "file")]))

    assert [way for way, answer in seen["tries"].items() if answer == 0] == [f"read={places}/mine/file"]


@with_landlock
def test_landlock_execute(probe: Probe, places: Path) -> None:
    """A program can be run where that is allowed, and nowhere else."""
    programs = [places / "mine" / "whole", places / "other" / "whole"]
    for program in programs:
        shutil.copy(probe.path, program)

    seen = probe.told(
        *(f"--try-exec={program}" for program in programs), **needed(probe, execute=[str(places / "mine")])
    )

    assert seen["tries"] == {f"exec={programs[0]}": 0, f"exec={programs[1]}": errno.EACCES}


@with_landlock
def test_landlock_that_allows_nothing(probe: Probe, places: Path) -> None:
    """Rules without the program itself: PermissionError at the stage ``exec``, and nothing is run."""
    for rules in ({}, {"read": ["/"]}, {"execute": [str(places)]}):
        with pytest.raises(PermissionError) as caught:
            safespawn.run([probe.path], landlock=rules, strategy=probe.strategy)
        assert caught.value.stage == "exec"


@pytest.mark.parametrize("abi", range(1, min(LANDLOCK_ABI, 5) + 1))
def test_landlock_abi(probe: Probe, places: Path, abi: int) -> None:
    """Before version 3 the kernel knows no right to empty a file: then it is not refused."""
    answer = errno.EACCES if abi >= 3 else 0
    path = places / "other" / "file"

    seen = probe.told(f"--try-truncate={path}", f"--try-write={path}", **needed(probe, abi=abi))

    assert seen["tries"] == {f"truncate={path}": answer, f"write={path}": errno.EACCES}


# ------------------------------------------------------------------------------ seccomp


@pytest.mark.parametrize("by", [{}, SOMEBODY, {"caps": ()}], ids=["root", "somebody", "nothing"])
def test_seccomp(probe: Probe, by: dict[str, Any]) -> None:
    """A filter is on when the program starts, and answers what it is to answer."""
    plain = probe.told(**by)

    seen = probe.told(seccomp=refusing({"uname": errno.EPERM}), **by)

    assert seen == {**plain, "seccomp": 2, "no_new_privs": 1, "hostname": errno.EPERM}


def test_seccomp_may_forbid_all_that_we_do(probe: Probe) -> None:
    """The filter comes last: it may forbid what was needed to give everything else."""
    used = dict.fromkeys(("prctl",), errno.ENOSYS)

    seen = probe.told(seccomp=refusing(used), caps=["chown"], securebits=["noroot"], **SOMEBODY)

    assert (seen["uids"], seen["permitted"]) == ([70_000] * 3, bits(CHOWN))
    assert (seen["no_new_privs"], seen["seccomp"]) == (-1, -1)  # prctl itself tells no more


def test_seccomp_that_forbids_execve(probe: Probe, tmp_path: Path) -> None:
    """A filter that refuses every execve: PermissionError at the stage ``exec``, nothing is run."""
    never = refusing(dict.fromkeys(("execve", "execveat"), errno.EPERM))

    with pytest.raises(PermissionError) as caught:
        safespawn.run(["/usr/bin/touch", str(tmp_path / "ran")], seccomp=never, strategy=probe.strategy)

    assert (caught.value.stage, caught.value.report.outcome) == ("exec", "failed")
    assert list(tmp_path.iterdir()) == []


def test_seccomp_that_the_kernel_does_not_take(probe: Probe) -> None:
    """A program that is none is OSError EINVAL at the stage ``seccomp``."""
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)) as caught:
        safespawn.run([probe.path], seccomp=b"\xff" * 8, strategy=probe.strategy)

    assert (caught.value.errno, caught.value.stage) == (errno.EINVAL, "seccomp")


# -------------------------------------------------------------------- programs and pins


@pytest.fixture
def script(public: Path, probe: Probe) -> Path:
    """Return a script whose interpreter is the probe."""
    path = public / "script"
    path.write_text(f"#!{probe.path} option\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("who", USERS)
def test_script(probe: Probe, script: Path, who: str) -> None:
    """A script is given what a program is."""
    options, ids = USERS[who]
    seen = told([script, "word"], probe.strategy, caps=["chown"], **options)

    assert seen == {
        **probe.plain(),
        **ids,
        **caps(bits(CHOWN), bits(CHOWN)),
        "argv": [probe.path, "option", str(script), "word"],
    }


@pytest.mark.parametrize("who", USERS)
def test_pinned_program(probe: Probe, who: str) -> None:
    """A program that is run by descriptor is given the same, and does not have the descriptor."""
    options, ids = USERS[who]

    probe.gives({"pin": True, "caps": ["chown"], **options}, {**ids, **caps(bits(CHOWN), bits(CHOWN))})


@pytest.mark.parametrize("who", USERS)
def test_pinned_script(probe: Probe, script: Path, who: str) -> None:
    """A pinned script is given the same, and has the descriptor by which its interpreter reads it."""
    options, _ = USERS[who]
    plain = told([script, "word"], probe.strategy, **options)

    seen = told([script, "word"], probe.strategy, pin=True, **options)

    held = os.stat(script)
    extra = at(3, {"flags": 0, "access": 0, "kind": "file", "device": held.st_dev, "inode": held.st_ino})
    assert seen == {**plain, **extra, "argv": [probe.path, "option", "/dev/fd/3", "word"]}


# -------------------------------------------------------------- what cannot be given

#: Options that lead nowhere: the errno, and the stage that says where it went wrong.
NOWHERE: dict[str, tuple[dict[str, Any], int, str]] = {
    "no-root": ({"root": "/no/such"}, errno.ENOENT, "open-root"),
    "root-no-directory": ({"root": "/etc/passwd"}, errno.ENOTDIR, "open-root"),
    "no-cgroup": ({"cgroup": "/no/such"}, errno.ENOENT, "cgroup"),
    "cgroup-no-directory": ({"cgroup": "/etc/passwd"}, errno.ENOTDIR, "cgroup"),
    "cgroup-of-no-cgroups": ({"cgroup": "/usr"}, errno.EOPNOTSUPP, "cgroup"),
    "no-such-path": ({"landlock": {"abi": 1, "read": ["/no/such"]}}, errno.ENOENT, "landlock"),
    "no-filter": ({"seccomp": b"\xff" * 8}, errno.EINVAL, "seccomp"),
    "no-capability": ({"caps": [63]}, errno.EINVAL, "caps"),
    "no-processor": ({"cpu_affinity": [65_535]}, errno.EINVAL, "affinity"),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_nothing_runs_where_something_is_missing(probe: Probe, tmp_path: Path, name: str) -> None:
    """What cannot be given is the OSError of its errno, with the stage; the program is not run."""
    options, number, stage = NOWHERE[name]

    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        safespawn.run(["/usr/bin/touch", str(tmp_path / "ran")], strategy=probe.strategy, **options)

    assert (caught.value.errno, caught.value.stage) == (number, stage)
    assert not isinstance(caught.value.filename, bytes)
    assert caught.value.report.outcome == "failed"
    assert list(tmp_path.iterdir()) == []


#: What a caller without privileges may not have.
FORBIDDEN: dict[str, tuple[dict[str, Any], int, str]] = {
    "root": ({"root": "/"}, errno.EPERM, "root"),
    "caps": ({"caps": ["chown"]}, errno.EPERM, "bounding"),
    "securebits": ({"securebits": ["noroot"]}, errno.EPERM, "securebits"),
    "scheduler": ({"scheduler": [os.SCHED_FIFO, 1]}, errno.EPERM, "scheduler"),
    "nice": ({"nice": -1}, errno.EACCES, "nice"),
    "uts": ({"namespaces": ["uts"]}, errno.EPERM, "namespaces"),
    "pid": ({"namespaces": ["pid"]}, errno.EPERM, "clone"),
    "cgroup": ({"cgroup": "ours"}, errno.EACCES, "cgroup"),
    "group": ({"group": 0}, errno.EPERM, "gid"),
    "groups": ({"extra_groups": [5]}, errno.EPERM, "verify-drop"),
}


def test_caller_without_privileges_is_given_none(probe: Probe, cgroup: Path) -> None:
    """What the kernel does not allow us is PermissionError at its stage, and nothing is run."""
    forbidden = {
        name: told
        for name, told in FORBIDDEN.items()
        if probe.strategy != "helper" or "pid" not in told[0].get("namespaces", ())
    }
    out = helpers.run_snippet(
        """
from parents import become
become(1000, 1001)
begin_helper()
for name, (asked, *_) in wanted.items():
    try:
        out[name] = safespawn.run([whole], stdout=safespawn.PIPE, strategy=strategy, **asked).stdout.decode()
    except PermissionError as problem:
        out[name] = [problem.errno, problem.stage]
""",
        whole=probe.path,
        strategy=probe.strategy,
        wanted={**forbidden, "cgroup": [{"cgroup": str(cgroup)}]},
    )

    assert out == {name: [number, stage] for name, (_, number, stage) in forbidden.items()}


# ------------------------------------------------------------------------- all at once


@with_landlock
def test_everything_at_once(probe: Probe, files: list[int], places: Path) -> None:
    """Options do not get in each other's way."""
    path = places / "other" / "file"
    probe.gives(
        {
            **SOMEBODY,
            "caps": ["net_raw"],
            "securebits": ALL_BITS,
            "no_new_privs": True,
            "seccomp": refusing({"uname": errno.EPERM}),
            **needed(probe),
            "cwd": "/usr",
            "env": {"A": "b"},
            "fds": {9: files[0]},
            "start_new_session": True,
            "umask": 0o77,
            "nice": 3,
            "scheduler": os.SCHED_BATCH,
            "cpu_affinity": [LAST_CPU],
            "rlimits": {resource.RLIMIT_CORE: 0},
            "pdeathsig": 9,
            "sigmask": [10],
            "sigdefault": [signal.SIGPIPE],
            "subreaper": True,
            "deadline": 300,
            "pin": True,
        },
        {
            **IS_SOMEBODY,
            **caps(bits(NET_RAW), bits(NET_RAW)),
            "securebits": sum(SECUREBITS.values()),
            "no_new_privs": 1,
            "seccomp": 2,
            "hostname": errno.EPERM,
            "tries": {f"read={path}": errno.EACCES},
            "cwd": "/usr",
            "environ": ["A=b"],
            **at(9, descriptor(files[0])),
            "sid": "own",
            "pgid": "own",
            "umask": 0o77,
            "nice": 3,
            "policy": os.SCHED_BATCH,
            "cpus": [LAST_CPU],
            "limits.4": [0, 0],
            "pdeathsig": 9,
            "blocked": bits(9),
            "subreaper": 1,
        },
        f"--try-read={path}",
    )
