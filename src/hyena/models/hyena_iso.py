"""Hyena-ISO: an image classifier of two-dimensional long convolutions at one width and resolution, without gates.

Dimensions: B batch, C colours, H and W pixels of the axes, D channels (d_model).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena import ops
from hyena.conv.long_nd import LongConvND
from hyena.filters import HyenaFilter, SeparableFilter
from hyena.models.config import ModelConfig, image_size


@dataclasses.dataclass(frozen=True)
class HyenaISOConfig(ModelConfig):
    """Settings of :class:`HyenaISO`; the defaults are those of CIFAR-10.

    Args:
        image_size: pixels ``(H, W)`` of the largest image, or of both axes.
        channels: C.
        num_classes: of the head.
        d_model: D.
        num_layers: number of blocks.
        emb_dim, filter_width, filter_layers: of the filter of each axis, see :class:`hyena.filters.HyenaFilter`. The
            paper does not give them; with these the model has its number of parameters.
        boundary: what is beyond the image: ``"zero"``, ``"circular"`` or ``"reflect"``.
        dropout: inside the blocks and of what they add.
    """

    image_size: int | tuple[int, int] = 32
    channels: int = 3
    num_classes: int = 10
    d_model: int = 128
    num_layers: int = 4
    emb_dim: int = 5
    filter_width: int = 26
    filter_layers: int = 2
    boundary: str = "zero"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Checks the values that no layer checks.

        Raises:
            ValueError: sizes below 1.
        """
        self._check_sizes("channels", "num_classes", "d_model", "num_layers")
        self._check_probabilities("dropout")
        object.__setattr__(self, "image_size", image_size(self.image_size))


class HyenaISOBlock(nn.Module):
    """Residual block of a long convolution: ``x + GLU(W gelu(h * LN(x) + d LN(x)))``, ``(B, H, W, D)``.

    Args:
        conv: the convolution over the grid.
        d_model: D.
        dropout: of the GELU's output and of what is added.
    """

    def __init__(
        self,
        conv: nn.Module,
        d_model: int,
        *,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, device=device, dtype=dtype)
        self.conv = conv
        self.out_proj = nn.Linear(d_model, 2 * d_model, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in (self.norm, self.conv, self.out_proj):
            part.reset_parameters()  # type: ignore[operator]  # each has it

    def forward(self, x: Tensor) -> Tensor:
        """Computes ``(B, H, W, D) -> (B, H, W, D)``."""
        y = self.dropout(F.gelu(self.conv(self.norm(x))))
        return x + self.dropout(F.glu(ops.linear(y, self.out_proj), dim=-1))


class HyenaISO(nn.Module):
    """Isotropic ConvNet of Hyena filters (Poli et al. 2023, arXiv 2302.10866, section 4.5 and appendix A.4).

    Blocks of one width, 4 of 128 for CIFAR-10, at the resolution of the image: no patches, no pooling but the mean
    before the head, and no gates. A filter is the product of a :class:`hyena.filters.HyenaFilter` of each axis, as long
    as the image. The paper's is S4ND's isotropic model (arXiv 2210.06583) with these filters.

    Args:
        config: the settings.
        filter: the filters over the grid in place of the config's: :class:`hyena.filters.HyenaFilterND`,
            :class:`hyena.filters.S4ND` (which makes it S4ND-ISO), or a ``functools.partial``; see
            :class:`hyena.conv.LongConvND`.
    """

    def __init__(
        self,
        config: HyenaISOConfig,
        filter: Callable[..., nn.Module] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.config = config
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        if filter is None:
            axis = functools.partial(HyenaFilter, emb_dim=c.emb_dim, width=c.filter_width, inner_layers=c.filter_layers)
            filter = functools.partial(SeparableFilter, filter=axis)
        size = image_size(c.image_size)
        self.stem = nn.Linear(c.channels, c.d_model, **at)
        convs = [LongConvND(c.d_model, size, filter=filter, boundary=c.boundary, **at) for _ in range(c.num_layers)]
        self.blocks = nn.ModuleList(HyenaISOBlock(conv, c.d_model, dropout=c.dropout, **at) for conv in convs)
        self.norm = nn.LayerNorm(c.d_model, **at)
        self.head = nn.Linear(c.d_model, c.num_classes, **at)

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in (self.stem, *self.blocks, self.norm, self.head):
            part.reset_parameters()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes, ``(B, C, H, W) -> (B, num_classes)``.

        Raises:
            ValueError: another shape, or an image larger than the config's.
        """
        return self.head(self.hidden_states(images).mean((1, 2)))

    def hidden_states(self, images: Tensor) -> Tensor:
        """The normalised output of the last block at every pixel, ``(B, C, H, W) -> (B, H, W, D)``."""
        size, c = image_size(self.config.image_size), self.config
        fits = images.dim() == 4 and images.size(1) == c.channels
        if not fits or not all(1 <= n <= most for n, most in zip(images.shape[2:], size, strict=True)):
            raise ValueError(
                f"images must be (B, {c.channels}, H, W) of up to {size[0]} x {size[1]} pixels (extend lets a trained "
                f"model take larger ones), got {tuple(images.shape)}"
            )
        x = self.stem(images.movedim(1, -1))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def extend(self, size: int | Sequence[int], mode: str = "stretch") -> None:
        """Lets a trained model take images of another size, in place.

        Args:
            size: pixels of the largest image from now on.
            mode: ``"stretch"``: the same picture at another resolution; ``"continue"``: more of it at the same one. See
                :meth:`hyena.filters.FilterND.extend`.

        Raises:
            ValueError: filters that cannot be extended.
        """
        new = image_size(size)
        for block in self.blocks:
            block.conv.extend(new, mode)  # type: ignore[union-attr, operator]
        self.config = dataclasses.replace(self.config, image_size=new)
