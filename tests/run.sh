#!/bin/sh
# Run test programs one after the other and add up what they say. A program that crashes, hangs or
# says nothing counts as one failed test. Last line: N passed, N failed, N skipped. TEST_ISA: the
# instruction set that every program is to use; what tests the choice itself, or links the library
# that has none (layermerge.h), still makes its own.
passed=0 failed=0 skipped=0
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT

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

for t in "$@"; do
    began=$(date +%s)
    timeout -k 10 "${TEST_SECONDS:-900}" "$t" > "$out" 2>&1 < /dev/null
    status=$?
    cat "$out"
    took=$(($(date +%s) - began))
    [ $took -lt 60 ] || echo "$t took $took s"
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
