/*
 * Tells everything that a program may have been given, as one JSON object on stdout. It is
 * linked statically, asks the kernel and not /proc where it can, and changes nothing before
 * it has looked: it runs as any user, in a chroot, under Landlock and filters, as process 1.
 *
 *   --then=PATH          runs PATH first, with the arguments that follow
 *   --try-read=PATH      opens a file or a directory for reading
 *   --try-write=PATH     opens a file for writing
 *   --try-truncate=PATH  empties a file by its name
 *   --try-make=PATH      makes a file, and removes it
 *   --try-exec=PATH      runs a program in a child, with the one argument --exit
 *   --regain=ID          tries to get back what was lost; ID is a uid and a gid besides 0
 *   --wait               tells, and ends when its stdin does
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAPS_MAX 64
#define FDS_MAX 1024
#define GROUPS_MAX 65536
#define INTERFACES_MAX 64
#define LIMITS 16
#define SIGNALS 64
/* The kernel's list of groups and of processors is larger than any that libc has a type for. */
static gid_t groups[GROUPS_MAX];
static unsigned char processors[8192];

struct caps {
	uint64_t effective, permitted, inheritable, bounding, ambient;
};

/* ------------------------------------------------------------------------- JSON */

static const char *between = "";

static void
key(const char *name)
{
	printf("%s\"%s\": ", between, name);
	between = ", ";
}

static void
opens(const char *name, char bracket)
{
	key(name);
	putchar(bracket);
	between = "";
}

static void
closes(char bracket)
{
	putchar(bracket);
	between = ", ";
}

static void
number(const char *name, long long value)
{
	key(name);
	printf("%lld", value);
}

static void
mask(const char *name, uint64_t value)
{
	key(name);
	printf("%llu", (unsigned long long)value);
}

/* Bytes become the characters with the same numbers, so that whatever they are can be told. */
static void
quoted(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		const unsigned char byte = (unsigned char)*text;

		if (byte < ' ' || byte > '~' || byte == '"' || byte == '\\')
			printf("\\u%04x", byte);
		else
			putchar(byte);
	}
	putchar('"');
}

static void
string(const char *name, const char *text)
{
	key(name);
	quoted(text);
}

/* An element of a list. */
static void
element(const char *text)
{
	fputs(between, stdout);
	between = ", ";
	quoted(text);
}

static void
strings(const char *name, char *const *list)
{
	opens(name, '[');
	for (; *list; list++)
		element(*list);
	closes(']');
}

/* ------------------------------------------------------------- who we are */

static int
by_number(const void *a, const void *b)
{
	const gid_t left = *(const gid_t *)a, right = *(const gid_t *)b;

	return (left > right) - (left < right);
}

static void
tell_ids(void)
{
	uid_t uid[3];
	gid_t gid[3];
	int count, i;

	(void)getresuid(&uid[0], &uid[1], &uid[2]);
	(void)getresgid(&gid[0], &gid[1], &gid[2]);
	key("uids");
	printf("[%u, %u, %u]", uid[0], uid[1], uid[2]);
	key("gids");
	printf("[%u, %u, %u]", gid[0], gid[1], gid[2]);
	/* Asked for an id that is none, these answer the present one. */
	number("fsuid", (uint32_t)syscall(SYS_setfsuid, -1l));
	number("fsgid", (uint32_t)syscall(SYS_setfsgid, -1l));
	count = (int)syscall(SYS_getgroups, GROUPS_MAX, groups);
	qsort(groups, count > 0 ? (size_t)count : 0, sizeof(*groups), by_number);
	opens("groups", '[');
	for (i = 0; i < count; i++) {
		printf("%s%u", between, groups[i]);
		between = ", ";
	}
	closes(']');
}

static long
caps_call(long call, struct caps *caps)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {
	    {(uint32_t)caps->effective, (uint32_t)caps->permitted, (uint32_t)caps->inheritable},
	    {(uint32_t)(caps->effective >> 32), (uint32_t)(caps->permitted >> 32),
	     (uint32_t)(caps->inheritable >> 32)},
	};
	const long answer = syscall(call, &header, data);

	caps->effective = (uint64_t)data[1].effective << 32 | data[0].effective;
	caps->permitted = (uint64_t)data[1].permitted << 32 | data[0].permitted;
	caps->inheritable = (uint64_t)data[1].inheritable << 32 | data[0].inheritable;
	return answer;
}

static struct caps
read_caps(void)
{
	struct caps caps = {0, 0, 0, 0, 0};
	int i;

	(void)caps_call(SYS_capget, &caps);
	for (i = 0; i < CAPS_MAX; i++) {
		if (prctl(PR_CAPBSET_READ, i, 0, 0, 0) == 1)
			caps.bounding |= 1ull << i;
		if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, i, 0, 0) == 1)
			caps.ambient |= 1ull << i;
	}
	return caps;
}

