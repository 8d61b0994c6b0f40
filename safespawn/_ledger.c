/*
 * The audit ledger: one write(2) per record, and the truth about it. Part of _native.c.
 *
 * What can go wrong, and the cure:
 *
 *  1. A full disk after an intent was kept: its outcome would be lost. Blocks are put by beyond
 *     the end of the file (fallocate, FALLOC_FL_KEEP_SIZE), each intent books room for two more
 *     records, and one that cannot book is refused. [T-34 outcome-fits]
 *  2. Somebody closes our descriptor, and the number becomes another file: device and inode are
 *     compared before each write. [T-33 ledger-ours]
 *  3. A write that takes only part of a line: the rest of the line is ended at once or before
 *     the next record, which has the same number. A record counts when all of it was taken.
 *  4. RLIMIT_FSIZE: SIGXFSZ would end the process, so it is held off during the write.
 *  5. Threads: first come, first served, and the GIL is free while one waits.
 *  6. fork: the page with the keys and the locks is empty in a child, which must begin a chain of
 *     its own. libc's fork hands it a key; a raw one leaves it without.
 *  7. fdatasync that fails: the kernel has forgotten which pages were dirty, and the next call would say
 *     that all is well. The descriptor is not trusted again; the lines go to the next segment.
 */

#define SS_CHAIN_HEAD "{\"v\":1,\"c\":\""
#define SS_MAC_ROOM (6 + 64 + 3) /* ,"m":"…"} and the newline */
#define SS_UNSYNCED_BYTES (512u << 10)
#define SS_QUEUE_SPINS 100
#define SS_DUE_AGAIN 64
#define SS_FUTEX_WAKE_BITSET 10 /* futex(2) */

static const char *const ss_event_names[SS_EV_COUNT] = {
	[SS_EV_CHAIN_OPEN] = "chain.open",
	[SS_EV_CHAIN_FORK] = "chain.fork",
	[SS_EV_CHAIN_CLOSE] = "chain.close",
	[SS_EV_CHECKPOINT] = "checkpoint",
	[SS_EV_INTENT] = "spawn.intent",
	[SS_EV_STARTED] = "spawn.started",
	[SS_EV_FAILED] = "spawn.failed",
	[SS_EV_DENIED] = "spawn.denied",
	[SS_EV_EXIT] = "spawn.exit",
	[SS_EV_EXIT_UNKNOWN] = "exit.unknown",
	[SS_EV_BYPASS] = "spawn.bypass",
	[SS_EV_CRED_CHANGE] = "cred.change",
	[SS_EV_GUARD_CONFIG] = "guard.config",
	[SS_EV_DEGRADED] = "audit.degraded",
	[SS_EV_RESTORED] = "audit.restored",
	[SS_EV_MIRROR_DOWN] = "mirror.down",
	[SS_EV_MIRROR_UP] = "mirror.up",
	[SS_EV_RETIRED] = "segment.retired",
	[SS_EV_BREAKGLASS] = "breakglass",
	[SS_EV_REGISTRY_INIT] = "registry.init",
	[SS_EV_REGISTRY_CHAIN] = "registry.chain",
	[SS_EV_HELPER_LOST] = "helper.lost",
	[SS_EV_HELPER_SHRUNK] = "helper.shrunk",
};

SS_API const char *
ss_event_name(int32_t event)
{
	return event >= 0 && event < SS_EV_COUNT ? ss_event_names[event] : NULL;
}

static int ss_ledger_flush_to(struct ss_ledger *, uint64_t);

/* What follows the envelope: members with a comma in front of each. */
typedef void (*ss_put_members)(struct ss_text *, const void *about);

struct ss_record {
	int32_t event;
	uint32_t flags;
	const char *sid;
	ss_put_members put;
	const void *about;
};

/* ------------------------------------------------------------------ first come, first served */

