#!/bin/bash
# export from the outside: files, exit codes, sentences.
. tests/check.sh
says() { [ "$(wc -l < "$dir/stderr")" = 1 ] && grep -q -- "$1" "$dir/stderr"; }

check "a builder becomes an ONNX file" exits 0 "$lm" export resnet20 --onnx "$dir/m.onnx" --json
check "JSON says what it is" prints '^{"arch":"resnet20","onnx":".*","opset":13,"safetensors":null,"tensors":97,"params":269722}$'
check "the file names its nodes and tensors" grep -qa 'layer3.2.bn2.running_var' "$dir/m.onnx"
check "both forms at once, of any size" exits 0 "$lm" export mobilenetv2 --width 0.25 --classes 5 --input 3,32,32 --onnx "$dir/n.onnx" --safetensors "$dir/n.safetensors"
check "plain tensors carry no graph" [ "$(head -c 20000 "$dir/n.safetensors" | grep -ca '"graph"')" = 0 ]
check "but torchvision's names" grep -qa '"features.18.1.running_mean":{"dtype":"F32","shape":\[' "$dir/n.safetensors"
check "they come back by import" exits 0 "$lm" import --weights "$dir/n.safetensors" --arch mobilenetv2 --width 0.25 --classes 5 --input 3,32,32 --out "$dir/n.model"
check "and out again" exits 0 "$lm" export "$dir/n.model" --safetensors "$dir/again.safetensors"
check "bit for bit" cmp "$dir/n.safetensors" "$dir/again.safetensors"
check "what train wrote about a model" exits 0 "$lm" train --model resnet20 --data builtin:shapes,size=8,train=32,val=16 --epochs 0 --batch 16 --out "$dir/t.model" --quiet
check "is exported too" exits 0 "$lm" export --model "$dir/t.model" --onnx "$dir/t.onnx"
check "with its labels" grep -qa 'labels' "$dir/t.onnx"
check "a model is wanted" exits 64 "$lm" export --onnx "$dir/no"
check "one only" exits 64 "$lm" export resnet20 resnet56 --onnx "$dir/no"
check "and a file to write" exits 64 "$lm" export resnet20
check "the flags are named" says '--onnx FILE, --safetensors FILE or both'
check "a missing model is missing input" exits 66 "$lm" export "$dir/nothing" --onnx "$dir/no"
check "weights without a graph are bad content" exits 65 "$lm" export "$dir/n.safetensors" --onnx "$dir/no"
check "a file's classes are what they are" exits 78 "$lm" export "$dir/n.model" --classes 7 --onnx "$dir/no"
check "nothing was written" [ ! -e "$dir/no" ]
check "a folder that is not there is an error of writing" exits 74 "$lm" export resnet20 --onnx "$dir/none/m.onnx"
check "for tensors too" exits 74 "$lm" export resnet20 --safetensors "$dir/none/m.safetensors"
if [ -c /dev/full ]; then check "a full disk is one, too" exits 74 "$lm" export resnet20 --onnx /dev/full; fi
echo "tests/test_export.sh: $passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
