"""Ledgers that an enemy has written: work and memory grow with their length, and no faster.

Work is counted in calls, of Python and of C, and in steps of keys: not in time, which a busy machine spoils.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
import reference_ledger as form
from safespawn import AuditError, _probe, audit
from safespawn.audit import (
    _summary,
    _verify_descent,
    _verify_keys,
    _verify_repeats,
    _verify_scan,
    _verify_walk,
    _verify_witness,
    html_report,
    reader,
    retention,
    spawns,
)
from safespawn.audit._verify_descent import Descent, Source
from safespawn.audit.verifier import Verification, verify

KEY = bytes(range(32))
NOWHERE = "0" * 64


def uuid(number: int) -> str:
    """Return the id of a chain."""
    return f"0193c5a0-0000-7000-a000-{number:012x}"


def line(chain: str, n: int, event: str, members: str = "", previous: str = NOWHERE, **more: Any) -> bytes:
    """Return a record of which only the form is right; with ``mac`` it looks like one of a chain with keys."""
    sid, t, mac = json.dumps(more.get("sid")), more.get("t", 1_795_000_000_000_000_000), more.get("mac", "")
    return (
        f'{{"v":1,"c":"{chain}","n":{n},"p":"{previous}","ev":"{event}","sid":{sid},"t":{t},"mono":1,"boot":"",'
        f'"mode":"require"{members}{mac}}}\n'
    ).encode("ascii")


#: No MAC that fits.
MAC = f',"m":"{NOWHERE}"'


def plain(records: Iterable[tuple[str, str]], chain: str = uuid(1)) -> list[bytes]:
    """Return a chain without keys, which anybody can write: events and members."""
    lines, previous = [], NOWHERE
    for n, (event, members) in enumerate(records):
        lines.append(line(chain, n, event, members, previous))
        previous = hashlib.sha256(lines[-1][:-1]).hexdigest()
    return lines


OPENED = ("chain.open", ',"who":{"pid":1},"keys":null')


def told(sources: dict[int, dict[str, Any]]) -> list[bytes]:
    """Return retirements that tell where the keys of chains come from. Nobody vouches for them."""
    items = [(uuid(number), [0, "", keys]) for number, keys in sources.items()]
    parts = [dict(items[at : at + 50]) for at in range(0, len(items), 50)]
    members = [f',"segment":"x.1","heads":{json.dumps(part, separators=(",", ":"))}' for part in parts]
    return plain([OPENED, *(("segment.retired", one) for one in members)])


def parent(number: int, n: int = 0) -> dict[str, Any]:
    """Return ``keys`` of a child."""
    return {"parent": uuid(number), "n": n}


# ------------------------------------------------------------------ the verifier


def resent(count: int) -> list[bytes]:
    """Return many records that come again, and as many that tell of others."""
    ranges = [("audit.degraded", f',"resent":[{10**9 + n},{10**9 + n}]') for n in range(count)]
    lines = plain([OPENED, *[("x", "")] * count, *ranges])
    return [*lines, *lines[1 : count + 1]]


def line_of_descent(count: int) -> list[bytes]:
    """Return chains of which each is the child of the one before."""
    forks = {10: {"epoch": 0}} | {10 + i: parent(9 + i) for i in range(1, count)}
    return [*told(forks), *(line(uuid(10 + i), 1, "x", mac=MAC) for i in range(count))]


def same_line_of_descent(count: int) -> list[bytes]:
    """Return records of chains below one long line of descent that ends nowhere."""
    forks = {10 + i: parent(9 + i) for i in range(1, count)} | {9 - i: parent(9 + count) for i in range(3)}
    return [*told(forks), *(line(uuid(9 - i % 3), 1, "x", mac=MAC) for i in range(count))]


def circle(count: int) -> list[bytes]:
    """Return records of a chain that descends from itself, by many others."""
    forks = {10: parent(9 + count)} | {10 + i: parent(9 + i) for i in range(1, count)}
    return [*told(forks), *[line(uuid(10), 1, "x", mac=MAC)] * count]


def no_records(count: int) -> list[bytes]:
    """Return rubbish: empty lines, short ones, beginnings."""
    return [b"\n" * count, b"x\n" * count, b'{"v":1,"c":"' * count]


CASES = pytest.mark.parametrize(
    ("make", "reason"),
    [
        (resent, "replay/reorder"),
        (line_of_descent, "mac-mismatch"),
        (same_line_of_descent, "chain-unknown"),
        (circle, "chain-unknown"),
        (no_records, "torn-or-garbage"),
    ],
)


def calls(act: Callable[[], Any]) -> int:
    """Return how many calls an act makes, each step of a generator included."""
    counter = itertools.count()
    sys.setprofile(lambda *_: next(counter))
    try:
        act()
    finally:
        sys.setprofile(None)
    return next(counter)


@CASES
def test_work_of_the_verifier(tmp_path: Path, make: Callable[[int], list[bytes]], reason: str) -> None:
    """Four times the file is about four times the work, and that is little for each record."""
    path, found = tmp_path / "ledger", []

    def look() -> None:
        # A chain without keys is believed what it tells of others only where none has keys.
        found.extend(verify(path, key=None if make is resent else KEY).findings)

    work = []
    for count in (150, 600):
        path.write_bytes(b"".join(make(count)))
        work.append(calls(look))
    assert reason in {one.reason for one in found}
    assert work[1] < 5 * work[0]
    assert work[1] < 600 * 500


def test_ranges_are_looked_through_by_halves() -> None:
    """Of a million ranges a number is compared with some twenty."""

    class Counted(int):
        comparisons = 0

        def __lt__(self, other: int) -> bool:
            Counted.comparisons += 1
            return int(self) < int(other)

    ranges = _verify_repeats.Ranges((3 * n, 3 * n + 1) for n in range(1 << 20))

    assert [Counted(n) in ranges for n in (0, 1, 2, 3, 3 << 20)] == [True, True, False, True, False]
    assert Counted.comparisons <= 5 * 22


def test_ranges_that_meet() -> None:
    """Ranges in any order, one in the other or side by side, are all of their numbers; turned round they are none."""
    ranges = _verify_repeats.Ranges([(20, 29), (1, 3), (3, 5), (22, 24), (9, 7)])
    assert [n for n in range(40) if n in ranges] == [*range(1, 6), *range(20, 30)]


def descent(sources: dict[bytes, Source], asked: list[bytes]) -> Descent:
    """Return what is known of lines of descent; ``asked`` gets the chains of which the sources are looked up."""

    def source_of(chain: bytes) -> Source | None:
        asked.append(chain)
        return sources.get(chain)

    return Descent(_verify_keys.Epochs(KEY), _verify_scan.Scanner(), source_of)


def chain_id(number: int) -> bytes:
    """Return the bytes of a chain's id."""
    return number.to_bytes(16, "big")


