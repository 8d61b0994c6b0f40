"""Mutants of C: small changes of statements and expressions inside functions.

No parser: the sources keep kernel style, so a function ends at a ``}`` in the first column, and
what a change makes of an expression is left to the compiler, which refuses the nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mutant import Edit

#: Not code: blanked out before anything is looked for, at the same length.
_NOT_CODE = re.compile(
    r"/\*.*?\*/|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)+'|^[ \t]*#(?:[^\\\n]|\\.)*$", re.DOTALL | re.MULTILINE
)
_FUNCTION = re.compile(r"^(?P<name>\w+)\([^;{}]*\)\n\{\n(?P<body>.*?)^\}", re.DOTALL | re.MULTILINE)

_FLIPS = {"==": "!=", "!=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "&&": "||", "||": "&&"}
_COMPARISON = re.compile(r"(?<=\s)(==|!=|<=|>=|<|>|&&|\|\|)(?=\s)")
_SUM = re.compile(r"(?<=[\w)\]] )([+-])(?= [\w(&*])")
_NOT = re.compile(r"!(?=[\w(*])")
_NUMBER = re.compile(r"(?<![\w.>])(0x[0-9a-f]+|\d+)(?=u?l{0,2}\b)")
_MASK = re.compile(r" & ~?[\w>.-]+(?=[);])")
#: A statement: what begins a line and is no control flow or declaration, up to its semicolon.
_STATEMENT = re.compile(
    r"^(?P<indent>[ \t]+)(?!return\b|if\b|for\b|while\b|else\b|do\b|switch\b|case\b|break\b|continue\b|goto\b|default\b)"
    r"(?P<text>(?:\(void\)|\*)?[A-Za-z_][\w>.\[\]-]*(?:\(| (?:[-+|&]?=) |\+\+|--)[^;{}]*;)",
    re.MULTILINE,
)
_RETURN = re.compile(r"\breturn (?P<value>[^;{}]+);")
_CONDITION = re.compile(r"\b(?:if|while) \(")
#: A type in front: a declaration whose value others need.
_ERRNO = re.compile(r"^E[A-Z0-9]+$")


def _blanked(text: str) -> str:
    return _NOT_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def _closing(code: str, opening: int) -> int:
    depth = 0
    for at in range(opening, len(code)):
        depth += {"(": 1, ")": -1}.get(code[at], 0)
        if not depth:
            return at
    raise ValueError("a parenthesis that nobody closes")


def _expressions(code: str) -> Iterator[tuple[int, int, str, str]]:
    for found in _COMPARISON.finditer(code):
        kind = "logic" if found.group() in ("&&", "||") else "comparison"
        yield found.start(), found.end(), _FLIPS[found.group()], kind
    for found in _SUM.finditer(code):
        yield found.start(), found.end(), {"+": "-", "-": "+"}[found.group()], "sum"
    for found in _NOT.finditer(code):
        yield found.start(), found.end(), "", "not"
    for found in _NUMBER.finditer(code):
        value = int(found.group(), 0)
        yield found.start(), found.end(), {0: "1", 1: "0"}.get(value, str(value + 1)), "number"
    for found in _MASK.finditer(code):
        yield found.start(), found.end(), "", "mask"


def _statements(code: str) -> Iterator[tuple[int, int, str, str]]:
    for found in _STATEMENT.finditer(code):
        yield found.start("text"), found.end("text"), ";", "statement"
    for found in _RETURN.finditer(code):
        value = found["value"].strip()
        if value not in ("0", "1"):
            yield found.start("value"), found.end("value"), "0", "answer"
        if not _ERRNO.match(value) and value != "1":
            yield found.start("value"), found.end("value"), "1", "answer"
    for found in _CONDITION.finditer(code):
        start, end = found.end(), _closing(code, found.end() - 1)
        yield start, end, "0", "condition"
        if found.group().startswith("if"):
            yield start, end, "1", "condition"


def edits(text: str) -> Iterator[Edit]:
    """Yield every change that the operators know for a file of C."""
    code = _blanked(text)
    for function in _FUNCTION.finditer(code):
        body, offset = function["body"], function.start("body")
        for start, end, new, operator in (*_expressions(body), *_statements(body)):
            # What was not to be evaluated still is: an assignment in a condition is not the point.
            yield Edit(offset + start, offset + end, new, operator, function["name"])
