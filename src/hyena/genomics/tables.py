"""Result tables that grow by whole rows, survive a kill, and take their name when they are complete.

While a table grows, its rows are lines of ``NAME.part``; ``NAME.run.json`` says with which settings. A run with the
same settings finds both, drops a line that was cut off, and goes on. At the end ``NAME.part`` becomes ``NAME``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hyena.genomics.fasta import fasta_text
from hyena.genomics.records import Record

_FORBIDDEN = "\t\r\n"


class Column(NamedTuple):
    """A column of a table: its name, and what its values are, ``str``, ``int`` or ``float``."""

    name: str
    kind: type


class Table:
    """A table in a file: ``.tsv``, ``.parquet`` (with pyarrow), or ``.fa`` and ``.fasta`` for sequences.

    Args:
        path: of the complete table.
        columns: the first ``keys`` of them say which row it is.
        settings: of the run, plain values: a run goes on only where these are the same.
        keys: see ``columns``.
        overwrite: begins again, whatever there is.

    Attributes:
        done: how many rows were there already.
        complete: whether nothing is left to do.

    Raises:
        FileExistsError: a file of that name that no run with these settings has made.
        ValueError: an ending that is not known, or a run that was begun with other settings, which are listed.
        ModuleNotFoundError: ``.parquet`` without pyarrow.
        BlockingIOError: another process is writing this table.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        columns: Sequence[Column],
        settings: dict[str, Any],
        *,
        keys: int = 2,
        overwrite: bool = False,
    ) -> None:
        self.path, self.columns, self.keys = Path(path), list(columns), keys
        self.part = self.path.with_name(self.path.name + ".part")
        self.run = self.path.with_name(self.path.name + ".run.json")
        self._convert = _converter(self.path, self.columns)
        self.settings = json.loads(json.dumps(settings))
        self.done, self.complete = 0, False
        if overwrite:
            if self.part.exists():
                with self.part.open("r+b") as stream:
                    _lock(stream, self.path)
            for file in (self.run, self.part, self.path):
                file.unlink(missing_ok=True)
        if not self._was_begun():
            self._say(finished=False)
        if not self.complete:
            # One that is there without a record of its run was removed or refused above.
            self._stream = self.part.open("r+b" if self.part.exists() else "w+b")
            _lock(self._stream, self.path)
            self._take_up()

    def _was_begun(self) -> bool:
        """Whether a run with these settings was here; it may have finished."""
        if not self.run.exists():
            for file in (self.path, self.part):
                if file.exists():
                    raise FileExistsError(
                        f"{file} exists, and no {self.run.name} says which run made it: choose another name, or begin "
                        "again with overwrite=True (--overwrite)"
                    )
            return False
        try:
            before = json.loads(self.run.read_text(encoding="utf-8"))
            settings, finished = before["settings"], before["finished"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self.run} is not what a run writes; begin again with overwrite=True (--overwrite)"
            ) from None
        if changed := _differences(settings, self.settings):
            raise ValueError(
                f"{self.path} was begun with other settings ({'; '.join(changed)}): run it with those, choose another "
                "name, or begin again with overwrite=True (--overwrite)"
            )
        if self.path.exists():  # the last thing before the run was stopped
            self.complete = True
            self.part.unlink(missing_ok=True)
            if not finished:
                self._say(finished=True)
        elif finished:
            raise FileNotFoundError(
                f"{self.run} says that {self.path} is finished, but it is not there; begin again with overwrite=True "
                "(--overwrite)"
            )
        return True

    def _take_up(self) -> None:
        """Counts the rows that are there, and cuts off what comes after the last whole one."""
        header = ("\t".join(column.name for column in self.columns) + "\n").encode()
        self._stream.seek(0)
        first, end = self._stream.readline(), 0
        if first.endswith(b"\n"):
            if first != header:
                raise ValueError(f"{self.part} has other columns; begin again with overwrite=True (--overwrite)")
            end = len(first)
            for line in self._stream:
                if not line.endswith(b"\n"):
                    break
                self.done += 1
                end += len(line)
        self._stream.seek(end)
        self._stream.truncate()
        if end == 0:
            self._stream.write(header)

    def done_keys(self) -> Iterator[tuple[str, ...]]:
        """Yields the keys of the rows that were there."""
        with self.part.open("rb") as stream:
            stream.readline()
            for _, line in zip(range(self.done), stream):
                yield tuple(line.decode().rstrip("\n").split("\t")[: self.keys])

    def append(self, rows: Iterable[Sequence[Any]]) -> None:
        """Writes rows; once it returns, no kill loses them.

        Raises:
            ValueError: a row of another length, or a text that a line cannot hold.
        """
        self._stream.write("".join(line(row, len(self.columns)) for row in rows).encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def finish(self) -> None:
        """Gives the table its name."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        if self._convert is None:
            os.replace(self.part, self.path)
        else:
            whole = self.path.with_name(self.path.name + ".tmp")
            self._convert(self.part, whole)
            os.replace(whole, self.path)
            self.part.unlink()
        self._stream.close()
        self.complete = True
        self._say(finished=True)

    def close(self) -> None:
        """Leaves the table as it is, to go on with."""
        with contextlib.suppress(AttributeError):
            self._stream.close()

    def _say(self, *, finished: bool) -> None:
        """Writes the record of the run, at once or not at all."""
        new = self.run.with_name(self.run.name + ".tmp")
        with new.open("w", encoding="utf-8") as stream:
            json.dump({"settings": self.settings, "finished": finished}, stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, self.run)


def line(row: Sequence[Any], number: int) -> str:
    """Returns a row as a line of a ``.tsv`` file; floats with 9 digits, which hold a float32.

    Raises:
        ValueError: another number of values, or a text with a tab or a line break.
    """
    values = [format(value, ".9g") if isinstance(value, float) else str(value) for value in row]
    if len(values) != number or any(letter in value for value in values for letter in _FORBIDDEN):
        raise ValueError(f"a row has {number} values without tabs and line breaks, got {values[:10]}")
    return "\t".join(values) + "\n"


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    nothing = object()
    return [
        f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, nothing) != now.get(name, nothing)
    ]


def _lock(stream: Any, path: Path) -> None:
    """Keeps other processes from writing; the system takes the lock back when this one ends, however it does."""
    try:
        import fcntl
    except ModuleNotFoundError:  # not on this system
        return
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"another process is writing {path}") from None


def _converter(path: Path, columns: list[Column]) -> Callable[[Path, Path], None] | None:
    """What makes the complete table of its lines; None where it is its lines."""
    kind = path.suffix.lower()
    if kind == ".tsv":
        return None
    if kind == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"writing {path} needs the pyarrow package: pip install pyarrow, or choose a name that ends in .tsv",
                name="pyarrow",
            ) from error
        return lambda lines, whole: _to_parquet(lines, whole, columns)
    names = [column.name for column in columns]
    if "sequence" in names and kind in (".fa", ".fasta"):
        return lambda lines, whole: _to_fasta(lines, whole, names)
    kinds = ".tsv, .parquet" + (", .fa, .fasta" if "sequence" in names else "")
    raise ValueError(f"the name of a table ends in one of {kinds}, got {path}")


def _rows(lines: Path) -> Iterator[list[str]]:
    with lines.open(encoding="utf-8", newline="\n") as stream:
        next(stream)
        for text in stream:
            yield text.rstrip("\n").split("\t")


def _to_parquet(lines: Path, whole: Path, columns: list[Column], batch: int = 10_000) -> None:
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(column.name, types[column.kind]) for column in columns])
    rows = _rows(lines)
    with pyarrow.parquet.ParquetWriter(whole, schema) as writer:
        while taken := [row for _, row in zip(range(batch), rows)]:
            values = [
                list(map(column.kind, each)) for column, each in zip(columns, zip(*taken, strict=True), strict=True)
            ]
            writer.write_table(
                pyarrow.Table.from_arrays([pyarrow.array(v, t.type) for v, t in zip(values, schema)], schema=schema)
            )


def _to_fasta(lines: Path, whole: Path, names: list[str]) -> None:
    with whole.open("w", encoding="utf-8", newline="\n") as stream:
        for row in _rows(lines):
            values = dict(zip(names, row, strict=True))
            title = f"{values['record']}_{values['sample']}" if "sample" in values else values["record"]
            stream.write(fasta_text(Record(title, values["sequence"])))
