/*
 * Fuzz target for the audit verifier (safespawn/_verify.c).
 *
 * An input is bytes of a ledger, as they lie in a file. One that begins with 'M' is a short
 * script instead, from which a ledger of a few chains with keys is made and then, perhaps, a
 * byte of it is changed: no mutation would find a MAC that fits.
 *
 * Each ledger is judged twice, at once and in parts that are cut anywhere, in memory of the
 * exact sizes, and AddressSanitizer watches. What must hold: both say the same; the pieces
 * follow each other without a gap up to the end; a record that fits has the number, the hash
 * and the MAC that a slow model of its chain expects; a ledger that a script made fits whole,
 * and a byte that was changed in it is told first at its line.
 *
 * libFuzzer:  clang -fsanitize=fuzzer,address,undefined fuzz_verify.c
 * gcc:        gcc -fsanitize=address,undefined fuzz_verify.c driver.c
 * replay:     gcc -fsanitize=address,undefined -DFUZZ_MAIN fuzz_verify.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SS_API static

#include "../safespawn/_sha256.c"

#include "../safespawn/_verify.c"

#include "check.h"

#define CHAINS 8u
#define STEPS 4096u /* over records that are not there */
#define MADE_MAX (1u << 16)

static const uint8_t key[SS_DIGEST_BYTES] = "the key of every chain in here.";

static void *
exactly(size_t bytes)
{
	void *made = malloc(bytes ? bytes : 1);

	CHECK(made);
	memset(made, 0xa5, bytes);
	return made;
}

/* ------------------------------------------------------------------ the slow model */

/* What a chain with keys must have at its next record, each time from the beginning. */
static void
model_key(const char *what, uint64_t n, uint8_t ret_key[SS_DIGEST_BYTES])
{
	ss_hmac(key, what, strlen(what), "", 0, ret_key);
	for (; n; n--)
		ss_sha256(ret_key, SS_DIGEST_BYTES, ret_key);
}

static void
model_check(const uint8_t *line, const struct ss_verify_record *r, int is_keyed)
{
	uint8_t expected[SS_DIGEST_BYTES], mac[SS_DIGEST_BYTES];
	char digits[2 * SS_DIGEST_BYTES];

	CHECK(r->bytes > 200 && r->bytes < SS_LINE_MAX);
	CHECK(!memcmp(line, "{\"v\":1,\"c\":\"", 12) && line[r->bytes - 1] == '}');
	CHECK(!memchr(line, '\n', r->bytes));
	ss_sha256(line, r->bytes, expected);
	CHECK(!memcmp(expected, r->hash, sizeof(expected)));
	if (!is_keyed)
		return;
	model_key("safespawn record", r->n, expected);
	ss_hmac(expected, line, r->bytes - 72, "", 0, mac);
	ss_hex(mac, digits);
	CHECK(!memcmp(line + r->bytes - 66, digits, 64));
}

/* --------------------------------------------------------------- one look at a ledger */

struct told {
	struct ss_verify_record records[MADE_MAX + 1]; /* every byte may be a newline */
	size_t count;
};

struct look {
	struct ss_verify v;
	struct ss_verify_chain *chains;
	uint32_t *index;
	uint8_t forked[CHAINS][16]; /* chains whose keys the core has made */
	size_t nforked;
	char said[64]; /* a letter for each verdict, the first ones */
	size_t nsaid;
};

static const char letters[] = "FBTGSARMH"; /* by verdict */

static void
look_begin(struct look *l)
{
	memset(l, 0, sizeof(*l));
	l->chains = exactly(CHAINS * sizeof(*l->chains));
	l->index = exactly(2 * CHAINS * sizeof(*l->index));
	memset(l->index, 0, 2 * CHAINS * sizeof(*l->index));
	l->v.chains = l->chains;
	l->v.index = l->index;
	l->v.room = CHAINS;
	l->v.mask = 2 * CHAINS - 1;
	l->v.seed[0] = 17;
	l->v.line = 1;
}

static void
look_end(struct look *l)
{
	uint32_t i;

	ss_verify_wipe(&l->v);
	for (i = 0; i < CHAINS * sizeof(*l->chains); i++)
		CHECK(!((uint8_t *)l->chains)[i]);
	free(l->chains);
	free(l->index);
}

/* What Python does of it: a stranger gets a key, or none by its name; a gap is passed. */
static void
look_decide(struct look *l, const struct ss_verify_record *r)
{
	const uint64_t before = l->v.used;

	if (r->verdict == SS_STRANGER) {
		if (r->id[15] & 1 || ss_verify_open(&l->v, r->id, r->id[15] & 2 ? NULL : key) < 0)
			return;
		CHECK(l->v.used >= before);
		if (r->n && ss_verify_reach(&l->v, l->v.used - 1, r->n, STEPS))
			return;
	} else if (ss_verify_reach(&l->v, r->chain, r->n, STEPS)) {
		return;
	}
	l->v.at = r->at;
	l->v.line = r->line;
}

