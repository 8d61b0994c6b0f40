"""Reading ledgers: which files, which lines, and what becomes of lines that are no records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import helpers
import ledgers
from safespawn.audit import _lines, reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger goes."""
    return tmp_path / "ledger.jsonl"


def lines(count: int, seed: int = 1) -> list[bytes]:
    """Return so many records of one chain."""
    chain = ledgers.Chain(seed)
    return [chain.record("checkpoint", None, why="count") for _ in range(count)]


def numbers(records: Iterator[reader.Record | None] | list[reader.Record]) -> list[int]:
    """Return the numbers of records."""
    return [record.fields["n"] for record in records if record is not None]


# ---------------------------------------------------------------- which files


def test_segments_in_the_order_of_their_numbers(path: Path) -> None:
    """Older segments come by number, not by name, then the current one; other files are none of them."""
    for name in ("", ".10", ".2", ".1", ".state", ".01", ".3.gz", ".x", ".-1"):
        Path(f"{path}{name}").touch()

    assert reader.segments(str(path)) == [f"{path}.1", f"{path}.2", f"{path}.10", str(path)]


def test_segments_of_a_bare_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger in the working directory needs no directory in its path."""
    monkeypatch.chdir(path.parent)
    Path("ledger.jsonl.1").touch()

    assert reader.segments("ledger.jsonl") == ["ledger.jsonl.1"]


def test_records_of_all_segments_in_order(path: Path) -> None:
    """The records of all segments come in order, each with its file and line."""
    made = lines(5)
    ledgers.write(Path(f"{path}.1"), *made[:2])
    ledgers.write(Path(f"{path}.2"), made[2])
    ledgers.write(path, *made[3:])
    found = list(reader.records(str(path)))

    assert numbers(found) == [0, 1, 2, 3, 4]
    assert [record.where for record in found] == [
        "ledger.jsonl.1:1", "ledger.jsonl.1:2", "ledger.jsonl.2:1", "ledger.jsonl:1", "ledger.jsonl:2",
    ]  # fmt: skip
    assert [record.line + b"\n" for record in found] == made


def test_rotation_while_reading_neither_loses_nor_repeats(path: Path) -> None:
    """A segment that gets its number while an older one is read comes once, in its place."""
    made = lines(4)
    ledgers.write(Path(f"{path}.1"), *made[:2])
    ledgers.write(path, *made[2:])
    found = reader.records(str(path))
    first = next(found)
    path.rename(f"{path}.2")
    ledgers.write(path, *lines(1, seed=2))

    assert numbers([first, *found]) == [0, 1, 2, 3]


def test_rotation_before_the_older_segments_are_listed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is open already and found again under its number comes once."""
    made = lines(4)
    ledgers.write(Path(f"{path}.1"), *made[:2])
    ledgers.write(path, *made[2:])
    listed = reader.numbered

    def rotated_first(name: str) -> list[tuple[int, str]]:
        path.rename(f"{path}.2")
        return listed(name)

    monkeypatch.setattr(reader, "numbered", rotated_first)

    assert numbers(reader.records(str(path))) == [0, 1, 2, 3]


def test_only_older_segments(path: Path) -> None:
    """A ledger that was just renamed away is read all the same."""
    ledgers.write(Path(f"{path}.1"), *lines(2))

    assert numbers(reader.records(str(path))) == [0, 1]


def test_segment_that_was_deleted_in_between(path: Path) -> None:
    """A segment that goes before its turn is told of, and the next one is read."""
    made = lines(3)
    for number in (1, 2):
        ledgers.write(Path(f"{path}.{number}"), made[number - 1])
    ledgers.write(path, made[2])
    found = reader.records(str(path))
    first = next(found)
    os.unlink(f"{path}.2")
    gone, last = found

    assert (first.fields["n"], last.fields["n"]) == (0, 2)
    assert (gone.where, gone.problem) == ("ledger.jsonl.2:0", "the segment was deleted before it was read")


def test_no_ledger(path: Path) -> None:
    """Where there is no file at all, the error names the path."""
    with pytest.raises(FileNotFoundError) as raised:
        next(reader.records(str(path)))
    assert raised.value.filename == str(path)


def test_standard_input(path: Path) -> None:
    """The path - reads standard input, a pipe too."""
    snippet = "from safespawn.audit import reader\nprint([(r.where, r.fields['n']) for r in reader.records('-')])"
    done = subprocess.run(
        [sys.executable, "-c", snippet], input=b"".join(lines(2)), capture_output=True, check=True, timeout=60
    )

    assert done.stdout == b"[('-:1', 0), ('-:2', 1)]\n"


