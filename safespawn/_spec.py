"""The words of a spawn as frozen values: request, facts, decision, report.

No system call, no read of /proc and no cffi in here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple, TypedDict, get_args

from ._secret import Secret

#: As in ``subprocess``, so that either's constants can be given.
PIPE = -1
STDOUT = -2
DEVNULL = -3

Text = str | bytes | os.PathLike[str] | os.PathLike[bytes]
#: An argument, or the value of a variable.
Word = Text | Secret[str] | Secret[bytes]
Pattern = str | re.Pattern[str] | re.Pattern[bytes]
Stream = int | IO[bytes] | IO[str] | None
Way = Literal["vfork", "clone", "posix_spawn", "launcher", "fork", "helper", "pool"]
Strategy = Literal["auto"] | Way
STRATEGIES: tuple[Strategy, ...] = ("auto", *get_args(Way))
OnUnproven = Literal["fork", "refuse"]
EnvPolicy = Literal["inherit", "scrub", "user"]
PathPolicy = Literal["any", "trusted"]


class HelperBase:
    """What :class:`safespawn.Helper` is, for those that only have to know that."""


#: What a helper may start: anything, these programs, or parts of a request to what each may be.
Allow = Literal["any"] | Iterable[Text] | Mapping[str, Iterable[Any]]

#: Lines of user_namespaces(7): first id inside, first id outside, how many.
IdMap = tuple[tuple[int, int, int], ...]


class UserMaps(TypedDict, total=False):
    """The maps of a new user namespace: (first id inside, first id outside, count) each."""

    users: Iterable[tuple[int, int, int]]
    groups: Iterable[tuple[int, int, int]]


class LandlockRules(TypedDict, total=False):
    """What a child may still do with files: paths, with everything below them."""

    abi: int
    read: Iterable[Text]
    write: Iterable[Text]
    execute: Iterable[Text]


class SpawnOptions(TypedDict, total=False):
    """The keyword arguments of :func:`safespawn.spawn`; README.md tells what each does."""

    executable: Text | None
    env: Mapping[str, Word] | Mapping[bytes, Word] | None
    cwd: Text | int | None
    root: Text | int | None
    stdin: Stream
    stdout: Stream
    stderr: Stream
    fds: Mapping[int, int] | None
    pass_fds: Iterable[int]
    start_new_session: bool
    process_group: int | None
    controlling_terminal: int | None
    umask: int | None
    nice: int | None
    scheduler: int | tuple[int, int] | None
    cpu_affinity: Iterable[int] | None
    rlimits: Mapping[int, int | tuple[int, int]] | None
    cgroup: Text | int | None
    pdeathsig: int | None
    restore_signals: bool
    sigmask: Iterable[int] | None
    sigdefault: Iterable[int] | None
    subreaper: bool
    no_new_privs: bool
    user: str | int | None
    group: str | int | None
    extra_groups: Sequence[str | int] | None
    caps: Iterable[str | int] | None
    securebits: Iterable[str] | None
    namespaces: Iterable[str] | Mapping[str, UserMaps | None] | None
    landlock: LandlockRules | None
    seccomp: bytes | None
    env_policy: EnvPolicy
    env_allow: Iterable[str]
    pin: bool
    digest: str | None
    path_policy: PathPolicy
    deadline: float | None
    strategy: Strategy
    on_unproven: OnUnproven
    helper: HelperBase | Literal[False] | None
    audit_tags: Mapping[str, str] | None
    redact: Iterable[Pattern] | None


class Landlock(NamedTuple):
    """Checked rules: all rights over files that ``abi`` knows are refused but these."""

    abi: int
    read: tuple[bytes, ...]
    write: tuple[bytes, ...]
    execute: tuple[bytes, ...]


class Identity(NamedTuple):
    """What a child is to become; None leaves that part as it is. ``groups`` is sorted."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None

    @property
    def changes(self) -> bool:
        """Whether any part of it is set."""
        return not (self.uid is None and self.gid is None and self.groups is None)


