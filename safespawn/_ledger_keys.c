/*
 * Keys, aggregate and state of a chain. Part of _native.c.
 *
 * After each record the keys step forward through SHA-256 and the old ones are gone, so
 * who takes them can forge what comes, not what was. [T-32 records-chained]
 */

#define SS_CLAIM_TRIES 8
#define SS_CLAIM_SPAN (64u << 20) /* so much may others append between our look at the size and our append */

static void
ss_derive(const uint8_t key[32], const char *label, const void *more, size_t more_bytes, uint8_t ret[32])
{
	ss_hmac(key, label, strlen(label), more, more_bytes, ret);
}

/* Lay out a page for secrets; its lock is open and its keys are zero. */
static int
ss_secrets_map(struct ss_secrets **ret_secrets)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *made = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (made == MAP_FAILED)
		return -errno;
	if (madvise(made, page, MADV_WIPEONFORK) || madvise(made, page, MADV_DONTDUMP)) {
		int error = -errno;

		(void)munmap(made, page);
		return error;
	}
	(void)mlock(made, page); /* RLIMIT_MEMLOCK may forbid it: then they may be swapped */
	*ret_secrets = made;
	return 0;
}

/* A UUID of version 7 (RFC 9562): milliseconds and 74 random bits. */
static int
ss_uuid7(char ret_text[SS_ID_BYTES])
{
	uint8_t raw[16];
	uint64_t ms;
	char *at = ret_text;

	if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw))
		return -EAGAIN;
	ms = (uint64_t)ss_clock_ns(CLOCK_REALTIME) / 1000000;
	for (int i = 0; i < 6; i++)
		raw[i] = (uint8_t)(ms >> (40 - 8 * i));
	raw[6] = (raw[6] & 0x0f) | 0x70;
	raw[8] = (raw[8] & 0x3f) | 0x80;
	for (int i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*at++ = '-';
		*at++ = ss_hex_digits[raw[i] >> 4];
		*at++ = ss_hex_digits[raw[i] & 15];
	}
	return 0;
}

/* Begin a chain. Wipes the origin's key. */
static void
ss_chain_begin(struct ss_ledger *ledger, struct ss_origin *origin)
{
	static uint64_t serials;
	struct ss_secrets *secrets = ledger->secrets;

	memcpy(ledger->chain, origin->chain, SS_ID_BYTES);
	ledger->serial = __atomic_add_fetch(&serials, 1, __ATOMIC_RELAXED);
	ledger->keyed = origin->keyed;
	ledger->epoch = origin->epoch;
	ledger->next = ledger->booked = ledger->slot = 0;
	ledger->slot_behind = ledger->ended = ledger->shrunk = 0;
	ledger->since_checkpoint = ledger->due_again = 0;
	memset(ledger->counts, 0, sizeof(ledger->counts));
	memset(ledger->previous, 0, sizeof(ledger->previous));
	memset(ledger->aggregate, 0, sizeof(ledger->aggregate));
	if (origin->keyed) {
		ss_derive(origin->key, "safespawn record", NULL, 0, secrets->record_key);
		ss_derive(origin->key, "safespawn aggregate", NULL, 0, secrets->aggregate_key);
	}
	explicit_bzero(origin->key, sizeof(origin->key));
	ledger->birth = *origin;
	__atomic_store_n(&secrets->alive, 1, __ATOMIC_RELEASE);
}

/* The record with this MAC is in the file: the keys that made it are no longer needed. */
static void
ss_chain_step(struct ss_ledger *ledger, const uint8_t mac[32])
{
	struct ss_secrets *secrets = ledger->secrets;

	ss_hmac(secrets->aggregate_key, ledger->aggregate, 32, mac, 32, ledger->aggregate);
	ss_sha256(secrets->record_key, 32, secrets->record_key);
	ss_sha256(secrets->aggregate_key, 32, secrets->aggregate_key);
}

/* ------------------------------------------------------------------ the state file */

static int
ss_uuid_bytes(const char text[SS_ID_BYTES], uint8_t ret_bytes[16])
{
	int digits = 0;

	for (size_t i = 0; i < SS_ID_BYTES; i++) {
		char c = text[i];
		int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;

		if (c == '-')
			continue;
		if (digit < 0 || digits == 32)
			return -EINVAL;
		ret_bytes[digits / 2] = (uint8_t)(digits % 2 ? ret_bytes[digits / 2] | digit : digit << 4);
		digits++;
	}
	return digits == 32 ? 0 : -EINVAL;
}

/* What the state file says of our chain now. Both halves alike: a reader in the middle of a write looks again. */
static void
ss_state_slot(const struct ss_ledger *ledger, uint8_t ret_slot[SS_SLOT_BYTES])
{
	uint8_t seal[SS_DIGEST_BYTES];
	uint32_t half = (uint32_t)(ledger->next & 1), flags = ledger->ended != 0;

	memset(ret_slot, 0, SS_SLOT_BYTES);
	memcpy(ret_slot, &half, 4);
	memcpy(ret_slot + 4, &flags, 4);
	(void)ss_uuid_bytes(ledger->chain, ret_slot + 8);
	memcpy(ret_slot + 24, &ledger->epoch, 8);
	/*
	 * This key is gone with the next record. Nothing else is in it: a verifier that has no aggregate, because
	 * older records were retired, must be able to make it.
	 */
	ss_derive(ledger->secrets->aggregate_key, "safespawn state", "", 0, seal);
	for (int i = 0; i < 2; i++) {
		memcpy(ret_slot + 32 + 40 * i, &ledger->next, 8);
		memcpy(ret_slot + 40 + 40 * i, seal, SS_DIGEST_BYTES);
	}
	explicit_bzero(seal, sizeof(seal)); /* a copy: see ss_state_write */
}

