"""Makes ledgers in the form of docs/audit-format.md, with whatever a test wants in them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: 2026-11-29 00:00:00 UTC.
START_NS = 1_795_910_400_000_000_000
SECOND = 1_000_000_000
BOOT = "00000000-0000-4000-8000-00000000b007"

ALONE = "alone-or-apart: one thread, and nobody else on our memory"
LAUNCHED = "drop-apart: the launcher changes credentials in its own memory"
CROWDED = "alone-or-apart: 7 threads, so a privilege could change in the window: an object is not covered"
REFUSED = "path-trusted: /srv/jobs is writable by others (mode 777)"


def encoded(record: dict[str, Any]) -> bytes:
    """Return a record as its line, without the newline."""
    return json.dumps(record, separators=(",", ":")).encode("ascii").replace(b"\x7f", b"\\u007f")


class Chain:
    """Records of one process, numbered and linked, from `start_ns` on."""

    def __init__(self, seed: int = 1, start_ns: int = START_NS, pid: int = 4242) -> None:
        self.random = random.Random(seed)
        self.id = self.uuid(start_ns)
        self.now = start_ns
        self.pid = pid
        self.number = 0
        self.before = "0" * 64
        self.child = 10_000

    def uuid(self, when_ns: int) -> str:
        """Return a UUID of version 7."""
        digits = f"{when_ns // 1_000_000:012x}7{self.random.getrandbits(12):03x}{self.random.getrandbits(64) | 1 << 63:016x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def record(self, event: str, sid: str | None = None, **members: Any) -> bytes:
        """Return the line of the next record, with its newline."""
        line = encoded(
            {
                "v": 1,
                "c": self.id,
                "n": self.number,
                "p": self.before,
                "ev": event,
                "sid": sid,
                "t": self.now,
                "mono": self.now - START_NS,
                "boot": BOOT,
                "mode": "require",
                **members,
            }
        )
        self.number += 1
        self.before = hashlib.sha256(line).hexdigest()
        self.now += self.random.randrange(50_000, 400_000)
        return line + b"\n"

    def who(self, uid: int = 0) -> dict[str, Any]:
        """Return the member `who` of a process of a user."""
        return {
            "pid": self.pid, "start": 104073, "auid": 4294967295, "ses": 4294967295, "ppid": 1,
            "ruid": uid, "euid": uid, "suid": uid, "rgid": uid, "egid": uid, "sgid": uid, "groups": [uid],
            "eff": "1fffeffffff", "prm": "1fffeffffff", "inh": "0",
        }  # fmt: skip

    def opener(self) -> dict[str, Any]:
        """Return the member `who` of `chain.open`."""
        return {**self.who(), "pid_ns": 4026531836}

    def about(
        self,
        argv: list[Any],
        *,
        uid: int = 0,
        as_uid: int | None = None,
        path: Any = None,
        tags: dict[str, str] | None = None,
        found: bool = True,
    ) -> dict[str, Any]:
        """Return who asks for what as whom."""
        path = argv[0] if path is None else path
        exe = {
            "path": path, "real": path, "dev": "fe:0", "ino": 260958, "mode": "755", "uid": 0, "gid": 0, "size": 35664,
            "mtime": 1663687647000000000, "ctime": 1663687647000000000, "held": True, "pinned": False,
        }  # fmt: skip
        return {
            **({"tags": tags} if tags else {}),
            "who": self.who(uid),
            "what": {
                "argc": len(argv),
                "argv_bytes": 40,
                "argv": argv,
                "exe": exe if found else None,
                "cwd": None,
                "env_keys": ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "XDG_RUNTIME_DIR"],
                "env_removed": [],
                "fds": [{"fd": fd, "type": "pipe", "dev": "0:d", "ino": 70000 + fd} for fd in range(3)],
            },
            "want": {} if as_uid is None else {"uid": as_uid, "gid": as_uid, "groups": [as_uid]},
        }

    @staticmethod
    def how(strategy: str | None = "vfork", why: tuple[str, ...] = (ALONE,), requested: str = "auto") -> dict[str, Any]:
        """Return the member `how`."""
        proof = None if strategy in (None, "fork") else "single-threaded"
        return {"requested": requested, "strategy": strategy, "proof": proof, "why": list(why), "threads": 1}

    def begun(self, argv: list[Any], **more: Any) -> tuple[str, bytes]:
        """Return id and intent of a spawn; `how` among `more` is its member of that name."""
        how, sid = more.pop("how", None) or self.how(), self.uuid(self.now)
        return sid, self.record("spawn.intent", sid, **self.about(argv, **more), how=how)

    def started(self, sid: str, how: dict[str, Any] | None = None, window_ns: int = 90_000) -> bytes:
        """Return the record of a program that runs."""
        self.child += 1
        outcome = {
            "outcome": "exec", "pid": self.child, "pidfd_ino": 48012, "ns_to_exec": window_ns, "clone3": True,
            "confirmed": True,
        }  # fmt: skip
        return self.record("spawn.started", sid, how=how or self.how(), outcome=outcome)

    def ended(self, sid: str, dur: int = 1_200_000, **how: Any) -> bytes:
        """Return the record of an exit: `code=`, or `signal=` and what else there is."""
        rusage = {"utime": 652, "stime": 0, "maxrss": 25460, "minflt": 51, "majflt": 1}
        told = {"pid": self.child, **(how or {"code": 0}), "rusage": rusage, "dur": dur, "reaped_by": "self"}
        return self.record("spawn.exit", sid, exit={"timeout_killed": False, **told})

    def ran(self, argv: list[Any], *, code: int = 0, window_ns: int = 90_000, **more: Any) -> bytes:
        """Return the three records of a program that ran to its end."""
        how = more.get("how")
        sid, intent = self.begun(argv, **more)
        return intent + self.started(sid, how, window_ns) + self.ended(sid, code=code)

    def failed(self, argv: list[Any], step: str = "lookup", name: str = "ENOENT", **more: Any) -> bytes:
        """Return the one record of a spawn that ran no program."""
        outcome = more.pop("outcome", "failed")
        how = more.pop("how", None) or self.how()
        told = {
            "outcome": outcome, "step": step, "errno": 2, "name": name, "message": "No such file or directory",
            "pid": None, "stuck": False,
        }  # fmt: skip
        return self.record("spawn.failed", self.uuid(self.now), **self.about(argv, found=False, **more), how=how, outcome=told)

    def denied(self, argv: list[Any], why: str = REFUSED, **more: Any) -> bytes:
        """Return the one record of a spawn that a guard refused."""
        guard, _, text = why.partition(": ")
        how = {**self.how(why=(ALONE, why)), "guards": [{"g": guard, "r": "deny", "why": text}]}
        return self.record("spawn.denied", self.uuid(self.now), **self.about(argv, **more), how=how)

    def changed(self) -> bytes:
        """Return a change of credentials from root to uid 65534."""
        before = {"uids": [0] * 4, "gids": [0] * 4, "groups": [], "eff": "1fffeffffff", "prm": "1fffeffffff", "inh": "0"}
        after = {**before, "uids": [0, 65534, 0, 65534], "eff": "0"}
        change = {
            "call": "seteuid", "through": "libc", "args": [65534], "tid": self.pid, "at_ns": self.now, "errno": 0,
            "name": "", "before": before, "after": after, "waited_ns": 0, "killed": 0,
        }  # fmt: skip
        return self.record("cred.change", self.uuid(self.now), who=self.who(), change=change)


#: What a machine runs: argument vector, target user, tags; and how often, in parts of the whole.
WORK: tuple[tuple[list[str], int | None, dict[str, str] | None, int], ...] = (
    (["/usr/bin/rsync", "-a", "--delete", "/srv/data/", "backup:/srv/data/"], 33, {"job": "backup"}, 20),
    (["/usr/bin/convert", "in put.png", "-resize", "800x600", "out.jpg"], 1000, {"job": "thumbs", "queue": "low"}, 30),
    (["/bin/sh", "-c", "logger -t cron 'it is done'"], None, None, 15),
    (["/usr/sbin/nginx", "-t"], None, {"job": "deploy"}, 5),
    (["/usr/bin/python3", "/opt/app/worker.py", "--once"], 1000, {"job": "worker"}, 25),
    (["/usr/bin/systemctl", "reload", "nginx.service"], None, {"job": "deploy"}, 5),
)


def realistic(count: int, *, days: float = 5, seed: int = 7) -> Iterator[bytes]:
    """Yield pieces of a ledger with about `count` records, over so many days, the same every time."""
    chain = Chain(seed)
    dice = chain.random
    weights = [one[3] for one in WORK]
    yield chain.record("chain.open", None, who=chain.opener(), library="0.1.0", parent=None, keys=None, config="")
    apart = int(days * 86400 * SECOND * 3 / count)
    while chain.number < count:
        argv, as_uid, tags, _ = dice.choices(WORK, weights)[0]
        yield _one(chain, dice, argv, as_uid, tags)
        # Fewer at night.
        hour = (chain.now - START_NS) // (3600 * SECOND) % 24
        chain.now += int(dice.expovariate(1 / apart) * (0.6 if 8 <= hour < 20 else 2))
        if dice.random() < 0.002:
            yield chain.changed()
        if chain.number % 1000 == 0:
            yield chain.record("checkpoint", None, why="count", counts={}, lost=0, mirrors={})
    yield chain.record("chain.close", None, lost=0, counts={}, mirrors={})


def _one(
    chain: Chain, dice: random.Random, argv: list[str], as_uid: int | None, tags: dict[str, str] | None
) -> bytes:
    how = chain.how() if as_uid is None else chain.how("launcher", (ALONE, LAUNCHED))
    lot, more = dice.random(), {"as_uid": as_uid, "tags": tags}
    if lot < 0.01:
        return chain.denied(argv, **more)
    if lot < 0.025:
        return chain.failed(argv, how=how, **more)
    if lot < 0.0255:
        return chain.begun(argv, how=how, **more)[1]
    if lot < 0.07:
        how = chain.how("fork", (CROWDED,))
    window = int(dice.lognormvariate(11.6, 0.5))
    return chain.ran(argv, code=0 if dice.random() < 0.95 else 1, window_ns=window, how=how, **more)


def write(path: Path, *lines: bytes) -> Path:
    """Write lines to a file and return it."""
    path.write_bytes(b"".join(lines))
    return path


def append(path: Path, *pieces: bytes) -> None:
    """Write to the end of a file, as a ledger does."""
    with open(path, "ab") as file:
        file.write(b"".join(pieces))


#: Arguments that try to be something else: markup, script, orders to a terminal, text that turns around.
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred",
    "\u202egnp.exe\u2066",
    "line\nbreak\rback\x7f\x9b31m",
    "\ud800 half a pair",
    "'; rm -rf / #\" onmouseover=\"document.title='owned'",
    "]]>--><!-- &lt;b&gt; &#x27;",
)


def eventful() -> bytes:
    """Return a short ledger with one of everything, hostile arguments among it."""
    chain = Chain(3)
    lines = [
        chain.record("chain.open", None, who=chain.opener(), library="0.1.0", parent=None, keys=None, config=""),
        chain.ran(["/bin/true"]),
        chain.ran(["/bin/sh", "-c", "exit 3"], code=3, as_uid=65534, tags={"job": "nightly", "build": "7"},
                  how=chain.how("launcher", (ALONE, LAUNCHED))),
        chain.ran(["/usr/bin/du", "-s", "/srv"], how=chain.how("fork", (CROWDED,)), window_ns=4_200_000),
        chain.ran(["/bin/cat"], how=chain.how("fork", ("alone-or-apart: fork was asked for",), "fork")),
        chain.failed(["/bin/nonexistent"]),
        chain.failed(["/bin/slow"], "exec", "", outcome="timed-out", tags={"job": "nightly"}),
        chain.denied(["/srv/jobs/tool", "--now"], uid=1000),
    ]  # fmt: skip
    lines += [chain.ran(["/bin/echo", text], tags={"note": text}) for text in HOSTILE]
    lines.append(chain.ran(["/bin/echo", {"hex": "fffe1b5b33316d"}], uid=1000))
    killed, intent = chain.begun(["/bin/sleep", "100"])
    lines += [intent, chain.started(killed), chain.ended(killed, signal=9, core=False, timeout_killed=True)]
    running, intent = chain.begun(["/usr/sbin/daemon"])
    lines += [intent, chain.started(running)]
    taken, intent = chain.begun(["/bin/date"])
    lines += [intent, chain.started(taken), chain.record("exit.unknown", taken, pid=chain.child, why="reaped elsewhere")]
    lines += [
        chain.begun(["/usr/bin/perhaps"])[1],
        chain.changed(),
        chain.record("audit.degraded", None, lost=3, why="No space left on device"),
        chain.record("mirror.down", None, mirror="journald", why="EAGAIN", accepted=10, dropped=3),
        chain.record("mirror.up", None, mirror="journald", why="", accepted=10, dropped=3),
        chain.record("spawn.bypass", None, who=chain.who(), bypass={"event": "os.fork", "site": "app.py:12 work", "count": 2}),
        chain.record("guard.config", None, who=chain.who(), guards={"require": "sealed"}),
        chain.record("helper.lost", None, who=chain.who(), helper={"pid": 7, "why": "it has ended", "asked": 3}),
        chain.record("helper.shrunk", None, who=chain.who(), helper={"pid": 7, "policies": 2}),
        chain.record("breakglass", None, reason="full disk", why="no room for the intent"),
        chain.record("checkpoint", None, why="count", counts={}, lost=0, mirrors={}),
        chain.record("new.event", None, anything=["at", "all"]),
        chain.record("chain.close", None, lost=1, counts={}, mirrors={}),
    ]  # fmt: skip
    return b"".join(lines)
