/*
 * What a child is to become, as parent, child and launcher see it; and the words in which
 * it tells how far it got.
 */
#ifndef SS_PLAN_H
#define SS_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "_sys.h"

#define SS_GROUPS_MAX 65536u         /* NGROUPS_MAX, limits.h of the kernel */
#define SS_FDS_MAX (1u << 20)        /* default of fs.nr_open, proc(5) */
#define SS_INPUT_MAX (64ull << 20)   /* ten times what execve(2) takes */
#define SS_RLIMITS_MAX 64u
#define SS_CPUS_MAX 8192u	      /* bytes: 65536 processors */
#define SS_FILTER_MAX_LEN 4096u	      /* BPF_MAXINSNS, linux/bpf_common.h */
#define SS_FILTER_INSTRUCTION 8u     /* sizeof(struct sock_filter) */
#define SS_LISTING_BYTES 4096u
#define SS_RANGE_CLOEXEC 4u          /* close_range(2), Linux 5.11 */
#define SS_CAPS_VERSION 0x20080522u  /* _LINUX_CAPABILITY_VERSION_3 */
#define SS_WAITERS 0x80000000u       /* FUTEX_WAITERS */

enum {
	SS_SHARE_MEMORY = 1 << 0,
	SS_REQUIRE_ALONE = 1 << 1,
	SS_NEW_SESSION = 1 << 2,
	SS_SET_GROUP = 1 << 3,
	SS_SET_NICE = 1 << 4,
	SS_SET_UMASK = 1 << 5,
	SS_KEEP_FDS = 1 << 6, /* what is not close-on-exec stays open; not by the launcher */
	SS_SET_SIGMASK = 1 << 7,
	SS_NO_NEW_PRIVS = 1 << 8,
	SS_SET_UID = 1 << 9,
	SS_SET_GID = 1 << 10,
	SS_SET_GROUPS = 1 << 11,
	SS_SEARCH = 1 << 12,
	SS_COPY = 1 << 13,
	SS_READABLE = 1 << 14,
	SS_EXEC_TARGET = 1 << 15, /* exec_fd is a target of the map */
	SS_WALK = 1 << 16,
	SS_DETAILS = 1 << 17,
	SS_PINNED = 1 << 18,
	SS_REQUIRE_LOCK = 1 << 19,
	SS_REQUIRE_SEAL = 1 << 20,
	SS_HOLD_CHANGES = 1 << 22, /* of credentials, while a child has memory of its own */
	SS_AMONG_OTHERS = 1 << 21, /* other threads run: they must not wait for our child */
	SS_SET_SCHEDULER = 1 << 23,
	SS_SET_CAPS = 1 << 24,
	SS_SET_SECUREBITS = 1 << 25,
	SS_LAUNCH = 1 << 26,	  /* by the launcher */
	SS_BOUND_LATER = 1 << 27, /* the deadline is for the launcher, not for the window before it */
	SS_SUBREAPER = 1 << 28,
	SS_FLAGS_END = 1 << 29,
	SS_NAMED = 1 << 29, /* of what was found, by its real name: no plan has it */
	SS_AWAKE = 1 << 30, /* nobody sleeps in vfork, deadline or not: the launcher never sees it */
};

#define SS_CHANGES_IDS (SS_SET_UID | SS_SET_GID | SS_SET_GROUPS)
#define SS_CHANGES_CREDS (SS_CHANGES_IDS | SS_SET_CAPS | SS_SET_SECUREBITS)

/* The stages, in the order in which a spawn goes through them. */
#define SS_STAGES(X)                                                            \
	X(NONE, "none")                                                         \
	X(PREPARE, "prepare")                                                   \
	X(ROOT_OPEN, "open-root")                                               \
	X(CWD_OPEN, "open-cwd")                                                 \
	X(LOOKUP, "lookup")                                                     \
	X(CLONE, "clone")                                                       \
	X(POSIX, "posix-spawn")                                                 \
	X(BIRTH, "birth")                                                       \
	X(HELPER, "helper")                                                     \
	X(LAUNCH, "launch")                                                     \
	X(WIRE, "plan")                                                         \
	X(LEVEL, "level")                                                       \
	X(ALLOWED_OPTIONS, "policy-option")                                     \
	X(ALLOWED_USER, "policy-user")                                          \
	X(ALLOWED_VARIABLES, "policy-variable")                                 \
	X(ALLOWED_PROGRAM, "policy-program")                                    \
	X(SIGNALS, "signals")                                                   \
	X(SESSION, "session")                                                   \
	X(GROUP, "process-group")                                               \
	X(SUBREAPER, "subreaper")                                               \
	X(TERMINAL, "terminal")                                                 \
	X(NICE, "nice")                                                         \
	X(SCHEDULER, "scheduler")                                               \
	X(AFFINITY, "affinity")                                                 \
	X(CGROUP, "cgroup")                                                     \
	X(UMASK, "umask")                                                       \
	X(CWD, "cwd")                                                           \
	X(FDS, "descriptors")                                                   \
	X(CLOEXEC, "close")                                                     \
	X(RLIMITS, "rlimits")                                                   \
	X(NAMESPACES, "namespaces")                                             \
	X(ROOT, "root")                                                         \
	X(BOUNDING, "bounding")                                                 \
	X(GROUPS, "groups")                                                     \
	X(GID, "gid")                                                           \
	X(UID, "uid")                                                           \
	X(CAPS, "caps")                                                         \
	X(SECUREBITS, "securebits")                                             \
	X(VERIFY, "verify-drop")                                                \
	X(NO_NEW_PRIVS, "no-new-privs")                                         \
	X(LANDLOCK, "landlock")                                                 \
	X(PDEATHSIG, "pdeathsig")                                               \
	X(CREDS, "credentials")                                                 \
	X(PIN, "pin")                                                           \
	X(MASK, "mask")                                                         \
	X(SECCOMP, "seccomp")                                                   \
	X(EPOCH, "epoch")                                                       \
	X(EXEC, "exec")

