"""Checks of single values, for the options: what is wrong is raised with the value in it. Pure."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: MAX_ARG_STRLEN of the kernel (include/uapi/linux/binfmts.h), 32 pages of 4 KiB.
STRING_MAX = 32 * 4096
#: (uid_t) -1 means "leave as it is" in setresuid(2), so it is nobody's id.
ID_MAX = 2**32 - 2
FD_MAX = 2**31 - 1


def shown(value: object) -> str:
    """Return a value as a message shows it."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a repr may raise anything: a huge int does
        return f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def text(name: str, value: object, *, empty: bool = False) -> bytes:
    """Return str, bytes or a path as bytes without NUL, no longer than execve(2) takes."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be str, bytes or a path, not {shown(value)} ({type(value).__name__})")
    try:
        data = os.fsencode(value)
    except (TypeError, UnicodeEncodeError) as problem:
        raise ValueError(f"{name} cannot be encoded: {shown(value)} ({problem})") from problem
    if b"\0" in data:
        raise ValueError(f"{name} has a NUL byte in it: {shown(value)}")
    if not data and not empty:
        raise ValueError(f"{name} is empty: {shown(value)}")
    if len(data) >= STRING_MAX:
        raise OSError(
            errno.E2BIG, f"{name} has {len(data)} bytes, execve takes {STRING_MAX - 1}: {shown(value)}"
        )
    return data


def integer(name: str, value: object, low: int, high: int) -> int:
    """Return an int (no bool) between ``low`` and ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {shown(value)} ({type(value).__name__})")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {shown(value)}")
    return value


def number(name: str, value: object, kinds: type[int] | tuple[type[int], type[float]]) -> Any:
    """Return a number (no bool) that is not negative and not past what JSON keeps exactly."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name} must be a number, not {shown(value)} ({type(value).__name__})")
    if not 0 <= value < 2**53:  # NaN is not within either
        raise ValueError(f"{name} must be 0 or more, and finite, not {shown(value)}")
    return value


def flag(name: str, value: object) -> bool:
    """Return a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {shown(value)} ({type(value).__name__})")
    return value


def choice(*names: str) -> Callable[[str, object], str]:
    """Return a check for one of these words."""

    def check(name: str, value: object) -> str:
        if value not in names:
            raise ValueError(f"{name} must be one of {', '.join(names)}, not {shown(value)}")
        return str(value)

    return check


def ranged(low: int, high: int) -> Callable[[str, object], int]:
    """Return a check for an int between the two."""
    return lambda name, value: integer(name, value, low, high)


def iterable(name: str, value: object) -> Iterable[Any]:
    """Return what can be gone through and is neither text nor a mapping."""
    if type(value) is list or type(value) is tuple:
        return value  # asking an abstract class takes a microsecond
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a sequence, not {shown(value)} ({type(value).__name__})")
    return value


def mapping(name: str, value: object) -> Mapping[Any, Any]:
    """Return a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, not {shown(value)} ({type(value).__name__})")
    return value
