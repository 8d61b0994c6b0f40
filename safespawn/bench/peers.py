"""The processes that are measured: started with ballast and threads, and asked for samples line by line."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import cgroup, machine, ways
from .results import Place
from .tools import SOURCES, Tools, Unable, environment, python

#: Seconds in which a process must be ready, and answer. Ballast of 8 GiB takes some; so does a slow machine.
PATIENCE = 120.0
#: Seconds in which it ends by itself when nothing more will be asked.
_GRACE = 5.0
#: MiB that a process takes beside its ballast.
_OVERHEAD = {"Java": 220, "Node.js": 120}
_OVERHEAD_OTHERS = 60

#: What a Python process measures, in the order of the tables. What this version lacks fails when it is tried.
OURS = tuple(way.name for way in ways.Ours().ways())
STANDARD = tuple(way.name for way in ways.standard(lambda _: None))
RUST, NODE, JAVA = "Rust Command", "Node.js child_process.spawn", "Java ProcessBuilder"
#: What the small C program measures, in the order of `enum way` in programs/peer.c.
PROGRAM = tuple(
    f"C program, {name}" for name in ("fork, execve", "vfork, execve", "posix_spawn", "fork alone")
)


class Peer:
    """A process that measures. Raises Unable, where it is made or asked, with the reason that it gives."""

    def __init__(
        self, names: Sequence[str], command: Sequence[str], *, suffix: str = "", counted: bool = False
    ) -> None:
        self.suffix = suffix
        #: What counts its memory, if it is to be counted; else why that cannot be.
        self.group: cgroup.Group | None = None
        self.uncounted = "it was not asked for"
        #: Ways that have been called so often that caches and compilers know them.
        self.warm: set[str] = set()
        self._names = names
        self._rest = b""
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), start_new_session=True
        )
        try:
            if counted:
                self._count()
            self._begin()
            self._heed(self._line())
        except BaseException:
            self.close()
            raise

    def _count(self) -> None:
        try:
            texts = (
                Path(f"/proc/self/{name}").read_text(encoding="utf-8") for name in ("mountinfo", "cgroup")
            )
            self.group = cgroup.Group(self.pid, *cgroup.home(*texts))
        except (Unable, OSError) as problem:
            self.uncounted = str(problem)

    def _begin(self) -> None:
        """Tell the process that it may begin, if it waits for that."""

    @property
    def ways(self) -> list[str]:
        """The names of what it measures, as in the results."""
        return [name + self.suffix for name in self._names]

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def question(self, measure: str, way: str, who: str, count: int, many: int) -> str:
        """Return the line that asks."""
        return "\t".join((measure, way.removesuffix(self.suffix), who, str(count), str(many)))

    def ask(self, measure: str, way: str, who: str, count: int, many: int = 1) -> list[int]:
        """Return the numbers that it answers with."""
        return [int(word) for word in self._told(self.question(measure, way, who, count, many)).split("\t")]

    def done(self) -> dict[str, int]:
        """Return what our reports say was done since it was last asked: strategy and proof, how often."""
        return {}

    def _told(self, question: str) -> str:
        self._say(question)
        return self._heed(self._line())

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - for mypy
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except OSError as problem:
            raise Unable(f"the process that measures has gone: {problem}") from problem

    @staticmethod
    def _heed(line: str) -> str:
        if line.startswith("! "):
            raise Unable(line[2:])
        return line

    def _line(self) -> str:
        """Return the next line. One that does not come in time is the end of the process."""
        assert self._process.stdout is not None  # noqa: S101 - for mypy
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not ready.select(PATIENCE):
                    self.close()
                    raise Unable(f"no answer within {PATIENCE:.0f} s")
                piece = os.read(self._process.stdout.fileno(), 65536)
                if not piece:
                    self.close()
                    raise Unable(f"the process that measures ended with {self._process.returncode}")
                self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def faults(self) -> int:
        """Return how many page faults it has had that needed no disk (minflt, proc_pid_stat(5))."""
        text = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[7])

    def resident_mib(self) -> int:
        """Return its resident set in MiB."""
        return machine.of_kib(f"/proc/{self.pid}/status", "VmRSS") >> 10

    def huge_mib(self) -> int:
        """Return how much of it is in huge pages, in MiB."""
        return machine.of_kib(f"/proc/{self.pid}/smaps_rollup", "AnonHugePages") >> 10

    def kept(self) -> int:
        """Return the bytes of all its descendants, shared pages by their shares (Pss)."""
        total, todo = 0, [self.pid]
        while todo:
            with contextlib.suppress(OSError, LookupError):
                for one in children(todo.pop()):
                    todo.append(one)
                    total += machine.of_kib(f"/proc/{one}/smaps_rollup", "Pss") << 10
        return total

    def close(self) -> None:
        """End it, and what it left running."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._process.returncode is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                select.select([pidfd], [], [], _GRACE)
            finally:
                os.close(pidfd)
            # It is not waited for yet, so the number is still that of its group: fork servers, or itself.
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        if self.group is not None:
            self.group.close()
            self.group = None
        if self._process.stdout is not None:
            self._process.stdout.close()


def children(pid: int) -> Iterator[int]:
    """Yield the children of a process (proc_tid_children(5))."""
    for task in os.listdir(f"/proc/{pid}/task"):
        for word in Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii").split():
            yield int(word)