static void
ss_queue_enter(struct ss_queue *queue)
{
	uint32_t mine = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED), now;
	int spins = SS_QUEUE_SPINS;

	while ((now = __atomic_load_n(&queue->serving, __ATOMIC_ACQUIRE)) != mine) {
		if (spins-- > 0 && mine - now == 1)
			continue;
		/* Each waits for its own bit, so that leaving wakes one and not all. */
		(void)ss_sys6(SYS_futex, &queue->serving, SS_FUTEX_WAIT_BITSET | SS_FUTEX_PRIVATE, now, NULL,
		    NULL, 1u << (mine % 32));
	}
}

static void
ss_queue_leave(struct ss_queue *queue)
{
	uint32_t now = __atomic_add_fetch(&queue->serving, 1, __ATOMIC_SEQ_CST);

	if (__atomic_load_n(&queue->next, __ATOMIC_SEQ_CST) != now)
		(void)ss_sys6(SYS_futex, &queue->serving, SS_FUTEX_WAKE_BITSET | SS_FUTEX_PRIVATE, INT_MAX,
		    NULL, NULL, 1u << (now % 32));
}

/* Enter unless the ledger is closed, or another process's. */
static int
ss_ledger_enter(struct ss_ledger *ledger)
{
	if (!__atomic_load_n(&ledger->secrets->alive, __ATOMIC_ACQUIRE))
		return ledger->closed ? -ESHUTDOWN : -ECHILD;
	ss_queue_enter(&ledger->secrets->writing);
	if (ledger->closed) {
		ss_queue_leave(&ledger->secrets->writing);
		return -ESHUTDOWN;
	}
	return 0;
}

static void
ss_ledger_leave(struct ss_ledger *ledger)
{
	ss_queue_leave(&ledger->secrets->writing);
}

/* ------------------------------------------------------------------ the file */

/* Is the descriptor still our file, and is the file still there? */
static int
ss_ledger_look(struct ss_ledger *ledger)
{
	struct stat seen;
	int error;

	if ((error = ss_still(ledger->fd, &ledger->same, &seen)))
		return error;
	if (seen.st_nlink == 0)
		return -ESTALE; /* deleted: nobody would ever read it */
	if ((uint64_t)seen.st_size < ledger->size) {
		ledger->shrunk = 1; /* told before the next record */
		ledger->reserved_end = 0;
	}
	if ((uint64_t)seen.st_size != ledger->size)
		ledger->torn = ss_is_torn(ledger->fd, &seen);
	ledger->size = (uint64_t)seen.st_size;
	return 0;
}

/*
 * How many lines must fit beside what the intents that were kept still have coming: the record and the
 * telling of a loss, and for an intent what it will have coming itself. Outcomes and exits have theirs
 * put by; what ends or explains a ledger may take the last.
 */
static uint64_t
ss_lines_needed(const struct ss_record *record)
{
	if (record->flags & (SS_ENTRY_FREES | SS_ENTRY_FREES_TWO))
		return 0;
	if (record->flags & SS_ENTRY_BOOKS)
		return 4;
	switch (record->event) {
	case SS_EV_CHAIN_CLOSE:
	case SS_EV_CHECKPOINT:
	case SS_EV_DEGRADED:
	case SS_EV_BREAKGLASS:
		return 1;
	default:
		return 2;
	}
}

/* Put by blocks for this record, and for what the intents that were kept still have coming. */
static int
ss_ledger_book(struct ss_ledger *ledger, uint64_t lines)
{
	uint64_t need = ledger->size + ledger->booked + lines * SS_LINE_BYTES, more = need + ledger->reserve;
	struct rlimit limit;
	int error;

	if (lines == 0 || !SS_GUARDED(OUTCOME_FITS))
		return 0;
	if (!getrlimit(RLIMIT_FSIZE, &limit) && need > limit.rlim_cur)
		return -EFBIG; /* ext4 would put it by all the same, and the write fail later */
	if (!ledger->reserves || need <= ledger->reserved_end)
		return 0;
	if ((error = ss_put_by(ledger->fd, ledger->size, more))) {
		if (error == -EOPNOTSUPP || error == -ENOSYS || error == -EPERM) {
			ledger->reserves = 0; /* this file system, or a sandbox, has no such thing */
			return 0;
		}
		if ((error = ss_put_by(ledger->fd, ledger->size, more = need)))
			return error;
	}
	ledger->reserved_end = more;
	return 0;
}

