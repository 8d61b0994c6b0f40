"""New namespaces: each alone, all together, and users who are somebody else outside."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from child_state import (
    ALL_CAPS,
    CHOWN,
    INSIDE,
    IS_SOMEBODY,
    NAMESPACES,
    NEW_USER,
    NO_CAPS,
    OVERFLOW,
    SETUID,
    SHIFTED,
    SOMEBODY,
    Probe,
    State,
    bits,
    caps,
    identity,
    in_namespaces,
)
from safespawn import PIPE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes namespaces")

#: What a new user namespace without maps makes of root: itself, and nobody else is known there.
ONLY_ROOT = {**NEW_USER, **identity(0, 0)}
WITHOUT_USER = [name for name in NAMESPACES if name != "user"]


def known(plain: State) -> State:
    """Return what a child in a new user namespace is, whose own id alone is mapped."""
    return {**ONLY_ROOT, "groups": sorted({0: 0}.get(group, OVERFLOW) for group in plain["groups"])}


# ------------------------------------------------------------------- each, and together


@pytest.mark.parametrize("name", WITHOUT_USER)
def test_one_namespace(probe: Probe, name: str) -> None:
    """One namespace is new, and all others are ours."""
    probe.gives({"namespaces": [name]}, in_namespaces([name], probe.plain()))


@pytest.mark.parametrize("name", WITHOUT_USER)
def test_one_namespace_for_somebody_else(probe: Probe, name: str) -> None:
    """Somebody without privileges is put into a new namespace, which only root could make."""
    probe.gives(
        {"namespaces": [name], **SOMEBODY},
        {**in_namespaces([name], probe.plain()), **IS_SOMEBODY},
    )


@pytest.mark.parametrize("name", WITHOUT_USER)
def test_parent_death_signal_in_a_namespace(probe: Probe, name: str) -> None:
    """The signal is set where our number is another or none."""
    probe.gives(
        {"namespaces": [name], "pdeathsig": signal.SIGTERM},
        {**in_namespaces([name], probe.plain()), "pdeathsig": signal.SIGTERM},
    )


def test_new_user_namespace(probe: Probe) -> None:
    """Without maps we are ourselves inside, with all capabilities there, and nobody else is known."""
    plain = probe.plain()

    probe.gives({"namespaces": ["user"]}, {**in_namespaces(["user"], plain), **known(plain)})


@pytest.mark.makes_pid_namespace
def test_all_but_user(probe: Probe) -> None:
    """All namespaces but that of users are new at once."""
    probe.gives({"namespaces": WITHOUT_USER}, in_namespaces(WITHOUT_USER, probe.plain()))


#: All at once, without the PID namespace, which inside a new user namespace only a clone can make.
WITHOUT_PID = [name for name in NAMESPACES if name != "pid"]
BY_CLONE = pytest.mark.parametrize(("names", "strategy"), [(list(NAMESPACES), "fork"), (list(NAMESPACES), "auto"),
                                                           (WITHOUT_PID, "fork"), (WITHOUT_PID, "launcher")])


@pytest.mark.parametrize("more", [{}, {"pdeathsig": signal.SIGKILL}], ids=["", "pdeathsig"])
@BY_CLONE
def test_all_at_once(whole: str, names: list[str], strategy: str, more: dict[str, Any]) -> None:
    """All namespaces are new at once, and belong to the new users' namespace."""
    probe = Probe(whole, strategy)
    plain = probe.plain()

    probe.gives({"namespaces": names, **more}, {**in_namespaces(names, plain), **known(plain), **more})


@BY_CLONE
def test_all_at_once_with_maps_and_another_user(whole: str, names: list[str], strategy: str) -> None:
    """All are new, and the program runs there as a user that the maps know."""
    probe = Probe(whole, strategy)

    probe.gives(
        {"namespaces": {**dict.fromkeys(names), "user": SHIFTED}, **INSIDE},
        {
            **in_namespaces(names, probe.plain()),
            **NEW_USER,
            **identity(1_000, 1_001, [1_002]),
            **NO_CAPS,
        },
    )


def test_pid_namespace_in_a_user_namespace_is_not_launched(whole: str) -> None:
    """Asked for by name, the launcher is refused there; ``auto`` forks and says why."""
    with pytest.raises(safespawn.UnsafeSpawn) as caught:
        safespawn.run([whole], namespaces=["user", "pid"], strategy="launcher")
    assert caught.value.guard == "drop-apart"

    done = safespawn.run([whole], namespaces=["user", "pid"], capture_output=True)
    assert done.report.strategy == "fork"
    assert any("PID namespace" in reason for reason in done.report.reasons)


