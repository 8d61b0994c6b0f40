"""A report of a ledger as one HTML page that needs nothing else, and runs or loads nothing of what it shows.

Times on the page are UTC. The page depends on the entries, on what is given here, and on nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from typing import NamedTuple

from . import _page_assets, _shown, _timeline
from ._markup import cell, number, row, section, table, text
from ._page_tables import Tables, counted, newest
from ._shown import Names
from ._summary import KINDS, Summary
from .spawns import iso

__all__ = ["Made", "Summary", "page"]

#: Tags to choose from.
_TAGS = 200

#: What the kinds of spawns mean.
_MEANING = {
    "vfork": "ran by vfork, clone or posix_spawn",
    "launcher": "ran by the launcher",
    "helper": "ran by the helper, from its pool too",
    "fork": "ran by fork",
    "other": "ran, no record of how",
    "failed": "failed before it ran",
    "refused": "refused by a guard",
    "unknown": "announced, may have run",
}


class Made(NamedTuple):
    """What a page says of itself: from which file, with which filter in words, and when (ns) it was made."""

    source: str
    wanted: str
    at_ns: int


def page(summary: Summary, made: Made, names: Names = _shown.name_of) -> str:
    """Return the page. ``names`` gives the name of a uid."""
    tables = Tables(names)
    parts = _sections(summary, tables)
    links = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title, _ in parts)
    return "".join(
        [
            _HEAD.format(policy=_policy(), style=_page_assets.STYLE, title=text(f"Audit of {made.source}")),
            f"<header><h1>Audit of {text(made.source)}</h1>\n{_about(made)}</header>\n",
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n',
            *(section(name, title, inner) for name, title, inner in parts),
            f"</main>\n<script>{_page_assets.SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")


def _policy() -> str:
    """Return the Content-Security-Policy (W3C CSP 3): this style, this script, and nothing from anywhere."""
    style, script = _digest(_page_assets.STYLE), _digest(_page_assets.SCRIPT)
    return (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"
    )


def _about(made: Made) -> str:
    wanted = f" Only what was asked for: {text(made.wanted)}." if made.wanted else ""
    return (
        f'<p class="soft">Made {iso(made.at_ns)[:19].replace("T", " ")} UTC.{wanted} '
        "This page shows what the ledger says, not whether it is whole and unchanged: "
        "<code>safespawn audit verify</code> checks that.</p>\n"
    )


def _sections(summary: Summary, tables: Tables) -> list[tuple[str, str, str]]:
    """Return anchor, title and content of every part of the page."""
    slowest = summary.slowest()
    lists = {
        "refusals": ("Refusals", summary.refused),
        "failures": ("Failures", summary.failed),
        "unknown": ("Announced, and may have run", summary.unknown),
    }
    spawns = {
        name: (name, title, tables.spawns(counted(one), newest(one)) if one.count else "")
        for name, (title, one) in lists.items()
    }
    longest = tables.spawns(f"The {len(slowest)} longest, from the clone until we went on", slowest)
    return [
        ("summary", "Summary", _cards(summary)),
        ("timeline", "Timeline", _times(summary)),
        ("who", "Who ran what as whom", tables.who(summary.programs) if summary.count else ""),
        ("strategies", "Strategies and why", tables.ways(summary.ways) if summary.count else ""),
        spawns["refusals"],
        ("fallbacks", "Fallbacks", tables.fallbacks(summary.fallbacks) if len(summary.fallbacks) else ""),
        spawns["failures"],
        spawns["unknown"],
        ("slowest", "Slowest windows", longest if slowest else ""),
        *(
            (name, title, tables.events(one) if one.count else "")
            for name, title, one in (
                ("changes", "Credential changes", summary.changes),
                ("losses", "Losses and mirrors", summary.losses),
                ("others", "Other events", summary.others),
            )
        ),
        ("problems", "Lines that are no records", tables.problems(summary) if summary.problems else ""),
        ("tags", "Tags", tables.tags(summary.tags) if len(summary.tags) else ""),
        ("all", "Spawns", _all(summary, tables) if summary.count else ""),
    ]


def _cards(summary: Summary) -> str:
    """The counters, those first that ask for a look."""
    outcomes, ends = summary.outcomes, summary.ends
    failed = summary.failed.count
    cards = [
        ("spawns", summary.count, ""),
        ("ran a program", outcomes["exec"], ""),
        ("refused", outcomes["refused"], "bad"),
        ("failed", failed, "bad"),
        ("may have run", outcomes["unknown"], "odd"),
        ("fell back to fork", summary.fallbacks.count, "odd"),
        *((f"by {name}", count, "") for name, count in sorted(summary.strategies.items())),
        *((name, count, "") for name, count in sorted(ends.items())),
        ("credential changes", summary.changes.count, ""),
        ("losses and mirrors", summary.losses.count, "bad"),
        ("lines that are no records", summary.problem_count, "bad"),
        ("records that came twice", summary.repeated, ""),
    ]
    shown = "".join(
        f'<div class="{kind if count else ""}"><dt>{text(name)}</dt><dd>{count:,}</dd></div>'
        for name, count, kind in cards
    )
    return f'<dl class="cards">{shown}</dl>\n{_span(summary)}'


def _span(summary: Summary) -> str:
    if summary.first_ns is None or summary.last_ns is None:
        return ""
    first, last = (iso(when)[:19].replace("T", " ") for when in (summary.first_ns, summary.last_ns))
    events = ", ".join(f"{count:,} {name}" for name, count in sorted(summary.events.items()))
    return f"<p>From {first} to {last} UTC. Other records: {text(events) or 'none'}.</p>\n"


def _times(summary: Summary) -> str:
    drawn = _timeline.charts(summary.times)
    if not drawn:
        return ""
    legend = "".join(f'<li class="kind {name}">{text(_MEANING[name])}</li>' for name in KINDS)
    left = drawn[0].left_out + summary.times.others
    note = f'<p class="soft">{left:,} earlier spawns are left out.</p>\n' if left else ""
    closer = "".join(
        f"<details><summary>{text(_headline(chart))}</summary>{_drawn(chart)}</details>\n"
        for chart in drawn[1:]
    )
    closer = f"<h3>Closer, the last first</h3>\n{closer}" if closer else ""
    return f'<ul class="legend">{legend}</ul>\n{note}{_drawn(drawn[0])}{closer}'


def _headline(chart: _timeline.Chart) -> str:
    return f"{chart.title}: {sum(bar.kinds.total() for bar in chart.bars):,} spawns"


def _drawn(chart: _timeline.Chart) -> str:
    rows = (
        row([cell(bar.label, "w"), *(number(bar.kinds[name]) for name in KINDS)])
        for bar in chart.bars
        if bar.kinds
    )
    numbers = table(f"{chart.title}: the numbers", ("Begins (UTC)", *KINDS), rows, numbers=KINDS)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(chart.title)}">'
        f"{_timeline.svg(chart)}</div><details><summary>The numbers</summary>{numbers}</details>\n"
    )


def _all(summary: Summary, tables: Tables) -> str:
    spawns = newest(summary.rows)
    present = sorted({(key, value) for spawn in spawns for key, value in (spawn.tags or {}).items()})
    form = _FORM.format(
        kinds="".join(_option(name, _MEANING[name]) for name in KINDS),
        tags="".join(_option(f"{key}={value}") for key, value in present[:_TAGS]),
    )
    return form + tables.spawns(counted(summary.rows), spawns, name="spawns")


#: Shown by the script, without which it would do nothing.
_FORM = """\
<form id="search" class="search" hidden>
<label>Search<input type="search" placeholder="words of a row" autocomplete="off"></label>
<label>Kind<select><option value="">all</option>{kinds}</select></label>
<label>Tag<select><option value="">all</option>{tags}</select></label>
<output aria-live="polite"></output>
</form>
"""


def _option(value: str, shown: str | None = None) -> str:
    return f'<option value="{text(value)}">{text(value if shown is None else shown)}</option>'
