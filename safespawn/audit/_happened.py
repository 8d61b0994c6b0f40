"""One line about a record that is not of a spawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ._fields import as_text, group, items, number
from ._shown import Names, argument, clean
from .spawns import Event

#: What every record has: docs/audit-format.md, "A record".
_ENVELOPE = frozenset(("v", "c", "n", "p", "ev", "sid", "t", "mono", "boot", "mode", "who", "m"))


def detail(event: Event, names: Names) -> str:
    """Return what an event says, clean."""
    fields = event.record.fields
    tell = _TELL.get(event.event)
    return clean(tell(fields, names) if tell else _compact(_rest(fields)))


def actor(event: Event, names: Names) -> str:
    """Return which process it is about, and its user where that is told."""
    told = group(event.record.fields.get("who"))
    uid, pid = number(told.get("euid")), number(told.get("pid"))
    user = "" if uid is None else names(uid)
    return f"{user}[{pid}]" if pid is not None else user


def _say(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return "?" if value is None else as_text(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _rest(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _ENVELOPE}


def _change(fields: dict[str, Any], names: Names) -> str:
    change = group(fields.get("change"))
    if "lost" in change:
        return f"changes that were lost: {_say(change, 'lost')}"
    call = f"{_say(change, 'call')}({', '.join(map(as_text, items(change.get('args'))))})"
    parts = [call]
    if change.get("errno"):
        parts.append(f"failed with {_say(change, 'name')}")
    before, after = group(change.get("before")), group(change.get("after"))
    parts += [
        f"{name} {_ids(before.get(name), shown)} → {_ids(after.get(name), shown)}"
        for name, shown in (("uids", names), ("gids", str), ("eff", str))
        if before.get(name) != after.get(name)
    ]
    if change.get("killed"):
        parts.append(f"children that were killed for it: {_say(change, 'killed')}")
    return "; ".join(parts)


def _ids(value: Any, shown: Callable[[int], str]) -> str:
    """Return ids without those that repeat the one before, or the text of anything else."""
    if not isinstance(value, list):
        return as_text(value)
    told = [as_text(one) if number(one) is None else shown(one) for one in value]
    return told[0] if told and len(set(told)) == 1 else "/".join(told)


def _lost(fields: dict[str, Any], names: Names) -> str:
    del names
    parts = [f"records lost: {_say(fields, 'lost')}"]
    if "why" in fields:
        parts.append(_say(fields, "why"))
    if "resent" in fields:
        parts.append(f"these come again: {'-'.join(map(as_text, items(fields['resent'])))}")
    return "; ".join(parts)


def _mirror(fields: dict[str, Any], names: Names) -> str:
    del names
    parts = [_say(fields, "mirror"), *([_say(fields, "why")] if fields.get("why") else [])]
    return f"{': '.join(parts)}; {_say(fields, 'accepted')} accepted, {_say(fields, 'dropped')} dropped"


def _bypass(fields: dict[str, Any], names: Names) -> str:
    del names
    bypass = group(fields.get("bypass"))
    argv = " ".join(argument(as_text(word)) for word in items(bypass.get("argv")))
    told = f"{_say(bypass, 'event')} at {_say(bypass, 'site')}, {_say(bypass, 'count')} times"
    return f"{told}: {argv}" if argv else told


def _opened(fields: dict[str, Any], names: Names) -> str:
    del names
    keys = "with keys" if fields.get("keys") else "without keys"
    child = f", forked from chain {_say(fields, 'parent')}" if fields.get("parent") else ""
    return f"mode {_say(fields, 'mode')}, {keys}, library {_say(fields, 'library')}{child}"


def _closed(fields: dict[str, Any], names: Names) -> str:
    del names
    lost = fields.get("lost")
    return f"records lost: {as_text(lost)}" if lost else "nothing lost"


def _reason(fields: dict[str, Any], names: Names) -> str:
    del names
    return f"{_say(fields, 'reason')}: {_say(fields, 'why')}"


def _helper(fields: dict[str, Any], names: Names) -> str:
    del names
    helper = group(fields.get("helper"))
    what = _say(helper, "why") if "why" in helper else f"{_say(helper, 'policies')} policies"
    return f"helper {_say(helper, 'pid')}: {what}"


_TELL: dict[str, Callable[[dict[str, Any], Names], str]] = {
    "cred.change": _change,
    "audit.degraded": _lost,
    "audit.restored": _lost,
    "mirror.down": _mirror,
    "mirror.up": _mirror,
    "spawn.bypass": _bypass,
    "helper.lost": _helper,
    "helper.shrunk": _helper,
    "chain.open": _opened,
    "chain.close": _closed,
    "breakglass": _reason,
}
