"""Cost of starting a static program as another user: the launcher, fork, and subprocess, in one run.

    python bench/drop_cost.py [--quick] [--sizes MIB ...] [--json FILE]

Every way is measured in turn with the others, in processes of several resident sizes, alone
and beside 8 idle threads: the time from the call to the end of the program, and, in spawns
of their own, how long another Python thread stood still meanwhile ("gap": the longest one of
a spawn; that thread is one more). The table shows what the report says was done. Slow ways
are measured less often. Needs root. A report, not a test.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import _support

import safespawn

#: The user and group that own nothing, on every Linux.
NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
SIZES = (10, 256, 1024, 4096)
IDLE = (0, 8)

OURS, FORK, THEIRS, PLAIN, NONE = (
    "safespawn.run, user",
    "safespawn.run, user, fork",
    "subprocess.run, user",
    "safespawn.run",
    "no spawn, sleep of 1 ms",
)

Done = safespawn.CompletedProcess | None
Tasks = Mapping[str, Callable[[], Done]]


def ways(program: str) -> Tasks:
    """Return what is compared, by name. Ours give what has the report."""

    def theirs() -> None:
        subprocess.run([program], check=True, **NOBODY)

    return {
        OURS: lambda: safespawn.run([program], check=True, **NOBODY),
        FORK: lambda: safespawn.run([program], check=True, strategy="fork", **NOBODY),
        THEIRS: theirs,
        PLAIN: lambda: safespawn.run([program], check=True),
    }


class Place(NamedTuple):
    """Where a way is measured."""

    mebibytes: int
    threads: int
    way: str


@dataclass
class Taken:
    """What was measured of one way in one place, in nanoseconds."""

    times: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    done_beside: Counter[str] = field(default_factory=Counter)


Results = dict[Place, Taken]


class Pacer:
    """A thread that looks at the clock all the time, and keeps the longest gap that it saw."""

    def __init__(self) -> None:
        self._stop = False
        self._looks = 0
        self._longest = [0]
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        before = time.monotonic_ns()
        while not self._stop:
            time.sleep(0)  # gives the interpreter away, as a thread does that waits for input
            now = time.monotonic_ns()
            longest = self._longest
            longest[0] = max(longest[0], now - before)
            self._looks += 1
            before = now

    def _await_look(self) -> None:
        # Two looks: the first may have begun before now.
        until = self._looks + 2
        while self._looks < until:
            time.sleep(0)

    def longest_gap(self, task: Callable[[], Done]) -> tuple[int, Done]:
        """Run the task; return the longest gap that lies in it, wholly or in part, and its answer."""
        self._await_look()
        # A new place: what the thread is about to store of before goes to the old one.
        longest = self._longest = [0]
        answer = task()
        self._await_look()
        return longest[0], answer

    def __enter__(self) -> Pacer:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        """Stop."""
        self._stop = True
        self._thread.join()


@contextmanager
def idle_threads(count: int) -> Iterator[None]:
    """Have that many threads wait for something meanwhile."""
    hold = threading.Event()
    threads = [threading.Thread(target=hold.wait) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        hold.set()
        for thread in threads:
            thread.join()


def what(done: Done) -> str:
    """Return strategy and proof."""
    return f"{done.report.strategy}, {done.report.proof or 'no proof'}" if done else "-"


def timed(task: Callable[[], Done]) -> tuple[int, Done]:
    """Return the nanoseconds that the task takes, and its answer."""
    start = time.perf_counter_ns()
    answer = task()
    return time.perf_counter_ns() - start, answer


def cost(task: Callable[[], Done]) -> int:
    """Return the least nanoseconds of a few calls: one, if it takes long. Warms up too."""
    seen: list[int] = []
    while len(seen) < 8 and sum(seen) < 30e6:
        seen.append(timed(task)[0])
    return min(seen)


class Effort(NamedTuple):
    """How much to measure of each way in each place and visit."""

    seconds: float
    least: int
    most: int = 300

    def in_turn(self, tasks: Tasks) -> Iterator[str]:
        """Yield names in the order in which to measure.

        Slow ones come less often, evenly spread over the whole, so that the machine's moods
        hit them all alike. On a busy machine, where all is slower than planned, it ends early.
        """
        order, planned = [], 0
        for name, task in tasks.items():
            each = cost(task)
            count = max(self.least, min(self.most, int(self.seconds * 1e9 / each)))
            order += [((turn + 0.5) / count, name) for turn in range(count)]
            planned += count * each
        until, seen = time.monotonic_ns() + 2 * planned, dict.fromkeys(tasks, 0)
        for _, name in sorted(order):
            if time.monotonic_ns() > until and min(seen.values()) >= 2:
                return
            seen[name] += 1
            yield name


class Measure:
    """The measurement: visits every place, and keeps what was taken there."""

    def __init__(self, program: str, effort: Effort) -> None:
        self.results: Results = {}
        self.resident: dict[int, int] = {}
        self._ways = ways(program)
        self._effort = effort

    def _settled(self, order: Iterator[str]) -> Iterator[str]:
        """Yield the names; before one that does not fork, clear up what a fork left behind.

        After a fork every page of ours that is written to costs a fault (copy on write). At a
        small size, where every other spawn is a fork, that would be charged to its successors.
        """
        forked = False
        for way in order:
            if forked and way in (OURS, PLAIN):
                self._ways[OURS]()
                self._ways[PLAIN]()
            forked = way in (FORK, THEIRS)
            yield way

    def visit(self, mebibytes: int, idle: int) -> None:
        """Measure all ways with that much ballast and so many idle threads."""
        beside: Tasks = {**self._ways, NONE: lambda: time.sleep(0.001)}
        for way in beside:  # in the order of the tables
            self.results.setdefault(Place(mebibytes, 1 + idle, way), Taken())
        with idle_threads(idle):
            for way in self._settled(self._effort.in_turn(self._ways)):
                took, done = timed(self._ways[way])
                taken = self.results[Place(mebibytes, 1 + idle, way)]
                taken.times.append(took)
                taken.done[what(done)] += 1
            half = self._effort._replace(seconds=self._effort.seconds / 2)
            with Pacer() as pacer:
                for way in self._settled(half.in_turn(beside)):
                    gap, done = pacer.longest_gap(beside[way])
                    taken = self.results[Place(mebibytes, 1 + idle, way)]
                    taken.gaps.append(gap)
                    taken.done_beside[what(done)] += 1


def most_often(done: Counter[str]) -> str:
    """Return what was done, and how often if not always."""
    (first, count), total = done.most_common(1)[0], done.total()
    return first if count == total else f"{first} ({count} of {total})"


def print_place(measure: Measure, mebibytes: int, threads: int) -> None:
    """Print the table of one size and number of threads."""
    resident = f"{measure.resident[mebibytes]} MiB resident, {mebibytes} of them ballast"
    print(f"\n{resident}, {threads} thread{'s' * (threads > 1)}")
    print(
        f"  {'':26}{'strategy, proof':26}{'n':>5}{'median':>9}{'quartiles':>19}"
        f" | {'with one more':26}{'n':>5}{'gap':>9}{'longest':>9}  (us)"
    )
    for place, taken in measure.results.items():
        if (place.mebibytes, place.threads) != (mebibytes, threads):
            continue
        line = f"  {place.way:26}"
        if taken.times:
            mid, low, high, _ = _support.quartiles(taken.times)
            line += f"{most_often(taken.done):26}{len(taken.times):5}{mid:9.0f}{low:9.0f} -{high:8.0f}"
        gap, longest = statistics.median(taken.gaps) / 1e3, max(taken.gaps) / 1e3
        print(f"{line:85} | {most_often(taken.done_beside):26}{len(taken.gaps):5}{gap:9.0f}{longest:9.0f}")


def derive(results: Results) -> dict[str, dict[str, Any]]:
    """Return, by number of threads, what the numbers are for: how much faster, and how flat."""
    sizes = sorted({place.mebibytes for place in results})
    small, large = sizes[0], sizes[-1]
    found: dict[str, dict[str, Any]] = {}
    for threads in sorted({place.threads for place in results}):

        def median(size: int, way: str, threads: int = threads) -> float:
            return statistics.median(results[Place(size, threads, way)].times)

        def low(size: int, threads: int = threads) -> float:
            return _support.quartiles(results[Place(size, threads, OURS)].times)[1]

        found[str(threads)] = {
            "done": most_often(results[Place(large, threads, OURS)].done),
            "largest_mib": large,
            "smallest_mib": small,
            "subprocess_to_ours": median(large, THEIRS) / median(large, OURS),
            "fork_to_ours": median(large, FORK) / median(large, OURS),
            "flatness": median(large, OURS) / median(small, OURS),
            "flatness_low": low(large) / low(small),
            "added_by_user": median(large, OURS) / median(large, PLAIN),
        }
    return found


def print_derived(derived: Mapping[str, Mapping[str, Any]]) -> None:
    """Print them."""
    for threads, one in derived.items():
        large, small = one["largest_mib"], one["smallest_mib"]
        print(f"\nwith {threads} thread(s), {OURS} ({one['done']}):")
        print(f"  subprocess.run against it at {large} MiB: {one['subprocess_to_ours']:.1f} times as long")
        low = f"lower quartiles {one['flatness_low']:.2f}"
        print(f"  {large} MiB against {small} MiB: {one['flatness']:.2f}, {low}")
        print(f"  against {PLAIN} without a user at {large} MiB: {one['added_by_user']:.2f}")


def as_json(
    facts: Mapping[str, Any], results: Results, derived: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return all that was taken."""
    rows = []
    for place, taken in results.items():
        row: dict[str, Any] = {**place._asdict(), "gaps_ns": taken.gaps, "times_ns": taken.times}
        row.update(done=dict(taken.done), done_beside_pacer=dict(taken.done_beside))
        rows.append(row)
    return {**facts, "derived": derived, "rows": rows}


