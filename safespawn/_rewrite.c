/*
 * Puts wrappers in the place of real functions: in the export table of one object, and in the
 * slots that it has bound. Part of _native.c. [T-24 lock-covers]
 */

/* What a pass over all objects came to. */
struct ss_pass {
	uint64_t adds, subs;
	uint32_t objects, slots, patched;
	uint32_t libcs; /* ours, and copies of it loaded from other files */
	int32_t error;
};

/* The wrapper of the real function with that address, NULL for any other. In _interpose.c, as the next. */
static void *ss_wrapper_for(uintptr_t address);
static int ss_export_note(uint64_t *value, uint64_t ours, uintptr_t base);

static int
ss_protect(uintptr_t from, uintptr_t to, int how)
{
	const uintptr_t page = ss_pages(1), low = from / page * page;

	return ss_child_error(ss_sys3(SYS_mprotect, low, (to - low + page - 1) / page * page, how));
}

/*
 * Rewrites the symbols of one object. Read-only afterwards and never executable, although
 * on aarch64 the table lies in an executable segment: it needs no such right, and asking
 * for one would be refused under SELinux (execmod).
 */
static int
ss_exports_rewrite(const struct ss_object *o)
{
	const uintptr_t from = (uintptr_t)o->symbols;
	const uintptr_t to = from + o->symbols_count * sizeof(*o->symbols);
	int error;
	uint32_t i;

	if (!o->symbols_count)
		return ENOEXEC;
	if ((error = ss_protect(from, to, PROT_READ | PROT_WRITE)))
		return error;
	for (i = 0; i < o->symbols_count; i++) {
		Elf64_Sym *symbol = (Elf64_Sym *)(uintptr_t)&o->symbols[i];
		const int is_function = ELF64_ST_TYPE(symbol->st_info) == STT_FUNC;
		void *wrapper;

		if (!is_function || symbol->st_shndx == SHN_UNDEF || !(wrapper = ss_wrapper_for(o->base + symbol->st_value)))
			continue;
		if ((error = ss_export_note(&symbol->st_value, (uintptr_t)wrapper - o->base, o->base)))
			break;
		__atomic_store_n(&symbol->st_value, (uintptr_t)wrapper - o->base, __ATOMIC_SEQ_CST);
	}
	if (!ss_object_room(o, from, PF_W)) /* some tools move the table to where data is written */
		(void)ss_protect(from, to, PROT_READ); /* left writable it would work no less */
	return error;
}

/* -------------------------------------------------------------- the bound slots */

/*
 * Whether a store to the slot would work: the kernel adds 0 to it atomically, and says EFAULT
 * where we would die (FUTEX_WAKE_OP of futex(2), with FUTEX_OP_ADD; it wakes nobody).
 */
static int
ss_can_store(uintptr_t *slot)
{
	uint32_t nobody = 0;

	return ss_sys6(SYS_futex, &nobody, 5 | SS_FUTEX_PRIVATE, 0, 0, slot, 1u << 28) != -EFAULT;
}

/* Stores a wrapper. Read-only relocations are opened for it, once for each object. */
static int
ss_slot_store(const struct ss_object *o, uintptr_t *slot, void *wrapper, int *is_open)
{
	const uintptr_t at = (uintptr_t)slot;
	int error;

	if (at >= o->relro && at < o->relro_end && !*is_open) {
		if ((error = ss_protect(o->relro, o->relro_end, PROT_READ | PROT_WRITE)))
			return error;
		*is_open = 1;
	}
	if ((at < o->relro || at >= o->relro_end) && !ss_can_store(slot)) {
		/* The program has closed that page itself. */
		if ((error = ss_protect(at, at + sizeof(*slot), PROT_READ | PROT_WRITE)))
			return error;
		__atomic_store_n(slot, (uintptr_t)wrapper, __ATOMIC_SEQ_CST);
		return ss_protect(at, at + sizeof(*slot), PROT_READ);
	}
	__atomic_store_n(slot, (uintptr_t)wrapper, __ATOMIC_SEQ_CST);
	return 0;
}

/* A slot that no single store could change is left alone: the lock does not hold then, if it leads past us. */
static int
ss_slot_bind(const struct ss_object *o, uintptr_t at, int *is_open, struct ss_pass *pass)
{
	void *wrapper;
	uintptr_t held;
	int error;

	if (at % sizeof(held)) {
		memcpy(&held, (const void *)at, sizeof(held));
		return ss_wrapper_for(held) ? ENOEXEC : 0;
	}
	if (!(wrapper = ss_wrapper_for(__atomic_load_n((uintptr_t *)at, __ATOMIC_RELAXED))))
		return 0;
	error = ss_slot_store(o, (uintptr_t *)at, wrapper, is_open);
	pass->patched += !error;
	return error;
}

static void
ss_table_bind(const struct ss_object *o, size_t table, struct ss_pass *pass, int *is_open)
{
	size_t i;

	for (i = 0; i < o->counts[table]; i++) {
		const uintptr_t at = ss_object_slot(o, &o->tables[table][i]);
		int error;

		if (!at)
			continue;
		pass->slots++;
		if ((error = ss_slot_bind(o, at, is_open, pass)))
			pass->error = error;
	}
}

static void
ss_object_bind(const struct ss_object *o, struct ss_pass *pass)
{
	int is_open = 0;

	ss_table_bind(o, 0, pass, &is_open);
	ss_table_bind(o, 1, pass, &is_open);
	if (is_open) /* worked just now, the other way */
		(void)ss_protect(o->relro, o->relro_end, PROT_READ);
}
