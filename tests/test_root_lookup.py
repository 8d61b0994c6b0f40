"""Programs looked up inside another root: nothing leads out of it, and nothing is left open."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import _binding, _checks, _executable

LIB = _binding.lib
#: Here, in a child with memory of its own, in a child on ours.
WAYS: dict[str, int | None] = {
    "here": None,
    "bounded": 0,
    "bounded-shared": LIB.SS_SHARE_MEMORY | LIB.SS_REQUIRE_ALONE,
}


class Finder:
    """Looks up in one of the ways, and closes at its end what was opened."""

    def __init__(self, sharing: int | None) -> None:
        self.sharing = sharing
        self.opened = _binding.Opened()

    def __call__(self, name: bytes, dirs: list[bytes] | None = None, **options: Any) -> _binding.Found:
        seen = _binding.Seen()
        if self.sharing is None:
            return _binding.find(name, dirs, seen=seen, opened=self.opened, **options)
        found, outcome = _binding.find_bounded(
            name,
            dirs,
            seen=seen,
            opened=self.opened,
            slot=_binding.Slot(),
            deadline_ns=time.monotonic_ns() + 60 * 10**9,
            sharing=self.sharing,
            **options,
        )
        assert outcome.outcome == "exec"
        return found


@pytest.fixture(params=WAYS)
def find(request: pytest.FixtureRequest) -> Iterator[Finder]:
    """Return a function that looks up; what it opens is closed at the end."""
    helpers.wait_until_alone()
    finder = Finder(WAYS[request.param])
    yield finder
    finder.opened.close()


def make(path: Path, mode: int = 0o755) -> Path:
    """Make a program with an inode of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n", encoding="ascii")
    path.chmod(mode)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root with a program of its own under a name that is in ours too, beside other files."""
    make(tmp_path / "root" / "bin" / "sh")
    make(tmp_path / "outside" / "only")
    make(tmp_path / "root" / "srv" / "tool")
    return tmp_path / "root"


def identity(fd_or_path: int | Path) -> tuple[int, int]:
    """Return what tells one file from another."""
    seen = os.stat(fd_or_path)
    return seen.st_dev, seen.st_ino


# ------------------------------------------------------------------ nothing leads out


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("/bin/sh", {}),
        ("bin/sh", {}),
        ("/../../../../bin/sh", {}),
        ("/srv/../../../../bin/sh", {}),
        ("/absolute", {"absolute": "/bin/sh"}),
        ("/upwards", {"upwards": "../../../../../../../bin/sh"}),
        ("/srv/deeper", {"srv/deeper": "../../../../../../../bin/sh"}),
        ("/directory/sh", {"directory": "/bin"}),
        ("/climbing/bin/sh", {"climbing": "../../../.."}),
        ("/slash/bin/sh", {"slash": "/"}),
        ("/chain", {"chain": "/next", "next": "/directory/sh", "directory": "../../bin"}),
    ],
)
def test_name_stays_inside(find: Finder, root: Path, name: str, links: dict[str, str]) -> None:
    """Absolute names, links and ".." lead to the root's own file, not to ours of the same name."""
    for link, target in links.items():
        (root / link).symlink_to(target)
    assert Path("/bin/sh").exists()

    found = find(os.fsencode(name), root=os.fsencode(root))

    assert (found.errno, found.path) == (0, os.fsencode(name))
    assert identity(found.exe_fd) == identity(root / "bin" / "sh")


@pytest.mark.parametrize("name", ["absolute", "relative", "directory/only"])
def test_link_to_what_is_only_outside_leads_nowhere(find: Finder, root: Path, name: str) -> None:
    """A link out of the root is a link to what is missing, though the file is there for us."""
    (root / "absolute").symlink_to(root.parent / "outside" / "only")
    (root / "relative").symlink_to("../outside/only")
    (root / "directory").symlink_to("../outside")
    assert (root / name).is_file()

    found = find(os.fsencode(f"/{name}"), root=os.fsencode(root))

    assert (found.errno, found.stage, found.exe_fd) == (errno.ENOENT, "lookup", -1)


