"""What helper and core say to each other, when one of them is not what it should be.

The helper is started by hand, and is sent what no core of ours would send. Whatever it is, it goes on
serving, keeps none of the descriptors, and starts nothing. The core is told what no helper of ours
would tell: it keeps no descriptor either, and takes nobody's word for a child of its own.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import helpers
import launching
import safespawn
from helping import (
    ASK,
    BAD_POLICIES,
    BORN,
    FAILED,
    GIVEN,
    MAGIC,
    MOST,
    PARKED,
    READY,
    RETIRED,
    SHRINK,
    SHRUNK,
    START,
    TOLD,
    Running,
    asking,
    children,
    marking,
    policy,
    reap,
    request,
    started,
)
from launching import SEALS, memfd, plans
from safespawn import _binding, helper

pytestmark = pytest.mark.threat("T-38")

LAYOUT = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include "_helper.h"

int
main(void)
{
	printf("%zu %zu %zu %zu %zu ", sizeof(struct ss_ask), offsetof(struct ss_ask, nfds), offsetof(struct ss_ask, parked),
	       offsetof(struct ss_ask, id), offsetof(struct ss_ask, nonce));
	printf("%zu %zu %zu %zu ", sizeof(struct ss_told), offsetof(struct ss_told, error), offsetof(struct ss_told, pid),
	       offsetof(struct ss_told, id));
	printf("%d %d %d %d %d %u\n", SS_ASK_START, SS_ASK_SHRINK, SS_TOLD_READY, SS_TOLD_FAILED, SS_TOLD_RETIRED,
	       SS_MESSAGE_FDS);
	return 0;
}
"""


def test_messages_are_those_of_the_header(tmp_path: Path) -> None:
    """The layout that this file speaks is that of _helper.h."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "layout.c").write_text(LAYOUT, encoding="ascii")
    made = tmp_path / "layout"
    include = f"-I{helpers.ROOT / 'safespawn'}"
    subprocess.run([compiler, include, str(tmp_path / "layout.c"), "-o", str(made)], check=True)
    told = [int(word) for word in subprocess.check_output([str(made)]).split()]
    assert told == [ASK.size, 12, 16, 24, 32, TOLD.size, 12, 16, 24, START, SHRINK, READY, FAILED, RETIRED, MOST]


# ---------------------------------------------------------------- a helper by hand


@pytest.fixture
def running() -> Iterator[Running]:
    """A helper that is ready and may start anything."""
    with started(policy()) as one:
        assert one.hear() == (READY, 0, 0, 0, 0, [])
        yield one


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a program leaves behind, if it runs."""
    return tmp_path / "mark"


@pytest.fixture
def plan(mark: Path) -> plans.Plan:
    """A plan that a helper carries out: its program leaves the mark."""
    return marking(mark)


@contextmanager
def watched(running: Running, mark: Path | None = None) -> Iterator[Callable[[int], list[int]]]:
    """Give out descriptors, and see afterwards that the helper has none of them, and has started nothing."""
    count, before = (running.open() if os.geteuid() == 0 else 0), children()
    reads: list[int] = []
    writes: list[int] = []

    def give(number: int) -> list[int]:
        for _ in range(number):
            read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            reads.append(read)
            writes.append(write)
        return writes

    try:
        yield give
        assert running.serves() == []
        while writes:
            os.close(writes.pop())
        assert [os.read(read, 1) for read in reads] == [b""] * len(reads), "somebody has the other end"
        assert os.geteuid() != 0 or running.open() == count
        assert children() == before
        assert mark is None or not mark.exists()
    finally:
        for fd in (*reads, *writes):
            os.close(fd)


def test_whole_request_is_served(running: Running, plan: plans.Plan, mark: Path) -> None:
    """So what is refused below is refused for what is wrong with it."""
    with request(plan.bytes()) as fds:
        running.send(asking(START, 3, 5), *fds)
        told = running.hear()
    assert told is not None and told[:2] == (BORN, 0) and told.id == 5
    assert reap(told) == 0
    assert mark.exists()
    assert running.serves() == []


