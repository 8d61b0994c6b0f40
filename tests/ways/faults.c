/*
 * Loaded in front of libc (LD_PRELOAD): chosen calls on the files of one directory fail, are cut
 * short, or are the last thing that the process does. All other calls go through.
 *
 * The program that is tested sets `faults` (tests/faulting.py); nothing happens until `dir` is set.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SEEN_MAX 4096
#define RULES 4

enum call { CALL_WRITE, CALL_PWRITE, CALL_FDATASYNC, CALL_FSYNC, CALL_FALLOCATE, CALL_FSTAT, CALL_OPEN, CALL_RENAME };

/* What happens to the call with number `at` of its kind, counted from 1, and to `times` in a row. */
struct rule {
	int32_t call;       /* which call, -1 for any of them */
	char only[40];      /* how the path of the file must end; empty for any */
	int32_t error;      /* what it answers instead of being made; 0 for none */
	int32_t take;       /* a write takes so many bytes, below 0: all but so many; 0 for all */
	int32_t kill;       /* SIGKILL: 1 before it, 2 after it (or after the part that `take` leaves) */
	int32_t park;       /* the call waits for a byte from this descriptor; 0 for none */
	uint32_t at, times; /* 0 for never */
	uint32_t matched;   /* how many such calls there were */
};

struct faults {
	char dir[200];    /* the directory; empty for none */
	int32_t no_sync;  /* fsync and fdatasync are not made: for speed */
	uint32_t done;    /* how often a rule was applied */
	uint32_t seen;    /* all calls on files of the directory: which they were */
	struct rule rules[RULES];
	uint8_t calls[SEEN_MAX];
};

struct faults faults;

enum answer { THROUGH, FAIL, SHORT };

static int
ends_with(const char *path, const char *end)
{
	size_t size = strlen(path), bytes = strlen(end);

	return size >= bytes && !strcmp(path + size - bytes, end);
}

static int
is_ours(const char *path)
{
	size_t dir = strlen(faults.dir);

	return dir > 0 && !strncmp(path, faults.dir, dir) && (path[dir] == '/' || path[dir] == '\0');
}

/* The rule for this call: counted for all that fit, the first whose turn it is applies. */
static struct rule *
rule_for(enum call call, const char *path)
{
	struct rule *found = NULL;

	for (struct rule *rule = faults.rules; rule < faults.rules + RULES; rule++) {
		uint32_t number;

		if (rule->at == 0 || (rule->call >= 0 && rule->call != (int32_t)call) || !ends_with(path, rule->only))
			continue;
		number = __atomic_add_fetch(&rule->matched, 1, __ATOMIC_RELAXED);
		if (found == NULL && number >= rule->at && number - rule->at < rule->times)
			found = rule;
	}
	return found;
}

static enum answer
judge(enum call call, const char *path, struct rule **ret_rule)
{
	uint32_t number;

	*ret_rule = NULL;
	if (!is_ours(path))
		return THROUGH;
	number = __atomic_fetch_add(&faults.seen, 1, __ATOMIC_RELAXED);
	if (number < SEEN_MAX)
		faults.calls[number] = (uint8_t)call;
	if ((*ret_rule = rule_for(call, path)) == NULL)
		return THROUGH;
	(void)__atomic_add_fetch(&faults.done, 1, __ATOMIC_RELAXED);
	if ((*ret_rule)->kill == 1)
		(void)kill(getpid(), SIGKILL);
	if ((*ret_rule)->park) {
		char byte;

		(void)syscall(SYS_read, (*ret_rule)->park, &byte, 1);
	}
	if ((*ret_rule)->error) {
		errno = (*ret_rule)->error;
		return FAIL;
	}
	return SHORT;
}

static enum answer
judge_fd(enum call call, int fd, struct rule **ret_rule)
{
	char link[40], path[300];
	int before = errno;
	ssize_t bytes;

	if (faults.dir[0] == '\0')
		return THROUGH;
	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	bytes = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof(path) - 1);
	errno = before;
	if (bytes < 0)
		return THROUGH;
	path[bytes] = '\0';
	return judge(call, path, ret_rule);
}

static size_t
part_of(const struct rule *rule, size_t bytes)
{
	if (rule->take > 0 && (size_t)rule->take < bytes)
		return (size_t)rule->take;
	return rule->take < 0 && (size_t)-rule->take < bytes ? bytes - (size_t)-rule->take : bytes;
}

