"""The audit trail: what is recorded, in which order, and what happens when it cannot be."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import AuditError, PIPE, SpawnReport, UnsafeSpawn, _checks, _records, audit, run, spawn
from safespawn._spec import Verdict
from safespawn.audit import _record

LINE_MAX = 8000
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger goes."""
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Make keys and return their directory."""
    audit.keys.initialise(tmp_path / "keys")
    return tmp_path / "keys"


def events(path: Path) -> list[str]:
    """Return the names of the events in order, without the starts past us: tests fork."""
    return [record["ev"] for record in helpers.records(path) if record["ev"] != "spawn.bypass"]


def only(path: Path, event: str) -> dict[str, Any]:
    """Return the one record of an event."""
    (record,) = [r for r in helpers.records(path) if r["ev"] == event]
    return record


def parsed(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line, None where it is no whole record."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def gapless(records: list[dict[str, Any]]) -> bool:
    """Return whether the numbers of each chain go 0, 1, 2 in the order of the file."""
    chains: dict[str, list[int]] = {}
    for record in records:
        chains.setdefault(record["c"], []).append(record["n"])
    return all(numbers == list(range(len(numbers))) for numbers in chains.values())


# -------------------------------------------------------------- order and form


def test_records_of_one_spawn(path: Path) -> None:
    """A spawn leaves intent, started and exit between the opening and the closing of its chain."""
    with audit.open(path):
        run(["/bin/true"])

    assert events(path) == ["chain.open", "spawn.intent", "spawn.started", "spawn.exit", "chain.close"]


@pytest.mark.threat("T-11")
def test_intent_is_in_the_file_before_the_program_runs(path: Path) -> None:
    """The program itself finds its intent in the ledger."""
    with audit.open(path):
        seen = run(["/bin/cat", path], stdout=PIPE).stdout

    found = [json.loads(line) for line in seen.splitlines()]
    assert found[1]["ev"] == "spawn.intent"
    assert found[1]["what"]["argv"] == ["/bin/cat", str(path)]


def test_form(path: Path) -> None:
    """Each line is one JSON object in ASCII, numbered without a gap, of one chain and one schema."""
    with audit.open(path):
        for _ in range(3):
            run(["/bin/true"])
    data = path.read_bytes()
    records = [json.loads(line) for line in data.splitlines()]

    assert data.isascii()
    assert data.endswith(b"\n")
    assert data.count(b"\n") == len(records) == 11
    assert [r["n"] for r in records] == list(range(11))
    assert len({r["c"] for r in records}) == 1
    assert UUID7.fullmatch(records[0]["c"])
    assert {r["v"] for r in records} == {1}
    assert {r["mode"] for r in records} == {"require"}
    assert [r["t"] for r in records] == sorted(r["t"] for r in records)
    assert [r["mono"] for r in records] == sorted(r["mono"] for r in records)
    assert {r["boot"] for r in records} == {
        Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    }


def test_sid_joins_the_records(path: Path) -> None:
    """The records of one spawn have its id, which is that of its report; those of two differ."""
    with audit.open(path):
        ids = [run(["/bin/true"]).report.id for _ in range(2)]
    by_sid: dict[str | None, list[str]] = {}
    for record in helpers.records(path):
        by_sid.setdefault(record["sid"], []).append(record["ev"])

    assert all(UUID7.fullmatch(one) for one in ids)
    assert by_sid == {
        None: ["chain.open", "chain.close"],
        ids[0]: ["spawn.intent", "spawn.started", "spawn.exit"],
        ids[1]: ["spawn.intent", "spawn.started", "spawn.exit"],
    }


def test_no_floats(path: Path) -> None:
    """Numbers in records are integers, deadlines included: floats differ from parser to parser."""
    with audit.open(path):
        run(["/bin/true"], deadline=1.5, timeout=20.25)

    def fail(text: str) -> None:
        pytest.fail(f"a float in a record: {text}")

    for line in path.read_text(encoding="ascii").splitlines():
        json.loads(line, parse_float=fail)
    assert only(path, "spawn.intent")["want"]["deadline"] == "1.5"


# ------------------------------------------------------------------ contents


def test_who(path: Path) -> None:
    """The intent says who asks: process, ids, groups and capabilities."""
    with audit.open(path):
        run(["/bin/true"])
    who = only(path, "spawn.intent")["who"]
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    start = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]

    assert (who["pid"], who["ppid"], who["start"]) == (os.getpid(), os.getppid(), int(start))
    assert (who["ruid"], who["euid"], who["suid"]) == os.getresuid()
    assert (who["rgid"], who["egid"], who["sgid"]) == os.getresgid()
    assert who["groups"] == sorted(os.getgroups())
    for key, name in (("eff", "CapEff"), ("prm", "CapPrm"), ("inh", "CapInh")):
        assert int(who[key], 16) == int(status[name], 16)


@root_only
def test_namespace_of_the_pid(path: Path) -> None:
    """The opening of a chain alone says in which PID namespace its process is; null where /proc is missing."""
    helpers.run_snippet(
        """
from safespawn import audit
opened = audit.open(ledger)
safespawn.run(["/bin/true"])
os.mkdir(ledger + ".root")
os.chroot(ledger + ".root")
if not (child := os.fork()):
    opened.checkpoint()
    os._exit(0)
