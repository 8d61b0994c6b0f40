"""The verifier: every attack of the design's table, every death of a writer, and any bytes at all.

Ledgers come from the reference writer (reference_ledger.py), so that the verifier is held against the
form and not against what the library happens to write.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import helpers
import reference_checker
import reference_ledger as form
from reference_ledger import Chain, Ledger
from safespawn import AuditError, _cli_audit_verify, _probe, audit
from safespawn.audit import _verify_scan, _verify_segments, reader, verifier
from safespawn.audit.verifier import Finding, Verification, verify

KEY = bytes(range(32))
QUICK = settings(
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def look(ledger: Ledger, **more: Any) -> Verification:
    """Verify with everything that the host has."""
    where = ledger.path.parent / "keys"
    return verify(ledger.path, **{"key": KEY, "registry": where if where.exists() else None, **more})


def told(made: Verification) -> list[tuple[str, int, str]]:
    """Return file, line and reason of the findings."""
    return [(Path(found.file).name, found.line, found.reason) for found in made.findings]


def reasons(made: Verification) -> list[str]:
    """Return the reasons of the findings."""
    return [found.reason for found in made.findings]


def noticed(made: Verification) -> set[str]:
    """Return the reasons of the notices, but for what is true of all these ledgers: no process runs."""
    return {found.reason for found in made.notices} - {"crashed"}


def offsets(path: Path) -> list[int]:
    """Return where each line of a file begins, and where the file ends."""
    at, places = 0, [0]
    for line in path.read_bytes().splitlines(keepends=True):
        at += len(line)
        places.append(at)
    return places


def lines_of(path: Path) -> list[bytes]:
    """Return the lines of a file with their newlines."""
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def ledger(tmp_path: Path) -> tuple[Ledger, Chain]:
    """Return a ledger of one chain with 50 records: opening, 16 spawns, a checkpoint."""
    made = Ledger(tmp_path)
    chain = made.chain()
    for _ in range(16):
        made.spawn(chain)
    made.checkpoint(chain)
    assert chain.n == 50
    return made, chain


def test_clean_ledger(ledger: tuple[Ledger, Chain]) -> None:
    """A ledger as it was written has no finding, and all its records were compared with everything."""
    made = look(ledger[0])

    assert made.ok
    assert made.findings == ()
    assert [found.reason for found in made.notices] == ["crashed"]
    assert (made.counts["records"], made.counts["chains"], made.counts["compared"]) == (50, 1, 1)
    assert "newest checkpoint: record 49" in made.checked[-1]


# ------------------------------------------------------------------ the tamper table


def first(made: Verification, ledger: Ledger, line: int, n: int, reason: str) -> Finding:
    """Assert where and why the first finding is, and return it."""
    found = made.findings[0]
    places = offsets(Path(found.file))
    assert (found.line, found.byte, found.n, found.reason) == (line, places[line - 1], n, reason)
    return found


def edited(path: Path, at: int, old: bytes, new: bytes) -> None:
    """Put other bytes in the place of some."""
    data = path.read_bytes()
    assert data[at : at + len(old)] == old
    path.write_bytes(data[:at] + new + data[at + len(old) :])


def test_flipped_byte(ledger: tuple[Ledger, Chain]) -> None:
    """One changed byte of a record is a MAC that does not fit, at just that record."""
    made, chain = ledger
    at = made.path.read_bytes().index(b'"argv"', offsets(made.path)[40])
    edited(made.path, at, b'"argv"', b'"arGv"')

    found = first(look(made), made, 41, 40, "mac-mismatch")
    assert found.chain == chain.chain
    assert found.more == 0


def test_inserted_byte(ledger: tuple[Ledger, Chain]) -> None:
    """One byte more in a record is a MAC that does not fit."""
    made, _ = ledger
    edited(made.path, made.path.read_bytes().index(b"/bin/true", offsets(made.path)[40]), b"", b"x")
    first(look(made), made, 41, 40, "mac-mismatch")


def test_duplicate_key_in_json(ledger: tuple[Ledger, Chain]) -> None:
    """A second member of a name, which readers of JSON take in its place, is a MAC that does not fit."""
    made, _ = ledger
    edited(made.path, made.path.read_bytes().index(b',"m":"', offsets(made.path)[40]), b"", b',"who":{"pid":1}')
    first(look(made), made, 41, 40, "mac-mismatch")


def test_trailing_blank(ledger: tuple[Ledger, Chain]) -> None:
    """A blank behind a record makes it none."""
    made, _ = ledger
    edited(made.path, offsets(made.path)[41] - 1, b"\n", b" \n")
    first(look(made), made, 41, 40, "torn-or-garbage")


def test_deleted_record(ledger: tuple[Ledger, Chain]) -> None:
    """A record that is taken out leaves a gap, told at the one behind it."""
    made, _ = ledger
    lines = lines_of(made.path)
    made.path.write_bytes(b"".join(lines[:20] + lines[21:]))

    found = first(look(made), made, 21, 21, "gap")
    assert "expected record 20, found 21" in found.text


def test_swapped_records(ledger: tuple[Ledger, Chain]) -> None:
    """Two records in the wrong order are a gap, and then one that comes too late."""
    made, _ = ledger
    lines = lines_of(made.path)
    lines[20], lines[21] = lines[21], lines[20]
    made.path.write_bytes(b"".join(lines))

    found = first(look(made), made, 21, 21, "gap")
    assert found.more == 1
    assert "1 replay/reorder" in found.text


def test_duplicated_record(ledger: tuple[Ledger, Chain]) -> None:
    """A record that stands there twice is told at the second."""
    made, _ = ledger
    lines = lines_of(made.path)
    made.path.write_bytes(b"".join([*lines[:30], lines[20], *lines[30:]]))
    first(look(made), made, 31, 20, "replay/reorder")


def test_tail_cut_by_one_record(ledger: tuple[Ledger, Chain]) -> None:
    """The last record is missed, because the state file has counted it."""
    made, _ = ledger
    os.truncate(made.path, offsets(made.path)[49])

    result = look(made)
    found = first(result, made, 49, 48, "tail-truncated")
    assert "1 records missing" in found.text
    assert result.counts["running"] == 0  # nor is it said that somebody writes on


def test_tail_cut_in_a_record(ledger: tuple[Ledger, Chain]) -> None:
    """A record that was counted and of which only the beginning is left is told, and that the tail is missing."""
    made, _ = ledger
    os.truncate(made.path, offsets(made.path)[39] + 250)

    result = look(made)
    assert told(result) == [("ledger.jsonl", 40, "torn-or-garbage"), ("ledger.jsonl", 39, "tail-truncated")]
    assert "11 records missing" in result.findings[1].text
    assert noticed(result) <= {"orphan-intent"}  # what was counted was done: it is not called uncommitted


@pytest.mark.parametrize("how", ["empty", "removed"])
def test_whole_file_cut(ledger: tuple[Ledger, Chain], how: str) -> None:
    """A ledger that is empty, or not there, lacks the chain that the state file tells of."""
    made, chain = ledger
    made.path.unlink() if how == "removed" else os.truncate(made.path, 0)

    result = look(made)
    (found,) = result.findings
    assert (found.reason, found.chain, found.byte) == ("chain-missing", chain.chain, 128)
    assert "the state file says 50" in found.text


def test_whole_chain_cut(ledger: tuple[Ledger, Chain]) -> None:
    """A chain that was taken out of a ledger of two is missed."""
    made, chain = ledger
    other = made.chain()
    made.spawn(other)
    made.path.write_bytes(b"".join(line for line in lines_of(made.path) if chain.chain.encode() not in line))

    (found,) = look(made).findings
    assert (found.reason, found.chain) == ("chain-missing", chain.chain)
    assert "the state file says 50" in found.text


def test_whole_chain_cut_with_its_slot(ledger: tuple[Ledger, Chain]) -> None:
    """A chain that was taken out of the state file too is missed, because the registry has it."""
    made, chain = ledger
    made.spawn(made.chain())
    made.path.write_bytes(b"".join(line for line in lines_of(made.path) if chain.chain.encode() not in line))
    state = made.path.with_name("ledger.jsonl.state")
    state.write_bytes(state.read_bytes()[:128] + bytes(128) + state.read_bytes()[256:])

    (found,) = look(made).findings
    assert (Path(found.file).name, found.reason, found.chain) == ("registry.jsonl", "chain-missing", chain.chain)


# -- the keys were stolen while the chain had 40 records


@pytest.fixture
def stolen(tmp_path: Path) -> tuple[Ledger, Chain]:
    """Return a ledger of 40 records and its chain: all that a thief of the process has at that moment."""
    made = Ledger(tmp_path)
    chain = made.chain()
    for _ in range(13):
        made.spawn(chain)
    assert chain.n == 40
    return made, chain


def fix_state(made: Ledger, chain: Chain, number: int, seal: bytes) -> None:
    """Write into the state file what suits the thief."""
    assert made.state is not None
    made.state.store(chain.slot, number, seal)


@pytest.mark.parametrize("seal", ["now", "zero", "stepped", "agg"])
def test_thief_cuts_and_fixes_the_state(stolen: tuple[Ledger, Chain], seal: str) -> None:
    """Whoever cuts a chain with stolen keys cannot make the seal of what is left."""
    made, chain = stolen
    assert chain.aggregate_key is not None
    os.truncate(made.path, offsets(made.path)[20])
    seals = {
        "now": chain.seal(),
        "zero": form.ZERO,
        "stepped": form.mac(chain.aggregate_key, chain.agg, form.ZERO),
        "agg": chain.agg,
    }
    fix_state(made, chain, 20, seals[seal])

    found = first(look(made), made, 20, 19, "aggregate-mismatch")
    assert found.chain == chain.chain


@pytest.mark.parametrize("told", ["checkpoint", "close"])
def test_thief_cuts_before_a_record_that_tells_the_aggregate(tmp_path: Path, told: str) -> None:
    """A checkpoint and a close tell the aggregate so far: that does not help to seal what is before them."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.spawn(chain)
    agg, upto = chain.agg, chain.n
    (made.checkpoint if told == "checkpoint" else made.close)(chain)
    os.truncate(made.path, offsets(made.path)[upto])
    for seal in (agg, form.mac(agg, b"safespawn state" + agg)):
        fix_state(made, chain, upto, seal)
        assert first(look(made), made, upto, upto - 1, "aggregate-mismatch").chain == chain.chain


def test_thief_empties_the_slot(stolen: tuple[Ledger, Chain]) -> None:
    """A slot without records has a seal too: nobody can take a chain back to its beginning."""
    made, chain = stolen
    os.truncate(made.path, offsets(made.path)[1])
    for seal in (form.ZERO, chain.seal(), chain.agg):
        fix_state(made, chain, 0, seal)
        assert told(look(made)) == [("ledger.jsonl", 1, "aggregate-mismatch")]
    os.truncate(made.path, 0)
    assert [finding.reason for finding in look(made).findings] == ["chain-missing"]


def test_thief_removes_the_state(stolen: tuple[Ledger, Chain]) -> None:
    """A state file that is gone is a finding, and so is one without the chain's slot."""
    made, _ = stolen
    os.truncate(made.path, offsets(made.path)[20])
    state = made.path.with_name("ledger.jsonl.state")
    os.truncate(state, 128)
    assert told(look(made)) == [("ledger.jsonl", 20, "state-missing")]

    state.unlink()
    assert told(look(made)) == [("ledger.jsonl.state", 0, "state-missing")]


def test_thief_cuts_and_goes_on(stolen: tuple[Ledger, Chain]) -> None:
    """Records that are written in the place of others have keys that come too late."""
    made, chain = stolen
    os.truncate(made.path, offsets(made.path)[20])
    chain.n, chain.previous = 20, form.sha256(lines_of(made.path)[-1][:-1])
    for _ in range(10):
        made.spawn(chain)

    found = first(look(made), made, 21, 20, "mac-mismatch")
    assert found.more == 29


def test_thief_changes_an_old_record(stolen: tuple[Ledger, Chain]) -> None:
    """The keys of an older record are gone: its MAC cannot be made again."""
    made, chain = stolen
    assert chain.record_key is not None
    lines = lines_of(made.path)
    body = lines[9].partition(b',"m":"')[0].replace(b"true", b"evil")
    lines[9] = body + b',"m":"' + form.mac(chain.record_key, body).hex().encode() + b'"}\n'
    made.path.write_bytes(b"".join(lines))

    first(look(made), made, 10, 9, "mac-mismatch")


def test_thief_opens_a_chain_of_the_past(stolen: tuple[Ledger, Chain]) -> None:
    """The key of an epoch that is over is gone: a chain that claims it has no MAC that fits."""
    made, _ = stolen
    assert made.keys
    forged = Chain("0193c5a0-0000-7000-8000-00000000beef", form.chain_key(made.keys.key, "x"), {"epoch": 0}, slot=1)
    assert made.state is not None
    forged.slot = made.state.claim(forged.chain, 0)
    made._opened(forged, None, {})

    first(look(made), made, 41, 0, "mac-mismatch")


def test_thief_writes_an_epoch_that_the_registry_does_not_have(stolen: tuple[Ledger, Chain]) -> None:
    """A chain with the stolen key of the epoch that is not registered is told."""
    made, _ = stolen
    assert made.keys
    assert made.state is not None
    name = "0193c5a0-0000-7000-8000-00000000beef"
    forged = Chain(name, form.chain_key(made.keys.key, name), {"epoch": made.keys.epoch}, made.keys.epoch)
    forged.slot = made.state.claim(name, made.keys.epoch)
    made._opened(forged, None, {})

    first(look(made), made, 41, None, "chain-unregistered")  # type: ignore[arg-type]


