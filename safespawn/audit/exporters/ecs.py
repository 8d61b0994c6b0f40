"""The Elastic Common Schema, version 9.4.0: https://www.elastic.co/docs/reference/ecs.

What has no field of ECS goes to ``safespawn.record``, which wants the mapping type ``flattened``.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from ... import _privileges
from ..spawns import iso
from . import _events
from ._events import OF_A_SPAWN
from ._fields import Fields, number_of, present, readable, texts_of

VERSION = "9.4.0"

#: A key of ``labels``: a dot would make an object of it, which labels must not have.
_LABEL = re.compile(r"[A-Za-z0-9_-]+")


class _Kind(NamedTuple):
    category: tuple[str, ...] = ()
    type: tuple[str, ...] = ("info",)
    outcome: str | None = None
    action: str | None = None


#: ``exec`` and ``end`` are what others call these actions too; for all else it is the name of the event.
_KINDS = {
    "spawn.intent": _Kind(("process",), ("start",), "unknown"),
    "spawn.started": _Kind(("process",), ("start",), "success", "exec"),
    "spawn.failed": _Kind(("process",), ("start",), "failure"),
    "spawn.denied": _Kind(("process", "api"), ("start", "denied"), "failure"),
    "spawn.bypass": _Kind(("process",), ("start",), "unknown"),
    "spawn.exit": _Kind(("process",), ("end",), None, "end"),
    "exit.unknown": _Kind(("process",), ("end",), "unknown"),
    "cred.change": _Kind(("process",), ("change",)),
    "guard.config": _Kind(("configuration",), ("info",)),
    "breakglass": _Kind(("configuration",), ("change",)),
    "segment.retired": _Kind(("file",), ("deletion",), "success"),
    "chain.open": _Kind((), ("start",)),
    "chain.close": _Kind((), ("end",)),
    "audit.degraded": _Kind((), ("error",), "failure"),
    "mirror.down": _Kind((), ("error",), "failure"),
    "helper.lost": _Kind((), ("error",), "failure"),
    "helper.shrunk": _Kind(("configuration",), ("change",)),
}


def convert(
    record: Mapping[str, Any],
    line: bytes,
    *,
    intent: Mapping[str, Any] | None = None,
    host: str | None = None,
) -> dict[str, Any]:
    """Return a record as an ECS document. ``line`` is its line without the newline.

    ``intent`` is the intent that it goes with (:class:`~safespawn.audit.exporters.Joined`),
    ``host`` the name of the machine that wrote it. Raises ValueError if ``line`` is not ASCII.
    """
    fields = Fields(record)
    event = fields.word("ev") or "unknown"
    joined = _events.joined(event, intent)
    about = fields if joined is None else joined
    name = fields.name()
    from_about = _about_process(event, about)
    made = present(
        {"@timestamp": _at(fields)},
        ecs={"version": VERSION},
        event=_event(event, fields, name, line),
        log=present(level=_level(event)),
        host=_host(fields, host),
        process=_process(event, fields) | from_about,
        user=_user(event, about),
        error=present(code=_events.error(event, fields), message=fields.word("outcome", "message")),
        rule=present(name=_refusal(fields).get("g")),
        file=_segment(fields),
        message=fields.word("reason"),
        labels=_labels(about),
    )
    given = [f"process.{key}" for key in from_about] + [key for key in ("user", "labels") if key in made]
    own = present(record=fields.rest(), intent=_mark(joined, given))
    return {**made, "safespawn": own} if own else made


def _at(fields: Fields) -> str | None:
    ns = fields.number("t")
    return None if ns is None else iso(ns)


def _level(event: str) -> str | None:
    severity = _events.severity(event)
    return None if severity is None else severity.value


def _event(event: str, fields: Fields, name: str | None, line: bytes) -> dict[str, Any]:
    kind = _KINDS.get(event, _Kind())
    outcome = {None: kind.outcome, False: "success", True: "failure"}[_events.change_failed(fields)]
    return present(
        kind="event",
        category=list(kind.category),
        type=list(kind.type),
        action=kind.action or event,
        code=event,
        outcome=outcome,
        reason=_refusal(fields).get("why") or _events.reason(event, fields),
        duration=fields.number("exit", "dur"),
        id=name,
        sequence=number_of(fields.look("n")),
        module="safespawn",
        dataset="safespawn.audit",
        provider="safespawn",
        original=line.decode("ascii"),
        hash=hashlib.sha256(line).hexdigest(),
    )


def _refusal(fields: Fields) -> dict[str, Any]:
    """Return the first guard that denied, as texts. All of them stay in the record's rest."""
    guards = fields.look("how", "guards")
    for guard in guards if isinstance(guards, list) else ():
        if isinstance(guard, dict) and guard.get("r") == "deny":
            return {key: readable(guard.get(key)) for key in ("g", "why")}
    return {}


