"""The credential lock and the seal against a model: any order of changes, drops, seals, forks and spawns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import helpers

sys.path.append(str(helpers.TESTS / "stateful"))
pytest.register_assert_rewrite("modelled", "credentials")

import modelled
from credentials import Credentials


@pytest.mark.slow
def test_credentials_agree_with_the_model() -> None:
    """Ids, counts of the lock, refusals, strategies and proofs are those of the model after each step."""
    modelled.run(Credentials, 8)


def test_fork_beside_threads_proves_nothing_by_the_lock() -> None:
    """The model knows of forks beside threads, and of their forks: with a thread of its own, only the seal proves anything."""
    with modelled.driven(Credentials) as made:
        machine = made()
        machine.threads(0, 1)
        machine.fork(0)
        for sealed in (False, True):
            if sealed:
                machine.seal(1)
            machine.threads(1, 1)
            for strategy in ("auto", "vfork", "clone", "fork"):
                machine.spawn(1, strategy)
            for strategy in ("auto", "vfork", "launcher", "fork"):
                machine.spawn_as(1, strategy)
            machine.everybody_is_as_they_should()
            machine.threads(1, 0)
        machine.fork(1)
        machine.threads(2, 1)
        machine.spawn(2, "auto")
        machine.teardown()


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("seal_is_no_seal", "was to raise"),
        pytest.param("changes_are_not_counted", "setgroups", marks=pytest.mark.long),
    ],
)
def test_planted_faults_are_found(hooks_path: Path, plant: str, words: str) -> None:
    """The machine finds each of these faults of the library."""
    assert words in modelled.finds(Credentials, plant, path=hooks_path)
