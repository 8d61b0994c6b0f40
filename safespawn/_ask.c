/*
 * A child by way of the helper (_helper.c), seen from the daemon. We send the plan, sealed as the
 * launcher's is (_launch.c), with every descriptor that it names; the helper answers with the pidfd
 * of a child that is ours. From there on it is a window like that of any child with memory of its own.
 * Part of _native.c.
 *
 * A helper that does not answer is killed before anything else is tried, and the claim on the plan is
 * taken back: what was sent is run once, or never. [T-40 claim-first]
 */
#include "_helper.h"

#include "_message.c"

#define SS_ANSWER_NS 2000000000ll /* for a helper to answer; it takes well under a millisecond */
#define SS_CLAIM_NS 200000000ll	  /* for a child whose helper has died to claim its plan */
#define SS_CLAIM_LOOK_NS 1000000l
#define SS_HELPERS 8u		  /* at once in one process */
#define SS_CLONE_FS 0x200ull
#define SS_CAP_NICE 23		  /* CAP_SYS_NICE and CAP_SYS_RESOURCE, linux/capability.h */
#define SS_CAP_RESOURCE 24
#define SS_LOW_FD 512 /* of what lives long: as LOW_FD of _descriptors.py */

#ifndef SS_HELPER_SHA256
#define SS_HELPER_SHA256 "" /* nothing has this digest: a build without a helper */
#endif

/* Which file is the helper that was built with this core: SHA-256 in hex. */
SS_API const char *
ss_helper_digest(void)
{
	return SS_HELPER_SHA256;
}

/* A child that waits for its plan: ours to reap, whatever becomes of it. A pidfd of -1: there was no room for it yet. */
struct ss_idle {
	int32_t pid, pidfd;
};

/* A helper, as the process has it that started it. */
struct ss_helper {
	pthread_mutex_t lock; /* one request at a time */
	int32_t socket, pidfd, pid;
	int32_t owner, tid; /* the process that started it, and the thread */
	uint32_t keeps, place;
	uint64_t socket_inode;
	int32_t lost; /* why it is of no use any more, an errno */
	uint64_t asked;
	uint64_t settled; /* the request whose child we have by its claim: what is still said of it is known */
	struct ss_standing *then;
	struct ss_idle idle[SS_POOL_MAX];
	uint32_t nidle;
};

/* -------------------------------------------------------------------- drops */

/*
 * The helpers that end when we have dropped what they were started with. Read where a change of
 * credentials ends, which may be in a signal handler: no lock, raw system calls. helper-retires (T-39)
 */
struct ss_retiring {
	int32_t pid; /* whose it is: 0 for a free place */
	int32_t socket;
	uint64_t inode; /* of the socket */
	struct ss_creds creds;
};

static struct ss_retiring ss_retiring[SS_HELPERS];

static int
ss_has_dropped(const struct ss_creds *then, const struct ss_creds *now)
{
	const int has_uid = then->euid == now->ruid || then->euid == now->euid || then->euid == now->suid;
	const int has_gid = then->egid == now->rgid || then->egid == now->egid || then->egid == now->sgid;

	return !has_uid || !has_gid || (then->permitted & ~now->permitted);
}

/* Anybody in this process may close a descriptor, and another take its number. */
static int
ss_fd_is(int32_t fd, uint64_t inode)
{
	struct stat st;

	return fd >= 0 && ss_child_stat(fd, &st) == 0 && st.st_ino == inode;
}

/* Calls after which we cannot be what we were, whatever our ids are. */
static int
ss_change_confines(const struct ss_change *seen)
{
	switch (seen->call) {
	case SS_CALL_CHROOT:
	case SS_CALL_PIVOT_ROOT:
	case SS_CALL_SETNS:
	case SS_CALL_SECCOMP:
	case SS_CALL_LANDLOCK:
		return 1;
	case SS_CALL_UNSHARE:
		return (seen->arguments[0] & ~SS_CLONE_FS) != 0;
	case SS_CALL_PRCTL:
		return seen->arguments[0] == PR_SET_SECCOMP || seen->arguments[0] == PR_SET_NO_NEW_PRIVS ||
		       seen->arguments[0] == PR_SET_SECUREBITS || seen->arguments[0] == PR_CAPBSET_DROP;
	default:
		return 0;
	}
}

static void
ss_helpers_heed(const struct ss_change *seen)
{
	const int32_t pid = ss_getpid();
	struct ss_creds now;
	int confined;
	unsigned i;

	for (i = 0; i < SS_HELPERS; i++) {
		struct ss_retiring *r = &ss_retiring[i];

		/* A fork has our socket too, and drops for itself only. */
		if (__atomic_load_n(&r->pid, __ATOMIC_ACQUIRE) != pid || !SS_GUARDED(HELPER_RETIRES))
			continue;
		confined = ss_change_confines(seen) || ss_child_read_creds(&now);
		if ((confined || ss_has_dropped(&r->creds, &now)) && ss_fd_is(r->socket, r->inode))
			(void)ss_sys2(SYS_shutdown, r->socket, SHUT_WR); /* it sees the end, and goes */
	}
}