def test_mounts_inside_are_entered_and_links_of_proc_are_not(tmp_path: Path) -> None:
    """A file system mounted below is part of the root; a link of a /proc there leads out of nothing."""
    make(tmp_path / "bin" / "sh")
    for name in ("proc", "usable", "noexec"):
        (tmp_path / name).mkdir()
    out = helpers.run_snippet(
        """
import ctypes, shutil
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0  # CLONE_NEWNS
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
assert libc.mount(b"proc", f"{root}/proc".encode(), b"proc", 0, None) == 0
for name, flags in (("usable", 0), ("noexec", 8)):  # MS_NOEXEC
    assert libc.mount(b"none", f"{root}/{name}".encode(), b"tmpfs", flags, None) == 0
    shutil.copy2(f"{root}/bin/sh", f"{root}/{name}/tool")
opened = _binding.Opened()
def find(name):
    return _binding.find(name, None, seen=_binding.Seen(), opened=opened, root=root.encode()).errno
out["found"] = [find(b"/usable/tool"), find(b"/noexec/tool")]
fd = os.open(f"{root}/bin/sh", os.O_RDONLY)
out["proc"] = [find(name.encode()) for name in ("/proc/self/root/bin/sh", "/proc/self/exe", f"/proc/self/fd/{fd}")]
""",
        root=str(tmp_path),
    )
    assert out == {"found": [0, errno.EACCES], "proc": [errno.ELOOP] * 3}


def test_renames_elsewhere_do_not_fail_a_lookup(root: Path) -> None:
    """The kernel gives up a lookup with ".." when anything is moved meanwhile; it is made again."""
    deep = root / "/".join("d" * 30)
    deep.mkdir(parents=True)
    name = b"/" + b"/".join([b"d"] * 30 + [b".."] * 30) + b"/bin/sh"
    here, there = root.parent / "here", root.parent / "there"
    here.mkdir()
    mover = os.fork()
    if mover == 0:
        try:
            while True:
                os.rename(here, there)
                os.rename(there, here)
        finally:
            os._exit(1)
    try:
        finder = Finder(None)
        for _ in range(3000):
            assert finder(name, root=os.fsencode(root)).errno == 0
            finder.opened.close()
    finally:
        os.kill(mover, 9)
        os.waitpid(mover, 0)


# -------------------------------------------------------------------------- the search


def test_search_is_made_inside(find: Finder, root: Path) -> None:
    """Each directory of PATH is one inside the root, in their order; the rest is passed over."""
    make(root / "usr" / "bin" / "tool")
    (root / "file").write_text("")
    (root / "loop").symlink_to("/loop")
    dirs = [b"/missing", b"/file", b"/loop", os.fsencode(root / "srv"), b"/usr/bin", b"/srv"]

    found = find(b"tool", dirs, root=os.fsencode(root))

    assert (found.errno, found.path) == (0, b"/usr/bin/tool")
    assert identity(found.exe_fd) == identity(root / "usr" / "bin" / "tool")


def test_search_remembers_what_is_forbidden(find: Finder, root: Path) -> None:
    """As execvp: a forbidden candidate is passed over for a good one, and else what is told."""
    make(root / "first" / "tool", 0o644)

    assert find(b"tool", [b"/first", b"/srv"], root=os.fsencode(root)).path == b"/srv/tool"
    found = find(b"tool", [b"/first", b"/missing"], root=os.fsencode(root))

    assert (found.errno, found.stage) == (errno.EACCES, "lookup")


def test_search_that_finds_nothing(find: Finder, root: Path) -> None:
    """A program that is only in our own directories is missing there."""
    found = find(b"true", [b"/bin", b"/usr/bin"], root=os.fsencode(root))
    assert (found.errno, found.stage) == (errno.ENOENT, "lookup")


