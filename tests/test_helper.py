"""The helper: who is asked, what it may do, what becomes of it, and that nothing is left behind."""

from __future__ import annotations

import errno
import re
import signal

import pytest

import helpers
import safespawn
from helper_snippets import HELD, NO_PROOF, SOCKET_OF
from safespawn import audit

def in_process(snippet: str, **values: object) -> dict[str, object]:
    """Run a snippet where no proof holds."""
    return helpers.run_snippet(NO_PROOF + snippet, armed=False, **values)


# ------------------------------------------------------------------- who is asked


def test_auto_asks_a_helper_where_no_proof_holds():
    """The pool first if there is one, the helper else, the last one entered first; without any it is a fork."""
    out = in_process(
        """
out["none"] = runs()
with safespawn.Helper() as helper:
    out["helper"] = runs()
    with safespawn.Helper(pool=1) as pool:
        out["pool"] = runs()
        out["named"] = runs(helper=helper)
        out["none of them"] = runs(helper=False)
        out["refused"] = [runs(strategy="pool", helper=helper), runs(strategy="helper", helper=False)]
        out["by name"] = [runs(strategy="helper"), runs(strategy="pool")]
    out["again"] = runs()
    out["asked"] = helper.status()["asked"]
out["after"] = runs()
out["closed"] = runs(helper=helper)
out["children"] = settled()
"""
    )
    ran = {name: [name, 0, ""] for name in ("helper", "pool", "fork")}
    assert [out["none"], out["after"], out["none of them"], out["closed"]] == [ran["fork"]] * 4
    assert [out["helper"], out["named"], out["again"]] == [ran["helper"]] * 3
    assert out["pool"] == ran["pool"] and out["by name"] == [ran["helper"], ran["pool"]]
    assert out["refused"] == [["UnsafeSpawn", "alone-or-apart", None, 1]] * 2
    assert out["asked"] == 3 and out["children"]


def test_where_a_proof_holds_no_helper_is_asked():
    """A process with one thread shares its memory, and a drop goes by the launcher."""
    out = helpers.run_snippet(
        """
with safespawn.Helper(pool=1) as helper:
    out["plain"] = safespawn.run(["/bin/true"]).report.strategy
    out["drop"] = safespawn.run(["/bin/true"], user=65534, group=65534, extra_groups=[]).report.strategy
    out["asked"] = helper.status()["asked"]
"""
    )
    assert out == {"plain": "vfork", "drop": "launcher", "asked": 0}


def test_refusal_without_a_proof_takes_a_helper():
    """on_unproven="refuse" is about shared memory and forks that cost: a helper does, and without one it refuses."""
    out = in_process(
        """
with safespawn.Helper(allow=["/bin/true"]):
    out["allowed"] = runs(on_unproven="refuse")
    out["not allowed"] = runs(["/bin/echo", "x"], on_unproven="refuse")
out["none"] = runs(on_unproven="refuse")
"""
    )
    assert out["allowed"] == ["helper", 0, ""]
    assert out["not allowed"][:2] == ["UnsafeSpawn", "helper-obeys"]
    assert out["none"][:2] == ["UnsafeSpawn", "alone-or-apart"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [(1, "1"), (True, "True"), ("any", "'any'"), (safespawn.Helper, "Helper")],
    ids=["number", "true", "text", "class"],
)
def test_helper_option_that_is_none(value, problem):
    """The option shows what it was given."""
    with pytest.raises(TypeError, match=re.escape(problem)):
        safespawn.run(["/bin/true"], helper=value)


@pytest.mark.parametrize("pool", [0, 1])
def test_what_no_helper_can_do_is_forked(pool):
    """A PID namespace, too many descriptors: auto forks, a name refuses."""
    out = in_process(
        """
many = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
with safespawn.Helper(pool=pool):
    for name, options in {"pid": {"namespaces": ["pid"]}, "many": {"pass_fds": many}}.items():
        out[name] = [runs(**options)[:2], runs(strategy="helper", **options)[:2]]
    for count in (239, 240):
        out[str(count)] = runs(strategy="helper", pass_fds=many[:count])[:2]
""",
        pool=pool,
    )
    for name in ("pid", "many"):
        assert out[name][0] in (["fork", 0], ["launcher", 0]), name
        assert out[name][1] == ["UnsafeSpawn", "alone-or-apart"], name
    assert out["239"] == ["helper", 0]
    assert out["240"] == ["UnsafeSpawn", "alone-or-apart"]


# ------------------------------------------------------------------- the policy


@pytest.mark.parametrize(
    ("allow", "kind", "told"),
    [
        (3, TypeError, "not 3"),
        (None, TypeError, "not None"),
        ("none", TypeError, "not 'none'"),
        (b"any", TypeError, "not b'any'"),
        ({"foo": 1}, ValueError, "'foo'"),
        ({1: 2}, ValueError, "has 1"),
        ({"programs": "/bin/true"}, TypeError, "'/bin/true'"),
        ({"programs": None}, TypeError, "None"),
        ({"programs": ["true"]}, ValueError, "'true'"),
        ({"programs": [""]}, ValueError, "''"),
        ({"programs": ["/a/../b"]}, ValueError, "'/a/../b'"),
        ({"programs": ["/a//b"]}, ValueError, "'/a//b'"),
        ({"programs": ["//bin/true"]}, ValueError, "'//bin/true'"),
        ({"programs": ["/a/."]}, ValueError, "'/a/.'"),
        ({"programs": ["/a\0b"]}, ValueError, "/a"),
        ({"programs": [f"/{i}" for i in range(4097)]}, ValueError, "4097"),
        ({"programs": [f"/{i:01000}" for i in range(1100)]}, ValueError, "1048448"),
        ({"users": [-1]}, ValueError, "-1"),
        ({"users": [True]}, TypeError, "True"),
        ({"users": ["no-such-user"]}, KeyError, "no-such-user"),
        ({"users": [99999]}, ValueError, "99999"),
        ({"variables": [""]}, ValueError, "''"),
        ({"variables": ["A=B"]}, ValueError, "'A=B'"),
        ({"variables": ["A*B"]}, ValueError, "'A*B'"),
        ({"options": ["x"]}, ValueError, "'x'"),
        ({"options": [1]}, ValueError, "1"),
    ],
)
def test_what_cannot_be_allowed(allow, kind, told):
    """Each is refused before anything is started, and shown."""
    with pytest.raises(kind, match=re.escape(told)):
        safespawn.Helper(allow=allow)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"pool": 65}, ValueError, "65"),
        ({"pool": -1}, ValueError, "-1"),
        ({"pool": True}, TypeError, "True"),
        ({"pool": "1"}, TypeError, "'1'"),
        ({"restart": 1}, TypeError, "1"),
        ({"keep_after_drop": None}, TypeError, "None"),
        ({"keep_after_drop": True}, ValueError, "'programs'"),
        ({"keep_after_drop": True, "allow": ["/bin/true"]}, ValueError, "'users'"),
        ({"keep_after_drop": True, "allow": {"users": [0]}}, ValueError, "'programs'"),
    ],
)
def test_options_that_cannot_be_meant(options, kind, told):
    """Each is refused before anything is started, and shown."""
    with pytest.raises(kind, match=re.escape(told)):
        safespawn.Helper(**options)


