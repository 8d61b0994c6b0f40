"""A child has 0, 1, 2 and what was named, each leading where it was told, and nothing else."""

from __future__ import annotations

import errno
import itertools
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import helpers
import safespawn
import starting_ways
from probes import descriptors
from safespawn import DEVNULL, PIPE, STDOUT, audit
from safespawn._descriptors import LOW_FD
from starting_ways import WAYS, Way

pytestmark = pytest.mark.threat("T-08")

PROBE = helpers.probe_argv("descriptors")
NULL = os.stat(os.devnull).st_rdev
#: Where the child has the file that it writes its answer to, unless the plan needs that.
ANSWER = 900

Plan = dict[str, Any]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """Return the options that choose a way of starting."""
    with starting_ways.ready(WAYS[request.param]) as ready:
        yield ready


@pytest.fixture(params=["vfork", "clone", "fork", "posix_spawn"])
def strategy(request: pytest.FixtureRequest) -> Way:
    """Return the options that choose a strategy, for what costs a fresh process each time."""
    return WAYS[request.param]


@pytest.fixture
def files() -> Iterator[Callable[..., list[int]]]:
    """Return a maker of open files, each with an inode of its own, at the numbers asked for."""
    opened: list[int] = []

    def make(*numbers: int) -> list[int]:
        for number in numbers:
            opened.append(descriptors.file_at(number))
        return list(numbers)

    yield make
    for fd in opened:
        os.close(fd)


def free_numbers(count: int) -> list[int]:
    """Return the lowest descriptors that are not open: safespawn's own will be among them."""
    taken = helpers.open_fds()
    return list(itertools.islice((fd for fd in itertools.count(3) if fd not in taken), count))


def check(way: Way, plan: Plan, **options: Any) -> None:
    """Run the probe with a plan: it must have what the plan says, and nothing else."""
    wanted = descriptors.expected(plan)

    told = descriptors.ask(safespawn, PROBE, ANSWER, way, **plan, **options)

    del told[ANSWER]
    assert descriptors.compared(told, wanted) == wanted


# --------------------------------------------------------------- 0, 1 and 2


def test_nothing_named_means_three_descriptors(way: Way) -> None:
    """A child that is told nothing has our 0, 1 and 2, and nothing else."""
    check(way, {})


@pytest.mark.parametrize(
    "closed", [some for n in range(4) for some in itertools.combinations(range(3), n)], ids=str
)
def test_standard_descriptors_that_are_closed_here(strategy: Way, closed: tuple[int, ...]) -> None:
    """Whichever of 0, 1 and 2 are closed here, a child has all three, those as /dev/null."""
    out = helpers.run_snippet(
        """
from probes import descriptors
for fd in range(3):
    descriptors.file_at(fd)
for fd in closed:
    os.close(fd)
ours = {fd: descriptors.identity(fd) for fd in range(3) if fd not in closed}
told = descriptors.ask(safespawn, probe, 900, way)
out["wrong"] = [fd for fd in ours if told[fd][:3] != ours[fd]]
out["null"] = [fd for fd in range(3) if told[fd][2] == null and told[fd][3] == os.O_RDWR]
out["has"] = sorted(told)
out["still closed"] = [fd for fd in range(3) if not os.path.exists(f"/proc/self/fd/{fd}")]
""",
        way=strategy,
        probe=PROBE,
        closed=closed,
        null=NULL,
    )

    assert out == {"wrong": [], "null": list(closed), "has": [0, 1, 2, 900], "still closed": list(closed)}


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)], ids=str)
def test_pipes_where_standard_descriptors_are_closed(strategy: Way, closed: tuple[int, ...]) -> None:
    """Pipes work where 0, 1 or 2 are closed here, so that the pipes' own ends take those numbers."""
    out = helpers.run_snippet(
        """
import fcntl
for fd in closed:
    os.close(fd)
answers = []
for script, given in (
    ("cat; echo out; echo err >&2", dict(stdin=-1, stdout=-1, stderr=-1)),
    ("cat; echo out; echo err >&2", dict(stdin=-1, stdout=-1, stderr=-2)),
    ("echo out; echo err >&2", dict(stdout=-1)),
    ("echo out; echo err >&2", dict(stderr=-1)),
    ("cat >/dev/null; echo out", dict(stdin=-1, stderr=-3)),
):
    with safespawn.spawn(["/bin/sh", "-c", script], **given, **way) as process:
        both = process.communicate(b"in\\n" if "stdin" in given else None)
        answers.append([None if text is None else text.decode() for text in both] + [process.wait()])
out["answers"] = answers
out["closed"] = [fd for fd in range(3) if not os.path.exists(f"/proc/self/fd/{fd}")]
""",
        way=strategy,
        closed=closed,
    )

    assert out == {
        "answers": [
            ["in\nout\n", "err\n", 0],
            ["in\nout\nerr\n", None, 0],
            ["out\n", None, 0],
            [None, "err\n", 0],
            [None, None, 0],
        ],
        "closed": list(closed),
    }


