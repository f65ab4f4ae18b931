#!/bin/bash
# What `make install` leaves behind is enough: header, both libraries, pkg-config, the example.
LAYERMERGE=${LAYERMERGE:-build/release/layermerge}
b=$(dirname "$LAYERMERGE")
[ "$b" = . ] && b=build/release
name=tests/test_install.sh
if grep -q -- -fsanitize "$b/flags" 2> /dev/null; then echo "skipped: sanitized libraries want a sanitized program"; echo "$name: 0 passed, 0 failed, 1 skipped"; exit 0; fi
. tests/check.sh
skip() { echo "skipped: $1"; skipped=$((skipped + 1)); }
cc=${CC:-cc} root=$dir/root to=$dir/root/opt/lm
check "make install puts everything under DESTDIR" make --no-print-directory install B="$b" DESTDIR="$root" PREFIX=/opt/lm
for f in bin/layermerge include/layermerge.h lib/liblayermerge.a lib/liblayermerge.so lib/pkgconfig/layermerge.pc; do check "$f is there" test -s "$to/$f"; done
check "the program runs" "$to/bin/layermerge" version
check "the shared library shows lm_* and nothing else" [ "$(nm -D --defined-only "$to/lib/liblayermerge.so" | grep -vc ' T lm_[a-z_]*$')" = 0 ]
check "so does the archive" [ "$(nm -g --defined-only "$to/lib/liblayermerge.a" | grep ' [A-Z] ' | grep -vc ' T lm_[a-z_]*$')" = 0 ]
check "both have all that the header declares" [ "$(grep -o 'lm_[a-z_]*(' layermerge.h | grep -v '^lm_model' | sort -u | wc -l)" = "$(nm -D --defined-only "$to/lib/liblayermerge.so" | wc -l)" ]

"$to/bin/layermerge" data make --data builtin:shapes,classes=3,size=16,train=6,val=6 --out "$dir/images" --quiet > /dev/null 2>&1
"$to/bin/layermerge" train --model resnet20 --data "$dir/images" --input 3,16,16 --epochs 0 --batch 4 --out "$dir/m" --quiet > /dev/null 2>&1
image=$(find "$dir/images/val" -name '*.png' | sort | tail -n 1)
best() { "$to/bin/layermerge" predict --model "$1" "$2" --top 1 --json | sed 's/.*"class":\([0-9]*\).*/\1/'; }
second() { awk 'NR == 1 { print $2 }' "$1"; }
example() {                    # PROGRAM MODEL IMAGE: its first answer is predict's
    LD_LIBRARY_PATH="$to/lib" "$1" "$2" "$3" > "$dir/classes" && [ "$(second "$dir/classes")" = "$(best "$2" "$3")" ]
}
if command -v pkg-config > /dev/null; then
    export PKG_CONFIG_PATH=$to/lib/pkgconfig
    check "pkg-config knows the version" [ "$(pkg-config --modversion layermerge)" = "$("$to/bin/layermerge" version | sed -n 's/^layermerge //p')" ]
    check "the example builds with it" $cc examples/classify.c $(pkg-config --cflags --libs layermerge) -o "$dir/classify"
    check "and with a sysroot" env PKG_CONFIG_SYSROOT_DIR="$root" sh -c "$cc examples/classify.c \$(pkg-config --cflags --libs layermerge) -o $dir/sysroot"
    check "it says what predict says" example "$dir/classify" "$dir/m" "$image"
    check "with the class's name" grep -q '^ *[-0-9.]* *[0-9] *[a-z]' "$dir/classes"
    check "the archive serves as well" $cc examples/classify.c -I"$to/include" "$to/lib/liblayermerge.a" \
        $(pkg-config --static --libs-only-l layermerge | sed 's/-llayermerge//') -pthread -o "$dir/static"
    check "without the shared library" sh -c "! ldd $dir/static | grep liblayermerge"
    check "and says the same" example "$dir/static" "$dir/m" "$image"
    check "a missing image is a sentence" sh -c "LD_LIBRARY_PATH=$to/lib $dir/classify $dir/m $dir/none.jpg 2>&1 | grep 'classify: cannot open .*none.jpg'"
    weights=../shared/data/weights/mobilenet_v2_1.0_deq_fp32.pth
    jpeg=$(echo ../shared/data/imagenet-sample/n01440764_*.JPEG)
    if [ -f $weights ] && [ -f "$jpeg" ]; then
        check "published weights become a model" "$to/bin/layermerge" import --weights $weights --arch mobilenetv2 --out "$dir/v2"
        check "that classifies a JPEG" example "$dir/classify" "$dir/v2" "$jpeg"
        check "as a tench" [ "$(second "$dir/classes")" = 0 ]
    else skip "no $weights"; fi
else skip "no pkg-config"; fi
if command -v c++ > /dev/null; then
    printf '#include <layermerge.h>\nint main() { return lm_load("none") != nullptr; }\n' > "$dir/x.cc"
    check "C++ can use it" c++ -I"$to/include" "$dir/x.cc" -L"$to/lib" -llayermerge -o "$dir/x"
else skip "no C++ compiler"; fi
echo "$name: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
