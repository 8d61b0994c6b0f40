"""A model of helpers: who may be asked for what, when one is lost, shrunk, retired, closed, or our parent's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from modelled import Machine, Side

NUMBERS = st.integers(0, 11)
NOBODY = 65534
SHELL = "/bin/sh"
#: The kernel knows it by its real path: what is allowed is named by that or by a link.
POLICIES = {"any": None, "shell": [SHELL], "other": ["/bin/true"]}


@dataclass
class Helper:
    """One helper: alive, ``killed``, ``retired`` or ``closed``; with what it may start, in the words of POLICIES."""

    name: str
    pid: int
    pool: int
    restart: bool
    owner: Side
    allowed: set[str]
    state: str = "alive"
    is_told: bool = False
    shrunk: int = 0

    @property
    def is_asked(self) -> bool:
        """Whether a spawn that names it is carried out, or another started for it."""
        return self.state == "alive" or (self.state == "killed" and self.restart)


class Helpers(Machine):
    """Up to three helpers in each process."""

    def begun(self, side: Side) -> None:
        """Each side has helpers, which a fork inherits as handles of no use; and rights, or none any more."""
        side.more.setdefault("helpers", [])
        side.more.setdefault("dropped", False)
        self.lost = getattr(self, "lost", 0)
        self.shrinks = getattr(self, "shrinks", 0)

    def helper(self, side: Side, number: int) -> Helper | None:
        """Return one that a side has a handle of."""
        several = side.more["helpers"]
        return several[number % len(several)] if several else None

    def notice(self, helper: Helper) -> None:
        """The loss of a helper is recorded once."""
        if helper.state in ("killed", "retired") and not helper.is_told:
            helper.is_told = True
            self.lost += 1

    # ------------------------------------------------------------------ steps

    @initialize(pool=st.integers(0, 1), restart=st.booleans())
    def first(self, pool: int, restart: bool) -> None:
        """There is one from the beginning: most steps are about one."""
        self.start(0, pool, "any", restart)

    @rule(
        on=NUMBERS,
        pool=st.integers(0, 2),
        allow=st.sampled_from(["any", "shell", "other"]),
        restart=st.booleans(),
    )
    def start(self, on: int, pool: int, allow: str, restart: bool) -> None:
        """One more starts, also after a drop: it has no more than we have."""
        side = self.any_side(on)
        if sum(one.owner is side for one in side.more["helpers"]) == 2:
            return
        name = f"helper {len(self.asked)} {len(side.more['helpers'])}"
        more = {} if POLICIES[allow] is None else {"allow": POLICIES[allow]}
        pid = side.ask("helper", name=name, pool=pool, restart=restart, **more)
        side.more["helpers"].append(Helper(name, pid, pool, restart, side, {allow}))

    @rule(on=NUMBERS, which=NUMBERS, strategy=st.sampled_from(["helper", "helper", "pool"]))
    def spawn(self, on: int, which: int, strategy: str) -> None:
        """A spawn that names one is carried out by it, or refused: by its policy, or because it is of no use."""
        side = self.any_side(on)
        helper = self.helper(side, which)
        if helper is None:
            return
        token = self.token(strategy)
        asked = {
            "name": token,
            "face": "run",
            "token": token,
            "code": 3,
            "strategy": strategy,
            "helper": helper.name,
        }
        is_ours = helper.owner is side
        if is_ours:
            self.notice(helper)
        if is_ours and helper.is_asked and helper.state == "killed":
            helper.state, helper.is_told = "alive", False  # another was started
        if not is_ours or not helper.is_asked or (strategy == "pool" and not helper.pool):
            side.refuses("alone-or-apart", "spawn", **asked)
            self.told(token, "nothing:refused")
        elif "other" in helper.allowed:
            side.refuses("helper-obeys", "spawn", **asked)
            self.told(token, "nothing:refused")
        else:
            seen = side.ask("spawn", **asked)
            assert (seen["code"], seen["strategy"], seen["proof"]) == (3, strategy, None)
            self.told(token, "code:3")
        helper.pid = (
            side.ask("helper_status", name=helper.name)["pid"] or helper.pid if is_ours else helper.pid
        )

    @rule(on=NUMBERS, which=NUMBERS, allow=st.sampled_from(["shell", "other"]))
    def shrink(self, on: int, which: int, allow: str) -> None:
        """It can only be given less; a lost one not any more, but one that is started in its place obeys."""
        side = self.any_side(on)
        helper = self.helper(side, which)
        if helper is None or helper.shrunk == 7:
            return
        if helper.owner is not side or helper.state == "closed":
            assert side.raises("shrink", name=helper.name, allow=POLICIES[allow]).name == "RuntimeError"
            return
        helper.shrunk += 1
        helper.allowed.add(allow)
        if helper.state == "alive":
            side.ask("shrink", name=helper.name, allow=POLICIES[allow])
            self.shrinks += 1
        else:
            side.raises("shrink", name=helper.name, allow=POLICIES[allow])

    @rule(on=NUMBERS, which=NUMBERS)
    def kill(self, on: int, which: int) -> None:
        """One is killed, by anybody."""
        side = self.any_side(on)
        alive = [one for one in side.more["helpers"] if one.owner is side and one.state == "alive"]
        if alive:
            helper = alive[which % len(alive)]
            side.ask("kill_helper", name=helper.name)
            helper.state = "killed"

    @rule(on=NUMBERS, which=NUMBERS)
    def close(self, on: int, which: int) -> None:
        """One is closed: also twice, also in a fork, where that ends nothing."""
        side = self.any_side(on)
        helper = self.helper(side, which)
        if helper is None:
            return
        side.ask("end_helper", name=helper.name)
        if helper.owner is side:
            self.notice(helper)
            helper.state = "closed"

    @rule(on=st.integers(0, 30))
    def drop(self, on: int) -> None:
        """Who drops its rights has no helper that keeps them. Seldom: it is for good."""
        if on > 11 or (side := self.any_side(on)).more["dropped"]:
            return
        for call in ("setresgid", "setresuid"):
            side.ask("change", call=call, arguments=[NOBODY] * 3)
        side.more["dropped"] = True
        for helper in side.more["helpers"]:
            if helper.owner is side and helper.state == "alive":
                side.ask("await_helper", name=helper.name)
                helper.state = "retired"
            elif helper.owner is side and helper.state == "killed":
                helper.restart = False  # another would have less

    @rule(on=NUMBERS, count=st.integers(0, 1))
    def threads(self, on: int, count: int) -> None:
        """Other threads come and go."""
        side = self.any_side(on)
        side.ask("threads", count=count)
        side.threads = count

    @rule(on=NUMBERS)
    def fork(self, on: int) -> None:
        """A fork has its parent's handles, and no helper."""
        side = self.any_side(on)
        child = self.fork_side(side)
        if child is not None:
            child.more.update(helpers=list(side.more["helpers"]), dropped=side.more["dropped"])
            self.begun(child)

    # ------------------------------------------------------------------ what holds

    @invariant()
    def helpers_are_as_they_should(self) -> None:
        """Status tells what the model knows; no child is there but helpers, what they park, and forks."""
        for side in self.sides:
            forks = sum(one.parent is side for one in self.sides)
            ours = [one for one in side.more["helpers"] if one.owner is side]
            alive = [one for one in ours if one.state == "alive"]
            most = forks + sum(1 + one.pool for one in alive)
            # What was parked by a helper that has ended, or under an older policy, is gone in a moment.
            running = side.ask("few_children", most=most)
            assert {str(one.pid) for one in alive} <= set(running)
            assert len(alive) + forks <= len(running) <= most, f"children: {running}, at most {most}"
            for helper in side.more["helpers"]:
                lost = side.ask("helper_status", name=helper.name)["lost"]
                assert bool(lost) == (helper.owner is not side or helper.state != "alive"), (helper, lost)

    def settled(self, side: Side) -> None:
        """The end of a worker closes what is open; and what was lost is told of."""
        for helper in side.more["helpers"]:
            if helper.owner is side:
                side.ask("end_helper", name=helper.name)
                self.notice(helper)
                helper.state = "closed"

    def verify(self) -> Any:
        """Every loss and every policy that was added has left one record."""
        ledger = super().verify()
        told = ledger.events["helper.lost"], ledger.events["helper.shrunk"]
        assert told == (self.lost, self.shrinks), f"told: {told}, not {(self.lost, self.shrinks)}"
        return ledger
