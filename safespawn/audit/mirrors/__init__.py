"""Mirrors: other places that get a copy of the audit records.

A mirror never stands on a spawn's way and never decides about one. None of them tells its
sender that a record was kept; each class says what "accepted" means for it and what is
never known. How many records each accepted and dropped is in the checkpoints of the ledger.
"""

from ._journald import Journald
from ._linux_audit import LinuxAudit
from ._logging import Logging
from ._mirror import Mirror
from ._opentelemetry import OpenTelemetry
from ._syslog import Syslog

__all__ = ["Journald", "LinuxAudit", "Logging", "Mirror", "OpenTelemetry", "Syslog"]