static void
tell_privileges(void)
{
	const struct caps caps = read_caps();
	int pdeathsig = -1, subreaper = -1;

	mask("effective", caps.effective);
	mask("permitted", caps.permitted);
	mask("inheritable", caps.inheritable);
	mask("bounding", caps.bounding);
	mask("ambient", caps.ambient);
	number("securebits", prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
	number("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	number("seccomp", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
	number("dumpable", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
	number("keepcaps", prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0));
	(void)prctl(PR_GET_PDEATHSIG, &pdeathsig, 0, 0, 0);
	number("pdeathsig", pdeathsig);
	(void)prctl(PR_GET_CHILD_SUBREAPER, &subreaper, 0, 0, 0);
	number("subreaper", subreaper);
}

/* -------------------------------------------------------- how we are kept */

static void
tell_process(void)
{
	const mode_t umask_now = umask(0);

	(void)umask(umask_now);
	number("pid", getpid());
	number("ppid", getppid());
	number("pgid", getpgid(0));
	number("sid", getsid(0));
	number("umask", umask_now);
	number("nice", 20 - syscall(SYS_getpriority, PRIO_PROCESS, 0));
}

static void
tell_scheduling(void)
{
	struct sched_param param = {0};
	const long bytes = syscall(SYS_sched_getaffinity, 0, sizeof(processors), processors);
	long i;

	number("policy", syscall(SYS_sched_getscheduler, 0));
	(void)syscall(SYS_sched_getparam, 0, &param);
	number("priority", param.sched_priority);
	opens("cpus", '[');
	for (i = 0; i < bytes * 8; i++) {
		if (!(processors[i / 8] >> (i % 8) & 1))
			continue;
		printf("%s%ld", between, i);
		between = ", ";
	}
	closes(']');
}

static void
tell_limits(void)
{
	int i;

	opens("limits", '{');
	for (i = 0; i < LIMITS; i++) {
		uint64_t limit[2] = {0, 0};
		char name[8];

		(void)syscall(SYS_prlimit64, 0, i, NULL, limit);
		(void)snprintf(name, sizeof(name), "%d", i);
		key(name);
		printf("[%llu, %llu]", (unsigned long long)limit[0], (unsigned long long)limit[1]);
	}
	closes('}');
}

/* By the system call, because libc's functions hide the signals that libc uses itself. */
static void
tell_signals(void)
{
	uint64_t blocked = 0, ignored = 0, caught = 0;
	int i;

	(void)syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &blocked, 8);
	for (i = 1; i <= SIGNALS; i++) {
		uintptr_t action[8] = {0}; /* the handler comes first */

		(void)syscall(SYS_rt_sigaction, i, NULL, action, 8);
		if (action[0] == (uintptr_t)SIG_IGN)
			ignored |= 1ull << (i - 1);
		else if (action[0] != (uintptr_t)SIG_DFL)
			caught |= 1ull << (i - 1);
	}
	mask("blocked", blocked);
	mask("ignored", ignored);
	mask("caught", caught);
}

/* ------------------------------------------------------- what is around us */

static const char *
kind(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
		return "file";
	case S_IFDIR:
		return "directory";
	case S_IFCHR:
		return "device";
	case S_IFIFO:
		return "pipe";
	case S_IFSOCK:
		return "socket";
	default:
		return "other";
	}
}

static void
tell_descriptors(void)
{
	int fd;

	opens("fds", '{');
	for (fd = 0; fd < FDS_MAX; fd++) {
		const int flags = fcntl(fd, F_GETFD);
		struct stat seen;
		char name[8];

		if (flags < 0 || fstat(fd, &seen))
			continue;
		(void)snprintf(name, sizeof(name), "%d", fd);
		opens(name, '{');
		number("flags", flags);
		number("access", fcntl(fd, F_GETFL) & O_ACCMODE);
		string("kind", kind(seen.st_mode));
		mask("device", seen.st_dev);
		mask("inode", seen.st_ino);
		closes('}');
	}
	closes('}');
}

static void
tell_namespaces(void)
{
	static const char *const names[] = {"cgroup", "ipc", "mnt",  "net", "pid", "pid_for_children",
					    "time",   "time_for_children", "user", "uts"};
	size_t i;

	opens("namespaces", '{');
	for (i = 0; i < sizeof(names) / sizeof(*names); i++) {
		char path[64];
		struct stat seen;

		(void)snprintf(path, sizeof(path), "/proc/self/ns/%s", names[i]);
		key(names[i]);
		if (stat(path, &seen))
			fputs("null", stdout);
		else
			printf("%llu", (unsigned long long)seen.st_ino);
	}
	closes('}');
}

