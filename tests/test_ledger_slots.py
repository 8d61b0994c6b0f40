"""Slots of the state file: given back with the segments of their chains, and what happens when there are too many."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
from safespawn import AuditError, _probe, audit
from safespawn.audit import _slots, _verify_state, retention, verifier

MAGIC = b"SSSTATE1"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Return a ledger that is open, its path, the keys, and the verification key."""
    keys, path = tmp_path / "keys", tmp_path / "ledger"
    key = bytes.fromhex(audit.keys.initialise(keys))
    with audit.open(path, keys=keys) as ledger:
        yield {"ledger": ledger, "path": path, "keys": keys, "key": key}


def used(path: Path) -> int:
    """Return how many slots hold a chain."""
    fd = os.open(f"{path}.state", os.O_RDONLY)
    try:
        return _slots.used(fd)
    finally:
        os.close(fd)


def tell(ledger: audit.Ledger, **fields: Any) -> None:
    """Write a record that must be kept."""
    assert ledger.append("guard.config", None, lambda: fields, gate=True)


def child(ledger: audit.Ledger, how: str) -> int:
    """Fork a child that writes and then closes its chain, is killed, or waits for a signal; return its pid."""
    heard, told = os.pipe()
    pid = os.fork()
    if not pid:
        tell(ledger, child=how)
        if how == "closed":
            ledger.close()
        os.write(told, b".")
        if how == "waits":
            signal.pause()
        os._exit(0)
    os.close(told)
    assert os.read(heard, 1) == b"."
    os.close(heard)
    if how != "waits":
        os.waitpid(pid, 0)
    return pid


def findings(host: dict[str, Any]) -> list[str]:
    """Return what the verifier finds."""
    seen = verifier.verify(host["path"], key=host["key"], registry=host["keys"])
    return [f.reason for f in seen.findings]


def retired(host: dict[str, Any]) -> None:
    """Leave the segment, and retire all but the last."""
    assert host["ledger"].rotate() and host["ledger"].rotate()
    assert retention.retire(host["path"], keep=1, keys=host["keys"])


# ------------------------------------------------------------------ given back


def test_slots_go_with_the_segments_of_their_chains(host: dict[str, Any]) -> None:
    """Chains that ended, or whose process is gone, give their slots back; those that run keep theirs."""
    for _ in range(5):
        child(host["ledger"], "closed")
        child(host["ledger"], "killed")
    waits = child(host["ledger"], "waits")
    assert used(host["path"]) == 12
    assert findings(host) == []

    retired(host)
    assert used(host["path"]) == 3  # ours, the one that waits, and that of the retirement
    assert findings(host) == []

    os.kill(waits, signal.SIGKILL)
    os.waitpid(waits, 0)
    tell(host["ledger"], after=1)
    assert findings(host) == []


def test_retired_again_and_again(host: dict[str, Any]) -> None:
    """Chains that are over stay accounted for when the records that say so are retired themselves."""
    for how in ("closed", "killed") * 20:
        child(host["ledger"], how)
    for _ in range(3):
        retired(host)
        assert findings(host) == []
        assert used(host["path"]) <= 3  # ours and those of the last two retirements


def test_slot_that_nobody_gave_back_is_missed(host: dict[str, Any]) -> None:
    """An empty slot is excused only by a record that says that its chain was over: who empties others is seen."""
    waits = child(host["ledger"], "waits")
    retired(host)
    assert used(host["path"]) == 3
    with open(f"{host['path']}.state", "r+b") as state:
        state.seek(2 * 128)  # after the head, and ours
        assert any(state.read(128))
        state.seek(2 * 128)
        state.write(bytes(128))
    assert findings(host) == ["state-missing"]

    os.kill(waits, signal.SIGKILL)
    os.waitpid(waits, 0)


def test_room_of_slots_is_given_back(host: dict[str, Any]) -> None:
    """Where nothing is left of a page of slots, the file has a hole, and later chains come behind it."""
    for _ in range(100):
        child(host["ledger"], "closed")
    before = os.stat(f"{host['path']}.state")
    retired(host)
    after = os.stat(f"{host['path']}.state")

    assert before.st_size == 102 * 128
    assert after.st_size == 103 * 128
    assert after.st_blocks < before.st_blocks
    child(host["ledger"], "closed")
    assert used(host["path"]) == 3
    assert findings(host) == []


