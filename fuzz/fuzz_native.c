/*
 * Fuzz target for the parts of the C core that take data from outside.
 *
 * The first byte chooses the part, the rest is its input. Whatever the bytes are, the
 * core must answer rightly (each part has a slow model or an invariant here) and stay
 * within its memory, which AddressSanitizer watches: areas are given to it at their
 * exact sizes, not at whole pages.
 *
 * libFuzzer:  clang -fsanitize=fuzzer,address,undefined fuzz_native.c
 * gcc:        gcc -fsanitize=address,undefined fuzz_native.c driver.c
 * replay:     gcc -fsanitize=address,undefined -DFUZZ_MAIN fuzz_native.c
 */
#define _GNU_SOURCE
#include "../safespawn/_sys.h"

/* Child code is exempt from sanitizers in the product. Here it has memory of its own. */
#undef SS_CHILD
#undef SS_INLINE
#define SS_CHILD __attribute__((noinline))
#define SS_INLINE static inline

#include "../safespawn/_native.c"

#include "input.h"

/* More is answered by arithmetic alone; the copy would only take time. */
#define BYTES_MAX (1u << 16)

/* Nothing of this name exists, so nothing can be run. */
#define NOWHERE "/nonexistent-safespawn-fuzz/"

/* The rest of the input as bytes of a string with its NUL; to be freed. */
static char *
take_text(struct input *in, size_t bytes)
{
	const size_t length = bytes < in->left ? bytes : in->left;
	char *text = exactly(length + 1);

	memcpy(text, in->at, length);
	in->at += length;
	in->left -= length;
	return text;
}

/* ------------------------------------------------------------------ strings */

static int
is_fitting(const char *text, size_t bytes, uint32_t count)
{
	size_t nuls = 0, i;

	for (i = 0; i < bytes; i++)
		nuls += !text[i];
	return nuls == count && (!bytes || !text[bytes - 1]);
}

static void
check_strings(char **strings, uint32_t count, const char *text, const unsigned char *from, size_t bytes)
{
	const unsigned char *at = from;
	uint32_t i;

	for (i = 0; i < count; i++) {
		CHECK((unsigned char *)strings[i] == at);
		at += strlen(strings[i]) + 1;
		CHECK(at <= from + bytes);
	}
	CHECK(at == from + bytes);
	CHECK(!strings[count]);
	CHECK(!bytes || !memcmp(from, text, bytes));
}

static void
fuzz_strings(struct input *in)
{
	const uint32_t count = (uint32_t)take(in, 2);
	const size_t bytes = in->left;
	const size_t room = ss_room(bytes) + ss_room((count + 1ull) * sizeof(char *));
	unsigned char *area = exactly(room), *at = area;
	char *text = exactly(bytes), **strings = NULL;
	int answer;

	memcpy(text, in->at, bytes);
	answer = ss_put_strings(&at, text, bytes, count, &strings);
	CHECK(answer == (is_fitting(text, bytes, count) ? 0 : -EINVAL));
	if (!answer) {
		CHECK(at == area + room);
		check_strings(strings, count, text, area, bytes);
	}
	free(text);
	free(area);
}

/* --------------------------------------------------------------------- plan */

struct lists {
	char *path, *argv, *env;
	struct ss_fd *fds;
	uint32_t *groups;
	struct ss_rlimit *rlimits;
	uint8_t *cpus;
};

static void
take_counts(struct input *in, struct ss_request *r)
{
	const int wild = (int)take(in, 1) & 1;

	r->argc = (uint32_t)take(in, wild ? 4 : 1);
	r->envc = (uint32_t)take(in, wild ? 4 : 1);
	r->nfds = (uint32_t)take(in, wild ? 4 : 1);
	r->ngroups = (uint32_t)take(in, wild ? 4 : 1);
	r->nrlimits = (uint32_t)take(in, wild ? 4 : 1);
	r->cpus_bytes = (uint32_t)take(in, wild ? 4 : 1);
	r->argv_bytes = take(in, wild ? 8 : 2);
	r->env_bytes = take(in, wild ? 8 : 2);
}

