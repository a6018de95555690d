"""One call of an op on a GPU, after one that warms up: what a profiler is to look at.

    ncu … python one_call.py recurrence 4096 backward

64 rows (fewer where they are long) of 768 channels, bf16. ``direct_conv`` takes as many taps as ``--taps`` says.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from gpu_sections.bench import HALF, Bench, H, calls

from hyena import ops


def main() -> None:
    """Makes inputs and calls twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", choices=["recurrence", "gated_conv", "direct_conv"])
    parser.add_argument("length", type=int)
    parser.add_argument("direction", choices=["forward", "backward"])
    parser.add_argument("--batch", type=int, help="rows")
    parser.add_argument("--taps", type=int, default=128)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    args = parser.parse_args()
    b = Bench("cpu" if args.dry_run else "cuda")
    length = min(args.length, 64) if b.toy else args.length
    batch = args.batch or b.batch(length, min(64 * length, 1 << 20))
    with torch.no_grad():
        if args.op == "direct_conv":
            v, pre, post, dy = b.tensors(4, batch, length, b.width, HALF)
            h = torch.randn(min(args.taps, length), b.width, device=b.device) / args.taps**0.5
            arguments = (v, h, None, pre, post, None, True)
            forward, backward = partial(H.direct_conv, *arguments), partial(H.direct_conv_backward, dy, *arguments)
        else:
            forward, backward = calls(b, args.op, batch, length, HALF, b.spectra(length, b.width)[0])
        run = forward if args.direction == "forward" else backward
        for _ in range(2):
            run()
            if not b.toy:
                torch.cuda.synchronize()
    tier = "kernel" if ops.has_kernel(args.op, torch.device(b.device)) else "fallback"
    print(f"{args.op} {args.direction}: {batch} x {length} x {b.width}, {tier}")


if __name__ == "__main__":
    main()
