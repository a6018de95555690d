"""Everything that decides how a run turns out, but for the text and the number of threads."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from hyena.models import CausalLMConfig


def _memory() -> float:
    """Bytes of memory, infinite where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


@dataclasses.dataclass(frozen=True)
class Settings:
    """The defaults are nanoGPT's for Shakespeare on a CPU, with Hyena in attention's place."""

    mixer: str = "hyena"
    seed: int = 0
    steps: int = 2000
    batch: int = 12
    context: int = 64
    layers: int = 4
    width: int = 128
    heads: int = 4  # of attention
    mlp: str = "swiglu"
    dropout: float = 0.0
    lr: float = 1e-3
    min_lr: float = 1e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0  # largest norm of the gradient; 0 leaves it as it is

    def __post_init__(self) -> None:
        if self.mixer not in ("hyena", "attention"):
            raise ValueError(f"mixer must be 'hyena' or 'attention', got {self.mixer!r}")
        for name in ("steps", "batch", "context", "layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "min_lr", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number that is not negative, got {getattr(self, name)}")
        for name in ("dropout", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not -(1 << 63) <= self.seed < 1 << 64:
            raise ValueError(f"seed must fit 64 bits, got {self.seed}")

    def check_memory(self, vocab_size: int) -> None:
        """Whether the machine can hold the model, before it is built.

        Raises:
            ValueError: it cannot.
        """
        # The two projections of the mixer and the MLP have 12 D^2 weights; the filters of the defaults 64 (D + 164).
        layer = 12 * self.width**2 + 64 * (self.width + 164) * (self.mixer == "hyena")
        positions = self.context if self.mixer == "attention" else 0
        parameters = self.layers * layer + (vocab_size + positions) * self.width
        # What the backward pass needs of each position, at least: z, gated inputs and the MLP's inner layer.
        position = self.layers * 12 * self.width + vocab_size
        needed = 16 * parameters  # float32: weight, gradient and two moments
        needed += 4 * self.batch * self.context * position
        if needed > _memory():
            raise ValueError(
                f"layers={self.layers}, width={self.width}, batch={self.batch}, context={self.context} need "
                f"{needed / 2**30:,.0f} GB or more in training; this machine has {_memory() / 2**30:,.0f}"
            )

    def model(self, vocab_size: int) -> CausalLMConfig:
        """The model of this run."""
        mixer, options = "HyenaOperator", {}
        if self.mixer == "attention":
            mixer, options = "Attention", {"num_heads": self.heads, "dropout": self.dropout}
        return CausalLMConfig(
            vocab_size=vocab_size,
            l_max=self.context,
            d_model=self.width,
            num_layers=self.layers,
            mixer=mixer,
            mixer_options=options,
            dropout=self.dropout,
            mlp=self.mlp,
        )

    def lr_factor(self, step: int) -> float:
        """What every learning rate is multiplied by in ``step`` (from 0): a linear rise, then a cosine from 1 down.

        The rise takes a twentieth of the steps, so 100 of 2000, as nanoGPT has it.
        """
        rise = self.steps // 20
        if step < rise:
            return (step + 1) / (rise + 1)
        cosine = 0.5 * (1.0 + math.cos(math.pi * (step - rise) / (self.steps - rise)))
        floor = self.min_lr / self.lr if self.lr > 0 else 1.0
        return floor + cosine * (1.0 - floor)

    def changed(self) -> dict[str, Any]:
        """The settings that are not at their default."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
