"""Joining records to spawns, and choosing among them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ledgers
from ledgers import CROWDED, LAUNCHED, START_NS, Chain
from safespawn import SpawnReport, audit, run
from safespawn.audit import _lines, filters, reader, spawns
from safespawn.audit.filters import Filter
from safespawn.audit.spawns import Event, Spawn

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SETUID")


def parsed(*pieces: bytes) -> list[reader.Record]:
    """Return the records in some lines."""
    made = [_lines.parse(line, f"x:{number}") for number, line in enumerate(b"".join(pieces).splitlines(), 1)]
    assert [record.problem for record in made] == [None] * len(made)
    return made


def joined(*pieces: bytes, joiner: spawns.Joiner | None = None) -> list[Spawn | Event]:
    """Return the spawns and events of some lines."""
    return list(spawns.join(parsed(*pieces), joiner))


def one(*pieces: bytes) -> Spawn:
    """Return the only spawn of some lines."""
    (made,) = joined(*pieces)
    assert isinstance(made, Spawn)
    return made


# ----------------------------------------------------------------- joining


def test_spawn_that_ran_to_its_end() -> None:
    """Intent, start and exit are one spawn with what each of them tells."""
    chain = Chain()
    how = chain.how("launcher", (LAUNCHED,))
    made = one(chain.ran(["/bin/sh", "-c", "x"], code=3, uid=1000, as_uid=33, tags={"job": "a"}, how=how, window_ns=77))

    assert (made.outcome, made.ended, made.exit_code, made.signal, made.duration_ns) == ("exec", True, 3, None, 1_200_000)
    assert (made.argv, made.argc, made.program) == (("/bin/sh", "-c", "x"), 3, "/bin/sh")
    assert (made.ruid, made.euid, made.want_uid, made.target_uid) == (1000, 1000, 33, 33)
    assert (made.requested, made.strategy, made.proof, made.why) == ("auto", "launcher", "single-threaded", (LAUNCHED,))
    assert (made.window_ns, made.pid, made.caller_pid, made.tags) == (77, chain.child, 4242, {"job": "a"})
    assert (made.when_ns, made.where, made.chain) == (START_NS, "x:1", chain.id)
    assert made.events == ("spawn.intent", "spawn.started", "spawn.exit")
    assert not made.fell_back


def test_spawn_that_was_killed() -> None:
    """A signal, a core file and a timeout are told."""
    chain = Chain()
    sid, intent = chain.begun(["/bin/sleep", "9"])
    made = one(intent, chain.started(sid), chain.ended(sid, signal=9, core=True, timeout_killed=True))

    assert (made.exit_code, made.signal, made.core, made.timeout_killed) == (None, 9, True, True)


def test_spawn_that_failed() -> None:
    """A failure tells its step and errno; it may have no intent, and no file was found."""
    made = one(Chain().failed(["/bin/none"], "lookup", "ENOENT"))

    assert (made.outcome, made.stage, made.errno) == ("failed", "lookup", "ENOENT")
    assert (made.program, made.pid, made.message) == ("/bin/none", None, "No such file or directory")


def test_spawn_that_failed_after_its_intent() -> None:
    """Intent and failure are one spawn."""
    chain = Chain()
    sid, intent = chain.begun(["/bin/x"])
    outcome = {"outcome": "killed-before-exec", "step": "exec", "errno": 0, "name": "", "message": "", "pid": 7}
    made = one(intent, chain.record("spawn.failed", sid, **chain.about(["/bin/x"]), how=chain.how(), outcome=outcome))

    assert (made.outcome, made.stage, made.errno, made.message, made.pid) == ("killed-before-exec", "exec", None, None, 7)


def test_spawn_that_was_refused() -> None:
    """A refusal tells which guard and why."""
    made = one(Chain().denied(["/bin/x"], "path-trusted: not ours"))

    assert (made.outcome, made.refused_by) == ("refused", ("path-trusted: not ours",))


def test_intent_without_an_outcome() -> None:
    """An intent and nothing else may have run: its outcome is unknown."""
    made = one(Chain().begun(["/bin/x"])[1])

    assert (made.outcome, made.ended) == ("unknown", False)


def test_start_without_an_end() -> None:
    """A program that was not seen to end is a spawn all the same."""
    chain = Chain()
    sid, intent = chain.begun(["/bin/x"])
    made = one(intent, chain.started(sid))

    assert (made.outcome, made.ended, made.pid) == ("exec", False, chain.child)


def test_end_that_nobody_knows() -> None:
    """A program that others reaped has ended, with the reason why its end is unknown."""
    chain = Chain()
    sid, intent = chain.begun(["/bin/x"])
    made = one(intent, chain.started(sid), chain.record("exit.unknown", sid, pid=5, why="reaped elsewhere"))

    assert (made.ended, made.end_unknown, made.exit_code, made.pid) == (True, "reaped elsewhere", None, 5)


def test_exit_without_an_intent() -> None:
    """An exit whose intent is not in the ledger ran, and began when its id says."""
    chain = Chain()
    sid, _ = chain.begun(["/bin/x"])
    chain.now += 3600 * ledgers.SECOND
    made = one(chain.ended(sid))

    assert (made.outcome, made.ended, made.exit_code, made.argv, made.program) == ("exec", True, 0, (), None)
    assert made.when_ns == START_NS


def test_strategy_that_was_used_in_the_end() -> None:
    """The start tells the way that was taken, and what the intent had said is kept."""
    chain = Chain()
    sid, intent = chain.begun(["/bin/x"])
    made = one(intent, chain.started(sid, chain.how("fork", (CROWDED,))))

    assert (made.intended, made.strategy, made.why, made.fell_back) == ("vfork", "fork", (CROWDED,), True)


@pytest.mark.parametrize(("requested", "fell_back"), [("auto", True), ("fork", False)])
def test_fallback_is_a_fork_that_was_not_asked_for(requested: str, fell_back: bool) -> None:
    """A fork that was asked for is no fallback."""
    chain = Chain()

    assert one(chain.ran(["/bin/x"], how=chain.how("fork", ("x",), requested))).fell_back == fell_back


def test_exit_that_comes_much_later() -> None:
    """A spawn waits for its exit while thousands of others come and go."""
    chain = Chain()
    sid, intent = chain.begun(["/usr/sbin/daemon"])
    others = [chain.ran(["/bin/true"]) for _ in range(3000)]
    *_, last = joined(intent, chain.started(sid), *others, chain.ended(sid, code=9))

    assert isinstance(last, Spawn)
    assert (last.sid, last.exit_code, last.argv) == (sid, 9, ("/usr/sbin/daemon",))


def test_too_many_open_spawns() -> None:
    """When more spawns wait than there is room for, the oldest is given out as it is."""
    chain = Chain()
    intents = [chain.begun([f"/bin/{number}"]) for number in range(4)]
    joiner = spawns.Joiner(room=2)
    first = [given for record in parsed(*(line for _, line in intents)) for given in joiner.add(record)]

    assert [spawn.sid for spawn in first if isinstance(spawn, Spawn)] == [sid for sid, _ in intents[:2]]
    assert [spawn.sid for spawn in joiner.rest()] == [sid for sid, _ in intents[2:]]
    assert joiner.rest() == []


def test_default_room() -> None:
    """The documented number of spawns wait, no more."""
    chain, joiner = Chain(), spawns.Joiner()
    record = parsed(chain.begun(["/bin/x"])[1])[0]
    given_out = []
    for number in range(20_001):
        fields = {**record.fields, "sid": f"{number}"}
        given_out += joiner.add(record._replace(line=b"%d" % number, fields=fields))

    assert spawns.OPEN_MAX == 20_000
    assert [spawn.sid for spawn in given_out if isinstance(spawn, Spawn)] == ["0"]


def test_records_that_come_again() -> None:
    """Lines that are in the ledger twice, byte for byte, count once, and are counted."""
    chain, joiner = Chain(), spawns.Joiner()
    lines = chain.ran(["/bin/true"]) + chain.changed()
    made = joined(lines, lines, joiner=joiner)

    assert [type(entry) for entry in made] == [Spawn, Event]
    assert joiner.repeated == 4


def test_records_that_are_alike_are_not_the_same() -> None:
    """A line that differs in a single digit is another record."""
    line = Chain().changed()

    assert len(joined(line, line.replace(b'"tid":4242', b'"tid":4243'))) == 2


def test_events_that_are_not_of_a_spawn() -> None:
    """Other records are events, in their place; so is an event of a spawn that has no id."""
    chain = Chain()
    made = joined(chain.record("mirror.down", None, mirror="x"), chain.changed(), chain.record("spawn.exit", None, exit={}))

    assert [entry.event for entry in made if isinstance(entry, Event)] == ["mirror.down", "cred.change", "spawn.exit"]


def test_started_gives_each_running_spawn_once() -> None:
    """What runs since the last look is given without closing it, and its end comes later."""
    chain, joiner = Chain(), spawns.Joiner()
    sid, intent = chain.begun(["/bin/x"])
    intent, start, end = parsed(intent, chain.started(sid), chain.ended(sid))
    assert (joiner.add(intent), joiner.started()) == ([], [])
    assert joiner.add(start) == []
    assert [spawn.sid for spawn in joiner.started()] == [sid]
    assert joiner.started() == []
    (done,) = joiner.add(end)
    assert isinstance(done, Spawn)
    assert (done.ended, joiner.started()) == (True, [])


@pytest.mark.parametrize("keep", [False, True])
def test_lines_are_kept_if_asked_for(keep: bool) -> None:
    """A joiner that is to keep them gives each spawn with its lines."""
    lines = Chain().ran(["/bin/true"])
    (made,) = joined(lines, joiner=spawns.Joiner(keep=keep))

    assert isinstance(made, Spawn)
    assert made.records == (tuple(lines.splitlines()) if keep else ())


def test_order() -> None:
    """Entries come by when they began, as far as there is room to hold them back."""
    def at(when: int) -> Event:
        return Event("x", when, parsed(Chain().changed())[0])

    def order(room: int) -> list[int]:
        return [entry.when_ns for entry in spawns.in_order(map(at, [5, 1, 4, 2, 3, 0]), room)]

    assert order(10) == [0, 1, 2, 3, 4, 5]
    assert order(1) == [1, 4, 2, 3, 0, 5]
    assert order(0) == [5, 1, 4, 2, 3, 0]


# -------------------------------------------------------- forms of a record


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ({"hex": "fffe41"}, "\udcff\udcfeA"),
        ({"hex": "no"}, '{"hex":"no"}'),
        ({"cut": "/long/pa", "bytes": 5000, "sha256": "ab"}, "/long/pa…"),
        ({"cut": {"hex": "ff"}, "bytes": 5000, "sha256": "ab"}, "\udcff…"),
        (17, "17"),
        (None, "null"),
        (["a", {"b": 1}], '["a",{"b":1}]'),
    ],
)
def test_texts_of_a_record(value: Any, text: str) -> None:
    """An argument is what it was, whichever form the record has it in; anything else is shown as it is."""
    made = one(Chain().ran([value, "x"], path="/bin/x"))

    assert made.argv == (text, "x")


def test_redacted_arguments() -> None:
    """Which arguments hold a secret is told, by their indices."""
    record = json.loads(Chain().begun(["/bin/x", "--password=…", "…"])[1])
    record["what"]["redacted"] = [1, 2, "x", None]
    made = one(ledgers.encoded(record))

    assert (made.redacted, spawns.plain(made)["redacted"]) == ((1, 2), [1, 2])


@pytest.mark.parametrize(
    ("tags", "read"),
    [
        ({"a": "1"}, {"a": "1"}),
        ({"first": [["a", "1"], ["b", "2"]], "count": 9, "sha256": "x"}, {"a": "1", "b": "2"}),
        ({"cut_bytes": 9000, "sha256": "x"}, None),
        ({"first": "name"}, {"first": "name"}),
        ("no mapping", None),
        ({"first": [["a"], "b", ["c", "3"]], "count": 3}, {"c": "3"}),
    ],
)
def test_tags_of_a_record(tags: Any, read: dict[str, str] | None) -> None:
    """Tags are read from each form that a record may have them in."""
    assert one(Chain().ran(["/bin/x"], tags=tags)).tags == read


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
PARTS = ("who", "what", "want", "how", "outcome", "exit", "tags", "change", "bypass", "why", "pid")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    event=st.sampled_from(["spawn.intent", "spawn.started", "spawn.failed", "spawn.denied", "spawn.exit", "exit.unknown"]),
    parts=st.dictionaries(st.sampled_from(PARTS), ANY, max_size=4),
    inner=st.dictionaries(
        st.sampled_from(["argv", "exe", "argc", "uid", "why", "guards", "step", "code", "dur", "pid", "outcome"]), ANY
    ),
)
def test_any_members(event: str, parts: dict[str, Any], inner: dict[str, Any]) -> None:
    """Whatever a record holds, its spawn has members of the right types, and values for JSON."""
    record = ledgers.encoded({"v": 1, "c": "c", "n": 0, "ev": event, "sid": "s", "t": 5, "what": inner, "how": inner, "exit": inner, **parts})
    (made,) = spawns.join([_lines.parse(record, "x:1")])

    assert isinstance(made, Spawn)
    for name in ("argv", "why", "refused_by", "events"):
        assert all(isinstance(text, str) for text in getattr(made, name))
    for name in ("ruid", "euid", "argc", "want_uid", "pid", "window_ns", "exit_code", "signal", "duration_ns"):
        value = getattr(made, name)
        assert value is None or (type(value) is int and abs(value) < 1 << 64)
    json.dumps(spawns.plain(made), allow_nan=False)


def test_plain_values_of_a_spawn() -> None:
    """The values for JSON have the time in both forms, and lose no byte of an argument."""
    told = spawns.plain(one(Chain().ran(["/bin/x", {"hex": "ff"}, "é"])))

    assert (told["kind"], told["when"], told["when_ns"]) == ("spawn", "2026-11-29T00:00:00.000000000Z", START_NS)
    assert told["argv"] == ["/bin/x", {"hex": "ff"}, "é"]
    assert "records" not in told
    assert json.loads(json.dumps(told)) == told


def test_plain_values_of_an_event() -> None:
    """The values for JSON of an event have its whole record."""
    line = Chain().changed()
    (event,) = joined(line)

    assert spawns.plain(event) == {
        "kind": "event", "when": "2026-11-29T00:00:00.000000000Z", "event": "cred.change", "where": "x:1",
        "record": json.loads(line),
    }  # fmt: skip


@root_only
def test_records_of_this_library(tmp_path: Path) -> None:
    """What safespawn itself writes is joined: who ran what as whom, by which way, and what came of it."""
    path = str(tmp_path / "ledger.jsonl")
    with audit.open(path):
        with audit.context(job="nightly"):
            run(["/bin/sh", "-c", "exit 3", b"\xff"], user=65534, group=65534, extra_groups=[])
        run(["/bin/true"], strategy="fork")
        for argv, options in ((["/nonexistent"], {}), (["/bin/true"], {"digest": "sha256:" + "0" * 64})):
            with pytest.raises(OSError):
                run(argv, **options)
    records = list(reader.records(path))
    assert [record.problem for record in records] == [None] * len(records)
    nobody, forked, failed, denied = (entry for entry in spawns.join(records) if isinstance(entry, Spawn))

    assert (nobody.ruid, nobody.want_uid, nobody.exit_code, nobody.tags) == (0, 65534, 3, {"job": "nightly"})
    assert (nobody.argv, nobody.argc, nobody.program) == (("/bin/sh", "-c", "exit 3", "\udcff"), 4, "/bin/sh")
    assert nobody.strategy in ("launcher", "fork")
    assert nobody.window_ns is not None and 0 < nobody.window_ns <= (nobody.duration_ns or 0)
    assert (forked.requested, forked.strategy, forked.fell_back, forked.exit_code) == ("fork", "fork", False, 0)
    assert (failed.outcome, failed.stage, failed.errno) == ("failed", "lookup", "ENOENT")
    assert denied.outcome == "refused"
    assert denied.refused_by[0].startswith("exe-pinned: ")


# ----------------------------------------------------------------- filters

NOW = 1_795_953_600_000_000_000  # 2026-11-29 12:00:00 UTC


def utc(text: str) -> int:
    """Return a time in UTC as nanoseconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()) * ledgers.SECOND


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-11-29T10:00:00+00:00", utc("2026-11-29T10:00:00")),
        ("2026-11-29T10:00:00Z", utc("2026-11-29T10:00:00")),
        ("2026-11-29T10:00+02:00", utc("2026-11-29T08:00:00")),
        ("2026-11-29 10:00", utc("2026-11-29T15:00:00")),
        ("2026-11-29", utc("2026-11-29T05:00:00")),
        ("2026-07-01T00:00:00.250000", utc("2026-07-01T04:00:00") + 250_000_000),
        ("2026-11-29T10:00:00.123456789Z", utc("2026-11-29T10:00:00") + 123_456_789),
        ("2026-11-29T10:00:00.5+01:00", utc("2026-11-29T09:00:00") + 500_000_000),
        ("now", NOW),
        ("today", utc("2026-11-29T05:00:00")),
        ("yesterday", utc("2026-11-28T05:00:00")),
        ("90s", NOW - 90 * ledgers.SECOND),
        ("-2h", NOW - 7200 * ledgers.SECOND),
        ("30m", NOW - 1800 * ledgers.SECOND),
        ("7d", NOW - 7 * 86400 * ledgers.SECOND),
        ("1w", NOW - 7 * 86400 * ledgers.SECOND),
    ],
)
def test_times(in_new_york: None, text: str, when: int) -> None:
    """Times are ISO 8601, local unless they say otherwise, or relative to now."""
    assert filters.time_ns(text, NOW) == when


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have local time differ from UTC."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "2h30m", "+2h", "2026-13-01", "25:00", "1.5h", "99999999999d", "-1", "٣h"])
def test_bad_times(text: str) -> None:
    """Anything else is refused, with what was given."""
    with pytest.raises(ValueError, match="needed") as raised:
        filters.time_ns(text)
    assert repr(text) in str(raised.value)


