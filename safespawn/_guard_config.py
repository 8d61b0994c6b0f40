"""Tells what is guarded: in the opening of a chain, and in a ``guard.config`` record when it changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _probe, audit, guards


def _guarded() -> Mapping[str, Any]:
    seen = guards.status()
    lock = seen["lock"]
    told = {name: seen[name] for name in ("required", "strategy", "reasons", "threads", "proofs", "launcher")}
    told["lock"] = {name: lock[name] for name in ("state", "errno", "problems", "guard_foreign")}
    return {"guards": {**told, "ids": sorted(seen["guards"])}}


def _record() -> None:
    if audit.is_kept():
        audit.emit("guard.config", None, lambda: {"who": _probe.who(None), **_guarded()})


def attach() -> None:
    """Have it told from now on."""
    audit.describe_by(_guarded)
    guards.on_config(_record)
