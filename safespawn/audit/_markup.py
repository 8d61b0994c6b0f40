"""HTML of a page, with every text escaped."""

from __future__ import annotations

from collections.abc import Container, Iterable
from html import escape

from ._shown import clean


def text(value: str) -> str:
    """Return a text for between tags or in a quoted attribute."""
    return escape(clean(value), quote=True)


def code(value: str) -> str:
    """Return a text of a program, set apart so that its letters cannot reorder those around it."""
    return f"<code>{text(value)}</code>"


def cell(markup: str, kind: str = "", value: int | None = None) -> str:
    """Return a cell; ``value`` is what it is sorted by, if that is not its text."""
    attributes = f' class="{kind}"' if kind else ""
    attributes += "" if value is None else f' data-v="{value}"'
    return f"<td{attributes}>{markup}</td>"


def number(value: int) -> str:
    """Return a cell with a number."""
    return cell(f"{value:,}", "n" if value else "n zero", value)


def row(cells: Iterable[str], attributes: str = "") -> str:
    """Return a row."""
    return f"<tr{attributes}>{''.join(cells)}</tr>\n"


def _head(title: str, numbers: Container[str]) -> str:
    kind = ' class="n"' if title in numbers else ""
    return f'<th scope="col"{kind}>{text(title)}</th>'


def table(
    caption: str,
    heads: Iterable[str],
    rows: Iterable[str],
    *,
    numbers: Container[str] = (),
    name: str | None = None,
) -> str:
    """Return a table that a script may make sortable. ``numbers`` are the heads of columns with numbers."""
    titles = "".join(_head(head, numbers) for head in heads)
    identity = f' id="{name}"' if name else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">'
        f'<table class="sortable"{identity}><caption>{text(caption)}</caption>'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table></div>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    """Return a part of the page with its title."""
    inner = "".join(parts) or '<p class="soft">None.</p>\n'
    head = f'<h2 id="{name}-title">{text(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{head}\n{inner}</section>\n'
