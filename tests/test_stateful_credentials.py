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


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("seal_is_no_seal", "was to raise"),
        ("changes_are_not_counted", "setgroups"),
    ],
)
def test_planted_faults_are_found(hooks_path: Path, plant: str, words: str) -> None:
    """The machine finds each of these faults of the library."""
    assert words in modelled.finds(Credentials, plant, path=hooks_path)
