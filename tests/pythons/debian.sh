#!/bin/bash
# Debian's newest interpreters and their debug builds, in a directory made by debootstrap (1 GB, made once), where this
# tree is mounted for the time of the run. Needs root and Debian's packages; says so if it has not got them, and is no
# failure then.
#
#   tests/pythons/debian.sh [OPTION OF try_each.py]...
set -euo pipefail
versions="3.13 3.14 3.15"
tree=$(realpath "$(dirname "$0")/../..")
place=${XDG_CACHE_HOME:-$HOME/.cache}/safespawn-clients/debian-sid

skip() {
	echo "NOT RUN: Debian's newest interpreters: $1"
	exit 0
}

[[ $EUID -eq 0 ]] || skip "debootstrap needs root"
command -v apt-get > /dev/null || skip "no apt-get here"
if [[ ! -e $place/ready ]]; then
	mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | head -n 1)
	[[ -n $mirror ]] || skip "no mirror of Debian is set up"
	command -v debootstrap > /dev/null || apt-get install -y -qq --no-install-recommends debootstrap > /dev/null
	rm -rf "$place"
	mkdir -p "$place"
	with=gcc,libc6-dev,libcap-dev,libffi-dev,python3-cffi,python3-prctl,python3-pytest,python3-hypothesis,python3-setuptools,python3-wheel
	for version in $versions; do
		with+=,python$version-dbg,python$version-dev,python$version-venv
	done
	debootstrap --variant=minbase --include=$with sid "$place" "$mirror" > "$place.log" 2>&1 \
		|| { tail -n 5 "$place.log"; skip "debootstrap failed, see $place.log"; }
	touch "$place/ready"
fi

# Debian has cffi and python-prctl for its default versions only: for the others they come from PyPI, as sources.
"${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary :all: --dest "$place/wheels" \
	'cffi>=1.17' 'python-prctl>=1.8.1' || echo "no sources of cffi and python-prctl: versions without Debian's are not built"

# Of this run alone: the mounts go with its namespace.
exec unshare --mount bash -euc '
	mount --bind "$1" "$1" # a root that is a mount, as tests expect of theirs
	mkdir -p "$1/tree"
	mount --bind "$0" "$1/tree"
	mount -t proc proc "$1/proc"
	mount -t tmpfs tmpfs "$1/tmp"
	mount --rbind /sys "$1/sys"
	mount --rbind /dev "$1/dev"
	where=$1
	shift
	exec chroot "$where" python3 /tree/tests/pythons/try_each.py --debian "$@"
' "$tree" "$place" "$@"
