#!/usr/bin/env bash
# The tests, labs included, on other Linux kernels: ci/kernels.sh [NAME…], all of them by default. By hand, on Debian,
# twenty minutes: it is no part of .ci/run. It installs user-mode-linux and qemu; the kernels are packages of the
# machine's Debian mirror, unpacked and never installed, in ${XDG_CACHE_HOME:-~/.cache}/mcast-kernels. Remove that for
# newer ones. $RUN selects tests, $TIMEOUT is for each package, -test.timeout.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# NAME ARCH SUITE PACKAGE: PACKAGE depends on the newest kernel of that suite.
kernels() {
	cat <<-'END'
		uml amd64 - user-mode-linux
		x86_64-5.10 amd64 bullseye linux-image-cloud-amd64
		x86_64-6.1 amd64 bookworm linux-image-cloud-amd64
		x86_64-6.12 amd64 trixie linux-image-cloud-amd64
		s390x s390x bookworm linux-image-s390x
	END
}
wanted="veth bridge dummy" # modules
packages=". internal/cmsg internal/netif internal/kerneltest internal/netlab"
tools=bookworm # whose commands the labs use

cache=${XDG_CACHE_HOME:-$HOME/.cache}/mcast-kernels
mkdir -p "$cache"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PATH=$PATH:/usr/sbin:/sbin

install() {
	local want='' sudo='' c
	for c in linux.uml:user-mode-linux qemu-system-x86_64:qemu-system-x86 qemu-system-s390x:qemu-system-misc \
		cpio:cpio depmod:kmod xz:xz-utils; do
		command -v "${c%:*}" >/dev/null || want="$want ${c#*:}"
	done
	[ -n "$want" ] || return 0
	command -v apt-get >/dev/null || die "only Debian has what this needs:$want"
	[ "$(id -u)" = 0 ] || sudo="sudo"
	say "installing$want"
	# shellcheck disable=SC2086 # lists of words
	$sudo sh -c 'apt-get update && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"' sh $want >"$tmp/apt" 2>&1 </dev/null || {
		tail -n 20 "$tmp/apt" >&2
		die "cannot install$want"
	}
}

# apt_for ARCH SUITE: from now on, apt-get and apt-cache are about that, with nothing installed. Nothing of it touches
# the machine's own packages; where they come from, and how one gets there, is the machine's configuration.
apt_for() {
	local dir=$tmp/apt-$1-$2 mirror key keys=''
	export APT_CONFIG=$dir/conf
	[ ! -e "$APT_CONFIG" ] || return 0
	# shellcheck disable=SC2016 # apt expands this
	mirror=$(env -u APT_CONFIG apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' |
		sed -n 's/ Debian$//p' | head -n 1)
	[ -n "$mirror" ] || die "apt has no Debian mirror"
	for key in /usr/share/keyrings/debian-archive-keyring.[gp]*; do
		[ ! -f "$key" ] || keys="signed-by=$key"
	done
	mkdir -p "$dir/lists/partial" "$dir/archives/partial"
	: >"$dir/status"
	echo "deb [target=Packages $keys] $mirror $2 main" >"$dir/sources"
	cat >"$APT_CONFIG" <<-END
		APT::Architecture "$1";
		#clear APT::Architectures;
		APT::Architectures { "$1"; };
		APT::Sandbox::User "root";
		APT::Install-Recommends "false";
		Acquire::Languages "none";
		Dir::Etc::sourcelist "$dir/sources";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferences "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
		Dir::State "$dir";
		Dir::State::lists "$dir/lists";
		Dir::State::status "$dir/status";
		Dir::Cache "$dir";
		Dir::Cache::archives "$dir/archives";
		Dir::Log "$dir";
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
		#clear DPkg::Post-Invoke;
	END
	apt-get -q update >"$dir/log" 2>&1 || {
		cat "$dir/log" >&2
		die "apt-get update: $2, $1"
	}
}

unpack() { # FOLDER DEB...
	local deb dir=$1
	mkdir -p "$dir"
	for deb in "${@:2}"; do dpkg-deb -x "$deb" "$dir"; done
}

# Each of these leaves a folder in the cache, whole or not at all.

# get_tools ARCH: the commands that labs run, with all libraries, as they are in a system.
get_tools() {
	local to=$cache/tools-$1 root=$tmp/tools-$1 bin lib
	[ ! -d "$to" ] || return 0
	say "$1: fetching iproute2 and coreutils"
	apt_for "$1" "$tools"
	apt-get -q install -y --download-only iproute2 coreutils >"$tmp/log" 2>&1 || {
		cat "$tmp/log" >&2
		die "cannot fetch iproute2 and coreutils"
	}
	unpack "$root.all" "$tmp/apt-$1-$tools"/archives/*.deb
	mkdir -p "$root/bin" "$root/lib"
	for bin in ip bridge sleep; do
		find "$root.all" -path "*bin/$bin" -type f -exec cp {} "$root/bin" \;
		[ -x "$root/bin/$bin" ] || die "no $bin in iproute2 and coreutils"
	done
	# The libraries all go to one folder; their loader is looked for where the ABI says.
	find "$root.all" -path '*/lib/*-linux-gnu/*.so*' -not -path '*-linux-gnu/*/*' -exec cp -P {} "$root/lib" \;
	for lib in "$root.all"/lib64/ld*; do
		[ -e "$lib" ] || [ -L "$lib" ] || continue
		mkdir -p "$root/lib64"
		ln -s "/lib/${lib##*/}" "$root/lib64"
	done
	mv "$root" "$to"
}

