"""One process for each environment: forked, put into it, and only then given safespawn to try.

    python tests/sandboxed.py NAME...      one line of JSON for each: {"environment": NAME, "seen": {CHECK: TEXT}}

The modules of the standard library are imported before the fork, so that an environment costs what its checks cost.
What is imported inside is ours, as a container would do it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import environments

#: By each, a program is started from one thread and beside another.
STRATEGIES = ("auto", "vfork", "clone", "fork", "posix_spawn", "launcher", "helper", "pool")
#: By each, one as another user.
BESIDE = ("auto", "vfork", "fork", "helper")
DROPPING = ("auto", "fork", "launcher", "helper")
SOMEBODY = {"user": 12345, "group": 12346, "extra_groups": []}


def _told(check: Callable[[], Any]) -> Any:
    """Return what a check says, or what it raised: a refusal by its guard, an error by its number and stage."""
    try:
        return check()
    except Exception as problem:  # noqa: BLE001 - whatever is raised is compared
        if guard := getattr(problem, "guard", None):
            return f"{type(problem).__name__} {guard} <{problem}>"
        if isinstance(problem, OSError) and problem.errno is not None:
            stage = getattr(problem, "stage", None)
            number = errno.errorcode.get(problem.errno, str(problem.errno))
            return f"{type(problem).__name__} {number}" + (f" at {stage}" if stage else "") + f" <{problem}>"
        return f"{type(problem).__name__}: {problem}"


@contextlib.contextmanager
def _beside_a_thread() -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _until_alone(thread.native_id)


def _until_alone(tid: int | None) -> None:
    """Wait until a thread that was joined is no task any more; without /proc too."""
    while tid is not None:
        try:
            os.sched_getaffinity(tid)
        except ProcessLookupError:
            return
        os.sched_yield()


class Trial:
    """What is tried inside; each method that does not begin with a line is a check and says what it saw."""

    def __init__(self) -> None:
        import safespawn

        self.safespawn = safespawn

    def _one(self, strategy: str, **options: Any) -> str:
        done = self.safespawn.run(
            ["/bin/sh", "-c", 'echo "$A $1"', "sh", "word"], env={"A": "variable"}, capture_output=True, text=True,
            strategy=strategy, **options,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "variable word\n", ""), done
        return f"{done.report.strategy}, {done.report.proof}"

    def _dropped(self, strategy: str) -> str:
        done = self.safespawn.run(
            ["/usr/bin/id", "-u"], capture_output=True, text=True, strategy=strategy, **SOMEBODY
        )
        assert (done.returncode, done.stdout) == (0, "12345\n"), done
        return str(done.report.strategy)

    def _helping(self, strategy: str) -> contextlib.AbstractContextManager[object]:
        if strategy not in ("helper", "pool"):
            return contextlib.nullcontext()
        return self.safespawn.Helper(pool=2 if strategy == "pool" else 0)

    def _by(self, strategy: str, call: Callable[[str], str]) -> str:
        def with_helper() -> str:
            with self._helping(strategy):
                return call(strategy)

        return _told(with_helper)

    def threads(self) -> str:
        with _beside_a_thread():
            return "yes"

    def lock(self) -> str:
        lock = self.safespawn.guards.status()["lock"]
        return ": ".join([str(lock["state"]), *map(str, lock["problems"])])

    def by(self) -> dict[str, str]:
        return {strategy: self._by(strategy, self._one) for strategy in STRATEGIES}

    def by_beside(self) -> dict[str, str]:
        with _beside_a_thread():
            return {strategy: self._by(strategy, self._one) for strategy in BESIDE}

    def reasons_beside(self) -> str:
        with _beside_a_thread():
            return str(self.safespawn.run(["/bin/true"]).report.reasons[0])

    def as_somebody(self) -> dict[str, str]:
        return {strategy: self._by(strategy, self._dropped) for strategy in DROPPING}

    def bounded(self) -> str:
        return self._one("auto", deadline=20)

    def many(self) -> str:
        ran = self.safespawn.spawn_many([["/bin/sh", "-c", f"exit {n}"] for n in range(6)])
        ways = sorted({one.report.strategy for one in ran})
        assert [one.wait() for one in ran] == list(range(6))
        return " ".join(ways)

    def subprocess_face(self) -> str:
        from safespawn import subprocess as face

        assert face.check_output("cat; exit 0", shell=True, input=b"in") == b"in"
        with face.Popen(["/bin/sh", "-c", "kill -9 $$"]) as process:
            return f"{process.wait()} {process.report.strategy}"

    def asyncio_face(self) -> str:
        from safespawn import aio

        async def one() -> int:
            process = await aio.create_subprocess_exec("/bin/sh", "-c", "exit 3")
            return await process.wait()

        return str(asyncio.run(one()))

    def installed(self) -> str:
        with self.safespawn.installed():
            codes = [
                subprocess.run(["/bin/sh", "-c", "exit 4"], check=False).returncode,
                os.waitstatus_to_exitcode(os.system("exit 5")),
                os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", "exit 6"], {}), 0)[1]),
            ]
        return str(codes)

    def killed_with_its_tree(self) -> str:
        process = self.safespawn.spawn(
            ["/bin/sh", "-c", "sleep 1000 & echo; wait"], stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        try:
            while True:
                try:
                    process.kill_tree()
                    break
                except BlockingIOError:  # what it says on a machine too busy to look twice in its bound: asked again
                    continue
        finally:  # where it is refused, others end it
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            process.stdout.read()  # the end: nobody has the pipe any more
            process.stdout.close()
        return str(code)

    def timed_out(self) -> str:
        try:
            self.safespawn.run(["/bin/sleep", "1000"], timeout=0.05)
        except subprocess.TimeoutExpired:
            return "TimeoutExpired"
        return "not at all"

    def ledger(self) -> str:
        place = environments.writable()
        if place is None:
            return "nowhere to write"
        from safespawn import audit

        path = Path(tempfile.mkdtemp(dir=place), "ledger")
        with audit.open(path, keys=""):
            self.safespawn.run(["/bin/true"])
        events = [json.loads(line)["ev"] for line in path.read_text("ascii").splitlines()]
        return " ".join(events) + (" verified" if audit.verify(path).ok else " NOT VERIFIED")

    def ledger_refused(self) -> str:
        """Say what comes of a ledger that must be kept and cannot: nothing is started."""
        from safespawn import audit

        with audit.open("/nowhere/ledger", mode="require", keys=""):
            return "opened"

    def doctor(self) -> str:
        from safespawn import cli

        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            code = cli.main(["doctor"])
        missing = [line.split()[0] if line.split()[0] != "shared" else "memory" for line in shown.getvalue().splitlines() if " NO  " in line]
        return f"{code}: {' '.join(missing) or 'all'}"

    def left(self) -> str:
        """Say whether a child is left."""
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
            return "a program" if not pid else f"an orphan, {os.waitstatus_to_exitcode(status)}"
        except ChildProcessError:
            return "nothing"


def seen() -> dict[str, object]:
    """Make all checks, in their order."""
    trial = Trial()
    told: dict[str, object] = {}
    for name in vars(Trial):
        if name.startswith("_"):
            continue
        check = getattr(trial, name)
        told[name] = _told(check)
    return told


def in_environment(name: str) -> dict[str, object]:
    """Fork, enter, try, and return what came of it."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(read)
            os.setsid()
            warnings.simplefilter("error")
            environments.ENVIRONMENTS[name].enter()
            with open(write, "w", encoding="ascii") as answer:
                json.dump(seen(), answer)
            code = 0
        except BaseException:  # noqa: BLE001 - told by stderr and the code
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    with open(read, encoding="ascii") as answer:
        text = answer.read()
    # Before it is reaped, so that the number is its own: where no signal goes by pidfd, programs are left.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"{name}: status {status}")
    told: dict[str, object] = json.loads(text)
    return told


if __name__ == "__main__":
    signal.alarm(300)
    for name in sys.argv[1:]:
        print(json.dumps({"environment": name, "seen": in_environment(name)}), flush=True)
