"""What every mixer of the family costs beside Hyena and attention: forward, training, a decoding step, memory.

    python benchmarks/family_mixers.py [--device cpu] [--width 256] [--lengths 1024 4096 16384] [--mixers H3 S5 …]

One layer of each mixer with its defaults, causal, D = 256; a batch holds 16K positions. Times are medians of calls that
took turns with ``HyenaOperator``'s and ``Attention``'s in the same run, and the table has their ratios to Hyena's: a
forward pass in eval mode, forward and backward, and a step of one position (the mean of 64 after half a row). ``kept
MB`` is what a forward pass keeps for the backward one, ``state KB`` what a row of L positions keeps in decoding.
Attention, and what else costs L ** 2, is left out beyond 8K positions. Grids are in ``nd.py``. Writes
results/family-mixers-<device>.json, and .png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from family_run import STEPS, exported, run, timed
from torch import Tensor

import hyena.mixers
from hyena.mixers import Mixer

NAMES = exported(hyena.mixers, Mixer, ["d_model", "l_max"], ["HyenaOperator", "Attention"])
# Those whose time grows with the square of the length, and how long they are measured.
SQUARE, LONGEST_SQUARE = ("Attention", "AFT"), 8192
COLUMNS = ("forward", "train", "step")
PANELS = {
    "forward / Hyena": "forward / Hyena's",
    "train / Hyena": "forward and backward / Hyena's",
    "step / Hyena": "decoding step / Hyena's",
    "kept MB": "kept for backward, MB",
    "state KB": "decoding state of a row, KB",
}


def kept_bytes(call: Callable[[], object]) -> int:
    """What a forward pass keeps for the backward one; storages that several tensors share count once."""
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(seen.values())


def measure(chosen: list[str], options: argparse.Namespace, length: int) -> list[dict[str, Any]]:
    """One row for each mixer."""
    device, width, repeats = options.device, options.width, options.repeats
    chosen = [name for name in chosen if name not in SQUARE or length <= LONGEST_SQUARE]
    batch = max(1, options.tokens // length)
    u = torch.randn(batch, length, width, device=device)
    grad = torch.randn_like(u)
    mixers = {name: getattr(hyena.mixers, name)(width, length, device=device) for name in chosen}
    halfway = {}
    for name, mixer in mixers.items():
        halfway[name] = mixer.eval().init_state(1, length)
        mixer.prefill(u[:1, : length // 2], halfway[name])
    count = min(STEPS, length - length // 2)

    def forward(mixer: Mixer) -> None:
        with torch.no_grad():
            mixer(u)

    def steps(name: str) -> None:
        state = halfway[name].clone()
        for _ in range(count):
            mixers[name].step(u[:1, 0], state)

    def train(mixer: Mixer) -> None:
        mixer(u).backward(grad)

    times = {
        "forward": timed({n: lambda m=m: forward(m) for n, m in mixers.items()}, repeats, device),
        "step": {n: t / count for n, t in timed({n: lambda n=n: steps(n) for n in mixers}, repeats, device).items()},
    }
    for mixer in mixers.values():
        mixer.train()
    times["train"] = timed({n: lambda m=m: train(m) for n, m in mixers.items()}, repeats, device)
    rows = []
    for name, mixer in mixers.items():
        row: dict[str, Any] = {"mixer": name, "D": width, "L": length, "B": batch}
        row["parameters K"] = sum(p.numel() for p in mixer.parameters()) / 1e3
        for what in COLUMNS:
            row[f"{what} ms"] = times[what][name]
            row[f"{what} / Hyena"] = times[what][name] / times[what][NAMES[0]]
        row["kept MB"] = kept_bytes(lambda m=mixer: m(u)) / 1e6
        row["state KB"] = mixer.eval().state_size(1, length).rows / 1e3
        rows.append(row)
    return rows


if __name__ == "__main__":
    run(__doc__, "mixer", NAMES, measure, [1024, 4096, 16384], PANELS)
