"""The only importer of the extension: values in, values out, no decision.

Everything that C is given is copied into memory of its own before the GIL is let go,
and every ``ffi.new`` is held in a local until the call has returned.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

try:
    from . import _native_ffi  # type: ignore[attr-defined]  # compiled
except ImportError as problem:  # pragma: no cover - a build for another platform
    raise ImportError("safespawn needs Linux on x86-64 or aarch64, and its compiled core") from problem

from ._spec import Credentials, Executable, Exit, PathNode


class _Lib(Protocol):
    """What the extension offers; types as cffi gives and takes them."""

    SS_SHARE_MEMORY: int
    SS_REQUIRE_ALONE: int
    SS_NEW_SESSION: int
    SS_SET_GROUP: int
    SS_SET_NICE: int
    SS_SET_UMASK: int
    SS_KEEP_FDS: int
    SS_SET_SIGMASK: int
    SS_NO_NEW_PRIVS: int
    SS_SET_UID: int
    SS_SET_GID: int
    SS_SET_GROUPS: int
    SS_SEARCH: int
    SS_COPY: int
    SS_READABLE: int
    SS_EXEC_TARGET: int
    SS_WALK: int
    SS_DETAILS: int
    SS_PINNED: int
    SS_REQUIRE_LOCK: int
    SS_REQUIRE_SEAL: int
    SS_AMONG_OTHERS: int
    SS_HOLD_CHANGES: int
    SS_SET_SCHEDULER: int
    SS_SET_CAPS: int
    SS_SET_SECUREBITS: int
    SS_LAUNCH: int
    SS_BOUND_LATER: int
    SS_SUBREAPER: int
    SS_AWAKE: int
    SS_BATCH_MAX: int
    SS_EXEC: int
    SS_FAILED: int
    SS_KILLED_BEFORE_EXEC: int
    SS_RACE_DETECTED: int
    SS_TIMED_OUT: int
    SS_NOT_ALONE: int
    SS_PREEMPTED: int
    SS_ARM_OFF: int
    SS_ARM_ARMED: int
    SS_ARM_UNLOCKABLE: int
    SS_LOCK_HOLDS: int
    SS_LOCK_OFF: int
    SS_LOCK_UNLOCKABLE: int
    SS_LOCK_NOT_OURS: int
    SS_LOCK_STRANGER: int
    SS_LOCK_CHANGING: int
    SS_LOCK_EXPORTS: int
    SS_LOCK_NAMESPACES: int
    SS_LOCK_CAPTURED: int
    SS_LOCK_UNSEARCHED: int
    SS_LOCK_FOREIGN: int
    SS_LOCK_UNSETTLED: int
    SS_LOCK_STAINED: int
    SS_LOCK_DIFFER: int
    SS_LOCK_UNSEEN: int
    SS_LOCK_PASS: int
    SS_LOCK_FORKED: int
    SS_LOCK_UNBOUNDED: int
    SS_LOCK_OFTEN: int
    SS_CALL_NONE: int
    SS_CALL_RAW: int
    SS_CALL_SEAL: int
    SS_THROUGH_SYSCALL: int
    SS_THROUGH_PSX: int
    SS_USED_CLONE3: int
    SS_UNCONFIRMED: int
    SS_STUCK: int
    SS_WAS_PARKED: int
    SS_STAGE_EXEC: int
    SS_STAGE_COUNT: int
    SS_DIFFERS_NOT: int
    SS_DIFFERS_UNSEEN: int
    SS_DIFFERS_WHO: int
    SS_DIFFERS_CGROUP: int
    SS_DIFFERS_SESSION: int
    SS_DIFFERS_SCHEDULE: int
    SS_DIFFERS_THREAD: int
    SS_DIFFERS_RAISED: int
    SS_ANY_PROGRAM: int
    SS_ANY_USER: int
    SS_ANY_VARIABLE: int
    SS_KEEPS: int
    SS_OPTION_CWD: int
    SS_OPTION_FDS: int
    SS_OPTION_SESSION: int
    SS_OPTION_GROUP: int
    SS_OPTION_TERMINAL: int
    SS_OPTION_UMASK: int
    SS_OPTION_NICE: int
    SS_OPTION_SCHEDULER: int
    SS_OPTION_AFFINITY: int
    SS_OPTION_RLIMITS: int
    SS_OPTION_CGROUP: int
    SS_OPTION_ROOT: int
    SS_OPTION_CAPS: int
    SS_OPTION_SECUREBITS: int
    SS_OPTION_NAMESPACES: int
    SS_OPTION_SECCOMP: int
    SS_OPTION_SUBREAPER: int
    SS_OPTION_LANDLOCK: int
    SS_OPTION_PDEATHSIG: int
    SS_OPTIONS_END: int
    SS_POLICY_MAGIC: int
    SS_HELPER_VERSION: int
    SS_POOL_MAX: int
    SS_POLICY_LIST_MAX: int
    SS_POLICY_BYTES_MAX: int
    SS_POLICIES_MAX: int
    SS_GROUPS_MAX: int
    SS_MESSAGE_FDS: int
    SS_OWN_FDS: int
    SS_WAIT_END: int
    SS_WAIT_NOHANG: int
    SS_WAIT_LOOK: int
    SS_TRY_CLONE3: int
    SS_TRY_CLOSE_RANGE: int
    SS_TRY_FACCESSAT2: int
    SS_TRY_MOVE_PAGES: int
    SS_FITS: int
    SS_BLANK: int
    SS_TORN: int
    SS_GARBAGE: int
    SS_STRANGER: int
    SS_GAP: int
    SS_REPLAY: int
    SS_BAD_MAC: int
    SS_BAD_HASH: int
    SS_NO_NEWLINE: int
    SS_HAS_NUMBER: int
    SS_HAS_MAC: int
    SS_HAS_CHILD: int
    SS_CLOCK_BACK: int
    SS_BAD_AGG: int
    SS_BAD_STATE: int
    SS_TOO_LONG: int
    SS_AGAIN: int
    SS_CHAIN_OPEN: int
    SS_CHAIN_KEYED: int
    SS_CHAIN_AGG: int
    SS_CHAIN_ANY_HASH: int
    SS_CHAIN_EXPECTED: int
    SS_CHAIN_COMPARED: int
    SS_CHAIN_SLOT_FORGED: int

    def ss_stage_name(self, stage: int) -> Any: ...
    def ss_launcher_digest(self) -> Any: ...
    def ss_helper_digest(self) -> Any: ...
    def ss_helper_new(self, helper: Any) -> int: ...
    def ss_helper_end(self, helper: Any) -> None: ...
    def ss_helper_free(self, helper: Any) -> None: ...
    def ss_helper_stamp(self, helper: Any, policy: Any) -> None: ...
    def ss_helper_hear(self, helper: Any, socket: int) -> int: ...
    def ss_helper_begin(self, helper: Any, socket: int, pidfd: int, pid: int, keeps: int) -> int: ...
    def ss_helper_shrink(self, helper: Any, policy_fd: int) -> int: ...
    def ss_helper_look(self, helper: Any, status: Any) -> None: ...
    def ss_ask_by(self, process: int, helper: Any, parked: int, request: Any, result: Any) -> int: ...
    def ss_look(self, facts: Any) -> int: ...
    def ss_memory_shared(self, proof: int, epoch: int) -> int: ...
    def ss_call_name(self, call: int) -> Any: ...
    def ss_covered(self, index: int, covered: Any) -> Any: ...
    def ss_arm(self, foreign: int, wait_ns: int) -> int: ...
    def ss_alike(self) -> int: ...
    def ss_lock_look(self, facts: Any) -> int: ...
    def ss_lock_status(self, status: Any) -> None: ...
    def ss_credential_change_begin(self, changing: Any, call: int) -> None: ...
    def ss_credential_change_end(self, changing: Any, error: int) -> None: ...
    def ss_credential_change_drop(self, changing: Any) -> None: ...
    def ss_await_changers(self, ns: int) -> int: ...
    def ss_seal_hindered(self) -> int: ...
    def ss_change_take(self, change: Any) -> int: ...
    def ss_try(self, feature: int) -> int: ...
    def ss_spawn_by(self, process: int, by_libc: bool, arena: Any, request: Any, result: Any) -> int: ...
    def ss_batch_by(self, process: int, batch: Any, count: int) -> None: ...
    def ss_lookup(self, arena: Any, lookup: Any, found: Any, result: Any) -> int: ...
    def ss_wait(self, room: Any, how: int) -> int: ...
    def ss_await(self, room: Any, timeout_ms: int) -> int: ...
    def ss_send(self, room: Any, number: int) -> int: ...
    def ss_adopt(self, room: Any, result: Any) -> None: ...
    def ss_exit_close(self, room: Any) -> None: ...
    def ss_huge_knows(self, advice: int) -> int: ...
    def ss_huge_make(self, start: int, end: int, huge: Any) -> int: ...
    def ss_fork_ns(self) -> int: ...
    def ss_system_enter(self, call: Any) -> None: ...
    def ss_system_leave(self, call: Any) -> None: ...
    def ss_secure(self) -> int: ...
    def ss_seal(self, tid: Any) -> int: ...
    def ss_is_sealed(self) -> int: ...
    def ss_found_close(self, found: Any) -> None: ...
    def ss_landlock_abi(self) -> int: ...
    def ss_landlock_ruleset(self, handled: int) -> int: ...
    def ss_landlock_allow(self, ruleset: int, path: Any, rights: int, of_file: int) -> int: ...
    def ss_arena_free(self, arena: Any) -> None: ...
    def ss_verify_expect(self, table: Any, chain: bytes, records: int, agg: bytes) -> int: ...
    def ss_verify_open(self, table: Any, chain: bytes, key: Any) -> int: ...
    def ss_verify_reach(self, table: Any, place: int, n: int, steps: int) -> int: ...
    def ss_verify_follow(self, record_key: Any, steps: int) -> None: ...
    def ss_verify_move(self, table: Any, smaller: Any) -> None: ...
    def ss_verify_wipe(self, table: Any) -> None: ...
    def ss_verify_lines(self, table: Any, data: Any, size: int, is_last: int, *room: Any) -> int: ...
    def ss_verify_event(self, event: int) -> Any: ...


lib: _Lib = cast("_Lib", _native_ffi.lib)
ffi: Any = _native_ffi.ffi

#: Parsed once: looking a declaration up by its text costs more than making the thing.
_REQUEST = ffi.typeof("struct ss_request *")
_RESULT = ffi.typeof("struct ss_result *")
_FOUND = ffi.typeof("struct ss_found *")
_LOOKUP = ffi.typeof("struct ss_lookup *")
_EXIT = ffi.typeof("struct ss_exit *")
_FACTS = ffi.typeof("struct ss_facts *")
_FDS = ffi.typeof("struct ss_fd[]")
_ARENA = ffi.typeof("struct ss_arena *")
_HELPER = ffi.typeof("struct ss_helper *")
_BATCH = ffi.typeof("struct ss_batched[]")
_CHARS = ffi.typeof("char[]")

#: For structs that C fills whole: clearing 10 KB first would be for nothing.
_new_raw = ffi.new_allocator(should_clear_after_alloc=False)

# What a struct holds in C (descriptors, a mapping, a lock) is given back by a second object, that of
# ``ffi.gc(raw, ...)``. It is kept beside ``raw``, and never used: in a cycle of garbage the collector has it
# give that back, and free what it was made of, before it calls the ``__del__`` of others in that cycle, which
# may use ``raw`` still.

#: si_code of waitid(2).
CLD_EXITED = 1
CLD_DUMPED = 3


class _Local(threading.local):
    """Each thread's arena: stack and work area of its children, unmapped with the thread."""

    def __init__(self) -> None:
        self.arena = ffi.new(_ARENA)
        self._end = ffi.gc(self.arena, lib.ss_arena_free)


