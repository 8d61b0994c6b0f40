"""What this process redacts with: the patterns that hold for all its spawns, and the key of the MACs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from .. import _patterns
from . import _redact
from ._redact import Declared, Patterns, RedactionKey


class _Process:
    """The state. Both are replaced as a whole, so no reader needs a lock."""

    patterns: Patterns = ()
    own: RedactionKey = _redact.process_key()
    key: RedactionKey = own


def redact(*patterns: str | re.Pattern[str] | re.Pattern[bytes]) -> None:
    """Hide what these regular expressions match, in the arguments of every spawn of this process.

    They are added to the known ones, and to those of earlier calls; the option ``redact`` adds more for one
    spawn. Raises TypeError or ValueError for what is no regular expression.
    """
    added = _patterns.compiled("redact", patterns)
    _Process.patterns = tuple(dict.fromkeys((*_Process.patterns, *added)))


def use_key(key: RedactionKey) -> None:
    """Make the MACs of all later records under this key: that of the host, once it was read."""
    _Process.key = key


def arguments(
    argv: Sequence[bytes], secrets: Declared = (), patterns: Patterns | None = None
) -> dict[str, Any]:
    """Return the fields of a record for an argument vector, redacted.

    ``secrets`` as for :func:`_redact.redact`. ``patterns``: those of the spawn; None for no others than
    those of the process. An empty tuple turns everything off but ``secrets``.
    """
    off = patterns == ()
    used = () if off else (*_Process.patterns, *(patterns or ()))
    return _redact.arguments(argv, _redact.redact(argv, secrets, used, known=not off), _Process.key)


def hides(argv: Sequence[bytes], secrets: Declared = (), patterns: Patterns | None = None) -> bool:
    """Return whether anything in an argument vector is not to be shown; see :func:`arguments`."""
    off = patterns == ()
    used = () if off else (*_Process.patterns, *(patterns or ()))
    return _redact.redact(argv, secrets, used, known=not off) is not None


def own_key() -> RedactionKey:
    """Return the key that only this process has, for where the host has none."""
    return _Process.own


def environment_mac(pairs: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the MAC that lets equal environments be recognised: see :func:`_redact.environment_mac`."""
    return _redact.environment_mac(pairs, _Process.key)
