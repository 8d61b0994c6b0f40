"""Writes what came of the mutants for people: counts, who killed how many, and every survivor with what is known of it.

    python tests/mutation/survivors.py [RESULTS [PAGE]]

Survivors are explained in explained.toml, by id. Exit 1: one is not, or an explanation is of no survivor.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mutate import all_mutants
from targets import TARGETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
VERDICTS = ("killed", "survived", "equivalent", "uncompiled")


def explanations() -> dict[str, str]:
    """Return what is known of survivors, by id."""
    made: dict[str, str] = tomllib.loads((HERE / "explained.toml").read_text(encoding="utf-8"))
    return made


def table(results: dict[str, Any]) -> list[str]:
    """Return the counts of every group, of all mutants that there are."""
    lines = ["| group | mutants | tried | " + " | ".join(VERDICTS) + " |", "|---" * (3 + len(VERDICTS)) + "|"]
    for group in TARGETS:
        ids = {mutant.id for mutant in all_mutants(group)}
        counts = Counter(one["verdict"] for key, one in results.items() if key in ids)
        cells = [group, str(len(ids)), str(counts.total()), *(str(counts[word]) for word in VERDICTS)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(results: dict[str, Any], known: dict[str, str]) -> str:
    """Return the page."""
    by = Counter(one["by"].partition("::")[0] for one in results.values() if one["verdict"] == "killed")
    survivors = sorted(
        (one for one in results.values() if one["verdict"] == "survived"), key=lambda one: (one["file"], one["line"], one["id"])
    )
    lines = [
        "# Mutants", "",
        "Made by `python tests/mutation/survivors.py` from results.json. `make mutants` adds to that.", "",
        *table(results), "",
        "Killed by: " + ", ".join(f"`{name}` {count}" for name, count in by.most_common()) + ".", "",
        f"## Survivors ({len(survivors)})", "",
    ]  # fmt: skip
    for one in survivors:
        was, becomes = (json.dumps(one[key]) for key in ("was", "becomes"))
        lines.append(f"- `{one['id']}` {one['file']}, `{one['function']}`, {one['operator']}: {was} becomes {becomes}.")
        lines.append(f"  {known.get(one['id'], 'Not explained yet.')}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, and say what is wrong."""
    results_path, page_path = (Path(one) for one in (*sys.argv[1:3], *(HERE / "results.json", HERE / "results.md")[len(sys.argv) - 1 :]))
    results = json.loads(results_path.read_text(encoding="utf-8"))
    known = explanations()
    page_path.write_text(page(results, known), encoding="utf-8")
    survived = {key for key, one in results.items() if one["verdict"] == "survived"}
    counts = Counter(one["verdict"] for one in results.values())
    print(f"mutants: {len(results)} tried, " + ", ".join(f"{counts[word]} {word}" for word in VERDICTS)
          + f"; {len(survived - set(known))} survivors are not explained")  # fmt: skip
    for key in sorted(set(known) - survived):
        print(f"explained, but no survivor: {key}")
    return 1 if survived != set(known) else 0


if __name__ == "__main__":
    sys.exit(main())