/* ------------------------------------------------------------------ a record */

static void
ss_put_envelope(struct ss_text *text, const struct ss_ledger *ledger, int32_t event, const char *sid)
{
	ss_put_word(text, SS_CHAIN_HEAD);
	ss_say(text, ledger->chain, SS_ID_BYTES);
	ss_put_word(text, "\",\"n\":");
	ss_put_number(text, ledger->next);
	ss_put_word(text, ",\"p\":\"");
	ss_put_digest(text, ledger->previous);
	ss_put_word(text, "\",\"ev\":\"");
	ss_put_word(text, ss_event_names[event]);
	ss_put_word(text, sid ? "\",\"sid\":\"" : "\",\"sid\":null");
	if (sid) {
		ss_say(text, sid, SS_ID_BYTES);
		ss_say(text, "\"", 1);
	}
	ss_put_word(text, ",\"t\":");
	ss_put_signed(text, ss_clock_ns(CLOCK_REALTIME));
	ss_put_word(text, ",\"mono\":");
	ss_put_signed(text, ss_now());
	ss_put_word(text, ",\"boot\":\"");
	ss_put_word(text, ledger->boot);
	ss_put_word(text, "\",\"mode\":\"");
	ss_put_word(text, ledger->mode);
	ss_say(text, "\"", 1);
}

static void
ss_put_body(struct ss_text *text, const void *about)
{
	const struct ss_entry *entry = about;

	if (entry->body_bytes > 0) {
		ss_say(text, ",", 1);
		ss_say(text, entry->body, entry->body_bytes);
	}
}

/* Build the line in the ledger's buffer: its length without the newline, or -EMSGSIZE. */
static ssize_t
ss_ledger_line(struct ss_ledger *ledger, const struct ss_record *record, uint8_t ret_mac[32])
{
	struct ss_text text = { ledger->line, ledger->line, ledger->line + SS_LINE_BYTES - SS_MAC_ROOM, 0, NULL };

	ss_put_envelope(&text, ledger, record->event, record->sid);
	record->put(&text, record->about);
	if ((record->flags & SS_ENTRY_AGGREGATE) && ledger->keyed) {
		ss_put_word(&text, ",\"agg\":\"");
		ss_put_digest(&text, ledger->aggregate);
		ss_say(&text, "\"", 1);
	}
	if (text.full)
		return -EMSGSIZE;
	text.end = ledger->line + SS_LINE_BYTES;
	if (ledger->keyed) {
		ss_hmac(ledger->secrets->record_key, text.start, (size_t)(text.at - text.start), NULL, 0, ret_mac);
		ss_put_word(&text, ",\"m\":\"");
		ss_put_digest(&text, ret_mac);
		ss_say(&text, "\"", 1);
	}
	ss_say(&text, "}", 1);
	return text.at - text.start;
}

/* What a record asks of this chain: it gives back only what was put by for it here. */
static uint32_t
ss_flags_here(const struct ss_ledger *ledger, uint32_t flags, const struct ss_kept *kept)
{
	return kept->settling == ledger->serial ? flags : flags & ~(uint32_t)(SS_ENTRY_FREES | SS_ENTRY_FREES_TWO);
}

/* What an intent books, and what its outcome and its exit free, also when they are lost. */
static void
ss_ledger_account(struct ss_ledger *ledger, uint32_t flags)
{
	uint64_t frees = flags & SS_ENTRY_FREES_TWO ? 2 : flags & SS_ENTRY_FREES ? 1 : 0;

	if (flags & SS_ENTRY_BOOKS)
		ledger->booked += 2 * SS_LINE_BYTES;
	frees *= SS_LINE_BYTES;
	ledger->booked -= frees < ledger->booked ? frees : ledger->booked;
}

