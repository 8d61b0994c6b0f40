"""`run`: everything that it shares with subprocess.run, and the report besides."""

from __future__ import annotations

import errno
import json
import locale
import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import helpers
import safespawn
from safespawn import DEVNULL, PIPE, STDOUT, audit, run

MIB = 1 << 20
#: Only ends a test that has failed already.
PATIENCE = 60.0


@pytest.fixture(params=["vfork", "fork"])
def strategy(request: pytest.FixtureRequest) -> str:
    """Return each strategy in turn."""
    return str(request.param)


def sh(text: str, *arguments: object) -> list[str]:
    """Return the command that runs a shell text; ``arguments`` are $1 and so on."""
    return ["/bin/sh", "-c", text, "sh", *map(str, arguments)]


# ---------------------------------------------------------------- the answer


def test_completed_process(strategy: str) -> None:
    """The answer is a subprocess.CompletedProcess with the arguments as given and the report."""
    argv = sh("echo out; echo err >&2; exit 3")

    done = run(argv, capture_output=True, strategy=strategy)

    assert isinstance(done, subprocess.CompletedProcess)
    assert isinstance(done, safespawn.CompletedProcess)
    assert done.args is argv
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert (done.report.outcome, done.report.strategy) == ("exec", strategy)
    assert repr(done) == repr(subprocess.run(argv, capture_output=True, check=False))


def test_nothing_captured() -> None:
    """Without pipes stdout and stderr are None."""
    done = run(["/bin/true"])

    assert (done.returncode, done.stdout, done.stderr) == (0, None, None)


def test_killed_by_a_signal() -> None:
    """A program killed by signal N has the return code -N."""
    assert run(sh("kill -TERM $$")).returncode == -signal.SIGTERM


def test_stdout_alone() -> None:
    """One stream can be captured, and stderr can join it."""
    alone = run(sh("echo out; echo err >&2"), stdout=PIPE, stderr=DEVNULL)
    joined = run(sh("echo out; echo err >&2"), stdout=PIPE, stderr=STDOUT)

    assert (alone.stdout, alone.stderr) == (b"out\n", None)
    assert (joined.stdout, joined.stderr) == (b"out\nerr\n", None)


@pytest.mark.parametrize("argv", ["/bin/true", b"/bin/true", Path("/bin/true"), "true"])
def test_single_argument(argv: str | bytes | Path) -> None:
    """A single str, bytes or path is a program without arguments, never a shell command."""
    done = run(argv)

    assert done.args is argv
    assert done.returncode == 0


def test_single_string_is_not_split() -> None:
    """A str with blanks is the name of one program, which is missing."""
    with pytest.raises(FileNotFoundError) as caught:
        run("/bin/echo hello; echo world")

    assert caught.value.filename == "/bin/echo hello; echo world"


# ---------------------------------------------------------------- in and out


def test_input(strategy: str) -> None:
    """Input goes to stdin, a MiB of it as well, and empty input is the end of file."""
    data = os.urandom(MIB)

    assert run(["/bin/cat"], input=data, stdout=PIPE, strategy=strategy).stdout == data
    assert run(["/bin/cat"], input=b"", stdout=PIPE, strategy=strategy).stdout == b""
    assert run(["/bin/cat"], input=bytearray(b"x"), stdout=PIPE, strategy=strategy).stdout == b"x"
    assert run(["/bin/cat"], input=memoryview(b"y"), stdout=PIPE, strategy=strategy).stdout == b"y"


def test_input_without_captured_output(tmp_path: Path) -> None:
    """Input works where nothing is captured."""
    with open(tmp_path / "out", "wb") as out:
        done = run(["/bin/cat"], input=b"to a file", stdout=out)

    assert done.stdout is None
    assert (tmp_path / "out").read_bytes() == b"to a file"


def test_input_that_nobody_reads() -> None:
    """A program that does not read its input is no error."""
    assert run(sh("exit 4"), input=bytes(MIB)).returncode == 4


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({"text": True}, "grün\n", "grün\n"),
        ({"encoding": "latin-1"}, "grün", "grün"),
        ({"encoding": "utf-16"}, "grün", "grün"),
        ({"encoding": "ascii", "errors": "replace"}, "grün", "gr?n"),
        ({"errors": "strict"}, "x", "x"),
    ],
)
def test_text(options: dict[str, object], given: str, expected: str) -> None:
    """Text, encoding or errors, each alone, makes input and output str."""
    if locale.getpreferredencoding(do_setlocale=False).lower() != "utf-8" and options == {"text": True}:
        pytest.skip("needs a UTF-8 locale")

    assert run(["/bin/cat"], input=given, capture_output=True, **options).stdout == expected


