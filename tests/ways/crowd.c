/*
 * The credential lock under many threads, for ThreadSanitizer: spawners, watchers, holders, changers, readers of the
 * changes, forkers. Each changer has a word that is written in a change only; whoever is in the lock reads all of
 * them. Nothing but the lock keeps the two apart, so that a lock that lets both in is a data race.
 *
 * The windows are real: children share our memory until they run the program. Their code is exempt from the
 * sanitizer, as in the product, for it runs on a stack that the sanitizer knows nothing of. The functions of libc
 * are not wrapped here: the library of the sanitizer wraps them itself. What the wrappers do is done by name.
 *
 *   crowd PROGRAM SECONDS
 *
 * Prints what was done, one "name count" a line. Exit 1: something did not hold.
 */
#include "../../safespawn/_native.c"

#include <stdio.h>

enum { SPAWNERS = 4, PLAIN = 2, WATCHERS = 2, HOLDERS = 1, CHANGERS = 3, READERS = 1, FORKERS = 1 };

#define MUST(holds)                                                             \
	do {                                                                    \
		if (!(holds)) {                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #holds); \
			exit(1);                                                \
		}                                                               \
	} while (0)

static const char *program;
static int64_t end_ns;
static uint64_t privileges[CHANGERS]; /* plain: only the lock orders what is done to them */
static uint64_t windows, refused, preempted, entered, watched, told, held, changes, taken, lost, forks;

static int
goes_on(void)
{
	return ss_now() < end_ns;
}

static void
count(uint64_t *what, uint64_t by)
{
	(void)__atomic_add_fetch(what, by, __ATOMIC_RELAXED);
}

/* Threads that change the words at once would be seen here too. */
static uint64_t
sum(void)
{
	uint64_t all = 0;
	int i;

	for (i = 0; i < CHANGERS; i++)
		all += privileges[i];
	return all;
}

static void
prepare(struct ss_request *request)
{
	memset(request, 0, sizeof(*request));
	request->path = program;
	request->argv = "true";
	request->argv_bytes = 5;
	request->argc = 1;
	request->exec_fd = request->cwd_fd = request->terminal_fd = request->root_fd = -1;
	request->cgroup_fd = request->landlock_fd = request->launcher_fd = request->parent_fd = -1;
	request->flags = SS_SHARE_MEMORY | SS_AMONG_OTHERS | SS_REQUIRE_LOCK;
	MUST(!ss_child_read_creds(&request->expected));
	request->expected.epoch = ss_epoch_of(ss_lock_ours());
}

/* A window on our memory: the child runs the program, or is killed for a change. */
static void *
spawner(void *argument)
{
	struct ss_arena arena;

	memset(&arena, 0, sizeof(arena));
	while (goes_on()) {
		struct ss_request request;
		struct ss_result result;
		struct ss_exit child;

		prepare(&request);
		if (ss_spawn(&arena, &request, &result)) {
			MUST(result.outcome == SS_NOT_ALONE);
			count(&refused, 1);
			(void)ss_await_changers(1000000);
			continue;
		}
		count(result.outcome == SS_EXEC ? &windows : &preempted, 1);
		MUST(result.outcome == SS_EXEC || result.outcome == SS_PREEMPTED || result.outcome == SS_RACE_DETECTED);
		if (result.pidfd < 0)
			continue;
		memset(&child, 0, sizeof(child));
		child.pidfd = result.pidfd;
		(void)ss_wait(&child, 0); /* one that was killed is reaped already */
		(void)close(result.pidfd);
	}
	ss_arena_free(&arena);
	return argument;
}

/* In the lock without a child: what is read here no change writes meanwhile. */
static void *
plain(void *argument)
{
	while (goes_on()) {
		const int32_t pidfd = -1;
		const uint32_t owner = 0;
		struct ss_slot *slot;
		uint64_t seen;

		if (ss_spawner_enter(&slot, &pidfd, &owner, NULL, ss_epoch_of(ss_lock_ours()))) {
			(void)sched_yield();
			continue;
		}
		seen = sum();
		(void)sched_yield();
		MUST(seen == sum());
		MUST(!ss_slot_leave(slot));
		count(&entered, 1);
	}
	return argument;
}

