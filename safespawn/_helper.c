/*
 * The helper: a small process that starts programs for its parent, the daemon, which it
 * shares no memory with. What it makes are the daemon's own children (CLONE_PARENT).
 *
 *     helper SOCKET POLICY PARENT
 *
 * SOCKET is the descriptor of a SOCK_SEQPACKET pair, POLICY that of a sealed memfd
 * (_helper.h), PARENT a pidfd of the daemon. Its words are in _helper.h.
 *
 *  1. It does nothing with a plan itself. For each request it makes a child; the child reads
 *     the plan, which may be anything, asks every policy, and takes the steps of every child.
 *     What is wrong with the plan ends that child. [T-29 plan-sealed, T-37 helper-obeys]
 *  2. A request must come from the daemon, by the kernel's word (SCM_CREDENTIALS, unix(7)), and
 *     be whole. Whatever came with it is closed before the next. [T-38 helper-asked]
 *  3. Policies can only be added, and all of them must allow. Children that were parked
 *     under fewer are ended first. [T-37 helper-obeys]
 *  4. It ends with the daemon, at the end of the socket, and when the daemon that asks has not the
 *     ids and capabilities any more with which it started the helper, unless the policy says that it
 *     stays. [T-39 helper-retires]
 *  5. A child runs nothing before it has claimed its report. The daemon that has lost its helper
 *     takes the claim away, and then knows that nothing will run. [T-40 claim-first]
 *  6. A child that is parked has its socket and the daemon's pidfd, and ends with either. What signals came
 *     before its plan were not meant for its program. [T-41 pool-parked]
 *  7. Nobody may trace it: not dumpable, nor are its children until they exec.
 *
 * All signals are blocked from its birth on. There is no libc, and no memory is allocated.
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>

#include "_helper.h"

#define SS_PROGRAM_MAIN ss_helper_main
#include "_freestanding.c"

#include "_child.c"

#include "_wire.c"

#include "_sealed_plan.c"

#include "_allowed.c"

#include "_message.c"

#include "_asked.c"

#define SS_CLONE_PARENT 0x8000ULL

/* Descriptors of a child that is parked: nothing else is open there. */
enum { SS_PARKED_SOCKET = 3, SS_PARKED_PARENT = 4, SS_PARKED_ABOVE = 10 };

/* A child that waits for its plan. */
struct ss_parked {
	int32_t pid, pidfd, socket;
};

struct ss_helping {
	int32_t socket, parent_fd, parent_pid;
	struct ss_lists policies[SS_POLICIES_MAX];
	uint32_t npolicies;
	struct ss_parked parked[SS_POOL_MAX];
	uint32_t nparked;
};

static struct ss_helping ss_helping;

/* ----------------------------------------------------------------- messages */

static int
ss_helper_tell(uint32_t op, const struct ss_message *m, int error, int32_t pid, int32_t pidfd)
{
	struct ss_told told;
	int failed;

	memset(&told, 0, sizeof(told));
	told.magic = SS_HELPER_MAGIC;
	told.op = op;
	told.id = m ? m->ask.id : 0;
	told.error = error;
	told.pid = pid;
	told.idle = ss_helping.nparked;
	failed = ss_message_send(ss_helping.socket, &told, sizeof(told), &pidfd, pidfd >= 0);
	if (!failed || pidfd < 0)
		return failed;
	/* A descriptor may be too much (ETOOMANYREFS, unix(7)). The daemon opens one itself, as where it has no room for ours. */
	told.error = EMFILE;
	return ss_message_send(ss_helping.socket, &told, sizeof(told), NULL, 0);
}

/* ------------------------------------------------------------- in the child */

/*
 * We have not what the daemon has open; and a child that is born in a PID namespace could not claim its plan by the
 * number that the daemon knows it by.
 */
static int
ss_helper_can(const struct ss_request *want)
{
	return (want->flags & SS_KEEP_FDS) || want->born_in ? EPROTO : 0;
}

static int
ss_helper_take(const struct ss_message *m, struct ss_plan *plan)
{
	int error;

	if ((error = ss_plan_read(m->fds[SS_AT_PLAN], m->ask.nonce, plan)) || (error = ss_helper_places(m, plan)))
		return error;
	return ss_helper_can(&plan->want);
}

