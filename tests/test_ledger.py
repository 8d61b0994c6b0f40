"""What a ledger can be told when it is opened, and does then."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import helpers
import reference_ledger as form
from safespawn import AuditError, audit, run
from safespawn.audit import _core


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger goes."""
    return tmp_path / "ledger.jsonl"


def events(path: Path) -> list[str]:
    """Return the names of the events in order."""
    return [record["ev"] for record in helpers.records(path)]


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"max_bytes": -1}, ValueError, "max_bytes must be 0 or more, and finite, not -1"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be a number, not 1.5 (float)"),
        ({"max_bytes": True}, TypeError, "max_bytes must be a number, not True (bool)"),
        ({"max_seconds": float("nan")}, ValueError, "max_seconds must be 0 or more, and finite, not nan"),
        ({"checkpoint_seconds": "60"}, TypeError, "checkpoint_seconds must be a number, not '60' (str)"),
        ({"late_failure": "stop"}, ValueError, "late_failure must be continue or kill, not 'stop'"),
    ],
)
def test_option_that_cannot_be_meant(path: Path, options: dict[str, Any], kind: type[Exception], text: str) -> None:
    """A bad option is told with its value, and no file is made."""
    with pytest.raises(kind) as caught:
        audit.open(path, **options)

    assert str(caught.value) == text
    assert not path.exists()


def test_opening_tells_options_and_guards(path: Path) -> None:
    """Record 0 tells how the ledger was opened, and what is guarded."""
    with audit.open(path, max_bytes=5000, late_failure="kill"):
        pass
    opening = helpers.records(path)[0]

    assert opening["config"]["max_bytes"] == 5000
    assert opening["config"]["late_failure"] == "kill"
    assert opening["config"]["reserve"] == 5000  # not most of so small a segment
    assert opening["keys"] is opening["parent"] is None
    assert "intent-first" in opening["guards"]["ids"]
    assert opening["guards"]["required"] == "locked"


def test_opening_tells_what_is_around_the_process(path: Path) -> None:
    """Record 0 tells the process's name, sets, filters, cgroup and namespaces, bytes that are no text included."""
    out = helpers.run_snippet(
        """
        import ctypes
        from safespawn import audit
        ctypes.CDLL(None).prctl(15, b"na\\xff\\n", 0, 0, 0)  # PR_SET_NAME
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        audit.open(ledger).close()
        out["who"] = json.loads(open(ledger).readline())["who"]
        out["status"] = dict(line.split(":\\t", 1) for line in open("/proc/self/status", errors="replace") if ":\\t" in line)
        out["cgroup"] = open("/proc/self/cgroup").read()
        out["ns"] = [os.stat("/proc/self/ns/" + name).st_ino for name in ("user", "mnt", "pid")]
        """,
        ledger=str(path),
    )
    who, status = out["who"], out["status"]

    assert (who["comm"], who["nnp"]) == ({"hex": b"na\xff\n".hex()}, 1)
    assert [who[f"{name}_ns"] for name in ("user", "mnt", "pid")] == out["ns"]
    assert [int(who[name], 16) for name in ("bnd", "amb")] == [int(status[name], 16) for name in ("CapBnd", "CapAmb")]
    assert who["seccomp"] == int(status["Seccomp"])
    assert f"0::{who.get('cgroup', '')}\n" in out["cgroup"] or "0::" not in out["cgroup"]


def test_change_of_the_guards_is_recorded(path: Path) -> None:
    """What is required from now on leaves a record of its own."""
    out = helpers.run_snippet(
        """
        from safespawn import audit, guards
        with audit.open(ledger):
            guards.require("single-threaded")
        out["told"] = [json.loads(line).get("guards", {}).get("required") for line in open(ledger)]
        """,
        ledger=str(path),
    )

    assert out == {"told": ["locked", "single-threaded", None]}


