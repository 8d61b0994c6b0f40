"""The launcher at every step: it can fail there, be stopped or killed, and its parent can; all as by fork.

The steps that child and launcher both have are the same code, so the same failure has to look
the same: exception, stage, report, record, and nothing left behind.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest

import helpers
import sandbox
from safespawn import _binding

STAGES = _binding.stages()
#: From here on a launcher makes the same steps as any other child.
COMMON = STAGES[STAGES.index("signals") :]
OWN = ["launch", "plan", "level"]

BOTH = pytest.mark.parametrize("strategy", ["launcher", "fork"])

#: One spawn after the other; what came of each, and what is left of all.
TELL = (
    helpers.LAUNCHED
    + """
nobody = {"user": 65534, "group": 65534, "extra_groups": []}

def tell(argv, **options):
    try:
        report = safespawn.run(argv, **options).report
        return ["ran", report.strategy, report.reasons[-1]]
    except OSError as problem:
        report = problem.report
        return [type(problem).__name__, problem.errno, problem.stage, problem.strerror,
                report.outcome, report.stage, report.errno, report.strategy]

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))

before = descriptors()

def left():
    return [no_child(), descriptors() == before]
"""
)
CLEAN = [True, True]


# ------------------------------------------------------------ every step fails


def test_failure_at_every_step_is_that_of_a_fork(in_hooks, tmp_path):
    """Whatever step fails, with whatever errno: launcher and fork tell the same, and nothing has run."""
    mark = tmp_path / "mark"
    out = in_hooks(
        TELL
        + """
from safespawn import audit
ledger = audit.open(where)
for strategy in ("launcher", "fork"):
    told = []
    for name in names:
        for error in errors:
            hooks.fail_stage, hooks.fail_error = stage(name), error
            told.append(tell(["/usr/bin/touch", mark], strategy=strategy, cwd="/", **nobody))
    hooks.fail_stage = 0
    out[strategy] = told
    out["works again as " + strategy] = tell(["/bin/true"], strategy=strategy, **nobody)[:2]
ledger.close()
out["records"] = sorted({(record["outcome"]["outcome"], record["how"]["strategy"])
                         for record in map(json.loads, open(where)) if record["ev"] == "spawn.failed"})
out["left"] = left()
""",
        names=COMMON,
        errors=[errno.EPERM, errno.ENOMEM, errno.EINTR, errno.ENOENT],
        mark=str(mark),
        where=str(tmp_path / "ledger"),
    )
    for strategy in ("launcher", "fork"):
        expected = [
            [type(OSError(error, "")).__name__, error, name, told[3], "failed", name, error, strategy]
            for (name, error), told in zip(
                [(name, error) for name in COMMON for error in (errno.EPERM, errno.ENOMEM, errno.EINTR, errno.ENOENT)],
                out[strategy],
                strict=True,
            )
        ]
        assert out[strategy] == expected
        assert out["works again as " + strategy] == ["ran", strategy]
    assert [told[:-1] for told in out["launcher"]] == [told[:-1] for told in out["fork"]]
    assert out["records"] == [["failed", "fork"], ["failed", "launcher"]]
    assert out["left"] == CLEAN
    assert not mark.exists()


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("name", OWN)
def test_failure_at_a_step_that_only_the_launcher_has(in_hooks, tmp_path, name, error):
    """Where a launcher cannot be run, or not with what we have, a fork takes its place, and says why.

    By name it is refused. A plan that is not ours is no matter of how: it is raised. What will be
    so next time too is remembered.
    """
    mark = tmp_path / "mark"
    out = in_hooks(
        TELL
        + """
def failing(argv, **options):
    hooks.fail_stage, hooks.fail_error = stage(name), error
    try:
        return tell(argv, **options, **nobody)
    finally:
        hooks.fail_stage = 0

try:
    out["named"] = failing(["/usr/bin/touch", mark], strategy="launcher")
except safespawn.UnsafeSpawn as refusal:
    out["named"] = [refusal.guard, refusal.report.outcome]
