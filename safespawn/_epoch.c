/*
 * The epoch key of the host, from which each opening of a chain takes its key. Part of _native.c.
 *
 * Here, and not in Python, because what Python has held in bytes cannot be wiped.
 */

#define SS_EPOCH_MAGIC "SSEPOCH1"

/* The file, as docs/audit-format.md has it. */
struct ss_epoch {
	char magic[8];
	uint64_t index; /* the next epoch: how many records the registry has */
	uint8_t key[32], aggregate[32];
	uint8_t registry[16];
	uint8_t check[32];
};

_Static_assert(sizeof(struct ss_epoch) == 128, "the file has no holes");

static void
ss_epoch_check(const struct ss_epoch *epoch, uint8_t ret_check[32])
{
	ss_sha256(epoch, offsetof(struct ss_epoch, check), ret_check);
}

/* The first epoch, from the verification key. */
SS_API void
ss_epoch_begin(const uint8_t key[32], const uint8_t registry[16], struct ss_epoch *ret_epoch)
{
	memset(ret_epoch, 0, sizeof(*ret_epoch));
	memcpy(ret_epoch->magic, SS_EPOCH_MAGIC, sizeof(ret_epoch->magic));
	memcpy(ret_epoch->registry, registry, sizeof(ret_epoch->registry));
	ss_derive(key, "safespawn epoch", NULL, 0, ret_epoch->key);
}

/* Read it. -EBADMSG: it is damaged, or something else. */
SS_API int
ss_epoch_read(const struct ss_handle *file, struct ss_epoch *ret_epoch)
{
	uint8_t check[32];
	ssize_t bytes = pread(file->fd, ret_epoch, sizeof(*ret_epoch), 0);

	if (bytes < 0)
		return -errno;
	ss_epoch_check(ret_epoch, check);
	if (bytes != (ssize_t)sizeof(*ret_epoch) || memcmp(check, ret_epoch->check, sizeof(check)) ||
	    memcmp(ret_epoch->magic, SS_EPOCH_MAGIC, sizeof(ret_epoch->magic)))
		return -EBADMSG;
	return 0;
}

/* Overwrite it in its place, so that the old key is gone from the file's blocks, and flush. */
SS_API int
ss_epoch_write(const struct ss_handle *file, struct ss_epoch *epoch)
{
	int error;

	ss_epoch_check(epoch, epoch->check);
	if ((error = ss_pwrite_whole(file->fd, epoch, sizeof(*epoch), 0)))
		return error;
	return ss_flush_file(file->fd);
}

/* Where a chain begins that is opened in this epoch. */
SS_API void
ss_epoch_chain(const struct ss_epoch *epoch, struct ss_origin *origin)
{
	ss_derive(epoch->key, "safespawn chain", origin->chain, SS_ID_BYTES, origin->key);
	origin->keyed = 1;
	origin->epoch = epoch->index;
}

/* The MAC of the registry's record of this epoch, over the bytes before its last member. */
SS_API void
ss_epoch_mac(const struct ss_epoch *epoch, const char *body, uint64_t bytes, uint8_t ret_mac[32])
{
	uint8_t key[32];

	ss_derive(epoch->key, "safespawn registry record", NULL, 0, key);
	ss_hmac(key, body, bytes, NULL, 0, ret_mac);
	explicit_bzero(key, sizeof(key));
}

/* That record is in the registry: on to the next epoch. */
SS_API void
ss_epoch_step(struct ss_epoch *epoch, const uint8_t mac[32])
{
	uint8_t key[32];

	ss_derive(epoch->key, "safespawn registry aggregate", NULL, 0, key);
	ss_hmac(key, epoch->aggregate, 32, mac, 32, epoch->aggregate);
	explicit_bzero(key, sizeof(key));
	ss_derive(epoch->key, "safespawn evolve", NULL, 0, epoch->key);
	epoch->index++;
}

SS_API void
ss_epoch_wipe(struct ss_epoch *epoch)
{
	explicit_bzero(epoch, sizeof(*epoch));
}
