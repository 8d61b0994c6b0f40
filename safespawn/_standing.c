/*
 * What a child has from its parent without being told, for children that are born of the
 * helper: they have it from there, as it was when the helper was started. Part of _native.c.
 * helper-alike (T-42): what has changed since is made good by the plan, or the helper is not
 * asked.
 *
 * Compared are: ids, groups, capabilities, no_new_privs, seccomp, namespaces, root and security
 * label (as _tasks.c reads them); cgroup, OOM score, what a core dump has, session, controlling terminal, scheduling,
 * processors, I/O priority, timer slack, personality, securebits, and what prctl(2) has on memory. Made good are: working directory, umask, niceness, process group, limits, ignored signals.
 * Not seen: keyrings, Landlock domains, and what is not inherited anyway.
 */
#include <sched.h>
#include <sys/personality.h>

#define SS_WHERE_BYTES 4096u /* of /proc/self/cgroup; a longer one cannot be compared */
#define SS_IOPRIO_WHO_PROCESS 1
#define SS_STATX_MNT_ID 0x1000u /* Linux 5.8: struct statx, linux/stat.h */
#define SS_STATX_BYTES 256u
#define SS_STATX_AT_MASK 0u
#define SS_STATX_AT_MNT_ID 144u
#define SS_STAT_BYTES 1024u /* of /proc/thread-self/stat: 52 numbers and a name of 64 bytes at most */
#define SS_GET_MDWE 66 /* PR_GET_MDWE, Linux 6.3; before it the answer is an error, alike */

/* Why a helper cannot stand in for us; Python has the words. */
enum {
	SS_DIFFERS_NOT,
	SS_DIFFERS_UNSEEN,  /* we could not look */
	SS_DIFFERS_WHO,	    /* ids, capabilities, namespaces, ... */
	SS_DIFFERS_CGROUP,
	SS_DIFFERS_SESSION, /* or terminal */
	SS_DIFFERS_SCHEDULE, /* and what else belongs to one thread */
	SS_DIFFERS_THREAD,   /* pdeathsig goes by the thread that started the helper (prctl(2)) */
	SS_DIFFERS_RAISED,   /* niceness or limits that a child may not give itself */
};

/* Attributes of one thread or of its memory, plain values: compared byte by byte. */
struct ss_schedule {
	int32_t policy, priority, io_priority, reserved;
	uint64_t timer_slack, persona, securebits, huge_pages, memory_errors, no_new_code;
	unsigned char cpus[1024]; /* 8192 processors, the most that Linux can be built for */
};

struct ss_standing {
	struct ss_creds creds;
	struct ss_schedule schedule;
	int32_t session, group, nice, terminal;
	uint64_t cwd_device, cwd_inode, cwd_mount;
	uint64_t ignored; /* bit n - 1 for signal n */
	uint32_t umask;
	struct rlimit limits[RLIM_NLIMITS];
	size_t who_bytes, where_bytes;
	char where[SS_WHERE_BYTES];
	char who[SS_STATUS_BYTES]; /* last, and mostly never touched */
};

