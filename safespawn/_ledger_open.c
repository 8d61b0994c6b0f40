/*
 * The life of a ledger: opening, flushing, moving to the next segment, forking, closing. Part of
 * _native.c.
 */

/* ------------------------------------------------------------------ to the disk */

/* Forget the lines that the disk has: so many bytes. */
static void
ss_ledger_forget(struct ss_ledger *ledger, uint64_t bytes)
{
	for (const char *at = ledger->unsynced, *end = at + bytes; at < end; at++)
		ledger->unsynced_first += *at == '\n';
	ledger->unsynced_bytes -= bytes;
	memmove(ledger->unsynced, ledger->unsynced + bytes, ledger->unsynced_bytes);
}

/* fdatasync has said that the disk has them. */
static void
ss_ledger_synced(struct ss_ledger *ledger, uint64_t written, uint64_t bytes)
{
	ss_queue_enter(&ledger->secrets->writing);
	if (bytes > 0)
		ss_ledger_forget(ledger, bytes);
	ledger->synced = written;
	ss_queue_leave(&ledger->secrets->writing);
}

/*
 * Until that many records are on the disk. Whoever waits while another flushes finds its own
 * flushed by the next one who gets in: so many threads share one fdatasync.
 */
static int
ss_ledger_flush_to(struct ss_ledger *ledger, uint64_t written)
{
	struct ss_queue *flushing = &ledger->secrets->flushing, *writing = &ledger->secrets->writing;
	uint64_t now, bytes;
	int error = 0, poisoned;

	ss_queue_enter(flushing);
	ss_queue_enter(writing);
	now = ledger->written;
	bytes = ledger->unsynced_bytes;
	poisoned = ledger->poisoned;
	ss_queue_leave(writing);
	if (poisoned) {
		error = -EIO;
	} else if (ledger->synced < written) {
		if ((error = ss_flush_file(ledger->fd)))
			__atomic_store_n(&ledger->poisoned, 1, __ATOMIC_RELEASE);
		else
			ss_ledger_synced(ledger, now, bytes);
	}
	ss_queue_leave(flushing);
	return error;
}

SS_API int
ss_ledger_flush(struct ss_ledger *ledger)
{
	uint64_t written;
	int error;

	if ((error = ss_ledger_enter(ledger)))
		return error;
	written = ledger->written;
	ss_ledger_leave(ledger);
	return ss_ledger_flush_to(ledger, written);
}

/* ------------------------------------------------------------------ the next segment */

/* Write what the old disk blocks may have lost again: the same lines, told before. */
static int
ss_ledger_resend(struct ss_ledger *ledger)
{
	char body[120];
	struct ss_entry entry = { SS_EV_DEGRADED, 0, NULL, body, 0 };
	struct ss_record record = { SS_EV_DEGRADED, 0, NULL, ss_put_body, &entry };
	uint64_t bytes = ledger->unsynced_bytes;
	size_t taken;
	int error;

	if (bytes == 0)
		return 0;
	entry.body_bytes = (uint64_t)snprintf(body, sizeof(body),
	    "\"lost\":0,\"why\":\"fdatasync failed\",\"resent\":[%llu,%llu]",
	    (unsigned long long)ledger->unsynced_first, (unsigned long long)ledger->unsynced_next - 1);
	if ((error = ss_ledger_put(ledger, &record)))
		return error;
	error = ss_write_whole(ledger->fd, ledger->unsynced, bytes, &taken);
	if (error && taken > 0)
		ledger->torn = ledger->unsynced[taken - 1] == '}' ? SS_LINE_TORN_AT_END : SS_LINE_TORN;
	ledger->size += taken;
	return error;
}

/* Put another file in the place of ours. */
static void
ss_ledger_set_file(struct ss_ledger *ledger, struct ss_handle *file, struct stat *seen)
{
	ledger->fd = ss_handle_take(file);
	ledger->same = ss_same_of(seen);
	ledger->torn = ss_is_torn(ledger->fd, seen); /* somebody was killed in the middle of a line */
	ledger->size = (uint64_t)seen->st_size;
	ledger->reserved_end = 0;
}

