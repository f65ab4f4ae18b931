#!/bin/sh
# Our networks beside PyTorch and ONNX Runtime, in one run on the same cores. Sets up what is missing
# (with root: Debian's python3-torch and python3-onnx; from npm: onnxruntime-node, into build/peers),
# exports the networks, builds bench_net, measures and prints a table. A peer that cannot be had is
# named and left out.
#   bench/peers/run.sh [--models A,B] [--infer] [--train] [--quick] [--rounds N] [--seconds S]
#                      [--cores 0,1] [--wait S]
cd "$(dirname "$0")/../.." || exit 1
B=${B:-build/release} W=build/peers
PYTHON=${PYTHON:-/usr/bin/python3}            # Debian's: where its packages are found
export PYTHONDONTWRITEBYTECODE=1 npm_config_update_notifier=false
export NODE_PATH="$PWD/$W/node_modules${NODE_PATH:+:$NODE_PATH}"
mkdir -p $W || exit 1

say() { echo "run.sh: $*" >&2; }
has_torch() { "$PYTHON" -c 'import torch' 2>/dev/null; }
has_ort() { command -v node >/dev/null && node -e "require('onnxruntime-node')" 2>/dev/null; }
apt() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; } >>$W/apt.log 2>&1
}

case " $* " in *" --help "*|*" -h "*) sed -n '2,7s/^# \{0,1\}//p' bench/peers/run.sh; exit 0 ;; esac

[ -x "$PYTHON" ] || PYTHON=python3
has_torch || { say "installing PyTorch"; apt python3-torch python3-onnx; }
has_torch || say "no PyTorch for $PYTHON (python3-torch in Debian; $W/apt.log): left out, and without it no ONNX files"
has_ort || {
    say "installing ONNX Runtime"
    command -v npm >/dev/null || apt nodejs npm
    npm install --prefix $W --no-save --no-audit --no-fund --ignore-scripts onnxruntime-node >$W/npm.log 2>&1
}
has_ort || say "no ONNX Runtime (onnxruntime-node from npm; $W/npm.log): left out"
command -v "$PYTHON" >/dev/null || { say "Python is needed to compare"; exit 1; }

make --no-print-directory B="$B" "$B/bench/bench_net" >$W/make.log 2>&1 ||
    { tail -n 20 $W/make.log >&2; say "bench_net does not build"; exit 1; }

peers=ours
has_torch && peers=$peers,torch
has_ort && peers=$peers,ort
exec "$PYTHON" bench/peers/compare.py --ours "$B/bench/bench_net" --work $W --peers $peers "$@"
