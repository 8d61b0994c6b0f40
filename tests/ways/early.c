/* Changes credentials in its constructor, while it is being loaded. */
#define _GNU_SOURCE
#include <unistd.h>

static int answer = -2;

static void __attribute__((constructor))
change(void)
{
	answer = setresuid((uid_t)-1, (uid_t)-1, (uid_t)-1);
}

int
way_plain(void)
{
	return answer;
}
