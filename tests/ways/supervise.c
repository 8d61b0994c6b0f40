/*
 * The supervisor of a process under a seccomp filter (SECCOMP_RET_USER_NOTIF, seccomp_unotify(2)):
 * every system call of it and its children comes here first. One of them gets an errno instead of
 * being made, one is held until its process dies, all others go on. Called from Python by
 * tests/injecting.py; one thread.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1ul << 5) /* Linux 5.19 */
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64) /* Linux 6.6 */
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1ul << 0)
#endif
#ifdef __x86_64__
#define ARCH AUDIT_ARCH_X86_64
#else
#define ARCH AUDIT_ARCH_AARCH64
#endif

#define MARK 5000      /* no system call has this number: what the worker says to us */
#define CALLS_MAX 20000
#define PIDS_MAX 4096
#define HELPERS_MAX 16
#define TEXT 96

/* Whose call it is, told by the program that its process runs. */
enum role { PARENT, CHILD, LAUNCHER, HELPER, HELPER_CHILD, PROGRAM, ROLES };

struct call {
	int32_t pid, role, number;
	uint32_t ordinal; /* among those of its role and number, from 1 */
	uint64_t args[6];
	int64_t watched;  /* bytes in the watched file by then */
	char text[TEXT];  /* the path that it is about */
};

struct seen {
	int32_t pid, role;
};

struct supervisor {
	int32_t listener, worker, control; /* control: our end of the worker's socket */
	/* What is to happen: to which call, which errno; -1: it is held instead. at 0: nothing. */
	int32_t role, number, error;
	uint32_t at, fired;
	int32_t hold_role, hold_number; /* calls that are held as well; number -1 for none */
	int32_t recording;
	int32_t timeout_ms;
	int32_t waits; /* the helper has nothing more to do: it waits for a request, without a time-out */
	uint32_t ncalls, npids, nhelpers, programs;
	uint64_t mark_id;
	int32_t helpers[HELPERS_MAX];
	uint32_t ordinals[ROLES][512];
	char python[256], launcher[256], helper[256], watched[256];
	struct call calls[CALLS_MAX];
	struct seen pids[PIDS_MAX];
};

int
supervise_size(void)
{
	return (int)sizeof(struct supervisor);
}

/* For the worker: returns the listener. Calls on `control` stay unseen, and so do returns from handlers. */
int
supervise_install(int control)
{
#define ON_CONTROL(name)                                                                       \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),                 \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 3),                                 \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),            \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)control, 0, 1),                          \
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
	struct sock_filter code[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	    ON_CONTROL(sendmsg),
	    ON_CONTROL(read),
	    ON_CONTROL(write),
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(*code), code};

	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			    SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
}

static int
is_helper(const struct supervisor *s, int32_t pid)
{
	for (uint32_t i = 0; i < s->nhelpers && i < HELPERS_MAX; i++)
		if (s->helpers[i] == pid)
			return 1;
	return 0;
}

static struct seen *
entry_of(struct supervisor *s, int32_t pid)
{
	for (uint32_t i = s->npids; i-- > 0;)
		if (s->pids[i].pid == pid)
			return &s->pids[i];
	return NULL;
}

static int32_t
role_by_program(const struct supervisor *s, int32_t pid, int is_new)
{
	char link[64], path[256];
	ssize_t bytes;

	(void)snprintf(link, sizeof(link), "/proc/%d/exe", pid);
	if ((bytes = readlink(link, path, sizeof(path) - 1)) < 0)
		return -1; /* it has ended */
	path[bytes] = '\0';
	if (!strcmp(path, s->launcher))
		return LAUNCHER;
	if (!strcmp(path, s->helper)) /* the helper has come to it by exec, its children were born with it */
		return is_helper(s, pid) || !is_new ? HELPER : HELPER_CHILD;
	if (strcmp(path, s->python))
		return PROGRAM;
	(void)snprintf(link, sizeof(link), "/proc/%d/task/%d", s->worker, pid);
	return access(link, F_OK) ? CHILD : PARENT;
}

static int32_t
role_of(struct supervisor *s, int32_t pid)
{
	struct seen *entry = entry_of(s, pid);
	int32_t role = role_by_program(s, pid, entry == NULL || entry->role == HELPER_CHILD);

	if (role < 0)
		return entry ? entry->role : -1;
	if (role == HELPER && !is_helper(s, pid)) /* one that was lost long ago is forgotten */
		s->helpers[s->nhelpers++ % HELPERS_MAX] = pid;
	if (role == PROGRAM && (entry == NULL || entry->role != PROGRAM))
		s->programs++;
	if (entry == NULL && s->npids < PIDS_MAX) {
		entry = &s->pids[s->npids++];
		entry->pid = pid;
	}
	if (entry)
		entry->role = role;
	return role;
}

/* Which argument is a path; -1 for none. */
static int
path_argument(int number)
{
	switch (number) {
	case SYS_openat: case SYS_newfstatat: case SYS_readlinkat: case SYS_faccessat: case SYS_faccessat2:
	case SYS_execveat: case SYS_openat2: case SYS_unlinkat: case SYS_mkdirat: case SYS_renameat2: case SYS_statx:
		return 1;
	case SYS_execve: case SYS_chdir: case SYS_chroot: case SYS_statfs: case SYS_memfd_create:
		return 0;
#ifdef SYS_open
	case SYS_open: case SYS_stat: case SYS_lstat: case SYS_readlink: case SYS_access: case SYS_rename:
	case SYS_unlink: case SYS_mkdir: case SYS_rmdir:
		return 0;
#endif
	default:
		return -1;
	}
}

