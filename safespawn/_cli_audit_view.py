"""`safespawn audit show`, `follow` and `report`: what a ledger says, for people and for programs."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from safespawn import _cli_types as types
from safespawn._cli_exit import discard_output, leave_output, output
from safespawn._cli_progress import Progress
from safespawn.audit import filters, html_report, reader, spawns, table

#: Exit codes. Bad usage has that of the parser.
OK, NO_RECORDS, UNREADABLE, INTERRUPTED = 0, 1, 2, 130
#: Lines that are no records are told so many times, then counted.
TOLD_MAX = 20
#: What a file must begin with to be overwritten: nothing but an earlier report does.
PAGE_START = b"<!DOCTYPE html>"

EPILOG = """\
times: 2026-11-29 or 2026-11-29T10:00 (local, or with an offset), today, yesterday, now,
       or 2h: so long ago, in s, m, h, d or w

exit codes:
  0    all was read
  1    all was read, and some lines were no records: stderr says where
  2    a file could not be read or written
  130  ended by Ctrl-C
"""


def add(commands: Any) -> None:
    """Add the three commands to the subparsers of `safespawn audit`."""
    show = _command(commands, "show", _show, "spawns and events of a ledger, as a table")
    _add_file(show, "FILE, its older segments first; - for standard input")
    _add_filters(show)
    forms = show.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="one JSON object per spawn or event")
    forms.add_argument("--records", action="store_true", help="the lines of the ledger as they are")
    _add_shown(show)

    follow = _command(commands, "follow", _follow, "the same while it is written, from now on")
    _add_file(follow, "it need not exist yet")
    _add_filters(follow)
    follow.add_argument("--json", action="store_true", help="one JSON object per spawn or event")
    _add_shown(follow)

    report = _command(commands, "report", _report, "one HTML page about a ledger")
    _add_file(report, "FILE, its older segments first; - for standard input")
    report.add_argument("-o", "--output", required=True, metavar="OUT.html", help="the page; - for stdout")
    report.add_argument("--rows", type=_count, default=2000, metavar="N", help="spawns told one by one")
    _add_filters(report)


def _command(commands: Any, name: str, call: Callable[[argparse.Namespace], int], what: str) -> Any:
    made = commands.add_parser(
        name,
        help=what,
        description=what,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(call=_ended_well(call), prog=made.prog)
    return made


def _add_file(parser: Any, what: str) -> None:
    parser.add_argument("file", metavar="FILE", help=what)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise argparse.ArgumentTypeError(f"a number from 0 to 999999 needed, not {text!r}")
    return int(text)


def _add_filters(parser: Any) -> None:
    add = parser.add_argument_group("which").add_argument
    add("--since", type=types.said(filters.time_ns), metavar="TIME", help="began then or later")
    add("--until", type=types.said(filters.time_ns), metavar="TIME", help="began before that")
    add("--user", type=types.said(filters.uid), help="name or number: who asked, or as whom it runs")
    add("--program", metavar="GLOB", help="of the path if it has a slash, else of its last part")
    add("--outcome", type=types.said(filters.outcome), metavar="LIST", help=", ".join(filters.OUTCOMES))
    add("--strategy", type=types.said(filters.strategy), metavar="LIST", help=", ".join(filters.STRATEGIES))
    add(
        "--tag",
        type=types.pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="repeatable: all of them",
    )
    add(
        "--event",
        type=types.said(filters.event_pattern),
        metavar="LIST",
        help="such as spawn.denied,mirror.*",
    )


def _add_shown(parser: Any) -> None:
    parser.add_argument("--all", action="store_true", help="checkpoints too")
    parser.add_argument("-n", "--numeric", action="store_true", help="numbers instead of user names")


def _wanted(given: argparse.Namespace) -> filters.Filter:
    return filters.Filter(
        since=given.since,
        until=given.until,
        user=given.user,
        program=given.program,
        outcome=given.outcome or frozenset(),
        strategy=given.strategy or frozenset(),
        tags=dict(given.tag),
        event=given.event or frozenset(),
    )


def _ended_well(call: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Turn the ways in which reading and writing end into exit codes."""

    def ended(given: argparse.Namespace) -> int:
        try:
            code = call(given)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            discard_output()  # the reader has seen enough
            return OK
        except KeyboardInterrupt:
            return INTERRUPTED
        except OSError as problem:
            leave_output()
            where = os.fsdecode(problem.filename) if problem.filename is not None else "output"
            _say(f"{given.prog}: {where}: {problem.strerror or problem}")
            return UNREADABLE
        return code

    return ended


def _say(text: str) -> None:
    with contextlib.suppress(OSError, AttributeError):  # no stderr, or nobody who reads it
        sys.stderr.write(f"{table.printable(text)}\n")
        sys.stderr.flush()


