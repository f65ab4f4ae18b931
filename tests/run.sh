#!/bin/sh
# Run test programs one after the other and add up what they say. A program that crashes, hangs or
# says nothing counts as one failed test. Last line: N passed, N failed, N skipped.
passed=0 failed=0 skipped=0
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT

for t in "$@"; do
    timeout -k 10 "${TEST_SECONDS:-900}" "$t" > "$out" 2>&1 < /dev/null
    status=$?
    cat "$out"
    counts=$(grep -E '[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$out" | tail -n 1 |
             sed 's/.*: //; s/[^0-9 ]//g')
    set -- ${counts:-0 0 0}
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    if [ -z "$counts" ] || { [ $status != 0 ] && [ "$2" = 0 ]; }; then
        echo "FAILED: $t ended with status $status"
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
