"""What is measured where: the cells of each axis, and how much of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from . import AXES, ways
from .results import Place

#: Beyond this many MiB one process at a time would leave nothing for the machine; checked before each cell.
RESERVE_MIB = 1024

#: Ways whose children go by in one thread after another, or in a batch: those whose call and wait are apart.
BATCH_WAYS = (
    "C posix_spawn",
    "subprocess.Popen",
    "Rust Command",
    "Node.js child_process.spawn",
    "Java ProcessBuilder",
    "safespawn.spawn",
    "safespawn.spawn_many",
    "safespawn.spawn, clone",
    "safespawn.spawn, pool",
)
SPAWNER_WAYS = (
    "C posix_spawn",
    "C fork, execve",
    "subprocess.run",
    "os.posix_spawn",
    "Rust Command",
    "Java ProcessBuilder",
    "safespawn.spawn",
    "safespawn.run",
    "safespawn.spawn, fork",
    "safespawn.spawn, helper",
    "safespawn.spawn, pool",
)
#: Where pages matter: what copies page tables, and what does not.
PAGE_WAYS = (
    "C fork, execve",
    "C posix_spawn",
    "subprocess.run",
    "multiprocessing, fork",
    "Rust Command",
    "Java ProcessBuilder",
    "safespawn.spawn",
    "safespawn.run",
    "safespawn.spawn, fork",
)
#: Beside the ways of the small C program, for the tables of the question.
QUESTION_WAYS = ("subprocess.run", "safespawn.spawn", "safespawn.run", "safespawn.spawn, pool")
#: Those of the targets that are measured for them alone.
HANG_WAYS = ("subprocess.run", "os.posix_spawn", "safespawn.run")
FLAT_WAYS = ("C posix_spawn", "safespawn.spawn", "safespawn.run")
AUDIT_WAYS = ("safespawn.spawn", "safespawn.run")


@dataclass(frozen=True)
class Options:
    """How much to measure: sizes in MiB, counts, seconds for one measure in one place, and rounds.

    ``beside_mib``: the size where it is not what is varied. ``warm``: calls of each way before its first
    round.
    """

    axes: tuple[str, ...] = tuple(AXES)
    sizes: tuple[int, ...] = (10, 100, 500, 1024, 4096, 8192)
    threads: tuple[int, ...] = (1, 16, 64, 256)
    beside_mib: int = 100
    user_sizes: tuple[int, ...] = (10, 1024, 4096)
    page_sizes: tuple[int, ...] = (100, 1024)
    spawners: tuple[int, ...] = (1, 2, 4)
    batches: tuple[int, ...] = (1, 8, 64)
    question_sizes: tuple[int, ...] = (0, 100, 500, 1024, 4096)
    runs: int = 1000
    big_mib: int = 4096
    window_rounds: int = 800
    seconds: float = 2.0
    least: int = 3
    most: int = 400
    warm: int = 20


#: Enough to see that all of it works, in well under a minute or two.
QUICK = Options(
    sizes=(10, 200),
    threads=(1, 8),
    beside_mib=10,
    user_sizes=(10, 200),
    page_sizes=(200,),
    spawners=(1, 2),
    batches=(1, 8),
    question_sizes=(0, 100, 500),
    runs=100,
    big_mib=500,
    window_rounds=100,
    seconds=0.4,
    least=2,
    warm=5,
)


def told(options: Options) -> dict[str, Any]:
    """Return options as JSON has them."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()
    }


class Task(NamedTuple):
    """One measure: as whom, of how many, of which ways (None: of all that can be had)."""

    measure: str
    who: str = "self"
    many: int = 1
    ways: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Cell:
    """A place, the processes that are measured in it side by side, and what is measured of them.

    ``peers``: "all"; "python" alone; "question", with the small C program; "flat", with a process of 10 MiB;
    "audit", with one that has a ledger.
    """

    axis: str
    place: Place
    tasks: tuple[Task, ...]
    peers: str = "all"

    @property
    def title(self) -> str:
        """Say which one it is."""
        at = f"{self.place.mib} MiB, {self.place.threads} thread{'s' * (self.place.threads > 1)}"
        return f"{self.axis}: {at}, {self.place.pages} pages"


def _tasks(*measures: str, who: str = "self", ways: tuple[str, ...] | None = None) -> tuple[Task, ...]:
    return tuple(Task(measure, who, 1, ways) for measure in measures)


def _many(measure: str, counts: Sequence[int], ways: tuple[str, ...]) -> tuple[Task, ...]:
    return tuple(Task(measure, "self", count, ways) for count in counts)


def _question(options: Options) -> Iterator[Cell]:
    for pages in ("small", "huge"):
        for mib in options.question_sizes:
            if mib == 0 and pages == "huge":
                continue
            tasks = [Task("exit", ways=QUESTION_WAYS)]
            if (mib, pages) == (100, "small"):
                tasks.append(Task("runs", "self", options.runs, QUESTION_WAYS))
            yield Cell("question", Place(mib, 1, pages), tuple(tasks), "question")


def _targets(options: Options) -> Iterator[Cell]:
    yield Cell("targets", Place(10), (Task("hang", ways=HANG_WAYS),), "python")
    yield Cell("targets", Place(options.big_mib), (Task("exit", ways=FLAT_WAYS),), "flat")
    yield Cell("targets", Place(10), (Task("exit", ways=AUDIT_WAYS),), "audit")


def cells(options: Options) -> list[Cell]:
    """Return what to measure, in the order in which it is done: small places before large ones.

    The core's own window in C is no cell: it has a program of its own (:mod:`safespawn.bench.window`).
    """
    whole = _tasks("exit", "exec", "stall", "faults", "memory")
    made = {
        "size": [Cell("size", Place(mib), whole) for mib in options.sizes],
        "threads": [
            Cell("threads", Place(options.beside_mib, count), _tasks("exit", "stall"))
            for count in options.threads
        ],
        "user": [
            Cell("user", Place(mib), _tasks("exit", "stall", who="other")) for mib in options.user_sizes
        ],
        "pages": [
            Cell(
                "pages",
                Place(mib, 1, pages),
                _tasks("exit", "faults", ways=PAGE_WAYS),
                "python" if pages == "prepared" else "all",
            )
            for mib in options.page_sizes
            for pages in ("small", "huge", "prepared")
        ],
        "spawners": [
            Cell("spawners", Place(options.beside_mib), _many("rate", options.spawners, SPAWNER_WAYS))
        ],
        "batch": [Cell("batch", Place(options.beside_mib), _many("batch", options.batches, BATCH_WAYS))],
        "question": list(_question(options)),
        "targets": list(_targets(options)),
    }
    return [cell for axis in options.axes for cell in made[axis]]


def takes_part(task: Task, way: str) -> bool:
    """Return whether a way is measured for a task.

    What only makes sense in a batch, or as a yardstick, is not.
    """
    plain = way.partition(" | ")[0]
    if task.ways is not None:
        return plain in task.ways or plain.startswith("C program")
    if plain == ways.NOTHING:
        return task.measure == "stall" and task.who == "self"
    return plain != "safespawn.spawn_many"