@pytest.mark.parametrize(
    ("request_of", "sought"),
    [
        ({}, (b"tool", (b"/usr/bin", b"/relative", b"/"))),
        ({"cwd": "/srv"}, (b"tool", (b"/usr/bin", b"/srv/relative", b"/srv/"))),
        ({"cwd": "srv"}, (b"tool", (b"/usr/bin", b"/srv/relative", b"/srv/"))),
        ({"executable": "/bin/sh", "cwd": "/srv"}, (b"/bin/sh", None)),
        ({"executable": "bin/sh"}, (b"/bin/sh", None)),
        ({"executable": "./sh", "cwd": "/bin"}, (b"/bin/./sh", None)),
        ({"executable": "../bin/sh", "cwd": "srv"}, (b"/srv/../bin/sh", None)),
        ({"executable": "../bin/sh", "root": None, "cwd": "srv"}, (b"../bin/sh", None)),
        ({"root": None, "cwd": "srv"}, (b"tool", (b"/usr/bin", b"relative", b""))),
    ],
)
def test_relative_names_begin_in_the_childs_directory(
    request_of: dict[str, Any], sought: tuple[bytes, tuple[bytes, ...] | None]
) -> None:
    """Inside a root every name is absolute: from ``cwd``, which is a path inside it, or from its top."""
    request = _checks.request(["tool"], {"root": "/the/root", **request_of})
    names = []

    def finder(name: bytes, dirs: tuple[bytes, ...] | None, copy: bool) -> _binding.Found:
        names.append((name, dirs))
        raise _executable.LookupProblem("lookup", errno.ENOENT)

    with pytest.raises(_executable.LookupProblem):
        _executable.find(request, ((b"PATH", b"/usr/bin:relative:"),), finder, 0)

    assert names == [sought]


# --------------------------------------------------------------------- what is no program


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("missing", errno.ENOENT),
        ("below a file", errno.ENOTDIR),
        ("dangling", errno.ENOENT),
        ("loop", errno.ELOOP),
        ("no bit", errno.EACCES),
        ("directory", errno.EACCES),
        ("fifo", errno.EACCES),
        ("socket", errno.EACCES),
        ("device", errno.EACCES),
        ("link to fifo", errno.EACCES),
    ],
)
def test_what_cannot_be_run_is_refused(find: Finder, root: Path, kind: str, number: int) -> None:
    """It is what execve would say, at once: no FIFO and no device is opened, nothing waits."""
    path = root / "candidate"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "below a file":
            path = root / "bin" / "sh" / "candidate"
        elif kind == "dangling":
            path.symlink_to("/nowhere")
        elif kind == "loop":
            path.symlink_to("/candidate")
        elif kind == "no bit":
            make(path, 0o644)
        elif kind == "directory":
            path.mkdir(mode=0o755)
        elif kind == "fifo":
            os.mkfifo(path, 0o755)
        elif kind == "link to fifo":
            os.mkfifo(root / "fifo", 0o755)
            path.symlink_to("/fifo")
        elif kind == "socket":
            server.bind(os.fsencode(path))
            path.chmod(0o755)
        elif kind == "device":
            os.mknod(path, 0o020755, os.makedev(5, 0))  # /dev/tty

        found = find(b"/" + os.fsencode(path.relative_to(root)), root=os.fsencode(root))

    assert (found.errno, found.stage) == (number, "lookup")
    assert (found.exe_fd, found.root_fd) == (-1, -1)


def test_fifo_sees_no_reader(find: Finder, root: Path) -> None:
    """The writer of a FIFO is not woken: nobody has opened it for reading."""
    os.mkfifo(root / "fifo", 0o755)
    opens = []
    found = find(b"/fifo", root=os.fsencode(root))
    try:
        opens.append(os.open(root / "fifo", os.O_WRONLY | os.O_NONBLOCK))
    except OSError as problem:
        opens.append(-problem.errno)
    assert (found.errno, opens) == (errno.EACCES, [-errno.ENXIO])


AS_NOBODY = """
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
opened = _binding.Opened()
def find(name):
    found = _binding.find(name, None, seen=_binding.Seen(), opened=opened, root=root.encode(), details=True)
    return [found.errno, found.readable, found.exe_fd >= 0, found.head.decode()]
"""


