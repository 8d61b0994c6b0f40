"""What each kind of record is, as far as all targets tell it alike, and what they derive about a program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from typing import Any

from ._fields import Fields, number_of


class Severity(Enum):
    """How much a record asks for attention."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_SEVERITIES = {
    **dict.fromkeys(("chain.open", "chain.fork", "chain.close", "checkpoint"), Severity.INFO),
    **dict.fromkeys(("registry.init", "registry.chain"), Severity.INFO),
    **dict.fromkeys(("spawn.intent", "spawn.started", "spawn.exit", "cred.change"), Severity.INFO),
    **dict.fromkeys(("guard.config", "helper.shrunk", "segment.retired"), Severity.INFO),
    **dict.fromkeys(("mirror.up", "audit.restored"), Severity.INFO),
    **dict.fromkeys(("spawn.failed", "spawn.denied", "exit.unknown"), Severity.WARNING),
    **dict.fromkeys(("spawn.bypass", "mirror.down", "helper.lost"), Severity.WARNING),
    **dict.fromkeys(("audit.degraded", "breakglass"), Severity.ERROR),
}

#: Records whose ``sid`` is that of a process that was, or was to be, started.
OF_A_SPAWN = (
    "spawn.intent",
    "spawn.started",
    "spawn.failed",
    "spawn.denied",
    "spawn.exit",
    "exit.unknown",
)


def severity(event: str) -> Severity | None:
    """Return how much attention a kind asks for; None for a kind that is not known."""
    return _SEVERITIES.get(event)


def joined(event: str, intent: Mapping[str, Any] | None) -> Fields | None:
    """Return the intent of a record that can have one."""
    return Fields(intent) if intent is not None and event in OF_A_SPAWN else None


#: Where each kind has what all of them may tell: one place, so that it can be found again.
_PIDS = {"spawn.exit": ("exit", "pid"), "exit.unknown": ("pid",)}
_ARGUMENTS = {"spawn.bypass": ("bypass", "argv")}
_ERRORS = {"cred.change": ("change", "name")}


def pid(event: str, fields: Fields) -> int | None:
    """Tell the process that was started."""
    if event not in OF_A_SPAWN:
        return None
    return fields.number(*_PIDS.get(event, ("outcome", "pid")))


def arguments(event: str) -> tuple[str, ...]:
    """Return where the arguments are of a program that was, or was to be, started."""
    return _ARGUMENTS.get(event, ("what", "argv"))


def error(event: str, fields: Fields) -> str | None:
    """Tell the name of the error number."""
    return fields.word(*_ERRORS.get(event, ("outcome", "name")))


def reason(event: str, fields: Fields) -> str | None:
    """Tell why. That of a checkpoint says only what it was time for."""
    return None if event == "checkpoint" else fields.word("why")


def change_failed(fields: Fields) -> bool | None:
    """Whether the kernel refused a change of credentials; None where the record does not say."""
    error = number_of(fields.look("change", "errno"))
    return None if error is None else error != 0


def users_of_change(fields: Fields) -> tuple[list[int], list[int]] | None:
    """Return real, effective, saved and file-system user id before and after; None if it does not say."""
    sets = [fields.look("change", when, "uids") for when in ("before", "after")]
    for ids in sets:
        if not isinstance(ids, list) or len(ids) != 4 or None in map(number_of, ids):
            return None
    return sets[0], sets[1]


def child_users(fields: Fields) -> tuple[int | None, int | None]:
    """Return the real and the effective user id that a program starts with; None where it is not told.

    A file with the set-user-ID bit starts with its owner as the effective one (execve(2)), and in a
    new user namespace the id that was asked for is one of that namespace.
    """
    want = fields.look("want")
    if not isinstance(want, dict) or "cut_bytes" in want:
        return None, None
    namespaces = want.get("namespaces")
    if isinstance(namespaces, list) and "user" in namespaces:
        return None, None
    real, effective = (number_of(want.get("uid", fields.look("who", key))) for key in ("ruid", "euid"))
    return real, None if _sets_user(fields.look("what", "exe", "mode")) else effective


def _sets_user(mode: Any) -> bool:
    try:
        return bool(int(mode, 8) & 0o4000)
    except (TypeError, ValueError):
        return False


def program_name(path: str | None, argv: list[str] | None) -> str | None:
    """Return the last part of the program's path, or of argument 0."""
    first = path or (argv[0] if argv else "")
    return os.path.basename(first) or None
