"""The command ``hyena`` from its arguments to its exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from hyena.command.arguments import parser
from hyena.command.jobs import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: of the command line, ``sys.argv[1:]`` if missing.

    Returns:
        The exit status, which is 0, 1 after an error, which is said on standard error, 130 after an interrupt.
    """
    given = parser().parse_args(arguments)
    try:
        run(given)
    except KeyboardInterrupt:
        print(f"hyena: stopped; the same command goes on from {given.output}.part", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        hint = f"; less than --max-tokens {given.max_tokens} takes less memory" if _is_of_memory(error) else ""
        print(f"hyena: error: {_said(error)}{hint}", file=sys.stderr)
        return 1
    return 0


def _is_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory: on a GPU, or on the CPU, where torch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
