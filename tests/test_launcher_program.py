"""The launcher by itself: started by hand with descriptors that no core of ours would give it.

Whatever it is given, it either becomes what a sealed plan with its nonce says, or runs nothing,
says why in the page that it was given for that, and exits with code 127.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

import helpers
import launching
from launching import F_SEAL_FUTURE_WRITE, GROW, NONCE, PAGE, REPORT_BYTES, SEAL, SEALS, SHRINK, STAGES
from launching import WRITE, memfd, plans
from safespawn import _binding, _launcher

pytestmark = pytest.mark.threat("T-29")


class Told(NamedTuple):
    """What came of one run."""

    code: int
    stage: str
    error: int
    marked: bool


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Where the program of the plan leaves its mark, if it runs."""
    return tmp_path / "mark"


@pytest.fixture
def plan(mark: Path) -> plans.Plan:
    """A plan that the launcher carries out, with something in each part; its program leaves the mark."""
    made = launching.own_plan().put(
        path=b"/bin/sh\0",
        argv=plans.joined([b"sh", b"-c", b'echo "$0 $1 $A $B" > "$MARK"', b"zero", b"one"]),
        env=plans.joined([b"A=1", b"B=", b"MARK=" + os.fsencode(mark)]),
        targets=plans.targets(0, 1, 2),
        places=plans.targets(2, 2, 2),  # which are a helper's
        rlimits=struct.pack("=QQQ", 4, 0, 0),  # RLIMIT_CORE
        cpus=_binding.cpu_mask(sorted(os.sched_getaffinity(0))),
        groups=struct.pack("=I", 7),  # not asked for by a flag, so nothing comes of them
        cwd=b"/\0",  # without another root it means nothing
        filter=struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000),  # BPF_RET, SECCOMP_RET_ALLOW
    )
    made.want.flags = _binding.lib.SS_NO_NEW_PRIVS  # or a filter takes CAP_SYS_ADMIN
    return made


@pytest.fixture
def launch(mark: Path) -> Callable[..., Told]:
    """Return a runner of the launcher with a plan descriptor, and a report page that is watched."""

    def run(fd: int, *, nonce: bytes = NONCE, **options: object) -> Told:
        with launching.report() as page:
            code = start("safespawn-launcher", fd, page, nonce.hex(), fds=(fd, page), **options)
            stage, error = launching.told(page)
        return Told(code, stage, error, mark.exists())

    return run


