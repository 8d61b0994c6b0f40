"""The program: found, opened, looked at, hashed and judged before anything is started."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from . import _binding, guards
from ._spec import Executable, Request, Verdict

#: Linux follows a script that names a script as its interpreter so many times
#: (exec_binprm of fs/exec.c).
INTERPRETERS_MAX = 5
_CHUNK = 1 << 20

#: Looks a name up: name, directories or None, whether the file will be hashed.
Finder = Callable[[bytes, "tuple[bytes, ...] | None", bool], _binding.Found]


class LookupProblem(Exception):
    """The lookup came to an errno at a stage."""

    def __init__(self, stage: str, number: int) -> None:
        """Remember both."""
        super().__init__(stage, number)
        self.stage = stage
        self.errno = number


@dataclass
class Opened:
    """The program and the working directory, held open over the window.

    ``verdicts`` are what the guards said of the file; the last is a refusal if any is.
    """

    found: _binding.Found
    exec_path: bytes
    exe_fd: int
    cwd_fd: int
    pinned: bool
    sha256: str | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def script(self) -> bool:
        """Whether the kernel will hand it to an interpreter."""
        return self.found.head[:2] == b"#!"

    @property
    def executable(self) -> Executable:
        """Its identity, for reports."""
        return self.found.executable(
            pinned=self.pinned, sha256=self.sha256, interpreter=_interpreter(self.found.head)
        )

    def close(self) -> None:
        """Close both."""
        for fd in (self.exe_fd, self.cwd_fd):
            if fd >= 0:
                os.close(fd)
        self.exe_fd = self.cwd_fd = -1


def path_of(env: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, ...]:
    """Return the directories that execvp(3) would search with this environment."""
    for name, value in env:
        if name == b"PATH":
            return tuple(value.split(b":"))
    return tuple(os.fsencode(os.defpath).split(b":"))


def find(request: Request, env: tuple[tuple[bytes, bytes], ...], finder: Finder) -> Opened:
    """Find and open the program of a request. Raises LookupProblem."""
    name = request.executable if request.executable is not None else request.argv[0]
    dirs = None if b"/" in name else path_of(env)
    found = finder(name, dirs, request.pinned)
    if found.errno:
        raise LookupProblem(found.stage, found.errno)
    exec_path = found.real if request.path_policy == "trusted" else found.path
    opened = Opened(found, exec_path, found.exe_fd, found.cwd_fd, request.pinned)
    try:
        _judge(request, opened, finder)
    except BaseException:
        opened.close()
        raise
    finally:
        if found.copy_fd >= 0:
            os.close(found.copy_fd)
    return opened


def _interpreter(head: bytes) -> str | None:
    if head[:2] != b"#!":
        return None
    words = head[2:].partition(b"\n")[0].split()
    return os.fsdecode(words[0]) if words else None


def _judge(request: Request, opened: Opened, finder: Finder) -> None:
    found = opened.found
    if request.path_policy == "trusted":
        opened.verdicts += (_trusted(found, finder),)
    if not request.pinned:
        return
    if opened.script and not os.path.exists("/dev/fd"):
        # The kernel hands a script to its interpreter as /dev/fd/N (fs/exec.c).
        raise LookupProblem("lookup", errno.ENOENT)
    if not found.readable and found.copy_fd < 0:
        raise LookupProblem("lookup", errno.EACCES)
    opened.sha256 = _sha256(found.copy_fd if found.copy_fd >= 0 else opened.exe_fd)
    opened.verdicts += (_same(request.digest, opened.sha256),)


# exe-pinned (T-14): the exec goes by the descriptor that was hashed. A file that is written
# to afterwards, in place, still runs with its new content; the kernel offers nothing against it.
def _same(wanted: str | None, digest: str) -> Verdict:
    if wanted is not None and wanted != f"sha256:{digest}":
        return Verdict("exe-pinned", "deny", f"its digest is sha256:{digest}, not {wanted}")
    return Verdict("exe-pinned", "allow", "run by the descriptor that was hashed")


def _sha256(fd: int) -> str:
    """Hash a file by pread, so that the descriptor's position stays at the start."""
    digest = hashlib.sha256()
    at = 0
    while chunk := os.pread(fd, _CHUNK, at):
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()


def _trusted(found: _binding.Found, finder: Finder) -> Verdict:
    """Judge the program's path, and that of every interpreter behind a ``#!``."""
    euid = os.geteuid()
    verdict = guards.trusted(found.nodes(), euid)
    head = found.head
    for _ in range(INTERPRETERS_MAX):
        interpreter = _interpreter(head)
        if interpreter is None or verdict.result == "deny":
            return verdict
        behind = finder(os.fsencode(interpreter), None, False)
        if behind.errno:
            return Verdict("path-trusted", "deny", f"{interpreter}: {os.strerror(behind.errno)}")
        for fd in (behind.exe_fd, behind.cwd_fd):
            if fd >= 0:
                os.close(fd)
        verdict, head = guards.trusted(behind.nodes(), euid), behind.head
    return verdict
