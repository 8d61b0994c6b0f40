"""What the scripts here share: a static program, ballast, turns, tables. The rest is safespawn.bench's."""

from __future__ import annotations

import importlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safespawn.bench import machine, spread, tools

HERE = Path(__file__).parent


def scratch() -> Path:
    """Return a directory for what is built here; it goes with the machine's /tmp."""
    return Path(tempfile.mkdtemp(prefix="safespawn-bench-"))


def compiled(where: Path, source: str, declarations: str) -> Any:
    """Compile a C file of this directory and return the module with what it declares."""
    from cffi import FFI

    maker, name = FFI(), f"_safespawn_{Path(source).stem}"
    maker.cdef(declarations)
    maker.set_source(name, (HERE / source).read_text(encoding="utf-8"))
    maker.compile(tmpdir=str(where), verbose=False)
    sys.path.insert(0, str(where))
    return importlib.import_module(name)


def static_true(where: Path) -> str:
    """Compile the static program that ends with 0 at once."""
    program = where / "static-true"
    subprocess.run(["cc", "-O2", "-static", "-o", program, tools.SOURCES / "target.c"], check=True)
    return str(program)


def ballast(mebibytes: int) -> bytearray:
    """Return that much resident memory: every page is written."""
    return bytearray(b"\x5a") * (mebibytes << 20)


def resident_mib() -> int:
    """Return our resident set in MiB."""
    return machine.of_kib("/proc/self/status", "VmRSS") >> 10


def quartiles(samples: list[int]) -> tuple[float, float, float, float]:
    """Return median, lower and upper quartile, 99th percentile, in microseconds."""
    found = spread.spread(samples)
    last = spread.quantile(sorted(samples), 0.99)
    return found.median / 1e3, found.low / 1e3, found.high / 1e3, last / 1e3


def interleave(rounds: int, tasks: Mapping[str, Callable[[], int]]) -> dict[str, list[int]]:
    """Run the tasks in turn, so that the machine's moods hit them all alike."""
    taken: dict[str, list[int]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            taken[name].append(task())
    return taken


def table(title: str, taken: Mapping[str, list[int]], against: str) -> dict[str, float]:
    """Print medians with their spread and the ratio to one of them; return the ratios."""
    base = statistics.median(taken[against])
    print(f"\n{title}")
    print(f"  {'':34}{'median':>9}{'quartiles':>17}{'p99':>9}{'ratio':>8}   (us)")
    ratios = {}
    for name, samples in taken.items():
        mid, low, high, p99 = quartiles(samples)
        ratios[name] = statistics.median(samples) / base
        print(f"  {name:34}{mid:9.1f}{low:8.1f}-{high:<8.1f}{p99:9.1f}{ratios[name]:8.2f}")
    return ratios


def print_machine() -> None:
    """Print what the numbers are measured on."""
    print(machine.line(machine.facts()))
