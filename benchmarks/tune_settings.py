"""One library's part of tune.py: times its settings and prints each as a line of JSON."""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

LENGTHS = {4096: 64, 1024: 64, 8192: 64, 2048: 64, 16384: 64, 65536: 16}  # and rows; what says most first
ROUNDS, WINDOW = 9, 0.02
Setting = dict[str, int]


def settings(length: int, direction: str, split: bool) -> Iterator[Setting]:
    """What to try: each changes one thing, or two that go together."""
    yield {}
    if split:
        yield from ({"round_bytes": size << 20} for size in (8, 16, 32, 64))
        yield from ({"carveout": percent} for percent in (50, 100))
        yield {"threads": 512}
    else:
        # As much as the blocks need that registers leave room for, too, and what the driver then gives the first cache.
        yield from ({"carveout": percent} for percent in (25, 50, 75, 100))
        yield from ({"threads": count} for count in (64, 128, 256, 512) if count * 64 >= length / 2)
        yield {"fixed": 0}
        if direction == "forward":
            yield from ({"rows_each": count} for count in (1, 2, 4, 8, 16, 32))
        else:
            yield from ({"slices": count} for count in (1, 2, 3, 4, 6, 8, 16))
        if length == 8192:
            yield from ({"radices": way} for way in (1, 2))
            yield from ({"radices": way, "threads": 512} for way in (1, 2))
    yield {}


class Library:
    """The loaded library's switches."""

    def __init__(self) -> None:
        from hyena.ops._extension import EXTENSION

        self.tune = getattr(EXTENSION.library, "hyena_tune", None)
        self.used: set[str] = set()

    def set(self, setting: Setting) -> None:
        """Makes this the setting, and whatever else the library's own choice."""
        if self.tune is None:
            return
        for name in self.used - set(setting):
            self._set(name, -1)
        for name, value in setting.items():
            self.used.add(name)
            self._set(name, value)

    def _set(self, name: str, value: int) -> None:
        status = self.tune(name.encode(), ctypes.c_int64(value))
        if status != 0:
            raise ValueError(f"hyena_tune({name!r}, {value}) gives {status}")


def name_of(setting: Setting) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())


def say(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def seconds(function: Callable[[], object], repeats: int, device: str) -> float:
    """Seconds of a call, of so many in a row after one that is not counted."""
    import torch

    function()
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - began) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def differs(got: Any, want: Any) -> float:
    """The largest relative difference of the results; of activations, those of the first and the last row."""
    import torch

    worst = 0.0
    for a, b in zip(*([t] if isinstance(t, torch.Tensor) else t for t in (got, want))):
        ends = slice(None, None, max(1, len(a) - 1)) if a.dim() == 3 else slice(None)
        a, b = a[ends].float(), b[ends].float()
        worst = max(worst, ((a - b).norm() / b.norm().clamp_min(1e-30)).item())
    return worst


def time_settings(library: Library, length: int, direction: str, run: Callable[[], Any], **about: Any) -> None:
    """Times what is to be tried of one call."""
    without, split, device = about["without"], about["split"], about["device"]
    # As it is, and at the end again.
    tried = [s for s in settings(length, direction, split) if not s or library.tune is not None]
    wanted, ms = {}, {}
    library.set({})
    exact = run()
    repeats = max(1, int((0.002 if device == "cpu" else WINDOW) / seconds(run, 2, device)))
    for i, setting in enumerate(tried):
        name = name_of(setting) or ("own choice" if i == 0 else "own choice again")
        if name in without:
            continue
        if setting:
            say(trying=name)
        try:
            library.set(setting)
            off = differs(run(), exact)
            if not off < 0.02:
                raise AssertionError(f"results differ by {off:.2g}")
        except Exception as error:
            say(length=length, direction=direction, setting=name, error=f"{type(error).__name__}: {error}"[:300])
            if "CUDA error" in str(error):
                sys.exit(3)
            continue
        wanted[name], ms[name] = setting, []
    del exact
    for _ in range(2 if device == "cpu" else ROUNDS):
        for name, setting in wanted.items():
            library.set(setting)
            ms[name].append(seconds(run, repeats, device) * 1e3)
    for name, found in ms.items():
        say(length=length, direction=direction, setting=name, ms=median(found), least=min(found), most=max(found))
    library.set({})


def main() -> None:
    """Times every length."""
    import torch
    from gpu_sections.bench import HALF, Bench, calls

    from hyena import ops

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--without", nargs="+", default=[], help="settings not to try")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--plain", action="store_true", help="no settings: only the library's own choice")
    args = parser.parse_args()
    b, library = Bench("cpu" if args.dry_run else "cuda"), Library()
    if args.plain:
        library.tune = None
    if not b.toy and not ops.has_kernel("recurrence", torch.device("cuda", 0), HALF):
        sys.exit("no kernel for this GPU")
    for wanted in args.lengths:
        length, batch = (64, 2) if b.toy else (wanted, LENGTHS[wanted])
        with torch.no_grad():
            runs = calls(b, "recurrence", batch, length, HALF, b.spectra(length, b.width)[0])
            for direction, run in zip(("forward", "backward"), runs):
                more = {"split": wanted > 20_000, "device": b.device, "without": args.without}
                time_settings(library, wanted, direction, run, **more)
            del runs, run
        say(done=wanted)
        if not b.toy:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
