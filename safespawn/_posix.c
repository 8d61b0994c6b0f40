/*
 * The strategy `posix_spawn`: the child is libc's own, under our proof and our lock. For
 * comparison, and for where only libc may clone. Part of _native.c, which includes it.
 *
 * That child runs libc's code on our memory, not ours. So what our children look at last
 * thing before execve, whose they are and whether the epoch has moved, is looked at here,
 * by the thread that is about to start it and with the lock held: a child is born with the
 * credentials of that thread, and nobody else can change those. What our children add is
 * missing: they see a change by raw system call in another thread, and say how far they got.
 * [T-05 creds-agree, T-23 epoch-agrees, T-21 changes-wait, T-02 alone-or-apart]
 *
 * libc calls a child that was killed before its execve a success; it is told apart as ours
 * are. The child has no pidfd from birth, and is anybody's to reap who waits for any child.
 * [T-09 pidfd-only, T-10 outcome-told]
 */

/* Of glibc 2.29 and musl 1.1.24, and of glibc 2.34: NULL where libc has none. */
extern int posix_spawn_file_actions_addfchdir_np(posix_spawn_file_actions_t *, int) __attribute__((weak));
extern int posix_spawn_file_actions_addclosefrom_np(posix_spawn_file_actions_t *, int) __attribute__((weak));

#define SS_POSIX_FLAGS                                                                              \
	(SS_SHARE_MEMORY | SS_REQUIRE_ALONE | SS_REQUIRE_LOCK | SS_REQUIRE_SEAL | SS_AMONG_OTHERS | \
	 SS_NEW_SESSION | SS_SET_GROUP | SS_KEEP_FDS | SS_SET_SIGMASK | SS_SET_SCHEDULER)

/* One call of posix_spawn. */
struct ss_posix {
	struct ss_plan *plan;
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	struct ss_fd *list; /* sources, each once and in order; where a copy of each lies */
	uint32_t listed;
	int32_t room; /* a descriptor that keeps a number free for the pidfd */
	int stage;
};

/* drop-apart (T-19), and what libc has no word for: _checks.py says which, nothing gets past here. */
static int
ss_posix_expresses(const struct ss_request *r)
{
	return (r->flags & SS_SHARE_MEMORY) && !(r->flags & ~(uint64_t)SS_POSIX_FLAGS) &&
	       !ss_request_changes(r) && !r->born_in && r->terminal_fd < 0 && r->parent_fd < 0 &&
	       !r->deadline_ns && !r->nrlimits && !r->cpus_bytes && !r->pdeathsig;
}

/* ------------------------------------------------------------------ descriptors */

static int
ss_posix_dup(struct ss_posix *p, int32_t from, int32_t to)
{
	return -posix_spawn_file_actions_adddup2(&p->actions, from, to);
}

static int
ss_posix_close(struct ss_posix *p, int32_t fd)
{
	return -posix_spawn_file_actions_addclose(&p->actions, fd);
}

static int
ss_posix_compare(const void *a, const void *b)
{
	const int32_t x = ((const struct ss_fd *)a)->source, y = ((const struct ss_fd *)b)->source;

	return (x > y) - (x < y);
}

/* Whether the map fills this number, and from another source than that one (-1: from any). */
static int
ss_posix_is_filled(const struct ss_request *r, int32_t target, int32_t but_by)
{
	uint32_t low = 0, high = r->nfds;

	while (low < high) {
		const uint32_t middle = low + (high - low) / 2;

		if (r->fds[middle].target == target)
			return r->fds[middle].source >= 0 && r->fds[middle].source != but_by;
		if (r->fds[middle].target < target)
			low = middle + 1;
		else
			high = middle;
	}
	return 0;
}

