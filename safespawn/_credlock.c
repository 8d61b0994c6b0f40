/*
 * The credential lock. Part of _native.c, which includes this file.
 *
 * While a child shares our memory no thread changes credentials through libc, and no
 * child starts sharing memory while such a change is under way. It is a group lock:
 * any number of spawners or any number of changers, never both.
 *
 *  - A spawner that wants to share memory never waits: when a changer is in or waiting it
 *    is told so, and its child gets memory of its own. Only one that has lost such a child
 *    to a change waits for a moment, so that changes all the time do not keep it out.
 *  - A changer waits for the spawners, before libc starts to change one thread after
 *    the other. [T-21 changes-wait]
 *  - That wait is bounded: past it the children that have not run execve yet are
 *    killed, and the change goes ahead. [T-22 change-bounded]
 *  - Changers do not exclude each other: libpsx makes all threads change at once and
 *    waits for them in the first, which would never end under an exclusive lock.
 *  - Each change moves the epoch, when it begins and when it ends, and tells the children
 *    that have memory of their own. A child looks at that last thing before execve.
 *    [T-23 epoch-agrees]
 *
 * What wraps libc's functions runs in signal handlers, in threads of any language, and
 * in children of others that share our memory: it makes raw system calls only, takes no
 * mutex, allocates nothing and has no thread-local storage (the first use of it may
 * allocate). libc's errno is what the wrapped function left.
 *
 * The state lies in pages that the kernel clears in every forked child
 * (MADV_WIPEONFORK, Linux 4.14), because the threads that held the lock are not there. It
 * is never shared with a forked process, which may have fewer privileges than we: what our
 * own forked children must know is written to the page that each of them has for its
 * report. A process that shares our memory without being us (a vfork child of somebody
 * else) finds another's pid there, and keeps out.
 */

#define SS_SOME_GROUPS 32u /* more are counted only */
#define SS_TEXT_BYTES 128
#define SS_SLOTS 1024u
#define SS_SPAWNERS_MAX 192u /* three batches; the other slots are for children with memory of their own */
#define SS_HOLD_NS 100000000ll /* that a spawn tries to hold changes off, after some got in its way */
#define SS_HOLD_SPINS 200u
#define SS_CHANGES 128u              /* kept until Python fetches them */
#define SS_CHANGE_WAIT_NS 100000000ll /* the default bound of a changer's wait */
#define SS_CHANGE_GRACE_NS 50000000ll /* from SIGKILL until a changer goes ahead */
#define SS_CHANGE_POLL_NS 2000000ll
#define SS_BUSY_NS 50000ll /* between two looks at a slot that a changer deals with */
#define SS_FUTEX_PRIVATE 128
#define SS_FUTEX_WAIT 0
#define SS_FUTEX_WAKE 1
#define SS_KCMP_VM 1 /* kcmp(2) */

/* The lock word: spawners in the low bits, changers above them, and two flags. */
#define SS_EPOCH_ANY UINT64_MAX
#define SS_SPAWNER 1u
#define SS_SPAWNERS 0xffu
#define SS_CHANGER 0x100u
#define SS_CHANGERS 0x3fffff00u
#define SS_SPAWNER_WAITS 0x40000000u /* for the changers that are in: no other may begin */
#define SS_CHANGER_WAITS 0x80000000u

enum {
	SS_SLOT_FREE,
	SS_SLOT_TAKEN,   /* its owner is filling it in */
	SS_SLOT_HELD,    /* counts as a spawner */
	SS_SLOT_WATCHED, /* its child has memory of its own, and only wants to know */
	SS_SLOT_BUSY,    /* a changer deals with its child */
	SS_SLOT_DROPPED, /* a changer went ahead without it: no longer counted */
};

/* A spawner in the lock. The pointers lead into its window and are good while it holds. */
struct ss_slot {
	uint32_t state;
	uint32_t killed;       /* children of its that were killed for a changer, before they ran execve */
	const int32_t *pidfd;  /* where the kernel puts the child's; NULL: not our window */
	const uint32_t *owner; /* the futex that the kernel marks when the child has left */
	uint32_t *moved;       /* where a child with memory of its own looks; NULL: it shares ours */
	int32_t tid;           /* of the spawner */
	int32_t killed_pid;    /* the last of them, where it is not our window */
	int64_t killed_ns;     /* when: its signal needs a moment to reach a processor */
};

/* What the ids of struct ss_creds do not say: for the audit only. */
struct ss_more {
	uint32_t fsuid, fsgid, ngroups; /* UINT32_MAX: could not be read */
	uint32_t groups[SS_SOME_GROUPS];
};

