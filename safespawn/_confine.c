/*
 * The steps that put a child somewhere else for good: cgroup, namespaces, root, Landlock
 * domain, system call filter. As those of _drop.c they run in memory of its own only.
 */

#define SS_SYS_LANDLOCK_RESTRICT_SELF 446 /* landlock_restrict_self(2), Linux 5.13 */
#define SS_CGROUP_MAGIC 0x27e0ebu    /* CGROUP_SUPER_MAGIC and */
#define SS_CGROUP2_MAGIC 0x63677270u /* CGROUP2_SUPER_MAGIC, linux/magic.h */
#define SS_SET_MODE_FILTER 1u	     /* SECCOMP_SET_MODE_FILTER, seccomp(2) */
#define SS_FUTEX_WAIT 0		     /* futex(2) */
#define SS_FUTEX_WAKE 1
#define SS_ASK_NS 20000000l /* between two looks whether our parent lives */
#define SS_FUTEX_EVERYBODY 0x7fffffff

/*
 * By the file where the kernel could not do it at the clone: "0" means whoever writes
 * (cgroups(7)). Never while memory is shared: the limits and the freezer of that cgroup
 * would be our parent's as well, and its OOM killer takes all who share (T-28).
 */
static SS_CHILD int
ss_child_cgroup(const struct ss_plan *plan)
{
	const char self = '0';
	struct statfs fs;
	long fd, answer;

	if (plan->want.cgroup_fd < 0 || plan->report->in_cgroup)
		return 0;
	if ((answer = ss_sys2(SYS_fstatfs, plan->want.cgroup_fd, &fs)) < 0)
		return ss_child_error(answer);
	/* A file of that name may lie, or be a link, anywhere. */
	if ((uint32_t)fs.f_type != SS_CGROUP2_MAGIC && (uint32_t)fs.f_type != SS_CGROUP_MAGIC)
		return ENOTSUP;
	fd = ss_sys4(SYS_openat, plan->want.cgroup_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0);
	if (fd < 0)
		return ss_child_error(fd);
	answer = ss_sys3(SYS_write, fd, &self, 1);
	(void)ss_sys1(SYS_close, fd); /* the move is made, or refused */
	return ss_child_error(answer);
}

/*
 * The maps of a new user namespace can be written only by who has rights in the one above
 * (user_namespaces(7)), and that is our parent: ask, and wait for the answer.
 */
static SS_CHILD int
ss_child_await_maps(const struct ss_plan *plan, int32_t parent_fd)
{
	const struct timespec slice = {0, SS_ASK_NS};
	struct ss_report *report = plan->report;
	uint32_t answer;

	__atomic_store_n(&report->asks, 1, __ATOMIC_SEQ_CST);
	(void)ss_sys3(SYS_futex, &report->owner, SS_FUTEX_WAKE, SS_FUTEX_EVERYBODY); /* where it waits */
	while (!(answer = __atomic_load_n(&report->answer, __ATOMIC_SEQ_CST))) {
		if (!ss_child_has_parent(plan, parent_fd))
			return ESRCH;
		(void)ss_sys4(SYS_futex, &report->answer, SS_FUTEX_WAIT, 0, &slice); /* we look again */
	}
	return (int)(answer - 1);
}

/*
 * What happens to mounts in a new mount namespace must not happen outside: everything
 * there is made private, as unshare(1) does.
 */
static SS_CHILD int
ss_child_namespaces(const struct ss_plan *plan, int32_t parent_fd)
{
	int error = 0;

	if (plan->want.unshared)
		error = ss_child_error(ss_gate1(SYS_unshare, plan->want.unshared));
	if (!error && ss_child_leaves_users(plan))
		error = ss_child_await_maps(plan, parent_fd);
	if (!error && (plan->want.unshared & SS_CLONE_NEWNS))
		error = ss_child_error(
		    ss_sys5(SYS_mount, "none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	return error;
}

/* We stand in it already: ss_child_cwd. */
static SS_CHILD int
ss_child_root(const struct ss_plan *plan)
{
	return plan->want.root_fd < 0 ? 0 : ss_child_error(ss_gate1(SYS_chroot, "."));
}

/* The working directory is inside the root: looked up there, or the root itself. */
static SS_CHILD int
ss_child_cwd_inside(const struct ss_plan *plan)
{
	if (plan->want.root_fd < 0)
		return 0;
	return ss_child_error(ss_sys1(SYS_chdir, plan->want.cwd ? plan->want.cwd : "/"));
}

/* The rules were made by our parent, for paths as it sees them. */
static SS_CHILD int
ss_child_landlock(const struct ss_plan *plan, int32_t landlock_fd)
{
	if (plan->want.landlock_fd < 0)
		return 0;
	return ss_child_error(ss_gate2(SS_SYS_LANDLOCK_RESTRICT_SELF, landlock_fd, 0));
}

/* Last but for execve: the filter may refuse any other call. */
static SS_CHILD int
ss_child_seccomp(const struct ss_plan *plan)
{
	const struct {
		uint16_t count;
		const void *filter;
	} program = {(uint16_t)plan->want.nfilter, plan->want.filter};

	if (!plan->want.nfilter)
		return 0;
	return ss_child_error(ss_gate3(SYS_seccomp, SS_SET_MODE_FILTER, 0, &program));
}
