"""The credential lock as Python meets it: words, reasons, records, and functions of `os`."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

import helpers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it changes credentials")

#: Keeps a second thread alive.
COMPANY = """
import threading
from safespawn import guards
hold = threading.Event()
threading.Thread(target=hold.wait, daemon=True).start()
"""

#: Armed for others too, before there are threads: beside some, nobody may start anything for a tenth of a second.
ARMED = "from safespawn import guards\nguards.arm(guard_foreign=True)\n" + COMPANY


def test_foreign_posix_spawn_waits_without_the_gil() -> None:
    """os.posix_spawn beside a change in Python waits for it, and all other Python threads go on."""
    out = helpers.run_snippet(
        ARMED
        + """
from safespawn import _lock
_lock.FOREIGN_WAIT = 30.0  # not to be over before we are, on whatever machine
entered, leave = threading.Event(), threading.Event()

def change():
    with guards.credential_change():
        entered.set()
        leave.wait()

changer = threading.Thread(target=change)
changer.start()
entered.wait()
done = []

def start():
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    done.append(os.waitpid(pid, 0)[1])

starter = threading.Thread(target=start)
starter.start()
for _ in range(2000):  # if the starter held the GIL we would not come to the end before it gives up
    time.sleep(0)
out["too early"] = list(done)
leave.set()
starter.join()
changer.join()
out["done"] = done
"""
    )
    assert out == {"too early": [], "done": [0]}


def test_foreign_posix_spawn_gives_up() -> None:
    """It is refused after its second, with EAGAIN, when the change does not end; nothing was started."""
    out = helpers.run_snippet(
        ARMED
        + """
from safespawn import _lock
_lock.FOREIGN_WAIT = 0.05
with guards.credential_change():
    try:
        os.posix_spawn("/bin/true", ["true"], os.environ)
    except BlockingIOError as problem:
        out["errno"] = problem.errno
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    out["child"] = False
"""
    )
    assert out == {"errno": errno.EAGAIN, "child": False}


LESSENING = """
#define _GNU_SOURCE
#include <sys/syscall.h>

/* By an instruction of its own: no wrapper sees it. */
static void __attribute__((constructor))
lessen(void)
{
#if defined(__x86_64__)
	long answer;
	register long id __asm__("rdx") = 65534;

	__asm__ volatile("syscall" : "=a"(answer) : "a"(SYS_setresuid), "D"(65534), "S"(65534), "r"(id)
			 : "rcx", "r11", "memory");
#else
	register long number __asm__("x8") = SYS_setresuid;
	register long a __asm__("x0") = 65534;
	register long b __asm__("x1") = 65534;
	register long c __asm__("x2") = 65534;

	__asm__ volatile("svc 0" : "+r"(a) : "r"(number), "r"(b), "r"(c) : "memory");
#endif
}
"""


@pytest.mark.threat("T-25")
def test_threads_are_compared_when_libraries_come(tmp_path: Path) -> None:
    """A library that lessens its thread in its constructor, unseen, is noticed because it was loaded."""
    source, library = tmp_path / "lessen.c", tmp_path / "lessen.so"
    source.write_text(LESSENING, encoding="ascii")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    out = helpers.run_snippet(
        COMPANY
        + """
import ctypes
out["before"] = safespawn.run(["/bin/true"]).report.proof
ready, tids = threading.Event(), []

def load():
    tids.append(threading.get_native_id())
    ctypes.CDLL(library)
    ready.set()
    hold.wait()

threading.Thread(target=load, daemon=True).start()
ready.wait()
report = safespawn.run(["/bin/true"]).report
out["after"] = [report.strategy, f"thread {tids[0]} has other credentials than the rest" in report.reasons[0]]
""",
        library=str(library),
    )
    assert out == {"before": "locked", "after": ["fork", True]}


def test_logging_that_changes_users_does_not_recurse(tmp_path: Path) -> None:
    """A handler that switches the user to write records down gets each change but its own."""
    out = helpers.run_snippet(
        """
import logging
told = []

class AsSomebody(logging.Handler):
    def emit(self, record):
        os.seteuid(65534)
        os.seteuid(0)
        text = json.loads(record.getMessage())
        told.append([text["ev"], text.get("change", {}).get("by_recorder", 0)])

logger = logging.getLogger("safespawn.audit")
logger.addHandler(AsSomebody())
logger.setLevel(logging.INFO)
logger.propagate = False
os.setegid(0)
out["first"] = list(told)
safespawn.run(["/bin/true"])
os.setegid(0)
out["later"] = told[1:]
"""
    )
    assert out["first"] == [["cred.change", 0]]
    events = [event for event, _ in out["later"]]
    assert [event for event in events if event != "cred.change"] == ["spawn.intent", "spawn.started", "spawn.exit"]
    assert sum(count for _, count in out["later"]) > 0
    assert len(events) < 20


def test_record_of_a_bracket_counts_its_wait_once(in_hooks, tmp_path: Path) -> None:
    """A change that is bracketed waited once and cost one child, and its record says so."""
    ledger = tmp_path / "ledger"
    in_hooks(
        helpers.PARKED
        + """
from safespawn import audit
guards.arm(wait=0.05)
with audit.open(ledger):
    thread = parked_spawn(["/bin/true"])
    start = time.monotonic_ns()
    with guards.credential_change():
        longest = time.monotonic_ns() - start
    thread.join()
