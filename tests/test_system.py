"""``system`` and ``popen``: a program instead of a shell where that is the same, and all that os has of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import helpers
import safespawn
from safespawn import _binding, _shell, _spawn

SHELLS = ["/bin/dash", "/bin/bash"]
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program ``tell`` in front of PATH, which writes its arguments, and have a directory to be in."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "tell"
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$0" "$@"\necho >&2 err\nexit 7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    for name in [name for name in os.environ if name.startswith("BASH") or not name.isidentifier()]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return program


def plain(command: str | bytes) -> _shell.Command | None:
    """Return what is run without a shell."""
    return _shell.without_shell(os.fsencode(command), _binding.environment())


def started(make: Any) -> list[tuple[str, ...]]:
    """Return the argument vectors that were started meanwhile."""
    seen: list[tuple[str, ...]] = []
    start = _spawn.start_as

    def told_start(request: Any, handle: Any, *more: Any, **options: Any) -> Any:
        seen.append(tuple(os.fsdecode(word) for word in request.argv))
        return start(request, handle, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_spawn, "start_as", told_start)
        make()
    return seen


# --------------------------------------------------------------------- which commands

PIECES = st.sampled_from(
    ["tell", "tell", "a", "-x", "a=b", "A=1", " ", "\t", "  ", "'q q'", '"d d"', "''", "$x", "~", "*", "?", "#", "!", "{a,b}", "%1", "^", "+x",
     "\\", "'", '"', "`", "|", "&", ";", "<", ">", "(", ")", "\n", "é", "0", "2", ":", "[", "]", "@", "if", "time", "echo", "=", "a'b'\"c\"", "\x7f"]
)  # fmt: skip
COMMANDS = st.one_of(
    st.lists(PIECES, max_size=7).map("".join),
    st.lists(PIECES, max_size=7).map(lambda words: "tell " + " ".join(words)),
    st.text(st.characters(min_codepoint=1, max_codepoint=0x17F), max_size=12).map(lambda text: "tell " + text),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(command=COMMANDS)
@example(command="tell 'a b'\"c d\"e ''")
@example(command="tell a=b ~a %1 +x -- -")
@example(command=" \ttell\t")
@example(command='tell "#" \'$x\' "*"')
def test_words_are_those_of_the_shells(told: Path, command: str) -> None:
    """What runs without a shell is what both shells would run: same arguments, exit code and output."""
    found = plain(command)
    if found is None:
        return
    assert found.program == os.fsencode(told)
    ours = subprocess.run(found.argv, executable=found.program, capture_output=True, check=False)
    for shell in SHELLS:
        done = subprocess.run([shell, "-c", command], capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (ours.returncode, ours.stdout, ours.stderr)
    words = ours.stdout.split(b"\0")[1:-1]
    assert words == found.argv[1:]


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("tell", ["tell"]),
        (" tell  a\tb ", ["tell", "a", "b"]),
        ("tell 'a b' \"c d\" e''f", ["tell", "a b", "c d", "ef"]),
        ("'tell' a=b,c:d@e%f+g", ["tell", "a=b,c:d@e%f+g"]),
        ("tell '$x' '*' \"~\" '\\'", ["tell", "$x", "*", "~", "\\"]),
    ],
)
def test_plain_commands_need_no_shell(told: Path, command: str, argv: list[str]) -> None:
    """Words of plain characters and simple quotes are a program's."""
    found = plain(command)
    assert found is not None
    assert [os.fsdecode(word) for word in found.argv] == argv


