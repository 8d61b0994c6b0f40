"""The keys of a policy file: what each takes, as the library takes it. Pure but for the file of a filter.

A function gets the dotted key and the value, and returns what holds, or raises TypeError, ValueError or
OSError with the value in it.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from . import _checks, _confine, _option_words, _own_file, _patterns, _refusals, guards
from ._values import choice, flag, integer, iterable, mapping, number, shown
from .audit._ledger import MODES

Read = Callable[[str, Any], Any]
_T = TypeVar("_T")


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{key} must be a string, not {shown(value)} ({type(value).__name__})")
    if not value or "\0" in value:
        raise ValueError(f"{key} must have characters, and no NUL: {shown(value)}")
    return value


def _as_given(key: str, value: Any) -> Any:
    del key
    return value


def _path(key: str, value: object) -> str:
    """Where a process is when it reads the file is nobody's promise: no path from there."""
    if not os.path.isabs(path := _text(key, value)):
        raise ValueError(f"{key} must be an absolute path, not {shown(value)}")
    return path


def _paths(key: str, value: object) -> list[str]:
    return [_path(f"{key}[{i}]", one) for i, one in enumerate(iterable(key, value))]


def _key_directory(key: str, value: object) -> str:
    return "" if value == "" else _path(key, value)  # empty: no keys


def _words(read: Callable[[str], _T]) -> Callable[[str, object], _T]:
    """Take a string, and read it as the command line does."""

    def call(key: str, value: object) -> _T:
        try:
            return read(_text(key, value))
        except ValueError as problem:
            raise ValueError(f"{key}: {problem}") from None

    return call


def _octal(key: str, value: object) -> int:
    if isinstance(value, int):  # 022 is no TOML, 22 and 0o22 look alike
        raise TypeError(f'{key} must be a string of octal digits, such as "027", not {shown(value)}')
    return _words(_option_words.octal)(key, value)


def _processors(key: str, value: object) -> Any:
    return _words(_option_words.processors)(key, value) if isinstance(value, str) else value


def _signal(key: str, value: object) -> int:
    return _words(_option_words.signal_number)(key, value)


def _signals(key: str, value: object) -> list[int]:
    return [_signal(f"{key}[{i}]", one) for i, one in enumerate(iterable(key, value))]


def _limits(key: str, value: object) -> dict[int, Any]:
    limits = {}
    for name, item in mapping(key, value).items():
        where = f"{key}.{name}"
        resource_number = _words(_option_words.resource_number)(where, name)
        pair = [_limit(where, part) for part in (item if isinstance(item, list) else [item])]
        limits[resource_number] = tuple(pair) if isinstance(item, list) else pair[0]
        _checks.option("rlimits", {resource_number: limits[resource_number]}, where)
    return limits


def _limit(key: str, value: object) -> int:
    if isinstance(value, str) and value != "unlimited":
        raise ValueError(f'{key} must be a number or "unlimited", not {shown(value)}')
    return resource.RLIM_INFINITY if isinstance(value, str) else integer(key, value, -1, 2**64 - 1)


def _namespaces(key: str, value: object) -> Any:
    """In a table: of ``user`` its maps, of the others an empty table, because TOML has no None."""
    if not isinstance(value, Mapping):
        return value
    return {name: _maps(f"{key}.{name}", maps) for name, maps in value.items()}


def _maps(key: str, value: object) -> dict[str, Any] | None:
    maps = mapping(key, value)
    return {who: _lines(f"{key}.{who}", lines) for who, lines in maps.items()} or None


def _lines(key: str, value: object) -> list[Any]:
    return [tuple(line) if isinstance(line, list) else line for line in iterable(key, value)]


def _landlock(key: str, value: object) -> dict[str, Any]:
    rules = mapping(key, value)
    return {kind: item if kind == "abi" else _paths(f"{key}.{kind}", item) for kind, item in rules.items()}


def _filter(key: str, value: object) -> bytes:
    try:
        return _own_file.read(
            _path(key, value), _confine.FILTER_MAX * _confine.INSTRUCTION_BYTES, "the filter"
        )
    except OSError as problem:
        raise ValueError(f"{key}: {shown(value)}: {problem.strerror}") from problem


def _option(name: str, read: Read) -> Read:
    """Read a default of an option, and have it checked as at a spawn."""

    def call(key: str, value: Any) -> Any:
        made = read(key, value)
        _checks.option(name, made, key)
        return made

    return call


def _pattern_list(key: str, value: object) -> tuple[str, ...]:
    patterns = tuple(_text(f"{key}[{i}]", one) for i, one in enumerate(iterable(key, value)))
    _patterns.compiled(key, patterns)
    return patterns


def _refused(key: str, value: object) -> tuple[str, ...]:
    _refusals.refusals(key, value)
    return tuple(iterable(key, value))


def _number(kinds: Any) -> Read:
    return lambda key, value: number(key, value, kinds)


#: Options of :func:`safespawn.spawn` that can have a default: none of those that are about one program,
#: or name a descriptor.
SPAWN: dict[str, Read] = {
    "env": _as_given,
    "cwd": _path,
    "root": _path,
    "start_new_session": _as_given,
    "process_group": _as_given,
    "umask": _octal,
    "nice": _as_given,
    "scheduler": _words(_option_words.scheduler),
    "cpu_affinity": _processors,
    "rlimits": _limits,
    "cgroup": _path,
    "pdeathsig": _signal,
    "restore_signals": _as_given,
    "sigmask": _signals,
    "sigdefault": _signals,
    "subreaper": _as_given,
    "no_new_privs": _as_given,
    "user": _as_given,
    "group": _as_given,
    "extra_groups": _as_given,
    "caps": _as_given,
    "securebits": _as_given,
    "namespaces": _namespaces,
    "landlock": _landlock,
    "seccomp": _filter,
    "env_policy": _as_given,
    "env_allow": _as_given,
    "pin": _as_given,
    "path_policy": _as_given,
    "deadline": _as_given,
    "strategy": _as_given,
    "on_unproven": _as_given,
    "audit_tags": _as_given,
}

#: Table to key to what reads its value.
KEYS: dict[str, dict[str, Read]] = {
    "guards": {"require": choice(*guards.PROOFS)},
    "spawn": {name: _option(name, read) for name, read in SPAWN.items()},
    "programs": {"refused": _refused},
    "subprocess": {"preexec_fn": choice("allow", "refuse")},
    "audit": {
        "path": _path,
        "mode": choice(*MODES),
        "keys": _key_directory,
        "max_bytes": _number(int),
        "max_seconds": _number((int, float)),
        "append_only": flag,
        "checkpoint_seconds": _number((int, float)),
        "late_failure": choice("continue", "kill"),
    },
    "redaction": {"patterns": _pattern_list},
    "exec": {"children": flag},
}
