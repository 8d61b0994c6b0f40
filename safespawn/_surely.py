"""What must be done to its end, though the handler of a signal raises meanwhile."""

from __future__ import annotations

from collections.abc import Callable

#: How many handlers that raise, one after the other, keep nothing from being done.
_PATIENCE = 8


def surely(do: Callable[[], None]) -> None:
    """Do something that can be begun again, though handlers raise meanwhile: only the last of them counts."""
    for left in reversed(range(_PATIENCE)):
        try:
            do()
        except BaseException:  # noqa: PERF203 - that is what the loop is for
            if not left:
                raise
        else:
            return
