#!/bin/sh
# Compiles the CPU kernels for aarch64, looks for NEON in them, and runs check.cpp in an emulator. Takes a minute or two.
#     apt-get install g++-aarch64-linux-gnu qemu-user-static && tests/csrc/aarch64/run.sh
set -eu
cd "$(dirname "$0")"
source=../../src/hyena/csrc/cpu
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
compile() { aarch64-linux-gnu-g++ -std=gnu++20 -O2 -Wno-psabi -I"$source/kernels" -DHYENA_ISA=baseline -DHYENA_BYTES=16 "$@"; }

compile -c "$source/kernels/kernels.cpp" -o "$build/kernels.o"
count=$(aarch64-linux-gnu-objdump -d "$build/kernels.o" | grep -c 'fmla.*v[0-9]*\.4s')
echo "$count multiply-adds of four floats"
[ "$count" -gt 500 ]
compile -static check.cpp "$source/fft/plan.cpp" "$source/kernels/memory.cpp" "$source/kernels/dispatch.cpp" "$build/kernels.o" -o "$build/check"
qemu-aarch64-static "$build/check"
