"""Programs that are started past us: what is told of them, how often, and at what price."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import helpers
from safespawn.audit import _bypass

#: In front of every snippet: a hook cannot be removed, so each has a process of its own.
WATCH = """
import ctypes, itertools, pty, subprocess, threading
from safespawn import audit
from safespawn.audit import _bypass
told = []
def emit(make):
    told.append(make()["bypass"])
def reap(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def watched(snippet: str, **values: object) -> dict[str, Any]:
    """Run a snippet in a process that is watched, and return ``out`` with what was told in ``told``."""
    text = WATCH + "out['heard'] = _bypass.watch(emit)\n" + textwrap.dedent(snippet) + "\nout['told'] = told\n"
    return helpers.run_snippet(text, **values)


# --------------------------------------------------------------------------- what is told

KINDS: list[tuple[str, str, list[str] | None]] = [
    ("os.system('true --password=hunter2')", "os.system", ["sh", "-c", "true --password=…"]),
    ("os.system(b'true \\xff')", "os.system", ["sh", "-c", {"hex": b"true \xff".hex()}]),  # type: ignore[list-item]
    ("subprocess.run(['true', '--token', 'abc'])", "subprocess.Popen", ["true", "--token", "…"]),
    ("subprocess.run('true', shell=True)", "subprocess.Popen", ["/bin/sh", "-c", "true"]),
    ("subprocess.run('true')", "subprocess.Popen", ["true"]),
    ("subprocess.run(['/bin/true'], close_fds=False)", "subprocess.Popen", ["/bin/true"]),
    ("os.popen('true').close()", "subprocess.Popen", ["/bin/sh", "-c", "true"]),
    ("reap(os.posix_spawn('/bin/true', [b'true', 'x'], os.environ))", "os.posix_spawn", ["true", "x"]),
    ("os.spawnv(os.P_WAIT, '/bin/true', ['true'])", "os.fork", None),
    ("pty.spawn(['true'])", "pty.spawn", ["true"]),
    ("ctypes.CDLL(None).execve", "ctypes.dlsym execve", None),
    ("ctypes.CDLL(None)['vfork']", "ctypes.dlsym vfork", None),
]


@pytest.mark.parametrize(("call", "event", "argv"), KINDS, ids=lambda value: str(value)[:40])
def test_start_past_us_is_told(call: str, event: str, argv: list[str] | None) -> None:
    """Every way out of Python is told once, with its arguments redacted and the place that asked for it."""
    out = watched(f"def caller():\n    {call}\nhere = caller.__code__.co_firstlineno + 1\ncaller()\nout['here'] = here")

    assert out["heard"] is True
    (told,) = out["told"]
    assert (told["event"], told.get("argv"), told["count"]) == (event, argv, 1)
    assert told["site"] == f"<string>:{out['here']} caller"


FORKS = [
    ("os.fork", "pid = os.fork()"),
    ("os.forkpty", "pid, fd = os.forkpty()"),
    ("os.forkpty", "pid, fd = pty.fork()"),
]


@pytest.mark.parametrize(("event", "fork"), FORKS, ids=lambda value: value)
def test_fork_is_told_and_its_exec_is_not(event: str, fork: str) -> None:
    """A fork is told by the parent; the exec of its child is the second half of it, and is told by nobody."""
    out = watched(
        f"""
        read, write = os.pipe()
        {fork}
        if not pid:
            _bypass._Watch.emit = lambda make: os.write(write, b"told")
            os.execv("/bin/true", ["true"])
        out["code"] = reap(pid)
        os.close(write)
        out["child"] = os.read(read, 100).decode()
        """
    )
    assert [(told["event"], "argv" in told) for told in out["told"]] == [(event, False)]
    assert (out["child"], out["code"]) == ("", 0)


def test_exec_of_the_process_itself_is_told_before() -> None:
    """A process that replaces itself tells of it first: later there is nobody left."""
    text = """
    import os
    from safespawn.audit import _bypass
    _bypass.watch(lambda make: print(make()["bypass"]["event"], flush=True))
    os.execvp("echo", ["echo", "replaced"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["os.exec", "replaced"]


LIBRARY = [
    "subprocess.check_output(['true'])",
    "asyncio.run(call())",
    "fork()",
    "subprocess.getoutput('true')",
]


@pytest.mark.parametrize("call", LIBRARY)
def test_place_is_the_callers_not_the_librarys(call: str) -> None:
    """Behind asyncio, multiprocessing and subprocess the place is the code that uses them."""
    out = watched(
        f"""
        import asyncio, multiprocessing
        async def call():
            await (await asyncio.create_subprocess_exec("true")).wait()
        def fork():
            child = multiprocessing.get_context("fork").Process(target=print)
            child.start()
            child.join()
        {call}
        """
    )
    (told,) = out["told"]
    assert told["site"].startswith("<string>:")


def test_thread_of_the_library_has_a_place_too() -> None:
    """What a thread starts without any code of the program in it is told with the place in the library."""
    out = watched("thread = threading.Thread(target=os.system, args=('true',)); thread.start(); thread.join()")
    (told,) = out["told"]
    assert "threading.py:" in told["site"]


def test_own_starts_are_none() -> None:
    """What safespawn starts is not told, by whatever strategy, guarded posix_spawn of its own included."""
    out = watched(
        """
        from safespawn import guards
        for strategy in ("auto", "vfork", "fork", "launcher"):
            safespawn.run(["/bin/true"], strategy=strategy)
            safespawn.run(["/bin/true"], strategy=strategy, deadline=30)
        guards.arm(guard_foreign=True)
        reap(os.posix_spawn("/bin/true", ["true"], os.environ))
        """
    )
    assert [told["event"] for told in out["told"]] == ["os.posix_spawn"]
    assert out["told"][0]["site"].startswith("<string>:")


@pytest.mark.parametrize("name", ["getpid", "getenv", "strlen"])
def test_other_functions_of_libc_are_nobodys_business(name: str) -> None:
    """Only functions that start something are told when they are looked up."""
    assert watched(f"ctypes.CDLL(None)[{name!r}]")["told"] == []


def test_record_in_a_ledger(tmp_path: Path) -> None:
    """The record has the process and the fields of the contract, in ASCII, also for odd names of files."""
    path = tmp_path / "ledger"
    text = WATCH + """
with audit.open(ledger):
    _bypass.watch(lambda make: audit.emit("spawn.bypass", audit.new_id(), make))
    exec(compile("os.system('true')", "/odd/\\udcff\\n", "exec"))
out["pid"] = os.getpid()
"""
    out = helpers.run_snippet(text, ledger=str(path))
    (record,) = [r for r in helpers.records(path) if r["ev"] == "spawn.bypass"]

    assert record["who"]["pid"] == out["pid"]
    assert record["bypass"]["event"] == "os.system"
    assert bytes.fromhex(record["bypass"]["site"]["hex"]) == b"/odd/\xff\n:1 <module>"


# ------------------------------------------------------------------------------- how often


def test_place_is_told_again_at_powers_of_ten() -> None:
    """One place is told at its first, tenth and hundredth time; the counts have every time."""
    out = watched("for _ in range(123):\n    os.system(':')\nos.system(':')\nout['counts'] = _bypass.counts()")
    assert [told["count"] for told in out["told"]] == [1, 10, 100, 1]
    assert out["counts"] == {"os.system": 124}


def test_table_of_places_is_bounded() -> None:
    """Beyond 256 places the others count as one, for each event."""
    out = watched(
        """
        for line in range(1000):
            exec(compile("\\n" * line + "sys.audit('os.system', 'true')", "many", "exec"))
        out["sites"], out["counts"] = len(_bypass._Watch.sites), _bypass.counts()
        """
    )
    assert out["sites"] == _bypass.SITES_MAX + 1
    assert out["counts"] == {"os.system": 1000}
    assert [told["count"] for told in out["told"] if told["site"] == "other places"] == [1, 10, 100]


def test_long_name_of_a_place_is_cut() -> None:
    """Of a long file name the end is kept, with the line and the function."""
    (told,) = watched('exec(compile("os.system(\\":\\")", "x" * 5000, "exec"))')["told"]
    assert len(told["site"]) == _bypass.SITE_MAX
    assert told["site"].endswith("x:1 <module>")


def test_it_rests_and_wakes() -> None:
    """While it rests nothing is looked at or counted; a second watch goes on with one hook."""
    out = watched(
        """
        _bypass.rest()
        os.system(":")
        out["resting"] = (list(told), _bypass.counts())
        out["again"] = _bypass.watch(emit)
        os.system(":")
        """
    )
    assert out["resting"] == [[], {}]
    assert out["again"] is True
    assert [told["count"] for told in out["told"]] == [1]


# -------------------------------------------------------------------- at the worst moments


def test_failure_to_tell_does_not_stop_the_call() -> None:
    """When the record cannot be made or written, the program starts all the same, and is counted."""
    out = watched(
        """
        def fail(make):
            raise OSError("no room")
        _bypass.watch(fail)
        out["code"] = os.system("exit 3") >> 8
        sys.audit("os.posix_spawn")  # without its arguments
        out["counts"] = _bypass.counts()
        """
    )
    assert out["code"] == 3
    assert out["counts"] == {"os.system": 1, "os.posix_spawn": 1}


def test_words_that_are_none_do_not_stop_the_call() -> None:
    """Arguments that the call is about to refuse are shown as such, and it is the call that refuses them."""
    out = watched(
        """
        class Path:
            def __fspath__(self):
                raise ValueError("mine")
        for words in (["/bin/true", 7], ["/bin/true", Path()], ["/bin/true", "\\ud800"]):
            try:
                subprocess.run(words)
            except (TypeError, ValueError) as problem:
                out.setdefault("raised", []).append(type(problem).__name__)
        """
    )
    assert out["raised"] == ["TypeError", "ValueError", "UnicodeEncodeError"]
    assert out["told"][0]["argv"] == ["/bin/true", "?"]


def test_what_telling_starts_is_told_after_it() -> None:
    """Code that starts programs while it keeps the record neither recurses nor goes untold."""
    out = watched(
        """
        depth, deepest = 0, 0
        def emit_and_start(make):
            global depth, deepest
            depth, deepest = depth + 1, max(deepest, depth + 1)
            emit(make)
            subprocess.run(["true"])
            depth -= 1
        _bypass.watch(emit_and_start)
        os.system(":")
        out["deepest"] = deepest
        """
    )
    assert [(told["event"], told["count"]) for told in out["told"]] == [("os.system", 1), ("subprocess.Popen", 1)]
    assert out["deepest"] == 1


def test_signal_handler_that_starts_something_meanwhile() -> None:
    """A handler that runs in the middle of a record starts a program, and both are told."""
    out = watched(
        """
        signal.signal(signal.SIGUSR1, lambda *_: os.system("exit 1"))
        def emit_slowly(make):
            if not told:
                os.kill(os.getpid(), signal.SIGUSR1)
                for _ in range(1000):
                    pass  # the handler runs here at the latest
            emit(make)
        _bypass.watch(emit_slowly)
        os.system("exit 2")
        """
    )
    assert sorted(told["argv"][2] for told in out["told"]) == ["exit 1", "exit 2"]


def test_threads_lose_no_count() -> None:
    """Threads at one place are counted together, and each power of ten is told once."""
    out = watched(
        """
        sys.setswitchinterval(1e-6)
        def work():
            for _ in range(500):
                sys.audit("os.system", "true")
        threads = [threading.Thread(target=work) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        out["counts"] = _bypass.counts()
        """
    )
    assert out["counts"] == {"os.system": 4000}
    assert sorted(told["count"] for told in out["told"]) == [1, 10, 100, 1000]


def test_forked_child_tells_for_itself() -> None:
    """A child of os.fork begins to count anew, and what it starts is told there."""
    out = watched(
        """
        os.system(":")
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            _bypass._Watch.emit = lambda make: os.write(write, json.dumps(make()["bypass"]).encode() + b"\\n")
            os.system(":")
            os._exit(0)
        reap(pid)
        os.close(write)
        out["child"] = [json.loads(line) for line in os.read(read, 10000).splitlines()]
        out["counts"] = _bypass.counts()
        """
    )
    assert [(told["event"], told["count"]) for told in out["child"]] == [("os.system", 1)]
    assert out["counts"] == {"os.system": 1, "os.fork": 1}


@pytest.mark.parametrize("how", ["preexec", "raw"])
def test_child_on_its_way_is_left_alone(how: str) -> None:
    """In a preexec_fn and in a child of a raw fork nothing is written: locks may be held there for ever."""
    out = watched(
        """
        read, write = os.pipe()
        def start():
            _bypass._Watch.emit = lambda make: os.write(write, b"told")
            os.system(":")
        if how == "preexec":
            subprocess.run(["true"], preexec_fn=start)
        else:
            fork = ctypes.PyDLL(None).fork
            pid = fork()
            if not pid:
                start()
                os._exit(0)
            reap(pid)
        os.close(write)
        out["child"] = os.read(read, 100).decode()
        """,
        how=how,
    )
    assert out["child"] == ""
    assert [told["event"] for told in out["told"]] == [
        "subprocess.Popen" if how == "preexec" else "ctypes.dlsym fork"
    ]


def test_end_of_the_interpreter() -> None:
    """What destructors and daemon threads start while the interpreter ends starts, without a complaint."""
    text = """
    import os, sys, threading
    from safespawn.audit import _bypass
    class Last:
        def __del__(self, system=os.system):
            system("echo started")
    sys.last_one = Last()
    threading.Thread(target=lambda: [os.system(":") for _ in iter(int, 1)], daemon=True).start()
    _bypass.watch(lambda make: make())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "started\n"


@pytest.mark.parametrize("raised", ["RuntimeError", "PermissionError"])
def test_hook_that_refuses_ours(raised: str) -> None:
    """Where another hook allows no more hooks, that is told, and nothing else happens."""
    out = helpers.run_snippet(
        WATCH
        + f"""
def refuse(event, args):
    if event == "sys.addaudithook":
        raise {raised}("no more")
sys.addaudithook(refuse)
out["heard"] = [_bypass.watch(emit), _bypass.watch(emit)]
os.system(":")
out["told"] = told
"""
    )
    assert out == {"heard": [False, False], "told": []}


def test_other_interpreter_is_not_seen() -> None:
    """Hooks belong to one interpreter: what another one of the process starts is not told, and does no harm."""
    out = watched(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        other = interpreters.create()
        interpreters.run_string(other, "import os; os.system('exit 0')")
        interpreters.destroy(other)
        """
    )
    assert out["told"] == []


# ------------------------------------------------------------------------------- the price


def test_other_events_cost_one_comparison() -> None:
    """Of an event that is not ours the hook runs one line, and calls nothing: every import and open raises some."""
    out = watched("""
seen = []
def trace(frame, event, arg):
    seen.append(event)
    return trace
sys.settrace(trace)
_bypass._hook("some.event", (1, 2))
sys.settrace(None)
out["seen"] = seen
""")
    assert out["seen"] == ["call", "line", "return"]
