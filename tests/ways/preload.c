/*
 * For LD_PRELOAD: stands before libc's setresuid. With EARLY it asks for the next one when
 * it is loaded and keeps that, else at every call.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

typedef int (*way)(uid_t, uid_t, uid_t);

#ifdef EARLY
static way next;

static void __attribute__((constructor))
take(void)
{
	next = (way)dlsym(RTLD_NEXT, "setresuid");
}
#else
#define next ((way)dlsym(RTLD_NEXT, "setresuid"))
#endif

int
setresuid(uid_t ruid, uid_t euid, uid_t suid)
{
	return next(ruid, euid, suid);
}
