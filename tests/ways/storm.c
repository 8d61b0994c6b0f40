/* Loads, calls and unloads libraries, many times. */
#include <dlfcn.h>
#include <stddef.h>

/* Returns how many calls did not answer 0; paths ends with NULL. */
int
way_storm(const char *const *paths, int rounds)
{
	int failed = 0;

	while (rounds-- > 0) {
		const char *const *path;

		for (path = paths; *path; path++) {
			void *handle = dlopen(*path, RTLD_LAZY);
			int (*plain)(void) = handle ? (int (*)(void))dlsym(handle, "way_plain") : NULL;

			failed += !plain || plain() != 0;
			if (handle)
				(void)dlclose(handle);
		}
	}
	return failed;
}
