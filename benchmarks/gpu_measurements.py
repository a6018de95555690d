"""What benchmarks/gpu.py measures: sections of rows, on a GPU or, at toy sizes, on the CPU.

A section yields jobs, ``(what, measure)``; ``measure()`` returns a row: a value with its unit, the bar it has to reach
(or None) and whatever explains it. Tensors are ``(B, L, C)`` in memory as ``(B, C, L)``, a GPU's natural order.

    python gpu_measurements.py FOLDER device bandwidth …

runs sections one after the other; FOLDER then has ``<section>.json``, rewritten after each row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import machine, peak_bytes, queued, variants
from speed import Attention, fallback
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from hyena import HyenaOperator, ops
from hyena.models.hyenadna import HyenaDNA, HyenaDNAConfig

H = torch.ops.hyena
Job = tuple[str, Callable[[], dict[str, Any]]]
HALF, FULL = torch.bfloat16, torch.float32
K = 1024
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
# Transform size -> ms, forward, gated, fp16, 64 x 768, one H100: the table in flash-fft-conv's README (commit b877102).
# It does not pad: a causal convolution of L positions is its transform of 2L.
FLASH_FFT_CONV = {1: 0.29, 4: 1.43, 8: 3.58, 16: 12.2, 32: 26.3, 1024: 1768.9, 2048: 4623.5, 4096: 10049.4}


class Bench:
    """Where to measure, and how large: on the CPU everything is a toy."""

    def __init__(self, device: str) -> None:
        self.device, self.toy = device, device == "cpu"
        self.width = 8 if self.toy else 768
        self.rates: dict[str, float] = {}  # from the section "device": bytes and operations a second

    def lengths(self, *wanted: int) -> list[int]:
        """The lengths of a section; two short ones in a dry run."""
        return [64, 96] if self.toy else list(wanted)

    def batch(self, length: int, tokens: int) -> int:
        """Rows of a batch of so many positions."""
        return 2 if self.toy else max(1, tokens // length)

    def tensors(self, count: int, batch: int, length: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
        """Normal numbers, ``(B, L, C)`` in memory as ``(B, C, L)``."""
        make = partial(torch.randn, batch, channels, length, device=self.device, dtype=dtype)
        return [make().transpose(1, 2) for _ in range(count)]

    def spectra(self, length: int, channels: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """The kernels' spectrum of a filter, ``(1, C, P + 1, 2)``, and a function for the fallback's."""
        h = torch.randn(1, length, channels, device=self.device) / math.sqrt(length)
        size = ops.transform_length(length)
        return H.filter_spectrum(h, size, True), lambda: fallback(H.filter_spectrum, h, size, True)

    def times(self, functions: dict[str, Sequence[Callable[[], object]]], repeats: int = 20) -> dict[str, float]:
        """Seconds of each function."""
        return queued(functions, repeats=2 if self.toy else repeats, device=self.device)

    def time(self, turns: Sequence[Callable[[], object]], repeats: int = 20) -> float:
        """Seconds of one function."""
        return self.times({"it": turns}, repeats)["it"]


def row(
    value: float | None, unit: str, bar: float | None = None, *, lower: bool = False, **rest: Any
) -> dict[str, Any]:
    """A row; with a bar, ``ok`` says whether the value reaches it (with ``lower``: stays at or under it)."""
    ok = None if bar is None or value is None else bool(value <= bar if lower else value >= bar)
    return {"value": value, "unit": unit, "bar": bar, "ok": ok, **rest}


def step(forward: Callable[[], object], backward: Callable[[], object]) -> Callable[[], None]:
    """One after the other, keeping nothing."""

    def run() -> None:
        forward()
        backward()

    return run


# ---- the device ----------------------------------------------------------------------------------------------------


def device(b: Bench) -> Iterator[Job]:
    """The rates that rooflines are made of."""

    def copy() -> dict[str, Any]:
        source = torch.empty(1 << (20 if b.toy else 30), dtype=torch.uint8, device=b.device).random_()
        to = torch.empty_like(source)
        rate = 2 * source.numel() / b.time([lambda: to.copy_(source)])
        return row(rate / 1e9, "GB/s read and written", rate=rate)

    def product(dtype: torch.dtype) -> dict[str, Any]:
        n = 128 if b.toy else 8192
        x, y = (torch.randn(n, n, device=b.device, dtype=dtype) for _ in range(2))
        rate = 2 * n**3 / b.time([lambda: x @ y])
        return row(rate / 1e12, "TFLOP/s", rate=rate)

    yield "copy", copy
    for dtype in (HALF, FULL):
        yield f"matrix product {NAMES[dtype]}", partial(product, dtype)


# ---- rooflines -----------------------------------------------------------------------------------------------------


def bandwidth(b: Bench) -> Iterator[Job]:
    """Time at the measured copy rate of the bytes that must move, over the time taken."""
    for dtype in (HALF, torch.float16, FULL):
        for length in b.lengths(1 * K, 2 * K, 4 * K, 8 * K, 16 * K):
            for op in ("gated_conv", "mix"):
                for mode in ("forward", "forward+backward"):
                    bar = 0.7 if (op, mode, dtype) == ("gated_conv", "forward", HALF) else None
                    name = f"{op} {mode} {NAMES[dtype]} L={length}"
                    yield name, partial(_share, b, op, mode == "forward+backward", dtype, length, bar)


def _share(b: Bench, op: str, training: bool, dtype: torch.dtype, length: int, bar: float | None) -> dict[str, Any]:
    batch, c = 2 if b.toy else 64, b.width
    spectrum, _ = b.spectra(length, c)
    turns = [
        _call(b, op, batch, length, dtype, spectrum, training)
        for _ in range(variants(4 * batch * length * c * dtype.itemsize))
    ]
    seconds = b.time(turns)
    # Forward: three parts in, one out. Backward: those three and dy in, three gradients out.
    moved = (4 + 7 * training) * batch * length * c * dtype.itemsize
    points = ops.transform_length(length)
    # Two transforms of 5 P log2 P and a complex product; the backward makes the forward's again, and as many more.
    flops = batch * c * (10 * points * math.log2(points) + 8 * points) * (1 + 2 * training)
    bound, busy = moved / b.rates["copy"], 2 * flops / b.rates["matrix product fp32"]
    detail = {"B": batch, "ms": seconds * 1e3, "bound ms": bound * 1e3, "bound ms at half the fp32 rate": busy * 1e3}
    return row(bound / seconds, "of the bandwidth bound", bar, **detail)


def _call(
    b: Bench,
    op: str,
    batch: int,
    length: int,
    dtype: torch.dtype,
    spectrum: Tensor,
    training: bool,
    through: Callable[..., Any] = lambda f, *a: f(*a),
) -> Callable[[], object]:
    """A call of an op on inputs of its own, ``through`` the kernels or the fallback."""
    c = b.width
    d = torch.randn(1, c, device=b.device)
    (dy,) = b.tensors(1, batch, length, c, dtype) if training else [None]
    if op == "gated_conv":
        v, pre, post = b.tensors(3, batch, length, c, dtype)
        arguments: tuple[Any, ...] = (v, spectrum[0], d[0], pre, post, None)
        forward, backward = H.gated_conv, H.gated_conv_backward
    else:
        (z,) = b.tensors(1, batch, length, 3 * c, dtype)
        weight, bias = torch.randn(3 * c, 3, device=b.device), torch.randn(3 * c, device=b.device)
        arguments = (z, weight, bias, spectrum, d, None, None)
        forward, backward = H.mix, H.mix_backward
    there = partial(through, forward, *arguments)
    return step(there, partial(through, backward, dy, *arguments)) if training else there


# ---- against others ------------------------------------------------------------------------------------------------


def against_fallback(b: Bench) -> Iterator[Job]:
    """The gated convolution and the mixing step, by plain PyTorch (rfft of 2L points in float32) and by the kernels."""
    for length in b.lengths(*(K << i for i in range(11))):
        for op in ("gated_conv", "mix"):
            for training in (False, True):
                name = f"{op} {'forward+backward' if training else 'forward'} bf16 L={length}"
                yield name, partial(_against_fallback, b, op, training, length)


def _against_fallback(b: Bench, op: str, training: bool, length: int) -> dict[str, Any]:
    batch = b.batch(length, 1 << 19)
    spectrum, plain = b.spectra(length, b.width)
    kernel = _call(b, op, batch, length, HALF, spectrum, training)
    slow = _call(b, op, batch, length, HALF, plain(), training, fallback)
    times = b.times({"kernel": [kernel], "fallback": [slow]}, 10)
    bar = (6 if length <= 32 * K else 3) if op == "gated_conv" else None
    ms = {f"{name} ms": seconds * 1e3 for name, seconds in times.items()}
    return row(times["fallback"] / times["kernel"], "x faster than the fallback", bar, B=batch, **ms)


def flash_fft_conv(b: Bench) -> Iterator[Job]:
    """FlashFFTConv's published forward times, on one H100, over ours for the same causal problem."""
    for size, published in FLASH_FFT_CONV.items():
        length = size * K // 2 if not b.toy else 64
        for training in (False, True):
            name = f"{'forward+backward' if training else 'forward'} fp16 64x768 L={length}"
            yield name, partial(_flash_fft_conv, b, length, training, published)
        if b.toy:
            break


