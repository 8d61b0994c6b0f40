"""One run from beginning to end: measure, keep, print, draw."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import AXES, machine, measure, page, peers, plan, plots, question, tables, targets, window
from .progress import Progress
from .results import Place, Results, from_json, to_json
from .tools import Tools, Unable


def options(
    *,
    quick: bool = False,
    axes: list[str] | None = None,
    sizes: list[int] | None = None,
    seconds: float | None = None,
    rounds: int | None = None,
) -> plan.Options:
    """Return how much to measure. ``sizes``: MiB, for the axes of sizes; ``rounds``: the most.

    Raises ValueError for a value that cannot be meant.
    """
    made = plan.QUICK if quick else dataclasses.replace(plan.Options(), spawners=_spawners())
    if axes:
        unknown = [axis for axis in axes if axis not in AXES]
        if unknown:
            raise ValueError(f"no such axis: {unknown[0]}; there are {', '.join(AXES)}")
        made = dataclasses.replace(made, axes=tuple(axis for axis in AXES if axis in axes))
    if sizes:
        if min(sizes) < 1:
            raise ValueError(f"sizes are MiB, 1 or more, not {min(sizes)}")
        ordered = tuple(sorted(set(sizes)))
        made = dataclasses.replace(made, sizes=ordered, user_sizes=ordered, page_sizes=ordered)
    if seconds is not None:
        if not 0 < seconds < float("inf"):
            raise ValueError(f"seconds must be more than 0, not {seconds}")
        made = dataclasses.replace(made, seconds=seconds)
    if rounds is not None:
        if rounds < 1:
            raise ValueError(f"rounds must be 1 or more, not {rounds}")
        made = dataclasses.replace(made, most=rounds, least=min(made.least, rounds))
    return made


def _spawners() -> tuple[int, ...]:
    """Return how many threads spawn at once: 1, 2, and up to twice the processors."""
    count = os.cpu_count() or 1
    return tuple(sorted({1, 2, count, 2 * count}))


def run(asked: plan.Options, progress: bool = True) -> Results:
    """Measure all that was asked for. Progress goes to stderr."""
    cells = plan.cells(asked)
    results = Results(machine.facts(), plan.told(asked), _now())
    begun = time.monotonic()
    steps = sum(len(cell.tasks) for cell in cells) + ("targets" in asked.axes)
    stream = sys.stderr if progress else open(os.devnull, "w", encoding="ascii")  # noqa: SIM115 - closed below
    try:
        with Tools() as tools, Progress(steps, stream) as shown:
            results.machine["versions"] = dict(tools.versions)
            measurement = measure.Measurement(results, tools, asked, shown.say)
            for cell in cells:
                measurement.cell(cell, shown.step)
            if "targets" in asked.axes:
                shown.say("targets: the window in C")
                window.measure(results, tools, asked.window_rounds)
                shown.step()
    finally:
        if stream is not sys.stderr:
            stream.close()
    results.seconds = round(time.monotonic() - begun, 1)
    results.machine["load_after"] = os.getloadavg()[0]
    return results


def _now() -> str:
    return dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def load(path: Path) -> Results:
    """Return the results of a file. Raises OSError, and ValueError for a file that is none of ours."""
    return from_json(json.loads(path.read_text(encoding="utf-8")))


def save(results: Results, path: Path) -> None:
    """Write the results to a file, in one step. Raises OSError."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(json.dumps(to_json(results), separators=(",", ":")) + "\n", encoding="utf-8")
    new.replace(path)


def report(results: Results) -> str:
    """Return all that is printed: the machine, a table for each measure, the question, the targets."""
    made = [table for axis in AXES if axis != "question" for table in tables.of_axis(results, axis)]
    made += [tables.of_done(results), *question.of_question(results)]
    if "targets" in results.options["axes"]:
        made.append(tables.of_targets(targets.verdicts(results)))
    made.append(tables.of_missing(results))
    head = [machine.line(results.machine), f"{results.started}, {results.seconds:.0f} s; medians (quartiles)"]
    head += filter(None, [machine.busy(results.machine)])
    return "\n\n".join(["\n".join(head), *(tables.text(table) for table in made if table.rows)])


def draw(results: Results, where: Path) -> list[Path]:
    """Draw the plots into a directory. Raises ModuleNotFoundError without matplotlib, OSError."""
    told = results.machine
    text = f"{told['kernel']} {told['architecture']}, {told['processor']}; safespawn {told['safespawn']}"
    return plots.draw(results, where, f"{text}; {results.started}")


def fill(results: Results, path: Path) -> None:
    """Put the tables between the marks of a page. Raises OSError, ValueError for a page without them."""
    path.write_text(page.between(path.read_text(encoding="utf-8"), page.part(results)), encoding="utf-8")


def listing() -> Iterator[str]:
    """Yield lines: the axes with their values, and each way with whether it can be measured here."""
    asked = options()
    values: dict[str, Any] = {
        "size": asked.sizes,
        "threads": asked.threads,
        "user": asked.user_sizes,
        "pages": asked.page_sizes,
        "spawners": asked.spawners,
        "batch": asked.batches,
        "question": asked.question_sizes,
        "targets": (),
    }
    yield "axes:"
    for axis, what in AXES.items():
        yield f"  {axis:10} {what}{': ' if values[axis] else ''}{', '.join(map(str, values[axis]))}"
    yield "ways:"
    with Tools() as tools:
        small = Place(1)
        for maker in (
            peers.python_peer(tools, small),
            *peers.of_other_languages(tools, small),
            peers.program(tools, small),
        ):
            yield from _tried(maker)


def _tried(maker: peers.Maker) -> Iterator[str]:
    try:
        peer = maker.make(False)
    except (Unable, OSError) as problem:
        yield f"  {maker.name:32} missing: {problem}"
        return
    try:
        for way in peer.ways:
            yield f"  {way:32} {_state(peer, way)}"
    finally:
        peer.close()


def _state(peer: peers.Peer, way: str) -> str:
    try:
        peer.ask("exit", way, "self", 1)
    except Unable as problem:
        return f"missing: {problem}"
    return "can be measured"
