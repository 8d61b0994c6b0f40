"""Segments: ours, and what others do to the files behind our back."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import faulting
import helpers
import ledger_check
from safespawn import AuditError, audit
from safespawn.audit import _core, _files

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger goes."""
    return tmp_path / "ledger"


def tell(ledger: audit.Ledger, **fields: Any) -> None:
    """Write a record that must be kept."""
    assert ledger.append("guard.config", None, lambda: fields)


def told(path: Path) -> list[str]:
    """Return what the ledger says of troubles, in order."""
    return [r["why"] for r in helpers.records(path) if r["ev"] == "audit.degraded" and "why" in r]


# ------------------------------------------------------------------ full segments


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keys"])
def test_full_segments_of_many_writers(tmp_path: Path, faults: Path, keyed: bool) -> None:
    """Three processes with three threads each fill segments of 20 kB: nothing is lost, nothing is there twice."""
    scene = """
    import threading
    def scene(case):
        keys = case["where"] + "/keys" if case["keyed"] else None
        key = keys_of.initialise(keys) if keys else None
        arm(case["where"])
        opened = audit.open(case["where"] + "/ledger", keys=keys, max_bytes=20_000)

        def append(process, thread):
            for i in range(60):
                told = dict(process=process, thread=thread, i=i, pad="x" * (i * 37 % 1500))
                assert opened.append("guard.config", None, lambda: told, gate=True)

        pids = []
        for process in range(3):
            pid = os.fork()
            if not pid:
                threads = [threading.Thread(target=append, args=(process, n)) for n in range(3)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                opened.close()
                os._exit(0)
            pids.append(pid)
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        opened.close()
        return dict(key=key, codes=codes)
    """
    (out,) = faulting.run(scene, [{"where": str(tmp_path), "keyed": keyed}], tmp_path, faults)
    ledger = ledger_check.check(tmp_path / "ledger", out["key"], tmp_path / "keys", still_open=False)
    seen = Counter((r["process"], r["thread"], r["i"]) for r in ledger.records if "process" in r)
    segments = ledger_check.segments(ledger.path)

    assert out["codes"] == [0] * 3
    assert seen == {(p, t, i): 1 for p in range(3) for t in range(3) for i in range(60)}
    assert [s.name for s in segments] == [f"ledger.{i}" for i in range(1, len(segments))] + ["ledger"]
    assert len(segments) > 3  # who finds another process at it writes on for a while
    assert all(segment.stat().st_size >= 20_000 for segment in segments[:-1])


def test_rotation_by_hand(path: Path) -> None:
    """rotate() leaves the segment with the next number; the first record of the new one says so."""
    with audit.open(path) as ledger:
        for i in range(3):
            tell(ledger, i=i)
            assert ledger.rotate()
    checked = ledger_check.check(path, still_open=False)

    assert [[r["ev"] for r in helpers.records(s)] for s in ledger_check.segments(path)] == [
        ["chain.open", "guard.config"],
        ["checkpoint", "guard.config"],
        ["checkpoint", "guard.config"],
        ["checkpoint", "chain.close"],
    ]
    assert {r["why"] for r in checked.of("checkpoint")} == {"segment"}


def test_numbers_are_never_given_out_twice(path: Path) -> None:
    """A segment gets the number after the highest, whatever is missing below; retiring leaves the last one."""
    with audit.open(path) as ledger:
        for _ in range(4):
            assert ledger.rotate()
        with pytest.raises(ValueError, match="1 or more, not 0"):
            audit.retention.retire(path, keep=0)
        gone = audit.retention.retire(path, keep=1)
        assert ledger.rotate()

    assert gone == [f"{path}.{n}" for n in (1, 2, 3)]
    assert [s.name for s in ledger_check.segments(path)] == ["ledger.4", "ledger.5", "ledger"]


