"""The verifier at the edges of what it compares: each fact here is one that only one line of it has.

They were found as changes of single lines (tests/mutation) that nothing else noticed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import reference_ledger as form
from reference_ledger import Chain, Ledger
from safespawn import AuditError, _probe
from safespawn.audit import _verify_keys, _verify_scan, _verify_segments, _verify_state, _verify_walk
from safespawn.audit._verify_descent import Descent, Source
from safespawn.audit._verify_findings import Collector, Finding
from safespawn.audit._verify_keys import Epochs
from safespawn.audit._verify_walk import Means
from safespawn.audit.verifier import Verification, verify
from test_audit_verify import KEY, edited, ledger, lines_of, look, noticed, offsets, reasons, told

__all__ = ["ledger"]  # a fixture

NAME = "0193c5a0-0000-7000-8000-00000000beef"
#: Before the keys of any ledger here were set up.
LONG_AGO = 1_700_000_000_000_000_000


def unkeyed(made: Ledger, *, t: int = LONG_AGO, name: str = NAME) -> Chain:
    """Write record 0 of a chain without keys, and return it."""
    chain = Chain(name, None, None, clock=form.Clock(t=t))
    put(made, chain, "chain.open", {"who": {"pid": 1, "start": 1}, "keys": None})
    return chain


def put(made: Ledger, chain: Chain, event: str, told_members: dict[str, Any]) -> bytes:
    """Write the next record of a chain that has no slot."""
    line = chain.line(event, told_members)
    made.write(line)
    chain.took(line)
    return line


# ------------------------------------------------------------------ what is taken from records


@pytest.mark.parametrize(
    "name", [NAME.upper(), NAME.replace("-", ""), NAME[:-2], f"{NAME}00", f" {NAME}", NAME.replace("-", "", 1), "x" * 36, ""]
)
def test_name_of_a_chain_has_one_form(name: str) -> None:
    """Another spelling of an id is none: two names would be two chains elsewhere, and one here."""
    assert _verify_scan.id_of(name) is None
    assert _verify_scan.name_of(_verify_scan.id_of(NAME) or b"") == NAME


@pytest.mark.parametrize("n", [-1, 1 << 63, True, 1.0, "1", None])
def test_origin_in_a_record_that_cannot_be(n: object) -> None:
    """A number that no record has is no place where keys come from."""
    assert _verify_walk.source_of({"parent": NAME, "n": n}) is None
    assert _verify_walk.source_of({"parent": NAME.upper(), "n": 1}) is None
    assert _verify_walk.source_of({"parent": NAME, "n": 0}) == Source(0, _verify_scan.id_of(NAME), 0)
    assert _verify_walk.source_of({"parent": NAME, "n": (1 << 63) - 1}) is not None


def test_heads_of_no_chain() -> None:
    """What is no chain, or no number, has no head."""
    heads: dict[str, Any] = {
        "x": [1, ""], NAME.upper(): [1, ""], NAME: [1 << 64, ""], NAME[:-1] + "0": [-1, ""], NAME[:-1] + "1": [True, ""],
        NAME[:-1] + "2": [1], NAME[:-1] + "3": [(1 << 64) - 1, "a" * 70, {"epoch": 3}], NAME[:-1] + "4": [0, ""],
    }  # fmt: skip
    made = _verify_walk.heads_of({"heads": heads})
    assert made == {
        _verify_scan.id_of(NAME[:-1] + "3"): ((1 << 64) - 1, "a" * 65, Source(3)),
        _verify_scan.id_of(NAME[:-1] + "4"): (0, "", None),
    }


def test_what_is_withdrawn_is_alone() -> None:
    """A notice is taken back where nothing else is counted with it, and only what is at that place."""
    notice = Finding("f", 1, 0, None, None, "uncommitted", "x")
    made = Collector("like it")
    for key, count in (("alone", 1), ("two", 2)):
        for at in range(count):
            made.add(key, (0, 1, at), notice)
    for key in ("two", "nobody"):
        made.withdraw(key, (0, 1, 0))
    made.withdraw("alone", (0, 1, 9))
    assert {key for key in ("alone", "two") if key in made} == {"alone", "two"}
    made.withdraw("alone", (0, 1, 0))
    assert "alone" not in made


# ------------------------------------------------------------------ chains without keys, and keys that nobody knows


def test_unkeyed_chain_is_told_where_its_beginning_was_retired(ledger: tuple[Ledger, Chain]) -> None:
    """Anybody may have written what is here of it, whatever the record of the retirement says."""
    made, chain = ledger
    other = unkeyed(made, t=made.clock.t)
    segment = made.rotate()
    put(made, other, "cred.change", {})
    made.checkpoint(chain)
    made.rotate()
    made.retire(segment)

    assert [(f.chain, f.line, f.reason, f.more) for f in look(made).findings] == [(NAME, 1, "unkeyed", 0)]


def test_unkeyed_child_of_an_unkeyed_parent_is_as_old_as_it(ledger: tuple[Ledger, Chain]) -> None:
    """Both were written before there were keys: it is the parent with keys that makes a child without them a lie."""
    made, _ = ledger
    parent = unkeyed(made)
    child = parent.child(NAME[:-1] + "e")
    put(made, parent, "chain.fork", {"child": child.chain})
    put(made, child, "chain.open", {"who": {}, "keys": None, "parent": parent.chain})

    result = look(made)
    assert result.ok, result.findings
    assert [found.chain for found in result.notices if found.reason == "unkeyed-before"] == [parent.chain, child.chain]


@pytest.mark.parametrize("has", ["mac", "keys", "slot"])
def test_keys_that_nobody_knows_are_no_lack_of_keys(ledger: tuple[Ledger, Chain], has: str) -> None:
    """A chain with MACs, whatever it says of its keys, or with a slot is not one from before them, whatever its date is."""
    made, _ = ledger
    chain = Chain(NAME, None if has == "slot" else bytes(32), None, clock=form.Clock(t=LONG_AGO))
    if has == "keys":
        put(made, chain, "chain.open", {"who": {}, "keys": {"epoch": "0"}})
    else:
        put(made, chain, "cred.change", {})
    if has == "slot":
        assert made.state is not None
        made.state.claim(NAME, 0)

    assert [(f.chain, f.reason) for f in look(made).findings] == [(NAME, "chain-unknown")]


def test_opening_that_says_that_it_has_no_keys(ledger: tuple[Ledger, Chain]) -> None:
    """Then it has none, also with a member that looks like a MAC."""
    made, _ = ledger
    chain = Chain(NAME, bytes(32), None, clock=form.Clock(t=made.clock.t))
    put(made, chain, "chain.open", {"who": {}, "keys": None})

    assert [(f.chain, f.reason) for f in look(made).findings] == [(NAME, "unkeyed")]


def test_first_record_that_is_too_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain whose first record here has a number to which no key can be followed is told."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.path.write_bytes(b"")
    chain.n = 1 << 40
    put(made, chain, "cred.change", {})
    monkeypatch.setattr(_verify_scan, "STEPS_MAX", 1000)

    found = look(made, state=False).findings[0]
    assert (found.line, found.reason) == (1, "gap")
    assert "too many records are missing before record" in found.text


def test_grandchild_whose_fork_was_lost_like_that_of_its_parent(tmp_path: Path) -> None:
    """With the registry too, the records 0 tell where the keys of both come from."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = parent.child(next(made.ids))
    made.append(parent, "audit.degraded", {"lost": 1})
    made.open_fork(child, parent)
    grandchild = child.child(next(made.ids))
    made.append(child, "audit.degraded", {"lost": 1})
    made.open_fork(grandchild, child)

    result = look(made)
    assert result.ok, result.findings
    assert noticed(result) == {"fork-untold"}


