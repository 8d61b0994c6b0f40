#!/bin/bash
# Runs the ordinary tests on a core built with a sanitizer: asan or ubsan.
#
#   tests/sanitize.sh PYTHON VARIANT
set -euo pipefail
python=$(realpath -s "$1") variant=$2
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # tests become other users, who look for the launcher there
# The interpreter itself leaks at exit by design, and its own memory is not ours to test. The
# children of a test are real programs: they must not be started under the sanitizer's library.
export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1
quick=(
	test_run.py test_process.py test_options.py test_descriptors.py test_identity.py test_report.py
	test_audit.py test_inputs.py test_bounds.py test_fallbacks.py test_ends.py test_interrupts.py
	test_ledger_faults.py test_ledger_crowds.py test_ledger_segments.py test_ledger_forms.py test_ledger_slots.py
)
# The library of the address sanitizer stands before libc, and that turns the credential lock off.
lock=(test_catch_matrix.py test_seal.py test_lock_faces.py)
"$python" tests/build_variant.py "$variant" "$work/$variant"
echo "ordinary tests under $variant"
preload=
files=("${quick[@]}" "${lock[@]}")
[[ $variant == asan ]] && preload=$(gcc -print-file-name=libasan.so) && files=("${quick[@]}")
LD_PRELOAD=$preload SAFESPAWN_TEST_CORE="$work/$variant" "$python" -m pytest -q -m "not slow" \
	--basetemp="$work/temporary" "${files[@]/#/tests/}"