@pytest.mark.parametrize("late", ["continue", "kill"])
def test_start_that_cannot_be_recorded(path: Path, late: str) -> None:
    """A program whose start is lost goes on, or is killed if the ledger was opened so."""
    out = helpers.run_snippet(
        """
        import resource
        from safespawn import audit
        audit.open(ledger, late_failure=late)
        full = []
        def hook(event, arguments):
            if event == "safespawn.spawn.started" and not full:
                full.append(os.stat(ledger).st_size)
                resource.setrlimit(resource.RLIMIT_FSIZE, (full[0], resource.RLIM_INFINITY))
        sys.addaudithook(hook)
        with safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE) as process:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        out["code"] = process.returncode
        """,
        ledger=str(path),
        late=late,
    )

    assert out == {"code": 0 if late == "continue" else -9}
    assert events(path)[1:4] == ["spawn.intent", "audit.degraded", "spawn.exit"]


@pytest.mark.parametrize("late", ["continue", "kill"])
def test_start_that_cannot_be_recorded_and_an_exception(path: Path, late: str) -> None:
    """The same where an exception comes in that moment, and nobody gets the program's handle."""
    out = helpers.run_snippet(
        """
        import resource
        from safespawn import _child, audit
        audit.open(ledger, late_failure=late)
        none, full = resource.RLIM_INFINITY, []
        def hook(event, arguments):
            if event == "safespawn.spawn.started" and not full:
                full.append(os.stat(ledger).st_size)
                resource.setrlimit(resource.RLIMIT_FSIZE, (full[0], none))
                raise KeyboardInterrupt
        sys.addaudithook(hook)
        try:
            safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE)
        except KeyboardInterrupt:
            resource.setrlimit(resource.RLIMIT_FSIZE, (none, none))
        (child,) = _child._abandoned
        child.wait(None)
        out["code"] = child.returncode
        """,
        ledger=str(path),
        late=late,
    )

    assert out == {"code": 0 if late == "continue" else -9}
    assert events(path)[1:4] == ["spawn.intent", "audit.degraded", "spawn.exit"]


def test_start_without_an_intent_that_is_interrupted(path: Path) -> None:
    """In best_effort the intent was lost, and a handler raises when the program runs: its start is told all the same."""
    out = helpers.run_snippet(
        """
        import resource
        from safespawn import audit
        opened, none = audit.open(ledger, mode="best_effort"), resource.RLIM_INFINITY
        spawning = sys.modules["safespawn._spawn"]
        tell_intent, record_start = spawning.intent, spawning.record_start

        def lose_intent(*about):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, none))
            try:
                return tell_intent(*about)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (none, none))

        def interrupt(*about):
            spawning.record_start = record_start
            raise KeyboardInterrupt

        spawning.intent, spawning.record_start = lose_intent, interrupt
        try:
            safespawn.spawn(["/bin/true"])
        except KeyboardInterrupt:
            (child,) = sys.modules["safespawn._child"]._abandoned
            out["code"] = child.wait(20) and child.returncode
        opened.close()
        """,
        ledger=str(path),
    )

    assert out == {"code": 0}
    assert events(path) == ["chain.open", "audit.degraded", "spawn.started", "spawn.exit", "chain.close"]
    assert [told["lost"] for told in helpers.records(path) if told["ev"] == "audit.degraded"] == [1]


# ------------------------------------------------------------------ checkpoints and segments


def test_checkpoint_after_many_records(path: Path) -> None:
    """After 1000 records comes a checkpoint, with the number of records by event."""
    with audit.open(path) as ledger:
        for _ in range(1000):
            ledger.append("mirror.up", None, dict)
    told = [r for r in helpers.records(path) if r["ev"] == "checkpoint"]

    assert [r["n"] for r in told] == [1000]
    assert told[0]["why"] == "count"
    assert told[0]["counts"] == {"chain.open": 1, "mirror.up": 999}


def test_checkpoint_after_a_time(path: Path) -> None:
    """With no time at all between them, every record is followed by a checkpoint."""
    with audit.open(path, checkpoint_seconds=0) as ledger:
        ledger.append("mirror.up", None, dict)

    assert events(path) == ["chain.open", "mirror.up", "checkpoint", "chain.close"]
    assert helpers.records(path)[2]["why"] == "time"


