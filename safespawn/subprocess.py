"""The standard module ``subprocess``, on guarded spawns: ``from safespawn import subprocess``.

All its names are here, with the same meaning; what the standard module makes of pipes, text and time-outs is
inherited from it. :class:`Popen` and the functions take the options of :func:`safespawn.spawn` as well.
"""

from __future__ import annotations

import os
import subprocess as _std
import sys
from collections.abc import Callable, Mapping
from functools import partial
from subprocess import (
    DEVNULL,
    PIPE,
    STDOUT,
    CalledProcessError,
    CompletedProcess,
    SubprocessError,
    TimeoutExpired,
)
from typing import Any

from . import _binding, _child, _policy, _seam, _spawn, _unguarded
from ._run import GRACE
from ._run import CompletedProcess as _Completed
from ._secret import Secret
from ._spec import Request, SpawnOptions, SpawnReport
from ._streams import Streams, close
from .audit import _bypass

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Popen",
    "SubprocessError",
    "TimeoutExpired",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "run",
]


def __getattr__(name: str) -> Any:
    """Return what else the standard module has, private names too: people use those."""
    return getattr(_std, name)


#: Options of ours that the standard class takes already.
_STANDARD = frozenset(
    ("executable", "env", "cwd", "stdin", "stdout", "stderr", "pass_fds", "start_new_session", "umask")
    + ("restore_signals", "user", "group", "extra_groups")
    + (("process_group",) if sys.version_info >= (3, 11) else ())
)
#: Those that it gets beside them.
OPTIONS = frozenset(SpawnOptions.__annotations__) - _STANDARD

#: Arguments of _execute_child, and of the method that closes what the child has got.
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def _command(args: Any, executable: Any, shell: bool) -> tuple[list[Any], Any]:
    """Return the argument vector and the program."""
    if isinstance(args, (str, bytes)):
        words: list[Any] = [args]
    elif isinstance(args, os.PathLike):
        if shell:
            raise TypeError(f"args is a path, which is no command for a shell: {args!r}")
        words = [args]
    else:
        words = list(args)
    if shell:
        words = [executable or "/bin/sh", "-c", *words]
    return words, words[0] if executable is None else executable


#: Bound once: others put classes of their own in its place, we among them.
_Standard = _std.Popen


class Popen(_std.Popen[Any]):
    """``subprocess.Popen``, by a guarded spawn; waits and signals go by pidfd.

    Takes what the standard class takes, and the options of :func:`safespawn.spawn`. Raises as both do.
    ``user`` means what it means there: the groups stay, and UnsafeSpawnWarning says so. ``preexec_fn`` is run
    by CPython's own fork, with an UnsafeSpawnWarning; no option of ours goes with it.
    """

    _handle: _child.Child | None = None
    _make_report: Callable[[], SpawnReport] | None = None
    _report: SpawnReport | None = None
    _given_up = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start the program; see the class."""
        self._options = {name: kwargs.pop(name) for name in tuple(kwargs) if name in OPTIONS}
        super().__init__(*args, **kwargs)

    # ------------------------------------------------------------------ starting

    def _execute_child(self, *arguments: Any) -> None:
        """Start it, as the standard class asks its own method to; the order of these is private."""
        args, executable, preexec_fn, close_fds, pass_fds, cwd, env, _, _, shell = arguments[:10]
        restore_signals, gid, gids, uid, umask, session, *group = arguments[16:]
        pipes = dict(zip(_PIPES, arguments[10:16], strict=True))
        words, program = _command(args, executable, shell)
        given = _seam.options(
            None if cwd is None else os.fspath(cwd),  # TypeError for a descriptor, as in the standard class
            env if env is None or isinstance(env, Mapping) else dict(env.items()),
            map(int, pass_fds),
            restore_signals,
            umask,
            session,
            *group,
        )
        given |= {**_seam.streams(pipes["p2cread"], pipes["c2pwrite"], pipes["errwrite"]), **self._options}
        if program is not words[0]:
            given["executable"] = program
        wanted = _seam.identity(uid, gid, gids)
        _unguarded.warn_of_groups(wanted)
        request = _seam.request(words, given, identity=wanted, keep_fds=not close_fds)
        if preexec_fn is not None:  # the standard class tells the interpreter's hooks
            _refuse_beside_preexec(self._options)
            _unguarded.start(request, partial(self._start_unguarded, arguments), self._own)
            return
        _bypass.tell("subprocess.Popen", program, words, cwd, env)
        self._start(request, program, cwd)
        vars(_Standard)["_close_pipe_fds"](self, **pipes)

    def _start_unguarded(self, arguments: tuple[Any, ...], slot: _binding.Slot) -> None:
        args, executable, preexec_fn, *others = arguments
        own = _unguarded.Own(preexec_fn)
        try:
            vars(_Standard)["_execute_child"](self, args, executable, own, *others)
        except BaseException:
            if self.pid and self.returncode is None:  # a handler came between: it may run
                _unguarded.hold(slot, self.pid, ran=False)
                self._child_created = False  # it is not ours to miss
            raise
        _unguarded.hold(slot, self.pid, ran=True)

    def _start(self, request: Request, program: Any, cwd: Any) -> None:
        """Start it. The file that a problem is about is named as the caller did."""
        with _seam.named(program, cwd):
            _spawn.start_as(request, self._own)

    def _own(
        self,
        child: _child.Child,
        argv: tuple[bytes | Secret[Any], ...],
        make_report: Callable[[], SpawnReport],
        streams: Streams,
    ) -> None:
        """Take the child: a handle as ``_spawn.start_as`` wants it."""
        del argv, streams
        self._handle, self._make_report, self.pid = child, make_report, child.pid
        self._child_created = True

    # ------------------------------------------------------------ waiting, signals

    def _ended(self) -> None:
        """Take the code of a child that has ended."""
        if self.returncode is None and self._handle is not None:
            self.returncode = self._handle.returncode

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and self._handle is not None:
            try:
                self._handle.poll()
                self._ended()
            except ChildProcessError:  # reaped by others, or in a fork: as the standard class has it
                self.returncode = 0 if _deadstate is None else _deadstate
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and self._handle is not None:
            try:
                if not self._handle.wait(timeout):
                    raise TimeoutExpired(self.args, timeout or 0.0)
                self._ended()
            except ChildProcessError:
                self.returncode = 0
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal by pidfd; nothing happens if the program has ended."""
        self.poll()
        if self.returncode is None and self._handle is not None:
            self._handle.send_signal(sig)

    def kill_tree(self) -> None:
        """Kill it and all its descendants, as far as they have not left the tree before.

        A program that has ended and was reaped has no tree any more: nothing happens.
        """
        if self.returncode is None and self._handle is not None:
            self._handle.kill_tree()

    def _give_up(self) -> OSError | None:
        """Kill the tree and wait, not for ever; returns what was wrong with that.

        A child that sleeps in the kernel is reaped later.
        """
        if self._handle is None:
            return None
        remains = None
        self._handle.timeout_killed = True  # for the record of its exit
        try:
            self._handle.kill_and_wait(GRACE)
        except OSError as problem:
            remains = problem
        self._given_up = self._handle.given_up
        self._child_created = not self._given_up  # nobody is to miss it
        self.poll()
        return remains

    def __exit__(self, *problem: Any) -> None:  # noqa: PYI036 - of three kinds
        """Close the pipes and wait, unless that was given up."""
        if not self._given_up:
            super().__exit__(*problem)
            return
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                close(file)

    # ------------------------------------------------------------------- told of it

    @property
    def pidfd(self) -> int:
        """Its pidfd (pidfd_open(2)), ours to close; -1 once it was reaped."""
        return -1 if self._handle is None else self._handle.pidfd

    @property
    def report(self) -> SpawnReport:
        """What was decided and why; made when it is first asked for."""
        if self._report is None:
            if self._make_report is None:
                raise AttributeError("nothing was started, so there is no report")
            self._report = self._make_report()
        return self._report