static void
check_measure(const struct ss_request *r, int answer, size_t plan, size_t work)
{
	const unsigned __int128 least =
	    (unsigned __int128)sizeof(struct ss_plan) + strlen(r->path) + 1 + r->argv_bytes + r->env_bytes +
	    ((unsigned __int128)r->argc + 1 + r->envc + 1) * sizeof(char *) +
	    (unsigned __int128)r->nfds * sizeof(struct ss_fd) +
	    (unsigned __int128)r->ngroups * sizeof(uint32_t) +
	    (unsigned __int128)r->nrlimits * sizeof(struct ss_rlimit) + r->cpus_bytes;

	CHECK(answer == 0 || answer == -EINVAL || answer == -E2BIG);
	if (answer)
		return;
	CHECK(r->argc && r->argv_bytes <= SS_INPUT_MAX && r->env_bytes <= SS_INPUT_MAX);
	CHECK(plan >= least && plan <= least + 16 * 16);
	CHECK(work >= sizeof(struct ss_report) + (size_t)r->nfds * sizeof(int32_t) +
			  (size_t)r->ngroups * sizeof(uint32_t) + SS_LISTING_BYTES);
}

static void
make_lists(struct input *in, struct ss_request *r, struct lists *l)
{
	char *bytes;

	l->argv = exactly(r->argv_bytes);
	l->env = exactly(r->env_bytes);
	bytes = take_text(in, r->argv_bytes);
	memcpy(l->argv, bytes, strnlen(bytes, r->argv_bytes));
	free(bytes);
	if (in->left) /* all of the rest, its NULs too */
		memcpy(l->env, in->at, in->left < r->env_bytes ? in->left : r->env_bytes);
	l->fds = exactly(r->nfds * sizeof(*l->fds));
	l->groups = exactly(r->ngroups * sizeof(*l->groups));
	l->rlimits = exactly(r->nrlimits * sizeof(*l->rlimits));
	l->cpus = exactly(r->cpus_bytes);
	r->argv = l->argv;
	r->env = l->env;
	r->fds = l->fds;
	r->groups = l->groups;
	r->rlimits = l->rlimits;
	r->cpus = l->cpus;
}

static void
free_lists(struct lists *l)
{
	free(l->argv);
	free(l->env);
	free(l->fds);
	free(l->groups);
	free(l->rlimits);
	free(l->cpus);
}

static void
check_inside(const struct ss_arena *arena, const void *piece, size_t bytes)
{
	const unsigned char *at = piece;

	CHECK(at >= arena->plan && at + bytes <= arena->plan + arena->plan_bytes);
	CHECK((uintptr_t)at % 16 == 0);
}

static void
check_plan(const struct ss_arena *arena, const struct ss_request *r)
{
	const struct ss_plan *plan = (const struct ss_plan *)(void *)arena->plan;
	const struct ss_request *want = &plan->want;

	check_inside(arena, want->path, strlen(r->path) + 1);
	CHECK(!strcmp(want->path, r->path));
	check_inside(arena, plan->argv, (r->argc + 1ull) * sizeof(char *));
	check_inside(arena, plan->envp, (r->envc + 1ull) * sizeof(char *));
	check_strings(plan->argv, r->argc, r->argv, (unsigned char *)plan->argv[0], r->argv_bytes);
	if (r->envc)
		check_strings(plan->envp, r->envc, r->env, (unsigned char *)plan->envp[0], r->env_bytes);
	CHECK(!plan->envp[r->envc]);
	check_inside(arena, want->fds, r->nfds * sizeof(*r->fds));
	check_inside(arena, want->groups, r->ngroups * sizeof(*r->groups));
	check_inside(arena, want->rlimits, r->nrlimits * sizeof(*r->rlimits));
	check_inside(arena, want->cpus, r->cpus_bytes);
	CHECK((unsigned char *)plan->report == arena->work);
	CHECK(plan->scratch + r->nfds * sizeof(int32_t) + SS_LISTING_BYTES <= arena->work + arena->work_bytes);
	CHECK(plan->scratch + r->ngroups * sizeof(uint32_t) <= arena->work + arena->work_bytes);
}

