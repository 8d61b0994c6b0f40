"""The mappings of a process as /proc/PID/smaps tells them, and which of them may become huge. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

#: proc_pid_maps(5): addresses, permissions, offset, device, inode, name.
_HEAD = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ \S+ (\d+) *(.*)")

#: VmFlags of proc_pid_smaps(5) that say no: growing stacks, who wants no huge pages (stacks made with
#: MAP_STACK too, since Linux 6.7), locked, of hugetlbfs, of devices, wiped or left out in a fork (our own
#: arenas and the page of the lock are among them), merged, and what a userfaultfd watches.
_EXCLUDED = frozenset((b"gd", b"nh", b"lo", b"ht", b"io", b"pf", b"mm", b"wf", b"dc", b"mg", b"um", b"uw"))

#: A mapping that nobody may touch, not larger than this and right below another: its stack guard.
_GUARD_MOST = 64 << 10


@dataclass
class Mapping:
    """One mapping. ``sizes`` are the fields that are counted in kB, here in bytes."""

    start: int
    end: int
    permissions: bytes
    inode: int
    name: bytes
    sizes: dict[bytes, int] = field(default_factory=dict)
    flags: frozenset[bytes] = frozenset()

    @property
    def huge(self) -> int:
        """How much of it is huge pages."""
        return self.sizes.get(b"AnonHugePages", 0)


def parse(lines: Iterable[bytes]) -> Iterator[Mapping]:
    """Yield the mappings of a smaps file; what is no mapping and none of its fields is passed over."""
    made: Mapping | None = None
    for line in lines:
        if head := _HEAD.match(line):
            if made is not None:
                yield made
            start, end, permissions, inode, name = head.groups()
            made = Mapping(int(start, 16), int(end, 16), permissions, int(inode), name.rstrip(b"\n"))
        elif made is not None:
            _take(made, line)
    if made is not None:
        yield made


def _take(made: Mapping, line: bytes) -> None:
    key, _, value = line.partition(b":")
    words = value.split()
    if key == b"VmFlags":
        made.flags = frozenset(words)
    elif len(words) == 2 and words[1] == b"kB":
        made.sizes[key] = int(words[0]) * 1024


def _is_guard(mapping: Mapping) -> bool:
    return mapping.permissions == b"---p" and mapping.end - mapping.start <= _GUARD_MOST


def _is_plain(mapping: Mapping) -> bool:
    """Whether it is private anonymous memory for data: without a file, the heap, or named by prctl(2)."""
    name = mapping.name
    return (
        mapping.permissions == b"rw-p"
        and mapping.inode == 0
        and (not name or name == b"[heap]" or name.startswith(b"[anon:"))
        and not mapping.flags & _EXCLUDED
    )


def candidates(mappings: Iterable[Mapping], block: int) -> list[Mapping]:
    """Return those that have room for a huge page of ``block`` bytes, and may become such.

    Flags that the kernel does not tell (CONFIG_PROC_PAGE_MONITOR) exclude nothing, and madvise(2) decides.
    """
    chosen, below = [], None
    for mapping in mappings:
        on_guard = below is not None and below.end == mapping.start and _is_guard(below)
        first = -mapping.start % block + mapping.start
        if first + block <= mapping.end and _is_plain(mapping) and not on_guard:
            chosen.append(mapping)
        below = mapping
    return chosen