static void
ss_posix_list(struct ss_posix *p)
{
	const struct ss_request *r = &p->plan->want;
	uint32_t i, all = 0;

	for (i = 0; i < r->nfds; i++)
		if (r->fds[i].source >= 0)
			p->list[all++].source = r->fds[i].source;
	qsort(p->list, all, sizeof(*p->list), ss_posix_compare);
	for (i = 0; i < all; i++)
		if (!p->listed || p->list[p->listed - 1].source != p->list[i].source)
			p->list[p->listed++].source = p->list[i].source;
}

/*
 * The sources go to the lowest numbers: those that lie there stay, the others take what is
 * free between them, so that no copy falls on a source. A copy onto itself takes
 * close-on-exec away (glibc 2.29, musl 1.1.21).
 */
static int
ss_posix_pack(struct ss_posix *p)
{
	int32_t place = 0;
	uint32_t stay = 0, low = 0, i;
	int error;

	while (stay < p->listed && p->list[stay].source < (int32_t)p->listed)
		stay++;
	for (i = 0; i < p->listed; i++) {
		for (; i >= stay && low < stay && p->list[low].source == place; low++)
			place++;
		p->list[i].target = i < stay ? p->list[i].source : place++;
		if ((error = ss_posix_dup(p, p->list[i].source, p->list[i].target)))
			return error;
	}
	return 0;
}

/* What lies where something else belongs moves to a number that is nobody's. */
static int
ss_posix_lift(struct ss_posix *p)
{
	const struct ss_request *r = &p->plan->want;
	int32_t free = (int32_t)p->listed;
	uint32_t i;
	int error;

	for (i = 0; i < p->listed; i++) {
		struct ss_fd *one = &p->list[i];

		if (!ss_posix_is_filled(r, one->target, one->source))
			continue;
		while (ss_posix_is_filled(r, free, -1))
			free++;
		if ((error = ss_posix_dup(p, one->target, free)))
			return error;
		one->target = free++;
	}
	return 0;
}

static int
ss_posix_fill(struct ss_posix *p)
{
	const struct ss_request *r = &p->plan->want;
	uint32_t i;
	int error;

	for (i = 0; i < r->nfds; i++) {
		const struct ss_fd *from =
		    bsearch(&r->fds[i], p->list, p->listed, sizeof(*p->list), ss_posix_compare);

		if (from && from->target != r->fds[i].target &&
		    (error = ss_posix_dup(p, from->target, r->fds[i].target)))
			return error;
	}
	return 0;
}

/* The copies that were only for the way: among the lowest numbers, and those that were lifted. */
static int
ss_posix_clear(struct ss_posix *p)
{
	const int32_t listed = (int32_t)p->listed;
	int32_t fd;
	uint32_t i;
	int error;

	for (fd = 0; fd < listed; fd++)
		if (!ss_posix_is_filled(&p->plan->want, fd, -1) && (error = ss_posix_close(p, fd)))
			return error;
	for (i = 0; i < p->listed; i++)
		if (p->list[i].target >= listed && (error = ss_posix_close(p, p->list[i].target)))
			return error;
	return 0;
}

/*
 * fds-closed (T-08): libc closes from one number on, and targets may lie anywhere. So what is
 * wanted is packed below that number, all above is closed, and then each goes to its place.
 * Nothing is looked up before: what other threads open meanwhile is closed too.
 */
static int
ss_posix_only(struct ss_posix *p)
{
	int error;

	p->stage = SS_STAGE_CLOEXEC;
	if (!SS_HAS(posix_spawn_file_actions_addclosefrom_np, 34))
		return -ENOSYS;
	p->stage = SS_STAGE_FDS;
	ss_posix_list(p);
	if ((error = ss_posix_pack(p)))
		return error;
	error = posix_spawn_file_actions_addclosefrom_np(&p->actions, (int)p->listed);
	if (error || (error = -ss_posix_lift(p)) || (error = -ss_posix_fill(p)))
		return -error;
	return ss_posix_clear(p);
}

/*
 * With all others kept no number is free in the child: a source that is also a target is
 * copied here, close-on-exec, and the child takes it from there.
 */