static int
ss_helper_enlist(struct ss_helper *h)
{
	unsigned i;

	for (i = 0; i < SS_HELPERS; i++) {
		int32_t is_free = 0;

		if (!__atomic_compare_exchange_n(&ss_retiring[i].pid, &is_free, -1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			continue;
		ss_retiring[i].socket = h->socket;
		ss_retiring[i].inode = h->socket_inode;
		ss_retiring[i].creds = h->then->creds;
		__atomic_store_n(&ss_retiring[i].pid, h->owner, __ATOMIC_RELEASE);
		h->place = i + 1;
		return 0;
	}
	return EMFILE;
}

static void
ss_helper_strike(struct ss_helper *h)
{
	if (h->place)
		__atomic_store_n(&ss_retiring[h->place - 1].pid, 0, __ATOMIC_RELEASE);
	h->place = 0;
}

/* ----------------------------------------------------------------- messages */

/* To a number that programs do not name, where the limit of open files leaves room for it. */
static int32_t
ss_fd_high(int32_t fd)
{
	const long high = fd < 0 || fd >= SS_LOW_FD ? -1 : ss_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, SS_LOW_FD);

	if (high < 0)
		return fd;
	(void)ss_sys1(SYS_close, fd); /* there are two of it */
	return (int32_t)high;
}

/* A copy there, or a negative errno: a handler that raises between two lines of Python can lose no copy of C's. */
static int32_t
ss_fd_copy(int32_t fd)
{
	const long high = ss_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, SS_LOW_FD);

	return (int32_t)(high < 0 ? ss_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3) : high);
}

/*
 * Takes one answer, and the pidfd with it (-1 for none), which is the caller's whatever is returned: 1, 0 at the
 * end, or a negative errno. There is room for one descriptor: the kernel lets go of any other, and of that one when
 * our table of open files is full, which is no fault of the helper's: the error is EMFILE then.
 */
static int
ss_told_take(const struct ss_helper *h, struct ss_told *told, int32_t *ret_pidfd)
{
	union {
		struct cmsghdr header;
		unsigned char room[CMSG_SPACE(sizeof(int32_t))];
	} extras;
	struct iovec iov = {told, sizeof(*told)};
	struct msghdr header = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &extras, .msg_controllen = CMSG_LEN(sizeof(int32_t))};
	const long bytes = ss_sys3(SYS_recvmsg, h->socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	const struct cmsghdr *c;

	*ret_pidfd = -1;
	if (bytes < 0)
		return (int)bytes;
	c = CMSG_FIRSTHDR(&header);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int32_t)))
		memcpy(ret_pidfd, CMSG_DATA(c), sizeof(int32_t));
	if (!bytes && !c)
		return 0;
	if (bytes != (long)sizeof(*told) || told->magic != SS_HELPER_MAGIC || (header.msg_flags & MSG_TRUNC) ||
	    (c && (header.msg_flags & MSG_CTRUNC)))
		return -EPROTO;
	if (header.msg_flags & MSG_CTRUNC)
		told->error = EMFILE;
	return 1;
}

/* Waits for something to read. Returns 0, ETIMEDOUT, or another errno. */
static int
ss_told_await(const struct ss_helper *h, int64_t until)
{
	struct pollfd poll = {h->socket, POLLIN, 0};
	const int64_t ns = until - ss_now();
	const struct timespec left = {ns / 1000000000ll, ns % 1000000000ll};
	long answer;

	if (ns <= 0)
		return ETIMEDOUT;
	answer = ss_sys5(SYS_ppoll, &poll, 1, &left, NULL, 8);
	return answer > 0 || answer == -EINTR ? 0 : answer ? (int)-answer : ETIMEDOUT;
}

/* ------------------------------------------------------- children that wait */

/* Whether the descriptor is that of a child of ours, as it must be. */
static int
ss_is_our_child(int32_t pidfd)
{
	siginfo_t info;

	memset(&info, 0, sizeof(info));
	return ss_sys5(SYS_waitid, SS_P_PIDFD, pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, NULL) == 0;
}

/* Ends a child that runs nothing, and reaps it within the grace that every kill has. */
static void
ss_idle_end(int32_t pidfd)
{
	siginfo_t info;

	(void)ss_sys4(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0); /* or it has ended */
	ss_await_exit(pidfd, SS_GRACE_NS);
	(void)ss_sys5(SYS_waitid, SS_P_PIDFD, pidfd, &info, WEXITED | WNOHANG | __WALL, NULL); /* or somebody has */
	(void)close(pidfd);
}

static void
ss_idle_keep(struct ss_helper *h, int32_t pid, int32_t pidfd)
{
	if (h->nidle == SS_POOL_MAX) { /* more than it was told to park: of requests that were given up */
		if (pidfd >= 0)
			ss_idle_end(pidfd);
		return;
	}
	h->idle[h->nidle].pid = pid;
	h->idle[h->nidle++].pidfd = ss_fd_high(pidfd);
}

/* A child that nobody waits for: it found its claim taken, and runs nothing. But one that we have already does. */
static void
ss_idle_late(struct ss_helper *h, const struct ss_told *told, int32_t pidfd)
{
	if (told->id && told->id == h->settled)
		ss_close(&pidfd); /* we have another */
	else
		ss_idle_keep(h, told->pid, pidfd);
}

/* Takes out the one with that pid: its pidfd, or -1. */
static int32_t
ss_idle_take(struct ss_helper *h, int32_t pid)
{
	int32_t pidfd = -1;
	uint32_t i;

	for (i = 0; i < h->nidle && pidfd < 0; i++)
		if (h->idle[i].pid == pid) {
			pidfd = h->idle[i].pidfd;
			h->idle[i] = h->idle[--h->nidle];
		}
	return pidfd;
}

/* The pidfd that there was no room for: -1 if there is none still, or if that is no child of ours any more. */
static int32_t
ss_idle_open(const struct ss_idle *one, int *ret_is_gone)
{
	int32_t pidfd = one->pidfd >= 0 ? one->pidfd : (int32_t)ss_sys2(SYS_pidfd_open, one->pid, 0);

	*ret_is_gone = pidfd == -ESRCH;
	if (one->pidfd >= 0 || pidfd < 0)
		return pidfd < 0 ? -1 : pidfd;
	if (!(*ret_is_gone = !ss_is_our_child(pidfd)))
		return ss_fd_high(pidfd);
	ss_close(&pidfd);
	return -1;
}

