"""Fuzz target for the audit's encoder in Python: redaction, and the members of a record.

An input is a literal ``(argv, options)``: arguments as bytes; of the options ``secrets`` has for an index the
places that were declared secret, ``patterns`` what is hidden beside, ``known`` whether the usual shapes are,
``path`` and ``tags`` are other things that a record can have. What must hold:

* members are one line of ASCII, JSON without floats that is read back to what was given, within their room;
* without redaction arguments are told byte by byte, or cut with the digest of all;
* of what was declared secret nothing is shown, wherever it stands;
* what was hidden, put back, gives the arguments;
* MACs are those of the strings that they stand for.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Any

import target
from hypothesis import strategies as st

with target.instrumented():
    from safespawn.audit import _fields, _record, _redact

KEY = _redact.RedactionKey("hk1", b"k" * 32)
MARK = "\u2026".encode()


def _bytes(item: Any) -> bytes:
    """Return what a text of a record stands for."""
    return item.encode() if isinstance(item, str) else bytes.fromhex(item["hex"])


def _mac(strings: list[bytes]) -> str:
    return "hk1:" + hmac.new(b"k" * 32, b"".join(one + b"\0" for one in strings), "sha256").hexdigest()


def _no_float(text: str) -> None:
    raise AssertionError(text)


def _read(data: bytes) -> Any:
    """Read members strictly: each name once, no floats, nothing that breaks a line."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in items}) == len(items)
        return dict(items)

    assert all(0x20 <= byte <= 0x7E for byte in data)
    assert len(data) <= _record.MEMBERS_MAX
    text = b"{" + data + b"}"
    return json.loads(text, parse_float=_no_float, parse_constant=_no_float, object_pairs_hook=pairs)


def _check_plain(argv: list[bytes], told: dict[str, Any]) -> None:
    shown = [_bytes(item) for item in told["argv"]]
    assert shown == argv[: len(shown)]
    assert ("argv_cut" in told) == (len(shown) < len(argv))
    if len(shown) < len(argv):
        assert told["argv_cut"] == len(shown)
        whole = b"".join(one + b"\0" for one in argv)
        assert told["argv_sha256"] == hashlib.sha256(whole).hexdigest()


def _put_back(shown: bytes, hidden: tuple[bytes, ...]) -> bytes:
    for part in hidden:
        before, mark, shown = shown.partition(MARK)
        assert mark
        shown = before + part + shown
    return shown


def _check_redacted(
    argv: list[bytes], told: dict[str, Any], redacted: _redact.Redacted, secrets: list[bytes]
) -> None:
    shown = [_bytes(item) for item in told["argv"]]
    assert "argv_sha256" not in told
    assert told["argv_mac"] == _mac(argv)
    assert told["redacted"] == [index for index in redacted.indices if index < len(shown)]
    for index, hidden in zip(redacted.indices, redacted.hidden, strict=True):
        if index < len(shown) and MARK not in argv[index] and not any(MARK in part for part in hidden):
            assert _put_back(shown[index], hidden) == argv[index]
    for mac, hidden in zip(told["secret_macs"], redacted.hidden, strict=False):
        assert mac == _mac(list(hidden))
    untouched = set(range(len(shown))) - set(told["redacted"])
    assert all(shown[index] == argv[index] for index in untouched)
    for secret in secrets:
        # Shorter ones may be part of a word by chance; what is shown of a mark is none of it.
        assert len(secret) < _redact.ANYWHERE_MIN or MARK in secret or not any(secret in one for one in shown)


