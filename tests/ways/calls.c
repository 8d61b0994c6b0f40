/*
 * An ordinary library that changes credentials, built in several ways: bound lazily, at
 * once, without a PLT. Every function makes one call that changes nothing, and answers
 * what that answered.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEEP ((uid_t)-1)

typedef int (*way)(uid_t, uid_t, uid_t);

#if defined(__x86_64__)
#define FIRST_VERSION "GLIBC_2.2.5"
#else
#define FIRST_VERSION "GLIBC_2.17"
#endif

int
way_plain(void)
{
	return setresuid(KEEP, KEEP, KEEP);
}

/* The address is taken anew each time: GLOB_DAT even where there is a PLT. */
int
way_address(void)
{
	way volatile taken = setresuid;

	return taken(KEEP, KEEP, KEEP);
}

long
way_syscall(void)
{
	return syscall(SYS_setreuid, -1l, -1l);
}

static int
way_found(void *found)
{
	return found ? ((way)found)(KEEP, KEEP, KEEP) : -2;
}

int
way_default(void)
{
	return way_found(dlsym(RTLD_DEFAULT, "setresuid"));
}

int
way_next(void)
{
	return way_found(dlsym(RTLD_NEXT, "setresuid"));
}

int
way_version(void)
{
	return way_found(dlvsym(RTLD_DEFAULT, "setresuid", FIRST_VERSION));
}

static void *
way_run(void *ret)
{
	*(int *)ret = setresuid(KEEP, KEEP, KEEP);
	return NULL;
}

int
way_thread(void)
{
	pthread_t thread;
	int answer = -2;

	if (pthread_create(&thread, NULL, way_run, &answer))
		return -2;
	(void)pthread_join(thread, NULL);
	return answer;
}