_launcher._State.refused = _launcher._State.unlevel = None
out["auto"] = failing(["/bin/true"])
out["next"] = tell(["/bin/true"], **nobody)
out["left"] = left()
""",
        name=name,
        error=error,
        mark=str(mark),
    )
    assert out["left"] == CLEAN
    assert not mark.exists()
    if name == "plan":
        raised = [type(OSError(error, "")).__name__, error, "plan"]
        assert out["named"][:3] == out["auto"][:3] == raised
        assert out["next"][:2] == ["ran", "launcher"]
        return
    why = f"drop-apart: the launcher could not be used (stage {name}: {os.strerror(error)})"
    assert out["named"][:1] + out["named"][4:5] == ["UnsafeSpawn", "refused"]
    assert out["auto"] == ["ran", "fork", why]
    # A file that was refused stays refused, and so do our capabilities as long as they are the same.
    remembered = name == "level" or error == errno.EACCES
    assert out["next"][:2] == ["ran", "fork" if remembered else "launcher"]


@BOTH
@pytest.mark.parametrize("name", ["credentials", "epoch"])
def test_credentials_that_do_not_agree_in_the_launcher(in_hooks, name, strategy):
    """ESTALE where credentials are compared is race-detected; a moved epoch is looked at anew first."""
    out = in_hooks(
        TELL
        + """
from safespawn import _spawn
_spawn.EPOCH_TRIES = 0
hooks.fail_stage, hooks.fail_error = stage(name), 116
out["told"] = tell(["/bin/true"], strategy=strategy, **nobody)
out["left"] = left()
""",
        name=name,
        strategy=strategy,
    )
    assert out["told"][:3] == ["RaceDetected", errno.ESTALE, name]
    assert out["told"][4:] == ["race-detected", name, errno.ESTALE, strategy]
    assert out["left"] == CLEAN


# ------------------------------------------------------------ without any hook


def _filter(*rules: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)


_EXIT_GROUP = {"x86_64": 231, "aarch64": 94}[os.uname().machine]
_EXECVE, _EXECVEAT = sandbox.NUMBERS["execve"], {"x86_64": 322, "aarch64": 281}[os.uname().machine]
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/filter.h; the word at 0 is the system call's number
_KILL, _TRAP, _EPERM, _ALLOW = 0x80000000, 0x00030000, 0x00050001, 0x7FFF0000  # linux/seccomp.h


def _answering(answer: int, *numbers: int) -> str:
    """Return a filter that gives these calls an answer and allows all others, in hex."""
    rules = [(_LOAD, 0, 0, 0)]
    for number in numbers:
        rules += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer)]
    return _filter(*rules, (_RETURN, 0, 0, _ALLOW)).hex()


FILTERS = {
    "refuses exec": (_answering(_EPERM, _EXECVE, _EXECVEAT), ["PermissionError", errno.EPERM, "exec", "failed"]),
    "refuses exec and exit": (
        _answering(_EPERM, _EXECVE, _EXECVEAT, _EXIT_GROUP),
        ["PermissionError", errno.EPERM, "exec", "failed"],
    ),
    "refuses everything": (_filter((_RETURN, 0, 0, _EPERM)).hex(), ["PermissionError", errno.EPERM, "exec", "failed"]),
    "kills at exec": (
        _answering(_KILL, _EXECVE, _EXECVEAT),
        ["KilledBeforeExec", errno.ECANCELED, "exec", "killed-before-exec"],
    ),
    "kills always": (
        _filter((_RETURN, 0, 0, _KILL)).hex(),
        ["KilledBeforeExec", errno.ECANCELED, "exec", "killed-before-exec"],
    ),
    "traps exec": (
        _answering(_TRAP, _EXECVE, _EXECVEAT),
        ["KilledBeforeExec", errno.ECANCELED, "exec", "killed-before-exec"],
    ),
    "fakes exec": (
        _answering(0x00050000, _EXECVE, _EXECVEAT),
        ["OSError", errno.EPROTO, "exec", "failed"],
    ),
    "is no filter": (_filter((_LOAD, 0, 0, 3), (_RETURN, 0, 0, _ALLOW)).hex(), ["OSError", errno.EINVAL, "seccomp", "failed"]),
    "has no end": (_filter((_LOAD, 0, 0, 0)).hex(), ["OSError", errno.EINVAL, "seccomp", "failed"]),
}


#: A launcher that is killed in its last step may have been the program (R-32), and that is said.
UNCONFIRMED = "outcome-told: nobody could confirm that the program was reached"


@BOTH
@pytest.mark.parametrize("blocked", [[], ["SIGILL", "SIGSYS", "SIGTRAP", "SIGSEGV"]], ids=["", "blocked"])
@pytest.mark.parametrize("name", FILTERS)
def test_filter_that_lets_no_child_through(tmp_path, strategy, name, blocked):
    """A filter that refuses the exec, and even the end of the child, or kills: the child is dead, and told.

    It does not spin: it ends long before the deadline, of which the caller sees nothing.
    """
    text, expected = FILTERS[name]
    if strategy == "launcher" and expected[0] == "KilledBeforeExec":
        expected = [-signal.SIGSYS, UNCONFIRMED]
    mark = tmp_path / "mark"
    out = helpers.run_snippet(
        """