static int
ss_posix_beside(struct ss_posix *p)
{
	const struct ss_request *r = &p->plan->want;
	uint32_t i;
	int error = 0;

	for (i = 0; i < r->nfds && !error; i++) {
		const struct ss_fd *one = &r->fds[i];
		int32_t from = one->source;

		if (from >= 0 && from != one->target && ss_child_is_target(p->plan, from)) {
			if ((from = (int32_t)ss_child_lift(p->plan, from)) < 0)
				return from;
			p->list[p->listed++].source = from;
		}
		error = from < 0 ? ss_posix_close(p, one->target) : ss_posix_dup(p, from, one->target);
	}
	return error;
}

/* libc would not say that it was this. */
static int
ss_posix_is_directory(int32_t fd)
{
	struct stat now;
	const int error = ss_child_error(ss_child_stat(fd, &now));

	return error ? error : S_ISDIR(now.st_mode) ? 0 : ENOTDIR;
}

/* The directory first: its descriptor may be in the way of the others. */
static int
ss_posix_actions(struct ss_posix *p)
{
	const struct ss_request *r = &p->plan->want;
	int error;

	p->stage = SS_STAGE_CWD;
	if (!SS_HAS(posix_spawn_file_actions_addfchdir_np, 29))
		return -ENOSYS; /* then a copy onto itself does not do what it should, either */
	if (r->cwd_fd >= 0 && (error = ss_posix_is_directory(r->cwd_fd)))
		return -error;
	if (r->cwd_fd >= 0 && (error = posix_spawn_file_actions_addfchdir_np(&p->actions, r->cwd_fd)))
		return -error;
	p->stage = SS_STAGE_FDS;
	return r->flags & SS_KEEP_FDS ? ss_posix_beside(p) : ss_posix_only(p);
}

/* ------------------------------------------------------------------- attributes */

/* libc keeps 32 and 33 (and musl 34) from its callers: bits of ours are copied as they are. */
static void
ss_posix_set(sigset_t *ret, uint64_t mask)
{
	(void)sigemptyset(ret);
	memcpy(ret, &mask, sizeof(mask));
}

/* signals-blocked (T-01): what libc ignores in its children, 32 and 33, is default in a program. */
static int
ss_posix_signals(struct ss_posix *p)
{
	sigset_t set;
	int error;

	ss_posix_set(&set, p->plan->want.sigdefault | 3ull << 31);
	if ((error = posix_spawnattr_setsigdefault(&p->attributes, &set)))
		return -error;
	ss_posix_set(&set, p->plan->mask);
	return -posix_spawnattr_setsigmask(&p->attributes, &set);
}

static int
ss_posix_attributes(struct ss_posix *p)
{
	const struct ss_request *r = &p->plan->want;
	const struct sched_param priority = {.sched_priority = r->priority};
	int flags = POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK;
	int error;

	if ((error = ss_posix_signals(p)))
		return error;
	if (r->flags & SS_NEW_SESSION)
		flags |= POSIX_SPAWN_SETSID;
	if (r->flags & SS_SET_GROUP) {
		flags |= POSIX_SPAWN_SETPGROUP;
		if ((error = posix_spawnattr_setpgroup(&p->attributes, r->group)))
			return -error;
	}
	if (r->flags & SS_SET_SCHEDULER) {
		flags |= POSIX_SPAWN_SETSCHEDULER;
		p->stage = SS_STAGE_SCHEDULER; /* glibc knows three of them; musl has none of this */
		if ((error = posix_spawnattr_setschedpolicy(&p->attributes, r->policy)) ||
		    (error = posix_spawnattr_setschedparam(&p->attributes, &priority)))
			return -error;
	}
	p->stage = SS_STAGE_POSIX;
	return -posix_spawnattr_setflags(&p->attributes, (short)flags);
}

/* ------------------------------------------------------------------- window */

