/*
 * A child by way of the launcher (_launcher.c), seen from the parent. Two windows follow
 * each other: in the first, under the proof of the decision, a child on our memory execs
 * the launcher and has changed nothing; in the second the launcher, in memory of its own,
 * becomes what the plan says and execs the program. Nobody sleeps in vfork then: its new
 * user may stop the launcher, and the deadline ends that (T-03).
 * Part of _native.c, which includes it.
 */
#include <sys/random.h>

#include "_wire.h"

#define SS_FD_FIRST 3 /* 0 to 2 are always targets */

#ifndef SS_LAUNCHER_SHA256
#define SS_LAUNCHER_SHA256 "" /* nothing has this digest: a build without a launcher */
#endif

/* Which file is the launcher that was built with this core: SHA-256 in hex. */
SS_API const char *
ss_launcher_digest(void)
{
	return SS_LAUNCHER_SHA256;
}

/* What goes along beside the targets: the descriptors of ss_launch_own. */
#define SS_LAUNCH_OWN 11u

/* One launch, from its first descriptor to its last. */
struct ss_launch {
	struct ss_request want; /* for the launcher: by the numbers that things have there */
	struct ss_request first; /* for the child that execs it */
	struct ss_fd *fds;
	int32_t *places; /* of the sources in a message to the helper; the launcher gets none */
	struct ss_report *told;
	int32_t plan_fd, told_fd;
	int32_t plan_at, told_at; /* their numbers there, or their places in the message */
	unsigned char nonce[SS_NONCE_BYTES];
	char words[64 + 2 * SS_NONCE_BYTES]; /* its arguments, end to end */
#ifdef SS_TEST_HOOKS
	struct ss_hooks hooks; /* the launcher's */
#endif
};

static int
ss_memfd(const char *name)
{
	const unsigned flags = SS_MFD_CLOEXEC | SS_MFD_ALLOW_SEALING;
	long fd = ss_sys2(SYS_memfd_create, name, flags | SS_MFD_NOEXEC_SEAL);

	if (fd == -EINVAL) /* before Linux 6.3 */
		fd = ss_sys2(SYS_memfd_create, name, flags);
	return (int)fd;
}

/* Beyond the limit the kernel would send us SIGXFSZ, which kills who does not ignore it (setrlimit(2)). */
static int
ss_launch_may_write(size_t bytes)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_FSIZE, &limit))
		return -errno;
	return bytes > limit.rlim_cur ? -EFBIG : 0;
}

/* The page in which the launcher tells how far it got; it cannot be cut off under us. */
static int
ss_launch_page(struct ss_launch *l)
{
	const size_t bytes = ss_pages(sizeof(struct ss_report));
	void *page;
	int error;

	if ((error = ss_launch_may_write(bytes)))
		return error;
	if ((l->told_fd = ss_memfd("safespawn-report")) < 0)
		return l->told_fd;
	if (ftruncate(l->told_fd, (off_t)bytes) ||
	    fcntl(l->told_fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW))
		return -errno;
	page = mmap(NULL, sizeof(struct ss_report), PROT_READ | PROT_WRITE, MAP_SHARED, l->told_fd, 0);
	if (page == MAP_FAILED)
		return -errno;
	l->told = page;
	l->told->stage = SS_STAGE_LAUNCH;
	l->told->handlers_cleared = 1; /* by the exec */
	return 0;
}

/* The lowest number from *at on that is no target. */
static int32_t
ss_launch_number(const struct ss_request *r, uint32_t *next, int32_t *at)
{
	while (*next < r->nfds && r->fds[*next].target <= *at) {
		*at += r->fds[*next].target == *at;
		(*next)++;
	}
	return (*at)++;
}

/*
 * The descriptors that only the launcher has get numbers that are no targets, and become
 * targets of the first map; in the launcher they are what they were, by these numbers.
 */
static int
ss_launch_map(struct ss_launch *l, const struct ss_request *r, int32_t *const own[], unsigned count)
{
	uint32_t next = 0, from = 0, n = 0;
	int32_t at = SS_FD_FIRST;
	unsigned i;

	l->fds = malloc((r->nfds + (size_t)count) * sizeof(*l->fds));
	if (!l->fds)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		if (*own[i] < 0)
			continue;
		const int32_t number = ss_launch_number(r, &next, &at);

		while (from < r->nfds && r->fds[from].target < number)
			l->fds[n++] = r->fds[from++];
		l->fds[n].source = *own[i];
		l->fds[n++].target = number;
		*own[i] = number;
	}
	while (from < r->nfds)
		l->fds[n++] = r->fds[from++];
	l->first.fds = l->fds;
	l->first.nfds = n;
	return 0;
}

