"""The exceptions. Nothing here looks at the system."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._spec import SpawnReport


class SpawnError(OSError):
    """A spawn that failed in a way for which ``subprocess`` has no type.

    ``report`` is the :class:`SpawnReport` as far as the spawn got, or None; ``stage``
    names the step; ``guard`` is the id of the guard that refused, if one did.
    """

    report: SpawnReport | None = None
    stage: str | None = None
    guard: str | None = None


class UnsafeSpawn(SpawnError):
    """A guard refused: nothing was started. ``guard`` says which."""


class RaceDetected(UnsafeSpawn):
    """Credentials changed under a spawn: the child saw it and ran nothing."""


class KilledBeforeExec(SpawnError):
    """Somebody killed the child before it ran the program."""


class SpawnTimeout(SpawnError, TimeoutError):
    """The program was not running by the deadline; the child was killed."""


class AuditError(SpawnError):
    """A record could not be written, and the mode says that nothing runs then."""
