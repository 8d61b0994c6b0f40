"""Others that replace what `install()` replaces, before it and after it: programs start and end, all is undone."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

import helpers


class Other(NamedTuple):
    """Who else is at it: how it begins, how it is undone, and what is recorded of three programs."""

    begin: str
    undo: str
    starts: tuple[str, ...]


#: Wraps what ddtrace wraps, by wrapt as it does, and gives each child a variable more.
TRACER = """
import wrapt
calls = []
def tracer(wrapped, instance, args, kwargs):
    calls.append(wrapped.__name__)
    return wrapped(*args, **kwargs)
def with_env(wrapped, instance, args, kwargs):
    env = dict(os.environ if kwargs.get("env") is None else kwargs["env"])
    return tracer(wrapped, instance, args, {**kwargs, "env": {**env, "TRACED": "yes"}})
for module, name, wrapper in (
    ("subprocess", "Popen.__init__", with_env), ("subprocess", "Popen.wait", tracer),
    ("os", "system", tracer), ("os", "fork", tracer), ("os", "_spawnvef", tracer),
):
    wrapt.wrap_function_wrapper(module, name, wrapper)
"""
UNWRAP = """
for where, name in ((subprocess.Popen, "__init__"), (subprocess.Popen, "wait"), (os, "system"), (os, "fork"), (os, "_spawnvef")):
    setattr(where, name, getattr(where, name).__wrapped__)
"""

OTHERS = {
    # Its Popen forks by itself, and its loop reaps: no guard of ours can be there.
    "gevent": Other("import gevent.monkey; gevent.monkey.patch_all()", "", ("bypass os.fork", "started true", "started true")),
    "eventlet": Other("import eventlet; eventlet.monkey_patch()", "", ("started sh", "started true", "started true")),
    "pytest-subprocess": Other(
        """
        from pytest_subprocess import FakeProcess
        fake = FakeProcess()
        fake.allow_unregistered(True)
        fake.register(["fake"], returncode=7)
        fake.__enter__()
        out["fake"] = subprocess.run(["fake"]).returncode
        """,
        "fake.__exit__()",
        ("started sh", "started true", "started true"),
    ),
    "a tracer": Other(TRACER, UNWRAP, ("started sh", "started true", "started true")),
}

_STORY = """
import _posixsubprocess, posix, subprocess, tempfile, warnings
from safespawn import _watched, audit

warnings.simplefilter("ignore")  # of eventlet
NAMES = ("fork", "popen", "posix_spawn", "system", "waitpid", "_spawnvef")

def innermost(function):
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function

def seen():
    places = {name: innermost(getattr(os, name)) for name in NAMES}
    places |= {"fork_exec": _posixsubprocess.fork_exec, "bound": getattr(subprocess, "_fork_exec", None),
               "posix": posix.posix_spawn, "flag": subprocess._USE_POSIX_SPAWN, "popen": subprocess.Popen}
    return {name: id(one) for name, one in places.items()}  # a dictionary of functions would be rebound as well

def begin():
    exec(beginning, globals())

path = os.path.join(tempfile.mkdtemp(), "ledger")
ledger = audit.open(path)
at_first = seen()
if order == "before":
    begin()
    between = seen()
    safespawn.install()
else:
    safespawn.install()
    begin()
done = subprocess.run(["sh", "-c", "echo $TRACED; exit 3"], stdout=subprocess.PIPE, text=True)
out["popen"] = [done.returncode, done.stdout]
out["spawn"] = os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)[1]
out["spawnv"] = os.spawnv(os.P_WAIT, "/bin/true", ["true"])
_watched.look()  # as the next start would: gevent's loop has reaped it
out["system"] = os.waitstatus_to_exitcode(os.system("exit 4"))
if order == "before":
    safespawn.uninstall()
    out["restored"] = [name for name, one in seen().items() if one != between[name]]
    exec(undoing, globals())
else:
    exec(undoing, globals())
    safespawn.uninstall()
    out["restored"] = [] if not undoing else [name for name, one in seen().items() if one != at_first[name]]
out["after"] = subprocess.run(["sh", "-c", "exit 5"]).returncode
ledger.close()
records = [json.loads(line) for line in open(path)]
argv = {one["sid"]: one["what"]["argv"][0] for one in records if one["ev"] == "spawn.intent"}
out["told"] = [
    f"started {argv[one['sid']]}" if one["ev"] == "spawn.started" else f"bypass {one['bypass']['event']}"
    for one in records if one["ev"] in ("spawn.started", "spawn.bypass")
]
out["ended"] = sum(one["ev"] == "spawn.exit" for one in records)
if "calls" in globals():
    out["calls"] = sorted(set(calls))
"""


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", OTHERS)
def test_programs_start_and_end_beside_others(name: str, order: str) -> None:
    """Each has its effect, programs end as they should and are recorded, and ``uninstall()`` restores."""
    other = OTHERS[name]
    out: dict[str, Any] = helpers.run_snippet(
        _STORY, order=order, beginning=_dedented(other.begin), undoing=_dedented(other.undo)
    )
    traced = name == "a tracer"
    assert (out["popen"], out["spawn"], out["spawnv"], out["system"]) == ([3, "yes\n" if traced else "\n"], 0, 0, 4)
    assert tuple(out["told"][:3]) == other.starts
    assert out["ended"] == sum(one.startswith("started") for one in out["told"])
    assert (out["restored"], out["after"]) == ([], 5)
    assert out.get("fake", 7) == 7
    assert not traced or {"__init__", "wait", "system", "_spawnvef"} <= set(out["calls"])


def _dedented(text: str) -> str:
    return "\n".join(line.removeprefix(" " * 8) for line in text.splitlines())
