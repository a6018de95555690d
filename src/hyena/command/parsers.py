"""Arguments of the commands that are not about DNA: report, train, bench."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Adds them to the command's subparsers."""
    _report(commands.add_parser("report", help="versions, kernels, threads and devices here, for bug reports"))
    _train(commands.add_parser("train", help="a language model of characters from a text or FASTA file"))
    _bench(commands.add_parser("bench", help="Hyena against attention on this machine, in about a minute"))


def _report(to: argparse.ArgumentParser) -> None:
    to.add_argument("--json", action="store_true", help="as JSON")


def _train(to: argparse.ArgumentParser) -> None:
    to.description = (
        "Trains a language model of characters, and leaves checkpoint.pt, loss.png and metrics.json in a folder. The "
        "same command goes on from the checkpoint after it was stopped."
    )
    to.add_argument("file", help="a text file in UTF-8, or FASTA (.fa, .fasta, .fna, .ffn), also .gz")
    to.add_argument("--out", required=True, metavar="FOLDER", help="where to")
    to.add_argument("--steps", type=int, default=1000, metavar="N", help="of the optimizer (default: 1000)")
    to.add_argument("--context", type=int, default=128, metavar="N", help="characters that it sees (default: 128)")
    to.add_argument("--batch", type=int, default=16, metavar="N", help="windows in a step (default: 16)")
    to.add_argument("--width", type=int, default=128, metavar="N", help="channels (default: 128)")
    to.add_argument("--layers", type=int, default=4, metavar="N", help="default: 4")
    to.add_argument("--lr", type=float, default=1e-3, help="the highest learning rate (default: 0.001)")
    to.add_argument("--dropout", type=float, default=0.0, help="default: 0")
    to.add_argument("--mlp", default="swiglu", help="swiglu, geglu, gelu or gelu_tanh (default: swiglu)")
    to.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    to.add_argument("--eval-every", type=int, default=250, metavar="N", help="steps between two validations")
    to.add_argument("--save-every", type=int, default=100, metavar="N", help="steps between two checkpoints")
    to.add_argument("--overwrite", action="store_true", help="begins again, whatever there is")
    _shared(to)


def _bench(to: argparse.ArgumentParser) -> None:
    to.description = (
        "Times HyenaOperator and attention of the same width, forward and in a training step, over growing lengths: a "
        "table, the length from which on Hyena is faster here, bench.json and bench.png. Nothing else should run then."
    )
    to.add_argument("--out", default="hyena-bench", metavar="FOLDER", help="where to (default: hyena-bench)")
    to.add_argument("--width", type=int, default=256, metavar="N", help="channels, in heads of 64 (default: 256)")
    to.add_argument(
        "--lengths",
        default="128,256,512,1024,2048,4096,8192,16384,32768",
        metavar="LIST",
        help="with commas; what takes too long is left out (default: 128,256,…,32768)",
    )
    to.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long about (default: 60)")
    to.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="default: float32")
    to.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: torch's)")
    _shared(to)


def _shared(to: argparse.ArgumentParser) -> None:
    to.add_argument("--no-plot", action="store_true", help="without the plot, which needs matplotlib")
    to.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    to.add_argument("--quiet", action="store_true", help="no progress bar")
