"""Puts a process under load for a while, and tells whether it stayed clean: everything at once, by all ways.

    python tests/soak/soak.py [--seconds N] [--report DIRECTORY] [--fault NAME]...

Spawners over all strategies and faces, changers of credentials, forkers, killers (of children, of parked children, of
helpers) and a rotator of the ledger, which has keys and mode `require`. From outside descriptors, memory, children,
threads, memfds and temporary files are watched. At the end the ledger is verified and held against a book that the
callers keep: each spawn has one intent and one ending, which is what its caller was told, and there are no others.
Rules for what is flat: judge.py. Faults are seeded to see that the judge finds them: planted.py.

Needs root. Writes soak.txt and soak.json, and ends with one line. Exit code 1: there were findings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(1, str(HERE.parent.parent))

import accounts
import book
import planted
import judge
import report
from safespawn.audit import keys as keys_of
from watcher import Watcher

#: Everything that is given out comes from one arena, and nothing is kept by for a thread: else a seventeenth thread that
#: comes to an old place grows what is resident, and nobody can tell that from a leak (mallopt(3), ld.so(8)).
MEMORY = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1"}

#: Seconds without a word of the process after which it hangs.
STALLED = 60


class Places:
    """Where a run keeps its files."""

    def __init__(self, where: Path) -> None:
        self.temporary, self.audit = where / "temporary", where / "audit"
        self.temporary.mkdir(mode=0o777)
        self.temporary.chmod(0o1777)  # the process is somebody else at times
        self.audit.mkdir(mode=0o700)
        self.ledger, self.keys, self.book = self.audit / "ledger", self.audit / "keys", where / "book"
        self.errors = where / "errors"
        where.chmod(0o755)
        self.key = keys_of.initialise(self.keys)

    def strangers(self) -> list[str]:
        """Return the files beside the ledger that are not its own."""
        names = (p.name for p in self.audit.iterdir())
        ours = ("ledger", "ledger.state", "keys")
        return sorted(n for n in names if n not in ours and not n.removeprefix("ledger.").isdecimal())


def _stream(process: subprocess.Popen[bytes], words: IO[bytes]) -> Any:
    """Yield what the process says. One that hangs says where, and is ended."""
    hangs = []

    def hang(number: int, frame: object) -> None:
        if not hangs:
            process.send_signal(signal.SIGUSR2)  # it writes where its threads are
            signal.alarm(5)
        else:
            process.kill()
        hangs.append(number)

    signal.signal(signal.SIGALRM, hang)
    try:
        signal.alarm(STALLED)
        for line in words:
            signal.alarm(STALLED)
            yield json.loads(line)
    finally:
        signal.alarm(0)
    if hangs:
        yield {"phase": "hung"}


def _run(places: Places, seconds: float, seeded: list[str]) -> tuple[Watcher, list[dict[str, Any]], int]:
    setup = {name: str(getattr(places, name)) for name in ("ledger", "keys", "book")}
    path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **MEMORY, "TMPDIR": str(places.temporary), "PYTHONPATH": path}
    said: list[dict[str, Any]] = []
    read, write = os.pipe()  # not its standard output: programs that it leaves behind have that too
    words = json.dumps({**setup, "seconds": seconds, "faults": seeded, "say": write})
    with open(places.errors, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "subject.py"), words],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=environment,
            pass_fds=(write,),
            start_new_session=True,
        )
    os.close(write)
    watcher = Watcher(process.pid, places.temporary, max(0.1, min(1.0, seconds / 60)))
    with process, open(read, "rb") as told:
        for one in _stream(process, told):
            said.append(one)
            watcher.helpers = one.get("helpers", watcher.helpers)
            watcher.allocated = one.get("allocated", watcher.allocated)
            if one["phase"] == "begun":
                watcher.start()
            elif one["phase"] in ("stopped", "hung") and watcher.ident is not None:
                watcher.stop()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.killpg(process.pid, signal.SIGKILL)  # what it has left behind, if it has died
    if watcher.ident is not None:
        watcher.stop()
    return watcher, said, process.returncode


def _verify(places: Places) -> tuple[str, list[str]]:
    """Return the last line of the verifier, and what it finds. Notices are none."""
    words = ["audit", "verify", "--key-file", "-", "--keys", str(places.keys), str(places.ledger)]
    path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "safespawn", *words],
        input=places.key,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    lines = (done.stdout + done.stderr).splitlines() or [""]
    return lines[-1], [f"verify: {line}" for line in lines] if done.returncode else []


def soak(seconds: float, seeded: list[str]) -> report.Result:
    """Do one run, and return what it came to."""
    with tempfile.TemporaryDirectory(prefix="safespawn-soak-") as name:
        places = Places(Path(name))
        watcher, said, code = _run(places, seconds, seeded)
        findings = [] if code == 0 else [f"problem: the process ended with {code}"]
        findings += [f"problem: it said: {line}" for line in places.errors.read_text().splitlines()[:60]]
        asked, wrong = book.read(places.book)
        ledger = accounts.read(places.ledger)
        verified, found = _verify(places)
        findings += wrong + found + accounts.shown(accounts.compare(asked, ledger))
        findings += [f"lost: {ledger.lost} records"] if ledger.lost else []
        ended = said[-1] if said and said[-1]["phase"] == "ended" else None
        counts = ended["counts"] if ended else {}
        notes: list[str] = []
        if ended:
            by_libc = sum(seen.strategy == "posix_spawn" for seen in ledger.spawns.values())
            left = judge.left(ended, sorted(os.listdir(places.temporary)), places.strangers())
            notes, beyond = judge.known(ended, by_libc)
            findings += beyond + accounts.shown(left)
        several = judge.trends(watcher.samples, seconds) if len(watcher.samples) >= 9 else []
        findings += judge.grown(several) if several else ["idle: too few samples"]
        findings += judge.sequence([one for one in said if one["phase"] == "running"])
    names = ("changes", "forks", "rotations", "helpers killed", "sleepers ended", "children signalled")
    findings += judge.idle({name: counts.get(name, 0) for name in names})
    ways: dict[str, Counter[str]] = {}
    for one in asked.values():
        ways.setdefault(one.way, Counter())[one.result or "untold"] += 1
    return report.Result(
        seconds,
        f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}, "
        f"{len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.1f} at the end",
        watcher.samples,
        several,
        counts,
        {way: dict(several.most_common()) for way, several in ways.items()},
        dict(Counter(str(seen.strategy) for seen in ledger.spawns.values())),
        dict(ledger.events),
        dict(ledger.degraded),
        verified,
        ledger.chains,
        len(asked),
        findings,
        notes,
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument(
        "--report", type=Path, default=Path("soak-report"), help="directory for soak.txt and soak.json"
    )
    parser.add_argument("--fault", action="append", default=[], choices=sorted(planted.FAULTS))
    given = parser.parse_args()
    result = soak(given.seconds, given.fault)
    report.write(result, given.report)
    print(report.text(result), end="")
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