@pytest.mark.parametrize("nfds", [0, 1, 3])
def test_cut_off_request_is_no_request(running: Running, mark: Path, nfds: int) -> None:
    """Of every length that is too short, none at all among them."""
    with watched(running, mark) as give:
        fds = give(nfds)
        for length in range(ASK.size):
            running.send(asking(START, nfds)[:length], *fds)


@pytest.mark.parametrize("extra", [1, 8, 4096, 100_000])
def test_longer_request_is_no_request(running: Running, plan: plans.Plan, mark: Path, extra: int) -> None:
    """What is behind its end is not ignored."""
    with watched(running, mark) as give, request(plan.bytes()) as fds:
        running.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        running.send(asking(START, 3) + bytes(extra), *fds)
        running.send(asking(START, 3) + bytes(extra), *give(3))


@pytest.mark.parametrize("magic", [b"sasshelq", b"plehssas", bytes(8), b"\xff" * 8, b"sasspoly"])
def test_request_of_another_language_is_none(
    running: Running, plan: plans.Plan, mark: Path, magic: bytes
) -> None:
    """The first word says that it is one."""
    with watched(running, mark) as give, request(plan.bytes()) as fds:
        running.send(asking(START, 3, magic=magic), *fds)
        running.send(asking(START, 2, magic=magic), *give(2))


@pytest.mark.parametrize(
    ("said", "sent"),
    [(0, 1), (1, 0), (2, 3), (3, 2), (4, 3), (2**31, 3), (2**32 - 1, 3), (0, MOST), (MOST - 1, MOST), (MOST, 3), (MOST + 1, MOST)],
)
def test_descriptors_that_are_not_as_said_are_closed(
    running: Running, plan: plans.Plan, mark: Path, said: int, sent: int
) -> None:
    """The count in a request is that of what came with it. It is told: a helper may have had no room for them."""
    with watched(running, mark) as give, request(plan.bytes()) as fds:
        more = give(sent)
        running.send(asking(START, said, 4), *[*fds, *more][:sent])
        why = errno.EMFILE if said > sent else errno.EPROTO
        assert running.hear() == (FAILED, why, 0, 0, 4, [])


@pytest.mark.parametrize("op", [0, 3, 77, 2**31, 2**32 - 1])
def test_unknown_request_is_refused(running: Running, plan: plans.Plan, mark: Path, op: int) -> None:
    """It is told, because it is whole."""
    with watched(running, mark) as give, request(plan.bytes()) as fds:
        running.send(asking(op, 3, 4), *fds)
        assert running.hear() == (FAILED, errno.EPROTO, 0, 0, 4, [])
        running.send(asking(op, MOST, 5), *give(MOST))
        assert running.hear() == (FAILED, errno.EPROTO, 0, 0, 5, [])


@pytest.mark.parametrize("nfds", [0, 1])
@pytest.mark.parametrize("parked", [0, 1, 2**32 - 1])
def test_start_without_a_plan_is_refused(running: Running, mark: Path, nfds: int, parked: int) -> None:
    """Nothing is born for it."""
    with watched(running, mark) as give:
        running.send(asking(START, nfds, 4, parked=parked), *give(nfds))
        assert running.hear() == (FAILED, errno.EPROTO, 0, 0, 4, [])


def test_many_bad_requests_leave_nothing_behind(running: Running, mark: Path) -> None:
    """Thousands of them, each with descriptors: more than the helper could ever have open."""
    with watched(running, mark) as give:
        fds = give(MOST)
        for number in range(100):
            running.send(asking(START, MOST, magic=b"nonsense"), *fds)
            running.send(b"", *fds)
            running.send(asking(77, MOST, number), *fds)
            told = running.hear()
            assert told is not None and told.id == number


# --------------------------------------------------------- what is wrong is the child's


