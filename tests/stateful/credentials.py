"""A model of the credential lock and the seal: changes that are allowed and refused, before and after, on both sides of a fork."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from modelled import Machine, Side

NUMBERS = st.integers(0, 11)
NOBODY, SOMEBODY = 65534, 1000
#: Calls that change ids, by whom, with numbers only.
CALLS = [
    ("seteuid", [NOBODY]), ("seteuid", [0]), ("seteuid", [0]), ("setuid", [0]), ("setuid", [NOBODY]),
    ("setresuid", [NOBODY] * 3), ("setresuid", [0, NOBODY, 0]), ("setegid", [NOBODY]), ("setegid", [0]),
    ("setresgid", [NOBODY] * 3), ("setgroups", [[]]), ("libc.seteuid", [NOBODY]), ("libc.seteuid", [0]),
    ("libc.setegid", [NOBODY]),
]  # fmt: skip


class Credentials(Machine):
    """Who a process is, how often it has changed that, and what its children are."""

    def begun(self, side: Side) -> None:
        """Each side has ids (real, effective, saved), a seal or none, and what the lock has counted."""
        self.changes = getattr(self, "changes", 0)
        seen = side.ask("state")
        if side.parent is None:
            side.more.update(uids=seen["uids"], gids=seen["gids"], sealed=False)
        side.more["lock"] = seen["lock"]

    @staticmethod
    def applied(side: Side, call: str, arguments: list[Any]) -> dict[str, list[int]] | None:
        """Return what a call changes, None if it is refused (setuid(2), setresuid(2), setgroups(2))."""
        name = call.removeprefix("libc.")
        kind = "uids" if "uid" in name else "gids"
        ids, is_root = side.more[kind], side.more["uids"][1] == 0
        if side.more["sealed"] or (name == "setgroups" and not is_root):
            return None
        if name == "setgroups":
            return {}
        wanted = arguments if len(arguments) == 3 else [None, arguments[0], None]
        if name == "setuid" and is_root:
            wanted = [arguments[0]] * 3
        if not is_root and any(one is not None and one not in ids for one in wanted):
            return None
        if name == "setuid" and not is_root and arguments[0] not in (ids[0], ids[2]):
            return None  # not to what is effective only
        return {kind: [old if new is None else new for old, new in zip(ids, wanted, strict=True)]}

    def counted(self, side: Side) -> None:
        """A call of the family is counted once, whatever came of it; the epoch moves before and after it."""
        self.changes += 1
        lock = side.more["lock"]
        lock["changes"] += 1
        lock["epoch"] += 2

    # ------------------------------------------------------------------ steps

    @rule(on=NUMBERS, what=st.sampled_from(CALLS))
    def change(self, on: int, what: tuple[str, list[Any]]) -> None:
        """A change is made, or refused as the kernel refuses it; under the seal all are."""
        side, (call, arguments) = self.any_side(on), what
        expected = self.applied(side, call, arguments)
        if expected is None:
            problem = side.raises("change", call=call, arguments=arguments)
            assert (problem.name, problem.errno) == ("PermissionError", 1)
        else:
            side.ask("change", call=call, arguments=arguments)
            side.more.update(expected)
        self.counted(side)

    @rule(on=NUMBERS)
    def bracket(self, on: int) -> None:
        """Inside a bracket there is one changer, and no spawner."""
        side = self.any_side(on)
        assert side.ask("bracket") == [0, 1]
        self.counted(side)

    @rule(on=st.integers(0, 40))
    def seal(self, on: int) -> None:
        """Only root can seal; then nobody changes anything any more. Seldom: most steps are about what is before."""
        if on > 11:
            return
        side = self.any_side(on)
        if side.more["sealed"]:
            side.ask("seal")
        elif side.more["uids"][1] == 0:
            side.ask("seal")
            side.more["sealed"] = True
        else:
            assert side.raises("seal").name == "PermissionError"
        self.counted(side)

    @rule(on=NUMBERS, count=st.integers(0, 2))
    def threads(self, on: int, count: int) -> None:
        """Other threads come and go."""
        side = self.any_side(on)
        side.ask("threads", count=count)
        side.threads = count

    @rule(on=NUMBERS)
    def fork(self, on: int) -> None:
        """The child has ids and seal of its parent, and counts for itself."""
        side = self.any_side(on)
        child = self.fork_side(side)
        if child is not None:
            child.more = {name: side.more[name] for name in ("uids", "gids", "sealed")}
            self.begun(child)

    @rule(on=NUMBERS, strategy=st.sampled_from(["auto", "auto", "vfork", "clone", "fork"]))
    def spawn(self, on: int, strategy: str) -> None:
        """A child that stays what we are shares our memory: one thread, the seal, or the lock proves that it may."""
        side = self.any_side(on)
        token = self.token(strategy)
        if side.proof is None and strategy in ("vfork", "clone"):
            side.refuses("alone-or-apart", "ids", token=token, strategy=strategy)
            self.told(token, "nothing:refused")
            return
        seen = side.ask("ids", token=token, strategy=strategy)
        used = strategy if strategy != "auto" else "fork" if side.proof is None else "vfork"
        assert (seen["strategy"], seen["proof"]) == (used, None if used == "fork" else side.proof)
        uids, gids = side.more["uids"], side.more["gids"]
        assert seen["ids"] == [uids[1], uids[0], gids[1], gids[0]]
        self.told(token, "code:0")

    @rule(on=NUMBERS, strategy=st.sampled_from(["auto", "vfork", "launcher", "fork"]))
    def spawn_as(self, on: int, strategy: str) -> None:
        """A child that becomes somebody else never does so on our memory, and only root's can."""
        side = self.any_side(on)
        token = self.token(f"{strategy} user")
        asked = {
            "token": token,
            "strategy": strategy,
            "user": SOMEBODY,
            "group": SOMEBODY,
            "extra_groups": [],
        }
        is_root, is_sealed = side.more["uids"][1] == 0, side.more["sealed"]
        outlives = len({*side.more["uids"][1:], *side.more["gids"][1:]}) == 1 or (
            side.more["uids"][1] == side.more["uids"][2] and side.more["gids"][1] == side.more["gids"][2]
        )
        if strategy == "vfork" or (strategy == "launcher" and (is_sealed or not outlives)):
            side.refuses("drop-apart", "ids", **asked)
            self.told(token, "nothing:refused")
        elif strategy == "launcher" and side.proof is None:
            side.refuses("alone-or-apart", "ids", **asked)
            self.told(token, "nothing:refused")
        elif not is_root:
            problem = side.raises("ids", **asked)
            assert (problem.name, problem.outcome) == ("PermissionError", "failed")
            self.told(token, "nothing:failed")
        else:
            seen = side.ask("ids", **asked)
            assert seen["ids"] == [SOMEBODY] * 4
            is_fork = strategy == "fork" or is_sealed or not outlives or side.proof is None
            assert seen["strategy"] == ("fork" if is_fork else "launcher")
            self.told(token, "code:0")

    # ------------------------------------------------------------------ what holds

    @invariant()
    def everybody_is_as_they_should(self) -> None:
        """Ids are those of the model, nobody is in the lock, and it has counted what was done, no more."""
        for side in self.sides:
            seen = side.ask("state")
            assert (seen["uids"], seen["gids"]) == (side.more["uids"], side.more["gids"])
            assert seen["lock"] == {
                **side.more["lock"],
                "state": "armed",
                "spawners": 0,
                "changers": 0,
                "changer_waits": False,
                "overlaps": 0,
            }

    def settled(self, side: Side) -> None:
        """What a fork changes is recorded with its first spawn: until then it may be there for an exec only."""
        token = self.token("last")
        side.ask("ids", token=token)
        self.told(token, "code:0")

    def verify(self) -> Any:
        """Every change has left one record."""
        ledger = super().verify()
        assert ledger.events["cred.change"] == self.changes
        return ledger
