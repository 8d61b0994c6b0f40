"""Text that must not be shown. Pure."""

from __future__ import annotations

import hmac
import os
from typing import Any, AnyStr, Generic, NoReturn, final

#: What stands for a secret wherever one would be shown: U+2026, which no shell or program gives a meaning.
MARK = "\u2026"


@final
class Secret(Generic[AnyStr]):
    """An argument, or the value of a variable, that a program gets and nobody is shown.

    ``"--password=" + Secret("x")`` is one too, of which the first part may be seen. ``str()``, ``repr()``
    and logging show ``Secret('--password=…')``. A format string is a TypeError, because the program would
    get what is shown; so are pickling and ``len()``. Two are equal when a program would get the same
    bytes; the comparison takes the same time wherever they differ (hmac.compare_digest). It keeps nothing
    from code that runs in this process, and the kernel shows arguments to every user in
    ``/proc/PID/cmdline``.

    Raises TypeError for anything but str and bytes, ValueError for a NUL or what cannot be encoded.
    """

    __slots__ = ("_shown", "_whole")
    #: A hash could be compared with those of guesses.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, hidden: AnyStr) -> None:
        """Hide all of ``hidden``."""
        if not isinstance(hidden, (str, bytes)):
            raise TypeError(f"a Secret is made of str or bytes, not of {type(hidden).__name__}")
        _check(hidden)
        self._whole: AnyStr = hidden
        self._shown: AnyStr = MARK if isinstance(hidden, str) else MARK.encode()

    def reveal(self) -> AnyStr:
        """Return the whole text."""
        return self._whole

    @property
    def shown(self) -> AnyStr:
        """The text with ``…`` in place of what is hidden."""
        return self._shown

    @property
    def visible(self) -> bytes:
        """The same as bytes: what may be seen as the program gets it, the mark in UTF-8."""
        if isinstance(self._shown, bytes):
            return self._shown
        return MARK.encode().join(map(os.fsencode, self._shown.split(MARK)))

    def __add__(self, other: AnyStr | Secret[AnyStr]) -> Secret[AnyStr]:
        """Put text, which may be seen, or another secret behind it."""
        more = self._halves(other)
        return NotImplemented if more is None else _made(self._whole + more[0], self._shown + more[1])

    def __radd__(self, other: AnyStr) -> Secret[AnyStr]:
        """Put text, which may be seen, in front of it."""
        more = self._halves(other)
        return NotImplemented if more is None else _made(more[0] + self._whole, more[1] + self._shown)

    def _halves(self, part: Any) -> tuple[AnyStr, AnyStr] | None:
        """Return a part whole and as it may be shown; None for what cannot be put to our own text."""
        whole, shown = (part._whole, part._shown) if isinstance(part, Secret) else (part, part)  # noqa: SLF001
        if not isinstance(whole, str if isinstance(self._whole, str) else bytes):
            return None
        _check(whole)
        return whole, shown

    def __eq__(self, other: object) -> bool:
        """Compare with another secret; no text is equal to one."""
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(os.fsencode(self._whole), os.fsencode(other._whole))

    def __repr__(self) -> str:
        """Show what may be seen."""
        shown = self._shown
        return f"Secret({shown if isinstance(shown, str) else shown.decode('utf-8', 'backslashreplace')!r})"

    def __format__(self, spec: str) -> NoReturn:
        """Refuse: the text that is made would be given to a program in place of the secret."""
        raise TypeError(f"{self!r} cannot be formatted into a text: put them together with +")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse: a pickle would hold the text."""
        raise TypeError(f"{self!r} cannot be pickled")

    def __copy__(self) -> Secret[AnyStr]:
        """Return itself: it never changes."""
        return self

    def __deepcopy__(self, memo: Any) -> Secret[AnyStr]:
        """Return itself."""
        return self


def _encoded(text: str | bytes) -> bytes | None:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return None


def _check(text: str | bytes) -> None:
    data = _encoded(text)
    if data is None:  # raised out here: as its context UnicodeEncodeError would hold the text
        raise ValueError("the text of a Secret cannot be encoded")
    if b"\0" in data:
        raise ValueError("a Secret has a NUL byte in it")


def _made(whole: AnyStr, shown: AnyStr) -> Secret[AnyStr]:
    made = Secret(whole)
    made._shown = shown  # noqa: SLF001
    return made