def test_segments_by_size(path: Path) -> None:
    """A full segment gets a number, the chain goes on in the next one, without a gap."""
    with audit.open(path, max_bytes=4000) as ledger:
        for _ in range(40):
            ledger.append("mirror.up", None, lambda: {"pad": "x" * 300})
    numbers = sorted(int(name.name.rpartition(".")[2]) for name in path.parent.glob("ledger.jsonl.*"))
    segments = [path.with_name(f"{path.name}.{number}") for number in numbers] + [path]
    records = [record for segment in segments for record in helpers.records(segment)]

    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 3
    assert [r["n"] for r in records] == list(range(len(records)))
    assert len({r["c"] for r in records}) == 1
    assert all(helpers.records(segment)[0]["ev"] == "checkpoint" for segment in segments[1:])
    assert all(4000 <= segment.stat().st_size < 5000 for segment in segments[:-1])


def test_segments_by_age(path: Path) -> None:
    """A segment that is too old is left with the next checkpoint."""
    with audit.open(path, max_seconds=1e-9, checkpoint_seconds=0) as ledger:
        ledger.append("mirror.up", None, dict)

    assert events(path.with_name("ledger.jsonl.1")) == ["chain.open", "mirror.up"]
    assert events(path) == ["checkpoint", "chain.close"]


# ------------------------------------------------------------------ keys


def test_keys_are_made_once(tmp_path: Path) -> None:
    """Keys are 64 hex digits for a person and three private files; a second time is refused."""
    key = audit.keys.initialise(tmp_path / "keys")

    assert len(bytes.fromhex(key)) == 32
    assert {name.name: name.stat().st_mode & 0o777 for name in (tmp_path / "keys").iterdir()} == {
        "epoch": 0o600,
        "registry.jsonl": 0o600,
        "redaction": 0o600,
    }
    with pytest.raises(AuditError) as caught:
        audit.keys.initialise(tmp_path / "keys")
    assert caught.value.errno == errno.EEXIST


def test_keys_whose_verification_key_nobody_sees_are_not_made(tmp_path: Path) -> None:
    """When the key cannot be shown there are no keys, and a second try is none."""
    command = [sys.executable, "-m", "safespawn", "audit", "keys", "init", "--dir", str(tmp_path / "keys")]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2 and b"No space left" in done.stderr
    assert list((tmp_path / "keys").iterdir()) == []

    again = subprocess.run(command, capture_output=True, check=True)
    assert len(bytes.fromhex(again.stdout.decode().strip())) == 32


def test_retiring_takes_the_keys(path: Path, tmp_path: Path) -> None:
    """Segments of a ledger with keys are not deleted on the word of a chain without."""
    audit.keys.initialise(tmp_path / "keys")
    with audit.open(path, keys=tmp_path / "keys") as ledger:
        ledger.rotate()
        ledger.rotate()
    with pytest.raises(AuditError) as caught:
        audit.retention.retire(path, keep=1)

    assert caught.value.errno == errno.ENOKEY
    assert path.with_name("ledger.jsonl.1").exists()
    assert audit.retention.retire(path, keep=1, keys=tmp_path / "keys") == [f"{path}.1"]


def test_verification_key_is_in_no_file(tmp_path: Path, path: Path) -> None:
    """What verifies stays nowhere on the host, in no form."""
    key = audit.keys.initialise(tmp_path / "keys")
    with audit.open(path, keys=tmp_path / "keys"):
        run(["/bin/true"])
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    assert key.encode() not in written
    assert bytes.fromhex(key) not in written


#: Keeps a ledger open until nothing more can be read.
KEEPER = """
import sys
from safespawn import audit, run
with audit.open(sys.argv[1], keys=sys.argv[2]):
    run(["/bin/true"])
    print("ready", flush=True)
    sys.stdin.read()
"""


def mappings_with(pid: int, text: bytes) -> list[set[str]]:
    """Return the flags (VmFlags of proc_pid_smaps(5)) of each mapping of a process in which a text stands."""
    found, begin, end = [], 0, 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(f"/proc/{pid}/smaps", encoding="utf-8") as maps:
        for line in maps:
            if line[0] in "0123456789abcdef":
                begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            elif line.startswith("VmFlags:") and "rd" in line.split() and begin < 1 << 47:
                try:
                    data = os.pread(memory.fileno(), end - begin, begin)
                except OSError:  # [vvar]
                    continue
                found += [set(line.split()[1:])] * (text in data)
    return found


