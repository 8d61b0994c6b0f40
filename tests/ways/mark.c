/* The smallest program that leaves a mark: it makes the file that its last argument names. */
#include <fcntl.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
	return open(argv[argc - 1], O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0;
}
