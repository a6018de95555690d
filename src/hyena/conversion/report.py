"""What a conversion did, to print and to save."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class LayerReport:
    """One layer that was attention.

    Attributes:
        index, name: its number and where it stands in the model.
        converted: whether it is attention no more.
        start: how its replacement started: "attention", "filters" or "random".
        note: why it did not start as asked, or stays as it is; empty if there is nothing to say.
        filter_error: relative l2 error of the filters against the mean diagonals of the attention map, None if random.
        error_before, error_after: ``|y - y_attention|² / |y_attention|²`` over held-out batches, on the inputs that the
            attention model gives the layer: at the start, and after the layers were taught.
        alone: the divergence of the model in which this layer alone is replaced, after the layers were taught (with
            ``objective="mse"`` the relative error of its outputs).
    """

    index: int
    name: str
    converted: bool = True
    start: str = "random"
    note: str = ""
    filter_error: float | None = None
    error_before: float | None = None
    error_after: float | None = None
    alone: float | None = None


@dataclass
class Losses:
    """A model on the held-out batches, the mean over them.

    Attributes:
        loss: of the true labels, None without labels.
        divergence: of its outputs from the attention model's, ``KL`` at temperature 1, or with ``objective="mse"`` the
            relative squared error.
    """

    loss: float | None
    divergence: float

    def __str__(self) -> str:
        labels = "" if self.loss is None else f"loss {self.loss:.4f}, "
        return f"{labels}divergence {self.divergence:.4f}"


@dataclass
class ConversionReport:
    """What :func:`hyena.convert` did: ``print`` it, or ``save`` it.

    Attributes:
        layers: every layer that could be replaced.
        attention: the model as it came.
        swapped: with all layers replaced as they started, before any training.
        taught: with the layers to convert, after they were taught one by one.
        converted: after all were trained together.
        tokens: positions trained on, padding not counted, by stage, and their sum as ``total``; beside them those of
            the held-out batches, ``evaluation``.
        batches: of the caller that were used.
        steps: of training, by stage.
        seconds: by stage, all runs of a resumed conversion together.
        history: by stage the objective of each step; of ``layers`` the mean of the layers' relative errors.
        settings: what the caller chose.
        versions: of torch and this library.
        device: that the model was on.
    """

    layers: list[LayerReport] = field(default_factory=list)
    attention: Losses | None = None
    swapped: Losses | None = None
    taught: Losses | None = None
    converted: Losses | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConversionReport:
        """The report that :meth:`to_dict` was called on."""
        values = dict(values)
        values["layers"] = [LayerReport(**layer) for layer in values["layers"]]
        for name in ("attention", "swapped", "taught", "converted"):
            values[name] = None if values[name] is None else Losses(**values[name])
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Writes the report as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        done = sum(layer.converted for layer in self.layers)
        lines = [f"converted {done} of {len(self.layers)} layers with {self.tokens.get('total', 0):,} tokens"]
        width = max((len(layer.name) for layer in self.layers), default=0)
        for layer in self.layers:
            row = f"  {layer.index:>3} {layer.name:<{width}}"
            if layer.error_after is not None:
                row += f"  error {layer.error_before:.4f} -> {layer.error_after:.4f}"
            if layer.alone is not None:
                row += f"  alone {layer.alone:.4f}"
            row += f"  start {layer.start}" if layer.converted else "  attention"
            lines.append(row + (f" ({layer.note})" if layer.note else ""))
        stages = {
            "attention": self.attention,
            "swapped, untrained": self.swapped,
            "layers taught": self.taught,
            "converted": self.converted,
        }
        lines += [f"  {name:<18}  {found}" for name, found in stages.items() if found is not None]
        return "\n".join(lines)