static struct ss_standing *
ss_standing_map(void)
{
	void *made = mmap(NULL, sizeof(struct ss_standing), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return made == MAP_FAILED ? NULL : made;
}

static void
ss_standing_free(struct ss_standing *s)
{
	if (s)
		(void)munmap(s, sizeof(*s)); /* our own mapping */
}

/* The number behind a name at the start of a line; hexadecimal, or octal for the umask. */
static int
ss_status_number(const char *text, const char *name, int base, uint64_t *ret)
{
	const char *at = strstr(text, name);

	if (!at || (at != text && at[-1] != '\n'))
		return ENOTSUP;
	*ret = strtoull(at + strlen(name), NULL, base);
	return 0;
}

/* A whole file of /proc. Returns 0 or an errno; E2BIG if it has more than fits with a NUL. */
static int
ss_proc_read(const char *path, char *to, size_t room, size_t *ret_bytes)
{
	const long fd = ss_sys4(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	size_t bytes = 0;
	long got;

	if (fd < 0)
		return ss_child_error(fd);
	while ((got = ss_sys3(SYS_read, fd, to + bytes, room - 1 - bytes)) > 0)
		bytes += (size_t)got;
	(void)ss_sys1(SYS_close, fd); /* read only */
	to[bytes] = 0;
	*ret_bytes = bytes;
	return got < 0 ? (int)-got : bytes + 1 == room ? E2BIG : 0;
}

/* The umask can be read nowhere else without being set (umask(2)), for all threads. */
static int
ss_standing_status(struct ss_standing *s)
{
	uint64_t mask = 0;
	size_t bytes;
	int error;

	/* Into the room that the next step fills. */
	if ((error = ss_proc_read("/proc/thread-self/status", s->who, sizeof(s->who), &bytes)) ||
	    (error = ss_status_number(s->who, "Umask:", 8, &mask)) ||
	    (error = ss_status_number(s->who, "SigIgn:", 16, &s->ignored)))
		return error;
	s->umask = (uint32_t)mask;
	return 0;
}

static int
ss_standing_who(struct ss_standing *s)
{
	struct ss_tasks t;
	char tid[16];
	long bytes;

	memset(&t, 0, sizeof(t));
	ss_child_number(tid, (int32_t)ss_sys0(SYS_gettid));
	t.directory = (int)ss_sys4(SYS_openat, AT_FDCWD, "/proc/self/task", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (t.directory < 0)
		return -t.directory;
	bytes = ss_task_read(&t, tid, s->who);
	(void)ss_sys1(SYS_close, t.directory); /* read only */
	if (bytes < 0)
		return (int)-bytes;
	s->who_bytes = (size_t)bytes;
	return 0;
}

static int
ss_standing_schedule(struct ss_schedule *s)
{
	int32_t priority; /* all that struct sched_param is for the kernel */
	long answer;

	memset(s, 0, sizeof(*s));
	/* Not by libc: musl has these for the name only, since they are of a thread (sched_setscheduler(2)). */
	s->policy = (int32_t)ss_sys1(SYS_sched_getscheduler, 0);
	if (s->policy < 0)
		return -s->policy;
	if ((answer = ss_sys2(SYS_sched_getparam, 0, &priority)))
		return ss_child_error(answer);
	s->priority = priority;
	s->io_priority = (int32_t)ss_sys2(SYS_ioprio_get, SS_IOPRIO_WHO_PROCESS, 0); /* or its error, alike */
	s->timer_slack = (uint64_t)ss_sys5(SYS_prctl, PR_GET_TIMERSLACK, 0, 0, 0, 0);
	s->persona = (uint64_t)ss_sys1(SYS_personality, 0xffffffff); /* which asks only */
	s->securebits = (uint64_t)ss_sys1(SYS_prctl, PR_GET_SECUREBITS); /* no file of /proc has these */
	s->huge_pages = (uint64_t)ss_sys5(SYS_prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0);
	s->memory_errors = (uint64_t)ss_sys5(SYS_prctl, PR_MCE_KILL_GET, 0, 0, 0, 0);
	s->no_new_code = (uint64_t)ss_sys5(SYS_prctl, SS_GET_MDWE, 0, 0, 0, 0);
	answer = ss_sys3(SYS_sched_getaffinity, 0, sizeof(s->cpus), s->cpus);
	return ss_child_error(answer);
}

/* One directory can be mounted at several places. Before Linux 5.8 the kernel does not say at which: then 0, alike. */
static uint64_t
ss_standing_mount(void)
{
	_Alignas(uint64_t) unsigned char told[SS_STATX_BYTES] = {0};
	const long answer = ss_sys5(SYS_statx, AT_FDCWD, ".", 0, SS_STATX_MNT_ID, told);
	uint64_t mount = 0;
	uint32_t mask;

	memcpy(&mask, told + SS_STATX_AT_MASK, sizeof(mask));
	if (!answer && (mask & SS_STATX_MNT_ID))
		memcpy(&mount, told + SS_STATX_AT_MNT_ID, sizeof(mount));
	return mount;
}

/* The controlling terminal: the fifth behind the name (proc(5)). One of a session may have given up what others have. */
static int
ss_standing_terminal(struct ss_standing *s)
{
	char text[SS_STAT_BYTES], *at;
	size_t bytes;
	int error = ss_proc_read("/proc/thread-self/stat", text, sizeof(text), &bytes), field;

	if (error)
		return error;
	at = strrchr(text, ')');
	for (field = 0; at && field < 5; field++)
		at = strchr(at + 1, ' ');
	if (!at)
		return ENOTSUP;
	s->terminal = (int32_t)strtol(at, NULL, 10);
	return 0;
}

static int
ss_standing_plain(struct ss_standing *s)
{
	struct stat here;
	unsigned i;
	long priority;
	int error;

	if ((priority = ss_sys2(SYS_getpriority, PRIO_PROCESS, 0)) < 0) /* of the kernel: 1 to 40 */
		return (int)-priority;
	s->nice = 20 - (int32_t)priority;
	if ((s->session = (int32_t)getsid(0)) < 0 || (s->group = (int32_t)getpgid(0)) < 0 || stat(".", &here))
		return errno;
	s->cwd_device = here.st_dev;
	s->cwd_inode = here.st_ino;
	s->cwd_mount = ss_standing_mount();
	if ((error = ss_standing_terminal(s)))
		return error;
	for (i = 0; i < RLIM_NLIMITS; i++)
		if (getrlimit((int)i, &s->limits[i]))
			return errno;
	return 0;
}

/*
 * Its cgroup, and behind that how readily the kernel kills it when memory runs out, and what of its memory goes into a
 * core dump, if the kernel has those (proc(5)).
 */
static int
ss_standing_where(struct ss_standing *s)
{
	static const char *const paths[] = {"/proc/thread-self/cgroup", "/proc/self/oom_score_adj",
					    "/proc/self/coredump_filter"};
	size_t more;
	unsigned i;
	int error = 0;

	s->where_bytes = 0;
	for (i = 0; i < sizeof(paths) / sizeof(*paths) && !error; i++) {
		more = 0;
		error = ss_proc_read(paths[i], s->where + s->where_bytes, sizeof(s->where) - s->where_bytes, &more);
		if (i == 2 && error == ENOENT) /* CONFIG_ELF_CORE */
			error = 0;
		s->where_bytes += more;
	}
	return error;
}

/* Looks at the calling thread, whose children inherit from it. Returns 0 or an errno. */
static int
ss_standing_read(struct ss_standing *s)
{
	int error = ss_child_read_creds(&s->creds);

	error = error ? error : ss_standing_plain(s);
	error = error ? error : ss_standing_schedule(&s->schedule);
	error = error ? error : ss_standing_where(s);
	error = error ? error : ss_standing_status(s);
	return error ? error : ss_standing_who(s);
}

/* Whether a child of who stood like `then` would stand like one of `now`, but for what can be made good. */
static int
ss_standing_differs(const struct ss_standing *now, const struct ss_standing *then, int keeps)
{
	if (!SS_GUARDED(HELPER_ALIKE))
		return SS_DIFFERS_NOT;
	if (!keeps && (now->who_bytes != then->who_bytes || memcmp(now->who, then->who, now->who_bytes)))
		return SS_DIFFERS_WHO;
	if (now->where_bytes != then->where_bytes || memcmp(now->where, then->where, now->where_bytes))
		return SS_DIFFERS_CGROUP;
	if (now->session != then->session || now->terminal != then->terminal)
		return SS_DIFFERS_SESSION;
	return memcmp(&now->schedule, &then->schedule, sizeof(now->schedule)) ? SS_DIFFERS_SCHEDULE : SS_DIFFERS_NOT;
}
