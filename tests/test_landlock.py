"""Landlock rules: what each word lets a child do, what is refused without it, and what goes wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

import helpers
from safespawn import _binding, _landlock
from safespawn._spec import Landlock

#: Rules for a child of a fresh process that puts them on, does things in `where` and tells how
#: each went: "done" or the name of its errno.
CONFINED = """
import ctypes, errno, fcntl, subprocess, termios
from safespawn import _landlock, _spec
libc = ctypes.CDLL(None, use_errno=True)

def restrict(ruleset):
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.syscall(446, ruleset, 0) == 0, ctypes.get_errno()  # landlock_restrict_self

def execute(*argv):
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(argv[0], argv)
        except OSError as problem:
            os._exit(problem.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, argv[0])

def close_after(fd, use=lambda fd: None):
    try:
        use(fd)
    finally:
        os.close(fd)

def ioctl(fd):
    try:
        fcntl.ioctl(fd, termios.TCGETS, bytes(64))
    except OSError as problem:
        if problem.errno != errno.ENOTTY:  # the answer of the device itself
            raise

DO = {
    "read": lambda: close_after(os.open("file", os.O_RDONLY)),
    "list": lambda: os.listdir("."),
    "write": lambda: close_after(os.open("file", os.O_WRONLY)),
    "truncate": lambda: os.truncate("file", 0),
    "truncate open": lambda: close_after(os.open("file", os.O_WRONLY | os.O_TRUNC)),
    "create": lambda: close_after(os.open("new", os.O_WRONLY | os.O_CREAT)),
    "mkdir": lambda: os.mkdir("new directory"),
    "mkfifo": lambda: os.mkfifo("new fifo"),
    "symlink": lambda: os.symlink("file", "new link"),
    "unlink": lambda: os.unlink("doomed"),
    "rmdir": lambda: os.rmdir("empty"),
    "rename": lambda: os.rename("doomed", "renamed"),
    "move": lambda: os.rename("doomed", "sub/doomed"),
    "link": lambda: os.link("file", "sub/link"),
    "execute": lambda: execute(os.path.join(os.getcwd(), "program")),
    "ioctl": lambda: close_after(os.open("/dev/null", os.O_RDONLY), ioctl),
}

def confined(rules, names):
    ruleset = _landlock.ruleset(_spec.Landlock(rules[0], *[[os.fsencode(p) for p in paths] for paths in rules[1:]]))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(where)
            restrict(ruleset)
            went = {}
            for name in names:
                try:
                    DO[name]()
                    went[name] = "done"
                except OSError as problem:
                    went[name] = errno.errorcode[problem.errno]
            os.write(write, json.dumps(went).encode())
        finally:
            os._exit(0)
    os.close(ruleset)
    os.close(write)
    went = os.read(read, 65536)
    os.close(read)
    os.waitpid(pid, 0)
    return json.loads(went)
"""

#: Where a program finds its loader and its libraries.
SYSTEM = [place for place in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(place)]

#: What one does, the word that allows it, and the errno without.
WORDS = {
    "read": ("read", "EACCES"),
    "list": ("read", "EACCES"),
    "write": ("write", "EACCES"),
    "truncate": ("write", "EACCES"),
    "truncate open": ("write", "EACCES"),
    "create": ("write", "EACCES"),
    "mkdir": ("write", "EACCES"),
    "mkfifo": ("write", "EACCES"),
    "symlink": ("write", "EACCES"),
    "unlink": ("write", "EACCES"),
    "rmdir": ("write", "EACCES"),
    "rename": ("write", "EACCES"),
    "move": ("write", "EACCES"),
    "link": ("write", "EACCES"),
    "execute": ("execute", "EACCES"),
}


def need(abi: int) -> None:
    """Skip the test where the kernel's version is lower."""
    has = _binding.landlock_abi()
    if has < abi:
        pytest.skip(f"needs Landlock ABI {abi}, this kernel has {has}")


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """Return a directory with something in it to be read, written, run and removed."""
    for name in ("file", "doomed", "other"):
        (tmp_path / name).write_text("text", encoding="ascii")
    (tmp_path / "program").write_bytes(Path("/bin/true").read_bytes())
    (tmp_path / "program").chmod(0o755)
    for name in ("sub", "empty"):
        (tmp_path / name).mkdir()
    return tmp_path


