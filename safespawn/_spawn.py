"""The order of work of one spawn: request, facts, decision, program, record, window, record."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from . import (
    _binding,
    _changes,
    _checks,
    _child,
    _environ,
    _executable,
    _guard_config,
    _helpers,
    _identity,
    _launcher,
    _lock,
    _places,
    _policy,
    _probe,
    _streams,
    _values,
    audit,
    guards,
)
from ._errors import AuditError, KilledBeforeExec, RaceDetected, SpawnError, SpawnTimeout, UnsafeSpawn
from ._process import Process
from ._records import Records
from ._spec import KEEP, Decision, Executable, Facts, Identity, Request, SpawnReport, Verdict, Word
from ._surely import surely
from .audit._core import LOST, Teller, intent, new_kept, process_number, started
from .audit._ledger import Make

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._secret import Secret
    from ._spec import SpawnOptions

_LIB = _binding.lib

_guard_config.attach()


def spawn(argv: Iterable[Word], **options: Unpack[SpawnOptions]) -> Process:
    """Start a program and return its handle; README.md has the table of options.

    Returns when the program runs (the child has passed execve). Otherwise nothing runs,
    and one of these is raised, with ``report`` (a :class:`SpawnReport`) on it:

    * TypeError, ValueError, KeyError (no such user): the request is malformed, and nothing
      was looked at yet; these have no report.
    * OSError of the errno's own class, ``stage`` naming the step that failed: as subprocess
      for a program that is missing or may not be run.
    * UnsafeSpawn: a guard refused. RaceDetected: credentials changed meanwhile.
    * SpawnTimeout: not running by the ``deadline``. KilledBeforeExec: killed by others.
    * AuditError: the record could not be written, so nothing was started.
    """
    return start(_checks.request(argv, _policy.options(options)))


_T = TypeVar("_T")

#: A child that becomes somebody else can be stopped by that somebody (kill(2)): its window
#: is bounded even without a deadline, in seconds. Far more than an execve takes.
DROP_WINDOW = 30.0
UNDECIDED = Decision(None, None, ())
UNPARKED = Verdict("pool-parked", "allow", "no child was parked just now: the helper made one")
UNCONFIRMED = Verdict("outcome-told", "allow", "nobody could confirm that the program was reached")


@dataclass
class _Job:
    """What is known of the spawn that is under way."""

    request: Request
    sid: str
    deadline_ns: int
    seen: _binding.Seen
    identity: Identity = KEEP
    #: The process that asks. A signal handler may fork, and its child go on with this.
    process: int = field(default_factory=process_number)
    #: Whether the child is to be something else than we are, its identity or where it is put.
    changes: bool = False
    decision: Decision = UNDECIDED
    env: tuple[tuple[bytes, bytes], ...] = ()
    argv_text: tuple[bytes, int] = (b"", 0)
    env_text: tuple[bytes, int] = (b"", 0)
    removed: tuple[str, ...] = ()
    program: _executable.Program | None = None
    opened: _binding.Opened = field(default_factory=_binding.Opened)
    places: _places.Places = field(default_factory=_places.Places)
    launcher: _launcher.Held | None = None
    helper: _helpers.Running | None = None
    outcome: _binding.Outcome | None = None
    executable: Executable | None = None
    #: What became of its intent, and of the record of what came of that.
    intent: Any = field(default_factory=new_kept)
    ending: Any = field(default_factory=new_kept)
    #: Whose records those are.
    _recorder: int = 0
    _told_how: bytes = b""

    @property
    def announced(self) -> bool:
        """Whether its intent was recorded, and so has booked room for what is still to be told."""
        return bool(self.intent.booked)

    def part(self) -> None:
        """In a child that was forked meanwhile: go on under another id, as the parent tells of its spawn."""
        number = process_number()
        if number != (self._recorder or self.process):
            self.intent, self.ending = new_kept(), new_kept()
            self._recorder, self.sid = number, audit.new_id()

    def settling(self) -> Any:
        """Return what the record of the outcome is told with: it gives back what the intent has booked."""
        self.ending.settling = self.intent.booked
        return self.ending

    def decide(self, decision: Decision) -> None:
        """Take a decision; records tell the last one."""
        self.decision, self._told_how = decision, b""

    def heed_doubt(self, outcome: _binding.Outcome) -> None:
        """Add to the verdicts that nobody could confirm the start, or that no child was parked."""
        if not outcome.confirmed:
            self.decide(self.decision._replace(verdicts=(*self.decision.verdicts, UNCONFIRMED)))
        if self.decision.strategy == "pool" and not outcome.parked:
            self.decide(self.decision._replace(verdicts=(*self.decision.verdicts, UNPARKED)))

    def how(self) -> bytes:
        """Return the decision as JSON, for the records; with the program's verdicts, once it was opened."""
        if not self._told_how:
            verdicts = self.decision.verdicts + (self.program.verdicts if self.program else ())
            decision = self.decision
            self._told_how = Records.how(
                self.request.strategy, decision.strategy, decision.proof, verdicts, self.seen.threads
            )
        return self._told_how

    def identified(self) -> Executable | None:
        """Return which file the program is, once that is known. The records want it too: it is made once."""
        if self.executable is None and self.program is not None:
            self.executable = self.program.executable
        return self.executable

    def slim(self) -> None:
        """Let go of what only the window needed: a handle keeps the rest for its report."""
        if self.program is None:
            return
        self.identified()
        self.decision = self.decision._replace(verdicts=self.decision.verdicts + self.program.verdicts)
        self.program, self.env = None, ()
        self.argv_text = self.env_text = (b"", 0)

    def report(self, outcome: str, stage: str | None = None, number: int | None = None) -> SpawnReport:
        """Return the report of what is known so far."""
        done = self.outcome
        verdicts = self.decision.verdicts + (self.program.verdicts if self.program else ())
        return SpawnReport(
            self.sid,
            self.request.strategy,
            self.decision.strategy,
            self.decision.proof,
            tuple(f"{v.guard}: {v.why}" for v in verdicts),
            outcome,
            stage,
            number,
            done.pid or None if done else None,
            done.window_ns if done else None,
            self.seen.threads,
            self.seen.credentials,
            self.identified(),
            self.identity,
            self.removed,
        )


