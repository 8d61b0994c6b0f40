"""Plants each fault of tests/seeded_faults.py in a copy of the tree, and has its test fail there.

    python tests/mutation/seeded.py [NAME...]

First the test must pass without the fault. Exit 1: a fault was not noticed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from seeded_faults import FAULTS, Fault
from workshop import Workshop

SECONDS = 600
#: What a build makes.
BUILT = ("_native_ffi.abi3.so", "launcher", "helper")
#: Most of their tests build the whole core with hooks, from the sources as they are.
HOOKED = ("test_exploits.py", "test_launch_exploits.py", "test_helper_exploits.py")


def is_noticed(workshop: Workshop, fault: Fault, built: dict[Path, bytes]) -> bool:
    """Plant it, run its test, take it out again."""
    path = workshop.package / fault.file
    text = path.read_text(encoding="utf-8")
    assert text.count(fault.was) == 1, fault
    workshop.write(fault.file, text.replace(fault.was, fault.becomes))
    try:
        needs_build = fault.file.endswith(".c")
        if needs_build and fault.test.partition("::")[0] in HOOKED:
            if workshop.test((fault.test,), SECONDS).failed is not None:
                return True  # else it is a pair that needs no hooks
        assert not needs_build or workshop.build("-O0") is not None, f"{fault.file} does not compile"
        return workshop.test((fault.test,), SECONDS).failed is not None
    finally:
        workshop.write(fault.file, text)
        put_back(built)


def put_back(built: dict[Path, bytes]) -> None:
    """Have core and programs again as they were built without a fault."""
    for path, data in built.items():
        path.unlink()
        path.write_bytes(data)
        path.chmod(0o755)


def main(names: list[str]) -> int:
    """Try them all, or those that are named."""
    faults = {name: FAULTS[name] for name in names or FAULTS}
    with tempfile.TemporaryDirectory(prefix="safespawn-faults-") as where:
        workshop = Workshop(Path(where))
        assert workshop.build("-O0") is not None
        tried = workshop.test(tuple(sorted({fault.test for fault in faults.values()})), 3 * SECONDS)
        assert tried.failed is None, f"{tried.failed} fails without a fault:\n{tried.said}"
        built = {workshop.package / name: (workshop.package / name).read_bytes() for name in BUILT}
        missed = []
        for name, fault in faults.items():
            noticed = is_noticed(workshop, fault, built)
            print(f"{'noticed' if noticed else 'MISSED':<8} {name}: {fault.test}", flush=True)
            missed += [] if noticed else [name]
    print(f"seeded faults: {len(faults)}, noticed {len(faults) - len(missed)}" + (f", missed {missed}" if missed else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
