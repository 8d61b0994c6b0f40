/* How targets read their input: numbers from its front, zeros behind its end. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include "check.h"

struct input {
	const uint8_t *at;
	size_t left;
};

static uint64_t
take(struct input *in, size_t bytes)
{
	uint64_t value = 0;

	while (bytes-- && in->left) {
		value = value << 8 | *in->at++;
		in->left--;
	}
	return value;
}

/* Cleared, and not a byte more than asked for: ASan sees what is read beyond. */
static void *
exactly(size_t bytes)
{
	void *made = calloc(1, bytes ? bytes : 1);

	CHECK(made);
	return made;
}

#endif
