/*
 * What stands in for libc's functions that change credentials. Part of _native.c.
 *
 * Each wrapper does what _credlock.c says around the real function. Where only some
 * arguments change anything, all others go straight through. `syscall` is an assembler
 * gate, not a function: for numbers that do not matter it jumps to the real one and
 * leaves stack, registers and return address as they are, which a clone with a stack of
 * its own depends on, as does whoever passes a seventh argument.
 */
#include <spawn.h>

/* The family: number in the records, name of the symbol, wrapper. libpsx is not libc. */
#define SS_FAMILY(X)                                                            \
	X(SETUID, setuid)                                                       \
	X(SETEUID, seteuid)                                                     \
	X(SETREUID, setreuid)                                                   \
	X(SETRESUID, setresuid)                                                 \
	X(SETGID, setgid)                                                       \
	X(SETEGID, setegid)                                                     \
	X(SETREGID, setregid)                                                   \
	X(SETRESGID, setresgid)                                                 \
	X(SETGROUPS, setgroups)                                                 \
	X(INITGROUPS, initgroups)                                               \
	X(SETFSUID, setfsuid)                                                   \
	X(SETFSGID, setfsgid)                                                   \
	X(CAPSET, capset)                                                       \
	X(PRCTL, prctl)                                                         \
	X(SETNS, setns)                                                         \
	X(UNSHARE, unshare)                                                     \
	X(CHROOT, chroot)                                                       \
	X(PIVOT_ROOT, pivot_root)                                               \
	X(SYSCALL, syscall)                                                     \
	X(PSX_SYSCALL3, psx_syscall3)                                           \
	X(PSX_SYSCALL6, psx_syscall6)                                           \
	X(PSX_SYSCALL, __psx_syscall)                                           \
	X(VFORK, vfork)                                                         \
	X(POSIX_SPAWN, posix_spawn)                                             \
	X(POSIX_SPAWNP, posix_spawnp)

enum {
	SS_CALL_NONE,
#define SS_CALL_ENUM(name, symbol) SS_CALL_##name,
	SS_FAMILY(SS_CALL_ENUM)
#undef SS_CALL_ENUM
	/* Known by number only: these have no function in libc. */
	SS_CALL_SECCOMP,
	SS_CALL_LANDLOCK,
	SS_CALL_LSM,
	SS_CALL_KEYCTL,
	SS_CALL_RAW,  /* guards.credential_change() */
	SS_CALL_SEAL, /* guards.seal() */
	SS_CALL_COUNT
};

enum { SS_THROUGH_SYSCALL = 1, SS_THROUGH_PSX = 2, SS_UNCOMPARABLE = 4 };

#ifndef SYS_seccomp
#error "safespawn needs headers of Linux 3.17 or newer"
#endif
#define SS_NR_LANDLOCK 446 /* landlock_restrict_self, the same on both machines */
#define SS_NR_LSM 460      /* lsm_set_self_attr */
#define SS_X32_BIT 0x40000000u

/*
 * One function: the real one is NULL where libc (or libpsx) has none or was not looked for.
 * What is compared with is the complement: a signal may leave what is in a register on the
 * stack of its thread, where it would pass for a pointer that somebody took.
 */
struct ss_hook {
	const char *name;
	void *wrapper, *real;
	uintptr_t complement; /* of the real one */
};

static struct ss_hook ss_hooked[SS_CALL_SECCOMP];

/* In _foreign.c. */
static void *ss_real_fork;
static int ss_wrap_posix_spawn(pid_t *, const char *, const posix_spawn_file_actions_t *,
			       const posix_spawnattr_t *, char *const *, char *const *);
static int ss_wrap_posix_spawnp(pid_t *, const char *, const posix_spawn_file_actions_t *,
				const posix_spawnattr_t *, char *const *, char *const *);

#define SS_REAL(call, type) ((type)ss_hooked[SS_CALL_##call].real)

/* The name of a call, for the records; NULL for none. */
SS_API const char *
ss_call_name(int32_t call)
{
	static const char *const names[] = {
#define SS_CALL_TEXT(name, symbol) [SS_CALL_##name] = #symbol,
	    SS_FAMILY(SS_CALL_TEXT)
#undef SS_CALL_TEXT
	    [SS_CALL_SECCOMP] = "seccomp",
	    [SS_CALL_LANDLOCK] = "landlock_restrict_self",
	    [SS_CALL_LSM] = "lsm_set_self_attr",
	    [SS_CALL_KEYCTL] = "keyctl",
	    [SS_CALL_RAW] = "credential_change",
	    [SS_CALL_SEAL] = "seal",
	};

	return call > SS_CALL_NONE && call < SS_CALL_COUNT ? names[call] : NULL;
}

