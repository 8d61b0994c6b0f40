"""What may come of a system call that fails: the right exception at the right stage, or a spawn that does without.

:data:`ALLOWED` was drawn from runs of tests/faults.py and then read line by line against the code: a new line
is as much a decision as a new branch.
"""

from __future__ import annotations

import errno
import fnmatch
import re

from injecting import Came, Scene, Site

#: What an outcome is called below, beside the stages (``descriptors``: the OSError of that errno, at that stage).
#:
#: * ran: as if nothing had failed; that needs a reason, which comes behind.
#: * refused: UnsafeSpawn, nothing was started: by name a strategy is never replaced.
#: * audit: AuditError of that errno, nothing was started; in best_effort there is none.
#: * early: the exception of that errno before the spawn has a report.
#: * after: the program runs, and what fails is how we wait for it or read from it.
#: * race, timed-out, killed: RaceDetected, SpawnTimeout, KilledBeforeExec.
#: * STAGE!ERRNO: another errno than the one of the call.
#: * unrotated: the ledger has kept its segment, and its rotate() says so.
#: * ran:ERRNO,ERRNO: ran, of these alone.

#: Whose calls are those of a ``step``: it is the same code in all of them.
STEPPERS = ("child", "launcher", "helper-child")

#: First match wins. Keys are as in Site.key, of one play alone with that before it; the paths of a run are ~. Behind: why it may be "ran".
ALLOWED: list[tuple[str, str, str]] = [
    # ---- the steps of a child, a launcher and a child of a helper: the same code
    ("child set_robust_list", "birth lookup", ""),
    ("step set_robust_list", "refused", ""),
    ("launcher capget", "verify-drop credentials caps ran", "the first: then its capabilities are set to what they must be, and looked at again"),
    ("step capget", "birth credentials lookup verify-drop caps", ""),
    ("launcher getres[ug]id", "verify-drop credentials caps ran", "the first: as above"),
    ("step getres[ug]id", "birth credentials lookup verify-drop caps", ""),
    ("helper-child rt_sigpending", "mask refused ran", "of one that is parked meanwhile: another is made"),
    ("step rt_sigpending", "mask", ""),
    ("helper-child fcntl 1030", "descriptors refused ran", "of one that is parked meanwhile: another is made"),
    ("step setsid", "session", ""),
    ("step setpgid", "process-group", ""),
    ("step prctl 36", "subreaper", ""),
    ("step setpriority", "nice", ""),
    ("step sched_setscheduler", "scheduler", ""),
    ("step sched_setaffinity", "affinity", ""),
    ("child fstatfs", "cgroup ran", "in a lookup: a file system that may be slow"),
    ("step fstatfs", "cgroup", ""),
    ("step openat cgroup.procs", "cgroup", ""),
    ("step write", "cgroup", ""),
    ("step fchdir", "cwd", ""),
    ("step chdir /", "cwd", ""),
    ("step chroot .", "root", ""),
    ("step mount", "namespaces", ""),
    ("step unshare*", "namespaces", ""),
    ("step prctl 24", "bounding", ""),
    ("step prctl 28", "securebits", ""),
    ("step prctl 8", "uid", ""),
    ("child prctl 4", "uid", ""),
    ("step prctl 4", "uid refused", ""),
    ("step prctl 23", "bounding verify-drop credentials ran:EINVAL", "what is no capability of this kernel ends the list"),
    ("step prctl 27", "verify-drop verify-drop!EPERM credentials!EPERM refused early!EXDEV", ""),
    ("step prctl 47", "caps verify-drop!EPERM credentials!EPERM", ""),
    ("step prctl 38", "no-new-privs", ""),
    ("step prctl 1", "pdeathsig", ""),
    ("step setgroups", "groups verify-drop ran", "behind the first: it tries to get them again, which must fail"),
    ("step setresgid", "gid verify-drop ran", "behind the first: it tries to get it again, which must fail"),
    ("step setresuid", "uid verify-drop ran", "behind the first: it tries to get it again, which must fail"),
    ("step capset", "caps securebits verify-drop ran", "behind those: it tries to get them again, which must fail"),
    ("step getgroups", "verify-drop verify-drop!EPERM credentials credentials!EPERM", ""),
    ("step landlock_restrict_self", "landlock", ""),
    ("step seccomp 1", "seccomp", ""),
    ("step prlimit64", "rlimits", ""),
    ("child dup3", "descriptors refused posix-spawn", ""),
    ("step dup3", "descriptors", ""),
    ("child fcntl 1030", "descriptors refused ran:EINVAL,EMFILE", "no number above all: one between is taken"),
    ("step fcntl 1034", "plan!EPROTO", ""),
    ("step fcntl *", "descriptors posix-spawn refused", ""),
    ("step close_range", "close ran", "EINVAL is what kernels before 5.11 say: the list of descriptors is walked; libc and a full pool do without"),
    ("child rt_sigaction", "signals refused ran", "libc's posix_spawn looks at no answer"),
    ("child rt_sigprocmask", "mask refused ran", "libc's posix_spawn looks at no answer"),
    ("step rt_sigaction", "signals", ""),
    ("step rt_sigprocmask", "mask", ""),
    ("child newfstatat*", "lookup pin refused", ""),
    ("step newfstatat", "plan refused", ""),
    ("step mmap 1", "refused", ""),
    ("step mmap 2", "plan plan!ENOMEM early!ENOMEM", ""),
    ("step mmap 34", "plan plan!ENOMEM", ""),
    ("child execveat", "exec refused", ""),
    ("child execve*", "exec posix-spawn", ""),
    ("step execve*", "exec", ""),
    ("child openat2*", "ran", "what is not in the cache is opened the slow way"),
    ("child openat*", "lookup", ""),
    ("child faccessat2", "lookup ran:EPERM", "a sandbox that does not know it: by the mode"),
    ("child pread64", "lookup", ""),
    ("child sendmsg", "lookup", ""),
    ("step futex *", "ran", "whoever waits looks again"),
    ("step close", "ran", "it is closed whatever close(2) says"),
    ("helper close", "ran", "it is closed whatever close(2) says"),
    ("helper-child ppoll", "ran", "one that is parked, and cannot wait, ends: another is made"),
    ("step ppoll", "pdeathsig", ""),
    ("helper-child recvmsg", "ran refused", "one that is parked and lost: another is made"),
    # ---- the helper: whoever cannot go on ends, and that is noticed
    ("helper clone", "refused ran", "one that is to be parked: later"),
    ("helper recvmsg", "refused ran", "EAGAIN: it waits again; at its end, or lost when it has answered: another is started"),
    ("helper sendmsg", "early!ETIMEDOUT ran", "what it says of a child, which is found by its claim or its pid; that it is ready must be said"),
    ("helper capget", "refused ran", "it retires when it does not know who we are; at its start as the launcher"),
    ("helper getres[ug]id", "refused ran", "at its start, as the launcher"),
    ("helper prctl 4", "early", ""),
    ("helper fcntl 1034", "early!EPROTO", ""),
    ("helper mmap 2", "early!ENOMEM", ""),
    ("helper newfstatat", "early", ""),
    ("helper setsockopt", "early", ""),
    ("helper ppoll", "ran", "it ends, is noticed and started anew"),
    ("helper socketpair", "ran", "no child is parked: later"),
    ("helper close_range", "ran", "none is parked then, as before Linux 5.9"),
    ("helper pidfd_send_signal", "ran", "of one that is parked, which ends with its socket"),
    # ---- we, before the spawn has begun: without a report (README, "Exceptions")
    ("parent capget", "early refused birth", ""),
    ("parent getres[ug]id", "early refused birth", ""),
    ("parent getgroups", "early ran", "told beside: a record that cannot tell it is told as lost"),
    ("parent prlimit64", "early refused ran", "the room for arguments, and for a record, is asked in vain: the kernel says it in the end"),
    # ---- a ledger: its opening, its rotation (which says that it could not), its records
    ("parent newfstatat /var/lib/safespawn/audit/*", "audit!ENOENT ran:ENOENT,ENOTDIR,EACCES", "there are no keys, or none for us"),
    ("parent newfstatat /proc/self/ns/*", "ran", "what the first record says beside"),
    ("parent openat /proc/self/attr/current", "ran", "what the first record says beside"),
    ("parent openat /proc/self/cgroup", "ran", "what the first record says beside"),
    ("parent openat /proc/self/comm", "ran", "what the first record says beside"),
    ("parent openat /proc/self/status", "ran", "what the first record says beside"),
    ("parent newfstatat /tmp", "ran", "where the path leads: looked at again when it is opened"),
    ("parent newfstatat ~", "ran", "as above"),
    ("parent newfstatat ~/life-N", "ran", "as above"),
    ("parent newfstatat ~/life-N/ledger", "ran", "as above"),
    ("parent openat ~/life-N/ledger", "ran:EINTR,ENOENT", "again; there is none yet"),
    ("ledger_life: parent openat /", "ran:EINTR,ENOENT,ENOTDIR,EACCES", "again; there are no keys, or none for us"),
    ("parent openat var", "ran:EINTR,ENOENT,ENOTDIR,EACCES", "again; there are no keys, or none for us"),
    ("parent openat lib", "ran:EINTR,ENOENT,ENOTDIR,EACCES", "as above"),
    ("parent newfstatat var", "ran:ENOENT,ENOTDIR,EACCES", "as above"),
    ("parent newfstatat lib", "ran:ENOENT,ENOTDIR,EACCES", "as above"),
    ("parent newfstatat safespawn", "ran:ENOENT,ENOTDIR,EACCES", "as above"),
    ("parent fallocate", "ran", "the reserve: without it a full disk is noticed sooner"),
    ("parent fdatasync", "ran", "of an intent: another segment is begun, and has what this one may have lost; EINTR: again"),
    ("parent fsync", "ran:EINTR", "again"),
    ("parent flock", "ran", "EINTR, EAGAIN: again; a lock ends with its descriptor"),
    ("parent mlock", "ran", "as much as the limit of locked memory lets"),
    ("parent pwrite64", "ran", "a slot that is behind is caught up with by the next record; EINTR: again"),
    # ---- what is looked at
    ("parent unshare 0x100", "ran", "a sandbox may refuse it; the number of tasks decides"),
    ("parent openat /proc/self/task", "refused ran", "a fork needs no proof"),
    ("parent fstatfs", "refused ran", "a fork needs no proof"),
    ("parent fcntl 1", "ran", "one of 0 to 2 that cannot be looked at is /dev/null in the child"),
    ("parent move_pages", "ran", "a sandbox may refuse it: then /proc says whether the child has left"),
    ("parent readlink /proc/self", "namespaces!EIO ran", "nobody can say: told as unconfirmed"),
    ("parent openat /proc/N/stat", "ran", "nobody can say: told as unconfirmed"),
    ("parent readlink /proc/self/ns/*", "ran", "in doubt the lookup is made here"),
    ("parent openat /proc/self/fd", "ran", "how many descriptors there is room for: what is too much fails, and is told"),
    ("parent getdents64", "ran", "as above"),
    ("parent openat /etc/passwd", "ran", "a user without an entry: then it has no groups but those that are given"),
    ("parent newfstatat /etc/nsswitch.conf", "ran", "libc's, before it reads /etc/passwd"),
    ("parent lseek", "ran", "libc's, when it has read /etc/passwd; the interpreter's, of a pipe"),
    # ---- what is opened
    ("parent openat /dev/null", "prepare ran:EINTR", "again"),
    ("parent pipe2", "prepare", ""),
    ("parent openat /usr", "open-cwd ran:EINTR", "again"),
    ("parent openat /", "landlock open-root ran:EINTR", "again"),
    ("parent openat /sys/fs/cgroup/pids", "cgroup ran:EINTR", "again"),
    ("parent landlock_*", "landlock", ""),
    ("parent openat2 *", "lookup ran", "what is not in the cache is opened the slow way"),
    ("parent openat /bin/true", "lookup ran:EINTR,EAGAIN", "again"),
    ("parent faccessat2", "lookup ran:EPERM", "a sandbox that does not know it: by the mode"),
    ("parent pread64", "lookup ran:EINTR", "again"),
    ("parent openat /proc/self/fd/N", "lookup ran:EINTR,EACCES,ENOENT", "again; what cannot be opened for reading is held without that"),
    ("parent newfstatat /usr/bin/true", "refused", ""),
    ("parent newfstatat /no/such/program", "lookup ran:ENOENT", "so it is"),
    ("parent newfstatat /*", "lookup landlock", ""),
    ("parent newfstatat ~/program", "lookup", ""),
    ("parent newfstatat", "audit early landlock lookup prepare refused ran", "of a descriptor: what a record says beside; whether a pipe is a file, which the interpreter asks"),
    ("parent readlinkat /proc/self/fd/N", "refused ran", "the way of what is open, for a record and for path_policy"),
    # ---- the window
    ("parent mmap 1", "prepare refused", ""),
    ("parent mmap 131106", "posix-spawn", ""),
    ("parent mmap 16418", "clone prepare refused early!ENOMEM", ""),
    ("parent mmap 34", "early!ENOMEM ran", "the interpreter's own room"),
    ("parent mmap 49", "prepare clone", ""),
    ("parent mmap 50", "prepare", ""),
    ("parent madvise *", "ran", "advice; a ledger insists on it"),
    ("parent munmap", "ran", "then it stays; the kernel refuses none of ours"),
    ("parent mprotect", "clone prepare posix-spawn ran", "the second: the plan area that cannot be had back is given up"),
    ("parent rt_sigprocmask", "clone prepare refused ran", "the second restores the mask; the kernel refuses none of ours"),
    ("parent clone3", "clone posix-spawn refused ran", "EPERM, EINVAL: by clone; EBUSY: the proof does not hold, and a fork needs none; at once into its cgroup: else it goes there itself"),
    ("parent clone", "clone posix-spawn refused", ""),
    ("parent socketpair", "clone", ""),
    ("parent recvmsg", "clone!EIO refused ran", "the helper may be lost when it has said all that matters"),
    ("parent futex *", "ran", "whoever waits looks again"),
    ("parent ppoll", "refused ran", "whoever waits looks again; the helper may be lost"),
    ("parent pidfd_send_signal", "refused ran", "a probe of ours; what cannot be killed is left to be reaped"),
    ("parent pidfd_open", "clone after!ECHILD early!ECHILD", ""),
    ("parent openat /proc/N/gid_map", "namespaces ran:EPERM", "setgroups is given up inside, and it is written again"),
    ("parent openat /proc/N/*", "namespaces", ""),
    # ---- the launcher and the helper
    ("parent memfd_create *", "refused ran:EINVAL", "without MFD_NOEXEC_SEAL"),
    ("parent ftruncate", "prepare refused", ""),
    ("parent fcntl 1033", "prepare refused ran:EINTR", "the interpreter, again"),
    ("parent getrandom", "refused", ""),
    ("parent sendmsg", "refused", ""),
    ("parent prctl *", "refused early!EXDEV", ""),
    ("parent readlinkat *", "refused early!EXDEV", ""),
    ("parent getsid", "refused", ""),
    ("parent ioprio_get", "refused early!EXDEV", ""),
    ("parent personality", "refused early!EXDEV", ""),
    ("parent openat N/attr/current", "refused early!EXDEV", ""),
    ("parent sched_get*", "refused", ""),
    ("parent openat /proc/thread-self/*", "refused", ""),
    ("parent openat /proc/self/oom_score_adj", "refused", ""),
    ("parent openat /proc/self/coredump_filter", "refused early!EXDEV", ""),
    ("parent openat N/status", "refused early!ESRCH", ""),
    ("parent faccessat N", "refused early!ESRCH", ""),
    ("parent getpgid", "refused", ""),
    ("parent getpriority", "refused", ""),
    ("parent newfstatat .", "refused", ""),
    ("parent statx .", "ran", "on which mount we are cannot be told: a child is told where to go by a descriptor"),
    ("parent ioctl 21505", "ran", "the interpreter asks whether a file is a terminal"),
    ("parent getsockname", "ran", "the interpreter's, of a socket that it makes"),
    ("parent shutdown", "ran", "at the end of the helper: its socket is closed all the same"),
    # ---- the end
    ("parent fcntl 1030", "ran", "the copy of a pidfd for a wait: without it by looking again and again"),
    ("parent waitid", "ran after after!ECHILD early!ECHILD", "others may have reaped it; told as unconfirmed"),
    ("parent poll", "after ran", "whoever waits looks again"),
    ("parent read", "after refused early!TypeError early!AttributeError ran", "nobody can say: told as unconfirmed; EAGAIN of a file is no bytes, but None, to the interpreter"),
    ("parent close", "ran", "it is closed whatever close(2) says"),
    ("parent write", "audit namespaces prepare refused ran", "EINTR: again; what becomes of a program that runs is told as lost"),
    ("parent openat *", "ran:EINTR", "again"),
]

