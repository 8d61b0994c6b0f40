"""Runs jobs that come as JSON lines, many at once, each with a time-out and retries; answers in JSON lines.

    echo '{"id": "1", "argv": ["date"]}' | python examples/job_runner.py --ledger jobs.jsonl
    python examples/job_runner.py --ledger jobs.jsonl --socket /run/jobs.sock

A job has "id" and "argv", and may have "timeout" (seconds, 60) and "retries" (0). Its result has "state"
(done, failed, timed-out, not-started, cancelled, bad), "code", "output" (its end), and "spawns": their ids
in the ledger. SIGTERM kills what runs, with all of its trees, and says so in the results.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from safespawn import SpawnError, aio, audit

#: Bytes of a line, of what a job may write, and of that what its result shows.
LINE_MAX, OUTPUT_MAX, SHOWN = 1024 * 1024, 16 * 1024 * 1024, 4096

Send = Callable[[dict[str, Any]], None]


class Job(NamedTuple):
    """One job, checked."""

    id: str
    argv: list[str]
    timeout: float
    retries: int


def parsed(line: bytes) -> Job:
    """Return the job of a line. Raises ValueError."""
    given = json.loads(line)
    if not isinstance(given, dict):
        raise ValueError(f"a job is a JSON object, not {given!r}")
    argv, timeout, retries = given.get("argv"), given.get("timeout", 60), given.get("retries", 0)
    if not isinstance(given.get("id"), str):
        raise ValueError(f"id must be a string, not {given.get('id')!r}")
    if not isinstance(argv, list) or not argv or not all(isinstance(one, str) for one in argv):
        raise ValueError(f"argv must be a list of strings, not {argv!r}")
    if not isinstance(timeout, (int, float)) or not 0 < timeout <= 86400:
        raise ValueError(f"timeout must be from 0 to 86400 seconds, not {timeout!r}")
    if not isinstance(retries, int) or not 0 <= retries <= 100:
        raise ValueError(f"retries must be from 0 to 100, not {retries!r}")
    return Job(given["id"], argv, timeout, retries)


class Runner:
    """Runs jobs of any number of streams, no more than ``at_once`` of them at a time."""

    def __init__(self, at_once: int, delay: float) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._delay = delay  # seconds before a retry

    async def serve(self, reader: asyncio.StreamReader, send: Send) -> None:
        """Run the jobs of a stream until it ends, or this is cancelled: then nothing of them runs."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            async for line in reader:
                await self._slots.acquire()  # who sends more than we can do has to wait
                task = asyncio.create_task(self._perform(line, send))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except (
            ValueError
        ) as problem:  # a line that is too long: there is no telling where the next one begins
            send({"id": None, "state": "bad", "why": str(problem), "spawns": []})
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _perform(self, line: bytes, send: Send) -> None:
        result: dict[str, Any] = {"id": None, "state": "cancelled", "spawns": []}
        try:
            job = parsed(line)
            result["id"] = job.id
            for number in range(job.retries + 1):
                if number:
                    await asyncio.sleep(self._delay)
                if await self._attempt(job, number, result):
                    break
        except ValueError as problem:
            result.update(state="bad", why=str(problem))
        except asyncio.CancelledError:
            result.update(state="cancelled")
        finally:
            self._slots.release()
        send(result)

    async def _attempt(self, job: Job, number: int, result: dict[str, Any]) -> bool:
        """Run it once, and return whether that was the last word."""
        with tempfile.TemporaryFile() as output:
            try:
                process = await aio.create_subprocess_exec(
                    *job.argv,
                    stdin=aio.DEVNULL,
                    stdout=output,
                    stderr=aio.STDOUT,
                    deadline=10,
                    rlimits={resource.RLIMIT_FSIZE: OUTPUT_MAX, resource.RLIMIT_CORE: 0},
                    audit_tags={"job": job.id, "attempt": str(number)},
                )
            except OSError as problem:  # no such program, or a refusal; the second may pass
                result.update(state="not-started", why=str(problem))
                return not isinstance(problem, SpawnError)
            result["spawns"].append(process.report.id)
            in_time = await _ended(process, job.timeout)
            result.update(state="done", code=process.returncode, output=_tail(output))
        if not in_time:
            result["state"] = "timed-out"
        elif process.returncode != 0:
            result["state"] = "failed"
        return result["state"] == "done"


async def _ended(process: aio.Process, timeout: float) -> bool:
    """Wait for the end, and return whether it came by itself. Nothing of its tree is left, in any case."""
    try:
        await asyncio.wait_for(process.wait(), timeout)
    except asyncio.TimeoutError:
        return False
    finally:
        process.kill_tree()
        await process.wait()
    return True


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, 2)
    output.seek(max(0, size - SHOWN))
    return output.read().decode(errors="replace")


async def from_stdin(runner: Runner) -> None:
    """Run what comes on standard input."""
    reader = asyncio.StreamReader(LINE_MAX)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    with contextlib.closing(transport):
        await runner.serve(reader, lambda result: print(json.dumps(result), flush=True))


async def from_socket(runner: Runner, path: str) -> None:
    """Run what comes on connections to a socket, each answered where it came from."""
    connections: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError), contextlib.closing(writer):
            await runner.serve(reader, lambda result: writer.write(json.dumps(result).encode() + b"\n"))

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    async with await asyncio.start_unix_server(begin, path, limit=LINE_MAX):
        print("ready", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections)


async def run(given: argparse.Namespace) -> None:
    """Run jobs until there are no more, or until SIGTERM or SIGINT."""
    runner = Runner(given.at_once, given.delay)
    task = asyncio.ensure_future(from_socket(runner, given.socket) if given.socket else from_stdin(runner))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main() -> None:
    """Open the ledger, then run jobs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--socket", metavar="PATH", help="a UNIX socket, instead of standard input")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--delay", type=float, default=1.0, help="seconds before a retry")
    given = parser.parse_args()
    with audit.open(given.ledger):
        asyncio.run(run(given))


if __name__ == "__main__":
    main()
