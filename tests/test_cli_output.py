"""Every command says with its exit code that its output could not be written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from safespawn import audit

#: Commands that print, and the exit code by which they say that they cannot.
COMMANDS = {
    "doctor": 125,
    "doctor --json": 125,
    "bench --list": 125,
    "exec --check": 125,
    "audit keys init --dir {keys}": 2,
    "audit retire --keep 1 {ledger}": 2,
    "audit show {ledger}": 2,
    "audit report {ledger} -o -": 2,
    "audit export --format ecs {ledger}": 2,
    "audit verify --without-key {ledger}": 2,
}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Return a ledger with older segments, of which one can be retired."""
    path = tmp_path / "ledger"
    with audit.open(path, keys="") as opened:
        opened.rotate()
        opened.rotate()
    return path


def run(text: str, ledger: Path, shell: str) -> subprocess.CompletedProcess[str]:
    """Run one with its output as the shell has it."""
    words = text.format(ledger=ledger, keys=ledger.parent / "keys").split()
    argv = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "safespawn", *words]
    return subprocess.run(argv, stderr=subprocess.PIPE, text=True, timeout=60, check=False)


@pytest.mark.parametrize("text", COMMANDS)
def test_full_disk_is_told(text: str, ledger: Path) -> None:
    """The exit code is the command's own, not 120 of an interpreter that tries once more, and stderr says why."""
    done = run(text, ledger, "> /dev/full")

    assert (done.returncode, done.stderr.count("No space left on device")) == (COMMANDS[text], 1), done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("text", COMMANDS)
def test_no_standard_output_is_told(text: str, ledger: Path) -> None:
    """Without descriptor 1 nothing is printed into the void: `print` would, and be content."""
    done = run(text, ledger, ">&-")

    assert (done.returncode, done.stderr.count("there is no standard output")) == (COMMANDS[text], 1), done.stderr
    assert "Traceback" not in done.stderr


def test_keys_that_nobody_sees_are_not_made(ledger: Path) -> None:
    """Without descriptor 1 no verification key is shown, and so there are no keys."""
    run("audit keys init --dir {keys}", ledger, ">&-")
    assert list((ledger.parent / "keys").iterdir()) == []


def test_what_was_printed_before_an_error_of_reading_is_written(ledger: Path) -> None:
    """A ledger that breaks off does not take along what stands before that."""
    ours, its = socket.socketpair()
    lines = (ledger.parent / "ledger.1").read_bytes()
    its.sendall(lines)
    ours.sendall(b"unread")  # so the other end does not merely end: ECONNRESET
    its.close()
    argv = [sys.executable, "-m", "safespawn", "audit", "export", "--format", "ecs", "-"]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with ours:
        done = subprocess.run(argv, stdin=ours, capture_output=True, text=True, timeout=60, check=False, env=buffered)

    assert (done.returncode, done.stdout.count("\n")) == (2, lines.count(b"\n")), done.stderr
    assert "Connection reset by peer" in done.stderr