#: Steps whose first call of a play is the one that counts: it never fails unnoticed.
NEVER_UNNOTICED = ("step set*", "launcher set*", "*child cap*", "*child unshare*", "launcher unshare*", "*child chroot*", "launcher chroot*")

#: What is left, and why that is right: key, errnos (none: any), what is said.
EXCUSED: list[tuple[str, str, str, str]] = [
    ("parent rt_sigprocmask", "", "^mask: ", "the mask that cannot be restored: nothing is left to be tried"),
    ("parent munmap", "", "^mappings: ", "what is not unmapped stays"),
    ("parent waitid", "", "^(zombie|descriptors): ", "what we are told is reaped, or not ours, is not reaped by us"),
    ("parent pidfd_open", "", "^zombie: ", "libc has started it, and there is no pidfd to wait with (docs/limits.md)"),
    ("parent ppoll", "ENOMEM EFAULT EINVAL", "^(descriptors|mappings): ", "of whom we cannot wait for the end it is not known: reaped on a later spawn, and its memory is given up"),
    ("parent pidfd_send_signal", "", "^(descriptors|zombie): ", "what cannot be killed is reaped on a later spawn"),
    ("parent newfstatat", "EBADF", "^descriptors: ", "the interpreter takes it for closed"),
    ("parent newfstatat", "", "^(descriptors: .[0-9]+: 'socket:|zombie: )", "the helper's socket is not known again: its number may be another's"),
    ("parent getsockname", "EBADF ENOTSOCK", "^descriptors: ", "the interpreter raises, and what it was given stays open"),
]

