/*
 * What is read of a loaded object: its segments, its dynamic section, and the tables that it
 * leads to. Part of _native.c.
 *
 * Taken from the loader is only that the segments are mapped, as it has mapped them. All else
 * is the file's word: places, lengths, counts, where a name begins. The loader believes it and
 * looks at little of it; we look at all of every object, and so read only what lies in one
 * readable segment. A table that does not is as if it were not there. [T-24 lock-covers]
 */
#include <elf.h>
#include <link.h>

#if defined(__x86_64__)
#define SS_R_SLOT R_X86_64_JUMP_SLOT
#define SS_R_DATA R_X86_64_GLOB_DAT
#define SS_R_WORD R_X86_64_64
#else
#define SS_R_SLOT R_AARCH64_JUMP_SLOT
#define SS_R_DATA R_AARCH64_GLOB_DAT
#define SS_R_WORD R_AARCH64_ABS64
#endif

/* A loaded object, as far as it is of interest. Tables that are not there have a count of 0. */
struct ss_object {
	uintptr_t base, low, high; /* what it occupies, with holes */
	uintptr_t relro, relro_end;
	const Elf64_Phdr *headers;
	const Elf64_Sym *symbols;
	const Elf64_Rela *tables[2];
	const char *soname; /* NULL: it has none */
	uintptr_t strings;
	size_t counts[2];
	uint32_t headers_count, symbols_count;
};

/* What the dynamic section says. */
struct ss_dynamic {
	uintptr_t symbols, strings, gnu_hash, hash, tables[2];
	uint64_t bytes[2], soname;
	int is_rela;
};

/* How many bytes there are from an address to the end of its segment; 0 if that has not these rights, or there is none. */
static uint64_t
ss_object_room(const struct ss_object *o, uintptr_t at, uint32_t rights)
{
	uint32_t i;

	for (i = 0; i < o->headers_count; i++) {
		const Elf64_Phdr *h = &o->headers[i];
		const uintptr_t offset = at - (o->base + h->p_vaddr);

		if (h->p_type == PT_LOAD && (h->p_flags & rights) == rights && offset < h->p_memsz)
			return h->p_memsz - offset;
	}
	return 0;
}

static int
ss_object_has(const struct ss_object *o, uintptr_t at, uint64_t bytes, uint64_t alignment)
{
	return at % alignment == 0 && ss_object_room(o, at, PF_R) >= bytes;
}

/* A text of the string table; NULL if it does not end in its segment. */
static const char *
ss_object_text(const struct ss_object *o, uint64_t offset)
{
	const uintptr_t at = o->strings + offset;
	const uint64_t room = ss_object_room(o, at, PF_R);

	return room && memchr((const char *)at, 0, room) ? (const char *)at : NULL;
}

/* The number of symbols: DT_GNU_HASH ends with the chain of the last bucket that is used. */
static uint64_t
ss_gnu_symbols(const struct ss_object *o, uintptr_t at)
{
	const uint32_t *hash = (const uint32_t *)at, *bucket, *chain;
	uint64_t buckets, first, last = 0, left, i;

	if (!ss_object_has(o, at, 16, sizeof(*hash)))
		return 0;
	buckets = hash[0];
	first = hash[1];
	at += 16 + 8 * (uint64_t)hash[2]; /* behind the Bloom filter */
	if (!ss_object_has(o, at, buckets * sizeof(*bucket), sizeof(*bucket)))
		return 0;
	bucket = (const uint32_t *)at;
	for (i = 0; i < buckets; i++)
		last = bucket[i] > last ? bucket[i] : last;
	if (last < first)
		return first;
	at += (buckets + last - first) * sizeof(*chain);
	chain = (const uint32_t *)at;
	left = ss_object_room(o, at, PF_R) / sizeof(*chain);
	for (i = 0; i < left && !(chain[i] & 1); i++)
		;
	return last + i + 1;
}

/* glibc has relocated what it uses of the dynamic section, musl has not. */
static uintptr_t
ss_relocated(const struct ss_object *o, uintptr_t value)
{
	return value < o->low ? o->base + value : value;
}

static void
ss_dynamic_read(const struct ss_object *o, const Elf64_Dyn *d, uint64_t count, struct ss_dynamic *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->is_rela = 1;
	for (; count && d->d_tag != DT_NULL; d++, count--) {
		const uintptr_t at = ss_relocated(o, d->d_un.d_ptr);

		switch (d->d_tag) {
		case DT_SYMTAB: ret->symbols = at; break;
		case DT_STRTAB: ret->strings = at; break;
		case DT_GNU_HASH: ret->gnu_hash = at; break;
		case DT_HASH: ret->hash = at; break;
		case DT_RELA: ret->tables[0] = at; break;
		case DT_JMPREL: ret->tables[1] = at; break;
		case DT_SONAME: ret->soname = d->d_un.d_val; break;
		case DT_RELASZ: ret->bytes[0] = d->d_un.d_val; break;
		case DT_PLTRELSZ: ret->bytes[1] = d->d_un.d_val; break;
		case DT_PLTREL: ret->is_rela = d->d_un.d_val == DT_RELA; break;
		default: break;
		}
	}
}

