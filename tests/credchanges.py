"""Every way to change credentials that the lock knows, for snippets: make it, show it, undo nothing.

`CALLS` has the changes by name, `RAW` those that differ one thread from the rest. `raw` makes
a system call by instructions of our own, past libc and past every wrapper. Functions of libc
are looked up when they are called, so that whoever is armed first is in front of them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

libc = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine

_X86_64 = {
    "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116, "setresuid": 117,
    "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capset": 126, "prctl": 157, "chroot": 161, "unshare": 272,
    "setns": 308, "kcmp": 312, "seccomp": 317, "keyctl": 250, "rt_sigprocmask": 14, "futex": 202, "openat": 257,
    "close": 3, "execve": 59,
}  # fmt: skip
_AARCH64 = {
    "setuid": 146, "setgid": 144, "setreuid": 145, "setregid": 143, "setgroups": 159, "setresuid": 147,
    "setresgid": 149, "setfsuid": 151, "setfsgid": 152, "capset": 91, "prctl": 167, "chroot": 51, "unshare": 97,
    "setns": 268, "kcmp": 272, "seccomp": 277, "keyctl": 219, "rt_sigprocmask": 135, "futex": 98, "openat": 56,
    "close": 57, "execve": 221,
}  # fmt: skip
NR = _X86_64 if MACHINE == "x86_64" else _AARCH64
NR.update(landlock_create_ruleset=444, landlock_restrict_self=446)

#: syscall(2) without libc: the number and five arguments move one register down.
_CODE = {
    "x86_64": "4889f84889f74889d64889ca4d89c24d89c80f05c3",
    "aarch64": "e80300aae00301aae10302aae20303aae30304aae40305aa010000d4c0035fd6",
}[MACHINE]
_page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
_page.write(bytes.fromhex(_CODE))
_raw = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * 6)(ctypes.addressof(ctypes.c_char.from_buffer(_page)))


def _number(argument: Any) -> int:
    if isinstance(argument, int):
        return argument
    if isinstance(argument, ctypes.c_ulong):
        return argument.value
    return ctypes.cast(argument, ctypes.c_void_p).value or 0


def raw(name: str, *arguments: Any) -> int:
    """Make a system call by our own instruction. Raises OSError."""
    numbers = [_number(argument) for argument in arguments] + [0] * 5
    answer = int(_raw(NR[name], *numbers[:5]))
    if -4096 < answer < 0:
        raise OSError(-answer, f"{os.strerror(-answer)}: {name}")
    return answer


def by_libc(name: str, *arguments: Any) -> int:
    """Call a function of libc. Raises OSError."""
    ctypes.set_errno(0)
    answer = int(getattr(libc, name)(*arguments))
    if answer == -1 and (number := ctypes.get_errno()):
        raise OSError(number, f"{os.strerror(number)}: {name}")
    return answer


def by_syscall(name: str, *arguments: Any) -> int:
    """Make it by libc's syscall(3). Raises OSError."""
    longs = [ctypes.c_long(_number(argument)) for argument in arguments]
    return by_libc("syscall", ctypes.c_long(NR[name]), *longs)


# -------------------------------------------------------------- what a task has

#: Lines of status that say what a task may do.
_LINES = re.compile(r"^(Uid|Gid|Groups|Cap\w+|NoNewPrivs|Seccomp\w*):[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_LINKS = ("ns/cgroup", "ns/ipc", "ns/mnt", "ns/net", "ns/pid", "ns/user", "ns/uts", "root")


def _read(path: str) -> str:
    # Not by open(): who has just dropped privileges may not be able to import a codec any more.
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 20).decode()
    finally:
        os.close(fd)


