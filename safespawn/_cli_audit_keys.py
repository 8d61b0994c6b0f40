"""`safespawn audit keys init` and `safespawn audit retire`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from safespawn import AuditError, audit
from safespawn._cli_exit import show

#: Exit codes beside 0, as of `safespawn audit verify`.
CANNOT = 2

DEFAULT = f"{audit.keys.VARIABLE}, else {audit.keys.DIRECTORY}"


def add(commands: Any) -> None:
    """Add both to the parser of `audit`."""
    keys = commands.add_parser("keys", help="make the keys of this host")
    verbs = keys.add_subparsers(dest="verb", required=True, metavar="VERB")
    init = verbs.add_parser("init", help="make them, and print the verification key once")
    init.add_argument("--dir", help=f"the key directory (default: {DEFAULT})")
    init.set_defaults(call=_init)
    retire = commands.add_parser(
        "retire",
        help="delete old segments, leaving a record of each",
        epilog="prints the files that it has deleted. exit codes: 0 done, or nothing to do; 2 it cannot",
    )
    retire.add_argument("ledger", metavar="LEDGER", help="the file that is being written")
    retire.add_argument(
        "--keep", type=_keep, required=True, metavar="N", help="older segments to keep, at least 1"
    )
    retire.add_argument("--keys", metavar="DIR", help=f"the key directory (default: {DEFAULT})")
    retire.set_defaults(call=_retire)


def _keep(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 on needed, not {text!r}")
    return int(text)


def _init(given: argparse.Namespace) -> int:
    where = given.dir or audit.keys.default_directory()
    try:
        audit.keys.initialise(where, show=show)
    except (AuditError, OSError) as problem:
        return _fail(problem)
    print(
        f"Keys are in {where}. The line above is the verification key. It is shown once and kept nowhere:\n"
        "store it away from this host, for `safespawn audit verify --key-file`.",
        file=sys.stderr,
    )
    return 0


def _retire(given: argparse.Namespace) -> int:
    try:
        gone = audit.retention.retire(given.ledger, keep=given.keep, keys=given.keys)
        if gone:
            show("\n".join(gone))
    except OSError as problem:
        return _fail(problem)
    return 0


def _fail(problem: Exception) -> int:
    print(f"safespawn audit: {problem}", file=sys.stderr)
    return CANNOT
