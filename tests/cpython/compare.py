"""Runs the interpreters' own tests with us, and what does not pass without us, and compares them test by test.

    python tests/cpython/compare.py [--all] [--version V]... [--module M]... [--mode MODE]... [--jobs N]

Every test that passes in mode `plain`, without us, has to pass in mode `installed`, with `safespawn.install()` active
from the start, and in mode `replaced`, with the names in `subprocess` replaced by ours, but for those in
`expected.py`. Only what does not pass with us is run without us. What differs is then run with us once more, by
itself: the tests are not ours, and not all are steady; what differs only once is shown and not counted.

Exit code 1: a test is worse with us and not listed, or is listed and no worse; or there is no interpreter at all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import interpreters
from expected import EXPECTED
from running import Bench, Came, Run

VERSIONS = ("3.10", "3.11", "3.13")
MODES = ("installed", "replaced")
#: What is about starting programs: run by `make test`, the slowest first.
QUICK = ("test_subprocess", "test_asyncio.test_subprocess", "test_os", "test_posix", "test_popen")
#: What starts programs for another purpose: run by `make clients`.
SLOW = (
    "test_multiprocessing_spawn",
    "test_concurrent_futures",
    "test_multiprocessing_forkserver",
    "test_multiprocessing_fork",
    "test_multiprocessing_main_handling",
    "test_signal",
    "test_threading",
    "test_cmd_line",
    "test_script_helper",
    "test_pty",
    "test_venv",
    "test_uuid",
    "test_platform",
    "test_fork1",
    "test_wait3",
    "test_wait4",
)
#: Of all these, what does not use the names of `subprocess`, or in few places: run in that mode only if asked for.
NOT_REPLACED = (
    "test_os",
    "test_posix",
    "test_multiprocessing_spawn",
    "test_multiprocessing_forkserver",
    "test_multiprocessing_fork",
    "test_concurrent_futures",
    "test_pty",
    "test_fork1",
    "test_wait3",
    "test_wait4",
)
#: Seconds for a module; none takes half of that on two busy cores.
LIMIT, LIMIT_OF_ALL = 300, 1200
GOOD = ("passed", "expected failure")
UNENDED = ("hung or died", "not run")
#: Of what went wrong in a test, the last ones are shown.
LINES = 6


class Difference(NamedTuple):
    """A test that is worse with us."""

    version: str
    mode: str
    module: str
    test: str
    plain: str
    ours: str
    text: str

    @property
    def shown(self) -> str:
        """The end of what went wrong in it; where it did not end, all that is known of that."""
        return self.text if self.ours in UNENDED else "\n".join(self.text.strip().splitlines()[-LINES:])

    @property
    def listed(self) -> bool:
        """Whether it has its reason in the table."""
        return any(
            self.test in entry.tests and self.mode in entry.modes and self.version in entry.versions
            for entry in EXPECTED
        )


class Comparison:
    """What the runs with us came to, and without us of whatever was not good."""

    def __init__(self, bench: Bench, runs: Iterable[Run]) -> None:
        self.bench = bench
        self.ours = bench.run_all(runs)
        self.plain = bench.run_all(without_us(self.ours))
        self.found = list(self.differences(self.ours))

    def differences(self, ours: dict[Run, Came]) -> Iterator[Difference]:
        """Yield what is bad with us and good without, or bad in another way where it was only skipped."""
        before = {(run.version, test): what for run, came in self.plain.items() for test, what in came.outcomes.items()}
        for run, came in ours.items():
            for test in bad(came):
                plain, now = before.get((run.version, test), "not run"), came.outcomes[test]
                if plain in GOOD or (plain != now and plain == "skipped"):
                    yield Difference(run.version, run.mode, run.module, test, plain, now, came.texts[test])

    def confirmed(self) -> list[Difference]:
        """Run what differs and is not listed with us once more, and return what differs again."""
        tests: dict[Run, list[str]] = {}
        unlisted = [one for one in self.found if not one.listed]
        for one in unlisted:
            tests.setdefault(Run(one.version, one.mode, one.module), []).append(one.test)
        again = self.bench.run_all(run._replace(ids=tuple(ids)) for run, ids in tests.items())
        second = {(one.version, one.mode, one.test) for one in self.differences(again)}
        return [one for one in unlisted if (one.version, one.mode, one.test) in second]

    def stale(self) -> Iterator[str]:
        """Yield what is in the table for tests that passed with us."""
        for run, came in self.ours.items():
            for entry in EXPECTED:
                if run.mode in entry.modes and run.version in entry.versions:
                    for test in entry.tests:
                        if came.outcomes.get(test) in GOOD:
                            yield f"{run.version} {run.mode} {test} ({entry.reason})"


def bad(came: Came) -> list[str]:
    return [test for test, outcome in came.outcomes.items() if outcome not in GOOD]


def without_us(ours: dict[Run, Came]) -> list[Run]:
    """Return the runs without us of what was not good with us in some mode."""
    tests: dict[Run, dict[str, None]] = {}
    for run, came in ours.items():
        # A module that could not even be loaded has no tests to name.
        wanted = bad(came) if came.outcomes else [""]
        tests.setdefault(run._replace(mode="plain"), {}).update(dict.fromkeys(wanted))
    return [run._replace(ids=() if "" in ids else tuple(ids)) for run, ids in tests.items() if ids]


def show(title: str, lines: Iterable[str]) -> int:
    """Print the lines below a title, if there are any, and return how many."""
    lines = list(lines)
    if lines:
        print(f"\n{title}: {len(lines)}")
        for line in lines:
            print("  " + line)
    return len(lines)


def unloaded(ours: dict[Run, Came]) -> Iterator[str]:
    """Yield the runs in which not even the names of the tests were found, with the reason."""
    for run, came in ours.items():
        if not came.outcomes:
            yield f"{run.version} {run.mode} {run.module}" + indented(came.log)


def idle(ours: dict[Run, Came]) -> Iterator[str]:
    """Yield the interpreters and modes in which we started nothing at all: that compared nothing."""
    started: Counter[str] = Counter()
    for run, came in ours.items():
        started[f"{run.version} {run.mode}"] += came.started or 0
    return (what for what, programs in started.items() if not programs)


def indented(text: str) -> str:
    return "".join(f"\n      {line}" for line in text.strip().splitlines())


def told(found: Iterable[Difference]) -> Iterator[str]:
    """Yield a line for each test and mode, with what went wrong on the newest version."""
    alike: dict[tuple[str, str], list[Difference]] = {}
    for one in found:
        # After a hang, or where the set-up of a class fails, there are many.
        test = f"tests of {one.module}" if one.ours == "not run" else one.test
        alike.setdefault((one.mode, test), []).append(one)
    for (mode, test), ones in alike.items():
        last = max(ones, key=lambda one: interpreters.number(one.version))
        counts = Counter(one.version for one in ones).items()
        versions = ", ".join(version if count == 1 else f"{version}: {count}" for version, count in counts)
        yield f"{mode} {test} ({versions}): {last.plain} without us, {last.ours} with us{indented(last.shown)}"


def report(comparison: Comparison) -> int:
    """Print what the runs came to, and return the exit code."""
    found, worse = comparison.found, comparison.confirmed()
    plain = comparison.plain.items()
    failing = (f"{run.version} {test}" for run, came in plain for test in bad(came) if came.outcomes[test] != "skipped")
    show("not good without us either, not counted", failing)
    show("differed once and not again, not counted", told(one for one in found if not one.listed and one not in worse))
    show("listed in expected.py", (f"{one.version} {one.mode} {one.test}" for one in found if one.listed))
    wrong = show("LISTED AND NOT WORSE", comparison.stale())
    wrong += show("NOTHING RUN", unloaded(comparison.ours))
    unended = (f"{run.version} {run.module}" for run, came in plain if came.started is None)
    wrong += show("DID NOT END WITHOUT US: NOT COMPARED", unended)
    wrong += show("NO PROGRAM STARTED BY US", idle(comparison.ours))
    show("WORSE WITH US", told(worse))
    wrong += len(worse)
    passed = sum(outcome in GOOD for came in comparison.ours.values() for outcome in came.outcomes.values())
    print(f"\nThe interpreters' own tests: {passed} passed with us, {wrong} wrong")
    return 1 if wrong or not passed else 0


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="the slow modules too")
    parser.add_argument("--version", action="append", dest="versions", metavar="V")
    parser.add_argument("--module", action="append", dest="modules", metavar="M")
    parser.add_argument("--mode", action="append", dest="modes", choices=MODES)
    # They wait more than they work.
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="modules at a time")
    return parser.parse_args()


def chosen_runs(given: argparse.Namespace, bench: Bench) -> Iterator[Run]:
    """Yield what is to be run with us; what is not installed here is named."""
    absent = []
    for module in given.modules or (SLOW + QUICK if given.all else QUICK):
        for version in bench.pythons:
            if not bench.has(version, module):
                absent.append(f"{version} {module}")
                continue
            for mode in given.modes or MODES:
                if given.modules or mode != "replaced" or module not in NOT_REPLACED:
                    yield Run(version, mode, module)
    show("NOT RUN: not installed with the interpreter", absent)


def main() -> int:
    given = options()
    bench = Bench(given.versions or VERSIONS, LIMIT_OF_ALL if given.all else LIMIT, given.jobs)
    for version, python in bench.pythons.items():
        print(f"Python {version}: {python}")
    show("NOT RUN: no such interpreter with its `test` package here", bench.missing)
    return report(Comparison(bench, list(chosen_runs(given, bench))))


if __name__ == "__main__":
    sys.exit(main())