def reference_key(sources: dict[bytes, Source], chain: bytes) -> bytes:
    """Return C of a chain as the form tells it."""
    source, name = sources[chain], _verify_scan.name_of(chain)
    if source.parent is None:
        return form.chain_key(form.epoch_key(KEY, source.epoch), name)
    record_key = form.mac(reference_key(sources, source.parent), b"safespawn record")
    for _ in range(source.n):
        record_key = form.sha256(record_key)
    return form.fork_key(record_key, name)


def test_each_link_is_gone_once() -> None:
    """A tree of forks is gone through in the number of its links, and the keys are those of the form."""
    sources = {chain_id(0): Source(3)}
    sources.update({chain_id(i): Source(0, chain_id((i - 1) // 2), i % 5) for i in range(1, 64)})
    asked: list[bytes] = []
    known = descent(sources, asked)

    for i in (63, *range(64)):
        assert known.key(chain_id(i), sources[chain_id(i)]) == reference_key(sources, chain_id(i))
    assert len(asked) < 2 * 64


def test_children_of_one_parent_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of a parent are not followed from its beginning for each child."""
    steps = []
    monkeypatch.setattr(_verify_descent, "ANCHOR", 8)
    follow = _verify_descent.follow
    monkeypatch.setattr(_verify_descent, "follow", lambda key, count: (steps.append(count), follow(key, count))[1])
    sources = {chain_id(0): Source(0)} | {chain_id(1 + n): Source(0, chain_id(0), n) for n in range(100)}
    known = descent(sources, [])

    for i in [100, 7, 50, *range(100, 0, -1)]:
        assert known.key(chain_id(i), sources[chain_id(i)]) == reference_key(sources, chain_id(i))
    assert sum(steps) <= 99 + 103 * 7


def test_steps_that_are_too_many_are_not_taken() -> None:
    """A fork at a record that is too far away is refused before the first step, and takes nothing from the others."""
    sources = {chain_id(0): Source(0), chain_id(1): Source(0, chain_id(0), 2**62), chain_id(2): Source(0, chain_id(0), 5)}
    known = descent(sources, [])

    assert known.key(chain_id(1), sources[chain_id(1)]) is None
    assert known.key(chain_id(2), sources[chain_id(2)]) == reference_key(sources, chain_id(2))


def test_what_is_told_later_counts() -> None:
    """A line that ended nowhere is gone again when its end is told, and a key made anew when its line was another."""
    sources = {chain_id(2): Source(0, chain_id(1), 1)}
    asked: list[bytes] = []
    known = descent(sources, asked)
    assert known.key(chain_id(2), sources[chain_id(2)]) is None
    asked.clear()
    assert known.key(chain_id(2), sources[chain_id(2)]) is None
    assert len(asked) == 1  # not the whole line again

    for told in (Source(1), Source(2)):
        sources[chain_id(1)] = told
        known.learned(chain_id(1))
        assert known.key(chain_id(2), sources[chain_id(2)]) == reference_key(sources, chain_id(2))


def test_ancestor_whose_opening_was_retired(tmp_path: Path) -> None:
    """A child that comes before any record of its parent is checked by what retirements tell of the parent."""
    made = form.Ledger(tmp_path)
    first = made.chain()
    second = made.open_fork(made.fork(first), first)
    third = made.fork(second)
    segment = made.rotate()
    fourth = made.fork(made.open_fork(third, second))
    made.open_fork(fourth, third)
    for chain in (fourth, third, second, first):
        made.checkpoint(chain)
    made.rotate()
    made.retire(segment, with_keys=True)

    result = verify(made.path, key=KEY, registry=tmp_path / "keys")
    assert result.ok, result.findings
    assert result.counts["keyed"] == 5  # with that of the retirement


def test_circle_that_is_opened() -> None:
    """Chains that were said to descend from each other have keys once a record tells where one comes from."""
    sources = {chain_id(1): Source(0, chain_id(2)), chain_id(2): Source(0, chain_id(1))}
    known = descent(sources, [])
    assert known.key(chain_id(1), sources[chain_id(1)]) is None

    sources[chain_id(2)] = Source(7)
    known.learned(chain_id(2))
    assert known.key(chain_id(1), sources[chain_id(1)]) == reference_key(sources, chain_id(1))


def test_links_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes known lines void again and again is given up."""
    monkeypatch.setattr(_verify_descent, "LINKS_MAX", 100)
    sources = {chain_id(i): Source(0, chain_id(i - 1)) for i in range(1, 20)}
    asked: list[bytes] = []
    known = descent(sources, asked)
    for epoch in range(20):
        sources[chain_id(0)] = Source(epoch)
        known.learned(chain_id(0))
        last = known.key(chain_id(19), sources[chain_id(19)])

    assert last is None
    assert len(asked) < 100 + 3 * 20


FORGOTTEN = pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda i: ("spawn.intent", ""), "intents without an outcome"),
        (lambda i: ("chain.fork", f',"child":"{uuid(i)}"'), "forks"),
        (lambda i: ("audit.degraded", ',"lost":1'), "records of losses"),
        (lambda i: ("audit.degraded", f',"resent":[{i},{i}]'), "ranges of records that come again"),
        (lambda i: ("segment.retired", f',"segment":"x.{i}"'), "retired segments"),
        (lambda i: ("segment.retired", f',"heads":{{"{uuid(i)}":[1,""]}}'), "chains in retired segments"),
    ],
)


@FORGOTTEN
def test_what_is_not_remembered_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[int], tuple[str, str]], what: str
) -> None:
    """Of each kind so much is remembered; that there was more is a finding, for it was not compared."""
    monkeypatch.setattr(_verify_walk, "HELD_MAX", 5)
    lines = plain(make(i) for i in range(9))
    lines = [one.replace(b'"sid":null', f'"sid":"{uuid(i)}"'.encode()) for i, one in enumerate(lines)]
    chained, previous = [], NOWHERE
    for one in lines:
        chained.append(one.replace(one[one.index(b'"p":"') + 5 :][:64], previous.encode()))
        previous = hashlib.sha256(chained[-1][:-1]).hexdigest()
    path = tmp_path / "ledger"

    path.write_bytes(b"".join(chained[:5]))
    # Nobody was entitled to tell of retired segments: that is a finding of its own.
    assert {one.reason for one in verify(path).findings} <= {"retirement-unproven"}
    path.write_bytes(b"".join(chained))
    (found,) = [one for one in verify(path).findings if one.reason != "retirement-unproven"]
    assert (found.line, found.reason, found.more) == (6, "too-many", 3)
    assert f"more than 5 {what}" in found.text