_local = _Local()


def _credentials(c: Any) -> Credentials:
    return Credentials(
        c.ruid, c.euid, c.suid, c.rgid, c.egid, c.sgid, c.effective, c.permitted, c.inheritable
    )


class Seen:
    """What a decision rests on, as C saw it in one call.

    ``alone`` is None when that could not be told; ``errno`` says why then. ``lock`` is why
    the credential lock does not hold (an SS_LOCK constant), looked at when we are not alone.
    """

    __slots__ = ("_raw", "alone", "errno", "lock", "standard_open", "threads")

    def __init__(self) -> None:
        """Look. Raises OSError if our credentials cannot be read."""
        raw = self._raw = ffi.new(_FACTS)
        _check(lib.ss_look(raw), "reading our credentials")
        answer = raw.alone
        self.alone = None if answer < 0 else answer == 1
        self.errno = -answer if answer < 0 else 0
        self.threads: int | None = raw.tasks or None
        self.lock: int = raw.lock
        bits = raw.open_std
        self.standard_open = (bool(bits & 1), bool(bits & 2), bool(bits & 4))

    @property
    def credentials(self) -> Credentials:
        """The credentials of the thread that looked."""
        c = self._raw.creds
        return _credentials(c)

    @property
    def lock_errno(self) -> int:
        """What went wrong with the lock, 0 if nothing did."""
        return int(self._raw.lock_error)

    @property
    def lock_detail(self) -> int:
        """A number that goes with the reason: a thread, a count, a call."""
        return int(self._raw.lock_detail)

    @property
    def epoch(self) -> int:
        """The epoch of the credential lock at that moment, 0 when it is not armed."""
        return int(self._raw.creds.epoch)

    def expect_in(self, target: Any) -> None:
        """Write them where the child will compare: creds-agree (T-05)."""
        target.expected = self._raw.creds