def _flash_fft_conv(b: Bench, length: int, training: bool, published: float) -> dict[str, Any]:
    rows = 2 if b.toy else 64
    # As many rows at once (a power of 2) as leave room for gradients: up to 4 GiB for each tensor.
    batch = min(rows, 1 << max(0, ((1 << 31) // (length * b.width)).bit_length() - 1))
    spectrum, _ = b.spectra(length, b.width)
    ours = b.time([_call(b, "gated_conv", batch, length, torch.float16, spectrum, training)], 10) * rows / batch * 1e3
    detail = {"B": batch, "times": rows / batch, "ms": ours}
    if training:
        return row(None, "x faster (no backward is published)", **detail)
    return row(published / ours, "x faster than published", 2.0, **detail, **{"published ms": published})


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


# ---- memory --------------------------------------------------------------------------------------------------------


def memory(b: Bench) -> Iterator[Job]:
    """Peak memory beyond inputs and weights, kernels over fallback, each in a process that has done nothing else."""
    found: dict[str, dict[str, int]] = {}
    for what in _steps(b):
        yield f"training step {what}", partial(_peak_ratio, b, what, found)


def _steps(b: Bench) -> dict[str, Callable[[], Callable[[], object]]]:
    """Makers of training steps, by name."""
    steps: dict[str, Callable[[], Callable[[], object]]] = {}
    for length in b.lengths(2 * K, 16 * K, 128 * K):
        batch = b.batch(length, 1 << 17)
        for dtype in (HALF, FULL):
            for name, make in (("mix", _mixing), ("operator", _operating)):
                steps[f"{name} {NAMES[dtype]} {batch}x{length}"] = partial(make, b, batch, length, dtype)
    return steps


def _mixing(b: Bench, batch: int, length: int, dtype: torch.dtype) -> Callable[[], object]:
    return _call(b, "mix", batch, length, dtype, b.spectra(length, b.width)[0], training=True)


def _operating(b: Bench, batch: int, length: int, dtype: torch.dtype) -> Callable[[], object]:
    layer = HyenaOperator(b.width, length, device=b.device, dtype=dtype)
    u = torch.randn(batch, length, b.width, device=b.device, dtype=dtype, requires_grad=True)
    dy = torch.randn_like(u)

    def run() -> None:
        with torch.enable_grad():
            layer(u).backward(dy)
        layer.zero_grad()
        u.grad = None

    return run


def _peak_ratio(b: Bench, what: str, found: dict[str, dict[str, int]]) -> dict[str, Any]:
    for tier, disabled in (("kernel", "0"), ("fallback", "1")) if not found else ():
        call = f"import gpu_measurements as g; g.print_peaks({b.device!r})"
        done = subprocess.run(
            [sys.executable, "-c", call],
            cwd=Path(__file__).resolve().parent,
            env=os.environ | {"HYENA_DISABLE_EXT": disabled},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            found.clear()
            raise RuntimeError(f"the {tier}'s process failed: {done.stderr[-500:]}")
        found[tier] = json.loads(done.stdout.splitlines()[-1])
    kernel, plain = found["kernel"][what], found["fallback"][what]
    detail = {"kernel MB": kernel / 1e6, "fallback MB": plain / 1e6}
    return row(kernel / plain if plain else None, "of the fallback's peak", 0.25, lower=True, **detail)


def print_peaks(device: str) -> None:
    """Prints the bytes that each of the steps takes in this process, after a first one."""
    b, peaks = Bench(device), {}
    for what, make in _steps(b).items():
        with torch.no_grad():
            run = make()
            run()
            peaks[what] = peak_bytes(run, device) or 0
        del run
        if not b.toy:
            torch.cuda.empty_cache()
    print(json.dumps(peaks))


def hyenadna(b: Bench) -> Iterator[Job]:
    """A model of the size of HyenaDNA's largest, batch 1, bf16 autocast: forward and backward."""
    length, width, layers = (96, 16, 2) if b.toy else (1_000_000, 256, 8)
    for checkpointing in (False, True):
        name = f"width {width}, {layers} layers{', checkpointing' if checkpointing else ''} L={length}"
        yield name, partial(_dna, b, length, width, layers, checkpointing)


def _dna(b: Bench, length: int, width: int, layers: int, checkpointing: bool) -> dict[str, Any]:
    config = HyenaDNAConfig(
        l_max=length + 2, d_model=width, n_layer=layers, head="lm", gradient_checkpointing=checkpointing
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


# ---- accuracy ------------------------------------------------------------------------------------------------------


def accuracy(b: Bench) -> Iterator[Job]:
    """Root mean square error against float64 arithmetic on the same inputs, kernels over fallback."""
    for dtype in (FULL, HALF, torch.float16):
        for length in b.lengths(1009, 4096, 16384, 65536):
            for op in ("gated_conv", "mix"):
                yield f"{op} {NAMES[dtype]} L={length}", partial(_accuracy, b, op, dtype, length)


def _accuracy(b: Bench, op: str, dtype: torch.dtype, length: int) -> dict[str, Any]:
    c, size = 8 if b.toy else 64, ops.transform_length(length)
    h = torch.randn(1, length, c, device=b.device) / math.sqrt(length)
    d = torch.randn(1, c, device=b.device)
    if op == "mix":
        given = [*b.tensors(1, 2, length, 3 * c, dtype)]
        given += [torch.randn(3 * c, 3, device=b.device), torch.randn(3 * c, device=b.device)]
    else:
        given = b.tensors(3, 2, length, c, dtype)
    (dy,) = b.tensors(1, 2, length, c, dtype)

    def results(call: Callable[..., Any], double: bool) -> list[Tensor]:
        """The output and every gradient but that of the spectrum, whose layout is each tier's own: the taps'."""
        cast = [t.double() if double else t for t in (*given, dy, d, h)]
        *x, g, skip, taps = cast
        spectrum = call(H.filter_spectrum, taps, size, True)
        if op == "mix":
            arguments = (*x, spectrum, skip, None, None)
            y, grads = call(H.mix, *arguments), call(H.mix_backward, g, *arguments)
            inner = grads[3]
        else:
            v, pre, post = x
            arguments = (v, spectrum[0], skip[0], pre, post, None)
            y, grads = call(H.gated_conv, *arguments), call(H.gated_conv_backward, g, *arguments)
            inner = grads[3][None]
        dh = call(H.filter_spectrum_backward, inner, taps, size, True)
        return [y, *grads[:3], *grads[4:], dh]

    exact = results(fallback, True)
    errors = {}
    for name, call in (("kernel", lambda f, *a: f(*a)), ("fallback", fallback)):
        errors[name] = [_error(got, want) for got, want in zip(results(call, False), exact, strict=True)]
    names = ["y", *(["dz", "dweight", "dbias"] if op == "mix" else ["dv", "dpre", "dpost"]), "dd", "dh"]
    kept = [FULL if name in ("dweight", "dbias", "dd", "dh") else dtype for name in names]
    # Twice the fallback's, and an eps of the result's dtype where that one is all but exact.
    worst = max(
        k / (2 * f + torch.finfo(t).eps) for k, f, t in zip(errors["kernel"], errors["fallback"], kept, strict=True)
    )
    return row(worst, "of what is allowed", 1.0, lower=True, errors={n: dict(zip(names, e)) for n, e in errors.items()})


def _error(got: Tensor, want: Tensor) -> float:
    size = want.square().mean().sqrt().item()
    return (got.double() - want).square().mean().sqrt().item() / max(size, 1e-300)


# ---- where time goes -----------------------------------------------------------------------------------------------


def kernels(b: Bench) -> Iterator[Job]:
    """The time of each kernel, by name: of the mixing step and of the operator's training step."""
    for length in b.lengths(1 * K, 4 * K, 16 * K, 64 * K, 1024 * K):
        for what in ("mix forward", "mix forward+backward", "operator training step"):
            yield f"{what} bf16 L={length}", partial(_kernels, b, what, length)


def _kernels(b: Bench, what: str, length: int) -> dict[str, Any]:
    batch = b.batch(length, 1 << (18 if what.startswith("operator") else 20))
    if what.startswith("operator"):
        layer = HyenaOperator(b.width, length, device=b.device, dtype=HALF)
        u = torch.randn(batch, length, b.width, device=b.device, dtype=HALF, requires_grad=True)
        dy = torch.randn_like(u)

        def run() -> object:
            with torch.enable_grad():
                return layer(u).backward(dy)
    else:
        spectrum, _ = b.spectra(length, b.width)
        run = _call(b, "mix", batch, length, HALF, spectrum, training=what.endswith("backward"))
    run()
    if not b.toy:
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU if b.toy else ProfilerActivity.CUDA]) as recorded:
        run()
        if not b.toy:
            torch.cuda.synchronize()
    found = [
        {"kernel": e.key[:160], "calls": e.count, "us": e.self_cpu_time_total if b.toy else e.self_device_time_total}
        for e in recorded.key_averages()
    ]
    found.sort(key=lambda e: -e["us"])
    return row(sum(e["us"] for e in found) / 1e3, "ms in kernels", B=batch, kernels=found[:20])


SECTIONS: dict[str, Callable[[Bench], Iterator[Job]]] = {
    f.__name__: f
    for f in (device, bandwidth, flash_fft_conv, attention, accuracy, against_fallback, hyenadna, memory, kernels)
}


# ---- running them --------------------------------------------------------------------------------------------------


def run(folder: Path, name: str, b: Bench) -> bool:
    """Runs a section and writes its rows; False where the device is not to be relied on afterwards."""
    path, began, healthy = folder / f"{name}.json", time.perf_counter(), True
    rows: list[dict[str, Any]] = []
    record: dict[str, Any] = {
        "about": SECTIONS[name].__doc__,
        "machine": machine(b.device),
        "done": False,
        "rows": rows,
    }
    for what, measure in SECTIONS[name](b):
        try:
            if name in ("attention", "hyenadna"):
                found = measure()
            else:
                with torch.no_grad():
                    found = measure()
        except Exception as error:
            found = row(None, "", error=f"{type(error).__name__}: {error}"[:800], trace=traceback.format_exc()[-2000:])
            # After an error on the device nothing works any more; running out of memory is none.
            healthy = isinstance(error, torch.OutOfMemoryError) or "CUDA error" not in str(error)
        rows.append({"what": what} | found)
        print(f"{name}: {what}: {found['value']} {found['unit']}{found.get('error', '')}", flush=True)
        record["seconds"] = time.perf_counter() - began
        path.write_text(json.dumps(record))
        if not healthy:
            return False
        if not b.toy:
            torch.cuda.empty_cache()
    record["done"] = True
    path.write_text(json.dumps(record))
    return True


def main() -> None:
    """Runs sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sections", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    args = parser.parse_args()
    b = Bench("cpu" if args.dry_run else "cuda")
    print(ops.backend_report(), flush=True)
    for name in args.sections:
        found = args.folder / "device.json"
        if found.exists():
            b.rates = {r["what"]: r["rate"] for r in json.loads(found.read_text())["rows"] if "rate" in r}
        (args.folder / "running").write_text(name)
        if not run(args.folder, name, b):
            sys.exit(3)


if __name__ == "__main__":
    main()