#: What is asked, what is allowed for it, and what is allowed that does not do.
PARTS = {
    "program": ({}, {"programs": ["/bin/true"]}, {"programs": ["/bin/tru", "/bin/true2", "/bin/true/", "/"]}),
    "directory": ({}, {"programs": ["/bin/"]}, {"programs": ["/sbin/", "/bi/"]}),
    "own user": ({}, {"users": [0]}, {"users": [65534]}),
    "user": ({"user": "nobody"}, {"users": ["nobody"]}, {"users": [0]}),
    "part of a user": ({"user": 65534, "group": 0, "extra_groups": []}, {}, {"users": [0, 65534]}),
    "groups": ({"user": 65534, "group": 65534, "extra_groups": [0]}, {}, {"users": [0, 65534]}),
    "variable": ({"env": {"AB": "1"}}, {"variables": ["AB"]}, {"variables": ["A", "ABC", "AC*"]}),
    "begins": ({"env": {"AB": "1", "AC": "2"}}, {"variables": ["A*"]}, {"variables": ["AB*"]}),
    "cwd": ({"cwd": "/"}, {"options": ["cwd"]}, {"options": []}),
    "fds": ({"fds": {7: 0}}, {"options": ["fds"]}, {"options": []}),
    "session": ({"start_new_session": True}, {"options": ["start_new_session"]}, {"options": []}),
    "group": ({"process_group": 0}, {"options": ["process_group"]}, {"options": []}),
    "umask": ({"umask": 0o22}, {"options": ["umask"]}, {"options": []}),
    "nice": ({"nice": 3}, {"options": ["nice"]}, {"options": []}),
    "affinity": ({"cpu_affinity": [0]}, {"options": ["cpu_affinity"]}, {"options": []}),
    "rlimits": ({"rlimits": {"7": [64, 64]}}, {"options": ["rlimits"]}, {"options": []}),
    "root": ({"root": "/"}, {"options": ["root"]}, {"options": []}),
    "caps": ({"caps": ()}, {"options": ["caps"]}, {"options": []}),
    "namespaces": ({"namespaces": ["uts"]}, {"options": ["namespaces"]}, {"options": []}),
    "subreaper": ({"subreaper": True}, {"options": ["subreaper"]}, {"options": []}),
    "pdeathsig": ({"pdeathsig": 9}, {"options": ["pdeathsig"]}, {"options": []}),
    "lessening": ({"no_new_privs": True, "sigmask": [10]}, {"options": []}, None),
}


@pytest.mark.parametrize("pool", [0, 1])
def test_each_part_of_a_policy(pool):
    """What is allowed runs; what is not is refused by name, and forked by auto with the reason in the report."""
    out = in_process(
        """
for name, (options, *allows) in parts.items():
    options = {key: {int(k) if k.isdigit() else k: v for k, v in value.items()} if isinstance(value, dict) else value
               for key, value in options.items()}
    out[name] = []
    for allow in allows:
        if allow is None:
            continue
        with safespawn.Helper(allow=allow, pool=pool):
            out[name].append(runs(strategy=by, **options)[:2])
    if allows[-1] is not None:
        with safespawn.Helper(allow=allows[-1], pool=pool):
            done = safespawn.run(["/bin/true"], **options)
            out[name].append([done.report.strategy, done.returncode, "policy does not allow" in done.report.reasons[-1]])
""",
        parts=PARTS,
        pool=pool,
        by="pool" if pool else "helper",
    )
    ran = ["pool" if pool else "helper", 0]
    for name, (_, _, not_allowed) in PARTS.items():
        refusals = [] if not_allowed is None else [["UnsafeSpawn", "helper-obeys"], ["fork", 0, True]]
        assert out[name] == [ran, *refusals], name


def test_shrinking():
    """Every policy must allow; parked children go; seven times; and one that cannot be told is lost, not more."""
    out = in_process(
        """
with safespawn.Helper(pool=2) as helper:
    before = runs(["/bin/echo", "x"], strategy="pool")
    filled(helper)
    old = set(mine())
    helper.shrink(["/bin/true", "/bin/cat"])
    runs(strategy="pool")
    until(lambda: len(set(mine()) - old) == 2)
    out["left"] = until(lambda: (left := [pid for pid in old if mine().get(pid, "Z") != "Z"]) == [helper.pid] and left)
    out["after"] = [before[0], runs(strategy="pool")[0], runs(["/bin/echo"], strategy="pool")[1]]
    helper.shrink(["/bin/true", "/bin/echo"])
    out["both"] = [runs(strategy="pool")[0], runs(["/bin/cat"], strategy="pool")[1], runs(["/bin/echo"], strategy="pool")[1]]
    for _ in range(5):
        helper.shrink("any")
    try:
        helper.shrink("any")
    except RuntimeError as problem:
        out["too often"] = str(problem)
    out["still"] = runs(strategy="pool")[0]
for one in (helper, safespawn.Helper()):
    try:
        one.shrink("any")
    except RuntimeError as problem:
        out[str(one is helper)] = str(problem)
"""
    )
    assert len(out["left"]) == 1
    assert out["after"] == ["pool", "pool", "helper-obeys"]
    assert out["both"] == ["pool", "helper-obeys", "helper-obeys"]
    assert "8 policies" in out["too often"] and out["still"] == "pool"
    assert "closed" in out["True"] and "not started" in out["False"]


@pytest.mark.parametrize("how", ["lost", "no memfd"])
def test_shrink_that_fails_leaves_no_helper_with_more(how):
    """The one that was to be shrunk is gone, and the one in its place obeys what could not be told to it."""
    out = in_process(
        """
from safespawn import helper as module
module.RESTART_PAUSE = 0
with safespawn.Helper(allow=["/bin/true", "/bin/echo"]) as helper:
    out["before"] = runs(["/bin/echo"])[0]
    if how == "lost":
        os.kill(helper.pid, signal.SIGKILL)
        until(lambda: mine()[helper.pid] == "Z")
    else:
        made, os.memfd_create = os.memfd_create, None
    try:
        helper.shrink(["/bin/true"])
    except (OSError, TypeError) as problem:
        out["raised"] = type(problem).__name__
    if how != "lost":
        os.memfd_create = made
    out["after"] = [runs(["/bin/echo"])[0], runs()[0], runs(["/bin/echo"], strategy="helper")[:2]]
""",
        how=how,
    )
    assert out["before"] == "helper"
    assert out["raised"] == ("BrokenPipeError" if how == "lost" else "TypeError")
    assert out["after"] == ["fork", "helper", ["UnsafeSpawn", "helper-obeys"]]


def test_shrinking_while_another_is_started():
    """Another thread has found it lost, and is starting one in its place: that one obeys, and nothing is raised."""
    out = in_process(
        """
from safespawn import helper as module
module.RESTART_PAUSE = 0
helper = safespawn.Helper(allow=["/bin/true", "/bin/echo"]).start()
os.kill(helper.pid, signal.SIGKILL)
until(lambda: mine()[helper.pid] == "Z")
real = module.Helper._start
def meanwhile(self):
    thread = threading.Thread(target=lambda: out.update(shrunk=self.shrink(["/bin/true"])))
    thread.start()
    thread.join()
    real(self)
module.Helper._start = meanwhile
out["came"] = [runs(strategy="helper")[0], runs(["/bin/echo"], strategy="helper")[:2]]
helper.close()
"""
    )
    assert out == {"shrunk": None, "came": ["helper", ["UnsafeSpawn", "helper-obeys"]]}


