"""System calls that fail: one errno for each kind of call, by every way; all of them are `make faults`.

tests/faults.py says what is done, tests/fault_rules.py what may come of it.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import faults
import injecting
import manual_errnos
from errnos import ERRNOS
from scenes import SCENES

#: Another sample each day would fail on another day than the change that broke it.
SEED = 8
#: Injections into each scene. A call that the table of errnos lacks fails the test whatever the sample.
MOST = 30
#: The scenes of the ordinary tests. The others differ in what is asked for beside.
FAST = (
    "vfork", "clone", "fork", "posix_spawn", "vfork-options", "fork-bounded", "launcher-drop", "many", "helper", "pool", "ledger-durable-keys",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the supervisor and the program are: everybody can reach them, pytest's own directories are private."""
    with tempfile.TemporaryDirectory(prefix="safespawn-faults-", ignore_cleanup_errors=True) as name:
        yield injecting.build(Path(name))


def test_table_is_that_of_the_manual() -> None:
    """The table of errnos is what the pages say, to the letter, and has every call that the sources name."""
    if not (manual_errnos.PAGES / "man2").is_dir():
        pytest.skip("no manual: manpages-dev is not installed")
    assert Path(manual_errnos.TESTS / "errnos.py").read_text(encoding="ascii") == manual_errnos.text()


def test_table_has_every_call_of_the_sources() -> None:
    """No system call is made that the table lacks, as far as the sources tell."""
    assert manual_errnos.named() <= ERRNOS.keys()


def test_what_goes_on_has_a_reason() -> None:
    """Where a call may fail and all go on as if it had not, the rule says why."""
    words = [(key, {word.partition(":")[0] for word in words.split()}, why) for key, words, why in faults.fault_rules.ALLOWED]
    assert [key for key, those, why in words if "ran" in those and not why] == []


@pytest.mark.parametrize("name", FAST)
def test_a_fault_for_each_kind_of_call(place: Path, name: str) -> None:
    """Right exception, right stage, nothing left, no exec without an intent; and it works again."""
    (scene,) = (one for one in SCENES if one.name == name)
    result = faults.run_scene(scene, place, sample=1, seed=SEED, most=MOST)
    assert result.problems == []
    assert result.injections > 20 and result.missed <= result.injections // 10


#: What once went wrong: scene, call, the how-manieth (0: each), errno, and what is right.
MENDED = [
    # Signals could not be blocked, and memory was shared all the same; the program's mask was nobody's. [T-01]
    ("vfork", "parent rt_sigprocmask", 1, "EINVAL", "clone"),
    ("fork", "parent rt_sigprocmask", 1, "EINVAL", "clone"),
    ("many", "parent rt_sigprocmask", 1, "EINVAL", "clone"),
    ("posix_spawn", "parent rt_sigprocmask", 1, "EINVAL", "clone"),
    ("launcher-drop", "parent rt_sigprocmask", 1, "EINVAL", "prepare"),
    # The plan area stayed read-only, and the next spawn wrote to it.
    ("vfork", "parent mprotect", 2, "ENOMEM", "ran"),
    ("posix_spawn", "parent mprotect", 2, "ENOMEM", "ran"),
    # A helper without a pool parked a child that nobody had asked for, each time one more.
    ("helper", "helper ppoll", 1, "ENOMEM", "ran"),
    # A parked child that nobody could be told of with its pidfd was killed, and stayed a zombie.
    ("pool", "helper sendmsg", 3, "ENOBUFS", "ran"),
    # Who can trace the launcher or the helper is it: they went on without what keeps others out.
    ("launcher-drop", "launcher prctl 4", 1, "EPERM", "refused"),
    ("helper-life", "helper prctl 4", 1, "EPERM", "early"),
    # A sandbox that says EINVAL of all capabilities: the bounding set was left as it was.
    ("launcher-drop", "launcher prctl 23", 2, "EINVAL", "bounding"),
    # What a record tells beside could not be seen: that came in the place of what had failed, without a report.
    ("fork-missing", "parent getgroups", 1, "EINVAL", "lookup!ENOENT"),
    ("vfork-late", "parent getgroups", 2, "EINVAL", "timed-out"),
    # A program that could not be read to be hashed: no report, and no record.
    ("vfork-pinned", "parent pread64", 2, "EIO", "lookup"),
    # A look that was refused counted as what it said: the program was as nice as can be, or in a group that there is not.
    ("helper", "parent getpriority", 1, "EPERM", "refused"),
    ("helper", "parent getpgid", 1, "EPERM", "refused"),
    # No pipe, and no report of that.
    ("vfork-options", "parent pipe2", 1, "EMFILE", "prepare"),
    # The program ran on without its handle.
    ("vfork-options", "parent close", 0, "EIO", "ran after"),
]


@pytest.mark.parametrize(("name", "key", "ordinal", "error", "right"), MENDED)
def test_what_once_went_wrong(place: Path, name: str, key: str, ordinal: int, error: str, right: str) -> None:
    """Each of these failures once led to something else."""
    (scene,) = (one for one in SCENES if one.name == name)
    play = faults.Play(scene, place)
    try:
        sites = [site for site in dict.fromkeys(play.begin()) if site.key == key and ordinal in (0, site.ordinal)]
        assert sites
        for site in sites:
            assert play.worker is not None
            came = play.worker.play(site, getattr(errno, error))
            assert faults.fault_rules.outcome(came, error) in right.split()
            assert (came.fired, came.wrong) == (True, [])
            assert play._afterwards(site) == ""
    finally:
        play.close()


def test_lookup_that_is_late_has_one_ending(place: Path) -> None:
    """A lookup in a child that is killed at the deadline is recorded once: SpawnTimeout is a TimeoutError too."""
    (scene,) = (one for one in SCENES if one.name == "vfork-late-lookup")
    play = faults.Play(scene, place)
    try:
        play.begin()
        assert play.worker is not None
        came = play.worker.play()
        assert (faults.fault_rules.outcome(came), came.said["stage"], came.wrong) == ("timed-out", "lookup", [])
    finally:
        play.close()
