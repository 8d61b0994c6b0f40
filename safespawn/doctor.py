"""What this machine and this process allow, and what a spawn would do right now."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from typing import Any

from . import _features, _policy, _prepare, _privileges, _probe, guards
from .audit import _slots


def plain(value: Any) -> Any:
    """Return dataclasses and named tuples as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def examine() -> dict[str, Any]:
    """Return everything that `safespawn doctor` shows.

    Keys: ``machine``, ``features`` (name to ``available`` and ``why``), ``process`` (our
    privileges), ``proofs``, ``lock`` (the credential lock), ``required``, ``strategy``,
    ``reasons``, ``launcher``, ``guards``, ``fork`` (what a fork of this process copies, and how long one
    took), ``policy`` (the file of the one that holds here,
    or None), ``audit``: the ``ledger`` that the environment names (a path, or empty), and how many
    ``slots`` of its state file are used (None where that cannot be seen: ``why``).
    """
    seen = guards.status()
    creds = _probe.look().credentials
    bounding = _probe.bounding_set()
    return {
        "machine": _probe.machine(),
        "features": {f.name: {"available": f.available, "why": f.why} for f in _features.probe()},
        "process": {
            "uids": [creds.ruid, creds.euid, creds.suid],
            "gids": [creds.rgid, creds.egid, creds.sgid],
            "groups": list(_probe.held_groups()),
            "threads": seen["threads"],
            "capabilities": list(_privileges.capability_names(creds.effective)),
            "bounding": None if bounding is None else list(_privileges.capability_names(bounding)),
            **plain(seen["attributes"]),
        },
        "proofs": seen["proofs"],
        "lock": seen["lock"],
        "required": seen["required"],
        "strategy": seen["strategy"],
        "reasons": list(seen["reasons"]),
        "launcher": seen["launcher"],
        "guards": seen["guards"],
        "fork": plain(_prepare.cost(measure=True)),
        "policy": None if (policy := _policy.applied()) is None else policy.path,
        "audit": _ledger(os.environ.get("SAFESPAWN_AUDIT", "")),
    }


def _ledger(path: str) -> dict[str, Any]:
    """Look at the state file of a ledger, without making one."""
    told = {"ledger": path, "slots": None, "slots_max": _slots.MOST, "why": ""}
    if not path:
        return told
    try:
        fd = os.open(path + ".state", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if os.pread(fd, len(_slots.MAGIC), 0) == _slots.MAGIC:
                return {**told, "slots": _slots.used(fd)}
        finally:
            os.close(fd)
        why = "the file is no state of a ledger"
    except FileNotFoundError:
        why = "no state file: it has no chain with keys yet"
    except OSError as problem:
        why = str(problem.strerror)
    return {**told, "why": why}


def _rows(pairs: dict[str, str]) -> list[str]:
    width = max(map(len, pairs), default=0)
    lines = []
    for name, text in pairs.items():
        first = f"  {name:{width}}  "
        lines += textwrap.wrap(text, 96, initial_indent=first, subsequent_indent=" " * len(first)) or [first]
    return lines


def _listed(names: list[str] | None) -> str:
    if names is None:
        return "unknown"
    return ", ".join(names) if names else "none"


#: Covered when others' spawns are: guards.arm(guard_foreign=True).
FOREIGN = ("vfork", "posix_spawn", "posix_spawnp")


def _lock_rows(lock: dict[str, Any]) -> dict[str, str]:
    rows = {"state": str(lock["state"])}
    if lock["state"] == "armed":
        rows |= {
            "covered": _listed(lock["covered"]),
            "by number": "the same by syscall(), and seccomp, keyctl, landlock_restrict_self, "
            "lsm_set_self_attr",
            "not covered": _listed([name for name in lock["missing"] if name not in FOREIGN])
            + " (not there, or not loaded)",
            "vfork, posix_spawn": "guarded" if lock["guard_foreign"] else "not asked for: guard_foreign",
            "searched": f"{lock['objects']} objects with {lock['slots']} bound calls, {lock['patched']} led "
            f"to us, and {lock['exports']} exported symbols, in {lock['arming_us'] / 1000:.1f} ms",
            "taken before": f"{lock['captured']} pointers to such functions; {lock['unsearched']} mappings "
            "were not searched",
            "others before us": f"{lock['foreign']} functions of another interposer, "
            f"{lock['other_namespaces']} objects in other link namespaces",
            "a change waits": f"at most {lock['wait']:g} s for children; {lock['changes']} changes seen",
            "never seen": "raw system calls in assembler, Go or static code, and /proc/self/attr: "
            "see guards.seal() and guards.credential_change()",
        }
    return rows | {f"problem {n}": text for n, text in enumerate(lock["problems"], 1)}


def _fork_rows(fork: dict[str, Any]) -> dict[str, str]:
    def told(name: str, unit: str, size: int) -> str:
        return "unknown" if fork[name] is None else f"{fork[name] // size} {unit}"

    return {
        "page tables": f"{told('page_tables', 'KiB', 1024)}, {told('entries', 'entries', 1)} to copy",
        "memory": f"{told('resident', 'MiB', 1 << 20)}, {told('huge', 'MiB', 1 << 20)} in huge pages",
        "a fork takes": f"{told('fork_ns', 'us', 1000)} here; see prepare_fork() for a large process",
    }


def _audit_rows(audit: dict[str, Any]) -> dict[str, str]:
    if not audit["ledger"]:
        return {"ledger": "none, unless the program opens one: SAFESPAWN_AUDIT is not set"}
    used, most = audit["slots"], audit["slots_max"]
    chains = audit["why"] if used is None else f"{used} of {most} have a slot in the state file"
    if used is not None and used >= _slots.Room(most).notice_at:
        chains += ": retire old segments"
    return {"ledger": f"{audit['ledger']!r}, by SAFESPAWN_AUDIT", "chains": chains}


def table(seen: dict[str, Any]) -> str:
    """Return it as a table for people."""
    process = seen["process"]
    features = {
        name: f"{'yes' if f['available'] else 'NO '}  {f['why']}" for name, f in seen["features"].items()
    }
    lines = ["machine", *_rows(seen["machine"]), "", "kernel features", *_rows(features), "", "this process"]
    lines += _rows(
        {
            "uids, gids": f"{process['uids']}, {process['gids']}, groups {process['groups']}",
            "threads": str(process["threads"]),
            "capabilities": _listed(process["capabilities"]),
            "bounding set": _listed(process["bounding"]),
            "securebits": _listed(process["securebits"]),
            "no_new_privs": str(process["no_new_privs"]),
            "dumpable": str(process["dumpable"]),
            "subreaper": str(process["child_subreaper"]),
            "seccomp mode": str(process["seccomp"]),
        }
    )
    lines += ["", "credential lock", *_rows(_lock_rows(seen["lock"]))]
    lines += ["", f"proofs (required: {seen['required']})", *_rows(seen["proofs"])]
    lines += ["", f"a plain spawn would go by {seen['strategy']}", *(f"  {why}" for why in seen["reasons"])]
    lines += ["", "another user, cgroup, root or namespace", f"  launcher: {seen['launcher']}"]
    lines += ["", "a fork of this process", *_rows(_fork_rows(seen["fork"]))]
    lines += ["", "policy", f"  {seen['policy'] or 'none was applied to this process'}"]
    lines += ["", "audit", *_rows(_audit_rows(seen["audit"]))]
    return "\n".join(lines)
