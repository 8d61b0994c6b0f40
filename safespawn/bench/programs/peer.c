/*
 * C's own ways to start a program and wait for it, timed here. As a library it is loaded into the Python
 * process that is measured; as a program it is the smallest process that forks, with ballast of its own:
 *
 *   peer TARGET MIB small|huge     then, a line each on stdin: WAY COUNT
 *
 * A line is answered with COUNT numbers: nanoseconds from the call to the end of the child.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* The user and group that own nothing, on every Linux. */
#define NOBODY 65534

enum way { FORK, VFORK, POSIX_SPAWN, FORK_ONLY, WAYS };

static int64_t
now_ns(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* What a careful program does in a child of fork. */
static void
become_nobody(void)
{
	if (setgroups(0, NULL) || setgid(NOBODY) || setuid(NOBODY))
		_exit(126);
}

static pid_t
start(enum way way, char *const argv[], int other)
{
	pid_t pid;
	int error;

	switch (way) {
	case FORK:
	case FORK_ONLY:
		pid = fork();
		if (pid == 0) {
			if (way == FORK_ONLY)
				_exit(0);
			if (other)
				become_nobody();
			(void)execve(argv[0], argv, environ);
			_exit(127);
		}
		return pid;
	case VFORK:
		pid = vfork();
		if (pid == 0) {
			(void)execve(argv[0], argv, environ);
			_exit(127);
		}
		return pid;
	default:
		error = posix_spawn(&pid, argv[0], NULL, NULL, argv, environ);
		errno = error;
		return error ? -1 : pid;
	}
}

/* Starts a program; its number is for peer_finish. stamp: where it tells its beginning, or NULL. -errno if not. */
int
peer_start(const char *target, const char *stamp, int way, int other)
{
	char *const argv[] = { (char *)target, (char *)stamp, NULL };
	pid_t pid;

	if (way < 0 || way >= WAYS)
		return -EINVAL;
	if (other && way != FORK)
		return -EOPNOTSUPP; /* on shared memory it would be what this library is against */
	pid = start((enum way)way, argv, other);
	return pid < 0 ? -errno : pid;
}

/* Waits for it. 0, or -errno; EPROTO for a program that did not end with 0. */
int
peer_finish(int pid)
{
	int status;

	while (waitpid(pid, &status, 0) != pid)
		if (errno != EINTR)
			return -errno;
	return status ? -EPROTO : 0;
}

/* Both. took: nanoseconds of the call, and until the end. */
int
peer_sample(const char *target, const char *stamp, int way, int other, int64_t took[2])
{
	const int64_t before = now_ns();
	const int pid = peer_start(target, stamp, way, other);
	int error;

	if (pid < 0)
		return pid;
	took[0] = now_ns() - before;
	error = peer_finish(pid);
	took[1] = now_ns() - before;
	return error;
}

static int
hold(size_t mebibytes, int huge)
{
	const size_t size = mebibytes << 20;
	char *at;

	if (!size)
		return 0;
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED || madvise(at, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		return -1;
	for (size_t i = 0; i < size; i += 4096)
		((volatile char *)at)[i] = 1;
	return 0;
}

int
main(int argc, char **argv)
{
	int64_t took[2];
	int way, count;

	if (argc != 4 || hold(strtoul(argv[2], NULL, 10), !strcmp(argv[3], "huge"))) {
		perror("peer");
		return 1;
	}
	(void)puts("ready");
	(void)fflush(stdout);
	while (scanf("%d %d", &way, &count) == 2) {
		for (int i = 0; i < count; i++) {
			const int error = peer_sample(argv[1], NULL, way, 0, took);

			if (error) {
				(void)printf("! %s", strerror(-error));
				break;
			}
			(void)printf(i ? "\t%lld" : "%lld", (long long)took[1]);
		}
		(void)puts("");
		(void)fflush(stdout);
	}
	return 0;
}