BAD_PLANS: dict[str, Callable[[plans.Plan], bytes]] = {
    "no-plan": lambda _: b"no plan",
    "no-places": lambda plan: plan.put(places=b"").bytes(),
    "place-of-the-plan": lambda plan: plan.put(places=plans.targets(2, 0, 2)).bytes(),
    "place-of-the-report": lambda plan: plan.put(places=plans.targets(2, 2, 1)).bytes(),
    "place-that-was-not-sent": lambda plan: plan.put(places=plans.targets(3, 2, 2)).bytes(),
    "place-far-away": lambda plan: plan.put(places=plans.targets(2, 2, 2**31 - 1)).bytes(),
    "place-negative": lambda plan: plan.put(places=plans.targets(2, -1, 2)).bytes(),
    "nonce-of-another": lambda plan: _of_another(plan),
    **{
        f"{name}-that-was-not-sent": lambda plan, name=name: _with_fd(plan, name, 3)  # type: ignore[misc]
        for name in ("exec", "cwd", "terminal", "root", "cgroup", "landlock", "parent")
    },
    "cwd-from-the-plan": lambda plan: _with_fd(plan, "cwd", 0),
}


def _of_another(plan: plans.Plan) -> bytes:
    plan.nonce = bytes(16)
    return plan.bytes()


def _with_fd(plan: plans.Plan, name: str, place: int) -> bytes:
    setattr(plan.want, f"{name}_fd", place)
    return plan.bytes()


@pytest.mark.parametrize("name", BAD_PLANS)
def test_bad_plan_ends_its_child_only(running: Running, plan: plans.Plan, mark: Path, name: str) -> None:
    """A child reads it, says what is wrong, and ends; the helper has not looked at it."""
    with watched(running, mark), request(BAD_PLANS[name](plan)) as fds:
        running.send(asking(START, 3, 5), *fds)
        told = running.hear()
        assert told is not None and told[:2] == (BORN, 0)
        assert reap(told) == 127
        assert launching.told(fds[1]) == ("plan", errno.EPROTO)


@pytest.mark.parametrize("seals", [0, SEALS & ~launching.WRITE, SEALS & ~launching.SEAL])
def test_plan_that_can_change_is_refused(running: Running, plan: plans.Plan, mark: Path, seals: int) -> None:
    """As by the launcher."""
    with watched(running, mark), request(b"") as fds, memfd(plan.bytes(), seals) as fd:
        running.send(asking(START, 3, 5), fd, *fds[1:])
        told = running.hear()
        assert told is not None and told.op == BORN and reap(told) == 127
        assert launching.told(fds[1]) == ("plan", errno.EPROTO)


@pytest.mark.parametrize("size", [0, 1, 16])
def test_report_that_is_too_short_ends_its_child(
    running: Running, plan: plans.Plan, mark: Path, size: int
) -> None:
    """Nothing is run that cannot be told of."""
    with watched(running, mark), request(plan.bytes()) as fds, memfd(bytes(size)) as page:
        running.send(asking(START, 3, 5), fds[0], page, fds[2])
        told = running.hear()
        assert told is not None and told.op == BORN and reap(told) == 127


# ----------------------------------------------------------------------- policies


@pytest.mark.parametrize("nfds", [0, 2, 3])
def test_shrinking_takes_one_policy(running: Running, nfds: int) -> None:
    """Neither none nor more."""
    with watched(running), memfd(policy(), SEALS) as fd:
        running.send(asking(SHRINK, nfds, 6), *[fd] * nfds)
        assert running.hear() == (FAILED, errno.EPROTO, 0, 0, 6, [])


@pytest.mark.parametrize("name", BAD_POLICIES)
def test_policy_that_is_none_is_refused(running: Running, name: str) -> None:
    """It goes on with those that it had, and keeps nothing of this one."""
    with watched(running), memfd(BAD_POLICIES[name], SEALS) as fd:
        maps = _maps(running)
        for number in range(9):
            running.send(asking(SHRINK, 1, number), fd)
            assert running.hear() == (FAILED, errno.EPROTO, 0, 0, number, [])
        assert _maps(running) == maps


