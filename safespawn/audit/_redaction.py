"""What this process redacts with: the patterns that hold for all its spawns, and the key of the MACs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from .. import _patterns
from . import _redact
from ._redact import Declared, Patterns, RedactionKey

#: So many command lines are remembered, and none with more arguments and bytes.
PLAIN_MAX, PLAIN_ARGUMENTS_MAX, PLAIN_BYTES_MAX = 256, 16, 400


class _Process:
    """The state. Patterns and key are replaced as a whole, so no reader needs a lock."""

    patterns: Patterns = ()
    #: Command lines in which nothing was to be hidden, so that they are in the ledger as they are: whoever
    #: starts the same program again and again pays for one look.
    plain: set[tuple[bytes, ...]] = set()  # noqa: RUF012 - of the process
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


def hides(argv: tuple[bytes, ...], secrets: Declared = (), patterns: Patterns | None = None) -> bool:
    """Return whether anything in an argument vector is not to be shown; see :func:`arguments`."""
    is_usual = not secrets and patterns is None and not _Process.patterns
    if is_usual and argv in _Process.plain:
        return False
    off = patterns == ()
    used = () if off else (*_Process.patterns, *(patterns or ()))
    found = _redact.redact(argv, secrets, used, known=not off) is not None
    if is_usual and not found:
        _remember(argv)
    return found


def _remember(argv: tuple[bytes, ...]) -> None:
    if len(argv) > PLAIN_ARGUMENTS_MAX or sum(map(len, argv)) > PLAIN_BYTES_MAX:
        return
    if len(_Process.plain) >= PLAIN_MAX:
        _Process.plain.clear()
    _Process.plain.add(argv)


def own_key() -> RedactionKey:
    """Return the key that only this process has, for where the host has none."""
    return _Process.own


def environment_mac(pairs: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the MAC that lets equal environments be recognised: see :func:`_redact.environment_mac`."""
    return _redact.environment_mac(pairs, _Process.key)