/* ------------------------------------------------------- which arguments matter */

/* Options of prctl(2) that change what a process may do. Returns 0, 1, or the flag. */
static int
ss_prctl_matters(unsigned option, unsigned long how, uint32_t *ret_through)
{
	switch (option) {
	case PR_SET_SECCOMP: /* on this thread only, and /proc shows how many, not which */
	case PR_SET_SECUREBITS: /* on this thread only, and /proc does not show them */
		*ret_through |= SS_UNCOMPARABLE;
		return 1;
	case PR_SET_KEEPCAPS:
	case PR_SET_DUMPABLE:
	case PR_SET_NO_NEW_PRIVS:
	case PR_CAPBSET_DROP:
		return 1;
	case PR_CAP_AMBIENT:
		return how != PR_CAP_AMBIENT_IS_SET;
	default:
		return 0;
	}
}

/* unshare(2): all but what only takes a table of this thread's own. */
static int
ss_unshare_matters(unsigned long flags)
{
	const unsigned long harmless = 0x100 /* CLONE_VM */ | 0x400 /* FILES */ | 0x800 /* SIGHAND */ |
				       0x10000 /* THREAD */ | 0x40000 /* SYSVSEM */;

	return (flags & ~harmless) != 0;
}

static int
ss_seccomp_matters(uint32_t operation, uint32_t flags, uint32_t *ret_through)
{
	if (operation != 0 && operation != 1) /* SECCOMP_SET_MODE_STRICT, _FILTER */
		return 0;
	if (operation == 0 || !(flags & 1)) /* SECCOMP_FILTER_FLAG_TSYNC: on all threads alike */
		*ret_through |= SS_UNCOMPARABLE;
	return 1;
}

/* KEYCTL_JOIN_SESSION_KEYRING, KEYCTL_SESSION_TO_PARENT: keyctl(2). */
static int
ss_keyctl_matters(uint32_t operation, uint32_t *ret_through)
{
	*ret_through |= SS_UNCOMPARABLE;
	return operation == 1 || operation == 18;
}

/* The call behind each number that the gate does not wave through. */
static const uint8_t ss_gate_numbers[512] __attribute__((used)) = {
    [SYS_setuid] = SS_CALL_SETUID,
    [SYS_setgid] = SS_CALL_SETGID,
    [SYS_setreuid] = SS_CALL_SETREUID,
    [SYS_setregid] = SS_CALL_SETREGID,
    [SYS_setresuid] = SS_CALL_SETRESUID,
    [SYS_setresgid] = SS_CALL_SETRESGID,
    [SYS_setgroups] = SS_CALL_SETGROUPS,
    [SYS_setfsuid] = SS_CALL_SETFSUID,
    [SYS_setfsgid] = SS_CALL_SETFSGID,
    [SYS_capset] = SS_CALL_CAPSET,
    [SYS_prctl] = SS_CALL_PRCTL,
    [SYS_setns] = SS_CALL_SETNS,
    [SYS_unshare] = SS_CALL_UNSHARE,
    [SYS_chroot] = SS_CALL_CHROOT,
    [SYS_pivot_root] = SS_CALL_PIVOT_ROOT,
    [SYS_seccomp] = SS_CALL_SECCOMP,
    [SYS_keyctl] = SS_CALL_KEYCTL,
    [SS_NR_LANDLOCK] = SS_CALL_LANDLOCK,
    [SS_NR_LSM] = SS_CALL_LSM,
};

/* The call that a system call amounts to, or 0 when it changes nothing. */
static int
ss_number_matters(long number, const long *a, uint32_t *ret_through)
{
	const uint32_t bare = (uint32_t)number & ~SS_X32_BIT; /* the kernel looks at 32 bits */
	const int call = bare < sizeof(ss_gate_numbers) ? ss_gate_numbers[bare] : 0;

	switch (call) {
	case SS_CALL_PRCTL:
		return ss_prctl_matters((unsigned)a[0], (unsigned long)a[1], ret_through) ? call : 0;
	case SS_CALL_UNSHARE:
		return ss_unshare_matters((unsigned long)a[0]) ? call : 0;
	case SS_CALL_SECCOMP:
		return ss_seccomp_matters((uint32_t)a[0], (uint32_t)a[1], ret_through) ? call : 0;
	case SS_CALL_KEYCTL:
		return ss_keyctl_matters((uint32_t)a[0], ret_through) ? call : 0;
	case SS_CALL_LANDLOCK:
	case SS_CALL_LSM:
		*ret_through |= SS_UNCOMPARABLE;
		return call;
	default:
		return call;
	}
}

