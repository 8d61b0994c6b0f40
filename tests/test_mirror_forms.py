"""The forms that the mirrors send in, read back by readers of their own: nothing is lost, nothing forged."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sinks
from mirroring import CHAIN, MESSAGE, PRINTABLE, SID, TIME_NS, line, read_data
from safespawn.audit.mirrors import _audit_fields, _journal_entry, _line, _rfc5424

#: The same cases each time, and no limit on a busy machine.
steady = settings(max_examples=300, derandomize=True, database=None, deadline=None)

FIELD_NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True)
ANY = st.binary(max_size=300)


# ----------------------------------------------------------------- a record


def test_envelope() -> None:
    """The members that every record starts with are read without the rest."""
    assert _line.envelope(line(41, "spawn.denied")) == (CHAIN, 41, "spawn.denied", SID, TIME_NS)
    assert _line.envelope(line(0, "checkpoint", sid=None)).sid is None


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{}",
        b'{"v":2' + line()[6:],
        b" " + line(),
        line().replace(b'"n":0', b'"n":00'),
        line().replace(b'"ev":"spawn.intent"', b'"ev":"spawn intent"'),
        line().replace(CHAIN.encode(), CHAIN.encode()[:-1] + b'"'),
    ],
)
def test_what_is_no_record_is_refused(bad: bytes) -> None:
    """A line in another form is an error with its start, never sent with made-up fields."""
    with pytest.raises(OSError, match="no record: b"):
        _line.envelope(bad)


@steady
@given(ANY)
def test_envelope_takes_anything(data: bytes) -> None:
    """Whatever bytes come, they are a record or an OSError."""
    try:
        _line.envelope(data)
    except OSError:
        pass


@pytest.mark.parametrize(
    ("event", "severity"),
    [("breakglass", 1), ("audit.degraded", 2), ("spawn.denied", 4), ("cred.change", 5), ("spawn.intent", 6), ("new", 6)],
)
def test_severity(event: str, severity: int) -> None:
    """The severity depends on the event, in the numbers of RFC 5424."""
    assert _line.envelope(line(event=event)).severity == severity


@steady
@given(st.lists(st.text(max_size=400), max_size=5))
def test_summary_is_short_printable_ascii(argv: list[str]) -> None:
    """The text for people shows the command, cut, and no character that a terminal would obey."""
    record = line(rest=f',"what":{json.dumps({"argv": argv})}')
    text = _line.summary(record, _line.envelope(record))

    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= 230
    assert text.startswith("spawn.intent [")


@pytest.mark.parametrize("rest", ["", ',"what":null', ',"what":{}', ',"what":[1]'])
def test_summary_without_a_command(rest: str) -> None:
    """Where a record tells of no command, the event stands alone."""
    record = line(event="checkpoint", sid=None, rest=rest)
    assert _line.summary(record, _line.envelope(record)) == "checkpoint"


# ------------------------------------------------------------------- journald


def read_entry(data: bytes) -> list[tuple[str, bytes]]:
    """Read a datagram as journald does."""
    fields = []
    while data:
        head, _, data = data.partition(b"\n")
        name, sign, value = head.partition(b"=")
        if not sign:
            (length,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + length], data[8 + length :]
            assert data[:1] == b"\n"
            data = data[1:]
        fields.append((name.decode("ascii"), value))
    return fields


@steady
@given(st.lists(st.tuples(FIELD_NAMES, ANY), max_size=8))
def test_journal_entry_round_trip(fields: list[tuple[str, bytes]]) -> None:
    """Any values, newlines and NULs too, are read back as they were, and no field is added."""
    assert read_entry(_journal_entry.encode(fields)) == fields


@pytest.mark.parametrize("name", ["", "_PID", "1A", "message", "A B", "A=", "A\n", "A" * 65])
def test_journal_refuses_a_name(name: str) -> None:
    """A name that journald would drop, or one that forges, is refused."""
    with pytest.raises(ValueError, match="no name of a journal field"):
        _journal_entry.encode([(name, b"x")])


# --------------------------------------------------------------------- syslog

def message(text: bytes, **changes: object) -> bytes:
    """Return a message with this text."""
    header: dict[str, object] = {
        "priority": 85,
        "time_ns": TIME_NS,
        "host": "vm",
        "app": "safespawn",
        "process": 7,
        "kind": "spawn.intent",
        "data": _rfc5424.structured_data({}),
    }
    return _rfc5424.message(text, **{**header, **changes})  # type: ignore[arg-type]


VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)


@steady
@given(st.dictionaries(st.from_regex(r"[!#-<>-\\^-~]{1,32}", fullmatch=True), VALUES, max_size=4))
def test_structured_data_round_trip(values: dict[str, str]) -> None:
    """Any value is read back as it was: quotes, backslashes and brackets end nothing."""
    assert read_data(_rfc5424.structured_data(values)) == values


@pytest.mark.parametrize("name", ["", "a b", "a=", 'a"', "a]", "x" * 33, "ä"])
def test_structured_data_refuses_a_name(name: str) -> None:
    """A name that the RFC does not allow is refused."""
    with pytest.raises(ValueError, match="no name of a parameter"):
        _rfc5424.structured_data({name: "x"})


@steady
@given(text=ANY, host=VALUES, values=st.dictionaries(st.sampled_from(["c", "n", "sid"]), VALUES))
def test_message_round_trip(text: bytes, host: str, values: dict[str, str]) -> None:
    """A reader that goes by the RFC finds every part, whatever the host is called and the text contains."""
    found = MESSAGE.fullmatch(message(text, host=host, data=_rfc5424.structured_data(values)))

    assert found is not None
    assert found["priority"] == b"85"
    assert found["host"] == (re.sub(r"[^!-~]", "", host)[:255].encode() or b"-")
    assert read_data(found["data"]) == values
    assert found["text"].removeprefix(b"\xef\xbb\xbf" if not text.isascii() else b"") == text or not text.isascii()


@pytest.mark.parametrize(
    ("text", "sent"),
    [(line(size=8000), line(size=8000)), ("ä".encode(), b"\xef\xbb\xbf\xc3\xa4"), (b"\xff", b"\xff")],
)
def test_byte_order_mark(text: bytes, sent: bytes) -> None:
    """ASCII goes as it is, other UTF-8 with a mark, other bytes without: the RFC's MSG-ANY."""
    found = MESSAGE.fullmatch(message(text))
    assert found is not None
    assert found["text"] == sent


