"""Everything a child can be given, told by the child itself, on every way of starting it."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
import starting_ways
from safespawn import PIPE, _binding, _environ
from starting_ways import WAYS, Way

CAT_STATUS = ["/bin/cat", "/proc/self/status"]
#: Prints the arguments of the shell that runs it, each with its NUL.
CAT_ARGUMENTS = "cat /proc/$$/cmdline; :"

Maker = Callable[..., Path]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """Return the options that choose a way of starting."""
    with starting_ways.ready(WAYS[request.param]) as ready:
        yield ready


def output(way: Way, argv: Any, **options: Any) -> bytes:
    """Run a program that must succeed, by the way asked for, and return what it printed."""
    done = safespawn.run(argv, stdout=PIPE, check=True, **way, **options)
    assert done.report.strategy == way["strategy"]
    assert isinstance(done.stdout, bytes)
    return done.stdout


def story(way: Way, **options: Any) -> dict[str, Any]:
    """Return what a child that was given these options says of itself."""
    told: dict[str, Any] = json.loads(output(way, helpers.probe_argv("state"), **options))
    return told


def status(way: Way, **options: Any) -> dict[str, str]:
    """Return /proc/self/status of a program that, unlike Python, sets no handler itself."""
    return parsed(output(way, CAT_STATUS, **options).decode())


def parsed(text: str) -> dict[str, str]:
    """Return the lines of a /proc/pid/status by name."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def signals(mask: str) -> set[int]:
    """Return the signals of a mask as /proc prints it."""
    bits = int(mask, 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


def in_fresh(snippet: str, way: Way, **values: Any) -> dict[str, Any]:
    """Run a snippet in a fresh process; ``way``, ``status()`` and ``probe`` are there."""
    prelude = (
        "def run(argv, **options):\n"
        "    done = safespawn.run(argv, stdout=safespawn.PIPE, check=True, **way, **options)\n"
        "    assert done.report.strategy == way['strategy']\n"
        "    return done.stdout\n"
        "def status(**options):\n"
        "    return run(['/bin/cat', '/proc/self/status'], **options).decode()\n"
    )
    return helpers.run_snippet(
        prelude + snippet, way=way, probe=helpers.probe_argv("state"), **values
    )


# ------------------------------------------------------------ argv and program


def test_argv_arrives_byte_for_byte(way: Way) -> None:
    """Empty arguments, newlines and bytes that are no UTF-8 arrive as they were given."""
    words = [b"", b"two words", b"line\nline", b"\xff\xfe", "\u00e9\u4e2d".encode(), b"", b"--", b"'\"$*"]

    told = output(way, ["/bin/sh", b"-c", CAT_ARGUMENTS, "zero", *words])

    assert told.split(b"\0")[:-1] == [b"/bin/sh", b"-c", CAT_ARGUMENTS.encode(), b"zero", *words]


def test_argv_may_mix_str_bytes_and_paths_from_any_iterable(way: Way) -> None:
    """str, bytes and Path arguments mix, and a generator is as good as a list."""
    words: list[Any] = ["/bin/sh", b"-c", CAT_ARGUMENTS, Path("/a/path"), "\udcff", "\u00e9"]

    told = output(way, (word for word in words))

    assert told.split(b"\0")[3:-1] == [b"/a/path", b"\xff", "\u00e9".encode()]


def test_many_arguments_arrive_in_order(way: Way) -> None:
    """Ten thousand arguments arrive complete and in order."""
    words = [f"{i:05}" for i in range(10_000)]

    told = output(way, ["/bin/sh", "-c", CAT_ARGUMENTS, "zero", *words])

    assert told.decode().split("\0")[4:-1] == words


@pytest.mark.parametrize("program", ["/bin/sh", b"/bin/sh", Path("/bin/sh"), "sh"])
def test_executable_is_run_under_another_name(way: Way, program: Any) -> None:
    """With ``executable`` that file runs, and argv[0] is only what it is told to be called."""
    told = output(way, ["no/such program", "-c", CAT_ARGUMENTS], executable=program)

    assert told.split(b"\0")[0] == b"no/such program"


# ----------------------------------------------------------------- environment


def environment(way: Way, **options: Any) -> dict[bytes, bytes]:
    """Return the environment of a child, in bytes."""
    lines = output(way, ["/usr/bin/env", "-0"], **options).split(b"\0")[:-1]
    return dict(line.split(b"=", 1) for line in lines)


def test_environment_is_inherited(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``env`` a child has our environment, changes of this moment included."""
    monkeypatch.setenv("SAFESPAWN_TEST", "of this moment")

    told = environment(way)

    # C code in this process (readline) may have put more into libc's than Python knows of.
    assert told == dict(_environ.split(_binding.environment()))
    assert told.items() >= dict(os.environb).items()
    assert told[b"SAFESPAWN_TEST"] == b"of this moment"


def test_environment_that_is_given_replaces_ours(way: Way) -> None:
    """With ``env`` a child has exactly that, in bytes: newlines, '=', empty values, no UTF-8."""
    given: dict[Any, Any] = {
        "PLAIN": "x",
        b"BYTES\xff": b"\xfe\xff",
        "EMPTY": "",
        "EQUALS": "a=b=c",
        "LINES": "a\nb",
        "PATH_LIKE": Path("/a/path"),
        "\u00e9": "\u4e2d",
    }

    assert environment(way, env=given) == {os.fsencode(k): os.fsencode(v) for k, v in given.items()}


def test_environment_may_be_empty(way: Way) -> None:
    """An empty ``env`` is an empty environment, not ours."""
    assert output(way, ["/usr/bin/env", "-0"], env={}) == b""


# --------------------------------------------------- working directory, lookup


@pytest.mark.parametrize("kind", [os.fspath, os.fsencode, Path])
def test_cwd_by_name(way: Way, tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    """``cwd`` is str, bytes or a path, and our own stays where it is."""
    before = os.getcwd()

    told = story(way, cwd=kind(tmp_path))

    assert told["cwd"] == str(tmp_path)
    assert sorted(told["fds"]) == ["0", "1", "2"]
    assert os.getcwd() == before


def test_cwd_whose_name_is_no_utf8(way: Way, tmp_path: Path) -> None:
    """A directory is reached whatever the bytes of its name are."""
    where = os.fsencode(tmp_path) + b"/\xff\n"
    os.mkdir(where)

    assert os.fsencode(story(way, cwd=where)["cwd"]) == where


def test_cwd_by_descriptor(way: Way, tmp_path: Path) -> None:
    """``cwd`` may be a descriptor of a directory, which the child does not keep."""
    fd = os.open(tmp_path, os.O_PATH)
    try:
        told = story(way, cwd=fd)
    finally:
        os.close(fd)

    assert told["cwd"] == str(tmp_path)
    assert sorted(told["fds"]) == ["0", "1", "2"]


@pytest.mark.parametrize("by_descriptor", [False, True])
def test_relative_program_is_resolved_in_the_new_cwd(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_descriptor: bool
) -> None:
    """A relative program is the one in the child's directory, not the one in ours."""
    for where in ("ours", "theirs"):
        (tmp_path / where).mkdir()
        (tmp_path / where / "tool").write_text(f"#!/bin/sh\necho {where}\n")
        (tmp_path / where / "tool").chmod(0o755)
    monkeypatch.chdir(tmp_path / "ours")
    fd = os.open(tmp_path / "theirs", os.O_RDONLY)

    try:
        cwd: Any = fd if by_descriptor else tmp_path / "theirs"
        assert output(way, ["./tool"], cwd=cwd) == b"theirs\n"
        assert output(way, ["zero"], executable="../theirs/tool", cwd=cwd) == b"theirs\n"
    finally:
        os.close(fd)


def tools(tmp_path: Path, **modes: int) -> None:
    """Make a script ``tool`` in each named directory, that prints the directory's name."""
    for where, mode in modes.items():
        (tmp_path / where).mkdir()
        (tmp_path / where / "tool").write_text(f"#!/bin/sh\necho {where}\n")
        (tmp_path / where / "tool").chmod(mode)


def test_path_of_the_child_is_searched(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare name is looked for in the PATH that the child will have, not in ours."""
    tools(tmp_path, ours=0o755, theirs=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "ours"))

    assert output(way, ["tool"]) == b"ours\n"
    assert output(way, ["tool"], env={"PATH": str(tmp_path / "theirs")}) == b"theirs\n"
    assert output(way, ["zero"], executable="tool", env={"PATH": f"/none:{tmp_path}/theirs"}) == b"theirs\n"


@pytest.mark.parametrize("path", ["", ":/nowhere", "/nowhere:", "/nowhere::/none", ".", "../here", "/nowhere:./"])
def test_relative_path_entries_mean_the_childs_cwd(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Empty and relative entries of PATH are taken from the child's directory, as execvp does."""
    tools(tmp_path, here=0o755, decoy=0o755)
    monkeypatch.chdir(tmp_path / "decoy")

    assert output(way, ["tool"], cwd=tmp_path / "here", env={"PATH": path}) == b"here\n"


def test_first_match_in_path_wins(way: Way, tmp_path: Path) -> None:
    """Of two programs with the same name the one in the earlier directory runs."""
    tools(tmp_path, a=0o755, b=0o755)

    assert output(way, ["tool"], env={"PATH": f"{tmp_path}/b:{tmp_path}/a"}) == b"b\n"


def test_path_search_passes_over_what_cannot_be_run(way: Way, tmp_path: Path) -> None:
    """A file that may not be run, a directory of that name, a file or a loop in PATH are passed over."""
    tools(tmp_path, forbidden=0o644, good=0o755)
    (tmp_path / "directory" / "tool").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    path = ":".join(str(tmp_path / name) for name in ("forbidden", "directory", "file", "loop", "none", "good"))

    assert output(way, ["tool"], env={"PATH": path}) == b"good\n"


@pytest.mark.parametrize(
    ("directories", "number"),
    [
        (("forbidden", "none"), errno.EACCES),
        (("none", "forbidden"), errno.EACCES),
        (("directory", "none"), errno.EACCES),
        (("none", "empty"), errno.ENOENT),
        (("file",), errno.ENOENT),
        (("loop",), errno.ENOENT),
    ],
)
def test_path_search_that_finds_nothing_says_why(
    way: Way, tmp_path: Path, directories: tuple[str, ...], number: int
) -> None:
    """A forbidden candidate is remembered when nothing better comes; else the program is missing."""
    tools(tmp_path, forbidden=0o644)
    (tmp_path / "directory" / "tool").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(OSError) as caught:
        output(way, ["tool"], env={"PATH": ":".join(str(tmp_path / name) for name in directories)})

    assert (caught.value.errno, caught.value.filename) == (number, "tool")
    assert caught.value.stage == "lookup"  # type: ignore[attr-defined]


def test_without_path_the_default_is_searched(way: Way) -> None:
    """A child without PATH gets its program from the system's default directories."""
    assert output(way, ["sh", "-c", "echo found"], env={}) == b"found\n"


def test_name_with_a_slash_is_not_searched_for(way: Way, tmp_path: Path) -> None:
    """A name with a slash in it is a path, whatever PATH says."""
    tools(tmp_path, a=0o755)

    with pytest.raises(FileNotFoundError) as caught:
        output(way, ["a/tool"], cwd="/", env={"PATH": str(tmp_path)})

    assert caught.value.filename == "a/tool"


# ------------------------------------------------- session, group and terminal


def test_session_and_group_are_ours_by_default(way: Way) -> None:
    """A child stays in our session and process group, and has no terminal that we lack."""
    told = story(way)

    assert (told["sid"], told["pgid"]) == (os.getsid(0), os.getpgid(0))
    assert told["ppid"] == os.getpid()


def test_new_session(way: Way) -> None:
    """With ``start_new_session`` a child leads a session and a group of its own, without terminal."""
    told = story(way, start_new_session=True)

    assert told["sid"] == told["pgid"] == told["pid"]
    assert told["tty"] == 0


def test_new_process_group(way: Way) -> None:
    """``process_group=0`` makes a child the leader of a new group in our session."""
    told = story(way, process_group=0)

    assert told["pgid"] == told["pid"]
    assert told["sid"] == os.getsid(0)


def test_existing_process_group(way: Way) -> None:
    """A child can join a group that is there."""
    with safespawn.spawn(["/bin/cat"], stdin=PIPE, stdout=safespawn.DEVNULL, process_group=0, **way) as leader:
        told = story(way, process_group=leader.pid)

    assert told["pgid"] == leader.pid


def test_controlling_terminal(way: Way) -> None:
    """The leader of a new session takes the terminal it is given."""
    master, slave = os.openpty()
    try:
        device = os.fstat(slave).st_rdev
        told = story(way, start_new_session=True, controlling_terminal=slave)
    finally:
        os.close(master)
        os.close(slave)

    # new_encode_dev of linux/kdev_t.h
    major, minor = os.major(device), os.minor(device)
    assert told["tty"] == (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
    assert sorted(told["fds"]) == ["0", "1", "2"]


# -------------------------------------------------- umask, priority and limits


@pytest.mark.parametrize("mask", [0, 0o027, 0o777])
def test_umask(way: Way, mask: int) -> None:
    """A child has the umask it was given, and we keep ours."""
    before = Path("/proc/self/status").read_text().split("Umask:")[1].split()[0]

    assert story(way, umask=mask)["umask"] == mask
    assert story(way)["umask"] == int(before, 8)
    assert Path("/proc/self/status").read_text().split("Umask:")[1].split()[0] == before


def test_nice_is_absolute(way: Way) -> None:
    """``nice`` is the priority that a child gets, not what is added to ours."""
    out = in_fresh(
        """
os.nice(3)
out["given"] = json.loads(run(probe, nice=7))["nice"]
out["inherited"] = json.loads(run(probe))["nice"]
out["ours"] = os.getpriority(os.PRIO_PROCESS, 0)
""",
        way,
    )

    assert out == {"given": 7, "inherited": 3, "ours": 3}


def test_cpu_affinity(way: Way) -> None:
    """A child runs on the processors it was given, and ours stay as they are."""
    before = os.sched_getaffinity(0)

    for cpu in sorted(before):
        assert story(way, cpu_affinity=[cpu])["cpus"] == [cpu]
    assert story(way, cpu_affinity=before)["cpus"] == sorted(before)
    assert os.sched_getaffinity(0) == before


def test_rlimits(way: Way) -> None:
    """A limit is one number for soft and hard, or a pair, and we keep our own."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    told = story(way, rlimits={resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: (0, 4096)})["limits"]

    assert told["RLIMIT_NOFILE"] == [64, 64]
    assert told["RLIMIT_CORE"] == [0, 4096]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_rlimits_can_be_infinite(way: Way) -> None:
    """RLIM_INFINITY means no limit, for soft and hard alike, alone or in a pair."""
    out = in_fresh(
        """
import resource
free = resource.RLIM_INFINITY
if resource.getrlimit(resource.RLIMIT_CPU)[1] != free:
    out["skip"] = True
else:
    resource.setrlimit(resource.RLIMIT_CPU, (1000, free))
    def told(value):
        return json.loads(run(probe, rlimits={resource.RLIMIT_CPU: value}))["limits"]["RLIMIT_CPU"]
    out["inherited"] = json.loads(run(probe))["limits"]["RLIMIT_CPU"]
    out["one"] = told(free)
    out["pair"] = told((2000, free))
""",
        way,
    )

    if out.get("skip"):
        pytest.skip("needs a hard RLIMIT_CPU of infinity")
    assert out == {"inherited": [1000, -1], "one": [-1, -1], "pair": [2000, -1]}


# ------------------------------------------------------ the death of the parent


def test_pdeathsig_is_set(way: Way) -> None:
    """``pdeathsig`` is the child's parent-death signal; by default it has none."""
    assert story(way, pdeathsig=signal.SIGUSR1)["pdeathsig"] == signal.SIGUSR1
    assert story(way)["pdeathsig"] == 0


def test_pdeathsig_is_delivered(way: Way) -> None:
    """A child gets its signal when its parent dies, with nobody to tell it."""
    # A subreaper starts a parent, which starts a program that reads what never comes, and
    # dies. How the orphan ended is then ours to see.
    out = in_fresh(
        """
import prctl, select
prctl.set_child_subreaper(1)
never_read, never_written = os.pipe()
told_read, told_written = os.pipe()
parent = os.fork()
if parent == 0:
    begin_helper()
    child = safespawn.spawn(["/bin/cat"], stdin=never_read, pdeathsig=signal.SIGUSR1, **way)
    os.write(told_written, b"%d" % child.pid)
    os._exit(0)
os.close(told_written)
os.waitpid(parent, 0)
orphan = int(os.read(told_read, 20))
pidfd = os.pidfd_open(orphan)
poll = select.poll()
poll.register(pidfd, select.POLLIN)
if not poll.poll(30_000):
    os.kill(orphan, signal.SIGKILL)
out["killed by"] = os.WTERMSIG(os.waitpid(orphan, 0)[1])
""",
        way,
    )

    assert out == {"killed by": signal.SIGUSR1}


# ------------------------------------------------------------------- signals


def test_signals_that_python_ignores_are_restored(way: Way) -> None:
    """SIGPIPE and SIGXFSZ, which Python ignores for itself, are default in a child."""
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN

    ignored = signals(status(way)["SigIgn"])

    assert not ignored & {signal.SIGPIPE, signal.SIGXFSZ}


def test_signals_that_python_ignores_stay_so_on_demand(way: Way) -> None:
    """With ``restore_signals=False`` SIGPIPE and SIGXFSZ stay ignored."""
    ignored = signals(status(way, restore_signals=False)["SigIgn"])

    assert {signal.SIGPIPE, signal.SIGXFSZ} <= ignored


def test_ignored_signals_survive_and_handlers_do_not(way: Way) -> None:
    """A signal that we ignore is ignored in a child; one that we handle is default there."""
    out = in_fresh(
        """
def handler(number, frame):
    pass
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGRTMAX, signal.SIG_IGN)
for number in set(range(1, 65)) - {9, 19, 32, 33, int(signal.SIGUSR1), int(signal.SIGRTMAX)}:
    signal.signal(number, handler)
out["child"] = status()
out["ours"] = open("/proc/self/status").read()
""",
        way,
    )

    child, ours = parsed(out["child"]), parsed(out["ours"])
    assert len(signals(ours["SigCgt"])) == 58
    assert signals(child["SigCgt"]) == set()
    assert signals(child["SigIgn"]) == {signal.SIGUSR1, signal.SIGRTMAX}
    assert signals(child["SigBlk"]) == set()


@pytest.mark.parametrize("restore", [False, True])
def test_signals_of_libc_are_default(way: Way, restore: bool) -> None:
    """Signals 32 and 33, which libc hides from its users, are default in a child."""
    # Only by raw system call can they be ignored: rt_sigaction is 13 on x86-64, 134 elsewhere.
    out = in_fresh(
        """
import ctypes
number = {"x86_64": 13}.get(os.uname().machine, 134)
ignore = (ctypes.c_ulong * 4)(1, 0, 0, 0)
for hidden in (32, 33):
    assert ctypes.CDLL(None).syscall(number, hidden, ignore, None, 8) == 0
out["ours"] = open("/proc/self/status").read()
out["child"] = status(restore_signals=restore)
""",
        way,
        restore=restore,
    )

    assert {32, 33} <= signals(parsed(out["ours"])["SigIgn"])
    assert not {32, 33} & signals(parsed(out["child"])["SigIgn"])


def test_signal_mask_is_inherited(way: Way) -> None:
    """Without ``sigmask`` a child has the mask of the thread that started it."""
    out = in_fresh(
        """
mask = {signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMAX}
signal.pthread_sigmask(signal.SIG_SETMASK, mask)
out["child"] = status()
out["emptied"] = status(sigmask=[])
out["ours"] = signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
""",
        way,
    )

    assert signals(parsed(out["child"])["SigBlk"]) == {signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMAX}
    assert signals(parsed(out["emptied"])["SigBlk"]) == set()
    assert out["ours"]


def test_signal_mask_can_be_given(way: Way) -> None:
    """With ``sigmask`` a child has exactly that mask, and we keep ours."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    wanted = {1, 15, 34, 64}

    assert signals(status(way, sigmask=wanted)["SigBlk"]) == wanted
    assert signals(status(way, sigmask=[])["SigBlk"]) == set()
    assert signals(status(way)["SigBlk"]) == {int(number) for number in before}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_no_new_privs(way: Way) -> None:
    """``no_new_privs`` is set in a child on demand, and never in us."""
    assert status(way, no_new_privs=True)["NoNewPrivs"] == "1"
    assert status(way)["NoNewPrivs"] == "0"
    assert parsed(Path("/proc/self/status").read_text())["NoNewPrivs"] == "0"


# ------------------------------------------------------- together, and failing


def test_one_spawn_does_not_cost_the_next_its_way(way: Way) -> None:
    """A program that has just been started stands in nobody's way: the next goes by the same."""
    # Under pressure, because it is about the moment after execve, when the kernel may still
    # hold our memory for the child: of 100 pairs, 7 to 95 were refused with a deadline.
    running = []
    try:
        for _ in range(100):
            running.append(safespawn.spawn(["/bin/true"], **way))
    finally:
        for process in running:
            process.wait()

    assert {process.report.strategy for process in running} == {way["strategy"]}


def test_all_options_at_once(way: Way, tmp_path: Path) -> None:
    """Options do not get in each other's way."""
    master, slave = os.openpty()
    cpu = min(os.sched_getaffinity(0))
    try:
        told = story(
            way,
            executable=helpers.SYSTEM_PYTHON,
            env={"A": "b"},
            cwd=tmp_path,
            stdin=safespawn.DEVNULL,
            stderr=safespawn.STDOUT,
            fds={7: slave},
            start_new_session=True,
            controlling_terminal=slave,
            umask=0o077,
            nice=5,
            cpu_affinity=[cpu],
            rlimits={resource.RLIMIT_NOFILE: 32},
            pdeathsig=signal.SIGTERM,
            sigmask=[signal.SIGUSR2],
            no_new_privs=True,
        )
        name = os.ttyname(slave)
    finally:
        os.close(master)
        os.close(slave)

    assert told["env"]["A"] == "b"
    assert "HOME" not in told["env"]
    assert (told["cwd"], told["umask"], told["nice"], told["cpus"]) == (str(tmp_path), 0o077, 5, [cpu])
    assert told["sid"] == told["pgid"] == told["pid"]
    assert told["tty"] != 0
    assert told["limits"]["RLIMIT_NOFILE"] == [32, 32]
    assert told["pdeathsig"] == signal.SIGTERM
    assert signals(told["status"]["SigBlk"]) == {signal.SIGUSR2}
    assert told["status"]["NoNewPrivs"] == "1"
    assert sorted(told["fds"]) == ["0", "1", "2", "7"]
    assert (told["fds"]["0"], told["fds"]["7"]) == ("/dev/null", name)
    assert told["fds"]["1"] == told["fds"]["2"]


NO_FILES = int(Path("/proc/sys/fs/nr_open").read_text())


@pytest.mark.parametrize(
    ("options", "stage", "number"),
    [
        ({"cwd": "/no/such/directory"}, "open-cwd", errno.ENOENT),
        ({"cwd": "/dev/null"}, "open-cwd", errno.ENOTDIR),
        ({"process_group": 2**22}, "process-group", errno.EPERM),
        ({"cpu_affinity": [65535]}, "affinity", errno.EINVAL),
        ({"rlimits": {resource.RLIMIT_NOFILE: NO_FILES + 1}}, "rlimits", errno.EPERM),
        ({"rlimits": {15: 1, resource.RLIMIT_NOFILE: NO_FILES + 1}}, "rlimits", errno.EPERM),
        ({"start_new_session": True, "controlling_terminal": 0}, "terminal", errno.ENOTTY),
    ],
)
def test_option_that_fails_names_its_stage(
    way: Way, tmp_path: Path, options: dict[str, Any], stage: str, number: int
) -> None:
    """An option that the system refuses runs nothing, and the exception says where and why."""
    marker = tmp_path / "ran"
    null = os.open("/dev/null", os.O_RDONLY)
    if "controlling_terminal" in options:
        options = {**options, "controlling_terminal": null}

    try:
        with pytest.raises(OSError) as caught:
            safespawn.spawn(["/usr/bin/touch", str(marker)], **options, **way)
    finally:
        os.close(null)

    if way["strategy"] == "posix_spawn" and not stage.startswith("open"):
        stage = "posix-spawn"  # libc does not say where
    problem: Any = caught.value
    assert (problem.stage, problem.errno) == (stage, number)
    assert (problem.report.outcome, problem.report.stage, problem.report.errno) == ("failed", stage, number)
    assert not marker.exists()


def test_cwd_descriptor_that_is_no_directory(way: Way) -> None:
    """A descriptor of a file is no working directory, and says so."""
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(NotADirectoryError) as caught:
            safespawn.spawn(["/bin/true"], cwd=fd, **way)
    finally:
        os.close(fd)

    assert caught.value.filename == fd
