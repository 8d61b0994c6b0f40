"""`safespawn audit export`: a ledger as OCSF, ECS or OpenTelemetry, one JSON object per line."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from safespawn._cli_exit import leave_output, output
from safespawn.audit import reader
from safespawn.audit.exporters import FORMATS, Joined

#: Exit codes: everything was exported; a line was not; the ledger or the output failed.
DONE, INCOMPLETE, FAILED = 0, 1, 2

EPILOG = """\
exit codes of export:
  0        every line was exported
  1        a line is no record: it is named on stderr, the others were exported
  2        the ledger cannot be read, or the output not written
"""

_encode = json.JSONEncoder(separators=(",", ":")).encode


def add(commands: Any) -> None:
    """Add the subcommand to the object that ``add_subparsers`` returned."""
    parser = commands.add_parser(
        "export",
        help="write a ledger in another form",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", required=True, choices=sorted(FORMATS))
    parser.add_argument("--host", metavar="NAME", help="the machine that wrote the ledger, which names none")
    parser.add_argument("file", metavar="FILE", help="the ledger, or - for standard input")
    parser.set_defaults(call=export)


def export(given: argparse.Namespace) -> int:
    """Export and return the exit code."""
    source = _Source(given.file)
    try:
        stream = output()
        for made in source.converted(given.format, given.host):
            stream.write(f"{made}\n")
        stream.flush()
    except OSError as problem:
        _say(f"stopped after line {source.read}: {problem}")
        leave_output()
        return FAILED
    return source.summary()


@dataclass
class _Source:
    """A ledger on its way to another form, and what of it did not get there."""

    path: str
    joined: Joined = field(default_factory=Joined)
    read: int = 0
    left_out: int = 0

    def converted(self, form: str, host: str | None) -> Iterator[str]:
        """Yield an object of the form for every record. Raises OSError."""
        convert = FORMATS[form]
        for one in reader.records(self.path):
            self.read += 1
            if one.problem is not None:
                self.leave_out(one.where, one.problem)
                continue
            intent = self.joined.intent_of(one.fields)
            yield _encode(convert(one.fields, one.line, intent=intent, host=host))

    def leave_out(self, where: str, problem: str) -> None:
        """Count a line that is no record, and say so."""
        self.left_out += 1
        _say(f"{where}: not exported: {problem}")

    def summary(self) -> int:
        """Say what is missing and return the exit code."""
        if self.joined.missed:
            _say(f"records that lack what was started, as no intent is known: {self.joined.missed}")
        if not self.left_out:
            return DONE
        _say(f"lines not exported: {self.left_out} of {self.read}")
        return INCOMPLETE


def _say(text: str) -> None:
    """Write to stderr; nothing that a hostile ledger holds may reach the terminal as it is."""
    with contextlib.suppress(OSError):  # what it says must not change the exit code
        sys.stderr.write(f"safespawn: {text.encode('unicode_escape').decode('ascii')}\n")