/* One change that was seen, for the audit. seq is its number plus one once it is whole. */
struct ss_change {
	uint64_t seq;
	int64_t time_ns; /* CLOCK_REALTIME */
	int32_t call, tid, error;
	uint32_t through; /* SS_THROUGH_... */
	uint64_t arguments[3];
	int64_t waited_ns;
	uint32_t killed; /* children that its wait cost */
	struct ss_creds before, after;
	struct ss_more more_before, more_after;
	char text[SS_TEXT_BYTES]; /* a path, where the call takes one */
};

struct ss_lock {
	int32_t pid; /* whose; 0: the kernel has cleared it, for a forked process */
	int64_t since_ns; /* when it became that process's: pids are used again */
	uint32_t word;
	uint32_t stain; /* a change that no comparison of threads would show: its call + 1 */
	uint32_t overlaps; /* changes that went ahead although a child of others shared memory */
	uint32_t watchers;
	uint64_t epoch;
	uint64_t verified; /* the epoch at which all threads were alike, plus one */
	uint64_t verified_adds, verified_subs; /* and the objects that were loaded then */
	uint64_t looked;   /* the epoch of the last look, plus one */
	uint64_t changes;  /* seen */
	uint64_t taken;    /* of these, by Python; the ring may have lost some before */
	struct ss_slot slots[SS_SLOTS];
	struct ss_change ring[SS_CHANGES];
};

static struct ss_lock *ss_lock;
static int64_t ss_change_wait_ns = SS_CHANGE_WAIT_NS;

/* ------------------------------------------------------------------ its memory */

static int32_t
ss_getpid(void)
{
	return (int32_t)ss_sys0(SYS_getpid);
}

static uint64_t
ss_block_all(void)
{
	const uint64_t all = ~0ull;
	uint64_t mask = 0;

	(void)ss_sys4(SYS_rt_sigprocmask, SIG_BLOCK, &all, &mask, 8); /* good arguments */
	return mask;
}

static void
ss_unblock(uint64_t mask)
{
	(void)ss_sys4(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8);
}

/* Makes the memory of the lock, once in the life of the program. Returns 0 or -errno. */
static int
ss_lock_map(void)
{
	const size_t bytes = ss_pages(sizeof(struct ss_lock));
	struct ss_lock *lock;
	int error;

	if (ss_lock)
		return 0;
	lock = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (lock == MAP_FAILED)
		return -errno;
	if (madvise(lock, bytes, SS_MADV_WIPEONFORK)) {
		error = -errno;
		(void)munmap(lock, bytes); /* our own mapping */
		return error;
	}
	lock->pid = ss_getpid();
	lock->since_ns = ss_now();
	__atomic_store_n(&ss_lock, lock, __ATOMIC_RELEASE);
	return 0;
}

