# What tests of the program from the outside share; they source it. The program, a folder that goes away
# at the end, counters, and small words for sentences, exit codes and what was printed.
lm=${LAYERMERGE:-./layermerge}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0
check() {                      # check "sentence" command...
    local what=$1; shift
    if "$@" > "$dir/out" 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $what"; tail -n 3 "$dir/out"; fi
}
exits() { local want=$1; shift; "$@" > "$dir/stdout" 2> "$dir/stderr"; local got=$?; [ $got = "$want" ] || { echo "exit $got, wanted $want"; cat "$dir/stderr"; false; }; }
says() { grep -q -- "$1" "$dir/stderr"; }
prints() { grep -q -- "$1" "$dir/stdout"; }