/* Takes one out of the list first: a fork of another thread closes what is in it. */
static void
ss_idle_drop(struct ss_helper *h, struct ss_idle *one)
{
	const int32_t pidfd = one->pidfd;

	*one = h->idle[h->nidle - 1];
	h->nidle--;
	if (pidfd >= 0)
		(void)close(pidfd);
}

/* Reaps those that have ended; with kill all of them, within the grace that every kill has. */
static void
ss_idle_reap(struct ss_helper *h, int kill)
{
	const int64_t until = ss_now() + SS_GRACE_NS;
	uint32_t i = h->nidle;

	while (i--) {
		struct ss_idle *one = &h->idle[i];
		siginfo_t info;
		int is_gone;

		if ((one->pidfd = ss_idle_open(one, &is_gone)) < 0) {
			if (is_gone || kill)
				ss_idle_drop(h, one);
			continue;
		}
		if (kill)
			(void)ss_sys4(SYS_pidfd_send_signal, one->pidfd, SIGKILL, NULL, 0); /* or it has ended */
		if (kill)
			ss_await_exit(one->pidfd, until > ss_now() ? until - ss_now() : 0);
		memset(&info, 0, sizeof(info));
		if (ss_sys5(SYS_waitid, SS_P_PIDFD, one->pidfd, &info, WEXITED | WNOHANG | __WALL, NULL) == 0 &&
		    !info.si_pid && !kill)
			continue; /* it waits still */
		ss_idle_drop(h, one);
	}
}

/* -------------------------------------------------------------- the exchange */

/*
 * A helper that is of no use is ended, whatever it is doing: then nothing comes from it any more. One that has
 * more rights than we, because it stayed after a drop, sees the end of its socket.
 */
static int
ss_helper_lose(struct ss_helper *h, int error)
{
	if (!h->lost)
		h->lost = error;
	if (h->socket >= 0)
		(void)ss_sys2(SYS_shutdown, h->socket, SHUT_WR);
	(void)ss_sys4(SYS_pidfd_send_signal, h->pidfd, SIGKILL, NULL, 0); /* or it has ended, or we may not */
	if (h->pidfd >= 0)
		ss_await_exit(h->pidfd, SS_GRACE_NS);
	return error;
}

/* Whether an answer is about a child, whose pidfd may not have found room. */
static int
ss_told_has_child(const struct ss_told *told, int32_t pidfd)
{
	return pidfd >= 0 || (told->error == EMFILE && told->pid > 0);
}

/* Deals with one answer. Returns whether it is that for request id. */
static int
ss_told_heed(struct ss_helper *h, const struct ss_told *told, int32_t *pidfd, uint64_t id)
{
	if (told->op == SS_TOLD_PARKED && *pidfd >= 0 && ss_is_our_child(*pidfd)) {
		ss_idle_keep(h, told->pid, *pidfd);
		return 0;
	}
	if (told->id == id && told->op == SS_TOLD_GIVEN) {
		ss_close(pidfd); /* we have one already */
		*pidfd = ss_idle_take(h, told->pid);
	}
	if (told->id == id)
		return 1;
	if (ss_told_has_child(told, *pidfd))
		ss_idle_late(h, told, *pidfd);
	return 0;
}

/* The answer to request id: 0 or an errno. What came before it is dealt with. */
static int
ss_told_for(struct ss_helper *h, uint64_t id, int64_t until, struct ss_told *told, int32_t *ret_pidfd)
{
	int answer, error;

	for (;;) {
		answer = ss_told_take(h, told, ret_pidfd);
		if (answer == 1 && ss_told_heed(h, told, ret_pidfd, id))
			return 0;
		if (answer != 1 && *ret_pidfd >= 0)
			(void)close(*ret_pidfd);
		*ret_pidfd = -1;
		if (answer != 1 && answer != -EAGAIN && answer != -EINTR)
			return answer ? -answer : ECONNRESET;
		if ((error = ss_told_await(h, until)))
			return error;
	}
}

/*
 * It is lost: 0 if it had answered request id all the same, just before its end; else error. What one says that has
 * not kept to its words is not believed.
 */
static int
ss_told_last(struct ss_helper *h, uint64_t id, int error, struct ss_told *told, int32_t *ret_pidfd)
{
	const int has_ended = error == ECONNRESET || error == EPIPE || error == ETIMEDOUT;

	return !has_ended || ss_told_for(h, id, ss_now() + SS_CLAIM_NS, told, ret_pidfd) ? error : 0;
}

/*
 * One request and its answer, one at a time. Returns 0 or an errno. ret_sent says whether the helper may
 * have it, if it did not answer. ETIMEDOUT: the deadline of the request has come, and the helper lives.
 */
static int
ss_exchange(struct ss_helper *h, struct ss_ask *ask, const int32_t *fds, int64_t deadline_ns, struct ss_told *told,
	    int32_t *ret_pidfd, int *ret_sent)
{
	const int64_t until = ss_now() + SS_ANSWER_NS;
	const int is_short = deadline_ns && deadline_ns < until;
	int error = h->lost;

	*ret_sent = 0;
	ss_idle_reap(h, 0);
	if (error)
		return error;
	if (!ss_fd_is(h->socket, h->socket_inode)) {
		h->socket = -1; /* whoever has the number now keeps it */
		return ss_helper_lose(h, EBADF);
	}
	ask->magic = SS_HELPER_MAGIC;
	ask->id = ++h->asked;
	error = ss_message_send(h->socket, ask, sizeof(*ask), fds, ask->nfds);
	if (error == ETOOMANYREFS || error == EBADF || error == ENOMEM)
		return error; /* of ours: it has not seen it */
	*ret_sent = !error;
	if (!error)
		error = ss_told_for(h, ask->id, is_short ? deadline_ns : until, told, ret_pidfd);
	if (!error && told->op == SS_TOLD_RETIRED)
		error = EPERM;
	if (!error || (error == ETIMEDOUT && is_short))
		return error;
	return ss_told_last(h, ask->id, ss_helper_lose(h, error), told, ret_pidfd);
}