static void
tell_place(void)
{
	static char cwd[1 << 16];
	struct utsname uts;

	/* The call itself, because libc's does without it where it fails. */
	if (syscall(SYS_getcwd, cwd, sizeof(cwd)) < 0)
		number("cwd", errno);
	else
		string("cwd", cwd);
	if (uname(&uts))
		number("hostname", errno);
	else
		string("hostname", uts.nodename);
}

static void
tell_interfaces(void)
{
	const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int i;

	opens("interfaces", '[');
	for (i = 1; fd >= 0 && i <= INTERFACES_MAX; i++) {
		struct ifreq asked = {.ifr_ifindex = i};

		if (!ioctl(fd, SIOCGIFNAME, &asked))
			element(asked.ifr_name);
	}
	closes(']');
	if (fd >= 0)
		(void)close(fd);
}

/* Returns the text of a file of /proc, or NULL. */
static char *
contents(const char *path)
{
	static char text[1 << 16];
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		(void)close(fd);
	if (got < 0)
		return NULL;
	text[got] = '\0';
	return text;
}

/* A file of /proc with one word in it; null where it is missing. */
static void
tell_word(const char *name, const char *path)
{
	char *text = contents(path);

	if (text) {
		text[strcspn(text, "\n")] = '\0';
		string(name, text);
		return;
	}
	key(name);
	fputs("null", stdout);
}

/* What a program has from the one before, for which there is no option. */
static void
tell_inherited(void)
{
	uint64_t pending = 0;

	(void)syscall(SYS_rt_sigpending, &pending, 8);
	mask("pending", pending);
	number("personality", personality(0xffffffff));
	number("io_priority", syscall(SYS_ioprio_get, 1, 0)); /* IOPRIO_WHO_PROCESS */
	number("no_huge_pages", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	tell_word("oom_score_adj", "/proc/self/oom_score_adj");
	tell_word("coredump_filter", "/proc/self/coredump_filter");
}

/* What only /proc tells; null where it is missing. */
static void
tell_proc(void)
{
	char *text = contents("/proc/self/cgroup"), *line;
	int field;

	if (!text) {
		key("cgroups");
		fputs("null", stdout);
	} else {
		opens("cgroups", '[');
		for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
			element(line);
		closes(']');
	}
	text = contents("/proc/self/stat");
	key("terminal");
	if (!text || !(text = strrchr(text, ')'))) {
		fputs("null", stdout);
		return;
	}
	/* proc_pid_stat(5): the name ends field 2, the terminal is field 7. */
	for (field = 2; field < 7 && text; field++)
		text = strchr(text + 1, ' ');
	printf("%d", text ? atoi(text + 1) : -1);
}

/* ---------------------------------------------------------- what we may do */

static int
try_open(const char *path, int flags)
{
	const int fd = open(path, flags | O_CLOEXEC | O_NOCTTY, 0600);

	if (fd < 0)
		return errno;
	(void)close(fd);
	return 0;
}

/* Without opening it, which is a right of its own. */
static int
try_truncate(const char *path)
{
	return truncate(path, 0) ? errno : 0;
}

static int
try_make(const char *path)
{
	const int error = try_open(path, O_WRONLY | O_CREAT | O_EXCL);

	return error || !unlink(path) ? error : errno;
}

/* The child's errno comes by its exit code; one that ran the program ends with 0. */
static int
try_exec(const char *path)
{
	char exit_option[] = "--exit";
	char *const argv[] = {exit_option, exit_option, NULL};
	int status = -1;
	const pid_t pid = fork();

	if (pid == 0) {
		(void)execv(path, argv);
		_exit(errno);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

static void
tell_tries(char *const *argv)
{
	static const struct {
		const char *option;
		int flags;
		int (*call)(const char *);
	} tries[] = {
	    {"--try-read=", O_RDONLY, NULL},
	    {"--try-write=", O_WRONLY, NULL},
	    {"--try-truncate=", 0, try_truncate},
	    {"--try-make=", 0, try_make},
	    {"--try-exec=", 0, try_exec},
	};
	size_t i;

	opens("tries", '{');
	for (; *argv; argv++) {
		for (i = 0; i < sizeof(tries) / sizeof(*tries); i++) {
			const size_t length = strlen(tries[i].option);
			const char *path = *argv + length;

			if (strncmp(*argv, tries[i].option, length))
				continue;
			number(*argv + strlen("--try-"),
			       tries[i].call ? tries[i].call(path) : try_open(path, tries[i].flags));
		}
	}
	closes('}');
}

/* ------------------------------------------------------------------ regain */

static long
raw(long call, long a, long b, long c)
{
	return syscall(call, a, b, c);
}

static long
fs_id(long call, long id)
{
	(void)raw(call, id, 0, 0); /* answers the one before, whatever comes of it */
	return raw(call, -1, 0, 0) == id ? 0 : -1;
}

static int
get_id(int way, long id, int is_group)
{
	switch (way) {
	case 0:
		return !raw(is_group ? SYS_setresgid : SYS_setresuid, id, -1, -1);
	case 1:
		return !raw(is_group ? SYS_setresgid : SYS_setresuid, -1, id, -1);
	case 2:
		return !raw(is_group ? SYS_setresgid : SYS_setresuid, -1, -1, id);
	case 3:
		return !raw(is_group ? SYS_setregid : SYS_setreuid, id, id, 0);
	case 4:
		return !raw(is_group ? SYS_setgid : SYS_setuid, id, 0, 0);
	default:
		return !fs_id(is_group ? SYS_setfsgid : SYS_setfsuid, id);
	}
}

/* In a child, so that what is gained by one way does not help the next. */
static void
regain_id(long id, int is_group)
{
	static const char *const ways[] = {"real", "effective", "saved", "both", "all", "fs"};
	uint32_t now[3];
	int way, status;

	(void)syscall(is_group ? SYS_getresgid : SYS_getresuid, &now[0], &now[1], &now[2]);
	for (way = 0; way < 6; way++) {
		char name[64];
		pid_t pid;

		if (now[0] == id || now[1] == id || now[2] == id)
			return;
		pid = fork();
		if (pid == 0)
			_exit(get_id(way, id, is_group));
		if (pid > 0 && waitpid(pid, &status, 0) == pid && status == 0)
			continue;
		(void)snprintf(name, sizeof(name), "%s %ld %s", is_group ? "gid" : "uid", id, ways[way]);
		element(pid < 0 ? "no child" : name);
	}
}

/*
 * Each set for itself: a set may be open where another is not. The kernel answers 0 for
 * capabilities that it does not know, so what counts is what we have afterwards.
 */
static void
regain_caps(void)
{
	struct caps held = read_caps();
	int i;

	for (i = 0; i < CAPS_MAX; i++) {
		const uint64_t bit = 1ull << i;
		struct caps more = held, now;
		char name[64];

		if (held.permitted & bit)
			continue;
		more.permitted |= bit;
		(void)caps_call(SYS_capset, &more);
		more = held;
		more.inheritable |= bit;
		(void)caps_call(SYS_capset, &more);
		(void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0);
		now = read_caps();
		if (!memcmp(&now, &held, sizeof(held)))
			continue;
		(void)snprintf(name, sizeof(name), "capability %d", i);
		element(name);
		held = now;
	}
}

static void
regain_rest(void)
{
	const int bits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
	const gid_t root = 0;
	int i;

	if (!syscall(SYS_setgroups, 1, &root))
		element("groups: root's");
	if (!syscall(SYS_setgroups, 0, NULL))
		element("groups: none");
	if (bits && !prctl(PR_SET_SECUREBITS, 0, 0, 0, 0))
		element("securebits");
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) && !prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0))
		element("no_new_privs");
	for (i = 0; i < LIMITS; i++) {
		uint64_t limit[2];
		char name[32];

		(void)syscall(SYS_prlimit64, 0, i, NULL, limit);
		(void)snprintf(name, sizeof(name), "limit %d", i);
		if (limit[1]++ < UINT64_MAX && !syscall(SYS_prlimit64, 0, i, limit, NULL))
			element(name);
	}
}

