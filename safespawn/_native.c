/*
 * The spawn window: from the clone of a child until it has run execve or died.
 *
 * On the fast path the child shares our memory meanwhile, and that is where all
 * the hazards come from. Each has its cure here; the threats and guards in
 * brackets are those of threat-model.md and guards.py.
 *
 *  1. A signal handler of the application runs in the child, on our data. All 64
 *     signals are blocked by raw system call before the clone (libc leaves 32 and
 *     33 open); handlers are gone (CLONE_CLEAR_SIGHAND, or a loop in the child)
 *     before the mask is restored, which is the last act before execve.
 *     [T-01 signals-blocked]
 *  2. Credentials change while memory is shared. Whoever asks for shared memory
 *     names the proof that nothing can change them; it is looked at once more
 *     after the signals are blocked, and the credential lock is held until the
 *     child has left (_credlock.c). A child that is to change its own
 *     credentials never shares. [T-02 alone-or-apart, T-19 drop-apart]
 *  3. A child that never reaches execve. With a deadline nobody sleeps in vfork:
 *     we wait on a futex that the kernel releases at exec or exit, then kill by
 *     pidfd. So it is for children that start side by side (_batch.c). The same wait serves the lookup of the program, and every child that
 *     becomes another user, who could stop it. [T-03 window-bounded]
 *  4. Inputs are edited during the window. Everything is copied into a private
 *     mapping that is read-only while the child lives. [T-04 inputs-sealed]
 *  5. A credential change escaped the proof, or a forked child was born with old
 *     ones. The child compares its ids and capabilities with those that the
 *     decision rested on, first and last thing, and the epoch of the lock right
 *     before execve. [T-05 creds-agree, T-23 epoch-agrees]
 *  6. The child overruns its stack. It has its own, with a guard page on either
 *     side, not executable, not dumped. [T-06 stack-guarded]
 *  7. errno and all thread-local storage are ours. The child makes raw system
 *     calls only, allocates nothing and takes no lock; all its code is in the
 *     section .text.ss_child, and a test lists what that refers to.
 *     [T-07 child-raw-only]
 *  8. Descriptors leak. The child marks everything close-on-exec but the targets
 *     of the plan; sources that are also targets are lifted out of the way first.
 *     [T-08 fds-closed]
 *  9. Pids are used again. After the clone everything goes by pidfd.
 *     [T-09 pidfd-only]
 * 10. Nobody knows what happened. The child writes stage and errno to memory that
 *     both sides see, and a child killed before execve is told apart from a
 *     program that ran. [T-10 outcome-told]
 *
 * The stack outlives the child's use of it: with CLONE_VFORK the kernel keeps us
 * asleep until then, without it we wait or kill. A child that SIGKILL could not
 * end yet (it sleeps in the kernel) never runs another instruction of its own, but
 * the kernel still reads its robust list when it dies: its memory is given up.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "_plan.h"

#include "_clone.h"

#define SS_API static

/* ---------------------------------------------------------------- constants */

#define SS_STACK_BYTES (64u << 10)   /* deepest use seen: under 12 KiB */
#define SS_KEEP_BYTES (512u << 10)   /* an arena above this is not kept */
#define SS_GRACE_NS 1000000000ll     /* from SIGKILL until we stop waiting */
#define SS_SETTLE_NS 50000000ll      /* for a task that has all but left our memory, */
#define SS_SETTLE_SPIN_NS 2000000ll  /* and how long we look without a pause */
#define SS_SETTLE_PAUSE_NS 200000l   /* then it waits for a processor: leave it one */
#define SS_COPY_MAX (1ll << 30)      /* of a program copied to be hashed */
#define SS_PROC_MAGIC 0x9fa0         /* PROC_SUPER_MAGIC, magic.h */
#define SS_P_PIDFD 3                 /* waitid(2), Linux 5.4 */
#define SS_EXITING 0x4u              /* PF_EXITING and */
#define SS_FORKNOEXEC 0x40u          /* PF_FORKNOEXEC of linux/sched.h */
#define SS_FUTEX_WAIT_BITSET 9       /* futex(2) */
#define SS_FUTEX_ALL 0xffffffffu     /* FUTEX_BITSET_MATCH_ANY */
#define SS_OWNER_DIED 0x40000000u    /* FUTEX_OWNER_DIED */
#define SS_MADV_WIPEONFORK 18
#define SS_AT_EACCESS 0x200
#define SS_MFD_CLOEXEC 1u
#define SS_MFD_ALLOW_SEALING 2u
#define SS_MFD_NOEXEC_SEAL 8u
#define SS_SLICE_NS 50000000ll       /* of a bounded wait: see ss_await_release */
#define SS_INSIDE_TRIES 128u         /* of a lookup in a root: see ss_child_open_inside */
#ifdef __GLIBC__
#define SS_SETID_SIGNAL 33 /* SIGSETXID of glibc's nptl */
#else
#define SS_SETID_SIGNAL 34 /* SIGSYNCCALL of musl */
#endif

enum {
	SS_EXEC = 1,
	SS_FAILED,
	SS_KILLED_BEFORE_EXEC,
	SS_RACE_DETECTED,
	SS_TIMED_OUT,
	SS_NOT_ALONE, /* what was to be proved does not hold; nothing was started */
	SS_PREEMPTED, /* killed before execve, so that a credential change need not wait */
};

enum {
	SS_USED_CLONE3 = 1,
	SS_UNCONFIRMED = 2, /* nobody could say whether execve was reached */
	SS_STUCK = 4,       /* killed, but asleep in the kernel still */
	SS_WAS_PARKED = 8,  /* the helper had made it ahead */
};

enum { SS_WAIT_END, SS_WAIT_NOHANG, SS_WAIT_LOOK };

enum { SS_TRY_CLONE3, SS_TRY_CLOSE_RANGE, SS_TRY_FACCESSAT2, SS_TRY_MOVE_PAGES };

enum { SS_PATH_BYTES = 4096, SS_HEAD_BYTES = 256, SS_PARENTS = 64 };

enum { SS_FOUND_FDS = 4 }; /* descriptors that a lookup can open */

/* -------------------------------------------------------------------- types */

struct ss_facts {
	struct ss_creds creds;
	int32_t alone; /* 1, 0, or a negative errno */
	uint32_t tasks, open_std;
	int32_t lock, lock_error; /* when we are not alone: SS_LOCK_... and what goes with it */
	int64_t lock_detail;
};

struct ss_result {
	int32_t outcome, stage, error, pid, pidfd;
	uint32_t flags;
	int32_t exit_code, exit_status; /* si_code and si_status, when reaped here */
	int64_t window_ns;
	int32_t why; /* the helper was not asked: SS_DIFFERS_... of _standing.c */
};

struct ss_node {
	uint32_t uid, gid, mode;
};

/*
 * What to look up: one name, or (SS_SEARCH) that name in each of ndirs. With a root, which
 * is a path (root) or a descriptor (root_fd, else -1), all names are those inside it.
 */
struct ss_lookup {
	const char *name, *dirs, *cwd, *root;
	uint64_t dirs_bytes;
	uint32_t ndirs;
	int32_t cwd_fd, root_fd;
	uint64_t flags;
	int64_t deadline_ns;
	struct ss_creds expected;
};

struct ss_found {
	int32_t stage, error, exe_fd, cwd_fd, copy_fd, root_fd;
	uint32_t flags, head_bytes, nparents;
	uint64_t device, inode, size;
	int64_t mtime_ns, ctime_ns;
	struct ss_node node;
	char path[SS_PATH_BYTES];
	char real[SS_PATH_BYTES];
	unsigned char head[SS_HEAD_BYTES];
	struct ss_node parents[SS_PARENTS];
};

/* A child to be reaped, and its end: pid is 0 until that is known, -1 if it never will be. */
struct ss_exit {
	int32_t pidfd, pid, code, status;
	int64_t utime_us, stime_us, maxrss_kib, minflt, majflt, inblock, oublock, nvcsw, nivcsw;
};