/* Where each of them is noted; -1 for what is not there. Returns how many. */
static unsigned
ss_launch_own(struct ss_launch *l, const struct ss_request *r, int32_t *own[])
{
	struct ss_request *w = &l->want;
	unsigned n = 0;

	l->plan_at = l->plan_fd;
	l->told_at = l->told_fd;
	own[n++] = &l->plan_at;
	own[n++] = &l->told_at;
	if (!(r->flags & SS_EXEC_TARGET)) /* one that the program keeps is a target already, and has its number */
		own[n++] = &w->exec_fd;
	own[n++] = &w->cwd_fd;
	own[n++] = &w->terminal_fd;
	own[n++] = &w->root_fd;
	own[n++] = &w->cgroup_fd;
	own[n++] = &w->landlock_fd;
	own[n++] = &w->parent_fd;
#ifdef SS_TEST_HOOKS
	own[n++] = &l->hooks.ready_fd;
	own[n++] = &l->hooks.go_fd;
#endif
	return n;
}

static int
ss_launch_descriptors(struct ss_launch *l, const struct ss_request *r)
{
	int32_t *own[SS_LAUNCH_OWN];

	return ss_launch_map(l, r, own, ss_launch_own(l, r, own));
}

/* The place and the length of a part, counted as it is written. */
static void
ss_wire_place(struct ss_wire *wire, int index, uint64_t bytes)
{
	wire->parts[index].at = ss_room(wire->total);
	wire->parts[index].bytes = bytes;
	wire->total = wire->parts[index].at + bytes;
}

static void
ss_wire_lay_out(struct ss_wire *wire, const struct ss_request *r, const int32_t *places)
{
	wire->total = sizeof(*wire);
	ss_wire_place(wire, SS_PART_PATH, strlen(r->path) + 1);
	ss_wire_place(wire, SS_PART_ARGV, r->argv_bytes);
	ss_wire_place(wire, SS_PART_ENV, r->env_bytes);
	ss_wire_place(wire, SS_PART_TARGETS, r->nfds * sizeof(int32_t));
	ss_wire_place(wire, SS_PART_GROUPS, r->ngroups * sizeof(*r->groups));
	ss_wire_place(wire, SS_PART_RLIMITS, r->nrlimits * sizeof(*r->rlimits));
	ss_wire_place(wire, SS_PART_CPUS, r->cpus_bytes);
	ss_wire_place(wire, SS_PART_FILTER, r->nfilter * (uint64_t)SS_FILTER_INSTRUCTION);
	ss_wire_place(wire, SS_PART_CWD, r->cwd ? strlen(r->cwd) + 1 : 0);
	ss_wire_place(wire, SS_PART_PLACES, places ? r->nfds * sizeof(*places) : 0);
}

static void
ss_wire_fill(unsigned char *file, const struct ss_wire *wire, const struct ss_request *r, const int32_t *places)
{
	const void *from[SS_PARTS] = {r->path,	   r->argv, r->env, NULL, r->groups, r->rlimits,
				      r->cpus, r->filter, r->cwd, places};
	int32_t *targets = (int32_t *)(void *)(file + wire->parts[SS_PART_TARGETS].at);
	uint32_t i;

	memcpy(file, wire, sizeof(*wire));
	for (i = 0; i < SS_PARTS; i++)
		if (from[i] && wire->parts[i].bytes)
			memcpy(file + wire->parts[i].at, from[i], wire->parts[i].bytes);
	for (i = 0; i < r->nfds; i++)
		targets[i] = r->fds[i].target;
}

static int
ss_write_all(int fd, const unsigned char *from, size_t bytes)
{
	while (bytes) {
		const ssize_t done = write(fd, from, bytes);

		if (done < 0 && errno != EINTR)
			return -errno;
		if (done > 0) {
			from += done;
			bytes -= (size_t)done;
		}
	}
	return 0;
}

/* plan-sealed (T-29): nobody changes the plan any more, we neither. */
static int
ss_wire_seal(const struct ss_launch *l, const struct ss_wire *wire)
{
	unsigned char *file;
	int error;

	if ((error = ss_launch_may_write(wire->total)))
		return error;
	if (!(file = calloc(1, wire->total)))
		return -ENOMEM;
	ss_wire_fill(file, wire, &l->want, l->places);
	error = ss_write_all(l->plan_fd, file, wire->total);
	free(file);
	if (!error && SS_GUARDED(PLAN_SEALED) && fcntl(l->plan_fd, F_ADD_SEALS, SS_SEALS))
		error = -errno;
	return error;
}