def test_shrinking_in_a_handler_while_it_is_told_of_others():
    """The new one is just being told what the lost one obeyed: what a signal handler adds then, it obeys too."""
    out = in_process(
        """
from safespawn import helper as module
module.RESTART_PAUSE = 0
helper = safespawn.Helper(allow=["/bin/true", "/bin/echo", "/bin/false"]).start()
helper.shrink(["/bin/true", "/bin/echo"])
os.kill(helper.pid, signal.SIGKILL)
until(lambda: mine()[helper.pid] == "Z")
real = module.Helper._shrink
def interrupted(self, end, allowed):
    real(self, end, allowed)
    module.Helper._shrink = real
    signal.raise_signal(signal.SIGUSR1)
module.Helper._shrink = interrupted
signal.signal(signal.SIGUSR1, lambda *_: out.update(shrunk=helper.shrink(["/bin/true"])))
out["came"] = [runs(strategy="helper")[0], runs(["/bin/echo"], strategy="helper")[:2]]
helper.close()
"""
    )
    assert out == {"shrunk": None, "came": ["helper", ["UnsafeSpawn", "helper-obeys"]]}


def test_kept_helper_serves_who_has_dropped():
    """It starts who is listed, as us or as itself, nothing of the environment but what is harmless, no option."""
    out = helpers.run_snippet(
        NO_PROOF
        + """
show = ["/usr/bin/id", "-ru"]
allow = {"programs": ["/usr/bin/id", "/usr/bin/env"], "users": [0, "nobody"]}
helper = safespawn.Helper(allow=allow, keep_after_drop=True).start()
plain = {"strategy": "helper", "env": {}}
os.initgroups("nobody", 65534); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
out["as we are"] = runs(show, **plain)
out["as it is"] = runs(show, user=0, **plain)
out["variable"] = [runs(["/usr/bin/env"], strategy="helper", env={name: "x"})[:2] for name in ("LANG", "LD_PRELOAD", "PATH")]
out["program"] = runs(user=0, **plain)[:2]
out["option"] = runs(show, user=0, cwd="/tmp", **plain)[:2]
out["group"] = runs(show, user=0, group=65534, **plain)[:2]
helper.close()
out["children"] = settled()
"""
    )
    refused = ["UnsafeSpawn", "helper-obeys"]
    assert out["as we are"] == ["helper", 0, "65534\n"]
    assert out["as it is"] == ["helper", 0, "0\n"]
    assert out["variable"] == [["helper", 0], refused, refused]
    assert [out["program"], out["option"], out["group"]] == [refused] * 3 and out["children"]


# ------------------------------------------------------------------- its children


@pytest.mark.parametrize("by", ["helper", "pool"])
def test_children_are_ours(by):
    """Parent, wait, pidfd, codes, signals and pipes are as with any other."""
    out = in_process(
        """
with safespawn.Helper(pool=2 if by == "pool" else 0):
    done = safespawn.run(["/bin/sh", "-c", "echo $PPID; exit 7"], strategy=by, capture_output=True)
    out["parent"] = [int(done.stdout) == os.getpid(), done.returncode, done.report.strategy]
    process = safespawn.spawn(["/bin/cat"], strategy=by, stdin=safespawn.PIPE, stdout=safespawn.PIPE)
    out["pipes"] = process.communicate(b"through")[0].decode()
    process = safespawn.spawn(["/bin/sleep", "1000"], strategy=by)
    out["number"] = int(open(f"/proc/self/fdinfo/{process.pidfd}").read().partition("Pid:")[2].split()[0]) == process.pid
    process.send_signal(signal.SIGTERM)
    out["killed"] = process.wait()
    process = safespawn.spawn(["/bin/sh", "-c", "exit 3"], strategy=by)
    out["waited"] = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
    running = [safespawn.spawn(["/bin/sh", "-c", f"exit {i}"], strategy=by) for i in range(200)]
    out["codes"] = [one.wait() for one in running] == list(range(200))
    try:
        safespawn.run(["/etc/passwd"], strategy=by)
    except PermissionError as problem:
        out["not executable"] = problem.stage
out["children"] = settled()
""",
        by=by,
    )
    assert out["parent"] == [True, 7, by]
    assert out["pipes"] == "through" and out["number"] and out["killed"] == -15
    assert out["waited"] == 3 and out["codes"] and out["children"]


@pytest.mark.slow
@pytest.mark.parametrize("pool", [0, 3])
def test_thousand_spawns_leave_nothing(pool):
    """No descriptor, child, mapping or memory is left; from many threads, by one helper."""
    out = in_process(
        """
def mappings():
    return len(open("/proc/self/maps").readlines())

def state():
    return [len(os.listdir("/proc/self/fd")), len(mine())]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def several(count):
    for _ in range(count):
        got.append(safespawn.run(["/bin/true"], strategy=by).returncode)

def round_of(threads, count):
    workers = [threading.Thread(target=several, args=(count,)) for _ in range(threads)]
    [one.start() for one in workers], [one.join() for one in workers]

got = []
with safespawn.Helper(pool=pool) as helper:
    round_of(8, 25)
    several(1)
    filled(helper)
    several(1)
    filled(helper)  # again: a spawn has taken one, and may have ended before there is another
    before, maps, memory = state(), mappings(), resident()
    round_of(8, 100)
    several(200)
    until(lambda: state()[1] == before[1])
    several(1)
    filled(helper)
    out["same"] = [before, state()]
    out["grown"] = [mappings() - maps, resident() - memory]
    out["asked"] = helper.status()["asked"]
    its = helper.pid
    out["its descriptors"] = len(os.listdir(f"/proc/{its}/fd"))
out["ran"] = [len(got), set(got) == {0}]
out["children"] = settled()
out["at the end"] = len(os.listdir("/proc/self/fd"))
""",
        pool=pool,
        by="pool" if pool else "helper",
    )
    assert out["ran"] == [1203, True] and out["asked"] == 1203
    assert out["same"][0][1] == out["same"][1][1]
    assert abs(out["same"][0][0] - out["same"][1][0]) <= pool, "pidfds of parked children come and go"
    assert out["grown"][0] <= 4 and out["grown"][1] < 4 << 20
    assert out["its descriptors"] <= 5 + 2 * pool + 1
    assert out["children"]


def test_several_helpers_and_no_more_than_eight():
    """Each serves who names it; a ninth that would have to be told of drops is refused, and leaves nothing."""
    out = in_process(
        """
several = [safespawn.Helper(pool=i % 2).start() for i in range(8)]
fds, before = len(os.listdir("/proc/self/fd")), len(mine())
try:
    safespawn.Helper().start()
except OSError as problem:
    out["ninth"] = problem.strerror
out["left"] = [len(os.listdir("/proc/self/fd")) - fds]
out["served"] = [runs(helper=one)[0] for one in several]
several[0].close()
with safespawn.Helper() as last:
    out["room again"] = runs(helper=last)[0]
[one.close() for one in several]
child = os.fork()
if not child:
    os._exit(len([safespawn.Helper().start() for _ in range(8)]))
out["in a fork"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
with safespawn.Helper(), safespawn.Helper():
    child = os.fork()
    if not child:
        os._exit(len([safespawn.Helper().start() for _ in range(8)]))
    out["in a fork of who has some"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
out["children"] = settled()
"""
    )
    assert "Too many" in out["ninth"] and out["left"] == [0]
    assert out["served"] == ["helper", "pool"] * 4 and out["room again"] == "helper"
    assert out["in a fork"] == out["in a fork of who has some"] == 8 and out["children"]