os.waitpid(child, 0)
""",
        ledger=str(path),
    )
    whos = [(r["ev"], r["who"]) for r in helpers.records(path) if "who" in r]
    told = [(event, who["pid_ns"]) for event, who in whos if "pid_ns" in who]

    assert "spawn.intent" in dict(whos)
    assert told == [("chain.open", os.stat("/proc/self/ns/pid").st_ino), ("chain.open", None)]


@pytest.mark.parametrize(
    "name",
    [
        "{}/a/program", "{}/link/program", "{}/a/../a/program", "{}/a/./program", "{}//a/program", "/../{}/a/program",
        "{}/.../..x/.y", "{}/a/link", "a/program", "./a/program", "/proc/self/cwd/a/program",
    ],
)  # fmt: skip
def test_real_name_of_the_program(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By whatever name it was asked for: the record and the report have the one that the kernel gives it."""
    program = Path("/bin/true").read_bytes()
    for file in ("a/program", ".../..x/.y"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(program)
        (tmp_path / file).chmod(0o755)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a" / "link").symlink_to("program")
    monkeypatch.chdir(tmp_path)
    name = name.format(tmp_path)
    with audit.open(path):
        done = run([name])
    exe = only(path, "spawn.intent")["what"]["exe"]

    assert (exe["path"], exe["real"]) == (name, os.path.realpath(name))
    assert done.report.executable.real == os.path.realpath(name)


def test_what(path: Path, tmp_path: Path) -> None:
    """The intent says what is started: arguments, file, directory and descriptors."""
    out = tmp_path / "out"
    with audit.open(path), open(out, "wb") as file:
        run(["sh", "-c", "exit 0"], executable="/bin/sh", cwd=tmp_path, stdout=file)
    what = only(path, "spawn.intent")["what"]
    seen = os.stat("/bin/sh")

    assert (what["argv"], what["argc"], what["argv_bytes"]) == (["sh", "-c", "exit 0"], 3, 10)
    assert what["cwd"] == str(tmp_path)
    exe = what["exe"]
    assert (exe["path"], exe["real"]) == ("/bin/sh", os.path.realpath("/bin/sh"))
    assert (exe["ino"], exe["size"], exe["mtime"]) == (seen.st_ino, seen.st_size, seen.st_mtime_ns)
    assert exe["dev"] == f"{os.major(seen.st_dev):x}:{os.minor(seen.st_dev):x}"
    assert (exe["mode"], exe["uid"], exe["gid"]) == (f"{stat.S_IMODE(seen.st_mode):o}", seen.st_uid, seen.st_gid)
    fds = {fd["fd"]: fd for fd in what["fds"]}
    assert sorted(fds) == [0, 1, 2]
    assert (fds[1]["type"], fds[1]["ino"]) == ("file", out.stat().st_ino)


def test_what_of_a_pinned_script(path: Path, program: Callable[..., Path]) -> None:
    """Digest and interpreter of a pinned script are in the intent."""
    script = program("#!/bin/sh -e\nexit 0\n")
    with audit.open(path):
        run([script], pin=True)
    exe = only(path, "spawn.intent")["what"]["exe"]

    assert exe["sha256"] == hashlib.sha256(script.read_bytes()).hexdigest()
    assert exe["pinned"] is True
    assert exe["interp"] == "/bin/sh"


@root_only
def test_want(path: Path) -> None:
    """The intent says what was asked of the child: identity, limits and the rest that is not default."""
    with audit.open(path):
        run(["/bin/true"], user="nobody", umask=0o27, nice=3, no_new_privs=True, env_policy="scrub")
        run(["/bin/true"])
    first, second = [r["want"] for r in helpers.records(path) if r["ev"] == "spawn.intent"]

    assert first["uid"] == 65534
    assert first["groups"] == sorted(os.getgrouplist("nobody", first["gid"]))
    assert (first["umask"], first["nice"], first["no_new_privs"]) == (0o27, 3, True)
    assert first["env_policy"] == "scrub"
    assert second == {}


def wanted(**options: Any) -> dict[str, Any]:
    """Return what the record of a spawn with these options says was asked of the child."""
    request = _checks.request(["/bin/true"], options)
    verdict = Verdict("drop-apart", "deny", "a test")
    record = _records.Records.denied(request, SpawnReport("id", request.strategy), verdict)
    told: dict[str, Any] = json.loads(_record.encoded(record))["want"]
    return told


def test_want_of_a_confined_child() -> None:
    """The record names capabilities, bits, namespaces and places; of a filter it has size and digest."""
    allow = bytes.fromhex("060000000000ff7f")
    told = wanted(
        root="/srv/root",
        cgroup=7,
        scheduler=(os.SCHED_FIFO, 10),
        caps=["net_bind_service", 0],
        securebits=["noroot_locked", "noroot"],
        namespaces={"user": {"users": [(0, 1000, 1), (1, 100_000, 9)]}, "pid": None},
        landlock={"read": ["/usr", b"/\xff"], "execute": ["/usr/bin"]},
        seccomp=allow,
    )

    assert told == {
        "root": "/srv/root",
        "cgroup": 7,
        "scheduler": {"policy": "fifo", "priority": 10},
        "caps": ["chown", "net_bind_service"],
        "securebits": ["noroot", "noroot_locked"],
        "namespaces": ["user", "pid"],
        "map_users": [[0, 1000, 1], [1, 100_000, 9]],
        "landlock": {"abi": 3, "read": ["/usr", {"hex": "2fff"}], "write": [], "execute": ["/usr/bin"]},
        "seccomp": {"bytes": 8, "sha256": hashlib.sha256(allow).hexdigest()},
    }


def test_want_tells_an_empty_set_from_none() -> None:
    """No capabilities, no securebits and a policy of 0 were asked for, and the record says so."""
    told = wanted(caps=(), securebits=(), scheduler=os.SCHED_OTHER, root=0, landlock={})

    assert told == {
        "caps": [],
        "securebits": [],
        "scheduler": {"policy": "other", "priority": 0},
        "root": 0,
        "landlock": {"abi": 3, "read": [], "write": [], "execute": []},
    }
    assert wanted() == {}


@pytest.mark.parametrize("policy", ["OTHER", "BATCH", "IDLE", "FIFO", "RR"])
def test_want_names_every_policy(policy: str) -> None:
    """The scheduling policy has its name in the record."""
    number = getattr(os, f"SCHED_{policy}")
    priority = 5 if policy in ("FIFO", "RR") else 0

    assert wanted(scheduler=(number, priority)) == {"scheduler": {"policy": policy.lower(), "priority": priority}}


def test_want_names_all_capabilities() -> None:
    """Even the names of all that there may be are told whole, and not cut."""
    told = wanted(caps=range(64))["caps"]

    assert len(told) == 64
    assert told[:2] + told[40:42] == ["chown", "dac_override", "checkpoint_restore", "cap_41"]


def test_want_that_is_long() -> None:
    """Maps and rules that are too long for a record are counted and hashed, and the rest is there."""
    told = wanted(
        root="/" + "r" * 5000,
        cgroup="/" + "c" * 5000,
        caps=range(64),
        namespaces={"user": {kind: [(i, i + 1, 1) for i in range(0, 680, 2)] for kind in ("users", "groups")}},
        landlock={kind: [f"/{i:0>50}" for i in range(500)] for kind in ("read", "write", "execute")},
        seccomp=bytes(8 * 4096),
    )

    assert [told[name]["bytes"] for name in ("root", "cgroup", "seccomp")] == [5001, 5001, 32768]
    assert [told[name]["count"] for name in ("map_users", "map_groups")] == [340, 340]
    assert [told["landlock"][kind]["count"] for kind in ("read", "write", "execute")] == [500] * 3
    assert len(told["caps"]) == 64


def test_want_is_in_the_ledger(path: Path) -> None:
    """A refusal that never starts anything has it in the ledger as well."""
    with audit.open(path), pytest.raises(UnsafeSpawn):
        run(["/bin/true"], digest="sha256:" + "0" * 64, scheduler=os.SCHED_BATCH)

    assert only(path, "spawn.denied")["want"]["scheduler"] == {"policy": "batch", "priority": 0}


def test_how_and_outcome(path: Path) -> None:
    """Intent and outcome say how it was started and why, and which process it became."""
    with audit.open(path), spawn(["/bin/cat"], stdin=PIPE, strategy="fork") as process:
        ino = os.fstat(process.pidfd).st_ino
        report, pid = process.report, process.pid
    intent, started = only(path, "spawn.intent"), only(path, "spawn.started")

    for record in (intent, started):
        assert record["how"]["requested"] == record["how"]["strategy"] == "fork"
        assert record["how"]["why"] == list(report.reasons)
        assert record["how"]["threads"] == report.threads
    assert started["outcome"]["outcome"] == "exec"
    assert (started["outcome"]["pid"], started["outcome"]["pidfd_ino"]) == (pid, ino)
    assert started["outcome"]["ns_to_exec"] == report.window_ns


@pytest.mark.parametrize(
    ("text", "expected"), [("exit 7", {"code": 7}), ("kill -TERM $$", {"signal": 15, "core": False})]
)
def test_exit(path: Path, text: str, expected: dict[str, object]) -> None:
    """The last record says how it ended, after how long, what it used and who reaped it."""
    with audit.open(path):
        process = spawn(["/bin/sh", "-c", text])
        process.wait()
    ended = only(path, "spawn.exit")["exit"]

    assert {key: ended[key] for key in ("code", "signal", "core") if key in ended} == expected
    assert ended["pid"] == process.pid
    assert ended["reaped_by"] == "self"
    assert ended["dur"] > 0
    assert ended["rusage"]["maxrss"] > 0
    assert ended["rusage"]["minflt"] > 0


def test_exit_of_a_child_that_others_reaped(path: Path) -> None:
    """The end of a child that others reaped is recorded as what it is: had by pidfd, or unknown."""
    with audit.open(path):
        process = spawn(["/bin/true"])
        os.waitpid(process.pid, 0)
        try:
            process.wait()
            expected = "spawn.exit"
        except ChildProcessError:
            expected = "exit.unknown"
    record = only(path, expected)

    assert record["sid"] == process.report.id
    if expected == "spawn.exit":
        assert (record["exit"]["code"], record["exit"]["reaped_by"]) == (0, "pidfd_info")
        assert "rusage" not in record["exit"]  # the kernel does not tell it


def test_exit_is_recorded_once(path: Path) -> None:
    """Threads that wait for one child together leave one record of its end."""
    with audit.open(path):
        process = spawn(["/bin/cat"], stdin=PIPE)
        threads = [threading.Thread(target=process.wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        process.kill()
        for thread in threads:
            thread.join()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()

    assert events(path).count("spawn.exit") == 1


def test_failed_lookup(path: Path) -> None:
    """A program that is missing leaves a record that tells the whole request, and no intent."""
    with audit.open(path), pytest.raises(FileNotFoundError) as caught:
        spawn(["/no/such/program", "argument"])
    record = only(path, "spawn.failed")

    assert events(path) == ["chain.open", "spawn.failed", "chain.close"]
    assert record["sid"] == caught.value.report.id  # type: ignore[attr-defined]
    outcome = record["outcome"]
    assert (outcome["step"], outcome["errno"], outcome["name"]) == ("lookup", errno.ENOENT, "ENOENT")
    assert record["what"]["argv"] == ["/no/such/program", "argument"]
    assert record["who"]["euid"] == os.geteuid()


def test_failed_exec(path: Path, program: Callable[..., Path]) -> None:
    """An exec that failed leaves its intent and then the failure with its step."""
    with audit.open(path), pytest.raises(OSError, match="Exec format"):
        spawn([program("no format")])

    assert events(path) == ["chain.open", "spawn.intent", "spawn.failed", "chain.close"]
    assert only(path, "spawn.failed")["outcome"]["step"] == "exec"
    assert only(path, "spawn.failed")["outcome"]["name"] == "ENOEXEC"


def test_denial(path: Path) -> None:
    """A refusal leaves a record with the guard and the reason, and no intent."""
    with audit.open(path), pytest.raises(UnsafeSpawn) as caught:
        spawn(["/bin/true", "x"], digest=f"sha256:{'0' * 64}")
    record = only(path, "spawn.denied")
    (guard,) = record["how"]["guards"]

    assert events(path) == ["chain.open", "spawn.denied", "chain.close"]
    assert record["sid"] == caught.value.report.id  # type: ignore[union-attr]
    assert (guard["g"], guard["r"]) == ("exe-pinned", "deny")
    assert guard["why"] in str(caught.value)
    assert record["what"]["argv"] == ["/bin/true", "x"]


@root_only
def test_denial_by_strategy(path: Path) -> None:
    """A refusal that comes before the program is looked up is recorded too."""
    with audit.open(path), pytest.raises(UnsafeSpawn):
        spawn(["/bin/true"], user="nobody", strategy="vfork")

    assert only(path, "spawn.denied")["how"]["guards"][0]["g"] == "drop-apart"
    assert only(path, "spawn.denied")["want"]["uid"] == 65534


def test_names_but_not_values_of_the_environment(path: Path) -> None:
    """The names of the variables are recorded, their values never, whatever becomes of the spawn."""
    secret = "hunter2-only-in-the-environment"
    env = {"PASSWORD": secret, "PATH": "/bin", "LD_PRELOAD": secret}
    with audit.open(path):
        run(["/bin/true"], env={**env, "LD_PRELOAD": ""})
        run(["/bin/true"], env=env, env_policy="scrub", env_allow=["PASSWORD"])
        for options in ({"digest": f"sha256:{'0' * 64}"}, {"executable": "/no/such"}, {"process_group": 1}):
            with pytest.raises(OSError):  # noqa: PT011 - only the records matter
                run(["/bin/true"], env=env, **options)  # type: ignore[arg-type]
    first, second = [r for r in helpers.records(path) if r["ev"] == "spawn.intent"][:2]

    assert sorted(first["what"]["env_keys"]) == ["LD_PRELOAD", "PASSWORD", "PATH"]
    assert sorted(second["what"]["env_keys"]) == ["PASSWORD", "PATH"]
    assert second["what"]["env_removed"] == ["LD_PRELOAD"]
    assert secret not in path.read_text(encoding="ascii")
    assert events(path).count("spawn.failed") == 2
    assert events(path).count("spawn.denied") == 1


def test_tags(path: Path) -> None:
    """Tags of the spawn and of the contexts around it are in its records; the innermost wins."""
    with audit.open(path):
        with audit.context(request="17", user="outer"), audit.context(user="inner"):
            run(["/bin/true"], audit_tags={"job": "a", "request": "18"})
            with pytest.raises(FileNotFoundError):
                run(["/no/such"])
        run(["/bin/true"])
    intents = [r for r in helpers.records(path) if r["ev"] == "spawn.intent"]

    assert intents[0]["tags"] == {"job": "a", "request": "18", "user": "inner"}
    assert only(path, "spawn.failed")["tags"] == {"request": "17", "user": "inner"}
    assert "tags" not in intents[1]


def test_tags_belong_to_their_thread(path: Path) -> None:
    """A context in one thread does not mark the spawns of another."""
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with audit.context(thread="other"):
            inside.set()
            done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with audit.open(path):
        run(["/bin/true"])
    done.set()
    thread.join()

    assert "tags" not in only(path, "spawn.intent")


def test_context_takes_text_only() -> None:
    """A tag that is no str is a TypeError that names it."""
    with pytest.raises(TypeError, match="number.*5"), audit.context(number=5):  # type: ignore[arg-type]
        pass


# ---------------------------------------------------------------- nasty input

NASTY = [
    b"two\nlines",
    b'"}\n{"v":1,"ev":"spawn.exit"}\n',
    bytes(range(1, 32)) + b"\x7f",
    b"quotes \" ' ` \\ \\n",
    "separators \u2028 \u2029 \u0085".encode(),
    "right to left \u202e, emoji \U0001f600".encode(),
    b"not UTF-8 \xff\xfe\x80",
    b"lone surrogate \xed\xa0\x80",
    b'{"hex":"00"}',
    b"\x1b[2J\x1b]0;title\x07",
    b"",
]


def original(item: object) -> bytes:
    """Return the bytes that an argument in a record stands for."""
    if isinstance(item, dict):
        assert set(item) == {"hex"}
        return bytes.fromhex(item["hex"])
    assert isinstance(item, str)
    return item.encode("utf-8")


@pytest.mark.parametrize("argument", NASTY, ids=[str(i) for i in range(len(NASTY))])
@pytest.mark.threat("T-20")
def test_nasty_argument(path: Path, argument: bytes) -> None:
    """Whatever is in an argument, its record is one printable line and gives the bytes back."""
    with audit.open(path):
        run(["/bin/true", argument])
    lines = path.read_bytes().split(b"\n")

    assert len(lines) == 6
    assert all(0x20 <= byte < 0x7F for line in lines for byte in line)
    assert [original(item) for item in only(path, "spawn.intent")["what"]["argv"]] == [b"/bin/true", argument]


@pytest.mark.threat("T-20")
def test_nasty_everything(path: Path, tmp_path: Path) -> None:
    """Names of files, directories, variables and tags can forge no line either."""
    forged = '\n{"ev":"forged"}\n\u2028\x1b'
    where = tmp_path / "a\nb\udcff"
    where.mkdir()
    program = where / "pro\ngram"
    shutil.copy("/bin/true", program)
    with audit.open(path):
        run([program], cwd=where, env={forged: "x", "\udcff\n": "y"}, audit_tags={forged: forged, "s": "\udcff"})
        with pytest.raises(FileNotFoundError):
            run([str(program) + forged], cwd=where)
    data = path.read_bytes()
    intent = only(path, "spawn.intent")

    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in data)
    assert events(path) == [
        "chain.open",
        "spawn.intent",
        "spawn.started",
        "spawn.exit",
        "spawn.failed",
        "chain.close",
    ]
    assert original(intent["what"]["exe"]["path"]) == os.fsencode(program)
    assert original(intent["what"]["cwd"]) == os.fsencode(where)
    assert [original(name) for name in intent["what"]["env_keys"]] == [forged.encode(), b"\xff\n"]
    assert intent["tags"][forged] == forged


@pytest.mark.parametrize(
    "argv",
    [
        [b"x" * 100_000],
        [b"x" * 131_000] * 8,
        [b"\x01" * 100_000],
        [b"\xff" * 100_000],
        [b"a"] * 20_000,
        [b"first", "\u2028".encode() * 30_000, b"last"],
    ],
    ids=["long", "1 MB", "control", "not UTF-8", "many", "separators"],
)
@pytest.mark.threat("T-20")
def test_huge_argv_is_cut_and_says_so(path: Path, argv: list[bytes]) -> None:
    """An argv that does not fit is cut, marked, counted and hashed; its line stays short."""
    whole = [b"/bin/true", *argv]
    with audit.open(path):
        run(whole)
    what = only(path, "spawn.intent")["what"]

    assert max(map(len, path.read_bytes().splitlines(keepends=True))) <= LINE_MAX
    assert (what["argc"], what["argv_bytes"]) == (len(whole), sum(map(len, whole)))
    assert what["argv_cut"] == len(what["argv"]) < len(whole)
    assert [original(item) for item in what["argv"]] == whole[: what["argv_cut"]]
    assert what["argv_sha256"] == hashlib.sha256(b"".join(a + b"\0" for a in whole)).hexdigest()
    assert what["exe"]["path"] == "/bin/true"


@pytest.mark.threat("T-20")
def test_argv_that_fits_is_not_cut(path: Path) -> None:
    """An argv of two thousand characters is recorded whole."""
    with audit.open(path):
        run(["/bin/true", "x" * 2000])
    what = only(path, "spawn.intent")["what"]

    assert what["argv"][1] == "x" * 2000
    assert "argv_cut" not in what


@pytest.mark.parametrize("names", [1, 500], ids=["long name", "many names"])
@pytest.mark.threat("T-20")
def test_environment_cannot_hide_the_program(path: Path, names: int) -> None:
    """Names of variables that do not fit are cut and counted; program and arguments stay in the record."""
    env = {f"{i:05}{'N' * (20_000 // names)}": "" for i in range(names)}
    with audit.open(path):
        run(["/bin/true", "shown"], env=env)
    what = only(path, "spawn.intent")["what"]

    assert max(map(len, path.read_bytes().splitlines(keepends=True))) <= LINE_MAX
    assert what.get("argv") == ["/bin/true", "shown"]
    assert what["exe"]["path"] == "/bin/true"


@pytest.mark.threat("T-20")
def test_descriptors_cannot_hide_the_program(path: Path) -> None:
    """So many descriptors that they do not fit leave program and arguments in the record."""
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        with audit.open(path):
            run(["/bin/true", "shown"], fds=dict.fromkeys(range(100, 400), null))
    finally:
        os.close(null)
    what = only(path, "spawn.intent")["what"]

    assert max(map(len, path.read_bytes().splitlines(keepends=True))) <= LINE_MAX
    assert what.get("argv") == ["/bin/true", "shown"]


@pytest.mark.threat("T-20")
def test_long_path_cannot_hide_the_arguments(path: Path, tmp_path: Path) -> None:
    """A program whose path does not fit leaves the arguments in the record."""
    where = str(tmp_path)
    while len(where) < 3500:
        where += "/" + "\x01" * 200
    os.makedirs(where)
    shutil.copy("/bin/true", where + "/true")
    with audit.open(path):
        run(["named", "shown"], executable=where + "/true")
    what = only(path, "spawn.intent")["what"]

    assert max(map(len, path.read_bytes().splitlines(keepends=True))) <= LINE_MAX
    assert what.get("argv") == ["named", "shown"]


@pytest.mark.threat("T-20")
def test_tags_cannot_hide_the_spawn(path: Path) -> None:
    """Tags that do not fit are cut and marked, and all else stays."""
    with audit.open(path):
        run(["/bin/true", "shown"], audit_tags={f"k{i}": "v" * 1000 for i in range(20)})
    intent = only(path, "spawn.intent")

    assert max(map(len, path.read_bytes().splitlines(keepends=True))) <= LINE_MAX
    assert intent["what"]["argv"] == ["/bin/true", "shown"]
    assert intent["tags"]["count"] == 20
    assert len(intent["tags"]["sha256"]) == 64


@pytest.mark.threat("T-20")
def test_members_limit_is_exact() -> None:
    """Members of exactly the limit stay whole, and one more byte makes them cut, never longer."""
    limit = _record.MEMBERS_MAX
    room = limit - len(_record.encoded({"a": ""}))

    assert len(_record.members({"a": "x" * room})) == limit - 2
    assert json.loads(b"{" + _record.members({"a": "x" * room}) + b"}")["a"] == "x" * room
    assert json.loads(b"{" + _record.members({"a": "x" * (room + 1)}) + b"}")["a"]["cut_bytes"] == room + 3


@pytest.mark.threat("T-20")
def test_longest_members_fit_in_a_line(path: Path, keys: Path) -> None:
    """Whatever passes as members, the whole line with its envelope and MAC has at most 8000 bytes."""
    with audit.open(path, mode="best_effort", keys=keys) as ledger:
        for _ in range(11):  # so that the numbers get longer
            assert ledger.append("guard.config", audit.new_id(), lambda: {"pad": "x" * LINE_MAX * 2})
            assert ledger.append("checkpoint", None, lambda: {"pad": "x" * (_record.MEMBERS_MAX - 10)})

    assert max(map(len, path.read_bytes().splitlines(keepends=True))) <= LINE_MAX
    assert len(helpers.records(path)) == 24


# -------------------------------------------------- the file: fit for a ledger


def test_file_is_private_and_kept(path: Path) -> None:
    """The ledger is made with mode 600, and opened again it is appended to as a new chain."""
    old = os.umask(0)
    try:
        audit.open(path).close()
    finally:
        os.umask(old)
    first = path.read_bytes()
    audit.open(path).close()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(first)
    assert events(path) == ["chain.open", "chain.close"] * 2
    assert len({r["c"] for r in helpers.records(path)}) == 2


def _make_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _make_symlink(path: Path) -> None:
    (path.parent / "real").touch(0o600)
    path.symlink_to(path.parent / "real")


def _make_socket(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _make_directory(path: Path) -> None:
    path.mkdir()


def _make_shared(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.touch()
        path.chmod(mode)

    return make


@pytest.mark.parametrize(
    "make",
    [_make_fifo, _make_symlink, _make_socket, _make_directory, _make_shared(0o602), _make_shared(0o660)],
    ids=["fifo", "symlink", "socket", "directory", "others write", "group writes"],
)
def test_unfit_file_is_refused(path: Path, make: Callable[[Path], None]) -> None:
    """What is no regular file, or can be written by others, is no ledger: AuditError with its name."""
    make(path)
    before = path.lstat()
    with pytest.raises(AuditError) as caught:
        audit.open(path)

    assert caught.value.filename == str(path)
    assert path.lstat().st_size == before.st_size


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/zero"])
def test_device_is_refused(device: str) -> None:
    """A device is no ledger, not even one that takes everything."""
    with pytest.raises(AuditError, match="regular file"):
        audit.open(device)


@root_only
def test_file_of_another_user_is_refused(path: Path) -> None:
    """A file that belongs to somebody else is no ledger: its owner could rewrite it."""
    path.touch(0o600)
    os.chown(path, 65534, 65534)

    with pytest.raises(AuditError, match="uid 65534"):
        audit.open(path)
    assert path.read_bytes() == b""


def test_missing_directory(tmp_path: Path) -> None:
    """A ledger that cannot be made is an AuditError with errno and name."""
    with pytest.raises(AuditError) as caught:
        audit.open(tmp_path / "no" / "ledger")

    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "no" / "ledger"))


def test_refused_file_leaves_the_open_ledger(path: Path, tmp_path: Path) -> None:
    """Opening a second ledger that is refused leaves the first one in use."""
    with audit.open(path):
        with pytest.raises(AuditError):
            audit.open("/dev/null")
        run(["/bin/true"])

    assert "spawn.intent" in events(path)


def test_second_ledger_takes_over(path: Path, tmp_path: Path) -> None:
    """Opening another ledger closes the one before, with its closing record."""
    first = audit.open(path)
    with audit.open(tmp_path / "second"):
        assert first.closed
        run(["/bin/true"])

    assert events(path) == ["chain.open", "chain.close"]
    assert "spawn.intent" in events(tmp_path / "second")


def test_unknown_mode(path: Path) -> None:
    """A mode that nobody knows is a ValueError, and no file is made."""
    with pytest.raises(ValueError, match="'always'"):
        audit.open(path, mode="always")  # type: ignore[arg-type]

    assert not path.exists()


def test_close_twice(path: Path) -> None:
    """Closing twice is no error and writes one record."""
    ledger = audit.open(path)
    ledger.close()
    ledger.close()
    with ledger:
        pass

    assert ledger.closed
    assert events(path) == ["chain.open", "chain.close"]


def test_spawn_after_close(path: Path) -> None:
    """After its ledger was closed a process spawns on, and the file has the end of its chain as last line."""
    audit.open(path).close()
    run(["/bin/true"])

    assert events(path) == ["chain.open", "chain.close"]


def test_descriptor_is_high_and_not_inherited(path: Path) -> None:
    """The ledger's descriptor is out of the way of those who close low numbers, and no program gets it."""
    with audit.open(path):
        mine = [fd for fd in helpers.open_fds() if os.fstat(fd).st_ino == path.stat().st_ino]
        seen = json.loads(
            run(helpers.probe_argv("state"), stdout=PIPE, stdin=safespawn.DEVNULL, stderr=safespawn.DEVNULL).stdout
        )

    assert len(mine) == 1
    assert mine[0] >= 512
    assert sorted(seen["fds"]) == ["0", "1", "2"]


@pytest.mark.parametrize("mode", ["require", "durable", "best_effort"])
def test_torn_last_line(path: Path, mode: str) -> None:
    """A line that a crashed writer left half is ended first, so that it spoils no other."""
    whole = b'{"v":1,"n":0}\n'
    path.write_bytes(whole + b'{"v":1,"n":1,"ev":"spaw')
    path.chmod(0o600)
    with audit.open(path, mode=mode):  # type: ignore[arg-type]
        run(["/bin/true"])
    lines = path.read_bytes().split(b"\n")

    assert [parsed(line) is not None for line in lines] == [True, False, True, True, True, True, True, False]
    assert lines[1] == b'{"v":1,"n":1,"ev":"spaw'
    assert lines[-1] == b""


# ---------------------------------------------------- when it cannot be written

#: Fills the file system of the ledger, or sets the limit of file sizes where it is now.
FULL = """
import resource
from safespawn import audit, AuditError

def size():
    return os.stat(ledger).st_size

def limit(room):
    '''Let files grow by so many bytes more than the ledger has (SIGXFSZ is ignored by Python).'''
    resource.setrlimit(resource.RLIMIT_FSIZE, (size() + room, resource.RLIM_INFINITY))

def unlimit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def records():
    return [json.loads(line) for line in open(ledger, encoding="ascii")]

def fds():
    return sorted(os.listdir("/proc/self/fd"))
"""


def in_limits(text: str, ledger: Path, **values: object) -> dict[str, Any]:
    """Run a snippet with ``limit(room)`` and ``unlimit()`` for the size of the ledger."""
    return helpers.run_snippet(FULL + textwrap.dedent(text), ledger=str(ledger), **values)


@pytest.mark.parametrize("mode", ["require", "durable"])
@pytest.mark.parametrize("room", [0, 100])
@pytest.mark.threat("T-11")
def test_intent_that_cannot_be_written_stops_the_spawn(path: Path, tmp_path: Path, mode: str, room: int) -> None:
    """No accepted intent, no program: AuditError with the report, whether nothing or half was written."""
    out = in_limits(
        """
        audit.open(ledger, mode=mode)
        limit(room)
        before = fds()
        try:
            safespawn.spawn(["/usr/bin/touch", marker], stdin=safespawn.PIPE, stdout=safespawn.PIPE)
        except AuditError as problem:
            out["errno"] = problem.errno
            out["filename"] = problem.filename == ledger
            out["guard"] = problem.guard
            out["outcome"] = problem.report.outcome
        out["leaked"] = fds() != before
        out["ran"] = os.path.exists(marker)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            out["children"] = 0
        """,
        path,
        mode=mode,
        room=room,
        marker=str(tmp_path / "marker"),
    )

    assert out == {
        "errno": errno.EFBIG,
        "filename": True,
        "guard": "intent-first",
        "outcome": "refused",
        "leaked": False,
        "ran": False,
        "children": 0,
    }


@root_only
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
@pytest.mark.threat("T-11")
def test_full_disk(tmp_path: Path) -> None:
    """On a full disk nothing runs; with room again spawns go on, and the loss is told first."""
    where = tmp_path / "disk"
    where.mkdir()
    text = """
        import errno, json, os
        import safespawn
        from safespawn import audit, AuditError
        audit.open(f"{where}/ledger")
        safespawn.run(["/bin/true"])
        with open(f"{where}/filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError as problem:
                assert problem.errno == errno.ENOSPC
        codes = []
        for _ in range(20):
            try:
                safespawn.run(["/usr/bin/touch", f"{marker}{len(codes)}"])
                codes.append(0)
            except AuditError as problem:
                codes.append(problem.errno)
        ran = sum(os.path.exists(f"{marker}{i}") for i in range(20))
        os.remove(f"{where}/filler")
        safespawn.run(["/bin/true", "again"])
        print(json.dumps({"codes": codes, "ran": ran, "lines": open(f"{where}/ledger").read().split("\\n")}))
        """
    code = f"where = {str(where)!r}\nmarker = {str(tmp_path / 'marker')!r}\n" + textwrap.dedent(text)
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "/bin/sh",
            "-c",
            f'mount -t tmpfs -o size=64k,mode=700 none "{where}" && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            code,
        ],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    out = json.loads(done.stdout)
    found = [parsed(line.encode()) for line in out["lines"]]

    # Until the reserve is booked. On so small a disk it is small.
    accepted = out["codes"].index(errno.ENOSPC)
    assert set(out["codes"][accepted:]) == {errno.ENOSPC}
    assert out["ran"] == accepted
    told = [i for i, r in enumerate(found) if r and r["ev"] == "audit.degraded"]
    again = [i for i, r in enumerate(found) if r and r["ev"] == "spawn.intent" and r["what"]["argv"][1:] == ["again"]]
    assert len(told) == len(again) == 1
    assert told[0] < again[0]
    assert found[told[0]]["lost"] >= 20 - accepted  # type: ignore[index]


def test_best_effort_runs_and_tells_the_loss(path: Path) -> None:
    """In best_effort a record that is lost stops nothing, is counted, and is told when there is room."""
    out = in_limits(
        """
        opened = audit.open(ledger, mode="best_effort")
        limit(0)
        out["codes"] = [safespawn.run(["/bin/sh", "-c", "exit 3"]).returncode for _ in range(2)]
        out["lost"] = opened.lost
        unlimit()
        out["codes"].append(safespawn.run(["/bin/true"]).returncode)
        opened.close()
        out["events"] = [[r["ev"], r.get("lost")] for r in records()]
        out["numbers"] = [r["n"] for r in records()]
        """,
        path,
    )

    assert out["codes"] == [3, 3, 0]
    assert out["lost"] == 6
    assert out["events"] == [
        ["chain.open", None],
        ["audit.degraded", 6],
        ["spawn.intent", None],
        ["spawn.started", None],
        ["spawn.exit", None],
        ["chain.close", 0],
    ]
    assert out["numbers"] == [0, 1, 2, 3, 4, 5]


def test_loss_at_the_end_is_in_the_last_record(path: Path) -> None:
    """Loss that no later record told is in the closing one."""
    out = in_limits(
        """
        opened = audit.open(ledger, mode="best_effort")
        limit(0)
        safespawn.run(["/bin/true"])
        unlimit()
        opened.close()
        out["last"] = [records()[-1]["ev"], records()[-1]["lost"]]
        """,
        path,
    )

    assert out == {"last": ["chain.close", 3]}


@pytest.mark.parametrize("room", [1, 100, 400])
def test_short_write_spoils_no_later_line(path: Path, room: int) -> None:
    """A record that was written in part is one bad line: all that come after it can be read."""
    out = in_limits(
        """
        from safespawn.audit import _core
        opened, mine, ending = audit.open(ledger), _core.new_kept(), _core.new_kept()
        opened.append("guard.config", None, dict, gate=True, kept=mine)
        ending.settling = mine.booked
        limit(room)
        out["kept"] = opened.append("spawn.exit", None, lambda: {"pad": "x" * 1000}, settles=1, kept=ending)
        unlimit()
        safespawn.run(["/bin/true", "after"])
        opened.close()
        """,
        path,
        room=room,
    )
    lines = path.read_bytes().split(b"\n")
    found = [parsed(line) for line in lines[:-1]]

    assert out == {"kept": False}
    assert lines[-1] == b""
    assert [r["ev"] if r else "torn" for r in found] == [
        "chain.open",
        "guard.config",
        "torn",
        "audit.degraded",
        "spawn.intent",
        "spawn.started",
        "spawn.exit",
        "chain.close",
    ]
    assert len(lines[2]) == room
    numbers = [r["n"] for r in found if r]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("event", ["spawn.started", "spawn.exit"])
@pytest.mark.parametrize("mode", ["require", "durable"])
def test_outcome_that_cannot_be_written_keeps_the_handle(path: Path, event: str, mode: str) -> None:
    """What has happened cannot be refused: the handle works, and the loss is told by the next record."""
    out = in_limits(
        """
        opened = audit.open(ledger, mode=mode)
        full = []

        def hook(name, args):
            if name == "safespawn." + event and not full:
                full.append(name)
                limit(0)

        sys.addaudithook(hook)
        process = safespawn.spawn(["/bin/sh", "-c", "exit 5"])
        out["code"] = process.wait()
        out["lost"] = opened.lost
        unlimit()
        safespawn.run(["/bin/true"])
        opened.close()
        out["told"] = [r["lost"] for r in records() if r["ev"] == "audit.degraded"]
        """,
        path,
        event=event,
        mode=mode,
    )
    lost = 2 if event == "spawn.started" else 1

    assert out == {"code": 5, "lost": lost, "told": [lost]}


def test_failure_that_cannot_be_written_keeps_its_exception(path: Path) -> None:
    """A failed start raises its own exception also where the record of it is lost."""
    out = in_limits(
        """
        audit.open(ledger)
        limit(0)
        for argv, options in ([["/no/such"], {}], [["/bin/true"], {"digest": "sha256:" + "0" * 64}]):
            try:
                safespawn.spawn(argv, **options)
            except OSError as problem:
                out[argv[0]] = type(problem).__name__
        """,
        path,
    )

    assert out == {"/no/such": "FileNotFoundError", "/bin/true": "UnsafeSpawn"}


def test_full_disk_at_open(path: Path) -> None:
    """A ledger whose first record cannot be written is not opened, and its descriptor is closed."""
    path.write_bytes(b'{"v":1}\n')
    path.chmod(0o600)
    out = in_limits(
        """
        safespawn.guards.status()  # holds the launcher from then on
        limit(0)
        before = fds()
        try:
            audit.open(ledger)
        except AuditError as problem:
            out["errno"] = problem.errno
        out["leaked"] = fds() != before
        unlimit()
        # It did not become the process's ledger.
        safespawn.run(["/bin/true"])
        """,
        path,
    )

    assert out == {"errno": errno.EFBIG, "leaked": False}
    assert path.read_bytes() == b'{"v":1}\n'


def test_full_disk_at_a_torn_line(path: Path) -> None:
    """A torn last line that cannot be ended is an AuditError too."""
    path.write_bytes(b'{"v":1')
    path.chmod(0o600)
    out = in_limits(
        """
        safespawn.guards.status()  # holds the launcher from then on
        limit(0)
        before = fds()
        try:
            audit.open(ledger)
        except OSError as problem:
            out["class"] = type(problem).__name__
        out["leaked"] = fds() != before
        """,
        path,
    )

    assert out == {"class": "AuditError", "leaked": False}


@pytest.mark.threat("T-11")
def test_durable_is_on_disk_before_the_program_runs(path: Path, tmp_path: Path) -> None:
    """In durable the intent is flushed after it was written and before anything runs."""
    trace = tmp_path / "trace"
    text = f"""
import safespawn
from safespawn import audit
with audit.open({str(path)!r}, mode="durable"):
    safespawn.run(["/bin/true", "marker"])
"""
    done = subprocess.run(
        ["strace", "-f", "-o", trace, "-s", "12000", "-e", "trace=write,fdatasync,execve", sys.executable, "-c", text],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    calls = trace.read_text(errors="replace").splitlines()
    intent = next(i for i, call in enumerate(calls) if "spawn.intent" in call)
    flushed = next(i for i, call in enumerate(calls) if i > intent and "fdatasync" in call)
    ran = next(i for i, call in enumerate(calls) if "execve" in call and "marker" in call and i > intent)

    assert intent < flushed < ran
    assert {r["mode"] for r in helpers.records(path)} == {"durable"}
    assert events(path) == ["chain.open", "spawn.intent", "spawn.started", "spawn.exit", "chain.close"]


@pytest.mark.threat("T-11")
def test_durable_that_cannot_flush_stops_the_spawn(path: Path, tmp_path: Path) -> None:
    """In durable an error of the disk when flushing means that nothing runs, until flushing works."""
    marker = tmp_path / "marker"
    out = helpers.run_snippet(
        """
        import sandbox
        from safespawn import audit
        opened = audit.open(ledger, mode="durable")
        sandbox.answer({"fdatasync": 5})
        for _ in range(2):
            try:
                safespawn.run(["/usr/bin/touch", marker])
            except safespawn.AuditError as problem:
                out["errno"] = problem.errno
        """,
        ledger=str(path),
        marker=str(marker),
    )

    assert out == {"errno": errno.EIO}
    assert not marker.exists()


# ------------------------------------------------------- descriptor taken away


@pytest.mark.threat("T-11")
def test_closed_descriptor_is_refused(path: Path, tmp_path: Path) -> None:
    """A ledger whose descriptor somebody closed takes nothing: the spawn is refused, for ever."""
    out = helpers.run_snippet(
        """
        from safespawn import audit, AuditError
        opened = audit.open(ledger)
        fd = next(int(n) for n in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{n}") and os.readlink(f"/proc/self/fd/{n}") == ledger)
        os.closerange(fd, fd + 10)
        out["errors"] = []
        for _ in range(2):
            try:
                safespawn.run(["/usr/bin/touch", marker])
            except AuditError as problem:
                out["errors"].append(problem.errno)
        opened.close()
        out["ran"] = os.path.exists(marker)
        """,
        ledger=str(path),
        marker=str(tmp_path / "marker"),
    )

    assert out == {"errors": [errno.EBADF, errno.EBADF], "ran": False}
    assert events(path) == ["chain.open"]


@pytest.mark.parametrize("mode", ["require", "best_effort"])
@pytest.mark.threat("T-11")
def test_no_line_lands_in_the_file_that_reused_the_number(path: Path, tmp_path: Path, mode: str) -> None:
    """When an application's file has the ledger's number now, nothing is written to it, and it stays open."""
    out = helpers.run_snippet(
        """
        from safespawn import audit, AuditError
        opened = audit.open(ledger, mode=mode)
        fd = next(int(n) for n in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{n}") and os.readlink(f"/proc/self/fd/{n}") == ledger)
        mine = os.open(other, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(mine, fd)
        try:
            safespawn.run(["/bin/true"])
            out["refused"] = False
        except AuditError:
            out["refused"] = True
        opened.close()
        os.fstat(fd)
        out["theirs"] = os.stat(other).st_size
        """,
        ledger=str(path),
        other=str(tmp_path / "other"),
        mode=mode,
    )

    assert out == {"refused": mode == "require", "theirs": 0}
    assert events(path) == ["chain.open"]


# ------------------------------------------------------------ many at once


def test_threads_never_tear_a_line(path: Path) -> None:
    """Eight threads that append at once leave whole lines, numbered in the order of the file."""
    everybody = threading.Barrier(8)
    with audit.open(path) as ledger:

        def append(who: int) -> None:
            everybody.wait()
            for i in range(200):
                told = {"who": who, "i": i, "pad": "x" * (i * 20)}
                ledger.append("guard.config", None, lambda: told, gate=True)  # noqa: B023 - at once

        threads = [threading.Thread(target=append, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    records = helpers.records(path)

    assert [r["n"] for r in records] == list(range(len(records)))
    for who in range(8):
        assert [r["i"] for r in records if r.get("who") == who] == list(range(200))


def test_threads_that_spawn(path: Path) -> None:
    """Spawns from several threads at once each have their whole story in the ledger."""
    with audit.open(path):
        threads = [
            threading.Thread(target=lambda: [run(["/bin/true"]) for _ in range(5)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    records = helpers.records(path)
    stories: dict[str, list[str]] = {}
    for record in records[1:-1]:
        stories.setdefault(record["sid"], []).append(record["ev"])

    assert gapless(records)
    assert list(stories.values()) == [["spawn.intent", "spawn.started", "spawn.exit"]] * 20


def test_processes_never_tear_a_line(path: Path) -> None:
    """Four forked processes that append to one file at once leave whole lines, each in its own chain."""
    out = helpers.run_snippet(
        """
        from safespawn import audit
        opened = audit.open(ledger)
        read, write = os.pipe()
        pids = []
        for who in range(4):
            pid = os.fork()
            if not pid:
                os.close(write)
                os.read(read, 1)  # all start when the parent closes its end
                for i in range(100):
                    opened.append("guard.config", None, lambda: {"pad": "x" * (i * 60)}, gate=True)
                opened.close()
                os._exit(0)
            pids.append(pid)
        os.close(write)
        out["codes"] = [os.waitpid(pid, 0)[1] for pid in pids]
        opened.close()
        """,
        ledger=str(path),
    )
    records = helpers.records(path)

    assert out == {"codes": [0] * 4}
    assert len({r["c"] for r in records}) == 5
    assert gapless(records)
    assert sum(r["ev"] == "guard.config" for r in records) == 400


# -------------------------------------------------------------------- fork


def test_forked_child_has_its_own_chain(path: Path) -> None:
    """A child of os.fork starts a chain of its own that names its parent's; the parent's goes on."""
    out = helpers.run_snippet(
        """
        from safespawn import audit
        opened = audit.open(ledger)
        safespawn.run(["/bin/true", "parent"])
        pid = os.fork()
        if not pid:
            safespawn.run(["/bin/true", "child"])
            opened.close()
            os._exit(0)
        out["child"] = pid
        out["code"] = os.waitpid(pid, 0)[1]
        safespawn.run(["/bin/true", "parent"])
        opened.close()
        out["me"] = os.getpid()
        """,
        ledger=str(path),
    )
    records = helpers.records(path)
    fork = only(path, "chain.fork")
    child = [r for r in records if r["c"] == fork["child"]]
    parent = [r for r in records if r["c"] != fork["child"]]

    assert out["code"] == 0
    assert gapless(records)
    assert fork["c"] == parent[0]["c"] == child[0]["parent"]
    assert child[0]["who"]["pid"] == out["child"]
    assert [r["ev"] for r in child] == [
        "chain.open",
        "spawn.intent",
        "spawn.started",
        "spawn.exit",
        "chain.close",
    ]
    assert [r["ev"] for r in parent].count("spawn.intent") == 2
    assert {r["who"]["pid"] for r in child if "who" in r} == {out["child"]}


def test_forked_child_that_starts_nothing_has_no_chain(path: Path) -> None:
    """The parent's record names the chain of a forked child; it is empty if the child records nothing."""
    helpers.run_snippet(
        """
        from safespawn import audit
        opened = audit.open(ledger)
        pid = os.fork()
        if not pid:
            opened.close()
            os._exit(0)
        os.waitpid(pid, 0)
        opened.close()
        """,
        ledger=str(path),
    )

    assert events(path) == ["chain.open", "chain.fork", "chain.close"]


def test_fork_while_threads_write(path: Path) -> None:
    """Children forked while other threads are in the middle of writing can write all the same."""
    out = helpers.run_snippet(
        """
        import threading
        from safespawn import audit
        opened = audit.open(ledger)
        ended = threading.Event()

        def write():
            while not ended.is_set():
                opened.append("guard.config", None, lambda: {"pad": "x" * 5000})

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        out["codes"] = []
        for _ in range(50):
            pid = os.fork()
            if not pid:
                signal.alarm(50)
                os._exit(not opened.append("mirror.up", None, dict, gate=True))
            out["codes"].append(os.waitpid(pid, 0)[1])
        ended.set()
        for thread in threads:
            thread.join()
        opened.close()
        """,
        ledger=str(path),
    )

    assert out == {"codes": [0] * 50}
    assert gapless(helpers.records(path))
    assert events(path).count("mirror.up") == events(path).count("chain.fork") == 50


def test_fork_record_that_was_lost_is_written_later(path: Path) -> None:
    """A chain of a forked child never goes without its first record: what failed is tried again."""
    out = in_limits(
        """
        opened = audit.open(ledger, mode="best_effort")
        pid = os.fork()
        if not pid:
            limit(0)
            opened.append("guard.config", None, dict)
            unlimit()
            opened.append("mirror.up", None, dict)
            os._exit(0)
        out["code"] = os.waitpid(pid, 0)[1]
        out["events"] = [r["ev"] for r in records() if r["ev"] != "spawn.bypass"]
        """,
        path,
    )

    assert out["code"] == 0
    assert out["events"] == ["chain.open", "chain.fork", "chain.open", "audit.degraded", "mirror.up"]


# ------------------------------------------------- SAFESPAWN_AUDIT, logger, hooks


def test_environment_opens_a_ledger_at_the_first_spawn(path: Path) -> None:
    """SAFESPAWN_AUDIT names a ledger that is opened by the first spawn, not by the import."""
    out = helpers.run_snippet(
        """
        os.environ["SAFESPAWN_AUDIT"] = ledger
        out["before"] = os.path.exists(ledger)
        safespawn.run(["/bin/true"])
        out["after"] = os.path.exists(ledger)
        """,
        ledger=str(path),
    )

    assert out == {"before": False, "after": True}
    assert events(path)[:2] == ["chain.open", "spawn.intent"]
    assert {r["mode"] for r in helpers.records(path)} == {"require"}


@pytest.mark.threat("T-11")
def test_environment_fails_closed(tmp_path: Path) -> None:
    """A ledger that SAFESPAWN_AUDIT asks for and that cannot be had stops every spawn."""
    out = helpers.run_snippet(
        """
        from safespawn import AuditError
        os.environ["SAFESPAWN_AUDIT"] = ledger
        before = sorted(os.listdir("/proc/self/fd"))
        out["refused"] = 0
        for options in ({}, {}, {"stdout": -1}, {"deadline": 20.0}, {"pin": True}):
            try:
                safespawn.spawn(["/usr/bin/touch", marker], **options)
            except AuditError as problem:
                out["refused"] += problem.report.outcome == "refused"
        out["leaked"] = sorted(os.listdir("/proc/self/fd")) != before
        out["ran"] = os.path.exists(marker)
        """,
        ledger=str(tmp_path / "no" / "such"),
        marker=str(tmp_path / "marker"),
    )

    assert out == {"refused": 5, "leaked": False, "ran": False}


def test_open_wins_over_the_environment(path: Path, tmp_path: Path) -> None:
    """A ledger that the program opened itself is the one, whatever the environment says."""
    out = helpers.run_snippet(
        """
        from safespawn import audit
        os.environ["SAFESPAWN_AUDIT"] = other
        with audit.open(ledger):
            safespawn.run(["/bin/true"])
        safespawn.run(["/bin/true"])
        out["other"] = os.path.exists(other)
        """,
        ledger=str(path),
        other=str(tmp_path / "other"),
    )

    assert out == {"other": False}
    assert "spawn.intent" in events(path)


def test_logger_without_a_ledger(caplog: pytest.LogCaptureFixture) -> None:
    """With no ledger the records go to the logger safespawn.audit, one line of JSON each."""
    with caplog.at_level(logging.INFO, logger="safespawn.audit"):
        done = run(["/bin/true", "a\nb"])
    messages = [r.getMessage() for r in caplog.records if r.name == "safespawn.audit"]
    found = [json.loads(message) for message in messages]

    assert [r["ev"] for r in found] == ["spawn.intent", "spawn.started", "spawn.exit"]
    assert {r["sid"] for r in found} == {done.report.id}
    assert found[0]["what"]["argv"] == ["/bin/true", "a\nb"]
    assert all("\n" not in message for message in messages)


@pytest.mark.parametrize("event", ["spawn.started", "spawn.exit"])
def test_logger_is_told_once(event: str) -> None:
    """A hook that ends the record's caller each time: what went to the logger does not go there again."""
    out = helpers.run_snippet(
        """
        import json, logging
        from safespawn import _child

        lines, armed = [], [True]

        class Lines(logging.Handler):
            def emit(self, record):
                lines.append(json.loads(record.getMessage())["ev"])

        logger = logging.getLogger("safespawn.audit")
        logger.setLevel(logging.INFO)
        logger.addHandler(Lines())

        def hook(name, args):
            if armed and name == "safespawn." + event:
                raise SystemExit

        sys.addaudithook(hook)
        for _ in range(2):
            try:
                safespawn.run(["/bin/true"])
            except SystemExit:
                armed.clear()
        while _child._abandoned:
            _child.reap_abandoned()
        out["lines"] = lines
        """,
        event=event,
    )

    assert sorted(out["lines"]) == ["spawn.exit"] * 2 + ["spawn.intent"] * 2 + ["spawn.started"] * 2


def test_logger_tells_refusals(caplog: pytest.LogCaptureFixture) -> None:
    """With no ledger refusals and failures go to the logger too."""
    with caplog.at_level(logging.INFO, logger="safespawn.audit"):
        with pytest.raises(UnsafeSpawn):
            run(["/bin/true"], digest=f"sha256:{'0' * 64}")
        with pytest.raises(FileNotFoundError):
            run(["/no/such"])

    assert [json.loads(r.getMessage())["ev"] for r in caplog.records] == ["spawn.denied", "spawn.failed"]


def test_ledger_silences_the_logger(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a ledger the logger gets nothing: a record has one place."""
    with caplog.at_level(logging.INFO, logger="safespawn.audit"), audit.open(path):
        run(["/bin/true"])

    assert caplog.records == []


@pytest.mark.parametrize("with_ledger", [False, True])
def test_sys_audit_events(path: Path, with_ledger: bool) -> None:
    """Every event raises sys.audit's safespawn.* with the id of the spawn, with a ledger or without."""
    out = helpers.run_snippet(
        """
        from safespawn import audit
        heard = []
        sys.addaudithook(lambda name, args: heard.append([name, *args]) if name.startswith("safespawn.") else None)
        if with_ledger:
            audit.open(ledger)
        done = safespawn.run(["/bin/true"])
        try:
            safespawn.run(["/no/such"])
        except OSError as problem:
            failed = problem.report.id
        try:
            safespawn.run(["/bin/true"], digest="sha256:" + "0" * 64)
        except OSError as problem:
            denied = problem.report.id
        ids = {done.report.id: "done", failed: "failed", denied: "denied"}
        out["heard"] = [[name, ids[sid]] for name, sid in heard]
        """,
        ledger=str(path),
        with_ledger=with_ledger,
    )

    assert out["heard"] == [
        ["safespawn.spawn.intent", "done"],
        ["safespawn.spawn.started", "done"],
        ["safespawn.spawn.exit", "done"],
        ["safespawn.spawn.failed", "failed"],
        ["safespawn.spawn.denied", "denied"],
    ]


@pytest.mark.parametrize("with_ledger", [False, True])
def test_hook_that_raises_stops_the_spawn(path: Path, tmp_path: Path, with_ledger: bool) -> None:
    """An audit hook that raises on the intent stops the spawn with its own exception."""
    out = helpers.run_snippet(
        """
        from safespawn import audit

        class No(Exception):
            pass

        def hook(name, args):
            if name == "safespawn.spawn.intent":
                raise No("not here")

        sys.addaudithook(hook)
        if with_ledger:
            audit.open(ledger)
        before = sorted(os.listdir("/proc/self/fd"))
        try:
            safespawn.spawn(["/usr/bin/touch", marker], stdin=-1, stdout=-1)
        except No as problem:
            out["raised"] = str(problem)
        out["leaked"] = sorted(os.listdir("/proc/self/fd")) != before
        out["ran"] = os.path.exists(marker)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            out["children"] = 0
        """,
        ledger=str(path),
        marker=str(tmp_path / "marker"),
        with_ledger=with_ledger,
    )

    assert out == {"raised": "not here", "leaked": False, "ran": False, "children": 0}


@pytest.mark.parametrize("event", ["spawn.started", "spawn.exit"])
def test_hook_that_raises_later_keeps_the_handle(path: Path, event: str) -> None:
    """An audit hook that raises on what has happened stops nothing: it is logged, and recorded all the same."""
    out = helpers.run_snippet(
        """
        import logging
        from safespawn import audit
        logged = []

        class Keep(logging.Handler):
            def emit(self, record):
                logged.append(record.exc_info[0].__name__)

        logging.getLogger("safespawn.audit").addHandler(Keep())

        def hook(name, args):
            if name == "safespawn." + event:
                raise RuntimeError("too late")

        sys.addaudithook(hook)
        with audit.open(ledger):
            out["code"] = safespawn.spawn(["/bin/sh", "-c", "exit 4"]).wait()
        out["logged"] = logged
        """,
        ledger=str(path),
        event=event,
    )

    assert out == {"code": 4, "logged": ["RuntimeError"]}
    assert event in events(path)


def test_audit_error_is_a_spawn_error() -> None:
    """AuditError is caught by those who catch SpawnError or OSError."""
    assert issubclass(AuditError, safespawn.SpawnError)
    assert issubclass(AuditError, OSError)
