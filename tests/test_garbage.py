"""Cycles of garbage: the collector ends what C holds before the ``__del__`` of others in the same cycle uses it."""

from __future__ import annotations

import errno
import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import _binding, _checks, _child, _policy, _process, _spawn
from safespawn.audit import _core

ffi = _binding.ffi


class Later:
    """Does something when it is collected: it is made after what it uses, so the collector comes to it later."""

    def __init__(self, do: Callable[[], None]) -> None:
        self.do = do
        self.cycle = self

    def __del__(self) -> None:
        self.do()


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Have nothing collected but by the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def address(raw: Any) -> int:
    """Return where a struct is."""
    return int(ffi.cast("uintptr_t", raw))


def test_a_finished_handle_in_a_cycle_does_not_write_to_the_memory_of_others():
    kept: list[Any] = []

    def take() -> None:
        kept.extend(ffi.new("struct ss_exit *") for _ in range(500))

    def handle(child: Any, argv: Any, report: Any, streams: Any) -> safespawn.Process:
        later = Later(take)
        made = _process.Process(child, argv, report, streams)
        later.handle, made.args = made, (later,)  # type: ignore[attr-defined, assignment]
        return made

    process = _spawn.start_as(_checks.request(["/bin/true"], _policy.options({})), handle)
    assert process.wait() == 0
    room = address(process._child._room)
    before = list(_child._abandoned)
    del process
    gc.collect()
    assert kept
    assert room not in map(address, kept)
    assert _child._abandoned == before
    _child.reap_abandoned()
    assert {(one.pidfd, one.pid) for one in kept} == {(0, 0)}


def apart(do: Callable[[], None]) -> None:
    """Do it in a process of its own, which may die of it, or hang."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(60)
            do()
            code = 0
        except BaseException:  # noqa: BLE001 - of a test
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_ledger_in_a_cycle_is_closed_for_those_who_come_later(tmp_path: Path):
    def do() -> None:
        told: list[Any] = []
        file = _core.File().open(str(tmp_path / "ledger"), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        plain = {"boot": "", "reserve": 0, "limit": 0, "records": 1000, "seconds": 1000.0}
        core = _core.Core(_core.new_setup(chain="a" * 36, mode="require", **plain), file, None)
        assert core.append("chain.open", None, b"", 0) == 0
        teller = _core.Teller(core, b"", "", bytes(32))
        room, result = ffi.new("struct ss_exit *"), ffi.new("struct ss_result *")

        def use(core: _core.Core = core, teller: _core.Teller = teller) -> None:
            told.append(core.append("checkpoint", None, b"", 0))
            told.append(_core.ended(teller.raw, b"a" * 36, room, 0, 0, _core.new_kept()))
            told.append(_core.started(teller.raw, b"a" * 36, result, -1, b"", _core.new_kept()))
            told.append(core.flush())
            core.lose()
            core.close()
            told.append(core.counts().next)

        del core, teller
        later = Later(use)
        del use, later
        gc.collect()
        assert told == [*[-errno.ESHUTDOWN] * 4, 0]

    apart(do)


def test_a_helper_in_a_cycle_is_lost_for_those_who_come_later():
    def do() -> None:
        told: list[Any] = []
        end = _binding.HelperEnd()
        call, slot = ffi.new("struct ss_request *"), _binding.Slot()

        def use(end: _binding.HelperEnd = end) -> None:
            told.append(_binding.lib.ss_ask_by(_core.process_number(), end.raw, 0, call, slot.raw))
            end.close()
            told.append(end.look().lost)

        del end
        later = Later(use)
        del use, later
        gc.collect()
        assert told == [-errno.ESHUTDOWN, errno.ESHUTDOWN]

    apart(do)


#: What has something in C, and the struct that others use.
STRUCTS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "file": (_core.File, lambda one: one.raw),
    "lookup": (_binding.Opened, lambda one: one.place()),
    "arenas": (_binding.Arenas, lambda one: one.of(1)[0]),
    "own arena": (_binding._Local, lambda one: one.arena),
    "change": (lambda: _binding.Changing(_binding.CALL_RAW), lambda one: one._raw),
    "child": (lambda: _child.Child("sid"), lambda one: one._room),
    "helper": (_binding.HelperEnd, lambda one: one.raw),
    "system": (_binding.system_call, lambda one: one[0]),
}


@pytest.mark.parametrize("name", STRUCTS)
def test_whoever_refers_to_a_struct_has_its_memory(name: str):
    make, struct_of = STRUCTS[name]
    raw = struct_of(make())
    # What ffi.gc() returns has no memory of its own: its end frees that of what it was made of.
    assert "owning" in repr(raw)


# In processes of their own, with libc's allocator, which fills what is given back: whoever uses such memory reads
# something else.


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have memory that is given back filled at once: mallopt(3), ld.so(8)."""
    monkeypatch.setenv("PYTHONMALLOC", "malloc")
    monkeypatch.setenv("MALLOC_PERTURB_", "85")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")


