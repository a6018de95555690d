"""The command ``hyena`` from its arguments to its exit status."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import torch

from hyena.command.arguments import parser

# The module that has a command's ``run``; the others are about DNA.
_MODULES = {"report": "report", "train": "training", "bench": "bench"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: of the command line, ``sys.argv[1:]`` if missing.

    Returns:
        The exit status, which is 0, 1 after an error, which is said on standard error, 130 after an interrupt.
    """
    given = parser().parse_args(arguments)
    try:
        importlib.import_module(f"hyena.command.{_MODULES.get(given.command, 'jobs')}").run(given)
    except KeyboardInterrupt:
        print(f"hyena: stopped{_goes_on(given)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has enough; nothing is to be said of what is left in the buffer
        return 1
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"hyena: error: {_said(error)}{_less(given, error)}", file=sys.stderr)
        return 1
    return 0


def _goes_on(given: object) -> str:
    if getattr(given, "command", None) == "train":
        return f"; the same command goes on from {vars(given)['out']}"
    output = getattr(given, "output", None)
    return "" if output is None else f"; the same command goes on from {output}.part"


def _less(given: object, error: BaseException) -> str:
    """What takes less memory, after there was too little."""
    if not _is_of_memory(error):
        return ""
    if (most := getattr(given, "max_tokens", None)) is not None:
        return f"; less than --max-tokens {most} takes less memory"
    return "; smaller sizes (--help) take less memory"


def _is_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory: on a GPU, or on the CPU, where torch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