def test_encoding_is_the_one_named() -> None:
    """The bytes on the wire are those of the encoding."""
    assert run(["/usr/bin/od", "-An", "-tx1"], input="ü", encoding="latin-1", stdout=PIPE).stdout.strip() == "fc"


def test_errors_decides_on_undecodable_output() -> None:
    """Output that is no text raises UnicodeDecodeError, or what errors= says is done."""
    argv = ["/usr/bin/printf", r"a\377b"]
    with pytest.raises(UnicodeDecodeError):
        run(argv, stdout=PIPE, encoding="utf-8")

    assert run(argv, stdout=PIPE, encoding="utf-8", errors="surrogateescape").stdout == "a\udcffb"


def test_universal_newlines() -> None:
    """Every kind of line end becomes a newline in text, and nothing changes in bytes."""
    argv = ["/usr/bin/printf", r"a\r\nb\rc\nd\r\r\ne\n\r"]

    for text in (True, None):
        ours = run(argv, capture_output=True, text=text)
        theirs = subprocess.run(argv, capture_output=True, text=text, check=False)
        assert ours.stdout == theirs.stdout
    assert run(argv, stdout=PIPE, text=True).stdout == "a\nb\nc\nd\n\ne\n\n"


def test_stderr_is_decoded_too() -> None:
    """Text is for both outputs."""
    assert run(sh("echo err >&2"), capture_output=True, text=True).stderr == "err\n"


# ---------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    "options",
    [
        {"input": b"x", "stdin": DEVNULL},
        {"input": b"x", "stdin": PIPE},
        {"input": b"", "stdin": DEVNULL},
        {"capture_output": True, "stdout": PIPE},
        {"capture_output": True, "stderr": DEVNULL},
        {"capture_output": True, "stderr": STDOUT},
    ],
)
@pytest.mark.threat("T-17")
def test_conflicts(options: dict[str, object], tmp_path: Path) -> None:
    """Two options for one stream are a ValueError, as in subprocess, and nothing runs."""
    marker = tmp_path / "marker"
    with pytest.raises(ValueError, match="std"):
        run(["/usr/bin/touch", marker], **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="std"):
        subprocess.run(["/usr/bin/touch", marker], check=False, **options)  # type: ignore[call-overload]

    assert not marker.exists()


def test_none_is_no_conflict() -> None:
    """A stream given as None is not given."""
    assert run(["/bin/cat"], input=b"x", stdin=None, capture_output=True, stdout=None).stdout == b"x"


