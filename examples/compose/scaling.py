"""Sparse layers of the Scaling Transformer around Hyena (Jaszczur et al. 2021, arXiv 2111.12763).

    python examples/compose/scaling.py [steps]

A decoded token reads few of the weights. Dimensions: B batch, L length, D channels, G groups of N units in the FFN, S
modules of M = D / S channels in a projection.
"""

import sys

import torch
from characters import batch_loss, language_model, train
from torch import Tensor, nn
from torch.nn import functional as F

B, L, D, G, N, S = 16, 64, 64, 32, 8, 4


class SparseFFN(nn.Module):
    """One of the N units in each group acts, which a controller of low rank chooses (section 3.1).

    In training a softmax multiplies the units of a group; in 3 of 10 batches the choice itself does, made with Gumbel
    noise of temperature 0.1 and given the softmax's gradient. In eval mode the other units' weights are not read.
    """

    def __init__(self, d_model: int, groups: int, units: int, low_rank: int) -> None:
        super().__init__()
        layers = nn.Linear(d_model, low_rank, bias=False), nn.Linear(low_rank, groups * units)
        self.controller = nn.Sequential(*layers, nn.Unflatten(-1, (groups, units)))
        self.up = nn.Parameter(torch.randn(groups, units, d_model) * d_model**-0.5)
        self.down = nn.Parameter(torch.randn(groups, units, d_model) * groups**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.controller(x)  # (B, L, G, N)
        if not self.training:
            chosen = torch.arange(logits.size(2), device=x.device), logits.argmax(3)  # (G,), (B, L, G)
            active = F.relu(torch.einsum("bld,blgd->blg", x, self.up[chosen]))
            return torch.einsum("blg,blgd->bld", active, self.down[chosen])
        gate = logits.softmax(3)
        if torch.rand(()) < 0.3:
            gumbel = -torch.empty_like(gate).exponential_().log()
            gate = F.one_hot((gate.log() + 0.1 * gumbel).argmax(3), gate.size(3)) + gate - gate.detach()
        active = F.relu(torch.einsum("bld,gnd->blgn", x, self.up) * gate)
        return torch.einsum("blgn,gnd->bld", active, self.down)


class SparseProjection(nn.Module):
    """``y_sm = sum_i x_i D_is E_im``, which can permute all channels, and a convolution over modules (section 3.2).

    The paper's runs over three positions too: that half of it is Hyena's own short convolution.
    """

    def __init__(self, d_model: int, modules: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(modules, d_model))  # D
        self.mix = nn.Parameter(torch.randn(d_model, d_model // modules) * d_model**-0.5)  # E
        self.conv = nn.Conv1d(d_model // modules, outputs * d_model // modules, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = (x[..., None, :] * self.scale) @ self.mix  # (B, L, S, M)
        y = self.conv(y.flatten(0, 1).mT).unflatten(1, (-1, y.size(3))).mT  # (B L, outputs, S, M)
        return y.reshape(*x.shape[:2], -1)


def main(steps: int = 200) -> dict:
    torch.manual_seed(0)
    model = language_model(L, D)
    dense = sum(p.numel() for p in model.blocks.parameters())
    for block in model.blocks:
        block.mlp = SparseFFN(D, G, N, low_rank=8)
        block.mixer.in_proj, block.mixer.out_proj = SparseProjection(D, S, 3), SparseProjection(D, S, 1)
    share = sum(p.numel() for p in model.blocks.parameters()) / dense
    losses = train(model, lambda: batch_loss(model, B, L), steps)
    print(f"{share:.0%} of the dense blocks' parameters, and of the FFN's a token reads one in {N}")
    return {"model": model, "losses": losses}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
