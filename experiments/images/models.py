"""The models of each task, of equal size: images ``(B, 1, H, W)`` in, logits ``(B, 10)`` out.

Dimensions: B batch, L pixels, D channels.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import hyena
from experiments.images.digits import permutation
from experiments.shared.models import mixer, parameters
from hyena.filters import S4D, S4ND
from hyena.mixers import HyenaPatches
from hyena.models import Block, CausalLMConfig, HyenaISO, HyenaISOConfig, ViT, ViTConfig

CLASSES = 10
ROWS = ("hyena", "hyena/s4d", "attention")
VITS = ("attention", "attention, as large", "hyena along the row", "hyena over the grid")
GRIDS = ("hyena-iso", "s4nd-iso", "convnet", "convnet with pooling")
MODELS = {"sequential": ROWS, "permuted": ROWS, "vit": VITS, "grid": GRIDS}


def make(task: str, name: str, side: int, **sizes: Any) -> nn.Module:
    """The model of this name for a task.

    Args:
        task, name: of ``MODELS``.
        side: pixels of a side.
        sizes: ``width`` and ``layers``; of "vit" also ``patch``; of "grid" also ``dropout``.
    """
    if task not in MODELS or name not in MODELS[task]:
        raise ValueError(f"no model {name!r} for {task!r}; there are {MODELS}")
    if task == "vit":
        return _vit(name, side, **sizes)
    if task == "grid":
        return _grid(name, side, **sizes)
    order = permutation(side * side) if task == "permuted" else None
    return _row(name, side, order, **sizes)


def nearest(build: Callable[[int], nn.Module], choices: range, count: int) -> nn.Module:
    """What has the number of parameters nearest to ``count``, of what ``build`` makes of the choices.

    Args:
        build: makes a model of a number; the larger the number, the more parameters.
        choices: the numbers.
        count: parameters.

    Raises:
        ValueError: even the smallest has more, or the largest fewer, by a twentieth.
    """

    def size(choice: int) -> int:
        with torch.device("meta"):
            return parameters(build(choice))

    after = bisect.bisect_left(choices, count, key=size)
    chosen = min(choices[max(0, after - 1) : after + 1], key=lambda choice: abs(size(choice) - count))
    if abs(size(chosen) - count) > count / 20:
        raise ValueError(f"no choice of {choices} has about {count} parameters; {chosen} has {size(chosen)}")
    return build(chosen)


class PixelRow(nn.Module):
    """Classes from a row of pixels: a linear stem, causal blocks, a norm, the mean over the row, and a head.

    Mixers that do not know the order of their inputs get learned positions.

    Args:
        mixers: of the blocks.
        width: D.
        pixels: L.
        order: in which the pixels are read, ``(L,)``; row by row if None.
        d_inner: inner width of the MLPs.
    """

    def __init__(
        self, mixers: list[nn.Module], width: int, pixels: int, order: Tensor | None = None, *, d_inner: int
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(each, width, d_inner=d_inner) for each in mixers)
        needed = any(getattr(each, "needs_positions", False) for each in mixers)
        self.positions = nn.Parameter(0.02 * torch.randn(pixels, width)) if needed else None
        self.register_buffer("order", order)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Computes ``(B, 1, H, W) -> (B, 10)``."""
        x = images.flatten(1)
        x = x if self.order is None else x[:, self.order]
        x = self.stem(x[..., None])
        x = x if self.positions is None else x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def _row(name: str, side: int, order: Tensor | None, *, width: int, layers: int) -> nn.Module:
    """Every mixer beside MLPs of such a width that the model is as large as Hyena's, whose MLPs have ``2 D``."""
    pixels = side * side

    def build(of: str, d_inner: int) -> nn.Module:
        class_name, options = mixer(of)
        config = CausalLMConfig(CLASSES, pixels, mixer=class_name, mixer_options=options)
        factory = config.mixer_factory()
        return PixelRow([factory(width, pixels) for _ in range(layers)], width, pixels, order, d_inner=d_inner)

    if name == "hyena":
        return build(name, 2 * width)
    with torch.device("meta"):
        count = parameters(build("hyena", 2 * width))
    return nearest(partial(build, name), range(1, 256 * width), count)


def _vit(name: str, side: int, *, width: int, layers: int, patch: int) -> nn.Module:
    """A vision transformer, the same after ``replace_attention``, and one with MLPs that make it as large as those."""
    attention = partial(hyena.mixers.Attention, num_heads=4)

    def build(d_inner: int, mixer: Any = None) -> nn.Module:
        sizes = {"d_model": width, "num_layers": layers, "d_inner": d_inner, "patch_size": patch}
        vit = ViT(ViTConfig(image_size=side, channels=1, num_classes=CLASSES, **sizes), attention)
        if mixer is not None:
            hyena.replace_attention(vit, mixer=mixer)
        return vit

    if name == "attention, as large":
        return nearest(build, range(1, 256 * width), parameters(build(2 * width, HyenaPatches)))
    mixers = {"attention": None, "hyena along the row": hyena.HyenaOperator, "hyena over the grid": HyenaPatches}
    return build(2 * width, mixers[name])


def _grid(name: str, side: int, *, width: int, layers: int, dropout: float) -> nn.Module:
    """Networks at the image's own resolution as large as Hyena-ISO, and a ConvNet that halves it twice."""
    config = HyenaISOConfig(side, 1, CLASSES, d_model=width, num_layers=layers, dropout=dropout)
    if name == "hyena-iso":
        return HyenaISO(config)
    count = parameters(HyenaISO(config))
    if name == "s4nd-iso":
        return nearest(lambda modes: HyenaISO(config, _states(modes)), range(1, 129), count)
    pooled = name == "convnet with pooling"
    return nearest(lambda channels: _convnet(channels, layers, dropout, pooled=pooled), range(2, 1024), count)


def _states(modes: int) -> partial:
    return partial(S4ND, filter=partial(S4D, modes=modes))


def _convnet(channels: int, layers: int, dropout: float, *, pooled: bool) -> nn.Module:
    """A plain ConvNet: 3 x 3 convolutions with batch norm and ReLU, the mean over the image, and a head."""
    parts: list[nn.Module] = []
    for i in range(layers):
        conv = nn.Conv2d(channels if i else 1, channels, 3, padding=1, bias=False)
        parts += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
        if pooled and i < 2:
            parts.append(nn.MaxPool2d(2))
    head = nn.Linear(channels, CLASSES)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), head)
