/*
 * How the wrappers get in front of libc's functions. Part of _native.c.
 *
 * No LD_PRELOAD, no rewritten code, no hook on dlopen or dlsym. First libc's own export
 * table is rewritten in memory: the value of each symbol whose address is one of the real
 * functions. Everything that is looked up from then on finds the wrapper: dlsym by any
 * handle, lazily bound calls, libraries loaded later and their constructors. Then one pass
 * over what was bound before: every slot of every loaded object that *holds* one of the
 * real addresses. By value and never by name: a slot that the loader has not filled in yet
 * holds something else, and needs nothing.
 *
 * The pass comes after the loader's lock was taken once, so every dlopen that was under way
 * when the table changed is over, and objects seen half loaded later are bound to the
 * wrappers already: no slot with a real address lies in a page that the loader has still to
 * write to, and read-only relocations (RELRO) can be opened and closed again.
 *
 * What stays out of reach is looked for and named: pointers that were taken before, objects
 * in other link-map namespaces, and other people's interposers. [T-24 lock-covers]
 */
#include <dlfcn.h>
#include <link.h>

#include "_objects.c"

#include "_rewrite.c"

#define SS_EXPORTS 64u            /* symbols of the family, aliases and versions too */
#define SS_SETTLE_PASS_NS 100000000ll /* a call bound just now may store its slot late */
#define SS_SCAN_BYTES 65536u
#define SS_SCAN_MAX (64ull << 30) /* a mapping above this is not searched */
#define SS_SCAN_BLIND (256ull << 20) /* the same where we may not see which pages exist */
#define SS_NAME_BYTES 128

/* What was rewritten in an export table, to see that it is still so. */
struct ss_export {
	uint64_t *value; /* st_value of the symbol */
	uint64_t ours;
	uintptr_t base; /* what it is relative to */
};

/* What a search for pointers came to: how many, the first of them, and what was not searched. */
struct ss_searched {
	uint32_t captured, unsearched;
	uint64_t captured_at;
	char captured_in[SS_NAME_BYTES];
};

/* All that is known of the interposition; Python reads it. */
struct ss_armed {
	int32_t state; /* SS_ARM_... */
	int32_t error;
	uint32_t exports, objects, slots, patched;
	struct ss_searched searched;
	uint32_t foreign;
	char foreign_name[32], foreign_in[SS_NAME_BYTES];
	int64_t took_ns;
};

enum { SS_ARM_OFF, SS_ARM_ARMED, SS_ARM_UNLOCKABLE };

static struct ss_armed ss_armed;
static struct ss_export ss_exports[SS_EXPORTS];
static struct ss_pass ss_last_pass;
static char ss_libc_soname[32];
static int64_t ss_settled_ns; /* when the last pass that counts may be made; 0: it was */
/* Just below and above the real functions: spares most comparisons. Neither is one of them. */
static uintptr_t ss_below, ss_above;
static int32_t ss_arming; /* the pid of who arms or looks at all objects, or 0 */

/* Stands among the constants of every copy of this library, so that another copy knows it. */
#define SS_MARK "safespawn-credential-lock"
static const char ss_mark[] __attribute__((used)) = SS_MARK;

#define SS_HOOK_ENTRY(call, symbol) [SS_CALL_##call] = {#symbol, (void *)ss_wrap_##symbol, NULL, 0},
static struct ss_hook ss_hooked[SS_CALL_SECCOMP] = {SS_FAMILY(SS_HOOK_ENTRY)};
#undef SS_HOOK_ENTRY

/* ------------------------------------------------------------ one object among all */

/* Looks for the object that an address lies in. */
struct ss_search_object {
	uintptr_t address;
	struct ss_object object;
	char name[SS_NAME_BYTES];
};

static int
ss_object_matches(struct dl_phdr_info *info, size_t size, void *argument)
{
	struct ss_search_object *search = argument;

	(void)size;
	ss_object_read(&search->object, info);
	if (search->address < search->object.low || search->address >= search->object.high)
		return 0;
	(void)ss_child_copy_text(search->name, sizeof(search->name), info->dlpi_name);
	return 1;
}