/* --------------------------------------------------------------------- plan */

/* One request to the helper, from its first descriptor to its last. */
struct ss_asking {
	struct ss_launch launch; /* plan and report are made as for the launcher */
	struct ss_helper *helper;
	struct ss_standing *now;
	struct ss_rlimit limits[RLIM_NLIMITS + SS_RLIMITS_MAX];
	uint32_t groups[SS_SOME_GROUPS];
	int32_t cwd_fd; /* ours, opened for it */
	int was_parked;
	int32_t fds[SS_MESSAGE_FDS];
	struct ss_ask ask;
};

static int
ss_asking_add(struct ss_asking *a, int32_t *fd)
{
	if (*fd < 0)
		return 0;
	if (a->ask.nfds == SS_MESSAGE_FDS)
		return E2BIG;
	a->fds[a->ask.nfds] = *fd;
	*fd = (int32_t)a->ask.nfds++;
	return 0;
}

/* Where the message has it: one that is the source of many targets is sent once. */
static int
ss_asking_source(struct ss_asking *a, uint32_t first, int32_t source, int32_t *ret_place)
{
	uint32_t i;

	for (i = first; i < a->ask.nfds; i++)
		if (a->fds[i] == source) {
			*ret_place = (int32_t)i;
			return 0;
		}
	*ret_place = source;
	return ss_asking_add(a, ret_place);
}

static int
ss_asking_sources(struct ss_asking *a, const struct ss_request *r)
{
	const uint32_t first = a->ask.nfds;
	uint32_t i;
	int error = 0;

	a->launch.places = calloc(r->nfds + 1ull, sizeof(*a->launch.places));
	if (!a->launch.places)
		return ENOMEM;
	for (i = 0; i < r->nfds && !error; i++)
		error = r->fds[i].source < 0
			    ? EINVAL
			    : ss_asking_source(a, first, r->fds[i].source, &a->launch.places[i]);
	return error;
}

/* The plan names every descriptor by its place in the message: the helper has other numbers. */
static int
ss_asking_places(struct ss_asking *a, const struct ss_request *r)
{
	int32_t *own[SS_LAUNCH_OWN];
	const unsigned count = ss_launch_own(&a->launch, r, own);
	unsigned i;
	int error;

	for (i = 0; i < count; i++)
		if ((error = ss_asking_add(a, own[i])))
			return error;
	return ss_asking_sources(a, r);
}

/* Limits that are other than the helper's, and not asked for otherwise. */
static void
ss_asking_limits(struct ss_asking *a, const struct ss_request *r)
{
	struct ss_request *w = &a->launch.want;
	uint32_t n = 0, i, k;

	for (i = 0; i < RLIM_NLIMITS; i++) {
		const struct rlimit *now = &a->now->limits[i], *then = &a->helper->then->limits[i];

		for (k = 0; k < r->nrlimits && r->rlimits[k].resource != i; k++)
			;
		if (k < r->nrlimits || (now->rlim_cur == then->rlim_cur && now->rlim_max == then->rlim_max))
			continue;
		a->limits[n].resource = i;
		a->limits[n].soft = now->rlim_cur;
		a->limits[n++].hard = now->rlim_max;
	}
	w->ninherited = n;
	for (k = 0; k < r->nrlimits; k++)
		a->limits[n++] = r->rlimits[k];
	w->rlimits = a->limits;
	w->nrlimits = n;
}

static int
ss_asking_here(struct ss_asking *a)
{
	struct ss_request *w = &a->launch.want;
	const struct ss_standing *then = a->helper->then;

	if (w->cwd_fd >= 0 || w->root_fd >= 0 ||
	    (a->now->cwd_device == then->cwd_device && a->now->cwd_inode == then->cwd_inode &&
	     a->now->cwd_mount == then->cwd_mount))
		return 0;
	a->cwd_fd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	w->cwd_fd = a->cwd_fd;
	return a->cwd_fd < 0 ? errno : 0;
}

/*
 * A helper that stays after we have dropped is more than we are: its children are to be what we are, unless
 * they are asked to be somebody of whom its policy knows.
 */
static int
ss_asking_ids(struct ss_asking *a)
{
	struct ss_request *w = &a->launch.want;
	const struct ss_creds *now = &a->now->creds, *then = &a->helper->then->creds;
	struct ss_creds were = *then;
	long count;

	were.epoch = now->epoch;
	w->expected = were;
	w->expected.epoch = now->epoch;
	if (!memcmp(&were, now, sizeof(were)) || (w->flags & SS_SET_UID))
		return 0;
	/* Only what a plan can say: one id each, and no capability. */
	if (now->ruid != now->euid || now->ruid != now->suid || now->rgid != now->egid || now->rgid != now->sgid ||
	    now->permitted || now->inheritable)
		return EXDEV;
	w->uid = now->ruid;
	w->flags |= SS_SET_UID;
	if (!(w->flags & SS_SET_GID))
		w->gid = now->rgid;
	w->flags |= SS_SET_GID;
	if (w->flags & SS_SET_GROUPS)
		return 0;
	count = ss_sys2(SYS_getgroups, SS_SOME_GROUPS, a->groups);
	if (count < 0)
		return EXDEV;
	w->groups = a->groups; /* the kernel keeps them sorted (groups_sort of kernel/groups.c) */
	w->ngroups = (uint32_t)count;
	w->flags |= SS_SET_GROUPS;
	return 0;
}

/* Whether another gave us since what a child of the helper cannot take: setpriority(2), setrlimit(2). */
static int
ss_asking_is_raised(const struct ss_standing *now, const struct ss_standing *then, const struct ss_request *r)
{
	const uint64_t caps = then->creds.effective;
	unsigned i;

	if (!(r->flags & SS_SET_NICE) && now->nice < then->nice && !(caps >> SS_CAP_NICE & 1))
		return 1;
	for (i = 0; i < RLIM_NLIMITS; i++)
		if (now->limits[i].rlim_max > then->limits[i].rlim_max && !(caps >> SS_CAP_RESOURCE & 1))
			return 1;
	return 0;
}

