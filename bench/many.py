"""Many programs at once: spawn_many against spawn in a loop, and libc's posix_spawn in a loop in C.

    python bench/many.py [--rounds N] [--count N] [--ballast MIB]

Each way starts --count static programs and is timed until all of them run; then they are waited for. The ways
take turns, so that the machine's moods hit all alike. Times are for one program. A report, not a test.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _support

import safespawn

LIBC = "posix_spawn in C"
AT_ONCE = (1, 2, 4, 8, 16, 32, 64)


def _timed(count: int, start: Callable[[], list[safespawn.Process]]) -> Callable[[], int]:
    def run() -> int:
        began = time.perf_counter_ns()
        running = start()
        took = time.perf_counter_ns() - began
        for process in running:
            process.wait()
        return took // count

    return run


def ways(program: str, count: int, in_libc: Callable[[str, int], int]) -> dict[str, Callable[[], int]]:
    """Return what is measured, by name."""
    commands = [safespawn.Command([program])] * count

    def one_by_one() -> list[safespawn.Process]:
        return [safespawn.spawn([program]) for _ in range(count)]

    def by_clone() -> list[safespawn.Process]:
        return [safespawn.spawn([program], strategy="clone") for _ in range(count)]

    def together(at_once: int) -> Callable[[], list[safespawn.Process]]:
        return lambda: safespawn.spawn_many(commands, at_once=at_once)

    found = {
        LIBC: lambda: in_libc(program, count) // count,
        "spawn in a loop": _timed(count, one_by_one),
        'the same, strategy="clone"': _timed(count, by_clone),
    }
    found |= {f"spawn_many, at_once={n}": _timed(count, together(n)) for n in AT_ONCE}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--ballast", type=int, default=0)
    options = parser.parse_args()
    where = _support.scratch()
    module = _support.compiled(where, "many.c", "static int64_t many_run(char *, int);")

    def in_libc(path: str, count: int) -> int:
        answer: int = module.lib.many_run(module.ffi.new("char[]", os.fsencode(path)), count)
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer), path)
        return answer

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each that runs holds one
    held = _support.ballast(options.ballast)
    tasks = ways(_support.static_true(where), options.count, in_libc)
    _support.print_machine()
    _support.interleave(1, tasks)  # warm
    taken = _support.interleave(max(2, options.rounds), tasks)
    _support.table(f"{options.count} programs, {_support.resident_mib()} MiB resident", taken, LIBC)
    del held


if __name__ == "__main__":
    main()
