"""The exporters: nothing is lost, and what they say of a record is true."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from golden import make
from hypothesis import given, settings
from hypothesis import strategies as st

import exported
import helpers
from odd_records import records
from safespawn.audit.exporters import FORMATS, Joined

CONTRACT = helpers.ROOT / "docs" / "audit-format.md"
LINES = make.lines()
RECORDS = [json.loads(line) for line in LINES]


def joined_intents() -> list[dict[str, Any] | None]:
    """Return the intent of each record, where it has one."""
    joined = Joined()
    return [joined.intent_of(record) for record in RECORDS]


INTENTS = joined_intents()
CASES = list(zip(RECORDS, LINES, INTENTS, strict=True))


def of(event: str) -> dict[str, Any]:
    """Return a copy of the first record of an event."""
    return copy.deepcopy(next(record for record in RECORDS if record["ev"] == event))


def convert(form: str, record: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Convert a record by the line that a ledger would have for it."""
    return FORMATS[form](record, json.dumps(record).encode("ascii"), **more)


def the_line(form: str, made: dict[str, Any]) -> str:
    """Return the copy of the line."""
    if form == "otel":
        return exported.log_record(made)["body"]["stringValue"]
    return made["raw_data"] if form == "ocsf" else made["event"]["original"]


def canonical(record: Any, form: str) -> str:
    """Return a text that is equal for equal records only; OTLP has no whole numbers beyond 64 bits."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        beyond = type(value) is int and not -(2**63) <= value < 2**63
        return str(value) if beyond and form == "otel" else value

    return json.dumps(plain(record), sort_keys=True)


# --------------------------------------------------------------- the records


def test_every_event_of_the_contract_is_among_the_records() -> None:
    """The golden records have each event that docs/audit-format.md lists."""
    table = CONTRACT.read_text(encoding="utf-8").partition("\n## Events")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    listed = {event for row in rows for event in re.findall(r"`([a-z.]+)`", row)}

    assert {"spawn.intent", "breakglass", "mirror.up"} <= listed
    assert listed <= {record["ev"] for record in RECORDS}


#: What is in these is named by the caller, or by events and proofs.
OPEN = ("want", "tags", "counts", "proofs")


def names(value: Any) -> set[str]:
    """Return the names of all members, however deep."""
    if isinstance(value, dict):
        return set(value).union(*(names(item) for name, item in value.items() if name not in OPEN))
    return set().union(*map(names, value)) if isinstance(value, list) else set()


def test_every_member_is_explained() -> None:
    """docs/audit-format.md says what each member of a record that the library wrote is, and in which unit."""
    told = re.findall(r"`([^`\n]+)`", CONTRACT.read_text(encoding="utf-8"))
    explained = set(re.findall(r"[a-z0-9_]+", " ".join(told)))
    found: set[str] = set()
    for line in (make.HERE / "records.jsonl").read_bytes().splitlines():
        found |= names(json.loads(line))

    assert len(found) > 80
    assert found <= explained, found - explained


@pytest.mark.parametrize("form", FORMATS)
def test_golden_file(form: str) -> None:
    """The records come out as they did when the file was made: tests/golden/make.py."""
    golden = (make.HERE / f"{form}.jsonl").read_text(encoding="ascii").splitlines()
    assert make.exported(form) == [json.loads(line) for line in golden]


# ------------------------------------------------------------ nothing is lost


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{record['ev']}" for n, record in enumerate(RECORDS)])
def test_every_member_is_read_back(form: str, case: tuple[Any, bytes, Any]) -> None:
    """From the mapped members and the rest alone, without the line, comes the same record."""
    record, line, intent = case
    made = FORMATS[form](record, line, intent=intent, host="host.example")
    assert canonical(exported.READERS[form](made), form) == canonical(record, form)


@pytest.mark.parametrize("form", FORMATS)
def test_line_goes_along_byte_for_byte(form: str) -> None:
    """The line of the ledger is in every object: its MAC and its hash can still be checked."""
    assert [the_line(form, made).encode("ascii") for made in make.exported(form)] == LINES


@pytest.mark.parametrize("form", ["ocsf", "ecs"])
def test_hash_of_the_line_links_to_the_next_record(form: str) -> None:
    """The hash that goes along is what the next record of the chain has as `p`."""
    made = make.exported(form)
    hashes = [one["raw_data_hash"]["value"] if form == "ocsf" else one["event"]["hash"] for one in made]
    last: dict[str, str] = {}
    for record, digest in zip(RECORDS, hashes, strict=True):
        assert record["p"] == last.get(record["c"], "0" * 64)
        last[record["c"]] = digest

    assert len(last) == len(make.SOURCES)


@pytest.mark.parametrize("form", FORMATS)
def test_converter_leaves_the_record_alone(form: str) -> None:
    """Neither the record nor its intent is changed, by the converter or through what it returned."""
    for record, line, intent in CASES:
        before = json.dumps([record, intent])
        FORMATS[form](record, line, intent=intent)
        assert json.dumps([record, intent]) == before


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=150, deadline=None)
@given(record=records(), intent=st.one_of(st.none(), records()), host=st.one_of(st.none(), st.just("h")))
def test_any_record_is_read_back(form: str, record: dict[str, Any], intent: dict[str, Any] | None, host: str | None) -> None:
    """Whatever an object holds and wherever, it is converted, and read back from the members alone."""
    made = convert(form, record, intent=intent, host=host)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert canonical(exported.READERS[form](made), form) == canonical(record, form)


# ------------------------------------------------------------------ the rules


@pytest.mark.parametrize("form", FORMATS)
def test_line_that_is_no_ascii_is_refused(form: str) -> None:
    """Such a line is no record, and could not go along as text: the error shows the byte."""
    with pytest.raises(ValueError, match="0xff"):
        FORMATS[form]({}, b"\xff")


def test_bytes_are_shown_readably_and_kept_exactly() -> None:
    r"""Where a target wants text a byte that is no UTF-8 is \xNN; the rest has the bytes themselves."""
    record = of("spawn.intent")
    record["what"]["argv"] = ["ls", {"hex": "66ff"}]
    record["what"]["cwd"] = {"hex": "2f746dff"}

    ocsf = convert("ocsf", record)
    assert ocsf["process"]["cmd_line"] == r"ls 'f\xff'"
    assert ocsf["process"]["working_directory"] == r"/tm\xff"
    assert ocsf["unmapped"]["what"]["argv"] == record["what"]["argv"]
    ecs = convert("ecs", record)
    assert ecs["process"]["args"] == ["ls", r"f\xff"]
    assert ecs["safespawn"]["record"]["what"]["cwd"] == {"hex": "2f746dff"}
    otel = exported.attributes(convert("otel", record))
    assert otel["process.command_args"] == ["ls", r"f\xff"]
    assert otel["safespawn.record.what.argv"] == record["what"]["argv"]


def test_times() -> None:
    """OCSF has milliseconds and the exact number as text, ECS nine digits, OTLP the number as text."""
    record = of("chain.open")
    record["t"] = 1795554226703651210

    ocsf = convert("ocsf", record)
    assert (ocsf["time"], ocsf["metadata"]["original_time"]) == (1795554226703, "1795554226703651210")
    assert convert("ecs", record)["@timestamp"] == "2026-11-24T21:03:46.703651210Z"
    assert exported.log_record(convert("otel", record))["timeUnixNano"] == "1795554226703651210"


def test_record_without_a_time_gets_none() -> None:
    """No time is invented: the receiver has to give one."""
    record = of("chain.open")
    del record["t"]

    assert "time" not in convert("ocsf", record)
    assert "@timestamp" not in convert("ecs", record)
    assert "timeUnixNano" not in exported.log_record(convert("otel", record))


def started_as(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return the effective user id of the program in each target."""
    ocsf, ecs = convert("ocsf", record)["process"], convert("ecs", record)["process"]
    otel = exported.attributes(convert("otel", record))
    return ocsf.get("euid"), ecs.get("user", {}).get("id"), otel.get("process.user.id")


