"""Arguments of the command ``hyena``."""

from __future__ import annotations

import argparse

from hyena.command import parsers
from hyena.genomics.batches import MAX_TOKENS

_DESCRIPTION = """\
Scores, embeds, classifies and generates DNA with HyenaDNA, Evo, Evo 2 and StripedHyena, on a CPU or a GPU; trains small
language models of any text and writes with them; measures this machine.

A run that was stopped goes on where it was when the same command is given again: no record is lost or written twice.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command with its subcommands."""
    top = argparse.ArgumentParser(
        prog="hyena", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    score = commands.add_parser("score", help="log-likelihood of each record")
    _inputs(score)
    _windows(score)
    score.add_argument("--strands", default="forward", choices=["forward", "reverse", "both"], help=_STRANDS)
    _start_token(score)
    _running(score)

    embed = commands.add_parser("embed", help="pooled hidden states of each record")
    _inputs(embed)
    _windows(embed)
    embed.add_argument(
        "--layers",
        default="norm",
        metavar="LIST",
        help="which hidden states, with commas: 0 what the first block is given, 1 and up what a block returns, norm "
        "the last, normalised (default: norm)",
    )
    embed.add_argument("--pooling", default="mean", choices=["mean", "max", "last"], help="over the letters")
    embed.add_argument("--strands", default="forward", choices=["forward", "reverse", "both"], help=_STRANDS)
    _running(embed)

    classify = commands.add_parser("classify", help="probabilities of the classes of each record")
    _inputs(classify)
    _windows(classify)
    classify.add_argument("--strands", default="forward", choices=["forward", "reverse", "both"], help=_STRANDS)
    _running(classify)

    generate = commands.add_parser("generate", help="new letters after each prompt, into a file or as text")
    _inputs(generate, prompts=True)
    generate.add_argument("--length", type=int, required=True, metavar="N", help="letters to add to each prompt")
    generate.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="without --output: beyond the model's context, starts again from the last N letters (default: for models "
        "of characters half the context, for others none)",
    )
    generate.add_argument("--samples", type=int, default=1, metavar="N", help="how often each prompt is continued")
    generate.add_argument("--letters", help="the only ones that are drawn (default: of DNA ACGT, else any)")
    generate.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest letter")
    generate.add_argument("--top-k", type=int, metavar="K", help="draws from the K likeliest")
    generate.add_argument("--top-p", type=float, metavar="P", help="draws from the likeliest of together P")
    generate.add_argument("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    _start_token(generate)
    _running(generate, required=False)

    parsers.add(commands)
    return top


_STRANDS = "which strand is read; both: the mean of the two (default: forward)"


def _inputs(to: argparse.ArgumentParser, *, prompts: bool = False) -> None:
    to.add_argument("fasta", nargs="*" if prompts else "+", help="FASTA files, plain or gzip")
    if prompts:
        to.add_argument(
            "--prompt", action="append", default=[], metavar="LETTERS", help="a prompt in place of FASTA files; several"
        )
    to.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help="folder (or file) of a checkpoint: of HyenaDNA, StripedHyena, Evo, Evo 2, or what `hyena train` has left",
    )
    to.add_argument(
        "--config",
        metavar="CONFIG",
        help="the model's settings, a file or a published model's name (evo2_7b, …); by default config.json beside it",
    )
    to.add_argument(
        "--alphabet",
        metavar="LETTERS",
        help="letters that records may have, or 'any' for any text (default: ACGTN; of a model of characters, its own)",
    )
    to.add_argument("--upper", action="store_true", help="takes lower-case letters (soft-masked repeats) as upper case")
    to.add_argument("--iupac-to-n", action="store_true", help="reads the other letters of IUPAC (R, Y, …) as N")


def _windows(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="cuts records into pieces of N letters, named record:first-last; the last ends where its record does",
    )
    to.add_argument("--step", type=int, metavar="N", help="from one piece to the next (default: --window)")


def _start_token(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--start-token",
        type=int,
        metavar="TOKEN",
        help="is put before each record, whose first letter is then predicted, too; Evo takes 0",
    )


def _running(to: argparse.ArgumentParser, *, required: bool = True) -> None:
    to.add_argument(
        "--output",
        required=required,
        metavar="FILE",
        help="a .tsv or (with pyarrow) .parquet file"
        + (", or .fa" if to.prog.endswith("generate") else "")
        + "; FILE.run.json beside it has the settings"
        + ("" if required else " (default: text on standard output)"),
    )
    to.add_argument("--overwrite", action="store_true", help="begins again, whatever there is")
    to.add_argument(
        "--max-tokens",
        type=int,
        default=MAX_TOKENS,
        metavar="N",
        help=f"positions that go through the model at once; less takes less memory (default: {MAX_TOKENS})",
    )
    to.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    to.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "float64"],
        help="of the model's weights (default: as they are stored)",
    )
    to.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