out["longest"] = longest
""",
        ledger=str(ledger),
    )
    (change,) = [r["change"] for r in helpers.records(ledger) if r["ev"] == "cred.change"]
    assert change["killed"] == 1
    assert (change["call"], change["through"], change["errno"]) == ("credential_change", "bracket", 0)


def test_record_of_a_seal_that_failed(tmp_path: Path) -> None:
    """A seal without the right to it leaves a record with the errno that it raised."""
    ledger = tmp_path / "ledger"
    helpers.make_readable(tmp_path)
    out = helpers.run_snippet(
        """
from safespawn import audit, guards
with audit.open(ledger):
    os.setresuid(65534, 65534, 65534)
    try:
        guards.seal()
    except OSError as problem:
        out["errno"] = problem.errno
""",
        ledger=str(ledger),
    )
    drop, seal = [r["change"] for r in helpers.records(ledger) if r["ev"] == "cred.change"]
    assert out == {"errno": errno.EACCES}
    assert (drop["call"], drop["errno"], drop["after"]["uids"]) == ("setresuid", 0, [65534] * 4)
    assert (seal["call"], seal["errno"], seal["name"]) == ("seal", errno.EACCES, "EACCES")


def test_records_tell_groups_and_paths(tmp_path: Path) -> None:
    """What ids and capabilities do not show is in the record too: groups, and where the root went."""
    ledger = tmp_path / "ledger"
    helpers.run_snippet(
        """
from safespawn import audit
os.setgroups([])
with audit.open(ledger):
    os.setgroups([7, 4])
    os.setgroups(range(1, 41))
    os.chroot("/")
""",
        ledger=str(ledger),
    )
    groups, many, root = [r["change"] for r in helpers.records(ledger) if r["ev"] == "cred.change"]
    assert (groups["before"]["groups"], sorted(groups["after"]["groups"])) == ([], [4, 7])
    assert many["after"]["groups"] == {"count": 40}
    assert (root["call"], root["args"]) == ("chroot", ["/"])


def test_refusal_under_the_seal_names_who_refused() -> None:
    """Shared memory for a child with another user is refused by drop-apart, sealed or not."""
    out = helpers.run_snippet(
        """
from safespawn import guards
guards.seal()
try:
    safespawn.run(["/bin/true"], user=65534, group=65534, strategy="vfork")
except safespawn.UnsafeSpawn as refusal:
    out["guard"] = refusal.guard
"""
    )
    assert out == {"guard": "drop-apart"}


def test_reason_is_that_of_what_is_required() -> None:
    """Who requires the seal is told that there is none, not that another proof is missing."""
    out = helpers.run_snippet(
        COMPANY
        + """
guards.require("sealed")
try:
    safespawn.run(["/bin/true"], on_unproven="refuse")
except safespawn.UnsafeSpawn as refusal:
    out["why"] = str(refusal)
""",
        armed=False,
    )
    assert "not sealed" in out["why"] and "'sealed' is required" in out["why"]
    assert "arm" not in out["why"]


def test_problems_say_what_to_do() -> None:
    """Whatever keeps the proof from holding is a problem in the status, with an advice."""
    out = helpers.run_snippet(
        COMPANY
        + """
import prctl
out["none"] = guards.status()["lock"]["problems"]
prctl.securebits.noroot = True  # on this thread alone, and nothing shows it
status = guards.status()
out["proof"] = status["proofs"]["locked"]
out["problems"] = status["lock"]["problems"]
"""
    )
    assert out["none"] == []
    (problem,) = out["problems"]
    assert problem.startswith(out["proof"]) and "before threads start" in problem


@pytest.mark.parametrize("value", ["no", None, 2.5, 1])
def test_guard_foreign_is_a_bool(value: object) -> None:
    """Anything else is refused, by its name and value."""
    from safespawn import guards

    with pytest.raises(TypeError, match=f"guard_foreign must be a bool, not {value!r}"):
        guards.arm(guard_foreign=value)  # type: ignore[arg-type]


def test_functions_that_others_have_replaced_stay() -> None:
    """A mock in the place of os.setuid is not thrown out by arming."""
    out = helpers.run_snippet(
        """
from unittest import mock
from safespawn import guards
with mock.patch("os.setuid") as replaced:
    guards.arm()
    os.setuid(0)
    out["called"] = replaced.called
out["guarded before"] = hasattr(os.setuid, "is_guarded")
guards.arm()
out["guarded"] = hasattr(os.setuid, "is_guarded")
""",
        armed=False,
    )
    assert out == {"called": True, "guarded before": False, "guarded": True}


def test_arming_after_a_drop_works() -> None:
    """A process that has dropped its privileges can still be armed, and shares memory among threads."""
    out = helpers.run_snippet(
        """
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
import threading
from safespawn import guards
status = guards.arm()
out["state"] = [status["state"], status["problems"]]
hold = threading.Event()
threading.Thread(target=hold.wait, daemon=True).start()
out["proof"] = safespawn.run(["/bin/true"]).report.proof
out["again"] = guards.arm(wait=1.0)["state"]
""",
        armed=False,
    )
    assert out == {"state": ["armed", []], "proof": "locked", "again": "armed"}
