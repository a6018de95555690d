"""What the compiled kernels keep for the process: tables of transforms, working memory, and the instruction set."""

from __future__ import annotations

import ctypes
import os
import warnings

from hyena.ops._extension import EXTENSION

_INSTRUCTIONS = ("baseline", "avx2", "avx512")  # each has what those before it have


def clear_tables() -> None:
    """Frees the tables of transforms and the memory that kernels keep between calls on the CPU.

    They are made again when needed. Tables and working memory are never more than 64 MiB each, but for the last table
    that was used if it alone is longer. Memory of long results that are gone is, with that of those in use, never more
    than 1.5 times what was in use at once, nor than an eighth of the machine's, and the system may take results of 16
    MiB and more back by itself. What another thread is using at the moment stays. A GPU's tables stay too: they are
    smaller (under 1 MiB for 2^20 points), and recorded CUDA graphs read them.
    """
    clear = getattr(EXTENSION.library, "hyena_clear_tables", None)
    if clear is not None:
        clear()


def table_bytes() -> int:
    """Bytes of the tables of transforms that kernels keep on the CPU."""
    count = getattr(EXTENSION.library, "hyena_table_bytes", None)
    if count is None:
        return 0
    count.restype = ctypes.c_int64
    return int(count())


def check_instructions() -> None:
    """Warns if ``HYENA_CPU`` asks for what there is not, and says what runs instead."""
    asked, found = os.environ.get("HYENA_CPU"), EXTENSION.instructions
    if asked is None or found not in _INSTRUCTIONS or asked == found:
        return
    if asked in _INSTRUCTIONS:
        why = f"HYENA_CPU={asked} asks for instructions that this processor or this build does not have"
    else:
        why = f"HYENA_CPU={asked!r} is none of {', '.join(_INSTRUCTIONS)}"
    warnings.warn(f"{why}: the kernels for {found} run", RuntimeWarning, stacklevel=2)
