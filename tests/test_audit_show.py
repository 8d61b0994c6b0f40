"""`safespawn audit show` and `follow`: what they print, choose, and answer."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ledgers
from ledgers import CROWDED, LAUNCHED, Chain
from safespawn._cli_progress import Progress
from safespawn.audit import _lines, _shown, spawns, table
from safespawn.audit.spawns import Event, Spawn

PATIENCE = 60.0


def command(*arguments: object) -> list[str]:
    """Return the command line."""
    return [sys.executable, "-m", "safespawn", "audit", *map(str, arguments)]


def view(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one of the commands to its end, in UTC and UTF-8."""
    options.setdefault("env", {**os.environ, "TZ": "UTC", "PYTHONUTF8": "1", "COLUMNS": "500"})
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger goes."""
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def eventful(path: Path) -> Path:
    """Return a ledger with one of everything."""
    return ledgers.write(path, ledgers.eventful())


def entries(*pieces: bytes) -> list[Spawn | Event]:
    """Return the spawns and events of some lines."""
    return list(spawns.join(_lines.parse(line, "x:1") for line in b"".join(pieces).splitlines()))


def shown(piece: bytes, *, width: int | None = None) -> list[str]:
    """Return the lines of a table about the one entry in some lines, with numbers for users."""
    (entry,) = entries(piece)
    return table.Table(width=width, names=table.numbers_only).lines(entry)


# ----------------------------------------------------------------- the table


def test_row_of_a_spawn(in_utc: None) -> None:
    """A row tells when, who as whom, by which way, what came of it, how long it took, the command and the tags."""
    chain = Chain()
    how = chain.how("launcher", (LAUNCHED,))
    line = chain.ran(["/bin/sh", "-c", "exit 3"], code=3, as_uid=33, tags={"job": "a b"}, how=how)

    assert shown(line) == [
        "2026-11-29 00:00:00.000 0→33             launcher exit 3                 1.2 ms  "
        "/bin/sh -c 'exit 3'  [job='a b']"
    ]


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have local time be UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def ended(**how: Any) -> bytes:
    """Return the lines of a spawn that ended so."""
    chain = Chain()
    sid, intent = chain.begun(["/bin/x"])
    return intent + chain.started(sid) + chain.ended(sid, **how)


def left_open(*, started: bool) -> bytes:
    """Return the lines of a spawn without an end."""
    chain = Chain()
    sid, intent = chain.begun(["/bin/x"])
    return intent + (chain.started(sid) if started else b"")


@pytest.mark.parametrize(
    ("lines", "result"),
    [
        (ended(code=0), "exit 0"),
        (ended(code=255), "exit 255"),
        (ended(signal=11, core=True), "SIGSEGV (core)"),
        (ended(signal=9, timeout_killed=True), "SIGKILL (timeout)"),
        (ended(signal=40), "signal 40"),
        (left_open(started=True), "running?"),
        (left_open(started=False), "may have run"),
        (Chain().failed(["/bin/x"]), "failed lookup ENOENT"),
        (Chain().failed(["/bin/x"], "exec", "", outcome="killed-before-exec"), "killed-before-exec exec"),
        (Chain().denied(["/bin/x"]), "refused"),
    ],
)
def test_results(lines: bytes, result: str) -> None:
    """Every end has its own words."""
    (spawn,) = entries(lines)

    assert isinstance(spawn, Spawn)
    assert _shown.result(spawn) == result


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (Chain().denied(["/bin/x"], "path-trusted: not ours"), "    refused: path-trusted: not ours"),
        (Chain().ran(["/bin/x"], how=Chain.how("fork", (CROWDED,))), f"    forked: {CROWDED}"),
        (Chain().failed(["/bin/x"], "exec", ""), "    No such file or directory"),
    ],
)
def test_reason_has_its_own_line(lines: bytes, why: str) -> None:
    """Why a spawn was refused, forked or failed without an errno is told below it."""
    assert shown(lines)[1:] == [why]


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, ""),
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1 µs"),
        (12_345, "12.3 µs"),
        (1_999_999, "2 ms"),
        (999_999_999, "1000 ms"),
        (1_500_000_000, "1.5 s"),
        (99_999_999_999, "100 s"),
        (100_000_000_000, "0:01:40"),
        (90_061_000_000_000, "25:01:01"),
        (-5, "-5 ns"),
    ],
)
def test_durations(ns: int | None, text: str) -> None:
    """Durations have the unit that suits them, and three digits."""
    assert _shown.duration(ns) == text


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("plain", "plain"),
        ("", "''"),
        ("two words", "'two words'"),
        ("it's", "'it'\"'\"'s'"),
        ("\x1b[31m", r"$'\x1b[31m'"),
        ("a\nb\\'c", r"$'a\x0ab\\\'c'"),
        ("\udcff", r"$'\xff'"),
        ("\u202etxt.exe", r"$'\u202etxt.exe'"),
        ("\U000e0041x", r"$'\U000e0041x'"),
        ("größe", "größe"),
    ],
)
def test_arguments_are_quoted(argument: str, text: str) -> None:
    """An argument is quoted as for a shell; what cannot be seen, or is not what it looks like, is escaped."""
    assert _shown.argument(argument).replace("'größe'", "größe") == text


@pytest.mark.parametrize("argument", ["a\nb\\'c", "\x01\x02$HOME`id`", "tab\there", "'\x7f'"])
def test_bash_reads_the_same_argument(argument: str) -> None:
    """What is shown with escapes is read back by bash as what it was."""
    done = subprocess.run(
        ["/bin/bash", "-c", f"printf %s {_shown.argument(argument)}"], capture_output=True, text=True, check=True
    )

    assert done.stdout == argument


def test_missing_arguments_are_told() -> None:
    """Arguments that the record has no room for are counted."""
    line = json.loads(Chain().begun(["/bin/x", "a"])[1])
    line["what"]["argc"] = 7

    assert shown(ledgers.encoded(line))[0].endswith("/bin/x a …(5 more)")


@pytest.mark.parametrize("name", ["/bin/login", "login", "-sh", ""])
def test_program_that_is_not_the_first_argument(name: str) -> None:
    """Whatever a program is called, the file that runs is told of."""
    line = shown(Chain().ran([name, "x"], path="/opt/evil"))[0]

    assert line.endswith(f" {name or repr('')} x (runs /opt/evil)")


@pytest.mark.parametrize("width", [20, 80, 109, 110, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Lines are cut to the width, wide characters counted as two, and what was cut ends in …."""
    chain = Chain()
    texts = ["x" * 300, "漢字" * 100, "e\u0301" * 200]
    for text in texts:
        lines = shown(chain.ran(["/bin/echo", text], tags={"k": text}, how=chain.how("fork", (CROWDED * 3,))), width=width)
        assert any("…" in line for line in lines)
        for line in lines:
            assert _shown.width(line) <= width