def test_users() -> None:
    """A user is a name of this host, or a number as it is."""
    assert (filters.uid("root"), filters.uid("0"), filters.uid("4000000000")) == (0, 0, 4_000_000_000)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (filters.uid, "no-such-user-here"),
        (filters.uid, ""),
        (filters.uid, "4294967295"),
        (filters.uid, "-1"),
        (filters.outcome, "exec,done"),
        (filters.outcome, ""),
        (filters.strategy, "auto"),
        (filters.event_pattern, "spawn.exit,"),
        (filters.event_pattern, "Spawn Exit"),
    ],
)
def test_bad_values(parse: Callable[[str], Any], text: str) -> None:
    """A value that means nothing is refused with its text."""
    with pytest.raises(ValueError) as raised:
        parse(text)
    assert repr(text.split(",")[-1]) in str(raised.value)


def test_outcomes_are_those_of_a_report() -> None:
    """The outcomes that can be chosen are those that SpawnReport documents, and the one of a lone intent."""
    told = (SpawnReport.__doc__ or "").partition("``outcome`` is one of ")[2].partition(";")[0]

    assert re.findall("[a-z-]+", told)
    assert {*re.findall("[a-z-]+", told), "unknown"} == set(filters.OUTCOMES)


def sample() -> Spawn:
    """Return a spawn that root made for uid 33."""
    chain = Chain()
    how = chain.how("launcher", (LAUNCHED,))
    return one(chain.ran(["/usr/bin/rsync", "-a"], as_uid=33, tags={"job": "backup", "n": "1"}, how=how))


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        ({}, True),
        ({"since": START_NS}, True),
        ({"since": START_NS + 1}, False),
        ({"until": START_NS}, False),
        ({"until": START_NS + 1}, True),
        ({"user": 0}, True),
        ({"user": 33}, True),
        ({"user": 34}, False),
        ({"program": "rsync"}, True),
        ({"program": "rs*"}, True),
        ({"program": "/usr/bin/*"}, True),
        ({"program": "bin"}, False),
        ({"program": "/usr/*/cat"}, False),
        ({"outcome": frozenset({"exec"})}, True),
        ({"outcome": frozenset({"failed", "refused"})}, False),
        ({"strategy": frozenset({"fork", "launcher"})}, True),
        ({"strategy": frozenset({"vfork"})}, False),
        ({"tags": {"job": "backup"}}, True),
        ({"tags": {"job": "backup", "n": "1"}}, True),
        ({"tags": {"job": "backup", "n": "2"}}, False),
        ({"tags": {"other": ""}}, False),
        ({"event": frozenset({"spawn.exit"})}, True),
        ({"event": frozenset({"*.intent"})}, True),
        ({"event": frozenset({"spawn.denied", "mirror.*"})}, False),
        ({"user": 33, "program": "rsync", "tags": {"job": "backup"}}, True),
        ({"user": 33, "program": "cat", "tags": {"job": "backup"}}, False),
    ],
)
def test_which_spawns(wanted: dict[str, Any], matches: bool) -> None:
    """A spawn is wanted if it satisfies every member that is given."""
    assert Filter(**wanted).matches(sample()) == matches


