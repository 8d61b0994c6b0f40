"""Ways to start one program, over all faces and strategies. Each returns what its caller was told, for the book."""

from __future__ import annotations

import asyncio
import os
import queue
import random
import subprocess
from collections.abc import Callable

import safespawn
from safespawn import aio
from safespawn import subprocess as ours

from book import Book

STRATEGIES = ("auto", "vfork", "clone", "fork", "launcher", "helper", "pool", "posix_spawn")
NOBODY = 65534
LONG = "exec sleep 60"

#: Programs that run until somebody kills them, and the tokens of these.
Sleepers = queue.Queue  # of (Process, token)


def argv_for(token: str, dice: random.Random) -> list[str]:
    """Return a short program: it ends with 0 or 3."""
    return ["/bin/true", token] if dice.random() < 0.7 else ["/bin/sh", "-c", "exit 3", token]


def _told(call: Callable[[], int]) -> str:
    try:
        return f"code:{call()}"
    except subprocess.TimeoutExpired:
        return "timeout"  # it was killed, by us or just before
    except OSError as problem:
        return nothing(problem)


def nothing(problem: OSError) -> str:
    """Say that nothing ran. The standard faces raise without a report."""
    report = getattr(problem, "report", None)
    return f"nothing:{report.outcome if report is not None else '?'}"


def _run(argv: list[str], **options: object) -> int:
    return safespawn.run(argv, **options).returncode


def _spawn(argv: list[str], **options: object) -> int:
    with safespawn.spawn(argv, stdout=safespawn.PIPE, **options) as process:
        process.communicate()
    return process.returncode


def _popen(argv: list[str], **options: object) -> int:
    with ours.Popen(argv, stdout=ours.PIPE, **options) as process:
        process.communicate()
    return process.returncode


_FACES = {"run": _run, "spawn": _spawn, "Popen": _popen}


def by_strategy(book: Book, dice: random.Random) -> None:
    """Start one by a strategy that is named, by one of the three faces that take all options."""
    face, strategy = dice.choice(list(_FACES)), dice.choice(STRATEGIES)
    token = book.begin(f"{face} {strategy}")
    book.end(token, _told(lambda: _FACES[face](argv_for(token, dice), strategy=strategy)))


def as_somebody(book: Book, dice: random.Random) -> None:
    """Start one as another user."""
    token = book.begin("run user")
    more = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    book.end(token, _told(lambda: _run(argv_for(token, dice), **more)))


def missing(book: Book, dice: random.Random) -> None:
    """Ask for a program that is not there."""
    token = book.begin("run missing")
    book.end(token, _told(lambda: _run(["/no/such/program", token])))


def late(book: Book, dice: random.Random) -> None:
    """Start one that a time-out ends."""
    token = book.begin("run timeout")
    book.end(token, _told(lambda: _run(["/bin/sh", "-c", LONG, token], timeout=0.02)))


def dropped(book: Book, dice: random.Random) -> None:
    """Start one, and forget its handle."""
    token = book.begin("spawn dropped")
    try:
        safespawn.spawn(["/bin/true", token])
        book.end(token, "dropped")
    except OSError as problem:
        book.end(token, nothing(problem))


def many(book: Book, dice: random.Random) -> None:
    """Start several side by side."""
    tokens = [book.begin("spawn_many") for _ in range(4)]
    got = safespawn.spawn_many([argv_for(token, dice) for token in tokens], return_errors=True)
    for token, one in zip(tokens, got, strict=True):
        book.end(token, nothing(one) if isinstance(one, OSError) else f"code:{one.wait()}")


def standard(book: Book, dice: random.Random) -> None:
    """Start one as code does that knows nothing of us: subprocess, under install()."""
    token = book.begin("subprocess.run")
    book.end(token, _told(lambda: subprocess.run(argv_for(token, dice), check=False, stdout=-1).returncode))


def by_system(book: Book, dice: random.Random) -> None:
    """os.system, under install(): a program that a signal kills is told of as dash tells it."""
    token = book.begin("os.system")

    def call() -> int:
        code = os.waitstatus_to_exitcode(os.system(f"/bin/true {token}"))
        return 128 - code if 128 < code < 128 + 65 else code

    book.end(token, _told(call))


def by_posix_spawn(book: Book, dice: random.Random) -> None:
    """os.posix_spawn and os.waitpid, under install()."""
    token = book.begin("os.posix_spawn")

    def call() -> int:
        argv = argv_for(token, dice)
        return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(argv[0], argv, os.environ), 0)[1])

    book.end(token, _told(call))


async def _coroutine(book: Book, dice: random.Random) -> None:
    token = book.begin("aio")
    try:
        process = await aio.create_subprocess_exec(*argv_for(token, dice), stdout=aio.PIPE)
    except OSError as problem:
        book.end(token, nothing(problem))
        return
    await process.communicate()
    book.end(token, f"code:{process.returncode}")


async def several(book: Book, dice: random.Random) -> None:
    """Start two in a loop, side by side."""
    await asyncio.gather(_coroutine(book, dice), _coroutine(book, dice))


def sleeper(book: Book, dice: random.Random, asleep: Sleepers) -> None:
    """Start one that runs until somebody kills it."""
    token = book.begin("spawn sleeper")
    try:
        asleep.put((safespawn.spawn(["/bin/sh", "-c", LONG, token]), token))
    except OSError as problem:
        book.end(token, nothing(problem))


#: With their weights. What a fork does is among the first three: it has no helper, and nobody takes over its sleepers.
JOBS = (
    (by_strategy, 12), (as_somebody, 2), (standard, 2), (by_system, 1), (by_posix_spawn, 1), (many, 1),
    (missing, 1), (late, 1), (dropped, 1),
)  # fmt: skip
IN_FORKS = (by_strategy, as_somebody, standard)
