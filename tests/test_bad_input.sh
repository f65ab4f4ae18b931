#!/bin/bash
# What goes wrong goes wrong in one sentence: no crash, the promised exit code, old files as they were.
lm=${LAYERMERGE:-./layermerge}
case $lm in /*) ;; *) lm=$PWD/$lm ;; esac
dir=$(mktemp -d) || exit 1
trap 'cd /; umount "$dir/full" 2> /dev/null; rm -rf "$dir"' EXIT
cd "$dir" || exit 1
passed=0 failed=0 skipped=0
good() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAILED: $1"; tail -n 3 err; }
# refuses CODE WORDS ARGUMENTS...: exit CODE, one sentence with WORDS on stderr, on stdout nothing or one object.
refuses() {
    local code=$1 words=$2; shift 2
    "$lm" "$@" > out 2> err < /dev/null; local got=$?
    if [ $got = "$code" ] && [ "$(wc -l < err)" = 1 ] && grep -q -- "^layermerge: .*$words" err; then good; else bad "$* exits $got, wanted $code and \"$words\""; fi
}
works() { "$lm" "$@" > out 2> err < /dev/null && good || bad "$* exits $?"; }
check() { local what=$1; shift; "$@" > /dev/null 2>&1 && good || bad "$what"; }
prints() { grep -q -- "$1" out; }
u32() { printf "\\x$(printf %02x $(($1 >> 24 & 255)))\\x$(printf %02x $(($1 >> 16 & 255)))\\x$(printf %02x $(($1 >> 8 & 255)))\\x$(printf %02x $(($1 & 255)))"; }
zeros() { head -c "$1" /dev/zero; }
tensor() {                     # FILE NAME TYPE SHAPE BYTES: safetensors of zeros
    local header="{\"$2\":{\"dtype\":\"$3\",\"shape\":[$4],\"data_offsets\":[0,$5]}}"
    { printf "\\x$(printf %02x ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"; zeros "$5"; } > "$1"
}
data=builtin:shapes,size=8,train=64,val=32

# ---- the command line
refuses 64 'no verb'
refuses 64 'did you mean train' trian
refuses 64 'did you mean --budget' solve --bugdet 1
refuses 64 'did you mean layermerge' solve --time t --importance i --method layermerg
refuses 64 'word' version word
refuses 64 'wants a value' inspect --model
refuses 64 'is empty' eval --model '' --data $data
refuses 64 'argument is empty' inspect ''
refuses 64 'whole number' inspect resnet20 --threads 1.5
refuses 64 'from 0 to 1024' inspect resnet20 --threads -1
refuses 64 'number is wanted' inspect mobilenetv2 --width nan
refuses 64 'C,H,W' inspect resnet20 --input 3,0,32
refuses 78 'impossible' inspect resnet20 --input 3,100000,100000
refuses 64 'bench needs model' bench
refuses 66 'resnet2: no such model' bench --model resnet2
for verb in train eval predict run import export inspect latency importance solve merge bench compress report data; do
    refuses 64 "$verb has no flag --no-such" $verb --no-such
    works $verb --help
done
for pair in '--lr nan' '--lr -1' '--lr 1e999' '--lr x' '--lr 1,2' '--batch 0' '--batch 1.5' '--momentum 1' '--epochs -1' '--mixup inf' '--workers 0'; do
    refuses 64 "${pair#--}" train --model resnet20 --data $data --out no $pair
done
refuses 64 'needs --model-ema' train --model resnet20 --data $data --out no --model-ema-decay 0.9

# ---- nobody listens
for words in help version 'train --help' 'inspect resnet20' 'inspect resnet20 --json'; do
    (sleep 0.1; exec "$lm" $words 2> err) | true
    [ "${PIPESTATUS[0]}" = 74 ] && good || bad "$words into a closed pipe is not 74"
    if [ -c /dev/full ]; then "$lm" $words > /dev/full 2> err; [ $? = 74 ] && good || bad "$words to a full disk is not 74"; fi
done

# ---- models
works train --model resnet20 --data $data --epochs 0 --batch 16 --out m --quiet
size=$(wc -c < m)
for n in 0 1 8 9 100 5000 20000 $((size - 1)); do
    head -c "$n" m > cut
    refuses 65 '^*cut: ' eval --model cut --data $data --json
done
(cat m; echo) > long;                                  refuses 65 'end at data byte' inspect long
(printf '\377\377\377\377\377\377\377\377'; tail -c +9 m) > huge; refuses 65 'does not fit' inspect huge
sed 's/layer1\.0\.conv1 = conv2d(relu)/layer1.0.conv1 = conv2d(nope)/' m > graph; refuses 65 nope inspect graph
sed 's/"conv1.weight":{"dtype":"F32"/"conv1.weight":{"dtype":"I32"/' m > int32
refuses 65 'int32: conv1.weight is I32, a float is wanted' inspect int32
refuses 65 'int32: conv1.weight is I32, a float is wanted' import --weights int32 --arch resnet20 --out no
refuses 66 'no such model' eval --model nothing --data $data
refuses 66 'is a folder' inspect .
refuses 65 'neither safetensors' inspect /dev/null
refuses 78 'm: resnet20 has 10 classes, the data has 5' eval --model m --data $data,classes=5
printf '\200\002cos\nsystem\nU\004true\205R.' > evil;  refuses 65 'os.system is not allowed' import --weights evil --arch resnet20 --out no
printf '\200\002' > p; zeros 100000 | tr '\0' ']' >> p; refuses 65 'p: ' import --weights p --arch resnet20 --out no
printf 'PK\003\004' > zip;                             refuses 65 'zip' import --weights zip --arch resnet20 --out no
refuses 65 '180 missing (layer1.3.conv1.weight' import --weights m --arch resnet56 --out no
check "nothing was written" [ ! -e no ]

works eval --model m --data $data --predictions all.csv --quiet
works eval --model m --data $data --predictions some.csv --limit 12 --quiet
check "an image keeps its number under a limit" [ "$(grep -cxFf all.csv some.csv)" = 13 ]
check "which is that in the whole split" [ "$(tail -n 1 some.csv | cut -d, -f1)" -gt 11 ]
(head -c -4 m; printf '\377\377\377\177') > nan;     refuses 76 'nan: shapes/val:0: the output' eval --model nan --data $data

# ---- tensors
tensor u32 counts U32 4 16
works inspect u32
check "a type that nothing is made of is listed" prints '^counts *U32 *4$'
refuses 65 '1 extra (counts)' import --weights u32 --arch resnet20 --out no
tensor x3 x F32 3,8,8 768;     refuses 65 'x has 3 dimensions' run m --input x3 --output y
tensor xi x I64 1,3,8,8 1536;  refuses 65 'x is I64' run m --input xi --output y
tensor xc x F32 1,1,8,8 256;   refuses 78 '1x8x8 (C,H,W)' run m --input xc --output y
tensor x0 x F32 0,3,8,8 0;     refuses 65 'x has 4 dimensions and 0 values' run m --input x0 --output y
tensor z z F32 1,3,8,8 768;    refuses 65 'no tensor x' run m --input z --output y
tensor x x F32 1,3,8,8 768;    refuses 64 'batch' run m --input x --output y --batch 0
refuses 74 'no-folder/y' run m --input x --output no-folder/y
check "nothing was written" [ ! -e y ]

# ---- what is read is not written over
ln -s m link; mkdir twice; before=$(sha256sum m x)
for out in m ./m link "$dir/m"; do
    refuses 64 "--predictions $out and --model m are to be different files" eval --model m --data $data --predictions $out
    refuses 64 "--onnx $out and the model m are" export m --onnx $out
    refuses 64 "--safetensors $out and the model m are" export --model m --onnx no --safetensors $out
    refuses 64 "--output $out and the model m are" run m --input x --output $out
    refuses 64 "--out $out and --weights m are" import --weights m --arch resnet20 --out $out
done
refuses 64 '--output ./x and --input x are' run m --input x --output ./x
refuses 64 '--onnx twice/a and --safetensors ./twice/a are' export m --onnx twice/a --safetensors ./twice/a
check "nothing was written" [ "$before" = "$(sha256sum m x)" -a ! -e no -a -z "$(ls twice)" ]
works export resnet20 --safetensors resnet20                   # a builder is no file
works train --model m --data $data --epochs 0 --batch 16 --out m --quiet
rm link resnet20

# ---- builders
tensor x32 x F32 1,3,32,32 12288
works run resnet20 --classes 7 --input x32 --output y
check "a builder gets the classes asked for" grep -q '"shape":\[1,7\]' y
rm -f y; refuses 78 'm has 10 classes, not 7' run m --classes 7 --input x --output y
refuses 78 'one width only' run resnet20 --width 2 --input x32 --output y
works eval --model mobilenetv2 --width 0.5 --classes 10 --input 3,32,32 --data $data,classes=10 --limit 10 --json
refuses 78 'resnet20 has one width only' eval --model resnet20 --width 2 --data $data
refuses 78 '7 classes, the data has 10' eval --model resnet20 --classes 7 --data $data
refuses 78 'm has 10 classes, not 7' eval --model m --classes 7 --data $data
refuses 78 'm has 10 classes, not 7' predict --model m --classes 7 no.png

# ---- images
mkdir folders classes
made() { find "$1" -name '*.png' | wc -l; }
works data make --data builtin:shapes,classes=2,size=16,train=8,val=4 --out folders --quiet
damaged=$(find folders/train -name '*.png' | sort | head -n 1)
head -c 60 "$damaged" > torn; mv torn "$damaged"
train() { "$lm" train --model resnet20 --data folders --epochs 1 --batch 4 "$@" 2> err > out; }
train --input 3,16,16 --run named && grep -q "train: 1 of 8 images.*${damaged#folders/train/}" err && grep -q 'left out' named/log.txt && good || bad "a damaged training image is not named"
refuses 65 "$damaged" train --model resnet20 --input 3,16,16 --data folders --epochs 1 --batch 4 --on-bad-image fail --out no --quiet
refuses 1 '1 images cannot be decoded' data verify --data folders --json --quiet
check "and are listed" prints "${damaged#folders/train/}"
works eval --model named/model.safetensors --data folders --split train --json
check "and not counted" prints '"n":7'
works eval --model named/model.safetensors --data folders --split train --size 24 --json
refuses 64 '--size 24x' eval --model named/model.safetensors --data folders --size 24x
works train --model resnet20 --data folders --size 24 --epochs 0 --batch 4 --out sized --quiet
works inspect sized
check "the size asked for is the size of the input" grep -q 'size=24,24,3 resize=27' sized
for size in '64,64,3 resize=72' '16,16,3 resize=27'; do      # an image that is not the network's input
    sed "s/size=24,24,3 resize=27/size=$size/" sized > lying
    refuses 78 'lying: preprocessing gives images' eval --model lying --data folders
    refuses 78 'lying: preprocessing gives images' predict --model lying folders/val/*/*.png
