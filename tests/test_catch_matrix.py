"""Which ways of changing credentials the lock sees: bound before it was armed, and after.

The rules of the matrix: a way is caught when exactly the calls that it makes are seen, and
then the proof must hold. What is missed can only be a system call without libc, a libc that
is not the one we armed, or a pointer taken before; where such a thing can be found out, the
proof is off and the status says why. Every process here is a fresh one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cffi
import prctl
import pytest

import helpers
import safespawn

pytestmark = [
    pytest.mark.threat("T-24"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SETUID, CAP_SETGID, CAP_SYS_ADMIN"),
]

SOURCES = helpers.TESTS / "ways"

#: What is built of tests/ways: name, source, options.
LIBRARIES = (
    ("lazy", "calls.c", "-Wl,-z,lazy"),
    ("used", "calls.c", "-Wl,-z,lazy"),
    ("deep", "calls.c", "-Wl,-z,lazy"),
    ("now", "calls.c", "-Wl,-z,relro,-z,now"),
    ("noplt", "calls.c", "-fno-plt"),
    ("table", "table.c", ""),
    ("early", "early.c", ""),
    ("held", "held.c", ""),
    ("shared", "held.c", "-DSHARED"),
    ("readonly", "held.c", "-DREADONLY"),
    ("raw", "raw.c", ""),
    ("namespace", "namespace.c", ""),
    ("audit", "audit.c", ""),
    ("preload", "preload.c", ""),
    ("preload_early", "preload.c", "-DEARLY"),
    ("numbers", "numbers.c", ""),
    ("stack", "stack.c", ""),
    ("storm", "storm.c", ""),
)


class Way(NamedTuple):
    """How to get hold of a function, how to call it, and the calls that must be seen.

    ``bind`` is evaluated before or after arming, ``call`` always after it, with ``b`` for what
    ``bind`` gave. ``alone`` ways would spoil the proof of others, or need an environment.
    """

    bind: str
    call: str
    sees: tuple[str, ...] = ("setresuid",)
    alone: bool = False
    env: Mapping[str, str] = {}


def _in_library(name: str, call: str, *sees: str) -> Way:
    return Way(f"library({name!r})", f"b.{call}()", sees or ("setresuid",))


def _c_library(name: str) -> dict[str, Way]:
    return {
        f"C {name}: call": _in_library(name, "way_plain"),
        f"C {name}: address taken at the call": _in_library(name, "way_address"),
        f"C {name}: syscall()": _in_library(name, "way_syscall", "setreuid"),
        f"C {name}: thread of its own": _in_library(name, "way_thread"),
        f"C {name}: dlsym(RTLD_DEFAULT)": _in_library(name, "way_default"),
        f"C {name}: dlsym(RTLD_NEXT)": _in_library(name, "way_next"),
        f"C {name}: dlvsym, first version": _in_library(name, "way_version"),
    }


KEEP3 = "-1, -1, -1"
#: They leave no capability effective, so that those are set again.
LIBCAP_SETUID = ("prctl", "capset", "setuid", "prctl", "capset", "capset")
LIBCAP_SETGROUPS = ("capset", "setgid", "setgroups", "capset", "capset")
#: It takes the user's ids, so that the keyring is his, makes that, and takes ours again.
KEYINIT = ("setregid", "setreuid", "keyctl", "setreuid", "setregid")

WAYS: dict[str, Way] = {
    "os.setuid": Way("None", "os.setuid(0)", ("setuid",)),
    "os.seteuid": Way("None", "os.seteuid(0)", ("seteuid",)),
    "os.setresuid": Way("None", f"os.setresuid({KEEP3})"),
    "os.setgroups": Way("None", "os.setgroups(os.getgroups())", ("setgroups",)),
    "os.initgroups": Way("None", "os.initgroups('root', 0)", ("initgroups",)),
    "os.chroot": Way("None", "os.chroot('/')", ("chroot",)),
    "os.setresgid, called before": Way(f"os.setresgid({KEEP3})", f"os.setresgid({KEEP3})", ("setresgid",)),
    "os.setegid, function fetched": Way("os.setegid", "b(0)", ("setegid",)),
    "posix.setreuid": Way("None", "posix.setreuid(-1, -1)", ("setreuid",)),
    "ctypes CDLL(None)": Way("ctypes.CDLL(None)", f"b.setresuid({KEEP3})"),
    "ctypes CDLL(libc.so.6)": Way("ctypes.CDLL('libc.so.6')", f"b.setresuid({KEEP3})"),
    "ctypes CDLL(path of libc)": Way("ctypes.CDLL(libc_path)", f"b.setresuid({KEEP3})"),
    "ctypes PyDLL(None)": Way("ctypes.PyDLL(None)", f"b.setresuid({KEEP3})"),
    "ctypes dlsym": Way("ctypes.CDLL(None)", f"prototype(_ctypes.dlsym(b._handle, 'setresuid'))({KEEP3})"),
    "ctypes syscall": Way("ctypes.CDLL(None)", "b.syscall(number(b'setresuid'), -1, -1, -1)"),
    "cffi dlopen(None)": Way("abi.dlopen(None)", "b.setresuid(keep, keep, keep)"),
    "cffi dlopen(libc.so.6)": Way("abi.dlopen('libc.so.6')", "b.setresuid(keep, keep, keep)"),
    "cffi API module": Way("__import__('way_module')", "b.lib.setresuid(keep, keep, keep)"),
    "cffi API module, address": Way(
        "__import__('way_module')", "b.ffi.addressof(b.lib, 'setresuid')(keep, keep, keep)"
    ),
    "python-prctl": Way("prctl", "b.set_keepcaps(False)", ("prctl",)),
    "python-prctl capabilities": Way("prctl", "setattr(b.cap_effective, 'chown', True)", ("capset",)),
    "python-prctl loaded anew": Way("extension('_prctl')", "b.prctl(8, 0)", ("prctl",)),
    "python-prctl loaded anew, capabilities": Way(
        "extension('_prctl')", "b.set_caps([], [], [], [], [], [])", ("capset",)
    ),
    "libcap cap_set_proc": Way("libcap('libcap.so.2')", "b.cap_set_proc(b.cap_get_proc())", ("capset",)),
    "libcap cap_setuid": Way(
        "libcap('libcap.so.2')", "restoring(b, b.cap_setuid, 0)", LIBCAP_SETUID
    ),
    "libcap loaded anew cap_set_proc": Way(
        "libcap(built + '/libcap.so')", "b.cap_set_proc(b.cap_get_proc())", ("capset",)
    ),
    "libcap loaded anew cap_setgroups": Way(
        "libcap(built + '/libcap.so')", "restoring(b, b.cap_setgroups, 0, 1, groups)", LIBCAP_SETGROUPS
    ),
    "PAM pam_keyinit": Way("pam_start()", "b[0].pam_open_session(b[1], 0)", KEYINIT),
    **_c_library("lazy"),
    **_c_library("now"),
    **_c_library("noplt"),
    "C lazy, called before": Way("called(library('used'))", "b.way_plain()"),
    "C RTLD_DEEPBIND": Way("library('deep', os.RTLD_NOW | os.RTLD_DEEPBIND)", "b.way_plain()"),
    "C table of addresses": _in_library("table", "way_plain"),
    # It runs while the library is being loaded, which is after arming in both columns.
    "C constructor": Way("None", "library('early').way_plain()"),
    # What would spoil the proof of the others.
    "raw system call": Way("library('raw')", "b.way_plain()", alone=True),
    "ctypes function fetched": Way("ctypes.CDLL(None).setresuid", f"b({KEEP3})", alone=True),
    "ctypes syscall fetched": Way(
        "ctypes.CDLL(None).syscall", "b(number(b'setresuid'), -1, -1, -1)", alone=True
    ),
    "cffi dlopen(None) function fetched": Way("abi.dlopen(None).setresuid", "b(keep, keep, keep)", alone=True),
    "C pointer kept by a constructor": Way("library('held')", "b.way_plain()", alone=True),
    "C pointer kept in shared memory": Way("library('shared')", "b.way_plain()", alone=True),
    "C pointer kept in a read-only page": Way("library('readonly')", "b.way_plain()", alone=True),
    "libc in another namespace": Way("opened(library('namespace'))", "b.way_plain()", alone=True),
    "libc copied to another file": Way(
        "ctypes.CDLL(built + '/libc-copy.so')", f"b.setresuid({KEEP3})", alone=True
    ),
    "libc's own iruserok": Way(
        "ctypes.CDLL(None)", "b.iruserok(0, 0, b'root', b'nobody') + 1", ("seteuid", "seteuid"), alone=True
    ),
    "LD_AUDIT": Way(
        "ctypes.CDLL(None)", f"b.setresuid({KEEP3})", alone=True, env={"LD_AUDIT": "{built}/audit.so"}
    ),
    "LD_PRELOAD, asks at each call": Way(
        "ctypes.CDLL(None)", f"b.setresuid({KEEP3})", alone=True, env={"LD_PRELOAD": "{built}/preload.so"}
    ),
    "LD_PRELOAD, asked before": Way(
        "ctypes.CDLL(None)", f"b.setresuid({KEEP3})", alone=True, env={"LD_PRELOAD": "{built}/preload_early.so"}
    ),
    "LD_PRELOAD of a sanitizer": Way(
        "ctypes.CDLL(None)",
        "b.prctl(8, 0, 0, 0, 0)",
        ("prctl",),
        alone=True,
        env={"LD_PRELOAD": "{sanitizer}", "ASAN_OPTIONS": "detect_leaks=0"},
    ),
}

#: The matrix: (bound before arming, bound after). After a comma stands what turns the proof
#: off; where nothing does, the proof holds.
MATRIX: dict[str, tuple[str, str]] = {
    "os.setuid": ("caught", "caught"),
    "os.seteuid": ("caught", "caught"),
    "os.setresuid": ("caught", "caught"),
    "os.setgroups": ("caught", "caught"),
    "os.initgroups": ("caught", "caught"),
    "os.chroot": ("caught", "caught"),
    "os.setresgid, called before": ("caught", "caught"),
    "os.setegid, function fetched": ("caught", "caught"),
    "posix.setreuid": ("caught", "caught"),
    "ctypes CDLL(None)": ("caught", "caught"),
    "ctypes CDLL(libc.so.6)": ("caught", "caught"),
    "ctypes CDLL(path of libc)": ("caught", "caught"),
    "ctypes PyDLL(None)": ("caught", "caught"),
    "ctypes dlsym": ("caught", "caught"),
    "ctypes syscall": ("caught", "caught"),
    "cffi dlopen(None)": ("caught", "caught"),
    "cffi dlopen(libc.so.6)": ("caught", "caught"),
    "cffi API module": ("caught", "caught"),
    "cffi API module, address": ("caught", "caught"),
    "python-prctl": ("caught", "caught"),
    "python-prctl capabilities": ("caught", "caught"),
    "python-prctl loaded anew": ("caught", "caught"),
    "python-prctl loaded anew, capabilities": ("caught", "caught"),
    "libcap cap_set_proc": ("caught", "caught"),
    "libcap cap_setuid": ("caught", "caught"),
    "libcap loaded anew cap_set_proc": ("caught", "caught"),
    "libcap loaded anew cap_setgroups": ("caught", "caught"),
    "PAM pam_keyinit": ("caught", "caught"),
    "C lazy: call": ("caught", "caught"),
    "C lazy: address taken at the call": ("caught", "caught"),
    "C lazy: syscall()": ("caught", "caught"),
    "C lazy: thread of its own": ("caught", "caught"),
    "C lazy: dlsym(RTLD_DEFAULT)": ("caught", "caught"),
    "C lazy: dlsym(RTLD_NEXT)": ("caught", "caught"),
    "C lazy: dlvsym, first version": ("caught", "caught"),
    "C now: call": ("caught", "caught"),
    "C now: address taken at the call": ("caught", "caught"),
    "C now: syscall()": ("caught", "caught"),
    "C now: thread of its own": ("caught", "caught"),
    "C now: dlsym(RTLD_DEFAULT)": ("caught", "caught"),
    "C now: dlsym(RTLD_NEXT)": ("caught", "caught"),
    "C now: dlvsym, first version": ("caught", "caught"),
    "C noplt: call": ("caught", "caught"),
    "C noplt: address taken at the call": ("caught", "caught"),
    "C noplt: syscall()": ("caught", "caught"),
    "C noplt: thread of its own": ("caught", "caught"),
    "C noplt: dlsym(RTLD_DEFAULT)": ("caught", "caught"),
    "C noplt: dlsym(RTLD_NEXT)": ("caught", "caught"),
    "C noplt: dlvsym, first version": ("caught", "caught"),
    "C lazy, called before": ("caught", "caught"),
    "C RTLD_DEEPBIND": ("caught", "caught"),
    "C table of addresses": ("caught", "caught"),
    "C constructor": ("caught", "caught"),
    # Missed, and nothing can show it.
    "raw system call": ("missed", "missed"),
    # Missed when taken before, and found out.
    "ctypes function fetched": ("missed, captured", "caught"),
    "ctypes syscall fetched": ("missed, captured", "caught"),
    "cffi dlopen(None) function fetched": ("missed, captured", "caught"),
    "C pointer kept by a constructor": ("missed, captured", "caught"),
    "C pointer kept in shared memory": ("missed, captured", "caught"),
    "C pointer kept in a read-only page": ("missed, captured", "caught"),
    # Another libc: missed at any time, and found out.
    "libc in another namespace": ("missed, other_namespaces", "missed, other_namespaces"),
    "libc copied to another file": ("missed, other_namespaces", "missed, other_namespaces"),
    # What libc calls inside itself; the rcmd(3) functions are the only ones that do.
    "libc's own iruserok": ("missed", "missed"),
    # Known and not relied on. The loader keeps addresses for what is audited.
    "LD_AUDIT": ("caught, captured+other_namespaces", "caught, captured+other_namespaces"),
    "LD_PRELOAD, asks at each call": ("caught, foreign", "caught, foreign"),
    "LD_PRELOAD, asked before": ("missed, foreign+captured", "missed, foreign+captured"),
    "LD_PRELOAD of a sanitizer": ("missed, foreign+captured", "missed, foreign+captured"),
}

SNIPPET = """
import _ctypes, ctypes, importlib.machinery, importlib.util, posix, threading
import cffi, prctl
from safespawn import _lock, guards
_lock.on_change(lambda wait: None)  # the records of the audit take them otherwise

