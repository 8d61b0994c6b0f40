"""A process that was taken over: where functions of ours stand in, what they do, and that they go away again."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

import helpers

#: In front of snippets: opens a ledger at `path`, installs, and tells what was recorded.
TAKEN = """
import ctypes, errno, multiprocessing, subprocess, threading, warnings
from safespawn import audit, takeover

def records():
    return [json.loads(line) for line in open(path)]

def told(event, *members):
    found = [record for record in records() if record["ev"] == event]
    for member in members:
        found = [record.get(member) for record in found if record.get(member) is not None]
    return found

if path:
    ledger = audit.open(path)
safespawn.install()
"""


def taken(snippet: str, ledger: Path | None = None, **values: object) -> dict[str, Any]:
    """Run a snippet in a process that was taken over, with a ledger if there is a path."""
    head = f"path = {None if ledger is None else str(ledger)!r}\n"
    return helpers.run_snippet(head + TAKEN + textwrap.dedent(snippet), **values)


# ---------------------------------------------------------------- where the functions are

NAMES = """
import os, posix, subprocess, multiprocessing.util, _posixsubprocess
NAMES = [
    (_posixsubprocess, "fork_exec"), (posix, "posix_spawn"), (posix, "posix_spawnp"), (os, "posix_spawn"),
    (os, "posix_spawnp"), (os, "_spawnvef"), (posix, "waitpid"), (os, "waitpid"), (os, "wait"), (os, "wait3"),
    (os, "wait4"), (os, "waitid"), (posix, "system"), (os, "system"), (os, "popen"),
]
if hasattr(subprocess, "_fork_exec"):
    NAMES.append((subprocess, "_fork_exec"))
before = [getattr(module, name) for module, name in NAMES]
by_posix_spawn = subprocess._USE_POSIX_SPAWN
"""


def test_every_name_is_ours_and_then_the_original_again() -> None:
    """install() replaces the functions wherever the standard library has them, uninstall() leaves no trace."""
    out = helpers.run_snippet(
        NAMES
        + """
