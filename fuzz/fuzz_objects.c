/*
 * Fuzz target for what the interposer reads of loaded objects and changes in them
 * (safespawn/_objects.c, _rewrite.c).
 *
 * An input is the bytes of an ELF file. It is laid out in memory as a loader does it: segments
 * on pages of their own with their rights, nothing between them, and with a mark in the head
 * (RELOCATED) the dynamic section relocated as glibc does. What no loader would map is no input.
 * Four addresses pass for those of real functions; a fixed place in memory makes the same input
 * the same on every machine.
 *
 * What must hold: no byte outside of the segments is read (their pages are closed, and the rest
 * of a page is poisoned for AddressSanitizer), the tables, the name and the slots are those of a
 * slow model, which looks at each byte's segment, and no byte changes but in the slots and
 * symbols that the model names. The pages beside the object stay as they were.
 *
 * libFuzzer:  clang -fsanitize=fuzzer,address,undefined fuzz_objects.c, with -dict=objects.dict
 * gcc:        gcc -fsanitize=address,undefined fuzz_objects.c driver.c, with -dict=objects.dict
 * replay:     gcc -fsanitize=address,undefined -DFUZZ_MAIN fuzz_objects.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../safespawn/_sys.h"

#include "check.h"

#define SS_FUTEX_PRIVATE 128

static size_t
ss_pages(size_t bytes)
{
	return (bytes + 4095) / 4096 * 4096;
}

static int
ss_child_error(long answer)
{
	return answer < 0 ? (int)-answer : 0;
}

#include "../safespawn/_objects.c"

#include "../safespawn/_rewrite.c"

#define PAGE 4096u
#define PAGES 4u
#define ARENA_BYTES (PAGES * PAGE)
#define HEADERS_MAX 12u
#define RELOCATED EI_PAD /* the byte of e_ident that says so */
#define CHANGED_MAX 64u	 /* symbols, as SS_EXPORTS */

static uint8_t *const arena = (uint8_t *)0x510000001000; /* a page of a neighbour before and behind it */

#define REALS 4u
#define REAL(k) ((uintptr_t)arena + 0xf000 + 16 * (k))
#define WRAPPER(k) ((uintptr_t)0x7e57000000 + 16 * (k))

void __asan_poison_memory_region(void const volatile *at, size_t bytes) __attribute__((weak));
void __asan_unpoison_memory_region(void const volatile *at, size_t bytes) __attribute__((weak));

static struct {
	Elf64_Phdr headers[HEADERS_MAX];
	uint32_t count;
	uint8_t segment[ARENA_BYTES]; /* of each byte: the number of its header plus one, or 0 */
	uint16_t room[ARENA_BYTES];   /* bytes from there to the end of that segment */
	uint8_t before[ARENA_BYTES];  /* its bytes before anything was changed */
} image;

static struct {
	uint64_t *values[CHANGED_MAX];
	uint32_t count;
} noted;

static void *
ss_wrapper_for(uintptr_t address)
{
	uintptr_t k;

	for (k = 0; k < REALS; k++)
		if (address == REAL(k))
			return (void *)WRAPPER(k);
	return NULL;
}

static int
ss_export_note(uint64_t *value, uint64_t ours, uintptr_t base)
{
	CHECK(base == (uintptr_t)arena && ours + base >= WRAPPER(0) && ours + base <= WRAPPER(REALS - 1));
	if (noted.count == CHANGED_MAX)
		return E2BIG;
	noted.values[noted.count++] = value;
	return 0;
}

/* -------------------------------------------------------------------- the loader */

static void
poison(size_t from, size_t to, int is_poisoned)
{
	if (is_poisoned && __asan_poison_memory_region)
		__asan_poison_memory_region(arena + from, to - from);
	else if (__asan_unpoison_memory_region)
		__asan_unpoison_memory_region(arena + from, to - from);
}