sys.path.append(built + "/module")
keep = 0xffffffff
abi = cffi.FFI()
abi.cdef("int setresuid(unsigned, unsigned, unsigned);")
prototype = ctypes.CFUNCTYPE(*[ctypes.c_int] * 4)
groups = (ctypes.c_uint * 1)(0)

def library(name, mode=os.RTLD_LAZY):
    return ctypes.CDLL(f"{built}/{name}.so", mode)

def called(made):
    made.way_plain()
    return made

def opened(made):
    assert made.way_open() == 0
    return made

def extension(name):
    path = f"{built}/{name}.so"
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    return importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path, loader=loader))

def libcap(path):
    made = ctypes.CDLL(path)
    made.cap_get_proc.restype = ctypes.c_void_p
    made.cap_set_proc.argtypes = [ctypes.c_void_p]
    return made

def restoring(made, function, *arguments):
    effective = made.cap_get_proc()
    answer = function(*arguments)
    assert made.cap_set_proc(effective) == 0
    return answer

def pam_start():
    pam, handle = ctypes.CDLL("libpam.so.0"), ctypes.c_void_p()
    talk = (ctypes.c_void_p * 2)()
    assert pam.pam_start_confdir(b"way", b"nobody", talk, f"{built}/pam.d".encode(), ctypes.byref(handle)) == 0
    return pam, handle, talk