enum {
#define SS_STAGE_ENUM(name, text) SS_STAGE_##name,
	SS_STAGES(SS_STAGE_ENUM)
#undef SS_STAGE_ENUM
	SS_STAGE_COUNT
};

struct ss_creds {
	uint32_t ruid, euid, suid, rgid, egid, sgid;
	uint64_t effective, permitted, inheritable;
	uint64_t epoch; /* of the credential lock, when they were read; 0: not armed */
};

/* A source of -1: nothing is to be there, which makes a difference with SS_KEEP_FDS only. */
struct ss_fd {
	int32_t source, target;
};

/* By what an open file is known again: another one, or this one written to, differs. */
struct ss_file {
	uint64_t device, inode;
	int64_t size, mtime_ns, ctime_ns;
};

struct ss_rlimit {
	uint64_t resource, soft, hard;
};

/*
 * What to start. argv and env are argc and envc strings laid end to end, each
 * with its NUL. fds is sorted by target, each target once. deadline_ns is a
 * CLOCK_MONOTONIC time, 0 for none. A descriptor of -1 means "not asked for".
 */
struct ss_request {
	const char *path;
	const char *argv, *env;
	const struct ss_fd *fds;
	const uint32_t *groups;
	const struct ss_rlimit *rlimits;
	const uint8_t *cpus;
	const uint8_t *filter;		     /* nfilter instructions of classic BPF */
	const char *cwd;		     /* with a root: entered inside it */
	const char *map_users, *map_groups; /* lines of user_namespaces(7), written by the parent */
	uint64_t argv_bytes, env_bytes;
	uint32_t argc, envc, nfds, ngroups, nrlimits, cpus_bytes, nfilter;
	uint32_t ninherited; /* of the limits: ours, for a child that is not born of us */
	uint32_t unshared, born_in; /* CLONE_NEW flags: by the child itself, and at the clone */
	uint64_t flags;
	uint64_t sigmask, sigdefault, caps; /* sigdefault: bit n - 1 for signal n */
	uint64_t sigignore; /* those that we ignore: of a child that is not born of us */
	int64_t deadline_ns;
	int64_t size, mtime_ns, ctime_ns; /* of the program, when it is pinned */
	int32_t exec_fd, cwd_fd, terminal_fd, root_fd, cgroup_fd, landlock_fd, launcher_fd;
	struct ss_file launcher; /* as it was when it was judged */
	int32_t parent_fd; /* a pidfd of ours, for a child that cannot see our number */
	int32_t group, nice, pdeathsig, policy, priority;
	uint32_t umask, uid, gid, securebits;
	struct ss_creds expected;
};

/*
 * drop-apart (T-19): whether a child is to become what it may become in its own memory only.
 * A PID namespace that it is born in gives nobody a hold on us: it is the only one there.
 */
SS_INLINE int
ss_request_changes(const struct ss_request *r)
{
	return (r->flags & SS_CHANGES_CREDS) || r->root_fd >= 0 || r->cgroup_fd >= 0 ||
	       r->landlock_fd >= 0 || r->nfilter || r->unshared ||
	       (r->born_in & ~(uint32_t)SS_CLONE_NEWPID);
}

/* set_robust_list(2): what the kernel walks when a task execs or exits. */
struct ss_robust {
	struct ss_robust_node {
		struct ss_robust_node *next;
	} list;
	long futex_offset;
	struct ss_robust_node *pending;
};

/*
 * report->claim of a helper's child: who finds it taken runs nothing; who has taken it, by his pid, may go on. Before
 * its exec it spends it, and until then it can be taken away. A pid has 22 bits at most (PID_MAX_LIMIT, proc(5)).
 */
#define SS_CLAIM_OPEN 0
#define SS_CLAIM_CANCELLED (-1)
#define SS_CLAIM_SPENT (1 << 30)

/* The child's word to us: writable in the window, first thing in the work area. */
struct ss_report {
	int32_t stage, error;
	uint32_t handlers_cleared;
	uint32_t moved; /* the epoch of the credential lock is another than that of the decision */
	uint32_t in_cgroup; /* the clone has put the child where it belongs */
	int32_t claim;	       /* of a helper's child: its pid, before it does anything */
	uint32_t asks, answer; /* for the maps of a user namespace; the answer is an errno plus one */
	uint32_t owner; /* futex: the child's tid until it execs or dies */
	struct ss_robust robust;
	struct ss_robust_node node;
};

/* What the child reads: lives in the plan area, read-only in the window. */
struct ss_plan {
	struct ss_request want; /* pointers lead into the plan area */
	struct ss_report *report;
	unsigned char *scratch;
	char **argv, **envp;
	const int32_t *places; /* see SS_PART_PLACES */
	uint64_t mask;
	int32_t parent_pid;
	int32_t tells; /* the kernel is asked to release report->owner */
};

#ifdef SS_TEST_HOOKS
#include "_hooks.h"
#else
#define SS_HOOK(stage) 0
#define SS_COURIER_HOOK(stage) 0
#define SS_ARM_HOOK() 0
#define SS_SPAWNER_HOOK(by) ((void)0)
#define SS_CHANGER_HOOK(by, waited_ns) ((void)0)
#define SS_BUSY_HOOK() ((void)0)
#define SS_TELL_HOOK() ((void)0)
#define SS_KILLED_HOOK(is_killed, killed_ns, is_late) ((void)0)
#define SS_GUARDED(guard) 1
#define SS_HAS(function, glibc_2) ((function) != NULL)
#endif

#endif
