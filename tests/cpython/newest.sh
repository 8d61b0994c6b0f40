#!/bin/bash
# The comparison on the newest Python, Debian's, which comes with its tests: in a directory made by debootstrap (1 GB,
# made once), where this tree is mounted for the time of the run. Needs root and Debian's packages; says so if it
# has not got them, and is no failure then.
#
#   tests/cpython/newest.sh [OPTION OF compare.py]...
set -euo pipefail
version=3.14
tree=$(realpath "$(dirname "$0")/../..")
place=${XDG_CACHE_HOME:-$HOME/.cache}/safespawn-clients/debian-$version

skip() {
	echo "NOT RUN: Python $version: $1"
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
	with=python$version,libpython$version-testsuite,python3-cffi-backend,python3-prctl
	debootstrap --variant=minbase --include=$with sid "$place" "$mirror" > "$place.log" 2>&1 \
		|| { tail -n 5 "$place.log"; skip "debootstrap failed, see $place.log"; }
	touch "$place/ready"
fi

# Of this run alone: the mounts go with its namespace.
exec unshare --mount bash -euc '
	mkdir -p "$1/tree"
	mount --bind "$0" "$1/tree"
	mount -t proc proc "$1/proc"
	mount -t tmpfs tmpfs "$1/tmp"
	mount --rbind /sys "$1/sys"
	mount --rbind /dev "$1/dev"
	where=$1 version=$2
	shift 2
	exec chroot "$where" "python$version" /tree/tests/cpython/compare.py --version "$version" "$@"
' "$tree" "$place" $version "$@"
