"""The fields of the audit records of a spawn. Pure but for fstat of the descriptors that are told of.

What every spawn records is written by C (audit/_core.py), which takes only the parts from here that
are values of Python, as JSON; they are the same for many spawns, so the last ones are kept.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from . import _binding, _privileges, _probe, audit
from ._child import Child
from ._spec import KEEP, Executable, Identity, Landlock, Request, SpawnReport, Verdict
from .audit import _record, _redaction

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


def _device(number: int) -> str:
    return f"{os.major(number):x}:{os.minor(number):x}"


def _exe(exe: Executable | None) -> dict[str, Any] | None:
    if exe is None:
        return None
    told: dict[str, Any] = {
        "path": _record.path(os.fsencode(exe.path)),
        "real": _record.path(os.fsencode(exe.real)),
        "dev": _device(exe.device),
        "ino": exe.inode,
        "mode": f"{exe.mode & 0o7777:o}",
        "uid": exe.uid,
        "gid": exe.gid,
        "size": exe.size,
        "mtime": exe.mtime_ns,
        "ctime": exe.ctime_ns,
        "held": exe.held,
        "pinned": exe.pinned,
    }
    if exe.sha256 is not None:
        told["sha256"] = exe.sha256
    if exe.interpreter is not None:
        told["interp"] = _record.path(os.fsencode(exe.interpreter))
    return told


def _fd(source: int, target: int) -> dict[str, Any]:
    if source < 0:
        return {"fd": target, "type": "closed"}
    try:
        seen = os.fstat(source)
    except OSError as problem:
        return {"fd": target, "error": errno.errorcode.get(problem.errno or 0, "?")}
    kind = _KINDS.get(stat.S_IFMT(seen.st_mode), "anon")
    return {"fd": target, "type": kind, "dev": _device(seen.st_dev), "ino": seen.st_ino}


def _identity(identity: Identity) -> dict[str, Any]:
    groups = None if identity.groups is None else _record.some(identity.groups, 200)
    parts = {"uid": identity.uid, "gid": identity.gid, "groups": groups}
    return {key: value for key, value in parts.items() if value is not None}


def _want(request: Request, identity: Identity) -> dict[str, Any]:
    """What was asked of the child, as far as it is not the default."""
    want = _identity(identity)
    for name in (
        "start_new_session",
        "process_group",
        "controlling_terminal",
        "umask",
        "nice",
        "cpu_affinity",
        "rlimits",
        "pdeathsig",
        "sigmask",
        "sigdefault",
        "subreaper",
        "no_new_privs",
        "deadline",
        "digest",
    ):
        value = getattr(request, name)
        if value is not None and value is not False and value != ():
            want[name] = _wanted(value)
    if not request.sigdefault:
        del want["sigdefault"]
    if request.keep_fds:
        want["close_fds"] = False
    if not request.restore_signals:
        want["restore_signals"] = False
    if request.env_policy != "inherit":
        want["env_policy"] = request.env_policy
    if request.path_policy != "any":
        want["path_policy"] = request.path_policy
    return {**want, **_confined(request)}


#: Room for the names of all capabilities.
_CAPS_MAX = 1000

#: The words of chrt(1).
_POLICIES = {
    os.SCHED_OTHER: "other",
    os.SCHED_BATCH: "batch",
    os.SCHED_IDLE: "idle",
    os.SCHED_FIFO: "fifo",
    os.SCHED_RR: "rr",
}


def _confined(request: Request) -> dict[str, Any]:
    """What was asked of the options that confine it, in words."""
    parts: dict[str, Any] = {
        "root": _place(request.root),
        "cgroup": _place(request.cgroup),
        "scheduler": request.scheduler and _scheduler(*request.scheduler),
        "namespaces": list(request.namespaces) or None,
        "map_users": request.map_users and _record.some(request.map_users, 300),
        "map_groups": request.map_groups and _record.some(request.map_groups, 300),
        "landlock": request.landlock and _landlock(request.landlock),
        "seccomp": request.seccomp and _digest(request.seccomp),
    }
    if request.caps is not None:
        parts["caps"] = _record.some(_privileges.capability_names(request.caps), _CAPS_MAX)
    if request.securebits is not None:
        parts["securebits"] = list(_privileges.securebit_names(request.securebits))
    return {key: value for key, value in parts.items() if value is not None}


def _scheduler(policy: int, priority: int) -> dict[str, Any]:
    return {"policy": _POLICIES[policy], "priority": priority}


def _landlock(rules: Landlock) -> dict[str, Any]:
    kinds = {"read": rules.read, "write": rules.write, "execute": rules.execute}
    told = {kind: _record.some([_record.path(path) for path in paths], 300) for kind, paths in kinds.items()}
    return {"abi": rules.abi, **told}


def _digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _wanted(value: Any) -> Any:
    if isinstance(value, tuple):
        return _record.some(value, 300)
    return str(value) if isinstance(value, float) else value  # no floats in a record


@lru_cache(maxsize=256)
def _exe_json(exe: Executable | None) -> str:
    return _record.encoded(_exe(exe))


@lru_cache(maxsize=256)
def _how_json(
    requested: str,
    strategy: str | None,
    proof: str | None,
    verdicts: tuple[Verdict, ...],
    threads: int | None,
) -> str:
    why = [f"{one.guard}: {one.why}" for one in verdicts]
    told = {"requested": requested, "strategy": strategy, "proof": proof, "why": why, "threads": threads}
    return _record.encoded(told)


def _how(report: SpawnReport, verdict: Verdict | None = None) -> dict[str, Any]:
    how: dict[str, Any] = {
        "requested": report.requested,
        "strategy": report.strategy,
        "proof": report.proof,
        "why": list(report.reasons),
        "threads": report.threads,
    }
    if verdict is not None:
        how["guards"] = [{"g": verdict.guard, "r": verdict.result, "why": verdict.why}]
    return how


def _place(directory: bytes | int | None) -> Any:
    return _record.path(directory) if isinstance(directory, bytes) else directory


def _tags(tags: dict[str, str]) -> Any:
    pairs = _record.some(list(tags.items()))
    return tags if isinstance(pairs, list) else pairs


def _declared(request: Request) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """Return which arguments were declared secret, and which parts of them."""
    return [(index, secret.spans) for index, secret in request.secrets]


class Records:
    """One function per event; each returns what follows the envelope."""

    @staticmethod
    def _about(request: Request, report: SpawnReport, **what: Any) -> dict[str, Any]:
        return {
            "who": _probe.who(report.credentials),
            "what": {
                **_redaction.arguments(request.argv, _declared(request), request.redact),
                **what,
                "exe": _exe(report.executable),
                "cwd": _place(request.cwd),
            },
            "want": _want(request, report.identity),
        }

    @staticmethod
    def _tagged(request: Request) -> dict[str, Any]:
        tags = {**audit.current_tags(), **dict(request.audit_tags)}
        return {"tags": _tags(tags)} if tags else {}

    @classmethod
    def intent(
        cls,
        request: Request,
        report: SpawnReport,
        env: Sequence[tuple[bytes, bytes]],
        fds: Sequence[tuple[int, int]],
    ) -> Mapping[str, Any]:
        """Before the clone: who starts what, how, and why so. As C writes it: see :meth:`rest`."""
        about = cls._about(
            request,
            report,
            env_keys=_record.some([_record.text(name) for name, _ in env], 1000),
            env_mac=_redaction.environment_mac(env),
            fds=_record.some([_fd(source, target) for source, target in fds]),
        )
        about["what"]["env_removed"] = _record.some(report.removed_env)
        return {**about, "how": _how(report), **cls._tagged(request)}

    @staticmethod
    def hides(request: Request) -> bool:
        """Whether there is a secret among the arguments: those records are not C's to write."""
        return _redaction.hides(request.argv, _declared(request) if request.secrets else (), request.redact)

    @classmethod
    def rest(
        cls,
        request: Request,
        identity: Identity,
        exe: Executable | None,
        removed: tuple[str, ...],
        how: bytes,
    ) -> bytes:
        """Return what follows the descriptors in an intent, as C wants it: JSON."""
        plain = not request.has_options and (identity is KEEP or not identity.changes)
        want = "{}" if plain else _record.encoded(_want(request, identity))
        tags = ""
        if request.audit_tags or audit.current_tags():
            tags = f',"tags":{_record.encoded(cls._tagged(request)["tags"])}'
        cwd = "null" if request.cwd is None else _record.encoded(_place(request.cwd))
        gone = _record.encoded(_record.some(removed)) if removed else "[]"
        return (
            (f',"exe":{_exe_json(exe)},"cwd":{cwd},"env_removed":{gone}}},"want":{want},"how":').encode(
                "ascii"
            )
            + how
            + tags.encode("ascii")
        )

    @staticmethod
    def how(
        requested: str,
        strategy: str | None,
        proof: str | None,
        verdicts: tuple[Verdict, ...],
        threads: int | None,
    ) -> bytes:
        """Return the decision as JSON."""
        return _how_json(requested, strategy, proof, verdicts, threads).encode("ascii")

    @staticmethod
    def started(report: SpawnReport, outcome: _binding.Outcome, child: Child) -> Mapping[str, Any]:
        """After the exec: which process it is, and the way that was really taken."""
        pidfd = child.pidfd
        return {
            "how": _how(report),
            "outcome": {
                "outcome": report.outcome,
                "pid": outcome.pid,
                "pidfd_ino": os.fstat(pidfd).st_ino if pidfd >= 0 else None,
                "ns_to_exec": outcome.window_ns,
                "clone3": outcome.clone3,
                "confirmed": outcome.confirmed,
            },
        }

    @classmethod
    def failed(
        cls, request: Request, report: SpawnReport, outcome: _binding.Outcome | None
    ) -> Mapping[str, Any]:
        """No program ran: how far it got. It may have had no intent, so it tells all."""
        number = report.errno or 0
        return {
            **cls._about(request, report),
            "how": _how(report),
            **cls._tagged(request),
            "outcome": {
                "outcome": report.outcome,
                "step": report.stage,
                "errno": number,
                "name": errno.errorcode.get(number, ""),
                "message": os.strerror(number) if number else "",
                "pid": outcome.pid if outcome else None,
                "stuck": bool(outcome and outcome.stuck),
            },
        }

    @classmethod
    def denied(cls, request: Request, report: SpawnReport, verdict: Verdict) -> Mapping[str, Any]:
        """A guard refused; nothing was started."""
        return {**cls._about(request, report), "how": _how(report, verdict), **cls._tagged(request)}
