"""A process that was taken over, where things go wrong: unknown arguments, handlers that raise, numbers that come again."""

from __future__ import annotations

from pathlib import Path

import pytest

import helpers
from test_takeover import taken

# --------------------------------------------------------------- what is not known to us


def test_arguments_that_are_not_known_go_past_us_and_are_recorded(tmp_path: Path) -> None:
    """A caller of fork_exec with things of its own is left to the original, and that is a bypass."""
    out = taken(
        """
        import _posixsubprocess
        class Number:  # an id that only C code understands
            def __index__(self):
                return os.getuid()
        subprocess.run(["/bin/true"])
        given = []
        original = subprocess.Popen._execute_child
        out["code"] = subprocess.Popen(["/bin/true"], umask=-1).wait()
        read, write = os.pipe()
        more = [] if sys.version_info < (3, 11) else [-1]
        last = [None] if sys.version_info < (3, 11) or sys.version_info >= (3, 14) else [None, False]
        pid = _posixsubprocess.fork_exec(
            [b"true"], [b"/bin/true"], True, (write,), None, None, -1, -1, -1, -1, -1, -1, read, write, False, False,
            *more, None, None, Number(), -1, *last,
        )
        out["status"] = os.waitpid(pid, 0)[1]
        out["bypasses"] = [one["event"] for one in told("spawn.bypass", "bypass")]
        """,
        tmp_path / "ledger",
    )
    assert (out["code"], out["status"]) == (0, 0)
    assert out["bypasses"] == ["_posixsubprocess.fork_exec"]


@pytest.mark.parametrize(
    "start",
    [
        "os.posix_spawn('/bin/true', ['true'], {}, scheduler=(None, os.sched_param(0)))",
        "os.posix_spawn('/bin/true', ['true'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, '/dev/fd/1', os.O_RDONLY, 0)])",
        "os.spawnv(os.P_WAIT, '/bin/true', [])",
    ],
)
def test_what_is_not_known_is_refused_under_a_policy(tmp_path: Path, start: str) -> None:
    """Where a policy holds nobody could say that it is kept: nothing is started."""
    (tmp_path / "safespawn.toml").write_text("[spawn]\nno_new_privs = true\n")
    helpers.make_readable(tmp_path)
    out = taken(
        f"""
        from safespawn import policy
        policy.apply(policy.load({str(tmp_path / "safespawn.toml")!r}))
        try:
            {start}
        except safespawn.UnsafeSpawn as problem:
            out["guard"] = problem.guard
        """
    )
    assert out == {"guard": "starts-taken"}


@pytest.mark.parametrize("face", ["subprocess", "safespawn.subprocess"])
def test_defaults_of_a_policy_are_not_lost_on_preexec_fn(tmp_path: Path, face: str) -> None:
    """What CPython's own fork would not give the child refuses the start."""
    (tmp_path / "safespawn.toml").write_text('[spawn]\numask = "077"\n')
    helpers.make_readable(tmp_path)
    out = taken(
        f"""
        import safespawn.subprocess
        warnings.simplefilter("ignore")
        from safespawn import policy
        policy.apply(policy.load({str(tmp_path / "safespawn.toml")!r}))
        try:
            {face}.run(["/bin/true"], preexec_fn=os.getpid)
        except safespawn.UnsafeSpawn as problem:
            out["guard"] = problem.guard
        """
    )
    assert out == {"guard": "child-raw-only"}


@pytest.mark.parametrize("event", ["os.fork", "os.exec"])
def test_hooks_that_refuse_a_fork_refuse_spawn(event: str) -> None:
    """An audit hook (PEP 578) that stopped os.spawnv by what that is made of still does."""
    out = taken(
        """
        def hook(seen, args):
            if seen == event:
                raise RuntimeError("no")
        sys.addaudithook(hook)
        try:
            out["code"] = os.spawnv(os.P_WAIT, "/bin/true", ["true"])
        except RuntimeError as problem:
            out["said"] = str(problem)
        """,
        event=event,
    )
    assert out == {"said": "no"}


# ------------------------------------------------------------------------- preexec_fn

#: A handler that raises while the child is in its preexec_fn: the parent waits for its pipe.
INTERRUPTED = """
warnings.simplefilter("ignore")
from safespawn import subprocess as ours
class Raised(BaseException):
    pass
def handler(*_):
    raise Raised
signal.signal(signal.SIGUSR1, handler)
parent = os.getpid()
import select
READ = {"x86_64": "0 ", "aarch64": "63 "}[os.uname().machine]
def tell():
    # Not earlier: what a handler raises in a hook of os.register_at_fork Python ignores.
    while not open(f"/proc/{parent}/syscall").read().startswith(READ):
        os.sched_yield()
    os.kill(parent, signal.SIGUSR1)
    select.select([gate], [], [], 60)
gate, opens = os.pipe()
os.set_inheritable(gate, True)
before = set(os.listdir("/proc/self/fd"))
try:
    made = eval(start)
except Raised:
    out["raised"] = True
os.write(opens, b"x")
import gc
gc.collect()
out["left"] = sorted(set(os.listdir("/proc/self/fd")) - before)
pids = [one["pid"] for one in told("spawn.started", "outcome")]
out["started"] = [one["confirmed"] for one in told("spawn.started", "outcome")]
out["failed"] = len(told("spawn.failed"))
if pids:
    os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)
safespawn.run(["/bin/true"])
out["exits"] = len(told("spawn.exit"))
try:
    os.waitpid(-1, os.WNOHANG)
    out["zombie"] = True
except ChildProcessError:
    out["zombie"] = False
"""


