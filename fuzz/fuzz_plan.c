/*
 * Fuzz target for the launcher's parser of plans (safespawn/_wire.c).
 *
 * An input is the bytes of a plan, as the launcher finds them in its memfd. Each is tried
 * twice: as it is, and with its head put right (magic, version, sizes, flags), so that what
 * a mutation has cut or shifted is still looked at. An input that begins with 'M' is a short
 * script instead: counts, lengths and a few edits of the head, from which a plan is made.
 *
 * The plan and the room for what is made of it have their exact sizes, and AddressSanitizer
 * watches both. A slow model, written apart from the parser, says whether the bytes are a
 * plan; then every byte that the steps of a child read or write is touched.
 *
 * libFuzzer:  clang -fsanitize=fuzzer,address,undefined fuzz_plan.c
 * gcc:        gcc -fsanitize=address,undefined fuzz_plan.c driver.c
 * replay:     gcc -fsanitize=address,undefined -DFUZZ_MAIN fuzz_plan.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../safespawn/_wire.h"

#include "../safespawn/_wire.c"

#include "check.h"

typedef unsigned __int128 wide; /* wider than any sum or product of what is in a plan */

/* -------------------------------------------------------------------- the model */

/* A part as its place in the file, in numbers that cannot overflow. */
struct place {
	wide from, to;
};

static struct place
place_of(const struct ss_wire *head, int index)
{
	const wide at = head->parts[index].at;

	return (struct place){at, at + head->parts[index].bytes};
}

static int
is_inside(struct place p, size_t size)
{
	return p.from % 16 == 0 && p.from >= sizeof(struct ss_wire) && p.to <= size;
}

/* Exactly count strings: as many NULs, and the last byte is one. */
static int
has_strings(const uint8_t *data, size_t size, struct place p, uint32_t count)
{
	uint32_t nuls = 0;
	wide i;

	if (p.from == p.to)
		return count == 0;
	if (!is_inside(p, size))
		return 0;
	for (i = p.from; i < p.to; i++)
		nuls += data[i] == 0;
	return nuls == count && data[p.to - 1] == 0;
}

static int
has_list(size_t size, struct place p, wide count, wide each)
{
	return p.to - p.from == count * each && (count == 0 || is_inside(p, size));
}

static int
has_targets(const uint8_t *data, size_t size, struct place p, uint32_t count)
{
	int32_t before = -1, target;
	uint32_t i;

	if (!has_list(size, p, count, sizeof(target)))
		return 0;
	for (i = 0; i < count; i++) {
		memcpy(&target, data + p.from + i * sizeof(target), sizeof(target));
		if (target <= before)
			return 0;
		before = target;
	}
	return 1;
}

/* There may be none; else one for each target. */
static int
has_places(const uint8_t *data, size_t size, struct place p, uint32_t targets)
{
	wide i;

	if (p.from == p.to)
		return 1;
	if (!has_list(size, p, targets, 4) || !targets)
		return 0;
	for (i = p.from + 3; i < p.to; i += 4)
		if (data[i] & 0x80) /* its sign */
			return 0;
	return 1;
}

static int
is_head(const struct ss_wire *head, size_t size)
{
	static const char magic[8] = {'s', 'a', 's', 's', 'p', 'l', 'a', 'n'};
	const struct ss_request *want = &head->want;
	int flag;

	if (memcmp(&head->magic, magic, sizeof(magic)) || head->version != 1 ||
	    head->head_bytes != sizeof(*head) || head->total != size)
		return 0;
	for (flag = 0; flag < 64; flag++)
		if ((want->flags >> flag & 1) && flag >= __builtin_ctz(SS_FLAGS_END))
			return 0;
	return want->argc > 0 && want->argc <= 8388608 && want->envc <= 8388608 && want->nfds <= 1048576 &&
	       want->ngroups <= 65536 && want->nrlimits <= 64 && want->ninherited <= want->nrlimits &&
	       want->cpus_bytes <= 8192 && want->nfilter <= 4096;
}