class _Problems:
    """Lets records through and tells of the lines that are none."""

    def __init__(
        self,
        prog: str,
        progress: Progress,
        *,
        limit: int | None = TOLD_MAX,
        note: Callable[[reader.Record], None] | None = None,
    ) -> None:
        self.prog = prog
        self.progress = progress
        self.limit = limit
        self.note = note
        self.count = 0

    def tell(self, record: reader.Record) -> None:
        """Count a line that is no record, and tell of it if there were not too many."""
        self.count += 1
        if self.note is not None:
            self.note(record)
        if self.limit is None or self.count <= self.limit:
            self.progress.clear()
            _say(f"{self.prog}: {record.where}: {record.problem}")

    def passed(self, records: Iterable[reader.Record]) -> Iterator[reader.Record]:
        """Yield the records."""
        for record in records:
            if record.problem is None:
                yield record
            else:
                self.tell(record)

    def code(self) -> int:
        """Tell how many were not told, and return the exit code."""
        self.progress.clear()
        if self.limit is not None and self.count > self.limit:
            _say(f"{self.prog}: {self.count - self.limit} more lines are no records")
        return NO_RECORDS if self.count else OK


Entry = spawns.Spawn | spawns.Event


class _Output:
    """Prints entries in the form that was asked for."""

    def __init__(self, given: argparse.Namespace, progress: Progress) -> None:
        self.progress = progress
        self.wanted = _wanted(given)
        self.all = given.all or bool(given.event)
        self.stream = output()
        if isinstance(self.stream, io.TextIOWrapper):
            self.stream.reconfigure(errors="backslashreplace")
        names = table.numbers_only if given.numeric else table.name_of
        self.table = table.Table(width=_terminal_width(), names=names)
        self.lines = self.table.lines
        self.titles = [self.table.head()]
        if given.json:
            self.lines, self.titles = _json_lines, []
        elif getattr(given, "records", False):
            self.lines, self.titles = _ledger_lines, []

    def head(self) -> None:
        """Print the titles, if there are any that were not printed."""
        titles, self.titles = self.titles, []
        self.write(titles)

    def wants(self, entry: Entry) -> bool:
        """Return whether it is to be printed."""
        aside = isinstance(entry, spawns.Event) and entry.event in table.ASIDE
        return (self.all or not aside) and self.wanted.matches(entry)

    def put(self, entry: Entry) -> None:
        """Print it."""
        self.head()
        self.write(self.lines(entry))

    def write(self, lines: list[str]) -> None:
        self.progress.clear()
        for line in lines:
            self.stream.write(f"{line}\n")


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _json_lines(entry: Entry) -> list[str]:
    return [json.dumps(spawns.plain(entry), separators=(",", ":"))]


def _ledger_lines(entry: Entry) -> list[str]:
    lines = entry.records if isinstance(entry, spawns.Spawn) else (entry.record.line,)
    return [line.decode("ascii") for line in lines]


def _show(given: argparse.Namespace) -> int:
    progress = Progress(sys.stderr)
    problems, output = _Problems(given.prog, progress), _Output(given, progress)
    records = problems.passed(reader.records(given.file, progress=progress))
    entries = spawns.join(records, spawns.Joiner(keep=given.records))
    for entry in spawns.in_order(filter(output.wants, entries)):
        output.put(entry)
    output.head()
    return problems.code()


def _follow(given: argparse.Namespace) -> int:
    if given.file == "-":
        _say(f"{given.prog}: standard input cannot be followed, but show - reads it to its end")
        return UNREADABLE
    progress = Progress(None)
    problems, output = _Problems(given.prog, progress, limit=None), _Output(given, progress)
    joiner = spawns.Joiner()
    with contextlib.closing(reader.follow(given.file, threading.Event())) as records:
        for record in records:
            output.head()
            for entry in filter(output.wants, _news(record, joiner, problems)):
                output.put(entry)
            if record is None:
                output.stream.flush()
    return OK


def _news(record: reader.Record | None, joiner: spawns.Joiner, problems: _Problems) -> Iterable[Entry]:
    """Return what is to be shown after a record, or when there is none for the moment: what runs by now."""
    if record is None:
        return joiner.started()
    if record.problem is None:
        return joiner.add(record)
    problems.tell(record)
    return ()


def _report(given: argparse.Namespace) -> int:
    _overwritable(given.output)
    progress = Progress(sys.stderr)
    wanted, joiner, summary = _wanted(given), spawns.Joiner(), html_report.Summary(given.rows)
    problems = _Problems(given.prog, progress, note=summary.problem)
    records = problems.passed(reader.records(given.file, progress=progress))
    for entry in filter(wanted.matches, spawns.join(records, joiner)):
        summary.add(entry)
    summary.repeated = joiner.repeated
    source = "standard input" if given.file == "-" else os.path.abspath(given.file)
    made = html_report.Made(source, wanted.words(), time.time_ns())
    _write(given.output, html_report.page(summary, made).encode("utf-8"))
    return problems.code()


def _overwritable(path: str) -> None:
    """Refuse to write over anything but an earlier page: a ledger, its state and keys lie side by side."""
    if path == "-" or not os.path.exists(path):
        return
    start = b""
    if os.path.isfile(path):  # a FIFO would keep us waiting
        with open(path, "rb") as file:
            start = file.read(len(PAGE_START))
    if start != PAGE_START:
        raise OSError(errno.EEXIST, "not overwritten: it exists, and is no HTML page", path)


def _write(path: str, data: bytes) -> None:
    """Write a file whole or not at all. It is for its owner only, as the ledger is."""
    if path == "-":
        output().buffer.write(data)
        return
    fd, name = tempfile.mkstemp(prefix=".safespawn-report-", dir=os.path.dirname(path) or ".")
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