/* [guard][stack][guard][work][guard][plan][guard]; sizes are whole pages. */
struct ss_arena {
	unsigned char *base, *stack, *work, *plan;
	size_t bytes, work_bytes, plan_bytes;
};

struct ss_search {
	struct ss_lookup want;
	struct ss_report *report;
	struct ss_found *found;
	int32_t socket;
};

/* ==================================================================== child
 *
 * From here to the next double line: code that may run in a child sharing our
 * memory. No lock, no allocation, no stdio, no libc call, no errno, no write
 * outside the report, the scratch area and its own stack.
 */

#include "_child.c"

#include "_spawned.c"

#include "_find.c"

/* =================================================================== parent */

static int64_t
ss_clock_ns(clockid_t clock)
{
	struct timespec now;

	(void)clock_gettime(clock, &now); /* cannot fail with the two clocks that we ask */
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static int64_t
ss_now(void)
{
	return ss_clock_ns(CLOCK_MONOTONIC);
}

static size_t
ss_pages(size_t bytes)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (bytes + page - 1) / page * page;
}

SS_API const char *
ss_stage_name(int32_t stage)
{
	static const char *const names[] = {
#define SS_STAGE_TEXT(name, text) text,
	    SS_STAGES(SS_STAGE_TEXT)
#undef SS_STAGE_TEXT
	};

	return stage >= 0 && stage < SS_STAGE_COUNT ? names[stage] : NULL;
}

/*
 * The kernel's word on whether others use our memory. A child that has just run execve,
 * and a thread that has just ended, are still counted for a moment: give them that. A
 * sandbox that refuses the call (EPERM, ENOSYS) has said nothing.
 */
static int
ss_is_shared(void)
{
	const struct timespec pause = {0, SS_SETTLE_PAUSE_NS};
	const int64_t since = ss_now();
	int64_t waited;

	while (ss_sys1(SYS_unshare, SS_CLONE_VM) == -EINVAL) {
		if ((waited = ss_now() - since) >= SS_SETTLE_NS)
			return 1;
		if (waited < SS_SETTLE_SPIN_NS)
			(void)ss_sys0(SYS_sched_yield); /* cannot fail */
		else
			(void)ss_sys2(SYS_nanosleep, &pause, NULL); /* a signal ends it early */
	}
	return 0;
}

/* How many tasks we are: st_nlink of /proc/self/task less two. Returns 0 or an errno. */
static int
ss_count_tasks(uint32_t *ret_tasks)
{
	const long fd = ss_sys4(SYS_openat, AT_FDCWD, "/proc/self/task", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	struct statfs fs;
	struct stat st;
	long answer;

	if (fd < 0)
		return ss_child_error(fd);
	if (!(answer = ss_sys2(SYS_fstatfs, fd, &fs)) && !(answer = ss_child_stat((int32_t)fd, &st)) &&
	    (fs.f_type != SS_PROC_MAGIC || st.st_nlink < 3))
		answer = -ENOTSUP; /* something else is mounted there */
	(void)ss_sys1(SYS_close, fd); /* an O_PATH descriptor: there is nothing to lose */
	if (!answer)
		*ret_tasks = (uint32_t)st.st_nlink - 2;
	return ss_child_error(answer);
}

/*
 * Whether nobody else runs on this memory. Two witnesses: the number of tasks
 * (st_nlink of /proc/self/task less two, which costs no listing), and the kernel's
 * own test behind unshare(CLONE_VM) (lib/is_single_threaded.c), which also sees
 * other processes on our memory. A sandbox may silence the second; then the first
 * decides. Returns 1 or 0, or a negative errno when nothing can be told.
 */
static int
ss_alone(uint32_t *ret_tasks)
{
	const int error = ss_count_tasks(ret_tasks);

	return error ? -error : *ret_tasks == 1 && !ss_is_shared();
}

/* Whether other threads run, or nobody can tell. Touches no errno. */
static int
ss_has_others(void)
{
	uint32_t tasks;

	return ss_count_tasks(&tasks) != 0 || tasks != 1;
}

/* Whether the child behind a pidfd is dead. Touches no errno. */
static int
ss_has_ended(int32_t pidfd)
{
	struct pollfd poll = {pidfd, POLLIN, 0};
	const struct timespec now = {0, 0};

	return ss_sys5(SYS_ppoll, &poll, 1, &now, NULL, 8) == 1;
}

#include "_seal.c"

#include "_credlock.c"

#include "_wrappers.c"

#include "_interpose.c"

#include "_tasks.c"

#include "_locked.c"

#include "_foreign.c"

#include "_landlock.c"

static void
ss_look_at_lock(struct ss_facts *facts)
{
	struct ss_lock_facts lock;

	if (facts->alone == 1) { /* the proof is not needed, but the child compares the epoch */
		facts->creds.epoch = ss_epoch_of(ss_lock_ours());
		return;
	}
	facts->lock = ss_lock_look(&lock);
	facts->lock_error = lock.error;
	facts->lock_detail = lock.detail;
	/* One task, and not alone: whoever that is, the wrappers take it for a vfork child. */
	if (facts->alone < 0 || facts->tasks == 1)
		facts->lock = SS_LOCK_STRANGER;
	facts->creds.epoch = lock.epoch;
}

/*
 * What a decision rests on, in one call: the credentials of the calling thread (they
 * belong to threads, not to processes), whether we are alone, which of 0, 1 and 2
 * are open and for programs: a file that a daemon without them opened, and that is
 * close-on-exec, may lie there (T-08). Here the kernel's word is enough that we are
 * alone; the window asks both witnesses. Returns 0, or a negative errno when the credentials cannot be read.
 */
SS_API int
ss_look(struct ss_facts *ret_facts)
{
	struct ss_facts facts;
	int fd;

	memset(&facts, 0, sizeof(facts));
	facts.alone = 1;
	facts.tasks = 1;
	if (ss_sys1(SYS_unshare, SS_CLONE_VM) != 0)
		facts.alone = ss_alone(&facts.tasks);
	for (fd = 0; fd < 3; fd++)
		if (ss_sys3(SYS_fcntl, fd, F_GETFD, 0) == 0)
			facts.open_std |= 1u << fd;
	/* The epoch first: a change after it is one after the decision. */
	ss_look_at_lock(&facts);
	if ((fd = ss_child_read_creds(&facts.creds)))
		return -fd;
	*ret_facts = facts;
	return 0;
}

/* -------------------------------------------------------------------- arena */

SS_API void
ss_arena_free(struct ss_arena *arena)
{
	if (arena->base)
		(void)munmap(arena->base, arena->bytes); /* our own mapping */
	memset(arena, 0, sizeof(*arena));
}

/* stack-guarded (T-06): the gaps between the areas are never accessible. */
static int
ss_arena_open(struct ss_arena *arena, size_t stack_bytes, int shared)
{
	const int how = MAP_ANONYMOUS | MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE);
	const int open = PROT_READ | PROT_WRITE;

	if (!SS_GUARDED(STACK_GUARDED) && mprotect(arena->base, arena->bytes, open))
		return -errno;
	if (mprotect(arena->stack, stack_bytes, open) ||
	    mprotect(arena->plan, arena->plan_bytes, open) ||
	    mmap(arena->work, arena->work_bytes, open, how, -1, 0) == MAP_FAILED)
		return -errno;
	return 0;
}

static int
ss_arena_map(struct ss_arena *arena, size_t work_bytes, size_t plan_bytes, int shared)
{
	const size_t page = ss_pages(1), stack_bytes = ss_pages(SS_STACK_BYTES);
	int error;

	memset(arena, 0, sizeof(*arena));
	arena->work_bytes = ss_pages(work_bytes);
	arena->plan_bytes = ss_pages(plan_bytes);
	arena->bytes = 4 * page + stack_bytes + arena->work_bytes + arena->plan_bytes;
	arena->base = mmap(NULL, arena->bytes, PROT_NONE,
			   MAP_ANONYMOUS | MAP_PRIVATE | MAP_NORESERVE, -1, 0);
	if (arena->base == MAP_FAILED) {
		arena->base = NULL;
		return -errno;
	}
	arena->stack = arena->base + page;
	arena->work = arena->stack + stack_bytes + page;
	arena->plan = arena->work + arena->work_bytes + page;
	if ((error = ss_arena_open(arena, stack_bytes, shared))) {
		ss_arena_free(arena);
		return error;
	}
	/* Advice only: a kernel that cannot do it takes no safety from the window. */
	(void)madvise(arena->base, arena->bytes, MADV_DONTDUMP);
	if (!shared)
		(void)madvise(arena->base, arena->bytes, SS_MADV_WIPEONFORK);
	return 0;
}