/*
 * Whether we have to stay for want of room in the next file: what was put by for outcomes and exits stays with this
 * one. Not where nothing can be kept here any more.
 */
static int
ss_ledger_held(struct ss_ledger *ledger, const struct ss_handle *file, const struct stat *next)
{
	const uint64_t size = (uint64_t)next->st_size;
	const int is_over = ss_ledger_look(ledger) != 0; /* and has somebody cut it? */
	int error;

	if (is_over || ledger->poisoned || !ledger->reserves || !SS_GUARDED(OUTCOME_FITS))
		return 0;
	error = ss_put_by(file->fd, size, size + ledger->booked + SS_LINE_BYTES);
	return error == -ENOSPC || error == -EDQUOT ? error : 0;
}

/*
 * Go on in another file, which was opened and judged. Takes the descriptor over, unless this is no
 * ledger of ours any more, or has to be written on. What the disk may have lost is written there once more; while that
 * has not worked, the ledger stays poisoned.
 */
SS_API int
ss_ledger_move(struct ss_ledger *ledger, struct ss_handle *file)
{
	struct ss_same before;
	struct stat seen;
	int error, old;

	/* Nobody flushes meanwhile: the descriptor goes. In this order, as ss_ledger_flush_to has it. */
	ss_queue_enter(&ledger->secrets->flushing);
	error = fstat(file->fd, &seen) ? -errno : ss_ledger_enter(ledger);
	if (error) {
		ss_queue_leave(&ledger->secrets->flushing);
		return error;
	}
	if (ledger->unsynced != NULL && !ledger->poisoned) {
		if (ss_flush_file(ledger->fd))
			ledger->poisoned = 1;
		else
			ss_ledger_forget(ledger, ledger->unsynced_bytes);
	}
	if ((error = ss_ledger_held(ledger, file, &seen)))
		goto leave;
	old = ledger->fd;
	before = ledger->same;
	ss_ledger_set_file(ledger, file, &seen);
	ss_close_same(old, &before);
	if (ledger->poisoned && !(error = ss_ledger_resend(ledger)))
		ledger->poisoned = 0;
leave:
	ss_ledger_leave(ledger);
	ss_queue_leave(&ledger->secrets->flushing);
	return error;
}

/* ------------------------------------------------------------------ opening and closing */