static int
is_body(const uint8_t *data, size_t size, const struct ss_wire *head)
{
	const struct ss_request *want = &head->want;
	const struct place cwd = place_of(head, SS_PART_CWD);

	return has_strings(data, size, place_of(head, SS_PART_PATH), 1) &&
	       has_strings(data, size, place_of(head, SS_PART_ARGV), want->argc) &&
	       has_strings(data, size, place_of(head, SS_PART_ENV), want->envc) &&
	       has_targets(data, size, place_of(head, SS_PART_TARGETS), want->nfds) &&
	       has_places(data, size, place_of(head, SS_PART_PLACES), want->nfds) &&
	       has_list(size, place_of(head, SS_PART_GROUPS), want->ngroups, 4) &&
	       has_list(size, place_of(head, SS_PART_RLIMITS), want->nrlimits, 24) &&
	       has_list(size, place_of(head, SS_PART_CPUS), want->cpus_bytes, 1) &&
	       has_list(size, place_of(head, SS_PART_FILTER), want->nfilter, 8) &&
	       (cwd.from == cwd.to || has_strings(data, size, cwd, 1));
}

/* ------------------------------------------------------------ what was made of it */

static uint64_t touched;

/* Reads every byte, so that the sanitizer sees one that is not ours. */
static void
touch(const void *from, size_t bytes)
{
	const volatile uint8_t *at = from;

	while (bytes--)
		touched += *at++;
}

/* A pointer leads to the beginning of its part, and the bytes there can be read. */
static void
check_list(const uint8_t *data, const struct ss_wire *head, int index, const void *made, size_t bytes)
{
	CHECK((made == NULL) == (bytes == 0));
	if (!bytes)
		return;
	CHECK((const uint8_t *)made == data + place_of(head, index).from);
	CHECK(place_of(head, index).to - place_of(head, index).from == bytes);
	touch(made, bytes);
}

static void
check_text(const uint8_t *data, const struct ss_wire *head, int index, const char *made)
{
	const struct place p = place_of(head, index);

	CHECK((made == NULL) == (p.from == p.to));
	if (made) {
		CHECK((const uint8_t *)made == data + p.from);
		CHECK(strlen(made) + 1 == p.to - p.from);
	}
}

/* Each string begins where the one before has ended, and the last ends with the part. */
static void
check_strings(const uint8_t *data, const struct ss_wire *head, int index, char *const *made, uint32_t count)
{
	const struct place p = place_of(head, index);
	const uint8_t *at;
	uint32_t i;

	CHECK(!made[count]);
	if (!count)
		return; /* and the place may be anywhere */
	at = data + p.from;
	for (i = 0; i < count; i++) {
		CHECK((const uint8_t *)made[i] == at);
		at += strlen(made[i]) + 1;
		CHECK(at <= data + p.to);
	}
	CHECK(at == data + p.to);
}

/* The tables that were made in the room, and the scratch area that is the rest of it. */
static void
check_room(const struct ss_plan *plan, unsigned char *room, size_t bytes)
{
	const struct ss_request *want = &plan->want;
	const size_t lifted = want->nfds * sizeof(int32_t) + SS_LISTING_BYTES;
	const size_t groups = want->ngroups * sizeof(uint32_t);
	const unsigned char *end = room + bytes;
	uint32_t i;

	CHECK((unsigned char *)plan->argv == room);
	CHECK((unsigned char *)plan->envp == (unsigned char *)(plan->argv + want->argc + 1));
	CHECK((const unsigned char *)want->fds == (unsigned char *)(plan->envp + want->envc + 1));
	for (i = 0; i < want->nfds; i++) {
		CHECK(want->fds[i].source == want->fds[i].target && want->fds[i].target >= 0);
		CHECK(!i || want->fds[i - 1].target < want->fds[i].target);
	}
	CHECK(plan->scratch == (const unsigned char *)(want->fds + want->nfds));
	CHECK(plan->scratch + lifted <= end && plan->scratch + groups <= end);
	CHECK((uintptr_t)plan->scratch % sizeof(int32_t) == 0);
	/* ss_child_fds and ss_child_cloexec_walk, then ss_child_groups_agree. */
	memset(plan->scratch, 0xa5, lifted);
	memset(plan->scratch, 0x5a, groups);
}

/* The members of a request from one to another, between which there is no padding. */
#define SAME(a, b, first, last)                                                 \
	(!memcmp(&(a)->first, &(b)->first,                                      \
		 offsetof(struct ss_request, last) + sizeof((a)->last) - offsetof(struct ss_request, first)))

/* What is no list or string is as it was in the file. */
static void
check_numbers(const struct ss_plan *plan, const struct ss_wire *head)
{
	const struct ss_request *want = &plan->want;

	CHECK(plan->mask == head->mask && plan->parent_pid == head->parent_pid);
	CHECK(!want->argv && !want->env && !want->map_users && !want->map_groups);
	CHECK(SAME(want, &head->want, argv_bytes, born_in));
	CHECK(SAME(want, &head->want, flags, securebits));
	CHECK(SAME(want, &head->want, expected, expected));
}