start = time.monotonic()
try:
    done = safespawn.run(["/usr/bin/touch", mark], strategy=strategy, user=65534, group=65534,
                         seccomp=bytes.fromhex(text), sigmask=[getattr(signal, one) for one in blocked], deadline=50)
    out["told"] = [done.returncode, done.report.reasons[-1]]
except OSError as problem:
    out["told"] = [type(problem).__name__, problem.errno, problem.stage, problem.report.outcome]
out["at once"] = time.monotonic() - start < 30
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    out["no child"] = True
""",
        strategy=strategy,
        text=text,
        mark=str(mark),
        blocked=blocked,
    )
    assert out == {"told": expected, "at once": True, "no child": True}
    assert not mark.exists()


#: Options that fail for good reason, the program and the user that spawns (root, or uid 65534
#: without capabilities), and the exception, errno and stage.
REAL = {
    "uid not mapped": ({"user": 5, "group": 0, "namespaces": ["user"]}, 0, ["OSError", errno.EINVAL, "uid"]),
    "gid not mapped": ({"user": 0, "group": 5, "extra_groups": [], "namespaces": ["user"]}, 0, ["OSError", errno.EINVAL, "gid"]),
    "group not mapped": (
        {"user": 0, "group": 0, "extra_groups": [5], "namespaces": ["user"]},
        0,
        ["OSError", errno.EINVAL, "groups"],
    ),
    "maps of others": (
        {"namespaces": {"user": {"users": [(0, 1, 1)]}}, "user": 0},
        65534,
        ["PermissionError", errno.EPERM, "namespaces"],
    ),
    "maps of too many": (
        {"namespaces": {"user": {"groups": [(0, 65534, 1), (1, 5, 1)]}}, "group": 0},
        65534,
        ["PermissionError", errno.EPERM, "namespaces"],
    ),
    "namespace without rights": ({"namespaces": ["net"]}, 65534, ["PermissionError", errno.EPERM, "namespaces"]),
    "limit above the hard one": (
        {"rlimits": {7: (2000, 2000)}, "caps": ()},
        65534,
        ["PermissionError", errno.EPERM, "rlimits"],
    ),
    "real time": ({"scheduler": (1, 50), "caps": ()}, 65534, ["PermissionError", errno.EPERM, "scheduler"]),
    "more important": ({"nice": -5, "caps": ()}, 65534, ["PermissionError", errno.EACCES, "nice"]),
    "another user": ({"user": 1}, 65534, ["PermissionError", errno.EPERM, "gid"]),
    "another uid": ({"user": 1, "group": 65534, "extra_groups": []}, 65534, ["PermissionError", errno.EPERM, "uid"]),
    "other groups": ({"extra_groups": [5]}, 65534, ["PermissionError", errno.EPERM, "verify-drop"]),
    "capability that we lack": ({"caps": ["net_raw"]}, 65534, ["PermissionError", errno.EPERM, "bounding"]),
    "securebits without rights": ({"securebits": ["noroot"]}, 65534, ["PermissionError", errno.EPERM, "securebits"]),
    "no processor": ({"cpu_affinity": [4000], "user": 65534}, 0, ["OSError", errno.EINVAL, "affinity"]),
    "no terminal": ({"controlling_terminal": 0, "start_new_session": True, "user": 65534}, 0, ["OSError", errno.ENOTTY, "terminal"]),
    "group of another session": ({"process_group": 1, "user": 65534}, 0, ["PermissionError", errno.EPERM, "process-group"]),
    "no cgroup": ({"cgroup": "/tmp"}, 0, ["OSError", errno.EOPNOTSUPP, "cgroup"]),
    "program of root": ({"user": 65534}, 0, ["PermissionError", errno.EACCES, "exec"]),
    "program that is written to": ({"user": 0, "group": 0, "caps": ()}, 0, ["OSError", errno.ETXTBSY, "exec"]),
}


@BOTH
@pytest.mark.parametrize("name", REAL)
def test_failure_for_good_reason(tmp_path, strategy, name):
    """What the kernel refuses arrives as that, at its stage, and nothing has run or is left."""
    options, uid, expected = REAL[name]
    mark = tmp_path / "mark"
    target = tmp_path / "program"
    target.write_bytes(Path("/usr/bin/touch").read_bytes())
    target.chmod(0o700 if name == "program of root" else 0o755)
    helpers.make_readable(tmp_path)
    out = helpers.run_snippet(
        """