def test_every_map_of_the_standard_descriptors(way: Way) -> None:
    """Each of the 27 ways to make 0, 1 and 2 out of our 0, 1 and 2 leads where it says."""
    out = helpers.run_snippet(
        """
import itertools
from probes import descriptors
for fd in range(3):
    descriptors.file_at(fd)
ours = [descriptors.identity(fd) for fd in range(3)]
out["wrong"] = []
out["right"] = 0
for given in itertools.product(range(3), repeat=3):
    told = descriptors.ask(safespawn, probe, 900, way, **dict(zip(("stdin", "stdout", "stderr"), given)))
    right = [told[fd][:3] for fd in range(3)] == [ours[fd] for fd in given] and sorted(told) == [0, 1, 2, 900]
    out["right"] += right
    if not right:
        out["wrong"].append([given, told])
""",
        way=way,
        probe=PROBE,
    )

    assert out == {"wrong": [], "right": 27}


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_devnull(way: Way, name: str) -> None:
    """DEVNULL is the null device, readable and writable, in the place named and there only."""
    check(way, {name: DEVNULL})


def test_stderr_to_stdout(way: Way, files: Callable[..., list[int]]) -> None:
    """STDOUT means where stdout goes: to a file, to /dev/null, or to our own."""
    files(700)

    check(way, {"stderr": STDOUT})
    check(way, {"stdout": 700, "stderr": STDOUT})
    check(way, {"stdout": DEVNULL, "stderr": STDOUT})
    check(way, {"stdout": 2, "stderr": STDOUT})


def test_pipes(way: Way) -> None:
    """PIPE connects each standard descriptor with us, and a child has no other end of them."""
    script = "cat; ls -l /proc/self/fd | grep -c pipe: >&2"
    with safespawn.spawn(["/bin/sh", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE, **way) as process:
        told = process.communicate(b"through")

    # grep's own three, and what ls has of the pipeline: stdin, stdout to grep, stderr.
    assert told == (b"through", b"3\n")


def test_pipe_of_one_child_is_not_in_the_next(way: Way) -> None:
    """Our ends of the pipes of one child are not in another that starts while they are open."""
    with safespawn.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL, **way):
        check(way, {})


def test_our_descriptors_of_a_child_are_not_inheritable(way: Way) -> None:
    """Pipes and the pidfd of a running child are closed in whatever others start from here."""
    before = helpers.open_fds()
    with safespawn.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE, **way) as process:
        ours = {fd for fd in helpers.open_fds() - before if fd < LOW_FD or fd == process.pidfd}

        assert len(ours) == 4  # and above, pidfds of children that are parked
        assert process.pidfd in ours
        assert not any(os.get_inheritable(fd) for fd in ours)


def test_file_objects_are_descriptors(way: Way, tmp_path: Path) -> None:
    """A file object stands for its descriptor."""
    with open(tmp_path / "out", "w+b") as file:
        safespawn.run(["/bin/echo", "text"], stdout=file, check=True, **way)
        file.seek(0)
        assert file.read() == b"text\n"


# ----------------------------------------------------------------- maps of descriptors

A, B, C, D = 610, 611, 612, 613

PLANS: dict[str, Plan] = {
    "swap": {"fds": {A: B, B: A}},
    "cycle of three": {"fds": {A: B, B: C, C: A}},
    "cycle of four": {"fds": {A: D, B: A, C: B, D: C}},
    "two swaps": {"fds": {A: B, B: A, C: D, D: C}},
    "chain up": {"fds": {A: B, B: C, C: D}},
    "chain down": {"fds": {D: C, C: B, B: A}},
    "itself": {"fds": {A: A, B: B}},
    "itself and copies": {"fds": {A: A, B: A, C: A, D: A}},
    "copies of a target": {"fds": {A: B, B: C, 5: A, 6: A, 700: A}},
    "one source everywhere": {"fds": {n: A for n in range(3, 300)}},
    "low from high": {"fds": {3: D, 4: C, 5: B, 6: A}},
    "high from low": {"fds": {899: A, 800: B}},
    "standard through": {"stdin": A, "stdout": B, "stderr": C, "fds": {A: 0, B: 1, C: 2}},
    "cycle with standard": {"stdin": A, "fds": {A: 1}, "stdout": 2, "stderr": 0},
    "standard swapped, map too": {"stdin": 1, "stdout": 0, "fds": {A: B, B: A, C: 0}},
    "standard copied out": {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL, "fds": {3: 0, 4: 1, 5: 2}},
    "pass": {"pass_fds": [A, C]},
    "pass, twice and standard": {"pass_fds": [A, A, 0, 1, 2, C]},
    "pass and map": {"pass_fds": [B], "fds": {A: B, C: A}},
    "pass what is a source": {"pass_fds": [A], "stdin": A, "fds": {D: A}},
    "all to one file": {"stdin": A, "stdout": A, "stderr": A, "fds": {B: A}},
    "stderr to mapped stdout": {"stdout": A, "stderr": STDOUT, "fds": {A: 1, B: 2}},
}