@pytest.mark.parametrize(
    "command",
    ["", " ", "tell $x", "tell *", "tell ~", "tell a|b", "tell;tell", "tell&", "tell >f", "tell `a`", "tell \\a", "tell 'a", "tell\ntell",
     "tell \"$x\"", "tell \"!\"", "tell {a,b}", "tell a[b]", "tell #", "A=1 tell", "A=1", "''", "-c", "+x", "%1", "!", "if", "time tell",
     "echo a", "'echo' a", "true", "test a", "[ a", "cd /", "exec tell", ". tell", ":", "no-such-program", "./bin/tell", "bin", "/", "tell é",
     "tell a\0b"],
)  # fmt: skip
def test_in_doubt_it_is_the_shells(told: Path, command: str) -> None:
    """Whatever else there is in it, and what is no program's: a shell reads it."""
    assert plain(command) is None


@pytest.mark.parametrize("name", sorted(_shell._OWN - set(b"! { } [[ ]] [ : .".split())))
def test_builtins_are_the_shells(told: Path, name: bytes) -> None:
    """A program of that name does not run in the place of what one of the shells does itself."""
    (told.parent / os.fsdecode(name)).symlink_to(told)

    assert plain(name) is None


@pytest.mark.parametrize("name", ["-c", "+x", "%1", "a=b"])
def test_names_that_mean_something_to_a_shell(told: Path, name: str) -> None:
    """A program of that name does not run in the place of what a shell makes of the word."""
    (told.parent / name).symlink_to(told)

    assert plain(f"{name} tell") is None


def test_all_builtins_are_known() -> None:
    """What bash says of itself, and what dash takes for one of its own."""
    told = subprocess.run(["/bin/bash", "-c", "compgen -bk"], capture_output=True, check=True).stdout.split()

    assert set(told) <= _shell._OWN
    for name in (b"chdir", b"local", b"echo", b"printf", b"test", b"kill"):
        assert name in _shell._OWN


@pytest.mark.parametrize(
    ("text", "mode"), [("echo hi\n", 0o755), ("", 0o755), ("#!/bin/sh\n", 0o644), ("#", 0o755)]
)
def test_what_the_kernel_does_not_run(told: Path, text: str, mode: int) -> None:
    """A script without an interpreter, and a file that may not be run: a shell sees to it."""
    told.write_text(text)
    told.chmod(mode)

    assert plain("tell") is None
    assert plain(str(told)) is None


