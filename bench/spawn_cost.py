"""Cost of starting a static program and waiting for it, side by side in one process.

    python bench/spawn_cost.py [--rounds N] [--big MIB]

The yardstick is posix_spawn + waitpid of libc, called from C. Measured at about 10 MB of
resident ballast and at --big MiB (4096 by default). A report, not a test.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _support

import safespawn


def timed(task: Callable[[], object]) -> Callable[[], int]:
    """Return a function that runs the task and gives the nanoseconds."""

    def run() -> int:
        start = time.perf_counter_ns()
        task()
        return time.perf_counter_ns() - start

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--big", type=int, default=4096, help="MiB of ballast")
    options = parser.parse_args()
    where = _support.scratch()
    program, c_run = _support.static_true(where), _support.baseline(where)
    _support.print_machine()
    tasks = {
        "C posix_spawn + waitpid": lambda: c_run(program),
        "safespawn.run": timed(lambda: safespawn.run([program])),
        "safespawn.spawn().wait()": timed(lambda: safespawn.spawn([program]).wait()),
        "safespawn.run, deadline=5": timed(lambda: safespawn.run([program], deadline=5)),
        "subprocess.run": timed(lambda: subprocess.run([program], check=False)),
    }
    medians = []
    for mebibytes in (10, options.big):
        ballast = _support.ballast(mebibytes)
        _support.interleave(50, tasks)  # warm
        taken = _support.interleave(options.rounds, tasks)
        title = f"{_support.resident_mib()} MiB resident, {options.rounds} rounds in turn"
        ratios = _support.table(title, taken, "C posix_spawn + waitpid")
        medians.append({name: _support.quartiles(samples)[0] for name, samples in taken.items()})
        del ballast
        print(f"  run against C: {ratios['safespawn.run']:.2f} (target: at most 1.25)")
    small, big = medians
    print("\nbig against small:")
    for name in tasks:
        print(f"  {name:34}{big[name] / small[name]:6.2f}")
    print("  (target for safespawn.run: at most 1.10)")


if __name__ == "__main__":
    main()