@pytest.mark.parametrize("module", ["subprocess", "ours"])
def test_handler_that_raises_while_preexec_fn_runs_loses_no_child(tmp_path: Path, module: str) -> None:
    """The program is told as started, unconfirmed, and it is reaped and its end recorded though nobody has it."""
    start = f"{module}.Popen(['/bin/true'], preexec_fn=tell, pass_fds=[gate])"
    out = taken(INTERRUPTED, tmp_path / "ledger", start=start)
    assert out["raised"] is True
    assert (out["started"], out["failed"], out["zombie"]) == ([False], 0, False)
    assert len(out["left"]) <= 1  # its pidfd, while it runs
    assert out["exits"] == 2


def test_child_that_ends_before_its_exec_is_not_confirmed(tmp_path: Path) -> None:
    """CPython's pipe closes when a preexec_fn ends the child: the record does not say that the program ran."""
    out = taken(
        """
        warnings.simplefilter("ignore")
        out["code"] = subprocess.run(["/bin/true"], preexec_fn=lambda: os._exit(7)).returncode
        subprocess.run(["/bin/true"], preexec_fn=os.getpid)
        out["confirmed"] = [one["confirmed"] for one in told("spawn.started", "outcome")]
        """,
        tmp_path / "ledger",
    )
    assert out == {"code": 7, "confirmed": [False, True]}


def test_start_of_a_preexec_fn_is_a_start_of_its_own(tmp_path: Path) -> None:
    """What a preexec_fn starts, in its forked child, goes through the guards and is recorded there."""
    out = taken(
        """
        warnings.simplefilter("ignore")
        from safespawn import subprocess as ours
        ours.run(["/bin/true", "outer"], preexec_fn=lambda: subprocess.call(["/bin/true", "inner"]))
        out["argv"] = sorted(one["argv"][-1] for one in told("spawn.intent", "what"))
        """,
        tmp_path / "ledger",
    )
    assert out["argv"] == ["inner", "outer"]


# ---------------------------------------------------------------------- children and ends


def test_number_that_comes_again_gets_no_record_of_another(tmp_path: Path) -> None:
    """A child that C code reaped, and whose number a fork gets, has its own end recorded."""
    if not Path("/proc/sys/kernel/ns_last_pid").exists():
        pytest.skip("needs ns_last_pid (CONFIG_CHECKPOINT_RESTORE)")
    out = taken(
        """
        libc = ctypes.CDLL(None)
        def again(pid):
            # The next process gets the number after that, if it is free: others may be faster.
            for _ in range(200):
                with open("/proc/sys/kernel/ns_last_pid", "w") as file:
                    file.write(str(pid - 1))
                forked = os.fork()
                if not forked:
                    os._exit(42)
                if forked == pid:
                    return True
                os.waitid(os.P_PID, forked, os.WEXITED)
            return False
        made = subprocess.Popen(["/bin/true"])
        libc.waitpid(made.pid, None, 0)
        out["again"] = again(made.pid)
        out["reaped"] = os.waitstatus_to_exitcode(os.wait()[1])
        out["codes"] = [one["code"] for one in told("spawn.exit", "exit")]
        made.returncode = 0
        """,
        tmp_path / "ledger",
    )
    assert (out["again"], out["reaped"]) == (True, 42)
    assert out["codes"] in ([0], [])  # before Linux 6.15 nobody knows


def test_no_start_is_lost_while_others_uninstall(tmp_path: Path) -> None:
    """Each start in a thread is recorded as guarded or as a bypass, whatever another thread does to the functions."""
    out = taken(
        """
        from safespawn.audit import _bypass
        ran, stop = [], threading.Event()
        def starter():
            while not stop.is_set():
                ran.append(subprocess.call(["/bin/true"]))
        threads = [threading.Thread(target=starter) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            safespawn.uninstall()
            safespawn.install()
        stop.set()
        for thread in threads:
            thread.join()
        out["ran"] = len(ran)
        out["told"] = len(told("spawn.intent")) + sum(_bypass.counts().values())
        """,
        tmp_path / "ledger",
    )
    assert out["told"] >= out["ran"]


#: Raises at one step of our code, an opcode.
TRACER = """
import itertools
def tracer(count):
    left = itertools.count(count, -1)
    def trace(frame, event, arg):
        frame.f_trace_opcodes = True
        if event == "opcode" and "safespawn" in frame.f_code.co_filename and next(left) == 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace
    return trace
"""