class Plan(NamedTuple):
    """What one native spawn does; the marshalled side of a Request.

    ``argv`` and ``env`` are the strings end to end, each with its NUL, and their number.
    ``numbers`` are members of struct ss_request that are to be set, by name; all others stay
    zero, or -1 for a descriptor.
    """

    path: bytes
    argv: tuple[bytes, int]
    env: tuple[bytes, int]
    fds: Sequence[tuple[int, int]]
    flags: int
    seen: Seen
    numbers: Mapping[str, int]
    groups: Sequence[int] = ()
    cpus: bytes = b""
    #: Device, inode, size, mtime and ctime of the launcher as it was judged.
    launcher: tuple[int, int, int, int, int] | None = None
    rlimits: Sequence[tuple[int, int, int]] = ()
    #: The working directory inside another root, and the lines of a user namespace's maps.
    texts: Mapping[str, bytes] = {}
    filter: bytes = b""
    #: Whether libc's posix_spawn starts it.
    by_libc: bool = False


class Outcome(NamedTuple):
    """What a native call came to. ``pidfd`` is -1 unless the child is still to be reaped."""

    outcome: str
    stage: str
    errno: int
    pid: int
    pidfd: int
    window_ns: int
    clone3: bool
    confirmed: bool
    stuck: bool
    #: Why a helper cannot stand in for us (an SS_DIFFERS constant), 0 for nothing.
    why: int = 0
    #: Whether the helper had made the child ahead.
    parked: bool = False


#: Programs are often started again.
_decoded = lru_cache(maxsize=256)(os.fsdecode)


class Found:
    """What a lookup opened. A descriptor of -1 is not open; ``head`` is the file's start."""

    __slots__ = ("_raw", "errno", "head", "path", "readable", "real")

    def __init__(self, raw: Any) -> None:
        """Read what every spawn needs; :meth:`executable` and :meth:`nodes` read the rest."""
        self._raw = raw
        self.errno: int = raw.error
        self.readable = bool(raw.flags & lib.SS_READABLE)
        self.path: bytes = ffi.string(raw.path)
        self.real: bytes = ffi.string(raw.real)
        self.head: bytes = ffi.buffer(raw.head, raw.head_bytes)[:]

    @property
    def exe_fd(self) -> int:
        """The program."""
        return int(self._raw.exe_fd)

    @property
    def cwd_fd(self) -> int:
        """The working directory."""
        return int(self._raw.cwd_fd)

    @property
    def copy_fd(self) -> int:
        """A copy of the program, to be hashed."""
        return int(self._raw.copy_fd)

    @property
    def root_fd(self) -> int:
        """The root, when it was given as a path."""
        return int(self._raw.root_fd)

    @property
    def content(self) -> dict[str, int]:
        """Size, mtime and ctime: what changes when somebody writes to the file."""
        raw = self._raw
        return {"size": raw.size, "mtime_ns": raw.mtime_ns, "ctime_ns": raw.ctime_ns}

    @property
    def stage(self) -> str:
        """The step that failed, if one did."""
        return _STAGES[int(self._raw.stage)]

    def executable(self, *, pinned: bool, sha256: str | None, interpreter: str | None) -> Executable:
        """Return the identity of the file."""
        f = self._raw
        return Executable(
            _decoded(self.path),
            _decoded(self.real),
            f.device,
            f.inode,
            f.node.uid,
            f.node.gid,
            f.node.mode,
            f.size,
            f.mtime_ns,
            f.ctime_ns,
            self.readable,
            pinned,
            sha256,
            interpreter,
        )

    def nodes(self) -> tuple[PathNode, ...]:
        """Return owner and mode of every component of the real path, the file last."""
        if not self.real:
            return ()
        f, real = self._raw, os.fsdecode(self.real)
        names = ["/"] + [real[:i] for i in range(1, len(real)) if real[i] == "/"]
        above = [f.parents[i] for i in range(f.nparents)]
        return tuple(
            PathNode(n, c.uid, c.gid, c.mode) for n, c in zip([*names, real], [*above, f.node], strict=True)
        )


_OUTCOMES = {
    lib.SS_EXEC: "exec",
    lib.SS_FAILED: "failed",
    lib.SS_KILLED_BEFORE_EXEC: "killed-before-exec",
    lib.SS_RACE_DETECTED: "race-detected",
    lib.SS_TIMED_OUT: "timed-out",
    lib.SS_NOT_ALONE: "not-alone",
    lib.SS_PREEMPTED: "preempted",
}