#: The child keeps what it is.
KEEP = Identity()


class Request(NamedTuple):
    """One validated request; `_checks.request` is the only maker.

    ``argv`` is what execve gets. ``secrets`` are those of its elements that were given as a :class:`Secret`.
    The members behind ``has_options`` are no options of ours: the faces that imitate subprocess and
    posix_spawn set them.
    """

    argv: tuple[bytes, ...]
    secrets: tuple[tuple[int, Secret[Any]], ...] = ()
    executable: bytes | None = None
    env: tuple[tuple[bytes, bytes], ...] | None = None
    cwd: bytes | int | None = None
    root: bytes | int | None = None
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    fds: tuple[tuple[int, int], ...] = ()
    pass_fds: tuple[int, ...] = ()
    start_new_session: bool = False
    process_group: int | None = None
    controlling_terminal: int | None = None
    umask: int | None = None
    nice: int | None = None
    scheduler: tuple[int, int] | None = None
    cpu_affinity: tuple[int, ...] | None = None
    rlimits: tuple[tuple[int, int, int], ...] = ()
    cgroup: bytes | int | None = None
    pdeathsig: int | None = None
    restore_signals: bool = True
    sigmask: int | None = None
    sigdefault: int = 0
    subreaper: bool = False
    no_new_privs: bool = False
    user: str | int | None = None
    group: str | int | None = None
    extra_groups: tuple[str | int, ...] | None = None
    caps: int | None = None
    securebits: int | None = None
    namespaces: tuple[str, ...] = ()
    map_users: IdMap | None = None
    map_groups: IdMap | None = None
    landlock: Landlock | None = None
    seccomp: bytes | None = None
    env_policy: EnvPolicy = "inherit"
    env_allow: frozenset[bytes] = frozenset()
    pin: bool = False
    digest: str | None = None
    path_policy: PathPolicy = "any"
    deadline: float | None = None
    strategy: Strategy = "auto"
    on_unproven: OnUnproven = "fork"
    helper: HelperBase | Literal[False] | None = None
    audit_tags: tuple[tuple[str, str], ...] = ()
    redact: tuple[re.Pattern[bytes], ...] | None = None
    #: Whether any option was given at all: most spawns have none, and skip what they ask for.
    has_options: bool = True
    #: The paths to try, one after the other, in place of a name and PATH.
    candidates: tuple[bytes, ...] = ()
    #: Just these ids, and of ours what is not named; whole identities are asked for by ``user``.
    identity: Identity | None = None
    #: What is not close-on-exec stays open (close_fds=False), but for ``closed``.
    keep_fds: bool = False
    closed: tuple[int, ...] = ()

    @property
    def words(self) -> tuple[bytes | Secret[Any], ...]:
        """The arguments as they may be shown: a secret is itself."""
        if not self.secrets:
            return self.argv
        words: list[bytes | Secret[Any]] = list(self.argv)
        for index, secret in self.secrets:
            words[index] = secret
        return tuple(words)

    @property
    def asks_identity(self) -> bool:
        """Whether the child is to run as somebody else."""
        return not (
            self.user is None and self.group is None and self.extra_groups is None and self.identity is None
        )

    @property
    def confines(self) -> bool:
        """Whether the child is to get another root, cgroup, namespace, capability or filter than ours."""
        return bool(self.namespaces) or not (
            self.root is None
            and self.cgroup is None
            and self.caps is None
            and self.securebits is None
            and self.landlock is None
            and self.seccomp is None
        )

    @property
    def seals_privileges(self) -> bool:
        """Whether no_new_privs is set: Landlock and filters are of no use where an exec undoes them."""
        return self.no_new_privs or self.landlock is not None or self.seccomp is not None

    @property
    def pinned(self) -> bool:
        """Whether the program is run by descriptor; a digest without it would prove nothing."""
        return self.pin or self.digest is not None


