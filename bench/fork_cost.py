"""What `prepare_fork` saves of a fork, and what it costs: side by side in one run.

    python bench/fork_cost.py [--rounds N] [--sizes MIB ...]

For each size two processes have that much memory, written page by page; one of them calls
`prepare_fork`. Then both are asked in turn: for a fork whose child ends at once, and for a
program started by strategy `fork`. A report, not a test.
"""

from __future__ import annotations

import argparse
import json
import mmap
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import _support

import safespawn

SIZES = (500, 2048)


class Worker:
    """A process with ballast that answers what it is asked."""

    def __init__(self, mebibytes: int, program: str) -> None:
        """Start it, and wait until it has its memory."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(mebibytes), program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask("look")

    def ask(self, what: str) -> Any:
        """Return the answer to a question of :func:`work`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()


def _spawned(program: str) -> int:
    start = time.perf_counter_ns()
    safespawn.run([program], strategy="fork")
    return time.perf_counter_ns() - start


def work(mebibytes: int, program: str) -> None:
    """Answer questions from standard input: look, prepare, fork, spawn."""
    block = mmap.mmap(-1, mebibytes << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block[:: mmap.PAGESIZE] = b"\x5a" * ((mebibytes << 20) // mmap.PAGESIZE)
    for line in sys.stdin:
        question = line.strip()
        if question == "spawn":
            answer: Any = _spawned(program)
        else:
            report = safespawn.prepare_fork(collapse=question == "prepare", measure=question == "fork")
            cost = report.after
            answer = {"entries": cost.entries, "huge": cost.huge, "took_ns": report.took_ns}
            answer = cost.fork_ns if question == "fork" else answer
        print(json.dumps(answer), flush=True)


def compare(mebibytes: int, rounds: int, program: str) -> None:
    """Measure one size and print it."""
    as_it_is, prepared = Worker(mebibytes, program), Worker(mebibytes, program)
    before = as_it_is.ask("look")
    after = prepared.ask("prepare")
    tasks = {
        f"{name}, {title}": lambda worker=worker, question=question: worker.ask(question)  # type: ignore[misc]
        for question, name in (("fork", "fork"), ("spawn", "run, strategy='fork'"))
        for title, worker in (("as it is", as_it_is), ("prepared", prepared))
    }
    taken = _support.interleave(rounds, tasks)
    _support.table(f"{mebibytes} MiB, {rounds} rounds in turn", taken, "fork, as it is")
    took = after["took_ns"] / 1e9
    print(f"  prepare_fork took {took:.2f} s; entries to copy: {before['entries']} before,")
    print(f"  {after['entries']} after; huge pages: {before['huge'] >> 20} and {after['huge'] >> 20} MiB")
    as_it_is.end()
    prepared.end()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="MIB")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(int(options.worker[0]), options.worker[1])
        return
    program = _support.static_true(_support.scratch())
    _support.print_machine()
    for mebibytes in options.sizes:
        compare(mebibytes, options.rounds, program)


if __name__ == "__main__":
    main()