/* Keep what the disk may not have yet, as far as there is room: from then on nothing, so that no number is left out. */
static void
ss_ledger_remember(struct ss_ledger *ledger, size_t bytes)
{
	if (ledger->unsynced == NULL)
		return;
	if (ledger->unsynced_bytes == 0)
		ledger->unsynced_first = ledger->unsynced_next = ledger->next;
	if (ledger->unsynced_next != ledger->next || ledger->unsynced_bytes + bytes > SS_UNSYNCED_BYTES)
		return;
	memcpy(ledger->unsynced + ledger->unsynced_bytes, ledger->line, bytes);
	ledger->unsynced_bytes += bytes;
	ledger->unsynced_next++;
}

/* The line is in the file: everything moves on. */
static void
ss_ledger_advance(struct ss_ledger *ledger, const struct ss_record *record, size_t bytes, const uint8_t mac[32])
{
	ss_sha256(ledger->line, bytes, ledger->previous);
	if (ledger->keyed)
		ss_chain_step(ledger, mac);
	ss_ledger_remember(ledger, bytes + 1);
	ss_ring_put(&ledger->ring, ledger->line, bytes);
	ledger->size += bytes + 1;
	if (record->flags & SS_ENTRY_CLOSES)
		ledger->ended = 1;
	ledger->next++;
	ledger->written++;
	ledger->since_checkpoint++;
	ledger->counts[record->event]++;
	if (record->event == SS_EV_CHECKPOINT) {
		ledger->since_checkpoint = ledger->due_again = 0;
		ledger->checkpoint_at = ss_now();
	}
	/* What fails here is made good before the next record, which must not get ahead of it by two. */
	if (ledger->slot > 0)
		(void)ss_state_write(ledger);
}

/* End a line that was not written to its end. A whole one would look as if it had been kept. */
static int
ss_ledger_mend(struct ss_ledger *ledger)
{
	const char *end = ledger->torn == SS_LINE_TORN_AT_END ? "?\n" : "\n";
	size_t taken;
	int error;

	if (ledger->torn == SS_LINE_WHOLE)
		return 0;
	if (!(error = ss_write_whole(ledger->fd, end, strlen(end), &taken)))
		ledger->torn = SS_LINE_WHOLE;
	ledger->size += taken;
	return error;
}

/* Whether a record can be written now: the file is ours, the last line was ended, there is room. */
static int
ss_ledger_ready(struct ss_ledger *ledger, const struct ss_record *record)
{
	int error;

	if ((error = ss_ledger_look(ledger)) || (error = ss_ledger_mend(ledger)) ||
	    (error = ss_ledger_book(ledger, ss_lines_needed(record))))
		return error;
	if (!ledger->keyed || ledger->state_fd < 0)
		return 0;
	if (ledger->slot == 0)
		return ss_state_claim(ledger);
	return ledger->slot_behind ? ss_state_write(ledger) : 0;
}

/* Write one record, when the ledger is ready. -EMSGSIZE: nothing was tried. */
static int
ss_ledger_put(struct ss_ledger *ledger, const struct ss_record *record)
{
	uint8_t mac[32] = { 0 };
	size_t taken = 0;
	ssize_t bytes = ss_ledger_line(ledger, record, mac);
	int error;

	if (bytes < 0)
		return (int)bytes;
	ledger->line[bytes] = '\n';
	if ((error = ss_write_whole(ledger->fd, ledger->line, (size_t)bytes + 1, &taken))) {
		if (taken > 0)
			ledger->torn = taken == (size_t)bytes ? SS_LINE_TORN_AT_END : SS_LINE_TORN;
		ledger->size += taken;
		(void)ss_ledger_mend(ledger);
		return error;
	}
	ss_ledger_advance(ledger, record, (size_t)bytes, mac);
	return 0;
}

