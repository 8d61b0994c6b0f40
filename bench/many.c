/*
 * Many programs as libc starts them: posix_spawn in a loop, all running, then waitpid for each.
 */
#include <errno.h>
#include <spawn.h>
#include <stdint.h>
#include <stdlib.h>
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

/* Starts the program count times and waits for all; returns nanoseconds until all were started, or a negative errno. */
static int64_t
many_run(char *path, int count)
{
	char *argv[] = {path, 0};
	pid_t *pids = malloc(count * sizeof(*pids));
	const int64_t start = now_ns();
	int64_t took;
	int i, made, error = pids ? 0 : ENOMEM;

	for (made = 0; made < count && !error; made += !error)
		error = posix_spawn(&pids[made], path, 0, 0, argv, environ);
	took = now_ns() - start;
	for (i = 0; i < made; i++)
		if (waitpid(pids[i], NULL, 0) != pids[i])
			error = errno;
	free(pids);
	return error ? -error : took;
}
