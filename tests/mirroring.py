"""What the tests of the mirrors share: lines that look like records, a ring in memory, a mirror that does as it is told."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING

from safespawn.audit.mirrors import Mirror, _datagrams
from safespawn.audit.mirrors._runner import Runner

if TYPE_CHECKING:
    import pytest

CHAIN = "01a20f5f-31f4-7abc-8def-0123456789ab"
SID = "01a20f5f-320e-7abc-8def-0123456789ab"
TIME_NS = 1795554226703651210
#: Printable ASCII, all of it: what a record can be made of, and what any form might stumble over.
PRINTABLE = "".join(map(chr, range(32, 127)))


def line(number: int = 0, event: str = "spawn.intent", *, size: int = 0, sid: str | None = SID, rest: str = "") -> bytes:
    """Return one record without its newline, filled up to ``size`` bytes with every printable character."""
    quoted = "null" if sid is None else f'"{sid}"'
    start = (
        f'{{"v":1,"c":"{CHAIN}","n":{number},"p":"{number:064x}","ev":"{event}","sid":{quoted},'
        f'"t":{TIME_NS},"mono":7,"boot":"","mode":"require"{rest},"fill":"'
    )
    room = max(0, size - len(start) - 2)
    fill = PRINTABLE.replace("\\", "\\\\").replace('"', '\\"')
    filled = (fill * (room // len(fill) + 1))[:room]
    if filled.endswith("\\"):
        filled = filled[:-1] + "."
    return f'{start}{filled}"}}'.encode("ascii")


#: The grammar of RFC 5424, section 6, as a reader of its own.
MESSAGE = re.compile(
    rb"<(?P<priority>[1-9]\d{0,2}|0)>1 (?P<time>\S+) (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<process>[!-~]{1,128})"
    rb" (?P<kind>[!-~]{1,32}) (?P<data>-|(?:\[(?:[^\]\\]|\\.)*\])+)(?: (?P<text>.*))?",
    re.DOTALL,
)
PARAMETER = re.compile(r' ([!#-<>-\\^-~]{1,32})="((?:[^"\\\]]|\\["\\\]])*)"')


def read_data(data: bytes) -> dict[str, str]:
    """Return the parameters of the one element with our id."""
    text = data.decode("utf-8")
    assert text.startswith("[safespawn@32473") and text.endswith("]")
    inside = text[len("[safespawn@32473") : -1]
    found = {name: re.sub(r'\\(["\\\]])', r"\1", value) for name, value in PARAMETER.findall(inside)}
    assert "".join(f' {name}="{value}"' for name, value in PARAMETER.findall(inside)) == inside
    return found


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Look again and again, leaving the processor to others, until ``holds()`` does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        os.sched_yield()


def waits_of(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that gets for how long mirrors of datagrams wait for room; for them no other time goes by."""
    waits: list[float] = []
    wait = _datagrams._wait_for_room

    def noted(sock: socket.socket, seconds: float) -> None:
        wait(sock, seconds)
        waits.append(seconds)

    monkeypatch.setattr(_datagrams, "_wait_for_room", noted)
    monkeypatch.setattr(_datagrams, "time", SimpleNamespace(monotonic=lambda: sum(waits)))
    return waits


class Ring:
    """A bounded ring of lines with one reader that it never waits for."""

    def __init__(self, room: int = 10000) -> None:
        self._lines: deque[bytes] = deque()
        self._room = room
        self._skipped = 0
        self._woken = False
        self._changed = threading.Condition()

    def put(self, *lines: bytes) -> None:
        """Add lines; the oldest make room."""
        with self._changed:
            for one in lines:
                if len(self._lines) == self._room:
                    self._lines.popleft()
                    self._skipped += 1
                self._lines.append(one)
            self._changed.notify_all()

    def take(self, timeout: float) -> tuple[list[bytes], int]:
        """As :class:`Feed` says."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._woken, timeout)
            self._woken = False
            lines, skipped = list(self._lines), self._skipped
            self._lines.clear()
            self._skipped = 0
            return lines, skipped

    def wake(self) -> None:
        """As :class:`Feed` says."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()


class Scripted(Mirror):
    """Does with each line what a function says, and notes every call."""

    def __init__(
        self,
        send: Callable[[bytes], object] = lambda _: None,
        *,
        name: str = "scripted",
        open: Callable[[], object] = lambda: None,
        check: Callable[[], str | None] = lambda: None,
        events: Iterable[str] | None = None,
    ) -> None:
        super().__init__(name, events)
        self.calls: list[str] = []
        self.taken: list[bytes] = []
        self._send, self._open, self._check = send, open, check

    def open(self) -> None:
        """Do what was said."""
        self.calls.append("open")
        self._open()

    def send(self, line: bytes) -> None:
        """Do what was said; note the line if that did not raise."""
        self.calls.append("send")
        self._send(line)
        self.taken.append(line)

    def close(self) -> None:
        """Note it."""
        self.calls.append("close")

    def check(self) -> str | None:
        """Say what was said."""
        return self._check()


class Running:
    """A runner over one ring per mirror, started; a context manager that stops it."""

    def __init__(
        self,
        *mirrors: Mirror,
        room: int = 10000,
        tell: Callable[[str, Mapping[str, str | int | None]], object] | None = None,
        idle_seconds: float = 3600,
        on_idle: Callable[[], object] = lambda: None,
        start: bool = True,
    ) -> None:
        self.rings: list[Ring] = []
        self.told: list[tuple[str, dict[str, object]]] = []
        self._room = room
        self.runner = Runner(mirrors, self._feed, tell or self._tell, on_idle=on_idle, idle_seconds=idle_seconds)
        if start:
            self.runner.start()

    def _feed(self) -> Ring:
        self.rings.append(Ring(self._room))
        return self.rings[-1]

    def _tell(self, event: str, fields: Mapping[str, str | int | None]) -> None:
        self.told.append((event, dict(fields)))

    def put(self, *lines: bytes) -> None:
        """Give every mirror these lines."""
        for ring in self.rings:
            ring.put(*lines)

    def count(self, name: str = "scripted") -> tuple[object, object, object]:
        """Return what a mirror accepted, dropped, and why it is down."""
        counts = self.runner.counts()[name]
        return counts["accepted"], counts["dropped"], counts["down"]

    def settled(self, number: int, name: str = "scripted") -> None:
        """Wait until so many lines are counted."""
        until(lambda: sum(self.count(name)[:2]) >= number)  # type: ignore[arg-type]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *problem: object) -> None:
        self.runner.stop(30)
