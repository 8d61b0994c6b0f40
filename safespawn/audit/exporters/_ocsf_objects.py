"""Objects of OCSF 1.8.0: process, actor, user, file, fingerprint, policy."""

from __future__ import annotations

import shlex
from typing import Any

from . import _events
from ._fields import Fields, number_of, present, readable

#: algorithm_id of a fingerprint, type_id of a file.
_SHA256, _REGULAR_FILE = 3, 1


def fingerprint(sha256: str) -> dict[str, Any]:
    """Return a digest."""
    return {"algorithm_id": _SHA256, "value": sha256}


def _with_id(number: int | None) -> dict[str, Any]:
    return {} if number is None else {"uid": str(number)}


def actor(about: Fields, ids: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return who acts: our process, as far as a record tells it, and always this library.

    ``ids`` are its real and effective user id, where those of ``who`` are not meant.
    """
    if number_of(about.look("who", "pid")) is None:
        return {"app_name": "safespawn"}
    real, effective = ids or (about.number("who", "ruid"), about.number("who", "euid"))
    return {"app_name": "safespawn", "process": _caller(about, real, effective)}


def _caller(about: Fields, real: int | None, effective: int | None) -> dict[str, Any]:
    user = _with_id(real)
    if user:
        user |= present(groups=[_with_id(group) for group in about.numbers("who", "groups") or ()])
    return present(
        pid=about.number("who", "pid"),
        auid=about.number("who", "auid"),
        euid=effective,
        egid=about.number("who", "egid"),
        user=user,
        group=_with_id(about.number("who", "rgid")),
        session=_with_id(about.number("who", "ses")),
        parent_process=present(pid=about.number("who", "ppid")),
    )


def program(event: str, about: Fields) -> dict[str, Any]:
    """Return what a process is started with. The array of arguments has no place: it stays unmapped."""
    arguments = about.shown(*_events.arguments(event))
    path = about.word("what", "exe", "path")
    real, effective = _events.child_users(about)
    return present(
        cmd_line=None if arguments is None else shlex.join(arguments),
        name=_events.program_name(path, arguments),
        path=path,
        file=_file(about),
        working_directory=about.word("what", "cwd"),
        user=_with_id(real),
        euid=effective,
    )


def _file(about: Fields) -> dict[str, Any]:
    real = about.word("what", "exe", "real")
    name = _events.program_name(real, None)
    if name is None:
        return {}
    owner, digest = about.number("what", "exe", "uid"), about.word("what", "exe", "sha256")
    modified = number_of(about.look("what", "exe", "mtime"))
    return present(
        name=name,
        path=real,
        type_id=_REGULAR_FILE,
        owner=_with_id(owner),
        size=about.number("what", "exe", "size"),
        modified_time=None if modified is None else modified // 10**6,
        hashes=[fingerprint(digest)] if digest else None,
    )


def segment(fields: Fields) -> dict[str, Any]:
    """Return the file of a retired segment."""
    name = fields.word("segment")
    if name is None:
        return {}
    digest = fields.word("sha256")
    hashes = [fingerprint(digest)] if digest else None
    return present(name=name, type_id=_REGULAR_FILE, size=fields.number("bytes"), hashes=hashes)


def before(fields: Fields) -> dict[str, Any]:
    """Return the actor of a change of credentials: the process with the ids before it."""
    users = _events.users_of_change(fields)
    return actor(fields) if users is None else actor(fields, (users[0][0], users[0][1]))


def after(fields: Fields) -> dict[str, Any]:
    """Return the same process after it. The whole sets of ids and capabilities stay unmapped."""
    users = _events.users_of_change(fields)
    real, effective = (None, None) if users is None else users[1][:2]
    return present(
        pid=number_of(fields.look("who", "pid")),
        ptid=fields.number("change", "tid"),
        user=_with_id(real),
        euid=effective,
    )


def verdicts(fields: Fields) -> dict[str, Any]:
    """Return what guards said. They are told if each is no more than a guard, a result and a reason."""
    guards = fields.look("how", "guards")
    if not isinstance(guards, list) or not guards:
        return {}
    shown = [verdict for guard in guards if (verdict := _verdict(guard)) is not None]
    if [_guard(verdict) for verdict in shown] == guards:
        fields.tell("how", "guards")
    refused = [verdict["policy"] for verdict in shown if verdict["decision"] == "deny"]
    return present(authorizations=shown, policy=refused[0] if refused else None)


def _verdict(guard: Any) -> dict[str, Any] | None:
    said = [readable(guard.get(key)) for key in ("r", "g", "why")] if isinstance(guard, dict) else []
    if not said or said[0] is None or said[1] is None:
        return None
    return {"decision": said[0], "policy": present(name=said[1], desc=said[2])}


def _guard(verdict: dict[str, Any]) -> dict[str, Any]:
    policy = verdict["policy"]
    return {"g": policy["name"], "r": verdict["decision"], "why": policy.get("desc")}
