/*
 * The maps of a user namespace that a child has made, written by its parent while it
 * waits (ss_child_await_maps). Only who has rights in the namespace above may write more
 * than one's own ids (user_namespaces(7)). Part of _native.c.
 */

/* One write(2): the kernel takes a map whole or not at all, and once. */
static int
ss_maps_put(const struct ss_window *w, const char *file, const char *lines)
{
	const size_t bytes = strlen(lines);
	char path[64];
	int fd, error = 0;

	(void)snprintf(path, sizeof(path), "/proc/%d/%s", w->pid, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	if (ss_has_ended(w->pidfd)) /* then the number may have been another's when we opened */
		error = ESRCH;
	else if (write(fd, lines, bytes) != (ssize_t)bytes)
		error = errno ? errno : EIO;
	(void)close(fd); /* it was taken, or not */
	return error;
}

/*
 * Who may not set groups outside must give that up inside first (Linux 3.19, the reason is
 * in user_namespaces(7) under "The /proc/pid/setgroups file").
 */
static int
ss_maps_write(const struct ss_window *w)
{
	const struct ss_request *r = w->request;
	int error;

	if (!ss_proc_is_ours() || !r->map_users || !r->map_groups)
		return EIO;
	if ((error = ss_maps_put(w, "uid_map", r->map_users)))
		return error;
	error = ss_maps_put(w, "gid_map", r->map_groups);
	if (error != EPERM || ss_maps_put(w, "setgroups", "deny"))
		return error;
	return ss_maps_put(w, "gid_map", r->map_groups);
}

static void
ss_maps_answer(const struct ss_window *w)
{
	struct ss_report *report = ss_report_of(w->arena);

	if (!w->request || !__atomic_load_n(&report->asks, __ATOMIC_SEQ_CST) ||
	    __atomic_load_n(&report->answer, __ATOMIC_SEQ_CST))
		return;
	__atomic_store_n(&report->answer, (uint32_t)ss_maps_write(w) + 1, __ATOMIC_SEQ_CST);
	(void)ss_sys3(SYS_futex, &report->answer, SS_FUTEX_WAKE, SS_FUTEX_EVERYBODY); /* where it waits */
}