def test_permissions_are_the_callers(root: Path) -> None:
    """What may be run but not read is found, and said to be not held; what may not be run is refused."""
    helpers.make_readable(root)
    for mode in (0o711, 0o744, 0o700, 0o755):
        make(root / f"{mode:o}", mode)
    make(root / "closed" / "tool")
    (root / "closed").chmod(0o700)
    out = helpers.run_snippet(
        AS_NOBODY + "out.update({name: find(f'/{name}'.encode()) for name in names})",
        root=str(root),
        names=["711", "744", "700", "755", "closed/tool"],
    )
    assert out == {
        "711": [0, False, True, ""],
        "744": [errno.EACCES, True, False, ""],
        "700": [errno.EACCES, False, False, ""],
        "755": [0, True, True, "#!/bin/sh\n"],
        "closed/tool": [errno.EACCES, False, False, ""],
    }


# ----------------------------------------------------------------------------- the lease

LEASED = """
import fcntl
answer, answer_write = os.pipe()
stop, stop_write = os.pipe()
holder = os.fork()
if holder == 0:
    fd = os.open(f"{root}/bin/sh", os.O_RDONLY)
    def broken(number, frame):
        os.write(answer_write, b"b")
        if gives_up:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    signal.signal(signal.SIGIO, broken)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    os.write(answer_write, b".")
    os.close(stop_write)
    os.read(stop, 1)
    os._exit(0)
os.read(answer, 1)
opened, slot = _binding.Opened(), _binding.Slot()
more = dict(seen=_binding.Seen(), opened=opened, root=root.encode())
"""


@pytest.mark.parametrize("deadline", [None, 60])
def test_lease_is_broken_before_the_program_is_held(root: Path, deadline: int | None) -> None:
    """A lease on the program is asked back during the lookup, and the file is open for reading then."""
    out = helpers.run_snippet(
        LEASED
        + """
if deadline is None:
    found = _binding.find(b"/bin/sh", None, **more)
else:
    deadline_ns = time.monotonic_ns() + deadline * 10**9
    found, _ = _binding.find_bounded(b"/bin/sh", None, slot=slot, deadline_ns=deadline_ns, **more)
out["found"] = [found.errno, found.readable, os.read(found.exe_fd, 2).decode()]
out["asked"] = os.read(answer, 1).decode()
os.close(stop_write)
os.waitpid(holder, 0)
""",
        root=str(root),
        gives_up=True,
        deadline=deadline,
    )
    assert out == {"found": [0, True, "#!"], "asked": "b"}


def test_lease_that_is_kept_is_bounded(root: Path) -> None:
    """A lease that is not given up: the lookup ends at the deadline, with nothing open."""
    out = helpers.run_snippet(
        LEASED
        + """
before = sorted(os.listdir("/proc/self/fd"))
start = time.monotonic()
deadline_ns = time.monotonic_ns() + 3 * 10**8
_, outcome = _binding.find_bounded(b"/bin/sh", None, slot=slot, deadline_ns=deadline_ns, **more)
out["outcome"] = [outcome.outcome, outcome.stage, time.monotonic() - start < 30]
out["same"] = sorted(os.listdir("/proc/self/fd")) == before
os.close(stop_write)
os.waitpid(holder, 0)
""",
        root=str(root),
        gives_up=False,
    )
    assert out == {"outcome": ["timed-out", "lookup", True], "same": True}


# ------------------------------------------------------------------------------ the root


@pytest.mark.parametrize(
    ("name", "number"),
    [("missing", errno.ENOENT), ("bin/sh", errno.ENOTDIR), ("bin/sh/below", errno.ENOTDIR), ("x" * 300, errno.ENAMETOOLONG)],
)
def test_root_that_cannot_be_opened(find: Finder, root: Path, name: str, number: int) -> None:
    """It has a stage of its own, before that of the program."""
    found = find(b"/bin/sh", root=os.fsencode(root / name))
    assert (found.errno, found.stage) == (number, "open-root")
    assert (found.exe_fd, found.root_fd) == (-1, -1)


