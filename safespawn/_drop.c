/*
 * The steps by which a child loses privileges for good, and makes sure of it. They run in
 * memory of its own only: a forked child, or the launcher. Whatever may change credentials
 * goes through the gate (_sys.h).
 */

#define SS_CAP_SETGID 6 /* linux/capability.h */
#define SS_CAP_SETUID 7
#define SS_CAP_SETPCAP 8
#define SS_CAP_BITS 64
#define SS_CAP_OLDEST 37 /* CAP_AUDIT_READ: the last that every kernel has on which we run */
#define SS_CAP_AMBIENT 47 /* PR_CAP_AMBIENT of prctl(2), Linux 4.3, and what it takes */
#define SS_CAP_AMBIENT_IS_SET 1
#define SS_AMBIENT_RAISE 2
#define SS_AMBIENT_CLEAR 4

SS_INLINE int
ss_child_is_unprivileged(const struct ss_plan *plan)
{
	return (plan->want.flags & SS_SET_UID) && plan->want.uid != 0;
}

/* Whether the child gets a user namespace of its own: there the ids that it had have other numbers. */
SS_INLINE int
ss_child_leaves_users(const struct ss_plan *plan)
{
	return ((plan->want.unshared | plan->want.born_in) & SS_CLONE_NEWUSER) != 0;
}

/* Whether the capabilities are to be another set than now, and which. */
SS_INLINE int
ss_child_sets_caps(const struct ss_plan *plan)
{
	return (plan->want.flags & SS_SET_CAPS) || ss_child_is_unprivileged(plan);
}

SS_INLINE uint64_t
ss_child_kept(const struct ss_plan *plan)
{
	return plan->want.flags & SS_SET_CAPS ? plan->want.caps : 0;
}

/* What is no capability of this kernel (EINVAL) ends the list; of one that there must be, it is a refusal. */
SS_INLINE int
ss_child_caps_end(long cap, long answer)
{
	return answer == -EINVAL && cap > SS_CAP_OLDEST;
}

/* Before the uid changes, while we may. */
static SS_CHILD int
ss_child_bounding(const struct ss_plan *plan)
{
	long cap, held, answer;

	if (!(plan->want.flags & SS_SET_CAPS))
		return 0;
	for (cap = 0; cap < SS_CAP_BITS; cap++) {
		if ((held = ss_sys2(SYS_prctl, PR_CAPBSET_READ, cap)) < 0)
			return ss_child_caps_end(cap, held) ? 0 : ss_child_error(held);
		if (!held || plan->want.caps >> cap & 1)
			continue;
		if ((answer = ss_gate2(SYS_prctl, PR_CAPBSET_DROP, cap)) < 0)
			return ss_child_error(answer);
	}
	return 0;
}

/*
 * Groups first, then gid, then uid: after the uid has gone nothing may change the
 * others. EPERM is no verdict here: an unprivileged caller that asks for the
 * groups it has gets it too, and ss_child_ids_agree tells the two apart.
 */
static SS_CHILD int
ss_child_groups(const struct ss_plan *plan)
{
	int error;

	if (!(plan->want.flags & SS_SET_GROUPS))
		return 0;
	error = ss_child_error(ss_gate2(SYS_setgroups, plan->want.ngroups, plan->want.groups));
	/* In a namespace of its own one that is not mapped looks like any other: none must be left. */
	if (plan->want.ngroups && ss_child_leaves_users(plan))
		return error;
	return error == EPERM ? 0 : error;
}

static SS_CHILD int
ss_child_gid(const struct ss_plan *plan)
{
	const uint32_t gid = plan->want.gid;

	if (!(plan->want.flags & SS_SET_GID))
		return 0;
	return ss_child_error(ss_gate3(SYS_setresgid, gid, gid, gid));
}

/*
 * Leaving uid 0 takes the permitted set away unless the process asks to keep it
 * (PR_SET_KEEPCAPS of prctl(2)). execve forgets that wish, and so do we before it.
 */
static SS_CHILD int
ss_child_uid(const struct ss_plan *plan)
{
	const uint32_t uid = plan->want.uid;
	int error;

	if (!(plan->want.flags & SS_SET_UID))
		return 0;
	if ((ss_child_kept(plan) || (plan->want.flags & SS_SET_SECUREBITS)) &&
	    (error = ss_child_error(ss_gate2(SYS_prctl, PR_SET_KEEPCAPS, 1))))
		return error;
	if ((error = ss_child_error(ss_gate3(SYS_setresuid, uid, uid, uid))))
		return error;
	/* The new user must not look into what we still are, whatever fs.suid_dumpable says (proc(5)). */
	return ss_child_error(ss_sys2(SYS_prctl, PR_SET_DUMPABLE, 0));
}

static SS_CHILD int
ss_child_capset(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
	const struct {
		uint32_t version;
		int32_t pid;
	} header = {SS_CAPS_VERSION, 0};
	const uint32_t sets[6] = {
	    (uint32_t)effective,	 (uint32_t)permitted,	      (uint32_t)inheritable,
	    (uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32),
	};

	return ss_child_error(ss_gate2(SYS_capset, &header, sets));
}

