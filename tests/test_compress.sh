#!/bin/bash
# The whole path from the outside, on built-in images: killed and continued, checked and redone by its
# own verbs, and refused when the command changes.
. tests/check.sh
number() { sed -n "s/.*\"$1\": *\([-0-9.e]*\).*/\1/p" "$2" | head -n 1; }
below() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && a <= b) }'; }

run="$dir/run" size=16
[ -z "$TEST_FEW" ] || size=8   # a quarter of the pixels: the same stages
shapes=builtin:shapes,train=400,val=200,size=$size
compress() {
    $exec "$lm" compress --model resnet20 --data $shapes --speedup 1.02 --run "$run" --batch 8 --rounds 3 \
        --train-epochs 1 --train-batch 32 --importance-epochs 0.5 --train-images 64 --score-images 64 --epochs 1 --threads 2 "$@"
}

# Killed a few times at moments that spread over the stages, then left to finish. SEED=N repeats them.
seed=${SEED:-$(date +%s)}
echo "kill -9 at six moments of seed $seed"
for seconds in $(awk -v seed="$seed" 'BEGIN { srand(seed); for (i = 0; i < 6; i++) print 0.05 + 0.6 * i * rand() }'); do exec=exec; compress --json > /dev/null 2>&1 & pid=$!; exec=; sleep $seconds; kill -9 $pid 2> /dev/null; wait $pid 2> /dev/null; done
check "compress continues after it was killed" exits 0 compress --json
cp "$dir/stdout" "$dir/first.json"
check "merged equals pruned" below "$(number max_rel "$run/verify.json")" 1e-4
check "no top-1 answer changed" grep -q '"top1_agreement": *1[,}]' "$run/verify.json"
check "the report names three networks" [ "$(grep -c '"name"' "$run/report.json")" = 3 ]
for f in base pruned tuned merged; do check "$f.safetensors can be inspected" exits 0 "$lm" inspect "$run/$f.safetensors" --json; done
for f in config.json env.json metrics.csv log.txt checkpoints/last.safetensors chain.txt time.csv importance/importance.csv normalized_importance.csv front.csv solution.json report.svg report.html; do check "$f is there" test -s "$run/$f"; done

