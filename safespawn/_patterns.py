"""Checks of regular expressions that are given to hide parts of arguments. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import _values

#: Flags that expressions for str and for bytes have in common; UNICODE is for str alone.
_COMMON = re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE


def compiled(name: str, patterns: Iterable[object]) -> tuple[re.Pattern[bytes], ...]:
    """Return them as expressions for bytes: arguments are bytes, text in them is UTF-8."""
    return tuple(_compiled(f"{name}[{number}]", pattern) for number, pattern in enumerate(patterns))


def _compiled(name: str, pattern: object) -> re.Pattern[bytes]:
    text, flags = pattern, re.RegexFlag(0)
    if isinstance(pattern, re.Pattern):
        if isinstance(pattern.pattern, bytes):
            return pattern
        text, flags = pattern.pattern, re.RegexFlag(pattern.flags) & _COMMON
    if not isinstance(text, str):
        shown = _values.shown(pattern)
        raise TypeError(f"{name} must be a regular expression, not {shown} ({type(pattern).__name__})")
    try:
        return re.compile(text.encode(), flags)
    except (re.error, UnicodeEncodeError) as problem:
        raise ValueError(f"{name} is no regular expression: {_values.shown(text)} ({problem})") from problem
