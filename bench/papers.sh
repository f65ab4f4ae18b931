#!/bin/sh
# The papers' networks with random weights: what the search promises at batch 1, what the merged
# network measures, and that it is the same function. For every network and budget
#     train (a few steps) -> latency -> synthetic importance -> solve -> prune -> train (a few steps)
#     -> merge and verify -> bench
# by the verbs of layermerge alone; the table comes last, on stdout. What is in the work folder is not
# made again, so a run that was stopped is continued by the same command.
#   bench/papers.sh [--models A,B] [--budgets X,Y] [--input C,H,W] [--batch N] [--rounds N]
#                   [--threads N] [--train N] [--work DIR]
#
# Weights are random, but not as the builder draws them: with batch norms that change nothing and no
# biases, borders would be easy to get right and outputs could be constant. So every base network, and
# every pruned one as in earnest, takes a few small steps on built-in images (hence a head of 10
# classes): real statistics, biases that are not zero. "varies" says what verification is worth: how much
# outputs change from image to image, in the unit of max_rel (the largest output).
#
# The latency table is minutes old when the networks are measured: "predicted ms" is what it says at the pace of that
# measurement, which the base network tells.
#
# Importance is synthetic, from `inspect --segments` alone: exp(-0.01 * convs removed - 0.005 * nodes
# passed over, which are the activations removed). It ranks solutions, it claims no accuracy.
lm=${LAYERMERGE:-./layermerge}
models=resnet34,resnet50,vgg19_bn budgets=0.7,0.5 input=3,224,224 batch=1 rounds=15 threads=0 train=64 work=runs/papers

case " $* " in *" --help "*|*" -h "*) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
while [ $# -gt 1 ]; do
    case $1 in
        --models) models=$2 ;; --budgets) budgets=$2 ;; --input) input=$2 ;; --batch) batch=$2 ;;
        --rounds) rounds=$2 ;; --threads) threads=$2 ;; --train) train=$2 ;; --work) work=$2 ;;
        *) break ;;
    esac
    shift 2