def test_what_is_kept_of_a_retirement() -> None:
    """Of a record of retirement only what it can tell is kept, whatever else is in its place."""
    junk = [{}] * 100
    heads = {
        uuid(1): [1, "a" * 64, parent(7, 3)],
        uuid(2): [2, "b" * 200, junk],
        uuid(3): [3, junk],
        uuid(4): [1 << 64, "a" * 64],
        uuid(5): ["5", "a" * 64],
        uuid(6): [6],
        uuid(7): junk[0],
    }
    kept = {_verify_scan.name_of(chain): head for chain, head in _verify_walk.heads_of({"heads": heads}).items()}

    assert kept == {
        uuid(1): (1, "a" * 64, Source(0, _verify_scan.id_of(uuid(7)), 3)),
        uuid(2): (2, "b" * 65, None),
        uuid(3): (3, str(junk)[:65], None),
    }


def test_name_of_a_segment_that_is_too_long(tmp_path: Path) -> None:
    """A name that no file can have is that of no segment, and is not kept whole."""
    long = "y" * 6000
    path = tmp_path / "ledger"
    path.write_bytes(b"".join(plain([OPENED, ("segment.retired", f',"segment":"{long}.1","heads":{{}}')])))

    (found,) = verify(path).findings
    assert found.reason == "retirement-unproven"
    assert len(found.text) < 500


