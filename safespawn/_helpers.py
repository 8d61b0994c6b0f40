"""The helpers that run for this process: which one a spawn may ask, and what becomes of one that is lost."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from . import _binding, _probe, audit
from ._spec import HelperBase, Request

#: The program.
PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "helper")

#: Strategies that a helper carries out.
HELPED = ("helper", "pool")

_WORDS = {
    _binding.lib.SS_DIFFERS_UNSEEN: "what a child inherits could not be seen",
    _binding.lib.SS_DIFFERS_WHO: "ids, capabilities, namespaces, root or filters are not what they were",
    _binding.lib.SS_DIFFERS_CGROUP: "cgroup, OOM score or core dump filter of the process differ",
    _binding.lib.SS_DIFFERS_SESSION: "session or terminal of the process are not those of the helper",
    _binding.lib.SS_DIFFERS_SCHEDULE: "scheduling, processors, securebits or the like of this thread differ",
    _binding.lib.SS_DIFFERS_THREAD: "pdeathsig would go by the thread that started it",
    _binding.lib.SS_DIFFERS_RAISED: "this process was given a priority or limits that a child cannot take",
}

_PARTS = {
    "policy-option": "an option that is asked for",
    "policy-user": "the user",
    "policy-variable": "a variable of the environment",
    "policy-program": "the program",
}


class Running(Protocol):
    """A helper as spawns see it."""

    pool: int

    @property
    def end(self) -> _binding.HelperEnd:
        """Our end of it."""
        ...

    def usable(self) -> bool:
        """Whether it may be asked; one that was lost may be started anew by that."""
        ...

    def why_not(self) -> str:
        """Say why it may not be asked."""
        ...


class _State:
    """Those that were entered, the last one first in line."""

    lock = threading.RLock()
    running: list[weakref.ref[Running]] = []  # noqa: RUF012 - of the process


def enter(helper: Running) -> None:
    """Make it the one that spawns ask."""
    with _State.lock:
        _State.running = [*_State.running, weakref.ref(helper)]


def leave(helper: Running) -> None:
    """Ask it no more; twice is no error."""
    with _State.lock:
        _State.running = [one for one in _State.running if one() not in (None, helper)]


def are_any() -> bool:
    """Return whether there is any helper to ask."""
    return bool(_State.running)


def choose(named: HelperBase | Literal[False] | None) -> tuple[Running | None, str | None]:
    """Return the helper to ask, or None and why there is none."""
    if named is False:
        return None, "helper=False"
    if named is not None:
        one: Any = named
        return (one, None) if one.usable() else (None, one.why_not())
    why = "no helper is running"
    for ref in reversed(_State.running):
        helper = ref()
        if helper is not None and helper.usable():
            return helper, None
        why = helper.why_not() if helper is not None else why
    return None, why


def hindrance(request: Request) -> str | None:
    """Return why no helper can do what is asked, None if one can."""
    if request.keep_fds:
        return "descriptors are kept (close_fds=False), and the helper has not ours"
    if "pid" in request.namespaces:
        return "a PID namespace is made by the clone, and a child in it could not say which of ours it is"
    if len({source for source, _ in request.fds} | set(request.pass_fds)) + 3 > _binding.PLAN_FDS_MAX:
        return f"more than {_binding.PLAN_FDS_MAX} descriptors do not fit into one message (unix(7))"
    return None


def fell_short(outcome: _binding.Outcome) -> bool:
    """Return whether a helper did not start what another way may start: nothing was run."""
    if outcome.outcome != "failed":
        return False
    if outcome.stage == "prepare":
        return outcome.errno not in (errno.E2BIG, errno.ECHILD)
    return outcome.stage == "helper" or outcome.stage in _PARTS


def shortfall(outcome: _binding.Outcome) -> str:
    """Say why it did not start it."""
    if outcome.stage in _PARTS:
        return f"the helper's policy does not allow {_PARTS[outcome.stage]}"
    if outcome.why:
        return f"the helper cannot stand in for us: {_WORDS.get(outcome.why, outcome.why)}"
    return f"the helper could not be used: {os.strerror(outcome.errno)}"


def tell(event: str, helper: Mapping[str, Any]) -> None:
    """Leave a record of what became of a helper."""
    audit.emit(event, None, lambda: {"who": _probe.who(None), "helper": helper})


def _after_fork() -> None:
    """Let go of what belongs to our parent: its descriptors are of no use here, and would be inherited."""
    _State.lock = threading.RLock()
    running, _State.running = _State.running, []
    for ref in running:
        helper = ref()
        if helper is not None:
            helper.end.close()


os.register_at_fork(after_in_child=_after_fork)
