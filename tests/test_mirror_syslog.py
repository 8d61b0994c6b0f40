"""The mirror in syslog: what arrives over each transport, and receivers that stop, end and come back."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import helpers
import sinks
from mirroring import CHAIN, MESSAGE, SID, Running, line, read_data, until, waits_of
from safespawn.audit.mirrors import Syslog

LOCAL = "127.0.0.1"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((3,), "address must be str or a path, not 3"),
        (("",), "address must have 1 to 107 bytes"),
        (((LOCAL,),), r"address must be a path or \(host, port\)"),
        ((("a b", 514),), "address.0. is no name or address of a host: 'a b'"),
        (((LOCAL, 0),), "address.1. must be from 1 to 65535, not 0"),
        (((LOCAL, "514"),), "address.1. must be an int, not '514'"),
        (("/dev/log", "tcp"), "transport='tcp' does not go with address='/dev/log'"),
        (((LOCAL, 514), "unix"), "transport='unix' does not go with"),
        (((LOCAL, 514), "tls"), "transport must be one of unix, udp, tcp, not 'tls'"),
    ],
)
def test_bad_address_is_shown(arguments: tuple[object, ...], problem: str) -> None:
    """A wrong address or transport is an error that shows it."""
    with pytest.raises((TypeError, ValueError), match=problem):
        Syslog(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"facility": "kern"}, "facility must be one of .*, not 'kern'"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"timeout": float("nan")}, "timeout must be above 0"),
        ({"timeout": "5"}, "timeout must be a number of seconds, not '5'"),
        ({"timeout": True}, "timeout must be a number of seconds, not True"),
    ],
)
def test_bad_option_is_shown(options: dict[str, object], problem: str) -> None:
    """A wrong option is an error that shows it."""
    with pytest.raises((TypeError, ValueError), match=problem):
        Syslog(**options)  # type: ignore[arg-type]


def test_transport_by_default() -> None:
    """A path is a Unix socket; a host is spoken to by TCP."""
    assert Syslog().transport == "unix"
    assert Syslog((LOCAL, 514)).transport == "tcp"


# --------------------------------------------------------------- datagrams


@pytest.fixture
def datagrams(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Syslog, socket.socket]]:
    """Return an open mirror and the socket of its receiver."""
    if request.param == "unix":
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(str(tmp_path / "log"))
        mirror = Syslog(tmp_path / "log")
    else:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((LOCAL, 0))
        mirror = Syslog(receiver.getsockname(), "udp")
    with receiver:
        mirror.open()
        yield mirror, receiver
        mirror.close()


@pytest.mark.parametrize("datagrams", ["unix", "udp"], indirect=True)
def test_datagram_is_a_message(datagrams: tuple[Syslog, socket.socket]) -> None:
    """One datagram is one message of RFC 5424 with the whole line, and what it is found by."""
    mirror, receiver = datagrams
    record = line(41, "spawn.denied", size=8000)
    mirror.send(record)
    found = MESSAGE.fullmatch(receiver.recv(65536))

    assert found is not None
    assert found["text"] == record
    assert found["priority"] == b"84"  # authpriv.warning
    assert found["time"] == b"2026-11-24T21:03:46.703651Z"
    assert found["host"] == os.uname().nodename.encode()
    assert (found["app"], found["process"], found["kind"]) == (b"safespawn", b"%d" % os.getpid(), b"spawn.denied")
    assert read_data(found["data"]) == {"c": CHAIN, "n": "41", "sid": SID}


@pytest.mark.parametrize("datagrams", ["unix", "udp"], indirect=True)
def test_message_without_a_spawn(datagrams: tuple[Syslog, socket.socket]) -> None:
    """A record that belongs to no spawn has no sid in its data."""
    mirror, receiver = datagrams
    mirror.send(line(5, "checkpoint", sid=None))
    found = MESSAGE.fullmatch(receiver.recv(65536))

    assert found is not None
    assert read_data(found["data"]) == {"c": CHAIN, "n": "5"}


@pytest.mark.parametrize("datagrams", ["unix"], indirect=True)
def test_receiver_that_does_not_read(datagrams: tuple[Syslog, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """A full Unix socket is waited for briefly, once; then lines are refused at once, until it is read."""
    mirror, receiver = datagrams
    waits = waits_of(monkeypatch)
    refused, called = 0, []
    for number in range(100):
        before = len(waits)
        try:
            mirror.send(line(number))
        except BlockingIOError as problem:
            assert problem.errno == errno.EAGAIN
            refused += 1
        called += [number] if len(waits) > before else []
    receiver.recv(65536)
    mirror.send(line(100))

    assert refused > 50
    assert called == [100 - refused], "the first that has no room waits, and no other"
    assert waits == [0.2]


def test_unix_receiver_is_restarted(tmp_path: Path) -> None:
    """A receiver that ends and makes its socket anew costs no line that is sent after that."""
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        running = Running(Syslog(path))
        with running:
            running.put(line(0))
            running.settled(1, "syslog")
            receiver.close()
            path.unlink()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
                second.bind(str(path))
                running.put(line(1))
                running.settled(2, "syslog")
                assert second.recv(65536).endswith(line(1))

    assert running.count("syslog") == (2, 0, None)


def test_udp_receiver_is_gone() -> None:
    """The host's answer that nobody listens is noticed: the mirror is down and stays so while it answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((LOCAL, 0))
        address = receiver.getsockname()
    with Running(Syslog(address, "udp")) as running:
        for number in range(1, 20):
            running.put(line(number))
            running.settled(number, "syslog")
        _, dropped, down = running.count("syslog")

    assert down == f"nobody listens: {address} (EHOSTUNREACH)"
    # The answer comes with the next datagram, so every other one counts as accepted.
    assert int(dropped) >= 9  # type: ignore[call-overload]
    assert [event for event, _ in running.told] == ["mirror.down"]


