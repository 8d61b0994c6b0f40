"""How `safespawn run` and `exec` end: their exit codes, and what is said on stderr."""

from __future__ import annotations

import shlex
import sys

#: As env(1), nohup(1) and timeout(1) have them.
OURS, NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 125, 126, 127, 128


def say(text: str) -> None:
    """Write to stderr if there is one that takes it: what it says must not change the exit code."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def complain(program: str, problem: BaseException) -> None:
    """Say what is wrong with a program, or with what was asked of it."""
    what = problem.args[0] if isinstance(problem, KeyError) and problem.args else problem
    say(f"safespawn: {shlex.quote(program)}: {what}")
