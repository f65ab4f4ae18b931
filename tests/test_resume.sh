#!/bin/sh
# Training that is killed at random moments and run again ends with the bytes of an unbroken run, for
# any number of threads. LAYERMERGE: the program.
lm=${LAYERMERGE:-build/release/layermerge}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0

check() {                                    # a sentence, then a command that must hold
    sentence=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $sentence"; fi
}

start() {                                    # name, threads: in the background, as $child
    "$lm" train --model resnet20 --data builtin:shapes,classes=3,size=16,train=160,val=32 --epochs 2 \
        --batch 32 --model-ema --model-ema-decay 0.9 --mixup 0.2 --checkpoint-every 0.001 --quiet --json --threads "$2" \
        --run "$dir/$1" --out "$dir/$1.safetensors" > "$dir/$1.json" 2> "$dir/$1.err" &
    child=$!
}

finish() {
    wait $child 2> /dev/null                 # the shell would tell of the kill
    status=$?
}

now() { date +%s.%N; }

begin=$(now)
start whole 1
finish
took=$(echo "$begin $(now)" | awk '{ print $2 - $1 }')
check "an unbroken run ends with 0" test $status = 0
start two 2
finish
check "two threads make the bytes of one" cmp -s "$dir/whole.safetensors" "$dir/two.safetensors"

seed=${SEED:-$(date +%s)}                    # of the moments; SEED=N repeats them
moments=20
[ -z "$TEST_FEW" ] || moments=6
echo "kill -9 at $moments moments of seed $seed, a run takes $took s"
moments=$(awk -v seed="$seed" -v took="$took" -v n=$moments 'BEGIN {
    srand(seed)
    for (i = 0; i < n; i++) print 0.01 + rand() * took
}')

ended() {                                    # a run that was killed before has come to its end
    check "a killed run ends with the bytes of an unbroken one" \
        cmp -s "$dir/whole.safetensors" "$dir/killed.safetensors"
    check "metrics.csv has one header and every epoch once" \
        test "$(cut -d, -f1 "$dir/killed/metrics.csv" | tr '\n' ' ')" = "step 5 10 "
    check "killed writers leave nothing behind" \
        test "$(ls -A "$dir/killed/checkpoints" | tr '\n' ' ')" = "last.safetensors previous.safetensors "
    rm -rf "$dir/killed" "$dir/killed.safetensors"
}

kills=0
for moment in $moments; do                   # one run after the other, each killed until it ends
    start killed $((1 + kills % 2))
    sleep "$moment"
    kill -9 $child 2> /dev/null
    finish
    kills=$((kills + 1))
    [ $status != 0 ] || ended
done
start killed 1
finish
check "a killed run can be run again" test $status = 0
ended

status=0 tries=0
while [ $status = 0 ] && [ $tries -lt 5 ]; do   # on a busy machine the signal may come too late
    rm -rf "$dir/stopped"
    start stopped 1
    while [ ! -e "$dir/stopped/config.json" ] && kill -0 $child 2> /dev/null; do sleep 0.01; done
    kill -TERM $child 2> /dev/null
    finish
    tries=$((tries + 1))
done
check "SIGTERM saves and ends with 75" test $status = 75
check "it says that the same command continues" grep -q "the same command continues" "$dir/stopped.err"
start stopped 1
finish
check "a stopped run ends with the bytes of an unbroken one" \
    cmp -s "$dir/whole.safetensors" "$dir/stopped.safetensors"
cp "$dir/stopped.json" "$dir/first.json"
start stopped 1
finish
check "a finished run prints its result again" cmp -s "$dir/stopped.json" "$dir/first.json"

echo "tests/test_resume.sh: $passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
