"""Keeps a file from being executed for a while: holds a write lease on it, and gives it up late.

    holder.py FILE SECONDS

Says "ready" when it holds the lease (fcntl(2), F_SETLEASE). Whoever opens the file then has to wait: the
holder is told by SIGIO, waits for that many seconds, and lets go.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time


def main() -> None:
    """Hold and let go."""
    path, seconds = sys.argv[1], float(sys.argv[2])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.sigwait([signal.SIGIO])
    time.sleep(seconds)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


if __name__ == "__main__":
    main()
