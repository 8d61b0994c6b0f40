/*
 * What a fork costs, and making it less: the kernel copies an entry for each page that is
 * mapped by itself (4 KiB), and one for each that is huge (2 MiB). Part of _native.c.
 *
 * Blocks of private anonymous memory that are nearly full become huge pages: by
 * MADV_COLLAPSE (Linux 6.1), at once; before that by MADV_HUGEPAGE, which asks khugepaged
 * to do it in its time. Nothing is ever read or written: a block that another thread
 * unmaps meanwhile answers an error, and one that it maps anew is looked at by the kernel.
 */

#define SS_MADV_HUGEPAGE 14
#define SS_MADV_COLLAPSE 25
#define SS_HUGE_MOST 4096u /* pages of a block that we can look at; 512 on x86-64 */
#define SS_HUGE_TRIES 3    /* EAGAIN: pages could not be taken off a list just then */

/* Entries of /proc/self/pagemap: in memory; of a file, or shared; nobody else has the page. */
#define SS_PAGE_IN 1ull << 63
#define SS_PAGE_OF_FILE 1ull << 61
#define SS_PAGE_OURS 1ull << 56

/* What to do with a stretch of memory, and what came of it: all in bytes but counts and errno. */
struct ss_huge {
	uint64_t block;     /* of a huge page */
	uint64_t filled;    /* a block with less than this of its own is left alone */
	uint64_t room;      /* that may be added at most; what was added is taken off */
	int32_t advice;     /* MADV_... */
	int32_t error;      /* why blocks were refused, the first time */
	uint64_t taken, sparse, refused;
};

/* Whether the kernel knows an advice: nothing is advised. */
SS_API int
ss_huge_knows(int advice)
{
	return ss_sys3(SYS_madvise, NULL, 0, advice) == 0;
}

/* How much of a block lies in pages that are nobody's but ours; negative errno. */
static int64_t
ss_huge_own(int pagemap, uint64_t at, uint64_t block)
{
	const uint64_t page = ss_pages(1), count = block / page;
	uint64_t entries[SS_HUGE_MOST], i;
	int64_t own = 0;
	const long got = ss_sys4(SYS_pread64, pagemap, entries, count * sizeof(*entries), at / page * sizeof(*entries));

	if (got != (long)(count * sizeof(*entries)))
		return got < 0 ? got : -EIO;
	/* What is in memory and not ours alone would be copied: the page of zeros, pages of a fork. */
	for (i = 0; i < count; i++)
		own += (entries[i] & SS_PAGE_IN) && !(entries[i] & SS_PAGE_OF_FILE) && (entries[i] & SS_PAGE_OURS);
	return own * (int64_t)page;
}

/* Blocks that follow each other, which can become huge, and what that would add. */
struct ss_huge_run {
	uint64_t at, bytes, added;
};

static int
ss_huge_advise(const struct ss_huge *h, uint64_t at, uint64_t bytes)
{
	unsigned tries = SS_HUGE_TRIES;
	long answer;

	do
		answer = ss_sys3(SYS_madvise, at, bytes, h->advice);
	while (answer == -EAGAIN && --tries);
	return (int)answer;
}

/* A block that stays as it is adds nothing. */
static void
ss_huge_take_off(const struct ss_huge *h, int pagemap, uint64_t at, struct ss_huge_run *run)
{
	const int64_t own = ss_huge_own(pagemap, at, h->block);
	const uint64_t added = own < 0 ? 0 : h->block - (uint64_t)own;

	run->added -= added < run->added ? added : run->added; /* it may have changed since it was counted */
}

/*
 * In one call, because each makes all processors hand over what they have put by. If some of
 * it is refused the kernel does not say which: then block by block.
 */
static void
ss_huge_flush(struct ss_huge *h, int pagemap, struct ss_huge_run *run)
{
	const int is_whole = run->bytes && !ss_huge_advise(h, run->at, run->bytes);
	uint64_t at;
	int error;

	h->taken += is_whole ? run->bytes : 0;
	for (at = run->at; !is_whole && at < run->at + run->bytes; at += h->block) {
		if (!(error = ss_huge_advise(h, at, h->block))) {
			h->taken += h->block;
			continue;
		}
		h->refused += h->block;
		h->error = h->error ? h->error : -error;
		ss_huge_take_off(h, pagemap, at, run);
	}
	h->room -= run->added;
	memset(run, 0, sizeof(*run));
}

/* One block. Returns 0, or the errno that ends the work. */
static int
ss_huge_block(struct ss_huge *h, int pagemap, uint64_t at, struct ss_huge_run *run)
{
	const int64_t own = ss_huge_own(pagemap, at, h->block);
	const uint64_t added = h->block - (uint64_t)own;

	if (own < 0)
		return (int)own;
	if ((uint64_t)own >= h->filled && run->added + added <= h->room) {
		run->at = run->bytes ? run->at : at;
		run->bytes += h->block;
		run->added += added;
		return 0;
	}
	if ((uint64_t)own < h->filled) {
		h->sparse += h->block;
	} else {
		h->refused += h->block;
		h->error = h->error ? h->error : EDQUOT;
	}
	ss_huge_flush(h, pagemap, run);
	return 0;
}

/*
 * Makes the blocks between two addresses huge. Returns 0, or a negative errno when it
 * cannot be seen what is in them; blocks that the kernel refuses are counted, EDQUOT standing
 * for those that would have taken more than the room.
 */
SS_API int
ss_huge_make(uint64_t from, uint64_t to, struct ss_huge *h)
{
	struct ss_huge_run run = {0, 0, 0};
	uint64_t at;
	int pagemap, error = 0;

	if (h->block < ss_pages(1) || h->block / ss_pages(1) > SS_HUGE_MOST)
		return -EINVAL;
	if ((pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) < 0)
		return -errno;
	for (at = (from + h->block - 1) / h->block * h->block; !error && at < to && to - at >= h->block; at += h->block)
		error = ss_huge_block(h, pagemap, at, &run);
	ss_huge_flush(h, pagemap, &run);
	(void)close(pagemap); /* read only */
	return error;
}

/* A child that does nothing: no handler runs in it, and nothing of libc. */
static SS_CHILD long
ss_child_fork(int32_t *ret_pidfd)
{
	/* The order of the last two arguments differs between machines; both are nothing. */
	const long pid = ss_sys5(SYS_clone, SS_CLONE_PIDFD, NULL, ret_pidfd, NULL, NULL);

	if (pid == 0)
		ss_child_exit();
	return pid;
}

/*
 * How long a fork takes just now, in nanoseconds, by making one; negative errno. Its child
 * has no exit signal, so nobody else waits for it or hears of it (ss_clone_fill).
 */
SS_API int64_t
ss_fork_ns(void)
{
	const uint64_t mask = ss_block_all();
	int32_t pidfd = -1;
	siginfo_t info;
	int64_t ns, start = ss_now();
	const long pid = ss_child_fork(&pidfd);
	long answer;

	ns = ss_now() - start;
	ss_unblock(mask);
	if (pid < 0)
		return pid;
	do
		answer = ss_sys5(SYS_waitid, SS_P_PIDFD, pidfd, &info, WEXITED | __WALL, NULL);
	while (answer == -EINTR);
	(void)ss_sys1(SYS_close, pidfd); /* a pidfd: nothing to lose */
	return ns;
}
