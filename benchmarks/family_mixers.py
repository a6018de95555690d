"""What every mixer of the family costs beside Hyena and attention: forward, training, a decoding step, memory.

    python benchmarks/family_mixers.py [--device cpu] [--width 256] [--lengths 1024 4096 16384] [--mixers H3 S5 …]
    python benchmarks/family_mixers.py --quick           # toy sizes; nothing is written

One layer of each mixer with its defaults, causal, D = 256; a batch holds 16K positions. Times are medians of calls that
took turns with ``HyenaOperator``'s and ``Attention``'s in the same run, and the table has their ratios to Hyena's: a
forward pass in eval mode, forward and backward, and a step of one position after half a row. ``kept MB`` is what a
forward pass keeps for the backward one, ``state KB`` what a row of L positions keeps in decoding. Attention, and what
else costs L ** 2, is left out beyond 8K positions. Writes results/family-mixers-<device>.json and draws
results/family-mixers-<device>.png.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

import torch
from family_plot import draw
from measure import RESULTS, interleaved, machine, table, write
from torch import Tensor

import hyena.mixers
from hyena.mixers import Mixer

TOKENS = 16384
# Those whose time grows with the square of the length, and how long they are measured.
SQUARE, LONGEST_SQUARE = ("Attention", "AFT"), 8192
COLUMNS = ("forward", "train", "step")


def names() -> list[str]:
    """Every exported mixer, Hyena and attention first."""
    found = [
        name
        for name in hyena.mixers.__all__
        if issubclass(kind := getattr(hyena.mixers, name), Mixer) and not inspect.isabstract(kind)
    ]
    return ["HyenaOperator", "Attention", *(name for name in found if name not in ("HyenaOperator", "Attention"))]


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


def measure(chosen: list[str], width: int, length: int, device: str, repeats: int, tokens: int) -> list[dict[str, Any]]:
    """One row for each mixer."""
    batch = max(1, tokens // length)
    u = torch.randn(batch, length, width, device=device)
    grad = torch.randn_like(u)
    mixers = {name: getattr(hyena.mixers, name)(width, length, device=device) for name in chosen}
    states, halfway = {}, {}
    for name, mixer in mixers.items():
        state = mixer.eval().init_state(1, length)
        mixer.prefill(u[:1, : length // 2], state)
        states[name], halfway[name] = state, state.clone()

    def forward(mixer: Mixer) -> object:
        with torch.no_grad():
            return mixer(u)

    def train(mixer: Mixer) -> None:
        mixer(u).backward(grad)

    def step(name: str) -> None:
        if states[name].position == length:
            states[name] = halfway[name].clone()
        mixers[name].step(u[:1, 0], states[name])

    times = {
        "forward": interleaved({n: lambda m=m: forward(m) for n, m in mixers.items()}, repeats=repeats, device=device)
    }
    times["step"] = interleaved({n: lambda n=n: step(n) for n in mixers}, repeats=8 * repeats, device=device)
    for mixer in mixers.values():
        mixer.train()
    times["train"] = interleaved({n: lambda m=m: train(m) for n, m in mixers.items()}, repeats=repeats, device=device)
    rows = []
    for name, mixer in mixers.items():
        row: dict[str, Any] = {"mixer": name, "D": width, "L": length, "B": batch}
        row["parameters K"] = sum(p.numel() for p in mixer.parameters()) / 1e3
        for what in COLUMNS:
            row[f"{what} ms"] = times[what][name] * 1e3
            row[f"{what} / Hyena"] = times[what][name] / times[what]["HyenaOperator"]
        row["kept MB"] = kept_bytes(lambda m=mixer: m(u)) / 1e6
        row["state KB"] = mixer.eval().state_size(1, length).rows / 1e3
        rows.append(row)
    return rows


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--mixers", nargs="+", default=names(), help="beside HyenaOperator, which all ratios are to")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    lengths, width, repeats, tokens = args.lengths, args.width, args.repeats, TOKENS
    if args.quick:
        lengths, width, repeats, tokens = [64], 16, 1, 128
    chosen = list(dict.fromkeys(["HyenaOperator", *args.mixers]))
    record: dict[str, Any] = {**machine(args.device), "dtype": "float32", "baseline": "HyenaOperator", "rows": []}
    for length in lengths:
        fitting = [name for name in chosen if name not in SQUARE or length <= LONGEST_SQUARE]
        rows = measure(fitting, width, length, args.device, repeats, tokens)
        record["rows"] += rows
        print(table(rows), flush=True)
        if not args.quick:
            write(f"family-mixers-{args.device}", record)
    if not args.quick:
        draw(
            record,
            RESULTS / f"family-mixers-{args.device}.png",
            "mixer",
            [*(f"{what} / Hyena" for what in COLUMNS), "kept MB", "state KB"],
            "positions",
        )


if __name__ == "__main__":
    main()
