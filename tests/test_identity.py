"""Another user means all of it: uid, gid, groups, capabilities, and nothing of ours left."""

from __future__ import annotations

import grp
import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

import helpers
import safespawn
from safespawn import PIPE

pytestmark = [
    pytest.mark.threat("T-12"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SETUID, CAP_SETGID, CAP_SETPCAP"),
]

NOBODY = pwd.getpwnam("nobody")
NO_CAPS = dict.fromkeys(("CapEff", "CapPrm", "CapInh", "CapAmb"), "0000000000000000")
PROBE = helpers.probe_argv("state")

#: What snippets have: the child's story by safespawn, and ours.
PRELUDE = """
import grp, pwd, subprocess, prctl, ctypes
libc = ctypes.CDLL(None, use_errno=True)
def story(**options):
    done = safespawn.run(probe, stdout=safespawn.PIPE, check=True, **options)
    return {**json.loads(done.stdout), "strategy": done.report.strategy}
def become(uid, gid, groups):
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
def ambient(capability):
    # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE of prctl(2)
    assert libc.prctl(47, 2, capability, 0, 0) == 0, ctypes.get_errno()
def has_ambient(capability):
    return libc.prctl(47, 1, capability, 0, 0) == 1  # PR_CAP_AMBIENT_IS_SET
"""


@pytest.fixture(params=["auto", "fork"])
def strategy(request: pytest.FixtureRequest) -> str:
    """Return a strategy that can change credentials."""
    return str(request.param)


@pytest.fixture
def free_uid() -> int:
    """Return a uid without an account."""
    taken = {account.pw_uid for account in pwd.getpwall()}
    return next(uid for uid in range(54_321, 65_000) if uid not in taken)


def story(strategy: str, **options: Any) -> dict[str, Any]:
    """Return what a child that runs as somebody else says of itself."""
    done = safespawn.run(PROBE, stdout=PIPE, check=True, strategy=strategy, **options)  # type: ignore[misc]
    # It never changes credentials on our memory.
    assert done.report.strategy == ("launcher" if strategy == "auto" else strategy)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def fresh(snippet: str, **values: Any) -> dict[str, Any]:
    """Run a snippet in a fresh root process."""
    return helpers.run_snippet(PRELUDE + snippet, probe=PROBE, **values)


def caps(told: dict[str, Any]) -> dict[str, str]:
    """Return the capability sets of a story."""
    return {name: told["status"][name] for name in NO_CAPS}


def is_whole(told: dict[str, Any], account: pwd.struct_passwd, groups: list[int]) -> None:
    """Check that a story is that of an unprivileged user, wholly."""
    assert told["uids"] == [account.pw_uid] * 3
    assert told["gids"] == [account.pw_gid] * 3
    assert told["groups"] == sorted(groups)
    # The fourth number is the file system id, which getresuid does not tell.
    assert told["status"]["Uid"].split() == [str(account.pw_uid)] * 4
    assert told["status"]["Gid"].split() == [str(account.pw_gid)] * 4
    assert caps(told) == NO_CAPS


# ----------------------------------------------------------- who the child becomes


@pytest.mark.parametrize("user", ["nobody", NOBODY.pw_uid])
def test_user_alone_means_the_whole_identity(strategy: str, user: str | int) -> None:
    """``user`` by name or number gives that user's uid, primary gid and groups, and no capability."""
    is_whole(story(strategy, user=user), NOBODY, os.getgrouplist("nobody", NOBODY.pw_gid))


def test_groups_of_root_are_not_left_behind(strategy: str) -> None:
    """A child that becomes a user has that user's groups, none of those that we are in."""
    out = fresh(
        """
os.setgroups([0, 27, 42, 44])
out["child"] = story(user="nobody", strategy=strategy)
out["ours"] = os.getgroups()
""",
        strategy=strategy,
    )

    assert out["ours"] == [0, 27, 42, 44]
    is_whole(out["child"], NOBODY, os.getgrouplist("nobody", NOBODY.pw_gid))


def test_subprocess_leaves_the_groups_of_root_behind() -> None:
    """What we are compared with: ``subprocess`` with ``user=`` alone keeps our gid and our groups."""
    out = fresh(
        """
os.setgroups([0, 27, 42, 44])
out["child"] = json.loads(subprocess.run(probe, stdout=subprocess.PIPE, user="nobody").stdout)
"""
    )

    assert out["child"]["uids"] == [NOBODY.pw_uid] * 3
    assert out["child"]["gids"] == [0, 0, 0]
    assert out["child"]["groups"] == [0, 27, 42, 44]


#: Gives ``nobody`` 40 more groups, in a mount namespace of the snippet's own.
MANY_GROUPS = """
import tempfile
if libc.unshare(0x20000):  # CLONE_NEWNS
    out["skip"] = os.strerror(ctypes.get_errno())
else:
    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
    with tempfile.NamedTemporaryFile() as file:
        file.write(open("/etc/group", "rb").read())
        file.write(b"".join(b"many%d:x:%d:nobody\\n" % (i, 70_040 - i) for i in range(40)))
        file.flush()
        os.chmod(file.name, 0o644)
        assert libc.mount(file.name.encode(), b"/etc/group", None, 0x1000, None) == 0  # MS_BIND
        out["child"] = story(user="nobody", strategy=strategy)
        out["one"] = story(user="nobody", group="many7", strategy=strategy)
        out["none"] = story(user="nobody", extra_groups=["many39"], strategy=strategy)
"""


def test_user_with_many_groups_has_them_all(strategy: str) -> None:
    """The whole group list of the user database reaches the child, whatever its order there."""
    out = fresh(MANY_GROUPS, strategy=strategy)

    if "skip" in out:
        pytest.skip(f"needs CAP_SYS_ADMIN for a mount namespace: {out['skip']}")
    many = list(range(70_001, 70_041))
    is_whole(out["child"], NOBODY, [NOBODY.pw_gid, *many])
    assert out["one"]["gids"] == [70_033] * 3
    assert out["one"]["groups"] == many
    assert out["none"]["gids"] == [NOBODY.pw_gid] * 3
    assert out["none"]["groups"] == [70_001]


def test_user_without_account_needs_a_group(strategy: str, free_uid: int) -> None:
    """A number without an account has no group to take: that is a ValueError naming it, not root's gid."""
    with pytest.raises(ValueError, match=f"{free_uid}.*group"):
        story(strategy, user=free_uid)
    with pytest.raises(ValueError, match=f"{free_uid}.*group"):
        story(strategy, user=free_uid, extra_groups=[])


def test_user_without_account_has_the_group_given_and_no_other(strategy: str, free_uid: int) -> None:
    """A number without an account runs with the group it is given and no supplementary one."""
    out = fresh(
        """
os.setgroups([0, 27])
out["child"] = story(user=uid, group="games", strategy=strategy)
""",
        strategy=strategy,
        uid=free_uid,
    )

    games = grp.getgrnam("games").gr_gid
    assert out["child"]["uids"] == [free_uid] * 3
    assert out["child"]["gids"] == [games] * 3
    assert out["child"]["groups"] == []
    assert caps(out["child"]) == NO_CAPS


@pytest.mark.parametrize("group", ["games", grp.getgrnam("games").gr_gid])
def test_group_alone_changes_the_gid_only(strategy: str, group: str | int) -> None:
    """``group`` without ``user`` changes the gid and keeps uid, groups and capabilities."""
    out = fresh(
        """
os.setgroups([0, 27])
out["child"] = story(group=group, strategy=strategy)
out["plain"] = story()
""",
        strategy=strategy,
        group=group,
    )

    child = out["child"]
    assert child["strategy"] == ("launcher" if strategy == "auto" else strategy)
    assert child["gids"] == [grp.getgrnam("games").gr_gid] * 3
    assert (child["uids"], child["groups"]) == ([0, 0, 0], [0, 27])
    assert caps(child) == caps(out["plain"])


def test_extra_groups_alone_change_the_groups_only(strategy: str) -> None:
    """``extra_groups`` without ``user`` replaces the groups, by name or number, each once."""
    out = fresh(
        """
os.setgroups([0, 27])
out["child"] = story(extra_groups=["games", 44, 12345, 44, "games"], strategy=strategy)
out["empty"] = story(extra_groups=[], strategy=strategy)
""",
        strategy=strategy,
    )

    assert out["child"]["groups"] == sorted([44, grp.getgrnam("games").gr_gid, 12345])
    assert out["empty"]["groups"] == []
    for name in ("child", "empty"):
        assert (out[name]["uids"], out[name]["gids"]) == ([0, 0, 0], [0, 0, 0])


def test_user_with_group_and_groups_of_its_own(strategy: str) -> None:
    """What is given beside ``user`` takes the place of what the user database says."""
    told = story(strategy, user="nobody", group="games", extra_groups=[27, "daemon"])

    assert told["uids"] == [NOBODY.pw_uid] * 3
    assert told["gids"] == [grp.getgrnam("games").gr_gid] * 3
    assert told["groups"] == sorted([grp.getgrnam("daemon").gr_gid, 27])
    assert caps(told) == NO_CAPS


def test_user_with_no_groups_at_all(strategy: str) -> None:
    """``user`` with ``extra_groups=[]`` has its primary group and nothing else."""
    told = story(strategy, user="nobody", extra_groups=[])

    assert told["gids"] == [NOBODY.pw_gid] * 3
    assert told["groups"] == []


@pytest.mark.parametrize("uid", [2**31, 2**32 - 2])
def test_ids_are_32_bits_wide(strategy: str, uid: int) -> None:
    """The largest ids arrive unharmed."""
    told = story(strategy, user=uid, group=uid, extra_groups=[uid])

    assert (told["uids"], told["gids"], told["groups"]) == ([uid] * 3, [uid] * 3, [uid])


def test_report_names_the_identity(strategy: str) -> None:
    """The report says who the child was to become, and who we are."""
    with safespawn.spawn(["/bin/true"], user="nobody", strategy=strategy) as process:
        report = process.report

    assert report.identity == (
        NOBODY.pw_uid,
        NOBODY.pw_gid,
        tuple(sorted(os.getgrouplist("nobody", NOBODY.pw_gid))),
    )
    assert report.credentials is not None
    assert (report.credentials.ruid, report.credentials.rgid) == (0, 0)


# ------------------------------------------------------------------- capabilities


#: Setting, and what shows in our own process that it holds.
SETTINGS = {
    "keep-caps-bit": ("prctl.securebits.keep_caps = True", "prctl.securebits.keep_caps"),
    "keepcaps": ("prctl.set_keepcaps(True)", "prctl.get_keepcaps()"),
    "no-setuid-fixup": ("prctl.securebits.no_setuid_fixup = True", "prctl.securebits.no_setuid_fixup"),
    "noroot": ("prctl.securebits.noroot = True", "prctl.securebits.noroot"),
    "inheritable": ("prctl.cap_inheritable.net_raw = True", "prctl.cap_inheritable.net_raw"),
    "ambient": ("prctl.cap_inheritable.net_raw = True; ambient(13)", "has_ambient(13)"),
    "everything": (
        "prctl.cap_inheritable.setuid = True; ambient(7);"
        " prctl.securebits.no_setuid_fixup = True; prctl.securebits.keep_caps = True",
        "has_ambient(7) and prctl.securebits.no_setuid_fixup and prctl.securebits.keep_caps",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_capability_survives_whatever_our_own_settings(strategy: str, name: str) -> None:
    """An unprivileged child has no capability in any set, however ours were made to stick."""
    setting, holds = SETTINGS[name]

    out = fresh(
        f"""
{setting}
out["holds"] = bool({holds})
out["child"] = story(user="nobody", strategy=strategy)
out["number"] = story(user=12345, group=12345, strategy=strategy)
""",
        strategy=strategy,
    )

    assert out["holds"]
    is_whole(out["child"], NOBODY, os.getgrouplist("nobody", NOBODY.pw_gid))
    assert caps(out["number"]) == NO_CAPS


def test_settings_of_capabilities_would_be_passed_on() -> None:
    """What those settings are good for: a child that stays root inherits what we were given."""
    out = fresh(
        """
prctl.cap_inheritable.net_raw = True
ambient(13)
out["child"] = story()
"""
    )

    assert int(out["child"]["status"]["CapInh"], 16) == 1 << 13
    assert int(out["child"]["status"]["CapAmb"], 16) == 1 << 13


def test_root_stays_privileged(strategy: str) -> None:
    """Becoming uid 0 with other groups loses no capability."""
    out = fresh(
        """
os.setgroups([27])
out["child"] = story(user="root", strategy=strategy)
out["plain"] = story()
""",
        strategy=strategy,
    )

    child = out["child"]
    assert (child["uids"], child["gids"]) == ([0, 0, 0], [0, 0, 0])
    assert child["groups"] == sorted(os.getgrouplist("root", 0))
    assert int(child["status"]["CapEff"], 16) != 0
    assert caps(child) == caps(out["plain"])


# -------------------------------------------------------- when nothing need change


def test_identity_that_we_hold_needs_no_fork() -> None:
    """Asking for what we are already leaves nothing to change, so the fast path is open."""
    out = fresh(
        """
os.setgroups(os.getgrouplist("root", 0))
out["user"] = story(user="root")
out["number"] = story(user=0, group=0, strategy="vfork")
out["group"] = story(group=0)
out["groups"] = story(extra_groups=os.getgroups())
out["other"] = story(extra_groups=[12345])
"""
    )

    ways = {name: told["strategy"] for name, told in out.items()}
    assert ways == {"user": "vfork", "number": "vfork", "group": "vfork", "groups": "vfork", "other": "launcher"}


def test_half_an_identity_is_not_held() -> None:
    """A process whose saved or effective ids differ does not hold what it asks for: the child settles it."""
    out = fresh(
        """
groups = os.getgrouplist("nobody", nobody[1])
os.setgroups(groups)
os.setresgid(nobody[1], nobody[1], nobody[1])
os.setresuid(nobody[0], nobody[0], 0)
out["child"] = story(user="nobody")
out["group"] = story(group=nobody[1])
""",
        nobody=[NOBODY.pw_uid, NOBODY.pw_gid],
    )

    assert out["child"]["strategy"] == "fork"
    is_whole(out["child"], NOBODY, os.getgrouplist("nobody", NOBODY.pw_gid))
    assert out["group"]["strategy"] == "vfork"


@pytest.mark.parametrize(
    ("uids", "user", "strategy"),
    [
        ((NOBODY.pw_uid, NOBODY.pw_uid, 1), "nobody", "fork"),  # a saved id does not outlive an exec
        ((1, NOBODY.pw_uid, NOBODY.pw_uid), "nobody", "launcher"),
        ((1, 0, 0), "root", "launcher"),
    ],
    ids=str,
)
def test_other_ids_that_we_hold_are_not_passed_on(uids: tuple[int, int, int], user: str, strategy: str) -> None:
    """A real or saved uid of somebody else is ours no more in the child, capabilities or not."""
    account = pwd.getpwnam(user)

    out = fresh(
        """
os.setgroups(os.getgrouplist(user, gid))
os.setresgid(gid, gid, gid)
os.setresuid(*uids)
out["child"] = story(user=user)
""",
        uids=uids,
        user=user,
        gid=account.pw_gid,
    )

    assert out["child"]["strategy"] == strategy
    assert out["child"]["uids"] == [account.pw_uid] * 3
    assert out["child"]["groups"] == sorted(os.getgrouplist(user, account.pw_gid))


@pytest.mark.parametrize("capability", ["permitted", "inheritable"])
def test_user_that_we_are_but_for_capabilities_drops_them(capability: str) -> None:
    """A process of the user asked for that holds capabilities gives none of them to its child."""
    out = fresh(
        """
prctl.securebits.keep_caps = True
if capability == "inheritable":
    prctl.cap_inheritable.net_raw = True
become(nobody[0], nobody[1], os.getgrouplist("nobody", nobody[1]))
if capability == "inheritable":
    prctl.cap_permitted.limit()
out["ours"] = open("/proc/self/status").read()
out["child"] = story(user="nobody")
""",
        nobody=[NOBODY.pw_uid, NOBODY.pw_gid],
        capability=capability,
    )

    ours = {line.split(":")[0]: line.split()[-1] for line in out["ours"].splitlines()}
    assert int(ours["CapPrm" if capability == "permitted" else "CapInh"], 16) != 0
    # What such a user is permitted does not outlive the exec of the launcher.
    assert out["child"]["strategy"] == ("fork" if capability == "permitted" else "launcher")
    is_whole(out["child"], NOBODY, os.getgrouplist("nobody", NOBODY.pw_gid))


# ------------------------------------------------------------- unprivileged callers


@pytest.mark.parametrize(
    "asked",
    [
        {"user": "nobody"},
        {"user": "nobody", "strategy": "vfork"},
        {"user": "nobody", "strategy": "fork"},
        {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid},
        {"group": NOBODY.pw_gid},
        {"extra_groups": os.getgrouplist("nobody", NOBODY.pw_gid)},
    ],
    ids=str,
)
def test_unprivileged_caller_may_ask_for_itself(asked: dict[str, Any]) -> None:
    """A caller without privileges that asks for what it is gets it."""
    out = fresh(
        """
become(nobody[0], nobody[1], os.getgrouplist("nobody", nobody[1]))
out["child"] = story(**asked)
""",
        nobody=[NOBODY.pw_uid, NOBODY.pw_gid],
        asked=asked,
    )

    assert out["child"]["strategy"] == asked.get("strategy", "vfork")
    is_whole(out["child"], NOBODY, os.getgrouplist("nobody", NOBODY.pw_gid))


@pytest.mark.parametrize(
    "asked",
    [
        {"user": "root"},
        {"user": 0, "group": NOBODY.pw_gid, "extra_groups": [NOBODY.pw_gid]},
        {"user": "daemon"},
        {"group": 0},
        {"extra_groups": [0]},
        {"extra_groups": []},
        {"user": "nobody", "extra_groups": [27]},
    ],
    ids=str,
)
def test_unprivileged_caller_gets_nothing_else(
    strategy: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    """A caller without privileges that asks for more gets PermissionError, and nothing is run."""
    helpers.make_readable(tmp_path)
    tmp_path.chmod(0o777)

    out = fresh(
        """
become(nobody[0], nobody[1], os.getgrouplist("nobody", nobody[1]))
try:
    safespawn.spawn(["/usr/bin/touch", marker], strategy=strategy, **asked).wait()
    out["raised"] = None
except PermissionError as problem:
    out["raised"] = [problem.stage, problem.report.outcome, problem.report.stage]
out["ran"] = os.path.exists(marker)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    out["left"] = False
""",
        nobody=[NOBODY.pw_uid, NOBODY.pw_gid],
        strategy=strategy,
        asked=asked,
        marker=str(tmp_path / "ran"),
    )

    assert out["raised"] is not None
    stage, outcome, reported = out["raised"]
    assert stage in ("groups", "gid", "uid", "verify-drop")
    assert (outcome, reported) == ("failed", stage)
    assert (out["ran"], out["left"]) == (False, False)


# ---------------------------------------------------------------------- refusals


def test_new_identity_on_shared_memory_is_refused() -> None:
    """``strategy="vfork"`` with another user is refused by the guard drop-apart, with a report."""
    with pytest.raises(safespawn.UnsafeSpawn) as caught:
        safespawn.spawn(["/bin/true"], user="nobody", strategy="vfork")

    assert caught.value.guard == "drop-apart"
    assert caught.value.report is not None
    assert (caught.value.report.outcome, caught.value.report.strategy) == ("refused", None)


@pytest.mark.parametrize(
    "options",
    [
        {"user": "no-such-user"},
        {"user": "nobody", "group": "no-such-group"},
        {"group": "no-such-group"},
        {"extra_groups": ["games", "no-such-group"]},
        {"user": 54_321, "group": 0, "env_policy": "user"},
    ],
    ids=str,
)
def test_missing_account_is_named_before_anything_starts(
    strategy: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """A user or group that does not exist is a KeyError naming it, and nothing is started."""
    helpers.make_readable(tmp_path)
    tmp_path.chmod(0o777)
    marker = tmp_path / "ran"

    with pytest.raises(KeyError, match="no-such-user|no-such-group|54321") as caught:
        safespawn.spawn(["/usr/bin/touch", str(marker)], strategy=strategy, **options)

    assert not hasattr(caught.value, "report")
    assert not marker.exists()