/*
 * Makes the caller's arena large enough. Without shared memory the child has its
 * own copy of everything, so its report needs a shared page, made for this spawn
 * only: a page that outlived it would be shared with every other child too.
 */
static int
ss_arena_fit(struct ss_arena *arena, size_t work_bytes, size_t plan_bytes, int shared)
{
	if (arena->base && arena->work_bytes >= work_bytes && arena->plan_bytes >= plan_bytes)
		return 0;
	ss_arena_free(arena);
	return ss_arena_map(arena, work_bytes, plan_bytes, shared);
}

/*
 * A child that could not be killed yet still has its stack and its robust list there, and
 * the kernel will look at that list when it dies: such an arena is given up for good.
 */
static void
ss_arena_after(struct ss_arena *arena, const struct ss_result *result)
{
	if (result->flags & SS_STUCK)
		memset(arena, 0, sizeof(*arena));
	else if (arena->bytes > SS_KEEP_BYTES)
		ss_arena_free(arena);
}

/* Takes the plan area from the parent too, until the window is over. */
static int
ss_arena_protect(const struct ss_arena *arena, int writable)
{
	if (!SS_GUARDED(INPUTS_SEALED))
		return 0;
	return mprotect(arena->plan, arena->plan_bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ)
		   ? -errno
		   : 0;
}

/* Gives the plan area back. If that fails it is too small for all: the next spawn maps another arena. */
static void
ss_arena_release(struct ss_arena *arena)
{
	if (ss_arena_protect(arena, 1))
		arena->plan_bytes = 0;
}

/* ------------------------------------------------------------------- window */

struct ss_window {
	struct ss_arena *arena;
	void (*main)(void *);
	void *argument;
	uint64_t *child_mask; /* where the child finds the caller's mask, or NULL */
	uint64_t flags; /* SS_SHARE_MEMORY, SS_REQUIRE_..., SS_AMONG_OTHERS */
	const struct ss_request *request; /* of a spawn, else NULL */
	int launcher; /* the child is the launcher */
	int awake;    /* made by the helper, or beside others: there is no vfork to sleep in */
	int by_libc;  /* libc made it, so others can reap it at any time */
	uint64_t epoch; /* of the decision: SS_REQUIRE_LOCK */
	int64_t deadline_ns;
	/* What came of it. */
	int32_t pid, pidfd;
	int timed_out, used_clone3, preempted;
	int64_t since_ns, ns;
};

/* What is held off while windows are open. */
struct ss_shield {
	uint64_t mask; /* the caller's, to be restored */
	int cancel_state;
};

static struct ss_report *
ss_report_of(const struct ss_arena *arena)
{
	return (struct ss_report *)(void *)arena->work;
}

/*
 * Whether we sleep in vfork until the window is over. Not with a deadline, not when others
 * are to be started meanwhile, and not for a child with memory of its own while other threads
 * run: libc's setuid waits for us, and we could not answer.
 */
static int
ss_window_sleeps(const struct ss_window *w)
{
	return !w->deadline_ns && !w->launcher && !w->awake &&
	       ((w->flags & SS_SHARE_MEMORY) || !(w->flags & SS_AMONG_OTHERS));
}

/*
 * No exit signal: until it runs a program the child is nobody's but ours, unseen by
 * handlers of SIGCHLD and by waits for any child. execve makes it SIGCHLD (de_thread
 * of fs/exec.c), that of the launcher too.
 */
static void
ss_clone_fill(struct ss_window *w, struct ss_clone_args *args)
{
	memset(args, 0, sizeof(*args));
	args->flags = SS_CLONE_PIDFD;
	if (w->flags & SS_SHARE_MEMORY)
		args->flags |= SS_CLONE_VM;
	if (ss_window_sleeps(w))
		args->flags |= SS_CLONE_VFORK;
	if (w->request)
		args->flags |= w->request->born_in;
	args->flags |= SS_GUARDED(SIGNALS_BLOCKED) ? SS_CLONE_CLEAR_SIGHAND : 0;
	/*
	 * change-bounded (T-22): stored when nothing can fail any more and before the child runs, so
	 * that a changer knows of one that is stopped before it has named itself.
	 */
	args->flags |= w->flags & SS_SHARE_MEMORY ? SS_CLONE_PARENT_SETTID : 0;
	args->parent_tid = (uint64_t)(uintptr_t)&ss_report_of(w->arena)->owner;
	args->pidfd = (uint64_t)(uintptr_t)&w->pidfd;
	args->exit_signal = 0;
	args->stack = (uint64_t)(uintptr_t)w->arena->stack;
	args->stack_size = ss_pages(SS_STACK_BYTES);
}

/*
 * Into its cgroup at once, where the kernel can and memory is not shared (T-28). It says
 * no for many reasons, of which the child's own attempt tells the true one.
 */
static long
ss_clone_into(struct ss_window *w, struct ss_clone_args *args)
{
	struct ss_report *report = ss_report_of(w->arena);
	long pid = -ENOSYS;

	report->handlers_cleared = 1;
	if (w->request && w->request->cgroup_fd >= 0 && !(w->flags & SS_SHARE_MEMORY)) {
		args->cgroup = (uint64_t)w->request->cgroup_fd;
		args->flags |= SS_CLONE_INTO_CGROUP;
		report->in_cgroup = 1;
		ss_child_stage(report, SS_STAGE_CGROUP); /* all that one in a frozen cgroup ever tells */
		pid = ss_child_born3(args, w->main, w->argument);
		if (pid >= 0 || pid == -EAGAIN || pid == -ENOMEM)
			return pid;
		report->in_cgroup = 0;
		ss_child_stage(report, SS_STAGE_NONE);
		args->flags &= ~SS_CLONE_INTO_CGROUP;
		args->cgroup = 0;
	}
	return ss_child_born3(args, w->main, w->argument);
}

/*
 * clone3 may be unknown (ENOSYS), refused by a sandbox (EPERM: older container
 * profiles), or know fewer flags or a shorter argument (EINVAL, E2BIG): then
 * clone(2), whose child clears the handlers itself. Tried anew every time, because
 * a filter that refuses one thread need not refuse the next. If the reason lies
 * elsewhere, clone(2) fails alike and its answer is the one reported.
 */
static long
ss_clone(struct ss_window *w)
{
	struct ss_clone_args args;
	long pid;

	ss_clone_fill(w, &args);
	pid = ss_clone_into(w, &args);
	w->used_clone3 = pid >= 0;
	if (pid != -ENOSYS && pid != -EPERM && pid != -EINVAL && pid != -E2BIG)
		return pid;
	ss_report_of(w->arena)->handlers_cleared = 0;
	args.flags &= ~(SS_CLONE_CLEAR_SIGHAND | SS_CLONE_PARENT_SETTID); /* it has one argument for both numbers */
	return ss_child_born2(&args, w->main, w->argument);
}