static int
ss_object_of(const void *address, struct ss_search_object *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->address = (uintptr_t)address;
	return dl_iterate_phdr(ss_object_matches, ret) == 1;
}

/* Whether a wrapper belongs to another copy of this library, which calls on to ours or libc's. */
static int
ss_is_a_copy_of_us(const struct ss_search_object *found)
{
	const char *at = (const char *)found->object.low;
	uint32_t i;

	for (i = 0; i < found->object.headers_count; i++) {
		const Elf64_Phdr *h = &found->object.headers[i];

		if (h->p_type != PT_LOAD || (h->p_flags & (PF_R | PF_W)) != PF_R)
			continue;
		at = (const char *)(found->object.base + h->p_vaddr);
		if (memmem(at, h->p_memsz, ss_mark, sizeof(ss_mark)))
			return 1;
	}
	return 0;
}

/* ------------------------------------------------------------- the export table */

static struct ss_hook *
ss_hook_for(uintptr_t address)
{
	unsigned i;

	if (address <= ss_below || address >= ss_above)
		return NULL;
	for (i = 0; i < SS_CALL_SECCOMP; i++)
		if (ss_hooked[i].complement == ~address)
			return &ss_hooked[i];
	return NULL;
}

static void *
ss_wrapper_for(uintptr_t address)
{
	const struct ss_hook *hook = ss_hook_for(address);

	return hook ? hook->wrapper : NULL;
}

/* Remembers what a symbol is rewritten to; once for each, however often we are armed. */
static int
ss_export_note(uint64_t *value, uint64_t ours, uintptr_t base)
{
	uint32_t i;

	for (i = 0; i < ss_armed.exports; i++)
		if (ss_exports[i].value == value)
			return 0;
	if (i == SS_EXPORTS)
		return E2BIG;
	ss_exports[i].value = value;
	ss_exports[i].ours = ours;
	ss_exports[i].base = base;
	ss_armed.exports++;
	return 0;
}

/* Whether a function is in another copy of this library. */
static int
ss_is_a_copys(const void *function)
{
	struct ss_search_object found;

	return ss_object_of(function, &found) && ss_is_a_copy_of_us(&found);
}

/*
 * A copy of this library that armed after us has our wrappers for the real functions, and
 * its own in the table: that is as good as ours, and looked at once.
 */
static int
ss_export_intact(struct ss_export *e)
{
	const uint64_t seen = __atomic_load_n(e->value, __ATOMIC_RELAXED);

	if (seen == __atomic_load_n(&e->ours, __ATOMIC_RELAXED))
		return 1;
	if (!ss_is_a_copys((const void *)(e->base + seen)))
		return 0;
	__atomic_store_n(&e->ours, seen, __ATOMIC_RELAXED);
	return 1;
}

static int
ss_exports_intact(void)
{
	uint32_t i;

	for (i = 0; i < ss_armed.exports; i++)
		if (!ss_export_intact(&ss_exports[i]))
			return 0;
	return 1;
}

static void
ss_real_set(struct ss_hook *hook, void *real)
{
	hook->real = real;
	hook->complement = ~(uintptr_t)real;
	if (!ss_below || (uintptr_t)real <= ss_below)
		ss_below = (uintptr_t)real - 1;
	if ((uintptr_t)real >= ss_above)
		ss_above = (uintptr_t)real + 1;
}

/*
 * libpsx may come later than we: looked at whenever objects were loaded. Without dlopen or
 * dlsym, which would wait for a library that another thread is loading.
 */