/*
 * Write our slot: one pwrite within one page, which SIGKILL cannot cut in two. Not through a
 * mapping: that would be SIGBUS for the whole process if somebody cut the file. No copy is left behind
 * for a forked child: who has an older seal can put it back, with a ledger that was cut to that length.
 */
static int
ss_state_write(struct ss_ledger *ledger)
{
	uint8_t slot[SS_SLOT_BYTES];
	struct stat seen;
	int error;

	ss_state_slot(ledger, slot);
	error = ss_still(ledger->state_fd, &ledger->state_same, &seen);
	if (!error)
		error = ss_pwrite_whole(ledger->state_fd, slot, sizeof(slot), ledger->slot * SS_SLOT_BYTES);
	explicit_bzero(slot, sizeof(slot));
	ledger->slot_behind = error != 0;
	return error;
}

/* Which slot, at `from` or behind, is this one; 0 for none. */
static uint64_t
ss_state_find(const struct ss_ledger *ledger, const uint8_t slot[SS_SLOT_BYTES], uint64_t from)
{
	uint8_t there[32 * SS_SLOT_BYTES];
	uint64_t found = 0;
	ssize_t bytes;

	for (uint64_t at = from; found == 0 && at - from < SS_CLAIM_SPAN; at += (uint64_t)bytes) {
		bytes = pread(ledger->state_fd, there, sizeof(there), (off_t)at);
		if (bytes < (ssize_t)SS_SLOT_BYTES)
			break;
		bytes -= bytes % (ssize_t)SS_SLOT_BYTES;
		for (ssize_t i = 0; i < bytes && found == 0; i += (ssize_t)SS_SLOT_BYTES)
			if (!memcmp(there + i, slot, SS_SLOT_BYTES))
				found = (at + (uint64_t)i) / SS_SLOT_BYTES;
	}
	explicit_bzero(there, sizeof(there)); /* others have slots there */
	return found;
}

/* Append a slot to the state file: all of it within the limit, or those behind it would be out of line. */
static int
ss_state_append(const struct ss_ledger *ledger, const uint8_t slot[SS_SLOT_BYTES], uint64_t size)
{
	uint8_t data[2 * SS_SLOT_BYTES] = { 0 };
	uint64_t over = size % SS_SLOT_BYTES, skip = over ? over : SS_SLOT_BYTES; /* zeros up to the next slot */
	struct rlimit limit;
	size_t taken;
	int error;

	if (!getrlimit(RLIMIT_FSIZE, &limit) && size + sizeof(data) - skip > limit.rlim_cur)
		return -EFBIG;
	memcpy(data + SS_SLOT_BYTES, slot, SS_SLOT_BYTES);
	error = ss_write_whole(ledger->claim_fd, (const char *)data + skip, sizeof(data) - skip, &taken);
	explicit_bzero(data, sizeof(data));
	return error;
}

/* Take a slot, if nobody disturbs us: -EBADMSG. */
static int
ss_state_try(struct ss_ledger *ledger, const uint8_t slot[SS_SLOT_BYTES])
{
	struct stat seen;
	uint64_t size;
	int error;

	if ((error = ss_still(ledger->state_fd, &ledger->state_same, &seen)) ||
	    (error = ss_still(ledger->claim_fd, &ledger->state_same, &seen)))
		return error;
	size = (uint64_t)seen.st_size;
	if (size < SS_SLOT_BYTES)
		return -EBADMSG; /* somebody has cut it */
	if ((error = ss_state_append(ledger, slot, size)))
		return error;
	ledger->slot = ss_state_find(ledger, slot, size - size % SS_SLOT_BYTES);
	return ledger->slot > 0 ? 0 : -EBADMSG;
}

/*
 * Take a slot for our chain: append it, and look where it came to lie. The order of appends is the kernel's,
 * so nobody waits for a lock that a stopped process holds, and no count can be out of date. The offset of the
 * descriptor does not tell where: forked processes share it, and each append moves it. A forked child
 * that has dropped its privileges can still do that: the descriptors are all it needs. One that was taken
 * over may cut the file meanwhile, or append what is no slot: then it is tried again, and refused in the end.
 */
static int
ss_state_claim(struct ss_ledger *ledger)
{
	uint8_t slot[SS_SLOT_BYTES];
	int error = -EBADMSG;

	ss_state_slot(ledger, slot);
	for (int tries = 0; tries < SS_CLAIM_TRIES && error == -EBADMSG; tries++)
		error = ss_state_try(ledger, slot);
	explicit_bzero(slot, sizeof(slot));
	return error;
}
