/*
 * The fast part of the audit verifier: bytes of a ledger in, a verdict on every line out.
 * The form of a ledger is that of docs/audit-format.md; what follows from a verdict, and what
 * is excused, is decided by the caller.
 *
 * It reads files that an enemy has written. So nothing is believed that was not looked at:
 * every step of the parser asks whether there is a byte left, numbers are checked before they
 * can overflow, and no loop is longer than the line it is about. Memory is the caller's: a
 * table of chains that does not grow by itself, and says when it is full.
 *
 * A file may hold pieces of records: a process that was killed in write(2) leaves the beginning
 * of a line, and a process that knew nothing of it goes on behind that, on the same line. So a
 * line that is no good is looked through for the beginning of another record. JSON escapes its
 * quotes, so no string of a record contains that.
 */

#define SS_LINE_MAX 8000u	 /* with the newline */
#define SS_MAC_BYTES 72u	 /* ,"m":" 64 digits "} */
#define SS_START "{\"v\":1,\"c\":\""
#define SS_START_BYTES (sizeof(SS_START) - 1)
#define SS_NESTING_MAX 63u

/* What a piece of a file is. */
enum {
	SS_FITS,     /* a record, as it must be */
	SS_BLANK,    /* nothing between two newlines */
	SS_TORN,     /* the beginning of a record that may have been the next of its chain */
	SS_GARBAGE,  /* neither */
	SS_STRANGER, /* a record of a chain that has no keys yet: nothing was done */
	SS_GAP,	     /* a record with a number that is too high: nothing was done */
	SS_REPLAY,   /* one with a number that there was */
	SS_BAD_MAC,
	SS_BAD_HASH,
};

/* And what else is to be said of it. */
enum {
	SS_NO_NEWLINE = 1,  /* another record, or the end of the file, comes at once */
	SS_HAS_NUMBER = 2,  /* chain and n could be read */
	SS_HAS_MAC = 4,
	SS_HAS_CHILD = 8,   /* chain.fork */
	SS_CLOCK_BACK = 16, /* by more than SS_CLOCK_STEP_NS against the record before */
	SS_BAD_AGG = 32,    /* the aggregate that the record tells is not that of the chain */
	SS_BAD_STATE = 64,  /* the seal in the state file, which tells of as many records, is not that of the chain */
	SS_TOO_LONG = 128,
	SS_AGAIN = 256, /* garbage, and the beginning of a record with a number that there was */
};

#define SS_CLOCK_STEP_NS 1000000000ll /* clocks are slewed by less all the time */

/* Of a chain. */
enum {
	SS_CHAIN_OPEN = 1,	/* its keys are known, or it has none */
	SS_CHAIN_KEYED = 2,
	SS_CHAIN_AGG = 4,	/* its aggregate is known */
	SS_CHAIN_ANY_HASH = 8,	/* the record before is not there, or was changed */
	SS_CHAIN_EXPECTED = 16, /* the state file has it */
	SS_CHAIN_COMPARED = 32, /* the seal in the state file was compared */
	SS_CHAIN_SLOT_FORGED = 64, /* the seal in the state file is not that of so many records, which are not here */
};

struct ss_verify_chain {
	uint8_t id[16];
	uint64_t next; /* number of the next record */
	uint64_t expected; /* records in the state file */
	int64_t t;
	uint64_t last_at, last_line; /* the last record, and the one before */
	uint64_t before_at, before_line;
	uint32_t last_file, before_file;
	uint32_t flags;
	uint32_t found; /* how many records there were */
	uint8_t hash[SS_DIGEST_BYTES]; /* of the last record */
	uint8_t record_key[SS_DIGEST_BYTES], agg_key[SS_DIGEST_BYTES];
	uint8_t agg[SS_DIGEST_BYTES], expected_seal[SS_DIGEST_BYTES];
};

struct ss_verify {
	struct ss_verify_chain *chains; /* in the order in which they came */
	uint32_t *index; /* by hash of the id: the place in chains, plus 1 */
	uint32_t room, used; /* of chains; index has the next power of two of 2 * room */
	uint32_t mask;
	uint32_t file; /* which one it is: the caller's number */
	uint64_t seed[2]; /* so that nobody can choose ids that all collide */
	uint64_t at, line; /* where the next byte is: from 0, and from 1 */
	uint32_t only_read; /* chains do not matter: every record fits */
};

struct ss_verify_record {
	uint64_t at, line, n;
	int64_t t;
	uint32_t bytes; /* without the newline */
	uint32_t chain; /* place in the table, UINT32_MAX when it is not there */
	uint16_t verdict, flags, event;
	uint16_t unused;
	uint8_t id[16], sid[16], child[16];
	uint8_t hash[SS_DIGEST_BYTES];
};