@pytest.mark.parametrize(
    ("options", "problem", "match"),
    [
        ({"input": "str"}, TypeError, "str"),
        ({"input": 5}, TypeError, "5"),
        ({"input": 5, "text": True}, TypeError, "5"),
        ({"input": [65]}, TypeError, "65"),
        ({"encoding": "no-such-code"}, LookupError, "no-such-code"),
        ({"errors": "no-such-handler"}, LookupError, "no-such-handler"),
        ({"input": "ü", "encoding": "ascii"}, UnicodeEncodeError, "ascii"),
        ({"timeout": "soon"}, TypeError, "soon"),
        ({"shell": True}, TypeError, "shell"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ],
)
@pytest.mark.threat("T-17")
def test_bad_values(options: dict[str, object], problem: type[Exception], match: str, tmp_path: Path) -> None:
    """A bad value raises before anything is started, and the message names it."""
    marker = tmp_path / "marker"
    with pytest.raises(problem, match=match):
        run(["/usr/bin/touch", marker], stdout=PIPE, **options)  # type: ignore[arg-type]

    assert not marker.exists()


# ---------------------------------------------------------------------- check


def test_check(strategy: str) -> None:
    """With check a code that is not 0 raises CalledProcessError with all that was written."""
    argv = sh("echo out; echo err >&2; exit 3")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(argv, check=True, capture_output=True, text=True, strategy=strategy)

    error = caught.value
    assert (error.returncode, error.cmd, error.output, error.stderr) == (3, argv, "out\n", "err\n")
    assert run(["/bin/true"], check=True).returncode == 0


def test_check_of_a_signal() -> None:
    """With check a death by signal raises too."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(sh("kill -KILL $$"), check=True)

    assert caught.value.returncode == -signal.SIGKILL


# -------------------------------------------------------------------- timeout


def test_timeout_kills_and_reaps(strategy: str) -> None:
    """After the timeout the program and its pipe are gone, and TimeoutExpired says how long it was."""
    read, write = os.pipe()
    argv = ["/bin/sleep", "1000"]
    try:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            run(argv, timeout=0.05, pass_fds=[write], strategy=strategy)
        os.close(write)
        assert select.select([read], [], [], PATIENCE)[0] == [read]
        assert os.read(read, 1) == b""
    finally:
        os.close(read)

    assert caught.value.timeout == 0.05
    assert caught.value.output is None
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_timeout_names_the_command_as_given() -> None:
    """TimeoutExpired.cmd is what the caller gave, as in subprocess."""
    for argv in (["/bin/sleep", "1000"], "/bin/cat"):
        read, write = os.pipe()
        try:
            with pytest.raises(subprocess.TimeoutExpired) as ours:
                run(argv, timeout=0.01, stdin=read)
            with pytest.raises(subprocess.TimeoutExpired) as theirs:
                subprocess.run(argv, timeout=0.01, check=False, stdin=read)
        finally:
            os.close(read)
            os.close(write)
        assert ours.value.cmd == theirs.value.cmd == argv


def test_timeout_has_partial_output() -> None:
    """TimeoutExpired carries what was written until then, as bytes, text or not."""
    argv = sh("echo out; echo err >&2; exec sleep 1000")
    for text in (None, True):
        # More patience each time: how fast the shell is must not decide.
        for timeout in (0.1, 1.0, PATIENCE):
            with pytest.raises(subprocess.TimeoutExpired) as caught:
                run(argv, timeout=timeout, capture_output=True, text=text)
            if caught.value.stderr:
                break
        assert (caught.value.output, caught.value.stderr) == (b"out\n", b"err\n")


def test_timeout_while_feeding() -> None:
    """A program that does not read a large input cannot keep us."""
    with pytest.raises(subprocess.TimeoutExpired):
        run(["/bin/sleep", "1000"], input=bytes(MIB), timeout=0.05)


def test_timeout_in_time() -> None:
    """A program that ends in time is not touched by its timeout."""
    assert run(sh("echo x"), timeout=PATIENCE, capture_output=True).stdout == b"x\n"
    assert run(["/bin/true"], timeout=PATIENCE).returncode == 0


def test_timeout_is_in_the_record(tmp_path: Path) -> None:
    """The record of the end says that our timeout killed it, and not so of another kill."""
    with audit.open(tmp_path / "ledger"):
        with pytest.raises(subprocess.TimeoutExpired):
            run(["/bin/sleep", "1000"], timeout=0.01)
        run(sh("kill -KILL $$"))

    ends = [r["exit"] for r in helpers.records(tmp_path / "ledger") if r["ev"] == "spawn.exit"]
    assert [end["signal"] for end in ends] == [9, 9]
    assert [end["timeout_killed"] for end in ends] == [True, False]


# ---------------------------------------------------------------- interrupted


@pytest.mark.parametrize("capture", [False, True])
def test_keyboard_interrupt_kills_and_reaps(capture: bool) -> None:
    """Ctrl-C while run waits kills the program, reaps it and comes through."""
    out = helpers.run_snippet(
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before = sorted(os.listdir("/proc/self/fd"))
        read, write = os.pipe()
        text = '''
        while read -r _ _ state _ < /proc/$PPID/stat && [ "$state" != S ]; do :; done
        kill -INT $PPID
        exec cat
        '''
        try:
            safespawn.run(["/bin/sh", "-c", text], stdin=read, capture_output=capture)
            out["interrupted"] = False
        except KeyboardInterrupt:
            out["interrupted"] = True
        try:
            os.waitpid(-1, os.WNOHANG)
            out["reaped"] = False
        except ChildProcessError:
            out["reaped"] = True
        os.close(read)
        os.close(write)
        out["leaked"] = sorted(os.listdir("/proc/self/fd")) != before
        """,
        capture=capture,
    )

    assert out == {"interrupted": True, "reaped": True, "leaked": False}


