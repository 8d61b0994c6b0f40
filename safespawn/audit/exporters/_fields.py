"""One record while it is converted: typed looks at its members, and which of them nobody has told yet.

A converter tells a member when the target holds all of it. What is left is :meth:`Fields.rest`, and goes
along as it is: that is how no converter loses anything, whatever a record holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: A number that all targets can hold: OCSF's long, Elasticsearch's long and OTLP's intValue have 64 bits.
_LONG = range(-(2**63), 2**63)


def number_of(value: Any) -> int | None:
    """Return a whole number of at most 64 bits; None for anything else."""
    return value if type(value) is int and value in _LONG else None


def readable(value: Any) -> str | None:
    r"""Return text, or ``{"hex": ...}`` as text in which a byte that is no UTF-8 is ``\xNN``; else None.

    That is for reading and searching. It is not exact: a backslash may be one of the bytes.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict) and len(value) == 1 and isinstance(value.get("hex"), str):
        try:
            return bytes.fromhex(value["hex"]).decode("utf-8", "backslashreplace")
        except ValueError:
            return None
    return None


def texts_of(value: Any) -> dict[str, str]:
    """Return an object whose members are all texts; an empty one for anything else."""
    if not isinstance(value, dict):
        return {}
    return value if all(isinstance(item, str) and readable(item) == item for item in value.values()) else {}


def present(members: Mapping[str, Any] | None = None, /, **more: Any) -> dict[str, Any]:
    """Return those members that hold something."""
    both = {**members, **more} if members else more
    return {name: value for name, value in both.items() if value not in (None, {}, [])}


class Fields:
    """The members of a record by their paths. Members that are not what they should be stay untold."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._record = record
        self._told: set[tuple[str, ...]] = set()
        self._groups: set[tuple[str, ...]] = set()

    def look(self, *path: str) -> Any:
        """Return a member, None where there is none. Looking does not tell it."""
        value = self._record.get(path[0])
        for name in path[1:]:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    def tell(self, *path: str) -> None:
        """Note that the target holds all of a member."""
        self._told.add(path)
        for end in range(1, len(path)):
            self._groups.add(path[:end])

    def number(self, *path: str) -> int | None:
        """Tell a whole number of at most 64 bits."""
        value = number_of(self.look(*path))
        if value is not None:
            self.tell(*path)
        return value

    def digits(self, *path: str) -> str | None:
        """Tell a whole number as its decimal digits."""
        value = self.number(*path)
        return None if value is None else str(value)

    def word(self, *path: str) -> str | None:
        """Tell a text that is not empty; show bytes as :func:`readable` without telling them."""
        value = self.look(*path)
        shown = readable(value)
        if shown and shown == value:
            self.tell(*path)
        return shown or None

    def words(self, *path: str) -> list[str] | None:
        """The same for a list of texts."""
        value = self.look(*path)
        shown = self.shown(*path)
        if shown is not None and shown == value:
            self.tell(*path)
        return shown

    def shown(self, *path: str) -> list[str] | None:
        """Show a list of texts and bytes without telling it."""
        value = self.look(*path)
        shown = [readable(item) for item in value] if isinstance(value, list) else []
        return None if not shown or None in shown else [item for item in shown if item is not None]

    def numbers(self, *path: str) -> list[int] | None:
        """Tell a list of whole numbers."""
        value = self.look(*path)
        if not isinstance(value, list) or not value or None in map(number_of, value):
            return None
        self.tell(*path)
        return value

    def name(self) -> str | None:
        """Tell the chain and the number as ``CHAIN:N``, which no other record has."""
        chain, number = self.look("c"), number_of(self.look("n"))
        if not isinstance(chain, str) or number is None or readable(chain) != chain:
            return None
        self.tell("c")
        self.tell("n")
        return f"{chain}:{number}"

    def rest(self) -> dict[str, Any]:
        """Return what was not told, in its place. Ask last: what is told later would be there twice."""
        return self._untold(self._record, ())

    def _untold(self, group: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        left: dict[str, Any] = {}
        for name, value in group.items():
            here = (*path, name)
            if here in self._told:
                continue
            if here in self._groups:
                inner = self._untold(value, here)
                if inner:
                    left[name] = inner
            else:
                left[name] = value
        return left
