/*
 * Fuzz target for what a helper is asked (safespawn/_asked.c): a message from its socket, with
 * descriptors, and the places in the message that a plan names.
 *
 * An input: how many descriptors are sent, how many of them find room in our table of open
 * files, how the rest goes (HOW), a length; so many bytes of the message; then the numbers of
 * a plan. Each is tried as it is, and with the head of the message put right.
 *
 * What must hold, by a slow model: a message is taken if it is whole, and else no descriptor
 * is left open; what was taken are copies of what was sent, close-on-exec, in that order, and
 * the kernel's word on who sent it; a plan gets the descriptors that it names, and no other.
 *
 * libFuzzer:  clang -fsanitize=fuzzer,address,undefined fuzz_message.c, with -dict=message.dict
 * gcc:        gcc -fsanitize=address,undefined fuzz_message.c driver.c, with -dict=message.dict
 * replay:     gcc -fsanitize=address,undefined -DFUZZ_MAIN fuzz_message.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../safespawn/_helper.h"

#include "input.h"

#include "../safespawn/_asked.c"

#define SENT_MAX SS_MESSAGE_FDS
#define OWN 7 /* the descriptors of a plan that have names */

/* HOW: the kernel says who sends, two lists of descriptors in place of one, nothing is sent, the other side is closed. */
enum { WITH_CREDS = 1, IN_TWO = 2, NOTHING = 4, CLOSED = 8 };

/* A few files, so that a copy of one is told from that of another. */
#define FILES 5
static int files[FILES];
static struct stat looks[FILES];
#define FIRST 64 /* below it every number is taken, from it on none is */
static int is_ready;

static void
open_files(void)
{
	int i, fd;

	for (fd = FIRST; fd < 4 * FIRST + (int)SENT_MAX; fd++)
		(void)close(fd); /* whoever has started us may have left some open */
	for (i = 0; i < FILES; i++) {
		files[i] = (int)syscall(SYS_memfd_create, "fuzz", 0);
		CHECK(files[i] >= 0 && !fstat(files[i], &looks[i]));
	}
	is_ready = 1;
}

/* Each time: who runs us opens and closes files too. */
static void
fill_holes(void)
{
	int fd;

	while ((fd = dup(files[0])) < FIRST)
		CHECK(fd >= 0);
	CHECK(fd == FIRST && !close(fd));
}

static unsigned
count_open(void)
{
	unsigned found = 0;
	int fd;

	for (fd = FIRST + 2; fd < FIRST + 2 + (int)SENT_MAX + 8; fd++)
		found += fcntl(fd, F_GETFD) >= 0;
	return found;
}

static void
send_message(int socket, const uint8_t *bytes, size_t size, unsigned count, int in_two)
{
	union {
		struct cmsghdr header;
		unsigned char room[CMSG_SPACE(SENT_MAX * sizeof(int)) + CMSG_SPACE(0)];
	} extras;
	struct iovec iov = {(void *)(uintptr_t)bytes, size};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &extras};
	const unsigned parts[2] = {in_two ? count / 2 : count, in_two ? count - count / 2 : 0};
	unsigned i, k, sent = 0;

	memset(&extras, 0, sizeof(extras));
	for (i = 0; i < 2; i++) {
		struct cmsghdr *c = (struct cmsghdr *)(void *)(extras.room + message.msg_controllen);

		if (!parts[i] || message.msg_controllen + CMSG_SPACE(parts[i] * sizeof(int)) > sizeof(extras))
			continue;
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(parts[i] * sizeof(int));
		for (k = 0; k < parts[i]; k++, sent++)
			memcpy(CMSG_DATA(c) + k * sizeof(int), &files[sent % FILES], sizeof(int));
		message.msg_controllen += CMSG_SPACE(parts[i] * sizeof(int));
	}
	CHECK(sent == count);
	CHECK(sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)size);
}

/* Descriptors that come find room for so many only. */
static void
limit_files(unsigned room)
{
	struct rlimit limit;

	CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = FIRST + 2 + room;
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
}

static void
check_copies(const struct ss_message *m)
{
	struct stat st;
	uint32_t i;

	for (i = 0; i < m->nfds; i++) {
		CHECK(fcntl(m->fds[i], F_GETFD) == FD_CLOEXEC && !fstat(m->fds[i], &st));
		CHECK(st.st_ino == looks[i % FILES].st_ino && st.st_dev == looks[i % FILES].st_dev);
		CHECK(!i || m->fds[i] != m->fds[i - 1]);
	}
}

/* ---------------------------------------------------------------------- places */

/* A place that was asked for becomes the descriptor that came there: not the plan, not the report, no other. */
static int
model_place(const struct ss_message *m, int32_t *place, int may_be_none)
{
	if (*place < 0)
		return may_be_none;
	if (*place < 2 || *place >= (int64_t)m->nfds)
		return 0;
	*place = m->fds[*place];
	return 1;
}

static int32_t
take_place(struct input *in)
{
	const uint8_t how = (uint8_t)take(in, 1);

	return how == 255 ? (int32_t)take(in, 4) : how == 254 ? -1 : how;
}

static void
own_places(struct ss_request *want, int32_t *own[OWN])
{
	int32_t *const all[OWN] = {&want->exec_fd,   &want->cwd_fd,	&want->terminal_fd, &want->root_fd,
				   &want->cgroup_fd, &want->landlock_fd, &want->parent_fd};

	memcpy(own, all, sizeof(all));
}

static char said[64]; /* of the last input, for the replay */

