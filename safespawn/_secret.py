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

    __slots__ = ("_shown", "_spans", "_whole")
    #: A hash could be compared with those of guesses.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, hidden: AnyStr) -> None:
        """Hide all of ``hidden``."""
        if not isinstance(hidden, (str, bytes)):
            raise TypeError(f"a Secret is made of str or bytes, not of {type(hidden).__name__}")
        self._spans: tuple[tuple[int, int], ...] = ((0, _checked(hidden)),)
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
    def spans(self) -> tuple[tuple[int, int], ...]:
        """First and last place of each hidden part, as in slices, of the bytes that a program gets."""
        return self._spans

    def __add__(self, other: AnyStr | Secret[AnyStr]) -> Secret[AnyStr]:
        """Put text, which may be seen, or another secret behind it."""
        more = self._like(other)
        return NotImplemented if more is None else _joined(self, more)

    def __radd__(self, other: AnyStr) -> Secret[AnyStr]:
        """Put text, which may be seen, in front of it."""
        more = self._like(other)
        return NotImplemented if more is None else _joined(more, self)

    def _like(self, part: Any) -> Secret[AnyStr] | None:
        """Return a part as a secret, one without hidden parts for text; None for another type than ours."""
        whole = part._whole if isinstance(part, Secret) else part  # noqa: SLF001
        if not isinstance(whole, str if isinstance(self._whole, str) else bytes):
            return None
        return part if isinstance(part, Secret) else _made(whole, whole, ())

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


def _checked(text: str | bytes) -> int:
    """Return how many bytes a program gets."""
    data = _encoded(text)
    if data is None:  # raised out here: as its context UnicodeEncodeError would hold the text
        raise ValueError("the text of a Secret cannot be encoded")
    if b"\0" in data:
        raise ValueError("a Secret has a NUL byte in it")
    return len(data)


def _made(whole: AnyStr, shown: AnyStr, spans: tuple[tuple[int, int], ...]) -> Secret[AnyStr]:
    made = Secret(whole)
    made._shown, made._spans = shown, spans  # noqa: SLF001
    return made


def _joined(first: Secret[AnyStr], second: Secret[AnyStr]) -> Secret[AnyStr]:
    before = len(os.fsencode(first.reveal()))
    moved = tuple((start + before, end + before) for start, end in second.spans)
    return _made(first.reveal() + second.reveal(), first.shown + second.shown, first.spans + moved)
