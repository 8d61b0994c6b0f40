/*
 * SHA-256 (FIPS 180-4) and HMAC (RFC 2104), for the audit ledger and its verifier.
 *
 * Our own, because the keys must lie in one page that we can lock, keep out of core dumps and
 * wipe, which the objects of Python's hashlib cannot; and because a record must be one call.
 * Where the processor has instructions for it they are used: more than ten times as fast.
 */

#define SS_DIGEST_BYTES 32

struct ss_sha256 {
	uint32_t state[8];
	uint64_t bytes;
	uint8_t block[64];
};

struct ss_hmac {
	struct ss_sha256 inner, outer;
};

/* The first 32 bits of the fractional parts of the cube roots of the first 64 primes. */
static const uint32_t ss_sha256_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2,
};

/* ROTR of the standard, section 3.2. */
static inline uint32_t
ss_turn(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

/* Section 6.2.2, for processors without instructions for it. */
static void
ss_sha256_blocks_plain(uint32_t state[8], const uint8_t *data, size_t blocks)
{
	uint32_t w[64], s[8];

	for (; blocks > 0; blocks--, data += 64) {
		/* The message schedule: 16 words as they come, big-endian, the others made of them. */
		for (int i = 0; i < 16; i++)
			w[i] = (uint32_t)data[4 * i] << 24 | (uint32_t)data[4 * i + 1] << 16 |
			    (uint32_t)data[4 * i + 2] << 8 | data[4 * i + 3];
		for (int i = 16; i < 64; i++) {
			uint32_t a = w[i - 15], b = w[i - 2];

			w[i] = w[i - 16] + (ss_turn(a, 7) ^ ss_turn(a, 18) ^ a >> 3) + w[i - 7] +
			    (ss_turn(b, 17) ^ ss_turn(b, 19) ^ b >> 10);
		}
		/* The rounds: a to h of the standard are s[0] to s[7]. */
		memcpy(s, state, sizeof(s));
		for (int i = 0; i < 64; i++) {
			uint32_t e = s[4], a = s[0];
			uint32_t one = s[7] + (ss_turn(e, 6) ^ ss_turn(e, 11) ^ ss_turn(e, 25)) +
			    ((e & s[5]) ^ (~e & s[6])) + ss_sha256_k[i] + w[i];
			uint32_t two = (ss_turn(a, 2) ^ ss_turn(a, 13) ^ ss_turn(a, 22)) +
			    ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));

			memmove(s + 1, s, 7 * sizeof(s[0]));
			s[4] += one;
			s[0] = one + two;
		}
		for (int i = 0; i < 8; i++)
			state[i] += s[i];
	}
	/* The first words are the data, which may be a key, and from the others one could go back to it. */
	explicit_bzero(w, sizeof(w));
	explicit_bzero(s, sizeof(s));
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

/* Intel SDM, SHA256RNDS2: two rounds each; the state is kept as ABEF and CDGH. */
__attribute__((target("sha,sse4.1"))) static void
ss_sha256_blocks_sha(uint32_t state[8], const uint8_t *data, size_t blocks)
{
	const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
	__m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const void *)state), 0xb1);
	__m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const void *)(state + 4)), 0x1b);
	__m128i abef = _mm_alignr_epi8(badc, efgh, 8);
	__m128i cdgh = _mm_blend_epi16(efgh, badc, 0xf0);

	__m128i w[4];

	for (; blocks > 0; blocks--, data += 64) {
		__m128i was_abef = abef, was_cdgh = cdgh;

		for (int i = 0; i < 4; i++)
			w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(data + 16 * i)), swap);
#pragma GCC unroll 16
		for (int i = 0; i < 16; i++) {
			__m128i four =
			    _mm_add_epi32(w[i & 3], _mm_loadu_si128((const void *)(ss_sha256_k + 4 * i)));

			cdgh = _mm_sha256rnds2_epu32(cdgh, abef, four);
			abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(four, 0x0e));
			if (i < 12) { /* four more words of the schedule, in the place of the oldest */
				__m128i last = w[(i + 3) & 3];
				__m128i next = _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]),
				    _mm_alignr_epi8(last, w[(i + 2) & 3], 4));

				w[i & 3] = _mm_sha256msg2_epu32(next, last);
			}
		}
		abef = _mm_add_epi32(abef, was_abef);
		cdgh = _mm_add_epi32(cdgh, was_cdgh);
	}
	explicit_bzero(w, sizeof(w)); /* as above: the compiler has it in memory */
	/* Back to a to h. */
	__m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);

	_mm_storeu_si128((void *)state, _mm_blend_epi16(feba, dchg, 0xf0));
	_mm_storeu_si128((void *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

/* Asked once: under a hypervisor cpuid leaves the guest, which takes microseconds. */
static int
ss_has_sha(void)
{
	static int known; /* 1: no, 2: yes */
	int has = __atomic_load_n(&known, __ATOMIC_RELAXED);

	if (has == 0) {
		unsigned a, b = 0, c = 0, d;

		has = 1;
		if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_SSE4_1) &&
		    __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1U << 29))
			has = 2;
		__atomic_store_n(&known, has, __ATOMIC_RELAXED);
	}
	return has == 2;
}
#endif

