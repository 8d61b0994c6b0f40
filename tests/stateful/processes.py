"""A model of Process and Popen: programs that wait, end, are stopped, killed, dropped, and looked at from both sides of a fork."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from modelled import Machine, Side

NUMBERS = st.integers(0, 11)
STOP, CONT = "19", "18"


@dataclass
class Program:
    """One program: ``running``, ``stopped``, ``ended`` (nobody has reaped it) or ``reaped``."""

    name: str
    pid: int
    token: str
    face: str
    owner: Side
    state: str = "running"
    code: int | None = None

    def ends(self, code: int) -> None:
        self.state, self.code = "ended", code

    @property
    def runs(self) -> bool:
        return self.state in ("running", "stopped")


class Processes(Machine):
    """Handles in one process and in its forks."""

    def begun(self, side: Side) -> None:
        """Each side has handles by name, with the code that they know; and dropped ones by how they are looked after."""
        side.more.setdefault("codes", {})
        side.more["dropped"] = []
        self.programs = getattr(self, "programs", {})

    def handle(self, side: Side, number: int) -> Program | None:
        """Return a program of which a side has a handle."""
        names = list(side.more["codes"])
        return self.programs[names[number % len(names)]] if names else None

    def reap(self, program: Program, side: Side) -> None:
        program.state = "reaped"
        self.told(program.token, f"code:{program.code}")
        if program.name in side.more["codes"]:
            side.more["codes"][program.name] = program.code

    def look_after(self, side: Side, *, popen: bool) -> None:
        """A spawn reaps what was dropped and has ended; dropped Popens are looked at by the next Popen."""
        for program in list(side.more["dropped"]):
            if program.state == "ended" and (popen or program.face == "spawn"):
                self.reap(program, side)
                side.more["dropped"].remove(program)

    # ------------------------------------------------------------------ steps

    @initialize(forks=st.booleans())
    def first(self, forks: bool) -> None:
        """There is a program of each kind from the beginning, and perhaps a fork: most steps are about these."""
        for face in ("spawn", "Popen"):
            self.spawn(0, face, "auto")
        if forks:
            self.fork(0)

    @rule(
        on=NUMBERS,
        face=st.sampled_from(["spawn", "Popen"]),
        strategy=st.sampled_from(["auto", "vfork", "clone", "fork", "launcher", "posix_spawn"]),
    )
    def spawn(self, on: int, face: str, strategy: str) -> None:
        """Start one that waits."""
        side = self.any_side(on)
        token = self.token(f"{face} {strategy}")
        asked = {"name": token, "face": face, "token": token, "strategy": strategy}
        if side.proof is None and strategy not in ("auto", "fork"):
            side.refuses("alone-or-apart", "spawn", **asked)
            self.told(token, "nothing:refused")
            self.look_after(side, popen=face == "Popen")
            return
        seen = side.ask("spawn", **asked)
        used = strategy if strategy != "auto" else "fork" if side.proof is None else "vfork"
        assert (seen["strategy"], seen["proof"]) == (used, None if used == "fork" else side.proof)
        self.look_after(side, popen=face == "Popen")
        self.programs[token] = Program(token, seen["pid"], token, face, side)
        side.more["codes"][token] = None

    @rule(on=NUMBERS, code=st.integers(0, 3))
    def run(self, on: int, code: int) -> None:
        """Run one to its end."""
        side = self.any_side(on)
        token = self.token("run")
        assert side.ask("spawn", name=token, face="run", token=token, code=code)["code"] == code
        self.told(token, f"code:{code}")
        self.look_after(side, popen=False)

    @rule(on=NUMBERS)
    def missing(self, on: int) -> None:
        """A program that is not there raises, and is recorded as that."""
        side = self.any_side(on)
        token = self.token("missing")
        problem = side.raises("missing", token=token)
        assert (problem.name, problem.outcome) == ("FileNotFoundError", "failed")
        self.told(token, "nothing:failed")
        self.look_after(side, popen=False)

    @rule(on=NUMBERS, which=NUMBERS, code=st.integers(0, 3))
    def go(self, on: int, which: int, code: int) -> None:
        """One ends, told by any side that has its pipe; nobody has reaped it yet."""
        side = self.any_side(on)
        program = self.handle(side, which)
        if program is not None and program.state == "running":
            side.ask("go", name=program.name, code=code)
            program.owner.ask("await_end", pid=program.pid)
            program.ends(code)

    @rule(on=NUMBERS, which=NUMBERS, how=st.sampled_from(["kill", "terminate", "kill_tree", STOP, CONT]))
    def signal(self, on: int, which: int, how: str) -> None:
        """Signals reach a child of this process that runs, nobody else's, and none that was reaped."""
        side = self.any_side(on)
        program = self.handle(side, which)
        if program is None or (how == "terminate" and program.state == "stopped"):
            return  # it would pend until it goes on
        known, is_popen = side.more["codes"][program.name], program.face == "Popen"
        if program.owner is not side and (not is_popen or (how == "kill_tree" and known is None)):
            assert side.raises("signal", name=program.name, how=how).name == "ChildProcessError"
            return
        side.ask("signal", name=program.name, how=how)
        if program.owner is not side:
            if how != "kill_tree":
                side.more["codes"][program.name] = (
                    0 if known is None else known
                )  # as the standard class has it
        elif not program.runs:
            if program.state == "ended" and is_popen and how != "kill_tree":
                self.reap(program, side)  # it looks first
        elif how == STOP:
            side.ask("await_stop", pid=program.pid)
            program.state = "stopped"
        elif how == CONT:
            program.state = "running"
        else:
            side.ask("await_end", pid=program.pid)
            program.ends(-15 if how == "terminate" else -9)

    @rule(on=NUMBERS, which=NUMBERS, how=st.sampled_from(["poll", "wait", "wait"]))
    def look(self, on: int, which: int, how: str) -> None:
        """Poll, or wait: a code once it has ended, None or a time-out before, nothing of another's child."""
        side = self.any_side(on)
        program = self.handle(side, which)
        if program is None:
            return
        more = {} if how == "poll" else {"timeout": 0 if program.runs or program.owner is not side else None}
        if program.owner is not side:
            if program.face == "spawn":
                assert side.raises(how, name=program.name, **more).name == "ChildProcessError"
                return
            if side.more["codes"][program.name] is None:
                side.more["codes"][program.name] = 0
            seen = side.ask(how, name=program.name, **more)
            assert seen == side.more["codes"][program.name], f"codes: {seen} of another's child"
        elif program.runs and how == "wait":
            assert side.raises(how, name=program.name, **more).name == "TimeoutExpired"
        elif program.runs:
            assert side.ask(how, name=program.name) is None
        else:
            seen = side.ask(how, name=program.name, **more)
            assert seen == program.code, f"codes: {seen}, not {program.code}"
            if program.state == "ended":
                self.reap(program, side)

    @rule(on=NUMBERS, which=NUMBERS)
    def drop(self, on: int, which: int) -> None:
        """A handle that is dropped before its program was seen to end warns; the program is reaped later."""
        side = self.any_side(on)
        program = self.handle(side, which)
        if program is None:
            return
        known = side.more["codes"].pop(program.name)
        is_missed = known is None and (program.face == "Popen" or program.owner is side)
        assert side.ask("drop", name=program.name) == is_missed
        if program.owner is not side or program.state == "reaped":
            return
        if program.face == "Popen" and program.state == "ended":
            self.reap(program, side)
        else:
            side.more["dropped"].append(program)

    @rule(on=NUMBERS, which=NUMBERS)
    def end_dropped(self, on: int, which: int) -> None:
        """One whose handle is gone ends."""
        side = self.any_side(on)
        dropped = [program for program in side.more["dropped"] if program.runs]
        if dropped:
            program = dropped[which % len(dropped)]
            side.ask("end", pid=program.pid)
            program.ends(-9)

    @rule(on=NUMBERS, count=st.integers(0, 2))
    def threads(self, on: int, count: int) -> None:
        """Other threads come and go."""
        side = self.any_side(on)
        side.ask("threads", count=count)
        side.threads = count

    @rule(on=NUMBERS)
    def fork(self, on: int) -> None:
        """Both sides have the handles; the children stay one side's."""
        side = self.any_side(on)
        child = self.fork_side(side)
        if child is not None:
            self.begun(child)
            child.more["codes"] = dict(side.more["codes"])

    @rule(on=NUMBERS)
    def end_fork(self, on: int) -> None:
        """A fork ends, with what it has started itself."""
        side = self.any_side(on)
        if side.parent is not None and not any(one.parent is side for one in self.sides):
            self.end_side(side)

    # ------------------------------------------------------------------ what holds

    @invariant()
    def children_are_as_they_should(self) -> None:
        """Each side has just the children that it started, in their states; handles know what was reaped."""
        for side in self.sides:
            seen = side.ask("state")
            expected = {
                str(one.pid): one.state
                for one in self.programs.values()
                if one.owner is side and one.state != "reaped"
            }
            forks = {str(one.link.pid) for one in self.sides if one.parent is side}
            assert seen["children"].keys() == expected.keys() | forks, (
                f"children: {seen['children']}, {expected}"
            )
            for pid, state in expected.items():
                kind = {"Z": "ended", "X": "ended", "T": "stopped", "t": "stopped"}.get(
                    seen["children"][pid], "running"
                )
                assert kind == state, (pid, seen["children"][pid], state)
            assert seen["codes"] == side.more["codes"], f"codes: {seen['codes']}"

    def settled(self, side: Side) -> None:
        """End and reap all of a side's programs."""
        for program in self.programs.values():
            if program.owner is not side or program.state == "reaped":
                continue
            if program.runs:
                side.ask("end", pid=program.pid)
                program.ends(-9)
            if program.name in side.more["codes"]:
                seen = side.ask("wait", name=program.name, timeout=None)
                assert seen == program.code, f"codes: {seen}, not {program.code}"
                self.reap(program, side)
        token = self.token("last")
        side.ask("spawn", name=token, face="Popen", token=token)
        self.look_after(side, popen=True)
        side.ask("go", name=token, code=0)
        assert side.ask("wait", name=token, timeout=None) == 0
        self.told(token, "code:0")
