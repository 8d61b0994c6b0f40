/*
 * The seal: a seccomp filter over every thread, after which no system call changes the
 * credentials of this process, or of any program started from it, but those that leave
 * through the gate (ss_child_gate in _sys.h), where our forked children drop theirs.
 * Part of _native.c, which includes it; seccomp(2) is the source where none is named.
 * changes-sealed (T-26).
 *
 *  1. Refused means EPERM, never a signal: programs that we start inherit the filter,
 *     nobody can take it off again, and a setpriv that fails is better than one that is
 *     killed. Where a thread drops by libc, all of its threads get the same answer; one
 *     that got another would make glibc abort (nptl/nptl_setxid.c).
 *  2. All threads or none: SECCOMP_FILTER_FLAG_TSYNC. A thread with a filter of its own
 *     makes that fail, and then nothing has happened.
 *  3. Numbers belong to an architecture token, and a 64-bit program may call by another:
 *     int 0x80 and the x32 bit on x86-64, 32-bit programs on both machines. Each table
 *     has its own numbers. A token that is in neither is refused whole: no kernel has
 *     one today, and what its numbers mean we do not know.
 *  4. What the numbers decide is decided first, from nothing but token and number: such
 *     calls the kernel answers from a bitmap, without running the filter (Linux 5.11,
 *     seccomp_is_const_allow in kernel/seccomp.c).
 *  5. The address is no secret. Code in our process can jump to the gate, and a program
 *     that we exec can map an instruction at that place: the seal keeps honest code from
 *     mixing privileges on one memory, it is no sandbox.
 *
 * Out of its reach, because no number tells: LSM labels, written to /proc/self/attr;
 * io_uring requests under credentials registered before; execve of a set-id program;
 * and clone with CLONE_NEWUSER, which makes a new task and changes no present one.
 */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

/* ---------------------------------------------------------------- constants */

#define SS_SYS_LSM_SET_SELF_ATTR 460      /* Linux 6.8; the same everywhere */
#define SS_FILTER_TSYNC 1u                /* SECCOMP_FILTER_FLAG_TSYNC */
#define SS_FILTER_SPEC_ALLOW 4u           /* SECCOMP_FILTER_FLAG_SPEC_ALLOW, Linux 4.17 */
#define SS_FILTER_MAX 120u                /* jumps have eight bits */

#if defined(__x86_64__)
#define SS_TOKEN AUDIT_ARCH_X86_64
#define SS_COMPAT_TOKEN AUDIT_ARCH_I386
#define SS_NUMBER_BITS 0xbfffffffu /* without __X32_SYSCALL_BIT: x32 has the same numbers */
#define SS_COMPAT_PIVOT_ROOT 217   /* asm/unistd_32.h, of which these five have no */
#define SS_COMPAT_KEYCTL 288       /* number in common with the other machine */
#define SS_COMPAT_UNSHARE 310
#define SS_COMPAT_SETNS 346
#define SS_COMPAT_SECCOMP 354
#else
#define SS_TOKEN AUDIT_ARCH_AARCH64
#define SS_COMPAT_TOKEN AUDIT_ARCH_ARM
#define SS_NUMBER_BITS 0xffffffffu
#define SS_COMPAT_PIVOT_ROOT 218 /* arch/arm/tools/syscall.tbl */
#define SS_COMPAT_KEYCTL 311
#define SS_COMPAT_UNSHARE 337
#define SS_COMPAT_SETNS 375
#define SS_COMPAT_SECCOMP 383
#endif

#define SS_COMPAT_PRCTL 172

/*
 * What unshare(2) may be asked for: bits without a thread's credentials, root, working
 * directory or namespaces in them. Our own look at who shares our memory is CLONE_VM
 * (ss_is_shared); CLONE_SIGHAND and CLONE_THREAD only ever ask the same; a private table
 * of descriptors or of semaphore undo values gives no rights. CLONE_FS is not here, for
 * it parts a thread's root from the others'. A list of the allowed, so that bits of later
 * kernels are refused.
 */
#define SS_UNSHARE_FILES 0x400u
#define SS_UNSHARE_SIGHAND 0x800u
#define SS_UNSHARE_THREAD 0x10000u
#define SS_UNSHARE_SYSVSEM 0x40000u
#define SS_UNSHARE_ALLOWED                                                      \
	((uint32_t)SS_CLONE_VM | SS_UNSHARE_FILES | SS_UNSHARE_SIGHAND |        \
	 SS_UNSHARE_THREAD | SS_UNSHARE_SYSVSEM)

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the filter loads the low word first");

