"""Any request made of all options: the launcher gives what fork gives, and both what is expected.

``expected`` says what a child is that was asked for: an oracle that knows the request, what a
child is that was asked nothing, and the rules of the kernel. ``SAFESPAWN_GIVEN_EXAMPLES`` has more
requests tried.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import child_state
import starting_ways
from child_state import (
    HAS_LANDLOCK,
    NAMESPACES,
    NEW_USER,
    OVERFLOW,
    SECUREBITS,
    STRATEGIES,
    State,
    at,
    bits,
    descriptor,
    heeding,
    ignoring,
    in_namespaces,
    refusing,
    told,
    without_proc,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives and takes privileges")

EXAMPLES = int(os.environ.get("SAFESPAWN_GIVEN_EXAMPLES", "200"))
CPUS = sorted(os.sched_getaffinity(0))

# ----------------------------------------------------------------------------- requests

#: Users with the groups that go with them; a number without an account needs a group.
UIDS = st.sampled_from([0, 1_000, 65_534, 70_000])
GIDS = st.sampled_from([0, 4, 1_000, 65_534, 70_001])
#: Capabilities that a root in most containers has, so that they can be kept.
CAPS = st.sets(st.sampled_from([0, 1, 3, 5, 6, 7, 8, 10, 13, 18]), max_size=5)
#: Limits that may be lowered without harm to a program that only tells its state.
LIMITS = {
    resource.RLIMIT_CORE: st.sampled_from([(0, 0), (0, 4096), (4096, 4096)]),
    resource.RLIMIT_NOFILE: st.sampled_from([(50, 60), (64, 64)]),
    resource.RLIMIT_FSIZE: st.sampled_from([(1 << 20, 1 << 30), (1 << 20, 1 << 20)]),
    resource.RLIMIT_MSGQUEUE: st.sampled_from([(0, 0), (10, 4096)]),
    resource.RLIMIT_SIGPENDING: st.sampled_from([(10, 100)]),
}
NAMES = st.sets(st.sampled_from([name for name in NAMESPACES if name != "user"]))
#: Maps that know everybody whom a request may ask for, and us.
EVERYBODY = {"users": [(0, 100_000, 80_000)], "groups": [(0, 200_000, 80_000)]}
SIGNALS = st.sets(st.sampled_from(sorted(set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP})), max_size=4)
BYTES = st.lists(st.integers(1, 255), max_size=8).map(bytes)
ENVIRONMENTS = st.dictionaries(BYTES.filter(lambda name: name and b"=" not in name), BYTES, max_size=4)
WHO = st.fixed_dictionaries(
    {}, optional={"user": UIDS, "group": GIDS, "extra_groups": st.lists(GIDS, max_size=3)}
).map(lambda who: {"group": 70_001, "extra_groups": [4], **who} if "user" in who else who)
#: One of these each, or none of them: that is as likely as all others together.
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "caps": CAPS,
    "securebits": st.sets(st.sampled_from(sorted(SECUREBITS))),
    "no_new_privs": st.booleans(),
    "seccomp": st.just(refusing({"uname": 1})),
    "rlimits": st.fixed_dictionaries({}, optional=LIMITS),
    "umask": st.integers(0, 0o777),
    "nice": st.integers(0, 19),
    "scheduler": st.sampled_from([0, os.SCHED_BATCH, os.SCHED_IDLE, (os.SCHED_FIFO, 1), (os.SCHED_RR, 50)]),
    "cpu_affinity": st.sets(st.sampled_from(CPUS), min_size=1),
    "pdeathsig": st.integers(1, 64),
    "sigmask": SIGNALS,
    "restore_signals": st.booleans(),
    "sigdefault": SIGNALS,
    "subreaper": st.booleans(),
    "cwd": st.sampled_from(["/", "/usr", "/usr/bin"]),
    "env": ENVIRONMENTS,
    "pin": st.booleans(),
    "deadline": st.just(300.0),
    # Names stand for what the test has at hand.
    "fds": st.dictionaries(st.integers(3, 40), st.integers(0, 3), max_size=4),
    "cgroup": st.just("ours"),
    "root": st.just("ours"),
    **({"landlock": st.just("ours")} if HAS_LANDLOCK else {}),
}


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Return options for a spawn."""
    asked = draw(WHO)
    for name, values in OTHERS.items():
        if draw(st.integers(0, 3)) == 0:
            asked[name] = draw(values)
    leads = draw(st.sampled_from(["nothing", "session", "group"]))
    asked |= {"nothing": {}, "session": {"start_new_session": True}, "group": {"process_group": 0}}[leads]
    if draw(st.integers(0, 3)) == 0:
        spaces: dict[str, Any] = dict.fromkeys(draw(NAMES))
        if not spaces or draw(st.booleans()):
            spaces["user"] = draw(st.sampled_from([None, EVERYBODY]))
        if spaces.get("user"):
            asked = {"user": 0, "group": 0, "extra_groups": [], **asked}
        elif "user" in spaces:
            # We alone are known there.
            for name in ("user", "group", "extra_groups"):
                asked.pop(name, None)
        if born_outside(spaces) and isinstance(asked.get("scheduler"), tuple):
            del asked["scheduler"]  # takes a capability that nobody has there from birth on
        asked["namespaces"] = spaces
    if "root" in asked and "cwd" in asked:
        asked["cwd"] = "/bin"  # that is all there is
    return asked


