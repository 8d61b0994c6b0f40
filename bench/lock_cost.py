"""What the credential lock costs: in a window, at rest, for a change, and to arm.

    python bench/lock_cost.py [--rounds N] [--objects N]

The first part is measured in C on the core itself (lock_cost.c), in turn, in a process with
two threads. Arming is timed in fresh processes that have --objects more libraries loaded.
A report, not a test.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _support

from safespawn.bench import tools, window

HERE = Path(__file__).parent

ARM = """
import ctypes, json, sys, threading, time
paths = sys.argv[1:]
kept = [ctypes.CDLL(path) for path in paths]
from safespawn import guards
seen = guards.arm()
hold = threading.Event()
others = [threading.Thread(target=hold.wait) for _ in range(3)]
for other in others:
    other.start()
print(json.dumps([seen["state"], seen["objects"], seen["slots"], seen["patched"], seen["arming_us"]]))
hold.set()
"""

LIBRARY = "int setuid(unsigned); int prctl(int, ...); int use_{0}(void) {{ return setuid(0) + prctl(3); }}\n"


def libraries(where: Path, count: int) -> list[str]:
    """Compile that many small libraries, each bound to two functions of the family."""
    made = []
    for number in range(count):
        source, library = where / f"l{number}.c", where / f"libl{number}.so"
        source.write_text(LIBRARY.format(number), encoding="ascii")
        subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-z,now", "-o", library, source], check=True)
        made.append(str(library))
    return made


def arming(paths: list[str], rounds: int) -> None:
    """Print how long arming takes with these libraries loaded before."""
    environment = {**os.environ, "SAFESPAWN_ARM": "0", "PYTHONPATH": str(HERE.parent)}
    runs = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", ARM, *paths], check=True, capture_output=True, text=True, env=environment
        )
        runs.append(json.loads(done.stdout))
    state, objects, slots, patched, _ = runs[0]
    times = sorted(run[-1] / 1e3 for run in runs)
    print(
        f"  {state}, {objects} objects, {slots} slots, {patched} led to us: "
        f"median {statistics.median(times):.1f} ms, {times[0]:.1f} to {times[-1]:.1f} ms"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--objects", type=int, default=150)
    options = parser.parse_args()
    where = _support.scratch()
    _support.print_machine()
    with tools.Tools() as built:
        taken = window.samples(built, options.rounds)
    _support.table(f"in C, {options.rounds} rounds in turn", taken, window.BARE)
    median = {name: statistics.median(samples) / 1e3 for name, samples in taken.items()}
    added = median[window.GUARDED] - median[window.BARE]
    parts = median["lock: enter and leave"] + median["lock: look, nothing changed"]
    print(f"  added to a window: {added:+.1f} us; enter, leave, look: {parts:.2f} us (target: at most 5)")
    print(f"  look, nothing changed: {median['lock: look, nothing changed']:.2f} us (target: under 1)")
    print("\narming (target: under 20 ms with 150 objects):")
    arming([], 9)
    arming(libraries(where, options.objects), 9)


if __name__ == "__main__":
    main()
