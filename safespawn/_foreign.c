/*
 * vfork and posix_spawn called by other code in the process: guard_foreign. Part of
 * _native.c.
 *
 * libc's children share our memory as ours do, without any of the guards. Asked to, we
 * stand in for both. vfork cannot be wrapped (its child returns first, on the same
 * stack), so where others run it becomes fork, which costs the copy of the page tables.
 * posix_spawn goes under the lock; where that cannot be had it answers EAGAIN, and nothing
 * is started. [T-27 foreign-locked]
 */

#define SS_FOREIGN_WAIT_NS 5000000ll /* for changers to finish: one may need what our caller holds */

/* The function that a call of vfork goes on to; called by the gate. */
static void *__attribute__((used))
ss_choose_fork(void)
{
	uint32_t tasks;

	if (ss_alone(&tasks) == 1 || !SS_GUARDED(FOREIGN_LOCKED))
		return ss_hooked[SS_CALL_VFORK].real;
	return ss_real_fork;
}

/*
 * Joins the spawners when the proof holds. A foreign caller has no other way to start its
 * program, so unlike ours it waits for changers, for a while.
 */
static int
ss_foreign_enter(struct ss_slot **ret_slot)
{
	const int64_t until = ss_now() + SS_FOREIGN_WAIT_NS;
	struct ss_lock_facts facts;
	int answer;

	do {
		answer = ss_lock_look(&facts);
		if (answer == SS_LOCK_HOLDS) {
			const uint64_t mask = ss_block_all();

			if (!ss_spawner_enter(ret_slot, NULL, NULL, NULL, facts.epoch))
				return 0; /* with signals blocked: until the caller is done */
			ss_unblock(mask);
			answer = SS_LOCK_CHANGING;
		}
		if (answer != SS_LOCK_CHANGING)
			return -EAGAIN;
		(void)ss_await_changers(SS_CHANGE_POLL_NS);
	} while (ss_now() < until);
	return -EAGAIN;
}

typedef int (*ss_spawn_function)(pid_t *, const char *, const posix_spawn_file_actions_t *,
				 const posix_spawnattr_t *, char *const *, char *const *);

/* All signals are blocked while we hold the lock, and the child is not to inherit that. */
static int
ss_foreign_attributes(posix_spawnattr_t *ret, const posix_spawnattr_t *from, const sigset_t *mask)
{
	short flags = 0;
	int error;

	if ((error = posix_spawnattr_init(ret)))
		return error;
	if (from)
		*ret = *from; /* plain values in both libcs */
	if ((error = posix_spawnattr_getflags(ret, &flags)))
		return error;
	if (flags & POSIX_SPAWN_SETSIGMASK)
		return 0;
	if ((error = posix_spawnattr_setsigmask(ret, mask)))
		return error;
	return posix_spawnattr_setflags(ret, (short)(flags | POSIX_SPAWN_SETSIGMASK));
}

static int
ss_foreign_spawn(void *real, pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		 const posix_spawnattr_t *from, char *const *argv, char *const *env)
{
	const ss_spawn_function spawn = (ss_spawn_function)real;
	posix_spawnattr_t attributes;
	struct ss_slot *slot;
	uint32_t tasks;
	sigset_t was;
	uint64_t mask = 0;
	int error;

	if (ss_alone(&tasks) == 1 || !SS_GUARDED(FOREIGN_LOCKED))
		return spawn(pid, path, actions, from, argv, env);
	(void)sigemptyset(&was);
	(void)ss_sys4(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8); /* only asks */
	memcpy(&was, &mask, sizeof(mask));
	if ((error = ss_foreign_attributes(&attributes, from, &was)))
		return error;
	if (ss_foreign_enter(&slot))
		return EAGAIN;
	error = spawn(pid, path, actions, &attributes, argv, env);
	(void)ss_slot_leave(slot);
	ss_unblock(mask);
	return error;
}

static int
ss_wrap_posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		    const posix_spawnattr_t *attributes, char *const *argv, char *const *env)
{
	return ss_foreign_spawn(ss_hooked[SS_CALL_POSIX_SPAWN].real, pid, path, actions, attributes, argv,
				env);
}

static int
ss_wrap_posix_spawnp(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		     const posix_spawnattr_t *attributes, char *const *argv, char *const *env)
{
	return ss_foreign_spawn(ss_hooked[SS_CALL_POSIX_SPAWNP].real, pid, path, actions, attributes, argv,
				env);
}
