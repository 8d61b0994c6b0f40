/*
 * Writes JSON as the audit ledger has it: ASCII, one line, no floats. Part of _native.c.
 * [T-20 record-one-line]
 *
 * It must give what Python's json module gives (ensure_ascii, no blanks), because records that
 * are not made here are made there, and a reader must not see the difference.
 */

/* With a hash the text is not kept: what fills the buffer is hashed, and the buffer used again. */
struct ss_text {
	char *start, *at, *end;
	int full; /* something did not fit */
	struct ss_sha256 *hash;
};

static void
ss_say(struct ss_text *text, const void *data, size_t bytes)
{
	const char *from = data;

	while (bytes > 0) {
		size_t room = (size_t)(text->end - text->at);
		size_t part = bytes < room ? bytes : room;

		memcpy(text->at, from, part);
		text->at += part;
		from += part;
		bytes -= part;
		if (bytes == 0)
			return;
		if (text->hash == NULL) {
			text->full = 1;
			return;
		}
		ss_sha256_add(text->hash, text->start, (size_t)(text->at - text->start));
		text->at = text->start;
	}
}

/* Text of ours, which needs no escapes. */
static void
ss_put_word(struct ss_text *text, const char *word)
{
	ss_say(text, word, strlen(word));
}

/* Decimal: JSON has no other numbers, and ours have no fractions. */
static void
ss_put_number(struct ss_text *text, uint64_t number)
{
	char digits[20], *at = digits + sizeof(digits);

	do
		*--at = (char)('0' + number % 10);
	while (number /= 10);
	ss_say(text, at, (size_t)(digits + sizeof(digits) - at));
}

static void
ss_put_signed(struct ss_text *text, int64_t number)
{
	if (number < 0)
		ss_say(text, "-", 1);
	ss_put_number(text, number < 0 ? 0 - (uint64_t)number : (uint64_t)number);
}

/* Without leading zeros, as capability sets and device numbers are told. */
static void
ss_put_hex(struct ss_text *text, uint64_t number)
{
	char digits[16], *at = digits + sizeof(digits);

	do
		*--at = ss_hex_digits[number & 15];
	while (number >>= 4);
	ss_say(text, at, (size_t)(digits + sizeof(digits) - at));
}

static void
ss_put_digest(struct ss_text *text, const uint8_t digest[SS_DIGEST_BYTES])
{
	char hex[2 * SS_DIGEST_BYTES];

	ss_hex(digest, hex);
	ss_say(text, hex, sizeof(hex));
}

/* The length of one character in UTF-8 (RFC 3629: no surrogates, nothing overlong), 0 if it is none. */
static size_t
ss_utf8(const uint8_t *s, size_t left, uint32_t *ret_code)
{
	static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t bytes = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
	uint32_t code;

	if (bytes == 0 || bytes > left)
		return 0;
	code = bytes == 1 ? s[0] : s[0] & (0x7fu >> bytes);
	for (size_t i = 1; i < bytes; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (s[i] & 0x3fu);
	}
	if (code < least[bytes] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
		return 0;
	*ret_code = code;
	return bytes;
}

/* Whether the whole is UTF-8: half of a string in one form and half in another would help nobody. */
static int
ss_is_utf8(const uint8_t *s, size_t bytes)
{
	size_t at = 0, step;
	uint64_t eight;
	uint32_t code;

	/* Nearly all there is begins so, or ends here. */
	for (; bytes - at >= sizeof(eight); at += sizeof(eight)) {
		memcpy(&eight, s + at, sizeof(eight));
		if (eight & 0x8080808080808080)
			break;
	}
	for (; at < bytes; at += step)
		if (!(step = ss_utf8(s + at, bytes - at, &code)))
			return 0;
	return 1;
}

/* One unit of UTF-16, as JSON escapes it. */
static void
ss_put_unit(struct ss_text *text, uint32_t unit)
{
	char escape[6] = { '\\', 'u' };

	for (int i = 0; i < 4; i++)
		escape[2 + i] = ss_hex_digits[unit >> (12 - 4 * i) & 15];
	ss_say(text, escape, sizeof(escape));
}

/* A character that may not stand as it is: it could end the string or the line, or steer a terminal. */
static void
ss_put_escaped(struct ss_text *text, uint32_t code)
{
	static const char plain[] = "\"\\\n\r\t\f\b", letter[] = "\"\\nrtfb";
	const char *found = code < 128 && code > 0 ? strchr(plain, (int)code) : NULL;

	if (found != NULL) {
		char pair[2] = { '\\', letter[found - plain] };

		ss_say(text, pair, sizeof(pair));
	} else if (code < 0x10000) {
		ss_put_unit(text, code);
	} else { /* above the 16 bits of a unit: a pair of surrogates (RFC 8259, section 7) */
		ss_put_unit(text, 0xd800 + (code - 0x10000) / 0x400);
		ss_put_unit(text, 0xdc00 + (code - 0x10000) % 0x400);
	}
}

/* Bytes as a string, or as {"hex":…} where they are no UTF-8: never lossy. */
static void
ss_put_text(struct ss_text *text, const char *data, size_t bytes)
{
	const uint8_t *s = (const uint8_t *)data;
	size_t at = 0, run = 0;

	if (!ss_is_utf8(s, bytes)) {
		ss_put_word(text, "{\"hex\":\"");
		for (; at < bytes; at++) {
			char pair[2] = { ss_hex_digits[s[at] >> 4], ss_hex_digits[s[at] & 15] };

			ss_say(text, pair, sizeof(pair));
		}
		ss_put_word(text, "\"}");
		return;
	}
	ss_say(text, "\"", 1);
	while (at < bytes) {
		uint32_t code = s[at];

		/* What may stand as it is goes in one piece. */
		if ((code >= 0x20 && code < 0x7f && code != '"' && code != '\\') || !SS_GUARDED(RECORD_ONE_LINE)) {
			at++;
			continue;
		}
		ss_say(text, data + run, at - run);
		at += ss_utf8(s + at, bytes - at, &code);
		ss_put_escaped(text, code);
		run = at;
	}
	ss_say(text, data + run, at - run);
	ss_say(text, "\"", 1);
}