#: Raises at every nth step of a wait, again and again until it is done: no record and no descriptor may be lost.
AT_EVERY_STEP = TRACER + """
def wait(pid, step):
    sys.settrace(tracer(step))
    try:
        os.waitpid(pid, 0)
    except (KeyboardInterrupt, ChildProcessError):
        pass
    finally:
        sys.settrace(None)

subprocess.run(["/bin/true"])
before = set(os.listdir("/proc/self/fd"))
for step in range(first, 400, 7):
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT) if step % 2 else None
    wait(pid, step)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
subprocess.run(["/bin/true"])
out["left"] = sorted(set(os.listdir("/proc/self/fd")) - before)
out["lost"] = len(told("spawn.started")) - len(told("spawn.exit"))
"""


@pytest.mark.parametrize("first", range(3))
def test_interrupted_wait_loses_neither_record_nor_descriptor(tmp_path: Path, first: int) -> None:
    """Wherever a handler raises in a wait, the end of the child is recorded once and its pidfd closed."""
    out = taken(AT_EVERY_STEP, tmp_path / "ledger", first=first)
    assert out == {"left": [], "lost": 0}


#: As above, in a start with a preexec_fn: each intent has one ending, and no child and no descriptor is left.
STARTS_AT_EVERY_STEP = TRACER + """
import gc
warnings.simplefilter("ignore")
from safespawn import subprocess as ours
run = (subprocess if module == "subprocess" else ours).run
run(["/bin/true"], preexec_fn=os.getpid)
before = set(os.listdir("/proc/self/fd"))
for step in range(first, 4000, 61):
    sys.settrace(tracer(step))
    try:
        run(["/bin/true"], preexec_fn=os.getpid)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    gc.collect()
end = time.monotonic() + 30
while True:  # until those that nobody has are reaped
    ours.run(["/bin/true"])
    subprocess._cleanup()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        break
    assert time.monotonic() < end
out["left"] = sorted(set(os.listdir("/proc/self/fd")) - before)
of = {}
for one in records():
    of.setdefault(one["sid"], []).append(one["ev"])
out["unended"] = [events for sid, events in of.items() if sid and "spawn.intent" in events and len(events) < 2]
out["doubled"] = [events for sid, events in of.items() if sid and len(set(events)) < len(events)]
"""


@pytest.mark.parametrize("module", ["subprocess", "ours"])
@pytest.mark.parametrize("first", [0, 20, 40])
def test_interrupted_start_with_preexec_fn_has_one_ending(tmp_path: Path, module: str, first: int) -> None:
    """Wherever a handler raises, what was announced is ended by one record, and nothing is left."""
    out = taken(STARTS_AT_EVERY_STEP, tmp_path / "ledger", first=first, module=module)
    assert out == {"left": [], "unended": [], "doubled": []}


# ---------------------------------------------------------------- what the standard module would do


@pytest.mark.parametrize("option", ["user", "group"])
def test_saved_id_is_no_way_back_that_subprocess_has_not(option: str) -> None:
    """With a saved id of 0 alone setreuid(2) refuses it, and so do we, though setresuid(2) would take it."""
    out = helpers.run_snippet(
        """
        import subprocess, warnings
        from safespawn import subprocess as ours
        warnings.simplefilter("ignore")
        os.setresgid(1000, 1000, 0)
        os.setresuid(1000, 1000, 0)
        for name, module in (("standard", subprocess), ("ours", ours)):
            try:
                out[name] = module.run(["/usr/bin/id"], stdout=-3, **{option: 0}).returncode
            except PermissionError:
                out[name] = "refused"
        """,
        option=option,
    )
    assert out == {"standard": "refused", "ours": "refused"}


def test_poll_does_not_take_a_handlers_exception_for_an_end() -> None:
    """A handler's TimeoutError comes out of poll(); the program is not taken for one that has ended."""
    out = helpers.run_snippet(
        """
        from safespawn import subprocess
        def handler(*_):
            raise TimeoutError("mine")
        signal.signal(signal.SIGUSR1, handler)
        process = subprocess.Popen(["/bin/sleep", "100"])
        poll = process._handle.poll
        def interrupted():
            process._handle.poll = poll
            os.kill(os.getpid(), signal.SIGUSR1)
            return poll()
        process._handle.poll = interrupted
        try:
            process.poll()
        except TimeoutError as problem:
            out["said"] = str(problem)
        out["code"] = process.returncode
        process.kill()
        out["end"] = process.wait()
        """
    )
    assert out == {"said": "mine", "code": None, "end": -9}


def test_preexec_fn_where_the_kernel_reaps() -> None:
    """With SIGCHLD ignored a child may be gone before we have a descriptor of it: no wait lasts for ever."""
    out = helpers.run_snippet(
        """
        import warnings
        from safespawn import subprocess
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        out["codes"] = [subprocess.run(["/bin/true"], preexec_fn=os.getpid).returncode for _ in range(30)]
        """
    )
    assert out == {"codes": [0] * 30}
