"""Puts functions in the place of others, wherever modules have bound them: whatever refers to them (gc).

Covered are the dictionaries of modules (``from os import system``), attributes of classes, defaults of
arguments, and variables of closures. What holds a function in another way (a list, a C structure) keeps it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from types import CellType, FunctionType
from typing import Any

#: Pairs of a function and what stands in for it.
Pairs = Iterable[tuple[Any, Any]]


class _Known(dict[int, Any]):
    """Functions by their id, to what takes their place. No referrer of theirs that would be changed."""


def replace(pairs: Pairs) -> None:
    """Bind the second of each pair wherever the first is bound."""
    made = list(pairs)
    known = _Known((id(old), new) for old, new in made)
    olds = [old for old, _ in made]
    made.clear()
    for holder in gc.get_referrers(*olds):
        _rebind(holder, known, olds)


def _rebind(holder: Any, known: Mapping[int, Any], olds: list[Any]) -> None:
    kind = type(holder)
    if holder is olds:
        return
    if kind is dict:
        _rebind_names(holder, known)
    elif kind is CellType:
        holder.cell_contents = known[id(holder.cell_contents)]
    elif kind is tuple:
        _rebind_defaults(holder, known)


def _rebind_names(names: dict[Any, Any], known: Mapping[int, Any]) -> None:
    # Types keep what they have looked up, so they must be told.
    owner = next((owner for owner in gc.get_referrers(names) if isinstance(owner, type)), None)
    for name, value in list(names.items()):
        if id(value) not in known:
            continue
        if owner is not None:
            setattr(owner, name, known[id(value)])
        else:
            names[name] = known[id(value)]


def _rebind_defaults(defaults: tuple[Any, ...], known: Mapping[int, Any]) -> None:
    for function in gc.get_referrers(defaults):
        if isinstance(function, FunctionType) and function.__defaults__ is defaults:
            function.__defaults__ = tuple(known.get(id(value), value) for value in defaults)