/* helper-alike (T-42): what its child would not have from us is put into the plan. */
static int
ss_asking_alike(struct ss_asking *a, const struct ss_request *r, int32_t *ret_why)
{
	struct ss_request *w = &a->launch.want;
	const struct ss_standing *then = a->helper->then;
	int error;

	*ret_why = SS_DIFFERS_UNSEEN;
	if (!(a->now = ss_standing_map()))
		return ENOMEM;
	if ((error = ss_standing_read(a->now)))
		return error;
	*ret_why = r->pdeathsig && a->helper->tid != (int32_t)ss_sys0(SYS_gettid)
		       ? SS_DIFFERS_THREAD
		       : ss_standing_differs(a->now, then, (int)a->helper->keeps);
	if (!*ret_why && ss_asking_is_raised(a->now, then, r))
		*ret_why = SS_DIFFERS_RAISED;
	if (*ret_why)
		return EXDEV;
	if ((error = ss_asking_ids(a)))
		*ret_why = SS_DIFFERS_WHO;
	if (error || (error = ss_asking_here(a)))
		return error;
	ss_asking_limits(a, r);
	w->sigignore = a->now->ignored;
	if (!(w->flags & SS_SET_UMASK) && a->now->umask != then->umask) {
		w->umask = a->now->umask;
		w->flags |= SS_SET_UMASK;
	}
	if (!(w->flags & SS_SET_NICE) && a->now->nice != then->nice) {
		w->nice = a->now->nice;
		w->flags |= SS_SET_NICE;
	}
	if (!(w->flags & (SS_NEW_SESSION | SS_SET_GROUP)) && a->now->group != then->group) {
		w->group = a->now->group;
		w->flags |= SS_SET_GROUP;
	}
	return 0;
}

static int
ss_asking_prepare(struct ss_asking *a, const struct ss_request *r, int32_t *ret_why)
{
	size_t plan_bytes, work_bytes;
	uint64_t mask;
	int error;

	/* What only we could do for the child: see ss_helper_can. */
	if ((r->flags & (SS_KEEP_FDS | SS_SHARE_MEMORY | SS_LAUNCH)) || r->born_in)
		return EINVAL;
	/* Somebody must be awake to write the maps of a user namespace. */
	if ((r->unshared & SS_CLONE_NEWUSER) && !r->deadline_ns)
		return EINVAL;
	if ((error = SS_HOOK(SS_STAGE_PREPARE)))
		return error;
	if ((error = -ss_measure(r, &plan_bytes, &work_bytes)) || (error = -ss_launch_open(&a->launch)))
		return error;
	a->launch.told->stage = SS_STAGE_HELPER;
	a->launch.want = *r;
#ifdef SS_TEST_HOOKS
	a->launch.hooks = ss_hooks;
	if (!ss_hooks.park_stage)
		a->launch.hooks.ready_fd = a->launch.hooks.go_fd = -1;
#endif
	if ((error = ss_asking_alike(a, r, ret_why)) || (error = ss_asking_places(a, r)))
		return error;
	a->ask.op = SS_ASK_START;
	memcpy(a->ask.nonce, a->launch.nonce, sizeof(a->ask.nonce));
	if ((error = ss_launch_mask(r, &mask)))
		return -error;
	return -ss_launch_plan(&a->launch, mask);
}

static void
ss_asking_clear(struct ss_asking *a)
{
	ss_launch_clear(&a->launch);
	ss_standing_free(a->now);
	ss_close(&a->cwd_fd);
}

/* ------------------------------------------------------------------- window */

/* Takes the claim away: nothing will run. Returns 0, or the pid of the child that has claimed its plan. */
static int32_t
ss_claim_cancel(struct ss_report *told)
{
	int32_t claim = SS_CLAIM_OPEN;

	return __atomic_compare_exchange_n(&told->claim, &claim, SS_CLAIM_CANCELLED, 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST)
		   ? 0
		   : claim & ~SS_CLAIM_SPENT;
}