/* After clone(2), which does not do it: a sleeper comes too late to that, and finds the child's own word. */
static void
ss_name_child(const struct ss_window *w)
{
	uint32_t none = 0;

	if (w->flags & SS_SHARE_MEMORY)
		(void)__atomic_compare_exchange_n(&ss_report_of(w->arena)->owner, &none, (uint32_t)w->pid, 0,
						  __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Until the child is a zombie, or grace_ns have gone by; below 0 is for ever. */
static void
ss_await_exit(int32_t pidfd, int64_t grace_ns)
{
	const int64_t until = ss_now() + grace_ns;
	struct pollfd poll = {pidfd, POLLIN, 0};
	struct timespec left;
	int64_t ns = grace_ns;
	long answer;

	do {
		left.tv_sec = ns / 1000000000ll;
		left.tv_nsec = ns % 1000000000ll;
		answer = ss_sys5(SYS_ppoll, &poll, 1, grace_ns < 0 ? NULL : &left, NULL, 8);
		ns = grace_ns < 0 ? 0 : until - ss_now();
	} while (answer == -EINTR && ns >= 0);
}

/* Whether the numbers in /proc are ours: it may be of another PID namespace. */
static int
ss_proc_is_ours(void)
{
	char self[16] = {0}, pid[16];

	ss_child_number(pid, getpid());
	return readlink("/proc/self", self, sizeof(self) - 1) > 0 && strcmp(self, pid) == 0;
}

#include "_maps.c"

/* Until the futex is another than it was, or that time has come; in doubt for less. */
static void
ss_await_owner(const struct ss_window *w, uint32_t owner, int64_t now, int64_t until)
{
	struct ss_report *report = ss_report_of(w->arena);
	struct timespec wake;

	wake.tv_sec = until / 1000000000ll;
	wake.tv_nsec = until % 1000000000ll;
	/* Woken, timed out, changed meanwhile or refused: the caller looks again. */
	if (ss_sys6(SYS_futex, &report->owner, SS_FUTEX_WAIT_BITSET, owner, &wake, NULL,
		    SS_FUTEX_ALL) == -EPERM)
		ss_await_exit(w->pidfd, until - now);
}

/*
 * Until the kernel releases the futex (exec or exit): 0, or ETIMEDOUT at the deadline. A
 * child that dies before it could name the futex to the kernel releases nothing, hence
 * the slices; so does one whose kernel has no such futex.
 */
static int
ss_await_release(const struct ss_window *w)
{
	struct ss_report *report = ss_report_of(w->arena);
	int64_t now, until;

	for (;;) {
		const uint32_t owner = __atomic_load_n(&report->owner, __ATOMIC_SEQ_CST);

		if ((owner & SS_OWNER_DIED) || ss_has_ended(w->pidfd))
			return 0;
		ss_maps_answer(w);
		now = ss_now();
		if (w->deadline_ns && now >= w->deadline_ns)
			return -ETIMEDOUT;
		until = w->deadline_ns && w->deadline_ns - now < SS_SLICE_NS ? w->deadline_ns : now + SS_SLICE_NS;
		ss_await_owner(w, owner, now, until);
	}
}

/* window-bounded (T-03): what has not run execve by the deadline is killed. */
static void
ss_bound(struct ss_window *w)
{
	if (ss_window_sleeps(w) || !ss_await_release(w))
		return;
	w->timed_out = 1;
	/*
	 * ESRCH: it is dead already. Then wait, because until the signal has reached its
	 * processor it still runs; if it sleeps in the kernel it never will again.
	 */
	if (ss_sys4(SYS_pidfd_send_signal, w->pidfd, SIGKILL, NULL, 0) != -EPERM) /* see ss_ask_overdue */
		ss_await_exit(w->pidfd, SS_GRACE_NS);
}

/*
 * A child with memory of its own cannot be harmed by what we do while we wait: let libc's
 * set*id of another thread go on, which waits for every thread to answer its signal (nptl(7)).
 */
static void
ss_answer_libc_mask(void)
{
	const uint64_t blocked = ~(1ull << (SS_SETID_SIGNAL - 1));

	if (SS_GUARDED(CHANGE_BOUNDED))
		(void)ss_sys4(SYS_rt_sigprocmask, SIG_SETMASK, &blocked, NULL, 8); /* good arguments */
}

static void
ss_answer_libc(const struct ss_window *w)
{
	if (!(w->flags & SS_SHARE_MEMORY) && !ss_window_sleeps(w))
		ss_answer_libc_mask();
}

/* After the child has left, or was never made. */
static void
ss_window_close(struct ss_window *w)
{
	w->ns = ss_now() - w->since_ns;
	ss_arena_release(w->arena);
}

/* Makes the child. Returns 0, or what failed, with nothing started. */
static int
ss_window_open(struct ss_window *w)
{
	int error;
	long pid;

	if ((error = SS_HOOK(SS_STAGE_CLONE)))
		return -error;
	if ((error = ss_arena_protect(w->arena, 0)))
		return error;
	w->since_ns = ss_now();
	pid = ss_clone(w);
	if (pid < 0) {
		ss_window_close(w);
		return (int)pid;
	}
	w->pid = (int32_t)pid;
	ss_name_child(w);
	return 0;
}

/* Whether those are alone who must be, by both witnesses. */
static int
ss_window_is_alone(uint64_t flags)
{
	uint32_t tasks;

	return !(flags & SS_REQUIRE_ALONE) || !SS_GUARDED(ALONE_OR_APART) || ss_alone(&tasks) == 1;
}

/*
 * Looks at the proof once more and enters the credential lock: 0, or -EBUSY. ret_slot is our
 * place there, NULL for none. A child with memory of its own is told of changes; alone, nobody
 * can make one meanwhile.
 */
static int
ss_window_enter(struct ss_window *w, struct ss_slot **ret_slot)
{
	struct ss_report *report = ss_report_of(w->arena);
	struct ss_lock *lock;

	*ret_slot = NULL;
	if ((w->flags & SS_REQUIRE_SEAL) && !ss_is_sealed())
		return -EBUSY;
	if (w->flags & SS_REQUIRE_LOCK)
		return ss_spawner_enter(ret_slot, &w->pidfd, &report->owner, NULL, w->epoch);
	lock = ss_lock_ours();
	if (lock && (w->flags & SS_AMONG_OTHERS) && !(w->flags & SS_SHARE_MEMORY)) {
		*ret_slot = w->flags & SS_HOLD_CHANGES ? ss_hold(&report->moved) : NULL;
		*ret_slot = *ret_slot ? *ret_slot : ss_watch(lock, &report->moved, w->epoch);
	} else {
		report->moved = ss_epoch_of(lock) != w->epoch;
	}
	return 0;
}

/* Everything between the first blocked signal and the last restored one. */
static int
ss_window_shielded(struct ss_window *w)
{
	struct ss_slot *slot;
	int error;

	if (!ss_window_is_alone(w->flags))
		return -EBUSY;
	if ((error = ss_window_enter(w, &slot)))
		return error;
	if (!(error = ss_window_open(w))) {
		ss_answer_libc(w);
		ss_bound(w);
		ss_window_close(w);
	}
	if (slot)
		w->preempted = ss_slot_leave(slot);
	return error;
}

/*
 * A cancelled thread would unwind past a child that lives on our memory. Returns 0 or a negative errno,
 * with nothing changed: a sandbox may refuse to block signals, and then there is no window. [T-01]
 */
static int
ss_shield_raise(struct ss_shield *shield)
{
	const uint64_t all = SS_GUARDED(SIGNALS_BLOCKED) ? ~0ull : 0;
	long answer;

	(void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &shield->cancel_state);
	answer = ss_sys4(SYS_rt_sigprocmask, SIG_BLOCK, &all, &shield->mask, 8);
	if (answer < 0)
		(void)pthread_setcancelstate(shield->cancel_state, &shield->cancel_state);
	return (int)answer;
}

static void
ss_shield_lower(struct ss_shield *shield)
{
	(void)ss_sys4(SYS_rt_sigprocmask, SIG_SETMASK, &shield->mask, NULL, 8);
	(void)pthread_setcancelstate(shield->cancel_state, &shield->cancel_state);
}

static void
ss_window_reset(struct ss_window *w)
{
	w->pidfd = -1;
	memset(ss_report_of(w->arena), 0, sizeof(struct ss_report));
}

/*
 * Runs main in a child and returns when that has run execve or is gone. Returns 0
 * when there was a child, -EBUSY when we are not alone but had to be, else the
 * errno of the step that failed, with nothing started.
 */
static int
ss_window_run(struct ss_window *w)
{
	struct ss_shield shield;
	int error;

	ss_window_reset(w);
	if ((error = ss_shield_raise(&shield)))
		return error;
	if (w->child_mask)
		*w->child_mask = shield.mask;
	error = ss_window_shielded(w);
	ss_shield_lower(&shield);
	return error;
}

/* ------------------------------------------------------------------ outcome */

static ssize_t
ss_read_stat(int32_t pid, char *text, size_t room)
{
	long at = ss_child_copy_text(text, room, "/proc/");
	ssize_t bytes;
	int fd;

	ss_child_number(text + at, pid);
	memcpy(text + strlen(text), "/stat", sizeof("/stat"));
	fd = open(text, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	bytes = read(fd, text, room - 1);
	(void)close(fd); /* read only */
	text[bytes > 0 ? bytes : 0] = 0;
	return bytes;
}

/* The flags of /proc/pid/stat, proc_pid_stat(5): the ninth field. */
static int
ss_read_task_flags(int32_t pid, uint32_t *ret_flags)
{
	char text[1024], *at;
	unsigned field;

	if (!ss_proc_is_ours() || ss_read_stat(pid, text, sizeof(text)) <= 0)
		return -EIO;
	/* The second field is a name in brackets that may hold anything. */
	at = strrchr(text, ')');
	for (field = 2; at && field < 9; field++)
		at = strchr(at + 1, ' ');
	if (!at)
		return -EIO;
	*ret_flags = (uint32_t)strtoul(at + 1, NULL, 10);
	return 0;
}

/*
 * Whether a child that shared our memory has another now, which only execve gives it:
 * move_pages(2) looks for a page of our arena there, and does not wait for the rest of
 * the execve as those do that take exec_update_lock.
 */
static int
ss_left_our_memory(const struct ss_window *w)
{
	void *page = w->arena->plan; /* written, so it is there: older kernels answer EFAULT for one that is not */
	int status = 0;

	if (!(w->flags & SS_SHARE_MEMORY))
		return 0;
	return ss_sys6(SYS_move_pages, w->pid, 1, &page, NULL, &status, 0) == 0 && status == -EFAULT;
}

/*
 * Whether it is ours to reap still: 0, and if it has ended ret_info says how. ECHILD: somebody has reaped it.
 * Any other errno says nothing: a sandbox refuses the call, or somebody has closed the pidfd.
 */
static int
ss_unreaped(const struct ss_window *w, siginfo_t *ret_info)
{
	memset(ret_info, 0, sizeof(*ret_info));
	return ss_child_error(ss_sys5(SYS_waitid, SS_P_PIDFD, w->pidfd, ret_info,
				      WEXITED | WNOHANG | WNOWAIT | __WALL, NULL));
}

/*
 * outcome-told (T-10): whether a child that got as far as execve went through it. The
 * window ends when the child gives up its old memory: in execve, past the point of no
 * return, or in exit. In exit PF_EXITING is set by then, and PF_FORKNOEXEC is set for
 * life in a task that never ran execve; the memory itself is taken away only later, so
 * having some proves nothing. Two cheaper looks spare most spawns the way through /proc:
 * see above, and our code exits only with an error, so a plain exit is the program's.
 * While a child is not reaped its pid is its own: look first, then make sure.
 * The launcher has been through one execve. Of one that was killed nobody can tell whether
 * it was through the second: whatever could be seen of it, the program could imitate.
 */
static int
ss_went_through(const struct ss_window *w, uint32_t *ret_flags)
{
	const int has_left = ss_left_our_memory(w);
	siginfo_t info;
	uint32_t flags;
	int error;

	if (!SS_GUARDED(OUTCOME_TOLD))
		return 1;
	/*
	 * Somebody else reaped it. That takes a program that ran (ss_clone_fill): ours, or the
	 * launcher, and then nobody can tell any more; nor of a child that libc has made.
	 */
	if ((error = ss_unreaped(w, &info)) == ECHILD) {
		*ret_flags |= w->launcher || w->by_libc ? SS_UNCONFIRMED : 0;
		return 1;
	}
	if (has_left || (info.si_pid && info.si_code == CLD_EXITED))
		return 1;
	if (!error && ss_read_task_flags(w->pid, &flags) == 0 && !ss_unreaped(w, &info) &&
	    (!w->launcher || !(flags & SS_EXITING)))
		return !(flags & SS_EXITING) || !(flags & SS_FORKNOEXEC);
	*ret_flags |= SS_UNCONFIRMED;
	return 1;
}

/* Nothing of ours writes such a thing: whatever it was, no program is said to run. */
static int
ss_misreported(struct ss_result *result)
{
	result->stage = SS_STAGE_NONE;
	result->error = EPROTO;
	return SS_FAILED;
}

static int
ss_classify(const struct ss_window *w, struct ss_result *result)
{
	const struct ss_report *report = ss_report_of(w->arena);
	const int last = w->main == ss_child_launch ? SS_STAGE_LAUNCH : SS_STAGE_EXEC;

	result->stage = __atomic_load_n(&report->stage, __ATOMIC_RELAXED);
	result->error = report->error;
	if (result->stage < 0 || result->stage >= SS_STAGE_COUNT || result->error < 0)
		return ss_misreported(result);
	if (result->error == ESTALE &&
	    (result->stage == SS_STAGE_BIRTH || result->stage == SS_STAGE_CREDS ||
	     result->stage == SS_STAGE_EPOCH))
		return SS_RACE_DETECTED;
	if (result->error)
		return SS_FAILED;
	if (w->timed_out)
		return SS_TIMED_OUT;
	if (w->preempted)
		return SS_PREEMPTED;
	if (result->stage < last || !ss_went_through(w, &result->flags))
		return SS_KILLED_BEFORE_EXEC;
	return SS_EXEC;
}

/* A child that runs no program leaves nothing behind: no zombie, no descriptor. */
static void
ss_reap(const struct ss_window *w, struct ss_result *result)
{
	siginfo_t info;
	long answer;

	memset(&info, 0, sizeof(info));
	ss_await_exit(w->pidfd, w->timed_out ? 0 : w->deadline_ns ? SS_GRACE_NS : -1);
	do
		answer = ss_sys5(SYS_waitid, SS_P_PIDFD, w->pidfd, &info,
				 WEXITED | WNOHANG | __WALL, NULL);
	while (answer == -EINTR);
	if (answer == 0 && info.si_pid == 0) {
		result->flags |= SS_STUCK; /* asleep in the kernel; the caller reaps it later */
		return;
	}
	/* ECHILD: somebody else reaped it, with __WALL (see ss_clone). It is gone. */
	result->exit_code = info.si_code;
	result->exit_status = info.si_status;
	(void)close(w->pidfd);
	result->pidfd = -1;
}

static void
ss_conclude(const struct ss_window *w, struct ss_result *result)
{
	result->pid = w->pid;
	result->pidfd = w->pidfd;
	result->window_ns = w->ns;
	result->flags = w->used_clone3 ? SS_USED_CLONE3 : 0;
	result->outcome = ss_classify(w, result);
	if (result->outcome != SS_EXEC)
		ss_reap(w, result);
}

static void
ss_not_started(struct ss_result *result, int stage, int error)
{
	result->outcome = SS_FAILED;
	result->stage = stage;
	result->error = -error;
}

/*
 * The same for the clone and what is looked at right before it. Where nothing was to be proved EBUSY is a sandbox's,
 * and would come again however often the spawn began anew.
 */
static void
ss_not_cloned(struct ss_result *result, uint64_t flags, int error)
{
	ss_not_started(result, SS_STAGE_CLONE, error);
	if (error == -EBUSY && (flags & (SS_REQUIRE_ALONE | SS_REQUIRE_LOCK | SS_REQUIRE_SEAL)))
		result->outcome = SS_NOT_ALONE;
}

/* -------------------------------------------------------------------- spawn */

static size_t
ss_room(size_t bytes)
{
	return (bytes + 15) & ~(size_t)15;
}

/* Copies into the plan area; every piece starts on 16 bytes. */
static void *
ss_put(unsigned char **at, const void *from, size_t bytes)
{
	void *piece = *at;

	if (bytes)
		memcpy(piece, from, bytes);
	*at += ss_room(bytes);
	return piece;
}

/* Points at each of count strings laid end to end; -EINVAL if they are not count. */
static int
ss_put_strings(unsigned char **at, const char *text, size_t bytes, uint32_t count, char ***ret)
{
	char *copy = ss_put(at, text, bytes);
	char **strings = (char **)(void *)*at;
	const char *end = copy + bytes;
	uint32_t i;

	*at += ss_room((count + 1ull) * sizeof(char *));
	for (i = 0; i < count; i++) {
		const char *nul = copy < end ? memchr(copy, 0, (size_t)(end - copy)) : NULL;

		if (!nul)
			return -EINVAL;
		strings[i] = copy;
		copy += nul + 1 - copy;
	}
	strings[count] = NULL;
	*ret = strings;
	return copy == end ? 0 : -EINVAL;
}

static int
ss_measure(const struct ss_request *r, size_t *ret_plan, size_t *ret_work)
{
	if (!r->argc || r->nfds > SS_FDS_MAX || r->ngroups > SS_GROUPS_MAX ||
	    r->nrlimits > SS_RLIMITS_MAX || r->cpus_bytes > SS_CPUS_MAX || r->nfilter > SS_FILTER_MAX_LEN)
		return -EINVAL;
	if (r->argv_bytes > SS_INPUT_MAX || r->env_bytes > SS_INPUT_MAX ||
	    (uint64_t)r->argc + r->envc > SS_INPUT_MAX / sizeof(char *))
		return -E2BIG;
	*ret_plan = ss_room(sizeof(struct ss_plan)) + ss_room(strlen(r->path) + 1) +
		    ss_room(r->argv_bytes) + ss_room((r->argc + 1ull) * sizeof(char *)) +
		    ss_room(r->env_bytes) + ss_room((r->envc + 1ull) * sizeof(char *)) +
		    ss_room(r->nfds * sizeof(struct ss_fd)) + ss_room(r->ngroups * sizeof(uint32_t)) +
		    ss_room(r->nrlimits * sizeof(struct ss_rlimit)) + ss_room(r->cpus_bytes) +
		    ss_room(r->nfilter * (size_t)SS_FILTER_INSTRUCTION) + ss_room(r->cwd ? strlen(r->cwd) + 1 : 0);
	*ret_work = ss_room(sizeof(struct ss_report)) + r->nfds * sizeof(int32_t) +
		    r->ngroups * sizeof(uint32_t) + SS_LISTING_BYTES;
	return 0;
}

static int
ss_plan_write(struct ss_arena *arena, const struct ss_request *r)
{
	struct ss_plan *plan = (struct ss_plan *)(void *)arena->plan;
	unsigned char *at = arena->plan + ss_room(sizeof(*plan));
	int error;

	plan->want = *r;
	/* changes-sealed (T-26): a set-id program that cannot drop, and does not look, would stay root. */
	if (ss_request_changes(r) && ss_is_sealed() && SS_GUARDED(SEALED_SET_ID))
		plan->want.flags |= SS_NO_NEW_PRIVS;
	plan->report = ss_report_of(arena);
	plan->scratch = arena->work + ss_room(sizeof(struct ss_report));
	plan->parent_pid = getpid();
	plan->want.path = ss_put(&at, r->path, strlen(r->path) + 1);
	if ((error = ss_put_strings(&at, r->argv, r->argv_bytes, r->argc, &plan->argv)) ||
	    (error = ss_put_strings(&at, r->env, r->env_bytes, r->envc, &plan->envp)))
		return error;
	plan->want.fds = ss_put(&at, r->fds, r->nfds * sizeof(*r->fds));
	plan->want.groups = ss_put(&at, r->groups, r->ngroups * sizeof(*r->groups));
	plan->want.rlimits = ss_put(&at, r->rlimits, r->nrlimits * sizeof(*r->rlimits));
	plan->want.cpus = ss_put(&at, r->cpus, r->cpus_bytes);
	plan->want.filter = ss_put(&at, r->filter, r->nfilter * (size_t)SS_FILTER_INSTRUCTION);
	if (r->cwd)
		plan->want.cwd = ss_put(&at, r->cwd, strlen(r->cwd) + 1);
	return 0;
}

static int
ss_prepare(struct ss_arena *arena, const struct ss_request *request)
{
	const int share = (request->flags & SS_SHARE_MEMORY) != 0;
	size_t plan_bytes, work_bytes;
	int error;

	if ((error = SS_HOOK(SS_STAGE_PREPARE)))
		return -error;
	/* drop-apart (T-19, T-31): guards.py decides, but nothing it gets wrong gets past here. */
	if (share && ss_request_changes(request) && SS_GUARDED(DROP_APART))
		return -EINVAL;
	/* The child that execs the launcher takes none of these steps: they are the launcher's. */
	if ((request->flags & SS_LAUNCH) && (!share || ss_request_changes(request)))
		return -EINVAL;
	/* Somebody must be awake to write the maps of a user namespace. */
	if (((request->unshared | request->born_in) & SS_CLONE_NEWUSER) && !request->deadline_ns)
		return -EINVAL;
	if ((error = ss_measure(request, &plan_bytes, &work_bytes)) ||
	    (error = ss_arena_fit(arena, work_bytes, plan_bytes, !share)))
		return error;
	return ss_plan_write(arena, request);
}

/* Puts the request into the arena, and all that the window needs to know into w. */
static int
ss_spawn_prepare(struct ss_window *w, struct ss_arena *arena, const struct ss_request *request)
{
	struct ss_plan *plan;
	int error;

	if ((error = ss_prepare(arena, request)))
		return error;
	plan = (struct ss_plan *)(void *)arena->plan;
	memset(w, 0, sizeof(*w));
	w->arena = arena;
	w->main = request->flags & SS_LAUNCH ? ss_child_launch : ss_child_spawn;
	w->argument = plan;
	w->request = request;
	plan->mask = request->sigmask;
	w->child_mask = request->flags & SS_SET_SIGMASK ? NULL : &plan->mask;
	w->flags = request->flags;
	w->epoch = request->expected.epoch;
	w->awake = (request->flags & SS_AWAKE) != 0;
	w->deadline_ns = SS_GUARDED(WINDOW_BOUNDED) ? request->deadline_ns : 0;
	plan->tells = !ss_window_sleeps(w) || (w->flags & SS_REQUIRE_LOCK);
	return 0;
}

static int
ss_spawn_in(struct ss_arena *arena, const struct ss_request *request, struct ss_result *result)
{
	struct ss_window w;
	int error;

	if ((error = ss_spawn_prepare(&w, arena, request))) {
		ss_not_started(result, SS_STAGE_PREPARE, error);
		return error;
	}
	if ((error = ss_window_run(&w))) {
		ss_not_cloned(result, w.flags, error);
		return error;
	}
	ss_conclude(&w, result);
	return 0;
}

/*
 * Closes and forgets in one step: a signal handler of Python, which may raise, runs only
 * before or after. Nothing is lost by an error: we have written to none of these.
 */
SS_API void
ss_close(int32_t *fd)
{
	const int32_t closing = *fd;

	*fd = -1;
	if (closing >= 0)
		(void)close(closing);
}

#include "_launch.c"

#include "_posix.c"

/*
 * Starts a program. Returns 0 when a child was made; what became of it is in the
 * result. Otherwise a negative errno, and nothing was started. The arena is the
 * calling thread's own, used only when memory is shared.
 */
SS_API int
ss_spawn(struct ss_arena *arena, const struct ss_request *request, struct ss_result *result)
{
	struct ss_arena own;
	int error;

	memset(result, 0, sizeof(*result));
	result->pidfd = -1;
	if (request->flags & SS_SHARE_MEMORY) {
		error = request->flags & SS_LAUNCH ? ss_launch(arena, request, result)
						   : ss_spawn_in(arena, request, result);
		ss_arena_after(arena, result);
		return error;
	}
	memset(&own, 0, sizeof(own));
	error = ss_spawn_in(&own, request, result);
	ss_arena_free(&own);
	return error;
}

SS_API uint64_t ss_process_number(void);

/*
 * The same, or by libc's posix_spawn, for the process that has asked for it and recorded that, by its number. A
 * signal handler may fork in between, and its child goes on where we are: without this it would start the program
 * once more. [T-11 intent-first]
 */
SS_API int
ss_spawn_by(uint64_t process, int by_libc, struct ss_arena *arena, const struct ss_request *request,
	    struct ss_result *result)
{
	if (process == ss_process_number())
		return by_libc ? ss_posix_spawn(arena, request, result) : ss_spawn(arena, request, result);
	memset(result, 0, sizeof(*result));
	result->pidfd = -1;
	ss_not_started(result, SS_STAGE_PREPARE, -ECHILD);
	return -ECHILD;
}

#include "_batch.c"

#include "_standing.c"

#include "_ask.c"

/* ------------------------------------------------------------------- lookup */

static void
ss_found_clear(struct ss_found *found)
{
	memset(found, 0, offsetof(struct ss_found, path));
	found->exe_fd = found->cwd_fd = found->copy_fd = found->root_fd = -1;
	found->path[0] = found->real[0] = 0;
}

/* Takes the descriptors that the child sent, in the order in which it names them. */
static int
ss_take_over(int socket, struct ss_found *found)
{
	union {
		struct cmsghdr header;
		unsigned char room[CMSG_SPACE(SS_FOUND_FDS * sizeof(int32_t))];
	} control;
	unsigned char dot;
	struct iovec iov = {&dot, 1};
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	int32_t *fds[SS_FOUND_FDS] = {&found->exe_fd, &found->cwd_fd, &found->copy_fd, &found->root_fd};
	const struct cmsghdr *header;
	int32_t got[sizeof(control) / sizeof(int32_t)];
	size_t at = 0, count, i;
	const ssize_t bytes = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (bytes < 0)
		return -EIO;
	header = CMSG_FIRSTHDR(&message);
	count = header ? (header->cmsg_len - CMSG_LEN(0)) / sizeof(int32_t) : 0;
	for (i = 0; i < SS_FOUND_FDS; i++)
		at += *fds[i] >= 0;
	if (count)
		memcpy(got, CMSG_DATA(header), count * sizeof(int32_t));
	/* Too few, or some were dropped: no number was free for them, or they had no room here. */
	if (at != count || bytes != 1 || (message.msg_flags & MSG_CTRUNC)) {
		for (i = 0; i < count; i++)
			(void)close(got[i]);
		return bytes == 1 ? -EMFILE : -EIO;
	}
	for (i = 0, at = 0; i < SS_FOUND_FDS; i++)
		if (*fds[i] >= 0)
			*fds[i] = got[at++];
	return 0;
}

static size_t
ss_search_bytes(const struct ss_lookup *l)
{
	return ss_room(sizeof(struct ss_search)) + ss_room(strlen(l->name) + 1) +
	       ss_room(l->dirs_bytes) + ss_room(l->cwd ? strlen(l->cwd) + 1 : 0) +
	       ss_room(l->root ? strlen(l->root) + 1 : 0) + sizeof(uint64_t);
}

static struct ss_search *
ss_search_write(struct ss_arena *arena, const struct ss_lookup *l, int socket)
{
	struct ss_search *search = (struct ss_search *)(void *)arena->plan;
	unsigned char *at = arena->plan + ss_room(sizeof(*search));

	search->want = *l;
	search->report = ss_report_of(arena);
	search->found = (struct ss_found *)(void *)(arena->work + ss_room(sizeof(struct ss_report)));
	search->socket = socket;
	search->want.name = ss_put(&at, l->name, strlen(l->name) + 1);
	search->want.dirs = ss_put(&at, l->dirs, l->dirs_bytes);
	if (l->cwd)
		search->want.cwd = ss_put(&at, l->cwd, strlen(l->cwd) + 1);
	if (l->root)
		search->want.root = ss_put(&at, l->root, strlen(l->root) + 1);
	ss_found_clear(search->found);
	return search;
}

/*
 * What the child of a lookup came to. One that has told everything may still sleep in
 * the kernel over closing its files; that is no matter of ours.
 */
static int
ss_lookup_outcome(const struct ss_window *w, const struct ss_report *report)
{
	if (report->error)
		return report->error == ESTALE ? SS_RACE_DETECTED : SS_FAILED;
	if (__atomic_load_n(&report->stage, __ATOMIC_RELAXED) == SS_STAGE_EXEC)
		return SS_EXEC;
	return w->timed_out ? SS_TIMED_OUT : w->preempted ? SS_PREEMPTED : SS_KILLED_BEFORE_EXEC;
}

static int
ss_lookup_bounded(struct ss_arena *arena, const struct ss_lookup *l, struct ss_found *found,
		  struct ss_result *result)
{
	const size_t work_bytes = ss_room(sizeof(struct ss_report)) + sizeof(struct ss_found);
	struct ss_search *search;
	struct ss_window w;
	int error, pair[2];

	if ((error = ss_arena_fit(arena, work_bytes, ss_search_bytes(l), !(l->flags & SS_SHARE_MEMORY))))
		return error;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	search = ss_search_write(arena, l, pair[1]);
	memset(&w, 0, sizeof(w));
	w.arena = arena;
	w.main = ss_child_lookup;
	w.argument = search;
	w.flags = l->flags;
	w.epoch = l->expected.epoch;
	w.deadline_ns = l->deadline_ns;
	if ((error = ss_window_run(&w)))
		goto close;
	result->pid = w.pid;
	result->pidfd = w.pidfd;
	result->window_ns = w.ns;
	result->stage = SS_STAGE_LOOKUP;
	result->error = search->report->error;
	ss_reap(&w, result);
	result->outcome = ss_lookup_outcome(&w, search->report);
	if (result->outcome == SS_EXEC) {
		*found = *search->found;
		if (!found->error)
			error = ss_take_over(pair[0], found);
		if (found->error || error)
			found->exe_fd = found->cwd_fd = found->copy_fd = found->root_fd = -1;
	}
close:
	(void)close(pair[0]);
	(void)close(pair[1]);
	return error;
}

/* Closes the pidfd of a child that is forgotten. */
SS_API void
ss_exit_close(struct ss_exit *child)
{
	ss_close(&child->pidfd);
}

/* Moves the pidfd of a child from where it was born to where it is kept; twice is no error. */
SS_API void
ss_adopt(struct ss_exit *child, struct ss_result *from)
{
	if (from->pidfd < 0)
		return;
	child->pidfd = from->pidfd;
	from->pidfd = -1;
}

SS_API void
ss_found_close(struct ss_found *found)
{
	ss_close(&found->exe_fd);
	ss_close(&found->cwd_fd);
	ss_close(&found->copy_fd);
	ss_close(&found->root_fd);
}

/*
 * Finds the program and opens it, and working directory or root, here (no deadline)
 * or in a child that is killed at the deadline. Returns 0 when the lookup was
 * made: found->error says what it came to, found->stage where. With a deadline
 * result->outcome is SS_EXEC when the child came to an end by itself. Otherwise a
 * negative errno. Descriptors are open only when everything is well.
 */
SS_API int
ss_lookup(struct ss_arena *arena, const struct ss_lookup *lookup, struct ss_found *found,
	  struct ss_result *result)
{
	struct ss_arena own;
	int error;

	memset(result, 0, sizeof(*result));
	result->pidfd = -1;
	ss_found_clear(found);
	if (!lookup->deadline_ns) {
		result->outcome = SS_EXEC;
		if (ss_child_find(lookup, found))
			ss_found_close(found);
		return 0;
	}
	if (lookup->flags & SS_SHARE_MEMORY) {
		error = ss_lookup_bounded(arena, lookup, found, result);
		ss_arena_after(arena, result);
	} else {
		memset(&own, 0, sizeof(own));
		error = ss_lookup_bounded(&own, lookup, found, result);
		ss_arena_free(&own);
	}
	if (error)
		ss_not_cloned(result, lookup->flags, error);
	return error;
}

/* --------------------------------------------------------------------- wait */

/*
 * waitid(2) by pidfd with the resource usage. Returns 0 when reaped (or seen to have ended:
 * SS_WAIT_LOOK leaves it to be reaped by others), 1 when still running (not with SS_WAIT_END),
 * else a negative errno: EINTR when a signal came.
 */
SS_API int
ss_wait(struct ss_exit *ret_exit, int how)
{
	const int options = WEXITED | __WALL | (how ? WNOHANG : 0) | (how == SS_WAIT_LOOK ? WNOWAIT : 0);
	struct rusage usage;
	siginfo_t info;
	long answer;

	memset(&info, 0, sizeof(info));
	memset(&usage, 0, sizeof(usage));
	answer = ss_sys5(SYS_waitid, SS_P_PIDFD, ret_exit->pidfd, &info, options, &usage);
	if (answer < 0)
		return (int)answer;
	if (!info.si_pid)
		return 1;
	ret_exit->code = info.si_code;
	ret_exit->status = info.si_status;
	ret_exit->utime_us = usage.ru_utime.tv_sec * 1000000ll + usage.ru_utime.tv_usec;
	ret_exit->stime_us = usage.ru_stime.tv_sec * 1000000ll + usage.ru_stime.tv_usec;
	ret_exit->maxrss_kib = usage.ru_maxrss;
	ret_exit->minflt = usage.ru_minflt;
	ret_exit->majflt = usage.ru_majflt;
	ret_exit->inblock = usage.ru_inblock;
	ret_exit->oublock = usage.ru_oublock;
	ret_exit->nvcsw = usage.ru_nvcsw;
	ret_exit->nivcsw = usage.ru_nivcsw;
	/* Last: whoever sees it, in another thread or in a signal handler, sees the rest. */
	__atomic_store_n(&ret_exit->pid, info.si_pid, __ATOMIC_RELEASE);
	return 0;
}

/* No number is free for a copy: look for a moment, so that a reuse would not last either. */
static int
ss_await_slice(const struct ss_exit *child, int timeout_ms)
{
	const int slice_ms = (int)(SS_SLICE_NS / 1000000);
	struct pollfd poll_fd = {child->pidfd, POLLIN, 0};
	const int answer =
	    poll(&poll_fd, 1, timeout_ms >= 0 && timeout_ms < slice_ms ? timeout_ms : slice_ms);

	return answer < 0 ? -errno : answer;
}

/*
 * Waits for the end of a child, without reaping it: 1 when it has ended or is known to be
 * done, 0 when the time is over (milliseconds, -1 for none), -EINTR on a signal. On a
 * descriptor of its own, because another thread may reap the child and close the other; if
 * that happened before the dup, the child was marked before, and ours may be anything.
 */
SS_API int
ss_await(const struct ss_exit *child, int timeout_ms)
{
	struct pollfd poll_fd = {-1, POLLIN, 0};
	int answer = 1;

	poll_fd.fd = fcntl(child->pidfd, F_DUPFD_CLOEXEC, 3);
	if (poll_fd.fd < 0)
		return errno == EBADF ? 1 : ss_await_slice(child, timeout_ms);
	if (!__atomic_load_n(&child->pid, __ATOMIC_ACQUIRE))
		answer = poll(&poll_fd, 1, timeout_ms);
	if (answer < 0)
		answer = -errno;
	(void)close(poll_fd.fd); /* a copy */
	return answer;
}

/* Sends a signal; ESRCH when it was reaped, EBADF when the descriptor is closed. */
SS_API int
ss_send(const struct ss_exit *child, int number)
{
	return (int)ss_sys4(SYS_pidfd_send_signal, child->pidfd, number, NULL, 0);
}

/* -------------------------------------------------------------------- probe */

/*
 * The environment as libc has it, which C code may have changed behind os.environ: strings end
 * to end, each with its NUL, if they fit. Returns how many bytes that takes. The caller has the
 * GIL: os.putenv of another thread could move the array meanwhile.
 */
SS_API int64_t
ss_environment(char *to, uint64_t room)
{
	uint64_t bytes = 0;
	char **at;

	for (at = environ; at && *at; at++) {
		const size_t length = strlen(*at) + 1;

		if (bytes + length <= room)
			memcpy(to + bytes, *at, length);
		bytes += length;
	}
	return (int64_t)bytes;
}

/* Whether we were started with more rights than whoever started us: AT_SECURE, getauxval(3). */
SS_API int
ss_secure(void)
{
	return getauxval(AT_SECURE) != 0;
}

/*
 * Asks for a feature in a way that does nothing: the answer is the kernel's, or a
 * sandbox's. Returns 0 when it is there, else a negative errno.
 */
SS_API int
ss_try(int feature)
{
	long answer = -EINVAL;

	if (feature == SS_TRY_CLONE3) { /* an argument of no bytes: EINVAL where it is known */
		answer = ss_sys2(SYS_clone3, NULL, 0);
		return answer == -EINVAL ? 0 : (int)answer;
	}
	if (feature == SS_TRY_CLOSE_RANGE) /* nobody has these descriptors */
		answer = ss_sys3(SYS_close_range, UINT32_MAX, UINT32_MAX, SS_RANGE_CLOEXEC);
	if (feature == SS_TRY_FACCESSAT2)
		answer = ss_sys4(SYS_faccessat2, AT_FDCWD, "/", X_OK, SS_AT_EACCESS);
	if (feature == SS_TRY_MOVE_PAGES)
		answer = ss_sys6(SYS_move_pages, getpid(), 0, NULL, NULL, NULL, 0);
	return (int)answer;
}

static SS_CHILD void
ss_child_probe(void *argument)
{
	(void)SS_HOOK(SS_STAGE_PREPARE); /* a stage that others come to only at their birth */
	__atomic_store_n((uint32_t *)argument, 1, __ATOMIC_RELAXED);
	ss_child_exit();
}

/*
 * Whether a child made with CLONE_VM really writes to our memory: emulators make a
 * copy instead, and then no result could come back. 1, 0, or a negative errno; the
 * proof that a spawn would need is needed here too: proof is its SS_REQUIRE_ flag, and
 * EBUSY says that it does not hold.
 */
SS_API int
ss_memory_shared(uint64_t proof, uint64_t epoch)
{
	struct ss_arena arena;
	struct ss_window w;
	struct ss_result result;
	uint32_t *word;
	int error;

	memset(&arena, 0, sizeof(arena));
	if ((error = ss_arena_map(&arena, sizeof(struct ss_report) + 16, 1, 0)))
		return error;
	word = (uint32_t *)(void *)(arena.work + ss_room(sizeof(struct ss_report)));
	memset(&w, 0, sizeof(w));
	memset(&result, 0, sizeof(result));
	w.arena = &arena;
	w.main = ss_child_probe;
	w.argument = word;
	w.flags = SS_SHARE_MEMORY | proof;
	w.epoch = epoch;
	if (!(error = ss_window_run(&w))) {
		ss_reap(&w, &result);
		/* Killed before it could write (a change waited, or somebody's signal): it has said nothing. */
		error = __atomic_load_n(word, __ATOMIC_RELAXED) ? 1 : result.exit_code == CLD_EXITED ? 0 : -EAGAIN;
	}
	ss_arena_free(&arena);
	return error;
}

/* ------------------------------------------------------------------- page tables */

#include "_huge.c"

/* ------------------------------------------------------------------ the audit ledger */

#include "_sha256.c"

#include "_ledger.h"

#include "_text.c"

#include "_ring.c"

#include "_ledger_file.c"

#include "_ledger_keys.c"

#include "_ledger.c"

#include "_ledger_open.c"

#include "_system.c"

#include "_epoch.c"

#include "_telling.c"

#include "_verify.c"
