"""Slots of the state file: given back with the segments of their chains, and what happens when there are too many."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
import parents
from safespawn import AuditError, _binding, _probe, audit
from safespawn.audit import _core, _slots, _verify_state, retention, verifier

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
        try:
            tell(ledger, child=how)
            if how == "closed":
                ledger.close()
            os.write(told, b".")
            if how == "waits":
                signal.pause()
        finally:
            os._exit(0)  # whatever it was: the tests are its parent's
    os.close(told)
    has_written = os.read(heard, 1) == b"."
    os.close(heard)
    if how != "waits" or not has_written:
        os.waitpid(pid, 0)
    assert has_written
    return pid


@contextlib.contextmanager
def child_that_waits(ledger: audit.Ledger) -> Iterator[None]:
    """Have a child that has written, and is killed at the end of the block."""
    pid = child(ledger, "waits")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


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
    with child_that_waits(host["ledger"]):
        assert used(host["path"]) == 12
        assert findings(host) == []

        retired(host)
        assert used(host["path"]) == 3  # ours, the one that waits, and that of the retirement
        assert findings(host) == []

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
    with child_that_waits(host["ledger"]):
        retired(host)
        assert used(host["path"]) == 3
        with open(f"{host['path']}.state", "r+b") as state:
            state.seek(2 * 128)  # after the head, and ours
            assert any(state.read(128))
            state.seek(2 * 128)
            state.write(bytes(128))
        assert findings(host) == ["state-missing"]


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


def later_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it look as if we had been booted after all that was written so far."""
    booted = time.time_ns()
    monkeypatch.setattr(_probe, "boot_id", lambda: "00000000-0000-4000-8000-000000000001")
    monkeypatch.setattr(_probe, "booted_ns", lambda: booted)


def test_chains_of_an_earlier_boot(host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of another boot runs: what it left open is over, though its opening was retired before."""
    assert host["ledger"].rotate()
    tell(host["ledger"], more=1)
    with child_that_waits(host["ledger"]):
        assert host["ledger"].rotate() and host["ledger"].rotate()
        later_boot(monkeypatch)
        retention.retire(host["path"], keep=1, keys=host["keys"])

    assert used(host["path"]) == 2  # ours, which has written checkpoints since, and that of the retirement


def test_chain_that_outlived_its_records(host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lived when all its records were retired is over after the next boot."""
    with child_that_waits(host["ledger"]):
        retired(host)
        retired(host)
    assert used(host["path"]) == 3  # ours, the one that waited, and that of the second retirement
    assert host["ledger"].rotate() and host["ledger"].rotate()
    later_boot(monkeypatch)
    retention.retire(host["path"], keep=1, keys=host["keys"])

    assert used(host["path"]) == 2
    assert findings(host) == []


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


def test_slot_that_was_emptied_before_its_segment_goes(host: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain that had no slot at the first look, and is older than that look, is missed though its file goes meanwhile."""
    child(host["ledger"], "closed")
    assert host["ledger"].rotate()
    with open(f"{host['path']}.state", "r+b") as state:
        state.seek(2 * 128)  # after the head, and ours
        state.write(bytes(128))
    read, looks = _verify_state.read, []

    def look(path: str) -> Any:
        if looks:
            os.unlink(f"{host['path']}.1")
        looks.append(read(path))
        return looks[-1]

    monkeypatch.setattr(_verify_state, "read", look)

    assert findings(host) == ["state-missing"]
    assert [len(state.slots) for state in looks] == [1, 1]


def test_process_that_writes_on_where_its_slot_was_emptied(
    host: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that retire took for gone all the same mends that with its next record."""
    ledger = host["ledger"]
    monkeypatch.setattr(_probe, "is_gone", lambda *_: True)
    heard, told = os.pipe()
    go, on = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(on)  # what it waits for is over when we are
            tell(ledger, first=1)
            os.write(told, b".")
            os.read(go, 1)
            tell(ledger, second=1)
            ledger.close()
        finally:
            os._exit(0)
    os.close(told)
    try:
        os.read(heard, 1)
        retired(host)
        between = used(host["path"])
    finally:
        for fd in (heard, go, on):
            os.close(fd)
        os.waitpid(pid, 0)

    assert between == 2
    assert used(host["path"]) == 3
    assert findings(host) == []


# ------------------------------------------------------------------ processes that cannot be seen

NEW_PIDS, NEW_MOUNTS, NEW_TIMES = 0x20000000, 0x00020000, 0x80  # CLONE_NEWPID, CLONE_NEWNS, CLONE_NEWTIME
OWN_MOUNTS, BIND = 0x00044000, 0x1000  # MS_REC | MS_PRIVATE, MS_BIND
SYS_PTRACE = 19
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount, in namespaces of our own."""
    if parents.libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), "mount", target)


def apart(flags: int, work: Callable[[], None]) -> int:
    """Fork a child in new namespaces, which does the work and ends; return the pid of who waits for it."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        assert parents.libc.unshare(flags) == 0
        if flags & NEW_TIMES:
            Path("/proc/self/timens_offsets").write_text("boottime 1000 0")
        if not (inside := os.fork()):
            if flags & NEW_MOUNTS:
                mount("none", "/", "", OWN_MOUNTS)
            work()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1])
    finally:
        os._exit(code)