/* The ambient set is what a program without file capabilities keeps (capabilities(7)). */
static SS_CHILD int
ss_child_ambient(uint64_t wanted)
{
	long cap, answer = ss_gate2(SYS_prctl, SS_CAP_AMBIENT, SS_AMBIENT_CLEAR);

	for (cap = 0; cap < SS_CAP_BITS && answer >= 0; cap++)
		if (wanted >> cap & 1)
			answer = ss_gate3(SYS_prctl, SS_CAP_AMBIENT, SS_AMBIENT_RAISE, cap);
	return ss_child_error(answer);
}

/*
 * setresuid clears capabilities only where no securebit and no "keep caps" says
 * otherwise (capabilities(7)), and never the inheritable set: say it outright. The right
 * to set securebits is kept until that is done: they may forbid to raise the ambient set.
 */
static SS_CHILD int
ss_child_caps(const struct ss_plan *plan)
{
	const uint64_t kept = ss_child_kept(plan);
	struct ss_creds now;
	uint64_t needed = 0;
	int error;

	if (!ss_child_sets_caps(plan))
		return 0;
	if (plan->want.flags & SS_SET_SECUREBITS) {
		if ((error = ss_child_read_creds(&now)))
			return error;
		needed = now.permitted & 1ull << SS_CAP_SETPCAP;
	}
	if ((error = ss_child_capset(kept | needed, kept | needed, kept)))
		return error;
	return plan->want.flags & SS_SET_CAPS ? ss_child_ambient(kept) : 0;
}

static SS_CHILD int
ss_child_securebits(const struct ss_plan *plan)
{
	const uint64_t kept = ss_child_kept(plan);
	int error;

	if (!(plan->want.flags & SS_SET_SECUREBITS))
		return 0;
	error = ss_child_error(ss_gate2(SYS_prctl, PR_SET_SECUREBITS, plan->want.securebits));
	return error || !ss_child_sets_caps(plan) ? error : ss_child_capset(kept, kept, kept);
}

static SS_CHILD int
ss_child_has(const uint32_t *sorted, uint32_t count, uint32_t value)
{
	uint32_t low = 0;

	while (low < count) {
		const uint32_t middle = low + (count - low) / 2;

		if (sorted[middle] == value)
			return 1;
		if (sorted[middle] < value)
			low = middle + 1;
		else
			count = middle;
	}
	return 0;
}

static SS_CHILD int
ss_child_groups_agree(const struct ss_plan *plan)
{
	uint32_t *now = (uint32_t *)(void *)plan->scratch;
	const long count = ss_sys2(SYS_getgroups, 0, NULL);
	uint32_t i;

	if (count < 0)
		return ss_child_error(count);
	if ((uint32_t)count != plan->want.ngroups)
		return EPERM;
	if (count && ss_sys2(SYS_getgroups, count, now) != count)
		return EPERM;
	/*
	 * Ours are sorted, and none is there twice; in a user namespace the kernel's order differs.
	 * The kernel keeps what is there twice side by side.
	 */
	for (i = 0; i < plan->want.ngroups; i++)
		if (!ss_child_has(plan->want.groups, plan->want.ngroups, now[i]) || (i && now[i] == now[i - 1]))
			return EPERM;
	return 0;
}

/* EPERM unless ambient is what was asked for, and nothing else can ever come back. */
static SS_CHILD int
ss_child_ambient_agrees(uint64_t kept)
{
	long cap, bound;

	for (cap = 0; cap < SS_CAP_BITS; cap++) {
		if ((bound = ss_sys2(SYS_prctl, PR_CAPBSET_READ, cap)) < 0)
			return ss_child_caps_end(cap, bound) ? 0 : ss_child_error(bound);
		if (bound && !(kept >> cap & 1))
			return EPERM;
		if (ss_gate3(SYS_prctl, SS_CAP_AMBIENT, SS_CAP_AMBIENT_IS_SET, cap) != (long)(kept >> cap & 1))
			return EPERM;
	}
	return 0;
}

static SS_CHILD int
ss_child_caps_agree(const struct ss_plan *plan, const struct ss_creds *now)
{
	const uint64_t kept = ss_child_kept(plan);

	if (ss_child_sets_caps(plan) &&
	    (now->effective != kept || now->permitted != kept || now->inheritable != kept))
		return EPERM;
	if ((plan->want.flags & SS_SET_SECUREBITS) &&
	    ss_sys1(SYS_prctl, PR_GET_SECUREBITS) != (long)plan->want.securebits)
		return EPERM;
	return plan->want.flags & SS_SET_CAPS ? ss_child_ambient_agrees(kept) : 0;
}