_STAGES: tuple[str, ...] = tuple(ffi.string(lib.ss_stage_name(i)).decode() for i in range(lib.SS_STAGE_COUNT))


def extension_path() -> str:
    """Return the file of the compiled core."""
    return str(_native_ffi.__file__)


def launcher_digest() -> str:
    """Return the SHA-256 of the launcher that was built with the core, in hex."""
    digest: bytes = ffi.string(lib.ss_launcher_digest())
    return digest.decode("ascii")


def helper_digest() -> str:
    """Return the SHA-256 of the helper that was built with the core, in hex."""
    digest: bytes = ffi.string(lib.ss_helper_digest())
    return digest.decode("ascii")


def stages() -> tuple[str, ...]:
    """Return the names of all stages, in the order in which a spawn goes through them."""
    return _STAGES


def _check(answer: int, what: str) -> int:
    if answer < 0:
        raise OSError(-answer, f"{os.strerror(-answer)}: {what}")
    return answer


def memory_shared(proof: int, seen: Seen) -> bool:
    """Return whether CLONE_VM really shares memory here, tried under a proof (SS_REQUIRE flag).

    Raises OSError, EBUSY if the proof does not hold.
    """
    return _check(lib.ss_memory_shared(proof, seen.epoch), "trying a child on shared memory") == 1


def try_feature(feature: int) -> None:
    """Ask the kernel for one of the SS_TRY features. Raises OSError if it is not there."""
    _check(lib.ss_try(feature), "trying")


