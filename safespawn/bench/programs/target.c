/*
 * The program that is started: ends with 0 at once. Given a file, it first writes there when it began:
 * CLOCK_MONOTONIC in nanoseconds, 8 bytes in the order of this machine.
 *
 *   target [FILE]
 */
#include <fcntl.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
	struct timespec now;
	int64_t began;
	int fd;

	if (argc < 2)
		return 0;
	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	began = now.tv_sec * 1000000000ll + now.tv_nsec;
	fd = open(argv[1], O_WRONLY);
	return fd < 0 || pwrite(fd, &began, sizeof(began), 0) != sizeof(began);
}