done
works predict --model mobilenetv2 --width 0.5 --classes 3 --input 3,32,32 folders/val/*/*.png
check "a builder tells as many classes as asked for" [ "$(grep -c % out)" = $((3 * $(made folders/val))) ]
works merge --help
refuses 64 'different files' export resnet20 --onnx one --safetensors one
refuses 64 'different files' merge --model sized --solution none --pruned one --out one
refuses 64 'different files' merge --model sized --solution none --out sized
"$lm" data pack builtin:shapes,train=200000,val=10 --shard-mb 1 --out stopped --quiet > out 2> err & stopped=$!
sleep 1; kill -TERM $stopped; sleep 0.05; kill -TERM $stopped; wait $stopped; got=$?      # as timeout(1) does
[ $got = 75 ] && ! ls stopped | grep -q pack && good || bad "a pack that was stopped leaves shards, or ends otherwise ($got)"
works data pack builtin:shapes,train=20,val=10 --out stopped --quiet
refuses 64 'not written over' data pack builtin:shapes,train=20,val=10 --out stopped --quiet
refuses 64 'folders/train is there already.* another --out' data make --data builtin:shapes,classes=2,size=16,train=20,val=4 --out folders --sheet no.png --quiet
check "and nothing is added to a set" [ "$(made folders)" = 12 ] && check "nor written beside it" [ ! -e no.png ]
slow='data make --data builtin:shapes,size=8,train=2000,val=20 --out begun --quiet'
"$lm" $slow > out 2> err & pid=$!
for _ in $(seq 400); do [ -n "$(ls begun/train 2> /dev/null)" ] && break; sleep 0.01; done
kill -9 $pid; wait $pid 2> /dev/null
check "a set that was killed is not whole" [ "$(made begun)" -lt 2020 ]
refuses 64 'was not finished' data make --data builtin:shapes,size=8,train=20,val=20 --out begun --quiet
works $slow
check "the same command makes it whole" [ "$(made begun)" = 2020 ]
refuses 64 'begun/train is there already' $slow
killed='data pack builtin:shapes,train=400,val=8000 --shard-mb 1 --quiet --out killed'
"$lm" $killed > out 2> err & pid=$!
for _ in $(seq 400); do [ -e killed/val-00002.pack ] && break; sleep 0.01; done
kill -9 $pid; wait $pid 2> /dev/null
refuses 64 'was not finished' data pack builtin:shapes,train=20,val=10 --out killed --quiet
check "what is left of a pack that was killed stays for its own command" test -e killed/val-00002.pack
works $killed
check "which starts over" [ "$("$lm" data verify --data killed --split val --quiet --json | grep -c '"images":8000,')" = 1 ]
check "and leaves no mark" [ ! -e killed/unfinished.txt ]
refuses 64 'not written over' $killed
refuses 65 "$damaged" data make --data folders --out copy --on-bad-image fail --quiet
works data make --data folders --out copy --quiet --json
check "seven of eight are written" prints '"train":7'
refuses 65 "$damaged" data pack folders --out strict --on-bad-image fail --quiet
works data pack folders --out packed --quiet --json
check "seven of eight are packed" prints '"train":7'
works eval --model named/model.safetensors --data packed --split train --json
check "and all are evaluated" prints '"n":7'
gone=$(find folders/train -name '*.png' | sort | tail -n 1)
mv "$gone" kept.png; ln -s nowhere.png "$gone"              # an image that is not there is a bad one too
refuses 1 '2 images cannot be decoded' data verify --data folders --json --quiet
works data make --data folders --out copy6 --quiet --json
check "six of eight are written" prints '"train":6'
works data pack folders --out packed6 --quiet --json
check "six of eight are packed" prints '"train":6'
rm "$gone"; mv kept.png "$gone"
refuses 64 'not written over' data pack folders --out packed --quiet
refuses 64 'one set' data pack --out other --quiet
for word in make verify stats; do refuses 64 '--resize is for data pack' data $word folders --resize 8 --out other; done
for out in folders ./folders/; do refuses 64 "--out $out is the set that is read" data pack folders --out $out --quiet; done
check "and stays as it was" [ "$(ls folders | tr '\n' ' ')" = 'train val ' ]
head -c 700 packed/train-00000.pack > torn; mv torn packed/train-00000.pack
refuses 65 'train-00000.pack' eval --model named/model.safetensors --data packed --split train
printf '\377\330\377\304\0\023\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\377\377\377\331' > huffman.jpg
printf '\377\330\377\300\0\021\010\100\001\0\020\003\001\021\0\002\021\0\003\021\0\377\331' > wide.jpg
printf '\377\330\377\376\0\002' > open.jpg
refuses 65 'huffman.jpg: .*more than 256 codes' predict --model m huffman.jpg
refuses 65 'wide.jpg: .*more than 16384 a side' predict --model m wide.jpg
refuses 65 'open.jpg: JPEG' predict --model m open.jpg
refuses 65 'neither JPEG nor PNG' predict --model m /dev/null
refuses 66 'is a folder' predict --model m folders
refuses 66 'nothing.jpg' predict --model m nothing.jpg
refuses 65 'neither class folders' eval --model m --data classes
mkdir -p classes/train/a classes/val; refuses 65 'train/a: no images' train --model resnet20 --data classes --out no
refuses 66 'no-folder' eval --model m --data no-folder
refuses 65 'not a file' eval --model m --data m
refuses 64 'sizee' eval --model m --data builtin:shapes,sizee=8
image=$(find folders/train -name '*.png' ! -path "$damaged" | head -n 1)
mkdir -p few/train/a few/train/b few/val/a; for f in a/1 b/1 b/2 b/3; do cp "$image" few/train/$f.png; done; cp "$image" few/val/a/1.png
refuses 65 'class a has 1 images' importance --model named/model.safetensors --data few --out parts --train-images 2 --score-images 1 --quiet
refuses 64 'no entry lies between' importance --model m --data $data --out parts --from 5 --to 3
refuses 64 'the search space has' importance --model m --data $data --out parts --from 100000
works importance --model mobilenetv2 --width 0.1 --classes 10 --input 3,8,8 --data $data --limit 40 --size 8 --method bn --to 1 --train-images 20 --score-images 10 --batch 10 --out parts --quiet
check "a builder's shape and a part of the images" test -s parts/importance0.csv

mkdir closed; cp -r folders/train closed/train; cp -r folders/val closed/val; chmod 0 closed/val
if [ "$(id -u)" = 0 ]; then rm -r closed/val; touch closed/val; fi         # whom no mode keeps out
refuses 74 'cannot open closed/val: ' data verify --data closed --quiet --json
chmod 755 closed/val

sed 's/size=24,24,3 resize=27/size=24,24,x resize=27/' sized > broken
refuses 65 'broken: preprocessing of resnet20: ' eval --model broken --data folders
for c in a b; do mkdir -p torn/train/$c; head -c 60 "$image" > torn/train/$c/1.png; done
refuses 65 'torn: none of the 2 images can be decoded' data pack torn --out unpacked --quiet
refuses 65 'torn: none of the 2 images can be decoded' eval --model sized --data torn --split train

# ---- MNIST and CIFAR
mkdir idx cifar
{ u32 2051; u32 20; u32 28; u32 28; zeros 15680; } > idx/t10k-images-idx3-ubyte
{ u32 2049; u32 20; zeros 20; } > idx/t10k-labels-idx1-ubyte
idx() { refuses "$1" "$2" data verify --data idx --split val --quiet --json; }
works data verify --data idx --split val --json --quiet
gzip -nc idx/t10k-images-idx3-ubyte > all.gz
for n in 5 20 $(($(wc -c < all.gz) - 1)); do head -c "$n" all.gz > idx/t10k-images-idx3-ubyte.gz; idx 65 'gz: gzip'; done
(head -c 22 all.gz; printf '\252\125\252'; tail -c +26 all.gz) > idx/t10k-images-idx3-ubyte.gz; idx 65 'gzip'
rm idx/*.gz; head -c 1000 idx/t10k-images-idx3-ubyte > cut; mv cut idx/t10k-images-idx3-ubyte; idx 65 'announces 15680 bytes, 984 follow'
{ u32 2049; u32 20; zeros 20; } > idx/t10k-images-idx3-ubyte; idx 65 'starts with 00000801'
rm idx/t10k-images-idx3-ubyte; idx 66 'no such file'
zeros 3073 > cifar/test_batch.bin; (printf '\013'; zeros 3072) > cifar/data_batch_1.bin
refuses 65 'record 0 has label 11' data verify --data cifar --split train
head -c 3000 cifar/test_batch.bin > cifar/data_batch_1.bin; refuses 65 'multiple of 3073' data verify --data cifar --split train

rm cifar/data_batch_1.bin; refuses 66 'cifar/data_batch_1.bin: no such file' train --model resnet20 --data cifar --out no
works data verify --data cifar --quiet --json
check "of two splits the one that is there is looked at" prints '"val":{"images":1,'

# ---- tables
cat > time.csv <<'END'
id,st,end,ker,str,is_dw,time,stdev
0,0,1,3,1,False,1.0,0.01
1,1,2,3,1,True,1.0,0.01
2,0,2,5,1,False,1.25,0.01
END
cat > imp.csv <<'END'
id,st,end,ker,str,is_dw,conv_comb,importance
0,0,1,3,1,False,"(1,)",0.9
1,1,2,3,1,True,"(2,)",0.8
2,0,2,5,1,False,"(1, 2)",1.0
END
solve() { local code=$1 words=$2; shift 2; refuses "$code" "$words" solve "$@"; }
both='--time time.csv --importance imp.csv'
works solve $both --budget 2 --json --out plain.json
printf ',"stdev",time,is_dw,extra,str,ker,end,st,id\r\n0,0,1.25,0,x,1,5,2,0,2\r\n1,0,1.0,1,x,1,3,2,1,1\r\n2,0,1.0,0,"x,y",1,3,1,0,0\r\n' > time2.csv
printf ',conv_comb,importance,is_dw,str,ker,end,st\r\n0,"(1, 2)","1.0",False,1,5,2,0\r\n1,"(2,)",0.8,True,1,3,2,1\r\n2,"(1,)",0.9,0,1,3,1,0\r\n' > imp2.csv
works solve --time time2.csv --importance imp2.csv --budget 2 --out other.json
check "columns in any order mean the same" [ "$(sed 's/"id":[0-9]*//g' plain.json)" = "$(sed 's/"id":[0-9]*//g' other.json)" ]
works solve $both --budget 2,1.5 --json --out both --front front.csv
check "several budgets make a folder" test -s both/tl1.5/solution.json
check "the front has every point" [ "$(wc -l < front.csv)" = 3 ]
works solve $both --speedup 1.5,1.50 --out both/
check "each speed-up has the folder of its own words" test -s both/tl1.5x/solution.json -a -s both/tl1.50x/solution.json
works solve $both --speedup 1.5 --compat reference --prec 10 --json
check "a speed-up is a budget" prints '"budget_ms":1.33'
refuses 1 'least feasible latency is 1.25' solve $both --budget 0.5 --json --out infeasible.json
check "infeasible is an answer" prints '"budget_ms":0.5,"feasible":false,"least_ms":1.25'
check "also in the file" grep -q '"feasible":false' infeasible.json
refuses 1 'least feasible latency is 6.25' solve $both --budget 2 --fixed 5 --compat reference --json
works solve $both --budget 1e6 --prec 1e6 --compat reference --json
check "a budget beyond every path costs no memory" prints '"budget_ms":1000000,"feasible":true,"time_ms":2,'
for budget in x nan 1, 1ms -1 1e400 0x1; do solve 64 'not a number of milliseconds' $both --budget $budget; done
for speedup in x nan 0 -1 1e-300; do solve 64 speedup $both --speedup $speedup; done
for flag in --out --front; do for table in time.csv ./imp.csv; do solve 64 'different files' $both --budget 2 $flag $table; done; done
solve 64 'different files' $both --budget 2 --out one --front ./one
solve 64 'either --budget' $both
solve 64 'either --budget' $both --budget 1 --speedup 1
solve 64 'prec' $both --budget 1 --prec 0
solve 66 'no.csv' --time no.csv --importance imp.csv --budget 2
solve 66 'is a folder' --time . --importance imp.csv --budget 2
solve 65 'NUL' --time m --importance imp.csv --budget 2
edit() {                       # TABLE SED CODE WORDS: an edited copy of a table is refused
    sed "$2" "$1" > "edited_$1"
    if [ "$1" = time.csv ]; then solve "$3" "$4" --time edited_time.csv --importance imp.csv --budget 2
    else solve "$3" "$4" --time time.csv --importance edited_imp.csv --budget 2; fi
}
sed 's/$/\n/' time.csv > blank.csv
works solve --time blank.csv --importance imp.csv --budget 2 --out blank.json
check "blank lines in a table are no rows" cmp plain.json blank.json
edit time.csv '4s/1.25/nan/' 65 'edited_time.csv:4: time is "nan"'
edit time.csv '4s/1.25/-1/' 65 'edited_time.csv:4: time is "-1"'
edit time.csv '4s/1.25/x/' 65 'edited_time.csv:4: column "time" is "x"'
edit time.csv '4s/1.25//' 65 'is empty'
edit time.csv '4s/,0.01//' 65 '7 cells where the header has 8'
edit time.csv '1s/time/tyme/' 65 'column "time" is missing'
edit time.csv '1!d' 65 'no rows'
edit time.csv d 65 'is empty'
edit time.csv '3s/True/yes/' 65 'wanted True or False'
edit time.csv '4s/2,0,2/2,2,2/' 65 'st 2 is not below end 2'
edit time.csv '4p' 65 'is there twice'
edit time.csv '4d' 65 'edited_time.csv and imp.csv: .*missing in the time table: (0,2\]'
edit time.csv '4s/$/\n"3/' 65 'never closed'
edit imp.csv '4s/1.0$/nan/' 65 'importance is "nan"'
edit imp.csv '4s/(1, 2)/1 2/' 65 'not a set of ascending conv numbers'
edit imp.csv '4s/(1, 2)/(1, 7)/' 65 'conv 7 is not in segment'
edit imp.csv '4p' 65 'is there twice'
edit imp.csv '4d' 65 'missing in the importance table'
edit imp.csv '4s/,5,1,/,5,2,/' 65 'stride 1 in the time table and 2'
for t in time imp; do sed '2d;4d' $t.csv > late_$t.csv; done
solve 65 'late_time.csv: no path of segments' --time late_time.csv --importance late_imp.csv --budget 2