import prctl, resource
stdin = os.open("/dev/null", os.O_RDONLY)
if name == "program that is written to":
    writer = os.open(target, os.O_WRONLY)
if "limit" in name:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    prctl.set_dumpable(True)  # as a process that was nobody's from the start
from safespawn import _launcher
_launcher.hold()
safespawn.run(["/bin/true"])
before = sorted(os.listdir("/proc/self/fd"))
namespaces = options.get("namespaces")
if isinstance(namespaces, dict):
    options["namespaces"] = {"user": {kind: [tuple(line) for line in lines] for kind, lines in namespaces["user"].items()}}
if "rlimits" in options:
    options["rlimits"] = {int(number): tuple(limit) for number, limit in options["rlimits"].items()}
try:
    safespawn.run([target, mark], strategy=strategy, stdin=stdin, **options)
except OSError as problem:
    out["told"] = [type(problem).__name__, problem.errno, problem.stage]
    out["report"] = [problem.report.outcome, problem.report.stage, problem.report.errno, problem.report.strategy]
out["same descriptors"] = sorted(os.listdir("/proc/self/fd")) == before
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    out["no child"] = True
""",
        name=name,
        options=options,
        uid=uid,
        strategy=strategy,
        target=str(target),
        mark=str(mark),
    )
    assert out == {
        "told": expected,
        "report": ["failed", expected[2], expected[1], strategy],
        "same descriptors": True,
        "no child": True,
    }
    assert not mark.exists()


#: What leaves no room for a launcher.
NO_ROOM = {
    "no memory file": "sandbox.NUMBERS['memfd_create'] = memfd_create; sandbox.answer({'memfd_create': 38})",
    "refused memory file": "sandbox.NUMBERS['memfd_create'] = memfd_create; sandbox.answer({'memfd_create': 1})",
    "no files": "limit(resource.RLIMIT_FSIZE, 0)",
    "small files": "limit(resource.RLIMIT_FSIZE, 100)",
    "files smaller than the plan": "limit(resource.RLIMIT_FSIZE, 4096)",
    "a low limit of descriptors": "limit(resource.RLIMIT_NOFILE, 15)",
    "descriptors for a child": "fill(2)",
    "descriptors for a child and a page": "fill(3)",
}


@pytest.mark.parametrize("name", NO_ROOM)
def test_launcher_that_cannot_be_prepared(name):
    """Where there is no room for a launcher the child is forked, and we are not killed; by name it is refused."""
    out = helpers.run_snippet(
        """
import resource, sandbox
from safespawn import _launcher
memfd_create = 319 if os.uname().machine == "x86_64" else 279
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
kept = {}

