"""Reads back what the exporters wrote, without the copy of the line: the record, or what differs shows.

The tables say where each member of a record went. They are written from docs/audit-exporters.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from safespawn import _privileges

Path = tuple[str, ...]
Move = tuple[Path, Path, Callable[[Any], Any]]

SPAWNS = ("spawn.intent", "spawn.started", "spawn.failed", "spawn.denied", "spawn.exit", "exit.unknown")
#: Records that tell about a program: the caller is the parent there, else it is the process itself.
PROGRAMS = (*SPAWNS, "spawn.bypass")


def _same(value: Any) -> Any:
    return value


def _get(made: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(made, dict) or name not in made:
            return None
        made = made[name]
    return made


def _put(record: dict[str, Any], path: Path, value: Any) -> None:
    """Add a member, unless the rest has it: what is only shown stays there as it was."""
    for name in path[:-1]:
        record = record.setdefault(name, {})
    record.setdefault(path[-1], value)


def _moved(made: dict[str, Any], rest: dict[str, Any], moves: list[Move]) -> dict[str, Any]:
    for target, source, undo in moves:
        value = _get(made, target)
        if value is not None:
            _put(rest, source, undo(value))
    return rest


def _without(made: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Take away what the intent gave: it is not of this record."""
    made = copy.deepcopy(made)
    for name in names:
        *groups, last = name.split(".")
        group = _get(made, tuple(groups))
        group.pop(last)
    return made


def _identity(made: dict[str, Any], path: Path, rest: dict[str, Any]) -> None:
    if _get(made, path) is not None:
        chain, _, number = _get(made, path).rpartition(":")
        _put(rest, ("c",), chain)
        _put(rest, ("n",), int(number))


def _pid(event: str) -> Path:
    return {"spawn.exit": ("exit", "pid"), "exit.unknown": ("pid",)}.get(event, ("outcome", "pid"))


def _argv(event: str) -> Path:
    return ("bypass", "argv") if event == "spawn.bypass" else ("what", "argv")


def _error(event: str) -> Path:
    return ("change", "name") if event == "cred.change" else ("outcome", "name")


# ---------------------------------------------------------------------- OCSF

_ACTOR = ("actor", "process")


def _uids(objects: list[dict[str, str]]) -> list[int]:
    return [int(one["uid"]) for one in objects]


def _digest(hashes: list[dict[str, Any]]) -> str:
    return hashes[0]["value"]


def _guards(authorizations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"g": one["policy"]["name"], "r": one["decision"], "why": one["policy"].get("desc")} for one in authorizations
    ]


_OCSF: list[Move] = [
    (("metadata", "log_version"), ("v",), int),
    (("metadata", "event_code"), ("ev",), _same),
    (("metadata", "correlation_uid"), ("sid",), _same),
    (("metadata", "original_time"), ("t",), int),
    (("metadata", "product", "version"), ("library",), _same),
    (("metadata", "tags"), ("tags",), lambda tags: {tag["name"]: tag["value"] for tag in tags}),
    (("device", "boot_uid"), ("boot",), _same),
    ((*_ACTOR, "pid"), ("who", "pid"), _same),
    ((*_ACTOR, "auid"), ("who", "auid"), _same),
    ((*_ACTOR, "egid"), ("who", "egid"), _same),
    ((*_ACTOR, "group", "uid"), ("who", "rgid"), int),
    ((*_ACTOR, "session", "uid"), ("who", "ses"), int),
    ((*_ACTOR, "parent_process", "pid"), ("who", "ppid"), _same),
    ((*_ACTOR, "user", "groups"), ("who", "groups"), _uids),
]

#: Of a change of credentials those are the ids before it, which stay unmapped too.
_OCSF_IDS: list[Move] = [
    ((*_ACTOR, "euid"), ("who", "euid"), _same),
    ((*_ACTOR, "user", "uid"), ("who", "ruid"), int),
]

_OCSF_LOG: list[Move] = [
    (("status_detail",), ("why",), _same),
    (("message",), ("reason",), _same),
    (("file", "name"), ("segment",), _same),
    (("file", "size"), ("bytes",), _same),
    (("file", "hashes"), ("sha256",), _digest),
]