def _maps(running: Running) -> str | None:
    """Return what its memory consists of, as far as we may look."""
    return Path(f"/proc/{running.process.pid}/maps").read_text() if os.geteuid() == 0 else None


@pytest.mark.parametrize("seals", [0, SEALS & ~launching.WRITE, SEALS & ~launching.SEAL, SEALS & ~launching.GROW])
def test_policy_that_can_change_is_refused(running: Running, seals: int) -> None:
    """What is checked once holds."""
    with watched(running), memfd(policy(), seals) as fd:
        running.send(asking(SHRINK, 1, 6), fd)
        assert running.hear() == (FAILED, errno.EPROTO, 0, 0, 6, [])


def test_policy_that_is_no_file_is_refused(running: Running) -> None:
    """A pipe, a socket, a directory, a device: none of them is looked at for long."""
    with watched(running) as give:
        fds = [*give(1), running.ours.fileno()]
        fds += [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in ("/", "/dev/zero")]
        for number, fd in enumerate(fds):
            running.send(asking(SHRINK, 1, number), fd)
            assert running.hear() == (FAILED, errno.EPROTO, 0, 0, number, [])
        for fd in fds[2:]:
            os.close(fd)


def test_policies_are_not_more_than_there_is_room_for(running: Running, plan: plans.Plan, mark: Path) -> None:
    """The ninth is refused, and those before hold."""
    with memfd(policy(), SEALS) as fd, memfd(policy({"programs": []}), SEALS) as nothing:
        for number in range(6):
            running.send(asking(SHRINK, 1, number), fd)
            assert running.hear() == (SHRUNK, 0, 0, 0, number, [])
        running.send(asking(SHRINK, 1, 6), nothing)
        assert running.hear() == (SHRUNK, 0, 0, 0, 6, [])
        with watched(running, mark):
            running.send(asking(SHRINK, 1, 7), fd)
            assert running.hear() == (FAILED, errno.E2BIG, 0, 0, 7, [])
            with request(plan.bytes()) as fds:
                running.send(asking(START, 3, 8), *fds)
                told = running.hear()
                assert told is not None and told.op == BORN and reap(told) == 127
                assert launching.told(fds[1]) == ("policy-program", errno.EACCES)


@pytest.mark.parametrize("name", [*BAD_POLICIES, "not-sealed"])
def test_helper_without_a_policy_does_not_begin(name: str) -> None:
    """It says so, and ends."""
    data, seals = (policy(), 0) if name == "not-sealed" else (BAD_POLICIES[name], SEALS)
    with started(data, seals=seals) as one:
        assert one.hear() == (FAILED, errno.EPROTO, 0, 0, 0, [])
        assert one.hear() is None


def test_helper_that_finds_itself_another_does_not_begin() -> None:
    """Its policy says whose helper it is: level-kept."""
    data = bytearray(policy())
    stamp = int(_binding.ffi.offsetof("struct ss_policy", "variable_bytes")) + 8
    struct.pack_into("<I", data, stamp, struct.unpack_from("<I", data, stamp)[0] + 1)  # the real uid
    with started(bytes(data)) as one:
        assert one.hear() == (FAILED, errno.ESTALE, 0, 0, 0, [])
        assert one.hear() is None


# ------------------------------------------------------------------- who is asking


def _send_in_a_fork(one: Running, data: bytes, fds: list[int]) -> None:
    """A fork has the socket too."""
    pid = os.fork()
    if not pid:
        try:
            one.send(data, *fds)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


ASKING = {
    "whole": lambda: asking(START, 3, 5),
    "shrink": lambda: asking(SHRINK, 3, 5),
    "unknown": lambda: asking(77, 3, 5),
    "empty": lambda: b"",
    "cut-off": lambda: asking(START, 3, 5)[:40],
}


