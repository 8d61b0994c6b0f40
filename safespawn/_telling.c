/*
 * The records of a spawn, written straight from what the spawn has in C anyway. Part of _native.c.
 *
 * Each spawn writes three of them, and every Python function in between is paid for twice: the
 * child's exec has just emptied the processor's caches. What is rare, or too long to fit (EMSGSIZE),
 * Python builds in audit/_record.py; a test holds that both say the same.
 */

#define SS_ARGV_ROOM 2600u
#define SS_ENV_ROOM 1000u
#define SS_FDS_ROOM 600u
#define SS_WHO_GROUPS 32

struct ss_strings {
	const char *text; /* end to end, each with its NUL */
	uint64_t bytes;
	uint32_t count;
};

/* What stays the same for all spawns of a process. */
struct ss_teller {
	struct ss_ledger *const *ledger; /* where its owner has it */
	const char *process;	/* members of "who", and a comma */
	const uint8_t *env_key; /* 32 bytes; for the MAC of the environment */
	const char *env_label;	/* which key that is */
};

/* What the child is about to be given is what is told of: there is no second copy that could differ. */
struct ss_intent {
	const struct ss_teller *teller;
	const struct ss_request *request;
	const char *rest; /* what Python says of the program, and the members after "what" */
};

/* Real, effective and saved: who did it, and with whose rights. */
static void
ss_put_ids(struct ss_text *text, const struct ss_creds *creds)
{
	const struct { const char *name; uint32_t id; } ids[] = {
		{ ",\"ruid\":", creds->ruid }, { ",\"euid\":", creds->euid }, { ",\"suid\":", creds->suid },
		{ ",\"rgid\":", creds->rgid }, { ",\"egid\":", creds->egid }, { ",\"sgid\":", creds->sgid },
	};

	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		ss_put_word(text, ids[i].name);
		ss_put_number(text, ids[i].id);
	}
}

static int
ss_compare_ids(const void *one, const void *other)
{
	gid_t a, b;

	memcpy(&a, one, sizeof(a));
	memcpy(&b, other, sizeof(b));
	return a < b ? -1 : a > b;
}

/* Up to 32, sorted; more than that are Python's affair. */
static void
ss_put_groups(struct ss_text *text)
{
	gid_t groups[SS_WHO_GROUPS];
	int count = getgroups(SS_WHO_GROUPS, groups);

	if (count < 0) { /* EINVAL: more than that */
		text->full = 1;
		return;
	}
	qsort(groups, (size_t)count, sizeof(groups[0]), ss_compare_ids);
	ss_put_word(text, ",\"groups\":[");
	for (int i = 0; i < count; i++) {
		ss_say(text, ",", i > 0);
		ss_put_number(text, groups[i]);
	}
	ss_say(text, "]", 1);
}

/* Who asks for the spawn: as the thread that decided saw itself, not as it may be by now. */
static void
ss_put_who(struct ss_text *text, const char *process, const struct ss_creds *creds)
{
	const struct { const char *name; uint64_t set; } sets[] = {
		{ ",\"eff\":\"", creds->effective }, { "\",\"prm\":\"", creds->permitted },
		{ "\",\"inh\":\"", creds->inheritable },
	};

	ss_put_word(text, ",\"who\":{");
	ss_put_word(text, process);
	ss_put_word(text, "\"ppid\":");
	ss_put_signed(text, getppid());
	ss_put_ids(text, creds);
	ss_put_groups(text);
	for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++) {
		ss_put_word(text, sets[i].name);
		ss_put_hex(text, sets[i].set);
	}
	ss_put_word(text, "\"}");
}

/* Leave no more than room bytes since `from`; else it does not fit. */
static void
ss_limit_since(struct ss_text *text, const char *from, size_t room)
{
	text->full |= (size_t)(text->at - from) > room;
}

/*
 * The arguments, with their number and size, which hold also where a reader cuts the list. One that
 * is too long is cut by Python, with its digest.
 */
static void
ss_put_argv(struct ss_text *text, const struct ss_strings *argv)
{
	const char *at = argv->text, *from;

	ss_put_word(text, "\"argc\":");
	ss_put_number(text, argv->count);
	ss_put_word(text, ",\"argv_bytes\":");
	ss_put_number(text, argv->bytes - argv->count);
	ss_put_word(text, ",\"argv\":");
	from = text->at;
	ss_say(text, "[", 1);
	for (uint32_t i = 0; i < argv->count && !text->full; i++) {
		size_t bytes = strlen(at);

		ss_say(text, ",", i > 0);
		ss_put_text(text, at, bytes);
		at += bytes + 1;
	}
	ss_limit_since(text, from, SS_ARGV_ROOM); /* each argument and its comma: the bracket is the first one's */
	ss_say(text, "]", 1);
}

/* The name of a variable, whose text is NAME=VALUE. Its value is recorded nowhere. */
static size_t
ss_name_bytes(const char *pair)
{
	return strcspn(pair, "=");
}

