"""Makes a `Request` of what a caller gave, or says which value is wrong: input-checked (T-17).

Pure: looks at values only, never at the system.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._spec import DEVNULL, PIPE, STDOUT, Request

#: MAX_ARG_STRLEN of the kernel (include/uapi/linux/binfmts.h), 32 pages of 4 KiB.
STRING_MAX = 32 * 4096
#: (uid_t) -1 means "leave as it is" in setresuid(2), so it is nobody's id.
ID_MAX = 2**32 - 2
FD_MAX = 2**31 - 1
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a repr may raise anything: a huge int does
        return f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def text(name: str, value: object, *, empty: bool = False) -> bytes:
    """Return str, bytes or a path as bytes without NUL, no longer than execve(2) takes."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be str, bytes or a path, not {_shown(value)} ({type(value).__name__})")
    try:
        data = os.fsencode(value)
    except (TypeError, UnicodeEncodeError) as problem:
        raise ValueError(f"{name} cannot be encoded: {_shown(value)} ({problem})") from problem
    if b"\0" in data:
        raise ValueError(f"{name} has a NUL byte in it: {_shown(value)}")
    if not data and not empty:
        raise ValueError(f"{name} is empty: {_shown(value)}")
    if len(data) >= STRING_MAX:
        raise OSError(
            errno.E2BIG, f"{name} has {len(data)} bytes, execve takes {STRING_MAX - 1}: {_shown(value)}"
        )
    return data


