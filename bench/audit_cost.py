"""What the audit ledger costs: a spawn with it and without, a record, a crowd of writers, and verifying.

    python bench/audit_cost.py [--rounds N] [--records N] [--where DIR]

Each kind of ledger has a process of its own, and they spawn in turn, so that the machine's moods hit all
alike; the cost is the difference to the process without a ledger in the same turn. Records of a crowd are
appended by threads in C (audit_cost.c), where Python's own lock does not come between. --where: a directory
on the disk that is to be measured. A report, not a test.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _support

import safespawn
from safespawn import audit
from safespawn.audit import verifier

HERE = Path(__file__).parent
#: Spawns that one process makes before it is another's turn.
BLOCK = 10

#: Each of its commands has an argument that none had before: redaction has to look at them all.
NEW = "require, new arguments"

#: By name: mode (None for no ledger), and whether it has keys.
KINDS: dict[str, tuple[audit.Mode | None, bool]] = {
    "no ledger": (None, False),
    "best_effort": ("best_effort", False),
    "require": ("require", False),
    NEW: ("require", False),
    "require, keys": ("require", True),
    "durable": ("durable", False),
    "durable, keys": ("durable", True),
}
#: Who spawns in turn. Those that flush are apart: the others would wait for the disk that those keep busy.
TURNS = (
    ("no ledger", "best_effort", "require", NEW, "require, keys"),
    ("no ledger", "durable", "durable, keys"),
)


def opened(where: Path, name: str) -> audit.Ledger | None:
    """Open the ledger of a kind."""
    mode, keyed = KINDS[name]
    return audit.open(path_of(where, name), mode, keys=where / "keys" if keyed else None) if mode else None


def path_of(where: Path, name: str) -> Path:
    """Return where that ledger is."""
    return where / f"{name.replace(', ', '-')}.jsonl"


# ------------------------------------------------------------------ spawns in turn


@contextlib.contextmanager
def worker(where: Path, name: str, program: str) -> Iterator[Callable[[], list[int]]]:
    """Fork a process that spawns a block when it is asked to; yield what asks it."""
    (heard, ask), (answer, tell) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ask)
        _work(where, name, program, heard, tell)
    os.close(heard)
    os.close(tell)

    def block() -> list[int]:
        os.write(ask, b".")
        taken: list[int] = json.loads(os.read(answer, 65536))
        return taken

    try:
        yield block
    finally:
        os.close(ask)
        os.waitpid(pid, 0)
        os.close(answer)


def _work(where: Path, name: str, program: str, heard: int, tell: int) -> None:
    try:
        opened(where, name)
        number = itertools.count()
        while os.read(heard, 1):
            taken = []
            for _ in range(BLOCK):
                argv = [program, "--job", f"/srv/jobs/{next(number) if name == NEW else 0}"]
                start = time.perf_counter_ns()
                safespawn.run(argv)
                taken.append(time.perf_counter_ns() - start)
            os.write(tell, json.dumps(taken).encode("ascii"))
    finally:
        os._exit(0)


def spawns(where: Path, program: str, rounds: int, kinds: Sequence[str]) -> None:
    """Print what a spawn costs with each of these kinds of ledger, the first being none."""
    with contextlib.ExitStack() as stack:
        ask = {name: stack.enter_context(worker(where, name, program)) for name in kinds}
        for block in ask.values():  # warm
            block()
        blocks: dict[str, list[list[int]]] = defaultdict(list)
        for _ in range(max(rounds // BLOCK, 2)):
            for name, block in ask.items():
                blocks[name].append(block())
    taken = {name: [sample for block in many for sample in block] for name, many in blocks.items()}
    _support.table(f"A spawn and its wait, {len(taken['no ledger'])} each in turn", taken, "no ledger")
    print("\nwhat that costs: median and quartiles of the differences between blocks of one turn")
    for name in kinds[1:]:
        pairs = zip(blocks[name], blocks["no ledger"], strict=True)
        costs = [(statistics.median(one) - statistics.median(none)) / 1e3 for one, none in pairs]
        low, mid, high = statistics.quantiles(costs, n=4)
        base = statistics.median(taken["no ledger"]) / 1e3
        print(f"  {name:34}{mid:9.1f}{low:8.1f}-{high:<8.1f}{100 * mid / base:8.1f} % of a spawn   (us)")


# ------------------------------------------------------------------ records


def appended(ledger: audit.Ledger, records: int, *, gate: bool) -> list[int]:
    """Return the nanoseconds that each of so many records took, from Python."""
    taken = []
    for _ in range(records):
        start = time.perf_counter_ns()
        ledger.append("guard.config", None, lambda: {"pad": "x" * 1200}, gate=gate)
        taken.append(time.perf_counter_ns() - start)
    return taken


def records_alone(where: Path, records: int) -> None:
    """Print what one record costs that Python makes, in each kind of ledger; in durable flushed by itself."""
    taken = {}
    for name in [name for name in KINDS if KINDS[name][0] and name != NEW]:
        ledger = opened(where, name)
        assert ledger is not None  # all kinds but the first have one
        gate = ledger.mode == "durable"
        with ledger:
            appended(ledger, 50, gate=gate)
            taken[name] = appended(ledger, max(records // 20, 20) if gate else records, gate=gate)
    _support.table("A record of 1.5 kB from Python, one thread", taken, "require")


def shared_flush(where: Path, records: int) -> None:
    """Print how many durable records threads write that share their flushes."""
    print("\nDurable records a second, each on the disk before it counts")
    for count in (1, 4, 16):
        ledger = opened(where, "durable, keys")
        assert ledger is not None
        each = max(records // 20, 20) // count + 1
        with ledger:
            threads = [
                threading.Thread(target=appended, args=(ledger, each), kwargs={"gate": True})
                for _ in range(count)
            ]
            start = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - start
        print(f"  {f'{count} threads':34}{each * count / took:9.0f}")


def crowds(where: Path, records: int) -> None:
    """Print how long appends wait for each other, from threads in C."""
    program = where / "audit_cost"
    flags = ["-std=gnu11", "-O2", "-fno-tree-loop-distribute-patterns", "-Wno-unused-function"]
    source = [HERE / "audit_cost.c", "-Wl,-z,now", "-lpthread", "-ldl"]
    subprocess.run(["cc", *flags, "-o", program, *source], check=True)
    taken: dict[str, list[int]] = defaultdict(list)
    answer = subprocess.run([program, where, str(records)], check=True, capture_output=True, text=True)
    for line in answer.stdout.splitlines():
        name, _, value = line.rpartition("\t")
        taken[name].append(int(value))
    _support.table("A record of 1.4 kB from C, waiting included", taken, "without keys, 1 threads")
    for name, samples in taken.items():
        print(f"  longest, {name:25}{max(samples) / 1e6:9.2f} ms")
    print("  (target: no append waits longer than 50 ms)")


# ------------------------------------------------------------------ verifying


def verifying(where: Path, key: str) -> None:
    """Print how fast the ledgers that were written here are verified."""
    print("\nVerified")
    for name in ("require", "require, keys"):
        start = time.perf_counter()
        seen = verifier.verify(
            path_of(where, name),
            key=bytes.fromhex(key) if KINDS[name][1] else None,
            registry=where / "keys" if KINDS[name][1] else None,
        )
        took, size = time.perf_counter() - start, path_of(where, name).stat().st_size
        count = seen.counts["records"]
        speed = f"{count / took:9.0f} records/s {size / took / 1e6:7.1f} MB/s"
        print(f"  {name:34}{speed}   ({count} records, {'fine' if seen.ok else 'not fine'})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="spawns with each kind of ledger")
    parser.add_argument("--records", type=int, default=5000, help="records of each kind")
    parser.add_argument("--where", type=Path, help="a directory on the disk to be measured")
    options = parser.parse_args()
    where = Path(options.where or _support.scratch()) / f"audit-{os.getpid()}"
    where.mkdir(mode=0o700)
    try:
        key = audit.keys.initialise(where / "keys")
        _support.print_machine()
        program = _support.static_true(where)
        for kinds in TURNS:
            spawns(where, program, options.rounds, kinds)
        records_alone(where, options.records)
        shared_flush(where, options.records)
        crowds(where, options.records)
        verifying(where, key)
    finally:
        shutil.rmtree(where)


if __name__ == "__main__":
    main()
