"""The program: found, opened, looked at, hashed and judged before anything is started."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import _binding, _policy, guards
from ._refusals import Refusals
from ._spec import Executable, PathNode, Request, Verdict

#: Linux follows a script that names a script as its interpreter so many times
#: (exec_binprm of fs/exec.c).
INTERPRETERS_MAX = 5
_CHUNK = 1 << 20
#: Directories on the way to an interpreter; a loop of links ends there.
PASSED_MAX = 256

#: A directory that lacks a program is no reason to look no further (execvp(3)).
ABSENT = (errno.ENOENT, errno.ENOTDIR)

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
class Program:
    """The program and the working directory, held open over the window by ``_binding.Opened``.

    ``verdicts`` are what the guards said of the file; a refusal among them decides.
    """

    found: _binding.Found
    exec_path: bytes
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
        interpreter = _interpreter(self.found.head) if self.script else None
        return self.found.executable(pinned=self.pinned, sha256=self.sha256, interpreter=interpreter)

    def unchanged(self, deadline_ns: int) -> dict[str, int] | None:
        """Return size, mtime and ctime as they are now, if the content is still what was hashed."""
        seen, size = os.fstat(self.found.exe_fd), self.found.content["size"]
        if seen.st_size != size:
            return None
        try:
            same = _sha256(self.found.exe_fd, size, deadline_ns) == self.sha256
        except OSError:  # an O_PATH descriptor: it cannot be read
            return None
        if not same:
            return None
        return {"size": seen.st_size, "mtime_ns": seen.st_mtime_ns, "ctime_ns": seen.st_ctime_ns}


def path_of(env: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, ...]:
    """Return the directories that execvp(3) would search with this environment."""
    for name, value in env:
        if name == b"PATH":
            return tuple(value.split(b":"))
    return tuple(os.fsencode(os.defpath).split(b":"))


def _wanted(request: Request, env: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, tuple[bytes, ...] | None]:
    """Return the name of the program, and the directories to look for it in, unless it is a path."""
    name = request.executable if request.executable is not None else request.argv[0]
    dirs = None if b"/" in name else path_of(env)
    if request.root is None:
        return name, dirs
    # Inside another root: where the child will be, when it is there.
    start = posixpath.join(b"/", request.cwd if isinstance(request.cwd, bytes) else b"")
    if dirs is None:
        return posixpath.join(start, name), None
    return name, tuple(posixpath.join(start, entry) for entry in dirs)


def _as_search(candidates: tuple[bytes, ...]) -> tuple[bytes, tuple[bytes, ...]] | None:
    """Return the one name and the directories that these paths are made of, None if they are not."""
    dirs, names = zip(*map(posixpath.split, candidates), strict=True)
    name = names[0]
    made = tuple(posixpath.join(where, name) for where in dirs)
    return (name, dirs) if name and made == candidates else None


def _first(candidates: tuple[bytes, ...], finder: Finder, copy: bool) -> _binding.Found:
    """Look for paths one after the other; the first problem that is not absence counts, as in subprocess."""
    if len(candidates) > 1 and (search := _as_search(candidates)):
        return finder(*search, copy)
    problem: _binding.Found | None = None
    for path in filter(None, candidates):  # an empty one is nowhere
        found = finder(path if b"/" in path else b"./" + path, None, copy)
        if not found.errno:
            return found
        if problem is None or problem.errno in ABSENT:
            problem = found
    if problem is None:
        raise LookupProblem("lookup", errno.ENOENT)
    return problem


def find(request: Request, env: tuple[tuple[bytes, bytes], ...], finder: Finder, deadline_ns: int) -> Program:
    """Find, open and judge the program of a request. Raises LookupProblem."""
    if request.candidates:
        found = _first(request.candidates, finder, request.pinned)
    else:
        found = finder(*_wanted(request, env), request.pinned)
    if found.errno:
        raise LookupProblem(found.stage, found.errno)
    exec_path = found.real if request.path_policy == "trusted" else found.path
    program = Program(found, exec_path, request.pinned)
    if (refusals := _policy.refusals()) is not None:
        program.verdicts += (_allowed(found, finder, refusals),)
    if request.path_policy == "trusted":
        program.verdicts += (_trusted(found, finder),)
    if request.pinned:
        _pin(request, program, deadline_ns)
    return program


def _interpreter(head: bytes) -> str | None:
    """Return the first word after ``#!``, split where the kernel does (fs/binfmt_script.c)."""
    if head[:2] != b"#!":
        return None
    line = head[2:].partition(b"\n")[0].partition(b"\0")[0]
    word = line.lstrip(b" \t").partition(b" ")[0].partition(b"\t")[0]
    return os.fsdecode(word) if word else None


