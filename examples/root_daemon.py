"""A daemon that is root for as long as it must be: it starts its workers as other users, then drops itself.

    python examples/root_daemon.py --port 80 --ledger /var/log/daemon.jsonl --worker nobody --worker www-data

All workers accept connections on the port that was bound by root. Each has its own user, no capabilities,
no way to gain privileges, few descriptors, and of the file system only what Python needs. A client sends a
line and gets JSON: who answered, and how long the line was.

Once dropped, the daemon could not even signal its workers. So it holds the other end of their standard
input: they stop when that closes, which it also does when the daemon dies. A worker that ends by itself ends
the daemon, and whoever started that (systemd, for instance) starts it anew: only root can start workers as
others.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import resource
import select
import signal
import socket
import sys

import safespawn
from safespawn import audit, guards

#: Runs as another user, with Python's standard library only. Descriptor 3 is the socket, 0 the daemon's pipe.
WORKER = """
import json, os, select, socket
server = socket.socket(fileno=3)
server.setblocking(False)
poll = select.poll()
poll.register(0, select.POLLIN)
poll.register(3, select.POLLIN)
while 0 not in (ready := dict(poll.poll())):
    try:
        client, _ = server.accept()
    except BlockingIOError:  # another worker was faster
        continue
    with client, client.makefile("rwb") as file:
        client.settimeout(10)
        try:
            line = file.readline(65536).rstrip()
            told = {"uid": os.getuid(), "groups": os.getgroups(), "pid": os.getpid(), "length": len(line)}
            file.write(json.dumps(told).encode())
        except OSError:
            pass  # the client has gone
"""

#: What Python needs to start, and no more.
FILES = {"execute": ["/usr", "/lib", "/lib64"], "read": ["/etc/ld.so.cache", "/dev/null", "/dev/urandom"]}
STOP_SECONDS = 15.0


def start_worker(user: str, server: socket.socket, python: str) -> safespawn.Process:
    """Start a worker as a user; it runs when this returns."""
    with audit.context(worker=user):
        return safespawn.spawn(
            [python, "-I", "-S", "-c", WORKER],
            stdin=safespawn.PIPE,
            fds={3: server.fileno()},
            cwd="/",
            user=user,
            caps=(),
            env_policy="user",
            landlock={key: [path for path in paths if os.path.exists(path)] for key, paths in FILES.items()},
            rlimits={resource.RLIMIT_NOFILE: 32, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0},
            path_policy="trusted",
            sigmask=(),
            deadline=10,
        )


def stop_worker(worker: safespawn.Process) -> int:
    """Have a worker end, and return its exit code. Raises subprocess.TimeoutExpired."""
    if worker.stdin is not None:
        worker.stdin.close()
    return worker.wait(STOP_SECONDS)


def drop(user: str) -> None:
    """Become a user for good. Raises SystemExit if root can be had again."""
    account = pwd.getpwnam(user)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setresgid(*[account.pw_gid] * 3)
    os.setresuid(*[account.pw_uid] * 3)
    for regain in (os.setuid, os.seteuid, os.setgid, os.setegid):
        with contextlib.suppress(PermissionError):
            regain(0)
            raise SystemExit(f"dropped to {user}, and could become root again")


def wait_for_end(workers: list[safespawn.Process], signals: int) -> str | None:
    """Wait for a signal (None), or for a worker that ends by itself, and return what to say of it."""
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    by_fd = {worker.pidfd: worker for worker in workers}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    for fd, _ in poll.poll():
        if fd in by_fd:
            return f"worker {by_fd[fd].pid} ended by itself with {by_fd[fd].wait()}"
    return None


def signal_pipe(numbers: tuple[int, ...]) -> tuple[int, int]:
    """Return a pipe that gets a byte for each of these signals."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return read, write


def serve(given: argparse.Namespace) -> str | None:
    """Run the daemon, and return why it did not end by a signal."""
    read, write = signal_pipe((signal.SIGTERM, signal.SIGINT))
    workers: list[safespawn.Process] = []
    try:
        with socket.create_server(("127.0.0.1", given.port), backlog=128) as server:
            workers += [start_worker(user, server, given.python) for user in given.worker]
            port = server.getsockname()[1]
        drop(given.user)
        print(f"listening on 127.0.0.1:{port} as {given.user}", flush=True)
        return wait_for_end(workers, read)
    finally:
        for worker in workers:
            stop_worker(worker)
        signal.set_wakeup_fd(-1)
        os.close(read)
        os.close(write)


def main() -> None:
    """Open the ledger as root, start the workers, drop, wait."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=80, help="on 127.0.0.1; 0 for any that is free")
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--worker", action="append", required=True, metavar="USER", help="repeatable")
    parser.add_argument("--user", default="daemon", help="what the daemon itself becomes")
    parser.add_argument(
        "--python", default="/usr/bin/python3", help="for the workers: others must be able to read it"
    )
    given = parser.parse_args()
    guards.arm()
    guards.require("single-threaded")  # there is one thread, so nothing less will do
    with audit.open(given.ledger):
        why = serve(given)
    if why is not None:
        sys.exit(f"root_daemon: {why}")


if __name__ == "__main__":
    main()
