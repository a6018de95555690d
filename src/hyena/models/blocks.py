"""The parts of models: MLPs, RMSNorm and pre-norm residual block.

Dimensions: B batch, L length, D channels (d_model), I inner width of the MLP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.mixers._arguments import find_activation


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
        return ops.linear(F.gelu(ops.linear(x, self.fc1), approximate=self.approximate), self.fc2)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class GatedMLP(nn.Module):
    """``D -> I -> D`` with a gate: ``W_2 (activation(W_g x) * W_1 x)`` (arXiv 2002.05202).

    Args:
        d_model: D.
        d_inner: I.
        activation: of the gate: a name ("gelu", "silu", …), a function, or None for none.
        bias: whether the three layers have a bias.
    """

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        *,
        activation: str | Callable[[Tensor], Tensor] | None = "silu",
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.activation = find_activation(activation)
        self.gate = nn.Linear(d_model, d_inner, bias=bias, **at)
        self.fc1 = nn.Linear(d_model, d_inner, bias=bias, **at)
        self.fc2 = nn.Linear(d_inner, d_model, bias=bias, **at)

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in (self.gate, self.fc1, self.fc2):
            part.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``(…, D) -> (…, D)``."""
        gate = ops.linear(x, self.gate)
        gate = gate if self.activation is None else self.activation(gate)
        return ops.linear(gate * ops.linear(x, self.fc1), self.fc2)

    def extra_repr(self) -> str:
        return f"activation={getattr(self.activation, '__name__', self.activation)}"


# What a config's ``mlp`` may be, and which of them have a gate.
MLPS: dict[str, Callable[..., nn.Module]] = {
    "gelu": MLP,
    "gelu_tanh": functools.partial(MLP, approximate="tanh"),
    "geglu": functools.partial(GatedMLP, activation="gelu"),
    "swiglu": GatedMLP,
}
GATED_MLPS = ("geglu", "swiglu")


def check_mlp(name: object) -> None:
    """Raises ``ValueError`` for a name that is none of ``MLPS``."""
    if not isinstance(name, str) or name not in MLPS:
        raise ValueError(f"mlp must be one of {', '.join(MLPS)}, got {name!r}")


def inner_width(mlp: str, d_model: int) -> int:
    """I where a config gives none: ``4 D``, or of a gated MLP ``8 D / 3``, which is as many weights, in eights."""
    return -(-8 * d_model // 24) * 8 if mlp in GATED_MLPS else 4 * d_model


class RMSNorm(nn.Module):
    """``weight * x / (rms(x) + eps)`` over the channels, or ``weight * x / sqrt(rms(x)^2 + eps)`` (arXiv 1910.07467).

    Computed in float32 at least; the result has the dtype of ``x``.

    Args:
        d_model: D.
        eps: against division by zero.
        eps_inside: whether ``eps`` stands under the root, as in ``nn.RMSNorm``.
    """

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-6,
        *,
        eps_inside: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.eps_inside = eps, eps_inside
        self.weight = nn.Parameter(torch.empty(d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``(…, D) -> (…, D)``."""
        dtype = ops.compute_dtype(x)
        wide, weight = x.to(dtype), self.weight.to(dtype)
        if self.eps_inside:
            return F.rms_norm(wide, weight.shape, weight, self.eps).to(x.dtype)
        # The norm of a row of zeros has a gradient of zero; the root of its square would have none.
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * wide.size(-1) ** -0.5
        return (wide / (size + self.eps) * weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.size(0)}, eps={self.eps}, eps_inside={self.eps_inside}"


class Block(nn.Module):
    """Pre-norm residual block: ``x + mixer(norm1(x))``, then ``x + mlp(norm2(x))``, each with dropout before the sum.

    Args:
        mixer: ``(B, L, D) -> (B, L, D)``: a :class:`hyena.mixers.Mixer`, or anything else that is called with the
            keywords given to :meth:`forward`.
        d_model: D.
        mlp: ``"gelu"`` or ``"gelu_tanh"`` (:class:`MLP`), ``"swiglu"`` or ``"geglu"`` (:class:`GatedMLP`); or a module,
            ``(…, D) -> (…, D)``.
        d_inner: I, for an MLP by name; ``4 D`` if missing, of a gated one ``8 D / 3`` in eights.
        dropout: probability of dropping an entry of what is added to the residual stream.
        norm_eps: of the two norms.
        norm: a class, called as ``norm(D, norm_eps, device=, dtype=)``, with a ``weight``.

    Raises:
        ValueError: an MLP that there is not, or a module and ``d_inner`` for it.
    """

    def __init__(
        self,
        mixer: nn.Module,
        d_model: int,
        *,
        mlp: str | nn.Module = "gelu",
        d_inner: int | None = None,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        norm: Callable[..., Any] = nn.LayerNorm,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = norm(d_model, norm_eps, **at)
        self.mixer = mixer
        self.norm2 = norm(d_model, norm_eps, **at)
        if not isinstance(mlp, nn.Module):
            check_mlp(mlp)
            mlp = MLPS[mlp](d_model, inner_width(mlp, d_model) if d_inner is None else d_inner, **at)
        elif d_inner is not None:
            raise ValueError(f"d_inner={d_inner} is for an MLP by name; this {type(mlp).__name__} has its own")
        self.mlp: Any = mlp
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
        x = x + self.dropout(self.mix(self.norm1(x.to(self.norm1.weight.dtype)), **mixing))
        return x + self.dropout(self.mlp(self.norm2(x.to(self.norm2.weight.dtype))))

    def mix(self, u: Tensor, **mixing: Any) -> Tensor:
        """Calls the mixer: what a block that keeps its state elsewhere does in another way."""
        return self.mixer(u, **mixing)
