"""Faults that are planted into the library in the zygote, for the tests that a state machine finds them."""

from __future__ import annotations

import sys
from typing import Any

from safespawn import _binding, _child, _lock, helper
from safespawn.audit import Ledger, _core


def _off(name: str) -> None:
    """Switch off a guard of the test core."""
    _binding.lib.ss_hooks.off |= getattr(_binding.lib, "SS_OFF_" + name)


def pidfd_stays_open() -> None:
    """The descriptor of a child that was reaped is left open."""
    _child.Child._close = lambda self: setattr(self._room, "pidfd", -1)


def dropped_is_not_reaped() -> None:
    """Nobody looks after a child whose handle is gone."""
    _child.reap_abandoned = lambda: None


def fork_may_wait() -> None:
    """A forked process takes its parent's children for its own."""
    _child.Child._only_ours = lambda self: None


def exit_is_not_recorded() -> None:
    """The end of a child leaves no record."""
    _child.Child._record = lambda self, reaped_by: None


def wait_forgets_signals() -> None:
    """The code of who was killed is 0."""
    real = _binding.returncode_of

    def zero(room: Any) -> int | None:
        code = real(room)
        return 0 if code is not None and code < 0 else code

    _binding.returncode_of = zero


def seal_is_no_seal() -> None:
    """The filter is put on, and refuses nothing (test core)."""
    _off("SEAL")


def changes_are_not_counted() -> None:
    """Calls of `os` past the wrappers: as raw system calls do it."""
    _lock._Waits.__call__ = lambda self, *args: (
        None if self._real.__name__ == "setgroups" else self._real(*args)
    )


def helper_does_not_obey() -> None:
    """The policy of a helper is not asked (test core)."""
    _off("HELPER_OBEYS")


def helper_does_not_retire() -> None:
    """It goes on after a drop of privileges (test core)."""
    vars(sys.modules["__main__"])["PATIENCE"] = 2
    _off("HELPER_RETIRES")


def helper_is_told_of_twice() -> None:
    """The loss of a helper is recorded again and again."""
    real = helper.Helper._tell_lost

    def again(self: Any, *seen: Any) -> None:
        real(self, *seen)
        self._told_lost = False

    helper.Helper._tell_lost = again


def start_is_not_recorded() -> None:
    """Every fourth record that a program runs is not written."""
    real, count = _core.started, [0]

    def sometimes(*arguments: Any) -> int:
        count[0] += 1
        return real(*arguments) if count[0] % 4 else 0

    from safespawn import _spawn

    _spawn.started = sometimes


def chain_has_no_end() -> None:
    """Closing a ledger writes no last record."""
    Ledger._write_end = lambda self: 0


def rotation_goes_on_in_the_old_file() -> None:
    """A segment is renamed and written on."""
    Ledger._follow = lambda self, why="segment": True


PLANTS = {
    each.__name__: each
    for each in (
        pidfd_stays_open, dropped_is_not_reaped, fork_may_wait, exit_is_not_recorded, wait_forgets_signals,
        seal_is_no_seal, changes_are_not_counted, helper_does_not_obey, helper_does_not_retire,
        helper_is_told_of_twice, start_is_not_recorded, chain_has_no_end, rotation_goes_on_in_the_old_file,
    )
}  # fmt: skip
