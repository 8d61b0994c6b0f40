/*
 * Runs a program without transparent huge pages, on machines that give them unasked. The setting outlives execve.
 *
 *   nohuge PROGRAM [ARG ...]
 */
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
	if (argc < 2 || prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		return 126;
	(void)execv(argv[1], argv + 1);
	perror(argv[1]);
	return 127;
}
