"""An HTTP server that runs commands for its clients: those on a list, each bounded in time and resources.

    python examples/http_commands.py --port 8080 --ledger commands.jsonl
    curl -d '{"args": ["/usr/share"]}' http://127.0.0.1:8080/run/usage

Each request is a thread, so many programs are started at once in a process with many threads. What a client
sends is never a command: it chooses one of the list, and gives arguments that cannot be options.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import signal
import sys
import tempfile
import threading
import uuid
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from safespawn import SpawnError, audit, guards, subprocess

#: Bytes of a request, and of what a program may write.
REQUEST_MAX, OUTPUT_MAX = 64 * 1024, 1024 * 1024


class Command(NamedTuple):
    """A command that clients may ask for."""

    argv: tuple[str, ...]
    arguments: int = 0  # at most, after a "--"
    timeout: float = 10.0  # seconds


COMMANDS = {
    "date": Command(("date", "--utc", "--iso-8601=seconds")),
    "usage": Command(("du", "--summarize", "--bytes"), arguments=4),
    "count": Command(("wc", "--bytes")),
    "who": Command(("id",), arguments=1),
    # A shell with children, which does not end by itself: shows the time-out.
    "hold": Command(("sh", "-c", "sleep 1000 & sleep 1000"), timeout=0.2),
}

#: For every program: no way to gain privileges, little to use up, no variables of ours but harmless ones.
LIMITS: dict[str, Any] = {
    "no_new_privs": True,
    "env_policy": "scrub",
    "deadline": 5,
    "rlimits": {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: 10,
        resource.RLIMIT_FSIZE: OUTPUT_MAX,
        resource.RLIMIT_NOFILE: 64,
    },
}


class Refused(Exception):
    """A request that gets no program: the status, and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


def wanted(path: str, body: bytes) -> tuple[Command, list[str], str]:
    """Return the command of a request, its arguments and its input. Raises Refused."""
    prefix, _, name = path.rpartition("/")
    command = COMMANDS.get(name)
    if prefix != "/run" or command is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"no such command: {path!r}")
    try:
        asked = json.loads(body or b"{}")
        arguments, text = list(asked.get("args", [])), asked.get("input", "")
    except (ValueError, AttributeError, TypeError):
        raise Refused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object") from None
    if not all(isinstance(one, str) and "\0" not in one for one in [*arguments, text]):
        raise Refused(HTTPStatus.BAD_REQUEST, "args must be a list of strings, and input a string")
    if len(arguments) > command.arguments:
        raise Refused(
            HTTPStatus.BAD_REQUEST, f"{name} takes {command.arguments} arguments, not {len(arguments)}"
        )
    return command, arguments, text


def perform(command: Command, arguments: list[str], text: str) -> dict[str, Any]:
    """Run a command and return what came of it. Raises Refused."""
    argv = [*command.argv, "--", *arguments] if arguments else [*command.argv]
    with tempfile.TemporaryFile() as output:  # RLIMIT_FSIZE bounds a file, and no pipe
        try:
            done = subprocess.run(
                argv,
                input=text.encode(),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=command.timeout,
                **LIMITS,
            )
        except subprocess.TimeoutExpired:  # all of its tree is dead by now
            raise Refused(HTTPStatus.GATEWAY_TIMEOUT, f"not done in {command.timeout} seconds") from None
        except SpawnError as problem:  # a guard, the deadline, or the ledger
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(problem)) from problem
        output.seek(0)
        return {
            "code": done.returncode,
            "output": output.read().decode(errors="replace"),
            "spawn": done.report.id,
            "strategy": done.report.strategy,
        }


class Handler(BaseHTTPRequestHandler):
    """Answers one connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds for a client to send its request
    #: So many programs at once, whatever the number of threads; set before the server starts.
    slots: threading.BoundedSemaphore

    def do_POST(self) -> None:
        """Run a command. All its records have the id of the request and the client."""
        request = str(uuid.uuid4())
        try:
            length = int(self.headers.get("Content-Length", "0"))
            if not 0 <= length <= REQUEST_MAX:
                self.close_connection = True
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {REQUEST_MAX} bytes")
            command, arguments, text = wanted(self.path, self.rfile.read(length))
            with self.slots, audit.context(request=request, client=self.client_address[0]):
                self._answer(HTTPStatus.OK, {"request": request, **perform(command, arguments, text)})
        except Refused as refusal:
            self._answer(refusal.status, {"request": request, "error": str(refusal)})

    def _answer(self, status: HTTPStatus, what: dict[str, Any]) -> None:
        body = json.dumps(what).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Leave the log to the ledger."""


class Server(ThreadingHTTPServer):
    """Waits for its threads at the end, and lets many clients in."""

    daemon_threads = False
    request_queue_size = 128


def main() -> None:
    """Serve until SIGTERM or SIGINT; requests that run are answered first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8080, help="on 127.0.0.1; 0 for any that is free")
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--at-once", type=int, default=16, help="programs that may run at the same time")
    given = parser.parse_args()
    guards.arm()  # before there are threads; importing has done it, this says it
    Handler.slots = threading.BoundedSemaphore(given.at_once)
    with contextlib.closing(audit.open(given.ledger)), Server(("127.0.0.1", given.port), Handler) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            # shutdown() waits for the loop that this very thread is in.
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever(poll_interval=0.1)
    print("stopped", file=sys.stderr)


if __name__ == "__main__":
    main()
