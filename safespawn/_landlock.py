"""The Landlock rules of a child: made by its parent, put on by the child itself (landlock(7))."""

from __future__ import annotations

import errno
import os

from . import _binding
from ._spec import Landlock

# LANDLOCK_ACCESS_FS_* of include/uapi/linux/landlock.h.
EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
#: REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM.
CHANGE_DIR = 0x1FF << 4
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

#: All that each version knows: whatever is below the first right of a later one.
KNOWN = {1: REFER - 1, 2: TRUNCATE - 1, 3: IOCTL_DEV - 1, 4: IOCTL_DEV - 1, 5: 2 * IOCTL_DEV - 1}

#: What a rule for a file can name (ACCESS_FILE of security/landlock/fs.c); the rest is for directories.
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

READ = READ_FILE | READ_DIR
WRITE = WRITE_FILE | CHANGE_DIR | REFER | TRUNCATE | IOCTL_DEV


def ruleset(rules: Landlock) -> int:
    """Make a ruleset and return its descriptor (close-on-exec), which the caller must close.

    It refuses every right over files that version ``rules.abi`` knows, but for these paths
    and everything below them:

    * ``read``: open files for reading, list directories;
    * ``execute``: the same, and execute files. Reading is part of it, because nothing runs
      without: execve reads the program, the loader its libraries, Python lists directories
      for its modules. So ``["/usr"]`` lets programs there run, if all that they need to
      start is there;
    * ``write``: open files for writing, truncate them (version 3), make, remove, rename and
      link files and directories, also from one directory to another (version 2; before it
      that is refused everywhere), ioctl on devices (version 5). It does not include reading.

    A path is looked up here and now, from our root and working directory, symbolic links
    followed. The rule holds for what it leads to then, whatever its name is later. A file is
    moved to another directory only if it may be used for no more there than before.

    Raises OSError with ``stage`` "landlock": EOPNOTSUPP where the kernel knows no such
    version, else the errno of the path that is its ``filename``.
    """
    _insist_on(rules.abi)
    opened: list[int] = []
    try:
        _fill(opened, rules)
        return opened[0]
    except BaseException:
        while opened:
            os.close(opened.pop())
        raise


def _insist_on(abi: int) -> None:
    """Refuse to make rules that would leave out some of what they are to hold for."""
    has = _binding.landlock_abi()
    if has < 0:  # a sandbox refuses the call
        raise _problem(-has, f"landlock: {os.strerror(-has)}")
    if has < abi:
        text = f"landlock: ABI {abi} was asked for, this kernel has {has or 'none'}"
        raise _problem(errno.EOPNOTSUPP, text)


def _fill(opened: list[int], rules: Landlock) -> None:
    known = KNOWN[rules.abi]
    if number := _binding.landlock_ruleset(opened, known):
        raise _problem(number, f"landlock: {os.strerror(number)}")
    for paths, rights in ((rules.read, READ), (rules.write, WRITE), (rules.execute, EXECUTE | READ)):
        for path in paths:
            allowed = rights & known
            if number := _binding.landlock_allow(opened[0], path, allowed, allowed & OF_FILES):
                raise _problem(number, os.strerror(number), os.fsdecode(path))


def _problem(number: int, text: str, path: str | None = None) -> OSError:
    made = OSError(number, text, path)
    vars(made).update(stage="landlock")
    return made
