/*
 * Takes its pointer when it is loaded and keeps it: in its own data, with SHARED in shared
 * memory, with READONLY in a page that cannot be written to any more.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int (*way)(uid_t, uid_t, uid_t);

#if defined(SHARED) || defined(READONLY)
static way *place;
#else
static way data, *const place = &data;
#endif

static void __attribute__((constructor))
take(void)
{
#ifdef SHARED
	place = mmap(NULL, sizeof(*place), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (place == MAP_FAILED)
		__builtin_trap();
#elif defined(READONLY)
	place = mmap(NULL, sizeof(*place), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (place == MAP_FAILED)
		__builtin_trap();
#endif
	*place = setresuid;
#ifdef READONLY
	if (mprotect(place, sizeof(*place), PROT_READ))
		__builtin_trap();
#endif
}

int
way_plain(void)
{
	return (*place)((uid_t)-1, (uid_t)-1, (uid_t)-1);
}
