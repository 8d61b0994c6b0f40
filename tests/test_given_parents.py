"""Whatever the parent is like, a child is the same by every strategy: the launcher's extra exec shows nowhere.

An exec changes credentials by itself (capabilities(7)), so a parent for which the launcher
would come to another result than fork is refused the launcher, and ``auto`` forks.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

import pytest

import helpers
from child_state import NET_RAW, NO_CAPS, SETUID, bits, caps, heeding, identity, ignoring, settled, told

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes parents of all sorts")

PRELUDE = """
import ctypes, resource, tempfile, threading
import prctl
from credchanges import NR as NUMBERS
from child_state import CHOWN, NET_RAW, SETGID, SETPCAP, SETUID, bits, refusing, told
from parents import NR, ambient, as_somebody, become, capset, ignore_raw, in_user_namespace, libc, ours

def story(strategy, asked):
    try:
        return told([whole], strategy, **asked)
    except safespawn.UnsafeSpawn as refusal:
        return {"refused": refusal.guard}
    except OSError as problem:
        return {"raised": type(problem).__name__, "errno": problem.errno, "stage": problem.stage}

def differences(a, b):
    if not ("uids" in a and "uids" in b):
        return {} if a == b else {"outcome": [one if "uids" not in one else "ran" for one in (a, b)]}
    return {key: [a.get(key), b.get(key)] for key in {*a, *b} if a.get(key) != b.get(key)}
