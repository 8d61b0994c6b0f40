/*
 * What a helper is asked: one message with its descriptors, taken whole or not at all, and the places in it that a
 * plan names. Part of the helper. Whoever has the socket may send anything. [T-38 helper-asked]
 */

/* A message as it was received: what is behind nfds was not sent. */
struct ss_message {
	struct ss_ask ask;
	int32_t fds[SS_MESSAGE_FDS];
	uint32_t nfds;
	int32_t pid; /* of who sent it, with its real ids; 0 if the kernel did not say */
	uint32_t uid, gid;
};

static void
ss_message_close(struct ss_message *m)
{
	while (m->nfds)
		(void)ss_sys1(SYS_close, m->fds[--m->nfds]); /* copies of the daemon's */
}

/* Takes what came with a message; what is not expected is nobody's, and closed as the rest is. */
static void
ss_message_extras(struct ss_message *m, struct msghdr *header)
{
	struct cmsghdr *c;

	for (c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		const size_t bytes = c->cmsg_len - CMSG_LEN(0);
		size_t i;

		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS && bytes == sizeof(struct ucred)) {
			const struct ucred *who = (const struct ucred *)(const void *)CMSG_DATA(c);

			m->pid = who->pid;
			m->uid = who->uid;
			m->gid = who->gid;
		}
		if (c->cmsg_type == SCM_RIGHTS)
			for (i = 0; i + sizeof(int32_t) <= bytes && m->nfds < SS_MESSAGE_FDS; i += sizeof(int32_t))
				memcpy(&m->fds[m->nfds++], CMSG_DATA(c) + i, sizeof(int32_t));
	}
}

/* The next message: 1, 0 at the end, or a negative errno: of one that is not whole -EPROTO. */
static int
ss_message_take(int32_t socket, struct ss_message *m)
{
	union {
		struct cmsghdr header;
		unsigned char room[CMSG_SPACE(SS_MESSAGE_FDS * sizeof(int32_t)) + CMSG_SPACE(sizeof(struct ucred))];
	} extras;
	struct iovec iov = {&m->ask, sizeof(m->ask)};
	struct msghdr header = {
	    .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &extras, .msg_controllen = sizeof(extras)};
	long bytes;

	m->nfds = 0;
	m->pid = 0;
	m->ask.magic = 0;
	bytes = ss_sys3(SYS_recvmsg, socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (bytes < 0)
		return (int)bytes;
	/* The end brings nothing; with a message without a byte the kernel says at least who sent it. */
	if (!bytes && !header.msg_controllen)
		return 0;
	ss_message_extras(m, &header);
	if (bytes != (long)sizeof(m->ask) || (header.msg_flags & MSG_TRUNC))
		m->ask.magic = 0; /* no request: who sent it waits for no answer */
	if (bytes != (long)sizeof(m->ask) || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ||
	    m->ask.magic != SS_HELPER_MAGIC || m->ask.nfds != m->nfds)
		return -EPROTO;
	return 1;
}

/* Where a place of the message leads; -1 stays "not asked for". */
static int
ss_helper_place(const struct ss_message *m, int32_t *fd)
{
	if (*fd < 0)
		return 0;
	if (*fd <= SS_AT_REPORT || (uint32_t)*fd >= m->nfds)
		return EPROTO;
	*fd = m->fds[*fd];
	return 0;
}

/* The plan names descriptors by their places in the message. */
static int
ss_helper_places(const struct ss_message *m, struct ss_plan *plan)
{
	struct ss_request *want = &plan->want;
	struct ss_fd *fds = (struct ss_fd *)(uintptr_t)want->fds;
	int32_t *const own[] = {
	    want->flags & SS_EXEC_TARGET ? NULL : &want->exec_fd,
	    &want->cwd_fd,
	    &want->terminal_fd,
	    &want->root_fd,
	    &want->cgroup_fd,
	    &want->landlock_fd,
	    &want->parent_fd,
#ifdef SS_TEST_HOOKS
	    &ss_hooks.ready_fd,
	    &ss_hooks.go_fd,
#endif
	};
	unsigned i;

	for (i = 0; i < sizeof(own) / sizeof(*own); i++)
		if (own[i] && ss_helper_place(m, own[i]))
			return EPROTO;
	if (want->nfds && !plan->places)
		return EPROTO;
	for (i = 0; i < want->nfds; i++) {
		fds[i].source = plan->places[i];
		if (fds[i].source < 0 || ss_helper_place(m, &fds[i].source))
			return EPROTO;
	}
	return 0;
}
