/*
 * Fuzz target for what a helper may start (safespawn/_allowed.c).
 *
 * An input is the bytes of a policy, as the helper finds them in its memfd. Each is tried
 * twice: as it is, and with its head put right (magic, version, sizes). A policy that is taken
 * then judges a plan. An input that begins with 'T' is a script instead: lines of text (see
 * script_line) from which a policy and a plan are made, so that all of a plan can differ.
 *
 * Whatever is read has its exact size, and AddressSanitizer watches it. A slow model, written
 * apart from the helper's code, says whether the bytes are a policy and what it allows.
 *
 * libFuzzer:  clang -fsanitize=fuzzer,address,undefined fuzz_policy.c, with -dict=policy.dict
 * gcc:        gcc -fsanitize=address,undefined fuzz_policy.c driver.c, with -dict=policy.dict
 * replay:     gcc -fsanitize=address,undefined -DFUZZ_MAIN fuzz_policy.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../safespawn/_helper.h"

#include "../safespawn/_allowed.c"

#include "check.h"

typedef unsigned __int128 wide; /* wider than any sum or product of what is in a policy */

#define PLACES 64u  /* for the things of one sort that a script can name */
#define OPTIONS 19u /* that a policy can allow */
#define FAR 64	    /* a target that is none of the three that everybody has */

/* A policy and a plan, as things and not as bytes: what the model judges by. */
struct identity {
	uint32_t uid, gid, ngroups;
	uint32_t groups[PLACES];
};

struct words {
	char *at[PLACES];
	unsigned count;
};

struct known {
	/* The policy. */
	uint64_t flags, options;
	uint32_t euid;
	struct words programs, variables;
	struct identity users[PLACES];
	unsigned nusers;
	/* The plan. */
	struct words env;
	char *path;
	struct identity who;
	unsigned asked;	    /* of its three parts */
	uint64_t uses;	    /* options by their number, and three ways to use some */
	unsigned exec, born; /* see EXEC and BORN */
	unsigned char targets[PLACES]; /* sorted, each once */
	unsigned ntargets;
};

/* How the plan names its program beside the path. */
enum { EXEC_PATH, EXEC_SAME, EXEC_OTHER, EXEC_CLOSED, EXEC_KINDS, EXEC_TARGET = 4, EXEC_LOST = 8 };
enum { BORN_UNSHARED = 1, BORN_THERE = 2 }; /* a user namespace */
enum { USES_CWD_TEXT = OPTIONS, USES_BIRTH };

static void *
exactly(size_t bytes)
{
	void *made = calloc(1, bytes ? bytes : 1);

	CHECK(made);
	return made;
}

/* -------------------------------------------------------------------- the model */

static int
knows(const struct known *k, unsigned flag)
{
	return (k->flags & flag) != 0;
}

/* Every option that the plan uses is one of the policy. */
static int
model_options(const struct known *k)
{
	unsigned i, usual = 0;

	for (i = 0; i < k->ntargets; i++)
		usual += k->targets[i] < 3;
	for (i = 0; i < OPTIONS; i++) {
		const int is_used = i == 1 ? usual != 3 || k->ntargets != 3
				    : i == 0 ? (k->uses >> 0 | k->uses >> USES_CWD_TEXT) & 1
				    : i == 14 ? ((k->uses >> 14 | k->uses >> USES_BIRTH) & 1) || k->born
					      : (int)(k->uses >> i & 1);

		if (is_used && !(k->options >> i & 1))
			return 0;
	}
	return 1;
}

static int
is_same(const struct identity *a, const struct identity *b)
{
	return a->uid == b->uid && a->gid == b->gid && a->ngroups == b->ngroups &&
	       !memcmp(a->groups, b->groups, a->ngroups * sizeof(*a->groups));
}

static int
model_user(const struct known *k)
{
	unsigned i;

	if (knows(k, SS_ANY_USER))
		return 1;
	if (k->born || (k->asked != 0 && k->asked != 7))
		return 0;
	for (i = 0; i < k->nusers; i++)
		if (k->asked ? is_same(&k->users[i], &k->who) : k->users[i].uid == k->euid)
			return 1;
	return 0;
}

