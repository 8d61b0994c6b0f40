/*
 * The yardstick: posix_spawn + waitpid of libc, called from C, timed in C.
 * Every round gets its own clock readings, so that a median and a spread can be had.
 */
#include <errno.h>
#include <spawn.h>
#include <stdint.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

static int64_t
now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* Runs the program once; returns nanoseconds, or a negative errno. */
static int64_t
baseline_run(char *path)
{
	char *argv[] = {path, 0};
	const int64_t start = now_ns();
	int status;
	pid_t pid;
	int error = posix_spawn(&pid, path, 0, 0, argv, environ);

	if (error)
		return -error;
	if (waitpid(pid, &status, 0) != pid)
		return -errno;
	return now_ns() - start;
}
