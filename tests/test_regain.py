"""What a child was not to have it cannot get back: by no call, by no exec, by no file with privileges."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import child_state
import helpers
from child_state import (
    ALL_CAPS,
    CHOWN,
    INSIDE,
    KILL,
    NAMESPACES,
    NET_RAW,
    SOMEBODY,
    Probe,
    bits,
    refusing,
    told,
)

pytestmark = [
    pytest.mark.threat("T-13"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: there must be something to lose"),
]

SHIFTED = {"user": child_state.SHIFTED}
LOCKED = ["noroot", "noroot_locked", "no_cap_ambient_raise", "no_cap_ambient_raise_locked"]
#: Rules that allow everything: no_new_privs is what they bring.
ANYTHING = {"abi": 1, "read": ["/"], "write": ["/"], "execute": ["/"]}

#: Ways to lose everything by which more could be had.
DROPS: dict[str, dict[str, Any]] = {
    "user": SOMEBODY,
    "user-keeps-some": {**SOMEBODY, "caps": ["net_raw", "chown", "kill"]},
    "user-keeps-none": {**SOMEBODY, "caps": ()},
    "user-locked": {**SOMEBODY, "caps": ["net_raw"], "securebits": LOCKED},
    "root-keeps-some": {"caps": ["net_raw", "chown", "kill"]},
    "root-keeps-none": {"caps": ()},
    "root-locked": {"caps": ["net_raw"], "securebits": LOCKED},
    "root-unrooted": {"securebits": LOCKED},
    "no_new_privs": {**SOMEBODY, "no_new_privs": True},
    "seccomp": {**SOMEBODY, "seccomp": refusing({})},
    "landlock": {**SOMEBODY, "landlock": ANYTHING},
    "limits": {**SOMEBODY, "rlimits": {number: (1, 1) for number in (4, 10, 12)}},
    "namespaces": {**SOMEBODY, "namespaces": [name for name in NAMESPACES if name != "user"]},
    "user-inside": {**INSIDE, "namespaces": SHIFTED},
    "user-inside-keeps-some": {**INSIDE, "namespaces": SHIFTED, "caps": ["net_raw"]},
    "root-inside-keeps-none": {"user": 0, "group": 0, "extra_groups": [], "namespaces": SHIFTED, "caps": ()},
}


@pytest.mark.parametrize("drop", DROPS)
def test_nothing_is_regained(probe: Probe, drop: str) -> None:
    """No id, no group, no capability of any set, no securebit, no limit can be had again."""
    assert probe.told("--regain=1", **DROPS[drop])["regained"] == []


#: Who we are before, where it must seem that the call works: what it is to change is so already.
SEEMS = {
    "setgroups": "os.setgroups([])",
    "setresgid": "os.setgroups([]); os.setresgid(65534, 65534, 65534)",
    "setresuid": """
import prctl
os.setgroups([])
os.setresgid(65534, 65534, 65534)
prctl.securebits.keep_caps = True
os.setresuid(65534, 65534, 65534)
prctl.cap_effective.setuid = prctl.cap_effective.setgid = prctl.cap_effective.sys_admin = True
""",
    "capset": "",
}


#: Who is not root has no launcher: its exec would lose what there is to lose.
@pytest.mark.parametrize(
    ("strategy", "call"),
    [*(("fork", call) for call in SEEMS), *(("launcher", call) for call in SEEMS if call != "setresuid")],
)
def test_what_can_be_had_again_is_no_drop(strategy: str, call: str) -> None:
    """A sandbox that says yes to each attempt to get something back: the ids agree, and nothing is run all the same."""
    out = helpers.run_snippet(
        SEEMS[call]
        + """
import sandbox
sandbox.answer({call: 0})
try:
    out["ran"] = safespawn.run(["/bin/true"], user=65534, group=65534, extra_groups=[], strategy=strategy).returncode
except OSError as problem:
    out["refused"] = [problem.stage, problem.errno]
""",
        call=call,
        strategy=strategy,
    )
    assert out == {"refused": ["verify-drop", errno.ENOTRECOVERABLE]}



@pytest.mark.parametrize("drop", DROPS)
def test_nothing_is_regained_by_an_exec(probe: Probe, drop: str) -> None:
    """A program that the program runs is given no more than that was given."""
    once = probe.told("--regain=1", **DROPS[drop])

    assert probe.told(f"--then={probe.path}", "--regain=1", **DROPS[drop]) == once


def test_nothing_is_regained_in_another_root(probe: Probe, jail: Path) -> None:
    """Nor in a new root."""
    seen = told(["/bin/whole", "--regain=1"], probe.strategy, root=jail, **SOMEBODY)

    assert seen["regained"] == []


def test_what_was_not_lost_can_be_used(probe: Probe) -> None:
    """The attempts work where they may: a child that stays root can change all its ids."""
    regained = probe.told("--regain=1")["regained"]

    ways = ("real", "effective", "saved", "both", "all", "fs")
    assert {f"{kind} 1 {way}" for kind in ("uid", "gid") for way in ways} <= set(regained)
    assert {"groups: root's", "groups: none"} <= set(regained)


def test_securebits_that_are_not_locked_can_be_cleared(probe: Probe) -> None:
    """The attempt at securebits works where it may."""
    assert "securebits" in probe.told("--regain=1", securebits=["no_cap_ambient_raise"])["regained"]


def test_capabilities_are_there_where_the_bounding_set_is_open(whole: str) -> None:
    """The attempts at capabilities work where they may: with CAP_SETPCAP and an open bounding set."""
    out = helpers.run_snippet(
        """