def integer(name: str, value: object, low: int, high: int) -> int:
    """Return an int (no bool) between ``low`` and ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {_shown(value)} ({type(value).__name__})")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {_shown(value)}")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {_shown(value)} ({type(value).__name__})")
    return value


def _choice(*names: str) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if value not in names:
            raise ValueError(f"{name} must be one of {', '.join(names)}, not {_shown(value)}")
        return str(value)

    return check


def _ranged(low: int, high: int) -> Callable[[str, object], int]:
    return lambda name, value: integer(name, value, low, high)


def _iterable(name: str, value: object) -> Iterable[Any]:
    if type(value) is list or type(value) is tuple:
        return value  # asking an abstract class takes a microsecond
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a sequence, not {_shown(value)} ({type(value).__name__})")
    return value


def _mapping(name: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, not {_shown(value)} ({type(value).__name__})")
    return value


def arguments(value: object) -> tuple[bytes, ...]:
    """Return the argument vector; its first element names the program, so it is not empty."""
    argv = []
    for i, item in enumerate(_iterable("argv", value)):
        plain = item.encode() if type(item) is str and item.isascii() else None
        if not plain or b"\0" in plain or len(plain) >= STRING_MAX:
            plain = text(f"argv[{i}]", item, empty=i > 0)
        argv.append(plain)
    if not argv:
        raise ValueError(f"argv is empty: {_shown(value)}")
    return tuple(argv)


def _environment(name: str, value: object) -> tuple[tuple[bytes, bytes], ...]:
    pairs: dict[bytes, bytes] = {}
    for key, item in _mapping(name, value).items():
        encoded = text(f"{name} name", key)
        if b"=" in encoded:
            raise ValueError(f"{name} name has '=' in it: {_shown(key)}")
        pairs[encoded] = text(f"{name}[{_shown(key)}]", item, empty=True)
    return tuple(pairs.items())


def _cwd(name: str, value: object) -> bytes | int:
    if isinstance(value, int):
        return integer(name, value, 0, FD_MAX)
    return text(name, value)


def _descriptor_of(name: str, value: Any) -> int:
    try:
        number = value.fileno()
    except (OSError, ValueError) as problem:  # closed, or no file of the system at all
        raise ValueError(f"{name} has no descriptor: {_shown(value)} ({problem})") from problem
    return integer(f"{name}.fileno()", number, 0, FD_MAX)


def _stream(name: str, value: object) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "fileno")):
        raise TypeError(
            f"{name} must be a descriptor, a file or a constant, not {_shown(value)} ({type(value).__name__})"
        )
    number = value if isinstance(value, int) else _descriptor_of(name, value)
    if number in (PIPE, DEVNULL) or (number == STDOUT and name == "stderr"):
        return number
    return integer(name, number, 0, FD_MAX)


def _fds(name: str, value: object) -> tuple[tuple[int, int], ...]:
    pairs = []
    for target, source in _mapping(name, value).items():
        pairs.append(
            (
                integer(f"{name}[{_shown(target)}]", source, 0, FD_MAX),
                integer(f"{name} target", target, 3, FD_MAX),
            )
        )
    return tuple(pairs)


def _pass_fds(name: str, value: object) -> tuple[int, ...]:
    return tuple(dict.fromkeys(integer(name, fd, 0, FD_MAX) for fd in _iterable(name, value)))


def _cpus(name: str, value: object) -> tuple[int, ...]:
    cpus = tuple(sorted({integer(name, cpu, 0, 65535) for cpu in _iterable(name, value)}))
    if not cpus:
        raise ValueError(f"{name} is empty: {_shown(value)}")
    return cpus


def _limit(name: str, value: object) -> int:
    # RLIM_INFINITY is -1 in Python and all ones in the kernel.
    return integer(name, value, -1, 2**64 - 1) % 2**64


def _rlimits(name: str, value: object) -> tuple[tuple[int, int, int], ...]:
    limits = []
    for key, item in _mapping(name, value).items():
        number = integer(f"{name} resource", key, 0, resource.RLIMIT_RTPRIO + 1)
        pair = (item, item) if isinstance(item, int) else tuple(_iterable(f"{name}[{key}]", item))
        if len(pair) != 2:
            raise ValueError(f"{name}[{key}] must be one number or (soft, hard), not {_shown(item)}")
        soft, hard = (_limit(f"{name}[{key}]", part) for part in pair)
        if soft > hard:
            raise ValueError(f"{name}[{key}]: soft limit above hard limit: {_shown(item)}")
        limits.append((number, soft, hard))
    return tuple(limits)


def _signal_mask(name: str, value: object) -> int:
    mask = 0
    for number in _iterable(name, value):
        mask |= 1 << (integer(name, number, 1, signal.NSIG - 1) - 1)
    return mask


def _account(name: str, value: object) -> str | int:
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError(f"{name} is no name: {_shown(value)}")
        return value
    return integer(name, value, 0, ID_MAX)


def _groups(name: str, value: object) -> tuple[str | int, ...]:
    return tuple(_account(name, group) for group in _iterable(name, value))


def _names(name: str, value: object) -> frozenset[bytes]:
    return frozenset(text(name, item) for item in _iterable(name, value))


def _digest(name: str, value: object) -> str:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise ValueError(f"{name} must be 'sha256:' and 64 hex digits, not {_shown(value)}")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {_shown(value)} ({type(value).__name__})")
    if not 0 < value <= 86400 * 365:  # no for nan too
        raise ValueError(f"{name} must be a positive number of seconds, not {_shown(value)}")
    return float(value)


def _tags(name: str, value: object) -> tuple[tuple[str, str], ...]:
    tags = []
    for key, item in _mapping(name, value).items():
        if not (isinstance(key, str) and isinstance(item, str)):
            raise TypeError(f"{name} must map str to str, not {_shown(key)} to {_shown(item)}")
        if len(key) + len(item) > 1024:
            raise ValueError(
                f"{name}: a tag of {len(key) + len(item)} characters, at most 1024: {_shown(key)}"
            )
        tags.append((key, item))
    return tuple(tags)


#: Option to (check, whether None stands for "not given").
_OPTIONS: dict[str, tuple[Callable[[str, Any], Any], bool]] = {
    "executable": (text, True),
    "env": (_environment, True),
    "cwd": (_cwd, True),
    "stdin": (_stream, True),
    "stdout": (_stream, True),
    "stderr": (_stream, True),
    "fds": (_fds, True),
    "pass_fds": (_pass_fds, False),
    "start_new_session": (_flag, False),
    "process_group": (_ranged(0, 2**22), True),
    "controlling_terminal": (_ranged(0, FD_MAX), True),
    "umask": (_ranged(0, 0o777), True),
    "nice": (_ranged(-20, 19), True),
    "cpu_affinity": (_cpus, True),
    "rlimits": (_rlimits, True),
    "pdeathsig": (_ranged(1, signal.NSIG - 1), True),
    "restore_signals": (_flag, False),
    "sigmask": (_signal_mask, True),
    "no_new_privs": (_flag, False),
    "user": (_account, True),
    "group": (_account, True),
    "extra_groups": (_groups, True),
    "env_policy": (_choice("inherit", "scrub", "user"), False),
    "env_allow": (_names, False),
    "pin": (_flag, False),
    "digest": (_digest, True),
    "path_policy": (_choice("any", "trusted"), False),
    "deadline": (_seconds, True),
    "strategy": (_choice("auto", "vfork", "fork"), False),
    "on_unproven": (_choice("fork", "refuse"), False),
    "audit_tags": (_tags, True),
}


def request(argv: object, options: Mapping[str, Any]) -> Request:
    """Return the validated request.

    Raises TypeError or ValueError that name the value, or OSError (E2BIG) for a string
    longer than execve(2) takes.
    """
    given: dict[str, Any] = {}
    for name, value in options.items():
        check, none_allowed = _OPTIONS.get(name, (None, False))
        if check is None:
            raise TypeError(f"no such option: {name}={_shown(value)}")
        if value is not None or not none_allowed:
            given[name] = check(name, value)
    made = Request(arguments(argv), **given, has_options=bool(given))
    if given:
        _fit_together(made)
    return made


def _fit_together(made: Request) -> None:
    targets = [target for _, target in made.fds]
    both = set(targets) & set(made.pass_fds)
    if both:
        raise ValueError(f"pass_fds and fds both name {sorted(both)}")
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if fd in made.pass_fds and getattr(made, name) is not None:
            raise ValueError(f"pass_fds names {fd}, and so does {name}={getattr(made, name)}")
    if made.controlling_terminal is not None and not made.start_new_session:
        raise ValueError(
            f"controlling_terminal={made.controlling_terminal} needs start_new_session=True:"
            " only the leader of a new session can take one"
        )
    if made.start_new_session and made.process_group is not None:
        raise ValueError(
            f"process_group={made.process_group} and start_new_session=True:"
            " the leader of a new session cannot change its group"
        )
    if made.env_allow and made.env_policy == "inherit":
        raise ValueError(f"env_allow={sorted(made.env_allow)} means nothing with env_policy='inherit'")