def confined(
    where: Path,
    *names: str,
    abi: int = 3,
    read: tuple[object, ...] = (),
    write: tuple[object, ...] = (),
    execute: tuple[object, ...] = (),
) -> dict[str, str]:
    """Return how these went in a child with such rules, by name."""
    need(abi)
    rules = [abi, *([str(path) for path in paths] for paths in (read, write, (*execute, *SYSTEM)))]
    snippet = CONFINED + "\nout.update(confined(rules, names))\n"
    return helpers.run_snippet(snippet, rules=rules, names=names, where=str(where))


# -------------------------------------------------------------- what the words allow


@pytest.mark.parametrize("name", WORDS)
def test_nothing_is_allowed_without_its_word(where: Path, name: str) -> None:
    """What the other words allow does not include this."""
    word, refused = WORDS[name]
    others: dict[str, Any] = {other: (where,) for other in ("read", "write", "execute") if other != word}
    if word == "read":  # executing includes it
        del others["execute"]
    assert confined(where, name, **others) == {name: refused}


@pytest.mark.parametrize("name", WORDS)
def test_word_allows_what_it_says(where: Path, name: str) -> None:
    """The one word is enough for this, below a directory that it names."""
    word, _ = WORDS[name]
    assert confined(where, name, **{word: (where,)}) == {name: "done"}


def test_execute_includes_reading(where: Path) -> None:
    """A program may read what is where it may be run: its own parts, for one."""
    assert confined(where, "read", "list", execute=(where,)) == {"read": "done", "list": "done"}


def test_execute_is_enough_for_a_program_with_libraries_and_modules(tmp_path: Path) -> None:
    """A program that is loaded dynamically, and Python with its library, run by that word alone."""
    need(1)
    out = helpers.run_snippet(
        CONFINED
        + """
pid = os.fork()
if pid == 0:
    try:
        restrict(_landlock.ruleset(_spec.Landlock(1, (), (), [os.fsencode(place) for place in places])))
        execute("/bin/sh", "-c", f"exec {python} -I -c 'import json'")
    except OSError as problem:
        os._exit(problem.errno)
    os._exit(0)
out["code"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
""",
        places=SYSTEM,
        python=helpers.SYSTEM_PYTHON,
    )
    assert out == {"code": 0}


def test_rule_for_a_file_is_for_that_file(where: Path) -> None:
    """Each word can name a file; rights that only directories have are left out, or EINVAL would come."""
    rules: dict[str, Any] = {word: (where / "file",) for word in ("read", "write")}
    went = confined(where, "read", "write", "truncate", "execute", "list", "unlink", **rules)
    assert went == {
        "read": "done",
        "write": "done",
        "truncate": "done",
        "execute": "EACCES",
        "list": "EACCES",
        "unlink": "EACCES",
    }


def test_execute_of_one_file(where: Path) -> None:
    """A program that is named may be run, and nothing else there read."""
    went = confined(where, "execute", "read", execute=(where / "program",))
    assert went == {"execute": "done", "read": "EACCES"}


def test_rules_for_one_path_add_up(where: Path) -> None:
    """A path may be under several words, and twice under one."""
    went = confined(where, "read", "write", "mkdir", "execute", read=(where, where), write=(where,), execute=(where,))
    assert set(went.values()) == {"done"}


def test_symbolic_link_is_followed(where: Path) -> None:
    """A rule whose path is a link is for what the link leads to."""
    (where / "way").symlink_to(where / "file")
    assert confined(where, "read", "list", read=(where / "way",)) == {"read": "done", "list": "EACCES"}


def test_no_rules_refuse_everything(where: Path) -> None:
    """Rules without a path leave nothing."""
    need(3)
    went = helpers.run_snippet(
        CONFINED + "out.update(confined([3, [], [], []], names))", names=list(WORDS), where=str(where)
    )
    assert went == {name: refused for name, (_, refused) in WORDS.items()}


# -------------------------------------------------------------------- the versions


def test_first_version_moves_nothing_between_directories(where: Path) -> None:
    """Before ABI 2 nothing is moved or linked to another directory, whatever the rules are."""
    went = confined(where, "move", "link", "rename", abi=1, write=(where,))
    assert went == {"move": "EXDEV", "link": "EXDEV", "rename": "done"}


