"""`safespawn audit`: its subcommands, each in a module of its own."""

from __future__ import annotations

from typing import Any

from . import _cli_audit_export, _cli_audit_keys, _cli_audit_verify, _cli_audit_view

PARTS = (_cli_audit_keys, _cli_audit_verify, _cli_audit_view, _cli_audit_export)


def add(commands: Any) -> None:
    """Add `audit` with all its subcommands; each sets ``call``, which returns the exit code."""
    parser = commands.add_parser("audit", help="keys, verification and reading of the audit ledger")
    parts = parser.add_subparsers(dest="part", required=True, metavar="COMMAND")
    for part in PARTS:
        part.add(parts)
