"""Every step on the way through a helper can fail: right exception, stage and errno, and nothing is left."""

from __future__ import annotations

import errno

import pytest

import helpers
from helper_snippets import NO_PROOF
from safespawn import _binding

#: Steps that a child of the helper takes after it was allowed to.
STEPS = _binding.stages()[_binding.stages().index("signals") :]
#: Those of the helper's judgement.
POLICY = tuple(name for name in _binding.stages() if name.startswith("policy-"))

FAIL = (
    NO_PROOF
    + """
from safespawn import audit
ledger = audit.open(where)
helper = safespawn.Helper(pool=pool).start()
filled(helper)
runs(strategy=way)
fds = len(os.listdir("/proc/self/fd"))
out["results"] = []
for name in names:
    hooks.fail_stage, hooks.fail_error = stage(name), error
    out["results"].append(runs(cwd="/", strategy=way)[:4])
hooks.fail_stage = 0
out["again"] = runs(strategy=way)
filled(helper)
runs(strategy=way)
out["fds"] = abs(len(os.listdir("/proc/self/fd")) - fds)
helper.close()
out["children"] = settled()
ledger.close()
out["records"] = [json.loads(line)["ev"] for line in open(where)]
"""
)

WAYS = pytest.mark.parametrize("pool", [0, 2], ids=["helper", "pool"])


@WAYS
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOMEM, errno.ENOENT])
def test_failure_at_every_stage_of_the_child(in_hooks, tmp_path, pool, error):
    """An errno at any step of the child is that exception with its stage, and one record."""
    way = "pool" if pool else "helper"
    out = in_hooks(FAIL, names=STEPS, error=error, pool=pool, way=way, where=str(tmp_path / "l"))
    kind = type(OSError(error, "")).__name__
    assert out["results"] == [[kind, None, name, error] for name in STEPS]
    assert out["again"] == [way, 0, ""] and out["fds"] <= pool and out["children"]
    assert out["records"].count("spawn.failed") == len(STEPS)


@WAYS
@pytest.mark.parametrize("name", ["prepare", "helper", *POLICY])
def test_failure_before_anything_of_the_plan(in_hooks, tmp_path, pool, name):
    """What fails before the child does anything is refused by name, and begun anew by auto, with the reason."""
    way = "pool" if pool else "helper"
    out = in_hooks(FAIL, names=[name], error=errno.EACCES, pool=pool, way=way, where=str(tmp_path / "l"))
    assert out["results"] == [["UnsafeSpawn", "helper-obeys", None, errno.EPERM]]
    assert out["again"] == [way, 0, ""] and out["fds"] <= pool and out["children"]
    assert out["records"].count("spawn.denied") == 1
    out = in_hooks(
        NO_PROOF
        + """
with safespawn.Helper(pool=pool):
    hooks.fail_stage, hooks.fail_error = stage(name), 13
    done = safespawn.run(["/bin/echo", "x"], capture_output=True) if name not in ("prepare", "helper") else None
    if done is None:
        # Of these the fork has one too: only the first try is to fail.
        from safespawn import _helpers
        real = _helpers.fell_short
        def once(outcome):
            hooks.fail_stage = 0
            return real(outcome)
        _helpers.fell_short = once
        done = safespawn.run(["/bin/echo", "x"], capture_output=True)
    out["it"] = [done.report.strategy, done.stdout.decode()]
    out["why"] = done.report.reasons[-1]
""",
        armed=False,
        pool=pool,
        name=name,
    )
    assert out["it"] == ["fork", "x\n"] and out["why"].startswith("helper-obeys: the helper")


@WAYS
def test_plan_that_cannot_be_read(in_hooks, pool):
    """The child takes its hooks from the helper until it has read its plan: that step fails as any other."""
    out = in_hooks(
        NO_PROOF
        + """
hooks.fail_stage, hooks.fail_error = stage("plan"), 71
helper = safespawn.Helper(pool=pool).start()
hooks.fail_stage = 0
filled(helper)
out["it"] = runs(strategy="pool" if pool else "helper")
helper.close()
out["children"] = settled()
""",
        pool=pool,
    )
    assert out["it"] == ["OSError", None, "plan", 71] and out["children"]


@WAYS
def test_child_killed_or_stopped_at_every_stage(in_hooks, pool):
    """SIGKILL is killed-before-exec with its stage, SIGSTOP is timed-out at the deadline; no child is left."""
    out = in_hooks(
        NO_PROOF
        + """
helper = safespawn.Helper(pool=pool).start()
way = "pool" if pool else "helper"
out["killed"], out["stopped"] = [], []

def stopped(deadline):
    came = runs(strategy=way, deadline=deadline)[::2]
    # Another, if it was over before the child came to the stage.
    return came if came[1] == name or deadline > 1 else stopped(2 * deadline)

for name in names:
    hooks.signal_stage, hooks.signal = stage(name), signal.SIGKILL
    out["killed"].append(runs(strategy=way)[::2])
    hooks.signal = signal.SIGSTOP
    out["stopped"].append(stopped(0.1))
hooks.signal_stage = 0
out["again"] = runs(strategy=way)
helper.close()
out["children"] = settled()
""",
        names=[*POLICY, *STEPS],
        pool=pool,
    )
    assert out["killed"] == [["KilledBeforeExec", name] for name in (*POLICY, *STEPS)]
    assert out["stopped"] == [["SpawnTimeout", name] for name in (*POLICY, *STEPS)]
    assert out["again"] == ["pool" if pool else "helper", 0, ""] and out["children"]