static void
fuzz_plan(struct input *in)
{
	struct ss_arena arena;
	struct ss_request r;
	struct lists lists;
	size_t plan = 0, work = 0;
	char *path;
	int answer;

	memset(&r, 0, sizeof(r));
	memset(&arena, 0, sizeof(arena));
	take_counts(in, &r);
	path = take_text(in, take(in, 1));
	r.path = path;
	answer = ss_measure(&r, &plan, &work);
	check_measure(&r, answer, plan, work);
	if (!answer && plan <= BYTES_MAX && work <= BYTES_MAX) {
		arena.plan = exactly(arena.plan_bytes = plan);
		arena.work = exactly(arena.work_bytes = work);
		make_lists(in, &r, &lists);
		answer = ss_plan_write(&arena, &r);
		CHECK(answer == (is_fitting(lists.argv, r.argv_bytes, r.argc) &&
						 is_fitting(lists.env, r.env_bytes, r.envc)
					     ? 0
					     : -EINVAL));
		if (!answer)
			check_plan(&arena, &r);
		free_lists(&lists);
		free(arena.plan);
		free(arena.work);
	}
	free(path);
}

/* --------------------------------------------------------------- small parts */

static void
fuzz_digits(struct input *in)
{
	char *text = take_text(in, in->left);
	const size_t length = strlen(text), digits = strspn(text, "0123456789");
	int32_t fd = -7;
	uint64_t value = 0;
	size_t i;

	for (i = 0; i < digits && value <= INT32_MAX; i++)
		value = value * 10 + (uint64_t)(text[i] - '0');
	if (length && digits == length && value <= INT32_MAX)
		CHECK(ss_child_digits(text, &fd) == 1 && fd == (int32_t)value);
	else
		CHECK(ss_child_digits(text, &fd) == 0 && fd == -7);
	free(text);
}

static void
fuzz_number(struct input *in)
{
	const int32_t value = (int32_t)(take(in, 4) & INT32_MAX);
	char *text = exactly(11), expected[16];
	int32_t back = -1;

	ss_child_number(text, value);
	(void)snprintf(expected, sizeof(expected), "%d", value);
	CHECK(!strcmp(text, expected));
	CHECK(ss_child_digits(text, &back) && back == value);
	free(text);
}

/* Input can be much shorter than a path: a letter is repeated as often as it takes. */
static char *
take_long_text(struct input *in)
{
	const size_t filler = take(in, 2) % (2 * SS_PATH_BYTES);
	char *tail = take_text(in, take(in, 1)), *text = exactly(filler + strlen(tail) + 1);

	memset(text, 'x', filler);
	memcpy(text + filler, tail, strlen(tail));
	free(tail);
	return text;
}

static void
fuzz_join(struct input *in)
{
	char *dir = take_long_text(in), *name = take_long_text(in);
	char *to = exactly(SS_PATH_BYTES), *expected = exactly(strlen(dir) + strlen(name) + 2);
	const size_t length = strlen(dir);

	(void)sprintf(expected, "%s%s%s", dir, length && dir[length - 1] != '/' ? "/" : "", name);
	if (length > SS_PATH_BYTES - 2 || strlen(expected) >= SS_PATH_BYTES)
		CHECK(ss_child_join(to, dir, name) == ENAMETOOLONG);
	else
		CHECK(ss_child_join(to, dir, name) == 0 && !strcmp(to, expected));
	free(expected);
	free(to);
	free(name);
	free(dir);
}

static int
compare_targets(const void *a, const void *b)
{
	const struct ss_fd *left = a, *right = b;

	return (left->target > right->target) - (left->target < right->target);
}