/*
 * pidfd-only (T-09): the number may be another's, if somebody reaped the child already. Then
 * it is no child of ours; or, if the number came round to one, in this moment, that one.
 */
static int32_t
ss_posix_pidfd(int32_t pid)
{
	const long pidfd = ss_sys2(SYS_pidfd_open, pid, 0);
	siginfo_t info;

	if (pidfd < 0 || ss_sys5(SYS_waitid, SS_P_PIDFD, pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, NULL) == 0)
		return pidfd < 0 ? -1 : (int32_t)pidfd;
	(void)ss_sys1(SYS_close, pidfd); /* a pidfd: nothing to lose */
	return -1;
}

/* libc's own, not the wrapper of guard_foreign: our slots are not rewritten (_interpose.c). */
static int
ss_posix_call(struct ss_posix *p, pid_t *ret_pid)
{
	const struct ss_plan *plan = p->plan;

	return posix_spawn(ret_pid, plan->want.path, &p->actions, &p->attributes, plan->argv, plan->envp);
}

/* With the proof and the signals held. Returns 0 when there was a child, else the errno of stage. */
static int
ss_posix_held(struct ss_window *w, struct ss_posix *p)
{
	int64_t start;
	pid_t pid = 0;
	int error;

	p->stage = SS_STAGE_BIRTH;
	if ((error = ss_child_creds_agree(&p->plan->want.expected)))
		return -error;
	p->stage = SS_STAGE_EPOCH;
	if (ss_epoch_of(ss_lock_ours()) != w->epoch && SS_GUARDED(EPOCH_AGREES))
		return -ESTALE;
	p->stage = SS_STAGE_POSIX;
	if ((error = ss_posix_attributes(p)) || (error = ss_arena_protect(w->arena, 0)))
		return error;
	start = ss_now();
	if (!(error = SS_HOOK(SS_STAGE_POSIX)))
		error = ss_posix_call(p, &pid);
	w->ns = ss_now() - start;
	(void)SS_HOOK(SS_STAGE_EXEC); /* where others may reap the child: a test has them do it */
	ss_arena_release(w->arena);
	ss_close(&p->room);
	if (error)
		return -error;
	w->pid = pid;
	w->pidfd = ss_posix_pidfd(pid);
	return 0;
}

/* The proofs of ss_window_shielded. A changer that waits too long finds the child by our thread. */
static int
ss_posix_proven(struct ss_window *w, struct ss_posix *p)
{
	struct ss_slot *slot;
	uint32_t tasks;
	int error;

	if ((error = SS_HOOK(SS_STAGE_CLONE)))
		return -error;
	if ((w->flags & SS_REQUIRE_ALONE) && SS_GUARDED(ALONE_OR_APART) && ss_alone(&tasks) != 1)
		return -EBUSY;
	if ((w->flags & SS_REQUIRE_SEAL) && !ss_is_sealed())
		return -EBUSY;
	if (!(w->flags & SS_REQUIRE_LOCK))
		return ss_posix_held(w, p);
	if ((error = ss_spawner_enter(&slot, NULL, NULL, NULL, w->epoch)))
		return error;
	error = ss_posix_held(w, p);
	w->preempted = ss_slot_leave(slot);
	return error;
}

/* As ss_window_run. */
static int
ss_posix_run(struct ss_window *w, struct ss_posix *p)
{
	struct ss_shield shield;
	int error;

	p->stage = SS_STAGE_CLONE;
	if ((error = ss_shield_raise(&shield)))
		return error;
	if (!(w->flags & SS_SET_SIGMASK))
		p->plan->mask = shield.mask;
	error = ss_posix_proven(w, p);
	ss_shield_lower(&shield);
	return error;
}

/* ------------------------------------------------------------------- outcome */