@pytest.mark.parametrize("what", ASKING)
def test_others_are_not_answered(running: Running, plan: plans.Plan, mark: Path, what: str) -> None:
    """Whatever a fork of the daemon asks, nothing is done, nothing said, and its descriptors are closed."""
    with watched(running, mark), request(plan.bytes()) as fds:
        _send_in_a_fork(running, ASKING[what](), fds)


def test_request_of_before_the_kernel_says_who_is_none(plan: plans.Plan, mark: Path) -> None:
    """A message that was waiting when the helper began comes without credentials."""
    with request(plan.bytes()) as fds:

        def first(ours: socket.socket) -> None:
            socket.send_fds(ours, [asking(START, 3, 5)], fds)
            ours.send(b"")
            ours.send(asking(77, 0, 6))

        before = children()
        with started(policy(), first=first) as one:
            assert one.hear() == (READY, 0, 0, 0, 0, [])
            with watched(one, mark):
                assert one.serves() == []
            assert children() - before == {one.process.pid}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: nobody else can say that he is another")
def test_request_in_the_name_of_another_is_none(running: Running, plan: plans.Plan, mark: Path) -> None:
    """The kernel lets root name another process as the sender: then it is that one who asked."""
    with watched(running, mark), request(plan.bytes()) as fds:
        who = struct.pack("=iII", 1, 0, 0)
        extras = [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=3i", *fds)),
            (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who),
        ]
        running.ours.sendmsg([asking(START, 3, 5)], extras)


def test_end_of_the_socket_ends_it(running: Running) -> None:
    """And not the message without a byte that looks like it."""
    running.send(b"")
    assert running.serves() == []
    running.ours.shutdown(socket.SHUT_WR)
    assert running.hear() is None
    assert running.process.wait(60) == 127


# --------------------------------------------------------- parked children get the same


def test_bad_requests_to_a_pool_leave_it_as_it_is(plan: plans.Plan, mark: Path) -> None:
    """No parked child is used up by what is no request, and each takes one that is."""
    idle = 2
    with started(policy("any", idle)) as one, ExitStack() as stack:
        assert one.hear() == (READY, 0, 0, 0, 0, [])
        parked = {}
        for number in range(idle):
            told = one.hear()
            assert told is not None and told[:2] == (PARKED, 0) and told.idle == number + 1
            stack.callback(os.close, told.fds[0])
            parked[told.pid] = told.fds[0]
        with watched(one, mark) as give:
            fds = give(3)
            one.send(asking(START, 3, 5, magic=b"nonsense", parked=1), *fds)
            one.send(asking(START, 3, 5, parked=1)[:-1], *fds)
            one.send(asking(START, 1, 6, parked=1), fds[0])
            assert one.hear() == (FAILED, errno.EPROTO, 0, idle, 6, [])
        with request(plan.bytes()) as fds:
            one.send(asking(START, 3, 7, parked=1), *fds)
            told = one.hear()
        assert told is not None and told[:2] == (GIVEN, 0) and told.id == 7 and told.pid in parked
        ended = os.waitid(os.P_PIDFD, parked.pop(told.pid), os.WEXITED)
        assert ended is not None and ended.si_status == 0 and mark.exists()
        told = one.hear()  # another one in its place
        assert told is not None and told.op == PARKED and told.idle == idle
        stack.callback(os.close, told.fds[0])
        one.ours.shutdown(socket.SHUT_WR)
        for pidfd in (*parked.values(), *told.fds):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)


# ------------------------------------------------------------------ a helper that lies


def telling(op: int, number: int, *, error: int = 0, pid: int = 0, magic: bytes = MAGIC) -> bytes:
    """Return an answer as a helper makes it."""
    return TOLD.pack(magic, op, error, pid, 0, number)


