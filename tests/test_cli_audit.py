"""The audit commands in a row, as an administrator types them, about a ledger that is written meanwhile."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import helpers
from safespawn import audit, cli, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the ledger of a daemon")

#: Spawns each time that it is told to, until nothing more comes.
DAEMON = """
import sys
from safespawn import audit, run
ledger = audit.open(sys.argv[1], keys=sys.argv[2])
for line in sys.stdin:
    if line == "rotate\\n":
        assert ledger.rotate()
    else:
        run(["/bin/sh", "-c", line.rstrip()], audit_tags={"job": "nightly"})
    print("done", flush=True)
"""


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run `safespawn audit` to its end."""
    line = [sys.executable, "-m", "safespawn", "audit", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


class Daemon:
    """A process with a ledger."""

    def __init__(self, where: Path) -> None:
        self.ledger, self.keys = where / "ledger.jsonl", where / "keys"
        made = command("keys", "init", "--dir", self.keys)
        assert made.returncode == 0, made.stderr
        (key,) = re.findall(r"^ *([0-9a-f]{64})$", made.stdout, re.MULTILINE)
        self.key_file = where / "verification-key"
        self.key_file.write_text(key)
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(self.ledger), str(self.keys)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(helpers.ROOT)},
        )

    def do(self, *lines: str) -> None:
        """Have it run these, one after the other."""
        assert self.process.stdin is not None and self.process.stdout is not None
        for line in lines:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        """Let it end in order."""
        self.process.communicate()
        assert self.process.returncode == 0

    def verify(self, *more: object) -> subprocess.CompletedProcess[str]:
        """Verify its ledger with all there is."""
        return command("verify", self.ledger, "--key-file", self.key_file, "--keys", self.keys, *more)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Return one that is ended in any case."""
    made = Daemon(tmp_path)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def test_life_of_a_ledger(daemon: Daemon, tmp_path: Path) -> None:
    """Keys, spawns, looks, a report, exports, rotation, retirement: all while the daemon runs, and clean at the end."""
    daemon.do("exit 3", "true first")
    shown = command("show", daemon.ledger, "--json", "--program", "*sh")
    assert shown.returncode == 0, shown.stderr
    spawns = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(one["outcome"], one["exit_code"]) for one in spawns] == [("exec", 3), ("exec", 0)]
    assert spawns[0]["tags"] == {"job": "nightly"}
    assert daemon.verify().returncode == 0

    page = tmp_path / "report.html"
    made = command("report", daemon.ledger, "--output", page)
    assert made.returncode == 0, made.stderr
    assert "true first" in page.read_text(encoding="utf-8")
    for form in ("ocsf", "ecs", "otel"):
        out = command("export", "--format", form, daemon.ledger)
        assert out.returncode == 0, out.stderr
        assert all(json.loads(line) for line in out.stdout.splitlines())

    for number in range(3):
        daemon.do("rotate", f"true {number}")
    gone = command("retire", daemon.ledger, "--keep", 1, "--keys", daemon.keys)
    assert gone.returncode == 0, gone.stderr
    assert sorted(one.name for one in tmp_path.glob("ledger.jsonl.[0-9]")) == ["ledger.jsonl.3"]
    daemon.do("true last")
    seen = daemon.verify()
    assert (seen.returncode, "retired" in seen.stdout) == (0, True), seen.stdout
    daemon.end()
    assert daemon.verify().returncode == 0


#: The documents with commands and programs to copy.
DOCUMENTS = [helpers.ROOT / "README.md", *sorted((helpers.ROOT / "docs").glob("*.md"))]


def blocks(kind: str) -> list[str]:
    """Return the examples of a language in them."""
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    return [block for text in texts for block in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)]


def test_commands_of_the_documents() -> None:
    """Each `safespawn audit` in them is one that the command line takes: with what is optional left out."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("safespawn audit ")]
    words = [re.sub(r" \[.*?\]| > .*|(?<=\w)\|[\w|]+", "", line).split()[1:] for line in lines if " | " not in line]

    assert {tuple(one[1:2]) for one in words} >= {("verify",), ("show",), ("export",), ("retire",), ("keys",)}
    for one in words:
        cli._parser().parse_args(one)