#: For those who take the steps apart.
Job = _Job

#: What becomes of a child that runs its program: gets it, the arguments, its report and its pipes.
Handle = Callable[
    [_child.Child, "tuple[bytes | Secret[Any], ...]", Callable[[], SpawnReport], _streams.Streams], _T
]


def _tell_failure(job: _Job, stage: str, number: int) -> None:
    _record_failure(job, "failed", stage, number)


def start(request: Request) -> Process:
    """Start a validated request; see :func:`spawn`."""
    return start_as(request, Process)


def start_as(request: Request, handle: Handle[_T], kind: Callable[[str], _child.Child] = _child.Child) -> _T:
    """Start a validated request, for a handle of another kind: that owns the child from then on."""
    job = decided(request)
    streams = pipes(job)
    try:
        return _run_window(job, streams, handle, kind)
    except BaseException as problem:
        streams.abort()
        explain(job, problem)
        raise
    finally:
        release(job, streams)


def decided(request: Request) -> _Job:
    """Begin a spawn and decide how it is made."""
    job = begin(request)
    if request.identity is not None and (stage := _identity.forbidden(job.identity, job.seen.credentials)):
        _fail(job, "failed", stage, errno.EPERM)
    _decide(job)
    return job


def pipes(job: _Job) -> _streams.Streams:
    """Open what becomes the child's 0, 1 and 2. What the system refuses there is a failure at ``prepare``."""
    try:
        return _streams.prepare(job.request, job.seen.standard_open)
    except OSError as problem:
        _fail(job, "failed", "prepare", problem.errno or errno.EIO, problem)


def release(job: _Job, streams: _streams.Streams) -> None:
    """Close what only the start has needed; twice is no error."""
    try:
        streams.started()
    finally:
        try:
            job.opened.close()
        finally:
            job.places.close()


def explain(job: _Job, problem: BaseException) -> None:
    """Put the report on an AuditError of the environment's ledger, which opens late."""
    if isinstance(problem, AuditError) and problem.report is None:
        problem.report = job.report("refused")


def begin(request: Request) -> _Job:
    """Look at what a spawn depends on; settle identity and environment. Raises what is wrong with it."""
    _child.reap_abandoned()
    _lock.settle()
    _changes.record()
    deadline_ns = 0
    if request.deadline is not None:
        deadline_ns = time.monotonic_ns() + int(request.deadline * 1e9)
    if request.has_options:
        named_descriptors(request)
    job = _Job(request, audit.new_id(), deadline_ns, _probe.look())
    job.identity = _wanted(request, job.seen)
    _settle_environment(job)
    return job


