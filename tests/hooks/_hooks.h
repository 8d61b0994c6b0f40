/*
 * Test build only (-DSS_TEST_HOOKS): switches guards off one by one, makes a stage
 * fail, and holds the child at a stage. The product has none of this: there the
 * two macros are constants, and a test asserts that the symbol is missing.
 */
enum {
	SS_OFF_SIGNALS_BLOCKED = 1 << 0,
	SS_OFF_ALONE_OR_APART = 1 << 1,
	SS_OFF_DROP_APART = 1 << 2,
	SS_OFF_WINDOW_BOUNDED = 1 << 3,
	SS_OFF_INPUTS_SEALED = 1 << 4,
	SS_OFF_CREDS_AGREE = 1 << 5,
	SS_OFF_STACK_GUARDED = 1 << 6,
	SS_OFF_FDS_CLOSED = 1 << 7,
	SS_OFF_OUTCOME_TOLD = 1 << 8,
	SS_OFF_EXE_HELD = 1 << 9,
	SS_OFF_DROP_VERIFIED = 1 << 10,
	SS_OFF_CHANGES_WAIT = 1 << 11,
	SS_OFF_CHANGE_BOUNDED = 1 << 12,
	SS_OFF_EPOCH_AGREES = 1 << 13,
	SS_OFF_LOCK_COVERS = 1 << 14,
	SS_OFF_TASKS_ALIKE = 1 << 15,
	SS_OFF_FOREIGN_LOCKED = 1 << 16,
	SS_OFF_SEAL = 1 << 17,
	SS_OFF_PLAN_SEALED = 1 << 18,
	SS_OFF_LEVEL = 1 << 19,
	SS_OFF_SEALED_SET_ID = 1 << 20,
	SS_OFF_RECORD_ONE_LINE = 1 << 21,
	SS_OFF_OUTCOME_FITS = 1 << 22,
	SS_OFF_LEDGER_OURS = 1 << 23,
	SS_OFF_HELPER_OBEYS = 1 << 24,
	SS_OFF_HELPER_ASKED = 1 << 25,
	SS_OFF_HELPER_RETIRES = 1 << 26,
	SS_OFF_CLAIM_FIRST = 1 << 27,
	SS_OFF_HELPER_ALIKE = 1 << 28,
	SS_OFF_POOL_PARKED = 1 << 29,
};

struct ss_hooks {
	uint32_t off;
	int32_t fail_stage, fail_error; /* this stage answers this errno */
	int32_t signal_stage, signal;   /* at this stage the child sends itself a signal */
	int32_t park_stage, ready_fd, go_fd; /* says so on one, waits on the other */
	int32_t overrun_stage, overrun_bytes; /* how far below its stack it writes */
	int32_t in_launcher;            /* steps that the launcher has too are left alone before it */
	int32_t arm_error;              /* arming fails with it */
	int32_t old_libc;               /* libc is as this glibc 2 was; 0: it is as it is */
	int32_t nth, came; /* 0: all that come to a stage named above are meant; else the nth alone */
	uint64_t reached;               /* a bit for each stage the child came to */
	/* What the credential lock was seen to do, counted apart from its own word. */
	uint32_t spawners_in, changers_in;
	uint64_t spawns_in, both_in;    /* entries of spawners, and of either beside the other */
	int64_t longest_wait_ns;        /* of a changer */
	int32_t tell_ready_fd, tell_go_fd; /* a changer that is about to tell a child does as at a park stage; 0: not */
	uint32_t found_busy;            /* looks of a changer at a slot that another had */
	int32_t in_grace;               /* a child that was killed stays in its grace for ever */
	uint32_t late_looks;            /* at a child that was killed, of changers that have waited for longer than any grace */
};

static struct ss_hooks ss_hooks;

/* Writes a word on every page from here down to the bytes asked for. */
static SS_CHILD void
ss_child_overrun(int32_t bytes)
{
	volatile unsigned char here = 0;
	volatile unsigned char *top = &here;
	int32_t down;

	for (down = 0; down < bytes; down += 4096)
		top[-down] = 0x5a;
}

/* Children of one batch come here side by side. */
static SS_CHILD int
ss_child_is_meant(int stage, int32_t named)
{
	if (stage != named)
		return 0;
	return !ss_hooks.nth || __atomic_add_fetch(&ss_hooks.came, 1, __ATOMIC_SEQ_CST) == ss_hooks.nth;
}

