"""Full disks, limits of file sizes, and going on all the same: on ext4 in a file and in memory."""

from __future__ import annotations

import errno
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

import helpers
import ledger_check

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts")

KINDS = pytest.mark.parametrize("kind", ["ext4", "tmpfs"])

#: A small disk of our own in a mount namespace of our own, and how to fill it.
DISK = """
import ctypes, errno, subprocess
from safespawn import audit, AuditError
from safespawn.audit import keys as keys_of

def namespace():
    assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)

def mount():
    how = ["-o", "loop", image] if kind == "ext4" else ["-t", "tmpfs", "-o", f"size={mib}m,mode=700", "none"]
    subprocess.run(["mount", *how, where], check=True)
    os.chmod(where, 0o700)

def fill():
    '''Until there is not a byte left; what ext4 gives back at its next commit is taken too.'''
    taken = 1
    with open(where + "/filler", "ab", buffering=0) as filler:
        while taken:
            taken = 0
            for size in (1 << 16, 1 << 10, 1):
                try:
                    while True:
                        taken += filler.write(bytes(size))
                except OSError as problem:
                    assert problem.errno == errno.ENOSPC, problem
            os.fsync(filler.fileno())

def start():
    '''A program that runs until its standard input ends; or why it does not.'''
    try:
        return safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE, stdout=safespawn.DEVNULL)
    except AuditError as problem:
        return problem.errno

def end(process):
    process.stdin.close()
    return process.wait()

def keep():
    '''The ledger outlives the disk.'''
    with open(copy, "wb") as file:
        file.write(open(ledger, "rb").read())

namespace()
mount()
ledger = where + "/ledger"
keys = os.path.dirname(where) + "/keys" if keyed else None
out["key"] = keys_of.initialise(keys) if keys else None
"""


