"""What it takes to start the launcher by hand: a plan, and a page to tell on."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import helpers
from safespawn import _binding

sys.path.insert(0, str(helpers.ROOT / "fuzz"))
try:
    import plans
finally:
    sys.path.remove(str(helpers.ROOT / "fuzz"))

__all__ = ["memfd", "own_plan", "plans", "report", "told"]

PAGE = mmap.PAGESIZE
#: struct ss_report of _plan.h begins with stage and error. A test compares this with the header.
REPORT, REPORT_BYTES = struct.Struct("=ii"), 72
STAGES = _binding.stages()

SEAL, SHRINK, GROW, WRITE = fcntl.F_SEAL_SEAL, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE
SEALS = SEAL | SHRINK | GROW | WRITE
F_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1
NONCE = bytes(range(0xA0, 0xB0))


@contextmanager
def memfd(content: bytes, seals: int = 0) -> Iterator[int]:
    """A memfd with these bytes and seals, open for the block."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        if seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def report() -> Iterator[int]:
    """A page to tell on, as the parent makes it: until the launcher says more, it was launched."""
    with memfd(REPORT.pack(STAGES.index("launch"), 0).ljust(PAGE, b"\0")) as page:
        yield page


def told(page: int) -> tuple[str, int]:
    """Return the stage and the errno in a page."""
    stage, error = REPORT.unpack(os.pread(page, REPORT.size, 0))
    return STAGES[stage], error


def own_plan() -> plans.Plan:
    """Return a plan for who we are, and nothing else yet."""
    plan = plans.Plan(NONCE)
    creds = _binding.Seen().credentials
    for name in ("ruid", "euid", "suid", "rgid", "egid", "sgid", "effective", "permitted", "inheritable"):
        setattr(plan.want.expected, name, getattr(creds, name))
    return plan
