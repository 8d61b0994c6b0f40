"""The seal: no credential changes any more, however it is asked for, and all else goes on.

Every test that seals does it in a fresh process: nobody can undo it. The filter is read a
second time by a small interpreter, for machines and callers that cannot be run here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import helpers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID")

SOURCES = helpers.ROOT / "safespawn"
MACHINE = os.uname().machine
ON_X86 = MACHINE == "x86_64"
EPERM = -1

# ------------------------------------------------------------------ the family, by number

NATIVE: dict[str, dict[str, int]] = {
    "x86_64": {
        "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116,
        "setresuid": 117, "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capset": 126,
        "pivot_root": 155, "prctl": 157, "chroot": 161, "keyctl": 250, "unshare": 272, "setns": 308,
        "seccomp": 317, "landlock_restrict_self": 446, "lsm_set_self_attr": 460,
    },
    "aarch64": {
        "pivot_root": 41, "chroot": 51, "capset": 91, "unshare": 97, "setregid": 143, "setgid": 144,
        "setreuid": 145, "setuid": 146, "setresuid": 147, "setresgid": 149, "setfsuid": 151,
        "setfsgid": 152, "setgroups": 159, "prctl": 167, "keyctl": 219, "setns": 268, "seccomp": 277,
        "landlock_restrict_self": 446, "lsm_set_self_attr": 460,
    },
}  # fmt: skip

#: The 32-bit callers of each machine: those with 16-bit ids have the short names.
_COMPAT = {
    "setuid": 23, "setgid": 46, "chroot": 61, "setreuid": 70, "setregid": 71, "setgroups": 81,
    "setfsuid": 138, "setfsgid": 139, "setresuid": 164, "setresgid": 170, "prctl": 172, "capset": 185,
    "setreuid32": 203, "setregid32": 204, "setgroups32": 206, "setresuid32": 208, "setresgid32": 210,
    "setuid32": 213, "setgid32": 214, "setfsuid32": 215, "setfsgid32": 216,
    "landlock_restrict_self": 446, "lsm_set_self_attr": 460,
}  # fmt: skip
COMPAT = {
    "x86_64": {**_COMPAT, "pivot_root": 217, "keyctl": 288, "unshare": 310, "setns": 346, "seccomp": 354},
    "aarch64": {**_COMPAT, "pivot_root": 218, "keyctl": 311, "unshare": 337, "setns": 375, "seccomp": 383},
}
#: AUDIT_ARCH of linux/audit.h: of the machine and of its 32-bit programs.
TOKENS = {"x86_64": (0xC000003E, 0x40000003), "aarch64": (0xC00000B7, 0x40000028)}
STRANGE_TOKENS = (0, 0x14, 0x8000002B, 0xC00000F3)  # none, PowerPC, SPARC, RISC-V
X32_BIT = 0x40000000

#: Options of prctl(2) that are refused: KEEPCAPS, SECCOMP, CAPBSET_DROP, SECUREBITS, NO_NEW_PRIVS.
PRCTL_REFUSED = {8, 22, 24, 28, 38}
PR_CAP_AMBIENT, IS_SET = 47, 1
#: Bits of unshare(2) that are not: CLONE_VM, FILES, SIGHAND, THREAD, SYSVSEM.
UNSHARE_ALLOWED = {0x100, 0x400, 0x800, 0x10000, 0x40000}

#: Calls that root may make, and that change nothing or fail for another reason than EPERM.
CASES: list[tuple[str, list[int]]] = [
    ("setuid", [0]),
    ("setgid", [0]),
    ("setreuid", [-1, -1]),
    ("setregid", [-1, -1]),
    ("setresuid", [-1, -1, -1]),
    ("setresgid", [-1, -1, -1]),
    ("setgroups", [-1, 0]),  # EINVAL
    ("setfsuid", [-1]),
    ("setfsgid", [-1]),
    ("capset", [0, 0]),  # EFAULT
    ("chroot", [0]),  # EFAULT
    ("pivot_root", [0, 0]),  # EFAULT
    ("setns", [-1, 0]),  # EBADF
    ("seccomp", [99, 0, 0]),  # EINVAL
    ("landlock_restrict_self", [-1, 1 << 31]),  # EINVAL, or no landlock
    ("lsm_set_self_attr", [0, 0, 0, 0]),  # EINVAL, or no such call
    ("keyctl", [9999]),  # EOPNOTSUPP
    ("unshare", [0x200]),  # CLONE_FS
    ("unshare", [0x10000001]),  # CLONE_NEWUSER and a bit that is none: EINVAL
    ("prctl", [8, 2]),  # PR_SET_KEEPCAPS: EINVAL
    ("prctl", [28, 0]),  # PR_SET_SECUREBITS, as they are
    ("prctl", [24, 9999]),  # PR_CAPBSET_DROP: EINVAL
    ("prctl", [38, 0]),  # PR_SET_NO_NEW_PRIVS: EINVAL
    ("prctl", [22, 99]),  # PR_SET_SECCOMP: EINVAL
    ("prctl", [47, 2, 9999, 0, 0]),  # PR_CAP_AMBIENT_RAISE: EINVAL
    ("prctl", [47, 3, 9999, 0, 0]),  # PR_CAP_AMBIENT_LOWER: EINVAL
    ("prctl", [47, 4, 0, 0, 0]),  # PR_CAP_AMBIENT_CLEAR_ALL, of an empty set
]
#: libc has no function of that name for these.
NOT_IN_LIBC = {"seccomp", "landlock_restrict_self", "lsm_set_self_attr", "keyctl"}

RAW = """
#if defined(__x86_64__)
long
raw_native(long number, long a, long b, long c, long d, long e)
{
	long answer;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;

	__asm__ volatile("syscall"
			 : "=a"(answer)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return answer;
}

long
raw_i386(long number, long a, long b, long c, long d, long e)
{
	long answer;

	__asm__ volatile("int $0x80"
			 : "=a"(answer)
			 : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)answer;
}
#else
long
raw_native(long number, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory", "cc");
	return x0;
}
#endif
"""

#: Goes in front of snippets: all ways into the kernel, each answering a value or -errno.
WAYS = """
import ctypes, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
shared = ctypes.CDLL(raw)
def entry(name):
    function = getattr(shared, name)
    function.argtypes, function.restype = [ctypes.c_long] * 6, ctypes.c_long
    return lambda number, *arguments: function(number, *arguments, *[0] * (5 - len(arguments)))
native = entry("raw_native")
def through_libc(function, *arguments):
    ctypes.set_errno(0)
    answer = function(*[ctypes.c_long(argument) for argument in arguments])
    return -ctypes.get_errno() if answer == -1 and ctypes.get_errno() else answer
def by_syscall(number, *arguments):
    return through_libc(libc.syscall, number, *arguments)
def in_thread(function, *arguments):
    box = []
    thread = threading.Thread(target=lambda: box.append(function(*arguments)))
    thread.start()
    thread.join()
    return box[0]
def status(field, task="self"):
    (line,) = [l for l in open(f"/proc/{task}/status") if l.startswith(field + ":")]
    return line.split()[1:]
"""


def _compile(where: Path, source: str, *arguments: str, compiler: str = "gcc", name: str = "made") -> Path:
    text, made = where / f"{name}.c", where / name
    text.write_text(source, encoding="utf-8")
    done = subprocess.run(
        [compiler, "-std=gnu11", "-O2", "-w", *arguments, str(text), "-o", str(made)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the library whose functions are system call instructions of their own."""
    return str(_compile(tmp_path_factory.mktemp("raw"), RAW, "-shared", "-fPIC", name="raw.so"))


# ------------------------------------------------------------------- what is refused

MATRIX = (
    WAYS
    + """
def can_int80():
    # A kernel without 32-bit programs answers with SIGSEGV.
    pid = os.fork()
    if pid == 0:
        os._exit(0 if entry("raw_i386")(20) > 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
ways = {
    "libc": [(f"{n}{a}", lambda n=n, a=a: through_libc(getattr(libc, n), *a)) for n, a in cases
             if n not in not_in_libc],
    "syscall": [(f"{n}{a}", lambda n=n, a=a: by_syscall(numbers[n], *a)) for n, a in cases],
    "asm": [(f"{n}{a}", lambda n=n, a=a: native(numbers[n], *a)) for n, a in cases],
}
if on_x86:
    ways["x32"] = [(f"{n}{a}", lambda n=n, a=a: native(numbers[n] | 0x40000000, *a)) for n, a in cases]
out["int80"] = on_x86 and can_int80()
if out["int80"]:
    int80 = entry("raw_i386")
    wide = [(n + suffix, a) for n, a in cases for suffix in ("", "32") if n + suffix in compat]
    ways["int80"] = [(f"{n}{a}", lambda n=n, a=a: int80(compat[n], *a)) for n, a in wide]
def answers():
    return {way: {name: call() for name, call in calls} for way, calls in ways.items()}
out["before"] = answers()
out["sealed before"] = _binding.is_sealed()
_binding.seal()
out["sealed"] = _binding.is_sealed()
out["main"] = answers()
out["thread"] = in_thread(answers)
out["sealed in a thread"] = in_thread(_binding.is_sealed)
"""
)


def _flat(answers: dict[str, dict[str, int]]) -> dict[str, int]:
    return {f"{way} {name}": answer for way, calls in answers.items() for name, answer in calls.items()}


def test_every_change_is_refused_whoever_asks(raw: str) -> None:
    """By libc, raw, by x32 and int 0x80 numbers, from any thread: EPERM, and only since the seal."""
    out = helpers.run_snippet(
        MATRIX,
        raw=raw,
        cases=CASES,
        not_in_libc=sorted(NOT_IN_LIBC),
        numbers=NATIVE[MACHINE],
        compat=COMPAT[MACHINE],
        on_x86=ON_X86,
    )
    if ON_X86 and not out["int80"]:
        print("this kernel takes no int 0x80: those calls were not made")
    before = _flat(out["before"])
    # A kernel without x32 says ENOSYS to all of its numbers; refused they are all the same.
    assert {name: answer for name, answer in before.items() if answer == EPERM} == {}
    for who in ("main", "thread"):
        after = _flat(out[who])
        assert after.keys() == before.keys()
        assert {name: answer for name, answer in after.items() if answer != EPERM} == {}
    assert (out["sealed before"], out["sealed"], out["sealed in a thread"]) == (False, True, True)


def test_every_namespace_is_refused(raw: str) -> None:
    """A thread can neither part its root from ours nor enter a namespace, with any known bit."""
    out = helpers.run_snippet(
        WAYS
        + """
_binding.seal()
bits = [1 << i for i in range(64)]
out["answers"] = {str(bit): native(number, bit if bit < 1 << 63 else bit - (1 << 64)) for bit in bits}
out["together"] = native(number, 0x20000 | 0x100)
""",
        raw=raw,
        number=NATIVE[MACHINE]["unshare"],
    )
    allowed = {int(bit) for bit, answer in out["answers"].items() if answer == 0}
    assert allowed == UNSHARE_ALLOWED
    assert {answer for bit, answer in out["answers"].items() if int(bit) not in allowed} == {EPERM}
    assert out["together"] == EPERM


def test_libc_change_over_many_threads_is_an_error_and_no_abort(raw: str) -> None:
    """libc has every thread make the call, and aborts if their answers differ: they do not."""
    out = helpers.run_snippet(
        WAYS
        + """
stop = threading.Event()
threads = [threading.Thread(target=stop.wait) for _ in range(5)]
for thread in threads:
    thread.start()
_binding.seal()
late = threading.Thread(target=stop.wait)
late.start()
calls = [lambda: os.setuid(65534), lambda: os.seteuid(65534), lambda: os.setresgid(1, 1, 1),
         lambda: os.setgroups([]), lambda: os.initgroups("nobody", 65534)]
out["errors"] = []
for call in calls:
    try:
        call()
    except OSError as problem:
        out["errors"].append(problem.errno)
stop.set()
for thread in [*threads, late]:
    thread.join()
out["ids"] = [*os.getresuid(), *os.getresgid()]
""",
        raw=raw,
    )
    assert out == {"errors": [1] * 5, "ids": [0] * 6}


# -------------------------------------------------------------------- what goes on working


def test_all_else_works_as_before(raw: str) -> None:
    """Names, threads, forks, programs, private tables, and looking: the seal is not in the way."""
    out = helpers.run_snippet(
        WAYS
        + """
import helpers, subprocess
_binding.seal()
number = numbers["unshare"]
out["answers"] = {
    "alone": native(number, 0x100),
    "files": native(number, 0x400),
    "undo": native(number, 0x40000),
    "name": libc.prctl(15, b"sealed", 0, 0, 0),
    "dumpable": libc.prctl(4, 1, 0, 0, 0),
    "look at nnp": libc.prctl(39, 0, 0, 0, 0),
    "look at ambient": libc.prctl(47, 1, 9, 0, 0),
    "look at keepcaps": libc.prctl(7, 0, 0, 0, 0),
    "fork": os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1],
    "shell": os.system("exit 3"),
    "subprocess": subprocess.run(["/bin/true"]).returncode,
    "fork and exec": subprocess.run(["/bin/true"], preexec_fn=lambda: None).returncode,
    "session": subprocess.run(["/bin/true"], start_new_session=True).returncode,
}
out["not alone"] = in_thread(native, number, 0x100)
helpers.wait_until_alone()
out["runs"] = {how: [safespawn.run(["/bin/echo", "ran"], capture_output=True, strategy=how).stdout.decode()]
               for how in ("vfork", "fork")}
out["limits"] = safespawn.run(["/bin/true"], deadline=20, umask=0o77, nice=1, start_new_session=True).returncode
""",
        raw=raw,
        numbers=NATIVE[MACHINE],
    )
    assert {name: answer for name, answer in out["answers"].items() if answer} == {"shell": 3 << 8}
    assert out["not alone"] == -22, "unshare(CLONE_VM) still tells that others are on our memory"
    assert out["runs"] == {"vfork": ["ran\n"], "fork": ["ran\n"]}
    assert out["limits"] == 0


def test_a_forked_child_drops_through_the_gate() -> None:
    """Ours still start programs as another user: ids, groups, capabilities, no_new_privs, verified."""
    out = helpers.run_snippet(
        """
_binding.seal()
done = safespawn.run(probe, user=65534, group=65534, extra_groups=[65533], no_new_privs=True, capture_output=True)
state = json.loads(done.stdout)
out["strategy"] = done.report.strategy
out["state"] = state
plain = safespawn.run(["/usr/bin/id", "-u"], user=65534, group=65534, extra_groups=[], capture_output=True)
out["plain"] = plain.stdout.decode()
out["ours"] = [*os.getresuid(), *os.getresgid()]
""",
        probe=helpers.probe_argv("state"),
    )
    state = out["state"]
    assert (out["strategy"], out["plain"], out["ours"]) == ("fork", "65534\n", [0] * 6)
    assert (state["uids"], state["gids"], state["groups"]) == ([65534] * 3, [65534] * 3, [65533])
    assert state["status"]["NoNewPrivs"] == "1"
    assert {int(state["status"][name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}


def test_a_program_cannot_change_its_ids() -> None:
    """What we start inherits the seal, and has no gate: it fails, and is not killed."""
    out = helpers.run_snippet(
        """
import subprocess
command = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/id", "-u"]
before = subprocess.run(command, capture_output=True)
out["before"] = [before.returncode, before.stdout.decode()]
_binding.seal()
for name, run in ("subprocess", subprocess.run), ("safespawn", safespawn.run):
    done = run(command, capture_output=True)
    out[name] = [done.returncode, done.stdout.decode(), b"not permitted" in done.stderr]
""",
    )
    assert out["before"] == [0, "65534\n"]
    for name in ("subprocess", "safespawn"):
        code, printed, told = out[name]
        assert code > 0, "an error, not a signal"
        assert (printed, told) == ("", True)


def test_a_program_cannot_seal_itself_again() -> None:
    """A program of ours that uses this library is told why it cannot, and is not taken for sealed."""
    out = helpers.run_snippet(
        """
_binding.seal()
text = f'''
import sys
sys.path[:0] = {sys.path!r}
from safespawn import _binding
try:
    _binding.seal()
except PermissionError as problem:
    print(problem.errno, _binding.is_sealed(), problem.strerror)
'''
out["said"] = safespawn.run([sys.executable, "-c", text], capture_output=True).stdout.decode()
"""
    )
    assert out["said"].startswith("1 False cannot seal this process: a sandbox, or a process that we come from")


CARELESS = """
#include <stdio.h>
#include <unistd.h>
int
main(void)
{
	setuid(getuid());
	printf("%u\\n", geteuid());
	return 0;
}
"""


def test_a_set_id_program_that_does_not_look_gets_no_new_privs(tmp_path: Path, hooks_path: Path) -> None:
    """Under the seal such a program would keep root for its user, but for the no_new_privs that we set."""
    program = _compile(tmp_path, CARELESS, name="careless")
    program.chmod(0o4755)
    helpers.make_readable(tmp_path)
    out = helpers.run_snippet(
        """
def euid():
    identity = dict(user=65534, group=65534, extra_groups=[])
    return safespawn.run([program], **identity, strategy="fork", capture_output=True).stdout.decode().strip()
out["before"] = euid()
_binding.seal()
out["after"] = euid()
out["why"] = safespawn.run(["/bin/true"], user=65534, group=65534).report.reasons[-1]
hooks.off = lib.SS_OFF_SEALED_SET_ID
out["without the guard"] = euid()
""",
        program=str(program),
        path=hooks_path,
    )
    assert out == {
        "before": "65534",
        "after": "65534",
        "why": "changes-sealed: no_new_privs is set, as the seal demands",
        "without the guard": "0",
    }


PROGRAM_32 = """
.globl _start
_start:
	movl $4, %eax
	movl $1, %ebx
	movl $text, %ecx
	movl $3, %edx
	int $0x80
	movl $208, %eax
	movl $-1, %ebx
	movl $-1, %ecx
	movl $-1, %edx
	int $0x80
	negl %eax
	movl %eax, %ebx
	movl $1, %eax
	int $0x80
.section .rodata
text:
	.ascii "32\\n"
"""


@pytest.mark.skipif(not ON_X86, reason="the program is for i386")
def test_a_32_bit_program_works_and_is_sealed_too(tmp_path: Path) -> None:
    """It writes and exits as ever; its setresuid32, which answered 0, answers EPERM."""
    source, program = tmp_path / "program.s", tmp_path / "program"
    source.write_text(PROGRAM_32, encoding="ascii")
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", str(source), "-o", str(program)], check=True)
    out = helpers.run_snippet(
        """
import subprocess
def run():
    try:
        done = subprocess.run([program], capture_output=True)
    except OSError as problem:  # ENOEXEC: a kernel without 32-bit programs
        return [problem.errno, ""]
    return [done.returncode, done.stdout.decode()]
out["before"] = run()
_binding.seal()
out["after"] = run()
""",
        program=str(program),
    )
    if out["before"] == [8, ""]:
        print("this kernel runs no 32-bit programs")
        assert out["after"] == [8, ""]
        return
    assert out == {"before": [0, "32\n"], "after": [1, "32\n"]}


# ------------------------------------------------------------------------ putting it on

UNPRIVILEGED = """
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
def attempt():
    try:
        _binding.seal()
    except OSError as problem:
        return [type(problem).__name__, problem.errno, problem.strerror]
"""


def test_without_the_right_it_is_refused_and_nothing_changes(raw: str) -> None:
    """Neither CAP_SYS_ADMIN nor no_new_privs: an error that says what to do, and no_new_privs stays off."""
    out = helpers.run_snippet(
        WAYS
        + UNPRIVILEGED
        + """
out["raised"] = attempt()
out["state"] = [_binding.is_sealed(), status("NoNewPrivs"), status("Seccomp"), native(number, -1, -1, -1)]
""",
        raw=raw,
        number=NATIVE[MACHINE]["setresuid"],
    )
    kind, number, text = out["raised"]
    assert (kind, number) == ("PermissionError", 13)
    assert "CAP_SYS_ADMIN" in text and "no_new_privs" in text
    assert out["state"] == [False, ["0"], ["0"], 0]


def test_no_new_privs_is_enough(raw: str) -> None:
    """An unprivileged process with no_new_privs seals itself, all of its threads too."""
    out = helpers.run_snippet(
        WAYS
        + UNPRIVILEGED
        + """
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
assert libc.prctl(38, 1, 0, 0, 0) == 0
out["raised"] = attempt()
tasks = os.listdir("/proc/self/task")
out["tasks"] = [[status(field, f"self/task/{task}") for field in ("NoNewPrivs", "Seccomp")] for task in tasks]
out["sealed"] = _binding.is_sealed()
out["answers"] = [native(number, -1, -1, -1), in_thread(native, number, -1, -1, -1)]
out["ran"] = safespawn.run(["/bin/echo", "ran"], capture_output=True).stdout.decode()
stop.set()
thread.join()
""",
        raw=raw,
        number=NATIVE[MACHINE]["setresuid"],
    )
    assert out["raised"] is None
    assert out["tasks"] == [[["1"], ["2"]]] * 2
    assert (out["sealed"], out["answers"], out["ran"]) == (True, [EPERM, EPERM], "ran\n")


def test_a_thread_with_a_filter_of_its_own_is_named(raw: str) -> None:
    """All threads or none: the one in the way is told by its id, and once it is gone the seal works."""
    out = helpers.run_snippet(
        WAYS
        + """
import helpers, sandbox
ready, stop = threading.Event(), threading.Event()
def diverge():
    sandbox.answer({})
    ready.set()
    stop.wait()
thread = threading.Thread(target=diverge)
thread.start()
ready.wait()
try:
    _binding.seal()
except OSError as problem:
    out["errno"] = problem.errno
    out["named"] = f"thread {thread.native_id} has" in problem.strerror
out["state"] = [_binding.is_sealed(), status("Seccomp"), native(number, -1, -1, -1)]
stop.set()
thread.join()
helpers.wait_until_alone()
_binding.seal()
out["then"] = [_binding.is_sealed(), native(number, -1, -1, -1)]
""",
        raw=raw,
        number=NATIVE[MACHINE]["setresuid"],
    )
    assert out == {"errno": 3, "named": True, "state": [False, ["0"], 0], "then": [True, EPERM]}


def test_a_second_time_adds_nothing(raw: str) -> None:
    """Sealing is idempotent, by eight threads at once too: there is one filter."""
    out = helpers.run_snippet(
        WAYS
        + """
start = threading.Barrier(8)
raised = []
def seal():
    start.wait()
    try:
        _binding.seal()
    except OSError as problem:
        raised.append(str(problem))
threads = [threading.Thread(target=seal) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out["raised"] = raised
_binding.seal()
out["filters"] = status("Seccomp_filters") if "Seccomp_filters" in open("/proc/self/status").read() else ["1"]
out["sealed"] = _binding.is_sealed()
""",
        raw=raw,
    )
    assert out == {"raised": [], "filters": ["1"], "sealed": True}


def test_a_forked_child_is_still_sealed() -> None:
    """It knows, cannot change its own ids, adds no second filter, and its children drop as ours do."""
    out = helpers.run_snippet(
        """
_binding.seal()
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    story = {"sealed": _binding.is_sealed()}
    try:
        os.setuid(65534)
    except OSError as problem:
        story["errno"] = problem.errno
    _binding.seal()
    done = safespawn.run(["/usr/bin/id", "-u"], user=65534, group=65534, extra_groups=[], capture_output=True)
    story["child"] = done.stdout.decode()
    os.write(write, json.dumps(story).encode())
    os._exit(0)
out["code"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
out.update(json.loads(os.read(read, 4096)))
"""
    )
    assert out == {"code": 0, "sealed": True, "errno": 1, "child": "65534\n"}


def test_a_sandbox_in_the_way_is_not_taken_for_the_seal(raw: str) -> None:
    """Where the change is refused already, sealing fails: our children could not drop either."""
    out = helpers.run_snippet(
        WAYS
        + """
import sandbox
sandbox.NUMBERS["setfsuid"] = number
sandbox.answer({"setfsuid": 1})
try:
    _binding.seal()
except OSError as problem:
    out["errno"] = problem.errno
out["sealed"] = _binding.is_sealed()
""",
        raw=raw,
        number=NATIVE[MACHINE]["setfsuid"],
    )
    assert out == {"errno": 1, "sealed": False}


def test_its_word_is_the_kernels(in_hooks: Callable[..., dict[str, Any]]) -> None:
    """Memory that says sealed where no filter is does not pass; sealing then really does it."""
    out = in_hooks(
        """
hooks.off |= lib.SS_OFF_SEAL
_binding.seal()
out["pretended"] = _binding.is_sealed()
hooks.off = 0
out["asked"] = _binding.is_sealed()
_binding.seal()
out["done"] = _binding.is_sealed()
"""
    )
    assert out == {"pretended": True, "asked": False, "done": True}


@pytest.mark.parametrize(
    ("answer", "words"),
    [(-38, "no seccomp"), (-22, "CONFIG_SECCOMP_FILTER"), (-95, "does not tell"), (-12, "seccomp(2) failed")],
)
def test_every_refusal_is_a_sentence(monkeypatch: pytest.MonkeyPatch, answer: int, words: str) -> None:
    """Whatever the kernel's reason, it is told in words."""
    from safespawn import _binding

    class Lib:
        @staticmethod
        def ss_seal(tid: Any) -> int:
            return answer

    monkeypatch.setattr(_binding, "lib", Lib)
    with pytest.raises(OSError, match="cannot seal this process: ") as caught:
        _binding.seal()
    assert caught.value.errno == -answer
    assert words in str(caught.value)


# ------------------------------------------------------------------------ the attack pair


@pytest.mark.parametrize("guard", ["off", "on"])
@pytest.mark.threat("T-26")
def test_a_thread_drops_by_an_instruction_of_its_own(
    in_hooks: Callable[..., dict[str, Any]], raw: str, guard: str
) -> None:
    """One raw instruction makes a thread less privileged than its siblings, unless sealed."""
    out = in_hooks(
        WAYS
        + """
if guard == "off":
    hooks.off |= lib.SS_OFF_SEAL
_binding.seal()
out["says sealed"] = _binding.is_sealed()
def attack():
    answer = native(number, 65534, 65534, 65534)
    (uid,) = {tuple(status("Uid", f"self/task/{threading.get_native_id()}"))}
    return [answer, uid[1]]
out["attacker"] = in_thread(attack)
out["main"] = status("Uid")[1]
""",
        raw=raw,
        number=NATIVE[MACHINE]["setresuid"],
        guard=guard,
    )
    assert out["says sealed"] is True
    assert out["main"] == "0"
    assert out["attacker"] == ([0, "65534"] if guard == "off" else [EPERM, "0"])


# -------------------------------------------------------------- the filter, read once more

HARNESS = """
#include "_native.c"
#include <stdio.h>

static int
ss_regain_unfooled(void)
{
	struct ss_plan plan;
	int32_t tid;

	memset(&plan, 0, sizeof(plan));
	plan.want.flags = SS_SET_UID;
	plan.want.uid = 65534;
	if (ss_seal(&tid))
		return -1;
	return ss_child_regain(&plan);
}

int
main(int argc, char **argv)
{
	struct ss_filter filter;
	unsigned i;

	(void)argv;
	if (argc > 1)
		return ss_regain_unfooled() == ENOTRECOVERABLE ? 0 : 1;
	ss_filter_build(&filter);
	printf("%llu\\n", (unsigned long long)(uintptr_t)ss_child_gate_back);
	for (i = 0; i < filter.count; i++)
		printf("%u %u %u %u\\n", filter.code[i].code, filter.code[i].jt, filter.code[i].jf,
		       filter.code[i].k);
	return 0;
}
"""

#: aarch64 where its compiler and an emulator are to be had: the filter is only printed there.
CROSS = ("aarch64-linux-gnu-gcc", "qemu-aarch64")
MACHINES = [MACHINE, *(["aarch64"] if ON_X86 and all(map(shutil.which, CROSS)) else [])]


class Filter(NamedTuple):
    """The filter of a machine and the address of its gate."""

    machine: str
    gate: int
    code: list[list[int]]

    def allows(self, number: int, *arguments: int, token: int | None = None, at: int = 0x400000) -> bool:
        """Run it, as classic BPF is run (Documentation/networking/filter.rst)."""
        words = [number, TOKENS[self.machine][0] if token is None else token]
        for value in (at, *arguments, *[0] * (6 - len(arguments))):
            words += [value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF]
        pc, a = 0, 0
        while True:
            code, yes, no, k = self.code[pc]
            pc += 1
            if code == 0x20:  # ld word
                a = words[k // 4]
            elif code == 0x54:  # and
                a &= k
            elif code == 0x15:  # jeq
                pc += yes if a == k else no
            elif code == 0x45:  # jset
                pc += yes if a & k else no
            else:
                assert code == 0x06, code
                assert k in (0x7FFF0000, 0x00050001), hex(k)
                return k == 0x7FFF0000


@pytest.fixture(scope="module", params=MACHINES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filter:
    """Build the filter of a machine and read it."""
    machine: str = request.param
    where = tmp_path_factory.mktemp(machine)
    compiler, run = ("gcc", []) if machine == MACHINE else (CROSS[0], [CROSS[1]])
    program = _compile(where, HARNESS, "-static", f"-I{SOURCES}", compiler=compiler)
    lines = subprocess.run([*run, str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    return Filter(machine, int(lines[0]), [[int(word) for word in line.split()] for line in lines[1:]])


#: Called with zeros, these two are allowed: no option, no flag.
BY_ARGUMENT = {"prctl", "unshare"}


def _refused(numbers: dict[str, int]) -> set[int]:
    return {number for name, number in numbers.items() if name not in BY_ARGUMENT}


def test_filter_refuses_the_family_and_nothing_else(made: Filter) -> None:
    """Of all numbers that any kernel has, exactly the listed ones, unless from the gate."""
    family = _refused(NATIVE[made.machine])
    assert {number for number in range(1024) if not made.allows(number)} == family
    assert all(made.allows(number, at=made.gate) for number in range(1024))
    for near in (made.gate - 1, made.gate + 1, made.gate + (1 << 32), made.gate ^ (1 << 47)):
        assert {number for number in range(1024) if not made.allows(number, at=near)} == family


def test_filter_knows_the_numbers_of_x32(made: Filter) -> None:
    """With the bit of x32 the same numbers are refused on x86-64; aarch64 has nothing there."""
    refused = {number for number in range(1024) if not made.allows(number | X32_BIT)}
    assert refused == (_refused(NATIVE["x86_64"]) if made.machine == "x86_64" else set())


def test_filter_knows_the_numbers_of_32_bit_callers(made: Filter) -> None:
    """They have a table of their own, and no gate, wherever their code lies."""
    token = TOKENS[made.machine][1]
    for at in (0x8048000, made.gate):
        refused = {number for number in range(1024) if not made.allows(number, token=token, at=at)}
        assert refused == _refused(COMPAT[made.machine])


def test_filter_refuses_every_call_of_an_architecture_it_does_not_know(made: Filter) -> None:
    """What the numbers mean there nobody here can tell."""
    other = [token for machine, tokens in TOKENS.items() if machine != made.machine for token in tokens]
    for token in (*STRANGE_TOKENS, *other):
        for at in (0x400000, made.gate):
            assert not any(made.allows(number, token=token, at=at) for number in range(1024))


@pytest.mark.parametrize("caller", [0, 1], ids=["native", "compat"])
def test_filter_tells_the_options_of_prctl_apart(made: Filter, caller: int) -> None:
    """Those that change privileges are refused, whatever stands in the upper half of the register."""
    token = TOKENS[made.machine][caller]
    number = (NATIVE, COMPAT)[caller][made.machine]["prctl"]
    for upper in (0, 1 << 32, 0xFFFFFFFF << 32):
        refused = {o for o in range(200) if not made.allows(number, upper | o, token=token)}
        assert refused == PRCTL_REFUSED | {PR_CAP_AMBIENT}, "ambient: with 0 for what to do"
    allowed = {what for what in range(64) if made.allows(number, PR_CAP_AMBIENT, what, token=token)}
    assert allowed == {IS_SET}
    assert all(made.allows(number, o, at=made.gate, token=token) is (caller == 0) for o in PRCTL_REFUSED)


@pytest.mark.parametrize("caller", [0, 1], ids=["native", "compat"])
def test_filter_tells_the_flags_of_unshare_apart(made: Filter, caller: int) -> None:
    """Only bits without credentials, root or namespaces pass, alone and together."""
    token = TOKENS[made.machine][caller]
    number = (NATIVE, COMPAT)[caller][made.machine]["unshare"]
    assert {1 << i for i in range(64) if made.allows(number, 1 << i, token=token)} == UNSHARE_ALLOWED
    everything = sum(UNSHARE_ALLOWED)
    assert made.allows(number, everything, token=token)
    assert not any(
        made.allows(number, everything | 1 << i, token=token) for i in range(64) if 1 << i not in UNSHARE_ALLOWED
    )


HEADERS = {0: "asm/unistd_64.h", 1: "asm/unistd_32.h"}


@pytest.mark.skipif(not ON_X86, reason="the headers are those of x86")
@pytest.mark.parametrize("caller", [0, 1], ids=["native", "compat"])
def test_tables_have_every_name_that_the_headers_have(caller: int) -> None:
    """No variant of a call of the family is missing, and the numbers are the kernel's."""
    done = subprocess.run(
        ["gcc", "-E", "-dM", "-include", HEADERS[caller], "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = (NATIVE, COMPAT)[caller]["x86_64"]
    stems = "|".join(name.removesuffix("32") for name in listed)
    found = dict(re.findall(rf"^#define __NR_((?:{stems})(?:32)?) (\d+)$", done.stdout, re.MULTILINE))
    assert len(found) >= 15
    assert {name: int(number) for name, number in found.items()}.items() <= listed.items()


def test_regain_is_not_fooled_by_the_seal(tmp_path: Path) -> None:
    """A child that only seems to have dropped is found out: its try goes through the gate."""
    program = _compile(tmp_path, HARNESS, f"-I{SOURCES}")
    assert subprocess.run([str(program), "regain"], check=False).returncode == 0


PROOF = """
import threading
from safespawn import guards
hold = threading.Event()
others = [threading.Thread(target=hold.wait) for _ in range(3)]
for other in others:
    other.start()
def run(**more):
    done = safespawn.run(["/usr/bin/id", "-u"], capture_output=True, **more)
    return [done.report.strategy, done.report.proof, done.stdout.decode().strip()]
"""


def test_it_is_a_proof_among_threads() -> None:
    """Once sealed, memory is shared among threads, and whoever asks for that proof gets it."""
    out = helpers.run_snippet(
        PROOF
        + """
guards.require("sealed")
out["before"] = run()
try:
    run(on_unproven="refuse")
except safespawn.UnsafeSpawn as refusal:
    out["refused"] = refusal.guard
guards.seal()
out["after"] = run()
out["as another"] = run(user=65534, group=65534, extra_groups=[])
out["status"] = guards.status()["proofs"]["sealed"]
child = os.fork()
if child == 0:
    os._exit(0 if run() == ["vfork", "single-threaded", "0"] else 1)
out["forked"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
hold.set()
"""
    )
    assert out == {
        "before": ["fork", None, "0"],
        "refused": "alone-or-apart",
        "after": ["vfork", "sealed", "0"],
        "as another": ["fork", None, "65534"],
        "status": "holds",
        "forked": 0,
    }


def test_it_proves_nothing_for_threads_that_differed() -> None:
    """The seal freezes what it finds: threads with different privileges stay so, and no memory is shared."""
    out = helpers.run_snippet(
        PROOF
        + """
import prctl
ready = threading.Event()
def lessen():
    prctl.cap_effective.net_raw = False
    ready.set()
    hold.wait()
lesser = threading.Thread(target=lessen)
lesser.start()
ready.wait()
guards.seal()
out["with it"] = run()
out["status"] = guards.status()["proofs"]["sealed"]
hold.set()
lesser.join()
while len(os.listdir("/proc/self/task")) > 1:
    os.sched_yield()
out["alone"] = run()
"""
    )
    assert out == {
        "with it": ["fork", None, "0"],
        "status": "sealed, but threads differed then",
        "alone": ["vfork", "single-threaded", "0"],
    }
