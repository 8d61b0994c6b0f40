/*
 * What a child does between its birth and the program, step by step. Each step returns 0
 * or a positive errno and does nothing unless the plan asks for it. The steps that take
 * privileges away are in _drop.c, the order of all of them in _child.c.
 *
 * This code runs in a child that may share our memory, in one that has a copy, and in the
 * launcher: raw system calls only, no lock, no allocation, no stdio, no libc call, no
 * errno, no write outside the report, the scratch area and its own stack.
 * [T-07 child-raw-only]
 */
SS_INLINE int
ss_child_error(long answer)
{
	return answer < 0 ? (int)-answer : 0;
}

SS_INLINE void
ss_child_stage(struct ss_report *report, int stage)
{
	__atomic_store_n(&report->stage, stage, __ATOMIC_RELAXED);
}

/* A filter of the child's own may refuse even this; then it faults. */
static SS_CHILD void
ss_child_exit(void)
{
	(void)ss_sys1(SYS_exit_group, 127);
	__builtin_trap();
}

/* Asks the kernel to release report->owner when this task execs or dies. */
static SS_CHILD int
ss_child_arm(struct ss_report *report)
{
	report->node.next = &report->robust.list;
	report->robust.list.next = &report->node;
	report->robust.futex_offset = (long)((char *)&report->owner - (char *)&report->node);
	report->robust.pending = NULL;
	__atomic_store_n(&report->owner, (uint32_t)ss_sys0(SYS_gettid) | SS_WAITERS, __ATOMIC_SEQ_CST);
	return ss_child_error(ss_sys2(SYS_set_robust_list, &report->robust, sizeof(report->robust)));
}

static SS_CHILD int
ss_child_read_creds(struct ss_creds *creds)
{
	struct {
		uint32_t version;
		int32_t pid;
	} header = {SS_CAPS_VERSION, 0};
	struct {
		uint32_t effective, permitted, inheritable;
	} caps[2];
	long answer;

	if ((answer = ss_sys3(SYS_getresuid, &creds->ruid, &creds->euid, &creds->suid)) < 0 ||
	    (answer = ss_sys3(SYS_getresgid, &creds->rgid, &creds->egid, &creds->sgid)) < 0 ||
	    (answer = ss_sys2(SYS_capget, &header, caps)) < 0)
		return ss_child_error(answer);
	creds->effective = (uint64_t)caps[1].effective << 32 | caps[0].effective;
	creds->permitted = (uint64_t)caps[1].permitted << 32 | caps[0].permitted;
	creds->inheritable = (uint64_t)caps[1].inheritable << 32 | caps[0].inheritable;
	return 0;
}

/* creds-agree (T-05): ESTALE when our credentials are not the expected ones. */
static SS_CHILD int
ss_child_creds_agree(const struct ss_creds *expected)
{
	struct ss_creds now;
	int error = ss_child_read_creds(&now);

	if (error)
		return error;
	if (!SS_GUARDED(CREDS_AGREE))
		return 0;
	return (now.ruid ^ expected->ruid) | (now.euid ^ expected->euid) |
			       (now.suid ^ expected->suid) | (now.rgid ^ expected->rgid) |
			       (now.egid ^ expected->egid) | (now.sgid ^ expected->sgid) ||
		       now.effective != expected->effective ||
		       now.permitted != expected->permitted ||
		       now.inheritable != expected->inheritable
		   ? ESTALE
		   : 0;
}

/* SIG_DFL is 0, SIG_IGN 1. */
static SS_CHILD int
ss_child_dispose(int signal, uintptr_t handler)
{
	const struct ss_sigaction action = {handler, 0, 0, 0};

	return ss_child_error(ss_sys4(SYS_rt_sigaction, signal, &action, NULL, 8));
}

static SS_CHILD int
ss_child_default(int signal)
{
	return ss_child_dispose(signal, 0);
}

/*
 * No handler may stay when the mask is restored. Ignored signals survive execve:
 * 32 and 33, which libc ignores in children that it makes, and those that were named (Python
 * ignores two for itself: restore_signals of subprocess) go back to the default.
 */
