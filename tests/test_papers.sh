#!/bin/bash
# bench/papers.sh on small images: the papers' networks from a builder to a verified merged network.
. tests/check.sh
# The training images: MobileNetV2's depthwise weights are drawn so small that its statistics need steps.
papers() { LAYERMERGE=$lm bench/papers.sh --models "$1" --train "$2" --input 3,32,32 --budgets "${3:-0.7}" --rounds 3 --threads 1 --work "$dir/nets"; }
number() { sed -n "s/.*\"$1\": *\([-0-9.e]*\).*/\1/p" "$dir/nets/$2/0.7/verify.json"; }
holds() { awk -v a="$1" -v b="$3" "BEGIN { exit !(a != \"\" && b != \"\" && a + 0 $2 b + 0) }"; }

walk() { for m; do papers $m $([ $m = mobilenetv2 ] && echo 320 || echo 16) > "$dir/$m.txt" 2>&1; echo $? > "$dir/$m.status"; done; }

# Two at a time: most of it keeps one core busy. TEST_FEW: without those that repeat the same for other numbers.
one= other=vgg19_bn
[ -n "$TEST_FEW" ] || one="resnet34 mobilenetv2" other="resnet50 $other"
walk $other &
walk $one
wait
for m in $one $other; do
    check "$m goes the whole way" [ "$(cat "$dir/$m.status")" = 0 ]
    check "$m ends with its row" grep -q "^| $m *| *0.7 |" "$dir/$m.txt"
    check "$m: merged is verified" grep -q '"verified":true' "$dir/nets/$m/0.7/verify.json"
    check "$m: to rounding" holds "$(number max_rel "$m")" '<=' 1e-4
    check "$m: with every answer the same" holds "$(number top1_agreement "$m")" '==' 1
    check "$m: its answers differ from image to image" holds "$(number variation "$m")" '>' 1e-3
done

# Convs 13 and 14 of VGG19 read the same shape, one from a pool; one measurement serves both.
time_of() { awk -F, -v st="$1" '$2 == st && $3 == st + 1 { print $7 }' "$dir/nets/vgg19_bn/time.csv"; }
check "a conv behind a pool is timed on what the pool leaves" [ "$(time_of 12)" = "$(time_of 13)" ]

before=$(stat -c '%Y %n' "$dir"/nets/vgg19_bn/*.* | sha256sum)
check "a second run makes nothing again" papers vgg19_bn 16
cp "$dir/out" "$dir/again.txt"
check "and says the same" cmp <(grep '^|' "$dir/vgg19_bn.txt") <(grep '^|' "$dir/again.txt")
check "on the same files" [ "$before" = "$(stat -c '%Y %n' "$dir"/nets/vgg19_bn/*.* | sha256sum)" ]
check "an infeasible budget is a row of its own" eval 'papers vgg19_bn 16 0.01 | grep -q "| *0.01 | *least [0-9]"'
rm "$dir/nets/vgg19_bn/0.7/verify.json"
echo '{}' > "$dir/nets/vgg19_bn/0.7/solution.json"
check "a verb that fails ends it" eval '! papers vgg19_bn 16'

echo "$0: $passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
