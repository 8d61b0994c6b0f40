"""What is secret in a text wherever it stands: tokens, URLs, assignments, headers, SQL. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import _shapes
from ._expression import Expression
from ._shapes import Kind

#: First and last place, as in slices.
Span = tuple[int, int]

_BLANK = Expression(rb"\s")
_END_OF_PHRASE = Expression(rb"[\"'\n]|$")
_QUOTES = (b'"', b"'")
_URL_SEPARATORS = (b"?", b"&", b"#")
_BRACKETS = (b"{", b"[")
#: ``-storepass:env NAME``: says what the next argument is.
_KEYTOOL = (b"env", b"file")


def secrets_in(text: bytes, *, script: bool, plain: frozenset[bytes]) -> Iterator[Span]:
    """Yield where something is secret; the places may overlap.

    ``script``: a shell reads the text, or another interpreter. ``plain``: names that are no secrets here.
    """
    for found in _shapes.TOKEN.finditer(text):
        yield found.span()
    if b"://" in text:
        yield from _in_urls(text, script=script)
    yield from _assigned(text, script=script, plain=plain)
    yield from _headers(text, script=script)
    yield from _slashed(text, script=script)
    yield from _in_markup(text, script=script)
    for expression in (_shapes.BEARER, _shapes.COLON):
        yield from _last_groups(expression, text, script=script)
    for found in _shapes.SQL.finditer(text):
        yield _quoted(text, found.end())
    if b"|" in text or b"<<<" in text:
        yield from _piped(text)
    for found in _shapes.NETRC.finditer(text):
        yield found.span(1)


def _slashed(text: bytes, *, script: bool) -> Iterator[Span]:
    for found in _shapes.SLASHED.finditer(text):
        kind = _shapes.kind_of(found.group(1))
        if kind not in ("strong", "weak"):
            continue
        start, end = _value(text, found, found.start() == 0 and not script, script=script)
        value = text[start:end]
        if value not in _KEYTOOL and not _shapes.is_harmless(value, kind, expanded=script):
            yield start, end


def _in_markup(text: bytes, *, script: bool) -> Iterator[Span]:
    """Yield what is secret in XML, and in JSON that says name and value apart or has its quotes escaped."""
    if b"<" in text:
        yield from _last_groups(_shapes.ELEMENT, text, script=script, named=True)
    if b"value" in text.lower():
        yield from _last_groups(_shapes.NAMED, text, script=script, named=True)
    if b"\\" in text:
        yield from _last_groups(_shapes.ESCAPED, text, script=script, named=True)


def _last_groups(expression: Expression, text: bytes, *, script: bool, named: bool = False) -> Iterator[Span]:
    """Yield the last group that each match has; ``named``: only if the first is the name of a secret."""
    for found in expression.finditer(text):
        start, end = found.span(found.lastindex or 0)
        if named and _shapes.kind_of(found.group(1)) not in ("strong", "weak"):
            continue
        if start < end and not _shapes.is_harmless(text[start:end], expanded=script):
            yield start, end


def _piped(text: bytes) -> Iterator[Span]:
    for found in _shapes.PIPED.finditer(text):
        group = 1 if found.group(1) is not None else 2
        if not _shapes.is_harmless(found.group(group), expanded=True):
            yield found.span(group)


def _in_urls(text: bytes, *, script: bool) -> Iterator[Span]:
    for found in _shapes.USERINFO.finditer(text):
        secret = 2 if found.group(2) is not None else 4
        if not _shapes.is_harmless(found.group(secret), expanded=script):
            yield found.span(secret)
    for found in _shapes.USER_ALONE.finditer(text):
        yield found.span(1)


def _quoted(text: bytes, start: int) -> Span:
    """Return what stands between the quote at ``start`` and the next of its kind."""
    found = _shapes.QUOTED.match(text, start)
    assert found is not None  # noqa: S101 - the expressions before have looked
    return found.span(1 if found.group(1) is not None else 2)


def _assigned(text: bytes, *, script: bool, plain: frozenset[bytes]) -> Iterator[Span]:
    blank = _BLANK.search(text)
    first_word = 0 if script else blank.start() if blank else len(text)
    done = 0
    for found in _shapes.ASSIGNED.finditer(text):
        name = found.group(1)
        if found.start() < done or name in plain:
            continue
        kind = "strong" if _signs(text, found.start(), name) else _shapes.kind_of(name)
        if kind is None or (kind == "login" and name[:1] != b"-"):
            continue
        start, end = _value(text, found, found.start() < first_word, script=script)
        if kind in ("pair", "login"):
            start, kind = _behind_user(text, start, end, kind)
        if start < end and not _shapes.is_harmless(text[start:end], kind, expanded=script):
            yield start, end
            done = end


def _behind_user(text: bytes, start: int, end: int, kind: Kind) -> tuple[int, Kind]:
    """Return where the secret begins, and of what kind it is, behind a user or of what has none before it."""
    if text[start : start + 1] in _BRACKETS:
        return end, kind
    colon = text.find(b":", start, end)
    if colon >= 0:
        return colon + 1, "strong"
    return start if kind == "pair" else end, kind


def _signs(text: bytes, start: int, name: bytes) -> bool:
    """Whether it is the parameter that makes a URL a secret."""
    return (
        text[start - 1 : start] in _URL_SEPARATORS and _shapes.SIGNATURE.fullmatch(name.lower()) is not None
    )


def _value(text: bytes, found: re.Match[bytes], whole: bool, *, script: bool) -> Span:
    """Return where the value is that a name is followed by; ``whole``: it has the rest of the argument."""
    start, before = found.end(), text[found.start() - 1 : found.start()]
    if found.group(1).lower().endswith(b"authorization") and (scheme := _shapes.SCHEME.match(text, start)):
        start = scheme.end()
    if before in _QUOTES and text[found.end(1) : found.end(1) + 1] == before:
        return _json_value(text, start)
    if before in _QUOTES:
        end = text.find(before, start)
        return start, len(text) if end < 0 else end
    if before in _URL_SEPARATORS and not script:
        value = _shapes.PARAMETER.match(text, start)
    elif whole:
        return start, len(text)
    else:
        value = (_shapes.SCRIPT_WORD if script else _shapes.SHELL_WORD).match(text, start)
    return value.span() if value else (start, start)


def _json_value(text: bytes, start: int) -> Span:
    if text[start : start + 1] in _QUOTES:
        return _quoted(text, start)
    value = _shapes.JSON_VALUE.match(text, start)
    return value.span() if value else (start, start)


def _headers(text: bytes, *, script: bool) -> Iterator[Span]:
    done = 0
    for found in _shapes.HEADER.finditer(text):
        name = found.group(1)
        if found.start() < done or _shapes.kind_of(name) in (None, "login"):
            continue
        if text[found.end() - 1 : found.end()] == b":" and not _shapes.HEADER_NAME.fullmatch(name.lower()):
            continue
        scheme = _shapes.SCHEME.match(text, found.end())
        start = scheme.end() if scheme else found.end()
        end = _end_of_header(text, found, start, script=script)
        if start < end and not _shapes.is_harmless(text[start:end], expanded=script):
            yield start, end
            done = end


def _end_of_header(text: bytes, found: re.Match[bytes], start: int, *, script: bool) -> int:
    before = text[found.start() - 1 : found.start()]
    if before in _QUOTES:
        end = text.find(before, start)
    elif before.isspace() or (script and before == b""):
        # In the middle of a text. Of other headers than this one the next word is enough (ASSIGNED).
        stop = (
            _END_OF_PHRASE.search(text, start) if found.group(1).lower().endswith(b"authorization") else None
        )
        end = stop.start() if stop else start
    else:
        end = -1
    return len(text) if end < 0 else end
