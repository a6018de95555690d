"""Runs what export.py compiled, in Python without this package.

    python examples/export/run.py build/export [build/export/libhyena_schemas.so]

With the second argument the schemas come from a library, as in C++; without it they are read from its source.
"""

import re
import sys
from pathlib import Path

import torch

folder = Path(sys.argv[1])
source, kernels = folder / "hyena_schemas.cpp", folder / "_kernels.so"
if len(sys.argv) > 2:
    torch.ops.load_library(sys.argv[2])
elif source.exists():
    schemas = torch.library.Library("hyena", "DEF")
    for schema in re.findall(r'm\.def\("(.*)"\)', source.read_text(encoding="utf-8")):
        schemas.define(schema)
if kernels.exists():
    torch.ops.load_library(str(kernels))
model = torch._inductor.aoti_load_package(str(folder / "model.pt2"))

limits = {name: int(value) for name, value in model.get_metadata().items() if name in ("l_max", "vocab_size")}


def logits(tokens: torch.Tensor) -> torch.Tensor:
    """Checked before: an error inside the model, on several threads, would end the process."""
    if tokens.size(1) > limits["l_max"] or not 0 <= tokens.min() <= tokens.max() < limits["vocab_size"]:
        raise ValueError(
            f"{tokens.size(1)} tokens from {tokens.min()} to {tokens.max()}: the model takes up to {limits['l_max']}, "
            f"from 0 to {limits['vocab_size'] - 1}"
        )
    return model(tokens)


tokens = torch.arange(200)[None] % 65
print(f"logits of {tokens.size(1)} tokens sum to {logits(tokens).sum().item():.4f}")
for wrong in (torch.zeros(1, 1025, dtype=torch.int64), torch.full((1, 3), 65)):
    try:
        logits(wrong)
    except ValueError as error:
        print(error)
assert "hyena" not in sys.modules
