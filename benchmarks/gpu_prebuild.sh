#!/usr/bin/env bash
# Builds the package for one kind of GPU, with nothing that a measurement there does not need, so that none of its time
# goes into compiling: .gpu/<variant>/hyena, for `gpu.py --prebuilt` and tune.py. Needs nvcc and a torch, no GPU.
#
#   benchmarks/gpu_prebuild.sh [base] [tune] [lb2] [t128]        base, unless named
#
# Each variant differs from base in one thing (and only base has line numbers, for profilers):
#
#   tune   exports hyena_tune, which sets choices at run time
#   lb2    registers for two blocks of 256 threads on a multiprocessor, not three
#   t128   blocks of 128 threads, registers for five
#
# ARCH is the architecture (90-real), OUT the folder (.gpu), JOBS the compilers at once (2).
set -euo pipefail

readonly ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly OUT=$(realpath -m "${OUT:-$ROOT/.gpu}")
readonly PYTHON=$(command -v "${PYTHON:-python3}")

build() {
    local name=$1 options=() cxx="" cuda=""
    case $name in
        base) cuda="-lineinfo" ;;
        tune) options=(-DHYENA_TUNE=ON) ;;
        lb2) cuda="-DHYENA_BLOCKS_TOGETHER=2" ;;
        t128) cuda="-DHYENA_MANY_THREADS=128 -DHYENA_BLOCKS_TOGETHER=5" ;;
        *) echo "no variant is called $name" >&2; exit 2 ;;
    esac
    [[ $cuda == *-D* ]] && cxx=$cuda # what is decided on the host, too
    local work=$ROOT/build/gpu-prebuild/$name package=$OUT/$name/hyena
    mkdir -p "$work" "$OUT/$name"
    echo "== $name: ${options[*]:-} $cuda"
    {
        cmake -S "$ROOT/src/hyena/csrc" -B "$work" -G Ninja -DPython_EXECUTABLE="$PYTHON" -DHYENA_CUDA=ON \
            -DHYENA_ISAS=baseline -DCMAKE_CUDA_ARCHITECTURES="${ARCH:-90-real}" -DCMAKE_CXX_FLAGS="$cxx" \
            -DCMAKE_CUDA_FLAGS="$cuda" "${options[@]}" && cmake --build "$work" -j "${JOBS:-2}"
    } > "$work/log" 2>&1 || { tail -n 40 "$work/log"; exit 1; }
    rm -rf "$package"
    mkdir -p "$package"
    (cd "$ROOT/src/hyena" && find . \( -name "*.py" -o -name py.typed \) -print0 | tar --null -cf - --files-from=-) |
        tar -xf - -C "$package"
    cp "$work/_kernels.so" "$package/"
    strip -g "$package/_kernels.so"
    # It must load, with every symbol there, before it is carried anywhere.
    (cd / && PYTHONPATH=$OUT/$name "$PYTHON" -c '
import torch, hyena
from hyena.ops._extension import EXTENSION

assert EXTENSION.instructions is not None, EXTENSION.reason
assert hyena.ops.has_kernel("recurrence", torch.device("cuda")), "no CUDA kernels"
') || { echo "$package does not work"; exit 1; }
    du -sh --apparent-size "$OUT/$name"
}

for name in "${@:-base}"; do build "$name"; done
du -sh --apparent-size "$OUT"