@pytest.mark.parametrize("pool", [0, 2])
def test_child_that_the_kernel_reaps_runs_once(tmp_path, pool):
    """With SIGCHLD ignored it can be gone before we hear of its birth: it has run all the same, and not again."""
    out = in_process(
        """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
log = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
with safespawn.Helper(pool=pool) as helper:
    out["plain"] = [runs()[0] for _ in range(20)]
    if pool:
        filled(helper)
    ready, begun = os.pipe()
    us = os.getpid()
    child = os.fork()
    if not child:
        # Nobody but us runs while the helper's child does: it has ended before we hear of its birth.
        os.kill(helper.pid, signal.SIGSTOP)
        os.write(begun, b".")
        spawning = lambda: "ppoll" in open(f"/proc/{us}/wchan").read() or "poll" in open(f"/proc/{us}/wchan").read()
        until(spawning)
        os.kill(us, signal.SIGSTOP)
        os.kill(helper.pid, signal.SIGCONT)
        until(lambda: os.path.getsize(where))
        until(lambda: "echo" not in names_of(us))
        os.kill(us, signal.SIGCONT)
        os._exit(0)
    os.read(ready, 1)
    done = safespawn.run(["/bin/echo", "x"], stdout=log)
    out["it"] = [done.report.strategy, done.returncode]
until(lambda: not mine())
out["ran"] = open(where).read()
""",
        pool=pool,
        where=str(tmp_path / "log"),
    )
    assert out["plain"] == ["pool" if pool else "helper"] * 20
    assert out["it"] == ["pool" if pool else "helper", 0] and out["ran"] == "x\n"


# ------------------------------------------------------------------- losses

#: Ways to lose one, and what is said of it.
LOSSES = {
    "killed": ("os.kill(helper.pid, signal.SIGKILL)", "ended|reset|Broken pipe"),
    "stopped": ("os.kill(helper.pid, signal.SIGSTOP)", "timed out"),
    "socket closed": ("os.close(socket_of(helper))", "Bad file descriptor|ended"),
    "socket taken": ("os.dup2(os.open('/dev/null', os.O_RDONLY), socket_of(helper))", "Bad file descriptor|ended"),
}

