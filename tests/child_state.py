"""What a child says of itself by the probe ``whole.c``, flat, so that two of them can be compared.

Also the numbers that requests and stories are made of, and filters for ``seccomp``.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safespawn
from safespawn import PIPE, _binding

#: The ways of starting a program that is to have other privileges.
STRATEGIES = ("launcher", "fork", "helper")

State = dict[str, Any]

#: capabilities(7), by number.
CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, SETPCAP, NET_BIND, NET_RAW, SYS_CHROOT, SYS_ADMIN = (
    0, 1, 5, 6, 7, 8, 10, 13, 18, 21,
)  # fmt: skip
#: securebits of include/uapi/linux/securebits.h.
SECUREBITS = {
    "noroot": 1 << 0,
    "noroot_locked": 1 << 1,
    "no_setuid_fixup": 1 << 2,
    "no_setuid_fixup_locked": 1 << 3,
    "keep_caps_locked": 1 << 5,
    "no_cap_ambient_raise": 1 << 6,
    "no_cap_ambient_raise_locked": 1 << 7,
}
#: What a process in a new user namespace has of them: all that the kernel knows.
ALL_CAPS = (2 << int(Path("/proc/sys/kernel/cap_last_cap").read_text())) - 1
#: What an id is inside a user namespace that does not map it.
OVERFLOW = int(Path("/proc/sys/kernel/overflowuid").read_text())

#: Names of namespaces to what /proc calls them.
NAMESPACES = {
    "mount": "mnt",
    "pid": "pid",
    "net": "net",
    "ipc": "ipc",
    "uts": "uts",
    "cgroup": "cgroup",
    "time": "time",
    "user": "user",
}
if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 3):
    del NAMESPACES["time"]  # entered by a fork only, before
#: Those that a child's own children are in.
FOR_CHILDREN = {"pid": "pid_for_children", "time": "time_for_children"}

#: Landlock's version; with 3 (Linux 6.2) all is refused that can be done to a file.
LANDLOCK_ABI = _binding.landlock_abi()
HAS_LANDLOCK = LANDLOCK_ABI >= 3

V2 = Path("/sys/fs/cgroup/unified") if Path("/sys/fs/cgroup/unified").exists() else Path("/sys/fs/cgroup")


def bits(*numbers: int) -> int:
    """Return a mask with these bits."""
    return sum(1 << number for number in numbers)


# ------------------------------------------------------------------------ a story


def _flat(value: Mapping[str, Any], prefix: str = "") -> State:
    found: State = {}
    for name, item in value.items():
        if isinstance(item, dict) and name != "tries":
            found.update(_flat(item, f"{prefix}{name}."))
        else:
            found[prefix + name] = item
    return found


def _comparable(told: State) -> State:
    """Replace what is another number in every child: its pid, its pipes, its namespaces."""
    pid = told.pop("pid")
    for name in ("pgid", "sid"):
        told[name] = "own" if told[name] == pid else told[name]
    for name, item in told.items():
        if name.startswith("fds.") and item == "pipe":
            number = name.removesuffix(".kind")
            told[f"{number}.inode"] = "some"
        if name.startswith("namespaces.") and item is not None:
            ours = os.stat(f"/proc/self/ns/{name.removeprefix('namespaces.')}").st_ino
            told[name] = "ours" if item == ours else "new"
    return told


def told(argv: list[Any], strategy: str, **options: Any) -> State:
    """Run the probe, by the strategy asked for and no other, and return what it says of itself."""
    done = safespawn.run(argv, stdout=PIPE, check=True, strategy=strategy, **options)  # type: ignore[misc]
    assert strategy in ("auto", done.report.strategy)
    seen = _flat(json.loads(done.stdout))
    assert seen["pid"] == (1 if "pid" in options.get("namespaces", ()) else done.report.pid)
    return _comparable(seen)


class Probe:
    """The probe, run by one strategy."""

    def __init__(self, path: str, strategy: str) -> None:
        """Remember both."""
        self.path = path
        self.strategy = strategy

    def told(self, *arguments: str, **options: Any) -> State:
        """Return what a child says that was given these options."""
        return told([self.path, *arguments], self.strategy, **options)

    def plain(self, *arguments: str) -> State:
        """Return what a child says that was given nothing."""
        return self.told(*arguments)

    def gives(self, options: dict[str, Any], changed: State, *arguments: str) -> None:
        """Check that these options change exactly that, and nothing else of all that can be told."""
        plain = self.plain(*arguments)
        assert self.told(*arguments, **options) == {**plain, **settled(changed, plain)}


# ------------------------------------------------------------------ parts of a state


def settled(state: State, plain: State) -> State:
    """Return a state with the functions in it replaced by what they make of a plain one."""
    return {name: item(plain) if callable(item) else item for name, item in state.items()}


def ignoring(*signals: int) -> Callable[[State], int]:
    """Return the ignored signals of a child that ignores these too."""
    return lambda plain: plain["ignored"] | bits(*(number - 1 for number in signals))


def heeding(*signals: int) -> Callable[[State], int]:
    """Return the ignored signals of a child that does not ignore these."""
    return lambda plain: plain["ignored"] & ~bits(*(number - 1 for number in signals))


def identity(uid: int, gid: int, groups: Iterable[int] = ()) -> State:
    """Return the ids of somebody, in all the places where they show."""
    return {
        "uids": [uid] * 3,
        "fsuid": uid,
        "gids": [gid] * 3,
        "fsgid": gid,
        "groups": sorted(set(groups)),
    }


def caps(mask: int, bounding: int | None = None) -> State:
    """Return the capability sets of a child that holds a mask in each of them."""
    state: State = dict.fromkeys(("permitted", "effective", "inheritable", "ambient"), mask)
    return state if bounding is None else {**state, "bounding": bounding}


#: A user other than 0 has none, and what may be had again is as it was.
NO_CAPS = caps(0)

#: Somebody without an account, who therefore is asked for with group and groups.
SOMEBODY: dict[str, Any] = {"user": 70_000, "group": 70_001, "extra_groups": [70_002, 4]}
IS_SOMEBODY = {**identity(70_000, 70_001, [4, 70_002]), **NO_CAPS}

#: Maps of a user namespace where ids are those from 100000 outside, and somebody who has ids there.
SHIFTED = {"users": [(0, 100_000, 5_000)], "groups": [(0, 100_000, 5_000)]}
INSIDE: dict[str, Any] = {"user": 1_000, "group": 1_001, "extra_groups": [1_002]}

#: A process in a new user namespace, until it runs a program as somebody else than root there.
NEW_USER = {
    "permitted": ALL_CAPS,
    "effective": ALL_CAPS,
    "inheritable": 0,
    "ambient": 0,
    "bounding": ALL_CAPS,
    "securebits": 0,
}


def in_namespaces(names: Iterable[str], plain: State) -> State:
    """Return what a child tells of the namespaces that it is in, and of what it sees in them."""
    chosen = set(names)
    state: State = {}
    for name in chosen:
        state[f"namespaces.{NAMESPACES[name]}"] = "new"
        if name in FOR_CHILDREN:
            state[f"namespaces.{FOR_CHILDREN[name]}"] = "new"
    if "net" in chosen:
        state["interfaces"] = ["lo"]
    if "cgroup" in chosen:
        # Ours is the root of the new one (cgroup_namespaces(7)).
        state["cgroups"] = [line.rpartition(":")[0] + ":/" for line in plain["cgroups"]]
    if "pid" in chosen:
        # Whoever is outside has no number inside (pid_namespaces(7)).
        state["ppid"] = 0
        for name in ("pgid", "sid"):
            state[name] = plain[name] if plain[name] == "own" else 0
    return state


def without_proc(state: State) -> State:
    """Return what a child tells of all that it needs /proc for, where there is none."""
    names = ["cgroups", "terminal", "oom_score_adj", "coredump_filter"]
    return dict.fromkeys([*names, *(name for name in state if name.startswith("namespaces."))])


def descriptor(fd: int, *, flags: int = 0) -> State:
    """Return what the probe tells of a file that we have open as ``fd``."""
    seen = os.fstat(fd)
    access = os.O_ACCMODE & int(Path(f"/proc/self/fdinfo/{fd}").read_text().split()[3], 8)
    return {
        "flags": flags,
        "access": access,
        "kind": "file",
        "device": seen.st_dev,
        "inode": seen.st_ino,
    }


def at(number: int, told_of: State) -> State:
    """Return what a state says of a descriptor at this number."""
    return {f"fds.{number}.{name}": value for name, value in told_of.items()}


# -------------------------------------------------------------------------- filters

_X86_64 = {"uname": 63, "execve": 59, "execveat": 322, "prctl": 157, "mkdirat": 258}
_AARCH64 = {"uname": 160, "execve": 221, "execveat": 281, "prctl": 167, "mkdirat": 34}
NUMBERS = _X86_64 if os.uname().machine == "x86_64" else _AARCH64

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # bpf_common.h: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET of seccomp.h


def instruction(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    """Return a struct sock_filter."""
    return struct.pack("=HBBI", code, true, false, value)


def refusing(answers: Mapping[str, int]) -> bytes:
    """Return a filter that answers an errno to these system calls and allows all others."""
    program = instruction(_LOAD, 0)  # seccomp_data.nr
    for name, number in answers.items():
        program += instruction(_EQUAL, NUMBERS[name], 0, 1) + instruction(_RETURN, ERRNO | number)
    return program + instruction(_RETURN, ALLOW)
