"""``hyena bench``: Hyena against attention on this machine, and the length from which on it is faster.

Dimensions: B batch, L length, D channels.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hyena.command.devices import device_of
from hyena.command.folder import replacing
from hyena.command.report import report
from hyena.genomics.progress import Progress
from hyena.mixers import Attention, HyenaOperator

_HEAD = 64  # channels of a head of attention
_POSITIONS = 8192  # in a batch, or one row where rows are longer
_ROUNDS = 5


class Row(NamedTuple):
    """Milliseconds at one length; None where nothing was measured.

    Args:
        length: L.
        batch: B.
        hyena, attention: ``{"forward": …, "training": …}``.
    """

    length: int
    batch: int
    hyena: dict[str, float | None]
    attention: dict[str, float | None]

    def ratio(self, what: str) -> float | None:
        """Attention's time over Hyena's."""
        a, h = self.attention[what], self.hyena[what]
        return None if a is None or h is None else a / h


def run(given: argparse.Namespace) -> None:
    """Measures, and leaves a table, ``bench.json`` and ``bench.png``.

    Raises:
        ValueError: sizes that do not fit.
        ModuleNotFoundError: no matplotlib for the plot.
    """
    lengths = _lengths(given.lengths)
    if given.width < 1 or given.width % _HEAD:
        raise ValueError(f"--width must be a multiple of {_HEAD}, got {given.width}")
    if not 0 < given.seconds < math.inf:
        raise ValueError(f"--seconds must be more than 0, got {given.seconds}")
    if given.threads is not None:
        if given.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {given.threads}")
        torch.set_num_threads(given.threads)
    plot = _plotter(given.no_plot)
    device = device_of(given.device)
    dtype = getattr(torch, given.dtype)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = measure(lengths, given.width, device, dtype, given.seconds, shown=not given.quiet)
    found = {what: crossover(rows, what) for what in ("forward", "training")}
    where = f"{device}, {given.dtype}, width {given.width}, {torch.get_num_threads()} threads"
    print(table(rows, where))
    for what, length in found.items():
        print(f"{what:9} {_said(length, rows, what)}")
    values = {
        "width": given.width,
        "dtype": given.dtype,
        "device": str(device),
        "unit": "ms",
        "crossover": {what: length if length is None else round(length) for what, length in found.items()},
        "rows": [{**row._asdict(), "ratio": {what: row.ratio(what) for what in found}} for row in rows],
        "machine": report(),
    }
    with replacing(out / "bench.json") as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())
    print(f"numbers   {out / 'bench.json'}")
    if plot is not None:
        plot(rows, where, out / "bench.png")
        print(f"plot      {out / 'bench.png'}")


def measure(
    lengths: list[int], width: int, device: torch.device, dtype: torch.dtype, seconds: float, *, shown: bool
) -> list[Row]:
    """Measures both layers at all lengths, in about so many seconds; what would take too long is left out.

    Each length has its share, and what is left of it goes to the ones after it. Attention, whose time grows with the
    square of the length, is not tried where the time at the length before says that one call does not fit.
    """
    rows: list[Row] = []
    end = time.monotonic() + seconds
    with Progress(len(lengths), "lengths", shown=shown) as bar:
        for i, length in enumerate(lengths):
            batch = max(_POSITIONS // length, 1)
            share = max(end - time.monotonic(), 0.0) / (len(lengths) - i)
            u = torch.randn(batch, length, width, device=device, dtype=dtype)
            kinds: dict[str, Any] = {"hyena": HyenaOperator, "attention": Attention}
            times: dict[str, dict[str, float | None]] = {}
            for name, kind in kinds.items():
                times[name] = {"forward": None, "training": None}
                expected = _expected(rows, name, length, batch)
                if expected > share / 2:
                    continue
                options = {"num_heads": width // _HEAD} if kind is Attention else {}
                layer = kind(width, length, device=device, dtype=dtype, **options)
                for what, call in (("forward", _forward(layer, u)), ("training", _training(layer, u))):
                    times[name][what] = _median(call, device, share / 4)
            rows.append(Row(length, batch, times["hyena"], times["attention"]))
            bar.add(1)
    return rows


def _expected(rows: list[Row], name: str, length: int, batch: int) -> float:
    """Seconds of a training step by the time at the length before; 0 where nothing is known, infinite after a gap."""
    if not rows:
        return 0.0
    before = rows[-1]
    took = getattr(before, name)["training"]
    if took is None:
        return math.inf
    growth = (length / before.length) ** (2 if name == "attention" else 1) * batch / before.batch
    return 2 * took * growth / 1e3  # the first call is not measured


def _forward(layer: torch.nn.Module, u: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        layer.eval()
        with torch.inference_mode():
            layer(u)

    return call


def _training(layer: torch.nn.Module, u: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        layer.train()
        layer(u).sum().backward()
        layer.zero_grad()

    return call


def _median(call: Callable[[], None], device: torch.device, seconds: float) -> float:
    """The median of up to ``_ROUNDS`` calls, in milliseconds, after one that is not measured."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    end = time.monotonic() + seconds
    call()
    wait()
    times: list[float] = []
    while len(times) < _ROUNDS and (not times or time.monotonic() < end):
        began = time.perf_counter()
        call()
        wait()
        times.append(1e3 * (time.perf_counter() - began))
    return sorted(times)[len(times) // 2]


def crossover(rows: list[Row], what: str) -> float | None:
    """The length from which on attention takes longer, on a line between the logarithms of two; None if at no length.

    The shortest length if it does from there on.
    """
    points = [(row.length, ratio) for row in rows if (ratio := row.ratio(what)) is not None]
    if not points or points[-1][1] < 1:
        return None
    slower = max((i for i, (_, ratio) in enumerate(points) if ratio < 1), default=-1)
    if slower < 0:
        return float(points[0][0])
    (l0, r0), (l1, r1) = points[slower], points[slower + 1]
    share = math.log(1 / r0) / math.log(r1 / r0)
    return l0 * (l1 / l0) ** share


def _said(length: float | None, rows: list[Row], what: str) -> str:
    known = [row for row in rows if row.ratio(what) is not None]
    if not known:
        return "nothing could be compared in this time: give more --seconds"
    if length is None:
        return f"attention is faster up to {known[-1].length} positions, the longest that both were measured at"
    last = f"{known[-1].ratio(what):.1f} times as fast at {known[-1].length}"
    if length <= known[0].length:
        return f"Hyena is faster from {known[0].length} positions on, the shortest measured; {last}"
    return f"Hyena overtakes attention here at about {length:.0f} positions; {last}"


def table(rows: list[Row], where: str) -> str:
    """The times and their ratios as text."""
    lines = [
        f"Milliseconds a batch ({where}): HyenaOperator and causal scaled_dot_product_attention, projections included",
        f"{'':16}{'forward':^36}{'training step':^36}",
        f"{'length':>8}{'batch':>8}" + f"{'Hyena':>12}{'attention':>12}{'ratio':>12}" * 2,
    ]
    for row in rows:
        line = f"{row.length:8}{row.batch:8}"
        for what in ("forward", "training"):
            for value, form in ((row.hyena[what], ".2f"), (row.attention[what], ".2f"), (row.ratio(what), ".2f")):
                line += f"{'-':>12}" if value is None else f"{value:12{form}}"
        lines.append(line)
    return "\n".join(lines)


def _lengths(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--lengths are numbers of positions with commas between, got {text!r}")
    lengths = [int(part) for part in parts]
    if lengths != sorted(set(lengths)):
        raise ValueError(f"--lengths must grow, got {text!r}")
    return lengths


def _plotter(left_out: bool) -> Callable[[list[Row], str, Path], None] | None:
    if left_out:
        return None
    from hyena.command.plots import plot_times

    return plot_times
