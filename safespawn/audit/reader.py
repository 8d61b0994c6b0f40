"""Reads a ledger line by line: records, and lines that are none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn


class Record(NamedTuple):
    """One line of a ledger. ``problem`` says why it is no record; ``fields`` is empty then."""

    line: bytes
    fields: dict[str, Any]
    where: str
    problem: str | None


def records(path: str) -> Iterator[Record]:
    """Yield every line of a file; of ``-``, standard input. Raises OSError."""
    name = os.path.basename(path)
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        for number, line in enumerate(file, 1):
            yield _read(line.rstrip(b"\n"), f"{name}:{number}")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no integer")


def _read(line: bytes, where: str) -> Record:
    try:
        made = json.loads(line.decode("ascii"), parse_float=_no_number, parse_constant=_no_number)
    except (ValueError, RecursionError) as problem:
        return Record(line, {}, where, f"no JSON of a ledger: {problem}")
    if not isinstance(made, dict) or not line.startswith(b'{"v":1,"c":"'):
        return Record(line, {}, where, "not the form of a record")
    return Record(line, made, where, None)