/* helper-obeys (T-37): every policy must allow every part of the plan. */
static int
ss_helper_allows(const struct ss_plan *plan)
{
	uint32_t i;
	int error;

	for (i = 0; i < ss_helping.npolicies; i++) {
		const struct ss_lists *l = &ss_helping.policies[i];

		if (!SS_GUARDED(HELPER_OBEYS))
			break;
		SS_STEP(ALLOWED_OPTIONS, ss_allowed_options(l, plan));
		SS_STEP(ALLOWED_USER, ss_allowed_user(l, plan));
		SS_STEP(ALLOWED_VARIABLES, ss_allowed_variables(l, plan));
		SS_STEP(ALLOWED_PROGRAM, ss_allowed_program(l, plan));
	}
	return 0;
}

static int
ss_helper_become(const struct ss_message *m, struct ss_plan *plan)
{
	int error;

	if ((error = ss_child_arm(plan->report)))
		return error;
	SS_STEP(WIRE, ss_helper_take(m, plan));
	if ((error = ss_helper_allows(plan)) || (error = ss_plan_lets_map(plan)))
		return error;
	/* Descriptors are placed below the daemon's limit, which may not have been ours. */
	SS_STEP(RLIMITS, ss_child_limit(plan, plan->want.ninherited));
	return ss_child_become(plan);
}

/* claim-first (T-40): from here on the daemon knows our pid, or nothing runs. */
static int
ss_helper_claims(struct ss_report *report)
{
	int32_t open = SS_CLAIM_OPEN;

	return __atomic_compare_exchange_n(&report->claim, &open, (int32_t)ss_sys0(SYS_getpid), 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST) ||
	       !SS_GUARDED(CLAIM_FIRST);
}

static __attribute__((noreturn)) void
ss_helper_child(const struct ss_message *m)
{
	static struct ss_plan plan;

	if (m->nfds > SS_AT_REPORT && (plan.report = ss_report_mapped(m->fds[SS_AT_REPORT])) &&
	    ss_helper_claims(plan.report))
		plan.report->error = ss_helper_become(m, &plan);
	ss_child_exit();
	__builtin_unreachable();
}

/* -------------------------------------------------------------------- birth */

/* A child of our parent, with memory of its own: its pid, 0 in the child, or a negative errno. */
static long
ss_helper_fork(int32_t *ret_pidfd)
{
	return ss_sys5(SYS_clone, SS_CLONE_PARENT | SS_CLONE_PIDFD, 0, ret_pidfd, 0, 0);
}

/* One child for one plan. */
static void
ss_helper_bear(struct ss_message *m)
{
	int32_t pidfd = -1;
	const long pid = ss_helper_fork(&pidfd);

	if (!pid)
		ss_helper_child(m);
	(void)ss_helper_tell(pid < 0 ? SS_TOLD_FAILED : SS_TOLD_BORN, m, pid < 0 ? (int)-pid : 0, pid < 0 ? 0 : (int32_t)pid,
			     pid < 0 ? -1 : pidfd);
	if (pid > 0)
		(void)ss_sys1(SYS_close, pidfd); /* the daemon has its own */
}

/* --------------------------------------------------------------------- pool */

/* pool-parked (T-41): only its socket and the daemon. A copy of ours would keep others from seeing our end. */
static int
ss_parked_settle(int32_t socket)
{
	const long mine = ss_sys3(SYS_fcntl, socket, F_DUPFD_CLOEXEC, SS_PARKED_ABOVE);
	const long parent = ss_sys3(SYS_fcntl, ss_helping.parent_fd, F_DUPFD_CLOEXEC, SS_PARKED_ABOVE);

	if (mine < 0 || parent < 0)
		return EMFILE;
	if (ss_sys3(SYS_dup3, mine, SS_PARKED_SOCKET, O_CLOEXEC) < 0 ||
	    ss_sys3(SYS_dup3, parent, SS_PARKED_PARENT, O_CLOEXEC) < 0)
		return EMFILE;
	if (!SS_GUARDED(POOL_PARKED))
		return 0;
	return ss_child_error(ss_sys3(SYS_close_range, SS_PARKED_PARENT + 1, UINT32_MAX, 0));
}