# ---- solutions
refuses 64 'different files' inspect m --segments ./m
works inspect m --segments entries.csv --json
{ echo 'id,st,end,ker,str,is_dw,time,stdev'; tail -n +2 entries.csv | sed 's/,"[^"]*"$/,1,0/'; } > t20.csv
{ head -n 1 entries.csv | sed 's/$/,importance/'; tail -n +2 entries.csv | sed 's/$/,1/'; } > i20.csv
works solve --time t20.csv --importance i20.csv --budget 1000 --out s20.json
works merge --model m --solution s20.json --out merged20
works merge --model m --solution s20.json --out merged8 --data $data --limit 10 --size 8
sed 's/"act":[^]]*\],"conv":[^]]*\],"segments"/"segments"/' s20.json > short.json
works merge --model m --solution short.json --out merged_short
check "a solution need not list what its segments say" cmp merged20 merged_short
for flags in '--out ./s20.json' '--out x --pruned s20.json' '--from-pruned merged8 --out ./merged8'; do refuses 64 'different files' merge --model m --solution s20.json $flags; done
refuses 76 'nan: .*not finite' merge --model nan --solution s20.json --out no
works bench --model m merged20 --rounds 3 --json --quiet
check "bench takes a model with and without the flag" prints '"model":"merged20".*"model":"m"'
refuses 76 'nan: the output is not finite' bench nan m --rounds 3 --json --quiet
check "bench shows what it measured all the same" prints '"model":"nan".*"valid":false.*"model":"m".*"valid":true'
refuses 64 'different files' latency --model m --out ./m
refuses 74 'no-folder/x' merge --model m --solution s20.json --out no-folder/x
check "before anything is said" [ ! -s out ]
refuses 74 'no-folder/p' merge --model m --solution s20.json --pruned no-folder/p --out no
wrong() {                      # WORDS SED: a solution that is not one of this network is refused
    sed "$2" s20.json > wrong.json
    cmp -s s20.json wrong.json && bad "$2 changes nothing"
    refuses 65 "wrong.json: .*$1" merge --model m --solution wrong.json --out no
}
wrong 'stride 1 together, not 2' 's/"str":1/"str":2/'
wrong 'not all depthwise' 's/"is_dw":false/"is_dw":true/'
wrong '"is_dw" must be' 's/"is_dw":false/"is_dw":0/'
wrong '"str" is missing' 's/"str":1,//'
wrong 'merge to kernel 3, not 5' 's/"ker":3/"ker":5/'
wrong 'keeps conv 3' 's/"conv":\[1\]/"conv":[3]/'
wrong '"conv" does not list' 's/"conv":\[0,1,2/"conv":[0,1/'
wrong '"act" does not list' 's/"act":\[0,1,/"act":[0,/'
wrong 'ascending' 's/"act":\[0,1,/"act":[0,1,1,/'
wrong 'segment 2 is (0,' 's/"st":1,/"st":0,/'
wrong 'segment 2 is (2,' 's/"st":1,/"st":2,/'
wrong 'segments end at' 's/,{"id":[0-9]*,"st":[0-9]*,[^{]*}\]}$/]}/'
wrong 'is not a segment' 's/"st":17,"end":18/"st":17,"end":99/'
for text in '' '{' '[]' '5' '{"feasible":true,"feasible":true}' '{"feasible":true}' '{"feasible":true,"segments":[]}'; do
    printf %s "$text" > s.json
    refuses 65 's.json: ' merge --model m --solution s.json --out no --json