/* The name before the first '=', or all of it, is an entry; or it begins with one that a star ends. */
static int
is_named(const char *variable, const char *entry)
{
	const size_t bytes = strlen(entry), star = strcspn(entry, "*");

	if (star < bytes)
		return star + 1 == bytes && strlen(variable) >= star && !memcmp(variable, entry, star);
	return strlen(variable) >= bytes && !memcmp(variable, entry, bytes) &&
	       (variable[bytes] == '=' || variable[bytes] == 0);
}

static int
model_variables(const struct known *k)
{
	unsigned i, n;

	for (i = 0; i < k->env.count && !knows(k, SS_ANY_VARIABLE); i++) {
		for (n = 0; n < k->variables.count && !is_named(k->env.at[i], k->variables.at[n]); n++)
			;
		if (n == k->variables.count)
			return 0;
	}
	return 1;
}

/* It is what becomes of it when it is taken apart and put together again, and no part is a dot or two. */
static int
is_plain(const char *path)
{
	char *parts = strdup(path), *again = exactly(strlen(path) + 2), *rest = parts, *part;
	int answer = 1;

	while ((part = strsep(&rest, "/")))
		if (*part) {
			answer = answer && strcmp(part, ".") && strcmp(part, "..");
			strcat(strcat(again, "/"), part);
		}
	answer = answer && *again && !strcmp(again, path);
	free(again);
	free(parts);
	return answer;
}

static int
is_program(const char *path, const char *entry)
{
	const size_t directory = (size_t)(strrchr(path, '/') + 1 - path);

	return !strcmp(path, entry) || (strlen(entry) == directory && !memcmp(path, entry, directory));
}

/* By libc: the descriptor is one of the file that the path leads to. */
static int
is_file(const char *path, int fd)
{
	struct stat named, held;

	return !stat(path, &named) && !fstat(fd, &held) && named.st_dev == held.st_dev && named.st_ino == held.st_ino;
}

static int
model_program(const struct known *k, int fd)
{
	unsigned i;

	if (knows(k, SS_ANY_PROGRAM))
		return 1;
	if (k->uses >> 11 & 1) /* in another root every path leads elsewhere */
		return 0;
	if (!is_plain(k->path))
		return 0;
	if (k->exec != EXEC_PATH && ((k->exec & EXEC_LOST) || !is_file(k->path, fd)))
		return 0;
	for (i = 0; i < k->programs.count; i++)
		if (is_program(k->path, k->programs.at[i]))
			return 1;
	return 0;
}

/* ------------------------------------------------------------------- the plan */

static int
is_used(const struct known *k, unsigned option)
{
	return (int)(k->uses >> option & 1);
}

static void
plan_numbers(const struct known *k, struct ss_request *want)
{
	want->cwd_fd = is_used(k, 0) ? 9 : -1;
	want->cwd = is_used(k, USES_CWD_TEXT) ? "/" : NULL;
	want->terminal_fd = is_used(k, 4) ? 0 : -1;
	want->cpus_bytes = is_used(k, 8) ? 8 : 0;
	want->nrlimits = is_used(k, 9) ? 1 : 0;
	want->cgroup_fd = is_used(k, 10) ? 1 : -1;
	want->root_fd = is_used(k, 11) ? 0 : -1;
	want->nfilter = is_used(k, 15) ? 1 : 0;
	want->unshared = (is_used(k, 14) ? 0x04000000 : 0) | (k->born & BORN_UNSHARED ? 0x10000000 : 0);
	want->born_in = (is_used(k, USES_BIRTH) ? 0x20000000 : 0) | (k->born & BORN_THERE ? 0x10000000 : 0);
	want->landlock_fd = is_used(k, 17) ? 0 : -1;
	want->pdeathsig = is_used(k, 18) ? 9 : 0;
	want->launcher_fd = want->parent_fd = -1;
}