def run_unguarded(
    job: _Job,
    run: Callable[[_binding.Slot], None],
    failure: Callable[[BaseException], tuple[str, int]],
    handle: Handle[_T],
    kind: type[_child.Child],
) -> _T:
    """Record a start that is made by others. ``run`` puts into the slot what came of it, or raises."""
    slot, child, begun = _binding.Slot(), kind(job.sid), False
    try:
        announce(job, None)
        begun = True
        run(slot)
        child.booked = job.intent.booked
        job.outcome = slot.outcome()
        child.adopt(slot)
        job.heed_doubt(job.outcome)
        report = partial(job.report, "exec", "exec")
        made = handle(child, job.request.words, report, _streams.Streams())
        record_start(job, slot, child, report)
        if child.pidfd < 0:
            child.lose("reaped elsewhere")
    except BaseException as problem:
        explain(job, problem)
        if slot.ran or not begun:
            surely(partial(settle, job, slot, child))
        elif not job.ending.told:
            surely(partial(_tell_failure, job, *failure(problem)))
        raise
    return made


def named_descriptors(request: Request) -> None:
    """Refuse a descriptor that is not open, or a target beyond our limit, by its number."""
    named = [(f"fds[{target}]", source) for source, target in request.fds]
    named += [("pass_fds", fd) for fd in request.pass_fds]
    for name in ("stdin", "stdout", "stderr", "cwd", "root", "cgroup", "controlling_terminal"):
        value = getattr(request, name)
        if isinstance(value, int) and value >= 0:
            named.append((name, value))
    for name, fd in named:
        if not _probe.is_open(fd):
            raise OSError(errno.EBADF, f"{name}: descriptor {fd} is not open")
    if request.fds:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        for _, target in request.fds:
            if target >= limit:
                raise ValueError(f"fds: target {target} is not below the limit of open files, {limit}")


def _wanted(request: Request, seen: _binding.Seen) -> Identity:
    """Return what the child is to become; KEEP if we are that already, wholly."""
    if not request.asks_identity and "user" not in request.namespaces:
        return KEEP
    if "user" in request.namespaces:  # ids inside, which have nothing to do with ours
        return _identity.inside(request, seen.credentials)
    wanted = _identity.wanted(request)
    return wanted if guards.needed(wanted, seen.credentials, _probe.held_groups()) else KEEP


def _settle_environment(job: _Job) -> None:
    request = job.request
    ours = _binding.environment() if request.env is None else b""
    pairs = _environ.split(ours) if request.env is None else request.env
    home = _identity.home(request) if request.env_policy == "user" else ()
    job.env, job.removed = _environ.apply(pairs, request.env_policy, request.env_allow, home)
    job.argv_text = _binding.strings(request.argv)
    if job.env is pairs and request.env is None:
        job.env_text = ours, ours.count(b"\0")  # to the letter, whatever is in there
    else:
        job.env_text = _binding.strings(tuple(map(b"=".join, job.env)))
    _fits(job)


def _decide(job: _Job) -> None:
    request = job.request
    changes = job.changes = job.identity.changes or (request.has_options and request.confines)
    wants_to_share = request.strategy != "fork"
    facts = _probe.facts(job.seen, changes_credentials=changes, try_sharing=wants_to_share)
    if wants_to_share and (changes or request.strategy == "launcher"):
        job.launcher, fault = _launcher.hold()
        hindrance = _places.hindrance(request) or _launcher.hindrance(job.seen.credentials)
        facts = facts._replace(unlaunchable=hindrance or fault)
    if _may_be_helped(request):
        facts = _look_for_helper(job, facts)
    decision = guards.decide(request, facts)
    if request.identity is not None and job.identity.changes and guards.keeps_groups(job.identity):
        decision = decision._replace(verdicts=(*decision.verdicts, guards.GROUPS_KEPT))
    _accept(job, decision)


def _may_be_helped(request: Request) -> bool:
    if request.strategy in _helpers.HELPED:
        return True
    return request.strategy == "auto" and (_helpers.are_any() or request.helper not in (None, False))


def _look_for_helper(job: _Job, facts: Facts) -> Facts:
    job.helper, fault = _helpers.choose(job.request.helper)
    fault = _helpers.hindrance(job.request) or fault
    return facts._replace(unhelped=fault, pool=job.helper is not None and job.helper.pool > 0)


def _accept(job: _Job, decision: Decision) -> None:
    job.decide(decision)
    if decision.strategy is None:
        refuse(job, next(one for one in reversed(decision.verdicts) if one.result == "deny"))


def refuse(job: _Job, verdict: Verdict) -> NoReturn:
    """Record that a guard refuses, and raise UnsafeSpawn."""
    report = _record_refusal(job, verdict)
    refusal = UnsafeSpawn(errno.EPERM, f"{verdict.guard}: {verdict.why}")
    refusal.report, refusal.guard = report, verdict.guard
    raise refusal


