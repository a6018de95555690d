"""Whole layers and models: the operator against attention, and HyenaDNA at its largest."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from measure import peak_bytes
from speed import Attention
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_sections.bench import HALF, Bench, Job, K, row
from hyena import HyenaOperator
from hyena.models.hyenadna import HyenaDNA, HyenaDNAConfig


def attention(b: Bench) -> Iterator[Job]:
    """The whole operator against flash attention, projections included; a training step generates its filters."""
    for length in b.lengths(*(K << i for i in range(7))):
        for training in (False, True):
            name = f"{'training step' if training else 'forward'} bf16 D={64 if b.toy else b.width} L={length}"
            yield name, partial(_attention, b, length, training)


def _attention(b: Bench, length: int, training: bool) -> dict[str, Any]:
    width, batch = 64 if b.toy else b.width, b.batch(length, 1 << 16)
    layers = {
        "hyena": HyenaOperator(width, length, device=b.device, dtype=HALF),
        "flash": Attention(width).to(b.device, HALF),
    }
    layers["default"] = layers["flash"]
    u = torch.randn(batch, length, width, device=b.device, dtype=HALF, requires_grad=training)
    dy = torch.randn_like(u)

    def run(name: str) -> None:
        with torch.set_grad_enabled(training):
            if name == "flash":
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                    y = layers[name](u)
            else:
                y = layers[name](u)
            if training:
                y.backward(dy)

    for layer in layers.values():
        layer.train(training)
    times = b.times({name: [partial(run, name)] for name in layers}, 10)
    bar = 12 if length >= 64 * K else 2 if length >= 8 * K else 1 if length >= 2 * K else None
    ms = {f"{name} ms": seconds * 1e3 for name, seconds in times.items()}
    return row(times["flash"] / times["hyena"], "x faster than flash attention", bar, B=batch, **ms)


def hyenadna(b: Bench) -> Iterator[Job]:
    """A model of the size of HyenaDNA's largest, batch 1, bf16 autocast: forward and backward."""
    length, width, layers = (96, 16, 2) if b.toy else (1_000_000, 256, 8)
    for checkpointing in (False, True):
        name = f"width {width}, {layers} layers{', checkpointing' if checkpointing else ''} L={length}"
        yield name, partial(_dna, b, length, width, layers, checkpointing)


def _dna(b: Bench, length: int, width: int, layers: int, checkpointing: bool) -> dict[str, Any]:
    config = HyenaDNAConfig(
        l_max=length + 2, d_model=width, num_layers=layers, head="lm", gradient_checkpointing=checkpointing
    )
    model = HyenaDNA(config, device=b.device)
    tokens = torch.randint(7, 11, (1, length + 1), device=b.device)

    def run() -> None:
        with torch.autocast(b.device, HALF):
            loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[0, 1:])
        loss.backward()
        model.zero_grad()

    run()
    peak = peak_bytes(run, b.device)
    return row(b.time([run], 3), "s", **{"GB beyond weights": None if peak is None else peak / 1e9})
