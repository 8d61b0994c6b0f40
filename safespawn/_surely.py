"""What must be done to its end, though the handler of a signal raises meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: How many handlers that raise, one after the other, keep nothing from being done.
_PATIENCE = 8


def keep(results: list[Any], call: Callable[..., Any], *arguments: Any) -> None:
    """Call and append the result in one step that no signal handler can come between.

    A handler that raises right after the call returned would lose what it returned: bytes read, a count of
    bytes written, that a lock is held.
    """
    results.extend(map(call, *[(argument,) for argument in arguments]))


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
