/*
 * Reads the plan in the launcher. Whatever the bytes are, nothing outside them is touched
 * and nothing in them is trusted: every length, place and count is checked before it is
 * used, and what is left over is refused too. Answers 0 or EPROTO. plan-sealed (T-29)
 */

/* A launcher of another build would read other things out of the same bytes. */
static int
ss_wire_is_head(const struct ss_wire *wire, size_t bytes)
{
	return wire->magic == SS_WIRE_MAGIC && wire->version == SS_WIRE_VERSION &&
	       wire->head_bytes == sizeof(*wire) && wire->total == bytes &&
	       !(wire->want.flags & ~(uint64_t)(SS_FLAGS_END - 1));
}

/* The bytes of a part, or NULL if they are not where they may be. */
static const unsigned char *
ss_wire_part(const struct ss_wire *wire, int index)
{
	const struct ss_part *part = &wire->parts[index];

	if (part->at < sizeof(*wire) || part->at > wire->total || part->bytes > wire->total - part->at ||
	    part->at % 16)
		return NULL;
	return (const unsigned char *)wire + part->at;
}

/* A part of exactly count things; none of a thing may have any place. */
static const void *
ss_wire_list(const struct ss_wire *wire, int index, uint64_t count, uint64_t each, int *error)
{
	if (wire->parts[index].bytes != count * each) {
		*error = EPROTO;
		return NULL;
	}
	if (!count)
		return NULL;
	if (!ss_wire_part(wire, index))
		*error = EPROTO;
	return *error ? NULL : ss_wire_part(wire, index);
}

/* One string with its NUL and nothing behind it. */
static const char *
ss_wire_text(const struct ss_wire *wire, int index, int *error)
{
	const unsigned char *text = ss_wire_part(wire, index);
	const uint64_t bytes = wire->parts[index].bytes;
	uint64_t i;

	if (!text || !bytes || text[bytes - 1])
		*error = EPROTO;
	for (i = 0; !*error && i < bytes - 1; i++)
		if (!text[i])
			*error = EPROTO;
	return *error ? NULL : (const char *)text;
}

/* Points at each of count strings laid end to end. They are not written to: execve reads. */
static char **
ss_wire_strings(const struct ss_wire *wire, int index, uint32_t count, char **table, int *error)
{
	const uint64_t bytes = wire->parts[index].bytes;
	const unsigned char *text = bytes ? ss_wire_part(wire, index) : NULL;
	uint64_t at = 0;
	uint32_t i;

	if (count && !text) /* the shortest string has a byte */
		*error = EPROTO;
	for (i = 0; i < count && !*error; i++) {
		table[i] = (char *)(uintptr_t)(text + at);
		while (at < bytes && text[at])
			at++;
		if (at++ >= bytes)
			*error = EPROTO;
	}
	if (at != bytes)
		*error = EPROTO;
	table[count] = NULL;
	return table;
}

/* Each target once and ascending, as the search among them takes for granted. */
static int
ss_wire_targets(const struct ss_wire *wire, struct ss_fd *fds)
{
	const uint32_t count = wire->want.nfds;
	int error = 0;
	const int32_t *targets = ss_wire_list(wire, SS_PART_TARGETS, count, sizeof(*targets), &error);
	uint32_t i;

	for (i = 0; i < count && !error; i++) {
		if (targets[i] < 0 || (i && targets[i] <= targets[i - 1]))
			error = EPROTO;
		fds[i].source = fds[i].target = targets[i];
	}
	return error;
}

/* Where a helper's plan has the sources: as many as there are targets, or none; no place is negative. */
static const int32_t *
ss_wire_places(const struct ss_wire *wire, int *error)
{
	const uint32_t count = wire->parts[SS_PART_PLACES].bytes ? wire->want.nfds : 0;
	const int32_t *places = ss_wire_list(wire, SS_PART_PLACES, count, sizeof(*places), error);
	uint32_t i;

	for (i = 0; i < count && !*error; i++)
		if (places[i] < 0)
			*error = EPROTO;
	return *error ? NULL : places;
}

/* The counts, before anything is made of them. */
static int
ss_wire_counts(const struct ss_wire *wire)
{
	const struct ss_request *want = &wire->want;

	return want->argc && want->argc <= SS_INPUT_MAX / sizeof(char *) &&
		       want->envc <= SS_INPUT_MAX / sizeof(char *) && want->nfds <= SS_FDS_MAX &&
		       want->ngroups <= SS_GROUPS_MAX && want->nrlimits <= SS_RLIMITS_MAX &&
		       want->ninherited <= want->nrlimits &&
		       want->cpus_bytes <= SS_CPUS_MAX && want->nfilter <= SS_FILTER_MAX_LEN
		   ? 0
		   : EPROTO;
}

/* How much memory ss_wire_read needs beside the plan, when the head is right. */
static size_t
ss_wire_room(const struct ss_wire *wire)
{
	const struct ss_request *want = &wire->want;

	return (want->argc + 1ull + want->envc + 1) * sizeof(char *) + want->nfds * sizeof(struct ss_fd) +
	       (want->nfds + (uint64_t)want->ngroups) * sizeof(uint32_t) + SS_LISTING_BYTES;
}

/* Whether the bytes are a plan as far as its head goes: then ss_wire_room may be asked. */
static int
ss_wire_check(const void *bytes, size_t count)
{
	const struct ss_wire *wire = bytes;

	return count >= sizeof(*wire) && ss_wire_is_head(wire, count) ? ss_wire_counts(wire) : EPROTO;
}

/* Makes a plan of checked bytes; room has as many as ss_wire_room said. */
static int
ss_wire_read(const struct ss_wire *wire, unsigned char *room, struct ss_plan *plan)
{
	char **strings = (char **)(void *)room;
	int error = 0;

	plan->want = wire->want; /* every pointer in it is set below, or nothing is read */
	plan->mask = wire->mask;
	plan->parent_pid = wire->parent_pid;
	plan->argv = ss_wire_strings(wire, SS_PART_ARGV, wire->want.argc, strings, &error);
	strings += wire->want.argc + 1ull;
	plan->envp = ss_wire_strings(wire, SS_PART_ENV, wire->want.envc, strings, &error);
	room = (unsigned char *)(strings + wire->want.envc + 1);
	plan->want.fds = (const struct ss_fd *)(void *)room;
	error = error ? error : ss_wire_targets(wire, (struct ss_fd *)(void *)room);
	plan->places = ss_wire_places(wire, &error);
	plan->scratch = room + wire->want.nfds * sizeof(struct ss_fd);
	/* What each list is for is checked where it is used; here only that it is there. */
	plan->want.path = error ? NULL : ss_wire_text(wire, SS_PART_PATH, &error);
	plan->want.cwd = error || !wire->parts[SS_PART_CWD].bytes ? NULL : ss_wire_text(wire, SS_PART_CWD, &error);
	plan->want.groups = ss_wire_list(wire, SS_PART_GROUPS, wire->want.ngroups, sizeof(uint32_t), &error);
	plan->want.rlimits =
	    ss_wire_list(wire, SS_PART_RLIMITS, wire->want.nrlimits, sizeof(struct ss_rlimit), &error);
	plan->want.cpus = ss_wire_list(wire, SS_PART_CPUS, wire->want.cpus_bytes, 1, &error);
	plan->want.filter =
	    ss_wire_list(wire, SS_PART_FILTER, wire->want.nfilter, SS_FILTER_INSTRUCTION, &error);
	plan->want.argv = plan->want.env = plan->want.map_users = plan->want.map_groups = NULL;
	return error;
}