def test_records_after_the_theft_are_believed(stolen: tuple[Ledger, Chain]) -> None:
    """The limit of every local scheme: what the thief writes behind the last record has the right keys."""
    made, chain = stolen
    made.append(chain, "spawn.denied", {"who": {}, "what": {"argv": ["a lie"]}, "want": {}, "how": {}})

    result = look(made)
    assert result.ok
    assert any("somebody took it over" in text for text in result.limits)


def copies(made: Ledger, where: Path) -> Path:
    """Keep a copy of everything that the host has of a ledger."""
    return Path(shutil.copytree(made.path.parent, where))


def put_back(made: Ledger, kept: Path) -> None:
    """Put the copy back."""
    for path in made.path.parent.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(kept, made.path.parent, dirs_exist_ok=True)


@pytest.fixture
def older(tmp_path: Path) -> tuple[Ledger, Path]:
    """Return a ledger of which older copies were put back, and the lines that a witness has."""
    home = tmp_path / "home"
    home.mkdir()
    made = Ledger(home)
    chain = made.chain()
    made.spawn(chain)
    kept = copies(made, tmp_path / "kept")
    for _ in range(5):
        made.spawn(chain)
    checkpoint = made.checkpoint(chain)
    put_back(made, kept)
    witness = tmp_path / "witness"
    witness.write_bytes(checkpoint)
    return made, witness


def test_older_copy_of_everything_is_not_seen_here(older: tuple[Ledger, Path]) -> None:
    """Nothing on the host itself can tell that all of it is from an earlier day, and that is said."""
    result = look(older[0])

    assert result.ok
    assert any(text.startswith("no witness: older copies") for text in result.limits)


def test_witness_sees_an_older_copy(older: tuple[Ledger, Path]) -> None:
    """One checkpoint that is kept elsewhere tells how many records are missing."""
    made, witness = older

    (found,) = look(made, witness=[witness]).findings
    assert (found.file, found.line, found.n, found.reason) == (str(witness), 1, 19, "witness-missing")
    assert "16 records are missing: the witness has record 19, and the last here is 3" in found.text


# ------------------------------------------------------------------ every death of a writer


def test_every_cut_of_a_record_is_a_killed_writer(ledger: tuple[Ledger, Chain]) -> None:
    """Whatever part of the next record was written, with or without a newline after it, nobody tampered."""
    made, chain = ledger
    whole = made.path.read_bytes()
    line = chain.line("spawn.exit", {"exit": {"pid": 1, "rusage": {"utime": -1}, "list": [[], {}, "\u2026\\\""]}})
    for size in range(len(line) - 1):
        for end in (b"", b"\n"):
            made.path.write_bytes(whole + line[:size] + end)
            result = look(made)
            assert result.ok, (size, result.findings)
            assert noticed(result) == ({"uncommitted"} if size or end else set())
            assert result.counts["records"] == 50


def test_record_without_its_newline_counts(ledger: tuple[Ledger, Chain]) -> None:
    """Only the newline is missing: the record is whole, and it is told that something was cut."""
    made, chain = ledger
    made.write(chain.line("spawn.exit", {"exit": {}})[:-1])

    result = look(made)
    assert result.ok
    assert noticed(result) == {"uncommitted"}
    assert result.counts["records"] == 51


def test_every_cut_may_be_followed_by_another_process(ledger: tuple[Ledger, Chain]) -> None:
    """A process that knew nothing of the torn line goes on behind it; its record is found there."""
    made, chain = ledger
    other = made.chain()
    whole = made.path.read_bytes()
    torn = chain.line("chain.fork", {"child": "0193c5a0-0000-7000-8000-00000000beef"})
    nextone = made.append(other, "cred.change", {"who": {}, "change": {"call": "setuid"}})
    for size in range(len(torn)):
        made.path.write_bytes(whole + torn[:size] + nextone)
        result = look(made)
        assert result.ok, (size, result.findings)
        assert result.counts["records"] == 52 + (size == len(torn) - 1)


def test_refused_write_may_be_tried_again(ledger: tuple[Ledger, Chain]) -> None:
    """After a short write the number is free: the record that takes it later follows the one before."""
    made, chain = ledger
    line = chain.line("spawn.exit", {"exit": {}})
    made.write(line[:200] + b"\n")
    made.append(chain, "audit.degraded", {"lost": 1})
    made.close(chain)

    result = look(made)
    assert result.ok
    assert noticed(result) == {"uncommitted"}
    assert result.counts["records"] == 52


def test_record_whose_newline_was_refused(ledger: tuple[Ledger, Chain]) -> None:
    """It is struck out, and its number is free; who strikes out a record that was kept leaves a finding."""
    made, chain = ledger
    line = chain.line("spawn.exit", {"exit": {}})
    made.write(line[:-1] + b"?\n")
    made.append(chain, "audit.degraded", {"lost": 1})
    result = look(made)
    assert result.ok
    assert noticed(result) == {"uncommitted"}
    assert result.counts["records"] == 51

    edited(made.path, offsets(made.path)[31] - 1, b"", b"?")
    first(look(made), made, 31, 30, "torn-or-garbage")


def test_empty_lines_are_no_records(tmp_path: Path) -> None:
    """The document, this verifier, the slow checker, the reader and the library take an empty line alike, wherever it is."""
    made = Ledger(tmp_path)
    made.write(b"\n")
    chain = made.chain()
    made.write(b"\n\n")
    made.spawn(chain)
    made.rotate()
    made.write(b"\n")
    made.checkpoint(chain)
    made.write(b"\n")
    result = look(made)

    assert result.ok
    assert noticed(result) == {"uncommitted"}
    assert result.counts["records"] == chain.n == 5
    assert reference_checker.Checker(made.path, KEY).check() == []
    assert len([r for r in reader.records(str(made.path)) if not r.problem]) == 5

    path = tmp_path / "other.jsonl"
    path.write_bytes(b"\n" * 150)
    path.chmod(0o600)
    audit.open(path).close()
    assert path.read_bytes().startswith(b"\n" * 150 + b'{"v":1,"c":"')
    assert verify(path).counts["records"] == 2


def test_torn_line_that_cannot_be_the_next(ledger: tuple[Ledger, Chain]) -> None:
    """The beginning of a record that its chain has already, or does not follow, is no killed writer's."""
    made, _ = ledger
    old = lines_of(made.path)[10]
    made.write(old[:300] + b"\n")
    first(look(made), made, 51, 10, "torn-or-garbage")


@pytest.mark.parametrize(
    "step", ["slot", "registry", "epoch", "record", "half", "stored", "closing"]
)
def test_every_step_of_an_opening_may_be_the_last(tmp_path: Path, step: str) -> None:
    """A process may die between any two steps of opening and closing a chain: that is no tampering."""
    made = Ledger(tmp_path)
    made.spawn(made.chain())
    assert made.keys
    assert made.state is not None
    name = next(made.ids)
    slot = made.state.claim(name, made.keys.epoch)
    chain = Chain(name, form.chain_key(made.keys.key, name), {"epoch": made.keys.epoch}, made.keys.epoch, slot)
    made.store(chain)
    if step != "slot":
        made.keys.append("registry.chain", {"chain": name, "ledger": str(made.path)})
    if step not in ("slot", "registry"):
        made.keys.evolve()
    if step not in ("slot", "registry", "epoch"):
        line = chain.line("chain.open", {"who": {"pid": 4_000_000}, "library": "0", "parent": None, "keys": chain.keys})
        made.write(line)
        chain.took(line)
    if step == "half":
        made.state.half(slot, chain.n, chain.seal())
    if step in ("stored", "closing"):
        made.store(chain)
    if step == "closing":
        line = chain.line("chain.close", {"lost": 0, "agg": chain.agg.hex(), "counts": {}, "mirrors": {}})
        made.write(line)

    result = look(made)
    assert result.ok, result.findings
    assert noticed(result) == ({"chain-empty"} if step in ("registry", "epoch") else set())


def test_registered_process_that_died_is_passed_by_the_next(tmp_path: Path) -> None:
    """The next opening takes the epoch after the one that a killed process had begun to use."""
    made = Ledger(tmp_path)
    assert made.keys
    made.keys.append("registry.chain", {"chain": "0193c5a0-0000-7000-8000-00000000beef", "ledger": "/elsewhere"})
    made.keys.evolve()  # done by the next process, which finds one record more than the epoch says
    made.spawn(made.chain())

    assert look(made).ok


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from reference_ledger import Ledger
made = Ledger(Path({where!r}), seed={seed})
chains = [made.chain(), made.chain()]
print("begun", flush=True)
number = 0
while True:
    number += 1
    chain = chains[number % len(chains)]
    made.spawn(chain)
    if number % 7 == 0:
        made.checkpoint(chain)
    if number % 11 == 0:
        chains.append(made.chain())
    if number % 13 == 0:
        child = made.fork(chain)
        chains.append(made.open_fork(child, chain))
    if number % 17 == 0 and made.segment < {segments}:
        made.rotate()
    if len(chains) > 6:
        made.close(chains.pop(0))