/* Both give the same; a test holds them against each other. */
static void
ss_sha256_blocks(uint32_t state[8], const uint8_t *data, size_t blocks)
{
#if defined(__x86_64__)
	if (ss_has_sha()) {
		ss_sha256_blocks_sha(state, data, blocks);
		return;
	}
#endif
	ss_sha256_blocks_plain(state, data, blocks);
}

static void
ss_sha256_start(struct ss_sha256 *hash)
{
	/* The same of the square roots of the first eight primes. */
	static const uint32_t start[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
		0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };

	memcpy(hash->state, start, sizeof(start));
	hash->bytes = 0;
}

static void
ss_sha256_add(struct ss_sha256 *hash, const void *data, size_t bytes)
{
	const uint8_t *at = data;
	size_t held = hash->bytes % 64;

	if (bytes == 0)
		return; /* there may be no data then, and memcpy must not get NULL */
	hash->bytes += bytes;
	if (held > 0) { /* fill up the block that was begun */
		size_t part = 64 - held < bytes ? 64 - held : bytes;

		memcpy(hash->block + held, at, part);
		if (held + part < 64)
			return;
		ss_sha256_blocks(hash->state, hash->block, 1);
		at += part;
		bytes -= part;
	}
	ss_sha256_blocks(hash->state, at, bytes / 64);
	if (bytes % 64 > 0)
		memcpy(hash->block, at + bytes / 64 * 64, bytes % 64);
}

/* Section 5.1.1: a one bit, zeros, and the length in bits at the end of the last block. */
static void
ss_sha256_end(struct ss_sha256 *hash, uint8_t ret_digest[SS_DIGEST_BYTES])
{
	uint64_t bits = hash->bytes * 8;
	size_t held = hash->bytes % 64;
	uint8_t tail[128] = { 0 };
	size_t size = held < 56 ? 64 : 128;

	memcpy(tail, hash->block, held);
	tail[held] = 0x80;
	for (int i = 0; i < 8; i++)
		tail[size - 1 - (size_t)i] = (uint8_t)(bits >> (8 * i));
	ss_sha256_blocks(hash->state, tail, size / 64);
	for (int i = 0; i < SS_DIGEST_BYTES; i++)
		ret_digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
	explicit_bzero(tail, size);
}

/* All at once. Wiped, because what is hashed may be a key. The answer may lie where the data does. */
static void
ss_sha256(const void *data, size_t bytes, uint8_t ret_digest[SS_DIGEST_BYTES])
{
	struct ss_sha256 hash;

	ss_sha256_start(&hash);
	ss_sha256_add(&hash, data, bytes);
	ss_sha256_end(&hash, ret_digest);
	explicit_bzero(&hash, sizeof(hash));
}

/* RFC 2104, for keys that are shorter than a block; ours have 32 bytes. */
static void
ss_hmac_start(struct ss_hmac *mac, const uint8_t key[SS_DIGEST_BYTES])
{
	uint8_t pad[64];

	memset(pad, 0x36, sizeof(pad));
	for (int i = 0; i < SS_DIGEST_BYTES; i++)
		pad[i] ^= key[i];
	ss_sha256_start(&mac->inner);
	ss_sha256_add(&mac->inner, pad, sizeof(pad));
	for (size_t i = 0; i < sizeof(pad); i++)
		pad[i] ^= 0x36 ^ 0x5c;
	ss_sha256_start(&mac->outer);
	ss_sha256_add(&mac->outer, pad, sizeof(pad));
	explicit_bzero(pad, sizeof(pad));
}

static void
ss_hmac_add(struct ss_hmac *mac, const void *data, size_t bytes)
{
	ss_sha256_add(&mac->inner, data, bytes);
}

static void
ss_hmac_end(struct ss_hmac *mac, uint8_t ret_digest[SS_DIGEST_BYTES])
{
	uint8_t inner[SS_DIGEST_BYTES];

	ss_sha256_end(&mac->inner, inner);
	ss_sha256_add(&mac->outer, inner, sizeof(inner));
	ss_sha256_end(&mac->outer, ret_digest);
	explicit_bzero(mac, sizeof(*mac));
	explicit_bzero(inner, sizeof(inner));
}

/* HMAC over two parts, the second may be empty. The answer may lie where the key does. */
static void
ss_hmac(const uint8_t key[SS_DIGEST_BYTES], const void *one, size_t one_bytes, const void *two,
    size_t two_bytes, uint8_t ret_digest[SS_DIGEST_BYTES])
{
	struct ss_hmac mac;

	ss_hmac_start(&mac, key);
	ss_hmac_add(&mac, one, one_bytes);
	ss_hmac_add(&mac, two, two_bytes);
	ss_hmac_end(&mac, ret_digest);
}

static const char ss_hex_digits[16] = "0123456789abcdef";

/* Lower-case hex, without a NUL. */
static void
ss_hex(const uint8_t digest[SS_DIGEST_BYTES], char ret_text[2 * SS_DIGEST_BYTES])
{
	for (int i = 0; i < SS_DIGEST_BYTES; i++) {
		ret_text[2 * i] = ss_hex_digits[digest[i] >> 4];
		ret_text[2 * i + 1] = ss_hex_digits[digest[i] & 15];
	}
}
