"""One record as one line of JSON: record-one-line (T-20). Pure but for the clock.

C writes the envelope and the records that every spawn has (_ledger.c, _telling.c), in the same
form; this is for all others, for what does not fit there, and what the tests compare C with.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA = 1
#: How every ledger starts.
START = b'{"v":'
#: What is left of a line of 8000 bytes beside the envelope, the aggregate and the MAC: the members.
MEMBERS_MAX = 7500
#: What the parts that a request can make long may take of it.
ARGV_MAX, LIST_MAX, PATH_MAX = 2600, 600, 400

#: ASCII only: control characters, separators such as U+2028 and everything that a
#: terminal could obey are escaped, so a record is one line whatever it is about.
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def text(value: bytes) -> str | dict[str, str]:
    """Return bytes as text, or where they are not UTF-8 as ``{"hex": ...}``: never lossy."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"hex": value.hex()}


def path(value: bytes) -> Any:
    """Return a path as :func:`text`, or the start of one that is too long, and its digest."""
    whole = text(value)
    if len(_encode(whole)) <= PATH_MAX:
        return whole
    room = PATH_MAX // 6  # a character is six bytes at most, \\uXXXX
    return {"cut": text(value[:room]), "bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}


def some(items: Sequence[Any], room: int = LIST_MAX) -> Any:
    """Return a list, or the first of one that is too long, their number and a digest of all."""
    whole = _encode(items)
    if len(whole) <= room:
        return list(items)
    kept: list[Any] = []
    for item in items:
        room -= len(_encode(item)) + 1
        if room < 0:
            break
        kept.append(item)
    return {"first": kept, "count": len(items), "sha256": hashlib.sha256(whole.encode("ascii")).hexdigest()}


def arguments(argv: Sequence[bytes]) -> dict[str, Any]:
    """Return the fields for an argument vector.

    ``argc`` and ``argv_bytes`` (without the NULs) are always of the whole vector. When it
    does not fit, ``argv`` holds the first ones, and ``argv_cut`` and ``argv_sha256`` (of all
    arguments, each with its NUL) tell that and let the whole be recognised.
    """
    fields: dict[str, Any] = {"argc": len(argv), "argv_bytes": sum(map(len, argv))}
    kept: list[Any] = []
    room = ARGV_MAX
    for argument in argv:
        item = text(argument)
        room -= len(_encode(item)) + 1
        if room < 0:
            fields["argv_cut"] = len(kept)
            fields["argv_sha256"] = hashlib.sha256(b"".join(a + b"\0" for a in argv)).hexdigest()
            break
        kept.append(item)
    fields["argv"] = kept
    return fields


def envelope(
    chain: str, number: int, previous: str, event: str, sid: str | None, mode: str, boot: str
) -> bytes:
    """Return the first members of a record, without the closing brace; the time is now."""
    return (
        f'{{"v":{SCHEMA},"c":"{chain}","n":{number},"p":"{previous}","ev":"{event}",'
        f'"sid":{_encode(sid)},"t":{time.time_ns()},"mono":{time.monotonic_ns()},"boot":"{boot}","mode":"{mode}"'
    ).encode("ascii")


def encoded(value: Any) -> str:
    """Return a value as JSON text."""
    return _encode(value)


def members(fields: Mapping[str, Any]) -> bytes:
    """Return the members of a record after its envelope. A field that makes it too long goes."""
    data = _encode(fields)
    if len(data) > MEMBERS_MAX:
        data = _encode(_shortened(fields))
    return data[1:-1].encode("ascii")


#: What a record can best do without, in that order; who ran what is not among them.
EXPENDABLE = (
    ("what", "secret_macs"),
    ("what", "env_removed"),
    ("what", "env_keys"),
    ("what", "fds"),
    ("tags", None),
    ("want", None),
    ("how", "why"),
    ("what", "cwd"),
)


def _cut(value: Any) -> dict[str, Any]:
    data = _encode(value)
    return {"cut_bytes": len(data), "sha256": hashlib.sha256(data.encode("ascii")).hexdigest()}


def _shortened(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Replace parts by their sizes and digests until the record fits: see EXPENDABLE."""
    short = dict(fields)
    for group, name in EXPENDABLE:
        if len(_encode(short)) <= MEMBERS_MAX:
            return short
        part = short.get(group)
        if name is None and part is not None:
            short[group] = _cut(part)
        elif isinstance(part, dict) and name in part:
            short[group] = {**part, name: _cut(part[name])}
    # Nothing that a request can contain gets here; whatever else does is cut, largest first.
    for key in sorted(short, key=lambda name: -len(_encode(short[name]))):
        if len(_encode(short)) <= MEMBERS_MAX:
            break
        short[key] = _cut(short[key])
    return short
