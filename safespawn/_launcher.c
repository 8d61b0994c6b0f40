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

#define SS_PROGRAM_MAIN ss_launcher_main
#include "_freestanding.c"

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

#include "_sealed_plan.c"

/*
 * level-kept (T-28): the capabilities that our parent decided with, no others. What the
 * exec added is given up; what it took cannot be had back, and ESTALE says so.
 */
static int
ss_launcher_level(const struct ss_plan *plan)
{
	return SS_GUARDED(LEVEL) ? ss_level_keep(&plan->want.expected) : 0;
}

static int
ss_launcher_run(int32_t plan_fd, const unsigned char *nonce, struct ss_plan *plan)
{
	int error;

	if ((error = ss_child_arm(plan->report)))
		return error;
	ss_child_stage(plan->report, SS_STAGE_WIRE);
	if ((error = ss_plan_read(plan_fd, nonce, plan)))
		return error;
	SS_STEP(WIRE, ss_plan_lets_map(plan));
	SS_STEP(LEVEL, ss_launcher_level(plan));
	return ss_child_become(plan);
}

static __attribute__((noreturn, used)) void
ss_launcher_main(const uintptr_t *start)
{
	char *const *argv = (char *const *)(const void *)(start + 1);
	unsigned char nonce[SS_NONCE_BYTES];
	static struct ss_plan plan;
	int32_t plan_fd, report_fd;
	const int error = ss_child_error(ss_sys2(SYS_prctl, PR_SET_DUMPABLE, 0));

	if (ss_start_is_set_id(start) || start[0] != 4 || !ss_child_digits(argv[1], &plan_fd) ||
	    !ss_child_digits(argv[2], &report_fd) || !ss_launcher_hex(argv[3], nonce))
		ss_child_exit(); /* not started by us: there is nobody to tell */
	if (!(plan.report = ss_report_mapped(report_fd)))
		ss_child_exit();
	plan.report->error = error ? error : ss_launcher_run(plan_fd, nonce, &plan);
	ss_child_exit();
	__builtin_unreachable();
}
