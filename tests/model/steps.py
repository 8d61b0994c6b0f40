"""What the model checks, and what each of its steps stands for: the table that tests/test_model.py holds it to."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import NamedTuple

from runner import Check


def _one(*more: str, formula: str | None = None) -> Check:
    return Check(("SPAWNERS=1", "CHANGERS=1", *more), formula)


_ENDLESS = ("SPAWNS=0", "CHANGES=0", "FAIR")

#: The small forms, each of which is looked at whole in about a second.
CHECKS: dict[str, Check] = {
    "one": _one(),
    "two changers": Check(("SPAWNERS=1", "CHANGERS=2")),
    "deadline": _one("DEADLINES"),
    "crowded": _one("CROWDED"),
    "again": _one("SPAWNS=2", "CHANGES=2"),
    "fork": _one("FORKERS=1"),
    "fork in a change": _one("FORKERS=1", "FORKER_CHANGES"),
    "fork past libc": _one("FORKERS=1", "RAW_FORK"),
    # Nobody's wait ends by itself, so that whoever is to be woken must be.
    "woken": _one("ASLEEP", "CHANGES=2"),
    "changer gets in": _one(*_ENDLESS, "STALLS", formula="changer"),
    "changer gets in past a dead thread": _one(*_ENDLESS, "VANISHES", formula="changer"),
    "spawner is told": _one(*_ENDLESS, formula="spawner"),
    "holder gets in": _one(*_ENDLESS, "PATIENT", formula="hold"),
}

#: The big ones. A spawner makes one window there: shared memory (1), memory of its own (2), or that while it
#: holds changes off (3). Which of the three spawners does which does not matter, so each choice is there once.
LONG: dict[str, Check] = {
    f"3 spawners ({first}{second}{third}), 2 changers, 1 forker": Check(
        (
            *("SPAWNERS=3", "CHANGERS=2", "FORKERS=1", "ONE_WINDOW"),
            *(f"KIND0={first}", f"KIND1={second}", f"KIND2={third}"),
        ),
        is_big=True,
    )
    for first, second, third in combinations_with_replacement((1, 2, 3), 3)
}
LONG["2 spawners, each with all its tries, 1 changer, 1 forker"] = Check(
    ("SPAWNERS=2", "CHANGERS=1", "FORKERS=1"), is_big=True
)


class Step(NamedTuple):
    """A step that can be taken out: the C functions that make it, and the check that fails without it."""

    functions: str
    fails: str


STEPS: dict[str, Step] = {
    # Spawners.
    "COUNT_LOOK": Step("ss_spawner_enter ss_spawner_count", "one"),
    "WAITING_LOOK": Step("ss_spawner_count", "changer gets in"),
    "ENTER_EPOCH": Step("ss_look_at_lock ss_spawner_enter ss_epoch_of", "one"),
    "UNDO_COUNT": Step("ss_spawner_enter ss_spawner_uncount", "one"),
    "KILLED_RESET": Step("ss_spawner_enter", "again"),
    "WINDOW_RESET": Step("ss_window_reset", "again"),
    "DEADLINE_KILL": Step("ss_await_release ss_bound", "deadline"),
    "DEADLINE_GRACE": Step("ss_bound ss_await_exit", "deadline"),
    "LEAVE_BUSY": Step("ss_slot_leave", "one"),
    "LEAVE_COUNT": Step("ss_slot_leave ss_spawner_uncount", "one"),
    "DROPPED_LOOK": Step("ss_slot_leave", "one"),
    "UNCOUNT_WAKE": Step("ss_spawner_uncount ss_lock_wake ss_change_sleep", "woken"),
    # Children.
    "ARM": Step("ss_child_arm ss_clone_fill ss_window_open", "one"),
    "CHILD_LOOK": Step("ss_child_become ss_child_epoch ss_child_execve", "one"),
    # Those with memory of their own.
    "WATCH_COUNT": Step("ss_window_enter ss_watch ss_slot_take", "one"),
    "WATCH_EPOCH": Step("ss_watch ss_epoch_of", "one"),
    "WATCH_UNCOUNT": Step("ss_slot_leave", "one"),
    "HOLD_FLAG": Step("ss_hold", "holder gets in"),
    "HOLD_CLEAR": Step("ss_spawner_count", "one"),
    "HOLD_END": Step("ss_hold ss_hold_end", "one"),
    "HOLD_END_WAKE": Step("ss_hold_end ss_lock_wake", "woken"),
    "WAITED_FIRST": Step("ss_hold ss_spawner_count", "holder gets in"),
    # Changers.
    "CHANGES_WAIT": Step("ss_change_begin ss_changer_enter ss_changer_join", "one"),
    "CHANGER_WAITS": Step("ss_changer_join", "woken"),
    "HELD_OFF": Step("ss_changer_join", "holder gets in"),
    "CHANGER_HOLD_END": Step("ss_changer_enter ss_hold_end", "changer gets in past a dead thread"),
    "BOUND": Step("ss_changer_enter ss_preempt", "changer gets in"),
    "PREEMPT_TELL": Step("ss_slot_preempt", "again"),
    "NAMED_LOOK": Step("ss_slot_preempt", "one"),
    "FIRST_LOOK": Step("ss_slot_preempt ss_slot_child_left", "one"),
    "STOP": Step("ss_slot_kill", "one"),
    "SECOND_LOOK": Step("ss_slot_kill ss_slot_child_left", "one"),
    "CONTINUE": Step("ss_slot_kill", "one"),
    "KILL": Step("ss_slot_kill", "one"),
    "KILLED_MARK": Step("ss_slot_kill ss_conclude ss_classify ss_reap", "one"),
    "GRACE": Step("ss_slot_is_gone", "one"),
    "DROP": Step("ss_slot_preempt ss_slot_is_gone", "changer gets in"),
    "DROP_COUNT": Step("ss_preempt ss_spawner_uncount", "changer gets in"),
    "BEGIN_MOVE": Step("ss_changer_enter ss_epoch_move", "one"),
    "TELL": Step("ss_epoch_move ss_slot_busy", "one"),
    "TELL_BUSY": Step("ss_slot_busy", "two changers"),
    "END_MOVE": Step("ss_change_end ss_changer_leave ss_epoch_move", "one"),
    "CHANGER_LEAVE": Step("ss_changer_leave", "one"),
    # Fork.
    "WIPE": Step("ss_lock_map", "fork in a change"),
    "UNSURE": Step("ss_fork_prepare ss_fork_child ss_lock_look", "fork"),
    "FORK_CHILD": Step("ss_fork_child ss_lock_ours", "fork"),
    "PID_LOOK": Step("ss_lock_ours", "fork"),
    "END_SINCE": Step("ss_change_end", "fork in a change"),
    "SINCE_FIRST": Step("ss_lock_ours", "fork past libc"),
}
