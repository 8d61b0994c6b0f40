"""The helper of the other machine: built for aarch64, and run by an emulator where we are not one.

qemu-user passes most system calls on to our kernel, so messages, descriptors, credentials of the sender,
seals and policies are real. What it has not is CLONE_PARENT: its clone takes no such flag
(linux-user/syscall.c of qemu, CLONE_INVALID_FORK_FLAGS). So nothing can be born there, and the helper has to
say so; births, parked children and what they become are tested natively only.
"""

from __future__ import annotations

import errno
import os
import runpy
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import helpers
import launching
from helping import (
    BAD_POLICIES,
    BORN,
    FAILED,
    MOST,
    READY,
    SHRINK,
    SHRUNK,
    START,
    Running,
    asking,
    policy,
    reap,
    request,
    started,
)
from launching import SEALS, memfd, plans

pytestmark = pytest.mark.threat("T-38")

COMPILER = "aarch64-linux-gnu-gcc"
NATIVE = os.uname().machine == "aarch64"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Build the helper for aarch64, and return the words that run it."""
    compiler = shutil.which(COMPILER)
    if compiler is None:
        pytest.skip(f"{COMPILER} is not installed")
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None and not NATIVE:
        pytest.skip("qemu-aarch64 (package qemu-user) is not installed")
    where = tmp_path_factory.mktemp("aarch64")
    build = runpy.run_path(str(helpers.ROOT / "safespawn" / "_native_build.py"))["build_program"]
    build("helper", where, command=[compiler], machine="aarch64")
    return (*(() if NATIVE else (str(emulator),)), str(where / "helper"))


@contextmanager
def ready(program: tuple[str, ...], allow: object = "any") -> Iterator[Running]:
    """A helper that has begun."""
    with started(policy(allow), program=program) as one:
        assert one.hear() == (READY, 0, 0, 0, 0, [])
        yield one


def test_helper_begins_and_ends(program: tuple[str, ...]) -> None:
    """It says that it is ready, refuses what it does not know, and ends with its socket."""
    with ready(program) as one:
        assert one.serves() == []
        one.ours.shutdown(socket.SHUT_WR)
        assert one.hear() is None
        assert one.process.wait(60) == 127


@pytest.mark.parametrize("arguments", [(), ("3",), ("3", "4"), ("3", "4", "x"), ("-3", "4", "5"), ("3", "4", "5", "6")])
def test_helper_that_nobody_started_ends(program: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Without three numbers there is nobody to tell."""
    done = subprocess.run([*program, *arguments], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (127, b"", b"")


@pytest.mark.parametrize("name", [*BAD_POLICIES, "not-sealed"])
def test_bad_policy_is_refused(program: tuple[str, ...], name: str) -> None:
    """The same bytes are no policy there, and it says so."""
    data, seals = (policy(), 0) if name == "not-sealed" else (BAD_POLICIES[name], SEALS)
    with started(data, seals=seals, program=program) as one:
        assert one.hear() == (FAILED, errno.EPROTO, 0, 0, 0, [])
        assert one.hear() is None


def test_descriptors_of_what_is_no_request_are_closed(program: tuple[str, ...]) -> None:
    """Cut off, empty, of another language, or with more than it says."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with ready(program) as one:
            one.send(asking(START, 3)[:-1], *[write] * 3)
            one.send(b"", write)
            one.send(asking(START, 1, magic=b"nonsense"), write)
            one.send(asking(START, 1, 4), *[write] * MOST)
            assert one.hear() == (FAILED, errno.EPROTO, 0, 0, 4, [])
            assert one.serves() == []
            os.close(write)
            write = -1
            assert os.read(read, 1) == b"", "it has the other end"
    finally:
        for fd in (read, write):
            if fd >= 0:
                os.close(fd)


def test_fork_is_not_answered(program: tuple[str, ...]) -> None:
    """The credentials of the sender come through."""
    with ready(program) as one:
        pid = os.fork()
        if not pid:
            try:
                one.send(asking(77, 0, 5))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert one.serves() == []


def test_policies_are_added_up(program: tuple[str, ...]) -> None:
    """Seven more, and no eighth; one that is none changes nothing."""
    with ready(program) as one, memfd(policy({"programs": ["/bin/true"]}), SEALS) as fd:
        with memfd(BAD_POLICIES["cut-off"], SEALS) as bad:
            one.send(asking(SHRINK, 1, 4), bad)
            assert one.hear() == (FAILED, errno.EPROTO, 0, 0, 4, [])
        for number in range(7):
            one.send(asking(SHRINK, 1, number), fd)
            assert one.hear() == (SHRUNK, 0, 0, 0, number, [])
        one.send(asking(SHRINK, 1, 9), fd)
        assert one.hear() == (FAILED, errno.E2BIG, 0, 0, 9, [])


def test_birth_that_the_kernel_refuses_is_told(program: tuple[str, ...]) -> None:
    """The emulator knows no CLONE_PARENT: the helper says what the clone said, and goes on."""
    plan = launching.own_plan().put(
        path=b"/bin/true\0",
        argv=plans.joined([b"true"]),
        targets=plans.targets(0, 1, 2),
        places=plans.targets(2, 2, 2),
    )
    with ready(program) as one, request(plan.bytes()) as fds:
        one.send(asking(START, 3, 5), *fds)
        told = one.hear()
        assert told is not None
        if NATIVE:
            assert told.op == BORN and reap(told) == 0
        else:
            assert told == (FAILED, errno.EINVAL, 0, 0, 5, [])
        assert one.serves() == []