number = library("numbers").way_number

def privileges():
    with open("/proc/self/status") as status:
        told = [line for line in status if line.startswith(("Uid", "Gid", "Cap", "NoNew", "Seccomp:"))]
    return [*told, prctl.get_keepcaps(), os.readlink("/proc/self/root")]

def seen():
    return [change.call for change in _lock.fetch()]

def beside_a_thread(look):
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    try:
        return look()
    finally:
        leave.set()
        thread.join()

def proof():
    return beside_a_thread(lambda: guards.status()["proofs"]["locked"])

def reasons():
    lock = guards.status()["lock"]
    return [name for name in ("foreign", "captured", "other_namespaces") if lock[name]]
"""

RUN_WAYS = """
bound, ways_seen = {}, {}
if when == "before":
    for name, (bind, call, sees) in ways.items():
        bound[name] = eval(bind)
out["problems"] = guards.arm()["problems"]
out["state"] = guards.status()["lock"]["state"]
had = privileges()
for name, (bind, call, sees) in ways.items():
    if when == "after":
        bound[name] = eval(bind)
    seen()
    b = bound[name]
    answer = eval(call)
    ways_seen[name] = [seen(), answer if answer else 0]
    if privileges() != had:
        ways_seen[name][1] = f"changed {had} to {privileges()}"
out["seen"] = ways_seen
out["proof"] = proof()
out["reasons"] = reasons()
out["problems"] = guards.status()["lock"]["problems"]
"""


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout.strip()


def _compile(where: Path, name: str, source: str, *options: str) -> None:
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    _run(["gcc", *flags, "-o", str(where / f"{name}.so"), str(SOURCES / source), *filter(None, options)])


def _loaded(name: str) -> str:
    """Return the path of a library that is loaded in this process."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(name):
            return path
    raise FileNotFoundError(name)


def _compile_host(where: Path) -> None:
    """Build a program around the running interpreter that is not position independent."""
    said = {key: sysconfig.get_config_var(key) or "" for key in ("LIBDIR", "LIBPL", "LDLIBRARY", "LDVERSION")}
    python = f"-lpython{said['LDVERSION']}"
    if said["LDLIBRARY"].endswith(".a"):
        system = f"{sysconfig.get_config_var('LIBS')} {sysconfig.get_config_var('SYSLIBS')}".split()
        link = ["-Wl,--whole-archive", python, "-Wl,--no-whole-archive", *system]
    else:
        link = [python, f"-Wl,-rpath,{said['LIBDIR']}"]
    places = [f"-I{sysconfig.get_paths()['include']}", f"-L{said['LIBDIR']}", f"-L{said['LIBPL']}"]
    flags = ["-no-pie", "-fno-pie", "-O1", "-rdynamic"]
    _run(["gcc", *flags, *places, "-o", str(where / "host"), str(SOURCES / "host.c"), *link])