def test_keys_in_memory(tmp_path: Path, path: Path) -> None:
    """Those of the next record are in no core file, no forked child and no swap; all before are nowhere."""
    verification = bytes.fromhex(audit.keys.initialise(tmp_path / "keys"))
    line = [sys.executable, "-c", KEEPER, str(path), str(tmp_path / "keys")]
    env = {**os.environ, "PYTHONPATH": str(helpers.ROOT)}
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as keeper:
        assert keeper.stdout is not None and keeper.stdout.readline() == b"ready\n"
        records = helpers.records(path)
        epochs = [form.epoch_key(verification, n) for n in range(records[0]["keys"]["epoch"] + 2)]
        chain = form.chain_key(epochs[-2], records[0]["c"])
        now, gone = [], [*epochs, chain]
        for name in (b"safespawn record", b"safespawn aggregate"):
            key = form.mac(chain, name)
            for _ in records:
                gone.append(key)
                key = form.sha256(key)
            now.append(key)
        here = [mappings_with(keeper.pid, key) for key in now]
        before = [mappings_with(keeper.pid, key) for key in gone]
        keeper.communicate()

    assert [len(one) for one in here] == [1, 1]
    assert all({"dd", "wf"} <= flags for one in here for flags in one)
    assert os.geteuid() != 0 or all("lo" in flags for one in here for flags in one)
    assert before == [[]] * len(gone)


@pytest.mark.parametrize(
    ("spoil", "number"),
    [
        (lambda keys: (keys / "epoch").write_bytes(b"x" * 128), errno.EBADMSG),
        (lambda keys: (keys / "registry.jsonl").write_bytes(b""), errno.EBADMSG),
        (lambda keys: (keys / "registry.jsonl").unlink(), errno.ENOENT),
        (lambda keys: (keys / "redaction").write_bytes(b"short"), errno.EBADMSG),
        (lambda keys: (keys / "epoch").chmod(0o640), errno.EPERM),
        (lambda keys: keys.chmod(0o777), errno.EPERM),
    ],
    ids=["epoch", "registry", "no-registry", "redaction", "mode", "directory"],
)
def test_damaged_keys_are_refused(tmp_path: Path, path: Path, spoil: Callable[[Path], None], number: int) -> None:
    """Keys that are damaged, or that others can use, open no ledger, and leak no descriptor."""
    audit.keys.initialise(tmp_path / "keys")
    spoil(tmp_path / "keys")

    with pytest.raises(AuditError) as caught:
        audit.open(path, keys=tmp_path / "keys")
    assert caught.value.errno == number


@pytest.mark.parametrize("named", ["argument", "environment"])
@pytest.mark.parametrize("what", ["missing/keys", "empty", "file/keys"])
def test_missing_keys_that_were_named_are_an_error(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, named: str, what: str
) -> None:
    """A directory without keys is refused by its name when it was asked for, whoever asked."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    where = str(tmp_path / what)
    if named == "environment":
        monkeypatch.setenv("SAFESPAWN_AUDIT_KEYS", where)

    with pytest.raises(AuditError, match=where) as caught:
        audit.open(path, keys=where if named == "argument" else None)
    assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR)
    assert not path.exists()


def test_missing_keys_of_the_default_are_none(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody names a directory, one without keys means none; one with a part of them is damaged."""
    monkeypatch.delenv("SAFESPAWN_AUDIT_KEYS")
    monkeypatch.setattr(audit.keys, "DIRECTORY", str(tmp_path / "keys"))
    audit.open(path).close()
    audit.keys.initialise()
    audit.open(path).close()
    (tmp_path / "keys" / "epoch").unlink()
    with pytest.raises(AuditError, match="cannot open the keys"):
        audit.open(path)

    assert [r["keys"] for r in helpers.records(path) if r["ev"] == "chain.open"] == [None, {"epoch": 1}]


