"""One value of the command line: its text to what the library takes, or what is wrong with it."""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

#: Scheduling policies in the words of chrt(1).
POLICIES = {
    "other": os.SCHED_OTHER,
    "batch": os.SCHED_BATCH,
    "idle": os.SCHED_IDLE,
    "fifo": os.SCHED_FIFO,
    "rr": os.SCHED_RR,
}
WITH_PRIORITY = ("fifo", "rr")
#: What a rule of Landlock may allow.
ACCESSES = ("read", "write", "execute")
#: The highest number of a processor that the library takes: a range must not be a way to eat all memory.
CPU_MAX = 65535


class Once(argparse.Action):
    """Keeps one value, and refuses another one: argparse would drop the first, and what it took away."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Store the value."""
        before = getattr(namespace, self.dest)
        if before is not None and before != values:
            raise argparse.ArgumentError(self, f"given twice, as {before!r} and as {values!r}")
        setattr(namespace, self.dest, values)


class Limit(NamedTuple):
    """One limit of prlimit(1): a half that is None keeps what it is. ``shown`` is how it was written."""

    number: int
    shown: str
    soft: int | None
    hard: int | None


def _wrong(needed: str, text: str) -> argparse.ArgumentTypeError:
    # argparse puts the option in front, in all its spellings.
    return argparse.ArgumentTypeError(f"{needed} needed, not {text!r}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def account(text: str) -> str | int:
    """Return a name, or a number where it is one."""
    return int(text) if _is_number(text) else text


def accounts(text: str) -> list[str | int]:
    """Return names and numbers; of an empty text none."""
    return [account(word) for word in text.split(",") if word]


def octal(text: str) -> int:
    """Return an octal number."""
    try:
        return int(text, 8)
    except ValueError:
        raise _wrong("octal number", text) from None


def processors(text: str) -> list[int]:
    """Return the numbers of a list such as ``0,2-3``."""
    cpus: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.partition("-")
        high = high if dash else low
        if not (_is_number(low) and _is_number(high) and int(low) <= int(high) <= CPU_MAX):
            raise _wrong("processors such as 0,2-3", text)
        cpus.update(range(int(low), int(high) + 1))
    return sorted(cpus)


def signal_number(text: str) -> int:
    """Return the signal of a number or a name, which may be without SIG."""
    if _is_number(text):
        return int(text)
    name = text.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise argparse.ArgumentTypeError(f"no such signal: {text!r}") from None


def pair(text: str) -> tuple[str, str]:
    """Return the two sides of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise _wrong("NAME=VALUE", text)
    return name, value


def pattern(text: str) -> re.Pattern[str]:
    """Return a regular expression."""
    try:
        return re.compile(text)
    except re.error as problem:
        raise argparse.ArgumentTypeError(f"regular expression needed, not {text!r}: {problem}") from None


def scheduler(text: str) -> int | tuple[int, int]:
    """Return a policy, or policy and priority of POLICY:PRIORITY."""
    name, colon, priority = text.partition(":")
    if name not in POLICIES or not (_is_number(priority) if colon else name not in WITH_PRIORITY):
        raise _wrong("other, batch, idle, fifo:PRIORITY or rr:PRIORITY", text)
    return (POLICIES[name], int(priority)) if colon else POLICIES[name]


def names(text: str) -> list[str]:
    """Return the names of a whole set; setpriv's + may be in front of each, ``none`` is the empty set."""
    if text == "none":
        return []
    words = text.split(",")
    for word in words:
        if word.startswith("-"):
            # For setpriv the list is a change of the set that there is, and ours must not look like that.
            raise argparse.ArgumentTypeError(
                f"the whole set is given, so nothing can be taken from it: {word!r} in {text!r}"
            )
    return [word.removeprefix("+") for word in words]


def capabilities(text: str) -> list[str | int]:
    """Return names; setpriv's cap_N, for one that has no name yet, is a number."""
    return [int(word[4:]) if re.fullmatch("cap_[0-9]+", word) else word for word in names(text)]


def namespaces(text: str) -> list[str]:
    """Return the names, in lower case as the library has them."""
    return text.lower().split(",")


def id_map(text: str) -> tuple[int, int, int]:
    """Return one line of a map of ids: the first inside, the first outside, how many."""
    parts = text.split(":")
    if len(parts) != 3 or not all(map(_is_number, parts)):
        raise _wrong("INNER:OUTER:COUNT", text)
    inner, outer, count = map(int, parts)
    return inner, outer, count


def landlock_rule(text: str) -> tuple[list[str], str]:
    """Return what path-beneath:ACCESS,ACCESS:PATH allows, and below which path."""
    kind, _, rest = text.partition(":")
    access, _, path = rest.partition(":")
    words = access.split(",")
    if kind != "path-beneath" or not path or not set(words) <= set(ACCESSES):
        raise _wrong("path-beneath:ACCESS[,ACCESS]:PATH with read, write and execute", text)
    return words, path


def _half(text: str) -> int | None:
    if text in ("unlimited", "-1"):
        return resource.RLIM_INFINITY
    return int(text) if text else None


def _limit(resource_name: str, shown: str, text: str) -> Limit:
    number = getattr(resource, f"RLIMIT_{resource_name.upper()}", None)
    if number is None:
        raise argparse.ArgumentTypeError(f"no such limit: {resource_name!r}")
    soft, colon, hard = text.partition(":")
    halves = (soft, hard) if colon else (soft, soft)
    if not any(halves) or not all(_is_number(half) for half in halves if half not in ("", "unlimited", "-1")):
        raise _wrong("SOFT, SOFT:HARD, SOFT: or :HARD in numbers or 'unlimited'", text)
    return Limit(number, shown, _half(halves[0]), _half(halves[1]))


def any_limit(text: str) -> Limit:
    """Return the limit of NAME=LIMITS."""
    name, value = pair(text)
    return _limit(name, f"--rlimit {text}", value)


def limit(name: str) -> Callable[[str], Limit]:
    """Return what takes the limits of one resource."""
    return lambda text: _limit(name, f"--{name} {text}", text)