from child_state import NET_RAW, SETPCAP, bits, told
from parents import ambient, as_somebody
as_somebody(bits(SETPCAP), bits(SETPCAP))
ambient(SETPCAP)
out["open"] = told([whole, "--regain=0"], "fork")["regained"]
""",
        whole=whole,
    )

    assert f"capability {NET_RAW}" in out["open"]


# ----------------------------------------------------------------- files with privileges

Maker = Callable[[str], str]


@pytest.fixture
def copy(public: Path, whole: str) -> Maker:
    """Return a maker of copies of the probe that give privileges to whoever runs them."""
    def make(kind: str) -> str:
        path = public / kind
        shutil.copy(whole, path)
        path.chmod({"set-user-id": 0o4755, "set-group-id": 0o2755}.get(kind, 0o755))
        if kind == "capabilities":
            # struct vfs_cap_data, revision 2, with the effective bit: permitted, inheritable twice.
            held = bits(NET_RAW, KILL)
            os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000001, held, 0, held >> 32, 0))
        return str(path)

    return make


#: Kinds of files, and what they give.
GIVES: dict[str, dict[str, Any]] = {
    "set-user-id": {"uids": [70_000, 0, 0], "fsuid": 0},
    "set-group-id": {"gids": [70_001, 0, 0], "fsgid": 0},
    "capabilities": {"permitted": bits(NET_RAW, KILL), "effective": bits(NET_RAW, KILL)},
}
#: Ways to ask that no exec gives privileges.
SEALS: dict[str, dict[str, Any]] = {
    "no_new_privs": {"no_new_privs": True},
    "seccomp": {"seccomp": refusing({})},
    "landlock": {"landlock": ANYTHING},
}
PRIVILEGES = ("uids", "gids", "fsuid", "fsgid", "groups", "permitted", "effective", "inheritable", "ambient")


def privileges(state: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a state that a file can change."""
    return {name: state[name] for name in PRIVILEGES}


@pytest.mark.parametrize("kind", GIVES)
def test_file_gives_privileges(probe: Probe, copy: Maker, kind: str) -> None:
    """Without no_new_privs such a file gives what it is made for: the other tests can fail."""
    plain = privileges(probe.told(**SOMEBODY))
    seen = privileges(told([copy(kind)], probe.strategy, **SOMEBODY))

    assert {name: seen[name] for name in GIVES[kind]} == GIVES[kind]
    assert seen != plain


@pytest.mark.parametrize("pin", [False, True], ids=["by-path", "pinned"])
@pytest.mark.parametrize("seal", SEALS)
@pytest.mark.parametrize("kind", GIVES)
def test_file_gives_nothing_to_the_sealed(probe: Probe, copy: Maker, kind: str, seal: str, pin: bool) -> None:
    """With no_new_privs, asked for or implied, it gives nothing: as the program, and run by the program."""
    plain = privileges(probe.told(**SOMEBODY))
    path = copy(kind)

    assert privileges(told([path], probe.strategy, pin=pin, **SOMEBODY, **SEALS[seal])) == plain
    assert privileges(probe.told(f"--then={path}", pin=pin, **SOMEBODY, **SEALS[seal])) == plain


def test_set_user_id_file_gives_no_capability_beyond_the_bounding_set(probe: Probe, copy: Maker) -> None:
    """Where the bounding set was cut, root by a file has no more than that."""
    path = copy("set-user-id")
    for held in ((), (CHOWN,)):
        seen = told([path], probe.strategy, caps=held, **SOMEBODY)
        assert (seen["uids"], seen["permitted"]) == ([70_000, 0, 0], bits(*held))
    # All of it without: that is what is taken away here.
    assert told([path], probe.strategy, **SOMEBODY)["permitted"] == probe.plain()["bounding"]


def test_set_user_id_file_gives_no_capability_without_root(probe: Probe, copy: Maker) -> None:
    """With the securebit ``noroot`` root by a file has no capability at all."""
    seen = told([copy("set-user-id")], probe.strategy, securebits=LOCKED, **SOMEBODY)

    assert (seen["uids"], seen["permitted"], seen["effective"]) == ([70_000, 0, 0], 0, 0)


def test_file_of_somebody_unknown_inside_a_user_namespace(probe: Probe, copy: Maker) -> None:
    """A file of a user or group that is not mapped gives nothing inside."""
    for kind in ("set-user-id", "set-group-id"):
        seen = told([copy(kind)], probe.strategy, namespaces=SHIFTED, **INSIDE)
        assert (seen["uids"], seen["gids"]) == ([1_000] * 3, [1_001] * 3), kind
        assert (seen["permitted"], seen["bounding"]) == (0, ALL_CAPS), kind