@pytest.mark.parametrize(("abi", "went"), [(2, "done"), (3, "EACCES")])
def test_third_version_refuses_truncation(where: Path, abi: int, went: str) -> None:
    """Before ABI 3 a file could be emptied in spite of the rules; with it, it cannot."""
    assert confined(where, "truncate", abi=abi, read=(where,)) == {"truncate": went}


@pytest.mark.parametrize(
    ("abi", "rules", "went"),
    [
        (4, {"read": ("/dev/null",)}, "done"),
        (5, {"read": ("/dev/null",)}, "EACCES"),
        (5, {"read": ("/dev/null",), "write": ("/dev/null",)}, "done"),
        (5, {"read": ("/dev",), "write": ("/dev",)}, "done"),
    ],
)
def test_fifth_version_refuses_ioctl_on_devices(where: Path, abi: int, rules: dict[str, Any], went: str) -> None:
    """With ABI 5 a device takes no ioctl of its own but under "write"."""
    assert confined(where, "ioctl", abi=abi, **rules) == {"ioctl": went}


@pytest.mark.parametrize(
    ("abi", "rights", "of_files"),
    [(1, 0x1FFF, 0x7), (2, 0x3FFF, 0x7), (3, 0x7FFF, 0x4007), (4, 0x7FFF, 0x4007), (5, 0xFFFF, 0xC007)],
)
def test_each_version_handles_all_that_it_knows(
    monkeypatch: pytest.MonkeyPatch, abi: int, rights: int, of_files: int
) -> None:
    """Exactly the rights of that version are refused, and allowed by all words together."""
    need(abi)
    handled, allowed = list[int](), list[tuple[int, int]]()
    make, allow = _binding.landlock_ruleset, _binding.landlock_allow

    def making(opened: list[int], known: int) -> int:
        handled.append(known)
        return make(opened, known)

    def allowing(made: int, path: bytes, of_directory: int, of_file: int) -> int:
        allowed.append((of_directory, of_file))
        return allow(made, path, of_directory, of_file)

    monkeypatch.setattr(_binding, "landlock_ruleset", making)
    monkeypatch.setattr(_binding, "landlock_allow", allowing)
    os.close(_landlock.ruleset(Landlock(abi, (b"/",), (b"/",), (b"/",))))

    assert handled == [rights]
    assert [a | b | c for a, b, c in zip(*allowed, strict=True)] == [rights, of_files]


@pytest.mark.parametrize(("has", "told"), [(0, "none"), (1, "1"), (2, "2")])
def test_version_beyond_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch, has: int, told: str) -> None:
    """Rules that the kernel cannot hold are not made smaller in silence."""
    monkeypatch.setattr(_binding, "landlock_abi", lambda: has)
    with pytest.raises(OSError) as caught:
        _landlock.ruleset(Landlock(3, (b"/",), (), ()))
    problem: Any = caught.value
    assert (problem.errno, problem.stage) == (errno.EOPNOTSUPP, "landlock")
    assert problem.strerror == f"landlock: ABI 3 was asked for, this kernel has {told}"


def test_version_is_the_kernels_own() -> None:
    """What the binding says is what the system call says."""
    out = helpers.run_snippet(
        """
import ctypes
answer = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)
out["same"] = max(answer, 0) == _binding.landlock_abi()
"""
    )
    assert out == {"same": True}


# ----------------------------------------------------------------------- the errors


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_kernel_without_landlock(number: int) -> None:
    """A kernel that has no Landlock, or a sandbox that refuses it, is told, and so is the feature."""
    out = helpers.run_snippet(
        """
import sandbox
from safespawn import _features, _landlock, _spec
sandbox.answer({"landlock_create_ruleset": number})
try:
    _landlock.ruleset(_spec.Landlock(3, (), (), ()))
except OSError as problem:
    out["raised"] = [problem.errno, problem.stage, problem.strerror]
out["row"] = [one for one in _features.probe() if one.name == "landlock"]
""",
        number=number,
    )
    if number == errno.EPERM:
        assert out["raised"] == [errno.EPERM, "landlock", "landlock: Operation not permitted"]
    else:
        text = "landlock: ABI 3 was asked for, this kernel has none"
        assert out["raised"] == [errno.EOPNOTSUPP, "landlock", text]
    ((_, available, why),) = out["row"]
    assert not available
    assert why.endswith(": Operation not permitted" if number == errno.EPERM else ": none")


