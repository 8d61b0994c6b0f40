"""What a program of `safespawn.aio` has beside asyncio's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

from safespawn import aio


def test_report_is_that_of_the_start() -> None:
    """The report names the program that runs, and what was decided."""

    async def story() -> tuple[int, aio.Process]:
        process = await aio.create_subprocess_exec("true", strategy="fork")
        return await process.wait(), process

    code, process = asyncio.run(story())
    assert isinstance(process, asyncio.subprocess.Process)
    assert (code, process.report.pid, process.report.strategy) == (0, process.pid, "fork")


def test_kill_tree_kills_what_the_program_has_started() -> None:
    """A child of the program is gone with it; afterwards nothing happens."""

    async def story() -> tuple[int, int]:
        process = await aio.create_subprocess_exec(
            "sh", "-c", "sleep 1000 & echo $!; wait", stdout=aio.PIPE
        )
        assert process.stdout is not None
        child = int(await process.stdout.readline())
        process.kill_tree()
        code = await process.wait()
        process.kill_tree()
        return code, child

    code, child = asyncio.run(story())
    assert code == -9
    end = time.monotonic() + 30
    while _runs(child):
        assert time.monotonic() < end, "the child was left"
        os.sched_yield()


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False
