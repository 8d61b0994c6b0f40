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
 *     its own. Python's os.fork hands it a key; a raw fork leaves it without.
 *  7. fdatasync that fails: the kernel has forgotten which pages were dirty, and the next call would say
 *     that all is well. The descriptor is not trusted again; the lines go to the next segment.
 */

#define SS_CHAIN_HEAD "{\"v\":1,\"c\":\""
#define SS_MAC_ROOM (6 + 64 + 3) /* ,"m":"…"} and the newline */
#define SS_UNSYNCED_BYTES (512u << 10)
#define SS_QUEUE_SPINS 100
#define SS_TORN_TRIES 100
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
};

SS_API const char *
ss_event_name(int32_t event)
{
	return event >= 0 && event < SS_EV_COUNT ? ss_event_names[event] : NULL;
}

static int ss_ledger_flush_to(struct ss_ledger *, uint64_t);

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

static int64_t
ss_clock_ns(clockid_t clock)
{
	struct timespec now;

	(void)clock_gettime(clock, &now); /* these two clocks cannot fail */
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/*
 * Somebody else has written: were they killed in the middle of a line? A write in progress shows
 * page by page. So look again behind a call that waits for the file's lock, as fallocate does: whoever
 * was writing is done then, and a file that has not grown has a torn end.
 */
static int
ss_is_torn(int fd, struct stat *seen)
{
	for (int tries = 0; tries < SS_TORN_TRIES; tries++) {
		off_t size = seen->st_size;
		char last;

		if (size == 0 || pread(fd, &last, 1, size - 1) != 1 || last == '\n')
			return 0;
		(void)fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 1);
		if (fstat(fd, seen))
			return 0;
		if (seen->st_size == size)
			return 1;
	}
	return 0;
}

/* Is the descriptor still our file, and is the file still there? */
static int
ss_ledger_look(struct ss_ledger *ledger, struct ss_kept *kept)
{
	struct stat seen;

	if (fstat(ledger->fd, &seen) ||
	    (SS_GUARDED(LEDGER_OURS) &&
		((uint64_t)seen.st_dev != ledger->device || (uint64_t)seen.st_ino != ledger->inode)))
		return -EBADF;
	if (seen.st_nlink == 0)
		return -ESTALE; /* deleted: nobody would ever read it */
	if ((uint64_t)seen.st_size < ledger->size) {
		kept->flags |= SS_KEPT_SHRUNK;
		ledger->reserved_end = 0;
	}
	if ((uint64_t)seen.st_size != ledger->size)
		ledger->torn |= ss_is_torn(ledger->fd, &seen);
	ledger->size = (uint64_t)seen.st_size;
	return 0;
}

/*
 * SIGXFSZ is held off while the file grows: a limit of its size must not end the process. Where
 * there is no limit, which is the rule, this costs nothing.
 */
struct ss_growing {
	sigset_t only, before;
	int limited, was_pending;
};

static void
ss_grow_begin(struct ss_growing *growing)
{
	struct rlimit limit;
	sigset_t pending;

	growing->limited = getrlimit(RLIMIT_FSIZE, &limit) || limit.rlim_cur != RLIM_INFINITY;
	if (!growing->limited)
		return;
	(void)sigemptyset(&growing->only);
	(void)sigaddset(&growing->only, SIGXFSZ);
	(void)pthread_sigmask(SIG_BLOCK, &growing->only, &growing->before);
	growing->was_pending = !sigpending(&pending) && sigismember(&pending, SIGXFSZ) == 1;
}

static void
ss_grow_end(const struct ss_growing *growing)
{
	static const struct timespec at_once;

	if (!growing->limited)
		return;
	if (!growing->was_pending)
		(void)sigtimedwait(&growing->only, NULL, &at_once);
	(void)pthread_sigmask(SIG_SETMASK, &growing->before, NULL);
}

static int
ss_put_by(int fd, uint64_t from, uint64_t to)
{
	struct ss_growing growing;
	struct rlimit limit;
	int error;

	if (!getrlimit(RLIMIT_FSIZE, &limit) && to > limit.rlim_cur)
		return -EFBIG; /* ext4 would put it by all the same, and the write fail later */
	ss_grow_begin(&growing);
	error = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)) ? -errno : 0;
	ss_grow_end(&growing);
	return error;
}

