"""The library in what it may find itself in: what works there, what is refused and why, and nothing in silence.

`environments.py` says how each is entered, `sandboxed.py` what is tried in it: by one process, which forks into each.
docs/environments.md has the table for people, and this file holds it to this one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import environments
import helpers
import sandboxed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces and drops capabilities")

Seen = dict[str, Any]

#: What is seen where nothing is refused.
PLAIN: Seen = {
    "threads": "yes",
    "lock": "armed",
    "by": {
        "auto": "vfork, single-threaded",
        "vfork": "vfork, single-threaded",
        "clone": "clone, single-threaded",
        "fork": "fork, None",
        "posix_spawn": "posix_spawn, single-threaded",
        "launcher": "launcher, single-threaded",
        "helper": "helper, None",
        "pool": "pool, None",
    },
    "by_beside": {"auto": "vfork, locked", "vfork": "vfork, locked", "fork": "fork, None", "helper": "helper, None"},
    "reasons_beside": "changes-wait: every change of credentials waits, and all threads are alike",
    "as_somebody": {"auto": "launcher", "fork": "fork", "launcher": "launcher", "helper": "helper"},
    "bounded": "vfork, single-threaded",
    "many": "clone",
    "subprocess_face": "-9 vfork",
    "asyncio_face": "3",
    "installed": "[4, 5, 6]",
    "killed_with_its_tree": "-9",
    "timed_out": "TimeoutExpired",
    "ledger": "chain.open spawn.intent spawn.started spawn.exit chain.close verified",
    "ledger_refused": "AuditError ENOENT",
    "doctor": "0: all",
    "left": "nothing",
}

APART = "UnsafeSpawn alone-or-apart"
NO_THREAD = "RuntimeError: can't start new thread"


def _no_helper(why: str) -> Seen:
    return {
        "by": {"helper": why, "pool": why},
        "by_beside": {"helper": why},
        "as_somebody": {"helper": why},
    }


def _no_memfd(why: str) -> Seen:
    """Neither launcher nor helper gets its sealed plan: a fork does what they would."""
    unlaunched = "UnsafeSpawn drop-apart"
    return _with(
        _no_helper(why), {"by": {"launcher": unlaunched}, "as_somebody": {"auto": "fork", "launcher": unlaunched}}
    )


def _no_pidfd(why: str) -> Seen:
    """Births bring theirs; what has to be opened by number cannot be had."""
    return _with(
        _no_helper(why),
        {"by": {"posix_spawn": f"{why} at clone"}, "killed_with_its_tree": why, "doctor": "0: pidfd pidfd"},
    )


def _with(one: Seen, more: Seen) -> Seen:
    """Return both; what is in the second counts."""
    return {
        name: _with(one[name], more[name])
        if isinstance(one.get(name), dict) and isinstance(more.get(name), dict)
        else more.get(name, one.get(name))
        for name in {**one, **more}
    }


#: Nobody can say how many threads we are: no shared memory, and a tree cannot be found.
NO_PROC = _with(
    _no_helper("FileNotFoundError ENOENT"),
    {
        "lock": "unlockable: the credential lock could not be armed: No such file or directory: spawns from several "
        "threads go by fork; one thread, and guards.seal(), are as good as before",
        "by": {"auto": "fork, None", "vfork": APART, "clone": APART, "posix_spawn": APART, "launcher": APART},
        "by_beside": {"auto": "fork, None", "vfork": APART},
        "reasons_beside": "alone-or-apart: could not look: No such file or directory",
        "as_somebody": {"auto": "fork", "launcher": APART},
        "bounded": "fork, None",
        "many": "fork",
        "subprocess_face": "-9 fork",
        "killed_with_its_tree": "FileNotFoundError ENOENT",
        "doctor": "0: memory /dev/fd",
    },
)
UNSEEN_KILL = "a child could not be killed for a change, pidfd_send_signal: Operation not permitted"


def _nobody_else(why: str) -> Seen:
    return {"as_somebody": dict.fromkeys(sandboxed.DROPPING, f"{why} at gid")}


#: An orphan goes to process 1, which has to reap it: a library must not, since it may be somebody's child.
PROCESS_1 = {"left": "an orphan, -9"}

#: What is different, for each environment.
DIFFERENT: dict[str, Seen] = {
    "plain": {},
    "clone3 is ENOSYS": {"doctor": "0: clone3"},
    # glibc makes neither threads nor posix_spawn's children then: it tries clone(2) for ENOSYS only.
    "clone3 is EPERM": {
        "threads": NO_THREAD,
        "by": {"posix_spawn": "PermissionError EPERM at posix-spawn"},
        "by_beside": NO_THREAD,
        "reasons_beside": NO_THREAD,
        "doctor": "0: clone3",
    },
    "no namespaces": {"doctor": "0: clone3"},
    "memfd_create is EPERM": _no_memfd("PermissionError EPERM"),
    "memfd_create is ENOSYS": _no_memfd("OSError ENOSYS"),
    "pidfd_open is EPERM": _no_pidfd("PermissionError EPERM"),
    "pidfd_open is ENOSYS": _no_pidfd("OSError ENOSYS"),
    # A child that keeps a change of credentials waiting could not be killed: so nobody may wait for one.
    "pidfd_send_signal is EPERM": {
        "lock": f"armed: {UNSEEN_KILL}: allow that system call in the sandbox's profile",
        "by_beside": {"auto": "fork, None", "vfork": APART},
        "reasons_beside": f"alone-or-apart: 2 threads, so a privilege could change in the window: {UNSEEN_KILL}",
        "killed_with_its_tree": "PermissionError EPERM",
        "left": "a program",  # of the time-out
        "doctor": "0: pidfd",
    },
    "little is there": {"doctor": "0: clone3 close_range faccessat2 move_pages landlock"},
    "no /proc": NO_PROC,
    "empty /proc": NO_PROC,
    "hidepid": {},
    "masked /proc": {},
    "/proc of others": _with(_no_helper("ProcessLookupError ESRCH"), PROCESS_1),
    "read-only /": {},
    "nowhere to write": {"ledger": "nowhere to write"},
    "noexec /tmp": {},
    "no_new_privs": {},
    "root of a user namespace": _nobody_else("OSError EINVAL"),
    "root of a mapped user namespace": {},
    "no CAP_SETUID": _nobody_else("PermissionError EPERM"),
    "no CAP_SYS_PTRACE": {},
    "process 1": PROCESS_1,
    "container": {**PROCESS_1, "doctor": "0: clone3 move_pages"},
    "bare container": {**PROCESS_1, **_nobody_else("PermissionError EPERM"), "doctor": "0: clone3 move_pages"},
}


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Seen]]:
    """Try all of it in all of them, from one process, and return what was seen in each."""
    done = subprocess.run(
        [sys.executable, str(helpers.TESTS / "sandboxed.py"), *environments.ENVIRONMENTS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (helpers.CORE, str(helpers.ROOT))))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    yield {answer["environment"]: answer["seen"] for answer in answers}


def _texts(seen: Seen) -> Iterator[str]:
    for told in seen.values():
        yield from told.values() if isinstance(told, dict) else [told]


def _without_texts(seen: Seen) -> Seen:
    """Leave out what exceptions say, which `sandboxed.py` puts last and in angle brackets."""
    return {
        name: _without_texts(told) if isinstance(told, dict) else re.sub(r" <.*>$", "", told)
        for name, told in seen.items()
    }


@pytest.mark.parametrize("name", environments.ENVIRONMENTS)
def test_environment(seen: dict[str, Seen], name: str) -> None:
    """Everything works as where nothing is refused, but for what the table has for it."""
    assert _without_texts(seen[name]) == _with(PLAIN, DIFFERENT[name])


@pytest.mark.parametrize("name", environments.ENVIRONMENTS)
def test_refusal_says_why(seen: dict[str, Seen], name: str) -> None:
    """An error says more than its number: a stage, a file, a system call, or a reason."""
    for text in _texts(seen[name]):
        for number, said in re.findall(r"<\[Errno (\d+)\] (.*)>$", text):
            assert len(said) > len(os.strerror(int(number))), text


@pytest.mark.parametrize("name", ["no /proc", "empty /proc"])
def test_no_memory_is_shared_without_a_look_at_ourselves(seen: dict[str, Seen], name: str) -> None:
    """Where nobody can count our threads every child is a fork, whatever was asked for."""
    for told in (seen[name]["by"], seen[name]["by_beside"], {"many": seen[name]["many"]}):
        assert {text.split(",")[0].split(" <")[0] for text in told.values()} <= {
            "fork", APART, "FileNotFoundError ENOENT"
        }  # fmt: skip


def test_table_has_every_environment() -> None:
    """What is entered is judged, and what is judged is entered."""
    assert DIFFERENT.keys() == environments.ENVIRONMENTS.keys()
