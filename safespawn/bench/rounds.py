"""Who has a turn in which round, from what a sample of each costs. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple

#: Samples in one turn, and the seconds that one turn should not exceed.
BLOCK, BLOCK_SECONDS = 8, 0.01


class Turn(NamedTuple):
    """A turn of a way: how many samples it takes."""

    way: str
    size: int


class Effort(NamedTuple):
    """Seconds for all ways together, the least and the most rounds; each way has ``least`` turns or more."""

    seconds: float
    least: int = 3
    most: int = 400


def _stride(cost: float) -> int:
    """Return in every how many rounds a way has its turn, a power of two: slow ways then meet each other."""
    stride = 1
    while cost > BLOCK_SECONDS * stride:
        stride *= 2
    return stride


def schedule(costs: Mapping[str, float], effort: Effort) -> list[list[Turn]]:
    """Return the turns of each round, in the order in which they are taken.

    ``costs``: seconds for one sample, by way. Slow ways take fewer samples and sit rounds out, so that they
    do not take all the time; the order of a round is shuffled, alike in every run, because who comes after a
    fork finds memory that it must not write to yet.
    """
    if not costs:
        return []
    blocks = {way: max(1, min(BLOCK, int(BLOCK_SECONDS / max(cost, 1e-6)))) for way, cost in costs.items()}
    strides = {way: _stride(cost * blocks[way]) for way, cost in costs.items()}
    each = sum(cost * blocks[way] / strides[way] for way, cost in costs.items())
    count = max(effort.least, min(effort.most, int(effort.seconds / max(each, 1e-6))))
    strides = {way: max(1, min(stride, count // effort.least)) for way, stride in strides.items()}
    made = []
    for number in range(count):
        turns = [Turn(way, blocks[way]) for way in costs if number % strides[way] == 0]
        random.Random(number).shuffle(turns)  # noqa: S311 - an order, no secret
        made.append(turns)
    return made
