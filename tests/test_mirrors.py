"""The mirrors' threads: what is counted, what is told, and that nothing a mirror does reaches anybody else."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import helpers
import mirroring
from mirroring import Running, Scripted, line, until
from safespawn import PIPE, run
from safespawn.audit import mirrors
from safespawn.audit.mirrors import _health, _link, _worker
from safespawn.audit.mirrors._runner import Runner


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the mirrors' clocks run fast: looks, pauses and settling take hundredths of a second."""
    monkeypatch.setattr(_worker, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(_health, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(_link, "PAUSE_FIRST", 0.01)
    monkeypatch.setattr(_link, "PAUSE_LAST", 0.02)


def refuse(number: int = errno.ENOSPC) -> None:
    """Raise as a mirror does that does not take a line."""
    raise OSError(number, os.strerror(number))


class Once:
    """Raises what it was given, one each call, then nothing."""

    def __init__(self, *problems: BaseException) -> None:
        self._problems = list(problems)

    def __call__(self, *_: object) -> None:
        if self._problems:
            raise self._problems.pop(0)


# --------------------------------------------------------------------- names


def test_public_names() -> None:
    """The mirrors' public names are pinned, and each says what it is."""
    assert mirrors.__all__ == ["Journald", "LinuxAudit", "Logging", "Mirror", "OpenTelemetry", "Syslog"]
    for name in mirrors.__all__:
        assert (getattr(mirrors, name).__doc__ or "").strip()


@pytest.mark.parametrize("name", ["Journald", "LinuxAudit", "Logging", "OpenTelemetry", "Syslog"])
def test_promise_is_told(name: str) -> None:
    """Every mirror says what accepted means for it, and what is never known."""
    text = " ".join((getattr(mirrors, name).__doc__ or "").split())
    assert "Accepted" in text
    assert "Never known: " in text


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Scripted(name="a b"), "name must be .*'a b'"),
        (lambda: Scripted(name=""), "name must be"),
        (lambda: Scripted(events=["spawn intent"]), "events .*'spawn intent'"),
        (lambda: Scripted(events="checkpoint"), "events must be a sequence, not 'checkpoint'"),
        (lambda: Running(Scripted(), Scripted()), "more than one mirror has the name scripted"),
        (lambda: Running("journald"), "instances of Mirror, not 'journald'"),
        (lambda: Running(idle_seconds=0), "idle_seconds must be above 0"),
    ],
)
def test_bad_value_is_shown(make: object, problem: str) -> None:
    """A wrong argument is an error that shows it."""
    with pytest.raises((TypeError, ValueError), match=problem):
        make()  # type: ignore[operator]


# ------------------------------------------------------------------- counting


def test_lines_arrive_in_order() -> None:
    """A mirror gets every line, unchanged and in order, and they count as accepted."""
    mirror = Scripted()
    lines = [line(n, size=300) for n in range(500)]
    with Running(mirror) as running:
        running.put(*lines)
        running.settled(500)

    assert mirror.taken == lines
    assert running.count() == (500, 0, None)


def test_each_mirror_has_its_own_counters() -> None:
    """One mirror that refuses all does not change what another one gets."""
    good, bad = Scripted(name="good"), Scripted(lambda _: refuse(), name="bad")
    with Running(bad, good) as running:
        running.put(*[line(n) for n in range(50)])
        running.settled(50, "good")
        running.settled(50, "bad")

    assert running.count("good") == (50, 0, None)
    assert running.count("bad") == (0, 50, "No space left on device (ENOSPC)")


def test_only_wanted_events_are_sent_and_counted() -> None:
    """Records of other events are neither accepted nor dropped."""
    mirror = Scripted(events={"checkpoint"})
    with Running(mirror) as running:
        running.put(line(0), line(1, "checkpoint", sid=None), line(2), line(3, "checkpoint", sid=None))
        running.settled(2)
        running.runner.stop(5)

    assert mirror.taken == [line(1, "checkpoint", sid=None), line(3, "checkpoint", sid=None)]
    assert running.count() == (2, 0, None)


