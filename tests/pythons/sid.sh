# To be sourced. A directory with Debian's newest interpreters, their debug builds and their tests, made by debootstrap
# (1 GB, made once); programs run in it with this tree mounted, for the time of the run. Needs root and Debian's
# packages; says so if it has not got them, and ends the script, which is no failure then.
#
#   in_sid PROGRAM [ARG]...    run a program in it, in place of the script; the tree is /tree
versions="3.13 3.14 3.15"
tree=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
place=${XDG_CACHE_HOME:-$HOME/.cache}/safespawn-clients/debian-sid
with=gcc,libc6-dev,libcap-dev,libffi-dev,libpython3.14-testsuite
with+=,python3-cffi,python3-prctl,python3-pytest,python3-hypothesis,python3-setuptools,python3-wheel
for version in $versions; do
	with+=,python$version-dbg,python$version-dev,python$version-venv
done

skip() {
	echo "NOT RUN: Debian's newest interpreters: $1"
	exit 0
}

[[ $EUID -eq 0 ]] || skip "debootstrap needs root"
command -v apt-get > /dev/null || skip "no apt-get here"
if [[ $(cat "$place/ready" 2> /dev/null) != "$with" ]]; then
	mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | head -n 1)
	[[ -n $mirror ]] || skip "no mirror of Debian is set up"
	command -v debootstrap > /dev/null || apt-get install -y -qq --no-install-recommends debootstrap > /dev/null
	rm -rf "$place"
	mkdir -p "$place"
	debootstrap --variant=minbase --include="$with" sid "$place" "$mirror" > "$place.log" 2>&1 \
		|| { tail -n 5 "$place.log"; skip "debootstrap failed, see $place.log"; }
	echo "$with" > "$place/ready"
fi

# The mounts go with the namespace. A root that is a mount, as tests expect of theirs.
in_sid() {
	exec unshare --mount bash -euc '
		mount --bind "$1" "$1"
		mkdir -p "$1/tree"
		mount --bind "$0" "$1/tree"
		mount -t proc proc "$1/proc"
		mount -t tmpfs tmpfs "$1/tmp"
		mount --rbind /sys "$1/sys"
		mount --rbind /dev "$1/dev"
		where=$1
		shift
		exec chroot "$where" "$@"
	' "$tree" "$place" "$@"
}