#: What does not come back, or go away: key, what is said afterwards of it, why.
LASTING: list[tuple[str, str, str]] = [
    ("*", "no launcher: ", "what will be so next time is remembered of the launcher"),
    ("helper *", "no helper: the helper is lost .it retired", "a helper that we may have outlived stays away"),
    ("parent waitid", "^more: (anon_inode:.pidfd. )?children$", "what we are told is reaped, or not ours, is not reaped by us"),
    ("parent recvmsg", "^more: children$", "of a child that we were not told of, nobody can reap it"),
    ("parent pidfd_send_signal", "^more: anon_inode:.pidfd. children$", "what cannot be killed is reaped when it ends"),
]


_KINDS = {"UnsafeSpawn": "refused", "RaceDetected": "race", "SpawnTimeout": "timed-out", "KilledBeforeExec": "killed"}


def outcome(came: Came, name: str = "") -> str:
    """Return what came of a play in one of the words above, "lost" where the process ended."""
    said = came.said
    if "lost" in said:
        return "lost"
    if "raised" not in said:
        return "ran" if said.get("rotated", True) else "unrotated"
    kind = _KINDS.get(said["raised"])
    if kind is not None:
        return kind
    number = getattr(errno, name, None)
    where = said["stage"] or ("audit" if said["raised"] == "AuditError" else "after" if came.programs > said.get("others", 0) else "early")
    if said["errno"] == number:
        return where
    return f"{where}!{errno.errorcode.get(said['errno'], said['raised'])}"


