"""Programs in ``asyncio``: its own functions and classes, on guarded spawns.

The end of a program comes to the loop by its pidfd: no child watcher, no thread, no signal, in whichever
thread the loop runs. Of a loop only readers and pipes are asked, so uvloop's will do. The start itself takes
place in the loop's thread, as in ``asyncio``; ``deadline`` bounds it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from asyncio import base_subprocess
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, SubprocessStreamProtocol
from typing import Any

from . import subprocess
from ._spec import SpawnReport

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Process", "create_subprocess_exec", "create_subprocess_shell"]

#: Bytes that a StreamReader takes before it stops to read, as in asyncio.
LIMIT = 2**16
#: Options that asyncio does not leave to its callers, and what it says to them.
_FIXED = {
    "universal_newlines": False,
    "shell": False,
    "bufsize": 0,
    "text": None,
    "encoding": None,
    "errors": None,
}


class _Transport(base_subprocess.BaseSubprocessTransport):
    """A program and its pipes, in a loop; asyncio's abstract class leaves start and end to us."""

    _exit_fd = -1
    _program: subprocess.Popen

    def _start(
        self, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any, bufsize: int, **kwargs: Any
    ) -> None:
        self._program = self._proc = subprocess.Popen(
            args, shell=shell, stdin=stdin, stdout=stdout, stderr=stderr, bufsize=bufsize, **kwargs
        )
        # A descriptor of its own: the other is closed with the reaping, whoever does that.
        self._exit_fd = fcntl.fcntl(self._program.pidfd, fcntl.F_DUPFD_CLOEXEC, 3)
        self._loop.add_reader(self._exit_fd, self._exited)

    def _exited(self) -> None:
        code = self._program.poll()
        if code is not None:
            self._forget_exit()
            self._process_exited(code)

    def _forget_exit(self) -> None:
        fd, self._exit_fd = self._exit_fd, -1
        if fd >= 0:
            if not self._is_loopless():
                self._loop.remove_reader(fd)
            os.close(fd)

    def _is_loopless(self) -> bool:
        return self._loop is None or self._loop.is_closed()

    def send_signal(self, signal: int) -> None:
        """Send a signal by pidfd; asyncio's own goes by a number that may be another's by now."""
        self._check_proc()
        self._program.send_signal(signal)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        """Warn and kill as asyncio's, whose loop may be closed: nobody waits then."""
        try:
            super().__del__()
        finally:
            if self._is_loopless():
                self._forget_exit()


class Process(asyncio.subprocess.Process):
    """asyncio's, and what a guarded spawn has beside."""

    _transport: _Transport

    @property
    def report(self) -> SpawnReport:
        """What was decided and why."""
        return self._transport._program.report  # noqa: SLF001 - it is our own class

    def kill_tree(self) -> None:
        """Kill it and all its descendants, as far as they have not left the tree before."""
        self._transport._program.kill_tree()  # noqa: SLF001 - as above


async def _start(args: Any, shell: bool, limit: int, options: dict[str, Any]) -> Process:
    for name, value in _FIXED.items():
        if options.pop(name, value) not in (value, None):
            raise ValueError(f"{name} must be {value}")
    loop = asyncio.get_running_loop()
    protocol = SubprocessStreamProtocol(limit=limit, loop=loop)
    waiter = loop.create_future()
    transport = _Transport(loop, protocol, args, shell, bufsize=0, waiter=waiter, **options)
    try:
        await waiter
    except BaseException as problem:
        if not isinstance(problem, (SystemExit, KeyboardInterrupt)):
            transport.close()
            await transport._wait()  # noqa: SLF001 - it is our own class
        raise
    return Process(transport, protocol, loop)


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = LIMIT,
    **kwds: Any,
) -> Process:
    """As ``asyncio.create_subprocess_shell``, with the options of :func:`safespawn.spawn`.

    Raises what ``safespawn.subprocess.Popen`` raises.
    """
    if not isinstance(cmd, (str, bytes)):
        raise ValueError(f"cmd must be a string, not {cmd!r} ({type(cmd).__name__})")  # noqa: TRY004 - as asyncio
    return await _start(cmd, True, limit, {"stdin": stdin, "stdout": stdout, "stderr": stderr, **kwds})


async def create_subprocess_exec(
    program: Any,
    *args: Any,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = LIMIT,
    **kwds: Any,
) -> Process:
    """As ``asyncio.create_subprocess_exec``, with the options of :func:`safespawn.spawn`.

    Raises what ``safespawn.subprocess.Popen`` raises.
    """
    options = {"stdin": stdin, "stdout": stdout, "stderr": stderr, **kwds}
    return await _start((program, *args), False, limit, options)
