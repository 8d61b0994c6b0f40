/* The numbers of system calls on this machine. */
#include <string.h>
#include <sys/syscall.h>

#ifndef SYS_lsm_set_self_attr
#define SYS_lsm_set_self_attr 460
#endif
#ifndef SYS_landlock_restrict_self
#define SYS_landlock_restrict_self 446
#endif

#define NUMBERS(X)                                                              \
	X(setuid) X(setgid) X(setreuid) X(setregid) X(setresuid) X(setresgid) X(setgroups) X(setfsuid) \
	X(setfsgid) X(capset) X(prctl) X(setns) X(unshare) X(chroot) X(pivot_root) X(seccomp) \
	X(keyctl) X(landlock_restrict_self) X(lsm_set_self_attr) X(getpid) X(mmap)

long
way_number(const char *name)
{
#define NUMBER(call) if (!strcmp(name, #call)) return SYS_##call;
	NUMBERS(NUMBER)
	return -1;
}