def _record_refusal(job: _Job, verdict: Verdict) -> SpawnReport:
    job.part()
    report = job.report("refused")
    _record_last(job, "spawn.denied", lambda: Records.denied(job.request, report, verdict))
    return report


def _record_last(job: _Job, event: str, make: Make) -> None:
    """Tell that nothing runs: no record of this spawn comes behind it."""
    audit.emit(event, job.sid, make, settles=2, kept=job.settling())


def ready(job: _Job, streams: _streams.Streams) -> _binding.Call:
    """Open the program and all else that the child needs, and judge it; return what is left to be called."""
    program = job.program = _open(job)
    for verdict in program.verdicts:
        if verdict.result == "deny":
            refuse(job, verdict)
    if job.changes:
        _open_places(job)
    return _binding.Call(_plan(job, program, streams.sources))


def _run_window(
    job: _Job, streams: _streams.Streams, handle: Handle[_T], kind: Callable[[str], _child.Child]
) -> _T:
    call = ready(job, streams)
    slot, child = _binding.Slot(), kind(job.sid)
    try:
        announce(job, call)
        report = conclude(job, call, slot, child, start_by(job, call, slot))
        made = handle(child, job.request.words, report, streams)
        record_start(job, slot, child, report)
        lose_unseen(child)
    except BaseException:
        surely(partial(settle, job, slot, child))
        raise
    return made


def conclude(
    job: _Job, call: _binding.Call, slot: _binding.Slot, child: _child.Child, first: _binding.Outcome
) -> Callable[[], SpawnReport]:
    """Take what a window came to, beginning anew where that is due; return the report of what runs.

    Raises what it means that nothing does.
    """
    report = partial(job.report, "exec", "exec")
    child.booked = job.intent.booked
    outcome = job.outcome = _native(job, call, slot, first)
    if outcome.outcome != "exec":
        _fail(job, outcome.outcome, outcome.stage, outcome.errno)
    child.adopt(slot)
    if job.places.group is not None:
        child.group, job.places.group = job.places.group, None
    job.heed_doubt(outcome)
    job.slim()
    return report


def settle(job: _Job, slot: _binding.Slot, child: _child.Child) -> None:
    """Do what is left to do for a spawn that ends in an exception, wherever a handler has raised it.

    A child that our caller will never see is reaped later; what was announced gets its one ending.
    """
    child.booked, child.unrecorded = job.intent.booked, not slot.ran
    # Either it could not be killed yet, or a program runs.
    if child.adopt(slot) or child.pidfd >= 0:
        _child.abandon(child)
    tell_end(job, slot, child)


#: What is no end of a spawn: it begins anew, unless a handler comes between.
_PASSING = ("not-alone", "preempted")


def tell_end(job: _Job, slot: _binding.Slot, child: _child.Child) -> None:
    """Record what came of a spawn that was announced, unless that is done."""
    job.part()
    if slot.ran and job.ending.told == LOST:
        _end_unrecorded(child)
    if job.ending.told or not (job.announced or slot.ran):  # it may run without an intent: best_effort
        return
    if job.outcome is None and slot.raw.outcome:
        job.outcome = slot.outcome()
    done = job.outcome
    if slot.ran:
        record_start(job, slot, child, partial(job.report, "exec", "exec"))
    elif done is not None and done.outcome not in _PASSING:
        _record_failure(job, done.outcome, done.stage, done.errno)
    else:
        _record_failure(job, "interrupted", None, 0)


def record_start(
    job: _Job, slot: _binding.Slot, child: _child.Child, report: Callable[[], SpawnReport]
) -> None:
    """Tell that the program runs. If that is lost, the ledger says whether it may go on."""
    if job.process != process_number():
        return  # it is our parent's, who tells of it
    kept = audit.emit(
        "spawn.started",
        job.sid,
        lambda: Records.started(report(), slot.outcome(), child),
        settles=1,
        native=partial(_tell_start, job, slot, child),
        kept=job.settling(),
    )
    if not kept:
        _end_unrecorded(child)


def lose_unseen(child: _child.Child) -> None:
    """Say that nobody will know the end of a child that others have reaped: libc made it, without a pidfd."""
    if child.pidfd < 0 and not child.done:
        child.lose("reaped elsewhere")


def _end_unrecorded(child: _child.Child) -> None:
    if audit.kills_unrecorded():
        child.send_signal(signal.SIGKILL)


