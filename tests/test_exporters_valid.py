"""What the exporters write is valid: against the schemas of OCSF, ECS, OTLP and the semantic conventions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import pytest
from golden import make
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema.embedded import OcsfJsonSchemaEmbedded
from ocsf_json_schema.loader import get_ocsf_schema
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

import exported
import helpers
from odd_records import records
from safespawn.audit.exporters import FORMATS, ecs, ocsf, otel

RECORDS = [json.loads(line) for line in make.lines()]
IDS = [f"{number}-{record['ev']}" for number, record in enumerate(RECORDS)]


def of_each_record(form: str) -> Any:
    """Run a test with what a form makes of each of the golden records."""
    return pytest.mark.parametrize("made", make.exported(form), ids=IDS)


# ---------------------------------------------------------------------- OCSF


@cache
def validator(class_uid: int, profiles: tuple[str, ...]) -> jsonschema.Draft202012Validator:
    """Return the validator of a class with some profiles; it knows every attribute, and allows no other."""
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(ocsf.VERSION))
    return jsonschema.Draft202012Validator(
        schema.get_class_schema(schema.lookup_class_name_from_uid(class_uid), list(profiles))
    )


def ocsf_errors(event: dict[str, Any]) -> list[str]:
    """Return what is wrong with an OCSF event."""
    found = validator(event["class_uid"], tuple(event["metadata"]["profiles"])).iter_errors(event)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in found]


@of_each_record("ocsf")
def test_ocsf_event_is_valid(made: dict[str, Any]) -> None:
    """The event is valid in its class, and its numbers agree with each other."""
    assert ocsf_errors(made) == []
    assert made["type_uid"] == made["class_uid"] * 100 + made["activity_id"]
    assert ("activity_name" in made) == (made["activity_id"] == 99)


@pytest.mark.parametrize("number", range(len(RECORDS)), ids=IDS)
def test_ocsf_event_without_intent_and_host_is_valid(number: int) -> None:
    """It is valid too where the intent and the name of the host are not known."""
    assert ocsf_errors(ocsf.convert(RECORDS[number], make.lines()[number])) == []


def test_ocsf_classes() -> None:
    """Spawns and credentials are Process Activity, the trail's own records Event Log Activity."""
    classes = {record["ev"]: made["class_uid"] for record, made in zip(RECORDS, make.exported("ocsf"), strict=True)}
    processes = {event for event, class_uid in classes.items() if class_uid == 1007}

    assert processes == {*exported.PROGRAMS, "cred.change"}
    assert {event for event, class_uid in classes.items() if class_uid == 0} == {
        "guard.config", "helper.lost", "helper.shrunk", "signal.sent"
    }  # fmt: skip
    assert set(classes.values()) == {0, 1007, 1008}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event.update(status_id=7),
        lambda event: event["process"].update(pid="1"),
        lambda event: event["actor"].clear(),
        lambda event: event.update(surprise=1),
    ],
    ids=["number", "type", "constraint", "attribute"],
)
def test_ocsf_check_sees_an_error(spoil: Any) -> None:
    """The check complains about a wrong number, type, constraint or attribute."""
    event = next(made for made in make.exported("ocsf") if made["metadata"]["event_code"] == "spawn.started")
    spoil(event)
    assert len(ocsf_errors(event)) == 1


# ----------------------------------------------------------------------- ECS

ECS = json.loads((make.HERE / f"ecs-{ecs.VERSION}.json").read_text(encoding="utf-8"))