/*
 * pool-parked (T-41): all signals are blocked while it waits, so those of the daemon's group pend. Ignoring a
 * signal throws a pending one away (POSIX, 2.4.3); what comes after this is for the program.
 */
static int
ss_parked_forget(void)
{
	uint64_t pending = 0;
	int signal, error = ss_child_error(ss_sys2(SYS_rt_sigpending, &pending, 8));

	for (signal = 1; signal <= SS_LAST_SIGNAL && !error; signal++)
		if ((pending >> (signal - 1) & 1) && SS_GUARDED(POOL_PARKED) && !(error = ss_child_dispose(signal, 1)))
			error = ss_child_default(signal);
	return error;
}

static __attribute__((noreturn)) void
ss_parked_child(int32_t socket)
{
	static struct ss_message m;
	struct pollfd polls[] = {{SS_PARKED_SOCKET, POLLIN, 0}, {SS_PARKED_PARENT, POLLIN, 0}};

	if (ss_parked_settle(socket))
		ss_child_exit();
	(void)ss_sys5(SYS_ppoll, polls, 2, NULL, NULL, 8); /* no signal can come */
	if (polls[1].revents || ss_message_take(SS_PARKED_SOCKET, &m) != 1 || ss_parked_forget())
		ss_child_exit();
	ss_helper_child(&m);
}