/* With memory of its own: it is told of each change that comes, and keeps none away. */
static void *
watcher(void *argument)
{
	while (goes_on()) {
		struct ss_lock *lock = ss_lock_ours();
		const uint64_t epoch = ss_epoch_of(lock);
		uint32_t moved = 0;
		struct ss_slot *slot = ss_watch(lock, &moved, epoch);

		MUST(slot);
		(void)sched_yield();
		if (ss_epoch_of(lock) != epoch)
			count(&told, 1);
		(void)ss_slot_leave(slot);
		count(&watched, 1);
	}
	return argument;
}

/* Changes wait for it, up to their bound. */
static void *
holder(void *argument)
{
	while (goes_on()) {
		const struct timespec pause = {0, 2000000};
		uint32_t moved = 0;
		struct ss_slot *slot = ss_hold(&moved);

		if (slot) {
			const uint64_t seen = sum();

			MUST(seen == sum() || __atomic_load_n(&moved, __ATOMIC_SEQ_CST));
			(void)ss_slot_leave(slot);
			count(&held, 1);
		}
		(void)nanosleep(&pause, NULL);
	}
	return argument;
}

static void *
changer(void *argument)
{
	uint64_t *mine = argument;

	while (goes_on()) {
		const struct timespec pause = {0, 3000000};
		struct ss_changing change;

		ss_credential_change_begin(&change, SS_CALL_RAW);
		MUST(change.lock);
		++*mine;
		ss_credential_change_end(&change, 0);
		count(&changes, 1);
		(void)nanosleep(&pause, NULL);
	}
	return NULL;
}

/* As Python does: each change is fetched once, or it is said how many were lost. */
static void *
reader(void *argument)
{
	struct ss_change change;
	int answer;

	while (goes_on()) {
		while ((answer = ss_change_take(&change))) {
			MUST(answer == 1 || answer == -ENOENT);
			count(answer == 1 ? &taken : &lost, answer == 1 ? 1 : change.seq);
		}
		(void)sched_yield();
	}
	return argument;
}

/* In a forked process the lock is free, whoever held it here. */
static void *
forker(void *argument)
{
	while (goes_on()) {
		const struct timespec pause = {0, 5000000};
		int status;
		const pid_t child = fork();

		MUST(child >= 0);
		if (!child) {
			struct ss_lock *lock = ss_lock_ours();

			_exit(!lock || lock->word || lock->watchers || lock->pid != ss_getpid());
		}
		MUST(waitpid(child, &status, 0) == child && !status);
		count(&forks, 1);
		(void)nanosleep(&pause, NULL);
	}
	return argument;
}

static void
run(void)
{
	void *(*const kinds[])(void *) = {spawner, plain, watcher, holder, changer, reader, forker};
	const int many[] = {SPAWNERS, PLAIN, WATCHERS, HOLDERS, CHANGERS, READERS, FORKERS};
	pthread_t threads[SPAWNERS + PLAIN + WATCHERS + HOLDERS + CHANGERS + READERS + FORKERS];
	unsigned kind;
	int i, at = 0;

	for (kind = 0; kind < sizeof(kinds) / sizeof(*kinds); kind++)
		for (i = 0; i < many[kind]; i++)
			MUST(!pthread_create(&threads[at++], NULL, kinds[kind], i < CHANGERS ? &privileges[i] : NULL));
	while (at)
		MUST(!pthread_join(threads[--at], NULL));
}

int
main(int argc, char **argv)
{
	const struct {
		const char *name;
		const uint64_t *count;
	} told_of[] = {
	    {"windows", &windows}, {"refused", &refused}, {"preempted", &preempted}, {"entered", &entered},
	    {"watched", &watched}, {"told", &told},	  {"held", &held},	     {"changes", &changes},
	    {"taken", &taken},	   {"lost", &lost},	  {"forks", &forks},
	};
	struct ss_change change;
	unsigned i;
	int answer;

	MUST(argc == 3);
	program = argv[1];
	MUST(!ss_lock_map());
	end_ns = ss_now() + atoi(argv[2]) * 1000000000ll;
	run();
	while ((answer = ss_change_take(&change)))
		count(answer == 1 ? &taken : &lost, answer == 1 ? 1 : change.seq);
	MUST(!ss_lock->word && !ss_lock->watchers);
	MUST(sum() == changes && taken + lost == changes);
	for (i = 0; i < sizeof(told_of) / sizeof(*told_of); i++)
		printf("%s %llu\n", told_of[i].name, (unsigned long long)*told_of[i].count);
	return 0;
}
