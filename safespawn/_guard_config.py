"""Leaves a ``guard.config`` record of what is guarded: when a ledger is opened, and when that changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _probe, audit, guards


def _fields() -> Mapping[str, Any]:
    seen = guards.status()
    lock = seen["lock"]
    told = {name: seen[name] for name in ("required", "strategy", "reasons", "threads", "proofs", "launcher")}
    told["lock"] = {name: lock[name] for name in ("state", "errno", "problems", "guard_foreign")}
    return {"who": _probe.who(None), "guards": {**told, "ids": sorted(seen["guards"])}}


def record() -> None:
    """Leave one, if a ledger is open."""
    if audit.is_kept():
        audit.emit("guard.config", None, _fields)


def attach() -> None:
    """Have it left from now on."""
    audit.on_open(record)
    guards.on_config(record)