static SS_CHILD int
ss_child_signals(const struct ss_plan *plan)
{
	struct ss_sigaction now;
	int error, signal;

	for (signal = 1; signal <= SS_LAST_SIGNAL && !plan->report->handlers_cleared; signal++) {
		if (signal == SIGKILL || signal == SIGSTOP)
			continue;
		if ((error = ss_child_error(ss_sys4(SYS_rt_sigaction, signal, NULL, &now, 8))))
			return error;
		if (now.handler > 1 && SS_GUARDED(SIGNALS_BLOCKED) && (error = ss_child_default(signal)))
			return error;
	}
	for (signal = 1; signal <= SS_LAST_SIGNAL; signal++)
		if ((plan->want.sigignore >> (signal - 1) & 1) && (error = ss_child_dispose(signal, 1)))
			return error;
	if ((error = ss_child_default(32)) || (error = ss_child_default(33)))
		return error;
	for (signal = 1; signal <= SS_LAST_SIGNAL; signal++)
		if ((plan->want.sigdefault >> (signal - 1) & 1) && (error = ss_child_default(signal)))
			return error;
	return 0;
}

static SS_CHILD int
ss_child_session(const struct ss_plan *plan)
{
	if (!(plan->want.flags & SS_NEW_SESSION))
		return 0;
	return ss_child_error(ss_sys0(SYS_setsid));
}

/* After setsid, because a session leader cannot change its group. */
static SS_CHILD int
ss_child_group(const struct ss_plan *plan)
{
	if (!(plan->want.flags & SS_SET_GROUP))
		return 0;
	return ss_child_error(ss_sys2(SYS_setpgid, 0, plan->want.group));
}

/* Orphans among its descendants become its children, so no daemon leaves its tree (prctl(2), Linux 3.4). */
static SS_CHILD int
ss_child_subreaper(const struct ss_plan *plan)
{
	if (!(plan->want.flags & SS_SUBREAPER))
		return 0;
	return ss_child_error(ss_sys5(SYS_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
}

/* After setsid, because only a session leader without a terminal may take one. */
static SS_CHILD int
ss_child_terminal(const struct ss_plan *plan)
{
	if (plan->want.terminal_fd < 0)
		return 0;
	return ss_child_error(ss_sys3(SYS_ioctl, plan->want.terminal_fd, TIOCSCTTY, 0));
}

static SS_CHILD int
ss_child_nice(const struct ss_plan *plan)
{
	if (!(plan->want.flags & SS_SET_NICE))
		return 0;
	return ss_child_error(ss_sys3(SYS_setpriority, PRIO_PROCESS, 0, plan->want.nice));
}

static SS_CHILD int
ss_child_scheduler(const struct ss_plan *plan)
{
	const int32_t priority = plan->want.priority;

	if (!(plan->want.flags & SS_SET_SCHEDULER))
		return 0;
	return ss_child_error(ss_sys3(SYS_sched_setscheduler, 0, plan->want.policy, &priority));
}

static SS_CHILD int
ss_child_affinity(const struct ss_plan *plan)
{
	if (!plan->want.cpus_bytes)
		return 0;
	return ss_child_error(
	    ss_sys3(SYS_sched_setaffinity, 0, plan->want.cpus_bytes, plan->want.cpus));
}

static SS_CHILD int
ss_child_umask(const struct ss_plan *plan)
{
	if (plan->want.flags & SS_SET_UMASK)
		(void)ss_sys1(SYS_umask, plan->want.umask); /* cannot fail */
	return 0;
}

/*
 * Also what is to be the root is entered here: a new mount namespace comes between this
 * and chroot, and takes the working directory along, but no descriptor (unshare(2)).
 */
static SS_CHILD int
ss_child_cwd(const struct ss_plan *plan)
{
	const int32_t fd = plan->want.root_fd >= 0 ? plan->want.root_fd : plan->want.cwd_fd;

	return fd < 0 ? 0 : ss_child_error(ss_sys1(SYS_fchdir, fd));
}

static SS_CHILD int
ss_child_is_target(const struct ss_plan *plan, int32_t fd)
{
	uint32_t low = 0, high = plan->want.nfds;

	while (low < high) {
		const uint32_t middle = low + (high - low) / 2;

		if (plan->want.fds[middle].target == fd)
			return 1;
		if (plan->want.fds[middle].target < fd)
			low = middle + 1;
		else
			high = middle;
	}
	return 0;
}

/*
 * A copy that placing a target cannot overwrite: above all targets or, where the limit
 * of open files leaves no room there, on a free number between them.
 */
static SS_CHILD long
ss_child_lift(const struct ss_plan *plan, int32_t fd)
{
	long floor = plan->want.nfds ? plan->want.fds[plan->want.nfds - 1].target + 1 : 3;
	long got = ss_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, floor);

	if (got != -EINVAL && got != -EMFILE)
		return got;
	for (floor = 3; (got = ss_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, floor)) >= 0; floor = got + 1) {
		if (!ss_child_is_target(plan, (int32_t)got))
			return got;
		(void)ss_sys1(SYS_close, got); /* a number that will be filled anyway */
	}
	return got;
}