static uint64_t
plan_flags(const struct known *k)
{
	static const uint64_t by_option[OPTIONS] = {
	    [2] = SS_NEW_SESSION, [3] = SS_SET_GROUP, [5] = SS_SET_UMASK, [6] = SS_SET_NICE,
	    [7] = SS_SET_SCHEDULER, [12] = SS_SET_CAPS, [13] = SS_SET_SECUREBITS, [16] = SS_SUBREAPER,
	};
	uint64_t flags = SS_NO_NEW_PRIVS;
	unsigned i;

	for (i = 0; i < OPTIONS; i++)
		flags |= is_used(k, i) ? by_option[i] : 0;
	flags |= k->asked & 1 ? SS_SET_UID : 0;
	flags |= k->asked & 2 ? SS_SET_GID : 0;
	flags |= k->asked & 4 ? SS_SET_GROUPS : 0;
	return flags | (k->exec & (EXEC_TARGET | EXEC_LOST) ? SS_EXEC_TARGET : 0);
}

/* The descriptor of the program, as EXEC says. */
static int
plan_exec(const struct known *k)
{
	const unsigned kind = k->exec % EXEC_KINDS;

	return kind == EXEC_SAME    ? open(k->path, O_PATH | O_CLOEXEC)
	       : kind == EXEC_OTHER ? open("/dev/null", O_PATH | O_CLOEXEC)
				    : -1;
}

static void
plan_targets(const struct known *k, struct ss_request *want, int fd)
{
	struct ss_fd *fds = exactly(k->ntargets * sizeof(*fds));
	unsigned i;

	for (i = 0; i < k->ntargets; i++)
		fds[i] = (struct ss_fd){k->targets[i] == FAR ? fd : 0, k->targets[i]};
	want->fds = fds;
	want->nfds = k->ntargets;
	want->exec_fd = k->exec == EXEC_PATH		       ? -1
			: k->exec & EXEC_LOST		       ? FAR + 1
			: k->exec & EXEC_TARGET		       ? FAR
			: fd < 0 /* it could not be opened */ ? 1 << 20
							       : fd;
}

static void
plan_make(const struct known *k, struct ss_plan *plan, int fd)
{
	struct ss_request *want = &plan->want;
	uint32_t *groups = exactly(k->who.ngroups * sizeof(*groups));

	memset(plan, 0, sizeof(*plan));
	plan_numbers(k, want);
	plan_targets(k, want, fd);
	want->flags = plan_flags(k);
	want->path = k->path;
	want->uid = k->who.uid;
	want->gid = k->who.gid;
	want->ngroups = k->who.ngroups;
	memcpy(groups, k->who.groups, k->who.ngroups * sizeof(*groups));
	want->groups = groups;
	plan->envp = exactly((k->env.count + 1) * sizeof(*plan->envp));
	memcpy(plan->envp, k->env.at, k->env.count * sizeof(*plan->envp));
}

static void
plan_free(struct ss_plan *plan)
{
	free((void *)(uintptr_t)plan->want.fds);
	free((void *)(uintptr_t)plan->want.groups);
	free(plan->envp);
}

/* ------------------------------------------------------------------- judging */

static char said[32]; /* of the last policy, for the replay */

/* Both say the same of each part; what is denied is told by its letter. */
static void
judge(const struct ss_lists *l, const struct known *k)
{
	const int fd = plan_exec(k);
	struct ss_plan plan;

	plan_make(k, &plan, fd);
	{
		const int allowed[] = {model_options(k), model_user(k), model_variables(k), model_program(k, fd)};
		const int errors[] = {ss_allowed_options(l, &plan), ss_allowed_user(l, &plan),
				      ss_allowed_variables(l, &plan), ss_allowed_program(l, &plan)};
		int i;

		strcpy(said, "denied ");
		for (i = 0; i < 4; i++) {
			CHECK(errors[i] == (allowed[i] ? 0 : EACCES));
			if (!allowed[i])
				strncat(said, &"ouvp"[i], 1);
		}
		if (!said[7])
			strcpy(said, "allowed");
	}
	plan_free(&plan);
	if (fd >= 0)
		(void)close(fd);
}

/* ------------------------------------------------------------- bytes of a policy */

