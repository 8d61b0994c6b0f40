/*
 * Fuzz target for what writes the records of the audit in C (safespawn/_text.c, _telling.c, and
 * the line of a ledger in _ledger.c).
 *
 * An input that begins with 'I' is a spawn: arguments, environment, descriptors. Its intent is
 * written as a ledger with keys does it. One that begins with 'E' is the end of a child, with 'B'
 * the length of members that Python has made. Any other is a text and numbers.
 *
 * What must hold: a record is one line of printable ASCII of the length that collectors take,
 * and JSON by a strict reader of its own; the MAC at its end is that over the bytes before it;
 * arguments and names of variables, read back, are byte by byte what was given, and what does
 * not fit is cut as the format says it, with the digest of all; values of variables are nowhere.
 * A text is what a slow model makes of it, in a buffer of the exact size and also by pieces, and
 * nothing is written outside of either.
 *
 * libFuzzer:  clang -fsanitize=fuzzer,address,undefined fuzz_record.c, with -dict=record.dict
 * gcc:        gcc -fsanitize=address,undefined fuzz_record.c driver.c, with -dict=record.dict
 * replay:     gcc -fsanitize=address,undefined -DFUZZ_MAIN fuzz_record.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "input.h"

#define SS_API static
#define SS_FUTEX_PRIVATE 128
#define SS_FUTEX_WAIT 0
#define SS_FUTEX_WAKE 1
#define SS_FUTEX_WAIT_BITSET 9
#define SS_MADV_WIPEONFORK 18

#include "../safespawn/_plan.h"

/* Of _native.c, as far as a record tells of it. */
enum { SS_USED_CLONE3 = 1, SS_UNCONFIRMED = 2 };

struct ss_result {
	int32_t pid;
	uint32_t flags;
	int64_t window_ns;
};

struct ss_exit {
	int32_t pid, code, status;
	int64_t utime_us, stime_us, maxrss_kib, minflt, majflt;
};

static int64_t
ss_now(void)
{
	return 1234567890123;
}

static int64_t
ss_clock_ns(clockid_t clock)
{
	return 1000 + clock;
}

#include "../safespawn/_sha256.c"

#include "../safespawn/_ledger.h"

#include "../safespawn/_text.c"

#include "../safespawn/_ring.c"

#include "../safespawn/_ledger_file.c"

#include "../safespawn/_ledger_keys.c"

#include "../safespawn/_ledger.c"

#include "../safespawn/_telling.c"

/* Of _ledger_open.c; nothing here is written to a file. */
static int
ss_ledger_flush_to(struct ss_ledger *ledger, uint64_t written)
{
	(void)ledger;
	return written ? -EIO : 0;
}

static char said[64]; /* of the last input, for the replay */

/* ------------------------------------------------------------- a strict reader of JSON */

/* Each function returns where its value ends, NULL if it is none (RFC 8259; ASCII without blanks, no fractions). */
static const char *json_value(const char *at, const char *end);

static unsigned
json_hex(const char *at, unsigned digits)
{
	unsigned value = 0;

	while (digits--) {
		const char *digit = strchr("0123456789abcdef", *at++);

		CHECK(digit && *digit);
		value = value << 4 | (unsigned)(digit - "0123456789abcdef");
	}
	return value;
}

static const char *
json_string(const char *at, const char *end)
{
	if (at >= end || *at++ != '"')
		return NULL;
	while (at < end && *at != '"') {
		if (*at < 0x20 || *at > 0x7e)
			return NULL;
		if (*at != '\\') {
			at++;
			continue;
		}
		if (end - at < 6 || !at[1] || !strchr("\"\\bfnrtu", at[1])) /* more follows, if only the end of the record */
			return NULL;
		if (at[1] == 'u')
			(void)json_hex(at + 2, 4);
		at += at[1] == 'u' ? 6 : 2;
	}
	return at < end ? at + 1 : NULL;
}

