"""Makes a `Request` of what a caller gave, or says which value is wrong: input-checked (T-17).

Pure: looks at values only, never at the system.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
from collections.abc import Callable, Mapping
from typing import Any

from . import _confine, _patterns
from ._secret import Secret
from ._spec import DEVNULL, PIPE, STDOUT, STRATEGIES, HelperBase, Request
from ._values import FD_MAX, ID_MAX, STRING_MAX, choice, flag, integer, iterable, mapping, ranged, shown, text

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


Secrets = tuple[tuple[int, Secret[Any]], ...]


def arguments(value: object) -> tuple[tuple[bytes, ...], Secrets]:
    """Return the argument vector, and which of it is secret; its first element names the program."""
    argv: list[bytes] = []
    secrets: list[tuple[int, Secret[Any]]] = []
    for i, item in enumerate(iterable("argv", value)):
        plain = item.encode() if type(item) is str and item.isascii() else None
        if not plain or b"\0" in plain or len(plain) >= STRING_MAX:
            if i > 0 and isinstance(item, Secret):
                secrets.append((i, item))
                plain = _hidden(f"argv[{i}]", item)
            else:
                plain = text(f"argv[{i}]", item, empty=i > 0)
        argv.append(plain)
    if not argv:
        raise ValueError(f"argv is empty: {shown(value)}")
    return tuple(argv), tuple(secrets)


def _hidden(name: str, secret: Secret[Any]) -> bytes:
    """Return what a secret hides; of its own it has made sure that it can be given to a program."""
    data = os.fsencode(secret.reveal())
    if len(data) >= STRING_MAX:
        raise OSError(errno.E2BIG, f"{name} is longer than execve takes, {STRING_MAX - 1} bytes: {secret!r}")
    return data


def _environment(name: str, value: object) -> tuple[tuple[bytes, bytes], ...]:
    pairs: dict[bytes, bytes] = {}
    for key, item in mapping(name, value).items():
        encoded = text(f"{name} name", key, empty=True)  # the kernel takes one, and may have given us one
        if b"=" in encoded:
            raise ValueError(f"{name} name has '=' in it: {shown(key)}")
        place = f"{name}[{shown(key)}]"
        pairs[encoded] = _hidden(place, item) if isinstance(item, Secret) else text(place, item, empty=True)
    return tuple(pairs.items())


def _descriptor_of(name: str, value: Any) -> int:
    try:
        number = value.fileno()
    except (OSError, ValueError) as problem:  # closed, or no file of the system at all
        raise ValueError(f"{name} has no descriptor: {shown(value)} ({problem})") from problem
    return integer(f"{name}.fileno()", number, 0, FD_MAX)


def _stream(name: str, value: object) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or hasattr(value, "fileno")):
        raise TypeError(
            f"{name} must be a descriptor, a file or a constant, not {shown(value)} ({type(value).__name__})"
        )
    number = value if isinstance(value, int) else _descriptor_of(name, value)
    if number in (PIPE, DEVNULL) or (number == STDOUT and name == "stderr"):
        return number
    return integer(name, number, 0, FD_MAX)


def _fds(name: str, value: object) -> tuple[tuple[int, int], ...]:
    pairs = []
    for target, source in mapping(name, value).items():
        pairs.append(
            (
                integer(f"{name}[{shown(target)}]", source, 0, FD_MAX),
                integer(f"{name} target", target, 3, FD_MAX),
            )
        )
    return tuple(pairs)


def _pass_fds(name: str, value: object) -> tuple[int, ...]:
    return tuple(dict.fromkeys(integer(name, fd, 0, FD_MAX) for fd in iterable(name, value)))


def _cpus(name: str, value: object) -> tuple[int, ...]:
    cpus = tuple(sorted({integer(name, cpu, 0, 65535) for cpu in iterable(name, value)}))
    if not cpus:
        raise ValueError(f"{name} is empty: {shown(value)}")
    return cpus


def _limit(name: str, value: object) -> int:
    # RLIM_INFINITY is -1 in Python and all ones in the kernel.
    return integer(name, value, -1, 2**64 - 1) % 2**64


def _rlimits(name: str, value: object) -> tuple[tuple[int, int, int], ...]:
    limits = []
    for key, item in mapping(name, value).items():
        number = integer(f"{name} resource", key, 0, resource.RLIMIT_RTPRIO + 1)
        pair = (item, item) if isinstance(item, int) else tuple(iterable(f"{name}[{key}]", item))
        if len(pair) != 2:
            raise ValueError(f"{name}[{key}] must be one number or (soft, hard), not {shown(item)}")
        soft, hard = (_limit(f"{name}[{key}]", part) for part in pair)
        if soft > hard:
            raise ValueError(f"{name}[{key}]: soft limit above hard limit: {shown(item)}")
        limits.append((number, soft, hard))
    return tuple(limits)


def _signal_mask(name: str, value: object) -> int:
    mask = 0
    for number in iterable(name, value):
        mask |= 1 << (integer(name, number, 1, signal.NSIG - 1) - 1)
    return mask


def _resettable(name: str, value: object) -> int:
    mask = _signal_mask(name, value)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        if mask >> (number - 1) & 1:
            raise ValueError(f"{name}: {number.name} cannot be changed (signal(7)): {shown(value)}")
    return mask


def account(name: str, value: object) -> str | int:
    """Return a name or the number of a user or group."""
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError(f"{name} is no name: {shown(value)}")
        return value
    return integer(name, value, 0, ID_MAX)


def _groups(name: str, value: object) -> tuple[str | int, ...]:
    return tuple(account(name, group) for group in iterable(name, value))


def _names(name: str, value: object) -> frozenset[bytes]:
    return frozenset(text(name, item) for item in iterable(name, value))


def _digest(name: str, value: object) -> str:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise ValueError(f"{name} must be 'sha256:' and 64 hex digits, not {shown(value)}")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {shown(value)} ({type(value).__name__})")
    if not 0 < value <= 86400 * 365:  # no for nan too
        raise ValueError(f"{name} must be a positive number of seconds, not {shown(value)}")
    return float(value)


def _tags(name: str, value: object) -> tuple[tuple[str, str], ...]:
    tags = []
    for key, item in mapping(name, value).items():
        if not (isinstance(key, str) and isinstance(item, str)):
            raise TypeError(f"{name} must map str to str, not {shown(key)} to {shown(item)}")
        if len(key) + len(item) > 1024:
            raise ValueError(
                f"{name}: a tag of {len(key) + len(item)} characters, at most 1024: {shown(key)}"
            )
        tags.append((key, item))
    return tuple(tags)


def _helper(name: str, value: object) -> object:
    if value is False or isinstance(value, HelperBase):
        return value
    raise TypeError(f"{name} must be a Helper or False, not {shown(value)} ({type(value).__name__})")


def _redacted(name: str, value: object) -> tuple[re.Pattern[bytes], ...]:
    return _patterns.compiled(name, iterable(name, value))


#: Option to (check, whether None stands for "not given").
_OPTIONS: dict[str, tuple[Callable[[str, Any], Any], bool]] = {
    "executable": (text, True),
    "env": (_environment, True),
    "cwd": (_confine.directory, True),
    "root": (_confine.directory, True),
    "stdin": (_stream, True),
    "stdout": (_stream, True),
    "stderr": (_stream, True),
    "fds": (_fds, True),
    "pass_fds": (_pass_fds, False),
    "start_new_session": (flag, False),
    "process_group": (ranged(0, 2**22), True),
    "controlling_terminal": (ranged(0, FD_MAX), True),
    "umask": (ranged(0, 0o777), True),
    "nice": (ranged(-20, 19), True),
    "scheduler": (_confine.scheduler, True),
    "cpu_affinity": (_cpus, True),
    "rlimits": (_rlimits, True),
    "cgroup": (_confine.directory, True),
    "pdeathsig": (ranged(1, signal.NSIG - 1), True),
    "restore_signals": (flag, False),
    "sigmask": (_signal_mask, True),
    "sigdefault": (_resettable, True),
    "subreaper": (flag, False),
    "no_new_privs": (flag, False),
    "user": (account, True),
    "group": (account, True),
    "extra_groups": (_groups, True),
    "caps": (_confine.caps, True),
    "securebits": (_confine.securebits, True),
    "namespaces": (_confine.namespaces, True),
    "landlock": (_confine.landlock, True),
    "seccomp": (_confine.seccomp, True),
    "env_policy": (choice("inherit", "scrub", "user"), False),
    "env_allow": (_names, False),
    "pin": (flag, False),
    "digest": (_digest, True),
    "path_policy": (choice("any", "trusted"), False),
    "deadline": (_seconds, True),
    "strategy": (choice(*STRATEGIES), False),
    "on_unproven": (choice("fork", "refuse"), False),
    "helper": (_helper, True),
    "audit_tags": (_tags, True),
    "redact": (_redacted, True),
}


def option(name: str, value: object, key: str | None = None) -> Any:
    """Return one option as a request has it; a message calls it ``key``. None where it counts as not given.

    Raises TypeError or ValueError, or OSError (E2BIG) for a string longer than execve(2) takes.
    """
    check, none_allowed = _OPTIONS.get(name, (None, False))
    if check is None:
        raise TypeError(f"no such option: {name}={shown(value)}")
    if value is None and none_allowed:
        return None
    return check(key or name, value)


def request(argv: object, options: Mapping[str, Any]) -> Request:
    """Return the validated request.

    Raises TypeError or ValueError that name the value, or OSError (E2BIG) for a string
    longer than execve(2) takes.
    """
    given: dict[str, Any] = {}
    for name, value in options.items():
        checked = option(name, value)
        if checked is not None:
            given[name] = checked
    if "namespaces" in given:
        given["namespaces"], given["map_users"], given["map_groups"] = given["namespaces"]
    words, secrets = arguments(argv)
    made = Request(words, secrets, **given, has_options=bool(given))
    if given:
        _fit_together(made)
    return made


#: What posix_spawn(3) has no word for. Whether another user means a change is for guards.py to say.
_BEYOND_LIBC = (
    "root",
    "controlling_terminal",
    "umask",
    "nice",
    "cpu_affinity",
    "rlimits",
    "cgroup",
    "pdeathsig",
    "subreaper",
    "no_new_privs",
    "caps",
    "securebits",
    "namespaces",
    "landlock",
    "seccomp",
    "pin",
    "digest",
    "deadline",
)


def _fits_libc(made: Request) -> None:
    defaults = Request._field_defaults
    given = {name: getattr(made, name) for name in _BEYOND_LIBC}
    beyond = [f"{name}={shown(value)}" for name, value in given.items() if value != defaults[name]]
    if beyond:
        named = ", ".join(beyond)
        raise ValueError(f"strategy='posix_spawn' and {named}: posix_spawn(3) cannot express that")


def _fit_together(made: Request) -> None:
    if made.strategy == "posix_spawn":
        _fits_libc(made)
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
    if made.root is not None and isinstance(made.cwd, int):
        raise ValueError(
            f"cwd={made.cwd} and root={shown(made.root)}: with another root, cwd is a path inside it"
        )
    if made.root is not None and made.path_policy == "trusted":
        raise ValueError(
            f"path_policy='trusted' and root={shown(made.root)}: paths inside another root cannot be judged"
        )