def test_user_of_the_program_is_the_one_asked_for() -> None:
    """A program that is started as another user is told with that one, its caller with its own."""
    record = of("spawn.intent")
    record["want"] = {"uid": 33}
    ecs = convert("ecs", record)

    assert started_as(record) == (33, "33", 33)
    assert convert("ocsf", record)["actor"]["process"]["euid"] == record["who"]["euid"] == 0
    assert ecs["process"]["parent"]["user"]["id"] == ecs["user"]["id"] == "0"
    assert ecs["user"]["effective"]["id"] == "33"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["what"]["exe"].update(mode="4755"),
        lambda record: record.update(want={"uid": 0, "namespaces": ["user"]}),
        lambda record: record.update(want={"cut_bytes": 900, "sha256": "0" * 64}),
    ],
    ids=["set-user-ID", "user namespace", "cut"],
)
def test_user_of_the_program_is_left_out_where_it_is_not_known(change: Any) -> None:
    """A set-user-ID file, an id of a new user namespace or a request that was cut: no user is guessed."""
    record = of("spawn.intent")
    assert started_as(record) == (0, "0", 0)
    change(record)
    assert started_as(record) == (None, None, None)


@pytest.mark.parametrize(
    ("change", "activity", "name"),
    [
        ({"call": "seteuid"}, 5, None),
        ({"call": "credential_change"}, 5, None),
        ({"call": "setgroups", "after": None}, 99, "setgroups"),
        ({"lost": 2}, 99, "cred.change"),
    ],
    ids=["by its call", "by the ids", "of groups", "lost"],
)
def test_activity_of_a_change_of_credentials(change: dict[str, Any], activity: int, name: str | None) -> None:
    """Set User ID is what sets or changes a user id; any other change is told by its call."""
    record = of("cred.change")
    assert record["change"]["before"]["uids"] != record["change"]["after"]["uids"]
    if "lost" in change:
        record["change"] = change
    else:
        record["change"] |= change
        record["change"]["after"] = record["change"]["after"] or record["change"]["before"]
    made = convert("ocsf", record)

    assert (made["activity_id"], made.get("activity_name")) == (activity, name)