def _spans(value: Any, argv: list[bytes]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return what may be declared: existing arguments, places in order that do not touch."""
    made = []
    for index, places in sorted(value.items()):
        at, kept = 0, []
        for start, end in sorted(places):
            if at <= start < end <= len(argv[index]):
                kept.append((start, end))
                at = end + 1
        made.append((index, kept))
    return made


def _patterns(value: Any) -> tuple[re.Pattern[bytes], ...]:
    return tuple(re.compile(one) for one in value)


def run(given: tuple[Any, dict[str, Any]]) -> str:
    """Encode one record; returns what its arguments are."""
    argv, options = given
    secrets = _spans(options.get("secrets", {}), argv)
    patterns = _patterns(options.get("patterns", ()))
    redacted = _redact.redact(argv, secrets, patterns, known=options.get("known", True))
    fields = {"what": _redact.arguments(argv, redacted, KEY), "tags": options.get("tags", {})}
    fields["what"]["cwd"] = _record.path(options.get("path", b"/"))
    fields["what"]["list"] = _record.some([_record.text(one) for one in argv])
    read = _read(_record.members(fields))
    told = fields["what"]
    assert told["argc"] == len(argv)
    if len(json.dumps(fields, separators=(",", ":"))) <= _record.MEMBERS_MAX:
        assert read == json.loads(json.dumps(fields))
    # Who ran what is never left out, whatever else a record has.
    assert read["what"].get("argv", told["argv"]) == told["argv"] or "cut_bytes" in read["what"]
    path = options.get("path", b"/")
    assert _fields.as_text(told["cwd"]).encode("utf-8", "surrogateescape") == path or "cut" in told["cwd"]
    parts = [argv[index][start:end] for index, places in secrets for start, end in places]
    if redacted is None:
        assert not parts
        _check_plain(argv, told)
        return "cut" if "argv_cut" in told else "whole"
    _check_redacted(argv, told, redacted, parts)
    return "redacted"


def _is_input(given: tuple[Any, dict[str, Any]] | None) -> bool:
    """Whether a literal is one of ours: what the callers of the encoder have checked already."""
    if given is None or type(given[0]) is not list or not all(type(one) is bytes for one in given[0]):
        return False
    argv, options = given
    if any(b"\0" in one for one in argv) or set(options) - {"secrets", "patterns", "known", "tags", "path"}:
        return False
    try:
        secrets, patterns = options.get("secrets", {}), options.get("patterns", ())
        assert all(type(index) is int and 0 <= index < len(argv) for index in secrets)
        assert all(type(start) is type(end) is int for places in secrets.values() for start, end in places)
        assert type(options.get("path", b"")) is bytes
        assert all(
            type(one) is bytes and len(one) < 40 and not re.search(rb"[*+{(]", one) for one in patterns
        )
        _patterns(patterns)
        tags = options.get("tags", {})
        return all(type(name) is type(value) is str for name, value in tags.items())
    except (AssertionError, TypeError, ValueError, AttributeError, re.error):
        return False


def check(data: bytes) -> str:
    """Encode the record of an input."""
    given = target.literal(data)
    return run(given) if given is not None and _is_input(given) else "no input"


# ------------------------------------------------------------------ with hypothesis

_WORDS = st.sampled_from(
    [b"--password=hunter22", b"--token", b"Authorization: Bearer abcdefghijkl", b"-u", b"user:secret99",
     b"mysql", b"-pSecret1", b"https://user:pa55word@host/", b"AKIAIOSFODNN7EXAMPLE", b"x" * 2600,
     b"\xff\xfe", b"", MARK, b"KEY=value", b"curl",
     "caf\u00e9\u2028".encode(), b'"\\\n\r\t', b"hunter22", b"secret99"]
) | st.binary(max_size=12).map(lambda one: one.replace(b"\0", b"0"))  # fmt: skip
_ARGV = st.lists(_WORDS | st.tuples(_WORDS, _WORDS).map(b"".join), max_size=9)
_PLACES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=2)
_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "known": st.booleans(),
        "patterns": st.lists(st.sampled_from([b"hunter..", b"[a-z]", b"=", b"^", b"secret"]), max_size=2),
        "path": st.binary(max_size=9) | st.sampled_from([b"/" + b"x" * 500, b"/\xff" * 300]),
        "tags": st.dictionaries(
            st.text(max_size=3), st.text(max_size=5) | st.just("\u2026" * 1024), max_size=8
        ),
    },
)


@st.composite
def _inputs(draw: st.DrawFn) -> tuple[list[bytes], dict[str, Any]]:
    argv, options = draw(_ARGV), draw(_OPTIONS)
    if argv and draw(st.booleans()):
        options["secrets"] = {draw(st.integers(0, len(argv) - 1)): draw(_PLACES)}
    return argv, options


INPUTS = _inputs()

if __name__ == "__main__":
    target.main(check, INPUTS, run)
