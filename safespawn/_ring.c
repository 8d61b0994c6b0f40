/*
 * The last lines of a ledger, for those who follow it: mirrors. Part of _native.c.
 *
 * Nobody who writes ever waits for a reader. Who is too slow loses lines, and is told how many.
 * All of it happens while the writer's queue is held, except for the sleeping.
 */

static int
ss_ring_make(struct ss_ring *ring, uint64_t bytes)
{
	void *made = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (made == MAP_FAILED)
		return -errno;
	(void)madvise(made, bytes, MADV_DONTDUMP); /* arguments of programs do not belong in core files */
	ring->bytes = bytes;
	ring->base = made;
	return 0;
}

static void
ss_ring_free(struct ss_ring *ring)
{
	if (ring->base != NULL)
		(void)munmap(ring->base, ring->bytes);
	ring->base = NULL;
}

/* A line may go over the end and on at the beginning. */
static void
ss_ring_copy_in(struct ss_ring *ring, const void *data, uint64_t bytes)
{
	uint64_t at = ring->head % ring->bytes, part = ring->bytes - at < bytes ? ring->bytes - at : bytes;

	memcpy(ring->base + at, data, part);
	memcpy(ring->base, (const char *)data + part, bytes - part);
	ring->head += bytes;
}

static void
ss_ring_copy_out(const struct ss_ring *ring, uint64_t from, void *data, uint64_t bytes)
{
	uint64_t at = from % ring->bytes, part = ring->bytes - at < bytes ? ring->bytes - at : bytes;

	memcpy(data, ring->base + at, part);
	memcpy((char *)data + part, ring->base, bytes - part);
}

/* A system call only if somebody sleeps. The word first: who is about to sleep then does not. */
static void
ss_ring_wake(struct ss_ring *ring)
{
	(void)__atomic_add_fetch(&ring->word, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&ring->sleepers, __ATOMIC_SEQ_CST) > 0)
		(void)ss_sys3(SYS_futex, &ring->word, SS_FUTEX_WAKE | SS_FUTEX_PRIVATE, INT_MAX);
}

/* Add a line. The oldest ones make room; their readers find out by the numbers. */
static void
ss_ring_put(struct ss_ring *ring, const char *line, size_t bytes)
{
	uint32_t length = (uint32_t)bytes;

	if (ring->base == NULL)
		return;
	while (ring->head + sizeof(length) + bytes - ring->tail > ring->bytes) {
		uint32_t oldest;

		ss_ring_copy_out(ring, ring->tail, &oldest, sizeof(oldest));
		ring->tail += sizeof(oldest) + oldest;
		ring->first++;
	}
	ss_ring_copy_in(ring, &length, sizeof(length));
	ss_ring_copy_in(ring, line, bytes);
	ring->next++;
	ss_ring_wake(ring);
}

/* In a forked child: what the parent wrote is the parent's to mirror. */
static void
ss_ring_reset(struct ss_ring *ring)
{
	ring->head = ring->tail = ring->first = ring->next = 0;
	ring->sleepers = 0;
}

/* ------------------------------------------------------------------ its readers */

#define SS_RING_NAP_NS 20000000l /* lines that come close together are read together */

/*
 * Wait until the word moves, without the queue. The nap afterwards spares the writers: while it lasts
 * nobody sleeps on the word, so nobody needs to be woken.
 */
static void
ss_ring_sleep(struct ss_ring *ring, uint32_t word, int64_t timeout_ns)
{
	struct timespec left = { timeout_ns / 1000000000ll, timeout_ns % 1000000000ll };
	static const struct timespec nap = { 0, SS_RING_NAP_NS };

	(void)__atomic_add_fetch(&ring->sleepers, 1, __ATOMIC_SEQ_CST);
	if (ss_sys4(SYS_futex, &ring->word, SS_FUTEX_WAIT | SS_FUTEX_PRIVATE, word, &left) == 0) {
		(void)__atomic_sub_fetch(&ring->sleepers, 1, __ATOMIC_SEQ_CST);
		(void)nanosleep(&nap, NULL);
		return;
	}
	(void)__atomic_sub_fetch(&ring->sleepers, 1, __ATOMIC_SEQ_CST);
}

/* Copy whole lines, each with a newline, as far as they fit: how many bytes. */
static uint64_t
ss_ring_read(const struct ss_ring *ring, struct ss_reader *reader, char *room, uint64_t bytes)
{
	uint64_t used = 0;

	if (reader->number < ring->first) {
		reader->skipped += ring->first - reader->number;
		reader->number = ring->first;
		reader->position = ring->tail;
	}
	while (reader->number < ring->next) {
		uint32_t length;

		ss_ring_copy_out(ring, reader->position, &length, sizeof(length));
		if (used + length + 1 > bytes)
			break;
		ss_ring_copy_out(ring, reader->position + sizeof(length), room + used, length);
		used += length;
		room[used++] = '\n';
		reader->position += sizeof(length) + length;
		reader->number++;
	}
	return used;
}
