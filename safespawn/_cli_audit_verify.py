"""`safespawn audit verify`: arguments to `audit.verifier`, what it found to lines and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safespawn._cli_exit import show
from safespawn._cli_progress import Progress
from safespawn.audit import keys, verifier

#: Exit codes.
CLEAN, FINDINGS, CANNOT = 0, 1, 2

EPILOG = """\
exit codes:
  0  nothing was found; notices may be there
  1  findings: records were changed, taken out or cut off, or a file is missing
  2  nothing could be said: no ledger, no record in it, no key, or a file that cannot be read

one line for each: FILE:LINE:BYTE CHAIN NUMBER REASON: TEXT
lines count from 1, bytes from 0; of a chain the first is told, and how many follow
"""
#: Notices of one reason: a host where processes are killed has one for each of them.
SHOWN = 20


def add(commands: Any) -> None:
    """Add the command to the subparsers of `safespawn audit`."""
    parser = commands.add_parser(
        "verify",
        help="check a ledger: was a record changed, taken out or cut off?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    more = parser.add_argument
    more("ledger", metavar="LEDGER", help="the file that is being written; older segments lie beside it")
    more("--key-file", metavar="FILE", help="the verification key, 64 hex digits; '-' reads standard input")
    more("--without-key", action="store_true", help="only the hash chain, which write access can forge")
    more("--keys", metavar="DIR", help="key directory, for its registry of chains (default: this host's)")
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--state", metavar="FILE", help="the state file (LEDGER.state)")
    state.add_argument("--no-state", action="store_true", help="a copy without it: cut tails are not seen")
    more("--witness", metavar="FILE", action="append", default=[], help="lines that were collected elsewhere")
    more("--dedupe", action="store_true", help="equal lines may come again, as in a collector's file")
    more("--json", action="store_true", help="for programs")
    parser.set_defaults(call=run)


def run(given: argparse.Namespace) -> int:
    """Verify, print what was found, and return the exit code."""
    progress = Progress(sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may have what the terminal has not
    try:
        with _many_files():
            made = verifier.verify(
                given.ledger,
                key=None if given.key_file is None else _key(given.key_file),
                without_key=given.without_key,
                state=given.state or not given.no_state,
                registry=given.keys or _registry_here(given),
                witness=given.witness,
                dedupe=given.dedupe,
                progress=progress,
            )
        progress.clear()
        with contextlib.suppress(BrokenPipeError):  # the reader has seen enough
            show(_as_json(made) if given.json else "\n".join(_lines(made)))
    except (OSError, ValueError) as problem:
        progress.clear()
        sys.stderr.write(f"safespawn audit verify: {verifier.plain(_words(problem))}\n")
        return CANNOT
    return CLEAN if made.ok else FINDINGS


@contextlib.contextmanager
def _many_files() -> Iterator[None]:
    """Allow as many descriptors as we may: each segment stays open, and there can be thousands."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _registry_here(given: argparse.Namespace) -> str | None:
    """Return this host's key directory where the ledger is this host's: not for a copy, nor without a key."""
    where = keys.default_directory()
    is_ours = given.key_file is not None and not given.no_state and os.path.isdir(where)
    return where if is_ours else None


def _words(problem: Exception) -> str:
    """Return what a person needs of an error: the file and what is wrong, not its number."""
    if not isinstance(problem, OSError) or problem.strerror is None:
        return str(problem)
    hint = " (--key-file FILE, or --without-key)" if problem.errno == errno.ENOKEY else ""
    where = "" if problem.filename is None else f"{os.fsdecode(problem.filename)}: "
    return f"{where}{problem.strerror}{hint}"


def _key(path: str) -> bytes:
    """Read the verification key. Raises ValueError, which names the file."""
    try:
        if path == "-":
            return verifier.key_from(sys.stdin.buffer.read(verifier.KEY_FILE_BYTES))
        return verifier.key_of_file(path)
    except OSError as problem:
        is_odd = problem.errno == errno.EINVAL
        hint = "; '-' reads standard input" if is_odd else ""
        raise ValueError(f"--key-file {path}: {problem.strerror}{hint}") from problem
    except ValueError as problem:
        raise ValueError(f"--key-file {path}: {problem}") from problem


def _as_json(made: verifier.Verification) -> str:
    return json.dumps({"ok": made.ok, **asdict(made)}, indent=2)


def _lines(made: verifier.Verification) -> list[str]:
    """Return what a person reads: findings and what to do, notices and where they come from, the summary."""
    lines = [str(finding) for finding in made.findings]
    lines += _explained("what to do:", made.findings, verifier.TAMPERED)
    lines += _notices(made.notices)
    lines += _explained("no sign of tampering:", made.notices, verifier.EXPLAINED)
    lines += ["checked:", *(f"  {text}" for text in made.checked)]
    lines += ["not seen by this:", *(f"  {text}" for text in made.limits)]
    count = len(made.findings)
    return [*lines, f"{count} {'finding' if count == 1 else 'findings'}" if count else "nothing was found"]


def _notices(notices: Sequence[verifier.Finding]) -> list[str]:
    """Return a line for each; of one reason not more than a screen."""
    counts = Counter(notice.reason for notice in notices)
    lines = []
    for reason, count in sorted(counts.items()):
        lines += [str(notice) for notice in notices if notice.reason == reason][:SHOWN]
        if count > SHOWN:
            lines.append(f"and {count - SHOWN} more {reason} (--json shows all)")
    return lines


def _explained(title: str, found: Sequence[verifier.Finding], texts: Mapping[str, str]) -> list[str]:
    reasons = sorted({one.reason for one in found})
    return [title, *(f"  {reason}: {texts[reason]}" for reason in reasons)] if reasons else []