static long
ended(const struct rule *rule, long answer)
{
	if (rule->kill == 2)
		(void)kill(getpid(), SIGKILL);
	return answer;
}

ssize_t
write(int fd, const void *data, size_t bytes)
{
	struct rule *rule;

	switch (judge_fd(CALL_WRITE, fd, &rule)) {
	case FAIL: return -1;
	case SHORT: return ended(rule, syscall(SYS_write, fd, data, part_of(rule, bytes)));
	default: return syscall(SYS_write, fd, data, bytes);
	}
}

static ssize_t
pwrite_any(int fd, const void *data, size_t bytes, off_t at)
{
	struct rule *rule;

	switch (judge_fd(CALL_PWRITE, fd, &rule)) {
	case FAIL: return -1;
	case SHORT: return ended(rule, syscall(SYS_pwrite64, fd, data, part_of(rule, bytes), at));
	default: return syscall(SYS_pwrite64, fd, data, bytes, at);
	}
}

ssize_t
pwrite(int fd, const void *data, size_t bytes, off_t at)
{
	return pwrite_any(fd, data, bytes, at);
}

ssize_t
pwrite64(int fd, const void *data, size_t bytes, off_t at)
{
	return pwrite_any(fd, data, bytes, at);
}

static int
sync_any(enum call call, int fd, long number)
{
	struct rule *rule;
	enum answer answer = judge_fd(call, fd, &rule);

	if (answer == FAIL || (!(faults.no_sync && faults.dir[0]) && syscall(number, fd)))
		return -1;
	return answer == SHORT ? (int)ended(rule, 0) : 0;
}

int
fdatasync(int fd)
{
	return sync_any(CALL_FDATASYNC, fd, SYS_fdatasync);
}

int
fsync(int fd)
{
	return sync_any(CALL_FSYNC, fd, SYS_fsync);
}

static int
fallocate_any(int fd, int mode, off_t from, off_t bytes)
{
	struct rule *rule;
	enum answer answer = judge_fd(CALL_FALLOCATE, fd, &rule);
	long made;

	if (answer == FAIL)
		return -1;
	made = syscall(SYS_fallocate, fd, mode, from, bytes);
	return (int)(answer == SHORT ? ended(rule, made) : made);
}

int
fallocate(int fd, int mode, off_t from, off_t bytes)
{
	return fallocate_any(fd, mode, from, bytes);
}

int
fallocate64(int fd, int mode, off_t from, off_t bytes)
{
	return fallocate_any(fd, mode, from, bytes);
}

static int
fstat_any(int fd, struct stat *seen)
{
	static int (*next)(int, struct stat *);
	struct rule *rule;

	if (next == NULL)
		next = (int (*)(int, struct stat *))dlsym(RTLD_NEXT, "fstat");
	return judge_fd(CALL_FSTAT, fd, &rule) == FAIL ? -1 : next(fd, seen);
}

int
fstat(int fd, struct stat *seen)
{
	return fstat_any(fd, seen);
}

int
fstat64(int fd, struct stat64 *seen)
{
	return fstat_any(fd, (struct stat *)seen);
}

static int
open_any(int dir, const char *path, int flags, mode_t mode)
{
	struct rule *rule;
	enum answer answer = judge(CALL_OPEN, path, &rule);
	long fd;

	if (answer == FAIL)
		return -1;
	fd = syscall(SYS_openat, dir, path, flags, mode);
	return (int)(answer == SHORT ? ended(rule, fd) : fd);
}

#define OPENER(name, dir, ...)                                       \
	int                                                          \
	name(__VA_ARGS__ const char *path, int flags, ...)           \
	{                                                            \
		mode_t mode = 0;                                     \
		va_list rest;                                        \
                                                                     \
		if (flags & (O_CREAT | __O_TMPFILE)) {               \
			va_start(rest, flags);                       \
			mode = (mode_t)va_arg(rest, int);            \
			va_end(rest);                                \
		}                                                    \
		return open_any(dir, path, flags, mode);             \
	}
#define WITH_DIR int at,

OPENER(open, AT_FDCWD, )
OPENER(open64, AT_FDCWD, )
OPENER(openat, at, WITH_DIR)
OPENER(openat64, at, WITH_DIR)

int
rename(const char *from, const char *to)
{
	struct rule *rule;
	enum answer answer = judge(CALL_RENAME, from, &rule);
	long made;

	if (answer == FAIL)
		return -1;
	made = syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
	return (int)(answer == SHORT ? ended(rule, made) : made);
}