/* The names that fit; then how many there are, and the digest of all, as _record.some has it. */
static void
ss_put_some_names(struct ss_text *text, const struct ss_strings *env, const uint8_t digest[32])
{
	const char *at = env->text;
	size_t room = SS_ENV_ROOM;

	ss_put_word(text, "{\"first\":[");
	for (uint32_t i = 0; i < env->count; i++) {
		char *before = text->at;

		ss_say(text, ",", i > 0);
		ss_put_text(text, at, ss_name_bytes(at));
		size_t bytes = (size_t)(text->at - before) + (i == 0);

		if (text->full || bytes > room) {
			text->at = before;
			break;
		}
		room -= bytes;
		at += strlen(at) + 1;
	}
	ss_put_word(text, "],\"count\":");
	ss_put_number(text, env->count);
	ss_put_word(text, ",\"sha256\":\"");
	ss_put_digest(text, digest);
	ss_put_word(text, "\"}");
}

/* All names as a list. */
static void
ss_put_names_to(struct ss_text *text, const struct ss_strings *env)
{
	const char *at = env->text;

	ss_say(text, "[", 1);
	for (uint32_t i = 0; i < env->count; i++) {
		ss_say(text, ",", i > 0);
		ss_put_text(text, at, ss_name_bytes(at));
		at += strlen(at) + 1;
	}
	ss_say(text, "]", 1);
}

/*
 * The names of the variables. Where they are too many the first of them, and the digest of the whole
 * list: made in a second pass, piece by piece, because the list can have megabytes.
 */
static void
ss_put_env(struct ss_text *text, const struct ss_strings *env)
{
	struct ss_sha256 hash;
	char some[512];
	uint8_t digest[32];
	struct ss_text whole = *text;

	/* First as if it were short, on a copy: what does not fit is overwritten by the other form. */
	whole.hash = NULL;
	if ((size_t)(whole.end - whole.at) > SS_ENV_ROOM)
		whole.end = whole.at + SS_ENV_ROOM;
	ss_put_names_to(&whole, env);
	if (!whole.full) {
		text->at = whole.at;
		return;
	}
	ss_sha256_start(&hash);
	whole = (struct ss_text){ some, some, some + sizeof(some), 0, &hash };
	ss_put_names_to(&whole, env);
	ss_sha256_add(&hash, some, (size_t)(whole.at - some));
	ss_sha256_end(&hash, digest);
	ss_put_some_names(text, env, digest);
}

/* The words of _records.py. */
static const char *
ss_file_kind(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG: return "file";
	case S_IFDIR: return "dir";
	case S_IFCHR: return "char";
	case S_IFBLK: return "block";
	case S_IFIFO: return "pipe";
	case S_IFSOCK: return "socket";
	default: return "anon";
	}
}

/* What a descriptor of the child leads to, by device and inode: names can be changed. */
static void
ss_put_fd(struct ss_text *text, const struct ss_fd *pair)
{
	struct stat seen;

	if (fstat(pair->source, &seen)) {
		text->full = 1; /* Python has the names of errors */
		return;
	}
	ss_put_word(text, "{\"fd\":");
	ss_put_signed(text, pair->target);
	ss_put_word(text, ",\"type\":\"");
	ss_put_word(text, ss_file_kind(seen.st_mode));
	ss_put_word(text, "\",\"dev\":\"");
	ss_put_hex(text, major(seen.st_dev));
	ss_say(text, ":", 1);
	ss_put_hex(text, minor(seen.st_dev));
	ss_put_word(text, "\",\"ino\":");
	ss_put_number(text, seen.st_ino);
	ss_say(text, "}", 1);
}

static void
ss_put_fds(struct ss_text *text, const struct ss_fd *fds, uint32_t count)
{
	const char *from = text->at;

	ss_say(text, "[", 1);
	for (uint32_t i = 0; i < count && !text->full; i++) {
		ss_say(text, ",", i > 0);
		ss_put_fd(text, &fds[i]);
	}
	ss_say(text, "]", 1);
	ss_limit_since(text, from, SS_FDS_ROOM);
}

/*
 * An intent's members. The MAC over the environment tells whether two programs got the same one
 * without telling what was in it.
 */
static void
ss_put_intent(struct ss_text *text, const void *about)
{
	const struct ss_intent *intent = about;
	const struct ss_teller *teller = intent->teller;
	const struct ss_request *request = intent->request;
	const struct ss_strings argv = { request->argv, request->argv_bytes, request->argc };
	const struct ss_strings env = { request->env, request->env_bytes, request->envc };
	uint8_t mac[32];

	ss_put_who(text, teller->process, &request->expected);
	ss_put_word(text, ",\"what\":{");
	ss_put_argv(text, &argv);
	ss_put_word(text, ",\"env_keys\":");
	ss_put_env(text, &env);
	ss_hmac(teller->env_key, env.text, env.bytes, NULL, 0, mac);
	ss_put_word(text, ",\"env_mac\":\"");
	ss_put_word(text, teller->env_label);
	ss_say(text, ":", 1);
	ss_put_digest(text, mac);
	ss_put_word(text, "\",\"fds\":");
	ss_put_fds(text, request->fds, request->nfds);
	ss_put_word(text, intent->rest);
}