# get_kernel NAME ARCH SUITE PACKAGE: the kernel, and the modules that are wanted, with an order to load them in.
get_kernel() {
	local to=$cache/$1 new=$tmp/kernel-$1 dir=$tmp/unpacked-$1 package version m file
	[ ! -d "$to" ] || return 0
	mkdir -p "$new/modules" "$dir"
	if [ "$3" = - ]; then
		cp "$(command -v linux.uml)" "$new/kernel"
		mkdir -p "$dir/lib"
		cp -r /usr/lib/uml/modules "$dir/lib/modules"
	else
		apt_for "$2" "$3"
		package=$(apt-cache depends "$4" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
		[ -n "$package" ] || die "$3 has no $4 for $2"
		say "$1: fetching $package"
		(cd "$dir" && apt-get -q download "$package" >"$tmp/log" 2>&1) || {
			cat "$tmp/log" >&2
			die "cannot fetch $package"
		}
		unpack "$dir" "$dir"/*.deb
		cp "$dir"/boot/vmlinuz-* "$new/kernel"
		[ -d "$dir/lib/modules" ] || ln -s usr/lib "$dir/lib"
	fi
	version=$(ls "$dir/lib/modules")
	depmod -b "$dir" "$version"
	for m in $wanted; do
		# modules.dep lists what a module needs backwards.
		sed -n "s,^\([^:]*/$m\.ko[^:]*\):\(.*\),\2 \1,p" "$dir/lib/modules/$version/modules.dep" |
			awk '{ for (i = NF - 1; i > 0; i--) print $i; print $NF }'
	done | awk '!seen[$0]++' | while read -r file; do
		m=${file##*/}
		case $m in
		*.xz) xz -dc "$dir/lib/modules/$version/$file" >"$new/modules/${m%.xz}" ;;
		*.ko) cp "$dir/lib/modules/$version/$file" "$new/modules/$m" ;;
		*) die "$file: not compressed with xz" ;;
		esac
		echo "${m%.xz}" >>"$new/modules/order"
	done
	rm -rf "$to"
	mv "$new" "$to"
}

# build ARCH: the tests and the init for it.
build() {
	local to=$tmp/build-$1 p name
	[ ! -d "$to" ] || return 0
	say "$1: compiling"
	mkdir -p "$to/tests"
	export CGO_ENABLED=0 GOOS=linux GOARCH=$1
	go build -trimpath -ldflags=-s -o "$to/init" ./ci/kernels
	for p in $packages; do
		name=${p##*/}
		[ "$p" != . ] || name=mcast
		go test -c -trimpath -o "$to/tests/$name/test" "./$p"
		[ ! -d "$p/testdata" ] || cp -r "$p/testdata" "$to/tests/$name/"
	done
	unset CGO_ENABLED GOOS GOARCH
}

# boot NAME ARCH: what the machine's console shows.
boot() {
	local kernel=$cache/$1/kernel initrd=$tmp/$1.initrd
	local args="MCAST_LAB=require TIMEOUT=${TIMEOUT:-20m} RUN=${RUN-}"
	local common="-m 1536 -smp 2 -nodefaults -nographic -no-reboot -serial stdio"
	mkdir "$tmp/root-$1"
	cp -r "$tmp/build-$2/." "$cache/tools-$2/." "$tmp/root-$1"
	cp -r "$cache/$1/modules" "$tmp/root-$1"
	(cd "$tmp/root-$1" && find . | cpio --quiet -o -H newc -R 0:0) >"$initrd"
	rm -r "$tmp/root-$1"
	# shellcheck disable=SC2086 # lists of words
	case $1 in
	uml) timeout -k 10 1h "$kernel" uml_dir="$tmp/uml/" mem=1536M initrd="$initrd" con=null con0=null,fd:1 quiet panic=-1 $args ;;
	x86_64-*) timeout -k 10 1h qemu-system-x86_64 -machine pc -accel tcg -cpu max,la57=off,cx16=off $common \
		-kernel "$kernel" -initrd "$initrd" -append "console=ttyS0 quiet panic=-1 $args" ;;
	s390x) timeout -k 10 1h qemu-system-s390x -accel tcg $common \
		-kernel "$kernel" -initrd "$initrd" -append "console=ttysclp0 quiet panic=-1 $args" ;;
	esac </dev/null 2>&1 | tr -d '\r'
}

install
names=${*:-$(kernels | cut -d ' ' -f 1)}
failed=0
for name in $names; do
	kernel=$(kernels | grep "^$name ") || die "no kernel $name: $(kernels | cut -d ' ' -f 1 | xargs)"
	read -r name arch suite package <<<"$kernel"
	get_tools "$arch"
	get_kernel "$name" "$arch" "$suite" "$package"
	unset APT_CONFIG
	build "$arch"
	from=$SECONDS
	boot "$name" "$arch" >"$tmp/$name.log" || true
	took=$((SECONDS - from))
	results=$(sed -n 's/^@@ //p' "$tmp/$name.log")
	count() { grep -c "^$1 " <<<"$results" || true; }
	# shellcheck disable=SC2086 # a list
	if [ "$(count ok)" -gt 0 ] && [ "$(count FAIL)" = 0 ] && [ "$(tail -n 1 <<<"$results")" = end ]; then
		word=ok
	else
		word=FAIL
		failed=1
		grep -v '^@@ ' "$tmp/$name.log" >&2 || true
	fi
	grep -E '^(ok|FAIL|skip|skipped:) ' <<<"$results" | sed "s/^/$name: /" >&2 || true
	echo "$word $name: kernel $(sed -n 's/^kernel //p' <<<"$results"), packages: $(count ok) passed," \
		"$(count FAIL) failed, $(count skip) skipped, $took s"
done
exit $failed