static void
check_plan(const struct ss_plan *plan, const uint8_t *data, const struct ss_wire *head)
{
	const struct ss_request *want = &plan->want;

	check_text(data, head, SS_PART_PATH, want->path);
	CHECK(want->path);
	check_strings(data, head, SS_PART_ARGV, plan->argv, want->argc);
	check_strings(data, head, SS_PART_ENV, plan->envp, want->envc);
	check_list(data, head, SS_PART_PLACES, plan->places, place_of(head, SS_PART_PLACES).to - place_of(head, SS_PART_PLACES).from);
	check_list(data, head, SS_PART_GROUPS, want->groups, want->ngroups * sizeof(*want->groups));
	check_list(data, head, SS_PART_RLIMITS, want->rlimits, want->nrlimits * sizeof(*want->rlimits));
	check_list(data, head, SS_PART_CPUS, want->cpus, want->cpus_bytes);
	check_list(data, head, SS_PART_FILTER, want->filter, want->nfilter * (size_t)SS_FILTER_INSTRUCTION);
	check_text(data, head, SS_PART_CWD, want->cwd);
	check_numbers(plan, head);
}

/* --------------------------------------------------------------------- one plan */

static void *
exactly(size_t bytes)
{
	void *made = malloc(bytes ? bytes : 1);

	CHECK(made);
	return made;
}

/* Whether it is a plan. */
static int
parse(const uint8_t *bytes, size_t size, const struct ss_wire *head)
{
	const size_t room_bytes = ss_wire_room((const struct ss_wire *)(const void *)bytes);
	unsigned char *room = exactly(room_bytes);
	struct ss_plan *plan = exactly(sizeof(*plan));
	const int error = ss_wire_read((const struct ss_wire *)(const void *)bytes, room, plan);

	CHECK(error == (is_body(bytes, size, head) ? 0 : EPROTO));
	if (!error) {
		check_plan(plan, bytes, head);
		check_room(plan, room, room_bytes);
	}
	free(plan);
	free(room);
	return !error;
}

static int is_taken; /* the last one was a plan */

static void
try_bytes(const uint8_t *given, size_t size)
{
	uint8_t *bytes = exactly(size);
	struct ss_wire head;
	int error;

	memcpy(bytes, given, size);
	memset(&head, 0, sizeof(head));
	memcpy(&head, given, size < sizeof(head) ? size : sizeof(head));
	error = ss_wire_check(bytes, size);
	CHECK(error == (size >= sizeof(head) && is_head(&head, size) ? 0 : EPROTO));
	is_taken = !error && parse(bytes, size, &head);
	CHECK(!memcmp(bytes, given, size)); /* the launcher cannot write there */
	free(bytes);
}

/* The same bytes with a head as it should be, as far as that says nothing of the parts. */
static void
try_repaired(const uint8_t *given, size_t size)
{
	struct ss_wire head;
	uint8_t *bytes;

	if (size < sizeof(head))
		return;
	memcpy(&head, given, sizeof(head));
	head.magic = SS_WIRE_MAGIC;
	head.version = SS_WIRE_VERSION;
	head.head_bytes = sizeof(head);
	head.total = size;
	head.want.flags &= SS_FLAGS_END - 1;
	if (!memcmp(&head, given, sizeof(head)))
		return; /* it was so */
	bytes = exactly(size);
	memcpy(bytes, given, size);
	memcpy(bytes, &head, sizeof(head));
	try_bytes(bytes, size);
	free(bytes);
}

/* ---------------------------------------------------------------------- scripts */

struct input {
	const uint8_t *at;
	size_t left;
};

static uint8_t
take(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->at++;
}

#define STRING 4ull /* of a list that a script makes, with its NUL */

static const uint64_t telling[] = {
    0, 1, 2, 15, 16, 17, 4096, 65536, 65537, 1u << 20, (1u << 20) + 1, INT32_MAX, 1u << 31, UINT32_MAX,
    1ull << 32, 1ull << 60, INT64_MAX, 1ull << 63, UINT64_MAX - 15, UINT64_MAX,
};

/* A count of things, and as many bytes but for a slip now and then. */
static uint64_t
take_list(struct input *in, uint32_t *count, unsigned below, uint64_t each)
{
	const uint8_t slip = take(in);

	*count = take(in) % below;
	return *count * each + (slip < 240 ? 0 : slip - 248ull);
}