/* Exactly count strings, none empty: as many NULs, never two in a row, and the last byte is one. */
static int
has_strings(const uint8_t *at, wide bytes, uint32_t count)
{
	uint32_t nuls = 0;
	wide i;

	for (i = 0; i < bytes; i++) {
		nuls += !at[i];
		if (!at[i] && (i == 0 || !at[i - 1]))
			return 0;
	}
	return nuls == count && (bytes == 0 || !at[bytes - 1]);
}

static int
is_head(const struct ss_policy *p, size_t size)
{
	return !memcmp(&p->magic, "sasspoly", 8) && p->version == 1 && p->head_bytes == sizeof(*p) &&
	       p->total == size && size <= 1048576 && p->nusers <= 4096 && p->ngroups <= 65536 &&
	       p->nprograms <= 4096 && p->nvariables <= 4096 && p->pool <= 64 && !(p->flags >> 4) &&
	       !(p->options >> OPTIONS) && !((p->flags & 1) && p->nprograms) && !((p->flags & 2) && p->nusers) &&
	       !((p->flags & 4) && p->nvariables);
}

/* Where the lists are, in numbers that cannot overflow: users, groups, programs, variables, and the end. */
static void
find(const struct ss_policy *p, wide at[5])
{
	at[0] = sizeof(*p);
	at[1] = at[0] + (wide)p->nusers * sizeof(struct ss_policy_user);
	at[2] = at[1] + (wide)p->ngroups * 4;
	at[3] = at[2] + p->program_bytes;
	at[4] = at[3] + p->variable_bytes;
}

static int
is_policy(const uint8_t *data, size_t size)
{
	struct ss_policy_user user;
	struct ss_policy p;
	wide at[5];
	uint32_t i;

	if (size < sizeof(p))
		return 0;
	memcpy(&p, data, sizeof(p));
	find(&p, at);
	if (!is_head(&p, size) || at[4] != size)
		return 0;
	for (i = 0; i < p.nusers; i++) {
		memcpy(&user, data + at[0] + i * sizeof(user), sizeof(user));
		if ((wide)user.first_group + user.ngroups > p.ngroups)
			return 0;
	}
	return has_strings(data + at[2], p.program_bytes, p.nprograms) &&
	       has_strings(data + at[3], p.variable_bytes, p.nvariables);
}

/* The first of them as things, for a judgement; there may be more than we have places for. */
static int
read_words(const uint8_t *at, uint32_t count, struct words *words)
{
	if (count > PLACES)
		return 0;
	for (words->count = 0; words->count < count; words->count++) {
		words->at[words->count] = strdup((const char *)at);
		at += strlen((const char *)at) + 1;
	}
	return 1;
}

static int
read_users(const uint8_t *data, const struct ss_policy *p, const wide at[5], struct known *k)
{
	struct ss_policy_user user;

	if (p->nusers > PLACES)
		return 0;
	for (k->nusers = 0; k->nusers < p->nusers; k->nusers++) {
		struct identity *to = &k->users[k->nusers];

		memcpy(&user, data + at[0] + k->nusers * sizeof(user), sizeof(user));
		if (user.ngroups > PLACES)
			return 0;
		*to = (struct identity){.uid = user.uid, .gid = user.gid, .ngroups = user.ngroups};
		memcpy(to->groups, data + at[1] + user.first_group * 4ull, user.ngroups * 4ull);
	}
	return 1;
}

static void
free_words(struct words *words)
{
	while (words->count)
		free(words->at[--words->count]);
}

/* What every policy that is no script's judges: its own first user, program and variable, if it has them. */
static void
judge_policy(const struct ss_lists *l, const uint8_t *data)
{
	struct known *k = exactly(sizeof(*k));
	struct ss_policy p;
	wide at[5];

	memcpy(&p, data, sizeof(p));
	find(&p, at);
	k->flags = p.flags;
	k->options = p.options;
	k->euid = p.expected.euid;
	k->ntargets = 3;
	k->targets[1] = 1;
	k->targets[2] = 2;
	if (read_words(data + at[2], p.nprograms, &k->programs) && read_words(data + at[3], p.nvariables, &k->variables) &&
	    read_users(data, &p, at, k)) {
		k->path = k->programs.count ? k->programs.at[0] : "/";
		k->env.count = k->variables.count > 0;
		k->env.at[0] = k->variables.at[0];
		if (k->nusers) {
			k->asked = 7;
			k->who = k->users[0];
		}
		judge(l, k);
	}
	free_words(&k->programs);
	free_words(&k->variables);
	free(k);
}