static void
record(struct supervisor *s, const struct seccomp_notif *seen, int32_t role, uint32_t ordinal)
{
	struct call *call;
	struct stat st;
	int at;

	if (s->ncalls >= CALLS_MAX)
		return;
	call = &s->calls[s->ncalls++];
	memset(call, 0, sizeof(*call));
	call->pid = (int32_t)seen->pid;
	call->role = role;
	call->number = seen->data.nr;
	call->ordinal = ordinal;
	memcpy(call->args, seen->data.args, sizeof(call->args));
	call->watched = s->watched[0] && !stat(s->watched, &st) ? st.st_size : -1;
	if ((at = path_argument(seen->data.nr)) >= 0) {
		struct iovec to = {call->text, TEXT - 1}, from = {(void *)(uintptr_t)seen->data.args[at], TEXT - 1};

		/* It may lie at the end of a mapping: then up to there. */
		if (process_vm_readv((pid_t)seen->pid, &to, 1, &from, 1, 0) < 0) {
			from.iov_len = 4096 - ((uintptr_t)from.iov_base & 4095);
			if (from.iov_len < TEXT)
				(void)process_vm_readv((pid_t)seen->pid, &to, 1, &from, 1, 0);
		}
	}
}

static int
answer(const struct supervisor *s, uint64_t id, int error, int64_t value, int goes_on)
{
	struct seccomp_notif_resp said = {id, value, -error, goes_on ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0};

	return ioctl(s->listener, SECCOMP_IOCTL_NOTIF_SEND, &said) ? -errno : 0;
}

/* A close that fails has closed all the same (close(2)): what is open there is then /dev/null, and nobody's. */
static void
let_go(const struct supervisor *s, const struct seccomp_notif *seen)
{
	const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct seccomp_notif_addfd put = {seen->id, SECCOMP_ADDFD_FLAG_SETFD, (uint32_t)null,
					  (uint32_t)seen->data.args[0], O_CLOEXEC};

	if (null < 0)
		return;
	(void)ioctl(s->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &put); /* it may have been killed meanwhile */
	(void)close(null);
}

static void
judge(struct supervisor *s, const struct seccomp_notif *seen)
{
	const int32_t role = role_of(s, (int32_t)seen->pid);
	const int32_t number = seen->data.nr;
	uint32_t ordinal = 0;

	if (role >= 0 && number >= 0 && number < 512)
		ordinal = ++s->ordinals[role][number];
	if (s->recording && role >= 0)
		record(s, seen, role, ordinal);
	if (role == HELPER)
		s->waits = number == SYS_ppoll && !seen->data.args[2];
	if (s->at && role == s->role && number == s->number && ordinal == s->at) {
		s->fired = 1;
		if (number == SYS_close)
			let_go(s, seen);
		(void)answer(s, seen->id, s->error, 0, 0); /* it may have been killed meanwhile */
	} else if (s->hold_number >= 0 && role == s->hold_role && number == s->hold_number) {
		return; /* until it is killed */
	} else {
		(void)answer(s, seen->id, 0, 0, 1);
	}
}

/*
 * Serves until the worker marks something (that, and it waits for supervise_go) or has written to
 * its socket (0). Below 0: nothing came in time, or all have ended.
 */
int64_t
supervise(struct supervisor *s)
{
	for (;;) {
		struct pollfd polled[] = {{s->listener, POLLIN, 0}, {s->control, POLLIN, 0}};
		struct seccomp_notif seen;
		const int ready = poll(polled, 2, s->timeout_ms);

		if (ready == 0)
			return -ETIMEDOUT;
		if (ready > 0 && (polled[0].revents & POLLHUP))
			return -ESRCH;
		if (ready > 0 && !(polled[0].revents & POLLIN))
			return 0;
		memset(&seen, 0, sizeof(seen));
		if (ready < 0 || ioctl(s->listener, SECCOMP_IOCTL_NOTIF_RECV, &seen)) {
			if (errno == EINTR || errno == ENOENT) /* it was killed before we saw it */
				continue;
			return -errno;
		}
		if (seen.data.nr == MARK) {
			s->mark_id = seen.id;
			return (int64_t)seen.data.args[0];
		}
		judge(s, &seen);
	}
}

/* Of the two sides one waits for the other all the time: they need not be on two processors. Older kernels refuse. */
void
supervise_together(const struct supervisor *s)
{
	(void)ioctl(s->listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
}

/* Lets the worker go on from what it said. */
int
supervise_go(struct supervisor *s)
{
	return answer(s, s->mark_id, 0, 0, 0);
}

/* Forgets what was seen, but not who is a helper. */
void
supervise_forget(struct supervisor *s)
{
	s->ncalls = s->npids = s->programs = s->fired = 0;
	memset(s->ordinals, 0, sizeof(s->ordinals));
}
