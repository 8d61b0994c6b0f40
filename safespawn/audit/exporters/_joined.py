"""Which intent a later record of a spawn goes with: `spawn.started` and `spawn.exit` do not repeat it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

#: What of an intent is told again by the later records.
_KEPT = ("c", "n", "tags", "who", "what", "want")
#: What describes the program and the caller. Descriptors, environment and capabilities stay with the intent.
_PARTS = {
    "what": ("argv", "argc", "argv_cut", "exe", "cwd"),
    "who": ("pid", "ppid", "auid", "ses", "ruid", "euid", "suid", "rgid", "egid", "sgid", "groups"),
}


class Joined:
    """Remembers intents by their ``sid``, at most ``limit`` of them: the oldest is forgotten first.

    Not for several threads at once.
    """

    def __init__(self, limit: int = 4096) -> None:
        """Make an empty one. Raises ValueError if ``limit`` is below 1."""
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit!r}")
        self._limit = limit
        self._intents: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        #: How many records were asked for whose intent is not known: not in the ledger, or forgotten.
        self.missed = 0

    def intent_of(self, record: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the intent that ``record`` goes with, None if it needs none or it is not known.

        Give it every record of a ledger, in their order.
        """
        sid, event = record.get("sid"), record.get("ev")
        if not isinstance(sid, str):
            return None
        if event == "spawn.intent":
            self._remember(sid, record)
        elif event == "spawn.started":
            return self._found(self._intents.get(sid))
        elif event in ("spawn.exit", "exit.unknown"):
            return self._found(self._intents.pop(sid, None))
        elif event in ("spawn.failed", "spawn.denied"):  # they tell all themselves
            self._intents.pop(sid, None)
        return None

    def _remember(self, sid: str, record: Mapping[str, Any]) -> None:
        kept = {name: record[name] for name in _KEPT if name in record}
        for group, names in _PARTS.items():
            part = kept.get(group)
            if isinstance(part, dict):
                kept[group] = {name: part[name] for name in names if name in part}
        self._intents.pop(sid, None)
        self._intents[sid] = kept
        if len(self._intents) > self._limit:
            self._intents.popitem(last=False)

    def _found(self, intent: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        self.missed += intent is None
        return intent
