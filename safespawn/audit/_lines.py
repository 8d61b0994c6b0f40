"""One line of a ledger, which anybody may have written, as a record, or what is wrong with it. Pure."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn

#: Bytes that a record has at most, its newline included: docs/audit-format.md, "A record".
LINE_MAX = 8000
#: How a record starts, to the byte.
START = b'{"v":1,"c":"'
#: Parts within parts that a record may have; ours have five. What reads them may recurse.
DEPTH_MAX = 32
#: 2**63 nanoseconds after 1970 is in the year 2262, the last that clock_gettime(2) can tell in 64 bits.
_TIME_END = 1 << 63


class Record(NamedTuple):
    """One line. ``line`` is without its newline, and only the start of one that is too long.

    ``where`` is file name and number of the line, as ``ledger.jsonl:12``; while a file is
    followed it is file name and byte, as ``ledger.jsonl@4096``. ``problem`` says why the line
    is no whole record; then ``fields`` is empty.
    """

    line: bytes
    fields: dict[str, Any]
    where: str
    problem: str | None


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text!r} is no integer")


#: NaN, Infinity and floats are in no record: docs/audit-format.md, "Text".
_decode = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float).raw_decode


def parse(line: bytes, where: str) -> Record:
    """Return the record in a line without its newline; what is wrong with it is in ``problem``."""
    if not line.startswith(START) or not line.endswith(b"}"):
        return _bad(line, where, "not the form of a record, or only a part of one")
    try:
        text = line.decode("ascii")
        if not text.isprintable():
            return _bad(line, where, "a control character")
        fields, end = _decode(text)
    except (ValueError, RecursionError) as problem:
        return _bad(line, where, f"no JSON of ours: {problem}")
    if end != len(text):
        return _bad(line, where, "something after the end of the record")
    wrong = "nested too deep" if _is_deep(line, fields) else _envelope(fields)
    return Record(line, fields, where, None) if wrong is None else _bad(line, where, wrong)


def _is_deep(line: bytes, fields: Any) -> bool:
    if line.count(b"{") + line.count(b"[") <= DEPTH_MAX:
        return False
    level = [fields]
    for _ in range(DEPTH_MAX):
        level = [part for whole in level for part in _parts(whole)]
    return bool(level)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _envelope(fields: dict[str, Any]) -> str | None:
    """Return which of the members that everything here rests on is not as it must be."""
    for name, kind in (("c", str), ("n", int), ("ev", str), ("t", int)):
        if type(fields.get(name)) is not kind:
            return f"{name} is {fields.get(name)!r:.80}"
    if not isinstance(fields.get("sid"), str | None):
        return f"sid is {fields['sid']!r:.80}"
    if not 0 <= fields["t"] < _TIME_END:
        return f"t is {fields['t']!r:.80}"
    return None


def _bad(line: bytes, where: str, problem: str) -> Record:
    return Record(line, {}, where, problem)


def too_long(start: bytes, where: str) -> Record:
    """Return what a line is that has more bytes than a record may have."""
    return _bad(start[: LINE_MAX - 1], where, f"longer than {LINE_MAX} bytes")


def unended(line: bytes, where: str) -> Record:
    """Return what is at the end of a file without a newline."""
    return _bad(line, where, "no newline at its end: cut off, or being written just now")
