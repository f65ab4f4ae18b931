#!/bin/sh
# Single convolutions beside oneDNN's, in one run on the same cores. Installs Debian's libdnnl-dev where it
# is missing (with root), builds both programs, measures and prints a table.
#   bench/peers/layers.sh [--only TEXT] [--batch 1,32] [--threads 1,2] [--rounds N] [--wait S]
cd "$(dirname "$0")/../.." || exit 1
B=${B:-build/release} W=build/peers
PYTHON=${PYTHON:-/usr/bin/python3}
export PYTHONDONTWRITEBYTECODE=1
mkdir -p $W || exit 1

say() { echo "layers.sh: $*" >&2; }
has_dnnl() { echo '#include <dnnl.h>' | ${CC:-cc} -E - >/dev/null 2>&1; }

case " $* " in *" --help "*|*" -h "*) sed -n '2,4s/^# \{0,1\}//p' bench/peers/layers.sh; exit 0 ;; esac

[ -x "$PYTHON" ] || PYTHON=python3
has_dnnl || {
    say "installing oneDNN"
    [ "$(id -u)" = 0 ] && { apt-get update -q &&
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends libdnnl-dev; } >>$W/apt.log 2>&1
}
has_dnnl || { say "oneDNN is needed to compare (libdnnl-dev in Debian; $W/apt.log)"; exit 1; }
{ make --no-print-directory B="$B" "$B/bench/bench_conv" &&
    ${CC:-cc} -O2 -fopenmp bench/peers/dnnl_layers.c -ldnnl -o $W/dnnl_layers; } >$W/make.log 2>&1 ||
    { tail -n 20 $W/make.log >&2; say "a program does not build"; exit 1; }
exec "$PYTHON" bench/peers/layers.py --ours "$B/bench/bench_conv" --dnnl $W/dnnl_layers "$@"