def test_narrow_terminal_has_the_command_below() -> None:
    """In 80 columns the columns take one line, and the command the next."""
    lines = shown(Chain().ran(["/bin/true"]), width=80)

    assert [len(lines[0]) <= 80, lines[1]] == [True, "    /bin/true"]


def test_widths() -> None:
    """A cut text fits exactly, also beside a character of two columns that does not."""
    assert [_shown.cut("abcdef", room) for room in (6, 5, 1, 0)] == ["abcdef", "abcd…", "…", ""]
    assert [_shown.cut("漢字漢字", room) for room in (8, 7, 6, 5)] == ["漢字漢字", "漢字漢…", "漢字…", "漢字…"]
    assert _shown.width("e\u0301") == 1


@pytest.mark.parametrize(
    ("event", "members", "detail"),
    [
        ("audit.degraded", {"lost": 3, "why": "ENOSPC"}, "records lost: 3; ENOSPC"),
        ("audit.restored", {"lost": 0, "resent": [7, 9]}, "records lost: 0; these come again: 7-9"),
        ("mirror.down", {"mirror": "journald", "why": "EAGAIN", "accepted": 5, "dropped": 2}, "journald: EAGAIN; 5 accepted, 2 dropped"),
        ("mirror.up", {"mirror": "syslog", "why": "", "accepted": 5, "dropped": 2}, "syslog; 5 accepted, 2 dropped"),
        ("chain.open", {"library": "1.0", "keys": {"epoch": 3}, "parent": None}, "mode require, with keys, library 1.0"),
        ("chain.open", {"library": "1.0", "keys": None, "parent": "abc"}, "mode require, without keys, library 1.0, forked from chain abc"),
        ("chain.close", {"lost": 0}, "nothing lost"),
        ("chain.close", {"lost": 2}, "records lost: 2"),
        ("breakglass", {"reason": "disk", "why": "full"}, "disk: full"),
        ("spawn.bypass", {"bypass": {"event": "os.exec", "argv": ["/bin/x", "a b"], "site": "a.py:3 f", "count": 2}}, "os.exec at a.py:3 f, 2 times: /bin/x 'a b'"),
        ("cred.change", {"change": {"lost": 4}}, "changes that were lost: 4"),
        ("cred.change", {"change": {"call": "setuid", "args": [5], "errno": 1, "name": "EPERM"}}, "setuid(5); failed with EPERM"),
        ("helper.lost", {"helper": {"pid": 7, "why": "it has ended", "asked": 3}}, "helper 7: it has ended"),
        ("helper.shrunk", {"helper": {"pid": 7, "policies": 2}}, "helper 7: 2 policies"),
        ("new.event", {"x": "\u202e\x1b"}, '{"x":"\\u202e\\u001b"}'),
    ],
)  # fmt: skip
def test_events(event: str, members: dict[str, Any], detail: str) -> None:
    """An event that is not of a spawn has a line with its name and what it says."""
    (line,) = shown(Chain().record(event, None, **members))

    assert line[41:80].strip() == event
    assert line[81:] == detail