@steady
@given(st.integers(0, 4102444800 * 10**9))
def test_timestamp(time_ns: int) -> None:
    """The time is that of the record, in UTC, cut to microseconds."""
    found = MESSAGE.fullmatch(message(b"", time_ns=time_ns))
    assert found is not None
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found["time"])
    read = datetime.datetime.strptime(found["time"].decode(), "%Y-%m-%dT%H:%M:%S.%fZ")
    since = read - datetime.datetime(1970, 1, 1)
    assert (since.days * 86400 + since.seconds) * 10**6 + since.microseconds == time_ns // 1000


@steady
@given(st.lists(ANY, max_size=5))
def test_frames_round_trip(messages: list[bytes]) -> None:
    """Frames in a stream are told apart by their length alone."""
    stream = b"".join(map(_rfc5424.frame, messages))
    read = []
    while stream:
        length, _, stream = stream.partition(b" ")
        read.append(stream[: int(length)])
        stream = stream[int(length) :]
    assert read == messages


# ---------------------------------------------------------------- Linux audit


AUDIT_NAMES = st.from_regex(r"ss_[a-z0-9_]{1,20}", fullmatch=True)


@steady
@given(AUDIT_NAMES, ANY)
def test_audit_field_round_trip(name: str, value: bytes) -> None:
    """Any value is read back as it was, in a field that has no blank, quote or control character inside."""
    field = _audit_fields.field(name, value)
    assert sinks.audit_fields(field) == {name: value}
    assert re.fullmatch(rb'ss_[a-z0-9_]+=(?:"[!#-&(-~]*"|(?:[0-9A-F]{2})+)', field)


@pytest.mark.parametrize("value", [b"", b"spawn.denied", PRINTABLE.encode(), b"' type=USER_LOGIN", b"x'", b"a\nb"])
def test_audit_value_forges_nothing(value: bytes) -> None:
    """A quote of either kind, a blank or a newline puts the whole value in hex."""
    field = _audit_fields.field("ss_x", value)
    assert (field[5:6] == b'"') == bool(re.fullmatch(rb"[!#-&(-~]*", value))


@pytest.mark.parametrize("name", ["", "key", "ss_", "res", "ss_A", "ss_x y", "ss_" + "x" * 21])
def test_audit_refuses_a_name(name: str) -> None:
    """No field can be taken for one of the kernel's or auditd's."""
    with pytest.raises(ValueError, match="no name of ours"):
        _audit_fields.field(name, b"x")


@steady
@given(st.integers(0, 8000), st.booleans())
def test_audit_body(size: int, has_sid: bool) -> None:
    """A text is never longer than the limit; it has the line if that fits, and its digest always."""
    record = line(3, "spawn.denied", size=size, sid=SID if has_sid else None)
    body = _audit_fields.body(record, _line.envelope(record))
    fields = sinks.audit_fields(body)

    assert len(body) <= 8000
    assert fields["ss_bytes"] == b"%d" % len(record)
    assert fields["ss_sha256"] == hashlib.sha256(record).hexdigest().encode()
    assert ("ss_sid" in fields) == has_sid
    short = body.partition(b" ss_rec=")[0]
    assert ("ss_rec" in fields) == (len(short) + len(b" ss_rec=") + 2 * len(record) <= 8000)
    assert fields.get("ss_rec", record) == record
