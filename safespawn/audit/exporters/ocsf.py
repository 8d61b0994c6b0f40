"""The Open Cybersecurity Schema Framework, version 1.8.0: https://schema.ocsf.io/1.8.0/.

Spawns and changes of credentials become Process Activity (1007), what is about the
trail itself Event Log Activity (1008), anything else Base Event (0): no record is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import _events, _ocsf_objects
from ._events import Severity
from ._fields import Fields, number_of, present, readable, texts_of

VERSION = "1.8.0"
PROFILES = ("host", "linux/linux_users", "security_control")

_BASE, _PROCESS, _EVENT_LOG = 0, 1007, 1008
_CATEGORIES = {_BASE: 0, _PROCESS: 1, _EVENT_LOG: 1}

#: Numbers of the schema: activity_id of 1007 and of 1008, status_id, action_id and disposition_id.
_LAUNCH, _TERMINATE, _SET_USER_ID = 1, 2, 5
_DELETE, _START, _STOP = 2, 6, 7
_OTHER = 99
_UNKNOWN, _SUCCESS, _FAILURE = 0, 1, 2
_ALLOWED, _DENIED, _OBSERVED = 1, 2, 3
_BLOCKED, _DETECTED = 2, 15
#: launch_type_id for fork and exec in one event, log_type_id, and type_id of an operating system.
_SPAWN, _APPLICATION, _LINUX = 1, 2, 200

_SEVERITY_IDS = {Severity.INFO: 1, Severity.WARNING: 3, Severity.ERROR: 4, None: 0}


class _Kind(NamedTuple):
    class_uid: int
    activity_id: int = _OTHER
    status_id: int | None = None
    action_id: int | None = None
    disposition_id: int | None = None


_KINDS = {
    "spawn.intent": _Kind(_PROCESS, _LAUNCH, _UNKNOWN, _ALLOWED, _ALLOWED),
    "spawn.started": _Kind(_PROCESS, _LAUNCH, _SUCCESS),
    "spawn.failed": _Kind(_PROCESS, _LAUNCH, _FAILURE),
    "spawn.denied": _Kind(_PROCESS, _LAUNCH, _FAILURE, _DENIED, _BLOCKED),
    "spawn.bypass": _Kind(_PROCESS, _LAUNCH, _UNKNOWN, _OBSERVED, _DETECTED),
    "spawn.exit": _Kind(_PROCESS, _TERMINATE, _SUCCESS),
    "exit.unknown": _Kind(_PROCESS, _TERMINATE, _UNKNOWN),
    "chain.open": _Kind(_EVENT_LOG, _START, _SUCCESS),
    "chain.close": _Kind(_EVENT_LOG, _STOP, _SUCCESS),
    "chain.fork": _Kind(_EVENT_LOG),
    "checkpoint": _Kind(_EVENT_LOG),
    "audit.degraded": _Kind(_EVENT_LOG, _OTHER, _FAILURE),
    "audit.restored": _Kind(_EVENT_LOG, _OTHER, _SUCCESS),
    "mirror.down": _Kind(_EVENT_LOG, _OTHER, _FAILURE),
    "mirror.up": _Kind(_EVENT_LOG, _OTHER, _SUCCESS),
    "segment.retired": _Kind(_EVENT_LOG, _DELETE, _SUCCESS),
    "breakglass": _Kind(_EVENT_LOG),
    "registry.init": _Kind(_EVENT_LOG),
    "registry.chain": _Kind(_EVENT_LOG),
}

#: The calls that are Set User ID even where the id stays what it was.
_SETS_USER = ("setuid", "seteuid", "setreuid", "setresuid", "setfsuid")


def convert(
    record: Mapping[str, Any],
    line: bytes,
    *,
    intent: Mapping[str, Any] | None = None,
    host: str | None = None,
) -> dict[str, Any]:
    """Return a record as an OCSF event. ``line`` is its line without the newline.

    ``intent`` is the intent that it goes with (:class:`~safespawn.audit.exporters.Joined`),
    ``host`` the name of the machine that wrote it. Raises ValueError if ``line`` is not ASCII.
    """
    fields = Fields(record)
    event = fields.word("ev") or "unknown"
    joined = _events.joined(event, intent)
    kind = _credential_kind(fields) if event == "cred.change" else _KINDS.get(event, _Kind(_BASE))
    name = fields.name()
    made = {
        **_classified(kind, event, fields),
        **_at(fields),
        "device": _device(fields, host),
        **_body(kind, event, fields, joined),
        "metadata": _metadata(event, fields, joined, name),
        "raw_data": line.decode("ascii"),
        "raw_data_hash": _ocsf_objects.fingerprint(hashlib.sha256(line).hexdigest()),
    }
    return {**made, **present(unmapped=fields.rest())}


def _credential_kind(fields: Fields) -> _Kind:
    users = _events.users_of_change(fields)
    sets_user = fields.look("change", "call") in _SETS_USER or (users is not None and users[0] != users[1])
    status = {None: _UNKNOWN, False: _SUCCESS, True: _FAILURE}[_events.change_failed(fields)]
    return _Kind(_PROCESS, _SET_USER_ID if sets_user else _OTHER, status)


def _classified(kind: _Kind, event: str, fields: Fields) -> dict[str, Any]:
    other = readable(fields.look("change", "call")) or event
    return present(
        class_uid=kind.class_uid,
        category_uid=_CATEGORIES[kind.class_uid],
        activity_id=kind.activity_id,
        activity_name=other if kind.activity_id == _OTHER else None,
        type_uid=kind.class_uid * 100 + kind.activity_id,
        severity_id=_SEVERITY_IDS[_events.severity(event)],
        status_id=kind.status_id,
        action_id=kind.action_id,
        disposition_id=kind.disposition_id,
    )


def _at(fields: Fields) -> dict[str, int]:
    """The exact time is ``metadata.original_time``. Where the record has none, the receiver must give it."""
    ns = number_of(fields.look("t"))
    return {} if ns is None else {"time": ns // 10**6}


def _device(fields: Fields, host: str | None) -> dict[str, Any]:
    """A record names no host, and the schema demands a name."""
    named = {"name": "unknown"} if host is None else {"hostname": host}
    system = {"name": "Linux", "type_id": _LINUX}
    return present(type_id=0, **named, boot_uid=fields.word("boot"), os=system)


def _metadata(event: str, fields: Fields, joined: Fields | None, name: str | None) -> dict[str, Any]:
    return present(
        version=VERSION,
        profiles=list(PROFILES),
        product=present(name="safespawn", vendor_name="safespawn", version=fields.word("library")),
        log_name="safespawn.audit",
        log_version=fields.digits("v"),
        event_code=event,
        uid=name,
        sequence=number_of(fields.look("n")),
        correlation_uid=fields.word("sid"),
        original_time=fields.digits("t"),
        is_truncated=None if fields.look("what", "argv_cut") is None else True,
        tags=_tags(joined or fields),
    )


def _tags(fields: Fields) -> list[dict[str, str]]:
    tags = texts_of(fields.look("tags"))
    if tags:
        fields.tell("tags")
    return [{"name": name, "value": value} for name, value in tags.items()]


def _body(kind: _Kind, event: str, fields: Fields, joined: Fields | None) -> dict[str, Any]:
    if kind.class_uid == _EVENT_LOG:
        return _event_log_activity(event, fields)
    if kind.class_uid == _BASE:
        return {"actor": _ocsf_objects.actor(fields)}
    if event == "cred.change":
        actor, process = _ocsf_objects.before(fields), _ocsf_objects.after(fields)
    else:
        actor, process = _spawn(event, fields, joined or fields)
    if not process.keys() & {"uid", "pid"}:
        process["uid"] = "unknown"  # the schema demands one of them
    return present(
        actor=actor,
        process=process,
        launch_type_id=_SPAWN if kind.activity_id == _LAUNCH else None,
        **_outcome(event, fields),
        **_ocsf_objects.verdicts(fields),
        enrichments=[] if joined is None else [_mark(fields, joined, actor, process)],
    )


def _event_log_activity(event: str, fields: Fields) -> dict[str, Any]:
    return present(
        actor=_ocsf_objects.actor(fields),
        log_name=readable(fields.look("mirror")) or "safespawn.audit",
        log_provider="safespawn",
        log_type_id=_APPLICATION,
        file=_ocsf_objects.segment(fields),
        message=fields.word("reason"),
        status_detail=_events.reason(event, fields),
    )


def _spawn(event: str, fields: Fields, about: Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    uid = readable(fields.look("sid")) or fields.name()
    process = present(uid=uid, pid=_events.pid(event, fields), **_ocsf_objects.program(event, about))
    return _ocsf_objects.actor(about), process


def _outcome(event: str, fields: Fields) -> dict[str, Any]:
    took = number_of(fields.look("exit", "dur"))
    message = fields.word("outcome", "message") if event == "spawn.failed" else _events.reason(event, fields)
    return present(
        exit_code=fields.number("exit", "code"),
        duration=None if took is None else took // 10**6,
        status_code=_events.error(event, fields),
        status_detail=message,
        count=fields.number("bypass", "count"),
    )


def _mark(fields: Fields, joined: Fields, actor: dict[str, Any], process: dict[str, Any]) -> dict[str, Any]:
    """Tell which attributes the intent gave: they are not of this record."""
    given = [f"actor.{key}" for key in actor if key != "app_name"]
    given += [f"process.{key}" for key in process if key not in ("uid", "pid")]
    given += ["metadata.tags"] if _tags(joined) else []
    return {
        "name": "metadata.correlation_uid",
        "value": readable(fields.look("sid")) or "",
        "type": "spawn.intent",
        "data": present(record=joined.name(), attributes=given),
    }
