"""What must hold for a spawn to be safe, and the choice of the way to start it.

One pure function decides over facts that others have read. The registry names every
guard, the threats it answers (threat-model.md) and the place that enforces it; the
checks that matter are made again where they cannot be raced, in the child.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from . import _launcher, _lock, _probe
from ._errors import UnsafeSpawn
from ._spec import Credentials, Decision, Facts, Identity, PathNode, Request, Verdict

__all__ = ["Guard", "arm", "credential_change", "registry", "require", "seal", "status"]

Place = Literal["parent", "child", "launcher", "helper", "kernel"]


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
          ("T-13",), ("child", "launcher"), "_drop.c"),
    Guard("exe-pinned", "the file that was hashed is the one that runs; no write to it since was seen",
          ("T-14",), ("parent", "kernel"), "_executable.py"),
    Guard("path-trusted", "no one but root and us can replace the program or a directory above it",
          ("T-15",), ("parent",), "guards.py"),
    Guard("env-scrubbed", "only allowed variables reach a child, none that loader or libc take code from",
          ("T-16",), ("parent",), "_environ.py"),
    Guard("input-checked", "a malformed request is refused before anything is started",
          ("T-17",), ("parent",), "_checks.py"),
    Guard("exe-held", "nobody can take a lease on the program while a child waits for it",
          ("T-18",), ("parent", "kernel"), "_find.c"),
    Guard("drop-apart", "a child never changes credentials, nor where it belongs, in shared memory",
          ("T-19", "T-31"), ("parent",), "_native.c"),
    Guard("record-one-line", "nothing in a request can forge, split or hide a record",
          ("T-20",), ("parent",), "_text.c"),
    Guard("changes-wait", "no thread changes credentials through libc while a child shares our memory",
          ("T-21",), ("parent",), "_credlock.c"),
    Guard("change-bounded", "no child keeps a change of credentials waiting for long",
          ("T-22",), ("parent", "kernel"), "_credlock.c"),
    Guard("epoch-agrees", "no change of credentials came between the decision and the exec",
          ("T-23",), ("child",), "_native.c"),
    Guard("lock-covers", "nothing is known that would call past the credential lock",
          ("T-24",), ("parent",), "_interpose.c"),
    Guard("tasks-alike", "all threads had the same credentials since the last change",
          ("T-25",), ("parent",), "_tasks.c"),
    Guard("changes-sealed", "the kernel refuses every change of credentials, raw ones too",
          ("T-26",), ("kernel",), "_seal.c"),
    Guard("level-kept", "the launcher has the capabilities of its parent, no others",
          ("T-28",), ("launcher",), "_launcher.c"),
    Guard("plan-sealed", "the launcher obeys its own plan, and nobody can change that",
          ("T-29",), ("parent", "launcher", "kernel"), "_wire.c"),
    Guard("launcher-intact", "the launcher is the file that was built with the core, unchanged",
          ("T-30",), ("parent",), "_launcher.py"),
    Guard("helper-obeys", "a helper starts nothing but what every one of its policies allows",
          ("T-37",), ("helper",), "_allowed.c"),
    Guard("helper-asked", "a helper does what its own daemon asks, in whole messages, and nobody else",
          ("T-38",), ("helper", "kernel"), "_helper.c"),
    Guard("helper-retires", "a helper ends when its daemon has dropped what it was started with",
          ("T-39",), ("parent", "helper"), "_ask.c"),
    Guard("claim-first", "what a helper was asked for runs once, and is ours, or never runs",
          ("T-40",), ("parent", "helper"), "_ask.c"),
    Guard("pool-parked", "a child that waits for its plan has nothing of others, and ends with its helper",
          ("T-41",), ("helper",), "_helper.c"),
    Guard("helper-alike", "a child of the helper has what it would have inherited from us",
          ("T-42",), ("parent",), "_standing.c"),
    Guard("foreign-locked", "vfork and posix_spawn of others go under the lock, if asked for",
          ("T-27",), ("parent",), "_foreign.c"),
    Guard("program-allowed", "no program runs that the policy refuses, whatever name it was asked for by",
          ("T-35",), ("parent",), "_executable.py"),
    Guard("starts-taken", "once installed, what the standard library starts is guarded and recorded",
          ("T-36",), ("parent",), "takeover.py"),
    Guard("records-chained", "no record that was kept can be changed, moved or cut away unseen",
          ("T-32",), ("parent",), "_ledger_keys.c"),
    Guard("ledger-ours", "records go into the ledger and no other file, and no one puts another in its place",
          ("T-33",), ("parent",), "_ledger.c"),
    Guard("outcome-fits", "room for outcome and exit is put by before a program is started",
          ("T-34",), ("parent", "kernel"), "_ledger.c"),
)  # fmt: skip

#: Proofs from the weakest to the strongest; "fork" accepts none.
PROOFS = ("locked", "quiesced", "sealed", "single-threaded", "fork")

#: Those that this version can establish.
AVAILABLE = ("locked", "sealed", "single-threaded")


class _Requirement:
    """The weakest proof that this process accepts. Only ever raised."""

    rank = 0


class _Config:
    """Who wants to know when the configuration of the guards has changed."""

    told: Callable[[], None] | None = None


def on_config(told: Callable[[], None]) -> None:
    """Have that called after each change of what is guarded; for the records."""
    _Config.told = told


def tell_config() -> None:
    """Have the records tell what is guarded now."""
    if _Config.told is not None:
        _Config.told()


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
    tell_config()


def _accepted(proof: str) -> bool:
    return PROOFS.index(proof) >= _Requirement.rank


def _proofs(facts: Facts) -> dict[str, str | None]:
    """Return every proof, the cheapest first, with why it does not hold (None: it does)."""
    if facts.alone is None:
        single: str | None = f"could not look: {facts.error}"
    elif facts.alone:
        single = None
    else:
        single = f"{facts.threads} threads" if facts.threads != 1 else "another process on our memory"
    return {
        "single-threaded": single,
        "sealed": facts.unsealed,
        "locked": facts.unlocked,
    }


_HOLDS = {
    "single-threaded": ("alone-or-apart", "one thread, and nobody else on our memory"),
    "sealed": ("changes-sealed", "no thread can change credentials any more"),
    "locked": ("changes-wait", "every change of credentials waits, and all threads are alike"),
}


def _unproven(facts: Facts, proofs: dict[str, str | None]) -> str:
    """Say why no proof that is accepted holds: in the words of the weakest of them."""
    if facts.alone is None:
        return str(proofs["single-threaded"])
    weakest = next((proof for proof in reversed(proofs) if _accepted(proof)), None)
    seen = proofs["single-threaded"] or "one thread"
    required = f"{PROOFS[_Requirement.rank]!r} is required" if _Requirement.rank else ""
    if weakest in (None, "single-threaded"):
        return f"{seen}, and {required}"
    why = f"{seen}, so a privilege could change in the window: {proofs[weakest]}"
    return f"{why} ({required})" if required else why


def _prove(facts: Facts) -> tuple[str | None, Verdict]:
    """Return the proof that holds, if any, and what was seen."""
    name = "alone-or-apart"
    proofs = _proofs(facts)
    proof = next((proof for proof, why in proofs.items() if why is None and _accepted(proof)), None)
    if proof is None:
        return None, Verdict(name, "deny", _unproven(facts, proofs))
    if facts.memory_shared is not True:
        tried = "could not be tried here: no /proc, a refused call, or a new PID namespace"
        what = "does not share memory here" if facts.memory_shared is False else tried
        return None, Verdict(name, "deny", f"CLONE_VM {what}")
    guard, why = _HOLDS[proof]
    return proof, Verdict(guard, "allow", why)


_APART = Verdict("drop-apart", "deny", "the child changes credentials, so it gets memory of its own")
_LAUNCHED = Verdict("drop-apart", "allow", "the launcher changes credentials in its own memory")
_NO_NEW_PRIVS = Verdict("changes-sealed", "allow", "no_new_privs is set, as the seal demands")


def _unlaunchable(facts: Facts) -> str | None:
    if facts.filtered:
        return "a program that was exec'd cannot change credentials under the seal"
    return facts.unlaunchable


_HELPED = Verdict("alone-or-apart", "allow", "the helper makes the child, and shares no memory with us")
_HELPED_APART = Verdict("drop-apart", "allow", "the helper's child changes credentials in its own memory")


def _helped(facts: Facts, way: Literal["helper", "pool"], *seen: Verdict) -> Decision:
    """Have a helper do it; ``seen`` is what kept us from a faster way."""
    changes = (_HELPED_APART,) if facts.changes_credentials else ()
    return Decision(way, None, (*seen, _HELPED, *changes))


def _decide_helped(facts: Facts, way: Literal["helper", "pool"]) -> Decision:
    """Decide for who asked for a helper by name."""
    why = facts.unhelped or (
        "the helper keeps no children parked" if way == "pool" and not facts.pool else None
    )
    if why is not None:
        return Decision(None, None, (Verdict("alone-or-apart", "deny", f"no helper: {why}"),))
    return _helped(facts, way)


def _decide_apart(facts: Facts, *seen: Verdict) -> Decision:
    """Give the child memory of its own: by a helper if there is one, for a fork costs what we are large."""
    if facts.unhelped is None:
        return _helped(facts, "pool" if facts.pool else "helper", *seen)
    changes = (_APART,) if facts.changes_credentials else ()
    sealed = (_NO_NEW_PRIVS,) if facts.filtered and facts.changes_credentials else ()
    return Decision("fork", None, (*seen, *changes, *sealed))


def _decide_launch(request: Request, facts: Facts) -> Decision:
    """Choose for a child that changes credentials, or that is to go by the launcher all the same."""
    proof, verdict = _prove(facts)
    why = _unlaunchable(facts)
    if proof is not None and why is None:
        return Decision("launcher", proof, (verdict, _LAUNCHED))
    if why is not None:
        verdict = Verdict("drop-apart", "deny", f"no launcher: {why}")
    if request.strategy == "launcher":
        return Decision(None, None, (verdict,))
    return _decide_apart(facts, verdict)


#: Those that share memory until the program runs, and differ in who makes the child and who waits how.
_SHARING = ("vfork", "clone", "posix_spawn")


def _decide_unproven(request: Request, facts: Facts, verdict: Verdict) -> Decision:
    refuses = request.on_unproven == "refuse" and facts.unhelped is not None
    if request.strategy in _SHARING or refuses:
        return Decision(None, None, (verdict,))
    return _decide_apart(facts, verdict)


def decide(request: Request, facts: Facts) -> Decision:
    """Choose how to start the program: pure, total, and in doubt without shared memory."""
    if request.strategy == "fork":
        verdict = Verdict("alone-or-apart", "allow", "fork was asked for")
        sealed = facts.filtered and facts.changes_credentials
        return Decision("fork", None, (verdict, _NO_NEW_PRIVS) if sealed else (verdict,))
    if request.strategy in ("helper", "pool"):
        return _decide_helped(facts, request.strategy)
    return _decide_shared(request, facts)


def _decide_shared(request: Request, facts: Facts) -> Decision:
    if facts.changes_credentials and request.strategy in _SHARING:
        return Decision(None, None, (_APART,))
    if facts.changes_credentials or request.strategy == "launcher":
        return _decide_launch(request, facts)
    by_libc = request.strategy == "posix_spawn"
    if by_libc and facts.memory_shared is None:  # only libc may clone here: we could not try
        facts = facts._replace(memory_shared=True)
    proof, verdict = _prove(facts)
    if proof is not None:
        return Decision("vfork" if request.strategy == "auto" else request.strategy, proof, (verdict,))
    return _decide_unproven(request, facts, verdict)


def beside(request: Request, decision: Decision) -> Decision:
    """Return the decision for a program that is to start beside others: ``clone`` for ``vfork`` by choice."""
    if request.strategy == "auto" and decision.strategy == "vfork":
        return decision._replace(strategy="clone")
    return decision


#: Why what was decided does not stand: a proof was lost before the clone, the child was
#: killed for a change, it saw that the epoch had moved, the launcher did not run as it should, or
#: the helper did not start it.
Loss = Literal["proof", "preempted", "epoch", "launch", "helper"]

_LOST = {
    "single-threaded": Verdict(
        "alone-or-apart", "deny", "a thread appeared between decision and clone, or /proc did not say"
    ),
    "sealed": Verdict("changes-sealed", "deny", "the seal was not to be seen at the clone"),
    "locked": Verdict(
        "changes-wait",
        "deny",
        "a change of credentials came between decision and clone, or too many spawns are under way",
    ),
}
_PREEMPTED = Verdict(
    "change-bounded", "deny", "a change of credentials waited too long, and the child was killed for it"
)
_MOVED = Verdict("epoch-agrees", "deny", "credentials changed before the exec, so it began anew")


def lost(request: Request, before: Decision, why: Loss, detail: str = "") -> Decision:
    """Decide again, without shared memory, for a spawn that has run nothing; ``detail`` of the last two."""
    unlaunched = Verdict("drop-apart", "deny", f"the launcher could not be used ({detail})")
    unhelped = Verdict("helper-obeys", "deny", detail)
    seen = {"preempted": _PREEMPTED, "epoch": _MOVED, "launch": unlaunched, "helper": unhelped}.get(why)
    seen = seen or _LOST[before.proof or "single-threaded"]
    named = request.strategy == before.strategy != "fork"
    refuse = named or (before.strategy in (*_SHARING, "helper", "pool") and request.on_unproven == "refuse")
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


#: What subprocess means by ``user`` and ``group``, asked for by its own face: identity-whole (T-12) warns.
GROUPS_KEPT = Verdict(
    "identity-whole", "allow", "as subprocess has it: groups of ours that are not named stay"
)


def keeps_groups(identity: Identity) -> bool:
    """Return whether a child that becomes this keeps a group of ours."""
    return identity.uid is not None and (identity.gid is None or identity.groups is None)


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


def arm(*, wait: float | None = None, guard_foreign: bool = False) -> dict[str, Any]:
    """Arm the credential lock, or look again at what it covers; return :func:`status` of it.

    From then on every change of credentials that goes through libc waits until no child
    shares our memory, at most ``wait`` seconds (from 0.001 to 60; 0.1 unless it was set
    before): then a child that has not reached its program is killed, its spawn tried again
    without shared memory, and the change goes ahead. Importing safespawn arms it, unless the environment has
    ``SAFESPAWN_ARM=0``; the earlier, the fewer pointers to libc's functions can have been
    taken before. Arming again searches for those anew.

    ``guard_foreign`` makes ``vfork`` and ``posix_spawn`` called by others in this process
    safe too: beside other threads the first becomes fork, the second goes under the lock and
    answers EAGAIN where that cannot be had. It cannot be undone.

    If arming fails the state is ``unlockable``, with the reason, and no memory is shared among
    threads for it; wrappers that are in place already stay. If it was armed before it still is.
    Raises TypeError or ValueError for a bad argument.
    """
    _lock.arm(wait=wait, guard_foreign=guard_foreign)
    tell_config()
    return _lock.status()


def credential_change() -> AbstractContextManager[None]:
    """Bracket a change of credentials that does not go through libc (raw system calls).

    Inside no child shares our memory, in any thread; spawns fork meanwhile. Entering waits
    for those under way, without the GIL, as long as a change through libc would (see
    :func:`arm`). Leaving moves the epoch, so that all threads are compared before memory is
    shared again, and leaves a ``cred.change`` record.
    """
    return _lock.credential_change()


def seal() -> None:
    """Have the kernel refuse every change of credentials in this process, for good.

    A seccomp filter on all threads answers EPERM to every system call that changes ids,
    groups, capabilities, securebits, no_new_privs, filters, namespaces, root or keyrings,
    however it is made. Only our own forked children still change theirs, to become another
    user. From then on the proof ``sealed`` holds with any number of threads.

    **Every program started from here inherits that**: su, sudo, login, container tools and
    whatever drops privileges or sandboxes itself fails there. A child with ``user=`` gets
    ``no_new_privs`` too, because a set-user-ID program that could not drop and does not look
    would stay root. README.md tells all consequences. Seal last, when the process has become
    what it is to be.

    Needs CAP_SYS_ADMIN or no_new_privs, which is not set for you. Raises OSError, and nothing
    has changed: EACCES without either; ESRCH when a thread has a filter of its own (it is
    named); EPERM when a sandbox or a seal that we inherited is in the way; ENOSYS, EINVAL on a
    kernel without filters. ENOTSUP: the filter is on, but does not do what it says. If
    threads have different credentials already, the seal is on and proves nothing:
    :func:`status` says so. Twice is no error.
    """
    _lock.seal()
    tell_config()


def status() -> dict[str, Any]:
    """Return what is guarded in this process right now, and what `auto` would do.

    Keys: ``required`` (the weakest proof accepted), ``proofs`` (name to what was seen),
    ``strategy`` and ``reasons`` (of a plain spawn), ``launcher`` (``ready``, or why a child that
    changes credentials is forked even where a proof holds), ``threads``, ``attributes`` (of our
    process, read by python-prctl), ``guards`` (id to statement), ``lock``.

    ``lock`` has: ``state`` (``off``, ``armed``, ``unlockable``) and ``errno`` of what failed;
    ``problems`` (what keeps it from covering everything, and what to do about it) and ``why``,
    the first of them; ``covered`` and ``missing`` (functions),
    ``guard_foreign``; ``objects`` (loaded, searched),
    ``slots`` (calls bound in them), ``patched`` (of those, led to us), ``exports`` (symbols
    rewritten); ``captured`` (pointers taken before), ``captured_at`` and ``captured_in`` (the
    first), ``unsearched`` (mappings that were not searched); ``foreign`` (functions of another
    interposer), ``foreign_name`` and ``foreign_in`` (the last); ``other_namespaces`` (objects
    in them); ``changes`` (seen), ``epoch``, ``spawners`` and ``changers`` (in it now),
    ``changer_waits``, ``overlaps`` (changes that went ahead beside a child of others),
    ``wait`` (seconds), ``arming_us``.
    """
    seen = _probe.look()
    facts = _probe.facts(seen, changes_credentials=False)
    facts = facts._replace(unlaunchable=_launcher.hindrance(seen.credentials) or _launcher.hold()[1])
    decision = decide(Request((b"true",)), facts)
    # Those that one thread does not need are looked at here all the same.
    proofs = {**_proofs(facts), "sealed": _lock.unsealed(), "locked": _lock.why_not()}
    return {
        "required": PROOFS[_Requirement.rank],
        "proofs": {
            name: (proofs[name] or "holds") if name in AVAILABLE else "not in this version"
            for name in PROOFS[:-1]
        },
        "strategy": decision.strategy,
        "reasons": decision.reasons,
        "launcher": _unlaunchable(facts) or "ready",
        "threads": facts.threads,
        "attributes": _probe.attributes(),
        "guards": {guard.id: guard.statement for guard in registry.values()},
        "lock": _lock.status(),
    }
