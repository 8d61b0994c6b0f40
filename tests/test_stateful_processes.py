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


def test_fork_beside_threads_starts_by_fork() -> None:
    """The model knows what a fork beside threads does: what would share its memory is refused, and the rest goes on."""
    with modelled.driven(Processes) as made:
        machine = made()
        machine.first(False)
        machine.threads(0, 1)
        machine.fork(0)
        machine.threads(1, 1)
        machine.spawn(1, "Popen", "auto")
        machine.drop(1, 2)
        machine.end_dropped(1, 0)
        for face in ("spawn", "Popen"):
            for strategy in ("auto", "vfork", "clone", "fork", "launcher", "posix_spawn"):
                machine.spawn(1, face, strategy)
                machine.children_are_as_they_should()
        machine.teardown()


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("pidfd_stays_open", "pidfd"),
        pytest.param("dropped_is_not_reaped", "children:", marks=pytest.mark.long),
        pytest.param("fork_may_wait", "exit.unknown", marks=pytest.mark.long),
        pytest.param("exit_is_not_recorded", "otherwise", marks=pytest.mark.long),
        pytest.param("wait_forgets_signals", "codes:", marks=pytest.mark.long),
    ],
)
def test_planted_faults_are_found(plant: str, words: str) -> None:
    """The machine finds each of these faults of the library."""
    assert words in modelled.finds(Processes, plant)