/* Takes the claim away from the child that has it, unless it has spent it already: whether nothing will run. */
static int
ss_claim_withdraw(struct ss_report *told, int32_t pid)
{
	return __atomic_compare_exchange_n(&told->claim, &pid, SS_CLAIM_CANCELLED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Whether our child of that number has ended; with WNOWAIT in how it stays to be reaped. */
static int
ss_claim_reap(int32_t pid, int how)
{
	siginfo_t info;

	memset(&info, 0, sizeof(info));
	return ss_sys5(SYS_waitid, P_PID, pid, &info, WEXITED | WNOHANG | __WALL | how, NULL) < 0 || info.si_pid;
}

/*
 * The child has claimed the plan, and there is no room for a pidfd, without which nobody could wait for it: it is to
 * run nothing. If it is at its exec already it is killed; nobody else reaps what has not ended. Returns error, with
 * the pid in the result only if it may have run.
 */
static int
ss_claim_drop(struct ss_report *told, struct ss_result *result, int error)
{
	const struct timespec look = {0, SS_CLAIM_LOOK_NS};
	const int64_t until = ss_now() + SS_CLAIM_NS;
	const int32_t pid = result->pid;

	if (ss_claim_withdraw(told, pid))
		result->pid = 0;
	else if (!ss_claim_reap(pid, WNOWAIT))
		(void)ss_sys2(SYS_kill, pid, SIGKILL); /* or it has more rights than we */
	while (!ss_claim_reap(pid, 0) && ss_now() < until)
		(void)ss_sys2(SYS_nanosleep, &look, NULL);
	return error;
}

/* A pidfd of the child that has claimed the plan. What of it the helper has needed goes first, to make room. */
static int
ss_claim_open(struct ss_launch *l, struct ss_result *result)
{
	const struct timespec look = {0, SS_CLAIM_LOOK_NS};
	const int64_t until = ss_now() + SS_CLAIM_NS;
	long fd;

	ss_close(&l->plan_fd);
	ss_close(&l->told_fd);
	while ((fd = ss_sys2(SYS_pidfd_open, result->pid, 0)) < 0 && fd != -ESRCH && ss_now() < until)
		(void)ss_sys2(SYS_nanosleep, &look, NULL); /* others let go of theirs */
	if (fd < 0)
		return fd == -ESRCH ? ECHILD : ss_claim_drop(l->told, result, (int)-fd);
	result->pidfd = (int32_t)fd;
	if (ss_is_our_child(result->pidfd))
		return 0;
	ss_close(&result->pidfd);
	return ECHILD;
}

/*
 * claim-first (T-40): the helper is dead and has not answered, or its answer came without the pidfd. Its last child
 * may be there all the same: if it has claimed the plan it goes on, by a pidfd of ours; if not it never will. Returns 0
 * or an errno. ECHILD, with its pid in the result: it has ended, and somebody has reaped it. It must not be begun anew.
 */
static int
ss_claim_settle(struct ss_helper *h, struct ss_launch *l, struct ss_result *result)
{
	const struct timespec look = {0, SS_CLAIM_LOOK_NS};
	const int64_t until = ss_now() + SS_CLAIM_NS;
	int32_t claim;

	while (!__atomic_load_n(&l->told->claim, __ATOMIC_SEQ_CST) && ss_now() < until)
		(void)ss_sys2(SYS_nanosleep, &look, NULL);
	if (!(claim = ss_claim_cancel(l->told)))
		return EPIPE;
	h->settled = h->asked;
	result->pid = claim;
	if ((result->pidfd = ss_idle_take(h, claim)) >= 0) /* it was parked, and is not any more */
		return 0;
	return ss_claim_open(l, result);
}

/*
 * The deadline has come before the helper's answer. A child that has not claimed the plan never will, whatever
 * the helper still says about it. Of one that has, word is on its way, for it may run already.
 */
static int
ss_ask_late(struct ss_asking *a, struct ss_told *told, int32_t *ret_pidfd)
{
	struct ss_helper *h = a->helper;
	int error;

	if (!ss_claim_cancel(a->launch.told))
		return ETIMEDOUT;
	error = ss_told_for(h, a->ask.id, ss_now() + SS_CLAIM_NS, told, ret_pidfd);
	return error ? ss_told_last(h, a->ask.id, ss_helper_lose(h, error), told, ret_pidfd) : 0;
}

/* A child that has ended may have been reaped by others: it was ours, or nobody's any more. */
static int
ss_is_our_birth(int32_t pidfd)
{
	return pidfd >= 0 && (ss_is_our_child(pidfd) || ss_has_ended(pidfd));
}

static int
ss_ask_born(struct ss_asking *a, const struct ss_request *r, struct ss_result *result)
{
	struct ss_helper *h = a->helper;
	struct ss_told told;
	int error, sent;

	error = ss_exchange(h, &a->ask, a->fds, r->deadline_ns, &told, &result->pidfd, &sent);
	if (error == ETIMEDOUT && sent && !h->lost && (error = ss_ask_late(a, &told, &result->pidfd)) == ETIMEDOUT &&
	    !h->lost)
		return error;
	if (error)
		return sent ? ss_claim_settle(h, &a->launch, result) : error;
	if (told.op == SS_TOLD_FAILED) {
		ss_close(&result->pidfd); /* there is no child that it could be of */
		return told.error ? told.error : EPROTO;
	}
	if (!ss_is_our_birth(result->pidfd)) {
		ss_close(&result->pidfd);
		return ss_claim_settle(h, &a->launch, result);
	}
	result->pid = told.pid;
	a->was_parked = told.op == SS_TOLD_GIVEN;
	return 0;
}

/*
 * window-bounded (T-03): the deadline has come, and the child has been killed, unless it has more rights than we have.
 * Then it loses its claim. One that is at its exec already has a moment to get there: it may run. Returns whether the
 * claim was taken back.
 */
static int
ss_ask_overdue(struct ss_window *w, struct ss_report *told)
{
	if (!w->timed_out || ss_has_ended(w->pidfd))
		return 0;
	if (ss_claim_withdraw(told, w->pid))
		return 1;
	w->deadline_ns = ss_now() + SS_GRACE_NS;
	w->timed_out = ss_await_release(w) != 0;
	return 0;
}

/* From the birth of the child to its exec, or to its end. */
static void
ss_ask_await(struct ss_asking *a, const struct ss_request *r, struct ss_result *result, int64_t start)
{
	struct ss_arena page = {NULL, NULL, (unsigned char *)a->launch.told, NULL, 0, 0, 0};
	struct ss_window w;
	int was_killed, withdrawn;

	ss_launch_window(&w, &page, r, result);
	w.awake = 1;
	ss_bound(&w);
	was_killed = w.timed_out;
	withdrawn = ss_ask_overdue(&w, a->launch.told);
	w.ns = ss_now() - start;
	ss_conclude(&w, result);
	if (was_killed && result->outcome == SS_KILLED_BEFORE_EXEC) /* by us, and it was long in dying */
		result->outcome = SS_TIMED_OUT;
	if (withdrawn && result->outcome == SS_FAILED && result->error == ECANCELED) { /* it has seen that */
		result->outcome = SS_TIMED_OUT;
		result->error = 0;
	}
	result->flags |= a->was_parked ? SS_WAS_PARKED : 0;
	/* One that was parked, and ended before it saw the plan: that is as if there had been none. */
	if (result->outcome == SS_KILLED_BEFORE_EXEC && !ss_claim_cancel(a->launch.told))
		ss_not_started(result, SS_STAGE_HELPER, -EPIPE);
}

/*
 * Waits for its turn, until the deadline at most: 0, ETIMEDOUT, or another errno. If somebody sets the clock back
 * meanwhile it is longer, but not than those before us take.
 */
static int
ss_ask_turn(struct ss_helper *h, int64_t deadline_ns)
{
	const int64_t ns = deadline_ns - ss_now();
	struct timespec until;

	if (!deadline_ns)
		return pthread_mutex_lock(&h->lock);
	(void)clock_gettime(CLOCK_REALTIME, &until); /* the one that it goes by; good arguments */
	if (ns > 0) {
		until.tv_sec += ns / 1000000000ll;
		until.tv_nsec += ns % 1000000000ll;
	}
	if (until.tv_nsec >= 1000000000l) {
		until.tv_nsec -= 1000000000l;
		until.tv_sec++;
	}
	return pthread_mutex_timedlock(&h->lock, &until);
}

/* Has the helper make a child, when it is its turn. Returns 0 or an errno. */
static int
ss_ask_locked(struct ss_asking *a, const struct ss_request *r, struct ss_result *result)
{
	struct ss_shield shield;
	int error = ss_ask_turn(a->helper, r->deadline_ns);

	if (error)
		return error;
	/* A handler would find the lock held by us. */
	if (!(error = -ss_shield_raise(&shield))) {
		ss_answer_libc_mask();
		error = ss_ask_born(a, r, result);
		ss_shield_lower(&shield);
	}
	(void)pthread_mutex_unlock(&a->helper->lock);
	return error;
}

static int
ss_ask_windows(struct ss_asking *a, const struct ss_request *r, struct ss_result *result)
{
	const int64_t start = ss_now();
	struct ss_lock *lock = ss_lock_ours();
	struct ss_slot *slot = lock ? ss_watch(lock, &a->launch.told->moved, r->expected.epoch) : NULL;
	const int error = ss_ask_locked(a, r, result);

	if (!error)
		ss_ask_await(a, r, result, start);
	if (slot)
		(void)ss_slot_leave(slot);
	return error;
}

/*
 * Starts a program by the helper. As ss_spawn: 0 when a child was made, else a negative errno, and nothing was
 * started; result->why says then what keeps the helper from standing in for us, if that is it. EINVAL: a plan
 * that it cannot carry out.
 */
static int
ss_ask(struct ss_helper *helper, int parked, const struct ss_request *r, struct ss_result *result)
{
	struct ss_asking *a = calloc(1, sizeof(*a));
	int32_t why = SS_DIFFERS_NOT;
	int error, cancel_state, stage = SS_STAGE_PREPARE;

	if (!a) {
		ss_not_started(result, stage, -ENOMEM);
		return -ENOMEM;
	}
	a->helper = helper;
	a->launch.plan_fd = a->launch.told_fd = a->cwd_fd = -1;
	a->ask.parked = (uint32_t)parked;
	/* A cancelled thread would leave a child behind that nobody knows of. */
	(void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	if (helper->owner != ss_getpid())
		error = ECHILD;
	else
		error = helper->then ? ss_asking_prepare(a, r, &why) : ESHUTDOWN; /* NULL: it was freed */
	if (!error) {
		stage = SS_STAGE_HELPER;
		error = SS_HOOK(SS_STAGE_HELPER);
		error = error ? error : ss_ask_windows(a, r, result);
	}
	if (error && result->pid > 0) { /* it was there, and nobody can tell how it ended but itself */
		ss_not_started(result, a->launch.told->stage, -(a->launch.told->error ? a->launch.told->error : error));
	} else if (error) {
		ss_not_started(result, why ? SS_STAGE_HELPER : stage, -error);
		result->why = why;
		if (error == ETIMEDOUT)
			result->outcome = SS_TIMED_OUT;
	}
	ss_asking_clear(a);
	free(a);
	(void)pthread_setcancelstate(cancel_state, &cancel_state);
	return -error;
}

SS_API int
ss_ask_by(uint64_t process, struct ss_helper *helper, int parked, const struct ss_request *request,
	  struct ss_result *result)
{
	memset(result, 0, sizeof(*result));
	result->pidfd = -1;
	if (process == ss_process_number())
		return ss_ask(helper, parked, request, result);
	ss_not_started(result, SS_STAGE_PREPARE, -ECHILD);
	return -ECHILD;
}

/* ------------------------------------------------------------- begin and end */

/* What it has said before it ended: of children that we do not know of yet. */
static void
ss_told_rest(struct ss_helper *h)
{
	struct ss_told told;
	int32_t pidfd = -1;

	while (ss_told_take(h, &told, &pidfd) == 1)
		if (ss_told_has_child(&told, pidfd))
			ss_idle_late(h, &told, pidfd);
	ss_close(&pidfd); /* of what was no answer: what comes behind it is not heard */
}

/* Closes what is ours. In a fork nothing else is: it must not shut the socket down for its parent. */
static void
ss_helper_let_go(struct ss_helper *h)
{
	while (h->nidle)
		ss_idle_drop(h, &h->idle[h->nidle - 1]);
	ss_close(&h->socket);
	ss_close(&h->pidfd);
}

/* Ends it, and whatever it keeps parked: waits for a request that is under way. Twice is no error. */
SS_API void
ss_helper_end(struct ss_helper *h)
{
	struct ss_told told;
	int32_t none = -1;

	ss_helper_strike(h); /* in a fork too, which has a list of its own */
	if (h->owner != ss_getpid()) {
		ss_helper_let_go(h);
		return;
	}
	if (pthread_mutex_lock(&h->lock))
		return;
	if (!ss_fd_is(h->socket, h->socket_inode))
		h->socket = -1;
	if (h->socket >= 0)
		(void)shutdown(h->socket, SHUT_WR); /* forks have it too, and it would see no end; it may still tell */
	if (h->pidfd >= 0)
		ss_await_exit(h->pidfd, SS_GRACE_NS);
	else if (h->socket >= 0) /* whoever started it does not know it: it ends with its socket, and nothing answers this */
		(void)ss_told_for(h, UINT64_MAX, ss_now() + SS_GRACE_NS, &told, &none);
	if (h->pidfd >= 0 && !ss_has_ended(h->pidfd))
		(void)ss_helper_lose(h, ESHUTDOWN);
	h->lost = h->lost ? h->lost : ESHUTDOWN;
	if (h->socket >= 0)
		ss_told_rest(h);
	ss_close(&h->socket); /* which makes room, if one of those that wait has no pidfd yet */
	ss_idle_reap(h, 1);
	ss_helper_let_go(h);
	(void)pthread_mutex_unlock(&h->lock);
}

/*
 * Gives back all but the struct, which is its caller's: somebody may refer to it still, and ends it once more. So
 * the lock stays as well, in which neither libc keeps anything elsewhere.
 */
SS_API void
ss_helper_free(struct ss_helper *h)
{
	ss_helper_end(h);
	ss_standing_free(h->then);
	h->then = NULL;
}

/* Looks at us, right before a helper is started: how its children will stand. Returns 0 or a negative errno. */
SS_API int
ss_helper_new(struct ss_helper *h)
{
	int error;

	memset(h, 0, sizeof(*h));
	h->socket = h->pidfd = -1;
	h->owner = ss_getpid();
	h->tid = (int32_t)ss_sys0(SYS_gettid);
	(void)pthread_mutex_init(&h->lock, NULL); /* cannot fail with these arguments */
	h->then = ss_standing_map();
	error = h->then ? ss_standing_read(h->then) : ENOMEM;
	if (error)
		ss_helper_free(h);
	return -error;
}

/* What it is to find itself with: the credentials of whoever looked. */
SS_API void
ss_helper_stamp(const struct ss_helper *h, struct ss_policy *policy)
{
	policy->expected = h->then->creds;
#ifdef SS_TEST_HOOKS
	policy->hooks = ss_hooks;
#endif
}

/*
 * Before it is started: keeps a copy of our end of the socket. What it says of children is heard from its birth on,
 * whatever becomes of our caller. Returns 0 or a negative errno.
 */
SS_API int
ss_helper_hear(struct ss_helper *h, int32_t socket)
{
	struct stat st;

	h->socket = ss_fd_copy(socket);
	if (h->socket >= 0 && ss_child_stat(h->socket, &st) == 0)
		h->socket_inode = st.st_ino;
	return h->socket < 0 ? h->socket : 0;
}

/*
 * It was started: waits until it is ready, on a copy of our end of the socket, which is kept as one of the pidfd is.
 * Returns 0 or a negative errno; EXDEV when we have changed meanwhile.
 */
SS_API int
ss_helper_begin(struct ss_helper *h, int32_t socket, int32_t pidfd, int32_t pid, int keeps)
{
	struct ss_standing *now = ss_standing_map();
	struct ss_told told;
	int32_t none = -1;
	int error = now ? 0 : ENOMEM, copied;

	if (h->socket < 0 && (copied = ss_helper_hear(h, socket)))
		error = -copied;
	h->pidfd = ss_fd_copy(pidfd);
	if (h->pidfd < 0)
		error = -h->pidfd;
	h->pid = pid;
	h->keeps = (uint32_t)keeps;
	error = error ? error : ss_told_for(h, 0, ss_now() + SS_ANSWER_NS, &told, &none);
	ss_close(&none);
	error = error ? error : told.op == SS_TOLD_READY ? 0 : told.error ? told.error : EPROTO;
	error = error ? error : ss_standing_read(now);
	if (!error && (ss_standing_differs(now, h->then, 0) || now->umask != h->then->umask ||
		       now->ignored != h->then->ignored || memcmp(now->limits, h->then->limits, sizeof(now->limits))))
		error = EXDEV;
	error = error || keeps ? error : ss_helper_enlist(h);
	ss_standing_free(now);
	return error ? -ss_helper_lose(h, error) : 0;
}

/* One more policy that it has to obey. Returns 0 or a negative errno; then it is lost, or was. */
SS_API int
ss_helper_shrink(struct ss_helper *h, int32_t policy_fd)
{
	struct ss_ask ask;
	struct ss_told told;
	int32_t none = -1;
	int error = pthread_mutex_lock(&h->lock), sent;
	uint64_t mask;

	if (error)
		return -error;
	memset(&ask, 0, sizeof(ask));
	ask.op = SS_ASK_SHRINK;
	ask.nfds = 1;
	mask = ss_block_all();
	ss_answer_libc_mask();
	error = ss_exchange(h, &ask, &policy_fd, 0, &told, &none, &sent);
	ss_close(&none);
	/* What it could not take it would not obey: it must not go on with more than was wanted. */
	if (!error && told.op != SS_TOLD_SHRUNK)
		error = ss_helper_lose(h, told.error ? told.error : EPROTO);
	ss_unblock(mask);
	(void)pthread_mutex_unlock(&h->lock);
	return -error;
}

struct ss_helper_status {
	int32_t pid, pidfd, lost;
	uint32_t idle;
	uint64_t asked;
	int32_t ended; /* the process of the helper is no more */
};

SS_API void
ss_helper_look(const struct ss_helper *h, struct ss_helper_status *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->pid = h->pid;
	ret->pidfd = h->pidfd;
	ret->lost = h->lost;
	ret->idle = h->nidle;
	ret->asked = h->asked;
	ret->ended = h->pidfd < 0 || ss_has_ended(h->pidfd);
}
