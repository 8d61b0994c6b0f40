"""Checks of what the mirrors are given: what is wrong is raised with the value in it. Pure."""

from __future__ import annotations

import os
import re

from ..._values import integer, iterable, shown

#: sun_path of unix(7), less its NUL.
PATH_MAX = 107

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_EVENT = re.compile(r"[A-Za-z.]{1,32}")
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}")


def mirror_name(value: object) -> str:
    """Return the name of a mirror, which stands in records."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"name must be 1 to 64 letters, digits, dots, dashes or underscores: {shown(value)}")
    return value


def event_names(value: object) -> frozenset[str]:
    """Return a set of events."""
    events = frozenset(iterable("events", value))
    for event in events:
        if not isinstance(event, str) or not _EVENT.fullmatch(event):
            raise ValueError(f"events has no event's name in it: {shown(event)}")
    return events


def socket_path(name: str, value: object) -> str:
    """Return the path of a Unix socket."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be str or a path, not {shown(value)} ({type(value).__name__})")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path or len(os.fsencode(path)) > PATH_MAX:
        raise ValueError(f"{name} must have 1 to {PATH_MAX} bytes and no NUL, not {shown(value)}")
    return path


def hostname(name: str, value: object) -> str:
    """Return a host's name or address."""
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise ValueError(f"{name} is no name or address of a host: {shown(value)}")
    return value


def port(name: str, value: object) -> int:
    """Return the number of a port."""
    return integer(name, value, 1, 65535)


def seconds(name: str, value: object) -> float:
    """Return a time that a mirror may wait."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {shown(value)} ({type(value).__name__})")
    if not 0 < value <= 3600:  # no for nan too
        raise ValueError(f"{name} must be above 0 and at most 3600 seconds, not {shown(value)}")
    return float(value)
