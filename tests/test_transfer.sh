#!/bin/bash
# train --pretrained and --map from the outside: whose weights, which head, what is refused.
. tests/check.sh
shapes=builtin:shapes,size=16,train=64,val=40
train() { "$lm" train --epochs 0 --batch 16 "$@"; }
accuracy() { "$lm" eval --model "$1" --data "$2" --json 2> /dev/null | sed 's/"images_per_s.*//'; }

check "a network of ten classes" exits 0 "$lm" train --epochs 1 --batch 16 --model resnet20 --data $shapes --out "$dir/ten" --quiet
check "starts one of four, without its builder's name" exits 0 train --pretrained "$dir/ten" --classes 4 --data $shapes,classes=4 --out "$dir/four" --json
check "it is said what was loaded" says 'resnet20: 95 of 97 tensors from .*ten, linear new for 4 classes'
check "in JSON too" prints '"pretrained":"resnet20: 95 of 97 tensors'
check "by its builder's name it is the same" exits 0 train --model resnet20 --pretrained "$dir/ten" --data $shapes,classes=4 --out "$dir/named"
check "bit for bit" [ "$(accuracy "$dir/four" $shapes,classes=4)" = "$(accuracy "$dir/named" $shapes,classes=4)" ]
check "another seed gives another head" exits 0 train --pretrained "$dir/ten" --data $shapes,classes=4 --out "$dir/other" --seed 7
check "and other answers" [ "$(accuracy "$dir/four" $shapes,classes=4)" != "$(accuracy "$dir/other" $shapes,classes=4)" ]
check "with the same classes the head comes along" exits 0 train --pretrained "$dir/ten" --data $shapes --out "$dir/same"
check "and nothing is lost" [ "$(accuracy "$dir/ten" $shapes)" = "$(accuracy "$dir/same" $shapes)" ]

seq 0 9 > "$dir/all"
check "all classes in their order are the network itself" exits 0 train --pretrained "$dir/ten" --map "10to:$dir/all" --data $shapes --out "$dir/mapped"
check "with its answers" [ "$(accuracy "$dir/ten" $shapes)" = "$(accuracy "$dir/mapped" $shapes)" ]
printf '3\n9\n0\n1\n' > "$dir/some"
check "some of them make a smaller head" exits 0 train --pretrained "$dir/ten" --map "10to:$dir/some" --data $shapes,classes=4 --out "$dir/few"
check "which is said" says 'linear with 4 of its 10 classes'
check "a run folder remembers both" exits 0 train --pretrained "$dir/ten" --map "10to:$dir/some" --data $shapes,classes=4 --run "$dir/run"
check "in its configuration" grep -q '"pretrained-sha256": "[0-9a-f]\{64\}"' "$dir/run/config.json"
check "with the recipe for weights that were trained" grep -q '"name": "finetune"' "$dir/run/config.json"
check "and refuses others" exits 78 train --pretrained "$dir/same" --map "10to:$dir/some" --data $shapes,classes=4 --run "$dir/run"

seq 9 -1 0 > "$dir/turned"
check "the other way round the network keeps its head, and the data's classes become its" exits 0 train --pretrained "$dir/ten" --map "10to:$dir/turned" --data $shapes --out "$dir/turned-net"
value() { sed "s/.*\"$1\":\([^,]*\),.*/\1/"; }
near() { awk -v got="$(value "$1" < "$dir/stdout")" -v want="$2" -v by="$3" 'BEGIN { exit !(got >= want - by && got <= want + by) }'; }
evaluate() { "$lm" eval --data $shapes --json --model "$@"; }
check "so a head that is turned knows data that is turned" [ "$(evaluate "$dir/turned-net" --map "10to:$dir/turned" | value top1)" = "$(evaluate "$dir/ten" | value top1)" ]
check "and other data otherwise" [ "$(evaluate "$dir/turned-net" | value loss)" != "$(evaluate "$dir/ten" | value loss)" ]
check "eval refuses a class beyond the network's" exits 78 "$lm" eval --model "$dir/ten" --map "20to:$dir/all" --data $shapes
check "and a list for other data" exits 78 "$lm" eval --model "$dir/ten" --map "10to:$dir/some" --data $shapes
no="--data $shapes,classes=4 --out $dir/no"
printf '3\n9\n10\n1\n' > "$dir/beyond"; printf '3\nnine\n0\n1\n' > "$dir/word"
check "a class beyond them is bad content" exits 65 train --pretrained "$dir/ten" --map "10to:$dir/beyond" $no
check "named by its line" says 'beyond: line 3: a class from 0 to 9'
check "so is a word" exits 65 train --pretrained "$dir/ten" --map "10to:$dir/word" $no
check "another count than the data's does not fit" exits 78 train --pretrained "$dir/ten" --map "10to:$dir/all" $no
check "nor another number of classes than the file's" exits 78 train --pretrained "$dir/ten" --map "1000to:$dir/some" $no
check "a list that is not there is missing input" exits 66 train --pretrained "$dir/ten" --map "10to:$dir/none" $no
check "its form is CLASSESto:FILE" exits 64 train --pretrained "$dir/ten" --map "$dir/some" $no
check "and it picks from --pretrained" exits 64 train --model resnet20 --map "10to:$dir/some" $no
check "a network is wanted" exits 64 train $no
check "another network's weights do not fit" exits 65 train --model resnet56 --pretrained "$dir/ten" $no
check "nothing was written" [ ! -e "$dir/no" ]