def _compile_module(where: Path) -> None:
    ffi = cffi.FFI()
    ffi.cdef("int setresuid(unsigned, unsigned, unsigned);")
    ffi.set_source("way_module", "#include <unistd.h>\n")
    ffi.compile(tmpdir=str(where / "module"), verbose=False)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build everything that makes calls, and copy what is to be loaded a second time."""
    where = tmp_path_factory.mktemp("ways")
    for name, source, options in LIBRARIES:
        _compile(where, name, source, *options.split())
    _compile_module(where)
    _compile_host(where)
    shutil.copy(prctl._prctl.__file__, where / "_prctl.so")
    shutil.copy(_loaded("libcap.so.2"), where / "libcap.so")
    shutil.copy(_loaded("libc.so.6"), where / "libc-copy.so")
    (where / "pam.d").mkdir()
    (where / "pam.d" / "way").write_text("session required pam_keyinit.so force\n", encoding="ascii")
    return where


def _sanitizer() -> str:
    path = _run(["gcc", "-print-file-name=libasan.so"])
    if not os.path.isabs(path):
        pytest.skip("needs libasan of gcc")
    return path


@contextlib.contextmanager
def _environment(built: Path, when: str, env: Mapping[str, str], executable: str) -> Iterator[None]:
    """Have the next fresh process run in that environment, by that interpreter."""
    filled = {
        key: value.format(built=built, sanitizer=_sanitizer() if "{sanitizer}" in value else "")
        for key, value in env.items()
    }
    if when == "before":
        filled["SAFESPAWN_ARM"] = "0"
    with mock.patch.dict(os.environ, filled), mock.patch.object(sys, "executable", executable):
        yield


def _in(
    built: Path,
    snippet: str,
    when: str = "after",
    env: Mapping[str, str] = {},
    executable: str = sys.executable,
    **values: object,
) -> dict[str, Any]:
    """Run a snippet in a fresh process that is armed, or (``before``) arms itself."""
    with _environment(built, when, env, executable):
        return helpers.run_snippet(
            SNIPPET + textwrap.dedent(snippet),
            built=str(built),
            libc_path=_loaded("libc.so.6"),
            when=when,
            **values,
        )


class Setting(NamedTuple):
    """Where the ways are tried: by which interpreter, in which environment."""

    executable: str = sys.executable
    env: Mapping[str, str] = {}


def _paths() -> str:
    """Return what another interpreter needs to find the same packages."""
    found = [Path(module.__file__).parent for module in (safespawn, cffi)] + [Path(prctl.__file__)]
    return os.pathsep.join(dict.fromkeys(str(path.parent) for path in found))


#: The interpreter of the system, if it has our version: Debian's is not position independent.
SYSTEM = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
SETTINGS: dict[str, Setting] = {
    "plain": Setting(),
    "bound at start": Setting(env={"LD_BIND_NOW": "1"}),
    "not position independent": Setting(
        "{built}/host", {"PYTHONPATH": _paths(), "PYTHONHOME": sys.base_prefix}
    ),
}
if os.access(SYSTEM, os.X_OK) and not os.path.samefile(SYSTEM, sys.executable):
    SETTINGS["system interpreter"] = Setting(SYSTEM, {"PYTHONPATH": _paths()})


def _cell(seen: list[str], sees: tuple[str, ...], answer: object, out: dict[str, Any]) -> str:
    if answer != 0:
        return f"answered {answer}"
    what = "caught" if tuple(seen) == sees else f"saw {seen}" if seen else "missed"
    assert (out["proof"] == "holds") == (not out["problems"]), "the proof follows what the status says"
    return ", ".join([what, "+".join(out["reasons"])]) if out["reasons"] else what


Run = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def cells(built: Path) -> Run:
    """Return what runs ways in one process and tells a cell of the matrix for each."""

    @functools.cache
    def run(names: tuple[str, ...], when: str, setting: str = "plain") -> dict[str, str]:
        executable, env = SETTINGS[setting]
        ways = {name: WAYS[name] for name in names}
        env = {**env, **{key: value for way in ways.values() for key, value in way.env.items()}}
        texts = {name: way[:3] for name, way in ways.items()}
        out = _in(built, RUN_WAYS, when, env, executable.format(built=built), ways=texts)
        assert out["state"] == "armed", out["problems"]
        return {
            name: _cell(seen, ways[name].sees, answer, out) for name, (seen, answer) in out["seen"].items()
        }

    return run


TOGETHER = tuple(name for name, way in WAYS.items() if not way.alone)
ALONE = tuple(name for name, way in WAYS.items() if way.alone)
WHEN = ("before", "after")


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("setting", SETTINGS)
def test_ways_that_are_caught(cells: Run, setting: str, when: str) -> None:
    """Whoever calls libc is seen, and with all of these in one process the proof holds."""
    assert cells(TOGETHER, when, setting) == {name: MATRIX[name][WHEN.index(when)] for name in TOGETHER}


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("name", ALONE)
def test_ways_that_may_be_missed(cells: Run, name: str, when: str) -> None:
    """What is missed is what the matrix says, and turns the proof off where it can be found out."""
    assert cells((name,), when) == {name: MATRIX[name][WHEN.index(when)]}



#: Every function of the family, with arguments that change nothing, and what is seen of it.
FUNCTIONS = {
    "setuid(0)": "setuid",
    "seteuid(0)": "seteuid",
    "setreuid(-1, -1)": "setreuid",
    "setresuid(-1, -1, -1)": "setresuid",
    "setgid(0)": "setgid",
    "setegid(0)": "setegid",
    "setregid(-1, -1)": "setregid",
    "setresgid(-1, -1, -1)": "setresgid",
    "setgroups(1, groups)": "setgroups",
    "setgroups(65537, None)": "setgroups",
    "initgroups(b'root', 0)": "initgroups",
    "setfsuid(-1)": "setfsuid",
    "setfsgid(-1)": "setfsgid",
    "capset(header, had)": "capset",
    "capset(None, None)": "capset",
    "capset((ctypes.c_uint * 2)(1, 0), had)": "capset",
    "setns(-1, 0)": "setns",
    "unshare(0x200)": "unshare",  # CLONE_FS
    "unshare(0x7fffffff)": "unshare",
    "unshare(0x400)": "",  # CLONE_FILES
    "unshare(0)": "",
    "chroot(b'/')": "chroot",
    "chroot(b'/nowhere')": "chroot",
    "chroot(None)": "chroot",
    "pivot_root(b'/nowhere', b'/nowhere')": "pivot_root",
    "prctl(8, 0, 0, 0, 0)": "prctl",  # PR_SET_KEEPCAPS
    "prctl(8, 2, 0, 0, 0)": "prctl",
    "prctl(4, 1, 0, 0, 0)": "prctl",  # PR_SET_DUMPABLE
    "prctl(28, 0, 0, 0, 0)": "prctl",  # PR_SET_SECUREBITS
    "prctl(24, 999, 0, 0, 0)": "prctl",  # PR_CAPBSET_DROP
    "prctl(38, 2, 0, 0, 0)": "prctl",  # PR_SET_NO_NEW_PRIVS
    "prctl(22, 9, 0, 0, 0)": "prctl",  # PR_SET_SECCOMP
    "prctl(47, 4, 0, 0, 0)": "prctl",  # PR_CAP_AMBIENT, CLEAR_ALL
    "prctl(47, 2, 0, 0, 7)": "prctl",  # RAISE, with a fifth argument that is refused
    "prctl(47, 1, 0, 0, 0)": "",  # IS_SET
    "prctl(3, 0, 0, 0, 0)": "",  # PR_GET_DUMPABLE
    "prctl(7, 0, 0, 0, 0)": "",  # PR_GET_KEEPCAPS
    "prctl(23, 0, 0, 0, 0)": "",  # PR_CAPBSET_READ
    "prctl(27, 0, 0, 0, 0)": "",  # PR_GET_SECUREBITS
    "prctl(1, 0, 0, 0, 0)": "",  # PR_SET_PDEATHSIG
    "prctl(15, b'way', 0, 0, 0)": "",  # PR_SET_NAME
    "prctl(12345, 0, 0, 0, 0)": "",
}

#: The same by number.
NUMBERS = {
    "n('setuid'), 0": "setuid",
    "n('setgid'), 0": "setgid",
    "n('setreuid'), -1, -1": "setreuid",
    "n('setregid'), -1, -1": "setregid",
    "n('setresuid'), -1, -1, -1": "setresuid",
    "n('setresgid'), -1, -1, -1": "setresgid",
    "n('setgroups'), 1, groups": "setgroups",
    "n('setgroups'), 65537, 0": "setgroups",
    "n('setfsuid'), -1": "setfsuid",
    "n('setfsgid'), -1": "setfsgid",
    "n('capset'), header, had": "capset",
    "n('capset'), 0, 0": "capset",
    "n('setns'), -1, 0": "setns",
    "n('unshare'), 0x200": "unshare",
    "n('unshare'), 0x400": "",
    "n('chroot'), b'/'": "chroot",
    "n('chroot'), b'/nowhere'": "chroot",
    "n('pivot_root'), b'/nowhere', b'/nowhere'": "pivot_root",
    "n('prctl'), 8, 0": "prctl",
    "n('prctl'), 38, 2": "prctl",
    "n('prctl'), 47, 4, 0, 0, 0": "prctl",
    "n('prctl'), 47, 4, 0, 0, 7": "prctl",
    "n('prctl'), 47, 1, 0, 0, 0": "",
    "n('prctl'), 7": "",
    "n('prctl'), 12345": "",
    "n('seccomp'), 1, 1, program": "seccomp",  # SET_MODE_FILTER, TSYNC
    "n('seccomp'), 1, 1, 0": "seccomp",
    "n('seccomp'), 2, 0, action": "",  # GET_ACTION_AVAIL
    "n('keyctl'), 1, 0": "keyctl",  # JOIN_SESSION_KEYRING
    "n('keyctl'), 18": "keyctl",  # SESSION_TO_PARENT: refused, our parent has other keys
    "n('keyctl'), 0, -3, 0": "",  # GET_KEYRING_ID
    "n('landlock_restrict_self'), -1, 0": "landlock_restrict_self",
    "n('lsm_set_self_attr'), 999, 0, 0, 0": "lsm_set_self_attr",
    "n('getpid')": "",
    # The kernel takes 32 bits of the number; one of them means x32, which is not for us.
    "n('setresuid') | 1 << 32, -1, -1, -1": "setresuid",
    "n('setresuid') | 1 << 30, -1, -1, -1": "setresuid",
    "n('prctl') | 1 << 30, 8, 0": "prctl",
    "n('getpid') | 1 << 30": "",
    "511": "",
    "512": "",
    "-1": "",
    "1 << 20": "",
}

#: These answer the number of a keyring, and the first makes a new one at every call.
NEW_EACH_TIME = ("n('keyctl'), 1, 0", "n('keyctl'), 0, -3, 0")

CALLS = """
class Libc:
    def __init__(self):
        self.lib = ctypes.CDLL(None, use_errno=True)
        self.lib.syscall.restype = ctypes.c_long
        for call in functions:
            getattr(self.lib, call.partition("(")[0])  # fetched now, whoever it is

    def call(self, text, table):
        lib = self.lib
        ctypes.set_errno(0)
        if table == "numbers":
            answer = lib.syscall(*(wide(a) for a in eval(f"({text},)")))
        else:
            name, _, rest = text.partition("(")
            answer = getattr(lib, name)(*(wide(a) for a in eval(f"({rest[:-1]},)")))
        return answer, ctypes.get_errno()

