"""S5: one state space for all channels together, read by a parallel scan.

Dimensions: B batch, L length, D channels (d_model), N states of the real system, P complex ones of which it is made,
J blocks of the start.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from hyena import ops
from hyena.filters._hippo import normal_part
from hyena.filters._initial import fill
from hyena.filters.base import keeping_float32
from hyena.filters.diagonal import check_range
from hyena.mixers._arguments import check_counts
from hyena.mixers._scan import scan
from hyena.mixers.rows import RowMixer
from hyena.mixers.state import State

DISCRETIZATIONS = ("zoh", "bilinear")


@dataclasses.dataclass
class S5State(State):
    """The states of one :class:`S5`.

    Args:
        states: ``(B, P, 2)``, real and imaginary parts.
    """

    states: Tensor


class DiagonalSystem(nn.Module):
    """The state space of :class:`S5`: weights, and the discrete system that they stand for.

    ``x' = diag(a) x + B u`` and ``y = 2 Re(C x) + d u`` with ``a = -exp(log_decay) + i angle``; a step of state ``p``
    takes the time ``exp(log_step_p)``. Weights stay float32 under casts to lower precision, as those of filters do.

    Args:
        channels: D.
        states: N, even.
        blocks: J; the start is J times the HiPPO matrix of ``N / J`` states.
        discretization: "zoh" or "bilinear".
        two_sided: a second ``C`` for a scan from the end.
        step_range: shortest and longest step at the start.
    """

    dynamics = ("log_decay", "angle", "log_step", "b")

    def __init__(
        self,
        channels: int,
        states: int,
        blocks: int,
        discretization: str,
        two_sided: bool,
        step_range: tuple[float, float],
        at: dict[str, Any],
    ) -> None:
        super().__init__()
        self.blocks, self.discretization, self.step_range = blocks, discretization, step_range
        if at["dtype"] in (torch.float16, torch.bfloat16):
            at = {**at, "dtype": torch.float32}
        half = states // 2
        self.log_decay = nn.Parameter(torch.empty(half, **at))
        self.angle = nn.Parameter(torch.empty(half, **at))
        self.log_step = nn.Parameter(torch.empty(half, **at))
        self.b = nn.Parameter(torch.empty(half, channels, 2, **at))
        self.c = nn.Parameter(torch.empty(2 if two_sided else 1, channels, half, 2, **at))
        self.d = nn.Parameter(torch.empty(channels, **at))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """HiPPO-N poles, random matrices in the eigenvectors' coordinates, steps evenly on a logarithmic scale."""
        half, channels = self.log_decay.size(0), self.d.size(0)
        each = 2 * half // self.blocks
        frequency, basis = normal_part(each // 2)
        basis = torch.block_diag(*[basis] * self.blocks)  # (P, N)
        b = torch.randn(2 * half, channels, dtype=torch.float64) * channels**-0.5
        c = torch.randn(self.c.size(0), channels, 2 * half, dtype=torch.float64) * (2 * half) ** -0.5
        low, high = (math.log(t) for t in self.step_range)
        values = {
            self.log_decay: torch.full((half,), math.log(0.5), dtype=torch.float64),
            self.angle: frequency.repeat(self.blocks),
            self.log_step: torch.rand(half, dtype=torch.float64) * (high - low) + low,
            self.b: torch.view_as_real(basis @ b.to(basis.dtype)),
            self.c: torch.view_as_real(c.to(basis.dtype) @ basis.mH),
            self.d: torch.randn(channels, dtype=torch.float64),
        }
        for weight, value in values.items():
            fill(weight, value.to(weight))

    def discrete(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Logarithms of the poles ``(P,)`` and ``B`` ``(P, D)`` of the discrete system; complex, of ``dtype``."""
        a = torch.complex(-self.log_decay.to(dtype).exp(), self.angle.to(dtype))
        step = self.log_step.to(dtype).exp()
        if self.discretization == "zoh":
            log_pole = a * step
            factor = torch.expm1(log_pole) / a
        else:
            log_pole = torch.log(1 + a * step / 2) - torch.log(1 - a * step / 2)
            factor = step / (1 - a * step / 2)
        return log_pole, factor[:, None] * torch.view_as_complex(self.b.to(dtype))

    def forward(self, u: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs ``(B, L, D)`` and states ``(B, L, P)`` of inputs ``(B, L, D)``, after a state ``(B, P)``."""
        dtype = torch.promote_types(ops.compute_dtype(u), self.d.dtype)
        u = u.to(dtype)
        log_pole, b = self.discrete(dtype)
        b = torch.view_as_real(b).permute(1, 0, 2).flatten(1)  # (D, 2 P)
        x = torch.view_as_complex((u @ b).unflatten(2, (-1, 2)))  # (B, L, P)
        states = scan(log_pole, x, before)
        y = self._read(states, 0) + self.d.to(dtype) * u
        if self.c.size(0) > 1:
            y = y + self._read(scan(log_pole, x.flip(1)).flip(1), 1)
        return y, states

    def _read(self, states: Tensor, i: int) -> Tensor:
        """``2 Re(C_i x)``."""
        c = self.c[i].to(states.real.dtype)
        sign = torch.tensor([2.0, -2.0], dtype=c.dtype, device=c.device)
        return torch.view_as_real(states).flatten(2) @ (c * sign).flatten(1).t()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keeping_float32(fn), recurse)


class S5(RowMixer):
    """One linear state space over all channels, from many inputs to many outputs (Smith et al. 2022, arXiv 2208.04933).

    ``x_t = A x_{t-1} + B u_t`` and ``y_t = C x_t + d u_t`` with diagonal complex ``A`` (equations 2 and 6), read by a
    parallel scan; then ``g = gelu(y)``, ``g sigmoid(W g)`` and the output projection. Time and memory grow with ``L``,
    and a step costs the same anywhere.

    Args:
        d_model: D.
        l_max: longest row; None for any length, and then states need a ``max_length``.
        state: N, even; D if missing (rounded up to an even number).
        blocks: J, of the HiPPO matrix that the poles start from; N is a multiple of ``2 J``.
        discretization: "zoh" or "bilinear".
        step_range: shortest and longest time of a step at the start.
        causal: no output sees a later input; otherwise a second scan runs from the end.
        dropout: of the mixed values before the output projection.
        bias: whether ``W`` and the output projection have a bias.

    Raises:
        TypeError: arguments of another type.
        ValueError: numbers that do not fit together, with what would.
    """

    state_class = S5State

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        *,
        state: int | None = None,
        blocks: int = 1,
        discretization: str = "zoh",
        step_range: tuple[float, float] = (1e-3, 1e-1),
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, l_max, causal=causal, dropout=dropout, bias=bias)
        state = d_model + d_model % 2 if state is None else state
        check_counts(state=state, blocks=blocks)
        if state % (2 * blocks) != 0:
            raise ValueError(f"state={state} is not a multiple of 2 * blocks={2 * blocks}: states come in pairs")
        if discretization not in DISCRETIZATIONS:
            raise ValueError(f"discretization must be one of {DISCRETIZATIONS}, got {discretization!r}")
        low, high = check_range("step_range", step_range)
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.system = DiagonalSystem(d_model, state, blocks, discretization, not causal, (low, high), at)
        self.gate = nn.Linear(d_model, d_model, bias=bias, **at)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias, **at)

    def mix(self, u: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, longest: int, state: Any) -> Tensor:
        """Mixed values ``(B, L, D)``."""
        with ops.without_autocast(u.device):
            before = None if state is None else torch.view_as_complex(state.states)
            y, states = self.system(u, before)
            if state is not None:
                state.states.copy_(torch.view_as_real(states[:, -1]))
            g = F.gelu(y).to(u.dtype)
        return g * torch.sigmoid(ops.linear(g, self.gate))

    def new_state(self, batch: int, length: int) -> S5State:
        weight = self.system.log_decay
        shape = (batch, weight.size(0), 2)
        return S5State(0, length, torch.zeros(shape, dtype=ops.compute_dtype(weight), device=weight.device))

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, l_max={self.l_max}, causal={self.causal}"
