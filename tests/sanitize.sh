#!/bin/bash
# Runs tests on a core built with sanitizers.
#
#   tests/sanitize.sh PYTHON asan      a few minutes: addresses and undefined behaviour, what handles most data in C
#   tests/sanitize.sh PYTHON ubsan     undefined behaviour alone, for the credential lock
#   tests/sanitize.sh PYTHON asan-all  every file of the ordinary tests but those of $without_asan
#   tests/sanitize.sh PYTHON tsan      threads: the lock in a program of C, the ledger under the interpreter
set -euo pipefail
python=$(realpath -s "$1") what=$2
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # tests become other users, who look for the launcher there
# The interpreter itself leaks at exit by design, and its own memory is not ours to test. The
# children of a test are real programs: they must not be started under the sanitizer's library.
export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1
quick=(
	test_run.py test_process.py test_report.py test_inputs.py test_helper_messages.py
	test_ledger_forms.py test_ledger_slots.py test_ledger_segments.py
)
# Why a file is not run under the address sanitizer. What is in neither list is.
declare -A because=(
	[lock]="the library of the sanitizer stands before libc, and that turns the credential lock off; it has ubsan and tsan"
	[own]="it builds a core of its own, or reads what the compiler makes of the sources"
	[other]="it starts interpreters or programs that have the ordinary core, or none"
	[text]="it reads sources and documentation, and runs nothing of the core"
	[memory]="it measures or limits memory and time, and the sanitizer takes both"
)
declare -A without_asan=(
	[lock]="catch_matrix credlock lock_edges lock_faces many_lock posix_strategy seal storm takeover_coverage"
	[own]="elsewhere exploits fuzz_corpus helper_emulated helper_exploits helper_stages launch_exploits launch_stages
		launcher_emulated launcher_program native_section seeded_faults stages thread_sanitizer"
	[other]="audit_page cli cli_audit cli_audit_export cli_exec cli_output client_comparison cpython_comparison
		interpreters migrating soak subprocess_same takeover_edges takeover_table"
	[text]="decisions docs layers model mutation public_api skips threat_model"
	[memory]="bench ledger_kills mirror_linux_audit prepare_fork"
)
lock=(test_catch_matrix.py test_seal.py test_lock_faces.py)

all_files() {
	local kind name left=" "
	for kind in "${!because[@]}"; do
		for name in ${without_asan[$kind]}; do
			[[ -f tests/test_$name.py ]] || { echo "tests/test_$name.py is no file" >&2; exit 1; }
			left+="test_$name.py "
		done
		echo "not under asan, because ${because[$kind]}:" ${without_asan[$kind]} >&2
	done
	for name in tests/test_*.py; do
		[[ $left == *" ${name#tests/} "* ]] || echo "${name#tests/}"
	done
}

run() {
	echo "ordinary tests under $what"
	LD_PRELOAD=$preload SAFESPAWN_TEST_CORE="$work/core" "$python" -m pytest -q -m "not slow" \
		--basetemp="$work/temporary" "${@/#/tests/}"
}

preload=
case $what in
asan | asan-all)
	"$python" tests/build_variant.py asan "$work/core"
	preload=$(gcc -print-file-name=libasan.so)
	[[ $what == asan ]] || mapfile -t quick < <(all_files)
	run "${quick[@]}"
	;;
ubsan)
	"$python" tests/build_variant.py ubsan "$work/core"
	run "${lock[@]}"
	;;
tsan)
	SAFESPAWN_LONG=1 SAFESPAWN_SANITIZER_SECONDS=${SECONDS_OF_CROWD:-60} "$python" -m pytest -q --basetemp="$work/temporary" \
		tests/test_thread_sanitizer.py "tests/test_ledger_crowds.py::test_threads_under_their_sanitizer"
	;;
esac