static int
ss_arm_psx(const struct ss_object *o)
{
	unsigned i;

	if (!o->soname || strcmp(o->soname, "libpsx.so.2") || ss_hooked[SS_CALL_PSX_SYSCALL3].real)
		return 0;
	for (i = SS_CALL_PSX_SYSCALL3; i <= SS_CALL_PSX_SYSCALL; i++) {
		void *real = ss_symbol(o, ss_hooked[i].name);

		if (real)
			ss_real_set(&ss_hooked[i], real);
	}
	return ss_hooked[SS_CALL_PSX_SYSCALL3].real ? ss_exports_rewrite(o) : 0;
}

/* Where our own slots are, which stay as they were bound: what we call is libc's. */
static uintptr_t ss_own_slots[2];

static int
ss_pass_object(struct dl_phdr_info *info, size_t size, void *argument)
{
	struct ss_pass *pass = argument;
	struct ss_object object;

	(void)size;
	pass->adds = info->dlpi_adds;
	pass->subs = info->dlpi_subs;
	pass->objects++;
	ss_object_read(&object, info);
	if (!pass->error)
		pass->error = ss_arm_psx(&object);
	pass->libcs += object.soname && !strcmp(object.soname, ss_libc_soname);
	if ((uintptr_t)ss_hooked < object.low || (uintptr_t)ss_hooked >= object.high) {
		ss_object_bind(&object, pass);
	} else {
		ss_own_slots[0] = object.relro;
		ss_own_slots[1] = object.relro_end;
	}
	return 0;
}

/* How many objects were ever loaded and unloaded; no walk. */
static int
ss_count_objects(struct dl_phdr_info *info, size_t size, void *argument)
{
	struct ss_pass *pass = argument;

	(void)size;
	pass->adds = info->dlpi_adds;
	pass->subs = info->dlpi_subs;
	return 1;
}

/* ------------------------------------------------------------------ detectors */

/*
 * Objects in other link-map namespaces (dlmopen(3), LD_AUDIT) have a libc of their own. The
 * counters are for all namespaces, the walk is through ours. So has whoever loads another
 * file with a libc by its path.
 */
static uint64_t
ss_other_namespaces(const struct ss_pass *pass)
{
	return pass->adds - pass->subs - pass->objects + (pass->libcs > 1 ? pass->libcs - 1 : 0);
}

/* An executable that is not position independent has functions of others under an address of its own. */
static int
ss_is_canonical_plt(const struct ss_object *o, const char *name, uintptr_t address)
{
	uint32_t i;

	for (i = 0; i < o->symbols_count; i++)
		if (o->symbols[i].st_shndx == SHN_UNDEF && o->base + o->symbols[i].st_value == address &&
		    ss_symbol_is(o, &o->symbols[i], name))
			return 1;
	return 0;
}

/* Somebody else's function under one of the names: it may call what we never see. */
static void
ss_find_foreign(void)
{
	struct ss_search_object found;
	uint32_t count = 0;
	unsigned i;

	for (i = 1; i < SS_CALL_SECCOMP; i++) {
		void *seen = ss_hooked[i].real ? dlsym(RTLD_DEFAULT, ss_hooked[i].name) : NULL;

		if (!seen || seen == ss_hooked[i].wrapper || !ss_object_of(seen, &found))
			continue;
		if (ss_is_canonical_plt(&found.object, ss_hooked[i].name, (uintptr_t)seen) ||
		    ss_is_a_copy_of_us(&found))
			continue;
		count++;
		(void)ss_child_copy_text(ss_armed.foreign_name, sizeof(ss_armed.foreign_name), ss_hooked[i].name);
		memcpy(ss_armed.foreign_in, found.name, sizeof(found.name));
	}
	__atomic_store_n(&ss_armed.foreign, count, __ATOMIC_SEQ_CST);
}

enum ss_scan_how { SS_SCAN_NOT, SS_SCAN_WHOLE, SS_SCAN_OWN };

/* A stretch of memory that is searched, and what of it is left out. */
struct ss_scan {
	uintptr_t *words; /* SS_SCAN_BYTES */
	uint64_t *pages;  /* entries of /proc/self/pagemap, SS_SCAN_BYTES */
	int pagemap, memory;  /* /proc/self/pagemap, mem */
	struct ss_searched *found;
	uintptr_t frame;
	uintptr_t skip[4][2];
};