static const char *
json_number(const char *at, const char *end)
{
	const char *from = at;

	at += at < end && *at == '-';
	if (at + 1 < end && *at == '0' && at[1] >= '0' && at[1] <= '9')
		return NULL;
	while (at < end && *at >= '0' && *at <= '9')
		at++;
	return at > from && at[-1] != '-' ? at : NULL;
}

/* A list, or an object, whose values have names. */
static const char *
json_group(const char *at, const char *end)
{
	const char closing = *at == '[' ? ']' : '}';

	at++;
	if (at < end && *at == closing)
		return at + 1;
	for (;;) {
		if (closing == '}' && (!(at = json_string(at, end)) || at >= end || *at++ != ':'))
			return NULL;
		if (!(at = json_value(at, end)) || at >= end)
			return NULL;
		if (*at == closing)
			return at + 1;
		if (*at++ != ',')
			return NULL;
	}
}

static const char *
json_value(const char *at, const char *end)
{
	static const char *const words[] = { "null", "true", "false" };
	unsigned i;

	for (i = 0; i < 3; i++)
		if ((size_t)(end - at) >= strlen(words[i]) && !memcmp(at, words[i], strlen(words[i])))
			return at + strlen(words[i]);
	if (at >= end)
		return NULL;
	return *at == '"' ? json_string(at, end) : *at == '[' || *at == '{' ? json_group(at, end) : json_number(at, end);
}

/* The value of a member; each name is there once. */
static const char *
json_member(const char *object, const char *end, const char *name)
{
	const char *at = object, *found = NULL;

	CHECK(*at == '{');
	while (*at != '}') {
		const char *key = ++at, *value;

		if (*key == '}')
			break;
		value = json_string(key, end) + 1;
		if ((size_t)(value - key) == strlen(name) + 3 && !memcmp(key + 1, name, strlen(name))) {
			CHECK(!found);
			found = value;
		}
		at = json_value(value, end);
	}
	return found;
}

static uint64_t
json_integer(const char *value)
{
	CHECK(value);
	return strtoull(value, NULL, 10);
}