def limit(number, value):
    kept[number] = resource.getrlimit(number)
    resource.setrlimit(number, (value, kept[number][1]))

def fill(free):
    # The launcher's own descriptor lies above the limit, and the listing has one.
    limit(resource.RLIMIT_NOFILE, 100)
    while len(os.listdir("/proc/self/fd")) < 102 - free:
        taken.append(os.dup(0))

def run(**more):
    done = safespawn.run(["/bin/sh", "-c", "exit $(/usr/bin/id -u | cut -c 4-)"], user=65534, group=65534,
                         env={"BIG": "x" * 5000, "PATH": "/usr/bin"}, **more)
    return [done.returncode, done.report.strategy]

taken = []
_launcher.hold()
exec(act)
out["now"] = run()
try:
    run(strategy="launcher")
except safespawn.UnsafeSpawn as problem:
    out["refused"] = problem.guard
for fd in taken:
    os.close(fd)
for number, was in kept.items():
    resource.setrlimit(number, was)
if kept:
    out["then"] = run()[1]
""",
        act=NO_ROOM[name],
    )
    assert out.pop("then", "launcher") == "launcher"
    # With one descriptor too few nobody can look whether we are alone, either.
    assert out.pop("refused") in ("drop-apart", "alone-or-apart")
    assert out == {"now": [34, "fork"]}


#: Files that lie under the number of the plan when the launcher looks, and are not the plan.
FORGERIES = ["empty", "cut", "longer", "not-sealed", "half-sealed", "plan-of-another-spawn", "on-disk", "directory", "/dev/zero"]


@pytest.mark.parametrize("how", FORGERIES)
def test_plan_that_is_not_the_one_that_was_written(in_hooks, tmp_path, how):
    """What is not whole, not sealed, or another spawn's plan, is refused, and nothing has run."""
    mark = tmp_path / "mark"
    out = in_hooks(
        TELL
        + """
def plan():
    return next(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")
                and "memfd:safespawn-plan" in os.readlink(f"/proc/self/fd/{fd}"))

def sealed(text, seals):
    fd = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.write(fd, text)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd

ALL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

def other(text):
    if how == "empty":
        return sealed(b"", ALL)
    if how == "cut":
        return sealed(text[:-1], ALL)
    if how == "longer":
        return sealed(text + b"\\0", ALL)
    if how == "not-sealed":
        return sealed(text, 0)
    if how == "half-sealed":
        return sealed(text, ALL & ~fcntl.F_SEAL_WRITE)
    if how == "plan-of-another-spawn":
        return sealed(old, ALL)
    if how == "on-disk":
        with open(place, "wb") as file:
            file.write(text)
        return os.open(place, os.O_RDONLY)
    return os.open("/tmp" if how == "directory" else how, os.O_RDONLY)

def text_of(fd):
    return os.pread(fd, os.fstat(fd).st_size, 0)

# The parent itself waits, with the plan written and no child there yet.
parked = Parked(["/bin/true"], "clone", **nobody)
old = text_of(plan())
out["first"] = parked.end()["strategy"]
parked = Parked(["/usr/bin/touch", mark], "clone", **nobody)
fd = plan()
fake = other(text_of(fd))
os.dup2(fake, fd, inheritable=False)
os.close(fake)
out["came"] = parked.end()
out["then"] = tell(["/bin/true"], **nobody)[:2]
out["left"] = left()
""",
        how=how,
        mark=str(mark),
        place=str(tmp_path / "place"),
    )
    assert out == {
        "first": "launcher",
        "came": {"raised": "OSError", "errno": errno.EPROTO, "stage": "plan"},
        "then": ["ran", "launcher"],
        "left": CLEAN,
    }
    assert not mark.exists()


# ------------------------------------------------------------- killed, stopped


