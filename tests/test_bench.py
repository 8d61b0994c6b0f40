"""`safespawn bench`: what it computes from samples, that a small run is complete, and that what is missing is named.

Nothing here is about how long anything takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import helpers
import safespawn
from safespawn import cli
from safespawn.bench import (
    AXES,
    cgroup,
    command,
    machine,
    measure,
    page,
    peers,
    plan,
    plots,
    progress,
    question,
    results,
    rounds,
    spread,
    tables,
    targets,
    tools,
    ways,
    window,
)
from safespawn.bench.results import Place, Results, Row

def with_us(**more: str) -> dict[str, str]:
    """Return an environment in which Python finds this very package."""
    return {**os.environ, "PYTHONPATH": str(Path(safespawn.__file__).parents[1]), **more}


NUMBERS = st.integers(1, 10**12)
ROUNDS = st.lists(st.lists(NUMBERS, max_size=4), min_size=1, max_size=12)


# ------------------------------------------------------------------ statistics


def test_quartiles_of_known_values() -> None:
    """Type 7 of Hyndman and Fan, by hand."""
    assert spread.spread([4, 1, 3, 2]) == (2.5, 1.75, 3.25, 4)
    assert spread.spread([7]) == (7, 7, 7, 1)
    assert spread.quantile([10, 20], 0.99) == pytest.approx(19.9)


@given(st.lists(NUMBERS, min_size=2, max_size=50))
def test_quartiles_are_those_of_the_standard_library(samples: list[int]) -> None:
    """Whatever the samples, their order included."""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    found = spread.spread(samples)
    assert found[:3] == pytest.approx((middle, low, high))
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)


@pytest.mark.parametrize(("samples", "share"), [([], 0.5), ([1], -0.1), ([1], 1.1)])
def test_no_quantile(samples: list[float], share: float) -> None:
    """There is none of nothing, and none outside."""
    with pytest.raises(ValueError, match="no quantile"):
        spread.quantile(samples, share)


def test_only_rounds_in_common_count() -> None:
    """A round in which one had no turn says nothing on their ratio or difference, nor does one that is not there."""
    first, second = [[10, 30], [], [40], [9]], [[10], [1], [20]]
    assert spread.ratios(first, second) == (2, 2, 2, 2)
    assert spread.differences(first, second) == (15, 12.5, 17.5, 2)
    with pytest.raises(ValueError, match="no quantile"):
        spread.ratios([[1], []], [[], [1]])


@given(ROUNDS, st.lists(st.integers(1, 1000), min_size=12, max_size=12))
def test_ratio_does_not_move_with_the_machine(taken: list[list[int]], moods: list[int]) -> None:
    """What slows down a whole round slows down both."""
    other = [[3 * sample for sample in one] for one in taken]
    slowed = [[[sample * mood for sample in one] for one, mood in zip(row, moods)] for row in (other, taken)]
    if any(taken):
        assert spread.ratios(*slowed)[:3] == pytest.approx((3, 3, 3))


# ------------------------------------------------------------------ who has a turn when

COSTS = st.dictionaries(st.text(min_size=1, max_size=3), st.floats(1e-6, 1.0), min_size=1, max_size=12)


@given(COSTS, st.floats(0.01, 10), st.integers(1, 5))
def test_every_way_has_its_turns(costs: dict[str, float], seconds: float, least: int) -> None:
    """However slow: at the least as many as asked for, all of them in the first round, none twice in one."""
    planned = rounds.schedule(costs, rounds.Effort(seconds, least, 50))
    assert least <= len(planned) <= max(least, 50)
    assert {turn.way for turn in planned[0]} == costs.keys()
    for way in costs:
        assert sum(turn.way == way for turns in planned for turn in turns) >= least
    for turns in planned:
        assert len({turn.way for turn in turns}) == len(turns)
        assert all(1 <= turn.size <= rounds.BLOCK for turn in turns)
    assert planned == rounds.schedule(costs, rounds.Effort(seconds, least, 50))


@given(COSTS, st.floats(0.5, 10))
def test_rounds_take_the_time_that_they_have(costs: dict[str, float], seconds: float) -> None:
    """Beyond the turns that each has anyway, they fit into the seconds; the last rounds of slow ways may be over."""
    planned = rounds.schedule(costs, rounds.Effort(seconds, 1, 400))
    took = sum(costs[turn.way] * turn.size for turns in planned for turn in turns)
    once = sum(cost * rounds.BLOCK for cost in costs.values())
    assert took <= seconds + 2 * once


def test_slow_ways_sit_rounds_out() -> None:
    """A way that takes a second does not take the time of one that takes a thousandth."""
    planned = rounds.schedule({"slow": 1.0, "fast": 0.001}, rounds.Effort(10, 3, 400))
    count = {way: sum(turn.way == way for turns in planned for turn in turns) for way in ("slow", "fast")}
    assert count["fast"] > 10 * count["slow"] >= 30
    assert rounds.schedule({}, rounds.Effort(1)) == []


@given(st.lists(st.integers(1, 1000), max_size=8), st.integers(-10, 1500))
def test_processes_of_a_shift_fit_into_memory(needs: list[int], available: int) -> None:
    """Each process is in one shift or is too large for the machine; together they never need more than there is."""
    made, too_large = measure.shifts([(str(need), need) for need in needs], available)
    assert sorted([place for shift in made for place in shift] + too_large) == list(range(len(needs)))
    assert all(shift and sum(needs[place] for place in shift) <= available for shift in made)
    assert all(needs[place] > available for place in too_large)


# ------------------------------------------------------------------ the plan


@pytest.mark.parametrize("asked", [plan.Options(), plan.QUICK], ids=["full", "quick"])
def test_every_axis_is_planned(asked: plan.Options) -> None:
    """Each has cells; each measure has a unit and a title, each axis its columns."""
    cells = plan.cells(asked)
    assert list(dict.fromkeys(cell.axis for cell in cells)) == list(AXES)
    assert tables._COLUMNS.keys() == AXES.keys()
    known = {*peers.OURS, *peers.STANDARD, *ways.C_WAYS, peers.RUST, peers.NODE, peers.JAVA, *peers.PROGRAM}
    for cell in cells:
        assert cell.tasks
        for task in cell.tasks:
            assert task.measure in results.UNITS
            assert set(task.ways or ()) <= known
    assert results.UNITS.keys() - {"runs"} == tables.MEASURES.keys()


def test_looks_are_of_ways() -> None:
    """No line of a plot is for a way that is not there."""
    known = {*peers.OURS, *peers.STANDARD, *ways.C_WAYS, peers.RUST, peers.NODE, peers.JAVA, *peers.PROGRAM, ways.NOTHING}
    assert plots.LOOKS.keys() <= known
    assert len({one.name for one in plots.PLOTS}) == len(plots.PLOTS)


def test_a_yardstick_is_measured_where_it_is_one() -> None:
    """No spawn has a stall only, as ourselves; a batch of ours is in batches only."""
    part = plan.takes_part
    assert part(plan.Task("stall"), ways.NOTHING)
    assert not part(plan.Task("exit"), ways.NOTHING)
    assert not part(plan.Task("stall", "other"), ways.NOTHING)
    assert not part(plan.Task("exit"), "safespawn.spawn_many")
    assert part(plan.Task("batch", "self", 8, plan.BATCH_WAYS), "safespawn.spawn_many")
    assert part(plan.Task("exit", ways=plan.AUDIT_WAYS), "safespawn.run | with a ledger")
    assert not part(plan.Task("exit", ways=plan.AUDIT_WAYS), "subprocess.run")
    assert part(plan.Task("exit", ways=plan.QUESTION_WAYS), "C program, fork alone")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"axes": ["sice"]}, "no such axis: sice"),
        ({"sizes": [10, 0]}, "not 0"),
        ({"seconds": 0}, "not 0"),
        ({"seconds": float("nan")}, "not nan"),
        ({"rounds": 0}, "not 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(asked: dict[str, Any], said: str) -> None:
    """Before anything is started, with the value."""
    with pytest.raises(ValueError, match=said):
        command.options(**asked)


# ------------------------------------------------------------------ results, made up


def row(axis: str, way: str, samples: list[list[int]], measure: str = "exit", **more: Any) -> Row:
    """Return a row."""
    given = {"mib": 10, "threads": 1, "pages": "small", "who": "self", "many": 1, "shift": 0, "done": {}, **more}
    return Row(axis=axis, way=way, measure=measure, unit=results.UNITS[measure], rounds=samples, **given)


def made_up(*rows: Row, missing: tuple[results.Missing, ...] = ()) -> Results:
    """Return results with those rows."""
    facts = {**machine.facts(), "versions": {"C": "cc 1"}}
    return Results(facts, plan.told(plan.QUICK), "2026-01-02T03:04:05Z", 1.5, list(missing), [], list(rows))


#: Microseconds and milliseconds in the unit of samples.
US, MS = 1000, 1_000_000

REACHED = (
    row("size", "C posix_spawn", [[500 * US, 510 * US], [600 * US]]),
    row("size", "safespawn.spawn", [[490 * US], [590 * US]]),
    row("size", "safespawn.run", [[500 * US], [600 * US]]),
    row("size", "subprocess.run", [[800 * US], [900 * US]]),
    row("size", "safespawn.spawn, pool", [[90 * US]], measure="call"),
    row("targets", "safespawn.run", [[500 * US]], mib=4096),
    row("targets", f"safespawn.run{targets.BESIDE}", [[490 * US]], mib=4096),
    row("user", "safespawn.run", [[MS], [MS]], mib=4096, who="other"),
    row("user", "subprocess.run", [[130 * MS], []], mib=4096, who="other"),
    row("targets", "safespawn.run", [[3 * MS, 4 * MS]], measure="hang"),
    row("targets", window.BARE, [[400 * US], [410 * US]], measure="window"),
    row("targets", window.GUARDED, [[404 * US], [413 * US]], measure="window"),
    row("targets", "safespawn.spawn", [[500 * US]]),
    row("targets", f"safespawn.spawn{targets.LEDGER}", [[529 * US]]),
    row("spawners", "safespawn.run", [[600 * US]], measure="rate", many=1),
    row("spawners", "safespawn.run", [[310 * US]], measure="rate", many=2),
)


def slower(one: Row) -> Row:
    """Return a row that misses its target: ours, and what is done with all guards, with a pool, by two threads."""
    ours = one.way.startswith("safespawn") or one.way == window.GUARDED
    beside = one.way.endswith(targets.BESIDE) or (one.axis == "targets" and one.way == "safespawn.spawn")
    if not ours or beside or (one.measure == "rate" and one.many == 1):
        return one
    return dataclasses.replace(one, rounds=[[10 * sample for sample in each] for each in one.rounds])


def test_targets_are_reached() -> None:
    """Each has its number from its rows, with a spread, and passes."""
    found = targets.verdicts(made_up(*REACHED))
    assert [one.word for one in found] == ["pass"] * 10
    medians = [one.measured.median for one in found if one.measured]
    assert medians == pytest.approx([0.977, 0.995, 1.55, 1.0204, 130, 3.5, 3.5, 29, 90, 1.9355], rel=1e-3)


def test_targets_are_missed_by_a_gap() -> None:
    """Each that is missed says by how much and to which side."""
    found = targets.verdicts(made_up(*map(slower, REACHED)))
    assert [one.passed for one in found] == [False] * 10
    assert found[4].word == "gap: 87.00 x below"
    assert found[8].word == "gap: 800.00 µs above"


def test_number_that_is_not_sure_says_so() -> None:
    """A limit between the quartiles is told, whichever side the median is on."""
    at = targets.TARGETS[8]
    for samples, word in (([80, 90, 120], "pass, within the spread"), ([80, 101, 110], "gap: 1.00 µs above, within the spread")):
        taken = row("size", "safespawn.spawn, pool", [[one * US for one in samples]], measure="call")
        assert targets.judge(at, made_up(REACHED[0], taken)).word == word


def test_busy_machine_is_told() -> None:
    """In front of its numbers."""
    found = made_up(*REACHED)
    for load, told in ((0.1, False), (float(os.cpu_count() or 1), True)):
        found.machine["load"] = load
        assert ("do not trust" in command.report(found)) is told
        assert ("do not trust" in page.part(found)) is told


def test_limit_itself_is_reached() -> None:
    """At least and at most include the number."""
    at = targets.TARGETS[8]
    exact = row("size", "safespawn.spawn, pool", [[100 * US]], measure="call")
    assert targets.judge(at, made_up(REACHED[0], exact)).passed
    over = dataclasses.replace(exact, rounds=[[100 * US + 1]])
    assert targets.judge(at, made_up(REACHED[0], over)).passed is False


def test_target_that_was_not_measured_says_why() -> None:
    """With no rows, with what the run says is missing, and with processes that did not fit into memory together."""
    assert all(one.passed is None and one.word.startswith("not measured: ") for one in targets.verdicts(made_up()))
    why = results.Missing("safespawn.spawn, pool", "size: 10 MiB", "this version has no pool")
    found = targets.judge(targets.TARGETS[8], made_up(REACHED[0], missing=(why,)))
    assert found.word == "not measured: this version has no pool"
    apart = dataclasses.replace(REACHED[6], shift=1)
    assert "did not fit" in targets.judge(targets.TARGETS[3], made_up(REACHED[5], apart)).word


def test_target_at_another_size_says_so() -> None:
    """A number from a smaller process stands there with its size."""
    smaller = [dataclasses.replace(one, mib=200) for one in REACHED if one.axis == "user"]
    assert targets.judge(targets.TARGETS[4], made_up(*smaller)).word == "pass, at 200 MiB"


def test_tables_of_the_question() -> None:
    """The question's figure stands beside what was measured here, and ours below."""
    found = made_up(
        row("question", question.FORK_ALONE, [[500 * US]], mib=0),
        row("question", question.FORK_ALONE, [[20 * MS]], mib=500),
        row("question", question.FORK_ALONE, [[400 * US]], mib=500, pages="huge"),
        row("question", "safespawn.spawn", [[MS]], mib=500),
        row("question", question.FORK, [[2000 * MS]] * 10, measure="runs", mib=100, many=1000),
        row("question", question.POSIX_SPAWN, [[60 * MS]] * 10, measure="runs", mib=100, many=1000),
    )
    rates, runs, huge = question.of_question(found)
    assert rates.rows == [
        [question.FORK_ALONE, "minimal", "about 1,600/s", "2,000/s (2,000 to 2,000)"],
        [question.FORK_ALONE, "500 MiB", "about 50/s", "50/s (50 to 50)"],
        ["safespawn.spawn", "500 MiB", "", "1,000/s (1,000 to 1,000)"],
    ]
    assert runs.head[2] == "here, 1,000 runs"
    assert runs.rows == [[question.FORK, "41.4 s", "20 s"], [question.POSIX_SPAWN, "0.97 s", "0.60 s"]]
    assert huge.rows == [
        [question.FORK_ALONE, "500 MiB", "about 2,400/s", "2,500/s (2,500 to 2,500)", "50/s (50 to 50)"]
    ]
    assert question.of_question(made_up()) == []


