"""What every mirror is: a place that gets a copy of each record."""

from __future__ import annotations

import abc
from collections.abc import Iterable

from ._checked import event_names, mirror_name


class Mirror(abc.ABC):
    """A place that gets a copy of each record, from a thread of its own, never on a spawn's way.

    Give instances to the ledger; it opens, feeds and closes them. Whoever writes one of
    their own overrides :meth:`send`, and the others as needed. All but the first
    :meth:`open` are called in the mirror's thread, one at a time.

    ``name`` is how records and counters call it; no two of one ledger have the same.
    ``events``: only records of these are sent; None stands for all. Raises TypeError or
    ValueError that show the value.
    """

    def __init__(self, name: str, events: Iterable[str] | None = None) -> None:
        self.name = mirror_name(name)
        self.events = None if events is None else event_names(events)

    def open(self) -> None:  # noqa: B027 - not every mirror has something to open
        """Get ready. Called once more after each :meth:`close` that followed a failure.

        The first time it runs in the thread that opens the ledger, before that can lose its
        privileges or change its root; so it must not wait for anybody. What has to be
        waited for belongs into :meth:`send`. Raises OSError: it is tried again later.
        """

    @abc.abstractmethod
    def send(self, line: bytes) -> None:
        """Hand over one record, without its newline; it counts as accepted if nothing is raised.

        Raises OSError when it was not taken: it counts as dropped. ConnectionError and
        TimeoutError say more: that the connection is of no more use, and is closed. After a
        ConnectionError in a mirror that was up it is opened again at once, and the record
        sent once more. Whatever else is raised counts as dropped too.
        """

    def close(self) -> None:  # noqa: B027 - not every mirror has something to close
        """Let go of what is open; doing it twice is no error."""

    def forget(self) -> None:
        """Let go of what the parent has open, in a forked child, without disturbing the parent."""
        self.close()

    def check(self) -> str | None:
        """Return why it is down although it is open, or None. Called every few seconds."""
        return None
