"""A mirror in Python's own logging."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable

from ..._values import integer, shown
from . import _line
from ._mirror import Mirror

_LEVELS = {
    _line.ALERT: logging.CRITICAL,
    _line.CRITICAL: logging.CRITICAL,
    _line.WARNING: logging.WARNING,
    _line.NOTICE: logging.INFO,
    _line.INFO: logging.INFO,
}


class Logging(Mirror):
    """Logs each record: the message is the line, the attribute ``safespawn`` its envelope.

    ``logger``: a name or a logger. ``level``: for all records; by default CRITICAL for
    ``breakglass`` and ``audit.degraded``, WARNING for denials, bypasses and a mirror
    that is down, INFO for the others.

    Accepted: the logger is enabled for the level, has a handler, and each handler has
    returned. Never known: whether a filter stopped it, or a handler failed, because handlers
    report their errors to stderr and not to us. A handler that raises all the same costs
    that record and no other. A handler that starts programs through this package makes
    records about that, which are logged again, without end.
    """

    def __init__(
        self,
        logger: str | logging.Logger = "safespawn.audit",
        level: int | None = None,
        *,
        events: Iterable[str] | None = None,
        name: str = "logging",
    ) -> None:
        super().__init__(name, events)
        if not isinstance(logger, (str, logging.Logger)):
            raise TypeError(
                f"logger must be a name or a logger, not {shown(logger)} ({type(logger).__name__})"
            )
        self.logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        # Level 0 means "ask the parent", and is no level of a record.
        self.level = None if level is None else integer("level", level, 1, 1000)

    def send(self, line: bytes) -> None:
        """Log one record. Raises OSError if nobody listens, and what a handler raises."""
        about = _line.envelope(line)
        level = _LEVELS[about.severity] if self.level is None else self.level
        if not self.logger.isEnabledFor(level):
            where = f"the logger {self.logger.name} is not enabled for {logging.getLevelName(level)}"
            raise OSError(errno.ENODEV, where)
        if not self.logger.hasHandlers():
            raise OSError(errno.ENODEV, f"the logger {self.logger.name} has no handler")
        self.logger.log(level, "%s", line.decode("ascii"), extra={"safespawn": about})