before=$(cat "$run"/*.safetensors "$run/solution.json" "$run/normalized_importance.csv" | sha256sum)
check "a finished run answers again" exits 0 compress --json
check "and changes none of its networks or tables" [ "$before" = "$(cat "$run"/*.safetensors "$run/solution.json" "$run/normalized_importance.csv" | sha256sum)" ]
has() { grep -q "^ *\"$1\": *$2,\?$" "$run/config.json"; }
for row in 'classes 10' "input \"3,$size,$size\"" "size \"$size,$size\"" 'width 1'; do check "config.json has ${row% *} as it turned out" has $row; done
check "metrics.csv has one header" [ "$(grep -c '^step,epoch' "$run/metrics.csv")" = 1 ]
tune_anew() { rm -rf "$1" && cp -r "$run" "$1" && rm -r "$1"/metrics.csv "$1"/checkpoints "$1"/tuned.safetensors; }
stopped_in_tuning() {
    local run=$dir/stopped
    compress --json & local pid=$!
    until [ -d "$run/checkpoints" ] || ! kill -0 $pid 2> /dev/null; do sleep 0.01; done
    sleep 0.3                  # amid its steps
    kill -TERM $pid
    wait $pid
}
tune_anew "$dir/stopped"
exec=exec
check "a run stops in its fine-tuning" exits 75 stopped_in_tuning
exec=
check "continues" eval 'run="$dir/stopped" compress'
check "to the same bits" cmp "$dir/stopped/tuned.safetensors" "$run/tuned.safetensors"
check "and one header" [ "$(grep -c '^step,epoch' "$dir/stopped/metrics.csv")" = 1 ]
check "a network of another run" cp "$run/base.safetensors" "$dir/stopped/tuned.safetensors"
check "is not taken for the tuned one" exits 65 eval 'run="$dir/stopped" compress'
check "and named" says "$dir/stopped/tuned.safetensors"

# The page is made from what is there.
page() { "$lm" report "$@"; }
cp "$run/report.svg" "$dir/report.svg"
rm "$run/report.svg" "$run/report.html"
check "the page is made again" exits 0 page "$run"
check "with its figure" cmp "$dir/report.svg" "$run/report.svg"
check "in it" grep -q 'every optimal network' "$run/report.html"
cp "$run/report.json" "$dir/report.json"
sed 's/networks/netwoks/' "$dir/report.json" > "$run/report.json"
check "other numbers are not taken" exits 65 page "$run"
check "and their file is named" says "$run/report.json: there is no list"
rm "$run/report.json"
check "without the numbers it is not" exits 66 page "$run"
check "and the way to them is named" says "report.json is not there: run the same compress command again"
check "which makes them" exits 0 compress
check "and the page" exits 0 page "$run"
"$lm" train --model resnet20 --data builtin:shapes,train=64,val=32,size=16 --epochs 2 --batch-size 32 --run "$dir/trained" --quiet > /dev/null 2>&1
check "a train run has a page too" exits 0 page "$dir/trained" --json
check "with its last and its best epoch" eval 'prints "\"last\"" && prints "\"best\""'
check "and a curve" grep -q 'Top-1 while training' "$dir/trained/report.html"

check "another command in the same folder is refused" exits 78 compress --epochs 2
check "an impossible budget is a negative answer" exits 1 "$lm" compress --model "$run/base.safetensors" \
    --data $shapes --speedup 900 --run "$dir/impossible" --importance bn --batch 8 --rounds 3 --json
check "that names the least feasible latency" says "least feasible"
check "in JSON too" prints '^{"feasible":false,"budget_ms":[0-9.e-]*,"least_ms":[0-9.e-]*}$'
for row in 'train-images 40' 'score-images 40' 'width null'; do run="$dir/impossible" check "its config.json has ${row% *} as it turned out" has $row; done

# The verbs do the same from the files.
"$lm" eval --model "$run/merged.safetensors" --data $shapes --json > "$dir/eval.json" 2> /dev/null
merged=$(sed -n '/"merged"/,$ s/.*"top1": *\([0-9.]*\).*/\1/p' "$run/report.json" | head -n 1)
check "eval of the merged file agrees with the report" [ "$(number top1 "$dir/eval.json")" = "$merged" ]
check "solve answers several budgets" exits 0 "$lm" solve --time "$run/time.csv" --importance "$run/normalized_importance.csv" \
    --speedup 1,1.1 --out "$dir/solutions/" --front "$dir/front.csv" --json
check "with a front of its own" grep -q '^time_ms,importance,segments$' "$dir/front.csv"
check "as long as the run's" [ "$(wc -l < "$dir/front.csv")" = "$(wc -l < "$run/front.csv")" ]
check "merge repeats the merge" exits 0 "$lm" merge --model "$run/base.safetensors" --solution "$run/solution.json" \
    --from-pruned "$run/tuned.safetensors" --out "$dir/merged.safetensors"
check "bit for bit" cmp "$dir/merged.safetensors" "$run/merged.safetensors"
check "merge without fine-tuning writes both networks" exits 0 "$lm" merge --model "$run/base.safetensors" --solution "$run/solution.json" \
    --pruned "$dir/p.safetensors" --out "$dir/m.safetensors"
check "the pruned one is the run's" cmp "$dir/p.safetensors" "$run/pruned.safetensors"

# Importance in two shares, then collected; a torn part is made again.
share() { "$lm" importance --model "$run/base.safetensors" --data $shapes --out "$dir/imp" --method bn \
    --train-images 64 --score-images 64 --batch 32 "$@"; }
check "one share of the importance parts" exits 0 share --shard 0/2
check "the other share" exits 0 share --shard 1/2
check "makes the whole table" test -s "$dir/imp/normalized_importance.csv"
cp "$dir/imp/normalized_importance.csv" "$dir/whole.csv"
head -c 40 "$dir/imp/importance3.csv" > "$dir/torn" && mv "$dir/torn" "$dir/imp/importance3.csv"
check "a torn part is made again" exits 0 share
check "with the same numbers" cmp "$dir/whole.csv" "$dir/imp/normalized_importance.csv"
check "parts of other settings are refused" exits 78 share --seed 7
check "and named" says "importance0.csv"
# Statistics of a short fine-tuning are those of the network that is scored: after steps of no length,
# a score is what estimating them alone gives.
check "a fine-tuning of no length scores" exits 0 "$lm" importance --model "$run/base.safetensors" --data $shapes \
    --out "$dir/still" --method finetune --lr 0 --train-images 64 --score-images 64 --batch 32 --keep-single ${TEST_FEW:+--to 16}
losses() { for f in "$1"/importance[0-9]*.csv; do sed '1d; s/"([^"]*)"/-/' "$f"; done | awk -F, '$3 - $2 > 1 { print $2, $3, $4, $10 }' | sort; }
losses "$dir/imp" > "$dir/bn.txt"
losses "$dir/still" > "$dir/still.txt"
check "entries of several layers" [ "$(wc -l < "$dir/still.txt")" -gt 5 ]
check "like estimated statistics" eval '! grep -Fxvf "$dir/bn.txt" "$dir/still.txt"'
check "missing flags are named" exits 64 "$lm" compress --model resnet20 --data builtin:shapes
check "missing models too" exits 66 "$lm" compress --model nothing.safetensors --data builtin:shapes --speedup 2 --run "$dir/none"

echo "$0: $passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