def test_launcher_killed_at_every_step(in_hooks, tmp_path):
    """SIGKILL at any step but the last is killed-before-exec with that step; at the last there is doubt."""
    mark = tmp_path / "mark"
    out = in_hooks(
        TELL
        + """
out["told"] = []
for name in names:
    hooks.signal_stage, hooks.signal = stage(name), signal.SIGKILL
    told = tell(["/usr/bin/touch", mark], strategy="launcher", **nobody)
    out["told"].append([told[0], told[2], *told[4:6], told[7]] if name != "exec" else told)
out["left"] = left()
""",
        names=["birth", *OWN, *COMMON],
        mark=str(mark),
    )
    assert out["told"][:-1] == [
        ["KilledBeforeExec", name, "killed-before-exec", name, "launcher"] for name in ["birth", *OWN, *COMMON[:-1]]
    ]
    assert out["told"][-1] == ["ran", "launcher", UNCONFIRMED]
    assert out["left"] == CLEAN
    assert not mark.exists()


@pytest.mark.parametrize("by", ["root", "target"])
def test_launcher_killed_from_outside(in_hooks, tmp_path, by):
    """Killed by another process while it waits at a step, it is told as that too."""
    mark = tmp_path / "mark"
    names = ["plan", "signals", "uid", "exec"] if by == "root" else ["caps", "verify-drop", "exec"]
    out = in_hooks(
        TELL
        + """
out["told"] = []
for name in names:
    parked = Parked(["/usr/bin/touch", mark], name, **nobody)
    subprocess.run(["/bin/kill", "-9", str(parked.pid)], check=True, **(nobody if by == "target" else {}))
    out["told"].append(parked.end(go_on=False))
out["left"] = left()
""",
        names=names,
        mark=str(mark),
        by=by,
    )
    assert out["told"][:-1] == [
        {"raised": "KilledBeforeExec", "errno": errno.ECANCELED, "stage": name} for name in names[:-1]
    ]
    assert out["told"][-1] == {"output": "", "code": -signal.SIGKILL, "strategy": "launcher"}
    assert out["left"] == CLEAN
    assert not mark.exists()


def test_program_that_is_killed_at_once_has_run(tmp_path):
    """A program whose first act is to die is one that ran, however soon the parent looks."""
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text("#include <signal.h>\nint main(void) { return raise(SIGKILL); }\n")
    subprocess.run(["cc", "-static", "-O1", "-o", program, source], check=True)
    helpers.make_readable(tmp_path)
    out = helpers.run_snippet(
        """
codes = set()
for i in range(300):
    done = safespawn.run([program], user=65534, group=65534, strategy="launcher")
    codes.add((done.returncode, done.report.outcome))
out["codes"] = sorted(codes)
""",
        program=str(program),
    )
    assert out == {"codes": [[-9, "exec"]]}


def test_launcher_stopped_at_every_step_is_bounded(in_hooks, tmp_path):
    """Stopped at any step, it is killed at the deadline and told as timed-out, and nothing is left."""
    mark = tmp_path / "mark"
    out = in_hooks(
        TELL
        + """
out["told"] = []

def stopped(name, deadline):
    hooks.signal_stage, hooks.signal = stage(name), signal.SIGSTOP
    start = time.monotonic()
    told = tell(["/usr/bin/touch", mark], strategy="launcher", deadline=deadline, **nobody)
    if told[2] != name and deadline < 10:  # it was over before the launcher came to the step
        return stopped(name, 2 * deadline)
    return [told[0], told[2], told[4], time.monotonic() - start < 30]

for name in names:
    out["told"].append(stopped(name, 0.05))
out["left"] = left()
""",
        names=["birth", *OWN, *COMMON],
        mark=str(mark),
    )
    assert out["told"] == [["SpawnTimeout", name, "timed-out", True] for name in ["birth", *OWN, *COMMON]]
    assert out["left"] == CLEAN
    assert not mark.exists()