# ------------------------------------------------------------------ lines


@pytest.mark.parametrize("chunk", [700, 5000])
def test_ledger_is_judged_alike_however_it_is_read(
    ledger: tuple[Ledger, Chain], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Findings have the places that they have where the file is read at once."""
    made, chain = ledger
    lines = lines_of(made.path)
    torn, garbage = chain.line("spawn.exit", {"exit": {}})[:200] + b"\n", b"x" * 3000 + b"\n"
    made.path.write_bytes(b"".join([*lines[:12], garbage, *lines[12:20], *lines[21:40], *lines[30:40], *lines[40:], torn]))
    whole = look(made)
    monkeypatch.setattr(_verify_scan, "CHUNK", chunk)

    assert look(made) == whole
    assert {"torn-or-garbage", "gap"} <= set(reasons(whole))


def test_table_that_is_full_in_the_middle(tmp_path: Path) -> None:
    """No record is passed over when there is no more room for the chains that a process forked."""
    made = Ledger(tmp_path)
    chain = made.chain()
    for _ in range(300):
        made.fork(chain)

    result = look(made)
    assert result.ok, result.findings
    assert (result.counts["records"], result.counts["silent"]) == (301, 300)


def test_number_that_was_changed_is_one_finding(ledger: tuple[Ledger, Chain]) -> None:
    """The records behind it are as they were: only the changed one is told."""
    made, _ = ledger
    edited(made.path, offsets(made.path)[20], lines_of(made.path)[20], lines_of(made.path)[20].replace(b'"n":20,', b'"n":30,'))

    result = look(made)
    assert told(result) == [("ledger.jsonl", 21, "mac-mismatch")]
    assert result.findings[0].more == 0
    assert "it says 30 where record 20 is expected" in result.findings[0].text


def test_gap_is_one_finding_and_no_notice(ledger: tuple[Ledger, Chain]) -> None:
    """Reading goes on behind the record at which a gap was seen, and not within it."""
    made, _ = ledger
    lines = lines_of(made.path)
    assert b'"ev":"spawn.exit"' in lines[21]
    made.path.write_bytes(b"".join(lines[:21] + lines[22:]))

    result = look(made)
    assert told(result) == [("ledger.jsonl", 22, "gap")]
    assert result.findings[0].more == 0
    assert noticed(result) == set()


def test_garbage_is_of_no_chain(ledger: tuple[Ledger, Chain]) -> None:
    """What is no record has neither chain nor number, and it is told that a line was too long."""
    made, _ = ledger
    for text, says in ((b"x", "no record"), (b"x" * 10_000, "longer than a record can be")):
        made.write(text + b"\n")
        found = look(made).findings[0]
        assert (found.chain, found.n, found.reason) == (None, None, "torn-or-garbage")
        assert says in found.text
        os.truncate(made.path, offsets(made.path)[50])


# ------------------------------------------------------------------ state file and registry


def test_registry_record_without_a_mac_does_not_count(ledger: tuple[Ledger, Chain]) -> None:
    """Who has no key of an epoch cannot register a chain by leaving the MAC out, or by a number that has no key."""
    made, _ = ledger
    assert made.keys
    whole = made.keys.registry.read_bytes()
    line = made.keys.line("registry.chain", {"chain": NAME, "ledger": str(made.path)})
    far = line.replace(f'"n":{made.keys.epoch},'.encode(), f'"n":{1 << 40},'.encode())
    for forged in (line.partition(b',"m":')[0] + b"}\n", far):
        made.keys.registry.write_bytes(whole + forged)
        result = look(made)
        assert reasons(result) == ["mac-mismatch"], result.findings
        assert result.counts["registered"] == 1


def test_registry_that_lost_records_says_how_many(ledger: tuple[Ledger, Chain]) -> None:
    """The epoch is ahead by them."""
    made, _ = ledger
    made.chain()
    assert made.keys
    os.truncate(made.keys.registry, offsets(made.keys.registry)[1])

    (found,) = [one for one in look(made).findings if one.reason == "tail-truncated"]
    assert found.text == "2 records are missing: the epoch is 3, and there are 1"


def test_state_file_with_too_many_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as may be are read; with one more, faults among them, it is told that there are too many."""
    made = Ledger(tmp_path)
    for _ in range(3):
        made.chain()
    assert made.state is not None
    for most, is_right in ((3, True), (2, False)):
        monkeypatch.setattr(_verify_state, "SLOTS_MAX", most)
        faults = _verify_state.read(str(made.state.path)).faults
        assert faults == ([] if is_right else [(faults[0][0], "too many slots")])
    made.state.claim(NAME, 0)
    made.state.claim(NAME, 0)  # a second one is a fault, and one more
    monkeypatch.setattr(_verify_state, "SLOTS_MAX", 4)
    assert [text for _, text in _verify_state.read(str(made.state.path)).faults][-1] == "too many slots"


def test_slot_that_is_written_during_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read half is read again, at its own place, until it is the same twice."""
    made = Ledger(tmp_path)
    made.chain()
    second = made.chain()
    assert made.state is not None
    read, looks = os.pread, [0]
    fresh = made.state.path.read_bytes()

    def pread(fd: int, size: int, at: int) -> bytes:
        data = read(fd, size, at)
        looks[0] += 1
        if looks[0] == 3:  # the second look at all slots: the last one is half written
            data = data[:-96] + b"\xee" * 96
        return data

    monkeypatch.setattr(os, "pread", pread)
    state = _verify_state.read(str(made.state.path))
    assert looks[0] > 3
    assert state.faults == []
    slot = state.slots[_verify_scan.id_of(second.chain) or b""]
    assert (slot.records, slot.byte) == (1, len(fresh) - 128)


def test_chain_that_was_cut_is_not_called_compared(ledger: tuple[Ledger, Chain]) -> None:
    """Its seal was never reached: the count says of how many the seal was right."""
    made, _ = ledger
    assert look(made).counts["compared"] == 1
    os.truncate(made.path, offsets(made.path)[49])
    assert look(made).counts["compared"] == 0


def test_what_was_checked_is_said_in_these_words(ledger: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """No sentence more, and none less."""
    made, _ = ledger
    result = look(made)
    assert result.checked[:-1] == (
        "50 records of 1 chains in 1 files: MAC and hash chain", "state file: length and seal of 1 chains",
        "registry: 2 records, 1 chains",
    )  # fmt: skip
    witness = tmp_path / "witness"
    witness.write_bytes(lines_of(made.path)[-1] + b"x\n")
    with_witness = look(made, witness=[witness])
    assert "witnesses: 1 records, 1 lines that are none" in with_witness.checked
    assert [text for text in result.limits if text not in with_witness.limits] == [
        "no witness: older copies of ledger, state and key directory, put back together, are not seen"
    ]
    unkeyed(made)
    assert "1 of the chains have no keys: only the hash chain" in look(made).checked


# ------------------------------------------------------------------ segments and retirements


@pytest.mark.parametrize("with_registry", [True, False])
def test_child_that_was_retired_whole_needs_no_registration(tmp_path: Path, with_registry: bool) -> None:
    """Chains that a fork began are in no registry, also where only a head tells of them."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = made.open_fork(made.fork(parent), parent)
    made.close(child)
    segment = made.rotate()
    made.checkpoint(parent)
    made.rotate()
    made.retire(segment)

    result = look(made) if with_registry else look(made, registry=None)
    assert result.ok, result.findings
    assert noticed(result) == {"retired"}


@pytest.mark.parametrize("with_registry", [True, False])
def test_seal_of_a_chain_that_was_retired_whole(tmp_path: Path, with_registry: bool) -> None:
    """The head tells where its keys come from, and the registry where it does not: the slot is held against them."""
    made = Ledger(tmp_path)
    gone, chain = made.chain(), made.chain()
    made.spawn(gone)
    segment = made.rotate()
    made.checkpoint(chain)
    made.rotate()
    made.retire(segment, with_keys=not with_registry)
    more: dict[str, Any] = {} if with_registry else {"registry": None}
    assert look(made, **more).ok
    assert "aggregate-unchecked" not in noticed(look(made, **more))

    assert made.state is not None
    made.state.store(gone.slot, gone.n, b"\xee" * 32)
    assert [(f.chain, f.reason) for f in look(made, **more).findings] == [(gone.chain, "aggregate-mismatch")]


def test_keys_that_a_second_retirement_tells(tmp_path: Path) -> None:
    """Of two records about one segment, the deletion was interrupted, one may know more than the other."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = made.open_fork(made.fork(parent), parent)
    segment = made.rotate()
    made.spawn(child)
    made.checkpoint(parent)
    made.rotate()
    data = segment.read_bytes()
    made.retire(segment, with_keys=False)
    segment.write_bytes(data)
    made.retire(segment)

    result = look(made)
    assert result.ok, result.findings


def test_retirement_of_the_segment_in_which_it_stands(tmp_path: Path) -> None:
    """No segment tells of its own retirement, though it is the oldest one."""
    made = Ledger(tmp_path)
    own = made.retiring()
    made.append(own, "segment.retired", {"segment": "ledger.jsonl.1", "heads": {}})
    made.close(own)
    made.rotate()

    assert [(f.chain, f.reason) for f in look(made).findings] == [(own.chain, "retirement-unproven")]


@pytest.mark.parametrize("segment", ["ledger.jsonl.1", "nothing", "ledger.jsonl"])
def test_retirement_in_a_copy_of_a_ledger_with_a_long_path(tmp_path: Path, segment: str) -> None:
    """The path is told by its digest there, from which no name can be read: any will do, with a number."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.spawn(chain)
    older = made.rotate()
    made.checkpoint(chain)
    made.rotate()
    own = made.chain(more={"retires": {"cut": "/long", "sha256": "0" * 64}})
    made.retire(older, own, segment=segment)
    made.close(own)
    copy = tmp_path / "copy"
    for number in ("", ".2"):
        Path(f"{copy}{number}").write_bytes(Path(f"{made.path}{number}").read_bytes())

    result = verify(copy, key=KEY, state=False)
    assert ("retired" in noticed(result), "retirement-unproven" in reasons(result)) == (
        (True, False) if segment.endswith(".1") else (False, True)
    )
    assert result.ok == segment.endswith(".1")


@pytest.mark.parametrize("how", ["replaced", "made"])
def test_file_that_comes_while_the_others_are_opened(
    ledger: tuple[Ledger, Chain], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Another file under the same name, or one where there was none: all are opened once more."""
    made, chain = ledger
    whole = made.path.read_bytes() + chain.line("spawn.exit", {"exit": {}})
    if how == "made":
        made.path.rename(f"{made.path}.1")
    real, left = _verify_segments.open_file, [1]

    def opening(path: str) -> int:
        try:
            return real(path)
        finally:
            if left[0] and path == str(made.path):
                left[0] = 0
                made.path.unlink(missing_ok=True)
                made.path.write_bytes(whole if how == "replaced" else b"")

    monkeypatch.setattr(_verify_segments, "open_file", opening)
    result = look(made)
    assert result.ok, result.findings
    assert (result.counts["segments"], result.counts["records"]) == ((2, 50) if how == "made" else (1, 51))
    assert "ledger-absent" not in noticed(result)


def test_fifo_is_no_ledger(tmp_path: Path) -> None:
    """Nor does it hold us up that nobody writes to it."""
    os.mkfifo(tmp_path / "ledger.jsonl")
    with pytest.raises(AuditError, match="not a regular file"):
        verify(tmp_path / "ledger.jsonl", key=KEY)


def test_garbage_is_told_of_each_file(tmp_path: Path) -> None:
    """Also where its line has the number of another file."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.rotate()
    made.checkpoint(chain)
    made.checkpoint(chain)
    made.write(b"x\n")
    made.rotate()
    made.write(b"x\nx\n")
    made.checkpoint(chain)

    result = look(made)
    assert told(result) == [("ledger.jsonl.2", 3, "torn-or-garbage"), ("ledger.jsonl", 1, "torn-or-garbage")]
    assert [found.more for found in result.findings] == [0, 1]


def went(made: Ledger, *, boot: str, mono: int, **more: Any) -> Verification:
    """Verify a ledger, of which the older segment goes meanwhile, with a chain in it that has no slot."""
    assert made.keys
    other = made.chain()
    made.keys.clock.mono = mono
    chain = made.keys.open_chain(next(made.ids), str(made.path), boot=boot)
    process = {"pid": 4_000_000, "start": 1, "pid_ns": form.PID_NS}
    put(made, chain, "chain.open", {"who": process, "keys": chain.keys})
    segment = made.rotate()
    made.checkpoint(other)
    return look(made, progress=lambda _done, _total: segment.unlink(missing_ok=True), **more)


@pytest.mark.parametrize(("boot", "mono", "is_right"), [
    ("", 0, True), ("", 1, True), ("", -1, False), (form.BOOT, 1, False), (form.BOOT, -1, False),
])  # fmt: skip
def test_chain_without_a_slot_whose_file_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str, mono: int, is_right: bool
) -> None:
    """It was retired, if it is younger than our look at the state file: of this boot, by the clock of this boot."""
    monkeypatch.setattr(_verify_state.time, "monotonic_ns", lambda: 10_000_000)
    # The registry is written first, and each record is later by a millisecond.
    result = went(Ledger(tmp_path), boot=boot or _probe.boot_id(), mono=10_000_000 - 2_000_000 + mono)
    assert reasons(result) == ([] if is_right else ["state-missing"])


@pytest.mark.parametrize("gives_back", [True, False])
def test_chain_whose_file_goes_meanwhile(ledger: tuple[Ledger, Chain], gives_back: bool) -> None:
    """What was compared before is retired, if its slot goes too. One that stays may not be behind."""
    made, chain = ledger
    assert made.state is not None
    state = made.state.path
    at = state.read_bytes().index(_verify_scan.id_of(chain.chain) or b"") - 8
    older = state.read_bytes()[at : at + 128]
    made.spawn(chain)
    segment = made.rotate()
    made.chain()

    def put_slot(unit: bytes) -> None:
        data = state.read_bytes()
        state.write_bytes(data[:at] + unit + data[at + 128 :])

    def go(_done: int, _total: int) -> None:
        segment.unlink(missing_ok=True)
        if gives_back:
            put_slot(bytes(128))

    if not gives_back:
        put_slot(older)
    assert reasons(look(made, progress=go)) == ([] if gives_back else ["state-behind"])


# ------------------------------------------------------------------ the rest


def test_records_in_a_wrong_order_are_no_equal_lines(ledger: tuple[Ledger, Chain]) -> None:
    """``dedupe`` takes what comes again, and nothing that comes too late."""
    made, _ = ledger
    lines = lines_of(made.path)
    made.path.write_bytes(b"".join([*lines[:20], lines[21], lines[20], *lines[22:]]))

    result = look(made, dedupe=True)
    assert told(result) == [("ledger.jsonl", 21, "gap")]
    assert "1 replay/reorder" in result.findings[0].text
    assert result.counts["repeats"] == 0


def test_records_without_keys_that_come_again_after_a_retirement(tmp_path: Path) -> None:
    """There is no MAC that they could have."""
    made = Ledger(tmp_path, None)
    chain = made.chain()
    made.spawn(chain)
    older = made.rotate()
    again = lines_of(older)[-2:]
    made.append(chain, "audit.degraded", {"lost": 0, "why": "EIO", "resent": [2, 3]})
    made.write(b"".join(again))
    made.checkpoint(chain)
    made.rotate()
    made.retire(older)

    result = look(made, key=None, state=False)
    assert result.ok, result.findings
    assert result.counts["repeats"] == 2


def test_beginning_of_the_record_before_the_first_that_is_here(tmp_path: Path) -> None:
    """It was whole once, and is not gone: the finding is at the beginning, and there is no gap."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.spawn(chain)
    lines = lines_of(made.path)
    made.path.write_bytes(b"".join([lines[0][:300] + b"\n", *lines[1:]]))

    result = look(made)
    assert told(result) == [("ledger.jsonl", 1, "torn-or-garbage")]
    assert result.findings[0].more == 0


def test_aggregate_that_a_record_tells_is_that_of_those_before(ledger: tuple[Ledger, Chain]) -> None:
    """Who took over the process may write any, and it is told."""
    made, chain = ledger
    made.append(chain, "checkpoint", {"why": "count", "counts": {}, "lost": 0, "mirrors": {}, "agg": "1" * 64})

    result = look(made)
    assert told(result) == [("ledger.jsonl", 51, "aggregate-mismatch")]
    assert result.findings[0].more == 0


def test_gap_in_a_chain_without_keys_needs_no_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no keys to follow, however far the next record is."""
    made = Ledger(tmp_path, None)
    chain = made.chain()
    chain.n = 1 << 40
    put(made, chain, "cred.change", {})
    monkeypatch.setattr(_verify_scan, "STEPS_MAX", 1000)

    (found,) = look(made, key=None, state=False).findings
    assert found.reason == "gap"
    assert "too many" not in found.text


def test_origin_that_is_told_later_than_those_of_its_descendants() -> None:
    """What led nowhere is looked for again when its end is told, over any number of forks."""
    ids = [bytes(15) + bytes([number]) for number in range(1, 4)]
    sources = {ids[2]: Source(0, ids[1], 0), ids[1]: Source(0, ids[0], 0)}
    with _verify_scan.Scanner() as scanner:
        descent = Descent(Epochs(KEY), scanner, sources.get)
        assert descent.key(ids[2], sources[ids[2]]) is None
        sources[ids[0]] = Source(0)
        descent.learned(ids[0])
        assert descent.key(ids[2], sources[ids[2]]) is not None


def test_epochs_are_not_followed_from_the_first_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are kept on the way."""
    steps = []
    real = _verify_keys.mac
    epochs = Epochs(KEY)
    monkeypatch.setattr(_verify_keys, "mac", lambda key, data: steps.append(data) or real(key, data))
    first = epochs.key(640)
    assert len(steps) == 640
    for _ in range(3):
        assert epochs.key(500) == form.epoch_key(KEY, 500)
        assert epochs.key(640) == first
    assert len(steps) < 640 + 6 * _verify_keys.ANCHOR


def test_record_key_of_a_chain_of_which_nothing_is_told() -> None:
    """There is none."""
    with _verify_scan.Scanner() as scanner:
        means = Means(Epochs(KEY), False, None, None, None)
        walk = _verify_walk.Walk([], scanner, means, Collector(""), Collector(""))
        assert walk.record_key(bytes(16), 3) is None


def test_what_is_foretold_is_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of heads that tell where keys come from; those that do not need no room."""
    monkeypatch.setattr(_verify_walk, "HELD_MAX", 1)
    with _verify_scan.Scanner() as scanner:
        means = Means(Epochs(KEY), False, None, None, None)
        walk = _verify_walk.Walk([], scanner, means, Collector(""), Collector(""))
        heads = {NAME[:-1] + digit: [1, "", keys] for digit, keys in (("0", None), ("1", {"epoch": 1}), ("2", {"epoch": 2}))}
        walk._take_sources({"heads": heads}, (0, 1, 0))
        assert list(walk.foretold.values()) == [(Source(1), (0, 1, 0))]


def test_state_file_is_named_where_a_chain_is_missing(ledger: tuple[Ledger, Chain]) -> None:
    """The finding has the place of its slot."""
    made, _ = ledger
    os.truncate(made.path, 0)
    (found,) = look(made).findings
    assert (found.file, found.byte) == (f"{made.path}.state", 128)


@pytest.mark.parametrize(("boot", "says"), [("", "its process is gone"), (form.BOOT, "its process is not known: of another boot")])
def test_end_of_a_process_is_known_on_its_boot_only(tmp_path: Path, boot: str, says: str) -> None:
    """That is said of a chain without a last record."""
    made = Ledger(tmp_path, None)
    chain = Chain(NAME, None, None, boot=boot or _probe.boot_id())
    put(made, chain, "chain.open", {"who": {"pid": 4_000_000, "start": 1, "pid_ns": form.PID_NS}, "keys": None})

    (found,) = look(made, key=None, state=False).notices
    assert found.reason == "crashed"
    assert says in found.text


def test_witness_of_what_was_retired_says_nothing(ledger: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """Its records are not here, and may not be."""
    made, chain = ledger
    witness = tmp_path / "witness"
    witness.write_bytes(b"".join(lines_of(made.path)[10:20]))
    segment = made.rotate()
    made.checkpoint(chain)
    made.rotate()
    made.retire(segment)

    result = look(made, witness=[witness])
    assert result.ok, result.findings
    assert noticed(result) == {"retired"}


@pytest.mark.parametrize("boot", ["00000000-0000-4000-8000-00000000beef", ""])
@pytest.mark.parametrize("ours", [form.BOOT, ""])
def test_witness_of_another_boot(tmp_path: Path, boot: str, ours: str) -> None:
    """Its chains need not be here; no boot at all is not the same boot."""
    made = Ledger(tmp_path, None)
    put(made, Chain(NAME, None, None, boot=ours), "chain.open", {"who": {}, "keys": None})
    witness = tmp_path / "witness"
    witness.write_bytes(Chain(NAME[:-1] + "e", None, None, boot=boot).line("chain.open", {"who": {}, "keys": None}))

    result = look(made, key=None, state=False, witness=[witness])
    assert result.ok, result.findings
    assert "witness-other" in noticed(result)


# ------------------------------------------------------------------ the form of a line


#: A record of which only the form is right, by its parts.
PARTS = {
    "start": '{"v":1,"c":"', "id": NAME, "n": "7", "p": "0" * 64, "ev": "spawn.exit", "sid": "null", "t": "1", "mono": "1",
    "boot": "", "mode": "require", "more": "",
}  # fmt: skip


def record(**parts: str) -> bytes:
    """Return a line with some of the parts in the place of those, without its newline."""
    one = {**PARTS, **parts}
    return (
        f'{one["start"]}{one["id"]}","n":{one["n"]},"p":"{one["p"]}","ev":"{one["ev"]}","sid":{one["sid"]},"t":{one["t"]},'
        f'"mono":{one["mono"]},"boot":"{one["boot"]}","mode":"{one["mode"]}"{one["more"]}}}'
    ).encode("latin-1")


def judged(path: Path, data: bytes) -> list[_verify_scan.Record]:
    """Return what the verifier says of bytes, where chains do not matter."""
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return [one for one, _ in _verify_scan.parts(fd, len(data))]
    finally:
        os.close(fd)


LEFT_BEFORE_MORE = len(record()) + len(',"a":""')
RIGHT: list[dict[str, str]] = [
    {}, {"n": "0"}, {"n": str(2**64 - 2)}, {"t": str(2**63 - 1)}, {"mono": str(2**63 - 1)}, {"p": "0123456789abcdef" * 4},
    {"ev": "a"}, {"ev": "z" * 32}, {"sid": f'"{NAME}"'}, {"boot": "0" * 36}, {"boot": "-"}, {"mode": "durable"},
    {"mode": "best_effort"}, {"more": ',"a":"' + "x" * (7999 - LEFT_BEFORE_MORE) + '"'}, {"more": ',"a":true,"b":false,"c":null'},
    {"more": ',"a":-0,"b":-18446744073709551615,"c":18446744073709551615'}, {"more": ',"a":" ~\\"\\\\\\/\\b\\f\\n\\r\\t\\u00ff"'},
    {"more": ',"a":[],"b":{},"c":[{}],"d":[[],1]'}, {"more": ',"a":' + "[" * 62 + "]" * 62}, {"more": ',"a":' + '{"a":' * 61 + "{}" + "}" * 61},
    {"more": ',"a":{"b":1,"c":[1,"]}"]}'}, {"more": ',"":0'},
]  # fmt: skip
WRONG: list[dict[str, str]] = [
    {"start": '{"v":2,"c":"'}, {"id": NAME.upper()}, {"id": NAME.replace("-", "x")}, {"id": NAME.replace("b", "g")}, {"id": NAME.replace("b", "`")},
    {"n": "07"}, {"n": "00"}, {"n": ""}, {"n": "-1"}, {"n": "1:"}, {"n": "/"}, {"n": str(2**64 - 1)}, {"n": str(2**64)}, {"n": "9" * 30},
    {"t": str(2**63)}, {"t": "-1"}, {"mono": str(2**63)}, {"p": "0" * 63}, {"p": "0" * 65}, {"p": "0" * 63 + "/"},
    {"p": "0" * 63 + ":"}, {"p": "0" * 63 + "G"}, {"p": "0" * 63 + "g"}, {"ev": ""}, {"ev": "z" * 33}, {"ev": "spawn exit"}, {"ev": "\0"},
    {"sid": "nul"}, {"sid": f'"{NAME}'}, {"sid": NAME}, {"sid": "1"}, {"boot": "0" * 37}, {"boot": "g"}, {"mode": "requir"},
    {"mode": "required"}, {"mode": "REQUIRE"}, {"mode": "durabla"}, {"mode": ""}, {"more": ' ,"a":1'}, {"more": ',"a":"\x1f"'},
    {"more": ',"a":"\x7f"'}, {"more": ',"a":"\\x"'}, {"more": ',"a":"\\u00g0"'}, {"more": ',"a":"\\\0"'}, {"more": ',"a":tru'}, {"more": ',"a":falsy'},
    {"more": ',"a":nul'}, {"more": ',"a":1.5'}, {"more": ',"a":-'}, {"more": ',"a":18446744073709551616'}, {"more": ',"a":01'},
    {"more": ',"a":'}, {"more": ","}, {"more": ',"a"'}, {"more": ',1:1'}, {"more": ',"a":[1,]'}, {"more": ',"a":[}'}, {"more": ',"a":{]'},
    {"more": ',"a":{"b"}'}, {"more": ',"a":' + "[" * 63 + "]" * 63}, {"more": "}"}, {"more": "]"}, {"more": ',"a":1}x{"a":1'},
    {"more": ',"a":"' + "x" * (8000 - LEFT_BEFORE_MORE) + '"'},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(RIGHT)))
def test_form_of_a_record(tmp_path: Path, number: int) -> None:
    """Each of these is one, up to the longest and the largest; and one that is cut anywhere is a beginning."""
    line = record(**RIGHT[number])
    (made,) = judged(tmp_path / "x", line + b"\n")
    assert (made.verdict, made.size, made.flags) == (_verify_scan.FITS, len(line), _verify_scan.HAS_NUMBER)
    assert made.chain == NAME
    assert (str(made.n), str(made.t)) == ({**PARTS, **RIGHT[number]}["n"], {**PARTS, **RIGHT[number]}["t"])
    assert made.sid == ((_verify_scan.id_of(NAME) or b"") if "sid" in RIGHT[number] else bytes(16))
    assert made.hash == form.sha256(line)
    for size in (len(line) - 1, len(line) // 2, 1):
        (made,) = judged(tmp_path / "x", line[:size])
        assert (made.verdict, made.size) == (_verify_scan.TORN, size)


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_form_of_no_record(tmp_path: Path, number: int) -> None:
    """None of these is one, and none is the beginning of one: what a killed writer leaves is told apart from them."""
    line = record(**WRONG[number])
    assert _verify_scan.GARBAGE in [one.verdict for one in judged(tmp_path / "x", line + b"\n")]
    assert _verify_scan.FITS not in [one.verdict for one in judged(tmp_path / "x", line + b"\n")]


@pytest.mark.parametrize("mac", ["0" * 64, "0123456789abcdef" * 4])
def test_form_of_a_mac(tmp_path: Path, mac: str) -> None:
    """64 digits at the very end."""
    (made,) = judged(tmp_path / "x", record(more=f',"m":"{mac}"') + b"\n")
    assert (made.verdict, made.flags) == (_verify_scan.FITS, _verify_scan.HAS_NUMBER | _verify_scan.HAS_MAC)
    for none in (f',"m":"{mac[1:]}"', f',"m":"{mac[1:]}G"', f',"n":"{mac}"', f',"m":"{mac}","a":1', f',"m":["{mac}"]'):
        (made,) = judged(tmp_path / "x", record(more=none) + b"\n")
        assert not made.flags & _verify_scan.HAS_MAC


def test_numbers_of_events() -> None:
    """Those that somebody asks for have one each, from 1 on; no other has."""
    assert list(_verify_scan.EVENTS.values()) == list(range(1, 16))
    assert _verify_scan.lib.ss_verify_event(-1) == _verify_scan.ffi.NULL
    assert _verify_scan.lib.ss_verify_event(16) == _verify_scan.ffi.NULL


@pytest.mark.parametrize("name", [*_verify_scan.EVENTS, "spawn.exits", "xpawn.exit"])
def test_event_of_a_record(tmp_path: Path, name: str) -> None:
    """It is told by its number."""
    (made,) = judged(tmp_path / "x", record(ev=name) + b"\n")
    assert made.event == _verify_scan.EVENTS.get(name, 0)


def test_records_that_go_on_in_one_line(tmp_path: Path) -> None:
    """A record behind a beginning is found where it begins, also where that is at the end of what a line may have."""
    line = record()
    for before in (b"x", line[:1], line[:40], line[:-1], b"x" * 7999, b"x" * 8000, b"x" * 8001, b"x" * 7995 + line[:11], b"x" * 20_000):
        made = judged(tmp_path / "x", before + line + b"\n" + line + b"\n")
        assert [one.verdict for one in made][-2:] == [_verify_scan.FITS, _verify_scan.FITS], before
        assert sum(one.size for one in made[:-2]) == len(before)
        assert [(one.line, one.at) for one in made[-2:]] == [(1, len(before)), (2, len(before) + len(line) + 1)]
        assert made[0].flags & _verify_scan.NO_NEWLINE
        assert not made[-1].flags & _verify_scan.NO_NEWLINE
        assert [bool(one.flags & _verify_scan.TOO_LONG) for one in made] == [one.size >= 8000 for one in made]


# ------------------------------------------------------------------ chains in the core


def test_beginning_of_a_chain_of_which_nothing_else_is_left(tmp_path: Path) -> None:
    """A killed writer left it behind the segment that was retired: its chain is in the state file, and not open yet."""
    made = Ledger(tmp_path)
    gone, chain = made.chain(), made.chain()
    segment = made.rotate()
    made.write(gone.line("cred.change", {})[:200] + b"\n")
    made.checkpoint(chain)
    made.rotate()
    made.retire(segment)

    result = look(made)
    assert result.ok, result.findings
    assert noticed(result) == {"retired", "uncommitted"}


@pytest.mark.parametrize(("ns", "is_told"), [(1_000_000_000, False), (1_000_000_001, True)])
def test_clock_is_set_back_by_more_than_a_second(ledger: tuple[Ledger, Chain], ns: int, is_told: bool) -> None:
    """Less than that is how a clock is kept right."""
    made, chain = ledger
    chain.clock.t -= ns + 1_000_000  # the next record is later by a millisecond
    made.append(chain, "cred.change", {})

    result = look(made)
    assert result.ok, result.findings
    assert noticed(result) == ({"clock-back"} if is_told else set())
