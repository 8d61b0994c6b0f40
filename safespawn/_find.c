/* ------------------------------------------------- child: finding the program
 *
 * The same functions serve in the parent (no deadline) and in a child of its own
 * (deadline), which hands the descriptors back over a socket.
 */

static SS_CHILD long
ss_child_copy_text(char *to, size_t room, const char *from)
{
	size_t length = 0;

	while (from[length]) {
		if (length + 1 >= room)
			return -ENAMETOOLONG;
		to[length] = from[length];
		length++;
	}
	to[length] = 0;
	return (long)length;
}

/* Writes the path of a candidate: the directory, unless empty, "/", the name. */
static SS_CHILD int
ss_child_join(char *to, const char *dir, const char *name)
{
	long at = 0;

	if (*dir) {
		if ((at = ss_child_copy_text(to, SS_PATH_BYTES - 1, dir)) < 0)
			return ss_child_error(at);
		if (to[at - 1] != '/')
			to[at++] = '/';
	}
	return ss_child_error(ss_child_copy_text(to + at, SS_PATH_BYTES - (size_t)at, name));
}

static SS_CHILD void
ss_child_number(char *to, int32_t value)
{
	char digits[12];
	int count = 0;

	do {
		digits[count++] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	while (count)
		*to++ = digits[--count];
	*to = 0;
}

SS_INLINE int
ss_child_same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

SS_INLINE long
ss_child_stat(int32_t fd, struct stat *ret_stat)
{
	return ss_sys4(SYS_newfstatat, fd, "", ret_stat, AT_EMPTY_PATH);
}

/*
 * Whether closing a file of this file system is known not to wait for anybody. On
 * others close(2) may be a request to a server (FUSE, NFS, SMB): statfs(2) for the
 * numbers. Overlays are as good as what lies under them, and that is not to be seen.
 */
static SS_CHILD int
ss_child_is_local(int32_t fd)
{
	static const uint32_t local[] = {
	    0xEF53u,     /* ext2, ext3, ext4 */
	    0x58465342u, /* xfs */
	    0x9123683Eu, /* btrfs */
	    0xF2F52010u, /* f2fs */
	    0x2FC12FC1u, /* zfs */
	    0x01021994u, /* tmpfs */
	    0x858458F6u, /* ramfs */
	    0xE0F5E1E2u, /* erofs */
	    0x73717368u, /* squashfs */
	    0x794C7630u, /* overlayfs */
	};
	struct statfs fs;
	unsigned i;

	if (ss_sys2(SYS_fstatfs, fd, &fs) < 0)
		return 0;
	for (i = 0; i < sizeof(local) / sizeof(*local); i++)
		if ((uint32_t)fs.f_type == local[i])
			return 1;
	return 0;
}

static SS_CHILD void
ss_child_link_of(char *to, int32_t fd)
{
	ss_child_number(to + ss_child_copy_text(to, 32, "/proc/self/fd/"), fd);
}

/*
 * Somebody holds a lease: wait until it is broken (fcntl(2), F_SETLEASE). By way of a
 * descriptor, so that nobody can put a FIFO there for us to wait on.
 */
static SS_CHILD long
ss_child_break_lease(const struct ss_found *found, int32_t at)
{
	const long path_fd = ss_sys4(SYS_openat, at, found->path, O_PATH | O_CLOEXEC, 0);
	struct stat st;
	char link[32];
	long fd = -ESTALE;

	if (path_fd < 0)
		return path_fd;
	ss_child_link_of(link, (int32_t)path_fd);
	if (ss_child_stat((int32_t)path_fd, &st) == 0 && S_ISREG(st.st_mode))
		fd = ss_sys4(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC | O_NOCTTY, 0);
	(void)ss_sys1(SYS_close, path_fd); /* waits for nobody */
	return fd;
}

/* Whether the kernel would give a file this name, if no link leads to it: absolute, nothing empty or dotted in it. */
static SS_CHILD int
ss_child_is_plain(const char *path)
{
	const char *at = path;

	while (*at == '/') {
		const char *name = at + 1, *rest;

		for (at = name; *at && *at != '/'; at++)
			;
		for (rest = name; rest < at && *rest == '.'; rest++)
			;
		if (at == name || (rest == at && at - name <= 2))
			return 0;
	}
	return at != path && !*at;
}

/*
 * Opens the candidate. Where its real name is wanted, and no link leads to it, the name that it was opened by
 * is that: to ask /proc for it takes longer than to open it.
 */
static SS_CHILD long
ss_child_open_named(const struct ss_lookup *want, struct ss_found *found, int32_t at, int flags)
{
	const struct ss_open_how how = {(uint64_t)flags, 0, SS_RESOLVE_NO_SYMLINKS};

	if ((want->flags & (SS_DETAILS | SS_WALK)) == SS_DETAILS && ss_child_is_plain(found->path)) {
		const long fd = ss_sys4(SYS_openat2, at, found->path, &how, sizeof(how));

		if (fd >= 0) {
			found->flags |= SS_NAMED;
			return fd;
		}
	}
	return ss_sys4(SYS_openat, at, found->path, flags, 0);
}

/*
 * exe-held (T-18): opens the program for reading and keeps that over the window: a
 * lease must break here, with nothing shared, and no write lease can be taken while
 * the descriptor is open. The report says where that was not possible: a program that
 * may be run but not read, and under a deadline one on a file system where we might
 * not get rid of the descriptor again. An O_PATH descriptor stands for those.
 */
static SS_CHILD long
ss_child_open_held(const struct ss_lookup *want, struct ss_found *found, int32_t at)
{
	const int how = O_RDONLY | O_CLOEXEC | O_NOCTTY;
	long fd;

	if (want->deadline_ns || !SS_GUARDED(EXE_HELD)) {
		fd = ss_sys4(SYS_openat, at, found->path, O_PATH | O_CLOEXEC, 0);
		if (fd < 0 || !SS_GUARDED(EXE_HELD) || !ss_child_is_local((int32_t)fd))
			return fd;
		(void)ss_sys1(SYS_close, fd); /* an O_PATH descriptor waits for nobody */
	}
	fd = ss_child_open_named(want, found, at, how | O_NONBLOCK);
	if (fd == -EWOULDBLOCK)
		fd = ss_child_break_lease(found, at);
	if (fd == -EACCES)
		return ss_sys4(SYS_openat, at, found->path, O_PATH | O_CLOEXEC, 0);
	found->flags |= SS_READABLE;
	return fd;
}

static SS_CHILD int
ss_child_may_execute(int32_t at, int32_t fd, const char *path)
{
	long answer =
	    ss_sys4(SYS_faccessat2, fd, "", X_OK, AT_EMPTY_PATH | SS_AT_EACCESS);

	/* Linux 5.8; before it only the real ids can be asked about. */
	if (answer == -ENOSYS || answer == -EPERM)
		answer = ss_sys3(SYS_faccessat, at, path, X_OK);
	return ss_child_error(answer);
}

static SS_CHILD void
ss_child_describe(struct ss_found *found, const struct stat *st)
{
	found->device = st->st_dev;
	found->inode = st->st_ino;
	found->size = (uint64_t)st->st_size;
	found->mtime_ns = ss_child_ns(&st->st_mtim);
	found->ctime_ns = ss_child_ns(&st->st_ctim);
	found->node.uid = st->st_uid;
	found->node.gid = st->st_gid;
	found->node.mode = st->st_mode;
}

/*
 * Keeps a candidate that was opened, if it may be executed: looked at once more, by the
 * descriptor, in case it was replaced since. path leads to it from at, for old kernels.
 */
static SS_CHILD int
ss_child_keep(struct ss_found *found, int32_t fd, const struct stat *before, int32_t at,
	      const char *path)
{
	struct stat st;
	int error;

	if (!(error = ss_child_error(ss_child_stat(fd, &st))) &&
	    !(error = ss_child_same_file(&st, before) ? 0 : ESTALE))
		error = ss_child_may_execute(at, fd, path);
	if (error) {
		(void)ss_sys1(SYS_close, fd);
		return error;
	}
	ss_child_describe(found, &st);
	found->exe_fd = fd;
	return 0;
}

/* Nothing leads out of the root: no absolute name or link, no "..", no link of /proc. */
static SS_CHILD long
ss_child_open_inside(int32_t root, const char *path)
{
	static const struct ss_open_how how = {O_PATH | O_CLOEXEC, 0,
					       SS_RESOLVE_IN_ROOT | SS_RESOLVE_NO_MAGICLINKS};
	unsigned tries = SS_INSIDE_TRIES;
	long fd;

	/* EAGAIN: something was moved or mounted meanwhile, and ".." may have led out. */
	do
		fd = ss_sys4(SYS_openat2, root, path, &how, sizeof(how));
	while (fd == -EAGAIN && --tries);
	return fd;
}

/*
 * As ss_child_open_held, but by way of a descriptor of the file: no FIFO can be put in its
 * place, so a lease is waited for at once. Returns that descriptor itself where there can
 * be no other: the file may not be read, or there is no /proc.
 */
static SS_CHILD long
ss_child_hold_inside(const struct ss_lookup *want, struct ss_found *found, int32_t path_fd,
		     const char *link)
{
	long fd;

	if (!SS_GUARDED(EXE_HELD) || (want->deadline_ns && !ss_child_is_local(path_fd)))
		return path_fd;
	fd = ss_sys4(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC | O_NOCTTY, 0);
	if (fd == -EACCES || fd == -ENOENT)
		return path_fd;
	found->flags |= SS_READABLE;
	return fd;
}

/* Opens the candidate in found->path, which is a name inside the root. */
static SS_CHILD int
ss_child_open_candidate_inside(const struct ss_lookup *want, struct ss_found *found, int32_t root)
{
	const long path_fd = ss_child_open_inside(root, found->path);
	struct stat before;
	char link[32];
	long fd;

	if (path_fd < 0)
		return ss_child_error(path_fd);
	found->flags = 0;
	ss_child_link_of(link, (int32_t)path_fd);
	fd = ss_child_stat((int32_t)path_fd, &before);
	if (!fd)
		fd = S_ISREG(before.st_mode)
			 ? ss_child_hold_inside(want, found, (int32_t)path_fd, link)
			 : -EACCES; /* as execve */
	if (fd != path_fd)
		(void)ss_sys1(SYS_close, path_fd); /* waits for nobody */
	if (fd < 0)
		return ss_child_error(fd);
	ss_child_link_of(link, (int32_t)fd);
	return ss_child_keep(found, (int32_t)fd, &before, AT_FDCWD, link);
}

/*
 * Opens the candidate in found->path, as execve would find it. It is looked at before
 * it is opened, so that no device and no FIFO is opened for its side effects.
 */
static SS_CHILD int
ss_child_open_candidate(const struct ss_lookup *want, struct ss_found *found, int32_t at)
{
	const int32_t root = found->root_fd >= 0 ? found->root_fd : want->root_fd;
	struct stat before;
	long fd;

	if (root >= 0)
		return ss_child_open_candidate_inside(want, found, root);
	fd = ss_sys4(SYS_newfstatat, at, found->path, &before, 0);
	if (fd < 0)
		return ss_child_error(fd);
	if (!S_ISREG(before.st_mode))
		return EACCES; /* what execve says of anything but a regular file */
	found->flags = 0;
	if ((fd = ss_child_open_held(want, found, at)) < 0)
		return ss_child_error(fd);
	return ss_child_keep(found, (int32_t)fd, &before, at, found->path);
}

/* As execvp(3): a missing candidate is passed over, a forbidden one remembered. */
static SS_CHILD int
ss_child_search(const struct ss_lookup *want, struct ss_found *found, int32_t at)
{
	const char *dir = want->dirs, *end = want->dirs + want->dirs_bytes;
	int refused = 0, error;
	uint32_t i;

	if (!(want->flags & SS_SEARCH)) {
		error = ss_child_join(found->path, "", want->name);
		return error ? error : ss_child_open_candidate(want, found, at);
	}
	for (i = 0; i < want->ndirs && dir < end; i++) {
		if (!(error = ss_child_join(found->path, dir, want->name)))
			error = ss_child_open_candidate(want, found, at);
		if (!error)
			return 0;
		if (error == EACCES)
			refused = error;
		else if (error != ENOENT && error != ENOTDIR && error != ENAMETOOLONG &&
			 error != ELOOP)
			return error;
		while (dir < end && *dir++)
			;
	}
	return refused ? refused : ENOENT;
}

static SS_CHILD int
ss_child_read_head(struct ss_found *found, int32_t fd)
{
	const long bytes = ss_sys4(SYS_pread64, fd, found->head, SS_HEAD_BYTES, 0);

	if (bytes < 0)
		return ss_child_error(bytes);
	found->head_bytes = (uint32_t)bytes;
	return 0;
}

/* Owner and mode of every directory above the program, from the root down. */
static SS_CHILD int
ss_child_walk_parents(struct ss_found *found)
{
	char *at = found->real;
	struct stat st;
	long answer;

	for (; *at; at++) {
		char *end = at == found->real ? at + 1 : at;
		const char kept = *end;

		if (*at != '/')
			continue;
		if (found->nparents == SS_PARENTS)
			return ELOOP;
		*end = 0;
		answer = ss_sys4(SYS_newfstatat, AT_FDCWD, found->real, &st, AT_SYMLINK_NOFOLLOW);
		*end = kept;
		if (answer < 0)
			return ss_child_error(answer);
		found->parents[found->nparents].uid = st.st_uid;
		found->parents[found->nparents].gid = st.st_gid;
		found->parents[found->nparents++].mode = st.st_mode;
	}
	return 0;
}

/* The name the kernel has for the descriptor; left empty when /proc is missing. */
static SS_CHILD void
ss_child_canonical(struct ss_found *found)
{
	char link[32];
	long bytes;

	if (found->flags & SS_NAMED) {
		(void)ss_child_copy_text(found->real, SS_PATH_BYTES, found->path);
		return;
	}
	ss_child_link_of(link, found->exe_fd);
	bytes = ss_sys4(SYS_readlinkat, AT_FDCWD, link, found->real, SS_PATH_BYTES - 1);
	found->real[bytes > 0 ? bytes : 0] = 0;
}

/* Makes sure that the name leads to the file, and looks at everything above it. */
static SS_CHILD int
ss_child_walk(const struct ss_lookup *want, struct ss_found *found)
{
	struct stat st;

	if (!(want->flags & SS_WALK))
		return 0;
	if (found->real[0] == '/' &&
	    ss_sys4(SYS_newfstatat, AT_FDCWD, found->real, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    st.st_dev == found->device && st.st_ino == found->inode)
		return ss_child_walk_parents(found);
	found->real[0] = 0; /* unlinked, moved, or not in our mount namespace */
	return 0;
}

/* Under a deadline the bytes to hash are fetched here, where waiting is bounded. */
static SS_CHILD int
ss_child_copy(const struct ss_lookup *want, struct ss_found *found, int32_t from)
{
	int64_t left = (int64_t)found->size;
	off_t at = 0;
	long fd, bytes = 1;

	if (!(want->flags & SS_COPY))
		return 0;
	if (left > SS_COPY_MAX)
		return EFBIG;
	fd = ss_sys2(SYS_memfd_create, "safespawn-copy", SS_MFD_CLOEXEC | SS_MFD_NOEXEC_SEAL);
	if (fd == -EINVAL) /* before Linux 6.3 */
		fd = ss_sys2(SYS_memfd_create, "safespawn-copy", SS_MFD_CLOEXEC);
	if (fd < 0)
		return ss_child_error(fd);
	found->copy_fd = (int32_t)fd;
	while (left > 0 && (bytes = ss_sys4(SYS_sendfile, fd, from, &at, left)) > 0)
		left -= bytes;
	return ss_child_error(bytes);
}

/*
 * Reads what is wanted of the file's content, through the descriptor that is held or,
 * where that is an O_PATH one, through another that this child takes with it. A file
 * that may not be read has no content for us: the caller decides whether it matters.
 */
static SS_CHILD int
ss_child_read(const struct ss_lookup *want, struct ss_found *found)
{
	char link[32];
	long fd = found->exe_fd;
	int error;

	if (!(found->flags & SS_READABLE) && !want->deadline_ns)
		return 0;
	if (!(found->flags & SS_READABLE)) {
		ss_child_link_of(link, found->exe_fd);
		fd = ss_sys4(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC | O_NOCTTY, 0);
		if (fd < 0)
			return fd == -EACCES ? 0 : ss_child_error(fd);
	}
	if (!(error = ss_child_read_head(found, (int32_t)fd)))
		error = ss_child_copy(want, found, (int32_t)fd);
	return error;
}

static SS_CHILD int
ss_child_open_dir(const char *path, int32_t *ret_fd)
{
	long fd;

	if (!path)
		return 0;
	fd = ss_sys4(SYS_openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd < 0)
		return ss_child_error(fd);
	*ret_fd = (int32_t)fd;
	return 0;
}

/* One that was given as a descriptor is said to be no directory here, not by the search. */
static SS_CHILD int
ss_child_open_root(const struct ss_lookup *want, struct ss_found *found)
{
	struct stat st;
	int error = ss_child_open_dir(want->root, &found->root_fd);

	if (error || want->root_fd < 0)
		return error;
	error = ss_child_error(ss_child_stat(want->root_fd, &st));
	return error || S_ISDIR(st.st_mode) ? error : ENOTDIR;
}

/* Fills found; on an error found->stage and found->error say which. */
static SS_CHILD int
ss_child_find(const struct ss_lookup *want, struct ss_found *found)
{
	int32_t at;
	int error;

	found->stage = SS_STAGE_ROOT_OPEN;
	if ((error = SS_HOOK(SS_STAGE_ROOT_OPEN)) || (error = ss_child_open_root(want, found)))
		goto fail;
	found->stage = SS_STAGE_CWD_OPEN;
	if ((error = SS_HOOK(SS_STAGE_CWD_OPEN)) ||
	    (error = ss_child_open_dir(want->cwd, &found->cwd_fd)))
		goto fail;
	at = found->cwd_fd >= 0 ? found->cwd_fd : want->cwd_fd >= 0 ? want->cwd_fd : AT_FDCWD;
	found->stage = SS_STAGE_LOOKUP;
	if ((error = SS_HOOK(SS_STAGE_LOOKUP)) || (error = ss_child_search(want, found, at)))
		goto fail;
	if (!(want->flags & SS_DETAILS))
		return 0;
	ss_child_canonical(found);
	if ((error = ss_child_walk(want, found)) || (error = ss_child_read(want, found)))
		goto fail;
	return 0;
fail:
	found->error = error;
	return error;
}

/* Hands what was opened to the parent: SCM_RIGHTS, unix(7). */
static SS_CHILD int
ss_child_hand_over(const struct ss_search *search)
{
	const struct ss_found *found = search->found;
	union {
		struct cmsghdr header;
		unsigned char room[CMSG_SPACE(SS_FOUND_FDS * sizeof(int32_t))];
	} control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	unsigned char dot = '.';
	struct iovec iov = {&dot, 1};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control};
	int32_t fds[SS_FOUND_FDS] = {found->exe_fd, found->cwd_fd, found->copy_fd, found->root_fd};
	int32_t *out = (int32_t *)(void *)CMSG_DATA(&control.header);
	unsigned count = 0, i;

	for (i = 0; i < SS_FOUND_FDS; i++)
		if (fds[i] >= 0)
			out[count++] = fds[i];
	control.header.cmsg_len = (unsigned)CMSG_LEN(count * sizeof(int32_t));
	message.msg_controllen = (unsigned)CMSG_SPACE(count * sizeof(int32_t));
	return ss_child_error(ss_sys3(SYS_sendmsg, search->socket, &message, MSG_NOSIGNAL));
}

/* The child of ss_lookup; signals stay blocked until it exits. */
static SS_CHILD void
ss_child_lookup(void *argument)
{
	const struct ss_search *search = argument;
	int error;

	ss_child_stage(search->report, SS_STAGE_BIRTH);
	if ((error = ss_child_arm(search->report)) ||
	    (error = ss_child_creds_agree(&search->want.expected)))
		goto fail;
	ss_child_stage(search->report, SS_STAGE_LOOKUP);
	if (!ss_child_find(&search->want, search->found) && (error = ss_child_hand_over(search)))
		goto fail;
	ss_child_stage(search->report, SS_STAGE_EXEC); /* all is told: dying is all that is left */
	ss_child_exit();
fail:
	search->report->error = error;
	ss_child_exit();
}