def wide(argument):
    return ctypes.c_long(argument) if isinstance(argument, int) else argument

def n(name):
    return number(name.encode())

header = (ctypes.c_uint * 2)(0x20080522, 0)
had = (ctypes.c_uint * 6)()
assert ctypes.CDLL(None).capget(header, had) == 0
action = ctypes.byref(ctypes.c_uint(0x7fff0000))  # SECCOMP_RET_ALLOW
instruction = ctypes.create_string_buffer((6).to_bytes(2, "little") + bytes(2) + (0x7fff0000).to_bytes(4, "little"), 8)
program = (ctypes.c_void_p * 2)(1, ctypes.addressof(instruction))
real = Libc()
before = {table: {text: real.call(text, table) for text in texts} for table, texts in tables.items()}
guards.arm()
ours = Libc()
for table, texts in tables.items():
    out[table] = {}
    for text in texts:
        seen()
        answer = ours.call(text, table)
        changes = list(_lock.fetch())
        out[table][text] = [
            changes[0].call if changes else "", len(changes), before[table][text], answer,
            changes[0].errno if changes else answer[1],
            changes[0].by_syscall if changes else table == "numbers",
            changes[0].tid == os.getpid() if changes else True,
        ]
out["captured"] = guards.status()["lock"]["captured"]
"""


def test_every_function_and_every_number(built: Path) -> None:
    """Each is seen once, by its name, and answers what the real function answers, errno too."""
    tables = {"functions": FUNCTIONS, "numbers": NUMBERS}
    out = _in(built, CALLS, "before", tables=tables, functions=list(FUNCTIONS))
    assert {t: {text: row[0] for text, row in out[t].items()} for t in tables} == tables
    for table in tables:
        for text, (call, count, real, ours, recorded, by_syscall, own) in out[table].items():
            assert count == bool(call), text
            if text in NEW_EACH_TIME:
                real, ours = ([answer > 0, error] for answer, error in (real, ours))
            assert real == ours, text
            assert recorded == ours[1], f"{text}: the record has the errno"
            assert by_syscall == (table == "numbers") and own, text
    assert out["captured"] >= len({text.partition("(")[0] for text in FUNCTIONS}), "those that were compared with"


def test_errors_of_an_unprivileged_caller(built: Path) -> None:
    """What the kernel refuses is refused with the same errno, and recorded with it."""
    out = _in(
        built,
        """
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.setresuid(65534, 65534, 65534) == 0
        seen()
        for text in texts:
            name, _, rest = text.partition("(")
            answer = getattr(libc, name)(*eval(f"({rest[:-1]},)"))
            out[text] = [answer, ctypes.get_errno(), *((c.call, c.errno) for c in _lock.fetch())]
        """,
        texts=["setuid(0)", "setresuid(0, 0, 0)", "setgroups(1, groups)", "chroot(b'/')", "unshare(0x20000)"],
    )
    for text, (answer, error, *changes) in out.items():
        assert (answer, error) == (-1, errno.EPERM), text
        assert changes == [[text.partition("(")[0], errno.EPERM]], text


def test_arguments_and_credentials_are_recorded(built: Path) -> None:
    """A record has the arguments and the credentials on both sides of the change."""
    out = _in(
        built,
        """
        ctypes.CDLL(None).setresuid(-1, 65534, -1)
        ctypes.CDLL(None).setresuid(-1, 0, -1)
        out["changes"] = [[*c.arguments, c.before.euid, c.after.euid] for c in _lock.fetch()]
        """,
    )
    keep = 0xFFFFFFFF
    assert out["changes"] == [[keep, 65534, keep, 0, 65534], [keep, 0, keep, 65534, 0]]


@pytest.mark.parametrize("when", WHEN)
def test_syscall_keeps_stack_and_registers(built: Path, when: str) -> None:
    """A clone with a stack of its own, six arguments and the fifth of a wrapped call get through."""
    out = _in(
        built,
        """
        stack = library("stack") if when == "before" else None
        guards.arm()
        stack = stack or library("stack")
        out["clone"], out["six"] = stack.way_clone(), stack.way_six()
        out["waved through"] = seen()
        out["fifth"] = [stack.way_fifth(ctypes.c_long(0)), stack.way_fifth(ctypes.c_long(7))]
        out["seen"] = [(c.call, c.errno) for c in _lock.fetch()]
        """,
        when,
    )
    assert (out["clone"], out["six"]) == (7, ord("*"))
    assert out["waved through"] == []
    assert out["fifth"] == [0, -1]
    assert out["seen"] == [["prctl", 0], ["prctl", errno.EINVAL]]


def test_function_in_a_program_of_fixed_address(built: Path) -> None:
    """There an address of a function is the program's own, which is no foreign interposer."""
    out = _in(
        built,
        """
        host = ctypes.CDLL(None)
        out["answer"], out["seen"], out["proof"] = host.way_plain(), seen(), proof()
        """,
        env=SETTINGS["not position independent"].env,
        executable=str(built / "host"),
    )
    assert out == {"answer": 0, "seen": ["setresuid"], "proof": "holds"}