def test_name_without_an_address() -> None:
    """A name that cannot be resolved drops the line, with the name in the reason."""
    for transport in ("udp", "tcp"):
        mirror = Syslog(("no.such.host.invalid", 514), transport)  # type: ignore[arg-type]
        mirror.open()
        with pytest.raises(ConnectionError, match="no.such.host.invalid"):
            mirror.send(line())


# --------------------------------------------------------------------- stream


class Receiver:
    """A TCP receiver that reads frames in a thread of its own while it is told to."""

    def __init__(self, port: int = 0, buffer: int | None = None) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._listener.bind((LOCAL, port))
        self._listener.listen()
        self.address: tuple[str, int] = self._listener.getsockname()
        self.connections: list[socket.socket] = []

    def accept(self) -> socket.socket:
        """Return the next connection."""
        self._listener.settimeout(30)
        connection, _ = self._listener.accept()
        connection.settimeout(30)
        self.connections.append(connection)
        return connection

    def close(self) -> None:
        """End as a process does: all at once."""
        for connection in self.connections:
            connection.close()
        self._listener.close()


def frames(connection: socket.socket, number: int) -> list[bytes]:
    """Return so many messages from a connection."""
    found = []
    with connection.makefile("rb") as stream:
        while len(found) < number:
            length = b""
            while (byte := stream.read(1)) != b" ":
                assert byte, "the connection ended"
                length += byte
            found.append(stream.read(int(length)))
    return found


def test_stream_of_messages() -> None:
    """Over TCP messages of any size arrive whole and in order, each counted in octets."""
    lines = [line(n, size=size) for n, size in enumerate((0, 1500, 8000) * 100)]
    with closing(Receiver()) as receiver, Running(Syslog(receiver.address)) as running:
        running.put(*lines)
        found = frames(receiver.accept(), len(lines))
        running.settled(len(lines), "syslog")

    assert [MESSAGE.fullmatch(one)["text"] for one in found] == lines  # type: ignore[index]
    assert running.count("syslog") == (300, 0, None)