def _link_of(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError as problem:
        return f"errno {problem.errno}"


def told(task: str) -> dict[str, str]:
    """Return what /proc shows of a task (``self/task/N`` or ``N``) that the lock compares."""
    seen = dict(_LINES.findall(_read(f"/proc/{task}/status")))
    return seen | {link: _link_of(f"/proc/{task}/{link}") for link in _LINKS}


def all_told() -> dict[int, dict[str, str]]:
    """Return that of all our threads."""
    found = {}
    for tid in os.listdir("/proc/self/task"):
        try:
            found[int(tid)] = told(f"self/task/{tid}")
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            pass
    return found


def child_of(tid: int) -> int:
    """Return the one child that a thread has, 0 while it has none."""
    return int((_read(f"/proc/self/task/{tid}/children").split() or ["0"])[0])


def sits_in(pid: int, call: str) -> bool:
    """Return whether that process is within a system call; one that has ended is not.

    A thread that is about to spawn may have a child for a moment that only tries whether memory is shared.
    """
    try:
        return pid > 0 and _read(f"/proc/{pid}/syscall").startswith(f"{NR[call]} ")
    except OSError:
        return False


# ------------------------------------------------------------------- the attack


def copies(text: bytes) -> list[int]:
    """Return the addresses of ``text`` and its NUL where a child that shares our memory reads its inputs.

    That is anonymous memory that nobody may write to, for the moment. What the interpreter has
    of the same text may be something else by the time that it is written to.
    """
    found = []
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    with open("/proc/self/maps", encoding="utf-8") as maps:
        areas = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) r--p \S+ \S+ 0\s*$", maps.read(), re.MULTILINE)
    for low, high in ((int(low, 16), int(high, 16)) for low, high in areas):
        try:
            content = os.pread(memory, high - low, low)
        except OSError:  # unmapped meanwhile
            continue
        found += [low + match.start() for match in re.finditer(re.escape(text + b"\0"), content)]
    os.close(memory)
    return found


def rewrite(places: Iterable[int], text: bytes) -> None:
    """Write ``text`` to each place, as a thread of this process may: the kernel stores, so none is a crash."""
    source, sink = os.pipe()
    for at in places:
        start = at & -mmap.PAGESIZE
        libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(at + len(text) - start), 3)
        os.write(sink, text)
        try:
            os.readv(source, [(ctypes.c_char * len(text)).from_address(at)])
        except OSError:  # gone: take the bytes out of the pipe
            os.read(source, len(text))
    os.close(source)
    os.close(sink)


# ------------------------------------------------------------------ the changes

NOBODY = 65534
UTS, NET, NEWNS, FS = 0x04000000, 0x40000000, 0x00020000, 0x200
PR_KEEPCAPS, PR_SECCOMP, PR_CAPBSET_DROP, PR_SECUREBITS, PR_NO_NEW_PRIVS, PR_AMBIENT = 8, 22, 24, 28, 38, 47
PR_GET_KEEPCAPS, PR_GET_SECUREBITS = 7, 27
AMBIENT_RAISE, AMBIENT_CLEAR_ALL = 2, 4
CAP_CHOWN, CAP_MKNOD = 0, 27
SECBIT_NOROOT = 1
JOIN_SESSION = 1
TSYNC = 1
KCMP_FS = 3

_header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
_no_caps = ctypes.create_string_buffer(24)
_groups = (ctypes.c_uint32 * 1)(1234)
# One instruction: allow everything (linux/filter.h, linux/seccomp.h).
_filter = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
_program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(_filter)))


def inherit_chown() -> None:
    """Make CAP_CHOWN inheritable and ambient, so that there is something to clear."""
    caps = (ctypes.c_uint32 * 6)()
    libc.capget(_header, caps)
    caps[2] |= 1 << CAP_CHOWN
    raw("capset", _header, caps)
    raw("prctl", PR_AMBIENT, AMBIENT_RAISE, CAP_CHOWN)


class Held:
    """Descriptors that some changes need."""

    uts = -1
    ruleset = -1


def other_uts() -> None:
    """Keep a descriptor of another UTS namespace."""
    ready, said = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        raw("unshare", UTS)
        os.write(said, b".")
        os.close(go)
        os.read(wait, 1)
        os._exit(0)
    os.read(ready, 1)
    Held.uts = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY)
    for fd in (ready, said, wait, go):
        os.close(fd)
    os.waitpid(pid, 0)


