"""The audit trail: every spawn and every decision leaves a record.

With no ledger opened, records go to the logger ``safespawn.audit``; in any case each one
raises a ``sys.audit`` event ``safespawn.<event>`` with the spawn's id. What is allowed is
decided elsewhere.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from .. import _binding
from .._errors import AuditError
from . import _record
from ._ids import uuid7
from ._ledger import Ledger, Mode

__all__ = ["Ledger", "context", "open"]

_logger = logging.getLogger("safespawn.audit")
_tags: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("safespawn_audit_tags", default=())


class _Current:
    """The process's ledger, and whether the environment was asked for one."""

    ledger: Ledger | None = None
    asked_environment = False
    ending = False
    lock = threading.RLock()


def _new_lock() -> None:
    _Current.lock = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)


def open(path: str | os.PathLike[str], mode: Mode = "require") -> Ledger:  # noqa: A001
    """Open an append-only JSONL ledger and make it the process's.

    ``mode`` says when a record counts as kept: ``require`` (write(2) took it), ``durable``
    (fdatasync(2) returned), ``best_effort`` (loss is counted and stops nothing). The file
    is created with mode 600; one that others can write is refused. The ledger that was
    open before is closed. Raises AuditError.
    """
    with _Current.lock:
        opened = Ledger(path, mode)
        before, _Current.ledger = _Current.ledger, opened
        _Current.asked_environment = True
    if before is not None:
        before.close()
    return opened


@contextlib.contextmanager
def context(**tags: str) -> Iterator[None]:
    """Add tags to the records of every spawn made inside, in this thread or task."""
    for key, value in tags.items():
        if not isinstance(value, str):
            raise TypeError(f"tag {key} must be str, not {value!r} ({type(value).__name__})")
    token = _tags.set((*_tags.get(), *tags.items()))
    try:
        yield
    finally:
        _tags.reset(token)


def current_tags() -> dict[str, str]:
    """Return the tags of the contexts that we are in; the innermost wins."""
    return dict(_tags.get())


@atexit.register
def _end() -> None:
    """Close the ledger at the end of the process. What starts after that is refused."""
    _Current.ending = True
    if _Current.ledger is not None:
        _Current.ledger.close()


def _ledger() -> Ledger | None:
    ledger = _Current.ledger
    if ledger is not None and (not ledger.closed or _Current.ending):
        return ledger
    if _Current.asked_environment:
        return None
    with _Current.lock:
        # Whoever started a program with more rights than their own chose its environment too.
        path = None if _binding.is_secure() else os.environ.get("SAFESPAWN_AUDIT")
        if path and not _Current.asked_environment:
            return open(path)
        _Current.asked_environment = True
    return _Current.ledger


def is_heard() -> bool:
    """Whether records go anywhere: an open ledger, or a logger that wants them."""
    return _ledger() is not None or _logger.isEnabledFor(logging.INFO)


def emit(event: str, sid: str, make: Callable[[], Mapping[str, Any]], *, gate: bool = False) -> None:
    """Write one record of a spawn. ``make`` builds its fields, if anybody wants them.

    With ``gate`` the record comes before the act: AuditError, or whatever a ``sys.audit``
    hook raises, means that the act must not happen. Without it the record is written before
    an exception of a hook goes on, and nothing of the ledger's is raised.
    """
    if gate:
        sys.audit(f"safespawn.{event}", sid)
        _write(event, sid, make, gate=True)
        return
    try:
        sys.audit(f"safespawn.{event}", sid)
    except Exception:
        _logger.exception("a sys.audit hook failed on %s of spawn %s", event, sid)
    finally:
        try:
            _write(event, sid, make, gate=False)
        except AuditError:
            _logger.exception("no ledger for %s of spawn %s", event, sid)


def _write(event: str, sid: str, make: Callable[[], Mapping[str, Any]], *, gate: bool) -> None:
    while (ledger := _ledger()) is not None:
        if ledger.append(event, sid, make(), gate=gate):
            return
        if _Current.ending:
            if gate:
                ledger.refuse()
            return
        # Another thread has put a new one in its place, or closed it for good: look again.
    if _logger.isEnabledFor(logging.INFO):
        record = {"v": _record.SCHEMA, "ev": event, "sid": sid, **make()}
        _logger.info("%s", _record.line(record).decode("ascii").rstrip())


def new_id() -> str:
    """Return a fresh id for a spawn."""
    return uuid7()