/* -------------------------------------------------------------------- wrappers */

static void
ss_wrap_begin(struct ss_changing *c, int call, uint32_t through, uint64_t a, uint64_t b, uint64_t d)
{
	ss_change_begin(c, call, through);
	c->seen.arguments[0] = a;
	c->seen.arguments[1] = b;
	c->seen.arguments[2] = d;
}

/* errno is the real function's: nothing here touches it. */
static long
ss_wrap_end(struct ss_changing *c, long answer)
{
	const int error = answer == -1 ? errno : 0;

	if (c->lock && !error && (c->seen.through & SS_UNCOMPARABLE) && ss_has_others())
		__atomic_store_n(&c->lock->stain, (uint32_t)c->seen.call + 1, __ATOMIC_SEQ_CST);
	ss_change_end(c, error);
	return answer;
}

#define SS_WRAP1(call, symbol, type)                                            \
	static int ss_wrap_##symbol(type a)                                     \
	{                                                                       \
		struct ss_changing c;                                           \
                                                                                \
		ss_wrap_begin(&c, SS_CALL_##call, 0, (uint64_t)a, 0, 0);        \
		return (int)ss_wrap_end(&c, SS_REAL(call, int (*)(type))(a));   \
	}
#define SS_WRAP2(call, symbol, type, second)                                    \
	static int ss_wrap_##symbol(type a, second b)                           \
	{                                                                       \
		struct ss_changing c;                                           \
                                                                                \
		ss_wrap_begin(&c, SS_CALL_##call, 0, (uint64_t)a, (uint64_t)b, 0); \
		return (int)ss_wrap_end(&c, SS_REAL(call, int (*)(type, second))(a, b)); \
	}
#define SS_WRAP3(call, symbol, type)                                            \
	static int ss_wrap_##symbol(type a, type b, type d)                     \
	{                                                                       \
		struct ss_changing c;                                           \
                                                                                \
		ss_wrap_begin(&c, SS_CALL_##call, 0, a, b, d);                  \
		return (int)ss_wrap_end(&c, SS_REAL(call, int (*)(type, type, type))(a, b, d)); \
	}

SS_WRAP1(SETUID, setuid, uid_t)
SS_WRAP1(SETEUID, seteuid, uid_t)
SS_WRAP1(SETGID, setgid, gid_t)
SS_WRAP1(SETEGID, setegid, gid_t)
SS_WRAP2(SETREUID, setreuid, uid_t, uid_t)
SS_WRAP2(SETREGID, setregid, gid_t, gid_t)
SS_WRAP2(SETGROUPS, setgroups, size_t, const gid_t *)
SS_WRAP2(CAPSET, capset, void *, const void *)
SS_WRAP2(SETNS, setns, int, int)
SS_WRAP3(SETRESUID, setresuid, uid_t)
SS_WRAP3(SETRESGID, setresgid, gid_t)

/* A path of the caller's, for the record: read by the kernel, for it may lead nowhere. */
static void
ss_wrap_text(struct ss_changing *c, const char *path)
{
	const struct iovec to = {c->seen.text, sizeof(c->seen.text) - 1};
	const struct iovec from = {(void *)(uintptr_t)path, sizeof(c->seen.text) - 1};
	unsigned i;

	if (!c->lock || ss_sys6(SYS_process_vm_readv, ss_getpid(), &to, 1, &from, 1, 0) > 0)
		return;
	/* It may end right before a page that is not there: one byte after the other. */
	for (i = 0; i < sizeof(c->seen.text) - 1; i++) {
		const struct iovec one = {c->seen.text + i, 1}, at = {(void *)(uintptr_t)(path + i), 1};

		if (ss_sys6(SYS_process_vm_readv, ss_getpid(), &one, 1, &at, 1, 0) != 1 || !c->seen.text[i])
			return;
	}
}

static int
ss_wrap_chroot(const char *path)
{
	struct ss_changing c;

	ss_wrap_begin(&c, SS_CALL_CHROOT, 0, 0, 0, 0);
	ss_wrap_text(&c, path);
	return (int)ss_wrap_end(&c, SS_REAL(CHROOT, int (*)(const char *))(path));
}

static int
ss_wrap_pivot_root(const char *root, const char *old)
{
	struct ss_changing c;

	ss_wrap_begin(&c, SS_CALL_PIVOT_ROOT, 0, 0, 0, 0);
	ss_wrap_text(&c, root);
	return (int)ss_wrap_end(&c, SS_REAL(PIVOT_ROOT, int (*)(const char *, const char *))(root, old));
}

/* It reads files, where a thread can be cancelled: that would leave the lock taken for ever. */
static int
ss_wrap_initgroups(const char *user, gid_t group)
{
	struct ss_changing c;
	int answer, state;

	(void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	ss_wrap_begin(&c, SS_CALL_INITGROUPS, 0, (uint64_t)(uintptr_t)user, group, 0);
	answer = (int)ss_wrap_end(&c, SS_REAL(INITGROUPS, int (*)(const char *, gid_t))(user, group));
	(void)pthread_setcancelstate(state, &state);
	return answer;
}

/* These answer the old id, so -1 is no error: setfsuid(2). */
static int
ss_wrap_setfsuid(uid_t uid)
{
	struct ss_changing c;
	int answer;

	ss_wrap_begin(&c, SS_CALL_SETFSUID, 0, uid, 0, 0);
	answer = SS_REAL(SETFSUID, int (*)(uid_t))(uid);
	(void)ss_wrap_end(&c, 0);
	return answer;
}

static int
ss_wrap_setfsgid(gid_t gid)
{
	struct ss_changing c;
	int answer;

	ss_wrap_begin(&c, SS_CALL_SETFSGID, 0, gid, 0, 0);
	answer = SS_REAL(SETFSGID, int (*)(gid_t))(gid);
	(void)ss_wrap_end(&c, 0);
	return answer;
}

static int
ss_wrap_unshare(int flags)
{
	struct ss_changing c;

	if (!ss_unshare_matters((unsigned long)flags))
		return SS_REAL(UNSHARE, int (*)(int))(flags);
	ss_wrap_begin(&c, SS_CALL_UNSHARE, 0, (uint64_t)flags, 0, 0);
	return (int)ss_wrap_end(&c, SS_REAL(UNSHARE, int (*)(int))(flags));
}

/* Declared with "..." by libc; five registers are what it takes on both machines. */
static int
ss_wrap_prctl(int option, unsigned long a, unsigned long b, unsigned long d, unsigned long e)
{
	struct ss_changing c;
	uint32_t through = 0;

	if (!ss_prctl_matters((unsigned)option, a, &through))
		return SS_REAL(PRCTL, int (*)(int, ...))(option, a, b, d, e);
	ss_wrap_begin(&c, SS_CALL_PRCTL, through, (uint64_t)option, a, b);
	return (int)ss_wrap_end(&c, SS_REAL(PRCTL, int (*)(int, ...))(option, a, b, d, e));
}

/* Where the gate jumps with a number of the family; the stack holds the last argument. */
static long __attribute__((used))
ss_wrap_slow_syscall(long number, long a, long b, long d, long e, long f, long g)
{
	const long arguments[3] = {a, b, d};
	struct ss_changing c;
	uint32_t through = SS_THROUGH_SYSCALL;
	const int call = ss_number_matters(number, arguments, &through);

	if (!call)
		return SS_REAL(SYSCALL, long (*)(long, ...))(number, a, b, d, e, f, g);
	ss_wrap_begin(&c, call, through, (uint64_t)a, (uint64_t)b, (uint64_t)d);
	if (call == SS_CALL_CHROOT || call == SS_CALL_PIVOT_ROOT)
		ss_wrap_text(&c, (const char *)a);
	return ss_wrap_end(&c, SS_REAL(SYSCALL, long (*)(long, ...))(number, a, b, d, e, f, g));
}

/*
 * libpsx makes every thread do the same system call, by a signal, through libc's syscall:
 * the changers in those handlers join the one here.
 */
static long
ss_psx(void *real, long number, const long *a, long last)
{
	long (*const psx)(long, ...) = (long (*)(long, ...))real;
	struct ss_changing c;
	uint32_t through = SS_THROUGH_PSX;
	const int call = ss_number_matters(number, a, &through);

	through &= ~(uint32_t)SS_UNCOMPARABLE; /* on all threads alike */
	if (!call)
		return psx(number, a[0], a[1], a[2], a[3], a[4], a[5], last);
	ss_wrap_begin(&c, call, through, (uint64_t)a[0], (uint64_t)a[1], (uint64_t)a[2]);
	return ss_wrap_end(&c, psx(number, a[0], a[1], a[2], a[3], a[4], a[5], last));
}

static long
ss_wrap_psx_syscall3(long number, long a, long b, long d)
{
	const long arguments[6] = {a, b, d, 0, 0, 0};

	return ss_psx(ss_hooked[SS_CALL_PSX_SYSCALL3].real, number, arguments, 0);
}

static long
ss_wrap_psx_syscall6(long number, long a, long b, long d, long e, long f, long g)
{
	const long arguments[6] = {a, b, d, e, f, g};

	return ss_psx(ss_hooked[SS_CALL_PSX_SYSCALL6].real, number, arguments, 0);
}

/*
 * Variadic, and always called with seven more: the system call's arguments, then 6, 5, 4 down
 * to 0 by the macro psx_syscall(), so that the seventh tells how many of them are arguments.
 */
static long
ss_wrap___psx_syscall(long number, long a, long b, long d, long e, long f, long g, long count)
{
	const long arguments[6] = {a, b, d, e, f, g};

	return ss_psx(ss_hooked[SS_CALL_PSX_SYSCALL].real, number, arguments, count);
}

/* ------------------------------------------------------------------- the gates */

/*
 * syscall(3): for a number below 512 that the table names to the C function above, else
 * straight on. The kernel looks at the low 32 bits of the number, and on x86-64 the x32
 * numbers have one more bit. Only registers that a call may change anyway are used; a jump
 * and not a call keeps the shadow stack in order.
 */
#if defined(__x86_64__)
__asm__(".pushsection .text\n"
	".balign 16\n"
	".type ss_wrap_syscall, @function\n"
	"ss_wrap_syscall:\n"
	"	.cfi_startproc\n"
	"	endbr64\n"
	"	movl %edi, %eax\n"
	"	andl $0xbfffffff, %eax\n"
	"	cmpl $512, %eax\n"
	"	jae 1f\n"
	"	leaq ss_gate_numbers(%rip), %r11\n"
	"	cmpb $0, (%r11, %rax)\n"
	"	jne ss_wrap_slow_syscall\n"
	"1:	jmp *ss_gate_real(%rip)\n"
	"	.cfi_endproc\n"
	".size ss_wrap_syscall, . - ss_wrap_syscall\n"
	".balign 16\n"
	".type ss_wrap_vfork, @function\n"
	"ss_wrap_vfork:\n"
	"	.cfi_startproc\n"
	"	endbr64\n"
	"	subq $8, %rsp\n"
	"	.cfi_adjust_cfa_offset 8\n"
	"	call ss_choose_fork\n"
	"	addq $8, %rsp\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	jmp *%rax\n"
	"	.cfi_endproc\n"
	".size ss_wrap_vfork, . - ss_wrap_vfork\n"
	".popsection\n");
#else
__asm__(".pushsection .text\n"
	".balign 16\n"
	".type ss_wrap_syscall, %function\n"
	"ss_wrap_syscall:\n"
	"	.cfi_startproc\n"
	"	hint #34\n" /* bti c */
	"	mov w9, w0\n"
	"	cmp w9, #512\n"
	"	b.hs 1f\n"
	"	adrp x10, ss_gate_numbers\n"
	"	add x10, x10, :lo12:ss_gate_numbers\n"
	"	ldrb w11, [x10, w9, uxtw]\n"
	"	cbnz w11, 2f\n"
	"1:	adrp x16, ss_gate_real\n"
	"	ldr x16, [x16, :lo12:ss_gate_real]\n"
	"	br x16\n"
	"2:	b ss_wrap_slow_syscall\n"
	"	.cfi_endproc\n"
	".size ss_wrap_syscall, . - ss_wrap_syscall\n"
	".balign 16\n"
	".type ss_wrap_vfork, %function\n"
	"ss_wrap_vfork:\n"
	"	.cfi_startproc\n"
	"	hint #34\n"
	"	stp x29, x30, [sp, #-16]!\n"
	"	.cfi_adjust_cfa_offset 16\n"
	"	bl ss_choose_fork\n"
	"	mov x16, x0\n"
	"	ldp x29, x30, [sp], #16\n"
	"	.cfi_adjust_cfa_offset -16\n"
	"	br x16\n"
	"	.cfi_endproc\n"
	".size ss_wrap_vfork, . - ss_wrap_vfork\n"
	".popsection\n");
#endif

static void *ss_gate_real __attribute__((used)); /* libc's syscall */
long ss_wrap_syscall(long, ...) __attribute__((visibility("hidden")));
long ss_wrap_vfork(void) __attribute__((visibility("hidden")));
