"""``safespawn.aio``: asyncio's functions and classes on guarded spawns, in loops of threads and in uvloop's."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import aio, audit, subprocess

#: The kernel's workers of an io_uring are tasks of ours, and stay for seconds: what looks for threads sees them.
os.environ["UV_USE_IO_URING"] = "0"
uvloop = pytest.importorskip("uvloop")

Main = Callable[[], Coroutine[Any, Any, Any]]
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module", autouse=True)
def uvloop_has_its_own() -> None:
    """What libuv opens once for the process is open before anything is counted."""

    async def main() -> None:
        process = await aio.create_subprocess_exec("true", stdin=aio.PIPE)
        await process.communicate()

    loop = uvloop.new_event_loop()
    loop.run_until_complete(main())
    loop.close()


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    """Runs a coroutine function in a loop of either kind, and closes that."""

    def call(main: Main) -> Any:
        loop = LOOPS[request.param]()
        try:
            return loop.run_until_complete(main())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return call


def test_signatures_are_those_of_asyncio() -> None:
    """Both take what asyncio's take."""
    import inspect

    for name in ("create_subprocess_exec", "create_subprocess_shell"):
        wanted = inspect.signature(getattr(asyncio, name)).parameters
        got = inspect.signature(getattr(aio, name)).parameters
        assert [(one.name, one.kind, one.default) for one in got.values()] == [
            (one.name, one.kind, one.default) for one in wanted.values()
        ]


def test_program_is_fed_read_and_waited_for(run: Callable[[Main], Any]) -> None:
    """communicate() gives the output, and the process is one of asyncio's."""

    async def main() -> Any:
        process = await aio.create_subprocess_exec("cat", stdin=aio.PIPE, stdout=aio.PIPE, stderr=aio.PIPE)
        assert isinstance(process, asyncio.subprocess.Process)
        out, err = await process.communicate(b"x" * 300000)
        return len(out), err, process.returncode, await process.wait()

    assert run(main) == (300000, b"", 0, 0)


def test_shell_command(run: Callable[[Main], Any]) -> None:
    """A command of the shell runs, with its exit code."""

    async def main() -> Any:
        process = await aio.create_subprocess_shell("echo out; echo err >&2; exit 3", stdout=aio.PIPE, stderr=aio.STDOUT)
        return await process.communicate(), process.returncode

    assert run(main) == ((b"out\nerr\n", None), 3)


def test_options_of_ours_and_the_record(run: Callable[[Main], Any], tmp_path: Path) -> None:
    """Options are taken, start and end are in the ledger."""

    async def main() -> Any:
        process = await aio.create_subprocess_exec("sh", "-c", "umask", stdout=aio.PIPE, umask=0o31, deadline=30)
        return (await process.communicate())[0]

    with audit.open(tmp_path / "ledger"):
        assert run(main) == b"0031\n"
    events = [one["ev"] for one in helpers.records(tmp_path / "ledger")]
    assert events.count("spawn.started") == events.count("spawn.exit") == 1


def test_missing_program_is_an_error_and_leaves_nothing(run: Callable[[Main], Any]) -> None:
    """FileNotFoundError comes out of the call; the fixture looks for what is left."""

    async def main() -> Any:
        with pytest.raises(FileNotFoundError) as raised:
            await aio.create_subprocess_exec("nowhere-at-all", stdin=aio.PIPE, stdout=aio.PIPE)
        return raised.value.report.outcome

    assert run(main) == "failed"


def test_signals_go_by_pidfd(run: Callable[[Main], Any]) -> None:
    """terminate(), kill() and send_signal() reach the program, and nobody when it has ended."""

    async def main() -> Any:
        codes = []
        for act in ("terminate", "kill"):
            process = await aio.create_subprocess_exec("sleep", "100")
            getattr(process, act)()
            codes.append(await process.wait())
        process = await aio.create_subprocess_exec("sleep", "100")
        process.send_signal(signal.SIGINT)
        codes.append(await process.wait())
        process._transport._program.pid = os.getpid()  # as if its number were ours
        try:
            process.kill()
        except ProcessLookupError:
            pass
        return codes

    assert run(main) == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGINT]


@pytest.mark.parametrize("name", ["universal_newlines", "text", "shell", "bufsize", "encoding", "errors"])
def test_what_asyncio_refuses_is_refused(name: str) -> None:
    """Text and buffers are none of its business."""

    async def main() -> None:
        await aio.create_subprocess_exec("true", **{name: "x"})

    with pytest.raises(ValueError, match=name):
        asyncio.run(main())


def test_command_of_the_shell_must_be_text() -> None:
    """A list is no command."""

    async def main() -> None:
        await aio.create_subprocess_shell(["true"])  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="list"):
        asyncio.run(main())


def test_no_thread_and_no_watcher_is_needed() -> None:
    """In a thread with a loop of its own it works without a child watcher, and starts no thread."""
    out = helpers.run_snippet(
        """
        import asyncio, threading
        from safespawn import aio
        threads = []
        async def main():
            process = await aio.create_subprocess_exec("sh", "-c", "exit 4")
            threads.append(threading.active_count())
            return await process.wait()
        def work():
            loop = asyncio.new_event_loop()
            out["code"] = loop.run_until_complete(main())
            loop.close()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        out["threads"] = threads
        """
    )
    assert out == {"code": 4, "threads": [2]}


def test_end_is_noticed_whoever_reaps() -> None:
    """A wait for any child elsewhere in the process takes the zombie; the loop learns of the end all the same."""

    async def main() -> Any:
        process = await aio.create_subprocess_exec("sleep", "100")
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED)
        return await asyncio.wait_for(process.wait(), 30)

    from safespawn import _probe

    assert asyncio.run(main()) == (-signal.SIGKILL if _probe.kernel_version() >= (6, 15) else 0)


def test_time_out_of_a_wait_leaves_the_program(run: Callable[[Main], Any]) -> None:
    """A wait that is cancelled can be made again."""

    async def main() -> Any:
        process = await aio.create_subprocess_exec("cat", stdin=aio.PIPE)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 0.05)
        process.stdin.close()
        return await process.wait()

    assert run(main) == 0


def test_hundred_at_once(run: Callable[[Main], Any]) -> None:
    """Each has its own code."""

    async def one(number: int) -> int:
        process = await aio.create_subprocess_exec("sh", "-c", f"exit {number}")
        return await process.wait()

    async def main() -> Any:
        return await asyncio.gather(*map(one, range(100)))

    assert run(main) == list(range(100))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_loop_that_is_closed_early_leaves_no_descriptor() -> None:
    """A program that outlives its loop is killed with its transport, as asyncio does."""
    import gc

    async def main() -> Any:
        return await aio.create_subprocess_exec("sleep", "100")

    loop = asyncio.new_event_loop()
    process = loop.run_until_complete(main())
    pidfd = os.pidfd_open(process.pid)
    loop.close()
    del process
    gc.collect()
    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)
    subprocess.run(["true"])  # which reaps those that were dropped


def test_refused_start_is_raised() -> None:
    """A guard's refusal comes out of the call."""

    async def main() -> None:
        await aio.create_subprocess_exec("true", digest="sha256:" + "0" * 64)

    with pytest.raises(safespawn.UnsafeSpawn):
        asyncio.run(main())