def test_programs_of_the_documents(tmp_path: Path) -> None:
    """Those about records run as they are, about a ledger of that name."""
    (program,) = [block for block in blocks("python") if "reader.records" in block]
    with audit.open(tmp_path / "ledger.jsonl"):
        run(["/bin/true"])
    env = {**os.environ, "PYTHONPATH": str(helpers.ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    codes = [json.loads(line)["metadata"]["event_code"] for line in done.stdout.splitlines()]
    assert codes == ["chain.open", "spawn.intent", "spawn.started", "spawn.exit", "chain.close"]


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_number_of_segments_that_cannot_be_meant(tmp_path: Path, number: str) -> None:
    """The last older segment stays, so 0 is bad usage too, and nothing is touched."""
    done = command("retire", tmp_path / "ledger", f"--keep={number}")

    assert (done.returncode, f"not '{number}'" in done.stderr) == (125, True)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_retired(daemon: Daemon, tmp_path: Path) -> None:
    """Without the keys nothing is deleted, and the exit code is 2; with nothing to do it is 0."""
    daemon.do("rotate", "true", "rotate")
    refused = command("retire", daemon.ledger, "--keep", 1, "--keys", tmp_path)
    nothing = command("retire", daemon.ledger, "--keep", 2, "--keys", daemon.keys)

    assert (refused.returncode, "/epoch" in refused.stderr) == (2, True), refused.stderr
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert len(list(tmp_path.glob("ledger.jsonl.[0-9]"))) == 2


def test_keys_are_not_made_twice(tmp_path: Path) -> None:
    """Exit code 2, no key is shown, and the keys are those that were there."""
    assert command("keys", "init", "--dir", tmp_path / "keys").returncode == 0
    before = {one.name: one.read_bytes() for one in (tmp_path / "keys").iterdir()}
    done = command("keys", "init", "--dir", tmp_path / "keys")

    assert (done.returncode, done.stdout, "there are keys" in done.stderr) == (2, "", True)
    assert {one.name: one.read_bytes() for one in (tmp_path / "keys").iterdir()} == before


def test_a_changed_ledger_is_told(daemon: Daemon) -> None:
    """Exit code 1, the place, and what to do; the table still shows what is there."""
    daemon.do("exit 3", "true")
    daemon.end()
    data = daemon.ledger.read_bytes()
    daemon.ledger.write_bytes(data.replace(b'"code":3', b'"code":0'))
    seen = daemon.verify()
    assert seen.returncode == 1
    line = 1 + data[: data.index(b'"code":3')].count(b"\n")
    assert seen.stdout.startswith(f"{daemon.ledger}:{line}:"), seen.stdout
    assert "mac-mismatch" in seen.stdout
    assert "what to do:" in seen.stdout


def test_a_cut_ledger_is_told(daemon: Daemon) -> None:
    """The end was cut off: the state file knows of more, and a copy that was shipped shows how much."""
    daemon.do("true", "true")
    daemon.end()
    witness = daemon.ledger.with_name("witness")
    data = daemon.ledger.read_bytes()
    witness.write_bytes(data)
    lines = data.splitlines(keepends=True)
    daemon.ledger.write_bytes(b"".join(lines[:-2]))
    seen = daemon.verify("--witness", witness)
    assert seen.returncode == 1
    assert "tail-truncated" in seen.stdout
    assert "2 records are missing" in seen.stdout


@pytest.mark.parametrize(("hard", "code"), [(256, 0), (64, 2)])
def test_more_segments_than_open_files(tmp_path: Path, hard: int, code: int) -> None:
    """All are open at once, as many as the hard limit lets them be; where that is too low it is said."""
    with audit.open(tmp_path / "ledger", keys="") as ledger:
        for _ in range(100):
            assert ledger.rotate()
    line = [sys.executable, "-m", "safespawn", "audit", "verify", str(tmp_path / "ledger"), "--without-key", "--no-state"]
    seen = run(line, rlimits={resource.RLIMIT_NOFILE: (32, hard)}, capture_output=True, text=True)

    assert seen.returncode == code, seen.stderr
    assert ("nothing was found" in seen.stdout) if code == 0 else ("Too many open files" in seen.stderr)


def test_without_the_key_nothing_is_said(daemon: Daemon) -> None:
    """Exit code 2: no key, another's key, no ledger."""
    daemon.do("true")
    daemon.end()
    assert command("verify", daemon.ledger, "--keys", daemon.keys).returncode == 2
    assert command("verify", daemon.ledger.with_name("other"), "--key-file", daemon.key_file).returncode == 2
    daemon.key_file.write_text("0" * 64)
    assert daemon.verify().returncode == 1
