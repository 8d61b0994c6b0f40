"""The programs of examples/, under load: what they answer, what they leave behind, what the ledger has of them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
from safespawn import audit

EXAMPLES = helpers.ROOT / "examples"
PATIENCE = 60.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: workers run as other users")


@contextlib.contextmanager
def running(name: str, *words: object, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Start an example; at the end it has to stop by SIGTERM, if it has not ended, with exit code 0."""
    place = helpers.CORE or str(helpers.ROOT)
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, words)]
    with subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": place},
        **more,
    ) as process:
        try:
            yield process
            if process.poll() is None:
                process.terminate()
            _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, err
        finally:
            process.kill()


def until(holds: Callable[[], bool]) -> None:
    """Look again and again, and give others the processor."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        os.sched_yield()


def port_of(process: subprocess.Popen[str]) -> int:
    """Return the port that a server says it listens on."""
    assert process.stdout is not None
    return int(process.stdout.readline().split(":")[1].split()[0])


def fds(pid: int) -> int:
    """Return how many descriptors a process has once it has one thread: all requests are done with."""
    until(lambda: len(os.listdir(f"/proc/{pid}/task")) == 1)
    return len(os.listdir(f"/proc/{pid}/fd"))


def children(pid: int) -> list[str]:
    """Return the children of a process, zombies among them."""
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
            found += (task / "children").read_text().split()
    return found


def left_in(where: Path) -> list[str]:
    """Return the programs that run with this directory as their own."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/cwd") == str(where):
                found.append(Path("/proc", name, "cmdline").read_text())
    return found


def judged(path: Path) -> Counter[str]:
    """Verify a ledger in which each program that was started has its end; return how often each event is in it."""
    assert audit.verify(path).ok
    records = helpers.records(path)
    of = {
        event: sorted(record["sid"] for record in records if record["ev"] == event)
        for event in ("spawn.intent", "spawn.started", "spawn.exit")
    }
    assert of["spawn.started"] == of["spawn.exit"]
    return Counter(record["ev"] for record in records)


# --------------------------------------------------------------------------- http_commands.py


def posted(port: int, name: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """Send one request and return status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", f"/run/{name}", body=json.dumps(body or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


REQUESTS = [
    ("date", {}, 200),
    ("count", {"input": "x" * 1000}, 200),
    ("usage", {"args": ["/etc/hostname"]}, 200),
    ("who", {"args": ["--help"]}, 200),
    ("who", {"args": ["a", "b"]}, 400),
    ("hold", {}, 504),
    ("rm", {"args": ["-r", "/"]}, 404),
    ("date", [1], 400),
    ("count", {"input": "y" * 10}, 200),
    ("date", {}, 200),
]


def test_http_server_under_load(tmp_path: Path) -> None:
    """200 requests of 16 threads are answered; no descriptor, child or grandchild stays, and all are recorded."""
    ledger = tmp_path / "ledger"
    with running("http_commands.py", "--port", 0, "--ledger", ledger, cwd=tmp_path) as server:
        port = port_of(server)
        assert posted(port, "date")[0] == 200
        before = fds(server.pid)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            asked = [REQUESTS[number % len(REQUESTS)] for number in range(200)]
            answers = list(pool.map(lambda one: posted(port, *one[:2]), asked))
        assert [status for status, _ in answers] == [status for *_, status in asked]
        assert {answer["output"] for (name, body, _), (_, answer) in zip(asked, answers) if body == REQUESTS[1][1]} == {
            "1000\n"
        }
        assert (fds(server.pid), children(server.pid)) == (before, [])
    counts = judged(ledger)
    # Of 10, 6 run to their end and one is killed; the others get no program.
    assert counts["spawn.started"] == 1 + 20 * 7
    killed = [one for one in helpers.records(ledger) if one["ev"] == "spawn.exit" and one["exit"]["timeout_killed"]]
    assert len(killed) == 20
    until(lambda: not left_in(tmp_path))  # a process that was killed ends a moment later


def test_http_arguments_are_no_options(tmp_path: Path) -> None:
    """What a client gives stands behind `--`, and records have the request's id."""
    ledger = tmp_path / "ledger"
    with running("http_commands.py", "--port", 0, "--ledger", ledger) as server:
        _, answer = posted(port_of(server), "who", {"args": ["--version"]})
    assert answer["code"] == 1
    (intent,) = [one for one in helpers.records(ledger) if one["ev"] == "spawn.intent"]
    assert intent["what"]["argv"] == ["id", "--", "--version"]
    assert intent["tags"] == {"request": answer["request"], "client": "127.0.0.1"}


# --------------------------------------------------------------------------- job_runner.py


def jobs(count: int) -> list[dict[str, Any]]:
    """Return jobs of all kinds."""
    kinds: list[dict[str, Any]] = [
        {"argv": ["echo", "hello"]},
        {"argv": ["false"], "retries": 2},
        {"argv": ["sh", "-c", "sleep 1000 & sleep 1000"], "timeout": 0.1},
        {"argv": ["/no/such/program"], "retries": 2},
        {"argv": "date"},
    ]
    return [{"id": str(number), **kinds[number % 5]} for number in range(count)]


STATES = ["done", "failed", "timed-out", "not-started", "bad"]


def test_jobs_under_load(tmp_path: Path) -> None:
    """100 jobs, 20 at once, come to the states that they should; each spawn is in its result and in the ledger."""
    ledger = tmp_path / "ledger"
    lines = "".join(json.dumps(job) + "\n" for job in jobs(100))
    words = ("--ledger", ledger, "--at-once", 20, "--delay", 0)
    with running("job_runner.py", *words, stdin=subprocess.PIPE, cwd=tmp_path) as runner:
        out, err = runner.communicate(lines, timeout=PATIENCE)
        assert (runner.returncode, err) == (0, "")
    results = [json.loads(line) for line in out.splitlines()]
    by_id = {int(one["id"]): one for one in results if one["id"] is not None}
    assert Counter(one["state"] for one in results) == dict.fromkeys(STATES, 20)
    assert all(one["state"] == STATES[number % 5] for number, one in by_id.items())
    assert by_id[0]["output"] == "hello\n"
    counts = judged(ledger)
    started = [sid for one in results for sid in one["spawns"]]
    assert len(started) == len(set(started)) == counts["spawn.started"] == 20 * (1 + 3 + 1)
    assert set(started) == {one["sid"] for one in helpers.records(ledger) if one["ev"] == "spawn.started"}
    until(lambda: not left_in(tmp_path))  # a process that was killed ends a moment later


def test_jobs_by_socket_are_cancelled(tmp_path: Path) -> None:
    """SIGTERM while jobs run: they are killed with their trees, and those who asked are told."""
    ledger, path = tmp_path / "ledger", tmp_path / "socket"
    with running("job_runner.py", "--ledger", ledger, "--socket", path, "--at-once", 20, cwd=tmp_path) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
        with socket.socket(socket.AF_UNIX) as client, client.makefile("r") as answers:
            client.connect(str(path))
            client.sendall(b'{"id": "first", "argv": ["true"]}\n')
            assert json.loads(answers.readline())["state"] == "done"
            for number in range(5):
                os.mkfifo(tmp_path / f"up{number}")
                argv = ["sh", "-c", f"sleep 1000 & echo up > up{number}; sleep 1000"]
                client.sendall(json.dumps({"id": str(number), "argv": argv}).encode() + b"\n")
            assert [(tmp_path / f"up{number}").read_text() for number in range(5)] == ["up\n"] * 5
            assert len(children(runner.pid)) == 5
            runner.send_signal(signal.SIGTERM)
            told = [json.loads(line) for line in answers]
            runner.wait(PATIENCE)
        assert [one["state"] for one in told] == ["cancelled"] * 5
    judged(ledger)
    until(lambda: not left_in(tmp_path))  # a process that was killed ends a moment later


# ---------------------------------------------------------------------------- root_daemon.py

USERS = ("nobody", "daemon")


def asked(port: int, line: bytes) -> dict[str, Any] | None:
    """Send one line and return the answer; None if the daemon has gone."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(line + b"\n")
            text = client.makefile("rb").read()
            return json.loads(text) if text else None
    except OSError:
        return None


def status(pid: int, name: str) -> list[str]:
    """Return a line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(f"{name}:"))


