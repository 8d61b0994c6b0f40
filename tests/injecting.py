"""Makes one system call of a scene fail, and judges what comes of it.

The scene is played by a process of its own (tests/faulted.py) under a seccomp filter that brings every
system call, of it and of all its children, to tests/ways/supervise.c. A first play records them; each can
then be made to fail with any errno: it gets that instead of being made.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faulted
import helpers
from errnos import ERRNOS
from safespawn import _helpers, _launcher

ROLES = ("parent", "child", "launcher", "helper", "helper-child", "program")
_CALLS, _PIDS, _TEXT = 20000, 4096, 96


class _Call(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_int32), ("role", ctypes.c_int32), ("number", ctypes.c_int32), ("ordinal", ctypes.c_uint32),
        ("args", ctypes.c_uint64 * 6), ("watched", ctypes.c_int64), ("text", ctypes.c_char * _TEXT),
    ]  # fmt: skip


class _Supervisor(ctypes.Structure):
    """struct supervisor of tests/ways/supervise.c."""

    _fields_ = [
        ("listener", ctypes.c_int32), ("worker", ctypes.c_int32), ("control", ctypes.c_int32),
        ("role", ctypes.c_int32), ("number", ctypes.c_int32), ("error", ctypes.c_int32),
        ("at", ctypes.c_uint32), ("fired", ctypes.c_uint32),
        ("hold_role", ctypes.c_int32), ("hold_number", ctypes.c_int32),
        ("recording", ctypes.c_int32), ("timeout_ms", ctypes.c_int32), ("waits", ctypes.c_int32),
        ("ncalls", ctypes.c_uint32), ("npids", ctypes.c_uint32), ("nhelpers", ctypes.c_uint32),
        ("programs", ctypes.c_uint32), ("mark_id", ctypes.c_uint64), ("helpers", ctypes.c_int32 * 16),
        ("ordinals", ctypes.c_uint32 * 512 * len(ROLES)),
        ("python", ctypes.c_char * 256), ("launcher", ctypes.c_char * 256), ("helper", ctypes.c_char * 256),
        ("watched", ctypes.c_char * 256),
        ("calls", _Call * _CALLS), ("pids", ctypes.c_int32 * 2 * _PIDS),
    ]  # fmt: skip


def build(where: Path) -> Path:
    """Compile the supervisor and the smallest program, and return where both are: supervise.so, program."""
    where.chmod(0o755)  # another user has to reach the program
    source = helpers.TESTS / "ways" / "supervise.c"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", where / "supervise.so", source], check=True)
    (where / "program.c").write_text("int main(void) { return 0; }\n", encoding="ascii")
    subprocess.run(["gcc", "-O2", "-static", "-o", where / "program", where / "program.c"], check=True)
    (where / "numbers.c").write_text(_NUMBERS, encoding="ascii")
    subprocess.run(["gcc", "-o", where / "numbers", where / "numbers.c"], check=True)
    return where


_NUMBERS = (
    "#define _GNU_SOURCE\n#include <stdio.h>\n#include <sys/syscall.h>\nint main(void) {\n"
    + "".join(f'#ifdef SYS_{name}\nprintf("%d {name}\\n", (int)SYS_{name});\n#endif\n' for name in ERRNOS)
    + "return 0; }\n"
)


def numbers(where: Path) -> dict[int, str]:
    """Return the names of the system calls that the table has, by their numbers on this machine."""
    text = subprocess.run([where / "numbers"], check=True, capture_output=True, text=True).stdout
    return {int(number): name for number, name in (line.split() for line in text.splitlines())}


@dataclass(frozen=True)
class Scene:
    """What is played: see tests/faulted.py. ``hold``: calls of that role and name are held until the kill."""

    name: str
    options: dict[str, Any]
    play: str = "spawn"
    helper: bool = False
    pool: int = 0
    keyed: bool = False
    mode: str = "require"
    ledger: bool = True
    program: str = ""  # instead of the smallest
    hold: tuple[str, str] | None = None
    before: str = ""
    fails: bool = False  # as it is: what is tested is how it ends

    @property
    def is_helped(self) -> bool:
        """Whether a helper is there all the time, which may be lost and started anew."""
        return self.helper


@dataclass(frozen=True)
class Site:
    """One system call of a scene: whose, which, and the how-manieth of it."""

    role: str
    call: str
    ordinal: int
    detail: str = ""

    @property
    def key(self) -> str:
        """Return what it is, without which one of several: these fail alike."""
        return f"{self.role} {self.call}" + (f" {self.detail}" if self.detail else "")


@dataclass
class Came:
    """What came of one play."""

    said: dict[str, Any]
    fired: bool
    programs: int
    wrong: list[str] = field(default_factory=list)

    @property
    def unclean(self) -> bool:
        """Whether something is left: the process is of no use for the next play. Its signal mask it sets anew."""
        return not all(one.startswith("mask: ") for one in self.wrong)

    @property
    def short(self) -> str:
        """Return it in a line, without numbers that differ from one errno to another."""
        if "raised" not in self.said:
            return f"ran {self.said.get('report', [''])[-1]}" if "code" in self.said else f"{self.said}"
        report = self.said["report"]
        return f"{self.said['raised']} stage={self.said['stage']} report={report and report[:2]}"


def settings(scene: Scene, place: Path, where: Path) -> dict[str, Any]:
    """Return what the worker is told."""
    return {
        "scene": scene.play,
        "options": scene.options,
        "program": scene.program or str(place / "program"),
        "where": str(where),
        "ledger": str(where / "ledger") if scene.ledger else "",
        "helper": scene.helper,
        "pool": scene.pool,
        "keyed": scene.keyed,
        "mode": scene.mode,
        "before": scene.before,
    }


class Worker:
    """A process that plays one scene, and its supervisor."""

    #: No play takes longer, unless it hangs.
    TIMEOUT_MS = 15_000

    def __init__(self, scene: Scene, place: Path, where: Path) -> None:
        """Start it, in ``where``, which is new."""
        self.scene, self.where = scene, where
        self.names = numbers(place)
        self.by_name = {name: number for number, name in self.names.items()}
        self.library = ctypes.CDLL(str(place / "supervise.so"))
        self.library.supervise.restype = ctypes.c_int64
        assert self.library.supervise_size() == ctypes.sizeof(_Supervisor)
        self.supervisor = _Supervisor()
        self.ledger = where / "ledger"
        self.listener = -1
        self._start(place)

    def _start(self, place: Path) -> None:
        self.ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control = 250
        os.dup2(its.fileno(), control)
        its.close()
        text = json.dumps(settings(self.scene, place, self.where))
        words = [sys.executable, str(helpers.TESTS / "faulted.py"), str(place / "supervise.so"), str(control), text]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SAFESPAWN_ARM": "0"}
        self.errors = (self.where / "stderr").open("w+b")
        self.process = subprocess.Popen(words, pass_fds=(control,), env=environment, stderr=self.errors)
        os.close(control)
        for _ in range(2):
            data, fds, _, _ = socket.recv_fds(self.ours, 1, 1)
            assert data, f"the worker ended: {self.said()}"
            if data == b".":
                self.listener = fds[0]
            else:
                os.close(fds[0])
        s = self.supervisor
        s.listener, s.worker, s.control = self.listener, self.process.pid, self.ours.fileno()
        s.timeout_ms, s.hold_number = self.TIMEOUT_MS, -1
        self.library.supervise_together(ctypes.byref(s))
        s.python = os.path.realpath(sys.executable).encode()
        s.launcher, s.helper = os.path.realpath(_launcher.PATH).encode(), os.path.realpath(_helpers.PATH).encode()
        s.watched = str(self.ledger).encode() if self.scene.ledger else b""
        assert self._until() == faulted.READY, self.said()
        self._go()
        self.broken, self.most_maps = False, 0
        self.unclosed: int | None = None
        self.untold = 0

    def said(self) -> str:
        """Return what it wrote to stderr."""
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def _until(self) -> int:
        answer: int = self.library.supervise(ctypes.byref(self.supervisor))
        return answer

    def _go(self) -> None:
        self.library.supervise_go(ctypes.byref(self.supervisor))

    def play(self, site: Site | None = None, error: int = 0) -> Came:
        """Play the scene once, with one call failing, and look at what is left at its end."""
        s = self.supervisor
        self._settle()
        start = self.ledger.stat().st_size if self.scene.ledger else 0
        self.ours.send(json.dumps({"close": self.unclosed}).encode())
        self.unclosed = None
        if (said := self._until()) != faulted.BEGIN:
            return self._lost(f"did not begin: {said}")
        self.library.supervise_forget(ctypes.byref(s))
        before = self._outside()
        s.recording = 1
        if site is not None:
            s.role, s.number, s.error, s.at = ROLES.index(site.role), self.by_name[site.call], error, site.ordinal
        if self.scene.hold:
            s.hold_role, s.hold_number = ROLES.index(self.scene.hold[0]), self.by_name[self.scene.hold[1]]
        self._go()
        end = self._until()
        if end == faulted.END:
            self._settle()  # what a helper does behind its answer belongs to the play
        s.at, s.hold_number, s.recording = 0, -1, 0
        fired, programs = bool(s.fired), s.programs
        if end != faulted.END:
            return self._lost("hangs" if end == -errno.ETIMEDOUT else f"ended ({end})")
        wrong = self._left(before, self._outside(), site if fired else None)
        self._go()
        if self._until() != 0:
            return self._lost("said nothing")
        came = Came(json.loads(self.ours.recv(1 << 20)), fired, programs, wrong)
        came.wrong += self._differs(came.said.pop("same"))
        if self.scene.ledger:
            came.wrong += self._recorded(start, came)
        return came

    def _differs(self, same: list[dict[str, Any]]) -> list[str]:
        before, after = same
        if self.scene.is_helped:  # it may be the helper that has ended
            before["zombie"] = after["zombie"] = None
        return [f"{name}: {before[name]}, then {after[name]}" for name in before if before[name] != after[name]]

    def _settle(self) -> None:
        """Wait until a helper, if one is there still, has made its children again, or cannot."""
        if not self.scene.is_helped:
            return
        self.supervisor.timeout_ms = 1
        end = time.monotonic() + 10
        while not self.supervisor.waits and time.monotonic() < end:
            if not any(map(self._is_helper, children(self.process.pid))):
                break
            self._until()
        self.supervisor.timeout_ms = self.TIMEOUT_MS

    def _is_helper(self, pid: int) -> bool:
        try:
            return os.readlink(f"/proc/{pid}/exe").encode() == self.supervisor.helper
        except OSError:
            return False

    def kill(self) -> int:
        """End it at once, and return its exit code."""
        self.broken = True
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        return self.process.wait()

    def _lost(self, why: str) -> Came:
        code = self.kill()
        return Came({"lost": f"{why}, exit {code}"}, bool(self.supervisor.fired), self.supervisor.programs,
                    [f"{why}, exit {code}: {self.said()[-600:]}"])  # fmt: skip

    def _outside(self) -> dict[str, Any]:
        """Return what can be seen of the worker while it waits for us."""
        proc = f"/proc/{self.process.pid}"
        fds = {}
        for name in os.listdir(f"{proc}/fd"):
            with contextlib.suppress(FileNotFoundError):
                fds[int(name)] = os.readlink(f"{proc}/fd/{name}")
        maps = Path(f"{proc}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        # Guard pages, shared mappings and those of memfds are ours; the interpreter's heap comes and goes.
        ours = sum(line.split()[1] in ("---p", "rw-s", "r--s") or "memfd:" in line for line in maps)
        return {
            "fds": fds,
            "tasks": len(os.listdir(f"{proc}/task")),
            "maps": ours,
            "children": len(children(self.process.pid)) if self.scene.helper else 0,
            "files": {path.name for path in self.where.iterdir() if not path.name.startswith("ledger")},
        }

    def steady(self) -> Counter[str]:
        """Return what the worker has now that it waits: kinds of descriptors, threads, children."""
        self._settle()
        seen = self._outside()
        kinds = Counter(re.sub("[0-9]+", "N", to) for to in seen["fds"].values())
        kinds.update(tasks=seen["tasks"], children=seen["children"])
        return kinds

    def _left(self, before: dict[str, Any], after: dict[str, Any], site: Site | None) -> list[str]:
        wrong = []
        extra = {fd: to for fd, to in after["fds"].items() if before["fds"].get(fd) != to}
        gone = before["fds"].keys() - after["fds"].keys()
        if site is not None and site.call == "close" and site.role == "parent":
            # What supervise.c has put there.
            call = next(c for c in self.calls() if (c.role, c.number) == self._id(site) and c.ordinal == site.ordinal)
            if extra.pop(call.args[0], None) is not None:
                self.unclosed = call.args[0]
        # A helper that is lost goes, and another comes: that is looked at when all has settled.
        if (extra or gone) and not self.scene.is_helped:
            wrong.append(f"descriptors: {extra} more, {sorted(gone)} gone")
        if after["tasks"] != before["tasks"]:
            wrong.append(f"threads: {before['tasks']}, then {after['tasks']}")
        self.most_maps = max(self.most_maps, before["maps"])
        if after["maps"] > self.most_maps and not (site and site.call == "munmap"):
            wrong.append(f"mappings: {self.most_maps}, then {after['maps']}")
        self.most_maps = max(self.most_maps, after["maps"])
        if self.scene.play != "ledger_life" and after["files"] != before["files"]:
            wrong.append(f"files: {after['files'] ^ before['files']}")
        return wrong

    def _recorded(self, start: int, came: Came) -> list[str]:
        """Whether the ledger has an intent before each exec, and one ending for each."""
        with self.ledger.open("rb") as file:
            file.seek(start)
            data = file.read()
        wrong, at, intents, endings, lost = [], start, {}, Counter(), 0
        for line in data.splitlines(keepends=True):
            record = json.loads(line)
            if record["ev"] == "spawn.intent":
                intents[record["sid"]] = at + len(line)
            elif record["ev"] in ("spawn.started", "spawn.failed", "spawn.denied"):
                endings[record["sid"]] += 1
            elif record["ev"] == "audit.degraded":
                lost += record["lost"]
            at += len(line)
        execs = [c.watched for c in self.calls() if self.names.get(c.number) in ("execve", "execveat")
                 and ROLES[c.role] != "program"]  # fmt: skip
        if came.programs > len(intents):
            wrong.append(f"{came.programs} programs, {len(intents)} intents")
        if came.programs and execs and intents and min(intents.values()) > max(execs):
            wrong.append("exec before the intent")
        wrong += [f"{sid} has {count} endings" for sid, count in endings.items() if count != 1]
        # What could not be written is told as lost before the next record: at the latest in the play behind this.
        self.untold = max(0, self.untold + sum(not endings[sid] for sid in intents) - lost)
        if self.untold and not came.fired:
            wrong.append(f"{self.untold} intents without ending, and none told as lost")
        return wrong

    def _id(self, site: Site) -> tuple[int, int]:
        return ROLES.index(site.role), self.by_name[site.call]

    def calls(self) -> list[_Call]:
        """Return the calls of the last play."""
        return list(self.supervisor.calls[: self.supervisor.ncalls])

    def sites(self) -> list[Site]:
        """Return them as sites, those of the program left out."""
        found = []
        for call in self.calls():
            if (role := ROLES[call.role]) != "program":
                name = self.names.get(call.number, f"nr_{call.number}")
                found.append(Site(role, name, call.ordinal, self._detail(name, call)))
        return found

    def met(self, site: Site) -> Site:
        """Return what was at that place in the last play: one that went another way had another call there."""
        call = next((c for c in self.calls() if (c.role, c.number) == self._id(site) and c.ordinal == site.ordinal), None)
        return site if call is None else Site(site.role, site.call, site.ordinal, self._detail(site.call, call))

    def _detail(self, name: str, call: _Call) -> str:
        """Return what tells calls of one name apart: a command's number, or the path; ~ is the place of files."""
        if name in _COMMANDS:
            return str(call.args[_COMMANDS[name]] & 0xFFFFFFFF)
        if name == "unshare":
            return hex(call.args[0])
        text: str = call.text.decode(errors="replace")
        for place in (self.where, self.where.parent):
            text = text.replace(str(place), "~").replace(place.name, "~")
        return re.sub(r"[0-9]+", "N", text)

    def close(self) -> str:
        """End it, and return what was wrong with that."""
        wrong = ""
        if not self.broken:
            self.ours.send(b"null")
            while (said := self._until()) >= 0 and said != 0:
                pass
            code = self.process.wait(timeout=30)
            wrong = "" if code == 0 else f"exit {code}: {self.said()[-600:]}"
        self.ours.close()
        os.close(self.listener)
        self.errors.close()
        return wrong


def children(parent: int) -> list[int]:
    """Return the children of a process, zombies too."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{parent}/task"):
            text = Path(f"/proc/{parent}/task/{task}/children").read_text(encoding="ascii")
            found += map(int, text.split())
    except (FileNotFoundError, ProcessLookupError):  # it ends, or a kernel without this list: it is made from that of all processes
        return _children_of_all(parent)
    return found


def _children_of_all(parent: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                found.append(int(name))
    return found


#: Which argument of these is a command.
_COMMANDS = {"fcntl": 1, "ioctl": 1, "prctl": 0, "futex": 1, "seccomp": 0, "madvise": 2, "mmap": 3}
