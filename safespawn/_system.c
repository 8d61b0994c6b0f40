/*
 * What system(3) does to the signals of its caller while a command runs: SIGINT and SIGQUIT are ignored, as long as
 * one of any number of callers waits, and SIGCHLD is blocked in its thread. The count is in the page that a forked
 * child finds empty: of those who wait, none is its own.
 */

static struct sigaction ss_system_before[2];
static const int ss_system_ignored[2] = {SIGINT, SIGQUIT};

#define SS_BIT(signal) (1ull << ((signal) - 1))

static void
ss_system_ignore(void)
{
	struct sigaction ignore;
	int i;

	memset(&ignore, 0, sizeof(ignore));
	ignore.sa_handler = SIG_IGN;
	for (i = 0; i < 2; i++)
		(void)sigaction(ss_system_ignored[i], &ignore, &ss_system_before[i]); /* good arguments */
}

static void
ss_system_restore(void)
{
	int i;

	for (i = 0; i < 2; i++)
		(void)sigaction(ss_system_ignored[i], &ss_system_before[i], NULL); /* good arguments */
}

/* Both go into ret_call: the mask before, and what the command is to have default because it was not ignored before. */
SS_API void
ss_system_enter(struct ss_system *ret_call)
{
	const uint64_t child = SS_BIT(SIGCHLD), process = ss_process_number();
	int i;

	ss_queue_enter(&ss_process->systems);
	if (!ss_process->in_system++)
		ss_system_ignore();
	ret_call->sigdefault = 0;
	for (i = 0; i < 2; i++)
		if (ss_system_before[i].sa_handler != SIG_IGN)
			ret_call->sigdefault |= SS_BIT(ss_system_ignored[i]);
	ss_queue_leave(&ss_process->systems);
	(void)ss_sys4(SYS_rt_sigprocmask, SIG_BLOCK, &child, &ret_call->mask, 8); /* good arguments */
	ret_call->tid = (int32_t)ss_sys0(SYS_gettid);
	ret_call->process = process;
}

/*
 * Twice is no error. In a child that the caller's thread has forked meanwhile, nobody else would put the signals
 * back. Another thread that collects what was left over does not touch its own mask.
 */
SS_API void
ss_system_leave(struct ss_system *call)
{
	const uint64_t child = SS_BIT(SIGCHLD);
	const int forked = call->process != ss_process_number();

	if (!call->process)
		return;
	ss_queue_enter(&ss_process->systems);
	if (forked || !--ss_process->in_system)
		ss_system_restore();
	ss_queue_leave(&ss_process->systems);
	if (!(call->mask & child) && (forked || call->tid == ss_sys0(SYS_gettid)))
		(void)ss_sys4(SYS_rt_sigprocmask, SIG_UNBLOCK, &child, NULL, 8); /* good arguments */
	call->process = 0;
}
