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

#: First match wins. Keys are as in Site.key; the paths of a run are ~. Behind: why it may be "ran".
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
    ("child fstatfs", "cgroup ran", "in a lookup: that of the root, which need not be /proc"),
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
    ("parent prctl *", "refused early early!EXDEV ran", "who we are is told in the ledger's first record as far as it is known"),
    ("step setgroups", "groups verify-drop ran", "behind the first: it tries to get them again, which must fail"),
    ("step setresgid", "gid verify-drop ran", "behind the first: it tries to get it again, which must fail"),
    ("step setresuid", "uid verify-drop ran", "behind the first: it tries to get it again, which must fail"),
    ("step capset", "caps securebits verify-drop ran", "behind those: it tries to get them again, which must fail"),
    ("step getgroups", "verify-drop verify-drop!EPERM credentials credentials!EPERM", ""),
    ("step landlock_restrict_self", "landlock", ""),
    ("step seccomp 1", "seccomp", ""),
    ("step prlimit64", "rlimits prepare refused early early!EXDEV ran", "the room for arguments, and for a record, is asked in vain: the kernel says it in the end"),
    ("child dup3", "descriptors refused posix-spawn", ""),
    ("step dup3", "descriptors", ""),
    ("child fcntl 1030", "descriptors refused ran", "no number above all: one between is taken (EINVAL, EMFILE)"),
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
    ("child openat2*", "lookup ran", "what is not in the cache is opened the slow way"),
    ("child openat /proc/self/*", "close ran", ""),
    ("child openat*", "lookup open-cwd", ""),
    ("child faccessat2", "lookup ran", "EPERM is a sandbox that does not know it: by the mode"),
    ("child pread64", "lookup ran", "EINTR: again"),
    ("child sendmsg", "lookup", ""),
    ("step futex *", "ran", "whoever waits looks again"),
    ("step close", "ran", "it is closed whatever close(2) says"),
    ("helper close", "ran", "it is closed whatever close(2) says"),
    ("step ppoll", "ran pdeathsig", ""),
    ("helper-child recvmsg", "ran refused", "one that is parked and lost: another is made"),
    # ---- the helper: whoever cannot go on ends, and that is noticed
    ("helper clone", "refused ran", "one that is to be parked: later"),
    ("helper recvmsg", "refused ran", "EAGAIN: it waits again"),
    ("helper sendmsg", "refused early early!ETIMEDOUT ran", "what it says of parked ones; lost: another helper"),
    ("helper capget", "refused ran", "it retires when it does not know who we are; at its start as the launcher"),
    ("helper getres[ug]id", "refused ran", "at its start, as the launcher"),
    ("helper prctl 4", "early", ""),
    ("helper fcntl 1034", "early!EPROTO", ""),
    ("helper mmap 2", "early!ENOMEM", ""),
    ("helper newfstatat", "early", ""),
    ("helper setsockopt", "early", ""),
    ("helper *", "refused early early!ETIMEDOUT ran", "it ends, is noticed and started anew"),
    # ---- we: what is looked at
    ("parent unshare 0x100", "ran", "a sandbox may refuse it; the number of tasks decides"),
    ("parent fcntl 1", "early refused ran", "one of 0 to 2 that cannot be looked at is /dev/null in the child"),
    ("parent fcntl 1030", "early ran", "the copy of a pidfd for a wait: without it by looking again and again"),
    ("parent fcntl 1033", "early prepare refused", ""),
    ("parent fcntl *", "early prepare refused audit ran", ""),
    ("parent capget", "early after refused birth", ""),
    ("parent getres[ug]id", "early after refused birth", ""),
    ("parent openat /proc/self/task", "refused early ran", "a fork needs no proof"),
    ("parent fstatfs", "refused early ran", "a fork needs no proof"),
    ("parent move_pages", "ran", "a sandbox may refuse it: then /proc says whether the child has left"),
    ("parent readlink /proc/self", "namespaces namespaces!EIO ran", "nobody can say: told as unconfirmed"),
    ("parent readlink /proc/self/ns/*", "ran", "in doubt the lookup is made here"),
    ("parent openat /proc/N/stat", "ran", "nobody can say: told as unconfirmed"),
    ("parent openat /proc/N/gid_map", "namespaces ran", "EPERM: setgroups is given up inside, and it is written again"),
    ("parent openat /proc/N/uid_map", "namespaces", ""),
    ("parent openat /dev/null", "prepare early ran", "EINTR: again"),
    ("parent pipe2", "prepare", ""),
    ("parent openat /usr", "open-cwd ran", "EINTR: again"),
    ("parent openat /", "landlock open-root early audit ran", "EINTR: again"),
    ("parent openat /sys/fs/cgroup/pids", "cgroup ran", "EINTR: again"),
    ("parent openat2 *", "lookup ran", "what is not in the cache is opened the slow way"),
    ("parent faccessat2", "lookup ran", "EPERM is a sandbox that does not know it: by the mode"),
    ("parent newfstatat ~/program", "lookup ran", ""),
    ("parent newfstatat /bin/true", "lookup ran", ""),
    ("parent landlock_*", "landlock", ""),
    ("parent madvise *", "audit early ran", "advice; but for MADV_WIPEONFORK, without which there is no ledger"),
    ("parent munmap", "ran", "then it stays; the kernel refuses none of ours"),
    ("parent mprotect", "clone prepare posix-spawn early ran", "the plan area that cannot be had back is given up"),
    ("parent mmap *", "clone prepare posix-spawn refused early early!ENOMEM ran audit", "the interpreter's own room"),
    ("parent clone3", "clone posix-spawn refused early lookup ran", "EPERM, EINVAL: clone; EBUSY: the proof does not hold, and a fork needs none"),
    ("parent clone", "clone posix-spawn refused early ran", ""),
    ("parent pidfd_open", "clone early after!ECHILD early!ECHILD ran", "libc has started it, and for want of memory there is no pidfd: it runs unwatched, or is about to"),
    ("parent pidfd_send_signal", "refused after ran", "a probe of ours; what cannot be killed is left to be reaped"),
    ("parent rt_sigprocmask", "clone prepare refused early ran", "the second restores the mask; the kernel refuses none of ours"),
    ("parent waitid", "ran after after!ECHILD early early!ECHILD refused", "others may have reaped it; told as unconfirmed"),
    ("parent close", "after ran", "it is closed whatever close(2) says"),
    ("parent ppoll", "refused early ran", "whoever waits looks again; the helper may be lost"),
    ("parent poll", "after early ran", "whoever waits looks again"),
    ("parent read", "after early refused ran", "nobody can say: told as unconfirmed"),
    ("parent socketpair", "clone early", ""),
    ("parent recvmsg", "clone!EIO early refused ran", "the helper may be lost when it has said all that matters"),
    ("parent sendmsg", "refused ran", ""),
    ("parent pread64", "lookup early audit ran", "EINTR: again"),
    ("parent write", "audit namespaces prepare refused early ran", "EINTR: again; what becomes of a program that runs is told as lost"),
    ("parent getpgid", "process-group process-group!EINVAL refused ran", "a group that cannot be told is our own"),
    ("parent memfd_create *", "refused early ran", "EINVAL: without MFD_NOEXEC_SEAL"),
    ("parent newfstatat /var/lib/safespawn/audit/*", "audit!ENOENT ran:ENOENT,ENOTDIR,EACCES", "there are no keys, or none for us"),
    ("parent newfstatat*", "audit landlock early lookup prepare refused ran", "what a record would say beside; the ledger's file"),
    ("parent readlinkat*", "refused early early!EXDEV ran", "what a record would say beside"),
    ("parent openat *", "audit early lookup prepare refused early!EXDEV ran", "what a record would say beside"),
    ("parent *", "audit early refused early!EXDEV early!ESRCH prepare ran", "what a record would say beside"),
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