def _fits(site: Site, key: str) -> bool:
    names = [site.key]
    if site.role in STEPPERS:
        names.append("step" + site.key.removeprefix(site.role))
    return any(fnmatch.fnmatchcase(name, key) for name in names)


def _is_left_to_itself(scene: Scene, wrong: str) -> bool:
    """Whether it may be a parked child whose helper was killed before it could tell of it (R-56)."""
    return scene.play == "helper_life" and scene.pool > 0 and wrong.startswith("zombie: ")


def _is_excused(site: Site, name: str, wrong: str) -> bool:
    return any(
        _fits(site, key) and name in (names.split() or [name]) and re.search(what, wrong)
        for key, names, what, _ in EXCUSED
    )


def judge(scene: Scene, site: Site, name: str, came: Came, plain: str) -> str:
    """Return what is wrong with what came of it; ``plain`` is what comes without a fault."""
    wrong = [one for one in came.wrong if not _is_excused(site, name, one) and not _is_left_to_itself(scene, one)]
    if wrong:
        return "; ".join(wrong)
    it = outcome(came, name)
    if not came.fired:
        return "" if it == plain else f"{it} without a fault"
    words = next((words.split() for key, words, _ in ALLOWED if _fits(site, key.removeprefix(f"{scene.play}: "))), [])
    if scene.play == "ledger_life" and site.role == "parent":
        words += ["audit", "unrotated"]  # what a record needs cannot be had: also that of the opening and of the end
    if scene.play == "helper_life" and site.role == "parent":
        words += ["early", "refused"]  # what a helper needs cannot be had, or it is not there to be asked
    if scene.pool and site.role == "helper-child":
        words += ["ran", "refused"]  # of one that is parked meanwhile: another is made
    if it == plain or outcome(came) == plain:
        first = site.ordinal == 1 and any(_fits(site, key) for key in NEVER_UNNOTICED)
        return "" if _may_run(words, name) and not first else f"{it}, as if nothing had failed"
    if it not in words and f"{it}!{name}" not in words:  # "STAGE!EPERM" where the call's own errno is that one
        return f"{it}, not {words}: {came.said}"
    return "" if it == "unrotated" else _of_its_kind(scene, it, name, came)


def _may_run(words: list[str], name: str) -> bool:
    return any(word == "ran" or (word.startswith("ran:") and name in word[4:].split(",")) for word in words)


def _of_its_kind(scene: Scene, it: str, name: str, came: Came) -> str:
    """Whether the exception is the one of its errno, and nothing has run behind its back."""
    said = came.said
    ran_before = scene.play == "ledger_life" and it == "audit"  # the ledger's end comes behind
    if it[:5] != "after" and not ran_before and came.programs > said.get("others", 0):
        return f"{it}, and {came.programs} programs ran"
    expected = type(OSError(said["errno"], "")).__name__
    if said["raised"] not in (expected, "AuditError", "MemoryError", *_KINDS) and it.partition("!")[0] not in ("after", "early"):
        return f"{said['raised']} for {name}"
    report = said["report"]
    if said["stage"] is not None and report is not None and report[1:3] != [said["stage"], said["errno"]] and it not in _KINDS.values():
        return f"the report says {report}, the exception {said['stage']}, {said['errno']}"
    return ""


def lasts(site: Site, text: str) -> bool:
    """Whether what is refused afterwards is so for good."""
    return any(_fits(site, key) and re.search(what, text) for key, what, _ in LASTING)
