"""The configurations of docs/shipping: those for rsyslog are run, with everything that may happen to them."""

from __future__ import annotations

import fnmatch
import re
import signal
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

import helpers
import sinks
from mirroring import Running, line, until
from safespawn import audit
from safespawn.audit.mirrors import Syslog
from safespawn.audit.verifier import verify

SIZES = (300, 1500, 4000, 7999, 8000)


def lines(first: int, after: int) -> list[bytes]:
    """Return records of all sizes."""
    return [line(number, size=SIZES[number % len(SIZES)]) for number in range(first, after)]


def append(path: Path, records: Iterable[bytes]) -> None:
    """Write records as a ledger does: each in one write(2)."""
    with path.open("ab", buffering=0) as ledger:
        for record in records:
            ledger.write(record + b"\n")


@pytest.fixture
def carrier(tmp_path: Path) -> sinks.Rsyslog:
    """Return both rsyslogds, not running yet."""
    return sinks.Rsyslog(tmp_path)


@pytest.mark.parametrize("name", ["rsyslog.conf", "rsyslog-receiver.conf"])
def test_rsyslog_accepts_its_configuration(name: str, tmp_path: Path) -> None:
    """rsyslogd finds no fault in the files as they are shipped."""
    sinks.need("rsyslogd")
    (tmp_path / "work").mkdir()
    text = (sinks.SHIPPING / name).read_text(encoding="utf-8")
    conf = tmp_path / name
    conf.write_text(sinks.replaced(text, {"/var/spool/rsyslog": str(tmp_path / "work")}), encoding="utf-8")
    done = subprocess.run(["rsyslogd", "-N1", "-f", str(conf)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr.replace("try https://www.rsyslog.com/e/", "")


def test_lines_are_identical_at_the_receiver(tmp_path: Path) -> None:
    """Lines of up to 8000 bytes, with every printable character, arrive byte for byte, in order and once."""
    sent = lines(0, 500)

    def write(ledger: Path) -> None:
        append(ledger, sent)

    received = sinks.shipped(tmp_path, write)

    assert received.read_bytes() == b"".join(record + b"\n" for record in sent)


def spawns(ledger: Path, keys: Path, rounds: int) -> None:
    """Run programs with the audit on, in a process of its own and a forked child."""
    helpers.run_snippet(
        """
from safespawn import audit, run
made = audit.open(ledger, keys=keys)
for number in range(rounds):
    run(["/bin/true", "x" * (number * 37 % 1500)])
    if number == rounds // 2 and (pid := os.fork()) == 0:
        run(["/bin/true", "child"])
        made.close()
        os._exit(0)
os.waitpid(pid, 0)
made.close()
""",
        ledger=str(ledger),
        keys=str(keys),
        rounds=rounds,
    )


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, bytes]:
    """Return a key directory and the verification key."""
    return tmp_path / "keys", bytes.fromhex(audit.keys.initialise(tmp_path / "keys"))


def test_ledger_is_verified_at_the_receiver(tmp_path: Path, keys: tuple[Path, bytes]) -> None:
    """What arrives is the ledger: its verifier takes it there, with the key alone, and sees what was changed."""
    received = sinks.shipped(tmp_path, lambda ledger: spawns(ledger, keys[0], 40))
    made = verify(received, key=keys[1], state=False)

    assert made.ok, made.findings
    assert made.counts["records"] == len(received.read_bytes().splitlines()) > 3 * 41
    assert made.counts["keyed"] == made.counts["chains"] == 2

    data = bytearray(received.read_bytes())
    data[data.index(b"/bin/true", len(data) // 2)] ^= 1
    received.write_bytes(data)
    assert [one.reason for one in verify(received, key=keys[1], state=False).findings] == ["mac-mismatch"]


@pytest.mark.slow
def test_lines_that_come_twice_are_verified(carrier: sinks.Rsyslog, keys: tuple[Path, bytes]) -> None:
    """After a sender was killed lines come again: `dedupe` takes them, and what the host has left agrees."""
    with carrier.receiver():
        with carrier.sender() as process:
            spawns(carrier.ledger, keys[0], 30)
            carrier.wait_for(60)
            process.send_signal(signal.SIGKILL)
            process.wait()
        sent = carrier.ledger.read_bytes().splitlines()
        with carrier.sender():
            until(lambda: set(sent) <= set(carrier.lines()), 120)
            append(carrier.ledger.with_name("audit.jsonl.1"), sent[:1])  # what nobody needs to wait for
            until(lambda: len(carrier.lines()) > len(sent), 120)

    assert not verify(carrier.received, key=keys[1], state=False).ok
    again = verify(carrier.received, key=keys[1], state=False, dedupe=True)
    assert again.ok, again.findings
    assert again.counts["repeats"] >= 1
    carrier.ledger.with_name("audit.jsonl.1").unlink()
    assert verify(carrier.ledger, key=keys[1], registry=keys[0], witness=[carrier.received]).ok


def unique(records: Iterable[bytes]) -> list[bytes]:
    """Return each once, in the order of the first."""
    return list(dict.fromkeys(records))


def check_segments(found: list[bytes], *segments: list[bytes]) -> None:
    """Every line of every segment is there and no other, those of one segment in order.

    imfile may read a segment that was renamed once more, or after the next one.
    """
    assert set(found) == set().union(*segments)
    for segment in segments:
        inside = set(segment)
        assert [one for one in unique(found) if one in inside] == segment


def test_rotation(carrier: sinks.Rsyslog) -> None:
    """When the ledger is renamed and a new one begun, again and again, no line is lost or changed."""
    sent = lines(0, 600)
    with carrier.receiver(), carrier.sender():
        append(carrier.ledger, sent[:200])
        carrier.wait_for(100)
        carrier.ledger.rename(f"{carrier.ledger}.1")
        append(carrier.ledger, sent[200:400])
        carrier.wait_for(300)
        carrier.ledger.rename(f"{carrier.ledger}.2")
        append(carrier.ledger, sent[400:])
        carrier.wait_for(600)

    check_segments(carrier.lines(), sent[:200], sent[200:400], sent[400:])


def test_rotation_while_rsyslog_does_not_run(carrier: sinks.Rsyslog) -> None:
    """What was written before a rename, and not read yet, is read when rsyslogd is started again."""
    sent = lines(0, 400)
    with carrier.receiver():
        with carrier.sender():
            append(carrier.ledger, sent[:100])
            carrier.wait_for(100)
        append(carrier.ledger, sent[100:200])
        carrier.ledger.rename(f"{carrier.ledger}.1")
        append(carrier.ledger, sent[200:300])
        with carrier.sender():
            carrier.wait_for(300)
            append(carrier.ledger, sent[300:])
            carrier.wait_for(400)

    check_segments(carrier.lines(), sent[:200], sent[200:])


def test_state_file_is_not_shipped(carrier: sinks.Rsyslog) -> None:
    """The binary file beside the ledger is no segment."""
    with carrier.receiver(), carrier.sender():
        Path(f"{carrier.ledger}.state").write_bytes(b"SSSTATE1\n" + bytes(119))
        append(carrier.ledger, lines(0, 10))
        carrier.wait_for(10)

    assert carrier.lines() == lines(0, 10)


def test_receiver_is_away(carrier: sinks.Rsyslog) -> None:
    """What is written while there is no receiver arrives when it is back, in order."""
    sent = lines(0, 1000)
    with carrier.sender():
        append(carrier.ledger, sent)
        with carrier.receiver():
            carrier.wait_for(1000)

    assert carrier.lines() == sent


@pytest.mark.slow
def test_receiver_is_killed(carrier: sinks.Rsyslog) -> None:
    """Nothing that a killed receiver acknowledged is lost, and the rest comes in order, perhaps twice.

    It may leave half a line each time, and the next one stands right behind that.
    """
    sent = lines(0, 1500)
    writer = threading.Thread(target=append, args=(carrier.ledger, sent))
    with carrier.sender():
        writer.start()
        for seen in (200, 500, 800):
            with carrier.receiver() as process:
                carrier.wait_for(seen)
                process.send_signal(signal.SIGKILL)
                process.wait()
        writer.join()
        with carrier.receiver():
            carrier.wait_for_last(sent[-1])
    found = carrier.received.read_bytes()
    whole = [sent.index(record) for record in unique(carrier.lines()) if record in sent]

    assert [record for record in sent if record + b"\n" not in found] == []
    assert len(whole) >= 1497
    assert whole == sorted(whole)


@pytest.mark.slow
def test_sender_is_killed(carrier: sinks.Rsyslog) -> None:
    """A killed sender loses nothing: it reads again, so lines come twice."""
    sent = lines(0, 1000)
    writer = threading.Thread(target=append, args=(carrier.ledger, sent))
    with carrier.receiver():
        writer.start()
        for seen in (200, 500):
            with carrier.sender() as process:
                carrier.wait_for(seen)
                process.send_signal(signal.SIGKILL)
                process.wait()
        writer.join()
        with carrier.sender():
            until(lambda: set(sent) <= set(carrier.lines()), 120)


# --------------------------------------------- rsyslog behind the syslog mirror

RECEIVERS = {
    "tcp": 'module(load="imtcp")\ninput(type="imtcp" address="127.0.0.1" port="{port}" ruleset="r")',
    "udp": 'module(load="imudp")\ninput(type="imudp" address="127.0.0.1" port="{port}" ruleset="r")',
    "unix": 'module(load="imuxsock" SysSock.Use="off")\n'
    'input(type="imuxsock" socket="{path}" useSpecialParser="off" parseHostname="on" ruleset="r")',
}


@pytest.mark.parametrize("transport", RECEIVERS)
def test_rsyslog_reads_the_syslog_mirror(transport: str, tmp_path: Path) -> None:
    """rsyslogd finds the line, byte for byte, and our data in what the mirror sends by each transport."""
    sinks.need("rsyslogd")
    port, path, out = sinks.free_port(), tmp_path / "log", tmp_path / "out"
    conf = tmp_path / "conf"
    conf.write_text(
        f'global(workDirectory="{tmp_path}" maxMessageSize="64k")\n'
        'template(name="t" type="string" string="%MSGID% %STRUCTURED-DATA% %msg%\\n")\n'
        f'ruleset(name="r") {{ action(type="omfile" file="{out}" template="t") }}\n'
        + RECEIVERS[transport].format(port=port, path=path),
        encoding="ascii",
    )
    # A burst over UDP is lost in the receiver's buffer before it has read the first one.
    sent = lines(0, 5)
    argv = ["rsyslogd", "-n", "-f", str(conf), "-i", str(tmp_path / "pid")]
    with sinks.server(argv, tmp_path / "log.txt"):
        until((tmp_path / "pid").exists)
        address = str(path) if transport == "unix" else ("127.0.0.1", port)
        with Running(Syslog(address, transport)) as running:  # type: ignore[arg-type]
            running.put(*sent)
            running.settled(5, "syslog")
            until(lambda: out.exists() and out.read_bytes().count(b"\n") == 5)

    found = [re.fullmatch(rb"spawn\.intent \[safespawn@32473 [^]]*\] (.*)", one) for one in out.read_bytes().splitlines()]
    assert [one[1] for one in found if one] == sent


# ------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", ["rsyslog.conf", "vector.toml", "otelcol.yaml"])
def test_patterns_match_segments_only(name: str) -> None:
    """Each configuration reads the ledger and its older segments, and not the state file."""
    text = (sinks.SHIPPING / name).read_text(encoding="utf-8")
    code = "\n".join(row for row in text.splitlines() if not row.lstrip().startswith("#"))
    patterns = re.findall(r"""/var/log/safespawn/[^"',\s]*[^"',\s\]]*""", code)

    def is_read(path: str) -> bool:
        return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)

    ledger = "/var/log/safespawn/audit.jsonl"
    assert is_read(ledger) and is_read(f"{ledger}.1") and is_read(f"{ledger}.23")
    assert not is_read(f"{ledger}.state")


def test_vector_configuration_is_toml() -> None:
    """The file can be read, and its sink asks for acknowledgements and a buffer on disk."""
    tomllib = pytest.importorskip("tomllib")
    conf = tomllib.loads((sinks.SHIPPING / "vector.toml").read_text(encoding="utf-8"))
    (sink,) = conf["sinks"].values()

    assert sink["inputs"] == list(conf["sources"])
    assert sink["acknowledgements"] == {"enabled": True}
    assert sink["buffer"]["type"] == "disk"