def test_keys_that_nobody_can_look_for_are_not_none(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose keys may be there has no ledger without keys: a look that fails says nothing."""
    monkeypatch.delenv("SAFESPAWN_AUDIT_KEYS")
    monkeypatch.setattr(audit.keys, "DIRECTORY", str(tmp_path / "keys"))
    audit.keys.initialise()
    (tmp_path / "keys" / "epoch").unlink()
    look = os.lstat

    def looks(name: str, **how: Any) -> os.stat_result:
        if str(name).endswith("registry.jsonl"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        return look(name, **how)

    monkeypatch.setattr(os, "lstat", looks)
    with pytest.raises(AuditError, match="cannot open the keys"):
        audit.open(path)
    assert not path.exists()


@pytest.mark.parametrize("named", ["argument", "environment"])
def test_no_keys_can_be_asked_for(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """An empty name asks for no keys, also where the host has some; none are made then without a name."""
    monkeypatch.delenv("SAFESPAWN_AUDIT_KEYS")
    monkeypatch.setattr(audit.keys, "DIRECTORY", str(tmp_path / "keys"))
    audit.keys.initialise()
    if named == "environment":
        monkeypatch.setenv("SAFESPAWN_AUDIT_KEYS", "")
        with pytest.raises(AuditError, match="SAFESPAWN_AUDIT_KEYS is empty"):
            audit.keys.initialise()
    audit.open(path, keys="" if named == "argument" else None).close()

    assert helpers.records(path)[0]["keys"] is None



# ------------------------------------------------------------------ context


def test_carry_takes_the_tags_to_another_thread(path: Path) -> None:
    """A function that was carried has the tags of where that was done; a plain one has none."""

    def start() -> None:
        run(["/bin/true"])

    with audit.open(path), ThreadPoolExecutor(2) as pool:
        with audit.context(tenant="a"):
            carried = [pool.submit(audit.carry(start)) for _ in range(4)]
            plain = pool.submit(start)
        for one in (*carried, plain):
            one.result()
    tags = [r.get("tags") for r in helpers.records(path) if r["ev"] == "spawn.intent"]

    assert tags.count({"tenant": "a"}) == 4
    assert tags.count(None) == 1


def test_tags_follow_the_context(path: Path) -> None:
    """A copy of the context has the tags, wherever it runs: that is how tasks get them."""
    with audit.open(path):
        with audit.context(request_id="7"):
            context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(run, ["/bin/true"]))
        thread.start()
        thread.join()

    assert [r["tags"] for r in helpers.records(path) if "tags" in r] == [{"request_id": "7"}]


#: Forks in the middle of an opening, and tells the child's pid.
OPENER = """
import os, sys
from safespawn.audit import _core, keys
chain, where = sys.argv[1:]
heard, told = os.pipe()
with keys.Keys(where).opening(chain, "/ledger", _core.new_origin(chain)):
    if pid := os.fork():
        os.read(heard, 1)
        print(pid, flush=True)
    else:
        os.write(told, b".")
    sys.stdin.read()
    if not pid:
        os._exit(0)
"""


def test_keys_that_no_child_gets(tmp_path: Path) -> None:
    """A child that is forked while a ledger is opened has neither the keys of that moment nor a way to their files."""
    where, chain = tmp_path / "keys", "01a22710-0000-7000-8000-000000000007"
    key = form.epoch_key(bytes.fromhex(audit.keys.initialise(where)), 1)
    secrets = [key, form.chain_key(key, chain)]
    line = [sys.executable, "-c", OPENER, chain, str(where)]
    env = {**os.environ, "PYTHONPATH": str(helpers.ROOT)}
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as opener:
        assert opener.stdout is not None
        pids = opener.pid, int(opener.stdout.readline())
        held = [[len(mappings_with(pid, one)) for one in secrets] for pid in pids]
        files = [{os.path.realpath(one) for one in Path(f"/proc/{pid}/fd").iterdir()} for pid in pids]
        opener.communicate()

    names = {str(where / "epoch"), str(where / "registry.jsonl")}
    assert [names & one for one in files] == [names, set()]
    assert all(held[0])
    assert held[1] == [0, 0]


def test_tags_of_tasks(path: Path) -> None:
    """Tasks that run in turn have each its own tags, and take them to the threads of asyncio.to_thread."""

    inside = []

    async def serve(request: str) -> None:
        with audit.context(request_id=request):
            inside.append(request)
            await asyncio.sleep(0)  # the others' turn
            assert inside == ["a", "b", "c"]
            run(["/bin/true", "task", request])
            await asyncio.to_thread(run, ["/bin/true", "thread", request])

    async def serve_all() -> None:
        await asyncio.gather(*(serve(name) for name in "abc"))

    with audit.open(path):
        asyncio.run(serve_all())
    told = {(*r["what"]["argv"][1:], r["tags"]["request_id"]) for r in helpers.records(path) if r["ev"] == "spawn.intent"}

    assert told == {(where, name, name) for where in ("task", "thread") for name in "abc"}


# ------------------------------------------------------------------ what nobody closes


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keys"])
def test_ledger_that_nobody_refers_to(path: Path, tmp_path: Path, keyed: bool) -> None:
    """A ledger that was forgotten is closed with its last record, and warns."""
    keys = tmp_path / "keys" if keyed else ""
    if keyed:
        audit.keys.initialise(keys)
    before = helpers.open_fds()
    ledger = audit.Ledger(path, "require", audit.Options(keys))
    with pytest.warns(ResourceWarning, match=str(path)):
        del ledger
        gc.collect()

    assert helpers.open_fds() == before
    assert events(path) == ["chain.open", "chain.close"]


def test_ledger_that_could_not_be_opened_does_not_warn(tmp_path: Path) -> None:
    """What was never open, or was closed, is forgotten without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AuditError):
            audit.Ledger(tmp_path / "missing" / "ledger", "require")
        with pytest.raises(ValueError, match="mode must be"):
            audit.Ledger(tmp_path / "ledger", "never")  # type: ignore[arg-type]
        audit.Ledger(tmp_path / "ledger", "require").close()
        gc.collect()


