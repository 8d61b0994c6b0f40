"""A regular expression that is compiled when it is first used. Pure.

Compiling those that look for secrets took more time than all else that an import of the audit does, and most
command lines need few of them. The first use imports nothing, so it may be behind a chroot, in a process
without privileges or in a forked child. It takes no lock: two threads compile the same twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

Found = re.Match[bytes]
_METHODS = ("search", "match", "fullmatch", "finditer", "split")


class Expression:
    """Has the methods of a compiled expression for bytes that are used here."""

    search: Callable[..., Found | None]
    match: Callable[..., Found | None]
    fullmatch: Callable[..., Found | None]
    finditer: Callable[..., Iterator[Found]]
    split: Callable[[bytes], list[bytes]]

    def __init__(self, text: bytes, flags: int = 0) -> None:
        """Take the arguments of re.compile; a mistake in them is found at the first use."""
        self._text = text
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        """Compile it: only what is not there yet gets here."""
        if name not in _METHODS:
            raise AttributeError(name)
        compiled = re.compile(self._text, self._flags)
        for method in _METHODS:
            setattr(self, method, getattr(compiled, method))
        return getattr(compiled, name)