def test_user_who_logged_in() -> None:
    """The login user of a caller matches too: that is who is behind a sudo."""
    spawn = sample()
    spawn.auid = 1000

    assert Filter(user=1000).matches(spawn)


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        ({}, True),
        ({"user": 65534}, True),
        ({"user": 0}, True),
        ({"user": 5}, False),
        ({"event": frozenset({"cred.*"})}, True),
        ({"event": frozenset({"mirror.*"})}, False),
        ({"since": START_NS + 1}, False),
        ({"program": "*"}, False),
        ({"outcome": frozenset({"exec"})}, False),
        ({"strategy": frozenset({"fork"})}, False),
        ({"tags": {"a": "b"}}, False),
    ],
)
def test_which_events(wanted: dict[str, Any], matches: bool) -> None:
    """An event matches users of before and after, times and names; what it has not, it does not match."""
    (event,) = joined(Chain().changed())

    assert Filter(**wanted).matches(event) == matches


def test_filter_in_words() -> None:
    """A filter can say what it wants."""
    wanted = Filter(
        since=START_NS, user=33, program="*.sh", outcome=frozenset({"refused", "failed"}), tags={"a": "b"}
    )

    assert wanted.words() == (
        "since 2026-11-29T00:00:00.000000000Z, uid 33, program *.sh, outcome failed or refused, tags a=b"
    )
    assert Filter().words() == ""
    assert Filter(user=0).words() == "uid 0"