def test_ledger_that_is_open_at_the_end(path: Path) -> None:
    """At the end of the interpreter a ledger that a module still refers to is closed too."""
    code = f"from safespawn import audit; ledger = audit.Ledger({str(path)!r}, 'require')"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)

    assert "ResourceWarning" in done.stderr and str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert events(path) == ["chain.open", "chain.close"]


def test_forked_child_forgets_the_ledger(path: Path) -> None:
    """A child that has written nothing forgets its ledger without a record and without a warning."""
    ledger = audit.Ledger(path, "require")
    pid = os.fork()
    if not pid:
        code = 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sys.unraisablehook = lambda _: os._exit(2)
            del ledger
            gc.collect()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    ledger.close()

    assert events(path) == ["chain.open", "chain.fork", "chain.close"]


def test_what_a_mirror_told_before_the_fork_is_told_once(path: Path) -> None:
    """What waits for the first record of a chain is the parent's: a child does not tell it again."""
    ledger = audit.Ledger(path, "require")
    ledger._early.append(("mirror.down", {"mirror": "m", "why": "w", "accepted": 0, "dropped": 0}))
    pid = os.fork()
    if not pid:
        kept = ledger.append("guard.config", None, dict)
        ledger.close()
        os._exit(0 if kept else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    ledger.close()
    child = [r["ev"] for r in helpers.records(path) if r["c"] != helpers.records(path)[0]["c"]]

    assert child == ["chain.open", "guard.config", "chain.close"]


def test_key_of_a_chain_that_did_not_begin_is_wiped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an opening fails behind the epoch, the key that it was given is gone from memory."""
    audit.keys.initialise(tmp_path / "keys")
    keys = audit.keys.find(tmp_path / "keys")
    assert keys is not None
    origin = _core.new_origin("0193c5a0-0000-7000-8000-00000000beef")
    with pytest.raises(KeyboardInterrupt), keys.opening("x" * 36, "ledger", origin):
        given = bytes(origin.key)
        raise KeyboardInterrupt
    keys.close()

    assert given != bytes(32)
    assert bytes(origin.key) == bytes(32)