static int
ss_scan_skips(const struct ss_scan *scan, uintptr_t at)
{
	unsigned i;

	for (i = 0; i < sizeof(scan->skip) / sizeof(scan->skip[0]); i++)
		if (at >= scan->skip[i][0] && at < scan->skip[i][1])
			return 1;
	return 0;
}

/* One chunk, read by the kernel: it may be unmapped meanwhile, and then nothing is in it. */
static void
ss_scan_chunk(const struct ss_scan *scan, uintptr_t from, size_t bytes, const char *name)
{
	const struct iovec to = {scan->words, bytes}, what = {(void *)from, bytes};
	const size_t page = ss_pages(1);
	long got = ss_sys6(SYS_process_vm_readv, ss_getpid(), &to, 1, &what, 1, 0);
	size_t i;

	if (got == -EPERM || got == -ENOSYS) /* a sandbox: there is another way */
		got = ss_sys4(SYS_pread64, scan->memory, scan->words, bytes, from);
	if (got < (long)bytes && bytes > page) { /* a hole, or the first page is gone: page by page */
		for (i = 0; i < bytes; i += page)
			ss_scan_chunk(scan, from + i, page, name);
		return;
	}
	if (got <= 0) {
		scan->found->unsearched += got != -EFAULT && got != -EIO;
		return;
	}
	for (i = 0; i < (size_t)got / sizeof(uintptr_t); i++) {
		const uintptr_t at = from + i * sizeof(uintptr_t);

		if (!ss_hook_for(scan->words[i]) || ss_scan_skips(scan, at))
			continue;
		if (!scan->found->captured++) {
			scan->found->captured_at = at;
			(void)ss_child_copy_text(scan->found->captured_in, SS_NAME_BYTES, name);
		}
	}
}

/* Bit 63: in memory, bit 62: swapped out, bit 61: a page of a file, or shared. */
static int
ss_scan_page(uint64_t entry, enum ss_scan_how how)
{
	return (entry >> 62) && (how == SS_SCAN_WHOLE || !(entry >> 61 & 1));
}

/* A mapping: only the pages that exist, because sparse ones may be huge (pagemap of proc(5)). */
static void
ss_scan_mapping(const struct ss_scan *scan, uintptr_t from, uintptr_t to, const char *name,
		enum ss_scan_how how)
{
	const uintptr_t page = ss_pages(1);
	const size_t most = SS_SCAN_BYTES / sizeof(uint64_t);
	uintptr_t at, end;

	if (scan->pagemap < 0 && how == SS_SCAN_OWN)
		return; /* files, mostly: nothing would be found there */
	if (to - from > (scan->pagemap < 0 ? SS_SCAN_BLIND : SS_SCAN_MAX)) {
		scan->found->unsearched++;
		return;
	}
	for (at = from; at < to;) {
		size_t count = (to - at) / page, i, run;

		count = count < most ? count : most;
		if (scan->pagemap < 0) {
			memset(scan->pages, 0xff, count * sizeof(uint64_t));
		} else if (ss_sys4(SYS_pread64, scan->pagemap, scan->pages, count * sizeof(uint64_t),
				   at / page * sizeof(uint64_t)) != (long)(count * sizeof(uint64_t))) {
			scan->found->unsearched++;
			return;
		}
		for (i = 0, end = at + count * page; at < end; at += run * page, i += run) {
			const size_t limit = SS_SCAN_BYTES / page;

			for (run = 0; i + run < count && run < limit && ss_scan_page(scan->pages[i + run], how);
			     run++)
				;
			if (run)
				ss_scan_chunk(scan, at, run * page, name);
			else
				run = 1;
		}
	}
}