/* Descriptors of ours that are used after the targets were placed. */
struct ss_late {
	int32_t exec_fd, landlock_fd, parent_fd;
};

static SS_CHILD int
ss_child_spare(const struct ss_plan *plan, int32_t *fd)
{
	long answer;

	if (*fd < 0 || !ss_child_is_target(plan, *fd))
		return 0;
	if ((answer = ss_child_lift(plan, *fd)) < 0)
		return ss_child_error(answer);
	*fd = (int32_t)answer;
	return 0;
}

static SS_CHILD int
ss_child_spare_late(const struct ss_plan *plan, struct ss_late *late)
{
	int error;

	if ((error = ss_child_spare(plan, &late->landlock_fd)) ||
	    (error = ss_child_spare(plan, &late->parent_fd)))
		return error;
	return plan->want.flags & SS_EXEC_TARGET ? 0 : ss_child_spare(plan, &late->exec_fd);
}

/* dup3 refuses source equal to target, and dup2 would leave close-on-exec set there. */
static SS_CHILD int
ss_child_place(int32_t source, int32_t target)
{
	long answer;

	if (source >= 0 && source != target)
		return ss_child_error(ss_sys3(SYS_dup3, source, target, 0));
	answer = ss_sys3(SYS_fcntl, target, F_SETFD, source < 0 ? FD_CLOEXEC : 0);
	return source < 0 && answer == -EBADF ? 0 : ss_child_error(answer);
}

/*
 * Two passes: first every source that is also somebody's target is lifted, then
 * the targets are filled.
 */
static SS_CHILD int
ss_child_fds(const struct ss_plan *plan, struct ss_late *late)
{
	int32_t *lifted = (int32_t *)(void *)plan->scratch;
	uint32_t i;
	int error;

	for (i = 0; i < plan->want.nfds; i++) {
		lifted[i] = plan->want.fds[i].source;
		if (lifted[i] != plan->want.fds[i].target && (error = ss_child_spare(plan, &lifted[i])))
			return error;
	}
	if ((error = ss_child_spare_late(plan, late)))
		return error;
	for (i = 0; i < plan->want.nfds; i++)
		if ((error = ss_child_place(lifted[i], plan->want.fds[i].target)))
			return error;
	return 0;
}

SS_INLINE int
ss_child_digits(const char *text, int32_t *ret_fd)
{
	int64_t value = 0;

	if (!*text)
		return 0;
	for (; *text; text++) {
		if (*text < '0' || *text > '9' || value > INT32_MAX / 10)
			return 0;
		value = value * 10 + (*text - '0');
	}
	if (value > INT32_MAX)
		return 0;
	*ret_fd = (int32_t)value;
	return 1;
}

