#!/usr/bin/env bash
# Installs hyena in the ways that people do, and checks that each has its compiled kernels.
#
#   tests/packaging/installs.sh ENVIRONMENT TOOLS FOLDER
#
# ENVIRONMENT is a virtual environment with torch, which the new ones see in different ways; TOOLS one with uv and build. FOLDER
# gets the new environments, and the wheel in FOLDER/dist. Only the first build compiles; the others find its objects.
set -euo pipefail

readonly ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly ENVIRONMENT=$(realpath -s "$1") TOOLS=$(realpath -s "$2")
mkdir -p "$3"
cd "$3"

# Where an environment has its packages.
packages() {
    "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}
readonly PACKAGES=$(packages "$ENVIRONMENT")

# A new environment without torch.
new() {
    echo
    echo "== $2"
    "$ENVIRONMENT/bin/python" -m venv "$1"
}

# The hyena that a Python imports has its kernels.
check() {
    (cd / && "$@" -W ignore -c '
import hyena
from hyena.ops._extension import EXTENSION

assert EXTENSION.instructions is not None, EXTENSION.reason
print(f"{hyena.__file__}: {EXTENSION.reason}")
')
}

new pth "pip, torch in another folder that a .pth file names"
echo "$PACKAGES" > "$(packages pth)/other.pth"
pth/bin/pip install --no-deps "$ROOT"
pth/bin/pip install -q einops opt_einsum
check "$PWD/pth/bin/python"

new path "pip, torch on PYTHONPATH"
PYTHONPATH=$PACKAGES path/bin/pip install --no-deps "$ROOT"
PYTHONPATH=$PACKAGES check "$PWD/path/bin/python"

new target "pip --target, beside torch"
mkdir packages
ln -s "$PACKAGES/torch" packages/torch
target/bin/pip install --no-deps --target packages "$ROOT"
PYTHONPATH=$PWD/packages:$PACKAGES check "$PWD/target/bin/python"

new user "pip, torch in the user's packages"
# A virtual environment that sees its base's packages sees the user's too.
sed -i 's/^include-system-site-packages = .*/include-system-site-packages = true/' user/pyvenv.cfg
export PYTHONUSERBASE=$PWD/userbase
user_packages=$(user/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib", "posix_user"))')
mkdir -p "$user_packages"
echo "$PACKAGES" > "$user_packages/other.pth"
user/bin/pip install --no-deps --no-warn-script-location --force-reinstall "$ROOT"
check "$PWD/user/bin/python"
unset PYTHONUSERBASE

new editable "pip --editable"
echo "$PACKAGES" > "$(packages editable)/other.pth"
editable/bin/pip install --no-deps --editable "$ROOT"
check "$PWD/editable/bin/python"

new uv "uv pip install --python"
echo "$PACKAGES" > "$(packages uv)/other.pth"
"$TOOLS/bin/uv" pip install --no-deps --python uv/bin/python "$ROOT"
check "$PWD/uv/bin/python"

new project/.venv "uv pip install, into the .venv of a folder above"
echo "$PACKAGES" > "$(packages project/.venv)/other.pth"
mkdir -p project/src
(cd project/src && "$TOOLS/bin/uv" pip install --no-deps "$ROOT")
check "$PWD/project/.venv/bin/python"

echo
echo "== python -m build, from an environment with torch"
"$ENVIRONMENT/bin/pip" install -q build
"$ENVIRONMENT/bin/python" -m build --wheel --outdir dist "$ROOT"
unzip=$("$ENVIRONMENT/bin/python" -m zipfile -l dist/hyena-*.whl)
grep hyena/_kernels.so <<< "$unzip"
grep hyena/py.typed <<< "$unzip"

echo
echo "== pip where there is no C++ compiler: an install without kernels that says why"
"$ENVIRONMENT/bin/python" -m venv bare
mkdir programs
for program in cmake ninja git uname; do
    if command -v "$program" > /dev/null; then ln -s "$(command -v "$program")" programs/; fi
done
CXX=no-such-compiler PATH=$PWD/programs bare/bin/pip install --no-deps --config-settings=build-dir="$PWD/bare-build" "$ROOT"
reason=$(cat "$(packages bare)/hyena/_kernels_missing.txt")
echo "$reason"
# Which of the two comes first depends on whether the source tree has an environment with torch in .venv.
grep -q -E "^(no torch 2.11 or later was found when hyena was built; looked at |there was no C\+\+ compiler when hyena was built)" \
    <<< "$reason"
