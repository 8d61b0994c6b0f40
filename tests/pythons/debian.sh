#!/bin/bash
# Debian's newest interpreters and their debug builds, each in an environment of its own (sid.sh says what it needs).
#
#   tests/pythons/debian.sh [OPTION OF try_each.py]...
set -euo pipefail
source "$(dirname "$0")/sid.sh"

# Debian has cffi and python-prctl for its default versions only: for the others they come from PyPI, as sources.
"${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary :all: --dest "$place/wheels" \
	'cffi>=1.17' 'python-prctl>=1.8.1' || echo "no sources of cffi and python-prctl: versions without Debian's are not built"
in_sid python3 /tree/tests/pythons/try_each.py --debian "$@"