@pytest.mark.parametrize(
    ("samples", "measure", "shown"),
    [
        ([[1_500]], "exit", "1.50 µs (1.50 to 1.50)"),
        ([[1_230_000, 1_240_000]], "exit", "1.24 ms (1.23 to 1.24)"),
        ([[2 * 10**9]], "hang", "2 s (2 to 2)"),
        ([[0, 0]], "stall", "0 µs (0 to 0)"),
        ([[410, 411]], "faults", "410 (410 to 411)"),
        ([[3 << 20]], "memory", "3 MiB (3 to 3)"),
        ([[500_000]], "rate", "2,000/s (2,000 to 2,000)"),
    ],
)
def test_numbers_are_shown_in_a_unit_that_suits(samples: list[list[int]], measure: str, shown: str) -> None:
    """Median and quartiles, three digits or so."""
    assert tables.cell(row("size", "a", samples, measure)) == shown


def test_table_has_a_line_for_a_way_and_a_column_for_a_place() -> None:
    """What was not measured somewhere is an empty cell; a bar in a cell does not end it on a page."""
    found = made_up(
        row("threads", "a", [[1000]]), row("threads", "b | c", [[2000]]), row("threads", "a", [[3000]], threads=8)
    )
    (table,) = tables.of_axis(found, "threads")
    assert table.head == ["", "1 thread", "8 threads"]
    assert table.rows == [["a", "1 µs (1 to 1)", "3 µs (3 to 3)"], ["b | c", "2 µs (2 to 2)", ""]]
    assert tables.text(table).splitlines()[2:] == ["  a      1 µs (1 to 1)  3 µs (3 to 3)", "  b | c  2 µs (2 to 2)"]
    assert tables.markdown(table).splitlines()[-1] == r"| b \| c | 2 µs (2 to 2) |  |"


