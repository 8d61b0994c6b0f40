"""The verifier at the edges of what it compares: each fact here is one that only one line of it has.

They were found as changes of single lines (tests/mutation) that nothing else noticed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import reference_ledger as form
from reference_ledger import Chain, Ledger
from safespawn.audit import _verify_scan, _verify_state, _verify_walk
from safespawn.audit._verify_descent import Source
from safespawn.audit._verify_findings import Collector, Finding
from test_audit_verify import edited, ledger, lines_of, look, noticed, offsets, reasons, told

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


@pytest.mark.parametrize("has_mac", [True, False])
def test_keys_that_nobody_knows_are_no_lack_of_keys(ledger: tuple[Ledger, Chain], has_mac: bool) -> None:
    """A chain with MACs, or with a slot, is not one from before the keys, whatever its date is."""
    made, _ = ledger
    chain = Chain(NAME, bytes(32) if has_mac else None, None, clock=form.Clock(t=LONG_AGO))
    put(made, chain, "cred.change", {})
    if not has_mac:
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


def test_grandchild_of_a_fork_that_was_lost(tmp_path: Path) -> None:
    """With the registry too, record 0 of the child tells where the keys of both come from."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = parent.child(next(made.ids))
    made.append(parent, "audit.degraded", {"lost": 1})
    made.open_fork(child, parent)
    made.open_fork(made.fork(child), child)

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


def test_table_that_is_just_full(tmp_path: Path) -> None:
    """No record is passed over when a chain more than there is room for begins among them."""
    made = Ledger(tmp_path, None)
    chains = [unkeyed(made, name=next(made.ids)) for _ in range(257)]
    for chain in chains:
        put(made, chain, "cred.change", {})

    result = look(made, key=None, state=False)
    assert result.ok, result.findings
    assert (result.counts["chains"], result.counts["records"]) == (257, 514)


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
