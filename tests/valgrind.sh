#!/bin/bash
# Runs a part of the core under valgrind: what sanitizers do not see is memory that was never set.
#
#   tests/valgrind.sh
#
# The corpora of the fuzz targets (arguments and plans put together, plans and policies parsed, ledgers judged,
# lookups, whole spawns by fork), and threads that append to a ledger, with keys and without. Not a window on shared memory:
# valgrind has one set of thread state for one memory, and makes a fork of it.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# openat2(2) is unknown to it, so lookups inside a root go the way of older kernels; it says so, and that is all.
check=(valgrind --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite --suppressions=tests/valgrind.supp
	-v --log-file="$work/said.%p")
flags=(-std=gnu11 -g -O1 -Wno-unused-function '-DSS_LAUNCHER_SHA256=""' '-DSS_HELPER_SHA256=""')

# A child is a process of its own, whose log counts too: its exit code may be what the test wants of it.
look() {
	local code=0
	"${check[@]}" "$@" > "$work/out" < /dev/null || code=$?
	if ((code)) || grep -l "ERROR SUMMARY: [1-9]" "$work"/said.*; then
		grep -hv "unhandled\|You may be able\|Read the file\|Nevertheless\|valgrind.org" "$work"/said.*
		echo "valgrind: $1 failed with $code"
		exit 1
	fi
	cat "$work"/said.* >> "$work/all"
	rm "$work"/said.*
}

for target in native plan policy verify; do
	gcc "${flags[@]}" -DFUZZ_MAIN "fuzz/fuzz_$target.c" -o "$work/$target"
	look "$work/$target" fuzz/corpus/"$target"/*
done
gcc "${flags[@]}" bench/audit_cost.c -o "$work/ledger" -lpthread
mkdir "$work/where"
look "$work/ledger" "$work/where" 10

unused=$(comm -23 <(grep -B1 -E '^ +Memcheck:' tests/valgrind.supp | grep -v -e Memcheck -e '^--' | tr -d ' ' | sort) \
	<(sed -n 's/.*used_suppression: *[0-9]* \([^ ]*\) .*/\1/p' "$work/all" | sort -u))
if [[ $unused ]]; then
	echo "valgrind: suppressions that nothing needs any more: $unused"
	exit 1
fi
echo "valgrind: $(ls fuzz/corpus/*/* | wc -l) inputs and a ledger: no error, nothing lost," \
	"$(grep -c '^   Memcheck' tests/valgrind.supp) suppressions, all needed"
