"""The mirror in journald, against a real one from the system's package."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import helpers
import sinks
from mirroring import CHAIN, SID, Running, line, until, waits_of
from safespawn.audit.mirrors import Journald
from safespawn.audit.mirrors._journald import MESSAGE_ID

OURS = f"MESSAGE_ID={MESSAGE_ID}"


@pytest.fixture
def journal(tmp_path: Path) -> sinks.Journal:
    """Return a journald that is not running yet."""
    sinks.need("unshare", sinks.JOURNALD, "journalctl")
    return sinks.Journal(tmp_path)


@pytest.mark.parametrize(
    ("path", "problem"),
    [(3, "path must be str or a path, not 3"), ("", "1 to 107 bytes"), ("a\0", "NUL"), ("x" * 108, "1 to 107 bytes")],
)
def test_bad_path_is_shown(path: object, problem: str) -> None:
    """A wrong path is an error that shows it."""
    with pytest.raises((TypeError, ValueError), match=problem):
        Journald(path)  # type: ignore[arg-type]


def test_nothing_is_opened_by_the_constructor() -> None:
    """A mirror that is only made has no socket; one that is not open takes nothing."""
    before = helpers.open_fds()
    mirror = Journald("/nonexistent")
    assert helpers.open_fds() == before
    with pytest.raises(ConnectionError, match="not open"):
        mirror.send(line())


def test_records_are_in_the_journal(journal: sinks.Journal) -> None:
    """Records of every size are read back by journalctl, byte for byte, with fields to search by."""
    lines = [line(n, "spawn.denied", size=size) for n, size in enumerate((0, 300, 1500, 4095, 4096, 7999, 8000))]
    with journal.running(), Running(Journald(journal.socket)) as running:
        running.put(*lines)
        running.settled(len(lines), "journald")
        assert running.count("journald") == (len(lines), 0, None)
        until(lambda: len(journal.entries(OURS)) == len(lines))
    found = journal.entries(OURS)

    assert [entry["SAFESPAWN_REC"].encode() for entry in found] == lines
    last = found[-1]
    assert last["SAFESPAWN_EVENT"] == last["MESSAGE"] == "spawn.denied"
    assert (last["SAFESPAWN_CHAIN"], last["SAFESPAWN_SID"], last["SAFESPAWN_N"]) == (CHAIN, SID, "6")
    assert (last["PRIORITY"], last["SYSLOG_IDENTIFIER"], last["_UID"]) == ("4", "safespawn", "0")
    assert last["_PID"] == str(os.getpid())
    assert journal.entries(f"SAFESPAWN_SID={SID}", "SAFESPAWN_N=2") == [found[2]]


def test_burst_reaches_a_journald_that_reads(journal: sinks.Journal) -> None:
    """A burst is not lost although the socket holds some ten entries: there is a little patience."""
    lines = [line(n, size=1500) for n in range(2000)]
    with journal.running(), Running(Journald(journal.socket)) as running:
        running.put(*lines)
        running.settled(2000, "journald")
        assert running.count("journald") == (2000, 0, None)
        until(lambda: len(journal.entries(OURS)) == 2000)


def test_stopped_journald_holds_nobody(journal: sinks.Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """With journald stopped, sending waits once and briefly, the lines are dropped and counted, and it recovers."""
    mirror = Journald(journal.socket)
    waits = waits_of(monkeypatch)
    with journal.running() as process:
        mirror.open()
        os.kill(process.pid, signal.SIGSTOP)
        taken, called = 0, []
        for number in range(200):
            before = len(waits)
            try:
                mirror.send(line(number))
                taken += 1
            except BlockingIOError as problem:
                assert problem.errno == errno.EAGAIN
            called += [number] if len(waits) > before else []
        os.kill(process.pid, signal.SIGCONT)
        until(lambda: len(journal.entries(OURS)) == taken)
        mirror.send(line(200))
        until(lambda: len(journal.entries(OURS)) == taken + 1)
        mirror.close()

    # Eleven with net.unix.max_dgram_qlen at its default.
    assert 0 < taken < 100
    assert called == [taken], "the first that has no room waits, and no other"
    assert waits == [0.2]


def test_stopped_journald_is_told(journal: sinks.Journal) -> None:
    """The counters and one mirror.down say that a stopped journald takes nothing."""
    with journal.running() as process, Running(Journald(journal.socket)) as running:
        os.kill(process.pid, signal.SIGSTOP)
        running.put(*[line(n) for n in range(300)])
        running.settled(300, "journald")
        accepted, dropped, down = running.count("journald")
        os.kill(process.pid, signal.SIGCONT)

    assert (int(accepted) + int(dropped), int(dropped) > 200) == (300, True)  # type: ignore[call-overload]
    assert down == f"the receiver does not read: {journal.socket} (EAGAIN)"
    assert [event for event, _ in running.told] == ["mirror.down"]


def test_journald_that_comes_later(journal: sinks.Journal) -> None:
    """Without a socket the mirror is down; when there is one, records arrive."""
    with Running(Journald(journal.socket)) as running:
        assert "No such file or directory" in str(running.count("journald")[2])
        with journal.running():
            until(lambda: running.put(line(5)) or int(running.count("journald")[0]) > 0)  # type: ignore[func-returns-value, call-overload]
            until(lambda: journal.entries(OURS))


def test_record_beyond_the_socket_is_dropped(tmp_path: Path) -> None:
    """What the socket cannot take at once is refused, never cut and never passed as a file."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        mirror = Journald(path)
        mirror.open()
        with pytest.raises(OSError) as caught:
            mirror.send(line(size=400_000))
        mirror.close()

    assert caught.value.errno == errno.EMSGSIZE


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Journald, int]]:
    """Return an open mirror and the number of its descriptor."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        before = helpers.open_fds()
        mirror = Journald(path)
        mirror.open()
        (number,) = helpers.open_fds() - before
        yield mirror, number
        mirror.close()


def test_socket_has_a_high_number_and_is_not_inherited(opened: tuple[Journald, int]) -> None:
    """Daemons close low numbers by rote; programs that are started do not get it."""
    _, number = opened
    assert number >= 512
    assert not os.get_inheritable(number)


@pytest.mark.parametrize("reused", [False, True])
def test_closed_socket_is_noticed(opened: tuple[Journald, int], tmp_path: Path, reused: bool) -> None:
    """If others close the descriptor, no record goes into the file that gets its number, and that stays open."""
    mirror, number = opened
    os.close(number)
    with (tmp_path / "application.log").open("w+b") as log:
        if reused:
            os.dup2(log.fileno(), number)
        with pytest.raises(ConnectionError, match="somebody closed the mirror's socket"):
            mirror.send(line())
        mirror.close()
        if reused:
            os.close(number)  # it is still there
        assert (tmp_path / "application.log").read_bytes() == b""


def configured(argv: list[str], address: str, where: Path) -> list[str]:
    """Return the command line that runs this with the configuration of docs/shipping, which nobody else sees."""
    ours = where / "journal-upload.conf"
    text = (sinks.SHIPPING / ours.name).read_text(encoding="utf-8")
    ours.write_text(sinks.replaced(text, {"collector.example:19532": address}), encoding="utf-8")
    script = 'mount --make-rprivate / && mount --bind "$0" /etc/systemd/journal-upload.conf && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(ours), *argv]


def test_entries_are_uploaded(journal: sinks.Journal, tmp_path: Path) -> None:
    """systemd-journal-upload, with our configuration, carries the lines to systemd-journal-remote, byte for byte."""
    programs = [f"/lib/systemd/systemd-journal-{name}" for name in ("remote", "upload")]
    sinks.need(*programs)
    remote, upload = programs
    address = f"127.0.0.1:{sinks.free_port()}"
    kept = tmp_path / "remote"
    kept.mkdir()
    sent = [line(n, size=size) for n, size in enumerate((300, 1500, 8000) * 20)]
    log = tmp_path / "upload.log"
    with (
        journal.running(),
        sinks.server([remote, f"--listen-http={address}", "-o", str(kept), "--split-mode=host"], log),
        Running(Journald(journal.socket)) as running,
    ):
        running.put(*sent)
        running.settled(60, "journald")
        until(lambda: len(journal.entries(OURS)) == 60)
        until(lambda: sinks.listens(address))
        argv = [upload, "-D", str(journal.kept), f"--save-state={tmp_path / 'state'}"]
        with sinks.server(configured(argv, address, tmp_path), log):
            until(lambda: len(sinks.entries(kept, OURS)) == 60)

    assert [entry["SAFESPAWN_REC"].encode() for entry in sinks.entries(kept, OURS)] == sent
