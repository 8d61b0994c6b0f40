"""One change of one place of a source: what it was, what it becomes, and a name that lasts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Edit(NamedTuple):
    """A change of ``text[start:end]`` to ``new``, by an operator, in a function."""

    start: int
    end: int
    new: str
    operator: str
    function: str


class Mutant(NamedTuple):
    """An edit of a file of the package, told to people, with a name that survives changes elsewhere."""

    id: str
    file: str
    line: int
    function: str
    operator: str
    was: str
    becomes: str
    edit: Edit


def line_of(text: str, at: int) -> str:
    """Return the line that a position is in, without its indentation."""
    return text[text.rfind("\n", 0, at) + 1 : text.find("\n", at)].strip()


def named(file: str, text: str, edits: Iterable[Edit]) -> list[Mutant]:
    """Give each edit its name: a digest of file, function, line and change, and which of those alike it is."""
    seen: Counter[tuple[str, ...]] = Counter()
    made = []
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end, edit.operator, edit.new)):
        was, line = text[edit.start : edit.end], line_of(text, edit.start)
        what = (file, edit.function, line, edit.operator, was, edit.new)
        seen[what] += 1
        digest = hashlib.sha256("\0".join((*what, str(seen[what]))).encode()).hexdigest()[:10]
        number = text.count("\n", 0, edit.start) + 1
        made.append(Mutant(digest, file, number, edit.function, edit.operator, was, edit.new, edit))
    return made


def applied(text: str, edit: Edit) -> str:
    """Return the text with the edit in it."""
    return text[: edit.start] + edit.new + text[edit.end :]