/* ------------------------------------------------------------------- tables */

/*
 * keyctl is here whole, as in the profiles of containers: the keyrings are a part of the
 * credentials, and too many of its options may replace or install one.
 */
static const uint16_t ss_seal_native[] = {
    SYS_setuid,
    SYS_setgid,
    SYS_setreuid,
    SYS_setregid,
    SYS_setresuid,
    SYS_setresgid,
    SYS_setgroups,
    SYS_setfsuid,
    SYS_setfsgid,
    SYS_capset,
    SYS_chroot,
    SYS_pivot_root,
    SYS_setns,
    SYS_seccomp,
    SYS_keyctl,
    SS_SYS_LANDLOCK_RESTRICT_SELF,
    SS_SYS_LSM_SET_SELF_ATTR,
};

/* The same for 32-bit callers; i386 and ARM agree on what stands here as a number. */
static const uint16_t ss_seal_compat[] = {
    23,	 46,  70,  71,	164, 170, /* setuid, -gid, -reuid, -regid, -resuid, -resgid, */
    81,	 138, 139,		  /* setgroups, setfsuid, setfsgid, all with 16-bit ids */
    213, 214, 203, 204, 208, 210, /* the same two lines */
    206, 215, 216,		  /* with 32-bit ids */
    185, 61,			  /* capset, chroot */
    SS_COMPAT_PIVOT_ROOT,
    SS_COMPAT_SETNS,
    SS_COMPAT_SECCOMP,
    SS_COMPAT_KEYCTL,
    SS_SYS_LANDLOCK_RESTRICT_SELF,
    SS_SYS_LSM_SET_SELF_ATTR,
};

/* Where a jump may lead. Until ss_filter_link these stand where the distance will. */
enum {
	SS_GO_FIRST = 0xf0,
	SS_GO_COMPAT = SS_GO_FIRST,
	SS_GO_PRCTL,
	SS_GO_AMBIENT,
	SS_GO_UNSHARE,
	SS_GO_GATE,
	SS_GO_ALLOW,
	SS_GO_DENY,
	SS_GO_LAST = SS_GO_DENY,
};

_Static_assert(SS_FILTER_MAX < SS_GO_FIRST, "no distance may look like a place");

#define SS_LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define SS_LOAD_HIGH(field)                                                     \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field) + 4)
#define SS_IF(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define SS_IF_ANY(bits, yes, no) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, yes, no)
#define SS_ANSWER(action) BPF_STMT(BPF_RET | BPF_K, action)

static const struct sock_filter ss_seal_tokens[] = {
    SS_LOAD(arch),
    SS_IF(SS_COMPAT_TOKEN, SS_GO_COMPAT, 0),
    SS_IF(SS_TOKEN, 0, SS_GO_DENY),
    SS_LOAD(nr),
    BPF_STMT(BPF_ALU | BPF_AND | BPF_K, SS_NUMBER_BITS),
};

static const struct sock_filter ss_seal_compat_start[] = {SS_LOAD(nr)};

/*
 * The option is an int, so the low word is all that the kernel looks at (prctl in
 * kernel/sys.c). PR_SET_DUMPABLE is not here: it belongs to the memory and not to a
 * thread, so it is the same for all who share that, and agents that guard keys need it.
 */
static const struct sock_filter ss_seal_prctl[] = {
    SS_LOAD(args[0]),
    SS_IF(PR_SET_KEEPCAPS, SS_GO_GATE, 0),
    SS_IF(PR_SET_SECUREBITS, SS_GO_GATE, 0),
    SS_IF(PR_CAPBSET_DROP, SS_GO_GATE, 0),
    SS_IF(PR_SET_NO_NEW_PRIVS, SS_GO_GATE, 0),
    SS_IF(PR_SET_SECCOMP, SS_GO_GATE, 0),
    SS_IF(SS_CAP_AMBIENT, SS_GO_AMBIENT, SS_GO_ALLOW),
};

static const struct sock_filter ss_seal_ambient[] = {
    SS_LOAD(args[1]),
    SS_IF(SS_CAP_AMBIENT_IS_SET, SS_GO_ALLOW, SS_GO_GATE),
};

/* The flags are a long: later kernels may give its upper half a meaning. */
static const struct sock_filter ss_seal_unshare[] = {
    SS_LOAD_HIGH(args[0]),
    SS_IF(0, 0, SS_GO_GATE),
    SS_LOAD(args[0]),
    SS_IF_ANY(~SS_UNSHARE_ALLOWED, SS_GO_GATE, SS_GO_ALLOW),
};

