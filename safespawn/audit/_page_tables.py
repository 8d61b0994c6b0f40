"""The tables of the report page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from . import _happened, _shown
from ._markup import cell, code, number, row, table, text
from ._shown import Names
from ._summary import KINDS, Last, Line, Summary, Tally, kind
from .spawns import Event, Spawn, iso

#: Heads of columns with numbers.
NUMBERS = ("Spawns", *KINDS, "Window", "Took")
#: Rows of a table of groups.
_GROUPS = 200
#: Characters of a command that are shown; a record has up to 2600 bytes of it.
_COMMAND = 400

_WHEN = "When (UTC)"
_SPAWN_HEADS = (_WHEN, "Command, tags, why", "Who", "As", "Way", "Result", "Window", "Took", "Record")


class Tables:
    """Makes them. ``names`` gives the name of a uid."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def _user(self, uid: int) -> str:
        name = self._names(uid)
        return name if name == str(uid) else f"{name} ({uid})"

    def who(self, tally: Tally[tuple[int | str | None, ...]]) -> str:
        """Who ran which program as whom: one row for each that differs."""
        rows = (
            row([*self._users(spawn), _long(code(spawn.program or "?"), _why(spawn)), *_kinds(line)])
            for _, line in tally.most(_GROUPS)
            if (spawn := line.last) is not None
        )
        heads = ("Who", "As", "Program, and why the last one went so", *_KIND_HEADS)
        return _groups("combinations", heads, rows, tally)

    def _users(self, spawn: Spawn) -> list[str]:
        asked, runs = _shown.caller(spawn, self._user), _shown.target(spawn, self._user)
        return [cell(text(asked), "w"), cell(text(runs), "w")]

    @staticmethod
    def ways(tally: Tally[tuple[str, ...]]) -> str:
        """By which strategy, under which proof, for which reasons."""
        rows = (
            row([*(cell(text(word), "w") for word in key[:3]), _long(_listed(key[3:])), *_kinds(line)])
            for key, line in tally.most(_GROUPS)
        )
        return _groups("combinations", ("Asked for", "Strategy", "Proof", "Why", *_KIND_HEADS), rows, tally)

    @staticmethod
    def fallbacks(tally: Tally[tuple[str, ...]]) -> str:
        """Spawns that were forked though nobody asked for a fork."""
        rows = (
            row([cell(text(key[0])), cell(text(key[1] or "fork")), _long(_listed(key[2:])),
                 number(line.count), _last(line), _long("" if line.last is None else _command(line.last))])
            for key, line in tally.most(_GROUPS)
        )  # fmt: skip
        heads = ("Asked for", "Decided first", "Why it was forked", "Spawns", "Last (UTC)", "Last command")
        return _groups("combinations", heads, rows, tally)

    @staticmethod
    def tags(tally: Tally[tuple[str, str]]) -> str:
        """How many spawns have which tag."""
        rows = (row([_long(_tag(*pair)), *_kinds(line)]) for pair, line in tally.most(_GROUPS))
        return _groups("tags", ("Tag", *_KIND_HEADS), rows, tally)

    def spawns(self, caption: str, spawns: Sequence[Spawn], name: str | None = None) -> str:
        """Spawns, one row each."""
        return table(caption, _SPAWN_HEADS, map(self._spawn, spawns), numbers=NUMBERS, name=name)

    def _spawn(self, spawn: Spawn) -> str:
        tags = "".join(_tag(*pair) for pair in (spawn.tags or {}).items())
        cells = [
            _when(spawn.when_ns),
            _long(_command(spawn), f"<div>{tags}</div>" if tags else "", _why(spawn)),
            *self._users(spawn),
            cell(text(spawn.strategy or "none"), "w"),
            cell(f'<span class="kind {kind(spawn)}">{text(_shown.result(spawn))}</span>', "result"),
            _time(spawn.window_ns),
            _time(spawn.duration_ns),
            cell(f'<span title="spawn {text(spawn.sid)}">{text(spawn.where)}</span>', "w"),
        ]
        return row(cells, f' data-kind="{kind(spawn)}"')

    def events(self, events: Last[Event]) -> str:
        """Events that are not of a spawn."""
        rows = [
            row([_when(event.when_ns), cell(text(_happened.actor(event, self._user)), "w"),
                 cell(text(event.event), "w"), _long(text(_happened.detail(event, self._user))),
                 cell(text(event.record.where), "w")])
            for event in sorted(events.kept, key=_began, reverse=True)
        ]  # fmt: skip
        return table(counted(events), (_WHEN, "Process", "Event", "What", "Record"), rows)

    @staticmethod
    def problems(summary: Summary) -> str:
        """Lines that are no records."""
        rows = [
            row([cell(text(record.where), "w"), cell(text(record.problem or "")),
                 _long(code(_cut(record.line.decode("ascii", "backslashreplace"), 120)))])
            for record in summary.problems
        ]  # fmt: skip
        caption = f"The first {len(rows):,} of {summary.problem_count:,}"
        return table(caption, ("Where", "Problem", "Line"), rows)


def counted(entries: Last[Spawn] | Last[Event]) -> str:
    """Return how many of how many there are in a table of the last ones."""
    kept, count = len(entries.kept), entries.count
    return f"{count:,} in all, the last first" if kept == count else f"The last {kept:,} of {count:,}"


def newest(spawns: Last[Spawn]) -> list[Spawn]:
    """Return the spawns of a list, the youngest first."""
    return sorted(spawns.kept, key=_began, reverse=True)


def _began(entry: Spawn | Event) -> int:
    return entry.when_ns


def _groups(what: str, heads: Iterable[str], rows: Iterable[str], tally: Tally[Any]) -> str:
    caption = f"{len(tally):,} {what}, the most frequent first"
    if len(tally) > _GROUPS:
        caption += f"; {len(tally) - _GROUPS:,} are left out"
    if tally.others:
        caption += f"; {tally.others:,} spawns of further {what} were not told apart"
    return table(caption, heads, rows, numbers=NUMBERS)


def _cut(value: str, room: int) -> str:
    return value if len(value) <= room else value[: room - 1] + "…"


def _long(*parts: str) -> str:
    return cell("".join(parts), "long")


def _when(when_ns: int) -> str:
    return cell(iso(when_ns)[:23].replace("T", " "), "w", when_ns)


def _time(ns: int | None) -> str:
    return cell(text(_shown.duration(ns)), "n", -1 if ns is None else ns)


def _last(line: Line) -> str:
    return cell("") if line.last is None else _when(line.last.when_ns)


_KIND_HEADS = ("Spawns", *KINDS, "Last (UTC)")


def _kinds(line: Line) -> list[str]:
    return [number(line.count), *(number(line.kinds[name]) for name in KINDS), _last(line)]


def _command(spawn: Spawn) -> str:
    """Return the words of a command, none of which is broken where it fits into a line."""
    shown, room = [], _COMMAND
    for word in _shown.words(spawn):
        shown.append(f"<span>{text(_cut(word, max(room, 1)))}</span>")
        room -= len(word) + 1
        if room < -1:
            break
    return f"<code>{' '.join(shown)}</code>"


def _tag(key: str, value: str) -> str:
    return f'<span class="tag">{text(f"{key}={value}")}</span>'


def _listed(reasons: Iterable[str]) -> str:
    items = "".join(f"<li>{text(reason)}</li>" for reason in reasons)
    return f'<ul class="why">{items}</ul>' if items else ""


def _why(spawn: Spawn) -> str:
    extra = [spawn.message] if spawn.message else []
    return _listed([*extra, *(spawn.refused_by or spawn.why)])