static int
is_model_chain(const struct look *l, const struct ss_verify_record *r)
{
	size_t i;

	for (i = 0; i < l->nforked; i++)
		if (!memcmp(l->forked[i], r->id, 16))
			return 0;
	return (l->v.chains[r->chain].flags & SS_CHAIN_KEYED) != 0;
}

static void
look_note(struct look *l, const uint8_t *whole, const struct ss_verify_record *r, struct told *to)
{
	CHECK(to->count < sizeof(to->records) / sizeof(*to->records));
	to->records[to->count++] = *r;
	if (r->verdict != SS_FITS)
		return;
	CHECK(r->chain < l->v.used);
	model_check(whole + r->at, r, is_model_chain(l, r));
	if (r->flags & SS_HAS_CHILD && l->nforked < CHAINS)
		memcpy(l->forked[l->nforked++], r->child, 16);
}

/* Judges what is there of a ledger, up to `bytes`; the rest comes later unless it is the last. */
static void
look_at(struct look *l, const uint8_t *whole, size_t bytes, int is_last, struct told *to)
{
	while (l->v.at < bytes) {
		struct ss_verify_record *records = exactly(3 * sizeof(*records));
		const size_t from = (size_t)l->v.at;
		uint8_t *part = exactly(bytes - from);
		int64_t count, i;

		memcpy(part, whole + from, bytes - from);
		count = ss_verify_lines(&l->v, part, bytes - from, is_last, records, 3);
		CHECK(count >= 0 && count <= 3);
		for (i = 0; i < count; i++) {
			const struct ss_verify_record *r = &records[i];
			const int is_asked = r->verdict == SS_STRANGER || r->verdict == SS_GAP;

			CHECK(r->verdict < sizeof(letters) - 1);
			CHECK(!(r->flags & SS_AGAIN) || r->verdict == SS_GARBAGE);
			if (l->nsaid + 1 < sizeof(l->said))
				l->said[l->nsaid++] = letters[r->verdict];
			CHECK(r->at + r->bytes <= bytes && (i == count - 1 || !is_asked));
			if (is_asked)
				look_decide(l, r);
			if (!is_asked || l->v.at != r->at)
				look_note(l, whole, r, to);
		}
		free(part);
		free(records);
		if (!count) {
			CHECK(!is_last || l->v.used == l->v.room);
			break;
		}
	}
}

/* The pieces lie one behind the other, each with its newline or without. */
static void
check_cover(const uint8_t *whole, size_t bytes, const struct told *t, uint64_t end)
{
	uint64_t at = 0, line = 1;
	size_t i;

	for (i = 0; i < t->count; i++) {
		const struct ss_verify_record *r = &t->records[i];
		const int is_line = !(r->flags & SS_NO_NEWLINE);

		CHECK(r->at == at && r->line == line);
		at += r->bytes;
		CHECK(at <= bytes);
		CHECK(is_line == (at < bytes && whole[at] == '\n'));
		at += (uint64_t)is_line;
		line += (uint64_t)is_line;
	}
	CHECK(at == end && end <= bytes);
}

static struct told once, parts;
static char said[64]; /* of the last ledger */

static void
try_ledger(const uint8_t *whole, size_t bytes, const uint8_t *cuts, size_t ncuts)
{
	struct look l;
	uint64_t end;
	size_t i, to = 0;

	once.count = parts.count = 0;
	look_begin(&l);
	look_at(&l, whole, bytes, 1, &once);
	end = l.v.at;
	check_cover(whole, bytes, &once, end);
	CHECK(end == bytes || l.v.used == l.v.room);
	look_end(&l);

	look_begin(&l);
	for (i = 0; i < ncuts && to < bytes; i++) {
		to += cuts[i] * 37u;
		look_at(&l, whole, to < bytes ? to : bytes, to >= bytes, &parts);
	}
	if (l.v.at < bytes)
		look_at(&l, whole, bytes, 1, &parts);
	CHECK(l.v.at == end && parts.count == once.count);
	CHECK(!memcmp(once.records, parts.records, once.count * sizeof(*once.records)));
	look_end(&l);
	memcpy(said, l.said, sizeof(said));
}

/* --------------------------------------------------------------------- the scripts */

struct input {
	const uint8_t *at;
	size_t left;
};

static uint8_t
take(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->at++;
}

/* A chain as its writer has it. */
struct writer {
	uint64_t n;
	uint8_t hash[SS_DIGEST_BYTES], agg[SS_DIGEST_BYTES];
};

static struct {
	uint8_t data[MADE_MAX];
	size_t bytes;
} made;

static void
put(const char *text)
{
	const size_t bytes = strlen(text);

	CHECK(made.bytes + bytes < sizeof(made.data));
	memcpy(made.data + made.bytes, text, bytes);
	made.bytes += bytes;
}

