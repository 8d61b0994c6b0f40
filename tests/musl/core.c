/*
 * The core as a library under musl, with what host.c calls. Not of the product: that gets in by cffi.
 */
#include "_native.c"

#define PUBLIC __attribute__((visibility("default")))

PUBLIC int musl_core_arm(void);
PUBLIC void musl_core_tell(void);
PUBLIC uint64_t musl_core_changes(void);
PUBLIC int musl_core_look(void);
PUBLIC int musl_core_spawn(uint64_t proof, int share, int by_libc, const char *command);

PUBLIC int
musl_core_arm(void)
{
	return ss_arm(0, 0);
}

PUBLIC uint64_t
musl_core_changes(void)
{
	struct ss_lock_status s;

	ss_lock_status(&s);
	return s.changes;
}

/* What doctor prints of the lock. */
PUBLIC void
musl_core_tell(void)
{
	struct ss_lock_status s;

	ss_lock_status(&s);
	printf("armed %d exported %d captured %u foreign %u namespaces %lld\n", s.armed.state == SS_ARM_ARMED,
	       s.armed.exports >= SS_CALL_SYSCALL, s.armed.searched.captured, s.armed.foreign,
	       (long long)s.other_namespaces);
}

/* Whether the lock proves anything now; 0 when it does. */
PUBLIC int
musl_core_look(void)
{
	struct ss_lock_facts f;

	return ss_lock_look(&f);
}

/* Runs sh -c; returns its exit code, 1000 + stage for a failure before, or a negative errno. */
PUBLIC int
musl_core_spawn(uint64_t proof, int share, int by_libc, const char *command)
{
	static struct ss_arena arena;
	const struct ss_fd fds[] = {{0, 0}, {1, 1}, {2, 2}};
	struct ss_request r = {.path = "/bin/sh", .fds = fds, .nfds = 3, .argc = 3, .envc = 1};
	struct ss_result result;
	struct ss_facts facts;
	char argv[256];
	int answer, status;

	if ((answer = ss_look(&facts)))
		return answer;
	r.expected = facts.creds;
	r.exec_fd = r.cwd_fd = r.terminal_fd = r.root_fd = r.cgroup_fd = r.landlock_fd = r.launcher_fd = r.parent_fd = -1;
	r.argv = argv;
	r.argv_bytes = (uint64_t)snprintf(argv, sizeof(argv), "sh%c-c%c%s", 0, 0, command) + 1;
	r.env = "MUSL=yes";
	r.env_bytes = sizeof("MUSL=yes");
	r.flags = (share ? SS_SHARE_MEMORY : 0) | proof;
	if ((answer = ss_spawn_by(ss_process_number(), by_libc, &arena, &r, &result)))
		return answer;
	if (result.outcome != SS_EXEC)
		return 1000 + result.stage;
	if (waitpid(result.pid, &status, 0) != result.pid || !WIFEXITED(status))
		return -ECHILD;
	(void)close(result.pidfd);
	return WEXITSTATUS(status);
}

PUBLIC int musl_core_alone(const char *command, int by_libc);
PUBLIC int musl_core_locked(const char *command);
PUBLIC int musl_core_forked(const char *command);

PUBLIC int
musl_core_alone(const char *command, int by_libc)
{
	return musl_core_spawn(SS_REQUIRE_ALONE, 1, by_libc, command);
}

PUBLIC int
musl_core_locked(const char *command)
{
	return musl_core_spawn(SS_REQUIRE_LOCK, 1, 0, command);
}

PUBLIC int
musl_core_forked(const char *command)
{
	return musl_core_spawn(0, 0, 0, command);
}
