"""What the benchmarks share: the yardstick in C, a static program, ballast, tables."""

from __future__ import annotations

import importlib
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def scratch() -> Path:
    """Return a directory for what is built here; it goes with the machine's /tmp."""
    return Path(tempfile.mkdtemp(prefix="safespawn-bench-"))


def baseline(where: Path) -> Callable[[str], int]:
    """Compile baseline.c and return its one function: nanoseconds of a spawn and a wait."""
    from cffi import FFI

    maker = FFI()
    maker.cdef("static int64_t baseline_run(char *);")
    maker.set_source("_safespawn_baseline", (HERE / "baseline.c").read_text(encoding="utf-8"))
    maker.compile(tmpdir=str(where), verbose=False)
    sys.path.insert(0, str(where))
    module: Any = importlib.import_module("_safespawn_baseline")

    def run(path: str) -> int:
        answer: int = module.lib.baseline_run(module.ffi.new("char[]", os.fsencode(path)))
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer), path)
        return answer

    return run


def static_true(where: Path) -> str:
    """Compile the smallest static program that ends with 0."""
    source, program = where / "true.c", where / "static-true"
    source.write_text("int main(void) { return 0; }\n", encoding="ascii")
    subprocess.run(["cc", "-O2", "-static", "-o", program, source], check=True)
    return str(program)


def ballast(mebibytes: int) -> bytearray:
    """Return that much resident memory: every page is written."""
    return bytearray(b"\x5a") * (mebibytes << 20)


def paged_ballast(mebibytes: int) -> mmap.mmap:
    """Return that much private memory in ordinary pages, never huge ones, each of them written.

    A bytearray has huge pages where the machine is set to give them unasked, and then a fork
    copies a five-hundredth of the page tables.
    """
    size = mebibytes << 20
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_NOHUGEPAGE)
    block[:: mmap.PAGESIZE] = b"\x5a" * (size // mmap.PAGESIZE)
    return block


def resident_mib() -> int:
    """Return our resident set in MiB (proc_pid_statm(5))."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") >> 20


def quartiles(samples: list[int]) -> tuple[float, float, float, float]:
    """Return median, lower and upper quartile, 99th percentile, in microseconds."""
    low, mid, high = statistics.quantiles(samples, n=4)
    return mid / 1e3, low / 1e3, high / 1e3, statistics.quantiles(samples, n=100)[98] / 1e3


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


def machine() -> str:
    """Return what the numbers were measured on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return (
        f"{platform.system()} {platform.release()} {platform.machine()}, {model or 'unknown processor'},"
        f" {os.cpu_count()} processors; Python {platform.python_version()},"
        f" {' '.join(platform.libc_ver())}"
    )


def print_machine() -> None:
    """Print that."""
    print(machine())
