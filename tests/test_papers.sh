#!/bin/bash
# bench/papers.sh on small images: the papers' networks from a builder to a verified merged network.
lm=${LAYERMERGE:-./layermerge}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
check() {                      # check "sentence" command...
    local what=$1; shift
    if "$@" > "$dir/out" 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $what"; tail -n 3 "$dir/out"; fi
}
# The training images: MobileNetV2's depthwise weights are drawn so small that its statistics need steps.
papers() { LAYERMERGE=$lm bench/papers.sh --models "$1" --train "$2" --input 3,32,32 --budgets 0.7 --rounds 3 --work "$dir/work"; }
number() { sed -n "s/.*\"$1\": *\([-0-9.e]*\).*/\1/p" "$dir/work/$2/0.7/verify.json"; }
holds() { awk -v a="$1" -v b="$3" "BEGIN { exit !(a != \"\" && b != \"\" && a + 0 $2 b + 0) }"; }

while read -r m images; do
    check "$m goes the whole way" papers "$m" "$images"
    cp "$dir/out" "$dir/$m.txt"
    check "$m ends with its row" grep -q "^| $m *| *0.7 |" "$dir/$m.txt"
    check "$m: merged is verified" grep -q '"verified":true' "$dir/work/$m/0.7/verify.json"
    check "$m: to rounding" holds "$(number max_rel "$m")" '<=' 1e-4
    check "$m: with every answer the same" holds "$(number top1_agreement "$m")" '==' 1
    check "$m: its answers differ from image to image" holds "$(number variation "$m")" '>' 1e-3
done <<< 'resnet34 16
resnet50 16
vgg19_bn 16
mobilenetv2 320'

before=$(stat -c '%Y %n' "$dir"/work/resnet34/*.* | sha256sum)
check "a second run makes nothing again" papers resnet34 16
cp "$dir/out" "$dir/again.txt"
check "and says the same" cmp <(grep '^|' "$dir/resnet34.txt") <(grep '^|' "$dir/again.txt")
check "on the same files" [ "$before" = "$(stat -c '%Y %n' "$dir"/work/resnet34/*.* | sha256sum)" ]
rm "$dir/work/resnet34/0.7/verify.json"
echo '{}' > "$dir/work/resnet34/0.7/solution.json"
check "a verb that fails ends it" eval '! papers resnet34 16'

echo "$0: $passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
