"""What a mirror reads of a record: the members that every line starts with. Pure."""

from __future__ import annotations

import errno
import json
import re
from typing import Any, NamedTuple

#: The order of docs/audit-format.md, so that no mirror has to parse the whole line.
_ENVELOPE = re.compile(
    rb'\{"v":1,"c":"(?P<chain>[0-9a-f-]{36})","n":(?P<number>0|[1-9][0-9]{0,18}),"p":"[0-9a-f]{64}",'
    rb'"ev":"(?P<event>[A-Za-z.]{1,32})","sid":(?:null|"(?P<sid>[0-9a-f-]{36})"),"t":(?P<time>[0-9]{1,19}),'
)

#: Severities of RFC 5424, table 2.
ALERT, CRITICAL, WARNING, NOTICE, INFO = 1, 2, 4, 5, 6

#: journald writes what is CRITICAL or worse to disk at once.
_SEVERITIES = {
    "breakglass": ALERT,
    "audit.degraded": CRITICAL,
    "spawn.denied": WARNING,
    "spawn.bypass": WARNING,
    "mirror.down": WARNING,
    "helper.lost": WARNING,
    "spawn.failed": NOTICE,
    "exit.unknown": NOTICE,
    "cred.change": NOTICE,
    "guard.config": NOTICE,
    "helper.shrunk": NOTICE,
    "audit.restored": NOTICE,
    "mirror.up": NOTICE,
    "segment.retired": NOTICE,
}

#: How much of a command a summary shows, in characters.
_SHOWN = 200


class Envelope(NamedTuple):
    """The start of a record."""

    chain: str
    number: int
    event: str
    sid: str | None
    time_ns: int

    @property
    def severity(self) -> int:
        """That of RFC 5424, by the event; what is not in the table is INFO."""
        return _SEVERITIES.get(self.event, INFO)


def envelope(line: bytes) -> Envelope:
    """Return the start of a record. Raises OSError (EINVAL) for what is none."""
    found = _ENVELOPE.match(line)
    if found is None:
        raise OSError(errno.EINVAL, f"no record: {line[:60]!r}")
    chain, number, event, sid, time_ns = found.group("chain", "number", "event", "sid", "time")
    return Envelope(
        chain.decode(), int(number), event.decode(), None if sid is None else sid.decode(), int(time_ns)
    )


def summary(line: bytes, about: Envelope) -> str:
    """Return one short line for people: the event, and the command where there is one.

    ASCII without control characters: a terminal may show it. The command stays in its
    JSON form, because joined by blanks it could look like another one.
    """
    command = _command(line)
    if command is None:
        return about.event
    shown = json.dumps(command)
    return f"{about.event} {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}"


def _command(line: bytes) -> Any:
    try:
        what = json.loads(line).get("what")
    except ValueError:
        return None
    return what.get("argv") if isinstance(what, dict) else None