done
refuses 65 'infeasible' merge --model m --solution infeasible.json --out no
refuses 65 'plain.json: ' merge --model m --solution plain.json --out no
refuses 66 'nothing.json' merge --model m --solution nothing.json --out no
check "nothing was written" [ ! -e no ]

# ---- run folders
small="--model resnet20 --data $data --batch 16 --epochs 2"
works train $small --run run --threads 1 --quiet
cp -r run whole
head -c 5000 whole/checkpoints/last.safetensors > run/checkpoints/last.safetensors; works train $small --run run --quiet
check "the spare checkpoint continues to the same bits" cmp run/model.safetensors whole/model.safetensors
head -c 5000 whole/checkpoints/last.safetensors > run/checkpoints/last.safetensors; rm run/checkpoints/previous.safetensors
refuses 65 'last.safetensors.*remove it' train $small --run run --quiet
refuses 78 '"lr" was 0.1 and is now 0.2' train $small --lr 0.2 --run whole --quiet
for flag in $("$lm" train --help | sed -n '/ the same as --batch/d; s/^  --\([a-z-]*\).*/\1/p'); do check "config.json has $flag" grep -q "^ *\"$flag\": " whole/config.json; done
for value in 'threads": 1' 'limit": 64' 'val-limit": 32' 'input": "3,8,8"' 'size": "8,8"' 'width": 1' 'conv": "direct"' 'exact": false'; do check "$value" grep -q "\"$value,*\$" whole/config.json; done
refuses 78 '"exact" was false and is now true' train $small --exact --run whole --quiet
refuses 78 '"conv" was "direct" and is now "im2col"' train $small --conv im2col --run whole --quiet
works train $small --run whole --threads 2 --workers 2 --checkpoint-every 5 --limit 64 --json
echo '{' > run/config.json; refuses 65 'config.json' train $small --run run --quiet
refuses 74 'm: ' train $small --run m
refuses 64 'is a folder' train $small --out folders
refuses 78 'less than one batch' train --model resnet20 --data $data --batch 65 --out no
refuses 76 'the loss is' train --model resnet20 --data $data --batch 16 --lr 1e30 --epochs 3 --out no --quiet
refuses 66 'nothing' compress --model resnet20 --data nothing --speedup 1.1 --run claimed
refuses 78 'images for fine-tuning' compress --model resnet20 --data $data --train-images 60 --score-images 60 --speedup 1.1 --run claimed
check "a command that cannot run claims no folder" [ ! -e claimed ]
refuses 66 'report.json' report folders
refuses 74 'no-folder/t.csv' latency --model resnet20 --batch 1 --rounds 3 --out no-folder/t.csv