def strings(items: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the strings end to end, each with its NUL, and their number."""
    return (b"\0".join(items) + b"\0" if items else b""), len(items)


def _outcome(result: Any) -> Outcome:
    flags = result.flags
    return Outcome(
        _OUTCOMES.get(result.outcome, "failed"),
        _STAGES[result.stage],
        result.error,
        result.pid,
        result.pidfd,
        result.window_ns,
        bool(flags & lib.SS_USED_CLONE3),
        not flags & lib.SS_UNCONFIRMED,
        bool(flags & lib.SS_STUCK),
        result.why,
        bool(flags & lib.SS_WAS_PARKED),
    )


class Slot:
    """Where C puts what came of a spawn, so that it is known even if Python is interrupted.

    A signal handler of the application may raise as soon as the native call has returned.
    """

    __slots__ = ("raw",)

    def __init__(self) -> None:
        """Nothing has come of it yet."""
        self.raw = ffi.new(_RESULT)
        self.raw.pidfd = -1

    @property
    def pid(self) -> int:
        """The child's pid, 0 if there was none."""
        return int(self.raw.pid)

    @property
    def ran(self) -> bool:
        """Whether a program runs, or has run."""
        return bool(self.raw.outcome == lib.SS_EXEC)

    def outcome(self) -> Outcome:
        """Return what came of it."""
        return _outcome(self.raw)

    def give_to(self, room: Any) -> None:
        """Move the pidfd, if there is one, to the room of a child that will reap it."""
        lib.ss_adopt(room, self.raw)


class Call:
    """A plan as C wants it, for the record of the intent and for the window."""

    __slots__ = ("_keep", "plan", "raw")

    def __init__(self, plan: Plan) -> None:
        """Marshal it. What it points to is kept as long as this."""
        self.plan = plan
        r = self.raw = ffi.new(_REQUEST)
        (argv, r.argc), (env, r.envc) = plan.argv, plan.env
        keep = self._keep = [
            ffi.new(_CHARS, plan.path),
            ffi.new(_FDS, plan.fds),
            ffi.from_buffer(_CHARS, argv),
            ffi.from_buffer(_CHARS, env),
        ]
        r.path, r.fds, r.argv, r.env = keep
        r.argv_bytes, r.env_bytes, r.nfds = len(argv), len(env), len(plan.fds)
        keep += _put_lists(r, plan)
        r.flags = plan.flags
        r.exec_fd = r.cwd_fd = r.terminal_fd = -1
        r.root_fd = r.cgroup_fd = r.landlock_fd = r.launcher_fd = r.parent_fd = -1
        for name, value in plan.numbers.items():
            setattr(r, name, value)
        plan.seen.expect_in(r)

    def postpone(self, ns: int) -> None:
        """Move the deadline, if there is one."""
        if self.raw.deadline_ns:
            self.raw.deadline_ns += ns
            numbers = {**self.plan.numbers, "deadline_ns": self.raw.deadline_ns}
            self.plan = self.plan._replace(numbers=numbers)


def spawn(call: Call, slot: Slot, process: int) -> Outcome:
    """Run one spawn window; the GIL is free meanwhile. In a fork of the process of that number: ECHILD."""
    # Its answer is in the result too.
    lib.ss_spawn_by(process, call.plan.by_libc, _local.arena, call.raw, slot.raw)
    return _outcome(slot.raw)


#: How many children one call can start side by side.
BATCH_MAX: int = lib.SS_BATCH_MAX


class Arenas:
    """Stacks and work areas of children that start side by side; unmapped with this."""

    __slots__ = ("_ends", "_raws")

    def __init__(self) -> None:
        """There are none yet."""
        self._raws: list[Any] = []
        self._ends: list[Any] = []

    def of(self, count: int) -> list[Any]:
        """Return that many; what is there is used again."""
        while len(self._raws) < count:
            raw = ffi.new(_ARENA)
            self._ends.append(ffi.gc(raw, lib.ss_arena_free))
            self._raws.append(raw)
        return self._raws[:count]


def spawn_batch(calls: Sequence[tuple[Call, Slot]], arenas: Arenas, process: int) -> None:
    """Run at most ``BATCH_MAX`` spawn windows side by side; see :func:`spawn`. The slots have the results."""
    rows = [(one, call.raw, slot.raw) for one, (call, slot) in zip(arenas.of(len(calls)), calls, strict=True)]
    lib.ss_batch_by(process, ffi.new(_BATCH, rows), len(rows))


def ask(call: Call, slot: Slot, process: int, helper: HelperEnd, parked: bool) -> Outcome:
    """As `spawn`, by a helper; ``parked``: a child that waits may take the plan."""
    lib.ss_ask_by(process, helper.raw, parked, call.raw, slot.raw)
    return _outcome(slot.raw)


def _put_lists(r: Any, plan: Plan) -> list[Any]:
    """Marshal the lists that most spawns do not have; returns what must be kept alive."""
    keep = []
    if plan.groups:
        keep.append(ffi.new("uint32_t[]", plan.groups))
        r.groups, r.ngroups = keep[-1], len(plan.groups)
    if plan.rlimits:
        keep.append(ffi.new("struct ss_rlimit[]", plan.rlimits))
        r.rlimits, r.nrlimits = keep[-1], len(plan.rlimits)
    if plan.cpus:
        keep.append(ffi.from_buffer("uint8_t[]", plan.cpus))
        r.cpus, r.cpus_bytes = keep[-1], len(plan.cpus)
    if plan.filter:
        keep.append(ffi.from_buffer("uint8_t[]", plan.filter))
        r.filter, r.nfilter = keep[-1], len(plan.filter) // 8
    if plan.launcher is not None:
        r.launcher = plan.launcher
    for name, text in plan.texts.items():
        keep.append(ffi.new(_CHARS, text))
        setattr(r, name, keep[-1])
    return keep


class Opened:
    """Where C puts the descriptors of lookups, so that none is lost; see :class:`Slot`."""

    def __init__(self) -> None:
        """Nothing is open."""
        #: Each with what closes it when it is forgotten.
        self._raws: list[tuple[Any, Any]] = []

    def place(self) -> Any:
        """Return room for one more lookup."""
        raw = _new_raw(_FOUND)
        raw.exe_fd = raw.cwd_fd = raw.copy_fd = raw.root_fd = -1
        # Only now: what is collected before the numbers are set would close any descriptor.
        self._raws.append((raw, ffi.gc(raw, lib.ss_found_close)))
        return raw

    def close(self) -> None:
        """Close them all; doing it twice is no error."""
        while self._raws:
            lib.ss_found_close(self._raws[-1][0])
            self._raws.pop()  # afterwards: what was not reached is closed by the next call


# ------------------------------------------------------------------------- the helper

#: Children that a helper keeps parked, entries of one list of its policy, descriptors of one plan.
POOL_MAX, POLICY_LIST_MAX = lib.SS_POOL_MAX, lib.SS_POLICY_LIST_MAX
#: Groups of all users of a policy, and bytes of its lists; how many policies a helper obeys.
POLICY_GROUPS_MAX = lib.SS_GROUPS_MAX
POLICY_BYTES_MAX = lib.SS_POLICY_BYTES_MAX - ffi.sizeof("struct ss_policy")
POLICIES_MAX = lib.SS_POLICIES_MAX
PLAN_FDS_MAX = lib.SS_MESSAGE_FDS - lib.SS_OWN_FDS


class Allowed(NamedTuple):
    """What a helper may do, as its policy has it; None stands for anything.

    ``users`` are uid, gid and sorted groups; ``options`` is a mask of SS_OPTION constants.
    """

    programs: tuple[bytes, ...] | None
    users: tuple[tuple[int, int, tuple[int, ...]], ...] | None
    variables: tuple[bytes, ...] | None
    options: int
    keeps: bool = False


def policy_bytes(allowed: Allowed) -> int:
    """Return how many bytes the lists of a policy take."""
    strings = sum(len(one) + 1 for one in (*(allowed.programs or ()), *(allowed.variables or ())))
    users = allowed.users or ()
    each: int = ffi.sizeof("struct ss_policy_user")
    return strings + len(users) * each + 4 * sum(len(groups) for _, _, groups in users)


class HelperStatus(NamedTuple):
    """What is known of a helper. ``lost`` is an errno, 0 while it is of use."""

    pid: int
    pidfd: int
    lost: int
    idle: int
    asked: int
    ended: bool


class HelperEnd:
    """Our end of a helper. Made right before it is started: its children will stand as we do then."""

    __slots__ = ("_end", "raw")

    def __init__(self) -> None:
        """Look at us. Raises OSError."""
        self.raw = ffi.new(_HELPER)
        _check(lib.ss_helper_new(self.raw), "looking at ourselves for a helper")
        self._end = ffi.gc(self.raw, lib.ss_helper_free)

    def policy(self, allowed: Allowed, pool: int) -> bytes:
        """Return the policy as the helper reads it."""
        groups = [gid for _, _, those in allowed.users or () for gid in those]
        users = ffi.new("struct ss_policy_user[]", len(allowed.users or ()))
        first = 0
        for entry, (uid, gid, those) in zip(users, allowed.users or (), strict=True):
            entry.uid, entry.gid, entry.first_group, entry.ngroups = uid, gid, first, len(those)
            first += len(those)
        (programs, nprograms), (variables, nvariables) = (
            strings(allowed.programs or ()),
            strings(allowed.variables or ()),
        )
        head = ffi.new("struct ss_policy *")
        head.magic, head.version, head.head_bytes = (
            lib.SS_POLICY_MAGIC,
            lib.SS_HELPER_VERSION,
            ffi.sizeof(head[0]),
        )
        head.flags, head.pool, head.options = _policy_flags(allowed), pool, allowed.options
        head.nusers, head.ngroups = len(users), len(groups)
        head.nprograms, head.nvariables = nprograms, nvariables
        head.program_bytes, head.variable_bytes = len(programs), len(variables)
        lib.ss_helper_stamp(self.raw, head)
        lists = [ffi.buffer(users)[:], ffi.buffer(ffi.new("uint32_t[]", groups))[:], programs, variables]
        head.total = head.head_bytes + sum(map(len, lists))
        return b"".join([ffi.buffer(head)[:], *lists])

    def hear(self, socket: int) -> None:
        """Keep a copy of our end of its socket, before it is started. Raises OSError."""
        _check(lib.ss_helper_hear(self.raw, socket), "listening to a helper")

    def begin(self, socket: int, pidfd: int, pid: int, *, keeps: bool) -> None:
        """Wait until it is ready, on copies of both descriptors. Raises OSError."""
        _check(lib.ss_helper_begin(self.raw, socket, pidfd, pid, keeps), "waiting for the helper")

    def shrink(self, policy_fd: int) -> None:
        """Have it obey one more policy. Raises OSError."""
        _check(lib.ss_helper_shrink(self.raw, policy_fd), "giving the helper one more policy")

    def look(self) -> HelperStatus:
        """Return what is known of it."""
        raw = ffi.new("struct ss_helper_status *")
        lib.ss_helper_look(self.raw, raw)
        return HelperStatus(raw.pid, raw.pidfd, raw.lost, raw.idle, raw.asked, bool(raw.ended))

    def close(self) -> None:
        """End it, and with it what it keeps parked; waits for a request under way. Twice is no error."""
        lib.ss_helper_end(self.raw)


def _policy_flags(allowed: Allowed) -> int:
    flags = lib.SS_KEEPS if allowed.keeps else 0
    flags |= lib.SS_ANY_PROGRAM if allowed.programs is None else 0
    flags |= lib.SS_ANY_USER if allowed.users is None else 0
    return flags | (lib.SS_ANY_VARIABLE if allowed.variables is None else 0)


# ---------------------------------------------------------------- the credential lock

#: What a change is bracketed as: one that a wrapper will see, one that nobody else sees.
CALL_NONE = lib.SS_CALL_NONE
CALL_RAW = lib.SS_CALL_RAW
CALL_SEAL = lib.SS_CALL_SEAL

_CHANGE = ffi.typeof("struct ss_change *")
_CHANGING = ffi.typeof("struct ss_changing *")
_ARM_STATES = {lib.SS_ARM_OFF: "off", lib.SS_ARM_ARMED: "armed", lib.SS_ARM_UNLOCKABLE: "unlockable"}


def arm(*, foreign: bool, wait_ns: int) -> int:
    """Put the wrappers in place. Returns 0 or an errno; the state is in :func:`lock_status`."""
    return lib.ss_arm(foreign, wait_ns)


def look_at_lock() -> tuple[int, int, int]:
    """Return why the lock does not hold now (an SS_LOCK constant), with its errno and number."""
    raw = ffi.new("struct ss_lock_facts *")
    lib.ss_lock_look(raw)
    return raw.why, raw.error, raw.detail


def compare_tasks() -> int:
    """Compare the credentials of all threads: 0 when they are alike, else an errno (EXDEV: no)."""
    return lib.ss_alike()


def not_alike(error: int | None) -> str | None:
    """Return what such a comparison says against the seal, None for nothing."""
    if error is None or error == errno.EXDEV:
        return "sealed, but threads differed then"
    return f"sealed, but threads could not be compared: {os.strerror(error)}" if error else None


def await_changers(seconds: float) -> bool:
    """Wait without the GIL until no change is under way; False if it took longer than that."""
    return lib.ss_await_changers(int(seconds * 1e9)) == 0


def changes_are_refused() -> bool:
    """Return whether a filter that we did not make refuses changes of credentials here."""
    return lib.ss_seal_hindered() != 0


def call_name(call: int) -> str:
    """Return the name of a call that changes credentials."""
    name = lib.ss_call_name(call)
    return ffi.string(name).decode("ascii") if name else "?"


def covered() -> dict[str, bool]:
    """Return every function that can be covered, and whether it is."""
    found: dict[str, bool] = {}
    flag = ffi.new("int32_t *")
    index = 1
    while name := lib.ss_covered(index, flag):
        found[ffi.string(name).decode("ascii")] = bool(flag[0])
        index += 1
    return found


def _text(raw: Any) -> str:
    text: bytes = ffi.string(raw)
    return text.decode("utf-8", "replace")


def lock_status() -> dict[str, Any]:
    """Return the state of the credential lock as plain values."""
    raw = ffi.new("struct ss_lock_status *")
    lib.ss_lock_status(raw)
    armed = raw.armed
    counts = ("exports", "objects", "slots", "patched", "foreign")
    own = ("changes", "epoch", "other_namespaces", "spawners", "changers", "overlaps")
    found, names = armed.searched, covered()
    return {
        "state": _ARM_STATES[armed.state],
        "errno": armed.error,
        **{name: getattr(armed, name) for name in counts},
        "captured": found.captured,
        "captured_at": found.captured_at,
        "captured_in": _text(found.captured_in),
        "unsearched": found.unsearched,
        "foreign_name": _text(armed.foreign_name),
        "foreign_in": _text(armed.foreign_in),
        **{name: getattr(raw, name) for name in own},
        "changer_waits": bool(raw.changer_waits),
        "arming_us": armed.took_ns // 1000,
        "wait": raw.wait_ns / 1e9,
        "guard_foreign": bool(raw.guards_foreign),
        "covered": [name for name, is_covered in names.items() if is_covered],
        "missing": [name for name, is_covered in names.items() if not is_covered],
    }


class Changing:
    """A change of credentials that Python brackets; collected, it is ended too."""

    __slots__ = ("_call", "_end", "_raw")

    def __init__(self, call: int) -> None:
        """Nothing is held yet."""
        self._raw = ffi.new(_CHANGING)
        self._end = ffi.gc(self._raw, lib.ss_credential_change_drop)
        self._call = call

    def begin(self) -> None:
        """Wait until no child shares our memory, without the GIL."""
        lib.ss_credential_change_begin(self._raw, self._call)

    def end(self, error: int) -> None:
        """Let spawns share memory again; doing it twice is no error. ``error``: its errno, or 0."""
        lib.ss_credential_change_end(self._raw, error)

    @property
    def waited_ns(self) -> int:
        """How long the beginning took, because children shared our memory."""
        return int(self._raw.seen.waited_ns)

    @property
    def killed(self) -> int:
        """How many of them were killed, because it took too long."""
        return int(self._raw.seen.killed)


class More(NamedTuple):
    """What a change may change beside ids and capabilities. None: could not be read.

    ``groups`` are given when there are at most 32.
    """

    fsuid: int | None
    fsgid: int | None
    ngroups: int | None
    groups: tuple[int, ...] | None


_UNREAD = 0xFFFFFFFF


def _more(raw: Any) -> More:
    told = (raw.fsuid, raw.fsgid, raw.ngroups)
    fsuid, fsgid, count = (None if one == _UNREAD else int(one) for one in told)
    fits = count is not None and count <= len(raw.groups)
    return More(fsuid, fsgid, count, tuple(raw.groups[0:count]) if fits else None)


class Change(NamedTuple):
    """One change that was seen: who called what, and the credentials before and after."""

    call: str
    tid: int
    time_ns: int
    errno: int
    by_syscall: bool
    by_psx: bool
    arguments: tuple[int, int, int]
    waited_ns: int
    killed: int
    before: Credentials
    after: Credentials
    more_before: More
    more_after: More
    text: str


def take_change() -> Change | int | None:
    """Take the oldest change that nobody took yet; the number of those that were lost; or None."""
    raw = ffi.new(_CHANGE)  # one for each call: a signal handler may make one too
    answer = lib.ss_change_take(raw)
    if answer != 1:
        return int(raw.seq) if answer < 0 else None
    return Change(
        call_name(raw.call),
        raw.tid,
        raw.time_ns,
        raw.error,
        bool(raw.through & lib.SS_THROUGH_SYSCALL),
        bool(raw.through & lib.SS_THROUGH_PSX),
        tuple(raw.arguments),
        raw.waited_ns,
        raw.killed,
        _credentials(raw.before),
        _credentials(raw.after),
        _more(raw.more_before),
        _more(raw.more_after),
        _text(raw.text),
    )


def find(
    name: bytes,
    dirs: Sequence[bytes] | None,
    *,
    seen: Seen,
    opened: Opened,
    cwd: bytes | int | None = None,
    root: bytes | int | None = None,
    walk: bool = False,
    details: bool = False,
) -> Found:
    """Look up and open a program and the working directory, here and now.

    ``dirs`` None: ``name`` is a path; else it is looked for in each. With ``root`` they are
    names inside that directory, and nothing leads out of it; ``cwd`` is none of them.
    ``details`` fetches the file's real name and its first bytes, ``walk`` looks at all
    directories above it too. The descriptors belong to ``opened``.
    """
    flags = _lookup_flags(walk=walk, details=details)
    want, keep = _lookup(name, dirs, cwd, root, flags)
    seen.expect_in(want)
    found, result = opened.place(), _new_raw(_RESULT)
    found.error = errno.EINTR
    while found.error == errno.EINTR:  # a signal: its Python handler has run (PEP 475)
        lib.ss_lookup(_local.arena, want, found, result)  # its answer is in the result too
    del keep
    return Found(found)


def find_bounded(
    name: bytes,
    dirs: Sequence[bytes] | None,
    *,
    seen: Seen,
    opened: Opened,
    slot: Slot,
    deadline_ns: int,
    cwd: bytes | int | None = None,
    root: bytes | int | None = None,
    copy: bool = False,
    walk: bool = False,
    details: bool = False,
    sharing: int = 0,
) -> tuple[Found, Outcome]:
    """Do the same in a child of its own, until the deadline; ``sharing`` is its window's flags.

    ``copy`` fetches the whole file, to be hashed. The outcome is that of the child.
    """
    flags = _lookup_flags(walk=walk, details=details or copy)
    flags |= (lib.SS_COPY if copy else 0) | sharing
    want, keep = _lookup(name, dirs, cwd, root, flags)
    seen.expect_in(want)
    want.deadline_ns = deadline_ns
    found = opened.place()
    lib.ss_lookup(_local.arena, want, found, slot.raw)  # its answer is in the result too
    del keep
    return Found(found), _outcome(slot.raw)


def _lookup_flags(*, walk: bool, details: bool) -> int:
    return (lib.SS_WALK if walk else 0) | (lib.SS_DETAILS if details or walk else 0)


def _lookup(
    name: bytes,
    dirs: Sequence[bytes] | None,
    cwd: bytes | int | None,
    root: bytes | int | None,
    flags: int,
) -> tuple[Any, list[Any]]:
    """Return the marshalled lookup, and what must be kept alive as long as it is used."""
    want = ffi.new(_LOOKUP)
    keep = [ffi.new(_CHARS, name)]
    want.name = keep[0]
    if dirs is not None:
        text, want.ndirs = strings(dirs)
        keep.append(ffi.from_buffer(_CHARS, text))
        want.dirs, want.dirs_bytes = keep[-1], len(text)
        flags |= lib.SS_SEARCH
    want.flags = flags
    want.cwd_fd = cwd if isinstance(cwd, int) else -1
    if isinstance(cwd, bytes):
        keep.append(ffi.new(_CHARS, cwd))
        want.cwd = keep[-1]
    want.root_fd = root if isinstance(root, int) else -1
    if isinstance(root, bytes):
        keep.append(ffi.new(_CHARS, root))
        want.root = keep[-1]
    return want, keep


def exit_room() -> tuple[Any, Any]:
    """Return where C keeps a child's pidfd and puts how it ended, and what closes that; see :class:`Slot`."""
    # The number first: what is collected before it is set would close descriptor 0.
    room = ffi.new(_EXIT, {"pidfd": -1})
    return room, ffi.gc(room, lib.ss_exit_close)


#: Reap a child into its room: ``wait(room, how)``. Answers 0, 1 while it still runs (not with
#: WAIT_END), or a negative errno. WAIT_LOOK fills the room too, and leaves it to be reaped by others.
#: It is the C function itself, so that no signal handler comes between the look at the descriptor's number
#: and its use.
wait = lib.ss_wait
WAIT_END, WAIT_NOHANG, WAIT_LOOK = lib.SS_WAIT_END, lib.SS_WAIT_NOHANG, lib.SS_WAIT_LOOK
#: Wait for its end without reaping: ``await_end(room, ms)``, -1 for ever. Answers 1 when it has
#: ended, 0 when the time is over, -EINTR when a signal came.
await_end = lib.ss_await
#: Send a signal: ``send(room, number)``. Answers 0 or a negative errno; C for the same reason.
send = lib.ss_send


def close_pidfd(room: Any) -> None:
    """Close a child's pidfd; doing it twice is no error."""
    lib.ss_exit_close(room)


#: cffi lets the GIL go in each call, ctypes.PYFUNCTYPE does not: see ss_environment.
_environment = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_uint64)(
    int(ffi.cast("uintptr_t", ffi.addressof(_native_ffi.lib, "ss_environment")))
)