/* Whether it was taken; as both must say. */
static int
read_policy(const uint8_t *bytes, size_t size, struct ss_lists *l)
{
	const int error = ss_policy_read(bytes, size, l);

	CHECK(error == (is_policy(bytes, size) ? 0 : EPROTO));
	return !error;
}

static void
try_bytes(const uint8_t *given, size_t size)
{
	uint8_t *bytes = exactly(size);
	struct ss_lists lists;

	memcpy(bytes, given, size);
	strcpy(said, "refused");
	if (read_policy(bytes, size, &lists)) {
		strcpy(said, "taken");
		judge_policy(&lists, bytes);
	}
	CHECK(!memcmp(bytes, given, size)); /* the helper cannot write there */
	free(bytes);
}

/* The same bytes with a head as it should be, as far as that says nothing of the lists. */
static void
try_repaired(const uint8_t *given, size_t size)
{
	struct ss_policy head;
	uint8_t *bytes;

	if (size < sizeof(head))
		return;
	memcpy(&head, given, sizeof(head));
	head.magic = SS_POLICY_MAGIC;
	head.version = SS_HELPER_VERSION;
	head.head_bytes = sizeof(head);
	head.total = size;
	head.flags &= 15;
	head.options &= (1u << OPTIONS) - 1;
	bytes = exactly(size);
	memcpy(bytes, given, size);
	memcpy(bytes, &head, sizeof(head));
	try_bytes(bytes, size);
	free(bytes);
}

/* ---------------------------------------------------------------------- scripts */

static void
add_word(struct words *words, const char *text)
{
	if (words->count < PLACES)
		words->at[words->count++] = strdup(text);
}

/* uid, gid and groups, with commas between them. */
static void
read_identity(char *text, struct identity *to)
{
	char *one;
	unsigned i;

	memset(to, 0, sizeof(*to));
	for (i = 0; (one = strsep(&text, ",")) && i < 2 + PLACES; i++) {
		const uint32_t number = (uint32_t)strtoul(one, NULL, 10);

		if (i < 2)
			*(i ? &to->gid : &to->uid) = number;
		else
			to->groups[to->ngroups++] = number;
	}
}

static void
add_target(struct known *k, unsigned char target)
{
	unsigned at = k->ntargets, i;

	for (i = 0; i < k->ntargets; i++)
		if (k->targets[i] == target)
			return;
	if (k->ntargets == PLACES)
		return;
	for (; at && k->targets[at - 1] > target; at--)
		k->targets[at] = k->targets[at - 1];
	k->targets[at] = target;
	k->ntargets++;
}

static void
read_targets(struct known *k, char *text)
{
	char *one;

	k->ntargets = 0;
	while ((one = strsep(&text, ",")))
		if (*one)
			add_target(k, (unsigned char)(strtoul(one, NULL, 10) % FAR));
}

/* Capitals are of the policy, small letters of the plan. */
static void
script_line(struct known *k, char *line)
{
	char *text = *line ? line + 1 : line; /* nothing lies behind an empty line at the end */
	const uint64_t number = strtoull(text, NULL, 16);

	switch (*line) {
	case 'F':
		k->flags = (uint32_t)number;
		break;
	case 'O':
		k->options = number;
		break;
	case 'E':
		k->euid = (uint32_t)strtoul(text, NULL, 10);
		break;
	case 'U':
		if (k->nusers < PLACES)
			read_identity(text, &k->users[k->nusers++]);
		break;
	case 'P':
		add_word(&k->programs, text);
		break;
	case 'V':
		add_word(&k->variables, text);
		break;
	case 'x':
		free(k->path);
		k->path = strdup(text);
		break;
	case 'e':
		add_word(&k->env, text);
		break;
	case 'u':
		read_identity(text, &k->who);
		k->asked = 7;
		break;
	case 'i':
		k->asked = number % 8;
		break;
	case 'o':
		k->uses = number;
		break;
	case 't':
		read_targets(k, text);
		break;
	case 'f':
		k->exec = (unsigned)(number % 12);
		break;
	case 'n':
		k->born = number % 4;
		break;
	default: /* a remark */
		break;
	}
}