def test_opening_counts_once(tmp_path: Path) -> None:
    """Only record 0 opens a chain: others of that name are not remembered, and say nothing of processes and forks."""
    later = [("chain.open", f',"who":{{"pid":{n}}},"keys":{json.dumps(parent(7))},"boot":"{n}"') for n in range(50)]
    path = tmp_path / "ledger"
    path.write_bytes(b"".join(plain([OPENED, *later])))
    seen: list[_verify_walk.Walk] = []
    whole = _verify_walk.Walk.go

    def go(self: _verify_walk.Walk, progress: Any) -> None:
        whole(self, progress)
        seen.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_verify_walk.Walk, "go", go)
        verify(path, without_key=True)
    assert (len(seen[0].boots), seen[0].claims) == (1, [])


def test_process_that_is_no_number(tmp_path: Path) -> None:
    """What a record says of its process may be anything, half of a surrogate pair too."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    members = f',"boot":"{boot}","who":{{"pid":{os.getpid()},"start":"\\ud800"}},"keys":null'
    path = tmp_path / "ledger"
    path.write_bytes(b"".join(plain([("chain.open", members)])))

    assert [one.reason for one in verify(path).notices] == ["crashed"]


@pytest.mark.parametrize("pid", ["self", "../tmp/x", None, True, [1], {"a": 1}])
@pytest.mark.parametrize("start", [1, "1", "\ud800", None])
def test_process_of_any_kind(monkeypatch: pytest.MonkeyPatch, pid: object, start: object) -> None:
    """What is no number does not become part of a path: nothing is opened, and nothing can be told."""
    monkeypatch.setattr("builtins.open", None)
    assert _probe.process_runs((pid, start, "boot"), "boot") is None
    assert _probe.process_runs((os.getpid(), str(start), "boot"), "boot") is None


def test_process_that_is_not_told_is_not_gone() -> None:
    """A chain of this boot whose process nobody can look for is not taken for one that ended."""
    heads = retention._Heads()
    told = {"boot": _probe.boot_id(), "who": {"pid": 4194305, "start": 1, "pid_ns": _probe.pid_namespace()}}
    kinds: list[tuple[bool, dict[str, Any]]] = [
        (True, {}),  # above any pid_max
        *((False, {"pid": pid}) for pid in ("self", "4194305", None, True, 0, -1, 1 << 31, 1 << 80, 4194305.0, os.getpid())),
        *((False, {"pid_ns": inode}) for inode in (None, "self", True, 0, -1, 1 << 80, [_probe.pid_namespace()])),
    ]
    for number, (_, odd) in enumerate(kinds):
        members = json.dumps({**told, "who": {**told["who"], **odd}, "keys": None})[1:-1]
        (made,) = plain([("chain.open", "," + members)], uuid(number))
        heads.add(made[:-1])
    assert [heads.is_dead(uuid(number)) for number in range(len(kinds))] == [gone for gone, _ in kinds]


@pytest.mark.parametrize("last", ["1", '"1"', "null", "Infinity", "1e9", "9" * 30, "true"])
def test_time_of_any_kind(last: str) -> None:
    """A chain of another boot is over where a number says that it wrote before ours: not for anything else."""
    heads = retention._Heads()
    (made,) = plain([("chain.open", f',"boot":"another","t":{last},"who":{{"pid":1}},"keys":null')])
    heads.add(made[:-1])
    assert heads.is_dead(uuid(1)) is (last == "1")


def test_too_many_witnessed_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More records of witnesses than fit into memory are refused."""
    made = form.Ledger(tmp_path)
    chain = made.chain()
    for _ in range(5):
        made.spawn(chain)
    monkeypatch.setattr(_verify_witness, "WITNESSED_MAX", 16)
    assert verify(made.path, key=KEY, witness=[made.path]).ok

    made.checkpoint(chain)
    with pytest.raises(AuditError, match="more than 16 records of witnesses"):
        verify(made.path, key=KEY, witness=[made.path])


