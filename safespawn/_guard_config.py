"""Tells what is guarded: in the opening of a chain, and in a ``guard.config`` record when it changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import _policy, _probe, audit, guards
from .audit._record import path as _path


def _guarded() -> Mapping[str, Any]:
    seen = guards.status()
    lock = seen["lock"]
    told = {name: seen[name] for name in ("required", "strategy", "reasons", "threads", "proofs", "launcher")}
    told["lock"] = {name: lock[name] for name in ("state", "errno", "problems", "guard_foreign")}
    return {"guards": {**told, "ids": sorted(seen["guards"]), **_applied()}}


def _applied() -> Mapping[str, Any]:
    policy = _policy.applied()
    if policy is None:
        return {}
    where = None if policy.path is None else _path(os.fsencode(policy.path))
    return {"policy": {"path": where, "sha256": policy.sha256}}


def _record() -> None:
    if audit.is_kept():
        audit.emit("guard.config", None, lambda: {"who": _probe.who(None), **_guarded()})


def attach() -> None:
    """Have it told from now on."""
    audit.describe_by(_guarded)
    guards.on_config(_record)
