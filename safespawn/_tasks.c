/*
 * Whether all threads of this process have the same credentials. Part of _native.c.
 *
 * Credentials belong to threads. libc keeps those of a process alike, but a thread that made
 * its calls by itself differs, and while a child shares our memory a thread with less could
 * write to what a child with more is about to run. [T-25 tasks-alike]
 *
 * /proc/self/task/N/status shows ids, groups, capabilities, no_new_privs and seccomp; links
 * beside it show namespaces, the root and the security label. Securebits, keyrings and
 * Landlock domains do not show anywhere: see `stain` in _credlock.c.
 */

#define SS_STATUS_BYTES (1u << 20) /* 65536 groups of ten digits fit */
#define SS_TASK_LIST 8192u         /* tasks; more are too many to tell */
#define SS_TASK_ROUNDS 8           /* new tasks came up in every one: give up */

/* struct linux_dirent64 of getdents64(2). */
struct ss_dirent {
	uint64_t inode;
	int64_t offset;
	uint16_t bytes;
	uint8_t type;
	char name[];
};

/* Room for a comparison: what the first task has, and what the next one has. */
struct ss_tasks {
	char *first, *next;
	size_t first_bytes;
	int32_t *seen;
	uint32_t count;
	int directory;
	int differs; /* the tid that does */
};

/* Lines of status that count: by their first letters. */
static int
ss_status_counts(const char *line)
{
	static const char *const names[] = {"Uid:",    "Gid:",    "Groups:", "CapInh:",     "CapPrm:",
					    "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp"};
	unsigned i;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (!strncmp(line, names[i], strlen(names[i])))
			return 1;
	return 0;
}

/* Reads tid/status and keeps the lines that count. Returns bytes or -errno. */
static long
ss_task_status(int directory, const char *path, char *to, size_t room)
{
	const long fd = ss_sys4(SYS_openat, directory, path, O_RDONLY | O_CLOEXEC, 0);
	size_t bytes = 0, kept = 0;
	char *line, *end;
	long got;

	if (fd < 0)
		return fd;
	while ((got = ss_sys3(SYS_read, fd, to + bytes, room - 1 - bytes)) > 0)
		bytes += (size_t)got;
	(void)ss_sys1(SYS_close, fd); /* read only */
	if (got < 0 || bytes + 1 == room)
		return got < 0 ? got : -E2BIG;
	to[bytes] = 0;
	for (line = to; (end = strchr(line, '\n')); line = end + 1) {
		if (!ss_status_counts(line))
			continue;
		memmove(to + kept, line, (size_t)(end + 1 - line));
		kept += (size_t)(end + 1 - line);
	}
	return (long)kept;
}

/* What a link or a small file says, or the error in its place: equal errors are equal. */
static size_t
ss_task_told(long answer, char *to)
{
	if (answer >= 0)
		return (size_t)answer;
	ss_child_number(to, (int32_t)-answer);
	return strlen(to);
}

/*
 * Everything about one task, as text. Returns its bytes, -ESRCH when it is gone, or another
 * negative errno.
 */
static long
ss_task_read(const struct ss_tasks *t, const char *tid, char *to)
{
	static const char *const links[] = {"/ns/cgroup", "/ns/ipc",  "/ns/mnt",  "/ns/net", "/ns/pid",
					    "/ns/time",   "/ns/user", "/ns/uts",  "/ns/pid_for_children",
					    "/ns/time_for_children", "/root"};
	const size_t room = SS_STATUS_BYTES - 16384; /* the rest is short */
	char path[64], *end = path + ss_child_copy_text(path, 32, tid);
	long bytes, fd;
	size_t at;
	unsigned i;

	(void)ss_child_copy_text(end, 32, "/status");
	if ((bytes = ss_task_status(t->directory, path, to, room)) < 0)
		return bytes == -ENOENT ? -ESRCH : bytes;
	at = (size_t)bytes;
	for (i = 0; i < sizeof(links) / sizeof(*links); i++) {
		(void)ss_child_copy_text(end, 32, links[i]);
		at += ss_task_told(ss_sys4(SYS_readlinkat, t->directory, path, to + at, 1024), to + at);
		to[at++] = '\n';
	}
	(void)ss_child_copy_text(end, 32, "/attr/current");
	if ((fd = ss_sys4(SYS_openat, t->directory, path, O_RDONLY | O_CLOEXEC, 0)) >= 0) {
		at += ss_task_told(ss_sys3(SYS_read, fd, to + at, 1024), to + at);
		(void)ss_sys1(SYS_close, fd); /* read only */
	}
	/* Gone meanwhile? Then what was read of it proves nothing either way. */
	*end = 0;
	return ss_sys4(SYS_faccessat, t->directory, path, F_OK, 0) < 0 ? -ESRCH : (long)at;
}

