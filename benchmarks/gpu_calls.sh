#!/usr/bin/env bash
# What to do with a GPU that is there for minutes only: each word is one call, and what it finds is in the folder $OUT.
# Packages are those of gpu_prebuild.sh.
#
#   OUT=… COMMIT=… benchmarks/gpu_calls.sh [--dry-run] check|tune|peers|profile|record …
#
# check    is it right (gpu_smoke.py, and compute-sanitizer on a few lengths), and what is this machine   (about 3 minutes)
# tune     every choice of the kernels (tune.py): PACKAGES/tune, base and the other variants that are there  (TUNE_S, 300)
# peers    beside cuDNN, if PACKAGES/libcudnn_ext.so.9 is there (beside_cudnn.py)                           (PEERS_S, 200)
# profile  counters of the mixing step's kernels (ncu)                                                    (PROFILE_S, 150)
# record   the tests and everything that has a bar (gpu.py); RECORD holds more options                     (RECORD_S, 560)
#
# PACKAGES is .gpu of this checkout, unless set. Each call goes on where another failed. --dry-run runs on the CPU, in
# seconds, and prints what only a GPU can run.
set -uo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PACKAGES=${PACKAGES:-$ROOT/.gpu} PYTHON=${PYTHON:-python3} COMMIT=${COMMIT:-unknown}
: "${OUT:?is the folder for what is found}"
readonly ROOT PACKAGES PYTHON COMMIT OUT
dry=()
if [[ ${1:-} == --dry-run ]]; then dry=(--dry-run) && shift; fi
export PYTHONUNBUFFERED=1 PYTHONPATH=$PACKAGES/base

# A command that only a GPU can run.
on_gpu() { if ((${#dry[@]})); then echo "would run: $*"; else "$@"; fi; }

package_works() {
    (cd / && timeout 90 "$PYTHON" -c '
import sys, torch, hyena

print("torch", torch.__version__)
print(hyena.backend_report())
assert len(sys.argv) > 1 or hyena.ops.has_kernel("recurrence", torch.device("cuda", 0), torch.bfloat16), "no kernel for this GPU"
' "${dry[@]}")
}

check() {
    on_gpu nvidia-smi -L
    on_gpu nvidia-smi --query-gpu=clocks.sm,power.limit --format=csv
    package_works || return
    local few=(--tiny "${dry[@]}") tool
    for tool in memcheck racecheck synccheck; do
        on_gpu timeout 175 compute-sanitizer --tool "$tool" --kernel-regex kns=hyena "$PYTHON" \
            "$ROOT/benchmarks/gpu_smoke.py" --tiny > "$OUT/$tool.txt" 2>&1 &
    done
    ((${#dry[@]})) || few=()
    timeout 150 "$PYTHON" "$ROOT/benchmarks/gpu_smoke.py" "${few[@]}" > "$OUT/smoke.txt" 2>&1
    local status=$?
    grep -v ": ok" "$OUT/smoke.txt" | tail -n 30
    wait
    tail -n 2 "$OUT"/*check.txt
    echo "smoke: exit status $status"
    return "$status"
}

tune() {
    local libraries=() name
    for name in tune base "$PACKAGES"/*/; do
        name=$(basename "$name")
        if [[ -e $PACKAGES/$name/hyena && " ${libraries[*]} " != *" $PACKAGES/$name "* ]]; then libraries+=("$PACKAGES/$name"); fi
    done
    "$PYTHON" "$ROOT/benchmarks/tune.py" "${libraries[@]}" --out "$OUT/tune.json" --budget "${TUNE_S:-300}" \
        --commit "$COMMIT" "${dry[@]}" > "$OUT/tune.log" 2>&1
    local status=$?
    # What failed, and the table.
    grep -E "Error|exit status|^(forward|backward) |^\{" "$OUT/tune.log" | cut -c1-220
    return "$status"
}

peers() {
    local library=$PACKAGES/libcudnn_ext.so.9
    "$PYTHON" "$ROOT/benchmarks/beside_cudnn.py" "$library" --out "$OUT/cudnn.json" --budget "${PEERS_S:-200}" \
        "${dry[@]}" > "$OUT/cudnn.log" 2>&1
    local status=$?
    tail -n 14 "$OUT/cudnn.log" | cut -c1-300
    return "$status"
}

# What the kernels of one call wait for.
readonly METRICS=(
    gpu__time_duration.sum sm__warps_active.avg.pct_of_peak_sustained_active
    smsp__issue_active.avg.pct_of_peak_sustained_active smsp__inst_executed.sum dram__bytes.sum
    lts__t_sectors_op_read.sum lts__t_sector_hit_rate.pct l1tex__t_sector_hit_rate.pct
    l1tex__data_bank_conflicts_pipe_lsu.sum launch__occupancy_limit_registers launch__registers_per_thread
    smsp__average_warps_issue_stalled_{no_instruction,long_scoreboard,short_scoreboard,barrier,mio_throttle,wait}_per_issue_active.ratio
)

profile() {
    local call names began=$SECONDS
    names=$(IFS=, && echo "${METRICS[*]}")
    : > "$OUT/ncu.txt"
    for call in "recurrence 4096" "recurrence 1024" "recurrence 16384" "gated_conv 4096" "direct_conv 4096"; do
        for direction in backward forward; do
            ((SECONDS - began < ${PROFILE_S:-150})) || { echo "no time left for $call $direction"; continue; }
            echo "== $call $direction" >> "$OUT/ncu.txt"
            # shellcheck disable=SC2086
            on_gpu timeout 60 ncu --clock-control none --kernel-name-base mangled -k "regex:Convolve|Toeplitz" --metrics "$names" \
                "$PYTHON" "$ROOT/benchmarks/one_call.py" $call "$direction" >> "$OUT/ncu.txt" 2>&1
        done
    done
    # shellcheck disable=SC2086
    ((${#dry[@]} == 0)) || "$PYTHON" "$ROOT/benchmarks/one_call.py" $call backward --dry-run
    grep -E "^==|duration|issue_active.avg|no_instruction|long_scoreboard" "$OUT/ncu.txt" | grep -v "^==PROF" | head -n 120
}

record() {
    # Tests that collect, and sections that measure, take longer than a dry run may: its own test has them.
    local fewer=()
    ((${#dry[@]} == 0)) || fewer=(--only device one_row)
    # shellcheck disable=SC2086
    "$PYTHON" "$ROOT/benchmarks/gpu.py" --prebuilt "$PACKAGES/base" --budget "${RECORD_S:-560}" --commit "$COMMIT" \
        --out "$OUT" "${dry[@]}" "${fewer[@]}" ${RECORD:-}
}

(($#)) || { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }
mkdir -p "$OUT"
failed=0
for call in "$@"; do
    case $call in
        check | tune | peers | profile | record) ;;
        *) echo "no call is named $call" >&2; exit 2 ;;
    esac
    echo "===== $call"
    began=$SECONDS
    "$call" || failed=$?
    echo "----- $call: $((SECONDS - began)) s"
done
exit "$failed"
