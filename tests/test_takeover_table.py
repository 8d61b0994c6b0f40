"""The tables of docs/takeover.md: every line of them is run, and the ledger has what the page says."""

from __future__ import annotations

import fnmatch
import functools

import pytest

import pages
import startings

_TEXT = pages.text_of("takeover.md")
#: What the page says it has done before: the second block of Python.
_BEFORE = [block.text for block in pages.blocks(_TEXT) if block.language == "python"][1]


def _rows() -> list[tuple[str, str, str]]:
    """Return what is done before and after `install()`, and what is said to be recorded."""
    rows, before = [], ""
    for table in pages.tables(_TEXT):
        if table.head[-1] != "recorded":
            continue
        for *first, code, recorded in table.rows:
            if first != ["the same"]:
                before = "; ".join(pages.codes(first[0])) if first else ""
            rows.append((before, "; ".join(pages.codes(code)), recorded))
    return rows


ROWS = _rows()


@functools.cache
def _told(before: str) -> list[list[str]]:
    """Return what was recorded of all rows that share what is done before, in one process."""
    codes = [code for first, code, _ in ROWS if first == before]
    return startings.told(codes, f"{_BEFORE}\n{before}")


def test_all_rows_are_found() -> None:
    """The page has its rows, and none is left out for its form."""
    assert len(ROWS) == 54
    assert all(code for _, code, _ in ROWS)


@pytest.mark.parametrize("place", range(len(ROWS)), ids=[f"{before} {code}"[:60] for before, code, _ in ROWS])
def test_row(place: int) -> None:
    """The code of a row leaves the records that the page says, and no others."""
    before, _, recorded = ROWS[place]
    told = _told(before)[sum(1 for row in ROWS[:place] if row[0] == before)]
    said = [] if recorded == "nothing" else pages.codes(recorded)
    assert len(told) == len(said), (told, said)
    for one, pattern in zip(told, said, strict=True):
        assert fnmatch.fnmatchcase(one, pattern.replace("[", "[[]").replace("…", "*")), told
