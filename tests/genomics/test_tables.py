"""Tables that grow by rows: cut off anywhere they go on, and what another run left is not touched."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena.genomics.progress import Progress
from hyena.genomics.tables import Column, Table

COLUMNS = [Column("file", str), Column("record", str), Column("n", int), Column("x", float)]
ROWS = [("a.fa", f"r{i}", i, i / 7) for i in range(5)]
WHOLE = b"file\trecord\tn\tx\n" + b"".join(f"a.fa\tr{i}\t{i}\t{i / 7:.9g}\n".encode() for i in range(5))


def table(path: Path, settings: dict | None = None, **keywords: bool) -> Table:
    return Table(path, COLUMNS, settings or {"k": 1}, **keywords)


@given(st.integers(0, len(WHOLE)), st.sampled_from([b"", b"\0" * 500]))
def test_it_goes_on_wherever_it_was_cut_off(tmp_path: Path, cut: int, torn: bytes) -> None:
    path = tmp_path / "t.tsv"
    for file in tmp_path.iterdir():
        file.unlink()
    table(path).close()
    (tmp_path / "t.tsv.part").write_bytes(WHOLE[:cut] + torn)
    again = table(path)
    assert again.done == max(WHOLE[:cut].count(b"\n") - 1, 0)
    assert list(again.done_keys()) == [row[:2] for row in ROWS[: again.done]]
    again.append(ROWS[again.done :])
    assert not path.exists()
    again.finish()
    assert path.read_bytes() == WHOLE
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.tsv", "t.tsv.run.json"]
    assert table(path).complete


def test_killed_between_its_last_two_acts(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    whole = table(path)
    whole.append(ROWS)
    whole.close()
    (tmp_path / "t.tsv.part").rename(path)
    assert table(path).complete
    assert json.loads((tmp_path / "t.tsv.run.json").read_text())["finished"]


def test_other_files_and_other_settings_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"t\.tsv exists, and no t\.tsv\.run\.json says which run made it"):
        table(path)
    assert path.read_text() == "mine"
    table(path, overwrite=True).close()
    assert not path.exists()
    with pytest.raises(ValueError, match=r"begun with other settings \(k: 1 then, 2 now; m: None then, 3 now\)"):
        table(path, {"k": 2, "m": 3})
    (tmp_path / "t.tsv.run.json").write_text("{")
    with pytest.raises(ValueError, match="is not what a run writes"):
        table(path)
    (tmp_path / "t.tsv.run.json").unlink()
    with pytest.raises(FileExistsError, match=r"t\.tsv\.part exists"):
        table(path)


def test_a_finished_table_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    table(path).finish()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is finished, but it is not there"):
        table(path)


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_two_at_once(tmp_path: Path) -> None:
    first = table(tmp_path / "t.tsv")
    with pytest.raises(BlockingIOError, match="another process is writing"):
        table(tmp_path / "t.tsv")
    with pytest.raises(BlockingIOError, match="another process is writing"):
        table(tmp_path / "t.tsv", overwrite=True)
    first.append(ROWS)
    assert (tmp_path / "t.tsv.part").read_bytes() == WHOLE
    first.close()
    table(tmp_path / "t.tsv").close()


def test_rows_that_no_line_holds(tmp_path: Path) -> None:
    t = table(tmp_path / "t.tsv")
    for row in (("a\tb", "r", 1, 0.5), ("a", "r\n", 1, 0.5), ("a", "r", 1)):
        with pytest.raises(ValueError, match="a row has 4 values without tabs and line breaks"):
            t.append([row])


@pytest.mark.parametrize("name", ["t.csv", "t", "t.fa"])
def test_other_endings(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"ends in one of \.tsv, \.parquet, got"):
        table(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="needs the pyarrow package: pip install pyarrow"):
        table(tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    t = table(tmp_path / "t.parquet")
    t.append(ROWS)
    t.finish()
    read = parquet.read_table(tmp_path / "t.parquet").to_pydict()
    assert read == {
        "file": ["a.fa"] * 5,
        "record": [row[1] for row in ROWS],
        "n": [row[2] for row in ROWS],
        "x": [float(f"{row[3]:.9g}") for row in ROWS],
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.parquet", "t.parquet.run.json"]


def test_fasta(tmp_path: Path) -> None:
    columns = [Column("file", str), Column("record", str), Column("sample", int), Column("sequence", str)]
    t = Table(tmp_path / "t.fa", columns, {})
    t.append([("a.fa", "r", 1, "ACGT"), ("a.fa", "r", 2, "G" * 71)])
    t.finish()
    assert (tmp_path / "t.fa").read_text() == f">r_1\nACGT\n>r_2\n{'G' * 70}\nG\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar() -> None:
    stream = Terminal()
    with Progress(4000, "letters", stream=stream, done=1000) as bar:
        bar.add(1000)
        assert bar.text().startswith("[############............]  50% of 4k letters, ")
        assert "letters/s" in bar.text()
        assert bar.text().endswith("left")
        bar.add(2000)
    assert stream.getvalue().count("\r") >= 2
    assert "100% of 4k letters" in stream.getvalue()
    assert stream.getvalue().endswith("\n")
    for quiet in (io.StringIO(), Terminal()):
        with Progress(10, "letters", stream=quiet, shown=not quiet.isatty()) as bar:
            bar.add(5)
        assert quiet.getvalue() == ""
    assert Progress(None, "letters", stream=stream).text().startswith("0 letters")
