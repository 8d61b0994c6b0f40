"""The mirrors inside the process: Python's logging, and OpenTelemetry's SDK."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Iterator

import pytest

import helpers
from mirroring import CHAIN, SID, TIME_NS, Running, Scripted, line
from safespawn.audit.mirrors import Logging, OpenTelemetry, _line


class Kept(logging.Handler):
    """Keeps what is logged, or does what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Return a logger of the test's own, enabled, without a handler."""
    made = logging.getLogger("test.mirror")
    made.setLevel(logging.DEBUG)
    made.propagate = False
    yield made
    made.handlers.clear()
    made.propagate = True


@pytest.fixture
def kept(logger: logging.Logger) -> Kept:
    """Return a handler of that logger."""
    handler = Kept()
    logger.addHandler(handler)
    return handler


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((3,), "logger must be a name or a logger, not 3"),
        (("x", 0), "level must be from 1 to 1000, not 0"),
        (("x", "INFO"), "level must be an int, not 'INFO'"),
    ],
)
def test_bad_argument_is_shown(arguments: tuple[object, ...], problem: str) -> None:
    """A wrong logger or level is an error that shows it."""
    with pytest.raises((TypeError, ValueError), match=problem):
        Logging(*arguments)  # type: ignore[arg-type]


def test_line_is_logged(logger: logging.Logger, kept: Kept) -> None:
    """The message is the line, percent signs and all, and the envelope comes with it."""
    record = line(41, "spawn.denied", size=8000)
    with Running(Logging(logger)) as running:
        running.put(record)
        running.settled(1, "logging")
    (found,) = kept.records

    assert found.getMessage().encode() == record
    assert found.safespawn == _line.envelope(record)  # type: ignore[attr-defined]
    assert running.count("logging") == (1, 0, None)


@pytest.mark.parametrize(
    ("event", "level"),
    [("breakglass", "CRITICAL"), ("audit.degraded", "CRITICAL"), ("mirror.down", "WARNING"), ("cred.change", "INFO")],
)
def test_level_by_event(logger: logging.Logger, kept: Kept, event: str, level: str) -> None:
    """Without a level of its own a mirror logs by what the record tells."""
    Logging(logger).send(line(event=event))
    assert kept.records[0].levelname == level


def test_level_that_was_given(logger: logging.Logger, kept: Kept) -> None:
    """A level that was given is that of all records."""
    Logging("test.mirror", logging.DEBUG).send(line(event="breakglass"))
    assert kept.records[0].levelname == "DEBUG"


def test_nobody_listens() -> None:
    """A logger without a handler has not taken the record."""
    out = helpers.run_snippet(  # here pytest listens everywhere
        """
        from mirroring import line
        from safespawn.audit.mirrors import Logging
        try:
            Logging("test.mirror", 30).send(line())
        except OSError as problem:
            out["raised"] = [problem.errno, problem.strerror]
        """
    )
    assert out["raised"] == [errno.ENODEV, "the logger test.mirror has no handler"]


def test_level_is_off(logger: logging.Logger, kept: Kept) -> None:
    """A logger that does not want the level has not taken the record."""
    logger.setLevel(logging.ERROR)
    with pytest.raises(OSError, match="test.mirror is not enabled for INFO"):
        Logging(logger).send(line())
    assert kept.records == []


