"""Compiles a small language model for programs without Python: model.pt2, kernels, and the source of their schemas.

    python examples/export/export.py --folder build/export

Then ``run.py`` loads it in Python without this package, and ``CMakeLists.txt`` builds a C++ program that does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hyena import export
from hyena.models import CausalLM, CausalLMConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/export"))
    parser.add_argument("--plain", action="store_true", help="without the library's ops: nothing else to load, slower")
    parser.add_argument("--layers", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = CausalLM(CausalLMConfig(vocab_size=65, l_max=1024, d_model=32, num_layers=args.layers)).eval()
    package = export.to_package(model, args.folder, plain=args.plain)
    tokens = torch.arange(200)[None] % 65
    with torch.no_grad():
        logits = model(tokens)
    print("wrote", *(str(file) for file in (package.model, package.kernels, package.schemas) if file is not None))
    print(f"logits of {tokens.size(1)} tokens sum to {logits.sum().item():.4f}")


if __name__ == "__main__":
    main()
