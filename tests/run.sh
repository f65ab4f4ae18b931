#!/bin/bash
# Run test programs, TEST_JOBS at a time (1), and add up what they say. A program that crashes, hangs or
# says nothing counts as one failed test. Last line: N passed, N failed, N skipped. TEST_ISA: the
# instruction set that every program is to use; what tests the choice itself, or links the library
# that has none (layermerge.h), still makes its own.
passed=0 failed=0 skipped=0
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT

if [ -n "$TEST_ISA" ]; then    # the verbs of $LAYERMERGE get --isa from a script beside it
    "$LAYERMERGE" inspect resnet20 --isa "$TEST_ISA" > /dev/null || exit 1
    forced=$LAYERMERGE-$TEST_ISA
    cat > "$forced" << 'END' && chmod +x "$forced" || exit 1
#!/bin/sh
program=${0%-*}
case $1 in ''|help|version|-*) exec "$program" "$@" ;; esac
verb=$1; shift
exec "$program" "$verb" --isa "$TEST_ISA" "$@"
END
    export TEST_ISA LAYERMERGE="$forced"
fi

# one NUMBER TEST: shows what it said, and leaves its counts in a file.
one() {
    local began=$SECONDS status
    timeout -k 10 "${TEST_SECONDS:-900}" "$2" > "$dir/$1.out" 2>&1 < /dev/null
    status=$?
    [ $((SECONDS - began)) -lt 60 ] || echo "$2 took $((SECONDS - began)) s" >> "$dir/$1.out"
    grep -E '[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$dir/$1.out" | tail -n 1 | sed 's/.*: //; s/[^0-9 ]//g' > "$dir/$1.counts"
    read -r _ bad _ < "$dir/$1.counts" || bad=0
    if [ ! -s "$dir/$1.counts" ] || { [ $status != 0 ] && [ "$bad" = 0 ]; }; then
        echo "FAILED: $2 ended with status $status" >> "$dir/$1.out"
        echo 0 1 0 >> "$dir/$1.counts"
    fi
    cat "$dir/$1.out"
}

n=0
for t in "$@"; do
    n=$((n + 1))
    if [ "${TEST_JOBS:-1}" -le 1 ]; then one $n "$t"; continue; fi    # Ctrl-C reaches what runs in the foreground
    [ "$(jobs -rp | wc -l)" -lt "$TEST_JOBS" ] || wait -n
    one $n "$t" &
done
wait
while read -r ok bad left; do
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + left))
done < <(cat "$dir"/*.counts)
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