static SS_CHILD int
ss_child_hook(int stage)
{
	char dot = '.';

	(void)__atomic_fetch_or(&ss_hooks.reached, 1ull << stage, __ATOMIC_SEQ_CST);
	if (ss_child_is_meant(stage, ss_hooks.park_stage)) {
		(void)ss_sys3(SYS_write, ss_hooks.ready_fd, &dot, 1);
		(void)ss_sys3(SYS_read, ss_hooks.go_fd, &dot, 1);
	}
	if (ss_child_is_meant(stage, ss_hooks.signal_stage))
		(void)ss_sys2(SYS_kill, ss_sys0(SYS_getpid), ss_hooks.signal);
	if (stage == ss_hooks.overrun_stage)
		ss_child_overrun(ss_hooks.overrun_bytes);
	return ss_child_is_meant(stage, ss_hooks.fail_stage) ? ss_hooks.fail_error : 0;
}

/* In the parent only. Whoever comes second sees the first: then both are in. */
static void
ss_spawner_hook(int by)
{
	(void)__atomic_add_fetch(&ss_hooks.spawners_in, by, __ATOMIC_SEQ_CST);
	if (by < 0)
		return;
	(void)__atomic_add_fetch(&ss_hooks.spawns_in, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&ss_hooks.changers_in, __ATOMIC_SEQ_CST))
		(void)__atomic_add_fetch(&ss_hooks.both_in, 1, __ATOMIC_SEQ_CST);
}

static void
ss_changer_hook(int by, int64_t waited_ns)
{
	int64_t longest = __atomic_load_n(&ss_hooks.longest_wait_ns, __ATOMIC_SEQ_CST);

	(void)__atomic_add_fetch(&ss_hooks.changers_in, by, __ATOMIC_SEQ_CST);
	if (by > 0 && __atomic_load_n(&ss_hooks.spawners_in, __ATOMIC_SEQ_CST))
		(void)__atomic_add_fetch(&ss_hooks.both_in, 1, __ATOMIC_SEQ_CST);
	while (waited_ns > longest && !__atomic_compare_exchange_n(&ss_hooks.longest_wait_ns, &longest, waited_ns,
								   0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

/* The first changer only: the others are to come by. */
static void
ss_tell_hook(void)
{
	const int32_t go = __atomic_exchange_n(&ss_hooks.tell_go_fd, 0, __ATOMIC_SEQ_CST);
	char dot = '.';

	if (!go)
		return;
	(void)ss_sys3(SYS_write, ss_hooks.tell_ready_fd, &dot, 1);
	(void)ss_sys3(SYS_read, go, &dot, 1);
}

static void
ss_killed_hook(uint32_t is_killed, int64_t *killed_ns, int is_late)
{
	if (!is_killed || !ss_hooks.in_grace)
		return;
	*killed_ns = INT64_MAX;
	if (is_late)
		(void)__atomic_add_fetch(&ss_hooks.late_looks, 1, __ATOMIC_SEQ_CST);
}

/* The launcher has hooks of its own, which came with the plan. */
#define SS_COURIER_HOOK(stage) (ss_hooks.in_launcher ? 0 : ss_child_hook(stage))
#define SS_SPAWNER_HOOK(by) ss_spawner_hook(by)
#define SS_CHANGER_HOOK(by, waited_ns) ss_changer_hook(by, waited_ns)
#define SS_TELL_HOOK() ss_tell_hook()
#define SS_BUSY_HOOK() ((void)__atomic_add_fetch(&ss_hooks.found_busy, 1, __ATOMIC_SEQ_CST))
#define SS_KILLED_HOOK(is_killed, killed_ns, is_late) ss_killed_hook(is_killed, killed_ns, is_late)
#define SS_HOOK(stage) ss_child_hook(stage)
#define SS_ARM_HOOK() ss_hooks.arm_error
#define SS_HAS(function, glibc_2) ((function) != NULL && !(ss_hooks.old_libc && ss_hooks.old_libc < (glibc_2)))
#define SS_GUARDED(guard) (!(ss_hooks.off & SS_OFF_##guard))