/* Put by blocks for this intent, and for what the intents that were kept still have coming. */
static int
ss_ledger_book(struct ss_ledger *ledger)
{
	uint64_t need = ledger->size + ledger->booked + 4 * SS_LINE_BYTES, more = need + ledger->reserve;
	int error;

	if (!ledger->reserves || !SS_GUARDED(OUTCOME_FITS) || need <= ledger->reserved_end)
		return 0;
	if ((error = ss_put_by(ledger->fd, ledger->size, more))) {
		if (error == -EOPNOTSUPP || error == -ENOSYS) {
			ledger->reserves = 0; /* this file system has no such thing */
			return 0;
		}
		if ((error = ss_put_by(ledger->fd, ledger->size, more = need)))
			return error;
	}
	ledger->reserved_end = more;
	return 0;
}

static int
ss_write_whole(int fd, const char *data, size_t bytes, size_t *ret_taken)
{
	struct ss_growing growing;
	ssize_t taken;
	int error;

	ss_grow_begin(&growing);
	do
		taken = write(fd, data, bytes);
	while (taken < 0 && errno == EINTR);
	error = taken < 0 ? -errno : (size_t)taken < bytes ? -ENOSPC : 0;
	ss_grow_end(&growing);
	*ret_taken = taken > 0 ? (size_t)taken : 0;
	return error;
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
	ss_put_signed(text, ss_clock_ns(CLOCK_MONOTONIC));
	ss_put_word(text, ",\"boot\":\"");
	ss_put_word(text, ledger->boot);
	ss_put_word(text, "\",\"mode\":\"");
	ss_put_word(text, ledger->mode);
	ss_say(text, "\"", 1);
}

/* What follows the envelope: members with a comma in front of each. */
typedef void (*ss_put_members)(struct ss_text *, const void *about);

struct ss_record {
	int32_t event;
	uint32_t flags;
	const char *sid;
	ss_put_members put;
	const void *about;
};

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

/* The line is in the file: everything moves on. */
static int
ss_ledger_advance(struct ss_ledger *ledger, const struct ss_record *record, size_t bytes, const uint8_t mac[32])
{
	ss_sha256(ledger->line, bytes, ledger->previous);
	if (ledger->keyed)
		ss_chain_step(ledger, mac);
	if (ledger->unsynced != NULL) {
		if (ledger->unsynced_bytes == 0)
			ledger->unsynced_first = ledger->next;
		if (ledger->unsynced_bytes + bytes + 1 <= SS_UNSYNCED_BYTES) {
			memcpy(ledger->unsynced + ledger->unsynced_bytes, ledger->line, bytes + 1);
			ledger->unsynced_bytes += bytes + 1;
		}
	}
	ss_ring_put(&ledger->ring, ledger->line, bytes);
	ledger->size += bytes + 1;
	ledger->next++;
	ledger->written++;
	ledger->since_checkpoint++;
	ledger->counts[record->event]++;
	if (record->event == SS_EV_CHECKPOINT) {
		ledger->since_checkpoint = 0;
		ledger->checkpoint_at = ss_clock_ns(CLOCK_MONOTONIC);
	}
	return ledger->state_fd >= 0 && ledger->keyed
	    ? ss_state_write(ledger, (record->flags & SS_ENTRY_CLOSES) != 0)
	    : 0;
}

/* Whether a record can be written now: the file is ours, the last line was ended, there is room. */
static int
ss_ledger_ready(struct ss_ledger *ledger, uint32_t flags, struct ss_kept *kept)
{
	size_t taken = 0;
	int error;

	if ((error = ss_ledger_look(ledger, kept)))
		return error;
	if (ledger->torn && (error = ss_write_whole(ledger->fd, "\n", 1, &taken)))
		return error;
	ledger->torn = 0;
	if ((flags & SS_ENTRY_BOOKS) && (error = ss_ledger_book(ledger)))
		return error;
	return ledger->keyed && ledger->state_fd >= 0 && ledger->slot == 0 ? ss_state_claim(ledger) : 0;
}

/* End what was written of a line. A whole one without its newline would look as if it had been kept. */
static void
ss_ledger_tear(struct ss_ledger *ledger, size_t taken, size_t bytes)
{
	const char *end = taken == bytes ? "?\n" : "\n";

	if (taken > 0)
		ledger->torn = ss_write_whole(ledger->fd, end, strlen(end), &taken) != 0;
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
		ss_ledger_tear(ledger, taken, (size_t)bytes);
		return error;
	}
	return ss_ledger_advance(ledger, record, (size_t)bytes, mac);
}

