"""The callers' own book: what was asked for, and what the caller was told. The ledger is held against it.

One line when a spawn is asked for and one when its caller knows what became of it, in one file for all threads
and all forks: a line is one write(2) to a file that is opened for appending.

    begin TOKEN WAY
    end TOKEN code:N | nothing:OUTCOME | timeout | dropped

The token is the last argument of the program, by which it is found in the ledger. ``code`` is what the caller got
as exit code, -N for signal N; ``nothing`` an exception, with the outcome of its report or "?"; ``timeout`` that it
took too long and was killed.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import NamedTuple

WORD = "soak-"


class Book:
    """The file, as those see it who write to it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._numbers = itertools.count()
        self.ended = 0

    def begin(self, way: str) -> str:
        """Say that a program is about to be asked for; return its token."""
        token = f"{WORD}{os.getpid()}-{next(self._numbers)}"
        os.write(self._fd, f"begin {token} {way}\n".encode())
        return token

    def end(self, token: str, result: str) -> None:
        """Say what the caller was told."""
        os.write(self._fd, f"end {token} {result}\n".encode())
        self.ended += 1  # for people: threads may lose one of these


class Asked(NamedTuple):
    """One spawn in the book."""

    way: str
    result: str | None


def read(path: Path) -> tuple[dict[str, Asked], list[str]]:
    """Return what was asked for, by token, and what is wrong with the book itself."""
    asked: dict[str, Asked] = {}
    wrong = []
    for line in path.read_text(encoding="ascii").splitlines():
        what, token, rest = line.split(" ", 2)
        if what == "begin" and token not in asked:
            asked[token] = Asked(rest, None)
        elif what == "end" and token in asked and asked[token].result is None:
            asked[token] = asked[token]._replace(result=rest)
        else:
            wrong.append(f"out of turn in the book: {line}")
    return asked, wrong
