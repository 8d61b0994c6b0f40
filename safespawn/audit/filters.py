"""Which spawns and events are wanted."""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

from .spawns import Event, Spawn, iso

__all__ = ["OUTCOMES", "STRATEGIES", "Filter", "event_pattern", "outcome", "strategy", "time_ns", "uid"]

#: What a spawn can come to: the outcomes of its report, and an intent without one.
OUTCOMES = (
    "exec",
    "failed",
    "killed-before-exec",
    "race-detected",
    "timed-out",
    "interrupted",
    "refused",
    "unknown",
)
STRATEGIES = ("vfork", "clone", "posix_spawn", "launcher", "helper", "pool", "fork")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
#: uid_t has 32 bits, and all ones mean none: setreuid(2).
_UID_END = (1 << 32) - 1


@dataclass(frozen=True)
class Filter:
    """What is wanted; None or empty wants all. An entry must satisfy every member.

    ``since`` (included) and ``until`` (not included) are nanoseconds since 1970, and compared with the
    time of the first record. ``user`` is a uid: the caller's (real, effective or login) or the
    target's. ``program`` is a glob of the whole path where it has a slash, else of its last part.
    ``tags`` must all be there. ``event`` are globs of event names; a spawn has those of all its
    records. Events that are not of a spawn have no program, outcome, strategy or tags: they match none.
    """

    since: int | None = None
    until: int | None = None
    user: int | None = None
    program: str | None = None
    outcome: frozenset[str] = frozenset()
    strategy: frozenset[str] = frozenset()
    tags: Mapping[str, str] = field(default_factory=dict)
    event: frozenset[str] = frozenset()

    def matches(self, entry: Spawn | Event) -> bool:
        """Return whether an entry is wanted."""
        if self.since is not None and entry.when_ns < self.since:
            return False
        if self.until is not None and entry.when_ns >= self.until:
            return False
        return self._matches_spawn(entry) if isinstance(entry, Spawn) else self._matches_event(entry)

    def words(self) -> str:
        """Return it in words, times in UTC; empty if all is wanted."""
        told = {
            "since": self.since is not None and iso(self.since),
            "until": self.until is not None and iso(self.until),
            "uid": self.user is not None and str(self.user),
            "program": self.program,
            "outcome": " or ".join(sorted(self.outcome)),
            "strategy": " or ".join(sorted(self.strategy)),
            "tags": " and ".join(f"{key}={value}" for key, value in self.tags.items()),
            "event": " or ".join(sorted(self.event)),
        }
        return ", ".join(f"{name} {value}" for name, value in told.items() if value)

    def _matches_spawn(self, spawn: Spawn) -> bool:
        own = spawn.tags or {}
        return (
            (not self.outcome or spawn.outcome in self.outcome)
            and (not self.strategy or spawn.strategy in self.strategy)
            and (self.user is None or self.user in (spawn.ruid, spawn.euid, spawn.auid, spawn.target_uid))
            and all(own.get(key) == value for key, value in self.tags.items())
            and (self.program is None or self._is_program(spawn))
            and (not self.event or any(self._is_event(name) for name in spawn.events))
        )

    def _matches_event(self, entry: Event) -> bool:
        if self.program is not None or self.outcome or self.strategy or self.tags:
            return False
        if self.user is not None and self.user not in _uids(entry):
            return False
        return not self.event or self._is_event(entry.event)

    def _is_event(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.event)

    def _is_program(self, spawn: Spawn) -> bool:
        pattern = self.program or ""
        paths = [path for path in (spawn.program, spawn.real) if path is not None]
        if "/" not in pattern:
            paths = [os.path.basename(path) for path in paths]
        return any(fnmatchcase(path, pattern) for path in paths)


def _uids(entry: Event) -> set[object]:
    """Return the uids of whoever an event is about, before and after a change."""
    found: set[object] = set()
    for part in ("who", "change"):
        group = entry.record.fields.get(part)
        if isinstance(group, dict):
            found |= {group[key] for key in ("ruid", "euid", "auid") if isinstance(group.get(key), int)}
            for state in (group.get("before"), group.get("after")):
                ids = state.get("uids") if isinstance(state, dict) else None
                found |= {one for one in ids if isinstance(one, int)} if isinstance(ids, list) else set()
    return found


def time_ns(text: str, now_ns: int | None = None) -> int:
    """Return a time as nanoseconds since 1970.

    ISO 8601 (2026-11-29, 2026-11-29T10:00, with an offset or Z; without one it is local time);
    ``now``, ``today`` and ``yesterday`` (local midnight); or a number with s, m, h, d or w, and a
    minus or none in front: so long ago. Raises ValueError.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    if ago := re.fullmatch(r"-?([0-9]{1,9})([smhdw])", text):
        return now_ns - int(ago[1]) * _UNITS[ago[2]] * 1_000_000_000
    if text == "now":
        return now_ns
    now = datetime.fromtimestamp(now_ns // 1_000_000_000)  # noqa: DTZ006 - local midnight is meant
    today = now.replace(hour=0, minute=0, second=0)
    days = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        return _seconds(days[text]) if text in days else _iso_ns(text)
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"a time such as 2026-11-29T10:00, yesterday or 2h (ago) needed, not {text!r}"
        ) from None


def _seconds(when: datetime) -> int:
    return int(when.timestamp()) * 1_000_000_000


#: Before Python 3.11 fromisoformat knows no Z and not every number of digits, and never nanoseconds.
_ISO = re.compile(r"(.+?)(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})?")


def _iso_ns(text: str) -> int:
    parts = _ISO.fullmatch(text)
    if parts is None:
        raise ValueError(text)
    start, fraction, zone = parts.groups(default="")
    return _seconds(datetime.fromisoformat(start + zone.replace("Z", "+00:00"))) + int(fraction.ljust(9, "0"))


def uid(text: str) -> int:
    """Return the uid of a user of this host, or the number that was given. Raises ValueError."""
    if text.isascii() and text.isdigit():
        if int(text) >= _UID_END:
            raise ValueError(f"a uid is below {_UID_END}, not {text!r}")
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ValueError(f"no such user on this host: {text!r} (a number is taken as it is)") from None


def _words(text: str, known: tuple[str, ...]) -> frozenset[str]:
    words = frozenset(text.split(","))
    for word in sorted(words):
        if word not in known:
            raise ValueError(f"{', '.join(known)} needed, separated by commas, not {word!r}")
    return words


def outcome(text: str) -> frozenset[str]:
    """Return the outcomes of a list with commas. Raises ValueError."""
    return _words(text, OUTCOMES)


def strategy(text: str) -> frozenset[str]:
    """Return the strategies of a list with commas. Raises ValueError."""
    return _words(text, STRATEGIES)


def event_pattern(text: str) -> frozenset[str]:
    """Return the globs of a list with commas, as ``spawn.denied,mirror.*``. Raises ValueError."""
    words = frozenset(text.split(","))
    for word in sorted(words):
        if not re.fullmatch(r"[a-z.*?\[\]!-]+", word):
            raise ValueError(f"a name of an event or a glob of such needed, not {word!r}")
    return words