#: How often a spawn begins anew because credentials changed in between, and ours did not.
EPOCH_TRIES = 4


def start_by(job: _Job, call: _binding.Call, slot: _binding.Slot) -> _binding.Outcome:
    """Run one window, by whom the decision says."""
    if job.helper is None or job.decision.strategy not in _helpers.HELPED:
        return _binding.spawn(call, slot, job.process)
    return _binding.ask(call, slot, job.process, job.helper.end, job.decision.strategy == "pool")


def _native(
    job: _Job, call: _binding.Call, slot: _binding.Slot, outcome: _binding.Outcome
) -> _binding.Outcome:
    tries, looked, plan = EPOCH_TRIES, False, call.plan
    while True:
        why = _begins_anew(outcome, job.decision.strategy)
        if why is not None and (why != "epoch" or tries > 0):
            tries -= why == "epoch"  # the others come once: after them no memory is shared
            plan = _apart(job, plan, slot, outcome, why)
        elif not looked and (content := _same_content(job, outcome)) is not None:
            looked, plan = True, plan._replace(numbers={**plan.numbers, **content})
        else:
            return outcome
        outcome = start_by(job, _binding.Call(plan), slot)


def _same_content(job: _Job, outcome: _binding.Outcome) -> dict[str, int] | None:
    """Return what a pinned program looks like now, if it was touched and its content is the same.

    Its ctime moves when somebody writes to it, but also when it is renamed or linked.
    """
    if (outcome.stage, outcome.errno) != ("pin", errno.ESTALE) or outcome.stuck or job.program is None:
        return None
    return job.program.unchanged(job.deadline_ns)


#: Where a launch can fail that a fork need not, when it has run nothing yet: in the launcher's
#: exec and its first look at itself, or for want of what only a launch needs.
LAUNCH_STAGES = ("launch", "level")
MALFORMED, NO_ROOM = (errno.EINVAL, errno.E2BIG, errno.ECHILD), (errno.EMFILE, errno.EBADF)
FORKED = "this process was forked while its parent started a program"


def _begins_anew(outcome: _binding.Outcome, strategy: str | None) -> guards.Loss | None:
    """Return why a spawn that ran nothing is tried again; None if it is not."""
    if outcome.outcome == "not-alone":
        return "proof"
    if outcome.outcome == "preempted":
        return "preempted"
    if strategy == "launcher" and outcome.outcome == "failed" and _lacks_launcher(outcome):
        return "launch"
    if strategy in _helpers.HELPED and _helpers.fell_short(outcome):
        return "helper"
    return "epoch" if (outcome.outcome, outcome.stage) == ("race-detected", "epoch") else None


def _lacks_launcher(outcome: _binding.Outcome) -> bool:
    if outcome.stage == "prepare":
        return outcome.errno not in MALFORMED
    if outcome.stage == "descriptors":
        return outcome.errno in NO_ROOM
    return outcome.stage in LAUNCH_STAGES


def _apart(
    job: _Job, plan: _binding.Plan, slot: _binding.Slot, outcome: _binding.Outcome, why: guards.Loss
) -> _binding.Plan:
    """Return the plan without shared memory, for the state of the credential lock that is now.

    Only if our own credentials are still those that the decision and its record rest on.
    """
    if outcome.stuck:  # killed, and asleep in the kernel: reaped on a later spawn
        child = _child.Child(job.sid, unrecorded=True)
        child.adopt(slot)
        _child.abandon(child)
    if why == "launch":
        _launcher.failed(outcome.stage, outcome.errno, job.seen.credentials)
    detail = f"stage {outcome.stage}: {os.strerror(outcome.errno)}"
    if why == "helper":
        detail = _helpers.shortfall(outcome)
    seen, lost = _probe.look(), guards.lost(job.request, job.decision, why, detail)
    if seen.credentials != job.seen.credentials or _wanted(job.request, seen) != job.identity:
        job.outcome = outcome
        job.decide(job.decision._replace(verdicts=lost.verdicts))
        _fail(job, "race-detected", "birth" if why == "proof" else outcome.stage, errno.ESTALE)
    job.seen = seen
    _accept(job, lost)
    flags = plan.flags & ~_SHARED | _company(job)
    if why == "epoch":
        flags |= _LIB.SS_HOLD_CHANGES  # or changes that come all the time would let no spawn through
    return plan._replace(flags=flags, seen=seen)