def version() -> str:
    """Return the version of safespawn, which a tree that is not installed cannot tell."""
    try:
        return metadata.version("safespawn")
    except metadata.PackageNotFoundError:
        return "not installed"


def kernel_says(file: str, name: str) -> int:
    """Return a number of KiB that a file of /proc has under that name."""
    for line in Path(file).read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(f"{file} has no {name}")


def fitting(sizes: list[int]) -> list[int]:
    """Return the sizes that this machine has the memory for; say which it has not."""
    room = kernel_says("/proc/meminfo", "MemAvailable") // 1024 - 512
    for size in sizes:
        if size > room:
            print(f"{size} MiB left out: there is room for {room} MiB")
    fit = sorted({size for size in sizes if size <= room})
    if not fit:
        raise SystemExit("none of the sizes fits into memory")
    return fit


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="MiB of ballast")
    parser.add_argument("--seconds", type=float, default=0.3, help="for one way in one place, each visit")
    parser.add_argument("--visits", type=int, default=6, help="of every place")
    parser.add_argument("--quick", action="store_true", help="one short visit")
    parser.add_argument("--json", type=Path, help="file for all samples")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.visits = 0.1, 1
    if min(given.sizes) < 1 or given.visits < 1:
        parser.error("sizes and visits are 1 or more")
    if os.geteuid() != 0:
        parser.error("only root can start programs as another user")
    return given