#: What it took last time.
_ROOM = [4096]


def environment() -> bytes:
    """Return our environment as libc has it, the strings end to end, each with its NUL."""
    room = _ROOM[0]
    while True:
        buffer = bytearray(room)
        size: int = _environment(ctypes.byref(ctypes.c_char.from_buffer(buffer)), room)
        if size <= room:
            return bytes(memoryview(buffer)[:size])
        _ROOM[0] = room = size + 1024


#: madvise(2): Linux 6.1, and 2.6.38.
MADV_COLLAPSE, MADV_HUGEPAGE = 25, 14


class Huge(NamedTuple):
    """What came of making memory huge, in bytes; ``errno`` is why ``refused`` was, the first time."""

    taken: int
    sparse: int
    refused: int
    errno: int
    room: int


def knows_advice(advice: int) -> bool:
    """Return whether the kernel knows an advice of madvise(2)."""
    return bool(lib.ss_huge_knows(advice))


def make_huge(start: int, end: int, *, advice: int, block: int, filled: int, room: int) -> Huge:
    """Advise the blocks between two addresses that have ``filled`` bytes, adding ``room`` bytes at most.

    Raises OSError when it cannot be seen what is in them.
    """
    raw = ffi.new("struct ss_huge *", {"advice": advice, "block": block, "filled": filled, "room": room})
    _check(lib.ss_huge_make(start, end, raw), "looking at /proc/self/pagemap")
    return Huge(raw.taken, raw.sparse, raw.refused, raw.error, raw.room)