def test_rotation_that_another_process_is_at(path: Path) -> None:
    """While somebody else holds the lock there is no new segment: the answer is no, and from the second time on it is told."""
    with audit.open(path) as ledger:
        with open(path, "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            answers = [ledger.rotate() for _ in range(3)]
        answers += [ledger.rotate(), ledger.rotate()]

    assert answers == [False, False, False, True, True]
    assert [s.name for s in ledger_check.segments(path)] == ["ledger.1", "ledger.2", "ledger"]
    assert [r["ev"] for r in helpers.records(path.with_name("ledger.1"))] == ["chain.open", "audit.degraded"]
    assert told(path.with_name("ledger.1")) == ["no new segment: Resource temporarily unavailable"]


def test_rotation_that_another_process_has_made(path: Path) -> None:
    """Where somebody else has turned the page it is not turned once more: the answer is yes, we are in the new segment."""
    with audit.open(path) as ledger:
        other = audit.Ledger(path, "require")
        assert other.rotate()
        assert ledger.rotate()
        other.close()

    assert [s.name for s in ledger_check.segments(path)] == ["ledger.1", "ledger"]


def test_other_process_follows_at_its_checkpoint(path: Path) -> None:
    """Whoever else writes the segment that was renamed goes on in it until their next checkpoint."""
    with audit.open(path, "require") as ours:
        theirs = audit.Ledger(path, "require")
        try:
            assert ours.rotate()
            tell(theirs, i=0)
            theirs.checkpoint()
            tell(theirs, i=1)
        finally:
            theirs.close()
    where = {r["i"]: s.name for s in ledger_check.segments(path) for r in helpers.records(s) if "i" in r}

    assert where == {0: "ledger.1", 1: "ledger"}
    ledger_check.check(path, still_open=False)


# ------------------------------------------------------------------ what others do


def test_renamed_by_somebody_else(path: Path) -> None:
    """logrotate's rename: nothing is lost, and at the next checkpoint a new file is begun."""
    with audit.open(path) as ledger:
        path.rename(f"{path}.1")
        tell(ledger, i=0)
        ledger.checkpoint()
        tell(ledger, i=1)
    where = {r["i"]: s.name for s in ledger_check.segments(path) for r in helpers.records(s) if "i" in r}

    assert where == {0: "ledger.1", 1: "ledger"}
    ledger_check.check(path, still_open=False)


def _append(ledger: audit.Ledger) -> None:
    tell(ledger, i=0)


def _long(ledger: audit.Ledger) -> None:
    import safespawn

    safespawn.run(["/bin/true"], env={f"{i:060}": "" for i in range(400)}, cwd="/", audit_tags={"t" * 300: "x" * 300})


def _checkpoint(ledger: audit.Ledger) -> None:
    ledger.checkpoint()


def _rotate(ledger: audit.Ledger) -> None:
    assert ledger.rotate()


def _fork(ledger: audit.Ledger) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    tell(ledger, i=0)


@pytest.mark.parametrize("then", [_append, _long, _checkpoint, _rotate, _fork])
def test_cut_by_somebody_else(path: Path, then: Callable[[audit.Ledger], None]) -> None:
    """logrotate's copytruncate is told once, by whatever is written next, and writing goes on."""
    with audit.open(path) as ledger:
        tell(ledger, pad="x" * 3000)
        os.truncate(path, 0)
        then(ledger)
        tell(ledger, i=1)
    records = [record for segment in ledger_check.segments(path) for record in helpers.records(segment)]

    assert [r["why"] for r in records if r["ev"] == "audit.degraded"] == ["somebody has cut the file"]
    assert [r["lost"] for r in records if r["ev"] == "audit.degraded"] == [0]
    assert [r["n"] for r in records] == list(range(2, 2 + len(records)))


def test_deleted_by_somebody_else(path: Path) -> None:
    """A file that was deleted is followed by a new one at once: what goes on is read by somebody."""
    with audit.open(path) as ledger:
        tell(ledger, i=0)
        path.unlink()
        tell(ledger, i=1)
    records = helpers.records(path)

    assert [(r["ev"], r["n"]) for r in records] == [("checkpoint", 2), ("guard.config", 3), ("chain.close", 4)]


@pytest.mark.parametrize("mode", ["require", "durable"])
def test_deleted_while_it_is_opened(path: Path, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process rotates and retires the file before our first record is in it: that goes into the new one."""
    real, times = _files.open_segment, []

    def opened(*given: Any, **more: Any) -> Any:
        file = real(*given, **more)
        if not times:
            path.unlink()
        times.append(file)
        return file

    monkeypatch.setattr(_files, "open_segment", opened)
    with audit.open(path, mode) as ledger:
        tell(ledger, i=0)

    assert [r["ev"] for r in helpers.records(path)] == ["chain.open", "checkpoint", "guard.config", "chain.close"]


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "dangling"])
def test_replaced_by_a_link(path: Path, tmp_path: Path, there: bool) -> None:
    """A link in the ledger's place is not followed; that is told once, and the old file is written on."""
    other = tmp_path / "other"
    if there:
        other.touch(0o600)
    with audit.open(path) as ledger:
        path.rename(f"{path}.1")
        path.symlink_to(other)
        for _ in range(3):
            ledger.checkpoint()
        assert not ledger.rotate()
        tell(ledger, i=1)

    assert told(Path(f"{path}.1")) == [f"no new segment: cannot open the ledger: {os.strerror(errno.ELOOP)}"]
    assert other.exists() == there and (not there or other.read_bytes() == b"")
    assert helpers.records(Path(f"{path}.1"))[-1]["ev"] == "chain.close"


def test_replaced_by_something_else(path: Path) -> None:
    """A file in the ledger's place that is none is left alone."""
    with audit.open(path) as ledger:
        path.rename(f"{path}.1")
        path.write_text("notes\n")
        ledger.checkpoint()
        tell(ledger, i=1)

    assert path.read_text() == "notes\n"
    assert len(told(Path(f"{path}.1"))) == 1


def test_directory_that_was_moved(tmp_path: Path) -> None:
    """The directory is moved away, and another made in its place: the ledger goes on where it is, and tells so once."""
    where, away = tmp_path / "log", tmp_path / "away"
    where.mkdir(mode=0o700)
    with audit.open(where / "ledger") as ledger:
        where.rename(away)
        ledger.checkpoint()
        where.mkdir(mode=0o700)
        for _ in range(3):
            ledger.checkpoint()
            assert not ledger.rotate()
        tell(ledger, i=1)

    assert list(where.iterdir()) == []
    assert len(told(away / "ledger")) == 1
    ledger_check.check(away / "ledger", still_open=False)


# ------------------------------------------------------------------ what we cannot do


@root_only
@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keys"])
def test_rotation_after_a_drop(tmp_path: Path, faults: Path, keyed: bool) -> None:
    """Without the privileges a full segment is written on: that is told once. With them again it is left."""
    scene = """
    def scene(case):
        where, keys = case["where"], case["where"] + "/keys" if case["keyed"] else None
        key = keys_of.initialise(keys) if keys else None
        arm(where)
        opened = audit.open(where + "/ledger", keys=keys, max_bytes=2000)
        os.seteuid(65534)
        answers = [opened.append("guard.config", None, lambda: dict(i=i, pad="x" * 500)) for i in range(300)]
        turned = opened.rotate()
        os.seteuid(0)
        names = sorted(os.listdir(where))
        for i in range(100):
            opened.append("mirror.up", None, lambda: dict(pad="x" * 500))
        opened.close()
        return dict(key=key, answers=answers, turned=turned, names=names)
    """
    (out,) = faulting.run(scene, [{"where": str(tmp_path), "keyed": keyed}], tmp_path, faults)
    ledger = ledger_check.check(tmp_path / "ledger", out["key"], tmp_path / "keys", still_open=False)

    assert all(out["answers"]) and out["turned"] is False
    assert "ledger.1" not in out["names"]
    assert len([r for r in ledger.of("audit.degraded") if "no new segment" in r["why"]]) == 1
    assert len(ledger_check.segments(ledger.path)) > 3


@root_only
def test_append_only(path: Path) -> None:
    """With append_only not even root cuts, renames or deletes a segment; we leave it all the same."""
    with audit.open(path, append_only=True) as ledger:
        tell(ledger, i=0)
        for harm in (lambda: os.truncate(path, 0), path.unlink, lambda: path.rename(f"{path}.x")):
            with pytest.raises(PermissionError):
                harm()
        assert ledger.rotate()
        tell(ledger, i=1)
        for segment in (path, Path(f"{path}.1")):
            with pytest.raises(PermissionError):
                segment.unlink()
    checked = ledger_check.check(path, still_open=False)
    for segment in ledger_check.segments(path):
        with open(segment, "rb") as file:
            _files.set_append_only(file.fileno(), on=False)

    assert [r["i"] for r in checked.of("guard.config")] == [0, 1]


@root_only
def test_append_only_survives_a_rename_that_fails(tmp_path: Path, faults: Path) -> None:
    """The flag that is taken off for our own rename is on again when that fails."""
    scene = """
    import fcntl
    def scene(case):
        arm(case["where"], rule("rename", "EIO"))
        opened = audit.open(case["where"] + "/ledger", append_only=True)
        turned = opened.rotate()
        with open(case["where"] + "/ledger", "rb") as file:
            flags = int.from_bytes(fcntl.ioctl(file, 0x80086601, bytes(8)), "little")
            fcntl.ioctl(file, 0x40086602, (flags & ~0x20).to_bytes(8, "little"))
        opened.close()
        return dict(turned=turned, flag=flags & 0x20)
    """
    (out,) = faulting.run(scene, [{"where": str(tmp_path)}], tmp_path, faults)

    assert out == {"turned": False, "flag": 0x20, "status": 0}


# ------------------------------------------------------------------ retiring


def heads(path: Path) -> dict[str, dict[str, Any]]:
    """Return what the records of retired segments say, by segment; the last one of each part counts."""
    found: dict[str, dict[str, Any]] = {}
    for record in helpers.records(path):
        if record["ev"] == "segment.retired":
            found.setdefault(record["segment"], {}).update(record["heads"])
    return found


def test_retired_segments(path: Path) -> None:
    """Each retired segment has a record with its digest, and the last record of every chain in it."""
    with audit.open(path) as ledger:
        contents = []
        for i in range(3):
            tell(ledger, i=i)
            contents.append(path.read_bytes())
            assert ledger.rotate()
    gone = audit.retention.retire(path, keep=1)
    records = [r for r in helpers.records(path) if r["ev"] == "segment.retired"]

    assert gone == [f"{path}.1", f"{path}.2"]
    assert [(r["segment"], r["sha256"], r["bytes"]) for r in records] == [
        (f"ledger.{i + 1}", hashlib.sha256(data).hexdigest(), len(data)) for i, data in enumerate(contents[:2])
    ]
    for record, data in zip(records, contents, strict=False):
        last = data.splitlines()[-1]
        ((chain, (number, digest, *_)),) = record["heads"].items()
        assert (chain, number) == (json.loads(last)["c"], json.loads(last)["n"])
        assert digest == hashlib.sha256(last).hexdigest()
    assert {r["mode"] for r in records} == {"durable"}


def test_more_chains_than_a_record_has_room_for(path: Path) -> None:
    """A segment that a hundred processes wrote is accounted for whole."""
    for _ in range(100):
        audit.open(path).close()
    with audit.open(path) as ledger:
        ledger.rotate()
        ledger.rotate()
    chains = {r["c"] for r in helpers.records(Path(f"{path}.1"))}
    audit.retention.retire(path, keep=1)

    assert len(chains) == 101
    assert heads(path)["ledger.1"].keys() == chains
    assert all(len(line) < 8000 for line in path.read_bytes().splitlines())


#: What is in a line that anybody may have appended, behind its start, and how many chains that tells of.
HOSTILE = {
    "infinite number": ('"n":1,"ev":"segment.retired","heads":{"CHAIN":[1e999,"DIGEST"]}', 1),
    "long digest": ('"n":1,"ev":"segment.retired","heads":{"CHAIN":[1,"LONG"]}', 1),
    "long name": ('"n":1,"ev":"segment.retired","heads":{"LONG":[1,"DIGEST"]}', 1),
    "long keys": ('"n":1,"ev":"segment.retired","heads":{"CHAIN":[1,"DIGEST",{"parent":"LONG","n":1,"LONG":1}]}', 2),
    "long parent": ('"n":0,"ev":"chain.open","keys":{"parent":"LONG","n":LONG}', 1),
    "long chain": ('"n":0,"ev":"x","c":"LONG"', 0),
    "long number": ('"n":LONG,"ev":"x"', 0),
    "long line": ('"n":7,"ev":"x","x":"LONGLONGLONG"', 0),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_line_in_a_segment_that_is_retired(path: Path, what: str) -> None:
    """A line that no ledger writes stops no retirement, and takes the place of nothing that is told in it."""
    text, chains = HOSTILE[what]
    text = text.replace("LONG", "1" * 3000).replace("DIGEST", "0" * 64).replace("CHAIN", f"{uuid.UUID(int=1)}")
    with audit.open(path) as ledger:
        chain = helpers.records(path)[0]["c"]
        with path.open("a") as file:
            file.write(f'{{"v":1,"c":"{uuid.UUID(int=2)}",{text}}}\n')
        ledger.rotate()
        ledger.rotate()
        audit.retention.retire(path, keep=1)

    (told,) = (r["heads"] for r in helpers.records(path) if r["ev"] == "segment.retired")
    assert chain in told
    assert len(told) == 1 + chains
    assert all(len(json.dumps(head)) < 200 for head in told.values())


def test_writer_that_has_not_followed_when_its_segment_is_retired(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written between the digest and the deletion is accounted for; afterwards the writer goes on elsewhere."""
    slow = audit.Ledger(path, "require")
    with audit.open(path) as ledger:
        ledger.rotate()
        ledger.rotate()
        real = os.unlink

        def unlink(name: str) -> None:
            tell(slow, i=1)  # the last moment
            real(name)

        monkeypatch.setattr(os, "unlink", unlink)
        audit.retention.retire(path, keep=1)
        monkeypatch.undo()
        tell(slow, i=2)
        slow.close()
    chain = next(r["c"] for r in helpers.records(path) if r.get("i") == 2)
    here = [r["n"] for r in helpers.records(path) if r["c"] == chain]

    assert heads(path)["ledger.1"][chain][0] == 1
    assert here == [2, 3, 4]  # checkpoint, record, end


# ------------------------------------------------------------------ where a ledger may lie


@pytest.mark.parametrize("kind", sorted(set(_files.NETWORK.values())))
@pytest.mark.parametrize("mode", ["require", "durable", "best_effort"])
def test_file_system_of_the_network(path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any, kind: str) -> None:
    """Where two hosts overwrite each other's lines the strict modes refuse, and say on what."""
    number = next(number for number, name in _files.NETWORK.items() if name == kind)
    monkeypatch.setattr(_core, "file_system", lambda fd: number)
    if mode == "best_effort":
        audit.open(path, mode).close()
        return
    with pytest.raises(AuditError, match=f"on {kind}, the network") as caught:
        audit.open(path, mode)

    assert (caught.value.errno, caught.value.filename) == (errno.EMEDIUMTYPE, str(path))


def _mode(mode: int) -> Callable[[Path], Path]:
    def make(where: Path) -> Path:
        (where / "between" / "log").mkdir(parents=True, mode=0o755)
        (where / "between").chmod(mode)
        return where / "between" / "log" / "ledger"

    return make


def _owner(which: str) -> Callable[[Path], Path]:
    def make(where: Path) -> Path:
        (where / "between" / "log").mkdir(parents=True)
        os.chown(where / which, 65534, 65534)
        return where / "between" / "log" / "ledger"

    return make


def _link(to: str, owner: int = 0, sticky: bool = False) -> Callable[[Path], Path]:
    def make(where: Path) -> Path:
        (where / "real").mkdir(mode=0o755)
        (where / "links").mkdir(mode=0o755)
        (where / "links" / "log").symlink_to(to.format(where=where))
        os.lchown(where / "links" / "log", owner, owner)
        if sticky:
            (where / "links").chmod(0o1777)
        return where / "links" / "log" / "ledger"

    return make


def _loop(where: Path) -> Path:
    (where / "one").symlink_to("two")
    (where / "two").symlink_to("one")
    return where / "one" / "ledger"


def _many_links(where: Path) -> Path:
    (where / "0").mkdir()
    for i in range(41):
        (where / str(i + 1)).symlink_to(str(i))
    return where / "41" / "ledger"


def _file_between(where: Path) -> Path:
    (where / "file").touch()
    return where / "file" / "ledger"


def _missing(where: Path) -> Path:
    return where / "missing" / "ledger"


def _good_dots(where: Path) -> Path:
    (where / "log" / "in").mkdir(parents=True)
    return Path(f"{where}//log/in/../.././log/ledger")


@root_only
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_mode(0o755), None),
        (_mode(0o1777), None),
        (_mode(0o777), errno.EPERM),
        (_mode(0o775), errno.EPERM),
        (_mode(0o757), errno.EPERM),
        (_mode(0o2755), None),
        (_owner("between"), errno.EPERM),
        (_owner("between/log"), errno.EPERM),
        (_link("../real"), None),
        (_link("{where}/real"), None),
        (_link("../real", sticky=True), None),
        (_link("../real", owner=65534), errno.EPERM),
        (_link("../real", owner=65534, sticky=True), errno.EPERM),
        (_link("../nowhere"), errno.ENOENT),
        (_loop, errno.ELOOP),
        (_many_links, errno.ELOOP),
        (_file_between, errno.ENOTDIR),
        (_missing, errno.ENOENT),
        (_good_dots, None),
    ],
    ids=[
        "plain", "sticky", "others write", "group writes", "only others", "set-group-id", "of another", "last of another",
        "link", "absolute link", "link among everybody's", "link of another", "their link among everybody's",
        "link to nowhere", "loop", "41 links", "file", "missing", "dots",
    ],
)  # fmt: skip
def test_way_to_the_ledger(public: Path, make: Callable[[Path], Path], error: int | None) -> None:
    """Every directory and link on the way is judged, as the kernel goes it; what is refused leaves no file."""
    where = make(public)
    if error is None:
        audit.open(where).close()
        assert where.exists()
        return
    with pytest.raises(AuditError) as caught:
        audit.open(where)

    assert caught.value.errno == error
    assert caught.value.filename == str(where)
    assert "ledger" not in {name for _, _, names in os.walk(public) for name in names}


@root_only
def test_way_with_dots_is_judged_as_the_kernel_goes_it(public: Path) -> None:
    """`..` goes up from where a link has led to, and through a directory of others it is refused."""
    (public / "log" / "in").mkdir(parents=True)
    (public / "theirs" / "in").mkdir(parents=True)
    os.chown(public / "theirs", 65534, 65534)
    (public / "log" / "link").symlink_to("../theirs/in")
    _files.judge_directory(f"{public}/log/in/../../log/./in/../ledger")
    for way in ("theirs/../log", "log/in/../../theirs/in/../../log", "log/link/.."):
        with pytest.raises(AuditError, match="belongs to uid 65534"):
            _files.judge_directory(f"{public}/{way}/ledger")


def test_dots_behind_a_link(tmp_path: Path) -> None:
    """`..` means what it means to the kernel: ledger, state, segments and the registry's name are where the path leads."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    keys = tmp_path / "keys"
    key = bytes.fromhex(audit.keys.initialise(keys))
    with audit.open(f"{tmp_path}/link/../ledger", keys=keys) as ledger:
        for _ in range(2):
            assert ledger.rotate()
    audit.retention.retire(f"{tmp_path}/link/../ledger", keep=1, keys=keys)
    there = tmp_path / "far" / "ledger"
    names = {r["ledger"] for r in helpers.records(keys / "registry.jsonl") if "ledger" in r}

    assert sorted(p.name for p in there.parent.iterdir()) == ["away", "ledger", "ledger.2", "ledger.state"]
    assert not (tmp_path / "ledger").exists()
    assert {os.path.realpath(name) for name in names} == {str(there)}
    for path in (there, f"{tmp_path}/link/../ledger"):
        seen = audit.verify(path, key=key, registry=keys)
        assert (seen.findings, [one.reason for one in seen.notices]) == ((), ["retired"])


@root_only
def test_dots_through_a_link_of_others(public: Path) -> None:
    """A link of somebody else on the way is refused, also where `..` leaves again where it leads to."""
    (public / "real" / "in").mkdir(parents=True)
    (public / "link").symlink_to("real/in")
    os.lchown(public / "link", 65534, 65534)
    with pytest.raises(AuditError, match="belongs to uid 65534"):
        audit.open(f"{public}/link/../ledger")

    assert not list(public.rglob("ledger"))


def test_directory_that_is_gone(tmp_path: Path) -> None:
    """A relative path from a directory that was deleted is an AuditError like any other."""
    (tmp_path / "gone").mkdir()
    out = helpers.run_snippet(
        """
        from safespawn import audit, AuditError
        os.chdir(where)
        os.rmdir(where)
        try:
            audit.open("ledger")
        except AuditError as problem:
            out["errno"] = problem.errno
        """,
        where=str(tmp_path / "gone"),
    )

    assert out == {"errno": errno.ENOENT}


@root_only
def test_place_of_a_user(public: Path) -> None:
    """A user's own directory is fine for that user, and for root only if root owns it."""
    home = public / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    out = helpers.run_snippet(
        """
        from safespawn import audit, AuditError
        try:
            audit.open(where)
        except AuditError as problem:
            out["root"] = problem.errno
        os.setresuid(65534, 65534, 65534)
        audit.open(where).close()
        """,
        where=str(home / "ledger"),
    )

    assert out == {"root": errno.EPERM}
    assert stat.S_IMODE((home / "ledger").stat().st_mode) == 0o600