def test_chain_with_a_record_left_keeps_its_slot(host: dict[str, Any]) -> None:
    """A chain of which one record is in a segment that stays is not given up, though it has ended."""
    other = audit.Ledger(host["path"], "require", audit.Options(host["keys"]))
    assert host["ledger"].rotate()
    other.checkpoint()  # it follows
    other.close()
    assert host["ledger"].rotate()
    retention.retire(host["path"], keep=1, keys=host["keys"])

    assert used(host["path"]) == 3
    assert findings(host) == []


def test_chains_of_an_earlier_boot(host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of another boot runs: what it left open is over, though its opening was retired before."""
    assert host["ledger"].rotate()
    tell(host["ledger"], more=1)
    waits = child(host["ledger"], "waits")
    assert host["ledger"].rotate() and host["ledger"].rotate()
    monkeypatch.setattr(_probe, "boot_id", lambda: "00000000-0000-4000-8000-000000000001")
    retention.retire(host["path"], keep=1, keys=host["keys"])
    os.kill(waits, signal.SIGKILL)
    os.waitpid(waits, 0)

    assert used(host["path"]) == 2  # ours, which has written checkpoints since, and that of the retirement


def test_cut_tail_keeps_its_slot(host: dict[str, Any]) -> None:
    """What was cut off before the retirement stays a finding after it: the slot tells of more records."""
    child(host["ledger"], "closed")
    assert host["ledger"].rotate() and host["ledger"].rotate()
    old = host["path"].with_name("ledger.1")
    lines = old.read_bytes().splitlines(keepends=True)
    assert b"chain.close" in lines[-1]
    old.write_bytes(b"".join(lines[:-1]))
    before = findings(host)
    retention.retire(host["path"], keep=1, keys=host["keys"])

    assert before == ["tail-truncated"]
    assert findings(host) == ["chain-missing"]
    assert used(host["path"]) == 3


def test_slot_that_is_given_back_while_it_is_verified(host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain whose slot goes between the two looks of the verifier was compared by the first."""
    child(host["ledger"], "closed")
    assert host["ledger"].rotate() and host["ledger"].rotate()
    read, looks = _verify_state.read, []

    def look(path: str) -> Any:
        if looks:
            retention.retire(host["path"], keep=1, keys=host["keys"])
        looks.append(read(path))
        return looks[-1]

    monkeypatch.setattr(_verify_state, "read", look)

    assert findings(host) == []
    assert [len(state.slots) for state in looks] == [2, 2]


def test_process_that_writes_on_where_its_slot_was_emptied(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that retire cannot see, as in another container, is thought to be gone: its next record mends that."""
    ledger = host["ledger"]
    monkeypatch.setattr("safespawn._probe.process_runs", lambda *_: False)
    heard, told = os.pipe()
    go, on = os.pipe()
    pid = os.fork()
    if not pid:
        tell(ledger, first=1)
        os.write(told, b".")
        os.read(go, 1)
        tell(ledger, second=1)
        ledger.close()
        os._exit(0)
    os.read(heard, 1)
    retired(host)
    between = used(host["path"])
    os.write(on, b".")
    os.waitpid(pid, 0)
    for fd in (heard, told, go, on):
        os.close(fd)

    assert between == 2
    assert used(host["path"]) == 3
    assert findings(host) == []


# ------------------------------------------------------------------ holes


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state file of a tebibyte with two slots in it is read at once."""
    path = tmp_path / "state"
    slot = bytes(8) + bytes(range(16)) + bytes(104)
    with open(path, "wb") as file:
        file.write(MAGIC.ljust(128, b"\0"))
        for at in (1 << 30, 1 << 40):
            file.seek(at)
            file.write(slot.replace(b"\1", bytes([at.bit_length()])))
    asked: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: asked.append(size) or pread(fd, size, at))
    state = _verify_state.read(str(path))

    assert [found.byte for found in state.slots.values()] == [1 << 30, 1 << 40]
    assert state.faults == []
    assert sum(asked) < 1 << 20
    fd = os.open(path, os.O_RDONLY)
    assert _slots.used(fd) == 2
    os.close(fd)


def test_too_many_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier's memory has a bound, however many slots somebody writes."""
    monkeypatch.setattr(_verify_state, "SLOTS_MAX", 10)
    path = tmp_path / "state"
    path.write_bytes(MAGIC.ljust(128, b"\0") + b"".join(bytes(8) + bytes([i]) * 16 + bytes(104) for i in range(1, 30)))

    assert _verify_state.read(str(path)).faults == [(0, "too many slots")]


# ------------------------------------------------------------------ the limit


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many chains there may be: few."""
    monkeypatch.setattr(_slots, "MOST", 40)
    monkeypatch.setattr(_slots, "SPARE", 2)
    return 40


def opened(host: dict[str, Any]) -> audit.Ledger:
    """Open the ledger once more."""
    return audit.Ledger(host["path"], "require", audit.Options(host["keys"], chains=_slots.MOST))


def test_limit_of_chains(host: dict[str, Any], most: int) -> None:
    """At the limit an opening is refused and says what to do, and takes no slot; that helps."""
    for _ in range(most - 1):
        opened(host).close()
    registered = len((host["keys"] / "registry.jsonl").read_bytes().splitlines())
    for _ in range(3):
        with pytest.raises(AuditError, match="rotate and retire old segments, or begin another ledger") as caught:
            opened(host)
        assert caught.value.errno == errno.EUSERS
    assert used(host["path"]) == most
    assert len((host["keys"] / "registry.jsonl").read_bytes().splitlines()) == registered

    retired(host)
    assert used(host["path"]) == 2
    opened(host).close()
    assert findings(host) == []


def test_another_ledger_at_the_limit(host: dict[str, Any], most: int) -> None:
    """The other way out: another path, with the same keys; both can be verified."""
    for _ in range(most - 1):
        opened(host).close()
    other = {**host, "path": host["path"].with_name("other")}
    opened(other).close()

    assert findings(host) == findings(other) == []


def clone() -> int:
    """Fork past libc."""
    number = 56 if os.uname().machine == "x86_64" else 220
    return ctypes.CDLL(None).syscall(number, signal.SIGCHLD, None, None, None, None)


@pytest.mark.parametrize(("fork", "error"), [(os.fork, errno.EUSERS), (clone, errno.ECHILD)], ids=["python", "clone"])
def test_limit_in_a_forked_child(tmp_path: Path, most: int, fork: Callable[[], int], error: int) -> None:
    """A forked child that would begin one chain too many is refused, and its parent writes on."""
    keys, path = tmp_path / "keys", tmp_path / "ledger"
    audit.keys.initialise(keys)
    options = audit.Options(keys, chains=most)
    codes = []
    with audit.Ledger(path, "require", options) as ledger:
        for _ in range(most + 2):
            pid = fork()
            if not pid:
                try:
                    tell(ledger, child=1)
                    os._exit(0)
                except AuditError as problem:
                    os._exit(problem.errno or 255)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        tell(ledger, parent=1)

    assert codes == [0] * (most - 1) + [error] * 3
    assert used(path) == most


def test_notice_before_the_limit(host: dict[str, Any], most: int) -> None:
    """When nine tenths are used the opening, and the next checkpoint of those that are open, tell it once."""
    first = opened(host)
    for _ in range(most * 9 // 10 - 3):
        opened(host).close()
    first.checkpoint()
    opened(host).close()
    for _ in range(2):
        first.checkpoint()
    first.close()
    whys = [r["why"] for r in helpers.records(host["path"]) if r["ev"] == "audit.degraded"]

    assert whys == [f"36 of {most} chains have a slot in the state file: retire old segments"] * 2
    assert findings(host) == []


def test_slots_are_counted_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the blocks of the file say that there are few nobody looks at each; near the limit now and then."""
    state = tmp_path / "state"
    slot = bytes(8) + b"x" * 120
    counted: list[int] = []
    count = _slots.used
    monkeypatch.setattr(_slots, "used", lambda fd: counted.append(count(fd)) or counted[-1])
    room = _slots.Room(10_000)
    with open(state, "w+b", buffering=0) as file:
        file.write(MAGIC.ljust(128, b"\0"))
        for number in range(10_000):
            assert number <= room.used(file.fileno())
            file.write(slot)
        few = len(counted)
        assert [room.used(file.fileno()) for _ in range(3)] == [10_000] * 3

    assert few < 20
    assert counted[-3:] == [10_000] * 3
