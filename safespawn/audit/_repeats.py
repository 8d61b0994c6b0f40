"""Where a text that was hidden in one place stands again. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ._text_search import Span

#: What stands between two of these, or at an end, stands alone.
SEPARATORS = b" \t\r\n\"'=:,;/@&?|"
#: So many places are looked at in one text, which bounds the time that a hostile one takes.
PLACES_MAX = 1000


def places(values: Mapping[bytes, bool], text: bytes) -> list[Span]:
    """Return where any of ``values`` stands, in no order: all of the text, if that is in too many places.

    Those that are False count only where they stand alone: they may be part of another word by chance.
    """
    found: list[Span] = []
    looked_at = 0
    for value, anywhere in values.items():
        for start, end in _each(value, text):
            looked_at += 1
            if looked_at > PLACES_MAX:
                return [(0, len(text))]
            if anywhere or _alone(text, start, end):
                found.append((start, end))
    return found


def _each(value: bytes, text: bytes) -> Iterator[Span]:
    start = text.find(value)
    while start >= 0:
        yield start, start + len(value)
        start = text.find(value, start + 1)  # it may overlap with itself: "aaaaaa" in "aaaaaaaa"


def _alone(text: bytes, start: int, end: int) -> bool:
    return text[max(start - 1, 0) : start] in SEPARATORS and text[end : end + 1] in SEPARATORS
