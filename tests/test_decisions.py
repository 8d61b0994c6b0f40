"""The decision: held against the rules of the design for every request and all facts, and the words for it.

No process is started: what is asked for, what was seen and what the process requires is all that decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

import helpers
from safespawn import UnsafeSpawn, _launcher, _lock, _probe, guards
from safespawn._spec import Credentials, Decision, Facts, Identity, PathNode, Request, Verdict

STRATEGIES = ("auto", "vfork", "clone", "posix_spawn", "launcher", "fork", "helper", "pool")
SHARING = ("vfork", "clone", "posix_spawn")
#: Proofs, the cheapest first, each with how strong it is: its place in what can be required.
STRENGTH = {"single-threaded": 3, "sealed": 2, "locked": 0}
REQUIRED = ("locked", "quiesced", "sealed", "single-threaded", "fork")


@pytest.fixture
def requirement(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the process require anything, and nothing again in the end."""
    monkeypatch.setattr(guards._Requirement, "rank", 0)
    return lambda rank: monkeypatch.setattr(guards._Requirement, "rank", rank)


def every_fact() -> Iterator[Facts]:
    """All that can have been seen."""
    sides = itertools.product(
        (None, True, False), (True, False), (None, True, False), (None, "open"), (None, "unlocked"),
        (True, False), (None, "no launcher"), ("no helper", None), (True, False),
    )  # fmt: skip
    for alone, changes, shared, unsealed, unlocked, filtered, unlaunchable, unhelped, pool in sides:
        threads = {None: None, True: 1, False: 3}[alone]
        yield Facts(alone, threads, changes, shared, "EIO", unsealed, unlocked, filtered, unlaunchable, unhelped, pool)


def proof_of(facts: Facts, required: int, *, by_libc: bool) -> str | None:
    """Return the proof that holds: the first of those that the process accepts, where memory is shared at all."""
    why = {"single-threaded": facts.alone, "sealed": facts.unsealed is None, "locked": facts.unlocked is None}
    holding = [name for name, holds in why.items() if holds and STRENGTH[name] >= required]
    may_share = facts.memory_shared or (by_libc and facts.memory_shared is None)
    return holding[0] if holding and may_share else None


def apart(facts: Facts) -> tuple[str | None, None]:
    """Return the way without shared memory."""
    if facts.unhelped is not None:
        return "fork", None
    return ("pool" if facts.pool else "helper"), None


def expected(request: Request, facts: Facts, required: int) -> tuple[str | None, str | None]:
    """Return strategy and proof as section 5 of the design has them."""
    asked = request.strategy
    refused = (None, None)
    if asked == "fork":
        return "fork", None
    if asked in ("helper", "pool"):
        can = facts.unhelped is None and (asked == "helper" or facts.pool)
        return (asked, None) if can else refused
    if facts.changes_credentials and asked in SHARING:
        return refused
    if facts.changes_credentials or asked == "launcher":
        proof = proof_of(facts, required, by_libc=False)
        can_launch = proof is not None and facts.unlaunchable is None and not facts.filtered
        return ("launcher", proof) if can_launch else refused if asked == "launcher" else apart(facts)
    proof = proof_of(facts, required, by_libc=asked == "posix_spawn")
    if proof is not None:
        return ("vfork" if asked == "auto" else asked), proof
    if asked in SHARING or (request.on_unproven == "refuse" and facts.unhelped is not None):
        return refused
    return apart(facts)


@pytest.mark.threat("T-02")
@pytest.mark.threat("T-19")
@pytest.mark.parametrize("required", range(len(REQUIRED)), ids=REQUIRED)
def test_every_decision(requirement: Any, required: int) -> None:
    """Strategy and proof are those of the design for every request and all facts, and the last verdict agrees."""
    requirement(required)
    requests = [
        Request((b"true",), strategy=strategy, on_unproven=unproven)
        for strategy in STRATEGIES
        for unproven in ("fork", "refuse")
    ]
    for facts in every_fact():
        for request in requests:
            made = guards.decide(request, facts)
            assert (made.strategy, made.proof) == expected(request, facts, required), (request, facts)
            assert made.strategy is not None or made.verdicts[-1].result == "deny", (request, facts)
            is_new = made.strategy in (*SHARING, "launcher")
            assert not is_new or {verdict.result for verdict in made.verdicts} == {"allow"}, (request, facts)


