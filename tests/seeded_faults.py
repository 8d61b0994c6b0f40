"""Faults by name: what somebody could break in a guard, and the test that must notice.

Each is a text of a file of the package that is there once, and what it becomes. test_seeded_faults.py looks that all
still apply, and has some of them found; ``python tests/mutation/seeded.py`` has all of them found, one at a time.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """A change of one place of a file, and the test that fails then."""

    guard: str
    file: str
    was: str
    becomes: str
    test: str


FAULTS = {
    "signal-left-unblocked": Fault(
        "signals-blocked", "_native.c",
        "const uint64_t all = SS_GUARDED(SIGNALS_BLOCKED) ? ~0ull : 0;",
        "const uint64_t all = ~(1ull << (SIGUSR1 - 1));",
        "test_exploits.py::test_signal_handler_runs_in_child[vfork-on]",
    ),
    "handlers-stay": Fault(
        "signals-blocked", "_steps.c",
        "signal <= SS_LAST_SIGNAL && !plan->report->handlers_cleared", "0",
        "test_fallbacks.py::test_handlers_are_gone_without_clone3[vfork]",
    ),
    "another-thread-is-nobody": Fault(
        "alone-or-apart", "guards.py",
        "    elif facts.alone:\n        single = None\n", "    elif facts.alone or facts.threads:\n        single = None\n",
        "test_decisions.py::test_every_decision[locked]",
    ),
    "window-unbounded": Fault(
        "window-bounded", "_native.c",
        "w->deadline_ns = SS_GUARDED(WINDOW_BOUNDED) ? request->deadline_ns : 0;", "w->deadline_ns = 0;",
        "test_exploits.py::test_stopped_child_holds_the_caller[on]",
    ),
    "inputs-writable": Fault(
        "inputs-sealed", "_native.c",
        "writable ? PROT_READ | PROT_WRITE : PROT_READ)", "writable ? PROT_READ | PROT_WRITE : PROT_READ | PROT_WRITE)",
        "test_exploits.py::test_arguments_are_edited_in_the_window[vfork-on]",
    ),
    "creds-not-compared": Fault(
        "creds-agree", "_steps.c",
        "now.inheritable != expected->inheritable\n		   ? ESTALE", "now.inheritable != expected->inheritable\n		   ? 0",
        "test_exploits.py::test_credentials_change_after_the_decision[vfork-on]",
    ),
    "guard-page-dropped": Fault(
        "stack-guarded", "_native.c",
        "if (mprotect(arena->stack, stack_bytes, open) ||",
        "if (mprotect(arena->base, (size_t)(arena->stack - arena->base) + stack_bytes, open) ||",
        "test_exploits.py::test_child_overruns_its_stack[vfork-on]",
    ),
    "listing-that-fails-is-empty": Fault(
        "fds-closed", "_steps.c",
        "	if (dir < 0)\n		return ss_child_error(dir);", "	if (dir < 0)\n		return 0;",
        "test_fallbacks.py::test_descriptors_without_proc",
    ),
    "groups-stay": Fault(
        "identity-whole", "_drop.c",
        "	if (!(plan->want.flags & SS_SET_GROUPS))\n		return 0;\n	error", "	return 0;\n	error",
        "test_identity.py::test_groups_of_root_are_not_left_behind[fork]",
    ),
    "regain-skipped": Fault(
        "drop-verified", "_drop.c",
        "return error ? error : ss_child_regain(plan);", "return error;",
        "test_regain.py::test_what_can_be_had_again_is_no_drop[fork-setgroups]",
    ),
    "drop-not-read-back": Fault(
        "drop-verified", "_drop.c",
        "	if (!(plan->want.flags & SS_CHANGES_CREDS) || !SS_GUARDED(DROP_VERIFIED))\n		return 0;\n	error", "	return 0;\n	error",
        "test_exploits.py::test_drop_that_only_seems_to_work[on]",
    ),
    "times-not-compared": Fault(
        "exe-pinned", "_steps.c",
        "now.st_size != plan->want.size || ss_child_ns(&now.st_mtim) != plan->want.mtime_ns ||\n"
        "		       ss_child_ns(&now.st_ctim) != plan->want.ctime_ns",
        "now.st_size != plan->want.size",
        "test_exploits.py::test_program_is_rewritten_in_place_after_the_hash[vfork-on]",
    ),
    "sticky-directory-trusted": Fault(
        "path-trusted", "guards.py",
        "if node.mode & 0o022:", "if node.mode & 0o022 and not node.mode & 0o1000:",
        "test_decisions.py::test_paths_that_are_trusted",
    ),
    "loader-variable-kept": Fault(
        "env-scrubbed", "_environ.py",
        'b"HOME", b"LANG",', 'b"HOME", b"LD_PRELOAD", b"LANG",',
        "test_exploits.py::test_loader_variable_brings_foreign_code[on]",
    ),
    "changes-do-not-wait": Fault(
        "changes-wait", "_credlock.c",
        "(!(word & SS_SPAWNERS) && !held_off) || ", "1 || ",
        "test_exploits.py::test_change_under_a_child_on_our_memory[libc-vfork-on]",
    ),
    "epoch-check-removed": Fault(
        "epoch-agrees", "_steps.c",
        "return SS_GUARDED(EPOCH_AGREES) && __atomic_load_n(&plan->report->moved, __ATOMIC_SEQ_CST) ? ESTALE : 0;",
        "(void)plan;\n	return 0;",
        "test_exploits.py::test_change_that_ids_do_not_show[0-on]",
    ),
    "threads-not-compared": Fault(
        "tasks-alike", "_locked.c",
        "	f->error = ss_tasks_alike(&differs);\n", "	f->error = 0;\n",
        "test_exploits.py::test_thread_that_dropped_privileges_by_itself_before[on]",
    ),
    "plan-not-sealed": Fault(
        "plan-sealed", "_launch.c",
        "if (!error && SS_GUARDED(PLAN_SEALED) && fcntl(", "if (!error && 0 && fcntl(",
        "test_launch_exploits.py::test_plan_is_edited_before_the_launcher_reads_it[ours-on]",
    ),
    "helper-takes-any-program": Fault(
        "helper-obeys", "_allowed.c",
        "!ss_path_is_plain(plan->want.path) || ", "",
        "test_helper_exploits.py::test_daemon_that_was_taken_over_asks_for_more[a way round-on]",
    ),
    "mac-over-encoded-again": Fault(
        "records-chained", "audit/_verify_scan.py",
        "        data += chunk\n",
        "        data += b\"\".join(\n"
        "            __import__(\"json\").dumps(__import__(\"json\").loads(one), separators=(\",\", \":\")).encode() + b\"\\n\"\n"
        "            for one in chunk.splitlines()\n"
        "        )\n",
        "test_audit_verify.py::test_trailing_blank",
    ),
    "mac-not-compared": Fault(
        "records-chained", "_verify.c",
        "return !memcmp(mac, p->mac, sizeof(mac));", "return 1;",
        "test_audit_verify.py::test_flipped_byte",
    ),
}  # fmt: skip

#: Those that every run of the ordinary tests plants, all at once: they do not touch each other.
NAMED = (
    "epoch-check-removed", "signal-left-unblocked", "guard-page-dropped", "mac-over-encoded-again", "regain-skipped"
)  # fmt: skip