@pytest.mark.parametrize("pool", [0, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_lost_helper(tmp_path, loss, pool):
    """The spawn that finds it lost runs its program once, by fork; one record tells; the next has another helper."""
    how, why = LOSSES[loss]
    out = in_process(
        SOCKET_OF
        + """
from safespawn import audit
from safespawn import helper as module
module.RESTART_PAUSE = 0
ledger = audit.open(where + "/l")
log = os.open(where + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
fds = len(os.listdir("/proc/self/fd"))
with safespawn.Helper(pool=pool) as helper:
    first = helper.pid
    if pool:
        filled(helper)
    eval(how)
    done = safespawn.run(["/bin/echo", "x"], stdout=log)
    out["it"] = [done.report.strategy, done.returncode]
    out["next"] = [runs()[0], helper.pid != first, helper.status()["lost"]]
    filled(helper)
    out["the first"] = first in mine()
if not how.startswith("os.kill"):
    # What the helper had said of its children lay in the socket: those are left for who waits for any.
    while mine():
        os.wait()
out["children"] = settled()
ledger.close()
out["ran"] = open(where + "/log").read()
out["lost"] = [json.loads(line)["helper"] for line in open(where + "/l") if '"ev":"helper.lost"' in line]
out["kept"] = len(os.listdir("/proc/self/fd")) - fds
""",
        how=how,
        pool=pool,
        where=str(tmp_path),
    )
    way = "pool" if pool else "helper"
    assert out["it"] in (["fork", 0], [way, 0]), "found lost while it was asked, or before"
    assert out["next"] == [way, True, None] and not out["the first"]
    assert out["ran"] == "x\n" and out["children"]
    assert len(out["lost"]) == 1 and re.search(why, out["lost"][0]["why"]), out["lost"]
    assert out["kept"] == (2 if loss == "socket taken" else 0) - 1, "the ledger is closed, and those of others are left"


def test_lost_helper_is_not_started_without_wish_or_too_soon():
    """restart=False leaves it, and so does a second one lost within a second: all is forked."""
    out = in_process(
        """
for restart in (False, True):
    with safespawn.Helper(restart=restart) as helper:
        os.kill(helper.pid, signal.SIGKILL)
        until(lambda: mine().get(helper.pid) == "Z")
        out[str(restart)] = [runs()[0], runs(strategy="helper")[:2], bool(helper.status()["lost"])]
out["children"] = settled()
"""
    )
    assert out["False"] == out["True"] == ["fork", ["UnsafeSpawn", "alone-or-apart"], True] and out["children"]


@pytest.mark.parametrize("pool", [0, 1])
def test_deadline_while_the_helper_is_stopped(tmp_path, pool):
    """SpawnTimeout, and the program runs never, also when the helper goes on; it serves as before."""
    out = in_process(
        """
log = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
with safespawn.Helper(pool=pool) as helper:
    runs()
    os.kill(helper.pid, signal.SIGSTOP)
    until(lambda: open(f"/proc/{helper.pid}/stat").read().rpartition(")")[2].split()[0] == "T")
    raised = set()
    for _ in range(100):
        try:
            safespawn.run(["/bin/echo", "x"], stdout=log, deadline=0.02)
        except safespawn.SpawnTimeout as problem:
            raised.add((problem.report.outcome, problem.stage in ("helper", "lookup")))
    out["raised"] = sorted(raised)
    os.kill(helper.pid, signal.SIGCONT)
    out["then"] = [runs(), runs()]
    until(lambda: len(mine()) == 1 + pool)
    out["lost"] = helper.status()["lost"]
out["ran"] = open(where).read()
out["children"] = settled()
""",
        pool=pool,
        where=str(tmp_path / "log"),
    )
    assert out["raised"] == [["timed-out", True]] and out["ran"] == ""
    assert out["then"] == [["pool" if pool else "helper", 0, ""]] * 2
    assert out["lost"] is None and out["children"]


def test_deadline_behind_another_spawn():
    """A spawn that waits for the answer of a stopped helper keeps no other beyond its deadline."""
    out = in_process(
        """
def attempt():
    # The first spawn gives up after two seconds; on a machine that stood still so long nothing is to be seen.
    helper = safespawn.Helper(restart=False).start()
    runs()
    os.kill(helper.pid, signal.SIGSTOP)
    asked = helper.status()["asked"]
    first = threading.Thread(target=runs)
    first.start()
    until(lambda: helper.status()["asked"] > asked)
    came = runs(deadline=0.1)
    before = first.is_alive()
    first.join()
    helper.close()
    return [came[0], came[2]], before
for _ in range(5):
    out["came"], out["before"] = attempt()
    if out["before"]:
        break
out["children"] = settled()
"""
    )
    assert out == {"came": ["SpawnTimeout", "helper"], "before": True, "children": True}


@pytest.mark.parametrize("pool", [0, 2])
def test_helper_killed_between_birth_and_answer(tmp_path, pool):
    """Its child has claimed the plan and goes on, once, as our own; the end of the helper does not touch it."""
    out = in_process(
        HELD
        + """
fds = len(os.listdir("/proc/self/fd"))
helper = safespawn.Helper(pool=pool, restart=False).start()
if pool:
    filled(helper)
    runs(strategy="pool")  # now we know of those that are parked
    filled(helper)
reading, writing = os.pipe()
came = {}
# A parked child gets its plan by a message too.
held = Held(helper, "sendmsg", 2 if pool else 1)
def spawner():
    came["process"] = safespawn.spawn(["/bin/sh", "-c", f"echo x >> {where}; exec cat"], stdin=reading, stdout=safespawn.PIPE)
thread = threading.Thread(target=spawner)
thread.start()
held.reached.wait()
until(lambda: os.path.exists(where) and os.path.getsize(where))
held.end("kill")
thread.join()
process = came["process"]
out["strategy"] = process.report.strategy
out["lost"] = helper.status()["lost"] is not None
helper.close()
os.close(reading)
os.write(writing, b"alive")
os.close(writing)
out["said"] = process.communicate()[0].decode()
out["code"] = process.returncode
out["ran"] = open(where).read()
out["children"] = settled()
out["kept"] = len(os.listdir("/proc/self/fd")) - fds
""",
        pool=pool,
        where=str(tmp_path / "log"),
    )
    assert out["strategy"] == ("pool" if pool else "helper") and out["lost"]
    assert out["said"] == "alive" and out["code"] == 0 and out["ran"] == "x\n"
    assert out["children"] and out["kept"] == 0


@pytest.mark.parametrize("pool", [0, 2])
def test_deadline_between_birth_and_answer(tmp_path, pool):
    """A program that runs is not killed because the helper has not said so yet."""
    out = in_process(
        HELD
        + """
helper = safespawn.Helper(pool=pool, restart=False).start()
if pool:
    filled(helper)
    runs(strategy="pool")
    filled(helper)
came = {}
held = Held(helper, "sendmsg", 2 if pool else 1)
def spawner():
    # Below what a helper is given to answer.
    came["process"] = safespawn.spawn(["/bin/sh", "-c", f"echo x >> {where}; exec cat"], stdin=safespawn.PIPE, deadline=1.5)
thread = threading.Thread(target=spawner)
thread.start()
held.reached.wait()
thread.join()
process = came["process"]
out["strategy"] = process.report.strategy
held.end("kill")
helper.close()
out["said"] = process.communicate(b"")
out["code"] = process.returncode
out["ran"] = open(where).read()
out["children"] = settled()
""",
        pool=pool,
        where=str(tmp_path / "log"),
    )
    assert out["strategy"] == ("pool" if pool else "helper")
    assert out["code"] == 0 and out["ran"] == "x\n" and out["children"]


@pytest.mark.parametrize(("pool", "room"), [(0, 0), (2, 0), (0, "none")])
def test_answer_that_we_have_no_room_for(tmp_path, pool, room):
    """The pidfd of a child that runs does not fit into our table: it is found by its claim, or ended; the helper lives.

    Room is there when the request has let go of what it had open, or not even then.
    """
    out = in_process(
        HELD
        + """
import resource
helper = safespawn.Helper(pool=pool, restart=False).start()
if pool:
    filled(helper)
    runs(strategy="pool")
    filled(helper)
reading, writing = os.pipe()
program = ["/bin/sh", "-c", f"echo x >> {where}; exec cat"]
came = {}
held = Held(helper, "sendmsg", 2 if pool else 1)
def spawner():
    try:
        came["process"] = safespawn.spawn(program, stdin=reading, stdout=1, stderr=2)
    except OSError as problem:
        came["problem"] = [type(problem).__name__, problem.errno, problem.stage]
thread = threading.Thread(target=spawner)
thread.start()
held.reached.wait()
until(lambda: os.path.exists(where) and os.path.getsize(where))
free = os.dup(0)
os.close(free)
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (free if room == 0 else 3, limits[1]))
held.end("let_go")
thread.join()
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
out["problem"] = came.get("problem")
if "process" in came:
    out["strategy"] = came["process"].report.strategy
    os.close(reading)
    os.close(writing)
    out["code"] = came["process"].wait()
out["left"] = len(set(mine()) - {helper.pid}) <= pool
out["then"] = runs(strategy="helper")
out["lost"] = helper.status()["lost"]
out["ran"] = open(where).read()
helper.close()
out["children"] = settled()
""",
        pool=pool,
        room=room,
        where=str(tmp_path / "log"),
    )
    assert out["lost"] is None and out["then"] == ["helper", 0, ""] and out["left"] and out["children"]
    assert out["ran"] == "x\n"
    if room == 0:
        assert out["problem"] is None and out["strategy"] == ("pool" if pool else "helper") and out["code"] == 0
    else:
        assert out["problem"] == ["OSError", errno.EMFILE, "exec"]


def test_parked_child_that_ends_before_it_sees_the_plan():
    """It was there, and has run nothing: the spawn begins anew, once."""
    out = in_process(
        """
with safespawn.Helper(pool=1) as helper:
    filled(helper)
    runs(strategy="pool")
    filled(helper)
    parked, = set(mine()) - {helper.pid}
    os.kill(parked, signal.SIGSTOP)
    until(lambda: mine()[parked] == "T")
    thread = threading.Thread(target=lambda: out.update(it=runs(["/bin/echo", "x"])))
    thread.start()
    until(lambda: len(mine()) == 3)  # the helper has given it away, and parked another
    os.kill(parked, signal.SIGKILL)
    thread.join()
out["children"] = settled()
"""
    )
    assert out["it"] == ["fork", 0, "x\n"] and out["children"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGUSR1, 34])
def test_signals_of_before_do_not_reach_a_program(number):
    """What was sent to our group while a child was parked was for us."""
    out = in_process(
        """
os.setpgid(0, 0)
signal.signal(number, lambda *_: None)
with safespawn.Helper(pool=2) as helper:
    filled(helper)
    runs(strategy="pool")
    filled(helper)
    os.killpg(0, number)
    out["came"] = [runs(["/bin/sh", "-c", "grep SigPnd /proc/self/status"], strategy="pool") for _ in range(3)]
""",
        number=number,
    )
    assert out["came"] == [["pool", 0, "SigPnd:\t0000000000000000\n"]] * 3


def test_limit_of_open_files_below_ours():
    """A helper that cannot get all that a plan names says so at once, and serves on."""
    out = in_process(
        """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
with safespawn.Helper() as helper:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
    many = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    out["many"] = runs(pass_fds=many)
    out["few"] = runs(["/bin/sh", "-c", "ulimit -n"], pass_fds=many[:8])
    out["lost"] = helper.status()["lost"]
"""
    )
    # One that did not answer would be given up after its time.
    assert out["many"] == ["fork", 0, ""] and out["lost"] is None
    assert out["few"] == ["helper", 0, "1024\n"]


# ------------------------------------------------------------------- begin and end


def test_helper_begins_once():
    """A second start is an error, also after its end; two ends are none."""
    helper = safespawn.Helper()
    assert helper.pid is None and helper.status() == {"pid": None, "lost": "the helper was not started", "idle": 0, "asked": 0}
    helper.close()
    with pytest.raises(RuntimeError, match="started"):
        helper.start()
    with safespawn.Helper() as helper, pytest.raises(RuntimeError, match="started"):
        helper.start()
    helper.close()
    helper.close()
    assert helper.status()["lost"] and repr(helper).startswith("<Helper ")


@pytest.mark.parametrize("pool", [0, 2])
def test_close_while_threads_spawn(pool):
    """Each spawn runs once, by the helper or by fork, whatever moment the end comes at."""
    out = in_process(
        """
came, problems = [], []
def several():
    try:
        while not enough.is_set():
            came.append(runs()[:2])
    except BaseException as problem:
        problems.append(repr(problem))
for _ in range(10):
    enough = threading.Event()
    helper = safespawn.Helper(pool=pool).start()
    workers = [threading.Thread(target=several) for _ in range(4)]
    [one.start() for one in workers]
    count = len(came)
    until(lambda: len(came) > count + 10)
    closers = [threading.Thread(target=helper.close) for _ in range(2)]
    [one.start() for one in closers], [one.join() for one in closers]
    enough.set()
    [one.join() for one in workers]
out["problems"] = problems
out["ways"] = sorted({json.dumps(one) for one in came})
out["children"] = settled()
""",
        pool=pool,
    )
    assert out["problems"] == [] and out["children"]
    assert set(out["ways"]) <= {'["fork", 0]', '["helper", 0]', '["pool", 0]'} and len(out["ways"]) > 1


def test_helper_that_is_closed_is_not_started_anew():
    """A thread that was about to look at it when another closed it finds it lost, and leaves it so."""
    out = in_process(
        """
from safespawn import _binding, helper as module
module.RESTART_PAUSE = 0
helper = safespawn.Helper().start()
out["before"] = runs(strategy="helper")[0]
look, closes = _binding.HelperEnd.look, [True]
def seen_late(end):
    if closes and closes.pop():
        helper.close()
    return look(end)
_binding.HelperEnd.look = seen_late
out["after"] = runs(strategy="helper")[:2]
_binding.HelperEnd.look = look
out["children"] = settled()
"""
    )
    assert out == {"before": "helper", "after": ["UnsafeSpawn", "alone-or-apart"], "children": True}


def test_handler_that_raises_when_a_helper_is_there():
    """It has begun, and parked children, and nobody has a handle of it: it ends, and they are reaped."""
    out = in_process(
        """
from safespawn import helper as module
real = module._program
def interrupted(fds):
    process = real(fds)
    until(lambda: len(mine()) == 3)
    raise KeyboardInterrupt  # before the handle is anybody's
module._program = interrupted
fds = len(os.listdir("/proc/self/fd"))
helper = safespawn.Helper(pool=2)
try:
    helper.start()
except KeyboardInterrupt:
    out["raised"] = True
module._program = real
until(lambda: runs(helper=False) and not mine())
out["fds"] = len(os.listdir("/proc/self/fd")) - fds
out["then"] = helper.start().pid is not None
helper.close()
out["children"] = settled()
"""
    )
    assert out == {"raised": True, "fds": 0, "then": True, "children": True}


@pytest.mark.parametrize("how", ["exit", "dropped", "killed", "os._exit", "exception"])
def test_helper_ends_with_us(how):
    """By whatever way the process or the object goes, helper and parked children go too."""
    out = in_process(
        """
import gc
reading, writing = os.pipe()
child = os.fork()
if not child:
    helper = safespawn.Helper(pool=2).start()
    runs(strategy="pool")
    filled(helper)
    os.write(writing, json.dumps(list(mine())).encode() + b"\\n")
    if how == "dropped":
        import warnings
        warnings.simplefilter("ignore")
        del helper
        gc.collect()
        until(lambda: runs() and not mine())  # it has ended, and is reaped by the next spawn as any that was dropped
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exception":
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        raise RuntimeError
    if how != "exit":
        os._exit(0)
    sys.exit(0)
told = json.loads(os.read(reading, 4096))
out["status"] = os.waitpid(child, 0)[1]
def alive():
    states = []
    for pid in told:
        try:
            states.append(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0])
        except OSError:
            continue
    return [one for one in states if one not in "ZX"]
out["told"] = len(told)
out["gone"] = until(lambda: not alive())
""",
        how=how,
    )
    assert out == {"told": 3, "gone": True, "status": {"killed": signal.SIGKILL, "exception": 256}.get(how, 0)}


def test_forks_have_none_of_it():
    """A fork has no helper, not even by name; ending it there ends nothing, and waits for no thread of ours."""
    out = in_process(
        """
def in_fork(does):
    child = os.fork()
    if not child:
        try:
            does()
            os._exit(0)
        except BaseException as problem:
            os.write(2, repr(problem).encode())
            os._exit(1)
    until(lambda: (seen := os.waitpid(child, os.WNOHANG))[0] and ended.append(seen[1]) is None)

ended = []
fds = {}
def looks():
    assert not helper.usable()
    assert helper.status() == {"pid": None, "lost": "the helper belongs to the process that this one was forked from",
                               "idle": 0, "asked": 0}, helper.status()
    assert runs()[0] == "vfork", runs()  # the fork has one thread
    assert runs(helper=helper, strategy="helper")[:2] == ["UnsafeSpawn", "alone-or-apart"]
    assert not any("socket:" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                   if os.path.lexists(f"/proc/self/fd/{fd}"))
    try:
        helper.shrink("any")
    except RuntimeError:
        helper.close()
    with safespawn.Helper():
        assert runs(strategy="helper")[0] == "helper"

with safespawn.Helper(pool=2) as helper:
    filled(helper)
    in_fork(looks)
    held, go = threading.Event(), threading.Event()
    def holds():
        with helper._lock:
            held.set()
            go.wait()
    thread = threading.Thread(target=holds)
    thread.start()
    held.wait()
    in_fork(helper.close)
    go.set()
    thread.join()
    out["ours"] = runs()
    out["lost"] = helper.status()["lost"]
out["ended"] = ended
out["children"] = settled()
"""
    )
    assert out["ended"] == [0, 0] and out["ours"] == ["pool", 0, ""] and out["lost"] is None and out["children"]


def test_child_of_a_fork_and_with(tmp_path):
    """What leaves the with statement in a fork leaves its parent's helper alone."""
    out = in_process(
        """
with safespawn.Helper(pool=1) as helper:
    child = os.fork()
    if child:
        out["child"] = os.waitpid(child, 0)[1]
        out["ours"] = runs()
if not child:
    os._exit(0)
out["children"] = settled()
"""
    )
    assert out["child"] == 0 and out["ours"] == ["pool", 0, ""] and out["children"]


# ------------------------------------------------------------------- records


def test_records(tmp_path):
    """A spawn by a helper says so and why; a shrunk helper is told of."""
    where = tmp_path / "ledger"
    in_process(
        """
from safespawn import audit
ledger = audit.open(where)
with safespawn.Helper(allow=["/bin/true"]) as helper:
    runs()
    runs(["/bin/echo"])
    runs(["/bin/echo"], strategy="helper")
    helper.shrink([])
    runs()
ledger.close()
""",
        where=str(where),
    )
    told = helpers.records(where)
    assert [record["helper"]["policies"] for record in told if record["ev"] == "helper.shrunk"] == [2]
    assert audit.verify(where).ok
    text = where.read_text(encoding="ascii")
    assert '"helper-obeys' in text or "helper-obeys" in text
    assert "does not allow the program" in text
    assert sum(record["ev"] == "spawn.denied" for record in told) == 1


# ------------------------------------------------------------------- what is inherited

#: Changes since the helper was started that are made good, or make it useless: those run by fork.
CHANGES = {
    "umask": ("os.umask(0o27)", "sh -c umask", True),
    "cwd": ("os.chdir('/usr')", "pwd", True),
    "soft limit": ("resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))", "cat /proc/self/limits", True),
    "ignored": ("signal.signal(signal.SIGUSR2, signal.SIG_IGN)", "grep SigIgn /proc/self/status", True),
    "nice": ("os.nice(3)", "nice", True),
    "group": ("os.setpgid(0, 0)", "ps -o pgid= -p $$", True),
    "session": ("os.setsid()", "ps -o sid= -p $$", False),
    "affinity": ("os.sched_setaffinity(0, {0})", "grep Cpus_allowed: /proc/self/status", False),
    "scheduler": ("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "chrt -p $$ | tail -2 | head -1 | cut -d: -f2", False),
    "securebits": ("credchanges.raw('prctl', 28, 1)", "grep CapEff /proc/self/status", False),
    "no_new_privs": ("credchanges.raw('prctl', 38, 1, 0, 0, 0)", "grep NoNewPrivs /proc/self/status", False),
    "bounding set": ("credchanges.raw('prctl', 24, 27)", "grep CapBnd /proc/self/status", False),
    "namespace": ("credchanges.raw('unshare', credchanges.UTS)", "readlink /proc/self/ns/uts", False),
    "OOM score": ("open('/proc/self/oom_score_adj', 'w').write('500')", "cat /proc/self/oom_score_adj", False),
    "core dump": ("open('/proc/self/coredump_filter', 'w').write('1')", "cat /proc/self/coredump_filter", False),
    "huge pages": ("credchanges.raw('prctl', 41, 1, 0, 0, 0)", "grep THP_enabled /proc/self/status", False),
    "timer slack": ("credchanges.raw('prctl', 29, 123456)", "cat /proc/self/timerslack_ns", False),
    "personality": ("ctypes.CDLL(None).personality(0x40000)", "cat /proc/self/personality", False),
}


@pytest.mark.parametrize("pool", [0, 1])
@pytest.mark.parametrize("name", CHANGES)
def test_child_has_what_we_have_now(name, pool):
    """What has changed since the helper was started is as in a fork, by the helper or without it."""
    does, shows, is_made_good = CHANGES[name]
    out = helpers.run_snippet(
        """
import credchanges, ctypes, resource
with safespawn.Helper(pool=pool) as helper:
    show = lambda strategy, **more: safespawn.run(["/bin/sh", "-c", shows], strategy=strategy, capture_output=True, **more)
    before = show(way).stdout.decode()
    eval(does)
    out["forked"] = show("fork", helper=False).stdout.decode()
    out["changed"] = before != out["forked"]
    try:
        done = show(way)
        out["helped"] = [done.stdout.decode(), done.report.strategy]
    except safespawn.UnsafeSpawn as problem:
        out["refused"] = [problem.guard, str(problem)]
""",
        does=does,
        shows=shows,
        pool=pool,
        way="pool" if pool else "helper",
    )
    assert out["changed"], out
    if is_made_good:
        assert out["helped"] == [out["forked"], "pool" if pool else "helper"]
    else:
        assert out["refused"][0] == "helper-obeys" and "stand in for us" in out["refused"][1]


def test_directory_at_another_place():
    """One directory is mounted twice: the child is where we are, not where the helper was."""
    out = in_process(
        """
import ctypes, tempfile
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None) == 0
one, other = tempfile.mkdtemp(), tempfile.mkdtemp()
assert libc.mount(one.encode(), other.encode(), None, 4096, None) == 0
os.chdir(one)
with safespawn.Helper():
    os.chdir(other)
    out["it"] = runs(["/bin/pwd", "-P"], strategy="helper")
    out["is"] = other
os.chdir("/")
libc.umount2(other.encode(), 2)
os.rmdir(one), os.rmdir(other)
"""
    )
    assert out["it"] == ["helper", 0, out["is"] + "\n"]


def test_terminal_that_we_gave_up():
    """We are in the session still, and have no terminal any more: no child of the helper may have it."""
    out = in_process(
        """
import fcntl, termios
(reading, writing), (_, slave) = os.pipe(), os.openpty()
def works():
    show = ["/bin/sh", "-c", "exec 3<>/dev/tty"]
    helper = safespawn.Helper().start()
    before = runs(show, strategy="helper")[:2]
    with open("/dev/tty") as file:
        fcntl.ioctl(file, termios.TIOCNOTTY)
    after = [runs(show, strategy=way)[:2] for way in ("fork", "helper")]
    helper.close()
    return before, after
leader = os.fork()
if not leader:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    member = os.fork()
    if not member:
        try:
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            came = works()
        except BaseException as problem:
            came = repr(problem)
        os.write(writing, json.dumps(came).encode())
        os._exit(0)
    os.waitpid(member, 0)
    os._exit(0)
os.waitpid(leader, 0)
out["it"] = json.loads(os.read(reading, 4096))
"""
    )
    (before, (forked, helped)) = out["it"]
    assert before == ["helper", 0] and forked[0] == "fork" and forked[1] != 0
    assert helped == ["UnsafeSpawn", "helper-obeys"]


@pytest.mark.parametrize("own", [False, True], ids=["forks by itself", "asks by thread"])
def test_thread_of_its_own(own):
    """A thread with a processor of its own is not what the helper is: its children are forked."""
    out = in_process(
        """
def works():
    if own:
        os.sched_setaffinity(0, {0})
    out["it"] = runs(["/bin/grep", "Cpus_allowed_list", "/proc/self/status"])
with safespawn.Helper():
    thread = threading.Thread(target=works)
    thread.start()
    thread.join()
    out["pdeathsig"] = runs(pdeathsig=9)[0]
    thread = threading.Thread(target=lambda: out.update(other=runs(pdeathsig=9)[0]))
    thread.start()
    thread.join()
""",
        own=own,
    )
    assert out["it"][0] == ("fork" if own else "helper")
    assert not own or out["it"][2].split() == ["Cpus_allowed_list:", "0"]
    assert out["pdeathsig"] == "helper" and out["other"] == "fork"


def test_priority_that_others_gave_us(public):
    """A child cannot give it to itself: the spawn is forked, and does not fail."""
    out = in_process(
        """
asks, told = os.pipe()
waits, goes = os.pipe()
child = os.fork()
if not child:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    with safespawn.Helper() as helper:
        os.write(told, json.dumps(runs(["/usr/bin/nice"])).encode())
        os.read(waits, 1)
        os.write(told, json.dumps(runs(["/usr/bin/nice"])).encode())
    os._exit(0)
out["before"] = json.loads(os.read(asks, 4096))
out["ours"] = os.getpriority(os.PRIO_PROCESS, 0)
os.setpriority(os.PRIO_PROCESS, child, out["ours"] - 5)
os.write(goes, b".")
out["after"] = json.loads(os.read(asks, 4096))
os.waitpid(child, 0)
"""
    )
    assert out["before"] == ["helper", 0, f"{out['ours']}\n"]
    assert out["after"] == ["fork", 0, f"{out['ours'] - 5}\n"]


@pytest.mark.parametrize(
    ("by", "record"), [("spawn", "helper.lost"), ("spawn", "spawn.intent"), ("close", "helper.lost")]
)
def test_who_hears_of_a_lost_helper_may_spawn(record, by):
    """A handler that spawns while another thread tells of the loss, or of the new one: neither waits for the other."""
    out = in_process(
        """
import logging
from safespawn import helper as module
module.RESTART_PAUSE = 0
inside = threading.Event()

class Spawning(logging.Handler):
    def handle(self, said):
        # The teller has not the handler's lock yet: the other takes it, and spawns with it.
        if threading.current_thread() is teller and record in said.getMessage() and not inside.is_set():
            other.start()
            inside.wait()
        return super().handle(said)
    def emit(self, said):
        if said.getMessage() == "now":
            inside.set()
            came.append(runs(helper=helper)[:2])

def tells():
    came.append(runs()[:2]) if by == "spawn" else helper.close()

came = []
helper = safespawn.Helper().start()
log = logging.getLogger("safespawn.audit")
log.setLevel(logging.INFO)
log.addHandler(Spawning())
teller = threading.Thread(target=tells, daemon=True)
other = threading.Thread(target=lambda: log.info("now"), daemon=True)
os.kill(helper.pid, signal.SIGKILL)
until(lambda: mine()[helper.pid] == "Z")
teller.start()
teller.join(40)
out["waits"] = teller.is_alive()
if not out["waits"]:
    other.join()
    helper.close()
    out["children"] = settled()
out["came"] = sorted(came)
""",
        record=record,
        by=by,
    )
    assert not out["waits"] and out["children"]
    assert out["came"] == [["fork", 0]] + [["helper", 0]] * (by == "spawn")


def test_helper_that_is_closed_while_another_is_started_in_its_place():
    """Who hears of the start closes it: what was begun is ended, and the spawn is forked."""
    out = in_process(
        """
import logging
from safespawn import helper as module
module.RESTART_PAUSE = 0

class Closing(logging.Handler):
    def emit(self, said):
        if "spawn.started" in said.getMessage():
            helper.close()

helper = safespawn.Helper().start()
os.kill(helper.pid, signal.SIGKILL)
until(lambda: mine()[helper.pid] == "Z")
fds = len(os.listdir("/proc/self/fd"))
log = logging.getLogger("safespawn.audit")
log.setLevel(logging.INFO)
log.addHandler(Closing())
out["came"] = runs()[:2]
out["children"] = settled()
out["kept"] = len(os.listdir("/proc/self/fd")) - fds
"""
    )
    assert out["came"] == ["fork", 0] and out["children"]
    assert out["kept"] == -3, "socket and pidfd of the one that was lost, and its handle's"


@pytest.mark.parametrize("how", ["killed", "retired", "closed"])
def test_helper_that_was_lost_before_its_end_is_told_of(tmp_path, how):
    """No spawn has noticed: then its end does, once; an end that was wanted is no loss."""
    where = tmp_path / "ledger"
    helpers.run_snippet(
        NO_PROOF
        + """
from safespawn import audit
ledger = audit.open(where)
helper = safespawn.Helper().start()
if how == "killed":
    os.kill(helper.pid, signal.SIGKILL)
if how == "retired":
    os.setresgid(65534, 65534, 65534)
if how != "closed":
    until(lambda: mine()[helper.pid] == "Z")
helper.close()
helper.close()
ledger.close()
""",
        where=str(where),
        how=how,
    )
    told = [record["helper"]["why"] for record in helpers.records(where) if record["ev"] == "helper.lost"]
    assert len(told) == (how != "closed")
    if told:
        assert ("retired" in told[0]) == (how == "retired")


def test_end_of_a_lost_helper_that_cannot_be_recorded(tmp_path):
    """The record of its loss fails: the exception is told, and nothing of the helper is left."""
    out = in_process(
        """
from safespawn import audit
ledger = audit.open(where, mode="require")
descriptors = os.listdir("/proc/self/fd")
helper = safespawn.Helper(pool=2).start()
filled(helper)
os.kill(helper.pid, signal.SIGKILL)
until(lambda: mine()[helper.pid] == "Z")
real = audit.emit
def full(event, *args, **options):
    if event == "helper.lost":
        raise safespawn.AuditError(28, "no space")
    return real(event, *args, **options)
audit.emit = full
try:
    helper.close()
except safespawn.AuditError:
    out["told"] = True
out["children"] = settled()
out["kept"] = len(os.listdir("/proc/self/fd")) - len(descriptors)
""",
        where=str(tmp_path / "ledger"),
    )
    assert out == {"told": True, "children": True, "kept": 0}


def test_handler_that_raises_at_any_call_keeps_no_helper_from_being_started():
    """Wherever a handler comes in while one is started, or started anew: the next loss is seen to."""
    out = in_process(
        """
from safespawn import helper as module
module.RESTART_PAUSE = 0

def interrupted(at, what):
    # CPython runs handlers when a function is entered, among others: whether that came is returned.
    calls = []
    def tracer(frame, event, arg):
        if event == "call" and frame.f_code.co_filename == module.__file__:
            calls.append(frame.f_code.co_name)
            if len(calls) == at:
                raise KeyboardInterrupt
    sys.settrace(tracer)
    try:
        what()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return len(calls) >= at

def lose(helper):
    os.kill(helper.pid, signal.SIGKILL)
    until(lambda: mine().get(helper.pid, "Z") == "Z")

def tried(at, begins_anew):
    helper = safespawn.Helper()
    came = begins_anew or interrupted(at, helper.start)
    if helper.pid is None:
        helper.start()
    lose(helper)
    if begins_anew:
        came = interrupted(at, helper.usable)
        helper.usable()
        lose(helper)
    ways.add(runs(helper=helper)[0])
    helper.close()
    return came

ways, counts = set(), []
for begins_anew in (False, True):
    at = 1
    while tried(at, begins_anew):
        at += 1
    counts.append(at)
out["ways"], out["calls"] = sorted(ways), min(counts)
out["children"] = settled()
"""
    )
    assert out["ways"] == ["helper"] and out["children"] and out["calls"] > 5


def test_handler_that_closes_a_helper_that_is_shown():
    """The lock does not keep out a handler of the thread that has it: what was closed is not shown."""
    out = in_process(
        """
from safespawn import helper as module
module.RESTART_PAUSE = 0
helper = safespawn.Helper(allow=["/bin/true", "/bin/false"]).start()
helper.shrink(["/bin/true"])
os.kill(helper.pid, signal.SIGKILL)
until(lambda: mine()[helper.pid] == "Z")
real = module.Helper._shrink
def interrupted(self, end, allowed):
    real(self, end, allowed)
    helper.close()  # as a signal handler would, which runs in this thread
module.Helper._shrink = interrupted
out["came"] = runs()[:2]
out["children"] = settled()
"""
    )
    assert out == {"came": ["fork", 0], "children": True}
