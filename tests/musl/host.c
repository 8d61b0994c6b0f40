/*
 * A program under musl that loads the core as a library and says what it does there: spawns from one thread, the lock,
 * spawns beside a thread that changes credentials by libc.
 *
 *     host LIBRARY
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *library;
static volatile int stop;

static void *
of(const char *name)
{
	void *found = dlsym(library, name);

	if (!found) {
		fprintf(stderr, "%s\n", dlerror());
		exit(2);
	}
	return found;
}

/* musl's setresuid stops all threads by a signal; the lock is to come before that. */
static void *
changer(void *argument)
{
	(void)argument;
	while (!stop)
		if (setresuid(0, 0, 0))
			abort();
	return NULL;
}

int
main(int argc, char **argv)
{
	int (*const alone)(const char *, int) = argc > 1 && (library = dlopen(argv[1], RTLD_NOW)) ? of("musl_core_alone") : NULL;
	int (*locked)(const char *), (*forked)(const char *), (*arm)(void), (*look)(void);
	uint64_t (*changes)(void), before;
	int ran = 0, moved = 0, other = 0, i;
	pthread_t thread;

	if (!alone) {
		fprintf(stderr, "%s\n", dlerror());
		return 2;
	}
	locked = of("musl_core_locked");
	forked = of("musl_core_forked");
	arm = of("musl_core_arm");
	look = of("musl_core_look");
	changes = of("musl_core_changes");
	setvbuf(stdout, NULL, _IONBF, 0);
	printf("alone %d\n", alone("test \"$MUSL\" = yes && exit 3", 0));
	printf("posix_spawn %d\n", alone("test \"$MUSL\" = yes && exit 4", 1));
	printf("fork %d\n", forked("test \"$MUSL\" = yes && exit 5"));
	printf("arm %d\n", arm());
	((void (*)(void))of("musl_core_tell"))();
	before = changes();
	if (setresuid(0, 0, 0))
		return 2;
	printf("seen %d\n", (int)(changes() - before));
	printf("lock holds %d\n", !look());
	if (pthread_create(&thread, NULL, changer, NULL))
		return 2;
	for (i = 0; i < 200; i++) {
		const int code = forked("exit 6");

		ran += code == 6;
		moved += code >= 1000; /* the child saw that credentials were changed meanwhile, and ran nothing */
		other += code != 6 && code < 1000;
	}
	printf("beside a changer: all told %d, some ran %d, otherwise %d\n", ran + moved == 200, ran > 0, other);
	printf("by the lock refused %d\n", locked("exit 7") < 0);
	printf("alone beside a thread refused %d\n", alone("exit 7", 0) < 0);
	stop = 1;
	(void)pthread_join(thread, NULL);
	printf("more changes %d\n", changes() > before + 1);
	return 0;
}