def fork_ns() -> int:
    """Return how long a fork takes just now, by making one that does nothing. Raises OSError."""
    return _check(lib.ss_fork_ns(), "forking")


def system_call() -> tuple[Any, Any]:
    """Return what holds one call of a stand-in for system(3), ``mask`` and ``sigdefault``; and its end."""
    call = ffi.new("struct ss_system *")
    return call, ffi.gc(call, lib.ss_system_leave)


#: Ignore SIGINT and SIGQUIT and block SIGCHLD, as system(3) does: ``enter_system(call)``, and the end of
#: that, which may be told twice. C functions themselves, so that no signal handler comes between.
enter_system, leave_system = lib.ss_system_enter, lib.ss_system_leave


def is_secure() -> bool:
    """Return whether we run with more rights than who started us (set-id, file capabilities)."""
    return bool(lib.ss_secure())


_SEAL_REFUSED = {
    errno.EACCES: "a filter takes CAP_SYS_ADMIN or no_new_privs: seal before that capability is"
    " dropped, or set no_new_privs first (prctl.set_no_new_privs(True))",
    errno.EPERM: "a sandbox, or a process that we come from and that sealed itself, refuses it",
    errno.ENOSYS: "this kernel has no seccomp(2)",
    errno.EINVAL: "this kernel has no filters for all threads at once (CONFIG_SECCOMP_FILTER)",
    errno.ENOTSUP: "the filter was taken, but does not tell our own calls from others",
}


