"""Popen of the standard module, the same under install(), and ours, side by side in one process.

    python bench/popen_cost.py [--rounds N]

Starts, pipes, 1 MiB both ways, waits with a time-out, a kill during communicate, 200 at once. A report,
not a test.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import _support

import safespawn
from safespawn import subprocess as ours

DATA = b"x" * (1 << 20)
AT_ONCE = 200

Task = Callable[[Any], object]


def _kill_in_communicate(module: Any) -> None:
    process = module.Popen(["/bin/sleep", "100"], stdout=subprocess.PIPE)
    process.kill()
    process.communicate()


def _many(module: Any) -> None:
    made = [module.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(AT_ONCE)]
    for process in made:
        process.communicate(b"x")


def tasks(program: str) -> dict[str, tuple[int, Task]]:
    """Return what is measured: by which part the rounds are cut, and the task."""
    return {
        "Popen([static]).wait()": (1, lambda module: module.Popen([program]).wait()),
        "run(['/bin/true'])": (1, lambda module: module.run(["/bin/true"])),
        "run(['true'])": (1, lambda module: module.run(["true"])),
        "run, capture_output": (1, lambda module: module.run(["/bin/true"], capture_output=True)),
        "Popen.wait(timeout=10)": (2, lambda module: module.Popen(["/bin/true"]).wait(timeout=10)),
        "1 MiB through cat": (2, lambda module: module.run(["/bin/cat"], input=DATA, capture_output=True)),
        "kill, then communicate": (2, _kill_in_communicate),
        f"{AT_ONCE} with pipes at once": (50, _many),
    }


def _timed(task: Task, module: Any, *, installed: bool) -> Callable[[], int]:
    def run() -> int:
        # What comes before is another way, or install(), which looks through all memory: the first run fills
        # the caches again, for each way alike.
        (safespawn.install if installed else safespawn.uninstall)()
        task(module)
        start = time.perf_counter_ns()
        task(module)
        return time.perf_counter_ns() - start

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=600)
    options = parser.parse_args()
    program = _support.static_true(_support.scratch())
    _support.print_machine()
    for name, (part, task) in tasks(program).items():
        ways = {
            "subprocess": _timed(task, subprocess, installed=False),
            "safespawn.subprocess": _timed(task, ours, installed=False),
            "subprocess under install()": _timed(task, subprocess, installed=True),
        }
        _support.interleave(2, ways)  # warm
        taken = _support.interleave(max(6, options.rounds // part), ways)
        _support.table(name, taken, "subprocess")


if __name__ == "__main__":
    main()