@pytest.mark.parametrize("by", ["itself", "target"])
@BOTH
def test_launcher_that_is_stopped_is_bounded_without_being_asked(in_hooks, strategy, by):
    """A child that has become somebody else, who stops it, holds us for the bound that every such child has."""
    out = in_hooks(
        TELL
        + """
from safespawn import _spawn
out["told"] = []

def stopped(name, window):
    _spawn.DROP_WINDOW = window
    start, is_stopped = time.monotonic(), True
    if by == "itself":
        hooks.signal_stage, hooks.signal = stage(name), signal.SIGSTOP
        raised, _, at, *_ = tell(["/bin/true"], strategy=strategy, **nobody)
    else:
        parked = Parked(["/bin/true"], name, wait=False, strategy=strategy, **nobody)
        is_stopped = parked.comes() and parked.pid > 0
        is_stopped = is_stopped and not subprocess.run(["/bin/kill", "-STOP", str(parked.pid)], **nobody).returncode
        parked.end(go_on=False)
        raised, at = parked.came.get("raised"), parked.came.get("stage")
    if (at != name or not is_stopped) and window < 10:  # it was over before the child came to the step, or they to it
        return stopped(name, 2 * window)
    return [raised, at, is_stopped, time.monotonic() - start < 30]

for name in names:
    out["told"].append(stopped(name, 0.3))
out["left"] = left()
""",
        names=["caps", "verify-drop", "exec"],
        strategy=strategy,
        by=by,
    )
    assert out == {
        "told": [["SpawnTimeout", name, True, True] for name in ("caps", "verify-drop", "exec")],
        "left": CLEAN,
    }


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGCHLD", "SIGRTMIN", "SIGTSTP"])
def test_signal_that_waits_for_the_launcher(in_hooks, name):
    """What came while signals were held is delivered as the last step: it kills before the exec, or not at all."""
    out = in_hooks(
        TELL
        + """
hooks.signal_stage, hooks.signal = stage("session"), getattr(signal, name)
seen = []
if name != "SIGTSTP":
    signal.signal(getattr(signal, name), lambda *a: seen.append(os.getpid() == us))
us = os.getpid()
out["told"] = tell(["/bin/true"], strategy="launcher", **nobody)[:3]
out["handled elsewhere"] = False in seen
out["left"] = left()
""",
        name=name,
    )
    harmless = name in ("SIGCHLD", "SIGTSTP")
    expected = ["ran", "launcher"] if harmless else ["KilledBeforeExec", errno.ECANCELED, "mask"]
    assert out["told"][: len(expected)] == expected
    assert (out["handled elsewhere"], out["left"]) == (False, CLEAN)


# --------------------------------------------------------------- the parent ends


@BOTH
@pytest.mark.parametrize("at", ["namespaces", "level"])
def test_parent_that_dies_is_not_waited_for(in_hooks, tmp_path, strategy, at):
    """A child that has to ask its parent for the maps of its user namespace ends when there is none."""
    if (strategy, at) == ("fork", "level"):
        at = "signals"
    mark = tmp_path / "mark"
    out = in_hooks(
        helpers.LAUNCHED
        + """
tell, told = os.pipe()
middle = os.fork()
if middle == 0:
    os.close(release)
    hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage(at), said, go
    safespawn.run(["/usr/bin/touch", mark], namespaces=["user"], strategy=strategy)
    os._exit(1)
os.close(told)
assert select.select([ready], [], [], 30)[0]
child = int(open(f"/proc/{middle}/task/{middle}/children").read().split()[0])
pidfd = os.pidfd_open(child)
os.kill(middle, signal.SIGKILL)
os.waitpid(middle, 0)
poll = select.poll()
poll.register(pidfd, select.POLLIN)
out["waits at the step"] = poll.poll(0) == []
os.write(release, b".")
out["ended"] = poll.poll(60_000) != []
if not out["ended"]:
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
""",
        strategy=strategy,
        at=at,
        mark=str(mark),
    )
    assert out == {"waits at the step": True, "ended": True}
    assert not mark.exists()


