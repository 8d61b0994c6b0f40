"""Runs the tests of programs that use `subprocess`, without us and with `safespawn.install()`, and compares them.

    python tests/clients/compare_all.py [NAME]... [--again] [--jobs N]

Each client's sdist comes from PyPI, with its tests, into ~/.cache/safespawn-clients, with a virtual environment beside
it; a playbook of ours runs under ansible-core. What fails with us and not without is counted only if a second pair of runs
says the same: others' tests are not all steady, and those that are not are shown. Tests that fail both ways are
shown too. `--again` does the second pair of runs of all.

Exit code 1: a test fails or is skipped with us and not without, or a run did not end.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import places
import playbook
from table import CLIENTS, Client

WITHOUT, WITH = "without", "with"
#: Seconds for the tests of one client, one way.
LIMIT = 2400
GOOD = ("passed", "xfailed", "xpassed")
Outcomes = dict[str, str]


class Pair(NamedTuple):
    """The outcomes of one run without us and one with us, and how many programs we started in that."""

    without: Outcomes
    installed: Outcomes
    started: int

    def worse(self) -> set[str]:
        """Return the tests that are bad with us and not without, or bad in another way."""
        return {
            test
            for test in self.without.keys() | self.installed.keys()
            if (now := self.installed.get(test, "not run")) not in GOOD
            and now != (before := self.without.get(test, "not run"))
            and before in (*GOOD, "skipped", "not run")
        }


class Verdict(NamedTuple):
    """What the runs of one client say."""

    name: str
    pairs: list[Pair]

    @property
    def steady(self) -> list[str]:
        """The tests that are worse in each pair of runs."""
        return sorted(set.intersection(*(pair.worse() for pair in self.pairs)))

    @property
    def unsteady(self) -> list[str]:
        """The tests that are worse in some pair of runs only."""
        return sorted(set.union(*(pair.worse() for pair in self.pairs)) - set(self.steady))


class Suite:
    """The tests of a client from PyPI, in its sdist's directory and its environment."""

    def __init__(self, client: Client) -> None:
        self.client, self.name = client, f"{client.name} {client.version}"

    def prepare(self) -> None:
        self.place = places.prepared(self.client)

    def run(self, way: str) -> places.Came:
        plugins = ["-p", "client_outcomes", *(["-p", "safespawn_installed"] if way == WITH else [])]
        left_out = [word for test in self.client.left_out for word in leave_out(test)]
        argv = ["-m", "pytest", *plugins, "-p", "no:cacheprovider", *left_out, *self.client.arguments]
        return self.place.run(argv, LIMIT, self.client.tty, **self.client.variables)


def leave_out(test: str) -> tuple[str, str]:
    return ("--deselect", test) if "::" in test else ("--ignore", test)


def pair(suite: Suite | playbook.Playbook) -> Pair:
    both = []
    for way in (WITHOUT, WITH):
        began = time.monotonic()
        both.append(suite.run(way))
        print(f"{suite.name:22} {way:8} {time.monotonic() - began:5.0f} s  {counted(both[-1].outcomes)}", flush=True)
    return Pair(*(one.outcomes for one in both), both[-1].started)


def compare(suite: Suite | playbook.Playbook, again: bool) -> Verdict:
    """Run without and with us, and a second time if anything is worse."""
    suite.prepare()
    pairs = [pair(suite)]
    if again or pairs[0].worse():
        pairs.append(pair(suite))
    return Verdict(suite.name, pairs)


def counted(outcomes: Outcomes) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(Counter(outcomes.values()).items()))


def show(title: str, tests: Iterable[str]) -> None:
    for test in tests:
        print(f"    {title}: {test}")


def report(verdicts: list[Verdict]) -> int:
    """Print a table and what differs, and return the exit code."""
    print(f"\n{'client':22} {'without':45} {'with safespawn.install()':45} programs started by it")
    for one in verdicts:
        last = one.pairs[-1]
        print(f"{one.name:22} {counted(last.without):45} {counted(last.installed):45} {last.started}")
        show("fails without us, not counted", sorted(test for test, outcome in last.without.items() if outcome == "failed"))
        show("worse in one pair of runs only, not counted", one.unsteady)
        show("WORSE WITH US, IN BOTH PAIRS OF RUNS", one.steady)
    wrong = sum(len(one.steady) + (not one.pairs[0].without) for one in verdicts)
    print(f"\nThe clients' own tests: {len(verdicts)} clients compared, {wrong} tests worse with us")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    suites = {client.name: Suite(client) for client in CLIENTS} | {"ansible-core": playbook.Playbook()}
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(suites)}; all without a name")
    parser.add_argument("--again", action="store_true", help="every client twice")
    parser.add_argument("--jobs", type=int, default=1, help="clients at a time; others' tests like a quiet machine")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - suites.keys():
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    with ThreadPoolExecutor(chosen.jobs) as pool:
        picked = [suites[name] for name in chosen.names or suites]
        return report(list(pool.map(lambda suite: compare(suite, chosen.again), picked)))


if __name__ == "__main__":
    sys.exit(main())
