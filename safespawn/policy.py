"""A policy for a whole process, from a TOML file: docs/policy.md has every key.

Loading looks at everything that a file says and changes nothing; applying makes it hold, once.
"""

from __future__ import annotations

import os

from . import _checks, _patterns, _policy, _policy_file, _refusals, audit, guards
from ._errors import PolicyError, UnsafeSpawn
from ._policy import Policy

__all__ = ["Policy", "PolicyError", "applied", "apply", "load"]


def load(path: str | os.PathLike[str]) -> Policy:
    """Return the policy of a file, all of it checked; nothing holds yet.

    The file, and the way to it, must be root's or ours, and nobody else's to write. Raises
    :class:`PolicyError` with file, line, key and value of what is wrong.
    """
    return _policy_file.read(path)


def apply(policy: Policy) -> None:
    """Have a policy hold in this process and its forked children, for good.

    A stronger proof that is required already stays. Raises RuntimeError where a policy holds already;
    TypeError and ValueError for one that was put together by hand and cannot hold; AuditError where its
    ledger cannot be opened. After the last everything else of it holds.
    """
    _checks.request(["program"], policy.options)
    refusals = _refusals.refusals("refused", policy.refused)
    _patterns.compiled("redact", policy.redact)
    _policy.claim(policy)
    _policy.hold(policy.options, refusals)
    audit.redact(*policy.redact)
    _require(policy.require)
    if policy.audit is not None:
        audit.open(**policy.audit)


def _require(proof: str | None) -> None:
    """Require a proof, and have the records tell what holds now."""
    if proof is not None:
        try:
            return guards.require(proof)
        except UnsafeSpawn:  # a stronger one is required, which is as good
            pass
    return guards.tell_config()


def applied() -> Policy | None:
    """Return the policy that holds in this process, None if there is none."""
    return _policy.applied()
