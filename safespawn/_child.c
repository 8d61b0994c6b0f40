/* The order of the steps of a child; each has its reason where it is defined. */

#include "_steps.c"

#include "_drop.c"

#include "_confine.c"

#define SS_STEP_AFTER(hook, name, call)                                         \
	do {                                                                    \
		ss_child_stage(plan->report, SS_STAGE_##name);                  \
		if ((error = hook(SS_STAGE_##name)) || (error = (call)))        \
			return error;                                           \
	} while (0)

#define SS_STEP(name, call) SS_STEP_AFTER(SS_HOOK, name, call)

/* What the process is, while it may still do everything. */
static SS_CHILD int
ss_child_settle(const struct ss_plan *plan, struct ss_late *late)
{
	int error;

	SS_STEP(SIGNALS, ss_child_signals(plan));
	SS_STEP(SESSION, ss_child_session(plan));
	SS_STEP(GROUP, ss_child_group(plan));
	SS_STEP(SUBREAPER, ss_child_subreaper(plan));
	SS_STEP(TERMINAL, ss_child_terminal(plan));
	SS_STEP(NICE, ss_child_nice(plan));
	SS_STEP(SCHEDULER, ss_child_scheduler(plan));
	SS_STEP(AFFINITY, ss_child_affinity(plan));
	SS_STEP(CGROUP, ss_child_cgroup(plan));
	SS_STEP(UMASK, ss_child_umask(plan));
	SS_STEP(CWD, ss_child_cwd(plan));
	SS_STEP(FDS, ss_child_fds(plan, late));
	SS_STEP(CLOEXEC, ss_child_cloexec(plan));
	SS_STEP(RLIMITS, ss_child_rlimits(plan));
	return 0;
}

/*
 * Less and less. A user namespace first, because in it we may do the rest; chroot after
 * it, because it is refused to who is in another root (user_namespaces(7)); the ids from
 * the one that may change all others to the one that may change none.
 */
static SS_CHILD int
ss_child_lessen(const struct ss_plan *plan, const struct ss_late *late)
{
	int error;

	SS_STEP(NAMESPACES, ss_child_namespaces(plan, late->parent_fd));
	SS_STEP(ROOT, ss_child_root(plan));
	SS_STEP(CWD, ss_child_cwd_inside(plan));
	SS_STEP(BOUNDING, ss_child_bounding(plan));
	SS_STEP(GROUPS, ss_child_groups(plan));
	SS_STEP(GID, ss_child_gid(plan));
	SS_STEP(UID, ss_child_uid(plan));
	SS_STEP(CAPS, ss_child_caps(plan));
	SS_STEP(SECUREBITS, ss_child_securebits(plan));
	SS_STEP(VERIFY, ss_child_verify(plan));
	SS_STEP(NO_NEW_PRIVS, ss_child_no_new_privs(plan));
	SS_STEP(LANDLOCK, ss_child_landlock(plan, late->landlock_fd));
	return 0;
}

/* A flat list of steps, then the program, or an errno. */
static SS_CHILD int
ss_child_become(const struct ss_plan *plan)
{
	struct ss_late late = {plan->want.exec_fd, plan->want.landlock_fd, plan->want.parent_fd};
	int error;

	if ((error = ss_child_settle(plan, &late)) || (error = ss_child_lessen(plan, &late)))
		return error;
	SS_STEP(PDEATHSIG, ss_child_pdeathsig(plan, late.parent_fd));
	SS_STEP(CREDS, ss_child_creds(plan));
	SS_STEP(PIN, ss_child_pin(plan, late.exec_fd));
	SS_STEP(MASK, ss_child_mask(plan));
	SS_STEP(SECCOMP, ss_child_seccomp(plan));
	SS_STEP(EPOCH, ss_child_epoch(plan));
	if ((error = ss_child_spend(plan)))
		return error;
	SS_STEP(EXEC, ss_child_execve(plan, late.exec_fd));
	return EPROTO; /* an execve that worked does not return: somebody fakes its answer */
}
