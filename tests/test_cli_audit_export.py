"""`safespawn audit export`: every record comes out, and what does not is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden import make

import exported
from safespawn.audit.exporters import FORMATS

#: The subcommand by itself, as its parent runs it.
COMMAND = """
import argparse, sys
from safespawn import _cli_audit_export
parser = argparse.ArgumentParser()
_cli_audit_export.add(parser.add_subparsers(required=True))
given = parser.parse_args()
sys.exit(given.call(given))
"""


def export(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60, **options}
    return subprocess.run([sys.executable, "-c", COMMAND, "export", *map(str, arguments)], check=False, **options)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Return a ledger with the golden records."""
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in make.lines()))
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_every_record_comes_out_as_one_line(ledger: Path, form: str) -> None:
    """The output is the golden file's, one object per line, and the exit code 0."""
    done = export("--format", form, "--host", make.HOST, ledger)

    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == make.exported(form)
    assert done.stdout.isascii()


def test_a_pipe_can_be_read(ledger: Path) -> None:
    """`-` is the standard input."""
    done = export("--format", "ecs", "-", input=ledger.read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == len(make.lines())


def test_host_is_not_looked_up(ledger: Path) -> None:
    """Without --host the name of this machine, which may be another, does not appear."""
    first = export("--format", "ocsf", ledger).stdout.splitlines()[0]
    assert json.loads(first)["device"] == {
        "type_id": 0,
        "name": "unknown",
        "boot_uid": json.loads(make.lines()[0])["boot"],
        "os": {"name": "Linux", "type_id": 200},
    }


@pytest.mark.parametrize(
    "line",
    [
        b'{"v":1,"c":"half of a rec',
        b"text",
        b'{"v":1,"c":"a","n":0,"x":"\xc3\xa9"}',
        b'{"v":1,"c":"a","n":0,"x":NaN}',
        b'{"v":1,"c":"a","n":0,"x":' + b"[" * 3000 + b"]" * 3000 + b"}",
    ],
    ids=["torn", "text", "not ASCII", "no JSON", "deep"],
)
@pytest.mark.parametrize("form", FORMATS)
def test_line_that_is_no_record_is_told(ledger: Path, form: str, line: bytes) -> None:
    """It is named on stderr with its place, the others come out, and the exit code is 1."""
    lines = make.lines()
    ledger.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]) + b"\n")
    done = export("--format", form, ledger)

    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == len(lines)
    said = done.stderr.decode("ascii").splitlines()
    assert said[0].startswith("safespawn: ledger.jsonl:3: not exported: ")
    assert said[-1] == f"safespawn: lines not exported: 1 of {len(lines) + 1}"


def test_missing_intents_are_counted(tmp_path: Path) -> None:
    """A segment that begins after the intents: the records come out, and stderr says what they lack."""
    later = [line for line in make.lines() if b'"ev":"spawn.intent"' not in line]
    path = tmp_path / "later.jsonl"
    path.write_bytes(b"\n".join(later) + b"\n")
    done = export("--format", "ecs", path)
    lacking = sum(json.loads(line)["ev"] in ("spawn.started", "spawn.exit", "exit.unknown") for line in later)

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(later)
    assert done.stderr.decode() == (
        f"safespawn: records that lack what was started, as no intent is known: {lacking}\n"
    )


def test_ledger_that_is_not_there(tmp_path: Path) -> None:
    """It is an error that names the file; the exit code is 2."""
    done = export("--format", "ocsf", tmp_path / "none.jsonl")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"none.jsonl" in done.stderr


def test_full_disk_is_told(ledger: Path) -> None:
    """What could not be written is no success."""
    with open("/dev/full", "wb") as full:
        done = export("--format", "ocsf", ledger, stdout=full)
    assert done.returncode == 2
    assert b"No space left on device" in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_reader_that_goes_away_is_told(ledger: Path) -> None:
    """Nobody reads the rest: it says how far it came, and does not die of it."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = export("--format", "ocsf", ledger, stdout=write)
    finally:
        os.close(write)
    assert done.returncode == 2
    assert b"Broken pipe" in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_stderr_shows_no_control_characters(tmp_path: Path) -> None:
    """The name of a file cannot drive the terminal."""
    path = tmp_path / "a\x1b[31m\n.jsonl"
    path.write_bytes(b"text\n")
    done = export("--format", "ecs", path)
    assert b"\x1b" not in done.stderr
    assert rb"a\x1b[31m\n.jsonl:1" in done.stderr


@pytest.mark.parametrize("arguments", [["ledger"], ["--format", "xml", "ledger"], ["--format", "ecs"]])
def test_usage(arguments: list[str]) -> None:
    """The form and the file must be given, and the form be one of the three."""
    done = export(*arguments)
    assert done.returncode == 2
    assert b"usage" in done.stderr


def test_exported_objects_are_read_back(ledger: Path) -> None:
    """What the command writes reads back as the records of the ledger."""
    done = export("--format", "ocsf", ledger)
    back = [exported.from_ocsf(json.loads(line)) for line in done.stdout.splitlines()]
    assert back == [json.loads(line) for line in make.lines()]