/* Events that somebody asks for by number; 0 is any other. */
static const char *const ss_verify_events[] = {
	"", "chain.open", "chain.fork", "chain.close", "checkpoint", "spawn.intent",
	"spawn.started", "spawn.failed", "spawn.denied", "spawn.exit", "exit.unknown",
	"audit.degraded", "audit.restored", "segment.retired", "registry.init", "registry.chain",
};
enum {
	SS_EVENT_FORK = 2,
	SS_EVENT_CLOSE = 3,
	SS_EVENT_CHECKPOINT = 4,
	SS_EVENTS = sizeof(ss_verify_events) / sizeof(*ss_verify_events),
};

/* ------------------------------------------------------------------- the parser */

/* A place in a piece of a line, and whether all was well up to there. */
struct ss_cursor {
	const uint8_t *at, *end;
	int cut;   /* it ended too early: what there is was right */
	int wrong;
};

struct ss_envelope {
	uint8_t id[16], sid[16];
	uint8_t previous[SS_DIGEST_BYTES];
	size_t previous_digits;
	uint64_t n, t;
	int has_n;
	unsigned event;
};

static int
ss_stopped(const struct ss_cursor *c)
{
	return c->cut | c->wrong;
}

static int
ss_hex_digit(uint8_t byte)
{
	if (byte >= '0' && byte <= '9')
		return byte - '0';
	return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

/* The next byte, or -1 where there is none. */
static int
ss_look_at(struct ss_cursor *c)
{
	if (ss_stopped(c))
		return -1;
	if (c->at == c->end) {
		c->cut = 1;
		return -1;
	}
	return *c->at;
}

static void
ss_take_text(struct ss_cursor *c, const char *text)
{
	for (; *text; text++) {
		const int byte = ss_look_at(c);

		if (byte < 0)
			return;
		if (byte != (uint8_t)*text) {
			c->wrong = 1;
			return;
		}
		c->at++;
	}
}

/* So many hex digits; returns how many there were. */
static size_t
ss_take_hex(struct ss_cursor *c, uint8_t *to, size_t digits)
{
	size_t i;

	for (i = 0; i < digits; i++) {
		const int byte = ss_look_at(c);
		const int digit = byte < 0 ? -1 : ss_hex_digit((uint8_t)byte);

		if (byte < 0)
			return i;
		if (digit < 0) {
			c->wrong = 1;
			return i;
		}
		to[i / 2] = (uint8_t)(i % 2 ? to[i / 2] | digit : digit << 4);
		c->at++;
	}
	return digits;
}

/* 8-4-4-4-12 digits. */
static void
ss_take_uuid(struct ss_cursor *c, uint8_t id[16])
{
	static const uint8_t parts[] = { 8, 4, 4, 4, 12 };
	size_t i;

	for (i = 0; i < sizeof(parts); i++) {
		if (i)
			ss_take_text(c, "-");
		(void)ss_take_hex(c, id, parts[i]);
		id += parts[i] / 2;
	}
}

/* Decimal, no sign, no leading zero, at most max; something else must follow. */
static void
ss_take_number(struct ss_cursor *c, uint64_t max, uint64_t *ret_number)
{
	const uint8_t *const from = c->at;
	uint64_t number = 0;
	int byte;

	while ((byte = ss_look_at(c)) >= '0' && byte <= '9') {
		const uint64_t digit = (uint64_t)(byte - '0');

		if (number > (max - digit) / 10 || (c->at > from && !number)) {
			c->wrong = 1;
			return;
		}
		number = number * 10 + digit;
		c->at++;
	}
	if (ss_stopped(c))
		return;
	if (c->at == from)
		c->wrong = 1;
	*ret_number = number;
}

/* Up to max of these bytes and then a quote; returns where they begin. */
static const uint8_t *
ss_take_word(struct ss_cursor *c, const char *allowed, size_t max, size_t *ret_bytes)
{
	const uint8_t *const from = c->at;
	int byte;

	while ((byte = ss_look_at(c)) > 0 && strchr(allowed, byte) && (size_t)(c->at - from) < max)
		c->at++;
	*ret_bytes = (size_t)(c->at - from);
	ss_take_text(c, "\"");
	return from;
}

static void
ss_take_event(struct ss_cursor *c, unsigned *ret_event)
{
	size_t bytes;
	const uint8_t *name = ss_take_word(c, "abcdefghijklmnopqrstuvwxyz.", 32, &bytes);
	unsigned i;

	*ret_event = 0;
	if (!bytes && !ss_stopped(c))
		c->wrong = 1;
	for (i = 1; i < SS_EVENTS && !ss_stopped(c); i++)
		if (strlen(ss_verify_events[i]) == bytes && !memcmp(ss_verify_events[i], name, bytes))
			*ret_event = i;
}

static void
ss_take_sid(struct ss_cursor *c, uint8_t sid[16])
{
	const int byte = ss_look_at(c);

	if (byte == 'n') {
		ss_take_text(c, "null");
		return;
	}
	ss_take_text(c, "\"");
	ss_take_uuid(c, sid);
	ss_take_text(c, "\"");
}

static void
ss_take_mode(struct ss_cursor *c)
{
	static const char *const modes[] = { "best_effort", "require", "durable" };
	size_t bytes, i;
	const uint8_t *word = ss_take_word(c, "abcdefghijklmnopqrstuvwxyz_", 16, &bytes);

	for (i = 0; i < sizeof(modes) / sizeof(*modes); i++)
		if (strlen(modes[i]) == bytes && !memcmp(modes[i], word, bytes))
			return;
	if (!ss_stopped(c))
		c->wrong = 1;
}

/* The members that all records begin with. After the last there is a comma or the end. */
static void
ss_take_envelope(struct ss_cursor *c, struct ss_envelope *e)
{
	uint64_t mono;
	size_t bytes;
	int byte;

	ss_take_text(c, SS_START);
	ss_take_uuid(c, e->id);
	ss_take_text(c, "\",\"n\":");
	ss_take_number(c, UINT64_MAX - 1, &e->n); /* the number after it must be one too */
	e->has_n = !ss_stopped(c);
	ss_take_text(c, ",\"p\":\"");
	e->previous_digits = ss_take_hex(c, e->previous, 64);
	ss_take_text(c, "\",\"ev\":\"");
	ss_take_event(c, &e->event);
	ss_take_text(c, ",\"sid\":");
	ss_take_sid(c, e->sid);
	ss_take_text(c, ",\"t\":");
	ss_take_number(c, INT64_MAX, &e->t);
	ss_take_text(c, ",\"mono\":");
	ss_take_number(c, INT64_MAX, &mono);
	ss_take_text(c, ",\"boot\":\"");
	(void)ss_take_word(c, "0123456789abcdef-", 36, &bytes);
	ss_take_text(c, ",\"mode\":\"");
	ss_take_mode(c);
	byte = ss_look_at(c);
	if (byte >= 0 && byte != ',' && byte != '}')
		c->wrong = 1;
}

/* A string, up to behind its closing quote: printable ASCII, the rest escaped. */
static void
ss_json_string(struct ss_cursor *c)
{
	uint8_t code[2];
	int byte;

	ss_take_text(c, "\"");
	while ((byte = ss_look_at(c)) >= 0) {
		c->at++;
		if (byte == '"')
			return;
		if (byte < ' ' || byte > '~')
			c->wrong = 1;
		if (byte != '\\' || (byte = ss_look_at(c)) < 0)
			continue;
		c->at++;
		if (byte == 'u')
			(void)ss_take_hex(c, code, 4);
		else if (!byte || !strchr("\"\\/bfnrt", byte))
			c->wrong = 1;
	}
}

/* A number without fraction, a word, or a string. */
static void
ss_json_scalar(struct ss_cursor *c)
{
	uint64_t number;
	const int byte = ss_look_at(c);

	if (byte == '"') {
		ss_json_string(c);
	} else if (byte == 't') {
		ss_take_text(c, "true");
	} else if (byte == 'f') {
		ss_take_text(c, "false");
	} else if (byte == 'n') {
		ss_take_text(c, "null");
	} else {
		if (byte == '-')
			c->at++;
		ss_take_number(c, UINT64_MAX, &number);
	}
}

/*
 * Reads one object of JSON without blanks. When it is well so far c->cut says that it does not
 * end here. Nesting is a stack of bits: 1 is an object.
 */
static void
ss_json_object(struct ss_cursor *c)
{
	uint64_t stack = 0;
	unsigned depth = 0;

	while (!ss_stopped(c)) {
		int byte;

		if (depth && stack & 1) {
			ss_json_string(c);
			ss_take_text(c, ":");
		}
		byte = ss_look_at(c);
		if (byte == '{' || (byte == '[' && depth)) {
			stack = stack << 1 | (byte == '{');
			c->wrong |= depth++ == SS_NESTING_MAX;
			c->at++;
			if (ss_look_at(c) != (stack & 1 ? '}' : ']'))
				continue;
		} else if (depth) {
			ss_json_scalar(c);
		} else {
			c->wrong = 1;
		}
		while (ss_look_at(c) == (stack & 1 ? '}' : ']')) {
			c->at++;
			stack >>= 1;
			if (!--depth)
				return;
		}
		ss_take_text(c, ",");
	}
}

/* 0: the bytes are one object; 1: its beginning; -1: neither. */
static int
ss_json_scan(const uint8_t *data, size_t bytes)
{
	struct ss_cursor c = { data, data + bytes, 0, 0 };

	ss_json_object(&c);
	if (c.wrong || (!c.cut && c.at != c.end))
		return -1;
	return c.cut;
}

/* The MAC that a line ends with: 1 and its bytes, or 0. */
static int
ss_take_mac(const uint8_t *line, size_t bytes, uint8_t ret_mac[SS_DIGEST_BYTES])
{
	struct ss_cursor c;

	if (bytes < SS_MAC_BYTES)
		return 0;
	c = (struct ss_cursor){ line + bytes - SS_MAC_BYTES, line + bytes, 0, 0 };
	ss_take_text(&c, ",\"m\":\"");
	(void)ss_take_hex(&c, ret_mac, 64);
	ss_take_text(&c, "\"}");
	return !ss_stopped(&c);
}

/* ------------------------------------------------------------------- the chains */

/* Both halves of the id and of a random seed, by the halves of a long product. */
static uint32_t
ss_verify_place(const struct ss_verify *v, const uint8_t id[16])
{
	uint64_t low, high;
	unsigned __int128 product;

	memcpy(&low, id, 8);
	memcpy(&high, id + 8, 8);
	product = (unsigned __int128)(low ^ v->seed[0]) * (high ^ v->seed[1]);
	low = (uint64_t)product ^ (uint64_t)(product >> 64);
	return (uint32_t)(low ^ low >> 32) & v->mask;
}

/* Where the chain is in the index, or the free place where it would be. */
static uint32_t *
ss_verify_seek(const struct ss_verify *v, const uint8_t id[16])
{
	uint32_t place = ss_verify_place(v, id);

	while (v->index[place] && memcmp(v->chains[v->index[place] - 1].id, id, 16))
		place = (place + 1) & v->mask;
	return &v->index[place];
}

static struct ss_verify_chain *
ss_verify_find(const struct ss_verify *v, const uint8_t id[16])
{
	const uint32_t place = v->mask ? *ss_verify_seek(v, id) : 0;

	return place ? &v->chains[place - 1] : NULL;
}

static struct ss_verify_chain *
ss_verify_make(struct ss_verify *v, const uint8_t id[16])
{
	uint32_t *place = ss_verify_seek(v, id);
	struct ss_verify_chain *chain;

	if (*place)
		return &v->chains[*place - 1];
	if (v->used == v->room)
		return NULL;
	chain = &v->chains[v->used];
	memset(chain, 0, sizeof(*chain));
	memcpy(chain->id, id, 16);
	*place = ++v->used;
	return chain;
}

/*
 * Compares the slot of a chain, where it tells of as many records as there were: a key that is gone with the
 * next one made its seal. Returns 1 for a seal that is not theirs.
 */
static int
ss_is_slot_forged(struct ss_verify_chain *chain)
{
	uint8_t seal[SS_DIGEST_BYTES];

	if (!(chain->flags & SS_CHAIN_EXPECTED) || chain->next != chain->expected)
		return 0;
	chain->flags |= SS_CHAIN_COMPARED;
	ss_hmac(chain->agg_key, "safespawn state", 15, "", 0, seal);
	return memcmp(seal, chain->expected_seal, SS_DIGEST_BYTES) != 0;
}

/* Gives a chain its keys. */
static void
ss_verify_begin(struct ss_verify_chain *chain, const uint8_t *key)
{
	chain->flags |= SS_CHAIN_OPEN;
	if (!key)
		return;
	chain->flags |= SS_CHAIN_KEYED | SS_CHAIN_AGG;
	ss_hmac(key, "safespawn record", 16, "", 0, chain->record_key);
	ss_hmac(key, "safespawn aggregate", 19, "", 0, chain->agg_key);
	if (ss_is_slot_forged(chain))
		chain->flags |= SS_CHAIN_SLOT_FORGED;
}

/*
 * A chain that the state file tells of: so many records, and the seal over them. Returns its place
 * in the table, or -ENOSPC; -EEXIST when it was told before.
 */
SS_API int64_t
ss_verify_expect(struct ss_verify *v, const uint8_t *id, uint64_t records, const uint8_t *seal)
{
	struct ss_verify_chain *chain = ss_verify_make(v, id);

	if (!chain)
		return -ENOSPC;
	if (chain->flags & SS_CHAIN_EXPECTED)
		return -EEXIST;
	chain->flags |= SS_CHAIN_EXPECTED;
	chain->expected = records;
	memcpy(chain->expected_seal, seal, SS_DIGEST_BYTES);
	return chain - v->chains;
}

/* A chain and its key, NULL for one without. Returns its place in the table, or -ENOSPC. */
SS_API int64_t
ss_verify_open(struct ss_verify *v, const uint8_t *id, const uint8_t *key)
{
	struct ss_verify_chain *chain = ss_verify_make(v, id);

	if (!chain)
		return -ENOSPC;
	ss_verify_begin(chain, key);
	return chain - v->chains;
}

/*
 * Goes on to record n of a chain over records that are not there, by at most so many steps of
 * its keys. Returns how many are left to do.
 */
SS_API uint64_t
ss_verify_reach(struct ss_verify *v, uint32_t place, uint64_t n, uint64_t steps)
{
	struct ss_verify_chain *chain;

	if (place >= v->used || v->chains[place].next >= n)
		return 0;
	chain = &v->chains[place];
	chain->flags |= SS_CHAIN_ANY_HASH;
	chain->flags &= ~(uint32_t)SS_CHAIN_AGG;
	if (!(chain->flags & SS_CHAIN_KEYED))
		chain->next = n;
	while (chain->next < n && steps--) {
		ss_sha256(chain->record_key, SS_DIGEST_BYTES, chain->record_key);
		ss_sha256(chain->agg_key, SS_DIGEST_BYTES, chain->agg_key);
		chain->next++;
		if (ss_is_slot_forged(chain))
			chain->flags |= SS_CHAIN_SLOT_FORGED;
	}
	return n - chain->next;
}

/* Goes on by so many record keys of a chain that is in no table. */
SS_API void
ss_verify_follow(uint8_t *record_key, uint64_t steps)
{
	for (; steps; steps--)
		ss_sha256(record_key, SS_DIGEST_BYTES, record_key);
}

/* Takes over everything from a smaller table, which is wiped. */
SS_API void
ss_verify_move(struct ss_verify *v, struct ss_verify *from)
{
	uint32_t i;

	memcpy(v->chains, from->chains, from->used * sizeof(*from->chains));
	for (i = 0; i < from->used; i++)
		*ss_verify_seek(v, v->chains[i].id) = i + 1;
	v->used = from->used;
	v->file = from->file;
	v->at = from->at;
	v->line = from->line;
	explicit_bzero(from->chains, from->room * sizeof(*from->chains));
}

/* Forgets all keys. */
SS_API void
ss_verify_wipe(struct ss_verify *v)
{
	explicit_bzero(v->chains, v->room * sizeof(*v->chains));
	memset(v->index, 0, (v->mask + 1ull) * sizeof(*v->index));
	v->used = 0;
}

/* -------------------------------------------------------------------- one piece */

/* What is being judged: part of a line, and what was read of it. */
struct ss_piece {
	const uint8_t *data;
	size_t bytes;
	struct ss_envelope envelope;
	struct ss_verify_chain *chain;
	const uint8_t *after; /* the envelope */
	uint8_t mac[SS_DIGEST_BYTES];
	int has_mac;
	int is_again; /* it begins a record whose number there was */
};

/* Whether a beginning may be that of the next record: a killed writer leaves nothing else. */
static int
ss_may_be_torn(const struct ss_piece *p)
{
	const struct ss_verify_chain *chain = p->chain;
	const struct ss_envelope *e = &p->envelope;
	const size_t whole = e->previous_digits / 2;

	if (!e->has_n || !chain || !(chain->flags & SS_CHAIN_OPEN))
		return 1;
	if (e->n != chain->next)
		return 0;
	if (chain->flags & SS_CHAIN_ANY_HASH)
		return 1;
	return !memcmp(e->previous, chain->hash, whole) &&
	    (e->previous_digits % 2 == 0 || e->previous[whole] >> 4 == chain->hash[whole] >> 4);
}

/*
 * What the beginning of a record is. Lines that are sent again after an error of fdatasync may be
 * torn as well, and have a number that there was: only the caller knows whether that was told.
 */
static int
ss_judge_beginning(struct ss_piece *p)
{
	if (ss_may_be_torn(p))
		return SS_TORN;
	p->is_again = p->envelope.n < p->chain->next;
	return SS_GARBAGE;
}

/* Whether a record of a chain with keys has the MAC of its place in it. */
static int
ss_has_right_mac(const struct ss_piece *p)
{
	uint8_t mac[SS_DIGEST_BYTES];

	if (!p->has_mac)
		return 0;
	ss_hmac(p->chain->record_key, p->data, p->bytes - SS_MAC_BYTES, "", 0, mac);
	return !memcmp(mac, p->mac, sizeof(mac));
}

/* A record of a chain with keys, or of one that is not known. */
static int
ss_judge_by_mac(const struct ss_piece *p)
{
	const struct ss_verify_chain *chain = p->chain;

	if (!chain || !(chain->flags & SS_CHAIN_OPEN))
		return SS_STRANGER;
	if (p->envelope.n != chain->next)
		return p->envelope.n > chain->next ? SS_GAP : SS_REPLAY;
	if (chain->flags & SS_CHAIN_KEYED && !ss_has_right_mac(p))
		return SS_BAD_MAC;
	if (chain->flags & SS_CHAIN_ANY_HASH)
		return SS_FITS;
	return memcmp(p->envelope.previous, chain->hash, SS_DIGEST_BYTES) ? SS_BAD_HASH : SS_FITS;
}

/* A write of which only the newline was refused: the ledger strikes such a line out (ss_ledger_tear). */
static int
ss_is_struck(const struct ss_piece *p)
{
	return p->data[p->bytes - 1] == '?' && !ss_json_scan(p->data, p->bytes - 1);
}

/*
 * A line with a MAC is whole: what the MAC is over need not be looked at. Any other must be one
 * JSON object, because a torn line may end with a brace too.
 */
static int
ss_judge_whole(const struct ss_verify *v, struct ss_piece *p)
{
	const int has_keys = !p->chain || !(p->chain->flags & SS_CHAIN_OPEN) ||
	    p->chain->flags & SS_CHAIN_KEYED;
	int rest;

	if (p->has_mac && has_keys && !v->only_read)
		return ss_judge_by_mac(p);
	rest = ss_json_scan(p->data, p->bytes);
	if (rest < 0)
		return ss_is_struck(p) ? ss_judge_beginning(p) : SS_GARBAGE;
	if (rest > 0)
		return p->has_mac ? SS_GARBAGE : ss_judge_beginning(p);
	return v->only_read ? SS_FITS : ss_judge_by_mac(p);
}

/* Whether a line that is wrong in its first members was the next record of a chain with keys. */
static int
ss_is_changed(const struct ss_piece *p)
{
	const uint32_t both = SS_CHAIN_OPEN | SS_CHAIN_KEYED;

	return p->has_mac && p->chain && (p->chain->flags & both) == both &&
	    p->envelope.n == p->chain->next;
}

/* Reads a piece and says what it is. Changes nothing but the piece. */
static int
ss_judge(const struct ss_verify *v, struct ss_piece *p)
{
	struct ss_cursor c = { p->data, p->data + p->bytes, 0, 0 };

	memset(&p->envelope, 0, sizeof(p->envelope));
	p->chain = NULL;
	p->has_mac = p->is_again = 0;
	if (!p->bytes)
		return SS_BLANK;
	if (p->bytes >= SS_LINE_MAX)
		return SS_GARBAGE;
	ss_take_envelope(&c, &p->envelope);
	p->after = c.at;
	if (p->envelope.has_n)
		p->chain = ss_verify_find(v, p->envelope.id);
	if (c.cut)
		return ss_judge_beginning(p);
	p->has_mac = ss_take_mac(p->data, p->bytes, p->mac) && c.at <= c.end - SS_MAC_BYTES;
	if (c.wrong)
		return ss_is_changed(p) ? SS_BAD_MAC : SS_GARBAGE;
	return ss_judge_whole(v, p);
}

/* ------------------------------------------------------- what follows from a record */

/* The member agg of a checkpoint or of the last record: 1 and its bytes, or 0. */
static int
ss_told_agg(const struct ss_piece *p, uint8_t ret_agg[SS_DIGEST_BYTES])
{
	static const char member[] = ",\"agg\":\"";
	const uint8_t *const end = p->data + p->bytes;
	const uint8_t *found = memmem(p->after, (size_t)(end - p->after), member, sizeof(member) - 1);
	struct ss_cursor c;

	if (!found)
		return 0;
	c = (struct ss_cursor){ found + sizeof(member) - 1, end, 0, 0 };
	(void)ss_take_hex(&c, ret_agg, 64);
	return !ss_stopped(&c);
}

/* After records that are gone the aggregate starts again with the one that is told. */
static void
ss_compare_agg(const struct ss_piece *p, struct ss_verify_record *r)
{
	struct ss_verify_chain *chain = p->chain;
	uint8_t told[SS_DIGEST_BYTES];

	if (r->event != SS_EVENT_CHECKPOINT && r->event != SS_EVENT_CLOSE)
		return;
	if (!ss_told_agg(p, told))
		r->flags |= SS_BAD_AGG;
	else if (!(chain->flags & SS_CHAIN_AGG))
		memcpy(chain->agg, told, sizeof(told));
	else if (memcmp(chain->agg, told, sizeof(told)))
		r->flags |= SS_BAD_AGG;
	chain->flags |= SS_CHAIN_AGG;
}

/* A child of this process has keys that come from this record's. */
static void
ss_follow_fork(struct ss_verify *v, const struct ss_piece *p, struct ss_verify_record *r)
{
	struct ss_cursor c = { p->after, p->data + p->bytes, 0, 0 };
	struct ss_verify_chain *child;
	const uint8_t *name;
	uint8_t key[SS_DIGEST_BYTES];

	if (r->event != SS_EVENT_FORK)
		return;
	ss_take_text(&c, ",\"child\":\"");
	name = c.at;
	ss_take_uuid(&c, r->child);
	ss_take_text(&c, "\"");
	if (ss_stopped(&c))
		return;
	r->flags |= SS_HAS_CHILD;
	if (!(p->chain->flags & SS_CHAIN_KEYED))
		return;
	child = ss_verify_make(v, r->child); /* there is room: ss_verify_lines has seen to it */
	if (!child || child->flags & SS_CHAIN_OPEN)
		return;
	ss_hmac(p->chain->record_key, "safespawn fork", 14, name, 36, key);
	ss_verify_begin(child, key);
	explicit_bzero(key, sizeof(key));
}

/* The keys go on by one record. */
static void
ss_step_keys(const struct ss_piece *p)
{
	struct ss_verify_chain *chain = p->chain;

	if (p->has_mac)
		ss_hmac(chain->agg_key, chain->agg, SS_DIGEST_BYTES, p->mac, SS_DIGEST_BYTES, chain->agg);
	else
		chain->flags &= ~(uint32_t)SS_CHAIN_AGG;
	ss_sha256(chain->record_key, SS_DIGEST_BYTES, chain->record_key);
	ss_sha256(chain->agg_key, SS_DIGEST_BYTES, chain->agg_key);
}

static void
ss_move_on(struct ss_verify *v, struct ss_verify_chain *chain, struct ss_verify_record *r)
{
	if (r->verdict != SS_BAD_MAC) {
		if (chain->found && r->t < chain->t - SS_CLOCK_STEP_NS)
			r->flags |= SS_CLOCK_BACK;
		chain->t = r->t;
	}
	chain->before_at = chain->last_at;
	chain->before_line = chain->last_line;
	chain->before_file = chain->last_file;
	chain->last_at = r->at;
	chain->last_line = r->line;
	chain->last_file = v->file;
	chain->found += chain->found < UINT32_MAX;
	chain->next++;
	memcpy(chain->hash, r->hash, SS_DIGEST_BYTES);
	if (r->verdict == SS_BAD_MAC)
		chain->flags |= SS_CHAIN_ANY_HASH; /* the next one tells the hash of what was here */
	else
		chain->flags &= ~(uint32_t)SS_CHAIN_ANY_HASH;
}

/* A record that is the next of its chain, whether it is right or not. */
static void
ss_accept(struct ss_verify *v, const struct ss_piece *p, struct ss_verify_record *r)
{
	const int is_keyed = p->chain->flags & SS_CHAIN_KEYED;

	if (r->verdict == SS_FITS) {
		if (is_keyed)
			ss_compare_agg(p, r);
		ss_follow_fork(v, p, r);
	}
	if (is_keyed)
		ss_step_keys(p);
	ss_move_on(v, p->chain, r);
	if (is_keyed && ss_is_slot_forged(p->chain))
		r->flags |= SS_BAD_STATE;
}

static void
ss_tell(const struct ss_verify *v, const struct ss_piece *p, int verdict, struct ss_verify_record *r)
{
	const struct ss_envelope *e = &p->envelope;

	memset(r, 0, sizeof(*r));
	r->at = v->at;
	r->line = v->line;
	r->bytes = (uint32_t)p->bytes;
	r->verdict = (uint16_t)verdict;
	r->chain = p->chain ? (uint32_t)(p->chain - v->chains) : UINT32_MAX;
	if (p->bytes >= SS_LINE_MAX)
		r->flags |= SS_TOO_LONG;
	if (p->is_again)
		r->flags |= SS_AGAIN;
	if (!e->has_n)
		return;
	r->flags |= SS_HAS_NUMBER;
	memcpy(r->id, e->id, sizeof(r->id));
	r->n = e->n;
	if (verdict <= SS_GARBAGE && verdict != SS_FITS)
		return;
	if (p->has_mac)
		r->flags |= SS_HAS_MAC;
	r->t = (int64_t)e->t;
	r->event = (uint16_t)e->event;
	memcpy(r->sid, e->sid, sizeof(r->sid));
	ss_sha256(p->data, p->bytes, r->hash);
}

/* ---------------------------------------------------------------------- the lines */

/* How long the piece at this place is, without a newline; -1 when its end is not here yet. */
static int64_t
ss_piece_end(const uint8_t *data, size_t bytes, int is_last)
{
	const size_t seen = bytes < SS_LINE_MAX ? bytes : SS_LINE_MAX;
	const uint8_t *newline = memchr(data, '\n', seen);

	if (newline)
		return newline - data;
	/* The beginning of another record may lie across that end. */
	return is_last || bytes >= SS_LINE_MAX + SS_START_BYTES ? (int64_t)seen : -1;
}

/* Where another record begins in a piece; its length where none does. */
static size_t
ss_next_start(const uint8_t *data, size_t length, size_t bytes)
{
	const size_t seen = bytes < length + SS_START_BYTES - 1 ? bytes : length + SS_START_BYTES - 1;
	const uint8_t *found = length < 2 ? NULL : memmem(data + 1, seen - 1, SS_START, SS_START_BYTES);

	return found && (size_t)(found - data) < length ? (size_t)(found - data) : length;
}

/* The same when so little of it is left that not even its start is whole. */
static size_t
ss_cut_start(const uint8_t *data, size_t length)
{
	size_t part;

	for (part = SS_START_BYTES - 1; part; part--)
		if (part < length && !memcmp(data + length - part, SS_START, part))
			return length - part;
	return length;
}

/* Judges what is left of a line, or the part of it before the next record. */
static int
ss_judge_first(const struct ss_verify *v, struct ss_piece *p, size_t left)
{
	const size_t whole = p->bytes;
	int verdict = ss_judge(v, p);

	if (verdict != SS_FITS && (p->bytes = ss_next_start(p->data, whole, left)) < whole)
		verdict = ss_judge(v, p);
	if (verdict == SS_GARBAGE) {
		const size_t before = p->bytes;

		if ((p->bytes = ss_cut_start(p->data, before)) < before)
			verdict = ss_judge(v, p);
	}
	return verdict;
}

/*
 * Judges whole lines, in the order of the file, and tells of each piece what it is. Stops when
 * the records are full or the table of chains is, and behind a stranger or a gap: nothing was
 * done then, and the caller may give the chain its keys, set v->at and v->line back to those of
 * the record, and come again with the same bytes. Also behind a hash that is wrong: where the
 * record before was is in the table only until the next. The last bytes are looked at only
 * when is_last says that no more will come. Returns how many records were told; v->at has moved.
 */
SS_API int64_t
ss_verify_lines(struct ss_verify *v, const uint8_t *data, size_t bytes, int is_last,
    struct ss_verify_record *records, size_t room)
{
	size_t at = 0, count = 0;

	while (at < bytes && count < room && (v->only_read || v->used < v->room)) {
		const int64_t end = ss_piece_end(data + at, bytes - at, is_last);
		struct ss_piece p;
		struct ss_verify_record *r = &records[count];
		int verdict, is_line;

		if (end < 0)
			break;
		p.data = data + at;
		p.bytes = (size_t)end;
		verdict = ss_judge_first(v, &p, bytes - at);
		is_line = at + p.bytes < bytes && p.data[p.bytes] == '\n';
		ss_tell(v, &p, verdict, r);
		r->flags |= is_line ? 0 : SS_NO_NEWLINE;
		if (!v->only_read && (verdict == SS_FITS || verdict >= SS_BAD_MAC))
			ss_accept(v, &p, r);
		count++;
		at += p.bytes + (size_t)is_line;
		v->at += p.bytes + (size_t)is_line;
		v->line += (uint64_t)is_line;
		if (!v->only_read &&
		    (verdict == SS_STRANGER || verdict == SS_GAP || verdict == SS_BAD_HASH))
			break;
	}
	return (int64_t)count;
}

SS_API const char *
ss_verify_event(int32_t event)
{
	return event >= 0 && event < SS_EVENTS ? ss_verify_events[event] : NULL;
}
