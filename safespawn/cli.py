"""The command line: arguments to the public API, and what it says to an exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import safespawn
from safespawn import _cli_audit, _cli_bench, _cli_exec, _cli_keywords, _cli_options, audit, doctor

from ._cli_exit import BY_SIGNAL, NOT_EXECUTABLE, NOT_FOUND, OURS, complain, say, show

USAGE = "safespawn run [options] -- PROGRAM [ARG ...]"
EPILOG = """\
exit codes of run, and of exec until the program is the process:
  0-124    the program's own
  125      safespawn itself failed, or a guard refused
  126      the program was found but cannot be executed
  127      the program was not found
  128+N    the program was killed by signal N
"""


class _Parser(argparse.ArgumentParser):
    """Bad usage is a failure of ours; argparse would exit with 2, which a program may mean."""

    def __init__(self, **more: Any) -> None:
        """Of no command: an abbreviation changes its meaning with the next option. --cpu was --cpus once."""
        super().__init__(**{**more, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, briefly."""
        if message.endswith("expected one argument"):  # argparse takes -noroot for an option
            message += " (if it begins with '-': OPTION=VALUE)"
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
    _cli_exec.add(commands)
    seen = commands.add_parser("doctor", help="show what this machine and process allow, and why")
    seen.add_argument("--json", action="store_true", help="for programs")
    seen.set_defaults(call=_doctor)
    _cli_audit.add(commands)
    _cli_bench.add(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run a program",
        usage=USAGE,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _cli_options.add(run)
    run.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM [ARG ...]")
    run.set_defaults(call=_run)


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
        say(f"safespawn: {problem}")
        return OURS
    return code if code >= 0 else BY_SIGNAL - code


def _show_report(report: safespawn.SpawnReport) -> None:
    say(json.dumps(doctor.plain(report), indent=2))


def _complain(program: str, problem: BaseException) -> None:
    report = getattr(problem, "report", None)
    complain(program, problem)
    if report is not None and report.outcome == "refused":
        say(f"safespawn: refused; {'; '.join(report.reasons)}")


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
            words = _cli_options.program(given.program, USAGE)
            program = words[0]
            options = _cli_keywords.collect(given)
            if given.audit:
                stack.enter_context(audit.open(given.audit, mode=given.audit_mode or "require"))
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
        show(json.dumps(seen, indent=2) if given.json else doctor.table(seen))
    except BrokenPipeError:
        return 0  # the reader has seen enough
    except OSError as problem:
        complain("doctor", problem)
        return OURS
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = _parser().parse_args(argv)
    code: int = given.call(given)
    return code