# ------------------------------------------------------------------ what is found out

HELD = {
    "ctypes function fetched": "",  # on the heap
    "C pointer kept by a constructor": "held.so",
}


@pytest.mark.parametrize("name", HELD)
def test_status_names_a_pointer_taken_before(built: Path, name: str) -> None:
    """The status says how many, where the first is, and what to do; spawns go by fork."""
    out = _in(
        built,
        """
        kept = eval(bind)
        lock = guards.arm()
        out.update(captured=lock["captured"], place=lock["captured_in"], why=lock["why"], proof=proof())
        out["spawn"] = beside_a_thread(lambda: safespawn.run(["/bin/true"]).report.strategy)
        """,
        "before",
        bind=WAYS[name].bind,
    )
    assert out["captured"] == 1
    assert out["place"].endswith(HELD[name])
    assert out["why"].startswith("1 pointers to functions that change credentials were taken before arming (first at 0x")
    assert "guards.arm()" in out["why"]
    assert out["proof"] in out["why"]
    assert out["spawn"] == "fork"


def test_proof_comes_back_when_the_pointer_is_gone(built: Path) -> None:
    """Arming again looks anew: with the object gone and its memory used again, nothing is left."""
    out = _in(
        built,
        """
        import gc
        libc = ctypes.CDLL(None)
        kept = libc["setresuid"]
        out["held"] = [guards.arm()["captured"], proof()]
        del kept
        gc.collect()
        used = [libc["getpid"] for _ in range(500)]  # takes the place that was freed
        out["before looking"] = proof()
        out["gone"] = [guards.arm()["captured"], proof()]
        out["answer"], out["seen"] = libc.setresuid(-1, -1, -1), seen()
        """,
        "before",
    )
    assert out["held"][0] == 1
    assert out["held"][1] == out["before looking"] != "holds"
    assert out["gone"] == [0, "holds"]
    assert (out["answer"], out["seen"]) == (0, ["setresuid"])


