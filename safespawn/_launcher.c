/*
 * The launcher: a program without libc that becomes what a plan says, in memory of its
 * own, and then execs the program of that plan.
 *
 *     launcher PLAN REPORT NONCE
 *
 * PLAN is the descriptor of a sealed memfd (_wire.h), REPORT that of a page which the
 * parent sees too (struct ss_report), NONCE 32 hex digits that the plan must have as well.
 * Why there is such a program: a child that changes its credentials in the parent's memory
 * can be stopped, traced or used by its new user, and the parent with it (T-19).
 *
 *  1. Nobody may trace it or look into it on its way down: not dumpable, first of all.
 *     The flag belongs to its own memory, and goes with it at the exec.
 *  2. The plan cannot be changed any more (its seals), was not cut or mixed up with another
 *     (size, nonce), and leads nowhere outside itself (_wire.c). [T-29 plan-sealed]
 *  3. It has what its parent had, no less and no more: an exec as root may give back what
 *     the parent has lost, and takes capabilities from any other user. [T-28 level-kept]
 *  4. Then the steps of every child (_child.c), in memory that nobody shares.
 *
 * It starts with all signals blocked and has the descriptors of the plan and its own, all
 * of which close at the exec. It ends by that exec or with exit code 127 and the stage and
 * errno in the report. Nothing is allocated after the plan was read.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>

#include "_wire.h"

/* The compiler calls these for structs, libc or not. */
void *
memcpy(void *to, const void *from, size_t bytes)
{
	unsigned char *t = to;
	const unsigned char *f = from;

	while (bytes--)
		*t++ = *f++;
	return to;
}

void *
memset(void *to, int value, size_t bytes)
{
	unsigned char *t = to;

	while (bytes--)
		*t++ = (unsigned char)value;
	return to;
}

#include "_child.c"

#include "_wire.c"

static int
ss_launcher_hex(const char *text, unsigned char *nonce)
{
	unsigned i;

	for (i = 0; i < 2 * SS_NONCE_BYTES; i++) {
		const char c = text[i];
		const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;

		if (value < 0)
			return 0;
		nonce[i / 2] = (unsigned char)(i % 2 ? nonce[i / 2] | value : value << 4);
	}
	return !text[i];
}

static void *
ss_launcher_map(int32_t fd, size_t bytes, int how, int flags)
{
	const long at = ss_sys6(SYS_mmap, NULL, bytes, how, flags, fd, 0);

	return at < 0 && at > -4096 ? NULL : (void *)at;
}

/* Where to tell: NULL if there is no such place. Beyond the end of its file it would be SIGBUS. */
static struct ss_report *
ss_launcher_page(int32_t fd)
{
	struct stat st;

	if (ss_sys4(SYS_newfstatat, fd, "", &st, AT_EMPTY_PATH) < 0 || st.st_size < (off_t)sizeof(struct ss_report))
		return NULL;
	return ss_launcher_map(fd, sizeof(struct ss_report), PROT_READ | PROT_WRITE, MAP_SHARED);
}

/* The bytes of the plan: sealed for good, so what is checked now holds later. */
static int
ss_launcher_bytes(int32_t fd, const struct ss_wire **ret_wire)
{
	const long seals = ss_sys3(SYS_fcntl, fd, F_GET_SEALS, 0);
	struct stat st;
	int error;

	if (SS_GUARDED(PLAN_SEALED) && (seals < 0 || (seals & SS_SEALS) != SS_SEALS))
		return EPROTO;
	if ((error = ss_child_error(ss_sys4(SYS_newfstatat, fd, "", &st, AT_EMPTY_PATH))))
		return error;
	if (st.st_size < (off_t)sizeof(struct ss_wire) || (uint64_t)st.st_size > SS_WIRE_MAX)
		return EPROTO;
	*ret_wire = ss_launcher_map(fd, (size_t)st.st_size, PROT_READ, MAP_PRIVATE);
	return *ret_wire ? ss_wire_check(*ret_wire, (size_t)st.st_size) : ENOMEM;
}

static int
ss_launcher_is_ours(const struct ss_wire *wire, const unsigned char *nonce)
{
	unsigned char differ = 0;
	unsigned i;

	for (i = 0; i < SS_NONCE_BYTES; i++)
		differ |= wire->nonce[i] ^ nonce[i];
	return !differ;
}