class PythonPeer(Peer):
    """One of Python, which has our reports too."""

    def _begin(self) -> None:
        # Its helper heeds in which cgroup we are, so it must be started in the one where we stay.
        self._say("begin")

    def done(self) -> dict[str, int]:
        """Return what they say."""
        line = self._told("done\t-\t-\t0\t0")
        told = (one.rpartition("=") for one in line.split("\t") if one)
        return {way: int(times) for way, _, times in told}


class ProgramPeer(Peer):
    """The small C program: it knows its ways by number, and has one measure."""

    def question(self, measure: str, way: str, who: str, count: int, many: int) -> str:
        """Return the line that asks. Raises Unable for another measure."""
        if (measure, who, many) != ("exit", "self", 1):
            raise Unable("the C program measures the time until the end of the child only")
        return f"{PROGRAM.index(way)} {count}"

    def ask(self, measure: str, way: str, who: str, count: int, many: int = 1) -> list[int]:
        """Return what the others return, which tell the call too: -1, and the time until the end."""
        return [number for took in super().ask(measure, way, who, count, many) for number in (-1, took)]


class Maker(NamedTuple):
    """What makes a peer: a name for its absence, the MiB that it needs, how many ways it has, and how.

    ``make`` is told whether its memory is to be counted.
    """

    name: str
    needs: int
    ways: int
    make: Callable[[bool], Peer]


def _stamp(tools: Tools, name: str) -> str:
    """Return a file that every user may write to, for the program's beginning."""
    path = tools.where / f"stamp-{name}"
    path.touch()
    path.chmod(0o666)
    return str(path)


def _prefix(tools: Tools, place: Place) -> list[str]:
    """Return what keeps a process from huge pages, where the machine gives them unasked."""
    if place.pages == "small" and machine.huge_pages() == "always":
        return [tools.path("nohuge")]
    return []


def _needs(name: str, place: Place) -> int:
    return place.mib + _OVERHEAD.get(name, _OVERHEAD_OTHERS) + place.threads // 4


def python_peer(
    tools: Tools, place: Place, *, suffix: str = "", ledger: str | None = None, pool: int = 8
) -> Maker:
    """Return the maker of a Python process, with C's ways in it where there is a compiler."""

    def make(counted: bool) -> Peer:
        c_peer: str | None = None
        of_c: tuple[str, ...] = ()
        with contextlib.suppress(Unable):
            c_peer, of_c = tools.path("libpeer.so"), ways.C_WAYS
        given = {"target": tools.target, "stamp": _stamp(tools, f"python{suffix}"), **place._asdict()}
        given.update(c_peer=c_peer, ledger=ledger, pool=pool)
        code = "import sys; from safespawn.bench import worker; worker.main(sys.argv[1])"
        names = (*of_c, *STANDARD, *OURS, ways.NOTHING)
        command = [*_prefix(tools, place), *python(), "-c", code, json.dumps(given)]
        return PythonPeer(names, command, suffix=suffix, counted=counted)

    count = len(ways.C_WAYS) + len(STANDARD) + len(OURS)
    return Maker("Python", _needs("Python", place), count, make)


def _rust(tools: Tools, place: Place, counted: bool) -> Peer:
    words = [tools.target, _stamp(tools, "rust"), str(place.mib), str(place.threads), place.pages]
    return Peer([RUST], [*_prefix(tools, place), tools.path("Rust"), *words], counted=counted)


def _node(tools: Tools, place: Place, counted: bool) -> Peer:
    if place.pages == "huge" and machine.huge_pages() != "always":
        raise Unable("Node.js has no way to ask for huge pages")
    script = str(SOURCES / "peer.js")
    words = [script, tools.target, _stamp(tools, "node"), str(place.mib), str(place.threads)]
    return Peer([NODE], [*_prefix(tools, place), tools.path("Node.js"), *words], counted=counted)


def _java(tools: Tools, place: Place, counted: bool) -> Peer:
    heap = max(place.mib, 16)  # it starts with no less
    options = [f"-Xms{heap}m", f"-Xmx{heap}m", "-XX:+AlwaysPreTouch", "-XX:+UseSerialGC"]
    if place.pages == "huge":
        options.append("-XX:+UseTransparentHugePages")
    words = ["-cp", str(tools.where), "Peer", tools.target, _stamp(tools, "java"), str(place.threads)]
    return Peer([JAVA], [*_prefix(tools, place), tools.path("Java"), *options, *words], counted=counted)


def program(tools: Tools, place: Place) -> Maker:
    """Return the maker of the small C program."""

    def make(counted: bool) -> Peer:
        words = [tools.path("C"), tools.target, str(place.mib), place.pages]
        return ProgramPeer(PROGRAM, [*_prefix(tools, place), *words], counted=counted)

    return Maker("C program", place.mib + 2, len(PROGRAM), make)


def of_other_languages(tools: Tools, place: Place) -> list[Maker]:
    """Return the makers of those of Rust, Node.js and Java."""
    of = {"Rust": _rust, "Node.js": _node, "Java": _java}
    return [
        Maker(name, _needs(name, place), 1, functools.partial(make, tools, place))
        for name, make in of.items()
    ]