@pytest.mark.makes_pid_namespace
def test_session_and_group_inside(probe: Probe) -> None:
    """The first process of a PID namespace may lead a session, which is 1 there."""
    options = {"namespaces": ["pid"], "start_new_session": True}
    plain = probe.told(start_new_session=True)

    assert probe.told(**options) == {**plain, **in_namespaces(["pid"], plain)}


# --------------------------------------------------------------------------------- users


def test_root_inside_is_somebody_outside(probe: Probe) -> None:
    """Root inside has every capability there, and is told from outside by the id of the map."""
    spaces = {"user": SHIFTED}
    with waiting(probe, namespaces=spaces, user=0, group=0, extra_groups=[5]) as (process, inside):
        outside = Path(f"/proc/{process.pid}")
        seen = {name: (outside / name).read_text().split() for name in ("uid_map", "gid_map", "setgroups")}
        status = status_of(process.pid)

    assert inside["uids"] == inside["gids"] == [0] * 3
    assert inside["groups"] == [5]
    assert inside["effective"] == inside["permitted"] == ALL_CAPS
    assert status["Uid"].split() == status["Gid"].split() == ["100000"] * 4
    assert status["Groups"].split() == ["100005"]
    assert seen == {"uid_map": ["0", "100000", "5000"], "gid_map": ["0", "100000", "5000"], "setgroups": ["allow"]}


@pytest.mark.parametrize("asked", [INSIDE, {"user": 0, "group": 0, "extra_groups": []}], ids=["somebody", "root"])
@pytest.mark.parametrize("held", [None, (), (CHOWN, SETUID)], ids=["unsaid", "none", "two"])
def test_users_inside(probe: Probe, asked: dict[str, Any], held: tuple[int, ...] | None) -> None:
    """Ids are those inside; capabilities are those there, cut to what was asked for."""
    if held is not None:
        sets = caps(bits(*held), bits(*held))
        asked = {**asked, "caps": held}
    else:
        sets = {} if asked["user"] == 0 else NO_CAPS
    ids = identity(asked["user"], asked["group"], asked["extra_groups"])

    probe.gives(
        {"namespaces": {"user": SHIFTED}, **asked},
        {**in_namespaces(["user"], probe.plain()), **NEW_USER, **ids, **sets},
    )


def test_maps_of_several_lines(probe: Probe) -> None:
    """Every line of a map holds, for users and groups each."""
    spaces = {"user": {"users": [(0, 200_000, 1), (1_000, 0, 1)], "groups": [(7, 300_000, 2), (0, 12, 1)]}}
    with waiting(probe, namespaces=spaces, user=1_000, group=8, extra_groups=[0, 7]) as (process, inside):
        status = status_of(process.pid)

    assert (inside["uids"], inside["gids"], inside["groups"]) == ([1_000] * 3, [8] * 3, [0, 7])
    assert status["Uid"].split() == ["0"] * 4
    assert status["Gid"].split() == ["300001"] * 4
    assert sorted(status["Groups"].split()) == ["12", "300000"]


def test_user_that_the_map_does_not_know(probe: Probe) -> None:
    """An id without a line in the map cannot be had: OSError EINVAL at the stage of that id."""
    for asked, stage in (
        ({"user": 5_000, "group": 0, "extra_groups": []}, "uid"),
        ({"user": 0, "group": 5_000, "extra_groups": []}, "gid"),
        ({"user": 0, "group": 0, "extra_groups": [5_000]}, "groups"),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)) as caught:
            safespawn.run([probe.path], namespaces={"user": SHIFTED}, strategy=probe.strategy, **asked)
        assert (caught.value.errno, caught.value.stage) == (errno.EINVAL, stage)


#: Becomes somebody without privileges, and tells of children: one plain, one in namespaces.
UNPRIVILEGED = """
import prctl
from child_state import told
from parents import become
become(1000, 1001)
prctl.set_dumpable(dumpable)
out["plain"] = told([whole], strategy)
try:
    out["seen"] = told([whole], strategy, namespaces=names)
except OSError as problem:
    out["raised"] = [problem.errno, problem.stage]
"""


@BY_CLONE
def test_unprivileged_caller_makes_namespaces(whole: str, names: list[str], strategy: str) -> None:
    """A caller without any privilege is itself in a user namespace of its own, with others new."""
    out = helpers.run_snippet(UNPRIVILEGED, whole=whole, strategy=strategy, names=names, dumpable=1)

    plain = out["plain"]
    assert plain["uids"] == [1000] * 3
    # Not root there either, so that its capabilities are gone with the exec.
    assert out["seen"] == {**plain, **in_namespaces(names, plain), **NEW_USER, **NO_CAPS}


