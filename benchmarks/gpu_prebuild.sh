#!/usr/bin/env bash
# Builds the package for one kind of GPU, with nothing that a measurement there does not need, so that none of its time
# goes into compiling: .gpu/<variant>/hyena, for `gpu.py --prebuilt` and tune.py. Needs nvcc and a torch, no GPU.
#
#   benchmarks/gpu_prebuild.sh [base] [tune] [lb2] [t128]        base, unless named
#
# base   for gpu.py: with line numbers, for profilers
# tune   exports hyena_tune, which sets choices at run time
# lb2    tune, with registers for two blocks of 256 threads on a multiprocessor, not three
# t128   tune, with blocks of 128 threads, and registers for five
#
# ARCH is the architecture (90-real), OUT the folder (.gpu), JOBS the compilers at once (2).
set -euo pipefail

readonly ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly OUT=$(realpath -m "${OUT:-$ROOT/.gpu}")
readonly PYTHON=$(command -v "${PYTHON:-python3}")
readonly WORK=$ROOT/build/gpu-prebuild

# Builds everything into $WORK/<name>: name, flags of nvcc, options of CMake.
library() {
    cmake -S "$ROOT/src/hyena/csrc" -B "$WORK/$1" -G Ninja -DPython_EXECUTABLE="$PYTHON" -DHYENA_CUDA=ON \
        -DHYENA_ISAS=baseline -DCMAKE_CUDA_ARCHITECTURES="${ARCH:-90-real}" -DCMAKE_CUDA_FLAGS="$2" "${@:3}" &&
        cmake --build "$WORK/$1" -j "${JOBS:-2}"
}

# Builds $WORK/<name> from tune's objects, but for the few that its definitions change.
variant() {
    local name=$1 flags=$2 commands source object command
    library tune "" -DHYENA_TUNE=ON
    cd "$WORK/tune"
    commands=$(ninja -t commands _kernels.so)
    local link=${commands##*$'\n'}
    for source in $(cd "$ROOT/src/hyena/csrc" && ls cuda/kernels/kernels_convolve*.cu) cuda/binding/steps.cpp cuda/fft/plan.cpp; do
        object=CMakeFiles/_kernels.dir/$source.o
        command=$(grep -E -- "-c $ROOT/src/hyena/csrc/$source( |\$)" <<< "$commands")
        bash -c "${command//"$object"/"$WORK/$name/${source##*/}.o"} $flags"
        link=${link//"$object"/"$WORK/$name/${source##*/}.o"}
    done
    bash -c "${link//"-o _kernels.so"/"-o $WORK/$name/_kernels.so"}"
}

build() {
    local name=$1 package=$OUT/$1/hyena began=$SECONDS
    mkdir -p "$WORK/$name"
    (
        set -e
        case $name in
            base) library base -lineinfo ;;
            tune) library tune "" -DHYENA_TUNE=ON ;;
            lb2) variant lb2 "-DHYENA_BLOCKS_TOGETHER=2" ;;
            t128) variant t128 "-DHYENA_MANY_THREADS=128 -DHYENA_BLOCKS_TOGETHER=5" ;;
            *) echo "no variant is called $name" && exit 2 ;;
        esac
    ) > "$WORK/$name/log" 2>&1 || { tail -n 40 "$WORK/$name/log"; exit 1; }
    rm -rf "$package"
    mkdir -p "$package"
    (cd "$ROOT/src/hyena" && find . \( -name "*.py" -o -name py.typed \) -print0 | tar --null -cf - --files-from=-) |
        tar -xf - -C "$package"
    cp "$WORK/$name/_kernels.so" "$package/"
    strip -g "$package/_kernels.so"
    # It must load, with every symbol there, before it is carried anywhere.
    (cd / && PYTHONPATH=$OUT/$name "$PYTHON" -c '
import torch, hyena
from hyena.ops._extension import EXTENSION

assert EXTENSION.instructions is not None, EXTENSION.reason
assert hyena.ops.has_kernel("recurrence", torch.device("cuda")), "no CUDA kernels"
') || { echo "$package does not work"; exit 1; }
    echo "$name: $((SECONDS - began)) s, $(du -sh --apparent-size "$OUT/$name" | cut -f 1)"
}

for name in "${@:-base}"; do build "$name"; done
du -sh --apparent-size "$OUT"
