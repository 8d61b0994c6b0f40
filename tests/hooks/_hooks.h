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
};

struct ss_hooks {
	uint32_t off;
	int32_t fail_stage, fail_error; /* this stage answers this errno */
	int32_t signal_stage, signal;   /* at this stage the child sends itself a signal */
	int32_t park_stage, ready_fd, go_fd; /* says so on one, waits on the other */
	int32_t overrun_stage, overrun_bytes; /* how far below its stack it writes */
	int32_t arm_error;              /* arming fails with it */
	uint64_t reached;               /* a bit for each stage the child came to */
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

#define SS_HOOK(stage) ss_child_hook(stage)
#define SS_ARM_HOOK() ss_hooks.arm_error
#define SS_GUARDED(guard) (!(ss_hooks.off & SS_OFF_##guard))
