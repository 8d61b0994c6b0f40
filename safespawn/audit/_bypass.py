"""Programs that this process starts past us, seen through ``sys.addaudithook`` (PEP 578).

A hook sees what Python code asks ``os``, ``subprocess``, ``pty`` and ``ctypes`` for. It does not see what
C code starts, the ``spawn`` and ``forkserver`` methods of multiprocessing (CPython raises no event for
``_posixsubprocess.fork_exec``), or other interpreters of the process. It runs inside the call that starts
something, at any moment, so it takes no lock of its own and raises nothing of its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, takewhile
from types import FrameType
from typing import Any, NamedTuple

from .. import _probe
from . import _record, _redaction

#: Takes what makes the fields of a ``spawn.bypass`` record.
Emit = Callable[[Callable[[], Mapping[str, Any]]], None]

#: Events to the place of the argument vector among their arguments; None where they tell of none.
STARTS: dict[str, int | None] = {
    "os.fork": None,
    "os.forkpty": None,
    "os.exec": 1,
    "os.posix_spawn": 1,
    "os.system": 0,
    "pty.spawn": 0,
    "subprocess.Popen": 1,
}
LOOKUPS = ("ctypes.dlsym", "ctypes.dlsym/handle")
#: Functions that nobody looks up in libc who does not mean to start something by them.
_EXECS = ("execl", "execle", "execlp", "execv", "execve", "execveat", "execvp", "execvpe", "fexecve")
FUNCTIONS = frozenset(
    ("fork", "vfork", "_Fork", "forkpty", "clone", "posix_spawn", "posix_spawnp", "system", "popen", *_EXECS)
)
#: Modules on the way from the caller. Ours are among them: os.posix_spawn is one of ours with guard_foreign.
BETWEEN = (
    "asyncio",
    "concurrent",
    "ctypes",
    "multiprocessing",
    "os",
    "pty",
    "safespawn",
    "subprocess",
    "threading",
)
#: An event of a function that has told of itself before: module and name of that function.
INNER = {
    "os.posix_spawn": ("subprocess", "_posix_spawn"),
    "os.forkpty": ("pty", "spawn"),
    "subprocess.Popen": ("safespawn.subprocess", "_start_unguarded"),  # which records it
}
#: Below this function a forked child is on its way to its exec, in a preexec_fn.
BEFORE_EXEC = ("subprocess", "_execute_child")

#: So many places are kept; what comes from others is counted by its event.
SITES_MAX = 256
SITE_MAX = 300
_HEARD = "_safespawn.heard"
_POWERS = frozenset(10**exponent for exponent in range(19))
_OWN = globals()


class _Site:
    """One place in the code and what it was seen doing."""

    __slots__ = ("count", "event", "text")

    def __init__(self, event: str, text: str) -> None:
        self.event = event
        self.text = text
        self.count = 0


class _Due(NamedTuple):
    """A record that is to be written."""

    site: _Site
    number: int
    argv: tuple[bytes, ...] | None


class _Watch:
    """The state. Without ``emit`` nothing is looked at."""

    emit: Emit | None = None
    hooked = False
    heard = False
    pid = 0
    forked = False
    sites: dict[tuple[str, str, int], _Site] = {}  # noqa: RUF012 - replaced as a whole after a fork
    due: deque[_Due] = deque()  # noqa: RUF012 - as above
    telling: set[int] = set()  # noqa: RUF012 - as above
    #: Threads that are in a call of ours, which tells of itself.
    ours: set[int] = set()  # noqa: RUF012 - as above
    #: Events of functions that lead to us now.
    covered: frozenset[str] = frozenset()


def watch(emit: Emit) -> bool:
    """Tell ``emit`` of every place that starts a program past us: at its 1st, 10th, 100th … time.

    Returns False if the events do not reach us, because another hook has refused ours or raises for events
    that it does not know. A hook cannot be removed: :func:`rest` makes ours do nothing.
    """
    _Watch.pid = os.getpid()
    _Watch.emit = emit
    with contextlib.suppress(Exception):  # of the other hooks
        if not _Watch.hooked:
            sys.addaudithook(_hook)
            _Watch.hooked = True
        sys.audit(_HEARD)  # where a hook was refused the interpreter does not say so
    return _Watch.heard


def rest() -> None:
    """Look at nothing any more, until :func:`watch` is called again. The counts stay."""
    _Watch.emit = None


def note(event: str, args: tuple[Any, ...]) -> None:
    """Take note of a start, with what its event has; of one that no event tells of, too."""
    _hook(event, args, frozenset((event,)))


def tell(event: str, *args: Any) -> None:
    """Raise an event of the interpreter's for other hooks: what starts is told of by us."""
    if _Watch.emit is None:
        sys.audit(event, *args)
        return
    with ours():
        sys.audit(event, *args)


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Have what this thread does inside be no bypass: its start is told of by whoever makes it."""
    thread = threading.get_ident()
    outermost = thread not in _Watch.ours
    _Watch.ours.add(thread)
    try:
        yield
    finally:
        if outermost:
            _Watch.ours.discard(thread)


def cover(events: frozenset[str]) -> None:
    """Have these events be no bypass from now on, because they lead to us."""
    _Watch.covered = events


def counts() -> dict[str, int]:
    """Return how often each event was seen in this process."""
    told: dict[str, int] = {}
    for site in list(_Watch.sites.values()):
        told[site.event] = told.get(site.event, 0) + site.count
    return told


def _after_fork() -> None:
    """The child counts for itself: its chain is another one. No other thread is left to hold anything."""
    _Watch.pid, _Watch.forked = os.getpid(), True
    _Watch.sites, _Watch.due, _Watch.telling, _Watch.ours = {}, deque(), set(), set()


os.register_at_fork(after_in_child=_after_fork)

_WATCHED = frozenset((*STARTS, *LOOKUPS, _HEARD))


def _hook(event: str, args: tuple[Any, ...], _watched: frozenset[str] = _WATCHED) -> None:
    # For every event of the interpreter: the default is a local variable, the fastest there is.
    if event in _watched:
        try:
            _notice(event, args)
        except Exception:  # noqa: BLE001, S110 - whatever is wrong, the call that we are in goes on
            pass


def _notice(event: str, args: tuple[Any, ...]) -> None:
    if event == _HEARD:
        _Watch.heard = True
        return
    if _Watch.emit is None or event in _Watch.covered or threading.get_ident() in _Watch.ours:
        return
    # A child of a raw fork has no business here: all locks are as they were.
    if os.getpid() == _Watch.pid and not (_Watch.forked and _is_on_its_way(event)):
        _count(event, args)


def _is_on_its_way(event: str) -> bool:
    """Whether a forked child is about to exec: that start was told of by its parent."""
    return event == "os.exec" or BEFORE_EXEC in map(_function, _callers())


def _callers() -> Iterator[FrameType]:
    """Yield the frames outside of this module, the innermost first."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - inspect.currentframe is this
    while frame is not None:
        if frame.f_globals is not _OWN:
            yield frame
        frame = frame.f_back