def test_progress(path: Path) -> None:
    """Progress is told about once a MiB: bytes read so far, and how many there are in all segments."""
    pieces = list(ledgers.realistic(3000))
    for file in (Path(f"{path}.1"), path):
        ledgers.write(file, *pieces)
    size = path.stat().st_size
    told: list[tuple[int, int | None]] = []
    for _ in reader.records(str(path), progress=lambda done, total: told.append((done, total))):
        pass

    assert {total for _, total in told} == {2 * size}
    assert len(told) == 2 * size // (1 << 20) > 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] <= 2 * size


# ---------------------------------------------------------------- which lines

GOOD = lines(1)[0][:-1]


def changed(**members: object) -> bytes:
    """Return a record with some members that are not as they must be."""
    return ledgers.encoded({**json.loads(GOOD), **members})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "not the form"),
        (b"\x00\xff\x1b[31m", "not the form"),
        (GOOD[:-1], "not the form"),
        (GOOD[1:], "not the form"),
        (b" " + GOOD, "not the form"),
        (GOOD[:-1] + b',"x":"\xc3\xa9"}', "no JSON of ours"),
        (GOOD[:-1] + b',"x":"\x1b"}', "a control character"),
        (GOOD[:-1] + b',"x":"\x7f"}', "a control character"),
        (GOOD[:-1] + b'\t}', "a control character"),
        (GOOD[:-1] + b',"x":1.5}', "'1.5' is no integer"),
        (GOOD[:-1] + b',"x":1e9}', "'1e9' is no integer"),
        (GOOD[:-1] + b',"x":NaN}', "'NaN' is no integer"),
        (GOOD[:-1] + b',"x":' + b"[" * 7000 + b"}", "no JSON of ours"),
        (GOOD[:-1] + b',"x":' + b"[" * 200 + b"]" * 200 + b"}", "nested too deep"),
        (GOOD + b"}", "something after the end"),
        (GOOD + b"," + GOOD, "something after the end"),
        (GOOD[:-1] + b',"x":' + b"9" * 7000 + b"}", "no JSON of ours"),
        (changed(ev=None), "ev is None"),
        (changed(ev=["spawn.exit"]), "ev is ['spawn.exit']"),
        (changed(sid=5), "sid is 5"),
        (changed(n="0"), "n is '0'"),
        (changed(n=True), "n is True"),
        (changed(t=-1), "t is -1"),
        (changed(t=1 << 63), f"t is {1 << 63}"),
        (changed(t="now"), "t is 'now'"),
    ],
)  # fmt: skip
def test_line_that_is_no_record(path: Path, line: bytes, problem: str) -> None:
    """What is no record is given with its place and its problem, and the next line is read."""
    ledgers.write(path, line, b"\n", GOOD, b"\n")
    bad, good = reader.records(str(path))

    assert problem in (bad.problem or "")
    assert (bad.fields, bad.line, bad.where) == ({}, line, "ledger.jsonl:1")
    assert (good.problem, good.fields["n"], good.where) == (None, 0, "ledger.jsonl:2")


def test_nesting_that_is_allowed() -> None:
    """Many small parts are no deep nesting, and brackets in a text are none at all."""
    flat = changed(argv=[{"hex": "ff"}] * 200, text="[" * 300)
    assert _lines.parse(flat, "x").problem is None


@pytest.mark.parametrize(("length", "fits"), [(7998, True), (7999, True), (8000, False), (8001, False), (20000, False)])
def test_longest_line(path: Path, length: int, fits: bool) -> None:
    """A record of 8000 bytes with its newline is one, a longer one is not; what comes after it is read."""
    filler = b"x" * (length - len(GOOD) - len(b',"x":""'))
    ledgers.write(path, GOOD[:-1] + b',"x":"' + filler + b'"}', b"\n", GOOD, b"\n")
    long, good = reader.records(str(path))

    assert (long.problem is None) == fits
    assert len(long.line) == min(length, 7999)
    assert good.problem is None