def daemon(ledger: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Start the daemon with two workers."""
    users = [word for user in USERS for word in ("--worker", user)]
    return running("root_daemon.py", "--port", 0, "--ledger", ledger, "--user", "mail", *users)


def test_daemon_and_workers_have_dropped(tmp_path: Path) -> None:
    """The daemon is its user for good; its workers are theirs, without capabilities, under no_new_privs and Landlock."""
    ledger = tmp_path / "ledger"
    with daemon(ledger) as server:
        answer = asked(port_of(server), b"12345")
        workers = [int(child) for child in children(server.pid)]
        mail, ids = pwd.getpwnam("mail"), {pwd.getpwnam(user).pw_uid for user in USERS}
        assert status(server.pid, "Uid") == [str(mail.pw_uid)] * 4
        assert status(server.pid, "CapEff") == ["0" * 16]
        assert {int(status(pid, "Uid")[0]) for pid in workers} == ids
        for pid in workers:
            assert (status(pid, "NoNewPrivs"), status(pid, "CapBnd")) == (["1"], ["0" * 16])
        assert answer is not None and answer["length"] == 5 and answer["uid"] in ids
    assert judged(ledger)["spawn.started"] == 2


def test_daemon_is_terminated_and_restarted_under_load(tmp_path: Path) -> None:
    """SIGTERM while clients ask: it ends cleanly each time, with all its workers, and the ledger goes on."""
    ledger = tmp_path / "ledger"
    for _ in range(2):
        with daemon(ledger) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
            port = port_of(server)
            assert asked(port, b"before") is not None
            fd_count = fds(server.pid)
            first = list(pool.map(lambda n: asked(port, b"x" * n), range(100)))
            assert [one and one["length"] for one in first] == list(range(100))
            assert fds(server.pid) == fd_count
            rest = [pool.submit(asked, port, b"y" * 7) for _ in range(100)]
            rest[0].result()
            server.terminate()
            server.wait(PATIENCE)
            assert {one.result()["length"] for one in rest if one.result() is not None} == {7}
    counts = judged(ledger)
    assert (counts["chain.open"], counts["chain.close"], counts["spawn.exit"]) == (2, 2, 4)
    codes = [one["exit"].get("code") for one in helpers.records(ledger) if one["ev"] == "spawn.exit"]
    assert codes == [0] * 4


def test_daemon_ends_with_its_worker(tmp_path: Path) -> None:
    """A worker that is killed ends the daemon, which says so; the other worker ends too."""
    ledger = tmp_path / "ledger"
    with pytest.raises(AssertionError, match="ended by itself with -9"), daemon(ledger) as server:
        port_of(server)
        workers = children(server.pid)
        os.kill(int(workers[0]), signal.SIGKILL)
        server.wait(PATIENCE)
    assert judged(ledger)["spawn.exit"] == 2
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