/* close_range(2) cannot mark before Linux 5.11: walk /proc/self/fd instead. */
static SS_CHILD int
ss_child_cloexec_walk(const struct ss_plan *plan)
{
	unsigned char *listing = plan->scratch + plan->want.nfds * sizeof(int32_t);
	const long dir = ss_sys4(SYS_openat, AT_FDCWD, "/proc/self/fd",
				 O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	long bytes, at, answer;

	if (dir < 0)
		return ss_child_error(dir);
	while ((bytes = ss_sys3(SYS_getdents64, dir, listing, SS_LISTING_BYTES)) > 0) {
		for (at = 0; at < bytes;) {
			/* struct linux_dirent64: u64, s64, u16 length, u8 type, name */
			const uint16_t length = *(const uint16_t *)(const void *)(listing + at + 16);
			int32_t fd;

			if (ss_child_digits((const char *)listing + at + 19, &fd) &&
			    !ss_child_is_target(plan, fd) &&
			    (answer = ss_sys3(SYS_fcntl, fd, F_SETFD, FD_CLOEXEC)) < 0)
				return ss_child_error(answer);
			at += length;
		}
	}
	return ss_child_error(bytes);
}

/*
 * fds-closed (T-08): every descriptor but the targets goes away at execve. With SS_KEEP_FDS
 * (close_fds=False of subprocess) those that are close-on-exec anyway.
 */
static SS_CHILD int
ss_child_cloexec(const struct ss_plan *plan)
{
	uint32_t first = 0, i;
	long answer;

	if ((plan->want.flags & SS_KEEP_FDS) || !SS_GUARDED(FDS_CLOSED))
		return 0;
	for (i = 0; i <= plan->want.nfds; i++) {
		const uint32_t last =
		    i < plan->want.nfds ? (uint32_t)plan->want.fds[i].target - 1 : UINT32_MAX;

		/* A target of 0 wraps to the largest value: nothing lies below it. */
		if (i == plan->want.nfds || (last != UINT32_MAX && first <= last)) {
			answer = ss_sys3(SYS_close_range, first, last, SS_RANGE_CLOEXEC);
			if (answer == -ENOSYS || answer == -EINVAL || answer == -EPERM)
				return ss_child_cloexec_walk(plan);
			if (answer < 0)
				return ss_child_error(answer);
		}
		if (i < plan->want.nfds)
			first = (uint32_t)plan->want.fds[i].target + 1;
	}
	return 0;
}

static SS_CHILD int
ss_child_limit(const struct ss_plan *plan, uint32_t count)
{
	uint32_t i;
	int error;

	for (i = 0; i < count; i++) {
		const struct ss_rlimit *limit = &plan->want.rlimits[i];

		error = ss_child_error(
		    ss_sys4(SYS_prlimit64, 0, limit->resource, &limit->soft, NULL));
		if (error)
			return error;
	}
	return 0;
}

/* Before the ids change, because raising a hard limit takes CAP_SYS_RESOURCE. */
static SS_CHILD int
ss_child_rlimits(const struct ss_plan *plan)
{
	return ss_child_limit(plan, plan->want.nrlimits);
}

/* Whether our parent is there still; in a new PID namespace it has no number. */
static SS_CHILD int
ss_child_has_parent(const struct ss_plan *plan, int32_t parent_fd)
{
	struct pollfd poll = {parent_fd, POLLIN, 0};
	const struct timespec now = {0, 0};

	if (parent_fd < 0)
		return ss_sys0(SYS_getppid) == plan->parent_pid;
	return ss_sys5(SYS_ppoll, &poll, 1, &now, NULL, 8) == 0;
}

/*
 * After the ids have changed, because that clears the setting (prctl(2)). A parent
 * that died before it was set sends nothing, so look whether ours is still there.
 */
static SS_CHILD int
ss_child_pdeathsig(const struct ss_plan *plan, int32_t parent_fd)
{
	int error;

	if (!plan->want.pdeathsig)
		return 0;
	error = ss_child_error(ss_sys5(SYS_prctl, PR_SET_PDEATHSIG, plan->want.pdeathsig, 0, 0, 0));
	if (error)
		return error;
	return ss_child_has_parent(plan, parent_fd) ? 0 : ESRCH;
}

SS_INLINE int64_t
ss_child_ns(const struct timespec *time)
{
	return time->tv_sec * 1000000000ll + time->tv_nsec;
}

/*
 * exe-pinned (T-14): the descriptor keeps the file, not its content. write(2) to it since
 * it was hashed has moved its ctime, which nobody can set back; then ESTALE. A store to a
 * page that was mapped and dirty before moves nothing: that stays open.
 */
static SS_CHILD int
ss_child_pin(const struct ss_plan *plan, int32_t exec_fd)
{
	struct stat now;
	int error;

	if (!(plan->want.flags & SS_PINNED))
		return 0;
	if ((error = ss_child_error(ss_sys4(SYS_newfstatat, exec_fd, "", &now, AT_EMPTY_PATH))))
		return error;
	return now.st_size != plan->want.size || ss_child_ns(&now.st_mtim) != plan->want.mtime_ns ||
		       ss_child_ns(&now.st_ctim) != plan->want.ctime_ns
		   ? ESTALE
		   : 0;
}

/*
 * A stop from the terminal that came while signals were blocked would stop us here, and
 * our parent with us; ignoring a signal throws a pending one away (POSIX, 2.4.3).
 */
static SS_CHILD int
ss_child_discard_stops(void)
{
	static const int stops[] = {SIGTSTP, SIGTTIN, SIGTTOU};
	const struct ss_sigaction ignore = {1, 0, 0, 0};
	struct ss_sigaction was;
	uint64_t pending = 0;
	unsigned i;
	int error;

	if ((error = ss_child_error(ss_sys2(SYS_rt_sigpending, &pending, 8))))
		return error;
	for (i = 0; i < sizeof(stops) / sizeof(*stops); i++) {
		if (!(pending >> (stops[i] - 1) & 1))
			continue;
		if ((error = ss_child_error(ss_sys4(SYS_rt_sigaction, stops[i], &ignore, &was, 8))) ||
		    (error = ss_child_error(ss_sys4(SYS_rt_sigaction, stops[i], &was, NULL, 8))))
			return error;
	}
	return 0;
}

/* Last before execve, because whatever was held back is delivered now. */
static SS_CHILD int
ss_child_mask(const struct ss_plan *plan)
{
	const int error = ss_child_discard_stops();

	if (error)
		return error;
	return ss_child_error(ss_sys4(SYS_rt_sigprocmask, SIG_SETMASK, &plan->mask, NULL, 8));
}

/*
 * epoch-agrees (T-23): ESTALE when a change of credentials that the lock saw has begun or
 * ended since the decision. It may concern what the ids and capabilities do not show, or
 * threads that the change has not reached yet.
 */
static SS_CHILD int
ss_child_epoch(const struct ss_plan *plan)
{
	return SS_GUARDED(EPOCH_AGREES) && __atomic_load_n(&plan->report->moved, __ATOMIC_SEQ_CST) ? ESTALE : 0;
}

/*
 * claim-first (T-40): a child of a helper that stayed after a drop may be more than its parent, who cannot kill it then
 * at the deadline, but takes its claim away. ECANCELED. Nobody else has a claim.
 */
static SS_CHILD int
ss_child_spend(const struct ss_plan *plan)
{
	int32_t claim = __atomic_load_n(&plan->report->claim, __ATOMIC_SEQ_CST);

	if (claim == SS_CLAIM_OPEN || !SS_GUARDED(CLAIM_FIRST))
		return 0;
	return claim > 0 && __atomic_compare_exchange_n(&plan->report->claim, &claim, claim | SS_CLAIM_SPENT, 0,
							__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
		   ? 0
		   : ECANCELED;
}

static SS_CHILD int
ss_child_execve(const struct ss_plan *plan, int32_t exec_fd)
{
	if (exec_fd < 0)
		return ss_child_error(ss_sys3(SYS_execve, plan->want.path, plan->argv, plan->envp));
	return ss_child_error(
	    ss_sys5(SYS_execveat, exec_fd, "", plan->argv, plan->envp, AT_EMPTY_PATH));
}