def test_long_line_takes_no_memory(path: Path) -> None:
    """A line of 64 MiB is skipped piece by piece."""
    with open(path, "wb") as file:
        file.truncate(1 << 26)
        file.seek(1 << 26)
        file.write(b"\n" + GOOD + b"\n")
    tracemalloc.start()
    long, good = reader.records(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (long.problem, good.problem) == ("longer than 8000 bytes", None)
    assert peak < 1 << 22


def test_end_without_a_newline(path: Path) -> None:
    """What is after the last newline is no record yet, even if it looks like one."""
    ledgers.write(path, GOOD, b"\n", GOOD)
    _, last = reader.records(str(path))

    assert (last.fields, last.where) == ({}, "ledger.jsonl:2")
    assert "no newline" in (last.problem or "")


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_bytes(data: bytes, place: int) -> None:
    """Whatever is in a line, each line gives one record or one problem, and nothing else happens."""
    place %= len(GOOD)
    for line in (data, GOOD[:place] + data + GOOD[place:]):
        for part in line.split(b"\n"):
            record = _lines.parse(part, "x:1")
            assert record.line == part
            assert (record.problem is None) == bool(record.fields)


# ---------------------------------------------------------------- following


class Steps(threading.Event):
    """Lets a follower look again at once."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


class Follower:
    """Takes a follower from one look to the next."""

    def __init__(self, path: Path) -> None:
        self.stop = Steps()
        self.records = reader.follow(str(path), self.stop)

    def __enter__(self) -> Follower:
        assert self.look() == []
        return self

    def __exit__(self, *problem: object) -> None:
        self.records.close()

    def look(self) -> list[reader.Record]:
        """Return what one look found."""
        found = []
        while (record := next(self.records)) is not None:
            found.append(record)
        return found

    def numbers(self) -> list[int]:
        """Return the numbers of the records that one look found."""
        return numbers(self.look())


def test_follow_yields_what_is_written_from_now_on(path: Path) -> None:
    """Records that were there before are left out, those that come are given once, with their place."""
    made = lines(4)
    ledgers.write(path, *made[:2])
    with Follower(path) as follower:
        ledgers.append(path, made[2], made[3])
        third, fourth = follower.look()
        assert follower.look() == []

    assert (third.fields["n"], third.where) == (2, f"ledger.jsonl@{len(made[0] + made[1])}")
    assert (fourth.fields["n"], fourth.where) == (3, f"ledger.jsonl@{len(made[0] + made[1] + made[2])}")


def test_follow_before_there_is_a_ledger(path: Path) -> None:
    """A ledger that is made later is read from its start; older segments are left out."""
    made = lines(3)
    ledgers.write(Path(f"{path}.1"), made[0])
    with Follower(path) as follower:
        ledgers.write(path, *made[1:])
        assert follower.numbers() == [1, 2]


def test_follow_waits_for_the_end_of_a_line(path: Path) -> None:
    """Half a record is given when its other half is there, also one that was begun before we looked."""
    made = lines(2)
    ledgers.write(path, made[0][:50])
    with Follower(path) as follower:
        ledgers.append(path, made[0][50:100])
        assert follower.look() == []
        ledgers.append(path, made[0][100:], made[1])
        assert follower.numbers() == [0, 1]


def test_follow_over_a_rotation(path: Path) -> None:
    """The last records of the old file come before the first of the new one, and none twice."""
    made = lines(6)
    ledgers.write(path, made[0])
    with Follower(path) as follower:
        ledgers.append(path, made[1])
        path.rename(f"{path}.1")
        assert follower.numbers() == [1]
        ledgers.append(Path(f"{path}.1"), made[2])
        ledgers.write(path, made[3], made[4])
        assert follower.numbers() == [2, 3, 4]
        ledgers.append(path, made[5])
        assert follower.numbers() == [5]


def test_follow_over_many_rotations_between_two_looks(path: Path) -> None:
    """Segments that came and got their numbers while nobody looked are read in their order."""
    made = lines(20)
    ledgers.write(path, made[0])
    with Follower(path) as follower:
        for number in range(1, 20):
            path.rename(f"{path}.{number}")
            ledgers.write(path, made[number])
        assert follower.numbers() == list(range(1, 20))
        assert follower.look() == []


def test_follow_writer_that_has_not_noticed_the_rotation(path: Path) -> None:
    """What another process still writes to the old segment is given, with its new name."""
    made = lines(5)
    ledgers.write(path, made[0])
    with open(path, "ab", buffering=0) as late, Follower(path) as follower:
        path.rename(f"{path}.7")
        ledgers.write(path, made[1])
        assert follower.numbers() == [1]
        late.write(made[2])
        (found,) = follower.look()
        assert (found.fields["n"], found.where) == (2, f"ledger.jsonl.7@{len(made[0])}")


def test_follow_gives_up_the_oldest_of_many_segments(path: Path) -> None:
    """Only so many old segments stay open; half a line in one that is given up is told of."""
    made = lines(20)
    ledgers.write(path)
    with Follower(path) as follower:
        ledgers.append(path, made[0][:40])
        before = len(helpers.open_fds())
        for number in range(1, 20):
            path.rename(f"{path}.{number}")
            ledgers.write(path, made[number])
            found = follower.look()
            if any(record.problem for record in found):
                break
        torn = found[-1]

        assert torn.line == made[0][:40]
        assert "no newline" in (torn.problem or "")
        assert number == 9
        assert len(helpers.open_fds()) == before + 8


@pytest.mark.parametrize("grown", [False, True])
def test_follow_over_a_truncation(path: Path, grown: bool) -> None:
    """A file that was cut is told of and read anew, even if it has grown past the old size since."""
    made = lines(8)
    ledgers.write(path, made[0], made[1])
    with Follower(path) as follower:
        ledgers.append(path, made[2])
        assert follower.numbers() == [2]
        os.truncate(path, 0)
        ledgers.append(path, *(made[3:] if grown else made[3:4]))
        cut, *rest = follower.look()

        assert "the file was cut" in (cut.problem or "")
        assert numbers(rest) == ([3, 4, 5, 6, 7] if grown else [3])


def test_follow_ledger_that_was_deleted_and_made_anew(path: Path) -> None:
    """A new file under the same name is read from its start."""
    made = lines(3)
    ledgers.write(path, made[0])
    with Follower(path) as follower:
        path.unlink()
        assert follower.look() == []
        ledgers.write(path, made[1], made[2])
        assert follower.numbers() == [1, 2]


def test_follow_lines_that_are_no_records(path: Path) -> None:
    """Garbage and lines without end are told of in bounded memory, and what follows is read."""
    ledgers.write(path)
    with Follower(path) as follower:
        ledgers.append(path, b"garbage\n", b"x" * 100_000)
        (garbage,) = follower.look()
        ledgers.append(path, b"y" * 100_000, b"\n", GOOD, b"\n")
        long, good = follower.look()

    assert "not the form" in (garbage.problem or "")
    assert (long.problem, len(long.line), long.where) == ("longer than 8000 bytes", 7999, "ledger.jsonl@8")
    assert (good.problem, good.where) == (None, "ledger.jsonl@200009")


def test_follow_reads_to_the_end_after_stop(path: Path) -> None:
    """What was written before stop was set is given before the end."""
    made = lines(2)
    ledgers.write(path, made[0])
    follower = Follower(path)
    with follower:
        ledgers.append(path, made[1])
        follower.stop.set()
        rest = list(follower.records)

    assert numbers(rest) == [1]


def test_follow_refuses_what_is_no_file(path: Path) -> None:
    """A FIFO is refused at once, not waited for."""
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        next(reader.follow(str(path), threading.Event()))


def test_follow_looks_five_times_a_second(path: Path) -> None:
    """Between two looks it waits on the event with the documented interval."""
    waits: list[float | None] = []

    class Noting(Steps):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return super().wait(timeout)

    stop = Noting()
    with_stop = reader.follow(str(path), stop)
    assert [next(with_stop), next(with_stop)] == [None, None]
    with_stop.close()
    assert waits == [0.2]


WRITER = """
import os
fd = -1
made = lines
for number, line in enumerate(made):
    if number % 40 == 0:
        if fd >= 0:
            os.close(fd)
            os.rename(path, f"{path}.{number // 40}")
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
os.close(fd)
"""


def test_follow_a_writer_that_rotates_all_the_time(path: Path) -> None:
    """Beside a process that writes and rotates as fast as it can, each record comes once and in order."""
    made = [line.decode() for line in lines(2000)]
    stop, looked = Steps(), threading.Event()
    found: list[int] = []

    def collect() -> None:
        for record in reader.follow(str(path), stop):
            if record is None:
                looked.set()
            else:
                found.append(record.fields["n"])

    collector = threading.Thread(target=collect)
    collector.start()
    assert looked.wait(60)
    try:
        subprocess.run(
            [sys.executable, "-c", f"import json, sys\nlines, path = json.load(sys.stdin)\n{WRITER}"],
            input=json.dumps([made, str(path)]).encode(), check=True, timeout=60,
        )  # fmt: skip
    finally:
        stop.set()
        collector.join()

    assert found == list(range(2000))
