/* The audit ledger: what its parts share. Its form on disk is docs/audit-format.md. */

#define SS_LINE_BYTES 8000u /* collectors cut longer lines: rsyslog takes 8 KiB by default */
#define SS_ID_BYTES 36u     /* a UUID as text */
#define SS_SLOT_BYTES 128u
#define SS_WORD_BYTES 40u

enum {
	SS_EV_CHAIN_OPEN, SS_EV_CHAIN_FORK, SS_EV_CHAIN_CLOSE, SS_EV_CHECKPOINT, SS_EV_INTENT, SS_EV_STARTED,
	SS_EV_FAILED, SS_EV_DENIED, SS_EV_EXIT, SS_EV_EXIT_UNKNOWN, SS_EV_BYPASS, SS_EV_CRED_CHANGE,
	SS_EV_GUARD_CONFIG, SS_EV_DEGRADED, SS_EV_RESTORED, SS_EV_MIRROR_DOWN, SS_EV_MIRROR_UP,
	SS_EV_RETIRED, SS_EV_BREAKGLASS, SS_EV_REGISTRY_INIT, SS_EV_REGISTRY_CHAIN, SS_EV_HELPER_LOST,
	SS_EV_HELPER_SHRUNK, SS_EV_COUNT
};

/* What a record asks for beside being written. */
enum {
	SS_ENTRY_BOOKS = 1 << 0,  /* an intent: room for its outcome and its exit is put by */
	SS_ENTRY_FREES = 1 << 1,  /* one of these came */
	SS_ENTRY_FREES_TWO = 1 << 2, /* or both in one, because nothing runs */
	SS_ENTRY_FLUSH = 1 << 3,  /* fdatasync before it counts */
	SS_ENTRY_AGGREGATE = 1 << 4, /* the aggregate so far is its last member */
	SS_ENTRY_CLOSES = 1 << 5, /* the chain ends with it */
};

/* What a writer must attend to afterwards. */
enum {
	SS_KEPT_MANY = 1 << 0,   /* a checkpoint is due, by the number of records */
	SS_KEPT_LATE = 1 << 1,   /* or by the time */
	SS_KEPT_FULL = 1 << 2,   /* the segment has reached its size */
	SS_KEPT_UNFLUSHED = 1 << 3, /* it is in the file, and the disk may not have it */
};

/* What is to be told of a record no more: it is in the file, or it is lost and was counted. */
enum { SS_TOLD_KEPT = 1, SS_TOLD_LOST = 2 };

/* What came of a record. It is filled in by the call itself: no handler of a signal comes in between. */
struct ss_kept {
	uint32_t flags;
	uint8_t told;	   /* SS_TOLD_KEPT or _LOST; 0: neither, so it can be told again */
	uint64_t booked;   /* the chain that has put room by for what comes of it, by its serial; 0 for none */
	uint64_t settling; /* asked: the chain that has put this one's own room by, which is given back there only */
};

struct ss_entry {
	int32_t event;
	uint32_t flags;
	const char *sid;  /* SS_ID_BYTES, or NULL */
	const char *body; /* its members after the envelope, without braces; may be empty */
	uint64_t body_bytes;
};

/* Where a chain begins. The key is wiped by whoever takes it. */
struct ss_origin {
	uint8_t key[32];
	int32_t keyed;
	uint64_t epoch;
	char chain[SS_ID_BYTES];
	char parent[SS_ID_BYTES]; /* the chain of the process that forked us; "" for none */
	int32_t forked;           /* our key comes from it: from its record n */
	uint64_t n;
};

/* A descriptor, and who closes it: no exception of a signal handler comes between. */
struct ss_handle {
	int32_t fd; /* -1: nobody */
};

struct ss_setup {
	struct ss_handle *file, *state, *claims; /* taken over; NULL for no state. claims: the state too, O_APPEND */
	uint64_t reserve, limit; /* bytes; 0 for none */
	uint64_t checkpoint_records;
	int64_t checkpoint_ns;
	char boot[SS_WORD_BYTES], mode[SS_WORD_BYTES];
	struct ss_origin origin;
};

/* First come, first served: a mutex of libc let one of 32 threads wait for half a second. */
struct ss_queue {
	uint32_t next, serving;
};

/* One call of what stands in for system(3); process: where it was entered, 0 when it is not. */
struct ss_system {
	uint64_t mask, sigdefault, process;
	int32_t tid;
};

/* In a page of its own that no forked child, no core dump and no swap gets to see. */
struct ss_secrets {
	uint32_t alive; /* 0 in a forked child: the kernel has cleared the page (MADV_WIPEONFORK) */
	struct ss_queue writing, flushing;
	uint64_t lost; /* not yet told; a child has lost nothing yet */
	uint8_t record_key[32], aggregate_key[32];
};

/* Lines end to end, each behind its length; for readers that follow. */
struct ss_ring {
	char *base;
	uint64_t bytes, head, tail; /* positions since the beginning */
	uint64_t first, next;       /* numbers of the oldest line that is there, and of the next */
	uint32_t word, sleepers;    /* futex: moves with each line that ends an empty time */
};

/* Where one of its readers is, and how many lines it has missed. */
struct ss_reader {
	uint64_t number, position, skipped;
};

struct ss_ledger_counts {
	uint64_t events[SS_EV_COUNT];
	uint64_t lost, next, booked, reserved, size;
	int32_t reserves, poisoned;
	int32_t state; /* descriptor of the state file, -1 for none */
};

/* Which file a descriptor of ours was. */
struct ss_same {
	uint64_t device, inode;
};

enum { SS_LINE_WHOLE, SS_LINE_TORN, SS_LINE_TORN_AT_END }; /* the last line of the file; the last has all but its newline */

struct ss_ledger {
	struct ss_secrets *secrets;
	struct ss_ledger *other; /* the next one of this process */
	int fd, state_fd, claim_fd;
	int keyed, closed, ended, torn, shrunk, slot_behind, poisoned, reserves;
	struct ss_same same, state_same;
	uint64_t size;
	uint64_t next, written, booked, due_again;
	uint64_t reserve, reserved_end, limit;
	uint64_t slot, epoch;
	uint64_t serial; /* of the chain: no other of this process has it */
	uint64_t since_checkpoint, checkpoint_records;
	int64_t checkpoint_ns, checkpoint_at;
	uint64_t synced, unsynced_bytes, unsynced_first, unsynced_next;
	char *unsynced; /* in mode durable: what the disk may not have yet */
	uint64_t counts[SS_EV_COUNT];
	uint8_t previous[32], aggregate[32];
	char chain[SS_ID_BYTES], boot[SS_WORD_BYTES], mode[SS_WORD_BYTES];
	struct ss_origin birth; /* without its key */
	struct ss_origin heir;  /* while we fork: where the child's chain begins; no chain id for nowhere */
	struct ss_ring ring;
	char line[SS_LINE_BYTES + 8];
};
