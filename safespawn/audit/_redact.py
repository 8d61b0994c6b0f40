"""The arguments of a record without their secrets, and what lets them be recognised all the same. Pure."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from . import _first_look, _record, _repeats, _shapes
from ._text_search import Span
from ._word_reader import Reader

#: What stands for a secret: U+2026, in UTF-8.
MARK = "\u2026".encode()
#: A record has room for so many arguments with secrets, and for the MACs of so many.
REDACTED_MAX, MACS_MAX = 64, 8
#: A longer argument is not searched, nor more in all: it is hidden if there may be a secret in it.
SEARCHED_MAX = _record.ARGV_MAX
SEARCHED_IN_ALL = 8 * SEARCHED_MAX
#: A shorter text may be part of a word by chance.
ANYWHERE_MIN = 6
#: What stands for a declared secret while the rest is searched, for each of its bytes: it is part of no name,
#: no token and no separator, and of no UTF-8.
OPAQUE = b"\xff"

Patterns = tuple[re.Pattern[bytes], ...]
Declared = Sequence[tuple[int, Sequence[Span]]]


class RedactionKey:
    """A key for MACs of secrets. ``label`` says whose it is: ``hk1`` of the host, ``hp1`` of this process."""

    __slots__ = ("key", "label")

    def __init__(self, label: str, key: bytes) -> None:
        self.label = label
        self.key = key

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
    or contain a secret, ``hidden`` the parts of each that are left out. ``argv`` is all of it, for the MACs.
    """

    shown: tuple[bytes, ...]
    indices: tuple[int, ...]
    hidden: tuple[tuple[bytes, ...], ...]
    argv: Sequence[bytes]


def redact(
    argv: Sequence[bytes],
    secrets: Declared = (),
    patterns: Patterns = (),
    *,
    known: bool = True,
) -> Redacted | None:
    """Return what may be shown of ``argv``; None if that is all of it.

    ``secrets`` are the arguments that the caller declared secret: index, and the places of the parts that
    are; what they say is not looked at. ``known``: look for what :mod:`._shapes` knows. ``patterns`` are
    searched in each argument: hidden is what their groups match, or without groups the whole match.
    """
    seen = _opaque(argv, secrets) if secrets else argv
    searched = known and _first_look.may_have_secrets(b"\0".join(seen))
    if not (searched or secrets or patterns):
        return None
    return _Redaction(argv, seen, dict(secrets), patterns, searched=searched).result()


def _opaque(argv: Sequence[bytes], secrets: Declared) -> Sequence[bytes]:
    """Return the arguments with OPAQUE for what was declared: what it says must not matter."""
    seen = list(argv)
    for index, spans in secrets:
        argument = bytearray(seen[index])
        for start, end in spans:
            argument[start:end] = OPAQUE * (end - start)
        seen[index] = bytes(argument)
    return seen


