#!/bin/sh
# Who may include whom (core <- nn, data <- train <- search), and how long a file may be.
# One check per source file; a wrong include is printed as file:line. And every verb is in main.c.
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0

public='core/(core|kern|io|cli)\.h'
may_include() {                # the headers a file may include, as a regular expression
    case $1 in
    main.c)       echo "$public" ;;
    lm.c)         echo "layermerge\.h|$public|nn/nn\.h|data/data\.h" ;;
    search/dp.c)  echo 'search/search\.h' ;;
    core/core.c)  echo 'core/[a-z0-9_]+\.h|core/kern/kern\.h' ;;
    core/kern/*)  echo "$public|core/kern/[a-z0-9_]+\.h" ;;
    core/*)       echo 'core/[a-z0-9_]+\.h' ;;
    nn/*)         echo "$public|nn/([a-z0-9_]+/)?[a-z0-9_]+\.h" ;;
    data/*)       echo "$public|data/[a-z0-9_]+\.h" ;;
    train/*)      echo "$public|nn/nn\.h|data/data\.h|train/[a-z0-9_]+\.h" ;;
    search/*)     echo "$public|nn/nn\.h|data/data\.h|train/train\.h|search/[a-z0-9_]+\.h" ;;
    esac
}

includes() { grep -nE "^ *# *include *$2" "$1"; }

check() {
    wrong=$(
        includes "$1" '"' | grep -vE "\"($(may_include "$1"))\""
        [ "$1" = core/gemm.c ]  || includes "$1" '.*cblas'
        [ "$1" = data/image.c ] || includes "$1" '.*stb_'
        [ "$1" = data/turbo.c ] || includes "$1" '.*(jpeglib|turbojpeg|jerror)'
        case $1 in
        main.c|core/cli.c|*/cmd_*.c) ;;
        *) includes "$1" '.*core/cli\.h' ;;
        esac
        case $1 in main.c) most=100 ;; *.h) most=400 ;; *) most=700 ;; esac
        lines=$(wc -l < "$1")
        [ "$lines" -lt $most ] || echo "$lines: fewer than $most lines wanted"
    )
    if [ -z "$wrong" ]; then passed=$((passed + 1)); return; fi
    failed=$((failed + 1))
    echo "$wrong" | sed "s|^|FAILED: $1:|"
}

for file in main.c lm.c $(find core nn data train search -name '*.[ch]' | sort); do check "$file"; done
for file in $(find core nn data train search -name 'cmd_*.c'); do
    verb=$(basename "$file" .c)
    if grep -qE "X\\(${verb#cmd_}\\)" main.c; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAILED: main.c: the verb of $file is not in the table"; fi
done
echo "tests/layers.sh: $passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
