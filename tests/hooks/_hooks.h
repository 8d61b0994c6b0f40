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
};

struct ss_hooks {
	uint32_t off;
	int32_t fail_stage, fail_error; /* this stage answers this errno */
	int32_t signal_stage, signal;   /* at this stage the child sends itself a signal */
	int32_t park_stage, ready_fd, go_fd; /* says so on one, waits on the other */
	int32_t overrun_stage, overrun_bytes; /* how far below its stack it writes */
	int32_t in_launcher;            /* steps that the launcher has too are left alone before it */
	int32_t arm_error;              /* arming fails with it */
	uint64_t reached;               /* a bit for each stage the child came to */
	/* What the credential lock was seen to do, counted apart from its own word. */
	uint32_t spawners_in, changers_in;
	uint64_t spawns_in, both_in;    /* entries of spawners, and of either beside the other */
	int64_t longest_wait_ns;        /* of a changer */
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

static SS_CHILD int
ss_child_hook(int stage)
{
	char dot = '.';

	ss_hooks.reached |= 1ull << stage;
	if (stage == ss_hooks.park_stage) {
		(void)ss_sys3(SYS_write, ss_hooks.ready_fd, &dot, 1);
		(void)ss_sys3(SYS_read, ss_hooks.go_fd, &dot, 1);
	}
	if (stage == ss_hooks.signal_stage)
		(void)ss_sys2(SYS_kill, ss_sys0(SYS_getpid), ss_hooks.signal);
	if (stage == ss_hooks.overrun_stage)
		ss_child_overrun(ss_hooks.overrun_bytes);
	return stage == ss_hooks.fail_stage ? ss_hooks.fail_error : 0;
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

/* The launcher has hooks of its own, which came with the plan. */
#define SS_COURIER_HOOK(stage) (ss_hooks.in_launcher ? 0 : ss_child_hook(stage))
#define SS_SPAWNER_HOOK(by) ss_spawner_hook(by)
#define SS_CHANGER_HOOK(by, waited_ns) ss_changer_hook(by, waited_ns)
#define SS_HOOK(stage) ss_child_hook(stage)
#define SS_ARM_HOOK() ss_hooks.arm_error
#define SS_GUARDED(guard) (!(ss_hooks.off & SS_OFF_##guard))