def test_change_of_credentials() -> None:
    """A change of credentials shows what is different, each id that differs once."""
    (line,) = shown(Chain().changed())

    assert line.endswith("seteuid(65534); uids 0 → 0/65534/0/65534; eff 1fffeffffff → 0")


HOSTILE = st.text(
    st.one_of(st.characters(), st.sampled_from("\x1b\x9b\x07\r\n\x08\x7f\u202e\u2066\u200b\ufeff\ud800\udcff'\\\"$<>&"))
)


@settings(deadline=None)
@given(argv=st.lists(HOSTILE, min_size=1, max_size=3), tag=HOSTILE, width=st.sampled_from([None, 5, 80, 150]))
def test_nothing_reaches_a_terminal_but_what_can_be_printed(argv: list[str], tag: str, width: int | None) -> None:
    """Whatever arguments, tags, reasons and other members hold, each line is printable, and one line."""
    chain = Chain()
    pieces = [
        chain.ran(argv, tags={tag: tag}, how=chain.how("fork", (tag,))),
        chain.failed(argv, tag, tag, outcome=tag),
        chain.denied(argv, tag),
        chain.record("new.event", None, **{tag or "x": argv}),
        chain.record(tag, None, who={"pid": 1}),
        chain.record("spawn.bypass", None, bypass={"event": tag, "site": tag, "argv": argv}),
        chain.record("cred.change", None, change={"call": tag, "args": argv, "before": {"uids": argv}, "after": {"eff": tag}}),
    ]
    for entry in entries(*pieces):
        for line in table.Table(width=width).lines(entry):
            assert line.isprintable()


# --------------------------------------------------------------- the command


def test_show(eventful: Path) -> None:
    """Everything is shown in order of time with a head, all of it was read, and nothing is said beside it."""
    done = view("show", eventful)
    rows = [line for line in done.stdout.splitlines() if not line.startswith(" ")]

    assert (done.returncode, done.stderr) == (0, "")
    assert rows[0].split() == ["WHEN", "WHO", "WAY", "RESULT", "TOOK", "COMMAND"]
    assert [row[:23] for row in rows[1:]] == sorted(row[:23] for row in rows[1:])
    assert sum(" /bin/echo " in row for row in rows) == len(ledgers.HOSTILE) + 1
    assert "checkpoint" not in done.stdout
    assert done.stdout.replace("\n", "").isprintable()


def test_output_that_is_no_terminal_is_not_cut(path: Path) -> None:
    """Into a pipe or a file lines go whole."""
    ledgers.write(path, Chain().ran(["/bin/echo", "x" * 2000]))

    assert "x" * 2000 in view("show", path, env={**os.environ, "COLUMNS": "80"}).stdout


def test_show_all_has_checkpoints(eventful: Path) -> None:
    """--all shows checkpoints too; so does asking for them by name."""
    assert "checkpoint" in view("show", "--all", eventful).stdout
    (row,) = view("show", "--event", "check*", eventful).stdout.splitlines()[1:]
    assert "checkpoint" in row


