"""One value of the command line: its text to what the library takes, or what is wrong with it."""

from __future__ import annotations

import argparse
import re
import resource
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from . import _option_words as words

_T = TypeVar("_T")

#: What a rule of Landlock may allow.
ACCESSES = ("read", "write", "execute")


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


def said(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """Have argparse say what is wrong in our words: of a ValueError it tells nothing."""

    def call(text: str) -> _T:
        try:
            return read(text)
        except ValueError as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None

    return call


octal = said(words.octal)
processors = said(words.processors)
signal_number = said(words.signal_number)
scheduler = said(words.scheduler)
_resource_number = said(words.resource_number)


def account(text: str) -> str | int:
    """Return a name, or a number where it is one."""
    return int(text) if words.is_number(text) else text


def accounts(text: str) -> list[str | int]:
    """Return names and numbers; of an empty text none."""
    return [account(word) for word in text.split(",") if word]


def signal_numbers(text: str) -> list[int]:
    """Return the signals of a list, numbers and names."""
    return [signal_number(word) for word in text.split(",")]


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


def names(text: str) -> list[str]:
    """Return the names of a whole set; setpriv's + may be in front of each, ``none`` is the empty set."""
    if text == "none":
        return []
    given = text.split(",")
    for word in given:
        if word.startswith("-"):
            # For setpriv the list is a change of the set that there is, and ours must not look like that.
            raise argparse.ArgumentTypeError(
                f"the whole set is given, so nothing can be taken from it: {word!r} in {text!r}"
            )
    return [word.removeprefix("+") for word in given]


def capabilities(text: str) -> list[str | int]:
    """Return names; setpriv's cap_N, for one that has no name yet, is a number."""
    return [int(word[4:]) if re.fullmatch("cap_[0-9]+", word) else word for word in names(text)]


def namespaces(text: str) -> list[str]:
    """Return the names, in lower case as the library has them."""
    return text.lower().split(",")


def id_map(text: str) -> tuple[int, int, int]:
    """Return one line of a map of ids: the first inside, the first outside, how many."""
    parts = text.split(":")
    if len(parts) != 3 or not all(map(words.is_number, parts)):
        raise _wrong("INNER:OUTER:COUNT", text)
    inner, outer, count = map(int, parts)
    return inner, outer, count


def landlock_rule(text: str) -> tuple[list[str], str]:
    """Return what path-beneath:ACCESS,ACCESS:PATH allows, and below which path."""
    kind, _, rest = text.partition(":")
    access, _, path = rest.partition(":")
    accesses = access.split(",")
    if kind != "path-beneath" or not path or not set(accesses) <= set(ACCESSES):
        raise _wrong("path-beneath:ACCESS[,ACCESS]:PATH with read, write and execute", text)
    return accesses, path


def _half(text: str) -> int | None:
    if text in ("unlimited", "-1"):
        return resource.RLIM_INFINITY
    return int(text) if text else None


def _limit(resource_name: str, shown: str, text: str) -> Limit:
    number = _resource_number(resource_name)
    soft, colon, hard = text.partition(":")
    halves = (soft, hard) if colon else (soft, soft)
    if not any(halves) or not all(
        words.is_number(half) for half in halves if half not in ("", "unlimited", "-1")
    ):
        raise _wrong("SOFT, SOFT:HARD, SOFT: or :HARD in numbers or 'unlimited'", text)
    return Limit(number, shown, _half(halves[0]), _half(halves[1]))


def any_limit(text: str) -> Limit:
    """Return the limit of NAME=LIMITS."""
    name, value = pair(text)
    return _limit(name, f"--rlimit {text}", value)


def limit(name: str) -> Callable[[str], Limit]:
    """Return what takes the limits of one resource."""
    return lambda text: _limit(name, f"--{name} {text}", text)