def on_disk(
    text: str, kind: str, tmp_path: Path, *, keyed: bool = False, mib: int = 8, **values: Any
) -> tuple[dict[str, Any], Any]:
    """Run a snippet on a small disk; return what it says, and the ledger that it has kept."""
    where, copy, image = tmp_path / "disk", tmp_path / "copy", tmp_path / "image"
    where.mkdir()
    if kind == "ext4":
        with open(image, "wb") as file:
            file.truncate(mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    names = {"kind": kind, "where": where, "copy": copy, "image": image}
    texts = {name: str(value) for name, value in names.items()}
    out = helpers.run_snippet(DISK + textwrap.dedent(text), keyed=keyed, mib=mib, **texts, **values)
    return out, ledger_check.check(copy) if copy.exists() and not keyed else None


@KINDS
@pytest.mark.threat("T-34")
def test_what_was_accepted_is_told_to_its_end(kind: str, tmp_path: Path) -> None:
    """On a full disk programs start until nothing can be put by; how each of them ended is recorded."""
    out, ledger = on_disk(
        """
        opened = audit.open(ledger)
        early = [start() for _ in range(3)]
        fill()
        later = []
        while not isinstance(now := start(), int):
            later.append(now)
        out["errno"] = now
        # What was never to have room of its own must not take theirs.
        for _ in range(2000):
            opened.append("spawn.denied", None, lambda: dict(pad="x" * 1500))
        out["codes"] = [end(process) for process in [*early, *later]]
        out["lost"] = opened.lost
        os.remove(where + "/filler")
        out["again"] = end(start())
        opened.close()
        out["started"] = len(early + later)
        keep()
        """,
        kind,
        tmp_path,
    )
    degraded = ledger.of("audit.degraded")

    assert out["errno"] == errno.ENOSPC
    assert out["codes"] == [0] * out["started"]
    assert out["again"] == 0
    assert out["started"] > 20
    for event in ("spawn.intent", "spawn.started", "spawn.exit"):
        assert len(ledger.of(event)) == out["started"] + 1
    # One intent was refused; the rest is what of the denials did not fit.
    assert sum(told["lost"] for told in degraded) == 1 + 2000 - len(ledger.of("spawn.denied"))


@KINDS
@pytest.mark.parametrize(("reserve", "least", "most"), [(1 << 20, 400, 1100), (0, 0, 8)])
def test_how_much_is_put_by(kind: str, tmp_path: Path, reserve: int, least: int, most: int) -> None:
    """With a reserve hundreds of records fit on a disk that is full; without one, what the last page has left."""
    out, ledger = on_disk(
        """
        sys.modules["safespawn.audit._ledger"].RESERVE = reserve
        from safespawn.audit import _core
        opened, mine, ending = audit.open(ledger), _core.new_kept(), _core.new_kept()
        opened.append("guard.config", None, dict, gate=True, kept=mine)
        ending.settling = mine.booked
        fill()
        out["fit"] = 0
        while opened.append("spawn.exit", None, lambda: dict(pad="x" * 1000), settles=1, kept=ending):
            out["fit"] += 1
        out["config"] = json.loads(open(ledger).readline())["config"]["reserve"]
        """,
        kind,
        tmp_path,
        reserve=reserve,
    )

    assert least <= out["fit"] <= most
    assert out["config"] == reserve


@KINDS
def test_reserve_grows_with_those_that_run(kind: str, tmp_path: Path) -> None:
    """A hundred programs run when the disk becomes full, more than 1 MiB is for: the end of each is recorded."""
    out, ledger = on_disk(
        """
        opened = audit.open(ledger)
        running = [start() for _ in range(100)]
        counts = opened._core.counts()
        out["booked"], out["reserved"] = counts.booked, counts.reserved
        fill()
        out["codes"] = [end(process) for process in running]
        out["lost"] = opened.lost
        out["left"] = opened._core.counts().booked
        keep()
        """,
        kind,
        tmp_path,
    )

    assert out["codes"] == [0] * 100
    assert (out["lost"], out["left"]) == (0, 0)
    assert out["reserved"] >= out["booked"] == 100 * 8000  # each has told that it started
    assert len(ledger.of("spawn.exit")) == 100


@KINDS
@pytest.mark.parametrize("by", ["us", "others"])
@pytest.mark.threat("T-34")
def test_no_segment_is_left_for_one_without_room(kind: str, by: str, tmp_path: Path) -> None:
    """The disk is full when the next segment is due: what was put by stays with this one, so it is written on."""
    out, _ = on_disk(
        """
        opened = audit.open(ledger)
        running = [start() for _ in range(3)]
        fill()
        if by == "us":
            out["rotated"] = [opened.rotate(), opened.rotate()]
        else:
            os.rename(ledger, ledger + ".1")
            opened.checkpoint()
        out["codes"] = [end(process) for process in running]
        out["lost"] = opened.lost
        os.remove(where + "/filler")
        opened.checkpoint()
        out["codes"].append(end(start()))
        opened.close()
        out["segments"] = [[json.loads(line)["ev"] for line in open(ledger + end)] for end in (".1", "")]
        out["findings"] = [str(one) for one in audit.verify(ledger, without_key=True).findings]
        """,
        kind,
        tmp_path,
        by=by,
    )
    old, new = out["segments"]

    assert out["codes"] == [0] * 4
    assert (out["lost"], out["findings"]) == (0, [])
    assert old[-3:] == ["spawn.exit"] * 3
    assert old.count("audit.degraded") == 1
    assert new == ["checkpoint", "spawn.intent", "spawn.started", "spawn.exit", "chain.close"]
    assert out.get("rotated", [False, False]) == [False, False]


@KINDS
def test_full_disk_with_keys(kind: str, tmp_path: Path) -> None:
    """The slots of the state file have their room too: a forked child goes on on a full disk."""
    out, _ = on_disk(
        """
        audit.open(ledger, keys=keys)
        process = start()
        fill()
        out["codes"] = [end(process), end(start())]
        pid = os.fork()
        if not pid:
            os._exit(end(start()) if not isinstance(start(), int) else 77)
        out["child"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        """,
        kind,
        tmp_path,
        keyed=True,
    )

    assert out["codes"] == [0, 0]
    assert out["child"] == 0


@KINDS
@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keys"])
def test_limit_of_file_size_ends_no_process(kind: str, tmp_path: Path, keyed: bool) -> None:
    """RLIMIT_FSIZE with SIGXFSZ at its default, which ends a process: every record survives it, and so do we."""
    out, _ = on_disk(
        """
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        none = resource.RLIM_INFINITY
        codes = set()
        for room in (0, 1, 50, 100, 127, 128, 200, 1000, 5000, 20_000, 70_000, 300_000):
            opened = audit.open(ledger, keys=keys)
            limit = os.path.getsize(ledger) + room if room != 50 else room
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, none))
            for _ in range(4):
                process = start()
                codes.add(process if isinstance(process, int) else end(process))
            opened.append("guard.config", None, lambda: dict(pad="x" * 6000))
            opened.checkpoint()
            pid = os.fork()
            if not pid:
                start()
                os._exit(0)
            codes.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            opened.rotate()
            opened.close()
            for size in (0, 100, limit):  # an opening, with all its files
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, none))
                try:
                    audit.open(ledger, keys=keys).close()
                except AuditError as problem:
                    codes.add(problem.errno)
            resource.setrlimit(resource.RLIMIT_FSIZE, (none, none))
        out["codes"] = sorted(codes)
        with audit.open(ledger, keys=keys):
            out["at last"] = end(start())
        out["pending"] = signal.SIGXFSZ in signal.sigpending()
        """,
        kind,
        tmp_path,
        keyed=keyed,
        mib=40,  # each segment keeps what was put by for it
    )

    assert {0, errno.EFBIG} <= set(out["codes"]) <= {0, errno.EFBIG, errno.ENOSPC}  # the last of a short write
    assert out["at last"] == 0
    assert out["pending"] is False


# ------------------------------------------------------------------ whose room it is


def test_room_is_given_back_where_it_was_put_by(tmp_path: Path) -> None:
    """A program that began under another ledger ends: what its record has put by there is not taken from one here."""
    out = helpers.run_snippet(
        """
        from safespawn import audit
        cat = dict(argv=["/bin/cat"], stdin=safespawn.PIPE, stdout=safespawn.DEVNULL)
        def start():
            return safespawn.spawn(cat["argv"], stdin=cat["stdin"], stdout=cat["stdout"])
        def end(process):
            process.stdin.close()
            return process.wait()
        audit.open(where + "/first")
        early = start()
        opened = audit.open(where + "/second")
        late = start()
        booked = lambda: opened._core.counts().booked
        out["booked"] = [booked(), end(early), booked(), end(late), booked()]
        """,
        where=str(tmp_path),
    )
    assert out["booked"] == [8000, 0, 8000, 0, 0]


def test_room_of_a_record_that_no_remedy_helps(tmp_path: Path) -> None:
    """The ledger is deleted, and there can be no other: the exit is lost, and its room is given back."""
    out = helpers.run_snippet(
        """
        from safespawn import audit
        opened = audit.open(where + "/ledger")
        process = safespawn.spawn(["/bin/cat"], stdin=safespawn.PIPE, stdout=safespawn.DEVNULL)
        os.remove(where + "/ledger")
        os.mkdir(where + "/ledger")
        process.stdin.close()
        before = opened._core.counts()
        code, after = process.wait(), opened._core.counts()
        out.update(code=code, booked=[before.booked, after.booked], lost=after.lost - before.lost)
        """,
        where=str(tmp_path),
    )
    assert out == {"code": 0, "booked": [8000, 0], "lost": 1}


def test_opening_without_room_takes_nothing(tmp_path: Path) -> None:
    """No room for its first record: no slot, no line of the registry, no descriptor, whoever keeps the exception."""
    out = helpers.run_snippet(
        """
        import resource
        from safespawn import audit, AuditError
        ledger, keys = where + "/ledger", where + "/keys"
        audit.keys.initialise(keys)
        audit.open(ledger, keys=keys).close()
        def taken():
            return [os.stat(where + name).st_size for name in ("/ledger", "/ledger.state", "/keys/registry.jsonl")]
        before, kept, fds = taken(), [], len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(before) + 4000, resource.RLIM_INFINITY))
        for _ in range(5):
            try:
                audit.open(ledger, keys=keys)
            except AuditError as problem:
                kept.append(problem)
        out["errors"] = [problem.errno for problem in kept]
        out["taken"] = [now - then for now, then in zip(taken(), before)]
        out["fds"] = len(os.listdir("/proc/self/fd")) - fds
        """,
        where=str(tmp_path),
    )
    assert out == {"errors": [errno.EFBIG] * 5, "taken": [0, 0, 0], "fds": 0}


# ------------------------------------------------------------------ break-glass

#: /etc and the kernel's log are our own here.
GLASS = """
etc = os.path.dirname(where) + "/etc"
subprocess.run(["cp", "-a", "/etc/.", etc], check=True)
subprocess.run(["mount", "--bind", etc, "/etc"], check=True)
kmsg = os.path.dirname(where) + "/kmsg"
open(kmsg, "w").close()
subprocess.run(["mount", "--bind", kmsg, "/dev/kmsg"], check=True)
os.mkdir("/etc/safespawn", 0o755)
allowed = "/etc/safespawn/allow-breakglass"

def consent(state):
    subprocess.run(["rm", "-rf", allowed])
    os.chmod("/etc/safespawn", 0o755)
    if state == "directory":
        os.mkdir(allowed)
    elif state == "link":
        open("/etc/safespawn/other", "w").close()
        os.symlink("other", allowed)
    elif state is not None:
        open(allowed, "w").close()
        os.chmod(allowed, 0o666 if state == "others write" else 0o620 if state == "group writes" else 0o644)
        if state == "of another":
            os.chown(allowed, 65534, 0)
        if state == "in their directory":
            os.chmod("/etc/safespawn", 0o777)

def tried(state, reason):
    consent(state)
    os.environ.pop("SAFESPAWN_BREAKGLASS", None)
    if reason is not None:
        os.environ["SAFESPAWN_BREAKGLASS"] = reason
    process = start()
    return process if isinstance(process, int) else end(process)

def until_refused():
    fill()
    while not isinstance(process := start(), int):
        end(process)
"""


@pytest.mark.parametrize("mode", ["require", "durable"])
def test_glass_is_broken(tmp_path: Path, mode: str) -> None:
    """With root's consent and a reason the program runs; ledger, checkpoint and the kernel's log tell of it."""
    out, ledger = on_disk(
        GLASS
        + """
opened = audit.open(ledger, mode=mode)
until_refused()
out["codes"] = [tried("yes", "disk is full" + chr(10) + chr(0xDCFF)), tried("yes", "again")]
out["kmsg"] = open(kmsg, errors="replace").read()
os.environ.pop("SAFESPAWN_BREAKGLASS")
os.remove(where + "/filler")
opened.checkpoint()
opened.close()
keep()
""",
        "tmpfs",
        tmp_path,
        mode=mode,
    )
    told = ledger.of("breakglass")

    assert out["codes"] == [0, 0]
    assert [r["reason"] for r in told] == [{"hex": "6469736b2069732066756c6c0aff"}, "again"]
    assert "No space left" in told[0]["why"]
    assert "spawn.intent was not kept" in out["kmsg"]
    assert out["kmsg"].startswith("<82>safespawn[")
    assert ledger.of("checkpoint")[-1]["breakglass"] == ledger.of("chain.close")[0]["breakglass"] == 2


@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keys"])
@pytest.mark.parametrize("by", ["call", "environment"])
def test_glass_is_broken_before_there_is_a_ledger(tmp_path: Path, by: str, keyed: bool) -> None:
    """On a disk that is full from the beginning a daemon starts, its programs run and are told; later it has its ledger."""
    out, ledger = on_disk(
        GLASS
        + """
filler = os.open(where + "/filler", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filler, bytes(4096))
except OSError:
    os.close(filler)
consent("yes")
refused = []

def opening():
    if by == "call":
        return audit.open(ledger, keys=keys)
    os.environ["SAFESPAWN_AUDIT"] = ledger
    os.environ["SAFESPAWN_AUDIT_KEYS"] = keys or ""
    audit._Current.asked_environment = False

try:
    opening()
    start()
except AuditError as problem:
    refused.append(problem.errno)
os.environ["SAFESPAWN_BREAKGLASS"] = "make room"
glass = sys.modules["safespawn.audit._breakglass"]
tell, out["told"] = glass.tell, []
glass.tell = lambda text: (out["told"].append(text), tell(text))
opening()
out["codes"] = [end(start()) for _ in range(3)]
opened = audit._Current.ledger
opened.checkpoint()
out["stand"] = [opened.rotate(), opened.closed, opened.checkpoint()]
before = opened.lost
pid = os.fork()
if not pid:
    os._exit(end(start()))
out["child"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
out["kmsg"] = open(kmsg, errors="replace").read()
consent(None)
out["refused"] = start()
out["lost"] = [before, opened.lost]
consent("yes")
os.remove(where + "/filler")
sys.modules["safespawn.audit._ledger"].PAUSE_MAX = 0
opened._no_try_before = 0
out["codes"].append(end(start()))
opened.checkpoint()
opened.close()
out["records"] = [json.loads(line) for line in open(ledger)]
if keyed:
    seen = audit.verify(ledger, key=bytes.fromhex(out["key"]), registry=keys)
    out["findings"] = [str(finding) for finding in seen.findings]
""",
        "tmpfs",
        tmp_path,
        keyed=keyed,
        by=by,
    )
    of = {event: [r for r in out["records"] if r["ev"] == event] for event in {r["ev"] for r in out["records"]}}
    before, lost = out["lost"]

    assert out["codes"] == [0] * 4 and out["child"] == 0
    assert out["stand"] == [False, False, None]
    assert out["refused"] == errno.ENOSPC
    assert sum("spawn.intent was not kept: No space left" in text and "make room" in text for text in out["told"]) == 3
    assert "spawn.intent was not kept" in out["kmsg"]
    assert [(r["reason"], r["of"]) for r in of["breakglass"]] == [("make room", None)]
    assert of["checkpoint"][-1]["breakglass"] == 3
    assert before >= 9 and lost == before + 3  # three for each program; the fork, and what was refused
    assert sum(r["lost"] for r in of["audit.degraded"]) == lost
    assert len(of["spawn.exit"]) == 1
    assert out.get("findings", []) == []


def test_glass_is_broken_on_a_disk_that_is_read_only(tmp_path: Path) -> None:
    """A file system that takes no write when the daemon starts: the same, until it takes some.

    What may run without a record is not killed for having none.
    """
    out, _ = on_disk(
        GLASS
        + """
libc = ctypes.CDLL(None, use_errno=True)
REMOUNT, READ_ONLY = 32, 1
assert libc.mount(None, where.encode(), None, REMOUNT | READ_ONLY, None) == 0
consent("yes")
os.environ["SAFESPAWN_BREAKGLASS"] = "why not"
opened = audit.open(ledger, late_failure="kill")
out["codes"] = [end(start())]
assert libc.mount(None, where.encode(), None, REMOUNT, None) == 0
opened._no_try_before = 0
out["codes"].append(end(start()))
opened.close()
out["told"] = [json.loads(line)["why"] for line in open(ledger) if '"ev":"breakglass"' in line]
""",
        "tmpfs",
        tmp_path,
    )

    assert out["codes"] == [0, 0]
    assert len(out["told"]) == 1 and "Read-only file system" in out["told"][0]


def test_glass_is_broken_before_there_is_a_directory(tmp_path: Path) -> None:
    """The directory comes later, and is a link: the registry has the name that the verifier looks for."""
    out = helpers.run_snippet(
        """
        from safespawn import audit
        glass = sys.modules["safespawn.audit._breakglass"]
        glass.reason, glass.tell = lambda: "no directory yet", lambda text: None
        audit.keys.initialise(where + "/keys")
        opened = audit.open(where + "/log/ledger", keys=where + "/keys")
        os.mkdir(where + "/real", 0o700)
        os.symlink("real", where + "/log")
        opened._no_try_before = 0
        safespawn.run(["/bin/true"])
        opened.close()
        out["ledgers"] = [json.loads(line).get("ledger") for line in open(where + "/keys/registry.jsonl")]
        """,
        where=str(tmp_path),
    )
    assert out == {"ledgers": [None, str(tmp_path / "real" / "ledger")]}


def test_glass_holds(tmp_path: Path) -> None:
    """Without consent of root, or without a reason, it is refused as ever; in best_effort nothing is broken."""
    out, ledger = on_disk(
        GLASS
        + """
opened = audit.open(ledger)
until_refused()
states = [None, "others write", "group writes", "of another", "link", "directory", "in their directory"]
out["codes"] = {str(state): tried(state, "a reason") for state in states}
out["codes"]["no reason"] = tried("yes", None)
out["codes"]["empty reason"] = tried("yes", "")
out["kmsg"] = open(kmsg).read()
opened.close()
keep()
os.remove(ledger)
os.environ["SAFESPAWN_BREAKGLASS"] = "a reason"
audit.open(ledger, mode="best_effort")
fill()
out["best"] = [end(start()) for _ in range(50)]
out["told"] = open(kmsg).read()
""",
        "tmpfs",
        tmp_path,
    )

    assert set(out["codes"].values()) == {errno.ENOSPC}
    assert len(out["codes"]) == 9
    assert ledger.of("breakglass") == []
    assert out["best"] == [0] * 50
    assert (out["kmsg"], out["told"]) == ("", "")
