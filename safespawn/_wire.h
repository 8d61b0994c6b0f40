/*
 * The plan as it travels from the parent to the launcher: one file, a head and then its
 * parts. Both are built from the same sources, and the head says so (version, size).
 */
#ifndef SS_WIRE_H
#define SS_WIRE_H

#include "_plan.h"

#define SS_WIRE_MAGIC 0x6e616c7073736173ull /* "sassplan", little end first */
#define SS_WIRE_VERSION 1u
#define SS_WIRE_MAX (3 * SS_INPUT_MAX) /* what ss_measure lets through, and its tables */
#define SS_NONCE_BYTES 16
#define SS_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

enum {
	SS_PART_PATH,
	SS_PART_ARGV,
	SS_PART_ENV,
	SS_PART_TARGETS, /* int32_t each: already in place, ascending */
	SS_PART_GROUPS,
	SS_PART_RLIMITS,
	SS_PART_CPUS,
	SS_PART_FILTER,
	SS_PART_CWD,
	SS_PART_PLACES, /* int32_t each, of a helper's plan: where the message has the source of each target */
	SS_PARTS
};

struct ss_part {
	uint64_t at, bytes; /* from the start of the file; each starts on 16 bytes */
};

struct ss_wire {
	uint64_t magic;
	uint32_t version, head_bytes;
	uint64_t total;
	unsigned char nonce[SS_NONCE_BYTES]; /* the launcher got it too, by its argument */
	struct ss_request want;		     /* its pointers are unset */
	uint64_t mask;
	int32_t parent_pid, reserved;
	struct ss_part parts[SS_PARTS];
#ifdef SS_TEST_HOOKS
	struct ss_hooks hooks;
#endif
};

#endif
