"""Looks up in the user database who a child is to become. Asks; decides nothing."""

from __future__ import annotations

import grp
import os
import pwd

from ._environ import Pairs
from ._spec import KEEP, Credentials, Identity, IdMap, Request


def _gid(group: str | int) -> int:
    # KeyError names the group that is missing, as subprocess does.
    return group if isinstance(group, int) else grp.getgrnam(group).gr_gid


def _account(user: str | int) -> pwd.struct_passwd | None:
    if isinstance(user, str):
        return pwd.getpwnam(user)
    try:
        return pwd.getpwuid(user)
    except KeyError:
        return None


def _groups(request: Request, account: pwd.struct_passwd | None, gid: int | None) -> tuple[int, ...] | None:
    if request.extra_groups is not None:
        return tuple(sorted({_gid(group) for group in request.extra_groups}))
    if request.user is None:
        return None
    if account is None or gid is None:
        return ()
    return tuple(sorted(set(os.getgrouplist(account.pw_name, gid))))


def wanted(request: Request) -> Identity:
    """Return the whole identity asked for: identity-whole (T-12).

    ``user`` alone means uid, primary gid and group list of that user. A number without
    an account has neither of these, so it needs ``group``. Raises KeyError for a name
    that is missing and ValueError for such a number.
    """
    if request.identity is not None:
        return request.identity
    if not request.asks_identity:
        return KEEP
    account = None if request.user is None else _account(request.user)
    uid = account.pw_uid if account else request.user
    if uid is not None and account is None and request.group is None:
        raise ValueError(f"user={uid} has no account to take a group from: give group= too")
    gid = _gid(request.group) if request.group is not None else account.pw_gid if account else None
    return Identity(None if uid is None else int(uid), gid, _groups(request, account, gid))


#: Bits of the capabilities to change ids (linux/capability.h).
_CAP_SETGID, _CAP_SETUID = 1 << 6, 1 << 7


def forbidden(identity: Identity, creds: Credentials) -> str | None:
    """Return the stage at which setregid(2) or setreuid(2) would refuse these ids, which subprocess calls.

    Without the capability they take real and effective ids only; setresuid(2), which we call, takes the saved
    one too.
    """
    gids, uids = (None, creds.rgid, creds.egid), (None, creds.ruid, creds.euid)
    if identity.gid not in gids and not creds.effective & _CAP_SETGID:
        return "gid"
    return "uid" if identity.uid not in uids and not creds.effective & _CAP_SETUID else None


def _through(lines: IdMap, outside: int, option: str) -> int:
    """Return what an id of ours is inside a user namespace. Raises ValueError if it is nothing."""
    for inside, first, count in lines:
        if first <= outside < first + count:
            return inside + outside - first
    raise ValueError(
        f"namespaces: our own id {outside} is not mapped into the user namespace: give {option}="
    )


def maps(request: Request, creds: Credentials) -> tuple[IdMap, IdMap]:
    """Return the maps of users and groups of a new user namespace: as given, or ours to themselves."""
    own = ((creds.euid, creds.euid, 1),), ((creds.egid, creds.egid, 1),)
    return request.map_users or own[0], request.map_groups or own[1]


def inside(request: Request, creds: Credentials) -> Identity:
    """Return who the child is to be inside its user namespace: identity-whole (T-12) there too.

    What is not given stays what it is, under its number inside. Raises as :func:`wanted`, and
    ValueError for an id of ours that is not mapped.
    """
    users, groups = maps(request, creds)
    given = wanted(request)
    uid = _through(users, creds.euid, "user") if given.uid is None else given.uid
    gid = _through(groups, creds.egid, "group") if given.gid is None else given.gid
    return Identity(uid, gid, given.groups)


def home(request: Request) -> Pairs:
    """Return HOME, USER, LOGNAME and SHELL of the target user, or of ourselves.

    Raises KeyError if there is no such account.
    """
    user = os.geteuid() if request.user is None else request.user
    account = _account(user)
    if account is None:
        raise KeyError(f"env_policy='user': no account for {user!r}")
    name = os.fsencode(account.pw_name)
    shell = os.fsencode(account.pw_shell or "/bin/sh")
    return (
        (b"HOME", os.fsencode(account.pw_dir)),
        (b"USER", name),
        (b"LOGNAME", name),
        (b"SHELL", shell),
    )