static int
ss_task_was_seen(const struct ss_tasks *t, int32_t tid)
{
	uint32_t i;

	for (i = t->count; i > 0; i--)
		if (t->seen[i - 1] == tid)
			return 1;
	return 0;
}

/* Compares one task with the first. Returns 0, or a positive errno: EXDEV when it differs. */
static int
ss_task_compare(struct ss_tasks *t, const char *tid)
{
	char *to = t->first_bytes ? t->next : t->first;
	const long bytes = ss_task_read(t, tid, to);

	if (bytes < 0)
		return bytes == -ESRCH ? 0 : (int)-bytes;
	if (!t->first_bytes) {
		t->first_bytes = (size_t)bytes;
		return 0;
	}
	return (size_t)bytes == t->first_bytes && !memcmp(t->first, t->next, t->first_bytes) ? 0 : EXDEV;
}

static int
ss_task_visit(struct ss_tasks *t, const char *name, uint32_t *ret_new)
{
	const int32_t tid = (int32_t)strtoul(name, NULL, 10);
	int error;

	if (tid <= 0 || ss_task_was_seen(t, tid))
		return 0;
	if (t->count == SS_TASK_LIST)
		return E2BIG;
	t->seen[t->count++] = tid;
	++*ret_new;
	if ((error = ss_task_compare(t, name)) == EXDEV)
		t->differs = tid;
	return error;
}

/* One walk over the list; ret_new counts the tasks that no walk has met before. */
static int
ss_tasks_walk(struct ss_tasks *t, uint32_t *ret_new)
{
	_Alignas(struct ss_dirent) char list[4096];
	long bytes, at;
	int error;

	if (lseek(t->directory, 0, SEEK_SET))
		return errno;
	*ret_new = 0;
	while ((bytes = ss_sys3(SYS_getdents64, t->directory, list, sizeof(list))) > 0) {
		for (at = 0; at < bytes;) {
			const struct ss_dirent *entry = (const struct ss_dirent *)(const void *)(list + at);

			if ((error = ss_task_visit(t, entry->name, ret_new)))
				return error;
			at += entry->bytes;
		}
	}
	return ss_child_error(bytes);
}

/*
 * A task made during a walk has the credentials of its maker, and both may escape one walk:
 * walk until one meets nobody new.
 */
static int
ss_tasks_settle(struct ss_tasks *t)
{
	uint32_t fresh = 1;
	int error = 0, round;

	for (round = 0; round < SS_TASK_ROUNDS && fresh && !error; round++)
		error = ss_tasks_walk(t, &fresh);
	return error ? error : fresh ? EAGAIN : 0;
}

/* Whether all tasks are alike: 0, EXDEV with the tid that is not, or the errno of the look. */
static int
ss_tasks_alike(int32_t *ret_differs)
{
	const size_t bytes = 2 * SS_STATUS_BYTES + SS_TASK_LIST * sizeof(int32_t);
	struct ss_tasks t;
	struct statfs fs;
	int error;

	memset(&t, 0, sizeof(t));
	t.first = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (t.first == MAP_FAILED)
		return errno;
	t.next = t.first + SS_STATUS_BYTES;
	t.seen = (int32_t *)(void *)(t.next + SS_STATUS_BYTES);
	t.directory = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t.directory < 0) {
		error = errno;
	} else {
		error = fstatfs(t.directory, &fs) ? errno : fs.f_type != SS_PROC_MAGIC ? ENOTSUP : 0;
		error = error ? error : ss_tasks_settle(&t);
		(void)close(t.directory); /* read only */
	}
	(void)munmap(t.first, bytes); /* our own mapping */
	*ret_differs = t.differs;
	return error;
}
