/*
 * What the credential lock costs, measured in C on the core itself: each pair side by side,
 * in turn, in one process that has another thread. Prints one line per sample set:
 * name, then nanoseconds. lock_cost.py compiles and reads it.
 *
 *   lock_cost PROGRAM ROUNDS
 */
#include "../safespawn/_native.c"

#include <stdio.h>

#define SHORT 200 /* calls in one sample of what takes less than a clock reading */

static struct ss_arena arena;
static const char *program;

static void *
idle(void *argument)
{
	pause();
	return argument;
}

/* One window: clone, the child's steps, execve, reap. flags: which proof is asked for. */
static int64_t
window(uint64_t flags, int full)
{
	struct ss_request request;
	struct ss_result result;
	struct ss_facts facts;
	struct ss_exit child;
	const int64_t start = ss_now();

	memset(&facts, 0, sizeof(facts));
	if (full)
		(void)ss_look(&facts);
	else
		(void)ss_child_read_creds(&facts.creds);
	if (!(flags & SS_REQUIRE_LOCK))
		facts.creds.epoch = ss_epoch_of(ss_lock);
	memset(&request, 0, sizeof(request));
	request.path = program;
	request.argv = "true";
	request.argv_bytes = 5;
	request.argc = 1;
	request.flags = SS_SHARE_MEMORY | SS_AMONG_OTHERS | flags;
	request.exec_fd = request.cwd_fd = request.terminal_fd = request.root_fd = -1;
	request.cgroup_fd = request.landlock_fd = request.launcher_fd = request.parent_fd = -1;
	request.expected = facts.creds;
	if (ss_spawn(&arena, &request, &result) || result.outcome != SS_EXEC) {
		fprintf(stderr, "spawn: outcome %d, stage %d, errno %d\n", result.outcome, result.stage, result.error);
		exit(1);
	}
	memset(&child, 0, sizeof(child));
	child.pidfd = result.pidfd;
	(void)ss_wait(&child, 0);
	(void)close(result.pidfd);
	return ss_now() - start;
}

static int64_t
window_bare(void)
{
	return window(0, 0);
}

static int64_t
window_locked(void)
{
	return window(SS_REQUIRE_LOCK, 1);
}

static int64_t
enter_leave(void)
{
	struct ss_slot *slot;
	const int32_t pidfd = -1;
	const uint32_t owner = 0;
	const uint64_t epoch = ss_epoch_of(ss_lock);
	const int64_t start = ss_now();
	int i;

	for (i = 0; i < SHORT; i++)
		if (!ss_spawner_enter(&slot, &pidfd, &owner, NULL, epoch))
			(void)ss_slot_leave(slot);
	return (ss_now() - start) / SHORT;
}

static int64_t
unchanged(void)
{
	struct ss_lock_facts facts;
	const int64_t start = ss_now();
	int i;

	for (i = 0; i < SHORT; i++)
		if (ss_lock_look(&facts) != SS_LOCK_HOLDS)
			exit(2);
	return (ss_now() - start) / SHORT;
}

static int64_t
getpid_raw(void)
{
	const int64_t start = ss_now();
	int i;

	for (i = 0; i < SHORT; i++)
		(void)ss_getpid();
	return (ss_now() - start) / SHORT;
}

static int64_t
change_real(void)
{
	const int64_t start = ss_now();
	int i;

	for (i = 0; i < SHORT; i++)
		(void)SS_REAL(PRCTL, int (*)(int, ...))(PR_SET_KEEPCAPS, 0, 0, 0, 0);
	return (ss_now() - start) / SHORT;
}

static int64_t
change_wrapped(void)
{
	const int64_t start = ss_now();
	int i;

	for (i = 0; i < SHORT; i++)
		(void)ss_wrap_prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0);
	return (ss_now() - start) / SHORT;
}

static int64_t
syscall_real(void)
{
	long (*const real)(long, ...) = (long (*)(long, ...))ss_gate_real;
	const int64_t start = ss_now();
	int i;

	for (i = 0; i < SHORT; i++)
		(void)real(SYS_getppid);
	return (ss_now() - start) / SHORT;
}

static int64_t
syscall_gate(void)
{
	long (*const gate)(long, ...) = (long (*)(long, ...))ss_wrap_syscall;
	const int64_t start = ss_now();
	int i;

	for (i = 0; i < SHORT; i++)
		(void)gate(SYS_getppid);
	return (ss_now() - start) / SHORT;
}

int
main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int64_t (*sample)(void);
	} tasks[] = {
	    {"window, no proof asked", window_bare}, {"window, locked, all checks", window_locked},
	    {"lock: enter and leave", enter_leave},  {"lock: look, nothing changed", unchanged},
	    {"getpid, raw", getpid_raw},             {"prctl that changes, libc's", change_real},
	    {"prctl that changes, wrapped", change_wrapped}, {"syscall(getppid), libc's", syscall_real},
	    {"syscall(getppid), gate", syscall_gate},
	};
	const int rounds = argc == 3 ? atoi(argv[2]) : 0;
	pthread_t other;
	struct ss_lock_facts facts;
	size_t t;
	int i;

	if (rounds < 1 || pthread_create(&other, NULL, idle, NULL) || ss_arm(0, SS_CHANGE_WAIT_NS))
		return 1;
	program = argv[1];
	while (ss_lock_look(&facts) == SS_LOCK_UNSETTLED)
		(void)poll(NULL, 0, 10);
	for (i = 0; i < rounds; i++) {
		for (t = 0; t < sizeof(tasks) / sizeof(*tasks); t++)
			printf("%s\t%lld\n", tasks[t].name, (long long)tasks[t].sample());
		/* The wrapped change has moved the epoch: compare the threads outside of what is timed. */
		(void)ss_lock_look(&facts);
	}
	return 0;
}