class Liar:
    """A process that passes for a helper, and our hand on what it says."""

    def __init__(self, stack: ExitStack) -> None:
        """Start it, and have the core look at us."""
        self.process = subprocess.Popen(["sleep", "1000"])
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)
        self.ours, self.its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.callback(self.its.close)
        stack.callback(self.ours.close)
        self.pidfd = os.pidfd_open(self.process.pid)
        stack.callback(os.close, self.pidfd)
        self.end = _binding.HelperEnd()

    def say(self, data: bytes, *fds: int) -> None:
        """Tell the core, which will find it when it looks."""
        socket.send_fds(self.its, [data], list(fds)) if fds else self.its.send(data)

    def begin(self) -> None:
        """Have the core wait until it is ready. Raises OSError."""
        self.end.begin(self.ours.fileno(), self.pidfd, self.process.pid, keeps=False)

    def close(self) -> None:
        """End it; the core ends what it knows of it."""
        self.process.kill()
        self.end.close()


@contextmanager
def lying(*, ready: bool = True) -> Iterator[Liar]:
    """A liar; afterwards the core has closed all that it said."""
    before = helpers.open_fds()
    with ExitStack() as stack:
        liar = Liar(stack)
        if ready:
            liar.say(telling(READY, 0))
            liar.begin()
        yield liar
        liar.close()
    assert helpers.open_fds() == before


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """Ends of pipes, as descriptors that are no child's."""
    ends = [*os.pipe(), *os.pipe()]
    yield ends
    for fd in ends:
        os.close(fd)