def test_work_of_witnesses(tmp_path: Path) -> None:
    """The paths of a ledger are looked for in the registry once, not for each chain of a witness."""
    work = []
    for count in (20, 80):
        where = tmp_path / str(count)
        where.mkdir()
        made = form.Ledger(where)
        assert made.keys
        made.spawn(made.chain())
        names = [made.keys.open_chain(next(made.ids), "/elsewhere").chain for _ in range(count)]
        (where / "witness").write_bytes(b"".join(line(name, 0, "x") for name in names))
        look: Callable[[], Verification] = lambda: verify(  # noqa: E731 - for this turn of the loop
            made.path, key=KEY, registry=where / "keys", witness=[where / "witness"]
        )
        work.append(calls(look))
    assert work[1] < 5 * work[0]


@pytest.mark.parametrize("number", [10**17, 999_999_999_999_999_999])
def test_gap_between_segments(tmp_path: Path, number: int) -> None:
    """A segment of a number that is far away leaves one gap, which nobody counts through."""
    made = form.Ledger(tmp_path)
    made.spawn(made.chain())
    (tmp_path / f"ledger.jsonl.{number}").touch()

    (found,) = verify(made.path, key=KEY, registry=tmp_path / "keys").findings
    assert found.reason == "segment-missing"
    assert f"ledger.jsonl.1 to {made.path}.{number - 1}" in found.text
    assert [Path(name).name for name in reader.segments(str(made.path))] == [f"ledger.jsonl.{number}", "ledger.jsonl"]


