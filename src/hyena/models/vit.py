"""Vision transformer: the patches of an image as a row, blocks of attention or of any two-sided mixer, and a class.

Dimensions: B batch, C colours, P pixels of a patch's side, H and W patches along the axes, T class tokens (1 or 0), D
channels (d_model).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyena.filters.base import FilterBase
from hyena.mixers import Attention
from hyena.models import options
from hyena.models.blocks import Block
from hyena.models.config import ModelConfig, image_size


@dataclasses.dataclass(frozen=True)
class ViTConfig(ModelConfig):
    """Settings of :class:`ViT`; the defaults are ViT-B/16's.

    Args:
        image_size: pixels ``(height, width)``, or of both; multiples of P. Smaller images are taken too, at
            interpolated positions, and larger ones after :meth:`ViT.extend`.
        patch_size: P.
        channels: C.
        num_classes: of the head.
        d_model: D.
        num_layers: number of blocks.
        d_inner: inner width of the MLPs, ``4 D`` if missing.
        dropout: of the embedding and of what is added to the residual stream.
        class_token: whether a token that belongs to no patch is put before them, and read by the head; otherwise the
            head reads the mean of the patches (as the Hyena paper's ViT, arXiv 2302.10866, appendix A.4).
        positions: whether learned positions are added to the patches and the class token. The Hyena paper's have none.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    channels: int = 3
    num_classes: int = 1000
    d_model: int = 768
    num_layers: int = 12
    d_inner: int | None = None
    dropout: float = 0.0
    class_token: bool = True
    positions: bool = True

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: sizes below 1, or an image that is not made of whole patches.
        """
        self._check_sizes("patch_size", "channels", "num_classes", "d_model", "num_layers")
        if self.d_inner is not None:
            self._check_sizes("d_inner")
        self._check_probabilities("dropout")
        self._check_flags("class_token", "positions")
        object.__setattr__(self, "image_size", image_size(self.image_size))
        self.grid_of(*image_size(self.image_size))

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Patches ``(H, W)`` of an image of so many pixels.

        Raises:
            ValueError: it is not made of whole patches.
        """
        p = self.patch_size
        if any(n < 1 or n % p != 0 for n in (height, width)):
            raise ValueError(f"an image of {height} x {width} pixels is not made of patches of {p} x {p}")
        return height // p, width // p

    @property
    def grid(self) -> tuple[int, int]:
        """Patches ``(H, W)`` of an image of ``image_size``."""
        return self.grid_of(*image_size(self.image_size))

    @property
    def prefix_tokens(self) -> int:
        """T."""
        return int(self.class_token)

    @property
    def l_max(self) -> int:
        """Positions of a row: class token and patches."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929): patches, pre-norm blocks, norm, head.

    ``hyena.replace_attention(vit)`` swaps its attention for Hyena along the row of patches,
    ``hyena.replace_attention(vit, mixer=HyenaPatches)`` for Hyena over their grid; or it is built with either.

    Args:
        config: the settings.
        mixer: of the blocks, the class of a :class:`hyena.mixers.Mixer` or a ``functools.partial`` of one, called as
            ``mixer(D, positions, causal=False, …)`` with those of ``grid``, ``prefix_tokens``, ``device`` and ``dtype``
            that it takes.

    Raises:
        ValueError: a mixer that is causal.
    """

    class_token: nn.Parameter | None
    positions: nn.Parameter | None

    def __init__(
        self,
        config: ViTConfig,
        mixer: Callable[..., Any] = Attention,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = self.config = config
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.patches = nn.Conv2d(c.channels, c.d_model, c.patch_size, c.patch_size, **at)
        token = nn.Parameter(torch.empty(1, 1, c.d_model, **at)) if c.class_token else None
        positions = nn.Parameter(torch.empty(1, c.l_max, c.d_model, **at)) if c.positions else None
        self.register_parameter("class_token", token)
        self.register_parameter("positions", positions)
        self.dropout = nn.Dropout(c.dropout)
        given = {"causal": False, "grid": c.grid, "prefix_tokens": c.prefix_tokens}
        named, set_already = inspect.signature(mixer).parameters, getattr(mixer, "keywords", {})
        keywords = {name: value for name, value in given.items() if name in named and name not in set_already}
        make = functools.partial(mixer, **keywords)
        mixers = [options.build(make, c.d_model, c.l_max, **at) for _ in range(c.num_layers)]
        for each in mixers:
            if getattr(each, "causal", False):
                raise ValueError(
                    f"a {type(each).__name__} with causal=True sees no later patch: pass a two-sided mixer"
                )
        self.blocks = nn.ModuleList(Block(m, c.d_model, d_inner=c.d_inner, dropout=c.dropout, **at) for m in mixers)
        self.norm = nn.LayerNorm(c.d_model, **at)
        self.head = nn.Linear(c.d_model, c.num_classes, **at)
        self._start()

    def reset_parameters(self) -> None:
        """Initialises every parameter again."""
        for part in (self.patches, *self.blocks, self.norm, self.head):
            part.reset_parameters()
        self._start()

    def _start(self) -> None:
        for table in (self.class_token, self.positions):
            if table is not None:
                nn.init.normal_(table, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes, ``(B, C, height, width) -> (B, num_classes)``.

        Raises:
            ValueError: another shape, or an image that is not made of whole patches.
        """
        x = self.hidden_states(images)
        return self.head(x.mean(1) if self.class_token is None else x[:, 0])

    def hidden_states(self, images: Tensor) -> Tensor:
        """The normalised output of the last block, ``(B, T + H W, D)``, patches row by row."""
        if images.dim() != 4 or images.size(1) != self.config.channels:
            raise ValueError(f"images must be (B, {self.config.channels}, height, width), got {tuple(images.shape)}")
        grid = self.config.grid_of(images.size(2), images.size(3))
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, H W, D)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.size(0), -1, -1), x], dim=1)
        if self.positions is not None:
            x = x + self._positions_of(grid)
        x = self.dropout(x)
        for block in self.blocks:
            mixing = {"grid": grid} if getattr(block.mixer, "takes_grid", False) else {}
            x = block(x, **mixing)
        return self.norm(x)

    @torch.no_grad()
    def extend(self, size: int | Sequence[int], mode: str = "stretch") -> None:
        """Lets a trained model take larger images, in place; learned positions are interpolated.

        Positions are a new parameter then: make optimizers after this.

        Args:
            size: pixels of an image from now on.
            mode: what becomes of the filters of Hyena: ``"stretch"``, the same picture in more patches; ``"continue"``,
                more of it in patches of the same extent. See :meth:`hyena.filters.Filter.extend`.

        Raises:
            ValueError: an image that is not made of whole patches, or a mixer that cannot be extended.
        """
        config = dataclasses.replace(self.config, image_size=image_size(size))
        for i, block in enumerate(cast("list[Block]", self.blocks)):
            extend = getattr(block.mixer, "extend", None)
            if not callable(extend):
                raise ValueError(
                    f"blocks.{i}.mixer is a {type(block.mixer).__name__}, which has no extend(l_max, mode)"
                )
            how = mode if any(isinstance(m, FilterBase) for m in block.mixer.modules()) else "continue"
            extend(config.grid if getattr(block.mixer, "takes_grid", False) else config.l_max, how)
        if self.positions is not None:
            self.positions = nn.Parameter(self._positions_of(config.grid).clone(), self.positions.requires_grad)
        self.config = config

    def _positions_of(self, grid: tuple[int, int]) -> Tensor:
        """The learned positions, those of the patches interpolated for another grid than the config's."""
        assert self.positions is not None
        if grid == self.config.grid:
            return self.positions
        prefix = self.config.prefix_tokens
        tokens, patches = self.positions[:, :prefix], self.positions[:, prefix:]
        table = patches.transpose(1, 2).unflatten(2, self.config.grid)  # (1, D, H, W)
        table = F.interpolate(table, grid, mode="bicubic", align_corners=False)
        return torch.cat([tokens, table.flatten(2).transpose(1, 2)], dim=1)