def test_missing_is_told_once() -> None:
    """The same way with the same reason is one line, with how often."""
    found = made_up()
    for where in ("here", "there", "here"):
        found.lacks("Rust", where, "rustc was not found")
    assert tables.of_missing(found).rows == [["Rust", "here and 1 more", "rustc was not found"]]


def test_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Everything that a run yields is in its file."""
    path = tmp_path / "results.json"
    found = made_up(*REACHED, missing=(results.Missing("a", "b", "c"),))
    command.save(found, path)
    assert command.load(path) == found
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == results.FORMAT
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("broken", [{"format": "safespawn-bench-0"}, {"rows": [{"axis": "size"}]}, {"rows": None}])
def test_file_of_another_kind_is_refused(tmp_path: Path, broken: dict[str, Any], capsys: Any) -> None:
    """Another format, and a file that is not whole, are told from ours; the command says so and fails."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**results.to_json(made_up()), **broken}), encoding="utf-8")
    with pytest.raises(ValueError, match=results.FORMAT):
        command.load(path)
    assert cli.main(["bench", "--from", str(path)]) == 125
    assert results.FORMAT in capsys.readouterr().err


def test_page_is_filled_between_its_marks(tmp_path: Path) -> None:
    """Once, and again with other numbers; the rest of the page stays, and so does a page without the marks."""
    path = tmp_path / "page.md"
    path.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        command.fill(made_up(*REACHED), path)
        text = path.read_text(encoding="utf-8")
        assert text.startswith("before\n") and text.endswith(f"{page.END}\nafter\n") and "old" not in text
        assert "| pool: until spawn returns | at most 100 µs | 90 µs (90 to 90) | pass |" in text
    for wrong in ("", page.BEGIN, f"{page.END}{page.BEGIN}", f"{page.BEGIN}{page.BEGIN}{page.END}"):
        with pytest.raises(ValueError, match="marks|each once"):
            page.between(wrong, "new")