# ------------------------------------------------ the exceptions of subprocess


def _plain(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "plain").write_text("no program", encoding="ascii")
    (tmp_path / "plain").chmod(0o644)
    return {"args": [str(tmp_path / "plain")]}


def _no_format(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "noformat").write_text("echo a script without #!\n", encoding="ascii")
    (tmp_path / "noformat").chmod(0o755)
    return {"args": [str(tmp_path / "noformat")]}


def _empty_file(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "empty").touch(0o755)
    return {"args": [str(tmp_path / "empty")]}


def _no_interpreter(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "script").write_text("#!/no/such/interpreter\n", encoding="ascii")
    (tmp_path / "script").chmod(0o755)
    return {"args": [str(tmp_path / "script")]}


def _loop(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return {"args": [str(tmp_path / "loop")]}


def _in_path(tmp_path: Path) -> dict[str, object]:
    _plain(tmp_path)
    return {"args": ["plain"], "env": {"PATH": f"/no/such:{tmp_path}:/bin"}}


def _busy(tmp_path: Path) -> dict[str, object]:
    # Open for writing as long as the test runs: see the fixture below.
    (tmp_path / "busy").write_bytes(Path("/bin/true").read_bytes())
    (tmp_path / "busy").chmod(0o755)
    return {"args": [str(tmp_path / "busy")]}


CASES: dict[str, Callable[[Path], dict[str, object]]] = {
    "missing": lambda _: {"args": ["/no/such/program"]},
    "missing in PATH": lambda _: {"args": ["no-such-program-anywhere"]},
    "empty PATH": lambda _: {"args": ["no-such-program-anywhere"], "env": {"PATH": ""}},
    "a str": lambda _: {"args": "/no/such/program"},
    "below a file": lambda _: {"args": ["/etc/passwd/x"]},
    "not executable": _plain,
    "not executable in PATH": _in_path,
    "directory": lambda _: {"args": ["/etc"]},
    "directory with a slash": lambda _: {"args": ["/etc/"]},
    "a link to itself": _loop,
    "name too long": lambda _: {"args": ["/" + "x" * 300]},
    "path too long": lambda _: {"args": ["/x" * 3000]},
    "no format": _no_format,
    "empty file": _empty_file,
    "no interpreter": _no_interpreter,
    "executable=": lambda _: {"args": ["true"], "executable": "/no/such/program"},
    "cwd missing": lambda _: {"args": ["/bin/true"], "cwd": "/no/such/directory"},
    "cwd a file": lambda _: {"args": ["/bin/true"], "cwd": "/etc/passwd"},
    "cwd a path": lambda _: {"args": ["/bin/true"], "cwd": Path("/no/such/directory")},
    "cwd and program": lambda _: {"args": ["/no/such/program"], "cwd": "/no/such/directory"},
    "relative": lambda _: {"args": ["./no-such-program"], "cwd": "/"},
    "busy": _busy,
    "NUL": lambda _: {"args": ["/bin/true", "a\0b"]},
    "NUL in env": lambda _: {"args": ["/bin/true"], "env": {"A": "a\0b"}},
    "= in env": lambda _: {"args": ["/bin/true"], "env": {"A=B": "c"}},
    "huge argument": lambda _: {"args": ["/bin/true", "x" * (1 << 17)]},
    "huge argv": lambda _: {"args": ["/bin/true", *(["x" * 100_000] * 100)]},
    "huge variable": lambda _: {"args": ["/bin/true"], "env": {"A": "x" * (1 << 17)}},
}


def outcome(how: Callable[..., object], options: dict[str, object]) -> tuple[object, ...]:
    """Return what a call raised: class, errno and file name."""
    with pytest.raises((OSError, ValueError)) as caught:
        how(check=False, **options)
    error = caught.value
    name = getattr(error, "filename", None)
    return type(error), getattr(error, "errno", None), None if name is None else os.fspath(name)


@pytest.mark.parametrize("case", CASES)
def test_same_exceptions_as_subprocess(strategy: str, case: str, tmp_path: Path) -> None:
    """What cannot be started raises the class, errno and file name that subprocess raises."""
    options = CASES[case](tmp_path)

    def ours(args: object, **rest: object) -> object:
        return run(args, strategy=strategy, **rest)  # type: ignore[arg-type]

    writer = open(tmp_path / "busy", "ab") if case == "busy" else None
    try:
        theirs = outcome(subprocess.run, options)
        seen = outcome(ours, options)
    finally:
        if writer:
            writer.close()

    if "huge" in case:
        # subprocess blames the program; which value is too long is more use to people.
        assert seen[:2] == theirs[:2] == (OSError, errno.E2BIG)
    else:
        assert seen == theirs


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run as somebody whom modes bind")
def test_same_exceptions_where_modes_forbid(tmp_path: Path) -> None:
    """For a caller bound by modes an unreadable directory or program raises as in subprocess."""
    (tmp_path / "closed").mkdir(0o700)
    (tmp_path / "closed" / "true").write_bytes(Path("/bin/true").read_bytes())
    (tmp_path / "closed" / "true").chmod(0o755)
    helpers.make_readable(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    out = helpers.run_snippet(
        """
        import subprocess
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        tries = {
            "program": dict(args=[f"{closed}/true"]),
            "cwd": dict(args=["/bin/true"], cwd=closed),
            "PATH": dict(args=["true"], env={"PATH": closed}),
            "PATH goes on": dict(args=["true"], env={"PATH": f"{closed}:/bin"}),
            "PATH, then nothing": dict(args=["no-such"], env={"PATH": f"{closed}:/no/such"}),
        }
        for name, options in tries.items():
            for how, call in [("theirs", subprocess.run), ("ours", None)]:
                given = dict(options)
                try:
                    done = call(**given) if call else safespawn.run(given.pop("args"), **given)
                    out[f"{name} {how}"] = done.returncode
                except OSError as problem:
                    out[f"{name} {how}"] = [type(problem).__name__, problem.errno, problem.filename]
        """,
        closed=str(tmp_path / "closed"),
    )

    names = ("program", "cwd", "PATH", "PATH goes on", "PATH, then nothing")
    assert {n: out[f"{n} ours"] for n in names} == {n: out[f"{n} theirs"] for n in names}
    assert out["program ours"][0] == "PermissionError"
    assert out["PATH goes on ours"] == 0


def test_failure_carries_the_report(strategy: str) -> None:
    """The exception of a failed start has the report and the stage on it."""
    with pytest.raises(FileNotFoundError) as caught:
        run(["/no/such/program"], strategy=strategy)

    error = caught.value
    assert isinstance(error.report, safespawn.SpawnReport)  # type: ignore[attr-defined]
    assert error.report.outcome == "failed"  # type: ignore[attr-defined]
    assert error.report.errno == errno.ENOENT  # type: ignore[attr-defined]
    assert error.stage == error.report.stage == "lookup"  # type: ignore[attr-defined]


def test_failures_leave_nothing_behind(strategy: str, tmp_path: Path) -> None:
    """A failed start of any kind leaves no pipe, descriptor or child; the fixture looks."""
    for case in ("missing", "not executable", "no format", "cwd missing", "huge argv"):
        options = CASES[case](tmp_path)
        with pytest.raises(OSError):  # noqa: PT011 - which one is the business of the test above
            run(options.pop("args"), strategy=strategy, input=b"x", capture_output=True, **options)  # type: ignore[arg-type]


def test_program_sees_what_subprocess_gives() -> None:
    """A program started with no options has the state that subprocess gives it."""
    argv = helpers.probe_argv("state")
    ours = json.loads(run(argv, stdout=PIPE, stdin=DEVNULL, stderr=DEVNULL).stdout)
    theirs = json.loads(subprocess.run(argv, stdout=PIPE, stdin=DEVNULL, stderr=DEVNULL, check=False).stdout)
    # What differs from one process to the next.
    for state in (ours, theirs):
        del state["pid"]
        state["fds"] = {fd: name.partition(":")[0] for fd, name in state["fds"].items()}
        # libc ignores 32 and 33 in what it starts (make, for one), and that is inherited from
        # program to program; only we put them back.
        ignored = int(state["status"]["SigIgn"], 16)
        state["status"]["SigIgn"] = ignored & ~(3 << 31)

    assert ours == theirs
