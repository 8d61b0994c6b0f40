"""What a helper may start: the words of its caller to what it compares. Asks the user database."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from . import _binding, _identity
from ._checks import account
from ._environ import KEPT
from ._spec import Allow, Request
from ._values import iterable, shown, text

_LIB = _binding.lib

#: Options by name, and what each is for the helper. All others are always allowed: nobody can turn them
#: against the program.
OPTIONS: Mapping[str, int] = {
    "cwd": _LIB.SS_OPTION_CWD,
    "fds": _LIB.SS_OPTION_FDS,
    "pass_fds": _LIB.SS_OPTION_FDS,
    "start_new_session": _LIB.SS_OPTION_SESSION,
    "process_group": _LIB.SS_OPTION_GROUP,
    "controlling_terminal": _LIB.SS_OPTION_TERMINAL,
    "umask": _LIB.SS_OPTION_UMASK,
    "nice": _LIB.SS_OPTION_NICE,
    "scheduler": _LIB.SS_OPTION_SCHEDULER,
    "cpu_affinity": _LIB.SS_OPTION_AFFINITY,
    "rlimits": _LIB.SS_OPTION_RLIMITS,
    "cgroup": _LIB.SS_OPTION_CGROUP,
    "root": _LIB.SS_OPTION_ROOT,
    "caps": _LIB.SS_OPTION_CAPS,
    "securebits": _LIB.SS_OPTION_SECUREBITS,
    "namespaces": _LIB.SS_OPTION_NAMESPACES,
    "seccomp": _LIB.SS_OPTION_SECCOMP,
    "subreaper": _LIB.SS_OPTION_SUBREAPER,
    "landlock": _LIB.SS_OPTION_LANDLOCK,
    "pdeathsig": _LIB.SS_OPTION_PDEATHSIG,
}
ANY_OPTION: int = _LIB.SS_OPTIONS_END - 1
PARTS = ("programs", "users", "variables", "options")


def _program(name: str, value: object) -> bytes:
    """Return an absolute path as it is asked for later: the helper compares bytes."""
    path = text(name, value)
    plain = os.path.normpath(path) + (b"/" if path.endswith(b"/") and path != b"/" else b"")
    if not path.startswith(b"/") or path.startswith(b"//") or plain != path:
        raise ValueError(f"{name} must be an absolute path without '.', '..' and '//', not {shown(value)}")
    return path


def _user(name: str, value: object) -> tuple[int, int, tuple[int, ...]]:
    identity = _identity.wanted(Request((b"",), user=account(name, value)))
    uid, gid = identity.uid, identity.gid
    if uid is None or gid is None or identity.groups is None:
        raise ValueError(f"{name} is no whole identity: {shown(value)}")
    return uid, gid, identity.groups


def _variable(name: str, value: object) -> bytes:
    variable = text(name, value)
    if b"=" in variable or b"*" in variable[:-1]:
        raise ValueError(f"{name} must be a name, or the beginning of names and '*', not {shown(value)}")
    return variable


def _option(name: str, value: object) -> int:
    if not isinstance(value, str) or value not in OPTIONS:
        raise ValueError(f"{name} must be one of {', '.join(OPTIONS)}, not {shown(value)}")
    return OPTIONS[value]


def _listed(part: str, value: object, check: Any) -> tuple[Any, ...]:
    made = tuple(
        dict.fromkeys(check(f"allow[{part!r}][{i}]", one) for i, one in enumerate(iterable(part, value)))
    )
    if len(made) > _binding.POLICY_LIST_MAX:
        raise ValueError(f"allow[{part!r}] has {len(made)} entries, at most {_binding.POLICY_LIST_MAX}")
    return made


def _fits(allowed: _binding.Allowed) -> _binding.Allowed:
    """Return it, if a helper can read it and all of it can ever hold."""
    groups = sum(len(those) for _, _, those in allowed.users or ())
    if groups > _binding.POLICY_GROUPS_MAX:
        raise ValueError(f"allow['users'] have {groups} groups, at most {_binding.POLICY_GROUPS_MAX}")
    if (size := _binding.policy_bytes(allowed)) > _binding.POLICY_BYTES_MAX:
        raise ValueError(f"allow has entries of {size} bytes, at most {_binding.POLICY_BYTES_MAX}")
    return allowed


def _mask(options: Iterable[int]) -> int:
    mask = 0
    for option in options:
        mask |= option
    return mask


def _parts(allow: object) -> Mapping[str, Any]:
    if allow == "any":
        return {}
    if isinstance(allow, Mapping):
        unknown = [part for part in allow if part not in PARTS]
        if unknown:
            raise ValueError(f"allow has {shown(unknown[0])}: it takes {', '.join(PARTS)}")
        return allow
    if isinstance(allow, (str, bytes)) or not isinstance(allow, Iterable):
        raise TypeError(f"allow must be 'any', paths of programs or a mapping, not {shown(allow)}")
    return {"programs": allow}


def allowed(allow: Allow, *, keeps: bool) -> _binding.Allowed:
    """Return the policy of a helper that is allowed this.

    Parts that are not named are not restricted; of a helper that ``keeps`` working after we have
    dropped our privileges programs and users must be named, no option is allowed that is not, and of the
    environment only what no loader or libc takes code from, without PATH and HOME. Programs are never allowed
    in another root. Raises TypeError, ValueError, and KeyError for a user that is missing.
    """
    parts = _parts(allow)
    if keeps and not {"programs", "users"} <= parts.keys():
        raise ValueError("a helper that stays after a drop needs allow={'programs': ..., 'users': ...}")
    programs = _listed("programs", parts["programs"], _program) if "programs" in parts else None
    options = _listed("options", parts["options"], _option) if "options" in parts else None
    safe = tuple(sorted(KEPT - {b"PATH", b"HOME", b"SHELL"})) if keeps else None
    if programs and options and _LIB.SS_OPTION_ROOT in options:
        raise ValueError(
            "allow names programs and the option 'root': in another root their paths lead elsewhere"
        )
    made = _binding.Allowed(
        programs,
        _listed("users", parts["users"], _user) if "users" in parts else None,
        _listed("variables", parts["variables"], _variable) if "variables" in parts else safe,
        _mask(options) if options is not None else 0 if keeps else ANY_OPTION,
        keeps,
    )
    return _fits(made)
