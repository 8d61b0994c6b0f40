"""Mutation testing: changes the sources in small ways, one at a time, and looks which test notices.

    python tests/mutation/mutate.py [--group guards|child|verifier|verifier-core]... [--sample N] [--seconds N]
                                 [--seed N] [--jobs N] [--quick | --wide] [--again] [--results FILE]

Each mutant is built in a copy of the tree and the tests that are near to it run until one fails. ``--again`` tries
only the survivors of the results that are not explained, ``--wide`` gives them all other tests of their group;
``--quick`` leaves it at the tests that a warm process runs (warm.py). Results are added to a JSON file: by the id of
a mutant its verdict, the test that killed it, and what was changed. A mutant that has a verdict there already is not
tried again otherwise. TMPDIR=/dev/shm spares the disk, which else takes most of the time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
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
from warm import Warm
from workshop import FUZZ_TEST, ROOT, Workshop

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = ROOT / "safespawn"
#: Of one run of tests whose usual time is not known.
RUN_SECONDS = 600
#: What it is known of which lines of it a test reaches.
WARM_FILES = TARGETS["verifier"].files


@functools.cache
def text_of(file: str) -> str:
    """Return a file of the package as it is at first: somebody may edit it meanwhile."""
    return (PACKAGE / file).read_text(encoding="utf-8")


def mutants_of(file: str) -> list[Mutant]:
    """Return every mutant of a file of the package."""
    text = text_of(file)
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

    def __init__(self, results: Path, jobs: int, end: float, *, is_quick: bool) -> None:
        self.path, self.end, self._is_quick = results, end, is_quick
        self.results: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
        self._lock = threading.Lock()
        self._places = [tempfile.TemporaryDirectory(prefix="safespawn-mutants-") for _ in range(jobs)]
        self._free = [Workshop(Path(place.name)) for place in self._places]
        built = [workshop.build() for workshop in self._free]
        assert None not in built, "the original does not build"
        assert len(set(built)) == 1, "the same source gives the same code"
        self.original = built[0]
        self._library, self._launcher = self._free[0].library(), self._free[0].launcher()
        self._warm: dict[tuple[Path, Run], Warm] = {}
        self._patience: dict[Run, float] = {}

    def prepare(self, target: Target, runs: set[Run]) -> None:
        """Run what will be run without any mutant: all of it must pass, and its time is known then."""
        if target.warm and runs != set(target.wide):
            for workshop in self._free:
                self._warm[workshop.where, target.warm] = workshop.warm(target.warm, WARM_FILES)
        for run in sorted(runs - {target.warm}) if not self._is_quick else ():
            tried = self._free[0].test(run, RUN_SECONDS)
            assert tried.failed is None, f"{run} fails without a mutant: {tried.failed}\n{tried.said}"
            self._patience[run] = 5 * tried.seconds + 20

    def close(self) -> None:
        """End what was started."""
        for warm in self._warm.values():
            warm.close()
        self._warm = {}

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
        """Build a mutant, run tests, keep what came of it: first those of a warm process, where there is one."""
        if time.monotonic() > self.end:
            return
        with self._lock:
            workshop = self._free.pop()
        text = text_of(mutant.file)
        try:
            workshop.write(mutant.file, applied(text, mutant.edit))
            self.keep(mutant, **self._judge(mutant, workshop, target, runs))
        finally:
            workshop.write(mutant.file, text)
            with self._lock:
                self._free.append(workshop)

    def _judge(self, mutant: Mutant, workshop: Workshop, target: Target, runs: tuple[Run, ...]) -> dict[str, Any]:
        if (workshop.where, target.warm) in self._warm:
            said = self._judge_warm(mutant, workshop, target)
            left = runs if said["verdict"] == "unplanted" else tuple(run for run in runs if run != target.warm)
            if said["verdict"] not in ("unplanted", "survived") or self._is_quick or not left:
                return said
            runs = left
        if mutant.file.endswith(".c") and workshop.build("-O0") is None:
            return {"verdict": "uncompiled"}
        for run in runs:
            tried = workshop.test(run, self._patience.get(run, RUN_SECONDS))
            if tried.failed:
                return {"verdict": "killed", "by": tried.failed.removeprefix("tests/"), "seconds": round(tried.seconds, 1)}
        if mutant.file.endswith(".c") and workshop.build() == self.original:
            return {"verdict": "equivalent"}
        return {"verdict": "survived", "wide": runs == target.wide}

    def _judge_warm(self, mutant: Mutant, workshop: Workshop, target: Target) -> dict[str, Any]:
        path, lines, more = str(workshop.package / mutant.file), None, {}
        if not mutant.file.endswith(".c"):
            lines = python_operators.lines_of(text_of(mutant.file), mutant.edit.start)
        elif target is TARGETS["child"]:
            built = workshop.launcher()
            if built is None or built == self._launcher:  # it has not all of the child's code
                return {"verdict": "uncompiled" if built is None else "unplanted"}
            path, more = "", {"library": ""}
        else:
            built = workshop.library()
            if built is None or built == self._library:
                return {"verdict": "uncompiled" if built is None else "equivalent"}
            # Its lines are not traced: what calls it is.
            path, more = str(workshop.package / "audit" / "_verify_scan.py"), {"library": str(workshop.where / "verify.so")}
        began = time.monotonic()
        warm = self._warm[workshop.where, target.warm]
        said = warm.judge(file=path, lines=lines, function=mutant.function, **more)
        if said["verdict"] == "survived" and target is TARGETS["verifier-core"] and not workshop.fuzz():
            said = {"verdict": "killed", "by": FUZZ_TEST}
        said.update({"by": said["by"].removeprefix("tests/")} if "by" in said else {"wide": False})
        return {**said, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    """Try what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--group", action="append", choices=TARGETS)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.json"))
    asked = parser.parse_args()
    bench = Bench(asked.results, asked.jobs, time.monotonic() + asked.seconds, is_quick=asked.quick)
    known = tomllib.loads(Path(__file__).with_name("explained.toml").read_text(encoding="utf-8"))
    for group in asked.group or TARGETS:
        target, verdicts = TARGETS[group], {key: one["verdict"] for key, one in bench.results.items()}
        mutants = chosen(group, asked.sample, asked.seed)
        if asked.wide or asked.again:
            survived = {
                key for key, one in bench.results.items()
                if one["verdict"] == "survived" and not (asked.wide and one["wide"]) and key not in known
            }  # fmt: skip
            mutants = [mutant for mutant in all_mutants(group) if mutant.id in survived]
        else:
            mutants = [mutant for mutant in mutants if mutant.id not in verdicts]
        def runs_of(mutant: Mutant, target: Target = target) -> tuple[Run, ...]:
            return target.wide if asked.wide else target.near_to(mutant.function)

        bench.prepare(target, {run for mutant in mutants for run in runs_of(mutant)})
        with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
            for future in [pool.submit(bench.try_one, mutant, target, runs_of(mutant)) for mutant in mutants]:
                future.result()
        bench.close()
    print(f"{len(bench.results)} mutants: " + ", ".join(
        f"{sum(one['verdict'] == word for one in bench.results.values())} {word}"
        for word in ("killed", "survived", "equivalent", "uncompiled")))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
