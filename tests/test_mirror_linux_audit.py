"""The mirror in the kernel's audit, with the system's own auditd and ausearch. Leaves audit as it was."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import helpers
import sinks
from mirroring import CHAIN, SID, Running, line, until
from safespawn.audit.mirrors import LinuxAudit, _audit_fields, _line
from safespawn.audit.mirrors._audit_netlink import AuditNetlink, unread_bytes


@pytest.fixture
def kernel() -> Iterator[None]:
    """Have the kernel's audit to ourselves."""
    with sinks.kernel_audit():
        yield


@pytest.fixture
def auditd(kernel: None, tmp_path: Path) -> sinks.Auditd:
    """Return an auditd that is not running yet."""
    return sinks.Auditd(tmp_path)


@pytest.fixture
def channel(kernel: None) -> Iterator[AuditNetlink]:
    """Return a bare socket to the kernel's audit, without any of the mirror's care."""
    made = AuditNetlink()
    yield made
    made.close()


def read_by(process: subprocess.Popen[bytes]) -> None:
    """Wait until auditd has read what there is."""
    until(lambda: unread_bytes(process.pid) == 0)


def test_events_by_default() -> None:
    """Only what serves as a witness goes there: the kernel's backlog is small."""
    assert LinuxAudit().events == {"checkpoint", "spawn.denied", "cred.change", "breakglass", "audit.degraded"}
    assert LinuxAudit(events=None).events is None


def test_not_open() -> None:
    """A mirror that is not open takes nothing, and says so."""
    with pytest.raises(ConnectionError, match="not open"):
        LinuxAudit().send(line())
    assert LinuxAudit().check() == "not open"


# ---------------------------------------------------------------- round trips


def test_records_are_found_by_ausearch(auditd: sinks.Auditd) -> None:
    """What the mirror accepted is found, with its whole line where that fits and with its digest always."""
    lines = [line(n, "spawn.denied", size=size) for n, size in enumerate((0, 1500, 3700, 4000, 8000))]
    with auditd.running(), Running(LinuxAudit()) as running:
        running.put(*lines, line(98), line(99, "checkpoint", sid=None))
        running.settled(6, "audit")
        assert running.count("audit") == (6, 0, None)
        until(lambda: len(auditd.records()) == 6)
    found = auditd.records()

    assert [one["ss_n"] for one in found] == [b"0", b"1", b"2", b"3", b"4", b"99"]
    assert [one.get("ss_rec") for one in found[:5]] == [*lines[:3], None, None]
    assert found[4]["ss_bytes"] == b"8000"
    assert (found[0]["ss_ev"], found[0]["ss_c"], found[0]["ss_sid"]) == (b"spawn.denied", CHAIN.encode(), SID.encode())
    assert "ss_sid" not in found[5]


NASTY = [
    b"", b"plain", b"abcd", b"00ff", b"' type=USER_LOGIN msg='x", b'" ss_ev="forged', b"a\nb", b"\x1d", b"'", b'"',
    b"key=value", b"(null)", b"?", b"\xff\xfe", bytes(range(256)), b"%s%n", b"type=1112 audit(1.1:1):", b"\0",
]  # fmt: skip


def nasty(source: random.Random) -> bytes:
    """Return bytes that could upset a reader."""
    kind = source.randrange(3)
    if kind == 0:
        return source.choice(NASTY)
    if kind == 1:
        return bytes(source.choices(b" \t\n'\"=,:;()[]{}%\\\x1d\x00\x7fazAZ09", k=source.randrange(40)))
    return source.randbytes(source.randrange(200))


def test_auditd_outlives_our_fields(auditd: sinks.Auditd, channel: AuditNetlink) -> None:
    """Of 1500 records with hostile values all are parsed back as they were; auditd lives, and none is forged."""
    source = random.Random(5)
    sent = []
    with auditd.running() as process:
        for number in range(1500):
            fields = {"ss_n": b"%d" % number}
            for _ in range(source.randrange(1, 6)):
                fields[f"ss_{source.choice(('ev', 'c', 'sid', 'rec', 'key', 'res', 'x'))}"] = nasty(source)
            channel.tell(b" ".join(_audit_fields.field(name, value) for name, value in fields.items()))
            sent.append(fields)
            if number % 10 == 0:
                read_by(process)
        read_by(process)
        until(lambda: len(auditd.records()) == 1500)
        assert process.poll() is None
    interpreted = subprocess.run(
        ["ausearch", "-i", "-if", str(auditd.log), "-m", "USER_LOGIN,USER_CMD"], capture_output=True, check=False
    )

    assert auditd.records() == sent
    assert interpreted.stdout == b""


def test_longest_text_arrives_whole(auditd: sinks.Auditd, channel: AuditNetlink) -> None:
    """Nothing of a text at the limit is cut by the kernel, auditd or ausearch."""
    record = next(
        one for size in range(3900, 3000, -1) if b"ss_rec" in _audit_fields.body(one := line(size=size), _line.envelope(one))
    )
    text = _audit_fields.body(record, _line.envelope(record))
    with auditd.running():
        channel.tell(text)
        until(auditd.records)
    (found,) = auditd.records()

    assert 7990 < len(text) <= 8000
    assert found["ss_rec"] == record


# ------------------------------------------------------- nothing would be kept


def test_audit_is_disabled(channel: AuditNetlink) -> None:
    """The kernel acknowledges with audit disabled; the mirror does not count that as accepted."""
    sinks.set_audit("0")
    channel.tell(b'ss_n="1"')  # raises nothing
    with Running(LinuxAudit()) as running:
        running.put(*[line(n, "spawn.denied") for n in range(20)])
        running.settled(20, "audit")

    assert running.count("audit") == (0, 20, "audit is disabled in the kernel (ENOTCONN)")
    assert [event for event, _ in running.told] == ["mirror.down"]