@BOTH
def test_parent_that_dies_takes_the_launcher_along(in_hooks, tmp_path, strategy):
    """With pdeathsig a child whose parent has gone before it could be set runs nothing."""
    mark = tmp_path / "mark"
    out = in_hooks(
        helpers.LAUNCHED
        + """
middle = os.fork()
if middle == 0:
    hooks.park_stage, hooks.ready_fd, hooks.go_fd = stage("pdeathsig"), said, go
    safespawn.run(["/usr/bin/touch", mark], caps=(), pdeathsig=9, strategy=strategy)
    os._exit(1)
assert select.select([ready], [], [], 30)[0]
child = int(open(f"/proc/{middle}/task/{middle}/children").read().split()[0])
pidfd = os.pidfd_open(child)
os.kill(middle, signal.SIGKILL)
os.waitpid(middle, 0)
os.write(release, b".")
poll = select.poll()
poll.register(pidfd, select.POLLIN)
out["ended"] = poll.poll(60_000) != []
if not out["ended"]:
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
""",
        strategy=strategy,
        mark=str(mark),
    )
    assert out == {"ended": True}
    assert not mark.exists()


# ----------------------------------------------- credentials change meanwhile


@pytest.mark.parametrize("tries", [0, 4])
@pytest.mark.parametrize("strategy", ["auto", "launcher", "fork"])
def test_change_of_credentials_that_changes_none_of_ours(in_hooks, strategy, tries):
    """A launcher that was born before a change of credentials runs nothing after it: a new look, and anew."""
    out = in_hooks(
        TELL
        + """
from safespawn import _spawn
_spawn.EPOCH_TRIES = tries
parked = Parked(["/usr/bin/id", "-G"], "uid", strategy=strategy, user=65534, group=65534, extra_groups=[7])
with guards.credential_change():
    pass
out["came"] = parked.end()
out["why"] = [why.partition(":")[0] for why in parked.reasons]
out["left"] = left()
""",
        strategy=strategy,
        tries=tries,
    )
    assert out["left"] == CLEAN
    if not tries:
        assert out["came"] == {"raised": "RaceDetected", "errno": errno.ESTALE, "stage": "epoch"}
    elif strategy == "launcher":
        assert (out["came"]["raised"], out["why"][-1]) == ("UnsafeSpawn", "epoch-agrees")
    else:
        assert out["came"] == {"output": "65534 7\n", "code": 0, "strategy": "fork"}
        assert "epoch-agrees" in out["why"]


@BOTH
@pytest.mark.parametrize("at", ["level", "uid", "exec"])
def test_change_of_our_own_credentials_is_a_race(in_hooks, tmp_path, strategy, at):
    """What the decision and its record rest on has changed: race-detected, by whatever way, and nothing has run.

    At the very last step there is nothing any more that would look.
    """
    if (strategy, at) == ("fork", "level"):
        at = "signals"
    mark = tmp_path / "mark"
    out = in_hooks(
        TELL
        + """
parked = Parked(["/usr/bin/touch", mark], at, caps=["chown", "dac_override"], strategy=strategy)
os.setegid(1234)
os.setegid(1235)
out["came"] = parked.end()
out["left"] = left()
""",
        strategy=strategy,
        at=at,
        mark=str(mark),
    )
    assert out["left"] == CLEAN
    if at == "exec":
        assert out["came"]["code"] == 0
    else:
        assert out["came"] == {"raised": "RaceDetected", "errno": errno.ESTALE, "stage": "epoch"}
        assert not mark.exists()


@pytest.mark.parametrize("by", ["libc", "syscall"])
def test_change_does_not_wait_for_a_launcher(in_hooks, by):
    """A launcher is on nobody's memory: a change of credentials beside it goes through at once, in every thread."""
    out = in_hooks(
        TELL
        + """
guards.arm(wait=60)
parked = Parked(["/bin/true"], "uid", **nobody)
start = time.monotonic()
getattr(credchanges, "by_" + by)("setresgid", 1234, 1234, 1234)
out["at once"] = time.monotonic() - start < 30
out["waits"] = lock()
out["came"] = parked.end()
""",
        by=by,
    )
    assert (out["at once"], out["waits"]) == (True, [0, 0, False])
    if by == "libc":
        assert out["came"] == {"raised": "RaceDetected", "errno": errno.ESTALE, "stage": "epoch"}
    else:  # that thread's alone: the one that spawns is who it was, and begins anew
        assert out["came"] == {"output": "", "code": 0, "strategy": "fork"}