/* Takes (source, target) pairs; sorted by target and each target once, as the core has it. */
static struct ss_fd *
take_fds(struct input *in, uint32_t *ret_count)
{
	const uint32_t given = (uint32_t)take(in, 1) % 64;
	struct ss_fd *all = exactly(given * sizeof(*all)), *kept;
	uint32_t count = 0, i;

	for (i = 0; i < given; i++) {
		all[i].source = (int32_t)take(in, 1);
		if (all[i].source == 255) /* nothing is to be there */
			all[i].source = -1;
		all[i].target = (int32_t)take(in, 1);
	}
	qsort(all, given, sizeof(*all), compare_targets);
	for (i = 0; i < given; i++)
		if (!count || all[count - 1].target != all[i].target)
			all[count++] = all[i];
	kept = exactly(count * sizeof(*kept));
	memcpy(kept, all, count * sizeof(*kept));
	free(all);
	*ret_count = count;
	return kept;
}

static void
fuzz_targets(struct input *in)
{
	struct ss_plan plan;
	struct ss_fd *fds;
	int32_t fd;
	uint32_t i;

	memset(&plan, 0, sizeof(plan));
	plan.want.fds = fds = take_fds(in, &plan.want.nfds);
	for (fd = -1; fd < 257; fd++) {
		int expected = 0;

		for (i = 0; i < plan.want.nfds; i++)
			expected |= fds[i].target == fd;
		CHECK(ss_child_is_target(&plan, fd) == expected);
	}
	free(fds);
}

/* ----------------------------------------------------------- control message */

#define SENT_MAX 8

static unsigned
count_open(void)
{
	unsigned found = 0;
	int fd;

	for (fd = 0; fd < 64; fd++)
		found += fcntl(fd, F_GETFD) >= 0;
	return found;
}

/* Sends so many descriptors, and bytes beside them. */
static void
send_descriptors(int socket, unsigned count, void *data, size_t bytes)
{
	union {
		struct cmsghdr header;
		unsigned char room[CMSG_SPACE(SENT_MAX * sizeof(int))];
	} control;
	struct iovec iov = {data, bytes};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	unsigned i;

	memset(&control, 0, sizeof(control));
	if (count) {
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = (unsigned)CMSG_LEN(count * sizeof(int));
		for (i = 0; i < count; i++)
			memcpy(CMSG_DATA(&control.header) + i * sizeof(int), &socket, sizeof(int));
		message.msg_control = &control;
		message.msg_controllen = (unsigned)CMSG_SPACE(count * sizeof(int));
	}
	CHECK(sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)bytes);
}

static void
fuzz_take_over(struct input *in)
{
	const unsigned named = (unsigned)take(in, 1) & 15, sent = (unsigned)take(in, 1) % (SENT_MAX + 1);
	const unsigned how = (unsigned)take(in, 1);
	const unsigned before = count_open();
	unsigned wanted = 0, i;
	struct ss_found *found = exactly(sizeof(*found));
	int32_t *fds[SS_FOUND_FDS] = {&found->exe_fd, &found->cwd_fd, &found->copy_fd, &found->root_fd};
	char data[4] = "....";
	int pair[2], answer;

	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
	for (i = 0; i < SS_FOUND_FDS; i++) {
		*fds[i] = named & 1u << i ? 1000 : -1;
		wanted += *fds[i] >= 0;
	}
	if (how % 8 != 7) /* no message at all */
		send_descriptors(pair[1], sent, data, how % 8 == 6 ? 0 : 1 + how % 4);
	answer = ss_take_over(pair[0], found);
	(void)close(pair[0]);
	(void)close(pair[1]);
	CHECK(answer <= 0);
	if (!answer) {
		CHECK(how % 8 < 6 && sent == wanted);
		CHECK(count_open() == before + wanted);
		for (i = 0; i < SS_FOUND_FDS; i++)
			CHECK(*fds[i] < 0 || (fcntl(*fds[i], F_GETFD) == FD_CLOEXEC && !close(*fds[i])));
	}
	CHECK(count_open() == before);
	free(found);
}