def test_show_in_a_locale_without_arrows(eventful: Path) -> None:
    """Where the output takes ASCII only, other characters are escaped, and nothing fails."""
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "TZ": "UTC"}
    done = view("show", "-n", eventful, env=env)

    assert done.returncode == 0
    assert r"0\u219265534" in done.stdout


def test_numeric(eventful: Path) -> None:
    """-n shows uids instead of names."""
    assert " root→nobody " in view("show", eventful).stdout
    assert " 0→65534 " in view("show", "-n", eventful).stdout


def test_json(eventful: Path) -> None:
    """--json prints one object per spawn or event, in ASCII, joined."""
    done = view("show", "--json", eventful)
    made = [json.loads(line) for line in done.stdout.splitlines()]
    (nightly,) = [one for one in made if one["kind"] == "spawn" and (one["tags"] or {}).get("build") == "7"]

    assert done.stdout.isascii()
    assert (nightly["argv"], nightly["exit_code"], nightly["want_uid"]) == (["/bin/sh", "-c", "exit 3"], 3, 65534)
    assert {one["kind"] for one in made} == {"spawn", "event"}
    assert {"hex": "fffe1b5b33316d"} in [argument for one in made for argument in one.get("argv", [])]


def test_records(eventful: Path) -> None:
    """--records prints the very lines of what is wanted, all records of each spawn."""
    done = view("show", "--records", "--tag", "build=7", eventful)
    lines = eventful.read_text().splitlines()
    events = [json.loads(line)["ev"] for line in done.stdout.splitlines()]

    assert events == ["spawn.intent", "spawn.started", "spawn.exit"]
    assert set(done.stdout.splitlines()) < set(lines)


@pytest.mark.parametrize(
    ("options", "commands"),
    [
        (["--outcome", "failed,timed-out"], ["/bin/nonexistent", "/bin/slow"]),
        (["--outcome", "unknown"], ["/usr/bin/perhaps"]),
        (["--strategy", "launcher"], ["/bin/sh -c 'exit 3'"]),
        (["--program", "s[hl]*"], ["/bin/sh -c 'exit 3'", "/bin/slow", "/bin/sleep 100"]),
        (["--user", "nobody", "--event", "spawn.*"], ["/bin/sh -c 'exit 3'"]),
        (["--user", "1000", "--outcome", "refused"], ["/srv/jobs/tool --now"]),
        (["--tag", "job=nightly"], ["/bin/sh -c 'exit 3'", "/bin/slow"]),
        (["--tag", "job=nightly", "--tag", "build=7"], ["/bin/sh -c 'exit 3'"]),
        (["--event", "spawn.denied"], ["/srv/jobs/tool --now"]),
        (["--until", "2026-11-29T00:00:00.0005Z"], ["/bin/true"]),
        (["--since=2026-11-29T00:00:00.012Z", "--event", "spawn.intent"], ["/bin/date", "/usr/bin/perhaps"]),
        (["--since", "1s"], []),
    ],
)
def test_filters(eventful: Path, options: list[str], commands: list[str]) -> None:
    """Each filter leaves just what it says."""
    done = view("show", *options, eventful)
    rows = [line for line in done.stdout.splitlines()[1:] if not line.startswith(" ")]

    assert done.returncode == 0
    assert [row[81:].partition("  [")[0] for row in rows if "chain.open" not in row] == commands


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--since", "soon"], "a time such as 2026-11-29T10:00, yesterday or 2h (ago) needed, not 'soon'"),
        (["--user", "no-such-user"], "no such user on this host: 'no-such-user'"),
        (["--outcome", "fine"], "not 'fine'"),
        (["--strategy", "magic"], "not 'magic'"),
        (["--tag", "novalue"], "NAME=VALUE needed, not 'novalue'"),
        (["--event", "Spawn"], "not 'Spawn'"),
        (["--json", "--records"], "not allowed with"),
        (["--out", "x"], "unrecognized arguments"),
    ],
)
def test_bad_options(eventful: Path, options: list[str], told: str) -> None:
    """A value that means nothing is bad usage, and is shown."""
    done = view("show", eventful, *options)

    assert done.returncode == 125  # as of all commands
    assert told in done.stderr


