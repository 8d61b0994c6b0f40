"""Programs that are not to run: the list, and whether a file that was opened is on it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ._values import iterable, shown

_WILD = "*?["
#: Where a bare name is looked for beside PATH, to know the file that it stands for.
DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@dataclass(frozen=True)
class Refusals:
    """The entries of a list, by kind. Made by :func:`refusals`."""

    paths: tuple[str, ...]
    globs: tuple[str, ...]
    names: tuple[str, ...]

    def entry_for(self, path: bytes, real: bytes, fd: int) -> str | None:
        """Return the entry that refuses the file behind ``fd``, None if there is none.

        ``path`` is where it was found, ``real`` the kernel's name for it. Raises OSError where
        the file, or one that is listed, cannot be looked at.
        """
        known = [os.fsdecode(name) for name in (path, real) if name]
        by_name = next(self._named(known), None)
        return by_name if by_name is not None else self._same_file(os.fstat(fd))

    def _named(self, known: list[str]) -> Iterator[str]:
        yield from (entry for entry in self.paths if entry in known)
        yield from (entry for entry in self.globs if any(fnmatchcase(name, entry) for name in known))
        bare = [os.path.basename(name) for name in known]
        yield from (entry for entry in self.names if entry in bare)

    def _same_file(self, seen: os.stat_result) -> str | None:
        """Return the entry that is another name of the file: links of either kind have one inode."""
        wanted = seen.st_dev, seen.st_ino
        for entry in self.paths:
            if _identity(entry) == wanted:
                return entry
        for entry in self.names:
            if any(_identity(os.path.join(where, entry)) == wanted for where in _places()):
                return entry
        return None


def _places() -> Iterable[str]:
    return dict.fromkeys((*os.get_exec_path(), *DIRECTORIES))


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of a regular file, None if there is none. Raises OSError in any doubt."""
    try:
        seen = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (seen.st_dev, seen.st_ino) if stat.S_ISREG(seen.st_mode) else None


def entry(name: str, value: object) -> str:
    """Return one entry: an absolute path, a glob over such paths, or a bare name.

    Raises TypeError or ValueError.
    """
    if not isinstance(value, str):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a path, a glob or a name, not {shown(value)} ({kind})")
    if not value or "\0" in value or value.endswith("/"):
        raise ValueError(f"{name} names no program: {shown(value)}")
    if "/" in value and (not value.startswith("/") or os.path.normpath(value) != value):
        raise ValueError(
            f"{name} must be an absolute path without '.', '..' and '//', or a name, not {shown(value)}"
        )
    if "/" not in value and any(sign in value for sign in _WILD):
        raise ValueError(f"{name}: a glob is over whole paths, such as /*/{value}, not {shown(value)}")
    if os.path.isdir(value):
        raise ValueError(f"{name} is a directory: {shown(value)}; all below it is {shown(value + '/*')}")
    return value


def refusals(name: str, value: object) -> Refusals:
    """Return a checked list. Raises TypeError or ValueError that show the entry."""
    entries = [entry(f"{name}[{number}]", one) for number, one in enumerate(iterable(name, value))]
    paths = [one for one in entries if "/" in one]
    return Refusals(
        tuple(one for one in paths if not any(sign in one for sign in _WILD)),
        tuple(one for one in paths if any(sign in one for sign in _WILD)),
        tuple(one for one in entries if "/" not in one),
    )