def seal() -> None:
    """Seal this process for good: no thread of it, and nothing it starts, changes credentials.

    Only our own forked children still do, to drop privileges. Doing it twice is no error.
    Raises OSError if it cannot be done; then nothing has changed, save with ENOTSUP.
    """
    tid = ffi.new("int32_t *")
    error = -lib.ss_seal(tid)
    if not error:
        return
    why = _SEAL_REFUSED.get(error, "seccomp(2) failed")
    if error == errno.ESRCH and tid[0]:
        why = f"thread {tid[0]} has a seccomp filter of its own, so all threads cannot have the same"
    raise OSError(error, f"cannot seal this process: {why}")


def is_sealed() -> bool:
    """Return whether this process is sealed, by what the kernel answers here and now."""
    return bool(lib.ss_is_sealed())


def returncode_of(room: Any) -> int | None:
    """Return the exit code, -N for signal N, None while it is not known."""
    if room.pid <= 0:
        return None
    status: int = room.status
    return status if room.code == CLD_EXITED else -status


def exit_of(x: Any) -> Exit | None:
    """Return what is in the room, None while nothing is."""
    if x.pid <= 0:
        return None
    return Exit(
        x.pid,
        returncode_of(x) or 0,
        x.code == CLD_DUMPED,
        x.utime_us,
        x.stime_us,
        x.maxrss_kib,
        x.minflt,
        x.majflt,
        x.inblock,
        x.oublock,
        x.nvcsw,
        x.nivcsw,
    )


def cpu_mask(cpus: Sequence[int]) -> bytes:
    """Return the bit mask that sched_setaffinity(2) takes, whole 64-bit words."""
    mask = bytearray((max(cpus) // 64 + 1) * 8)
    for cpu in cpus:
        mask[cpu // 8] |= 1 << (cpu % 8)
    return bytes(mask)


# ----------------------------------------------------------------------------- Landlock


def landlock_abi() -> int:
    """Return the version of Landlock that the kernel has: 0 for none, or a negative errno."""
    answer = lib.ss_landlock_abi()
    # Not built in, or not turned on when the machine started.
    return 0 if answer in (-errno.ENOSYS, -errno.EOPNOTSUPP) else answer


def landlock_ruleset(opened: list[int], handled: int) -> int:
    """Make a ruleset that refuses these rights, and append its descriptor; or return an errno."""
    # In one step: a signal handler that raises comes before it or after it.
    opened.extend(map(lib.ss_landlock_ruleset, (handled,)))
    return -opened.pop() if opened[-1] < 0 else 0


def landlock_allow(ruleset: int, path: bytes, rights: int, of_file: int) -> int:
    """Allow rights below a directory, or ``of_file`` on anything else; or return an errno."""
    name = ffi.new(_CHARS, path)
    answer = -errno.EINTR
    while answer == -errno.EINTR:  # a signal: its Python handler has run (PEP 475)
        answer = lib.ss_landlock_allow(ruleset, name, rights, of_file)
    return -answer
