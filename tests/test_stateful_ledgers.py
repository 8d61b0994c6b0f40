"""The ledger against a model: any order of openings, rotations, ends, forks and programs."""

from __future__ import annotations

import sys

import pytest

import helpers

sys.path.append(str(helpers.TESTS / "stateful"))
pytest.register_assert_rewrite("modelled", "ledger_machine")

import modelled
from ledger_machine import Ledgers


@pytest.mark.slow
def test_ledgers_agree_with_the_model() -> None:
    """After each rotation and each end it is whole; at the end it has just what was done while it was open."""
    modelled.run(Ledgers, 8)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("start_is_not_recorded", "accounts:"),
        pytest.param("chain_has_no_end", "chains:", marks=pytest.mark.long),
        pytest.param("rotation_goes_on_in_the_old_file", "/ledger", marks=pytest.mark.long),
    ],
)
def test_planted_faults_are_found(plant: str, words: str) -> None:
    """The machine finds each of these faults of the library."""
    assert words in modelled.finds(Ledgers, plant)
