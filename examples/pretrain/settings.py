"""Everything that decides how a run turns out, but for the mesh: a run may go on with other numbers of processes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from data import size_of

HERE = Path(__file__).resolve().parent
DATA = (str(HERE.parent / "shakespeare" / "tinyshakespeare.txt"),)


def option(default, text: str):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Each field is an option of train.py, with its help."""

    data: tuple[str, ...] = option(DATA, "text or FASTA files (.fa, .fna, .fasta), plain or gzip")
    seed: int = option(0, "of the weights and of the order of the data")
    steps: int = option(200, "optimizer steps")
    batch: int = option(8, "blocks of data a step, of --length tokens each, over all processes")
    length: int = option(256, "tokens of a row, and of a block of data")
    start_length: int = option(32, "tokens of a row in the first steps; doubles up to --length")
    length_warmup: int = option(60, "steps before rows have --length tokens")
    shuffle: int = option(512, "blocks that are read ahead and shuffled; each process holds them in memory")
    mixer: str = option("HyenaOperator", "a mixer of hyena.mixers")
    mlp: str = option("swiglu", "of the blocks: swiglu, geglu, gelu or gelu_tanh")
    layers: int = option(4, "blocks of the model")
    width: int = option(128, "channels of the model")
    lr: float = option(2e-3, "learning rate at its highest")
    min_lr: float = option(2e-4, "learning rate at the end of the cosine")
    warmup: int = option(20, "steps in which the learning rate rises")
    weight_decay: float = option(0.1, "of matrices")
    clip: float = option(1.0, "largest norm of the gradient over all processes; 0 for no limit")
    dtype: str = option("float32", "of activations: float32, bfloat16, or float64 to compare meshes by")
    recompute: bool = option(False, "keep only the blocks' inputs for the backward pass")

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "start_length", "shuffle", "layers", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{_flag(name)} must be at least 1, got {getattr(self, name)}")
        for name in ("length_warmup", "warmup", "seed"):
            if not 0 <= getattr(self, name) < 1 << 62:
                raise ValueError(f"--{_flag(name)} must be at least 0 and below 2^62, got {getattr(self, name)}")
        for name in ("lr", "min_lr", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{_flag(name)} must be a number that is not negative, got {getattr(self, name)}")
        if self.min_lr > self.lr:
            raise ValueError(f"--min-lr {self.min_lr} is above --lr {self.lr}")
        if self.warmup > self.steps:
            raise ValueError(f"--warmup {self.warmup} is more than --steps {self.steps}")
        if self.dtype not in ("float32", "bfloat16", "float64"):
            raise ValueError(f"--dtype must be float32, bfloat16 or float64, got {self.dtype!r}")
        if self.start_length << self.doublings != self.length:
            raise ValueError(
                f"--length {self.length} is not --start-length {self.start_length} doubled some times: rows would not "
                f"divide a block; without a length warm-up, --start-length {self.length}"
            )

    @property
    def doublings(self) -> int:
        return max(0, (self.length // self.start_length).bit_length() - 1)

    def length_at(self, step: int) -> int:
        """Tokens of a row in ``step`` (from 0). A step has the same blocks whatever the length: more, shorter rows."""
        if step >= self.length_warmup:
            return self.length
        return self.start_length << (step * self.doublings // self.length_warmup)

    def lr_at(self, step: int) -> float:
        """A linear rise, then a cosine from ``lr`` to ``min_lr``."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def identity(self) -> dict[str, object]:
        """What a checkpoint must agree with to belong to this run: the settings, and the data by name and size."""
        files = [[path.name, size_of(path)] for path in map(Path, self.data)]
        return {**dataclasses.asdict(self), "data": files}


def _flag(name: str) -> str:
    return name.replace("_", "-")