static int
ss_launch_plan(struct ss_launch *l, uint64_t mask)
{
	struct ss_wire wire;

	memset(&wire, 0, sizeof(wire));
	wire.magic = SS_WIRE_MAGIC;
	wire.version = SS_WIRE_VERSION;
	wire.head_bytes = sizeof(wire);
	memcpy(wire.nonce, l->nonce, sizeof(wire.nonce));
	wire.want = l->want;
	/* Our addresses are no business of a file: what they lead to is in the parts. */
	wire.want.path = wire.want.argv = wire.want.env = wire.want.cwd = NULL;
	wire.want.map_users = wire.want.map_groups = NULL;
	wire.want.fds = NULL;
	wire.want.groups = NULL;
	wire.want.rlimits = NULL;
	wire.want.cpus = wire.want.filter = NULL;
	memset(&wire.want.launcher, 0, sizeof(wire.want.launcher));
	wire.mask = mask;
	wire.parent_pid = getpid();
	ss_wire_lay_out(&wire, &l->want, l->places);
#ifdef SS_TEST_HOOKS
	wire.hooks = l->hooks;
#endif
	return ss_wire_seal(l, &wire);
}

/* The child that execs the launcher: descriptors, and the proof under which it shares. */
static void
ss_launch_first(struct ss_launch *l, const struct ss_request *r)
{
	struct ss_request *first = &l->first;
	char *at = l->words;
	unsigned i;

	at += sprintf(at, "safespawn-launcher") + 1;
	at += sprintf(at, "%d", l->plan_at) + 1;
	at += sprintf(at, "%d", l->told_at) + 1;
	for (i = 0; i < SS_NONCE_BYTES; i++)
		at += sprintf(at, "%02x", l->nonce[i]);
	first->path = "";
	first->argv = l->words;
	first->argv_bytes = (uint64_t)(at + 1 - l->words);
	first->argc = 4;
	first->exec_fd = r->launcher_fd;
	first->launcher = r->launcher;
	first->cwd_fd = first->terminal_fd = first->root_fd = first->cgroup_fd = first->landlock_fd =
	    first->launcher_fd = first->parent_fd = -1;
	first->flags = r->flags & (SS_SHARE_MEMORY | SS_REQUIRE_ALONE | SS_REQUIRE_LOCK | SS_REQUIRE_SEAL |
				   SS_AMONG_OTHERS | SS_LAUNCH);
	first->born_in = r->born_in;
	first->deadline_ns = r->flags & SS_BOUND_LATER ? 0 : r->deadline_ns;
	first->expected = r->expected;
}

static void
ss_launch_clear(struct ss_launch *l)
{
	if (l->told)
		(void)munmap(l->told, sizeof(struct ss_report)); /* our own mapping */
	free(l->fds);
	free(l->places);
	ss_close(&l->plan_fd);
	ss_close(&l->told_fd);
}

/* The signals that the program is to have blocked: as given, or ours. Returns 0 or a negative errno. */
static int
ss_launch_mask(const struct ss_request *r, uint64_t *ret_mask)
{
	*ret_mask = r->sigmask;
	return r->flags & SS_SET_SIGMASK ? 0 : (int)ss_sys4(SYS_rt_sigprocmask, SIG_BLOCK, NULL, ret_mask, 8);
}

/*
 * An exec makes the ids for files those that are effective. Who gave them up did so for a
 * reason: setfsuid(2). Asked for an id that is none, it names the present one.
 */
static int
ss_launch_keeps_ids(void)
{
	return ss_sys1(SYS_setfsuid, -1) == ss_sys0(SYS_geteuid) &&
	       ss_sys1(SYS_setfsgid, -1) == ss_sys0(SYS_getegid);
}

static int
ss_launch_open(struct ss_launch *l)
{
	int error;

	if (getrandom(l->nonce, sizeof(l->nonce), 0) != (ssize_t)sizeof(l->nonce))
		return -EIO;
	if ((error = ss_launch_page(l)))
		return error;
	l->plan_fd = ss_memfd("safespawn-plan");
	return l->plan_fd < 0 ? l->plan_fd : 0;
}

