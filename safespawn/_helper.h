/*
 * What the core and the helper say to each other, and what the helper is allowed to do: one
 * file each, built from the same sources as both.
 */
#ifndef SS_HELPER_H
#define SS_HELPER_H

#include "_wire.h"

#define SS_HELPER_MAGIC 0x706c656873736173ull /* "sasshelp", little end first */
#define SS_POLICY_MAGIC 0x796c6f7073736173ull /* "sasspoly" */
#define SS_HELPER_VERSION 1u
#define SS_MESSAGE_FDS 253u    /* SCM_MAX_FD of include/net/scm.h */
#define SS_POOL_MAX 64u
#define SS_POLICIES_MAX 8u     /* each later one takes away from those before */
#define SS_POLICY_BYTES_MAX (1ull << 20)
#define SS_POLICY_LIST_MAX 4096u

/* Places of descriptors in a message; what is not sent has none. */
#define SS_AT_PLAN 0
#define SS_AT_REPORT 1
#define SS_OWN_FDS 11 /* the most that come before the sources of the targets */

enum {
	SS_ASK_START = 1, /* with the descriptors of one plan */
	SS_ASK_SHRINK,	  /* with one more policy */
};

enum {
	SS_TOLD_READY = 1,
	SS_TOLD_BORN,	/* with the pidfd of a child */
	SS_TOLD_PARKED, /* the same, and it waits for its plan */
	SS_TOLD_GIVEN,	/* the plan went to a child that was parked: its pid */
	SS_TOLD_SHRUNK,
	SS_TOLD_FAILED, /* with an errno: there is no child */
	SS_TOLD_RETIRED,
};

struct ss_ask {
	uint64_t magic;
	uint32_t op, nfds;
	uint32_t parked, reserved; /* parked: a child that waits may take it */
	uint64_t id;
	unsigned char nonce[SS_NONCE_BYTES];
};

struct ss_told {
	uint64_t magic;
	uint32_t op;
	int32_t error, pid;
	uint32_t idle; /* children that are parked now */
	uint64_t id;
};

enum {
	SS_ANY_PROGRAM = 1 << 0,
	SS_ANY_USER = 1 << 1,
	SS_ANY_VARIABLE = 1 << 2,
	SS_KEEPS = 1 << 3, /* on after the daemon has dropped its privileges */
	SS_POLICY_FLAGS_END = 1 << 4,
};

/*
 * Options that a policy can allow; what nobody can turn against the program is always allowed. As with seccomp
 * the kernel lets nobody confine by Landlock, or signal by his death, who is more than he is.
 */
enum {
	SS_OPTION_CWD = 1 << 0,
	SS_OPTION_FDS = 1 << 1,
	SS_OPTION_SESSION = 1 << 2,
	SS_OPTION_GROUP = 1 << 3,
	SS_OPTION_TERMINAL = 1 << 4,
	SS_OPTION_UMASK = 1 << 5,
	SS_OPTION_NICE = 1 << 6,
	SS_OPTION_SCHEDULER = 1 << 7,
	SS_OPTION_AFFINITY = 1 << 8,
	SS_OPTION_RLIMITS = 1 << 9,
	SS_OPTION_CGROUP = 1 << 10,
	SS_OPTION_ROOT = 1 << 11,
	SS_OPTION_CAPS = 1 << 12,
	SS_OPTION_SECUREBITS = 1 << 13,
	SS_OPTION_NAMESPACES = 1 << 14,
	SS_OPTION_SECCOMP = 1 << 15,
	SS_OPTION_SUBREAPER = 1 << 16,
	SS_OPTION_LANDLOCK = 1 << 17,
	SS_OPTION_PDEATHSIG = 1 << 18,
	SS_OPTIONS_END = 1 << 19,
};

/* One identity that a child may get, wholly. */
struct ss_policy_user {
	uint32_t uid, gid, first_group, ngroups; /* groups: sorted, in the list of all */
};

/*
 * The policy, a sealed file: this head, then users, groups, programs and variables, each list
 * right behind the one before. Programs and variables are strings end to end, each with its NUL.
 */
struct ss_policy {
	uint64_t magic;
	uint32_t version, head_bytes;
	uint64_t total;
	uint32_t flags, pool;
	uint64_t options;
	uint32_t nusers, ngroups, nprograms, nvariables;
	uint64_t program_bytes, variable_bytes;
	struct ss_creds expected; /* of who starts the helper */
#ifdef SS_TEST_HOOKS
	struct ss_hooks hooks;
#endif
};

#endif