class _Redaction:
    """One run over an argument vector."""

    def __init__(
        self,
        argv: Sequence[bytes],
        seen: Sequence[bytes],
        declared: dict[int, Sequence[Span]],
        patterns: Patterns,
        *,
        searched: bool,
    ) -> None:
        self._argv = argv
        self._seen = seen
        self._declared = declared
        self._patterns = patterns
        self._searched = searched
        self._reader = Reader()
        self._unsearched = SEARCHED_IN_ALL
        self._spans: list[list[Span]] = []  # for each argument that may be shown

    def result(self) -> Redacted | None:
        room, redacted = _record.ARGV_MAX, 0
        for index, argument in enumerate(self._seen):
            if room < 0 or redacted == REDACTED_MAX:
                break
            spans = _merged([*self._declared.get(index, ()), *self._found(argument)])
            self._spans.append(spans)
            redacted += bool(spans)
            room -= len(_without(argument, spans)) + 3  # quotes and a comma at least
        self._repeated()
        indices = [index for index, spans in enumerate(self._spans) if spans][:REDACTED_MAX]
        if len(indices) == REDACTED_MAX:
            del self._spans[indices[-1] + 1 :]
        if not indices and not self._rest_may_have_secrets():
            return None
        shown = tuple(map(_without, self._argv, self._spans))
        return Redacted(shown, tuple(indices), tuple(map(self._hidden, indices)), self._argv)

    def _found(self, argument: bytes) -> list[Span]:
        """Return what looks secret in the next argument."""
        spans: list[Span] = []
        if self._searched:
            self._unsearched -= len(argument)
            short = len(argument) <= SEARCHED_MAX and self._unsearched >= 0
            spans = self._reader.read(argument, search=short)
            if not short and _first_look.may_have_secrets(argument):
                spans = [(0, len(argument))]
        for pattern in self._patterns:
            spans += _matched(pattern, argument)
        return [(start, end) for start, end in spans if start < end]

    def _hidden(self, index: int) -> tuple[bytes, ...]:
        argument = self._argv[index]
        return tuple([argument[start:end] for start, end in self._spans[index]])

    def _repeated(self) -> None:
        """Hide the same secrets where nothing else tells that they are some."""
        texts = [self._text(index) for index in range(len(self._spans))]
        together = b"\0".join(texts)
        values = self._values(together)
        for index, text in enumerate(texts if values else ()):
            places = _repeats.places(values, text)
            if places and len(self._argv[index]) > SEARCHED_MAX:
                self._spans[index] = [(0, len(self._argv[index]))]
            else:
                self._spans[index] = _merged([*self._spans[index], *places])

    def _text(self, index: int) -> bytes:
        """Return where an argument is searched for what others hide: of a long one what is shown of it."""
        argument = self._argv[index]
        text = argument if len(argument) <= SEARCHED_MAX else _without(argument, self._spans[index])
        return text if len(text) <= SEARCHED_MAX else b""  # no record has room for it

    def _values(self, together: bytes) -> dict[bytes, bool]:
        """Return what is hidden and stands there again, and whether it is hidden within words too."""
        found = {part.strip(b"\"'") for index in range(len(self._spans)) for part in self._hidden(index)}
        # Not the word "password", though: it would be hidden in the names of options.
        long = [one for one in found if len(one) >= ANYWHERE_MIN and one in together]
        values = {one: not _shapes.kind_of(one) for one in long}
        for index, spans in self._declared.items():
            parts = [self._argv[index][start:end] for start, end in spans if start < end]
            values.update((part, len(part) >= ANYWHERE_MIN) for part in parts if part in together)
        return values

    def _rest_may_have_secrets(self) -> bool:
        rest = self._seen[len(self._spans) :]
        if not rest:
            return False
        return (
            bool(self._patterns or self._declared)
            or self._reader.expects
            or _first_look.may_have_secrets(b"\0".join(rest))
        )


def _without(argument: bytes, spans: Sequence[Span]) -> bytes:
    """Return an argument with the mark for each place of a list that is in order."""
    parts, done = [], 0
    for start, end in spans:
        parts += [argument[done:start], MARK]
        done = end
    return b"".join([*parts, argument[done:]]) if parts else argument


def _matched(pattern: re.Pattern[bytes], argument: bytes) -> list[Span]:
    groups = range(1, pattern.groups + 1) if pattern.groups else (0,)
    return [found.span(group) for found in pattern.finditer(argument) for group in groups]


def _merged(spans: list[Span]) -> list[Span]:
    """Return the same places in order, those that touch as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def arguments(argv: Sequence[bytes], redacted: Redacted | None, key: RedactionKey) -> dict[str, Any]:
    """Return the fields for an argument vector, those of :func:`_record.arguments` if nothing is redacted.

    Otherwise ``redacted`` lists the indices of the arguments with a secret among those in ``argv``, and
    ``argv_mac`` stands for all arguments in full; ``secret_macs`` for what is hidden in each of the first
    eight that are listed. Nothing tells then how long a secret is, or has a digest of it without a key: a
    weak one could be found by trying.
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
    fields["secret_macs"] = [key.mac(parts) for parts in redacted.hidden[: min(len(indices), MACS_MAX)]]
    return fields


def environment_mac(pairs: Iterable[tuple[bytes, bytes]], key: RedactionKey) -> str:
    """Return the MAC of an environment as a program gets it: NAME=VALUE, each with its NUL."""
    return key.mac(b"=".join(pair) for pair in pairs)
