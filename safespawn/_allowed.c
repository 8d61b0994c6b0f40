/*
 * What a helper may start: reads its policies, and judges a plan by them. Part of the helper.
 * It runs in a forked child before anything of the plan is done. Nothing that cannot be
 * understood is allowed. helper-obeys (T-37)
 */

/* The lists of a policy, found once its head was checked. */
struct ss_lists {
	const struct ss_policy *policy;
	const struct ss_policy_user *users;
	const uint32_t *groups;
	const char *programs, *variables;
};

/* Words of the head that we know, and that do not contradict the lists. */
static int
ss_policy_is_clear(const struct ss_policy *p)
{
	return !(p->flags & ~(uint32_t)(SS_POLICY_FLAGS_END - 1)) && !(p->options & ~(uint64_t)(SS_OPTIONS_END - 1)) &&
	       !((p->flags & SS_ANY_PROGRAM) && p->nprograms) && !((p->flags & SS_ANY_USER) && p->nusers) &&
	       !((p->flags & SS_ANY_VARIABLE) && p->nvariables);
}

/* Every count and size below its bound, so that no sum of them wraps. */
static int
ss_policy_is_head(const struct ss_policy *p, size_t bytes)
{
	return bytes >= sizeof(*p) && bytes <= SS_POLICY_BYTES_MAX && p->magic == SS_POLICY_MAGIC &&
	       p->version == SS_HELPER_VERSION && p->head_bytes == sizeof(*p) && p->total == bytes &&
	       p->nusers <= SS_POLICY_LIST_MAX && p->ngroups <= SS_GROUPS_MAX && p->nprograms <= SS_POLICY_LIST_MAX &&
	       p->nvariables <= SS_POLICY_LIST_MAX && p->pool <= SS_POOL_MAX &&
	       p->program_bytes <= SS_POLICY_BYTES_MAX && p->variable_bytes <= SS_POLICY_BYTES_MAX &&
	       ss_policy_is_clear(p);
}

/* Whether that many strings, none of them empty, lie there end to end. */
static int
ss_policy_are_strings(const char *text, uint64_t bytes, uint32_t count)
{
	uint64_t at;

	for (at = 0; at < bytes; at++)
		if (!text[at]) {
			if (!at || !text[at - 1] || !count)
				return 0;
			count--;
		}
	return !count && (!bytes || !text[bytes - 1]);
}

/* The groups of each user lie in the list of all. */
static int
ss_policy_are_users(const struct ss_lists *l)
{
	uint32_t i;

	for (i = 0; i < l->policy->nusers; i++)
		if (l->users[i].first_group > l->policy->ngroups ||
		    l->users[i].ngroups > l->policy->ngroups - l->users[i].first_group)
			return 0;
	return 1;
}

/* Finds the lists, or EPROTO: whatever the bytes are, nothing outside them is read. */
static int
ss_policy_read(const void *bytes, size_t count, struct ss_lists *l)
{
	const struct ss_policy *p = bytes;
	const unsigned char *at;

	if (!ss_policy_is_head(p, count))
		return EPROTO;
	if (sizeof(*p) + p->nusers * sizeof(*l->users) + p->ngroups * sizeof(uint32_t) + p->program_bytes +
		p->variable_bytes !=
	    count)
		return EPROTO;
	l->policy = p;
	at = (const unsigned char *)(p + 1);
	l->users = (const struct ss_policy_user *)(const void *)at;
	at += p->nusers * sizeof(*l->users);
	l->groups = (const uint32_t *)(const void *)at;
	at += p->ngroups * sizeof(uint32_t);
	l->programs = (const char *)at;
	l->variables = l->programs + p->program_bytes;
	return ss_policy_are_users(l) && ss_policy_are_strings(l->programs, p->program_bytes, p->nprograms) &&
		       ss_policy_are_strings(l->variables, p->variable_bytes, p->nvariables)
		   ? 0
		   : EPROTO;
}