"""


@contextlib.contextmanager
def writer(where: Path, *, seed: int = 1, segments: int = 50) -> Iterator[subprocess.Popen[str]]:
    """Run a process that writes a ledger as fast as it can; it is killed at the end."""
    text = WRITER.format(tests=str(helpers.TESTS), where=str(where), seed=seed, segments=segments)
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_live_writer_gives_no_finding(tmp_path: Path) -> None:
    """While a process writes, forks, opens chains and rotates, no look at its ledger finds anything."""
    with writer(tmp_path):
        seen = []
        while len(seen) < 25 or seen[-1] < 400:
            made = verify(tmp_path / "ledger.jsonl", key=KEY, registry=tmp_path / "keys")
            assert made.ok, made.findings
            assert noticed(made) <= {"uncommitted", "orphan-intent", "chain-empty", "ledger-absent"}
            seen.append(made.counts["records"])
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]


def test_killed_writers_give_no_finding(tmp_path: Path) -> None:
    """A writer that is killed at any moment leaves a ledger in which nobody tampered."""
    for seed in range(12):
        where = tmp_path / str(seed)
        where.mkdir()
        with writer(where, seed=seed) as process:
            while verify(where / "ledger.jsonl", key=KEY, registry=where / "keys").counts["records"] < 20 + 13 * seed:
                os.sched_yield()
            process.kill()
            process.wait()
        made = verify(where / "ledger.jsonl", key=KEY, registry=where / "keys")
        assert made.ok, made.findings


# ------------------------------------------------------------------ properties


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, bytes]:
    """Return a ledger of two closed chains whose records are mixed, and its bytes."""
    made = Ledger(tmp_path_factory.mktemp("two"))
    one, other = made.chain(), made.chain()
    made.spawn(one)
    made.spawn(other)
    made.open_fork(made.fork(one), one)
    made.checkpoint(other)
    made.close(one)
    made.close(other)
    return made, made.path.read_bytes()


@QUICK
@given(data=st.data())
def test_any_changed_byte_is_told_at_its_line(two: tuple[Ledger, bytes], data: st.DataObject) -> None:
    """A byte that is another, one more or one less anywhere is told, and first at the line where it is."""
    made, whole = two
    at = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["other", "more", "less"]))
    byte = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(list(b'{}"\n,:0 1a'))))
    new = whole[:at] + (b"" if how == "less" else bytes([byte])) + whole[at + (how != "more") :]
    if new == whole or (how == "more" and whole[at] == byte):
        return
    made.path.write_bytes(new)
    try:
        result = look(made)
    finally:
        made.path.write_bytes(whole)

    line = whole[:at].count(b"\n") + 1
    # A killed writer may leave an empty line, a "{", or a line without its end: that is a notice.
    torn = [found for found in result.notices if found.reason == "uncommitted"]
    reported = [(found.file, found.line) for found in (*result.findings[:1], *torn)]
    begin = whole.rfind(b"\n", 0, at) + 1
    is_newline, is_brace = whole[at : at + 1] == b"\n", how != "less" and byte == ord("{")
    line_ends = is_newline and (how == "less" or is_brace) or (how == "more" and at - begin <= is_brace)
    assert reported, "nothing was told"
    assert min(reported) == (str(made.path), line)
    assert line_ends or not result.ok


def test_every_byte_of_a_record_matters(ledger: tuple[Ledger, Chain]) -> None:
    """There is no byte of a record, its newline excepted, that can be changed without a finding at that line."""
    made, _ = ledger
    whole, places = made.path.read_bytes(), offsets(made.path)
    for at in range(places[30], places[31] - 1):
        made.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        result = look(made)
        assert told(result)[0][:2] == ("ledger.jsonl", 31), (at, result.findings)


@settings(QUICK, max_examples=300)
@given(junk=st.binary(max_size=400), at=st.integers(0, 6000), where=st.sampled_from(["ledger.jsonl", "ledger.jsonl.state", "keys/epoch", "keys/registry.jsonl"]))
def test_no_bytes_crash_it(two: tuple[Ledger, bytes], junk: bytes, at: int, where: str) -> None:
    """Whatever is in the ledger, the state file, the epoch and the registry, there is an answer."""
    made, _ = two
    path = made.path.parent / where
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + junk + whole[at + len(junk) // 2 :])
    try:
        look(made)
        look(made, key=None, without_key=True)
    finally:
        path.write_bytes(whole)


@QUICK
@given(junk=st.binary(max_size=3000))
def test_no_bytes_alone_crash_it(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """A file of anything has findings or no record: there is always an answer, and never that all is well."""
    where = tmp_path_factory.mktemp("junk")
    path = where / "ledger"
    (where / "ledger.state").write_bytes(junk)
    for data in (junk, b'{"v":1,"c":"' + junk, junk + b"\n" + junk):
        path.write_bytes(data)
        with contextlib.suppress(AuditError):
            verify(path, without_key=True, witness=[path])
        with contextlib.suppress(AuditError):
            assert not verify(path, key=KEY, witness=[where / "ledger.state"]).ok


def test_deep_and_long_json(tmp_path: Path) -> None:
    """Nesting beyond any bound, numbers beyond any width and lines beyond any length are garbage, and no more."""
    made = Ledger(tmp_path)
    start = '{"v":1,"c":"0193c5a0-0000-7000-8000-00000000beef","n":0,"p":"' + "0" * 64
    start += '","ev":"chain.open","sid":null,"t":1,"mono":1,"boot":"","mode":"require",'
    mac = ',"m":"' + "0" * 64 + '"}\n'
    for member in ('"keys":' + "[" * 3000, '"keys":{"epoch":' + "9" * 5000 + "}", '"keys":' + '{"a":' * 1500 + "1" + "}" * 1500):
        made.write((start + member + mac).encode())
        made.write((start + member + "}\n").encode())
    made.write(b"x" * 3_000_000 + b"\n" + b"{" * 100_000 + b"\n")

    result = look(made)
    assert set(reasons(result)) <= {"chain-unknown", "torn-or-garbage"}
    assert not result.ok


# ------------------------------------------------------------------ against the reference


def history(rnd: random.Random, where: Path) -> Ledger:
    """Write a random history: chains, forks, segments, killed writers, refused writes."""
    made = Ledger(where, seed=rnd.randrange(1000))
    chains = [made.chain()]
    for _ in range(rnd.randrange(3, 25)):
        chain = rnd.choice(chains)
        step = rnd.random()
        if step < 0.15:
            chains.append(made.chain())
        elif step < 0.25:
            child = made.fork(chain)
            if rnd.random() < 0.8:
                chains.append(made.open_fork(child, chain))
        elif step < 0.35:
            made.checkpoint(chain)
        elif step < 0.42:
            made.rotate()
        elif step < 0.5:
            line = chain.line("spawn.exit", {"exit": {"a": [1, {"b": "x"}]}})
            made.write(line[: rnd.randrange(1, len(line) - 1)] + (b"\n" if rnd.random() < 0.6 else b""))
            if rnd.random() < 0.5:
                chains.remove(chain)
                chains = chains or [made.chain()]
        else:
            made.spawn(chain, upto=rnd.choice(["intent", "started", "exit"]))
    return made


def tamper(rnd: random.Random, made: Ledger) -> None:
    """Do something to one of the segments."""
    path = rnd.choice([segment for segment in made.segments() if segment.stat().st_size])
    data, lines = bytearray(path.read_bytes()), lines_of(path)
    at, i, j = rnd.randrange(len(data)), rnd.randrange(len(lines)), rnd.randrange(len(lines))
    way = rnd.randrange(9)
    if way == 0:
        data[at] = rnd.randrange(256)
    elif way == 1:
        data[at:at] = bytes([rnd.randrange(256)])
    elif way == 2:
        del data[at]
    elif way == 3:
        del data[at:]
    elif way == 4:
        data[at] = rnd.choice(b'{}[]",:\\ 0a\n')
    elif way == 5:
        data[at:at] = rnd.choice([b"{", b"\n", b"}", b'{"v":1,"c":"', b"x\n"])
    elif way == 6:
        del lines[i]
    elif way == 7:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines.insert(j, lines[i])
    path.write_bytes(data if way < 6 else b"".join(lines))


@pytest.mark.parametrize("part", range(8))
def test_verifier_and_reference_agree(tmp_path: Path, part: int) -> None:
    """Of random histories and up to two attacks the slow checker says the same: file, line, byte, record, reason."""
    for seed in range(part * 60, part * 60 + 60):
        rnd = random.Random(seed)
        where = tmp_path / str(seed)
        where.mkdir()
        made = history(rnd, where)
        attacks = rnd.randrange(3)
        for _ in range(attacks):
            tamper(rnd, made)
        result = look(made)
        expected = reference_checker.Checker(made.path, KEY).check()
        assert [tuple(vars(f).values())[:6] for f in result.findings] == [tuple(f) for f in expected], seed
        assert attacks or result.ok


# ------------------------------------------------------------------ forks and many chains


def test_forks_of_forks(tmp_path: Path) -> None:
    """Each child's keys follow from its parent's record, whatever the depth; silent ones are counted."""
    made = Ledger(tmp_path)
    chain = made.chain()
    for _ in range(40):
        child = made.fork(chain)
        made.fork(chain)
        made.spawn(chain)
        chain = made.open_fork(child, chain)
    made.close(chain)

    result = look(made)
    assert result.ok
    assert (result.counts["chains"], result.counts["silent"], result.counts["compared"]) == (41, 40, 41)


def test_fork_whose_record_was_taken_out(tmp_path: Path) -> None:
    """The parent has a gap; the child's keys are still found, and it has no finding of its own."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = made.open_fork(made.fork(parent), parent)
    made.spawn(child)
    made.spawn(parent)
    lines = lines_of(made.path)
    made.path.write_bytes(b"".join(lines[:1] + lines[2:]))

    (found,) = look(made).findings
    assert (found.chain, found.reason, found.line) == (parent.chain, "gap", 6)


def test_fork_that_the_parent_does_not_tell(tmp_path: Path) -> None:
    """A thief who makes a chain out of a parent's later key is told by the record that it names."""
    made = Ledger(tmp_path)
    parent = made.chain()
    forged = parent.child("0193c5a0-0000-7000-8000-00000000beef")
    made.append(parent, "cred.change", {"who": {}, "change": {}})
    made.open_fork(forged, parent)

    (found,) = look(made).findings
    assert (found.chain, found.reason) == (forged.chain, "fork-mismatch")


@pytest.mark.parametrize("goes_on", [True, False])
def test_fork_whose_record_was_lost(tmp_path: Path, goes_on: bool) -> None:
    """A full disk stops no fork: the number goes to the record that tells of the loss, if there is one."""
    made = Ledger(tmp_path)
    parent = made.chain()
    made.spawn(parent)
    child = parent.child(next(made.ids))
    if goes_on:
        made.append(parent, "audit.degraded", {"lost": 1})
    made.open_fork(child, parent)

    result = look(made)
    assert result.ok, result.findings
    assert noticed(result) == {"fork-untold"}


def test_fork_tells_of_a_tail_that_was_cut(tmp_path: Path) -> None:
    """Without the state file a child's first record still tells how far its parent had come."""
    made = Ledger(tmp_path)
    parent = made.chain()
    made.spawn(parent)
    child = made.open_fork(made.fork(parent), parent)
    made.path.write_bytes(b"".join(line for line in lines_of(made.path) if b"chain.fork" not in line))

    (found,) = look(made, state=False).findings
    assert (found.chain, found.reason, found.line, found.n) == (parent.chain, "tail-truncated", 5, 4)
    assert child.chain != parent.chain


def test_parent_that_is_missing_whole(tmp_path: Path) -> None:
    """A child tells of a parent, of which ledger, state file and registry know nothing any more."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = made.open_fork(made.fork(parent), parent)
    made.spawn(child)
    made.path.write_bytes(b"".join(line for line in lines_of(made.path) if child.chain.encode() in line[:60]))

    found = {(f.chain, f.reason) for f in look(made, state=False, registry=None).findings}
    assert found == {(child.chain, "chain-unknown")}
    found = {(f.chain, f.reason) for f in look(made, state=False).findings}
    assert found == {(parent.chain, "chain-missing")}


# -- a forked child was taken over: it has the keys of its own chain, and can write the files anew


def lines_by(made: Ledger, path: Path, chain: Chain) -> list[bytes]:
    """Return the lines of a chain in a file."""
    return [line for line in lines_of(path) if json.loads(line)["c"] == chain.chain]


def anew(chain: Chain, lines: list[bytes]) -> list[bytes]:
    """Return the records of another chain with the keys of this one, and another program in them."""
    forged = []
    for line in lines:
        told = json.loads(line)
        members = {name: told[name] for name in ("who", "parent", "what", "how", "outcome", "exit") if name in told}
        if "what" in told:
            members["what"] = {**told["what"], "argv": ["/bin/false"]}
        if told["ev"] == "chain.open":
            members["keys"] = chain.keys
        forged.append(chain.line(told["ev"], members, told["sid"]))
        chain.took(forged[-1])
    return forged


@pytest.mark.parametrize("kind", ["registered", "sibling"])
def test_thief_adopts_a_chain(tmp_path: Path, kind: str) -> None:
    """Whoever tells, before anybody else, that another chain is a fork of theirs cannot write it anew."""
    made = Ledger(tmp_path)
    parent = made.chain()
    thief = made.open_fork(made.fork(parent), parent)
    kept = lines_of(made.path)
    victim = made.chain() if kind == "registered" else made.open_fork(made.fork(parent), parent)
    made.spawn(victim)
    others = [line for line in lines_by(made, made.path, parent) if line not in kept]
    assert look(made).ok

    adopted = thief.child(victim.chain)
    telling = thief.line("chain.fork", {"child": victim.chain})
    forged = anew(adopted, lines_by(made, made.path, victim))
    thief.took(telling)
    made.path.write_bytes(b"".join([*kept, telling, *forged, *others]))
    made.store(thief)
    fix_state(made, victim, adopted.n, adopted.seal())

    (found,) = look(made).findings
    teller = thief if kind == "registered" else parent
    assert (found.chain, found.reason) == (teller.chain, "fork-mismatch")
    assert victim.chain in found.text


def test_thief_adopts_a_chain_by_a_record_that_is_retired(tmp_path: Path) -> None:
    """The parent tells whose child a chain is, also where the record that is named instead is not here any more."""
    made = Ledger(tmp_path)
    parent = made.chain()
    thief = made.open_fork(made.fork(parent), parent)
    keys, key = {"parent": thief.chain, "n": thief.n}, thief.record_key
    made.spawn(thief)
    older_segment = made.rotate()
    made.spawn(thief)
    victim = made.open_fork(made.fork(parent), parent)
    made.spawn(victim)
    second = made.rotate()
    made.spawn(parent)
    made.retire(older_segment)
    assert look(made).ok

    assert key is not None
    adopted = Chain(victim.chain, form.fork_key(key, victim.chain), keys, clock=made.clock)
    own = lines_by(made, second, victim)
    others = [line for line in lines_of(second) if line not in own]
    second.write_bytes(b"".join([*anew(adopted, own), *others]))
    fix_state(made, victim, adopted.n, adopted.seal())

    (found,) = look(made).findings
    assert (found.chain, found.n, found.reason) == (victim.chain, 0, "fork-mismatch")


@pytest.mark.parametrize("with_registry", [True, False])
def test_thief_foretells_the_keys_of_a_chain(tmp_path: Path, with_registry: bool) -> None:
    """Where the opening of a chain was retired, nobody but who retired it can say where its keys come from."""
    made = Ledger(tmp_path)
    parent = made.chain()
    victim = made.open_fork(made.fork(parent), parent)
    older_segment = made.rotate()
    thief = made.open_fork(made.fork(parent), parent)
    made.spawn(victim)
    second = made.rotate()
    made.spawn(parent)
    made.retire(older_segment)
    more: dict[str, Any] = {} if with_registry else {"registry": None}
    assert look(made, **more).ok  # its slot has the epoch of its parent, which does not make its keys

    own = lines_by(made, second, victim)
    n, previous = (json.loads(own[0])[name] for name in ("n", "p"))
    adopted = thief.child(victim.chain)
    keys = {"parent": thief.chain, "n": thief.n}
    while adopted.n < n:
        adopted.took(adopted.line("cred.change", {}))
    adopted.previous = bytes.fromhex(previous)
    early = Chain(next(made.ids), None, None, clock=form.Clock(t=1_700_000_000_000_000_000))
    opening = early.line("chain.open", {"who": {}, "keys": None})
    early.took(opening)
    heads = {victim.chain: [n - 1, previous, keys]}
    foretelling = early.line("segment.retired", {"segment": older_segment.name, "heads": heads})
    others = [line for line in lines_of(second) if line not in own]
    second.write_bytes(b"".join([opening, foretelling, *others, *anew(adopted, own)]))
    fix_state(made, victim, adopted.n, adopted.seal())

    found = {(one.chain, one.line, one.reason) for one in look(made, **more).findings}
    assert (victim.chain, 2, "retirement-unproven") in found


def test_many_chains(tmp_path: Path) -> None:
    """Thousands of chains, mixed, in a table that must grow many times."""
    made = Ledger(tmp_path)
    chains = [made.chain() for _ in range(3000)]
    out = []
    for _ in range(2):
        for chain in chains:
            line = chain.line("guard.config", {"who": {}, "guards": {}})
            chain.took(line)
            out.append(line)
    made.write(b"".join(out))
    for chain in chains:
        made.store(chain)

    result = look(made)
    assert result.ok
    assert (result.counts["chains"], result.counts["records"]) == (3000, 9000)
    assert noticed(result) == set()


def test_too_many_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the answer is that nothing can be said, and not a table without end."""
    made = Ledger(tmp_path)
    for _ in range(300):
        made.chain()
    monkeypatch.setattr(_verify_scan, "CHAINS_MAX", 256)

    with pytest.raises(AuditError, match="more than 256 chains") as caught:
        look(made)
    assert caught.value.errno == errno.E2BIG


