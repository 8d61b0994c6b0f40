"""The arguments of a record without their secrets, and what lets them be recognised all the same. Pure."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import _first_look, _record, _shapes
from ._text_search import Span
from ._word_reader import Reader

#: What stands for a secret: U+2026, in UTF-8.
MARK = "\u2026".encode()
#: A record has room for so many arguments with secrets, and for the MACs of so many.
REDACTED_MAX, MACS_MAX = 64, 8
#: A longer argument is not searched: it is hidden if there may be a secret in it.
SEARCHED_MAX = _record.ARGV_MAX
#: What was hidden is hidden wherever it stands, unless it is so short that it may stand there by chance.
REPEATED_MIN = 6

Patterns = tuple[re.Pattern[bytes], ...]


@dataclass(frozen=True, repr=False)
class RedactionKey:
    """A key for MACs of secrets. ``label`` says whose it is: ``hk1`` of the host, ``hp1`` of this process."""

    label: str
    key: bytes

    def mac(self, strings: Iterable[bytes]) -> str:
        """Return the label and the hex of HMAC-SHA-256 (RFC 2104) over all strings, each with its NUL."""
        data = b"".join([part + b"\0" for part in strings])
        return f"{self.label}:{hmac.digest(self.key, data, 'sha256').hex()}"


def process_key() -> RedactionKey:
    """Return a new key that nobody else has: MACs under it can be compared within this process only."""
    return RedactionKey("hp1", os.urandom(32))


class Redacted(NamedTuple):
    """What of an argument vector may be shown.

    ``shown`` has the first arguments, as many as a record can have; ``indices`` are those of them that are
    or contain a secret. ``argv`` is all of it, for the MACs.
    """

    shown: tuple[bytes, ...]
    indices: tuple[int, ...]
    argv: Sequence[bytes]


def redact(
    argv: Sequence[bytes],
    secrets: Sequence[tuple[int, bytes]] = (),
    patterns: Patterns = (),
    *,
    known: bool = True,
) -> Redacted | None:
    """Return what may be shown of ``argv``; None if that is all of it.

    ``secrets`` are the arguments that the caller declared secret: index, and what may be shown of it.
    ``known``: look for what :mod:`._shapes` knows. ``patterns`` are searched in each argument: hidden is what
    their groups match, or without groups the whole match.
    """
    searched = known and _first_look.may_have_secrets(b"\0".join(argv))
    if not (searched or secrets or patterns):
        return None
    return _Redaction(argv, dict(secrets), patterns, searched=searched).result()


class _Redaction:
    """One run over an argument vector."""

    def __init__(
        self, argv: Sequence[bytes], secrets: dict[int, bytes], patterns: Patterns, *, searched: bool
    ) -> None:
        self._argv = argv
        self._secrets = secrets
        self._patterns = patterns
        self._searched = searched
        self._reader = Reader()
        self._shown: list[bytes] = []
        self._indices: set[int] = set()
        self._hidden: set[bytes] = set()

    def result(self) -> Redacted | None:
        room = _record.ARGV_MAX
        for index, argument in enumerate(self._argv):
            if room < 0 or len(self._indices) == REDACTED_MAX:
                break
            shown = self._without(self._secrets.get(index, argument))
            if shown != argument or index in self._secrets:
                self._indices.add(index)
            self._shown.append(shown)
            room -= len(shown) + 3  # quotes and a comma at least
        self._repeated()
        if not self._indices and not self._rest_may_have_secrets():
            return None
        return Redacted(tuple(self._shown), tuple(sorted(self._indices)), self._argv)

    def _without(self, argument: bytes) -> bytes:
        """Return an argument without what is secret in it, and note what that was."""
        spans: list[Span] = []
        if self._searched:
            short = len(argument) <= SEARCHED_MAX
            spans = self._reader.read(argument, search=short)
            if not short and _first_look.may_have_secrets(argument):
                spans = [(0, len(argument))]
        for pattern in self._patterns:
            spans += _matched(pattern, argument)
        return self._cut_out(argument, spans) if spans else argument

    def _cut_out(self, argument: bytes, spans: list[Span]) -> bytes:
        parts, done = [], 0
        for start, end in _merged(spans):
            self._hidden.add(argument[start:end].strip(b"\"'"))
            parts += [argument[done:start], MARK]
            done = end
        return b"".join([*parts, argument[done:]])

    def _repeated(self) -> None:
        """Hide the same secrets where nothing else tells that they are some."""
        for index, visible in self._secrets.items():
            self._hidden.update(_declared(self._argv[index], visible))
        # Not the word "password", though: it would be hidden in the names of options.
        values = [one for one in self._hidden if len(one) >= REPEATED_MIN and not _shapes.kind_of(one)]
        values.sort(key=len, reverse=True)
        for index, shown in enumerate(self._shown):
            without = shown
            for value in values:
                without = without.replace(value, MARK)
            if without != shown:
                self._shown[index] = without
                self._indices.add(index)

    def _rest_may_have_secrets(self) -> bool:
        rest = self._argv[len(self._shown) :]
        if not rest:
            return False
        return (
            bool(self._patterns or self._secrets)
            or self._reader.expects
            or _first_look.may_have_secrets(b"\0".join(rest))
        )


def _declared(whole: bytes, visible: bytes) -> list[bytes]:
    """Return the hidden part of a declared secret, where there is only one."""
    before, mark, after = visible.partition(MARK)
    if not mark or MARK in after or len(before) + len(after) > len(whole):
        return []
    return [whole[len(before) : len(whole) - len(after)]]


def _matched(pattern: re.Pattern[bytes], argument: bytes) -> list[Span]:
    groups = range(1, pattern.groups + 1) if pattern.groups else (0,)
    spans = [found.span(group) for found in pattern.finditer(argument) for group in groups]
    return [(start, end) for start, end in spans if start < end]


def _merged(spans: list[Span]) -> list[Span]:
    """Return the same places in order, those that touch as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        elif start < end:
            merged.append((start, end))
    return merged


def arguments(argv: Sequence[bytes], redacted: Redacted | None, key: RedactionKey) -> dict[str, Any]:
    """Return the fields for an argument vector, those of :func:`_record.arguments` if nothing is redacted.

    Otherwise ``redacted`` lists the indices of the arguments with a secret among those in ``argv``, and
    ``argv_mac`` stands for all arguments in full; ``secret_macs`` for each of the first eight that are
    listed. Nothing tells then how long a secret is, or has a digest of it without a key: a weak one could be
    found by trying.
    """
    if redacted is None:
        return _record.arguments(argv)
    fields = _record.arguments(redacted.shown)
    fields.pop("argv_sha256", None)
    kept = len(fields["argv"])
    indices = [index for index in redacted.indices if index < kept]
    fields["argc"] = len(argv)
    fields["argv_bytes"] += sum(map(len, argv[len(redacted.shown) :]))
    if kept < len(argv):
        fields["argv_cut"] = kept
    fields["redacted"] = indices
    fields["argv_mac"] = key.mac(argv)
    fields["secret_macs"] = [key.mac((argv[index],)) for index in indices[:MACS_MAX]]
    return fields


def environment_mac(pairs: Iterable[tuple[bytes, bytes]], key: RedactionKey) -> str:
    """Return the MAC of an environment as a program gets it: NAME=VALUE, each with its NUL."""
    return key.mac(b"=".join(pair) for pair in pairs)