@BY_CLONE
def test_caller_whose_memory_is_closed_makes_namespaces(whole: str, names: list[str], strategy: str) -> None:
    """Who dropped privileges is not dumpable (prctl(2)), nor is a copy of it: nobody may write its maps.

    To open that copy would open to others what the kernel keeps from them. The launcher has none of it.
    """
    out = helpers.run_snippet(UNPRIVILEGED, whole=whole, strategy=strategy, names=names, dumpable=0)

    if strategy == "launcher":
        assert out["seen"]["namespaces.user"] == "new"
    else:
        number, stage = out["raised"]
        assert stage == "namespaces"
        assert number in (errno.EACCES, errno.ENOENT)  # the second where /proc is mounted with hidepid


# ------------------------------------------------------------------ what the others mean


@pytest.mark.makes_pid_namespace
def test_process_1_is_reaped_like_any_other(probe: Probe) -> None:
    """A program that is process 1 of its namespace ends, and we see how."""
    for argv, code in ((["/bin/sh", "-c", "exit 7"], 7), (["/bin/sh", "-c", "test $$ = 1"], 0)):
        done = safespawn.run(argv, namespaces=["pid"], strategy=probe.strategy)
        assert done.returncode == code


@pytest.mark.makes_pid_namespace
def test_signals_reach_process_1(probe: Probe) -> None:
    """The handle's pid and pidfd are those of the program, so that it can be killed and waited for."""
    with waiting(probe, namespaces=["pid"]) as (process, inside):
        assert inside["pid"] == 1
        assert status_of(process.pid)["NSpid"].split() == [str(process.pid), "1"]
        process.kill()
        assert process.wait() == -signal.SIGKILL


@pytest.mark.makes_pid_namespace
def test_nothing_is_left_beside_process_1(probe: Probe) -> None:
    """Process 1 is alone in its namespace: what made it is gone or outside."""
    done = safespawn.run(
        ["/bin/sh", "-c", "mount -t proc proc /proc && cd /proc && echo [0-9]*"],
        namespaces=["pid", "mount"],
        strategy=probe.strategy,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "1\n"


@pytest.mark.makes_pid_namespace
def test_mounts_inside_are_not_seen_outside(probe: Probe, tmp_path: Path) -> None:
    """What is mounted in a new mount namespace does not show in ours, though our mounts are shared."""
    (tmp_path / "where").mkdir()
    out = helpers.run_snippet(
        """
from parents import libc
assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
assert libc.mount(b"none", where.encode(), b"tmpfs", 0, None) == 0
assert libc.mount(b"none", b"/", None, 0x4000 | 1 << 20, None) == 0  # MS_REC | MS_SHARED
for place in (f"{where}/below", f"{where}-beside"):
    os.mkdir(place)
    command = f"mount -t tmpfs none {place} && grep -c {place} /proc/self/mounts"
    done = safespawn.run(["/bin/sh", "-c", command], namespaces=["mount"], strategy=strategy, capture_output=True)
    out[place] = [done.stdout.decode().strip(), open("/proc/self/mounts").read().count(place)]
""",
        where=str(tmp_path / "where"),
        strategy=probe.strategy,
    )

    assert list(out.values()) == [["1", 0]] * 2


def test_host_name_inside(probe: Probe) -> None:
    """The name of the host can be changed inside, and ours stays what it was."""
    ours = os.uname().nodename
    done = safespawn.run(
        ["/bin/sh", "-c", "echo safespawn-test > /proc/sys/kernel/hostname && uname -n"],
        namespaces=["uts"],
        strategy=probe.strategy,
        capture_output=True,
        text=True,
    )

    assert done.stdout == "safespawn-test\n"
    assert os.uname().nodename == ours


def test_cgroup_is_the_root_of_its_namespace(probe: Probe, cgroup_v2: Path) -> None:
    """The group that the child is put into is what it sees as the root, so it comes first."""
    seen = probe.told(namespaces=["cgroup"], cgroup=cgroup_v2)

    assert [line for line in seen["cgroups"] if line.startswith("0::")] == ["0::/"]


# ------------------------------------------------------------------------------- helpers


@contextlib.contextmanager
def waiting(probe: Probe, **options: Any) -> Iterator[tuple[safespawn.Process, State]]:
    """Run the probe until we are done with it: its handle, and what it told."""
    with safespawn.spawn(
        [probe.path, "--wait"], stdin=PIPE, stdout=PIPE, strategy=probe.strategy, **options
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
    assert process.returncode in (0, -signal.SIGKILL)


def status_of(pid: int) -> dict[str, str]:
    """Return /proc/pid/status by name."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
