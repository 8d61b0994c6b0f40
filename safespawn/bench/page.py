"""The part of a page that a run fills: between two marks, everything is put there anew."""

from __future__ import annotations

from . import machine, question, tables, targets
from .results import Results

#: Lines of the page. What is between them is ours.
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

#: The tables along an axis that a page has; all of them are what the command prints.
_SHOWN = (("size", "exit"), ("user", "exit"))


def between(text: str, new: str) -> str:
    """Return the page with that between its marks.

    Raises ValueError if it does not have each of them once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page must have {BEGIN} and then {END}, each once")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{new.strip()}\n\n{END}{after}"


def part(results: Results) -> str:
    """Return what stands there: the machine, the targets, the question, and tables of some axes."""
    made = [tables.of_targets(targets.verdicts(results)), *question.of_question(results)]
    for axis, measure in _SHOWN:
        title = tables.MEASURES[measure]
        made += [one for one in tables.of_axis(results, axis) if one.title.startswith(title)]
    made.append(tables.of_missing(results))
    parts = [
        f"Measured {results.started}, {results.seconds:.0f} s, in one run: {machine.line(results.machine)}.",
        f"Medians, quartiles in brackets. {machine.busy(results.machine)}".strip(),
    ]
    parts += [f"{table.title}:\n\n{tables.markdown(table)}" for table in made if table.rows]
    return "\n\n".join(parts)