/* The intent: before the clone. sid has SS_ID_BYTES. */
SS_API int
ss_ledger_intent(const struct ss_teller *teller, const char *sid, const struct ss_request *request,
    const char *rest, struct ss_kept *kept)
{
	struct ss_intent intent = { teller, request, rest };
	uint32_t flags = SS_ENTRY_BOOKS | ((*teller->ledger)->unsynced != NULL ? SS_ENTRY_FLUSH : 0);
	struct ss_record record = { SS_EV_INTENT, flags, sid, ss_put_intent, &intent };

	return ss_ledger_record(*teller->ledger, &record, kept);
}

/* ------------------------------------------------------------------ the program runs */

/* A program that runs. The pidfd's inode is a name for the process that is never used again. */
struct ss_start {
	const struct ss_result *result;
	int32_t pidfd;
	const char *how; /* JSON */
};

static void
ss_put_yes(struct ss_text *text, int is)
{
	ss_put_word(text, is ? "true" : "false");
}

static void
ss_put_started(struct ss_text *text, const void *about)
{
	const struct ss_start *start = about;
	const struct ss_result *result = start->result;
	struct stat seen;

	ss_put_word(text, ",\"how\":");
	ss_put_word(text, start->how);
	ss_put_word(text, ",\"outcome\":{\"outcome\":\"exec\",\"pid\":");
	ss_put_signed(text, result->pid);
	ss_put_word(text, ",\"pidfd_ino\":");
	if (start->pidfd >= 0 && !fstat(start->pidfd, &seen))
		ss_put_number(text, seen.st_ino);
	else
		ss_put_word(text, "null");
	ss_put_word(text, ",\"ns_to_exec\":");
	ss_put_signed(text, result->window_ns);
	ss_put_word(text, ",\"clone3\":");
	ss_put_yes(text, (result->flags & SS_USED_CLONE3) != 0);
	ss_put_word(text, ",\"confirmed\":");
	ss_put_yes(text, !(result->flags & SS_UNCONFIRMED));
	ss_say(text, "}", 1);
}

/* Gives back one of the two records that the intent has booked. */
SS_API int
ss_ledger_started(const struct ss_teller *teller, const char *sid, const struct ss_result *result, int32_t pidfd,
    const char *how, struct ss_kept *kept)
{
	struct ss_start start = { result, pidfd, how };
	struct ss_record record = { SS_EV_STARTED, SS_ENTRY_FREES, sid, ss_put_started, &start };

	return ss_ledger_record(*teller->ledger, &record, kept);
}

/* ------------------------------------------------------------------ it has ended */

/* One that was reaped by ourselves. Who else reaps it leaves less to tell, and Python tells it. */
struct ss_end {
	const struct ss_exit *exit;
	int64_t duration_ns;
	int32_t timeout_killed;
};

static void
ss_put_exit(struct ss_text *text, const void *about)
{
	const struct ss_end *end = about;
	const struct ss_exit *exit = end->exit;
	const struct { const char *name; int64_t number; } usage[] = {
		{ ",\"rusage\":{\"utime\":", exit->utime_us }, { ",\"stime\":", exit->stime_us },
		{ ",\"maxrss\":", exit->maxrss_kib }, { ",\"minflt\":", exit->minflt }, { ",\"majflt\":", exit->majflt },
		{ "},\"dur\":", end->duration_ns },
	};

	ss_put_word(text, ",\"exit\":{\"pid\":");
	ss_put_signed(text, exit->pid);
	ss_put_word(text, exit->code == CLD_EXITED ? ",\"code\":" : ",\"signal\":");
	ss_put_signed(text, exit->status);
	if (exit->code != CLD_EXITED) {
		ss_put_word(text, ",\"core\":");
		ss_put_yes(text, exit->code == CLD_DUMPED);
	}
	for (size_t i = 0; i < sizeof(usage) / sizeof(usage[0]); i++) {
		ss_put_word(text, usage[i].name);
		ss_put_signed(text, usage[i].number);
	}
	ss_put_word(text, ",\"reaped_by\":\"self\",\"timeout_killed\":");
	ss_put_yes(text, end->timeout_killed);
	ss_say(text, "}", 1);
}

/* Gives back the other. */
SS_API int
ss_ledger_exit(const struct ss_teller *teller, const char *sid, const struct ss_exit *exit, int64_t duration_ns,
    int32_t timeout_killed, struct ss_kept *kept)
{
	struct ss_end end = { exit, duration_ns, timeout_killed };
	struct ss_record record = { SS_EV_EXIT, SS_ENTRY_FREES, sid, ss_put_exit, &end };

	return ss_ledger_record(*teller->ledger, &record, kept);
}
