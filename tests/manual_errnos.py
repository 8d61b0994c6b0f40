"""Makes tests/errnos.py: the errnos that the manual lists for each system call that safespawn makes.

    python tests/manual_errnos.py [DIRECTORY]    # where man2 lies, /usr/share/man by default

The calls are those that the sources of the core name, and those that libc and Python make on the way
of a spawn: a test traces spawns and fails where one is missing. The pages are Debian's manpages-dev.
"""

from __future__ import annotations

import errno
import gzip
import re
import sys
import textwrap
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "safespawn"
PAGES = Path("/usr/share/man")

#: Calls that no source of the core names: libc and Python make them for us.
BY_OTHERS = """
    accept4 access bind brk clone3 connect dup epoll_create1 epoll_ctl epoll_wait execve fallocate fdatasync flock
    fork fstat fsync ftruncate futex getegid geteuid getgid getpgid getppid getrandom getrusage getsockname getsockopt
    gettid getuid link linkat listen lseek lstat madvise mkdir mkdirat mmap mprotect mremap munmap newfstatat open
    pidfd_open pipe2 poll prctl pread64 preadv pwrite64 read readlink recvfrom rename renameat rseq rt_sigaction
    rt_sigprocmask rt_sigtimedwait sched_yield select sendto set_robust_list set_tid_address sigaltstack socket
    socketpair stat statfs sysinfo tgkill umask uname unlink unlinkat vfork wait4 write writev
    exit getsid landlock_restrict_self mlock sched_getparam sched_getscheduler lremovexattr fchmod fchown utimensat getcwd sched_getaffinity pselect6 chmod
"""

#: Where a call has no page of its own name, or its page says "as for" another. None: no page yet.
PAGES_OF: dict[str, tuple[str, ...]] = {
    "clone3": ("clone",),
    "execveat": ("execveat", "execve"),
    "exit": ("_exit",),
    "faccessat2": ("faccessat",),
    "getdents64": ("getdents",),
    "newfstatat": ("fstatat",),
    "openat2": ("openat2", "open"),
    "pread64": ("pread", "read", "lseek"),
    "preadv": ("preadv", "lseek"),
    "prlimit64": ("prlimit",),
    "pselect6": ("pselect",),
    "pwrite64": ("pwrite", "write", "lseek"),
    "rseq": (),
    "vfork": ("vfork", "fork"),
    "wait4": ("wait4", "waitid"),
}
#: errno.errorcode has the other name of these.
_BETTER = {"EDEADLOCK": "EDEADLK", "ENOTSUP": "EOPNOTSUPP"}

_INCLUDE = re.compile(r"^\.so\s+(?:man2/)?(\S+)", re.MULTILINE)
_NAME = re.compile(r"\bE[A-Z0-9]{2,}\b")


def _page(name: str, where: Path) -> str | None:
    for suffix in (".gz", ""):
        path = where / "man2" / f"{name}.2{suffix}"
        if path.exists():
            data = gzip.decompress(path.read_bytes()) if suffix else path.read_bytes()
            text = data.decode("utf-8")
            included = _INCLUDE.search(text)
            return _page(included[1].removesuffix(".2"), where) if included else text
    return None


def _of_page(page: str, where: Path) -> set[int]:
    text = _page(page, where)
    if text is None:
        raise LookupError(f"{page}: no page in {where}")
    _, _, after = text.partition("\n.SH ERRORS")
    section = after.partition("\n.SH ")[0]
    return {getattr(errno, found) for found in _NAME.findall(section) if hasattr(errno, found)}


def listed(name: str, where: Path = PAGES) -> tuple[str, ...]:
    """Return the errnos that the section ERRORS of a call's page names, in order of their numbers."""
    numbers: set[int] = set()
    for page in PAGES_OF.get(name, (name,)):
        numbers |= _of_page(page, where)
    found = [errno.errorcode[number] for number in sorted(numbers)]
    return tuple(_BETTER.get(one, one) for one in found)


def named() -> set[str]:
    """Return the system calls that the sources of the core name."""
    files = [path for pattern in ("*.c", "*.h") for path in SOURCES.glob(pattern)]
    return {name for path in files for name in re.findall(r"\bSYS_([a-z]\w*)", path.read_text(encoding="utf-8"))}


def text(where: Path = PAGES) -> str:
    """Return the module."""
    lines = [
        '"""The errnos that the manual lists for each system call. Made by tests/manual_errnos.py: not to be edited."""',
        "",
        "from __future__ import annotations",
        "",
        "#: manpages-dev 6.03, the section ERRORS of the page in man2.",
        "ERRNOS: dict[str, list[str]] = {",
    ]
    for name in sorted(named() | set(BY_OTHERS.split())):
        row = textwrap.wrap(" ".join(listed(name, where)), 100) or [""]
        if len(row) == 1:
            lines.append(f'    "{name}": "{row[0]}".split(),')
        else:
            lines += [f'    "{name}": (', *(f'        "{words} "' for words in row), "    ).split(),"]
    return "\n".join([*lines, "}", ""])


def main() -> None:
    """Write it."""
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGES
    (TESTS / "errnos.py").write_text(text(where), encoding="ascii")


if __name__ == "__main__":
    main()