# TEST_FEW: twenty images each, which say nothing about an accuracy.
images=100 limit= judge=check batch=
[ -z "$TEST_FEW" ] || { images=20 limit="--limit 20" judge=true batch="--batch 4"; }
weights=../shared/data/weights/mobilenet_v2_1.0_deq_fp32.pth data=../shared/data/imagenette-224
if [ -f $weights ] && [ -d $data ]; then
    printf '%s\n' 0 217 482 491 497 566 569 571 574 701 > "$dir/imagenette"
    check "published weights of 1000 classes know ten of them untrained" exits 0 train --model mobilenetv2 --pretrained $weights \
        --map "1000to:$dir/imagenette" --data $data --val-limit $images --out "$dir/v2" --json
    $judge "nearly all" awk -v top1="$(sed 's/.*"top1":\([0-9.]*\).*/\1/' "$dir/stdout")" 'BEGIN { exit !(top1 >= 95) }'
    check "one epoch of defaults teaches a new head" exits 0 "$lm" train --model mobilenetv2 --pretrained $weights --classes 10 --data $data \
        --epochs 1 --val-limit $images $limit --size 96 --out "$dir/v2new" --json $batch
    $judge "most of ten classes" awk -v top1="$(sed 's/.*"top1":\([0-9.]*\).*/\1/' "$dir/stdout")" 'BEGIN { exit !(top1 >= 80) }'
    check "the network as it was published, with all its classes" exits 0 "$lm" import --weights $weights --arch mobilenetv2 --out "$dir/v2all"
    check "knows which of the 1000 they are" exits 0 "$lm" eval --model "$dir/v2all" --map "1000to:$dir/imagenette" --crop-pct 1 --data $data --json $limit
    $judge "as often as PyTorch, 71.1 % of 700, to an image" near top1 71.1 0.2
else echo "skipped: no $weights"; skipped=$((skipped + 1)); fi

sample=../shared/data/imagenet-sample
if [ -f $weights ] && [ -d $sample ]; then     # the commands of the README
    "$lm" import --weights $weights --arch mobilenetv2 --out "$dir/v2all" > "$dir/out" 2>&1
    for f in $sample/*.JPEG; do c=$(basename "${f%%_*}"); mkdir -p "$dir/sample/val/$c"; ln -s "$(realpath "$f")" "$dir/sample/val/$c"; done
    ls "$dir/sample/val" | grep -F -f - $sample/imagenet_1000_classes.csv | cut -d, -f1 > "$dir/sample.txt"
    check "one photograph each of 167 classes" exits 0 "$lm" eval --model "$dir/v2all" --map "1000to:$dir/sample.txt" --data "$dir/sample" --json $limit
    $judge "all of them looked at" prints '"n":167,'
    $judge "86.2 % known at once as with PyTorch, to an image" near top1 86.2 0.65
    $judge "and 98.2 % in five guesses" near top5 98.2 0.65
else echo "skipped: no $sample"; skipped=$((skipped + 1)); fi
echo "tests/test_transfer.sh: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