static const struct sock_filter ss_seal_allow[] = {SS_ANSWER(SECCOMP_RET_ALLOW)};
static const struct sock_filter ss_seal_deny[] = {SS_ANSWER(SECCOMP_RET_ERRNO | EPERM)};

/* --------------------------------------------------------------- the filter */

struct ss_filter {
	struct sock_filter code[SS_FILTER_MAX];
	uint8_t place[SS_GO_LAST - SS_GO_FIRST + 1];
	uint16_t count;
};

_Static_assert(sizeof(ss_seal_tokens) / 8 + sizeof(ss_seal_native) / 2 +
			   sizeof(ss_seal_compat) / 2 + sizeof(ss_seal_prctl) / 8 +
			   sizeof(ss_seal_ambient) / 8 + sizeof(ss_seal_unshare) / 8 + 16 <=
		   SS_FILTER_MAX,
	       "all of the filter has room");

#define SS_COUNT(array) (sizeof(array) / sizeof(*(array)))
#define ss_filter_put(filter, array) ss_filter_add(filter, array, SS_COUNT(array))

static void
ss_filter_add(struct ss_filter *f, const struct sock_filter *code, size_t count)
{
	memcpy(f->code + f->count, code, count * sizeof(*code));
	f->count = (uint16_t)(f->count + count);
}

/* From here on the next instruction is what jumps to this place lead to. */
static void
ss_filter_place(struct ss_filter *f, unsigned place)
{
	f->place[place - SS_GO_FIRST] = (uint8_t)f->count;
}

/* Decides by the number, which the filter has loaded: the family, two that depend, the rest. */
static void
ss_filter_numbers(struct ss_filter *f, const uint16_t *numbers, size_t count, uint32_t prctl_number,
		  uint32_t unshare_number)
{
	const struct sock_filter depends[] = {
	    SS_IF(prctl_number, SS_GO_PRCTL, 0),
	    SS_IF(unshare_number, SS_GO_UNSHARE, SS_GO_ALLOW),
	};
	size_t i;

	for (i = 0; i < count; i++) {
		const struct sock_filter one = SS_IF(numbers[i], SS_GO_GATE, 0);

		ss_filter_add(f, &one, 1);
	}
	ss_filter_put(f, depends);
}

/*
 * Through the gate or not at all. The token once more, because a 32-bit program may have
 * code at any address: its pointers are as good here as anybody's.
 */
static void
ss_filter_gate(struct ss_filter *f)
{
	const uint64_t back = (uintptr_t)ss_child_gate_back;
	const struct sock_filter gate[] = {
	    SS_LOAD(arch),
	    SS_IF(SS_TOKEN, 0, SS_GO_DENY),
	    SS_LOAD(instruction_pointer),
	    SS_IF((uint32_t)back, 0, SS_GO_DENY),
	    SS_LOAD_HIGH(instruction_pointer),
	    SS_IF((uint32_t)(back >> 32), SS_GO_ALLOW, SS_GO_DENY),
	};

	ss_filter_put(f, gate);
}

/* Places become distances, counted from the instruction after the jump. */
static void
ss_filter_link(struct ss_filter *f)
{
	unsigned i;

	for (i = 0; i < f->count; i++) {
		struct sock_filter *jump = &f->code[i];

		if (BPF_CLASS(jump->code) != BPF_JMP)
			continue;
		if (jump->jt >= SS_GO_FIRST)
			jump->jt = (uint8_t)(f->place[jump->jt - SS_GO_FIRST] - i - 1);
		if (jump->jf >= SS_GO_FIRST)
			jump->jf = (uint8_t)(f->place[jump->jf - SS_GO_FIRST] - i - 1);
	}
}

static void
ss_filter_build(struct ss_filter *f)
{
	memset(f, 0, sizeof(*f));
	ss_filter_put(f, ss_seal_tokens);
	ss_filter_numbers(f, ss_seal_native, SS_COUNT(ss_seal_native), SYS_prctl, SYS_unshare);
	ss_filter_place(f, SS_GO_COMPAT);
	ss_filter_put(f, ss_seal_compat_start);
	ss_filter_numbers(f, ss_seal_compat, SS_COUNT(ss_seal_compat), SS_COMPAT_PRCTL,
			  SS_COMPAT_UNSHARE);
	ss_filter_place(f, SS_GO_PRCTL);
	ss_filter_put(f, ss_seal_prctl);
	ss_filter_place(f, SS_GO_AMBIENT);
	ss_filter_put(f, ss_seal_ambient);
	ss_filter_place(f, SS_GO_UNSHARE);
	ss_filter_put(f, ss_seal_unshare);
	ss_filter_place(f, SS_GO_GATE);
	ss_filter_gate(f);
	ss_filter_place(f, SS_GO_ALLOW);
	ss_filter_put(f, ss_seal_allow);
	ss_filter_place(f, SS_GO_DENY);
	ss_filter_put(f, ss_seal_deny);
	ss_filter_link(f);
}