def _function(frame: FrameType) -> tuple[object, str]:
    return frame.f_globals.get("__name__"), frame.f_code.co_name


def _count(event: str, args: tuple[Any, ...]) -> None:
    if event in LOOKUPS:
        if args[1] not in FUNCTIONS:
            return
        event = f"ctypes.dlsym {args[1]}"
    between = list(takewhile(_is_between, _callers()))
    if event in INNER and INNER[event] in map(_function, between):
        return
    caller = next(islice(_callers(), len(between), None), None)
    site = _site(event, caller or next(iter(between), None))  # a thread may begin in the standard library
    # No call between these two: neither a thread (with the GIL) nor a handler comes in between.
    site.count += 1
    number = site.count
    if number in _POWERS:
        place = STARTS.get(event)
        _Watch.due.append(_Due(site, number, None if place is None else _words(args[place])))
        _tell()


def _is_between(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] in BETWEEN


def _site(event: str, frame: FrameType | None) -> _Site:
    """Return the place of a frame; None where no Python code is running."""
    name, line, function = "C", 0, ""
    if frame is not None:
        name, line, function = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
    sites = _Watch.sites
    key = (event, name, line)
    site = sites.get(key)
    if site is None and len(sites) >= SITES_MAX:
        return sites.setdefault((event, "...", 0), _Site(event, "other places"))
    return site or sites.setdefault(key, _Site(event, f"{name}:{line} {function}"[-SITE_MAX:]))


def _tell() -> None:
    """Write what is due; what comes while this thread is at it, of the writing itself too, it writes next."""
    thread, due = threading.get_ident(), _Watch.due
    if thread in _Watch.telling:
        return
    _Watch.telling.add(thread)
    try:
        while due and (emit := _Watch.emit) is not None:
            emit(partial(_fields, due.popleft()))
    finally:
        _Watch.telling.discard(thread)


def _fields(one: _Due) -> dict[str, Any]:
    argv = {} if one.argv is None else _redaction.arguments(one.argv)
    site = _record.text(one.site.text.encode("utf-8", "surrogateescape"))
    return {
        "who": _probe.who(None),
        "bypass": {"event": one.site.event, **argv, "site": site, "count": one.number},
    }


def _words(given: object) -> tuple[bytes, ...]:
    """Return an argument vector; of ``os.system`` what the libc makes of it (system(3))."""
    words: Sequence[Any] = given if isinstance(given, (list, tuple)) else ("sh", "-c", given)
    return tuple(map(_encoded, words))


def _encoded(word: object) -> bytes:
    try:
        return os.fsencode(word)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # the call will say so
        return b"?"