@pytest.mark.parametrize(("kind", "number"), [("file", errno.ENOTDIR), ("closed", errno.EBADF)])
def test_root_descriptor_that_is_no_directory(find: Finder, root: Path, kind: str, number: int) -> None:
    """So has a descriptor that is none of a directory, in a search too."""
    fd = os.open(root / "bin" / "sh", os.O_RDONLY)
    try:
        given = fd if kind == "file" else 10**6
        for dirs in (None, [b"/bin"]):
            found = find(b"sh", dirs, root=given)
            assert (found.errno, found.stage) == (number, "open-root")
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_root_by_descriptor(find: Finder, root: Path, flags: int) -> None:
    """A descriptor does as well, stays the caller's, and nothing else is opened for it."""
    fd = os.open(root, flags | os.O_DIRECTORY)
    try:
        found = find(b"sh", [b"/bin"], root=fd)
        assert (found.errno, found.root_fd) == (0, -1)
        assert identity(found.exe_fd) == identity(root / "bin" / "sh")
        find.opened.close()
        assert identity(fd) == identity(root)
    finally:
        os.close(fd)


def test_descriptor_zero_is_a_root_like_any_other(root: Path) -> None:
    """Number 0 is not taken for "none", nor "none" for number 0."""
    out = helpers.run_snippet(
        """
os.dup2(os.open(root, os.O_PATH), 0)
opened = _binding.Opened()
def find(**more):
    return _binding.find(b"/srv/tool", None, seen=_binding.Seen(), opened=opened, **more).errno
out["errnos"] = [find(root=0), find()]
""",
        root=str(root),
    )
    assert out == {"errnos": [0, errno.ENOENT]}


def test_link_to_the_root_is_followed(find: Finder, root: Path) -> None:
    """The name of the root itself is an ordinary one of ours."""
    (root.parent / "link").symlink_to("root")
    found = find(b"/srv/tool", root=os.fsencode(root.parent / "link"))
    assert identity(found.root_fd) == identity(root)


# ------------------------------------------------------------------------ the descriptors


def test_descriptors_are_handed_over(find: Finder, root: Path) -> None:
    """Program, working directory, root and, in a child, the copy: each is what it is called."""
    before = helpers.open_fds()
    options: dict[str, Any] = {} if find.sharing is None else {"copy": True}
    found = find(b"/srv/tool", root=os.fsencode(root), cwd=os.fsencode(root.parent), **options)

    named = {found.exe_fd, found.cwd_fd, found.root_fd} | ({found.copy_fd} if options else set())
    assert helpers.open_fds() - before == named
    assert len(named) == (4 if options else 3)
    assert identity(found.exe_fd) == identity(root / "srv" / "tool")
    assert identity(found.cwd_fd) == identity(root.parent)
    assert identity(found.root_fd) == identity(root)
    assert not options or os.pread(found.copy_fd, 100, 0) == b"#!/bin/sh\n"
    assert fcntl.fcntl(found.root_fd, fcntl.F_GETFL) & os.O_PATH
    assert not any(map(os.get_inheritable, named))
    find.opened.close()
    assert (found.exe_fd, found.cwd_fd, found.root_fd, found.copy_fd) == (-1, -1, -1, -1)
    assert helpers.open_fds() == before


def test_failed_lookup_leaves_nothing_open(find: Finder, root: Path) -> None:
    """When the program is missing the root is closed again, before anybody asks for it."""
    before = helpers.open_fds()
    assert find(b"/missing", root=os.fsencode(root)).errno == errno.ENOENT
    assert helpers.open_fds() == before


