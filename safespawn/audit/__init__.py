"""The audit trail: every spawn and every decision leaves a record.

With no ledger opened, records go to the logger ``safespawn.audit``; in any case each one
raises a ``sys.audit`` event ``safespawn.<event>`` with the spawn's id. What is allowed is
decided elsewhere.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .. import _binding
from .._errors import AuditError
from .._surely import surely
from .._values import number
from . import _bypass, _locks, _record, _redaction, keys, retention
from ._ids import uuid7
from ._ledger import Describe, LateFailure, Ledger, Make, Mode, Native, Options
from ._redaction import redact

if TYPE_CHECKING:
    from .mirrors._mirror import Mirror
    from .verifier import Verification

_P = ParamSpec("_P")
_R = TypeVar("_R")

__all__ = ["Ledger", "carry", "context", "keys", "open", "redact", "retention", "verify"]

_logger = logging.getLogger("safespawn.audit")
_tags: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("safespawn_audit_tags", default=())


class _Current:
    """The process's ledger, and whether the environment was asked for one."""

    ledger: Ledger | None = None
    asked_environment = False
    ending = False
    watches = False
    locks: _locks.Locks = {}  # noqa: RUF012 - of the process


def open(  # noqa: A001
    path: str | os.PathLike[str],
    mode: Mode = "require",
    *,
    keys: str | os.PathLike[str] | None = None,
    max_bytes: int = 0,
    max_seconds: float = 0.0,
    append_only: bool = False,
    checkpoint_seconds: float = 60.0,
    late_failure: LateFailure = "continue",
    mirrors: Iterable[Mirror] = (),
) -> Ledger:
    """Open an append-only JSONL ledger and make it the process's.

    ``mode`` says when a record counts as kept: ``require`` (write(2) took it), ``durable``
    (fdatasync(2) returned), ``best_effort`` (loss is counted and stops nothing). The file
    is created with mode 600; one that others can write is refused, as is a path that leads
    through a directory of others. The ledger that was open before is closed.

    ``keys`` is the key directory (``safespawn audit keys init``); without it that of the host is
    used, if there is one that we may use; ``""`` is for none. ``max_bytes``: a segment that has reached
    that size is renamed and a new one begun; ``max_seconds``: one that is that old, with the next
    checkpoint; 0 for never. ``append_only`` sets the file's append-only flag (chattr(1)). A checkpoint is
    written after 1000 records, or with the first record after ``checkpoint_seconds``.
    ``late_failure="kill"`` kills a program whose start cannot be recorded any more. ``mirrors`` get a copy of
    each record, in threads of their own (see :mod:`safespawn.audit.mirrors`); with them there is a checkpoint
    also when nothing happens. Where the glass is broken (docs/audit-operations.md) a ledger that cannot be
    opened is returned all the same, and opened later. Raises AuditError; TypeError and ValueError for what
    cannot be meant.
    """
    number("max_bytes", max_bytes, int)
    number("max_seconds", max_seconds, (int, float))
    number("checkpoint_seconds", checkpoint_seconds, (int, float))
    if late_failure not in ("continue", "kill"):
        raise ValueError(f"late_failure must be continue or kill, not {late_failure!r}")
    options = Options(
        keys, max_bytes, max_seconds, append_only, checkpoint_seconds, late_failure, tuple(mirrors)
    )
    with _locks.ours(_Current.locks):
        opened = Ledger(path, mode, options)
        before, _Current.ledger = _Current.ledger, opened
        _redaction.use_key(opened.redaction)
        _Current.asked_environment = True
    if before is not None:
        _close(before, opened)
    _bypass.watch(_tell_bypass)
    return opened


def _close(before: Ledger, opened: Ledger) -> None:
    """Close the one that was open; what becomes of that is nothing against the new one, which tells it."""
    try:
        before.close()
    except AuditError as problem:
        why = str(problem)
        opened.append("audit.degraded", None, lambda: {"lost": 0, "why": why})


def verify(
    path: str | os.PathLike[str],
    *,
    key: bytes | None = None,
    without_key: bool = False,
    state: str | os.PathLike[str] | bool = True,
    registry: str | os.PathLike[str] | None = None,
    witness: Sequence[str | os.PathLike[str]] = (),
    dedupe: bool = False,
) -> Verification:
    """Check a ledger; see :func:`safespawn.audit.verifier.verify`."""
    from . import verifier  # noqa: PLC0415 - who writes a ledger seldom reads it

    return verifier.verify(
        path,
        key=key,
        without_key=without_key,
        state=state,
        registry=registry,
        witness=witness,
        dedupe=dedupe,
    )


