"""A deep equilibrium model around a Hyena block: Bai, Kolter and Koltun 2019 (arXiv 1909.01377).

    python examples/compose/equilibrium.py [steps]

The output is the fixed point of one block, as if it were stacked without end. What the root finder tries is not kept:
memory does not grow with depth. Dimensions: B batch, L length, D channels, k iterates that Anderson's method keeps.
"""

import sys
from collections.abc import Callable

import torch
from characters import VOCABULARY, batch_loss, train
from torch import Tensor, nn

from hyena import HyenaOperator
from hyena.models import Block

B, L, D = 8, 64, 64


def anderson(f: Callable[[Tensor], Tensor], z: Tensor, tolerance: float, most: int, k: int = 6) -> tuple[Tensor, int]:
    """Solves ``z = f(z)``: the next z is the mean of the last k images with the smallest mean residual."""
    points, images, calls = [], [], 0  # k of (B L D,) each
    while True:
        image, calls = f(z), calls + 1
        if calls == most or (image - z).norm() <= tolerance * image.norm():
            return image, calls
        points, images = [*points, z.flatten()][-k:], [*images, image.flatten()][-k:]
        residuals = (torch.stack(images) - torch.stack(points)).double()
        gram = residuals @ residuals.T
        gram.diagonal().add_(1e-10 * gram.diagonal().max())  # residuals may be nearly parallel
        weights = torch.linalg.solve(gram, torch.ones_like(gram[0]))
        z = ((weights / weights.sum()).to(z.dtype) @ torch.stack(images)).view_as(z)


class Equilibrium(nn.Module):
    """The z with ``z = f(z, u)``, where ``f(z, u) = norm(u + block(z))``.

    Iterates mix positions of the whole row; the fixed point is causal as the block is, to the tolerance.
    """

    def __init__(self, d_model: int, l_max: int, tolerance: float = 1e-3, most: int = 30) -> None:
        super().__init__()
        self.block, self.norm = Block(HyenaOperator(d_model, l_max), d_model), nn.LayerNorm(d_model)
        self.tolerance, self.most = tolerance, most

    def f(self, z: Tensor, u: Tensor) -> Tensor:
        return self.norm(u + self.block(z))

    def forward(self, u: Tensor) -> Tensor:
        with torch.no_grad():
            z, self.calls = anderson(lambda z: self.f(z, u), torch.zeros_like(u), self.tolerance, self.most)
        if not torch.is_grad_enabled():
            return z
        last = self.f(z.requires_grad_(), u)  # the one call that autograd sees

        def implicit(g: Tensor) -> Tensor:
            """What ``last`` is to be given in place of g: the v with ``v = g + v J`` (theorem 1)."""
            back = lambda v: g + torch.autograd.grad(last, z, v, retain_graph=True)[0]  # noqa: E731
            return anderson(back, g, self.tolerance, self.most)[0]

        y = last.clone()
        y.register_hook(implicit)
        return y


def main(steps: int = 100) -> dict:
    torch.manual_seed(0)
    deep = Equilibrium(D, L)
    model = nn.Sequential(nn.Embedding(len(VOCABULARY), D), deep, nn.Linear(D, len(VOCABULARY)))
    losses = train(model, lambda: batch_loss(model, B, L), steps)
    print(f"the last batch came to its fixed point in {deep.calls} calls of the block, of which 1 is remembered")
    return {"model": model, "losses": losses}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
