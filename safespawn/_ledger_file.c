/*
 * The files of a ledger: opened so that no descriptor is lost, written so that no signal ends us, and
 * looked at whether they are still ours. Part of _native.c.
 */

#define SS_TORN_TRIES 100
#define SS_SIGNAL_TRIES 100

/* ------------------------------------------------------------------ growing */

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
	int error, tries = SS_SIGNAL_TRIES;

	ss_grow_begin(&growing);
	do /* tmpfs looks for signals while it allocates */
		error = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)) ? -errno : 0;
	while (error == -EINTR && tries-- > 0);
	ss_grow_end(&growing);
	return error;
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

/* Write over a part of a file. Half a write would be worse than none: all of it must be within the limit. */
static int
ss_pwrite_whole(int fd, const void *data, size_t bytes, uint64_t at)
{
	struct rlimit limit;
	size_t done = 0;

	if (!getrlimit(RLIMIT_FSIZE, &limit) && at + bytes > limit.rlim_cur)
		return -EFBIG;
	while (done < bytes) {
		ssize_t taken = pwrite(fd, (const char *)data + done, bytes - done, (off_t)(at + done));

		if (taken == 0)
			return -ENOSPC;
		if (taken < 0 && errno != EINTR)
			return -errno;
		done += taken > 0 ? (size_t)taken : 0;
	}
	return 0;
}

/* fdatasync; a signal is no failure. */
static int
ss_flush_file(int fd)
{
	int error;

	do
		error = fdatasync(fd) ? -errno : 0;
	while (error == -EINTR);
	return error;
}

/* ------------------------------------------------------------------ whose they are */

/*
 * Open a file; its descriptor is in `file` before any signal handler of Python can run. What was there
 * before is closed, so that one can walk: dir may be that one.
 */
SS_API int
ss_handle_open(struct ss_handle *file, int32_t dir, const char *path, int32_t flags, uint32_t mode)
{
	int fd;

	do
		fd = openat(dir, path, flags | O_CLOEXEC, mode);
	while (fd < 0 && errno == EINTR);
	if (fd < 0)
		return -errno;
	if (file->fd >= 0)
		(void)close(file->fd);
	file->fd = fd;
	return 0;
}

/* Give it a number out of the way of those who close low ones by rote, where the limit allows. */
SS_API void
ss_handle_lift(struct ss_handle *file, int32_t least)
{
	int high = fcntl(file->fd, F_DUPFD_CLOEXEC, least);

	if (high < 0)
		return;
	(void)close(file->fd);
	file->fd = high;
}

/* Close it; twice is no error. */
SS_API void
ss_handle_close(struct ss_handle *file)
{
	if (file->fd >= 0)
		(void)close(file->fd);
	file->fd = -1;
}

/* Append to it: all of the data, or an errno. */
SS_API int
ss_handle_append(const struct ss_handle *file, const char *data, uint64_t bytes)
{
	size_t taken;

	return ss_write_whole(file->fd, data, bytes, &taken);
}

/* Write over its beginning. */
SS_API int
ss_handle_put(const struct ss_handle *file, const char *data, uint64_t bytes)
{
	return ss_pwrite_whole(file->fd, data, bytes, 0);
}

/* Make a hole in it, which reads as zeros and takes no room. */
SS_API int
ss_handle_punch(const struct ss_handle *file, uint64_t at, uint64_t bytes)
{
	const int how = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	return fallocate(file->fd, how, (off_t)at, (off_t)bytes) ? -errno : 0;
}

/* Rename a file that it holds the lock of. Not in a child that was forked meanwhile, where it was closed. */
SS_API int
ss_handle_rename(const struct ss_handle *file, const char *from, const char *to)
{
	if (file->fd < 0)
		return -EBADF;
	return rename(from, to) ? -errno : 0;
}

static int
ss_handle_take(struct ss_handle *file)
{
	int fd = -1;

	if (file != NULL) {
		fd = file->fd;
		file->fd = -1;
	}
	return fd;
}

static struct ss_same
ss_same_of(const struct stat *seen)
{
	return (struct ss_same){ (uint64_t)seen->st_dev, (uint64_t)seen->st_ino };
}

static int
ss_is_same(const struct stat *seen, const struct ss_same *same)
{
	return (uint64_t)seen->st_dev == same->device && (uint64_t)seen->st_ino == same->inode;
}

/* Is it still the file that it was? -EBADF: somebody closed it, or put another in its place. */
static int
ss_still(int fd, const struct ss_same *same, struct stat *ret_seen)
{
	if (fstat(fd, ret_seen))
		return -errno;
	if (SS_GUARDED(LEDGER_OURS) && !ss_is_same(ret_seen, same))
		return -EBADF;
	return 0;
}

/* Close a descriptor of ours, unless it is another's by now. */
static void
ss_close_same(int fd, const struct ss_same *same)
{
	struct stat seen;

	if (fd >= 0 && ss_still(fd, same, &seen) != -EBADF)
		(void)close(fd);
}

/* ------------------------------------------------------------------ torn lines */

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
			return last == '}' ? SS_LINE_TORN_AT_END : SS_LINE_TORN;
	}
	return 0;
}
