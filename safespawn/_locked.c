/*
 * The proof `locked`: whether the lock holds off every change that could come while a
 * child shares our memory, now. Part of _native.c.
 */

/* Why it does not hold; the numbers are for Python, which has the words. */
enum {
	SS_LOCK_HOLDS,
	SS_LOCK_OFF,        /* not armed */
	SS_LOCK_UNLOCKABLE, /* arming failed: error says why */
	SS_LOCK_NOT_OURS,   /* its memory is not this process's */
	SS_LOCK_STRANGER,   /* a process that is no thread of ours shares our memory */
	SS_LOCK_CHANGING,   /* a change is under way, or waits */
	SS_LOCK_EXPORTS,    /* somebody rewrote the export table after us */
	SS_LOCK_NAMESPACES, /* objects in other link-map namespaces: detail is their number */
	SS_LOCK_CAPTURED,   /* pointers taken before arming: detail is their number */
	SS_LOCK_UNSEARCHED, /* memory that could not be searched for them */
	SS_LOCK_FOREIGN,    /* somebody else's function under one of the names */
	SS_LOCK_UNSETTLED,  /* armed a moment ago, beside other threads */
	SS_LOCK_STAINED,    /* a change on one thread that no comparison shows: detail is the call */
	SS_LOCK_DIFFER,     /* threads differ: detail is the tid */
	SS_LOCK_UNSEEN,     /* the threads could not be looked at: error says why */
	SS_LOCK_PASS,       /* bound slots could not be rewritten: error says why */
	SS_LOCK_FORKED,     /* forked beside other threads: the loader cannot be asked */
	SS_LOCK_UNBOUNDED,  /* no signal can be sent by pidfd, so no wait has a bound: error */
	SS_LOCK_OFTEN,      /* many threads, and changes too often to compare them each time */
};

#define SS_MANY_TASKS 64u

struct ss_lock_facts {
	int32_t why, error;
	int64_t detail;
	uint64_t epoch;
};

/* An object came or went, or a late slot may have been stored: look at all of them again. */
static int
ss_objects_look(struct ss_lock_facts *f)
{
	struct ss_pass now;
	const int is_late = ss_settled_ns && ss_now() >= ss_settled_ns;
	int error = 0;

	memset(&now, 0, sizeof(now));
	(void)dl_iterate_phdr(ss_count_objects, &now);
	f->error = ss_last_pass.error;
	if (f->error)
		return SS_LOCK_PASS;
	if (now.adds != ss_last_pass.adds || now.subs != ss_last_pass.subs || is_late) {
		if (!ss_arming_try()) /* who has it may wait for the loader's lock, and we may hold that */
			return SS_LOCK_UNSETTLED;
		error = ss_pass_run();
		if (!error && is_late)
			ss_settled_ns = 0;
		ss_arming_unlock();
	}
	f->error = error;
	f->detail = (int64_t)ss_other_namespaces(&ss_last_pass);
	return error ? SS_LOCK_PASS : f->detail ? SS_LOCK_NAMESPACES : SS_LOCK_HOLDS;
}

/* lock-covers (T-24): what would let a change pass the wrappers. */
static int
ss_lock_covers(struct ss_lock_facts *f)
{
	if (!SS_GUARDED(LOCK_COVERS))
		return SS_LOCK_HOLDS;
	if (!ss_exports_intact())
		return SS_LOCK_EXPORTS;
	if (__atomic_load_n(&ss_armed.foreign, __ATOMIC_SEQ_CST))
		return SS_LOCK_FOREIGN;
	f->detail = __atomic_load_n(&ss_armed.searched.captured, __ATOMIC_SEQ_CST);
	if (f->detail)
		return SS_LOCK_CAPTURED;
	if (__atomic_load_n(&ss_armed.searched.unsearched, __ATOMIC_SEQ_CST))
		return SS_LOCK_UNSEARCHED;
	return ss_objects_look(f);
}

static int
ss_are_many(void)
{
	uint32_t tasks;

	return ss_count_tasks(&tasks) != 0 || tasks > SS_MANY_TASKS;
}

