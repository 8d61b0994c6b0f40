"""The main job on real input: from a big process with threads, a command as another user, recorded.

    python bench/demo.py [--mib N] [--threads N] [--rounds N]

Shows the decision, the records, and the time against ``subprocess.run`` in the same process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import _support

import safespawn

USER = "nobody"
COMMAND = ["/usr/bin/sha256sum", "/etc/os-release"]


def crowd(count: int) -> Callable[[], None]:
    """Start threads that work now and then; returns what stops them."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            sum(range(1000))

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()

    def end() -> None:
        stop.set()
        for thread in threads:
            thread.join()

    return end


def way(report: safespawn.SpawnReport) -> str:
    """Return what the report says was done."""
    return f"strategy {report.strategy}, proof {report.proof or 'none'}"


def once(ledger: Path, options: dict[str, Any]) -> None:
    """Run the command with the audit on, and show what was decided and kept."""
    with safespawn.audit.open(ledger):
        done = safespawn.run(
            COMMAND, capture_output=True, text=True, audit_tags={"demo": "make run"}, **options
        )
    report = done.report
    print(f"\n$ {' '.join(COMMAND)}\n{done.stdout}", end="")
    window = (report.window_ns or 0) / 1e6
    print(f"exit code {done.returncode}, {report.outcome} after {window:.1f} ms in the window")
    print(f"\ndecision: {way(report)}, {report.threads} threads")
    for reason in report.reasons:
        print(f"  {reason}")
    print(f"  the child became {report.identity}")
    print(f"\nrecords in {ledger}:")
    for line in ledger.read_text(encoding="ascii").splitlines():
        record = json.loads(line)
        print(f"  {record['n']} {record['ev']:14} {len(line)} bytes")
        if record["ev"] == "spawn.intent":
            what = {key: record["what"][key] for key in ("argv", "exe")}
            print(f"      what {json.dumps(what)}\n      want {json.dumps(record['want'])}")
        if record["ev"] == "spawn.exit":
            print(f"      exit {json.dumps(record['exit'])}")


def timed(task: Callable[[], object]) -> int:
    """Return the nanoseconds that the task takes."""
    start = time.perf_counter_ns()
    task()
    return time.perf_counter_ns() - start


#: What a strategy is, for those who see it here for the first time.
MEANING = {
    "launcher": "vfork that runs a small program of ours, which drops the privileges in memory of its own",
    "vfork": "the child is on our memory until it runs the program",
    "fork": "the child has a copy of our memory",
}


def compare(rounds: int, options: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Time both ways in turn; print medians with their spread, what was done, and the ratio."""
    done: Counter[str] = Counter()

    def run_theirs() -> None:
        subprocess.run(COMMAND, check=True, stdout=subprocess.DEVNULL, **theirs)

    def run_ours() -> None:
        report = safespawn.run(COMMAND, check=True, stdout=safespawn.DEVNULL, **options).report
        done[f"{way(report)}: {MEANING.get(report.strategy or '', 'unknown')}"] += 1

    who = f"user={options['user']}" if options else "as ourselves"
    names = [f"subprocess.run, {who}", f"safespawn.run, {who}"]
    tasks = {names[0]: lambda: timed(run_theirs), names[1]: lambda: timed(run_ours)}
    taken = _support.interleave(rounds, tasks)
    _support.table(f"time from call to exit, {rounds} rounds in turn, no audit", taken, names[0])
    first, second = (statistics.median(taken[name]) / 1e6 for name in names)
    print(
        f"  medians in ms: {first:.1f} and {second:.1f}; subprocess.run takes {first / second:.1f} times that"
    )
    for what, count in done.items():
        print(f"  safespawn.run, {count} times: {what}")


def main() -> None:
    """Set the scene and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    _support.print_machine()
    ballast = _support.ballast(given.mib)
    end = crowd(given.threads)
    options: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if os.geteuid() == 0:
        options, theirs = {"user": USER}, {"user": USER, "group": "nogroup", "extra_groups": []}
    else:
        print("not root, so the command runs as ourselves")
    try:
        print(f"{_support.resident_mib()} MiB resident, {threading.active_count()} threads")
        with tempfile.TemporaryDirectory(prefix="safespawn-demo-") as where:
            once(Path(where) / "ledger.jsonl", options)
        compare(given.rounds, options, theirs)
    finally:
        end()
        del ballast


if __name__ == "__main__":
    main()