def main() -> None:
    """Measure and print."""
    given = options()
    start = time.monotonic()
    where = _support.scratch()
    where.chmod(0o755)  # the other user runs a program in it
    measure = Measure(_support.static_true(where), Effort(given.seconds, 3 if given.quick else 4))
    lock = safespawn.guards.status()["lock"]["state"]
    page = os.sysconf("SC_PAGESIZE") >> 10
    facts = {
        "machine": _support.machine(),
        "safespawn": version(),
        "lock": lock,
        "page_kib": page,
        "load_before": os.getloadavg()[0],
    }
    print(f"{facts['machine']}; safespawn {facts['safespawn']}, credential lock {lock}")
    print(f"ballast in pages of {page} KiB (MADV_NOHUGEPAGE), all written; load {facts['load_before']:.2f}")
    sizes = fitting(given.sizes)
    for visit in range(given.visits):
        for size in sizes if visit % 2 == 0 else reversed(sizes):
            ballast = _support.paged_ballast(size)
            gc.collect()
            measure.resident[size] = _support.resident_mib()
            huge = kernel_says("/proc/self/smaps_rollup", "AnonHugePages")
            if huge:
                print(f"{size} MiB: {huge} KiB of ours are in huge pages all the same")
            for idle in IDLE:
                measure.visit(size, idle)
            ballast.close()
    for size in sizes:
        for idle in IDLE:
            print_place(measure, size, 1 + idle)
    derived = derive(measure.results)
    print_derived(derived)
    facts.update(load_after=os.getloadavg()[0], seconds=time.monotonic() - start)
    print(f"\n{facts['seconds']:.0f} s, load at the end {facts['load_after']:.2f}")
    if given.json:
        text = json.dumps(as_json(facts, measure.results, derived))
        given.json.write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
