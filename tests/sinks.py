"""The real receivers, from Debian's packages, each run for one test and ended with it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
from mirroring import until

JOURNALD = "/lib/systemd/systemd-journald"


def need(*programs: str) -> None:
    """Skip the test where it is not run by root, or a program is missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@contextlib.contextmanager
def server(argv: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block; it may have been stopped or killed by then."""
    with (
        log.open("ab") as output,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options) as process,
    ):
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server in the way it expects, by force if it does not."""
    if process.poll() is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a stopped one does not see the other
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -------------------------------------------------------------------- journald


class Journal:
    """A journald of our own: its /run is a directory of the test, which nobody else sees as /run."""

    def __init__(self, where: Path) -> None:
        self.run = where / "run"
        for name in ("systemd/journal", "log/journal"):
            (self.run / name).mkdir(parents=True)
        self._conf = where / "journald.conf"
        # "Audit=" without a value: the default turns the kernel's audit off for the whole machine.
        self._conf.write_text(
            "[Journal]\nStorage=volatile\nAudit=\nReadKMsg=no\nForwardToSyslog=no\nForwardToWall=no\n"
            "RateLimitIntervalSec=0\n",
            encoding="ascii",
        )
        self._log = where / "journald.log"

    @property
    def socket(self) -> Path:
        """The native socket."""
        return self.run / "systemd/journal/socket"

    @property
    def dev_log(self) -> Path:
        """What is /dev/log elsewhere."""
        return self.run / "systemd/journal/dev-log"

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run journald, in mounts of its own; the process is journald itself."""
        self.socket.unlink(missing_ok=True)
        self.dev_log.unlink(missing_ok=True)
        script = (
            f"mount --make-rprivate / && mount --bind {shlex.quote(str(self.run))} /run"
            f" && mount --bind {shlex.quote(str(self._conf))} /etc/systemd/journald.conf && exec {JOURNALD}"
        )
        with server(["unshare", "--mount", "sh", "-c", script], self._log) as process:
            sockets = (self.socket, self.dev_log)
            until(lambda: all(path.is_socket() for path in sockets) or process.poll() is not None)
            assert process.poll() is None, self._log.read_text()
            yield process

    @property
    def kept(self) -> Path:
        """Where the files are."""
        return self.run / "log/journal"

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """Return the entries."""
        return entries(self.kept, *matches)


def entries(directory: Path, *matches: str) -> list[dict[str, Any]]:
    """Return the entries of the journals in a directory, read by journalctl."""
    told = subprocess.run(
        ["journalctl", "-D", str(directory), "-o", "json", "--all", *matches], capture_output=True, check=False
    ).stdout
    return [json.loads(row) for row in told.splitlines()]


# ----------------------------------------------------------------- Linux audit


def audit_state() -> dict[str, str]:
    """Return what the kernel's audit says of itself."""
    told = subprocess.run(["auditctl", "-s"], capture_output=True, text=True, check=False)
    if told.returncode != 0:
        pytest.skip(f"the kernel's audit cannot be asked here: {told.stderr.strip() or told.stdout.strip()}")
    rows = [row.split(None, 1) for row in told.stdout.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def set_audit(enabled: str) -> None:
    """Switch the kernel's audit on ("1") or off ("0")."""
    subprocess.run(["auditctl", "-e", enabled], stdout=subprocess.DEVNULL, check=True)


@contextlib.contextmanager
def kernel_audit() -> Iterator[None]:
    """Have the kernel's audit to ourselves, and leave it as it was."""
    need("auditctl", "auditd", "ausearch")
    before = audit_state()
    if before["pid"] != "0" or before["enabled"] not in ("0", "1"):
        pytest.skip(f"audit is in use here: enabled {before['enabled']}, auditd {before['pid']}")
    try:
        yield
    finally:
        set_audit(before["enabled"])


class Auditd:
    """An auditd with its log in a directory of the test."""

    def __init__(self, where: Path) -> None:
        self._conf = where / "audit"
        (self._conf / "plugins.d").mkdir(parents=True)
        self.log = where / "audit.log"
        self._output = where / "auditd.out"
        actions = ("max_log_file", "space_left", "admin_space_left", "disk_full", "disk_error")
        (self._conf / "auditd.conf").write_text(
            f"local_events = yes\nwrite_logs = yes\nlog_file = {self.log}\nlog_group = root\n"
            "log_format = ENRICHED\nflush = INCREMENTAL_ASYNC\nfreq = 50\nmax_log_file = 100\nnum_logs = 2\n"
            "priority_boost = 0\nname_format = NONE\nspace_left = 75\nadmin_space_left = 50\n"
            f"plugin_dir = {self._conf}/plugins.d\n" + "".join(f"{one}_action = IGNORE\n" for one in actions),
            encoding="ascii",
        )
        (self._conf / "auditd.conf").chmod(0o640)

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run it until the end of the block; the kernel's audit is enabled then."""
        with server(["auditd", "-n", "-c", str(self._conf)], self._output) as process:
            until(lambda: audit_state()["pid"] == str(process.pid) or process.poll() is not None)
            assert process.poll() is None, self._output.read_text()
            yield process

    def records(self) -> list[dict[str, bytes]]:
        """Return the fields of our records, as ausearch finds them."""
        told = subprocess.run(
            ["ausearch", "--raw", "-if", str(self.log), "-m", "TRUSTED_APP"], capture_output=True, check=False
        ).stdout
        # Between msg=' and ', before what auditd adds for readers (after an 0x1d).
        inside = [row.partition(b" msg='")[2].partition(b"\x1d")[0] for row in told.splitlines()]
        if inside and not inside[-1].endswith(b"'"):
            inside.pop()  # it is being written
        assert all(one.endswith(b"'") for one in inside)
        return [audit_fields(one[:-1]) for one in inside]


def audit_fields(text: bytes) -> dict[str, bytes]:
    """Read a text as auparse does: fields between blanks, quotes or hex."""
    found = {}
    for part in text.split(b" "):
        name, _, value = part.partition(b"=")
        quoted = value[:1] == b'"'
        assert not quoted or value[-1:] == b'"'
        found[name.decode("ascii")] = value[1:-1] if quoted else bytes.fromhex(value.decode("ascii"))
    return found


# --------------------------------------------------------------------- rsyslog

SHIPPING = helpers.ROOT / "docs" / "shipping"


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(address: str) -> bool:
    """Return whether somebody listens on a TCP address, host:port."""
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def replaced(text: str, values: dict[str, str]) -> str:
    """Put the test's values in the place of those that a configuration says to replace."""
    for value, other in values.items():
        assert value in text, f"{value} is not in the configuration"
        text = text.replace(value, other)
    return text


class Rsyslog:
    """The two configurations of docs/shipping, each run by an rsyslogd, over the loopback interface.

    What is written to ``ledger`` arrives in ``received``.
    """

    def __init__(self, where: Path) -> None:
        need("rsyslogd")
        if not list(Path("/usr/lib").glob("*/rsyslog/omrelp.so")):
            pytest.skip("not installed: rsyslog-relp")
        self._where = where
        self.ledger = where / "ledger" / "audit.jsonl"
        self.received = where / "received" / "127.0.0.1.jsonl"
        for name in ("ledger", "received", "sender", "receiver"):
            (where / name).mkdir()
        port = str(free_port())
        self._write(
            "rsyslog.conf",
            "sender",
            {
                "/var/log/safespawn": str(self.ledger.parent),
                "collector.example": "127.0.0.1",
                "2514": port,
                'action.resumeInterval="5"': 'action.resumeInterval="1"',
            },
        )
        self._write(
            "rsyslog-receiver.conf",
            "receiver",
            {"/var/log/safespawn-received": str(self.received.parent), "0.0.0.0": "127.0.0.1", "2514": port},
        )

    def _write(self, shipped: str, name: str, values: dict[str, str]) -> None:
        text = (SHIPPING / shipped).read_text(encoding="utf-8")
        values = {**values, "/var/spool/rsyslog": str(self._where / name)}
        (self._where / f"{name}.conf").write_text(replaced(text, values), encoding="utf-8")

    @contextlib.contextmanager
    def _running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        pid_file = self._where / f"{name}.pid"
        pid_file.unlink(missing_ok=True)  # of one that was killed
        argv = ["rsyslogd", "-n", "-f", str(self._where / f"{name}.conf"), "-i", str(pid_file)]
        with server(argv, self._where / f"{name}.log") as process:
            until(lambda: pid_file.exists() or process.poll() is not None)
            assert process.poll() is None, (self._where / f"{name}.log").read_text()
            yield process

    def sender(self) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """Run the rsyslogd that reads the ledger."""
        return self._running("sender")

    def receiver(self) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """Run the rsyslogd that keeps the lines."""
        return self._running("receiver")

    def lines(self) -> list[bytes]:
        """Return what has arrived, without newlines."""
        return self.received.read_bytes().split(b"\n")[:-1] if self.received.exists() else []

    def wait_for(self, number: int) -> None:
        """Wait until so many different lines have arrived."""
        seen: set[bytes] = set()
        until(self.received.exists, 120)
        with self.received.open("rb") as arriving:

            def enough() -> bool:
                while (row := arriving.readline()).endswith(b"\n"):
                    seen.add(row)
                arriving.seek(-len(row), os.SEEK_CUR)  # the start of one that is being written
                return len(seen) >= number

            until(enough, 120)


    def wait_for_last(self, record: bytes) -> None:
        """Wait until the file ends with this line."""

        def is_last() -> bool:
            size = self.received.stat().st_size
            with self.received.open("rb") as found:
                found.seek(max(0, size - len(record) - 1))
                return found.read() == record + b"\n"

        until(is_last, 120)


def shipped(where: Path, write: Callable[[Path], object]) -> Path:
    """Return the file at the receiver, after ``write`` has written a ledger at the path that it is given."""
    carrier = Rsyslog(where)
    with carrier.receiver(), carrier.sender():
        write(carrier.ledger)
        segments = [carrier.ledger, *carrier.ledger.parent.glob("audit.jsonl.[0-9]*")]
        carrier.wait_for(sum(segment.read_bytes().count(b"\n") for segment in segments))
    return carrier.received
