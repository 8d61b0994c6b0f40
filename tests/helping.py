"""What it takes to talk to a helper by hand: requests, answers, policies, and a helper of one's own."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import launching
from launching import NONCE, SEALS, memfd, plans
from safespawn import _allow, _binding, _helpers

MAGIC = b"sasshelp"
#: struct ss_ask and struct ss_told of _helper.h. A test compares them with the header.
ASK, TOLD = struct.Struct("<8sIIIIQ16s"), struct.Struct("<8sIiiIQ")
START, SHRINK = 1, 2
READY, BORN, PARKED, GIVEN, SHRUNK, FAILED, RETIRED = range(1, 8)
MOST = 253  # SCM_MAX_FD of the kernel


def marking(mark: Path) -> plans.Plan:
    """Return a plan that a helper carries out: a shell that leaves the mark. It has one variable, and no option."""
    return launching.own_plan().put(
        path=b"/bin/sh\0",
        argv=plans.joined([b"sh", b"-c", b': > "$MARK"']),
        env=plans.joined([b"MARK=" + os.fsencode(mark)]),
        targets=plans.targets(0, 1, 2),
        places=plans.targets(2, 2, 2),
    )


class Told(NamedTuple):
    """One answer of the helper."""

    op: int
    error: int
    pid: int
    idle: int
    id: int
    fds: list[int]


def asking(op: int, nfds: int, number: int = 1, *, magic: bytes = MAGIC, parked: int = 0) -> bytes:
    """Return a request as the core makes it."""
    return ASK.pack(magic, op, nfds, parked, 0, number, NONCE)


def children() -> set[int]:
    """Return the processes whose parent we are, zombies too."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(entry.name))
    return found


class Running:
    """A helper that was started by hand, and our end of its socket."""

    def __init__(self, ours: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """Take over both."""
        self.ours, self.process = ours, process
        self.number = 1000

    def send(self, data: bytes, *fds: int) -> None:
        """Send bytes and copies of descriptors."""
        socket.send_fds(self.ours, [data], list(fds)) if fds else self.ours.send(data)

    def hear(self) -> Told | None:
        """Return its next answer, None at its end. It gives one within the time of any test, or is broken."""
        assert select.select([self.ours], [], [], 60)[0], "no answer"
        data, fds, flags, _ = socket.recv_fds(self.ours, 4096, MOST)
        if not data:
            return None
        assert len(data) == TOLD.size and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        magic, op, error, pid, idle, number = TOLD.unpack(data)
        assert magic == MAGIC
        return Told(op, error, pid, idle, number, fds)

    def serves(self) -> list[Told]:
        """Ask what it must refuse, and return what it said before it did: it serves still."""
        self.number += 1
        before = []
        self.send(asking(77, 0, self.number))
        while (told := self.hear()) is not None and told.id != self.number:
            before.append(told)
        assert told is not None, "it has ended"
        assert told[:5] == (FAILED, errno.EPROTO, 0, told.idle, self.number)
        return before

    def open(self) -> int:
        """Return how many descriptors it has. Needs root: it is not dumpable."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def policy(allow: object = "any", pool: int = 0) -> bytes:
    """Return a policy for who we are."""
    return _binding.HelperEnd().policy(_allow.allowed(allow, keeps=False), pool)


@contextmanager
def started(
    data: bytes,
    *,
    seals: int = SEALS,
    program: tuple[str, ...] = (_helpers.PATH,),
    first: Callable[[socket.socket], None] | None = None,
) -> Iterator[Running]:
    """A helper with this policy; ``first`` may use our end of the socket before it is there."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.pidfd_open(os.getpid())
    with ours, its, memfd(data, seals) as fd:
        if first is not None:
            first(ours)
        words = [*program, *map(str, (its.fileno(), fd, parent))]
        process = subprocess.Popen(words, pass_fds=(its.fileno(), fd, parent), close_fds=True)
        os.close(parent)
        its.close()
        try:
            yield Running(ours, process)
        finally:
            ours.close()
            assert process.wait(60) == 127, "it ends with its socket"


@contextmanager
def request(made: bytes) -> Iterator[list[int]]:
    """The descriptors of a request: plan, report, and something for the three."""
    with ExitStack() as stack:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        yield [stack.enter_context(memfd(made, SEALS)), stack.enter_context(launching.report()), null]


def reap(told: Told) -> int:
    """Wait for a child that was told of, and return its exit code."""
    (pidfd,) = told.fds
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    assert ended is not None and ended.si_pid == told.pid
    return ended.si_status


#: What is no policy.
BAD_POLICIES = {
    "empty": b"",
    "a-byte": b"s",
    "too-long": bytes((1 << 20) + 1),
    "zeroes": bytes(4096),
    "cut-off": policy({"programs": ["/bin/true"]})[:-1],
    "longer": policy({"programs": ["/bin/true"]}) + b"\0",
}
