"""The report of a run as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import judge


@dataclass
class Result:
    """What a run came to."""

    seconds: float
    machine: str
    samples: list[dict[str, int]]
    trends: list[judge.Trend]
    counts: dict[str, int]
    #: By way: how many were asked for, and what the callers were told.
    ways: dict[str, dict[str, int]]
    strategies: dict[str, int]
    events: dict[str, int]
    degraded: dict[str, int]
    verified: str
    chains: int
    spawns: int
    findings: list[str] = field(default_factory=list)
    #: What threat-model.md says may come.
    notes: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One line."""
        how = "failed" if self.findings else "passed"
        c = self.counts
        return (
            f"soak {how}: {self.seconds:g} s, {self.spawns} spawns all accounted for"
            if not self.findings
            else f"soak {how}: {self.seconds:g} s, {self.spawns} spawns, {len(self.findings)} findings"
        ) + (
            f"; {c.get('changes', 0)} changes, {c.get('forks', 0)} forks, {c.get('rotations', 0)} rotations, "
            f"{c.get('sleepers ended', 0) + c.get('children signalled', 0)} killed, "
            f"{c.get('helpers killed', 0)} helpers killed"
        )


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    cells = [
        head,
        *(tuple(f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row) for row in rows),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells
    ]
    return [line.rstrip() for line in lines]


def text(result: Result) -> str:
    """Return the report for people; its last line is the summary."""
    words = {True: "flat", False: "GROWS", None: "not judged"}
    lines = [f"soak of {result.seconds:g} seconds on {result.machine}", ""]
    lines += [f"what was held, by thirds of the run ({len(result.samples)} samples, medians)"]
    rows = [(one.name, *one.medians, one.limit, one.most, words[one.flat]) for one in result.trends]
    lines += _table(("", "first", "second", "last", "allowed", "most", ""), rows)
    lines += ["", "what was done", *_table(("", "times"), sorted(result.counts.items()))]
    lines += ["", "what callers were told"]
    told = [
        (way, how, count) for way, several in sorted(result.ways.items()) for how, count in several.items()
    ]
    lines += _table(("way", "told", "times"), told)
    lines += ["", "strategies that were used", *_table(("", "times"), sorted(result.strategies.items()))]
    lines += ["", f"the ledger: {result.chains} chains; {result.verified}"]
    lines += _table(("record", "times"), sorted(result.events.items()))
    lines += _table(("degraded", "times"), sorted(result.degraded.items())) if result.degraded else []
    lines += ["", *(f"note: {one}" for one in result.notes), *(f"finding: {one}" for one in result.findings)]
    lines.append(result.summary)
    return "\n".join(lines) + "\n"


def write(result: Result, where: Path) -> None:
    """Write soak.txt and soak.json into a directory."""
    where.mkdir(parents=True, exist_ok=True)
    (where / "soak.txt").write_text(text(result), encoding="utf-8")
    trends = {one.name: one._asdict() for one in result.trends}
    told = {**vars(result), "trends": trends, "summary": result.summary}
    (where / "soak.json").write_text(json.dumps(told, indent=1) + "\n", encoding="ascii")