@pytest.mark.parametrize(
    "variables",
    [{"BASH_FUNC_tell%%": "() { echo f; }"}, {"BASH_ENV": "x"}, {"SHELLOPTS": "xtrace"}, {"IFS": "e"}, {"PPID": "7"}, {"A.B": "c"},
     {"PATH": ""}, {"PATH": "bin:BIN"}, {"PATH": "/a%builtin:BIN"}, {"POSIXLY_CORRECT": "1"}],
)  # fmt: skip
def test_environment_that_a_shell_heeds(told: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Functions that were exported, options, and what a shell would take away or change: a shell sees to it."""
    assert plain("tell") is not None
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("BIN", str(told.parent)))

    assert plain("tell") is None


def test_another_shell_is_asked(told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /bin/sh is neither dash nor bash, nobody knows what it does itself."""
    (tmp_path / "busybox").symlink_to("/bin/cat")
    monkeypatch.setattr(_shell, "SHELL", os.fsencode(tmp_path / "busybox"))

    assert plain("tell") is None


@pytest.mark.parametrize("pwd", [None, "/no/such", "/usr", "relative", "."])
def test_environment_is_that_of_the_shell(told: Path, monkeypatch: pytest.MonkeyPatch, pwd: str | None) -> None:
    """A program is told the directory that it is in, as a shell tells it, and nothing else is new."""
    monkeypatch.delenv("PWD", raising=False)
    if pwd is not None:
        monkeypatch.setenv("PWD", pwd)
    found = plain("env -0")
    assert found is not None
    expected = subprocess.run(["/bin/dash", "-c", "env -0"], capture_output=True, check=True).stdout

    assert found.env is not None
    assert sorted(b"=".join(pair) for pair in found.env.items()) == sorted(expected.split(b"\0")[:-1])


def test_directory_that_is_named_right_stays(told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PWD by another name of the directory is kept, as shells keep it."""
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv("PWD", f"{tmp_path}/link")
    found = plain("tell")

    assert found is not None
    assert found.env is None


# -------------------------------------------------------------------------------- system


@pytest.mark.parametrize(
    "command",
    ["/bin/true", "/bin/false", "tell a b", "exit 3", "kill -TERM $$", "no-such-program", "/", "./x", "", ";", "  ",
     b"exit 4", Path("/bin/true"), "printf 'a b'", "tell \xff", "exec >&- <&-; exit 5"],
)  # fmt: skip
def test_system_is_as_os_has_it(told: Path, command: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Wait status, output and messages are the same."""
    status = os.system(command)
    theirs = capfd.readouterr()

    assert safespawn.system(command) == status
    assert capfd.readouterr() == theirs


def test_program_that_is_killed_is_told_of_as_the_shell_does(told: Path) -> None:
    """By an exit code where the shell outlives its program, for dash does so; only its message is not there."""
    told.write_text("#!/bin/sh\nkill -TERM $$\n")

    assert safespawn.system("tell") == os.system("tell")
    assert safespawn.popen("tell").close() == os.popen("tell").close()


def test_system_of_a_plain_command_starts_no_shell(told: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The program itself is started, and a shell for what needs one."""
    assert started(lambda: safespawn.system("tell 'a b'")) == [("tell", "a b")]
    assert started(lambda: safespawn.system("tell; exit 3")) == [("sh", "-c", "tell; exit 3")]


def test_system_asks_the_shell_what_is_wrong(told: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A program that does not start is told of by a shell, with its exit code."""
    told.write_text("#!/no/such/interpreter\n")

    assert started(lambda: safespawn.system("tell")) == [("tell",), ("sh", "-c", "tell")]
    assert os.waitstatus_to_exitcode(safespawn.system("tell")) in (126, 127)


@pytest.mark.parametrize(("command", "error"), [(3, TypeError), (None, TypeError), ("a\0b", ValueError)])
def test_system_of_what_is_no_command(command: Any, error: type[Exception]) -> None:
    """The exceptions are those of os.system."""
    with pytest.raises(error):
        os.system(command)
    with pytest.raises(error):
        safespawn.system(command)


STATE = """
import ctypes
def state():
    # SIGINT, SIGQUIT, SIGCHLD: blocked, ignored, caught.
    text = open("/proc/thread-self/status").read()
    return [int(text.split(name + ":\\t")[1].split()[0], 16) & 0x10006 for name in ("SigBlk", "SigIgn", "SigCgt")]
"""

@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("command", ["grep Sig /proc/self/status", "grep Sig /proc/self/status; :"])
def test_signals_of_the_command(ignored: bool, command: str) -> None:
    """It ignores and blocks what it would behind the shell, which takes SIGCHLD for itself, and dash the mask too."""
    out = helpers.run_snippet(
        STATE
        + """
signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGCHLD])
before = state()
read, write = os.pipe()
os.dup2(write, 1)
for name, run in (("theirs", os.system), ("ours", safespawn.system)):
    out[name] = [run(command), dict(line.split(":\\t") for line in os.read(read, 5000).decode().splitlines())]
out["restored"] = state() == before
""",
        ignored=ignored,
        command=command,
    )
    ours, theirs = out["ours"][1], out["theirs"][1]

    assert out["ours"][0] == out["theirs"][0] == 0
    assert out["restored"] is True
    libc_own = 3 << 31  # posix_spawn of glibc leaves 32 and 33 ignored
    assert int(ours["SigIgn"], 16) == int(theirs["SigIgn"], 16) & ~libc_own
    assert ours["SigCgt"] == theirs["SigCgt"]
    assert ours["SigBlk"] == theirs["SigBlk"]


def test_ignored_children_are_not_ignored_by_the_command() -> None:
    """A shell takes SIGCHLD for itself, so a program behind one has it default: one without a shell too."""
    out = helpers.run_snippet(
        """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
read, write = os.pipe()
os.dup2(write, 1)
for name, run in (("theirs", os.system), ("ours", safespawn.system)):
    run("grep SigIgn /proc/self/status")
    out[name] = int(os.read(read, 5000).split()[1], 16) >> (signal.SIGCHLD - 1) & 1
"""
    )
    assert out == {"theirs": 0, "ours": 0}


def test_several_system_at_once() -> None:
    """As long as one of several waits SIGINT is ignored; the last one puts it back."""
    out = helpers.run_snippet(
        STATE
        + """
import threading
before = state()
pipes = [os.pipe() for _ in range(3)]
ready, said = os.pipe()
me = f"/proc/{os.getpid()}/fd"
threads = [threading.Thread(target=safespawn.system, args=(f"echo >{me}/{said}; read x <{me}/{read}",)) for read, _ in pipes]
seen = []
for thread in threads:
    thread.start()
    os.read(ready, 1)
for (_, write), thread in zip(pipes, threads):
    seen.append(state()[1] & 6)
    os.write(write, b"\\n")
    thread.join()
out["ignored"] = seen
out["restored"] = state() == before
"""
    )

    assert out == {"ignored": [6, 6, 6], "restored": True}


def test_handler_that_raises_during_system(tmp_path: Path) -> None:
    """It is raised when the command has ended, and the signals are ours again."""
    out = helpers.run_snippet(
        STATE
        + """
class Told(Exception):
    pass

def handler(number, frame):
    out["meanwhile"] = state()
    open(where + "/handled", "w").close()
    raise Told

signal.signal(signal.SIGUSR1, handler)
before = state()
try:
    safespawn.system(f"kill -USR1 {os.getpid()}; while ! test -e {where}/handled; do :; done; echo >{where}/ended")
except Told:
    out["raised"] = True
out["ended"] = os.path.exists(where + "/ended")
out["restored"] = state() == before
out["left"] = len([one for one in safespawn._child._abandoned if not one.done])
""",
        where=os.fspath(tmp_path),
    )

    blocked, ignored, _ = out.pop("meanwhile")
    assert blocked & 0x10000
    assert ignored & 6 == 6
    assert out == {"raised": True, "ended": True, "restored": True, "left": 0}


def test_refused_system_leaves_the_signals() -> None:
    """A refusal raises, and the signals are ours again."""
    out = helpers.run_snippet(
        STATE
        + """
from safespawn import _policy
before = state()
safespawn.guards.require("fork")
_policy._Process.options = {"strategy": "vfork"}
try:
    safespawn.system("/bin/true")
except safespawn.UnsafeSpawn as refusal:
    out["refused"] = refusal.guard
out["restored"] = state() == before
"""
    )

    assert out == {"refused": "alone-or-apart", "restored": True}


def test_system_in_a_child_of_ours() -> None:
    """A child that a thread forks while another waits in system has a count of its own."""
    out = helpers.run_snippet(
        STATE
        + """
import threading
ready, said = os.pipe()
go, release = os.pipe()
me = f"/proc/{os.getpid()}/fd"
thread = threading.Thread(target=safespawn.system, args=(f"echo >{me}/{said}; read x <{me}/{go}",))
thread.start()
os.read(ready, 1)
pid = os.fork()
if pid == 0:
    inherited = state()
    code = safespawn.system("exit 3")
    os._exit(0 if code == 3 << 8 and state() == inherited else 1)
out["child"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
out["ignored"] = state()[1] & 6
os.write(release, b"\\n")
thread.join()
out["after"] = state()[1] & 6
"""
    )

    assert out == {"child": 0, "ignored": 6, "after": 0}


@pytest.mark.parametrize("command", ["ls /proc/self/fd", "ls /proc/self/fd; :"])
def test_system_keeps_descriptors(command: str) -> None:
    """What is inheritable stays open, and what is closed among 0 to 2 stays closed, as with os.system."""
    out = helpers.run_snippet(
        """
import fcntl
read, write = os.pipe()
os.dup2(write, 77)
os.dup2(write, 1)
os.close(0)
for name, run in (("theirs", os.system), ("ours", safespawn.system)):
    out[name] = [run(command), os.read(read, 5000).decode().split()]
""",
        command=command,
    )

    assert "77" in out["ours"][1]
    assert out["ours"] == out["theirs"]


def test_audit_event_of_system(tmp_path: Path) -> None:
    """The event of os.system is raised, and the spawn is no bypass."""
    out = helpers.run_snippet(
        """
from safespawn import audit
events = []
sys.addaudithook(lambda name, args: events.append([name, repr(args)]) if name in ("os.system", "subprocess.Popen") else None)
with audit.open(where + "/ledger"):
    safespawn.system("/bin/true")
    safespawn.popen("/bin/true").close()
out["events"] = events
out["records"] = [json.loads(line)["ev"] for line in open(where + "/ledger")]
""",
        where=os.fspath(tmp_path),
    )

    assert out["events"] == [
        ["os.system", "(b'/bin/true',)"],
        ["subprocess.Popen", "('/bin/sh', ['/bin/sh', '-c', '/bin/true'], None, None)"],
    ]
    spawns = ["spawn.intent", "spawn.started", "spawn.exit"]
    assert [one for one in out["records"] if one.startswith("spawn")] == spawns * 2


# --------------------------------------------------------------------------------- popen


@pytest.mark.parametrize("command", ["tell a", "tell a; exit 4", "echo x", "kill $$", "no-such-program 2>&1", "printf '\\303\\251'"])
def test_popen_reads_as_os_has_it(told: Path, command: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Text and result of close are the same."""
    seen = []
    for popen in (os.popen, safespawn.popen):
        file = popen(command)
        seen.append((file.read(), file.close(), capfd.readouterr()))

    assert seen[0] == seen[1]


def test_popen_writes(capfd: pytest.CaptureFixture[str]) -> None:
    """What is written arrives, in the locale's encoding."""
    with safespawn.popen("cat", "w") as file:
        file.write("text \u00e9\n")

    assert capfd.readouterr().out == "text \u00e9\n"


def test_popen_of_a_plain_command_starts_no_shell(told: Path) -> None:
    """The program itself is started, and a shell for what needs one."""
    assert started(lambda: safespawn.popen("cat 'a b' 2").close()) == [("cat", "a b", "2")]
    assert started(lambda: safespawn.popen("exit 3").close()) == [("/bin/sh", "-c", "exit 3")]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((b"true",), TypeError), ((["true"],), TypeError), (("true", "rb"), ValueError), (("true", "r", 0), ValueError),
     (("true", "r", None), ValueError), (("true", "r", "1"), TypeError), (("a\0b",), ValueError)],
)  # fmt: skip
def test_popen_of_what_is_no_command(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    """The exceptions are those of os.popen."""
    with pytest.raises(error):
        os.popen(*arguments)
    with pytest.raises(error):
        safespawn.popen(*arguments)


def test_popen_closes_descriptors() -> None:
    """As os.popen: what is inheritable is closed in the command."""
    out = helpers.run_snippet(
        """
os.dup2(0, 77)
for name, popen in (("theirs", os.popen), ("ours", safespawn.popen)):
    with popen("ls /proc/self/fd") as file:
        out[name] = file.read().split()
"""
    )

    assert out["ours"] == out["theirs"]
    assert "77" not in out["ours"]


def test_cpythons_own_tests_of_popen() -> None:
    """CPython's test_popen passes with our function in the place of os.popen."""
    text = "import os, safespawn, test.test_popen as t, unittest; os.popen = safespawn.popen; unittest.main(t)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, cwd=helpers.ROOT)

    assert done.returncode == 0, done.stderr
    assert "OK" in done.stderr
