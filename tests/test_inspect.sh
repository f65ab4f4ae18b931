#!/bin/bash
# import, inspect and run from the outside: files, exit codes, sentences.
. tests/check.sh
# tensor FILE NAME SHAPE FLOATS: a safetensors file with one tensor of zeros.
tensor() {
    local header="{\"$2\":{\"dtype\":\"F32\",\"shape\":[$3],\"data_offsets\":[0,$(($4 * 4))]}}"
    { printf "\\x$(printf %02x ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"; head -c $(($4 * 4)) /dev/zero; } > "$1"
}

check "a builder can be inspected" exits 0 "$lm" inspect resnet20
check "its last line adds up" prints '0.270 M parameters; 19 convs with 40.55 M, of which 18 with 40.11 M'
check "a network with projections too" exits 0 "$lm" inspect resnet34
check "whose convs are all counted" prints '36 convs with 3663.25 M'
check "and as the papers do, who have 3.64 G" prints 'without the 3 projections of skips the convs have 3643.98 M'
check "JSON names every layer" exits 0 "$lm" inspect mobilenetv2 --width 1.4 --json
check "with shapes and counts" prints '"conv_macs":580403'
while read -r model rows; do
    check "$model can list its search space" exits 0 "$lm" inspect "$model" --segments "$dir/segments.csv"
    check "$model has $rows entries" [ "$(tail -n +2 "$dir/segments.csv" | wc -l)" = "$rows" ]
done <<< 'resnet34 150
resnet50 192
mobilenetv2 391'
check "columns are the published ones" [ "$(head -n 1 "$dir/segments.csv" | tr -d '\r')" = id,st,end,ker,str,is_dw,conv_comb ]
check "inspect wants a model" exits 64 "$lm" inspect
check "an unknown model is missing input" exits 66 "$lm" inspect resnet21
check "and the builders are named" says resnet20
check "an impossible input size is a usage error" exits 64 "$lm" inspect resnet20 --input 32x32

tensor "$dir/x" x 2,3,32,32 6144
check "run computes" exits 0 "$lm" run resnet20 --input "$dir/x" --output "$dir/y" --batch 1
check "y has a row per image" grep -qa '"y":{"dtype":"F32","shape":\[2,10\]' "$dir/y"
check "y can be inspected" exits 0 "$lm" inspect "$dir/y"
check "but has no search space" exits 65 "$lm" inspect "$dir/y" --segments "$dir/none.csv"
tensor "$dir/flat" x 2,3072 6144
tensor "$dir/last" x 2,32,32,3 6144
tensor "$dir/named" z 2,3,32,32 6144
check "x of rank 2 is bad content" exits 65 "$lm" run resnet20 --input "$dir/flat" --output "$dir/no"
check "channels last do not fit" exits 78 "$lm" run resnet20 --input "$dir/last" --output "$dir/no"
check "and both shapes are named" says '32x32x3 (C,H,W), the network takes 3x32x32'
check "a file without x is bad content" exits 65 "$lm" run resnet20 --input "$dir/named" --output "$dir/no"
check "a missing file is missing input" exits 66 "$lm" run resnet20 --input "$dir/nothing" --output "$dir/no"
check "nothing was written" [ ! -e "$dir/no" ]

check "import refuses what it cannot read" exits 65 "$lm" import --weights "$0" --arch resnet20 --out "$dir/no"
check "import names a wrong builder" exits 64 "$lm" import --weights "$dir/x" --arch resnt20 --out "$dir/no"
check "import names what is missing and extra" exits 65 "$lm" import --weights "$dir/x" --arch resnet20 --out "$dir/no"
check "with counts" says '97 missing (conv1.weight, .*1 extra (x)'
weights=../shared/data/weights/resnet20-12fca82f.th
if [ -f $weights ]; then
    check "published weights become a model" exits 0 "$lm" import --weights $weights --arch resnet20 --out "$dir/m.safetensors"
    check "that can be inspected" exits 0 "$lm" inspect "$dir/m.safetensors" --json
    check "that runs" exits 0 "$lm" run "$dir/m.safetensors" --input "$dir/x" --output "$dir/y"
    check "whose classes are what they are" exits 78 "$lm" inspect "$dir/m.safetensors" --classes 7
    check "other classes are misshapen" exits 65 "$lm" import --weights $weights --arch resnet20 --classes 7 --out "$dir/no"
    check "and named with both shapes" says 'linear.weight is 10x64, wants 7x64'
else
    echo "skipped: no $weights"; skipped=1
fi
echo "tests/test_inspect.sh: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
