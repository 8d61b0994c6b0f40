/*
 * Records appended to a ledger by the core itself, from several threads at once and without Python: one line per
 * record, its name and the nanoseconds that its append took, waiting included.
 *
 *   audit_cost DIRECTORY RECORDS
 */
#include "../safespawn/_native.c"

#define BODY 1200
#define MOST_THREADS 32

static struct ss_ledger *bench_ledger;
static char bench_body[BODY + 20];
static pthread_barrier_t bench_start;
static int bench_records;

static void *
bench_append(void *taken)
{
	int64_t *at = taken;
	struct ss_entry entry = { SS_EV_GUARD_CONFIG, 0, NULL, bench_body, strlen(bench_body) };
	struct ss_kept kept = { 0 }; /* it settles nothing */

	(void)pthread_barrier_wait(&bench_start);
	for (int i = 0; i < bench_records; i++) {
		int64_t before = ss_clock_ns(CLOCK_MONOTONIC);

		if (ss_ledger_append(bench_ledger, &entry, &kept))
			abort();
		at[i] = ss_clock_ns(CLOCK_MONOTONIC) - before;
	}
	return NULL;
}

static int
bench_open_file(struct ss_handle *file, const char *where, const char *name, int flags)
{
	char path[4096];

	(void)snprintf(path, sizeof(path), "%s/%s", where, name);
	file->fd = -1;
	return ss_handle_open(file, AT_FDCWD, path, O_RDWR | O_CREAT | flags, 0600);
}

static int
bench_open(const char *where, int keyed)
{
	struct ss_handle file, state, claims;
	struct ss_setup setup = { .file = &file, .reserve = 1 << 20, .checkpoint_records = 1000, .checkpoint_ns = INT64_MAX };
	struct ss_entry entry = { SS_EV_CHAIN_OPEN, 0, NULL, "", 0 };
	struct ss_kept kept = { 0 }; /* it settles nothing */
	char head[SS_SLOT_BYTES] = "SSSTATE1";

	if (bench_open_file(&file, where, "c.jsonl", O_TRUNC | O_APPEND))
		return -1;
	if (keyed) {
		if (bench_open_file(&state, where, "c.jsonl.state", O_TRUNC) || ss_handle_put(&state, head, sizeof(head)) ||
		    bench_open_file(&claims, where, "c.jsonl.state", O_APPEND))
			return -1;
		setup.state = &state;
		setup.claims = &claims;
		setup.origin.keyed = 1;
		memset(setup.origin.key, 7, sizeof(setup.origin.key));
	}
	(void)snprintf(setup.mode, sizeof(setup.mode), "require");
	if (ss_uuid7(setup.origin.chain))
		return -1;
	return ss_ledger_open(&setup, &bench_ledger) || ss_ledger_append(bench_ledger, &entry, &kept) ? -1 : 0;
}

static void
bench_run(const char *name, int count)
{
	pthread_t threads[MOST_THREADS];
	int64_t *taken = calloc((size_t)(count * bench_records), sizeof(*taken));

	(void)pthread_barrier_init(&bench_start, NULL, (unsigned)count);
	for (int i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, bench_append, taken + i * bench_records))
			abort();
	for (int i = 0; i < count; i++)
		(void)pthread_join(threads[i], NULL);
	for (int i = 0; i < count * bench_records; i++)
		(void)printf("%s, %d threads\t%lld\n", name, count, (long long)taken[i]);
	(void)pthread_barrier_destroy(&bench_start);
	free(taken);
}

int
main(int argc, char **argv)
{
	static const int counts[] = { 1, 8, MOST_THREADS };

	if (argc != 3)
		return 2;
	(void)snprintf(bench_body, sizeof(bench_body), "\"pad\":\"%0*d\"", BODY, 0);
	bench_records = atoi(argv[2]);
	for (int keyed = 0; keyed < 2; keyed++) {
		if (bench_open(argv[1], keyed))
			return 1;
		for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
			bench_run(keyed ? "with keys" : "without keys", counts[i]);
		ss_ledger_free(&bench_ledger);
	}
	return 0;
}
