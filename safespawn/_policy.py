"""The policy of this process: applied once, and asked by whatever starts a program. Looks at nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ._refusals import Refusals


@dataclass(frozen=True)
class Policy:
    """What is to hold for every program of a process; :func:`safespawn.policy.load` makes it of a file.

    ``require`` is the weakest proof that is accepted, ``options`` are defaults for
    :func:`safespawn.spawn`, ``audit`` the arguments of :func:`safespawn.audit.open` (None: no ledger),
    ``redact`` patterns for :func:`safespawn.audit.redact`, ``refused`` programs that do not run,
    ``preexec_fn`` whether a start with one is allowed. ``children``: Python children of a
    ``safespawn exec`` get the policy too. ``path`` and ``sha256`` tell the file, ``told`` what it
    said, key by key.
    """

    require: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None
    redact: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    preexec_fn: Literal["allow", "refuse"] = "allow"
    children: bool = False
    path: str | None = None
    sha256: str | None = None
    told: tuple[tuple[str, str], ...] = ()


class _Process:
    """What holds here. Forked children have it too."""

    #: One of the claims to be the policy, the first.
    claims: dict[str, tuple[Policy]] = {}  # noqa: RUF012 - of the process
    policy: Policy | None = None
    #: None: nothing is filled up, and nothing is refused.
    options: Mapping[str, Any] | None = None
    refusals: Refusals | None = None


def claim(policy: Policy) -> None:
    """Make this the policy of the process, before any of it holds. Raises RuntimeError if there is one."""
    claim = (policy,)
    # Atomic, and no lock that a fork could leave taken.
    first = _Process.claims.setdefault("first", claim)
    if first is not claim:
        raise RuntimeError(f"a policy holds in this process already ({first[0].path}): none takes its place")
    _Process.policy = policy


def hold(options: Mapping[str, Any], refusals: Refusals) -> None:
    """Have default options and refusals hold from now on."""
    _Process.options = dict(options) or None
    _Process.refusals = refusals if refusals.paths or refusals.globs or refusals.names else None


def applied() -> Policy | None:
    """Return the policy of this process, if there is one."""
    return _Process.policy


def refusals() -> Refusals | None:
    """Return the programs that are refused, None if there are none."""
    return _Process.refusals


#: A default is left out where the caller gave what it would contradict, or what makes it mean
#: something else: the groups of the policy's user are not for the caller's.
YIELDS = {
    "start_new_session": ("process_group",),
    "process_group": ("start_new_session",),
    "env_policy": ("env_allow",),
    "root": ("cwd",),
    "user": ("group", "extra_groups"),
}


def options(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a spawn, filled up with the policy's; what was given wins, None is not given."""
    defaults = _Process.options
    return given if defaults is None else _filled(given, defaults)


def _filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    said = {name: value for name, value in given.items() if value is not None}
    left_out = {other for name, value in said.items() if value is not False for other in YIELDS.get(name, ())}
    kept = {name: value for name, value in defaults.items() if name not in left_out}
    return {**given, **kept, **said}


#: Defaults that make no difference to a child: nobody gives the others to one of CPython's own fork.
OF_RECORDS = frozenset(("audit_tags", "redact"))
_FORKED = {"strategy": ("auto", "fork"), "on_unproven": ("fork",)}


def refuses_preexec() -> bool:
    """Whether no program is to be started with a ``preexec_fn``."""
    return _Process.policy is not None and _Process.policy.preexec_fn == "refuse"


def hinders_preexec() -> str | None:
    """Return what of the policy a start with a ``preexec_fn``, by CPython's own fork, could not have."""
    if _Process.refusals is not None:
        return "it refuses programs, and which one CPython would start cannot be judged"
    for name, value in (_Process.options or {}).items():
        if name not in OF_RECORDS and value not in _FORKED.get(name, ()):
            return f"its default {name}={value!r} cannot be had there"
    return None