done
[ $# = 0 ] || { echo "papers.sh: $1 is not a flag with a value (--help lists them)" >&2; exit 64; }

say() { echo "papers.sh: $*" >&2; }
# number KEY FILE [N]: the (N-th) value of a key in JSON.
number() { tr ',{}' '\n\n\n' < "$2" | sed -n "s/.*\"$1\": *\"\{0,1\}\([-+0-9.a-z]*\).*/\1/p" | sed -n "${3:-1}p"; }
# make FILE COMMAND...: unless FILE is there; what the command prints goes there, and only if it succeeds.
make() {
    [ -s "$1" ] && return
    out=$1; shift
    "$@" > "$out.tmp" || { status=$?; rm -f "$out.tmp"; say "failed with status $status: $*"; exit $status; }
    mv "$out.tmp" "$out"
}

# a_few_steps FILE [FLAG VALUE]...: of training, into FILE.
a_few_steps() {
    file=$1; shift
    "$lm" train "$@" --data "builtin:shapes,size=${input##*,},train=$train,val=10" --epochs 1 --batch 8 --lr 0.001 \
        --threads "$threads" --out "$file" --json
}
prune() { "$lm" merge --model "$1/base.safetensors" --solution "$2/solution.json" --pruned "$2/pruned.safetensors" --out "$2/merged.safetensors"; }
# An infeasible budget is an answer as well: the table says what is least.
solve() { "$lm" solve "$@" --json || [ $? = 1 ]; }
feasible() { grep -q '"feasible":true' "$1/solve.json"; }
importance() {
    awk 'function convs(list) { gsub(/[^0-9,]/, "", list); sub(/,$/, "", list); return list == "" ? 0 : split(list, item, ",") }
         NR == 1 { print $0 ",importance"; next }
         { split($0, cell, ","); match($0, /\(.*\)/)
           removed = cell[3] - cell[2] - convs(substr($0, RSTART, RLENGTH)); passed = cell[3] - cell[2] - 1
           printf "%s,%.12f\n", $0, exp(-0.01 * removed - 0.005 * passed) }' "$1"
}

row() { printf "| %-11s | %6s | %12s | %8s | %10s | %9s | %8s | %13s | %8s | %8s | %7s | %7s | %9s |\n" "$@"; }
work=${work%/}
mkdir -p "$work" || exit 74
for m in $(echo "$models" | tr , ' '); do
    dir=$work/$m
    mkdir -p "$dir" || exit 74
    make "$dir/train.json" a_few_steps "$dir/base.safetensors" --model "$m" --input "$input"
    make "$dir/base.json" "$lm" inspect "$dir/base.safetensors" --segments "$dir/segments.csv" --json
    make "$dir/latency.json" "$lm" latency --model "$dir/base.safetensors" --batch "$batch" --rounds "$rounds" \
        --threads "$threads" --out "$dir/time.csv" --json
    make "$dir/importance.csv" importance "$dir/segments.csv"
    for x in $(echo "$budgets" | tr , ' '); do
        at=$dir/$x
        mkdir -p "$at" || exit 74
        budget=$(awk -v ms="$(number base_ms "$dir/latency.json")" -v x="$x" 'BEGIN { printf "%.6f", ms * x }')
        make "$at/solve.json" solve --time "$dir/time.csv" --importance "$dir/importance.csv" --budget "$budget" \
            --fixed "$(number fixed_ms "$dir/latency.json")" --out "$at/solution.json"
        feasible "$at" || continue
        make "$at/prune.json" prune "$dir" "$at"
        make "$at/tune.json" a_few_steps "$at/tuned.safetensors" --model "$at/pruned.safetensors"
        make "$at/verify.json" "$lm" merge --model "$dir/base.safetensors" --solution "$at/solution.json" \
            --from-pruned "$at/tuned.safetensors" --out "$at/merged.safetensors"
        make "$at/merged.json" "$lm" inspect "$at/merged.safetensors" --json
    done
    # All of a network's measurements in one interleaved run.
    files=$(for x in $(echo "$budgets" | tr , ' '); do feasible "$dir/$x" && echo "$dir/$x/merged.safetensors"; done)
    make "$dir/bench-$budgets.json" "$lm" bench "$dir/base.safetensors" $files --batch "$batch" --rounds "$rounds" --threads "$threads" --json
done

row network budget 'predicted ms' 'base ms' 'merged ms' 'predicted' measured 'pred./meas.' max_abs max_rel varies 'top-1' convs
row '---' '---' '---' '---' '---' '---' '---' '---' '---' '---' '---' '---' '---'
for m in $(echo "$models" | tr , ' '); do
    dir=$work/$m n=1
    for x in $(echo "$budgets" | tr , ' '); do
        at=$dir/$x
        if ! feasible "$at"; then
            row "$m" "$x" "least $(number least_ms "$at/solve.json" | cut -c1-6)" - - - - - - - - - -
            continue
        fi
        n=$((n + 1))
        base=$(number median_ms "$dir/bench-$budgets.json") merged=$(number median_ms "$dir/bench-$budgets.json" $n)
        set -- $(awk -v p="$(number time_ms "$at/solve.json")" -v whole="$(number base_ms "$dir/latency.json")" -v b="$base" -v m="$merged" \
            -v abs="$(number max_abs "$at/verify.json")" -v rel="$(number max_rel "$at/verify.json")" \
            -v varies="$(number variation "$at/verify.json")" -v top="$(number top1_agreement "$at/verify.json")" \
            'BEGIN { pace = b / whole
                     printf "%.3f %.3f %.3f %.2f %.2f %.3f %.1e %.1e %.1e %.0f%%", pace * p, b, m, whole / p, b / m, pace * p / m, abs, rel, varies, 100 * top }')
        row "$m" "$x" "$@" "$(number convs "$dir/base.json") -> $(number convs "$at/merged.json")"
    done
done
