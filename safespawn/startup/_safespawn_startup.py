"""Puts everything in place in a Python program that `safespawn exec` started, before its first line.

Imported by the sitecustomize.py beside it, which ends the process when anything fails here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from importlib import machinery, util
from typing import Any

VARIABLE = "SAFESPAWN_EXEC"
HERE = os.path.dirname(os.path.abspath(__file__))


def _told() -> dict[str, Any] | None:
    """Return what we are to do, None if we are not meant: a child of somebody who was."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    try:
        told = json.loads(text)
        pid, _, _ = told["pid"], told["config"], told["audit"]
    except (ValueError, TypeError, KeyError) as problem:
        raise RuntimeError(f"{VARIABLE} makes no sense: {text!r}") from problem
    return told if pid in (None, os.getpid()) else None


def _leave_no_trace(*, for_children: bool) -> None:
    """Leave the path of modules, and the environment unless children are to be led here too."""
    sys.path[:] = [entry for entry in sys.path if entry != HERE]
    sys.path_importer_cache.pop(HERE, None)
    if for_children:
        return
    os.environ.pop(VARIABLE, None)
    rest = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry != HERE]
    if any(rest):
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)


def _install(told: dict[str, Any]) -> None:
    try:
        from safespawn import install, policy  # noqa: PLC0415 - only in the process that is meant
    except ImportError as problem:
        raise RuntimeError(f"{sys.executable} has no safespawn that works: {problem}") from problem
    wanted = policy.Policy() if told["config"] is None else policy.load(told["config"])
    if told["audit"]:
        wanted = dataclasses.replace(wanted, audit={**(wanted.audit or {}), **told["audit"]})
    policy.apply(wanted)
    install()


def begin() -> None:
    """Do it, if this is the process that is meant. Raises whatever is wrong."""
    told = _told()
    _leave_no_trace(for_children=told is not None and told["pid"] is None)
    if told is not None:
        _install(told)


def run_hidden(name: str) -> None:
    """Run the module that would have been run without us, if there is one; its failure is site's."""
    spec = machinery.PathFinder.find_spec(name, sys.path)
    if spec is None or spec.loader is None:
        return
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