def start(*argv: object, fds: tuple[int, ...] = (), **options: object) -> int:
    """Run the launcher with these arguments and descriptors, and return how it ended."""
    done = subprocess.run(
        [str(word) for word in argv],
        executable=_launcher.PATH,
        env={},
        pass_fds=[fd for fd in fds if is_open(fd)],
        capture_output=True,
        timeout=60,
        check=False,
        **options,
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    return done.returncode


def is_open(fd: int) -> bool:
    """Whether there is such a descriptor."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def free_number() -> int:
    """A number that no descriptor has, and that none gets meanwhile."""
    fd = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 700)
    os.close(fd)
    return fd


#: What must come of a plan that is refused.
REFUSED = Told(127, "plan", errno.EPROTO, False)


# ------------------------------------------------------------------------ what it takes


def test_sealed_plan_is_carried_out(launch: Callable[..., Told], plan: plans.Plan, mark: Path) -> None:
    """The plan that all tests here change runs its program when nothing is wrong with it."""
    with memfd(plan.bytes(), SEALS) as fd:
        assert launch(fd) == (0, "exec", 0, True)
    assert mark.read_text(encoding="ascii") == "zero one 1 \n"


@pytest.mark.parametrize("name", plans.ODD)
def test_odd_plan_is_read(launch: Callable[..., Told], plan: plans.Plan, name: str) -> None:
    """What is odd but whole is no reason to refuse a plan: it fails later, or not at all."""
    plan.put(path=b"/nonexistent/program\0")
    with memfd(plans.ODD[name](plan), SEALS) as fd:
        told = launch(fd)
    assert told.code == 127
    assert STAGES.index(told.stage) > STAGES.index("level")


def test_more_seals_are_no_harm(launch: Callable[..., Told], plan: plans.Plan) -> None:
    """A seal that came with a newer kernel is one more."""
    with memfd(plan.bytes(), SEALS | F_SEAL_FUTURE_WRITE) as fd:
        assert launch(fd) == (0, "exec", 0, True)


# ----------------------------------------------------------------- what it does not obey


@pytest.mark.parametrize(
    "seals",
    [
        0,
        SEALS & ~SEAL,
        SEALS & ~SHRINK,
        SEALS & ~GROW,
        SEALS & ~WRITE,
        SEALS & ~WRITE | F_SEAL_FUTURE_WRITE,
    ],
    ids=["none", "more-may-come", "may-shrink", "may-grow", "may-be-written", "may-be-written-by-a-map"],
)
def test_plan_that_can_change_is_refused(launch: Callable[..., Told], plan: plans.Plan, seals: int) -> None:
    """A plan without all four seals runs nothing, however right it is now."""
    with memfd(plan.bytes(), seals) as fd:
        assert launch(fd) == REFUSED


@pytest.mark.parametrize("name", plans.EVIL)
def test_evil_plan_is_refused(launch: Callable[..., Told], plan: plans.Plan, name: str) -> None:
    """Bytes that are no plan run nothing: cut, edited, with a part, a count or a string out of place."""
    with memfd(plans.EVIL[name](plan), SEALS) as fd:
        assert launch(fd) == REFUSED


@pytest.mark.parametrize(
    "path", sorted((helpers.ROOT / "fuzz/corpus/plan").glob("evil-*")), ids=lambda path: path.name
)
def test_evil_file_of_the_fuzz_corpus_is_refused(launch: Callable[..., Told], path: Path) -> None:
    """The program that is shipped judges as the parser that was fuzzed."""
    with memfd(path.read_bytes(), SEALS) as fd:
        assert launch(fd, nonce=bytes(range(16))) == REFUSED


def test_plan_of_another_spawn_is_refused(launch: Callable[..., Told], plan: plans.Plan) -> None:
    """A whole, sealed plan with another nonce is that of another spawn."""
    for bit in (0, 7, 64, 127):
        plan.nonce = (int.from_bytes(NONCE, "little") ^ 1 << bit).to_bytes(16, "little")
        with memfd(plan.bytes(), SEALS) as fd:
            assert launch(fd) == REFUSED


def test_plan_without_nonce_is_refused(launch: Callable[..., Told], plan: plans.Plan) -> None:
    """Zeros are a nonce like any other."""
    plan.nonce = bytes(16)
    with memfd(plan.bytes(), SEALS) as fd:
        assert launch(fd) == REFUSED


def test_plan_for_other_credentials_is_refused(launch: Callable[..., Told], plan: plans.Plan) -> None:
    """Who is not who decided runs nothing, and says so at the step that compares: level-kept (T-28)."""
    plan.want.expected.suid ^= 1
    with memfd(plan.bytes(), SEALS) as fd:
        assert launch(fd) == Told(127, "level", errno.ESTALE, False)


def test_place_in_the_file_does_not_matter(launch: Callable[..., Told], plan: plans.Plan) -> None:
    """A plan is mapped from its beginning, wherever its descriptor stands."""
    with memfd(plan.bytes(), SEALS) as fd:
        os.lseek(fd, 3, os.SEEK_SET)
        assert launch(fd) == (0, "exec", 0, True)


# --------------------------------------------------------------------- what is no memfd


@contextmanager
def _opened(fd: int, how: int) -> Iterator[int]:
    again = os.open(f"/proc/self/fd/{fd}", how | os.O_CLOEXEC)
    yield again
    os.close(again)


@contextmanager
def _pipe(data: bytes, _: Path) -> Iterator[int]:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    yield read
    os.close(read)


@contextmanager
def _file(data: bytes, where: Path) -> Iterator[int]:
    (where / "plan").write_bytes(data)
    fd = os.open(where / "plan", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@contextmanager
def _shared_memory(data: bytes, _: Path) -> Iterator[int]:
    # A file of a tmpfs has seals too, but nobody can add any to it.
    path = f"/dev/shm/safespawn-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    os.write(fd, data)
    yield fd
    os.close(fd)


@contextmanager
def _directory(_: bytes, where: Path) -> Iterator[int]:
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@contextmanager
def _device(_: bytes, _where: Path) -> Iterator[int]:
    fd = os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@contextmanager
def _socket(_: bytes, _where: Path) -> Iterator[int]:
    ours, other = socket.socketpair()
    with ours, other:
        yield ours.fileno()


@contextmanager
def _closed(_: bytes, _where: Path) -> Iterator[int]:
    yield free_number()


@contextmanager
def _path_only(data: bytes, _: Path) -> Iterator[int]:
    with memfd(data, SEALS) as fd, _opened(fd, os.O_PATH) as again:
        yield again


NO_MEMFD = {
    "pipe": _pipe,
    "file": _file,
    "shared-memory": _shared_memory,
    "directory": _directory,
    "device": _device,
    "socket": _socket,
    "closed": _closed,
    "path-only": _path_only,
}


@pytest.mark.parametrize("kind", NO_MEMFD)
def test_plan_in_no_memfd_is_refused(
    launch: Callable[..., Told], plan: plans.Plan, tmp_path: Path, kind: str
) -> None:
    """A plan is read from a sealed memfd or not at all."""
    with NO_MEMFD[kind](plan.bytes(), tmp_path) as fd:
        assert launch(fd) == REFUSED


def test_plan_that_cannot_be_mapped_is_refused(launch: Callable[..., Told], plan: plans.Plan) -> None:
    """A descriptor that cannot be read gives no plan either."""
    with memfd(plan.bytes(), SEALS) as fd, _opened(fd, os.O_WRONLY) as again:
        assert launch(again) == Told(127, "plan", errno.ENOMEM, False)


# ----------------------------------------------------------------- where there is no page


def start_with_page(plan: plans.Plan, page: int) -> int:
    """Run it with a good plan and this descriptor to tell on."""
    with memfd(plan.bytes(), SEALS) as fd:
        return start("safespawn-launcher", fd, page, NONCE.hex(), fds=(fd, page))


@pytest.mark.parametrize("kind", [name for name in NO_MEMFD if name != "file"])
def test_without_a_page_to_tell_on_nothing_runs(plan: plans.Plan, tmp_path: Path, mark: Path, kind: str) -> None:
    """A launcher that could not say what came of it does nothing."""
    with NO_MEMFD[kind](b"", tmp_path) as page:
        assert start_with_page(plan, page) == 127
    assert not mark.exists()


@pytest.mark.parametrize("size", [0, 1, REPORT_BYTES - 1])
def test_page_that_is_too_small_runs_nothing(plan: plans.Plan, mark: Path, size: int) -> None:
    """A page that ends before the report is none, and no reason to die of a signal."""
    with memfd(bytes(size)) as page:
        assert start_with_page(plan, page) == 127
        assert os.pread(page, PAGE, 0) == bytes(size)
    assert not mark.exists()


def test_page_that_is_just_large_enough_is_one(plan: plans.Plan, mark: Path) -> None:
    """The size of the report is enough: the kernel maps whole pages."""
    with memfd(bytes(REPORT_BYTES)) as page:
        assert start_with_page(plan, page) == 0
        assert launching.told(page) == ("exec", 0)
    assert mark.exists()


def test_page_that_cannot_be_written_runs_nothing(plan: plans.Plan, mark: Path) -> None:
    """A page that is sealed, as a plan is, or that is open for reading only."""
    with memfd(bytes(PAGE), SEALS) as page:
        assert start_with_page(plan, page) == 127
    with memfd(bytes(PAGE)) as page, _opened(page, os.O_RDONLY) as again:
        assert start_with_page(plan, again) == 127
    assert not mark.exists()


def test_plan_that_is_its_own_page_runs_nothing(plan: plans.Plan, mark: Path) -> None:
    """The same descriptor twice: the seals of the plan keep it from being written to."""
    with memfd(plan.bytes(), SEALS) as fd:
        assert start("safespawn-launcher", fd, fd, NONCE.hex(), fds=(fd,)) == 127
        assert os.pread(fd, 1 << 16, 0) == plan.bytes()
    assert not mark.exists()


# --------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("launcher",),
        ("launcher", "{plan}", "{page}"),
        ("launcher", "{plan}", "{page}", "{nonce}", ""),
        ("launcher", "{plan}", "{page}", "{nonce}", "more"),
        ("launcher", "", "{page}", "{nonce}"),
        ("launcher", "{plan}", "", "{nonce}"),
        ("launcher", "{plan}", "{page}", ""),
        ("launcher", "-1", "{page}", "{nonce}"),
        ("launcher", " {plan}", "{page}", "{nonce}"),
        ("launcher", "{plan}x", "{page}", "{nonce}"),
        ("launcher", "+{plan}", "{page}", "{nonce}"),
        ("launcher", "{plan}", "{page}.", "{nonce}"),
        ("launcher", "{plan32}", "{page}", "{nonce}"),
        ("launcher", "{plan}", "{page64}", "{nonce}"),
        ("launcher", "{plan}", "9" * 100000, "{nonce}"),
        ("launcher", "{plan}", "{page}", "{nonce}0"),
        ("launcher", "{plan}", "{page}", "{nonce} "),
        ("launcher", "{plan}", "{page}", "{short}"),
        ("launcher", "{plan}", "{page}", "{upper}"),
        ("launcher", "{plan}", "{page}", "g" * 32),
        ("launcher", "{plan}", "{page}", "\xff" * 32),
        ("launcher", "{page}", "{nonce}", "{plan}"),
    ],
    ids=lambda argv: f"{len(argv)}:" + "|".join(argv[1:])[:40],
)
def test_arguments_of_another_form_run_nothing(plan: plans.Plan, mark: Path, argv: tuple[str, ...]) -> None:
    """Who was not started by the core does nothing, and tells nobody: the page stays as it was."""
    with memfd(plan.bytes(), SEALS) as fd, memfd(bytes(PAGE)) as page:
        values = {
            "plan": fd,
            "page": page,
            "plan32": 2**32 + fd,
            "page64": 2**64 + page,
            "nonce": NONCE.hex(),
            "short": NONCE.hex()[:-1],
            "upper": NONCE.hex().upper(),
        }
        words = [word.format(**values) for word in argv]
        assert start(*(words or [""]), fds=(fd, page)) == 127
        assert os.pread(page, PAGE, 0) == bytes(PAGE)
    assert not mark.exists()


def test_another_order_of_the_descriptors_runs_nothing(plan: plans.Plan, mark: Path) -> None:
    """A page for a plan and a plan for a page: the plan is sealed, and cannot be told on."""
    with memfd(plan.bytes(), SEALS) as fd, memfd(bytes(PAGE)) as page:
        assert start("safespawn-launcher", page, fd, NONCE.hex(), fds=(fd, page)) == 127
    assert not mark.exists()


def test_without_any_descriptor_nothing_runs() -> None:
    """Not even 0, 1 and 2 are needed to end with the code that says nothing ran."""
    closing = ["/bin/sh", "-c", 'exec "$0" launcher 3 4 "$1" <&- >&- 2>&-', _launcher.PATH, NONCE.hex()]
    assert subprocess.run(closing, check=False, timeout=60).returncode == 127


def test_variables_of_a_loader_mean_nothing(launch: Callable[..., Told], plan: plans.Plan, tmp_path: Path) -> None:
    """No loader looks at the launcher's environment, and nothing of it reaches the program."""
    text = b'[ -z "$LD_PRELOAD" ] && [ -z "$SECRET" ] && : > "$MARK"'
    plan.put(argv=plans.joined([b"sh", b"-c", text]))
    with memfd(plan.bytes(), SEALS) as fd, memfd(bytes(PAGE)) as page:
        done = subprocess.run(
            ["launcher", str(fd), str(page), NONCE.hex()],
            executable=_launcher.PATH,
            env={"LD_PRELOAD": str(tmp_path / "none.so"), "LD_DEBUG": "all", "SECRET": "1"},
            pass_fds=(fd, page),
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "mark").exists()


# ----------------------------------------------------------------------------- its end

#: struct sock_filter of a program that refuses exit_group(2) with EPERM and allows the rest.
REFUSE_EXIT = b"".join(
    struct.pack("=HBBI", *one)
    for one in (
        (0x20, 0, 0, 0),  # the number of the call
        (0x15, 0, 1, {"x86_64": 231, "aarch64": 94}[os.uname().machine]),
        (0x06, 0, 0, 0x00050000 | errno.EPERM),
        (0x06, 0, 0, 0x7FFF0000),
    )
)


def _refuse_exit() -> None:
    """In the child: from here on exit_group(2) is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = ctypes.create_string_buffer(REFUSE_EXIT, len(REFUSE_EXIT))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(REFUSE_EXIT) // 8, ctypes.addressof(program)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, header, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def test_refused_exit_ends_in_the_trap(launch: Callable[..., Told], plan: plans.Plan) -> None:
    """One that is not let go stops at an instruction that ends it, and runs nothing else."""
    with memfd(plan.bytes()) as fd:
        told = launch(fd, preexec_fn=_refuse_exit)
    assert -told.code in {signal.SIGILL, signal.SIGTRAP}  # ud2; brk
    assert told[1:] == REFUSED[1:]


# ----------------------------------------------------------------------------- layouts

LAYOUT = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include "_wire.h"

int
main(void)
{
	printf("%zu %zu %zu ", sizeof(struct ss_wire), offsetof(struct ss_wire, want), offsetof(struct ss_wire, parts));
	printf("%zu %zu %zu\\n", sizeof(struct ss_report), offsetof(struct ss_report, stage), offsetof(struct ss_report, error));
	printf("%u %d %d %#x\\n", SS_WIRE_VERSION, SS_PARTS, SS_NONCE_BYTES, SS_SEALS);
	return 0;
}
"""


def test_layouts_are_those_of_the_headers(tmp_path: Path) -> None:
    """What these tests and the fuzz corpus take for the layout of a plan and of a report is it."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "layout.c").write_text(LAYOUT, encoding="ascii")
    source = [f"-I{helpers.ROOT / 'safespawn'}", str(tmp_path / "layout.c"), "-o", str(tmp_path / "layout")]
    subprocess.run([compiler, "-Wall", "-Wno-unused-function", "-Werror", *source], check=True)
    told = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout
    sizes = (plans.HEAD, plans.WANT, plans.TABLE, REPORT_BYTES, 0, 4)
    words = (plans.VERSION, len(plans.PARTS), len(NONCE), hex(SEALS))
    assert told == f"{' '.join(map(str, sizes))}\n{' '.join(map(str, words))}\n"