static void
put_hex(const uint8_t digest[SS_DIGEST_BYTES])
{
	char digits[2 * SS_DIGEST_BYTES + 1];

	ss_hex(digest, digits);
	digits[2 * SS_DIGEST_BYTES] = 0;
	put(digits);
}

static void
put_body(struct input *in, const struct writer *w, unsigned event)
{
	static const char *const values[] = { "0", "-12", "null", "true", "[]", "{}", "[1,[\"a\"]]",
		"{\"x\":{\"y\":[{}]}}", "\"\\u2026\\\"\"", "\"\"" };
	unsigned i, count = take(in) % 5;
	char name[32];

	for (i = 0; i < count; i++) {
		(void)snprintf(name, sizeof(name), ",\"m%u\":", i);
		put(name);
		put(values[take(in) % (sizeof(values) / sizeof(*values))]);
	}
	if (event == SS_EVENT_CHECKPOINT || event == SS_EVENT_CLOSE) {
		put(",\"agg\":\"");
		put_hex(w->agg);
		put("\"");
	}
}

static void
put_record(struct input *in, struct writer *w, unsigned chain)
{
	/* A fork needs a child of its own, and a chain ends once. */
	static const unsigned events[] = { 1, 4, 5, 6, 7, 8, 9, 10, 11, 13 };
	const unsigned event = events[take(in) % (sizeof(events) / sizeof(*events))];
	const size_t from = made.bytes;
	uint8_t digest[SS_DIGEST_BYTES], of_record[SS_DIGEST_BYTES], of_agg[SS_DIGEST_BYTES];
	char text[256];

	(void)snprintf(text, sizeof(text),
	    "{\"v\":1,\"c\":\"00000000-0000-7000-8000-0000000000%02x\",\"n\":%llu,\"p\":\"", chain * 4,
	    (unsigned long long)w->n);
	put(text);
	put_hex(w->hash);
	(void)snprintf(text, sizeof(text),
	    "\",\"ev\":\"%s\",\"sid\":null,\"t\":%u,\"mono\":1,\"boot\":\"\",\"mode\":\"durable\"",
	    ss_verify_events[event], 1000 + (unsigned)w->n);
	put(text);
	put_body(in, w, event);
	model_key("safespawn record", w->n, of_record);
	model_key("safespawn aggregate", w->n, of_agg);
	ss_hmac(of_record, made.data + from, made.bytes - from, "", 0, digest);
	put(",\"m\":\"");
	put_hex(digest);
	put("\"}");
	ss_hmac(of_agg, w->agg, sizeof(w->agg), digest, sizeof(digest), w->agg);
	ss_sha256(made.data + from, made.bytes - from, w->hash);
	w->n++;
	put("\n");
}

/* A byte of the ledger becomes another: the first piece that does not fit is on its line. */
static void
try_change(struct input *in)
{
	const size_t at = (size_t)(take(in) << 8 | take(in)) * 7 % made.bytes;
	const uint8_t flip = (uint8_t)(take(in) | 1);
	const uint8_t was = made.data[at];
	uint64_t line = 1;
	size_t i;

	for (i = 0; i < at; i++)
		line += made.data[i] == '\n';
	made.data[at] ^= flip;
	try_ledger(made.data, made.bytes, in->at, in->left);
	for (i = 0; i < once.count; i++)
		if (once.records[i].verdict != SS_FITS || once.records[i].flags)
			if (once.records[i].flags != (SS_HAS_NUMBER | SS_HAS_MAC) || once.records[i].verdict)
				break;
	CHECK(i < once.count && once.records[i].line == line);
	made.data[at] = was;
}

static void
try_script(struct input in)
{
	struct writer writers[3];
	unsigned count = take(&in) % 24 + 1;
	int is_changed;

	memset(writers, 0, sizeof(writers));
	made.bytes = 0;
	while (count--) {
		const unsigned chain = take(&in) % 3;

		put_record(&in, &writers[chain], chain);
	}
	is_changed = take(&in) & 1;
	if (is_changed) {
		try_change(&in);
		return;
	}
	try_ledger(made.data, made.bytes, in.at, in.left);
	for (count = 0; count < once.count; count++)
		CHECK(once.records[count].verdict == SS_FITS && !(once.records[count].flags & SS_BAD_AGG));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t cuts[] = { 0, 1, 0, 29, 0, 3, 255 };

	if (size && data[0] == 'M') {
		try_script((struct input){ data + 1, size - 1 });
		return 0;
	}
	cuts[0] = (uint8_t)size;
	cuts[4] = (uint8_t)(size >> 3);
	try_ledger(data, size < MADE_MAX ? size : MADE_MAX, cuts, sizeof(cuts));
	return 0;
}

#ifdef FUZZ_MAIN
#define SAID (said)
#include "replay.h"
#endif
