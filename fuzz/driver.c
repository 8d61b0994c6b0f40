/*
 * A small mutation driver for compilers without libFuzzer: same target, no coverage.
 *
 *     driver [-runs=N] [-seed=N] [-max_len=N] [-dict=FILE] FILE_OR_DIRECTORY...
 *
 * Replays the files, then runs N mutations of them, which put in words of the dictionary
 * (libFuzzer's format) if there is one. The same seed and files give the same inputs on every
 * machine. An input that crashes is left in ./crash-input.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES_MAX 1024
#define LENGTH_MAX (1u << 16)
#define WORDS_MAX 256
#define WORD_MAX 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __sanitizer_set_death_callback(void (*)(void)) __attribute__((weak));

struct file {
	uint8_t *data;
	size_t size;
};

static struct {
	struct file files[FILES_MAX];
	size_t count, max_len;
	struct {
		uint8_t bytes[WORD_MAX];
		size_t size;
	} words[WORDS_MAX];
	size_t nwords;
	uint64_t state;
	uint8_t input[LENGTH_MAX];
	size_t size;
	pid_t pid;
} fuzz = {.max_len = 4096};

static void
save_input(void)
{
	FILE *file;

	if (getpid() != fuzz.pid || !(file = fopen("crash-input", "wb")))
		return;
	(void)fwrite(fuzz.input, 1, fuzz.size, file);
	(void)fclose(file);
}

static void
aborted(int number)
{
	save_input();
	(void)signal(number, SIG_DFL);
	(void)raise(number);
}

/* splitmix64: small, and the same everywhere. */
static uint64_t
draw(uint64_t below)
{
	uint64_t z = (fuzz.state += 0x9e3779b97f4a7c15ull);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (z ^ z >> 31) % below;
}

static int
compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void
read_file(const char *path)
{
	struct file *to = &fuzz.files[fuzz.count];
	FILE *file = fopen(path, "rb");

	if (!file || fuzz.count == FILES_MAX) {
		perror(path);
		exit(2);
	}
	to->size = fread(fuzz.input, 1, sizeof(fuzz.input), file);
	to->data = malloc(to->size + 1);
	memcpy(to->data, fuzz.input, to->size);
	(void)fclose(file);
	fuzz.count++;
}

/* Sorted, because the order of a directory is the file system's. */
static void
read_directory(const char *path)
{
	char *names[FILES_MAX], *name;
	size_t count = 0, i;
	DIR *dir = opendir(path);
	const struct dirent *entry;

	while (dir && (entry = readdir(dir)) && count < FILES_MAX)
		if (entry->d_name[0] != '.' && asprintf(&name, "%s/%s", path, entry->d_name) > 0)
			names[count++] = name;
	qsort(names, count, sizeof(*names), compare_names);
	for (i = 0; i < count; i++) {
		read_file(names[i]);
		free(names[i]);
	}
	if (dir)
		(void)closedir(dir);
}

static void
read_corpus(const char *path)
{
	struct stat st;

	if (!stat(path, &st) && S_ISDIR(st.st_mode))
		read_directory(path);
	else
		read_file(path);
}

/* One line: perhaps a name and '=', then a word in quotes, in which \\ \" and \xNN stand for a byte. */
static void
read_word(const char *line)
{
	const char *at = strchr(line, '"');
	unsigned byte;

	if (*line == '#' || !at || fuzz.nwords == WORDS_MAX)
		return;
	while (*++at && *at != '"' && fuzz.words[fuzz.nwords].size < WORD_MAX) {
		byte = (unsigned char)*at;
		if (*at == '\\' && at[1] == 'x' && sscanf(at + 2, "%2x", &byte) == 1)
			at += 3;
		else if (*at == '\\')
			byte = (unsigned char)*++at;
		fuzz.words[fuzz.nwords].bytes[fuzz.words[fuzz.nwords].size++] = (uint8_t)byte;
	}
	fuzz.nwords++;
}

static void
read_dictionary(const char *path)
{
	char line[1024];
	FILE *file = fopen(path, "r");

	if (!file) {
		perror(path);
		exit(2);
	}
	while (fgets(line, sizeof(line), file))
		read_word(line);
	(void)fclose(file);
}

static void
run_one(void)
{
	/* A copy of the exact size, so that a read past its end is seen. */
	uint8_t *copy = malloc(fuzz.size ? fuzz.size : 1);

	memcpy(copy, fuzz.input, fuzz.size);
	(void)LLVMFuzzerTestOneInput(copy, fuzz.size);
	free(copy);
}