/* Shared memory that has no file of its own (what mmap(2), memfd_create(2), shm make). */
static int
ss_is_anonymous(const char *name)
{
	static const char *const starts[] = {"/dev/zero", "/memfd:", "/SYSV", "/dev/shm/"};
	unsigned i;

	for (i = 0; i < sizeof(starts) / sizeof(*starts); i++)
		if (!strncmp(name, starts[i], strlen(starts[i])))
			return 1;
	return 0;
}

/*
 * Splits a line of /proc/self/maps. Returns how the mapping is searched: not at all, whole,
 * or only its pages that are no file's (private and read-only: written to before).
 */
static enum ss_scan_how
ss_maps_line(const char *line, uintptr_t *ret_from, uintptr_t *ret_to, const char **ret_name)
{
	char *at;
	unsigned field;

	*ret_from = strtoul(line, &at, 16);
	if (*at != '-')
		return SS_SCAN_NOT;
	*ret_to = strtoul(at + 1, &at, 16);
	*ret_name = at;
	for (field = 0; field < 5; field++) {
		while (**ret_name == ' ')
			++*ret_name;
		if (field == 4)
			break;
		while (**ret_name && **ret_name != ' ')
			++*ret_name;
	}
	if (at[0] != ' ' || at[1] != 'r')
		return SS_SCAN_NOT;
	if (at[4] == 's')
		return ss_is_anonymous(*ret_name) ? SS_SCAN_WHOLE : SS_SCAN_NOT;
	return at[2] == 'w' ? SS_SCAN_WHOLE : SS_SCAN_OWN;
}

/* Our stack from here down: our own frames, and what earlier and deeper calls have left. */
static void
ss_scan_skip_frames(struct ss_scan *scan, uintptr_t from)
{
	const uintptr_t most = 1u << 20;

	scan->skip[1][0] = scan->frame - from > most ? scan->frame - most : from;
	scan->skip[1][1] = scan->frame;
}

static int
ss_scan_maps(struct ss_scan *scan)
{
	char text[8192], *line, *end;
	const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	enum ss_scan_how how;
	const char *name;
	uintptr_t from, to;
	ssize_t bytes;
	size_t kept = 0;

	if (maps < 0)
		return errno;
	while ((bytes = read(maps, text + kept, sizeof(text) - 1 - kept)) > 0) {
		text[kept + (size_t)bytes] = 0;
		for (line = text; (end = strchr(line, '\n')); line = end + 1) {
			*end = 0;
			if (!(how = ss_maps_line(line, &from, &to, &name)))
				continue;
			if (scan->frame >= from && scan->frame < to)
				ss_scan_skip_frames(scan, from);
			ss_scan_mapping(scan, from, to, name, how);
		}
		kept = strlen(line);
		memmove(text, line, kept);
	}
	(void)close(maps); /* read only */
	return bytes < 0 ? EIO : 0;
}

/*
 * Looks for addresses of the real functions in all memory that is or was writable and has
 * no file of others behind it: each is a pointer that somebody took before we came, and
 * calls past us. Not in our own tables, not in our own frames and what is left of deeper
 * ones, not in the buffer.
 */
static int
ss_find_captured(const void *frame)
{
	const size_t bytes = 2 * SS_SCAN_BYTES;
	struct ss_searched found;
	struct ss_scan scan;
	int error;

	memset(&found, 0, sizeof(found));
	memset(&scan, 0, sizeof(scan));
	scan.found = &found;
	scan.words = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (scan.words == MAP_FAILED)
		return errno;
	scan.pages = (uint64_t *)(void *)((char *)scan.words + SS_SCAN_BYTES);
	scan.skip[0][0] = (uintptr_t)ss_hooked;
	scan.skip[0][1] = (uintptr_t)ss_hooked + sizeof(ss_hooked);
	scan.frame = (uintptr_t)frame;
	scan.skip[2][0] = (uintptr_t)&ss_gate_real;
	scan.skip[2][1] = (uintptr_t)(&ss_gate_real + 1);
	memcpy(scan.skip[3], ss_own_slots, sizeof(ss_own_slots));
	scan.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	scan.memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	/* Neither can be had after a drop of privileges (dumpable is 0): other ways, or fewer. */
	error = ss_scan_maps(&scan);
	(void)close(scan.pagemap); /* read only, as the next */
	(void)close(scan.memory);
	(void)munmap(scan.words, bytes); /* our own mapping */
	if (error)
		return error;
	/* Told only when it is whole: until then what was found before stands. */
	ss_armed.searched.captured_at = found.captured_at;
	memcpy(ss_armed.searched.captured_in, found.captured_in, SS_NAME_BYTES);
	__atomic_store_n(&ss_armed.searched.unsearched, found.unsearched, __ATOMIC_SEQ_CST);
	__atomic_store_n(&ss_armed.searched.captured, found.captured, __ATOMIC_SEQ_CST);
	return 0;
}

