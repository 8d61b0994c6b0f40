"""What is mutated, and which tests are to notice: those that are near come first, the wide ones after.

Tests are told by file of tests/, or by file and words for ``pytest -k``. What is near is a choice of speed alone:
a mutant survives only what is near and what is wide.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: A pytest run: arguments, without the directory.
Run = tuple[str, ...]


class Target(NamedTuple):
    """A group of files, with the runs of tests that know them, by a pattern of the function's name."""

    files: tuple[str, ...]
    near: tuple[tuple[str, tuple[Run, ...]], ...]
    wide: tuple[Run, ...]
    #: What a warm process runs (warm.py) in the place of what is near.
    warm: Run = ()

    def near_to(self, function: str) -> tuple[Run, ...]:
        """Return the runs that are near to a function."""
        return next((runs for pattern, runs in self.near if re.search(pattern, function)), ())


_GIVEN: Run = ("test_given.py", "-k", "test_alone and fork")
_DROPS: Run = ("test_identity.py", "test_regain.py")
_DROPS_ONCE: Run = (*_DROPS, "-k", "fork or launcher and setgroups")
_STAGES: Run = ("test_stages.py", "test_launch_stages.py", "-m", "not slow")
_PAIRS: Run = ("test_exploits.py", "test_launch_exploits.py", "-m", "not slow")
#: The code of the child is the same for all that share memory: one of them is enough at first.
_DESCRIPTORS: Run = ("test_descriptors.py", "-k", "vfork and not bounded and not random and not devnull and not closed and not every_map")
#: The launcher has the code of the child too, and is built in a moment.
_LAUNCHED: Run = ("test_given.py", "test_given_namespaces.py", "-k", "launcher and not beside and not exactly", "-m", "not slow")

CHILD = Target(
    ("_child.c", "_steps.c", "_drop.c", "_confine.c", "_spawned.c"),
    (
        (r"fds|place|lift|spare|is_target", (_GIVEN, _DESCRIPTORS)),
        (r"cloexec|digits", (("test_fallbacks.py", "-k", "close_range and vfork or listed or without_proc"), _DESCRIPTORS)),
        (r"signals|dispose|default|mask|stops", (_GIVEN, ("test_options.py", "-k", "(sig or mask or stop) and fork"))),
        (r"arm$|exit|spawned|born|spawn$", (_GIVEN, ("test_bounds.py", "-k", "clone or fork", "-m", "not slow"))),
        (r"pdeathsig|has_parent", (_GIVEN, ("test_options.py", "-k", "pdeath"), ("test_given.py", "-k", "ends_with"))),
        (r"pin$|_ns$|launcher", (_GIVEN, ("test_report.py", "-k", "pin"), ("test_launch_stages.py", "-k", "launcher"))),
        (r"epoch|creds|birth", (_GIVEN, ("test_exploits.py", "-k", "credentials_change or ids_do_not_show"))),
        (r"spend", (_GIVEN, ("test_helper_exploits.py", "-k", "deadline and on"))),
        (r"namespaces|await_maps|leaves_users", (("test_given_namespaces.py",),)),
        (r"root|inside", (_GIVEN, ("test_given.py", "-k", "root or jail or cwd"))),
        (r"cgroup", (("test_given.py", "-k", "cgroup"),)),
        (r"landlock", (("test_landlock.py",),)),
        (r"regain|verify|agree|caps|uid|gid|groups|ambient|bounding|securebits|kept|has", (_GIVEN, _DROPS_ONCE)),
        (r"", (_GIVEN, _DESCRIPTORS)),
    ),
    (("test_options.py",), _DROPS, ("test_descriptors.py",), _STAGES, ("test_given_namespaces.py",),
     ("test_given.py", "-k", "not test_alone or not fork"), _PAIRS, ("test_helper_stages.py", "test_helper_exploits.py")),
    _LAUNCHED,
)  # fmt: skip

GUARDS = Target(
    ("guards.py",),
    ((r"", (("test_decisions.py",),)),),
    (
        ("test_report.py", "test_lock_faces.py", "test_posix_strategy.py", "test_threat_model.py"),
        ("test_policy.py", "test_credlock.py", "test_identity.py", "test_seal.py", "-m", "not slow"),
    ),
)

#: Those of the verifier's tests that take seconds: for who survives the others.
_SLOW = ("between_any_two_reads or any_changed_byte or killed_w or killed_p or many_chains or no_bytes or every_byte or every_cut "
         "or reference_agree or the_library or looked_through_by_halves or live_writer or shrinks or work_of_the_verifier")  # fmt: skip
_VERIFY: Run = ("test_audit_verify.py", "test_audit_verify_edges.py", "test_hostile_ledgers.py", "-k", f"not ({_SLOW})", "-m", "not slow")
_VERIFY_SLOW: Run = ("test_audit_verify.py", "test_hostile_ledgers.py", "-k", _SLOW, "-m", "not slow")

VERIFIER = Target(
    ("audit/verifier.py", *(f"audit/_verify_{part}.py" for part in (
        "births", "descent", "done", "findings", "keys", "registry", "repeats", "retired", "scan", "segments", "state",
        "summary", "tails", "walk", "witness", "witnessed"))),
    ((r"", (_VERIFY,)),),
    (_VERIFY_SLOW, ("test_cli_audit.py", "test_ledger_segments.py", "-m", "not slow")),
    _VERIFY,
)  # fmt: skip

VERIFIER_CORE = Target(
    ("_verify.c",),
    ((r"", (_VERIFY,)),),
    (("test_fuzz_corpus.py", "-k", "judged_rightly and verify"), _VERIFY_SLOW),
    _VERIFY,
)

TARGETS = {"guards": GUARDS, "child": CHILD, "verifier": VERIFIER, "verifier-core": VERIFIER_CORE}