def test_feature_tells_the_version() -> None:
    """The row of the features has the version in its text."""
    need(1)
    out = helpers.run_snippet(
        """
from safespawn import _features
out["row"] = [one for one in _features.probe() if one.name == "landlock"]
"""
    )
    ((_, available, why),) = out["row"]
    assert available
    assert why.endswith(f": ABI {_binding.landlock_abi()}")


@pytest.mark.parametrize("word", ["read", "write", "execute"])
@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/no/such/path", errno.ENOENT),
        ("/dev/null/below", errno.ENOTDIR),
        ("/proc/self/ns/net", errno.EBADFD),  # a file that no hierarchy has
        ("/" + "x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_path_that_cannot_be_had_is_named(word: str, path: str, number: int) -> None:
    """The errno is that of the path, and the exception names it and the stage; nothing stays open."""
    need(3)
    rules = Landlock(3, (), (), ())._replace(**{word: (b"/", os.fsencode(path), b"/never/reached")})
    with pytest.raises(OSError) as caught:
        _landlock.ruleset(rules)
    problem: Any = caught.value
    assert (problem.errno, problem.filename, problem.stage) == (number, path, "landlock")


def test_path_of_any_bytes(tmp_path: Path) -> None:
    """A path that is no UTF-8 is opened, and named as Python names it."""
    need(3)
    path = os.fsencode(tmp_path) + b"/\xff"
    with pytest.raises(FileNotFoundError) as caught:
        _landlock.ruleset(Landlock(3, (path,), (), ()))
    assert caught.value.filename == os.fsdecode(path)
    os.mkdir(path)
    os.close(_landlock.ruleset(Landlock(3, (path,), (), ())))


@pytest.mark.parametrize("call", ["landlock_create_ruleset", "landlock_add_rule"])
def test_call_that_fails_leaves_nothing_open(call: str) -> None:
    """The ruleset is closed when a rule cannot be added; what cannot be made is not closed."""
    need(3)
    out = helpers.run_snippet(
        """
import errno, sandbox
from safespawn import _landlock, _spec
sandbox.answer({call: errno.ENOMEM})
_binding.landlock_abi = lambda: 3
before = sorted(os.listdir("/proc/self/fd"))
try:
    _landlock.ruleset(_spec.Landlock(3, (b"/",), (b"/",), ()))
except OSError as problem:
    out["raised"] = [problem.errno, problem.stage, problem.filename]
out["same"] = sorted(os.listdir("/proc/self/fd")) == before
""",
        call=call,
    )
    path = "/" if call == "landlock_add_rule" else None
    assert out == {"raised": [errno.ENOMEM, "landlock", path], "same": True}


# ------------------------------------------------------------------- the descriptor


def test_descriptor_is_one_and_not_inherited() -> None:
    """A ruleset is one descriptor, close-on-exec, and the caller's."""
    need(3)
    before = helpers.open_fds()
    made = _landlock.ruleset(Landlock(3, (b"/usr", b"/etc"), (b"/tmp",), (b"/usr",)))
    try:
        assert helpers.open_fds() - before == {made}
        assert not os.get_inheritable(made)
    finally:
        os.close(made)


def test_handler_that_raises_leaks_nothing() -> None:
    """A timer's handler raises somewhere in each of many calls: no descriptor stays behind."""
    need(3)
    out = helpers.run_snippet(
        """
from safespawn import _landlock, _spec
class Alarm(Exception):
    pass
inside = False
def ring(number, frame):
    if inside:
        raise Alarm
rules = _spec.Landlock(3, (b"/usr",) * 8, (b"/tmp",) * 8, ())
def timed():
    start = time.perf_counter()
    os.close(_landlock.ruleset(rules))
    return time.perf_counter() - start
took = min(timed() for _ in range(20))
signal.signal(signal.SIGALRM, ring)
before = sorted(os.listdir("/proc/self/fd"))
rung = 0
for i in range(2000):
    made, inside = -1, True
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.000002 + took * (i % 97) / 97)
            made = _landlock.ruleset(rules)
        finally:
            inside = False
    except Alarm:
        rung += 1
    if made >= 0:
        os.close(made)
signal.setitimer(signal.ITIMER_REAL, 0)
out["rung"] = rung
out["same"] = sorted(os.listdir("/proc/self/fd")) == before
"""
    )
    assert out.pop("rung") > 50
    assert out == {"same": True}
