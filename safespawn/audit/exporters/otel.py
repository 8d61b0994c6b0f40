"""OpenTelemetry log records as OTLP/JSON, with the semantic conventions 1.44.0 where they have a name.

The form is that of the OTLP file exporter: each object is an ExportLogsServiceRequest with one record
(https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/). A number of 64 bits is a string
there, as in every JSON form of protobuf. What has no name of the conventions is ``safespawn.record.*``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from . import _events
from ._events import OF_A_SPAWN, Severity
from ._fields import Fields, number_of, present

CONVENTIONS = "1.44.0"

#: SeverityNumber of the logs data model.
_SEVERITY_NUMBERS = {Severity.INFO: 9, Severity.WARNING: 13, Severity.ERROR: 17}
_SCHEMA_URL = f"https://opentelemetry.io/schemas/{CONVENTIONS}"


def convert(
    record: Mapping[str, Any],
    line: bytes,
    *,
    intent: Mapping[str, Any] | None = None,
    host: str | None = None,
) -> dict[str, Any]:
    """Return a record as OTLP/JSON. ``line`` is its line without the newline, and the body.

    ``intent`` is the intent that it goes with (:class:`~safespawn.audit.exporters.Joined`),
    ``host`` the name of the machine that wrote it. Raises ValueError if ``line`` is not ASCII.
    """
    logs = {
        "scope": {"name": "safespawn.audit"},
        "logRecords": [_log_record(record, line, intent)],
        "schemaUrl": _SCHEMA_URL,
    }
    resource = {"attributes": _attributes(present({"os.type": "linux", "host.name": host}))}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [logs], "schemaUrl": _SCHEMA_URL}]}


def _log_record(record: Mapping[str, Any], line: bytes, intent: Mapping[str, Any] | None) -> dict[str, Any]:
    fields = Fields(record)
    event = fields.word("ev") or ""
    joined = _events.joined(event, intent)
    severity = _events.severity(event)
    from_about = _about_process(event, fields if joined is None else joined)
    told = present({"log.record.uid": fields.name(), **_process(event, fields), **from_about})
    at, rest = _at(fields), fields.rest()
    return present(
        timeUnixNano=at,
        severityNumber=None if severity is None else _SEVERITY_NUMBERS[severity],
        eventName=f"safespawn.{event}" if event else None,
        body={"stringValue": line.decode("ascii")},
        attributes=[
            *_attributes({**told, **_mark(joined, from_about)}),
            *(_flat("safespawn.record", rest) if rest else ()),
        ],
    )


def _at(fields: Fields) -> str | None:
    """The field is unsigned, and 0 is no time. Without one the receiver must give it."""
    ns = number_of(fields.look("t"))
    return fields.digits("t") if ns is not None and ns > 0 else None


def _process(event: str, fields: Fields) -> dict[str, Any]:
    """Return what a record itself says about the process."""
    return {
        "process.pid": _events.pid(event, fields),
        "process.exit.code": fields.number("exit", "code"),
        "error.type": _events.error(event, fields),
    }


def _about_process(event: str, about: Fields) -> dict[str, Any]:
    """Return what the intent of a record says about the process."""
    if event in OF_A_SPAWN or event == "spawn.bypass":
        return _program(event, about)
    users: Any = (None, None, None)
    if event == "cred.change":
        seen = _events.users_of_change(about)
        users = users if seen is None else seen[1]
    return {
        "process.pid": about.number("who", "pid"),
        "process.parent_pid": about.number("who", "ppid"),
        "process.real_user.id": users[0],
        "process.user.id": users[1],
        "process.saved_user.id": users[2],
    }


def _program(event: str, about: Fields) -> dict[str, Any]:
    arguments = about.words(*_events.arguments(event))
    path = about.word("what", "exe", "real")
    real, effective = _events.child_users(about)
    return {
        "process.parent_pid": about.number("who", "pid"),
        "process.executable.path": path,
        "process.executable.name": _events.program_name(path, None),
        "process.command": arguments[0] if arguments else None,
        "process.command_args": arguments,
        "process.args_count": about.number("what", "argc"),
        "process.working_directory": about.word("what", "cwd"),
        "process.real_user.id": real,
        "process.user.id": effective,
    }


def _mark(joined: Fields | None, given: dict[str, Any]) -> dict[str, Any]:
    """Tell which attributes the intent gave: they are not of this record."""
    if joined is None:
        return {}
    return present(
        {
            "safespawn.intent.uid": joined.name(),
            "safespawn.intent.attributes": sorted(present(given)),
            "safespawn.intent.tags": joined.look("tags"),
        }
    )


def _attributes(named: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in named.items()]


def _flat(prefix: str, value: Any) -> Iterator[dict[str, Any]]:
    """Yield an attribute per member: dots join the names, so one that has a dot is not taken apart."""
    if isinstance(value, dict) and value and all(key and "." not in key for key in value):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}", item)
    else:
        yield {"key": _text(prefix), "value": _value(value)}


def _value(value: Any) -> dict[str, Any]:
    """Return an AnyValue; one without a member is null."""
    if isinstance(value, dict):
        pairs = [{"key": _text(key), "value": _value(item)} for key, item in value.items()]
        return {"kvlistValue": present(values=pairs)}
    if isinstance(value, list):
        return {"arrayValue": present(values=[_value(item) for item in value])}
    if isinstance(value, str):
        return _string(value)
    return {} if value is None else _number(value)


def _number(value: float) -> dict[str, Any]:
    """A whole number beyond 64 bits becomes the text of its digits."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"stringValue": str(value)} if number_of(value) is None else {"intValue": str(value)}
    return {"doubleValue": value}


def _string(value: str) -> dict[str, Any]:
    """Half of a surrogate pair, which no ledger has, is no UTF-8: protobuf takes it as bytes only."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return {"bytesValue": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode("ascii")}
    return {"stringValue": value}


def _text(key: str) -> str:
    return key.encode("utf-8", "backslashreplace").decode("utf-8")