def _has_dev_fd(request: Request, found: _binding.Found) -> bool:
    """Whether the child will have it: the kernel hands a script over as /dev/fd/N (fs/exec.c)."""
    if request.root is None:
        return os.path.exists("/dev/fd")
    root_fd = request.root if isinstance(request.root, int) else found.root_fd
    try:  # what a link inside the root leads to can only be told inside
        os.stat("dev/fd", dir_fd=root_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _pin(request: Request, program: Program, deadline_ns: int) -> None:
    found = program.found
    if program.script and not _has_dev_fd(request, found):
        raise LookupProblem("lookup", errno.ENOENT)
    if not found.readable and found.copy_fd < 0:
        raise LookupProblem("lookup", errno.EACCES)
    fd = found.copy_fd if found.copy_fd >= 0 else found.exe_fd
    try:
        program.sha256 = _sha256(fd, found.content["size"], deadline_ns)
    except OSError as problem:
        if problem.errno in (None, errno.ETIMEDOUT):  # a handler's, and that of the deadline
            raise
        raise LookupProblem("lookup", problem.errno) from problem
    program.verdicts += (_same(request.digest, program.sha256),)


# exe-pinned (T-14): the exec goes by the descriptor that was hashed, and the child looks once
# more that nobody was seen to write to the file since. Against stores to a mapping made before, and
# writes to a script before its interpreter has read it, the kernel offers nothing.
def _same(wanted: str | None, digest: str) -> Verdict:
    if wanted is not None and wanted != f"sha256:{digest}":
        return Verdict("exe-pinned", "deny", f"its digest is sha256:{digest}, not {wanted}")
    return Verdict("exe-pinned", "allow", "run by the descriptor that was hashed")


def _sha256(fd: int, size: int, deadline_ns: int) -> str:
    """Hash a file of that size by pread, so that the descriptor's position stays at the start.

    Somebody may be making it longer all the while: no more than ``size`` is read. Raises
    TimeoutError at the deadline (monotonic, 0 for none).
    """
    digest = hashlib.sha256()
    at = 0
    while at < size and (chunk := os.pread(fd, min(_CHUNK, size - at), at)):
        if deadline_ns and time.monotonic_ns() > deadline_ns:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()


class _UnknownError(Exception):
    """What interprets a program cannot be told: the reason."""


def _interpreters(found: _binding.Found, finder: Finder) -> Iterator[tuple[str, _binding.Found]]:
    """Yield every interpreter behind a ``#!``, by its name there. Raises _UnknownError."""
    for _ in range(INTERPRETERS_MAX):
        if not found.head:
            raise _UnknownError("it cannot be read, so what interprets it is unknown")
        interpreter = _interpreter(found.head)
        if interpreter is None:
            return
        if not interpreter.startswith("/"):
            raise _UnknownError(f"its interpreter {interpreter!r} is no absolute path")
        found = finder(os.fsencode(interpreter), None, False)
        if found.errno:
            raise _UnknownError(f"{interpreter}: {os.strerror(found.errno)}")
        yield interpreter, found


def _trusted(found: _binding.Found, finder: Finder) -> Verdict:
    """Judge the program's path, and the way to every interpreter behind a ``#!``."""
    euid = os.geteuid()
    verdict = guards.trusted(found.nodes(), euid)
    try:
        for name, interpreter in _interpreters(found, finder) if verdict.result == "allow" else ():
            # The kernel goes by the name in the script, so all that this passes must be trusted too.
            verdict = guards.trusted(_passed(name) + interpreter.nodes(), euid)
            if verdict.result == "deny":
                return verdict
    except _UnknownError as why:
        return Verdict("path-trusted", "deny", str(why))
    return verdict


# program-allowed (T-35): judged is the file that was opened, by all its names that can be known, and
# not what the command says. A copy of it is another file.
def _allowed(found: _binding.Found, finder: Finder, refusals: Refusals) -> Verdict:
    """Judge the program, and every interpreter behind a ``#!``, by the list of the policy."""
    try:
        if (why := _refused(found, refusals)) is not None:
            return Verdict("program-allowed", "deny", why)
        for _, interpreter in _interpreters(found, finder):
            if (why := _refused(interpreter, refusals)) is not None:
                return Verdict("program-allowed", "deny", f"its interpreter {why}")
    except _UnknownError as why_not:
        return Verdict("program-allowed", "deny", str(why_not))
    return Verdict("program-allowed", "allow", "the policy refuses neither it nor what interprets it")


def _refused(found: _binding.Found, refusals: Refusals) -> str | None:
    """Return why a file is refused, None if it is not. In doubt it is."""
    if not found.real:
        return f"{os.fsdecode(found.path)} has no path that we can see"
    try:
        entry = refusals.entry_for(found.path, found.real, found.exe_fd)
    except OSError as problem:
        return f"{os.fsdecode(found.real)} cannot be told from what is refused: {problem}"
    return None if entry is None else f"{os.fsdecode(found.real)} is refused as {entry!r}"


def _passed(path: str) -> tuple[PathNode, ...]:
    """Return every directory in which a component of ``path`` is looked up, links followed.

    Raises LookupProblem.
    """
    seen: dict[str, PathNode] = {}
    todo = [path]
    try:
        for _ in range(PASSED_MAX):
            if not todo:
                return tuple(seen.values())
            _pass(todo.pop(), seen, todo)
    except OSError as problem:
        raise LookupProblem("lookup", problem.errno or errno.EIO) from problem
    raise LookupProblem("lookup", errno.ELOOP)


def _pass(path: str, seen: dict[str, PathNode], todo: list[str]) -> None:
    head, name = os.path.split(path.rstrip("/"))
    if not name:
        return
    if stat.S_ISLNK(os.lstat(os.path.join(head, name)).st_mode):
        todo.append(os.path.join(head, os.readlink(os.path.join(head, name))))
    if head not in seen:
        todo.append(head)
        above = os.stat(head)
        seen[head] = PathNode(head, above.st_uid, above.st_gid, above.st_mode)
