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

tokens = torch.arange(200)[None] % 65
print(f"logits of {tokens.size(1)} tokens sum to {model(tokens).sum().item():.4f}")
try:
    model(torch.zeros(1, 1025, dtype=torch.int64))
except RuntimeError as error:
    print("1025 tokens:", str(error).splitlines()[0])
assert "hyena" not in sys.modules