def _ocsf_process(event: str) -> list[Move]:
    detail = ("outcome", "message") if event == "spawn.failed" else ("why",)
    moves: list[Move] = [
        (("exit_code",), ("exit", "code"), _same),
        (("status_code",), _error(event), _same),
        (("status_detail",), detail, _same),
        (("count",), ("bypass", "count"), _same),
        (("authorizations",), ("how", "guards"), _guards),
    ]
    if event == "cred.change":
        return [*moves, (("process", "ptid"), ("change", "tid"), _same)]
    return [
        *moves,
        (("process", "pid"), _pid(event), _same),
        (("process", "path"), ("what", "exe", "path"), _same),
        (("process", "working_directory"), ("what", "cwd"), _same),
        (("process", "file", "path"), ("what", "exe", "real"), _same),
        (("process", "file", "owner", "uid"), ("what", "exe", "uid"), int),
        (("process", "file", "size"), ("what", "exe", "size"), _same),
        (("process", "file", "hashes"), ("what", "exe", "sha256"), _digest),
    ]


def from_ocsf(made: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an OCSF event."""
    rest = copy.deepcopy(made.get("unmapped", {}))
    for enrichment in made.get("enrichments", []):
        made = _without(made, enrichment["data"].get("attributes", []))
    event = made["metadata"]["event_code"]
    _identity(made, ("metadata", "uid"), rest)
    moves = list(_OCSF)
    if event != "cred.change" or not _knows_users(rest):
        moves += _OCSF_IDS
    if made["class_uid"] == 1007:
        moves += _ocsf_process(event)
    elif made["class_uid"] == 1008:
        moves += _OCSF_LOG
    if "ev" not in rest and event == "unknown":
        moves.remove(_OCSF[1])
    return _moved(made, rest, moves)


def _knows_users(rest: dict[str, Any]) -> bool:
    sets = [_get(rest, ("change", when, "uids")) for when in ("before", "after")]
    return all(isinstance(ids, list) and len(ids) == 4 and all(type(one) is int for one in ids) for ids in sets)


# ----------------------------------------------------------------------- ECS


def _nanoseconds(text: str) -> int:
    whole, _, below = text.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp()
    return int(seconds) * 10**9 + int(below)


def _ids(objects: list[dict[str, str]]) -> list[int]:
    return [int(one["id"]) for one in objects]


def _mask(names: list[str]) -> str:
    bits = {f"CAP_{name.upper()}": bit for bit, name in enumerate(_privileges.CAPABILITIES)}
    return f"{sum(1 << (bits[name] if name in bits else int(name)) for name in names):x}"


_ECS: list[Move] = [
    (("@timestamp",), ("t",), _nanoseconds),
    (("event", "duration"), ("exit", "dur"), _same),
    (("host", "boot", "id"), ("boot",), _same),
    (("error", "message"), ("outcome", "message"), _same),
    (("process", "entity_id"), ("sid",), _same),
    (("process", "exit_code"), ("exit", "code"), _same),
    (("message",), ("reason",), _same),
    (("labels",), ("tags",), _same),
    (("file", "name"), ("segment",), _same),
    (("file", "size"), ("bytes",), _same),
    (("file", "hash", "sha256"), ("sha256",), _same),
]


def _capabilities(target: Path, source: Path) -> list[Move]:
    thread = (*target, "thread", "capabilities")
    return [
        ((*thread, "effective"), (*source, "eff"), _mask),
        ((*thread, "permitted"), (*source, "prm"), _mask),
    ]


def _ecs_caller(at: Path) -> list[Move]:
    ids = {"user": "euid", "real_user": "ruid", "saved_user": "suid"}
    ids |= {"group": "egid", "real_group": "rgid", "saved_group": "sgid"}
    return [
        ((*at, "pid"), ("who", "pid"), _same),
        *(((*at, field, "id"), ("who", key), int) for field, key in ids.items()),
        ((*at, "supplemental_groups"), ("who", "groups"), _ids),
        *_capabilities(at, ("who",)),
    ]


def _ecs_process(event: str) -> list[Move]:
    if event == "cred.change":
        return [
            (("process", "pid"), ("who", "pid"), _same),
            (("process", "parent", "pid"), ("who", "ppid"), _same),
            (("process", "thread", "id"), ("change", "tid"), _same),
            *_capabilities(("process",), ("change", "after")),
        ]
    if event not in PROGRAMS:
        return [*_ecs_caller(("process",)), (("process", "parent", "pid"), ("who", "ppid"), _same)]
    return [
        (("process", "pid"), _pid(event), _same),
        (("process", "executable"), ("what", "exe", "real"), _same),
        (("process", "args"), _argv(event), _same),
        (("process", "args_count"), ("what", "argc"), _same),
        (("process", "working_directory"), ("what", "cwd"), _same),
        (("process", "hash", "sha256"), ("what", "exe", "sha256"), _same),
        *_ecs_caller(("process", "parent")),
    ]


def _is_refused(rest: dict[str, Any]) -> bool:
    """Whether the reason is that of a guard, and so in the rest as it is."""
    guards = _get(rest, ("how", "guards"))
    for guard in guards if isinstance(guards, list) else ():
        if isinstance(guard, dict) and guard.get("r") == "deny":
            return bool(guard.get("why"))
    return False


def from_ecs(made: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an ECS document."""
    own = made.get("safespawn", {})
    rest = copy.deepcopy(own.get("record", {}))
    made = _without(made, own.get("intent", {}).get("fields", []))
    event = made["event"]["code"]
    _identity(made, ("event", "id"), rest)
    moves = [*_ECS, (("error", "code"), _error(event), _same), *_ecs_process(event)]
    if event != "unknown":
        moves.append((("event", "code"), ("ev",), _same))
    if not _is_refused(rest):
        moves.append((("event", "reason"), ("why",), _same))
    return _moved(made, rest, moves)


# ---------------------------------------------------------------------- OTLP


def any_value(value: dict[str, Any]) -> Any:
    """Return what an AnyValue of OTLP/JSON holds."""
    ((kind, held),) = value.items() or [("null", None)]
    if kind == "arrayValue":
        return [any_value(item) for item in held.get("values", [])]
    if kind == "kvlistValue":
        return {pair["key"]: any_value(pair["value"]) for pair in held.get("values", [])}
    return int(held) if kind == "intValue" else held


def attributes(made: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of the one log record of an object."""
    pairs = log_record(made).get("attributes", [])
    found = {pair["key"]: any_value(pair["value"]) for pair in pairs}
    assert len(found) == len(pairs), "an attribute is there twice"
    return found


def log_record(made: dict[str, Any]) -> dict[str, Any]:
    """Return the one log record of an object."""
    ((scopes,),) = [[scope for resource in made["resourceLogs"] for scope in resource["scopeLogs"]]]
    (record,) = scopes["logRecords"]
    return record


REST = "safespawn.record"


def _rest(found: dict[str, Any]) -> dict[str, Any]:
    if REST in found:
        return found[REST]
    rest: dict[str, Any] = {}
    for key, value in found.items():
        if key.startswith(f"{REST}."):
            _put(rest, tuple(key[len(REST) + 1 :].split(".")), value)
    return rest


def _otel_process(event: str) -> dict[str, Path]:
    if event in PROGRAMS:
        return {
            "process.pid": _pid(event),
            "process.parent_pid": ("who", "pid"),
            "process.executable.path": ("what", "exe", "real"),
            "process.command_args": _argv(event),
            "process.args_count": ("what", "argc"),
            "process.working_directory": ("what", "cwd"),
        }
    return {"process.pid": ("who", "pid"), "process.parent_pid": ("who", "ppid")}


def from_otel(made: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an OTLP/JSON object. A number beyond 64 bits is the text of its digits."""
    found = attributes(made)
    rest = _rest(found)
    told = {key: value for key, value in found.items() if key not in found.get("safespawn.intent.attributes", ())}
    log = log_record(made)
    event = log.get("eventName", "").removeprefix("safespawn.")
    _identity(told, ("log.record.uid",), rest)
    places = {"process.exit.code": ("exit", "code"), "error.type": _error(event), **_otel_process(event)}
    _moved(told, rest, [((key,), source, _same) for key, source in places.items()])
    return _moved(log, rest, [(("timeUnixNano",), ("t",), int), *([(("eventName",), ("ev",), lambda _: event)] if event else [])])


READERS = {"ocsf": from_ocsf, "ecs": from_ecs, "otel": from_otel}
