"""Runs every fuzz target for its share of a time, and says what each has done and reached.

    python fuzz/all_targets.py [--seconds N] [TARGET...]

C is built with clang and libFuzzer, Python runs under Atheris, or hypothesis where there is no Atheris. Each
starts from a copy of its corpus. What is built stays in build/fuzz. An input that shows something is kept in
build/fuzz/found; then the answer is 1. ``edges`` are those that libFuzzer has met, of the target with all
that is compiled into it; ``lines`` are those of the files under test that the corpus reaches as it has grown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
ROOT = FUZZ.parent
BUILD = ROOT / "build" / "fuzz"
FOUND = BUILD / "found"

#: As in tests/fuzzing.py; -fno-omit-frame-pointer: reports lead to where it was.
CLANG = [
    "-std=gnu11", "-g", "-O1", "-Wno-unused-function", "-fno-omit-frame-pointer",
    "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined",
]  # fmt: skip
#: Code of a child is not profiled in the product, because it writes to our memory; here it has its own.
GCOV = ["-std=gnu11", "-O0", "-w", "--coverage", "-DFUZZ_MAIN", "-Dno_profile_instrument_function=unused"]


@dataclass(frozen=True)
class Target:
    """One boundary: its name, the files under test in safespawn/, and how long an input may be, in bytes."""

    name: str
    sources: tuple[str, ...]
    longest: int = 4096

    @property
    def is_c(self) -> bool:
        """Whether it is written in C."""
        return self.sources[0].endswith(".c")

    @property
    def program(self) -> Path:
        """What is run."""
        return BUILD / self.name if self.is_c else FUZZ / f"fuzz_{self.name}.py"


TARGETS = (
    Target("native", ("_native.c", "_child.c", "_find.c", "_spawned.c")),
    Target("plan", ("_wire.c",), 40000),
    Target("policy", ("_allowed.c",)),
    Target("message", ("_asked.c",)),
    Target("objects", ("_objects.c", "_rewrite.c"), 8192),
    Target("record", ("_text.c", "_telling.c")),
    Target("verify", ("_verify.c",), 20000),
    Target("spec", ("_checks.py", "_values.py", "_privileges.py")),
    Target("marshal", ("_binding.py", "_environ.py", "_places.py"), 2000),
    Target(
        "encode", ("audit/_record.py", "audit/_redact.py", "audit/_word_reader.py", "audit/_shapes.py"), 3000
    ),
    Target("toml", ("_policy_file.py", "_policy_lines.py", "_policy_values.py"), 2000),
)


@dataclass(frozen=True)
class Outcome:
    """What came of one target. ``edges`` and ``lines``: how many of how many, None where that is not told."""

    name: str
    how: str
    runs: int
    seconds: float
    edges: tuple[int, int] | None
    lines: tuple[int, int] | None
    found: tuple[Path, ...]
    failed: bool
    said: str

    def line(self) -> str:
        """Return it as a line of the report."""
        parts = [
            f"{self.name:8} {self.how:10} {self.runs:9} runs {self.runs / max(self.seconds, 0.1):8.0f}/s"
        ]
        parts.append(f"edges {_share(self.edges)}")
        parts.append(f"lines {_share(self.lines)}")
        return "  ".join(parts)


def _share(part: tuple[int, int] | None) -> str:
    if part is None:
        return f"{'not told':>19}"
    if not part[1]:
        return f"{part[0]:5} {'':13}"
    return f"{part[0]:5} of {part[1]:5} {100 * part[0] // part[1]:3}%"


def _has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


# ------------------------------------------------------------------------ building


def _newest_source() -> float:
    sources = [*(ROOT / "safespawn").glob("*.[ch]"), *FUZZ.glob("*.[ch]"), Path(__file__)]
    return max(path.stat().st_mtime for path in sources)


def _compile(compiler: str, flags: list[str], target: Target, made: Path) -> None:
    if made.exists() and made.stat().st_mtime > _newest_source():
        return
    made.parent.mkdir(parents=True, exist_ok=True)
    words = [compiler, *flags, str(FUZZ / f"fuzz_{target.name}.c"), "-o", str(made)]
    done = subprocess.run(words, cwd=made.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"fuzz: {target.name} does not build\n{done.stderr}")


def build(targets: Iterable[Target]) -> None:
    """Build what is written in C: for libFuzzer, and once more to count lines."""
    for compiler in ("clang", "gcc"):
        if shutil.which(compiler) is None:
            raise SystemExit(f"fuzz: {compiler} is not installed")
    in_c = [target for target in targets if target.is_c]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(_compile, "clang", CLANG, one, one.program) for one in in_c]
        jobs += [pool.submit(_compile, "gcc", GCOV, one, _counting(one)) for one in in_c]
        for job in jobs:
            job.result()


def _counting(target: Target) -> Path:
    return BUILD / "lines" / target.name / target.name


# ------------------------------------------------------------------------- running


def _environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "SAFESPAWN_AUDIT": ""}


def _command(target: Target, corpus: Path, seconds: float) -> list[str]:
    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={target.longest}",
        f"-dict={FUZZ / f'{target.name}.dict'}",
        f"-artifact_prefix={FOUND / target.name}-",
        "-print_final_stats=1",
        "-timeout=30",
        "-rss_limit_mb=4096",
        "-verbosity=1",
        str(corpus),
    ]
    if target.is_c:
        return [str(target.program), *options]
    way = ["atheris", *options] if _has_atheris() else ["hypothesis", str(seconds)]
    return [sys.executable, str(target.program), *way]


def _last(pattern: str, text: str) -> int | None:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else None


def parse(text: str) -> tuple[int, tuple[int, int] | None]:
    """Return the runs that a fuzzer tells of, and the edges that it has met of those there are."""
    runs = _last(r"number_of_executed_units: (\d+)", text) or _last(r"Done (\d+) runs", text) or 0
    met, whole = _last(r"\bcov: (\d+)", text), _last(r"\((\d+) inline 8-bit counters\)", text)
    return runs, None if met is None else (met, whole or 0)  # Atheris does not say how many there are


def run(target: Target, seconds: float) -> Outcome:
    """Run one target from a copy of its corpus."""
    FOUND.mkdir(parents=True, exist_ok=True)
    before = set(FOUND.iterdir())
    with tempfile.TemporaryDirectory(prefix="safespawn-fuzz-") as work:
        corpus = Path(shutil.copytree(FUZZ / "corpus" / target.name, Path(work) / "corpus"))
        begin = time.monotonic()
        done = subprocess.run(
            _command(target, corpus, seconds),
            cwd=work,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        took = time.monotonic() - begin
        lines = _lines(target, corpus) if done.returncode == 0 else None
    runs, edges = parse(done.stdout)
    how = "libFuzzer" if target.is_c else "Atheris" if _has_atheris() else "hypothesis"
    found = tuple(sorted(set(FOUND.iterdir()) - before))
    return Outcome(target.name, how, runs, took, edges, lines, found, done.returncode != 0, done.stdout)


# -------------------------------------------------------------------- what is reached


def _lines(target: Target, corpus: Path) -> tuple[int, int] | None:
    return _lines_of_c(target, corpus) if target.is_c else _lines_of_python(target, corpus)


def _lines_of_python(target: Target, corpus: Path) -> tuple[int, int] | None:
    sources = ",".join(str(ROOT / "safespawn" / name) for name in target.sources)
    done = subprocess.run(
        [sys.executable, str(target.program), "lines", sources, str(corpus)],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    told = re.search(r"lines (\d+) of (\d+)", done.stdout)
    return (int(told[1]), int(told[2])) if told else None


def _lines_of_c(target: Target, corpus: Path) -> tuple[int, int] | None:
    program = _counting(target)
    for old in program.parent.glob("*.gcda"):
        old.unlink()
    files = sorted(map(str, corpus.iterdir()))
    subprocess.run([str(program), *files], cwd=program.parent, capture_output=True, check=False)
    counts = [str(path) for path in program.parent.glob("*.gcda")]
    told = subprocess.run(
        ["gcov", "--json-format", "--stdout", *counts], cwd=program.parent, capture_output=True, check=False
    )
    seen: dict[tuple[str, int], bool] = {}
    for row in told.stdout.splitlines():
        for file in json.loads(row)["files"]:
            if Path(file["file"]).name in target.sources:
                for line in file["lines"]:
                    key = (file["file"], line["line_number"])
                    seen[key] = seen.get(key, False) or line["count"] > 0
    return (sum(seen.values()), len(seen)) if seen else None


# -------------------------------------------------------------------------- the report


def report(outcomes: list[Outcome], seconds: float) -> str:
    """Return the last line: whether anything was found, and where it is kept."""
    failed = [one for one in outcomes if one.failed]
    runs = sum(one.runs for one in outcomes)
    if not failed:
        return f"fuzz: {len(outcomes)} targets, {runs} runs in {seconds:.0f} s, nothing found"
    kept = [str(path) for one in failed for path in one.found] or ["no input was kept"]
    names = ", ".join(one.name for one in failed)
    return f"fuzz: {len(failed)} of {len(outcomes)} targets found something ({names}): {', '.join(kept)}"


def main() -> int:
    """Run what the command line asks for; 1 if anything was found."""
    parser = argparse.ArgumentParser(description="Run the fuzz targets.")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together (default 60)")
    names = [target.name for target in TARGETS]
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; all by default")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(names):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    chosen = [target for target in TARGETS if not given.targets or target.name in given.targets]
    build(chosen)
    outcomes = []
    for target in chosen:
        outcomes.append(run(target, given.seconds / len(chosen)))
        print(outcomes[-1].line(), flush=True)
        if outcomes[-1].failed:
            print(outcomes[-1].said[-6000:], flush=True)
    print(report(outcomes, given.seconds))
    return int(any(one.failed for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