/* One more, if the kernel has room for it: 0, or an errno. */
static int
ss_helper_park(void)
{
	struct ss_parked *place = &ss_helping.parked[ss_helping.nparked];
	int32_t pair[2], pidfd = -1;
	long pid = ss_sys4(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);

	if (pid < 0)
		return ss_child_error(pid);
	pid = ss_helper_fork(&pidfd);
	if (!pid)
		ss_parked_child(pair[1]);
	(void)ss_sys1(SYS_close, pair[1]);
	if (pid > 0) {
		place->pid = (int32_t)pid;
		place->pidfd = pidfd;
		place->socket = pair[0];
		ss_helping.nparked++;
		/* Who does not know of it cannot reap it. */
		if (!ss_helper_tell(SS_TOLD_PARKED, NULL, 0, place->pid, pidfd))
			return 0;
		ss_helping.nparked--;
		(void)ss_sys4(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
		(void)ss_sys1(SYS_close, pidfd);
	}
	(void)ss_sys1(SYS_close, pair[0]);
	return pid < 0 ? (int)-pid : EAGAIN;
}

/* The one that waits longest; whoever was ended meanwhile takes no plan. */
static void
ss_parked_take(struct ss_parked *ret)
{
	uint32_t i;

	*ret = ss_helping.parked[0];
	ss_helping.nparked--;
	for (i = 0; i < ss_helping.nparked; i++)
		ss_helping.parked[i] = ss_helping.parked[i + 1];
}

static void
ss_parked_end(const struct ss_parked *parked)
{
	(void)ss_sys4(SYS_pidfd_send_signal, parked->pidfd, SIGKILL, NULL, 0); /* or it has ended */
	(void)ss_sys1(SYS_close, parked->socket);
	(void)ss_sys1(SYS_close, parked->pidfd);
}

static void
ss_helper_clear_pool(void)
{
	struct ss_parked parked;

	while (ss_helping.nparked) {
		ss_parked_take(&parked);
		ss_parked_end(&parked);
	}
}

/* Hands the plan to a child that is parked: whether one took it. */
static int
ss_helper_give(struct ss_message *m)
{
	struct ss_parked parked;
	int error;

	while (ss_helping.nparked) {
		ss_parked_take(&parked);
		error = ss_message_send(parked.socket, &m->ask, sizeof(m->ask), m->fds, m->nfds);
		if (error) {
			ss_parked_end(&parked);
			continue;
		}
		(void)ss_helper_tell(SS_TOLD_GIVEN, m, 0, parked.pid, -1);
		(void)ss_sys1(SYS_close, parked.socket);
		(void)ss_sys1(SYS_close, parked.pidfd);
		return 1;
	}
	return 0;
}

/* ----------------------------------------------------------------- requests */

/* One more policy that has to allow everything: 0 or an errno. */
static int
ss_helper_obey(int32_t fd)
{
	const long seals = ss_sys3(SYS_fcntl, fd, F_GET_SEALS, 0);
	const void *bytes;
	struct stat st;
	int error;

	if (ss_helping.npolicies == SS_POLICIES_MAX)
		return E2BIG;
	if (seals < 0 || (seals & SS_SEALS) != SS_SEALS)
		return EPROTO;
	if ((error = ss_child_error(ss_sys4(SYS_newfstatat, fd, "", &st, AT_EMPTY_PATH))))
		return error;
	if (st.st_size <= 0 || (uint64_t)st.st_size > SS_POLICY_BYTES_MAX)
		return EPROTO;
	if (!(bytes = ss_mapped(fd, (size_t)st.st_size, PROT_READ, MAP_PRIVATE)))
		return ENOMEM;
	if ((error = ss_policy_read(bytes, (size_t)st.st_size, &ss_helping.policies[ss_helping.npolicies]))) {
		(void)ss_sys2(SYS_munmap, bytes, st.st_size); /* our own mapping */
		return error;
	}
	ss_helping.npolicies++;
	return 0;
}

static const struct ss_policy *
ss_helper_policy(void)
{
	return ss_helping.policies[0].policy;
}

/* helper-asked (T-38): a fork of the daemon has the socket too, and so has whoever took it from either. */
static int
ss_helper_is_asked(const struct ss_message *m)
{
	return m->pid == ss_helping.parent_pid || !SS_GUARDED(HELPER_ASKED);
}

/* Of the daemon's main thread: other threads differ only for a moment, or by themselves. */
static int
ss_helper_parent_keeps(uint64_t permitted)
{
	const struct {
		uint32_t version;
		int32_t pid;
	} header = {SS_CAPS_VERSION, ss_helping.parent_pid};
	struct {
		uint32_t effective, permitted, inheritable;
	} caps[2];

	if (ss_sys2(SYS_capget, &header, caps) < 0)
		return 0;
	return !(permitted & ~((uint64_t)caps[1].permitted << 32 | caps[0].permitted));
}

/*
 * helper-retires (T-39): the daemon has the rights still that it started us with. It tells us when it
 * drops them (_ask.c); this is for a drop that nobody saw.
 */
static int
ss_helper_may_stay(const struct ss_message *m)
{
	const struct ss_policy *policy = ss_helper_policy();

	if ((policy->flags & SS_KEEPS) || !SS_GUARDED(HELPER_RETIRES))
		return 1;
	return m->uid == policy->expected.ruid && m->gid == policy->expected.rgid &&
	       ss_helper_parent_keeps(policy->expected.permitted);
}

static void
ss_helper_start(struct ss_message *m)
{
	if (m->nfds <= SS_AT_REPORT) {
		(void)ss_helper_tell(SS_TOLD_FAILED, m, EPROTO, 0, -1);
		return;
	}
	if (!m->ask.parked || !ss_helper_give(m))
		ss_helper_bear(m);
}

static void
ss_helper_shrink(struct ss_message *m)
{
	const int error = m->nfds == 1 ? ss_helper_obey(m->fds[0]) : EPROTO;

	if (!error)
		ss_helper_clear_pool();
	(void)ss_helper_tell(error ? SS_TOLD_FAILED : SS_TOLD_SHRUNK, m, error, 0, -1);
}

/* Does what one message asks for: whether we stay. */
static int
ss_helper_serve(struct ss_message *m)
{
	if (!ss_helper_is_asked(m))
		return 1;
	if (!ss_helper_may_stay(m)) {
		(void)ss_helper_tell(SS_TOLD_RETIRED, m, 0, 0, -1);
		return 0;
	}
	if (m->ask.op == SS_ASK_START)
		ss_helper_start(m);
	else if (m->ask.op == SS_ASK_SHRINK)
		ss_helper_shrink(m);
	else
		(void)ss_helper_tell(SS_TOLD_FAILED, m, EPROTO, 0, -1);
	return 1;
}

/* One that is not whole: with a limit of open files below the daemon's we do not get all that it sends. */
static void
ss_helper_refuse(const struct ss_message *m)
{
	if (m->ask.magic == SS_HELPER_MAGIC && ss_helper_is_asked(m))
		(void)ss_helper_tell(SS_TOLD_FAILED, m, m->ask.nfds > m->nfds ? EMFILE : EPROTO, 0, -1);
}

/* ------------------------------------------------------------------ the loop */

/* Whether something is to be read; with a pool to fill it does not wait. -1: it is over. */
static int
ss_helper_look(int fills)
{
	struct pollfd polls[] = {{ss_helping.socket, POLLIN, 0}, {ss_helping.parent_fd, POLLIN, 0}};
	const struct timespec now = {0, 0};

	/* No signal can come. Refused, it has said nothing: better none than one that parks what nobody wants. */
	if (ss_sys5(SYS_ppoll, polls, 2, fills ? &now : NULL, NULL, 8) < 0 || polls[1].revents)
		return -1;
	return polls[0].revents != 0;
}

/* Before Linux 5.9 a parked child could not close what it must not have: then none is parked. */
static int
ss_helper_can_park(void)
{
	return ss_sys3(SYS_close_range, UINT32_MAX, UINT32_MAX, 0) == 0; /* nobody has these */
}

static void
ss_helper_loop(void)
{
	static struct ss_message m;
	const uint32_t pool = ss_helper_can_park() ? ss_helper_policy()->pool : 0;
	int answer, looks, fills = pool > 0;

	while ((looks = ss_helper_look(fills && ss_helping.nparked < pool)) >= 0) {
		if (!looks) {
			fills = !ss_helper_park(); /* refused: again after the next request */
			continue;
		}
		answer = ss_message_take(ss_helping.socket, &m);
		if (answer == 1 && !ss_helper_serve(&m))
			return;
		if (answer == -EPROTO)
			ss_helper_refuse(&m);
		ss_message_close(&m);
		if (!answer || (answer < 0 && answer != -EPROTO && answer != -EAGAIN))
			return;
		fills = pool > 0;
	}
}

/*
 * level-kept (T-28): an exec as root may give back what the daemon has lost. We have what it had, and so
 * have our children.
 */
static int
ss_helper_level(void)
{
	return ss_level_keep(&ss_helper_policy()->expected);
}

static int
ss_helper_begin(int32_t policy_fd)
{
	const int on = 1;
	int error;

	ss_helping.parent_pid = (int32_t)ss_sys0(SYS_getppid);
	if (ss_helping.parent_pid <= 0) /* of another PID namespace: it cannot get children from us (clone(2)) */
		return ESRCH;
	if ((error = ss_helper_obey(policy_fd)))
		return error;
#ifdef SS_TEST_HOOKS
	ss_hooks = ss_helper_policy()->hooks;
#endif
	if ((error = ss_helper_level()))
		return error;
	(void)ss_sys1(SYS_close, policy_fd);
	/* From now on the kernel says who sends: what came before would say nobody. */
	return ss_child_error(ss_sys5(SYS_setsockopt, ss_helping.socket, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
}

static __attribute__((noreturn, used)) void
ss_helper_main(const uintptr_t *start)
{
	char *const *argv = (char *const *)(const void *)(start + 1);
	int32_t policy_fd;
	int error = ss_child_error(ss_sys2(SYS_prctl, PR_SET_DUMPABLE, 0));

	if (ss_start_is_set_id(start) || start[0] != 4 || !ss_child_digits(argv[1], &ss_helping.socket) ||
	    !ss_child_digits(argv[2], &policy_fd) || !ss_child_digits(argv[3], &ss_helping.parent_fd))
		ss_child_exit(); /* not started by us: there is nobody to tell */
	error = error ? error : ss_helper_begin(policy_fd);
	(void)ss_helper_tell(error ? SS_TOLD_FAILED : SS_TOLD_READY, NULL, error, 0, -1);
	if (!error)
		ss_helper_loop();
	ss_helper_clear_pool();
	ss_child_exit();
	__builtin_unreachable();
}
