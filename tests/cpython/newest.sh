#!/bin/bash
# The comparison on the newest Python, Debian's, which comes with its tests (tests/pythons/sid.sh says what it needs).
#
#   tests/cpython/newest.sh [OPTION OF compare.py]...
set -euo pipefail
source "$(dirname "$0")/../pythons/sid.sh"
in_sid python3.14 /tree/tests/cpython/compare.py --version 3.14 "$@"
