"""How commands end: exit codes of `safespawn run` and `exec`, what goes to stderr, output that fails."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from typing import TextIO

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


def output() -> TextIO:
    """Return standard output. Raises OSError: `print` takes none for a reason to print nothing."""
    if sys.stdout is None:  # descriptor 1 was closed when we began
        raise OSError(errno.EBADF, "there is no standard output")
    return sys.stdout


def show(text: str) -> None:
    """Write a text and the end of its line to standard output, now. Raises OSError."""
    stream = output()
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except OSError:
        discard_output()
        raise


def leave_output() -> None:
    """End after an error: what was printed before is written, or forgotten where it cannot be."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        discard_output()


def discard_output() -> None:
    """Forget what cannot be written: the interpreter would try it again at its end, and exit with 120."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