def _refuse_beside_preexec(options: Mapping[str, Any]) -> None:
    asked = {name for name, value in options.items() if value is not None and value is not False}
    more = sorted(asked - _policy.OF_RECORDS)
    if more:
        raise ValueError(f"preexec_fn is run by CPython's own fork, which has no {', '.join(more)}")


def run(
    *popenargs: Any,
    input: Any = None,  # noqa: A002
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **kwargs: Any,
) -> _Completed:
    """As ``subprocess.run``; a time-out kills the whole tree, and the wait for that is bounded."""
    if input is not None:
        if kwargs.get("stdin") is not None:
            raise ValueError(f"stdin={kwargs['stdin']!r} and input cannot both be given")
        kwargs["stdin"] = PIPE
    if capture_output:
        if kwargs.get("stdout") is not None or kwargs.get("stderr") is not None:
            raise ValueError("stdout and stderr cannot be given with capture_output")
        kwargs["stdout"] = kwargs["stderr"] = PIPE
    with Popen(*popenargs, **kwargs) as process:
        out, err = _or_kill(process, lambda: process.communicate(input, timeout=timeout))
        code = process.poll() or 0
    done = _Completed(process.args, code, out, err, process)
    if check and code:
        raise CalledProcessError(code, process.args, output=out, stderr=err)
    return done


def _or_kill(process: Popen, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except TimeoutExpired as problem:
        problem.__cause__ = process._give_up()  # noqa: SLF001
        raise
    except BaseException:
        process.kill()
        raise


def call(*popenargs: Any, timeout: float | None = None, **kwargs: Any) -> int:
    """As ``subprocess.call``; a time-out kills the whole tree."""
    with Popen(*popenargs, **kwargs) as process:
        code: int = _or_kill(process, lambda: process.wait(timeout=timeout))
    return code


def check_call(*popenargs: Any, **kwargs: Any) -> int:
    """As ``subprocess.check_call``: CalledProcessError for a code that is not 0."""
    code = call(*popenargs, **kwargs)
    if code:
        raise CalledProcessError(code, kwargs.get("args") or popenargs[0])
    return 0


def check_output(*popenargs: Any, timeout: float | None = None, **kwargs: Any) -> Any:
    """As ``subprocess.check_output``: the standard output, CalledProcessError for a code that is not 0."""
    for name in ("stdout", "check"):
        if name in kwargs:
            raise ValueError(f"{name} argument not allowed, it will be overridden: {name}={kwargs[name]!r}")
    if "input" in kwargs and kwargs["input"] is None:
        is_text = any(kwargs.get(name) for name in ("universal_newlines", "text", "encoding", "errors"))
        kwargs["input"] = "" if is_text else b""
    return run(*popenargs, stdout=PIPE, timeout=timeout, check=True, **kwargs).stdout


def getstatusoutput(cmd: Any, *, encoding: str | None = None, errors: str | None = None) -> tuple[int, Any]:
    """As ``subprocess.getstatusoutput``: exit code and all output of a command of the shell."""
    done = run(cmd, shell=True, text=True, stdout=PIPE, stderr=STDOUT, encoding=encoding, errors=errors)  # noqa: S604
    return done.returncode, done.stdout.removesuffix("\n")


def getoutput(cmd: Any, *, encoding: str | None = None, errors: str | None = None) -> Any:
    """As ``subprocess.getoutput``: all output of a command of the shell."""
    return getstatusoutput(cmd, encoding=encoding, errors=errors)[1]
