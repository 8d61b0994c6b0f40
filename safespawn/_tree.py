"""Kills a process and its whole tree, by pidfd and without a race that can be won.

To the tree belong the children of its processes, and the members of the sessions that they lead, though
their parents have died: nobody can enter a session but by being born in it (setsid(2)). Each is stopped
when it is found, so it cannot fork any more; when all stand still and a look finds nobody new, they are
killed.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from ._surely import surely

#: Seconds that we wait for those that were told to stop: a fork under way still makes its child. One that
#: waits in vfork(2) for a child that we have stopped never does; nor does it fork meanwhile.
PATIENCE = 1.0

#: Seconds after which nobody new is looked for: a tree that forks and ends all the time grows for ever.
BOUND = 3.0

#: States of proc_pid_stat(5) in which nothing is under way: stopped, traced, ended.
_STILL = b"TtZX"


class _Seen(NamedTuple):
    """What /proc tells of a process."""

    parent: int
    session: int
    has_ended: bool = False


class Group(Protocol):
    """More that is to be killed with the tree."""

    def kill(self) -> None:
        """Kill it. Raises OSError if it cannot be had."""


def kill(root: int, root_pidfd: int, group: Group | None = None) -> None:
    """Kill the tree under ``root``, a child that the caller keeps from being reaped meanwhile.

    If somebody else has reaped it, nothing is done: the pid may be another's by now. If a look or a
    descriptor cannot be had (OSError), or one may not be signalled (PermissionError), all others are
    killed all the same. A tree that grows faster than it can be stopped is OSError (EAGAIN) after three
    seconds.
    """
    if not _is_there(root_pidfd):
        return
    tree = _Tree(root, root_pidfd)
    try:
        tree.kill(group)
    except OSError:
        surely(partial(tree.end, group))
        raise
    except BaseException:  # of a handler: all is done before it goes on
        surely(partial(tree.kill, group))
        raise
    if tree.grows:
        raise OSError(errno.EAGAIN, f"not killed as a whole: the tree of process {root} grew all the time")
    if tree.spared:
        raise PermissionError(errno.EPERM, f"not killed, may not be signalled: {sorted(tree.spared)}")


class _Tree:
    """The processes that were found, by pidfd."""

    def __init__(self, root: int, root_pidfd: int) -> None:
        """Begin with the root, whose descriptor is the caller's."""
        self._root = root
        self._members = {root: _Seen(0, 0)}
        #: Of members, and of those that are looked at.
        self._pidfds = {root: root_pidfd}
        self.spared: set[int] = set()
        self._ended: set[int] = set()
        self._still = False
        #: Whether there was somebody new still when time was up.
        self.grows = False

    def kill(self, group: Group | None) -> None:
        """Stop all, then kill them; may be begun again."""
        # Where /proc is of another PID namespace, its numbers are not ours: only the root.
        if os.readlink("/proc/self") == str(os.getpid()):
            self.stop()
        self.end(group)

    def stop(self) -> None:
        """Stop them all, so that there is nobody new."""
        _is_there(self._pidfds[self._root], signal.SIGSTOP)
        began = time.monotonic()
        while not self._is_still(took := time.monotonic() - began):
            if took > BOUND:
                self.grows = True
                return

    def _is_still(self, took: float) -> bool:
        """Look once more; whether there is nobody new, and nobody who could still be in a fork."""
        try:
            # A fork that was under way in this look shows in the next: all must have stood still before it.
            was_still, somebody = self._still, self._find()
            self._still = took > PATIENCE or not any(map(_runs, self._members))
        except OSError as problem:
            if problem.errno not in (errno.EMFILE, errno.ENFILE) or not self._let_go():
                raise
            return False
        return was_still and not somebody

    def _find(self) -> bool:
        """Stop those that a look at /proc shows; False when there is nobody new."""
        before = len(self._members)
        theirs: dict[int, list[int]] = {}
        for pid, seen in _look_around().items():
            if seen.has_ended and pid != seen.session:
                continue  # nobody can be found by it
            theirs.setdefault(seen.parent, []).append(pid)
            theirs.setdefault(seen.session, []).append(pid)
        todo = list(self._members)
        while todo:
            near = theirs.get(todo.pop(), ())
            todo.extend(pid for pid in near if pid not in self._members and self._take(pid))
        return len(self._members) > before

    def _take(self, pid: int) -> bool:
        """Stop a process if it belongs to them, and say so.

        Numbers are used again, so both must be there after the look at the number: the process that we
        have a descriptor of, and the member that it belongs to. Then it is these two that the look was about.
        """
        try:
            # In one step: no handler that raises comes between.
            self._pidfds.update(zip([pid], map(os.pidfd_open, [pid])))  # noqa: B905 - one each
        except ProcessLookupError:
            return False
        except OSError as problem:
            problem.filename = "pidfd_open"  # says what a sandbox refuses
            raise
        try:
            seen = _look(pid)
            owners = self._members.keys() & {*(seen or ())[:2]}
            is_ours = any(map(self._has, owners))
            if not (seen and is_ours and _is_there(self._pidfds[pid], signal.SIGSTOP)):
                seen = None
        except OSError:
            self._close(pid)
            raise
        if seen is None:
            self._close(pid)
            return False
        self._members[pid] = seen
        return True

    def _let_go(self) -> bool:
        """Close what can be opened again; whether that was any.

        Who has a stopped parent is reaped by nobody, and keeps its number.
        """
        before = len(self._pidfds)
        for pid, seen in self._members.items():
            if seen.parent in self._members and pid in self._pidfds:
                self._close(pid)
        return len(self._pidfds) < before

    def _has(self, pid: int) -> bool:
        """Return whether a member is there; it may have to be opened again."""
        if pid in self._pidfds:
            return _is_there(self._pidfds[pid])
        seen = _look(pid)
        return seen is not None and seen.parent == self._members[pid].parent and self._has(seen.parent)

    def _close(self, pid: int) -> None:
        if pid != self._root:
            deque(map(os.close, map(self._pidfds.pop, [pid])), maxlen=0)  # in one step

    def end(self, group: Group | None) -> None:
        """Kill them and close their descriptors; may be begun again.

        Children come before their parents, and the leader of a session after its members: at the end of those
        the kernel continues what is stopped (_exit(2): SIGHUP and SIGCONT).
        """
        for pid in sorted(self._members.keys() - self._ended, key=self._depth, reverse=True):
            self._end_one(pid)
            self._ended.add(pid)
        for pid in list(self._pidfds):
            self._close(pid)
        if group is not None:
            group.kill()

    def _end_one(self, pid: int) -> None:
        if pid not in self._pidfds:
            if not self._has(pid):
                return
            try:
                self._pidfds[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                return
        if not _send(self._pidfds[pid], signal.SIGKILL):
            self.spared.add(pid)
        self._close(pid)

    def _depth(self, pid: int) -> int:
        """Return how many of them it belongs to. Each of those is older than it, so there is no circle."""
        depth, owner = 0, self._owner(pid)
        while owner:
            depth, owner = depth + 1, self._owner(owner)
        return depth

    def _owner(self, pid: int) -> int:
        seen = self._members[pid]
        return next((one for one in seen[:2] if one in self._members and one != pid), 0)


def _send(pidfd: int, number: int) -> bool:
    """Send a signal, if there is such a process; False if we may not."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def _is_there(pidfd: int, number: int = 0) -> bool:
    """Return whether there is such a process; send it a signal, if we may."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _look_around() -> dict[int, _Seen]:
    """Return what is to be seen of every process, by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (seen := _look(int(entry))) is not None:
            found[int(entry)] = seen
    return found


#: A process that ended meanwhile, or that is hidden from us (hidepid of proc(5)).
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


def _fields(stat: Path) -> list[bytes]:
    """Return the fields of proc_pid_stat(5) behind the name, which may have anything in it."""
    return stat.read_bytes().rpartition(b")")[2].split()


def _look(pid: int) -> _Seen | None:
    try:
        fields = _fields(Path(f"/proc/{pid}/stat"))
    except _GONE:
        return None
    return _Seen(int(fields[1]), int(fields[3]), fields[0] in b"ZX")


def _runs(pid: int) -> bool:
    """Return whether one of its threads can still be in a fork."""
    try:
        return any(
            _fields(thread / "stat")[0] not in _STILL for thread in Path(f"/proc/{pid}/task").iterdir()
        )
    except _GONE:
        return False