/* The records that were lost are told before anything else is written, and that somebody has cut the file. */
static int
ss_ledger_tell_loss(struct ss_ledger *ledger)
{
	char body[80];
	struct ss_entry entry = { SS_EV_DEGRADED, 0, NULL, body, 0 };
	struct ss_record record = { SS_EV_DEGRADED, 0, NULL, ss_put_body, &entry };
	uint64_t lost = __atomic_load_n(&ledger->secrets->lost, __ATOMIC_RELAXED);
	int error;

	if ((lost == 0 && !ledger->shrunk) || ledger->next == 0) /* nothing goes before the opening */
		return 0;
	entry.body_bytes = (uint64_t)snprintf(body, sizeof(body), "\"lost\":%llu%s", (unsigned long long)lost,
	    ledger->shrunk ? ",\"why\":\"somebody has cut the file\"" : "");
	if ((error = ss_ledger_put(ledger, &record)))
		return error;
	(void)__atomic_sub_fetch(&ledger->secrets->lost, lost, __ATOMIC_RELAXED);
	ledger->shrunk = 0;
	return 0;
}

/*
 * What is due is told to one writer. When that one could not do it, another is told after a while.
 */
static void
ss_ledger_look_ahead(struct ss_ledger *ledger, struct ss_kept *kept)
{
	if (ledger->written < ledger->due_again)
		return;
	if (ledger->limit > 0 && ledger->size >= ledger->limit)
		kept->flags |= SS_KEPT_FULL;
	if (ledger->since_checkpoint >= ledger->checkpoint_records)
		kept->flags |= SS_KEPT_MANY;
	else if (ledger->since_checkpoint > 0 &&
	    ss_now() - ledger->checkpoint_at >= ledger->checkpoint_ns)
		kept->flags |= SS_KEPT_LATE;
	if (kept->flags)
		ledger->due_again = ledger->written + SS_DUE_AGAIN;
}

/* Count a record that is in no file. The next one that can be written tells of it. */
SS_API void
ss_ledger_lose(struct ss_ledger *ledger)
{
	(void)__atomic_add_fetch(&ledger->secrets->lost, 1, __ATOMIC_RELAXED);
}

/* No remedy has helped a record: it is lost, and what was put by for it is given back. */
SS_API void
ss_ledger_give_up(struct ss_ledger *ledger, uint32_t flags, struct ss_kept *kept)
{
	ss_ledger_lose(ledger);
	kept->told = SS_TOLD_LOST;
	if (ss_ledger_enter(ledger))
		return;
	ss_ledger_account(ledger, ss_flags_here(ledger, flags & ~(uint32_t)SS_ENTRY_BOOKS, kept));
	ss_ledger_leave(ledger);
}

/*
 * Whether it is lost now. Else it is put in another way, or in another file; and the opening of a chain
 * is tried again.
 */
static int
ss_ledger_is_loss(int error, const struct ss_record *record)
{
	return error != -EMSGSIZE && error != -ESTALE && record->event != SS_EV_CHAIN_OPEN;
}

/* Record 0 opens the chain, and no other does; one closes it, and none comes behind that. */
static int
ss_ledger_in_order(const struct ss_ledger *ledger, int32_t event)
{
	if (ledger->ended)
		return -ESHUTDOWN;
	if ((event == SS_EV_CHAIN_OPEN) == (ledger->next == 0))
		return 0;
	return ledger->next == 0 ? -ENOTCONN : -EISCONN;
}