@pytest.mark.parametrize("name", PLANS)
def test_plan_of_descriptors(way: Way, files: Callable[..., list[int]], name: str) -> None:
    """Every plan ends with each target leading to what its source led to at the start."""
    files(A, B, C, D)

    check(way, PLANS[name])


def test_targets_lead_to_the_same_open_file(way: Way, files: Callable[..., list[int]]) -> None:
    """A target shares the position of its source, as a duplicate does."""
    files(A)
    os.write(A, b"0123456789")
    os.lseek(A, 3, os.SEEK_SET)

    safespawn.run(["/bin/sh", "-c", "head -c1 <&7 >/dev/null; head -c0 <&7"], fds={7: A}, check=True, **way)

    assert os.lseek(A, 0, os.SEEK_CUR) > 3


@pytest.mark.parametrize("pin", [False, True])
def test_targets_that_safespawn_uses_itself(
    way: Way, files: Callable[..., list[int]], tmp_path: Path, pin: bool
) -> None:
    """Targets may be the very numbers that the library has open for itself just then."""
    # The program, its working directory, the null device and the pipes get the lowest
    # free numbers; the ledger lies at 512 or above.
    files(A, B)
    with audit.open(tmp_path / "ledger"):
        ledger = [fd for fd in helpers.open_fds() if fd >= 512 and fd not in (A, B)]
        numbers = [*free_numbers(24), *ledger]
        assert ledger
        check(
            way,
            {"stdin": DEVNULL, "stderr": DEVNULL, "fds": {fd: (A, B)[fd % 2] for fd in numbers}},
            cwd=tmp_path,
            pin=pin,
        )