class Credentials(NamedTuple):
    """Ids and capability sets (bit masks) of one thread; see credentials(7)."""

    ruid: int
    euid: int
    suid: int
    rgid: int
    egid: int
    sgid: int
    effective: int
    permitted: int
    inheritable: int


class Facts(NamedTuple):
    """What was seen just before the decision. ``alone`` is None when nobody could tell.

    ``unsealed`` says why the seal is no proof, ``unlocked`` why the credential lock is none;
    None that it is. ``filtered``: the seal is on, whether or not it proves anything.
    ``unlaunchable`` says why the launcher cannot be used, looked at when credentials change,
    ``unhelped`` why no helper can; ``pool``: that helper keeps children parked.
    """

    alone: bool | None
    threads: int | None
    changes_credentials: bool
    memory_shared: bool | None = True
    error: str | None = None
    unsealed: str | None = "not sealed"
    unlocked: str | None = "not looked at"
    filtered: bool = False
    unlaunchable: str | None = "not looked for"
    unhelped: str | None = "no helper is running"
    pool: bool = False


class Verdict(NamedTuple):
    """What one guard said: ``result`` is ``allow`` or ``deny``."""

    guard: str
    result: Literal["allow", "deny"]
    why: str


class Decision(NamedTuple):
    """How to start the program. ``strategy`` None means: refuse, for the last verdict."""

    strategy: Way | None
    proof: str | None
    verdicts: tuple[Verdict, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The verdicts, one sentence each."""
        return tuple(f"{v.guard}: {v.why}" for v in self.verdicts)


class PathNode(NamedTuple):
    """Owner and mode of one component of a path."""

    path: str
    uid: int
    gid: int
    mode: int


class Executable(NamedTuple):
    """Identity of the file that is run, taken from an open descriptor of it.

    ``real`` is the kernel's name for it, empty when it has none that we can see. It and
    ``interpreter`` are fetched when a record is kept or an option needs them.
    ``held`` says that a descriptor open for reading is kept over the window (no lease
    can be taken meanwhile), ``pinned`` that the exec goes by that descriptor.
    ``interpreter`` is the first word after ``#!``.
    """

    path: str
    real: str
    device: int
    inode: int
    uid: int
    gid: int
    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    held: bool
    pinned: bool = False
    sha256: str | None = None
    interpreter: str | None = None


@dataclass(frozen=True)
class SpawnReport:
    """What happened to one spawn, and why it was done that way.

    ``id`` is a UUID (version 7, RFC 9562) that the audit records carry as ``sid``.
    ``outcome`` is one of ``exec``, ``failed``, ``killed-before-exec``,
    ``race-detected``, ``timed-out``, ``interrupted``, ``refused``; ``stage`` and ``errno`` say how far
    it got. ``interrupted`` is in records only: a handler of a signal raised before anything was started.
    ``window_ns`` is the time from the clone until the parent went on.
    ``credentials`` are the caller's, ``identity`` what the child was to become.
    ``removed_env`` names the variables that the environment policy took away.
    """

    id: str
    requested: str
    strategy: str | None = None
    proof: str | None = None
    reasons: tuple[str, ...] = ()
    outcome: str = "refused"
    stage: str | None = None
    errno: int | None = None
    pid: int | None = None
    window_ns: int | None = None
    threads: int | None = None
    credentials: Credentials | None = None
    executable: Executable | None = None
    identity: Identity = KEEP
    removed_env: tuple[str, ...] = ()


class Exit(NamedTuple):
    """How a program ended, with its resource usage as in getrusage(2)."""

    pid: int
    returncode: int
    core: bool = False
    utime_us: int = 0
    stime_us: int = 0
    maxrss_kib: int = 0
    minflt: int = 0
    majflt: int = 0
    inblock: int = 0
    oublock: int = 0
    nvcsw: int = 0
    nivcsw: int = 0