/* libc says an errno, and not of what. Our own steps before it have stages as those of other children. */
static void
ss_posix_not_started(const struct ss_window *w, const struct ss_posix *p, int error, struct ss_result *result)
{
	if (p->stage == SS_STAGE_CLONE)
		ss_not_cloned(result, w->flags, error);
	else
		ss_not_started(result, p->stage, error);
	if (error == -ESTALE && p->stage != SS_STAGE_POSIX)
		result->outcome = SS_RACE_DETECTED;
}

static void
ss_posix_conclude(const struct ss_window *w, struct ss_result *result)
{
	result->pid = w->pid;
	result->pidfd = w->pidfd;
	result->window_ns = w->ns;
	result->stage = SS_STAGE_POSIX;
	result->outcome = w->preempted ? SS_PREEMPTED : SS_KILLED_BEFORE_EXEC;
	if (!w->preempted && ss_went_through(w, &result->flags)) {
		result->outcome = SS_EXEC;
		result->stage = SS_STAGE_EXEC;
	} else if (w->pidfd >= 0) {
		ss_reap(w, result);
	}
}

/* ------------------------------------------------------------------- spawn */

static void
ss_posix_free(struct ss_posix *p)
{
	const int is_beside = (p->plan->want.flags & SS_KEEP_FDS) != 0;
	uint32_t i;

	for (i = 0; is_beside && i < p->listed; i++)
		ss_close(&p->list[i].source);
	ss_close(&p->room);
	free(p->list);
	(void)posix_spawnattr_destroy(&p->attributes); /* they cannot fail */
	(void)posix_spawn_file_actions_destroy(&p->actions);
}

/* A pidfd takes a number: of ourselves, it also shows that there are pidfds for us. */
static int
ss_posix_make(struct ss_posix *p)
{
	const struct ss_request *r = &p->plan->want;
	int error;

	if ((error = posix_spawn_file_actions_init(&p->actions)))
		return -error;
	if ((error = posix_spawnattr_init(&p->attributes))) {
		(void)posix_spawn_file_actions_destroy(&p->actions);
		return -error;
	}
	p->list = calloc(r->nfds + 1ull, sizeof(*p->list));
	p->stage = SS_STAGE_CLONE;
	error = p->list ? (int)ss_sys2(SYS_pidfd_open, getpid(), 0) : -ENOMEM;
	p->room = error < 0 ? -1 : error;
	if (error < 0 || (error = ss_posix_actions(p)))
		ss_posix_free(p);
	return error;
}

static int
ss_posix_spawn_in(struct ss_arena *arena, const struct ss_request *request, struct ss_result *result)
{
	struct ss_posix p;
	struct ss_window w;
	int error;

	memset(&p, 0, sizeof(p));
	memset(&w, 0, sizeof(w));
	p.stage = SS_STAGE_PREPARE;
	p.plan = (struct ss_plan *)(void *)arena->plan;
	if ((error = ss_posix_make(&p))) {
		ss_posix_not_started(&w, &p, error, result);
		return error;
	}
	p.plan->mask = request->sigmask;
	w.arena = arena;
	w.by_libc = 1;
	w.flags = request->flags;
	w.epoch = request->expected.epoch;
	w.pidfd = -1;
	if ((error = ss_posix_run(&w, &p)))
		ss_posix_not_started(&w, &p, error, result);
	else
		ss_posix_conclude(&w, result);
	ss_posix_free(&p);
	return error;
}

/* As ss_spawn, whose result it fills, for what libc can express; else EINVAL, and nothing was started. */
static int
ss_posix_spawn(struct ss_arena *arena, const struct ss_request *request, struct ss_result *result)
{
	int error;

	memset(result, 0, sizeof(*result));
	result->pidfd = -1;
	error = ss_posix_expresses(request) ? ss_prepare(arena, request) : -EINVAL;
	if (error) {
		ss_not_started(result, SS_STAGE_PREPARE, error);
		return error;
	}
	error = ss_posix_spawn_in(arena, request, result);
	ss_arena_after(arena, result);
	return error;
}