def test_lines_that_the_ring_lost_are_dropped() -> None:
    """What a slow mirror missed counts as dropped, and the rest still comes."""
    go = threading.Event()
    mirror = Scripted(lambda _: go.wait(30))
    with Running(mirror, room=10) as running:
        running.put(line(0))
        until(lambda: "send" in mirror.calls)
        running.put(*[line(n) for n in range(1, 31)])
        go.set()
        running.settled(31)

    assert running.count() == (11, 20, None)
    assert mirror.taken == [line(0), *[line(n) for n in range(21, 31)]]


@pytest.mark.parametrize("problem", [ValueError("bug"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_is_raised_is_counted(problem: BaseException) -> None:
    """A bug in a mirror costs the line, and neither the thread nor the next line."""
    mirror = Scripted(Once(problem))
    with Running(mirror) as running:
        running.put(line(0), line(1))
        running.settled(2)

    assert mirror.taken == [line(1)]
    accepted, dropped, down = running.count()
    assert (accepted, dropped) == (1, 1)
    assert type(problem).__name__ in str(down)


def test_reason_is_short() -> None:
    """However long the text of an exception is, what a record tells of it is not."""
    with Running(Scripted(Once(ValueError("x" * 100_000)))) as running:
        running.put(line(0))
        running.settled(1)
        assert len(str(running.count()[2])) == 200


def test_feed_that_raises_is_told() -> None:
    """If the thread itself must end, the mirror is down and says so, and stopping raises nothing."""

    class Broken(mirroring.Ring):
        def take(self, timeout: float) -> tuple[list[bytes], int]:
            raise RuntimeError("no ring")

    told: list[tuple[str, object]] = []
    runner = Runner(
        [Scripted()], Broken, lambda event, fields: told.append((event, fields["why"])), on_idle=lambda: None
    )
    runner.start()
    until(lambda: told)

    assert runner.stop(60) == {"scripted": 0}
    assert told == [("mirror.down", "its thread has ended: RuntimeError: no ring")]


# ------------------------------------------------------------------ up and down


@pytest.mark.usefixtures("quick")
def test_down_and_up_are_told_once_each() -> None:
    """Many refused lines make one mirror.down, many accepted ones one mirror.up, with the counters."""
    broken = threading.Event()
    broken.set()
    mirror = Scripted(lambda _: refuse() if broken.is_set() else None)
    with Running(mirror) as running:
        running.put(*[line(n) for n in range(20)])
        running.settled(20)
        broken.clear()
        until(lambda: running.put(line(99)) or running.count()[2] is None)  # type: ignore[func-returns-value]

    down, up = running.told
    why = "No space left on device (ENOSPC)"
    assert down == ("mirror.down", {"mirror": "scripted", "why": why, "accepted": 0, "dropped": 1})
    assert up[0] == "mirror.up"
    assert up[1] == {"mirror": "scripted", "why": why, "accepted": up[1]["accepted"], "dropped": 20}


def test_record_of_being_down_makes_no_other() -> None:
    """A mirror.down that goes to the mirrors as well, and that none can take, is the last one."""
    running: list[Running] = []

    def tell(event: str, fields: object) -> None:
        told.append(event)
        running[0].put(line(len(told), event, sid=None))

    told: list[str] = []
    first, second = Scripted(lambda _: refuse(), name="first"), Scripted(lambda _: refuse(), name="second")
    running.append(Running(first, second, tell=tell))
    with running[0]:
        running[0].put(line(0))
        running[0].settled(3, "first")
        running[0].settled(3, "second")
        assert told == ["mirror.down", "mirror.down"]
        assert running[0].count("first")[1] == 3


@pytest.mark.usefixtures("quick")
def test_flapping_is_bounded_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that fails every other line stays down: a record each would be a flood."""
    monkeypatch.setattr(_health, "SETTLE_SECONDS", 30)
    state = iter(range(10**6))
    mirror = Scripted(lambda _: refuse() if next(state) % 2 else None)
    with Running(mirror) as running:
        running.put(*[line(n) for n in range(1000)])
        running.settled(1000)

    assert running.count()[:2] == (500, 500)
    assert [event for event, _ in running.told] == ["mirror.down"]


@pytest.mark.usefixtures("quick")
def test_check_says_down_and_up_without_a_line() -> None:
    """What a mirror says of itself is told although nothing is sent."""
    why: list[str | None] = ["audit is disabled"]
    with Running(Scripted(check=lambda: why[0])) as running:
        until(lambda: running.told)
        why[0] = None
        until(lambda: len(running.told) == 2)

    assert [(event, fields["why"]) for event, fields in running.told] == [
        ("mirror.down", "audit is disabled"),
        ("mirror.up", "audit is disabled"),
    ]


@pytest.mark.usefixtures("quick")
def test_refused_line_is_not_healed_by_silence() -> None:
    """After a refused line a mirror is down until it has accepted one, however often it is looked at."""
    looks: list[int] = []
    mirror = Scripted(Once(BlockingIOError(errno.EAGAIN, "full")), check=lambda: looks.append(1))  # type: ignore[func-returns-value]
    with Running(mirror) as running:
        running.put(line(0))
        running.settled(1)
        looked = len(looks)
        until(lambda: len(looks) > looked + 10)
        assert running.count()[2] == "full (EAGAIN)"


def test_tell_that_raises_is_no_matter() -> None:
    """A ledger that cannot write the record does not cost the mirror its thread."""

    def tell(event: str, fields: object) -> None:
        raise OSError(errno.EIO, "no ledger")

    mirror = Scripted(Once(OSError(errno.EIO, "once")))
    with Running(mirror, tell=tell) as running:
        running.put(line(0), line(1))
        running.settled(2)
        assert running.count()[:2] == (1, 1)


# ------------------------------------------------------------- open and reopen


def test_first_open_is_in_the_callers_thread() -> None:
    """When start returns, a mirror has had its try: the caller may drop its privileges now."""
    threads: list[int] = []
    with Running(Scripted(open=lambda: threads.append(threading.get_ident()))):
        assert threads == [threading.get_ident()]


@pytest.mark.usefixtures("quick")
def test_open_that_fails_is_tried_again() -> None:
    """A mirror that cannot be opened is down from the start, and up when it can."""
    mirror = Scripted(open=Once(FileNotFoundError(errno.ENOENT, "no socket"), FileNotFoundError(errno.ENOENT, "still")))
    with Running(mirror) as running:
        assert running.count()[2] == "no socket (ENOENT)"
        until(lambda: len(running.told) == 2)
        running.put(line(0))
        running.settled(1)

    assert [event for event, _ in running.told] == ["mirror.down", "mirror.up"]
    assert mirror.taken == [line(0)]


def test_open_failure_is_not_told_by_the_caller() -> None:
    """mirror.down is written by the mirror's own thread: whoever opens a ledger may hold its lock."""
    lock = threading.Lock()
    told: list[str] = []

    def tell(event: str, fields: object) -> None:
        with lock:
            told.append(event)

    with lock:
        running = Running(Scripted(open=refuse), tell=tell)
    with running:
        until(lambda: told)


def test_broken_connection_is_replaced_at_once() -> None:
    """The restart of a receiver costs no line, and no record tells of it."""
    mirror = Scripted(Once(ConnectionResetError(errno.ECONNRESET, "gone")))
    with Running(mirror) as running:
        running.put(line(0), line(1))
        running.settled(2)

    assert mirror.calls == ["open", "send", "close", "open", "send", "send", "close"]
    assert mirror.taken == [line(0), line(1)]
    assert running.count() == (2, 0, None)
    assert running.told == []


def test_receiver_that_is_gone_is_not_tried_with_each_line() -> None:
    """While the pause lasts, lines are dropped without a try."""
    mirror = Scripted(lambda _: refuse(errno.ECONNREFUSED))
    with Running(mirror) as running:
        running.put(*[line(n) for n in range(1000)])
        running.settled(1000)

    assert running.count()[:2] == (0, 1000)
    # Two for the first line, then one after each pause of 0.1, 0.2, … seconds.
    assert 2 <= mirror.calls.count("send") <= 6


def test_timeout_is_not_repeated_at_once() -> None:
    """A receiver that does not read takes no second connection right away."""
    mirror = Scripted(Once(TimeoutError(errno.ETIMEDOUT, "slow")))
    with Running(mirror) as running:
        running.put(line(0))
        running.settled(1)
        assert mirror.calls == ["open", "send", "close"]
        assert running.count() == (0, 1, "slow (ETIMEDOUT)")


# ------------------------------------------------------------------------- end


def test_stop_hands_over_what_is_there() -> None:
    """Lines that are in the ring when it ends are sent."""
    mirror = Scripted()
    running = Running(mirror)
    running.put(*[line(n) for n in range(300)])

    assert running.runner.stop(60) == {"scripted": 0}
    assert len(mirror.taken) == 300
    assert mirror.calls[-1] == "close"


def test_stop_leaves_a_mirror_that_hangs() -> None:
    """Stop returns in time, says how many lines were left, and they count as dropped."""
    go = threading.Event()
    mirror = Scripted(lambda _: go.wait(150), events={"spawn.intent"})
    running = Running(mirror)
    running.put(line(0), line(1))
    until(lambda: "send" in mirror.calls)
    running.put(line(2), line(3, "checkpoint", sid=None))
    start = time.monotonic()

    assert running.runner.stop(0.2) == {"scripted": 3}
    assert time.monotonic() - start < 30
    assert running.count() == (0, 3, None)
    go.set()
    until(lambda: mirror.calls[-1] == "close")
    assert running.count() == (0, 3, None)


def test_stop_ends_in_time_with_a_slow_mirror() -> None:
    """A mirror that takes a while for each line gets as many as fit, and the rest is counted."""
    mirror = Scripted(lambda _: threading.Event().wait(0.02))
    running = Running(mirror)
    running.put(*[line(n) for n in range(1000)])
    until(lambda: mirror.taken)
    left = running.runner.stop(0.3)["scripted"]

    assert 0 < left < 1000
    assert running.count() == (1000 - left, left, None)


def test_nothing_is_told_at_the_end() -> None:
    """A mirror that fails while the rest is handed over writes no record any more."""

    def send(_: bytes) -> None:
        running.runner._ended.wait(60)
        refuse()

    mirror = Scripted(send)
    running = Running(mirror)
    running.put(line(0))
    until(lambda: "send" in mirror.calls)
    running.runner.stop(60)

    assert running.told == []
    assert running.count()[1] == 1


def test_stop_without_start_and_twice() -> None:
    """A runner that never started can be stopped, and stays stopped."""
    mirror = Scripted()
    running = Running(mirror, start=False)
    assert running.runner.stop(1) == {}
    assert running.runner.stop(1) == {}
    running.runner.start()

    assert mirror.calls == []
    assert running.count() == (0, 0, None)


def test_stop_inside_of_start() -> None:
    """A signal handler that stops what its own thread is just starting is not held for good."""
    handled: list[dict[str, int]] = []
    mirror = Scripted(open=lambda: handled.append(running.runner.stop(0.1)))
    running = Running(mirror, start=False)
    running.runner.start()

    assert handled == [{"scripted": 0}]
    running.runner.stop(5)


# --------------------------------------------------------------------- threads


def blocked(tid: int) -> set[int]:
    """Return the signals that a thread blocks."""
    for row in Path(f"/proc/self/task/{tid}/status").read_text().splitlines():
        if row.startswith("SigBlk:"):
            mask = int(row.split()[1], 16)
            return {number for number in range(1, 65) if mask >> (number - 1) & 1}
    raise AssertionError(tid)


def test_signals_are_blocked_in_the_threads_only() -> None:
    """A signal for the application is never handled in a mirror's thread; faults of its own are."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with Running(Scripted()):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        own = [thread for thread in threading.enumerate() if thread.name.startswith("safespawn-")]
        assert sorted(thread.name for thread in own) == ["safespawn-heartbeat", "safespawn-mirror-scripted"]
        for thread in own:
            assert thread.daemon
            mask = blocked(thread.native_id or 0)
            assert {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM, signal.SIGPIPE} <= mask
            assert mask.isdisjoint({signal.SIGSEGV, signal.SIGBUS, signal.SIGSYS})


def test_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a limit of tasks nothing is raised: the mirror is down, and works as soon as there is a thread."""

    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    mirror = Scripted()
    with Running(mirror, start=False) as running:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            running.runner.start()
        assert running.count()[2] == "no thread: can't start new thread"
        running.put(line(0))
        running.runner.start()
        running.settled(1)

        assert mirror.calls[0] == "open"
        assert mirror.taken == [line(0)]
        assert running.told[0][0] == "mirror.down"


def test_mirror_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread tells of a mirror that does not come back."""
    from safespawn.audit.mirrors import _runner

    monkeypatch.setattr(_runner, "_WATCH_SECONDS", 0.02)
    monkeypatch.setattr(_worker, "HANG_SECONDS", 0.1)
    go = threading.Event()
    with Running(Scripted(lambda _: go.wait(60))) as running:
        running.put(line(0))
        until(lambda: running.told)
        go.set()
        running.settled(1)

    assert running.told[0][0] == "mirror.down"
    assert running.told[0][1]["why"] == "has not come back for 0 seconds"
    assert running.count()[:2] == (1, 0)


def test_heartbeat() -> None:
    """The callback comes again and again without any line, also when it raises, and not after the end."""
    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        raise OSError(errno.EIO, "no ledger")

    with Running(idle_seconds=0.05, on_idle=beat):
        until(lambda: len(beats) >= 3)
    count = len(beats)

    assert all(after - before >= 0.04 for before, after in zip(beats, beats[1:], strict=False))
    assert len(beats) == count


def test_heartbeat_goes_on_while_a_mirror_hangs() -> None:
    """A mirror that holds its thread does not hold the checkpoints."""
    go = threading.Event()
    beats: list[int] = []
    mirror = Scripted(lambda _: go.wait(60))
    with Running(mirror, idle_seconds=0.02, on_idle=lambda: beats.append(1)) as running:
        running.put(line(0))
        until(lambda: "send" in mirror.calls)
        seen = len(beats)
        until(lambda: len(beats) > seen + 2)
        go.set()


def test_spawn_beside_mirrors() -> None:
    """Spawns work while the mirrors' threads run, and are not held by one that hangs."""
    go = threading.Event()
    mirror = Scripted(lambda _: go.wait(60))
    with Running(mirror) as running:
        running.put(line(0))
        until(lambda: "send" in mirror.calls)
        done = run(["/bin/echo", "here"], stdout=PIPE)
        go.set()

    assert done.stdout == b"here\n"


# ------------------------------------------------------------------------ fork

FORK = """
from mirroring import Running, Scripted, line, until
import threading
mirror = Scripted()
running = Running(mirror)
running.put(line(0), line(1))
running.settled(2)
"""


def test_fork_starts_anew() -> None:
    """A forked child has no thread until it starts them; its counters begin at 0, the parent's go on."""
    out = helpers.run_snippet(
        FORK
        + """
os.register_at_fork(after_in_child=running.runner.after_fork)
read, write = os.pipe()
child = os.fork()
if child == 0:
    told = [threading.active_count(), list(running.count())]
    running.runner.start()
    running.put(line(2))
    running.settled(1)
    told += [list(running.count()), len(mirror.taken), running.runner.stop(60)]
    os.write(write, json.dumps(told).encode())
    os._exit(0)
os.waitpid(child, 0)
out["child"] = json.loads(os.read(read, 4096))
running.rings[0].put(line(3))
running.settled(3)
out["parent"] = list(running.count())
running.runner.stop(5)
"""
    )

    assert out == {
        "child": [1, [0, 0, None], [1, 0, None], 3, {"scripted": 0}],
        "parent": [3, 0, None],
    }


def test_raw_fork_is_noticed() -> None:
    """After a fork that Python has not seen, the next start makes threads again."""
    out = helpers.run_snippet(
        FORK
        + """
import ctypes
read, write = os.pipe()
child = ctypes.CDLL(None).fork()
if child == 0:
    running.runner.start()
    running.put(line(2))
    running.settled(1)
    os.write(write, json.dumps(list(running.count())).encode())
    os._exit(0)
os.waitpid(child, 0)
out["child"] = json.loads(os.read(read, 4096))
running.runner.stop(5)
"""
    )

    assert out["child"] == [1, 0, None]


def test_process_ends_beside_a_mirror_that_hangs() -> None:
    """A program can end although a mirror's thread never comes back."""
    out = helpers.run_snippet(
        """
        from mirroring import Running, Scripted, line, until
        import threading
        mirror = Scripted(lambda _: threading.Event().wait())
        running = Running(mirror)
        running.put(line(0))
        until(lambda: "send" in mirror.calls)
        out["left"] = running.runner.stop(0.1)
        """,
    )

    assert out["left"] == {"scripted": 1}