static void
ss_object_symbols(struct ss_object *o, const struct ss_dynamic *d)
{
	uint64_t count = 0;

	if (d->hash && ss_object_has(o, d->hash, 8, sizeof(uint32_t)))
		count = ((const uint32_t *)d->hash)[1];
	else if (d->gnu_hash)
		count = ss_gnu_symbols(o, d->gnu_hash);
	if (count > UINT32_MAX || !ss_object_has(o, d->symbols, count * sizeof(Elf64_Sym), sizeof(uint64_t)))
		return;
	o->symbols = (const Elf64_Sym *)d->symbols;
	o->symbols_count = (uint32_t)count;
}

/* The relocations: of data, and of calls. */
static void
ss_object_tables(struct ss_object *o, const struct ss_dynamic *d)
{
	int i;

	for (i = 0; i < 2; i++) {
		if ((i == 1 && !d->is_rela) || !ss_object_has(o, d->tables[i], d->bytes[i], sizeof(uint64_t)))
			continue;
		o->tables[i] = (const Elf64_Rela *)d->tables[i];
		o->counts[i] = d->bytes[i] / sizeof(Elf64_Rela);
	}
}

static void
ss_object_dynamic(struct ss_object *o, uintptr_t at, uint64_t bytes)
{
	const uint64_t room = ss_object_has(o, at, 0, sizeof(uint64_t)) ? ss_object_room(o, at, PF_R) : 0;
	struct ss_dynamic d;

	ss_dynamic_read(o, (const Elf64_Dyn *)at, (bytes < room ? bytes : room) / sizeof(Elf64_Dyn), &d);
	o->strings = d.strings;
	o->soname = d.soname && d.strings ? ss_object_text(o, d.soname) : NULL;
	ss_object_symbols(o, &d);
	ss_object_tables(o, &d);
}

/*
 * Whole pages, as the loaders do it: the rest of the last one stays writable. Only those of a
 * writable segment: what we open there we close again.
 */
static void
ss_object_relro(struct ss_object *o, const Elf64_Phdr *relro)
{
	const uintptr_t page = ss_pages(1), at = o->base + relro->p_vaddr;
	const uintptr_t from = at / page * page, to = (at + relro->p_memsz) / page * page;
	uint32_t i;

	for (i = 0; i < o->headers_count; i++) {
		const Elf64_Phdr *h = &o->headers[i];
		const uintptr_t start = o->base + h->p_vaddr, end = ss_pages(start + h->p_memsz);

		if (h->p_type != PT_LOAD || !(h->p_flags & PF_W) || from < start / page * page || to > end || from >= to)
			continue;
		o->relro = from;
		o->relro_end = to;
	}
}

static void
ss_object_read(struct ss_object *o, const struct dl_phdr_info *info)
{
	const Elf64_Phdr *dynamic = NULL, *relro = NULL;
	unsigned i;

	memset(o, 0, sizeof(*o));
	o->base = info->dlpi_addr;
	o->headers = info->dlpi_phdr;
	o->headers_count = info->dlpi_phnum;
	o->low = UINTPTR_MAX;
	for (i = 0; i < info->dlpi_phnum; i++) {
		const Elf64_Phdr *h = &info->dlpi_phdr[i];
		const uintptr_t from = o->base + h->p_vaddr, to = from + h->p_memsz;

		if (h->p_type == PT_LOAD) {
			o->low = from < o->low ? from : o->low;
			o->high = to > o->high ? to : o->high;
		} else if (h->p_type == PT_DYNAMIC) {
			dynamic = h;
		} else if (h->p_type == PT_GNU_RELRO) {
			relro = h;
		}
	}
	if (relro)
		ss_object_relro(o, relro);
	/* The vdso's section is not relocated, and nothing in it is bound to libc. */
	if (dynamic && o->low < o->high && o->low != getauxval(AT_SYSINFO_EHDR))
		ss_object_dynamic(o, o->base + dynamic->p_vaddr, dynamic->p_memsz);
}

/* Whether a symbol has this name. */
static int
ss_symbol_is(const struct ss_object *o, const Elf64_Sym *symbol, const char *name)
{
	const char *text = ss_object_text(o, symbol->st_name);

	return text && !strcmp(text, name);
}

/* The address of a function that an object defines, by its own table; NULL when it has none. */
static void *
ss_symbol(const struct ss_object *o, const char *name)
{
	uint32_t i;

	for (i = 0; i < o->symbols_count; i++)
		if (o->symbols[i].st_shndx != SHN_UNDEF && o->symbols[i].st_value && ss_symbol_is(o, &o->symbols[i], name))
			return (void *)(o->base + o->symbols[i].st_value);
	return NULL;
}

/*
 * Where a relocation has stored an address, 0 for one of another kind. Slots live in segments
 * that were writable when the loader filled them in.
 */
static uintptr_t
ss_object_slot(const struct ss_object *o, const Elf64_Rela *r)
{
	const unsigned long type = ELF64_R_TYPE(r->r_info);
	const uintptr_t at = o->base + r->r_offset;

	if (type != SS_R_SLOT && type != SS_R_DATA && type != SS_R_WORD)
		return 0;
	return ss_object_room(o, at, PF_W) >= sizeof(uintptr_t) ? at : 0;
}
