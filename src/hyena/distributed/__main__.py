"""Prints which mesh to take: ``python -m hyena.distributed --length 1M --processes 64``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hyena.distributed.cost import Work
from hyena.distributed.planning import H100, Plan, plan

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main(arguments: list[str] | None = None) -> None:
    """Reads the options and prints a table of the best meshes."""
    parser = argparse.ArgumentParser(prog="python -m hyena.distributed", description=__doc__)
    parser.add_argument("--length", type=number, required=True, help="positions of a row: 1000000, or 1M for 2^20")
    parser.add_argument("--processes", type=number, required=True, help="GPUs")
    parser.add_argument("--rows", type=number, help="rows of a step (default: 64K positions a GPU)")
    parser.add_argument("--width", type=number, default=4096)
    parser.add_argument("--layers", type=number, default=32)
    parser.add_argument("--mixer", choices=["hyena", "attention"], default="hyena")
    parser.add_argument("--ring", action="store_true", help="attention around a ring, not by heads")
    parser.add_argument("--heads", type=number, default=32, help="of attention")
    parser.add_argument("--vocabulary", type=number, default=512)
    parser.add_argument("--show", type=number, default=5, help="meshes in the table")
    args = parser.parse_args(arguments)
    rows = args.rows or max(1, (args.processes << 16) // args.length)
    try:
        work = Work(
            args.length,
            rows,
            args.width,
            args.layers,
            args.mixer,
            num_heads=args.heads,
            vocab_size=args.vocabulary,
        )
        found = plan(work, args.processes, context="ring" if args.ring else "all-to-all")
    except ValueError as e:
        sys.exit(f"hyena.distributed: {e}")
    print(
        f"{args.mixer}, {work.parameters / 1e9:.2f} G parameters in {args.layers} layers of width {args.width}; {rows} "
        f"rows of {args.length:,} a step; {args.processes} x {H100.name}; seconds, nothing overlapped"
    )
    print(table([line(each) for each in found[: args.show]]))


def line(each: Plan) -> dict[str, Any]:
    """A plan as a row of a table: the mesh, memory, and seconds by what they are for."""
    mesh = each.mesh
    return {
        "dp": mesh.dp,
        "cp": mesh.cp,
        "tp": mesh.tp,
        "recompute": "yes" if each.recompute else "no",
        "GB": f"{each.memory / 1e9:.0f}",
        **{f"{name} s": f"{seconds:.3g}" for name, seconds in each.seconds.items()},
        "step s": f"{each.step:.3g}",
        "comm / arith": f"{each.communication / each.arithmetic:.2f}",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Aligned columns."""
    cells = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)


def number(text: str) -> int:
    """An integer of at least 1, ``64K`` and ``1M`` too."""
    unit = UNITS.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    if not digits.isdecimal() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 1, as 1000, 64K or 1M")
    return int(digits) * unit


if __name__ == "__main__":
    main()