#: What is said before the request with number 1, how many descriptors with it, and what comes of the
#: request: an errno, or 0 if it is answered rightly behind that.
LIES: dict[str, tuple[bytes, int, int]] = {
    "nothing-with-a-descriptor": (b"", 1, errno.EPROTO),
    "cut-off": (telling(SHRUNK, 1)[:-1], 0, errno.EPROTO),
    "cut-off-with-a-descriptor": (telling(SHRUNK, 1)[:-1], 1, errno.EPROTO),
    "longer-with-a-descriptor": (telling(SHRUNK, 1) + b"\0", 1, errno.EPROTO),
    "long-with-descriptors": (bytes(4096), 4, errno.EPROTO),
    "another-language": (telling(SHRUNK, 1, magic=b"nonsense"), 0, errno.EPROTO),
    "another-language-with-a-descriptor": (telling(SHRUNK, 1, magic=b"nonsense"), 1, errno.EPROTO),
    "two-descriptors": (telling(SHRUNK, 1), 2, errno.EPROTO),
    "four-descriptors": (telling(BORN, 0), 4, errno.EPROTO),
    "answer-with-a-descriptor": (telling(SHRUNK, 1), 1, 0),
    "failure-with-a-descriptor": (telling(FAILED, 1, error=errno.EINVAL), 1, errno.EINVAL),
    "failure-without-an-error": (telling(FAILED, 1), 0, errno.EPROTO),
    "another-answer": (telling(BORN, 1), 1, errno.EPROTO),
    "unknown-answer": (telling(99, 1), 1, errno.EPROTO),
    "given-with-a-descriptor": (telling(GIVEN, 1, pid=1), 1, errno.EPROTO),
    "retired-with-a-descriptor": (telling(RETIRED, 1), 1, errno.EPERM),
    "answer-to-another": (telling(SHRUNK, 2), 0, 0),
    "answer-to-another-with-a-descriptor": (telling(SHRUNK, 2**64 - 1), 1, 0),
    "parked-that-is-no-child": (telling(PARKED, 0, pid=1), 1, 0),
    "parked-without-a-descriptor": (telling(PARKED, 0, pid=1), 0, 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_before_an_answer_leaves_nothing_behind(pipes: list[int], lie: str) -> None:
    """A helper that cannot be understood is lost; descriptors that came are closed either way."""
    said, nfds, error = LIES[lie]
    with lying() as liar, memfd(b"") as fd:
        liar.say(said, *pipes[:nfds])
        liar.say(telling(SHRUNK, 1))
        if error:
            with pytest.raises(OSError) as raised:
                liar.end.shrink(fd)
            assert raised.value.errno == error
            assert liar.end.look().lost == error
            assert liar.process.wait(60) == -signal.SIGKILL
        else:
            liar.end.shrink(fd)
            assert liar.end.look().lost == 0


@pytest.mark.parametrize("lie", LIES)
def test_lie_that_nobody_has_read_leaves_nothing_behind(pipes: list[int], lie: str) -> None:
    """What a helper has said last is read when it is ended, for the children that it may tell of."""
    said, nfds, _ = LIES[lie]
    with lying() as liar:
        liar.say(said, *pipes[:nfds])


#: What is said instead of "ready".
EARLY: dict[str, tuple[bytes, int, int]] = {
    "failure": (telling(FAILED, 0, error=errno.ESTALE), 0, errno.ESTALE),
    "failure-without-an-error": (telling(FAILED, 0), 1, errno.EPROTO),
    "parked-without-a-descriptor": (telling(PARKED, 0, pid=1), 0, errno.EPROTO),
    "parked-that-is-no-child": (telling(PARKED, 0, pid=1), 1, errno.EPROTO),
    "unknown": (telling(99, 0), 1, errno.EPROTO),
    "nothing": (b"", 1, errno.EPROTO),
}


@pytest.mark.parametrize("lie", EARLY)
def test_helper_that_does_not_say_ready_is_lost(pipes: list[int], lie: str) -> None:
    """Only one word is good for a beginning."""
    said, nfds, error = EARLY[lie]
    with lying(ready=False) as liar:
        liar.say(said, *pipes[:nfds])
        with pytest.raises(OSError) as raised:
            liar.begin()
        assert raised.value.errno == error


def test_ready_with_a_descriptor_is_ready(pipes: list[int]) -> None:
    """The descriptor is closed."""
    with lying(ready=False) as liar:
        liar.say(telling(READY, 0), pipes[0])
        liar.begin()
        assert liar.end.look().lost == 0


def test_more_parked_than_there_can_be_are_let_go() -> None:
    """The table of those that wait has an end; nobody writes behind it."""
    with lying() as liar, memfd(b"") as fd:
        child = subprocess.Popen(["sleep", "1000"])
        pidfd = os.pidfd_open(child.pid)
        try:
            for _ in range(_binding.POOL_MAX + 30):  # the socket has room for them
                liar.say(telling(PARKED, 0, pid=child.pid), pidfd)
            liar.say(telling(SHRUNK, 1))
            liar.end.shrink(fd)
            assert liar.end.look().idle == _binding.POOL_MAX
        finally:
            os.close(pidfd)
            liar.close()  # which ends and reaps what is parked
        with pytest.raises(ChildProcessError):
            os.waitpid(child.pid, 0)
        child.returncode = 0


# ------------------------------------------------------ a helper that lies about a spawn


def _answering(its: socket.socket, answers: Callable[[int], list[tuple[bytes, list[int]]]]) -> None:
    """Say that it is ready, then answer each request until our end is closed."""
    its.send(telling(READY, 0))
    while True:
        data, fds, _, _ = socket.recv_fds(its, 4096, MOST)
        for fd in fds:
            os.close(fd)
        if not data:
            return
        for said, with_it in answers(ASK.unpack(data)[5]):
            socket.send_fds(its, [said], with_it) if with_it else its.send(said)


@contextmanager
def liar_of_spawns(
    monkeypatch: pytest.MonkeyPatch, answers: Callable[[int], list[tuple[bytes, list[int]]]]
) -> Iterator[helper.Helper]:
    """A helper whose program is a process of ours that does nothing, and a thread that answers for it."""
    threads = []

    def program(fds: dict[int, int]) -> object:
        its = socket.socket(fileno=os.dup(fds[helper._SOCKET]))
        threads.append((threading.Thread(target=_answering, args=(its, answers)), its))
        threads[-1][0].start()
        return safespawn.spawn(["sleep", "1000"], helper=False)

    monkeypatch.setattr(helper, "_program", program)
    safespawn.run(["true"], helper=False)  # what the first spawn of a process does is done
    one = helper.Helper(restart=False)
    try:
        yield one.start()
    finally:
        assert one._process is not None
        one._process.kill()
        one.close()
        one._process.wait()
        for thread, its in threads:
            its.shutdown(socket.SHUT_RDWR)
            thread.join(60)
            its.close()


#: What comes for the answer to a spawn, and how many descriptors that are no child's come with it.
SPAWN_LIES: dict[str, tuple[Callable[[int], bytes], int]] = {
    "born-without-a-descriptor": (lambda n: telling(BORN, n, pid=1), 0),
    "born-that-is-no-child": (lambda n: telling(BORN, n, pid=1), 1),
    "born-of-our-own-pid": (lambda n: telling(BORN, n, pid=os.getpid()), 1),
    "given-that-nobody-knows": (lambda n: telling(GIVEN, n, pid=1), 0),
    "given-with-a-descriptor": (lambda n: telling(GIVEN, n, pid=1), 1),
    "failed-with-a-descriptor": (lambda n: telling(FAILED, n, error=errno.EAGAIN), 1),
    "shrunk-with-a-descriptor": (lambda n: telling(SHRUNK, n), 1),
    "two-descriptors": (lambda n: telling(BORN, n, pid=1), 2),
    "cut-off": (lambda n: telling(BORN, n, pid=1)[:-1], 1),
    "end": (lambda n: b"", 0),
}


@pytest.mark.parametrize("lie", SPAWN_LIES)
def test_lie_about_a_child_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, pipes: list[int], mark: Path, lie: str
) -> None:
    """The spawn is refused or fails; it is nobody's child, and no descriptor stays."""
    said, nfds = SPAWN_LIES[lie]
    before, ours = helpers.open_fds(), children()
    with liar_of_spawns(monkeypatch, lambda number: [(said(number), pipes[:nfds])]) as one:
        with pytest.raises((safespawn.UnsafeSpawn, OSError)):
            safespawn.spawn(["touch", str(mark)], strategy="helper", helper=one, stdin=safespawn.DEVNULL)
    assert helpers.open_fds() == before
    assert children() == ours
    assert not mark.exists()


# ------------------------------------------------------------ the pair of its guard


@pytest.mark.parametrize("guard", ["off", "on"])
def test_fork_of_the_daemon_takes_its_helper_away(in_hooks: Callable[..., dict[str, object]], guard: str) -> None:
    """A process that has the socket from its parent asks the helper to obey a policy that allows nothing."""
    out = in_hooks(
        """
import errno, os, socket, stat, struct
from safespawn import _allow, helper
if guard == "off":
    hooks.off |= lib.SS_OFF_HELPER_ASKED
one = helper.Helper()
with one:
    is_socket = lambda fd: stat.S_ISSOCK(os.fstat(fd).st_mode)
    (ours,) = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd >= 512 and is_socket(fd)]
    nothing = helper._sealed(one.end.policy(_allow.allowed({"programs": []}, keeps=False), 0))
    taken = os.dup(ours)  # which the fork has, as it has all that we have
    pid = os.fork()
    if not pid:
        try:
            ask = struct.pack("<8sIIIIQ16s", b"sasshelp", 2, 1, 0, 0, 1 << 40, bytes(16))
            socket.send_fds(socket.socket(fileno=taken), [ask], [nothing])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    try:
        out["ran"] = safespawn.run(["true"], strategy="helper", helper=one).returncode
    except safespawn.UnsafeSpawn as problem:
        out["refused"] = "policy does not allow the program" in str(problem)
""",
        guard=guard,
    )
    assert out == ({"refused": True} if guard == "off" else {"ran": 0})