def announce(job: _Job, call: _binding.Call | None) -> None:
    """intent-first (T-11): what cannot be recorded is not started. Without a call others start it."""
    job.part()
    fds = _descriptor_map(job.request, _sources(job.request)) if call is None else call.plan.fds
    try:
        audit.emit(
            "spawn.intent",
            job.sid,
            lambda: Records.intent(job.request, job.report("intent"), job.env, fds),
            gate=True,
            native=None if call is None else partial(_tell_intent, job, call),
            kept=job.intent,
        )
    except AuditError as problem:
        problem.report = job.report("refused")
        if job.announced:  # it is in the file, and the disk may not have it
            _record_refusal(job, Verdict("intent-first", "deny", str(problem.strerror)))
        raise


def _tell_intent(job: _Job, call: _binding.Call, teller: Teller, kept: Any) -> int:
    if Records.hides(job.request):
        return -errno.EMSGSIZE
    rest = Records.rest(job.request, job.identity, job.identified(), job.removed, job.how())
    error: int = intent(teller.raw, job.sid.encode("ascii"), call.raw, rest, kept)
    return error


def _tell_start(job: _Job, slot: _binding.Slot, child: _child.Child, teller: Teller, kept: Any) -> int:
    sid = job.sid.encode("ascii")
    error: int = started(teller.raw, sid, slot.raw, child.pidfd, job.how(), kept)
    return error


# ------------------------------------------------------------------ the program


def _open(job: _Job) -> _executable.Program:
    def finder(name: bytes, dirs: tuple[bytes, ...] | None, copy: bool) -> _binding.Found:
        return _look_up(job, name, dirs, copy)

    try:
        return _executable.find(job.request, job.env, finder, job.deadline_ns)
    except _executable.LookupProblem as problem:
        _fail(job, "failed", problem.stage, problem.errno)
    except SpawnTimeout:
        raise  # that of a child which looked: it is told already
    except TimeoutError:
        _fail(job, "timed-out", "lookup", 0)


def _open_places(job: _Job) -> None:
    try:
        job.places.open(job.request, job.seen.credentials)
    except _places.PlaceProblem as problem:
        _fail(job, "failed", problem.stage, problem.cause.errno or errno.EIO, problem.cause)


def _look_up(job: _Job, name: bytes, dirs: tuple[bytes, ...] | None, copy: bool) -> _binding.Found:
    """Look up here, or under a deadline in a child, by the strategy that was decided on."""
    # In a new PID namespace the first child is its init, and its end would be that of all others:
    # no child only for looking there.
    bounded = job.deadline_ns != 0 and _probe.children_are_in_our_namespace()
    root = job.request.root
    cwd = job.request.cwd if root is None else None  # the child enters it, inside the root
    walk = job.request.path_policy == "trusted"
    details = job.request.pinned or _policy.refusals() is not None or audit.is_heard()
    if not bounded:
        return _binding.find(
            name, dirs, cwd=cwd, root=root, walk=walk, details=details, seen=job.seen, opened=job.opened
        )
    slot, child = _binding.Slot(), _child.Child(job.sid, unrecorded=True)
    try:
        found, outcome = _binding.find_bounded(
            name,
            dirs,
            cwd=cwd,
            root=root,
            copy=copy,
            sharing=_sharing(job),
            walk=walk,
            details=details,
            deadline_ns=job.deadline_ns,
            seen=job.seen,
            opened=job.opened,
            slot=slot,
        )
    finally:
        if child.adopt(slot):  # it could not be killed yet
            _child.abandon(child)
    why = _begins_anew(outcome, None)
    if why is not None:
        _accept(job, guards.lost(job.request, job.decision, why))
        return _look_up(job, name, dirs, copy)
    if outcome.outcome != "exec":
        job.outcome = outcome
        _fail(job, outcome.outcome, outcome.stage, outcome.errno)
    return found


# --------------------------------------------------------------------- the plan

#: What must still hold at the clone, by the proof of the decision.
_REQUIRED = {
    "single-threaded": _LIB.SS_REQUIRE_ALONE,
    "locked": _LIB.SS_REQUIRE_LOCK,
    "sealed": _LIB.SS_REQUIRE_SEAL,
}
_SHARED = (
    _LIB.SS_SHARE_MEMORY
    | _LIB.SS_REQUIRE_ALONE
    | _LIB.SS_REQUIRE_LOCK
    | _LIB.SS_REQUIRE_SEAL
    | _LIB.SS_LAUNCH
    | _LIB.SS_BOUND_LATER
    | _LIB.SS_AWAKE
)


def _company(job: _Job) -> int:
    return 0 if job.seen.alone else int(_LIB.SS_AMONG_OTHERS)


