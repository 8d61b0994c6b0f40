"""Which descriptors a process has: the program that tells it, and those who ask it.

As a program it writes to the descriptor in argv[1] what it has, as JSON. Imported it
starts itself with a plan of descriptors and returns what that child told, and says what
it should have.
"""

import fcntl
import json
import os
import sys


def identity(fd):
    """Return what tells one open file from another: device, inode, number of a device file."""
    seen = os.fstat(fd)
    return [seen.st_dev, seen.st_ino, seen.st_rdev]


def standing(fd):
    """Return the identity of a descriptor, and whether it can be read or written (O_ACCMODE)."""
    return [*identity(fd), fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE]


def main():
    """Look at each one that is open, without the one that looks."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = standing(int(name))
        except OSError:
            continue
    text = json.dumps(found).encode()
    assert os.pwrite(int(sys.argv[1]), text, 0) == len(text)


def file_at(number, name="source"):
    """Open a new file with an inode of its own at ``number``; 0 to 2 are for programs, the others private."""
    fd = os.memfd_create(name)
    if fd != number:
        os.dup2(fd, number, inheritable=False)
        os.close(fd)
    os.set_inheritable(number, number < 3)
    return number


def expected(plan):
    """Say slowly what a child with this plan has: by number, the identity of the open file."""
    has = {}
    for target, name in enumerate(("stdin", "stdout", "stderr")):
        source = plan.get(name)
        if source is None:
            has[target] = identity(target)
        elif source == -3:  # DEVNULL
            has[target] = "null"
        elif source == -2:  # STDOUT
            has[target] = has[1]
        else:
            has[target] = identity(source)
    for target, source in plan.get("fds", {}).items():
        has[target] = identity(source)
    for fd in plan.get("pass_fds", ()):
        has[fd] = identity(fd)
    return has


def compared(told, wanted):
    """Return what a child told in the words of :func:`expected`."""
    null = os.stat(os.devnull).st_rdev
    return {
        fd: "null" if wanted.get(fd) == "null" and seen[2:] == [null, os.O_RDWR] else seen[:3]
        for fd, seen in told.items()
    }


def ask(safespawn, argv, answer_at, way, **plan):
    """Run the probe with a plan and return its descriptors by number, the answer's among them.

    ``answer_at`` is the child's number for the file that the answer is written to.
    """
    answer = os.memfd_create("answer")
    try:
        os.dup2(answer, 1000, inheritable=False)  # out of the way of what the plan is about
    finally:
        os.close(answer)
    try:
        fds = {**plan.pop("fds", {}), answer_at: 1000}
        with safespawn.spawn([*argv, str(answer_at)], fds=fds, **way, **plan) as process:
            assert process.wait() == 0
            assert process.report.strategy == way["strategy"]
        told = {int(fd): seen for fd, seen in json.loads(os.pread(1000, 1 << 20, 0)).items()}
        assert told[answer_at][:3] == identity(1000)
    finally:
        os.close(1000)
    return told


if __name__ == "__main__":
    main()