/* ------------------------------------------------------ what a helper answers */

/* Sends an answer as it is, or with its magic, with so many descriptors; whoever has the other end may say anything. */
static void
fuzz_told(struct input *in)
{
	const unsigned sent = (unsigned)take(in, 1) % (SENT_MAX + 1), how = (unsigned)take(in, 1);
	const unsigned before = count_open();
	const size_t size = in->left < 80 ? in->left : 80;
	struct ss_told *told = exactly(sizeof(*told));
	uint8_t bytes[80];
	struct ss_helper helper;
	struct stat st;
	int32_t pidfd = -7;
	int pair[2], answer, is_whole;

	memset(&helper, 0, sizeof(helper));
	memcpy(bytes, in->at, size);
	if (how & 1)
		memcpy(bytes, "sasshelp", size < 8 ? size : 8);
	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) && !fstat(pair[1], &st));
	helper.socket = pair[0];
	if (how & 2)
		send_descriptors(pair[1], sent, bytes, size);
	(void)close(pair[1]);
	answer = ss_told_take(&helper, told, &pidfd);
	is_whole = (how & 2) && size == sizeof(*told) && !memcmp(bytes, "sasshelp", 8) && sent <= 1;
	CHECK(answer == (!(how & 2) || (!size && !sent) ? 0 : is_whole ? 1 : -EPROTO));
	/* There is room for one descriptor, and the kernel keeps the others. */
	CHECK((pidfd >= 0) == ((how & 2) && sent >= 1));
	CHECK(count_open() == before + 1 + (pidfd >= 0));
	CHECK(pidfd < 0 || (ss_fd_is(pidfd, st.st_ino) && fcntl(pidfd, F_GETFD) == FD_CLOEXEC));
	CHECK(answer != 1 || !memcmp(told, bytes, size));
	ss_close(&pidfd);
	(void)close(pair[0]);
	free(told);
}

/* ------------------------------------------------------------ whole functions */

/* A spawn of a program that is not there: fails in the child, at whatever stage. */
static void
fuzz_spawn(struct input *in)
{
	const uint64_t harmless = SS_NEW_SESSION | SS_SET_GROUP | SS_SET_NICE | SS_SET_UMASK |
				  SS_KEEP_FDS | SS_SET_SIGMASK | SS_NO_NEW_PRIVS | SS_SET_UID |
				  SS_SET_GID | SS_SET_GROUPS;
	const unsigned before = count_open();
	struct ss_facts facts;
	struct ss_request r;
	struct ss_result result;
	struct ss_fd *fds;
	char path[] = NOWHERE "program", *argv;
	uint32_t groups[2];
	int answer;

	memset(&r, 0, sizeof(r));
	CHECK(!ss_look(&facts));
	r.expected = facts.creds;
	r.flags = take(in, 3) & harmless;
	r.exec_fd = r.terminal_fd = -1;
	r.cwd_fd = take(in, 1) % 4 ? -1 : 1000;
	r.expected.euid ^= take(in, 1) % 8 == 7;
	r.group = (int32_t)take(in, 1);
	r.nice = (int32_t)(int8_t)take(in, 1);
	r.umask = (uint32_t)take(in, 2);
	r.uid = (uint32_t)take(in, 2);
	r.gid = (uint32_t)take(in, 2);
	groups[0] = (uint32_t)take(in, 1);
	groups[1] = groups[0] + (uint32_t)take(in, 1);
	r.groups = groups;
	r.ngroups = (uint32_t)take(in, 1) % 3;
	r.sigmask = take(in, 8);
	r.sigdefault = r.sigmask & ~(1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1));
	r.pdeathsig = (int32_t)take(in, 1);
	r.deadline_ns = take(in, 1) % 2 ? ss_now() + 10000000000ll : 0;
	r.fds = fds = take_fds(in, &r.nfds);
	r.path = path;
	r.argc = 1 + (uint32_t)take(in, 1) % 2;
	argv = take_text(in, 64);
	r.argv = argv;
	r.argv_bytes = strlen(argv) + 1;
	answer = ss_spawn(NULL, &r, &result);
	CHECK(answer == (r.argc == 1 ? 0 : -EINVAL));
	CHECK(result.pidfd == -1 && !(result.flags & SS_STUCK));
	CHECK(result.outcome == SS_FAILED || result.outcome == SS_RACE_DETECTED);
	CHECK(result.error > 0 && result.stage > SS_STAGE_NONE && result.stage < SS_STAGE_COUNT);
	CHECK(answer || result.exit_code == CLD_EXITED);
	/* A sanitizer that found something in the child ends it with another code. */
	CHECK(answer || result.exit_status == 127);
	CHECK((result.outcome == SS_RACE_DETECTED) == (!answer && r.expected.euid != facts.creds.euid));
	CHECK(count_open() == before);
	free(argv);
	free(fds);
}