def test_stream_receiver_is_restarted() -> None:
    """After an orderly restart of the receiver the next line arrives, and none was lost."""
    with closing(Receiver()) as receiver, Running(Syslog(receiver.address)) as running:
        running.put(line(0))
        assert len(frames(receiver.accept(), 1)) == 1
        receiver.close()
        with closing(Receiver(receiver.address[1])) as second:
            running.put(line(1))
            (found,) = frames(second.accept(), 1)
            running.settled(2, "syslog")

    assert found.endswith(line(1))
    assert running.count("syslog") == (2, 0, None)
    assert running.told == []


def test_stream_receiver_is_gone() -> None:
    """With nobody listening lines are dropped, and the mirror is down for that reason."""
    receiver = Receiver()
    receiver.close()
    with Running(Syslog(receiver.address)) as running:
        running.put(line(0))
        running.settled(1, "syslog")

    assert running.count("syslog")[:2] == (0, 1)
    assert "refused" in str(running.count("syslog")[2])
    assert [event for event, _ in running.told] == ["mirror.down"]


def test_stream_receiver_stops_reading() -> None:
    """A receiver that does not read is given up after the timeout, and holds no more than the buffers do."""
    with closing(Receiver(buffer=4096)) as receiver:
        mirror = Syslog(receiver.address, timeout=0.3)
        mirror.open()
        taken = 0
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="not taken for 0.3 seconds"):
            while taken < 10_000:
                mirror.send(line(taken, size=8000))
                taken += 1
        took = time.monotonic() - start
        mirror.close()

    assert 0 < taken * 8000 < 1_000_000
    assert took < 60


def test_broken_frame_is_not_continued() -> None:
    """After a frame that went out in part, the next one begins a new connection."""
    with closing(Receiver(buffer=4096)) as receiver:
        mirror = Syslog(receiver.address, timeout=0.3)
        mirror.open()
        with pytest.raises(TimeoutError):
            for number in range(10_000):
                mirror.send(line(number, size=8000))
        mirror.send(line(7))
        receiver.accept()
        (found,) = frames(receiver.accept(), 1)
        mirror.close()

    assert found.endswith(line(7))


def test_open_waits_for_no_host() -> None:
    """Opening a mirror of a host makes no connection: whoever opens a ledger is not held by it."""
    before = helpers.open_fds()
    mirror = Syslog(("192.0.2.1", 514))
    mirror.open()

    assert helpers.open_fds() == before


def test_close_in_a_child_leaves_the_parents_connection() -> None:
    """A forked child that lets go of the connection does not end it for the parent."""
    with closing(Receiver()) as receiver:
        mirror = Syslog(receiver.address)
        mirror.open()
        mirror.send(line(0))
        connection = receiver.accept()
        child = os.fork()
        if child == 0:
            mirror.forget()
            os._exit(0)
        os.waitpid(child, 0)
        mirror.send(line(1))
        found = frames(connection, 2)
        mirror.close()

    assert found[1].endswith(line(1))


# ------------------------------------------------------------ real receivers


def test_journald_takes_it_as_text(tmp_path: Path) -> None:
    """A journald behind /dev/log keeps the whole message, header and all, in MESSAGE."""
    sinks.need("unshare", sinks.JOURNALD, "journalctl")
    journal = sinks.Journal(tmp_path)
    record = line(3, size=8000)
    with journal.running():
        mirror = Syslog(journal.dev_log)
        mirror.open()
        mirror.send(record)
        mirror.close()
        until(lambda: journal.entries("_TRANSPORT=syslog"))
    (entry,) = journal.entries("_TRANSPORT=syslog")

    assert entry["MESSAGE"].endswith(record.decode())
    assert (entry["PRIORITY"], entry["SYSLOG_FACILITY"]) == ("6", "10")
