/* Threads that libpsx knows: those made by its own pthread_create, as at link time. */
#include <pthread.h>
#include <sys/prctl.h>
#include <unistd.h>

#define THREADS 3

int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

static int go[2], told[2];
static pthread_t threads[THREADS];

/* Waits, then tells whether this thread keeps its capabilities. */
static void *
wait_and_tell(void *unused)
{
	char answer;

	(void)unused;
	while (read(go[0], &answer, 1) != 1)
		;
	answer = (char)prctl(PR_GET_KEEPCAPS);
	(void)!write(told[1], &answer, 1);
	return NULL;
}

int
way_start(void)
{
	int i;

	if (pipe(go) || pipe(told))
		return -1;
	for (i = 0; i < THREADS; i++)
		if (__wrap_pthread_create(&threads[i], NULL, wait_and_tell, NULL))
			return -1;
	return 0;
}

/* Returns how many of the threads keep theirs. */
int
way_finish(void)
{
	int i, keep = 0;
	char answer;

	if (write(go[1], "...", THREADS) != THREADS)
		return -1;
	for (i = 0; i < THREADS; i++) {
		while (read(told[0], &answer, 1) != 1)
			;
		keep += answer;
		(void)pthread_join(threads[i], NULL);
	}
	(void)close(go[0]), (void)close(go[1]), (void)close(told[0]), (void)close(told[1]);
	return keep;
}