static void
check_root(const struct ss_lookup *want, const struct ss_found *found)
{
	CHECK((found->root_fd >= 0) == (want->root && !found->error));
	if (want->root && !strcmp(want->root, NOWHERE))
		CHECK(found->stage == SS_STAGE_ROOT_OPEN && found->error == ENOENT);
	else if (want->root_fd >= 0)
		CHECK(found->stage == SS_STAGE_ROOT_OPEN && found->error == EBADF);
	else
		CHECK(found->stage == SS_STAGE_LOOKUP);
}

/* A lookup in directories that exist or not, perhaps inside another root; nothing is run. */
static void
fuzz_lookup(struct input *in)
{
	static const char *const roots[] = {NULL, "/", "/usr", NOWHERE};
	const unsigned how = (unsigned)take(in, 1);
	const uint64_t flags = how % 2 ? SS_DETAILS | SS_WALK : 0;
	const unsigned before = count_open();
	struct ss_found *found = exactly(sizeof(*found));
	struct ss_result result;
	struct ss_lookup want;
	char *name = take_text(in, take(in, 1)), *dirs;
	size_t i;

	memset(&want, 0, sizeof(want));
	want.name = name;
	want.cwd_fd = -1;
	want.root = roots[how / 2 % 4];
	want.root_fd = how / 8 % 4 == 3 ? 1000 : -1; /* closed */
	want.flags = flags | SS_SEARCH;
	want.dirs_bytes = in->left + 1;
	want.dirs = dirs = take_text(in, in->left);
	for (i = 0; i < want.dirs_bytes; i++)
		want.ndirs += !dirs[i];
	CHECK(!ss_lookup(NULL, &want, found, &result));
	CHECK((found->error == 0) == (found->exe_fd >= 0));
	CHECK(found->cwd_fd == -1 && found->copy_fd == -1);
	check_root(&want, found);
	CHECK(found->nparents <= SS_PARENTS && found->head_bytes <= SS_HEAD_BYTES);
	CHECK(memchr(found->path, 0, SS_PATH_BYTES) && memchr(found->real, 0, SS_PATH_BYTES));
	ss_found_close(found);
	CHECK(count_open() == before);
	free(dirs);
	free(name);
	free(found);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const parts[])(struct input *) = {
	    fuzz_strings, fuzz_plan, fuzz_digits, fuzz_number, fuzz_join, fuzz_targets, fuzz_take_over,
	};
	struct input in = {data, size};
	const unsigned chosen = (unsigned)take(&in, 1);

	if (chosen == 'S') /* a process each: let it not be chosen often */
		fuzz_spawn(&in);
	else if (chosen == 'L' || chosen == 'l')
		fuzz_lookup(&in);
	else if (chosen == 'T')
		fuzz_told(&in);
	else
		parts[chosen % (sizeof(parts) / sizeof(*parts))](&in);
	return 0;
}

#ifdef FUZZ_MAIN
#define SAID ("ok")
#include "replay.h"
#endif