def test_marks_are_in_the_readme() -> None:
    """The README has the part that a run fills."""
    text = (helpers.ROOT / "README.md").read_text(encoding="utf-8")
    assert page.between(text, "new") != text


# ------------------------------------------------------------------ plots


def png_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a PNG whose chunks and pixels are whole. Raises AssertionError."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, pixels, header = 8, b"", b""
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        header = body if kind == b"IHDR" else header
        pixels += body if kind == b"IDAT" else b""
        at += 12 + length
    width, height, depth, colours = struct.unpack(">IIBB", header[:10])
    samples = {2: 3, 6: 4}[colours] * depth // 8
    assert len(zlib.decompress(pixels)) == height * (1 + width * samples)
    return width, height


DRAWN_TWICE = """
import sys
from pathlib import Path
from safespawn.bench import command
found = command.load(Path(sys.argv[1]))
for where in sys.argv[2:]:
    made = command.draw(found, Path(where))
print(*(path.name for path in made))
"""


def test_plots_are_whole(tmp_path: Path) -> None:
    """Each measure along an axis has a PNG and an SVG, whole and with the names of the ways; alike each time."""
    found = made_up(
        row("size", "C posix_spawn", [[500 * US]]),
        row("size", "C posix_spawn", [[510 * US]], mib=4096),
        row("size", "safespawn.spawn", [[0, 3]], measure="faults"),
        row("pages", "C fork, execve", [[5 * MS]], pages="huge"),
        row("size", "of no look", [[1]]),
    )
    command.save(found, tmp_path / "results.json")
    places = [str(tmp_path / name) for name in ("results.json", "one", "two")]
    # In a process of its own: what computes for matplotlib leaves threads behind.
    words = [sys.executable, "-c", DRAWN_TWICE, *places]
    done = subprocess.run(words, env=with_us(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert names == [
        f"{name}.{kind}" for name in ("exit-by-size", "faults-by-size", "exit-by-pages") for kind in ("png", "svg")
    ]
    for name in names:
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "two" / name).read_bytes()
        if name.endswith(".png"):
            assert min(png_size(data)) > 300
        else:
            assert ElementTree.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"
    shown = (tmp_path / "one" / "exit-by-size.svg").read_text(encoding="utf-8")
    assert "C posix_spawn" in shown and "4096" in shown and "of no look" not in shown
    assert "C fork, execve, huge pages" in (tmp_path / "one" / "exit-by-pages.svg").read_text(encoding="utf-8")


def test_without_matplotlib_the_extra_is_told(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """What was measured is printed all the same; only the plots fail, with what to install."""
    path = tmp_path / "results.json"
    command.save(made_up(*REACHED), path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.ticker", None)
    assert cli.main(["bench", "--from", str(path), "--plots", str(tmp_path / "plots")]) == 125
    told = capsys.readouterr()
    assert "safespawn[bench]" in told.err
    assert "Targets" in told.out and "pass" in told.out
    assert not (tmp_path / "plots").exists()


# ------------------------------------------------------------------ progress


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_progress_in_a_file_is_a_line_a_step() -> None:
    """No bar, nothing that moves the cursor."""
    stream = io.StringIO()
    with progress.Progress(2, stream) as shown:
        for name in ("one", "two"):
            shown.say(name)
            shown.step()
    lines = stream.getvalue().splitlines()
    assert [line.rpartition("] ")[2] for line in lines] == ["one", "two"]
    assert lines[1].startswith("[  2/2,") and "\r" not in stream.getvalue()


def test_progress_at_a_terminal_is_a_bar() -> None:
    """With tqdm, which draws on one line."""
    pytest.importorskip("tqdm", reason="the extra safespawn[bench] is not installed")
    stream = Terminal()
    with progress.Progress(1, stream) as shown:
        shown.say("one")
        shown.step()
        assert shown.bar.n == 1
    assert "\r" in stream.getvalue() and "one" in stream.getvalue()


def test_progress_at_a_terminal_without_tqdm(monkeypatch: Any) -> None:
    """It says what is not installed, and goes on by lines."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    stream = Terminal()
    with progress.Progress(1, stream) as shown:
        shown.say("one")
        shown.step()
    assert "safespawn[bench]" in stream.getvalue() and stream.getvalue().endswith("] one\n")


# ------------------------------------------------------------------ memory by cgroups

MOUNTS = "30 24 0:26 / /sys/fs/cgroup/{where} rw,relatime shared:9 - {kind} {kind} rw{options}\n"


def test_group_is_made_where_ours_is() -> None:
    """In version 1: below the group that we are in, of the hierarchy that counts memory."""
    mounts = MOUNTS.format(where="cpu", kind="cgroup", options=",cpu") + MOUNTS.format(
        where="memory", kind="cgroup", options=",memory"
    )
    own = "4:memory:/a/b\n1:cpu:/\n0::/\n"
    assert cgroup.home(mounts, own) == (Path("/sys/fs/cgroup/memory/a/b"), 1)


def test_group_of_version_2_needs_the_controller(tmp_path: Path) -> None:
    """In the topmost group, if that lets those below count memory."""
    mounts = f"30 24 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    with pytest.raises(tools.Unable, match="no cgroup here"):
        cgroup.home(mounts, "0::/a\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n", encoding="ascii")
    assert cgroup.home(mounts, "0::/a\n") == (tmp_path, 2)


def test_group_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    """And leaves nothing behind."""
    with pytest.raises(tools.Unable, match="no cgroup can be made"):
        cgroup.Group(os.getpid(), tmp_path / "missing", 1)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ processes that are measured


@pytest.fixture(scope="module")
def built() -> Iterator[tools.Tools]:
    """Compile what can be compiled here."""
    with tools.Tools() as made:
        yield made
    assert not made.where.exists()


SMALL = Place(1, 2)
#: How many numbers a sample of each measure has.
SAMPLES = {"exit": 2, "exec": 1, "stall": 1, "faults": 1, "batch": 2}


@pytest.fixture
def worker(built: tools.Tools) -> Iterator[peers.Peer]:
    """Start the process of Python."""
    peer = peers.python_peer(built, SMALL).make(False)
    yield peer
    peer.close()


@pytest.mark.parametrize("name", ["Rust", "Node.js", "Java"])
def test_peer_of_another_language_measures(built: tools.Tools, name: str) -> None:
    """Every measure, with as many numbers as asked for; where the language is not installed, that is said."""
    (maker,) = [one for one in peers.of_other_languages(built, Place(1, 1)) if one.name == name]
    if name in built.missing:
        with pytest.raises(tools.Unable, match="not found|failed"):
            maker.make(False)
        return
    with contextlib.closing(maker.make(False)) as peer:
        (way,) = peer.ways
        for measure_name, each in SAMPLES.items():
            taken = peer.ask(measure_name, way, "self", 2, 3)
            assert len(taken) == 2 * each and min(taken) >= 0, (measure_name, taken)
        called, ended = peer.ask("exit", way, "self", 1)
        assert 0 < called <= ended
        assert 0 < peer.ask("exec", way, "self", 1)[0]
        with pytest.raises(tools.Unable):
            peer.ask("nonsense", way, "self", 1)
        assert peer.faults() > 0 and peer.resident_mib() > 0
        if name != "Node.js":
            assert len(peer.ask("rate", way, "self", 2, 2)) == 1


def test_peers_say_what_they_cannot(built: tools.Tools) -> None:
    """Node.js has no plain threads and no huge pages; that is the reason given, unless it is not there at all."""
    for place, said in ((Place(1, 2), "plain threads"), (Place(1, 1, "huge"), "huge pages")):
        if place.pages == "huge" and machine.huge_pages() == "always":
            continue
        (maker,) = [one for one in peers.of_other_languages(built, place) if one.name == "Node.js"]
        with pytest.raises(tools.Unable, match=f"{said}|not found"):
            maker.make(False)


def test_small_c_program_measures(built: tools.Tools) -> None:
    """Each of its ways, the fork without an exec too; it has one measure."""
    with contextlib.closing(peers.program(built, Place(0)).make(False)) as peer:
        for way in peer.ways:
            taken = peer.ask("exit", way, "self", 3)
            assert taken[::2] == [-1] * 3 and min(taken[1::2]) > 0
        with pytest.raises(tools.Unable, match="only"):
            peer.ask("stall", peer.ways[0], "self", 1)


def test_every_way_of_python_is_measured_or_says_why(worker: peers.Peer) -> None:
    """Ours that this version does not have yet are refused with a reason; all others take every measure."""
    absent = {}
    for way in worker.ways:
        try:
            taken = worker.ask("exit", way, "self", 1)
        except tools.Unable as problem:
            absent[way] = str(problem)
            continue
        assert len(taken) == 2 and taken[1] > 0, way
    assert absent.keys() <= {f"safespawn.spawn, {one}" for one in ways.STRATEGIES} | {"safespawn.spawn_many"}
    assert all("strategy" in why or "this version has no" in why for why in absent.values())
    assert worker.done().keys() >= {"vfork, locked", "fork, no proof"}
    assert worker.done() == {}


def test_measures_of_python(worker: peers.Peer) -> None:
    """Each has its numbers. The program begins between call and end; what waits in its call has no batch."""
    for way in ("C posix_spawn", "os.posix_spawn", "safespawn.spawn", "multiprocessing, fork"):
        before = time.monotonic_ns()
        (began,) = worker.ask("exec", way, "self", 1)
        assert 0 < began < time.monotonic_ns() - before
    for name, each in SAMPLES.items():
        assert len(worker.ask(name, "safespawn.spawn", "self", 2, 3)) == 2 * each
    assert len(worker.ask("rate", "safespawn.run", "self", 2, 2)) == 1
    with pytest.raises(tools.Unable, match="waits for the end"):
        worker.ask("batch", "safespawn.run", "self", 1, 2)
    with pytest.raises(tools.Unable, match="no such way here"):
        worker.ask("exit", "safespawn.spoon", "self", 1)


def test_fork_leaves_faults_behind(worker: peers.Peer) -> None:
    """After a fork the pages that are written to must be taken over one by one; after a spawn on our memory not."""
    counts = {}
    for way in ("C fork, execve", "C posix_spawn"):
        worker.ask("faults", way, "self", 1)
        before = worker.faults()
        worker.ask("faults", way, "self", 4)
        counts[way] = (worker.faults() - before) // 4
    pages = (1 << 20) // os.sysconf("SC_PAGESIZE")
    assert counts["C fork, execve"] >= pages > counts["C posix_spawn"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: programs run as another user")
def test_another_user(built: tools.Tools, worker: peers.Peer) -> None:
    """Who can, does; who cannot, says so, and nothing on shared memory becomes somebody else."""
    for way in ("safespawn.run", "subprocess.run", "C fork, execve"):
        assert worker.ask("exit", way, "other", 1)[1] > 0
        assert worker.ask("exec", way, "other", 1)[0] > 0
    for way in ("C vfork, execve", "C posix_spawn", "os.posix_spawn", "multiprocessing, fork", "safespawn.spawn, vfork"):
        with pytest.raises(tools.Unable):
            worker.ask("exit", way, "other", 1)


def test_exec_hangs_while_it_is_measured(worker: peers.Peer) -> None:
    """The lease holds it up for a second, which the run as a whole cannot be shorter than."""
    before = time.monotonic()
    (longest,) = worker.ask("hang", "safespawn.run", "self", 1)
    assert time.monotonic() - before >= 1.0
    assert longest > 0


def test_core_is_measured_in_c(built: tools.Tools) -> None:
    """With and without guards, a sample for each round; outside of the tree it says what it needs."""
    if not window._SOURCE.is_file():
        with pytest.raises(tools.Unable, match="source tree"):
            window.samples(built, 3)
        return
    taken = window.samples(built, 3)
    assert {name: len(taken[name]) for name in (window.BARE, window.GUARDED)} == {window.BARE: 3, window.GUARDED: 3}


def test_core_is_not_measured_from_a_wheel(built: tools.Tools, monkeypatch: Any, tmp_path: Path) -> None:
    """Its C sources are not there, and that is the reason given for the target."""
    monkeypatch.setattr(window, "_SOURCE", tmp_path / "lock_cost.c")
    found = made_up()
    window.measure(found, built, 3)
    assert "source tree" in targets.judge(targets.TARGETS[6], found).word


def test_process_that_ends_or_is_silent_is_told(monkeypatch: Any) -> None:
    """It is waited for neither for ever nor in vain."""
    with pytest.raises(tools.Unable, match="ended with 1"):
        peers.Peer(["a"], ["/bin/false"])
    monkeypatch.setattr(peers, "PATIENCE", 0.01)
    with pytest.raises(tools.Unable, match="no answer"):
        peers.Peer(["a"], ["/bin/cat"])


def test_no_huge_pages_where_none_are_wanted(built: tools.Tools) -> None:
    """What starts the processes on a machine that gives huge pages unasked: the program runs without."""
    words = [built.path("nohuge"), shutil.which("cat") or "/bin/cat", "/proc/self/status"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "THP_enabled:\t0" in done.stdout


def test_without_a_compiler_it_is_named(monkeypatch: Any, tmp_path: Path) -> None:
    """The system's own program is started then, and what needs C says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with tools.Tools() as bare:
        assert not bare.stamps and os.access(bare.target, os.X_OK)
        assert bare.missing["C"] == "no C compiler was found"
        with pytest.raises(tools.Unable, match="no C compiler"):
            bare.path("libpeer.so")
        with contextlib.closing(peers.python_peer(bare, Place(1)).make(False)) as peer:
            assert not set(peer.ways) & set(ways.C_WAYS)
            assert peer.ask("exit", "safespawn.run", "self", 1)[1] > 0


def test_compiler_that_fails_is_named(monkeypatch: Any, tmp_path: Path) -> None:
    """With the first line of what it says."""
    for name in ("rustc", "javac", "java"):
        path = tmp_path / name
        path.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n", encoding="ascii")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with tools.Tools() as broken:
        assert broken.missing["Rust"].endswith("rustc failed: out of order")
        assert broken.missing["Java"].endswith("javac failed: out of order")


# ------------------------------------------------------------------ a cell, and a whole run


def measured(built: tools.Tools, cell: plan.Cell) -> tuple[Results, int]:
    """Measure a cell as shortly as can be; return what came of it, and how many steps were told."""
    asked = dataclasses.replace(plan.QUICK, seconds=0.01, least=1, most=1)
    found, steps = made_up(), [0]

    def step() -> None:
        steps[0] += 1

    measure.Measurement(found, built, asked, lambda _: None).cell(cell, step)
    return found, steps[0]


def test_place_without_memory_is_named(built: tools.Tools, monkeypatch: Any) -> None:
    """Nothing is started there."""
    monkeypatch.setattr(machine, "available_mib", lambda: plan.RESERVE_MIB + 100)
    monkeypatch.setattr(peers.Peer, "__init__", None)
    cell = plan.Cell("size", Place(8192), (plan.Task("exit"), plan.Task("stall")))
    found, steps = measured(built, cell)
    assert {one.what for one in found.missing} == {"Python", "Rust", "Node.js", "Java"}
    assert all("and 100 MiB can be had" in one.why for one in found.missing)
    assert steps == 2 and not found.rows


def test_huge_pages_that_the_kernel_does_not_give_are_named(built: tools.Tools, monkeypatch: Any) -> None:
    """All ways are missing there, for that reason."""
    monkeypatch.setattr(machine, "huge_pages", lambda: "never")
    found, steps = measured(built, plan.Cell("pages", Place(8, 1, "huge"), (plan.Task("exit"),)))
    assert [one.why for one in found.missing] == ["huge pages: never"]
    assert steps == 1


@pytest.mark.parametrize("kind", ["flat", "audit", "question"])
def test_processes_side_by_side(built: tools.Tools, kind: str) -> None:
    """What is compared is measured in the same rounds, and told apart by its name."""
    tasks = [plan.Task("exit", ways=plan.AUDIT_WAYS)]
    if kind == "question":
        tasks.append(plan.Task("runs", "self", 20, plan.AUDIT_WAYS))
    found, _ = measured(built, plan.Cell("targets", Place(2), tuple(tasks), kind))
    beside = {"flat": targets.BESIDE, "audit": targets.LEDGER, "question": ""}[kind]
    for way in (*plan.AUDIT_WAYS, *(f"{way}{beside}" for way in plan.AUDIT_WAYS)):
        assert found.find(way=way, measure="exit") is not None
    if kind == "question":
        assert len(next(found.select(way=question.FORK, measure="runs")).rounds) == 10
    if kind == "audit":
        assert (built.where / "ledger").stat().st_size > 0


def test_small_run_is_complete(tmp_path: Path) -> None:
    """By the command, with a C compiler and nothing else: every measure has its rows, what is missing its reason."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cc", "as", "ld"):
        (programs / name).symlink_to(Path(shutil.which(name) or f"/usr/bin/{name}").resolve())
    kept, filled = tmp_path / "results.json", tmp_path / "page.md"
    filled.write_text(f"{page.BEGIN}\n{page.END}\n", encoding="utf-8")
    words = ["--quick", "--axis", "size", "--axis", "spawners", "--size", "8", "--rounds", "2", "--seconds", "0.02"]
    done = subprocess.run(
        [sys.executable, "-m", "safespawn", "bench", *words, "--json", str(kept), "--page", str(filled)],
        env=with_us(PATH=str(programs), TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = command.load(kept)
    assert [one for one in os.listdir(tmp_path) if one.startswith("safespawn-bench")] == []

    for name in ("Rust", "Node.js", "Java"):
        assert any(one.what == name and "was not found" in one.why for one in found.missing), name
    assert {one.what for one in found.missing} <= {
        *("Rust", "Node.js", "Java", "memory during a spawn", "safespawn.spawn_many"),
        *(f"safespawn.spawn, {one}" for one in ways.STRATEGIES),
    }
    for way in (*peers.OURS, *peers.STANDARD, *ways.C_WAYS):
        here = {one.measure for one in found.select(axis="size", way=way)}
        if way == "safespawn.spawn_many" or any(one.what == way for one in found.missing):
            assert not here, way
            continue
        assert here >= {"exit", "exec", "stall", "faults", "touch"}, way
        assert "memory" in here or any(one.what.startswith("memory") for one in found.missing)
    for one in found.rows:
        assert one.unit == results.UNITS[one.measure] and one.mib in (8, 10) and any(one.rounds)
        assert all(sample >= 0 for each in one.rounds for sample in each)
        assert one.done or not one.way.startswith("safespawn") or one.way == "safespawn.subprocess.run"
    one, two = (found.find(measure="rate", way="safespawn.run", many=many) for many in (1, 2))
    assert one and two and spread.ratios(one.rounds, two.rounds).samples == 2  # in the same rounds
    assert found.machine["versions"].keys() == {"C"}
    assert {one["process"] for one in found.resident} == {"Python"}
    assert all(one["resident_mib"] > 8 for one in found.resident)

    assert done.stderr.count("\n") >= 7 and "size: 8 MiB, 1 thread, small pages: stall" in done.stderr
    for title in ("From the call to the end of the program, by size", "Spawns a second", "Not measured"):
        assert title in done.stdout
    assert "rustc was not found" in filled.read_text(encoding="utf-8")


def test_list_names_axes_and_ways(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    """What there is to measure, and what is missing here with its reason."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["bench", "--list"]) == 0
    told = capsys.readouterr().out
    for axis in AXES:
        assert f"\n  {axis} " in told
    assert "missing: rustc was not found" in told
    for way in (*peers.OURS, *peers.STANDARD):
        assert f"  {way} " in told or f"  {way:32} " in told


def test_wrong_options_are_told(capsys: Any) -> None:
    """With the value, before anything is compiled."""
    assert cli.main(["bench", "--rounds", "0"]) == 125
    assert "not 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["bench", "--axis", "sice"])
