"""What must hold for a spawn to be safe, and the choice of the way to start it.

One pure function decides over facts that others have read. The registry names every
guard, the threats it answers (threat-model.md) and the place that enforces it; the
checks that matter are made again where they cannot be raced, in the child.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from . import _probe
from ._errors import UnsafeSpawn
from ._spec import Credentials, Decision, Facts, Identity, PathNode, Request, Verdict

__all__ = ["Guard", "registry", "require", "status"]

Place = Literal["parent", "child", "kernel"]


@dataclass(frozen=True)
class Guard:
    """A statement that holds, the threats it answers, and who enforces it where."""

    id: str
    statement: str
    threats: tuple[str, ...]
    enforced: tuple[Place, ...]
    source: str


def _table(*guards: Guard) -> dict[str, Guard]:
    return {guard.id: guard for guard in guards}


#: Every guard by id. ``source`` is the file that enforces it.
registry: dict[str, Guard] = _table(
    Guard("signals-blocked", "no handler of the application runs in a child",
          ("T-01",), ("parent", "child"), "_native.c"),
    Guard("alone-or-apart", "memory is shared only while nobody else can run on it",
          ("T-02",), ("parent", "kernel"), "_native.c"),
    Guard("window-bounded", "with a deadline no child keeps us waiting past it",
          ("T-03",), ("parent", "kernel"), "_native.c"),
    Guard("inputs-sealed", "nothing that the child reads can be written in the window",
          ("T-04",), ("kernel",), "_native.c"),
    Guard("creds-agree", "the child has the credentials that the decision rested on",
          ("T-05",), ("child",), "_native.c"),
    Guard("stack-guarded", "a child that overruns its stack faults",
          ("T-06",), ("kernel",), "_native.c"),
    Guard("child-raw-only", "child code makes raw system calls and touches nothing of libc",
          ("T-07",), ("child",), "_native.c"),
    Guard("fds-closed", "a child has 0, 1, 2 and what was named, nothing else",
          ("T-08",), ("child",), "_native.c"),
    Guard("pidfd-only", "a signal or a wait never reaches another process",
          ("T-09",), ("parent", "kernel"), "_child.py"),
    Guard("outcome-told", "a child killed before it ran the program is not taken for one that ran it",
          ("T-10",), ("parent", "child"), "_native.c"),
    Guard("intent-first", "nothing is started before its record is accepted",
          ("T-11",), ("parent",), "_spawn.py"),
    Guard("identity-whole", "another user means its gid and its groups too",
          ("T-12",), ("parent", "child"), "_identity.py"),
    Guard("drop-verified", "a drop is read back and cannot be undone",
          ("T-13",), ("child",), "_native.c"),
    Guard("exe-pinned", "the file that was hashed is the one that runs; no write to it since was seen",
          ("T-14",), ("parent", "kernel"), "_executable.py"),
    Guard("path-trusted", "no one but root and us can replace the program or a directory above it",
          ("T-15",), ("parent",), "guards.py"),
    Guard("env-scrubbed", "only allowed variables reach a child, none that loader or libc take code from",
          ("T-16",), ("parent",), "_environ.py"),
    Guard("input-checked", "a malformed request is refused before anything is started",
          ("T-17",), ("parent",), "_checks.py"),
    Guard("exe-held", "nobody can take a lease on the program while a child waits for it",
          ("T-18",), ("parent", "kernel"), "_native.c"),
    Guard("drop-apart", "a child never changes credentials in shared memory",
          ("T-19",), ("parent",), "_native.c"),
    Guard("record-one-line", "nothing in a request can forge, split or hide a record",
          ("T-20",), ("parent",), "audit/_record.py"),
)  # fmt: skip

#: Proofs from the weakest to the strongest; "fork" accepts none.
PROOFS = ("locked", "quiesced", "sealed", "single-threaded", "fork")

#: Those that this version can establish.
AVAILABLE = ("single-threaded",)


class _Requirement:
    """The weakest proof that this process accepts. Only ever raised."""

    rank = 0


def require(proof: str) -> None:
    """Accept from now on only ``proof`` or a stronger one as a reason to share memory.

    From weak to strong: ``locked``, ``quiesced``, ``sealed``, ``single-threaded``; and
    ``fork``, which means that memory is never shared again. Raises ValueError for any
    other name, and UnsafeSpawn for an attempt to accept less than before.
    """
    if proof not in PROOFS:
        raise ValueError(f"proof must be one of {', '.join(PROOFS)}, not {proof!r}")
    rank = PROOFS.index(proof)
    if rank < _Requirement.rank:
        raise UnsafeSpawn(f"{PROOFS[_Requirement.rank]!r} is required already, {proof!r} is weaker")
    _Requirement.rank = rank


def _accepted(proof: str) -> bool:
    return PROOFS.index(proof) >= _Requirement.rank


def _prove(facts: Facts) -> tuple[str | None, Verdict]:
    """Return the proof that holds, if any, and what was seen."""
    name = "alone-or-apart"
    if facts.alone is None:
        return None, Verdict(name, "deny", f"could not look: {facts.error}")
    if not facts.alone:
        seen = f"{facts.threads} threads" if facts.threads != 1 else "another process on our memory"
        return None, Verdict(name, "deny", f"{seen}, so a privilege could change in the window")
    if not _accepted("single-threaded"):
        return None, Verdict(name, "deny", f"{PROOFS[_Requirement.rank]!r} is required")
    if facts.memory_shared is not True:
        what = "does not share" if facts.memory_shared is False else "could not be tried for sharing"
        return None, Verdict(name, "deny", f"CLONE_VM {what} memory here")
    return "single-threaded", Verdict(name, "allow", "one thread, and nobody else on our memory")


def decide(request: Request, facts: Facts) -> Decision:
    """Choose how to start the program: pure, total, and in doubt without shared memory."""
    if request.strategy == "fork":
        return Decision("fork", None, (Verdict("alone-or-apart", "allow", "fork was asked for"),))
    if facts.changes_credentials:
        why = "the child changes credentials"
        verdicts = (Verdict("drop-apart", "deny", f"{why}, so it gets memory of its own"),)
        return Decision(None if request.strategy == "vfork" else "fork", None, verdicts)
    proof, verdict = _prove(facts)
    if proof is not None:
        return Decision("vfork", proof, (verdict,))
    refuse = request.strategy == "vfork" or request.on_unproven == "refuse"
    return Decision(None if refuse else "fork", None, (verdict,))


def not_alone(request: Request, before: Decision) -> Decision:
    """Decide again after the last look, in C with signals blocked, found somebody else."""
    seen = Verdict("alone-or-apart", "deny", "a thread appeared between decision and clone")
    refuse = request.strategy == "vfork" or request.on_unproven == "refuse"
    return Decision(None if refuse else "fork", None, (*before.verdicts, seen))


def needed(identity: Identity, creds: Credentials, held: tuple[int, ...]) -> bool:
    """Return whether becoming ``identity`` takes a change of credentials at all."""
    uids, gids = {creds.ruid, creds.euid, creds.suid}, {creds.rgid, creds.egid, creds.sgid}
    capless = not (creds.effective | creds.permitted | creds.inheritable)
    return not (
        identity.uid in (None, *uids)
        and (identity.uid is None or (len(uids) == 1 and (identity.uid == 0 or capless)))
        and identity.gid in (None, *gids)
        and (identity.gid is None or len(gids) == 1)
        and identity.groups in (None, held)
    )


def trusted(nodes: tuple[PathNode, ...], euid: int) -> Verdict:
    """Judge a path as OpenSSH does: path-trusted (T-15).

    Every component is ours or root's, and nobody else's to write. A sticky directory is
    refused too: others can put files beside the program there.
    """
    if not nodes:
        return Verdict("path-trusted", "deny", "the program has no path that we can see")
    for node in nodes:
        if node.uid not in (0, euid):
            return Verdict("path-trusted", "deny", f"{node.path} belongs to uid {node.uid}")
        if node.mode & 0o022:
            return Verdict(
                "path-trusted", "deny", f"{node.path} is writable by others (mode {node.mode & 0o7777:o})"
            )
    return Verdict("path-trusted", "allow", "every component is root's or ours, and only ours to write")


def status() -> dict[str, Any]:
    """Return what is guarded in this process right now, and what `auto` would do.

    Keys: ``required`` (the weakest proof accepted), ``proofs`` (name to what was seen),
    ``strategy`` and ``reasons`` (of a plain spawn), ``threads``, ``attributes`` (of our
    process, read by python-prctl), ``guards`` (id to statement).
    """
    facts = _probe.facts(_probe.look(), changes_credentials=False)
    decision = decide(Request((b"true",)), facts)
    _, verdict = _prove(facts)
    return {
        "required": PROOFS[_Requirement.rank],
        "proofs": {name: verdict.why if name in AVAILABLE else "not in this version" for name in PROOFS[:-1]},
        "strategy": decision.strategy,
        "reasons": decision.reasons,
        "threads": facts.threads,
        "attributes": _probe.attributes(),
        "guards": {guard.id: guard.statement for guard in registry.values()},
    }