def test_target_that_is_a_pipe_of_ours(way: Way, files: Callable[..., list[int]]) -> None:
    """Targets that are the numbers of our own pipe ends leave the pipes working."""
    files(A)
    script = "cat <&0; echo error >&2"
    numbers = free_numbers(24)

    with safespawn.spawn(
        ["/bin/sh", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE, fds=dict.fromkeys(numbers, A), **way
    ) as process:
        assert process.communicate(b"through") == (b"through", b"error\n")


def test_script_that_is_pinned_keeps_one_descriptor_more(
    way: Way, files: Callable[..., list[int]], program: Callable[..., Path]
) -> None:
    """A pinned script is read through a descriptor of its own, which is the only extra one."""
    files(A, B)
    path = program("#!" + " ".join(PROBE[:2]) + "\n" + Path(PROBE[3]).read_text())
    script = os.stat(path)
    wanted = descriptors.expected({"fds": {A: B, B: A}})

    told = descriptors.ask(safespawn, [str(path)], ANSWER, way, fds={A: B, B: A}, pin=True)

    del told[ANSWER]
    extra = told.keys() - wanted.keys()
    assert [told.pop(fd)[:2] for fd in extra] == [[script.st_dev, script.st_ino]]
    assert {fd: seen[:3] for fd, seen in told.items()} == wanted


#: Lowers our limit, so that the highest number is near, and uses it up.
AT_THE_LIMIT = """
import resource
from probes import descriptors
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
for fd in (0, 1, 2, 40, 41, 1100):
    descriptors.file_at(fd)
answer = os.dup2(os.memfd_create("answer"), 50)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
ours = {fd: descriptors.identity(fd) for fd in (0, 1, 2, 40, 41, 1100)}
plan = {key: {int(t): s for t, s in value.items()} if key == "fds" else value for key, value in plan.items()}
standard = [plan.get(name, fd) for fd, name in enumerate(("stdin", "stdout", "stderr"))]
wanted = {**dict(enumerate(standard)), **plan.get("fds", {}), **{fd: fd for fd in plan.get("pass_fds", ())}}
plan["fds"] = {**plan.get("fds", {}), 30: answer}
try:
    with safespawn.spawn([*probe, "30"], **plan, **way) as process:
        process.wait()
    told = {int(fd): seen[:3] for fd, seen in json.loads(os.pread(answer, 1 << 20, 0)).items()}
    out["answer"] = told.pop(30) == descriptors.identity(answer)
    out["right"] = told == {fd: ours[source] for fd, source in wanted.items()}
except OSError as problem:
    out["raised"] = [problem.errno, problem.stage]
"""


@pytest.mark.parametrize(
    "plan",
    [
        {"fds": {63: 40}},
        {"fds": {63: 40, 62: 41, 61: 0}},
        {"fds": {63: 40, 40: 41}},
        {"stdin": 1, "stdout": 0, "fds": {63: 40}},
        {"fds": {40: 41, 41: 40, 63: 2}},
        {"pass_fds": [1100]},
        {"stdin": 1, "stdout": 0, "pass_fds": [1100]},
    ],
    ids=str,
)
def test_plan_that_reaches_the_limit_of_open_files(strategy: Way, plan: Plan) -> None:
    """The highest number that our limit allows is a target like any other, swaps below it included."""
    out = helpers.run_snippet(AT_THE_LIMIT, way=strategy, probe=PROBE, plan=plan, limit=64)

    if strategy["strategy"] == "posix_spawn" and "pass_fds" in plan:  # libc takes no number above the limit
        assert out == {"raised": [errno.EBADF, "descriptors"]}
    else:
        assert out == {"answer": True, "right": True}


@pytest.mark.threat("T-14")
@pytest.mark.parametrize("by", ["vfork", "fork"])
def test_pinned_program_has_no_number_left(by: str) -> None:
    """Where every number is a target, the program's own descriptor has no place: it is told, and no other file runs."""
    out = helpers.run_snippet(
        """
import fcntl, resource
safespawn.run(["/bin/true"], strategy=by, pin=True)
other = fcntl.fcntl(os.open("/bin/false", os.O_RDONLY), fcntl.F_DUPFD, 40)
while os.dup(0) < 23:
    pass
for fd in range(16, 24):
    os.close(fd)  # for what we open ourselves: targets, all of them
resource.setrlimit(resource.RLIMIT_NOFILE, (24, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
plan = {fd: fd for fd in range(3, 16)} | {fd: other for fd in range(16, 24)}
try:
    out["ran"] = safespawn.run(["/bin/true"], strategy=by, pin=True, fds=plan).returncode
except OSError as problem:
    out["told"] = [problem.stage, problem.errno]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
""",
        by=by,
    )
    assert out == {"told": ["descriptors", errno.EINVAL]}


def test_pinned_script_at_the_limit_of_open_files(way: Way, program: Callable[..., Path]) -> None:
    """A pinned script starts even where the highest descriptor is a target."""
    out = helpers.run_snippet(
        """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
with safespawn.spawn([script], fds={63: 0}, pin=True, **way) as process:
    out["code"] = process.wait()
""",
        way=way,
        script=str(program("#!/bin/sh\nexit 7\n")),
    )

    assert out == {"code": 7}


# --------------------------------------------------------------------- nothing else


def test_inheritable_descriptors_stay_here(way: Way, files: Callable[..., list[int]]) -> None:
    """Of many descriptors that are marked inheritable none reaches a child but those named."""
    numbers = files(*range(600, 800))
    for fd in numbers:
        os.set_inheritable(fd, True)

    check(way, {})
    check(way, {"pass_fds": [655, 700], "fds": {5: 799, 600: 601}})
    assert all(os.get_inheritable(fd) for fd in numbers)


def test_inheritable_descriptors_below_the_targets_stay_here(way: Way, files: Callable[..., list[int]]) -> None:
    """Gaps between targets are closed too, of one number or of many."""
    numbers = files(*free_numbers(40), 600)
    for fd in numbers:
        os.set_inheritable(fd, True)
    kept = [*numbers[:40:2], numbers[21]]

    check(way, {"pass_fds": kept})


def test_our_own_flags_stay_as_they_are(way: Way, files: Callable[..., list[int]]) -> None:
    """A descriptor that is handed on is no more inheritable here than it was before."""
    files(A, B)
    os.set_inheritable(B, True)

    check(way, {"pass_fds": [A, B], "fds": {C: A}})

    assert (os.get_inheritable(A), os.get_inheritable(B)) == (False, True)


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "options",
    [
        {"stdin": 9_999},
        {"stdout": 9_999},
        {"stderr": 9_999},
        {"fds": {5: 9_999}},
        {"fds": {5: 0, 6: 9_999}},
        {"pass_fds": [0, 9_999]},
        {"cwd": 9_999},
        {"start_new_session": True, "controlling_terminal": 9_999},
    ],
    ids=str,
)
def test_descriptor_that_is_closed_is_named(way: Way, tmp_path: Path, options: Plan) -> None:
    """A descriptor that is not open is EBADF with its number, and nothing is started."""
    marker = tmp_path / "ran"

    with pytest.raises(OSError, match="9999") as caught:
        safespawn.spawn(["/usr/bin/touch", str(marker)], **options, **way)

    assert caught.value.errno == errno.EBADF
    assert not marker.exists()


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_standard_descriptor_that_is_closed_cannot_be_named(strategy: Way, closed: int) -> None:
    """One of 0, 1 and 2 that is closed here is no source, although a child gets one in its place."""
    out = helpers.run_snippet(
        """
os.close(closed)
out["raised"] = []
for options in ({"fds": {5: closed}}, {"pass_fds": [closed]}, {("stdin", "stdout", "stderr")[closed]: closed}):
    try:
        safespawn.spawn(["/bin/true"], **options, **way)
    except OSError as problem:
        out["raised"].append([problem.errno, f"descriptor {closed} " in str(problem)])
""",
        way=strategy,
        closed=closed,
    )

    assert out["raised"] == [[errno.EBADF, True]] * 3