"""

#: What a process may have done before it spawns, where the launcher has to be as good as fork.
LIKE_FORK = {
    "blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, [1, 10, 34, 64])",
    "ignored": "[signal.signal(number, signal.SIG_IGN) for number in (1, 2, 10, 20, 22, 64)]",
    "handler": "[signal.signal(number, lambda *_: None) for number in (1, 15, 17, 36)]",
    "libc-signals": "[ignore_raw(number) for number in (32, 33)]",
    "timer": "signal.signal(14, signal.SIG_IGN); signal.setitimer(signal.ITIMER_REAL, 30)",
    "umask": "os.umask(0o777)",
    "nice": "os.nice(5)",
    "affinity": "os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])",
    "policy": "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))",
    "session": "os.setpgid(0, 0)",
    "deathsig": "prctl.set_pdeathsig(15)",
    "keepcaps": "prctl.set_keepcaps(True)",
    "undumpable": "prctl.set_dumpable(0)",
    "no-new-privs": "prctl.set_no_new_privs(1)",
    "filter": "prctl.set_no_new_privs(1); assert libc.syscall(NUMBERS['seccomp'], 1, 0, ctypes.byref(program)) == 0",
    "no-stdin": "os.close(0)",
    "no-streams": "os.closerange(0, 3)",
    "inheritable": "[os.set_inheritable(os.dup(1), True) for _ in range(20)]",
    "few-files": "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
    "no-cwd": "where = tempfile.mkdtemp(); os.chdir(where); os.rmdir(where)",
    "no-environ": "os.environ.clear()",
    "loader": "os.environ.update(LD_PRELOAD='/nowhere', LD_LIBRARY_PATH='/nowhere', MALLOC_ARENA_MAX='1')",
    "personality": "assert libc.personality(0x0040000) == 0",  # ADDR_NO_RANDOMIZE
    "oom": "open('/proc/self/oom_score_adj', 'w').write('500')",
    "coredump": "open('/proc/self/coredump_filter', 'w').write('0x7f')",
    "io-priority": "assert libc.syscall(NR['ioprio_set'], 1, 0, 2 << 13 | 7) == 0",  # best effort, the last
    "no-huge-pages": "assert libc.prctl(41, 1, 0, 0, 0) == 0",  # PR_SET_THP_DISABLE
    "small-stack": "resource.setrlimit(resource.RLIMIT_STACK, (1 << 17, 1 << 17))",
    "container": "in_user_namespace()",
    "bounding": "prctl.capbset.drop('net_raw'); capset(ours() & ~bits(NET_RAW))",
    "groups": "os.setgroups([4, 27])",
    # Whose copy nobody may map into a user namespace otherwise: test_given_namespaces.py.
    "somebody": "become(1000, 1001); prctl.set_dumpable(1)",
    "threads": "threading.Thread(target=os.read, args=(os.pipe()[0], 1), daemon=True).start()",
}

#: The same, where an exec between would change what there is to give: it may be refused.
UNLIKE = {
    "euid": "os.seteuid(1000)",
    "ruid": "os.setresuid(1000, 0, 0)",
    "suid": "os.setresuid(1000, 1000, 0)",
    "egid": "os.setegid(1000)",
    "fewer": "capset(bits(CHOWN, SETUID, SETGID, SETPCAP))",
    "noroot": "prctl.securebits.noroot = True",
    "noroot-kept": "prctl.securebits.noroot = True; capset(ours(), bits(SETUID)); ambient(SETUID)",
    "fixup": "prctl.securebits.no_setuid_fixup = True",
    "inherited": "capset(ours(), bits(NET_RAW))",
    "raised": "capset(ours(), bits(NET_RAW)); ambient(NET_RAW)",
    "capable-somebody": "as_somebody(bits(SETUID, SETGID, CHOWN))",
    "ambient-somebody": "as_somebody(bits(SETUID), bits(SETUID)); ambient(SETUID)",
    # A file that grows past the limit means death, unless that is ignored as Python does.
    "no-files": "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
    "no-files-ignored": "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
    "bounding-only": "prctl.capbset.drop('net_raw')",
}

#: What is asked for of each of them.
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no_new_privs": {"no_new_privs": True},
    "root": {"user": 0, "group": 0, "extra_groups": []},
    "somebody": {"user": 70_000, "group": 70_001, "extra_groups": [5]},
    "itself": {"user": 1000, "group": 1001, "extra_groups": []},
    "group": {"group": 12},
    "caps": {"caps": ["chown", "net_raw"]},
    "kept": {"caps": ["chown"], "user": 70_000, "group": 70_001, "extra_groups": [5]},
    "none": {"caps": []},
    "bits": {"securebits": ["no_cap_ambient_raise"]},
    "namespace": {"namespaces": ["user", "uts"]},
    "limits": {"rlimits": {"7": 50}, "nice": 10, "umask": 0o22, "sigmask": [12], "restore_signals": False},
}

SNIPPET = """
text = refusing({"uname": 1})
buffer = ctypes.create_string_buffer(text, len(text))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
program = Program(len(text) // 8, ctypes.addressof(buffer))
exec(setting)
for asked in wanted.values():
    if "rlimits" in asked:
        asked["rlimits"] = {int(key): value for key, value in asked["rlimits"].items()}
for name, asked in wanted.items():
    fork, launcher, auto = (story(strategy, asked) for strategy in ("fork", "launcher", "auto"))
    out[name] = {"refused": launcher.get("refused"), "launcher": differences(fork, launcher),
                 "auto": differences(fork, auto)}
    out.setdefault("first", fork)
"""


def stories(whole: str, setting: str, names: Iterable[str] = ASKED) -> dict[str, dict[str, Any]]:
    """Return what is different in children of such a parent, by name of what was asked for.

    ``first`` is what the first of them says that was forked.
    """
    wanted = {name: ASKED[name] for name in names}
    return helpers.run_snippet(PRELUDE + SNIPPET, whole=whole, setting=setting, wanted=wanted)


@pytest.mark.parametrize("parent", LIKE_FORK)
def test_launcher_is_as_good_as_fork(whole: str, parent: str) -> None:
    """What a child is, or why it cannot be, does not depend on the strategy."""
    told = stories(whole, LIKE_FORK[parent])
    del told["first"]

    assert told == dict.fromkeys(ASKED, {"refused": None, "launcher": {}, "auto": {}})


@pytest.mark.parametrize("parent", UNLIKE)
def test_launcher_is_as_good_or_is_refused(whole: str, parent: str) -> None:
    """The same, or the launcher is refused by name; ``auto`` never refuses and never differs."""
    told = stories(whole, UNLIKE[parent])
    del told["first"]

    wrong = {
        name: seen
        for name, seen in told.items()
        if seen["auto"] or (seen["launcher"] and seen["refused"] != "drop-apart")
    }
    assert wrong == {}


#: What a child has of such a parent, and ``None`` for what only must not be as usual.
PASSED_ON: dict[str, dict[str, Any]] = {
    "blocked": {"blocked": bits(0, 9, 33, 63)},
    "ignored": {"ignored": ignoring(1, 2, 10, 20, 22, 64)},
    "libc-signals": {"ignored": ignoring()},
    "handler": {"ignored": heeding(1, 15, 17, 36), "caught": 0},
    "umask": {"umask": 0o777},
    "nice": {"nice": 5},
    "affinity": {"cpus": [max(os.sched_getaffinity(0))]},
    "policy": {"policy": os.SCHED_IDLE},
    "deathsig": {"pdeathsig": 0},
    "keepcaps": {"keepcaps": 0},
    "undumpable": {"dumpable": 1},
    "no-new-privs": {"no_new_privs": 1},
    "filter": {"hostname": 1, "seccomp": 2},
    "few-files": {"limits.7": [40, 40]},
    "no-cwd": {"cwd": errno.ENOENT},
    "no-environ": {"environ": []},
    "personality": {"personality": 0x0040000},
    "oom": {"oom_score_adj": "500"},
    "coredump": {"coredump_filter": "0000007f"},
    "io-priority": {"io_priority": 2 << 13 | 7},
    "no-huge-pages": {"no_huge_pages": 1},
    "small-stack": {"limits.3": [1 << 17, 1 << 17]},
    "bounding": {"bounding": None, "permitted": None},
    "groups": {"groups": [4, 27]},
    "somebody": {**identity(1000, 1001), **NO_CAPS},
    "noroot": {"permitted": 0, "securebits": 1},
    "inherited": {"inheritable": bits(NET_RAW), "ambient": 0},
    "raised": {"inheritable": bits(NET_RAW), "ambient": bits(NET_RAW)},
    "ambient-somebody": caps(bits(SETUID)),
}


@pytest.mark.parametrize("parent", PASSED_ON)
def test_child_has_what_its_parent_passes_on(whole: str, parent: str) -> None:
    """Where nothing is asked for, what a parent has is its child's, and what must not be is not."""
    setting = {**LIKE_FORK, **UNLIKE}[parent]
    seen = stories(whole, setting, ["nothing"])["first"]
    plain = told([whole], "fork")

    for field, value in settled(PASSED_ON[parent], plain).items():
        assert seen[field] != plain[field] if value is None else seen[field] == value, field