# ------------------------------------------------------------------ the readers


def records(count: int, event: str, make: Callable[[int], str], *, sids: int) -> Iterator[reader.Record]:
    """Yield records of spawns with any members."""
    for n in range(count):
        data = line(uuid(1), n, event, make(n), sid=uuid(n % sids), t=n)
        made = audit._lines.parse(data[:-1], f"x:{n}")
        assert made.problem is None
        yield made


def test_one_id_of_any_number_of_records() -> None:
    """A spawn that has more records than one can have is given out in parts; none of them is lost."""
    joiner = spawns.Joiner(keep=True)
    made = list(spawns.join(records(1000, "spawn.started", lambda n: "", sids=1), joiner))

    assert {type(one) for one in made} == {spawns.Spawn}
    sizes = [len(one.records) for one in made if isinstance(one, spawns.Spawn)]
    assert (max(sizes), sum(sizes)) == (spawns.EACH_MAX, 1000)


def test_large_records_wait_in_smaller_number() -> None:
    """What waits for its end is bounded by the bytes of its records too."""
    pad = f',"what":{{"argv":["{"x" * 1000}"]}}'
    joiner = spawns.Joiner(room=100, room_bytes=10_000)
    given = [one for record in records(50, "spawn.intent", lambda n: pad, sids=50) for one in joiner.add(record)]
    waiting = joiner.rest()

    assert len(given) + len(waiting) == 50
    assert 5 <= len(waiting) <= 9
    assert sum(one.record_bytes for one in waiting) <= 10_000
    assert joiner.rest() == []
    again = spawns.join(records(8, "spawn.started", lambda n: pad, sids=50), joiner)
    assert len(list(again)) == 8  # there is room again


def test_large_records_are_put_in_order_by_fewer() -> None:
    """What is held back to be put in order is bounded by bytes too."""
    pad = f',"what":{{"argv":["{"x" * 1000}"]}}'
    entries = list(spawns.join(records(20, "mirror.down", lambda n: pad, sids=1)))
    held = list(spawns.in_order(reversed(entries), room=100, room_bytes=5 * entries[0].record_bytes))

    assert [one.when_ns for one in held] == [*range(15, -1, -1), 16, 17, 18, 19]


def test_what_a_summary_keeps_of_each_key() -> None:
    """Of the last spawn of each key the words are kept that are shown, not all that a record has."""
    many = ",".join(f'"{n:02x}"' for n in range(256))
    pairs = ",".join(f'"{n:02x}":"1"' for n in range(150))
    members = f',"what":{{"argv":[{many}],"argc":256}},"how":{{"why":[{many}]}},"tags":{{{pairs}}}'
    summary = _summary.Summary(rows=10)
    for spawn in spawns.join(records(3, "spawn.intent", lambda n: members, sids=3)):
        summary.add(spawn)

    for tally in (summary.programs, summary.ways, summary.tags):
        for key, kept in tally.most(1000):
            assert kept.last is not None
            assert (len(kept.last.argv), kept.last.argc, kept.last.tags) == (64, 256, None)
            assert len(kept.last.why) <= 64
            assert len(key) <= 3 + 64
    assert len(summary.tags) == 150
    assert len(summary.rows.kept[0].argv) == 256  # a row has all


