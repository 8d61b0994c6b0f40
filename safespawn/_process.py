"""The handle of a started program."""

from __future__ import annotations

import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from typing import IO, Any, final

from . import _child, _streams
from ._secret import Secret
from ._spec import SpawnReport

#: How many handlers that raise one after the other lose no child. No call, which one could interrupt.
_TRIES = (1,) * 8


@final
class Process:
    """A program that :func:`safespawn.spawn` has started.

    As a context manager it closes the pipes and waits. A handle that is dropped before
    the program ended gives a ResourceWarning; the child is reaped on a later spawn.
    """

    def __init__(
        self,
        child: _child.Child,
        argv: tuple[bytes | Secret[Any], ...],
        make_report: Callable[[], SpawnReport],
        streams: _streams.Streams,
    ) -> None:
        """Only ``spawn`` makes these."""
        self.args = argv
        self._make_report = make_report
        self._report: SpawnReport | None = None
        self._exchange: _streams.Exchange | None = None
        self.stdin, self.stdout, self.stderr = streams.ours
        self._child = child  # last: from here on __del__ looks after it

    @property
    def report(self) -> SpawnReport:
        """What was decided and why; made when it is first asked for."""
        if self._report is None:
            self._report = self._make_report()
        return self._report

    @property
    def pid(self) -> int:
        """Its pid, for people; nothing here goes by it."""
        return self._child.pid

    @property
    def pidfd(self) -> int:
        """Its pidfd (pidfd_open(2)), ours to close; -1 once it was reaped."""
        return self._child.pidfd

    @property
    def returncode(self) -> int | None:
        """Exit code, -N if signal N killed it, None while it was not seen to end."""
        return self._child.returncode

    def poll(self) -> int | None:
        """Return ``returncode``, after a look. Raises ChildProcessError as `wait` does."""
        self._child.poll()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code, or -N if signal N killed it.

        Raises subprocess.TimeoutExpired after ``timeout`` seconds, and ChildProcessError if
        somebody else reaped the child and the kernel cannot say how it ended.
        """
        if not self._child.wait(timeout):
            raise self._late(timeout)
        return self._code()

    def _late(self, timeout: float | None, *output: bytes | None) -> subprocess.TimeoutExpired:
        words: Any = self.args  # for typeshed no Secret is an argument
        return subprocess.TimeoutExpired(words, timeout or 0.0, *output)

    def _code(self) -> int:
        code = self.returncode
        assert code is not None  # noqa: S101 - it was just seen to end
        return code

    def _finish(self) -> int:
        """Wait, for a caller that has shown the handle to nobody."""
        while not self._child.wait_unshared():
            pass
        return self._code()

    def send_signal(self, number: int) -> None:
        """Send a signal by pidfd; nothing happens if the program has ended."""
        self._child.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def kill_tree(self) -> None:
        """Kill it and all its descendants, as far as they have not left the tree before.

        Those whose parents have died belong to it as members of a session that one of the tree leads
        (``start_new_session``), with ``subreaper`` while the program runs, and in a cgroup (``cgroup``) that
        was empty when the program was started in it and got no other child of ours. A program that has
        ended and was reaped has no tree any more: nothing happens. Raises OSError if not all of it could be
        had; all others are killed then.
        """
        self._child.kill_tree()

    def communicate(
        self,
        input: bytes | None = None,  # noqa: A002
        timeout: float | None = None,
    ) -> tuple[bytes | None, bytes | None]:
        """Feed ``input``, read what it writes until the end, wait; return stdout and stderr.

        None stands for a stream that is no pipe. After subprocess.TimeoutExpired nothing is
        lost: call it again with the same input. Raises ValueError if there is input but no pipe.
        """
        if input and self.stdin is None:
            raise ValueError(f"{len(input)} bytes of input, but stdin is no pipe")
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._exchange is None:
            self._exchange = _streams.Exchange(self.stdin, self.stdout, self.stderr)
        try:
            self._exchange.run(input or b"", deadline)
            ended = self._child.wait(None if deadline is None else deadline - time.monotonic())
        except TimeoutError:
            ended = False
        if not ended:
            raise self._late(timeout, *self._exchange.output())
        return self._exchange.output()

    def _close_pipes(self) -> None:
        pipes: list[IO[bytes] | None] = [self.stdin, self.stdout, self.stderr]
        for pipe in pipes:
            if pipe is not None:
                _streams.close(pipe)

    def __enter__(self) -> Process:
        """Return the handle."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Close the pipes and wait."""
        self._close_pipes()
        self.wait()

    def __repr__(self) -> str:
        """Show pid, program and state."""
        return f"<Process {self.pid} {self.args[0]!r} returncode={self.returncode}>"

    def __del__(self) -> None:
        """Hand a child that was not reaped to those who look later."""
        for _ in _TRIES:
            try:
                if not self._child.drop():
                    return
                break
            except AttributeError:
                return  # it was never begun
            except BaseException:  # noqa: BLE001, S112 - a handler's: Python would ignore it here, and lose the child
                continue
        warnings.warn(f"{self!r} was dropped while running", ResourceWarning, stacklevel=2, source=self)
