"""Reads the pages of the documentation: fenced blocks, tables, links, headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import helpers

DOCS = helpers.ROOT / "docs"

_FENCE = re.compile(r"^( *)```([a-z]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
#: A link or an image: text, and where it leads.
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the page where that begins."""

    language: str
    text: str
    line: int


class Table(NamedTuple):
    """A table: the heading of its section, its column heads, its rows."""

    section: str
    head: list[str]
    rows: list[list[str]]


def text_of(name: str) -> str:
    """Return the text of a page of docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [
        Block(found[2], found[3], text.count("\n", 0, found.start(3)) + 1) for found in _FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """Return a page without its fenced blocks and its code."""
    return _CODE.sub("", _FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Return where the links of a page lead."""
    return _LINK.findall(prose(text))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    plain = _FENCE.sub("", text)
    heads = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables(text: str) -> Iterator[Table]:
    """Yield the tables of a page."""
    section, lines = "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(_cells(line))
            continue
        if lines:
            yield Table(section, lines[0], lines[2:])
            lines = []
        if line.startswith("#"):
            section = line.lstrip("# ")


def codes(cell: str) -> list[str]:
    """Return the code in a cell."""
    return _CODE.findall(cell)