static void
load(size_t number)
{
	const struct file *from = &fuzz.files[number];

	fuzz.size = from->size < fuzz.max_len ? from->size : fuzz.max_len;
	memcpy(fuzz.input, from->data, fuzz.size);
}

/* Puts so many copies of a byte in at a place, as far as there is room. */
static void
insert(size_t at, size_t bytes, uint8_t value)
{
	if (bytes > fuzz.max_len - fuzz.size)
		bytes = fuzz.max_len - fuzz.size;
	memmove(fuzz.input + at + bytes, fuzz.input + at, fuzz.size - at);
	memset(fuzz.input + at, value, bytes);
	fuzz.size += bytes;
}

static void
cut(size_t at, size_t bytes)
{
	if (bytes > fuzz.size - at)
		bytes = fuzz.size - at;
	memmove(fuzz.input + at, fuzz.input + at + bytes, fuzz.size - at - bytes);
	fuzz.size -= bytes;
}

/* The tail of another file in place of ours. */
static void
splice(size_t at)
{
	const struct file *other = &fuzz.files[draw(fuzz.count)];
	const size_t from = draw(other->size + 1);
	size_t bytes = other->size - from;

	if (bytes > fuzz.max_len - at)
		bytes = fuzz.max_len - at;
	memcpy(fuzz.input + at, other->data + from, bytes);
	fuzz.size = at + bytes;
}

static void
insert_word(size_t at)
{
	const size_t number = draw(fuzz.nwords);
	const size_t before = fuzz.size;

	insert(at, fuzz.words[number].size, 0);
	memcpy(fuzz.input + at, fuzz.words[number].bytes, fuzz.size - before);
}

static void
mutate(void)
{
	static const uint8_t telling[] = {0, 1, 0x7f, 0x80, 0xff, '/', '0', '9', 'a', 8, 16, 64};
	const size_t at = draw(fuzz.size + 1);

	switch (draw(fuzz.nwords ? 8 : 6)) {
	case 0:
		insert(at, 1 + draw(16), (uint8_t)draw(256));
		break;
	case 1:
		cut(at, 1 + draw(16));
		break;
	case 2:
		splice(at);
		break;
	case 3:
		if (at < fuzz.size)
			fuzz.input[at] = telling[draw(sizeof(telling))];
		break;
	case 4:
		if (at < fuzz.size)
			fuzz.input[at] ^= (uint8_t)(1u << draw(8));
		break;
	case 5:
		if (at < fuzz.size)
			fuzz.input[at] = (uint8_t)draw(256);
		break;
	default:
		insert_word(at);
	}
}

static uint64_t
option(const char *argument, const char *name, uint64_t otherwise)
{
	const size_t length = strlen(name);

	return strncmp(argument, name, length) ? otherwise : strtoull(argument + length, NULL, 10);
}

int
main(int argc, char **argv)
{
	uint64_t runs = 0, i, changes;

	fuzz.pid = getpid();
	fuzz.state = 1;
	for (i = 1; i < (uint64_t)argc; i++) {
		runs = option(argv[i], "-runs=", runs);
		fuzz.state = option(argv[i], "-seed=", fuzz.state);
		fuzz.max_len = option(argv[i], "-max_len=", fuzz.max_len);
		if (!strncmp(argv[i], "-dict=", 6))
			read_dictionary(argv[i] + 6);
		if (argv[i][0] != '-')
			read_corpus(argv[i]);
	}
	if (!fuzz.count || !fuzz.max_len || fuzz.max_len > LENGTH_MAX) {
		fprintf(stderr, "usage: %s [-runs=N] [-seed=N] [-max_len=N] [-dict=FILE] FILE_OR_DIRECTORY...\n", argv[0]);
		return 2;
	}
	(void)signal(SIGABRT, aborted);
	if (__sanitizer_set_death_callback)
		__sanitizer_set_death_callback(save_input);
	for (i = 0; i < fuzz.count; i++) {
		load(i);
		run_one();
	}
	for (i = 0; i < runs; i++) {
		load(draw(fuzz.count));
		for (changes = 1 + draw(4); changes; changes--)
			mutate();
		run_one();
	}
	printf("%zu files, %llu runs\n", fuzz.count, (unsigned long long)runs);
	return 0;
}
