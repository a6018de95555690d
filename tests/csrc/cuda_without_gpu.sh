#!/usr/bin/env bash
# What can be shown of the CUDA kernels without a GPU. Needs an installed hyena[dev]; works in a temporary folder.
#
#   tests/csrc/cuda_without_gpu.sh [build] [run]        both, unless named
#
# build  compiles every kernel for every architecture, or those in ARCHITECTURES ("80-real;90-real"), prints registers and
#        spills, links with every symbol resolved, and loads the result into this torch. Needs nvcc, and says so where there
#        is none.
# run    compiles the kernels for the host, threads of a block as a loop, and runs the op tests on them: rows in one block and
#        rows that are split, threads in either order, programs in one launch and in many.
set -euo pipefail

readonly ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly PYTHON=$(command -v "${PYTHON:-python}")
readonly WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

# The CPU's kernels are not what is tried: of theirs the baseline is enough.
configure() {
    cmake -S "$ROOT/src/hyena/csrc" -B "$WORK/$1" -G Ninja -DPython_EXECUTABLE="$PYTHON" -DHYENA_ISAS=baseline "${@:2}" > "$WORK/$1.log" 2>&1 ||
        { cat "$WORK/$1.log"; exit 1; }
}

# The package with the library that was built in $1, in a folder to put on PYTHONPATH.
package() {
    mkdir "$WORK/$1/package"
    cp -R "$ROOT/src/hyena" "$WORK/$1/package/"
    cp "$WORK/$1/_kernels.so" "$WORK/$1/package/hyena/"
}

build() {
    if ! command -v "${CUDACXX:-nvcc}" > /dev/null; then
        echo "SKIPPED: no nvcc here to compile the CUDA kernels with (CUDACXX names one that is not on the PATH)"
        return
    fi
    echo "== compiling the CUDA kernels for ${ARCHITECTURES:-all architectures}"
    configure cuda -DHYENA_CUDA=ON -DCMAKE_CUDA_FLAGS="-Xptxas -v" \
        ${ARCHITECTURES:+"-DCMAKE_CUDA_ARCHITECTURES=$ARCHITECTURES"}
    # Messages from ptxas come as the compilers end: one at a time, or they mix.
    cmake --build "$WORK/cuda" -- -v > "$WORK/build.log" 2>&1 || { grep -v "^ptxas" "$WORK/build.log" | tail -n 50; exit 1; }
    "$PYTHON" "$ROOT/tests/csrc/ptxas_report.py" "$WORK/build.log"
    package cuda
    (cd / && PYTHONPATH="$WORK/cuda/package" "$PYTHON" -c '
import hyena, torch
from hyena.ops._library import OP_NAMES

print(hyena.backend_report())
kernel = torch._C._dispatch_has_kernel_for_dispatch_key
assert kernel("hyena::recurrence", "CUDA") and kernel("hyena::recurrence", "CPU")
')
}

run() {
    echo "== the CUDA kernels on the host"
    configure host -DHYENA_EMULATE_CUDA=ON -DHYENA_TUNE=ON
    cmake --build "$WORK/host" > "$WORK/host.log" 2>&1 || { tail -n 50 "$WORK/host.log"; exit 1; }
    package host
    local tests=("$ROOT"/tests/ops/test_{gated_conv,recurrence,recurrence_bias,short_conv,spectrum,tiers,packing,layout,add_conv,direct_conv,direct_conv_rows,channel_blocked}.py)
    (cd "$ROOT" && PYTHONPATH="$WORK/host/package" OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -p no:cacheprovider tests/csrc/test_{tuning,long_plans}.py)
    # The last has as much shared memory as a data-centre GPU, which kernels of one length need.
    for setting in "0 12000 7" "1 40000 2147483647" "1 232448 2147483647 usual_lengths"; do
        read -r order shared blocks own <<< "$setting"
        if [[ -n $own ]]; then tests=("$ROOT/tests/ops/test_$own.py"); fi
        echo "-- threads in order $order, blocks of $shared bytes of shared memory, at most $blocks to a launch"
        (cd "$ROOT" && PYTHONPATH="$WORK/host/package" HYENA_EMULATED_ORDER=$order HYENA_EMULATED_SHARED=$shared \
            HYENA_EMULATED_BLOCKS=$blocks OMP_NUM_THREADS=1 \
            "$PYTHON" -m pytest -q -n auto -p no:cacheprovider -k "not fallback and not cuda" "${tests[@]}")
    done
}

if (($# == 0)); then set -- build run; fi
for part in "$@"; do "$part"; done
