/*
 * The life of a ledger: opening, flushing, moving to the next segment, forking, closing. Part of
 * _native.c.
 */

/* ------------------------------------------------------------------ to the disk */

/* Forget the lines that the disk has, once fdatasync has said so. */
static void
ss_ledger_synced(struct ss_ledger *ledger, uint64_t written, uint64_t bytes, uint64_t next)
{
	ss_queue_enter(&ledger->secrets->writing);
	if (ledger->unsynced != NULL) {
		ledger->unsynced_bytes -= bytes;
		memmove(ledger->unsynced, ledger->unsynced + bytes, ledger->unsynced_bytes);
		ledger->unsynced_first = next;
	}
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
	uint64_t now, bytes, next;
	int error = 0, poisoned;

	ss_queue_enter(flushing);
	ss_queue_enter(writing);
	now = ledger->written;
	bytes = ledger->unsynced_bytes;
	next = ledger->next;
	poisoned = ledger->poisoned;
	ss_queue_leave(writing);
	if (poisoned) {
		error = -EIO;
	} else if (ledger->synced < written) {
		if (fdatasync(ledger->fd)) {
			error = -errno;
			__atomic_store_n(&ledger->poisoned, 1, __ATOMIC_RELEASE);
		} else {
			ss_ledger_synced(ledger, now, bytes, next);
		}
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

/* An intent that was kept is not followed by a program after all. */
SS_API void
ss_ledger_unbook(struct ss_ledger *ledger)
{
	if (ss_ledger_enter(ledger))
		return;
	ss_ledger_account(ledger, SS_ENTRY_FREES_TWO);
	ss_ledger_leave(ledger);
}

/* ------------------------------------------------------------------ the next segment */

/* Write what the old disk blocks may have lost again: the same lines, told before. */
static int
ss_ledger_resend(struct ss_ledger *ledger)
{
	char body[120];
	struct ss_entry entry = { SS_EV_DEGRADED, 0, NULL, body, 0 };
	struct ss_record record = { SS_EV_DEGRADED, 0, NULL, ss_put_body, &entry };
	uint64_t bytes = ledger->unsynced_bytes, first = ledger->unsynced_first;
	size_t taken;
	int error;

	if (bytes == 0)
		return 0;
	entry.body_bytes = (uint64_t)snprintf(body, sizeof(body),
	    "\"lost\":0,\"why\":\"fdatasync failed\",\"resent\":[%llu,%llu]", (unsigned long long)first,
	    (unsigned long long)ledger->next - 1);
	if ((error = ss_ledger_put(ledger, &record)))
		return error;
	error = ss_write_whole(ledger->fd, ledger->unsynced, bytes, &taken);
	ledger->torn = error && taken > 0;
	ledger->size += taken;
	return error;
}

/* Go on in another file, which was opened and judged. Takes the descriptor over in any case. */
SS_API int
ss_ledger_move(struct ss_ledger *ledger, int32_t fd, struct ss_kept *kept)
{
	struct stat seen;
	int error;

	kept->flags = 0;
	/* Nobody flushes meanwhile: the descriptor goes. In this order, as ss_ledger_flush_to has it. */
	ss_queue_enter(&ledger->secrets->flushing);
	error = fstat(fd, &seen) ? -errno : ss_ledger_enter(ledger);
	if (error) {
		ss_queue_leave(&ledger->secrets->flushing);
		(void)close(fd);
		return error;
	}
	if (ledger->unsynced != NULL && !ledger->poisoned && fdatasync(ledger->fd))
		ledger->poisoned = 1;
	if (ss_ledger_look(ledger, kept) != -EBADF)
		(void)close(ledger->fd);
	ledger->fd = fd;
	ledger->device = (uint64_t)seen.st_dev;
	ledger->inode = (uint64_t)seen.st_ino;
	ledger->size = (uint64_t)seen.st_size;
	ledger->reserved_end = 0;
	ledger->torn = 0;
	if (ledger->poisoned) {
		ledger->poisoned = 0;
		error = ss_ledger_resend(ledger);
	}
	kept->flags = 0;
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
	if ((error = ss_secrets_map(&(*ret_ledger)->secrets)))
		(void)munmap(made, sizeof(struct ss_ledger));
	return error;
}

SS_API void
ss_ledger_free(struct ss_ledger *ledger)
{
	if (ledger == NULL)
		return;
	explicit_bzero(ledger->secrets, sizeof(*ledger->secrets));
	(void)munmap(ledger->secrets, (size_t)sysconf(_SC_PAGESIZE));
	ss_ring_free(&ledger->ring);
	free(ledger->unsynced);
	(void)munmap(ledger, sizeof(*ledger));
}

/* Take over the descriptors and begin the chain. Writes no record. */
SS_API int
ss_ledger_open(struct ss_setup *setup, struct ss_ledger **ret_ledger)
{
	struct ss_ledger *ledger = NULL;
	struct stat seen;
	int error;

	if (fstat(setup->fd, &seen))
		return -errno;
	if ((error = ss_ledger_map(&ledger)))
		return error;
	if (!strcmp(setup->mode, "durable") && !(ledger->unsynced = malloc(SS_UNSYNCED_BYTES))) {
		ss_ledger_free(ledger);
		return -ENOMEM;
	}
	ledger->fd = setup->fd;
	ledger->state_fd = setup->state_fd;
	ledger->device = (uint64_t)seen.st_dev;
	ledger->inode = (uint64_t)seen.st_ino;
	ledger->size = (uint64_t)seen.st_size;
	ledger->reserve = setup->reserve;
	ledger->reserves = setup->reserve > 0;
	ledger->limit = setup->limit;
	ledger->checkpoint_records = setup->checkpoint_records;
	ledger->checkpoint_ns = setup->checkpoint_ns;
	ledger->checkpoint_at = ss_clock_ns(CLOCK_MONOTONIC);
	memcpy(ledger->boot, setup->boot, sizeof(ledger->boot));
	memcpy(ledger->mode, setup->mode, sizeof(ledger->mode));
	ss_chain_begin(ledger, &setup->origin);
	/* The slot comes before the registry's record: see docs/audit-format.md. */
	if (ledger->keyed && ledger->state_fd >= 0 && (error = ss_state_claim(ledger))) {
		ss_ledger_free(ledger);
		return error;
	}
	*ret_ledger = ledger;
	return 0;
}

/* Close the descriptors and forget the keys. The caller keeps everybody out, or is alone. */
static void
ss_ledger_end(struct ss_ledger *ledger)
{
	struct ss_kept kept;

	if (ledger->closed)
		return;
	ledger->closed = 1;
	if (ss_ledger_look(ledger, &kept) != -EBADF)
		(void)close(ledger->fd);
	if (ledger->state_fd >= 0)
		(void)close(ledger->state_fd);
	ledger->fd = ledger->state_fd = -1;
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

/*
 * Before a fork: derive the child's key, write the record that names its chain, and keep
 * everybody out until ss_ledger_forked. In the child nobody is in the middle of a line then.
 * heir has the child's chain id; its key goes to both processes, which wipe it at once.
 */
SS_API int
ss_ledger_fork(struct ss_ledger *ledger, struct ss_heir *heir)
{
	struct ss_record record = { SS_EV_CHAIN_FORK, 0, NULL, ss_put_fork, heir->origin.chain };
	struct ss_origin *origin = &heir->origin;
	struct ss_kept kept = { 0 };
	int error;

	heir->held = 0;
	if ((error = ss_ledger_enter(ledger)))
		return error;
	heir->held = 1;
	/* The loss is told first: it may take the number that the child's key goes with. */
	error = ss_ledger_ready(ledger, 0, &kept);
	if (!error)
		error = ss_ledger_tell_loss(ledger);
	heir->n = ledger->next;
	origin->keyed = ledger->keyed;
	origin->epoch = ledger->epoch;
	if (ledger->keyed)
		ss_derive(ledger->secrets->record_key, "safespawn fork", origin->chain, SS_ID_BYTES, origin->key);
	if (error || ss_ledger_put(ledger, &record))
		ss_ledger_lose(ledger);
	return 0;
}

/* After it, in the parent. */
SS_API void
ss_ledger_forked(struct ss_ledger *ledger, struct ss_heir *heir)
{
	explicit_bzero(heir->origin.key, sizeof(heir->origin.key));
	if (heir->held)
		ss_ledger_leave(ledger);
	heir->held = 0;
}

/*
 * Begin another chain in the same file: in a forked child, with what it inherited, or with a
 * key of its own. claim: take the slot now; else with the first record, because most children
 * never write one.
 */
SS_API int
ss_ledger_inherit(struct ss_ledger *ledger, struct ss_origin *origin, int32_t claim)
{
	if (ledger->closed)
		return -ESHUTDOWN;
	if (__atomic_load_n(&ledger->secrets->alive, __ATOMIC_ACQUIRE))
		return -EBUSY; /* no child: this chain goes on */
	(void)mlock(ledger->secrets, (size_t)sysconf(_SC_PAGESIZE)); /* locks are not inherited */
	ss_ring_reset(&ledger->ring);
	ledger->unsynced_bytes = 0;
	ledger->synced = ledger->written = 0;
	ss_chain_begin(ledger, origin);
	return claim && ledger->keyed && ledger->state_fd >= 0 ? ss_state_claim(ledger) : 0;
}

/* Which file system a descriptor is on (statfs(2)), 0 if it does not say. */
SS_API uint32_t
ss_file_system(int32_t fd)
{
	struct statfs seen;

	return fstatfs(fd, &seen) ? 0 : (uint32_t)seen.f_type;
}