def test_lines_that_are_no_records(path: Path) -> None:
    """Lines that are no records make exit code 1; stderr has the place of the first ones and counts the rest."""
    ledgers.write(path, Chain().ran(["/bin/true"]), b"gar\x1b[31mbage\n" * 25)
    done = view("show", path)
    told = done.stderr.splitlines()

    assert done.returncode == 1
    assert "/bin/true" in done.stdout
    assert told[0] == "safespawn audit show: ledger.jsonl:4: not the form of a record, or only a part of one"
    assert (len(told), told[-1]) == (21, "safespawn audit show: 5 more lines are no records")


def test_problem_cannot_order_a_terminal_around(path: Path) -> None:
    """What is told of a hostile line is printable."""
    ledgers.write(path, b'{"v":1,"c":"\\u001b[31m\\u202e","n":"\\u009b","ev":"x","t":1}\n')
    done = view("show", path)

    assert done.returncode == 1
    assert done.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize("kind", ["missing", "directory", "parent"])
def test_ledger_that_cannot_be_read(path: Path, kind: str) -> None:
    """A file that cannot be read makes exit code 2 and a message with its path."""
    where = path / "deeper" if kind == "parent" else path
    if kind != "missing":
        path.write_bytes(b"") if kind == "parent" else path.mkdir()
    done = view("show", where)
    why = {"missing": "No such file or directory", "directory": "Is a directory", "parent": "Not a directory"}[kind]

    assert (done.returncode, done.stderr) == (2, f"safespawn audit show: {where}: {why}\n")


def test_full_output(eventful: Path) -> None:
    """Output that cannot be written makes exit code 2."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("show", eventful), stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr == "safespawn audit show: output: No space left on device\n"


def test_no_output(eventful: Path) -> None:
    """Without a standard output there is exit code 2 and a word about it."""
    done = subprocess.run(
        ["/bin/bash", "-c", 'exec "$@" >&-', "sh", *command("show", eventful)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (2, "safespawn audit show: output: there is no standard output\n")


def test_standard_input(eventful: Path) -> None:
    """- reads standard input."""
    with open(eventful, "rb") as file:
        done = view("show", "-", "--outcome", "refused", stdin=file)

    assert (done.returncode, "/srv/jobs/tool" in done.stdout) == (0, True)


@pytest.mark.parametrize("form", [[], ["--json"], ["--records"]])
def test_reader_that_has_seen_enough(path: Path, form: list[str]) -> None:
    """Into a pipe that is closed early it ends without a word."""
    ledgers.write(path, *ledgers.realistic(6000))
    process = subprocess.Popen(command("show", *form, path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()

    assert (process.wait(PATIENCE), told) == (0, b"")


# --------------------------------------------------------- at a terminal


@contextlib.contextmanager
def terminal(columns: int = 100) -> Iterator[tuple[int, int]]:
    """Yield both ends of a terminal of so many columns, ours first."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def everything(fd: int, process: subprocess.Popen[Any]) -> str:
    """Return what a process writes to a terminal until it ends."""
    data = b""
    while True:
        ready = select.select([fd], [], [], 0 if process.poll() is not None else 0.05)[0]
        if ready:
            data += os.read(fd, 1 << 16)
        elif process.poll() is not None:
            return data.decode()


def test_width_of_the_terminal(path: Path) -> None:
    """At a terminal lines are cut to its width."""
    ledgers.write(path, Chain().ran(["/bin/echo", "x" * 300]))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with terminal(columns=120) as (ours, theirs):
        process = subprocess.Popen(command("show", path), stdout=theirs, env=env)
        lines = everything(ours, process).splitlines()

    assert [len(line) for line in lines[1:]] == [120]
    assert lines[1].endswith("x…")