def test_credentials_before_and_after() -> None:
    """The actor of a change has the ids before it, the process those after it."""
    record = of("cred.change")
    assert (record["change"]["before"]["uids"][1], record["change"]["after"]["uids"][1]) == (0, 65534)
    ocsf, ecs = convert("ocsf", record), convert("ecs", record)

    assert (ocsf["actor"]["process"]["euid"], ocsf["process"]["euid"]) == (0, 65534)
    assert ecs["user"] == {"id": "0", "effective": {"id": "65534"}}
    assert ecs["process"]["user"]["id"] == "65534"
    assert exported.attributes(convert("otel", record))["process.user.id"] == 65534


def test_refusal_names_the_guard() -> None:
    """A denied spawn has the guard and its reason where each target looks for them."""
    record = of("spawn.denied")
    (guard,) = record["how"]["guards"]
    ocsf, ecs = convert("ocsf", record), convert("ecs", record)

    assert (ocsf["action_id"], ocsf["disposition_id"], ocsf["status_id"]) == (2, 2, 2)
    assert ocsf["policy"] == {"name": guard["g"], "desc": guard["why"]}
    assert (ecs["rule"]["name"], ecs["event"]["reason"]) == (guard["g"], guard["why"])
    assert ecs["event"]["type"] == ["start", "denied"]


def test_failure_names_the_error() -> None:
    """A failed spawn has the name of its errno and the message."""
    record = of("spawn.failed")
    ocsf, ecs = convert("ocsf", record), convert("ecs", record)

    assert (ocsf["status_id"], ocsf["status_code"]) == (2, "ENOENT")
    assert ocsf["status_detail"] == ecs["error"]["message"] == "No such file or directory"
    assert ecs["error"]["code"] == exported.attributes(convert("otel", record))["error.type"] == "ENOENT"


def test_capabilities_have_names_in_ecs() -> None:
    """Each bit has its name; one that has none has its number."""
    record = of("spawn.intent")
    record["who"]["eff"] = f"{1 << 10 | 1 << 63:x}"
    thread = convert("ecs", record)["process"]["parent"]["thread"]
    assert thread["capabilities"]["effective"] == ["CAP_NET_BIND_SERVICE", "63"]