def test_target_above_the_limit_is_named(way: Way, tmp_path: Path) -> None:
    """A target that our limit of open files does not allow is a ValueError with its number."""
    marker = tmp_path / "ran"
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    for target in (limit, limit + 1, 2**31 - 1):
        with pytest.raises(ValueError, match=f"{target}.*{limit}"):
            safespawn.spawn(["/usr/bin/touch", str(marker)], fds={target: 0}, **way)

    assert not marker.exists()


# ------------------------------------------------------ against a model that is slow

#: Numbers of sources and targets: from where the library's own lie up to where nothing is.
POOL = [*range(3, 28), 600, 601, 602, 700, 899]


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[int], Plan]:
    """Draw numbers of open files, and a plan that uses them."""
    sources = draw(st.lists(st.sampled_from(POOL), unique=True, min_size=1, max_size=6))
    any_source = st.sampled_from([0, 1, 2, *sources])
    # Targets that are sources are what goes wrong, so half of them are.
    target = st.sampled_from(sources) | st.sampled_from(POOL)
    plan: Plan = {"fds": draw(st.dictionaries(target, any_source, max_size=8))}
    passed = [fd for fd in sources if fd not in plan["fds"]]
    if passed:
        plan["pass_fds"] = draw(st.lists(st.sampled_from(passed), max_size=3))
    for name in ("stdin", "stdout", "stderr"):
        constants = [None, DEVNULL, STDOUT] if name == "stderr" else [None, DEVNULL]
        plan[name] = draw(st.sampled_from(constants) | any_source)
    return sources, plan


@pytest.mark.parametrize("examples", [20, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", WAYS)
def test_random_plans_agree_with_the_model(name: str, examples: int) -> None:
    """Whatever is open and whatever is asked for: a child has what the slow model says."""
    # In a fresh process, where every low number is free for sources.
    cases: list[Any] = []

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @given(plans())
    def collect(case: tuple[list[int], Plan]) -> None:
        cases.append(case)

    collect()

    out = helpers.run_snippet(
        """
from probes import descriptors
for fd in range(3):
    descriptors.file_at(fd)
# What this process has open already is not ours to overwrite: those numbers move up.
taken = {fd for fd in range(3, 1000) if os.path.exists(f"/proc/self/fd/{fd}")}
def at(fd):
    return fd + 100 if fd in taken else fd
out["wrong"] = []
out["tried"] = 0
for sources, plan in cases:
    sources = [at(fd) for fd in sources]
    plan = {
        name: {at(int(t)): at(s) for t, s in value.items()} if name == "fds"
        else [at(fd) for fd in value] if name == "pass_fds"
        else at(value) if value is not None and value > 2 else value
        for name, value in plan.items()
    }
    for fd in sources:
        descriptors.file_at(fd)
    try:
        wanted = descriptors.expected(plan)
        told = descriptors.ask(safespawn, probe, 950, way, **plan)
        del told[950]
        has = descriptors.compared(told, wanted)
        out["tried"] += 1
        if has != wanted:
            out["wrong"].append([sources, plan, has, wanted])
    except Exception as problem:
        out["wrong"].append([sources, plan, repr(problem)])
    finally:
        for fd in sources:
            os.close(fd)
""",
        way=WAYS[name],
        probe=PROBE,
        cases=cases,
    )

    assert out["wrong"] == []
    assert out["tried"] == len(cases) >= examples