/* ----------------------------------------------------------------------- arming */

/* One at a time. What a process finds taken by another was taken when it was forked. */
static void
ss_arming_lock(void)
{
	const int32_t pid = ss_getpid();
	int32_t whose = 0;

	while (!__atomic_compare_exchange_n(&ss_arming, &whose, pid, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
		if (whose != pid)
			continue; /* tries once more, in the place of that one */
		(void)ss_sys0(SYS_sched_yield);
		whose = 0;
	}
}

/* The same for whoever may hold the loader's lock, which who arms may wait for. */
static int
ss_arming_try(void)
{
	const int32_t pid = ss_getpid();
	int32_t whose = __atomic_load_n(&ss_arming, __ATOMIC_RELAXED);

	return whose != pid &&
	       __atomic_compare_exchange_n(&ss_arming, &whose, pid, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void
ss_arming_unlock(void)
{
	__atomic_store_n(&ss_arming, 0, __ATOMIC_RELEASE);
}

/* The functions of one library. One that is chosen at load time (IFUNC) would not be found in the table. */
static void
ss_find_real(void *handle, unsigned from, unsigned to)
{
	unsigned i;

	for (i = from; i <= to; i++) {
		void *real = ss_hooked[i].real ? NULL : dlsym(handle, ss_hooked[i].name);

		if (!real)
			continue;
		ss_real_set(&ss_hooked[i], real);
	}
}

/* Whether the loader now finds the wrappers; ENOEXEC when it does not, as for an IFUNC. */
static int
ss_exports_found(void *handle, unsigned last)
{
	unsigned i;

	for (i = SS_CALL_SETUID; i <= last; i++) {
		const void *seen;

		if (!ss_hooked[i].real || (i >= SS_CALL_PSX_SYSCALL3 && i <= SS_CALL_PSX_SYSCALL))
			continue;
		seen = dlsym(handle, ss_hooked[i].name);
		if (seen != ss_hooked[i].wrapper && !ss_is_a_copys(seen))
			return ENOEXEC;
	}
	return 0;
}

static int
ss_arm_exports(int foreign)
{
	const unsigned last = foreign ? SS_CALL_POSIX_SPAWNP : SS_CALL_SYSCALL;
	struct ss_search_object libc;
	void *handle, *known;
	int error;

	/* Whose function that is, is libc; by its name the loader gives us a handle to it. */
	if (!(known = dlsym(RTLD_DEFAULT, "__errno_location")) || !ss_object_of(known, &libc))
		return ENOEXEC;
	if (!(handle = dlopen(libc.name, RTLD_LAZY | RTLD_NOLOAD)))
		return ELIBACC;
	if (libc.object.soname)
		(void)ss_child_copy_text(ss_libc_soname, sizeof(ss_libc_soname), libc.object.soname);
	ss_find_real(handle, SS_CALL_SETUID, SS_CALL_SYSCALL);
	if (foreign) {
		ss_real_fork = dlsym(handle, "fork");
		ss_find_real(handle, SS_CALL_VFORK, last);
	}
	ss_gate_real = ss_hooked[SS_CALL_SYSCALL].real;
	if (!ss_hooked[SS_CALL_SETUID].real || !ss_gate_real || (foreign && !ss_real_fork))
		error = ENOEXEC;
	else
		error = ss_exports_rewrite(&libc.object);
	if (!error)
		error = ss_exports_found(handle, last);
	(void)dlclose(handle); /* counts only; libc stays */
	return error;
}

/* All slots that are bound. libpsx, met last, may be bound to in objects met before it. */
static int
ss_pass_run(void)
{
	struct ss_pass pass;
	const void *psx = ss_hooked[SS_CALL_PSX_SYSCALL3].real;

	memset(&pass, 0, sizeof(pass));
	(void)dl_iterate_phdr(ss_pass_object, &pass);
	if (psx != ss_hooked[SS_CALL_PSX_SYSCALL3].real && !pass.error) {
		memset(&pass, 0, sizeof(pass));
		(void)dl_iterate_phdr(ss_pass_object, &pass);
	}
	ss_last_pass = pass;
	ss_armed.objects = pass.objects;
	ss_armed.slots = pass.slots;
	ss_armed.patched += pass.patched;
	return pass.error;
}

/* Waits for every dlopen that is under way: the loader's lock is taken for its whole length. */
static void
ss_loader_barrier(void)
{
	void *ourselves = dlopen(NULL, RTLD_LAZY | RTLD_NOLOAD);

	if (ourselves)
		(void)dlclose(ourselves); /* counts only */
}

/*
 * The loader's locks are not reset at fork: in a child that was forked beside other threads
 * one of them may be held for ever, and we must not ask for it.
 */
static int32_t ss_fork_beside, ss_loader_unsure;

static void
ss_fork_prepare(void)
{
	ss_fork_beside = ss_has_others();
}

/* Also takes the lock's memory over, before a vfork child of somebody else can. */
static void
ss_fork_child(void)
{
	ss_loader_unsure |= ss_fork_beside;
	(void)ss_lock_ours();
}

static int
ss_arm_locked(int foreign, const void *frame)
{
	const int is_new = !ss_hooked[SS_CALL_SETUID].real || (foreign && !ss_hooked[SS_CALL_VFORK].real);
	int error;

	if (ss_loader_unsure)
		return EDEADLK;
	if (!ss_lock && (error = pthread_atfork(ss_fork_prepare, NULL, ss_fork_child)))
		return error;
	if ((error = -ss_lock_map()))
		return error;
	if ((error = SS_ARM_HOOK()) || (error = ss_arm_exports(foreign)))
		return error;
	ss_loader_barrier();
	if ((error = ss_pass_run()))
		return error;
	ss_find_foreign();
	if ((error = ss_find_captured(frame)))
		return error;
	/* A thread that was just binding a call may store the real address after our pass. */
	if (is_new)
		ss_settled_ns = ss_has_others() ? ss_now() + SS_SETTLE_PASS_NS : 0;
	return 0;
}

/*
 * Puts the wrappers in place, or looks once more at what was bound and captured when they
 * are. foreign: vfork and posix_spawn too. wait_ns: the bound of a change, 0 to leave it.
 * Returns 0, or a positive errno: then the lock is relied on only if it was before.
 */
SS_API int
ss_arm(int foreign, int64_t wait_ns)
{
	const int64_t start = ss_now();
	int error;

	ss_arming_lock();
	error = ss_arm_locked(foreign || ss_hooked[SS_CALL_VFORK].real, __builtin_frame_address(0));
	if (wait_ns)
		__atomic_store_n(&ss_change_wait_ns, wait_ns, __ATOMIC_RELAXED);
	ss_armed.error = error;
	ss_armed.took_ns = ss_now() - start;
	/* Armed once is armed: what a later look could not see is as it was, or ss_lock_look sees it. */
	if (!error || ss_armed.state != SS_ARM_ARMED)
		__atomic_store_n(&ss_armed.state, error ? SS_ARM_UNLOCKABLE : SS_ARM_ARMED, __ATOMIC_RELEASE);
	ss_arming_unlock();
	return error;
}