def test_number_beyond_64_bits_is_its_digits_in_otlp() -> None:
    """OTLP has no such number: an argument of a system call can be one."""
    record = of("cred.change")
    record["change"]["args"] = [2**64 - 1, -1]
    found = exported.attributes(convert("otel", record))
    assert found["safespawn.record.change.args"] == [str(2**64 - 1), -1]


def test_half_of_a_surrogate_pair() -> None:
    """No ledger has one, a hostile line may: the text is its bytes in OTLP, and readable where it is shown."""
    record = of("spawn.intent")
    record["what"]["cwd"] = "/\ud800"
    record["what"]["\udfff"] = "\ud800"
    otel = convert("otel", record)

    json.dumps(otel, ensure_ascii=False).encode("utf-8")
    assert exported.attributes(otel)["safespawn.record.what.cwd"] == "L+2ggA=="
    assert convert("ocsf", record)["process"]["working_directory"] == r"/\ud800"
    assert convert("ocsf", record)["unmapped"]["what"]["cwd"] == "/\ud800"


# ------------------------------------------------------------------ the intent


def test_later_records_tell_the_program() -> None:
    """With their intent, started and exit have name, command line, user and tags of it."""
    joined = Joined()
    told = {}
    for record in RECORDS[:4]:
        intent = joined.intent_of(record)
        told[record["ev"]] = [convert(form, record, intent=intent) for form in FORMATS]

    for event in ("spawn.started", "spawn.exit"):
        ocsf, ecs, otel = told[event]
        assert ocsf["process"]["cmd_line"] == ecs["process"]["command_line"] == "sh -c 'exit 3'"
        assert ocsf["process"]["name"] == ecs["process"]["name"] == "sh"
        assert ocsf["process"]["user"] == {"uid": "0"}
        assert ecs["labels"] == {"job": "nightly", "ticket": "OPS-7"}
        assert exported.attributes(otel)["process.command_args"] == ["sh", "-c", "exit 3"]
    assert told["spawn.exit"][0]["exit_code"] == 3


def test_what_the_intent_gave_is_marked() -> None:
    """Each target names the intent and the members that are not of the record itself."""
    name = f"{RECORDS[1]['c']}:1"
    record, intent = RECORDS[3], INTENTS[3]
    ocsf, ecs, otel = (convert(form, record, intent=intent) for form in FORMATS)

    (mark,) = ocsf["enrichments"]
    assert mark["data"]["record"] == ecs["safespawn"]["intent"]["id"] == name
    assert "process.cmd_line" in mark["data"]["attributes"]
    assert "process.args" in ecs["safespawn"]["intent"]["fields"]
    found = exported.attributes(otel)
    assert found["safespawn.intent.uid"] == name
    assert "process.command_args" in found["safespawn.intent.attributes"]


def test_intent_is_forgotten_with_the_end() -> None:
    """After its exit, a failure or a refusal a spawn takes no room; what then asks for it misses it."""
    for end in ("spawn.exit", "exit.unknown", "spawn.failed", "spawn.denied"):
        joined = Joined()
        joined.intent_of({"ev": "spawn.intent", "sid": "a", "what": {}})
        joined.intent_of({"ev": end, "sid": "a"})
        assert joined.missed == 0
        assert joined.intent_of({"ev": "spawn.started", "sid": "a"}) is None
        assert joined.missed == 1


def test_intents_are_bounded() -> None:
    """The oldest intent is forgotten when there are more than the limit, and the miss is counted."""
    joined = Joined(limit=2)
    for sid in "abc":
        joined.intent_of({"ev": "spawn.intent", "sid": sid, "n": 1})

    found = [joined.intent_of({"ev": "spawn.exit", "sid": sid}) for sid in "abc"]
    assert found == [None, {"n": 1}, {"n": 1}]
    assert joined.missed == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_of_intents_is_checked(limit: int) -> None:
    """A limit that holds no intent is an error that shows it."""
    with pytest.raises(ValueError, match=str(limit)):
        Joined(limit)


def test_intent_without_a_usable_id_is_none() -> None:
    """A record whose id is missing or no text has no intent, and is none."""
    joined = Joined()
    assert [joined.intent_of({"ev": "spawn.intent", "sid": sid}) for sid in (None, [], 5)] == [None] * 3
    assert joined.intent_of({"ev": "spawn.exit"}) is None
    assert joined.missed == 0