def ruleset() -> None:
    """Keep a Landlock rule set that handles LANDLOCK_ACCESS_FS_MAKE_CHAR and allows none."""
    attributes = ctypes.create_string_buffer(struct.pack("Q", 1 << 6))
    Held.ruleset = raw("landlock_create_ruleset", attributes, 8, 0)


def _status(line: str) -> Callable[[], str]:
    return lambda: told("thread-self")[line]


def _link(name: str) -> Callable[[], str]:
    return lambda: os.readlink(f"/proc/thread-self/{name}")


def _prctl_get(option: int) -> Callable[[], int]:
    return lambda: raw("prctl", option)


def _own_fs() -> bool:
    return raw("kcmp", os.getpid(), _tid(), KCMP_FS) != 0


def _tid() -> int:
    import threading

    return threading.get_native_id()


def _root() -> int:
    return os.stat("/").st_ino


def _nothing() -> None:
    """Show nothing: it cannot be seen from anywhere."""


def _nothing_needed() -> None:
    """No preparation."""


class Call(NamedTuple):
    """A change: how to make it by libc or by number, and a value that is another afterwards.

    ``broadcast``: libc makes every thread do it, and waits for each; otherwise it is the
    calling thread's alone (or, for chroot, at once everybody's). ``stains``: no comparison
    of threads shows it.
    """

    make: Callable[[], object]
    shown: Callable[[], object]
    broadcast: bool = False
    prepare: Callable[[], object] = _nothing_needed
    stains: bool = False


def _ways(name: str, arguments: tuple[Any, ...], shown: Callable[[], object], **more: Any) -> dict[str, Call]:
    """Return one change by libc's function and by its syscall()."""
    alone = {key: value for key, value in more.items() if key != "broadcast"}
    return {
        name: Call(lambda: by_libc(name, *arguments), shown, **more),
        f"syscall-{name}": Call(lambda: by_syscall(name, *arguments), shown, **alone),
    }


def _prctl(name: str, arguments: tuple[Any, ...], shown: Callable[[], object], **more: Any) -> dict[str, Call]:
    longs = [ctypes.c_ulong(_number(argument)) for argument in (*arguments, 0, 0, 0, 0)[1:5]]
    return {
        f"prctl-{name}": Call(lambda: by_libc("prctl", arguments[0], *longs), shown, **more),
        f"syscall-prctl-{name}": Call(lambda: by_syscall("prctl", arguments[0], *longs), shown, **more),
    }


def _libcap() -> None:
    libcap = ctypes.CDLL("libcap.so.2", use_errno=True)
    libcap.cap_init.restype = ctypes.c_void_p
    empty = ctypes.c_void_p(libcap.cap_init())
    if libcap.cap_set_proc(empty):
        raise OSError(ctypes.get_errno(), "cap_set_proc")
    libcap.cap_free(empty)


_UID, _GID, _GROUPS = _status("Uid"), _status("Gid"), _status("Groups")