def test_handler_with_a_bug(logger: logging.Logger, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that raises costs its records, not those of other mirrors, nor the thread."""

    def fail(record: logging.LogRecord) -> None:
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(kept, "emit", fail)
    other = Scripted()
    with Running(Logging(logger), other) as running:
        running.put(line(0), line(1))
        running.settled(2, "logging")
        running.settled(2)
        monkeypatch.undo()
        running.put(line(2))
        running.settled(3, "logging")

    assert running.count("logging") == (1, 2, "ZeroDivisionError: bug")
    assert [record.getMessage().encode() for record in kept.records] == [line(2)]
    assert len(other.taken) == 3


# -------------------------------------------------------------- OpenTelemetry


@pytest.fixture
def exported() -> Iterator[tuple[object, object]]:
    """Return a provider of the SDK, and the exporter that keeps what it exports."""
    pytest.importorskip("opentelemetry.sdk._logs")
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    provider = LoggerProvider(shutdown_on_exit=False)
    exporter = InMemoryLogRecordExporter()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


def test_log_record(exported: tuple[object, object]) -> None:
    """The body is the line; time, severity, name and attributes are the record's."""
    provider, exporter = exported
    record = line(41, "spawn.denied", size=8000)
    with Running(OpenTelemetry(provider)) as running:
        running.put(record, line(42, "checkpoint", sid=None))
        running.settled(2, "opentelemetry")
    first, second = (one.log_record for one in exporter.get_finished_logs())  # type: ignore[attr-defined]

    assert first.body.encode() == record
    assert (first.timestamp, first.event_name) == (TIME_NS, "safespawn.spawn.denied")
    assert (first.severity_number.name, first.severity_text) == ("WARN", "WARN")
    assert dict(first.attributes) == {
        "log.record.uid": f"{CHAIN}:41",
        "safespawn.event": "spawn.denied",
        "safespawn.chain": CHAIN,
        "safespawn.n": 41,
        "safespawn.sid": SID,
    }
    assert "safespawn.sid" not in second.attributes
    assert running.count("opentelemetry") == (2, 0, None)


def test_batches_are_flushed_at_the_end() -> None:
    """What a batch processor still holds is exported when the mirror is closed, and the provider goes on."""
    pytest.importorskip("opentelemetry.sdk._logs")
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter

    provider, exporter = LoggerProvider(shutdown_on_exit=False), InMemoryLogRecordExporter()
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, schedule_delay_millis=3_600_000))
    with Running(OpenTelemetry(provider)) as running:
        running.put(line(0))
        running.settled(1, "opentelemetry")
        assert exporter.get_finished_logs() == ()
    assert len(exporter.get_finished_logs()) == 1
    with Running(OpenTelemetry(provider)) as again:
        again.put(line(1))
        again.settled(1, "opentelemetry")
    assert len(exporter.get_finished_logs()) == 2
    provider.shutdown()


def test_provider_of_another_kind() -> None:
    """What is no provider of the SDK is an error that shows it."""
    pytest.importorskip("opentelemetry.sdk._logs")
    with pytest.raises(TypeError, match=r"provider must be a LoggerProvider of the SDK, not 'x' \(str\)"):
        OpenTelemetry("x")


def test_no_global_provider() -> None:
    """Where nobody has set up the SDK the mirror is down; it is opened when somebody has."""
    pytest.importorskip("opentelemetry.sdk._logs")
    out = helpers.run_snippet(
        """
        from mirroring import Running, line, until
        from safespawn.audit.mirrors import OpenTelemetry
        running = Running(OpenTelemetry())
        out["before"] = running.count("opentelemetry")
        from opentelemetry._logs import set_logger_provider
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
        exporter = InMemoryLogRecordExporter()
        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
        set_logger_provider(provider)
        until(lambda: running.put(line()) or exporter.get_finished_logs())
        running.runner.stop(5)
        """
    )

    assert out["before"] == [0, 0, "no LoggerProvider of the SDK is set (ENODEV)"]


def test_extra_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the SDK there is one error, which names the extra; the other mirrors are there."""
    monkeypatch.setitem(sys.modules, "opentelemetry._logs", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs opentelemetry-sdk, the extra safespawn\[otel\]"):
        OpenTelemetry()


def test_package_does_not_import_the_sdk() -> None:
    """Importing the mirrors imports nothing that is not required."""
    out = helpers.run_snippet(
        """
        import safespawn.audit.mirrors
        out["loaded"] = [name for name in sys.modules if name.startswith("opentelemetry")]
        """
    )
    assert out["loaded"] == []