safespawn.install()
out["ours"] = [getattr(module, name) is not old for (module, name), old in zip(NAMES, before)]
out["by_posix_spawn"] = subprocess._USE_POSIX_SPAWN
safespawn.uninstall()
out["restored"] = [getattr(module, name) is old for (module, name), old in zip(NAMES, before)]
out["again"] = subprocess._USE_POSIX_SPAWN is by_posix_spawn
"""
    )
    assert all(out["ours"])
    assert all(out["restored"])
    assert (out["by_posix_spawn"], out["again"]) == (False, True)


def test_names_bound_earlier_are_covered_and_restored() -> None:
    """A module that imported a function, a class that has one, a default and a closure get ours, and lose it again."""
    out = helpers.run_snippet(
        """
        import types
        from os import posix_spawn, waitpid
        module = types.ModuleType("theirs")
        exec("from os import posix_spawn as start", vars(module))
        class Theirs:
            start = os.posix_spawn
        def default(pid, wait=os.waitpid):
            return wait
        def closure():
            inner = os.waitpid
            return lambda: inner
        enclosed = closure()
        def seen():
            return [posix_spawn, waitpid, module.start, Theirs.start, Theirs().start, default(0), enclosed()]
        before = seen()
        safespawn.install()
        out["ours"] = [new is not old for new, old in zip(seen(), before)]
        pid = Theirs().start("/bin/true", ["true"], {})  # as an attribute of an instance it is no method
        out["status"] = waitpid(pid, 0)[1]
        safespawn.uninstall()
        out["restored"] = [new is old for new, old in zip(seen(), before)]
        """
    )
    assert all(out["ours"])
    assert all(out["restored"])
    assert out["status"] == 0


def test_bound_meanwhile_is_restored_too() -> None:
    """What a module got hold of while we were installed is the original after uninstall(); a stand-in passes on."""
    out = helpers.run_snippet(
        """
        import os
        original, held = os.waitpid, []
        safespawn.install()
        from os import waitpid
        held.append(waitpid)  # in a list, where nobody finds it
        safespawn.uninstall()
        out["same"] = waitpid is original
        pid = os.spawnlp(os.P_NOWAIT, "true", "true")
        out["passes"] = list(held[0](pid, 0)) == [pid, 0]
        """
    )
    assert out == {"same": True, "passes": True}


def test_twice_is_no_error() -> None:
    """install() and uninstall() may be called again; installed() leaves things as it found them."""
    out = helpers.run_snippet(
        """
        import subprocess
        from safespawn import takeover
        for _ in range(2):
            safespawn.install()
        with safespawn.installed():
            pass
        out["stays"] = takeover.is_installed()
        for _ in range(2):
            safespawn.uninstall()
        with safespawn.installed():
            out["inside"] = takeover.is_installed()
        out["outside"] = takeover.is_installed()
        """
    )
    assert out == {"stays": True, "inside": True, "outside": False}


def test_installing_beside_threads_that_start_programs() -> None:
    """No start fails or is lost while other threads install and uninstall."""
    out = helpers.run_snippet(
        """
        import subprocess, threading
        codes, stop = [], threading.Event()
        def starter():
            while not stop.is_set():
                codes.append(subprocess.run(["/bin/sh", "-c", "exit 7"]).returncode)
        threads = [threading.Thread(target=starter) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            with safespawn.installed():
                pass
        stop.set()
        for thread in threads:
            thread.join()
        out["codes"] = sorted(set(codes))
        """
    )
    assert out["codes"] == [7]


# ----------------------------------------------------------------------- what is recorded

STARTS = {
    "subprocess.run": "subprocess.run(['/bin/true', 'mark'])",
    "subprocess.Popen": "subprocess.Popen('true mark', shell=True).wait()",
    "kept descriptors": "subprocess.call(['/bin/true', 'mark'], close_fds=False)",
    "os.posix_spawn": "os.waitpid(os.posix_spawn('/bin/true', ['true', 'mark'], os.environ), 0)",
    "os.posix_spawnp": "os.waitpid(os.posix_spawnp('true', ['true', 'mark'], os.environ), 0)",
    "os.system": "os.system('true mark')",
    "os.system by a shell": "os.system('true mark; exit 0')",
    "os.popen": "os.popen('true mark').close()",
    "os.spawnv": "os.spawnv(os.P_WAIT, '/bin/true', ['true', 'mark'])",
    "os.spawnlpe": "os.spawnlpe(os.P_WAIT, 'true', 'true', 'mark', {'PATH': '/bin'})",
    "os.wait": "os.posix_spawn('/bin/true', ['true', 'mark'], {}) and os.wait()",
    "os.wait3": "os.posix_spawn('/bin/true', ['true', 'mark'], {}) and os.wait3(0)",
    "os.wait4": "os.wait4(os.posix_spawn('/bin/true', ['true', 'mark'], {}), 0)",
    "preexec_fn": "subprocess.run(['/bin/true', 'mark'], preexec_fn=os.getpid)",
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_start_and_end_are_recorded(tmp_path: Path, start: str) -> None:
    """Each way has its intent, its start and, with resource usage, its end, and is no bypass."""
    out = taken(
        f"""
        warnings.simplefilter("ignore")
        {start}
        out["argv"] = [what["argv"] for what in told("spawn.intent", "what")]
        out["started"] = len(told("spawn.started"))
        out["exits"] = told("spawn.exit", "exit")
        out["bypasses"] = told("spawn.bypass", "bypass")
        out["verified"] = audit.verify(path).ok
        """,
        tmp_path / "ledger",
    )
    assert ["mark" in argv[-1] for argv in out["argv"]] == [True]
    assert out["started"] == 1
    (end,) = out["exits"]
    ours = "self" if "os.system" in start or "os.popen" in start else "os.wait"
    assert (end["code"], end["reaped_by"], "rusage" in end) == (0, ours, True)
    assert out["bypasses"] == []
    assert out["verified"] is True


def test_end_is_told_once_by_waitid(tmp_path: Path) -> None:
    """A look at the zombie (WNOWAIT) and its reaping make one record; what it used is in it where that was seen."""
    out = taken(
        """
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", "kill -9 $$"], {})
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.waitid(os.P_PID, pid, os.WEXITED)
        out["exits"] = told("spawn.exit", "exit")
        """,
        tmp_path / "ledger",
    )
    (end,) = out["exits"]
    assert end["signal"] == 9
    assert ("rusage" in end) == (end["reaped_by"] == "os.wait")


def test_end_behind_our_back_is_noticed(tmp_path: Path) -> None:
    """A child that C code reaped has its end recorded on the next start, as far as the kernel tells it."""
    out = taken(
        """
        libc = ctypes.CDLL(None)
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
        out["reaped"] = libc.waitpid(pid, None, 0) == pid
        subprocess.run(["/bin/true"])
        out["ends"] = [(record["ev"], record.get("exit", {}).get("code")) for record in records()
                       if record["ev"] in ("spawn.exit", "exit.unknown")]
        out["info"] = safespawn._probe.kernel_version() >= (6, 15)
        """,
        tmp_path / "ledger",
    )
    first = ["spawn.exit", 3] if out["info"] else ["exit.unknown", None]
    assert out["ends"] == [first, ["spawn.exit", 0]]


def test_stopped_child_has_not_ended(tmp_path: Path) -> None:
    """WUNTRACED tells of a stop: no end is recorded for it."""
    out = taken(
        """
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", "kill -STOP $$; exit 5"], {})
        out["stopped"] = os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        out["early"] = len(told("spawn.exit"))
        os.kill(pid, signal.SIGCONT)
        out["code"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out["exits"] = told("spawn.exit", "exit")
        """,
        tmp_path / "ledger",
    )
    assert (out["stopped"], out["early"], out["code"], len(out["exits"])) == (True, 0, 5, 1)


def test_child_that_is_running_is_not_waited_for(tmp_path: Path) -> None:
    """WNOHANG answers at once, and the end is recorded by the wait that sees it."""
    out = taken(
        """
        read, write = os.pipe()
        os.set_inheritable(read, True)
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"read line <&{read}"], {})
        out["running"] = os.waitpid(pid, os.WNOHANG)
        os.write(write, b"go\\n")
        out["ended"] = os.waitpid(pid, 0)[1]
        out["exits"] = len(told("spawn.exit"))
        """,
        tmp_path / "ledger",
    )
    assert out == {"running": [0, 0], "ended": 0, "exits": 1}


def test_no_descriptor_stays_with_an_ended_child() -> None:
    """The pidfd that watches a child goes with its end."""
    out = taken(
        """
        subprocess.run(["/bin/true"])
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(20):
            subprocess.run(["/bin/true"])
            os.spawnv(os.P_WAIT, "/bin/true", ["true"])
        out["left"] = sorted(set(os.listdir("/proc/self/fd")) ^ before)
        """
    )
    assert out["left"] == []


def test_forked_child_has_nothing_to_watch(tmp_path: Path) -> None:
    """After os.fork the child of our parent is not ours: its pidfd is closed, and no end is recorded twice."""
    out = taken(
        """
        read, write = os.pipe()
        os.set_inheritable(read, True)
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"read line <&{read}"], {})
        from safespawn import _watched
        if not (forked := os.fork()):
            os._exit(len(_watched._watched))
        out["watched"] = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
        os.write(write, b"\\n")
        os.waitpid(pid, 0)
        out["exits"] = len(told("spawn.exit"))
        """,
        tmp_path / "ledger",
    )
    assert out == {"watched": 0, "exits": 1}


def test_refusal_is_raised_from_the_standard_module(tmp_path: Path) -> None:
    """A guard that refuses stops a start that knows nothing of guards, and leaves nothing behind."""
    out = taken(
        """
        warnings.simplefilter("ignore")
        before = set(os.listdir("/proc/self/fd"))
        hook = lambda event, args: (_ for _ in ()).throw(PermissionError("no")) if event == "safespawn.spawn.intent" else None
        sys.addaudithook(hook)
        for start in (lambda: subprocess.run(["/bin/true"], stdout=subprocess.PIPE),
                      lambda: os.posix_spawn("/bin/true", ["true"], {}),
                      lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"])):
            try:
                start()
                out.setdefault("came", []).append(None)
            except PermissionError as problem:
                out.setdefault("came", []).append(str(problem))
        out["left"] = sorted(set(os.listdir("/proc/self/fd")) ^ before)
        """,
        tmp_path / "ledger",
    )
    assert out["came"] == ["no"] * 3
    assert out["left"] == []


# ------------------------------------------------------------------ posix_spawn and spawn*

#: Arguments of posix_spawn as text; each is tried with the original and with ours.
POSIX_CASES = {
    "nothing": "{}",
    "session": "{'setsid': True}",
    "group": "{'setpgroup': 0}",
    "mask": "{'setsigmask': [signal.SIGUSR1, signal.SIGUSR2]}",
    "empty-mask": "{'setsigmask': []}",
    "defaults": "{'setsigdef': [signal.SIGHUP, signal.SIGPIPE]}",
    "reset-ids": "{'resetids': True}",
    "scheduler": "{'scheduler': (os.SCHED_OTHER, os.sched_param(0))}",
    "open": "{'file_actions': [(os.POSIX_SPAWN_OPEN, 0, '/dev/null', os.O_RDONLY, 0)]}",
    "open-high": "{'file_actions': [(os.POSIX_SPAWN_OPEN, 20, '/dev/zero', os.O_RDONLY, 0)]}",
    "close": "{'file_actions': [(os.POSIX_SPAWN_CLOSE, 50)]}",
    "close-standard": "{'file_actions': [(os.POSIX_SPAWN_CLOSE, 0)]}",
    "copy": "{'file_actions': [(os.POSIX_SPAWN_DUP2, 50, 51), (os.POSIX_SPAWN_CLOSE, 50)]}",
    "swap": "{'file_actions': [(os.POSIX_SPAWN_DUP2, 50, 20), (os.POSIX_SPAWN_DUP2, HIDDEN, 50),"
    " (os.POSIX_SPAWN_DUP2, 20, 0)]}",
    "uncover": "{'file_actions': [(os.POSIX_SPAWN_DUP2, HIDDEN, HIDDEN)]}",
    "closed-then-copied": "{'file_actions': [(os.POSIX_SPAWN_CLOSE, 50), (os.POSIX_SPAWN_DUP2, 50, 51)]}",
    "copy-of-nothing": "{'file_actions': [(os.POSIX_SPAWN_DUP2, 333, 51)]}",
    "open-of-nothing": "{'file_actions': [(os.POSIX_SPAWN_OPEN, 0, '/nowhere', os.O_RDONLY, 0)]}",
    "close-from": "{'file_actions': [(os.POSIX_SPAWN_DUP2, 100, 1), (os.POSIX_SPAWN_CLOSEFROM, 3)],"
    " 'argv': [PYTHON, '-I', '-S', PROBE, '1']} if hasattr(os, 'POSIX_SPAWN_CLOSEFROM') else {}",
    "no-action": "{'file_actions': [(77, 1)]}",
    "short-action": "{'file_actions': [(os.POSIX_SPAWN_CLOSE,)]}",
    "no-such-argument": "{'nothing': 1}",
    "not-there": "{'path': '/nowhere/at/all'}",
    "not-executable": "{'path': b'/etc/passwd'}",
    "no-arguments": "{'argv': []}",
    "empty-name": "{'argv': ['', 'x']}",
    "nul": "{'argv': ['a', 'b\\0c']}",
}

POSIX_BATCH = """
import tempfile
from pathlib import Path
os.dup2(os.open("/dev/null", os.O_RDWR), 50)
HIDDEN = os.open("/dev/full", os.O_RDWR)
signal.signal(signal.SIGHUP, signal.SIG_IGN)

def attempt(more):
    read, write = os.pipe()
    os.dup2(write, 100)
    os.close(write)
    more = {"path": PYTHON, "argv": [PYTHON, "-I", "-S", PROBE, "100"], **more}
    try:
        pid = os.posix_spawn(more.pop("path"), more.pop("argv"), {"A": "1"}, **more)
    except BaseException as problem:
        return [type(problem).__name__, getattr(problem, "errno", None), repr(getattr(problem, "filename", None))]
    finally:
        os.close(100)
        text = b""
        while part := os.read(read, 65536):
            text += part
        os.close(read)
    state = json.loads(text)
    state["own"] = [state["pgid"] == pid, state["sid"] == pid]
    for key in ("pid", "ppid", "pgid", "sid", "limits"):
        del state[key]
    state["fds"] = {fd: where.partition(":")[0] for fd, where in state["fds"].items()}
    # libc's leaves 32 and 33 ignored in some of its ways, ours never.
    state["status"]["SigIgn"] = f"{int(state['status']['SigIgn'], 16) & ~(3 << 31):x}"
    return [os.waitpid(pid, 0)[1], state]

def attempts():
    global name
    found = {}
    for name, text in cases.items():
        found[name] = attempt(eval(text))
    return found

wanted = attempts()
with safespawn.installed():
    got = attempts()
for name in cases:
    out[name] = [] if wanted[name] == got[name] else [str(wanted[name])[:900], str(got[name])[:900]]
"""

#: What differs, and why that is right.
POSIX_EXCUSED = {
    "open-of-nothing": "the file that is missing is named, not the program",
    "copy-of-nothing": "the descriptor is named, not the program",
    "closed-then-copied": "as above",
}


@pytest.fixture(scope="module")
def posix_tried() -> dict[str, Any]:
    """All cases of posix_spawn, tried in one process."""
    return helpers.run_snippet(
        POSIX_BATCH, cases=POSIX_CASES, PYTHON=helpers.SYSTEM_PYTHON, PROBE=str(helpers.PROBES / "state.py")
    )


@pytest.mark.parametrize("case", POSIX_CASES)
def test_posix_spawn_gives_the_same_child_or_problem(posix_tried: dict[str, Any], case: str) -> None:
    """What os.posix_spawn does with its arguments and file actions, ours does too."""
    assert bool(posix_tried[case]) == (case in POSIX_EXCUSED), posix_tried[case]


@pytest.mark.parametrize("name", ["spawnv", "spawnve", "spawnvp", "spawnvpe", "spawnl", "spawnle", "spawnlp", "spawnlpe"])
def test_spawn_functions_answer_as_the_originals(name: str) -> None:
    """Exit codes, signals and programs that are missing come back from each of ``os.spawn*`` as before."""
    out = helpers.run_snippet(
        """
        def answers(name):
            start, found = getattr(os, name), []
            for script in ("exit 5", "kill -9 $$", None):
                file = "sh" if "p" in name[5:] else "/bin/sh"
                words = ["sh", "-c", script] if script else ["sh"]
                if script is None:
                    file = "nowhere-at-all"
                given = [words] if "v" in name[5:] else list(words)
                more = [{"PATH": "/bin"}] if name.endswith("e") else []
                found.append(start(os.P_WAIT, file, *given, *more))
                pid = start(os.P_NOWAIT, file, *given, *more)
                found.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            return found
        out["wanted"] = answers(name)
        with safespawn.installed():
            out["got"] = answers(name)
        """,
        name=name,
    )
    assert out["wanted"] == [5, 5, -9, -9, 127, 127]
    assert out["got"] == out["wanted"]