SEEN = Facts(alone=False, threads=3, changes_credentials=False, unsealed="open", unlocked="not armed")
CHANGES = SEEN._replace(changes_credentials=True, unlaunchable=None)
ALONE = SEEN._replace(alone=True, threads=1)
HELPED = SEEN._replace(unhelped=None)
SEALED = CHANGES._replace(filtered=True, unsealed=None)
IN_THE_WINDOW = "so a privilege could change in the window"
ASKED = Request((b"true",))
UNPROVEN = ("alone-or-apart", "deny", f"3 threads, {IN_THE_WINDOW}: not armed")
HELPS = ("alone-or-apart", "allow", "the helper makes the child, and shares no memory with us")
HELPS_CHANGES = ("drop-apart", "allow", "the helper's child changes credentials in its own memory")
APART = ("drop-apart", "deny", "the child changes credentials, so it gets memory of its own")
PRIVILEGES = ("changes-sealed", "allow", "no_new_privs is set, as the seal demands")
SEALED_LAUNCH = (
    "drop-apart", "deny", "no launcher: a program that was exec'd cannot change credentials under the seal"
)  # fmt: skip

#: What was asked for and seen, how strong a proof is required, and every verdict.
VERDICTS: dict[str, tuple[str, Facts, int, list[tuple[str, str, str]]]] = {
    "alone": ("auto", ALONE, 0, [("alone-or-apart", "allow", "one thread, and nobody else on our memory")]),
    "sealed": ("auto", SEEN._replace(unsealed=None), 0, [
        ("changes-sealed", "allow", "no thread can change credentials any more")]),
    "locked": ("auto", SEEN._replace(unlocked=None), 0, [
        ("changes-wait", "allow", "every change of credentials waits, and all threads are alike")]),
    "unproven": ("auto", SEEN, 0, [UNPROVEN]),
    "unseen": ("auto", SEEN._replace(alone=None, threads=None, error="EIO"), 0, [
        ("alone-or-apart", "deny", "could not look: EIO")]),
    "stranger": ("auto", SEEN._replace(threads=1), 0, [
        ("alone-or-apart", "deny", f"another process on our memory, {IN_THE_WINDOW}: not armed")]),
    "required-sealed": ("auto", SEEN, 2, [
        ("alone-or-apart", "deny", f"3 threads, {IN_THE_WINDOW}: open ('sealed' is required)")]),
    "required-quiesced": ("auto", SEEN, 1, [
        ("alone-or-apart", "deny", f"3 threads, {IN_THE_WINDOW}: open ('quiesced' is required)")]),
    "required-alone": ("auto", SEEN, 3, [
        ("alone-or-apart", "deny", "3 threads, and 'single-threaded' is required")]),
    "required-fork": ("auto", ALONE, 4, [("alone-or-apart", "deny", "one thread, and 'fork' is required")]),
    "no-sharing": ("auto", ALONE._replace(memory_shared=False), 0, [
        ("alone-or-apart", "deny", "CLONE_VM does not share memory here")]),
    "not-tried": ("auto", ALONE._replace(memory_shared=None), 0, [
        ("alone-or-apart", "deny", "CLONE_VM could not be tried here: no /proc, a refused call, or a new PID namespace")]),
    "launched": ("auto", CHANGES._replace(unlocked=None), 0, [
        ("changes-wait", "allow", "every change of credentials waits, and all threads are alike"),
        ("drop-apart", "allow", "the launcher changes credentials in its own memory")]),
    "unlaunchable": ("auto", CHANGES._replace(unlocked=None, unlaunchable="gone"), 0, [
        ("drop-apart", "deny", "no launcher: gone"), APART]),
    "unproven-launch": ("launcher", CHANGES, 0, [UNPROVEN]),
    "sealed-launch": ("auto", SEALED, 0, [SEALED_LAUNCH, APART, PRIVILEGES]),
    "sealed-fork": ("fork", SEALED, 0, [("alone-or-apart", "allow", "fork was asked for"), PRIVILEGES]),
    "sealed-fork-alike": ("fork", SEALED._replace(changes_credentials=False), 0, [
        ("alone-or-apart", "allow", "fork was asked for")]),
    "forked": ("fork", CHANGES, 0, [("alone-or-apart", "allow", "fork was asked for")]),
    "changes-unproven": ("auto", CHANGES, 0, [UNPROVEN, APART]),
    "shares-and-changes": ("vfork", CHANGES, 0, [APART]),
    "filtered-alike": ("auto", SEEN._replace(filtered=True), 0, [UNPROVEN]),
    "helper-instead": ("auto", HELPED, 0, [UNPROVEN, HELPS]),
    "helper-changes": ("auto", CHANGES._replace(unhelped=None), 0, [UNPROVEN, HELPS, HELPS_CHANGES]),
    "helper": ("helper", HELPED, 0, [HELPS]),
    "pool": ("pool", CHANGES._replace(unhelped=None, pool=True), 0, [HELPS, HELPS_CHANGES]),
    "no-helper": ("helper", SEEN, 0, [("alone-or-apart", "deny", "no helper: no helper is running")]),
    "no-pool": ("pool", HELPED, 0, [
        ("alone-or-apart", "deny", "no helper: the helper keeps no children parked")]),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_words_of_a_decision(requirement: Any, case: str) -> None:
    """A decision says every guard that it rests on, in the order in which they were asked, and why."""
    strategy, facts, required, verdicts = VERDICTS[case]
    requirement(required)
    made = guards.decide(ASKED._replace(strategy=strategy), facts)
    assert [tuple(verdict) for verdict in made.verdicts] == verdicts


def test_beside_others() -> None:
    """By choice a program that starts beside others is cloned; what was named stays."""
    seen = (Verdict("alone-or-apart", "allow", "x"),)
    for asked, decided, becomes in (
        ("auto", "vfork", "clone"), ("auto", "fork", "fork"), ("auto", None, None), ("vfork", "vfork", "vfork"),
    ):  # fmt: skip
        made = guards.beside(ASKED._replace(strategy=asked), Decision(decided, "locked", seen))
        assert made == Decision(becomes, "locked", seen)


LOST = {
    ("proof", "single-threaded"): ("alone-or-apart", "a thread appeared between decision and clone, or /proc did not say"),
    ("proof", None): ("alone-or-apart", "a thread appeared between decision and clone, or /proc did not say"),
    ("proof", "sealed"): ("changes-sealed", "the seal was not to be seen at the clone"),
    ("proof", "locked"): (
        "changes-wait", "a change of credentials came between decision and clone, or too many spawns are under way"),
    ("preempted", "locked"): (
        "change-bounded", "a change of credentials waited too long, and the child was killed for it"),
    ("epoch", None): ("epoch-agrees", "credentials changed before the exec, so it began anew"),
    ("launch", "locked"): ("drop-apart", "the launcher could not be used (why)"),
    ("helper", None): ("helper-obeys", "why"),
}  # fmt: skip


@pytest.mark.parametrize(("why", "proof"), LOST, ids=str)
@pytest.mark.parametrize("unproven", ["fork", "refuse"])
def test_every_loss(why: Any, proof: str | None, unproven: Any) -> None:
    """Who has lost the reason to share memory forks, unless that way was named or a refusal was asked for."""
    guard, words = LOST[why, proof]
    before = Verdict("alone-or-apart", "allow", "x")
    for asked, used in itertools.product(STRATEGIES, STRATEGIES[1:]):
        request = ASKED._replace(strategy=asked, on_unproven=unproven)
        made = guards.lost(request, Decision(used, proof, (before,)), why, "why")
        refuses = unproven == "refuse" and used not in ("launcher", "fork")
        is_named = asked == used and used != "fork"
        assert made == Decision(None if refuses or is_named else "fork", None, (before, Verdict(guard, "deny", words)))


def test_requirement_is_only_raised(requirement: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each proof can be required, a weaker one no more, and what is none is named."""
    told: list[int] = []
    monkeypatch.setattr(guards._Config, "told", None)  # what was there comes back
    guards.on_config(lambda: told.append(guards._Requirement.rank))
    for proof in REQUIRED:
        guards.require(proof)
        guards.require(proof)
    assert told == [rank for rank in range(len(REQUIRED)) for _ in "12"]
    for proof in REQUIRED[:-1]:
        with pytest.raises(UnsafeSpawn, match=f"'fork' is required already, '{proof}' is weaker"):
            guards.require(proof)
    known = "locked, quiesced, sealed, single-threaded, fork"
    with pytest.raises(ValueError, match=f"proof must be one of {known}, not 'none'"):
        guards.require("none")
    assert (guards._Requirement.rank, len(told)) == (4, 10)


def test_arming_and_sealing_are_told(requirement: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arming and sealing hand on what was asked for, and the records tell it after it is done."""
    done: list[Any] = []
    monkeypatch.setattr(_lock, "arm", lambda **asked: done.append(asked))
    monkeypatch.setattr(_lock, "seal", lambda: done.append("sealed"))
    monkeypatch.setattr(_lock, "status", lambda: {"state": "as it is"})
    monkeypatch.setattr(_lock, "credential_change", lambda: done)
    monkeypatch.setattr(guards._Config, "told", lambda: done.append("told"))
    assert guards.arm(wait=2, guard_foreign=True) == {"state": "as it is"}
    guards.arm()
    guards.seal()
    assert done == [
        {"wait": 2, "guard_foreign": True}, "told", {"wait": None, "guard_foreign": False}, "told", "sealed", "told"
    ]  # fmt: skip
    monkeypatch.setattr(guards._Config, "told", None)
    guards.tell_config()
    assert guards.credential_change() is done  # _lock's own


def creds(uids: tuple[int, int, int], gids: tuple[int, int, int], caps: tuple[int, int, int]) -> Credentials:
    """Return credentials of those ids and capability sets."""
    return Credentials(*uids, *gids, *caps)


@pytest.mark.threat("T-12")
def test_every_identity_that_needs_no_change() -> None:
    """Only who is wholly what it is to be already needs no change: a user without capabilities, all ids alike."""
    triples = list(itertools.product((0, 7), repeat=3))
    for uids, gids, caps in itertools.product(triples, triples, ((0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 4))):
        for uid, gid, groups in itertools.product((None, 0, 7), (None, 0, 7), (None, (), (5,))):
            held = creds(uids, gids, caps)
            is_user = uid is None or (set(uids) == {uid} and (uid == 0 or not any(caps)))
            is_group = gid is None or set(gids) == {gid}
            is_alike = is_user and is_group and groups in (None, (5,))
            assert guards.needed(Identity(uid, gid, groups), held, (5,)) is (not is_alike)


@pytest.mark.threat("T-12")
def test_who_keeps_groups_of_ours() -> None:
    """A user without its gid or its groups keeps some of ours; without a user nothing is said to be whole."""
    for uid, gid, groups in itertools.product((None, 0), (None, 0), (None, ())):
        keeps = uid == 0 and (gid is None or groups is None)
        assert guards.keeps_groups(Identity(uid, gid, groups)) is keeps


@pytest.mark.threat("T-15")
def test_paths_that_are_trusted() -> None:
    """Every component is root's or ours and nobody else's to write: the first that is not is named."""
    good = (PathNode("/", 0, 0, 0o40755), PathNode("/mine", 7, 7, 0o100700), PathNode("/file", 0, 9, 0o104755))
    whole = ("path-trusted", "allow", "every component is root's or ours, and only ours to write")
    assert guards.trusted(good, 7) == whole
    assert guards.trusted((), 0) == ("path-trusted", "deny", "the program has no path that we can see")
    assert guards.trusted(good, 8) == ("path-trusted", "deny", "/mine belongs to uid 7")
    for mode, told in ((0o41777, "1777"), (0o40775, "775"), (0o40757, "757"), (0o40720, "720"), (0o40702, "702")):
        for at in range(len(good) + 1):
            path = (*good[:at], PathNode("/open", 0, 0, mode), *good[at:])
            refused = ("path-trusted", "deny", f"/open is writable by others (mode {told})")
            assert guards.trusted(path, 7) == refused
    assert guards.trusted((good[0], PathNode("/other", 5, 0, 0o40777)), 7).why == "/other belongs to uid 5"


def test_status_tells_what_was_decided(requirement: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proof with what was seen of it, those that one thread does not need too, and the decision of a plain spawn."""
    monkeypatch.setattr(_lock, "unsealed", lambda: "open")
    monkeypatch.setattr(_lock, "why_not", lambda: None)
    monkeypatch.setattr(_launcher, "hindrance", lambda creds: None)
    monkeypatch.setattr(_launcher, "hold", lambda: (None, None))
    monkeypatch.setattr(_probe, "facts", lambda seen, changes_credentials: ALONE._replace(changes_credentials=changes_credentials))
    told = guards.status()
    assert told["proofs"] == {
        "locked": "holds", "quiesced": "not in this version", "sealed": "open", "single-threaded": "holds"
    }  # fmt: skip
    assert (told["required"], told["strategy"], told["threads"], told["launcher"]) == ("locked", "vfork", 1, "ready")
    assert told["reasons"] == ("alone-or-apart: one thread, and nobody else on our memory",)
    assert told["guards"] == {key: guard.statement for key, guard in guards.registry.items()}

    requirement(4)
    monkeypatch.setattr(_launcher, "hold", lambda: (None, "gone"))
    told = guards.status()
    assert (told["required"], told["strategy"], told["launcher"]) == ("fork", "fork", "gone")
    monkeypatch.setattr(_launcher, "hindrance", lambda creds: "hindered")
    assert guards.status()["launcher"] == "hindered"


def test_nothing_is_required_at_first() -> None:
    """A process that has said nothing accepts every proof."""
    out = helpers.run_snippet("from safespawn import guards\nout['required'] = guards.status()['required']")
    assert out == {"required": "locked"}