/* ------------------------------------------------------------------ options */

/*
 * The three that every program takes for granted, and no other. Without one of them the next file that a
 * program opens gets its number, and what is printed (libc opens them for set-id programs, csu/check_fds.c of glibc).
 */
static int
ss_option_is_fds(const struct ss_request *want)
{
	return want->nfds != 3 || want->fds[2].target != 2;
}

/* Which options a plan makes use of. */
static uint64_t
ss_plan_options(const struct ss_request *want)
{
	const struct {
		int is_used;
		uint64_t option;
	} uses[] = {
	    {want->cwd_fd >= 0 || want->cwd, SS_OPTION_CWD},
	    {ss_option_is_fds(want), SS_OPTION_FDS},
	    {(want->flags & SS_NEW_SESSION) != 0, SS_OPTION_SESSION},
	    {(want->flags & SS_SET_GROUP) != 0, SS_OPTION_GROUP},
	    {want->terminal_fd >= 0, SS_OPTION_TERMINAL},
	    {(want->flags & SS_SET_UMASK) != 0, SS_OPTION_UMASK},
	    {(want->flags & SS_SET_NICE) != 0, SS_OPTION_NICE},
	    {(want->flags & SS_SET_SCHEDULER) != 0, SS_OPTION_SCHEDULER},
	    {want->cpus_bytes != 0, SS_OPTION_AFFINITY},
	    {want->nrlimits != 0, SS_OPTION_RLIMITS},
	    {want->cgroup_fd >= 0, SS_OPTION_CGROUP},
	    {want->root_fd >= 0, SS_OPTION_ROOT},
	    {(want->flags & SS_SET_CAPS) != 0, SS_OPTION_CAPS},
	    {(want->flags & SS_SET_SECUREBITS) != 0, SS_OPTION_SECUREBITS},
	    {(want->unshared | want->born_in) != 0, SS_OPTION_NAMESPACES},
	    {want->nfilter != 0, SS_OPTION_SECCOMP},
	    {(want->flags & SS_SUBREAPER) != 0, SS_OPTION_SUBREAPER},
	    {want->landlock_fd >= 0, SS_OPTION_LANDLOCK},
	    {want->pdeathsig != 0, SS_OPTION_PDEATHSIG},
	};
	uint64_t used = 0;
	unsigned i;

	for (i = 0; i < sizeof(uses) / sizeof(*uses); i++)
		used |= uses[i].is_used ? uses[i].option : 0;
	return used;
}

static int
ss_allowed_options(const struct ss_lists *l, const struct ss_plan *plan)
{
	return ss_plan_options(&plan->want) & ~l->policy->options ? EACCES : 0;
}

/* -------------------------------------------------------------------- users */

/* Uid, gid and every group: both lists are sorted, and none is in them twice. */
static int
ss_user_is(const struct ss_lists *l, const struct ss_policy_user *user, const struct ss_request *want)
{
	uint32_t i;

	if (user->uid != want->uid || user->gid != want->gid || user->ngroups != want->ngroups)
		return 0;
	for (i = 0; i < want->ngroups; i++)
		if (l->groups[user->first_group + i] != want->groups[i])
			return 0;
	return 1;
}

/*
 * An identity of the list, wholly; or the helper's own as it is, when the list has its uid. In
 * a user namespace of its own ids mean something else: only where any user will do.
 */
static int
ss_allowed_user(const struct ss_lists *l, const struct ss_plan *plan)
{
	const struct ss_request *want = &plan->want;
	const uint64_t asked = want->flags & SS_CHANGES_IDS;
	uint32_t i;

	if (l->policy->flags & SS_ANY_USER)
		return 0;
	if ((asked && asked != SS_CHANGES_IDS) || ((want->unshared | want->born_in) & SS_CLONE_NEWUSER))
		return EACCES;
	for (i = 0; i < l->policy->nusers; i++) {
		const struct ss_policy_user *user = &l->users[i];

		if (asked ? ss_user_is(l, user, want) : user->uid == l->policy->expected.euid)
			return 0;
	}
	return EACCES;
}

