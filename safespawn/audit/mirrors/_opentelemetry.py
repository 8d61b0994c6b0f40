"""A mirror in the logs of OpenTelemetry: the extra ``safespawn[otel]``."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from typing import Any

from ..._values import shown
from . import _line
from ._mirror import Mirror

#: Names of severity numbers, as appendix B of the log data model maps those of RFC 5424.
_SEVERITIES = {
    _line.ALERT: "ERROR3",
    _line.CRITICAL: "ERROR2",
    _line.WARNING: "WARN",
    _line.NOTICE: "INFO2",
    _line.INFO: "INFO",
}

#: How long :meth:`OpenTelemetry.close` waits for the SDK to export what it has, milliseconds.
_FLUSH_MS = 2000


def _modules() -> tuple[Any, Any]:
    """Return the logs modules of API and SDK. Raises ModuleNotFoundError that tells the extra."""
    try:
        import opentelemetry._logs as api  # noqa: PLC0415 - an extra
        import opentelemetry.sdk._logs as sdk  # noqa: PLC0415 - an extra
    except ImportError as problem:
        raise ModuleNotFoundError(
            f"the mirror OpenTelemetry needs opentelemetry-sdk, the extra safespawn[otel]: {problem}"
        ) from problem
    return api, sdk


class OpenTelemetry(Mirror):
    """Emits each record as a log record of OpenTelemetry, through its SDK.

    ``provider``: a ``LoggerProvider`` of the SDK, with whatever processors and exporters it
    was given (OTLP, for one); by default the global one, as it is when the ledger is opened.
    Raises ModuleNotFoundError where the extra ``safespawn[otel]`` is not installed.

    Accepted: the SDK's logger has taken the record. Never known: whether it was exported.
    The SDK's batch processor drops what its queue has no room for, and exporters give up
    after some tries; both only log that. At :meth:`close` the provider is asked to flush, for
    at most two seconds; it is not shut down, because it is the application's.

    The body is the whole line. The event name is ``safespawn.`` and the event;
    ``log.record.uid`` is the chain, a colon and the number of the record, and the attributes
    ``safespawn.event``, ``safespawn.chain``, ``safespawn.n`` and ``safespawn.sid`` are to search by.
    """

    def __init__(
        self, provider: Any = None, *, events: Iterable[str] | None = None, name: str = "opentelemetry"
    ) -> None:
        super().__init__(name, events)
        self._api, sdk = _modules()
        if provider is not None and not isinstance(provider, sdk.LoggerProvider):
            kind = type(provider).__name__
            raise TypeError(f"provider must be a LoggerProvider of the SDK, not {shown(provider)} ({kind})")
        self._kind = sdk.LoggerProvider
        self._given = provider
        self._provider: Any = None
        self._logger: Any = None

    def open(self) -> None:
        """Get a logger. Raises OSError (ENODEV) if nobody has set a provider of the SDK."""
        provider = self._given or self._api.get_logger_provider()
        if not isinstance(provider, self._kind):
            raise OSError(errno.ENODEV, "no LoggerProvider of the SDK is set")
        self._provider, self._logger = provider, provider.get_logger("safespawn.audit")

    def send(self, line: bytes) -> None:
        """Emit one record. Raises OSError for a line that is no record."""
        about = _line.envelope(line)
        name = _SEVERITIES[about.severity]
        attributes = {
            "log.record.uid": f"{about.chain}:{about.number}",
            "safespawn.event": about.event,
            "safespawn.chain": about.chain,
            "safespawn.n": about.number,
        }
        if about.sid is not None:
            attributes["safespawn.sid"] = about.sid
        self._logger.emit(
            self._api.LogRecord(
                timestamp=about.time_ns,
                observed_timestamp=time.time_ns(),
                severity_text=name,
                severity_number=self._api.SeverityNumber[name],
                body=line.decode("ascii"),
                attributes=attributes,
                event_name=f"safespawn.{about.event}",
            )
        )

    def close(self) -> None:
        """Have the provider export what it has."""
        if self._provider is not None:
            self._provider.force_flush(_FLUSH_MS)
        self.forget()

    def forget(self) -> None:
        """Let go of the provider. No flush: its locks may be held by threads that the fork lost."""
        self._provider = self._logger = None
