"""One check of the model: spin makes a verifier of it, gcc compiles that, and it looks at every state."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MODEL = Path(__file__).with_name("credlock.pml")

#: Of the verifier. A search that is cut off at this depth is no proof, and counts as an error.
DEPTH = 200_000

#: bytes of memory, in MiB, past which a verifier gives up
MEMORY = 4096


class Check(NamedTuple):
    """What is looked at: the switches of the model, and the name of a formula or None for safety.

    ``is_big`` says that there are millions of states: then the time of the compiler is well spent.
    """

    switches: tuple[str, ...]
    formula: str | None = None
    is_big: bool = False


class Answer(NamedTuple):
    """What came of it. ``error`` is the verifier's own word for what is wrong, None if nothing is."""

    error: str | None
    states: int
    depth: int
    seconds: float


def _run(words: list[str], where: str) -> str:
    done = subprocess.run(
        words, cwd=where, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"the verifier said nothing of it ({pattern}):\n{text[-3000:]}")
    return int(float(found[1]))


def run(check: Check, *, without: str | None = None) -> Answer:
    """Look at every state, or until something is wrong. Raises RuntimeError if that cannot be done.

    The states are kept whole (compressed without loss, spin's COLLAPSE): neither hashes nor bits stand for them.
    """
    start = time.monotonic()
    switches = [f"-D{name}" for name in check.switches]
    if without:
        switches.append(f"-DWITHOUT_{without}")
    if check.formula:
        switches.append(f"-DCHECK_{check.formula.upper()}")
        how, search = ["-DNFAIR=4"], ["-a", "-f", "-N", check.formula]
    else:
        how, search = ["-DSAFETY", "-DNOFAIR"], []
    optimize, table = ("-O2", "-w24") if check.is_big else ("-O0", "-w16")
    with tempfile.TemporaryDirectory(prefix="credlock-model-") as where:
        _run(["spin", "-a", *switches, str(MODEL)], where)
        _run(["gcc", optimize, "-w", "-DCOLLAPSE", f"-DMEMLIM={MEMORY}", *how, "-o", "pan", "pan.c"], where)
        said = _run(["./pan", f"-m{DEPTH}", table, *search], where)
    wrong = re.search(r"^pan:\d+: (.*?)(?: \(at depth|$)", said, re.MULTILINE)
    error = wrong[1] if wrong else None
    if error is None and ("max search depth too small" in said or "Search not completed" in said):
        raise RuntimeError(f"not all was looked at:\n{said[-3000:]}")
    if error is None and _number(r"errors: (\d+)", said):
        raise RuntimeError(f"an error without a word:\n{said[-3000:]}")
    return Answer(
        error,
        _number(r"([\d.e+]+) states, stored", said),
        _number(r"depth reached (\d+)", said),
        time.monotonic() - start,
    )