def test_namespace_is_found_out_while_it_is_there(built: Path) -> None:
    """The proof goes with a second libc, and comes back when that is unloaded."""
    out = _in(
        built,
        """
        other = library("namespace")
        out["without"] = proof()
        opened(other)
        out["with"] = [proof(), guards.status()["lock"]["why"]]
        out["closed"] = other.way_close()
        out["after"] = proof()
        """,
    )
    assert out["without"] == out["after"] == "holds" and out["closed"] == 0
    assert "other link namespaces" in out["with"][0] and "other link namespaces" in out["with"][1]


def test_preloaded_interposer_is_named(built: Path) -> None:
    """The status says whose function stands before libc's."""
    out = _in(built, "out.update(guards.status()['lock'])", env={"LD_PRELOAD": f"{built}/preload.so"})
    assert (out["foreign"], out["foreign_name"]) == (1, "setresuid")
    assert out["foreign_in"].endswith("preload.so")
    assert any("LD_PRELOAD" in problem for problem in out["problems"])


def test_process_under_a_sanitizer_comes_up(built: Path) -> None:
    """Its library stands before libc; spawns beside a thread go by fork and say why."""
    out = _in(
        built,
        """
        done = beside_a_thread(lambda: safespawn.run(["/bin/true"]))
        out.update(code=done.returncode, strategy=done.report.strategy, reasons=done.report.reasons)
        out["alone"] = safespawn.run(["/bin/true"]).report.strategy
        os.seteuid(0)
        out["seen"] = seen()
        """,
        env={"LD_PRELOAD": _sanitizer(), "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert (out["code"], out["strategy"]) == (0, "fork")
    assert "another interposer stands before libc" in out["reasons"][0]
    assert out["seen"] == ["seteuid"]


# ---------------------------------------------------------------------------- libpsx

BROADCAST = """
def load():
    return ctypes.CDLL("libpsx.so.2", use_errno=True), library("broadcast")

def changes():
    return sorted((c.call, c.errno, c.by_psx, c.by_syscall) for c in _lock.fetch())

loaded = load() if when == "before" else None
guards.arm()
psx, threads = loaded or load()
assert threads.way_start() == 0
keepcaps = 8, 1, 0
def broadcast():
    out["proof"] = guards.status()["proofs"]["locked"]
    out["covered"] = [name for name in guards.status()["lock"]["covered"] if "psx" in name]
    psx.psx_syscall3.argtypes, psx.psx_syscall6.argtypes = [ctypes.c_long] * 4, [ctypes.c_long] * 7
    psx.psx_syscall3.restype = psx.psx_syscall6.restype = ctypes.c_long
    seen()
    out["three"] = [psx.psx_syscall3(number(b"prctl"), *keepcaps), changes()]
    out["six"] = [psx.psx_syscall6(number(b"setresuid"), -1, -1, -1, 0, 0, 0), changes()]
    ctypes.set_errno(0)
    out["error"] = [psx.psx_syscall3(number(b"setns"), -1, 0, 0), ctypes.get_errno(), changes()]
    out["harmless"] = [psx.psx_syscall3(number(b"getpid"), 0, 0, 0) == os.getpid(), changes()]
beside_a_thread(broadcast)
out["keep"] = threads.way_finish()
"""


@pytest.mark.parametrize("when", WHEN)
def test_libpsx_broadcast(built: Path, when: str) -> None:
    """It reaches all threads, ends, and is seen whole and in each thread; Python has one more thread."""
    if "libpsx.so.2" not in _run(["/sbin/ldconfig", "-p"]):
        pytest.skip("needs libpsx.so.2")
    if not (built / "broadcast.so").exists():
        _compile(built, "broadcast", "broadcast.c", "-l:libpsx.so.2")
    out = _in(built, BROADCAST, when)
    assert out["proof"] == "holds"
    assert out["covered"] == ["psx_syscall3", "psx_syscall6", "__psx_syscall"]
    for name, call, error in (("three", "prctl", 0), ("six", "setresuid", 0), ("error", "setns", errno.EBADF)):
        *answer, changes = out[name]
        assert answer == ([-1, errno.EBADF] if error else [0]), name
        own = [change for change in changes if change[2]]
        threads = [change for change in changes if change[3]]
        assert {(change[0], change[1]) for change in changes} == {(call, error)}, name
        assert own and len(own) + len(threads) == len(changes), name
        # One thread that called, and three of the library's. After an error in the first no other is asked.
        assert len(threads) == (1 if error else 4), name
    assert out["harmless"] == [True, []]
    assert out["keep"] == 3, "all of the library's threads made the call"


# --------------------------------------------------------------- more than one of us

COPY = """
import importlib
sys.path.append(built + "/second")
second = importlib.import_module("safespawn2")
their_lock, theirs = importlib.import_module("safespawn2._lock"), second.guards
assert second._binding.lib is not safespawn._binding.lib

def both():
    return [seen(), [change.call for change in their_lock.fetch()]]

both()
out["states"] = [guards.status()["lock"]["state"], theirs.status()["lock"]["state"]]
out["proof"] = proof()
ctypes.CDLL(None).setresuid(-1, -1, -1)
out["ctypes"] = both()
os.setgid(0)
out["os"] = both()
library("lazy").way_syscall()
out["library"] = both()
again = guards.arm()
out["again"] = [again["state"], again["foreign"], again["captured"], proof()]
theirs.arm()
os.setuid(0)
out["still"] = [*both(), proof()]
out["spawns"] = [package.run(["/bin/true"]).returncode for package in (safespawn, second)]
out["strategy"] = beside_a_thread(lambda: safespawn.run(["/bin/true"]).report.proof)
out["theirs"] = beside_a_thread(lambda: second.run(["/bin/true"]).returncode)
"""


def test_second_copy_of_the_library(built: Path) -> None:
    """Both are armed and see every change, and the first one's proof goes on to hold."""
    package = built / "second" / "safespawn2"
    shutil.copytree(Path(safespawn.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "*.c"))
    out = _in(built, COPY)
    assert out["states"] == ["armed", "armed"]
    assert out["proof"] == "holds"
    assert out["ctypes"] == [["setresuid"], ["setresuid"]]
    assert out["os"] == [["setgid"], ["setgid"]]
    assert out["library"] == [["setreuid"], ["setreuid"]]
    assert out["again"] == ["armed", 0, 0, "holds"]
    assert out["still"] == [["setuid"], ["setuid"], "holds"]
    assert out["spawns"] == [0, 0]
    assert (out["strategy"], out["theirs"]) == ("locked", 0)


SUBINTERPRETER = """
try:
    import _xxsubinterpreters as interpreters
    there = interpreters.create() if sys.version_info < (3, 12) else interpreters.create(isolated=False)
except ImportError:
    import _interpreters as interpreters
    there = interpreters.create("legacy")
read, write = os.pipe()
text = f'''
import json, os, sys
sys.path[:] = {sys.path!r}
import safespawn
from safespawn import _lock, guards
_lock.on_change(lambda wait: None)  # the records of the audit take them otherwise
list(_lock.fetch())
os.seteuid(0)
told = {{"seen": [change.call for change in _lock.fetch()], "state": guards.status()["lock"]["state"]}}
told["code"] = safespawn.run(["/bin/true"]).returncode
os.write({write}, json.dumps(told).encode())
'''
if hasattr(interpreters, "exec"):
    assert interpreters.exec(there, text) is None
else:
    interpreters.run_string(there, text)
out["there"] = json.loads(os.read(read, 10000))
interpreters.destroy(there)
os.close(read), os.close(write)
seen()
os.seteuid(0)
out["here"] = [seen(), proof(), safespawn.run(["/bin/true"]).returncode]
"""


@pytest.mark.parametrize("when", WHEN)
def test_sub_interpreter(built: Path, when: str) -> None:
    """It finds the process armed, or leaves it to whoever arms; it spawns, and so do we afterwards."""
    arm = "guards.arm()\n" if when == "after" else ""
    out = _in(built, arm + SUBINTERPRETER.replace("list(_lock.fetch())", "guards.arm(); list(_lock.fetch())"), when)
    assert out["there"] == {"seen": ["seteuid"], "state": "armed", "code": 0}
    assert out["here"] == [["seteuid"], "holds", 0]


# ------------------------------------------------------------------ forks and storms

FORK = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: that is the test
os.seteuid(0)
read, write = os.pipe()
def fork():
    child = os.fork()
    if not child:
        status = 1
        try:
            told = {"fetched": seen()}
            os.seteuid(65534)
            os.seteuid(0)
            told["seen"] = seen()
            lock = guards.status()["lock"]
            told["lock"] = [lock[key] for key in ("state", "changes", "spawners", "changers", "changer_waits")]
            told["code"] = safespawn.run(["/bin/true"]).returncode
            told["proof"] = proof()
            os.write(write, json.dumps(told).encode())
            status = 0
        finally:
            os._exit(status)
    out["status"] = os.waitpid(child, 0)[1]
seen()
epoch = guards.status()["lock"]["epoch"]
thread = threading.Thread(target=fork)
thread.start()
thread.join()
out["child"] = json.loads(os.read(read, 10000))
lock = guards.status()["lock"]
out["parent"] = [seen(), lock["epoch"] - epoch, lock["spawners"], lock["changers"], proof(), os.geteuid()]
"""


def test_fork_in_a_thread(built: Path) -> None:
    """The child starts with a lock of its own that nobody holds; ours knows nothing of its changes."""
    out = _in(built, FORK)
    assert out["status"] == 0
    assert out["child"]["fetched"] == []
    assert out["child"]["seen"] == ["seteuid", "seteuid"]
    assert out["child"]["lock"] == ["armed", 2, 0, 0, False]
    # The loader's own locks are not reset at fork, so nothing is said about the objects there.
    assert out["child"]["code"] == 0
    assert out["child"]["proof"].startswith("forked beside other threads")
    assert out["parent"] == [[], 0, 0, 0, "holds", 0]


STORM = """
rounds = 300
paths = [f"{built}/{name}.so".encode() for name in ("lazy", "now", "noplt", "table")]
storm = library("storm").way_storm
stop, counts = threading.Event(), {"looks": 0, "seteuid": 0}

def look():
    while not stop.is_set():
        guards.status()
        counts["looks"] += 1
        if counts["looks"] % 4 == 0:
            guards.arm()

def change():
    while not stop.is_set():
        os.seteuid(0)
        counts["seteuid"] += 1

had = guards.status()["lock"]["changes"]
threads = [threading.Thread(target=work) for work in (look, change)]
for thread in threads:
    thread.start()
out["failed"] = storm((ctypes.c_char_p * (len(paths) + 1))(*paths), rounds)
stop.set()
for thread in threads:
    thread.join()
lock = guards.arm()
out.update(counts, expected=rounds * len(paths) + counts["seteuid"], changes=lock["changes"] - had)
# Not "captured": a signal may have left the address of a function on the stack of a thread.
out["lock"] = [lock[key] for key in ("state", "foreign", "other_namespaces", "spawners", "changers")]
"""


def test_libraries_that_come_and_go(built: Path) -> None:
    """While one thread loads and unloads, one looks and arms, one changes: every call is seen."""
    out = _in(built, STORM)
    assert out["failed"] == 0
    assert out["looks"] and out["seteuid"]
    assert out["changes"] == out["expected"]
    assert out["lock"] == ["armed", 0, 0, 0, 0]


def test_the_matrix(cells: Run) -> None:
    """The whole of it, as one table."""
    found = {}
    for name, way in WAYS.items():
        group = (name,) if way.alone else TOGETHER
        found[name] = tuple(cells(group, when)[name] for when in WHEN)
    assert found == MATRIX