#: What the system refuses, before the helper is there and after; and how it is given back.
WANTS = {
    "processes": (
        "os.setresuid(12345, 12345, 12345); resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))",
        "BlockingIOError",
        errno.EAGAIN,
    ),
    "descriptors": ("resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')), 4096))", "OSError", errno.EMFILE),
    "memfd": ("sandbox.answer({'memfd_create': 1})", "PermissionError", errno.EPERM),
}


@pytest.mark.parametrize("want", WANTS)
def test_helper_that_cannot_be_started(want):
    """An OSError says so, nothing is left, and it can be tried again."""
    take, kind, number = WANTS[want]
    out = helpers.run_snippet(
        NO_PROOF
        + """
import resource, sandbox
runs()
fds = sorted(os.listdir("/proc/self/fd"))
eval(take) if ";" not in take else exec(take)
helper = safespawn.Helper(pool=1)
try:
    helper.start()
except OSError as problem:
    out["raised"] = [type(problem).__name__, problem.errno]
out["status"] = helper.status()["pid"]
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
out["fds"] = sorted(os.listdir("/proc/self/fd")) == fds
out["children"] = settled()
if want == "descriptors":
    with helper:
        out["again"] = runs(strategy="helper")
""",
        take=take,
        want=want,
    )
    assert out["raised"] == [kind, number]
    assert out["status"] is None and out["fds"] and out["children"]
    assert out.get("again", ["helper", 0, ""]) == ["helper", 0, ""]


#: The same while it runs: auto begins anew where that helps.
SHORTAGES = {
    "descriptors": ("resource.setrlimit(resource.RLIMIT_NOFILE, (lowest() + room, 4096))", None),
    "memfd": ("sandbox.answer({'memfd_create': 1})", "fork"),
}


@WAYS
@pytest.mark.parametrize("want", SHORTAGES)
def test_request_that_cannot_be_made(want, pool):
    """A request that we have not the means for is no loss of the helper, and leaves nothing."""
    take, then = SHORTAGES[want]
    out = helpers.run_snippet(
        NO_PROOF
        + """
import resource, sandbox
helper = safespawn.Helper(pool=pool).start()
filled(helper)
runs(strategy=way)
filled(helper)
runs(strategy=way)
fds = len(os.listdir("/proc/self/fd"))
def lowest():
    fd = os.dup(0)
    os.close(fd)
    return fd
def plainly():
    try:
        return safespawn.run(["/bin/true"], stdin=0, stdout=1, stderr=2).report.strategy
    except OSError as problem:
        return [type(problem).__name__, problem.errno]
out["it"] = []
for room in range(8 if want == "descriptors" else 1):
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
    eval(take)
    out["it"].append(plainly())
if want == "descriptors":
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
    out["lost"] = helper.status()["lost"]
    out["again"] = runs(strategy=way)
out["fds"] = abs(len(os.listdir("/proc/self/fd")) - fds) <= pool
helper.close()
out["children"] = settled()
""",
        armed=False,
        take=take,
        want=want,
        pool=pool,
        way="pool" if pool else "helper",
    )
    assert out["fds"] and out["children"]
    if then is not None:
        assert out["it"] == [then]
    else:
        # With more and more room: not even a fork, a fork, the helper.
        refused, way = ["OSError", errno.EMFILE], "pool" if pool else "helper"
        assert out["it"][0] == refused and out["it"][-1] == way and "fork" in out["it"], out["it"]
        assert all(one in (refused, "fork", way) for one in out["it"]) and out["lost"] is None
        assert out["again"] == ["pool" if pool else "helper", 0, ""]


def test_without_proc():
    """What cannot be compared is not taken for equal: without /proc no helper is asked, or started."""
    out = helpers.run_snippet(
        NO_PROOF
        + """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
helper = safespawn.Helper().start()
before = runs(strategy="helper")
out["before"] = before
reading, writing = os.pipe()
child = os.fork()
if not child:  # in a mount namespace of its own
    came = []
    try:
        assert libc.unshare(0x20000) == 0
        assert libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None) == 0
        with safespawn.Helper() as mine:
            assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
            try:
                safespawn.run(["/bin/true"], strategy="helper")
            except safespawn.UnsafeSpawn as problem:
                came.append(str(problem))
        try:
            safespawn.Helper().start()
        except OSError as problem:
            came.append(type(problem).__name__)
    except BaseException as problem:
        came.append(repr(problem))
    os.write(writing, json.dumps(came).encode())
    os._exit(0)
out["came"] = json.loads(os.read(reading, 4096))
os.waitpid(child, 0)
helper.close()
out["children"] = settled()
""",
    )
    assert out["before"] == ["helper", 0, ""] and out["children"]
    assert "could not be seen" in out["came"][0] and out["came"][1] in ("FileNotFoundError", "UnsafeSpawn", "OSError")
