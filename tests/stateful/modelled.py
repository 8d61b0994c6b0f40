"""What the models of all machines share: the sides of forks, and how an example begins and ends."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

import driving
import helpers
import ledger_check
from driving import Link, Raised

sys.path.append(str(helpers.TESTS / "soak"))
import accounts
from book import Asked

#: How many examples of how many steps each machine does: few and always the same ones in the ordinary tests, else
#: so many, and other ones each time (`make stateful`).
LONG = int(os.environ.get("SAFESPAWN_STATEFUL", "0"))


@dataclass
class Side:
    """One process: a worker of the zygote, or the child of a fork."""

    link: Link
    parent: Side | None = None
    threads: int = 0
    #: Forked beside other threads, one of which may have held the loader's lock; or by one that was.
    is_unsure: bool = False
    is_over: bool = False
    #: What machines keep of it.
    more: dict[str, Any] = field(default_factory=dict)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have it do something. Raises Raised."""
        return self.link.ask(do, **arguments)

    def raises(self, do: str, **arguments: Any) -> Raised:
        """Have it do something that it must raise for, and return what that was."""
        try:
            value = self.ask(do, **arguments)
        except Raised as problem:
            return problem
        raise AssertionError(f"{do} {arguments} was to raise, and returned {value!r}")

    @property
    def proof(self) -> str | None:
        """What proves that its children may share its memory."""
        if not self.threads:
            return "single-threaded"
        if self.more.get("sealed"):
            return "sealed"
        return None if self.is_unsure else "locked"

    def refuses(self, guard: str, do: str, **arguments: Any) -> None:
        """Have it do something that a guard must refuse."""
        problem = self.raises(do, **arguments)
        assert (problem.name, problem.guard, problem.outcome) == ("UnsafeSpawn", guard, "refused")


class Machine(RuleBasedStateMachine):
    """A machine with sides, and a book of spawns that the ledger is held against at the end."""

    zygote: ClassVar[driving.Zygote]
    #: With keys the chains of forks are derived from their parents'.
    keyed: ClassVar[bool] = False
    most_sides = 3

    def __init__(self) -> None:
        super().__init__()
        self.where = Path(tempfile.mkdtemp(prefix="safespawn-stateful-"))
        self.path, self.keys, self.key = self.where / "ledger", self.where / "keys", None
        if self.keyed:
            from safespawn.audit import keys as keys_of

            self.key = keys_of.initialise(self.keys)
        self.asked: dict[str, Asked] = {}
        self.sides = [Side(self.zygote.worker())]
        self.open(self.sides[0])
        self.begun(self.sides[0])

    def open(self, side: Side) -> None:
        """Open the ledger."""
        side.ask("open", path=str(self.path), mode="require", keys=str(self.keys) if self.keyed else "")

    def begun(self, side: Side) -> None:
        """Take note of a side that is there now."""

    def token(self, way: str) -> str:
        """Return the last word of the next program."""
        token = f"soak-{len(self.asked)}"
        self.asked[token] = Asked(way, None)
        return token

    def told(self, token: str, result: str) -> None:
        """Take note of what a caller was told."""
        self.asked[token] = self.asked[token]._replace(result=result)

    def any_side(self, number: int) -> Side:
        """Return one of those that there are."""
        return self.sides[number % len(self.sides)]

    def fork_side(self, side: Side) -> Side | None:
        """Fork one, unless there are enough."""
        if len(self.sides) == self.most_sides:
            return None
        is_unsure = side.is_unsure or side.threads > 0
        child = Side(side.link.fork(), side, is_unsure=is_unsure, more={})
        self.sides.append(child)
        return child

    def end_side(self, side: Side, *, settle: bool = True) -> None:
        """End one that has no forks any more: nothing of it may be left."""
        if settle:
            self.settled(side)
        children = [str(one.link.pid) for one in self.sides if one.parent is side]
        left = side.ask("leave", keep=[])
        assert left["children"] == children, (
            f"children: {left['children']} are left, and forks are {children}"
        )
        if side.parent is None:
            assert left["after"] == left["before"], f"descriptors: {set(left['after']) ^ set(left['before'])}"
        side.link.close()
        self.sides.remove(side)
        if side.parent is not None:
            assert side.parent.ask("reap", pid=side.link.pid) == 0

    def settled(self, side: Side) -> None:
        """Bring what belongs to a side to its end."""

    def verify(self) -> accounts.Ledger:
        """Look at the ledger: whole, genuine, nothing lost; return what is in it."""
        ledger_check.verified(self.path, self.key, self.keys)
        found = ledger_check.check(self.path, self.key, self.keys if self.key else None)
        assert found.lost == 0 and found.torn == []
        return accounts.read(self.path)

    def accounts(self, ledger: accounts.Ledger) -> list[str]:
        """Return what is otherwise in the ledger than in the book."""
        return accounts.compare(self.asked, ledger)

    def teardown(self) -> None:
        """End all sides, the youngest first, then look at the ledger."""
        try:
            if sys.exc_info()[0] is not None:
                return  # a step has failed: what is said of that must not be lost
            for side in reversed(list(self.sides)):
                self.end_side(side)
            ledger = self.verify()
            opened, closed = ledger.events["chain.open"], ledger.events["chain.close"]
            assert opened == closed, f"chains: {opened} were begun and {closed} closed"
            found = self.accounts(ledger)
            assert found == [], f"accounts: {found}"
        finally:
            for side in self.sides:
                side.link.close()
            shutil.rmtree(self.where)


@contextmanager
def driven(machine: type[Machine], *plants: str, path: Path | None = None) -> Iterator[type[Machine]]:
    """A machine with a zygote of its own."""
    with driving.zygote(*plants, path=path) as zygote:
        yield type(machine.__name__, (machine,), {"zygote": zygote})


def _settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=LONG or examples,
        stateful_step_count=2 * steps if LONG else steps,
        derandomize=not LONG,
        database=None,
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def run(machine: type[Machine], examples: int, steps: int = 30) -> None:
    """Run a machine over many interleavings of its steps."""
    with driven(machine) as made:
        run_state_machine_as_test(made, settings=_settings(examples, steps))


def finds(machine: type[Machine], plant: str, path: Path | None = None, **more: Any) -> str:
    """Run a machine on a planted fault and return what it says; it must find it. Without shrinking: it is known."""
    from hypothesis import Phase

    with driven(machine, plant, path=path) as made:
        once = settings(_settings(60, 30), phases=[Phase.generate], max_examples=60, derandomize=True)
        try:
            run_state_machine_as_test(made, settings=once)
        except Exception as problem:  # noqa: BLE001 - whichever way it shows
            return f"{type(problem).__name__}: {problem}"
    raise AssertionError(f"{plant} was not found")


Rule = Callable[..., None]
