"""The parts of models: MLP and pre-norm residual block.

Dimensions: B batch, L length, D channels (d_model), I inner width of the MLP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """``D -> I -> D`` with a GELU between.

    Args:
        d_model: D.
        d_inner: I.
        bias: whether the two layers have a bias.
        approximate: ``"none"`` for the exact GELU, ``"tanh"`` for GPT-2's (and HyenaDNA's) approximation of it.
    """

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        *,
        bias: bool = True,
        approximate: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate
        self.fc1 = nn.Linear(d_model, d_inner, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(d_inner, d_model, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``(…, D) -> (…, D)``."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Block(nn.Module):
    """Pre-norm residual block: ``x + mixer(norm1(x))``, then ``x + mlp(norm2(x))``, each with dropout before the sum.

    Args:
        mixer: ``(B, L, D) -> (B, L, D)``: a :class:`hyena.mixers.Mixer`, or anything else that is called with the
            keywords given to :meth:`forward`.
        d_model: D.
        d_inner: I, ``4 * D`` if missing.
        dropout: probability of dropping an entry of what is added to the residual stream.
        bias: whether the MLP's layers have a bias.
        approximate: of the GELU, see :class:`MLP`.
        norm_eps: of the two LayerNorms.
    """

    def __init__(
        self,
        mixer: nn.Module,
        d_model: int,
        *,
        d_inner: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        approximate: str = "none",
        norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(d_model, norm_eps, **at)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(d_model, norm_eps, **at)
        self.mlp = MLP(d_model, 4 * d_model if d_inner is None else d_inner, bias=bias, approximate=approximate, **at)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Initialises every parameter again.

        Raises:
            ValueError: a mixer with parameters and without ``reset_parameters``.
        """
        reset = getattr(self.mixer, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in self.mixer.parameters()):
            raise ValueError(f"{type(self.mixer).__name__} has no reset_parameters to initialise its parameters with")
        for part in (self.norm1, self.norm2, self.mlp):
            part.reset_parameters()

    def forward(self, x: Tensor, **mixing: Any) -> Tensor:
        """Computes ``(B, L, D) -> (B, L, D)``; ``mixing`` goes to the mixer.

        With a ``state`` among it, ``x`` holds the next positions: every part but the mixer sees each position alone.
        """
        # A residual stream may be of a higher precision than the weights; what is added to it then leaves it so.
        x = x + self.dropout(self.mixer(self.norm1(x.to(self.norm1.weight.dtype)), **mixing))
        return x + self.dropout(self.mlp(self.norm2(x.to(self.norm2.weight.dtype))))
