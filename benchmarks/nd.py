"""What a long convolution over a grid costs beside ``torch.fft.rfft2`` of the padded grid: time, gradients, memory.

    python benchmarks/nd.py [--sizes 32 64 128 256] [--width 128] [--positions 16384]
    python benchmarks/nd.py --dry-run           # toy sizes; nothing is written

``(B, n, n, D)`` channels last, float32, two-sided filters of all ``2n - 1`` lags along both axes, their transform part
of every call, zeros beyond the grid. ``grid`` is :func:`hyena.functional.fft_conv_nd`. ``plain`` is the usual form, the
one that all ratios are to: ``irfft2(rfft2(x, (2n, 2n)) * rfft2(h, (2n, 2n)))`` over the axes where they lie, and
``moved`` the same with channels moved to the front and back, so that rows are contiguous. ``circle`` and ``mirror`` are
``grid`` with other boundaries, and ``separable`` is :func:`hyena.functional.separable_conv_nd` of two filters of
``2n - 1`` taps. Times are medians of calls that took turns in one run: forward without gradients, and forward with the
gradients of the input and the taps. ``peak MB`` is what a call with gradients needs at most beside what was there
before. Writes results/nd-<device>.json.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from typing import Any

import torch
from measure import interleaved, machine, peak_bytes, table, write
from torch import Tensor

from hyena.functional import fft_conv_nd, separable_conv_nd

BASELINE = "plain"


def plain(x: Tensor, h: Tensor) -> Tensor:
    """Transforms of twice the grid along the axes where they lie."""
    n, m = x.shape[1:3]
    size = (2 * n, 2 * m)
    product = torch.fft.rfft2(x, size, dim=(1, 2)) * torch.fft.rfft2(h, size, dim=(0, 1))
    return torch.fft.irfft2(product, size, dim=(1, 2))[:, n - 1 : 2 * n - 1, m - 1 : 2 * m - 1]


def moved(x: Tensor, h: Tensor) -> Tensor:
    """The same on contiguous rows."""
    n, m = x.shape[1:3]
    size = (2 * n, 2 * m)
    rows, taps = x.movedim(-1, 1).contiguous(), h.movedim(-1, 0).contiguous()
    y = torch.fft.irfft2(torch.fft.rfft2(rows, size) * torch.fft.rfft2(taps, size), size)
    return y[..., n - 1 : 2 * n - 1, m - 1 : 2 * m - 1].movedim(1, -1).contiguous()


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": plain,
    "moved": moved,
    "grid": fft_conv_nd,
    "circle": lambda x, h: fft_conv_nd(x, h, boundary="circular"),
    "mirror": lambda x, h: fft_conv_nd(x, h, boundary="reflect"),
    "separable": lambda x, h: separable_conv_nd(x, [h[:, 0], h[0]]),
}


def measure(size: int, width: int, positions: int, device: str, repeats: int) -> list[dict[str, Any]]:
    """One row for each form."""
    batch = max(1, positions // size**2)
    x = torch.randn(batch, size, size, width, device=device)
    h = torch.randn(2 * size - 1, 2 * size - 1, width, device=device)
    dy = torch.randn_like(x)
    agree = fft_conv_nd(x, h)
    for form in (plain, moved):
        assert (form(x, h) - agree).abs().max() < 1e-4 * agree.abs().max()
    leaves = [x.clone().requires_grad_(), h.clone().requires_grad_()]

    def forward(name: str) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: FORMS[name](x, h))

    def train(name: str) -> Callable[[], object]:
        return lambda: torch.autograd.grad(FORMS[name](*leaves), leaves, dy)

    times = {
        "forward": interleaved({n: forward(n) for n in FORMS}, repeats=repeats, device=device),
        "train": interleaved({n: train(n) for n in FORMS}, repeats=repeats, device=device),
    }
    rows = []
    for name in FORMS:
        row: dict[str, Any] = {"form": name, "B": batch, "n": size, "D": width}
        for what, found in times.items():
            row[f"{what} ms"] = found[name] * 1e3
            row[f"plain / {what}"] = found[BASELINE] / found[name]
        gc.collect()
        peak = peak_bytes(train(name), device)
        row["peak MB"] = None if peak is None else peak / 1e6
        rows.append(row)
    return rows


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--positions", type=int, default=1 << 14, help="of a batch, at least one grid")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    sizes, width, positions, repeats = args.sizes, args.width, args.positions, args.repeats
    if args.dry_run:
        sizes, width, positions, repeats = [5, 8], 4, 128, 1
    record: dict[str, Any] = {**machine(args.device), "dtype": "float32", "baseline": BASELINE, "rows": []}
    for size in sizes:
        rows = measure(size, width, positions, args.device, repeats)
        record["rows"] += rows
        print(table(rows), flush=True)
        if not args.dry_run:
            write(f"nd-{args.device}", record)


if __name__ == "__main__":
    main()
