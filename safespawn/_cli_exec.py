"""`safespawn exec`: become an unmodified Python program that has everything installed from its first line.

Here everything is looked at that can be, and the way is prepared; startup/sitecustomize.py goes on in the
new program.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, NoReturn

from safespawn import policy

from . import _cli_options, _cli_python
from ._cli_exit import NOT_EXECUTABLE, NOT_FOUND, OURS, complain, show

#: Taken without being named. Not what lies in the working directory, nor what the environment names:
#: of a daemon of root those are others' to choose.
DEFAULT = "/etc/safespawn.toml"
#: Where Python finds our sitecustomize, and the variable that tells that what to do.
STARTUP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "startup")
VARIABLE = "SAFESPAWN_EXEC"

USAGE = "safespawn exec [--config FILE] [--audit FILE] [--audit-mode MODE] [--check] -- PROGRAM [ARG ...]"
EPILOG = f"""\
PROGRAM is a Python interpreter, or a script whose #! leads to one. It takes the place of this process.
Without --config {DEFAULT} is taken, if there is one. docs/policy.md has the keys.

exit codes, until the program is the process:
  125      the policy or the command cannot be used, or the program could not be prepared
  126      the program was found but cannot be executed
  127      the program was not found
"""


def add(commands: Any) -> None:
    """Add `exec` to the parser."""
    parser = commands.add_parser(
        "exec",
        help="become a Python program that has safespawn installed from its first line",
        usage=USAGE,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="the policy, a TOML file")
    parser.add_argument("--audit", metavar="FILE", help="the ledger, instead of the policy's")
    parser.add_argument("--audit-mode", choices=("best_effort", "require", "durable"))
    parser.add_argument("--check", action="store_true", help="say what would hold, and start nothing")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM [ARG ...]")
    parser.set_defaults(call=_exec)


def _exec(given: argparse.Namespace) -> int:
    try:
        config = _config(given)
        loaded = policy.Policy() if config is None else policy.load(config)
        ledger = _ledger(given, loaded)
        if given.check:
            show("\n".join(_told(loaded, ledger)))
    except (OSError, ValueError) as problem:
        complain("exec", problem)
        return OURS
    if given.check and not given.program:
        return 0
    return _become(given, _handed_over(loaded, config, ledger))


def _config(given: argparse.Namespace) -> str | None:
    if given.config is not None:
        return _absolute(given.config)
    return DEFAULT if os.path.lexists(DEFAULT) else None


def _absolute(path: str) -> str:
    # Not abspath: behind a link, `..` goes up from where that leads to.
    return os.path.join(os.getcwd(), path)


def _ledger(given: argparse.Namespace, loaded: policy.Policy) -> dict[str, Any]:
    """Return what the command line says of the ledger, beside the policy."""
    told = {} if given.audit is None else {"path": _absolute(given.audit)}
    if given.audit_mode is not None:
        if not told and loaded.audit is None:
            raise ValueError(
                f"--audit-mode {given.audit_mode}, and no ledger: --audit, or [audit] of a policy"
            )
        told["mode"] = given.audit_mode
    return told


def _told(loaded: policy.Policy, ledger: dict[str, Any]) -> list[str]:
    rows = {**dict(loaded.told), **{f"audit.{key}": json.dumps(value) for key, value in ledger.items()}}
    width = max(map(len, rows), default=0)
    first = f"policy  {loaded.path or f'none: no --config, and no {DEFAULT}'}"
    return [first, *(f"  {key:{width}}  {value}" for key, value in rows.items())]


def _handed_over(loaded: policy.Policy, config: str | None, ledger: dict[str, Any]) -> dict[str, str]:
    """Return the environment of the program: its own, and what leads to our part in it."""
    path = os.environ.get("PYTHONPATH")
    # A child of ours must not take it for its own, unless it is to: a pid tells whom it is for.
    told = {"pid": None if loaded.children else os.getpid(), "config": config, "audit": ledger}
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((STARTUP, path)) if path else STARTUP,
        VARIABLE: json.dumps(told),
    }


def _become(given: argparse.Namespace, env: dict[str, str]) -> int:
    name = "exec"
    try:
        words = _cli_options.program(given.program, USAGE)
        name = words[0]
        path = _cli_python.find(name, os.environ)
        _cli_python.judge(path, words[1:], os.environ)
        _reachable()
        if not given.check:
            _replace(path, words, env)
    except ValueError as problem:
        complain(name, problem)
        return OURS
    except OSError as problem:
        complain(name, problem)
        return NOT_FOUND if isinstance(problem, FileNotFoundError) else NOT_EXECUTABLE
    return 0


def _reachable() -> None:
    for place in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if place and any(os.path.lexists(os.path.join(place, name)) for name in ("site.py", "site")):
            raise ValueError(
                f"PYTHONPATH has a site of its own in {place!r}: Python would run that, and not ours"
            )
    if os.pathsep in STARTUP:
        raise ValueError(f"PYTHONPATH cannot lead to {STARTUP!r}: there is a {os.pathsep!r} in it")
    if not os.path.isfile(os.path.join(STARTUP, "sitecustomize.py")):
        raise ValueError(f"{STARTUP!r} has no sitecustomize.py: safespawn is not installed whole")


def _replace(path: str, words: list[str], env: dict[str, str]) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os.execve(path, words, env)  # noqa: S606 - this process is to become it
