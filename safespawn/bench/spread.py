"""Medians, quartiles, and ratios of what was measured in the same round. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: The samples of a way, round by round; empty for a round in which it had no turn.
Rounds = Sequence[Sequence[int]]


class Spread(NamedTuple):
    """A median with its quartiles, in the unit of the samples, and how many they were."""

    median: float
    low: float
    high: float
    samples: int


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which that share of sorted values lies.

    Between two of them it is interpolated: type 7 of Hyndman and Fan, "inclusive" in the standard library.
    Raises ValueError for no values, or a share outside of 0 to 1.
    """
    if not ordered or not 0 <= share <= 1:
        raise ValueError(f"no quantile {share} of {len(ordered)} values")
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    # Of two equal values it must be that value, and rounding must not lead out from between them.
    value = ordered[below] + (ordered[above] - ordered[below]) * (place - below)
    return min(max(value, ordered[below]), ordered[above])


def spread(samples: Sequence[float]) -> Spread:
    """Return median and quartiles. Raises ValueError for no samples."""
    ordered = sorted(samples)
    return Spread(quantile(ordered, 0.5), quantile(ordered, 0.25), quantile(ordered, 0.75), len(ordered))


def flat(rounds: Rounds) -> list[int]:
    """Return all samples, in the order in which they were taken."""
    return [sample for one in rounds for sample in one]


def _medians(first: Rounds, second: Rounds) -> list[tuple[float, float]]:
    """Return the medians of each round in which both had a turn."""
    return [(spread(a).median, spread(b).median) for a, b in zip(first, second, strict=False) if a and b]


def ratios(first: Rounds, second: Rounds) -> Spread:
    """Return first to second, taken round by round.

    What slows the machine down for a while slows both down then, and does not move the ratio. Raises
    ValueError if they had no round in common.
    """
    return spread([a / b for a, b in _medians(first, second)])


def differences(first: Rounds, second: Rounds) -> Spread:
    """Return first less second, taken round by round. Raises ValueError as :func:`ratios` does."""
    return spread([a - b for a, b in _medians(first, second)])
