"""Helpers against a model: any order of starts, spawns, kills, policies, drops, forks and ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import helpers

sys.path.append(str(helpers.TESTS / "stateful"))
pytest.register_assert_rewrite("modelled", "helping_machine")

import modelled
from helping_machine import Helpers


@pytest.mark.slow
def test_helpers_agree_with_the_model() -> None:
    """Who is asked, who refuses, what is lost and what is told are those of the model after each step."""
    modelled.run(Helpers, 8)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("helper_does_not_obey", "was to raise"),
        pytest.param("helper_does_not_retire", "does not end", marks=pytest.mark.long),
        pytest.param("helper_is_told_of_twice", "told:", marks=pytest.mark.long),
    ],
)
def test_planted_faults_are_found(hooks_path: Path, plant: str, words: str) -> None:
    """The machine finds each of these faults of the library."""
    assert words in modelled.finds(Helpers, plant, path=hooks_path)