static void
try_places(struct ss_message *m, struct input in)
{
	const unsigned flags = (unsigned)take(&in, 1);
	struct ss_plan plan;
	int32_t *own[OWN], expected[OWN], *places, *sources;
	struct ss_fd *fds;
	int is_good = 1, error;
	uint32_t i;

	memset(&plan, 0, sizeof(plan));
	plan.want.flags = flags & 1 ? SS_EXEC_TARGET : 0;
	own_places(&plan.want, own);
	for (i = 0; i < OWN; i++)
		expected[i] = *own[i] = take_place(&in);
	plan.want.nfds = (uint32_t)take(&in, 1) % 64;
	plan.want.fds = fds = exactly(plan.want.nfds * sizeof(*fds));
	places = exactly(plan.want.nfds * sizeof(*places));
	sources = exactly(plan.want.nfds * sizeof(*sources));
	for (i = 0; i < plan.want.nfds; i++) {
		sources[i] = places[i] = take_place(&in);
		fds[i].source = fds[i].target = (int32_t)i;
	}
	plan.places = flags & 2 ? NULL : places;
	for (i = flags & 1; i < OWN; i++)
		is_good &= model_place(m, &expected[i], 1);
	for (i = 0; i < plan.want.nfds; i++)
		is_good &= model_place(m, &sources[i], 0);
	is_good &= !(flags & 2) || !plan.want.nfds;
	error = ss_helper_places(m, &plan);
	CHECK(error == (is_good ? 0 : EPROTO));
	for (i = 0; i < OWN && is_good; i++)
		CHECK(*own[i] == expected[i]);
	for (i = 0; i < plan.want.nfds && is_good; i++)
		CHECK(fds[i].source == sources[i] && fds[i].target == (int32_t)i);
	(void)snprintf(said, sizeof(said), "taken, %s", is_good ? "places" : "no places");
	free(sources);
	free(places);
	free(fds);
}

/* --------------------------------------------------------------------- messages */

static int
model_is_whole(const uint8_t *bytes, size_t size, unsigned sent, unsigned room)
{
	struct ss_ask ask;

	if (size != sizeof(ask) || room < sent)
		return 0;
	memcpy(&ask, bytes, size);
	return !memcmp(bytes, "sasshelp", 8) && ask.nfds == sent;
}

struct trial {
	unsigned sent, room, how;
	const uint8_t *bytes;
	size_t size;
};

static void
check_taken(const struct ss_message *m, int answer, const struct trial *t)
{
	/* One without a byte is the end for who has not asked the kernel for more; the helper always has. */
	const int is_end = (t->how & NOTHING) || (!t->size && (!t->sent || !t->room) && !(t->how & WITH_CREDS));

	if (is_end) {
		CHECK(answer == (t->how & NOTHING && !(t->how & CLOSED) ? -EAGAIN : 0) && !m->nfds);
		return;
	}
	CHECK(answer == (model_is_whole(t->bytes, t->size, t->sent, t->room) ? 1 : -EPROTO));
	CHECK(m->nfds == (t->sent < t->room ? t->sent : t->room));
	CHECK(m->pid == (t->how & WITH_CREDS ? getpid() : 0));
	CHECK(!m->pid || (m->uid == getuid() && m->gid == getgid()));
	/* Who sent no request waits for no answer: the magic is what tells. */
	CHECK(t->size == sizeof(m->ask) ? !memcmp(&m->ask, t->bytes, t->size) : m->ask.magic == 0);
	check_copies(m);
}

static void
try_message(const struct trial *t, struct input in)
{
	const int on = 1;
	struct ss_message *m = exactly(sizeof(*m));
	unsigned before = count_open();
	struct rlimit limit;
	int pair[2], answer;

	CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) && pair[0] == FIRST);
	if (t->how & WITH_CREDS)
		CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
	if (!(t->how & NOTHING))
		send_message(pair[1], t->bytes, t->size, t->sent, t->how & IN_TWO);
	if (t->how & CLOSED)
		CHECK(!shutdown(pair[1], SHUT_WR));
	limit_files(t->room);
	answer = ss_message_take(pair[0], m);
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
	check_taken(m, answer, t);
	CHECK(count_open() == before + m->nfds);
	(void)snprintf(said, sizeof(said), answer == 1 ? "taken" : answer == 0 ? "end" : "refused");
	if (answer == 1)
		try_places(m, in);
	ss_message_close(m);
	CHECK(!m->nfds && count_open() == before && !close(pair[0]) && !close(pair[1]));
	free(m);
}

/* The same bytes as a request of so many descriptors. */
static void
try_repaired(struct trial t, struct input in)
{
	struct ss_ask ask;

	memset(&ask, 0, sizeof(ask));
	memcpy(&ask, t.bytes, t.size < sizeof(ask) ? t.size : sizeof(ask));
	ask.magic = SS_HELPER_MAGIC;
	ask.nfds = t.sent;
	t.bytes = (const uint8_t *)&ask;
	t.size = sizeof(ask);
	try_message(&t, in);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct trial t;
	size_t length;
	uint8_t *bytes;

	if (!is_ready)
		open_files();
	fill_holes();
	t.sent = (unsigned)take(&in, 1) % (SENT_MAX + 1);
	t.room = SENT_MAX - (unsigned)take(&in, 1) % (SENT_MAX + 1);
	t.how = (unsigned)take(&in, 1) & 15;
	length = (size_t)take(&in, 1) % 96;
	t.size = length < in.left ? length : in.left;
	bytes = exactly(t.size);
	memcpy(bytes, in.at, t.size);
	t.bytes = bytes;
	in.at += t.size;
	in.left -= t.size;
	try_repaired(t, in);
	try_message(&t, in);
	free(bytes);
	return 0;
}

#ifdef FUZZ_MAIN
#define SAID said
#include "replay.h"
#endif
