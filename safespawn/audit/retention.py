"""Deleting old segments of a ledger, so that the verifier knows them from those that were stolen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from functools import partial
from typing import Any

from .._errors import AuditError
from . import _files, _record
from ._ledger import Ledger, Options


def retire(
    path: str | os.PathLike[str], *, keep: int, keys: str | os.PathLike[str] | None = None
) -> list[str]:
    """Delete the oldest segments until ``keep`` of them are left beside the one that is written.

    Each gets a ``segment.retired`` record with its digest and the last record of every chain in it,
    on the disk before the file goes. Returns the names of the files. Raises ValueError for a negative
    ``keep``, AuditError when the record cannot be kept, OSError when a file cannot be read or deleted.
    """
    if keep < 0:
        raise ValueError(f"keep must be 0 or more, not {keep!r}")
    where = os.path.abspath(os.fspath(path))
    numbers = sorted(_files.numbers(where))
    names = [f"{where}.{number}" for number in numbers[: max(0, len(numbers) - keep)]]
    if not names:
        return []
    with Ledger(where, "durable", Options(keys)) as ledger:
        for name in names:
            if not ledger.append("segment.retired", None, partial(_summary, name)):
                raise AuditError(None, "the record of a retired segment was not kept", name)
            ledger.flush()
            _delete(name)
    return names


def _summary(name: str) -> dict[str, Any]:
    digest, heads, size = hashlib.sha256(), dict[str, list[Any]](), 0
    with open(name, "rb") as file:
        for line in file:
            digest.update(line)
            size += len(line)
            if (told := _head(line)) is not None:
                heads[told[0]] = [told[1], hashlib.sha256(line.rstrip(b"\n")).hexdigest()]
    return {
        "segment": _record.path(os.fsencode(os.path.basename(name))),
        "sha256": digest.hexdigest(),
        "bytes": size,
        "heads": heads,
    }


def _head(line: bytes) -> tuple[str, int] | None:
    try:
        record = json.loads(line)
        return record["c"], record["n"]
    except (ValueError, KeyError, TypeError):
        return None  # part of a line: no record


def _delete(name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        with contextlib.suppress(OSError):  # file systems without such a flag
            _files.set_append_only(fd, on=False)
        os.unlink(name)
    finally:
        os.close(fd)