def test_summary_of_all_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users, programs, tags, names and times that are all different fill no more than the room that they have."""
    monkeypatch.setattr(_summary, "HOURS_MAX", 40)

    def members(n: int) -> str:
        ids = f'"ruid":{n},"euid":{n},"auid":{n}'
        return f',"who":{{{ids}}},"what":{{"argv":["/bin/{n}"]}},"want":{{"uid":{n}}},"tags":{{"t{n}":"{n}"}}'

    summary = _summary.Summary(rows=10)
    for tally in (summary.programs, summary.ways, summary.tags):
        monkeypatch.setattr(tally, "_room", 50)
    for spawn in spawns.join(records(300, "spawn.intent", members, sids=300)):
        spawn.when_ns = ((1 << 63) - 1) // 300 * (int(spawn.argv[0][5:]) + 1)  # the last that 64 bits can tell
        summary.add(spawn)
    for record in records(300, "x", lambda n: "", sids=1):
        summary.add(spawns.Event(f"e{record.fields['n']}", record.fields["t"], record))

    assert (len(summary.programs), summary.programs.count, len(summary.tags)) == (50, 300, 50)
    assert (len(summary.times.hours), summary.times.others) == (40, 260)
    assert len(summary.events) <= 201
    made = html_report.Made("x", "", 0)
    assert "250 spawns of further combinations were not told apart" in html_report.page(summary, made, names=str)


# ------------------------------------------------------------------ retirement


def retired_with(path: Path, counts: list[int]) -> list[dict[str, Any]]:
    """Retire segments that tell of so many chains each, always from the first on; return the new records."""
    with audit.open(path) as ledger:
        for _ in range(len(counts) + 1):
            assert ledger.rotate()
    for segment, count in enumerate(counts, 1):
        heads = [{uuid(i): [1, NOWHERE, None]} for i in range(count)]
        body = plain([("segment.retired", f',"segment":"x","heads":{json.dumps(one)}') for one in heads])
        Path(f"{path}.{segment}").write_bytes(b"".join(body))
    before = len(path.read_bytes().splitlines())
    retention.retire(path, keep=1)
    lines = [json.loads(one) for one in path.read_bytes().splitlines()[before:]]
    return [one for one in lines if one["ev"] == "segment.retired"]


def test_what_older_records_tell_is_carried_on_once(tmp_path: Path) -> None:
    """Chains of which every segment tells are told of once, not for each segment."""
    told = retired_with(tmp_path / "ledger", [65, 70, 70])
    assert [len(one["heads"]) for one in told] == [25, 25, 15, 6, 0]  # one chain is that of the segments themselves
    assert {one["segment"] for one in told} == {f"ledger.{i}" for i in (1, 2, 3)}
    assert {name for one in told for name in one["heads"]} == {uuid(i) for i in range(70)}


def test_chains_that_are_carried_on_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More chains than a verifier takes are refused, and nothing is deleted."""
    monkeypatch.setattr(retention, "CHAINS_MAX", 50)
    with pytest.raises(AuditError, match="begin a new ledger"):
        retired_with(tmp_path / "ledger", [60])
    assert (tmp_path / "ledger.1").exists()


def test_record_behind_a_torn_one_is_a_head(tmp_path: Path) -> None:
    """A record that stands behind the beginning of another on one line is the last of its chain all the same."""
    path = tmp_path / "ledger"
    with audit.open(path) as ledger:
        assert ledger.rotate()
        assert ledger.rotate()
    body, other = plain([("x", ""), ("x", "")], uuid(5)), plain([("x", "")], uuid(6))
    Path(f"{path}.1").write_bytes(body[0] + other[0][:200] + body[1][:-1] + other[0])
    retention.retire(path, keep=1)

    (told,) = [one for one in helpers.records(path) if one["ev"] == "segment.retired"]
    ends = {uuid(5): body[1], uuid(6): other[0]}
    assert told["heads"] == {
        name: [n, hashlib.sha256(ends[name][:-1]).hexdigest()] for name, n in ((uuid(5), 1), (uuid(6), 0))
    }


def test_line_without_an_end_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment of one line is read in pieces, and its digest is that of the file."""
    monkeypatch.setattr(retention, "LINE_BYTES", 10_000)
    path = tmp_path / "ledger"
    with audit.open(path) as ledger:
        assert ledger.rotate()
        assert ledger.rotate()
    data = b"x" * 100_001 + b"\n" + plain([("x", "")], uuid(5))[0]
    Path(f"{path}.1").write_bytes(data)
    retention.retire(path, keep=1)

    (told,) = [one for one in helpers.records(path) if one["ev"] == "segment.retired"]
    assert (told["bytes"], told["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert list(told["heads"]) == [uuid(5)]