def test_number_that_is_far_away(ledger: tuple[Ledger, Chain], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are not followed over any number of records that somebody names."""
    made, chain = ledger
    monkeypatch.setattr(_verify_scan, "STEPS_MAX", 10_000)
    chain.n = 2**60
    made.write(chain.line("spawn.exit", {"exit": {}}))

    (found,) = look(made).findings
    assert (found.line, found.reason) == (51, "gap")
    assert "too many to follow the keys" in found.text


def test_keys_are_wiped(ledger: tuple[Ledger, Chain]) -> None:
    """When a scanner is closed nothing of a key is left in its table."""
    scanner = _verify_scan.Scanner()
    with scanner:
        scanner.open(bytes(15) + b"\1", KEY)
        table = _verify_scan.ffi.buffer(scanner._keep[0])
        assert any(bytes(table))
    assert not any(bytes(table))


# ------------------------------------------------------------------ segments


@pytest.fixture
def rotated(tmp_path: Path) -> tuple[Ledger, Chain]:
    """Return a ledger of three older segments and the one that is written."""
    made = Ledger(tmp_path)
    chain = made.chain()
    for _ in range(3):
        made.spawn(chain)
        made.rotate()
        made.checkpoint(chain, "segment")
    return made, chain


def test_chain_goes_on_in_the_next_segment(rotated: tuple[Ledger, Chain]) -> None:
    """Segments are read in the order of their numbers, however many digits they have."""
    made, chain = rotated
    for _ in range(9):
        made.rotate()
        made.spawn(chain)

    result = look(made)
    assert result.ok
    assert result.counts["segments"] == 13


def test_segment_that_is_missing(rotated: tuple[Ledger, Chain]) -> None:
    """A segment that was removed is named, and the gap that it leaves."""
    made, chain = rotated
    made.path.with_name("ledger.jsonl.2").unlink()

    assert told(look(made)) == [("ledger.jsonl.3", 1, "gap"), ("ledger.jsonl.2", 0, "segment-missing")]


def test_segment_retired_by_a_record(rotated: tuple[Ledger, Chain]) -> None:
    """What a record says was retired is no gap: keys and aggregate are followed over it."""
    made, chain = rotated
    made.retire(made.path.with_name("ledger.jsonl.1"))
    made.spawn(chain)

    result = look(made)
    assert result.ok, result.findings
    assert result.counts["compared"] == 2
    assert any("retired" in text for text in result.checked)


def retire_older(made: Ledger, chain: Chain, thief: Chain | None = None) -> None:
    """Leave two segments, ``chain`` going on in the second, and retire the first; by the chain of a thief."""
    older_segment = made.rotate()
    made.checkpoint(chain)
    made.rotate()
    made.retire(older_segment, thief)


def test_chain_that_was_retired_whole(tmp_path: Path) -> None:
    """A chain of which all records were retired is not missed; one record of it too few is."""
    made = Ledger(tmp_path)
    gone, chain = made.chain(), made.chain()
    made.close(gone)
    retire_older(made, chain)
    assert look(made).ok

    fix_state(made, gone, 3, gone.agg)
    (found,) = look(made).findings
    assert (found.reason, found.chain) == ("chain-missing", gone.chain)
    assert "the state file says 3, and 2 were retired" in found.text


def test_retirement_that_does_not_fit(rotated: tuple[Ledger, Chain]) -> None:
    """A segment that is younger than the one that was retired is missed."""
    made, chain = rotated
    made.retire(made.path.with_name("ledger.jsonl.1"))
    made.path.with_name("ledger.jsonl.2").unlink()

    assert sorted(reasons(look(made))) == ["gap", "segment-missing"]


def test_retirement_is_not_believed_of_a_chain_without_keys(rotated: tuple[Ledger, Chain]) -> None:
    """Whoever removes a segment and says in a chain without keys that it was retired is not believed."""
    made, chain = rotated
    forged = Chain("0193c5a0-0000-7000-8000-00000000beef", None, None)
    line = forged.line("chain.open", {"who": {}, "keys": None})
    made.write(line)
    forged.took(line)
    heads = {chain.chain: [3, form.sha256(lines_of(made.path.with_name("ledger.jsonl.1"))[-1][:-1]).hex()]}
    made.write(forged.line("segment.retired", {"segment": "ledger.jsonl.1", "heads": heads}))
    made.path.with_name("ledger.jsonl.1").unlink()

    assert sorted(reasons(look(made))) == ["gap", "segment-missing", "unkeyed"]


def test_seal_needs_no_checkpoint(tmp_path: Path) -> None:
    """After a retirement the length of a chain is checked before a checkpoint has told the aggregate."""
    made = Ledger(tmp_path)
    chain, other = made.chain(), made.chain()
    older_segment = made.rotate()
    made.spawn(chain)
    made.checkpoint(other)
    made.rotate()
    made.retire(older_segment)

    result = look(made)
    assert result.ok
    assert noticed(result) == {"retired"}
    assert result.counts["compared"] == 3


@pytest.mark.parametrize(("left", "says"), [(0, 0), (0, -1), (1, 0), (1, 1), (2, 2)])
def test_chain_is_cut_to_what_was_retired(tmp_path: Path, left: int, says: int) -> None:
    """What is retired has no aggregate here: nobody can end a chain there, or before its next checkpoint."""
    made = Ledger(tmp_path)
    victim, other = made.chain(), made.chain()
    made.spawn(victim)
    retired = victim.n
    older_segment = made.rotate()
    made.spawn(victim)  # of a thread that had not followed yet
    made.checkpoint(victim)
    made.checkpoint(other)
    made.rotate()
    made.retire(older_segment)
    made.spawn(victim)
    assert look(made).ok

    for segment in made.segments():
        kept = [line for line in lines_of(segment) if (r := json.loads(line))["c"] != victim.chain or r["n"] < retired + left]
        segment.write_bytes(b"".join(kept))
    fix_state(made, victim, retired + says, b"\xee" * 32)
    (found,) = look(made).findings
    assert (found.reason, found.chain) == ("aggregate-mismatch", victim.chain)


def test_slot_that_vanishes_during_the_look_excuses_nothing(tmp_path: Path) -> None:
    """Slots are given back when the files are gone. Somebody else emptied one whose records are still here."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.spawn(chain)
    slot = made.state.path.read_bytes()[-128:] if made.state else b""

    def empty(done: int, total: int) -> None:
        assert made.state is not None
        made.state.path.write_bytes(made.state.path.read_bytes()[:-128] + bytes(128))

    assert reasons(look(made, progress=empty)) == ["state-missing"]
    assert made.state is not None
    made.state.path.write_bytes(made.state.path.read_bytes()[:-128] + slot)
    os.truncate(made.path, offsets(made.path)[2])
    fix_state(made, chain, 0, b"\xee" * 32)
    assert reasons(look(made, progress=empty)) == ["aggregate-mismatch"]


@pytest.mark.parametrize("with_keys", [True, False])
def test_child_whose_opening_was_retired(tmp_path: Path, with_keys: bool) -> None:
    """Where its keys come from is found in the heads, when they tell it; else its records cannot be checked."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = made.open_fork(made.fork(parent), parent)
    segment = made.rotate()
    made.spawn(child)
    made.checkpoint(child)
    made.checkpoint(parent)
    made.rotate()
    made.retire(segment, with_keys=with_keys)

    result = look(made)
    assert result.ok is with_keys
    assert {found.chain for found in result.findings} == (set() if with_keys else {child.chain})


@pytest.mark.parametrize("with_registry", [True, False])
def test_child_that_begins_when_its_fork_is_retired(tmp_path: Path, with_registry: bool) -> None:
    """Its record 0 tells where its keys come from: its slot has the epoch of its parent, which is something else."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = made.fork(parent)
    segment = made.rotate()
    made.spawn(parent)
    made.open_fork(child, parent)
    made.rotate()
    made.retire(segment)

    result = look(made) if with_registry else look(made, registry=None)
    assert result.ok, result.findings


def test_child_of_a_lost_fork_without_the_registry(tmp_path: Path) -> None:
    """Record 0 of its parent tells where the keys of both come from."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = parent.child(next(made.ids))
    made.append(parent, "audit.degraded", {"lost": 1})
    made.open_fork(child, parent)

    for more in ({}, {"state": False}):
        result = look(made, registry=None, **more)
        assert result.ok, result.findings
        assert noticed(result) == {"fork-untold"}


def test_retirement_that_was_retired(tmp_path: Path) -> None:
    """The heads of a segment include those that its own records of retirement told: nothing is missed later."""
    made = Ledger(tmp_path)
    gone, chain = made.chain(), made.chain()
    made.close(gone)
    made.rotate()
    for number in range(1, 4):
        made.checkpoint(chain)
        made.rotate()
        made.retire(made.path.with_name(f"ledger.jsonl.{number}"))

    assert look(made).ok


# -- who may say that a segment was retired


def first_gone(made: Ledger, *more: str) -> None:
    """Assert that the absence of segment 1 is told, whatever a record says of it, and what more there is."""
    result = look(made)
    assert {"segment-missing", "retirement-unproven", *more} <= set(reasons(result)), result.findings
    assert "retired" not in noticed(result)


@pytest.mark.parametrize("way", ["daemon", "second opening", "child", "child of a retirement", "unregistered"])
def test_thief_of_another_chain_retires_a_segment(rotated: tuple[Ledger, Chain], way: str) -> None:
    """Only a chain that an epoch began, and whose record 0 says what it is for, may speak of segments."""
    made, chain = rotated
    retires = {"retires": str(made.path)}
    by = chain
    if way == "second opening":
        made.append(chain, "chain.open", {"who": {}, "keys": {"epoch": 1}, **retires})
    elif way.startswith("child"):
        parent = made.retiring() if "retirement" in way else chain
        by = made.fork(parent)
        if "retirement" in way:
            made.open_fork(by, parent, **retires)
        else:  # it makes its own record 0
            made.open_fork(by, parent, keys={"epoch": 1}, **retires)
    elif way == "unregistered":  # its keys are of no epoch either
        by = Chain(next(made.ids), bytes(32), {"epoch": 9})
        by.slot = made.state.claim(by.chain, 9)  # type: ignore[union-attr]
        made.append(by, "chain.open", {"who": {}, "keys": by.keys, **retires})
    made.retire(made.path.with_name("ledger.jsonl.1"), by)

    result = look(made)
    assert {"gap", "segment-missing"} <= set(reasons(result)), result.findings
    assert ("retirement-unproven" in reasons(result)) == (way != "unregistered")
    assert "retired" not in noticed(result)
    assert result.counts["retired"] == 0


@pytest.mark.parametrize(
    "name",
    ["ledger.jsonl", "ledger.jsonl.01", "ledger.jsonl.0", "../ledger.jsonl.1", "other.jsonl.1", "ledger.jsonl.1\n", "", 1, None],
)
def test_retirement_of_what_is_no_segment_of_ours(rotated: tuple[Ledger, Chain], name: object) -> None:
    """The name must be that of a segment of this ledger, to the letter."""
    made, _ = rotated
    made.retire(made.path.with_name("ledger.jsonl.1"), segment=name)
    first_gone(made, "gap")


def test_retirement_copied_from_another_ledger(rotated: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """Lines of another ledger of the host, with the right keys and a segment of the same name, excuse nothing here."""
    made, _ = rotated
    assert made.keys
    assert made.state
    elsewhere = "/elsewhere/ledger.jsonl"
    for path, told_path in ((elsewhere, elsewhere), (elsewhere, str(made.path)), (str(made.path), elsewhere)):
        slot = made.state.claim(name := next(made.ids), made.keys.epoch)
        foreign = made.keys.open_chain(name, path)
        foreign.slot = slot
        made._opened(foreign, None, {}, {"retires": told_path})
        made.append(foreign, "segment.retired", {"segment": "ledger.jsonl.1", "heads": {}})
    made.path.with_name("ledger.jsonl.1").unlink()

    result = look(made)
    assert reasons(result).count("retirement-unproven") == 3
    assert {"gap", "segment-missing"} <= set(reasons(result))


@pytest.mark.parametrize(
    ("here", "told_number", "missing_file"),
    [
        ((2, 3), 3, "ledger.jsonl.1"),  # it is here; what is gone is another
        ((1, 3), 2, "ledger.jsonl.2"),  # not the oldest
        ((2, 3), 4, "ledger.jsonl.1"),  # never was
        ((2, 3), 10**17, "ledger.jsonl.1"),
        ((), 3, "ledger.jsonl.4"),  # one is always left
        ((3,), 1, "ledger.jsonl.2"),  # a hole between
    ],
)
def test_retirement_out_of_order(
    rotated: tuple[Ledger, Chain], here: tuple[int, ...], told_number: int, missing_file: str
) -> None:
    """Also who may retire says so of the oldest segments, one after the other, and not of the last one."""
    made, _ = rotated
    own = made.retiring()
    made.append(own, "segment.retired", {"segment": f"ledger.jsonl.{told_number}", "heads": {}})
    made.close(own)
    for number in {1, 2, 3} - set(here):
        made.path.with_name(f"ledger.jsonl.{number}").unlink()

    assert missing_file in [Path(f.file).name for f in look(made).findings if f.reason == "segment-missing"]


def test_retirement_of_a_segment_that_is_younger_than_the_record(rotated: tuple[Ledger, Chain]) -> None:
    """Nobody deletes the file that is written, or one that comes after it."""
    made, _ = rotated
    own = made.retiring()
    made.append(own, "segment.retired", {"segment": "ledger.jsonl.4", "heads": {}})
    made.close(own)
    made.rotate()
    made.rotate()
    assert reasons(look(made)) == ["retirement-unproven"]


def test_thief_excuses_a_whole_chain(tmp_path: Path) -> None:
    """The head of a chain in the record of a thief is no head: the chain is missed, and so is its segment."""
    made = Ledger(tmp_path)
    victim, chain = made.chain(), made.chain()
    made.spawn(victim)
    retire_older(made, chain, chain)

    result = look(made)
    assert ("chain-missing", victim.chain) in [(f.reason, f.chain) for f in result.findings]
    assert {"gap", "retirement-unproven", "segment-missing"} <= set(reasons(result))


@pytest.mark.parametrize("lie", ["here", "epoch", "more", "no slot", "no chain", "two hashes", "longer"])
def test_heads_against_everything_else(tmp_path: Path, lie: str) -> None:
    """What is told of chains must fit what is here, the registry and the state file."""
    made = Ledger(tmp_path)
    gone, chain, rest = made.chain(), made.chain(), made.chain()
    made.spawn(gone)
    segment = made.rotate()
    made.spawn(rest)
    begun_later = made.chain()
    made.rotate()
    heads = {one.chain: [one.n - 1, one.previous.hex(), one.keys] for one in (gone, chain)}
    heads[rest.chain] = [0, lines_hash(segment, rest), rest.keys]
    name, reason = gone.chain, "retirement-unproven"
    if lie == "here":
        name = begun_later.chain
        heads[name] = [0, begun_later.previous.hex(), begun_later.keys]
    elif lie == "epoch":
        heads[name][2] = {"epoch": 7}
    elif lie == "more":
        heads[name][0], reason = gone.n + 1, "state-behind"
    elif lie == "no slot":
        state = Path(f"{made.path}.state")
        state.write_bytes(state.read_bytes()[:128] + bytes(128) + state.read_bytes()[256:])
        reason = "state-missing"
    elif lie == "no chain":
        name, reason = next(made.ids), "chain-unregistered"
        heads[name] = [3, "0" * 64, {"epoch": 3}]
        made.state.claim(name, 3)  # type: ignore[union-attr]
        made.state.store(made.state.slots, 4, form.ZERO)  # type: ignore[union-attr]
    elif lie == "longer":
        name, reason = rest.chain, "gap"
        heads[name] = [2, "0" * 64, rest.keys]
    own = made.retiring()
    told_heads: dict[str, Any] = {"segment": segment.name, "sha256": "", "bytes": 1, "heads": heads}
    made.append(own, "segment.retired", told_heads)
    if lie == "two hashes":
        name = own.chain
        made.append(own, "segment.retired", {**told_heads, "heads": {gone.chain: [gone.n - 1, "1" * 64]}})
    made.close(own)
    segment.unlink()

    result = look(made)
    assert reason in reasons(result), result.findings
    assert {f.chain for f in result.findings} == {name}


def lines_hash(path: Path, chain: Chain) -> str:
    """Return the hash of the last line of a chain in a file."""
    return form.sha256([line for line in lines_of(path) if chain.chain.encode() in line[:60]][-1][:-1]).hex()


def test_head_that_a_witness_disproves(tmp_path: Path) -> None:
    """Also when the witness has later records, which are here."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.spawn(chain)
    segment = made.rotate()
    made.spawn(chain)
    made.rotate()
    witness = tmp_path / "witness"
    false = lines_of(segment)[-1].replace(b'"pid":9', b'"pid":8')
    witness.write_bytes(false + b"".join(lines_of(made.path.with_name("ledger.jsonl.2"))))
    made.retire(segment)

    (found,) = look(made, witness=[witness]).findings
    assert (found.reason, found.n) == ("witness-mismatch", 3)


@pytest.mark.parametrize("deleted", [0, 1])
def test_retirement_that_was_interrupted(rotated: tuple[Ledger, Chain], deleted: int) -> None:
    """A process may be killed between the record and the deletion; the next one tells of the segment again."""
    made, _ = rotated
    for number in (1, 2):
        path = made.path.with_name(f"ledger.jsonl.{number}")
        data = path.read_bytes()
        made.retire(path)
        if number > deleted:
            path.write_bytes(data)
    result = look(made)
    assert result.ok, result.findings
    assert "retired-here" in noticed(result)

    for number in range(deleted + 1, 3):
        made.retire(made.path.with_name(f"ledger.jsonl.{number}"))
    result = look(made)
    assert result.ok, result.findings
    assert noticed(result) == {"retired"}


def test_retirements_are_listed(rotated: tuple[Ledger, Chain], key_file: Path) -> None:
    """Each process that retired segments has a line: which ones, when, and the record."""
    made, _ = rotated
    own = made.retiring()
    for number in (1, 2):
        made.retire(made.path.with_name(f"ledger.jsonl.{number}"), own)
    made.close(own)
    code, out, _ = command(made.path, "--key-file", key_file, "--keys", made.path.parent / "keys")

    assert code == 0
    (line,) = [line for line in out.splitlines() if " retired: " in line and line.startswith("/")]
    assert f" {own.chain} 1 retired: ledger.jsonl.1 to ledger.jsonl.2: retired at 2026-11-" in line
    assert "by process 4000000" in line


def test_copy_of_a_ledger_with_retirements(rotated: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """A copy has another name: the registry tells that it is the same ledger, without it that is noticed."""
    made, _ = rotated
    made.retire(made.path.with_name("ledger.jsonl.1"))
    copy = tmp_path / "copy" / "elsewhere"
    copy.parent.mkdir()
    for number in ("", ".2", ".3"):
        shutil.copy(f"{made.path}{number}", f"{copy}{number}")

    result = verify(copy, key=KEY, state=False, registry=made.path.parent / "keys")
    assert result.ok, result.findings
    assert noticed(result) == {"retired"}
    result = verify(copy, key=KEY, state=False)
    assert result.ok, result.findings
    assert noticed(result) == {"retired", "other-ledger"}


def test_retirement_of_the_library_stays_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process begins a new segment meanwhile, and the one with the records is retired later: nothing is missed."""
    key = bytes.fromhex(audit.keys.initialise(tmp_path / "keys"))
    path = tmp_path / "ledger.jsonl"
    with audit.open(path, keys=tmp_path / "keys") as ledger:
        for _ in range(3):
            ledger.rotate()
        real, others = os.unlink, iter([ledger.rotate])

        def unlink(name: str) -> None:
            real(name)
            for turn in others:
                turn()
                audit.Ledger.checkpoint(ours[0])

        ours: list[audit.Ledger] = []
        begin = audit.retention._Retiring._begin
        monkeypatch.setattr(audit.retention._Retiring, "_begin", lambda self: (ours.append(self), begin(self))[1])
        monkeypatch.setattr(os, "unlink", unlink)
        assert len(audit.retention.retire(path, keep=1, keys=tmp_path / "keys")) == 2
        monkeypatch.undo()
        records = [json.loads(line) for line in Path(f"{path}.4").read_bytes().splitlines()]
        mine = [(r["ev"], r.get("retires")) for r in records if r["c"] == records[-1]["c"]]
        assert mine[0] == ("chain.open", str(path))
        assert [event for event, _ in mine[1:]] == ["segment.retired", "checkpoint", "segment.retired", "chain.close"]
        for _ in range(2):
            made = verify(path, key=key, registry=tmp_path / "keys")
            assert made.ok, made.findings
            ledger.rotate()
            audit.retention.retire(path, keep=1, keys=tmp_path / "keys")
    made = verify(path, key=key, registry=tmp_path / "keys")
    assert made.ok, made.findings


def test_retired_record_behind_a_torn_line(tmp_path: Path) -> None:
    """A record on one line with the beginning of another is told in the heads as any."""
    key = bytes.fromhex(audit.keys.initialise(tmp_path / "keys"))
    path = tmp_path / "ledger.jsonl"
    with audit.open(path, keys=tmp_path / "keys") as ledger:
        ledger.checkpoint()
        lines = lines_of(path)
        path.write_bytes(lines[0] + lines[0][:100] + lines[1])
        ledger.rotate()
        ledger.rotate()
        audit.retention.retire(path, keep=1, keys=tmp_path / "keys")
    made = verify(path, key=key, registry=tmp_path / "keys")
    assert made.ok, made.findings
    assert made.counts["retired"] == 1


def test_rotation_in_the_middle_of_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that is renamed between the listing and the opening is neither missed nor read twice."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.spawn(chain)
    real, left = _verify_segments.open_file, [3]

    def opening(path: str) -> int:
        if left[0] and "ledger.jsonl" in path and not path.endswith(".state"):
            left[0] -= 1
            made.spawn(chain)
            made.rotate()
            made.spawn(chain)
        return real(path)

    monkeypatch.setattr(_verify_segments, "open_file", opening)
    result = look(made)
    assert result.ok, result.findings
    assert result.counts["records"] == chain.n == 22
    assert result.counts["segments"] == 4


def test_interrupted_rotation(rotated: tuple[Ledger, Chain]) -> None:
    """A process that died between the renaming and the new file leaves older segments only."""
    made, _ = rotated
    made.rotate()
    made.path.unlink()

    result = look(made)
    assert result.ok
    assert noticed(result) == {"ledger-absent"}


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """A file that is cut under us, as by copytruncate, is told as that."""
    made = Ledger(tmp_path)
    chain = made.chain()
    out = []
    for _ in range(4000):
        out.append(chain.line("guard.config", {"who": {}, "guards": {"padding": "x" * 300}}))
        chain.took(out[-1])
    made.write(b"".join(out))
    made.store(chain)

    def cut(done: int, total: int) -> None:
        if done < total:
            os.truncate(made.path, 0)

    assert sorted(reasons(look(made, progress=cut))) == ["file-shrank", "tail-truncated", "torn-or-garbage"]


# ------------------------------------------------------------------ repeats


def resend(made: Ledger, chain: Chain, count: int) -> None:
    """Begin a new segment after an error of fdatasync and write the last records again, as the ledger does."""
    again = [line for line in lines_of(made.path) if chain.chain.encode() in line[:60]][-count:]
    first_n, last_n = chain.n - count, chain.n - 1
    made.rotate()
    made.append(chain, "audit.degraded", {"lost": 0, "why": "EIO", "resent": [first_n, last_n]})
    made.write(b"".join(again))


def test_records_that_are_sent_again(ledger: tuple[Ledger, Chain]) -> None:
    """Records that come again in a new segment as one of their chain says are no replay."""
    made, chain = ledger
    resend(made, chain, 7)
    made.spawn(chain)

    result = look(made)
    assert result.ok, result.findings
    assert result.counts["repeats"] == 7


def test_records_that_are_sent_again_with_other_bytes(ledger: tuple[Ledger, Chain]) -> None:
    """Those must be equal to the byte."""
    made, chain = ledger
    resend(made, chain, 7)
    made.path.write_bytes(made.path.read_bytes().replace(b'"pid":9', b'"pid":8', 1))

    (found,) = look(made).findings
    assert (Path(found.file).name, found.reason) == ("ledger.jsonl", "unequal-repeat")
    assert "ledger.jsonl.1:" in found.text


def test_records_that_are_sent_again_after_a_retirement(ledger: tuple[Ledger, Chain]) -> None:
    """When the segment with the first ones is retired, those that came again stay, and are no replay."""
    made, chain = ledger
    resend(made, chain, 7)
    made.checkpoint(chain)
    made.rotate()
    made.retire(made.path.with_name("ledger.jsonl.1"))

    result = look(made)
    assert result.ok, result.findings
    assert result.counts["repeats"] == 7


def test_what_is_sent_again_after_a_retirement_has_its_keys(ledger: tuple[Ledger, Chain]) -> None:
    """The first ones are gone, and nobody can compare: who changes those that came again has not their keys."""
    made, chain = ledger
    resend(made, chain, 7)
    made.checkpoint(chain)
    made.rotate()
    made.retire(made.path.with_name("ledger.jsonl.1"))
    older_segment = made.path.with_name("ledger.jsonl.2")
    whole = older_segment.read_bytes()
    older_segment.write_bytes(whole.replace(b"/bin/true", b"/bin/evil", 1))
    assert reasons(look(made)) == ["mac-mismatch"]
    older_segment.write_bytes(whole)

    # A thief may tell of records to come again that were retired, and write something in their place.
    made.append(chain, "audit.degraded", {"lost": 0, "why": "EIO", "resent": [2, 2]})
    forged = Chain(chain.chain, chain.record_key, None, n=2)
    made.write(forged.line("spawn.intent", {"who": {}, "what": {}, "want": {}, "how": {}}, next(made.ids)))
    (found,) = look(made).findings
    assert (found.reason, found.n) == ("mac-mismatch", 2)


def test_every_cut_of_what_is_sent_again_is_a_killed_writer(ledger: tuple[Ledger, Chain]) -> None:
    """The process may be killed anywhere in it; another one ends the line, strikes it out or writes on behind it."""
    made, chain = ledger
    other = made.chain()
    resend(made, chain, 2)
    whole = made.path.read_bytes()
    edges = offsets(made.path)[1:]
    sizes = {*range(edges[0], len(whole), 7), *(e + i for e in edges for i in range(-3, 15) if edges[0] <= e + i <= len(whole))}
    nextone = made.append(other, "cred.change", {"who": {}, "change": {}})
    for size in sorted(sizes):
        for end in (b"", b"\n", nextone):
            made.path.write_bytes(whole[:size] + end)
            result = look(made)
            # The record of the other process is missing where it was not written.
            assert reasons(result) == ([] if end == nextone else ["tail-truncated"]), (size, end, result.findings)
            assert {f.chain for f in result.findings} <= {other.chain}
            is_end = whole[size - 1 : size] == b"\n"
            is_whole = end != b"\n" if is_end else end == b"\n" and whole[size : size + 1] == b"\n"
            assert noticed(result) == (set() if is_whole else {"uncommitted"}), (size, end)
    made.path.write_bytes(whole[:-1] + b"?\n" + nextone)
    result = look(made)
    assert result.ok, result.findings
    assert result.counts["repeats"] == 1
    assert result.counts["records"] == 53


def test_resend_that_was_cut_and_its_first_records_retired(ledger: tuple[Ledger, Chain]) -> None:
    """Nobody can compare it then; it hides nothing, because the retirement tells of the whole record."""
    made, chain = ledger
    resend(made, chain, 3)
    made.path.write_bytes(made.path.read_bytes()[:-100])
    other = made.chain()
    made.rotate()
    made.checkpoint(other)
    made.retire(made.path.with_name("ledger.jsonl.1"))

    result = look(made)
    assert result.ok, result.findings
    assert "uncommitted" in noticed(result)


@pytest.mark.parametrize("way", ["bytes", "number", "segment", "chain", "first", "outside", "struck"])
def test_beginning_that_is_no_resend(ledger: tuple[Ledger, Chain], way: str) -> None:
    """A beginning is excused only where it is that of a record that its own chain tells of in this segment."""
    made, chain = ledger
    other = made.chain()
    made.spawn(other)
    by_other = lines_of(made.path)[-2]
    resend(made, chain, 3)
    lines = lines_of(made.path)
    torn = lines.pop()[:-40] + b"\n"
    if way == "bytes":
        torn = torn.replace(b'"c', b'"d', 2).replace(b'"d"', b'"c"', 1)
    elif way == "number":
        torn = torn.replace(b'"n":49', b'"n":48')
    elif way == "chain":
        torn = by_other[:-40] + b"\n"
    elif way == "outside":
        torn = lines_of(made.path.with_name("ledger.jsonl.1"))[20][:-40] + b"\n"
    elif way == "struck":
        torn = torn[:-1] + b"?\n"
    made.path.write_bytes(b"".join(lines) + (b"" if way == "segment" else torn))
    if way == "segment":
        made.rotate()
        made.write(torn)
    if way == "first":  # nothing is hidden by it: the one that counts is missing
        older = made.path.with_name("ledger.jsonl.1")
        older.write_bytes(b"".join(line for line in lines_of(older) if b'"n":49,' not in line))

    result = look(made)
    assert ("torn-or-garbage" in reasons(result)) or (way == "first" and "gap" in reasons(result)), result.findings
    (found,) = result.findings
    if way != "first":
        assert (Path(found.file).name, found.byte) == ("ledger.jsonl", made.path.read_bytes().index(torn))


def test_process_that_ends_during_the_look(tmp_path: Path) -> None:
    """A chain that is closed while its ledger is read is no crash, though its process is gone at the end."""
    made = Ledger(tmp_path)
    assert made.keys
    chain = made.keys.open_chain(next(made.ids), str(made.path), boot=_probe.boot_id())
    chain.slot = made.state.claim(chain.chain, chain.epoch)  # type: ignore[union-attr]
    made._opened(chain, None, {"pid": 2**22 + 1})
    made.spawn(chain, upto="intent")

    def end(done: int, total: int) -> None:
        if chain.n == 2:
            made.close(chain)

    result = look(made, progress=end)
    assert result.ok
    assert result.notices == ()
    assert result.counts["running"] == 1


def test_repeat_in_another_segment_than_told(ledger: tuple[Ledger, Chain]) -> None:
    """Nothing is excused in a segment that no record speaks of."""
    made, chain = ledger
    resend(made, chain, 2)
    again = lines_of(made.path)[-1]
    made.rotate()
    made.write(again)

    assert told(look(made)) == [("ledger.jsonl", 1, "replay/reorder")]


def test_dedupe_takes_equal_lines(ledger: tuple[Ledger, Chain]) -> None:
    """A collector's file may hold lines twice; unequal ones are named even so, and so is a wrong order."""
    made, _ = ledger
    lines = lines_of(made.path)
    made.path.write_bytes(b"".join([*lines[:30], *lines[20:30], *lines[25:]]))
    assert not look(made).ok
    result = look(made, dedupe=True)
    assert result.ok
    assert result.counts["repeats"] == 15

    made.path.write_bytes(b"".join([*lines[:30], lines[20].replace(b'"t":17', b'"t":18'), *lines[30:]]))
    assert told(look(made, dedupe=True)) == [("ledger.jsonl", 31, "unequal-repeat")]

    made.path.write_bytes(b"".join([*lines[:20], lines[21], lines[20], *lines[22:]]))
    assert told(look(made, dedupe=True)) == [("ledger.jsonl", 21, "gap")]


# ------------------------------------------------------------------ witnesses


def test_witness_that_agrees(ledger: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """Any part of the lines, with whatever else a collector put between them, is met in the ledger."""
    made, _ = ledger
    witness = tmp_path / "witness"
    witness.write_bytes(b"# a comment\n" + b"".join(lines_of(made.path)[::7]))

    result = look(made, witness=[witness])
    assert result.ok
    assert result.counts["witnessed"] == 8
    assert any("1 lines that are none" in text for text in result.checked)


def test_witness_that_differs(ledger: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """A line of the same number that is another is told at the ledger's, with the place of the witness's."""
    made, _ = ledger
    witness = tmp_path / "witness"
    witness.write_bytes(lines_of(made.path)[9] + lines_of(made.path)[10].replace(b"true", b"evil"))

    found = first(look(made, witness=[witness]), made, 11, 10, "witness-mismatch")
    assert f"{witness}:2:" in found.text


def test_witnesses_that_differ_from_each_other(ledger: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """Two collectors that tell different things of one record are told, even if the ledger fits one."""
    made, _ = ledger
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(lines_of(made.path)[10])
    other.write_bytes(lines_of(made.path)[10].replace(b"true", b"evil"))

    (found,) = look(made, witness=[one, other]).findings
    assert (found.file, found.reason) == (str(other), "witness-mismatch")


def test_witness_of_another_ledger(ledger: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """Lines of chains of another boot are noticed; those of this boot that nothing here knows are missed."""
    made, _ = ledger
    chain = Chain("0193c5a0-0000-7000-8000-00000000beef", None, None, boot="")
    witness = tmp_path / "witness"
    witness.write_bytes(chain.line("chain.open", {"who": {}, "keys": None}))
    result = look(made, witness=[witness])
    assert result.ok
    assert noticed(result) == {"witness-other"}

    chain.boot = form.BOOT
    witness.write_bytes(chain.line("chain.open", {"who": {}, "keys": None}))
    assert reasons(look(made, witness=[witness])) == ["witness-missing"]


# ------------------------------------------------------------------ chains without keys


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Ledger, Chain]:
    """Return a ledger without keys, of ten records."""
    made = Ledger(tmp_path, None)
    chain = made.chain()
    for _ in range(3):
        made.spawn(chain)
    return made, chain


def test_ledger_without_keys(plain: tuple[Ledger, Chain]) -> None:
    """It needs none, and the answer says how little that is worth."""
    result = verify(plain[0].path)

    assert result.ok
    assert "checked without a key: integrity only against parties without write access" in result.limits


@pytest.mark.parametrize("line", [2, 5, 9])
def test_changed_record_without_keys(plain: tuple[Ledger, Chain], line: int) -> None:
    """The record behind it has another hash: the one that was changed is told."""
    made, _ = plain
    lines = lines_of(made.path)
    lines[line - 1] = lines[line - 1].replace(b"000000", b"000001", 1)
    made.path.write_bytes(b"".join(lines))
    first(verify(made.path), made, line, line - 1, "hash-mismatch")


def test_changed_link_without_keys(plain: tuple[Ledger, Chain]) -> None:
    """A changed ``p`` fits neither the record before nor the one behind: it is told itself."""
    made, _ = plain
    lines = lines_of(made.path)
    lines[4] = lines[4].replace(b'"p":"', b'"p":"' + (b"0" if lines[4][61:62] != b"0" else b"1"), 1)
    lines[4] = lines[4].replace(lines[4][57:122], lines[4][57:121], 1)
    made.path.write_bytes(b"".join(lines))
    found = verify(made.path).findings[0]
    assert (found.line, found.reason) in ((5, "hash-mismatch"), (5, "torn-or-garbage"))


def test_key_that_is_missing(ledger: tuple[Ledger, Chain]) -> None:
    """A ledger with keys is not checked without them, unless that is asked for."""
    made, _ = ledger
    with pytest.raises(AuditError, match="give the verification key") as caught:
        verify(made.path)
    assert caught.value.errno == errno.ENOKEY

    result = verify(made.path, without_key=True)
    assert result.ok
    assert result.limits[0].startswith("checked without a key")

    os.truncate(made.path, offsets(made.path)[49])
    assert told(verify(made.path, without_key=True)) == [("ledger.jsonl", 49, "tail-truncated")]


def test_wrong_key(ledger: tuple[Ledger, Chain]) -> None:
    """With another key nothing fits, and the advice asks whether it is the right one."""
    made, _ = ledger
    result = look(made, key=bytes(32))
    assert {"mac-mismatch", "epoch-mismatch"} <= set(reasons(result))
    assert "is this the verification key of this host?" in verifier.TAMPERED["epoch-mismatch"]


def test_chain_without_keys_among_others(ledger: tuple[Ledger, Chain]) -> None:
    """Where there are keys a chain without them is a finding, whatever it says about itself."""
    made, _ = ledger
    forged = Chain("0193c5a0-0000-7000-8000-00000000beef", None, None)
    made.write(forged.line("chain.open", {"who": {}, "keys": None}))

    found = look(made).findings[0]
    assert (found.reason, found.chain, found.line) == ("unkeyed", forged.chain, 51)


def test_chain_from_before_the_keys(tmp_path: Path) -> None:
    """One that is dated before the registry began is noticed, and one that goes on later is a finding."""
    made = Ledger(tmp_path)
    old = Chain("0193c5a0-0000-7000-8000-00000000beef", None, None, clock=form.Clock(t=1_000))
    line = old.line("chain.open", {"who": {}, "keys": None})
    old.took(line)
    made.write(line)
    made.spawn(made.chain())
    result = look(made)
    assert result.ok
    assert noticed(result) == {"unkeyed-before"}

    old.clock = made.clock
    made.write(old.line("guard.config", {"who": {}, "guards": {}}))
    assert reasons(look(made)) == ["unkeyed"]


def test_chain_without_keys_in_the_place_of_one_with(ledger: tuple[Ledger, Chain]) -> None:
    """A chain that is written anew without keys under its old name has no MAC that fits."""
    made, chain = ledger
    forged = Chain(chain.chain, None, None)
    line = forged.line("chain.open", {"who": {}, "keys": None})
    made.path.write_bytes(line)

    result = look(made)
    assert "mac-mismatch" in reasons(result)
    assert "tail-truncated" in reasons(result)


# ------------------------------------------------------------------ the state file


def test_chain_without_keys_in_the_place_of_a_child(tmp_path: Path) -> None:
    """Nor do older dates excuse a chain without keys where a parent with keys tells of a child."""
    made = Ledger(tmp_path)
    parent = made.chain()
    child = made.fork(parent)
    early = Chain(child.chain, None, None, clock=form.Clock(t=1_700_000_000_000_000_000))
    line = early.line("chain.open", {"who": {}, "keys": None})
    made.path.write_bytes(line + made.path.read_bytes())

    assert [(f.chain, f.reason) for f in look(made).findings] == [(child.chain, "unkeyed")]


def test_older_state_file(ledger: tuple[Ledger, Chain]) -> None:
    """A state file that is behind by more than a record is a finding; the host may have lost its power."""
    made, chain = ledger
    kept = made.path.with_name("ledger.jsonl.state").read_bytes()
    made.spawn(chain)
    made.path.with_name("ledger.jsonl.state").write_bytes(kept)
    result = look(made)
    assert told(result) == [("ledger.jsonl", len(lines_of(made.path)), "state-behind")]
    assert "the power was lost" in result.findings[0].text


def test_older_state_file_of_this_boot(tmp_path: Path) -> None:
    """Without a loss of power in between the state file cannot be behind."""
    made = Ledger(tmp_path)
    chain = made.chain()
    boot = _probe.boot_id()
    again = made.keys.open_chain(next(made.ids), str(made.path), boot=boot)  # type: ignore[union-attr]
    again.slot = made.state.claim(again.chain, again.epoch)  # type: ignore[union-attr]
    made._opened(again, None, {})
    kept = made.path.with_name("ledger.jsonl.state").read_bytes()
    made.spawn(again)
    made.path.with_name("ledger.jsonl.state").write_bytes(kept)

    found = look(made).findings[0]
    assert (found.reason, found.chain, found.n) == ("state-behind", again.chain, 3)
    assert chain.n == 1


@pytest.mark.parametrize(
    ("at", "data", "reason"),
    [(0, b"X", "state-garbage"), (128, b"\7", "state-garbage"), (132, b"\2", "state-garbage"), (240, b"x", "state-garbage")],
)
def test_damaged_state_file(ledger: tuple[Ledger, Chain], at: int, data: bytes, reason: str) -> None:
    """What no ledger writes into a state file is told, with the byte of the slot."""
    made, _ = ledger
    state = made.path.with_name("ledger.jsonl.state")
    whole = state.read_bytes()
    state.write_bytes(whole[:at] + data + whole[at + len(data) :])

    result = look(made)
    (found,) = [f for f in result.findings if f.reason == reason]
    assert (found.file, found.byte) == (str(state), at // 128 * 128)


def test_second_slot_of_a_chain(ledger: tuple[Ledger, Chain]) -> None:
    """Two slots of one chain are told; the first counts."""
    made, chain = ledger
    assert made.state is not None
    made.state.claim(chain.chain, 1)

    assert told(look(made)) == [("ledger.jsonl.state", 0, "state-garbage")]


# ------------------------------------------------------------------ the key directory


def keys_of(made: Ledger) -> tuple[Path, Path]:
    """Return the files of the registry and of the epoch."""
    return made.path.parent / "keys" / "registry.jsonl", made.path.parent / "keys" / "epoch"


@pytest.fixture
def registered(tmp_path: Path) -> Ledger:
    """Return a ledger of three chains; the registry has four records."""
    made = Ledger(tmp_path)
    for _ in range(3):
        made.spawn(made.chain())
    return made


def test_changed_record_of_the_registry(registered: Ledger) -> None:
    """A record of the registry that was changed is told at its line."""
    path, _ = keys_of(registered)
    path.write_bytes(path.read_bytes().replace(b"registry.chain", b"registry.chaim", 1))

    result = look(registered)
    assert ("registry.jsonl", 2, "mac-mismatch") in told(result)


def test_record_cut_off_the_registry(registered: Ledger) -> None:
    """The epoch says how many records the registry has."""
    path, _ = keys_of(registered)
    os.truncate(path, offsets(path)[3])

    result = look(registered)
    assert ("registry.jsonl", 0, "tail-truncated") in told(result)
    assert "chain-unregistered" in reasons(result)


def test_record_taken_out_of_the_registry(registered: Ledger) -> None:
    """A gap in the registry is one, and its chain is not registered."""
    path, _ = keys_of(registered)
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))

    assert sorted(reasons(look(registered))) == ["chain-unregistered", "gap"]


def test_torn_record_of_the_registry(registered: Ledger) -> None:
    """A process that was killed while it registered leaves a beginning."""
    path, _ = keys_of(registered)
    assert registered.keys
    line = registered.keys.line("registry.chain", {"chain": "x", "ledger": "y"})
    with open(path, "ab") as file:
        file.write(line[:150])

    result = look(registered)
    assert result.ok
    assert noticed(result) == {"uncommitted"}


def test_older_epoch_file(registered: Ledger) -> None:
    """An epoch file that is behind by more than one was put back."""
    _, epoch = keys_of(registered)
    kept = epoch.read_bytes()
    registered.chain()
    registered.chain()
    epoch.write_bytes(kept)

    assert told(look(registered)) == [("epoch", 0, "epoch-mismatch")]


@pytest.mark.parametrize(("at", "size"), [(0, 8), (8, 8), (16, 32), (48, 32), (80, 16)])
def test_epoch_file_of_another_content(registered: Ledger, at: int, size: int) -> None:
    """Each part of the epoch file is held against the registry and the key, whatever its checksum says."""
    _, epoch = keys_of(registered)
    data = epoch.read_bytes()[:96]
    data = data[:at] + bytes(byte ^ 1 for byte in data[at : at + size]) + data[at + size :]
    epoch.write_bytes(data + form.sha256(data))

    assert [name for name, _, _ in told(look(registered))] in (["epoch"], ["registry.jsonl"])


def test_key_directory_that_is_not_whole(registered: Ledger) -> None:
    """Each of its files that is missing or damaged is told; a directory that is none is no directory."""
    path, epoch = keys_of(registered)
    epoch.write_bytes(epoch.read_bytes()[:-1] + b"\0")
    assert reasons(look(registered)) == ["epoch-mismatch"]
    epoch.unlink()
    assert reasons(look(registered)) == ["epoch-missing"]
    path.unlink()
    assert "registry-missing" in str(look(registered).findings)
    with pytest.raises(AuditError, match="no key directory"):
        verify(registered.path, key=KEY, registry=path)


# ------------------------------------------------------------------ notices


def test_running_process(tmp_path: Path) -> None:
    """A chain whose process runs is no crash, and its last intent no orphan."""
    made = Ledger(tmp_path)
    with open("/proc/self/stat", encoding="ascii") as file:
        start = int(file.read().rpartition(")")[2].split()[19])
    assert made.keys
    chain = made.keys.open_chain(next(made.ids), str(made.path), boot=_probe.boot_id())
    chain.slot = made.state.claim(chain.chain, chain.epoch)  # type: ignore[union-attr]
    made._opened(chain, None, {"pid": os.getpid(), "start": start})
    made.spawn(chain, upto="intent")

    result = look(made)
    assert result.ok
    assert result.notices == ()
    assert result.counts["running"] == 1


def test_orphan_intent(tmp_path: Path) -> None:
    """An intent that no outcome follows is told with its place: the program may have run."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.spawn(chain)
    made.spawn(chain, upto="intent")
    made.close(chain)

    (found,) = look(made).notices
    assert (found.reason, found.line, found.byte, found.n) == ("orphan-intent", 5, offsets(made.path)[4], 4)


@pytest.mark.parametrize("event", ["spawn.failed", "spawn.denied", "spawn.intent"])
def test_orphan_intent_whose_end_another_chain_tells(tmp_path: Path, event: str) -> None:
    """A process cannot say how what another one started has ended."""
    made = Ledger(tmp_path)
    chain = made.chain()
    other = made.open_fork(made.fork(chain), chain)
    sid = made.spawn(chain, upto="intent")
    made.append(other, event, {}, sid)
    made.append(other, "spawn.failed", {}, sid)

    assert [(f.chain, f.n) for f in look(made).notices if f.reason == "orphan-intent"] == [(chain.chain, 2)]


def test_clock_that_was_set_back(tmp_path: Path) -> None:
    """A record that is older than the one before it by more than a second is noticed."""
    made = Ledger(tmp_path)
    chain = made.chain()
    made.clock.t -= 900_000_000
    made.checkpoint(chain)
    assert noticed(look(made)) == set()
    made.clock.t -= 2_000_000_000
    made.checkpoint(chain)

    (found,) = [f for f in look(made).notices if f.reason == "clock-back"]
    assert (found.line, found.n) == (3, 2)


# ------------------------------------------------------------------ copies elsewhere


def test_copy_without_state_and_registry(ledger: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """A copy of the lines alone can be checked, and what could not be is said."""
    copy = tmp_path / "copy" / "elsewhere.jsonl"
    copy.parent.mkdir()
    shutil.copy(ledger[0].path, copy)

    result = verify(copy, key=KEY, state=False)
    assert result.ok
    assert [text.partition(":")[0] for text in result.limits[:3]] == ["no state file", "no registry", "no witness"]


@pytest.mark.parametrize("left", [b"", b"\n", b'{"v":1,"c":"0193'])
@pytest.mark.parametrize("what", ["key", "no key", "registry", "state"])
def test_ledger_in_which_no_record_is_left(ledger: tuple[Ledger, Chain], left: bytes, what: str) -> None:
    """Where nothing was checked nobody is told that nothing was found."""
    made, _ = ledger
    copy = made.path.parent / "copy" / "elsewhere.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(left)
    given: dict[str, Any] = {"key": KEY, "state": False}
    if what == "no key":
        given["key"] = None
    elif what == "registry":
        given["registry"] = made.path.parent / "keys"
    elif what == "state":
        given["state"] = form.StateFile(copy.with_name("no slots")).path
    with pytest.raises(AuditError, match="no record is here") as caught:
        verify(copy, **given)
    assert caught.value.errno == errno.ENODATA

    made.path.write_bytes(left)  # by its own name the registry knows what is missing
    assert reasons(look(made, state=False)) == ["chain-missing"]


def test_slots_of_an_emptied_ledger_prove_nothing(ledger: tuple[Ledger, Chain]) -> None:
    """Without the registry a slot that says 0 may have been emptied; with it the seal tells."""
    made, chain = ledger
    made.path.write_bytes(b"")
    fix_state(made, chain, 0, form.ZERO)
    with pytest.raises(AuditError, match="no record is here"):
        look(made, registry=None)
    assert reasons(look(made)) == ["chain-missing"]


def test_ledger_that_is_being_opened(tmp_path: Path) -> None:
    """The registry accounts for a ledger without a record whose process has not written one yet."""
    made = Ledger(tmp_path)
    assert made.keys
    assert made.state
    name = next(made.ids)
    made.state.claim(name, made.keys.epoch, form.first_seal(form.chain_key(made.keys.key, name)))
    made.keys.open_chain(name, str(made.path))

    result = look(made)
    assert result.ok
    assert noticed(result) == {"chain-empty"}


def test_copy_with_state_and_registry(ledger: tuple[Ledger, Chain], tmp_path: Path) -> None:
    """The registry names the ledger by its path; in a copy the chains that are there tell which it was."""
    made, chain = ledger
    other = made.chain()
    copy = tmp_path / "copy" / "elsewhere.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(b"".join(line for line in lines_of(made.path) if chain.chain.encode() in line))

    result = verify(copy, key=KEY, state=False, registry=made.path.parent / "keys")
    assert [(f.reason, f.chain) for f in result.findings] == [("chain-missing", other.chain)]


def test_ledger_with_a_long_path(tmp_path: Path) -> None:
    """A path that is too long for a record is told by its digest, and known by it."""
    where = tmp_path.joinpath(*["d" * 100] * 5)
    where.mkdir(parents=True)
    made = Ledger(where)
    assert made.keys
    gone = next(made.ids)
    path = os.fsencode(made.path)
    told_path: Any = {"cut": path[:60].decode(), "bytes": len(path), "sha256": form.sha256(path).hex()}
    made.keys.open_chain(gone, told_path)
    made.spawn(made.chain())

    (found,) = look(made).findings
    assert (found.reason, found.chain) == ("chain-missing", gone)


@pytest.mark.parametrize("opened_as", ["linked", "real"])
@pytest.mark.parametrize("looked_at", ["linked", "real", "relative", "file link"])
def test_chain_is_missed_by_every_name_of_its_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened_as: str, looked_at: str
) -> None:
    """A ledger has one path in the registry, whichever one was opened, and is known by each that leads to it."""
    key = bytes.fromhex(audit.keys.initialise(tmp_path / "keys"))
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "file link").symlink_to(tmp_path / "linked" / "ledger.jsonl")
    monkeypatch.chdir(tmp_path / "real")
    names = {
        "linked": tmp_path / "linked" / "ledger.jsonl",
        "real": tmp_path / "real" / "ledger.jsonl",
        "relative": Path("../linked/ledger.jsonl"),
        "file link": tmp_path / "file link",
    }
    for name in (opened_as, "real" if opened_as == "linked" else "linked"):
        audit.open(names[name], keys=tmp_path / "keys").close()
    registry = (tmp_path / "keys" / "registry.jsonl").read_bytes()
    assert registry.count(f'"ledger":"{names["real"]}"'.encode()) == 2
    assert verify(names[looked_at], key=key, registry=tmp_path / "keys").ok

    path = names["real"]
    chain = json.loads(lines_of(path)[0])["c"]
    path.write_bytes(b"".join(line for line in lines_of(path) if chain.encode() not in line))
    state = Path(f"{path}.state")
    state.write_bytes(state.read_bytes()[:128] + bytes(128) + state.read_bytes()[256:])
    found = verify(names[looked_at], key=key, registry=tmp_path / "keys").findings
    assert [(f.reason, f.chain) for f in found] == [("chain-missing", chain)]


@pytest.mark.parametrize("kind", ["directory link", "hard link"])
def test_registry_has_two_names_of_one_ledger(tmp_path: Path, kind: str) -> None:
    """Also where the registry has another name, it is the file that counts."""
    made = Ledger(tmp_path)
    assert made.keys
    made.spawn(made.chain())
    if kind == "directory link":
        (tmp_path / "linked").symlink_to(tmp_path)
        other = tmp_path / "linked" / "ledger.jsonl"
    else:
        other = tmp_path / "other.jsonl"
        other.hardlink_to(made.path)
    gone = next(made.ids)
    made.keys.open_chain(gone, str(other))
    made.keys.open_chain(next(made.ids), str(tmp_path / "linked" / "none" / "ledger.jsonl"))
    made.keys.open_chain(next(made.ids), "/no\0path")

    assert [(f.reason, f.chain) for f in look(made).findings] == [("chain-missing", gone)]


def test_chain_of_another_ledger(tmp_path: Path) -> None:
    """Lines that were copied here from another ledger of the host are noticed."""
    made = Ledger(tmp_path)
    made.spawn(made.chain())
    assert made.keys
    foreign = made.keys.open_chain(next(made.ids), "/var/log/other.jsonl")
    foreign.slot = made.state.claim(foreign.chain, foreign.epoch)  # type: ignore[union-attr]
    made._opened(foreign, None, {})

    result = look(made)
    assert result.ok
    (found,) = [f for f in result.notices if f.reason == "other-ledger"]
    assert found.chain == foreign.chain
    assert "/var/log/other.jsonl" in found.text


# ------------------------------------------------------------------ ledgers of the library itself

REAL = """
from safespawn import audit, run
key = audit.keys.initialise(where + "/keys")
path = where + "/ledger.jsonl"
with audit.open(path, keys=where + "/keys", max_bytes=6000):
    for number in range(12):
        run(["/bin/true", "caf\\u00e9" * number])
    if (pid := os.fork()) == 0:
        run(["/bin/true", "in a child"])
        os._exit(0)
    os.waitpid(pid, 0)
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    audit.retention.retire(path, keep=3, keys=where + "/keys")
    run(["/bin/true"])
out["key"] = key
"""


def test_ledger_of_the_library(tmp_path: Path) -> None:
    """What the library writes, over spawns, forks, segments and their retirement, has no finding."""
    key = bytes.fromhex(helpers.run_snippet(REAL, where=str(tmp_path))["key"])
    made = verify(tmp_path / "ledger.jsonl", key=key, registry=tmp_path / "keys")

    assert made.ok, made.findings
    assert noticed(made) == {"retired"}
    assert (made.counts["silent"], made.counts["keyed"]) == (1, made.counts["chains"])
    assert made.counts["retired"] > 0
    assert made.counts["compared"] == made.counts["chains"]


def test_library_writes_what_the_reference_reads(tmp_path: Path) -> None:
    """The slow checker, which knows the form only from its document, finds nothing either."""
    snippet = REAL.replace('audit.retention.retire(path, keep=3, keys=where + "/keys")', "pass")
    key = bytes.fromhex(helpers.run_snippet(snippet, where=str(tmp_path))["key"])

    assert reference_checker.Checker(tmp_path / "ledger.jsonl", key).check() == []


def test_retirements_of_the_library(tmp_path: Path) -> None:
    """Segments go one after the other, with their records of older ones: no chain is missed at the end."""
    key = bytes.fromhex(audit.keys.initialise(tmp_path / "keys"))
    path = tmp_path / "ledger.jsonl"
    for _ in range(3):
        for _ in range(40):  # more chains than one record can tell of
            with audit.open(path, keys=tmp_path / "keys"):
                pass
        with audit.open(path, keys=tmp_path / "keys") as ledger:
            ledger.rotate()
        audit.retention.retire(path, keep=1, keys=tmp_path / "keys")
        made = verify(path, key=key, registry=tmp_path / "keys")
        assert made.ok, made.findings


class AtRead:
    """A profile function (sys.setprofile) that acts behind one system call of our package: that with this number."""

    PACKAGE = os.path.dirname(audit.__file__)

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        """Count from 1."""
        self.number, self.act, self.count = number, act, 0

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        """Count the calls that can look at a file."""
        if event != "c_return" or not frame.f_code.co_filename.startswith(self.PACKAGE):
            return
        is_read = argument.__module__ == "posix" or isinstance(argument.__self__, io.IOBase)
        self.count += is_read
        if is_read and self.count == self.number:
            sys.setprofile(None)
            self.act()


def end_a_chain(ledger: audit.Ledger, *, closed: bool) -> None:
    """Have a forked child write, and close its chain or not."""
    pid = os.fork()
    if not pid:
        try:
            ledger.append("guard.config", None, lambda: {"closed": closed})
            if closed:
                ledger.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("what", [*(pytest.param(one, marks=pytest.mark.long) for one in ("retired", "rotated")), "both"])
def test_retired_and_rotated_between_any_two_reads(what: str) -> None:
    """Wherever the verifier is stopped while segments and slots go, or new ones come: it finds nothing."""
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="safespawn-test-", dir="/dev/shm")))
        path, keys = where / "ledger", where / "keys"
        key = bytes.fromhex(audit.keys.initialise(keys))
        ledger = stack.enter_context(audit.open(path, keys=keys))

        def grow() -> None:
            for closed in (True, False):
                end_a_chain(ledger, closed=closed)
                assert ledger.rotate()

        def act() -> None:
            if what != "retired":
                grow()
            if what != "rotated":
                assert audit.retention.retire(path, keep=1, keys=keys)

        number, at = 0, None
        while at is None or at.count >= at.number:
            grow()
            number += 1
            at = AtRead(number, act)
            sys.setprofile(at)
            try:
                made = verify(path, key=key, registry=keys)
            finally:
                sys.setprofile(None)
            assert made.ok, (number, made.findings)
            audit.retention.retire(path, keep=2, keys=keys)
    assert number > 40


RETIRED_CHILD = """
from safespawn import audit, run
key = audit.keys.initialise(where + "/keys")
path = where + "/ledger.jsonl"
ledger = audit.open(path, keys=where + "/keys")
(told, tell), (heard, go) = os.pipe(), os.pipe()
if (pid := os.fork()) == 0:
    run(["/bin/true", "before"])
    os.write(tell, b".")
    os.read(heard, 1)
    ledger.checkpoint()
    run(["/bin/true", "after"])
    os._exit(0)
os.read(told, 1)
ledger.rotate()
os.write(go, b".")
os.waitpid(pid, 0)
ledger.rotate()
audit.retention.retire(path, keep=1, keys=where + "/keys")
ledger.close()
out["key"] = key
"""


def test_child_of_the_library_whose_opening_was_retired(tmp_path: Path) -> None:
    """A forked child goes on after the segment with its opening is gone, and its records are checked."""
    key = bytes.fromhex(helpers.run_snippet(RETIRED_CHILD, where=str(tmp_path))["key"])
    made = verify(tmp_path / "ledger.jsonl", key=key, registry=tmp_path / "keys")

    assert made.ok, made.findings
    assert made.counts["retired"] == 1
    assert made.counts["keyed"] == made.counts["chains"] == 3


SPAWNER = """
import os, sys
from safespawn import audit, run
where = sys.argv[1]
audit.open(where + "/ledger.jsonl", keys=where + "/keys", max_bytes=100_000)
print("begun", flush=True)
number = 0
while True:
    number += 1
    run(["/bin/true", "x" * (number % 1900)])
    if number % 5 == 0 and os.fork() == 0:
        run(["/bin/true", "y" * 900])
        os._exit(0)
    if number % 5 == 0:
        os.wait()
"""


def test_killed_processes_of_the_library(tmp_path: Path) -> None:
    """Two processes at a time write one ledger and are killed: no look, during or after it, finds anything."""
    key = bytes.fromhex(audit.keys.initialise(tmp_path / "keys"))
    environment = {**os.environ, "PYTHONPATH": str(helpers.ROOT)}
    looks = 0
    for _ in range(4):
        words = [sys.executable, "-c", SPAWNER, str(tmp_path)]
        both = [subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, start_new_session=True) for _ in range(2)]
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
        for _ in range(6):
            made = verify(tmp_path / "ledger.jsonl", key=key, registry=tmp_path / "keys")
            assert made.ok, made.findings
            looks += made.counts["running"] > 0
        for process in both:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    made = verify(tmp_path / "ledger.jsonl", key=key, registry=tmp_path / "keys")

    assert made.ok, made.findings
    assert looks > 0
    assert {"crashed"} <= {found.reason for found in made.notices}


# ------------------------------------------------------------------ the command


def command(*words: str | Path) -> tuple[int, str, str]:
    """Run ``verify`` with these arguments; return exit code, output and errors."""
    parser = argparse.ArgumentParser(prog="safespawn audit")
    _cli_audit_verify.add(parser.add_subparsers())
    given = parser.parse_args(["verify", *map(str, words)])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = given.call(given)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Return a file with the verification key, in hex."""
    path = tmp_path / "key.txt"
    path.write_text(KEY.hex() + "\n")
    return path


def test_command_on_a_clean_ledger(ledger: tuple[Ledger, Chain], key_file: Path) -> None:
    """Exit code 0, what was checked, and what this cannot see."""
    made, _ = ledger
    code, out, err = command(made.path, "--key-file", key_file, "--keys", made.path.parent / "keys")

    assert (code, err) == (0, "")
    assert "50 records of 1 chains in 1 files: MAC and hash chain" in out
    assert out.endswith("nothing was found\n")
    assert "no witness" in out


def test_command_on_more_segments_than_descriptors(ledger: tuple[Ledger, Chain], key_file: Path) -> None:
    """The limit of descriptors that a shell has is none of how many segments there may be."""
    made, chain = ledger
    for _ in range(80):
        made.rotate()
        made.checkpoint(chain)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, before[1]))
    try:
        code, out, _ = command(made.path, "--key-file", key_file, "--keys", made.path.parent / "keys")
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (80, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    assert (code, "in 81 files" in out) == (0, True)


def test_command_on_a_changed_ledger(ledger: tuple[Ledger, Chain], key_file: Path) -> None:
    """Exit code 1, one line for the finding with its place, and what to do."""
    made, chain = ledger
    at = offsets(made.path)[40]
    edited(made.path, made.path.read_bytes().index(b"true", at), b"true", b"evil")
    code, out, _ = command(made.path, "--key-file", key_file, "--keys", made.path.parent / "keys")

    lines = out.splitlines()
    assert code == 1
    assert lines[0].startswith(f"{made.path}:41:{at} {chain.chain} 40 mac-mismatch: ")
    assert lines[1] == "what to do:"
    assert lines[2].startswith("  mac-mismatch: keep a copy of all files")
    assert lines[-1] == "1 finding"


def test_command_as_json(ledger: tuple[Ledger, Chain], key_file: Path) -> None:
    """With --json all of it is one object."""
    made, _ = ledger
    os.truncate(made.path, offsets(made.path)[49])
    code, out, _ = command(made.path, "--key-file", key_file, "--json")
    told_json = json.loads(out)

    assert code == 1
    assert told_json["ok"] is False
    assert told_json["findings"][0]["reason"] == "tail-truncated"
    assert set(told_json) == {"ok", "findings", "notices", "counts", "checked", "limits"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("0a1b", "64 hex digits"), ("zz" * 32, "64 hex digits"), ("\n", "64 hex digits")],
)
def test_command_with_a_bad_key(ledger: tuple[Ledger, Chain], key_file: Path, text: str, message: str) -> None:
    """Exit code 2, and a message that does not show what was given."""
    key_file.write_text(text)
    code, out, err = command(ledger[0].path, "--key-file", key_file)

    assert (code, out) == (2, "")
    assert message in err
    assert not text.strip() or text not in err.replace("64 hex", "")


def test_command_without_what_it_needs(ledger: tuple[Ledger, Chain], tmp_path: Path, key_file: Path) -> None:
    """Exit code 2 where nothing can be said: no key, no ledger, no key directory, no witness, a directory."""
    made, _ = ledger
    assert command(made.path)[0] == 2
    assert "give the verification key" in command(made.path)[2]
    for words in (
        [tmp_path / "none", "--key-file", key_file],
        [made.path, "--key-file", tmp_path / "none"],
        [made.path, "--key-file", key_file, "--keys", tmp_path / "none"],
        [made.path, "--key-file", key_file, "--witness", tmp_path / "none"],
        [tmp_path, "--key-file", key_file],
    ):
        code, out, err = command(*words)
        assert (code, out) == (2, "")
        assert err.startswith("safespawn audit verify: ")


@pytest.mark.parametrize("kind", ["fifo", "directory", "empty", "long"])
def test_command_with_a_key_file_that_is_none(ledger: tuple[Ledger, Chain], tmp_path: Path, kind: str) -> None:
    """It is refused at once, with its name and what is wrong with it."""
    path = tmp_path / "odd"
    if kind == "fifo":
        os.mkfifo(path)  # nobody writes: whoever waited for it would hang
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"" if kind == "empty" else b"a" * 5000)
    code, out, err = command(ledger[0].path, "--key-file", path)

    assert (code, out) == (2, "")
    wrong = {"empty": "empty", "long": "longer than 4096 bytes"}.get(kind, "not a regular file")
    assert err.startswith(f"safespawn audit verify: --key-file {path}: ")
    assert wrong in err
    assert ("'-' reads standard input" in err) == (kind in ("fifo", "directory"))


def test_command_with_an_empty_standard_input(ledger: tuple[Ledger, Chain], monkeypatch: pytest.MonkeyPatch) -> None:
    """No key came: that is said, and no number of an error."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert command(ledger[0].path, "--key-file", "-") == (
        2, "", "safespawn audit verify: --key-file -: it is empty: a verification key has 64 hex digits\n",
    )  # fmt: skip


def test_command_names_what_is_missing(ledger: tuple[Ledger, Chain]) -> None:
    """Without a key the answer names the option and the file, not an errno."""
    path = ledger[0].path
    assert command(path)[2] == (
        f"safespawn audit verify: {path}: cannot verify: the chains have keys; give the verification key"
        " (--key-file FILE, or --without-key)\n"
    )
    assert command(path.with_name("none"))[2] == (
        f"safespawn audit verify: {path.with_name('none')}: cannot verify: no ledger is there\n"
    )


def test_command_takes_the_key_from_standard_input(
    ledger: tuple[Ledger, Chain], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-`` reads it where no other user can see it."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f" {KEY.hex()[:32]}\n{KEY.hex()[32:]} ".encode())))
    assert command(ledger[0].path, "--key-file", "-")[0] == 0


def test_command_without_key(ledger: tuple[Ledger, Chain]) -> None:
    """--without-key says how much its answer is worth."""
    code, out, _ = command(ledger[0].path, "--without-key")
    assert code == 0
    assert "integrity only against parties without write access" in out


def test_command_escapes_what_a_terminal_would_obey(tmp_path: Path, key_file: Path) -> None:
    """A path that is told by a file cannot write to the terminal."""
    made = Ledger(tmp_path)
    made.spawn(made.chain())
    assert made.keys
    foreign = made.keys.open_chain(next(made.ids), "/tmp/\x1b[2J\nclean")
    foreign.slot = made.state.claim(foreign.chain, foreign.epoch)  # type: ignore[union-attr]
    made._opened(foreign, None, {})
    _, out, _ = command(made.path, "--key-file", key_file, "--keys", made.path.parent / "keys")

    assert "\x1b" not in out
    assert "/tmp/\\x1b[2J\\x0aclean" in out


def test_command_does_not_show_thousands_of_notices(tmp_path: Path, key_file: Path) -> None:
    """Of one reason a screen is shown, and how many more there are."""
    made = Ledger(tmp_path)
    for _ in range(50):
        made.chain()
    code, out, _ = command(made.path, "--key-file", key_file)

    assert code == 0
    assert out.count(" crashed: ") == 20 + 1  # what it comes from is a line too
    assert "and 30 more crashed (--json shows all)" in out


def test_every_reason_is_explained() -> None:
    """What each reason means and what to do is in the document, and nothing else is."""
    text = (helpers.ROOT / "docs" / "audit-verify.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted([*verifier.TAMPERED, *(name for name in verifier.EXPLAINED if name != "too-many")])