/* kept: NULL from those who would not do what is due. */
static int
ss_ledger_record(struct ss_ledger *ledger, struct ss_record *record, struct ss_kept *kept)
{
	struct ss_kept unheard = { 0 };
	uint64_t written;
	int error, flush, is_heard = kept != NULL;

	kept = is_heard ? kept : &unheard;
	kept->flags = 0;
	if ((error = ss_ledger_enter(ledger)))
		return error;
	record->flags = ss_flags_here(ledger, record->flags, kept);
	if ((error = ss_ledger_in_order(ledger, record->event))) {
		ss_ledger_leave(ledger);
		return error;
	}
	/* Booking comes first: telling of losses must not eat up what is put by. */
	error = ss_ledger_ready(ledger, record);
	if (!error && record->event != SS_EV_DEGRADED)
		error = ss_ledger_tell_loss(ledger);
	if (!error)
		error = ss_ledger_put(ledger, record);
	if (error && ss_ledger_is_loss(error, record))
		ss_ledger_lose(ledger);
	if (!error || (!(record->flags & SS_ENTRY_BOOKS) && ss_ledger_is_loss(error, record)))
		ss_ledger_account(ledger, record->flags);
	kept->told = !error ? SS_TOLD_KEPT : ss_ledger_is_loss(error, record) ? SS_TOLD_LOST : 0;
	kept->booked = !error && (record->flags & SS_ENTRY_BOOKS) ? ledger->serial : 0;
	if (is_heard)
		ss_ledger_look_ahead(ledger, kept);
	written = ledger->written;
	flush = (record->flags & SS_ENTRY_FLUSH) || ledger->unsynced_bytes > SS_UNSYNCED_BYTES / 2;
	ss_ledger_leave(ledger);
	if (error || !flush)
		return error;
	if ((error = ss_ledger_flush_to(ledger, written)))
		kept->flags |= SS_KEPT_UNFLUSHED;
	return error;
}

SS_API int
ss_ledger_append(struct ss_ledger *ledger, const struct ss_entry *entry, struct ss_kept *kept)
{
	struct ss_record record = { entry->event, entry->flags, entry->sid, ss_put_body, entry };

	if (entry->event < 0 || entry->event >= SS_EV_COUNT)
		return -EINVAL;
	return ss_ledger_record(ledger, &record, kept);
}

/*
 * The lines since the reader's last call; waits for the first. Answers how many bytes, each line
 * with its newline; 0 when the time is over; -ESHUTDOWN when the ledger was closed.
 */
SS_API int
ss_ledger_take(struct ss_ledger *ledger, struct ss_reader *reader, char *room, uint64_t bytes, int64_t timeout_ns)
{
	uint64_t used = 0;

	for (int tries = 0; tries < 2 && used == 0; tries++) {
		uint32_t word;
		int error;

		if ((error = ss_ledger_enter(ledger)))
			return error;
		word = __atomic_load_n(&ledger->ring.word, __ATOMIC_SEQ_CST);
		if (ledger->ring.base != NULL)
			used = ss_ring_read(&ledger->ring, reader, room, bytes);
		ss_ledger_leave(ledger);
		if (used == 0 && tries == 0)
			ss_ring_sleep(&ledger->ring, word, timeout_ns);
	}
	return (int)used;
}

/* Wake the readers, so that they look whether they are to end. */
SS_API void
ss_ledger_wake(struct ss_ledger *ledger)
{
	ss_ring_wake(&ledger->ring);
}

/* Keep the last lines for readers, from now on. The reader begins with the next one. */
SS_API int
ss_ledger_keep(struct ss_ledger *ledger, uint64_t bytes, struct ss_reader *ret_reader)
{
	int error;

	if ((error = ss_ledger_enter(ledger)))
		return error;
	error = ledger->ring.base ? 0 : ss_ring_make(&ledger->ring, bytes);
	*ret_reader = (struct ss_reader){ ledger->ring.next, ledger->ring.head, 0 };
	ss_ledger_leave(ledger);
	return error;
}

SS_API void
ss_ledger_counts(struct ss_ledger *ledger, struct ss_ledger_counts *ret_counts)
{
	memset(ret_counts, 0, sizeof(*ret_counts));
	ret_counts->lost = __atomic_load_n(&ledger->secrets->lost, __ATOMIC_RELAXED);
	ret_counts->state = ledger->state_fd; /* a child past libc wants it before it has a chain */
	if (ss_ledger_enter(ledger))
		return;
	memcpy(ret_counts->events, ledger->counts, sizeof(ret_counts->events));
	ret_counts->next = ledger->next;
	ret_counts->booked = ledger->booked;
	ret_counts->size = ledger->size;
	ret_counts->reserved = ledger->reserved_end > ledger->size ? ledger->reserved_end - ledger->size : 0;
	ret_counts->reserves = ledger->reserves;
	ret_counts->poisoned = ledger->poisoned;
	ss_ledger_leave(ledger);
}