#: Progress is told from the first moment on.
AT_ONCE = """
import sys
from safespawn import _cli_progress, cli
_cli_progress._FIRST = _cli_progress._AGAIN = 0
sys.exit(cli.main(["audit", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("words", [["show"], ["report", "--output=-"], ["verify", "--without-key"]], ids=lambda words: words[0])
def test_progress_at_a_terminal(path: Path, words: list[str]) -> None:
    """Who waits at a terminal is told how far it is; the line is taken away in the end."""
    ledgers.write(path, *ledgers.realistic(6000))
    with terminal() as (ours, theirs):
        process = subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, *words, path], stdout=subprocess.DEVNULL, stderr=theirs
        )
        told = everything(ours, process)

    assert process.returncode == 0
    assert re.search(r"\r\d+ % of 4\.\d MB, [\d.]+ [kM]B/s, \d+ s left\x1b\[K", told)
    assert told.endswith("\r\x1b[K")


def test_no_progress_elsewhere(path: Path) -> None:
    """Where stderr is no terminal nothing is told."""
    ledgers.write(path, *ledgers.realistic(6000))
    done = subprocess.run([sys.executable, "-c", AT_ONCE, "show", path], capture_output=True, check=True)

    assert done.stderr == b""


def test_progress_comes_late_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is told in the first second, then at most five times a second."""
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    screen = Screen()
    progress = Progress(screen)
    for step in range(16):
        now[0] = 100 + step / 8
        progress(step, 16)

    assert re.findall("[0-9]+ %", screen.getvalue()) == ["50 %", "62 %", "75 %", "87 %"]


def test_text_of_progress() -> None:
    """With a known size progress tells how much is done, how fast, and how long it takes still."""
    assert Progress.text(25_000_000, 100_000_000, 2.0) == "25 % of 100.0 MB, 12.5 MB/s, 6 s left"
    assert Progress.text(200, 100, 2.0) == "100 % of 100 B, 100 B/s, 0 s left"
    assert Progress.text(0, 100, 2.0) == "0 B read, 0 B/s"  # what comes before the ledger took that long
    assert Progress.text(3_000_000_000, None, 3.0) == "3.0 GB read, 1.0 GB/s"


# ------------------------------------------------------------------- follow


@contextlib.contextmanager
def following(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run follow until the block is left. Its titles come when it has looked for the first time."""
    env = {**os.environ, "TZ": "UTC", "PYTHONUTF8": "1"}
    process = subprocess.Popen(
        command("follow", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=env
    )
    assert process.stdout and process.stderr
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def line_of(stream: Any) -> str:
    """Return the next line of a process, which must come soon."""
    assert select.select([stream], [], [], PATIENCE)[0], "nothing came"
    line: bytes = stream.readline()
    return line.decode()


def test_follow(path: Path) -> None:
    """Follow shows a program when it runs, and again when it ends, with what is in the ledger by then."""
    chain = Chain()
    with following(path) as process:
        assert line_of(process.stdout).startswith("WHEN")
        sid, intent = chain.begun(["/usr/sbin/daemon"])
        ledgers.append(path, intent, chain.started(sid))
        assert "running?" in line_of(process.stdout)
        ledgers.append(path, chain.ended(sid, signal=15))
        assert "SIGTERM" in line_of(process.stdout)


def test_follow_shows_what_is_short_once(path: Path) -> None:
    """A program that has begun and ended between two looks has one line; filters and --json hold."""
    chain = Chain()
    with following(path, "--json", "--program", "true") as process:
        while not select.select([process.stderr], [], [], 0.02)[0]:
            ledgers.append(path, b"garbage\n")  # it is told of once the file is watched
        # In one piece: a reader may see half of what one write(2) is writing.
        pieces = chain.ran(["/bin/false"]), chain.ran(["/bin/true"]), chain.ran(["/bin/true"], code=1)
        ledgers.write(path.with_suffix(".new"), *pieces).rename(path)
        made = [json.loads(line_of(process.stdout)) for _ in range(2)]

    assert [(one["argv"], one["exit_code"]) for one in made] == [(["/bin/true"], 0), (["/bin/true"], 1)]


def test_follow_ends_as_tail_does(path: Path) -> None:
    """Ctrl-C ends follow with 130, as a shell reports tail -f, and without a word."""
    with following(path) as process:
        line_of(process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr and process.stderr.read() == b""


def test_follow_tells_of_lines_that_are_no_records(path: Path) -> None:
    """Lines that are no records are told of as they come."""
    with following(path) as process:
        line_of(process.stdout)
        ledgers.append(path, b"garbage\n")
        assert "ledger.jsonl@0: not the form of a record" in line_of(process.stderr)


@pytest.mark.parametrize(("what", "told"), [("-", "standard input cannot be followed"), ("/dev", "not a regular file")])
def test_what_cannot_be_followed(what: str, told: str) -> None:
    """Standard input and directories are refused with exit code 2."""
    done = view("follow", what)

    assert (done.returncode, told in done.stderr) == (2, True)