def test_program_is_held_for_reading(find: Finder, root: Path) -> None:
    """The descriptor is open for reading, not only a place: nobody takes a write lease meanwhile."""
    found = find(b"/srv/tool", root=os.fsencode(root), details=True)
    assert found.readable
    assert fcntl.fcntl(found.exe_fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH) == os.O_RDONLY
    assert found.head == b"#!/bin/sh\n"
    fd = os.open(root / "srv" / "tool", os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    finally:
        os.close(fd)


# ------------------------------------------------------------------------- older kernels


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EAGAIN])
def test_kernel_without_openat2(root: Path, number: int) -> None:
    """Where the call is missing or refused that is told, and nothing is looked up without it."""
    out = helpers.run_snippet(
        """
import sandbox
sandbox.answer({"openat2": number})
opened = _binding.Opened()
def find(name, dirs, **more):
    found = _binding.find(name, dirs, seen=_binding.Seen(), opened=opened, **more)
    return [found.errno, found.stage]
out["path"] = find(b"/bin/sh", None, root=root.encode())
out["search"] = find(b"sh", [b"/bin"], root=root.encode())
out["no root"] = find(b"sh", [b"/bin"])
""",
        root=str(root),
        number=number,
    )
    assert out == {"path": [number, "lookup"], "search": [number, "lookup"], "no root": [0, "lookup"]}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_kernel_without_faccessat2(root: Path, number: int) -> None:
    """The permission to execute is then asked for by way of /proc."""
    make(root / "bin" / "plain", 0o644)
    out = helpers.run_snippet(
        """
import sandbox
sandbox.answer({"faccessat2": number})
opened = _binding.Opened()
for name in ("sh", "plain"):
    found = _binding.find(f"/bin/{name}".encode(), None, seen=_binding.Seen(), opened=opened, root=root.encode())
    out[name] = found.errno
""",
        root=str(root),
        number=number,
    )
    assert out == {"sh": 0, "plain": errno.EACCES}


def test_without_proc_the_program_is_found_but_not_held(root: Path) -> None:
    """Without /proc there is no second descriptor of a file; the lookup says so, and goes on."""
    out = helpers.run_snippet(
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0  # CLONE_NEWNS
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
seen, opened = _binding.Seen(), _binding.Opened()
assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
found = _binding.find(b"/bin/sh", None, seen=seen, opened=opened, root=root.encode())
out["found"] = [found.errno, found.readable, os.fstat(found.exe_fd).st_ino == os.stat(f"{root}/bin/sh").st_ino]
""",
        root=str(root),
    )
    assert out == {"found": [0, False, True]}


# ------------------------------------------------------------------------- whole requests


@pytest.mark.parametrize("more", [{}, {"deadline": 60}], ids=["plain", "deadline"])
@pytest.mark.parametrize(
    ("argv0", "options", "stage", "names"),
    [
        ("/bin/true", {}, "lookup", "/bin/true"),
        ("true", {"env": {"PATH": "/bin:/usr/bin"}}, "lookup", "true"),
        ("./missing", {"cwd": "/only-inside"}, "lookup", "./missing"),
        ("/bin/sh", {"root": "missing"}, "open-root", "missing"),
    ],
)
def test_spawn_looks_inside_the_root(
    root: Path, argv0: str, options: dict[str, Any], stage: str, names: str, more: dict[str, Any]
) -> None:
    """A program of ours is missing there, ``cwd`` is not looked for outside, a bad root is named."""
    (root / "only-inside").mkdir()
    where = str(root / options["root"]) if "root" in options else str(root)
    with pytest.raises(FileNotFoundError) as caught:
        safespawn.spawn([argv0], strategy="fork", **{**options, **more, "root": where})
    problem: Any = caught.value
    assert (problem.stage, problem.report.outcome) == (stage, "failed")
    assert problem.filename == (where if stage == "open-root" else names)


def test_closed_descriptor_as_root_is_refused() -> None:
    """It is named before anything is looked at."""
    with pytest.raises(OSError, match=r"root: descriptor 1000000 is not open") as caught:
        safespawn.spawn(["/bin/true"], root=10**6)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("root", ["/srv", 5])
def test_directory_by_descriptor_is_no_path_inside_a_root(root: str | int) -> None:
    """``cwd`` as a descriptor leads out of a root: both values are shown."""
    with pytest.raises(ValueError, match=rf"cwd=7 and root=.*{root}"):
        _checks.request(["true"], {"cwd": 7, "root": root})
