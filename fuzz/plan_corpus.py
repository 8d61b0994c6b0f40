"""Makes fuzz/corpus/plan anew: plans of real spawns, plans that are none, odd ones, scripts.

    python fuzz/plan_corpus.py

Needed when the layout of a plan has changed (tests/test_fuzz_corpus.py says so). Plans are taken
from real spawns by a program that stands in for the launcher: it copies its plan to its standard
output and ends. What differs from machine to machine is then set to fixed values.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import plans

import safespawn
from safespawn import _binding, _launcher

CORPUS = Path(__file__).parent / "corpus" / "plan"

STAND_IN = """
#include <stdlib.h>
#include <sys/sendfile.h>

int
main(int argc, char **argv)
{
	off_t start = 0;

	if (argc == 4)
		(void)sendfile(1, atoi(argv[1]), &start, 1 << 20);
	return 127;
}
"""

#: struct sock_filter: "allow", and a load before it.
_ALLOW = bytes.fromhex("2000000000000000 060000000000ff7f")

#: What depends on the other threads of the process that makes the files.
COMPANY = _binding.lib.SS_REQUIRE_LOCK | _binding.lib.SS_REQUIRE_SEAL | _binding.lib.SS_AMONG_OTHERS

#: Requests by the name of their file. Nothing of them is carried out: only the plan is wanted.
REQUESTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "real-smallest": (["true"], {"executable": "/bin/true", "env": {}}),
    "real-as-another-user": (
        ["/bin/true", "-x", ""],
        {"user": 1000, "group": 1000, "extra_groups": (), "env": {"A": "1", "HOME": "/"}},
    ),
    "real-every-option": (
        ["name", "first", "", "third"],
        {
            "executable": "/bin/true",
            "env": {"A": "1", "EMPTY": "", "PATH": "/usr/bin:/bin"},
            "cwd": "/",
            "root": "/",
            "start_new_session": True,
            "controlling_terminal": 0,
            "umask": 0o27,
            "nice": 5,
            "scheduler": os.SCHED_BATCH,
            "cpu_affinity": [0, 1, 63, 64],
            "rlimits": {4: 0, 7: (64, 128)},
            "cgroup": "/",
            "pdeathsig": signal.SIGKILL,
            "sigmask": [signal.SIGUSR1],
            "restore_signals": False,
            "user": 1000,
            "group": 1000,
            "extra_groups": [4, 24, 1000],
            "caps": ["net_bind_service"],
            "securebits": ["noroot"],
            "namespaces": ["mount", "pid", "net", "ipc", "uts", "cgroup"],
            "seccomp": _ALLOW,
            "pin": True,
            "deadline": 30,
        },
    ),
    "real-user-namespace": (
        ["/bin/true"],
        {
            "namespaces": {"user": {"users": [(0, 0, 1)], "groups": [(0, 0, 1)]}},
            "user": 0,
            "group": 0,
            "extra_groups": (),
            "env": {},
        },
    ),
    "real-many-groups": (
        ["/bin/true"],
        {"user": 1000, "group": 1000, "extra_groups": range(500, 1500), "env": {}},
    ),
    "real-many-descriptors": (["/bin/true"], {"fds": {3 + 3 * i: 0 for i in range(200)}, "env": {}}),
    "real-many-strings": (["/bin/true", *"abc" * 60], {"env": {f"V{i}": "x" * (i % 7) for i in range(90)}}),
}

#: Inputs of fuzz_plan.c that begin with 'M': lengths and counts in the order of take_head there, edits.
SCRIPTS = {
    "script-nothing": b"M",
    "script-of-everything": b"M" + bytes((9, 0, 3, 0, 2, 0, 4, 0, 5, 0, 2, 0, 16, 0, 6, 7, 1, 2)),
    "script-longest": b"M" + bytes((31, 0, 15, 0, 15, 0, 31, 0, 31, 0, 64, 0, 63, 0, 31, 31, 1, 7)),
    "script-slips": b"M" + bytes((9, 249, 3, 0, 2, 247, 4, 0, 5, 0, 2, 0, 16, 0, 6, 7, 0, 2)),
    "script-places-too-long": b"M" + bytes((9, 0, 3, 0, 2, 0, 4, 0, 5, 0, 2, 0, 16, 0, 6, 7, 241, 2)),
    "script-inherits-too-many": b"M" + bytes((9, 0, 3, 0, 2, 0, 4, 0, 5, 0, 2, 0, 16, 0, 6, 7, 1, 3)),
    "script-edits": b"M" + bytes((9, 0, 3, 0, 2, 0, 4, 0, 5, 0, 2, 0, 16, 0, 6, 7, 1, 2, 5))
    + bytes((1, 9, 0, 40, 2, 120, 0, 41, 0, 7, 1, 200)),
}  # fmt: skip


@functools.cache
def stand_in_fd() -> int:
    """Return a descriptor of the program, which has no name any more."""
    with tempfile.TemporaryDirectory() as work:
        source, made = Path(work, "stand_in.c"), Path(work, "stand_in")
        source.write_text(STAND_IN, encoding="ascii")
        subprocess.run(["gcc", str(source), "-o", str(made)], check=True)
        return os.open(made, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def stand_in() -> Iterator[None]:
    """Have every launch run a program that tells its plan."""
    hold, fd = _launcher.hold, stand_in_fd()
    _launcher.hold = lambda: (_launcher._look(fd), None)  # noqa: SLF001
    try:
        yield
    finally:
        _launcher.hold = hold


def capture(argv: Any, options: dict[str, Any]) -> bytes:
    """Return the plan of this spawn. Raises what is wrong with the request."""
    with tempfile.TemporaryFile() as output:
        try:
            safespawn.run(argv, strategy="launcher", stdin=safespawn.DEVNULL, stdout=output, **options)
        except safespawn.UnsafeSpawn:
            output.seek(0)
            if data := output.read():  # it has ended without a word
                return data
            raise
    raise AssertionError("the launcher ran instead of its stand-in")


def plain(data: bytes) -> bytes:
    """Return the plan without what belongs to one process or machine."""
    plan = plans.Plan.read(data)
    want = plan.want
    plan.nonce, plan.parent_pid = bytes(range(16)), 1
    for name in plans.POINTERS:
        setattr(want, name, _binding.ffi.NULL)
    for name in ("ruid", "euid", "suid", "rgid", "egid", "sgid"):
        setattr(want.expected, name, 0)
    for name in ("effective", "permitted", "inheritable"):
        setattr(want.expected, name, (1 << 41) - 1)
    want.expected.epoch = 0
    want.flags = want.flags & ~COMPANY | _binding.lib.SS_REQUIRE_ALONE
    want.launcher_fd, want.deadline_ns = 512, 0
    want.size, want.mtime_ns, want.ctime_ns = (1, 2, 3) if want.flags & _binding.lib.SS_PINNED else (0, 0, 0)
    plan.mask &= 1 << signal.SIGUSR1 - 1
    return plan.bytes()


def example() -> plans.Plan:
    """Return a plan with something in each part: the one that is made evil."""
    return plans.Plan().put(
        path=b"/bin/true\0",
        argv=plans.joined([b"true", b"", b"second"]),
        env=plans.joined([b"A=1", b"B="]),
        targets=plans.targets(0, 1, 2, 7),
        groups=bytes((4, 0, 0, 0, 24, 0, 0, 0)),
        rlimits=bytes((4, *bytes(23))),
        cpus=b"\1" + bytes(7),
        filter=_ALLOW,
        cwd=b"/tmp\0",
        places=plans.targets(2, 2, 3, 0),
    )


def made() -> dict[str, bytes]:
    """Return all files but those of real spawns."""
    files = {"good-example": example().bytes(), **SCRIPTS}
    files |= {f"evil-{name}": make(example()) for name, make in plans.EVIL.items()}
    files |= {f"good-{name}": make(example()) for name, make in plans.ODD.items()}
    return files


def real() -> dict[str, bytes]:
    """Return the files of real spawns. Needs root."""
    with stand_in():
        return {name: plain(capture(argv, options)) for name, (argv, options) in REQUESTS.items()}


def main() -> None:
    """Write all files of ours; others in the directory (findings) stay."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, data in {**made(), **real()}.items():
        (CORPUS / name).write_bytes(data)
    sys.stdout.write(f"{len(list(CORPUS.iterdir()))} files in {CORPUS}\n")


if __name__ == "__main__":
    main()
