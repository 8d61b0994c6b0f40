/*
 * Children that start side by side: their windows are open at the same time, one for each
 * request, and nobody sleeps in vfork. Part of _native.c, which includes it.
 *
 * The cures are those of one window (_native.c). What is different with many:
 *
 *  - Signals are blocked once, before the first clone, until the last child has left.
 *  - That we are alone is looked at before the first clone: from then on our own children
 *    are on our memory, and they do nothing but their steps.
 *  - Each child has its own stack, report and plan, and its own place in the credential
 *    lock. A change waits for the last of them, and at its bound kills those, and only
 *    those, that have not left.
 *  - We wait on the futex of the first that is still there, and look at the others each
 *    time that we wake: for their deadlines never later than these, for what they came to
 *    when the first has left. Those have long gone on into their programs.
 *  - A clone that fails is that request's alone.
 */

enum { SS_BATCH_MAX = 64 };

/* One of the requests, where its child lives, and what came of it. */
struct ss_batched {
	struct ss_arena *arena; /* of no other start of the call */
	const struct ss_request *request;
	struct ss_result *result;
};

struct ss_member {
	struct ss_window window;
	struct ss_slot *slot; /* NULL: not in the lock */
	int64_t until_ns;     /* its deadline; once it was killed, for how long we wait; 0: none */
	int stage, error;     /* of what failed before there was a child */
	int is_inside;
};

/* Nobody but the caller has to wait for it, and the caller does that here. */
static int
ss_may_batch(const struct ss_request *r)
{
	return (r->flags & SS_SHARE_MEMORY) && (r->flags & SS_AWAKE) && !(r->flags & SS_LAUNCH);
}

static void
ss_member_prepare(struct ss_member *m, const struct ss_batched *batched, int error)
{
	memset(m, 0, sizeof(*m));
	memset(batched->result, 0, sizeof(*batched->result));
	batched->result->pidfd = -1;
	m->stage = SS_STAGE_PREPARE;
	if (!error && !ss_may_batch(batched->request))
		error = -EINVAL;
	m->error = error ? error : ss_spawn_prepare(&m->window, batched->arena, batched->request);
	if (!m->error)
		ss_window_reset(&m->window);
}

static void
ss_member_refuse(struct ss_member *m, int error)
{
	if (m->error)
		return;
	m->stage = SS_STAGE_CLONE;
	m->error = error;
}

static int
ss_member_start(struct ss_member *m, int is_alone)
{
	int error;

	if ((m->window.flags & SS_REQUIRE_ALONE) && !is_alone)
		return -EBUSY;
	if ((error = ss_window_enter(&m->window, &m->slot)))
		return error;
	error = ss_window_open(&m->window);
	if (error && m->slot)
		(void)ss_slot_leave(m->slot);
	m->is_inside = !error;
	m->until_ns = m->window.deadline_ns;
	return error;
}

static void
ss_batch_start(struct ss_member *members, uint32_t count, uint64_t mask)
{
	uint64_t flags = 0;
	int is_alone;
	uint32_t i;

	for (i = 0; i < count; i++)
		flags |= members[i].error ? 0 : members[i].window.flags;
	is_alone = ss_window_is_alone(flags);
	for (i = 0; i < count; i++) {
		struct ss_member *m = &members[i];

		if (m->error)
			continue;
		if (m->window.child_mask)
			*m->window.child_mask = mask;
		m->stage = SS_STAGE_CLONE;
		m->error = ss_member_start(m, is_alone);
	}
}

static void
ss_member_leave(struct ss_member *m)
{
	ss_window_close(&m->window);
	if (m->slot)
		m->window.preempted = ss_slot_leave(m->slot);
	m->is_inside = 0;
}

/*
 * Whether the child has left, as far as we can know. One that dies before it could name the
 * futex to the kernel releases nothing: look closely at one at a time, and before a kill. One that
 * was killed must have ended, or its time must be over: see ss_bound.
 */