static void
tell_regained(char *const *argv)
{
	static const char option[] = "--regain=";

	opens("regained", '[');
	for (; *argv; argv++) {
		if (strncmp(*argv, option, sizeof(option) - 1))
			continue;
		const long id = atol(*argv + sizeof(option) - 1);

		regain_id(0, 0);
		regain_id(0, 1);
		regain_id(id, 0);
		regain_id(id, 1);
		regain_caps();
		regain_rest();
	}
	closes(']');
}

int
main(int argc, char **argv, char **envp)
{
	static const char then[] = "--then=";
	char byte;

	if (argc > 1 && !strcmp(argv[1], "--exit"))
		return 0;
	if (argc > 1 && !strncmp(argv[1], then, sizeof(then) - 1)) {
		char *path = argv[1] + sizeof(then) - 1;

		argv[1] = path;
		(void)execve(path, argv + 1, envp);
		return errno;
	}
	putchar('{');
	tell_descriptors();
	tell_process();
	tell_ids();
	tell_privileges();
	tell_scheduling();
	tell_limits();
	tell_signals();
	tell_namespaces();
	tell_place();
	tell_interfaces();
	tell_proc();
	tell_inherited();
	strings("argv", argv);
	strings("environ", envp);
	tell_tries(argv + 1);
	tell_regained(argv + 1);
	puts("}");
	fflush(stdout);
	while (argc > 1 && !strcmp(argv[argc - 1], "--wait") && read(0, &byte, 1) > 0)
		;
	return ferror(stdout) ? 1 : 0;
}
