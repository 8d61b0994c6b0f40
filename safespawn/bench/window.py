"""The spawn window of the core with all guards and with none, measured in C on the core itself.

The program is bench/lock_cost.c of the tree; it includes the core's C sources, which a wheel does not have.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict

from .results import UNITS, Results, Row
from .tools import TREE, Tools, Unable

#: The two windows of lock_cost.c that are compared.
BARE, GUARDED = "window, no proof asked", "window, locked, all checks"

_SOURCE = TREE / "bench" / "lock_cost.c"
_FLAGS = ("-fno-tree-loop-distribute-patterns", "-Wno-unused-function", "-Wl,-z,now")
_PATIENCE = 300


def samples(tools: Tools, rounds: int) -> dict[str, list[int]]:
    """Return nanoseconds by what was measured, one for each round.

    Raises Unable where that cannot be built or run.
    """
    if not _SOURCE.is_file():
        raise Unable("needs the source tree: the core's C sources are not in a wheel")
    program = tools.compile_c("lock_cost", *_FLAGS, str(_SOURCE), "-lpthread", "-ldl")
    try:
        done = subprocess.run(
            [program, tools.target, str(rounds)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unable(f"lock_cost: {problem}") from problem
    if done.returncode:
        raise Unable(f"lock_cost ended with {done.returncode}: {done.stderr.strip()}")
    taken: dict[str, list[int]] = defaultdict(list)
    for line in done.stdout.splitlines():
        name, _, value = line.rpartition("\t")
        taken[name].append(int(value))
    return taken


def measure(results: Results, tools: Tools, rounds: int) -> None:
    """Add the two windows to the results, or why they are missing."""
    try:
        taken = samples(tools, rounds)
    except Unable as problem:
        for way in (BARE, GUARDED):
            results.lacks(way, "targets", str(problem))
        return
    for way in (BARE, GUARDED):
        each = [[one] for one in taken[way]]
        results.rows.append(Row("targets", 0, 2, "small", way, "self", 1, "window", UNITS["window"], 0, each))