filling = pytest.mark.usefixtures("filled")

#: `late(thing)` puts it into a cycle whose finalizer keeps it in `kept`, and has the collector run.
LATE = """
import gc
kept = []

class Late:
    def __init__(self, thing):
        self.thing, self.cycle = thing, self

    def __del__(self):
        kept.append(self.thing)

def late(thing):
    Late(thing)
    del thing
    gc.collect()
"""


@filling
def test_finished_handle_that_a_finalizer_keeps() -> None:
    """It still says how its child ended, and has no descriptor: not that of somebody else."""
    out = helpers.run_snippet(
        LATE
        + """
def finished():
    process = safespawn.spawn(["/bin/sh", "-c", "exit 3"])
    process.wait()
    return process

late(finished())
(process,) = kept
out["it"] = [process.returncode, process.pidfd, process.wait(), process.poll()]
"""
    )
    assert out["it"] == [3, -1, 3, 3]


@filling
def test_finished_handles_that_are_collected_leave_nothing() -> None:
    """Those of a cycle are over, whatever lies where they had their memory."""
    out = helpers.run_snippet(
        """
import gc
from safespawn import _child
gc.disable()
for _ in range(50):
    process = safespawn.spawn(["/bin/true"])
    process.wait()
    cycle = [process]
    cycle.append(cycle)
    del process, cycle
before = len(os.listdir("/proc/self/fd"))
gc.collect()
out["left"] = [len(_child._abandoned), len(os.listdir("/proc/self/fd")) - before]
"""
    )
    assert out["left"] == [0, 0]


LEDGERS = """
import warnings
from safespawn import audit
from safespawn.audit._ledger import Ledger
warnings.simplefilter("ignore", ResourceWarning)
audit.open(where + "/other", "require").close()  # what is opened once for all
before = len(os.listdir("/proc/self/fd"))

def made(closes):
    ledger = Ledger(where + "/ledger", "require")
    ledger.append("guard.config", None, dict)
    if closes:
        ledger.close()
    return ledger
"""


@filling
def test_ledger_that_is_forgotten_in_a_cycle(tmp_path: Path) -> None:
    """It writes its end all the same, and still tells what it has lost."""
    out = helpers.run_snippet(
        LATE
        + LEDGERS
        + """
late(made(closes=False))
out["it"] = [kept[0].closed, kept[0].lost]
out["last"] = json.loads(open(where + "/ledger").readlines()[-1])["ev"]
out["verified"] = audit.verify(where + "/ledger").ok
out["descriptors"] = len(os.listdir("/proc/self/fd")) - before
""",
        where=str(tmp_path),
    )
    assert out == {"it": [True, 0], "last": "chain.close", "verified": True, "descriptors": 0}


@filling
def test_change_in_a_generator_that_is_collected() -> None:
    """A bracket that a generator in a cycle has open is ended once: the lock is free, and counts nothing twice."""
    out = helpers.run_snippet(
        helpers.LOCK_TOOLS
        + """
import gc

def changes():
    with guards.credential_change():
        yield

class Cycle:
    pass

cycle = Cycle()
cycle.generator, cycle.it = changes(), cycle
next(cycle.generator)
out["held"] = lock()
del cycle
gc.collect()
out["then"] = lock()
out["spawn"] = safespawn.run(["/bin/true"]).report.strategy
"""
    )
    assert out == {"held": [0, 1, False], "then": [0, 0, False], "spawn": "vfork"}