/* ------------------------------------------------------------- putting it on */

/*
 * Ordinary memory: a forked child inherits both what it says and the filter itself. In a
 * section of its own, so that a look at what child code refers to can tell it from others.
 */
static struct {
	uint32_t on, busy;
} ss_seal_state __attribute__((section(".bss.ss_seal")));

/*
 * Whether the seal is on, by the kernel's word: the same call fails here and works
 * through the gate, which no filter but ours can bring about. setfsuid of an id that is
 * none changes nothing on any kernel, in any user namespace (setfsuid in kernel/sys.c);
 * it names the present id, and never -1. The word of memory only spares the question:
 * a page can be copied to where the filter is not.
 */
SS_API int
ss_is_sealed(void)
{
	if (!__atomic_load_n(&ss_seal_state.on, __ATOMIC_ACQUIRE))
		return 0;
	if (!SS_GUARDED(SEAL))
		return 1;
	return ss_sys1(SYS_setfsuid, -1) == -EPERM && ss_gate1(SYS_setfsuid, -1) >= 0;
}

/*
 * Lets one thread at a time through. A fork in the middle leaves the word set in a child
 * where nobody will clear it, so after a moment it counts for nothing: all that could
 * come of that is the same filter twice.
 */
static void
ss_seal_enter(void)
{
	const int64_t until = ss_now() + SS_SETTLE_NS;

	while (__atomic_exchange_n(&ss_seal_state.busy, 1, __ATOMIC_ACQUIRE) && ss_now() < until)
		(void)ss_sys0(SYS_sched_yield); /* cannot fail */
}

/* Refused already: by a sandbox, or by the seal of the process that we come from. */
SS_API int
ss_seal_hindered(void)
{
	const long answer = ss_sys1(SYS_setfsuid, -1);

	return answer < 0 ? (int)answer : 0;
}

static int
ss_seal_install(int32_t *ret_tid)
{
	struct ss_filter filter;
	struct sock_fprog program;
	long answer;

	ss_filter_build(&filter);
	program.len = filter.count;
	program.filter = filter.code;
	/*
	 * SPEC_ALLOW, because this is no sandbox: without it kernels before 5.16 turn off
	 * speculation past stores for us and all that we start. Not every emulator knows it.
	 */
	answer = ss_sys3(SYS_seccomp, SS_SET_MODE_FILTER, SS_FILTER_TSYNC | SS_FILTER_SPEC_ALLOW,
			 &program);
	if (answer == -EINVAL)
		answer = ss_sys3(SYS_seccomp, SS_SET_MODE_FILTER, SS_FILTER_TSYNC, &program);
	if (answer > 0) {
		*ret_tid = (int32_t)answer;
		return -ESRCH;
	}
	return (int)answer;
}

/*
 * Seals this process for good. Returns 0, or a negative errno and nothing has
 * changed: EACCES without CAP_SYS_ADMIN and without no_new_privs, which is never set
 * here; ESRCH when a thread has a filter that ours lacks, and then *ret_tid is its id
 * (the errno of SECCOMP_FILTER_FLAG_TSYNC_ESRCH); EPERM when a sandbox or a seal that we
 * inherited is in the way; ENOSYS or EINVAL from a kernel without filters. ENOTSUP is the
 * exception: it took the filter, and does not do what that says. Once sealed, calling it
 * again is no error and adds nothing.
 */
SS_API int
ss_seal(int32_t *ret_tid)
{
	int error = 0;

	*ret_tid = 0;
	ss_seal_enter();
	if (ss_is_sealed() || (error = ss_seal_hindered()))
		goto leave;
	if (SS_GUARDED(SEAL) && (error = ss_seal_install(ret_tid)))
		goto leave;
	__atomic_store_n(&ss_seal_state.on, 1, __ATOMIC_RELEASE);
	if (!ss_is_sealed()) {
		__atomic_store_n(&ss_seal_state.on, 0, __ATOMIC_RELEASE);
		error = -ENOTSUP;
	}
leave:
	__atomic_store_n(&ss_seal_state.busy, 0, __ATOMIC_RELEASE);
	return error;
}