def where_nobody_is_seen() -> None:
    """See only our own processes in /proc, as with `hidepid`: those of others are not there."""
    mount("proc", "/proc", "proc", 0, "hidepid=2")
    os.setgroups([])
    os.setresgid(1000, 1000, 1000)  # it is for group 0 to see all
    parents.capset(parents.ours() & ~(1 << SYS_PTRACE))


def where_boots_are_counted_anew(own: Path) -> None:
    """Have a boot id of our own, as containers of systemd-nspawn and LXC do."""
    own.write_text("00000000-0000-4000-8000-00000000000c\n")
    mount(str(own), "/proc/sys/kernel/random/boot_id", "", BIND)
    _probe.boot_id.cache_clear()


#: Where the process of the chain is, and where who retires; each gets a path for a file.
UNSEEN: dict[str, tuple[int, Callable[[Path], object], int, Callable[[Path], object]]] = {
    "in a container": (NEW_PIDS, lambda _: None, 0, lambda _: None),
    "outside of ours": (0, lambda _: None, NEW_PIDS | NEW_MOUNTS, lambda _: mount("proc", "/proc", "proc")),
    "hidden": (0, lambda _: os.setresuid(0, 0, 1000), NEW_MOUNTS, lambda _: where_nobody_is_seen()),
    "at another time": (0, lambda _: None, NEW_TIMES, lambda _: None),
    "without /proc": (0, lambda _: None, NEW_MOUNTS, lambda _: mount("none", "/proc", "tmpfs")),
    "of its own boot": (NEW_MOUNTS, where_boots_are_counted_anew, 0, lambda _: None),
    "outside of our boot": (0, lambda _: None, NEW_MOUNTS, where_boots_are_counted_anew),
}  # fmt: skip


@root_only
@pytest.mark.parametrize("where", UNSEEN)
def test_process_that_cannot_be_seen(host: dict[str, Any], where: str) -> None:
    """The slot of a process that lives stays, wherever it is: what it writes later is missed when it is cut off."""
    flags_there, go_there, flags_here, go_here = UNSEEN[where]
    if flags_here & NEW_TIMES and not os.path.exists("/proc/self/ns/time"):
        pytest.skip("before Linux 5.6")
    heard, told = os.pipe()
    go, on = os.pipe()

    def record() -> None:
        go_there(host["path"].with_name("boot"))
        ledger = opened(host)
        tell(ledger, first=1)
        os.write(told, b".")
        os.read(go, 1)
        tell(ledger, second=1)  # and is killed

    recorder = apart(flags_there, record)
    os.read(heard, 1)
    assert host["ledger"].rotate() and host["ledger"].rotate()

    def retire() -> None:
        go_here(host["path"].with_name("boot"))
        retention.retire(host["path"], keep=1, keys=host["keys"])

    assert os.waitpid(apart(flags_here, retire), 0)[1] == 0
    size = host["path"].stat().st_size
    os.write(on, b".")
    assert os.waitpid(recorder, 0)[1] == 0
    for fd in (heard, told, go, on):
        os.close(fd)
    assert findings(host) == []
    (second,) = (record for record in helpers.records(host["path"]) if record.get("second"))

    # Who may write the files cuts that off, and lets it look as if the chain had given its slot back.
    os.truncate(host["path"], size)
    state = Path(f"{host['path']}.state")
    at = state.read_bytes().index(uuid.UUID(second["c"]).bytes) - 8
    with state.open("r+b") as file:
        file.seek(at)
        file.write(bytes(128))
    assert findings(host) == ["state-missing"]