def _sharing(job: _Job) -> int:
    """Return the flags of a window: whether memory is shared, under which proof, beside whom."""
    if job.decision.strategy == "fork" or job.decision.proof is None:
        return _company(job)
    awake = _LIB.SS_AWAKE if job.decision.strategy == "clone" else 0
    return int(_LIB.SS_SHARE_MEMORY | _REQUIRED[job.decision.proof] | awake) | _company(job)


def _plan(job: _Job, program: _executable.Program, sources: list[int]) -> _binding.Plan:
    request, found = job.request, program.found
    fds = _descriptor_map(request, sources)
    flags = _sharing(job)
    flags |= _LIB.SS_KEEP_FDS if request.keep_fds else 0
    numbers = {"sigdefault": request.sigdefault | (_PYTHON_IGNORES if request.restore_signals else 0)}
    if job.deadline_ns:
        numbers["deadline_ns"] = job.deadline_ns
    if found.cwd_fd >= 0:
        numbers["cwd_fd"] = found.cwd_fd
    if request.root is not None:
        numbers["root_fd"] = request.root if isinstance(request.root, int) else found.root_fd
    if request.pinned:
        flags |= _pin(program, fds, numbers)
    if job.identity.changes:
        flags |= _become(job, numbers)
    if request.has_options:
        flags |= _options(request, numbers)
    if job.changes or job.decision.strategy == "launcher":
        flags |= _apart_or_launched(job, numbers)
    return _binding.Plan(
        program.exec_path,
        job.argv_text,
        job.env_text,
        fds,
        flags,
        job.seen,
        numbers,
        groups=job.identity.groups or (),
        cpus=_binding.cpu_mask(request.cpu_affinity) if request.cpu_affinity else b"",
        rlimits=request.rlimits,
        launcher=job.launcher.file if job.launcher else None,
        texts=job.places.texts,
        filter=request.seccomp or b"",
        by_libc=job.decision.strategy == "posix_spawn",
    )


def _pin(program: _executable.Program, fds: list[tuple[int, int]], numbers: dict[str, int]) -> int:
    numbers.update(program.found.content, exec_fd=program.found.exe_fd)
    if not program.script:
        return int(_LIB.SS_PINNED)
    # The interpreter opens /dev/fd/N, so N stays open in the program.
    targets = {target for _, target in fds}
    numbers["exec_fd"] = next(n for n in range(3, len(targets) + 4) if n not in targets)
    fds.append((program.found.exe_fd, numbers["exec_fd"]))
    fds.sort(key=_target)
    return int(_LIB.SS_PINNED | _LIB.SS_EXEC_TARGET)


def _become(job: _Job, numbers: dict[str, int]) -> int:
    identity = job.identity
    flags = 0 if identity.groups is None else _LIB.SS_SET_GROUPS
    if identity.uid is not None:
        numbers["uid"] = identity.uid
        flags |= _LIB.SS_SET_UID
    if identity.gid is not None:
        numbers["gid"] = identity.gid
        flags |= _LIB.SS_SET_GID
    return flags


def _apart_or_launched(job: _Job, numbers: dict[str, int]) -> int:
    """Add what a child needs that changes credentials, be it forked or launched."""
    launched = job.decision.strategy == "launcher"
    flags = 0
    if "deadline_ns" not in numbers:
        numbers["deadline_ns"] = time.monotonic_ns() + int(DROP_WINDOW * 1e9)
        flags |= _LIB.SS_BOUND_LATER if launched else 0
    numbers.update(job.places.numbers(launched=launched))
    if launched and job.launcher is not None:
        numbers["launcher_fd"] = job.launcher.fd
        flags |= _LIB.SS_LAUNCH
    return flags


#: Options that are a number in struct ss_request: member, and the flag that says it is set.
_NUMBERS = {
    "process_group": ("group", _LIB.SS_SET_GROUP),
    "controlling_terminal": ("terminal_fd", 0),
    "umask": ("umask", _LIB.SS_SET_UMASK),
    "nice": ("nice", _LIB.SS_SET_NICE),
    "pdeathsig": ("pdeathsig", 0),
    "sigmask": ("sigmask", _LIB.SS_SET_SIGMASK),
    "caps": ("caps", _LIB.SS_SET_CAPS),
    "securebits": ("securebits", _LIB.SS_SET_SECUREBITS),
}


