"""Runs `worker.py` on an interpreter, in a directory and a session of its own, and reads what it wrote."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import interpreters

#: Of a log, that many are kept.
LINES = 20
WORKER = Path(__file__).with_name("worker.py")


class Run(NamedTuple):
    """One module in one mode on one interpreter; with ids, only those of its tests."""

    version: str
    mode: str
    module: str
    ids: tuple[str, ...] = ()


class Came(NamedTuple):
    """What a run came to: each test's outcome and text, the programs started by us if it ended, the end of its log."""

    outcomes: dict[str, str]
    texts: dict[str, str]
    started: int | None
    log: str
    seconds: float

    def counted(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(Counter(self.outcomes.values()).items()))
        return f"{counts}  DID NOT END" if self.started is None else f"{counts}  ({self.started} started by us)"


class Bench:
    """The interpreters that are here, and what of their tests is."""

    def __init__(self, versions: Iterable[str], limit: float, jobs: int) -> None:
        self.limit, self.jobs = limit, jobs
        found = {version: interpreters.find(version) for version in versions}
        self.missing = [version for version, path in found.items() if path is None]
        self.pythons = {version: path for version, path in found.items() if path is not None}
        self.paths = {version: interpreters.search_path(version, path) for version, path in self.pythons.items()}

    def has(self, version: str, module: str) -> bool:
        """Return whether this interpreter was installed with that module of tests."""
        look = f"import importlib.util as u, sys; sys.exit(u.find_spec('test.{module}') is None)"
        return subprocess.run([self.pythons[version], "-c", look], check=False).returncode == 0

    def run_all(self, runs: Iterable[Run]) -> dict[Run, Came]:
        """Do the runs, some at a time, with a line for each that is done."""
        runs = list(runs)
        with ThreadPoolExecutor(self.jobs) as pool:
            return dict(zip(runs, pool.map(self.run, runs), strict=True))

    def run(self, run: Run) -> Came:
        """Run the worker in an empty directory, and read what it wrote."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="cpy", ignore_cleanup_errors=True) as place:
            results, log, inside = Path(place, "results"), Path(place, "log"), Path(place, "t")
            inside.mkdir()
            argv = [self.pythons[run.version], str(WORKER), run.mode, run.module, str(results), str(self.limit)]
            with log.open("wb") as output:
                start_and_wait([*argv, self.paths[run.version], *run.ids], inside, output.fileno(), self.limit + 30)
            came = read(results, log)._replace(seconds=time.monotonic() - began)
        what = f"{len(run.ids)} tests of {run.module}" if run.ids else run.module
        print(f"{run.version:5} {run.mode:9} {what:50} {came.seconds:4.0f} s  {came.counted()}", flush=True)
        return came


def start_and_wait(argv: list[str], place: Path, output: int, limit: float) -> None:
    """Run a worker to its end, or to its limit, and end whatever it leaves in its session."""
    keep = ("PATH", "HOME", "USER", "LOGNAME")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    env |= {"LANG": "C.UTF-8", "TMPDIR": str(place)}
    with subprocess.Popen(
        argv, cwd=place, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    ) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def end_of(log: Path) -> str:
    """Return the last lines of a log; of a worker that was at its limit, where its threads were."""
    _, limit, stacks = log.read_text(encoding="utf-8", errors="replace").rpartition("Timeout (")
    lines = (limit + stacks).strip().splitlines()
    return "\n".join(lines[:LINES] if limit else lines[-LINES:])


def read(results: Path, log: Path) -> Came:
    """Read a worker's lines. A test that it was to run and that has no outcome was `not run`, or hung or died.

    The text of those is what went wrong for the whole class or module, or the end of the log.
    """
    outcomes: dict[str, str] = {}
    texts: dict[str, str] = {}
    started = None
    text = end_of_log = end_of(log)
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
        fields = json.loads(line)
        started = fields.get("end", started)
        text = fields.get("fixture", text)
        for test in fields.get("chosen", ()):
            outcomes[test], texts[test] = "not run", text
        if "id" in fields:
            outcomes[fields["id"]] = fields.get("outcome", "hung or died")
            texts[fields["id"]] = fields.get("text", text)
    texts |= {test: text for test, outcome in outcomes.items() if outcome in ("not run", "hung or died")}
    return Came(outcomes, texts, started, end_of_log, 0)