/* drop-verified (T-13): EPERM unless we are who we were to become, wholly. Says who we are. */
static SS_CHILD int
ss_child_ids_agree(const struct ss_plan *plan, struct ss_creds *ret_now)
{
	const uint64_t flags = plan->want.flags;
	const uint32_t uid = plan->want.uid, gid = plan->want.gid;
	struct ss_creds now;
	int error;

	if ((error = ss_child_read_creds(&now)))
		return error;
	*ret_now = now;
	if ((flags & SS_SET_UID) && (now.ruid != uid || now.euid != uid || now.suid != uid))
		return EPERM;
	if ((flags & SS_SET_GID) && (now.rgid != gid || now.egid != gid || now.sgid != gid))
		return EPERM;
	/* setfs*id cannot fail: asked for an id that is none, it names the present one. */
	if ((flags & SS_SET_UID) && (uint32_t)ss_gate1(SYS_setfsuid, -1) != uid)
		return EPERM;
	if ((flags & SS_SET_GID) && (uint32_t)ss_gate1(SYS_setfsgid, -1) != gid)
		return EPERM;
	if ((error = ss_child_caps_agree(plan, &now)))
		return error;
	return flags & SS_SET_GROUPS ? ss_child_groups_agree(plan) : 0;
}

/* Who keeps the capability to change its ids may have any of them: that was asked for. */
static SS_CHILD int
ss_child_regain_ids(const struct ss_plan *plan)
{
	const struct ss_creds *was = &plan->want.expected;
	const uint32_t uids[] = {0, was->ruid, was->euid, was->suid};
	const uint32_t gids[] = {0, was->rgid, was->egid, was->sgid};
	const int keeps_uid = ss_child_kept(plan) >> SS_CAP_SETUID & 1;
	const int keeps_gid = ss_child_kept(plan) >> SS_CAP_SETGID & 1;
	const long keep = -1;
	unsigned i;

	for (i = 0; i < 4; i++) {
		if (!keeps_uid && uids[i] != plan->want.uid &&
		    (ss_gate3(SYS_setresuid, keep, uids[i], keep) == 0 ||
		     ss_gate3(SYS_setresuid, uids[i], keep, keep) == 0))
			return ENOTRECOVERABLE;
		if (!keeps_gid && (plan->want.flags & SS_SET_GID) && gids[i] != plan->want.gid &&
		    (ss_gate3(SYS_setresgid, keep, gids[i], keep) == 0 ||
		     ss_gate3(SYS_setresgid, gids[i], keep, keep) == 0))
			return ENOTRECOVERABLE;
	}
	return 0;
}

/*
 * Tries to get back what was given up; ENOTRECOVERABLE if any of it can be had. Through
 * the gate, because the EPERM of the seal would say nothing about what we may.
 */
static SS_CHILD int
ss_child_regain(const struct ss_plan *plan)
{
	const uint64_t kept = ss_child_kept(plan), lost = plan->want.expected.permitted & ~kept;
	const int keeps_gid = kept >> SS_CAP_SETGID & 1;

	if (ss_child_sets_caps(plan) && lost && ss_child_capset(kept | lost, kept | lost, kept) == 0)
		return ENOTRECOVERABLE;
	if (!ss_child_is_unprivileged(plan))
		return 0;
	/* With the groups that we have, so that nothing changes if it works. */
	if ((plan->want.flags & SS_SET_GROUPS) && !keeps_gid &&
	    ss_gate2(SYS_setgroups, plan->want.ngroups, plan->want.groups) == 0)
		return ENOTRECOVERABLE;
	return ss_child_regain_ids(plan);
}

static SS_CHILD int
ss_child_verify(const struct ss_plan *plan)
{
	struct ss_creds now;
	int error;

	if (!(plan->want.flags & SS_CHANGES_CREDS) || !SS_GUARDED(DROP_VERIFIED))
		return 0;
	error = ss_child_ids_agree(plan, &now);
	return error ? error : ss_child_regain(plan);
}

static SS_CHILD int
ss_child_no_new_privs(const struct ss_plan *plan)
{
	if (!(plan->want.flags & SS_NO_NEW_PRIVS))
		return 0;
	return ss_child_error(ss_gate2(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1));
}

/*
 * Once more, last of all: what was to change has changed, what was not has not. In a user
 * namespace the old ids have other numbers, and both were asked for (_identity.py).
 */
static SS_CHILD int
ss_child_creds(const struct ss_plan *plan)
{
	const struct ss_creds want = plan->want.expected;
	struct ss_creds now;
	int error;

	if (!(plan->want.flags & SS_CHANGES_CREDS) && !ss_child_leaves_users(plan))
		return ss_child_creds_agree(&plan->want.expected);
	if (!SS_GUARDED(DROP_VERIFIED))
		return 0;
	if ((error = ss_child_ids_agree(plan, &now)))
		return error;
	if (!(plan->want.flags & SS_SET_UID) &&
	    (now.ruid != want.ruid || now.euid != want.euid || now.suid != want.suid))
		return ESTALE;
	if (!(plan->want.flags & SS_SET_GID) &&
	    (now.rgid != want.rgid || now.egid != want.egid || now.sgid != want.sgid))
		return ESTALE;
	return 0;
}