CALLS: dict[str, Call] = {
    **_ways("setuid", (NOBODY,), _UID, broadcast=True),
    "seteuid": Call(lambda: by_libc("seteuid", NOBODY), _UID, broadcast=True),
    **_ways("setreuid", (NOBODY, NOBODY), _UID, broadcast=True),
    **_ways("setresuid", (NOBODY, NOBODY, NOBODY), _UID, broadcast=True),
    **_ways("setgid", (NOBODY,), _GID, broadcast=True),
    "setegid": Call(lambda: by_libc("setegid", NOBODY), _GID, broadcast=True),
    **_ways("setregid", (NOBODY, NOBODY), _GID, broadcast=True),
    **_ways("setresgid", (NOBODY, NOBODY, NOBODY), _GID, broadcast=True),
    **_ways("setgroups", (1, _groups), _GROUPS, broadcast=True),
    "initgroups": Call(lambda: by_libc("initgroups", b"nobody", 4321), _GROUPS, broadcast=True),
    **_ways("setfsuid", (NOBODY,), _UID),
    **_ways("setfsgid", (NOBODY,), _GID),
    **_ways("capset", (_header, _no_caps), _status("CapEff")),
    "libcap": Call(_libcap, _status("CapEff")),
    **_prctl("no-new-privs", (PR_NO_NEW_PRIVS, 1), _status("NoNewPrivs")),
    **_prctl("securebits", (PR_SECUREBITS, SECBIT_NOROOT), _prctl_get(PR_GET_SECUREBITS), stains=True),
    **_prctl("keepcaps", (PR_KEEPCAPS, 1), _prctl_get(PR_GET_KEEPCAPS)),
    **_prctl("capbset-drop", (PR_CAPBSET_DROP, CAP_MKNOD), _status("CapBnd")),
    **_prctl("ambient", (PR_AMBIENT, AMBIENT_CLEAR_ALL), _status("CapAmb"), prepare=inherit_chown),
    **_prctl("seccomp", (PR_SECCOMP, 2, _program), _status("Seccomp"), stains=True),
    "syscall-seccomp": Call(lambda: by_syscall("seccomp", 1, 0, _program), _status("Seccomp"), stains=True),
    "syscall-seccomp-tsync": Call(lambda: by_syscall("seccomp", 1, TSYNC, _program), _status("Seccomp")),
    "unshare-uts": Call(lambda: by_libc("unshare", UTS), _link("ns/uts")),
    "unshare-net": Call(lambda: by_libc("unshare", NET), _link("ns/net")),
    "unshare-mnt": Call(lambda: by_libc("unshare", NEWNS), _link("ns/mnt")),
    "unshare-fs": Call(lambda: by_libc("unshare", FS), _own_fs),
    "syscall-unshare": Call(lambda: by_syscall("unshare", UTS), _link("ns/uts")),
    "setns": Call(lambda: by_libc("setns", Held.uts, UTS), _link("ns/uts"), prepare=other_uts),
    "syscall-setns": Call(lambda: by_syscall("setns", Held.uts, UTS), _link("ns/uts"), prepare=other_uts),
    **_ways("chroot", (b"/usr",), _root),
    "syscall-keyctl": Call(lambda: by_syscall("keyctl", JOIN_SESSION, 0), _nothing, stains=True),
    "syscall-landlock": Call(
        lambda: by_syscall("landlock_restrict_self", Held.ruleset, 0), _nothing, prepare=ruleset, stains=True
    ),
}


def _chroot_alone() -> None:
    raw("unshare", FS)
    raw("chroot", b"/usr")


#: What makes the calling thread another than the rest, past every wrapper.
RAW: dict[str, Callable[[], object]] = {
    "uid": lambda: raw("setresuid", NOBODY, NOBODY, NOBODY),
    "fsuid": lambda: raw("setfsuid", NOBODY),
    "gid": lambda: raw("setresgid", NOBODY, NOBODY, NOBODY),
    "fsgid": lambda: raw("setfsgid", NOBODY),
    "groups": lambda: raw("setgroups", 1, _groups),
    "capabilities": lambda: raw("capset", _header, _no_caps),
    "bounding set": lambda: raw("prctl", PR_CAPBSET_DROP, CAP_MKNOD),
    "ambient set": lambda: raw("prctl", PR_AMBIENT, AMBIENT_CLEAR_ALL),
    "no_new_privs": lambda: raw("prctl", PR_NO_NEW_PRIVS, 1),
    "filter": lambda: raw("seccomp", 1, 0, _program),
    "root": _chroot_alone,
    "uts namespace": lambda: raw("unshare", UTS),
    "net namespace": lambda: raw("unshare", NET),
    "mount namespace": lambda: raw("unshare", NEWNS),
    "ipc namespace": lambda: raw("unshare", 0x08000000),
    "cgroup namespace": lambda: raw("unshare", 0x02000000),
}


def opening(fifo: str) -> ctypes.Array[ctypes.c_char]:
    """Return file actions of posix_spawn(3) that hold the child in the open of a FIFO, as descriptor 0."""
    actions = ctypes.create_string_buffer(1024)  # more than either libc's has
    libc.posix_spawn_file_actions_init(actions)
    libc.posix_spawn_file_actions_addopen(actions, 0, fifo.encode(), os.O_RDONLY, 0)
    return actions