works train $small --run average --model-ema --quiet
check "--model-ema alone takes timm's decay" grep -q '"model-ema-decay": 0.9998,$' average/config.json
refuses 78 '"model-ema-decay" was 0.9998 and is now 0.9' train $small --run average --model-ema --model-ema-decay 0.9 --quiet

# ---- stopped
for signal in INT TERM; do
    (trap - INT; exec "$lm" train --model resnet20 --data builtin:shapes,size=16,train=2000,val=16 --batch 20 --epochs 500 --run stop_$signal --quiet --json) > out 2> err & pid=$!
    for _ in $(seq 100); do [ -s stop_$signal/log.txt ] && break; sleep 0.1; done; sleep 0.3
    kill -$signal $pid; wait $pid; got=$?
    [ $got = 75 ] && [ "$(wc -l < err)" = 1 ] && [ ! -s out ] && [ -s stop_$signal/checkpoints/last.safetensors ] && good || bad "$signal exits $got, wanted 75 and a checkpoint"
done

# ---- a full disk
full() {                       # in a folder where `m` does not fit twice
    before=$(sha256sum < "$1/m")
    refuses 74 '/m: ' train --model resnet20 --data $data --epochs 0 --batch 16 --seed 7 --out "$1/m" --quiet
    check "the old model is intact" [ "$before" = "$(sha256sum < "$1/m")" ]
    check "nothing else is left" [ "$(ls -A "$1")" = m ]
    refuses 74 'model.safetensors: no room' train $small --run "$1/r" --quiet
    check "no half checkpoint" [ -z "$(ls -A "$1/r/checkpoints" 2> /dev/null)" ]
}
fills() {                      # in a folder for two models: room is held from the start, then there is none left
    (exec "$lm" train $small --epochs 40 --out "$1/late" --quiet > out 2> err) & pid=$!
    for _ in $(seq 100); do [ "$(df -k --output=used "$1" | tail -n 1)" -ge 1000 ] && break; sleep 0.05; done
    dd if=/dev/zero of="$1/fill" bs=4k 2> /dev/null
    wait $pid && good || bad "a disk that fills up during training costs the model"
    works inspect "$1/late"
    cp m "$1/old" 2> /dev/null && bad "the disk was not full" || good
}
mkdir full limited
if mount -t tmpfs -o size=1500k none full 2> /dev/null; then
    cp m full/m; full full
    umount full; mount -t tmpfs -o size=3m none full; fills full
else echo "skipped: no tmpfs to fill"; skipped=$((skipped + 1)); fi
cp m limited/m
(ulimit -f 500; exec "$lm" train --model resnet20 --data $data --epochs 0 --batch 16 --seed 7 --out limited/m --quiet > out 2> err); got=$?
[ $got = 74 ] && cmp -s m limited/m && [ "$(ls -A limited)" = m ] && good || bad "a file size limit exits $got, wanted 74 and the old file"
if [ -c /dev/full ]; then for words in "solve $both --budget 2 --out /dev/full" "solve $both --budget 2 --front /dev/full" "eval --model m --data $data --predictions /dev/full" "inspect m --segments /dev/full"; do refuses 74 '/dev/full' $words; done; fi

echo "tests/test_bad_input.sh: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
