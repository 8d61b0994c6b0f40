"""The command line: arguments to the public API, and what it says to an exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import safespawn
from safespawn import audit, doctor

#: Exit codes of `safespawn run`, as env(1), nohup(1) and timeout(1) have them.
OURS, NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 125, 126, 127, 128

EPILOG = """\
exit codes of run:
  0-124    the program's own
  125      safespawn itself failed, or a guard refused
  126      the program was found but cannot be executed
  127      the program was not found
  128+N    the program was killed by signal N
"""


class _Parser(argparse.ArgumentParser):
    """Bad usage is a failure of ours; argparse would exit with 2, which a program may mean."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, briefly."""
        self.exit(OURS, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="safespawn",
        description="Start programs fast and guarded, with a record of every decision.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    seen = commands.add_parser("doctor", help="show what this machine and process allow, and why")
    seen.add_argument("--json", action="store_true", help="for programs")
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run a program",
        usage="safespawn run [options] -- PROGRAM [ARG ...]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = run.add_argument
    add("--user", help="name or number: its uid, primary group and group list")
    add("--group", help="name or number, instead of the user's primary group")
    add("--groups", help="comma separated: the supplementary groups, instead of the user's")
    add("--cwd", metavar="DIR", help="working directory of the program")
    add("--umask", type=_octal, help="octal")
    add("--nice", type=int, help="niceness, -20 to 19")
    add("--cpus", type=_cpus, metavar="LIST", help="processors it may use, such as 0,2-3")
    add(
        "--rlimit",
        action="append",
        default=[],
        metavar="NAME=SOFT[:HARD]",
        help="such as nofile=256 or core=0",
    )
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable")
    add("--env-policy", choices=("inherit", "scrub", "user"), default="inherit")
    add("--env-allow", action="append", default=[], metavar="NAME", help="keep this one too when scrubbing")
    add("--new-session", action="store_true", help="setsid")
    add("--no-new-privs", action="store_true", help="nothing it runs gains privileges by exec")
    add("--pdeathsig", type=_signal, metavar="SIGNAL", help="sent to it when we die")
    add("--pin", action="store_true", help="run the very file that was looked at and hashed")
    add("--digest", metavar="sha256:HEX", help="refuse a program with another digest")
    add("--path-policy", choices=("any", "trusted"), default="any")
    add("--deadline", type=float, metavar="SECONDS", help="give up if it is not running by then")
    add("--strategy", choices=("auto", "vfork", "fork"), default="auto")
    add("--on-unproven", choices=("fork", "refuse"), default="fork")
    add("--audit", metavar="FILE", help="append the records to this ledger")
    add("--audit-mode", choices=("best_effort", "require", "durable"), default="require")
    add("--tag", action="append", default=[], metavar="KEY=VALUE", help="goes into the records")
    add("--report", action="store_true", help="print the decision to stderr as JSON")
    add("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM [ARG ...]")


def _octal(text: str) -> int:
    return int(text, 8)


def _cpus(text: str) -> list[int]:
    cpus: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        cpus += range(int(low), int(high if dash else low) + 1)
    return cpus


def _signal(text: str) -> int:
    if text.isdigit():
        return int(text)
    name = text.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise argparse.ArgumentTypeError(f"no such signal: {text}") from None


# argparse names them in its messages.
_octal.__name__, _cpus.__name__, _signal.__name__ = "octal number", "list of processors", "signal"


def _account(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdigit() else text


def _pairs(option: str, items: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ValueError(f"{option} needs NAME=VALUE, not {item!r}")
        pairs[name] = value
    return pairs


def _rlimits(items: Sequence[str]) -> dict[int, int | tuple[int, int]]:
    limits: dict[int, int | tuple[int, int]] = {}
    for name, value in _pairs("--rlimit", items).items():
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            raise ValueError(f"--rlimit: no such limit: {name!r}")
        parts = [-1 if part == "unlimited" else int(part) for part in value.split(":")]
        if len(parts) > 2:
            raise ValueError(f"--rlimit needs SOFT or SOFT:HARD, not {value!r}")
        limits[number] = (parts[0], parts[-1])
    return limits


def _options(given: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {
        "user": _account(given.user),
        "group": _account(given.group),
        "cwd": given.cwd,
        "umask": given.umask,
        "nice": given.nice,
        "cpu_affinity": given.cpus,
        "rlimits": _rlimits(given.rlimit) or None,
        "start_new_session": given.new_session,
        "no_new_privs": given.no_new_privs,
        "pdeathsig": given.pdeathsig,
        "env_policy": given.env_policy,
        "env_allow": _allowed(given),
        "pin": given.pin,
        "digest": given.digest,
        "path_policy": given.path_policy,
        "deadline": given.deadline,
        "strategy": given.strategy,
        "on_unproven": given.on_unproven,
        "audit_tags": _pairs("--tag", given.tag) or None,
    }
    if given.groups is not None:
        options["extra_groups"] = [_account(name) for name in given.groups.split(",") if name]
    if given.env:
        options["env"] = {**os.environ, **_pairs("--env", given.env)}
    return options


def _allowed(given: argparse.Namespace) -> list[str]:
    """What is set on this command line is wanted, whatever the policy."""
    own = [] if given.env_policy == "inherit" else list(_pairs("--env", given.env))
    return [*given.env_allow, *own]


def _program(given: argparse.Namespace) -> list[str]:
    words: list[str] = given.program
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise ValueError("no program given: safespawn run [options] -- PROGRAM [ARG ...]")
    return words


#: The terminal's are for the program alone; the others are passed on to it.
IGNORED, FORWARDED = (signal.SIGINT, signal.SIGQUIT), (signal.SIGTERM, signal.SIGHUP)


def _wait(process: safespawn.Process, mask: set[int]) -> int:
    """Wait as a shell does. Our signals are blocked until they have somewhere to go."""

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        process.send_signal(number)

    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        code = process.wait()
    except ChildProcessError as problem:  # SIGCHLD is ignored, and the kernel cannot say
        _say(f"safespawn: {problem}")
        return OURS
    return code if code >= 0 else BY_SIGNAL - code


def _say(text: str) -> None:
    """Write to stderr if there is one that takes it: what it says must not change the exit code."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def _show_report(report: safespawn.SpawnReport) -> None:
    _say(json.dumps(doctor.plain(report), indent=2))


def _complain(program: str, problem: BaseException) -> None:
    report = getattr(problem, "report", None)
    what = problem.args[0] if isinstance(problem, KeyError) and problem.args else problem
    _say(f"safespawn: {shlex.quote(program)}: {what}")
    if report is not None and report.outcome == "refused":
        _say(f"safespawn: refused; {'; '.join(report.reasons)}")


def _failure_code(problem: BaseException) -> int:
    stage = getattr(problem, "stage", None)
    if stage in ("lookup", "exec") and not isinstance(problem, safespawn.SpawnError):
        return NOT_FOUND if isinstance(problem, FileNotFoundError) else NOT_EXECUTABLE
    return OURS


def _run(given: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        # A signal between the start and the handlers must neither kill us nor get lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*IGNORED, *FORWARDED))
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        program = "run"
        try:
            words = _program(given)
            program = words[0]
            options = _options(given)
            if given.audit:
                stack.enter_context(audit.open(given.audit, mode=given.audit_mode))
            process = safespawn.spawn(words, sigmask=mask, **options)
        except (OSError, ValueError, TypeError, KeyError) as problem:
            _complain(program, problem)
            report = getattr(problem, "report", None)
            if given.report and report is not None:
                _show_report(report)
            return _failure_code(problem)
        if given.report:
            _show_report(process.report)
        return _wait(process, mask)


def _doctor(given: argparse.Namespace) -> int:
    seen = doctor.examine()
    try:
        print(json.dumps(seen, indent=2) if given.json else doctor.table(seen), flush=True)
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not complain at its end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = _parser().parse_args(argv)
    return _run(given) if given.command == "run" else _doctor(given)
