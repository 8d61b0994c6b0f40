"""Process and Popen against a model: any order of spawns, waits, kills, stops, drops and forks."""

from __future__ import annotations

import sys

import pytest

import helpers

sys.path.append(str(helpers.TESTS / "stateful"))
pytest.register_assert_rewrite("modelled", "processes")

import modelled
from processes import Processes


@pytest.mark.slow
def test_processes_agree_with_the_model() -> None:
    """Codes, children, warnings and records are those of the model after each step; nothing is left."""
    modelled.run(Processes, 8)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("pidfd_stays_open", "pidfd"),
        ("dropped_is_not_reaped", "children:"),
        ("fork_may_wait", "exit.unknown"),
        ("exit_is_not_recorded", "otherwise"),
        ("wait_forgets_signals", "codes:"),
    ],
)
def test_planted_faults_are_found(plant: str, words: str) -> None:
    """The machine finds each of these faults of the library."""
    assert words in modelled.finds(Processes, plant)