# ------------------------------------------------------------------ seals


def stack_after(ledger: audit.Ledger, event: str, members: bytes) -> bytes:
    """Write a record on a stack of its own (makecontext(3)), and return what that holds afterwards."""
    ffi, stack = _binding.ffi, ctypes.create_string_buffer(1 << 18)
    entry, body = ffi.new("struct ss_entry *"), ffi.from_buffer("char[]", members)
    entry.event, entry.body, entry.body_bytes = _core.EVENTS[event], body, len(members)
    back, there = (ctypes.create_string_buffer(1 << 14) for _ in range(2))  # ucontext_t: 1 KB, or 5 on aarch64
    assert parents.libc.getcontext(there) == 0
    # uc_flags, uc_link; of uc_stack: ss_sp, ss_flags, ss_size
    struct.pack_into("QQQQQ", there, 0, 0, ctypes.addressof(back), ctypes.addressof(stack), 0, len(stack))
    call = [ffi.addressof(_binding.lib, "ss_ledger_append"), ledger._core.raw, entry, ffi.NULL]
    append, *arguments = (ctypes.c_void_p(int(ffi.cast("uintptr_t", one))) for one in call)
    parents.libc.makecontext(there, append, 3, *arguments)
    assert parents.libc.swapcontext(back, there) == 0
    return stack.raw


def slots_on(stack: bytes, host: dict[str, Any]) -> int:
    """Return of how many slots a chain or a seal is there."""
    state = Path(f"{host['path']}.state").read_bytes()
    slots = (state[at : at + 128] for at in range(128, len(state), 128))
    return sum(slot[8:24] in stack or slot[40:72] in stack for slot in slots)


def test_slots_are_not_left_on_the_stack(host: dict[str, Any]) -> None:
    """Nothing of a slot is on the stack after a record, or after a claim, for a forked child to copy."""
    stacks = [stack_after(host["ledger"], "guard.config", b'"a":1')]
    heard, told = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(told, stack_after(host["ledger"], "chain.open", b'"who":{}'))
        os._exit(0)
    os.close(told)
    with open(heard, "rb") as file:
        stacks.append(file.read())
    os.waitpid(pid, 0)

    assert used(host["path"]) == 2
    assert all(any(stack) for stack in stacks)
    assert [slots_on(stack, host) for stack in stacks] == [0, 0]


# ------------------------------------------------------------------ holes


def test_head_of_the_state_file_waits_for_nobody(tmp_path: Path) -> None:
    """A forked child that was taken over cuts the file and holds its lock: chains are begun all the same."""
    out = helpers.run_snippet(
        """
        import fcntl
        from safespawn import audit
        audit.keys.initialise(where + "/keys")
        opened = audit.open(where + "/ledger", keys=where + "/keys")
        told, tell = os.pipe()
        hostile = os.fork()
        if not hostile:
            state = opened._core.counts().state
            os.ftruncate(state, 0)
            fcntl.flock(os.open(where + "/ledger.state", os.O_RDWR), fcntl.LOCK_EX)
            os.write(tell, b".")
            signal.pause()
        os.read(told, 1)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(hostile, signal.SIGKILL))  # who waits for it waits no longer
        signal.alarm(50)
        audit.open(where + "/ledger", keys=where + "/keys")
        out["code"] = safespawn.run(["/bin/true"]).returncode
        out["left"] = signal.alarm(0) > 0
        os.kill(hostile, signal.SIGKILL)
        """,
        where=str(tmp_path),
    )
    assert out == {"code": 0, "left": True}


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