/* Every second script has places; there a count of one's own is mostly wrong. */
static uint64_t
take_places(struct input *in, uint32_t targets)
{
	const uint8_t how = take(in);

	return how % 2 ? (how < 240 ? targets : how) * sizeof(int32_t) : 0;
}

/* Lays the parts out in order; one that would be very long is so in the head only. */
static size_t
lay_out(struct ss_wire *head, const uint64_t bytes[SS_PARTS])
{
	uint64_t end = sizeof(*head);
	int i;

	for (i = 0; i < SS_PARTS; i++) {
		head->parts[i].at = (end + 15) & ~15ull;
		head->parts[i].bytes = bytes[i];
		end = head->parts[i].at + (bytes[i] <= 4096 ? bytes[i] : 0);
	}
	return end;
}

static size_t
take_head(struct input *in, struct ss_wire *head)
{
	struct ss_request *want = &head->want;
	uint64_t bytes[SS_PARTS];

	bytes[SS_PART_PATH] = take(in) % 32;
	bytes[SS_PART_ARGV] = take_list(in, &want->argc, 16, STRING);
	bytes[SS_PART_ENV] = take_list(in, &want->envc, 16, STRING);
	bytes[SS_PART_TARGETS] = take_list(in, &want->nfds, 32, sizeof(int32_t));
	bytes[SS_PART_GROUPS] = take_list(in, &want->ngroups, 32, sizeof(uint32_t));
	bytes[SS_PART_RLIMITS] = take_list(in, &want->nrlimits, 66, sizeof(struct ss_rlimit));
	bytes[SS_PART_CPUS] = take_list(in, &want->cpus_bytes, 64, 1);
	bytes[SS_PART_FILTER] = take_list(in, &want->nfilter, 32, SS_FILTER_INSTRUCTION);
	bytes[SS_PART_CWD] = take(in) % 32;
	bytes[SS_PART_PLACES] = take_places(in, want->nfds);
	want->ninherited = take(in) % 8;
	head->magic = SS_WIRE_MAGIC;
	head->version = SS_WIRE_VERSION;
	head->head_bytes = sizeof(*head);
	return head->total = lay_out(head, bytes);
}

/* Strings of equal length, and targets and places that ascend by one. */
static void
fill(uint8_t *made, const struct ss_wire *head)
{
	static const int numbered[] = {SS_PART_TARGETS, SS_PART_PLACES};
	uint64_t i;
	unsigned k;
	int part;

	for (part = 0; part < SS_PARTS; part++)
		for (i = 0; i < head->parts[part].bytes && head->parts[part].bytes <= 4096; i++)
			made[head->parts[part].at + i] =
			    i + 1 == head->parts[part].bytes ||
				    (i % STRING == STRING - 1 && (part == SS_PART_ARGV || part == SS_PART_ENV))
				? 0
				: 'x';
	for (k = 0; k < 2; k++) {
		const struct ss_part *p = &head->parts[numbered[k]];

		for (i = 0; i < p->bytes && p->bytes <= 4096; i++)
			made[p->at + i] = i % 4 ? 0 : (uint8_t)(i / 4);
	}
}

/* A byte anywhere, or a word of the head that becomes a telling one or differs by a little. */
static void
edit(struct input *in, uint8_t *made, size_t size)
{
	const uint8_t how = take(in), value = take(in), high = take(in), low = take(in);
	uint8_t *word = made + low % (sizeof(struct ss_wire) / 8) * 8;
	uint64_t now;

	if (how % 3 == 0) {
		made[(high << 8 | low) % size] = value;
		return;
	}
	memcpy(&now, word, 8);
	now = how % 3 == 1 ? telling[value % (sizeof(telling) / sizeof(*telling))] : now + value - 128;
	memcpy(word, &now, how & 64 ? 4 : 8);
}

static void
try_script(struct input in)
{
	struct ss_wire head;
	uint8_t *made;
	size_t size;
	unsigned edits;

	memset(&head, 0, sizeof(head));
	size = take_head(&in, &head);
	made = exactly(size);
	memset(made, 0, size);
	memcpy(made, &head, sizeof(head));
	fill(made, &head);
	for (edits = take(&in) % 6; edits > 2; edits--) /* half of the scripts stay as they are */
		edit(&in, made, size);
	try_bytes(made, size);
	free(made);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size && data[0] == 'M') {
		try_script((struct input){data + 1, size - 1});
		return 0;
	}
	try_repaired(data, size);
	try_bytes(data, size);
	return 0;
}

#ifdef FUZZ_MAIN
#define SAID (is_taken ? "taken" : "refused")
#include "replay.h"
#endif
