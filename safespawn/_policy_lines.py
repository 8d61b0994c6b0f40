"""Which line of a TOML text is to blame, without reading TOML ourselves. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Told = Mapping[str, Any]
Parse = Callable[[str], Told]

#: What tomllib and tomli say at the end of a message.
_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)$")


#: A line that no statement needs; one that could end a string is none.
_SAYS_NOTHING = re.compile(r"\s*(#[^\"']*)?$")

#: Characters that are read for one line, at most: then it stays unknown. 500 statements take less.
MOST = 1 << 24


def of_syntax(text: str, message: str) -> int:
    """Return the line that the parser's message names: the last one for the end of the document."""
    found = _AT_LINE.search(message)
    return int(found[1]) if found else text.rstrip("\n").count("\n") + 1


def statements(text: str, parse: Parse) -> Iterator[tuple[int, Told]]:
    """Yield the line where each statement begins, and what the text says up to its end.

    A text that is cut behind a line parses if no statement goes on there: so the lines from one such
    cut to the next are one statement, whatever strings and arrays it has. ``parse`` raises ValueError.
    """
    lines = text.split("\n")
    begin, read = 1, 0
    for number, line in enumerate(lines, 1):
        if _SAYS_NOTHING.match(line):
            continue
        start = "\n".join(lines[:number]) + "\n"
        if (read := read + len(start)) > MOST:
            return
        try:
            told = parse(start)
        except ValueError:
            continue
        while begin < number and _SAYS_NOTHING.match(lines[begin - 1]):
            begin += 1
        yield begin, told
        begin = number + 1


def of_fault(text: str, parse: Parse, is_wrong: Callable[[Told], bool]) -> int | None:
    """Return the line of the statement with which a text begins to be wrong."""
    return next((begin for begin, told in statements(text, parse) if is_wrong(told)), None)