static int
ss_launcher_read(int32_t fd, const unsigned char *nonce, struct ss_plan *plan)
{
	const struct ss_wire *wire;
	unsigned char *room;
	int error;

#ifdef SS_TEST_HOOKS
	(void)ss_sys4(SYS_pread64, fd, &ss_hooks, sizeof(ss_hooks), offsetof(struct ss_wire, hooks));
#endif
	if ((error = ss_launcher_bytes(fd, &wire)))
		return error;
	if (!ss_launcher_is_ours(wire, nonce))
		return EPROTO;
	room = ss_launcher_map(-1, ss_wire_room(wire), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	return room ? ss_wire_read(wire, room, plan) : ENOMEM;
}

/*
 * level-kept (T-28): the capabilities that our parent decided with, no others. What the
 * exec added is given up; what it took cannot be had back, and ESTALE says so.
 */
static int
ss_launcher_level(const struct ss_plan *plan)
{
	const struct ss_creds *was = &plan->want.expected;

	if (!SS_GUARDED(LEVEL))
		return 0;
	if (!ss_child_creds_agree(was))
		return 0;
	if (ss_child_capset(was->effective, was->permitted, was->inheritable))
		return ESTALE;
	return ss_child_creds_agree(was);
}

/*
 * A parent without rights may write the maps of a user namespace only for a process that is
 * dumpable (proc(5)). It and all that are like it could trace one another before.
 */
static int
ss_launcher_lets_map(const struct ss_plan *plan)
{
	if (!(plan->want.unshared & SS_CLONE_NEWUSER) || plan->want.expected.permitted)
		return 0;
	return ss_child_error(ss_sys2(SYS_prctl, PR_SET_DUMPABLE, 1));
}

static int
ss_launcher_run(int32_t plan_fd, const unsigned char *nonce, struct ss_plan *plan)
{
	int error;

	if ((error = ss_child_arm(plan->report)))
		return error;
	ss_child_stage(plan->report, SS_STAGE_WIRE);
	if ((error = ss_launcher_read(plan_fd, nonce, plan)))
		return error;
	SS_STEP(WIRE, ss_launcher_lets_map(plan));
	SS_STEP(LEVEL, ss_launcher_level(plan));
	return ss_child_become(plan);
}

/*
 * What the kernel lays down for a program: argc, the arguments, the environment, and pairs
 * (System V ABI). A launcher that somebody made set-id would do for everybody what a plan
 * says: getauxval(3), AT_SECURE.
 */
static int
ss_launcher_is_secure(const uintptr_t *start)
{
	const uintptr_t *at = start + 1 + start[0] + 1; /* behind the arguments */

	while (*at++) /* and the environment */
		;
	for (; at[0]; at += 2)
		if (at[0] == AT_SECURE)
			return at[1] != 0;
	return 1;
}

/* A parent whose real and effective ids differ makes every exec a secure one: then the file tells. */
static int
ss_launcher_is_set_id(const uintptr_t *start)
{
	struct stat st;

	if (!ss_launcher_is_secure(start))
		return 0;
	return ss_sys4(SYS_newfstatat, AT_FDCWD, "/proc/self/exe", &st, 0) < 0 || (st.st_mode & (S_ISUID | S_ISGID));
}

static __attribute__((noreturn, used)) void
ss_launcher_main(const uintptr_t *start)
{
	char *const *argv = (char *const *)(const void *)(start + 1);
	unsigned char nonce[SS_NONCE_BYTES];
	static struct ss_plan plan;
	int32_t plan_fd, report_fd;

	(void)ss_sys2(SYS_prctl, PR_SET_DUMPABLE, 0); /* good arguments */
	if (ss_launcher_is_set_id(start) || start[0] != 4 || !ss_child_digits(argv[1], &plan_fd) ||
	    !ss_child_digits(argv[2], &report_fd) || !ss_launcher_hex(argv[3], nonce))
		ss_child_exit(); /* not started by us: there is nobody to tell */
	if (!(plan.report = ss_launcher_page(report_fd)))
		ss_child_exit();
	plan.report->error = ss_launcher_run(plan_fd, nonce, &plan);
	ss_child_exit();
	__builtin_unreachable();
}

#if defined(__x86_64__)
__asm__(".globl _start\n"
	".type _start, @function\n"
	"_start:\n\t"
	"endbr64\n\t"
	"xorl %ebp, %ebp\n\t"
	"movq %rsp, %rdi\n\t"
	"andq $-16, %rsp\n\t"
	"callq ss_launcher_main\n\t"
	"ud2\n");
#else
__asm__(".globl _start\n"
	".type _start, %function\n"
	"_start:\n\t"
	"bti c\n\t"
	"mov x29, xzr\n\t"
	"mov x0, sp\n\t"
	"bl ss_launcher_main\n\t"
	"brk #1\n");
#endif
