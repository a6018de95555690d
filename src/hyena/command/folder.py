"""The folder of a run: one run at a time in it, and files that are whole whenever the process is killed."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = "run.lock"
PARTIAL = ".partial"


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Keeps other runs out of ``folder``, which is made if it is missing, until the block or the process ends.

    The operating system holds the lock, so a killed process leaves none behind; the empty file stays.

    Raises:
        ValueError: another process has the folder.
        OSError: it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(
        folder / LOCK, f"another run is at work in {folder}: wait until it ends, or choose another --out"
    ) as held:
        if held:
            for left in folder.glob(f"*{PARTIAL}"):  # of killed runs: nobody else is writing here
                left.unlink(missing_ok=True)
        yield folder


class BusyError(ValueError):
    """Another process has what is to be locked."""


@contextmanager
def locked(path: Path, busy: str) -> Iterator[bool]:
    """Holds a lock on the file at ``path``, which is made if it is missing, until the block or the process ends.

    Yields whether the file system gave the lock; some network file systems have none.

    Raises:
        BusyError: another process has it; ``busy`` is what it says.
        OSError: the file cannot be written to.
    """
    with path.open("a+b") as file:
        yield _lock(file, busy)


def _lock(file: IO[bytes], busy: str) -> bool:
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            raise BusyError(busy) from None
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(busy) from None
    except OSError as e:  # some network file systems have no locks
        print(f"{file.name} cannot be locked ({e.strerror}): do not start a second run here", file=sys.stderr)
        return False
    return True


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of ``path`` in one step when the block ends without an exception."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")  # one for each writer
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