def _options(request: Request, numbers: dict[str, int]) -> int:
    flags = _LIB.SS_NEW_SESSION if request.start_new_session else 0
    flags |= _LIB.SS_SUBREAPER if request.subreaper else 0
    flags |= _LIB.SS_NO_NEW_PRIVS if request.seals_privileges else 0
    if isinstance(request.cwd, int):
        numbers["cwd_fd"] = request.cwd
    if request.scheduler is not None:
        numbers["policy"], numbers["priority"] = request.scheduler
        flags |= _LIB.SS_SET_SCHEDULER
    for option, (member, flag) in _NUMBERS.items():
        value = getattr(request, option)
        if value is not None:
            numbers[member] = value
            flags |= flag
    return flags


#: As bits, from signal 1: what the interpreter ignores for itself (restore_signals of subprocess).
_PYTHON_IGNORES = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)


def _descriptor_map(request: Request, sources: list[int]) -> list[tuple[int, int]]:
    """Return (source, target) pairs sorted by target, 0 to 2 always among them."""
    pairs = [(sources[0], 0), (sources[1], 1), (sources[2], 2)]
    if request.fds or request.pass_fds or request.closed:
        pairs += request.fds
        pairs += [(fd, fd) for fd in request.pass_fds if fd > 2]
        pairs = [pair for pair in pairs if pair[1] not in request.closed]
        pairs += [(-1, fd) for fd in request.closed]
        pairs.sort(key=_target)
    return pairs


def _sources(request: Request) -> list[int]:
    """Return what becomes 0, 1 and 2, where all of them are descriptors."""
    return [
        fd if given is None else given
        for fd, given in enumerate((request.stdin, request.stdout, request.stderr))
    ]


def _target(pair: tuple[int, int]) -> int:
    return pair[1]


def _fits(job: _Job) -> None:
    """Refuse more than execve(2) takes: every string with its NUL, and its pointer."""
    argv, env = job.argv_text, job.env_text
    size = len(argv[0]) + len(env[0]) + 8 * (argv[1] + env[1] + 2)
    if size < _values.STRING_MAX:
        return
    if size > (room := _probe.argument_room()):
        raise OSError(
            errno.E2BIG,
            f"{argv[1]} arguments and {env[1]} variables take {size} bytes, execve takes {room}",
        )
    for name, value in job.env:
        if len(name) + len(value) + 1 >= _values.STRING_MAX:
            raise OSError(errno.E2BIG, f"env[{name!r}] has {len(value)} bytes, too many for execve")


# ------------------------------------------------------------------ the failures


def _fail(job: _Job, outcome: str, stage: str, number: int, problem: OSError | None = None) -> NoReturn:
    """Record a spawn that ran no program, and raise what it means, or ``problem`` that says it better."""
    report = _record_failure(job, outcome, stage, number)
    problem = problem or _exception(job.request, outcome, stage, number)
    vars(problem).update(report=report, stage=stage)
    raise problem


def _record_failure(job: _Job, outcome: str, stage: str | None, number: int) -> SpawnReport:
    job.part()
    done, report = job.outcome, job.report(outcome, stage, number or None)
    _record_last(job, "spawn.failed", lambda: Records.failed(job.request, report, done))
    return report


def _program_name(request: Request) -> bytes:
    """Return what was asked for: of candidates made of PATH their common last part."""
    if request.candidates:
        name = os.path.basename(request.candidates[0])
        if len(request.candidates) > 1 or name == request.argv[0]:
            return name
    return (*request.candidates, request.executable or request.argv[0])[0]


def _exception(request: Request, outcome: str, stage: str, number: int) -> OSError:
    program = os.fsdecode(_program_name(request))
    if outcome == "timed-out":
        return SpawnTimeout(
            errno.ETIMEDOUT, f"not running after {request.deadline or DROP_WINDOW} s (stage {stage})", program
        )
    if outcome == "killed-before-exec":
        return KilledBeforeExec(errno.ECANCELED, f"killed before it ran (stage {stage})", program)
    if outcome == "race-detected":
        race = RaceDetected(number, f"credentials changed under the spawn (stage {stage})", program)
        race.guard = "epoch-agrees" if stage == "epoch" else "creds-agree"
        return race
    text = FORKED if (stage, number) == ("prepare", errno.ECHILD) else os.strerror(number)
    if stage in ("open-cwd", "cwd", "open-root"):
        return OSError(number, text, _shown(request.root if stage == "open-root" else request.cwd))
    if stage in ("lookup", "exec"):
        return OSError(number, text, program)
    made = OSError(number, f"{text} (stage {stage})", program)
    return made if number else SpawnError(errno.EIO, f"failed at stage {stage}", program)


def _shown(given: bytes | int | None) -> str | int | None:
    return os.fsdecode(given) if isinstance(given, bytes) else given
