/* The children of ss_spawn: one becomes the program, the other the launcher. */

/* A test chooses whether the launcher is to fail at a step that both have, or this child. */
#define SS_COURIER_STEP(name, call) SS_STEP_AFTER(SS_COURIER_HOOK, name, call)

/* In a user namespace that was made with the child, ids have other numbers already. */
static SS_CHILD int
ss_child_birth(const struct ss_plan *plan)
{
	if (plan->want.born_in & SS_CLONE_NEWUSER)
		return 0;
	return ss_child_creds_agree(&plan->want.expected);
}

static SS_CHILD int
ss_child_born(const struct ss_plan *plan)
{
	int error;

	ss_child_stage(plan->report, SS_STAGE_BIRTH);
	if ((error = SS_HOOK(SS_STAGE_PREPARE))) /* where it has not named itself; no stage of children */
		return error;
	if (plan->tells && (error = ss_child_arm(plan->report)))
		return error;
	SS_STEP(BIRTH, ss_child_birth(plan));
	return 0;
}

static SS_CHILD void
ss_child_spawn(void *argument)
{
	const struct ss_plan *plan = argument;
	int error;

	if (!(error = ss_child_born(plan)))
		error = ss_child_become(plan);
	plan->report->error = error;
	ss_child_exit();
}

/*
 * launcher-intact (T-30): by a descriptor of ours that anybody in this process may have
 * closed, and its number be another file's by now. Here the table is our own.
 */
static SS_CHILD int
ss_child_is_launcher(const struct ss_plan *plan, int32_t fd)
{
	const struct ss_file *want = &plan->want.launcher;
	struct stat now;
	int error = ss_child_error(ss_sys4(SYS_newfstatat, fd, "", &now, AT_EMPTY_PATH));

	if (error)
		return error;
	return now.st_dev != want->device || now.st_ino != want->inode || now.st_size != want->size ||
		       ss_child_ns(&now.st_mtim) != want->mtime_ns || ss_child_ns(&now.st_ctim) != want->ctime_ns
		   ? ESTALE
		   : 0;
}

static SS_CHILD int
ss_child_exec_launcher(const struct ss_plan *plan, int32_t fd)
{
	const int error = ss_child_is_launcher(plan, fd);

	return error ? error : ss_child_execve(plan, fd);
}

/*
 * On its way to the launcher a child does what no exec may come before: it looks whether
 * it is who it should be, and places descriptors. All signals stay blocked; nothing in it
 * changes credentials (T-19).
 */
static SS_CHILD int
ss_child_courier(const struct ss_plan *plan)
{
	struct ss_late late = {plan->want.exec_fd, -1, -1};
	int error;

	if ((error = ss_child_born(plan)))
		return error;
	SS_COURIER_STEP(SIGNALS, ss_child_signals(plan));
	SS_COURIER_STEP(FDS, ss_child_fds(plan, &late));
	SS_COURIER_STEP(CLOEXEC, ss_child_cloexec(plan));
	SS_COURIER_STEP(CREDS, ss_child_creds_agree(&plan->want.expected));
	SS_COURIER_STEP(EPOCH, ss_child_epoch(plan));
	SS_STEP(LAUNCH, ss_child_exec_launcher(plan, late.exec_fd));
	return EPROTO;
}

static SS_CHILD void
ss_child_launch(void *argument)
{
	const struct ss_plan *plan = argument;

	plan->report->error = ss_child_courier(plan);
	ss_child_exit();
}