def _host(fields: Fields, host: str | None) -> dict[str, Any]:
    return present(name=host, hostname=host, boot=present(id=fields.word("boot")), os={"type": "linux"})


def _segment(fields: Fields) -> dict[str, Any]:
    name = fields.word("segment")
    if name is None:
        return {}
    return present(name=name, size=fields.number("bytes"), hash=present(sha256=fields.word("sha256")))


def _labels(about: Fields) -> dict[str, str]:
    tags = texts_of(about.look("tags"))
    if not tags or not all(map(_LABEL.fullmatch, tags)):
        return {}
    about.tell("tags")
    return tags


def _mark(joined: Fields | None, given: list[str]) -> dict[str, Any]:
    """Tell which fields the intent gave: they are not of this record."""
    return {} if joined is None else present(id=joined.name(), fields=given)


def _process(event: str, fields: Fields) -> dict[str, Any]:
    """Return what a record itself says about the process."""
    entity = fields.word("sid") if event in OF_A_SPAWN else None
    return present(entity_id=entity, pid=_events.pid(event, fields), exit_code=fields.number("exit", "code"))


def _about_process(event: str, about: Fields) -> dict[str, Any]:
    """Return what the intent of a record says about the process."""
    if event == "cred.change":
        return _changed(about)
    caller = _caller(about)
    if event in OF_A_SPAWN or event == "spawn.bypass":
        return {**_program(event, about), **present(parent=caller)}
    return {**caller, **present(parent=present(pid=about.number("who", "ppid")))}


def _program(event: str, about: Fields) -> dict[str, Any]:
    arguments = about.words(*_events.arguments(event))
    executable = about.word("what", "exe", "real")
    real, effective = _events.child_users(about)
    return present(
        name=_events.program_name(readable(about.look("what", "exe", "path")), arguments),
        executable=executable,
        args=arguments,
        args_count=about.number("what", "argc"),
        command_line=None if arguments is None else shlex.join(arguments),
        working_directory=about.word("what", "cwd"),
        hash=present(sha256=about.word("what", "exe", "sha256")),
        user=_id(effective),
        real_user=_id(real),
    )


def _id(number: int | None) -> dict[str, str]:
    return {} if number is None else {"id": str(number)}


def _caller(about: Fields) -> dict[str, Any]:
    """Return the process that wrote the record: ids, groups and capabilities."""
    users = {"user": "euid", "real_user": "ruid", "saved_user": "suid"}
    groups = {"group": "egid", "real_group": "rgid", "saved_group": "sgid"}
    ids = {field: _id(about.number("who", key)) for field, key in {**users, **groups}.items()}
    return present(
        pid=about.number("who", "pid"),
        **ids,
        supplemental_groups=[_id(one) for one in about.numbers("who", "groups") or ()],
        thread=_thread(about, "who"),
    )


def _thread(about: Fields, *path: str) -> dict[str, Any]:
    return present(
        capabilities=present(
            effective=_capabilities(about, *path, "eff"), permitted=_capabilities(about, *path, "prm")
        )
    )


def _capabilities(about: Fields, *path: str) -> list[str]:
    """Tell a mask by the names of its bits, and by the number of one that has no name."""
    mask = about.look(*path)
    try:
        bits = int(mask, 16)
    except (TypeError, ValueError):
        return []
    if f"{bits:x}" != mask or not 0 < bits < 2**64:
        return []
    about.tell(*path)
    names = _privileges.CAPABILITIES
    return [
        f"CAP_{names[bit].upper()}" if bit < len(names) else str(bit) for bit in range(64) if bits >> bit & 1
    ]


def _changed(fields: Fields) -> dict[str, Any]:
    """Return the process after the change; the sets of ids stay in the record's rest."""
    users = _events.users_of_change(fields)
    real, effective, saved = (None, None, None) if users is None else users[1][:3]
    thread = present(id=fields.number("change", "tid"), **_thread(fields, "change", "after"))
    return present(
        pid=fields.number("who", "pid"),
        parent=present(pid=fields.number("who", "ppid")),
        user=_id(effective),
        real_user=_id(real),
        saved_user=_id(saved),
        thread=thread,
    )


def _user(event: str, about: Fields) -> dict[str, Any]:
    """Return who acts, and in ``effective`` as whom: the program of a spawn, or we after a change."""
    before: int | None
    after: int | None
    if event == "cred.change":
        users = _events.users_of_change(about)
        before, after = (None, None) if users is None else (users[0][1], users[1][1])
    else:
        before, after = number_of(about.look("who", "euid")), _events.child_users(about)[1]
    return present(**_id(before), effective=_id(after) if after != before else {})
