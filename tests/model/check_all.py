"""The long form of the model: every check, then every step taken out. Run by ``make model``; a few minutes."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import runner
import steps

ALL = {**steps.CHECKS, **steps.LONG}


def _check(name: str) -> runner.Answer:
    answer = runner.run(ALL[name])
    print(
        f"{name}: {answer.error or 'holds'}, {answer.states:,} states, depth {answer.depth:,}, {answer.seconds:.1f} s",
        flush=True,
    )
    return answer


def _is_spared(name: str) -> bool:
    step = steps.STEPS[name]
    answer = runner.run(steps.CHECKS[step.fails], without=name)
    print(f"without {name}, {step.fails}: {answer.error or 'holds as before'}", flush=True)
    return answer.error is None


def main() -> int:
    """Print a line for each check and one for all. Returns 0 if all hold and no step can be spared."""
    start = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = list(pool.map(_check, ALL))
        spared = sum(pool.map(_is_spared, steps.STEPS))
    wrong = sum(answer.error is not None for answer in answers)
    print(
        f"model: {len(answers)} checks, {wrong} failed; {sum(one.states for one in answers):,} states, "
        f"depth {max(one.depth for one in answers):,}; {len(steps.STEPS) - spared} of {len(steps.STEPS)} "
        f"removed steps caught; {time.monotonic() - start:.0f} s"
    )
    return 1 if wrong or spared else 0


if __name__ == "__main__":
    sys.exit(main())
