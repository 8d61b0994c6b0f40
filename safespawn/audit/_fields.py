"""Members of a record, which may hold anything: each is taken as what it should be, or not at all. Pure."""

from __future__ import annotations

import json
from typing import Any


def number(value: Any) -> int | None:
    """Return a number of the kernel's or the clock's; a record may hold any number of digits."""
    return value if type(value) is int and -(1 << 63) <= value < 1 << 64 else None


def string(value: Any) -> str | None:
    """Return a string, None for anything else."""
    return value if isinstance(value, str) else None


def group(value: Any) -> dict[str, Any]:
    """Return an object, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """Return a list, or the first of one that was too long for its record."""
    value = group(value).get("first", value)
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """Return a text of a record: a string, bytes in hex, the start of a path that was too long, or JSON."""
    if isinstance(value, str):
        return value
    parts = group(value)
    if isinstance(code := parts.get("hex"), str):
        try:
            return bytes.fromhex(code).decode("utf-8", "surrogateescape")
        except ValueError:
            pass
    if "cut" in parts and len(parts) > 1:
        return as_text(parts["cut"]) + "…"
    return json.dumps(value, separators=(",", ":"))