def watch_bypasses(always: bool) -> None:
    """Record what is started past us also where no ledger is open: to the logger."""
    _Current.watches = always
    if always:
        _bypass.watch(_tell_bypass)


def _tell_bypass(make: Make) -> None:
    """Record a program that is started past us, while a ledger is open or it is wanted anyway."""
    if _Current.watches or is_kept():
        emit("spawn.bypass", None, make)
    else:
        _bypass.rest()


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


def carry(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return ``function`` with the tags of here, to be run by another thread.

    Tasks have the tags of where they were made, and ``asyncio.to_thread`` takes them along; a plain
    ``submit`` of an executor does not.
    """
    tags = _tags.get()

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        token = _tags.set(tags)
        try:
            return function(*args, **kwargs)
        finally:
            _tags.reset(token)

    return call


def current_tags() -> dict[str, str]:
    """Return the tags of the contexts that we are in; the innermost wins."""
    return dict(_tags.get())


@atexit.register
def _end() -> None:
    """Close the ledger at the end of the process. What starts after that is refused."""
    _Current.ending = True
    problems: list[AuditError] = []

    def close() -> None:
        try:
            if _Current.ledger is not None:
                _Current.ledger.close()
        except AuditError as problem:
            problems.append(problem)

    surely(close)
    if problems:
        raise problems[0]


def _ledger() -> Ledger | None:
    ledger = _Current.ledger
    if ledger is not None and (not ledger._closed or _Current.ending):  # noqa: SLF001 - one call less
        return ledger
    if _Current.asked_environment:
        return None
    with _locks.ours(_Current.locks):
        # Whoever started a program with more rights than their own chose its environment too.
        path = None if _binding.is_secure() else os.environ.get("SAFESPAWN_AUDIT")
        if path and not _Current.asked_environment:
            return open(path)
        _Current.asked_environment = True
    return _Current.ledger


def describe_by(describe: Describe) -> None:
    """Have every opening of a chain tell what that returns, beside its own members."""
    Ledger.describe = staticmethod(describe)


def is_kept() -> bool:
    """Whether a ledger is open."""
    return _Current.ledger is not None and not _Current.ledger.closed


def is_heard() -> bool:
    """Whether records go anywhere: an open ledger, or a logger that wants them."""
    return _ledger() is not None or _logger.isEnabledFor(logging.INFO)


def emit(
    event: str,
    sid: str | None,
    make: Make,
    *,
    gate: bool = False,
    settles: int = 0,
    native: Native | None = None,
    kept: Any = None,
) -> bool:
    """Write one record of a spawn; whether it is kept, where anybody keeps records.

    ``make`` builds its fields, if anybody wants them; ``native`` writes it from C. With ``gate``
    the record comes before the act: AuditError, or whatever a ``sys.audit``
    hook raises, means that the act must not happen. Without it the act has happened: an
    Exception of a hook and an AuditError are logged and not raised; another exception of a hook goes
    on after the record. ``settles`` and ``kept``: see :meth:`Ledger.append`.
    """
    if gate:
        sys.audit(f"safespawn.{event}", sid)
        return _write(event, sid, make, gate=True, settles=0, native=native, kept=kept)
    try:
        sys.audit(f"safespawn.{event}", sid)
    except Exception:
        _logger.exception("a sys.audit hook failed on %s of spawn %s", event, sid)
    finally:
        try:
            answer = _write(event, sid, make, gate=False, settles=settles, native=native, kept=kept)
        except AuditError:
            _logger.exception("no ledger for %s of spawn %s", event, sid)
            answer = False
    return answer


def _write(
    event: str, sid: str | None, make: Make, *, gate: bool, settles: int, native: Native | None, kept: Any
) -> bool:
    ledger = _Current.ledger
    if ledger is None or ledger._closed:  # noqa: SLF001 - as in _ledger
        ledger = _ledger()
    while ledger is not None:
        answer = ledger.append(event, sid, make, gate=gate, settles=settles, native=native, kept=kept)
        if answer is not None:
            return answer
        if _Current.ending:
            if gate:
                ledger.refuse(errno.ESHUTDOWN)
            return False
        ledger = _ledger()  # another thread has put a new one in its place, or closed it for good
    if kept is not None:
        kept.told = True  # once, as in a ledger
    if _logger.isEnabledFor(logging.INFO):
        record = {"v": _record.SCHEMA, "ev": event, "sid": sid, **make()}
        _logger.info("%s", _record.encoded(record))
    return True


def kills_unrecorded() -> bool:
    """Whether a program whose start could not be recorded is to be killed."""
    ledger = _Current.ledger
    return ledger is not None and ledger.kills_unrecorded()


def new_id() -> str:
    """Return a fresh id for a spawn."""
    return uuid7()