static int
ss_launch_prepare(struct ss_launch *l, const struct ss_request *r)
{
	size_t plan_bytes, work_bytes;
	uint64_t mask;
	int error;

	/* Its own descriptors would take the place of some that are to be kept. */
	if (r->launcher_fd < 0 || !r->deadline_ns || (r->born_in & ~(uint32_t)SS_CLONE_NEWPID) ||
	    (r->flags & SS_KEEP_FDS))
		return -EINVAL;
	if (!ss_launch_keeps_ids())
		return -EXDEV;
	if ((error = ss_measure(r, &plan_bytes, &work_bytes)) || (error = ss_launch_open(l)))
		return error;
	l->want = *r;
#ifdef SS_TEST_HOOKS
	l->hooks = ss_hooks;
	if (!ss_hooks.park_stage)
		l->hooks.ready_fd = l->hooks.go_fd = -1;
#endif
	if ((error = ss_launch_descriptors(l, r)) || (error = ss_launch_mask(r, &mask)) ||
	    (error = ss_launch_plan(l, mask)))
		return error;
	ss_launch_first(l, r);
	return 0;
}

/* The window of a child that has memory of its own, and tells in the page that was made for it. */
static void
ss_launch_window(struct ss_window *w, struct ss_arena *page, const struct ss_request *r,
		 const struct ss_result *result)
{
	memset(w, 0, sizeof(*w));
	w->arena = page;
	w->request = r;
	w->flags = r->flags & SS_AMONG_OTHERS;
	w->deadline_ns = SS_GUARDED(WINDOW_BOUNDED) ? r->deadline_ns : 0;
	w->pid = result->pid;
	w->pidfd = result->pidfd;
}

/* From the exec of the launcher to that of the program, or to the end of the launcher. */
static void
ss_launch_await(struct ss_launch *l, const struct ss_request *r, struct ss_result *result)
{
	struct ss_arena page = {NULL, NULL, (unsigned char *)l->told, NULL, 0, 0, 0};
	const int64_t start = ss_now();
	struct ss_window w;

	ss_launch_window(&w, &page, r, result);
	w.launcher = 1;
	w.used_clone3 = (result->flags & SS_USED_CLONE3) != 0;
	ss_bound(&w);
	w.ns = result->window_ns + ss_now() - start;
	ss_conclude(&w, result);
}

/*
 * Past the point of no return an exec that fails ends in SIGSEGV (fs/exec.c), for instance
 * where the limit of the stack leaves no room; and a launcher that cannot say what is wrong
 * ends without a word. Nobody killed it then.
 */
static void
ss_launch_died(struct ss_result *result)
{
	if (result->outcome != SS_KILLED_BEFORE_EXEC || result->stage != SS_STAGE_LAUNCH)
		return;
	if (result->exit_code != CLD_EXITED && result->exit_status != SIGSEGV)
		return;
	result->outcome = SS_FAILED;
	result->error = ENOMEM;
}

/*
 * epoch-agrees (T-23): a launcher that was born before a change of credentials runs nothing
 * after it. It is told from before its birth on: between the two windows we may not be there
 * to do it, and it does not wait for us.
 */
static int
ss_launch_windows(struct ss_launch *l, struct ss_arena *arena, const struct ss_request *r,
		  struct ss_result *result)
{
	struct ss_lock *lock = ss_lock_ours();
	struct ss_slot *slot = lock ? ss_watch(lock, &l->told->moved, r->expected.epoch) : NULL;
	const int error = ss_spawn_in(arena, &l->first, result);

	/* The launcher has its own; ours would only be inherited by forks of other threads. */
	ss_close(&l->plan_fd);
	ss_close(&l->told_fd);
	if (!error && result->outcome == SS_EXEC)
		ss_launch_await(l, r, result);
	ss_launch_died(result);
	if (slot)
		(void)ss_slot_leave(slot);
	return error;
}

/* Both windows. As ss_spawn: 0 when a child was made, else what failed before there was one. */
static int
ss_launch(struct ss_arena *arena, const struct ss_request *r, struct ss_result *result)
{
	struct ss_launch l;
	int error, cancel_state;

	memset(&l, 0, sizeof(l));
	l.plan_fd = l.told_fd = -1;
	/* A cancelled thread would leave a child behind that nobody knows of. */
	(void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	if ((error = ss_launch_prepare(&l, r)))
		ss_not_started(result, SS_STAGE_PREPARE, error);
	else
		error = ss_launch_windows(&l, arena, r, result);
	ss_launch_clear(&l);
	(void)pthread_setcancelstate(cancel_state, &cancel_state);
	return error;
}
