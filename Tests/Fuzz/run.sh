#!/bin/bash
# Builds each fuzz target with libFuzzer and AddressSanitizer and runs it for a while.
#
#   Tests/Fuzz/run.sh [seconds for each] [target …]      default: 30 seconds, all targets
#
# FUZZ_ARGUMENTS adds libFuzzer's own, such as -seed=1 -runs=20000 for the same inputs each time.
#
# A target is one file NAMEFuzz.swift; its line "// fuzz-sources: …" names the folders or files that
# are built into it. Seeds are in corpus/NAME, words in NAME.dict. Finds are kept in .build/fuzz,
# which the next run goes on from. An input that breaks a target is left in .build/fuzz/NAME/broken-*.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-30}
shift || true
[[ $seconds =~ ^[0-9]+$ ]] || { echo "usage: $0 [seconds] [target ...]" >&2; exit 2; }
here=Tests/Fuzz
if (($# == 0)); then
    for file in "$here"/*Fuzz.swift; do
        name=${file##*/}
        set -- "$@" "${name%Fuzz.swift}"
    done
fi

status=0
for name in "$@"; do
    out=.build/fuzz/$name
    mkdir -p "$out/found"
    read -ra folders < <(sed -n 's|^// fuzz-sources: ||p' "$here/${name}Fuzz.swift")
    mapfile -t sources < <(find "${folders[@]}" -name '*.swift' | sort)
    swiftc -O -g -swift-version 6 -parse-as-library -module-name Fuzz \
        -sanitize=fuzzer,address -use-ld=lld -o "$out/target" \
        "$here/Fuzzing.swift" "$here/${name}Fuzz.swift" "${sources[@]}"

    arguments=(-max_total_time="$seconds" -max_len=2048 -timeout=5 -rss_limit_mb=2048
        -artifact_prefix="$out/broken-" -print_final_stats=1)
    # shellcheck disable=SC2206  # a list
    arguments+=(${FUZZ_ARGUMENTS:-})
    [[ -e $here/$name.dict ]] && arguments+=(-dict="$here/$name.dict")
    # LeakSanitizer looks at every input, for nothing: the Swift runtime keeps its metadata.
    if ASAN_OPTIONS=detect_leaks=0 "$out/target" "${arguments[@]}" \
        "$out/found" "$here/corpus/$name" >"$out/log" 2>&1; then
        rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$out/log")
        count=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out/log")
        echo "$name: $count inputs in $seconds s ($rate a second), none broke it"
    else
        status=1
        echo "$name: BROKEN, see $out/log; the input is in $out/broken-*" >&2
        grep -m3 -E 'Fatal error|ERROR: ' "$out/log" >&2 || tail -n 5 "$out/log" >&2
    fi
done
exit $status
