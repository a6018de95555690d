"""A model of real vectors in the place of tokens, for functions learned in context.

Dimensions: B batch, L length, D channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from experiments.shared.models import language_model


class Regressor(nn.Module):
    """The blocks of a language model, with vectors read in and a number read out at each position.

    Args:
        name: of the mixer, as :func:`experiments.shared.models.mixer` has them.
        inputs: numbers in a vector.
        length: longest input.
        width, layers, d_inner: as there.
    """

    def __init__(self, name: str, inputs: int, length: int, *, width: int, layers: int, d_inner: int) -> None:
        super().__init__()
        body = language_model(name, 1, length, width=width, layers=layers, d_inner=d_inner)
        self.read_in = nn.Linear(inputs, width)
        self.blocks, self.positions, self.norm = body.blocks, body.positions, body.norm
        self.read_out = nn.Linear(width, 1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Computes ``(B, L, inputs) -> (B, L)``."""
        x = self.read_in(vectors)  # (B, L, D)
        if self.positions is not None:
            x = x + self.positions.weight[: x.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.read_out(self.norm(x)).squeeze(-1)
