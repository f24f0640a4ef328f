# shellcheck shell=bash
# What the scripts beside this one share; they source it.

cache=${BUILDKIT_LB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/buildkit-lb}
# The path of an ordinary user may lack these directories.
PATH=$PATH:/usr/sbin:/sbin

# Programs, and one module, that a Debian may lack, as PROGRAM:PACKAGE: those that the tests and the demo start, and
# those that only benchmarks and checks start.
packages_of_tests=(busybox:busybox-static chromedriver:chromium-driver chromium:chromium curl:curl
	docker-registry:docker-registry etcd:etcd-server fish:fish git:git htpasswd:apache2-utils ip:iproute2 kill:procps mandoc:mandoc npm:npm openssl:openssl pgrep:procps
	pip3:python3-pip prometheus:prometheus promtool:prometheus runc:runc shellcheck:shellcheck ssh-keygen:openssh-client
	zsh:zsh)
packages_of_checks=(haproxy:haproxy nginx:nginx
	/usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream)

# Programs that the Go modules here are compiled into.
# shellcheck disable=SC2034 # for the scripts that source this one
built=(buildkitd buildctl buildx)
# shellcheck disable=SC2034
built_for_kubernetes=(kube-apiserver kube-controller-manager kubectl helm)
# shellcheck disable=SC2034
built_for_keda=(keda-client)
# shellcheck disable=SC2034
built_for_lint=(actionlint kube-score)
# shellcheck disable=SC2034
built_for_release=(cosign)

# Programs of packages that every Debian has.
# shellcheck disable=SC2034
on_every_debian=(bash chroot cmp cp env find mkfifo mknod mount nsenter script setpriv sha256sum tar taskset timeout umount unshare)

fail() {
	echo "$*" >&2
	exit 1
}

# one_of WORD LIST... : whether the word is in the list
one_of() {
	local word=$1
	shift
	[[ " $* " == *" $word "* ]]
}

# on_path PROGRAM : prints the program's path.
on_path() { type -P "$1" || { [[ $1 == /* && -e $1 ]] && echo "$1"; }; }

# debian PROGRAM... : installs the packages of the programs that are missing. A program without a known package is a
# failure even if this machine has the program, because another machine lacks it.
debian() {
	local program entry package packages=()
	for program in "$@"; do
		package=
		for entry in "${packages_of_tests[@]}" "${packages_of_checks[@]}"; do
			[[ ${entry%%:*} != "$program" ]] || package=${entry#*:}
		done
		[[ -n $package ]] || fail "tests/tools/common.bash names no package for $program"
		on_path "$program" >/dev/null || packages+=("$package")
	done
	((${#packages[@]})) || return 0
	((EUID == 0)) || fail "install as root: apt-get install ${packages[*]}"
	echo "installing Debian packages: ${packages[*]}" >&2
	mkdir -p "$cache"
	(
		# One caller installs and the others wait. A service that a package starts must not hold the lock.
		flock 9
		get() { DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >&2 9>&-; }
		install() { get install -y --no-install-recommends "${packages[@]}"; }
		# A fresh image has no package lists and an old one has outdated ones, so they are fetched only when needed.
		install 2>/dev/null || { get update && install; }
	) 9>"$cache/debian.lock"
}

# version_flag MODULE DEPENDENCY : prints a -X flag with the version of DEPENDENCY in the go.mod of directory MODULE,
# for programs that print it.
version_flag() {
	local version
	version=$(awk -v module="$2" '$1 != "tool" { for (i = 1; i < NF; i++) if ($i == module) print $(i + 1) }' "$1/go.mod")
	[[ -n $version ]] || fail "$1/go.mod has no $2"
	echo "-X $2/version.Version=$version"
}

# go_tools MODULE BIN FLAGS PROGRAM... : builds the tools of the Go module in directory MODULE into BIN, with FLAGS
# for the linker, unless BIN has all programs.
go_tools() {
	local module=$1 bin=$2 flags=$3 program
	shift 3
	mkdir -p "$bin"
	# One caller builds and the others wait.
	(
		flock 9
		for program in "$@"; do
			[[ -x $bin/$program ]] || break
			program=
		done
		[[ -n $program ]] || exit 0
		echo "building $*, once" >&2
		cd "$module"
		GOFLAGS=-buildvcs=false GOBIN=$bin go install -ldflags "-s -w $flags" tool >&2
	) 9>"$bin/../lock"
}

# key FILE... : prints a short name for the contents of the files.
key() {
	local sum
	sum=$(cat "$@" | sha256sum)
	echo "${sum:0:16}"
}