static int
ss_member_has_left(const struct ss_member *m, int is_late, int closely)
{
	const struct ss_window *w = &m->window;

	if (w->timed_out)
		return is_late || ss_has_ended(w->pidfd);
	if (__atomic_load_n(&ss_report_of(w->arena)->owner, __ATOMIC_SEQ_CST) & SS_OWNER_DIED)
		return 1;
	return (closely || is_late) && ss_has_ended(w->pidfd);
}

/* window-bounded (T-03): each by its own deadline. Returns whether it is inside still. */
static int
ss_member_look(struct ss_member *m, int64_t now, int closely)
{
	const int is_late = m->until_ns && now >= m->until_ns;

	if (ss_member_has_left(m, is_late, closely)) {
		ss_member_leave(m);
	} else if (is_late) {
		m->window.timed_out = 1;
		m->until_ns = now + SS_GRACE_NS;
		(void)ss_sys4(SYS_pidfd_send_signal, m->window.pidfd, SIGKILL, NULL, 0); /* ESRCH: it is dead */
	}
	return m->is_inside;
}

static void
ss_member_await(const struct ss_member *m, int64_t now, int64_t until)
{
	const uint32_t owner = __atomic_load_n(&ss_report_of(m->window.arena)->owner, __ATOMIC_SEQ_CST);

	if (m->window.timed_out)
		ss_await_exit(m->window.pidfd, until - now);
	else if (!(owner & SS_OWNER_DIED))
		ss_await_owner(&m->window, owner, now, until);
}

/* Until all have left. */
static void
ss_batch_await(struct ss_member *members, uint32_t count)
{
	for (;;) {
		const int64_t now = ss_now();
		const struct ss_member *first = NULL;
		int64_t until = now + SS_SLICE_NS;
		uint32_t i;

		for (i = 0; i < count; i++) {
			struct ss_member *m = &members[i];

			if (!m->is_inside || !ss_member_look(m, now, !first))
				continue;
			if (m->until_ns && m->until_ns < until)
				until = m->until_ns;
			first = first ? first : m;
		}
		if (!first)
			return;
		ss_member_await(first, now, until);
	}
}

static void
ss_batch_conclude(const struct ss_member *members, const struct ss_batched *batch, uint32_t count)
{
	uint32_t i;

	for (i = 0; i < count; i++) {
		if (members[i].error && members[i].stage == SS_STAGE_CLONE)
			ss_not_cloned(batch[i].result, members[i].window.flags, members[i].error);
		else if (members[i].error)
			ss_not_started(batch[i].result, members[i].stage, members[i].error);
		else
			ss_conclude(&members[i].window, batch[i].result);
		ss_arena_after(batch[i].arena, batch[i].result);
	}
}

/*
 * Starts programs side by side, for the process of that number (see ss_spawn_by), at most
 * SS_BATCH_MAX of them. Returns when each of them runs or never will; what became of it is in
 * its result, as ss_spawn tells it. All of their requests share memory, and are awake.
 */
SS_API void
ss_batch_by(uint64_t process, const struct ss_batched *batch, uint32_t count)
{
	struct ss_member members[SS_BATCH_MAX];
	struct ss_shield shield;
	int error = process == ss_process_number() ? 0 : -ECHILD, cancel_state, unshielded;
	uint32_t i;

	if (count > SS_BATCH_MAX)
		return; /* no result is set: nothing has come of any */
	/* Until all is told: a cancelled thread would leave children behind that nobody knows of. */
	(void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	for (i = 0; i < count; i++)
		ss_member_prepare(&members[i], &batch[i], error);
	if (!(unshielded = ss_shield_raise(&shield))) {
		ss_batch_start(members, count, shield.mask);
		ss_batch_await(members, count);
		ss_shield_lower(&shield);
	}
	for (i = 0; unshielded && i < count; i++)
		ss_member_refuse(&members[i], unshielded);
	ss_batch_conclude(members, batch, count);
	(void)pthread_setcancelstate(cancel_state, &cancel_state);
}
