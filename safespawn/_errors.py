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


class UnsafeSpawnWarning(UserWarning):
    """A start that cannot be guarded, or that keeps more than it seems; says what to use instead."""


class AuditError(SpawnError):
    """A record could not be written, and the mode says that nothing runs then."""


class PolicyError(ValueError):
    """A policy that cannot hold, with ``path``, ``line`` (from 1), ``key`` and ``value`` of what is wrong.

    None where it is of no one line, or of none; ``key`` is dotted, as ``spawn.umask``.
    """

    def __init__(
        self,
        why: str,
        path: str | None = None,
        line: int | None = None,
        key: str | None = None,
        value: object = None,
    ) -> None:
        """Keep all of it."""
        super().__init__(why, path, line, key, value)
        self.why, self.path, self.line, self.key, self.value = why, path, line, key, value

    def __str__(self) -> str:
        """Return it as compilers say it: FILE:LINE: what is wrong."""
        where = [str(part) for part in (self.path, self.line) if part is not None]
        return ": ".join((":".join(where), self.why)) if where else self.why
