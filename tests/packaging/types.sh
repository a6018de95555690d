#!/usr/bin/env bash
# Type-checks two small programs against the hyena that is installed in a virtual environment: a right one and a wrong one.
#
#   tests/packaging/types.sh ENVIRONMENT            mypy and hyena are installed in it, hyena not as editable
set -euo pipefail

readonly MYPY=$(realpath -s "$1/bin/mypy")
readonly WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK"

cat > right.py << 'PROGRAM'
import torch
from hyena import HyenaOperator, functional, replace_attention

mixer = HyenaOperator(256, 4096, order=2, num_heads=4, causal=True)
y: torch.Tensor = functional.fft_conv(torch.randn(1, 8, 4), torch.randn(8, 4))
print(replace_attention(torch.nn.Sequential(), l_max=64), mixer, y)
PROGRAM
cat > wrong.py << 'PROGRAM'
from hyena import HyenaOperator

HyenaOperator("256", l_max=4096)
HyenaOperator(256, l_max=4096, number_of_heads=4)
PROGRAM

"$MYPY" --strict right.py
if "$MYPY" --strict wrong.py > wrong.log; then
    echo "mypy finds nothing wrong with $(cat wrong.py)"
    exit 1
fi
cat wrong.log
grep -q 'wrong.py:3: error: Argument 1 to "HyenaOperator" has incompatible type "str"' wrong.log
grep -q 'wrong.py:4: error: Unexpected keyword argument "number_of_heads"' wrong.log