static void
read_script(struct known *k, const uint8_t *data, size_t size)
{
	char *text = exactly(size + 1), *rest = text, *line;

	memcpy(text, data, size);
	k->path = strdup("/bin/true");
	read_targets(k, (char[]){"0,1,2"});
	while ((line = strsep(&rest, "\n")))
		script_line(k, line);
	if (k->exec & (EXEC_TARGET | EXEC_LOST))
		add_target(k, FAR);
	free(text);
}

static size_t
words_bytes(const struct words *words)
{
	size_t bytes = 0;
	unsigned i;

	for (i = 0; i < words->count; i++)
		bytes += strlen(words->at[i]) + 1;
	return bytes;
}

static uint8_t *
put(uint8_t *at, const void *from, size_t bytes)
{
	memcpy(at, from, bytes);
	return at + bytes;
}

/* Every user's groups lie behind those of the one before. */
static uint8_t *
put_users(uint8_t *at, const struct known *k)
{
	uint32_t first = 0;
	unsigned i;

	for (i = 0; i < k->nusers; i++) {
		const struct identity *one = &k->users[i];

		at = put(at, &(struct ss_policy_user){one->uid, one->gid, first, one->ngroups}, 16);
		first += one->ngroups;
	}
	for (i = 0; i < k->nusers; i++)
		at = put(at, k->users[i].groups, k->users[i].ngroups * 4ul);
	return at;
}

static uint8_t *
script_policy(const struct known *k, size_t *ret_size)
{
	const struct words *const lists[] = {&k->programs, &k->variables};
	struct ss_policy head;
	uint8_t *made, *at;
	unsigned i, n;

	memset(&head, 0, sizeof(head));
	head.magic = SS_POLICY_MAGIC;
	head.version = SS_HELPER_VERSION;
	head.head_bytes = sizeof(head);
	head.flags = (uint32_t)k->flags;
	head.options = k->options;
	head.expected.euid = k->euid;
	head.nusers = k->nusers;
	for (i = 0; i < k->nusers; i++)
		head.ngroups += k->users[i].ngroups;
	head.nprograms = k->programs.count;
	head.nvariables = k->variables.count;
	head.program_bytes = words_bytes(&k->programs);
	head.variable_bytes = words_bytes(&k->variables);
	*ret_size = head.total = sizeof(head) + k->nusers * 16ul + head.ngroups * 4ul + head.program_bytes + head.variable_bytes;
	made = exactly(*ret_size);
	at = put_users(put(made, &head, sizeof(head)), k);
	for (i = 0; i < 2; i++)
		for (n = 0; n < lists[i]->count; n++)
			at = put(at, lists[i]->at[n], strlen(lists[i]->at[n]) + 1);
	CHECK(at == made + *ret_size);
	return made;
}

static void
try_script(const uint8_t *data, size_t size)
{
	struct known *k = exactly(sizeof(*k));
	struct ss_lists lists;
	uint8_t *policy;
	size_t bytes;

	read_script(k, data, size);
	policy = script_policy(k, &bytes);
	strcpy(said, "refused");
	if (read_policy(policy, bytes, &lists))
		judge(&lists, k);
	free(policy);
	free(k->path);
	free_words(&k->programs);
	free_words(&k->variables);
	free_words(&k->env);
	free(k);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size && data[0] == 'T') {
		try_script(data + 1, size - 1);
		return 0;
	}
	try_repaired(data, size);
	try_bytes(data, size);
	return 0;
}

#ifdef FUZZ_MAIN
#define SAID said
#include "replay.h"
#endif