/* ------------------------------------------------------------------ strings */

/* Whether text is pattern, or with a star at the end begins like it; it ends at `end` or NUL. */
static int
ss_text_matches(const char *pattern, const char *text, char end)
{
	while (*pattern && *pattern != '*') {
		if (*pattern++ != *text++)
			return 0;
	}
	return *pattern ? !pattern[1] : *text == end || !*text;
}

static const char *
ss_text_next(const char *text)
{
	while (*text++)
		;
	return text;
}

static int
ss_variable_is_named(const struct ss_lists *l, const char *variable)
{
	const char *name = l->variables;
	uint32_t i;

	for (i = 0; i < l->policy->nvariables; i++, name = ss_text_next(name))
		if (ss_text_matches(name, variable, '='))
			return 1;
	return 0;
}

static int
ss_allowed_variables(const struct ss_lists *l, const struct ss_plan *plan)
{
	char **at;

	if (l->policy->flags & SS_ANY_VARIABLE)
		return 0;
	for (at = plan->envp; *at; at++)
		if (!ss_variable_is_named(l, *at))
			return EACCES;
	return 0;
}

/* ----------------------------------------------------------------- programs */

/* Whether a path leads nowhere but where it says: absolute, without empty parts, "." and "..". */
static int
ss_path_is_plain(const char *path)
{
	if (*path != '/')
		return 0;
	while (*path++ == '/') {
		const char *part = path;

		while (*path && *path != '/')
			path++;
		if (path == part || (part[0] == '.' && (path == part + 1 || (part[1] == '.' && path == part + 2))))
			return 0;
	}
	return 1;
}

/* An entry is a path, or a directory with a slash at its end: the files right in it. */
static int
ss_program_is(const char *entry, const char *path)
{
	while (*entry && *entry == *path) {
		entry++;
		path++;
	}
	if (*entry)
		return 0;
	if (!*path)
		return entry[-1] != '/';
	if (entry[-1] != '/')
		return 0;
	while (*path && *path != '/')
		path++;
	return !*path;
}

/* By which descriptor it runs: -1 for its path. A script's stays open under a number of its own. */
static int32_t
ss_program_fd(const struct ss_request *want)
{
	uint32_t i;

	if (want->exec_fd < 0 || !(want->flags & SS_EXEC_TARGET))
		return want->exec_fd;
	for (i = 0; i < want->nfds; i++)
		if (want->fds[i].target == want->exec_fd)
			return want->fds[i].source;
	return -1; /* nothing will be there, and the exec fails */
}

/* What runs by a descriptor must be the file that the path leads to. */
static int
ss_program_is_file(const struct ss_request *want)
{
	const int32_t fd = ss_program_fd(want);
	struct stat named, held;

	if (want->exec_fd < 0)
		return 1;
	return fd >= 0 && ss_sys4(SYS_newfstatat, AT_FDCWD, want->path, &named, 0) == 0 &&
	       ss_sys4(SYS_newfstatat, fd, "", &held, AT_EMPTY_PATH) == 0 && named.st_dev == held.st_dev &&
	       named.st_ino == held.st_ino;
}

/* In a root of somebody's choice a path leads elsewhere, and so does that of the loader of a program. */
static int
ss_allowed_program(const struct ss_lists *l, const struct ss_plan *plan)
{
	const char *entry = l->programs;
	uint32_t i;

	if (l->policy->flags & SS_ANY_PROGRAM)
		return 0;
	if (plan->want.root_fd >= 0 || !ss_path_is_plain(plan->want.path) || !ss_program_is_file(&plan->want))
		return EACCES;
	for (i = 0; i < l->policy->nprograms; i++, entry = ss_text_next(entry))
		if (ss_program_is(entry, plan->want.path))
			return 0;
	return EACCES;
}