def born_outside(spaces: Iterable[str]) -> bool:
    """Whether the clone itself makes the namespaces: those of users and pids at once."""
    return {"user", "pid"} <= set(spaces)


# --------------------------------------------------------------------------- the oracle


def expected(asked: dict[str, Any], plain: State) -> State:
    """Return what a child tells that was asked for, when one that was asked nothing tells ``plain``."""
    state = {**plain}
    for part in (_process, _place, _namespaces, _ids, _capabilities, _descriptors, _root):
        state.update(part(asked, state))
    return state


def _process(asked: dict[str, Any], state: State) -> State:
    changed = {name: asked[name] for name in ("umask", "nice", "pdeathsig") if name in asked}
    if asked.get("start_new_session"):
        changed |= {"sid": "own", "pgid": "own"}
    if "process_group" in asked:
        changed["pgid"] = "own"
    if "scheduler" in asked:
        pair = asked["scheduler"]
        changed["policy"], changed["priority"] = pair if isinstance(pair, tuple) else (pair, 0)
    if "cpu_affinity" in asked:
        changed["cpus"] = sorted(asked["cpu_affinity"])
    if "sigmask" in asked:
        changed["blocked"] = bits(*(number - 1 for number in asked["sigmask"]))
    if asked.get("restore_signals") is False:
        changed["ignored"] = ignoring(signal.SIGPIPE, signal.SIGXFSZ)(state)  # as Python does
    if "sigdefault" in asked:
        changed["ignored"] = heeding(*asked["sigdefault"])({**state, **changed})
    if asked.get("subreaper"):
        changed["subreaper"] = 1
    changed |= {f"limits.{number}": list(pair) for number, pair in asked.get("rlimits", {}).items()}
    return changed


def _place(asked: dict[str, Any], state: State) -> State:
    changed: State = {}
    if "cwd" in asked:
        changed["cwd"] = asked["cwd"]
    if "env" in asked:
        pairs = [b"=".join(pair) for pair in asked["env"].items()]
        changed["environ"] = [pair.decode("latin-1") for pair in pairs]
    if "cgroup" in asked:
        changed["cgroups"] = [
            f"0::/{asked['cgroup'].name}" if line.startswith("0::") else line for line in state["cgroups"]
        ]
    if "seccomp" in asked:
        changed |= {"seccomp": 2, "hostname": 1}
    if asked.get("no_new_privs") or "seccomp" in asked or "landlock" in asked:
        changed["no_new_privs"] = 1
    return changed