def leaves(document: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each field of a document by its dotted name; of a list of objects those of each."""
    if isinstance(document, dict) and path not in ("labels", "safespawn"):
        for name, value in document.items():
            assert "." not in name, f"a dot in the name of a member of {path}: {name}"
            yield from leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(document, list) and document and isinstance(document[0], dict):
        for item in document:
            yield from leaves(item, path)
    else:
        yield path, document


def is_of_type(value: Any, kind: str) -> bool:
    """Whether a value is what Elasticsearch takes for the type of a field."""
    if kind == "long":
        return type(value) is int and -(2**63) <= value < 2**63
    if kind == "object":
        return all(isinstance(item, str) for item in value.values())
    if kind == "date":
        return re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", value) is not None
    return kind in ("keyword", "wildcard", "match_only_text") and isinstance(value, str)


def ecs_errors(document: dict[str, Any]) -> list[str]:
    """Return what is wrong with an ECS document."""
    found = []
    for name, value in leaves(document):
        if name == "safespawn":
            continue
        field = ECS["fields"].get(name)
        items = value if field and field.get("array") and isinstance(value, list) else [value]
        if field is None or not all(is_of_type(item, field["type"]) for item in items):
            found.append(f"{name}: {value!r}")
        elif not all(re.fullmatch(field.get("pattern", "(?s).*"), str(item)) for item in items):
            found.append(f"{name}: {value!r}")
    return found + category_errors(document["event"])


def category_errors(event: dict[str, Any]) -> list[str]:
    """Return what is wrong with the categorization of an event."""
    expected = {kind for category in event.get("category", ()) for kind in ECS["types_of_category"][category]}
    found = [kind for kind in event["type"] if kind not in (expected or ECS["types"])]
    for name, allowed in ECS["values"].items():
        value = event.get(name.partition(".")[2])
        found += [] if value is None or value in allowed else [value]
    return found


@of_each_record("ecs")
def test_ecs_document_is_valid(made: dict[str, Any]) -> None:
    """Every field is one of ECS with its type, but for `safespawn`, and the categories fit."""
    assert ecs_errors(made) == []
    assert made["ecs"]["version"] == ECS["version"]
    assert {"@timestamp", "event", "ecs"} <= made.keys()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document["process"].update(surprise=1),
        lambda document: document["process"].update(pid="1"),
        lambda document: document["event"].update(type=["denied"]),
        lambda document: document["event"].update(outcome="maybe"),
        lambda document: document.update({"@timestamp": "2026-01-01"}),
    ],
    ids=["field", "type", "category", "value", "date"],
)
def test_ecs_check_sees_an_error(spoil: Any) -> None:
    """The check complains about a wrong field, type, category, value or date."""
    document = next(made for made in make.exported("ecs") if made["event"]["code"] == "spawn.started")
    spoil(document)
    assert len(ecs_errors(document)) == 1


# ---------------------------------------------------------------------- OTLP

OTEL = json.loads((make.HERE / f"otel-{otel.CONVENTIONS}.json").read_text(encoding="utf-8"))
KINDS = {"string": str, "int": int}


@of_each_record("otel")
def test_otlp_is_what_protobuf_reads(made: dict[str, Any]) -> None:
    """Protobuf takes it for an ExportLogsServiceRequest, and writes the same again."""
    request = json_format.Parse(json.dumps(made), ExportLogsServiceRequest())
    assert json_format.MessageToDict(request, use_integers_for_enums=True) == made


@of_each_record("otel")
def test_attributes_are_those_of_the_conventions(made: dict[str, Any]) -> None:
    """Every attribute is one of the conventions with its type, but for `safespawn.*`."""
    resource = made["resourceLogs"][0]["resource"]["attributes"]
    found = exported.attributes(made) | {pair["key"]: exported.any_value(pair["value"]) for pair in resource}
    for name, value in found.items():
        if name.startswith("safespawn."):
            continue
        kind, many, _ = OTEL["attributes"][name].partition("[]")
        assert all(type(item) is KINDS[kind] for item in (value if many else [value])), f"{name}: {value!r}"


# ------------------------------------------------------------- any record


@settings(max_examples=150, deadline=None)
@given(record=records(), intent=st.one_of(st.none(), records()))
def test_what_comes_of_any_record_is_valid(record: dict[str, Any], intent: dict[str, Any] | None) -> None:
    """Whatever a record holds, it makes no invalid object: only its time can be missing."""
    line = json.dumps(record).encode("ascii")
    event, document, request = (FORMATS[form](record, line, intent=intent) for form in ("ocsf", "ecs", "otel"))

    if "time" not in event:
        assert "@timestamp" not in document
        event["time"] = 0
    assert ocsf_errors(event) == []
    assert ecs_errors(document) == []
    json_format.Parse(json.dumps(request), ExportLogsServiceRequest())


DOCS = helpers.ROOT / "docs" / "audit-exporters.md"


def test_table_of_events_is_true() -> None:
    """The class, activity and severity that the documentation gives for each event are those that come out."""
    table = DOCS.read_text(encoding="utf-8").partition("## Events")[2].partition("## Members")[0]
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines() if row.startswith("| `")]
    written = {
        (event, re.match(r"(\d+): (\d+)", row[1]).groups(), row[-1].strip(" |"))
        for row in rows
        for event in re.findall(r"`([^`]+)`", row[0])
    }
    seen = {
        (
            record["ev"],
            (str(event["class_uid"]), str(event["activity_id"])),
            str(exported.log_record(request).get("severityNumber", "")),
        )
        for record, event, request in zip(RECORDS, make.exported("ocsf"), make.exported("otel"), strict=True)
    }
    by_call = {one for one in seen if one[0] == "cred.change" and one[1] == ("1007", "99")}

    assert len(written) > 18
    assert seen - by_call - {("signal.sent", ("0", "99"), "")} <= written
    assert {event for event, _, _ in written} - {event for event, _, _ in seen} <= {"registry.init"}


def test_forms_are_all_checked() -> None:
    """There is no form beside those three."""
    assert set(FORMATS) == {"ocsf", "ecs", "otel"}
