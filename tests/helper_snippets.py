"""Text that goes in front of snippets about helpers."""

from __future__ import annotations

#: In front of snippets: no proof holds, so auto asks a helper. `mine` tells our children, `gone` waits for none.
NO_PROOF = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()

def mine():
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found[int(name)] = fields[0]
    return found

def names_of(parent):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = open(f"/proc/{name}/stat").read()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == parent:
            found.append(stat.partition("(")[2].rpartition(")")[0])
    return found

def until(holds):
    end = time.monotonic() + 30
    while not (held := holds()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0)
    return held

def settled():
    # What has been seen to end is gone from the table in a moment.
    return until(lambda: not mine())

def filled(helper):
    # Its parked children are there; we know of them when we read what it has said.
    return until(lambda: len(mine()) >= helper.pool + 1)

def runs(argv=("/bin/true",), **options):
    try:
        done = safespawn.run(list(argv), capture_output=True, **options)
        return [done.report.strategy, done.returncode, done.stdout.decode()]
    except OSError as problem:
        return [type(problem).__name__, getattr(problem, "guard", None), problem.stage, problem.errno]
"""

#: Which descriptor is our end.
SOCKET_OF = """
def socket_of(helper):
    # Our end: the process has no other socket.
    links = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            links[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # that of the list itself
    one, = (fd for fd, to in links.items() if to.startswith("socket:"))
    return one
"""

#: In front of snippets: a thread holds the helper at a system call while another spawns.
HELD = """
import tracing

class Held:
    # The helper is held before it makes its call; then `end` says what becomes of it.
    def __init__(self, helper, call, times):
        self.reached, self.go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._trace, args=(helper.pid, call, times))
        self.traced = threading.Event()
        self.thread.start()
        self.traced.wait()

    def _trace(self, pid, call, times):
        traced = tracing.Traced(pid)
        self.traced.set()
        traced.until(call, times)
        self.reached.set()
        self.go.wait()
        getattr(traced, self.how)()

    def end(self, how):
        self.how = how
        self.go.set()
        self.thread.join()
"""
