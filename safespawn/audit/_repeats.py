"""Where a text that was hidden in one place stands again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ._text_search import Span

#: A shorter text may stand anywhere by chance: only what stands between two of SEPARATORS is the same.
ANYWHERE_MIN = 6
SEPARATORS = b" \t\r\n\"'=:,;/@&?|"
#: So many places are looked at in one text, which bounds the time that a hostile one takes.
PLACES_MAX = 1000


def places(values: Iterable[bytes], text: bytes) -> list[Span]:
    """Return where any of ``values`` stands, in no order: all of the text, if that is in too many places."""
    found: list[Span] = []
    for value in values:
        for place in _each(value, text):
            found.append(place)
            if len(found) > PLACES_MAX:
                return [(0, len(text))]
    return [place for place in found if place[1] - place[0] >= ANYWHERE_MIN or _alone(text, *place)]


def _each(value: bytes, text: bytes) -> Iterator[Span]:
    start = text.find(value)
    while start >= 0:
        yield start, start + len(value)
        start = text.find(value, start + 1)  # it may overlap with itself: "aaaaaa" in "aaaaaaaa"


def _alone(text: bytes, start: int, end: int) -> bool:
    return text[max(start - 1, 0) : start] in SEPARATORS and text[end : end + 1] in SEPARATORS
