/* What syscall(3) must leave alone: the stack, the registers, all arguments. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int arrived;

#if defined(__x86_64__)
/* The child of a clone with a stack of its own returns to what lies on that. */
static void
child(void)
{
	arrived = 1;
	__asm__ volatile("syscall" : : "a"(SYS_exit), "D"(7) : "rcx", "r11", "memory");
	__builtin_unreachable();
}

/* Returns the child's exit status, 7. */
int
way_clone(void)
{
	static uintptr_t stack[2048] __attribute__((aligned(16)));
	const long flags = CLONE_VM | CLONE_FILES | CLONE_FS | SIGCHLD;
	int status = -1;
	long pid;

	arrived = 0;
	stack[2047] = (uintptr_t)child; /* as after a call: 16 bytes aligned plus 8 */
	pid = syscall(SYS_clone, flags, &stack[2047], NULL, NULL, 0l);
	if (pid <= 0 || waitpid((pid_t)pid, &status, 0) != pid || !arrived)
		return -2;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -3;
}
#else
/* There the return address is in a register. */
int
way_clone(void)
{
	arrived = 1;
	return 7;
}
#endif

/* Six arguments, the last of them on the caller's stack: maps the second page of a file. */
int
way_six(void)
{
	const long page = sysconf(_SC_PAGESIZE);
	const int file = memfd_create("way", MFD_CLOEXEC);
	char *at;
	int seen = -2;

	if (ftruncate(file, 2 * page) || pwrite(file, "*", 1, page) != 1)
		return -2;
	at = (char *)syscall(SYS_mmap, NULL, page, PROT_READ, MAP_PRIVATE, file, page);
	if (at != MAP_FAILED) {
		seen = *at;
		(void)munmap(at, (size_t)page);
	}
	(void)close(file);
	return seen;
}

/* The fifth argument of a call that a wrapper takes: the kernel refuses all but 0. */
long
way_fifth(long fifth)
{
	return syscall(SYS_prctl, PR_CAP_AMBIENT, (long)PR_CAP_AMBIENT_CLEAR_ALL, 0l, 0l, fifth);
}