def _is_excused(scene: Scene, site: Site, name: str, wrong: str) -> bool:
    return any(
        _fits(site, key) and name in (names.split() or [name]) and re.search(what, wrong)
        for key, names, what, _ in EXCUSED
    )


def judge(scene: Scene, site: Site, name: str, came: Came, plain: str) -> str:
    """Return what is wrong with what came of it; ``plain`` is what comes without a fault."""
    wrong = [one for one in came.wrong if not _is_excused(scene, site, name, one)]
    if wrong:
        return "; ".join(wrong)
    it = outcome(came, name)
    if not came.fired:
        return "" if it == plain else f"{it} without a fault"
    words = next((words.split() for key, words, _ in ALLOWED if _fits(site, key)), [])
    if scene.play == "ledger_life" and site.role == "parent":
        words += ["audit", "unrotated"]  # what a record needs cannot be had: also that of the opening and of the end
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
    if said["raised"] not in (expected, "AuditError", "MemoryError", *_KINDS) and it not in ("after", "early"):
        return f"{said['raised']} for {name}"
    report = said["report"]
    if said["stage"] is not None and report is not None and report[1:3] != [said["stage"], said["errno"]] and it not in _KINDS.values():
        return f"the report says {report}, the exception {said['stage']}, {said['errno']}"
    return ""


def lasts(site: Site, text: str) -> bool:
    """Whether what is refused afterwards is so for good."""
    return any(_fits(site, key) and re.search(what, text) for key, what, _ in LASTING)