static int
ss_ledger_map(struct ss_ledger **ret_ledger)
{
	void *made = mmap(NULL, sizeof(struct ss_ledger), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int error;

	if (made == MAP_FAILED)
		return -errno;
	(void)madvise(made, sizeof(struct ss_ledger), MADV_DONTDUMP); /* it has the last line in it */
	*ret_ledger = made;
	(*ret_ledger)->fd = (*ret_ledger)->state_fd = (*ret_ledger)->claim_fd = -1;
	if ((error = ss_secrets_map(&(*ret_ledger)->secrets)))
		(void)munmap(made, sizeof(struct ss_ledger));
	return error;
}

/*
 * What each process has of its own, although it has our memory: a page that every forked child finds empty, whoever
 * forked it (MADV_WIPEONFORK, Linux 4.14). A pid would not tell them apart: it comes again, and pid 1 can clone another.
 */
static struct ss_process {
	uint64_t number;	 /* see ss_process_number */
	struct ss_queue ledgers; /* for the list of them: a thread that is not here may have had it */
	struct ss_queue systems; /* for in_system, and the signals that go with it; see _system.c */
	uint32_t in_system;
} ss_process_here, *ss_process = &ss_process_here;

/* Which process this is among those that descend from one; never 0. */
SS_API uint64_t
ss_process_number(void)
{
	static uint64_t last;
	uint64_t mine, now = __atomic_load_n(&ss_process->number, __ATOMIC_SEQ_CST);

	if (now != 0)
		return now;
	mine = __atomic_add_fetch(&last, 1, __ATOMIC_SEQ_CST);
	if (__atomic_compare_exchange_n(&ss_process->number, &now, mine, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return mine;
	return now; /* another thread was faster */
}

/* Every ledger of this process, so that a fork finds nobody in the middle of a line. The list is whole after each step. */
static struct ss_ledger *ss_ledgers;

static void
ss_ledgers_add(struct ss_ledger *ledger)
{
	ss_queue_enter(&ss_process->ledgers);
	ledger->other = ss_ledgers;
	ss_ledgers = ledger;
	ss_queue_leave(&ss_process->ledgers);
}

static void
ss_ledgers_remove(struct ss_ledger *ledger)
{
	ss_queue_enter(&ss_process->ledgers);
	for (struct ss_ledger **at = &ss_ledgers; *at != NULL; at = &(*at)->other)
		if (*at == ledger) {
			*at = ledger->other;
			break;
		}
	ss_queue_leave(&ss_process->ledgers);
}

static void ss_ledger_end(struct ss_ledger *);

/* What stands in the place of a ledger that was freed: closed, for whoever refers to that place still. */
SS_API struct ss_ledger *
ss_ledger_gone(void)
{
	static struct ss_secrets none;
	static struct ss_ledger gone = { .secrets = &none, .fd = -1, .state_fd = -1, .claim_fd = -1, .closed = 1 };

	return &gone;
}

/* It is used no more: what was not closed is closed now. */
SS_API void
ss_ledger_free(struct ss_ledger **place)
{
	struct ss_ledger *ledger = *place;

	if (ledger == NULL || ledger == ss_ledger_gone())
		return;
	*place = ss_ledger_gone();
	ss_ledgers_remove(ledger);
	ss_ledger_end(ledger);
	explicit_bzero(ledger->secrets, sizeof(*ledger->secrets));
	(void)munmap(ledger->secrets, (size_t)sysconf(_SC_PAGESIZE));
	ss_ring_free(&ledger->ring);
	free(ledger->unsynced);
	(void)munmap(ledger, sizeof(*ledger));
}

static int
ss_ledger_take_files(struct ss_ledger *ledger, const struct ss_setup *setup)
{
	struct stat seen, state;

	if (fstat(setup->file->fd, &seen) || (setup->state != NULL && fstat(setup->state->fd, &state)))
		return -errno;
	ss_ledger_set_file(ledger, setup->file, &seen);
	if (setup->state != NULL)
		ledger->state_same = ss_same_of(&state);
	ledger->state_fd = ss_handle_take(setup->state);
	ledger->claim_fd = ss_handle_take(setup->claims);
	return 0;
}

/*
 * Take over the descriptors and begin the chain; the caller frees the ledger also after an error. Writes
 * no record.
 */
SS_API int
ss_ledger_open(struct ss_setup *setup, struct ss_ledger **ret_ledger)
{
	struct ss_ledger *ledger = NULL;
	int error;

	if ((error = ss_ledger_map(&ledger)))
		return error;
	*ret_ledger = ledger;
	if (!strcmp(setup->mode, "durable") && !(ledger->unsynced = malloc(SS_UNSYNCED_BYTES)))
		return -ENOMEM;
	if ((error = ss_ledger_take_files(ledger, setup)))
		return error;
	ss_ledgers_add(ledger);
	ledger->reserve = setup->reserve;
	ledger->reserves = setup->reserve > 0;
	ledger->limit = setup->limit;
	ledger->checkpoint_records = setup->checkpoint_records;
	ledger->checkpoint_ns = setup->checkpoint_ns;
	ledger->checkpoint_at = ss_now();
	memcpy(ledger->boot, setup->boot, sizeof(ledger->boot));
	memcpy(ledger->mode, setup->mode, sizeof(ledger->mode));
	ss_chain_begin(ledger, &setup->origin);
	/* So that record 0 can tell whether there is a reserve. Without room for it no slot is taken. */
	if ((error = ss_ledger_book(ledger, 2)))
		return error;
	/* The slot comes before the registry's record: see docs/audit-format.md. */
	return ledger->keyed && ledger->state_fd >= 0 ? ss_state_claim(ledger) : 0;
}

/* Close the descriptors and forget the keys. The caller keeps everybody out, or is alone. */
static void
ss_ledger_end(struct ss_ledger *ledger)
{
	if (ledger->closed)
		return;
	ledger->closed = 1;
	ss_close_same(ledger->fd, &ledger->same);
	ss_close_same(ledger->state_fd, &ledger->state_same);
	ss_close_same(ledger->claim_fd, &ledger->state_same);
	ledger->fd = ledger->state_fd = ledger->claim_fd = -1;
	explicit_bzero(ledger->secrets->record_key, 32);
	explicit_bzero(ledger->secrets->aggregate_key, 32);
	ss_ring_wake(&ledger->ring);
}

/* Close it. Records that come later are refused. */
SS_API void
ss_ledger_close(struct ss_ledger *ledger)
{
	struct ss_queue *flushing = &ledger->secrets->flushing;

	if (!__atomic_load_n(&ledger->secrets->alive, __ATOMIC_ACQUIRE)) {
		ss_ledger_end(ledger); /* in a forked child, which has no other thread that knows it */
		return;
	}
	ss_queue_enter(flushing);
	if (!ss_ledger_enter(ledger)) {
		ss_ledger_end(ledger);
		ss_ledger_leave(ledger);
	}
	ss_queue_leave(flushing);
}

/* ------------------------------------------------------------------ fork */

static void
ss_put_fork(struct ss_text *text, const void *about)
{
	ss_put_word(text, ",\"child\":\"");
	ss_say(text, about, SS_ID_BYTES);
	ss_say(text, "\"", 1);
}

/* Derive the child's key and write the record that names its chain; without that record it has none. */
static int
ss_ledger_bequeath(struct ss_ledger *ledger)
{
	struct ss_origin *heir = &ledger->heir;
	struct ss_record record = { SS_EV_CHAIN_FORK, 0, NULL, ss_put_fork, heir->chain };
	int error;

	if ((error = ss_ledger_ready(ledger, &record)) || (error = ss_ledger_tell_loss(ledger)))
		return error;
	/* The loss is told first: it may take the number that the child's key goes with. */
	if ((error = ss_uuid7(heir->chain)))
		return error;
	memcpy(heir->parent, ledger->chain, SS_ID_BYTES);
	heir->keyed = heir->forked = ledger->keyed;
	heir->epoch = ledger->epoch;
	heir->n = ledger->next;
	if (ledger->keyed)
		ss_derive(ledger->secrets->record_key, "safespawn fork", heir->chain, SS_ID_BYTES, heir->key);
	return ss_ledger_put(ledger, &record);
}

static void
ss_ledger_take_over(struct ss_ledger *ledger, struct ss_origin *origin)
{
	(void)mlock(ledger->secrets, (size_t)sysconf(_SC_PAGESIZE)); /* locks are not inherited */
	ss_ring_reset(&ledger->ring);
	ledger->unsynced_bytes = 0;
	ledger->synced = ledger->written = 0;
	ss_chain_begin(ledger, origin);
}

/*
 * Before a fork of libc's (pthread_atfork): nobody is in the middle of a line when it comes, and the
 * child's chain is settled. Here, and not in Python's hooks, because a signal handler could come
 * between them, and would wait for ever or leave all others waiting.
 */
static void
ss_ledgers_hold(void)
{
	ss_queue_enter(&ss_process->ledgers);
	for (struct ss_ledger *ledger = ss_ledgers; ledger != NULL; ledger = ledger->other) {
		ss_queue_enter(&ledger->secrets->writing);
		explicit_bzero(&ledger->heir, sizeof(ledger->heir));
		if (!ledger->secrets->alive || ledger->closed || ledger->ended || ledger->next == 0)
			continue; /* it has no chain that a child could come from */
		if (ss_ledger_bequeath(ledger)) {
			ss_ledger_lose(ledger);
			explicit_bzero(&ledger->heir, sizeof(ledger->heir));
		}
	}
}

static void
ss_ledgers_release(void)
{
	for (struct ss_ledger *ledger = ss_ledgers; ledger != NULL; ledger = ledger->other) {
		explicit_bzero(&ledger->heir, sizeof(ledger->heir));
		ss_queue_leave(&ledger->secrets->writing);
	}
	ss_queue_leave(&ss_process->ledgers);
}

/* In the child, whose page of secrets is empty. Its slot is claimed with its first record: most write none. */
static void
ss_ledgers_inherit(void)
{
	memset(ss_process, 0, sizeof(*ss_process)); /* for kernels that have not */
	for (struct ss_ledger *ledger = ss_ledgers; ledger != NULL; ledger = ledger->other)
		if (ledger->heir.chain[0] != '\0')
			ss_ledger_take_over(ledger, &ledger->heir);
}

SS_API void ss_ledger_disown(struct ss_ledger *);

/* Called before any ledger is opened, by each interpreter. Answers an errno of pthread_atfork(3). */
SS_API int
ss_ledger_hook_forks(void)
{
	static int32_t is_hooked;
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct ss_process *made;

	if (__atomic_exchange_n(&is_hooked, 1, __ATOMIC_SEQ_CST))
		return 0;
	made = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (made == MAP_FAILED)
		return errno;
	(void)madvise(made, page, MADV_WIPEONFORK); /* without it children of libc's fork are told apart all the same */
	made->number = ss_process_number(); /* it stays the same for another interpreter that has asked already */
	ss_process = made;
	return pthread_atfork(ss_ledgers_hold, ss_ledgers_release, ss_ledgers_inherit);
}

/*
 * Begin another chain in the same file, in a child that was forked past libc: with a key of its own.
 * -EBUSY: this chain goes on, it is no such child.
 */
SS_API int
ss_ledger_inherit(struct ss_ledger *ledger, struct ss_origin *origin)
{
	int error;

	if (ledger->closed)
		return -ESHUTDOWN;
	if (__atomic_load_n(&ledger->secrets->alive, __ATOMIC_ACQUIRE))
		return -EBUSY;
	memcpy(origin->parent, ledger->chain, SS_ID_BYTES);
	ss_ledger_take_over(ledger, origin);
	if (!ledger->keyed || ledger->state_fd < 0 || !(error = ss_state_claim(ledger)))
		return 0;
	ss_ledger_disown(ledger);
	return error;
}

/* Whether its chain is this process's. */
SS_API int
ss_ledger_is_ours(const struct ss_ledger *ledger)
{
	return __atomic_load_n(&ledger->secrets->alive, __ATOMIC_ACQUIRE) != 0;
}

/* What was begun came to nothing: no record may be written in it. */
SS_API void
ss_ledger_disown(struct ss_ledger *ledger)
{
	explicit_bzero(ledger->secrets->record_key, 32);
	explicit_bzero(ledger->secrets->aggregate_key, 32);
	__atomic_store_n(&ledger->secrets->alive, 0, __ATOMIC_RELEASE);
}

/* Where its chain begins; for its first record. */
SS_API void
ss_ledger_birth(const struct ss_ledger *ledger, struct ss_origin *ret_origin)
{
	*ret_origin = ledger->birth;
}

/* Whether a path is still the file that is written: somebody may have renamed or replaced it. */
SS_API int
ss_ledger_is_at(const struct ss_ledger *ledger, const char *path)
{
	struct stat seen;

	return !lstat(path, &seen) && ss_is_same(&seen, &ledger->same);
}

/* Which file system a descriptor is on (statfs(2)), 0 if it does not say. */
SS_API uint32_t
ss_file_system(int32_t fd)
{
	struct statfs seen;

	return fstatfs(fd, &seen) ? 0 : (uint32_t)seen.f_type;
}
