"""Spawns and events as lines for a terminal. Whatever a record holds, only printable text comes out."""

from __future__ import annotations

from . import _happened, _shown
from ._shown import Names
from .spawns import Event, Spawn

__all__ = ["ASIDE", "Table", "name_of", "numbers_only", "printable"]

#: Events that say only that the trail goes on; shown if all are asked for.
ASIDE = frozenset({"checkpoint"})

name_of = _shown.name_of
numbers_only = _shown.numbers_only
printable = _shown.clean


#: Columns and their widths: 80 with one blank in between.
_COLUMNS = {"WHEN": 23, "WHO": 16, "WAY": 8, "RESULT": 22, "TOOK": 7}
_MAIN = "COMMAND"
#: What an event that is not of a spawn has instead of the last three.
_EVENT_WIDTHS = (23, 16, 39)
#: A narrower terminal has the command on a line of its own.
_NARROW = 110
_INDENT = "    "


class Table:
    """Makes the lines. ``width`` is that of the terminal in columns; None cuts nothing."""

    def __init__(self, *, width: int | None = None, names: Names = _shown.name_of) -> None:
        self._width = width
        self._names = names

    def head(self) -> str:
        """Return the titles."""
        return "\n".join(self._row(tuple(_COLUMNS), tuple(_COLUMNS.values()), _MAIN))

    def lines(self, entry: Spawn | Event) -> list[str]:
        """Return the lines about one entry, without their newlines."""
        return self._spawn(entry) if isinstance(entry, Spawn) else self._event(entry)

    def _spawn(self, spawn: Spawn) -> list[str]:
        cells = (
            _shown.moment(spawn.when_ns),
            _shown.who(spawn, self._names),
            printable(spawn.strategy or "-"),
            _shown.result(spawn),
            _shown.duration(spawn.duration_ns),
        )
        main = _shown.command(spawn)
        tags = f"  [{_shown.tags(spawn.tags)}]" if spawn.tags else ""
        lines = self._row(cells, tuple(_COLUMNS.values()), main, tags)
        why = _shown.reason(spawn)
        return lines if why is None else [*lines, self._cut(f"{_INDENT}{why}")]

    def _event(self, event: Event) -> list[str]:
        when, actor = _shown.moment(event.when_ns), _happened.actor(event, self._names)
        cells = (when, actor, printable(event.event))
        return self._row(cells, _EVENT_WIDTHS, _happened.detail(event, self._names))

    def _row(self, cells: tuple[str, ...], widths: tuple[int, ...], main: str, tags: str = "") -> list[str]:
        if self._width is None:
            lead = " ".join(map(_shown.filled, cells, widths))
            return [f"{lead} {main}{tags}".rstrip()]
        lead = " ".join(map(_shown.filled, map(_shown.cut, cells, widths), widths))
        if self._width < _NARROW:
            return [self._cut(lead.rstrip()), _INDENT + self._fit(main, tags, len(_INDENT))]
        return [f"{lead} {self._fit(main, tags, _shown.width(lead) + 1)}".rstrip()]

    def _fit(self, main: str, tags: str, taken: int) -> str:
        """Cut the tags to what the command leaves, a third at least, and the command to the rest."""
        room = max(0, (self._width or 0) - taken)
        tags = _shown.cut(tags, max(room // 3, room - _shown.width(main)))
        return _shown.cut(main, room - _shown.width(tags)) + tags

    def _cut(self, line: str) -> str:
        return line if self._width is None else _shown.cut(line, self._width)
