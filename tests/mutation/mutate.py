"""Mutation testing: changes the sources in small ways, one at a time, and looks which test notices.

    python tests/mutation/mutate.py [--group guards|child|verifier|verifier-core]... [--sample N] [--seconds N]
                                 [--seed N] [--jobs N] [--wide] [--results FILE]

Each mutant is built in a copy of the tree and the tests that are near to it run until one fails. ``--wide`` gives
survivors of the results all other tests of their group. Results are added to a JSON file: by the id of a mutant its
verdict, the test that killed it, and what was changed. A mutant that has a verdict there already is not tried again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import c_operators
import python_operators
from mutant import Mutant, applied, named
from targets import TARGETS, Run, Target
from workshop import ROOT, Workshop

PACKAGE = ROOT / "safespawn"
#: Of one run of tests; the longest takes half of it on a busy machine.
RUN_SECONDS = 600


def mutants_of(file: str) -> list[Mutant]:
    """Return every mutant of a file of the package."""
    text = (PACKAGE / file).read_text(encoding="utf-8")
    operators = c_operators if file.endswith(".c") else python_operators
    return named(file, text, operators.edits(text))


def all_mutants(group: str) -> list[Mutant]:
    """Return every mutant of a group of files."""
    return [mutant for file in TARGETS[group].files for mutant in mutants_of(file)]


def chosen(group: str, sample: int | None, seed: int) -> list[Mutant]:
    """Return a sample, the same for the same seed; a larger one begins with the smaller."""
    mutants = all_mutants(group)
    random.Random(f"{seed} {group}").shuffle(mutants)
    return mutants[:sample]


class Bench:
    """Workshops for several at once, and what came of each mutant."""

    def __init__(self, results: Path, jobs: int, end: float) -> None:
        self.path, self.end = results, end
        self.results: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
        self._lock = threading.Lock()
        self._places = [tempfile.TemporaryDirectory(prefix="safespawn-mutants-") for _ in range(jobs)]
        self._free = [Workshop(Path(place.name)) for place in self._places]
        built = [workshop.build() for workshop in self._free]
        assert None not in built, "the original does not build"
        assert len(set(built)) == 1, "the same source gives the same code"
        self.original = built[0]

    def keep(self, mutant: Mutant, **said: Any) -> None:
        """Write down what came of one."""
        with self._lock:
            before = self.results.get(mutant.id, {})
            self.results[mutant.id] = {**before, **mutant._asdict(), **said}
            self.results[mutant.id].pop("edit", None)
            lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in sorted(self.results.items()))
            self.path.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
            print(f"{said['verdict']:<12} {mutant.file}:{mutant.line} {mutant.operator}: {mutant.was!r} -> "
                  f"{mutant.becomes!r}  {said.get('by') or ''}", flush=True)  # fmt: skip

    def try_one(self, mutant: Mutant, target: Target, runs: tuple[Run, ...]) -> None:
        """Build a mutant, run tests, keep what came of it."""
        if time.monotonic() > self.end:
            return
        with self._lock:
            workshop = self._free.pop()
        text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
        try:
            workshop.write(mutant.file, applied(text, mutant.edit))
            self.keep(mutant, **self._judge(mutant, workshop, target, runs))
        finally:
            workshop.write(mutant.file, text)
            with self._lock:
                self._free.append(workshop)

    def _judge(self, mutant: Mutant, workshop: Workshop, target: Target, runs: tuple[Run, ...]) -> dict[str, Any]:
        if mutant.file.endswith(".c"):
            built = workshop.build()
            if built is None or built == self.original:
                return {"verdict": "uncompiled" if built is None else "equivalent"}
        else:
            compile((workshop.package / mutant.file).read_text(), mutant.file, "exec")
        for run in runs:
            tried = workshop.test(run, RUN_SECONDS)
            if tried.failed:
                return {"verdict": "killed", "by": tried.failed.removeprefix("tests/"), "seconds": round(tried.seconds, 1)}
        return {"verdict": "survived", "wide": runs == target.wide}


def baseline(bench: Bench, group: str, mutants: list[Mutant], wide: bool) -> None:
    """Run what will be run without any mutant: all of it must pass."""
    target = TARGETS[group]
    runs = set(target.wide) if wide else {run for mutant in mutants for run in target.near_to(mutant.function)}
    for run in sorted(runs):
        tried = bench._free[0].test(run, RUN_SECONDS)
        assert tried.failed is None, f"{run} fails without a mutant: {tried.failed}\n{tried.said}"


def main() -> None:
    """Try what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--group", action="append", choices=TARGETS)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--unchecked", action="store_true", help="the tests are known to pass without a mutant")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.json"))
    asked = parser.parse_args()
    bench = Bench(asked.results, asked.jobs, time.monotonic() + asked.seconds)
    for group in asked.group or TARGETS:
        target, verdicts = TARGETS[group], {key: one["verdict"] for key, one in bench.results.items()}
        mutants = chosen(group, asked.sample, asked.seed)
        if asked.wide:
            survived = {key for key, one in bench.results.items() if one["verdict"] == "survived" and not one["wide"]}
            mutants = [mutant for mutant in all_mutants(group) if mutant.id in survived]
        else:
            mutants = [mutant for mutant in mutants if mutant.id not in verdicts]
        if not asked.unchecked:
            baseline(bench, group, mutants, asked.wide)
        with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
            for future in [pool.submit(bench.try_one, mutant, target,
                                       target.wide if asked.wide else target.near_to(mutant.function))
                           for mutant in mutants]:
                future.result()
    print(f"{len(bench.results)} mutants: " + ", ".join(
        f"{sum(one['verdict'] == word for one in bench.results.values())} {word}"
        for word in ("killed", "survived", "equivalent", "uncompiled")))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