static void
map_arena(void)
{
	uint8_t *const from = arena - PAGE;

	CHECK(mmap(from, ARENA_BYTES + 2 * PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == from);
}

/* Each on pages of its own, in ascending order, inside the arena: as a loader wants them. */
static int
are_segments(void)
{
	uint64_t end = 0;
	uint32_t i;

	for (i = 0; i < image.count; i++) {
		const Elf64_Phdr *h = &image.headers[i];

		if (h->p_type != PT_LOAD)
			continue;
		if (h->p_vaddr >= ARENA_BYTES || h->p_memsz > ARENA_BYTES - h->p_vaddr || !h->p_memsz ||
		    h->p_vaddr / PAGE * PAGE < end)
			return 0;
		end = ss_pages(h->p_vaddr + h->p_memsz);
	}
	return 1;
}

static int
read_headers(const uint8_t *file, size_t size)
{
	Elf64_Ehdr head;

	if (size < sizeof(head))
		return 0;
	memcpy(&head, file, sizeof(head));
	image.count = head.e_phnum;
	if (memcmp(head.e_ident, ELFMAG, SELFMAG) || image.count > HEADERS_MAX || head.e_phoff > size ||
	    size - head.e_phoff < image.count * sizeof(Elf64_Phdr))
		return 0;
	memcpy(image.headers, file + head.e_phoff, image.count * sizeof(Elf64_Phdr));
	return are_segments();
}

/* As glibc: addresses are relative to the object no longer. */
static void
relocate(const Elf64_Phdr *dynamic)
{
	static const int64_t places[] = { DT_SYMTAB, DT_STRTAB, DT_GNU_HASH, DT_HASH, DT_RELA, DT_JMPREL };
	uint64_t at, i;
	Elf64_Dyn d;

	for (at = dynamic->p_vaddr; at < ARENA_BYTES && at + sizeof(d) <= ARENA_BYTES; at += sizeof(d)) {
		memcpy(&d, arena + at, sizeof(d));
		for (i = 0; i < sizeof(places) / sizeof(*places); i++)
			d.d_un.d_ptr += d.d_tag == places[i] ? (uintptr_t)arena : 0;
		memcpy(arena + at, &d, sizeof(d));
		if (d.d_tag == DT_NULL)
			return;
	}
}

static void
fill(const uint8_t *file, size_t size)
{
	uint32_t i;

	memset(image.segment, 0, sizeof(image.segment));
	for (i = 0; i < image.count; i++) {
		const Elf64_Phdr *h = &image.headers[i];
		uint64_t bytes = h->p_filesz < h->p_memsz ? h->p_filesz : h->p_memsz;

		if (h->p_type != PT_LOAD)
			continue;
		memset(image.segment + h->p_vaddr, (int)i + 1, h->p_memsz);
		if (h->p_offset > size)
			continue;
		bytes = bytes < size - h->p_offset ? bytes : size - h->p_offset;
		memcpy(arena + h->p_vaddr, file + h->p_offset, bytes);
	}
	for (i = ARENA_BYTES; i--;)
		image.room[i] = i + 1 < ARENA_BYTES && image.segment[i] == image.segment[i + 1] ? image.room[i + 1] + 1 : 1;
}

static void
close_pages(void)
{
	uint32_t i;

	CHECK(!mprotect(arena, ARENA_BYTES, PROT_NONE));
	poison(0, ARENA_BYTES, 1);
	for (i = 0; i < image.count; i++) {
		const Elf64_Phdr *h = &image.headers[i];
		const uint64_t from = h->p_vaddr / PAGE * PAGE, to = ss_pages(h->p_vaddr + h->p_memsz);

		if (h->p_type != PT_LOAD)
			continue;
		CHECK(!mprotect(arena + from, to - from, (h->p_flags & PF_W	? PROT_READ | PROT_WRITE
							  : h->p_flags & PF_R ? PROT_READ
									      : PROT_NONE)));
		poison(h->p_vaddr, h->p_vaddr + h->p_memsz, 0);
	}
}

/* What a loader closes when it has stored every address: whole pages of one writable segment. */
static void
close_relro(void)
{
	uint32_t i, k;

	for (i = 0; i < image.count; i++) {
		const uint64_t at = image.headers[i].p_vaddr, from = at / PAGE * PAGE;
		const uint64_t to = (at + image.headers[i].p_memsz) / PAGE * PAGE;

		for (k = 0; k < image.count && image.headers[i].p_type == PT_GNU_RELRO; k++) {
			const Elf64_Phdr *h = &image.headers[k];

			if (h->p_type == PT_LOAD && (h->p_flags & PF_W) && from < to && from >= h->p_vaddr / PAGE * PAGE &&
			    to <= ss_pages(h->p_vaddr + h->p_memsz))
				CHECK(!mprotect(arena + from, to - from, PROT_READ));
		}
	}
}

static void
load(const uint8_t *file, size_t size)
{
	uint32_t i;

	CHECK(!mprotect(arena, ARENA_BYTES, PROT_READ | PROT_WRITE));
	poison(0, ARENA_BYTES, 0);
	memset(arena, 0, ARENA_BYTES);
	fill(file, size);
	for (i = 0; i < image.count && file[RELOCATED]; i++)
		if (image.headers[i].p_type == PT_DYNAMIC)
			relocate(&image.headers[i]);
	memcpy(image.before, arena, ARENA_BYTES);
	close_pages();
	close_relro();
}

/* --------------------------------------------------------------------- the model */

/* How many bytes from there on are of one segment, and one with these rights. */
static uint64_t
model_room(uint64_t at, uint32_t rights)
{
	if (at >= ARENA_BYTES || !image.segment[at] || (image.headers[image.segment[at] - 1].p_flags & rights) != rights)
		return 0;
	return image.room[at];
}

static int
model_has(uint64_t at, uint64_t bytes, uint64_t alignment)
{
	return at % alignment == 0 && model_room(at, PF_R) >= bytes;
}

static uint64_t
model_number(uint64_t at, size_t bytes)
{
	uint64_t number = 0;

	CHECK(at < ARENA_BYTES && ARENA_BYTES - at >= bytes);
	memcpy(&number, image.before + at, bytes);
	return number;
}

#define NOWHERE ARENA_BYTES /* the place of what there is not */

/* The places of an object, relative to it; what is said of them last holds. */
static void
model_dynamic(const Elf64_Phdr *h, uint64_t low, struct ss_dynamic *ret)
{
	uint64_t at = h ? h->p_vaddr : NOWHERE, left = h ? h->p_memsz : 0;

	memset(ret, 0, sizeof(*ret));
	ret->symbols = ret->strings = ret->gnu_hash = ret->hash = ret->tables[0] = ret->tables[1] = NOWHERE;
	ret->is_rela = 1;
	if (at % 8)
		return;
	for (; left >= 16 && model_has(at, 16, 8); at += 16, left -= 16) {
		const uint64_t tag = model_number(at, 8), value = model_number(at + 8, 8);
		const uint64_t place = value < low + (uintptr_t)arena ? value : value - (uintptr_t)arena;

		if (tag == DT_NULL)
			return;
		if (tag == DT_SYMTAB)
			ret->symbols = place;
		if (tag == DT_STRTAB)
			ret->strings = place;
		if (tag == DT_GNU_HASH)
			ret->gnu_hash = place;
		if (tag == DT_HASH)
			ret->hash = place;
		if (tag == DT_RELA || tag == DT_JMPREL)
			ret->tables[tag == DT_JMPREL] = place;
		if (tag == DT_RELASZ || tag == DT_PLTRELSZ)
			ret->bytes[tag == DT_PLTRELSZ] = value;
		if (tag == DT_SONAME)
			ret->soname = value;
		if (tag == DT_PLTREL)
			ret->is_rela = value == DT_RELA;
	}
}

static uint64_t
model_gnu_symbols(uint64_t at)
{
	uint64_t buckets, first, last = 0, i;

	if (!model_has(at, 16, 4))
		return 0;
	buckets = model_number(at, 4);
	first = model_number(at + 4, 4);
	at += 16 + model_number(at + 8, 4) * 8;
	if (!model_has(at, buckets * 4, 4))
		return 0;
	for (i = 0; i < buckets; i++)
		if (model_number(at + 4 * i, 4) > last)
			last = model_number(at + 4 * i, 4);
	if (last < first)
		return first;
	for (at += 4 * (buckets + last - first); model_has(at, 4, 1) && !(model_number(at, 4) & 1); at += 4)
		last++;
	return last + 1;
}

static uint64_t
model_symbols(const struct ss_dynamic *d)
{
	uint64_t count = 0;

	if (model_has(d->hash, 8, 4))
		count = model_number(d->hash + 4, 4);
	else
		count = model_gnu_symbols(d->gnu_hash);
	return count >> 32 || !model_has(d->symbols, count * 24, 8) ? 0 : count;
}

/* A text with its end in the segment where it begins. */
static const char *
model_text(const struct ss_dynamic *d, uint64_t offset)
{
	const uint64_t at = d->strings + offset, room = model_room(at, PF_R);
	uint64_t i;

	for (i = 0; i < room; i++)
		if (!image.before[at + i])
			return (const char *)image.before + at;
	return NULL;
}

static uint64_t
model_relocations(const struct ss_dynamic *d, int table)
{
	const int is_there = (table == 0 || d->is_rela) && model_has(d->tables[table], d->bytes[table], 8);

	return is_there ? d->bytes[table] / 24 : 0;
}

/* ---------------------------------------------------------------------- checks */

static uint64_t expected[2]; /* slots, and those that are rewritten, by the model */
static uint8_t may_change[ARENA_BYTES];

static void
model_slots(const struct ss_dynamic *d, int table)
{
	uint64_t i;

	for (i = 0; i < model_relocations(d, table); i++) {
		const uint64_t r = d->tables[table] + 24 * i;
		const uint64_t at = model_number(r, 8), type = model_number(r + 8, 4);

		if ((type != SS_R_SLOT && type != SS_R_DATA && type != SS_R_WORD) || model_room(at, PF_W) < 8)
			continue;
		expected[0]++;
		if (at % 8 == 0 && ss_wrapper_for(model_number(at, 8)) && !may_change[at])
			memset(may_change + at, 1, 8);
	}
}

static void
check_tables(const struct ss_object *o, const struct ss_dynamic *d)
{
	const char *const soname = d->soname && d->strings != NOWHERE ? model_text(d, d->soname) : NULL;
	int i;

	CHECK(o->symbols_count == model_symbols(d));
	CHECK(!o->symbols_count || o->symbols == (const Elf64_Sym *)(void *)(arena + d->symbols));
	for (i = 0; i < 2; i++) {
		CHECK(o->counts[i] == model_relocations(d, i));
		CHECK(!o->counts[i] || o->tables[i] == (const Elf64_Rela *)(void *)(arena + d->tables[i]));
	}
	CHECK(!o->soname == !soname);
	CHECK(!soname || !strcmp(o->soname, soname));
}

/* A look-up by name finds what the model finds first. */
static uint64_t
check_names(const struct ss_object *o, const struct ss_dynamic *d)
{
	uint64_t i, found = 0;

	for (i = model_symbols(d); i--;) {
		const uint64_t at = d->symbols + 24 * i;
		const char *name = model_text(d, model_number(at, 4));

		if (name && !strcmp(name, "real") && model_number(at + 6, 2) && model_number(at + 8, 8))
			found = model_number(at + 8, 8) + (uintptr_t)arena;
	}
	CHECK(ss_symbol(o, "real") == (void *)found);
	return found;
}

/* Outside of what the model names every byte is as it was. */
static void
check_unchanged(void)
{
	uint64_t at;
	uint32_t i;

	for (i = 0; i < image.count; i++) {
		const Elf64_Phdr *h = &image.headers[i];

		if (h->p_type != PT_LOAD || !(h->p_flags & (PF_R | PF_W)) ||
		    !memcmp(arena + h->p_vaddr, image.before + h->p_vaddr, h->p_memsz))
			continue;
		for (at = h->p_vaddr; at < h->p_vaddr + h->p_memsz; at++)
			CHECK(may_change[at] || arena[at] == image.before[at]);
	}
}

static uint32_t
check_slots(const struct ss_object *o, const struct ss_dynamic *d)
{
	struct ss_pass pass;
	uint64_t at, held;

	memset(may_change, 0, sizeof(may_change));
	memset(&pass, 0, sizeof(pass));
	expected[0] = 0;
	model_slots(d, 0);
	model_slots(d, 1);
	ss_object_bind(o, &pass);
	CHECK(pass.slots == expected[0] && (!pass.error || pass.error == ENOEXEC));
	CHECK(o->relro == o->relro_end || !ss_can_store((uintptr_t *)o->relro)); /* closed again */
	check_unchanged();
	for (at = 0; at < ARENA_BYTES; at += 8) {
		if (!may_change[at])
			continue;
		memcpy(&held, arena + at, 8); /* another slot may lie across its end, and is left alone */
		CHECK((void *)held == ss_wrapper_for(model_number(at, 8)));
	}
	return pass.patched;
}

static uint32_t
check_exports(const struct ss_object *o, const struct ss_dynamic *d)
{
	uint64_t i, count = 0;
	int error;

	for (i = 0; i < ARENA_BYTES; i++) /* what the slots have become */
		if (may_change[i])
			memcpy(image.before + i, arena + i, 1);
	memset(may_change, 0, sizeof(may_change));
	for (i = 0; i < model_symbols(d); i++) {
		const uint64_t at = d->symbols + 24 * i, value = model_number(at + 8, 8);

		if ((model_number(at + 4, 1) & 15) == STT_FUNC && model_number(at + 6, 2) &&
		    ss_wrapper_for((uintptr_t)arena + value) && count++ < CHANGED_MAX)
			memset(may_change + at + 8, 1, 8);
	}
	noted.count = 0;
	error = ss_exports_rewrite(o);
	CHECK(error == (!model_symbols(d) ? ENOEXEC : count > CHANGED_MAX ? E2BIG : 0));
	CHECK(noted.count == (count < CHANGED_MAX ? count : CHANGED_MAX));
	for (i = 0; i < noted.count; i++) {
		uint8_t *const at = (uint8_t *)noted.values[i];

		CHECK(at >= arena && at + 8 <= arena + ARENA_BYTES && may_change[at - arena]);
		CHECK(ss_wrapper_for(model_number((uint64_t)(at - arena), 8) + (uintptr_t)arena) ==
		      (void *)(*noted.values[i] + (uintptr_t)arena));
	}
	check_unchanged();
	return noted.count;
}

/* Others' pages can be written to as before. */
static void
check_neighbours(void)
{
	static uint8_t number;

	arena[-1] = arena[ARENA_BYTES] = ++number;
	CHECK(arena[-(int)PAGE] == 0 && arena[ARENA_BYTES + PAGE - 1] == 0);
}

static char said[160]; /* of the last object, for the replay */

static void
try_object(void)
{
	const struct dl_phdr_info info = { .dlpi_addr = (uintptr_t)arena,
		.dlpi_phdr = image.headers,
		.dlpi_phnum = (Elf64_Half)image.count };
	const Elf64_Phdr *dynamic = NULL;
	uint64_t low = UINT64_MAX, found;
	struct ss_dynamic d;
	struct ss_object o;
	uint32_t i, patched, exported;

	for (i = 0; i < image.count; i++) {
		if (image.headers[i].p_type == PT_DYNAMIC)
			dynamic = &image.headers[i];
		if (image.headers[i].p_type == PT_LOAD && low == UINT64_MAX)
			low = image.headers[i].p_vaddr;
	}
	model_dynamic(low == UINT64_MAX ? NULL : dynamic, low, &d);
	ss_object_read(&o, &info);
	check_tables(&o, &d);
	found = check_names(&o, &d);
	(void)snprintf(said, sizeof(said), "%u symbols, %s, %s", o.symbols_count, found ? "real" : "no real",
		       !o.soname ? "no name" : !strcmp(o.soname, "libx.so.1") ? o.soname : "a name");
	patched = check_slots(&o, &d);
	exported = check_exports(&o, &d);
	(void)snprintf(said + strlen(said), sizeof(said) - strlen(said), ", %u of %u slots, %u exports", patched,
		       (unsigned)expected[0], exported);
	check_neighbours();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int is_mapped;

	if (!is_mapped)
		map_arena();
	is_mapped = 1;
	(void)snprintf(said, sizeof(said), "not loaded");
	if (!read_headers(data, size))
		return 0;
	load(data, size);
	try_object();
	return 0;
}

#ifdef FUZZ_MAIN
#define SAID said
#include "replay.h"
#endif
