"""Block-sparse plus low-rank projections in the operator: Pixelated Butterfly (Chen et al. 2021, arXiv 2112.00029).

    python examples/compose/butterfly.py [steps]

Trained from the start, with a fixed pattern of blocks. Dimensions: D channels in, C = c D channels out, b channels of a
block, n = D / b blocks, k blocks of a row, R rank.
"""

import sys

import torch
from characters import batch_loss, language_model, train
from torch import Tensor, nn

B, L, D = 16, 64, 128


class PixelatedButterfly(nn.Module):
    """``(g S + (1 - g) U V) x + bias``, with ``S`` a flat block butterfly and ``U V`` of rank R (section 3).

    The factors of a block butterfly matrix connect block i with itself and with i XOR 1, i XOR 2, i XOR 4, …; a flat
    butterfly is their sum instead of their product, one sparse matrix of ``log2(n) + 1`` blocks a row. Where C is a
    multiple of D, there are that many of them.
    """

    def __init__(self, d_in: int, d_out: int, block: int = 8, rank: int = 8) -> None:
        super().__init__()
        n = d_in // block
        if n * block != d_in or n & (n - 1) != 0 or d_out % d_in != 0:
            raise ValueError(f"need d_in = block * 2^i and d_out a multiple of it, got {d_in}, {block}, {d_out}")
        steps = [0, *(1 << i for i in range(n.bit_length() - 1))]
        self.register_buffer("columns", torch.tensor([[i ^ step for step in steps] for i in range(n)]))  # (n, k)
        self.blocks = nn.Parameter(torch.empty(d_out // d_in, n, len(steps), block, block))
        self.u, self.v = nn.Parameter(torch.empty(d_out, rank)), nn.Parameter(torch.empty(rank, d_in))
        self.gate, self.bias = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(d_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.blocks, std=(self.blocks.size(2) * self.blocks.size(4)) ** -0.5)
        nn.init.normal_(self.u, std=self.u.size(1) ** -0.5)
        nn.init.normal_(self.v, std=self.v.size(1) ** -0.5)
        nn.init.constant_(self.gate, 0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (len(self.columns), -1))[..., self.columns, :]  # (…, n, k, b)
        sparse = torch.einsum("...nkb,cnkab->...cna", parts, self.blocks).flatten(-3)  # (…, C)
        return self.gate * sparse + (1 - self.gate) * (x @ self.v.T @ self.u.T) + self.bias


def size(model: nn.Module) -> int:
    """Parameters of the projections."""
    parts = [part for block in model.blocks for part in (block.mixer.in_proj, block.mixer.out_proj)]
    return sum(p.numel() for part in parts for p in part.parameters())


def main(steps: int = 120) -> dict:
    torch.manual_seed(0)
    dense, sparse = language_model(L, D), language_model(L, D)
    for block in sparse.blocks:  # an operator calls whatever takes its projections' place
        block.mixer.in_proj = PixelatedButterfly(D, 3 * D)
        block.mixer.out_proj = PixelatedButterfly(D, D)
    losses = {}
    for name, model in (("dense", dense), ("butterfly", sparse)):
        print(f"{name}: {size(model):,} parameters in the projections")
        losses[name] = train(model, lambda model=model: batch_loss(model, B, L), steps)
    last = {name: sum(some[-10:]) / 10 for name, some in losses.items()}
    print(f"mean loss of the last 10 steps: dense {last['dense']:.3f}, butterfly {last['butterfly']:.3f}")
    return {"model": sparse, "losses": losses["butterfly"]}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
