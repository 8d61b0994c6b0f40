"""`run`: start a program, feed it, read it, wait for it."""

from __future__ import annotations

import codecs
import locale
import math
import os
import subprocess
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from . import _checks, _policy, _spawn
from ._process import Process
from ._secret import Secret
from ._spec import PIPE, SpawnReport, Text, Word

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._spec import SpawnOptions

#: Seconds. How long what was killed is waited for: it may sleep in the kernel, or be frozen.
GRACE = 5.0


class Reported(Protocol):
    """Whatever has a report."""

    @property
    def report(self) -> SpawnReport:
        """What was decided and why."""


class _Report(NamedTuple):
    """A report without the handle."""

    report: SpawnReport


class CompletedProcess(subprocess.CompletedProcess[Any]):
    """As subprocess's, with the :class:`SpawnReport` in ``report``."""

    def __init__(self, args: Any, returncode: int, stdout: Any, stderr: Any, process: Reported) -> None:
        """Keep the handle, for its report."""
        super().__init__(args, returncode, stdout, stderr)
        self._process = process

    @property
    def report(self) -> SpawnReport:
        """What was decided and why."""
        return self._process.report

    def __getstate__(self) -> dict[str, Any]:
        """Leave the handle behind when it goes to another process: it is of use in ours only."""
        return {**vars(self), "_process": _Report(self.report)}


def run(
    argv: Iterable[Word] | Text,
    *,
    input: str | bytes | None = None,  # noqa: A002
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[SpawnOptions],
) -> CompletedProcess:
    """Run a program to its end, as ``subprocess.run``; options beyond that as for `spawn`.

    Raises what `spawn` raises; subprocess.TimeoutExpired after ``timeout`` seconds, when its whole tree is
    killed (`Process.kill_tree`), as after any other exception meanwhile: what could not be killed is the
    exception's cause. subprocess.CalledProcessError with ``check`` for a code that is not 0.
    """
    decoder = _decoder(text, encoding, errors)
    data = _input_bytes(input, decoder)
    _check_timeout(timeout)
    given: dict[str, Any] = dict(options)
    if data is not None:
        _unset(given, "stdin", "input")
        given["stdin"] = PIPE
    if capture_output:
        _unset(given, "stdout", "capture_output")
        _unset(given, "stderr", "capture_output")
        given["stdout"] = given["stderr"] = PIPE
    single = type(argv) is not list and isinstance(argv, (str, bytes, os.PathLike))
    words = [argv] if single else argv
    process = _spawn.start(_checks.request(words, _policy.options(given)))
    try:
        code, out, err = _finish(process, data, timeout)
    except BaseException as problem:
        _give_up(process, argv, problem)
        raise
    done = CompletedProcess(argv, code, _decoded(out, decoder), _decoded(err, decoder), process)
    if check:
        done.check_returncode()
    return done


def _unset(options: dict[str, Any], name: str, why: str) -> None:
    if options.get(name) is not None:
        raise ValueError(f"{name}={options[name]!r} and {why} cannot both be given")


def _finish(
    process: Process, data: bytes | None, timeout: float | None
) -> tuple[int, bytes | None, bytes | None]:
    if process.stdin is None and process.stdout is None and process.stderr is None:
        if timeout is None:
            return process._finish(), None, None  # noqa: SLF001 - the handle is ours alone
        return process.wait(timeout), None, None
    out, err = process.communicate(data, timeout)
    process._close_pipes()  # noqa: SLF001
    return process.wait(), out, err


def _give_up(process: Process, argv: Any, problem: BaseException) -> None:
    if isinstance(problem, subprocess.TimeoutExpired):
        problem.cmd = argv  # as it was given
        process._child.timeout_killed = True  # noqa: SLF001 - for the record of its exit
    try:
        process._child.kill_and_wait(GRACE)  # noqa: SLF001
    except OSError as remains:
        problem.__cause__ = remains
    finally:
        process._close_pipes()  # noqa: SLF001


def _check_timeout(timeout: object) -> None:
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r} ({type(timeout).__name__})")
    if math.isnan(timeout):
        raise ValueError(f"timeout must be a number of seconds, not {timeout!r}")


def _decoder(text: bool | None, encoding: str | None, errors: str | None) -> tuple[str, str] | None:
    if not (text or encoding or errors):
        return None
    if encoding is not None:
        "".encode(encoding)  # LookupError names one that is unknown, before anything starts
    if errors is not None:
        codecs.lookup_error(errors)
    return encoding or locale.getpreferredencoding(do_setlocale=False), errors or "strict"


def _input_bytes(data: str | bytes | None, decoder: tuple[str, str] | None) -> bytes | None:
    if data is None:
        return None
    if decoder is not None and isinstance(data, str):
        return data.encode(*decoder)
    if isinstance(data, str):
        # Not shown: this is where programs get their passwords.
        raise TypeError(f"input must be bytes without text or encoding, not str ({len(data)} characters)")
    try:
        return bytes(memoryview(data))
    except TypeError:
        hint = ": use its reveal()" if isinstance(data, Secret) else ""
        raise TypeError(f"input must be bytes, not {data!r:.80} ({type(data).__name__}){hint}") from None


def _decoded(data: bytes | None, decoder: tuple[str, str] | None) -> str | bytes | None:
    if data is None or decoder is None:
        return data
    return data.decode(*decoder).replace("\r\n", "\n").replace("\r", "\n")