def _root(asked: dict[str, Any], state: State) -> State:
    """Nothing of /proc is there; what comes of that is last, because it hides what else is new."""
    if "root" not in asked:
        return {}
    return {**without_proc(state), "argv": ["/bin/whole"], "cwd": asked.get("cwd", "/")}


def _namespaces(asked: dict[str, Any], state: State) -> State:
    spaces = asked.get("namespaces", {})
    changed = in_namespaces(spaces, state)
    if "user" in spaces:
        known = [0] if spaces["user"] is None else []
        changed |= NEW_USER
        changed["groups"] = sorted(group if group in known else OVERFLOW for group in state["groups"])
    return changed


def _ids(asked: dict[str, Any], state: State) -> State:
    changed: State = {}
    if "user" in asked:
        changed |= {"uids": [asked["user"]] * 3, "fsuid": asked["user"]}
    if "group" in asked:
        changed |= {"gids": [asked["group"]] * 3, "fsgid": asked["group"]}
    if "extra_groups" in asked:
        changed["groups"] = sorted(set(asked["extra_groups"]))
    return changed


def _capabilities(asked: dict[str, Any], state: State) -> State:
    """Capabilities and securebits, after the last exec; see capabilities(7)."""
    changed = {"securebits": sum(SECUREBITS[name] for name in asked["securebits"])} if "securebits" in asked else {}
    if "caps" in asked:
        held = bits(*asked["caps"])
        return {**changed, **child_state.caps(held, held & state["bounding"])}
    if state["uids"][0] != 0:
        return {**changed, **child_state.NO_CAPS}
    if "noroot" in asked.get("securebits", ()):
        # No more than any other user by exec: what is ambient.
        return {**changed, "permitted": state["ambient"], "effective": state["ambient"]}
    return changed


def _descriptors(asked: dict[str, Any], state: State) -> State:
    changed: State = {}
    for target, source in asked.get("fds", {}).items():
        changed |= at(target, descriptor(source))
    return changed


# ------------------------------------------------------------------------------ the test


class Around:
    """What requests lead to: four files, a control group, another root, the probe itself."""

    def __init__(self, fds: list[int], cgroup: Path, jail: Path, whole: str) -> None:
        """Remember them."""
        self.fds = fds
        self.named = {
            "cgroup": cgroup,
            "root": jail,
            "landlock": {"read": ["/proc"], "execute": [whole, jail / "bin"]},
        }

    def real(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return a request with these in the place of their names."""
        real = {**asked, **{name: thing for name, thing in self.named.items() if name in asked}}
        if "fds" in asked:
            real["fds"] = {target: self.fds[source] for target, source in asked["fds"].items()}
        return real


@pytest.fixture
def around(whole: str, jail: Path, cgroup_v2: Path) -> Iterator[Around]:
    """Return what requests lead to, and take it away."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(4)]
        # Two of them where targets may be, two above all of those.
        fds = [file.fileno() for file in files[:2]]
        for number, file in enumerate(files[2:], 50):
            fds.append(os.dup2(file.fileno(), number))
            stack.callback(os.close, number)
        yield Around(fds, cgroup_v2, jail, whole)


@pytest.mark.slow
def test_any_request(whole: str, around: Around) -> None:
    """Whatever is asked for, all strategies give it, exactly, and nothing else."""
    plain = told([whole], "fork")

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize="SAFESPAWN_GIVEN_EXAMPLES" not in os.environ,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(requests())
    def holds(asked: dict[str, Any]) -> None:
        real = around.real(asked)
        argv = ["/bin/whole" if "root" in asked else whole]
        launchable = not born_outside(asked.get("namespaces", ()))
        for strategy in STRATEGIES if launchable else ("auto", "fork"):
            if strategy == "helper" and "pid" in asked.get("namespaces", ()):
                continue  # refused: test_helper.py
            assert told(argv, strategy, **real) == expected(real, plain), strategy

    with starting_ways.ready({"strategy": "helper"}):
        holds()
