"""Mutants of Python: small changes of statements and expressions inside functions, found in the syntax tree."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

from mutant import Edit

_FLIPS: dict[type[ast.cmpop], str] = {
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_SUMS: dict[type[ast.operator], str] = {ast.Add: "-", ast.Sub: "+", ast.BitOr: "&", ast.BitAnd: "|"}
#: Words that decide; any other text is for people.
_WORDS = {"deny": "allow", "allow": "deny"}


class _Places:
    """Where the nodes of a text are, in characters."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines(keepends=True)
        self.text = text
        self._lines = [line.encode() for line in lines]
        self._starts = [0, *itertools.accumulate(len(line) for line in lines)]

    def at(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1][:column].decode())

    def of(self, node: ast.AST) -> tuple[int, int]:
        start = self.at(node.lineno, node.col_offset)  # type: ignore[attr-defined]
        return start, self.at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def source(self, node: ast.AST) -> str:
        start, end = self.of(node)
        return self.text[start:end]


def _operator(places: _Places, before: ast.AST, after: ast.AST) -> tuple[int, int]:
    """Return where the operator between two nodes is: parentheses of theirs may stand there too."""
    start, end = places.of(before)[1], places.of(after)[0]
    found = re.search(r"[^\s()#]+(?: (?:not|in)\b)?", places.text[start:end])
    assert found is not None
    return start + found.start(), start + found.end()


def _constant(node: ast.Constant) -> tuple[str, str] | None:
    if isinstance(node.value, bool):
        return str(not node.value), "truth"
    if isinstance(node.value, int):
        return str({0: 1, 1: 0}.get(node.value, node.value + 1)), "number"
    if isinstance(node.value, str) and node.value in _WORDS:
        return repr(_WORDS[node.value]), "word"
    return None


def _test(node: ast.AST) -> ast.expr | None:
    return node.test if isinstance(node, (ast.If, ast.IfExp, ast.While)) else None


def _logic(places: _Places, node: ast.BoolOp) -> Iterator[tuple[int, int, str, str]]:
    word = " or " if isinstance(node.op, ast.And) else " and "
    joined = word.join(f"({places.source(value)})" for value in node.values)
    yield *places.of(node), f"({joined})", "logic"
    for left in range(len(node.values)):
        kept = [value for at, value in enumerate(node.values) if at != left]
        same = " and " if isinstance(node.op, ast.And) else " or "
        yield *places.of(node), "(" + same.join(f"({places.source(value)})" for value in kept) + ")", "operand"


def _changes(places: _Places, node: ast.AST) -> Iterator[tuple[int, int, str, str]]:
    if isinstance(node, ast.Compare):
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            if type(op) in _FLIPS:
                yield *_operator(places, left, right), _FLIPS[type(op)], "comparison"
    elif isinstance(node, ast.BoolOp):
        yield from _logic(places, node)
    elif isinstance(node, ast.BinOp) and type(node.op) in _SUMS:
        yield *_operator(places, node.left, node.right), _SUMS[type(node.op)], "sum"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield *places.of(node), f"bool({places.source(node.operand)})", "not"
    elif isinstance(node, ast.Constant):
        changed = _constant(node)
        if changed is not None:
            yield *places.of(node), *changed
    test = _test(node)
    if test is not None:
        yield *places.of(test), "False", "condition"
        if not isinstance(node, ast.While):
            yield *places.of(test), "True", "condition"


def _dropped(places: _Places, node: ast.AST) -> Iterator[tuple[int, int, str, str]]:
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if isinstance(node, (ast.Expr, ast.Raise, ast.AugAssign, ast.Delete)) and not is_docstring:
        yield *places.of(node), "pass", "statement"
    elif isinstance(node, ast.Continue):
        yield *places.of(node), "break", "statement"
    elif isinstance(node, ast.Break):
        yield *places.of(node), "continue", "statement"
    elif isinstance(node, ast.Return) and node.value is not None:
        new = "False" if isinstance(node.value, (ast.Compare, ast.BoolOp)) else "None"
        if places.source(node.value) != new:
            yield *places.of(node.value), new, "answer"


def edits(text: str) -> Iterator[Edit]:
    """Yield every change that the operators know for a file of Python."""
    places = _Places(text)
    stack: list[tuple[ast.AST, str]] = [(ast.parse(text), "")]
    while stack:
        node, function = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            function = f"{function}.{node.name}".strip(".")
            stack.extend((child, function) for child in node.body)
            continue
        if isinstance(node, (ast.AnnAssign, ast.arg)):  # types change nothing
            stack.extend((child, function) for child in ast.iter_child_nodes(node) if child is getattr(node, "value", 0))
            continue
        if isinstance(node, ast.JoinedStr):  # words for people, and its parts have no place of their own before 3.12
            continue
        if function:
            for start, end, new, operator in (*_changes(places, node), *_dropped(places, node)):
                yield Edit(start, end, new, operator, function)
        stack.extend((child, function) for child in ast.iter_child_nodes(node))


def lines_of(text: str, at: int) -> list[int]:
    """Return first and last line of the innermost statement around a position; of one with a body, of its head."""
    line = text.count("\n", 0, at) + 1
    heads = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno:  # type: ignore[operator]
            body = getattr(node, "body", None)
            heads.append([node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno])
    return heads[-1]