/* The lock if it is this process's, else NULL: never armed, or another's memory. */
static struct ss_lock *
ss_lock_ours(void)
{
	struct ss_lock *lock = __atomic_load_n(&ss_lock, __ATOMIC_ACQUIRE);
	const int32_t pid = lock ? ss_getpid() : 0;
	int32_t whose = 0;
	int64_t since = 0;

	if (!lock)
		return NULL;
	/*
	 * Cleared by the kernel: we were forked, and are the first to use it. The time comes first: by the
	 * pid another thread knows the lock for its own, and a change that it begins must end by the same time.
	 */
	if (__atomic_load_n(&lock->pid, __ATOMIC_ACQUIRE) == 0) {
		(void)__atomic_compare_exchange_n(&lock->since_ns, &since, ss_now(), 0, __ATOMIC_SEQ_CST,
						  __ATOMIC_SEQ_CST);
		(void)__atomic_compare_exchange_n(&lock->pid, &whose, pid, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
	return __atomic_load_n(&lock->pid, __ATOMIC_ACQUIRE) == pid ? lock : NULL;
}

static uint64_t
ss_epoch_of(const struct ss_lock *lock)
{
	return lock ? __atomic_load_n(&lock->epoch, __ATOMIC_SEQ_CST) : 0;
}

/* ------------------------------------------------------------------- spawners */

static void
ss_lock_wake(struct ss_lock *lock)
{
	(void)ss_sys3(SYS_futex, &lock->word, SS_FUTEX_WAKE | SS_FUTEX_PRIVATE, INT_MAX);
}

/* One spawner less: the last one wakes whoever waits. */
static void
ss_spawner_uncount(struct ss_lock *lock)
{
	uint32_t word;

	SS_SPAWNER_HOOK(-1);
	word = __atomic_sub_fetch(&lock->word, SS_SPAWNER, __ATOMIC_SEQ_CST);
	if (!(word & SS_SPAWNERS) && (word & SS_CHANGER_WAITS))
		ss_lock_wake(lock);
}

static struct ss_slot *
ss_slot_take(struct ss_lock *lock)
{
	unsigned i;

	for (i = 0; i < SS_SLOTS; i++) {
		uint32_t is_free = SS_SLOT_FREE;

		if (__atomic_compare_exchange_n(&lock->slots[i].state, &is_free, SS_SLOT_TAKEN, 0,
						__ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return &lock->slots[i];
	}
	return NULL;
}

/* One spawner more: 0, or -EBUSY. One that has waited comes before changers that wait. */
static int
ss_spawner_count(struct ss_lock *lock, int has_waited)
{
	const uint32_t in_the_way = has_waited ? SS_CHANGERS : SS_CHANGERS | SS_CHANGER_WAITS;
	uint32_t word = __atomic_load_n(&lock->word, __ATOMIC_SEQ_CST), next;

	do {
		if ((word & in_the_way) || (word & SS_SPAWNERS) >= SS_SPAWNERS_MAX)
			return -EBUSY;
		next = (has_waited ? word & ~SS_SPAWNER_WAITS : word) + SS_SPAWNER;
	} while (!__atomic_compare_exchange_n(&lock->word, &word, next, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
	SS_SPAWNER_HOOK(1);
	return 0;
}

/*
 * Joins the spawners, with all signals blocked. Returns 0, or -EBUSY when a changer is in
 * or waiting, when there is no room, or when something changed since epoch (SS_EPOCH_ANY:
 * that is for the caller). pidfd and owner: of a child that shares our memory, or NULL.
 */
static int
ss_spawner_enter(struct ss_slot **ret_slot, const int32_t *pidfd, const uint32_t *owner,
		 uint32_t *moved, uint64_t epoch)
{
	struct ss_lock *lock = ss_lock_ours();
	struct ss_slot *slot;

	if (!lock || ss_spawner_count(lock, epoch == SS_EPOCH_ANY))
		return -EBUSY;
	slot = ss_slot_take(lock);
	if (!slot || (epoch != SS_EPOCH_ANY && ss_epoch_of(lock) != epoch)) {
		if (slot)
			__atomic_store_n(&slot->state, SS_SLOT_FREE, __ATOMIC_RELEASE);
		ss_spawner_uncount(lock);
		return -EBUSY;
	}
	slot->killed = 0;
	slot->pidfd = pidfd;
	slot->owner = owner;
	slot->moved = moved;
	slot->tid = (int32_t)ss_sys0(SYS_gettid);
	__atomic_store_n(&slot->state, SS_SLOT_HELD, __ATOMIC_RELEASE);
	*ret_slot = slot;
	return 0;
}

/* No spawner waits any more: whoever it held off goes on. */
static void
ss_hold_end(struct ss_lock *lock)
{
	(void)__atomic_fetch_and(&lock->word, ~SS_SPAWNER_WAITS, __ATOMIC_SEQ_CST);
	ss_lock_wake(lock);
}

/*
 * Holds changes off for a child with memory of its own, because some came between again and
 * again. Tries for a moment to find none under way. At the bound the child is told that the
 * epoch has moved, and the change goes ahead. Returns NULL when that was in vain.
 */
static struct ss_slot *
ss_hold(uint32_t *moved)
{
	const int64_t until = ss_now() + SS_HOLD_NS;
	struct ss_lock *lock = ss_lock_ours();
	struct ss_slot *slot;
	unsigned i;

	while (lock && ss_now() < until) {
		/* Those that are in go on, and others may join them; when all have left none begins. */
		(void)__atomic_fetch_or(&lock->word, SS_SPAWNER_WAITS, __ATOMIC_SEQ_CST);
		for (i = 0; i < SS_HOLD_SPINS; i++)
			if (!(__atomic_load_n(&lock->word, __ATOMIC_RELAXED) & SS_CHANGERS) &&
			    !ss_spawner_enter(&slot, NULL, NULL, moved, SS_EPOCH_ANY))
				return slot;
		(void)ss_sys0(SYS_sched_yield);
	}
	if (lock)
		ss_hold_end(lock);
	return NULL;
}

/*
 * Has a child with memory of its own told when the epoch moves, from epoch on. Returns NULL
 * when there is no room, and then it is told at once: in doubt it does not run.
 */
static struct ss_slot *
ss_watch(struct ss_lock *lock, uint32_t *moved, uint64_t epoch)
{
	struct ss_slot *slot = ss_slot_take(lock);

	if (!slot) {
		*moved = 1;
		return NULL;
	}
	slot->killed = 0;
	slot->moved = moved;
	(void)__atomic_add_fetch(&lock->watchers, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&slot->state, SS_SLOT_WATCHED, __ATOMIC_SEQ_CST);
	/* After it can be told: a change in between is seen here or by who makes it. */
	if (ss_epoch_of(lock) != epoch)
		__atomic_store_n(moved, 1, __ATOMIC_SEQ_CST);
	return slot;
}

/*
 * Lets the changer go on that deals with a slot. Asleep, since sched_yield(2) gives the processor to nobody of a
 * lesser priority, and it may have no other. Nobody wakes us: it is done in a moment.
 */
static void
ss_slot_pause(const struct ss_slot *slot)
{
	const struct timespec moment = {0, SS_BUSY_NS};

	(void)ss_sys4(SYS_futex, &slot->state, SS_FUTEX_WAIT | SS_FUTEX_PRIVATE, SS_SLOT_BUSY, &moment);
}

/* Leaves. Returns whether a changer killed the child before that ran execve. */
static int
ss_slot_leave(struct ss_slot *slot)
{
	uint32_t state = __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE);
	int killed;

	/* A changer is about to signal our child by its pidfd, which must stay open for it. */
	while (state == SS_SLOT_BUSY ||
	       !__atomic_compare_exchange_n(&slot->state, &state, SS_SLOT_TAKEN, 0, __ATOMIC_ACQ_REL,
					    __ATOMIC_ACQUIRE)) {
		ss_slot_pause(slot);
		state = __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE);
	}
	killed = slot->killed != 0;
	__atomic_store_n(&slot->state, SS_SLOT_FREE, __ATOMIC_RELEASE);
	if (state == SS_SLOT_HELD)
		ss_spawner_uncount(ss_lock);
	if (state == SS_SLOT_WATCHED)
		(void)__atomic_sub_fetch(&ss_lock->watchers, 1, __ATOMIC_SEQ_CST);
	return killed;
}

/* ------------------------------------------------------- the bound of a changer */

/* Whether a process shares our memory: 0 when it does, as kcmp(2); it answers -ESRCH for one that has ended. */
static long
ss_memory_differs(int32_t pid)
{
	return ss_sys5(SYS_kcmp, ss_getpid(), pid, SS_KCMP_VM, 0, 0);
}

/* What ss_foreign_child looks for, and what it finds. */
struct ss_foreign {
	int32_t killed; /* the child that was killed last, 0 for none */
	int32_t pid;    /* of the one that was found, 0 for none */
	int is_there;   /* killed shares our memory still */
};

/* Looks at one child of the list: whether to go on. none becomes -EXDEV for one that we may not compare. */
static int
ss_foreign_look(struct ss_foreign *f, int32_t pid, long *none)
{
	const long differs = ss_memory_differs(pid);

	if (differs) {
		if (differs < 0 && differs != -ESRCH)
			*none = -EXDEV;
		return 1;
	}
	f->is_there = pid == f->killed;
	if (!f->is_there)
		f->pid = pid;
	return !f->is_there;
}

/* A file of a thread of ours in /proc, to read: its descriptor or -errno. */
static long
ss_foreign_open(int32_t tid, const char *name)
{
	char path[64], *at = path;

	ss_child_number(path + ss_child_copy_text(path, 32, "/proc/self/task/"), tid);
	while (*at)
		at++;
	(void)ss_child_copy_text(at, 16, name);
	return ss_sys4(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
}

/*
 * Whether the thread tid may sleep in vfork: then its state is D, the third field of proc_pid_stat(5). The child that it
 * waits for wakes it before giving up our memory. In doubt it does sleep: our wait has its bound.
 */
static int
ss_foreign_sleeps(int32_t tid)
{
	char text[128]; /* a number, and a name in brackets that may hold anything: behind it are only numbers */
	const long fd = ss_foreign_open(tid, "/stat");
	long bytes, at;

	if (fd < 0)
		return 1;
	bytes = ss_sys3(SYS_read, fd, text, sizeof(text));
	(void)ss_sys1(SYS_close, fd); /* read only */
	for (at = bytes - 3; at > 0 && text[at] != ')'; at--)
		;
	return at <= 0 || text[at + 2] == 'D';
}

/*
 * The child that a libc function has in vfork for the thread tid, as a pidfd or -errno: ESRCH when there is none,
 * EXDEV when there are some that we may not compare (kcmp(2)). The list is in the order of birth: others that share
 * our memory, which tid does not wait for, come before it, but for those that it got from threads that have ended.
 * So what was killed may have been one of these, and while it is there only what comes before it is looked at.
 */
static long
ss_foreign_child(int32_t tid, struct ss_foreign *f)
{
	char text[1024], *at;
	long fd, bytes = 0, none = -ESRCH;
	int32_t pid = 0;
	int goes_on = 1;

	if ((fd = ss_foreign_open(tid, "/children")) < 0)
		return fd;
	while (goes_on && (bytes = ss_sys3(SYS_read, fd, text, sizeof(text))) > 0) {
		for (at = text; goes_on && at < text + bytes; at++) {
			if (*at >= '0' && *at <= '9') {
				pid = pid * 10 + (*at - '0'); /* may go on in the next piece */
				continue;
			}
			goes_on = !pid || ss_foreign_look(f, pid, &none);
			pid = 0;
		}
	}
	(void)ss_sys1(SYS_close, fd); /* read only */
	if (bytes < 0)
		return bytes;
	return f->pid ? ss_sys2(SYS_pidfd_open, f->pid, 0) : none;
}

/*
 * Whether the child of a slot can run on our memory no more, because of execve or death. pid: of one that others
 * have made. One that we may not compare has become a program with more privileges.
 */
static int
ss_slot_child_left(const struct ss_slot *slot, int32_t pidfd, int32_t pid)
{
	if (ss_has_ended(pidfd))
		return 1;
	if (!slot->owner)
		return ss_memory_differs(pid) != 0;
	return (__atomic_load_n(slot->owner, __ATOMIC_SEQ_CST) & SS_OWNER_DIED) != 0;
}

/*
 * Kills a child that has not run execve yet: 1 when it is killed, 0 when it had left, or -errno. It is stopped first:
 * a stopped child that has not left our memory when we look will never execute an instruction of the program,
 * so that the spawner may start it once more; one that has left is let go on.
 */
static int
ss_slot_kill(struct ss_slot *slot, int32_t pidfd, int32_t pid)
{
	long answer = ss_sys4(SYS_pidfd_send_signal, pidfd, SIGSTOP, NULL, 0);

	if (answer < 0)
		return answer == -ESRCH ? 0 : (int)answer; /* it has ended, or we may not */
	if (ss_slot_child_left(slot, pidfd, pid)) {
		(void)ss_sys4(SYS_pidfd_send_signal, pidfd, SIGCONT, NULL, 0); /* or it has ended */
		return 0;
	}
	answer = ss_sys4(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	if (answer < 0) {
		(void)ss_sys4(SYS_pidfd_send_signal, pidfd, SIGCONT, NULL, 0); /* as above, or refused */
		return answer == -ESRCH ? 0 : (int)answer;
	}
	slot->killed++; /* its owner sees that only when we are done with the slot */
	slot->killed_ns = ss_now();
	slot->killed_pid = pid;
	return 1;
}

/* Whether its child was killed long enough ago that it runs on no processor any more. */
static int
ss_slot_is_gone(const struct ss_slot *slot)
{
	return slot->killed && ss_now() - slot->killed_ns >= SS_CHANGE_GRACE_NS;
}

/* Kills the child of a slot: 1, 0 when it had left, or -errno. */
static int
ss_slot_shoot(struct ss_slot *slot, int32_t pidfd, int32_t pid, int may_drop, uint32_t *ret_overlaps)
{
	const int answer = ss_slot_kill(slot, pidfd, pid);

	/* Refused: we have fewer privileges than the child already, and to wait protects nothing. */
	*ret_overlaps = answer < 0 && may_drop && !ss_slot_child_left(slot, pidfd, pid);
	return answer;
}

/*
 * ss_slot_preempt for a thread in libc, whose child is looked for, and then whether it sleeps: awake it is before its
 * clone, or back from it and about to leave the lock, and whatever else is on our memory is not what it waits for. If
 * others are when the one that was killed had its grace, and the thread still sleeps, that was another: they are next.
 */
static uint32_t
ss_foreign_preempt(struct ss_slot *slot, int may_drop, uint32_t *ret_overlaps)
{
	struct ss_foreign found = { slot->killed ? slot->killed_pid : 0, 0, 0 };
	const long pidfd = ss_foreign_child(slot->tid, &found);
	const int waits = (slot->killed && !ss_slot_is_gone(slot)) || !ss_foreign_sleeps(slot->tid);

	if (pidfd == -ESRCH) /* none, or the one that was found has ended since: then there may be others */
		return found.is_there && !found.pid && !waits ? SS_SLOT_DROPPED : SS_SLOT_HELD;
	if (pidfd < 0)
		*ret_overlaps = may_drop && !waits;
	else if (!waits)
		(void)ss_slot_shoot(slot, (int32_t)pidfd, found.pid, may_drop, ret_overlaps);
	if (pidfd >= 0)
		(void)ss_sys1(SYS_close, pidfd); /* a pidfd: nothing to lose */
	SS_KILLED_HOOK(slot->killed, &slot->killed_ns, may_drop);
	return *ret_overlaps ? SS_SLOT_DROPPED : SS_SLOT_HELD;
}

/*
 * Deals with one spawner that has kept a changer waiting too long. Returns the new state:
 * HELD when its child is not known yet (it is about to be made), DROPPED when the change
 * may go ahead: the child has left our memory, or it has SIGKILL pending for the grace and
 * sleeps in the kernel, from where it never comes back to our code. The grace counts from the
 * kill: a child may be named, and killed, when our own wait is long over.
 */
static uint32_t
ss_slot_preempt(struct ss_slot *slot, int may_drop, uint32_t *ret_overlaps)
{
	int32_t pidfd;

	if (slot->moved) { /* nothing of ours is shared: enough that the child is told */
		__atomic_store_n(slot->moved, 1, __ATOMIC_SEQ_CST);
		return SS_SLOT_DROPPED;
	}
	if (!slot->pidfd)
		return ss_foreign_preempt(slot, may_drop, ret_overlaps);
	/*
	 * clone(2) stores a number even if it fails afterwards (pids.max): until the child is named
	 * (ss_clone_fill) there may be no such descriptor, or another thread has it by now.
	 */
	if (!__atomic_load_n(slot->owner, __ATOMIC_SEQ_CST) ||
	    (pidfd = __atomic_load_n(slot->pidfd, __ATOMIC_ACQUIRE)) < 0)
		return SS_SLOT_HELD;
	/* A child that runs its program may wait here for others of its batch: that is not to be stopped. */
	if (ss_slot_child_left(slot, pidfd, 0))
		return SS_SLOT_DROPPED;
	if (!slot->killed && !ss_slot_shoot(slot, pidfd, 0, may_drop, ret_overlaps))
		return SS_SLOT_DROPPED;
	SS_KILLED_HOOK(slot->killed, &slot->killed_ns, may_drop);
	return *ret_overlaps || ss_slot_is_gone(slot) ? SS_SLOT_DROPPED : SS_SLOT_HELD;
}

/* change-bounded (T-22): goes through the spawners. Returns how many children were killed. */
static uint32_t
ss_preempt(struct ss_lock *lock, int may_drop)
{
	const uint64_t mask = ss_block_all(); /* a handler must not leave a slot busy */
	uint32_t killed = 0;
	unsigned i;

	for (i = 0; i < SS_SLOTS; i++) {
		struct ss_slot *slot = &lock->slots[i];
		uint32_t state = SS_SLOT_HELD, was, overlaps = 0;

		if (!__atomic_compare_exchange_n(&slot->state, &state, SS_SLOT_BUSY, 0, __ATOMIC_ACQUIRE,
						 __ATOMIC_RELAXED))
			continue;
		was = slot->killed;
		state = ss_slot_preempt(slot, may_drop, &overlaps);
		killed += slot->killed - was;
		(void)__atomic_add_fetch(&lock->overlaps, overlaps, __ATOMIC_RELAXED);
		__atomic_store_n(&slot->state, state, __ATOMIC_RELEASE);
		if (state == SS_SLOT_DROPPED)
			ss_spawner_uncount(lock);
	}
	ss_unblock(mask);
	return killed;
}

/* Sleeps until the word is another, for a moment at most. */
static void
ss_change_sleep(struct ss_lock *lock, uint32_t word, int64_t ns)
{
	/* Until the bound; past it, and for bounds above a second, again and again. */
	const struct timespec left = {0, ns <= 0 || ns > 999999999ll ? SS_CHANGE_POLL_NS : ns};

	/* Woken, timed out, interrupted, changed meanwhile or refused: the caller looks again. */
	(void)ss_sys4(SYS_futex, &lock->word, SS_FUTEX_WAIT | SS_FUTEX_PRIVATE, word, &left);
}

/* ------------------------------------------------------------------- changers */

/* A change under way: on the stack of whoever makes it. lock is NULL where it is bypassed. */
struct ss_changing {
	struct ss_lock *lock;
	int32_t pid; /* who began it: a forked child has nothing to end */
	int64_t since_ns; /* which may have the same pid, in a namespace of its own */
	struct ss_change seen;
};

/* Tries to join the changers: 1, or 0 with the word to wait on. */
static int
ss_changer_join(struct ss_lock *lock, uint32_t *ret_word)
{
	uint32_t word = __atomic_load_n(&lock->word, __ATOMIC_SEQ_CST);

	for (;;) {
		/* libpsx has all threads change at once: those may join the one that waits for them. */
		const int held_off = (word & SS_SPAWNER_WAITS) && !(word & SS_CHANGERS);
		const int may_join = (!(word & SS_SPAWNERS) && !held_off) || !SS_GUARDED(CHANGES_WAIT);
		const uint32_t next =
		    may_join ? (word & ~SS_CHANGER_WAITS) + SS_CHANGER : word | SS_CHANGER_WAITS;

		if (next == word || __atomic_compare_exchange_n(&lock->word, &word, next, 0, __ATOMIC_SEQ_CST,
								__ATOMIC_SEQ_CST)) {
			*ret_word = next;
			return may_join;
		}
	}
}

/*
 * Takes a slot whose child wants to know. One that another changer has busy may not be told yet: our
 * change must not go on before it is, or the child would run in the middle of it.
 */
static int
ss_slot_busy(struct ss_slot *slot)
{
	for (;;) {
		uint32_t state = SS_SLOT_WATCHED;

		if (__atomic_compare_exchange_n(&slot->state, &state, SS_SLOT_BUSY, 0, __ATOMIC_ACQUIRE,
						__ATOMIC_RELAXED))
			return 1;
		if (state != SS_SLOT_BUSY)
			return 0;
		SS_BUSY_HOOK();
		ss_slot_pause(slot);
	}
}

/* Moves the epoch and tells the children that have memory of their own. */
static void
ss_epoch_move(struct ss_lock *lock)
{
	uint64_t mask;
	unsigned i;

	(void)__atomic_add_fetch(&lock->epoch, 1, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&lock->watchers, __ATOMIC_SEQ_CST))
		return;
	mask = ss_block_all(); /* a handler must not leave a slot busy */
	for (i = 0; i < SS_SLOTS; i++) {
		struct ss_slot *slot = &lock->slots[i];

		if (!ss_slot_busy(slot))
			continue;
		SS_TELL_HOOK();
		__atomic_store_n(slot->moved, 1, __ATOMIC_SEQ_CST);
		__atomic_store_n(&slot->state, SS_SLOT_WATCHED, __ATOMIC_RELEASE);
	}
	ss_unblock(mask);
}

/* changes-wait (T-21): until no child shares our memory, or it was killed at the bound. */
static void
ss_changer_enter(struct ss_changing *c)
{
	struct ss_lock *lock = c->lock;
	int64_t start = 0, now = 0;
	uint32_t word;

	while (!ss_changer_join(lock, &word)) {
		now = ss_now();
		start = start ? start : now;
		if (now - start >= ss_change_wait_ns && (word & SS_SPAWNER_WAITS))
			ss_hold_end(lock); /* its thread may be gone */
		if (now - start >= ss_change_wait_ns && SS_GUARDED(CHANGE_BOUNDED))
			c->seen.killed += ss_preempt(lock, now - start >= ss_change_wait_ns + SS_CHANGE_GRACE_NS);
		ss_change_sleep(lock, word, ss_change_wait_ns - (now - start));
	}
	c->seen.waited_ns = start ? ss_now() - start : 0;
	SS_CHANGER_HOOK(1, c->seen.waited_ns);
	if (c->seen.call) /* without a name: a wrapper inside does it */
		ss_epoch_move(lock);
}

static void
ss_changer_leave(struct ss_lock *lock, int call)
{
	if (call)
		ss_epoch_move(lock);
	SS_CHANGER_HOOK(-1, 0);
	(void)__atomic_sub_fetch(&lock->word, SS_CHANGER, __ATOMIC_SEQ_CST);
}

typedef uint64_t __attribute__((may_alias)) ss_change_word;

_Static_assert(offsetof(struct ss_change, seq) == 0, "the first word tells whether the others are whole");
_Static_assert(sizeof(struct ss_change) % sizeof(ss_change_word) == 0, "a change is copied in words");

/*
 * All but seq. Word by word, because a place of the ring may be read while it is filled: what was copied then is
 * not used, but a plain copy would be a data race all the same.
 */
static void
ss_change_words(struct ss_change *to, const struct ss_change *from)
{
	const ss_change_word *source = (const ss_change_word *)from;
	ss_change_word *target = (ss_change_word *)to;
	size_t i;

	for (i = 1; i < sizeof(*to) / sizeof(*target); i++)
		__atomic_store_n(&target[i], __atomic_load_n(&source[i], __ATOMIC_RELAXED), __ATOMIC_RELAXED);
}

/* Keeps what was seen until Python fetches it; the oldest goes when there is no room. */
static void
ss_change_keep(struct ss_lock *lock, const struct ss_change *seen)
{
	const uint64_t number = __atomic_fetch_add(&lock->changes, 1, __ATOMIC_SEQ_CST);
	struct ss_change *place = &lock->ring[number % SS_CHANGES];

	__atomic_store_n(&place->seq, 0, __ATOMIC_SEQ_CST);
	/* No word before that: later stores may pass a store that releases (aarch64), and would carry the old number. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	ss_change_words(place, seen);
	__atomic_store_n(&place->seq, number + 1, __ATOMIC_SEQ_CST);
}

/* setfs*id asked for an id that is none names the present one, and getgroups counts or fills. */
static void
ss_more_read(struct ss_more *more)
{
	const long fsuid = ss_sys1(SYS_setfsuid, -1), fsgid = ss_sys1(SYS_setfsgid, -1);
	const long count = ss_sys2(SYS_getgroups, 0, NULL);

	more->fsuid = fsuid < 0 && fsuid > -4096 ? UINT32_MAX : (uint32_t)fsuid;
	more->fsgid = fsgid < 0 && fsgid > -4096 ? UINT32_MAX : (uint32_t)fsgid;
	more->ngroups = count < 0 ? UINT32_MAX : (uint32_t)count;
	if (count > 0 && count <= (long)SS_SOME_GROUPS)
		(void)ss_sys2(SYS_getgroups, SS_SOME_GROUPS, more->groups);
}

static void
ss_change_begin(struct ss_changing *c, int call, uint32_t through)
{
	memset(c, 0, sizeof(*c));
	c->lock = ss_lock_ours();
	c->seen.call = call;
	c->seen.through = through;
	if (!c->lock)
		return;
	c->pid = ss_getpid();
	c->since_ns = __atomic_load_n(&c->lock->since_ns, __ATOMIC_SEQ_CST);
	c->seen.tid = (int32_t)ss_sys0(SYS_gettid);
	ss_changer_enter(c);
	if (!call)
		return;
	(void)ss_child_read_creds(&c->seen.before); /* zeros say that it could not be read */
	ss_more_read(&c->seen.more_before);
	c->seen.before.epoch = ss_epoch_of(c->lock);
}

/* In _ask.c. */
static void ss_helpers_heed(const struct ss_change *seen);

static void
ss_change_end(struct ss_changing *c, int error)
{
	struct timespec now = {0, 0};

	/* A fork in between: the lock may be the child's already, but nobody has entered it there. */
	if (!c->lock || c->pid != ss_getpid() ||
	    c->since_ns != __atomic_load_n(&c->lock->since_ns, __ATOMIC_SEQ_CST))
		return;
	(void)ss_sys2(SYS_clock_gettime, CLOCK_REALTIME, &now); /* good arguments */
	c->seen.time_ns = now.tv_sec * 1000000000ll + now.tv_nsec;
	c->seen.error = error;
	if (c->seen.call) {
		(void)ss_child_read_creds(&c->seen.after);
		ss_more_read(&c->seen.more_after);
		ss_change_keep(c->lock, &c->seen);
		ss_helpers_heed(&c->seen);
	}
	ss_changer_leave(c->lock, c->seen.call);
}

/* ----------------------------------------------------------- for raw callers */

/*
 * Brackets a change that is made by raw system call (call SS_CALL_RAW), or waits for one
 * that a wrapper will see (SS_CALL_NONE). Between the two no child shares our
 * memory. Must be ended by the same process; a forked child has nothing to end.
 */
SS_API void
ss_credential_change_begin(struct ss_changing *c, int call)
{
	ss_change_begin(c, call, 0);
}

SS_API void
ss_credential_change_end(struct ss_changing *c, int error)
{
	ss_change_end(c, error);
	c->lock = NULL;
}

/* The same for whatever forgot to end it. */
SS_API void
ss_credential_change_drop(struct ss_changing *c)
{
	ss_credential_change_end(c, ECANCELED);
}

/* Waits until no changer is in or waiting: 0, or -ETIMEDOUT after ns. */
SS_API int
ss_await_changers(int64_t ns)
{
	struct ss_lock *lock = ss_lock_ours();
	const int64_t until = ss_now() + ns;
	uint32_t word;

	while (lock && ((word = __atomic_load_n(&lock->word, __ATOMIC_SEQ_CST)) & (SS_CHANGERS | SS_CHANGER_WAITS))) {
		if (ss_now() >= until)
			return -ETIMEDOUT;
		ss_change_sleep(lock, word, SS_CHANGE_POLL_NS);
	}
	return 0;
}

/* Copies the change with that number: 1, or 0 when it is being written or is there no more. */
static int
ss_change_copy(const struct ss_lock *lock, uint64_t number, struct ss_change *ret_change)
{
	const struct ss_change *place = &lock->ring[number % SS_CHANGES];
	const uint64_t seq = __atomic_load_n(&place->seq, __ATOMIC_SEQ_CST);

	ss_change_words(ret_change, place);
	ret_change->seq = seq;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return seq == number + 1 && __atomic_load_n(&place->seq, __ATOMIC_SEQ_CST) == seq;
}

/*
 * Takes the oldest change that nobody has taken. Returns 1, 0 when there is none (or it is
 * just being written), -ENOENT when changes were lost because the ring has no room for
 * them: ret_change->seq is how many. Each is taken once, whoever asks.
 */
SS_API int
ss_change_take(struct ss_change *ret_change)
{
	struct ss_lock *lock = ss_lock_ours();
	uint64_t number = lock ? __atomic_load_n(&lock->taken, __ATOMIC_SEQ_CST) : 0;

	while (lock) {
		const uint64_t made = __atomic_load_n(&lock->changes, __ATOMIC_SEQ_CST);
		const uint64_t oldest = made > SS_CHANGES ? made - SS_CHANGES : 0;
		const int is_lost = number < oldest;

		if (number >= made || (!is_lost && !ss_change_copy(lock, number, ret_change)))
			return 0;
		if (__atomic_compare_exchange_n(&lock->taken, &number, is_lost ? oldest : number + 1, 0,
						__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			if (is_lost)
				ret_change->seq = oldest - number;
			return is_lost ? -ENOENT : 1;
		}
	}
	return 0;
}
