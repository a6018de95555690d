#!/usr/bin/env bash
# The steps of a release, for .github/workflows/release.yml, cibuildwheel and .ci/run.
#
#   tools/release.sh sdist FOLDER           the source distribution, with all that a build needs
#   tools/release.sh pure FOLDER            the wheel without kernels, for systems that they are not written for
#   tools/release.sh repair WHEEL FOLDER    the wheel with kernels, by the name of the oldest glibc that it runs with
#   tools/release.sh check FILE...          sizes, tags, and what is in the files that are to be uploaded
#
# PYTHON (default: python3) has build; repair needs auditwheel and patchelf on the PATH.
set -euo pipefail

readonly ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly PYTHON=${PYTHON:-python3}
readonly MOST=$((10 << 20)) # bytes of a file

fail() {
    echo "release.sh: $*" >&2
    exit 1
}

sdist() {
    "$PYTHON" -m build --sdist --outdir "$1" "$ROOT"
}

pure() {
    "$PYTHON" -m build --wheel --outdir "$1" --config-setting=wheel.cmake=false "$ROOT"
}

repair() {
    # torch is loaded before the kernels and brings its libraries: they are neither copied in nor part of the promise.
    auditwheel repair --exclude 'libtorch*.so*' --exclude 'libc10*.so*' --wheel-dir "$2" "$1"
}

check() {
    local file names size tag
    for file in "$@"; do
        size=$(stat --format=%s "$file")
        ((size < MOST)) || fail "$file has $size bytes, more than $MOST"
        case $file in
            *.tar.gz) names=$(tar --list --gzip --file "$file") ;;
            *.whl) names=$("$PYTHON" -m zipfile --list "$file" | cut -d ' ' -f 1) ;;
            *) fail "$file is neither a wheel nor a source distribution" ;;
        esac
        case $file in
            *.tar.gz) has "$file" "$names" pyproject.toml tools/hyena_build.py tools/find_torch.py README.md LICENSE \
                src/hyena/csrc/CMakeLists.txt src/hyena/csrc/cpu/kernels/kernels.cpp src/hyena/csrc/cuda/binding/ops.cpp ;;
            *-py3-none-any.whl) has "$file" "$names" hyena/__init__.py hyena/py.typed licenses/LICENSE ;;
            *-py3-none-manylinux*.whl)
                has "$file" "$names" hyena/__init__.py hyena/py.typed licenses/LICENSE hyena/_kernels.so
                tag=$(auditwheel show "$file" | tr '\n' ' ' | sed -n 's/.*constrains the platform tag to "\([^"]*\)".*/\1/p')
                [[ -n $tag && $file == *"$tag"* ]] || fail "$file needs ${tag:-a system unknown to auditwheel}"
                ;;
            *) fail "$file: only py3-none-any and py3-none-manylinux wheels can be uploaded" ;;
        esac
        if [[ $file == *.whl ]] && grep -E '\.(cpp|cu|h|libs/.*)$|/csrc/' <<< "$names"; then
            fail "$file has these files, which no wheel should have"
        fi
        if [[ $file != *manylinux* ]] && grep '\.so$' <<< "$names"; then
            fail "$file has a compiled library"
        fi
        echo "$file: $size bytes, $(wc -l <<< "$names") files"
    done
}

has() {
    local file=$1 names=$2 name
    for name in "${@:3}"; do
        grep -q -E "(^|/)$name\$" <<< "$names" || fail "$file has no $name"
    done
}

case ${1:-} in
    sdist | pure) (($# == 2)) || fail "expected: $1 FOLDER" ;;
    repair) (($# == 3)) || fail "expected: repair WHEEL FOLDER" ;;
    check) (($# >= 2)) || fail "expected: check FILE..." ;;
    *) fail "expected sdist, pure, repair or check, got '${1:-}'" ;;
esac
"$@"
