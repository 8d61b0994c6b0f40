/*
 * Takes a plan out of the sealed file that the parent made: what is checked here holds until
 * the exec. Part of the launcher and of the helper. plan-sealed (T-29)
 */

static void *
ss_mapped(int32_t fd, size_t bytes, int how, int flags)
{
	const long at = ss_sys6(SYS_mmap, NULL, bytes, how, flags, fd, 0);

	return at < 0 && at > -4096 ? NULL : (void *)at;
}

/* Where to tell: NULL if there is no such place. Beyond the end of its file it would be SIGBUS. */
static struct ss_report *
ss_report_mapped(int32_t fd)
{
	struct stat st;

	if (ss_sys4(SYS_newfstatat, fd, "", &st, AT_EMPTY_PATH) < 0 || st.st_size < (off_t)sizeof(struct ss_report))
		return NULL;
	return ss_mapped(fd, sizeof(struct ss_report), PROT_READ | PROT_WRITE, MAP_SHARED);
}

/* The bytes of the plan: sealed for good, so what is checked now holds later. */
static int
ss_plan_bytes(int32_t fd, const struct ss_wire **ret_wire)
{
	const long seals = ss_sys3(SYS_fcntl, fd, F_GET_SEALS, 0);
	struct stat st;
	int error;

	if (SS_GUARDED(PLAN_SEALED) && (seals < 0 || (seals & SS_SEALS) != SS_SEALS))
		return EPROTO;
	if ((error = ss_child_error(ss_sys4(SYS_newfstatat, fd, "", &st, AT_EMPTY_PATH))))
		return error;
	if (st.st_size < (off_t)sizeof(struct ss_wire) || (uint64_t)st.st_size > SS_WIRE_MAX)
		return EPROTO;
	*ret_wire = ss_mapped(fd, (size_t)st.st_size, PROT_READ, MAP_PRIVATE);
	return *ret_wire ? ss_wire_check(*ret_wire, (size_t)st.st_size) : ENOMEM;
}

static int
ss_plan_is_ours(const struct ss_wire *wire, const unsigned char *nonce)
{
	unsigned char differ = 0;
	unsigned i;

	for (i = 0; i < SS_NONCE_BYTES; i++)
		differ |= wire->nonce[i] ^ nonce[i];
	return !differ;
}

static int
ss_plan_read(int32_t fd, const unsigned char *nonce, struct ss_plan *plan)
{
	const struct ss_wire *wire;
	unsigned char *room;
	int error;

#ifdef SS_TEST_HOOKS
	(void)ss_sys4(SYS_pread64, fd, &ss_hooks, sizeof(ss_hooks), offsetof(struct ss_wire, hooks));
#endif
	if ((error = ss_plan_bytes(fd, &wire)))
		return error;
	if (!ss_plan_is_ours(wire, nonce))
		return EPROTO;
	room = ss_mapped(-1, ss_wire_room(wire), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	return room ? ss_wire_read(wire, room, plan) : ENOMEM;
}

/*
 * A parent without rights may write the maps of a user namespace only for a process that is
 * dumpable (proc(5)). It and all that are like it could trace one another before.
 */
static int
ss_plan_lets_map(const struct ss_plan *plan)
{
	if (!(plan->want.unshared & SS_CLONE_NEWUSER) || plan->want.expected.permitted)
		return 0;
	return ss_child_error(ss_sys2(SYS_prctl, PR_SET_DUMPABLE, 1));
}

/* Gives up the capabilities that an exec has added: ESTALE if we are not what we were to be then. */
static int
ss_level_keep(const struct ss_creds *was)
{
	if (!ss_child_creds_agree(was))
		return 0;
	if (ss_child_capset(was->effective, was->permitted, was->inheritable))
		return ESTALE;
	return ss_child_creds_agree(was);
}
