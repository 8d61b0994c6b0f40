"""Mirrors of a real ledger: what reaches them, what is counted, and that nobody waits for them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import helpers
from safespawn import audit, run
from safespawn.audit.mirrors import Mirror


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger goes."""
    return tmp_path / "ledger.jsonl"


class Kept(Mirror):
    """Keeps the lines. While ``gate`` is closed it takes none, and waits."""

    def __init__(self, name: str = "kept", *, is_open: bool = True) -> None:
        super().__init__(name)
        self.lines: list[bytes] = []
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def open(self) -> None:
        pass

    def send(self, line: bytes) -> None:
        self.gate.wait()
        self.lines.append(line)

    def close(self) -> None:
        pass


class Down(Kept):
    """Cannot be opened."""

    def open(self) -> None:
        raise FileNotFoundError(2, "No such file or directory")


def test_mirror_gets_every_record_byte_for_byte(path: Path) -> None:
    """What a mirror gets is what is in the ledger, from the opening to the closing."""
    mirror = Kept()
    with audit.open(path, mirrors=[mirror]):
        for _ in range(20):
            run(["/bin/true"])

    assert mirror.lines == path.read_bytes().splitlines()
    assert len(mirror.lines) == 62


def test_mirror_that_is_down_is_told_after_the_opening(path: Path) -> None:
    """Record 0 opens the chain whatever mirrors have to say; then it is said, once."""
    with audit.open(path, mirrors=[Down("down")]):
        run(["/bin/true"])
    records = helpers.records(path)

    assert [r["ev"] for r in records].index("chain.open") == 0
    assert [r["mirror"] for r in records if r["ev"] == "mirror.down"] == ["down"]
    assert records[0]["config"]["mirrors"] == ["down"]


def test_counters_are_in_the_checkpoints(path: Path) -> None:
    """A checkpoint tells of every mirror what it took and what it did not."""
    with audit.open(path, mirrors=[Down("down")]) as ledger:
        run(["/bin/true"])
        ledger.checkpoint()
    (told,) = [r["mirrors"] for r in helpers.records(path) if r["ev"] == "checkpoint"]

    assert told["down"]["accepted"] == 0
    assert "No such file" in told["down"]["down"]


def test_nobody_waits_for_a_mirror_that_hangs(path: Path) -> None:
    """Spawns and records go on beside a mirror that takes nothing; what it missed is counted."""
    mirror = Kept(is_open=False)
    ledger = audit.open(path, mirrors=[mirror])
    try:
        run(["/bin/true"])
        for _ in range(700):  # more than are kept for it
            assert ledger.append("guard.config", None, lambda: {"pad": "x" * 7000}, gate=True)
        run(["/bin/true"])
    finally:
        mirror.gate.set()
        ledger.close()
    records = path.read_bytes().splitlines()

    assert len(records) > 700
    assert 0 < len(mirror.lines) < len(records)
    assert set(mirror.lines) <= set(records)
    assert mirror.lines[-1] == records[-1]


def test_idle_ledger_has_checkpoints(path: Path) -> None:
    """With mirrors there are checkpoints also when nothing happens, so that silence can be told from loss."""
    seen = threading.Event()

    class Watching(Kept):
        def send(self, line: bytes) -> None:
            if b'"why":"idle"' in line:
                seen.set()

    with audit.open(path, mirrors=[Watching()], checkpoint_seconds=0.05):
        assert seen.wait(30)


def test_forked_child_is_mirrored_too(path: Path, tmp_path: Path) -> None:
    """A child's mirrors start anew with its first record, and see its chain from the opening on."""
    out = helpers.run_snippet(
        """
        from safespawn import audit
        from safespawn.audit.mirrors import Mirror
        class ToFile(Mirror):
            def open(self):
                self.fd = os.open(f"{place}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            def send(self, line):
                os.write(self.fd, line + b"\\n")
            def close(self):
                os.close(self.fd)
        ledger_ = audit.open(ledger, mirrors=[ToFile("file")])
        safespawn.run(["/bin/true"])
        pid = os.fork()
        if not pid:
            safespawn.run(["/bin/true"])
            ledger_.close()
            os._exit(0)
        out["code"] = os.waitpid(pid, 0)[1]
        ledger_.close()
        out["pids"] = [os.getpid(), pid]
        """,
        ledger=str(path),
        place=str(tmp_path / "mirrored"),
    )
    lines = path.read_bytes().splitlines()
    parent, child = ((tmp_path / f"mirrored.{pid}").read_bytes().splitlines() for pid in out["pids"])

    assert out["code"] == 0
    assert b'"ev":"chain.open"' in child[0]
    assert sorted(parent + child) == sorted(lines)
    assert not set(parent) & set(child)
    assert os.path.getsize(path) == sum(len(line) + 1 for line in lines)


def test_what_is_no_mirror_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    """The same where the ledger could not be opened either, so that it might be opened later."""
    for path in (tmp_path / "ledger", tmp_path / "no" / "such"):
        with pytest.raises(TypeError, match="instances of Mirror"):
            audit.open(path, mirrors=["syslog"])  # type: ignore[list-item]
    assert not (tmp_path / "ledger").exists()