/* tasks-alike (T-25): once for every epoch, because it costs as much as a fork with many threads. */
static int
ss_lock_verify(struct ss_lock *lock, struct ss_lock_facts *f)
{
	const uint64_t adds = ss_last_pass.adds, subs = ss_last_pass.subs;
	int32_t differs = 0;

	if (!SS_GUARDED(TASKS_ALIKE))
		return SS_LOCK_HOLDS;
	f->detail = (int64_t)__atomic_load_n(&lock->stain, __ATOMIC_SEQ_CST) - 1;
	if (f->detail >= 0)
		return SS_LOCK_STAINED;
	/* A library that has come since may have changed its thread by itself, in its constructor. */
	if (__atomic_load_n(&lock->verified, __ATOMIC_SEQ_CST) == f->epoch + 1 &&
	    __atomic_load_n(&lock->verified_adds, __ATOMIC_SEQ_CST) == adds &&
	    __atomic_load_n(&lock->verified_subs, __ATOMIC_SEQ_CST) == subs)
		return SS_LOCK_HOLDS;
	/* With many threads it costs more than a fork: not at the first look after each change. */
	if (__atomic_exchange_n(&lock->looked, f->epoch + 1, __ATOMIC_SEQ_CST) != f->epoch + 1 && ss_are_many())
		return SS_LOCK_OFTEN;
	f->error = ss_tasks_alike(&differs);
	f->detail = differs;
	if (f->error)
		return f->error == EXDEV ? SS_LOCK_DIFFER : SS_LOCK_UNSEEN;
	/* Only if nothing changed meanwhile: then it was like that all the time. */
	if (ss_epoch_of(lock) != f->epoch)
		return SS_LOCK_CHANGING;
	__atomic_store_n(&lock->verified_adds, adds, __ATOMIC_SEQ_CST);
	__atomic_store_n(&lock->verified_subs, subs, __ATOMIC_SEQ_CST);
	__atomic_store_n(&lock->verified, f->epoch + 1, __ATOMIC_SEQ_CST);
	return SS_LOCK_HOLDS;
}

/*
 * Whether all threads are alike, as far as that can be seen: 0, EXDEV when they are not, or
 * the errno of the look.
 */
SS_API int
ss_alike(void)
{
	const struct ss_lock *lock = ss_lock_ours();
	int32_t differs;

	if (lock && __atomic_load_n(&lock->stain, __ATOMIC_SEQ_CST))
		return EXDEV;
	return ss_tasks_alike(&differs);
}

/*
 * Looks. Returns SS_LOCK_HOLDS or the first reason why not, also in facts. The epoch is
 * given in any case: a child without shared memory compares it too.
 */
SS_API int
ss_lock_look(struct ss_lock_facts *f)
{
	struct ss_lock *lock;
	const int32_t state = __atomic_load_n(&ss_armed.state, __ATOMIC_ACQUIRE);

	memset(f, 0, sizeof(*f));
	f->why = state == SS_ARM_ARMED ? SS_LOCK_HOLDS : SS_LOCK_OFF;
	if (state == SS_ARM_UNLOCKABLE) {
		f->why = SS_LOCK_UNLOCKABLE;
		f->error = ss_armed.error;
	}
	lock = ss_lock_ours();
	f->epoch = ss_epoch_of(lock);
	if (f->why)
		return f->why;
	if (!lock)
		return f->why = SS_LOCK_NOT_OURS;
	if (__atomic_load_n(&lock->word, __ATOMIC_SEQ_CST) & (SS_CHANGERS | SS_CHANGER_WAITS))
		return f->why = SS_LOCK_CHANGING;
	if (ss_loader_unsure)
		return f->why = SS_LOCK_FORKED;
	/* A sandbox may refuse it. No process has -1 for a descriptor: EBADF is the good answer. */
	if ((f->error = -(int)ss_sys4(SYS_pidfd_send_signal, -1, 0, NULL, 0)) != EBADF)
		return f->why = SS_LOCK_UNBOUNDED;
	f->error = 0;
	if ((f->why = ss_lock_covers(f)))
		return f->why;
	/* After a late pass only, and that needs its time. */
	if (ss_settled_ns)
		return f->why = SS_LOCK_UNSETTLED;
	return f->why = ss_lock_verify(lock, f);
}

/* What is known of the lock, for people. */
struct ss_lock_status {
	struct ss_armed armed;
	uint64_t changes, epoch, other_namespaces;
	uint32_t spawners, changers, changer_waits, overlaps, guards_foreign;
	int64_t wait_ns;
};

SS_API void
ss_lock_status(struct ss_lock_status *ret)
{
	const struct ss_lock *lock = ss_lock_ours();
	const uint32_t word = lock ? __atomic_load_n(&lock->word, __ATOMIC_SEQ_CST) : 0;

	memset(ret, 0, sizeof(*ret));
	ret->armed = ss_armed;
	ret->changes = lock ? __atomic_load_n(&lock->changes, __ATOMIC_SEQ_CST) : 0;
	ret->overlaps = lock ? lock->overlaps : 0;
	ret->epoch = ss_epoch_of(lock);
	ret->other_namespaces = ss_other_namespaces(&ss_last_pass);
	ret->spawners = word & SS_SPAWNERS;
	ret->changers = (word & SS_CHANGERS) / SS_CHANGER;
	ret->changer_waits = (word & SS_CHANGER_WAITS) != 0;
	ret->guards_foreign = ss_hooked[SS_CALL_VFORK].real != NULL;
	ret->wait_ns = ss_change_wait_ns;
}

/* The name of a function that is covered, and whether it is; NULL past the last. */
SS_API const char *
ss_covered(int32_t index, int32_t *ret_is_covered)
{
	if (index < SS_CALL_SETUID || index >= SS_CALL_SECCOMP)
		return NULL;
	*ret_is_covered = ss_armed.state == SS_ARM_ARMED && ss_hooked[index].real != NULL;
	return ss_hooked[index].name;
}