def test_no_auditd(channel: AuditNetlink) -> None:
    """The kernel acknowledges without an auditd, too; the mirror drops the record."""
    sinks.set_audit("1")
    channel.tell(b'ss_n="1"')
    mirror = LinuxAudit()
    mirror.open()
    with pytest.raises(OSError, match="no auditd is registered") as caught:
        mirror.send(line(0, "spawn.denied"))

    assert caught.value.errno == errno.ENOTCONN
    assert mirror.check() == "no auditd is registered"
    mirror.close()


def test_auditd_that_ends_and_comes_back(auditd: sinks.Auditd) -> None:
    """check tells when auditd ends, and that all is well when there is one again."""
    mirror = LinuxAudit()
    mirror.open()
    with auditd.running():
        assert mirror.check() is None
    assert mirror.check() == "no auditd is registered"
    with auditd.running():
        assert mirror.check() is None
        mirror.send(line(0, "spawn.denied"))
        until(auditd.records)
    mirror.close()


# -------------------------------------------------------------- a stopped auditd


def longest_setuid(stop: threading.Event) -> float:
    """Return how long the slowest of many changes of ids took: glibc makes every thread take part in each."""
    longest = 0.0
    while not stop.is_set():
        start = time.monotonic()
        os.setresuid(-1, -1, -1)
        longest = max(longest, time.monotonic() - start)
    return longest


def test_bare_sender_is_held_in_the_kernel(auditd: sinks.Auditd, channel: AuditNetlink) -> None:
    """Without the mirror's care a sender to a stopped auditd hangs for half a second, and a setuid with it."""
    over = threading.Event()
    waits: list[float] = []

    def send() -> None:
        for number in range(300):
            start = time.monotonic()
            channel.tell(_audit_fields.body(one := line(number, size=3000), _line.envelope(one)))
            waits.append(time.monotonic() - start)
        over.set()

    with auditd.running() as process:
        os.kill(process.pid, signal.SIGSTOP)
        thread = threading.Thread(target=send)
        thread.start()
        longest = longest_setuid(over)
        thread.join()

    assert max(waits) > 0.4
    assert longest > 0.4


def test_stopped_auditd_holds_nobody(auditd: sinks.Auditd, monkeypatch: pytest.MonkeyPatch) -> None:
    """With auditd stopped no line is told where it would hang, each is dropped and counted, and none is lost uncounted."""
    tell, room = AuditNetlink.tell, []

    def tell_with_room(channel: AuditNetlink, text: bytes) -> None:
        status = channel.status()
        room.append(status.backlog_limit - status.backlog)
        tell(channel, text)

    monkeypatch.setattr(AuditNetlink, "tell", tell_with_room)
    with auditd.running() as process, Running(LinuxAudit()) as running:
        os.kill(process.pid, signal.SIGSTOP)
        running.put(*[line(n, "spawn.denied", size=3000) for n in range(500)])
        running.settled(500, "audit")
        accepted, dropped, down = running.count("audit")
        os.kill(process.pid, signal.SIGCONT)
        read_by(process)
        until(lambda: len(auditd.records()) >= int(accepted))  # type: ignore[call-overload]

    assert min(room) > 0  # who finds none hangs, as above
    assert 0 < int(accepted) < 100  # type: ignore[call-overload]
    assert int(accepted) + int(dropped) == 500  # type: ignore[call-overload]
    assert "auditd does not read" in str(down) or "backlog" in str(down)
    # A line that the kernel took and did not answer for in time is counted as dropped, and comes all the same.
    assert int(accepted) <= len(auditd.records()) < 100  # type: ignore[call-overload]


# ------------------------------------------------------------------ privileges


def test_dropped_privileges(kernel: None) -> None:
    """The kernel looks at the sender's capabilities each time: after a drop every record is dropped."""
    out = helpers.run_snippet(
        """
        from mirroring import Running, line
        from safespawn.audit.mirrors import LinuxAudit
        running = Running(LinuxAudit())
        os.setgroups([])
        os.setresuid(33, 33, 33)
        running.put(line(0, "spawn.denied"), line(1, "spawn.denied"))
        running.settled(2, "audit")
        out["count"] = running.count("audit")
        out["told"] = [event for event, _ in running.told]
        running.runner.stop(5)
        """
    )

    assert out["count"][:2] == [0, 2]
    assert "not permitted to see whether audit keeps records" in out["count"][2]
    assert out["told"] == ["mirror.down"]


@pytest.mark.parametrize(
    ("namespace", "reason"),
    [
        (["--user", "--map-root-user"], "not in the first user namespace"),
        (["--pid", "--fork"], "not permitted to see whether audit keeps records (CAP_AUDIT_CONTROL)"),
    ],
)
def test_other_namespaces(kernel: None, namespace: list[str], reason: str) -> None:
    """In another user or pid namespace the mirror is down, and says why."""
    script = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from mirroring import line
from safespawn.audit.mirrors import LinuxAudit
mirror = LinuxAudit()
mirror.open()
print(mirror.check())
try:
    mirror.send(line())
except OSError as problem:
    print(type(problem).__name__)
"""
    done = subprocess.run(
        ["unshare", *namespace, sys.executable, "-c", script, str(helpers.ROOT), str(helpers.TESTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"no such namespace here: {done.stderr.strip()}")

    assert done.stdout.splitlines() == [reason, "PermissionError"]