/* The records that were lost are told before anything else is written. */
static int
ss_ledger_tell_loss(struct ss_ledger *ledger)
{
	char body[40];
	struct ss_entry entry = { SS_EV_DEGRADED, 0, NULL, body, 0 };
	struct ss_record record = { SS_EV_DEGRADED, 0, NULL, ss_put_body, &entry };
	uint64_t lost = __atomic_load_n(&ledger->lost, __ATOMIC_RELAXED);
	int error;

	if (lost == 0 || ledger->next == 0) /* record 0 opens the chain, nothing goes before it */
		return 0;
	entry.body_bytes = (uint64_t)snprintf(body, sizeof(body), "\"lost\":%llu", (unsigned long long)lost);
	if (!(error = ss_ledger_put(ledger, &record)))
		(void)__atomic_sub_fetch(&ledger->lost, lost, __ATOMIC_RELAXED);
	return error;
}

static void
ss_ledger_look_ahead(const struct ss_ledger *ledger, struct ss_kept *kept)
{
	if (ledger->limit > 0 && ledger->size >= ledger->limit)
		kept->flags |= SS_KEPT_FULL;
	if (ledger->since_checkpoint >= ledger->checkpoint_records)
		kept->flags |= SS_KEPT_MANY;
	else if (ledger->since_checkpoint > 0 &&
	    ss_clock_ns(CLOCK_MONOTONIC) - ledger->checkpoint_at >= ledger->checkpoint_ns)
		kept->flags |= SS_KEPT_LATE;
}

/* Count a record that is in no file. The next one that can be written tells of it. */
SS_API void
ss_ledger_lose(struct ss_ledger *ledger)
{
	(void)__atomic_add_fetch(&ledger->lost, 1, __ATOMIC_RELAXED);
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

static int
ss_ledger_record(struct ss_ledger *ledger, const struct ss_record *record, struct ss_kept *kept)
{
	uint64_t written;
	int error;

	kept->flags = 0;
	if ((error = ss_ledger_enter(ledger)))
		return error;
	if (ledger->next == 0 && record->event != SS_EV_CHAIN_OPEN) {
		ss_ledger_leave(ledger);
		return -EPROTO; /* no chain without its opening: a verifier would take it for cut off */
	}
	/* Booking comes first: telling of losses must not eat up what is put by. */
	error = ss_ledger_ready(ledger, record->flags, kept);
	if (!error && record->event != SS_EV_DEGRADED)
		error = ss_ledger_tell_loss(ledger);
	if (!error)
		error = ss_ledger_put(ledger, record);
	if (error && ss_ledger_is_loss(error, record))
		ss_ledger_lose(ledger);
	if (!error || !(record->flags & SS_ENTRY_BOOKS))
		ss_ledger_account(ledger, record->flags);
	ss_ledger_look_ahead(ledger, kept);
	kept->n = ledger->next - (error == 0);
	kept->size = ledger->size;
	written = ledger->written;
	ss_ledger_leave(ledger);
	if (error || !(record->flags & SS_ENTRY_FLUSH))
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

/* Keep the last lines for readers, from now on. */
SS_API int
ss_ledger_keep(struct ss_ledger *ledger, uint64_t bytes)
{
	int error;

	if ((error = ss_ledger_enter(ledger)))
		return error;
	error = ledger->ring.base ? 0 : ss_ring_make(&ledger->ring, bytes);
	ss_ledger_leave(ledger);
	return error;
}

SS_API void
ss_ledger_counts(struct ss_ledger *ledger, struct ss_ledger_counts *ret_counts)
{
	memset(ret_counts, 0, sizeof(*ret_counts));
	if (ss_ledger_enter(ledger))
		return;
	memcpy(ret_counts->events, ledger->counts, sizeof(ret_counts->events));
	ret_counts->lost = ledger->lost;
	ret_counts->next = ledger->next;
	ret_counts->booked = ledger->booked;
	ret_counts->reserved = ledger->reserved_end > ledger->size ? ledger->reserved_end - ledger->size : 0;
	ret_counts->reserves = ledger->reserves;
	ret_counts->poisoned = ledger->poisoned;
	ss_ledger_leave(ledger);
}