static size_t
put_utf8(uint8_t *to, uint32_t code)
{
	static const uint8_t first[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
	const size_t bytes = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
	size_t i;

	for (i = bytes; i--; code >>= 6)
		to[i] = (uint8_t)(i ? 0x80 | (code & 0x3f) : first[bytes] | code);
	return bytes;
}

/* A text as the format has it, back to bytes; returns how many. */
static size_t
json_bytes(const char *at, const char *end, uint8_t *to)
{
	static const char letters[] = "\"\\bfnrt", meant[] = "\"\\\b\f\n\r\t";
	size_t bytes = 0;

	if (*at == '{') {
		at = json_member(at, end, "hex");
		for (at++; *at != '"'; at += 2)
			to[bytes++] = (uint8_t)json_hex(at, 2);
		return bytes;
	}
	for (at++; *at != '"';) {
		uint32_t code = (uint8_t)*at++;

		if (code == '\\' && *at != 'u') {
			code = (uint8_t)meant[strchr(letters, *at++) - letters];
		} else if (code == '\\') {
			code = json_hex(at + 1, 4);
			at += 5;
			if (code >= 0xd800 && code < 0xdc00) {
				CHECK(at[0] == '\\' && at[1] == 'u');
				code = 0x10000 + (code - 0xd800) * 0x400 + json_hex(at + 2, 4) - 0xdc00;
				at += 6;
			}
		}
		bytes += put_utf8(to + bytes, code);
	}
	return bytes;
}

/* ---------------------------------------------------------------------- the slow model */

struct made {
	char text[1 << 17];
	size_t bytes;
};

static void
model_say(struct made *m, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void
model_say(struct made *m, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	m->bytes += (size_t)vsnprintf(m->text + m->bytes, sizeof(m->text) - m->bytes, format, list);
	va_end(list);
	CHECK(m->bytes < sizeof(m->text));
}

/* The code of one character and its bytes by RFC 3629, table by table; 0 for none. */
static size_t
model_character(const uint8_t *s, size_t left, uint32_t *ret)
{
	size_t bytes, i;
	uint8_t again[4];

	for (bytes = 1; bytes <= 4 && bytes <= left; bytes++) {
		uint32_t code = bytes == 1 ? s[0] : s[0] & (0xffu >> (bytes + 1));

		for (i = 1; i < bytes; i++)
			code = code << 6 | (s[i] & 0x3f);
		/* It is one if that is how it is written. */
		if (code < 0x110000 && !(code >= 0xd800 && code < 0xe000) && put_utf8(again, code) == bytes &&
		    !memcmp(again, s, bytes)) {
			*ret = code;
			return bytes;
		}
	}
	return 0;
}

static void
model_text(struct made *m, const uint8_t *s, size_t bytes)
{
	const struct made before = { .bytes = m->bytes };
	size_t at = 0, step;
	uint32_t code;

	model_say(m, "\"");
	for (; at < bytes && (step = model_character(s + at, bytes - at, &code)); at += step) {
		if (code == '"' || code == '\\')
			model_say(m, "\\%c", (int)code);
		else if (code == '\n' || code == '\r' || code == '\t' || code == '\f' || code == '\b')
			model_say(m, "\\%c", "btn_fr"[code - '\b']);
		else if (code >= 0x20 && code < 0x7f)
			model_say(m, "%c", (int)code);
		else if (code < 0x10000)
			model_say(m, "\\u%04x", code);
		else
			model_say(m, "\\u%04x\\u%04x", 0xd7c0 + (code >> 10), 0xdc00 + (code & 0x3ff));
	}
	if (at == bytes) {
		model_say(m, "\"");
		return;
	}
	m->bytes = before.bytes;
	model_say(m, "{\"hex\":\"");
	for (at = 0; at < bytes; at++)
		model_say(m, "%02x", s[at]);
	model_say(m, "\"}");
}

/* ------------------------------------------------------------------------------ texts */

static void
put_all(struct ss_text *text, const uint8_t *data, size_t bytes, uint64_t number)
{
	ss_put_text(text, (const char *)data, bytes);
	ss_put_number(text, number);
	ss_put_signed(text, (int64_t)number);
	ss_put_hex(text, number);
}

/* In a buffer that has room for all, for one byte less, and in a small one whose content is hashed. */
static void
fuzz_text(struct input in)
{
	static struct made m;
	uint8_t expected[SS_DIGEST_BYTES], digest[SS_DIGEST_BYTES];
	const uint64_t number = take(&in, take(&in, 1) % 9);
	const size_t small = 1 + take(&in, 1) % 40;
	struct ss_sha256 hash;
	struct ss_text text;
	size_t room;
	char *area;

	m.bytes = 0;
	model_text(&m, in.at, in.left);
	model_say(&m, "%llu%lld%llx", (unsigned long long)number, (long long)number, (unsigned long long)number);
	for (room = m.bytes; room + 1 >= m.bytes && room <= m.bytes; room--) {
		area = exactly(room);
		text = (struct ss_text){ area, area, area + room, 0, NULL };
		put_all(&text, in.at, in.left, number);
		CHECK(text.full == (room < m.bytes));
		CHECK(!memcmp(area, m.text, room) && text.at == area + room);
		free(area);
	}
	area = exactly(small);
	ss_sha256_start(&hash);
	text = (struct ss_text){ area, area, area + small, 0, &hash };
	put_all(&text, in.at, in.left, number);
	ss_sha256_add(&hash, area, (size_t)(text.at - area));
	ss_sha256_end(&hash, digest);
	ss_sha256(m.text, m.bytes, expected);
	CHECK(!text.full && !memcmp(digest, expected, sizeof(digest)));
	free(area);
	(void)snprintf(said, sizeof(said), *m.text == '"' ? "text" : "hex");
}

/* ------------------------------------------------------------------------------ lines */

static struct ss_secrets secrets;
static const uint8_t env_key[32] = "the key of environments in here";

static struct ss_ledger *
new_ledger(void)
{
	static const char id[SS_ID_BYTES + 1] = "00000000-0000-7000-8000-00000000f022";
	struct ss_ledger *ledger = exactly(sizeof(*ledger));

	memcpy(secrets.record_key, "the key of the record in here..", 32);
	ledger->secrets = &secrets;
	ledger->keyed = 1;
	memcpy(ledger->chain, id, SS_ID_BYTES);
	strcpy(ledger->boot, "boot");
	strcpy(ledger->mode, "durable");
	return ledger;
}

/* One line of ASCII, JSON, and the MAC over what stands before it. */
static void
check_line(const struct ss_ledger *ledger, size_t bytes, const uint8_t told[32])
{
	const char *line = ledger->line;
	uint8_t mac[32];
	char digits[2 * 32];
	size_t i;

	CHECK(bytes > 74 && bytes < SS_LINE_BYTES);
	for (i = 0; i < bytes; i++)
		CHECK(line[i] >= 0x20 && line[i] <= 0x7e);
	CHECK(*line == '{' && json_value(line, line + bytes) == line + bytes);
	ss_hmac(secrets.record_key, line, bytes - 72, NULL, 0, mac);
	ss_hex(mac, digits);
	CHECK(!memcmp(line + bytes - 72, ",\"m\":\"", 6) && !memcmp(line + bytes - 66, digits, 64));
	CHECK(!memcmp(mac, told, sizeof(mac)));
}

/* Writes a record, if it fits; what follows the line in the ledger stays as it was. */
static ssize_t
write_line(struct ss_ledger *ledger, const struct ss_record *record)
{
	uint8_t mac[32] = { 0 };
	ssize_t bytes;

	memset(ledger->line, 0x5a, sizeof(ledger->line));
	bytes = ss_ledger_line(ledger, record, mac);
	CHECK(bytes > 0 || bytes == -EMSGSIZE);
	if (bytes > 0)
		check_line(ledger, (size_t)bytes, mac);
	CHECK(ledger->line[SS_LINE_BYTES] == 0x5a);
	return bytes;
}

/* ----------------------------------------------------------------------------- intents */

#define STRINGS_MAX 300u
#define SECRET "HiddenValue"

struct strings {
	char *text;
	size_t bytes;
	uint32_t count;
};

/* So many strings of the input, each up to a NUL; repeated so often. For variables "=" and a value follow. */
static void
take_strings(struct input *in, struct strings *s, int are_variables)
{
	const uint32_t count = (uint32_t)take(in, 1) % 24, times = 1 + (uint32_t)take(in, 1) % 12;
	const uint8_t *from = in->at, *const end = in->at + in->left, *at = from;
	const size_t value = are_variables ? strlen("=" SECRET) : 0;
	uint32_t i, k;

	s->text = exactly((in->left + count + 1 + count * value) * times);
	s->bytes = s->count = 0;
	for (k = 0; k < times; k++)
		for (i = 0, at = from; i < count; i++, s->count++) {
			while (at < end && *at)
				s->text[s->bytes++] = (char)(are_variables && *at == '=' ? '-' : *at), at++;
			at += at < end;
			memcpy(s->text + s->bytes, "=" SECRET, value);
			s->bytes += value;
			s->text[s->bytes++] = 0;
		}
	in->left -= (size_t)(at - in->at);
	in->at = at;
}

/* How many bytes an item may have: a name ends before its value. */
static size_t
item_bytes(const char *item, int are_variables)
{
	return are_variables ? strlen(item) - strlen("=" SECRET) : strlen(item);
}

/* All of a list as the format has it. */
static void
model_list(struct made *m, const struct strings *s, int are_variables)
{
	const char *at = s->text;
	uint32_t i;

	m->bytes = 0;
	model_say(m, "[");
	for (i = 0; i < s->count; i++, at += strlen(at) + 1) {
		model_say(m, "%s", i ? "," : "");
		model_text(m, (const uint8_t *)at, item_bytes(at, are_variables));
	}
	model_say(m, "]");
}

/* Every item of a list is what was given, byte by byte; returns how many there are. */
static uint32_t
check_list(const char *list, const char *end, const struct strings *s, int are_variables)
{
	const char *at = s->text;
	uint8_t *back = exactly(SS_LINE_BYTES);
	uint32_t count = 0;

	for (list++; *list != ']'; count++) {
		const size_t bytes = json_bytes(list, end, back);

		CHECK(count < s->count);
		CHECK(bytes == item_bytes(at, are_variables) && !memcmp(back, at, bytes));
		at += strlen(at) + 1;
		list = json_value(list, end);
		list += *list == ',';
	}
	free(back);
	return count;
}

/* All names, or the first, their number, and the digest of all as they would stand there. */
static void
check_names(const char *value, const char *end, const struct strings *env)
{
	static struct made m;
	uint8_t digest[SS_DIGEST_BYTES];
	char digits[2 * SS_DIGEST_BYTES];

	model_list(&m, env, 1);
	CHECK((*value == '[') == (m.bytes <= SS_ENV_ROOM));
	if (*value == '[') {
		CHECK(check_list(value, end, env, 1) == env->count);
		return;
	}
	CHECK(check_list(json_member(value, end, "first"), end, env, 1) <= env->count);
	CHECK(json_integer(json_member(value, end, "count")) == env->count);
	ss_sha256(m.text, m.bytes, digest);
	ss_hex(digest, digits);
	CHECK(!memcmp(json_member(value, end, "sha256") + 1, digits, sizeof(digits)));
}

/* Whether the secret is also part of what may be told. */
static int
names_it(const struct strings *s, int are_variables)
{
	const char *at = s->text;
	uint32_t i;

	for (i = 0; i < s->count; i++, at += strlen(at) + 1)
		if (memmem(at, item_bytes(at, are_variables), SECRET, strlen(SECRET)))
			return 1;
	return 0;
}

static void
check_intent(const char *line, size_t bytes, const struct strings *argv, const struct strings *env, uint32_t nfds)
{
	const char *const end = line + bytes, *what = json_member(line, end, "what"), *at;
	uint32_t fds = 0;

	CHECK(what && json_integer(json_member(what, end, "argc")) == argv->count);
	CHECK(json_integer(json_member(what, end, "argv_bytes")) == argv->bytes - argv->count);
	CHECK(check_list(json_member(what, end, "argv"), end, argv, 0) == argv->count);
	check_names(json_member(what, end, "env_keys"), end, env);
	CHECK(!memmem(line, bytes, SECRET, strlen(SECRET)) || names_it(argv, 0) || names_it(env, 1));
	for (at = json_member(what, end, "fds") + 1; *at != ']'; fds++) {
		CHECK(json_member(at, end, "ino"));
		at = json_value(at, end);
		at += *at == ',';
	}
	CHECK(fds == nfds);
}

static void
fuzz_intent(struct input in)
{
	static struct made m;
	struct ss_ledger *ledger = new_ledger();
	const struct ss_teller teller = { &ledger, "\"exe\":\"x\",", env_key, "hk1" };
	struct strings argv, env;
	struct ss_request request;
	struct ss_fd fds[16];
	const struct ss_intent intent = { &teller, &request, ",\"exe\":null},\"want\":{}" };
	const struct ss_record record = { SS_EV_INTENT, 0, NULL, ss_put_intent, &intent };
	uint32_t i, are_closed = 0;
	ssize_t bytes;

	memset(&request, 0, sizeof(request));
	take_strings(&in, &argv, 0);
	take_strings(&in, &env, 1);
	request.argv = argv.text;
	request.argv_bytes = argv.bytes;
	request.argc = argv.count;
	request.env = env.text;
	request.env_bytes = env.bytes;
	request.envc = env.count;
	request.fds = fds;
	request.nfds = (uint32_t)take(&in, 1) % 16;
	for (i = 0; i < request.nfds; i++) {
		fds[i] = (struct ss_fd){ take(&in, 1) == 255 ? -1 : 0, (int32_t)i };
		are_closed += fds[i].source < 0;
	}
	request.expected.permitted = take(&in, 8);
	bytes = write_line(ledger, &record);
	model_list(&m, &argv, 0);
	if (bytes > 0)
		check_intent(ledger->line, (size_t)bytes, &argv, &env, request.nfds);
	/* What has no room is Python's: and nothing else is. */
	CHECK((bytes > 0) == (m.bytes - 1 <= SS_ARGV_ROOM && !are_closed && request.nfds < 9) || (!are_closed && request.nfds >= 7));
	(void)snprintf(said, sizeof(said), bytes < 0 ? "too long" : memmem(ledger->line, (size_t)bytes, "\"env_keys\":[", 12) ? "whole" : "names cut");
	free(argv.text);
	free(env.text);
	free(ledger);
}

/* -------------------------------------------------------------------------------- ends */

static void
fuzz_end(struct input in)
{
	struct ss_ledger *ledger = new_ledger();
	struct ss_exit exit = { (int32_t)take(&in, 4), (int32_t)take(&in, 1) % 4, (int32_t)take(&in, 4), 0, 0, 0, 0, 0 };
	struct ss_end end = { &exit, (int64_t)take(&in, 8), (int32_t)take(&in, 1) & 1 };
	const struct ss_record record = { SS_EV_EXIT, 0, NULL, ss_put_exit, &end };
	const char *value, *stop;
	ssize_t bytes;

	exit.utime_us = (int64_t)take(&in, 8);
	exit.maxrss_kib = (int64_t)take(&in, 8);
	bytes = write_line(ledger, &record);
	CHECK(bytes > 0);
	stop = ledger->line + bytes;
	value = json_member(ledger->line, stop, "exit");
	CHECK(value && (int64_t)strtoll(json_member(value, stop, "pid"), NULL, 10) == exit.pid);
	CHECK((int64_t)strtoll(json_member(value, stop, exit.code == CLD_EXITED ? "code" : "signal"), NULL, 10) == exit.status);
	CHECK(*json_member(value, stop, "timeout_killed") == (end.timeout_killed ? 't' : 'f'));
	CHECK((int64_t)strtoll(json_member(json_member(value, stop, "rusage"), stop, "maxrss"), NULL, 10) == exit.maxrss_kib);
	CHECK((int64_t)strtoll(json_member(value, stop, "dur"), NULL, 10) == end.duration_ns);
	(void)snprintf(said, sizeof(said), "end");
	free(ledger);
}

/* Members that Python has made, of any length: the line is written if they fit, and else nothing is. */
static void
fuzz_body(struct input in)
{
	struct ss_ledger *ledger = new_ledger();
	const size_t length = take(&in, 2) % (2 * SS_LINE_BYTES);
	char *body = exactly(length + 8);
	struct ss_entry entry = { SS_EV_BYPASS, 0, NULL, body, 0 };
	const struct ss_record record = { SS_EV_BYPASS, 0, NULL, ss_put_body, &entry };
	const ssize_t shortest = write_line(ledger, &record) - 73; /* without the MAC and the brace */
	ssize_t bytes;

	CHECK(shortest > 0);
	memset(body, 'x', length + 6);
	memcpy(body, "\"b\":\"", 5);
	body[length + 5] = '"';
	entry.body_bytes = length + 6;
	bytes = write_line(ledger, &record);
	CHECK((bytes > 0) == ((size_t)shortest + 1 + entry.body_bytes <= SS_LINE_BYTES - SS_MAC_ROOM));
	(void)snprintf(said, sizeof(said), bytes < 0 ? "too long" : "body");
	free(body);
	free(ledger);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct input in = { data + (size > 0), size - (size > 0) };

	if (size && data[0] == 'I')
		fuzz_intent(in);
	else if (size && data[0] == 'E')
		fuzz_end(in);
	else if (size && data[0] == 'B')
		fuzz_body(in);
	else if (size <= 8192)
		fuzz_text((struct input){ data, size });
	return 0;
}

#ifdef FUZZ_MAIN
#define SAID said
#include "replay.h"
#endif
