# shellcheck shell=bash
# What the install scripts share; they source it.

cache=${BUILDKIT_LB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/buildkit-lb}

# debian_packages PROGRAM:PACKAGE... : installs the packages whose programs are missing.
debian_packages() {
	local entry missing=()
	for entry in "$@"; do
		command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
	done
	((${#missing[@]})) || return 0
	echo "installing Debian packages: ${missing[*]}" >&2
	apt-get update -qq >&2
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		"${missing[@]}" >&2
}

# go_tools MODULE BIN PROGRAM... : builds the tools of the Go module in directory MODULE into BIN,
# unless all programs are there.
go_tools() {
	local module=$1 bin=$2 program
	shift 2
	mkdir -p "$bin"
	# One caller builds, others wait for it.
	(
		flock 9
		for program in "$@"; do
			[[ -x $bin/$program ]] || break
			program=
		done
		[[ -n $program ]] || exit 0
		echo "building $*, once" >&2
		cd "$module"
		GOFLAGS=-buildvcs=false GOBIN=$bin go install -ldflags "-s -w" tool >&2
	) 9>"$bin/../lock"
}

# key FILE... : a short name for what the files hold.
key() {
	local sum
	sum=$(cat "$@" | sha256sum)
	echo "${sum:0:16}"
}
